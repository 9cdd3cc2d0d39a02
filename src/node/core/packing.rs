//! A pack, as this node takes part in it.
//!
//! The master marks: what the root reaches at P, extended to F, until nothing that was appended after F refers to a dead
//! object; from then on it refuses such commits, and seals (P, F) through Raft. Every node builds the new base when it is
//! its turn, compares the hash with the agreed one, and follows the live transactions in both files until the election
//! of the new generation. Any other election drops all of it.

mod progress;

use roaring::RoaringTreemap;

use super::disk::Purpose;
use super::follow::Next;
use super::generations::building_name;
use super::{Action, Core, Role};
use crate::admin::room;
use crate::control::{BuiltBase, Pack, Seal};
use crate::mutants::{self, Mutant};
use crate::pack::{Build, Built, Job, JobError, JobOutcome, Mark, Marked};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::{PackBase, PackCancel, PackReady, PackSeal, PackTurn};
use crate::replication::wire;
use crate::shelf::{self, ShelfError};
use crate::storage::task::DiskTask;
use crate::types::{Chain, Generation, NodeId, Now, PackId, Seq};

pub(super) use progress::Progress;

/// The mark is extended so often before the pack is called off: clients relink objects faster than it can follow.
const EXTENSIONS_MAX: u32 = 50;
/// A mark that ends so many transactions behind is extended before what came after is looked at.
const BEHIND_MAX: u64 = 2000;
const BEHIND_BYTES_MAX: u64 = 4 << 20;
/// Of an offset map, for each object: it has that or less.
const MAP_SLOT_BYTES: u64 = 8;
/// A proposal that got lost is made again after this long.
const PROPOSE_AGAIN_MS: u64 = 300;

/// The master's part.
#[derive(Default)]
enum Marking {
    #[default]
    No,
    Running {
        job: u64,
        extensions: u32,
    },
    /// The pack is to be called off; if it still is not after a while, it is tried again.
    Failed {
        at: Now,
    },
    /// Dead objects are refused from here on.
    Done {
        marked: Marked,
        proposed: Now,
    },
}

/// Everybody's part.
#[derive(Default)]
enum Building {
    #[default]
    Waiting,
    Running {
        job: u64,
    },
    Built {
        file: String,
        built: Built,
        proposed: Option<Now>,
    },
    /// The disk's task gives it its name.
    Naming {
        task: u64,
        name: String,
        removed: RoaringTreemap,
    },
    Opening {
        name: String,
        job: u64,
        removed: RoaringTreemap,
    },
    /// `Core::next` follows.
    Following {
        proposed: Option<Now>,
    },
    Failed(String),
}

#[derive(Default)]
pub(super) struct PackRun {
    /// Which pack, and the generation that it makes.
    of: Option<(PackId, Generation)>,
    /// What was committed or acknowledged when it began: whoever asked for it has been told of that.
    from: Seq,
    marking: Marking,
    building: Building,
    /// What came out of it, once it is built.
    mine: Option<BuiltBase>,
    my_turn: bool,
    /// Whose seal has told how much is garbage.
    sealed: Option<PackId>,
    /// As master: a seal was agreed that this node has not made, and when the pack was last proposed to be called off.
    foreign: Option<Now>,
    /// Of the job that runs.
    progress: Progress,
    /// When what is being done was begun.
    began: Now,
}

impl PackRun {
    pub(super) fn dead(&self) -> Option<&RoaringTreemap> {
        match &self.marking {
            Marking::Done { marked, .. } => Some(&marked.dead),
            _ => None,
        }
    }

    pub(super) fn id(&self) -> Option<PackId> {
        self.of.map(|(id, _)| id)
    }

    /// What was built is the current file now.
    pub(super) fn forget_building(&mut self) {
        self.building = Building::default();
    }

    pub(super) fn on_progress(&mut self, job: u64, progress: Progress) {
        if self.jobs().any(|mine| mine == job) {
            self.progress = progress;
        }
    }

    fn begin(&mut self, now: Now) {
        (self.progress, self.began) = (Progress::default(), now);
    }

