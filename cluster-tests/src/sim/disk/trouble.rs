//! Errors of a disk under a running process, and no space.
//!
//! An error is armed and strikes one operation of its kind. A failed write has written a part; after a failed sync
//! nobody knows which of the unsynced writes are on the medium, and what a process goes on to read comes from memory:
//! the next process reads what the medium has. The node must not retry; it dies, and that is allowed to a process that
//! was hurt, and to no other.

use std::io;

use super::{Platter, SECTOR, apply_name};
use crate::sim::rng::Rng;
use packmaster::storage::DiskError;

const FREE_BYTES: u64 = 1 << 40;
/// Where the data of a base's first record begins: after prefix, length and the record's head (FORMAT.md).
const FIRST_DATA: usize = 16 + 28;
/// Left on a full disk, for what has its room already.
const FREE_BYTES_FULL: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    Read,
    /// Bytes of another place, without an error.
    AstrayRead,
    /// The same when it reads of a base for a peer.
    AstrayForPeer,
    Write,
    Sync,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    Enough,
    /// It says so, and still takes what it is given.
    Little,
    None,
}

pub(super) struct Troubles {
    /// Strike after so many more operations of their kind.
    armed: Vec<(Error, u32)>,
    room: Room,
    /// Bases that are still to come out wrong; and whether one has.
    spoils: u32,
    has_spoilt: bool,
    /// What struck the present process.
    hurt: Option<&'static str>,
    /// A failed sync keeps what was written first.
    in_order: bool,
    dice: Rng,
}

impl Troubles {
    pub(super) fn new(seed: u64) -> Troubles {
        Troubles {
            armed: Vec::new(),
            room: Room::Enough,
            spoils: 0,
            has_spoilt: false,
            hurt: None,
            in_order: false,
            dice: Rng::new(seed),
        }
    }

    /// Does an unsynced write, or change of names, survive a failed sync?
    pub(super) fn keeps(&mut self) -> bool {
        self.dice.chance(500)
    }

    /// The unsynced writes that survive one: of so many, in their order.
    pub(super) fn kept(&mut self, writes: usize) -> Vec<bool> {
        let mut kept: Vec<bool> = (0..writes).map(|_| self.keeps()).collect();
        if let Some(lost) = kept.iter().position(|kept| !kept).filter(|_| self.in_order) {
            kept[lost..].fill(false);
        }
        kept
    }
}

impl Platter {
    /// No holes where a sync failed.
    pub fn fail_in_order(&mut self) {
        self.troubles.in_order = true;
    }

    pub fn arm(&mut self, error: Error, after: u32) {
        self.troubles.armed.push((error, after));
    }

    /// The next so many bases that are built here have a bit flipped.
    pub fn spoil_builds(&mut self, builds: u32) {
        self.troubles.spoils = builds;
    }

    pub fn has_spoilt(&self) -> bool {
        self.troubles.has_spoilt
    }

    /// What is written at the beginning of a base that is being built, if it is to be spoilt: a bit of its first record's
    /// data is another.
    pub(super) fn spoil(&mut self, name: &str, offset: u64, data: &[u8]) -> Option<Vec<u8>> {
        let is_base = name.starts_with("building") && offset == 0 && data.len() > FIRST_DATA + 8;
        if self.troubles.spoils == 0 || !is_base {
            return None;
        }
        self.troubles.spoils -= 1;
        self.troubles.has_spoilt = true;
        let mut spoilt = data.to_vec();
        spoilt[FIRST_DATA + self.troubles.dice.index(8)] ^= 1 << self.troubles.dice.below(8);
        Some(spoilt)
    }

    pub fn set_room(&mut self, room: Room) {
        self.troubles.room = room;
    }

    pub(super) fn is_full(&mut self) -> bool {
        let full = self.troubles.room == Room::None;
        if full {
            self.troubles.hurt = Some("no space");
        }
        full
    }

    /// Nothing more will strike.
    pub fn disarm(&mut self) {
        self.troubles.armed.clear();
        self.troubles.spoils = 0;
        self.troubles.room = Room::Enough;
    }

    /// What struck the present process, if anything did.
    pub fn hurt(&self) -> Option<&'static str> {
        self.troubles.hurt
    }

    /// Nothing is armed any more for this process, and what was unsure is now what the medium has.
    pub(super) fn calm(&mut self) {
        // Bases are fetched seldom: what is to go wrong then waits for it.
        self.troubles.armed.retain(|(error, _)| *error == Error::AstrayForPeer);
        self.troubles.hurt = None;
        for inode in self.inodes.values_mut() {
            if std::mem::take(&mut inode.unsure) {
                inode.written.clone_from(&inode.durable);
                inode.pending.clear();
            }
        }
        if std::mem::take(&mut self.names_unsure) {
            self.dir_ops.clear();
            self.names = self.durable_names.clone();
            self.forget_unnamed();
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        match self.troubles.room {
            Room::Enough => FREE_BYTES,
            Room::Little | Room::None => FREE_BYTES_FULL,
        }
    }

    pub(super) fn strikes(&mut self, error: Error) -> bool {
        let Some(at) = self.troubles.armed.iter().position(|(armed, _)| *armed == error) else {
            return false;
        };
        if self.troubles.armed[at].1 > 0 {
            self.troubles.armed[at].1 -= 1;
            return false;
        }
        self.troubles.armed.remove(at);
        self.troubles.hurt = Some(match error {
            Error::Read => "a failed read",
            Error::AstrayRead | Error::AstrayForPeer => "a read gone astray",
            Error::Write => "a failed write",
            Error::Sync => "a failed sync",
        });
        true
    }

    /// This node reads of a base for a peer: does that go astray?
    pub fn reads_for_peer(&mut self) {
        if self.strikes(Error::AstrayForPeer) {
            self.troubles.armed.push((Error::AstrayRead, 0));
        }
    }

    /// Another place than `offset`, some sectors away; not beyond `last`.
    pub(super) fn astray(&mut self, offset: u64, last: u64) -> u64 {
        let sectors = self.troubles.dice.between(1, 9) * SECTOR as u64;
        match self.troubles.dice.chance(500) {
            true => offset.saturating_sub(sectors),
            false => (offset + sectors).min(last),
        }
    }

    pub(super) fn part_of<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        &data[..self.troubles.dice.index(data.len() + 1)]
    }

    pub(super) fn fail_sync_dir(&mut self) {
        self.names_unsure = true;
        for op in std::mem::take(&mut self.dir_ops) {
            if self.troubles.keeps() {
                apply_name(&mut self.durable_names, op);
            }
        }
    }
}

pub(super) fn failed(verb: &'static str, name: &str) -> DiskError {
    let source = io::Error::other("input/output error (simulated)");
    DiskError::Io { verb, name: name.to_owned(), source }
}

pub(super) fn no_space(verb: &'static str, name: &str) -> DiskError {
    let source = io::Error::new(io::ErrorKind::StorageFull, "no space left (simulated)");
    DiskError::Io { verb, name: name.to_owned(), source }
}
