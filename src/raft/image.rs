//! What a log amounts to: the newest hard state, the newest snapshot and the entries after it.
//!
//! Both the durable log and its recovery are a sequence of records applied to an image; a compacted log is an image
//! written as one record.

use std::collections::VecDeque;

use crate::proto::control::{RaftEntry, RaftHardState, RaftRecord, RaftSnapshot};

/// Indexes and terms from here on are nonsense; Raft counts both up.
const NUMBER_MAX: u64 = 1 << 62;

/// A record that cannot follow what went before it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("entry {found} does not follow or replace uncommitted ones of {first} to {last}")]
    Gap { found: u64, first: u64, last: u64 },
    #[error("entry {index} of term {term} after one of term {previous}")]
    TermFell { index: u64, term: u64, previous: u64 },
    #[error("snapshot at {found} is older than the one at {present}")]
    OldSnapshot { found: u64, present: u64 },
    #[error("commit {commit} is beyond the last entry {last}")]
    CommitBeyond { commit: u64, last: u64 },
    #[error("term or commit went back: {0}")]
    WentBack(&'static str),
    #[error("index or term {0} is beyond all bounds")]
    Bounds(u64),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogImage {
    pub hard_state: RaftHardState,
    pub snapshot: Option<RaftSnapshot>,
    /// Contiguous; the first follows the snapshot, or is 1.
    pub entries: VecDeque<RaftEntry>,
}

impl LogImage {
    /// The index that the snapshot covers; 0 without one.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index)
    }

    pub fn last_index(&self) -> u64 {
        self.entries.back().map_or(self.snapshot_index(), |entry| entry.index)
    }

    /// Term at an index of the log, the snapshot's included; None for others.
    fn term(&self, index: u64) -> Option<u64> {
        if index == self.snapshot_index() {
            return Some(self.snapshot.as_ref().map_or(0, |snapshot| snapshot.term));
        }
        let at = index.checked_sub(self.snapshot_index() + 1)?;
        Some(self.entries.get(usize::try_from(at).ok()?)?.term)
    }

    /// Takes a record in. After an error the image is unusable.
    pub fn apply(&mut self, record: &RaftRecord) -> Result<(), ImageError> {
        if let Some(snapshot) = &record.snapshot {
            self.take_snapshot(snapshot)?;
        }
        if !record.entries.is_empty() {
            self.take_entries(&record.entries)?;
        }
        if let Some(hard_state) = &record.hard_state {
            if hard_state.term >= NUMBER_MAX {
                return Err(ImageError::Bounds(hard_state.term));
            }
            if hard_state.term < self.hard_state.term {
                return Err(ImageError::WentBack("term"));
            }
            if hard_state.commit < self.hard_state.commit {
                return Err(ImageError::WentBack("commit"));
            }
            self.hard_state = *hard_state;
        }
        // a snapshot is of committed entries, also when the hard state says so only later
        self.hard_state.commit = self.hard_state.commit.max(self.snapshot_index());
        if self.hard_state.commit > self.last_index() {
            let (commit, last) = (self.hard_state.commit, self.last_index());
            return Err(ImageError::CommitBeyond { commit, last });
        }
        Ok(())
    }

    /// Raft's rule: entries after the snapshot stay only if the log agrees with the snapshot where it ends.
    fn take_snapshot(&mut self, snapshot: &RaftSnapshot) -> Result<(), ImageError> {
        let present = self.snapshot_index();
        if snapshot.index.max(snapshot.term) >= NUMBER_MAX {
            return Err(ImageError::Bounds(snapshot.index.max(snapshot.term)));
        }
        if snapshot.index < present {
            return Err(ImageError::OldSnapshot { found: snapshot.index, present });
        }
        if self.term(snapshot.index) == Some(snapshot.term) {
            let covered = usize::try_from(snapshot.index - present).expect("entries are in memory");
            self.entries.drain(..covered);
        } else {
            self.entries.clear();
        }
        self.snapshot = Some(snapshot.clone());
        Ok(())
    }

    fn take_entries(&mut self, entries: &[RaftEntry]) -> Result<(), ImageError> {
        let (first, last) = (self.snapshot_index() + 1, self.last_index());
        let found = entries[0].index;
        let greatest = entries.iter().map(|entry| entry.index.max(entry.term)).max().unwrap_or(0);
        if greatest >= NUMBER_MAX {
            return Err(ImageError::Bounds(greatest));
        }
        // Committed entries are never replaced. A snapshot of this very record is not in the commit index yet.
        if found <= self.hard_state.commit || found < first || found > last + 1 {
            return Err(ImageError::Gap { found, first, last });
        }
        self.entries.truncate(usize::try_from(found - first).expect("entries are in memory"));
        let mut previous = self.term(found - 1).expect("just truncated to there");
        for (entry, index) in entries.iter().zip(found..) {
            if entry.index != index {
                return Err(ImageError::Gap { found: entry.index, first, last: index - 1 });
            }
            if entry.term < previous {
                return Err(ImageError::TermFell { index, term: entry.term, previous });
            }
            previous = entry.term;
            self.entries.push_back(entry.clone());
        }
        Ok(())
    }

    /// The one record that makes this image out of an empty one.
    pub fn to_record(&self) -> RaftRecord {
        RaftRecord {
            hard_state: Some(self.hard_state),
            entries: self.entries.iter().cloned().collect(),
            snapshot: self.snapshot.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> RaftEntry {
        RaftEntry { index, term, ..Default::default() }
    }

    fn entries(of: &[(u64, u64)]) -> RaftRecord {
        let entries = of.iter().map(|&(index, term)| entry(index, term)).collect();
        RaftRecord { entries, ..Default::default() }
    }

    fn snapshot(index: u64, term: u64) -> RaftRecord {
        let snapshot = Some(RaftSnapshot { index, term, ..Default::default() });
        RaftRecord { snapshot, ..Default::default() }
    }

    fn of(records: &[RaftRecord]) -> Result<LogImage, ImageError> {
        let mut image = LogImage::default();
        records.iter().try_for_each(|record| image.apply(record))?;
        Ok(image)
    }

    #[test]
    fn later_entries_replace_from_their_first_index() {
        let image = of(&[entries(&[(1, 1), (2, 1), (3, 1)]), entries(&[(2, 2)])]).unwrap();
        assert_eq!(image.entries, [entry(1, 1), entry(2, 2)]);
    }

    #[test]
    fn snapshot_keeps_the_tail_only_if_the_log_agrees_with_it() {
        let log = entries(&[(1, 1), (2, 1), (3, 2)]);
        let image = of(&[log.clone(), snapshot(2, 1)]).unwrap();
        assert_eq!(image.entries, [entry(3, 2)]);
        assert_eq!(image.hard_state.commit, 2);
        assert!(of(&[log.clone(), snapshot(2, 2)]).unwrap().entries.is_empty());
        assert!(of(&[log, snapshot(9, 2)]).unwrap().entries.is_empty());
    }

    #[test]
    fn an_image_is_one_record() {
        let image = of(&[entries(&[(1, 1), (2, 1), (3, 2)]), snapshot(2, 1)]).unwrap();
        assert_eq!(of(&[image.to_record()]).unwrap(), image);
    }

    #[test]
    fn nonsense_is_refused() {
        // Found by fuzzing: the next election's term was counted up from the greatest there is.
        let hard_state = RaftHardState { term: u64::MAX, ..Default::default() };
        let last = RaftRecord { hard_state: Some(hard_state), ..Default::default() };
        assert_eq!(of(&[last]).unwrap_err(), ImageError::Bounds(u64::MAX));
        assert_eq!(of(&[entries(&[(1, u64::MAX)])]).unwrap_err(), ImageError::Bounds(u64::MAX));
        // Found by fuzzing: its entries were counted from before the snapshot, which wraps round.
        let under = RaftRecord { entries: vec![entry(3, 1)], ..snapshot(5, 1) };
        assert_eq!(of(&[under]).unwrap_err(), ImageError::Gap { found: 3, first: 6, last: 5 });
        assert_eq!(of(&[snapshot(u64::MAX, 1)]).unwrap_err(), ImageError::Bounds(u64::MAX));
        let gap = ImageError::Gap { found: 3, first: 1, last: 1 };
        assert_eq!(of(&[entries(&[(1, 1)]), entries(&[(3, 1)])]).unwrap_err(), gap);
        let gap = ImageError::Gap { found: 4, first: 1, last: 2 };
        assert_eq!(of(&[entries(&[(1, 1), (2, 1), (4, 1)])]).unwrap_err(), gap);
        let fell = ImageError::TermFell { index: 2, term: 1, previous: 2 };
        assert_eq!(of(&[entries(&[(1, 2), (2, 1)])]).unwrap_err(), fell);
        let old = ImageError::OldSnapshot { found: 4, present: 5 };
        assert_eq!(of(&[snapshot(5, 1), snapshot(4, 1)]).unwrap_err(), old);
        let hard_state = Some(RaftHardState { term: 1, vote: 0, commit: 7 });
        let record = RaftRecord { hard_state, ..Default::default() };
        let beyond = ImageError::CommitBeyond { commit: 7, last: 0 };
        assert_eq!(of(&[record]).unwrap_err(), beyond);
    }
}
