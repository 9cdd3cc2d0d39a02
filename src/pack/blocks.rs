//! A base in blocks, so that a copy of it can be proved piece by piece.
//!
//! The base (base transaction, offset map and seal) is cut into blocks of one size, the last one shorter. The list of
//! their SHA-1 hashes has a *root*, which also covers the two lengths; the nodes agree on it as they agree on the base
//! hash. Whoever holds a list that has the agreed root can prove any block alone, whoever it comes from.
//!
//! Three jobs: making the list of a base that is there, checking an unfinished copy against a list, and reading one
//! block for somebody else. All of them are off the core's thread.

use std::sync::Arc;

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::{JobError, JobOutcome, STEP_BYTES, Step, between};
use crate::storage::{Disk, DiskError, DiskFile};
use crate::types::BlockRoot;

/// Bytes of a block, but in the simulator, whose bases are small.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// Bytes of a block's hash.
pub const HASH_LEN: usize = 20;
/// A base of more blocks than this is nonsense: 4 PiB.
const BLOCKS_MAX: u64 = 1 << 32;

type Hash = [u8; HASH_LEN];

/// The hashes of all blocks of one base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocks {
    base_len: u64,
    block_bytes: u64,
    hashes: Vec<Hash>,
}

impl Blocks {
    pub fn root(&self) -> BlockRoot {
        let mut sha = Sha1::new();
        sha.update(self.base_len.to_be_bytes());
        sha.update(self.block_bytes.to_be_bytes());
        self.hashes.iter().for_each(|hash| sha.update(hash));
        BlockRoot(sha.finalize().into())
    }

    pub fn base_len(&self) -> u64 {
        self.base_len
    }

    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub fn count(&self) -> u64 {
        self.hashes.len() as u64
    }

    pub fn offset(&self, block: u64) -> u64 {
        block * self.block_bytes
    }

    /// Bytes of this block.
    pub fn len(&self, block: u64) -> u64 {
        self.block_bytes.min(self.base_len - self.offset(block))
    }

    /// Never: a base has a seal at least.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Are these the bytes of that block?
    pub fn proves(&self, block: u64, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.len(block)
            && self.hashes[block as usize] == <Hash>::from(Sha1::digest(bytes))
    }

    /// At most `max` hashes from `first` on, one after the other.
    pub fn part(&self, first: u64, max: usize) -> Bytes {
        let from = (first.min(self.count())) as usize;
        let to = self.hashes.len().min(from + max);
        self.hashes[from..to].concat().into()
    }
}

/// Bytes go in, from the first to the last; the list comes out.
pub struct Lister {
    block_bytes: u64,
    done: u64,
    /// Of the block that is not full yet.
    sha: Sha1,
    hashes: Vec<Hash>,
}

impl Lister {
    pub fn new(block_bytes: u64) -> Lister {
        assert!(block_bytes > 0, "blocks without bytes");
        Lister { block_bytes, done: 0, sha: Sha1::new(), hashes: Vec::new() }
    }

    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.block_bytes - self.done % self.block_bytes;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.sha.update(now);
            self.done += now.len() as u64;
            if now.len() as u64 == room {
                self.hashes.push(self.sha.finalize_reset().into());
            }
            bytes = later;
        }
    }

    pub fn finish(mut self) -> Blocks {
        if !self.done.is_multiple_of(self.block_bytes) {
            self.hashes.push(self.sha.finalize().into());
        }
        let Lister { block_bytes, done, hashes, .. } = self;
        Blocks { base_len: done, block_bytes, hashes }
    }
}

/// A list as it comes from a peer, part by part. Memory is taken as hashes arrive, not as they are announced.
pub struct Parts {
    base_len: u64,
    block_bytes: u64,
    count: u64,
    hashes: Vec<Hash>,
}

impl Parts {
    pub fn new(base_len: u64, block_bytes: u64) -> Result<Parts, String> {
        let count = base_len.checked_div(block_bytes).map_or(0, |_| base_len.div_ceil(block_bytes));
        match count {
            0 | BLOCKS_MAX.. => Err(format!("{base_len} bytes in blocks of {block_bytes}")),
            _ => Ok(Parts { base_len, block_bytes, count, hashes: Vec::new() }),
        }
    }

