//! The log: how much, and in which form.

use log::Level;

use super::raw::RawLog;
use super::validate::Check;

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The least severe level that is logged.
    pub level: Level,
    /// The form of a line; `None` stands for [`LogFormat::Journald`] where standard error leads to the
    /// journal, and for [`LogFormat::Human`] elsewhere.
    pub format: Option<LogFormat>,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, module and message.
    Human,
    /// A JSON object.
    Json,
    /// Module and message behind the priority of sd-daemon(3).
    Journald,
}

impl LogFormat {
    /// The forms by their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("human", Self::Human), ("json", Self::Json), ("journald", Self::Journald)];
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: Level::Info, format: None }
    }
}

/// The levels by their names.
pub const LEVELS: [(&str, Level); 5] = [
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

pub(super) fn log(check: &mut Check<'_>, raw: &RawLog) -> LogSettings {
    let level = check.choice("level", raw.level.as_ref(), &LEVELS);
    LogSettings {
        level: level.unwrap_or(LogSettings::default().level),
        format: check.choice("format", raw.format.as_ref(), &LogFormat::NAMES),
    }
}
