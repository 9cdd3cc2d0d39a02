//! Raft: who agrees on the control plane, and how that survives a crash.
//!
//! tikv's raft-rs decides; this room gives it a disk, a message format and an order of things. Four parts:
//!
//! * `log`: what is durable. Two mirrored files on a [`crate::storage::Disk`]; nothing else here touches a disk.
//! * `mem`: what raft-rs reads. The same entries in memory, ahead of the disk by what is being written.
//! * `driver`: raft-rs's `RawNode` in its asynchronous mode. It hands out messages, one durable record at a time, and
//!   committed commands, each at the moment at which it may be used.
//! * `convert`: our messages to raft-rs's and back.
//!
//! Invariants:
//!
//! * Nothing leaves this node that depends on a record which is not durable. (A leader's messages do not: raft-rs
//!   counts the leader itself only once its own entries are durable, Raft thesis 10.2.1.)
//! * Applied implies committed, and its entry durable here. That it is committed may not be durable yet: a restart
//!   applies it again when the leader says so once more. Nothing that follows from a command waits for that, and nothing
//!   has to: what is committed stays committed, so nobody can come to another result, and whatever a node does on its
//!   disk because of a command (a promise, a flip, the removal of an old generation) is judged anew after a restart, by
//!   what the disk shows.
//! * Bytes of a peer or a disk are decoded by prost, into our own messages, and checked; raft-rs's protobuf 2 decoder
//!   never sees them. What raft-rs would panic on is refused before.
//! * A damaged log is reported, never taken for an empty or a shorter one. One that is gone is *lost* if anything else on
//!   the disk shows that there was one (`node::core::start`), and never made anew then.
//! * A number that lies too far ahead is not believed (`crate::plausible`), so it is never in the log.
//!
//! Nothing here reads the clock, draws a random number, starts a thread or knows what a command means. Members do not
//! change: the voters are those of the configuration.

pub mod convert;
mod driver;
mod format;
mod image;
mod log;
mod mem;

#[cfg(test)]
pub(crate) mod test_disk;

pub use driver::{Driver, DriverError, HEARTBEAT, Polled};
pub use log::{RaftLog, RaftLogError, Recovered};
