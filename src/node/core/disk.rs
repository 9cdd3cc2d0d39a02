//! The core's side of the disk: what was asked for, and what follows when it is done.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Action, Core, Role};
use crate::mutants::{self, Mutant};
use crate::shelf::ParsedTx;
use crate::storage::DiskError;
use crate::storage::task::{DiskTask, TaskDone};
use crate::types::{Epoch, Generation, Now, Tip};

/// So often a node alone notes how far its file is durable.
const NOTE_SYNCED_MS: u64 = 1000;

/// Why a task was asked for.
pub(super) enum Purpose {
    /// Transactions of the current file up to `tip`, taken in `epoch`.
    Append {
        generation: Generation,
        tip: Tip,
    },
    /// The same in a file that is to become current.
    AppendNext {
        generation: Generation,
        tip: Tip,
    },
    Promise {
        epoch: Epoch,
    },
    CutBack,
    Flip,
    /// A built or fetched base got its name.
    BaseNamed,
    /// The file a base is fetched into.
    BaseFile {
        fetch: u64,
    },
    BaseBlock {
        fetch: u64,
        block: u64,
    },
    /// The mark that this node is recovering is gone.
    Recovered,
    /// A file got its name, or was removed.
    Housekeeping,
}

#[derive(Default)]
pub(super) struct Tasks {
    begun: u64,
    /// What is under way, and since when; in the order asked, which is the order done.
    purposes: BTreeMap<u64, (Purpose, Now)>,
}

impl Tasks {
    /// How long the oldest has been under way.
    pub(super) fn oldest_ms(&self, now: Now) -> u64 {
        self.purposes.first_key_value().map_or(0, |(_, (_, since))| now.since_ms(*since))
    }
}

impl Core {
    /// Returns the task's number.
    pub(super) fn disk(&mut self, purpose: Purpose, work: DiskTask, out: &mut Vec<Action>) -> u64 {
        self.tasks.begun += 1;
        let task = self.tasks.begun;
        self.tasks.purposes.insert(task, (purpose, self.now));
        out.push(Action::Disk { task, work });
        task
    }

    /// Extends the current file in memory by one verified transaction; `write_appended` sends the bytes to the disk.
    pub(super) fn extend(&mut self, tx: &ParsedTx, bytes: Bytes) {
        let oids: Vec<_> = tx.records.iter().map(|record| record.oid).collect();
        self.checker.noted(tx.meta.seq, tx.meta.commit_id, &oids);
        self.shelf.append(tx, bytes);
    }

    /// Everything appended to the current file since `offset`.
    pub(super) fn write_appended(&mut self, offset: u64, bytes: Bytes, out: &mut Vec<Action>) {
        let tip = self.shelf.tip();
        assert_eq!(offset + bytes.len() as u64, tip.offset, "all that was appended is written");
        let purpose = Purpose::Append { generation: self.shelf.generation(), tip };
        let file = self.shelf.file();
        self.disk(purpose, DiskTask::Append { file, offset, bytes }, out);
    }

    pub(super) fn on_disk_done(
        &mut self,
        task: u64,
        result: Result<TaskDone, DiskError>,
        out: &mut Vec<Action>,
    ) {
        let Some((purpose, _)) = self.tasks.purposes.remove(&task) else { return };
        let done = match result {
            Ok(done) => done,
            Err(_) if mutants::broken(Mutant::FailedSyncIgnored) => TaskDone::Nothing,
            Err(error) => return self.on_disk_failed(&error, out),
        };
        match purpose {
            Purpose::Append { generation, tip } => self.on_appended(generation, tip, out),
            Purpose::AppendNext { generation, tip } => match &mut self.next {
                Some(next) if next.shelf.generation() == generation => {
                    next.shelf.written_to(tip.offset);
                    next.durable = tip;
                }
                // It has become the current file meanwhile.
                _ => self.on_appended(generation, tip, out),
            },
            Purpose::Promise { epoch } => self.on_promise_durable(epoch, out),
            Purpose::CutBack => self.on_cut_back(out),
            Purpose::Flip => self.beats.soon(),
            Purpose::BaseNamed => self.on_base_named(task, out),
            Purpose::BaseFile { fetch } => self.on_base_file(fetch, done, out),
            Purpose::BaseBlock { fetch, block } => self.on_block_written(fetch, block, out),
            Purpose::Recovered => self.on_recovered(out),
            Purpose::Housekeeping => {}
        }
    }

    /// Never retried: after a failed sync nobody knows what the disk has. The next start reads it again.
    pub(super) fn on_disk_failed(&mut self, error: &DiskError, out: &mut Vec<Action>) {
        slog::error!(self.log, "the disk failed; this node stops, and verifies its file when it is started again";
            "error" => %error);
        self.exit(&format!("disk failed: {error}"), true, out);
    }

    fn on_appended(&mut self, generation: Generation, tip: Tip, out: &mut Vec<Action>) {
        if generation != self.shelf.generation() {
            // Written to the file of the generation before the flip; the new file has its own copy.
            if let Some(old) = self.old.get_mut(&generation) {
                old.written_to(tip.offset);
            }
            return;
        }
        if tip.seq > self.shelf.tip().seq {
            return; // cut back since
        }
        self.shelf.written_to(tip.offset);
        self.durable = tip;
        match &mut self.role {
            Role::Master(_) => self.on_own_durable(out),
            Role::Slave(_) => self.acknowledge(out),
            Role::None => {}
        }
        self.note_synced(out);
        self.pull_on(out);
    }

    /// A node alone has nobody to ask what was acknowledged when it finds a hole after a power failure.
    fn note_synced(&mut self, out: &mut Vec<Action>) {
        let generation = self.shelf.generation();
        let recent = self
            .synced_noted
            .is_some_and(|(of, at)| of == generation && self.now.since_ms(at) < NOTE_SYNCED_MS);
        if recent || self.setup.members.len() > 1 {
            return;
        }
        self.synced_noted = Some((generation, self.now));
        let work = DiskTask::NoteSynced { generation, offset: self.durable.offset };
        self.disk(Purpose::Housekeeping, work, out);
    }

    /// Makes everything visible that is committed, and tells the sessions.
    pub(super) fn apply_committed(&mut self, out: &mut Vec<Action>) {
        let all = mutants::broken(Mutant::VisibleBeforeCommit);
        let visible = if all { self.shelf.tip().seq } else { self.visible() };
        self.shelf.keep_before(self.sessions.reads_before());
        let applied = self.shelf.index_to(visible);
        if !self.serving && !self.is_holding() {
            self.serve_early(out);
            return;
        }
        if applied.is_empty() && !self.is_holding() {
            return;
        }
        for tx in &applied {
            if let crate::shelf::Kind::EpochStart = tx.meta.kind {
                self.applied_epoch = tx.meta.epoch;
                self.on_epoch_applied();
            }
            self.sessions.applied(tx.seq, &tx.oids, tx.meta.commit_id);
        }
        match self.is_holding() {
            true => self.go_on_if_committed(out),
            false => self.poke_sessions(out),
        }
    }
}
