//! A disk that forgets what was not synced.
//!
//! Every file has two contents: what was written, and what would be found after the power fails now. `sync` makes the
//! one into the other. A power failure lets any of the unsynced writes come true, or a part of one, in sectors; the
//! same for unsynced changes of names. A process that is only killed loses nothing of what it wrote.
//!
//! A handle belongs to the life of a process: in the hands of a dead one it fails. A *fuse* ends a life in the
//! middle of an operation: after so many more changes every call fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packmaster::storage::{Disk, DiskError, DiskFile};

use super::rng::Rng;

pub mod crash;

const SECTOR: usize = 512;
const FREE_BYTES: u64 = 1 << 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    File(u64),
    Link(String),
}

#[derive(Clone)]
enum FileOp {
    Write { offset: usize, data: Vec<u8> },
    Truncate { len: usize },
}

#[derive(Clone)]
enum DirOp {
    Set { name: String, entry: Entry },
    Rename { from: String, to: String, entry: Entry },
    Remove { name: String },
}

#[derive(Clone, Default)]
pub struct Inode {
    written: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<FileOp>,
    /// Lowest durable byte that changed since the checkers looked.
    pub changed_from: u64,
}

impl Inode {
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }
}

/// How a power failure treats unsynced writes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// What was written first is kept first; the last one kept may be torn.
    Ordered,
    /// Any subset, each perhaps torn into sectors.
    Any,
}

#[derive(Clone, Default)]
pub struct Platter {
    life: u64,
    fuse: Option<u32>,
    broken: bool,
    names: BTreeMap<String, Entry>,
    durable_names: BTreeMap<String, Entry>,
    dir_ops: Vec<DirOp>,
    inodes: BTreeMap<u64, Inode>,
    inodes_made: u64,
    changed: BTreeSet<u64>,
    names_changed: bool,
}

/// What outlives processes.
#[derive(Clone, Default)]
pub struct Medium(Arc<Mutex<Platter>>);

impl Medium {
    pub fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a new process; handles of the one before are dead.
    pub fn mount(&self) -> Arc<SimDisk> {
        let mut platter = self.lock();
        platter.life += 1;
        platter.fuse = None;
        platter.broken = false;
        let life = platter.life;
        drop(platter);
        Arc::new(SimDisk { medium: self.clone(), life })
    }
}

impl Platter {
    /// The process is gone; what it wrote stays.
    pub fn unmount(&mut self) {
        self.life += 1;
        self.fuse = None;
        self.broken = false;
    }

    /// So many more changes, then nothing works.
    pub fn set_fuse(&mut self, changes: Option<u32>) {
        self.fuse = changes;
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Names as a power failure would leave them.
    pub fn durable_names(&self) -> &BTreeMap<String, Entry> {
        &self.durable_names
    }

    pub fn inode(&self, number: u64) -> Option<&Inode> {
        self.inodes.get(&number)
    }

    /// The file a durable name stands for, by way of a link.
    pub fn durable_file(&self, name: &str) -> Option<&Inode> {
        match self.durable_names.get(name)? {
            Entry::File(number) => self.inodes.get(number),
            Entry::Link(target) => match self.durable_names.get(target)? {
                Entry::File(number) => self.inodes.get(number),
                Entry::Link(_) => None,
            },
        }
    }

    /// Files whose durable bytes changed since the last call, and where; and whether names did.
    pub fn take_changes(&mut self) -> (Vec<(u64, u64)>, bool) {
        let mut changes = Vec::new();
        for number in std::mem::take(&mut self.changed) {
            if let Some(inode) = self.inodes.get_mut(&number) {
                changes.push((number, std::mem::replace(&mut inode.changed_from, u64::MAX)));
            }
        }
        (changes, std::mem::take(&mut self.names_changed))
    }

    /// The power fails: what was not synced may be lost.
    pub fn power_fails(&mut self, rng: &mut Rng, loss: Loss) -> String {
        let mut lost = 0;
        for (number, inode) in &mut self.inodes {
            if inode.pending.is_empty() {
                continue;
            }
            let pending = std::mem::take(&mut inode.pending);
            lost += pending.len();
            let before = inode.durable.clone();
            match loss {
                Loss::Ordered => keep_first(&mut inode.durable, &pending, rng),
                Loss::Any => keep_any(&mut inode.durable, &pending, rng),
            }
            let same = before.iter().zip(&inode.durable).take_while(|(a, b)| a == b).count();
            inode.changed_from = inode.changed_from.min(same as u64);
            inode.written = inode.durable.clone();
            self.changed.insert(*number);
        }
        let ops = std::mem::take(&mut self.dir_ops);
        let names = ops.len();
        let ordered = rng.chance(500);
        let first = rng.index(ops.len() + 1);
        for (index, op) in ops.into_iter().enumerate() {
            let keep = if ordered { index < first } else { rng.chance(500) };
            if keep {
                apply_name(&mut self.durable_names, op);
            }
        }
        self.names = self.durable_names.clone();
        self.names_changed = true;
        let used: BTreeSet<u64> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(number) => Some(*number),
                Entry::Link(_) => None,
            })
            .collect();
        self.inodes.retain(|number, _| used.contains(number));
        format!("{lost} unsynced writes and {names} changes of names at stake ({loss:?})")
    }

    fn change(&mut self, verb: &'static str, name: &str) -> Result<(), DiskError> {
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                self.broken = true;
            } else {
                *left -= 1;
            }
        }
        self.alive(verb, name)
    }

    fn alive(&self, verb: &'static str, name: &str) -> Result<(), DiskError> {
        match self.broken {
            true => Err(dead(verb, name)),
            false => Ok(()),
        }
    }

    fn number(&self, verb: &'static str, name: &str) -> Result<u64, DiskError> {
        let target = match self.names.get(name) {
            Some(Entry::Link(target)) => target.as_str(),
            _ => name,
        };
        match self.names.get(target) {
            Some(Entry::File(number)) => Ok(*number),
            _ => Err(DiskError::Missing { verb, name: name.to_owned() }),
        }
    }
}

