//! `ringswitch upgrade`: starts the process that takes over, and tells how it went.
//!
//! That process is a `ringswitch run` of this program with the same arguments. It says on standard
//! output, which is a pipe to us, that it has taken over, and goes on without us.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::RunArgs;
use crate::Failure;

/// Runs the command.
///
/// # Errors
///
/// There is no upgrade socket, or the other process didn't take over; it has said why.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    if args.settings()?.upgrade.is_none() {
        return Err(Failure::NoUpgradeSocket);
    }
    let program = std::env::current_exe().map_err(Failure::Spawn)?;
    // Behind the program and the command: there are no options before it.
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let mut heir = Command::new(program)
        .arg("run")
        .arg("--take-over")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // The keys of our terminal aren't meant for it.
        .process_group(0)
        .spawn()
        .map_err(Failure::Spawn)?;
    let mut word = String::new();
    if let Some(output) = &mut heir.stdout {
        output.read_to_string(&mut word)?;
    }
    match word.trim().parse::<u32>() {
        Ok(old) => Ok(writeln!(io::stdout(), "process {} has taken over from {old}", heir.id())?),
        Err(_) => {
            // It says why, and ends.
            let _ = heir.wait();
            Err(Failure::NotUpgraded)
        }
    }
}
