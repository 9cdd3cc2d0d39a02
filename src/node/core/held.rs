//! Commits that wait at the master before they are judged: for another session's turn to end (`durus::Turns`), or until it
//! is known who is to answer them (`handover`). Either is over in a moment.

use super::serve::Asker;
use super::{Action, Core, Role};
use crate::durus::{self, SessionKey, Turn};
use crate::proto::replication as pb;
use crate::proto::replication::client_reply::Answer;
use crate::types::Oid;

impl Core {
    pub(super) fn on_turn(&mut self, asker: Asker, turn: &pb::Turn) -> Result<(), String> {
        let touched = match turn.has_touched {
            true => Some(durus::decode_touched(&turn.touched).map_err(|error| error.to_string())?),
            false => None,
        };
        if let Some(master) = self.master() {
            master.turns.ask(Turn { asker, session: asker.session(turn.session), touched });
        }
        Ok(())
    }

    pub(super) fn end_turn(&mut self, session: SessionKey) {
        if let Some(master) = self.master() {
            master.turns.end(session);
        }
    }

    /// Takes the commit until it can be judged. None: it was held.
    pub(super) fn unless_held(&mut self, asker: Asker, commit: pb::Commit) -> Option<pb::Commit> {
        let (now, handing_over) = (self.now, self.holds_for().is_some());
        let Some(master) = self.master() else { return Some(commit) };
        let session = asker.session(commit.session);
        let stores = commit.records.iter().map(|record| Oid(record.oid));
        if !handing_over && !master.turns.holds_back(session, stores, now) {
            return Some(commit);
        }
        master.held.push((asker, commit));
        None
    }

    pub(super) fn is_held(&self, asker: &Asker) -> bool {
        let Role::Master(master) = &self.role else { return false };
        master.held.iter().any(|(held, _)| held == asker)
    }

    /// What was held goes on, then somebody else has its turn, who hears of all that.
    pub(super) fn drive_held(&mut self, out: &mut Vec<Action>) {
        if !self.drive_handover() {
            return;
        }
        let now = self.now;
        let Some(master) = self.master().filter(|master| !master.turns.is_taken(now)) else {
            return;
        };
        let mut held = std::mem::take(&mut master.held);
        // The node's next process may have given the same oids to others.
        held.retain(|(asker, _)| master.has_registered(asker));
        for (asker, commit) in held {
            if let Err(why) = self.on_commit(asker, commit, out) {
                slog::warn!(self.log, "a commit that was held can't be understood"; "why" => why);
            }
        }
        let tip = self.shelf.tip().seq;
        let Some(master) = self.master() else { return };
        if let Some(asker) = master.turns.begin(now) {
            self.answer(asker, Answer::TurnSeq(tip.0), out);
        }
    }

    /// When somebody's turn lapses that others wait for, in microseconds of the monotonic clock.
    pub(super) fn turn_due_us(&self) -> Option<u64> {
        let Role::Master(master) = &self.role else { return None };
        let lapses = master.turns.lapses_us();
        lapses.filter(|_| !master.held.is_empty() || master.turns.anybody_waits())
    }
}
