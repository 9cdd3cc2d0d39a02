//! What durability `local` has cost: transactions that a master acknowledged alone and that no later history has.
//!
//! A node that cuts its file back can't always know whether what it cuts was acknowledged: the process that wrote it may be
//! gone. The replicated state knows in which epochs a master could acknowledge alone, and who that was; so the node tells
//! what it has cut, and here it is judged and kept. The number is an upper bound: the clients of other nodes wait until
//! their commit is committed, and the last ones may not have been acknowledged before the process ended.

use super::apply::NUMBER_MAX;
use super::settings::DURABILITY;
use super::state::{Loss, State};
use crate::proto::control as pb;
use crate::replication::quorum::Durability;
use crate::types::{Epoch, NodeId, Seq};

/// Epochs that are remembered.
pub(super) const ALONE_MAX: usize = 1024;
/// Losses that are told one by one.
pub(super) const LOSSES_MAX: usize = 256;
/// Bytes of a file's name.
const NAME_MAX: usize = 256;

impl State {
    /// Oldest first, at most the newest `LOSSES_MAX`.
    pub fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.losses.iter()
    }

    /// Could a master acknowledge alone in this epoch, and who was it?
    fn alone_in(&self, epoch: Epoch) -> Option<NodeId> {
        self.alone.get(&epoch).copied()
    }

    /// From now on the present master may acknowledge alone, if the setting says so.
    pub(super) fn note_alone(&mut self) {
        let is_local = self.setting(DURABILITY) == Some(Durability::Local.name());
        let Some((master, _)) = self.master().filter(|_| is_local) else { return };
        self.alone.insert(self.epoch, master);
        while self.alone.len() > ALONE_MAX {
            self.alone.pop_first();
        }
    }

    /// Is this a loss that is not known yet? The error says why it is none.
    pub fn may_be_lost(&self, lost: &pb::TailLost) -> Result<Loss, String> {
        let loss = get_loss(lost)?;
        let (node, epoch) = (loss.node, loss.epoch);
        if self.alone_in(epoch) != Some(node) {
            return Err(format!("node {node} acknowledged nothing alone in epoch {epoch}"));
        }
        let known =
            |other: &Loss| (other.node, other.epoch, &other.kept) == (node, epoch, &loss.kept);
        if self.losses.iter().any(known) {
            return Err(format!("what node {node} has lost of epoch {epoch} is known already"));
        }
        Ok(loss)
    }

    /// The loss, for the history.
    pub(super) fn on_tail_lost(&mut self, lost: &pb::TailLost) -> Result<(String, NodeId), String> {
        let loss = self.may_be_lost(lost)?;
        let Loss { transactions, epoch, after, to, kept, node, .. } = &loss;
        let why = format!(
            "up to {transactions} transactions are lost that were acknowledged in epoch {epoch} by this node alone \
             (durability local): seq {} to {to}, kept in {kept}",
            after.next()
        );
        let node = *node;
        self.lost_transactions = self.lost_transactions.saturating_add(*transactions);
        self.losses.push_back(loss);
        while self.losses.len() > LOSSES_MAX {
            self.losses.pop_front();
        }
        Ok((why, node))
    }
}

pub(super) fn get_loss(lost: &pb::TailLost) -> Result<Loss, String> {
    let counts = [lost.transactions, lost.after_seq, lost.to_seq, lost.epoch];
    if counts.iter().any(|number| *number >= NUMBER_MAX) || lost.transactions == 0 {
        return Err("a loss in numbers beyond all bounds".into());
    }
    if lost.after_seq.saturating_add(lost.transactions) > lost.to_seq {
        return Err("a loss of more transactions than there are between its seqs".into());
    }
    if lost.kept.is_empty() || lost.kept.len() > NAME_MAX {
        return Err("a loss without a file that has it now".into());
    }
    Ok(Loss {
        node: NodeId(lost.node),
        epoch: Epoch(lost.epoch),
        transactions: lost.transactions,
        after: Seq(lost.after_seq),
        to: Seq(lost.to_seq),
        kept: lost.kept.clone(),
        at_wall_us: lost.at_wall_us,
    })
}

pub(super) fn put_loss(loss: &Loss) -> pb::TailLost {
    pb::TailLost {
        node: loss.node.0,
        epoch: loss.epoch.0,
        transactions: loss.transactions,
        after_seq: loss.after.0,
        to_seq: loss.to.0,
        kept: loss.kept.clone(),
        at_wall_us: loss.at_wall_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(epoch: u64, kept: &str) -> pb::TailLost {
        let kept = kept.to_string();
        pb::TailLost {
            node: 1,
            epoch,
            transactions: 3,
            after_seq: 10,
            to_seq: 14,
            kept,
            at_wall_us: 5,
        }
    }

    /// Node 1 was master of epoch 4 with durability `local`; it is epoch 6.
    fn state() -> State {
        let alone = [(Epoch(4), NodeId(1))].into();
        State { epoch: Epoch(6), alone, ..State::default() }
    }

    #[test]
    fn a_loss_is_told_once_and_only_of_who_could_acknowledge_alone() {
        let mut state = state();
        let (why, node) = state.on_tail_lost(&lost(4, "orphans/a")).unwrap();
        assert!(why.contains("up to 3 transactions") && why.contains("seq 11 to 14"), "{why}");
        assert_eq!((node, state.lost_transactions), (NodeId(1), 3));
        assert!(state.on_tail_lost(&lost(4, "orphans/a")).unwrap_err().contains("known already"));
        assert!(state.on_tail_lost(&lost(5, "orphans/b")).unwrap_err().contains("nothing alone"));
        let other = pb::TailLost { node: 2, ..lost(4, "orphans/b") };
        assert!(state.on_tail_lost(&other).unwrap_err().contains("nothing alone"));
        state.on_tail_lost(&lost(4, "orphans/b")).unwrap();
        assert_eq!((state.losses().count(), state.lost_transactions), (2, 6));
        assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn nonsense_is_refused() {
        let state = state();
        for bad in [
            pb::TailLost { transactions: 0, ..lost(4, "a") },
            pb::TailLost { transactions: u64::MAX, ..lost(4, "a") },
            pb::TailLost { to_seq: u64::MAX, ..lost(4, "a") },
            pb::TailLost { to_seq: 12, ..lost(4, "a") },
            pb::TailLost { transactions: 5, ..lost(4, "a") },
            lost(4, ""),
            lost(4, &"a".repeat(NAME_MAX + 1)),
        ] {
            assert!(state.may_be_lost(&bad).is_err(), "{bad:?}");
        }
    }
}
