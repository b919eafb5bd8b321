//! Real guests among the fake ones: they boot, transfer files, are reset and killed.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::dice::Dice;
use super::support::machines::{Station, boot};
use super::support::netns::{Netns, must};
use super::support::proc::Process;
use super::support::qemu::QemuGuest;

/// Bytes of the file that guests fetch, MiB.
const FILE_MIB: u32 = 4;
/// How long a command in a guest may take, emulated on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What the machines are to do.
#[derive(Debug, Default)]
pub struct Control {
    /// They are to run; otherwise each is killed when it has been of use.
    pub on: AtomicBool,
    /// They are to end.
    pub stop: AtomicBool,
    /// How many run.
    pub present: AtomicUsize,
    /// Held by a machine that does something; who writes, has them quiet.
    pub busy: RwLock<()>,
}

/// A file on the host for guests to fetch.
pub struct Files {
    _server: Process,
    _dir: tempfile::TempDir,
    digest: String,
}

impl Files {
    /// Serves a file of random bytes in the host's namespace.
    pub fn serve(host: &Netns) -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let bytes = Dice::new(u64::from(FILE_MIB), 0).bytes((FILE_MIB << 20) as usize);
        std::fs::write(&path, bytes).expect("a file");
        let digest = must(std::process::Command::new("sha256sum").arg(&path));
        let mut command = host.command("busybox");
        command.args(["httpd", "-f", "-p", "80", "-h"]).arg(dir.path());
        let server = Process::start("httpd", command, &dir.path().join("log"));
        let digest = digest.split_whitespace().next().expect("a digest").to_owned();
        Files { _server: server, _dir: dir, digest }
    }
}

/// What machines did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub boots: u64,
    pub transfers: u64,
    pub resets: u64,
    pub kills: u64,
}

/// Runs machine `index` on a socket until the end.
pub fn run(
    index: usize,
    socket: &std::path::Path,
    files: &Files,
    control: &Control,
    seed: u64,
) -> Done {
    let mut dice = Dice::new(seed, 1 << 32 | index as u64);
    let mut done = Done::default();
    let mut guest: Option<QemuGuest> = None;
    let mut useful = false;
    while !control.stop.load(Ordering::Relaxed) {
        let on = control.on.load(Ordering::Relaxed);
        match &mut guest {
            None if on => {
                control.present.fetch_add(1, Ordering::Relaxed);
                let _busy = control.busy.read();
                guest = Some(boot(index, socket, &[]));
                (done.boots, useful) = (done.boots + 1, false);
            }
            Some(_) if !on && useful => {
                guest = None; // killed
                done.kills += 1;
                control.present.fetch_sub(1, Ordering::Relaxed);
            }
            Some(guest) => {
                let _busy = control.busy.read();
                if useful && dice.percent(20) {
                    guest.reset();
                    done.resets += 1;
                }
                transfer(guest, files);
                (done.transfers, useful) = (done.transfers + 1, true);
            }
            None => {}
        }
        thread::sleep(Duration::from_millis(50));
    }
    drop(guest);
    done
}

/// A file comes over TCP as it is, and echoes are answered.
fn transfer(guest: &mut QemuGuest, files: &Files) {
    let host = Station::Host.ip4();
    let line = format!("wget -q -O - http://{host}/file | sha256sum");
    let digest = guest.run(&line, LIMIT);
    assert!(digest.starts_with(&files.digest), "the file changed on the way: {digest}");
    let line = format!("ping -q -c 10 -i 0.02 -W 30 -s 1400 {host}");
    let (_, output) = guest.try_run(&line, LIMIT);
    // What the others send to all may fill its receive ring.
    let answered = (1..=10).any(|count| output.contains(&format!(" {count} packets received")));
    assert!(answered, "{output}");
}
