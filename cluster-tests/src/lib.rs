//! What the tests and benches of whole clusters share: real node processes, stock Durus 4.3 as the client, and
//! checkers that use none of packmaster's own code.
//!
//! Helpers here panic with the story of what went wrong; a `Cluster` that is dropped by a panic prints the end of
//! every node's log and keeps the data directories. Nothing is tried again to make a test pass, and only processes
//! that were started here are ever signalled, by pid.
//!
//! `PACKMASTER_BIN` names a packmaster binary to test instead of the one cargo builds.

pub mod bigfile;
pub mod binary;
pub mod chaincheck;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod crash;
pub mod disks;
pub mod fuzzing;
pub mod history;
pub mod journal;
pub mod load;
pub mod models;
// Rules can be broken in test builds only.
#[cfg(debug_assertions)]
pub mod mutants;
pub mod net;
pub mod ports;
pub mod proxy;
pub mod python;
pub mod scene;
pub mod sim;
pub mod status;
pub mod stock;
