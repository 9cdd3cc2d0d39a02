//! Promises: how a voter takes part in an election.
//!
//! A fence stops appends at once, in memory; the promise goes to the disk behind everything that was appended before, on
//! the same queue. When it is durable, so are those appends, and only then the position is read and reported.

use super::disk::Purpose;
use super::{Action, Core, Role};
use crate::control::EPOCH_MAX;
use crate::failover::election::Report;
use crate::mutants::{self, Mutant};
use crate::plausible::{Disbelieved, EPOCH_AHEAD_MAX, within};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{FenceReport, FenceRequest};
use crate::replication::wire::{self, Position};
use crate::storage::task::DiskTask;
use crate::types::{BootId, Epoch, Generation, NodeId, PackId};

impl Core {
    /// A promise can't be taken back, and the next fence takes the epoch after the greatest promise. So an epoch is
    /// believed when its fence is in our own applied log, or when it is near what we know. False: it is not acted upon,
    /// and whoever sent it is remembered.
    pub(super) fn believes_epoch(
        &mut self,
        from: NodeId,
        what: &'static str,
        epoch: Epoch,
    ) -> bool {
        let ours = self.promised.max(self.control.epoch());
        let ahead = match mutants::broken(Mutant::FarEpochBelieved) {
            true => EPOCH_MAX,
            false => EPOCH_AHEAD_MAX,
        };
        let near = within(what, epoch.0, ours.0, ahead);
        if near.is_ok() && epoch.0 < EPOCH_MAX {
            return true;
        }
        let number = Disbelieved { what, theirs: epoch.0, ours: ours.0 };
        self.disbelieve(from, &number.to_string());
        false
    }

    /// Takes nothing below `epoch` any more. What is on its way to the disk is waited for by the order of tasks.
    pub(super) fn promise(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        assert!(epoch > self.promised, "promise {epoch} after {}", self.promised);
        self.promised = epoch;
        if let Role::Master(master) = &self.role {
            slog::info!(self.log, "no longer master"; "epoch" => master.epoch.0, "fenced_by" => epoch.0);
        }
        let goes_on = match &self.role {
            Role::Master(_) => mutants::broken(Mutant::FencedMasterGoesOn),
            _ => mutants::broken(Mutant::PromiseNotRechecked),
        };
        if !goes_on {
            self.role = Role::None;
            self.drop_floor_pull();
            self.hold_if_ahead();
        }
        if mutants::broken(Mutant::TransferForgotten) {
            (self.incoming, self.late_fetch) = Default::default();
        }
        // Whoever follows in both files has the last transactions in both when it reports.
        self.follow_at_once(out);
        self.disk(Purpose::Promise { epoch }, DiskTask::Promise { epoch }, out);
        self.beats.soon();
    }

    pub(super) fn on_promise_durable(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        assert!(epoch > self.promise_durable, "promises are made durable in order");
        self.promise_durable = epoch;
        match self.fence_asked_by.take_if(|(asked, _)| *asked == epoch) {
            // The leader's request can be faster than Raft's word that the fence is committed.
            Some((_, leader)) => self.report(leader, out),
            None => self.report_to_leader(out),
        }
        if matches!(self.role, Role::Slave(_)) {
            self.acknowledge(out);
        }
    }

    pub(super) fn on_fence_request(
        &mut self,
        from: NodeId,
        request: FenceRequest,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.is_unproved() || self.is_accused() {
            return Ok(()); // asked again in a moment
        }
        let epoch = Epoch(request.epoch);
        if !self.believes_epoch(from, "epoch of a fence", epoch) {
            return Ok(());
        }
        if epoch > self.promise_durable && epoch >= self.promised {
            self.fence_asked_by = Some((epoch, from));
        }
        if epoch > self.promised {
            self.promise(epoch, out);
            if mutants::broken(Mutant::PositionBeforePromise) {
                self.report(from, out);
            }
        } else if epoch == self.promise_durable && epoch == self.promised {
            self.report(from, out);
        }
        Ok(())
    }

