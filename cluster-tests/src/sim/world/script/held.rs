//! Scripts in which messages of one kind are held back: schedules that random seeds do not come to, or hardly ever.
//!
//! * `LATE_SEAL`: the seal of a cancelled pack reaches the Raft leader during the next pack of the same epoch. It needs
//!   five things in one order: a master that does not lead Raft, a seal that is held back on its way, a cancel, a client
//!   that links garbage again, and a new pack before the old seal arrives. 806 random seeds did not come to it.
//! * `LOST_ELSEWHERE`: with durability `local` a master has the commit of another node's client on its own disk only,
//!   and dies. 345 random seeds did not show the difference.
//!
//! What each mutant must be caught by is said in `cluster-tests/tests/mutants.rs`.

use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{ConfigSet, Pack, PackVerb, Promote};
use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::command::Kind as Command;
use packmaster::proto::control::peer_message::Kind;

use super::{Script, Step, Who};
use crate::sim::world::{Flight, World};

/// The client that unlinks an object and links it again.
const HOLDER: usize = 0;
/// From when the master's disk has a commit: until its answer has reached the client's node, if there is one.
const ANSWERED_US: u64 = 30_000;
/// Counted when the old seal is released in the situation that the script is for.
pub const SEAL_RELEASED: &str = "a cancelled pack's seal released during the next pack";
/// Counted when the master's disk alone has a commit for which another node's client waits.
pub const ALONE_ELSEWHERE: &str =
    "another node's client waits for a commit that the master has alone";

/// With every rule kept, the old seal is refused and the second pack comes to its switch by its own seal.
pub const LATE_SEAL: Script = {
    use Step::*;
    Script {
        name: "a cancelled pack's seal arrives during the next pack",
        steps: &[
            Commits(6),
            Apart,
            Unlink,
            Hold(Held::Seals),
            Pack,
            SomeHeld,
            CancelPack,
            LinkAgain,
            Pack,
            Packing,
            Release,
            PackSealed,
            Switched,
            Commits(2),
            Equal,
        ],
        reaches: &[SEAL_RELEASED, "generation switch"],
    }
};

/// With every rule kept, the client hears of its commit when the next master has stored it.
pub const LOST_ELSEWHERE: Script = {
    use Step::*;
    Script {
        name: "a commit that only a dead master has is not told elsewhere",
        steps: &[
            Commits(6),
            Local,
            Equal,
            Hold(Held::Appends),
            CommitOnSlave,
            Down(Who::Master),
            Drop,
            Commits(2),
            Back,
            Equal,
        ],
        reaches: &[ALONE_ELSEWHERE, "commit carried over by another election", "orphan made"],
    }
};

/// The messages that a script holds back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Proposals of packs' seals, on their way to the Raft leader.
    Seals,
    /// Transactions, on their way from the master.
    Appends,
}

impl Held {
    fn is_it(self, message: &PeerMessage) -> bool {
        match (self, &message.kind) {
            (Held::Appends, Some(Kind::Append(_))) => true,
            (Held::Seals, Some(Kind::Propose(propose))) => {
                let command = propose.command.as_ref().and_then(|command| command.kind.as_ref());
                matches!(command, Some(Command::PackSeal(_)))
            }
            _ => false,
        }
    }
}

/// What is held, and what has happened meanwhile.
#[derive(Default)]
pub(in crate::sim::world) struct Holding {
    what: Option<Held>,
    /// Oldest first.
    flights: Vec<Flight>,
    pack_cancelled: bool,
    linked_again: bool,
}

impl World {
    /// Keeps the message back if the script holds such messages. Returns it otherwise.
    pub(in crate::sim::world) fn hold(&mut self, flight: Flight) -> Option<Flight> {
        let holds = |run: &&mut super::Run| {
            run.holding.what.is_some_and(|what| what.is_it(&flight.message))
        };
        let Some(run) = self.script.as_mut().filter(holds) else { return Some(flight) };
        run.holding.flights.push(flight);
        None
    }

    pub(super) fn hold_back(&mut self, what: Held) {
        self.script().holding = Holding { what: Some(what), ..Holding::default() };
    }

    pub(super) fn wait_for_held(&mut self) {
        self.wait(|world| !world.script().holding.flights.is_empty());
    }

    /// In the order in which they were sent: the seal of a cancelled pack comes before any of the next one.
    pub(super) fn release(&mut self) {
        let packing = self.ledger.is_packing();
        let Holding { flights, pack_cancelled, linked_again, .. } =
            std::mem::take(&mut self.script().holding);
        if !flights.is_empty() && pack_cancelled && linked_again && packing {
            self.count(SEAL_RELEASED);
        }
        flights.into_iter().for_each(|flight| self.fly(flight));
    }

    /// What was held does not arrive any more.
    pub(super) fn drop_held(&mut self) {
        self.script().holding = Holding::default();
    }

    pub(super) fn set_local(&mut self) {
        let by = self.somebody();
        let (name, value) = ("durability".to_string(), "local".to_string());
        self.ask(by, Verb::ConfigSet(ConfigSet { name, value }));
        self.wait(|world| world.local_at.is_some());
    }

    /// A client of a node that is not master commits; until the master's disk has it.
    pub(super) fn commit_on_slave(&mut self) {
        let client = self.who(Who::Slave);
        self.clients[client].quiet = false;
        self.clients[client].change();
        self.turn(client, 1000);
        let tag = |world: &World| world.clients[client].awaits_commit();
        self.wait(|world| tag(world).is_some_and(|tag| world.ledger.tags.contains_key(&tag)));
        let Some(tag) = tag(self) else { return };
        if self.ledger.tags.contains_key(&tag) && !self.script().holding.flights.is_empty() {
            self.count(ALONE_ELSEWHERE);
        }
        self.wait_for(ANSWERED_US, |_| false);
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
        self.script().holding.linked_again = holds && self.book.acked == wanted;
    }

    /// Until no node is at a pack.
    pub(super) fn cancel_pack(&mut self) {
        let by = self.somebody();
        self.ask(by, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
        self.wait(|world| !world.ledger.is_packing());
        self.script().holding.pack_cancelled = !self.ledger.is_packing();
    }

    /// Until the master is at a pack.
    pub(super) fn wait_for_pack(&mut self) {
        let packing = |world: &World| {
            let master = world.ledger.master();
            master.is_some_and(|master| !world.ledger.says(master).phase.is_empty())
        };
        self.wait(|world| packing(world));
    }
}
