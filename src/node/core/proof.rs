//! Is this the disk that promised?
//!
//! A disk can come back as it was some time ago: a restored image, a snapshot of a virtual machine. Whatever this node
//! promised and acknowledged since then is forgotten, and nothing on the disk says so. The others may know. So:
//!
//! * Every node says in its beats what it knows of each other: the greatest epoch it has said it promised durably, and
//!   the greatest seq that it acknowledged to the master of an epoch. An election names, through Raft, whose promises
//!   it was built on, and of each member the newest such election is kept: whoever has heard the promise itself forgets
//!   it when it is started anew. Whoever finds its own disk below any of that has lost its memory, and stands aside for
//!   good; a file on the disk says so from then on.
//! * After a start a node is *unproved*: it neither votes nor promises nor acknowledges until it has heard every other
//!   member once, and has applied what they had applied of Raft's log. A member that says nothing for as long as makes
//!   a node count as dead is not waited for any longer: if nobody who remembers is there, nobody can know. (A node that
//!   restarts in good health must not have to wait for a dead one, and the two cases look the same from within.)
//!
//! None of this can accuse a sound disk: what is compared was on it, durably, before anybody heard of it, and neither a
//! promise nor, within an epoch, what was acknowledged to its master ever goes back.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::disk::Purpose;
use super::{Action, Core};
use crate::mutants::{self, Mutant};
use crate::proto::control::{Beat, PeerView};
use crate::storage::task::{AMNESIAC, DiskTask};
use crate::types::{NodeId, Now};

/// Of a node that has just started.
pub(super) struct Proof {
    since: Now,
    heard: BTreeSet<NodeId>,
    /// Up to here others had applied Raft's log.
    raft_applied: u64,
}

impl Proof {
    pub(super) fn new(now: Now) -> Proof {
        Proof { since: now, heard: BTreeSet::new(), raft_applied: 0 }
    }
}

impl Core {
    /// Takes no part yet.
    pub(super) fn is_unproved(&self) -> bool {
        self.proof.is_some() && !mutants::broken(Mutant::AmnesiacTakesPart)
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
        if let Some(view) = beat.views.iter().find(|view| view.node == me) {
            let promised = self.promise_durable.0;
            if !view.disk_uuid.is_empty() && view.disk_uuid[..] != self.setup.disk_uuid {
                let why = format!("node {from} knows another disk under its id");
                self.is_amnesiac(&why, out);
            } else if view.promised > promised {
                let why = format!(
                    "node {from} has heard that it promised epoch {}; its disk has {promised}",
                    view.promised
                );
                self.is_amnesiac(&why, out);
            } else if view.acked_epoch == promised
                // What is in the file may have yet to become durable there: at a flip, the new file can be a few writes
                // behind the old one, which has what was acknowledged (simulator, seed 543).
                && view.acked_seq > self.shelf.tip().seq.0
                && self.recovering.is_none()
                && !self.cutting
                && !mutants::broken(Mutant::LostAcknowledged)
            {
                let why = format!(
                    "node {from} has heard that it had seq {} of epoch {promised}; its disk has {}",
                    view.acked_seq,
                    self.shelf.tip().seq
                );
                self.is_amnesiac(&why, out);
            }
        }
        if let Some(proof) = &mut self.proof {
            proof.heard.insert(from);
            proof.raft_applied = proof.raft_applied.max(beat.raft_applied);
        }
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
        self.suspect = format!("this disk does not hold what this node has promised: {why}");
        slog::crit!(self.log, "this node has forgotten what it promised or acknowledged; it stands aside for good: \
            give it an empty disk and a new node id"; "why" => why);
        self.disk(Purpose::Housekeeping, DiskTask::Create { name: AMNESIAC.into() }, out);
        self.beats.soon();
    }

    /// Ends the time in which this node takes no part.
    pub(super) fn drive_proof(&mut self, out: &mut Vec<Action>) {
        let Some(proof) = &self.proof else { return };
        let others = self.control.members().map(|member| member.id);
        let heard_all =
            others.filter(|id| *id != self.setup.id).all(|id| proof.heard.contains(&id));
        let caught_up =
            self.raft.applied() >= proof.raft_applied || mutants::broken(Mutant::ProvedWithoutLog);
        let known = heard_all && caught_up;
        if !known && self.now.since_ms(proof.since) < self.setup.timing.silence_ms {
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
