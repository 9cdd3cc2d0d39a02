//! A disk that forgets what was not synced.
//!
//! Every file has two contents: what was written, and what would be found after the power fails now. `sync` makes the
//! one into the other. A power failure lets any of the unsynced writes come true, or a part of one, in sectors; the
//! same for unsynced changes of names. A process that is only killed loses nothing of what it wrote.
//!
//! A handle belongs to the life of a process: in the hands of a dead one it fails. A *fuse* ends a life in the
//! middle of an operation: after so many more changes every call fails.
//!
//! What else goes wrong is in rooms of its own: `loss` (what a power failure leaves), `trouble` (errors, no space), and
//! `damage` (rot, writes gone astray, older images, an empty disk in its place).

pub mod crash;
mod damage;
mod loss;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packmaster::storage::{Disk, DiskError, DiskFile};

pub use damage::{Gone, Image, Part};
use trouble::Troubles;
pub use trouble::{Error, Room};

const SECTOR: usize = 512;

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
    /// A sync failed: what is read may be in memory only, until the process is gone.
    unsure: bool,
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
    names_unsure: bool,
    troubles: Troubles,
    /// Newest synced writes, for those that go astray.
    synced: VecDeque<damage::Synced>,
}

/// What outlives processes.
#[derive(Clone)]
pub struct Medium(Arc<Mutex<Platter>>);

impl Medium {
    /// An empty disk; `seed` is for what its errors leave behind.
    pub fn new(seed: u64) -> Medium {
        Medium(Arc::new(Mutex::new(Platter {
            life: 0,
            fuse: None,
            broken: false,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dir_ops: Vec::new(),
            inodes: BTreeMap::new(),
            inodes_made: 0,
            changed: BTreeSet::new(),
            names_changed: false,
            names_unsure: false,
            troubles: Troubles::new(seed),
            synced: VecDeque::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a new process; handles of the one before are dead.
    pub fn mount(&self) -> Arc<SimDisk> {
        let mut platter = self.lock();
        platter.unmount();
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
        self.calm();
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

    fn forget_unnamed(&mut self) {
        let used: BTreeSet<u64> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(number) => Some(*number),
                Entry::Link(_) => None,
            })
            .collect();
        self.inodes.retain(|number, _| used.contains(number));
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
        platter.names_changed = true;
        if platter.strikes(Error::Sync) {
            platter.fail_sync_dir();
            return Err(trouble::failed("sync", "."));
        }
        platter.dir_ops.clear();
        if !platter.names_unsure {
            platter.durable_names = platter.names.clone();
        }
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
        Ok(self.lock("measure", ".")?.free_bytes())
    }
}

impl SimFile {
    fn enter(
        &self,
        verb: &'static str,
        changes: bool,
    ) -> Result<MutexGuard<'_, Platter>, DiskError> {
        let mut platter = self.medium.lock();
        if platter.life != self.life {
            return Err(dead(verb, &self.name));
        }
        match changes {
            true => platter.change(verb, &self.name)?,
            false => platter.alive(verb, &self.name)?,
        }
        match platter.inodes.contains_key(&self.number) {
            true => Ok(platter),
            false => Err(DiskError::Missing { verb, name: self.name.clone() }),
        }
    }

    fn put(&self, platter: &mut Platter, op: FileOp) {
        let inode = platter.inodes.get_mut(&self.number).expect("entered");
        apply(&mut inode.written, &op);
        inode.pending.push(op);
    }
}

impl DiskFile for SimFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64, DiskError> {
        let platter = self.enter("measure", false)?;
        Ok(platter.inodes[&self.number].written.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let wanted = buf.len() as u64;
        let mut platter = self.enter("read", false)?;
        if platter.strikes(Error::Read) {
            return Err(trouble::failed("read", &self.name));
        }
        let len = platter.inodes[&self.number].written.len() as u64;
        let end = offset.checked_add(wanted).filter(|end| *end <= len);
        let short = || DiskError::Short { name: self.name.clone(), offset, wanted };
        end.ok_or_else(short)?;
        let from = match platter.strikes(Error::AstrayRead) {
            true => platter.astray(offset, len - wanted),
            false => offset,
        } as usize;
        buf.copy_from_slice(&platter.inodes[&self.number].written[from..from + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut platter = self.enter("write", true)?;
        let spoilt = platter.spoil(&self.name, offset, data);
        let data = spoilt.as_deref().unwrap_or(data);
        let len = platter.inodes[&self.number].written.len();
        let grows = offset as usize + data.len() > len;
        let (part, result) = if platter.strikes(Error::Write) {
            (platter.part_of(data), Err(trouble::failed("write", &self.name)))
        } else if grows && platter.is_full() {
            (platter.part_of(data), Err(trouble::no_space("write", &self.name)))
        } else {
            (data, Ok(()))
        };
        if !part.is_empty() || result.is_ok() {
            self.put(&mut platter, FileOp::Write { offset: offset as usize, data: part.to_vec() });
        }
        result
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        let mut platter = self.enter("truncate", true)?;
        self.put(&mut platter, FileOp::Truncate { len: len as usize });
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        let mut platter = self.enter("sync", true)?;
        let fails = platter.strikes(Error::Sync);
        let platter = &mut *platter;
        let inode = platter.inodes.get_mut(&self.number).expect("entered");
        let pending = std::mem::take(&mut inode.pending);
        let kept = match fails {
            true => platter.troubles.kept(pending.len()),
            false => vec![true; pending.len()],
        };
        for (op, _) in pending.into_iter().zip(kept).filter(|(_, kept)| *kept) {
            let from = match &op {
                FileOp::Write { offset, .. } => (*offset).min(inode.durable.len()),
                FileOp::Truncate { len } => (*len).min(inode.durable.len()),
            };
            inode.changed_from = inode.changed_from.min(from as u64);
            platter.changed.insert(self.number);
            if let FileOp::Write { offset, data } = &op {
                damage::remember(&mut platter.synced, self.number, *offset, data, &inode.durable);
            }
            apply(&mut inode.durable, &op);
        }
        inode.unsure |= fails;
        debug_assert!(inode.unsure || inode.durable == inode.written);
        match fails {
            true => Err(trouble::failed("sync", &self.name)),
            false => Ok(()),
        }
    }
}
