//! Runs inside of real guests and watches what their network does: `benches/lifecycle/run` builds it
//! without shared libraries and takes it there.
//!
//!     probe echo ADDRESS INTERVAL_US   echo requests to ADDRESS, whose kernel answers
//!     probe source ADDRESS PORT        a TCP stream of known content
//!     probe sink PORT                  receives it, and checks each byte
//!
//! Each goes on until SIGTERM, or the end of the stream, and then prints one line of JSON. A gap is
//! a time in which nothing arrived.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a blocked system call returns to look at [`ENDED`].
const LOOK: Duration = Duration::from_millis(50);
/// How long answers may be late at the end.
const LATE: Duration = Duration::from_millis(500);
/// Gaps from here on are reported one by one.
const GAP: Duration = Duration::from_millis(20);
/// Bytes of the stream that are written and read at a time.
const CHUNK: usize = 64 * 1024;
/// An ICMP echo request and its header's length (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ICMP_HEADER: usize = 8;

/// SIGTERM came.
static ENDED: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = watch_for_end().and_then(|()| match words.as_slice() {
        ["echo", address, interval] => echo(address, interval),
        ["source", address, port] => source(address, port),
        ["sink", port] => sink(port),
        _ => Err(bad("usage: probe echo ADDRESS INTERVAL_US | source ADDRESS PORT | sink PORT")),
    });
    match done {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("probe: {error}");
            std::process::exit(1);
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| bad(&format!("{text} is no such number or address")))
}

extern "C" fn on_signal(_: libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

fn watch_for_end() -> io::Result<()> {
    let handler = on_signal as extern "C" fn(libc::c_int);
    // SAFETY: the handler only stores to an atomic, which is safe in a signal handler.
    let before = unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ended() -> bool {
    ENDED.load(Ordering::Relaxed)
}

/// Times at which something arrived, as the gaps between them.
struct Gaps {
    start: Instant,
    last: Option<Instant>,
    /// Where each long one began, and how long it was.
    long: Vec<(Duration, Duration)>,
    longest: Duration,
}

impl Gaps {
    fn new() -> Gaps {
        Gaps { start: Instant::now(), last: None, long: Vec::new(), longest: Duration::ZERO }
    }

    fn arrived(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let gap = now - last;
            self.longest = self.longest.max(gap);
            if gap >= GAP {
                self.long.push((last - self.start, gap));
            }
        }
    }

    /// The fields of a JSON object.
    fn json(&self) -> String {
        let seconds = |time: &Duration| time.as_secs_f64();
        let pair =
            |(at, gap): &(Duration, Duration)| format!("[{:.4}, {:.4}]", seconds(at), seconds(gap));
        let long: Vec<String> = self.long.iter().map(pair).collect();
        let (watched, longest) = (seconds(&self.start.elapsed()), seconds(&self.longest));
        let long = long.join(", ");
        format!("\"watched\": {watched:.3}, \"longest\": {longest:.4}, \"gaps\": [{long}]")
    }
}

/// Sends numbered echo requests, one each interval; those that can't be sent are counted as lost
/// like those that aren't answered.
fn echo(address: &str, interval: &str) -> io::Result<String> {
    let to = SocketAddrV4::new(number(address)?, 0);
    let interval = Duration::from_micros(number(interval)?);
    let socket = icmp_socket()?;
    socket.set_read_timeout(Some(LOOK))?;
    let sender = socket.try_clone()?;
    let (sent, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut gaps = Gaps::new();
    let (mut seen, mut again) = (Vec::new(), 0u64);
    thread::scope(|scope| -> io::Result<()> {
        let sending = scope.spawn(|| {
            let mut due = Instant::now();
            while !ended() {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                if sender.send_to(&request(number), to).is_err() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                due += interval;
                match due.checked_duration_since(Instant::now()) {
                    Some(left) => thread::sleep(left),
                    // Held up: no burst to make up for it.
                    None => due = Instant::now(),
                }
            }
        });
        let mut last = Instant::now();
        while !ended() || last.elapsed() < LATE {
            if !ended() {
                last = Instant::now();
            }
            let mut buffer = [0; 256];
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    let body = buffer.get(ICMP_HEADER..len).unwrap_or_default();
                    let Some(number) = body.first_chunk() else { continue };
                    let number = usize::try_from(u64::from_le_bytes(*number)).unwrap_or(0);
                    if seen.len() <= number {
                        seen.resize(number + 1, false);
                    }
                    again += u64::from(std::mem::replace(&mut seen[number], true));
                    gaps.arrived();
                }
                // Errors that a router or the own kernel reported belong to requests before.
                Err(_) => continue,
            }
        }
        sending.join().map_err(|_| io::Error::other("the sender failed"))
    })?;
    let answered = seen.iter().filter(|seen| **seen).count() as u64;
    let sent = sent.into_inner();
    Ok(format!(
        "{{\"sent\": {sent}, \"lost\": {}, \"refused\": {}, \"twice\": {again}, {}}}",
        sent - answered,
        refused.into_inner(),
        gaps.json()
    ))
}

/// A socket for echo requests. The kernel fills in checksum and identifier.
fn icmp_socket() -> io::Result<UdpSocket> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn request(number: u64) -> [u8; 64] {
    let mut message = [0; 64];
    message[0] = ECHO_REQUEST;
    message[ICMP_HEADER..ICMP_HEADER + 8].copy_from_slice(&number.to_le_bytes());
    message
}

/// The stream's bytes from word `first` on.
fn fill(first: u64, chunk: &mut [u8]) {
    for (n, word) in (first..).zip(chunk.chunks_exact_mut(8)) {
        word.copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

/// Connects, waiting for the other end to listen.
fn connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(to) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && !ended() => {
                thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

fn source(address: &str, port: &str) -> io::Result<String> {
    let mut stream = connect(SocketAddrV4::new(number(address)?, number(port)?))?;
    let (mut chunk, mut sent) = (vec![0; CHUNK], 0u64);
    while !ended() {
        fill(sent / 8, &mut chunk);
        // Whole chunks: the signal may come while it is blocked.
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The other end closes when it has all.
    stream.read_to_end(&mut Vec::new())?;
    Ok(format!("{{\"sent\": {sent}, \"retransmits\": {}}}", retransmits(&stream)?))
}

/// Segments that were sent again.
fn retransmits(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: all zeros is a value of this plain C struct.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: a struct of the length given, which lives across the call.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(info.tcpi_total_retrans) }
}

fn sink(port: &str) -> io::Result<String> {
    let listener = TcpListener::bind(("0.0.0.0", number::<u16>(port)?))?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut gaps = Gaps::new();
    let (mut got, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK + 8]);
    let mut received = 0u64;
    while !ended() {
        let len = match stream.read(&mut got) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        gaps.arrived();
        fill(received / 8, &mut wanted);
        let skip = (received % 8) as usize;
        if got[..len] != wanted[skip..skip + len] {
            return Err(io::Error::other(format!("wrong bytes after {received} of the stream")));
        }
        received += len as u64;
    }
    Ok(format!("{{\"received\": {received}, {}}}", gaps.json()))
}
