//! The standard streams: where standard error leads, and those of a process that takes another's place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

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

/// Whether standard error leads to systemd's journal, as JOURNAL_STREAM tells (systemd.exec(5)).
///
/// Who starts another program with another standard error leaves the variable as it is; so it names
/// the stream that it means.
#[must_use]
pub fn is_journal() -> bool {
    std::env::var("JOURNAL_STREAM").is_ok_and(|name| is_named(io::stderr().as_fd(), &name))
}

/// Whether `name` is `DEVICE:INODE` of this file.
fn is_named(file: BorrowedFd<'_>, name: &str) -> bool {
    let metadata = file.try_clone_to_owned().and_then(|file| File::from(file).metadata());
    metadata.is_ok_and(|is| name == format!("{}:{}", is.dev(), is.ino()))
}

fn replace(stream: RawFd, by: RawFd) -> io::Result<()> {
    // SAFETY: both are open; the standard streams are owned by nobody and may change.
    let result = unsafe { libc::dup2(by, stream) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_by_device_and_inode() {
        let (reader, _writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let is = File::from(reader.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
        let (device, inode) = (is.dev(), is.ino());
        assert!(is_named(reader.as_fd(), &format!("{device}:{inode}")));
        for name in
            [format!("{device}:{}", inode + 1), format!("{}:{inode}", device + 1), String::new()]
        {
            assert!(!is_named(reader.as_fd(), &name), "{name}");
        }
    }
}
