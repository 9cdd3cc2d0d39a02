//! OidUnique: an oid under which an object was made is not given to another while that object may be there.

use std::collections::{BTreeMap, BTreeSet};

use super::client::Book;
use super::ledger::{Ledger, tag_of, tag_text};
use super::parse::{Hash, Kind};

/// Walks the history that ends in `tip`. A pack frees the oids of what it drops.
///
/// # Panics
/// If a transaction makes an object under the oid of another that is there.
pub fn judge(ledger: &Ledger, book: &Book, tip: Hash) {
    let (transactions, seals) = ledger.history(tip);
    let cuts: BTreeMap<u64, Hash> =
        seals.iter().map(|seal| (ledger.txs[seal].seq, *seal)).collect();
    let mut there: BTreeSet<u64> = BTreeSet::new();
    for tx in transactions {
        let tag = tx.objects.iter().find_map(|(_, object)| tag_of(&object.data));
        for oid in tag.and_then(|tag| book.made.get(&tag)).into_iter().flatten() {
            assert!(
                !there.contains(oid),
                "violated OidUnique: {} at seq {} makes an object under oid {oid}, which is another's",
                tag_text(&tag.expect("it made something")),
                tx.seq
            );
        }
        there.extend(tx.objects.iter().map(|(oid, _)| *oid));
        if let Some(seal) = cuts.get(&tx.seq) {
            debug_assert!(matches!(ledger.txs[seal].kind, Kind::Seal { .. }));
            there = ledger.bases[seal].keys().copied().collect();
        }
    }
}
