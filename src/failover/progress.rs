//! Patience that measures progress and not time.
//!
//! What an election or a promote waits for may be a large transaction on a narrow line. As long as bytes move, waiting is
//! right: another election would move them no faster. Only where next to nothing moves is something else tried.

use super::controller::View;
use crate::mutants::{self, Mutant};
use crate::proto::control::{Beat, PromoteProgress};
use crate::replication::wire;
use crate::types::{Epoch, NodeId, Now};

/// A promote fences when its target lacks no more than this of the master's file: bytes on its disk, and transactions.
pub const PROMOTE_LACKS_BYTES: u64 = 1 << 20;
pub const PROMOTE_LACKS_TRANSACTIONS: u64 = 5000;

/// How far something has come, and when it last came on.
#[derive(Clone, Copy, Debug)]
struct Progress {
    bytes: u64,
    at: Now,
}

impl Progress {
    /// Whether it has come on by `bytes_min` since it last did, or has done so less than `patience_ms` ago.
    fn goes_on(&mut self, bytes: u64, bytes_min: u64, patience_ms: u64, now: Now) -> bool {
        if bytes >= self.bytes.saturating_add(bytes_min.max(1)) {
            *self = Progress { bytes, at: now };
        }
        now.since_ms(self.at) < patience_ms
    }
}

// ---- an elected master that has not opened yet ----

#[derive(Debug)]
pub(super) struct Opening {
    pub(super) epoch: Epoch,
    /// When this leader first saw the election.
    since: Now,
    moved: Progress,
}

impl Opening {
    pub(super) fn new(epoch: Epoch, now: Now) -> Opening {
        Opening { epoch, since: now, moved: Progress { bytes: 0, at: now } }
    }

    /// Why somebody else is to be elected; None: it is left alone.
    pub(super) fn stuck(&mut self, view: &View<'_>, master: NodeId) -> Option<String> {
        let patience_ms = view.timing.open_timeout_ms;
        let bytes_min = view.timing.opening_bytes_per_s_min * patience_ms / 1000;
        let beat = view.beat(master).filter(|beat| beat.promised == self.epoch.0);
        let bytes = beat.map_or(0, |beat| beat.opening_moved_bytes);
        let by_clock = mutants::broken(Mutant::OpenTimeoutByClock);
        let bytes_seen = if by_clock { 0 } else { bytes };
        if !self.moved.goes_on(bytes_seen, bytes_min, patience_ms, view.now) {
            return Some(format!(
                "has not opened, and has moved fewer than {bytes_min} bytes toward it in {patience_ms} ms"
            ));
        }
        if view.now.since_ms(self.since) < patience_ms {
            return None;
        }
        let other = self.has_floor_already(view, master)?;
        Some(format!(
            "has not opened in {patience_ms} ms, and {} has already what it is still fetching",
            super::controller::name(view, other)
        ))
    }

    /// Somebody who could open at once, while the elected is still fetching what that takes.
    fn has_floor_already(&self, view: &View<'_>, master: NodeId) -> Option<NodeId> {
        let floor = view.state.mastership()?;
        let floor = wire::position("floor", Some(&floor.floor)).ok()?;
        let has_floor = |beat: &Beat| {
            let position = wire::position("position", beat.position.as_ref());
            position.is_ok_and(|at| {
                at.same_file(floor.generation, floor.base_hash)
                    && at.tip.order() >= floor.tip.order()
            })
        };
        if view.beat(master).is_none_or(has_floor) {
            return None;
        }
        let could = |id: &NodeId| {
            let may = view.state.member(*id).is_some_and(|member| member.may_be_master);
            let fine = |beat: &Beat| {
                beat.suspect.is_empty()
                    && beat.failing.is_empty()
                    && !beat.leaving
                    && has_floor(beat)
            };
            *id != master && may && view.is_alive(*id) && view.beat(*id).is_some_and(fine)
        };
        view.state.voters().into_iter().find(could)
    }
}

// ---- a promote that waits for its target ----

/// Somebody asked for a master by name.
#[derive(Clone, Debug)]
pub struct PromoteAsked {
    pub target: NodeId,
    pub asked_by: String,
    pub why: String,
}

