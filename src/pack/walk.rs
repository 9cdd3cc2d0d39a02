//! Reading a file's history into an index, and walking the references of its objects.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::{JobError, STEP_BYTES};
use crate::shelf::{self, Found, OidMap, Progress, Scan, ShelfError, Torn, u64_at};
use crate::storage::{Disk, DiskFile};
use crate::types::{Generation, Oid, Seq, Tip};

/// Bytes read at a time. What a walk visits next is mostly near in the file, if not next to it.
const BLOCK: u64 = 16 << 10;
/// Blocks that are remembered, by the low bits of their number: 8 MiB.
const BLOCKS: usize = 512;
/// A buffer that a large record has made larger than this is given back.
const LONG_KEEP_MAX: usize = 1 << 20;

/// A file, read and proved from its beginning up to some seq.
pub(super) struct History {
    pub file: Arc<dyn DiskFile>,
    scan: Scan,
    /// Where every object is, as of the end of what was read.
    pub index: OidMap,
    /// Once `watch` was called: every oid that was stored or referred to since.
    pub touched: Option<RoaringTreemap>,
    /// None: all of the file, to which nobody writes, and which may be a plain one of stock Durus.
    wanted: Option<Seq>,
}

impl History {
    pub fn new(disk: &dyn Disk, name: &str, until: Option<Seq>) -> Result<History, JobError> {
        let file = disk.open(name)?;
        let scan = match until {
            Some(_) => Scan::new(file.clone(), until)?,
            None => Scan::still(file.clone())?,
        };
        Ok(History { file, scan, index: OidMap::new(), touched: None, wanted: until })
    }

    /// From now on what is touched is noted, and reading goes on to `until`, in the file as long as it is now.
    pub fn aim(&mut self, until: Seq) -> Result<(), JobError> {
        if self.touched.is_none() || self.wanted != Some(until) {
            self.touched.get_or_insert_default();
            self.wanted = Some(until);
            self.scan.go_on(self.wanted)?;
        }
        Ok(())
    }

    /// The end of the last transaction that was read, and its time.
    pub fn tip(&self) -> (Tip, u64) {
        (self.scan.sealed().map_or_else(Tip::default, |(_, tip)| tip), self.scan.time_us())
    }

    /// The generation of what was read; 0 for a plain file.
    pub fn generation(&self) -> Generation {
        self.scan.sealed().map_or(Generation(0), |(info, _)| info.generation)
    }

    /// Bytes read and bytes in the file.
    pub fn position(&self) -> (u64, u64) {
        self.scan.position()
    }

    /// Reads a piece; true when the wanted seq is reached.
    pub fn step(&mut self) -> Result<bool, JobError> {
        let History { scan, index, touched, .. } = self;
        let progress = scan.step(STEP_BYTES, &mut |found| match found {
            Found::Base { oid, offset } => drop(index.insert(oid, offset)),
            Found::Seal { .. } => {}
            Found::Plain { offset, records, .. } => {
                for at in records {
                    index.insert(at.oid, offset + at.offset);
                }
            }
            Found::Chained { offset, bytes, records, .. } => {
                for at in records {
                    index.insert(at.oid, offset + at.offset);
                    if let Some(touched) = touched {
                        touched.insert(at.oid.0);
                        // the scan has checked the record
                        touched.extend(
                            shelf::refs(at.record(bytes)).into_iter().flatten().map(|oid| oid.0),
                        );
                    }
                }
            }
        })?;
        let name = || self.file.name().to_owned();
        match progress {
            Progress::More => return Ok(false),
            Progress::Stopped => {}
            Progress::End(end) => {
                if let Some(offset) = end.foreign {
                    return Err(ShelfError::ForeignTail { name: name(), offset }.into());
                }
                if let (None, Some(Torn { offset, len })) = (self.wanted, end.torn) {
                    return Err(ShelfError::Torn { name: name(), offset, len }.into());
                }
                if self.wanted.is_some() && self.scan.sealed().is_none() {
                    return Err(ShelfError::Plain { name: name() }.into());
                }
            }
        }
        match self.wanted {
            Some(wanted) if self.tip().0.seq != wanted => {
                Err(JobError::NoSuchSeq { name: name(), wanted })
            }
            _ => Ok(true),
        }
    }

    /// Access to the records of what was read.
    pub fn records(&self) -> Records {
        Records {
            file: self.file.clone(),
            end: self.position().0,
            blocks: vec![Block::default(); BLOCKS],
            long: Vec::new(),
            read: 0,
        }
    }
}

/// Reads records at the offsets that an index gives.
pub(super) struct Records {
    file: Arc<dyn DiskFile>,
    end: u64,
    blocks: Vec<Block>,
    /// A record that does not lie in one block.
    long: Vec<u8>,
    /// Bytes read so far.
    pub read: u64,
}

#[derive(Clone, Default)]
struct Block {
    number: u64,
    /// Empty if there is nothing here yet.
    bytes: Vec<u8>,
}

