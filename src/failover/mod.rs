//! Who should be master, and when that is to change.
//!
//! `health` is what this node hears of the others. `controller` runs on the Raft leader: from the replicated state,
//! the health and the voters' reports it decides which command to propose next, and says why. Failover, promote,
//! generation switch, a master's restart and the very first election are one procedure: fence, collect reports from a
//! majority, elect the greatest position. `packs` is the part of it that sees to packs, `progress` says how long something is waited for. Nothing here is needed for
//! safety: safety is in the compare-and-set of the commands, in the voters' promises and in the quorum.

pub mod controller;
pub mod election;
pub mod health;
mod packs;
mod progress;
#[cfg(test)]
mod scene;
