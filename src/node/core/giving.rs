//! Giving to peers what they lack: the common point, transactions, a base's list of blocks, its blocks.
//!
//! What lies deep in a file is read by jobs, a few at a time, so that a peer that fetches a base costs this node's
//! commits nothing but the share of the disk. The list of a base is known from its build, or is made once by a job when
//! somebody asks for it, and kept in memory: 20 bytes for every mebibyte.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::{Action, Core};
use crate::pack::blocks::{List, Read};
use crate::pack::{Blocks, Job, JobError, JobOutcome};
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::replication::{points, wire};
use crate::shelf::Shelf;
use crate::types::{Chain, Generation, NodeId, Seq, Tip};

/// Of a file in one answer, whatever is asked for.
pub const FETCH_BYTES_MAX: u32 = 1 << 20;
/// Reads for peers that run at once, and that wait. A peer has a few questions out at a time; past that they are
/// dropped, and asked again.
const READS_MAX: usize = 2;
const WAITING_MAX: usize = 64;
/// Hashes in one message: 160 KiB.
const LIST_HASHES: usize = 8192;

#[derive(Default)]
pub(super) struct Giving {
    lists: BTreeMap<Generation, (Chain, Listed)>,
    /// By job: for whom, and the answer as far as it is known.
    reads: BTreeMap<u64, (NodeId, pb::FetchReply)>,
    waiting: VecDeque<(NodeId, pb::FetchReply, Read)>,
}

enum Listed {
    Counting {
        job: u64,
    },
    Here(Arc<Blocks>),
    /// Our own base has other blocks than those agreed.
    Damaged,
}

impl Core {
    pub(super) fn on_probe(
        &mut self,
        from: NodeId,
        probe: pb::Probe,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let mut reply = pb::ProbeReply { id: probe.id, ..pb::ProbeReply::default() };
        let shown = wire::tips("points", &probe.points).map_err(|error| error.to_string())?;
        match self.file_of(probe.generation, &probe.base_hash) {
            Some(shelf) => {
                let found = points::newest_match(&shown, |tip| shelf.find(tip));
                let found = found.map_err(|error| error.to_string())?;
                reply.has_file = true;
                reply.r#match = found.map(|found| wire::put_tip(&found.point));
                let differs = found.and_then(|found| found.newer_mismatch);
                // Beyond our end there is no other history: the one who asks has more of the same.
                let differs = differs.filter(|tip| tip.seq <= shelf.tip().seq);
                reply.newer_mismatch = differs.as_ref().map(wire::put_tip);
                reply.next = match found {
                    Some(found) => self.durable_after(shelf, found.point.seq)?,
                    None => None,
                };
                reply.file_len = shelf.tip().offset;
                reply.base_len = shelf.base_end();
            }
            None => {
                let generation = Generation(probe.generation);
                reply.opening = self.open_old(generation, &probe.base_hash, out);
            }
        }
        self.send(from, Kind::ProbeReply(reply), out);
        Ok(())
    }

    /// The end of the transaction after `seq`, if peers can have it.
    fn durable_after(&self, shelf: &Shelf, seq: Seq) -> Result<Option<pb::Tip>, String> {
        let next = seq.0.checked_add(1).map(|next| shelf.tip_at(Seq(next))).transpose();
        let next = next.map_err(|error| error.to_string())?.flatten();
        let is_current = shelf.generation() == self.shelf.generation();
        let durable = |tip: &Tip| !is_current || tip.offset <= self.durable.offset;
        Ok(next.filter(durable).as_ref().map(wire::put_tip))
    }

    /// The file of that base, if it is here and this node can give of it.
    fn file_of(&self, generation: u64, base_hash: &[u8]) -> Option<&Shelf> {
        // Who is fetching what it lost has nothing to measure others by.
        if !self.suspect.is_empty() || self.recovering.is_some() {
            return None;
        }
        let is_it = |shelf: &&Shelf| {
            shelf.generation().0 == generation && shelf.base_hash().0[..] == *base_hash
        };
        Some(&self.shelf).filter(is_it).or_else(|| self.old.values().find(is_it))
    }

    pub(super) fn on_fetch(
        &mut self,
        from: NodeId,
        fetch: pb::Fetch,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let len = u64::from(fetch.len.min(FETCH_BYTES_MAX));
        let durable = self.durable.offset;
        let mut reply = pb::FetchReply { id: fetch.id, offset: fetch.offset, data: Bytes::new() };
        match self.file_of(fetch.generation, &fetch.base_hash) {
            None => {}
            Some(shelf) if fetch.offset < shelf.base_end() => {
                let len = len.min(shelf.base_end() - fetch.offset);
                let read = Read { name: shelf.name().to_string(), offset: fetch.offset, len };
                if self.giving.waiting.len() < WAITING_MAX {
                    self.giving.waiting.push_back((from, reply, read));
                }
                self.read_for_peers(out);
                return Ok(());
            }
            Some(shelf) => {
                let end = match shelf.generation() == self.shelf.generation() {
                    true => durable,
                    false => shelf.tip().offset,
                };
                // In pieces, wherever they end: a long transaction would take too long for who waits for it.
                if fetch.offset < end {
                    let len = len.min(end - fetch.offset);
                    reply.data = shelf.read_part(fetch.offset, len).unwrap_or_default();
                }
            }
        }
        self.send(from, Kind::FetchReply(reply), out);
        Ok(())
    }

