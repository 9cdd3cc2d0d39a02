//! A node's data directory on a real disk.
//!
//! Reads and writes are positioned (pread, pwrite), so a handle is shared between threads without a lock. `sync` is
//! fdatasync; once it has failed on a file, everything after it on that file fails too, because the kernel may have
//! dropped the pages and a second fdatasync would lie.
//!
//! Every file that is opened for writing is flocked, exclusively and without waiting, as stock Durus does it before it
//! writes: while a node holds its data file, a Durus server started on it by mistake gets an error, and the other way
//! round. An flock belongs to one open file description, so two openings of a file in this process must share one
//! description: `open` looks up (device, inode) among the files that are open already.
//!
//! Nothing here retries, caches, or knows what a name means.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::behind::Behind;
use super::{Disk, DiskError, DiskFile};

/// The file whose lock says that a process works in this directory.
const LOCK: &str = "lock";

/// A directory as a `Disk`.
pub struct PosixDisk {
    root: PathBuf,
    read_only: bool,
    /// Whoever writes a file that is created does not wait for the disk.
    writes_behind: bool,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Files that are open for writing, by device and inode.
    open: HashMap<(u64, u64), Weak<OpenFile>>,
    /// Directories below the root whose entries have changed since `sync_dir`.
    changed: BTreeSet<PathBuf>,
}

/// Holds the directory for this process until dropped.
#[must_use = "the directory is free again when this is dropped"]
pub struct DirLock {
    _file: File,
}

impl PosixDisk {
    /// The directory must exist. Files are opened for reading and writing and locked against other processes.
    pub fn new(root: impl Into<PathBuf>) -> PosixDisk {
        PosixDisk {
            root: root.into(),
            read_only: false,
            writes_behind: false,
            shared: Mutex::default(),
        }
    }

    /// For looking only: takes no locks, so it works beside a running node or Durus server and without permission to
    /// write; whatever would change something fails.
    pub fn read_only(root: impl Into<PathBuf>) -> PosixDisk {
        PosixDisk { read_only: true, ..PosixDisk::new(root) }
    }

    /// Files that are created are written on a thread of their own (`behind`): for bulk work that has the machine to itself.
    pub fn writing_behind(self) -> PosixDisk {
        PosixDisk { writes_behind: true, ..self }
    }

    /// Takes the directory for this process. Does not wait: another process in it is an error that says so.
    pub fn lock(&self) -> Result<DirLock, DiskError> {
        let path = self.path("lock", LOCK)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(failed("lock", LOCK))?;
        flock(&file, LOCK, "another packmaster node runs in this directory")?;
        Ok(DirLock { _file: file })
    }

    fn path(&self, verb: &'static str, name: &str) -> Result<PathBuf, DiskError> {
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !plain {
            return Err(failed(verb, name)(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the name leads out of the data directory",
            )));
        }
        Ok(self.root.join(name))
    }

    /// For what changes the directory: refuses if read-only, makes the directories in `name`, notes them for `sync_dir`.
    fn path_to_change(&self, verb: &'static str, name: &str) -> Result<PathBuf, DiskError> {
        if self.read_only {
            let why = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened for looking only");
            return Err(failed(verb, name)(why));
        }
        let path = self.path(verb, name)?;
        let parent = path.parent().filter(|parent| *parent != self.root);
        if let Some(parent) = parent {
            fs::create_dir_all(parent).map_err(failed(verb, name))?;
            let below = parent.ancestors().take_while(|dir| *dir != self.root);
            self.shared().changed.extend(below.map(Path::to_path_buf));
        }
        Ok(path)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("a thread panicked while it held the table of open files")
    }

    /// The handle for a freshly opened description: the one that exists for the same inode, or this one, locked.
    fn handle(&self, name: &str, file: File, empty: bool) -> Result<Arc<dyn DiskFile>, DiskError> {
        let meta = file.metadata().map_err(failed("open", name))?;
        let key = (meta.dev(), meta.ino());
        let mut shared = self.shared();
        let known = shared.open.get(&key).and_then(Weak::upgrade);
        let inner = match known {
            Some(inner) => inner,
            None => {
                if !self.read_only {
                    flock(&file, name, "another process has it open for writing")?;
                }
                let inner = Arc::new(OpenFile { file, failed: AtomicBool::new(false) });
                shared.open.retain(|_, weak| weak.strong_count() > 0);
                shared.open.insert(key, Arc::downgrade(&inner));
                inner
            }
        };
        drop(shared);
        if empty {
            inner.file.set_len(0).map_err(failed("create", name))?;
        }
        Ok(Arc::new(PosixFile { name: name.to_string(), inner }))
    }

    fn list_below(&self, dir: &Path, names: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.list_below(&path, names)?;
                continue;
            }
            let below = path.strip_prefix(&self.root).unwrap_or(&path);
            // A name that is no UTF-8 is none of ours.
            if let Some(name) = below.to_str().filter(|name| *name != LOCK) {
                names.push(name.to_string());
            }
        }
        Ok(())
    }
}

