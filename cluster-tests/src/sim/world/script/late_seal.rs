//! A script in which the seal of a cancelled pack reaches the Raft leader during the next pack of the same epoch.
//!
//! The schedule needs five things in one order: a master that does not lead Raft, a seal that is held back on its way,
//! a cancel, a client that links garbage again, and a new pack before the old seal arrives. Random seeds do not come to
//! it (806 were tried); the steps here do. What each mutant must be caught by is said in `cluster-tests/tests/mutants.rs`.

use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{Pack, PackVerb, Promote};
use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::command::Kind as Command;
use packmaster::proto::control::peer_message::Kind;

use super::{Script, Step, Who};
use crate::sim::world::{Flight, World};

/// The client that unlinks an object and links it again.
const HOLDER: usize = 0;
/// Counted when the old seal is released in the situation that the script is for.
pub const RELEASED: &str = "a cancelled pack's seal released during the next pack";

/// With every rule kept, the old seal is refused and the second pack comes to its switch by its own seal.
pub const LATE_SEAL: Script = {
    use Step::*;
    Script {
        name: "a cancelled pack's seal arrives during the next pack",
        steps: &[
            Commits(6),
            Apart,
            Unlink,
            HoldSeals,
            Pack,
            SealHeld,
            CancelPack,
            LinkAgain,
            Pack,
            Packing,
            ReleaseSeals,
            PackSealed,
            Switched,
            Commits(2),
            Equal,
        ],
        reaches: &[RELEASED, "generation switch"],
    }
};

/// Where a run is in the schedule.
#[derive(Default)]
pub(in crate::sim::world) struct LateSeal {
    holding: bool,
    /// Seals on their way to the Raft leader, oldest first.
    held: Vec<Flight>,
    cancelled: bool,
    linked_again: bool,
}

impl World {
    /// Keeps the message back if it proposes a pack's seal and the script holds seals. Returns it otherwise.
    pub(in crate::sim::world) fn hold_seal(&mut self, flight: Flight) -> Option<Flight> {
        let run =
            self.script.as_mut().filter(|run| run.late_seal.holding && is_seal(&flight.message));
        match run {
            Some(run) => run.late_seal.held.push(flight),
            None => return Some(flight),
        }
        None
    }

    /// A master that leads Raft proposes to itself, and no message can be held.
    pub(super) fn move_apart(&mut self) {
        let master = self.ledger.master();
        if !master.is_some_and(|master| self.ledger.says(master).leads) {
            return;
        }
        let to = self.who(Who::Slave);
        let node = format!("n{}", to + 1);
        self.ask(to, Verb::Promote(Promote { node, ..Promote::default() }));
        self.wait(|world| world.ledger.says(to).is_master && !world.ledger.says(to).leads);
    }

    /// A client removes the last link to an object and stays connected: it can link it again.
    pub(super) fn unlink(&mut self) {
        self.clients[HOLDER].quiet = false;
        self.clients[HOLDER].unlink();
        self.turn(HOLDER, 1000);
        self.wait(|world| world.clients[HOLDER].plans_are_done());
    }

    pub(super) fn link_again(&mut self) {
        let wanted = self.book.acked + 1;
        let holds = self.clients[HOLDER].link_again();
        self.wait(|world| world.clients[HOLDER].plans_are_done());
        self.script().late_seal.linked_again = holds && self.book.acked == wanted;
    }

    pub(super) fn hold_seals(&mut self) {
        self.script().late_seal.holding = true;
    }

    pub(super) fn wait_for_held_seal(&mut self) {
        self.wait(|world| !world.script().late_seal.held.is_empty());
    }

    /// Until no node is at a pack.
    pub(super) fn cancel_pack(&mut self) {
        let by = self.somebody();
        self.ask(by, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
        self.wait(|world| !world.ledger.is_packing());
        self.script().late_seal.cancelled = !self.ledger.is_packing();
    }

    /// Until the master is at a pack.
    pub(super) fn wait_for_pack(&mut self) {
        let packing = |world: &World| {
            let master = world.ledger.master();
            master.is_some_and(|master| !world.ledger.says(master).phase.is_empty())
        };
        self.wait(|world| packing(world));
    }

    /// In the order in which they were sent: the seal of the cancelled pack comes before any of the next one.
    pub(super) fn release_seals(&mut self) {
        let packing = self.ledger.is_packing();
        let LateSeal { held, cancelled, linked_again, .. } =
            std::mem::take(&mut self.script().late_seal);
        if !held.is_empty() && cancelled && linked_again && packing {
            self.count(RELEASED);
        }
        held.into_iter().for_each(|flight| self.fly(flight));
    }
}

fn is_seal(message: &PeerMessage) -> bool {
    let Some(Kind::Propose(propose)) = &message.kind else { return false };
    let command = propose.command.as_ref().and_then(|command| command.kind.as_ref());
    matches!(command, Some(Command::PackSeal(_)))
}