    fn jobs(&self) -> impl Iterator<Item = u64> {
        let marking = match &self.marking {
            Marking::Running { job, .. } => Some(*job),
            _ => None,
        };
        let building = match &self.building {
            Building::Running { job } | Building::Opening { job, .. } => Some(*job),
            _ => None,
        };
        marking.into_iter().chain(building)
    }
}

impl Core {
    /// The replicated state changed: is there a pack, and is it still the same?
    pub(super) fn on_pack_changed(&mut self, out: &mut Vec<Action>) {
        self.learn_garbage();
        let of = self.control.pack().map(|pack| (pack.id, pack.generation));
        if of == self.pack.of {
            return;
        }
        self.drop_pack(out);
        self.pack.of = of;
        self.pack.from = self.visible();
    }

    fn drop_pack(&mut self, out: &mut Vec<Action>) {
        for job in self.pack.jobs() {
            out.push(Action::CancelJob { job });
        }
        match &self.pack.building {
            Building::Built { file: left, .. }
            | Building::Naming { name: left, .. }
            | Building::Opening { name: left, .. } => {
                let left = vec![left.clone()];
                self.remove(left, out);
            }
            _ => {}
        }
        if !self.next_is_elected() {
            self.drop_next(out);
        }
        self.old_files.look_soon();
        self.pack = PackRun::default();
        self.end_hold();
    }

    /// The next generation's file is of no use any more.
    pub(super) fn drop_next(&mut self, out: &mut Vec<Action>) {
        if let Some(next) = self.next.take() {
            self.remove(vec![next.shelf.name().to_string()], out);
            if let Building::Following { .. } = self.pack.building {
                self.pack.building = Building::Failed("the file was cut back meanwhile".into());
            }
        }
    }

    pub(super) fn on_pack_turn(&mut self, turn: PackTurn) -> Result<(), String> {
        // One that is late is for a pack that is no more, although the next one may make the same generation.
        if turn.pack != 0 && self.pack.id() == Some(PackId(turn.pack)) {
            match turn.hold_for {
                0 => self.pack.my_turn = true,
                _ if self.pack.foreign.is_some() => {}
                heir => self.hold_commits(NodeId(heir)),
            }
        }
        Ok(())
    }

    pub(super) fn drive_pack(&mut self, out: &mut Vec<Action>) {
        let Some(pack) = self.control.pack().cloned() else { return };
        if self.pack.id() != Some(pack.id) {
            return;
        }
        match &pack.seal {
            None => self.drive_mark(&pack, out),
            Some(seal) if self.is_foreign(&pack, seal) => self.call_off_foreign(seal, out),
            Some(seal) => self.drive_build(&pack, seal, out),
        }
        self.drive_follow(out);
    }

    /// Committed, and in our own file: what a job can read.
    fn settled(&self) -> Seq {
        match mutants::broken(Mutant::UncommittedPacked) {
            true => self.durable.seq,
            false => self.committed.min(self.durable.seq),
        }
    }

    fn is_due(&self, proposed: Option<Now>) -> bool {
        proposed.is_none_or(|at| self.now.since_ms(at) >= PROPOSE_AGAIN_MS)
    }

    // ---- mark: the master ----

    fn drive_mark(&mut self, pack: &Pack, out: &mut Vec<Action>) {
        let Role::Master(master) = &self.role else { return };
        if !master.open || master.epoch != pack.started_epoch {
            return;
        }
        match &self.pack.marking {
            // Others may have it on their disks sooner than this node.
            Marking::No if self.settled() < self.pack.from => {}
            Marking::No => {
                let job = self.next_job();
                let work = Job::Mark(Mark::new(self.shelf.name().to_string(), self.settled()));
                slog::info!(self.log, "pack: marking"; "generation" => pack.generation.0, "at" => self.settled().0);
                out.push(Action::Job { job, work });
                self.pack.begin(self.now);
                self.pack.marking = Marking::Running { job, extensions: 0 };
                self.beats.soon();
            }
            Marking::Failed { at } if self.is_due(Some(*at)) => self.pack.marking = Marking::No,
            Marking::Done { proposed, .. } if self.is_due(Some(*proposed)) => {
                self.propose_seal(out)
            }
            _ => {}
        }
    }

