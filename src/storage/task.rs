//! Every way in which the data file and its companions are changed, as values.
//!
//! The core asks for these; the shell performs them on one thread in the order asked, the simulator likewise, both
//! by `Performer`. Because the order is kept, a promise is durable only after everything that was appended before it.
//! A failed task is never retried: what the disk holds afterwards is unknown until the file is read again.

use std::iter::Peekable;
use std::sync::Arc;

use bytes::Bytes;

use super::{Disk, DiskError, DiskFile};
use super::{promise, synced};
use crate::mutants::{self, Mutant};
use crate::types::{Epoch, Generation};

/// Appends in a row are joined up to so many bytes.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// The link in the data directory that says which generation's file is current.
pub const CURRENT: &str = "current.durus";

/// A file of this name says that this node has lost what it may have acknowledged, and what (see `loss`): it neither
/// votes nor acknowledges until all of it is here again. It is there before the damaged bytes are cut off.
pub const RECOVERING: &str = "recovering";

/// A file of this name says that the disk is an older image of itself: what it promised and acknowledged since is lost,
/// so it must never take part again.
pub const AMNESIAC: &str = "amnesiac";

/// One change. Done means durable.
pub enum DiskTask {
    /// Writes `bytes` at `offset` and syncs; neighbours in the queue share the sync.
    Append {
        file: Arc<dyn DiskFile>,
        offset: u64,
        bytes: Bytes,
    },
    /// Keeps the promise not to take appends below `epoch`.
    Promise {
        epoch: Epoch,
    },
    /// Saves everything from `offset` on under `keep_as` (after `header`), then cuts the file there.
    CutBack {
        file: Arc<dyn DiskFile>,
        offset: u64,
        keep_as: String,
        header: String,
    },
    /// Notes how far the file of `generation` is durable; see `synced`.
    NoteSynced {
        generation: Generation,
        offset: u64,
    },
    /// Makes `target` the current file.
    Flip {
        target: String,
    },
    /// A new empty file, replacing one of that name; durable as a name at once.
    Create {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Removes files that may or may not be there.
    Remove {
        names: Vec<String>,
    },
}

/// What a task has to tell.
#[derive(Clone)]
pub enum TaskDone {
    Nothing,
    Created(Arc<dyn DiskFile>),
}

/// Performs one batch of tasks: see [`Performer`].
pub fn perform(
    disk: &dyn Disk,
    tasks: Vec<(u64, DiskTask)>,
) -> Vec<(u64, Result<TaskDone, DiskError>)> {
    Performer::default().perform(disk, tasks)
}

/// Performs one batch after the other. After the first failure nothing more is tried, in no later batch either: what
/// comes after a write that failed would leave a hole.
#[derive(Default)]
pub struct Performer {
    broken: Option<String>,
}

impl Performer {
    /// In order; one result each, by the number it came with.
    pub fn perform(
        &mut self,
        disk: &dyn Disk,
        tasks: Vec<(u64, DiskTask)>,
    ) -> Vec<(u64, Result<TaskDone, DiskError>)> {
        let mut results = Vec::with_capacity(tasks.len());
        let mut written: Vec<(u64, Arc<dyn DiskFile>)> = Vec::new();
        let broken = &mut self.broken;
        let mut tasks = tasks.into_iter().peekable();
        while let Some((number, task)) = tasks.next() {
            if let Some(why) = &broken {
                results.push((number, Err(not_tried(why))));
                continue;
            }
            if let DiskTask::Append { file, offset, bytes } = task {
                let (numbers, bytes) = join((number, bytes), &file, offset, &mut tasks);
                let done = file.write_at(offset, &bytes);
                if let Err(error) = &done {
                    *broken = Some(error.to_string());
                    sync_written(&mut written, &mut results, broken);
                }
                match done {
                    Ok(()) => written.extend(numbers.iter().map(|number| (*number, file.clone()))),
                    Err(error) => {
                        let others = numbers[1..].iter();
                        let why = error.to_string();
                        results.push((number, Err(error)));
                        results.extend(others.map(|number| (*number, Err(not_tried(&why)))));
                    }
                }
                continue;
            }
            sync_written(&mut written, &mut results, broken);
            let result = match &broken {
                Some(why) => Err(not_tried(why)),
                None => perform_one(disk, task),
            };
            if let Err(error) = &result {
                broken.get_or_insert_with(|| error.to_string());
            }
            results.push((number, result));
        }
        sync_written(&mut written, &mut results, broken);
        results
    }
}

/// What is appended to one file in a row is written at once. The numbers of the appends, and their bytes.
fn join(
    first: (u64, Bytes),
    file: &Arc<dyn DiskFile>,
    offset: u64,
    tasks: &mut Peekable<std::vec::IntoIter<(u64, DiskTask)>>,
) -> (Vec<u64>, Bytes) {
    let (number, bytes) = first;
    let (mut numbers, mut len, mut parts) = (vec![number], bytes.len(), vec![bytes]);
    let fits = |(_, task): &(u64, DiskTask), len: usize| match task {
        DiskTask::Append { file: other, offset: at, bytes } => {
            Arc::ptr_eq(file, other)
                && *at == offset + len as u64
                && len + bytes.len() <= WRITE_BYTES_MAX
        }
        _ => false,
    };
    while let Some((number, DiskTask::Append { bytes, .. })) = tasks.next_if(|task| fits(task, len))
    {
        numbers.push(number);
        len += bytes.len();
        parts.push(bytes);
    }
    match parts.len() {
        1 => (numbers, parts.remove(0)),
        _ => (numbers, parts.concat().into()),
    }
}

/// One sync for each file that was written, then the appends are done.
fn sync_written(
    written: &mut Vec<(u64, Arc<dyn DiskFile>)>,
    results: &mut Vec<(u64, Result<TaskDone, DiskError>)>,
    broken: &mut Option<String>,
) {
    let mut synced: Vec<(Arc<dyn DiskFile>, Option<String>)> = Vec::new();
    for (number, file) in written.drain(..) {
        let known = synced.iter().position(|(other, _)| Arc::ptr_eq(other, &file));
        let at = known.unwrap_or_else(|| {
            let skipped = mutants::broken(Mutant::AckBeforeSync);
            let result = if skipped { Ok(()) } else { file.sync() };
            let failed = result.err().map(|error| error.to_string());
            synced.push((file, failed));
            synced.len() - 1
        });
        let result = match &synced[at].1 {
            None => Ok(TaskDone::Nothing),
            Some(why) => {
                broken.get_or_insert_with(|| why.clone());
                Err(not_tried(why))
            }
        };
        results.push((number, result));
    }
}

fn not_tried(why: &str) -> DiskError {
    DiskError::Io {
        verb: "sync or write after a failure",
        name: "data file".into(),
        source: std::io::Error::other(why.to_string()),
    }
}

fn perform_one(disk: &dyn Disk, task: DiskTask) -> Result<TaskDone, DiskError> {
    match task {
        DiskTask::Append { .. } => unreachable!("appends are performed together"),
        DiskTask::Promise { epoch } => promise::write(disk, epoch)?,
        DiskTask::NoteSynced { generation, offset } => synced::write(disk, generation, offset)?,
        DiskTask::CutBack { file, offset, keep_as, header } => {
            cut_back(disk, &*file, offset, &keep_as, &header)?;
        }
        DiskTask::Flip { target } => {
            if mutants::broken(Mutant::FlipInTwoSteps) {
                disk.remove(CURRENT)?;
                disk.sync_dir()?;
            }
            disk.set_link(CURRENT, &target)?;
            if !mutants::broken(Mutant::FlipNotDurable) {
                disk.sync_dir()?;
            }
        }
        DiskTask::Create { name } => {
            let file = disk.create(&name)?;
            disk.sync_dir()?;
            return Ok(TaskDone::Created(file));
        }
        DiskTask::Rename { from, to } => {
            disk.rename(&from, &to)?;
            disk.sync_dir()?;
        }
        DiskTask::Remove { names } => {
            for name in names {
                // A job that was called off may be removing it too.
                match disk.remove(&name) {
                    Ok(()) | Err(DiskError::Missing { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            disk.sync_dir()?;
        }
    }
    Ok(TaskDone::Nothing)
}

/// Nothing is cut before it is safe elsewhere. A crash in between leaves the file whole, and the cut is computed anew.
fn cut_back(
    disk: &dyn Disk,
    file: &dyn DiskFile,
    offset: u64,
    keep_as: &str,
    header: &str,
) -> Result<(), DiskError> {
    const CHUNK: u64 = 1 << 20;
    let end = file.len()?;
    if end <= offset {
        return Ok(());
    }
    if mutants::broken(Mutant::OrphanNotKept) {
        file.truncate(offset)?;
        return file.sync();
    }
    let kept = disk.create(keep_as)?;
    kept.write_at(0, header.as_bytes())?;
    let mut at = offset;
    while at < end {
        let mut chunk = vec![0; CHUNK.min(end - at) as usize];
        file.read_at(at, &mut chunk)?;
        kept.write_at(header.len() as u64 + at - offset, &chunk)?;
        at += chunk.len() as u64;
    }
    kept.sync()?;
    disk.sync_dir()?;
    // A read that went astray would have kept something else; what is cut off can't be read again.
    let mut at = offset;
    while at < end {
        let len = CHUNK.min(end - at) as usize;
        let (mut cut, mut copy) = (vec![0; len], vec![0; len]);
        file.read_at(at, &mut cut)?;
        kept.read_at(header.len() as u64 + at - offset, &mut copy)?;
        if cut != copy {
            return Err(DiskError::Changed { name: file.name().to_owned(), offset: at });
        }
        at += len as u64;
    }
    if !mutants::broken(Mutant::CutLeftOut) {
        file.truncate(offset)?;
    }
    file.sync()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::storage::mem::MemDisk;

    /// Notes its writes. If it is to go astray, its first read gives back what is at its beginning.
    struct Watched {
        file: Arc<dyn DiskFile>,
        astray: AtomicBool,
        writes: Mutex<Vec<(u64, usize)>>,
    }

    impl Watched {
        fn new(file: Arc<dyn DiskFile>, astray: bool) -> Arc<Watched> {
            Arc::new(Watched { file, astray: astray.into(), writes: Mutex::default() })
        }
    }

    impl DiskFile for Watched {
        fn name(&self) -> &str {
            self.file.name()
        }
        fn len(&self) -> Result<u64, DiskError> {
            self.file.len()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
            let astray = self.astray.swap(false, Ordering::Relaxed);
            self.file.read_at(if astray { 0 } else { offset }, buf)
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
            self.writes.lock().unwrap().push((offset, data.len()));
            self.file.write_at(offset, data)
        }
        fn truncate(&self, len: u64) -> Result<(), DiskError> {
            self.file.truncate(len)
        }
        fn sync(&self) -> Result<(), DiskError> {
            self.file.sync()
        }
    }

    #[test]
    fn appends_in_a_row_are_written_at_once() {
        let disk = MemDisk::new();
        let noting = |name| Watched::new(disk.create(name).unwrap(), false);
        let (one, other) = (noting("one"), noting("other"));
        let append = |file: &Arc<Watched>, offset, bytes: &'static [u8]| DiskTask::Append {
            file: file.clone(),
            offset,
            bytes: Bytes::from_static(bytes),
        };
        static LARGE: [u8; WRITE_BYTES_MAX] = [b'l'; WRITE_BYTES_MAX];
        let tasks = [
            append(&one, 0, b"12"),
            append(&one, 2, b"345"),
            append(&one, 5, b"6"),
            append(&other, 0, b"abc"),
            append(&one, 6, b"7"),
            // Not where the last one ended: it was cut back in between.
            append(&one, 3, b"x"),
            append(&other, 3, b"d"),
            append(&other, 4, &LARGE),
            append(&other, 4 + LARGE.len() as u64, b"e"),
        ];
        let numbered: Vec<_> = (10..).zip(tasks).collect();
        let done = perform(&disk, numbered);
        let numbers: Vec<u64> = done.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (10..19).collect::<Vec<_>>());
        assert!(done.iter().all(|(_, result)| result.is_ok()));
        assert_eq!(*one.writes.lock().unwrap(), [(0, 6), (6, 1), (3, 1)]);
        let large = LARGE.len();
        assert_eq!(
            *other.writes.lock().unwrap(),
            [(0, 3), (3, 1), (4, large), (4 + large as u64, 1)]
        );
        let mut bytes = [0; 7];
        one.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"123x567");
    }

    /// Found by the simulator (soak, seed 8021518): the orphan held other bytes than were cut off.
    #[test]
    fn nothing_is_cut_off_that_is_not_kept_as_it_was() {
        let disk = MemDisk::new();
        let file = disk.create("data").unwrap();
        file.write_at(0, b"committed and not so").unwrap();
        let file: Arc<dyn DiskFile> = Watched::new(file, true);
        let cut = || {
            let (file, keep_as, header) = (file.clone(), "orphan".to_owned(), "why\n".to_owned());
            let task = DiskTask::CutBack { file, offset: 10, keep_as, header };
            perform(&disk, vec![(1, task)]).pop().unwrap().1
        };
        assert!(matches!(cut(), Err(DiskError::Changed { .. })));
        assert_eq!(file.len().unwrap(), 20, "nothing is lost");
        assert!(cut().is_ok());
        assert_eq!(file.len().unwrap(), 10);
        let mut kept = [0; 14];
        disk.open("orphan").unwrap().read_at(0, &mut kept).unwrap();
        assert_eq!(&kept, b"why\nand not so");
    }
}
