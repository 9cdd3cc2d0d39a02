//! Reading a whole shelf file once, front to back, and judging what is wrong with it.
//!
//! A `Scan` walks base, offset map and transactions in steps of bounded work, proves every chain on its way and
//! shows what it finds to a visitor. It is what opening, adopting, verifying and packing are made of. Only
//! one transaction is ever held in memory; the base is read record by record.
//!
//! The judgement that matters is between *torn* (the file ends inside its last transaction: a crash cut an append
//! short, and nothing was ever promised of it) and *corrupt* (something that was whole is no longer). When a
//! transaction does not fit into what is left of the file, its length may lie: so the rest is searched for a
//! whole chain record, which a torn append cannot hold. The file may have got its length before its bytes: sectors that
//! never reached the disk read as zeros, and where they begin the file ends. Whatever is in doubt is corrupt, since
//! corruption is reported and tears are cut off.

use std::sync::Arc;

use sha1::{Digest, Sha1};

use super::ShelfError;
use super::offset_map::{MAP_HEAD, MapShape, OffsetMap, Sums};
use super::reader::{READ, Reader};
use super::transaction::{
    CHAIN_RECORD_LEN, Kind, PREAMBLE, RECORD_HEAD, RecordAt, SEAL_RECORD_LEN, SealInfo, TxError,
    TxMeta, check_chain, parse_chain_record, parse_into, parse_plain_into, u64_at,
};
use crate::storage::{DiskError, DiskFile};
use crate::types::{Chain, Oid, Seq, Tip};

/// What a shelf file begins with.
pub(crate) const PREFIX: &[u8; 8] = b"SHELF-1\n";
/// Offset of the base transaction's first record.
const BASE_START: u64 = 16;
/// A disk writes no less than this at once.
const SECTOR: u64 = 512;

/// What a scan shows to its visitor.
pub(crate) enum Found<'a> {
    /// A record of the base transaction. `offset` is that of its length field.
    Base { oid: Oid, offset: u64 },
    /// A whole transaction of stock Durus, which a later seal may cover; `bytes` long.
    Plain { offset: u64, bytes: u64, records: &'a [RecordAt] },
    /// A seal whose hash of everything before it is right.
    Seal { offset: u64, meta: TxMeta, tip: Tip },
    /// A transaction whose chain is right; `bytes` begin at `offset`.
    Chained { offset: u64, bytes: &'a [u8], records: &'a [RecordAt], meta: TxMeta, tip: Tip },
}

/// A file that ends inside its last transaction: everything from `offset` on, `len` bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Torn {
    pub offset: u64,
    pub len: u64,
}

/// How a scan came to its end without an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub torn: Option<Torn>,
    /// Stock Durus has appended from here on, and no later seal covers it.
    pub foreign: Option<u64>,
}

/// What a step of a scan came to.
pub(crate) enum Progress {
    More,
    /// `stop_after` has been reached.
    Stopped,
    End(End),
}

enum Phase {
    Start,
    Base,
    Map,
    Tail,
}

/// See the module.
pub(crate) struct Scan {
    reader: Reader,
    file: Arc<dyn DiskFile>,
    phase: Phase,
    /// Everything before this has been read and accepted.
    at: u64,
    base_end: u64,
    base_records: u64,
    map: Option<(MapShape, Sums)>,
    /// Of every byte before `at`; None once there is a seal, or if none is expected.
    whole: Option<Sha1>,
    sealed: Option<(SealInfo, Tip)>,
    time_us: u64,
    /// Where unchained transactions began, after a seal.
    foreign: Option<u64>,
    /// Whether they hold more than zeros.
    foreign_records: bool,
    /// Where the run of empty transactions directly before `at` has its last one.
    last_empty: Option<u64>,
    stop_after: Option<Seq>,
    records: Vec<RecordAt>,
}

impl Scan {
    /// A scan of the file as long as it is now.
    pub fn new(file: Arc<dyn DiskFile>, stop_after: Option<Seq>) -> Result<Scan, ShelfError> {
        let end = file.len()?;
        Ok(Scan {
            reader: Reader::new(file.clone(), end),
            file,
            phase: Phase::Start,
            at: 0,
            base_end: 0,
            base_records: 0,
            map: None,
            whole: Some(Sha1::new()),
            sealed: None,
            time_us: 0,
            foreign: None,
            foreign_records: false,
            last_empty: None,
            stop_after,
            records: Vec::new(),
        })
    }

