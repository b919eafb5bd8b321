//! The standard streams of a process that takes another's place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// What takes the place of the standard streams.
#[derive(Debug)]
pub struct Streams {
    nowhere: File,
    log: Option<OwnedFd>,
}

impl Streams {
    /// Standard error becomes `log`, if there is one. Opened beforehand, since a sandbox opens
    /// nothing.
    ///
    /// # Errors
    ///
    /// /dev/null can't be opened.
    pub fn new(log: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self { nowhere: OpenOptions::new().write(true).open("/dev/null")?, log })
    }

    /// Writes `word` to standard output and closes it, and changes standard error.
    ///
    /// # Errors
    ///
    /// Standard output can't be written.
    pub fn hand_to(self, word: &str) -> io::Result<()> {
        let mut output = io::stdout();
        output.write_all(word.as_bytes())?;
        output.flush()?;
        replace(libc::STDOUT_FILENO, self.nowhere.as_raw_fd())?;
        self.log.map_or(Ok(()), |log| replace(libc::STDERR_FILENO, log.as_raw_fd()))
    }
}

fn replace(stream: RawFd, by: RawFd) -> io::Result<()> {
    // SAFETY: both are open; the standard streams are owned by nobody and may change.
    let result = unsafe { libc::dup2(by, stream) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
