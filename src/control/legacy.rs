//! Commands in the logs of programs before commands named the object that they act on.
//!
//! Such a command was decided for whatever there was when it was applied: so it is completed with that. A command that names
//! nothing and is not from such a log is refused by the state.

use super::State;
use crate::proto::control::Reason;
use crate::proto::control::command::Kind;
use crate::replication::wire::put_chain;

/// No object has this identity: Raft indexes are far below.
const NO_SUCH: u64 = u64::MAX;

/// The command as if decided on this state: what it does not say of the object that it acts on is as the state has it.
pub(crate) fn decided_on(state: &State, kind: Kind) -> Kind {
    let pack = state.pack().map_or(NO_SUCH, |pack| pack.id.0);
    let or = |said: u64, known: u64| if said == 0 { known } else { said };
    match kind {
        Kind::Fence(mut it) => {
            let switch = it.reason() == Reason::GenerationSwitch;
            it.pack = if switch { or(it.pack, pack) } else { 0 };
            Kind::Fence(it)
        }
        Kind::PackStart(mut it) => {
            it.after = or(it.after, state.packs_changed());
            Kind::PackStart(it)
        }
        Kind::PackSeal(mut it) => {
            it.pack = or(it.pack, pack);
            Kind::PackSeal(it)
        }
        Kind::PackBase(mut it) => {
            it.pack = or(it.pack, pack);
            Kind::PackBase(it)
        }
        Kind::PackReady(mut it) => {
            it.pack = or(it.pack, pack);
            if it.base_hash.is_empty() {
                let agreed = state.pack().and_then(|pack| pack.base_hash).unwrap_or_default();
                it.base_hash = put_chain(agreed);
            }
            Kind::PackReady(it)
        }
        Kind::PackCancel(mut it) => {
            it.pack = or(it.pack, state.cancellable().map_or(NO_SUCH, |id| id.0));
            Kind::PackCancel(it)
        }
        Kind::OidBlock(mut it) => {
            it.from = or(it.from, state.oid_limit().0);
            Kind::OidBlock(it)
        }
        Kind::Pause(mut it) => {
            it.after = or(it.after, state.pause_changed());
            Kind::Pause(it)
        }
        Kind::Setting(mut it) => {
            it.after = or(it.after, state.setting_changed(&it.name));
            Kind::Setting(it)
        }
        other => other,
    }
}
