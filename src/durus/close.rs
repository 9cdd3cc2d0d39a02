//! What a client may take, and why a connection is closed. Every way a connection can end has its own reason, and
//! a limit that bites is named in it.

use crate::shelf::RecordError;
use crate::types::Oid;

/// What one client, or all of them, may make us hold. Each is named in the reason of the close it causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of this node.
    pub connections_max: usize,
    /// Bytes of one commit's data.
    pub transaction_bytes_max: u64,
    /// Objects in one commit.
    pub objects_per_transaction_max: usize,
    /// Bytes of one object record, counted as it goes to the file.
    pub record_bytes_max: u64,
    /// Oids in one bulk load.
    pub bulk_oids_max: u32,
    /// Bytes of the answer to one bulk load.
    pub answer_bytes_max: u64,
    /// Bytes a client may send ahead while an earlier command of it waits.
    pub input_buffered_max: usize,
    /// Oids a session may hold without using them.
    pub unused_oids_max: u64,
    /// Bytes of all commits of this node that wait for the master.
    pub commits_waiting_bytes_max: u64,
    /// Milliseconds a command may wait for the master before its client is disconnected, outcome unknown.
    pub wait_max_ms: u64,
    /// Milliseconds without a byte inside a command.
    pub command_timeout_ms: u64,
    /// Whether `Q` stops the server; if not, it closes the connection.
    pub allow_quit: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 10_000,
            transaction_bytes_max: 256 << 20,
            objects_per_transaction_max: 1_000_000,
            record_bytes_max: 128 << 20,
            bulk_oids_max: 100_000,
            answer_bytes_max: 1 << 30,
            input_buffered_max: 16 << 20,
            unused_oids_max: 1_000_000,
            commits_waiting_bytes_max: 1 << 30,
            wait_max_ms: 60_000,
            command_timeout_ms: 10_000,
            allow_quit: false,
        }
    }
}

/// Why a connection is closed by us. `Goodbye` is the only one that is not worth a log line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("client said goodbye")]
    Goodbye,
    #[error("unknown command byte {0:#04x}")]
    UnknownCommand(u8),
    #[error("client speaks protocol version {0}, we speak 1")]
    Version(u32),
    #[error("client asked the server to quit, which is not allowed here (allow_quit)")]
    QuitNotAllowed,
    #[error("limit {name} = {limit} passed: {what}")]
    Limit { name: &'static str, limit: u64, what: String },
    #[error("malformed commit: {0}")]
    Malformed(Malformed),
    #[error(
        "no answer from the master for {waited_ms} ms (wait_max_ms); outcome of {what} unknown"
    )]
    Unanswered { what: &'static str, waited_ms: u64 },
    #[error("client stalled inside a command for {0} ms (command_timeout_ms)")]
    Stalled(u64),
    #[error("refused by the master: {0}")]
    Refused(String),
    #[error("an oid this session held was given to somebody else while its node was away")]
    Revoked,
    #[error("read of the data file failed: {0}")]
    Read(String),
    #[error("answer of the master makes no sense: {0}")]
    Answer(String),
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
