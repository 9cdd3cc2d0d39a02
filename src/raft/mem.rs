//! The log as raft-rs reads it: in memory, holding everything raft-rs was told is stored, durable or not yet.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

pub struct MemLog {
    /// As of the start; raft-rs asks for it once.
    hard_state: HardState,
    conf_state: ConfState,
    /// Index 0: none.
    snapshot: Snapshot,
    /// Contiguous; the first follows the snapshot, or is 1.
    entries: Vec<Entry>,
}

impl MemLog {
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        snapshot: Snapshot,
        entries: Vec<Entry>,
    ) -> MemLog {
        MemLog { hard_state, conf_state, snapshot, entries }
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    fn last(&self) -> u64 {
        self.snapshot_index() + self.entries.len() as u64
    }

    /// Where an index after the snapshot is in `entries`.
    fn at(&self, index: u64) -> usize {
        usize::try_from(index - self.snapshot_index() - 1).expect("entries are in memory")
    }

    /// Replaces everything from the first entry's index on.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let (snapshot, last) = (self.snapshot_index(), self.last());
        let fits = first.index > snapshot && first.index <= last + 1;
        assert!(fits, "entry {} onto snapshot {snapshot}, last {last}", first.index);
        self.entries.truncate(self.at(first.index));
        self.entries.extend_from_slice(entries);
    }

    /// A leader's snapshot in place of everything.
    pub fn install(&mut self, snapshot: Snapshot) {
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Our own snapshot in place of the entries that it covers.
    pub fn compact(&mut self, snapshot: Snapshot) {
        let index = snapshot.get_metadata().index;
        let (present, last) = (self.snapshot_index(), self.last());
        assert!(index > present && index <= last, "snapshot {index} in {present} to {last}");
        self.entries.drain(..=self.at(index));
        self.snapshot = snapshot;
    }
}

impl Storage for MemLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.snapshot_index() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let last = self.last();
        assert!(high <= last + 1, "entries up to {high} of a log up to {last}");
        let mut entries = self.entries[self.at(low)..self.at(high)].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.snapshot_index() {
            return Ok(self.snapshot.get_metadata().term);
        }
        if index < self.snapshot_index() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get(self.at(index));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.snapshot_index() + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let index = self.snapshot_index();
        if index == 0 || index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
