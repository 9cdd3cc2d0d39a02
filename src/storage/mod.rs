//! The disk as the rest of the node sees it.
//!
//! One `Disk` is one node's data directory. Names are flat (no directories but those in a name's own slashes, which
//! are made when needed). What is assumed of a disk: `write_at` reaches the medium only with `sync`, in any subset
//! and possibly torn; a created or renamed name survives a crash only after `sync_dir`; `rename` and `set_link`
//! replace whole or not at all; bytes that were synced stay as they are, or the checks above find out.
//!
//! Nothing here is asynchronous: calls block, and the shell makes them from threads made for it.

use std::sync::Arc;

mod behind;
pub mod loss;
pub mod mem;
pub mod posix;
pub mod promise;
pub mod synced;
pub mod task;

/// Why a disk said no.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{verb} {name}: {source}")]
    Io { verb: &'static str, name: String, source: std::io::Error },
    #[error("{verb} {name}: no such file")]
    Missing { verb: &'static str, name: String },
    #[error("read {name} at {offset}: file ends before {wanted} bytes")]
    Short { name: String, offset: u64, wanted: u64 },
    #[error(
        "read {name} at {offset}: the disk gives other bytes than when the file was verified; check the disk, and restart \
         this node to have the file verified and repaired"
    )]
    Changed { name: String, offset: u64 },
}

impl DiskError {
    /// After that nobody knows what the disk has.
    pub fn is_failed_sync(&self) -> bool {
        matches!(self, DiskError::Io { verb, .. } if verb.starts_with("sync"))
    }
}

/// An open file. A handle stays good when the name is renamed or removed.
pub trait DiskFile: Send + Sync {
    /// The name it was opened under, for messages.
    fn name(&self) -> &str;
    /// Bytes in the file now.
    fn len(&self) -> Result<u64, DiskError>;
    fn is_empty(&self) -> Result<bool, DiskError> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`, or `DiskError::Short`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;
    /// Writes all of `data` at `offset`. Not durable before `sync`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError>;
    /// Cuts or extends (with zeros). Not durable before `sync`.
    fn truncate(&self, len: u64) -> Result<(), DiskError>;
    /// fdatasync. After an error nothing about unsynced bytes is known: never retry.
    fn sync(&self) -> Result<(), DiskError>;
}

/// A node's data directory.
pub trait Disk: Send + Sync {
    /// Opens an existing file for reading and writing. `DiskError::Missing` if there is none.
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError>;
    /// Creates an empty file, replacing what is there. The name is not durable before `sync_dir`.
    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError>;
    fn exists(&self, name: &str) -> Result<bool, DiskError>;
    /// Atomic replace. Not durable before `sync_dir`.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    fn remove(&self, name: &str) -> Result<(), DiskError>;
    /// Every name, sorted.
    fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Makes creations, renames, removals and links durable.
    fn sync_dir(&self) -> Result<(), DiskError>;
    /// Atomically makes the symbolic link `name` point at `target`, replacing an older one. Not durable before `sync_dir`.
    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError>;
    /// Where the link points; None if there is no such link.
    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError>;
    /// Bytes that can still be written.
    fn free_bytes(&self) -> Result<u64, DiskError>;
}
