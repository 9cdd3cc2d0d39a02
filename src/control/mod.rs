//! Control: the small state that Raft replicates, and the commands that change it.
//!
//! Who are members, which epoch it is, whether it is fenced or who was elected in it, which generation is current, the
//! pack in progress, how far oids were given out, pause, settings, and what was decided and why.
//!
//! Invariants:
//!
//! * Applying is a pure function of the state and the command: the same log makes the same bytes on every node. The
//!   times in commands are the proposer's; nothing is decided by them.
//! * Every command names the epoch it was decided on and is refused on any other, and in any phase that it was not made
//!   for. Refusing changes nothing (but see MemberUp), and is no error: somebody decided something else first.
//! * The epoch only grows; an epoch has at most one mastership; generations follow one another by packs only.
//! * Whatever can grow has a bound, and no text of a command can exceed one.
//!
//! This room does not know Raft, the disk or the network; it decides nothing by itself.

mod apply;
mod codec;
pub mod settings;
mod state;

pub use apply::{Applied, EPOCH_MAX, command};
pub use codec::StateError;
pub use settings::Settings;
pub use state::{
    Decision, Fencing, GENERATIONS_MAX, GenerationRecord, HISTORY_MAX, Mastership, Member, Pack,
    Phase, Reason, Rested, Role, Seal, State,
};
