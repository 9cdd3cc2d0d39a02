//! Packing: a new base without what nobody can reach.
//!
//! A pack is a pure function of a verified file and of two of its seqs, so that every node writes the same bytes.
//! What is *kept* at (P, F) is what the root reaches as of P, what transactions in (P, F] stored or referred to, and
//! everything those reach as of F. The rest of what exists as of F is *dead*. References to objects that do not exist
//! are passed over. The base holds the kept objects as of F: those the root reaches as of F in the order of stock
//! Durus 4.3's walk (always the smallest oid waiting, from 0 on), then the others in ascending order; then the
//! offset map; then the seal. With P = F and without the seal it is what stock Durus writes, byte for byte.
//!
//! A job reads the file itself, from its beginning, and proves it on the way; it never looks at a live index, and
//! does not mind that the file grows. It works in bounded steps so that it can be paced and called off.
//!
//! Nothing here decides when a pack starts or what becomes of it.

pub mod blocks;
mod build;
mod mark;
mod pace;
mod walk;

use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::shelf::{Opened, Opening, ShelfError};
use crate::storage::{Disk, DiskError};
use crate::types::{Chain, Generation, Oid, Seq, Tip};

pub use blocks::{BLOCK_BYTES, Blocks};
pub use build::Build;
pub use mark::{Mark, Marked};
pub use pace::Pace;

/// Bytes a step reads or writes, about.
const STEP_BYTES: u64 = 1 << 20;
/// Objects a step visits at most.
const STEP_OBJECTS: u32 = 10_000;

/// Bulk work on files, to be stepped until it is done. Whoever drops one before that, or after an error, lets it
/// `abandon` its work first: a file that is no use to anybody must not stay on a disk that may be full.
pub enum Job {
    /// Find out what is kept and what is dead.
    Mark(Mark),
    /// Write a new base.
    Build(Build),
    /// Open and prove the shelf file of this name.
    Open(String),
    /// `Open`, begun.
    Opening(Box<Opening>),
    /// Hash the blocks of a base.
    List(blocks::List),
    /// See what an unfinished copy of a base has.
    Check(blocks::Check),
    /// Read bytes for a peer.
    Read(blocks::Read),
}

/// What one step came to.
pub enum Step {
    /// To be stepped again. `permille` is a guess for people.
    More {
        permille: u32,
    },
    Done(JobOutcome),
}

/// What a job was for.
pub enum JobOutcome {
    Marked(Marked),
    Built(Built),
    Opened(Box<Opened>),
    Listed(Blocks),
    Checked(blocks::Checked),
    Read(Bytes),
}

/// A new base, whole and durable under its temporary name.
#[derive(Clone, Debug)]
pub struct Built {
    pub generation: Generation,
    /// Chain of its seal.
    pub base_hash: Chain,
    /// Bytes of the file: base, offset map and seal.
    pub base_len: u64,
    /// Its blocks, if they were asked for.
    pub blocks: Option<Arc<Blocks>>,
    /// The seal.
    pub tip: Tip,
    /// Objects that existed as of F and are not in the base.
    pub removed: RoaringTreemap,
}

/// Why a job came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(
        "there is no root object as of seq {p}: nothing can be packed before a client has committed one"
    )]
    NoRoot { p: Seq },
    #[error("pack {name}: it has no seq {wanted}")]
    NoSuchSeq { name: String, wanted: Seq },
    #[error(
        "pack {name}: the record of oid {oid} at offset {offset} is not what it was when the file was proved"
    )]
    Changed { name: String, oid: Oid, offset: u64 },
    #[error(
        "the offset map of {name} would need a slot for every oid up to {oid}; \
         renumber the objects with stock Durus (db_renumber.py) first"
    )]
    MapTooLarge { name: String, oid: Oid },
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Job {
    /// Works for about a mebibyte or ten thousand objects. Not to be called again after `Done` or an error.
    pub fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        match self {
            Job::Mark(mark) => mark.step(disk),
            Job::Build(build) => build.step(disk),
            Job::Open(name) => {
                *self = Job::Opening(Box::new(Opening::new(disk, name)?));
                Ok(Step::More { permille: 0 })
            }
            Job::Opening(opening) => Ok(match opening.step(STEP_BYTES)? {
                Some(opened) => Step::Done(JobOutcome::Opened(Box::new(opened))),
                None => Step::More { permille: opening.permille() },
            }),
            Job::List(list) => list.step(disk),
            Job::Check(check) => check.step(disk),
            Job::Read(read) => read.step(disk),
        }
    }

    /// Bytes read and written so far.
    pub fn moved(&self) -> u64 {
        match self {
            Job::Mark(mark) => mark.moved(),
            Job::Build(build) => build.moved(),
            Job::Opening(opening) => opening.read_bytes(),
            _ => 0,
        }
    }

    /// Removes the file that was to be made, if it can: what can't be removed is found at the next start.
    pub fn abandon(self, disk: &dyn Disk) {
        if let Job::Build(build) = self {
            build.abandon(disk);
        }
    }

    /// Steps until it is done; for tools and tests.
    pub fn run(mut self, disk: &dyn Disk) -> Result<JobOutcome, JobError> {
        loop {
            if let Step::Done(outcome) = self.step(disk)? {
                return Ok(outcome);
            }
        }
    }
}

/// `part` of `whole` as permille between `from` and `to`.
fn between(from: u32, to: u32, part: u64, whole: u64) -> u32 {
    let share = (part.min(whole) as f64) / (whole.max(1) as f64);
    from + (f64::from(to - from) * share) as u32
}

#[cfg(test)]
mod tests;
