//! Is this the disk that promised?
//!
//! A disk can come back as it was some time ago: a restored image, a snapshot of a virtual machine. Whatever this node
//! promised and acknowledged since then is forgotten, and nothing on the disk says so. The others may know. So:
//!
//! * Every node says in its beats what it knows of each other: the greatest epoch it has said it promised durably, and
//!   the greatest seq that it acknowledged to the master of an epoch. An election names, through Raft, whose promises
//!   it was built on, and of each member the newest such election is kept: whoever has heard the promise itself forgets
//!   it when it is started anew. Whoever finds its own disk below any of that has lost its memory, and stands aside; a
//!   file on the disk says so from then on.
//! * After a start a node is *unproved*: it neither votes nor promises nor acknowledges until it has heard every other
//!   member once, and has applied what they had applied of Raft's log. A member that says nothing for as long as makes
//!   a node count as dead is not waited for any longer, once a majority, this node included, has been heard: a cluster
//!   starts with any majority. Time alone proves nothing: a node that hears fewer waits, however long. (What only a member
//!   remembers that stays away is not known; TESTING.md says so.)
//!
//! None of this accuses a sound disk: what is compared was on it, durably, before anybody heard of it, and neither a
//! promise nor, within an epoch, what was acknowledged to its master ever goes back. But one message may be wrong, or
//! forged. So an accusation counts only when its peer repeats it (`plausible`, "claims"), and a promise only when our own
//! applied log has that epoch's fence, which was committed before anybody promised. While somebody accuses this node and
//! that is not settled, an unproved node stays so, and one that takes part already neither votes, reports, acknowledges
//! nor confirms. The same peer's next beat settles it, or the claim expires: one forged beat costs a second at most.
//!
//! A node that knows that its file is damaged (`recovering`) is not accused of lacking what it acknowledged. It counts for
//! nothing until it has everything again, and what the others have heard of it in the current epoch is part of that.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::disk::Purpose;
use super::{Action, Core, REMEDY};
use crate::mutants::{self, Mutant};
use crate::plausible::{Claim, EPOCH_AHEAD_MAX, SEQ_AHEAD_MAX, within};
use crate::proto::control::{Beat, PeerView};
use crate::replication::quorum::majority;
use crate::storage::task::{AMNESIAC, DiskTask};
use crate::types::{Epoch, NodeId, Now, Seq};

/// Of a node that has just started.
pub(super) struct Proof {
    since: Now,
    /// The last seq of the file at the start. What it fetches since then is no memory of what it acknowledged.
    had: Seq,
    /// Up to where each had applied Raft's log, as it said last.
    heard: BTreeMap<NodeId, u64>,
}

impl Proof {
    pub(super) fn new(now: Now, had: Seq) -> Proof {
        Proof { since: now, had, heard: BTreeMap::new() }
    }
}

/// What a peer's view of this node amounts to.
enum View {
    Fine,
    /// It can't be judged before this node has applied more of Raft's log.
    Unsettled,
    /// This disk is below what the peer has heard, and how.
    Below(String),
}

impl Core {
    /// Takes no part yet.
    pub(super) fn is_unproved(&self) -> bool {
        self.proof.is_some() && !mutants::broken(Mutant::AmnesiacTakesPart)
    }

    /// Somebody says that this node has forgotten something, and that is not settled.
    pub(super) fn is_accused(&self) -> bool {
        [Claim::DiskForgotten, Claim::Unsettled, Claim::RaftLogForgotten]
            .iter()
            .any(|claim| self.claims.is_made(*claim, self.now))
            && !mutants::broken(Mutant::AmnesiacTakesPart)
            && !mutants::broken(Mutant::AccusedTakesPart)
    }

    /// Says nothing that counts: no vote, no report, no acknowledgement, no confirmation.
    pub(super) fn is_silent(&self) -> bool {
        !self.suspect.is_empty() || self.is_unproved() || self.is_accused()
    }

    /// Does a peer say that this node had more of the history of `epoch` than `durable`?
    pub(super) fn is_remembered_beyond(&self, epoch: Epoch, durable: Seq) -> bool {
        let me = self.setup.id;
        let others = self.control.members().filter(|member| member.id != me);
        others.filter_map(|member| self.health.beat(member.id)).any(|beat| {
            beat.views.iter().filter(|view| view.node == me.0).any(|view| {
                view.acked_epoch == epoch.0
                    && view.acked_seq > durable.0
                    // Whoever heard of it has it.
                    && view.acked_seq <= beat.written_seq
            })
        })
    }

    /// What this node knows of the others: what it heard itself, and what Raft says.
    pub(super) fn views(&self) -> Vec<PeerView> {
        let mut views = self.health.views(self.now);
        for view in &mut views {
            let id = NodeId(view.node);
            view.promised = view.promised.max(self.control.promise_of(id).0);
            let disk = self.control.member(id).and_then(|member| member.disk_uuid);
            view.disk_uuid = disk.map(|uuid| Bytes::copy_from_slice(&uuid)).unwrap_or_default();
        }
        views
    }

