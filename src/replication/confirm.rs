//! Rounds to the voters that confirm a mastership for reads: no lease, no clock.
//!
//! A read that arrives while a round is on its way waits for the next one, since that round's answers may be older
//! than the read. When a majority has confirmed a round, everything that was committed before the round began is known
//! to the master, and whoever waited may be answered with the committed position.

use std::collections::BTreeSet;

use super::quorum::majority;
use crate::mutants::{self, Mutant};
use crate::types::NodeId;

/// Rounds of one epoch. `W` is whoever waits.
#[derive(Debug)]
pub struct Confirm<W> {
    me: NodeId,
    voters: BTreeSet<NodeId>,
    round: u64,
    confirmed_by: BTreeSet<NodeId>,
    in_round: Vec<W>,
    next: Vec<W>,
}

impl<W> Confirm<W> {
    pub fn new(me: NodeId, voters: impl IntoIterator<Item = NodeId>) -> Confirm<W> {
        Confirm {
            me,
            voters: voters.into_iter().collect(),
            round: 0,
            confirmed_by: BTreeSet::new(),
            in_round: Vec::new(),
            next: Vec::new(),
        }
    }

    pub fn ask(&mut self, waiter: W) {
        match mutants::broken(Mutant::ReadJoinsRound) && self.pending().is_some() {
            true => self.in_round.push(waiter),
            false => self.next.push(waiter),
        }
    }

    /// Begins a round if somebody waits and none is on its way; its number is to be sent to every voter.
    pub fn begin(&mut self) -> Option<u64> {
        if self.next.is_empty() || !self.in_round.is_empty() {
            return None;
        }
        self.round += 1;
        self.in_round = std::mem::take(&mut self.next);
        self.confirmed_by = BTreeSet::from([self.me]);
        Some(self.round)
    }

    /// The round to send again, after silence.
    pub fn pending(&self) -> Option<u64> {
        (!self.in_round.is_empty()).then_some(self.round)
    }

    /// A voter still follows. Returns those who may be answered now.
    pub fn confirmed(&mut self, voter: NodeId, round: u64) -> Vec<W> {
        let asked_since = round == self.round || mutants::broken(Mutant::OldRoundConfirms);
        if asked_since && self.voters.contains(&voter) {
            self.confirmed_by.insert(voter);
        }
        self.done()
    }

    /// Those who may be answered now.
    pub fn done(&mut self) -> Vec<W> {
        let enough =
            self.confirmed_by.intersection(&self.voters).count() >= majority(self.voters.len());
        let enough = enough || mutants::broken(Mutant::ConfirmSkipped);
        if enough { std::mem::take(&mut self.in_round) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_never_uses_a_round_that_began_before_it() {
        let mut confirm = Confirm::new(NodeId(1), [NodeId(1), NodeId(2), NodeId(3)]);
        confirm.ask("early");
        assert_eq!(confirm.begin(), Some(1));
        confirm.ask("late");
        assert_eq!(confirm.begin(), None);
        assert_eq!(confirm.confirmed(NodeId(2), 1), ["early"]);
        assert_eq!(confirm.begin(), Some(2));
        assert!(confirm.confirmed(NodeId(3), 1).is_empty(), "an old answer confirms nothing");
        assert_eq!(confirm.confirmed(NodeId(3), 2), ["late"]);
    }

    #[test]
    fn a_master_alone_confirms_itself_and_a_stranger_nobody() {
        let mut confirm = Confirm::new(NodeId(1), [NodeId(1), NodeId(2), NodeId(3)]);
        confirm.ask(());
        confirm.begin();
        assert!(confirm.done().is_empty());
        assert!(confirm.confirmed(NodeId(9), 1).is_empty());
        let mut alone = Confirm::new(NodeId(1), [NodeId(1)]);
        alone.ask(());
        alone.begin();
        assert_eq!(alone.done().len(), 1);
    }
}