    fn on_marked(&mut self, marked: Marked, extensions: u32, out: &mut Vec<Action>) {
        let clean = || self.is_clean_after(&marked) || mutants::broken(Mutant::MarkNotRechecked);
        match self.is_near(&marked) && clean() {
            true => {
                slog::info!(self.log, "pack: marked"; "p" => marked.p.0, "f" => marked.f.0,
                    "kept" => marked.kept.len(), "dead" => marked.dead.len(), "took_ms" => self.now.since_ms(self.pack.began));
                self.pack.marking = Marking::Done { marked, proposed: self.now };
                self.propose_seal(out);
            }
            false if extensions >= EXTENSIONS_MAX => {
                self.cancel_pack("clients change objects faster than the mark can follow", out);
            }
            false => {
                let job = self.next_job();
                let work =
                    Job::Mark(Mark::extend(self.shelf.name().to_string(), marked, self.settled()));
                out.push(Action::Job { job, work });
                self.pack.marking = Marking::Running { job, extensions: extensions + 1 };
            }
        }
    }

    /// Is what was appended after F little enough to be read in one step?
    fn is_near(&self, marked: &Marked) -> bool {
        let (tip, f) = (self.shelf.tip(), marked.f);
        let bytes = self.shelf.end_of(f).map_or(u64::MAX, |end| tip.offset - end);
        // Were one long transaction too much, a mark among such would never be near.
        let few = tip.seq.0 - f.0 <= BEHIND_MAX && bytes <= BEHIND_BYTES_MAX;
        few || tip.seq <= f.next()
    }

    /// Does nothing that was appended after F, committed or not, store or refer to a dead object?
    fn is_clean_after(&self, marked: &Marked) -> bool {
        let Ok(Some(mut at)) = self.shelf.tip_at(marked.f) else { return false };
        let end = self.shelf.tip().offset;
        while at.offset < end {
            let Ok(data) = self.shelf.read_range(at.offset, 1 << 20) else { return false };
            for tx in shelf::split_transactions(&data) {
                let Some(tx) = tx.ok().filter(|tx| is_clean(tx, &marked.dead)) else {
                    return false;
                };
                at.offset += tx.len() as u64;
            }
        }
        true
    }

    /// A master has marked what it seals, and from F on has refused what refers to the dead. A seal that it has not made
    /// would drop objects that it has let clients refer to: nothing may be built from it, whatever made it be agreed.
    fn is_foreign(&self, pack: &Pack, seal: &Seal) -> bool {
        let Role::Master(master) = &self.role else { return false };
        if master.epoch != pack.started_epoch || mutants::broken(Mutant::LateSealBuilt) {
            return false;
        }
        !matches!(&self.pack.marking, Marking::Done { marked, .. }
            if (marked.p, marked.f) == (seal.pack_seq, seal.cut_seq))
    }

    fn call_off_foreign(&mut self, seal: &Seal, out: &mut Vec<Action>) {
        if !self.is_due(self.pack.foreign) {
            return;
        }
        self.pack.foreign = Some(self.now);
        self.beats.soon();
        let why = format!(
            "the agreed seal (P {}, F {}) was not made by this master: what it would drop may be in use",
            seal.pack_seq, seal.cut_seq
        );
        self.cancel_pack(&why, out);
    }

