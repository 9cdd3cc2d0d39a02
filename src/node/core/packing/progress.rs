//! How far a pack is on this node, for those who watch it, and how much of the file is garbage.

use super::{Building, Marking};
use crate::node::core::Core;
use crate::proto::control::PackProgress;
use crate::replication::wire;

/// How far a job is: a guess in permille, and bytes read and written.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Progress {
    pub(in super::super) permille: u32,
    pub(in super::super) moved: u64,
}

impl Core {
    pub(in super::super) fn pack_progress(&self) -> Option<PackProgress> {
        let (id, generation) = self.pack.of?;
        let phase = match (&self.pack.marking, &self.pack.building) {
            (_, Building::Failed(why)) => format!("failed: {why}"),
            (_, Building::Following { .. }) if self.next_complete().is_some() => "ready".into(),
            (_, Building::Following { .. }) => "rechain".into(),
            (_, Building::Built { .. }) if self.is_held_back() => {
                "differs: another node has built another base, and a third must settle it".into()
            }
            (_, Building::Built { .. } | Building::Naming { .. } | Building::Opening { .. }) => {
                "verify".into()
            }
            (_, Building::Running { .. }) => "build".into(),
            (Marking::Running { .. }, _) => "mark".into(),
            _ => "wait".into(),
        };
        let (done, total) = self.pack_bytes();
        let permille = match &self.pack.building {
            _ if total > 0 => (u128::from(done) * 1000 / u128::from(total)) as u32,
            Building::Following { .. } => 1000,
            _ => 0,
        };
        let ran_us = self.now.mono_us.saturating_sub(self.pack.began.mono_us).max(1);
        let bytes_per_s = u128::from(done) * 1_000_000 / u128::from(ran_us);
        let base_hash = match &self.pack.building {
            Building::Built { built, .. } => wire::put_chain(built.base_hash),
            _ => self
                .next
                .as_ref()
                .map(|next| wire::put_chain(next.shelf.base_hash()))
                .unwrap_or_default(),
        };
        Some(PackProgress {
            pack: id.0,
            generation: generation.0,
            phase,
            permille,
            base_hash,
            done_bytes: done,
            total_bytes: total,
            bytes_per_s: bytes_per_s as u64,
            ..Default::default()
        })
    }

    fn is_held_back(&self) -> bool {
        self.control.pack().is_some_and(|pack| pack.is_held_back(self.setup.id))
    }

    /// Done, and to be done in all, of what this node is at; zeros while it waits.
    fn pack_bytes(&self) -> (u64, u64) {
        if self.pack.jobs().next().is_some() {
            let Progress { permille, moved } = self.pack.progress;
            let by_share = u128::from(moved) * 1000 / u128::from(permille.clamp(1, 1000));
            let total = self.job_bytes().unwrap_or(by_share as u64).max(moved);
            return (moved, if permille == 0 { 0 } else { total });
        }
        let (Building::Following { .. }, Some(next)) = (&self.pack.building, &self.next) else {
            return (0, 0);
        };
        let done = next.shelf.tip().offset - next.shelf.base_end();
        let here = self.shelf.end_of(next.shelf.tip().seq).unwrap_or(self.shelf.tip().offset);
        (done, done + (self.shelf.tip().offset - here))
    }

    /// What the job that runs has to read and write, about: a mark the file and what is kept; a build the same, then what is
    /// kept again, to copy it, and the base, written and read back. None: it is told by how far the job is.
    fn job_bytes(&self) -> Option<u64> {
        let file = self.shelf.tip().offset;
        match (&self.pack.marking, &self.pack.building) {
            (_, Building::Running { .. }) => {
                let seal =
                    self.control.pack()?.seal.as_ref().filter(|seal| seal.file_bytes != 0)?;
                Some(seal.file_bytes + 4 * seal.kept_bytes)
            }
            (Marking::Running { .. }, Building::Waiting) => Some(2 * file - self.garbage_bytes()),
            _ => None,
        }
    }

    /// The mark of a pack has found what else is garbage than the index knows. That stays true of this generation, also
    /// when the pack comes to nothing.
    pub(super) fn learn_garbage(&mut self) {
        let Some(pack) = self.control.pack() else { return };
        let Some(seal) = pack.seal.as_ref().filter(|seal| seal.file_bytes != 0) else { return };
        if self.pack.sealed != Some(pack.id) && self.shelf.generation() < pack.generation {
            let garbage = seal.file_bytes.saturating_sub(seal.kept_bytes);
            let dead = garbage.saturating_sub(self.shelf.garbage_bytes());
            self.dead_bytes = (self.shelf.generation(), dead);
            self.pack.sealed = Some(pack.id);
        }
    }

    /// About how much of the current file a pack would not keep: what is known of it (replaced records, and what a mark of
    /// this generation found besides); or, if that is more, as large a part of what was committed since the last pack as
    /// the last mark found in what it looked at. Objects that nothing refers to any more show in no other way.
    pub(in super::super) fn garbage_bytes(&self) -> u64 {
        let (generation, dead) = self.dead_bytes;
        let dead = if generation == self.shelf.generation() { dead } else { 0 };
        let known = self.shelf.garbage_bytes() + dead;
        let likely =
            u128::from(self.tail_bytes()) * u128::from(self.control.garbage_permille()) / 1000;
        known.max(likely as u64).min(self.shelf.tip().offset)
    }

    /// Committed since the last pack.
    pub(in super::super) fn tail_bytes(&self) -> u64 {
        self.shelf.tip().offset.saturating_sub(self.shelf.base_end())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::node::core::follow::Next;
    use crate::node::core::start::FIRST;
    use crate::node::core::testing::first_of_three;
    use crate::shelf::Shelf;
    use crate::shelf::testing::commit;
    use crate::storage::mem::MemDisk;
    use crate::types::{Generation, Now, PackId};

    const NOW: Now = Now { mono_us: 1, wall_us: 1 };

    /// It was 100 % from the first byte on.
    #[test]
    fn re_chaining_tells_how_far_it_is() {
        let disk = Arc::new(MemDisk::default());
        let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
        for _ in 0..10 {
            commit(&mut shelf, &[(0, b"some data", &[])]);
        }
        let mut core = first_of_three(disk, NOW);
        let next = Shelf::create(&MemDisk::new(), FIRST).unwrap();
        let (durable, removed) = (next.tip(), Default::default());
        core.next = Some(Next { shelf: next, durable, removed, said_ready: false, followed: NOW });
        core.pack.of = Some((PackId(7), Generation(2)));
        core.pack.building = Building::Following { proposed: None };
        let told = |core: &Core| {
            let told = core.pack_progress().unwrap();
            (told.phase, told.permille)
        };
        assert_eq!(told(&core), ("rechain".into(), 0));
        let tail = core.tail_bytes();
        core.follow_next(tail * 3 / 10, &mut Vec::new());
        let (phase, permille) = told(&core);
        assert!(phase == "rechain" && (300..=400).contains(&permille), "{phase}: {permille}");
        core.follow_next(u64::MAX, &mut Vec::new());
        assert_eq!(told(&core), ("ready".into(), 1000));
    }
}
