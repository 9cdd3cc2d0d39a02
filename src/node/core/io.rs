//! What goes into the core and what comes out.

use bytes::Bytes;
use prost::Message as _;

use crate::pack;
use crate::proto::admin::{AdminReply, AdminRequest};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Lane, PeerMessage, RaftRecord};
use crate::proto::replication::client_request::Ask;
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

/// Every lane, at its own number.
pub const LANES: [Lane; 4] = [Lane::Control, Lane::Live, Lane::Bulk, Lane::Requests];

/// A commit whose request is longer than so many bytes is sent on the lane of the appends.
pub const SMALL_COMMIT_BYTES_MAX: u64 = 64 << 10;

/// Which connection carries the message. A heartbeat never waits behind a file, and a read never behind a transaction: a
/// sync is one small request, one round of confirmations and one small answer.
///
/// Messages keep their order on a lane only. Between the lanes:
///
/// * A request follows the answer to its node's registration, so it can't overtake that.
/// * A large commit can be overtaken by what its session sends later, which can only be the end of the session
///   (`FreeSession`): its oids are nobody's then, or another's, and the commit is judged by that. A second copy of it can
///   come in the session's next turn to commit, and end that; nobody depends on a turn (`durus::Turns`).
/// * The question what became of a large commit (`again`) must not overtake that commit: both are sent on the same lane.
/// * An answer can be faster than the appends that it tells of: sessions wait until those are applied.
///
/// `small_max`: [`SMALL_COMMIT_BYTES_MAX`], except in the simulator.
pub fn lane(message: &PeerMessage, small_max: u64) -> Lane {
    match &message.kind {
        Some(Kind::Append(_) | Kind::AppendReply(_) | Kind::CommonPoint(_)) => Lane::Live,
        Some(Kind::ClientRequest(request)) => match &request.ask {
            Some(Ask::Commit(commit))
                if commit.again || request.encoded_len() as u64 > small_max =>
            {
                Lane::Live
            }
            _ => Lane::Requests,
        },
        Some(
            Kind::Confirm(_)
            | Kind::ConfirmReply(_)
            | Kind::Register(_)
            | Kind::RegisterReply(_)
            | Kind::ClientReply(_),
        ) => Lane::Requests,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::replication as pb;

    fn request(ask: Ask) -> Kind {
        Kind::ClientRequest(pb::ClientRequest { ask: Some(ask), ..Default::default() })
    }

    fn commit(bytes: u64) -> pb::Commit {
        let record = pb::ObjectRecord { oid: 1, record: vec![7; bytes as usize].into() };
        pb::Commit { records: vec![record], ..Default::default() }
    }

    #[test]
    fn a_read_never_waits_behind_a_transaction() {
        let max = SMALL_COMMIT_BYTES_MAX;
        let again = pb::Commit { again: true, ..Default::default() };
        let turn = pb::Turn { touched: vec![7; max as usize].into(), ..Default::default() };
        let cases = [
            (request(Ask::Sync(pb::Sync {})), Lane::Requests),
            (Kind::Confirm(pb::Confirm::default()), Lane::Requests),
            (Kind::ConfirmReply(pb::ConfirmReply::default()), Lane::Requests),
            (Kind::ClientReply(pb::ClientReply::default()), Lane::Requests),
            (Kind::Register(pb::Register::default()), Lane::Requests),
            (Kind::RegisterReply(pb::RegisterReply::default()), Lane::Requests),
            (request(Ask::Commit(commit(max - 1000))), Lane::Requests),
            // Its order among the session's other requests matters, and it is seldom long.
            (request(Ask::Turn(turn)), Lane::Requests),
            (request(Ask::Commit(commit(max))), Lane::Live),
            // Behind the commit that it asks after.
            (request(Ask::Commit(again)), Lane::Live),
            (Kind::Append(pb::Append::default()), Lane::Live),
            (Kind::Fetch(pb::Fetch::default()), Lane::Bulk),
            (Kind::Beat(Default::default()), Lane::Control),
        ];
        for (kind, wanted) in cases {
            let message = PeerMessage { kind: Some(kind) };
            assert_eq!(lane(&message, max), wanted, "{:.200}", format!("{message:?}"));
        }
        assert!(LANES.iter().enumerate().all(|(number, lane)| *lane as usize == number));
    }
}
