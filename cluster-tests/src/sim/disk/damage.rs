//! Damage to what was synced, done while no process looks: rot, a write that went astray, an older image of the whole
//! disk, an empty disk in its place.
//!
//! A lost *last* write looks like a crash before it and can be known to nobody here; so a write goes astray only if
//! later ones of its file arrived.

use std::collections::{BTreeMap, VecDeque};

use super::{Entry, Inode, Platter, SECTOR};
use crate::sim::parse;
use crate::sim::rng::Rng;

/// Synced writes that are remembered.
const REMEMBERED: usize = 24;

/// A part of what a node keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The current file.
    Data,
    /// Any other generation's file, also one that is being fetched.
    Other,
    /// One copy of the Raft log.
    RaftLog,
    Promise,
}

/// Files that vanish, by their names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Both copies.
    RaftLog,
    RaftLogCopy,
    Promise,
    Identity,
    /// The link that says which file is current.
    Link,
    /// The file it points at.
    Data,
}

impl Gone {
    /// What was voted, promised or acknowledged is forgotten, and no peer can give it back.
    pub fn is_memory(self) -> bool {
        matches!(self, Gone::RaftLog | Gone::Promise | Gone::Identity)
    }
}

/// A disk as it was, without what was not synced.
pub struct Image {
    names: BTreeMap<String, Entry>,
    contents: BTreeMap<u64, Vec<u8>>,
}

impl Image {
    /// Has the node found its file damaged, and not fetched everything again?
    pub fn is_recovering(&self) -> bool {
        self.names.contains_key("recovering")
    }

    /// The epoch promised in it.
    pub fn promise(&self) -> u64 {
        let number = match self.names.get("promise") {
            Some(Entry::File(number)) => number,
            _ => return 0,
        };
        self.contents.get(number).and_then(|bytes| parse::promise(bytes)).unwrap_or(0)
    }
}

pub(super) struct Synced {
    number: u64,
    offset: usize,
    data: Vec<u8>,
    /// What was there; shorter than `data` where the file ended.
    before: Vec<u8>,
}

pub(super) fn remember(
    synced: &mut VecDeque<Synced>,
    number: u64,
    offset: usize,
    data: &[u8],
    durable: &[u8],
) {
    let end = (offset + data.len()).min(durable.len());
    let before = durable.get(offset..end).unwrap_or_default().to_vec();
    synced.push_back(Synced { number, offset, data: data.to_vec(), before });
    if synced.len() > REMEMBERED {
        synced.pop_front();
    }
}

impl Platter {
    fn files_of(&self, part: Part) -> Vec<(String, u64)> {
        let current = match self.durable_names.get("current.durus") {
            Some(Entry::Link(target)) => target.as_str(),
            _ => "",
        };
        let is_it = |name: &str| match part {
            Part::Data => name == current,
            Part::Other => {
                let is_file = name.starts_with('g') || name.starts_with("fetching");
                name != current && is_file && name.ends_with(".durus")
            }
            Part::RaftLog => name == "raft-a.log" || name == "raft-b.log",
            Part::Promise => name == "promise",
        };
        let files = self.durable_names.iter().filter(|(name, _)| is_it(name));
        files
            .filter_map(|(name, entry)| match entry {
                Entry::File(number) => Some((name.clone(), *number)),
                Entry::Link(_) => None,
            })
            .collect()
    }

    /// Flips a bit of what is on the medium; says where.
    pub fn rot(&mut self, part: Part, rng: &mut Rng) -> Option<String> {
        let files = self.files_of(part);
        let (name, number) = files.get(rng.index(files.len()))?.clone();
        let inode = self.inodes.get_mut(&number)?;
        if inode.durable.is_empty() {
            return None;
        }
        let at = match rng.chance(300) {
            // Not everything interesting is in the middle.
            true => inode.durable.len() - 1 - rng.index(inode.durable.len().min(200)),
            false => rng.index(inode.durable.len()),
        };
        let bit = 1 << rng.below(8);
        inode.flip(at, bit);
        self.changed.insert(number);
        Some(format!("a bit of {name} at byte {at}"))
    }