    /// The next hash that is wanted.
    pub fn next(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// Takes the part that begins with the block `first`; true when the list is whole.
    pub fn take(&mut self, base_len: u64, first: u64, hashes: &[u8]) -> Result<bool, String> {
        let (parts, rest) = hashes.as_chunks::<HASH_LEN>();
        let fits = base_len == self.base_len && first == self.next() && rest.is_empty();
        if !fits || parts.is_empty() || self.next() + parts.len() as u64 > self.count {
            return Err(format!("{} bytes of hashes from block {first} on", hashes.len()));
        }
        self.hashes.extend_from_slice(parts);
        Ok(self.next() == self.count)
    }

    pub fn whole(self) -> Blocks {
        let Parts { base_len, block_bytes, hashes, .. } = self;
        Blocks { base_len, block_bytes, hashes }
    }
}

// ---- jobs ----

/// Makes the list of the first `base_len` bytes of a file.
pub struct List {
    name: String,
    base_len: u64,
    file: Option<Arc<dyn DiskFile>>,
    lister: Lister,
}

impl List {
    pub fn new(name: String, base_len: u64, block_bytes: u64) -> List {
        List { name, base_len, file: None, lister: Lister::new(block_bytes) }
    }

    pub(super) fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        let file = opened(&mut self.file, disk, &self.name)?;
        let mut piece = vec![0; STEP_BYTES.min(self.base_len - self.lister.done) as usize];
        file.read_at(self.lister.done, &mut piece)?;
        self.lister.push(&piece);
        if self.lister.done < self.base_len {
            return Ok(Step::More { permille: between(0, 1000, self.lister.done, self.base_len) });
        }
        let lister = std::mem::replace(&mut self.lister, Lister::new(1));
        Ok(Step::Done(JobOutcome::Listed(lister.finish())))
    }
}

/// An unfinished copy, looked through.
pub struct Checked {
    pub file: Arc<dyn DiskFile>,
    /// Which blocks are there, as they should be.
    pub have: Vec<bool>,
}

/// Compares a copy that may have holes, torn blocks and no end with the list.
pub struct Check {
    name: String,
    blocks: Arc<Blocks>,
    file: Option<Arc<dyn DiskFile>>,
    have: Vec<bool>,
}

impl Check {
    pub fn new(name: String, blocks: Arc<Blocks>) -> Check {
        Check { name, blocks, file: None, have: Vec::new() }
    }

    pub(super) fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        let file = opened(&mut self.file, disk, &self.name)?;
        let (blocks, mut read) = (&self.blocks, 0);
        while (self.have.len() as u64) < blocks.count() && read < STEP_BYTES {
            let block = self.have.len() as u64;
            let mut bytes = vec![0; blocks.len(block) as usize];
            // What can't be read is missing, as what was never written is.
            let there = file.read_at(blocks.offset(block), &mut bytes).is_ok();
            self.have.push(there && blocks.proves(block, &bytes));
            read += bytes.len() as u64;
        }
        let done = self.have.len() as u64;
        if done < blocks.count() {
            return Ok(Step::More { permille: between(0, 1000, done, blocks.count()) });
        }
        let have = std::mem::take(&mut self.have);
        Ok(Step::Done(JobOutcome::Checked(Checked { file, have })))
    }
}

/// Reads bytes for somebody else.
pub struct Read {
    pub name: String,
    pub offset: u64,
    pub len: u64,
}

impl Read {
    pub(super) fn step(&mut self, disk: &dyn Disk) -> Result<Step, JobError> {
        let mut bytes = vec![0; self.len as usize];
        disk.open(&self.name)?.read_at(self.offset, &mut bytes)?;
        Ok(Step::Done(JobOutcome::Read(bytes.into())))
    }
}

