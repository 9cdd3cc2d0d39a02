//! One open generation file with its index.
//!
//! A shelf has two frontiers. `tip` is the newest transaction it has been given, whether or not it is on the disk
//! or committed. `indexed` is the newest that loads see. A caller appends at the tip, writes the bytes itself, tells
//! `written_to` when the disk has them, and `index_to` when they may be seen.
//!
//! Objects of the base are found through the offset map on disk, as stock Durus does it; what came after it, through
//! an `OidMap` in memory. Of every chained transaction 8 bytes are kept: where it ends. The rest is read back when
//! somebody asks. Bytes not yet written are read from memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringTreemap;

use super::adopt::first_seal;
use super::before::Before;
use super::index::Index;
use super::offset_map::{MapShape, OffsetMap};
use super::oid_map::OidMap;
use super::open::Opening;
use super::scan::{PREFIX, Torn, hash_before};
use super::transaction::{
    self, CHAIN_RECORD_LEN, ParsedTx, SealInfo, TxMeta, parse_chain_record, u64_at,
};
use super::{RecordAt, ShelfError};
use crate::storage::{Disk, DiskFile};
use crate::types::{Chain, Generation, Oid, Seq, Tip};

/// Bytes read at once for a load; a longer record takes a second read.
const LOAD_READ: u64 = 1024;
/// Bytes read at a time when the index is made anew.
const REINDEX_READ: u64 = 1 << 20;
/// Chain records that are kept in memory.
const RECENT_MAX: usize = 1024;
/// Bytes copied at a time when a torn tail is kept aside.
const COPY: u64 = 1 << 20;

/// See the module.
pub struct Shelf {
    name: String,
    file: Arc<dyn DiskFile>,
    map: OffsetMap,
    seal: SealInfo,
    seal_meta: TxMeta,
    base_hash: Chain,
    base_records: u64,
    /// Oids below the map's end that the base does not use; None if the map could not be read.
    base_unused: Option<RoaringTreemap>,
    /// Where the transaction of seq cut + i ends; the first is the seal's.
    ends: Vec<u64>,
    tip: Tip,
    /// Time of the tip.
    time_us: u64,
    indexed: Seq,
    index: Index,
    /// While somebody reads a state before `indexed`.
    before: Option<Before>,
    /// Transactions above `indexed`, oldest first.
    unindexed: VecDeque<Unindexed>,
    /// Bytes at and after the first one's offset are not known to be in the file.
    pending: VecDeque<Pending>,
    /// What the newest transactions' chain records say, oldest first: peers' and clients' questions are about these.
    recent: VecDeque<(TxMeta, Chain)>,
}

struct Unindexed {
    offset: u64,
    meta: TxMeta,
    records: Vec<RecordAt>,
}

struct Pending {
    offset: u64,
    bytes: Bytes,
}

impl Pending {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Do the lengths inside a pack-record agree with its own?
fn fits_record(record: &[u8]) -> bool {
    let Some(data_len) = record.get(8..12) else { return false };
    let data_len = u32::from_be_bytes(data_len.try_into().expect("four bytes")) as usize;
    let references = record.len().checked_sub(12 + data_len);
    references.is_some_and(|bytes| bytes % 8 == 0)
}

/// What is known of a file that has been read to its end.
pub(super) struct Parts {
    pub name: String,
    pub file: Arc<dyn DiskFile>,
    pub map: OffsetMap,
    pub seal: SealInfo,
    pub seal_meta: TxMeta,
    pub base_hash: Chain,
    pub base_records: u64,
    pub base_unused: Option<RoaringTreemap>,
    pub ends: Vec<u64>,
    pub tip: Tip,
    pub time_us: u64,
    pub index: Index,
}

/// What `Shelf::open` found.
pub struct Opened {
    pub shelf: Shelf,
    /// The file ends inside its last transaction. Nothing may be appended before `Shelf::cut_torn`.
    pub torn: Option<Torn>,
}

/// A transaction that has become visible.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    pub seq: Seq,
    pub meta: TxMeta,
    /// What it stored, in its order.
    pub oids: Vec<Oid>,
}

