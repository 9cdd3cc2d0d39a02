//! Where the objects are that came after the base, and how much of the file is garbage.
//!
//! Garbage is what a pack would not keep. Here it is counted without a look at the disk, as transactions are indexed:
//! every record whose object is stored again later (it is taken to be as long as the one that replaces it), and what is
//! round the records of a transaction: its length and its chain. (An epoch start has no records and does not count: else
//! the elections of packs alone would make enough garbage for the next pack of a small file.) Objects that nothing refers to any more are garbage
//! too; only a mark finds those, and `Core::garbage_bytes` adds what the last one found.

use roaring::RoaringTreemap;

use super::RecordAt;
use super::oid_map::OidMap;
use super::transaction::CHAIN_RECORD_LEN;
use crate::types::Oid;

/// A transaction's length field, and the chain record.
const OVERHEAD: u64 = 8 + CHAIN_RECORD_LEN as u64;

#[derive(Default)]
pub(super) struct Index {
    /// Of what came after the base.
    pub map: OidMap,
    /// Which objects the base has.
    pub base: RoaringTreemap,
    /// Bytes.
    pub garbage: u64,
}

impl Index {
    /// The same base, and nothing after it.
    pub fn anew(&self) -> Index {
        Index { base: self.base.clone(), ..Index::default() }
    }

    /// A transaction that begins at `offset`.
    pub fn add(&mut self, offset: u64, records: &[RecordAt]) {
        if !records.is_empty() {
            self.garbage += OVERHEAD;
        }
        for record in records {
            let before = self.map.insert(record.oid, offset + record.offset);
            if before.is_some() || self.base.contains(record.oid.0) {
                self.garbage += 8 + record.len;
            }
        }
    }

    /// Every object there is.
    pub fn oids(&self) -> RoaringTreemap {
        &self.base | &self.map.iter().map(|(oid, _)| oid.0).collect::<RoaringTreemap>()
    }

    pub fn get(&self, oid: Oid) -> Option<u64> {
        self.map.get(oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(oid: u64, len: u64) -> RecordAt {
        RecordAt { oid: Oid(oid), offset: 8, len }
    }

    #[test]
    fn what_is_stored_again_is_garbage_and_so_is_what_is_round_it() {
        let mut index = Index { base: [0, 1].into_iter().collect(), ..Index::default() };
        index.add(1000, &[record(5, 92)]);
        assert_eq!(index.garbage, OVERHEAD, "a new object replaces nothing");
        index.add(2000, &[record(1, 92), record(5, 192)]);
        assert_eq!(index.garbage, 2 * OVERHEAD + 100 + 200);
        assert_eq!(index.oids().iter().collect::<Vec<_>>(), [0, 1, 5]);
        index.add(3000, &[]);
        assert_eq!(index.garbage, 2 * OVERHEAD + 100 + 200, "an epoch start");
        let again = index.anew();
        assert!(again.map.is_empty() && again.base.len() == 2 && again.garbage == 0);
    }
}
