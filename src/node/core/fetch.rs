//! Fetching a base, block by block.
//!
//! First the list of its blocks' hashes, from any peer: the root it must have was agreed through Raft. Then the blocks,
//! each proved by the list before it is kept, written to a file aside in whatever order they come. After a crash, or
//! when every peer was gone, that file is looked through with the list, and only what is not there (never written, torn,
//! damaged) is fetched. When all is there the file is opened and proved like any other, and only then gets its name.
//!
//! The first generation's root was never agreed. Then a peer's list is used as it is, and the base hash at the end is the
//! judge: if that is another one, the peer that gave the list is not asked again for a while.
//!
//! Whom to ask for what is decided in `replication::sources`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Purpose;
use super::rebase::Rebase;
use super::{Action, Core};
use crate::control::GenerationRecord;
use crate::pack::blocks::{Check, Checked, Parts};
use crate::pack::{Blocks, Job, JobError, JobOutcome};
use crate::proto::control::Rung;
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::replication::sources::{Plan, Sources};
use crate::replication::wire;
use crate::storage::DiskFile;
use crate::storage::task::{DiskTask, TaskDone};
use crate::types::{Chain, Generation, NodeId, Now};

/// A peer that does not send its list for this long is left for another.
const LIST_PATIENCE_MS: u64 = 3000;
/// One that has none, or is still making it, is asked again after this long.
const LIST_AGAIN_MS: u64 = 300;
/// Room that must be left on the disk beside the base.
const FREE_BYTES_MIN: u64 = 16 << 20;
/// What names of unfinished bases begin with.
const PARTIAL: &str = "fetching";

/// A fetch in progress.
pub(super) struct BaseFetch {
    id: u64,
    record: GenerationRecord,
    sources: Sources,
    stage: Stage,
}

enum Stage {
    Listing(Listing),
    /// Seeing what is there from before.
    Checking {
        job: u64,
        list: List,
    },
    Creating(List),
    Fetching(Box<Fetching>),
}

#[derive(Default)]
struct Listing {
    asked: Option<(NodeId, Now)>,
    parts: Option<(NodeId, Parts)>,
    /// Who could not give it, when last asked.
    not_now: BTreeMap<NodeId, Now>,
}

/// A whole list, and who gave it.
struct List {
    blocks: Arc<Blocks>,
    from: NodeId,
}

struct Fetching {
    list: List,
    file: Arc<dyn DiskFile>,
    plan: Plan,
    /// Bytes of the base that are here and proved.
    done: u64,
}

/// What outlasts a fetch.
#[derive(Default)]
pub(super) struct Past {
    /// Of the last base: who is refused for a while.
    sources: Option<(Chain, Sources)>,
    /// Nobody has that base any more.
    given_up: Option<Generation>,
    /// This process has written to an unfinished base.
    begun: bool,
    /// Unfinished bases that nobody wants were looked for.
    tidied: bool,
}

/// The file a base is fetched into. Its name tells of which base it is; what is in it is proved before it is used.
pub fn partial_name(generation: Generation, base_hash: Chain) -> String {
    format!("{PARTIAL}-g{:08}-{}.durus", generation.0, &base_hash.to_string()[..8])
}

/// The generation of an unfinished base, by its name; 0 if it has none.
fn generation_of(partial: &str) -> Generation {
    let number = partial.strip_prefix(PARTIAL).and_then(|rest| rest.get(2..10));
    Generation(number.and_then(|digits| digits.parse().ok()).unwrap_or(0))
}

impl Core {
    /// Begins, or goes on with what was begun: also with the base of a generation that has been packed since, whose
    /// successor can then be built from it.
    pub(super) fn fetch_base(&mut self, current: GenerationRecord, out: &mut Vec<Action>) {
        let record = self.begun_base(&current).unwrap_or(current);
        slog::info!(self.log, "rebasing: fetching the base"; "generation" => record.number.0);
        let name = partial_name(record.number, record.base_hash);
        self.remove_partials(Some(&name), out);
        self.ladder.climb(Rung::Base, record.number, self.now);
        let me = self.setup.id;
        let mut sources = match self.fetch_past.sources.take() {
            Some((base, sources)) if base == record.base_hash => sources,
            _ => Sources::new(self.control.members().map(|it| it.id).filter(|id| *id != me)),
        };
        sources.begin_again();
        let id = self.next_job();
        let stage = Stage::Listing(Listing::default());
        self.fetch = Some(BaseFetch { id, record, sources, stage });
        self.fetch_past.tidied = false;
        self.rebase = Some(Rebase::Fetching);
        self.beats.soon();
        self.drive_fetch(out);
    }

