//! Who has just started, and who has lost its disk: what others can see of it.

use std::collections::BTreeMap;

use packmaster::node::core::Timing;
use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::proto::control::{Beat, PeerMessage};

use super::messages::counts;
use super::{Fate, Ledger};

/// A process, seen from outside.
#[derive(Default)]
pub(super) struct Started {
    /// Its disk had promised something: it may have forgotten more.
    may_have_forgotten: bool,
    /// Of each peer's first beat that came: how much of Raft's log that had applied.
    heard: BTreeMap<usize, u64>,
    /// It has taken part since; then it had applied so much.
    applied: Option<u64>,
    /// Of each node that it has followed as master: in which epoch, and how far, as that has told it.
    acked: BTreeMap<usize, (u64, u64)>,
    /// Since when it says of another node that its disk is not the one it has, in microseconds of its life.
    knows_wiped: BTreeMap<usize, u64>,
}

impl Ledger {
    pub fn has_started(&mut self, node: usize) {
        let may_have_forgotten = self.disks[node].promise > 0 && self.disks.len() > 1;
        self.started[node] = Started { may_have_forgotten, ..Started::default() };
    }

    /// Something arrives at a process.
    pub fn on_arrival(&mut self, at: usize, from: usize, message: &PeerMessage) {
        self.note_asked(message);
        if let Some(Message::Beat(beat)) = &message.kind {
            // The first one's, which is the least, unless that was forged.
            let applied = beat.raft_applied;
            let heard = self.started[at].heard.entry(from).or_insert(applied);
            *heard = (*heard).min(applied);
        }
        if let Some(Message::AppendReply(reply)) = &message.kind
            && let Some(tip) = reply.durable.as_ref().filter(|_| reply.matched)
        {
            let acked = self.started[at].acked.entry(from).or_default();
            *acked = (*acked).max((reply.epoch, tip.seq));
        }
    }

    /// What the newest epoch's master, whose process has not ended since, has heard that the node has of it.
    pub fn heard_acks(&self, node: usize, epoch: u64) -> Option<u64> {
        let master = self
            .master()
            .filter(|_| self.masters.last_key_value().is_some_and(|(of, _)| *of == epoch))?;
        self.started[master].acked.get(&node).filter(|(of, _)| *of == epoch).map(|(_, seq)| *seq)
    }

    /// Where the durable current file ends.
    pub fn last_seq(&self, node: usize) -> u64 {
        self.current(node).map_or(0, |(_, tip)| self.txs[&tip].seq)
    }

    /// Whoever has just started has heard everybody, and what they had applied of Raft's log, before it says anything that
    /// counts; or a majority, itself included, and has waited for as long as makes a node count as dead.
    pub(super) fn is_proved(&mut self, from: usize, lived_us: u64, message: &PeerMessage) {
        let others = self.disks.len() - 1;
        let started = &mut self.started[from];
        if let Some(Message::Beat(beat)) = &message.kind
            && let Some(wanted) = started.applied
        {
            assert!(
                beat.raft_applied >= wanted,
                "violated ProvedFirst: node {} takes part since its start, has applied {} entries of Raft's log, and had \
                 heard of {wanted}",
                from + 1,
                beat.raft_applied
            );
        }
        if !started.may_have_forgotten || !counts(message) {
            return;
        }
        if lived_us / 1000 >= Timing::default().silence_ms {
            let heard = started.heard.len();
            assert!(
                2 * (heard + 1) > others + 1,
                "violated ProvedFirst: node {} has heard of {heard} others since its start, of {others}, and says {message:?}",
                from + 1
            );
            return;
        }
        assert!(
            started.heard.len() == others,
            "violated ProvedFirst: node {} has just started, has heard of {} others, and says {message:?}",
            from + 1,
            started.heard.len()
        );
        started.applied = started.applied.or(started.heard.values().max().copied());
    }

    /// A node that came with another disk under its old id counts as silent for everybody who knows that.
    pub(super) fn is_unheard(&mut self, from: usize, lived_us: u64, beat: &Beat) {
        for view in &beat.views {
            let whom = view.node as usize - 1;
            let wiped = self.disks[whom].fate == Fate::Replaced;
            if !wiped || view.disk_uuid[..] != [whom as u8 + 1; 16] {
                continue;
            }
            let since = *self.started[from].knows_wiped.entry(whom).or_insert(lived_us);
            assert!(
                view.silent_ms + 1 >= (lived_us - since) / 1000,
                "violated WipedUnheard: node {} has heard node {} {} ms ago, whose disk is not the one it knows",
                from + 1,
                whom + 1,
                view.silent_ms
            );
        }
    }
}
