//! What Durus clients see of us: their protocol, their snapshots, their commits, their oids.
//!
//! Two halves. On *every* node, [`Sessions`] holds the client connections: it parses what clients send (`wire`),
//! knows what each of them has not been told yet (`unseen`, `news`), answers loads from the node's own committed state, and
//! asks the master for everything else. On the *master*, [`OidPool`] knows which oid belongs to whom, and
//! [`CommitChecker`] judges whether a commit may be stored.
//!
//! The promise to a client is stock Durus's: from one sync to the next it sees one state or a conflict. A session
//! keeps it by remembering the seq up to which its client was told of changes, and by answering "invalid" for whatever
//! changed since. A commit says that seq to the master, which compares what changed after it with what the client
//! wrote and with everything it may have read. Where this node's file already holds what is about to be committed, the
//! client is told of that as well, so that only what neither of them could know of makes a needless conflict; and a session
//! that had one takes turns for its next commits (`turns`), so that nothing comes in between.
//!
//! Nothing here waits, reads a clock, opens a file or a socket, or draws a random number. Nothing here is
//! iterated in an order that could differ from run to run.

mod answers;
mod close;
mod commands;
mod commit;
mod news;
mod oids;
mod session;
mod taking_turns;
mod turns;
mod unseen;
mod unused;
pub mod wire;

#[cfg(test)]
mod close_tests;
#[cfg(test)]
mod commit_tests;
#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod turn_tests;

pub use close::{COMMAND_MAX, CloseReason, Limits, Malformed, TRANSACTION_BYTES_MOST, WAIT_MAX};
pub use commit::{CommitChecker, CommitRequest, Ground, TouchedError, Verdict, decode_touched};
pub use oids::{Allocation, BaseOids, Exists, OidPool, OidUse, SessionKey};
pub use session::{Ahead, SessionAction, Sessions, View};
pub use turns::{Turn, Turns};
