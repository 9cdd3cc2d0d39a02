//! Who may become master, and who of several would.
//!
//! One predicate and one order for the failover controller, `promote --dry-run` and status.

use std::cmp::Ordering;

use crate::proto::control::{Beat, ControlState, Member};
use crate::types::NodeId;

/// Whether `member` could be elected now; otherwise why not, as the end of the sentence "n2 can't be master: ...".
///
/// `beat` is its newest one; whether that is too old to count is the caller's to say first.
/// A node that merely lags is eligible: it fetches what it lacks before it opens.
pub fn eligible(member: &Member, beat: &Beat, state: &ControlState) -> Result<(), String> {
    if member.role != "voter" {
        return Err(format!("it is a {}, not a voter", member.role));
    }
    if !member.may_be_master {
        return Err("its configuration says may_be_master = false".to_owned());
    }
    if !beat.suspect.is_empty() {
        return Err(format!("it is suspect: {}", beat.suspect));
    }
    if !beat.failing.is_empty() {
        return Err(format!("it is failing: {}", beat.failing));
    }
    if beat.leaving {
        return Err("it is stopping".to_owned());
    }
    right_file(beat, state)
}

/// A node whose file is of another generation must rebase first: its positions compare with nobody's.
fn right_file(beat: &Beat, state: &ControlState) -> Result<(), String> {
    let Some(position) = &beat.position else {
        return Err("it has not said where its file is yet".to_owned());
    };
    // Before the first election there is no agreed file; whoever has the data brings it in.
    let Some(current) = state.generations.last() else {
        return Ok(());
    };
    match position.generation.cmp(&current.number) {
        Ordering::Less => Err(format!(
            "its file is of generation {}, and {} is current: it rebases first",
            position.generation, current.number
        )),
        Ordering::Greater => Err(format!(
            "its file is of generation {}, which was never agreed; {} is current",
            position.generation, current.number
        )),
        // An empty hash: the generation's base was not agreed on yet (first start).
        Ordering::Equal
            if !current.base_hash.is_empty() && position.base_hash != current.base_hash =>
        {
            Err(format!("its file of generation {} has another base", current.number))
        }
        Ordering::Equal => Ok(()),
    }
}

/// What an election compares of one node that is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// Chain epoch and seq of its position: the only thing that matters for safety.
    pub order: (u64, u64),
    /// The administrator asked for this one.
    pub requested: bool,
    pub priority: i64,
    /// Is the present master.
    pub master: bool,
}

impl Candidate {
    /// The greater one wins. Never equal for two nodes: the lower node number is the last resort.
    pub fn compare(&self, other: &Candidate) -> Ordering {
        self.order
            .cmp(&other.order)
            .then(self.requested.cmp(&other.requested))
            .then(self.priority.cmp(&other.priority))
            .then(self.master.cmp(&other.master))
            .then(other.node.cmp(&self.node))
    }

    /// Why `winner` comes before this one, for people; `winner_name` is its name.
    pub fn loses_because(&self, winner: &Candidate, winner_name: &str) -> String {
        if self.order != winner.order {
            let behind = winner.order.1.saturating_sub(self.order.1);
            if self.order.0 != winner.order.0 {
                format!("{winner_name} has data of a later epoch ({})", winner.order.0)
            } else if behind == 1 {
                format!("it is 1 transaction behind {winner_name}")
            } else {
                format!("it is {behind} transactions behind {winner_name}")
            }
        } else if winner.requested && !self.requested {
            format!("same position, but {winner_name} was asked for")
        } else if self.priority != winner.priority {
            format!(
                "same position, but {winner_name} has priority {} and it has {}",
                winner.priority, self.priority
            )
        } else if winner.master {
            format!("same position and priority, and {winner_name} is the present master")
        } else {
            format!("same position and priority; {winner_name} comes first by number")
        }
    }
}

