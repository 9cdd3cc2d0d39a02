//! What nodes do with their disks: tasks, records of the Raft log, steps of jobs; each after its time, by production code.

use packmaster::node::core::Input;
use packmaster::pack::{Job, Step};
use packmaster::storage::DiskError;
use packmaster::storage::task::TaskDone;

use super::{Event, World};

/// A job that waits looks again after this long: its rate may have changed.
const WAIT_US_MAX: u64 = 100_000;

impl World {
    pub(super) fn disk_next(&mut self, node: usize) {
        let life = self.hosts[node].life;
        let slow = self.hosts[node].slow;
        let process = self.process(node);
        if process.disk_busy || process.tasks.is_empty() {
            return;
        }
        process.disk_busy = true;
        let after = self.rng.delay(20, 2000) * slow;
        self.at(after, Event::DiskRun { node, life });
    }

    /// A fuse for what is done next, if this node is to die in it.
    pub(super) fn light_fuse(&mut self, node: usize) {
        if self.script.is_some() {
            return self.light_scripted_fuse(node);
        }
        if let Some((changes, ..)) = self.hosts[node].doom {
            self.hosts[node].medium.lock().set_fuse(Some(changes));
        }
    }

    /// True if the fuse has burnt down.
    pub(super) fn fuse_burnt(&mut self, node: usize) -> bool {
        if self.script.is_some() {
            return self.scripted_fuse_burnt(node);
        }
        let broken = self.hosts[node].medium.lock().is_broken();
        self.hosts[node].medium.lock().set_fuse(None);
        if broken {
            let (_, power, down_us) = self.hosts[node].doom.take().expect("a fuse has a reason");
            self.count("crash in a disk operation");
            self.dies(node, power, down_us);
        }
        broken
    }

    pub(super) fn disk_run(&mut self, node: usize) {
        let life = self.hosts[node].life;
        let slow = self.hosts[node].slow;
        let tasks = std::mem::take(&mut self.process(node).tasks);
        let disk = self.hosts[node].disk.clone().expect("a disk");
        self.light_fuse(node);
        let results = self.process(node).performer.perform(&*disk, tasks);
        if self.fuse_burnt(node) {
            return;
        }
        self.look(node);
        let after = self.rng.delay(20, 3000) * slow;
        self.at(after, Event::DiskDone { node, life, results });
    }

    pub(super) fn disk_done(
        &mut self,
        node: usize,
        results: Vec<(u64, Result<TaskDone, DiskError>)>,
    ) {
        self.process(node).disk_busy = false;
        for (task, result) in results {
            if let Err(error) = &result {
                self.was_hurt(node, error);
            }
            self.put(node, Input::DiskDone { task, result });
        }
        self.disk_next(node);
    }

    pub(super) fn raft_next(&mut self, node: usize) {
        let life = self.hosts[node].life;
        let slow = self.hosts[node].slow;
        let process = self.process(node);
        if process.raft_busy || process.records.is_empty() {
            return;
        }
        process.raft_busy = true;
        let after = self.rng.delay(20, 3000) * slow;
        self.at(after, Event::RaftRun { node, life });
    }

    pub(super) fn raft_run(&mut self, node: usize) {
        let life = self.hosts[node].life;
        self.light_fuse(node);
        let process = self.process(node);
        let (number, record) = process.records.pop_front().expect("not empty");
        let result = process.raft_log.append(&record);
        // What is on the disk of one that did not come to its end is not known.
        match result.is_ok() {
            true => self.ledger.on_raft_record(node, &record),
            false => self.ledger.raft_log_lost(node),
        }
        if self.fuse_burnt(node) {
            return;
        }
        let failed = result.err().map(|error| {
            self.was_hurt(node, &error);
            error.to_string()
        });
        let after = self.rng.delay(20, 500);
        self.at(after, Event::RaftDone { node, life, number, failed });
    }

    pub(super) fn job_step(&mut self, node: usize, job: u64) {
        let life = self.hosts[node].life;
        let disk = self.hosts[node].disk.clone().expect("a disk");
        let now_us = self.now;
        let process = self.process(node);
        let Some((mut work, mut pace)) = process.jobs.remove(&job) else { return };
        let wait_us = pace.wait_us(now_us, work.moved(), process.job_rate);
        if wait_us > 0 {
            process.jobs.insert(job, (work, pace));
            self.count("job kept to its rate");
            return self.at(wait_us.min(WAIT_US_MAX), Event::JobStep { node, life, job });
        }
        self.light_fuse(node);
        if let Job::Read(_) = work {
            self.hosts[node].medium.lock().reads_for_peer();
        }
        let step = work.step(&*disk);
        if self.fuse_burnt(node) {
            return;
        }
        self.look(node);
        let result = match step {
            Ok(Step::More { permille }) => {
                let moved = work.moved();
                self.put(node, Input::JobProgress { job, permille, moved });
                self.process(node).jobs.insert(job, (work, pace));
                let after = self.rng.delay(200, 60_000);
                self.at(after, Event::JobStep { node, life, job });
                return;
            }
            Ok(Step::Done(outcome)) => Ok(outcome),
            Err(error) => {
                self.trace.line(format_args!("n{} job {job} failed: {error}", node + 1));
                work.abandon(&*disk);
                self.look(node);
                Err(error)
            }
        };
        self.put(node, Input::JobDone { job, result });
    }

    pub(super) fn raft_done(&mut self, node: usize, number: u64, failed: Option<String>) {
        self.process(node).raft_busy = false;
        let result = failed.map_or(Ok(()), |why| {
            let (verb, name) = ("append to", "the Raft log".to_string());
            Err(DiskError::Io { verb, name, source: std::io::Error::other(why) })
        });
        self.put(node, Input::RaftDone { number, result });
        self.raft_next(node);
    }

    /// Something failed on this node's disk: only if that was armed.
    fn was_hurt(&self, node: usize, error: &dyn std::fmt::Display) {
        let hurt = self.hosts[node].medium.lock().hurt();
        assert!(hurt.is_some(), "violated: node {} fails on a good disk: {error}", node + 1);
        let hurt = hurt.expect("checked");
        self.trace.line(format_args!("n{} disk error ({hurt}): {error}", node + 1));
    }
}
