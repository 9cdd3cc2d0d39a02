//! One generation file on one disk, read by our own parser as it grows.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::disk::{Entry, Platter};
use crate::sim::parse::{self, Hash, Kind, Object, Tx};

/// One generation file on one disk, as a power failure would leave it.
#[derive(Default)]
pub(super) struct File {
    pub(super) parsed_to: usize,
    /// Of the whole file.
    pub(super) len: usize,
    pub(super) seal: Option<Hash>,
    pub(super) generation: u64,
    pub(super) cut: u64,
    /// After the seal: seq, end, chain.
    pub(super) txs: Vec<(u64, usize, Hash)>,
    /// Of the last transaction: epoch and time.
    last: (u64, u64),
    commit_ids: BTreeSet<[u8; 16]>,
}

impl File {
    pub(super) fn tip(&self) -> Option<Hash> {
        self.txs.last().map(|tx| tx.2).or(self.seal)
    }

    pub(super) fn at(&self, seq: u64) -> Option<Hash> {
        if seq == self.cut {
            return self.seal;
        }
        let index = seq.checked_sub(self.cut + 1)? as usize;
        self.txs.get(index).map(|tx| tx.2)
    }
}

/// Was this transaction taken out of the file: is the file shorter now, or another in its place? (What a damaged disk
/// made unreadable was not taken out.)
pub(super) fn is_cut(file: &File, (seq, end, chain): &(u64, usize, Hash)) -> bool {
    match file.at(*seq) {
        Some(found) => found != *chain,
        None => file.len < *end,
    }
}

/// Does an orphan file have the transaction that ends in this chain?
pub(super) fn is_kept(platter: &Platter, chain: &Hash) -> bool {
    platter.durable_names().iter().any(|(name, entry)| match entry {
        Entry::File(number) if name.starts_with("orphans/") => platter
            .inode(*number)
            .is_some_and(|inode| inode.durable().windows(chain.len()).any(|bytes| bytes == chain)),
        _ => false,
    })
}

pub(super) type Found = Vec<(Tx, Option<BTreeMap<u64, Object>>)>;

/// Parses what is new since byte `from`; a torn or broken tail is left for the node to judge.
pub(super) fn read_on(file: &mut File, bytes: &[u8], from: usize) -> Found {
    let mut found = Vec::new();
    if from < file.parsed_to {
        while file.txs.last().is_some_and(|(_, end, _)| *end > from) {
            file.txs.pop();
        }
        file.commit_ids.clear();
        file.last = (0, 0);
        match file.txs.last() {
            Some((_, end, _)) => file.parsed_to = *end,
            None => *file = File::default(),
        }
    }
    if file.seal.is_none() {
        let Ok((objects, seal_at)) = parse::base(bytes) else { return found };
        let Ok((tx, end)) = parse::transaction(bytes, seal_at, None) else { return found };
        let Kind::Seal { generation, cut, .. } = tx.kind else { return found };
        (file.seal, file.generation, file.cut, file.parsed_to) =
            (Some(tx.chain), generation, cut, end);
        file.last = (tx.epoch, tx.time_us);
        found.push((tx, Some(objects)));
    }
    while let Ok((tx, end)) = parse::transaction(bytes, file.parsed_to, file.tip()) {
        let expected = file.txs.last().map_or(file.cut, |tx| tx.0) + 1;
        assert_eq!(tx.seq, expected, "a hole in a durable file");
        let (epoch, time) = file.last;
        assert!(
            tx.epoch >= epoch,
            "violated ChainEpochMonotone: seq {} of epoch {} follows epoch {epoch}",
            tx.seq,
            tx.epoch
        );
        assert!(tx.time_us >= time, "violated ChainTime: it goes back at seq {}", tx.seq);
        file.last = (tx.epoch, tx.time_us);
        if tx.commit_id != [0; 16] {
            assert!(
                file.commit_ids.insert(tx.commit_id),
                "violated ExactlyOnce: a commit id twice in one file, again at seq {}",
                tx.seq
            );
        }
        file.txs.push((tx.seq, end, tx.chain));
        file.parsed_to = end;
        found.push((tx, None));
    }
    found
}
