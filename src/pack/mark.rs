//! What a pack keeps and what it drops.
//!
//! P is fixed when the mark begins. It can be extended to a later F again and again; each time the answer is the one
//! that a mark made at (P, F) in one go would give. For that the mark remembers two things apart: what the root
//! reaches as of P, and what was touched since; and closes over the second anew each time.

use roaring::RoaringTreemap;

use super::walk::{History, Records, Walk};
use super::{JobError, JobOutcome, STEP_BYTES, STEP_OBJECTS, Step, between};
use crate::storage::Disk;
use crate::types::{Oid, Seq};

/// The mark at (`p`, `f`).
pub struct Marked {
    pub p: Seq,
    pub f: Seq,
    /// Every object that exists as of F and is kept.
    pub kept: RoaringTreemap,
    /// Every object that exists as of F and is not.
    pub dead: RoaringTreemap,
    /// Bytes of the records that are kept, about: of some it may be those of P.
    pub kept_bytes: u64,
    pub(super) history: Box<History>,
    /// What the root reaches as of P, and the bytes of its records.
    reached: RoaringTreemap,
    reached_bytes: u64,
}

/// A job that makes a `Marked`.
pub struct Mark {
    file: String,
    p: Seq,
    f: Seq,
    /// Bytes of the records that the walk from the root visited, and then the walk from what was touched.
    reached_bytes: u64,
    touched_bytes: u64,
    /// Bytes of the file that a mark before this one has read, and bytes that walks have read which are over.
    skipped: u64,
    walked: u64,
    moved: u64,
    stage: Stage,
}

enum Stage {
    Start,
    /// Reading up to P.
    Read(Box<History>),
    /// Walking from the root as of P.
    Reach(Box<History>, Walk, Records),
    /// Reading on to F.
    ReadOn(Box<History>, RoaringTreemap),
    /// Walking from what was touched since P.
    Close(Box<History>, RoaringTreemap, Walk, Records),
    Over,
}

impl Mark {
    /// A mark at P alone: P = F.
    pub fn new(file: String, p: Seq) -> Mark {
        Mark::begin(file, p, p, Stage::Start)
    }

    /// A mark at (P, F) in one go.
    pub fn between(file: String, p: Seq, f: Seq) -> Mark {
        assert!(p <= f, "a mark from {p} to {f}");
        Mark::begin(file, p, f, Stage::Start)
    }

    fn begin(file: String, p: Seq, f: Seq, stage: Stage) -> Mark {
        let (reached_bytes, touched_bytes, skipped, walked, moved) = (0, 0, 0, 0, 0);
        Mark { file, p, f, reached_bytes, touched_bytes, skipped, walked, moved, stage }
    }

    /// Takes a mark to a later F. `file` is the one it was made of.
    pub fn extend(file: String, marked: Marked, f: Seq) -> Mark {
        assert!(marked.f <= f, "a mark at {} cannot be extended to {f}", marked.f);
        let (reached_bytes, skipped) = (marked.reached_bytes, marked.history.position().0);
        let stage = Stage::ReadOn(marked.history, marked.reached);
        Mark { reached_bytes, skipped, ..Mark::begin(file, marked.p, f, stage) }
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    pub(super) fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        let permille = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Start => {
                let history = History::new(disk, &self.file, Some(self.p))?;
                self.stage = Stage::Read(Box::new(history));
                0
            }
            Stage::Read(history) => self.read(history)?,
            Stage::Reach(history, walk, records) => self.reach(history, walk, records)?,
            Stage::ReadOn(history, reached) => self.read_on(history, reached)?,
            Stage::Close(history, reached, walk, records) => {
                match self.close(history, reached, walk, records)? {
                    Some(marked) => return Ok(Step::Done(JobOutcome::Marked(marked))),
                    None => 950,
                }
            }
            Stage::Over => panic!("a mark that is over was stepped again"),
        };
        Ok(Step::More { permille })
    }

    fn read(&mut self, mut history: Box<History>) -> Result<u32, JobError> {
        let reached = history.step()?;
        let (part, whole) = history.position();
        self.moved = part;
        if !reached {
            self.stage = Stage::Read(history);
            return Ok(between(0, 400, part, whole));
        }
        if !history.index.contains(Oid::ROOT) {
            return Err(JobError::NoRoot { p: self.p });
        }
        let mut walk = Walk::default();
        walk.add(Oid::ROOT, &history.index);
        let records = history.records();
        self.stage = Stage::Reach(history, walk, records);
        Ok(400)
    }

    fn reach(
        &mut self,
        history: Box<History>,
        mut walk: Walk,
        mut records: Records,
    ) -> Result<u32, JobError> {
        let over = walk_some(&history, &mut walk, &mut records, &mut self.reached_bytes)?;
        self.count(&history, &records);
        if over {
            self.walked += records.read;
            self.stage = Stage::ReadOn(history, walk.seen);
            return Ok(800);
        }
        let (part, whole) = walk.progress(&history.index);
        self.stage = Stage::Reach(history, walk, records);
        Ok(between(400, 800, part, whole))
    }

    fn read_on(
        &mut self,
        mut history: Box<History>,
        reached: RoaringTreemap,
    ) -> Result<u32, JobError> {
        history.aim(self.f)?;
        if !history.step()? {
            self.stage = Stage::ReadOn(history, reached);
            return Ok(850);
        }
        let mut walk = Walk::beyond(reached.clone());
        for oid in history.touched.iter().flatten() {
            walk.add(Oid(oid), &history.index);
        }
        let records = history.records();
        self.stage = Stage::Close(history, reached, walk, records);
        Ok(900)
    }

    fn close(
        &mut self,
        history: Box<History>,
        reached: RoaringTreemap,
        mut walk: Walk,
        mut records: Records,
    ) -> Result<Option<Marked>, JobError> {
        let over = walk_some(&history, &mut walk, &mut records, &mut self.touched_bytes)?;
        self.count(&history, &records);
        if !over {
            self.stage = Stage::Close(history, reached, walk, records);
            return Ok(None);
        }
        let kept = walk.seen;
        let exist = history.index.iter().map(|(oid, _)| oid.0);
        let exist: RoaringTreemap = exist.collect();
        let dead = exist - &kept;
        let reached_bytes = self.reached_bytes;
        let kept_bytes = reached_bytes + self.touched_bytes;
        let Mark { p, f, .. } = *self;
        Ok(Some(Marked { p, f, kept, dead, kept_bytes, history, reached, reached_bytes }))
    }

    fn count(&mut self, history: &History, records: &Records) {
        self.moved = history.position().0 - self.skipped + self.walked + records.read;
    }
}

/// A bounded piece of a walk; true when it is over.
fn walk_some(
    history: &History,
    walk: &mut Walk,
    records: &mut Records,
    visited_bytes: &mut u64,
) -> Result<bool, JobError> {
    let (mut objects, mut bytes) = (0, 0);
    while objects < STEP_OBJECTS && bytes < STEP_BYTES {
        let Some((_, raw)) = walk.next(&history.index, records)? else { return Ok(true) };
        objects += 1;
        bytes += raw.len() as u64;
        *visited_bytes += raw.len() as u64;
    }
    Ok(false)
}
