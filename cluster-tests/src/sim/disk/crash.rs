//! Crashes whose outcome is decided beforehand: for enumerating them instead of drawing one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::{FileOp, Medium, Platter, SECTOR, Troubles, apply, apply_name};

/// With no more unsynced changes than this, every subset of them is a fate of its own; of more, each alone is kept, and
/// each alone is lost.
const SUBSETS_OF_MAX: usize = 5;
/// Bits of a subset.
const CHANGES_MAX: usize = 31;

/// What becomes of unsynced changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The process ends, the machine goes on: everything written stays, synced or not.
    Kill,
    /// The power fails: nothing that was not synced is kept.
    LoseAll,
    /// Writes are kept, changes of names are not.
    FilesOnly,
    /// Changes of names are kept, writes are not.
    NamesOnly,
    /// All is kept, but each file's last write only to its middle.
    TornMiddle,
    /// All is kept, but of each file's last write the first sector is lost.
    TornHead,
    /// All is kept, but of each file's last write only the length: the file reads as zeros there.
    Hollow,
    /// All is kept, but of each file's last write only the first sector, and the length.
    HollowTail,
    /// Those changes are kept whose bit is set: writes by file, then names, each in their order.
    Subset(u32),
}

impl Fate {
    /// Is what was written first kept first, file by file? Else holes may be left, which look like corruption.
    pub fn is_ordered(self) -> bool {
        !matches!(self, Fate::TornHead | Fate::Subset(_))
    }
}

impl Medium {
    /// Another medium with the same on it, in good order.
    pub fn fork(&self) -> Medium {
        let platter = self.lock();
        Medium(Arc::new(Mutex::new(Platter {
            life: platter.life,
            fuse: platter.fuse,
            broken: platter.broken,
            names: platter.names.clone(),
            durable_names: platter.durable_names.clone(),
            dir_ops: platter.dir_ops.clone(),
            inodes: platter.inodes.clone(),
            inodes_made: platter.inodes_made,
            changed: platter.changed.clone(),
            names_changed: platter.names_changed,
            names_unsure: false,
            troubles: Troubles::new(0),
            synced: VecDeque::new(),
        })))
    }
}

impl Platter {
    /// Changes left before the fuse burns down.
    pub fn fuse_left(&self) -> Option<u32> {
        self.fuse
    }

    /// Of all files together.
    pub fn bytes(&self) -> usize {
        self.inodes.values().map(|inode| inode.written.len()).sum()
    }

    /// Everything there is becomes durable.
    pub fn settle(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.pending.clear();
            inode.durable = inode.written.clone();
            inode.changed_from = 0;
        }
        self.changed.extend(self.inodes.keys());
        self.dir_ops.clear();
        self.durable_names = self.names.clone();
        self.names_changed = true;
    }

    /// A file is gone, by somebody's hand.
    pub fn lose(&mut self, name: &str) {
        self.names.remove(name);
        self.durable_names.remove(name);
        self.names_changed = true;
    }

    /// Every fate that can differ from the others with what is unsynced now; the first is a kill.
    pub fn fates(&self) -> Vec<Fate> {
        let writes: usize = self.inodes.values().map(|inode| inode.pending.len()).sum();
        let changes = writes + self.dir_ops.len();
        let mut fates = vec![Fate::Kill];
        if changes > 0 {
            fates.push(Fate::LoseAll);
        }
        if writes > 0 && !self.dir_ops.is_empty() {
            fates.extend([Fate::FilesOnly, Fate::NamesOnly]);
        }
        if writes > 0 {
            fates.extend([Fate::TornMiddle, Fate::TornHead, Fate::Hollow, Fate::HollowTail]);
        }
        assert!(changes <= CHANGES_MAX, "{changes} unsynced changes are too many to choose from");
        let all = (1u32 << changes) - 1;
        if changes <= SUBSETS_OF_MAX {
            fates.extend((1..all.max(1)).map(Fate::Subset));
        } else {
            let each = (0..changes).map(|change| 1 << change);
            fates.extend(each.flat_map(|one| [Fate::Subset(one), Fate::Subset(all ^ one)]));
        }
        fates
    }

    /// The process is gone, and unsynced changes meet their fate.
    pub fn crash(&mut self, fate: Fate) {
        self.unmount();
        if fate == Fate::Kill {
            return;
        }
        let mut bit = 0;
        let mut chosen = |fate: Fate, otherwise: bool| {
            bit += 1;
            match fate {
                Fate::Subset(bits) => bits & (1 << (bit - 1)) != 0,
                _ => otherwise,
            }
        };
        for (number, inode) in &mut self.inodes {
            let pending = std::mem::take(&mut inode.pending);
            let last = pending.len().saturating_sub(1);
            for (index, op) in pending.iter().enumerate() {
                if !chosen(fate, !matches!(fate, Fate::LoseAll | Fate::NamesOnly)) {
                    continue;
                }
                match torn(op, fate).filter(|_| index == last) {
                    Some(parts) => parts.iter().for_each(|part| apply(&mut inode.durable, part)),
                    None => apply(&mut inode.durable, op),
                }
            }
            inode.written = inode.durable.clone();
            inode.changed_from = 0;
            self.changed.insert(*number);
        }
        for op in std::mem::take(&mut self.dir_ops) {
            if chosen(fate, !matches!(fate, Fate::LoseAll | Fate::FilesOnly)) {
                apply_name(&mut self.durable_names, op);
            }
        }
        self.names = self.durable_names.clone();
        self.names_changed = true;
        self.forget_unnamed();
    }
}

/// What is left of a file's last write; None if this fate does not tear it.
fn torn(op: &FileOp, fate: Fate) -> Option<Vec<FileOp>> {
    let FileOp::Write { offset, data } = op else { return None };
    let (offset, end) = (*offset, *offset + data.len());
    let middle = data.len() / 2;
    // Of a write within one sector half is lost, which is more than a disk does.
    let sector = Some(SECTOR - offset % SECTOR).filter(|at| *at < data.len());
    let first = sector.unwrap_or(middle);
    // A write of nothing at the end makes the file as long as the write would have.
    let length = FileOp::Write { offset: end, data: Vec::new() };
    match fate {
        Fate::TornMiddle => Some(vec![FileOp::Write { offset, data: data[..middle].to_vec() }]),
        Fate::TornHead => {
            Some(vec![FileOp::Write { offset: offset + first, data: data[first..].to_vec() }])
        }
        Fate::Hollow => Some(vec![length]),
        Fate::HollowTail => {
            let kept = data[..sector.unwrap_or(0)].to_vec();
            Some(vec![FileOp::Write { offset, data: kept }, length])
        }
        _ => None,
    }
}