fn opened(
    file: &mut Option<Arc<dyn DiskFile>>,
    disk: &dyn Disk,
    name: &str,
) -> Result<Arc<dyn DiskFile>, DiskError> {
    match file {
        Some(file) => Ok(file.clone()),
        None => Ok(file.insert(disk.open(name)?).clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Job;
    use crate::storage::mem::MemDisk;

    fn base(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 % 251) as u8).collect()
    }

    fn list(bytes: &[u8], block_bytes: u64) -> Blocks {
        let mut lister = Lister::new(block_bytes);
        lister.push(bytes);
        lister.finish()
    }

    #[test]
    fn the_list_does_not_depend_on_how_the_bytes_come() {
        for len in [1, 9, 10, 11, 95, 100] {
            let bytes = base(len);
            let whole = list(&bytes, 10);
            assert_eq!(whole.count(), len.div_ceil(10) as u64);
            for piece in [1, 3, 10, 17] {
                let mut lister = Lister::new(10);
                bytes.chunks(piece).for_each(|piece| lister.push(piece));
                assert_eq!(lister.finish(), whole);
            }
            let disk = MemDisk::new();
            disk.create("base")
                .unwrap()
                .write_at(0, &[&bytes[..], b"what follows"].concat())
                .unwrap();
            let job = Job::List(List::new("base".into(), len as u64, 10));
            let Ok(JobOutcome::Listed(listed)) = job.run(&disk) else { panic!("no list") };
            assert_eq!((listed.root(), &listed), (whole.root(), &whole));
        }
    }

    #[test]
    fn the_root_covers_lengths_and_every_block() {
        let bytes = base(95);
        let root = list(&bytes, 10).root();
        assert_ne!(list(&bytes[..94], 10).root(), root);
        assert_ne!(list(&bytes, 11).root(), root);
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(list(&other, 10).root(), root);
        }
    }

    #[test]
    fn a_list_in_parts_is_the_list() {
        let whole = list(&base(95), 10);
        let mut parts = Parts::new(95, 10).unwrap();
        assert_eq!(parts.take(95, 0, &whole.part(0, 4)), Ok(false));
        // The same again, a hole, another base, too much, half a hash.
        assert!(parts.take(95, 0, &whole.part(0, 4)).is_err());
        assert!(parts.take(95, 5, &whole.part(5, 4)).is_err());
        assert!(parts.take(94, 4, &whole.part(4, 4)).is_err());
        assert!(parts.take(95, 4, &[0; 20 * 7]).is_err());
        assert!(parts.take(95, 4, &[0; 30]).is_err());
        assert_eq!(parts.take(95, parts.next(), &whole.part(4, 100)), Ok(true));
        assert_eq!(parts.whole(), whole);
        for (base_len, block_bytes) in [(0, 10), (10, 0), (u64::MAX, 1)] {
            assert!(Parts::new(base_len, block_bytes).is_err());
        }
    }

    #[test]
    fn of_a_copy_only_what_is_proved_counts() {
        let bytes = base(95);
        let blocks = Arc::new(list(&bytes, 10));
        let disk = MemDisk::new();
        let copy = disk.create("copy").unwrap();
        let put = |block: usize, bytes: &[u8]| copy.write_at(10 * block as u64, bytes).unwrap();
        put(0, &bytes[..10]);
        put(3, &bytes[30..40]);
        put(4, &bytes[40..43]); // torn
        put(6, &bytes[50..60]); // of another place
        let check = || match Job::Check(Check::new("copy".into(), blocks.clone())).run(&disk) {
            Ok(JobOutcome::Checked(checked)) => checked,
            _ => panic!("no check"),
        };
        let there = |checked: &Checked| -> Vec<usize> {
            (0..10).filter(|block| checked.have[*block]).collect()
        };
        let checked = check();
        assert_eq!(there(&checked), [0, 3]);
        for block in (0..10).filter(|block| !checked.have[*block]) {
            let end = bytes.len().min(10 * block + 10);
            checked.file.write_at(10 * block as u64, &bytes[10 * block..end]).unwrap();
        }
        assert_eq!(there(&check()).len(), 10);
    }
}
