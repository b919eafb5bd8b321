//! The settings as those outside say them, and what they say as settings.
//!
//! There is one set of checks, that of the configuration file: what comes as JSON becomes the text of
//! such a file, and mistakes are told by the names in it.

use std::fmt;
use std::path::Path;

use thiserror::Error;

use crate::api::config::{
    ApiConfig, Config, LogConfig, MacTableConfig, MirrorConfig, PortConfig, SandboxConfig,
    UpgradeConfig, WorkersConfig,
};
use crate::config::{
    ConfigErrors, Directions, Isolation, LEVELS, LogFormat, MirrorSettings, PollMode, PortKind,
    PortSettings, Problem, SandboxMode, Settings, SocketRole,
};

/// Why what was said can't be settings.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Mistakes(String);

/// The settings, with all that has a default.
pub(super) fn describe(settings: &Settings) -> Config {
    let Settings {
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
    } = settings;
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map(text);
    let mode = match workers.mode {
        PollMode::Adaptive => "adaptive",
        PollMode::Poll => "poll",
    };
    Config {
        workers: Some(WorkersConfig {
            count: Some(workers.count as u64),
            mode: Some(mode.to_owned()),
            cpus: workers.cpus.iter().map(|cpu| *cpu as u64).collect(),
        }),
        mac_table: Some(MacTableConfig {
            ageing_seconds: Some(mac_table.ageing.as_secs()),
            capacity: Some(mac_table.capacity as u64),
            per_port: Some(mac_table.per_port as u64),
        }),
        upgrade: Some(UpgradeConfig { socket: path(upgrade) }),
        api: Some(ApiConfig {
            socket: path(api),
            read_only_socket: path(read_only),
            metrics: metrics.map(|address| address.to_string()),
        }),
        sandbox: Some(SandboxConfig {
            mode: name_of(&SandboxMode::NAMES, sandbox.mode),
            user: sandbox.user.clone(),
        }),
        log: Some(LogConfig {
            level: name_of(&LEVELS, log.level),
            format: log.format.and_then(|format| name_of(&LogFormat::NAMES, format)),
        }),
        port: ports.iter().map(port).collect(),
        mirror: mirrors.iter().map(mirror).collect(),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: T) -> Option<String> {
    names.iter().find(|(_, is)| *is == value).map(|(name, _)| (*name).to_owned())
}

fn port(settings: &PortSettings) -> PortConfig {
    let PortSettings { name, kind, mac_limit, macs, isolation } = settings;
    let common = PortConfig {
        name: Some(name.clone()),
        mac_limit: mac_limit.map(|limit| limit as u64),
        macs: macs.iter().map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).collect(),
        isolated: (*isolation == Isolation::Isolated).then_some(true),
        group: match isolation {
            Isolation::Group(name) => Some(name.clone()),
            Isolation::Open | Isolation::Isolated => None,
        },
        ..PortConfig::default()
    };
    match kind {
        PortKind::VhostUser(vhost) => PortConfig {
            r#type: Some("vhost-user".to_owned()),
            mtu: vhost.mtu.map(u64::from),
            socket: Some(text(&vhost.socket)),
            role: Some(match vhost.role {
                SocketRole::Server => "server".to_owned(),
                SocketRole::Client => "client".to_owned(),
            }),
            owner: vhost.owner.clone(),
            mode: vhost.mode.map(|mode| format!("{mode:04o}")),
            queue_pairs: Some(vhost.queue_pairs.into()),
            ..common
        },
        PortKind::Tap(tap) => PortConfig {
            r#type: Some("tap".to_owned()),
            mtu: tap.mtu.map(u64::from),
            device: Some(tap.device.clone()),
            bridge: tap.bridge.clone(),
            uplink: tap.uplink.then_some(true),
            ..common
        },
    }
}

fn mirror(settings: &MirrorSettings) -> MirrorConfig {
    MirrorConfig {
        port: Some(settings.port.clone()),
        to: Some(settings.to.clone()),
        directions: name_of(&Directions::NAMES, settings.directions),
    }
}

/// The settings that `config` stands for.
///
/// # Errors
///
/// All mistakes in it.
pub(super) fn settle(config: &Config) -> Result<Settings, Mistakes> {
    let text = toml::to_string(config).map_err(|error| Mistakes(error.to_string()))?;
    let mistakes = |errors: ConfigErrors| {
        let mistakes = errors.problems().iter().map(|problem| Told { problem, text: &text });
        Mistakes(mistakes.map(|told| told.to_string()).collect::<Vec<_>>().join("\n"))
    };
    Settings::from_toml(&text, Path::new("request")).map_err(mistakes)
}

/// The settings that a file of this text stands for.
///
/// # Errors
///
/// All mistakes in it, with their places.
pub(super) fn parse(text: &str) -> Result<Settings, Mistakes> {
    let mistakes = |errors: ConfigErrors| Mistakes(errors.to_string());
    Settings::from_toml(text, Path::new("request")).map_err(mistakes)
}

/// A mistake, and what it is in: nobody has seen the text that has its line.
struct Told<'a> {
    problem: &'a Problem,
    text: &'a str,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.problem.position.as_ref().map_or(0, |position| position.line);
        let before: Vec<_> = self.text.lines().take(line).collect();
        let table = before.iter().rposition(|line| line.starts_with('['));
        let (header, rest) = table.and_then(|at| before.get(at..)?.split_first()).unzip();
        let name = rest.and_then(|rest: &[&str]| rest.first()?.strip_prefix("name = "));
        match (header, name) {
            (Some(&"[[port]]"), Some(name)) => write!(f, "port {name}: ")?,
            (Some(header), _) => write!(f, "{header}: ")?,
            (None, _) => {}
        }
        f.write_str(&self.problem.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_what_was_settled() {
        let example = include_str!("../../docs/ringswitch.toml");
        let settings = parse(example).unwrap();
        let described = describe(&settings);
        assert_eq!(settle(&described).unwrap(), settings);
        let json = serde_json::to_string(&described).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), described);
    }

    #[test]
    fn mistakes_are_told_by_what_they_are_in() {
        let mut config = describe(&parse(include_str!("../../docs/ringswitch.toml")).unwrap());
        config.mac_table = Some(MacTableConfig { capacity: Some(0), ..MacTableConfig::default() });
        config.port[1].mtu = Some(1);
        let text = settle(&config).unwrap_err().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "[mac-table]: `capacity` is 0; expected 1 to 16777216",
                "port \"vm2\": `mtu` is 1; expected 68 to 65535"
            ]
        );
    }
}