    /// A scan of all of a file that nobody writes to. One that does not end in a chain is not hashed on the way: either it
    /// has no seal that would be proved by the hash, or it is about to be refused, and is read twice for that.
    pub fn still(file: Arc<dyn DiskFile>) -> Result<Scan, ShelfError> {
        let mut scan = Scan::new(file, None)?;
        if !ends_in_chain(&scan.file, scan.reader.end())? {
            scan.whole = None;
        }
        Ok(scan)
    }

    /// Goes on in a file that has grown, to a later seq.
    pub fn go_on(&mut self, stop_after: Option<Seq>) -> Result<(), ShelfError> {
        self.stop_after = stop_after;
        self.reader = Reader::new(self.file.clone(), self.file.len()?);
        Ok(())
    }

    /// Bytes accepted and bytes in all.
    pub fn position(&self) -> (u64, u64) {
        (self.at, self.reader.end())
    }

    pub fn file(&self) -> Arc<dyn DiskFile> {
        self.file.clone()
    }

    /// The offset map, once it has been read whole.
    pub fn map(&self) -> Option<OffsetMap> {
        let (shape, sums) = self.map.as_ref().filter(|(shape, _)| self.at >= shape.end())?;
        Some(OffsetMap::proved(&self.file, *shape, sums))
    }

    pub fn base_records(&self) -> u64 {
        self.base_records
    }

    /// The last seal, and the newest proved tip after it.
    pub fn sealed(&self) -> Option<(SealInfo, Tip)> {
        self.sealed
    }

    /// Has it come upon unchained transactions after the last seal?
    pub fn in_foreign(&self) -> bool {
        // Zeros alone are nobody's transactions: a page that never reached the disk reads like empty ones.
        self.foreign.is_some() && self.foreign_records
    }

    /// SHA-1 of every byte of a file without a seal, as far as it was accepted. None if it is not being hashed.
    pub fn whole_hash(&self) -> Option<Chain> {
        self.whole.clone().map(|whole| Chain(whole.finalize().into()))
    }

    /// Time of the newest chained transaction, in microseconds since 1970-01-01 UTC.
    pub fn time_us(&self) -> u64 {
        self.time_us
    }

