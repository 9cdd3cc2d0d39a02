//! What a power failure leaves of what was not synced.

use super::{FileOp, Loss, Platter, SECTOR, apply, apply_name};
use crate::sim::rng::Rng;

impl Platter {
    /// The power fails: what was not synced may be lost.
    pub fn power_fails(&mut self, rng: &mut Rng, loss: Loss) -> String {
        let mut lost = 0;
        for (number, inode) in &mut self.inodes {
            if std::mem::take(&mut inode.unsure) {
                inode.written.clone_from(&inode.durable);
            }
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
        self.names_unsure = false;
        self.names_changed = true;
        self.forget_unnamed();
        format!("{lost} unsynced writes and {names} changes of names at stake ({loss:?})")
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