    /// The newest base of which a part is on the disk, unless nobody has the rest.
    fn begun_base(&self, current: &GenerationRecord) -> Option<GenerationRecord> {
        let names = self.setup.disk.list().unwrap_or_default();
        let is_begun = |record: &&GenerationRecord| {
            names.contains(&partial_name(record.number, record.base_hash))
                && Some(record.number) != self.fetch_past.given_up
                && (record.number > self.shelf.generation() || record.number == current.number)
        };
        self.control.generations().rev().find(is_begun).cloned()
    }

    /// Unfinished bases go, but one that is wanted, and those of generations that Raft has not told us of yet.
    fn remove_partials(&mut self, wanted: Option<&str>, out: &mut Vec<Action>) {
        let Some(current) = self.control.generation().map(|it| it.number) else { return };
        let names = self.setup.disk.list().unwrap_or_default();
        let of_no_use = |name: &String| {
            name.starts_with(PARTIAL)
                && Some(name.as_str()) != wanted
                && generation_of(name) <= current
        };
        let names: Vec<String> = names.into_iter().filter(of_no_use).collect();
        if !names.is_empty() {
            slog::info!(self.log, "an unfinished base that nobody wants is removed"; "files" => names.join(", "));
            self.disk(Purpose::Housekeeping, DiskTask::Remove { names }, out);
        }
    }