impl Disk for PosixDisk {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let path = self.path("open", name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(!self.read_only)
            .open(path)
            .map_err(failed("open", name))?;
        self.handle(name, file, false)
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let path = self.path_to_change("create", name)?;
        // What is there is emptied only once it is certain that no other process has it.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("create", name))?;
        let file = self.handle(name, file, true)?;
        Ok(if self.writes_behind { Arc::new(Behind::new(file)?) } else { file })
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        self.path("look for", name)?.try_exists().map_err(failed("look for", name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let source = self.path_to_change("rename", from)?;
        let target = self.path_to_change("rename", to)?;
        fs::rename(source, target).map_err(failed("rename", from))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let path = self.path_to_change("remove", name)?;
        fs::remove_file(path).map_err(failed("remove", name))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut names = Vec::new();
        self.list_below(&self.root, &mut names).map_err(failed("list", "data directory"))?;
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let changed = std::mem::take(&mut self.shared().changed);
        for dir in changed.iter().chain([&self.root]) {
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(failed("sync directory", &dir.to_string_lossy()))?;
        }
        Ok(())
    }

    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError> {
        let path = self.path_to_change("link", name)?;
        let fresh = self.path_to_change("link", &format!("{name}.new"))?;
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("link", name)(error));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(target, &fresh).map_err(failed("link", name))?;
        fs::rename(fresh, path).map_err(failed("link", name))
    }

    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError> {
        match fs::read_link(self.path("read link", name)?) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read link", name)(error)),
        }
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|error| failed("measure", "data directory")(error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// One open file description, however many handles there are.
struct OpenFile {
    file: File,
    /// A sync has failed: nothing is known about this file any more.
    failed: AtomicBool,
}

struct PosixFile {
    name: String,
    inner: Arc<OpenFile>,
}

impl PosixFile {
    fn not_failed(&self, verb: &'static str) -> Result<(), DiskError> {
        if self.inner.failed.load(Ordering::Acquire) {
            let why = io::Error::other("an earlier sync of this file failed");
            return Err(failed(verb, &self.name)(why));
        }
        Ok(())
    }
}

impl DiskFile for PosixFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(self.inner.file.metadata().map_err(failed("measure", &self.name))?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.inner.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                DiskError::Short { name: self.name.clone(), offset, wanted: buf.len() as u64 }
            }
            _ => failed("read", &self.name)(error),
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.not_failed("write")?;
        self.inner.file.write_all_at(data, offset).map_err(failed("write", &self.name))
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.not_failed("truncate")?;
        self.inner.file.set_len(len).map_err(failed("truncate", &self.name))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.not_failed("sync")?;
        self.inner.file.sync_data().map_err(|error| {
            self.inner.failed.store(true, Ordering::Release);
            failed("sync", &self.name)(error)
        })
    }
}

fn flock(file: &File, name: &str, held: &'static str) -> Result<(), DiskError> {
    file.try_lock().map_err(|error| {
        failed("lock", name)(match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::WouldBlock, held),
            TryLockError::Error(error) => error,
        })
    })
}

