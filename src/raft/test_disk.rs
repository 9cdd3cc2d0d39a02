//! A disk in memory that can lose what was not synced, fail at a chosen operation and be looked into.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::{Disk, DiskError, DiskFile};

#[derive(Clone, Default)]
pub struct TestDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    files: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes until the disk fails for good; None: never.
    fails_in: Option<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

/// What of the unsynced survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    /// The first half of what grew.
    Half,
    /// The right length, but zeros.
    Zeros,
    All,
}

impl TestDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics holding it")
    }

    /// Fails at the change after `changes` more, and at every later one.
    pub fn fail_in(&self, changes: u64) {
        self.lock().fails_in = Some(changes);
    }

    /// What is found after the power came back, on a disk of its own.
    pub fn crashed(&self, data: Keep, names_survive: bool) -> TestDisk {
        let inner = self.lock();
        let names = if names_survive { &inner.names } else { &inner.durable_names };
        let files = inner.files.iter().map(|inode| inode.crashed(data)).collect();
        TestDisk(Arc::new(Mutex::new(Inner {
            files,
            names: names.clone(),
            durable_names: names.clone(),
            ..Default::default()
        })))
    }

    pub fn contents(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.files[inner.names[name]].bytes.clone()
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.files.push(Inode { bytes: bytes.to_vec(), durable: bytes.to_vec() });
        let inode = inner.files.len() - 1;
        inner.names.insert(name.into(), inode);
        inner.durable_names.insert(name.into(), inode);
    }

    fn change(&self) -> Result<MutexGuard<'_, Inner>, DiskError> {
        let mut inner = self.lock();
        if inner.fails_in == Some(0) {
            let source = std::io::Error::other("told to fail");
            return Err(DiskError::Io { verb: "change", name: "test disk".into(), source });
        }
        inner.fails_in = inner.fails_in.map(|left| left - 1);
        Ok(inner)
    }
}

impl Inode {
    fn crashed(&self, data: Keep) -> Inode {
        let (old, new) = (self.durable.len(), self.bytes.len());
        let mut bytes = match data {
            Keep::Nothing => self.durable.clone(),
            Keep::Half | Keep::Zeros | Keep::All => self.bytes.clone(),
        };
        match data {
            Keep::Half => bytes.truncate(old + new.saturating_sub(old) / 2),
            Keep::Zeros => bytes.iter_mut().skip(old).for_each(|byte| *byte = 0),
            Keep::Nothing | Keep::All => {}
        }
        Inode { durable: bytes.clone(), bytes }
    }
}

struct TestFile {
    disk: TestDisk,
    inode: usize,
    name: String,
}

impl DiskFile for TestFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(self.disk.lock().files[self.inode].bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let inner = self.disk.lock();
        let from = offset as usize;
        let bytes = inner.files[self.inode].bytes.get(from..from + buf.len());
        let (name, wanted) = (self.name.clone(), buf.len() as u64);
        buf.copy_from_slice(bytes.ok_or(DiskError::Short { name, offset, wanted })?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut inner = self.disk.change()?;
        let bytes = &mut inner.files[self.inode].bytes;
        let end = offset as usize + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.disk.change()?.files[self.inode].bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        let mut inner = self.disk.change()?;
        let inode = &mut inner.files[self.inode];
        inode.durable = inode.bytes.clone();
        Ok(())
    }
}

impl Disk for TestDisk {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let inner = self.lock();
        let missing = DiskError::Missing { verb: "open", name: name.into() };
        let inode = *inner.names.get(name).ok_or(missing)?;
        Ok(Arc::new(TestFile { disk: self.clone(), inode, name: name.into() }))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut inner = self.change()?;
        inner.files.push(Inode::default());
        let inode = inner.files.len() - 1;
        inner.names.insert(name.into(), inode);
        Ok(Arc::new(TestFile { disk: self.clone(), inode, name: name.into() }))
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        Ok(self.lock().names.contains_key(name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut inner = self.change()?;
        let missing = DiskError::Missing { verb: "rename", name: from.into() };
        let inode = inner.names.remove(from).ok_or(missing)?;
        inner.names.insert(to.into(), inode);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut inner = self.change()?;
        let missing = DiskError::Missing { verb: "remove", name: name.into() };
        inner.names.remove(name).map(|_| ()).ok_or(missing)
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let mut inner = self.change()?;
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn set_link(&self, name: &str, _target: &str) -> Result<(), DiskError> {
        let source = std::io::ErrorKind::Unsupported.into();
        Err(DiskError::Io { verb: "link", name: name.into(), source })
    }

    fn read_link(&self, _name: &str) -> Result<Option<String>, DiskError> {
        Ok(None)
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        Ok(u64::MAX)
    }
}
