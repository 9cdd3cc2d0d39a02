//! A node in an older generation moves to the current one.
//!
//! The ladder: build the next generation from our own file, if it reaches the cut (no file data over the wire); else
//! fetch what our file lacks of its own generation up to the cut, then build; else fetch the base (`fetch`). Our own tail after
//! the cut is re-chained onto it in any case, so a position that was acknowledged is never given up. The old file stays
//! as it is until the new one is whole and durable. One generation after the other.

use roaring::RoaringTreemap;

use super::disk::Purpose;
use super::fetch::partial_name;
use super::follow::rechain_onto;
use super::generations::{building_name, file_of_base};
use super::packing::file_name;
use super::pull::Goal;
use super::{Action, Core};
use crate::control::GenerationRecord;
use crate::mutants::{self, Mutant};
use crate::pack::{Blocks, Job, JobError, JobOutcome};
use crate::proto::control::Rung;
use crate::shelf::{Opened, Shelf};
use crate::storage::task::DiskTask;
use crate::types::{Generation, NodeId, Now, Seq, Tip};
use std::sync::Arc;

/// After nothing worked, everything is tried again.
const TRY_AGAIN_MS: u64 = 1000;

pub(super) enum Rebase {
    Building {
        job: u64,
        record: GenerationRecord,
    },
    /// Fetching the rest of our generation.
    Pulling,
    /// Fetching a base.
    Fetching,
    /// A base that was fetched is read back.
    Proving {
        job: u64,
        record: GenerationRecord,
        blocks: Arc<Blocks>,
        /// Who gave the list of its blocks.
        lister: NodeId,
    },
    /// It gets its name.
    Naming {
        task: u64,
        record: GenerationRecord,
        base: Box<Shelf>,
    },
    /// A base that was built gets its name, then is verified.
    NamingBuilt {
        task: u64,
        name: String,
        record: GenerationRecord,
        removed: Option<RoaringTreemap>,
    },
    Opening {
        job: u64,
        record: GenerationRecord,
        removed: Option<RoaringTreemap>,
    },
    Failed {
        why: String,
        at: Now,
    },
}

impl Core {
    pub(super) fn rebase_text(&self) -> Option<String> {
        let progress = self.ladder.progress_text(self.now);
        Some(match self.rebase.as_ref()? {
            Rebase::Building { record, .. } => {
                format!("rebasing onto generation {}: building{progress}", record.number)
            }
            Rebase::Pulling => format!("rebasing: fetching the missing tail{progress}"),
            Rebase::Fetching => format!("rebasing: fetching the base{progress}"),
            Rebase::Proving { .. }
            | Rebase::Naming { .. }
            | Rebase::NamingBuilt { .. }
            | Rebase::Opening { .. } => format!("rebasing: verifying{progress}"),
            Rebase::Failed { why, .. } => format!("can't rebase: {why}"),
        })
    }

    pub(super) fn drive_rebase(&mut self, out: &mut Vec<Action>) {
        self.drive_pull(out);
        self.drive_fetch(out);
        match &self.rebase {
            Some(Rebase::Pulling) if self.pull.is_none() => self.rebase = None,
            Some(Rebase::Failed { at, .. }) if self.now.since_ms(*at) >= TRY_AGAIN_MS => {
                self.rebase = None
            }
            Some(_) => return,
            None => {}
        }
        let Some(current) = self.control.generation().cloned() else { return };
        let ours = self.shelf.generation();
        let waiting =
            self.cutting || self.pull.is_some() || self.durable.seq != self.shelf.tip().seq;
        if self.is_current_file() {
            return self.tidy_partials(out);
        }
        if waiting || !self.suspect.is_empty() {
            return;
        }
        if ours > current.number {
            // Raft has not told us yet what it told us before we were restarted.
            return;
        }
        if self.next_is_elected() {
            return self.drive_late_flip(out);
        }
        self.drop_next(out);
        let next = self.control.generation_record(ours.next()).cloned();
        let can_build = ours < current.number && self.descends(ours);
        match next.filter(|_| can_build && !mutants::broken(Mutant::NeedlessCopy)) {
            Some(record) => self.step_to(record, out),
            None => self.fetch_base(current, out),
        }
    }