#[derive(Debug)]
pub(super) struct Promoting {
    pub(super) asked: PromoteAsked,
    /// The epoch in which it was asked for, and when: it is about that epoch's master and no other.
    epoch: Epoch,
    since: Now,
    near: Option<Progress>,
    lacks_bytes: u64,
    called_off: Option<String>,
}

/// What is to be done for a promote now.
#[derive(Debug, PartialEq)]
pub(super) enum PromoteStep {
    /// The target lacks little: now.
    Fence,
    /// The target catches up; that is news.
    BeginsToWait {
        lacks_bytes: u64,
    },
    Waits,
    /// That is news.
    CalledOff {
        why: String,
    },
    /// It was called off, and that was said.
    Over,
}

/// Where the master's file ends and what of it the target has: bytes, and transactions.
struct Distance {
    lacks_bytes: u64,
    lacks_transactions: u64,
    /// The end of what is there, also of what is not whole.
    there: u64,
}

impl Promoting {
    pub(super) fn new(asked: PromoteAsked, epoch: Epoch, now: Now) -> Promoting {
        Promoting { asked, epoch, since: now, near: None, lacks_bytes: 0, called_off: None }
    }

    pub(super) fn told(&self) -> PromoteProgress {
        PromoteProgress {
            id: self.since.mono_us,
            target: self.asked.target.0,
            asked_by: self.asked.asked_by.clone(),
            lacks_bytes: self.lacks_bytes,
            called_off: self.called_off.clone().unwrap_or_default(),
        }
    }

    /// While `master` is open.
    pub(super) fn step(&mut self, view: &View<'_>, master: NodeId) -> PromoteStep {
        if self.called_off.is_some() {
            return PromoteStep::Over;
        }
        let name = super::controller::name(view, self.asked.target);
        let other = self.epoch != view.state.epoch();
        if other && !mutants::broken(Mutant::LatePromoteTaken) {
            let why = format!("an election (epoch {}) came between", view.state.epoch());
            return self.call_off(why);
        }
        let distance = self.distance(view, master);
        if let Some(distance) = &distance {
            self.lacks_bytes = distance.lacks_bytes;
            if distance.lacks_bytes <= PROMOTE_LACKS_BYTES
                && distance.lacks_transactions <= PROMOTE_LACKS_TRANSACTIONS
            {
                return PromoteStep::Fence;
            }
        }
        let (there, now) = (distance.map_or(0, |distance| distance.there), view.now);
        let is_new = self.near.is_none();
        let near = self.near.get_or_insert(Progress { bytes: there, at: now });
        let patience_ms = view.timing.promote_patience_ms;
        let bytes_min = view.timing.opening_bytes_per_s_min * patience_ms / 1000;
        if !near.goes_on(there, bytes_min, patience_ms, now) {
            let lacks_bytes = self.lacks_bytes;
            let why = format!(
                "{name} lacks {lacks_bytes} bytes of the master's file and has come no nearer in {patience_ms} ms"
            );
            return self.call_off(why);
        }
        match is_new {
            true => PromoteStep::BeginsToWait { lacks_bytes: self.lacks_bytes },
            false => PromoteStep::Waits,
        }
    }

    fn call_off(&mut self, why: String) -> PromoteStep {
        self.called_off = Some(why.clone());
        PromoteStep::CalledOff { why }
    }

    /// None: not known, or the target is in another generation.
    fn distance(&self, view: &View<'_>, master: NodeId) -> Option<Distance> {
        let (ours, theirs) = (view.beat(master)?, view.beat(self.asked.target)?);
        let at = |beat: &Beat| wire::position("position", beat.position.as_ref()).ok();
        let (from, to) = (at(theirs)?, at(ours)?);
        if !from.same_file(to.generation, to.base_hash) {
            return None;
        }
        let there = from.tip.offset;
        Some(Distance {
            lacks_bytes: ours.file_bytes.max(to.tip.offset).saturating_sub(there),
            lacks_transactions: ours.written_seq.saturating_sub(from.tip.seq.0),
            there: there + theirs.incoming_bytes,
        })
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
