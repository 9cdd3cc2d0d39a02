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
//! * Inside an epoch every command names the object it acts on, by an identity that never comes again (below).
//! * The epoch only grows; an epoch has at most one mastership; generations follow one another by packs only.
//! * Whatever can grow has a bound, and no text of a command can exceed one.
//!
//! What each command names, and what becomes of one that is late or comes twice in the same epoch. (In another epoch it is
//! refused by that alone.)
//!
//! | command | names | late or repeated |
//! | --- | --- | --- |
//! | `MemberUp` | node and disk | the disk is bound for good: another is refused, the same changes addresses only, and a node proposes it only until its disk is known |
//! | `Fence` | `on_epoch`; for a switch the pack | the first makes a new epoch, so a second one is refused; one for a switch of a pack that is gone is refused |
//! | `Elect` | its fence's epoch | an epoch has one fence and one election: the second is refused |
//! | `Opened` | its epoch, which has one master and one process of it | the second is refused |
//! | `PackStart` | the last command that began or ended a pack | refused once any pack has begun or ended since |
//! | `PackSeal`, `PackBase`, `PackReady`, `PackCancel` | the pack | refused if it is another one, or none |
//! | `PackReady` | and the base that the node has | refused if that is not agreed any more |
//! | `OidBlock` | the limit that it raises | refused if it has been raised |
//! | `Pause` | the last pause or resume | refused after another |
//! | `Setting` | the last change of that setting | refused after another |
//!
//! A repeated `PackBase` of a node replaces its own word: each node has one vote, and an agreed base is left only for one
//! that more nodes have, so a late one delays a pack at worst.
//!
//! This room does not know Raft, the disk or the network; it decides nothing by itself.

mod apply;
mod codec;
pub(crate) mod legacy;
mod losses;
pub mod settings;
mod state;

pub use apply::{Applied, EPOCH_MAX, FORMAT, command};
pub use codec::StateError;
pub use settings::Settings;
pub use state::{
    BuiltBase, Decision, Fencing, GENERATIONS_MAX, GenerationRecord, HISTORY_MAX, Loss, Mastership,
    Member, OddBuild, Pack, PackAgain, Phase, Reason, Rested, Role, Seal, State, VOTES_MIN,
};
