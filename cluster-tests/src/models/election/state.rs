//! What the election model's world consists of, and the steps that change it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::super::log::Log;

pub const NODES_MAX: usize = 4;
/// Epochs from 1; 0 is before the first election.
pub const EPOCHS_MAX: usize = 4;

/// Who a node is in a trace. Nodes are interchangeable: a state is sorted by what they hold, so who is who does not tell
/// two states apart, and only one of up to 24 of them is searched.
#[derive(Clone, Copy, Default)]
pub struct Name(pub u8);

impl Hash for Name {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
impl PartialEq for Name {
    fn eq(&self, _: &Name) -> bool {
        true
    }
}
impl Eq for Name {}
impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, _: &Name) -> Ordering {
        Ordering::Equal
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["A", "B", "C", "D"][usize::from(self.0)])
    }
}

/// What a node has lost of its disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Lost {
    #[default]
    Nothing,
    /// A damaged tail, found at the start and cut off: it is recovering.
    Tail,
    /// Everything: an empty disk under the old id, or an earlier image of its own.
    Disk,
}

/// One node: its file, its promise, its mastership, and what it has said that may still arrive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Node {
    /// What is written; up to `durable` a crash can't take it.
    pub log: Log,
    pub durable: u8,
    pub promise: u8,
    /// The promise as the disk has it.
    pub kept: u8,
    /// Of which epoch this process is the elected master; 0: of none.
    pub master: u8,
    /// Data voter of these epochs, a bit each.
    pub votes: u8,
    /// The greatest position of these epochs' elections is here, a bit each.
    pub holds: u8,
    /// By epoch: the longest acknowledgement this node has sent to its master.
    pub acks: [u8; EPOCHS_MAX + 1],
    /// Position reported to the election under way, plus one.
    pub report: u8,
    pub lost: Lost,
    /// Length of the file before its tail was lost, while the promise of that time stands.
    pub lost_len: u8,
    /// Only while a rule is off: a position that was read too early, plus one; a cut that was asked for, plus one.
    pub early: u8,
    pub late: u8,
    pub name: Name,
}

/// What the master of one epoch has sent: any part of it may arrive at any node at any time, any number of times, or
/// never. Its log only grows, so this is the whole set of its appends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sent {
    pub log: Log,
    /// Newest commit position announced.
    pub commit: u8,
    /// What the elected must have before it starts.
    pub floor: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct World {
    /// Sorted; only the first `Scope::nodes` are used.
    pub nodes: [Node; NODES_MAX],
    pub sent: [Sent; EPOCHS_MAX + 1],
    /// The agreed log of Raft comes down to: the newest fence, the newest election (the same, unless one is under way),
    /// and whether that is known to have opened.
    pub epoch: u8,
    pub last: u8,
    pub opened: bool,
    pub written: u8,
    pub crashes: u8,
    pub losses: u8,
    pub changes: u8,
    /// Everything that was ever committed: what the properties are about. No node sees it.
    pub committed: Log,
    /// Properties that a step broke, a bit each (`Broken`).
    pub broken: u8,
}

/// Properties that can only be seen at the moment they break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Broken {
    LeaderCompleteness = 1,
    CommittedNeverTruncated = 2,
    CommitNeedsOwnEpoch = 4,
    NoAckBelowPromise = 8,
    ReadIsCommittedPrefix = 16,
}