    /// A fence that is being decided upon wants our position; also after a rebase, which makes it count.
    pub(super) fn report_to_leader(&mut self, out: &mut Vec<Action>) {
        let fenced = self.control.fencing().map(|fencing| fencing.epoch) == Some(self.promised);
        if fenced
            && self.promise_durable == self.promised
            && let Some(leader) = self.raft.leader()
        {
            self.report(leader, out);
        }
    }

    fn report(&mut self, to: NodeId, out: &mut Vec<Action>) {
        // A newer promise can be on its way to the disk when an older one arrives there: it is not to be told before.
        let promising = self.promise_durable != self.promised
            && !mutants::broken(Mutant::PositionBeforePromise);
        let settled = (!self.cutting && self.durable.seq == self.shelf.tip().seq)
            || mutants::broken(Mutant::UnsettledReported);
        if self.is_unproved() || self.is_accused() || promising || !settled {
            return; // asked again in a moment
        }
        let next = self.next_complete();
        let report = FenceReport {
            epoch: self.promised.0,
            boot: self.setup.boot.0,
            position: Some(wire::put_position(&self.position())),
            suspect: self.doubts(),
            next_generation: next.map_or(0, |(generation, _)| generation.0),
            next_base_hash: next.map(|(_, base)| wire::put_chain(base)).unwrap_or_default(),
            next_pack: next.and(self.pack.id()).map_or(0, |id| id.0),
            blank: self.shelf.is_blank(),
            may_be_master: self.leaving.is_none()
                && self.control.member(self.setup.id).is_some_and(|me| me.may_be_master),
            failing: !self.failing().is_empty(),
        };
        self.send(to, Kind::FenceReport(report), out);
    }

    /// Why this node's word about its file does not count; empty if it does.
    pub(super) fn doubts(&self) -> String {
        match self.recovering.is_some() {
            true if self.suspect.is_empty() => {
                "recovering: its file was damaged, and it is fetching what it lost".into()
            }
            _ => self.suspect.clone(),
        }
    }

    /// Durable, in the current file.
    pub(super) fn position(&self) -> Position {
        Position {
            generation: self.shelf.generation(),
            base_hash: self.shelf.base_hash(),
            tip: self.durable,
        }
    }

    /// The first election makes a generation's number what the cluster has for ever, and nothing is agreed yet that it
    /// could be held against: so what one message says has to be what the same process says in another. If it is not, the
    /// controller asks again.
    fn agrees_with_beat(&mut self, from: NodeId, report: &Report) -> bool {
        if self.control.generation().is_some() || from == self.setup.id {
            return true;
        }
        let beat = self.health.beat(from).filter(|beat| beat.boot == report.boot.0);
        let told = beat.and_then(|beat| beat.position.as_ref()).map(|it| it.generation);
        let theirs = report.position.generation.0;
        if let Some(ours) = told.filter(|told| *told != theirs) {
            let number = Disbelieved { what: "generation of its file", theirs, ours };
            self.disbelieve(from, &number.to_string());
        }
        told == Some(theirs)
    }

    pub(super) fn on_fence_report(
        &mut self,
        from: NodeId,
        report: FenceReport,
    ) -> Result<(), String> {
        let text = |error: wire::WireError| format!("fence report: {error}");
        let next = match report.next_generation {
            0 => None,
            number => {
                let base = wire::chain("next base hash", &report.next_base_hash).map_err(text)?;
                Some((PackId(report.next_pack), Generation(number), base))
            }
        };
        let report = Report {
            epoch: Epoch(report.epoch),
            boot: BootId(report.boot),
            position: wire::position("position", report.position.as_ref()).map_err(text)?,
            suspect: report.suspect,
            next,
            blank: report.blank,
            may_be_master: report.may_be_master,
            failing: report.failing,
        };
        if !self.agrees_with_beat(from, &report) {
            return Ok(());
        }
        self.controller.on_report(from, report);
        self.controller_due_us = 0;
        Ok(())
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
