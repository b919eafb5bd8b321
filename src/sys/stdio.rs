//! The standard streams of a process that takes another's place.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Writes `word` to standard output and closes it, and makes `log` standard error, if there is one.
///
/// # Errors
///
/// Standard output can't be written, /dev/null can't be opened.
pub fn hand_to(word: &str, log: Option<OwnedFd>) -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(word.as_bytes())?;
    output.flush()?;
    let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
    replace(libc::STDOUT_FILENO, nowhere.as_raw_fd())?;
    log.map_or(Ok(()), |log| replace(libc::STDERR_FILENO, log.as_raw_fd()))
}

fn replace(stream: RawFd, by: RawFd) -> io::Result<()> {
    // SAFETY: both are open; the standard streams are owned by nobody and may change.
    let result = unsafe { libc::dup2(by, stream) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
