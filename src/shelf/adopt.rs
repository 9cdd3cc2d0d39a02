//! A plain Durus file becomes one of ours by appending one transaction, its seal.
//!
//! The whole file is checked first: its records, its offset map slot by slot, its transactions. The same plain
//! file gets the same seal everywhere. A file of ours that stock Durus has appended to is adopted the same way:
//! a new seal is put at its end, whose predecessor is again the hash of every byte before it. It is a new
//! generation, because its history says something about seq `cut` that the old one did not.

use super::scan::hash_before;
use super::{Found, Kind, OidMap, Scan, SealInfo, ShelfError, Torn, TxMeta, transaction};
use crate::storage::{Disk, DiskFile};
use crate::types::{Chain, CommitId, Epoch, Generation, Oid, Seq, Tip};

use std::sync::Arc;

/// What `adopt` has made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adopted {
    pub generation: Generation,
    /// The seal, which is the file's new end.
    pub tip: Tip,
    /// Objects in the base.
    pub base_objects: u64,
    /// Transactions of stock Durus between base (or the chained part) and seal.
    pub plain_transactions: u64,
}

/// Checks all of `name` and appends a seal, durably.
///
/// Errors: `AlreadyChained` if there is nothing to adopt, `Torn` if the file has to be cut first (`cut_torn`),
/// `Corrupt` and `NotShelf` if it cannot be adopted. Nothing is written in any of these cases.
pub fn adopt(disk: &dyn Disk, name: &str) -> Result<Adopted, ShelfError> {
    let file = disk.open(name)?;
    let mut base = OidMap::new();
    let mut twice = None;
    let mut plain_transactions = 0;
    let mut scan = Scan::new(file.clone(), None)?;
    let end = scan.finish(&mut |found| match found {
        Found::Base { oid, offset } => {
            if base.insert(oid, offset).is_some() {
                twice.get_or_insert(oid);
            }
        }
        Found::Plain { .. } => plain_transactions += 1,
        Found::Seal { .. } => plain_transactions = 0,
        Found::Chained { .. } => {}
    })?;
    if let Some(Torn { offset, len }) = end.torn {
        return Err(ShelfError::Torn { name: name.to_owned(), offset, len });
    }
    if scan.sealed().is_some() && end.foreign.is_none() {
        return Err(ShelfError::AlreadyChained { name: name.to_owned() });
    }
    check_map(&file, &scan, &base, twice)?;
    let (at, _) = scan.position();
    let Some(meta) = seal_after(&scan) else {
        let why = "no generation can follow the last number there is".to_owned();
        return Err(ShelfError::Corrupt { name: name.to_owned(), offset: at, seq: Seq(0), why });
    };
    let before = match scan.whole_hash() {
        Some(hash) => hash,
        None => hash_before(&file, at)?,
    };
    let seal = transaction::build(&before, &meta, &[]);
    file.write_at(at, &seal.bytes)?;
    file.sync()?;
    let Kind::Seal(info) = meta.kind else { unreachable!("seal_after makes seals") };
    let offset = at + seal.bytes.len() as u64;
    let tip = Tip { epoch: meta.epoch, seq: meta.seq, offset, chain: seal.chain };
    Ok(Adopted {
        generation: info.generation,
        tip,
        base_objects: scan.base_records(),
        plain_transactions,
    })
}

/// Stock Durus finds base objects by the map alone, so it has to agree with the records.
fn check_map(
    file: &Arc<dyn DiskFile>,
    scan: &Scan,
    base: &OidMap,
    twice: Option<Oid>,
) -> Result<(), ShelfError> {
    let corrupt = |offset, why| {
        let name = file.name().to_owned();
        Err(ShelfError::Corrupt { name, offset, seq: Seq(0), why })
    };
    let map = scan.map();
    let start = map.as_ref().map_or(0, |map| map.shape().start);
    if let Some(oid) = twice {
        return corrupt(start, format!("the base holds oid {oid} twice"));
    }
    let Some(map) = map else {
        return corrupt(start, "there is no offset map".to_owned());
    };
    if let Some(oid) = map.first_wrong(|oid| base.get(oid))? {
        return corrupt(start, format!("the offset map is wrong about oid {oid}"));
    }
    match base.last() {
        Some(last) if last.0 >= map.len() => {
            corrupt(start, format!("the offset map has no slot for oid {last}"))
        }
        _ => Ok(()),
    }
}

/// A first seal says nothing but zeros; a later one goes on from the last proved transaction. None: its generation has the
/// greatest number.
fn seal_after(scan: &Scan) -> Option<TxMeta> {
    let (generation, tip) = match scan.sealed() {
        Some((info, tip)) => (Generation(info.generation.0.checked_add(1)?), tip),
        None => (Generation(1), Tip::default()),
    };
    let previous_chain = tip.chain;
    Some(TxMeta {
        kind: Kind::Seal(SealInfo { generation, cut: tip.seq, previous_chain }),
        epoch: tip.epoch,
        seq: tip.seq,
        time_us: scan.time_us(),
        commit_id: CommitId::NONE,
    })
}

/// The seal of a file without history: generation 1, everything else zero.
pub(super) fn first_seal() -> TxMeta {
    let info = SealInfo { generation: Generation(1), cut: Seq(0), previous_chain: Chain::ZERO };
    TxMeta {
        kind: Kind::Seal(info),
        epoch: Epoch(0),
        seq: Seq(0),
        time_us: 0,
        commit_id: CommitId::NONE,
    }
}
