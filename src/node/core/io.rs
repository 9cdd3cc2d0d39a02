//! What goes into the core and what comes out.

use bytes::Bytes;

use crate::pack;
use crate::proto::admin::{AdminReply, AdminRequest};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Lane, PeerMessage, RaftRecord};
use crate::storage::DiskError;
use crate::storage::task::{DiskTask, TaskDone};
use crate::types::{ConnId, NodeId};

/// Something happened.
pub enum Input {
    /// The deadline passed.
    Tick,
    /// `from_disk` is the disk uuid of the peer's hello on the connection the message came by.
    Peer {
        from: NodeId,
        from_disk: [u8; 16],
        message: PeerMessage,
    },
    /// Our control connection to the peer is open.
    PeerUp {
        peer: NodeId,
    },
    /// It closed, or could not be opened again. `refused`: the port refuses connections, so the process is gone.
    PeerDown {
        peer: NodeId,
        refused: bool,
    },
    ClientOpened {
        conn: ConnId,
        address: String,
    },
    ClientData {
        conn: ConnId,
        bytes: Bytes,
    },
    /// Answers `Action::ClientDrain`.
    ClientDrained {
        conn: ConnId,
    },
    ClientClosed {
        conn: ConnId,
    },
    /// `request` is the shell's number for where the answer goes.
    Admin {
        request: u64,
        message: AdminRequest,
    },
    DiskDone {
        task: u64,
        result: Result<TaskDone, DiskError>,
    },
    RaftDone {
        number: u64,
        result: Result<(), DiskError>,
    },
    JobProgress {
        job: u64,
        /// A guess for people.
        permille: u32,
        /// Bytes read and written so far.
        moved: u64,
    },
    JobDone {
        job: u64,
        result: Result<pack::JobOutcome, pack::JobError>,
    },
    /// Hand over mastership if it is ours, then exit.
    Stop,
}

/// Something is to be done.
pub enum Action {
    Send {
        to: NodeId,
        message: PeerMessage,
    },
    ClientSend {
        conn: ConnId,
        bytes: Bytes,
    },
    /// Whether more of what the client sends is to be read. What is read already may still come.
    ClientRead {
        conn: ConnId,
        on: bool,
    },
    /// Answered by `ClientDrained` as soon as all is out that was sent to the client before, if it stays so long.
    ClientDrain {
        conn: ConnId,
    },
    ClientClose {
        conn: ConnId,
        reason: String,
        /// The limit that bit, by its key in the configuration, if one did.
        limit: Option<&'static str>,
    },
    AdminReply {
        request: u64,
        reply: AdminReply,
    },
    /// In the order asked, by one thread; answered by `DiskDone`.
    Disk {
        task: u64,
        work: DiskTask,
    },
    /// In the order asked, by another thread; answered by `RaftDone`.
    RaftPersist {
        number: u64,
        record: RaftRecord,
    },
    /// On a thread of its own; answered by `JobDone` unless cancelled. A job that is cancelled or fails abandons its work.
    Job {
        job: u64,
        work: pack::Job,
    },
    CancelJob {
        job: u64,
    },
    /// From now on every job keeps to this rate of bytes read and written, by `pack::Pace`; 0: none.
    JobRate {
        bytes_per_s: u64,
    },
    /// The process ends with this as its last word; `failed` makes its exit status 1.
    Exit {
        reason: String,
        failed: bool,
    },
}

/// Which connection carries the message: a heartbeat never waits behind a file.
pub fn lane(message: &PeerMessage) -> Lane {
    match &message.kind {
        Some(
            Kind::Append(_)
            | Kind::AppendReply(_)
            | Kind::CommonPoint(_)
            | Kind::Confirm(_)
            | Kind::ConfirmReply(_)
            | Kind::Register(_)
            | Kind::RegisterReply(_)
            | Kind::ClientRequest(_)
            | Kind::ClientReply(_),
        ) => Lane::Live,
        Some(
            Kind::Probe(_)
            | Kind::ProbeReply(_)
            | Kind::Fetch(_)
            | Kind::FetchReply(_)
            | Kind::BlockListRequest(_)
            | Kind::BlockList(_),
        ) => Lane::Bulk,
        _ => Lane::Control,
    }
}