impl Shelf {
    /// Makes a new file without objects: an empty base and its seal. Durable, name included, when it returns.
    pub fn create(disk: &dyn Disk, name: &str) -> Result<Shelf, ShelfError> {
        if disk.exists(name)? {
            return Err(ShelfError::Exists { name: name.to_owned() });
        }
        let unfinished = format!("{name}.new");
        let file = disk.create(&unfinished)?;
        let empty_map = MapShape::new(16, None).expect("an empty map fits");
        file.write_at(0, &[&PREFIX[..], &[0; 8], &empty_map.head()].concat())?;
        let before = hash_before(&file, empty_map.end())?;
        let seal = transaction::build(&before, &first_seal(), &[]);
        file.write_at(empty_map.end(), &seal.bytes)?;
        file.sync()?;
        disk.rename(&unfinished, name)?;
        disk.sync_dir()?;
        Ok(Shelf::open(disk, name)?.shelf)
    }

    /// Reads and proves the whole file, and indexes everything in it. `Opening` does the same in steps.
    pub fn open(disk: &dyn Disk, name: &str) -> Result<Opened, ShelfError> {
        let mut opening = Opening::new(disk, name)?;
        loop {
            if let Some(opened) = opening.step(u64::MAX)? {
                return Ok(opened);
            }
        }
    }

    /// For the repair of a damaged file: opens what is proved of it, and says what is wrong with the rest, all of which
    /// is then `torn`. `cut_torn` keeps it aside. A node that does this has lost transactions that it may have
    /// acknowledged. No error means that the file is sound.
    pub fn open_proved(
        disk: &dyn Disk,
        name: &str,
    ) -> Result<(Opened, Option<ShelfError>), ShelfError> {
        let mut opening = Opening::new(disk, name)?;
        let damage = loop {
            match opening.step(u64::MAX) {
                Ok(Some(opened)) => return Ok((opened, None)),
                Ok(None) => {}
                Err(damage @ ShelfError::Corrupt { .. }) => break damage,
                Err(error) => return Err(error),
            }
        };
        match opening.proved()? {
            Some(opened) => Ok((opened, Some(damage))),
            None => Err(damage),
        }
    }

    pub(super) fn from_parts(parts: Parts) -> Shelf {
        let Parts { name, file, map, seal, seal_meta, base_hash, .. } = parts;
        Shelf {
            name,
            file,
            map,
            seal,
            seal_meta,
            base_hash,
            base_records: parts.base_records,
            base_unused: parts.base_unused,
            ends: parts.ends,
            tip: parts.tip,
            time_us: parts.time_us,
            indexed: parts.tip.seq,
            index: parts.index,
            before: None,
            unindexed: VecDeque::new(),
            pending: VecDeque::new(),
            recent: VecDeque::new(),
        }
    }

    /// Copies a torn tail to the new file `keep_as`, durably, and then cuts it off, durably.
    pub fn cut_torn(
        disk: &dyn Disk,
        name: &str,
        torn: &Torn,
        keep_as: &str,
    ) -> Result<(), ShelfError> {
        let file = disk.open(name)?;
        let kept = disk.create(keep_as)?;
        let mut done = 0;
        while done < torn.len {
            let mut piece = vec![0; (torn.len - done).min(COPY) as usize];
            file.read_at(torn.offset + done, &mut piece)?;
            kept.write_at(done, &piece)?;
            done += piece.len() as u64;
        }
        kept.sync()?;
        disk.sync_dir()?;
        file.truncate(torn.offset)?;
        file.sync()?;
        Ok(())
    }