    fn propose_seal(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let Some((id, generation)) = self.pack.of else { return };
        let Marking::Done { marked, proposed } = &mut self.pack.marking else { return };
        *proposed = now;
        let (p, f, dead_count) = (marked.p, marked.f, marked.dead.len());
        let kept_bytes = marked.kept_bytes + MAP_SLOT_BYTES * marked.kept.len();
        let Ok(Some(cut)) = self.shelf.tip_at(f) else { return };
        let seal = PackSeal {
            pack: id.0,
            generation: generation.0,
            pack_seq: p.0,
            cut_seq: f.0,
            cut_chain: wire::put_chain(cut.chain),
            dead_count,
            file_bytes: cut.offset,
            kept_bytes,
            tail_bytes: match self.shelf.generation() {
                // Nobody knows how much of an imported base is garbage: it counts as a tail.
                Generation(1) => cut.offset,
                _ => cut.offset.saturating_sub(self.shelf.base_end()),
            },
        };
        self.propose(CommandKind::PackSeal(seal), out);
    }

    fn cancel_pack(&mut self, why: &str, out: &mut Vec<Action>) {
        slog::warn!(self.log, "pack: called off"; "why" => why);
        let Some((id, generation)) = self.pack.of else { return };
        let cancel = PackCancel {
            pack: id.0,
            generation: generation.0,
            why: why.to_string(),
            asked_by: "automatic".into(),
        };
        self.propose(CommandKind::PackCancel(cancel), out);
    }

    // ---- build: everybody ----

    fn drive_build(&mut self, pack: &Pack, seal: &Seal, out: &mut Vec<Action>) {
        if self.pack.mine.is_some() && pack.agreed() != self.pack.mine {
            self.give_up_other_base(pack, out);
        }
        let due = match &self.pack.building {
            Building::Waiting => {
                let has_cut =
                    self.settled() >= seal.cut_seq || mutants::broken(Mutant::BuiltBeforeCut);
                self.pack.my_turn && has_cut
            }
            Building::Built { proposed, .. } | Building::Following { proposed, .. } => {
                self.is_due(*proposed)
            }
            _ => false,
        };
        if !due && !matches!(self.pack.building, Building::Built { .. }) {
            return;
        }
        match std::mem::take(&mut self.pack.building) {
            Building::Waiting => self.start_build(pack, seal, out),
            Building::Built { file, built, proposed } => {
                self.on_base_agreed(pack, file, built, proposed, out);
            }
            Building::Following { proposed } => {
                let ready = pack.ready.contains(&self.setup.id);
                let complete = self.next_complete().is_some();
                if !ready && complete {
                    let node = self.setup.id.0;
                    let base_hash = pack.base_hash.unwrap_or_default();
                    let ready = PackReady {
                        generation: pack.generation.0,
                        node,
                        pack: pack.id.0,
                        base_hash: wire::put_chain(base_hash),
                    };
                    self.propose(CommandKind::PackReady(ready), out);
                    self.next.as_mut().expect("complete").said_ready = true;
                }
                let proposed = if complete { Some(self.now) } else { proposed };
                self.pack.building = Building::Following { proposed };
            }
            other => self.pack.building = other,
        }
    }

    fn start_build(&mut self, pack: &Pack, seal: &Seal, out: &mut Vec<Action>) {
        let mine = self.shelf.tip_at(seal.cut_seq).ok().flatten().map(|tip| tip.chain);
        if mine != Some(seal.cut_chain) {
            // Can't be, below what is committed; but a wrong base must never be built.
            self.pack.building =
                Building::Failed(format!("no chain {} at seq {}", seal.cut_chain, seal.cut_seq));
            return;
        }
        if let Err(why) = self.room_for(pack, seal) {
            slog::error!(self.log, "pack: this node can't build the new generation"; "why" => &why);
            self.pack.building = Building::Failed(why);
            self.beats.soon();
            return;
        }
        let (job, work) = self.build_job(pack.generation, seal.pack_seq, seal.cut_seq);
        slog::info!(self.log, "pack: building"; "generation" => pack.generation.0);
        out.push(Action::Job { job, work });
        self.pack.begin(self.now);
        self.pack.building = Building::Running { job };
        self.beats.soon();
    }

    /// A disk that would be full is not filled: a node whose disk is full can't go on.
    fn room_for(&self, pack: &Pack, seal: &Seal) -> Result<(), String> {
        let needed = match pack.base_len.max(seal.kept_bytes) {
            0 => room::for_pack(self.shelf.tip().offset, self.garbage_bytes()),
            base => room::for_base(base),
        };
        self.beats.free_bytes().map_or(Ok(()), |free| room::enough(free, needed))
    }

