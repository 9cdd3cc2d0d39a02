//! The data directory before the core sees it: made, locked, known to be this node's, and with the imported file in
//! place if it is new.
//!
//! An import gets its seal before it gets its name. So under its name there is a file of ours or none, and a crash in
//! the middle of the seal leaves nothing that could be taken for the operator's torn file: the copy begins anew.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{Logger, info};

pub use super::core::FIRST;
use super::identity::{self, IdentityError, Known};
use crate::config::Config;
use crate::raft::RaftLog;
use crate::shelf::{self, Shelf, ShelfError};
use crate::storage::posix::{DirLock, PosixDisk};
use crate::storage::task::CURRENT;
use crate::storage::{Disk, DiskError};

const PARTIAL: &str = "import.partial";
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("cannot make the data directory {}: {source}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot import {}: {source}", path.display())]
    Import { path: PathBuf, source: io::Error },
    #[error("cannot import: {0}")]
    ImportShelf(ShelfError),
    #[error(
        "cannot import {}: a Durus server has it open; stop that first, so that nothing it still takes \
         is missing here", path.display()
    )]
    ImportInUse { path: PathBuf },
}

/// A data directory that is ready.
pub struct Prepared {
    pub disk: Arc<PosixDisk>,
    pub known: Known,
    /// Keeps other processes out.
    pub lock: DirLock,
}

pub fn prepare(config: &Config, log: &Logger) -> Result<Prepared, PrepareError> {
    let made = std::fs::create_dir_all(&config.data);
    made.map_err(|source| PrepareError::Make { path: config.data.clone(), source })?;
    let disk = Arc::new(PosixDisk::new(&config.data));
    let lock = disk.lock()?;
    let known = identity::read_or_make(&*disk, &config.cluster, config.node, identity::new_uuid)?;
    if let Some(path) = &config.import {
        // Where a Raft log is, or was, the data was there before it: it may be lost now, and is not to be begun anew.
        let new = !known.born && !RaftLog::exists(&*disk)?;
        match if new { import(&*disk, path)? } else { None } {
            None => {
                info!(log, "nothing is imported: there is data here already"; "import" => path.display());
            }
            Some(bytes) => {
                info!(log, "imported"; "from" => path.display(), "bytes" => bytes);
            }
        }
    }
    Ok(Prepared { disk, known, lock })
}

/// Copies the file in, appends the seal if it is a plain Durus file, and gives it its final name: whole or not at all.
/// Bytes copied; None if there is data already. The core checks what is in it once more.
pub fn import(disk: &dyn Disk, path: &Path) -> Result<Option<u64>, PrepareError> {
    if disk.read_link(CURRENT)?.is_some() || disk.exists(FIRST)? {
        return Ok(None);
    }
    let failed = |source| PrepareError::Import { path: path.to_path_buf(), source };
    let mut source = File::open(path).map_err(failed)?;
    // Shared: keeps a stock server out, but not the other nodes of this machine that import the same file.
    source.try_lock_shared().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => PrepareError::ImportInUse { path: path.into() },
        std::fs::TryLockError::Error(error) => failed(error),
    })?;
    let copy = disk.create(PARTIAL)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let read = source.read(&mut chunk).map_err(failed)?;
        if read == 0 {
            break;
        }
        copy.write_at(at, &chunk[..read])?;
        at += read as u64;
    }
    copy.sync()?;
    drop(copy);
    match Shelf::open(disk, PARTIAL) {
        Ok(_) => {}
        Err(ShelfError::Plain { .. }) => {
            shelf::adopt(disk, PARTIAL).map_err(|error| of_source(error, path))?;
        }
        Err(error) => return Err(of_source(error, path)),
    }
    disk.rename(PARTIAL, FIRST)?;
    disk.sync_dir()?;
    Ok(Some(at))
}

/// What is wrong with the copy is wrong with the source, and is to be mended there.
fn of_source(error: ShelfError, path: &Path) -> PrepareError {
    let source = path.display().to_string();
    PrepareError::ImportShelf(match error {
        ShelfError::NotShelf { .. } => ShelfError::NotShelf { name: source },
        ShelfError::ForeignTail { offset, .. } => ShelfError::ForeignTail { name: source, offset },
        ShelfError::Torn { offset, len, .. } => ShelfError::Torn { name: source, offset, len },
        ShelfError::Corrupt { offset, seq, why, .. } => {
            ShelfError::Corrupt { name: source, offset, seq, why }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EXAMPLE;
    use crate::shelf::testing::plain_file;

    fn config(dir: &Path) -> Config {
        let mut config = Config::parse(EXAMPLE, "example", &[]).unwrap();
        config.data = dir.join("made/data");
        config.import = Some(dir.join("old.durus"));
        config
    }

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    #[test]
    fn a_file_is_imported_once_into_a_new_directory() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let large = vec![7; 3 * CHUNK_BYTES + 5];
        let old = plain_file(&[(0, &large, &[])], &[]);
        std::fs::write(dir.path().join("old.durus"), &old).unwrap();
        let first = prepare(&config, &log()).unwrap();
        let imported = std::fs::read(config.data.join(FIRST)).unwrap();
        assert!(imported.starts_with(&old) && imported.len() > old.len(), "no seal");
        let busy = prepare(&config, &log()).err().unwrap().to_string();
        assert!(busy.contains("another packmaster node runs in this directory"), "{busy}");
        let known = first.known;
        drop(first);
        std::fs::write(dir.path().join("old.durus"), b"changed").unwrap();
        assert_eq!(prepare(&config, &log()).unwrap().known, known);
        assert_eq!(std::fs::read(config.data.join(FIRST)).unwrap(), imported);
    }

    #[test]
    fn an_import_that_cannot_be_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let error = prepare(&config, &log()).err().unwrap().to_string();
        assert!(error.contains("old.durus: No such file"), "{error}");
        let torn = [&plain_file(&[(0, b"root", &[])], &[])[..], &[0, 0, 0]].concat();
        std::fs::write(dir.path().join("old.durus"), torn).unwrap();
        let error = prepare(&config, &log()).err().unwrap().to_string();
        assert!(error.contains("shelf adopt --cut-torn /"), "{error}");
        assert!(!config.data.join(FIRST).exists());
        let held = File::create(dir.path().join("old.durus")).unwrap();
        held.try_lock().unwrap();
        let error = prepare(&config, &log()).err().unwrap().to_string();
        assert!(error.contains("a Durus server has it open"), "{error}");
    }
}
