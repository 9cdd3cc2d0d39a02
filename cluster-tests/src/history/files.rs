//! The committed order, as the nodes' files hold it: every generation that any node has kept, stitched together.
//!
//! Read by a parser that shares no code with the nodes. Transactions are known by their chains, so it does not matter
//! which node kept which file, nor that a node which fetched a base has none of what came before.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use super::{Oid, Step};
use crate::sim::parse::{self, Hash, Kind, Object, Tx};

/// Everything found in files, by chain.
#[derive(Default)]
pub struct Files {
    txs: HashMap<Hash, Tx>,
    /// What a generation begins with, by its seal.
    bases: HashMap<Hash, BTreeMap<Oid, Object>>,
}

impl Files {
    /// Takes in all generation files of a node's data directory.
    pub fn read(&mut self, data: &Path) {
        let list = fs::read_dir(data).unwrap_or_else(|e| panic!("list {}: {e}", data.display()));
        for entry in list {
            let path = entry.expect("list a data directory").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".durus") && !path.is_symlink() {
                let bytes = fs::read(&path).unwrap_or_else(|e| panic!("read {name}: {e}"));
                self.take(&bytes);
            }
        }
    }

    /// Takes in one file up to what a crash may have torn, and says where its whole part ends.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Hash> {
        let (mut objects, mut at) = parse::base(bytes).ok()?;
        // A plain file that was adopted may have transactions before its seal.
        while let Some(end) = plain_transaction(bytes, at, &mut objects) {
            at = end;
        }
        let (seal, mut at) = parse::transaction(bytes, at, None).ok()?;
        let mut tip = seal.chain;
        self.bases.entry(seal.chain).or_insert(objects);
        self.txs.entry(seal.chain).or_insert(seal);
        while let Ok((tx, end)) = parse::transaction(bytes, at, Some(tip)) {
            (tip, at) = (tx.chain, end);
            self.txs.entry(tx.chain).or_insert(tx);
        }
        Some(tip)
    }

    /// What was there at first, and all that came after it up to the transaction of this chain.
    ///
    /// # Panics
    /// If a file is missing in between.
    pub fn order(&self, tip: Hash) -> (BTreeMap<Oid, Object>, Vec<Step<'_>>) {
        let mut order = Vec::new();
        let mut at = tip;
        loop {
            let tx = self.txs.get(&at).expect("some node has kept every generation");
            let Kind::Seal { generation, previous, .. } = tx.kind else {
                order.push(Step::Transaction { seq: tx.seq, objects: &tx.objects });
                at = tx.prev;
                continue;
            };
            let base = &self.bases[&at];
            if tx.seq == 0 {
                order.reverse();
                return (base.clone(), order);
            }
            // The generation before may be gone from every disk by now.
            order.push(Step::Pack { generation, base, switch: None });
            at = previous;
        }
    }
}

/// Adds the objects of a transaction without a chain record; where it ends. None if there is no such one.
fn plain_transaction(
    bytes: &[u8],
    at: usize,
    objects: &mut BTreeMap<Oid, Object>,
) -> Option<usize> {
    let len = usize::try_from(parse::be64(bytes, at)?).ok()?;
    let end = (at + 8).checked_add(len).filter(|end| *end <= bytes.len())?;
    let mut found = Vec::new();
    let mut pos = at + 8;
    while pos < end {
        let next = pos + 8 + usize::try_from(parse::be64(bytes, pos)?).ok()?;
        let (oid, object) = parse::object(bytes.get(pos + 16..next)?).ok()?;
        if oid == u64::MAX {
            return None;
        }
        found.push((oid, object));
        pos = next;
    }
    objects.extend(found);
    Some(end)
}
