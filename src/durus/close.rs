//! What a client may take, and why a connection is closed. Every way a connection can end has its own reason, and
//! a limit that bites is named in it.

use crate::shelf::RecordError;
use crate::types::{Oid, Seq};

/// What one client, or all of them, may make us hold. The fields are the keys of `[limits]` in the configuration, and
/// each is named so in the reason of the close it causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of this node.
    pub clients_max: usize,
    /// Bytes of one commit's data.
    pub transaction_bytes_max: u64,
    /// Objects in one commit.
    pub objects_per_transaction_max: usize,
    /// Bytes of one object record, counted as it goes to the file.
    pub record_bytes_max: u64,
    /// Oids in one bulk load.
    pub bulk_oids_max: u32,
    /// Bytes this node holds for one client: what it sent and is not done with, what it may have read, what has changed that
    /// it was not told of, and answers that it has not taken. While those are more than a few megabytes, or leave no room
    /// for one more record, it is answered no further.
    pub session_bytes_max: u64,
    /// Bytes a client may send ahead while an earlier command of it waits for the master. While one waits for its share here,
    /// no more is read of its client.
    pub input_buffered_bytes_max: u64,
    /// Bytes of all commits of this node that wait for the master.
    pub commits_waiting_bytes_max: u64,
    /// Oids a session may hold without using them. One that is there is given those again whose commits were refused.
    pub unused_oids_max: u64,
    /// Milliseconds without a byte inside a command, or with an answer of which nothing is taken.
    pub command_max_ms: u64,
    /// Milliseconds a command may wait for the master before its client is disconnected, outcome unknown.
    pub wait_max_ms: u64,
    /// Whether `Q` stops the server; if not, it closes the connection.
    pub allow_quit: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients_max: 4096,
            transaction_bytes_max: 128 << 20,
            objects_per_transaction_max: 1_000_000,
            record_bytes_max: 128 << 20,
            bulk_oids_max: 100_000,
            session_bytes_max: 1 << 30,
            input_buffered_bytes_max: 16 << 20,
            commits_waiting_bytes_max: 512 << 20,
            unused_oids_max: 1_000_000,
            command_max_ms: 10_000,
            wait_max_ms: 60_000,
            allow_quit: false,
        }
    }
}

impl Limits {
    /// Every limit by its key: a count, bytes, or seconds.
    pub fn by_key(&self) -> [(&'static str, f64); 11] {
        [
            ("clients_max", self.clients_max as f64),
            ("transaction_bytes_max", self.transaction_bytes_max as f64),
            ("objects_per_transaction_max", self.objects_per_transaction_max as f64),
            ("record_bytes_max", self.record_bytes_max as f64),
            ("bulk_oids_max", f64::from(self.bulk_oids_max)),
            ("session_bytes_max", self.session_bytes_max as f64),
            ("input_buffered_bytes_max", self.input_buffered_bytes_max as f64),
            ("commits_waiting_bytes_max", self.commits_waiting_bytes_max as f64),
            ("unused_oids_max", self.unused_oids_max as f64),
            (COMMAND_MAX, self.command_max_ms as f64 / 1000.0),
            (WAIT_MAX, self.wait_max_ms as f64 / 1000.0),
        ]
    }
}

/// The most that `transaction_bytes_max` may be: a commit travels in one message, and frames have a longest length.
pub const TRANSACTION_BYTES_MOST: u64 = 1 << 30;

/// Keys of the limits of time.
pub const COMMAND_MAX: &str = "command_max";
pub const WAIT_MAX: &str = "wait_max";

/// Why a connection is closed by us. `Goodbye` is the only one that is not worth a log line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("client said goodbye")]
    Goodbye,
    #[error("unknown command byte {0:#04x}")]
    UnknownCommand(u8),
    #[error("client speaks protocol version {0}, we speak 1")]
    Version(u32),
    #[error("client asked the server to quit, which is not allowed here (limits.allow_quit)")]
    QuitNotAllowed,
    #[error("limits.{name} = {limit} passed: {what}")]
    Limit { name: &'static str, limit: u64, what: String },
    #[error("malformed commit: {0}")]
    Malformed(Malformed),
    #[error(
        "no answer from the master for {waited_ms} ms (limits.wait_max); outcome of {what} unknown"
    )]
    Unanswered { what: &'static str, waited_ms: u64 },
    #[error("client stalled inside a command for {0} ms (limits.command_max)")]
    Stalled(u64),
    #[error("refused by the master: {0}")]
    Refused(String),
    #[error(
        "transactions after seq {after} that were acknowledged here are lost: mastership moved before a majority had them, which \
         durability local permits; this client may have seen them"
    )]
    Lost { after: Seq },
    #[error("an oid this session held was given to somebody else while its node was away")]
    Revoked,
    #[error("read of the data file failed: {0}")]
    Read(String),
    #[error("answer of the master makes no sense: {0}")]
    Answer(String),
}

impl CloseReason {
    /// The limit that bit, by its key, if it was one.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            CloseReason::Limit { name, .. } => Some(name),
            CloseReason::Unanswered { .. } => Some(WAIT_MAX),
            CloseReason::Stalled(_) => Some(COMMAND_MAX),
            _ => None,
        }
    }
}

/// What is wrong with a commit's data. Nothing of such a commit is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("data ends inside a record's header at byte {0}")]
    Header(usize),
    #[error("record at byte {at} has length {len}, {left} bytes are left")]
    Length { at: usize, len: u32, left: usize },
    #[error("record of oid {oid}: {why}")]
    Record { oid: Oid, why: RecordError },
    #[error("oid {0} twice in one commit")]
    Twice(Oid),
}