    /// The job, and its number.
    pub(super) fn build_job(&mut self, generation: Generation, p: Seq, f: Seq) -> (u64, Job) {
        let job = self.next_job();
        let file = self.shelf.name().to_string();
        let build = Build::new(file, generation, p, f, building_name(job));
        (job, Job::Build(build.with_blocks(self.setup.block_bytes)))
    }

    /// Ours is built: say so, and go on with it once it is the agreed one. As long as nobody knows whose base is right, the
    /// file is kept: another node's may show that it is ours.
    fn on_base_agreed(
        &mut self,
        pack: &Pack,
        file: String,
        built: Built,
        proposed: Option<Now>,
        out: &mut Vec<Action>,
    ) {
        let mine = BuiltBase {
            base_hash: built.base_hash,
            block_root: built.blocks.as_ref().map(|blocks| blocks.root()),
            base_len: built.base_len,
        };
        self.pack.mine = Some(mine);
        if pack.builds.get(&self.setup.id) == Some(&mine) {
            if pack.agreed() == Some(mine) {
                return self.name_base(pack, file, built, out);
            }
            if proposed.is_some() {
                slog::crit!(self.log, "pack: this node built another base than the others"; "ours" => %mine.base_hash,
                    "agreed" => %pack.base_hash.unwrap_or_default());
                self.beats.soon();
            }
            self.pack.building = Building::Built { file, built, proposed: None };
            return;
        }
        let due = self.is_due(proposed);
        if due {
            let base = PackBase {
                pack: pack.id.0,
                generation: pack.generation.0,
                base_hash: wire::put_chain(mine.base_hash),
                node: self.setup.id.0,
                base_len: mine.base_len,
                block_root: wire::put_root(mine.block_root),
            };
            self.propose(CommandKind::PackBase(base), out);
        }
        let proposed = if due { Some(self.now) } else { proposed };
        self.pack.building = Building::Built { file, built, proposed };
    }

    fn name_base(&mut self, pack: &Pack, file: String, built: Built, out: &mut Vec<Action>) {
        if let Some(blocks) = built.blocks {
            self.keep_list(pack.generation, built.base_hash, blocks);
        }
        let name = file_name(pack.generation, built.base_hash);
        let rename = DiskTask::Rename { from: file, to: name.clone() };
        let task = self.disk(Purpose::BaseNamed, rename, out);
        self.pack.building = Building::Naming { task, name, removed: built.removed };
    }

    /// Another base than ours is agreed. Is it known to be right, or did we go on with ours before? Then there is no use for
    /// ours any more.
    fn give_up_other_base(&mut self, pack: &Pack, out: &mut Vec<Action>) {
        let outvoted = pack.is_outvoted(self.setup.id);
        let left = match &self.pack.building {
            Building::Built { file, .. } if outvoted => Some(file.clone()),
            Building::Naming { name, .. } => Some(name.clone()),
            Building::Opening { name, job, .. } => {
                out.push(Action::CancelJob { job: *job });
                Some(name.clone())
            }
            Building::Following { .. } => None,
            _ => return,
        };
        let ours = self.pack.mine.map(|mine| mine.base_hash).unwrap_or_default();
        let agreed = pack.base_hash.unwrap_or_default();
        let why = format!(
            "our base is {ours}, and {} nodes have built {agreed}: this node's disk or memory gave other bytes than \
             theirs. Check or replace it; the agreed base is fetched",
            pack.agreed().map_or(0, |base| pack.votes(&base))
        );
        slog::crit!(self.log, "pack: this node's base was outvoted; it will fetch the agreed one"; "why" => &why);
        if let Some(left) = left {
            self.remove(vec![left], out);
        }
        self.pack.building = Building::Failed(why);
        self.drop_next(out);
        self.beats.soon();
    }

