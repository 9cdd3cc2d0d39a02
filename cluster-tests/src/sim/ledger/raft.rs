//! RaftLogAgreed: for each index of the Raft log there is one command, for ever, on whichever disks it is called committed.

use std::collections::BTreeMap;

use packmaster::proto::control::RaftRecord;

use super::Ledger;
use crate::sim::parse::{Hash, sha};

/// Of one node's log, what its durable records amount to.
#[derive(Default)]
struct Log {
    /// By index: term and hash of the command.
    entries: BTreeMap<u64, (u64, Hash)>,
    /// Compared up to here.
    compared: u64,
}

#[derive(Default)]
pub(super) struct Agreed {
    logs: BTreeMap<usize, Log>,
    /// By index, what was committed there, and on whose disk that was seen first.
    committed: BTreeMap<u64, (u64, Hash, usize)>,
}

impl Ledger {
    /// The Raft log of `node` is gone, or is what it was: what it holds is not known.
    pub fn raft_log_lost(&mut self, node: usize) {
        self.raft.logs.remove(&node);
    }

    /// A record is durable in both copies of the node's Raft log.
    pub fn on_raft_record(&mut self, node: usize, record: &RaftRecord) {
        let log = self.raft.logs.entry(node).or_default();
        if let Some(snapshot) = &record.snapshot {
            log.entries.retain(|index, _| *index > snapshot.index);
            log.compared = log.compared.max(snapshot.index);
        }
        if let Some(first) = record.entries.first() {
            log.entries.retain(|index, _| *index < first.index);
        }
        for entry in &record.entries {
            log.entries.insert(entry.index, (entry.term, sha(&[&entry.data])));
        }
        let Some(state) = &record.hard_state else { return };
        if state.commit <= log.compared {
            return;
        }
        for (&index, &(term, hash)) in log.entries.range(log.compared + 1..=state.commit) {
            let first = *self.raft.committed.entry(index).or_insert((term, hash, node));
            assert!(
                (first.0, first.1) == (term, hash),
                "violated RaftLogAgreed: node {} has another command committed at index {index} (term {term}) than node {} \
                 (term {})",
                node + 1,
                first.2 + 1,
                first.0
            );
        }
        log.compared = state.commit;
    }
}
