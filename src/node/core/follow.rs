//! The next generation's file, once it is built: it follows the current one until the switch, and then takes its place.

use roaring::RoaringTreemap;

use super::disk::Purpose;
use super::{Action, Core};
use crate::mutants::{self, Mutant};
use crate::shelf::{self, Shelf};
use crate::storage::task::DiskTask;
use crate::types::{Chain, Generation, Now, Tip};

/// Where the next file lacks more than what was just appended, so much is re-chained at a time, and no more often: the
/// core's thread has clients to answer meanwhile. (Some 0.6 ms of its time in 2.)
const FOLLOW_STEP_BYTES: u64 = 64 << 10;
const FOLLOW_EVERY_US: u64 = 2000;
/// Read at a time where there is no such bound.
const READ_BYTES: u64 = 1 << 20;

/// The next generation's file, following the current one.
pub(super) struct Next {
    pub shelf: Shelf,
    pub durable: Tip,
    /// Objects that are in the current file and not in this one.
    pub removed: RoaringTreemap,
    /// When it was last brought forward.
    pub followed: Now,
}

impl Core {
    pub(super) fn drive_follow(&mut self, out: &mut Vec<Action>) {
        if self.follow_due_us().is_some_and(|due| due <= self.now.mono_us) {
            self.follow_next(FOLLOW_STEP_BYTES, out);
        }
    }

    /// When more is to be re-chained, in microseconds of the monotonic clock: at once what was just appended.
    pub(super) fn follow_due_us(&self) -> Option<u64> {
        let next = self.next.as_ref()?;
        let end = self.shelf.end_of(next.shelf.tip().seq)?;
        match self.shelf.tip().offset - end {
            0 => None,
            lacking if lacking < FOLLOW_STEP_BYTES => Some(self.now.mono_us),
            _ => Some(next.followed.mono_us + FOLLOW_EVERY_US),
        }
    }

    /// Re-chains what the next file lacks, at most so many bytes.
    pub(super) fn follow_next(&mut self, bytes_max: u64, out: &mut Vec<Action>) {
        let Some(next) = &mut self.next else { return };
        next.followed = self.now;
        let Some((tip, offset, blob)) = rechain_onto(&self.shelf, &mut next.shelf, bytes_max)
        else {
            return;
        };
        // Piece by piece, so that the flip has little of it left to do.
        next.shelf.index_to(self.committed.min(tip.seq));
        let (file, generation) = (next.shelf.file(), next.shelf.generation());
        let work = DiskTask::Append { file, offset, bytes: blob.into() };
        self.disk(Purpose::AppendNext { generation, tip }, work, out);
    }

    /// The next file, if it has everything the current one has.
    pub(super) fn next_complete(&self) -> Option<(Generation, Chain)> {
        let next = self.next.as_ref()?;
        (next.shelf.tip().seq == self.shelf.tip().seq)
            .then(|| (next.shelf.generation(), next.shelf.base_hash()))
    }

    /// The new generation was elected and we have it: from now on it is the current file.
    pub(super) fn flip_if_ready(&mut self, out: &mut Vec<Action>) {
        let Some(current) = self.control.generation().cloned() else { return };
        self.follow_next(u64::MAX, out);
        if self.next_complete() != Some((current.number, current.base_hash)) {
            return;
        }
        self.pack.forget_building();
        let next = self.next.take().expect("complete");
        self.flip_to(next.shelf, next.durable, next.removed, out);
    }

    /// `shelf` becomes the current file: in memory at once, on the disk before anything that is appended to it.
    pub(super) fn flip_to(
        &mut self,
        mut shelf: Shelf,
        durable: Tip,
        removed: RoaringTreemap,
        out: &mut Vec<Action>,
    ) {
        let generation = shelf.generation();
        let target = shelf.name().to_string();
        shelf.index_to(self.committed);
        slog::info!(self.log, "changed to a new generation"; "generation" => generation.0,
            "base_hash" => %shelf.base_hash(), "removed" => removed.len());
        let old = std::mem::replace(&mut self.shelf, shelf);
        self.durable = durable;
        self.verified = (self.durable.seq, self.now.wall_us);
        self.disk(Purpose::Flip, DiskTask::Flip { target }, out);
        self.old.insert(old.generation(), old);
        self.old_files.look_soon();
        if self.serving {
            let untold = mutants::broken(Mutant::PackNotTold);
            let removed = if untold { RoaringTreemap::new() } else { removed };
            let mut actions = Vec::new();
            self.sessions.removed(generation, &removed, &mut actions);
            self.on_session_actions(actions, out);
        }
        self.beats.soon();
    }
}

/// Appends to `next` what `shelf` has and it has not, re-chained. Returns where it ends, where it began, and its bytes.
pub(super) fn rechain_onto(
    shelf: &Shelf,
    next: &mut Shelf,
    bytes_max: u64,
) -> Option<(Tip, u64, Vec<u8>)> {
    let begin = next.tip().offset;
    let mut blob = Vec::new();
    // What is in `next` already must get to the disk, whatever comes after it: a bad read ends the loop and no more.
    'more: while next.tip().seq < shelf.tip().seq && (blob.len() as u64) < bytes_max {
        let Some(from) = shelf.tip_at(next.tip().seq).ok().flatten() else { break };
        let lacking = (bytes_max - blob.len() as u64).min(READ_BYTES);
        let Ok(data) = shelf.read_range(from.offset, lacking) else { break };
        let mut chain = from.chain;
        for tx in shelf::split_transactions(&data) {
            // A disk can give back other bytes than it was given; the chain tells.
            let proved = tx.ok().and_then(|tx| Some((tx, shelf::verify(&chain, tx).ok()?)));
            let Some((tx, before)) = proved else { break 'more };
            chain = before.tip(0).chain;
            let built = shelf::rechain(&next.tip().chain, tx);
            let parsed = shelf::parse(&built.bytes).expect("our own transaction");
            blob.extend_from_slice(&built.bytes);
            next.append(&parsed, built.bytes);
        }
    }
    (!blob.is_empty()).then(|| (next.tip(), begin, blob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::core::start::FIRST;
    use crate::shelf::testing::commit;
    use crate::storage::mem::MemDisk;
    use crate::types::Oid;

    /// Each step read a whole MiB once, whatever its bound, and the core's thread stood still for it.
    #[test]
    fn a_step_takes_no_more_than_its_bound_but_one_transaction_at_least() {
        let empty = || Shelf::create(&MemDisk::new(), FIRST).unwrap();
        let (mut shelf, mut next) = (empty(), empty());
        for _ in 0..10 {
            commit(&mut shelf, &[(0, b"some data", &[])]);
        }
        let begin = next.tip();
        let all = shelf.tip().offset - begin.offset;
        for (bytes_max, transactions) in [(1, 1), (all * 3 / 10, 3), (u64::MAX, 6)] {
            let before = next.tip();
            let (tip, from, bytes) = rechain_onto(&shelf, &mut next, bytes_max).unwrap();
            assert_eq!((tip, from), (next.tip(), before.offset));
            assert_eq!(tip.seq.0 - before.seq.0, transactions, "{bytes_max} bytes");
            assert_eq!(bytes.len() as u64, tip.offset - before.offset);
        }
        assert_eq!(next.tip(), shelf.tip(), "on the same base, the same chain");
        assert!(rechain_onto(&shelf, &mut next, u64::MAX).is_none());
        next.index_to(shelf.tip().seq);
        assert_eq!(next.load(Oid(0)).unwrap(), shelf.load(Oid(0)).unwrap());
    }
}