    /// The file was renamed.
    pub fn set_name(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn file(&self) -> Arc<dyn DiskFile> {
        self.file.clone()
    }

    pub fn generation(&self) -> Generation {
        self.seal.generation
    }

    /// Chain of the seal: covers everything before and of it.
    pub fn base_hash(&self) -> Chain {
        self.base_hash
    }

    pub fn cut(&self) -> Seq {
        self.seal.cut
    }

    pub fn seal(&self) -> SealInfo {
        self.seal
    }

    /// Offset of the end of the seal: where the first transaction after it begins.
    pub fn base_end(&self) -> u64 {
        self.ends[0]
    }

    /// The end of the newest transaction that was appended.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// About how much of what loads see a pack would not keep, as far as the records themselves tell (`index`).
    pub fn garbage_bytes(&self) -> u64 {
        self.index.garbage
    }

    /// The newest transaction that loads see.
    pub fn indexed(&self) -> Seq {
        self.indexed
    }

    /// Time of the tip, in microseconds since 1970-01-01 UTC; the next transaction's must not be less.
    pub fn last_time_us(&self) -> u64 {
        self.time_us
    }

    /// Does it hold no object at all, visible or not?
    pub fn is_blank(&self) -> bool {
        self.base_records == 0
            && self.index.map.is_empty()
            && self.unindexed.iter().all(|tx| tx.records.is_empty())
    }

    /// The end of any transaction from the seal to the tip; None outside of them.
    pub fn tip_at(&self, seq: Seq) -> Result<Option<Tip>, ShelfError> {
        if seq == self.tip.seq {
            return Ok(Some(self.tip));
        }
        let Some((offset, meta, chain)) = self.chain_record(seq)? else { return Ok(None) };
        Ok(Some(Tip { epoch: meta.epoch, seq, offset, chain }))
    }

    /// The transaction that ends at this offset, the seal's among them; None if none does.
    pub fn tip_ending_at(&self, offset: u64) -> Result<Option<Tip>, ShelfError> {
        match self.ends.binary_search(&offset) {
            Ok(nth) => self.tip_at(Seq(self.seal.cut.0 + nth as u64)),
            Err(_) => Ok(None),
        }
    }

    /// What the chain record of any transaction from the seal to the tip says; None outside of them.
    pub fn meta_at(&self, seq: Seq) -> Result<Option<TxMeta>, ShelfError> {
        Ok(self.chain_record(seq)?.map(|(_, meta, _)| meta))
    }

    /// Does this file have exactly this transaction, at this place, with this history?
    pub fn find(&self, tip: &Tip) -> Result<bool, ShelfError> {
        match self.end_of(tip.seq) {
            Some(offset) if offset == tip.offset => Ok(self.tip_at(tip.seq)? == Some(*tip)),
            _ => Ok(false),
        }
    }

    /// Where the transaction of this seq ends; None outside of seal and tip.
    pub fn end_of(&self, seq: Seq) -> Option<u64> {
        let nth = seq.0.checked_sub(self.seal.cut.0)?;
        self.ends.get(usize::try_from(nth).ok()?).copied()
    }

    fn chain_record(&self, seq: Seq) -> Result<Option<(u64, TxMeta, Chain)>, ShelfError> {
        let Some(end) = self.end_of(seq) else { return Ok(None) };
        if seq == self.seal.cut {
            return Ok(Some((end, self.seal_meta, self.base_hash)));
        }
        let known = self.tip.seq.0.checked_sub(seq.0).and_then(|back| {
            let nth = self.recent.len().checked_sub(usize::try_from(back).ok()? + 1)?;
            self.recent.get(nth)
        });
        if let Some((meta, chain)) = known {
            return Ok(Some((end, *meta, *chain)));
        }
        let at = end - CHAIN_RECORD_LEN as u64;
        let (meta, chain) = parse_chain_record(&self.bytes(at, CHAIN_RECORD_LEN as u64)?)
            .map_err(|why| corrupt(&self.name, at, seq, &why.to_string()))?;
        if meta.seq != seq {
            return Err(corrupt(&self.name, at, seq, &format!("it says seq {}", meta.seq)));
        }
        Ok(Some((end, meta, chain)))
    }

    /// May this transaction, whose chain fits, come next? What is appended must be what a scan takes: everything that a
    /// peer sends is asked about here.
    pub fn check_next(&self, tx: &ParsedTx) -> Result<(), String> {
        let TxMeta { kind, epoch, seq, time_us, .. } = tx.meta;
        if let transaction::Kind::Seal(_) = kind {
            return Err(format!("a seal, seq {seq}, after {}", self.tip));
        }
        if self.tip.seq.0.checked_add(1) != Some(seq.0) || epoch < self.tip.epoch {
            return Err(format!("seq {seq} of epoch {epoch} after {}", self.tip));
        }
        if time_us < self.time_us {
            return Err(format!("time {time_us} of seq {seq} after {}", self.time_us));
        }
        Ok(())
    }

    /// Extends the tip. `bytes` are those of `tx`, whose chain has been verified against the tip or was built on it.
    /// They are held until `written_to`. Writing them at the old tip's offset is the caller's work.
    pub fn append(&mut self, tx: &ParsedTx, bytes: Bytes) {
        if let Err(why) = self.check_next(tx) {
            panic!("appended to an open file: {why}");
        }
        assert_eq!(tx.len, bytes.len() as u64, "bytes of another transaction: {:?}", tx.meta);
        let offset = self.tip.offset;
        self.tip = tx.tip(offset);
        self.time_us = tx.meta.time_us;
        self.ends.push(self.tip.offset);
        self.pending.push_back(Pending { offset, bytes });
        self.recent.push_back((tx.meta, tx.chain));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        self.unindexed.push_back(Unindexed { offset, meta: tx.meta, records: tx.records.clone() });
    }

    /// The file has everything before `offset`: reads go there, and the bytes are dropped.
    /// Only completions of writes made after the last `cut_to` may be told.
    pub fn written_to(&mut self, offset: u64) {
        while self.pending.front().is_some_and(|first| first.end() <= offset) {
            self.pending.pop_front();
        }
    }

    /// Bytes of whole transactions from `offset` on, where one ends: at least one, and as many as fit into `max_len`.
    /// Nothing at the tip.
    pub fn read_range(&self, offset: u64, max_len: u64) -> Result<Bytes, ShelfError> {
        let Ok(first) = self.ends.binary_search(&offset) else {
            return Err(ShelfError::NotBoundary { name: self.name.clone(), offset });
        };
        let fitting = self.ends[first..].partition_point(|end| *end - offset <= max_len);
        let last = (first + fitting.max(2) - 1).min(self.ends.len() - 1);
        self.bytes(offset, self.ends[last] - offset)
    }

    /// Bytes from anywhere in the chained part on, as far as the file goes: not checked, and cut anywhere.
    pub fn read_part(&self, offset: u64, len_max: u64) -> Result<Bytes, ShelfError> {
        if offset < self.base_end() || offset > self.tip.offset {
            return Err(ShelfError::NotBoundary { name: self.name.clone(), offset });
        }
        self.bytes(offset, len_max.min(self.tip.offset - offset))
    }

    /// Whether a transaction begins at `offset`, and is not longer than that.
    pub fn has_short(&self, offset: u64, len_max: u64) -> bool {
        let first = self.ends.binary_search(&offset);
        let end = first.ok().and_then(|first| self.ends.get(first + 1));
        end.is_some_and(|end| *end - offset <= len_max)
    }

    /// From now on states from the present one on can be read (`load_before`), or none but the newest.
    pub fn keep_before(&mut self, keep: bool) {
        match keep {
            true => _ = self.before.get_or_insert_with(|| Before::new(self.indexed)),
            false => self.before = None,
        }
    }

    /// Makes everything up to `seq` visible to loads, and says what that was.
    pub fn index_to(&mut self, seq: Seq) -> Vec<Applied> {
        assert!(seq <= self.tip.seq, "index to seq {seq} with the tip at {}", self.tip);
        let mut applied = Vec::new();
        while self.unindexed.front().is_some_and(|tx| tx.meta.seq <= seq) {
            let Some(tx) = self.unindexed.pop_front() else { break };
            for record in &tx.records {
                if let Some(before) = &mut self.before {
                    before.note(record.oid, tx.meta.seq, self.index.get(record.oid));
                }
            }
            self.index.add(tx.offset, &tx.records);
            let oids = tx.records.iter().map(|record| record.oid).collect();
            self.indexed = tx.meta.seq;
            applied.push(Applied { seq: tx.meta.seq, meta: tx.meta, oids });
        }
        applied
    }

    /// Drops every transaction above `seq`. Cutting the file is the caller's work. If some of them were visible, the
    /// index is made anew from the file, which takes time.
    pub fn cut_to(&mut self, seq: Seq) -> Result<(), ShelfError> {
        let Some(tip) = self.tip_at(seq)? else {
            panic!("cut to seq {seq}, not between the seal at {} and {}", self.seal.cut, self.tip);
        };
        let time_us = self.meta_at(seq)?.map_or(0, |meta| meta.time_us);
        self.ends.truncate((seq.0 - self.seal.cut.0) as usize + 1);
        self.tip = tip;
        self.time_us = time_us;
        while self.pending.back().is_some_and(|last| last.offset >= tip.offset) {
            self.pending.pop_back();
        }
        while self.unindexed.back().is_some_and(|last| last.meta.seq > seq) {
            self.unindexed.pop_back();
        }
        while self.recent.back().is_some_and(|(meta, _)| meta.seq > seq) {
            self.recent.pop_back();
        }
        if self.indexed > seq {
            self.reindex()?;
            self.indexed = seq;
            self.before = None;
        }
        Ok(())
    }

    fn reindex(&mut self) -> Result<(), ShelfError> {
        let mut index = self.index.anew();
        let mut records = Vec::new();
        let mut at = self.map.shape().end();
        while at < self.tip.offset {
            let have = REINDEX_READ.min(self.tip.offset - at);
            let mut bytes = self.bytes(at, have)?;
            let whole = u64_at(&bytes, 0).unwrap_or_default().saturating_add(8);
            if whole > self.tip.offset - at {
                return Err(corrupt(&self.name, at, self.tip.seq, "its length has changed"));
            }
            if whole > have {
                bytes = self.bytes(at, whole)?;
            }
            let mut done = 0;
            for tx in transaction::split_transactions(&bytes).map_while(Result::ok) {
                transaction::list_records(tx, &mut records)
                    .map_err(|why| corrupt(&self.name, at, self.tip.seq, &why.to_string()))?;
                index.add(at + done, &records);
                done += tx.len() as u64;
            }
            at += done;
        }
        self.index = index;
        Ok(())
    }

    /// The record of `oid` as of `indexed`, beginning with its own oid; None if there is no such object.
    pub fn load(&self, oid: Oid) -> Result<Option<Bytes>, ShelfError> {
        match self.offset_of(oid)? {
            Some(offset) => self.load_at(oid, offset).map(Some),
            None => Ok(None),
        }
    }

    /// As it was after transaction `seq`; the outer None: that is not known any more.
    pub fn load_before(&self, oid: Oid, seq: Seq) -> Result<Option<Option<Bytes>>, ShelfError> {
        if seq == self.indexed {
            return self.load(oid).map(Some);
        }
        let Some(before) = self.before.as_ref().filter(|before| before.knows(seq)) else {
            return Ok(None);
        };
        let offset = match before.place(oid, seq) {
            Some(Some(offset)) => Some(offset),
            Some(None) => self.map.get(oid)?,
            None => self.offset_of(oid)?,
        };
        Ok(Some(offset.map(|offset| self.load_at(oid, offset)).transpose()?))
    }

    fn load_at(&self, oid: Oid, offset: u64) -> Result<Bytes, ShelfError> {
        let limit = match self.pending.front() {
            Some(first) if offset < first.offset => first.offset,
            _ => self.tip.offset,
        };
        let wrong = |why: &str| Err(corrupt(&self.name, offset, self.indexed, why));
        let mut bytes = self.bytes(offset, LOAD_READ.min(limit - offset))?;
        let (Some(len), Some(outer)) = (u64_at(&bytes, 0), u64_at(&bytes, 8)) else {
            return wrong("no record where one should be");
        };
        if outer != oid.0 || len < 8 || len > limit - offset - 8 {
            return wrong(&format!("oid {oid} should be there"));
        }
        if bytes.len() as u64 - 8 < len {
            bytes = self.bytes(offset, 8 + len)?;
        }
        // A disk can give back another place than it was asked for, and without a word.
        let record = bytes.slice(16..8 + len as usize);
        let whole = u64_at(&bytes, 0) == Some(len)
            && u64_at(&record, 0) == Some(oid.0)
            && fits_record(&record);
        match whole {
            true => Ok(record),
            false => wrong(&format!("the record of oid {oid} contradicts itself")),
        }
    }

    /// Is there such an object as of `indexed`?
    pub fn contains(&self, oid: Oid) -> Result<bool, ShelfError> {
        Ok(self.offset_of(oid)?.is_some())
    }

    fn offset_of(&self, oid: Oid) -> Result<Option<u64>, ShelfError> {
        match self.index.get(oid) {
            Some(offset) => Ok(Some(offset)),
            None => Ok(self.map.get(oid)?),
        }
    }

    /// Every object, visible or not.
    pub fn oids(&self) -> RoaringTreemap {
        let mut oids = self.index.oids();
        oids.extend(self.unindexed.iter().flat_map(|tx| &tx.records).map(|record| record.oid.0));
        oids
    }

    /// The first oid above everything that the file uses or has a slot for.
    pub fn next_free(&self) -> Oid {
        let not_indexed = self.unindexed.iter().flat_map(|tx| &tx.records);
        let used = not_indexed.map(|record| record.oid).chain(self.index.map.last()).max();
        let above = used.map_or(0, |oid| oid.0.saturating_add(1));
        Oid(above.max(self.map.len()))
    }

    /// Every oid in the base is below.
    pub fn map_end(&self) -> Oid {
        Oid(self.map.len())
    }

    /// Oids below the map's end that the base does not use; objects may have been made in them since.
    /// None if the map could not be read.
    pub fn base_unused(&self) -> Option<&RoaringTreemap> {
        self.base_unused.as_ref()
    }

    /// Unused oids below the map's end in the order in which stock Durus gives them out, without those used since.
    pub fn holes(&self) -> Result<Vec<Oid>, ShelfError> {
        let mut holes = self.map.holes()?;
        let mut used = OidMap::new();
        for record in self.unindexed.iter().flat_map(|tx| &tx.records) {
            used.insert(record.oid, 1);
        }
        holes.retain(|oid| !self.index.map.contains(*oid) && !used.contains(*oid));
        Ok(holes)
    }

    /// Bytes before the tip, from the file and from what is pending.
    fn bytes(&self, offset: u64, len: u64) -> Result<Bytes, ShelfError> {
        let end = offset + len;
        let pending_start = self.pending.front().map_or(u64::MAX, |first| first.offset);
        let first = self.pending.partition_point(|tx| tx.end() <= offset);
        if let Some(tx) = self.pending.get(first)
            && tx.offset <= offset
            && end <= tx.end()
        {
            return Ok(tx.bytes.slice((offset - tx.offset) as usize..(end - tx.offset) as usize));
        }
        let in_file = end.min(pending_start).saturating_sub(offset) as usize;
        let mut bytes = Vec::with_capacity(len as usize);
        if in_file > 0 {
            bytes.resize(in_file, 0);
            self.file.read_at(offset, &mut bytes)?;
        }
        for tx in self.pending.range(first..).take_while(|tx| tx.offset < end) {
            let from = offset.saturating_sub(tx.offset) as usize;
            let to = (end.min(tx.end()) - tx.offset) as usize;
            bytes.extend_from_slice(&tx.bytes[from..to]);
        }
        Ok(bytes.into())
    }
}

pub(super) fn corrupt(name: &str, offset: u64, seq: Seq, why: &str) -> ShelfError {
    ShelfError::Corrupt { name: name.to_owned(), offset, seq, why: why.to_owned() }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
