//! The durable log: two mirrored files that survive a crash at any point, and say so when they are damaged.
//!
//! `append` returns when the record is durable in both copies. Rewriting (when a snapshot makes the entries before it
//! useless, when enough is garbage, and as the one form of repair) makes two new files under temporary names, makes
//! them durable, then renames a, makes that durable, renames b, makes that durable. So a newer generation in a than in
//! b means that nothing was appended since: either is the whole log.
//!
//! A disk error is final. Nothing is known of what was being written, so nothing is retried: every later append is
//! refused, and the node must end and read its log again.

use std::sync::Arc;

use prost::Message;

use super::format::{self, Contents, Damage};
use super::image::LogImage;
use crate::mutants::{self, Mutant};
use crate::proto::control::{RaftEntry, RaftHardState, RaftRecord, RaftSnapshot};
use crate::storage::{Disk, DiskError, DiskFile};

/// Generations and seqs from here on are nonsense, whatever their checksums say.
const NUMBER_MAX: u64 = 1 << 62;
/// Names of the copies, in the order in which they are written.
const NAMES: [&str; 2] = ["raft-a.log", "raft-b.log"];
const TEMPORARY: [&str; 2] = ["raft-a.tmp", "raft-b.tmp"];
/// Bytes below which a file is not worth rewriting.
const REWRITE_ABOVE: u64 = 1 << 20;
/// A file is rewritten when it is this many times as long as after the last rewrite.
const REWRITE_FACTOR: u64 = 4;

#[derive(Debug, thiserror::Error)]
pub enum RaftLogError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "the Raft log (raft-a.log, raft-b.log) is damaged at byte {offset}: {why}. Keep both files. Put back either of \
         them as it was when this node last ran, and start it again; an older copy would let it vote twice. This \
         version can't replace a member: without its log this node stays out, and the others go on while a majority \
         of them runs"
    )]
    Corrupt { offset: u64, why: String },
    #[error("append to the Raft log: refused after an earlier disk error")]
    Failed,
}

impl From<Damage> for RaftLogError {
    fn from(damage: Damage) -> Self {
        RaftLogError::Corrupt { offset: damage.offset, why: damage.why.into() }
    }
}

/// What the log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    pub hard_state: RaftHardState,
    /// Contiguous; the first follows the snapshot, or is 1.
    pub entries: Vec<RaftEntry>,
    pub snapshot: Option<RaftSnapshot>,
    /// There were no files. Whether the disk is new or has lost them, its other files tell.
    pub fresh: bool,
    /// What was wrong with the files and is mended now; for the node's log.
    pub repaired: Option<String>,
}

impl Recovered {
    /// Nothing was ever kept in it.
    pub fn is_blank(&self) -> bool {
        self.hard_state == RaftHardState::default()
            && self.entries.is_empty()
            && self.snapshot.is_none()
    }
}

pub struct RaftLog {
    disk: Arc<dyn Disk>,
    /// The two copies; none of a lost log.
    files: Vec<Arc<dyn DiskFile>>,
    generation: u64,
    last_seq: u64,
    /// Length of both files, in bytes.
    end: u64,
    /// Length of both files after the last rewrite, in bytes.
    end_rewritten: u64,
    image: LogImage,
    failed: bool,
}

impl RaftLog {
    /// Is there anything of a log? It has both names before anything is acknowledged that is in it.
    pub fn exists(disk: &dyn Disk) -> Result<bool, DiskError> {
        NAMES.iter().try_fold(false, |any, name| Ok(any | disk.exists(name)?))
    }

    /// In place of one that is gone. Nothing is made on the disk: files that are put back are found by the next start.
    pub fn lost(disk: Arc<dyn Disk>) -> (RaftLog, Recovered) {
        let log = RaftLog {
            disk,
            files: Vec::new(),
            generation: 0,
            last_seq: 0,
            end: 0,
            end_rewritten: 0,
            image: LogImage::default(),
            failed: true,
        };
        (log, Recovered { fresh: true, ..Default::default() })
    }

    /// Reads the log, mends what one good copy allows, and makes a new one if there is none at all.
    pub fn open(disk: Arc<dyn Disk>) -> Result<(RaftLog, Recovered), RaftLogError> {
        let [a, b] = [read(&*disk, NAMES[0])?, read(&*disk, NAMES[1])?];
        let left_over = TEMPORARY.iter().try_fold(false, |any, name| Ok(any | disk.exists(name)?));
        let left_over: bool = left_over.map_err(RaftLogError::Disk)?;
        if a.is_none() && b.is_none() {
            let log = RaftLog::rewritten(disk, LogImage::default(), 1, 1)?;
            return Ok((log, Recovered { fresh: true, ..Default::default() }));
        }
        let Found { generation, contents, image, newest } = find(&a, &b)?;
        let mut repaired = None;
        let log = if contents.whole && !left_over {
            let end = contents.end as u64;
            let files = vec![disk.open(NAMES[0])?, disk.open(NAMES[1])?];
            // A process that was killed may have left records that no sync has reached yet: they are acted upon now.
            for file in &files {
                file.sync()?;
            }
            disk.sync_dir()?;
            let last_seq = contents.last_seq;
            let image = image.clone();
            let end_rewritten = end;
            RaftLog { disk, files, generation, last_seq, end, end_rewritten, image, failed: false }
        } else {
            repaired = Some(describe(&a, &b, &contents, left_over));
            RaftLog::rewritten(disk, image.clone(), newest + 1, contents.last_seq + 1)?
        };
        let LogImage { hard_state, snapshot, entries } = image;
        let entries = entries.into();
        Ok((log, Recovered { hard_state, entries, snapshot, fresh: false, repaired }))
    }

