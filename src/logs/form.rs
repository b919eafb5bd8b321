//! The forms of a line.
//!
//! A message may hold what a guest, a VMM or a client chose. In no form does it end its line, or do
//! anything to the terminal that shows it: what is no printable character is escaped.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};
use std::thread;

use env_logger::fmt::style::Style;
use log::Level;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

use crate::config::LogFormat;

/// A line of the log.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub level: Level,
    /// The path of the module that it comes from.
    pub target: &'a str,
    /// The port that it is about.
    pub port: Option<&'a str>,
    pub text: fmt::Arguments<'a>,
}

/// What a line is in JSON.
#[derive(Serialize)]
struct Fields<'a> {
    time: String,
    level: String,
    module: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<&'a str>,
    message: fmt::Arguments<'a>,
}

impl<'a> Line<'a> {
    /// Writes it to `out`. Its time and the style of its level are used where the form has them.
    pub fn write(
        &self,
        out: &mut impl Write,
        format: LogFormat,
        time: &impl Display,
        style: Style,
    ) -> io::Result<()> {
        match format {
            LogFormat::Human => {
                let level = self.level;
                writeln!(out, "{time} {style}{level:<5}{style:#} {self}")
            }
            LogFormat::Json => {
                let here = thread::current();
                let fields = Fields {
                    time: time.to_string(),
                    level: name(self.level),
                    module: self.module(),
                    thread: here.name(),
                    port: self.port,
                    message: self.text,
                };
                fields.serialize(&mut Serializer::with_formatter(&mut *out, Printable))?;
                writeln!(out)
            }
            // sd-daemon(3); the journal has the time itself.
            LogFormat::Journald => writeln!(out, "<{}>{self}", priority(self.level)),
        }
    }

    /// The module of the house, or the crate.
    fn module(&self) -> &'a str {
        let module = self.target.strip_prefix("ringswitch::").unwrap_or(self.target);
        module.split("::").next().unwrap_or(module)
    }
}

/// For people.
impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Escape(f);
        write!(f, "{}: ", self.module())?;
        if let Some(port) = self.port {
            write!(f, "port {port}: ")?;
        }
        f.write_fmt(self.text)
    }
}

/// A level as settings, commands and JSON have it.
pub(super) fn name(level: Level) -> String {
    level.as_str().to_lowercase()
}

/// syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether a terminal shows `c`, and does nothing else: no control character, no direction of
/// writing, no mark on another character.
fn is_printable(c: char) -> bool {
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1
}

/// Escapes what isn't printable as Rust does: `\n`, `\u{1b}`.
struct Escape<W>(W);

impl<W: fmt::Write> fmt::Write for Escape<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match is_printable(c) {
            true => self.0.write_char(c),
            false => write!(self.0, "{}", c.escape_debug()),
        })
    }
}

/// Escapes in JSON what JSON needn't, but terminals: the value stays the same.
struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        fragment.chars().try_for_each(|c| match is_printable(c) {
            true => CompactFormatter.write_string_fragment(out, c.encode_utf8(&mut [0; 4])),
            false => {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ESC, line feed, carriage return, DEL, CSI of one character, right to left, line separator, zero
    /// width, a mark on the letter before, a tag beyond the first plane; and harmless ones.
    const EVIL: &str = "\x1b[31m\n\r\x7f\u{9b}\u{202e}\u{2028}\u{200b}e\u{301}\u{e0041} \t\"é\\'漢";

    fn written(format: LogFormat, port: Option<&str>, text: &str) -> String {
        let mut out = Vec::new();
        let line = Line {
            level: Level::Warn,
            target: "ringswitch::vhost_user::session",
            port,
            text: format_args!("{text}"),
        };
        line.write(&mut out, format, &"2026-01-31T12:00:00.000Z", Style::new()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_read_time_level_module_and_port() {
        assert_eq!(
            written(LogFormat::Human, Some("vm1"), "refused"),
            "2026-01-31T12:00:00.000Z WARN  vhost_user: port vm1: refused\n"
        );
    }

    #[test]
    fn the_journal_reads_a_priority() {
        let text = written(LogFormat::Journald, None, "refused");
        assert_eq!(text, "<4>vhost_user: refused\n");
        let all = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        assert_eq!(all.map(priority), [3, 4, 6, 7, 7]);
    }

    #[test]
    fn programs_read_fields() {
        let thread = thread::current();
        let thread = thread.name().unwrap();
        assert_eq!(
            written(LogFormat::Json, Some("vm1"), "refused"),
            format!(
                "{{\"time\":\"2026-01-31T12:00:00.000Z\",\"level\":\"warn\",\
                 \"module\":\"vhost_user\",\"thread\":\"{thread}\",\"port\":\"vm1\",\
                 \"message\":\"refused\"}}\n"
            )
        );
        assert!(!written(LogFormat::Json, None, "refused").contains("port"));
    }

    #[test]
    fn no_message_ends_its_line_or_reaches_the_terminal() {
        let shown = "\\u{1b}[31m\\n\\r\\u{7f}\\u{9b}\\u{202e}\\u{2028}\\u{200b}e\\u{301}\\u{e0041} \
                     \\t\"é\\'漢";
        for format in [LogFormat::Human, LogFormat::Journald] {
            let text = written(format, Some("vm\n<0>1"), EVIL);
            let end = format!(" vhost_user: port vm\\n<0>1: {shown}\n");
            assert!(text.replace('>', "> ").ends_with(&end.replace('>', "> ")), "{text:?}");
        }
    }

    #[test]
    fn json_is_as_harmless_and_says_the_same() {
        let text = written(LogFormat::Json, Some(EVIL), EVIL);
        let line = text.strip_suffix('\n').unwrap();
        assert!(line.chars().all(is_printable), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&read["port"], &read["message"]), (&EVIL.into(), &EVIL.into()));
    }
}
