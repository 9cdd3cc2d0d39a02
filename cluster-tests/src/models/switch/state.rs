//! What the switch model's world consists of, and the steps that change it.

use std::fmt;

use super::super::election::Name;
use super::super::log::Log;

pub const NODES: usize = 3;
pub const EPOCHS_MAX: usize = 4;

/// A transaction that refers to the one object that may be dead. Above the epoch in a `Log`'s byte.
pub const RELINKS: u8 = 1 << 4;

/// A base: what it holds is told by its cut, by whether the object that may be dead was left out, and by whether
/// whoever built it has a broken disk. Equal values are equal hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Base(pub u8);

const CUT: u8 = 7;
const DROPS: u8 = 8;
const BROKEN: u8 = 16;
const THERE: u8 = 32;

impl Base {
    pub fn new(cut: u8, drops: bool, broken: bool) -> Base {
        Base(THERE | cut | if drops { DROPS } else { 0 } | if broken { BROKEN } else { 0 })
    }

    pub fn is_there(self) -> bool {
        self.0 != 0
    }

    pub fn cut(self) -> u8 {
        self.0 & CUT
    }

    pub fn drops(self) -> bool {
        self.0 & DROPS != 0
    }

    pub fn is_broken(self) -> bool {
        self.0 & BROKEN != 0
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drops = if self.drops() { " drops" } else { "" };
        let broken = if self.is_broken() { " broken" } else { "" };
        write!(f, "base(F {}{drops}{broken})", self.cut())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Node {
    /// The current file: its whole history, the part that its base stands for included; its generation's base, none in
    /// the first.
    pub log: Log,
    pub base: Base,
    pub durable: u8,
    pub promise: u8,
    /// Of which epoch this process is the elected master; 0: of none.
    pub master: u8,
    /// The file of the generation to be. It follows the current one.
    pub next: Base,
    /// The flip is not durable yet: a crash brings back the old file, which ends here.
    pub old_len: u8,
    /// A master that marks: the F it began at; and whether it knows the dead.
    pub mark: u8,
    pub knows_dead: bool,
    pub acks: [u8; EPOCHS_MAX + 1],
    /// Position reported to the election under way, plus one; and which next file it has.
    pub report: u8,
    pub reported_next: Base,
    pub holds: u8,
    pub name: Name,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sent {
    pub log: Log,
    pub base: Base,
    pub commit: u8,
    pub floor: u8,
}

/// The pack that Raft knows of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Pack {
    /// Epoch it was started in; 0: there is no pack.
    pub started: u8,
    /// F, and whether the object is dead; what the base must be. Not there: not sealed.
    pub seal: Base,
    /// As it was built first.
    pub agreed: Base,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct World {
    pub nodes: [Node; NODES],
    pub sent: [Sent; EPOCHS_MAX + 1],
    pub epoch: u8,
    pub last: u8,
    /// What the fence under way is for.
    pub to_switch: bool,
    /// The current generation's base, none in the first; the epoch that elected it; the old history up to its cut.
    pub base: Base,
    pub switched: u8,
    pub cut: Log,
    pub pack: Pack,
    /// A seal on its way to Raft, and the epoch it was decided in.
    pub proposed: Base,
    pub proposed_in: u8,
    pub written: u8,
    pub crashes: u8,
    pub packs: u8,
    pub broken_disks: u8,
    pub committed: Log,
    pub broken: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Broken {
    LeaderCompleteness = 1,
    CommittedNeverTruncated = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Raft agrees on the next epoch; `switch`: to elect the generation that is packed.
    Fence {
        switch: bool,
    },
    Promise(u8),
    /// `switch`: with the new generation.
    Elect {
        winner: u8,
        holder: u8,
        floor: u8,
        switch: bool,
    },
    Pull(u8),
    Start(u8),
    Write {
        node: u8,
        relinks: bool,
    },
    Take {
        node: u8,
        epoch: u8,
    },
    Sync(u8),
    Cut {
        node: u8,
        epoch: u8,
    },
    Commit(u8),
    Crash(u8),
    PackStart,
    /// The master begins to mark; has marked and refuses what is dead; the seal arrives at Raft.
    Mark(u8),
    Marked(u8),
    Seal,
    /// A node builds the base, compares it with the agreed one or is the first, and follows in both files.
    Build {
        node: u8,
        broken: bool,
    },
    /// A node that has the next file, or builds it now, or fetches what it lacks, makes it its current file.
    Flip(u8),
}

impl Step {
    pub fn map(self, place: impl Fn(u8) -> u8) -> Step {
        match self {
            Step::Fence { .. } | Step::PackStart | Step::Seal => self,
            Step::Promise(node) => Step::Promise(place(node)),
            Step::Elect { winner, holder, floor, switch } => {
                Step::Elect { winner: place(winner), holder: place(holder), floor, switch }
            }
            Step::Pull(node) => Step::Pull(place(node)),
            Step::Start(node) => Step::Start(place(node)),
            Step::Write { node, relinks } => Step::Write { node: place(node), relinks },
            Step::Take { node, epoch } => Step::Take { node: place(node), epoch },
            Step::Sync(node) => Step::Sync(place(node)),
            Step::Cut { node, epoch } => Step::Cut { node: place(node), epoch },
            Step::Commit(node) => Step::Commit(place(node)),
            Step::Crash(node) => Step::Crash(place(node)),
            Step::Mark(node) => Step::Mark(place(node)),
            Step::Marked(node) => Step::Marked(place(node)),
            Step::Build { node, broken } => Step::Build { node: place(node), broken },
            Step::Flip(node) => Step::Flip(place(node)),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { name, log, durable, promise, .. } = self;
        write!(f, "{name:?} {log:?} durable {durable} promise {promise}")?;
        if self.base.is_there() {
            write!(f, " in {:?}", self.base)?;
        }
        if self.next.is_there() {
            write!(f, " next {:?}", self.next)?;
        }
        if self.master != 0 {
            write!(f, " master of {}", self.master)?;
        }
        Ok(())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = if self.last == self.epoch { "elected" } else { "fenced" };
        write!(f, "epoch {} {phase}, committed {:?}, {:?}", self.epoch, self.committed, self.pack)?;
        for node in &self.nodes {
            write!(f, " | {node:?}")?;
        }
        Ok(())
    }
}
