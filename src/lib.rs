//! packmaster: a packing-aware master failover coordinator for Durus.
//!
//! `ARCHITECTURE.md` beside this file says where everything lives.

pub mod admin;
pub mod config;
pub mod control;
pub mod ctl;
pub mod durus;
pub mod failover;
pub mod mutants;
pub mod node;
pub mod pack;
pub mod plausible;
pub mod proto;
pub mod raft;
pub mod replication;
pub mod shelf;
pub mod storage;
pub mod telemetry;
pub mod tools;
pub mod types;
