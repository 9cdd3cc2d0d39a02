//! The newest common point of two files.
//!
//! Whoever is behind or aside shows ends of its own transactions, newest first: the last few, then by halving down to
//! its seal. The other compares each with its own bytes at that place. Between the newest match and the oldest mismatch
//! above it finer points are shown, until the two are neighbours. A few messages suffice for any length of history.

use crate::types::{Seq, Tip};

/// At most so many points in a message.
pub const POINTS_MAX: usize = 32;
/// So many of the newest are shown one by one.
const DENSE: u64 = 8;

/// Which seqs to show, newest first, for a file that reaches from `seal` to `tip`.
pub fn coarse(seal: Seq, tip: Seq) -> Vec<Seq> {
    let mut seqs = Vec::new();
    let mut at = tip.0;
    let mut stride = 1;
    while at > seal.0 && seqs.len() + 1 < POINTS_MAX {
        seqs.push(Seq(at));
        if tip.0 - at >= DENSE {
            stride *= 2;
        }
        at = at.saturating_sub(stride);
    }
    seqs.push(seal);
    seqs
}

/// Which seqs to show between a match and a mismatch above it, newest first, the match itself last.
pub fn fine(matched: Seq, mismatch: Seq) -> Vec<Seq> {
    let between = mismatch.0.saturating_sub(matched.0 + 1);
    let count = between.min(POINTS_MAX as u64 - 1);
    let mut seqs: Vec<Seq> =
        (1..=count).rev().map(|i| Seq(matched.0 + (i * between).div_ceil(count))).collect();
    seqs.push(matched);
    seqs
}

/// What a comparison found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    pub point: Tip,
    /// The oldest shown point above it that did not match.
    pub newer_mismatch: Option<Tip>,
}

impl Match {
    /// No point between the two is left to try.
    pub fn is_exact(&self) -> bool {
        self.newer_mismatch.is_none_or(|tip| tip.seq <= self.point.seq.next())
    }
}

/// Compares points, newest first, with a file; `None` if not even the last is in it.
pub fn newest_match<E>(
    points: &[Tip],
    mut is_mine: impl FnMut(&Tip) -> Result<bool, E>,
) -> Result<Option<Match>, E> {
    let mut newer_mismatch = None;
    for point in points {
        if is_mine(point)? {
            return Ok(Some(Match { point: *point, newer_mismatch }));
        }
        newer_mismatch = Some(*point);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Chain, Epoch};

    fn point(seq: Seq, fork: u64) -> Tip {
        let history = if seq.0 > fork { 1 } else { 0 };
        Tip { epoch: Epoch(1), seq, offset: 100 + seq.0, chain: Chain([history; 20]) }
    }

    /// Two histories that part after `fork`: how many messages until the common point is exact?
    fn rounds_to_find(seal: u64, tip: u64, fork: u64) -> (Seq, u32) {
        let mut shown = coarse(Seq(seal), Seq(tip));
        for round in 1.. {
            let points: Vec<Tip> = shown.iter().map(|seq| point(*seq, fork)).collect();
            assert!(points.len() <= POINTS_MAX && points.is_sorted_by(|a, b| a.seq > b.seq));
            let found = newest_match(&points, |tip| Ok::<_, ()>(tip.chain == Chain::ZERO));
            let found = found.unwrap().expect("the seal is common");
            if found.is_exact() {
                return (found.point.seq, round);
            }
            shown = fine(found.point.seq, found.newer_mismatch.unwrap().seq);
        }
        unreachable!()
    }

    #[test]
    fn every_fork_of_a_short_history_is_found_exactly() {
        for tip in 5..120 {
            for fork in 5..=tip {
                assert_eq!(rounds_to_find(5, tip, fork).0, Seq(fork), "tip {tip} fork {fork}");
            }
        }
    }

    #[test]
    fn a_fork_in_a_long_history_takes_few_messages() {
        for fork in [7, 8, 1_000, 123_456, 9_999_990, 9_999_999, 10_000_000] {
            let (found, rounds) = rounds_to_find(7, 10_000_000, fork);
            assert_eq!(found, Seq(fork));
            assert!(rounds <= 7, "{rounds} rounds for a fork at {fork}");
        }
    }
}
