//! A disk in memory, for tests and for work that is not kept.
//!
//! It keeps every promise of `Disk` that can be kept without a medium. `sync` and `sync_dir` do nothing: it
//! simulates no crash, and nothing survives the last handle and the `MemDisk` itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, DiskFile};

/// What `free_bytes` answers; memory has no limit of its own.
const FREE_BYTES: u64 = 1 << 40;

/// See the module. A clone is the same disk.
#[derive(Clone, Default)]
pub struct MemDisk {
    names: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Clone)]
enum Entry {
    File(Arc<Mutex<Vec<u8>>>),
    Link(String),
}

struct MemFile {
    name: String,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// Nothing here panics while it holds the lock, so what a poisoned one guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemDisk {
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    fn file(&self, verb: &'static str, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let names = lock(&self.names);
        let target = match names.get(name) {
            Some(Entry::Link(target)) => target.as_str(),
            _ => name,
        };
        match names.get(target) {
            Some(Entry::File(bytes)) => {
                Ok(Arc::new(MemFile { name: name.to_owned(), bytes: bytes.clone() }))
            }
            _ => Err(DiskError::Missing { verb, name: name.to_owned() }),
        }
    }
}

impl Disk for MemDisk {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        self.file("open", name)
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        lock(&self.names).insert(name.to_owned(), Entry::File(Arc::default()));
        self.file("create", name)
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        Ok(lock(&self.names).contains_key(name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut names = lock(&self.names);
        let missing = || DiskError::Missing { verb: "rename", name: from.to_owned() };
        let entry = names.remove(from).ok_or_else(missing)?;
        names.insert(to.to_owned(), entry);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let missing = || DiskError::Missing { verb: "remove", name: name.to_owned() };
        lock(&self.names).remove(name).map(|_| ()).ok_or_else(missing)
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(lock(&self.names).keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError> {
        lock(&self.names).insert(name.to_owned(), Entry::Link(target.to_owned()));
        Ok(())
    }

    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError> {
        Ok(match lock(&self.names).get(name) {
            Some(Entry::Link(target)) => Some(target.clone()),
            _ => None,
        })
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        Ok(FREE_BYTES)
    }
}

impl DiskFile for MemFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(lock(&self.bytes).len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let bytes = lock(&self.bytes);
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        match rest.and_then(|rest| rest.get(..buf.len())) {
            Some(found) => buf.copy_from_slice(found),
            None => {
                let wanted = buf.len() as u64;
                return Err(DiskError::Short { name: self.name.clone(), offset, wanted });
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut bytes = lock(&self.bytes);
        let start = offset as usize;
        let end = start + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        lock(&self.bytes).resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_a_disk_promises() -> Result<(), DiskError> {
        let disk = MemDisk::new();
        let file = disk.create("a")?;
        file.write_at(3, b"xyz")?;
        let mut read = [9; 6];
        file.read_at(0, &mut read)?;
        assert_eq!(&read, b"\0\0\0xyz");
        assert!(matches!(file.read_at(1, &mut read), Err(DiskError::Short { offset: 1, .. })));
        file.truncate(4)?;
        disk.rename("a", "b")?;
        // the handle outlives the name
        assert_eq!((file.len()?, disk.exists("a")?), (4, false));
        disk.set_link("current", "b")?;
        assert_eq!(disk.open("current")?.len()?, 4);
        assert_eq!(disk.read_link("current")?.as_deref(), Some("b"));
        assert_eq!(disk.list()?, ["b", "current"]);
        disk.remove("b")?;
        assert!(matches!(disk.open("current"), Err(DiskError::Missing { .. })));
        Ok(())
    }
}
