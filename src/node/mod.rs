//! The node as a process: what is round the core.
//!
//! The core (`core`) decides everything and does nothing; this is what does. `command` reads the configuration and
//! starts, `prepare` and `identity` see to the data directory, `server` puts the parts together, `run_loop` drives the
//! core on one thread, `threads` does what blocks (data disk, Raft log, jobs), and on two more threads tokio serves the
//! sockets: `bind` opens them (or `activation` takes them from systemd), `links` are our connections to the other nodes,
//! `listener` theirs to us and the administrators', `clients` the Durus clients'. `limits` says which limit bit.
//!
//! Nothing here looks into a message but for who it is from and which connection it takes. Nothing here decides what is
//! durable, who is master, or what a client hears. No lock is held across a wait; queues into the core are bounded by
//! each connection's budget, queues out of it by the limits of each connection.

pub mod activation;
pub mod bind;
pub mod clients;
mod command;
pub mod core;
pub mod desk;
pub mod ears;
pub mod frame;
pub mod hello;
pub mod identity;
pub mod limits;
pub mod links;
pub mod listener;
pub mod prepare;
pub mod run_loop;
pub mod server;
pub mod sockets;
pub mod threads;
mod unix_socket;

pub use command::{Args, run};

#[cfg(test)]
mod tests;
