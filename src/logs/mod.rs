//! The log: one sink for all lines, on standard error.
//!
//! Owns the forms of a line (`form`), what becomes of bytes that outsiders chose, and how many lines
//! there may be (`limit`). Everybody else calls the macros of the crate `log`. A line about a port
//! names it: `log::info!(port = name; "...")`. Lines that an operator asked for come in any number:
//! `log::info!(asked = true; "...")`.
//!
//! A line below the level costs what the crate `log` takes to compare two numbers.

mod form;
mod limit;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use env_logger::fmt::Formatter;
use log::kv::{Key, Value};
use log::{Level, LevelFilter, Record};
use parking_lot::Mutex;

use crate::config::{LogFormat, LogSettings};
use crate::sys::stdio;

use form::Line;
use limit::{LeftOut, Limits, Place};

/// What each place in the program may log. Held for a look-up, not while a line is written.
static LIMITS: Mutex<Limits> = Mutex::new(Limits::new());
/// Whether standard error leads to the journal.
static JOURNAL: AtomicBool = AtomicBool::new(false);

/// Begins to log. To be called once.
pub fn start(settings: &LogSettings) {
    set_to_journal(stdio::is_journal());
    let format = settings.format;
    env_logger::Builder::new()
        // What is below the level doesn't come here: `log::max_level`.
        .filter_level(LevelFilter::Trace)
        .format(move |out, record| {
            let fitting = if is_to_journal() { LogFormat::Journald } else { LogFormat::Human };
            put(out, record, format.unwrap_or(fitting))
        })
        .init();
    log::set_max_level(settings.level.to_level_filter());
}

/// Whether standard error leads to the journal.
#[must_use]
pub fn is_to_journal() -> bool {
    JOURNAL.load(Ordering::Relaxed)
}

/// Standard error leads to the journal from now on, or it doesn't.
pub fn set_to_journal(journal: bool) {
    JOURNAL.store(journal, Ordering::Relaxed);
}

/// The least severe level that is logged now.
#[must_use]
pub fn level() -> Level {
    log::max_level().to_level().unwrap_or(Level::Error)
}

/// Makes `new` the least severe level that is logged.
pub fn set_level(new: Level) {
    let old = level();
    // Said if one of the two lets it through.
    log::set_max_level(old.max(new).to_level_filter());
    log::info!("the log level is {} now, and was {}", form::name(new), form::name(old));
    log::set_max_level(new.to_level_filter());
}

/// Tells of lines that were left out and that no line of their kind followed. To be called now and
/// then.
pub fn sweep() {
    let left_out = LIMITS.lock().sweep(Instant::now());
    for (place, lines) in left_out {
        let port = place.port.as_deref().map(|port| ("port", Value::from(port)));
        let pairs: Vec<_> = port.into_iter().chain([("asked", Value::from(true))]).collect();
        log::logger().log(
            &Record::builder()
                .level(Level::Warn)
                .target(place.module)
                .key_values(&pairs)
                .args(format_args!("{}", LeftOut(lines)))
                .build(),
        );
    }
}

/// Writes a record, unless there were too many of its kind; before it, how many were left out.
fn put(out: &mut Formatter, record: &Record<'_>, format: LogFormat) -> io::Result<()> {
    let pairs = record.key_values();
    let port = pairs.get(Key::from("port")).and_then(|port| port.to_borrowed_str());
    let asked = pairs.get(Key::from("asked")).and_then(|asked| asked.to_bool()).unwrap_or(false);
    let line = Line { level: record.level(), target: record.target(), port, text: *record.args() };
    let time = out.timestamp_millis();
    let mut write = |line: &Line<'_>| {
        let style = out.default_level_style(line.level);
        line.write(out, format, &time, style)
    };
    if !asked {
        let place = Place {
            module: record.module_path_static().unwrap_or_default(),
            line: record.line().unwrap_or_default(),
            port: port.map(str::to_owned),
        };
        let left_out = LIMITS.lock().take(place, Instant::now());
        match left_out {
            None => return Ok(()),
            Some(0) => {}
            Some(lines) => {
                let text = format_args!("{}", LeftOut(lines));
                write(&Line { level: Level::Warn, text, ..line })?;
            }
        }
    }
    write(&line)
}