    /// Is our file the generation the cluster had under this number?
    fn descends(&self, ours: Generation) -> bool {
        self.control
            .generation_record(ours)
            .is_none_or(|record| record.base_hash == self.shelf.base_hash())
    }

    fn step_to(&mut self, record: GenerationRecord, out: &mut Vec<Action>) {
        let at_cut = match self.shelf.tip_at(record.cut_seq) {
            Ok(at_cut) => at_cut,
            Err(error) => return self.cannot_rebase(error.to_string()),
        };
        if at_cut.is_some_and(|tip| tip.chain == record.cut_chain) {
            let (job, work) = self.build_job(record.number, record.pack_seq, record.cut_seq);
            slog::info!(self.log, "rebasing: building the generation from our own file"; "generation" => record.number.0);
            out.push(Action::Job { job, work });
            self.ladder.climb(Rung::Local, record.number, self.now);
            self.ladder.at("build", 0, self.shelf.tip().offset, self.now);
            self.rebase = Some(Rebase::Building { job, record });
        } else if self.tail_failed_for == Some(record.number) {
            self.tail_failed_for = None;
            let current = self.control.generation().expect("checked by the caller").clone();
            self.fetch_base(current, out);
        } else {
            slog::info!(self.log, "rebasing: fetching what our generation lacks up to the cut";
                "from_seq" => self.shelf.tip().seq.0, "cut" => record.cut_seq.0);
            let (generation, base_hash) = (self.shelf.generation(), self.shelf.base_hash());
            let goal = Goal::OldTail { until: record.cut_seq, chain: record.cut_chain };
            self.start_pull(goal, generation, base_hash, self.likely_source());
            self.ladder.climb(Rung::Tail, record.number, self.now);
            self.rebase = Some(Rebase::Pulling);
        }
        self.beats.soon();
    }

    /// The master has everything; before there is one, anybody.
    fn likely_source(&self) -> NodeId {
        let me = self.setup.id;
        let elected = self.control.mastership().map(|mastership| mastership.master);
        elected
            .filter(|id| *id != me)
            .or_else(|| self.control.members().map(|member| member.id).find(|id| *id != me))
            .unwrap_or(me)
    }

    pub(super) fn on_pull_failed(&mut self, goal: Goal) {
        if let Goal::OldTail { .. } = goal {
            self.tail_failed_for = Some(self.shelf.generation().next());
        }
    }

    // ---- a base is there ----

    pub(super) fn is_rebase_job(&self, job: u64) -> bool {
        match &self.rebase {
            Some(
                Rebase::Building { job: mine, .. }
                | Rebase::Opening { job: mine, .. }
                | Rebase::Proving { job: mine, .. },
            ) => *mine == job,
            _ => false,
        }
    }

    pub(super) fn on_rebase_progress(&mut self, job: u64, permille: u32) {
        if self.is_rebase_job(job) || self.is_fetch_job(job) {
            self.ladder.at_permille(permille, self.now);
        }
    }

