//! The configuration as the API says it: the keys of the file (`docs/configuration.md`), all with
//! their values.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All settings of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// The threads that move frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersConfig>,
    /// The MAC table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_table: Option<MacTableConfig>,
    /// Hitless upgrades.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeConfig>,
    /// The API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiConfig>,
    /// What the process gives up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxConfig>,
    /// The log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogConfig>,
    /// The ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<PortConfig>,
    /// The mirrors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirror: Vec<MirrorConfig>,
}

/// `[workers]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct WorkersConfig {
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// `adaptive` or `poll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The CPU of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u64>,
}

/// `[mac-table]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MacTableConfig {
    /// Seconds after which an address is forgotten that sends nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing_seconds: Option<u64>,
    /// Addresses in the whole table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Addresses that one port may hold, the uplink excepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_port: Option<u64>,
}

/// `[upgrade]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct UpgradeConfig {
    /// The upgrade socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// `[api]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ApiConfig {
    /// The API's socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// The socket of those who may only look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_socket: Option<String>,
    /// Where metrics are over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// `[sandbox]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct SandboxConfig {
    /// `strict`, `on`, `log` or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Whom to run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LogConfig {
    /// The least severe level that is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// `human`, `json` or `journald`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// `[[port]]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PortConfig {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `vhost-user` or `tap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Addresses that it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_limit: Option<u64>,
    /// The MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Addresses that are there and nowhere else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub macs: Vec<String>,
    /// Whether its frames reach open ports only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// The group that its frames reach besides open ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// vhost-user: the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// vhost-user: `server` or `client`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// vhost-user: who owns the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// vhost-user: permissions of the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// vhost-user: queue pairs that the guest may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u64>,
    /// tap: the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// tap: the bridge that it is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// tap: whether the rest of the network is behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<bool>,
}

/// `[[mirror]]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MirrorConfig {
    /// Whose frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The port of the copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `both`, `in` or `out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directions: Option<String>,
}

/// What a change of the settings did to the ports, by name. All other ports and their frames went on
/// as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Ports that are new.
    pub added: Vec<String>,
    /// Ports that are gone.
    pub removed: Vec<String>,
    /// Ports that began anew: their guests were disconnected and may come back.
    pub replaced: Vec<String>,
    /// Settings that took effect in place: of ports by their names, others by their keys.
    pub changed: Vec<String>,
}

impl std::fmt::Display for Changed {
    /// In one line, such as `added vm3; removed vm1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { added, removed, replaced, changed } = self;
        let parts =
            [("added", added), ("removed", removed), ("replaced", replaced), ("changed", changed)];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> =
            parts.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}
