//! What a damaged file may have held, kept until all of it is here again.
//!
//! A node whose disk lost the end of its file may have acknowledged what is gone, and the acknowledgement may still be
//! on its way, or count at a master that waits for its own disk. So it is not enough to have again what the master says
//! is committed: within the epoch and generation of the loss the file must be as long as it was. A later epoch's
//! master, and a later generation's, counts none of the old acknowledgements.
//!
//! The file `recovering` holds it: epoch, generation and length, eight big-endian bytes each, and their crc32c, four.
//! It has its name before the damaged bytes are cut off.

use super::task::RECOVERING;
use super::{Disk, DiskError};
use crate::types::{Epoch, Generation, Tip};

/// Where it is written before it gets its name.
const UNNAMED: &str = "recovering.new";
const LEN: usize = 28;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Promised when the loss was found: nothing was acknowledged in a later one.
    pub epoch: Epoch,
    pub generation: Generation,
    /// Length of the file, the damaged part included.
    pub end: u64,
}

impl Loss {
    /// Is everything back that may have been acknowledged? `durable` is in the master's file of this epoch.
    pub fn is_made_good(&self, epoch: Epoch, generation: Generation, durable: Tip) -> bool {
        epoch > self.epoch || generation > self.generation || durable.offset >= self.end
    }
}

/// The loss this disk has not made good, if there is one. One that can't be read is of anything up to now.
pub fn read(disk: &dyn Disk, promised: Epoch) -> Result<Option<Loss>, DiskError> {
    if !disk.exists(RECOVERING)? {
        return Ok(None);
    }
    let file = disk.open(RECOVERING)?;
    let mut bytes = vec![0; (file.len()? as usize).min(LEN)];
    file.read_at(0, &mut bytes)?;
    let unknown = Loss { epoch: promised, generation: Generation(u64::MAX), end: u64::MAX };
    Ok(Some(decode(&bytes).unwrap_or(unknown)))
}

/// Makes `loss` durable, with what is left of an earlier one.
pub fn write(disk: &dyn Disk, loss: Loss) -> Result<(), DiskError> {
    let earlier = read(disk, loss.epoch)?;
    let same = earlier.filter(|it| (it.epoch, it.generation) == (loss.epoch, loss.generation));
    let end = same.map_or(loss.end, |it| it.end.max(loss.end));
    let file = disk.create(UNNAMED)?;
    let mut bytes = Vec::with_capacity(LEN);
    for number in [loss.epoch.0, loss.generation.0, end] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
    file.write_at(0, &bytes)?;
    file.sync()?;
    disk.rename(UNNAMED, RECOVERING)?;
    disk.sync_dir()
}

fn decode(bytes: &[u8]) -> Option<Loss> {
    let (numbers, sum) = bytes.split_at_checked(LEN - 4)?;
    if u32::from_be_bytes(sum.try_into().ok()?) != crc32c::crc32c(numbers) {
        return None;
    }
    let number = |at: usize| Some(u64::from_be_bytes(numbers[at..at + 8].try_into().ok()?));
    Some(Loss { epoch: Epoch(number(0)?), generation: Generation(number(8)?), end: number(16)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::mem::MemDisk;

    const LOSS: Loss = Loss { epoch: Epoch(3), generation: Generation(1), end: 900 };

    fn at(offset: u64) -> Tip {
        Tip { offset, ..Tip::default() }
    }

    #[test]
    fn a_loss_is_kept_and_does_not_shrink() {
        let disk = MemDisk::default();
        assert_eq!(read(&disk, Epoch(3)).unwrap(), None);
        write(&disk, LOSS).unwrap();
        write(&disk, Loss { end: 500, ..LOSS }).unwrap();
        assert_eq!(read(&disk, Epoch(9)).unwrap(), Some(LOSS), "damaged again while it recovered");
        let later = Loss { epoch: Epoch(4), end: 500, ..LOSS };
        write(&disk, later).unwrap();
        assert_eq!(read(&disk, Epoch(9)).unwrap(), Some(later));
        assert!(!disk.exists(UNNAMED).unwrap());
    }

    #[test]
    fn what_cannot_be_read_was_anything() {
        let disk = MemDisk::default();
        for bytes in [vec![], vec![7; LEN], vec![7; 3]] {
            disk.create(RECOVERING).unwrap().write_at(0, &bytes).unwrap();
            let loss = read(&disk, Epoch(5)).unwrap().expect("the name is there");
            assert!(!loss.is_made_good(Epoch(5), Generation(1), at(1 << 40)), "{bytes:?}");
            assert!(loss.is_made_good(Epoch(6), Generation(1), at(0)));
        }
    }

    /// Found by the model (`RecoveredWhole`): a slave acknowledged, lost the end of its file, and had again what was
    /// committed by then. Its old acknowledgement, at a master that still waited for its own disk, committed what the
    /// slave had not; the next election could do without it.
    #[test]
    fn what_was_acknowledged_and_not_committed_yet_is_waited_for() {
        assert!(!LOSS.is_made_good(Epoch(3), Generation(1), at(899)));
        assert!(LOSS.is_made_good(Epoch(3), Generation(1), at(900)));
        assert!(LOSS.is_made_good(Epoch(4), Generation(1), at(10)));
        assert!(LOSS.is_made_good(Epoch(3), Generation(2), at(10)));
    }
}