/// Nodes are places in `World::nodes`, or in a seed the numbers of their names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Raft agrees on the next epoch.
    Fence,
    /// A voter learns of it, promises durably and reports its position.
    Promise(u8),
    /// Raft agrees on a master, who learns of it; `floor` is the greatest position, `voters` a bit a node.
    Elect {
        winner: u8,
        holder: u8,
        floor: u8,
        voters: u8,
    },
    /// The elected fetches what the holder of the greatest position has.
    Pull(u8),
    /// The elected writes its epoch start.
    Start(u8),
    /// The open master writes a client's transaction.
    Write(u8),
    /// A slave takes the next transaction of that epoch's master.
    Take {
        node: u8,
        epoch: u8,
    },
    /// The disk has everything; the slave acknowledges.
    Sync(u8),
    /// A slave cuts what its file does not share with that epoch's master.
    Cut {
        node: u8,
        epoch: u8,
    },
    /// The master counts a majority.
    Commit(u8),
    /// The process dies and starts again; what was not durable is gone.
    Crash(u8),
    /// The same, and the durable file ends at `upto` now.
    Damage {
        node: u8,
        upto: u8,
    },
    /// All that a damaged node lost is back.
    Recover(u8),
    /// The same, with an empty disk.
    Wipe(u8),
    /// The same, with an earlier image of the disk: the file and the promise are of that time.
    RollBack {
        node: u8,
        upto: u8,
    },
    /// Only while a rule is off.
    AskPosition(u8),
    CutLate(u8),
    CutToWatermark {
        node: u8,
        upto: u8,
    },
    Adopt {
        node: u8,
        epoch: u8,
    },
    Expose(u8),
    AnnounceAlone(u8),
}

impl World {
    /// The place of each name, for a seed's steps and for traces.
    pub fn place_of(&self, name: u8, nodes: usize) -> u8 {
        let place = self.nodes[..nodes].iter().position(|node| node.name.0 == name);
        place.expect("a name of the scope") as u8
    }
}

impl Step {
    /// The same step with each node number replaced.
    pub fn map(self, place: impl Fn(u8) -> u8) -> Step {
        let mask = |voters: u8| {
            (0..NODES_MAX as u8)
                .filter(|node| voters & 1 << node != 0)
                .fold(0, |mask, node| mask | 1 << place(node))
        };
        match self {
            Step::Fence => Step::Fence,
            Step::Promise(node) => Step::Promise(place(node)),
            Step::Elect { winner, holder, floor, voters } => Step::Elect {
                winner: place(winner),
                holder: place(holder),
                floor,
                voters: mask(voters),
            },
            Step::Pull(node) => Step::Pull(place(node)),
            Step::Start(node) => Step::Start(place(node)),
            Step::Write(node) => Step::Write(place(node)),
            Step::Take { node, epoch } => Step::Take { node: place(node), epoch },
            Step::Sync(node) => Step::Sync(place(node)),
            Step::Cut { node, epoch } => Step::Cut { node: place(node), epoch },
            Step::Commit(node) => Step::Commit(place(node)),
            Step::Crash(node) => Step::Crash(place(node)),
            Step::Damage { node, upto } => Step::Damage { node: place(node), upto },
            Step::Recover(node) => Step::Recover(place(node)),
            Step::Wipe(node) => Step::Wipe(place(node)),
            Step::RollBack { node, upto } => Step::RollBack { node: place(node), upto },
            Step::AskPosition(node) => Step::AskPosition(place(node)),
            Step::CutLate(node) => Step::CutLate(place(node)),
            Step::CutToWatermark { node, upto } => Step::CutToWatermark { node: place(node), upto },
            Step::Adopt { node, epoch } => Step::Adopt { node: place(node), epoch },
            Step::Expose(node) => Step::Expose(place(node)),
            Step::AnnounceAlone(node) => Step::AnnounceAlone(place(node)),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { name, log, durable, promise, master, lost, .. } = self;
        write!(f, "{name:?} {log:?} durable {durable} promise {promise}")?;
        if *master != 0 {
            write!(f, " master of {master}")?;
        }
        if *lost != Lost::Nothing {
            write!(f, " lost {lost:?}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = if self.last == self.epoch { "elected" } else { "fenced" };
        write!(f, "epoch {} {phase}, committed {:?}", self.epoch, self.committed)?;
        for node in &self.nodes {
            if *node != Node::default() {
                write!(f, " | {node:?}")?;
            }
        }
        Ok(())
    }
}
