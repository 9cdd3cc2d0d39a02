//! Writing the new base.
//!
//! The records go out in one sequential pass, the offset map after them, and the length of the transaction is put in at
//! last, when it is known. Then the file is read back whole: its hash is the seal's predecessor, so the hash is
//! of what can be read and not of what was meant to be written.

use std::sync::Arc;

use roaring::RoaringTreemap;
use sha1::{Digest, Sha1};

use super::blocks::Lister;
use super::walk::{History, Records, Walk};
use super::{Built, JobError, JobOutcome, Mark, Marked, STEP_BYTES, STEP_OBJECTS, Step, between};
use crate::mutants::{self, Mutant};
use crate::shelf::{self, Kind, MapShape, OidMap, PREFIX, Reader, SealInfo, Stitch, TxMeta};
use crate::storage::{Disk, DiskError, DiskFile};
use crate::types::{Chain, CommitId, Generation, Oid, Seq, Tip};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes written between two syncs of a base, beside a node's commits.
const SYNC_EVERY: u64 = 1 << 20;
/// An offset map has no more slots than this: 16 to 32 GiB.
const MAP_SLOTS_MAX: u64 = 1 << 32;
/// Offset of the base transaction's length, and of its first record.
const LENGTH_AT: u64 = 8;
const RECORDS_AT: u64 = 16;

/// A job that writes the base of generation `generation` as of (P, F) into the file `to`.
pub struct Build {
    generation: Generation,
    to: String,
    /// Bytes of a block, if the blocks are to be hashed.
    block_bytes: Option<u64>,
    /// Bytes read before the base was begun.
    read: u64,
    stage: Stage,
}

enum Stage {
    /// Of a file that nobody writes to: opening it, reading all of it.
    Start(String),
    Read(Box<History>),
    Mark(Mark),
    /// What the root reaches as of F.
    Walk(Box<Base>, Walk),
    /// What else is kept, ascending.
    Rest(Box<Base>, Box<roaring::treemap::IntoIter>),
    Map {
        base: Box<Base>,
        stitch: Stitch,
        shape: MapShape,
        slot: u64,
    },
    Hash {
        base: Box<Base>,
        hash: Hashes,
        reader: Reader,
        at: u64,
    },
    Over,
}

/// Of the base as it is read back.
struct Hashes {
    whole: Sha1,
    blocks: Option<Lister>,
}

/// The base as far as it has been written.
struct Base {
    history: Box<History>,
    records: Records,
    /// None: what the root reaches is kept, and nothing else.
    kept: Option<RoaringTreemap>,
    removed: RoaringTreemap,
    out: Output,
    /// Where the objects are in the new file.
    index: OidMap,
}

impl Build {
    /// The base is to be built from `file`, in which every transaction up to `f` has been written.
    pub fn new(file: String, generation: Generation, p: Seq, f: Seq, to: String) -> Build {
        let stage = Stage::Mark(Mark::between(file, p, f));
        Build { generation, to, block_bytes: None, read: 0, stage }
    }

    /// The base's blocks are hashed too.
    pub fn with_blocks(self, block_bytes: u64) -> Build {
        Build { block_bytes: Some(block_bytes), ..self }
    }

    /// The base is to be built from all of `file`, which nobody writes to; it may be a plain one of stock Durus. The
    /// generation is the one after the file's. There is one walk instead of two: nothing is kept that the root does not
    /// reach.
    pub fn whole(file: String, to: String) -> Build {
        Build {
            generation: Generation(0),
            to,
            block_bytes: None,
            read: 0,
            stage: Stage::Start(file),
        }
    }

    /// Bytes read and written so far.
    pub(super) fn moved(&self) -> u64 {
        match &self.stage {
            Stage::Start(_) | Stage::Over => 0,
            Stage::Read(history) => history.position().0,
            Stage::Mark(mark) => mark.moved(),
            Stage::Walk(base, _) | Stage::Rest(base, _) | Stage::Map { base, .. } => {
                self.read + base.moved()
            }
            Stage::Hash { base, at, .. } => self.read + base.moved() + at,
        }
    }

    pub(super) fn abandon(self, disk: &dyn Disk) {
        let _ = disk.remove(&self.to);
    }

