//! A master that does not build the new generation hands over to a slave that has: it holds new commits, until what it has
//! is everywhere it must be, says so in its beat, and the Raft leader elects the slave in the new generation.
//!
//! Nothing of this is needed for safety: whom an election elects, and in which generation, is judged by what was reported
//! (`failover::election`), and the held commits are asked for again at the next master, as all are that were not answered.
//! Held or not, an election in which the slave lacks something ends in the old generation, and the pack begins again.

use super::{Core, Role};
use crate::types::{NodeId, Now};

/// Commits are held for so long at most; then they go on, and it is tried again a while later.
const HOLD_MS: u64 = 300;
const HOLD_AGAIN_MS: u64 = 2000;

/// A master's part.
#[derive(Default)]
pub(super) struct Handover {
    /// For whom, and since when.
    hold: Option<(NodeId, Now)>,
    said: bool,
}

impl Core {
    /// The leader asks for it, again and again.
    pub(super) fn hold_commits(&mut self, heir: NodeId) {
        let now = self.now;
        let Some(master) = self.master().filter(|master| master.open) else { return };
        let hold = &mut master.handover.hold;
        if hold.is_none_or(|(_, since)| now.since_ms(since) >= HOLD_MS + HOLD_AGAIN_MS) {
            *hold = Some((heir, now));
            slog::info!(self.log, "pack: commits are held, to hand over"; "to" => heir.0);
        }
    }

    /// The pack for which commits were held is no more.
    pub(super) fn end_hold(&mut self) {
        if let Some(master) = self.master() {
            master.handover = Handover::default();
        }
    }

    pub(super) fn holds_for(&self) -> Option<NodeId> {
        let Role::Master(master) = &self.role else { return None };
        let holding = |(_, since): &(NodeId, Now)| self.now.since_ms(*since) < HOLD_MS;
        master.handover.hold.filter(holding).map(|(heir, _)| heir)
    }

    /// For whom commits are held, if that node has all there is.
    pub(super) fn drained_for(&self) -> Option<NodeId> {
        let heir = self.holds_for()?;
        let Role::Master(master) = &self.role else { return None };
        let tip = self.shelf.tip();
        let has_all = master.followers.get(&heir).is_some_and(|it| it.acked() == tip);
        (has_all && self.committed == tip.seq).then_some(heir)
    }

    /// False: commits are held.
    pub(super) fn drive_handover(&mut self) -> bool {
        let (drained, holding) = (self.drained_for().is_some(), self.holds_for().is_some());
        let Some(master) = self.master() else { return true };
        if drained && !std::mem::replace(&mut master.handover.said, drained) {
            self.beats.soon();
        } else if !holding {
            master.handover.said = false;
        }
        !holding
    }

    /// When held commits go on, in microseconds of the monotonic clock.
    pub(super) fn handover_due_us(&self) -> Option<u64> {
        let Role::Master(master) = &self.role else { return None };
        let (_, since) = master.handover.hold.filter(|_| !master.held.is_empty())?;
        Some(since.mono_us + HOLD_MS * 1000)
    }
}
