//! One node's configuration: TOML text, then overrides, then a checked `Config`.
//!
//! Read once at start and passed on by need; there is nothing global. A key that is not known, a value of the wrong
//! kind and a value that can't work are errors that name the key, say what is wrong and what to do. Every node of a
//! cluster may have the very same file but for `node`, `data` and `[listen]`.

mod address;
mod check;
mod command;
mod raw;
mod single;
mod units;

use std::path::{Path, PathBuf};

pub use address::{DurusAddress, host_and_port};
pub use check::MEMBERS_MAX;
pub use command::{Args, run};
pub use raw::{RawConfig, RawLimits, RawListen, RawLog, RawMember, RawTiming, RawUnix};
pub use units::{ByteSize, OneOrMore, Span};

use crate::durus;
use crate::types::NodeId;

/// A complete configuration with a comment on every key; `packmaster config example` prints it.
pub const EXAMPLE: &str = include_str!("example.toml");

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Syntax { origin: String, message: String },
    #[error("--set {given}: {why}")]
    Override { given: String, why: String },
    #[error("{key}: {why}")]
    Invalid { key: String, why: String },
}

/// What everything else is told of the configuration. Checked: members are unique and this node is one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub cluster: String,
    /// This node; one of `members`.
    pub node: NodeId,
    pub data: PathBuf,
    /// A Durus file to begin with, if the data directory is new.
    pub import: Option<PathBuf>,
    /// Replaced generations that are kept.
    pub keep_generations: u32,
    pub listen: Listen,
    /// In ascending id; this node among them.
    pub members: Vec<Member>,
    pub timing: RawTiming,
    pub limits: Limits,
    pub log: Log,
}

/// Addresses to bind.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// At least one; all of them serve the same sessions. Sockets that systemd passes come in their place.
    pub durus: Vec<DurusAddress>,
    /// HOST:PORT each.
    pub peer: String,
    pub http: String,
    pub unix: UnixSockets,
}

/// Who may connect to Unix sockets that have a path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnixSockets {
    /// A user's name or number; the process's own if absent.
    pub owner: Option<String>,
    pub group: Option<String>,
    /// The permissions that nobody gets; the process's own if absent.
    pub umask: Option<u32>,
}

/// One node of the cluster as every node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// Where clients reach it: as in `Listen`.
    pub durus: String,
    /// HOST:PORT where others reach it.
    pub peer: String,
    pub http: String,
    /// The greater is preferred as master among equals.
    pub priority: i64,
    pub may_be_master: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// What Durus clients may take.
    pub clients: durus::Limits,
    /// Bytes waiting to be sent to one peer on one connection before it is closed and opened anew.
    pub peer_queue_bytes_max: usize,
    /// Of a base that is fetched; 0: no bound.
    pub fetch_bytes_per_s_max: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub level: slog::Level,
    pub format: LogFormat,
    /// Appended to; standard error if absent.
    pub file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks `path`, with `--set key=value` overrides.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Config::parse(&text, &path.display().to_string(), overrides)
    }

    /// `origin` says in messages where the text comes from.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Config, ConfigError> {
        RawConfig::parse(text, origin, overrides)?.check()
    }

    /// This node's own entry.
    pub fn me(&self) -> &Member {
        let found = self.members.iter().find(|member| member.id == self.node);
        found.expect("a checked configuration has this node among its members")
    }
}