    pub(super) fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        let permille = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Start(file) => {
                self.stage = Stage::Read(Box::new(History::new(disk, &file, None)?));
                0
            }
            Stage::Read(history) => self.read(history, disk)?,
            Stage::Mark(mark) => self.mark(mark, disk)?,
            Stage::Walk(base, walk) => self.walk(base, walk)?,
            Stage::Rest(base, rest) => self.rest(base, rest)?,
            Stage::Map { base, stitch, shape, slot } => self.map(base, stitch, shape, slot)?,
            Stage::Hash { base, hash, reader, at } => {
                match self.hash(base, hash, reader, at, disk)? {
                    Ok(built) => return Ok(Step::Done(JobOutcome::Built(built))),
                    Err(permille) => permille,
                }
            }
            Stage::Over => panic!("a build that is over was stepped again"),
        };
        Ok(Step::More { permille })
    }

    fn read(&mut self, mut history: Box<History>, disk: &dyn Disk) -> Result<u32, JobError> {
        if !history.step()? {
            let (part, whole) = history.position();
            self.stage = Stage::Read(history);
            return Ok(between(0, 500, part, whole));
        }
        if !history.index.contains(Oid::ROOT) {
            return Err(JobError::NoRoot { p: history.tip().0.seq });
        }
        self.generation = history.generation().next();
        self.read = history.position().0;
        let mut base = Base::begin(history, None, RoaringTreemap::new(), disk, &self.to)?;
        // There are no commits that would wait for a disk that is busy at the end; and the disk may write behind.
        base.out.sync_every = u64::MAX;
        self.begin_walk(base);
        Ok(500)
    }

    fn begin_walk(&mut self, base: Base) {
        let mut walk = Walk::default();
        walk.add(Oid::ROOT, &base.history.index);
        self.stage = Stage::Walk(Box::new(base), walk);
    }

    fn mark(&mut self, mut mark: Mark, disk: &dyn Disk) -> Result<u32, JobError> {
        match mark.step(disk)? {
            Step::Done(JobOutcome::Marked(marked)) => {
                let Marked { kept, dead, history, .. } = marked;
                self.read = mark.moved();
                self.begin_walk(Base::begin(history, Some(kept), dead, disk, &self.to)?);
                Ok(500)
            }
            Step::More { permille } => {
                self.stage = Stage::Mark(mark);
                Ok(permille / 2)
            }
            Step::Done(_) => panic!("a mark gave something else"),
        }
    }

    fn walk(&mut self, mut base: Box<Base>, mut walk: Walk) -> Result<u32, JobError> {
        let (mut objects, mut bytes) = (0, 0);
        while objects < STEP_OBJECTS && bytes < STEP_BYTES {
            let next = walk.next(&base.history.index, &mut base.records)?;
            let Some((oid, raw)) = next else {
                let rest = base.rest_after(&walk.seen);
                self.stage = Stage::Rest(base, Box::new(rest.into_iter()));
                return Ok(800);
            };
            base.index.insert(oid, base.out.end());
            base.out.push(raw)?;
            objects += 1;
            bytes += raw.len() as u64;
        }
        let permille = base.progress();
        self.stage = Stage::Walk(base, walk);
        Ok(permille)
    }

    fn rest(
        &mut self,
        mut base: Box<Base>,
        mut rest: Box<roaring::treemap::IntoIter>,
    ) -> Result<u32, JobError> {
        let (mut objects, mut bytes) = (0, 0);
        while objects < STEP_OBJECTS && bytes < STEP_BYTES {
            let Some(oid) = rest.next().map(Oid) else {
                self.begin_map(base)?;
                return Ok(800);
            };
            let offset = base.history.index.get(oid).expect("what is kept exists");
            let raw = base.records.raw(oid, offset)?;
            base.index.insert(oid, base.out.end());
            base.out.push(raw)?;
            objects += 1;
            bytes += raw.len() as u64;
        }
        let permille = base.progress();
        self.stage = Stage::Rest(base, rest);
        Ok(permille)
    }

    fn begin_map(&mut self, mut base: Box<Base>) -> Result<(), JobError> {
        let start = base.out.end();
        let last = base.index.last();
        let shape = MapShape::new(start, last).filter(|shape| shape.slots <= MAP_SLOTS_MAX);
        let Some(shape) = shape else {
            let name = base.history.file.name().to_owned();
            return Err(JobError::MapTooLarge { name, oid: last.unwrap_or_default() });
        };
        base.out.push(&shape.head())?;
        self.stage = Stage::Map { base, stitch: Stitch::new(shape), shape, slot: 0 };
        Ok(())
    }

    fn map(
        &mut self,
        mut base: Box<Base>,
        mut stitch: Stitch,
        shape: MapShape,
        mut slot: u64,
    ) -> Result<u32, JobError> {
        let until = shape.slots.min(slot + STEP_BYTES / shape.width);
        while slot < until {
            stitch.push(slot, base.index.get(Oid(slot)), base.out.room()?);
            slot += 1;
        }
        if slot < shape.slots {
            self.stage = Stage::Map { base, stitch, shape, slot };
            return Ok(between(800, 900, slot, shape.slots));
        }
        base.out.flush()?;
        assert_eq!(base.out.end(), shape.end(), "the offset map is not as long as it says");
        let length = shape.start - RECORDS_AT;
        base.out.file.write_at(LENGTH_AT, &length.to_be_bytes())?;
        let reader = Reader::new(base.out.file.clone(), shape.end());
        let hash = Hashes { whole: Sha1::new(), blocks: self.block_bytes.map(Lister::new) };
        self.stage = Stage::Hash { base, hash, reader, at: 0 };
        Ok(900)
    }

    /// Done, or how far.
    fn hash(
        &mut self,
        base: Box<Base>,
        mut hash: Hashes,
        mut reader: Reader,
        at: u64,
        disk: &dyn Disk,
    ) -> Result<Result<Built, u32>, JobError> {
        let piece = STEP_BYTES.min(reader.end() - at);
        let bytes = reader.bytes(at, piece as usize)?;
        hash.whole.update(bytes);
        if let Some(blocks) = &mut hash.blocks {
            blocks.push(bytes);
        }
        let at = at + piece;
        if at < reader.end() {
            let permille = between(900, 1000, at, reader.end());
            self.stage = Stage::Hash { base, hash, reader, at };
            return Ok(Err(permille));
        }
        let before = Chain(hash.whole.finalize().into());
        Ok(Ok(base.seal(before, hash.blocks, self.generation, disk)?))
    }
}

