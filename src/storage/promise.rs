//! The promise: the one number a voter must never forget.
//!
//! The file `promise` holds it twice, in sectors of their own, each with a checksum. Both copies are written by one
//! write and one sync; a crash in the middle leaves at least one whole copy, of the old promise or of the new one, and
//! the greater of the whole ones counts. A single damaged copy is tolerated, two are corruption. The first promise of a
//! disk gets its name only when it is durable: there is no promise file that holds none. A first start promises epoch 0,
//! which no election has: from then on a disk without the file has lost it.

use super::{Disk, DiskError};
use crate::types::Epoch;

/// The file's name.
pub const NAME: &str = "promise";
const FRESH: &str = "promise.new";
const MAGIC: &[u8; 8] = b"PMPROM-1";
/// Distance of the copies: two sectors of any disk we know.
const COPY_LEN: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum PromiseError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "the file \"promise\" is damaged in both copies: this node can't know what it has promised"
    )]
    Damaged,
}

/// What was promised, durable when this returns; `None` if this disk has never promised anything.
pub fn read(disk: &dyn Disk) -> Result<Option<Epoch>, PromiseError> {
    if !disk.exists(NAME)? {
        return Ok(None);
    }
    let file = disk.open(NAME)?;
    let mut bytes = vec![0; (file.len()? as usize).min(2 * COPY_LEN)];
    file.read_at(0, &mut bytes)?;
    // It may have been read from memory: a process that was killed before its syncs has left it there, and its name.
    file.sync()?;
    disk.sync_dir()?;
    let copies = bytes.chunks(COPY_LEN).filter_map(decode);
    copies.max().map(Some).ok_or(PromiseError::Damaged)
}

/// Makes the promise durable.
pub fn write(disk: &dyn Disk, epoch: Epoch) -> Result<(), DiskError> {
    let fresh = !disk.exists(NAME)?;
    let file = if fresh { disk.create(FRESH)? } else { disk.open(NAME)? };
    let mut bytes = vec![0; 2 * COPY_LEN];
    for copy in bytes.chunks_mut(COPY_LEN) {
        copy[..8].copy_from_slice(MAGIC);
        copy[8..16].copy_from_slice(&epoch.0.to_be_bytes());
        let sum = crc32c::crc32c(&copy[..16]);
        copy[16..20].copy_from_slice(&sum.to_be_bytes());
    }
    file.write_at(0, &bytes)?;
    file.sync()?;
    if fresh {
        disk.rename(FRESH, NAME)?;
        disk.sync_dir()?;
    }
    Ok(())
}

fn decode(copy: &[u8]) -> Option<Epoch> {
    let sum = u32::from_be_bytes(copy.get(16..20)?.try_into().ok()?);
    if &copy[..8] != MAGIC || crc32c::crc32c(&copy[..16]) != sum {
        return None;
    }
    Some(Epoch(u64::from_be_bytes(copy[8..16].try_into().ok()?)))
}
