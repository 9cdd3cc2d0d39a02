//! What this node says about itself, and how often.

use std::collections::BTreeMap;

use slog::Logger;

use super::{Action, Core, Role};
use crate::admin::room;
use crate::failover::controller::Timing;
use crate::mutants::{self, Mutant};
use crate::plausible::Disbelieved;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Beat, Disbelief};
use crate::replication::wire;
use crate::types::{Epoch, NodeId, Now};

/// Urgent beats keep this distance: where much is lost, every loss is news, and news of it would be lost again.
const SOON_US: u64 = 1000;
/// What the disk was asked for so long ago and has not done: it is stuck.
const STUCK_MS: u64 = 2000;
/// A peer with a strange disk is complained about so often.
const COMPLAIN_EVERY_MS: u64 = 10_000;

#[derive(Default)]
pub(super) struct Beats {
    sent: Option<Now>,
    /// Something changed that others wait for.
    soon: bool,
    complained: BTreeMap<NodeId, Now>,
    /// Free bytes on the disk, as last looked at; None if it would not tell.
    free_bytes: Option<u64>,
    free_looked_at: Option<Now>,
}

impl Beats {
    pub(super) fn soon(&mut self) {
        self.soon = true;
    }

    pub(super) fn is_soon(&self) -> bool {
        self.soon
    }

    /// As last looked at; None if the disk would not tell.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }

    pub(super) fn due_us(&self, timing: &Timing) -> u64 {
        match self.sent {
            Some(sent) if self.soon => sent.mono_us + SOON_US,
            Some(sent) => sent.mono_us + timing.beat_ms * 1000,
            None => 0,
        }
    }

    pub(super) fn complain_about_disk(&mut self, from: NodeId, log: &Logger, now: Now) {
        let due =
            self.complained.get(&from).is_none_or(|at| now.since_ms(*at) >= COMPLAIN_EVERY_MS);
        if due {
            self.complained.insert(from, now);
            slog::error!(log, "a node comes with another disk than the cluster knows; it is not believed: \
                a new disk needs a new member"; "node" => from.0);
        }
    }
}

impl Core {
    pub(super) fn on_beat(
        &mut self,
        from: NodeId,
        beat: Beat,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        // The controller takes the epoch after the greatest that was promised.
        if !self.believes_epoch(from, "promised epoch", Epoch(beat.promised)) {
            return Ok(());
        }
        if let Err(number) = check_seqs(&beat) {
            self.disbelieve(from, &number.to_string());
            return Ok(());
        }
        self.on_view_of_me(from, &beat, out);
        self.note_what_it_had(from, &beat);
        let newer = self.health.beat(from).is_none_or(|known| known.boot != beat.boot);
        self.health.on_beat(from, beat, self.now);
        self.controller_due_us = 0;
        if newer {
            self.beats.soon();
        }
        Ok(())
    }

    /// What the sender will be reminded of, should its disk forget it. A number that is wrong would accuse a sound disk: so
    /// it is remembered once our own log or file shows that it can be true.
    fn note_what_it_had(&mut self, from: NodeId, beat: &Beat) {
        let fenced = beat.promise_durable <= self.control.epoch().0;
        if fenced || mutants::broken(Mutant::ViewBelieved) {
            self.health.on_promised(from, beat.promise_durable);
        }
        let position = beat.position.as_ref().filter(|_| beat.open && fenced);
        let tip = position.and_then(|at| wire::tip("tip", at.tip.as_ref()).ok());
        if let Some(tip) = tip.filter(|tip| self.shelf.find(tip).unwrap_or(false)) {
            self.health.on_acked(from, beat.promised, tip.seq.0);
        }
    }

    fn told_disbeliefs(&self) -> Vec<Disbelief> {
        let told = self.disbelieved.iter().map(|(node, it)| Disbelief {
            node: node.0,
            what: it.text.clone(),
            age_ms: self.now.since_ms(it.last),
            times: it.times,
        });
        told.collect()
    }

    pub(super) fn drive_beats(&mut self, out: &mut Vec<Action>) {
        if self.now.mono_us < self.beats.due_us(&self.setup.timing) || self.exited {
            return;
        }
        self.look_at_disk();
        self.beats.sent = Some(self.now);
        self.beats.soon = false;
        let beat = self.own_beat();
        let peers: Vec<NodeId> = self
            .control
            .members()
            .map(|member| member.id)
            .filter(|id| *id != self.setup.id)
            .collect();
        for peer in peers {
            self.send(peer, Kind::Beat(Box::new(beat.clone())), out);
        }
    }

    fn look_at_disk(&mut self) {
        let due = self.beats.free_looked_at.is_none_or(|at| self.now.since_ms(at) >= 1000);
        if due {
            self.beats.free_looked_at = Some(self.now);
            self.beats.free_bytes = self.setup.disk.free_bytes().ok();
        }
    }