    /// What a peer knows of us.
    pub(super) fn on_view_of_me(&mut self, from: NodeId, beat: &Beat, out: &mut Vec<Action>) {
        let me = self.setup.id.0;
        let view = beat.views.iter().find(|view| view.node == me).cloned();
        let view = view.map_or(View::Fine, |view| self.judge_view(from, beat, &view));
        match view {
            View::Fine => {
                self.claims.withdraw(from, Claim::DiskForgotten);
                self.claims.withdraw(from, Claim::Unsettled);
            }
            View::Unsettled => {
                self.claims.make(from, Claim::Unsettled, self.now);
            }
            View::Below(why) => {
                self.claims.withdraw(from, Claim::Unsettled);
                let stands = self.claims.make(from, Claim::DiskForgotten, self.now);
                if stands || mutants::broken(Mutant::ViewBelieved) {
                    self.is_amnesiac(&why, out);
                }
            }
        }
        if let Some(proof) = &mut self.proof {
            proof.heard.insert(from, beat.raft_applied);
        }
    }

    fn judge_view(&mut self, from: NodeId, beat: &Beat, view: &PeerView) -> View {
        let (promised, fenced) = (self.promise_durable.0, self.control.epoch().0);
        let name = self.name_of(from);
        if !view.disk_uuid.is_empty() && view.disk_uuid[..] != self.setup.disk_uuid {
            return View::Below(format!("{name} knows another disk under its id"));
        }
        if view.promised > promised {
            if view.promised <= fenced || mutants::broken(Mutant::ViewBelieved) {
                return View::Below(format!(
                    "{name} has heard that it promised epoch {}; its disk has {promised}",
                    view.promised
                ));
            }
            let far = within("epoch that we promised", view.promised, fenced, EPOCH_AHEAD_MAX);
            if let Err(number) = far {
                self.disbelieve(from, &number.to_string());
            }
            return View::Unsettled;
        }
        let tip = self.proof.as_ref().map_or(self.shelf.tip().seq, |proof| proof.had);
        let below = view.acked_epoch == promised
            // What is in the file may have yet to become durable there: at a flip, the new file can be a few writes
            // behind the old one, which has what was acknowledged (simulator, seed 543).
            && view.acked_seq > tip.0
            && (self.recovering.is_none() || mutants::broken(Mutant::RecoveringAccused))
            && !self.cutting
            && !mutants::broken(Mutant::LostAcknowledged);
        if !below {
            return View::Fine;
        }
        // Whoever heard of it has compared its chain with its own file.
        if view.acked_seq > beat.written_seq && !mutants::broken(Mutant::ViewBelieved) {
            let (theirs, ours) = (view.acked_seq, beat.written_seq);
            if let Err(number) = within("seq that we had", theirs, ours, SEQ_AHEAD_MAX) {
                self.disbelieve(from, &number.to_string());
            }
            return View::Fine;
        }
        View::Below(format!(
            "{name} has heard that it had seq {} of epoch {promised}; its disk has {tip}",
            view.acked_seq
        ))
    }

    /// An election was built on this node's promise.
    pub(super) fn check_elected_on_me(&mut self, out: &mut Vec<Action>) {
        let counted = self.control.promise_of(self.setup.id);
        if counted > self.promise_durable {
            let why = format!(
                "the election of epoch {counted} counted its promise; its disk has {}",
                self.promise_durable
            );
            self.is_amnesiac(&why, out);
        }
    }

    fn is_amnesiac(&mut self, why: &str, out: &mut Vec<Action>) {
        if !self.suspect.is_empty() || mutants::broken(Mutant::AmnesiacTakesPart) {
            return;
        }
        self.suspect =
            format!("this disk does not hold what this node has promised ({why}): {REMEDY}");
        slog::crit!(self.log, "this node has forgotten what it promised or acknowledged; it stands aside"; "why" => why,
            "what_to_do" => REMEDY);
        self.disk(Purpose::Housekeeping, DiskTask::Create { name: AMNESIAC.into() }, out);
        self.beats.soon();
    }

    /// Ends the time in which this node takes no part.
    pub(super) fn drive_proof(&mut self, out: &mut Vec<Action>) {
        let Some(proof) = &self.proof else { return };
        let heard = |id: NodeId| id == self.setup.id || proof.heard.contains_key(&id);
        let heard_all = self.control.members().all(|member| heard(member.id))
            || mutants::broken(Mutant::ProvedUnheard);
        let applied = self.raft.applied();
        let caught_up = proof.heard.values().all(|theirs| applied >= *theirs)
            || mutants::broken(Mutant::ProvedWithoutLog);
        let known = heard_all && caught_up;
        let waited = self.now.since_ms(proof.since) >= self.setup.timing.silence_ms;
        let majority_heard = proof.heard.len() + 1 >= majority(self.control.members().count())
            || mutants::broken(Mutant::ProvedByTimeAlone);
        let waited_enough = waited && majority_heard;
        if self.is_accused() || !(known || waited_enough) {
            return;
        }
        self.proof = None;
        slog::debug!(self.log, "takes part"; "heard_all" => heard_all);
        self.raft_tick_due_us = self.now.mono_us;
        self.adopt_phase(None, out);
    }
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
