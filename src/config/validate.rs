//! Raw values to [`Settings`]: defaults, ranges, and what values mean together.
//!
//! Every check reports and goes on; what a faulty value is replaced by does not matter, because
//! one problem is enough to make the whole fail.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::problem::{ConfigErrors, Problem, Source};
use super::raw::{Integer, RawMacTable, RawSandbox, RawSettings, RawWorkers};
use super::{
    MAX_WORKERS, MacTableSettings, PollMode, PortKind, PortSettings, SandboxMode, SandboxSettings,
    Settings, WorkerSettings,
};
use super::{logs, mirrors, ports};

/// The longest ageing time: the upper end of IEEE 802.1Q, table 8-6.
const MAX_AGEING_SECONDS: u64 = 1_000_000;
/// Entries of the largest MAC table.
const MAX_CAPACITY: usize = 1 << 24;
/// The highest CPU number: Linux's `cpu_set_t` has 1024 bits.
const MAX_CPU: usize = 1023;

/// Checks everything in `raw`, whose spans belong to `source`.
pub(super) fn validate(raw: &RawSettings, source: Source<'_>) -> Result<Settings, ConfigErrors> {
    let mut check = Check { source, problems: Vec::new() };
    let workers = workers(&mut check, &raw.workers);
    let mac_table = mac_table(&mut check, &raw.mac_table);
    let sandbox = sandbox(&mut check, &raw.sandbox);
    if raw.port.is_empty() && raw.api.socket.is_none() {
        check.report_whole(
            "there is no port; expected at least one, as [[port]] or --port, or an API by which \
             they come",
        );
    }
    let log = logs::log(&mut check, &raw.log);
    let ports = ports::ports(&mut check, &raw.port, mac_table.capacity);
    let mirrors = mirrors::mirrors(&mut check, &raw.mirror, &ports);
    let upgrade = own_socket(&mut check, "upgrade", raw.upgrade.socket.as_ref(), &ports);
    let api = own_socket(&mut check, "API", raw.api.socket.as_ref(), &ports);
    if let (Some(at), true) = (&raw.api.socket, api.is_some() && api == upgrade) {
        check.report(at, "the API socket is the upgrade socket, too");
    }
    let at = raw.api.read_only_socket.as_ref();
    let read_only = own_socket(&mut check, "read-only", at, &ports);
    if let Some(at) = at.filter(|_| read_only.is_some()) {
        for (what, other) in [("API", &api), ("upgrade", &upgrade)] {
            if read_only == *other {
                check.report(at, &format!("the read-only socket is the {what} socket, too"));
            }
        }
    }
    let metrics = raw.api.metrics.as_ref().and_then(|at| loopback(&mut check, at));
    ConfigErrors::none_or(check.problems)?;
    Ok(Settings {
        workers,
        mac_table,
        upgrade,
        api,
        read_only,
        metrics,
        sandbox,
        log,
        ports,
        mirrors,
    })
}

/// The address under `metrics`. Whoever reaches it may read: only this host may.
fn loopback(check: &mut Check<'_>, at: &Spanned<String>) -> Option<SocketAddr> {
    let address = at.as_ref().parse::<SocketAddr>().ok();
    let address = address.filter(|address| address.ip().is_loopback() && address.port() != 0);
    if address.is_none() {
        let value = at.as_ref();
        let expected = "expected a port of this host alone, such as \"127.0.0.1:9479\"";
        check.report(at, &format!("`metrics` is {value:?}; {expected}"));
    }
    address
}

/// The path of a socket that is no port's; `what` names it.
fn own_socket(
    check: &mut Check<'_>,
    what: &str,
    at: Option<&Spanned<String>>,
    ports: &[PortSettings],
) -> Option<PathBuf> {
    let at = at?;
    let path = ports::socket_path(check, at)?;
    let owner = ports.iter().find(|port| match &port.kind {
        PortKind::VhostUser(settings) => settings.socket == path,
        PortKind::Tap(_) => false,
    });
    if let Some(port) = owner {
        check.report(at, &format!("the {what} socket is the socket of port {:?}, too", port.name));
    }
    Some(path)
}