    /// Durable when it returns. After an error, every later append fails.
    pub fn append(&mut self, record: &RaftRecord) -> Result<(), RaftLogError> {
        if self.failed {
            return Err(RaftLogError::Failed);
        }
        if let Err(error) = self.image.apply(record) {
            panic!("a record that does not fit the Raft log: {error}; record {record:?}");
        }
        let large = self.end > REWRITE_ABOVE.max(REWRITE_FACTOR * self.end_rewritten);
        let done =
            if record.snapshot.is_some() || large { self.rewrite() } else { self.extend(record) };
        self.failed = done.is_err();
        Ok(done?)
    }

    fn extend(&mut self, record: &RaftRecord) -> Result<(), DiskError> {
        let bytes =
            format::encode_record(self.generation, self.last_seq + 1, &record.encode_to_vec());
        // the order is what tells a torn tail from corruption: see format
        for file in &self.files {
            file.write_at(self.end, &bytes)?;
            if !mutants::broken(Mutant::RaftUnsynced) {
                file.sync()?;
            }
        }
        self.last_seq += 1;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), DiskError> {
        let disk = Arc::clone(&self.disk);
        let image = std::mem::take(&mut self.image);
        *self = RaftLog::rewritten(disk, image, self.generation + 1, self.last_seq + 1)?;
        Ok(())
    }

    /// Replaces both files by ones that hold just the image.
    fn rewritten(
        disk: Arc<dyn Disk>,
        image: LogImage,
        generation: u64,
        seq: u64,
    ) -> Result<RaftLog, DiskError> {
        let mut bytes = format::file_header(generation);
        let payload = image.to_record().encode_to_vec();
        bytes.extend(format::encode_record(generation, seq, &payload));
        for name in TEMPORARY {
            let file = disk.create(name)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
        }
        for (temporary, name) in TEMPORARY.iter().zip(NAMES) {
            disk.rename(temporary, name)?;
            disk.sync_dir()?;
        }
        let files = vec![disk.open(NAMES[0])?, disk.open(NAMES[1])?];
        let end = bytes.len() as u64;
        let (last_seq, end_rewritten) = (seq, end);
        Ok(RaftLog { disk, files, generation, last_seq, end, end_rewritten, image, failed: false })
    }
}

fn read(disk: &dyn Disk, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(DiskError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len()?).expect("files of this log fit into memory");
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

struct Found<'a> {
    generation: u64,
    contents: Contents<'a>,
    image: LogImage,
    /// Greatest generation that either file states.
    newest: u64,
}

/// Decides which file of which generation is the log.
fn find<'a>(a: &'a Option<Vec<u8>>, b: &'a Option<Vec<u8>>) -> Result<Found<'a>, RaftLogError> {
    let [a, b] = [a, b].map(|file| file.as_deref().unwrap_or_default());
    let stated = [a, b].map(format::generation_of);
    let Some(newest) = stated.into_iter().flatten().max() else {
        let why = "neither file has a readable header".into();
        return Err(RaftLogError::Corrupt { offset: 0, why });
    };
    let from = |a, b, generation| {
        let contents = format::read_copies(a, b, generation)?;
        // Both are counted up from here.
        if newest.max(contents.last_seq) >= NUMBER_MAX {
            let why = "its generation or seq is beyond all bounds".into();
            return Err(RaftLogError::Corrupt { offset: 0, why });
        }
        let image = replay(&contents)?;
        Ok(Found { generation, contents, image, newest })
    };
    match stated {
        // a crash between the renames: a is the rewritten log, b what it was made of
        [Some(new), Some(old)] if new > old => from(a, &[], new).or_else(|_| from(&[], b, old)),
        [Some(old), Some(new)] if new > old => from(&[], b, new),
        _ => from(a, b, newest),
    }
}

fn replay(contents: &Contents<'_>) -> Result<LogImage, RaftLogError> {
    let mut image = LogImage::default();
    for (number, payload) in contents.payloads.iter().enumerate() {
        let corrupt = |why: String| RaftLogError::Corrupt {
            offset: contents.end as u64,
            why: format!("record {number} has a good checksum, but {why}"),
        };
        let record = RaftRecord::decode(*payload).map_err(|error| corrupt(error.to_string()))?;
        image.apply(&record).map_err(|error| corrupt(error.to_string()))?;
    }
    Ok(image)
}

fn describe(
    a: &Option<Vec<u8>>,
    b: &Option<Vec<u8>>,
    contents: &Contents<'_>,
    left_over: bool,
) -> String {
    let state = |file: &Option<Vec<u8>>| match file {
        None => "missing".to_string(),
        Some(bytes) => format!("{} bytes", bytes.len()),
    };
    let unfinished = if left_over { ", an unfinished rewrite" } else { "" };
    let (a, b) = (state(a), state(b));
    let (records, end) = (contents.payloads.len(), contents.end);
    format!("{}: {a}, {}: {b}{unfinished}; {records} records to byte {end}", NAMES[0], NAMES[1])
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
