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
//! * Applied implies committed and durable here. `Driver::applied_durable` says up to where a restart would apply
//!   again without asking anybody.
//! * Bytes of a peer or a disk are decoded by prost, into our own messages, and checked; raft-rs's protobuf 2 decoder
//!   never sees them. What raft-rs would panic on is refused before.
//! * A damaged log is reported, never taken for an empty or a shorter one.
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

pub use driver::{Driver, DriverError, Polled};
pub use log::{RaftLog, RaftLogError, Recovered};
