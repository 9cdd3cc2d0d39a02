//! A node's data directory on a real disk.
//!
//! Reads and writes are positioned (pread, pwrite), so a handle is shared between threads without a lock. `sync` is
//! fdatasync; once it has failed on a file, everything after it on that file fails too, because the kernel may have
//! dropped the pages and a second fdatasync would lie.
//!
//! Every file that is opened for writing is flocked, exclusively and without waiting, as stock Durus does it before it
//! writes: while a node holds its data file, a Durus server started on it by mistake gets an error, and the other way
//! round. An flock belongs to one open file description, so two openings of a file in this process must share one
//! description: `open` looks up (device, inode) among the files that are open already. One that is being closed holds its
//! lock until it is: who opens the same inode then waits for that moment.
//!
//! Nothing here retries, caches, or knows what a name means.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

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
    shared: Arc<Shared>,
}

/// What the threads that use a directory have in common.
#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// A file was closed that was in the table.
    closed: Condvar,
    /// Held while directories are synced, with what has failed in that: after that nothing is known about any of them.
    syncing: Mutex<Option<String>>,
    /// For tests that force an order of what threads do.
    #[cfg(test)]
    hook: std::sync::OnceLock<tests::Hook>,
}

#[derive(Default)]
struct Table {
    /// Files that are open, by device and inode, until they are closed.
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
            shared: Arc::default(),
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

    /// For what changes the directory: refuses if read-only, makes the directories in `name`. To be noted (`changed`) after
    /// the change.
    fn path_to_change(&self, verb: &'static str, name: &str) -> Result<PathBuf, DiskError> {
        if self.read_only {
            let why = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened for looking only");
            return Err(failed(verb, name)(why));
        }
        let path = self.path(verb, name)?;
        if let Some(parent) = path.parent().filter(|parent| *parent != self.root) {
            fs::create_dir_all(parent).map_err(failed(verb, name))?;
        }
        Ok(path)
    }

    /// Notes for `sync_dir` what a change of `path` has changed. After the change, whether it went well or not: a note that
    /// is there before can be taken by another thread's `sync_dir`, which then syncs what is not changed yet. One that
    /// runs between the change and the note leaves the note to our own.
    fn changed(&self, path: &Path) {
        self.shared.reached(Moment::Changed, path);
        let parents = path.ancestors().skip(1).take_while(|dir| *dir != self.root);
        self.shared.table().changed.extend(parents.map(Path::to_path_buf));
    }