    pub(super) fn own_beat(&self) -> Beat {
        let tip = self.shelf.tip();
        let lag_bytes = match &self.role {
            Role::Slave(slave) => slave.announced.offset.saturating_sub(self.durable.offset),
            _ => 0,
        };
        let mut beat = Beat {
            boot: self.setup.boot.0,
            promised: self.promised.0,
            position: Some(wire::put_position(&self.position())),
            written_seq: tip.seq.0,
            committed_seq: self.committed.0,
            open: self.is_open_master(),
            in_step: self.in_step(),
            failing: self.failing(),
            suspect: self.doubts(),
            views: self.views(),
            pack: self.pack_progress(),
            clients: self.sessions.len() as u64,
            file_bytes: tip.offset,
            free_bytes: self.beats.free_bytes.unwrap_or(0),
            verified_seq: self.verified.0.0,
            verified_wall_us: self.verified.1,
            leaving: self.leaving.is_some(),
            drained_for: self.drained_for().map_or(0, |heir| heir.0),
            opening_moved_bytes: self.opening_moved_bytes(),
            incoming_bytes: self.incoming_after_tip().map_or(0, |(_, bytes)| bytes),
            promote: self.controller.promote_told().map(Box::new),
            raft_leader: self.raft.leader().map_or(0, |leader| leader.0),
            version: self.setup.version.clone(),
            state: self.state_text(),
            lag_bytes,
            fetched_bytes: self.fetched_bytes,
            raft_applied: self.raft.applied(),
            rebase: self.last_rebase.clone(),
            seal_seq: self.shelf.cut().0,
            blank: self.shelf.is_blank(),
            tip_wall_us: self.shelf.last_time_us(),
            promise_durable: self.promise_durable.0,
            rebases: Some(Box::new(self.ladder.report(self.now))),
            garbage_bytes: self.garbage_bytes(),
            tail_bytes: self.tail_bytes(),
            old_files: self.old_files.told(),
            keep_generations: u64::from(self.setup.keep_generations),
            disbeliefs: self.told_disbeliefs(),
            ..Beat::default()
        };
        self.put_durability(&mut beat);
        beat
    }

    /// How long the disk has not done what it was asked for, if that is too long.
    pub(super) fn stuck_ms(&self) -> Option<u64> {
        let log_ms = self.raft_persist_since.map_or(0, |since| self.now.since_ms(since));
        Some(self.tasks.oldest_ms(self.now).max(log_ms)).filter(|ms| *ms >= STUCK_MS)
    }

    /// Why somebody else had better be master, although this node answers; empty if nothing is wrong.
    pub(super) fn failing(&self) -> String {
        if let Some(ms) = self.stuck_ms() {
            return format!("its disk has not done in {ms} ms what it was asked for");
        }
        match self.beats.free_bytes {
            Some(free) if free < room::FREE_BYTES_MIN => {
                format!("its disk is nearly full: {} KiB are left", free >> 10)
            }
            _ => String::new(),
        }
    }

    /// Follows the current master in the current generation, or is the open master.
    pub(super) fn in_step(&self) -> bool {
        if !self.suspect.is_empty()
            || self.recovering.is_some()
            || !self.is_current_file()
            || self.cutting
        {
            return false;
        }
        match &self.role {
            Role::Master(master) => master.open,
            Role::Slave(slave) => {
                slave.is_prefix(self.shelf.tip().seq) && slave.epoch == self.control.epoch()
            }
            Role::None => false,
        }
    }

    fn state_text(&self) -> String {
        if !self.suspect.is_empty() {
            return "suspect".into();
        }
        if self.recovering.is_some() {
            return "recovering what its disk lost".into();
        }
        if let Some(text) = self.rebase_text() {
            return text;
        }
        if self.leaving.is_some() {
            return "leaving".into();
        }
        if self.cutting {
            return "cutting back".into();
        }
        let tip = self.shelf.tip().seq;
        match &self.role {
            Role::Master(master) if master.open => "open".into(),
            Role::Master(_) if self.pull.is_some() => "elected, fetching what it lacks".into(),
            Role::Master(_) => "elected, opening".into(),
            Role::Slave(slave) if !slave.is_prefix(tip) => "connecting to the master".into(),
            Role::Slave(slave) if slave.announced.seq > self.durable.seq => "catching up".into(),
            Role::Slave(_) => "in step".into(),
            Role::None => "waiting for an election".into(),
        }
    }
}

/// base <= durable <= written and committed <= written, in every file. What is committed goes into Raft's state when an
/// epoch opens.
fn check_seqs(beat: &Beat) -> Result<(), Disbelieved> {
    let durable = beat.position.as_ref().and_then(|at| at.tip.as_ref()).map_or(0, |tip| tip.seq);
    let ours = beat.written_seq;
    let all = [
        ("seq of its base", beat.seal_seq),
        ("durable seq", durable),
        ("committed seq", beat.committed_seq),
    ];
    match all.into_iter().find(|(_, theirs)| *theirs > ours) {
        Some((what, theirs)) => Err(Disbelieved { what, theirs, ours }),
        None => Ok(()),
    }
}
