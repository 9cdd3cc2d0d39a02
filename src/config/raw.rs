//! The configuration as people write it: every key of the file, nothing checked but names and kinds.
//!
//! It can be written too, so that a program which makes configurations makes only ones that can be read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::ConfigError;
use super::units::{ByteSize, OneOrMore, Span};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub cluster: String,
    pub node: String,
    pub data: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_generations: Option<u32>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub listen: RawListen,
    pub member: Vec<RawMember>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub timing: RawTiming,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub limits: RawLimits,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub log: RawLog,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawListen {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durus: Option<OneOrMore>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix: Option<RawUnix>,
}

/// Who may connect to Unix sockets that have a path.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawUnix {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawMember {
    pub id: u64,
    pub name: String,
    pub durus: String,
    pub peer: String,
    pub http: String,
    #[serde(default)]
    pub priority: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_be_master: Option<bool>,
}

/// Milliseconds, or ticks of `raft_tick_ms`. What is absent is as the core has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawTiming {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beat_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_tick_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_election_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_timeout_ms: Option<u64>,
    /// In microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll_us: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_per_transaction_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk_oids_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_buffered_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits_waiting_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_oids_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_max: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_max: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_quit: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_queue_bytes_max: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch_bytes_per_s_max: Option<ByteSize>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Nothing is set in it: it need not be written.
fn is_empty<T: Default + PartialEq>(table: &T) -> bool {
    *table == T::default()
}

impl RawConfig {
    /// `origin` says in messages where the text comes from.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<RawConfig, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            origin: origin.to_string(),
            message: error.to_string(),
        };
        if overrides.is_empty() {
            // Straight from the text: errors then show the line.
            return toml::from_str(text).map_err(syntax);
        }
        let mut table: Table = toml::from_str(text).map_err(syntax)?;
        for given in overrides {
            set(&mut table, given).map_err(|why| ConfigError::Override {
                given: given.clone(),
                why: why.to_string(),
            })?;
        }
        table.try_into().map_err(|error: toml::de::Error| ConfigError::Syntax {
            origin: format!("{origin}, with {}", overrides.join(", ")),
            message: error.to_string(),
        })
    }

    /// The text of a configuration file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings, numbers and tables can always be written")
    }
}

/// `timing.beat_ms=20`: the value is TOML, or else a plain string.
fn set(table: &mut Table, given: &str) -> Result<(), &'static str> {
    let (key, value) =
        given.split_once('=').ok_or("not of the form KEY=VALUE, such as timing.beat_ms=20")?;
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().filter(|last| !last.is_empty()).ok_or("there is no key before the =")?;
    let mut at = table;
    for part in path {
        at = at
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or("only keys of tables can be set, not members: edit the file")?;
    }
    let tables =
        |value: &Value| value.as_array().is_some_and(|all| all.iter().any(Value::is_table));
    if last == "member" || at.get(last).is_some_and(tables) {
        return Err("members cannot be set: edit the file");
    }
    let value = value.trim();
    let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok();
    let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("v"));
    at.insert(last.to_string(), parsed.unwrap_or_else(|| Value::String(value.to_string())));
    Ok(())
}
