//! The configuration file as written: every value with the place where it stood, none checked.
//!
//! Owns the keys' names and their TOML types. Ranges, defaults and relations between keys belong
//! to `validate`; a value whose range matters is therefore kept as wide as TOML has it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use toml::Spanned;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSettings {
    #[serde(default)]
    pub workers: RawWorkers,
    #[serde(default)]
    pub mac_table: RawMacTable,
    #[serde(default)]
    pub upgrade: RawUpgrade,
    #[serde(default)]
    pub api: RawApi,
    #[serde(default)]
    pub sandbox: RawSandbox,
    #[serde(default)]
    pub log: RawLog,
    #[serde(default)]
    pub port: Vec<Spanned<RawPort>>,
    #[serde(default)]
    pub mirror: Vec<Spanned<RawMirror>>,
}

/// One `[[mirror]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawMirror {
    pub port: Option<Spanned<String>>,
    pub to: Option<Spanned<String>>,
    pub directions: Option<Spanned<String>>,
}

/// The table `[upgrade]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawUpgrade {
    pub socket: Option<Spanned<String>>,
}

/// The table `[api]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawApi {
    pub socket: Option<Spanned<String>>,
    pub read_only_socket: Option<Spanned<String>>,
    pub metrics: Option<Spanned<String>>,
}

/// The table `[workers]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawWorkers {
    pub count: Option<Spanned<Integer>>,
    pub mode: Option<Spanned<String>>,
    pub cpus: Option<Spanned<Vec<Spanned<Integer>>>>,
}

/// The table `[mac-table]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawMacTable {
    pub ageing_seconds: Option<Spanned<Integer>>,
    pub capacity: Option<Spanned<Integer>>,
    pub per_port: Option<Spanned<Integer>>,
}

/// The table `[sandbox]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSandbox {
    pub mode: Option<Spanned<String>>,
    pub user: Option<Spanned<String>>,
}

/// The table `[log]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawLog {
    pub level: Option<Spanned<String>>,
    pub format: Option<Spanned<String>>,
}

/// One `[[port]]`: the keys of all types, because an enum tagged by `type` would lose the places
/// of its values.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPort {
    pub name: Option<Spanned<String>>,
    pub r#type: Option<Spanned<String>>,
    pub mac_limit: Option<Spanned<Integer>>,
    pub mtu: Option<Spanned<Integer>>,
    pub macs: Option<Spanned<Vec<Spanned<String>>>>,
    pub isolated: Option<Spanned<bool>>,
    pub group: Option<Spanned<String>>,
    // vhost-user
    pub socket: Option<Spanned<String>>,
    pub role: Option<Spanned<String>>,
    pub owner: Option<Spanned<String>>,
    pub mode: Option<Spanned<String>>,
    pub queue_pairs: Option<Spanned<Integer>>,
    // tap
    pub device: Option<Spanned<String>>,
    pub bridge: Option<Spanned<String>>,
    pub uplink: Option<Spanned<bool>>,
}

/// A TOML integer. It exists to be called "an integer" in errors, where serde says "i64".
#[derive(Debug, Clone, Copy)]
pub(super) struct Integer(pub i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntegerVisitor;

        impl Visitor<'_> for IntegerVisitor {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }
        }

        deserializer.deserialize_i64(IntegerVisitor)
    }
}