    /// Known by the task: a slow disk may only now have named a file that was asked for before, and whose removal is
    /// queued behind it, although another of that name is on its way.
    pub(super) fn on_base_named(&mut self, done: u64, out: &mut Vec<Action>) {
        match std::mem::take(&mut self.pack.building) {
            Building::Naming { task, name, removed } if task == done => {
                let job = self.next_job();
                out.push(Action::Job { job, work: Job::Open(name.clone()) });
                self.pack.begin(self.now);
                self.pack.building = Building::Opening { name, job, removed };
            }
            other => self.pack.building = other,
        }
        self.rebase_named(done, out);
    }

    // ---- jobs ----

    pub(super) fn on_job_done(
        &mut self,
        job: u64,
        result: Result<JobOutcome, JobError>,
        out: &mut Vec<Action>,
    ) {
        // A failed sync leaves in memory what the disk has not, of names too: nothing after it could be trusted.
        if let Err(JobError::Disk(error) | JobError::Shelf(ShelfError::Io(error))) = &result
            && error.is_failed_sync()
        {
            return self.on_disk_failed(error, out);
        }
        if self.is_rebase_job(job) {
            return self.on_rebase_job(result, out);
        }
        if self.is_old_job(job) {
            return self.on_old_opened(result);
        }
        if self.is_fetch_job(job) {
            return self.on_fetch_job(result, out);
        }
        if self.is_giving_job(job) {
            return self.on_giving_job(job, result, out);
        }
        if !self.pack.jobs().any(|mine| mine == job) {
            // Of a pack that was called off.
            if let Ok(JobOutcome::Built(_)) = result {
                self.remove(vec![building_name(job)], out);
            }
            return;
        }
        self.beats.soon();
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => return self.on_pack_job_failed(error, out),
        };
        match outcome {
            JobOutcome::Marked(marked) => {
                if let Marking::Running { extensions, .. } = std::mem::take(&mut self.pack.marking)
                {
                    self.on_marked(marked, extensions, out);
                }
            }
            JobOutcome::Built(built) => {
                slog::info!(self.log, "pack: built"; "base_hash" => %built.base_hash, "bytes" => built.base_len,
                    "took_ms" => self.now.since_ms(self.pack.began));
                self.pack.building =
                    Building::Built { file: building_name(job), built, proposed: None };
            }
            JobOutcome::Opened(opened) => {
                if let Building::Opening { removed, .. } = std::mem::take(&mut self.pack.building) {
                    let durable = opened.shelf.tip();
                    self.next = Some(Next {
                        shelf: opened.shelf,
                        durable,
                        removed,
                        said_ready: false,
                        followed: self.now,
                    });
                    self.pack.begin(self.now);
                    self.pack.building = Building::Following { proposed: None };
                }
            }
            // Not of a pack, and nobody's any more.
            JobOutcome::Listed(_) | JobOutcome::Checked(_) | JobOutcome::Read(_) => {}
        }
    }

    fn on_pack_job_failed(&mut self, error: JobError, out: &mut Vec<Action>) {
        let why = error.to_string();
        match &self.pack.marking {
            Marking::Running { .. } => {
                self.pack.marking = Marking::Failed { at: self.now };
                self.cancel_pack(&why, out);
            }
            _ => {
                slog::error!(self.log, "pack: this node can't build the new generation"; "why" => &why);
                self.pack.building = Building::Failed(why);
            }
        }
    }
}

fn is_clean(tx: &[u8], dead: &RoaringTreemap) -> bool {
    let Ok(parsed) = shelf::parse(tx) else { return false };
    parsed.records.iter().all(|record| {
        !dead.contains(record.oid.0)
            && shelf::refs(record.record(tx))
                .is_ok_and(|mut refs| refs.all(|oid| !dead.contains(oid.0)))
    })
}

/// The file of a generation that was made by a pack.
pub(super) fn file_name(generation: Generation, base_hash: Chain) -> String {
    format!("g{:08}-{}.durus", generation.0, &base_hash.to_string()[..8])
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