/// Whom an election picks.
pub fn winner(candidates: &[Candidate]) -> Option<Candidate> {
    candidates.iter().copied().max_by(Candidate::compare)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::GenerationRecord;
    use crate::proto::replication::{Position, Tip};

    fn member() -> Member {
        Member { id: 2, role: "voter".into(), may_be_master: true, ..Default::default() }
    }

    fn beat() -> Beat {
        let tip = Tip { epoch: 3, seq: 10, offset: 99, chain: vec![1; 20].into() };
        let position = Position { generation: 2, base_hash: vec![7; 20].into(), tip: Some(tip) };
        Beat { position: Some(position), ..Default::default() }
    }

    fn state() -> ControlState {
        let current =
            GenerationRecord { number: 2, base_hash: vec![7; 20].into(), ..Default::default() };
        ControlState { generations: vec![current], ..Default::default() }
    }

    fn why_not(member: &Member, beat: &Beat) -> String {
        eligible(member, beat, &state()).unwrap_err()
    }

    #[test]
    fn a_clean_voter_in_the_current_generation_is_eligible() {
        assert_eq!(eligible(&member(), &beat(), &state()), Ok(()));
    }

    #[test]
    fn membership_rules_come_first() {
        let learner = Member { role: "learner".into(), ..member() };
        assert_eq!(why_not(&learner, &beat()), "it is a learner, not a voter");
        let barred = Member { may_be_master: false, ..member() };
        assert!(why_not(&barred, &beat()).contains("may_be_master"));
    }

    #[test]
    fn suspect_failing_and_leaving_nodes_are_not() {
        let suspect = Beat { suspect: "bad chain at 9".into(), ..beat() };
        assert_eq!(why_not(&member(), &suspect), "it is suspect: bad chain at 9");
        let failing = Beat { failing: "disk full".into(), ..beat() };
        assert_eq!(why_not(&member(), &failing), "it is failing: disk full");
        let leaving = Beat { leaving: true, ..beat() };
        assert_eq!(why_not(&member(), &leaving), "it is stopping");
    }

    #[test]
    fn the_file_must_be_the_agreed_one() {
        let mut old = beat();
        old.position.as_mut().unwrap().generation = 1;
        assert!(why_not(&member(), &old).contains("rebases first"));
        let mut ahead = beat();
        ahead.position.as_mut().unwrap().generation = 3;
        assert!(why_not(&member(), &ahead).contains("never agreed"));
        let mut other = beat();
        other.position.as_mut().unwrap().base_hash = vec![8; 20].into();
        assert!(why_not(&member(), &other).contains("another base"));
        assert!(why_not(&member(), &Beat::default()).contains("has not said"));
    }

    #[test]
    fn before_the_first_election_any_file_will_do() {
        assert_eq!(eligible(&member(), &beat(), &ControlState::default()), Ok(()));
    }

    fn candidate(node: u64, order: (u64, u64)) -> Candidate {
        let node = NodeId(node);
        Candidate { node, order, requested: false, priority: 0, master: false }
    }

    #[test]
    fn position_beats_everything_then_wish_priority_master_and_number() {
        let behind =
            Candidate { requested: true, priority: 9, master: true, ..candidate(1, (3, 10)) };
        let ahead = candidate(2, (3, 11));
        let later_epoch = candidate(3, (4, 1));
        assert_eq!(winner(&[behind, ahead]).unwrap().node, NodeId(2));
        assert_eq!(winner(&[behind, ahead, later_epoch]).unwrap().node, NodeId(3));
        assert!(behind.loses_because(&ahead, "n2").starts_with("it is 1 transaction behind n2"));
        assert!(ahead.loses_because(&later_epoch, "n3").contains("later epoch (4)"));

        let plain = candidate(1, (3, 10));
        let wished = Candidate { requested: true, ..candidate(2, (3, 10)) };
        let preferred = Candidate { priority: 5, ..candidate(3, (3, 10)) };
        let master = Candidate { master: true, ..candidate(4, (3, 10)) };
        assert_eq!(winner(&[plain, master]).unwrap().node, NodeId(4));
        assert_eq!(winner(&[plain, master, preferred]).unwrap().node, NodeId(3));
        assert_eq!(winner(&[plain, master, preferred, wished]).unwrap().node, NodeId(2));
        assert_eq!(winner(&[candidate(5, (3, 10)), plain]).unwrap().node, NodeId(1));
        assert!(winner(&[]).is_none());
        assert!(plain.loses_because(&wished, "n2").contains("asked for"));
        assert!(plain.loses_because(&preferred, "n3").contains("priority 5"));
        assert!(plain.loses_because(&master, "n4").contains("present master"));
        assert!(candidate(5, (3, 10)).loses_because(&plain, "n1").contains("by number"));
    }
}