fn dead(verb: &'static str, name: &str) -> DiskError {
    let source = std::io::Error::other("this process is dead");
    DiskError::Io { verb, name: name.to_owned(), source }
}

fn apply_name(names: &mut BTreeMap<String, Entry>, op: DirOp) {
    match op {
        DirOp::Set { name, entry } => {
            names.insert(name, entry);
        }
        DirOp::Rename { from, to, entry } => {
            names.remove(&from);
            names.insert(to, entry);
        }
        DirOp::Remove { name } => {
            names.remove(&name);
        }
    }
}

fn apply(content: &mut Vec<u8>, op: &FileOp) {
    match op {
        FileOp::Write { offset, data } => {
            let end = offset + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(data);
        }
        FileOp::Truncate { len } => content.resize(*len, 0),
    }
}

fn keep_first(content: &mut Vec<u8>, pending: &[FileOp], rng: &mut Rng) {
    let kept = rng.index(pending.len() + 1);
    for op in &pending[..kept] {
        apply(content, op);
    }
    if let Some(FileOp::Write { offset, data }) = pending.get(kept)
        && rng.chance(700)
    {
        // Up to the end of some sector of the file.
        let sectors = (offset + data.len()) / SECTOR - offset / SECTOR;
        let end = match rng.index(sectors + 1) {
            0 => 0,
            n => ((offset / SECTOR + n) * SECTOR - offset).min(data.len()),
        };
        apply(content, &FileOp::Write { offset: *offset, data: data[..end].to_vec() });
        if rng.chance(300) {
            // The length was kept, the data was not.
            let end = offset + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
        }
    }
}

fn keep_any(content: &mut Vec<u8>, pending: &[FileOp], rng: &mut Rng) {
    for op in pending {
        match (rng.below(3), op) {
            (0, _) => {}
            (1, FileOp::Write { offset, data }) => {
                let mut at = 0;
                while at < data.len() {
                    let end = (((offset + at) / SECTOR + 1) * SECTOR - offset).min(data.len());
                    if rng.chance(500) {
                        let part = data[at..end].to_vec();
                        apply(content, &FileOp::Write { offset: offset + at, data: part });
                    }
                    at = end;
                }
            }
            _ => apply(content, op),
        }
    }
}

/// A process's view of its disk.
pub struct SimDisk {
    medium: Medium,
    life: u64,
}

struct SimFile {
    medium: Medium,
    life: u64,
    number: u64,
    name: String,
}

