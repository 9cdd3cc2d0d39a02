//! Reading a file's history into an index, and walking the references of its objects.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::{JobError, STEP_BYTES};
use crate::shelf::{self, Found, OidMap, Progress, Scan, ShelfError, u64_at};
use crate::storage::{Disk, DiskFile};
use crate::types::{Oid, Seq, Tip};

/// Bytes read around a record. Walks are mostly in the order of the file, so the next ones are often among them.
const WINDOW: u64 = 16 << 10;
/// A buffer that a large record has made larger than this is given back.
const WINDOW_KEEP_MAX: usize = 1 << 20;

/// A file, read and proved from its beginning up to some seq.
pub(super) struct History {
    pub file: Arc<dyn DiskFile>,
    scan: Scan,
    /// Where every object is, as of the end of what was read.
    pub index: OidMap,
    /// Once `watch` was called: every oid that was stored or referred to since.
    pub touched: Option<RoaringTreemap>,
    wanted: Seq,
}

impl History {
    pub fn new(disk: &dyn Disk, name: &str, until: Seq) -> Result<History, JobError> {
        let file = disk.open(name)?;
        let scan = Scan::new(file.clone(), Some(until))?;
        Ok(History { file, scan, index: OidMap::new(), touched: None, wanted: until })
    }

    /// From now on what is touched is noted, and reading goes on to `until`, in the file as long as it is now.
    pub fn aim(&mut self, until: Seq) -> Result<(), JobError> {
        if self.touched.is_none() || self.wanted != until {
            self.touched.get_or_insert_default();
            self.wanted = until;
            self.scan.go_on(Some(until))?;
        }
        Ok(())
    }

    /// The end of the last transaction that was read, and its time.
    pub fn tip(&self) -> (Tip, u64) {
        (self.scan.sealed().map_or_else(Tip::default, |(_, tip)| tip), self.scan.time_us())
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
                if self.scan.sealed().is_none() {
                    return Err(ShelfError::Plain { name: name() }.into());
                }
            }
        }
        if self.tip().0.seq != self.wanted {
            return Err(JobError::NoSuchSeq { name: name(), wanted: self.wanted });
        }
        Ok(true)
    }

    /// Access to the records of what was read.
    pub fn records(&self) -> Records {
        Records { file: self.file.clone(), end: self.position().0, buf: Vec::new(), start: 0 }
    }
}

/// Reads records at the offsets that an index gives.
pub(super) struct Records {
    file: Arc<dyn DiskFile>,
    end: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Records {
    /// The record of `oid` as it is in the file, from its length field on.
    pub fn raw(&mut self, oid: Oid, offset: u64) -> Result<&[u8], JobError> {
        let changed = || JobError::Changed { name: self.file.name().to_owned(), oid, offset };
        let (start, end) = (self.start, self.end);
        let room = end.checked_sub(offset).ok_or_else(changed)?;
        let whole = |buf: &[u8]| {
            let at = usize::try_from(offset.checked_sub(start)?).ok()?;
            let len = u64_at(buf, at)?.checked_add(8)?;
            buf.get(at..)?.get(..usize::try_from(len).ok()?).map(|_| (at, len as usize))
        };
        let (at, len) = match whole(&self.buf) {
            Some(found) => found,
            None => {
                self.read(offset, WINDOW.min(room))?;
                let len = u64_at(&self.buf, 0).and_then(|len| len.checked_add(8));
                let changed =
                    || JobError::Changed { name: self.file.name().to_owned(), oid, offset };
                let len = len.filter(|len| *len <= room).ok_or_else(changed)?;
                if len > self.buf.len() as u64 {
                    self.read(offset, len)?;
                }
                (0, len as usize)
            }
        };
        let raw = &self.buf[at..at + len];
        let sound = raw.len() >= 16
            && u64_at(raw, 8) == Some(oid.0)
            && shelf::check_record(oid, &raw[16..]).is_ok();
        match sound {
            true => Ok(raw),
            false => Err(JobError::Changed { name: self.file.name().to_owned(), oid, offset }),
        }
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<(), JobError> {
        if self.buf.capacity() > WINDOW_KEEP_MAX && len <= WINDOW {
            self.buf = Vec::new();
        }
        self.buf.resize(len as usize, 0);
        self.start = offset;
        let read = self.file.read_at(offset, &mut self.buf);
        if read.is_err() {
            self.buf.clear();
        }
        Ok(read?)
    }
}

/// A walk along references: always the smallest oid that waits.
#[derive(Default)]
pub(super) struct Walk {
    waiting: BinaryHeap<Reverse<u64>>,
    /// Every existing object that was visited or waits.
    pub seen: RoaringTreemap,
}

impl Walk {
    /// A walk that stops at what `seen` holds.
    pub fn beyond(seen: RoaringTreemap) -> Walk {
        Walk { waiting: BinaryHeap::new(), seen }
    }

    /// Makes `oid` wait, unless it was seen or does not exist.
    pub fn add(&mut self, oid: Oid, index: &OidMap) {
        if index.contains(oid) && self.seen.insert(oid.0) {
            self.waiting.push(Reverse(oid.0));
        }
    }

    /// Visits the next object: its oid and its record as it is in the file.
    pub fn next<'a>(
        &mut self,
        index: &OidMap,
        records: &'a mut Records,
    ) -> Result<Option<(Oid, &'a [u8])>, JobError> {
        let Some(Reverse(oid)) = self.waiting.pop() else { return Ok(None) };
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
        (self.seen.len() - self.waiting.len() as u64, index.len())
    }
}