    /// Runs to the end.
    pub fn finish(&mut self, visit: &mut dyn FnMut(Found<'_>)) -> Result<End, ShelfError> {
        loop {
            match self.step(u64::MAX, visit)? {
                Progress::More => {}
                Progress::Stopped => return Ok(End { torn: None, foreign: None }),
                Progress::End(end) => return Ok(end),
            }
        }
    }

    /// Reads about `budget` bytes further.
    pub fn step(
        &mut self,
        budget: u64,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<Progress, ShelfError> {
        let until = self.at.saturating_add(budget);
        loop {
            match self.phase {
                Phase::Start => self.start()?,
                Phase::Base => self.base_record(visit)?,
                Phase::Map => self.pass_map(until)?,
                Phase::Tail => {
                    if self.stops_here()? {
                        return Ok(Progress::Stopped);
                    }
                    if let Some(end) = self.transaction(visit)? {
                        return Ok(Progress::End(end));
                    }
                }
            }
            if self.at >= until {
                return Ok(Progress::More);
            }
        }
    }

    fn start(&mut self) -> Result<(), ShelfError> {
        let head = BASE_START as usize;
        if self.reader.end() < BASE_START || self.reader.bytes(0, 8)? != PREFIX {
            return Err(ShelfError::NotShelf { name: self.name() });
        }
        let len = u64_at(self.reader.bytes(0, head)?, 8).unwrap_or_default();
        self.base_end = BASE_START.saturating_add(len);
        if self.base_end > self.reader.end() {
            return Err(self.corrupt("the base transaction runs past the end of the file"));
        }
        self.accept(BASE_START)?;
        self.phase = if len == 0 { Phase::Map } else { Phase::Base };
        Ok(())
    }

    fn base_record(&mut self, visit: &mut dyn FnMut(Found<'_>)) -> Result<(), ShelfError> {
        let offset = self.at;
        let why = "a record of the base transaction contradicts itself";
        if self.base_end - offset < RECORD_HEAD as u64 {
            return Err(self.corrupt(why));
        }
        let head = self.reader.bytes(offset, RECORD_HEAD)?;
        let field = |at| u64_at(head, at).unwrap_or_default();
        let (len, oid, inner) = (field(0), field(8), field(16));
        let data_len = field(20) & u64::from(u32::MAX);
        let refs_len = len.checked_sub(20 + data_len);
        let inside = len <= self.base_end - offset - 8 && refs_len.is_some_and(|n| n % 8 == 0);
        if !inside || oid != inner || oid == u64::MAX {
            return Err(self.corrupt(why));
        }
        self.accept(offset + RECORD_HEAD as u64 + data_len)?;
        self.base_refs(offset, offset + 8 + len)?;
        self.base_records += 1;
        visit(Found::Base { oid: Oid(oid), offset });
        if self.at == self.base_end {
            self.phase = Phase::Map;
        }
        Ok(())
    }

    /// The references of the base record at `offset`: what is left of it, up to `end`.
    fn base_refs(&mut self, offset: u64, end: u64) -> Result<(), ShelfError> {
        while self.at < end {
            let piece = (end - self.at).min(READ as u64) as usize;
            let (refs, _) = self.reader.bytes(self.at, piece)?.as_chunks::<8>();
            if refs.contains(&Oid::CHAIN.0.to_be_bytes()) {
                self.at = offset;
                return Err(self.corrupt("a record of the base refers to the reserved oid"));
            }
            self.accept(self.at + piece as u64)?;
        }
        Ok(())
    }

    fn pass_map(&mut self, until: u64) -> Result<(), ShelfError> {
        if self.map.is_none() {
            let bad = "there is no whole offset map after the base transaction";
            if self.reader.end() - self.at < MAP_HEAD as u64 {
                return Err(self.corrupt(bad));
            }
            let shape = MapShape::parse(self.at, self.reader.bytes(self.at, MAP_HEAD)?);
            let shape = shape.filter(|shape| shape.end() <= self.reader.end());
            let shape = shape.ok_or_else(|| self.corrupt(bad))?;
            self.accept(shape.slots_start())?;
            self.map = Some((shape, Sums::new(&shape)));
        }
        let Some((shape, sums)) = &mut self.map else { unreachable!("made above") };
        let to = shape.end().min(until.max(self.at + READ as u64));
        while self.at < to {
            let piece = (to - self.at).min(READ as u64) as usize;
            let bytes = self.reader.bytes(self.at, piece)?;
            sums.update(bytes);
            if let Some(whole) = &mut self.whole {
                whole.update(bytes);
            }
            self.at += piece as u64;
        }
        if self.at == shape.end() {
            self.phase = Phase::Tail;
        }
        Ok(())
    }

    /// Hashes everything up to `to`, in pieces that fit the buffer, and moves there.
    fn accept(&mut self, to: u64) -> Result<(), ShelfError> {
        if let Some(whole) = &mut self.whole {
            let mut at = self.at;
            while at < to {
                let piece = (to - at).min(READ as u64) as usize;
                whole.update(self.reader.bytes(at, piece)?);
                at += piece as u64;
            }
        }
        self.at = to;
        Ok(())
    }

    /// Has the wanted seq been reached? Unchained transactions after it belong to it if a later seal has the same.
    fn stops_here(&mut self) -> Result<bool, ShelfError> {
        let reached = match (self.stop_after, self.sealed) {
            (Some(seq), Some((_, tip))) => tip.seq >= seq && self.foreign.is_none(),
            _ => false,
        };
        if !reached {
            return Ok(false);
        }
        let Some(len) = self.next_len()? else { return Ok(true) };
        let bytes = self.reader.bytes(self.at, len)?;
        Ok(len == 8 || parse_plain_into(bytes, &mut self.records).is_err())
    }

    /// Bytes of the transaction at `at`; None if it is not all there.
    fn next_len(&mut self) -> Result<Option<usize>, ShelfError> {
        let rest = self.reader.end() - self.at;
        if rest < 8 {
            return Ok(None);
        }
        let len = u64_at(self.reader.bytes(self.at, 8)?, 0).unwrap_or_default();
        let whole = len.saturating_add(8);
        Ok(usize::try_from(whole).ok().filter(|_| whole <= rest))
    }

    /// One transaction, or the end.
    fn transaction(&mut self, visit: &mut dyn FnMut(Found<'_>)) -> Result<Option<End>, ShelfError> {
        if self.at == self.reader.end() {
            return self.end(None).map(Some);
        }
        let Some(len) = self.next_len()? else {
            return self.judge(None, "its length runs past the end of the file").map(Some);
        };
        let offset = self.at;
        let end = offset + len as u64;
        let bytes = self.reader.bytes(offset, len)?;
        match parse_into(bytes, &mut self.records) {
            Ok((meta, chain, _)) => {
                let tip = Tip { epoch: meta.epoch, seq: meta.seq, offset: end, chain };
                let end = match meta.kind {
                    Kind::Seal(info) => self.seal(info, meta, tip, visit).map(|()| None)?,
                    _ => self.chained(meta, tip, visit)?,
                };
                self.last_empty = None;
                Ok(end)
            }
            Err(TxError::NotChained) => match parse_plain_into(bytes, &mut self.records) {
                Ok(_) => self.plain(len, visit).map(|()| None),
                Err(why) => self.judge(Some(end), &why.to_string()).map(Some),
            },
            Err(why) => self.judge(Some(end), &why.to_string()).map(Some),
        }
    }

    fn seal(
        &mut self,
        info: SealInfo,
        meta: TxMeta,
        tip: Tip,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<(), ShelfError> {
        let before = match self.whole_hash() {
            Some(hash) => hash,
            None => hash_before(&self.file, self.at)?,
        };
        let bytes = self.reader.bytes(self.at, (tip.offset - self.at) as usize)?;
        if let Err(why) = check_chain(&before, bytes, &tip.chain) {
            return Err(self.corrupt(&why.to_string()));
        }
        if meta.seq != info.cut {
            return Err(self.corrupt("a seal whose seq is not its cut"));
        }
        if let Some((old, last)) = self.sealed {
            let follows = info.generation.0 == old.generation.0.saturating_add(1)
                && (info.cut, info.previous_chain, tip.epoch) == (last.seq, last.chain, last.epoch);
            if !follows || meta.time_us != self.time_us {
                return Err(self.corrupt("a seal that does not follow the generation before it"));
            }
        }
        self.whole = None;
        self.sealed = Some((info, tip));
        self.time_us = meta.time_us;
        self.foreign = None;
        self.foreign_records = false;
        let offset = std::mem::replace(&mut self.at, tip.offset);
        visit(Found::Seal { offset, meta, tip });
        Ok(())
    }

    fn chained(
        &mut self,
        meta: TxMeta,
        tip: Tip,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<Option<End>, ShelfError> {
        let offset = self.at;
        let Some((info, last)) = self.sealed.filter(|_| self.foreign.is_none()) else {
            return Err(self.corrupt("a chained transaction without a seal before it"));
        };
        let bytes = self.reader.bytes(offset, (tip.offset - offset) as usize)?;
        if let Err(why) = check_chain(&last.chain, bytes, &tip.chain) {
            // Of the chain itself the last bytes can be missing.
            return match self.is_hollow(tip.offset)? {
                true => self.end(Some(offset)).map(Some),
                false => Err(self.corrupt(&why.to_string())),
            };
        }
        if Some(tip.seq.0) != last.seq.0.checked_add(1) {
            let why = format!("seq {} follows seq {}", tip.seq, last.seq);
            return Err(self.corrupt(&why));
        }
        if tip.epoch < last.epoch || meta.time_us < self.time_us {
            return Err(self.corrupt("its epoch or time is less than that of the one before"));
        }
        self.sealed = Some((info, tip));
        self.time_us = meta.time_us;
        self.at = tip.offset;
        visit(Found::Chained { offset, bytes, records: &self.records, meta, tip });
        Ok(None)
    }

    fn plain(&mut self, len: usize, visit: &mut dyn FnMut(Found<'_>)) -> Result<(), ShelfError> {
        let offset = self.at;
        if self.sealed.is_some() {
            self.foreign.get_or_insert(offset);
            self.foreign_records |= !self.records.is_empty();
        }
        self.last_empty = (len == 8).then_some(offset);
        self.accept(offset + len as u64)?;
        visit(Found::Plain { offset, bytes: len as u64, records: &self.records });
        Ok(())
    }

    /// The transaction from `at` to `end` is not what it should be; no end if that is beyond the file's.
    fn judge(&mut self, end: Option<u64>, why: &str) -> Result<End, ShelfError> {
        let from = self.foreign.or(self.last_empty).unwrap_or(self.at);
        if holds_chain_record(&self.file, from, self.reader.end())? {
            return Err(self.corrupt(why));
        }
        // Stock Durus writes a length of 0, then the records, and the length last: what looks like an empty
        // transaction before nonsense is one that it did not finish.
        let is_torn = match end {
            Some(end) => self.last_empty.is_some() || self.is_hollow(end)?,
            None => true,
        };
        match is_torn {
            true => self.end(Some(self.last_empty.unwrap_or(self.at))),
            false => Err(self.corrupt(why)),
        }
    }

    /// Is there nothing but zeros from a sector's start, inside the transaction from `at` to `end`, to the end of the file?
    /// And no whole chain record before them, so that its own length is no lie.
    fn is_hollow(&self, end: u64) -> Result<bool, DiskError> {
        let zeros = trailing_zeros(&self.file, self.at, self.reader.end())?;
        let sector = zeros.next_multiple_of(SECTOR);
        Ok(sector < end && !holds_chain_record(&self.file, self.at, sector)?)
    }

    /// The file is over, or its rest from `torn` on is no whole transaction.
    fn end(&mut self, torn: Option<u64>) -> Result<End, ShelfError> {
        // After a seal, empty transactions alone are what a crash leaves of a file that had grown already. They
        // hold nothing, so there is nothing to adopt.
        let (foreign, torn) = match self.foreign {
            Some(from) if !self.foreign_records => (None, Some(from)),
            foreign => (foreign, torn),
        };
        let end = self.reader.end();
        let torn = torn.map(|offset| Torn { offset, len: end - offset });
        Ok(End { torn, foreign })
    }

    fn name(&self) -> String {
        self.file.name().to_owned()
    }

    fn corrupt(&self, why: &str) -> ShelfError {
        let seq = match self.sealed {
            Some((_, tip)) => Seq(tip.seq.0.saturating_add(1)),
            None => Seq(0),
        };
        ShelfError::Corrupt { name: self.name(), offset: self.at, seq, why: why.to_owned() }
    }
}

/// SHA-1 of the first `end` bytes of a file.
pub(crate) fn hash_before(file: &Arc<dyn DiskFile>, end: u64) -> Result<Chain, DiskError> {
    let mut hash = Sha1::new();
    let mut reader = Reader::new(file.clone(), end);
    let mut at = 0;
    while at < end {
        let piece = (end - at).min(READ as u64) as usize;
        hash.update(reader.bytes(at, piece)?);
        at += piece as u64;
    }
    Ok(Chain(hash.finalize().into()))
}

/// Where the zeros at the end of `from..to` begin.
fn trailing_zeros(file: &Arc<dyn DiskFile>, from: u64, to: u64) -> Result<u64, DiskError> {
    let mut bytes = Vec::new();
    let mut end = to;
    while end > from {
        let start = from.max(end.saturating_sub(READ as u64));
        bytes.resize((end - start) as usize, 0);
        file.read_at(start, &mut bytes)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(from)
}

/// Is there a whole chain record anywhere in `from..to`? A torn append cannot hold one, as it is the last to be
/// written.
fn holds_chain_record(file: &Arc<dyn DiskFile>, from: u64, to: u64) -> Result<bool, DiskError> {
    let mut reader = Reader::new(file.clone(), to);
    let mut at = from;
    while to - at >= CHAIN_RECORD_LEN as u64 {
        // Pieces overlap by all but one byte of the longest record.
        let piece = (to - at).min(READ as u64) as usize;
        let bytes = reader.bytes(at, piece)?;
        let lead = RECORD_HEAD;
        for found in find(bytes, &PREAMBLE).filter(|found| *found >= lead) {
            let record = &bytes[found - lead..];
            for len in [CHAIN_RECORD_LEN, SEAL_RECORD_LEN] {
                if record.get(..len).is_some_and(|record| parse_chain_record(record).is_ok()) {
                    return Ok(true);
                }
            }
        }
        if at + piece as u64 == to {
            break;
        }
        at += (piece - SEAL_RECORD_LEN + 1) as u64;
    }
    Ok(false)
}

/// Are the last bytes before `end` a chain record?
fn ends_in_chain(file: &Arc<dyn DiskFile>, end: u64) -> Result<bool, DiskError> {
    for len in [CHAIN_RECORD_LEN, SEAL_RECORD_LEN] {
        let Some(start) = end.checked_sub(len as u64) else { break };
        let mut record = vec![0; len];
        file.read_at(start, &mut record)?;
        if parse_chain_record(&record).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where `pattern` occurs.
fn find<'a>(bytes: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = pattern[0];
    bytes
        .iter()
        .enumerate()
        .filter(move |(at, byte)| **byte == first && bytes[*at..].starts_with(pattern))
        .map(|(at, _)| at)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
