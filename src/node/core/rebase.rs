//! A node in an older generation moves to the current one.
//!
//! The ladder: build the next generation from our own file, if it reaches the cut (no file data over the wire); else
//! fetch what our file lacks of its own generation up to the cut, then build; else fetch the base. Our own tail after
//! the cut is re-chained onto it in any case, so a position that was acknowledged is never given up. The old file stays
//! as it is until the new one is whole and durable. One generation after the other.

use roaring::RoaringTreemap;

use super::disk::Purpose;
use super::generations::building_name;
use super::packing::{file_name, rechain_onto};
use super::pull::{FETCHING, Goal};
use super::{Action, Core};
use crate::control::GenerationRecord;
use crate::mutants::{self, Mutant};
use crate::pack::{Job, JobError, JobOutcome};
use crate::shelf::Shelf;
use crate::storage::task::DiskTask;
use crate::types::{Chain, Generation, NodeId, Now, Seq, Tip};

/// After nothing worked, everything is tried again.
const TRY_AGAIN_MS: u64 = 1000;

pub(super) enum Rebase {
    Building {
        job: u64,
        record: GenerationRecord,
    },
    /// Fetching the rest of our generation, or a base.
    Pulling {
        bytes_before: u64,
    },
    /// A base, built or fetched, gets its name, then is verified.
    Naming {
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
        Some(match self.rebase.as_ref()? {
            Rebase::Building { record, .. } => {
                format!("rebasing onto generation {}: building", record.number)
            }
            Rebase::Pulling { .. } => match self.pull.as_ref().map(|pull| pull.goal) {
                Some(Goal::Base) => "rebasing: fetching the base".into(),
                _ => "rebasing: fetching the missing tail".into(),
            },
            Rebase::Naming { .. } | Rebase::Opening { .. } => "rebasing: verifying".into(),
            Rebase::Failed { why, .. } => format!("can't rebase: {why}"),
        })
    }

