//! Up to where the current file is known to be on the disk.
//!
//! A power failure can leave a hole in what was not synced: a good transaction after sectors that never arrived. That is
//! just what damage looks like. A node with peers need not tell them apart, since it can fetch everything again. A node
//! alone must: what was never synced was never acknowledged, and is cut off like any tear; what was is damage, and is
//! never cut off.
//!
//! So a node alone notes now and then how far its file was synced. The note is never ahead of the disk, and may be behind:
//! what was acknowledged since the last one and is damaged by the very power failure would be taken for a tear.
//!
//! The file `synced` holds generation and offset, eight big-endian bytes each, and their crc32c, four.

use super::{Disk, DiskError};
use crate::types::Generation;

pub const SYNCED: &str = "synced";
/// Where it is written before it gets its name.
const UNNAMED: &str = "synced.new";
const LEN: usize = 20;

/// Notes that the file of `generation` is durable up to `offset`. The name may be lost with the next power failure: then
/// the note before it counts.
pub fn write(disk: &dyn Disk, generation: Generation, offset: u64) -> Result<(), DiskError> {
    let file = disk.create(UNNAMED)?;
    let mut bytes = [generation.0.to_be_bytes(), offset.to_be_bytes()].concat();
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
    file.write_at(0, &bytes)?;
    file.sync()?;
    disk.rename(UNNAMED, SYNCED)
}

/// Up to where the file of `generation` is known to be durable: 0 if nothing is known.
pub fn read(disk: &dyn Disk, generation: Generation) -> Result<u64, DiskError> {
    if !disk.exists(SYNCED)? {
        return Ok(0);
    }
    let file = disk.open(SYNCED)?;
    let mut bytes = vec![0; (file.len()? as usize).min(LEN)];
    file.read_at(0, &mut bytes)?;
    let noted = decode(&bytes).filter(|(noted, _)| *noted == generation);
    Ok(noted.map_or(0, |(_, offset)| offset))
}

fn decode(bytes: &[u8]) -> Option<(Generation, u64)> {
    let (numbers, sum) = bytes.split_at_checked(LEN - 4)?;
    if u32::from_be_bytes(sum.try_into().ok()?) != crc32c::crc32c(numbers) {
        return None;
    }
    let number = |at: usize| Some(u64::from_be_bytes(numbers[at..at + 8].try_into().ok()?));
    Some((Generation(number(0)?), number(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::mem::MemDisk;

    #[test]
    fn a_note_is_of_one_generation_and_an_unreadable_one_says_nothing() {
        let disk = MemDisk::default();
        assert_eq!(read(&disk, Generation(1)).unwrap(), 0);
        write(&disk, Generation(1), 500).unwrap();
        write(&disk, Generation(1), 700).unwrap();
        assert_eq!(read(&disk, Generation(1)).unwrap(), 700);
        assert_eq!(read(&disk, Generation(2)).unwrap(), 0);
        for bytes in [vec![], vec![7; LEN], vec![7; 3]] {
            disk.create(SYNCED).unwrap().write_at(0, &bytes).unwrap();
            assert_eq!(read(&disk, Generation(1)).unwrap(), 0, "{bytes:?}");
        }
    }
}