    fn read_for_peers(&mut self, out: &mut Vec<Action>) {
        while self.giving.reads.len() < READS_MAX {
            let Some((from, reply, read)) = self.giving.waiting.pop_front() else { return };
            let job = self.next_job();
            self.giving.reads.insert(job, (from, reply));
            out.push(Action::Job { job, work: Job::Read(read) });
        }
    }

    // ---- the list ----

    /// The blocks of a base that is here.
    pub(super) fn keep_list(&mut self, generation: Generation, base: Chain, blocks: Arc<Blocks>) {
        self.giving.lists.insert(generation, (base, Listed::Here(blocks)));
    }

    /// Lists of files that are gone are of no use.
    pub(super) fn drop_lists_below(&mut self, generation: Generation) {
        self.giving.lists.retain(|of, _| *of >= generation);
    }

    pub(super) fn on_block_list_request(
        &mut self,
        from: NodeId,
        request: pb::BlockListRequest,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let mut list = pb::BlockList { id: request.id, first: request.first, ..Default::default() };
        let generation = Generation(request.generation);
        let found = self.file_of(generation.0, &request.base_hash);
        match found.map(|shelf| (shelf.base_hash(), shelf.name().to_string(), shelf.base_end())) {
            Some((base, name, base_len)) => {
                list.has_file = true;
                match self.giving.lists.get(&generation).filter(|(of, _)| *of == base) {
                    Some((_, Listed::Here(blocks))) => {
                        list.base_len = blocks.base_len();
                        list.block_bytes = blocks.block_bytes();
                        list.hashes = blocks.part(request.first, LIST_HASHES);
                    }
                    Some((_, Listed::Counting { .. })) => list.counting = true,
                    Some((_, Listed::Damaged)) => {}
                    None => {
                        list.counting = true;
                        let job = self.next_job();
                        let work = Job::List(List::new(name, base_len, self.setup.block_bytes));
                        self.giving.lists.insert(generation, (base, Listed::Counting { job }));
                        out.push(Action::Job { job, work });
                    }
                }
            }
            None => {
                self.open_old(generation, &request.base_hash, out);
            }
        }
        self.send(from, Kind::BlockList(list), out);
        Ok(())
    }

    // ---- jobs ----

    fn listing(&self, job: u64) -> Option<Generation> {
        let mut lists = self.giving.lists.iter();
        let is_it =
            |listed: &Listed| matches!(listed, Listed::Counting { job: its } if *its == job);
        lists.find(|(_, (_, listed))| is_it(listed)).map(|(generation, _)| *generation)
    }

    pub(super) fn is_giving_job(&self, job: u64) -> bool {
        self.giving.reads.contains_key(&job) || self.listing(job).is_some()
    }

    pub(super) fn on_giving_job(
        &mut self,
        job: u64,
        result: Result<JobOutcome, JobError>,
        out: &mut Vec<Action>,
    ) {
        if let Some((to, mut reply)) = self.giving.reads.remove(&job) {
            match result {
                Ok(JobOutcome::Read(bytes)) => {
                    self.ladder.gave(bytes.len() as u64);
                    reply.data = bytes;
                }
                Ok(_) => {}
                Err(error) => {
                    slog::warn!(self.log, "a block of a base can't be read for a peer"; "peer" => to.0, "error" => %error);
                }
            }
            self.send(to, Kind::FetchReply(reply), out);
            return self.read_for_peers(out);
        }
        let Some(generation) = self.listing(job) else { return };
        match result {
            Ok(JobOutcome::Listed(blocks)) => self.on_listed(generation, blocks),
            Ok(_) => {}
            Err(error) => {
                self.giving.lists.remove(&generation);
                slog::warn!(self.log, "the blocks of a base can't be listed"; "generation" => generation.0, "error" => %error);
            }
        }
    }

    fn on_listed(&mut self, generation: Generation, blocks: Blocks) {
        let Some((base, listed)) = self.giving.lists.get_mut(&generation) else { return };
        let record = self.control.generation_record(generation);
        let agreed = record.filter(|it| it.base_hash == *base).and_then(|it| it.block_root);
        if agreed.is_some_and(|agreed| agreed != blocks.root()) {
            *listed = Listed::Damaged;
            slog::error!(self.log, "this node's own base is not what was agreed: its disk has damaged it since it was \
                verified; stop this node and start it again, which repairs it from the others"; "generation" => generation.0);
            return;
        }
        *listed = Listed::Here(Arc::new(blocks));
    }
}

#[cfg(test)]
#[path = "giving_tests.rs"]
mod tests;