    pub(super) fn drive_rebase(&mut self, out: &mut Vec<Action>) {
        self.drive_pull(out);
        match &self.rebase {
            Some(Rebase::Pulling { bytes_before }) if self.pull.is_none() => {
                self.tail_bytes += self.fetched_bytes - bytes_before;
                self.rebase = None;
            }
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
        if self.is_current_file() || waiting || !self.suspect.is_empty() {
            return;
        }
        if ours > current.number {
            // Raft has not told us yet what it told us before we were restarted.
            return;
        }
        self.drop_next(out);
        let next = self.control.generation_record(ours.next()).cloned();
        let can_build = ours < current.number && self.descends(ours);
        match next.filter(|_| can_build && !mutants::broken(Mutant::NeedlessCopy)) {
            Some(record) => self.step_to(record, out),
            None => self.fetch_base(current),
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
            self.rebase = Some(Rebase::Building { job, record });
        } else if self.tail_failed_for == Some(record.number) {
            self.tail_failed_for = None;
            let current = self.control.generation().expect("checked by the caller").clone();
            self.fetch_base(current);
        } else {
            slog::info!(self.log, "rebasing: fetching what our generation lacks up to the cut";
                "from_seq" => self.shelf.tip().seq.0, "cut" => record.cut_seq.0);
            let (generation, base_hash) = (self.shelf.generation(), self.shelf.base_hash());
            let goal = Goal::OldTail { until: record.cut_seq, chain: record.cut_chain };
            self.start_pull(goal, generation, base_hash, self.likely_source());
            self.rebase = Some(Rebase::Pulling { bytes_before: self.fetched_bytes });
        }
        self.beats.soon();
    }

    fn fetch_base(&mut self, record: GenerationRecord) {
        slog::info!(self.log, "rebasing: fetching the base"; "generation" => record.number.0);
        self.start_pull(Goal::Base, record.number, record.base_hash, self.likely_source());
        self.rebase = Some(Rebase::Pulling { bytes_before: self.fetched_bytes });
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
        if let Goal::Base = goal {
            let why = "no peer has the current generation's base".to_string();
            slog::warn!(self.log, "rebase: tried every peer"; "why" => &why);
            self.rebase = Some(Rebase::Failed { why, at: self.now });
        }
    }

    // ---- a base is there ----

    pub(super) fn is_rebase_job(&self, job: u64) -> bool {
        match &self.rebase {
            Some(Rebase::Building { job: mine, .. } | Rebase::Opening { job: mine, .. }) => {
                *mine == job
            }
            _ => false,
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
                    self.fetch_base(record);
                    return;
                }
                self.last_rebase = format!(
                    "built generation {} locally, {} bytes fetched",
                    record.number, self.tail_bytes
                );
                self.tail_bytes = 0;
                self.name_base(&building_name(job), record, Some(built.removed), out);
            }
            (Some(Rebase::Opening { record, removed, .. }), Ok(JobOutcome::Opened(opened))) => {
                if opened.torn.is_some() || opened.shelf.base_hash() != record.base_hash {
                    let why = format!(
                        "the base is {} instead of {}",
                        opened.shelf.base_hash(),
                        record.base_hash
                    );
                    self.rebase = Some(Rebase::Failed { why, at: self.now });
                    return;
                }
                self.rebase_onto(opened.shelf, record, removed, out);
            }
            (_, Err(error)) => self.cannot_rebase(error.to_string()),
            (rebase, Ok(_)) => self.rebase = rebase,
        }
    }

    fn cannot_rebase(&mut self, why: String) {
        slog::error!(self.log, "rebase failed; trying again"; "error" => &why);
        self.rebase = Some(Rebase::Failed { why, at: self.now });
    }

    pub(super) fn on_base_fetched(
        &mut self,
        generation: Generation,
        base_hash: Chain,
        bytes: u64,
        out: &mut Vec<Action>,
    ) {
        let Some(record) = self.control.generation_record(generation).cloned() else { return };
        if record.base_hash != base_hash {
            return;
        }
        self.last_rebase = format!("fetched the base of generation {generation}, {bytes} bytes");
        self.name_base(FETCHING, record, None, out);
    }

    fn name_base(
        &mut self,
        from: &str,
        record: GenerationRecord,
        removed: Option<RoaringTreemap>,
        out: &mut Vec<Action>,
    ) {
        let name = file_name(record.number, record.base_hash);
        let work = DiskTask::Rename { from: from.to_string(), to: name.clone() };
        self.rebase = Some(Rebase::Naming { record, removed });
        self.disk(Purpose::BaseNamed { name }, work, out);
    }

    pub(super) fn rebase_open(&mut self, name: String, out: &mut Vec<Action>) {
        match self.rebase.take() {
            Some(Rebase::Naming { record, removed }) => {
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
            self.committed = base.tip().seq;
            self.checker.jumped(base.tip().seq);
            self.sessions.jumped(base.tip().seq);
        }
        self.flip_to(base, durable, removed.unwrap_or_default(), out);
        self.hello_master(out);
        self.report_to_leader(out);
        slog::info!(self.log, "rebased"; "how" => &self.last_rebase);
    }

    // ---- older generations, for others ----

    /// Opens the file of an older generation that is still on the disk, for whoever asks next.
    pub(super) fn open_old(&mut self, generation: Generation, out: &mut Vec<Action>) {
        if self.opening_old.is_some() || generation >= self.shelf.generation() {
            return;
        }
        let prefix = format!("g{:08}", generation.0);
        let names = self.setup.disk.list().unwrap_or_default();
        let is_it = |name: &&String| name.starts_with(&prefix) && name.ends_with(".durus");
        let Some(name) = names.iter().find(is_it) else { return };
        let job = self.next_job();
        self.opening_old = Some((job, generation));
        out.push(Action::Job { job, work: Job::Open(name.clone()) });
    }

    pub(super) fn is_old_job(&self, job: u64) -> bool {
        self.opening_old.is_some_and(|(mine, _)| mine == job)
    }

    pub(super) fn on_old_opened(&mut self, result: Result<JobOutcome, JobError>) {
        let Some((_, generation)) = self.opening_old.take() else { return };
        match result {
            Ok(JobOutcome::Opened(opened)) => {
                self.old.insert(generation, opened.shelf);
            }
            Ok(_) => {}
            Err(error) => {
                slog::warn!(self.log, "an older generation can't be served"; "generation" => generation.0, "error" => %error);
            }
        }
    }
}

#[cfg(test)]
#[path = "rebase_tests.rs"]
mod tests;
