//! When is a transaction committed?
//!
//! A majority of the epoch's voters has it durably, and it, or a later one, is of the current epoch (Raft's figure 8:
//! what an earlier epoch wrote commits only through a transaction of this one). The master counts like any voter.

use std::collections::BTreeMap;

use crate::mutants::{self, Mutant};
use crate::types::{NodeId, Seq};

/// How many voters must have a transaction before its client hears of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    Majority,
    All,
    /// Asynchronous: the master's own disk is enough. What it alone has is lost with it.
    Local,
}

impl Durability {
    pub fn from_name(name: &str) -> Option<Durability> {
        match name {
            "majority" => Some(Durability::Majority),
            "all" => Some(Durability::All),
            "local" => Some(Durability::Local),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Durability::Majority => "majority",
            Durability::All => "all",
            Durability::Local => "local",
        }
    }
}

/// The smallest number of voters any two of which overlap.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// What each voter of one epoch has durably.
#[derive(Debug)]
pub struct Quorum {
    acked: BTreeMap<NodeId, Option<Seq>>,
    /// The epoch-start transaction; nothing commits below it.
    start: Seq,
}

impl Quorum {
    pub fn new(voters: impl IntoIterator<Item = NodeId>, start: Seq) -> Quorum {
        Quorum { acked: voters.into_iter().map(|voter| (voter, None)).collect(), start }
    }

    /// `voter` has everything up to `seq`, in this epoch, with the master's chain. True if that is news.
    pub fn acked(&mut self, voter: NodeId, seq: Seq) -> bool {
        match self.acked.get_mut(&voter) {
            Some(known) if *known < Some(seq) => {
                *known = Some(seq);
                true
            }
            _ => false,
        }
    }

    pub fn of(&self, voter: NodeId) -> Option<Seq> {
        self.acked.get(&voter).copied().flatten()
    }

    /// The newest committed transaction, if the epoch has committed anything.
    pub fn committed(&self, durability: Durability, master: NodeId) -> Option<Seq> {
        let mut acked: Vec<Option<Seq>> = self.acked.values().copied().collect();
        acked.sort_unstable();
        let index = match durability {
            // The start of an epoch always takes a majority, or a later election could miss it.
            Durability::Majority => {
                let one_less = usize::from(mutants::broken(Mutant::CommitBelowMajority));
                acked.len().checked_sub(majority(acked.len()) - one_less)?
            }
            Durability::All => 0,
            Durability::Local => {
                let opened = *acked.get(acked.len().checked_sub(majority(acked.len()))?)?;
                return match opened {
                    Some(seq) if seq >= self.start => self.of(master),
                    _ => None,
                };
            }
        };
        let own = |seq: &Seq| *seq >= self.start || mutants::broken(Mutant::CommitByCounting);
        acked.get(index).copied().flatten().filter(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Quorum {
        Quorum::new([NodeId(1), NodeId(2), NodeId(3)], Seq(10))
    }

    #[test]
    fn two_of_three_commit() {
        let mut quorum = three();
        quorum.acked(NodeId(1), Seq(12));
        assert_eq!(quorum.committed(Durability::Majority, NodeId(1)), None);
        quorum.acked(NodeId(3), Seq(11));
        assert_eq!(quorum.committed(Durability::Majority, NodeId(1)), Some(Seq(11)));
        assert_eq!(quorum.committed(Durability::All, NodeId(1)), None);
        assert_eq!(quorum.committed(Durability::Local, NodeId(1)), Some(Seq(12)));
    }

    #[test]
    fn copies_of_an_earlier_epoch_do_not_commit_it() {
        let mut quorum = three();
        for voter in 1..=3 {
            quorum.acked(NodeId(voter), Seq(9));
        }
        assert_eq!(quorum.committed(Durability::Majority, NodeId(1)), None);
        assert_eq!(quorum.committed(Durability::Local, NodeId(1)), None);
    }

    #[test]
    fn strangers_and_old_news_do_not_count() {
        let mut quorum = three();
        assert!(!quorum.acked(NodeId(4), Seq(99)));
        assert!(quorum.acked(NodeId(1), Seq(11)));
        assert!(!quorum.acked(NodeId(1), Seq(10)));
        assert_eq!(quorum.of(NodeId(1)), Some(Seq(11)));
    }

    #[test]
    fn one_voter_alone_takes_the_same_path() {
        let mut quorum = Quorum::new([NodeId(1)], Seq(1));
        assert_eq!(quorum.committed(Durability::Majority, NodeId(1)), None);
        quorum.acked(NodeId(1), Seq(1));
        assert_eq!(quorum.committed(Durability::Majority, NodeId(1)), Some(Seq(1)));
    }
}
