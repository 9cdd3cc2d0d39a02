//! A disk that writes down what is changed on it, and that can lie: it can say that some syncs were done and not do them.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use packmaster::storage::{Disk, DiskError, DiskFile};

const DIRECTORY: &str = "sync the directory";

pub struct Watched {
    inner: Arc<dyn Disk>,
    notes: Arc<Notes>,
}

#[derive(Default)]
struct Notes {
    changes: Mutex<Vec<String>>,
    /// Nothing before it was said.
    lies: OnceLock<Lies>,
}

/// What is only said to be done.
pub enum Lies {
    /// These changes.
    About(Vec<usize>),
    /// Every sync of a file.
    Syncs,
}

struct WatchedFile {
    inner: Arc<dyn DiskFile>,
    notes: Arc<Notes>,
}

impl Watched {
    pub fn new(inner: Arc<dyn Disk>) -> Arc<Watched> {
        Arc::new(Watched { inner, notes: Arc::default() })
    }

    /// Changes are counted from here on, and it lies about some of them. To be called once.
    pub fn begin(&self, lies: Lies) {
        self.notes.lock().clear();
        assert!(self.notes.lies.set(lies).is_ok(), "begun twice");
    }

    pub fn changes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }

    fn file(&self, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { inner, notes: self.notes.clone() })
    }
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a change; false if it is not to be done.
    fn note(&self, what: String) -> bool {
        let mut changes = self.lock();
        let is_lie = match self.lies.get() {
            None => false,
            Some(Lies::About(lies)) => lies.contains(&changes.len()),
            Some(Lies::Syncs) => what.starts_with("sync ") && what != DIRECTORY,
        };
        changes.push(what);
        !is_lie
    }
}

impl Disk for Watched {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.file(self.inner.open(name)?))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        self.notes.note(format!("create {name}"));
        Ok(self.file(self.inner.create(name)?))
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        self.inner.exists(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.notes.note(format!("rename {from} to {to}"));
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.notes.note(format!("remove {name}"));
        self.inner.remove(name)
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.inner.list()
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        match self.notes.note(DIRECTORY.to_string()) {
            true => self.inner.sync_dir(),
            false => Ok(()),
        }
    }

    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError> {
        self.notes.note(format!("link {name} to {target}"));
        self.inner.set_link(name, target)
    }

    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError> {
        self.inner.read_link(name)
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        self.inner.free_bytes()
    }
}

impl DiskFile for WatchedFile {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64, DiskError> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let (name, len) = (self.name(), data.len());
        self.notes.note(format!("write {len} bytes at {offset} of {name}"));
        self.inner.write_at(offset, data)
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.notes.note(format!("truncate {} to {len}", self.name()));
        self.inner.truncate(len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        match self.notes.note(format!("sync {}", self.name())) {
            true => self.inner.sync(),
            false => Ok(()),
        }
    }
}