    pub(super) fn on_rebase_job(
        &mut self,
        result: Result<JobOutcome, JobError>,
        out: &mut Vec<Action>,
    ) {
        match (self.rebase.take(), result) {
            (Some(Rebase::Building { record, job }), Ok(JobOutcome::Built(built))) => {
                if built.base_hash != record.base_hash {
                    slog::crit!(self.log, "rebase: our build differs from the agreed base: a broken disk or a bug; \
                        fetching it instead"; "ours" => %built.base_hash, "agreed" => %record.base_hash);
                    self.remove(vec![building_name(job)], out);
                    return self.fetch_base(record, out);
                }
                if let Some(blocks) = built.blocks {
                    self.keep_list(record.number, record.base_hash, blocks);
                }
                self.name_built(job, record, built.removed, out);
            }
            (Some(Rebase::Opening { record, removed, .. }), Ok(JobOutcome::Opened(opened))) => {
                match proved(*opened, &record) {
                    Ok(base) => self.rebase_onto(base, record, removed, out),
                    Err(why) => self.cannot_rebase(why),
                }
            }
            (Some(Rebase::Proving { record, blocks, lister, .. }), result) => {
                let opened = match result {
                    Ok(JobOutcome::Opened(opened)) => proved(*opened, &record),
                    Ok(_) => Err("a proof gave something else".into()),
                    Err(error) => Err(error.to_string()),
                };
                match opened {
                    Ok(base) => self.name_fetched(base, record, blocks, out),
                    Err(why) => {
                        self.on_base_disproved(&record, lister);
                        self.cannot_rebase(why);
                    }
                }
            }
            (_, Err(error)) => self.cannot_rebase(error.to_string()),
            (rebase, Ok(_)) => self.rebase = rebase,
        }
    }

    pub(super) fn cannot_rebase(&mut self, why: String) {
        self.ladder.give_up();
        slog::error!(self.log, "rebase failed; trying again"; "error" => &why);
        self.rebase = Some(Rebase::Failed { why, at: self.now });
    }

    fn name_built(
        &mut self,
        job: u64,
        record: GenerationRecord,
        removed: RoaringTreemap,
        out: &mut Vec<Action>,
    ) {
        let name = file_name(record.number, record.base_hash);
        let work = DiskTask::Rename { from: building_name(job), to: name.clone() };
        let task = self.disk(Purpose::BaseNamed, work, out);
        self.rebase = Some(Rebase::NamingBuilt { task, name, record, removed: Some(removed) });
    }

    fn name_fetched(
        &mut self,
        mut base: Shelf,
        record: GenerationRecord,
        blocks: Arc<Blocks>,
        out: &mut Vec<Action>,
    ) {
        let from = partial_name(record.number, record.base_hash);
        let name = file_name(record.number, record.base_hash);
        base.set_name(&name);
        self.keep_list(record.number, record.base_hash, blocks);
        let task = self.disk(Purpose::BaseNamed, DiskTask::Rename { from, to: name }, out);
        self.rebase = Some(Rebase::Naming { task, record, base: Box::new(base) });
    }

    /// What this task has named is ours to open.
    pub(super) fn rebase_named(&mut self, done: u64, out: &mut Vec<Action>) {
        match self.rebase.take() {
            Some(Rebase::Naming { task, record, base }) if task == done => {
                self.rebase_onto(*base, record, None, out);
            }
            Some(Rebase::NamingBuilt { task, name, record, removed }) if task == done => {
                let job = self.next_job();
                out.push(Action::Job { job, work: Job::Open(name) });
                self.rebase = Some(Rebase::Opening { job, record, removed });
            }
            other => self.rebase = other,
        }
    }