impl SimDisk {
    fn lock(&self, verb: &'static str, name: &str) -> Result<MutexGuard<'_, Platter>, DiskError> {
        let platter = self.medium.lock();
        match platter.life == self.life {
            true => Ok(platter),
            false => Err(dead(verb, name)),
        }
    }

    fn file(&self, number: u64, name: &str) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            medium: self.medium.clone(),
            life: self.life,
            number,
            name: name.to_owned(),
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let platter = self.lock("open", name)?;
        platter.alive("open", name)?;
        let number = platter.number("open", name)?;
        drop(platter);
        Ok(self.file(number, name))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut platter = self.lock("create", name)?;
        platter.change("create", name)?;
        let number = match platter.names.get(name) {
            // O_TRUNC of a file that is there.
            Some(Entry::File(number)) => {
                let number = *number;
                let inode = platter.inodes.get_mut(&number).expect("named");
                inode.pending.push(FileOp::Truncate { len: 0 });
                inode.written.clear();
                number
            }
            _ => {
                platter.inodes_made += 1;
                let number = platter.inodes_made;
                platter.inodes.insert(number, Inode { changed_from: u64::MAX, ..Inode::default() });
                let entry = Entry::File(number);
                platter.names.insert(name.to_owned(), entry.clone());
                platter.dir_ops.push(DirOp::Set { name: name.to_owned(), entry });
                number
            }
        };
        drop(platter);
        Ok(self.file(number, name))
    }

    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        let platter = self.lock("look for", name)?;
        platter.alive("look for", name)?;
        Ok(platter.names.contains_key(name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut platter = self.lock("rename", from)?;
        platter.change("rename", from)?;
        let missing = || DiskError::Missing { verb: "rename", name: from.to_owned() };
        let entry = platter.names.remove(from).ok_or_else(missing)?;
        platter.names.insert(to.to_owned(), entry.clone());
        let op = DirOp::Rename { from: from.to_owned(), to: to.to_owned(), entry };
        platter.dir_ops.push(op);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut platter = self.lock("remove", name)?;
        platter.change("remove", name)?;
        let missing = || DiskError::Missing { verb: "remove", name: name.to_owned() };
        platter.names.remove(name).ok_or_else(missing)?;
        platter.dir_ops.push(DirOp::Remove { name: name.to_owned() });
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let platter = self.lock("list", ".")?;
        platter.alive("list", ".")?;
        Ok(platter.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let mut platter = self.lock("sync", ".")?;
        platter.change("sync", ".")?;
        platter.dir_ops.clear();
        platter.durable_names = platter.names.clone();
        platter.names_changed = true;
        Ok(())
    }

    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError> {
        let mut platter = self.lock("link", name)?;
        platter.change("link", name)?;
        let entry = Entry::Link(target.to_owned());
        platter.names.insert(name.to_owned(), entry.clone());
        platter.dir_ops.push(DirOp::Set { name: name.to_owned(), entry });
        Ok(())
    }

    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError> {
        let platter = self.lock("read link", name)?;
        platter.alive("read link", name)?;
        Ok(match platter.names.get(name) {
            Some(Entry::Link(target)) => Some(target.clone()),
            _ => None,
        })
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        Ok(FREE_BYTES)
    }
}

impl SimFile {
    fn with<T>(
        &self,
        verb: &'static str,
        changes: bool,
        work: impl FnOnce(&mut Inode) -> T,
    ) -> Result<T, DiskError> {
        let mut platter = self.medium.lock();
        if platter.life != self.life {
            return Err(dead(verb, &self.name));
        }
        if changes {
            platter.change(verb, &self.name)?;
        } else {
            platter.alive(verb, &self.name)?;
        }
        let missing = || DiskError::Missing { verb, name: self.name.clone() };
        let inode = platter.inodes.get_mut(&self.number).ok_or_else(missing)?;
        let done = work(inode);
        if inode.changed_from != u64::MAX {
            platter.changed.insert(self.number);
        }
        Ok(done)
    }
}

impl DiskFile for SimFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64, DiskError> {
        self.with("measure", false, |inode| inode.written.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let wanted = buf.len() as u64;
        let found = self.with("read", false, |inode| {
            let rest = inode.written.get(offset as usize..)?;
            buf.copy_from_slice(rest.get(..buf.len())?);
            Some(())
        })?;
        let short = || DiskError::Short { name: self.name.clone(), offset, wanted };
        found.ok_or_else(short)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.with("write", true, |inode| {
            let op = FileOp::Write { offset: offset as usize, data: data.to_vec() };
            apply(&mut inode.written, &op);
            inode.pending.push(op);
        })
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.with("truncate", true, |inode| {
            let op = FileOp::Truncate { len: len as usize };
            apply(&mut inode.written, &op);
            inode.pending.push(op);
        })
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.with("sync", true, |inode| {
            for op in std::mem::take(&mut inode.pending) {
                let from = match &op {
                    FileOp::Write { offset, .. } => (*offset).min(inode.durable.len()),
                    FileOp::Truncate { len } => (*len).min(inode.durable.len()),
                };
                inode.changed_from = inode.changed_from.min(from as u64);
                apply(&mut inode.durable, &op);
            }
            debug_assert_eq!(inode.durable, inode.written);
        })
    }
}
