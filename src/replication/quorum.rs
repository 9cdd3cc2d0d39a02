//! When is a transaction committed, and when may its client hear so?
//!
//! These are two marks. A transaction is **committed** when a majority of the epoch's voters has it durably, and it, or a
//! later one, is of the current epoch (Raft's figure 8: what an earlier epoch wrote commits only through a transaction of
//! this one). The master counts like any voter. What is committed survives every election; so cuts, announcements to
//! slaves, reads on other nodes, packs and the opening of an epoch go by this mark, whatever the setting is.
//!
//! A transaction is **acknowledged** when its client may be told that it is stored. That is what the cluster setting
//! `durability` decides:
//!
//! * `majority`: when it is committed. The two marks are one.
//! * `all`: when every voter of the epoch has it. It is committed before, and other clients see it from then on: no
//!   election can take it back, and a new master could not know which of its transactions were acknowledged, so hiding
//!   the others would hold all reads up until the last voter is back. An epoch opens by the committed mark for the same
//!   reason: one dead voter must not keep the cluster from ever opening.
//! * `local`: when the master's own disk has it, in an epoch that is open. The clients of the master see it from then on;
//!   everybody else when it is committed. If mastership ends in between, an election may choose a history without it:
//!   that is the loss which `local` permits, and nothing else is ever lost.
//!
//! With one voter the three are the same, with two `majority` is `all`.

use std::collections::BTreeMap;

use crate::mutants::{self, Mutant};
use crate::types::{NodeId, Seq};

/// The cluster setting: who must have a transaction before its client hears of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    Majority,
    All,
    /// Asynchronous: the master's own disk is enough. What it alone has is lost with it.
    Local,
}

/// Every value of the setting, by name.
pub const DURABILITIES: [&str; 3] = ["majority", "all", "local"];

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

    /// What may be lost and what may wait, for people: it stands wherever the setting is shown.
    pub fn permits(self) -> &'static str {
        match self {
            Durability::Majority => {
                "nothing acknowledged is lost while a majority of the disks survives"
            }
            Durability::All => {
                "nothing acknowledged is lost while one disk survives; commits wait while any voter is away"
            }
            Durability::Local => {
                "what the master acknowledged to its own clients and no majority has yet is LOST if mastership moves"
            }
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
    pub fn committed(&self) -> Option<Seq> {
        let one_less = usize::from(mutants::broken(Mutant::CommitBelowMajority));
        let needed = majority(self.acked.len()) - one_less;
        self.have(needed).filter(|seq| self.is_own(*seq))
    }

    /// The newest transaction whose client may be told that it is stored. Nothing is before the epoch has committed its
    /// start. May be below what is committed (`All`) or above (`Local`).
    pub fn acknowledged(&self, durability: Durability, master: NodeId) -> Option<Seq> {
        let committed = self.committed()?;
        match durability {
            Durability::Majority => Some(committed),
            Durability::All if mutants::broken(Mutant::AllIsMajority) => Some(committed),
            Durability::All => self.have(self.acked.len()).filter(|seq| self.is_own(*seq)),
            Durability::Local => self.of(master).max(Some(committed)),
        }
    }

    /// The voters that lack this transaction.
    pub fn lacking(&self, seq: Seq) -> impl Iterator<Item = NodeId> {
        self.acked.iter().filter(move |(_, acked)| **acked < Some(seq)).map(|(voter, _)| *voter)
    }

    /// The newest transaction that so many voters have.
    fn have(&self, voters: usize) -> Option<Seq> {
        let mut acked: Vec<Option<Seq>> = self.acked.values().copied().collect();
        acked.sort_unstable();
        acked.get(acked.len().checked_sub(voters)?).copied().flatten()
    }

    fn is_own(&self, seq: Seq) -> bool {
        seq >= self.start || mutants::broken(Mutant::CommitByCounting)
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
        assert_eq!(quorum.committed(), None);
        quorum.acked(NodeId(3), Seq(11));
        assert_eq!(quorum.committed(), Some(Seq(11)));
    }

    #[test]
    fn acknowledged_is_what_the_setting_says_and_nothing_before_the_epoch_has_opened() {
        let marks = |quorum: &Quorum| {
            let all = [Durability::Majority, Durability::All, Durability::Local];
            all.map(|durability| quorum.acknowledged(durability, NodeId(1)).map(|seq| seq.0))
        };
        let mut quorum = three();
        quorum.acked(NodeId(1), Seq(12));
        assert_eq!(marks(&quorum), [None; 3], "the start is on one disk");
        quorum.acked(NodeId(3), Seq(11));
        assert_eq!(marks(&quorum), [Some(11), None, Some(12)]);
        quorum.acked(NodeId(2), Seq(9));
        assert_eq!(marks(&quorum), [Some(11), None, Some(12)], "9 is of an earlier epoch");
        assert_eq!(quorum.lacking(Seq(11)).collect::<Vec<_>>(), [NodeId(2)]);
        quorum.acked(NodeId(2), Seq(10));
        assert_eq!(marks(&quorum), [Some(11), Some(10), Some(12)]);
        // The others have it, and the master's own disk is slow.
        quorum.acked(NodeId(2), Seq(14));
        quorum.acked(NodeId(3), Seq(14));
        assert_eq!(marks(&quorum), [Some(14), Some(12), Some(14)]);
    }

    #[test]
    fn with_one_voter_the_settings_are_the_same_and_with_two_majority_is_all() {
        for voters in [1, 2] {
            let mut quorum = Quorum::new((1..=voters).map(NodeId), Seq(10));
            for voter in 1..=voters {
                quorum.acked(NodeId(voter), Seq(9 + voter));
                let all = quorum.acknowledged(Durability::All, NodeId(1));
                assert_eq!(all, quorum.acknowledged(Durability::Majority, NodeId(1)));
            }
            assert_eq!(quorum.committed(), Some(Seq(10)));
        }
    }

    #[test]
    fn copies_of_an_earlier_epoch_do_not_commit_it() {
        let mut quorum = three();
        for voter in 1..=3 {
            quorum.acked(NodeId(voter), Seq(9));
        }
        assert_eq!(quorum.committed(), None);
        assert_eq!(quorum.acknowledged(Durability::Local, NodeId(1)), None);
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
        assert_eq!(quorum.committed(), None);
        quorum.acked(NodeId(1), Seq(1));
        assert_eq!(quorum.committed(), Some(Seq(1)));
    }
}
