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
        let (objects, seal_at) = parse::base(bytes).ok()?;
        let (seal, mut at) = parse::transaction(bytes, seal_at, None).ok()?;
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
            order.push(Step::Pack { generation, base });
            at = previous;
        }
    }
}