    /// This node is where it should be.
    pub(super) fn tidy_partials(&mut self, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.fetch_past.tidied, true) {
            self.remove_partials(None, out);
        }
    }

    pub(super) fn fetch_deadline_us(&self) -> Option<u64> {
        match &self.fetch.as_ref()?.stage {
            Stage::Fetching(fetching) => fetching.plan.due_us(),
            _ => None,
        }
    }

    pub(super) fn drive_fetch(&mut self, out: &mut Vec<Action>) {
        let (now, me) = (self.now, self.setup.id);
        let master = self.control.master().map(|(master, _)| master).filter(|id| *id != me);
        let Some(fetch) = &mut self.fetch else { return };
        fetch.sources.set_master(master);
        let (id, generation) = (fetch.id, fetch.record.number.0);
        let base_hash = wire::put_chain(fetch.record.base_hash);
        for peer in fetch.sources.probe(now) {
            let base_hash = base_hash.clone();
            let probe = pb::Probe { id, generation, base_hash, points: Vec::new() };
            self.send(peer, Kind::Probe(probe), out);
        }
        let Some(fetch) = &self.fetch else { return };
        match &fetch.stage {
            Stage::Checking { .. } | Stage::Creating(_) => {}
            Stage::Listing(_) if fetch.sources.is_hopeless() => self.on_fetch_failed(),
            Stage::Listing(_) => self.drive_listing(out),
            // With a part of it here, silence is waited out: to begin again means to look through that part again.
            Stage::Fetching(_) if fetch.sources.all_lack_it() => self.on_fetch_failed(),
            Stage::Fetching(_) => self.drive_blocks(out),
        }
    }

    fn on_fetch_failed(&mut self) {
        let Some(fetch) = self.fetch.take() else { return };
        let is_current =
            self.control.generation().is_some_and(|current| current.number == fetch.record.number);
        let why = match is_current {
            true => "no peer has the current generation's base".to_string(),
            false => format!("no peer has the base of generation {} any more", fetch.record.number),
        };
        slog::warn!(self.log, "rebase: tried every peer"; "why" => &why);
        if !is_current {
            self.fetch_past.given_up = Some(fetch.record.number);
        }
        self.fetch_past.sources = Some((fetch.record.base_hash, fetch.sources));
        self.ladder.give_up();
        self.rebase = Some(Rebase::Failed { why, at: self.now });
    }

    /// A connection is new, or gone, and what was asked on it may be lost.
    pub(super) fn fetch_connection(&mut self, peer: NodeId, up: bool) {
        let Some(fetch) = &mut self.fetch else { return };
        fetch.sources.on_connection(peer, up);
        match &mut fetch.stage {
            Stage::Listing(listing) => {
                listing.asked = listing.asked.filter(|(asked, _)| *asked != peer);
            }
            Stage::Fetching(fetching) => fetching.plan.give_back_all_of(peer, !up),
            _ => {}
        }
    }

    // ---- the list ----

    fn drive_listing(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(fetch) = &mut self.fetch else { return };
        let Stage::Listing(listing) = &mut fetch.stage else { return };
        if let Some((peer, at)) = listing.asked {
            if now.since_ms(at) < LIST_PATIENCE_MS {
                return;
            }
            listing.not_now.insert(peer, now);
        }
        listing.asked = None;
        let usable = fetch.sources.usable(now);
        let rested = |peer: &&NodeId| {
            listing.not_now.get(peer).is_none_or(|at| now.since_ms(*at) >= LIST_AGAIN_MS)
        };
        let going_on = listing.parts.as_ref().map(|(peer, _)| *peer);
        let going_on = usable.iter().filter(rested).find(|peer| Some(**peer) == going_on);
        let Some(peer) = going_on.or_else(|| usable.iter().find(rested)).copied() else { return };
        if listing.parts.as_ref().is_some_and(|(of, _)| *of != peer) {
            listing.parts = None;
        }
        listing.asked = Some((peer, now));
        let request = pb::BlockListRequest {
            id: fetch.id,
            generation: fetch.record.number.0,
            base_hash: wire::put_chain(fetch.record.base_hash),
            first: listing.parts.as_ref().map_or(0, |(_, parts)| parts.next()),
        };
        self.send(peer, Kind::BlockListRequest(request), out);
    }

    pub(super) fn on_block_list(
        &mut self,
        from: NodeId,
        answer: pb::BlockList,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let (now, block_bytes) = (self.now, self.setup.block_bytes);
        let Some(fetch) = &mut self.fetch else { return Ok(()) };
        let Stage::Listing(listing) = &mut fetch.stage else { return Ok(()) };
        if fetch.id != answer.id || listing.asked.is_none_or(|(peer, _)| peer != from) {
            return Ok(());
        }
        if answer.first != listing.parts.as_ref().map_or(0, |(_, parts)| parts.next()) {
            return Ok(()); // an answer that came twice
        }
        listing.asked = None;
        if answer.hashes.is_empty() {
            listing.not_now.insert(from, now);
            if !answer.has_file {
                fetch.sources.lacks(from);
            }
            self.drive_listing(out);
            return Ok(());
        }
        match take_part(listing, from, &answer, block_bytes) {
            Ok(true) => {
                let (_, parts) = listing.parts.take().expect("just taken into");
                self.on_list(List { blocks: Arc::new(parts.whole()), from }, out);
                Ok(())
            }
            Ok(false) => {
                self.drive_listing(out);
                Ok(())
            }
            Err(why) => {
                listing.parts = None;
                fetch.sources.refuse(from, now);
                Err(format!("block list: {why}"))
            }
        }
    }

    fn on_list(&mut self, list: List, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(fetch) = &mut self.fetch else { return };
        if fetch.record.block_root.is_some_and(|agreed| agreed != list.blocks.root()) {
            let ms = fetch.sources.refuse(list.from, now);
            slog::error!(self.log, "fetch: a peer's list of blocks is not the agreed one; it is not asked for a while";
                "peer" => list.from.0, "ms" => ms);
            return self.drive_listing(out);
        }
        let name = partial_name(fetch.record.number, fetch.record.base_hash);
        let disk = self.setup.disk.clone();
        let there = disk.open(&name).and_then(|file| file.len());
        let base_len = list.blocks.base_len();
        let wanted = base_len.saturating_sub(*there.as_ref().unwrap_or(&0)) + FREE_BYTES_MIN;
        if let Some(free) = disk.free_bytes().ok().filter(|free| *free < wanted) {
            let why = format!("the base needs {wanted} bytes of disk, {free} are free");
            if fetch.record.block_root.is_none() {
                // It may not be as long as this peer says.
                fetch.sources.refuse(list.from, now);
            }
            self.stop_fetching();
            return self.cannot_rebase(why);
        }
        // Longer than the base, it can't be made into it.
        if there.is_ok_and(|len| len > 0 && len <= base_len) {
            let job = self.next_job();
            let work = Job::Check(Check::new(name, list.blocks.clone()));
            out.push(Action::Job { job, work });
            self.ladder.at("check", 0, base_len, now);
            self.set_stage(Stage::Checking { job, list });
        } else {
            self.create_partial(list, out);
        }
    }

    fn create_partial(&mut self, list: List, out: &mut Vec<Action>) {
        let Some(fetch) = &mut self.fetch else { return };
        let name = partial_name(fetch.record.number, fetch.record.base_hash);
        let id = fetch.id;
        self.set_stage(Stage::Creating(list));
        self.disk(Purpose::BaseFile { fetch: id }, DiskTask::Create { name }, out);
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(fetch) = &mut self.fetch {
            fetch.stage = stage;
        }
    }

    /// What was fetched stays, and so does what is known of the peers.
    fn stop_fetching(&mut self) -> Option<GenerationRecord> {
        let fetch = self.fetch.take()?;
        self.fetch_past.sources = Some((fetch.record.base_hash, fetch.sources));
        Some(fetch.record)
    }

    // ---- what is there already ----

    pub(super) fn is_fetch_job(&self, job: u64) -> bool {
        self.fetch.as_ref().is_some_and(
            |fetch| matches!(&fetch.stage, Stage::Checking { job: its, .. } if *its == job),
        )
    }

    pub(super) fn on_fetch_job(
        &mut self,
        result: Result<JobOutcome, JobError>,
        out: &mut Vec<Action>,
    ) {
        let Some(fetch) = &mut self.fetch else { return };
        let stage = std::mem::replace(&mut fetch.stage, Stage::Listing(Listing::default()));
        let Stage::Checking { list, .. } = stage else { return fetch.stage = stage };
        match result {
            Ok(JobOutcome::Checked(Checked { file, have })) => {
                self.go_on(list, file, have);
                self.drive_fetch(out);
            }
            Ok(_) => {}
            Err(error) => {
                slog::warn!(self.log, "fetch: what is here of the base can't be read; from the beginning"; "error" => %error);
                self.create_partial(list, out);
            }
        }
    }

    pub(super) fn on_base_file(&mut self, id: u64, done: TaskDone, out: &mut Vec<Action>) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.id == id) else { return };
        let stage = std::mem::replace(&mut fetch.stage, Stage::Listing(Listing::default()));
        match (stage, done) {
            (Stage::Creating(list), TaskDone::Created(file)) => {
                let none = vec![false; list.blocks.count() as usize];
                self.go_on(list, file, none);
                self.drive_fetch(out);
            }
            (stage, _) => fetch.stage = stage,
        }
    }

    fn go_on(&mut self, list: List, file: Arc<dyn DiskFile>, have: Vec<bool>) {
        let blocks = &list.blocks;
        let here = have.iter().enumerate().filter(|(_, have)| **have);
        let done: u64 = here.map(|(block, _)| blocks.len(block as u64)).sum();
        if done > 0 {
            let earlier = !self.fetch_past.begun;
            let message = match earlier {
                true => "fetch: goes on where an earlier process was",
                false => "fetch: goes on where it was",
            };
            slog::info!(self.log, "{}", message; "bytes_here" => done, "bytes" => blocks.base_len());
            if earlier {
                self.ladder.reused(done);
            }
        }
        self.fetch_past.begun = true;
        let plan = Plan::new(have, self.setup.fetch_bytes_per_s_max);
        self.ladder.at("fetch", done, blocks.base_len(), self.now);
        self.set_stage(Stage::Fetching(Box::new(Fetching { list, file, plan, done })));
        self.beats.soon();
    }

    // ---- blocks ----

    fn drive_blocks(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(fetch) = &mut self.fetch else { return };
        let Stage::Fetching(fetching) = &mut fetch.stage else { return };
        for peer in fetching.plan.expire(&mut fetch.sources, now) {
            slog::info!(self.log, "fetch: a source is silent"; "peer" => peer.0);
        }
        let blocks = fetching.list.blocks.clone();
        let mut asked = Vec::new();
        while let Some(ask) = fetching.plan.next(&fetch.sources, now, |block| blocks.len(block)) {
            if ask.elsewhere {
                slog::info!(self.log, "fetch: a block is asked of another peer";
                    "peer" => ask.of.0, "block" => ask.block);
            }
            asked.push(ask);
        }
        self.ladder.at("fetch", fetching.done, blocks.base_len(), now);
        if fetching.plan.is_complete() {
            return self.on_base_whole(out);
        }
        let (id, generation) = (fetch.id, fetch.record.number.0);
        let base_hash = wire::put_chain(fetch.record.base_hash);
        for ask in asked {
            let (offset, len) = (blocks.offset(ask.block), blocks.len(ask.block) as u32);
            let base_hash = base_hash.clone();
            self.send(
                ask.of,
                Kind::Fetch(pb::Fetch { id, generation, base_hash, offset, len }),
                out,
            );
        }
    }

    pub(super) fn fetch_id(&self) -> Option<u64> {
        self.fetch.as_ref().map(|fetch| fetch.id)
    }

    pub(super) fn on_source_found(
        &mut self,
        from: NodeId,
        reply: &pb::ProbeReply,
        out: &mut Vec<Action>,
    ) {
        let now = self.now;
        if let Some(fetch) = &mut self.fetch {
            fetch.sources.on_probe_reply(from, reply.has_file, now);
            self.drive_fetch(out);
        }
    }

    /// A block, or the word that it is not there.
    pub(super) fn on_block(
        &mut self,
        from: NodeId,
        offset: u64,
        data: Bytes,
        out: &mut Vec<Action>,
    ) {
        let now = self.now;
        let len = data.len() as u64;
        self.fetched_bytes += len;
        self.ladder.took(len);
        let Some(fetch) = &mut self.fetch else { return };
        let Stage::Fetching(fetching) = &mut fetch.stage else { return };
        let (sources, plan) = (&mut fetch.sources, &mut fetching.plan);
        let blocks = &fetching.list.blocks;
        let block = offset / blocks.block_bytes();
        let is_one = blocks.offset(block) == offset && block < blocks.count();
        if !is_one || !plan.on_reply(sources, from, block, now) {
            return;
        }
        if data.is_empty() {
            slog::info!(self.log, "fetch: a source has not a block"; "peer" => from.0, "block" => block);
            plan.absent(sources, from, block);
        } else if !blocks.proves(block, &data) {
            let ms = sources.refuse(from, now);
            plan.bad(from, block);
            self.ladder.refused(len);
            slog::error!(self.log, "fetch: a peer sent a bad block of the base: is its disk sound? It is not asked for a while";
                "peer" => from.0, "block" => block, "ms" => ms);
        } else {
            plan.proved(sources, from, block);
            let (file, id) = (fetching.file.clone(), fetch.id);
            let work = DiskTask::Append { file, offset, bytes: data };
            self.disk(Purpose::BaseBlock { fetch: id, block }, work, out);
        }
        self.drive_fetch(out);
    }

    pub(super) fn on_block_written(&mut self, id: u64, block: u64, out: &mut Vec<Action>) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.id == id) else { return };
        let Stage::Fetching(fetching) = &mut fetch.stage else { return };
        fetching.plan.written(block);
        fetching.done += fetching.list.blocks.len(block);
        self.drive_fetch(out);
    }

    /// All of it is durable. Before it counts it is read back and proved as any file is.
    fn on_base_whole(&mut self, out: &mut Vec<Action>) {
        let Some(BaseFetch { stage: Stage::Fetching(fetching), .. }) = &self.fetch else { return };
        let (blocks, lister) = (fetching.list.blocks.clone(), fetching.list.from);
        let Some(record) = self.stop_fetching() else { return };
        let job = self.next_job();
        let name = partial_name(record.number, record.base_hash);
        out.push(Action::Job { job, work: Job::Open(name) });
        self.ladder.at("verify", 0, blocks.base_len(), self.now);
        self.rebase = Some(Rebase::Proving { job, record, blocks, lister });
    }

    /// All blocks were as the list says, and it is not the base. If the list was a peer's own, it is to blame.
    pub(super) fn on_base_disproved(&mut self, record: &GenerationRecord, lister: NodeId) {
        if record.block_root.is_some() {
            return;
        }
        if let Some((base, sources)) = &mut self.fetch_past.sources
            && *base == record.base_hash
        {
            let ms = sources.refuse(lister, self.now);
            slog::error!(self.log, "fetch: a peer's list of blocks is not that of the base: is its disk sound? It is not \
                asked for a while"; "peer" => lister.0, "ms" => ms);
        }
    }
}

/// True when the list is whole.
fn take_part(
    listing: &mut Listing,
    from: NodeId,
    answer: &pb::BlockList,
    block_bytes: u64,
) -> Result<bool, String> {
    if answer.block_bytes != block_bytes {
        return Err(format!("blocks of {} bytes", answer.block_bytes));
    }
    if listing.parts.is_none() {
        listing.parts = Some((from, Parts::new(answer.base_len, block_bytes)?));
    }
    let (_, parts) = listing.parts.as_mut().expect("just made");
    parts.take(answer.base_len, answer.first, &answer.hashes)
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