fn failed(verb: &'static str, name: &str) -> impl FnOnce(io::Error) -> DiskError {
    let name = name.to_string();
    move |source| match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing { verb, name },
        _ => DiskError::Io { verb, name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::task::{DiskTask, TaskDone, perform};
    use bytes::Bytes;

    fn disk() -> (tempfile::TempDir, PosixDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::new(dir.path());
        (dir, disk)
    }

    fn content(file: &dyn DiskFile) -> Vec<u8> {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_handle_survives_rename_replacement_and_removal() {
        let (_dir, disk) = disk();
        let old = disk.create("a.durus").unwrap();
        old.write_at(0, b"old").unwrap();
        let fresh = disk.create("b.durus").unwrap();
        fresh.write_at(0, b"fresh").unwrap();
        disk.rename("b.durus", "a.durus").unwrap();
        assert_eq!(content(&*old), b"old");
        assert_eq!(content(&*disk.open("a.durus").unwrap()), b"fresh");
        disk.remove("a.durus").unwrap();
        assert_eq!(content(&*fresh), b"fresh");
        assert!(matches!(disk.open("a.durus"), Err(DiskError::Missing { .. })));
    }

    #[test]
    fn reading_past_the_end_is_short_and_never_zeros() {
        let (_dir, disk) = disk();
        let file = disk.create("x").unwrap();
        file.write_at(0, b"12345").unwrap();
        let error = file.read_at(3, &mut [0; 3]).unwrap_err();
        assert!(matches!(error, DiskError::Short { offset: 3, wanted: 3, .. }), "{error}");
    }

    #[test]
    fn a_file_in_use_is_locked_against_others_but_not_against_ourselves() {
        let (dir, disk) = disk();
        let first = disk.create("a.durus").unwrap();
        first.write_at(0, b"x").unwrap();
        let second = disk.open("a.durus").unwrap();
        drop(first);
        // Another description, as another process would have it; flock does not tell the two cases apart.
        let other = PosixDisk::new(dir.path());
        let error = other.open("a.durus").err().unwrap();
        assert!(error.to_string().contains("another process"), "{error}");
        assert_eq!(other.create("a.durus").err().unwrap().to_string(), error.to_string());
        assert_eq!(content(&*second), b"x", "a refused creation must not have emptied it");
        assert_eq!(content(&*PosixDisk::read_only(dir.path()).open("a.durus").unwrap()), b"x");
        drop(second);
        other.open("a.durus").unwrap();
    }

    #[test]
    fn looking_changes_nothing() {
        let (dir, disk) = disk();
        disk.create("a").unwrap();
        let looking = PosixDisk::read_only(dir.path());
        looking.create("b").err().unwrap();
        looking.remove("a").unwrap_err();
        looking.open("a").unwrap().write_at(0, b"x").unwrap_err();
        assert_eq!(looking.list().unwrap(), ["a"]);
    }

    #[test]
    fn one_process_a_directory() {
        let (dir, disk) = disk();
        let held = disk.lock().unwrap();
        assert!(PosixDisk::new(dir.path()).lock().is_err());
        drop(held);
        let _held = PosixDisk::new(dir.path()).lock().unwrap();
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn names_in_directories_and_links() {
        let (_dir, disk) = disk();
        disk.create("orphans/deep/one").unwrap();
        disk.create("g1").unwrap();
        assert_eq!(disk.read_link("current").unwrap(), None);
        disk.set_link("current", "g1").unwrap();
        disk.set_link("current", "g2").unwrap();
        assert_eq!(disk.read_link("current").unwrap().as_deref(), Some("g2"));
        assert!(!disk.exists("current").unwrap(), "g2 is not there");
        assert_eq!(disk.list().unwrap(), ["current", "g1", "orphans/deep/one"]);
        disk.sync_dir().unwrap();
        for name in ["../x", "/etc/passwd", "", "a/../../b"] {
            assert!(disk.create(name).is_err(), "{name}");
        }
        assert!(disk.free_bytes().unwrap() > 0);
    }

    #[test]
    fn a_batch_of_appends_is_written_in_order_and_a_failure_ends_it() {
        let (_dir, disk) = disk();
        let file = disk.create("g").unwrap();
        let append = |offset, bytes: &'static [u8]| DiskTask::Append {
            file: file.clone(),
            offset,
            bytes: Bytes::from_static(bytes),
        };
        let create = |name: &str| DiskTask::Create { name: name.into() };
        let tasks = vec![
            (1, append(0, b"ab")),
            (2, append(2, b"cd")),
            (3, create("next")),
            (4, append(4, b"ef")),
            (5, create("../out")),
            (6, append(6, b"gh")),
        ];
        let results = perform(&disk, tasks);
        let numbers: Vec<u64> = results.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
        assert!(matches!(results[2].1, Ok(TaskDone::Created(_))));
        assert!(results[3].1.is_ok() && results[4].1.is_err() && results[5].1.is_err());
        assert_eq!(content(&*file), b"abcdef");
    }
}
