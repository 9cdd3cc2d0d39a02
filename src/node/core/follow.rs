//! The next generation's file, once it is built: it follows the current one until the switch, and then takes its place.
//! Who has not come so far by the switch goes on, and takes its place later.

use roaring::RoaringTreemap;

use super::disk::Purpose;
use super::{Action, Core};
use crate::mutants::{self, Mutant};
use crate::shelf::{self, Shelf};
use crate::storage::task::DiskTask;
use crate::types::{Chain, Generation, Now, Seq, Tip};

/// Where the next file lacks more than what was just appended, so much is re-chained at a time, and no more often: the
/// core's thread has clients to answer meanwhile. (Some 0.6 ms of its time in 2.)
pub const FOLLOW_BYTES: u64 = 64 << 10;
const FOLLOW_EVERY_US: u64 = 2000;
/// So many of them at once for a promise or an election that finds a node which has not said yet that it is ready, a
/// mebibyte: nobody counts on it, and with all that it lacks it could stand still for long.
const AT_ONCE_STEPS: u64 = 16;
/// Read at a time where there is no such bound.
const READ_BYTES: u64 = 1 << 20;

/// The next generation's file, following the current one.
pub(super) struct Next {
    pub shelf: Shelf,
    pub durable: Tip,
    /// Objects that are in the current file and not in this one.
    pub removed: RoaringTreemap,
    /// The others were told that it has what the current one has.
    pub said_ready: bool,
    /// When it was last brought forward.
    pub followed: Now,
}

impl Core {
    pub(super) fn drive_follow(&mut self, out: &mut Vec<Action>) {
        if self.follow_due_us().is_some_and(|due| due <= self.now.mono_us) {
            self.follow_next(self.setup.follow_bytes, out);
        }
    }

    /// When more is to be re-chained, in microseconds of the monotonic clock: at once what was just appended.
    pub(super) fn follow_due_us(&self) -> Option<u64> {
        let next = self.next.as_ref()?;
        let end = self.shelf.end_of(next.shelf.tip().seq)?;
        match self.shelf.tip().offset - end {
            0 => None,
            lacking if lacking < self.setup.follow_bytes => Some(self.now.mono_us),
            _ => Some(next.followed.mono_us + FOLLOW_EVERY_US),
        }
    }

    /// Re-chains what the next file lacks: all of it, if somebody may count on that.
    pub(super) fn follow_at_once(&mut self, out: &mut Vec<Action>) {
        let said_ready = self.next.as_ref().is_some_and(|next| next.said_ready);
        let steps = AT_ONCE_STEPS * self.setup.follow_bytes;
        self.follow_next(if said_ready { u64::MAX } else { steps }, out);
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

    /// Was the next file's generation elected?
    pub(super) fn next_is_elected(&self) -> bool {
        let next = self.next.as_ref().map(|next| (next.shelf.generation(), next.shelf.base_hash()));
        let current = self.control.generation().map(|it| (it.number, it.base_hash));
        next.is_some() && next == current
    }

    /// The new generation was elected and we have it: from now on it is the current file.
    pub(super) fn flip_if_ready(&mut self, out: &mut Vec<Action>) {
        self.follow_at_once(out);
        self.flip_if_complete(out);
    }

    /// The new generation was elected before we were ready. What can't be read can't be re-chained either: then it is a
    /// rebase like any other.
    pub(super) fn drive_late_flip(&mut self, out: &mut Vec<Action>) {
        let before = self.next_at();
        let is_due = self.follow_due_us().is_some_and(|due| due <= self.now.mono_us);
        self.drive_follow(out);
        if is_due && self.next_at() == before {
            return self.drop_next(out);
        }
        if self.flip_if_complete(out) {
            self.hello_master(out);
            self.report_to_leader(out);
        }
    }

    fn next_at(&self) -> Option<Seq> {
        self.next.as_ref().map(|next| next.shelf.tip().seq)
    }

    fn flip_if_complete(&mut self, out: &mut Vec<Action>) -> bool {
        let is_time = self.next_is_elected() && self.next_complete().is_some();
        let Some(next) = self.next.take_if(|_| is_time) else { return false };
        self.pack.forget_building();
        self.flip_to(next.shelf, next.durable, next.removed, out);
        true
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
        // Also what only this node has acknowledged, if it has.
        let shown = self.committed.max(self.shelf.indexed()).min(shelf.tip().seq);
        shelf.index_to(shown);
        slog::info!(self.log, "changed to a new generation"; "generation" => generation.0,
            "base_hash" => %shelf.base_hash(), "removed" => removed.len());
        let old = std::mem::replace(&mut self.shelf, shelf);
        self.durable = durable;
        self.verified = (self.durable.seq, self.now.wall_us);
        self.disk(Purpose::Flip, DiskTask::Flip { target }, out);
        self.old.insert(old.generation(), old);
        self.old_files.look_soon();
        if self.serving || self.is_holding() {
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
