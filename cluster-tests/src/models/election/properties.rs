//! What must hold in every state (design section 9), and what must happen in some.

use stateright::Property;

use super::super::log::Log;
use super::Election;
use super::state::{Broken, Lost, Node, World};
use super::steps::bit;

pub(super) fn all() -> Vec<Property<Election>> {
    vec![
        Property::always("AckedIsDurable", |model: &Election, w: &World| model.acked_is_durable(w)),
        Property::always("LeaderCompleteness", |_, w: &World| held(w, Broken::LeaderCompleteness)),
        Property::always("CommittedNeverTruncated", |_, w: &World| {
            held(w, Broken::CommittedNeverTruncated)
        }),
        Property::always("QuorumsOverlap", |model: &Election, w: &World| model.quorums_overlap(w)),
        Property::always("ChainMatch", |model: &Election, w: &World| model.chains_match(w)),
        Property::always("EpochUnique", |model: &Election, w: &World| model.epoch_unique(w)),
        Property::always("ChainEpochMonotone", |model: &Election, w: &World| {
            w.nodes.iter().all(|node| model.epochs_grow_along(node.log))
        }),
        Property::always("PromiseMonotone", |model: &Election, w: &World| model.promises_stand(w)),
        Property::always("NoAckBelowPromise", |_, w: &World| held(w, Broken::NoAckBelowPromise)),
        Property::always("CommitNeedsOwnEpoch", |_, w: &World| {
            held(w, Broken::CommitNeedsOwnEpoch)
        }),
        Property::always("ReadIsCommittedPrefix", |_, w: &World| {
            held(w, Broken::ReadIsCommittedPrefix)
        }),
        Property::always("AmnesiacSilent", |model: &Election, w: &World| {
            model.amnesiac_is_silent(w)
        }),
        Property::sometimes("a commit in the last epoch", |model: &Election, w: &World| {
            w.committed.last_epoch() == model.scope.epochs
        }),
        Property::sometimes("all writes are committed", |model: &Election, w: &World| {
            let starts = (1..=model.scope.epochs)
                .filter(|epoch| w.committed.start_of(*epoch).is_some())
                .count() as u8;
            w.committed.len() >= starts + model.scope.writes
        }),
        Property::sometimes("three histories at once", |model: &Election, w: &World| {
            let nodes = &w.nodes[..model.scope.nodes];
            if model.scope.epochs < 3 {
                return true;
            }
            let apart = |a: &Node, b: &Node| !a.log.begins(b.log) && !b.log.begins(a.log);
            nodes.iter().enumerate().any(|(place, a)| {
                nodes[place + 1..]
                    .iter()
                    .any(|b| apart(a, b) && nodes.iter().any(|c| apart(a, c) && apart(b, c)))
            })
        }),
    ]
}

impl Election {
    fn has_committed(&self, w: &World, node: &Node) -> bool {
        w.committed.begins(node.log.prefix(node.durable))
    }

    /// What was acknowledged to a client is durable on a majority of the voters it was acknowledged by.
    fn acked_is_durable(&self, w: &World) -> bool {
        let epoch = w.committed.last_epoch();
        let voters = w.nodes[..self.scope.nodes].iter().filter(|node| node.votes & bit(epoch) != 0);
        let size = voters.clone().count();
        let have = voters.filter(|node| node.lost != Lost::Nothing || self.has_committed(w, node));
        w.committed.is_empty() || have.count() > size / 2
    }

    /// No majority of those who will be asked next lacks something committed.
    fn quorums_overlap(&self, w: &World) -> bool {
        let voters =
            w.nodes[..self.scope.nodes].iter().filter(|node| node.votes & bit(w.last) != 0);
        let size = voters.clone().count();
        let lack = voters.filter(|node| node.lost == Lost::Nothing && !self.has_committed(w, node));
        lack.count() <= size / 2
    }

    /// The same seq of the same epoch: the same history.
    fn chains_match(&self, w: &World) -> bool {
        let nodes = &w.nodes[..self.scope.nodes];
        nodes.iter().enumerate().all(|(place, a)| {
            nodes[place + 1..].iter().all(|b| {
                let (a, b): (Log, Log) = (a.log, b.log);
                let common = a.common(b);
                (common + 1..=a.len().min(b.len())).all(|seq| a.epoch_at(seq) != b.epoch_at(seq))
            })
        })
    }

    fn epoch_unique(&self, w: &World) -> bool {
        let nodes = &w.nodes[..self.scope.nodes];
        (1..=w.epoch).all(|epoch| nodes.iter().filter(|node| node.master == epoch).count() <= 1)
    }

    fn epochs_grow_along(&self, log: Log) -> bool {
        (1..log.len()).all(|seq| log.epoch_at(seq) <= log.epoch_at(seq + 1))
    }

    /// Whoever told a position has promised the fence, and still does.
    fn promises_stand(&self, w: &World) -> bool {
        w.nodes[..self.scope.nodes]
            .iter()
            .all(|node| node.report == 0 || node.promise >= w.epoch || node.lost == Lost::Disk)
    }

    /// Nobody leads who lost something. That it is not counted either shows in what would be lost.
    fn amnesiac_is_silent(&self, w: &World) -> bool {
        let nodes = &w.nodes[..self.scope.nodes];
        nodes.iter().all(|node| node.lost == Lost::Nothing || node.master == 0)
    }
}

fn held(w: &World, what: Broken) -> bool {
    w.broken & what as u8 == 0
}