    /// A synced write is found to have gone to another place.
    pub fn astray_write(&mut self, rng: &mut Rng) -> Option<String> {
        let promise = self.files_of(Part::Promise);
        let candidates: Vec<usize> = (0..self.synced.len())
            .filter(|index| {
                let synced = &self.synced[*index];
                let later = self.synced.iter().skip(index + 1);
                // The next one arrived, and is of the same file as it is now: the gap shows.
                let shows = later.filter(|other| {
                    other.number == synced.number
                        && other.offset >= synced.offset + synced.data.len()
                        && self.holds(other)
                });
                promise.iter().all(|(_, number)| *number != synced.number)
                    && self.holds(synced)
                    && shows.count() > 0
            })
            .collect();
        let index = *candidates.get(rng.index(candidates.len()))?;
        let Synced { number, offset, data, before } = self.synced.remove(index)?;
        let numbers: Vec<u64> = self.inodes.keys().copied().collect();
        let target = match rng.chance(500) {
            true => number,
            false => numbers[rng.index(numbers.len())],
        };
        let inode = self.inodes.get_mut(&number)?;
        let mut old = before;
        old.resize(data.len(), 0);
        inode.overwrite(offset, &old);
        let there = self.inodes.get_mut(&target)?;
        let mut to = rng.index(there.durable.len() / SECTOR + 1) * SECTOR;
        if target == number && to + data.len() > offset {
            // Not over the later write by which it is known (seed 6006870).
            to = offset.saturating_sub(data.len()) / SECTOR * SECTOR;
        }
        let end = there.durable.len().min(to + data.len());
        if to < end {
            there.overwrite(to, &data[..end - to]);
        }
        self.changed.insert(number);
        self.changed.insert(target);
        Some(format!(
            "{} bytes for file {number} at {offset} went to file {target} at {to}",
            data.len()
        ))
    }

    fn holds(&self, synced: &Synced) -> bool {
        let inode = self.inodes.get(&synced.number);
        let there = inode
            .and_then(|inode| inode.durable.get(synced.offset..synced.offset + synced.data.len()));
        there == Some(&synced.data[..])
    }

    pub fn image(&self) -> Image {
        let contents =
            self.inodes.iter().map(|(number, inode)| (*number, inode.durable.clone())).collect();
        Image { names: self.durable_names.clone(), contents }
    }

    /// The disk is what it was then.
    pub fn restore(&mut self, image: &Image) {
        self.dir_ops.clear();
        self.synced.clear();
        self.names.clone_from(&image.names);
        self.durable_names.clone_from(&image.names);
        self.inodes = image
            .contents
            .iter()
            .map(|(number, content)| {
                let inode = Inode {
                    written: content.clone(),
                    durable: content.clone(),
                    ..Inode::default()
                };
                (*number, inode)
            })
            .collect();
        self.forget_unnamed();
        self.changed.extend(self.inodes.keys().copied());
        self.names_changed = true;
    }

    /// Files are gone, as if they had never been. False: they were not there.
    pub fn vanish(&mut self, what: Gone) -> bool {
        let current = match self.durable_names.get("current.durus") {
            Some(Entry::Link(target)) => target.clone(),
            _ => return false,
        };
        let names: Vec<&str> = match what {
            Gone::RaftLog => vec!["raft-a.log", "raft-b.log"],
            Gone::RaftLogCopy => vec!["raft-b.log"],
            Gone::Promise => vec!["promise"],
            Gone::Identity => vec!["identity.toml"],
            Gone::Link => vec!["current.durus"],
            Gone::Data => vec![&current],
        };
        let there = names.iter().all(|name| self.durable_names.contains_key(*name));
        if there {
            for name in names {
                self.names.remove(name);
                self.durable_names.remove(name);
            }
            self.forget_unnamed();
            self.names_changed = true;
        }
        there
    }

    /// An empty disk in its place.
    pub fn wipe(&mut self) {
        self.restore(&Image { names: BTreeMap::new(), contents: BTreeMap::new() });
    }
}

impl Inode {
    fn flip(&mut self, at: usize, bit: u8) {
        self.durable[at] ^= bit;
        if let Some(byte) = self.written.get_mut(at) {
            *byte ^= bit;
        }
        self.changed_from = self.changed_from.min(at as u64);
    }

    fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        for content in [&mut self.durable, &mut self.written] {
            let end = content.len().min(at + bytes.len());
            if at < end {
                content[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
        self.changed_from = self.changed_from.min(at as u64);
    }
}