/// Collects problems, and knows the checks that several keys share.
pub(super) struct Check<'a> {
    pub source: Source<'a>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Reports a problem with the value `at`.
    pub fn report<T>(&mut self, at: &Spanned<T>, message: &str) {
        self.problems.push(self.source.problem(Some(at.span()), message));
    }

    /// Reports a problem that no line is to blame for.
    pub fn report_whole(&mut self, message: &str) {
        self.problems.push(self.source.problem(None, message));
    }

    /// The number under `key` if it is there and inside `range`.
    pub fn number<T>(
        &mut self,
        key: &str,
        raw: Option<&Spanned<Integer>>,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let raw = raw?;
        let Integer(value) = *raw.as_ref();
        let number = T::try_from(value).ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.report(raw, &format!("`{key}` is {value}; expected {low} to {high}"));
        }
        number
    }

    /// The `user` or `user:group` under `key`.
    pub fn account(&mut self, key: &str, at: &Spanned<String>) -> Option<String> {
        let value = at.as_ref();
        let (user, group) = value.split_once(':').unwrap_or((value, value));
        let named = |part: &str| {
            !part.is_empty() && !part.contains(|c: char| c == ':' || c.is_control() || c == ' ')
        };
        if named(user) && named(group) {
            return Some(value.clone());
        }
        let message = format!(
            "`{key}` is {value:?}; expected \"user\" or \"user:group\", as names or numbers"
        );
        self.report(at, &message);
        None
    }

    /// What the word under `key` stands for, if it is there and one of `choices`.
    pub fn choice<T: Copy>(
        &mut self,
        key: &str,
        raw: Option<&Spanned<String>>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let raw = raw?;
        let found = choices.iter().find(|(word, _)| word == raw.as_ref());
        if found.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
            let value = raw.as_ref();
            self.report(raw, &format!("`{key}` is {value:?}; expected {}", words.join(" or ")));
        }
        found.map(|(_, meaning)| *meaning)
    }
}

fn workers(check: &mut Check<'_>, raw: &RawWorkers) -> WorkerSettings {
    let default = WorkerSettings::default();
    let modes = [("adaptive", PollMode::Adaptive), ("poll", PollMode::Poll)];
    let count = check.number("count", raw.count.as_ref(), 1..=MAX_WORKERS);
    let mode = check.choice("mode", raw.mode.as_ref(), &modes);
    // A faulty count was reported; comparing the CPUs with its stand-in would only confuse.
    let wanted = if raw.count.is_some() { count } else { Some(default.count) };
    WorkerSettings {
        count: count.unwrap_or(default.count),
        mode: mode.unwrap_or(default.mode),
        cpus: cpus(check, raw, wanted),
    }
}

/// The CPUs, one for each of `workers`, no CPU twice.
fn cpus(check: &mut Check<'_>, raw: &RawWorkers, workers: Option<usize>) -> Vec<usize> {
    let Some(list) = &raw.cpus else {
        return Vec::new();
    };
    let mut cpus = Vec::new();
    for item in list.as_ref() {
        let Some(cpu) = check.number("cpus", Some(item), 0..=MAX_CPU) else {
            continue;
        };
        if cpus.contains(&cpu) {
            check.report(item, &format!("CPU {cpu} is named twice; expected a CPU per worker"));
        }
        cpus.push(cpu);
    }
    let named = list.as_ref().len();
    if let Some(workers) = workers.filter(|workers| named != 0 && named != *workers) {
        let message = format!(
            "`cpus` names {named} CPUs and `count` is {workers}; expected one CPU per worker, \
             or none"
        );
        check.report(list, &message);
    }
    cpus
}

fn sandbox(check: &mut Check<'_>, raw: &RawSandbox) -> SandboxSettings {
    let mode = check.choice("mode", raw.mode.as_ref(), &SandboxMode::NAMES).unwrap_or_default();
    let user = raw.user.as_ref().and_then(|at| check.account("user", at));
    SandboxSettings { mode, user }
}

fn mac_table(check: &mut Check<'_>, raw: &RawMacTable) -> MacTableSettings {
    let default = MacTableSettings::default();
    let seconds = raw.ageing_seconds.as_ref();
    let ageing = check.number("ageing-seconds", seconds, 1..=MAX_AGEING_SECONDS);
    let capacity = check
        .number("capacity", raw.capacity.as_ref(), 1..=MAX_CAPACITY)
        .unwrap_or(default.capacity);
    let per_port = check.number("per-port", raw.per_port.as_ref(), 1..=capacity);
    MacTableSettings {
        ageing: ageing.map_or(default.ageing, Duration::from_secs),
        capacity,
        per_port: per_port.unwrap_or(default.per_port.min(capacity)),
    }
}