    /// The handle for a freshly opened description: the one that exists for the same inode, or this one, locked.
    fn handle(&self, name: &str, file: File, empty: bool) -> Result<Arc<dyn DiskFile>, DiskError> {
        let meta = file.metadata().map_err(failed("open", name))?;
        let key = (meta.dev(), meta.ino());
        let mut table = self.shared.table();
        let inner = loop {
            match table.open.get(&key).map(Weak::upgrade) {
                Some(Some(inner)) => break inner,
                // Its last handle is gone, and it is being closed: until then its lock looks like another process's.
                Some(None) => table = self.shared.wait_closed(table),
                None => {
                    if !self.read_only {
                        flock(&file, name, "another process has it open for writing")?;
                    }
                    let inner = Arc::new(OpenFile::new(file, key, self.shared.clone()));
                    table.open.insert(key, Arc::downgrade(&inner));
                    break inner;
                }
            }
        };
        drop(table);
        if empty {
            inner.file().set_len(0).map_err(failed("create", name))?;
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
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        self.changed(&path);
        let file = self.handle(name, file.map_err(failed("create", name))?, true)?;
        Ok(if self.writes_behind { Arc::new(Behind::new(file)?) } else { file })
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        self.path("look for", name)?.try_exists().map_err(failed("look for", name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let source = self.path_to_change("rename", from)?;
        let target = self.path_to_change("rename", to)?;
        let renamed = fs::rename(&source, &target);
        self.changed(&source);
        self.changed(&target);
        renamed.map_err(failed("rename", from))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let path = self.path_to_change("remove", name)?;
        let removed = fs::remove_file(&path);
        self.changed(&path);
        removed.map_err(failed("remove", name))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut names = Vec::new();
        self.list_below(&self.root, &mut names).map_err(failed("list", "data directory"))?;
        names.sort();
        Ok(names)
    }

    /// One thread at a time: who finds nothing noted relies on what another one has taken, so that must be done. And once
    /// it has failed for one it fails for all: what was noted then is nobody's any more.
    fn sync_dir(&self) -> Result<(), DiskError> {
        let mut syncing = self.shared.syncing();
        if let Some(why) = &*syncing {
            let why = io::Error::other(format!("an earlier sync of a directory failed: {why}"));
            return Err(failed("sync directory", "data directory")(why));
        }
        let changed = std::mem::take(&mut self.shared.table().changed);
        for dir in changed.iter().chain([&self.root]) {
            self.shared.reached(Moment::Syncing, dir);
            if let Err((is_lost, error)) = sync_one_dir(dir) {
                match is_lost {
                    true => *syncing = Some(error.to_string()),
                    false => self.shared.table().changed.extend(changed.iter().cloned()),
                }
                return Err(failed("sync directory", &dir.to_string_lossy())(error));
            }
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
        let linked =
            std::os::unix::fs::symlink(target, &fresh).and_then(|()| fs::rename(&fresh, &path));
        self.changed(&path);
        linked.map_err(failed("link", name))
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

/// What a test may want to come between.
enum Moment {
    /// Something in the directory has changed, and it is not noted yet.
    Changed,
    /// The directory is about to be synced.
    Syncing,
    /// The last handle of a file is gone, and it is about to be closed.
    Closing,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("a thread panicked while it held the table of open files")
    }

    fn wait_closed<'a>(&self, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        self.closed.wait(table).expect("a thread panicked while it held the table of open files")
    }

    fn syncing(&self) -> MutexGuard<'_, Option<String>> {
        self.syncing.lock().expect("a thread panicked while it synced a directory")
    }

    #[cfg(test)]
    fn reached(&self, moment: Moment, path: &Path) {
        if let Some(hook) = self.hook.get() {
            hook(moment, path);
        }
    }

    #[cfg(not(test))]
    fn reached(&self, _: Moment, _: &Path) {}
}

/// One open file description, however many handles there are.
struct OpenFile {
    /// None: it is being dropped, and is closed. That comes before it leaves the table.
    file: Option<File>,
    key: (u64, u64),
    shared: Arc<Shared>,
    /// A sync has failed: nothing is known about this file any more.
    failed: AtomicBool,
}

impl OpenFile {
    fn new(file: File, key: (u64, u64), shared: Arc<Shared>) -> OpenFile {
        OpenFile { file: Some(file), key, shared, failed: AtomicBool::new(false) }
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("nobody uses a file that is being dropped")
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.shared.reached(Moment::Closing, Path::new(""));
        drop(self.file.take());
        let mut table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.open.remove(&self.key);
        self.shared.closed.notify_all();
    }
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
        Ok(self.inner.file().metadata().map_err(failed("measure", &self.name))?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.inner.file().read_exact_at(buf, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                DiskError::Short { name: self.name.clone(), offset, wanted: buf.len() as u64 }
            }
            _ => failed("read", &self.name)(error),
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.not_failed("write")?;
        self.inner.file().write_all_at(data, offset).map_err(failed("write", &self.name))
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.not_failed("truncate")?;
        self.inner.file().set_len(len).map_err(failed("truncate", &self.name))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.not_failed("sync")?;
        self.inner.file().sync_data().map_err(|error| {
            self.inner.failed.store(true, Ordering::Release);
            failed("sync", &self.name)(error)
        })
    }
}

/// An error, and whether something may be lost by it: not if the directory could not even be opened.
fn sync_one_dir(dir: &Path) -> Result<(), (bool, io::Error)> {
    let dir = File::open(dir).map_err(|error| (false, error))?;
    dir.sync_all().map_err(|error| (true, error))
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
#[path = "posix_tests.rs"]
mod tests;