    /// Our own tail after the cut onto the new base, then the flip.
    fn rebase_onto(
        &mut self,
        mut base: Shelf,
        record: GenerationRecord,
        mut removed: Option<RoaringTreemap>,
        out: &mut Vec<Action>,
    ) {
        let durable: Tip = base.tip();
        let built = removed.is_some();
        // A read that fails says nothing of what the file has.
        let at_cut = match self.shelf.tip_at(record.cut_seq) {
            Ok(at_cut) => at_cut,
            Err(error) => return self.cannot_rebase(error.to_string()),
        };
        let shares_cut =
            record.cut_seq > Seq(0) && at_cut.is_some_and(|tip| tip.chain == record.cut_chain);
        if shares_cut {
            self.committed = self.committed.max(record.cut_seq);
            let tail = rechain_onto(&self.shelf, &mut base, u64::MAX);
            if base.tip().seq < self.shelf.tip().seq {
                // What was acknowledged must not be left behind: the old file stays until all of it was read.
                let why = format!("can't read our own file after seq {}", base.tip().seq);
                return self.cannot_rebase(why);
            }
            let tail = tail.filter(|_| !mutants::broken(Mutant::TailLeftOut));
            if let Some((tip, offset, blob)) = tail {
                let work = DiskTask::Append { file: base.file(), offset, bytes: blob.into() };
                self.disk(Purpose::AppendNext { generation: base.generation(), tip }, work, out);
            }
            self.apply_committed(out);
            // A base that was fetched does not say what the pack has removed, and our clients are to be told.
            removed.get_or_insert_with(|| self.shelf.oids() - base.oids());
        } else {
            // What we had was never the cluster's: a blank file, or another history before the cut.
            let kept = self.shelf.name().to_string();
            // After a start nothing is known of what of it was committed: nor how much is lost.
            if self.committed > self.shelf.cut() {
                self.note_lost(self.committed, &kept);
            }
            self.drop_shown(self.committed, base.tip().seq, out);
            self.committed = base.tip().seq;
            self.checker.jumped(base.tip().seq);
            self.sessions.jumped(base.tip().seq);
        }
        self.flip_to(base, durable, removed.unwrap_or_default(), out);
        let bytes = self.ladder.finish(self.now);
        self.last_rebase = match built {
            true => format!("built generation {} locally, {bytes} bytes fetched", record.number),
            false => format!("fetched the base of generation {}, {bytes} bytes", record.number),
        };
        self.hello_master(out);
        self.report_to_leader(out);
        slog::info!(self.log, "rebased"; "how" => &self.last_rebase);
    }

    // ---- older generations, for others ----

    /// Opens the file of an older generation that is still on the disk, for whoever asks again. False if that helps nobody:
    /// there is none, it could not be opened the last time, or it is open and not what was asked for.
    pub(super) fn open_old(
        &mut self,
        generation: Generation,
        base_hash: &[u8],
        out: &mut Vec<Action>,
    ) -> bool {
        if generation >= self.shelf.generation() {
            return false;
        }
        let names = self.setup.disk.list().unwrap_or_default();
        let Some(name) = file_of_base(&names, generation, base_hash) else { return false };
        if self.old.get(&generation).is_some_and(|old| old.name() == name) {
            return false; // of another base, or this node gives nothing now
        }
        let may_open = self.unopened_old.as_ref() != Some(&name);
        if self.opening_old.is_none() {
            let job = self.next_job();
            self.opening_old = Some((job, generation, name.clone()));
            out.push(Action::Job { job, work: Job::Open(name) });
        }
        may_open
    }

    pub(super) fn is_old_job(&self, job: u64) -> bool {
        self.opening_old.as_ref().is_some_and(|(mine, ..)| *mine == job)
    }

    pub(super) fn on_old_opened(&mut self, result: Result<JobOutcome, JobError>) {
        let Some((_, generation, name)) = self.opening_old.take() else { return };
        self.unopened_old.take_if(|unopened| *unopened == name);
        match result {
            Ok(JobOutcome::Opened(opened)) => {
                self.old.insert(generation, opened.shelf);
            }
            Ok(_) => {}
            Err(error) => {
                slog::warn!(self.log, "an older generation can't be served"; "generation" => generation.0, "error" => %error);
                self.unopened_old = Some(name);
            }
        }
    }
}

/// A base that was opened, if it is the one that is wanted.
fn proved(opened: Opened, record: &GenerationRecord) -> Result<Shelf, String> {
    let found = opened.shelf.base_hash();
    match opened.torn.is_none() && found == record.base_hash {
        true => Ok(opened.shelf),
        false => Err(format!("the base is {found} instead of {}", record.base_hash)),
    }
}

#[cfg(test)]
#[path = "rebase_tests.rs"]
mod tests;