impl Records {
    /// The record of `oid` as it is in the file, from its length field on.
    pub fn raw(&mut self, oid: Oid, offset: u64) -> Result<&[u8], JobError> {
        let file = self.file.clone();
        let changed = || JobError::Changed { name: file.name().to_owned(), oid, offset };
        let room = self.end.checked_sub(offset).ok_or_else(changed)?;
        let number = offset / BLOCK;
        let at = (offset % BLOCK) as usize;
        let nth = self.block(number)?;
        let len = match u64_at(&self.blocks[nth].bytes, at) {
            Some(len) => len,
            None if room >= 8 => {
                let mut head = [0; 8];
                self.file.read_at(offset, &mut head)?;
                u64::from_be_bytes(head)
            }
            None => return Err(changed()),
        };
        let whole = len.checked_add(8).filter(|whole| *whole <= room).ok_or_else(changed)?;
        let raw = match self.blocks[nth].bytes.get(at..).filter(|rest| rest.len() as u64 >= whole) {
            Some(rest) => &rest[..whole as usize],
            None => {
                if self.long.capacity() > LONG_KEEP_MAX {
                    self.long = Vec::new();
                }
                self.long.resize(whole as usize, 0);
                self.file.read_at(offset, &mut self.long)?;
                self.read += whole;
                &self.long[..]
            }
        };
        let sound = raw.len() >= 16
            && u64_at(raw, 8) == Some(oid.0)
            && shelf::check_record(oid, &raw[16..]).is_ok();
        if sound { Ok(raw) } else { Err(changed()) }
    }

    /// Where the block is among those that are remembered.
    fn block(&mut self, number: u64) -> Result<usize, JobError> {
        let nth = number as usize % BLOCKS;
        let block = &mut self.blocks[nth];
        if block.number != number || block.bytes.is_empty() {
            let start = number * BLOCK;
            block.number = number;
            block.bytes.resize(BLOCK.min(self.end - start) as usize, 0);
            if let Err(error) = self.file.read_at(start, &mut block.bytes) {
                block.bytes.clear();
                return Err(error.into());
            }
            self.read += block.bytes.len() as u64;
        }
        Ok(nth)
    }
}

/// A walk along references: always the smallest oid that waits.
#[derive(Default)]
pub(super) struct Walk {
    waiting: Waiting,
    /// Every existing object that was visited or waits.
    pub seen: RoaringTreemap,
}

impl Walk {
    /// A walk that stops at what `seen` holds.
    pub fn beyond(seen: RoaringTreemap) -> Walk {
        Walk { waiting: Waiting::default(), seen }
    }

    /// Makes `oid` wait, unless it was seen or does not exist.
    pub fn add(&mut self, oid: Oid, index: &OidMap) {
        if index.contains(oid) && self.seen.insert(oid.0) {
            self.waiting.push(oid.0);
        }
    }

    /// Visits the next object: its oid and its record as it is in the file.
    pub fn next<'a>(
        &mut self,
        index: &OidMap,
        records: &'a mut Records,
    ) -> Result<Option<(Oid, &'a [u8])>, JobError> {
        let Some(oid) = self.waiting.pop() else { return Ok(None) };
        let oid = Oid(oid);
        let offset = index.get(oid).expect("only what exists is made to wait");
        let raw = records.raw(oid, offset)?;
        for reference in shelf::refs(&raw[16..]).into_iter().flatten() {
            self.add(reference, index);
        }
        Ok(Some((oid, raw)))
    }

    /// Share of the objects that were visited, roughly: how many, of how many.
    pub fn progress(&self, index: &OidMap) -> (u64, u64) {
        (self.seen.len() - self.waiting.len(), index.len())
    }
}

/// Numbers that come out from the smallest on.
///
/// An object is mostly older than what it refers to, so most of them come in ascending order, and need no heap.
#[derive(Default)]
struct Waiting {
    /// Ascending.
    rising: VecDeque<u64>,
    /// What came when there was a greater one in `rising`.
    others: BinaryHeap<Reverse<u64>>,
}

impl Waiting {
    fn push(&mut self, number: u64) {
        match self.rising.back() {
            Some(last) if *last > number => self.others.push(Reverse(number)),
            _ => self.rising.push_back(number),
        }
    }

    fn pop(&mut self) -> Option<u64> {
        match (self.rising.front(), self.others.peek()) {
            (Some(rising), Some(Reverse(other))) if other < rising => {}
            (None, _) => {}
            _ => return self.rising.pop_front(),
        }
        self.others.pop().map(|Reverse(number)| number)
    }

    fn len(&self) -> u64 {
        (self.rising.len() + self.others.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_smallest_comes_first_in_whatever_order_they_came() {
        let (mut waiting, mut model) = (Waiting::default(), BTreeSet::new());
        for n in 0..10_000_u64 {
            let scrambled = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            // runs that rise, one far ahead of them, and some between and below
            let number = match n % 8 {
                0..5 => n * 1000,
                5 => n * 3000,
                _ => scrambled,
            };
            if model.insert(number) {
                waiting.push(number);
            }
            if scrambled % 5 < 3 {
                assert_eq!(waiting.pop(), model.pop_first());
            }
            assert_eq!(waiting.len(), model.len() as u64);
        }
        while let Some(number) = model.pop_first() {
            assert_eq!(waiting.pop(), Some(number));
        }
        assert_eq!((waiting.pop(), waiting.len()), (None, 0));
    }
}