impl Base {
    fn begin(
        history: Box<History>,
        kept: Option<RoaringTreemap>,
        removed: RoaringTreemap,
        disk: &dyn Disk,
        to: &str,
    ) -> Result<Base, JobError> {
        let mut out = Output {
            file: disk.create(to)?,
            at: 0,
            buf: Vec::new(),
            unsynced: 0,
            sync_every: SYNC_EVERY,
        };
        out.push(PREFIX)?;
        out.push(&[0; 8])?;
        let records = history.records();
        Ok(Base { history, records, kept, removed, out, index: OidMap::new() })
    }

    /// What is to be written besides what the walk has `seen`.
    fn rest_after(&mut self, seen: &RoaringTreemap) -> RoaringTreemap {
        match &self.kept {
            Some(kept) => {
                assert!(seen.is_subset(kept), "the root reaches what is not kept");
                kept - seen
            }
            None => {
                let exist = self.history.index.iter().map(|(oid, _)| oid.0);
                let exist = RoaringTreemap::from_sorted_iter(exist).expect("an index is in order");
                self.removed = exist - seen;
                RoaringTreemap::new()
            }
        }
    }

    fn moved(&self) -> u64 {
        self.records.read + self.out.end()
    }

    fn progress(&self) -> u32 {
        let kept = self.kept.as_ref().map_or(self.history.index.len(), RoaringTreemap::len);
        between(500, 800, self.index.len(), kept)
    }

    fn seal(
        mut self,
        before: Chain,
        mut blocks: Option<Lister>,
        generation: Generation,
        disk: &dyn Disk,
    ) -> Result<Built, JobError> {
        let (cut, time_us) = self.history.tip();
        let info = SealInfo { generation, cut: cut.seq, previous_chain: cut.chain };
        let meta = TxMeta {
            kind: Kind::Seal(info),
            epoch: cut.epoch,
            seq: cut.seq,
            time_us,
            commit_id: CommitId::NONE,
        };
        let seal = shelf::build(&before, &meta, &[]);
        self.out.push(&seal.bytes)?;
        if let Some(blocks) = &mut blocks {
            blocks.push(&seal.bytes);
        }
        self.out.flush()?;
        if !mutants::broken(Mutant::BaseUnsynced) {
            self.out.file.sync()?;
        }
        disk.sync_dir()?;
        let offset = self.out.end();
        let tip = Tip { epoch: cut.epoch, seq: cut.seq, offset, chain: seal.chain };
        Ok(Built {
            generation,
            base_hash: seal.chain,
            base_len: offset,
            blocks: blocks.map(|blocks| Arc::new(blocks.finish())),
            tip,
            removed: self.removed,
        })
    }
}

/// A file that is written from its beginning to its end.
struct Output {
    file: Arc<dyn DiskFile>,
    /// Offset of the first byte in `buf`.
    at: u64,
    buf: Vec<u8>,
    /// Bytes written since the last sync.
    unsynced: u64,
    /// So many bytes are not left to the sync at the end.
    sync_every: u64,
}

impl Output {
    fn end(&self) -> u64 {
        self.at + self.buf.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.room()?.extend_from_slice(bytes);
        Ok(())
    }

    /// A buffer for a little more.
    fn room(&mut self) -> Result<&mut Vec<u8>, DiskError> {
        if self.buf.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(&mut self.buf)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.file.write_at(self.at, &self.buf)?;
        self.unsynced += self.buf.len() as u64;
        self.at = self.end();
        self.buf.clear();
        // All at the end, the disk would be busy for seconds, and the syncs of commits would wait behind it.
        if self.unsynced >= self.sync_every {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}
