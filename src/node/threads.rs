//! Threads for what blocks: the data disk, the Raft log, and one for every job.
//!
//! Each gets its work through a channel, does it in order, and feeds the result back to the core. A thread ends when
//! its channel is closed, after what is queued is done. After a failure nothing more is tried: what the disk holds is
//! unknown until the process starts again and reads it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use slog::{Logger, info};

use super::core::io::Input;
use super::ears::Feed;
use crate::pack::{Job, Pace, Step};
use crate::proto::control::RaftRecord;
use crate::storage::task::{DiskTask, Performer};
use crate::storage::{Disk, DiskError};

const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How often, before a batch. On a machine with a processor to spare it takes no time, and where there is none, a sync for
/// each commit would take most of it.
const YIELDS: usize = 4;
/// Of a job's thread.
const JOB_NICE: i32 = 15;

/// A thread with its queue of work.
pub struct Worker<T> {
    queue: Sender<T>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl<T> Worker<T> {
    pub fn give(&self, work: T) {
        self.queue.send(work).expect("a worker ends only when its queue is closed");
    }

    /// Waits until everything queued is done; false if that takes longer than `within`.
    pub fn finish(self, within: Duration) -> bool {
        drop(self.queue);
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }

    /// `work` gets the queue's other end.
    fn start(name: &str, work: impl FnOnce(Receiver<T>) + Send + 'static) -> io::Result<Worker<T>>
    where
        T: Send + 'static,
    {
        let (queue, queued) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        Builder::new().name(name.into()).spawn(move || {
            work(queued);
            drop::<Sender<()>>(ending);
        })?;
        Ok(Worker { queue, ended })
    }
}

/// Performs disk tasks; all that wait together share their syncs. Where several came together lately, whoever wants the
/// processor meanwhile goes first: what it brings may share the sync too.
pub fn disk(disk: Arc<dyn Disk>, feed: Feed) -> io::Result<Worker<(u64, DiskTask)>> {
    let mut performer = Performer::default();
    let work = move |tasks: Receiver<(u64, DiskTask)>| {
        let mut several = false;
        while let Ok(first) = tasks.recv() {
            let mut batch: Vec<_> = std::iter::once(first).chain(tasks.try_iter()).collect();
            several |= batch.len() > 1;
            let yields = if several { YIELDS } else { 0 };
            for _ in 0..yields {
                std::thread::yield_now();
                batch.extend(tasks.try_iter());
            }
            several = batch.len() > 1;
            for (task, result) in performer.perform(&*disk, batch) {
                feed.put(Input::DiskDone { task, result });
            }
        }
    };
    Worker::start("disk", work)
}

/// Appends records with `append`, which makes them durable, and refuses by itself after a failure.
pub fn raft(
    mut append: impl FnMut(&RaftRecord) -> Result<(), DiskError> + Send + 'static,
    feed: Feed,
) -> io::Result<Worker<(u64, RaftRecord)>> {
    let work = move |records: Receiver<(u64, RaftRecord)>| {
        while let Ok((number, record)) = records.recv() {
            let result = append(&record);
            feed.put(Input::RaftDone { number, result });
        }
    };
    Worker::start("raft-log", work)
}

/// The jobs that run.
pub struct Jobs {
    disk: Arc<dyn Disk>,
    feed: Feed,
    /// Bytes a second that each may read and write; 0: unlimited.
    rate: Arc<AtomicU64>,
    running: HashMap<u64, (Arc<AtomicBool>, JoinHandle<()>)>,
    manners: Arc<Manners>,
}

impl Jobs {
    pub fn new(disk: Arc<dyn Disk>, feed: Feed, log: Logger) -> Jobs {
        let manners = Arc::new(Manners { log, said: AtomicBool::new(false) });
        Jobs { disk, feed, rate: Arc::default(), running: HashMap::new(), manners }
    }

    pub fn start(&mut self, number: u64, job: Job) -> io::Result<()> {
        self.running.retain(|_, (_, thread)| !thread.is_finished());
        let cancelled = Arc::new(AtomicBool::new(false));
        let (disk, feed, cancel) = (self.disk.clone(), self.feed.clone(), cancelled.clone());
        let rate = self.rate.clone();
        let manners = self.manners.clone();
        let work = move || {
            manners.note(stand_back());
            run_job(number, job, &*disk, &feed, &rate, &cancel);
        };
        let thread = Builder::new().name(format!("job-{number}")).spawn(work)?;
        self.running.insert(number, (cancelled, thread));
        Ok(())
    }

    pub fn set_rate(&self, bytes_per_s: u64) {
        self.rate.store(bytes_per_s, Ordering::Relaxed);
    }

    /// It stops after the step it is in, and nothing more is heard of it.
    pub fn cancel(&mut self, number: u64) {
        if let Some((cancelled, _)) = self.running.get(&number) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// None is waited for: what a job leaves half done is what a crash would leave.
    pub fn cancel_all(&self) {
        for (cancelled, _) in self.running.values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// This thread gets the processor when clients and peers leave it. (Linux has a nice value for each thread.)
fn stand_back() -> rustix::io::Result<()> {
    rustix::process::setpriority_process(None, JOB_NICE)
}

/// Whether jobs stand back.
struct Manners {
    log: Logger,
    said: AtomicBool,
}

impl Manners {
    /// Not allowed in some sandbox: then a job takes its share, which is said once.
    fn note(&self, stood_back: rustix::io::Result<()>) {
        if let Err(error) = stood_back
            && !self.said.swap(true, Ordering::Relaxed)
        {
            info!(self.log, "packs and other jobs do not stand back behind clients: this process may not be nice. \
                Allow it the system call setpriority"; "nice" => JOB_NICE, "why" => %error);
        }
    }
}

fn run_job(
    number: u64,
    mut job: Job,
    disk: &dyn Disk,
    feed: &Feed,
    rate: &AtomicU64,
    cancelled: &AtomicBool,
) {
    let mut told = Instant::now();
    let mut pace = Pace::default();
    let began = Instant::now();
    let result = loop {
        if cancelled.load(Ordering::Relaxed) {
            return job.abandon(disk);
        }
        let now_us = began.elapsed().as_micros() as u64;
        let wait_us = pace.wait_us(now_us, job.moved(), rate.load(Ordering::Relaxed));
        if wait_us > 0 {
            // In short pieces: it may be called off, or the rate may change.
            std::thread::sleep(Duration::from_micros(wait_us).min(PROGRESS_EVERY));
            continue;
        }
        match job.step(disk) {
            Ok(Step::More { permille }) => {
                if told.elapsed() >= PROGRESS_EVERY {
                    told = Instant::now();
                    let moved = job.moved();
                    feed.put(Input::JobProgress { job: number, permille, moved });
                }
            }
            Ok(Step::Done(outcome)) => break Ok(outcome),
            Err(error) => {
                job.abandon(disk);
                break Err(error);
            }
        }
    };
    feed.put(Input::JobDone { job: number, result });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::core::io::Action;
    use crate::node::run_loop::{Clock, Machine, run};
    use crate::pack::Mark;
    use crate::storage::DiskFile;
    use crate::storage::posix::PosixDisk;
    use crate::telemetry::testing::Lines;
    use crate::types::{Now, Seq};
    use bytes::Bytes;
    use std::ops::ControlFlow;
    use std::sync::atomic::AtomicUsize;

    /// Collects disk and Raft results until there are `wanted`.
    struct Collect {
        done: Vec<(u64, bool)>,
        wanted: usize,
    }

    impl Machine for Collect {
        fn step(&mut self, _: Now, input: Input, out: &mut Vec<Action>) {
            match input {
                Input::DiskDone { task, result } => self.done.push((task, result.is_ok())),
                Input::RaftDone { number, result } => self.done.push((number, result.is_ok())),
                Input::JobDone { job, result } => self.done.push((job, result.is_ok())),
                _ => {}
            }
            if self.done.len() == self.wanted {
                out.push(Action::Exit { reason: String::new(), failed: false });
            }
        }

        fn deadline(&self) -> u64 {
            u64::MAX
        }
    }

    fn collect(inputs: &mut crate::node::ears::Ears, wanted: usize) -> Vec<(u64, bool)> {
        let mut machine = Collect { done: Vec::new(), wanted };
        let log = Logger::root(slog::Discard, slog::o!());
        run(&mut machine, Clock::start(), inputs, &log, &mut |_| ControlFlow::Break(()));
        machine.done
    }

    #[test]
    fn disk_tasks_are_done_in_order_and_none_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let posix: Arc<dyn Disk> = Arc::new(PosixDisk::new(dir.path()));
        let (feed, mut inputs) = Feed::channel().unwrap();
        let worker = disk(posix.clone(), feed).unwrap();
        let file = posix.create("g").unwrap();
        for n in 0..100u64 {
            let bytes = Bytes::copy_from_slice(&n.to_be_bytes());
            worker.give((n, DiskTask::Append { file: file.clone(), offset: 8 * n, bytes }));
        }
        let done = collect(&mut inputs, 100);
        assert!(done.iter().enumerate().all(|(n, done)| *done == (n as u64, true)), "{done:?}");
        let mut bytes = vec![0; 800];
        file.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes[792..], 99u64.to_be_bytes());

        worker.give((100, DiskTask::Create { name: "../x".into() }));
        assert_eq!(collect(&mut inputs, 1), [(100, false)]);
        worker.give((101, DiskTask::Create { name: "fine".into() }));
        assert_eq!(collect(&mut inputs, 1), [(101, false)]);
        assert!(worker.finish(Duration::from_secs(5)));
        assert!(!posix.exists("fine").unwrap());
    }

    /// Takes its time to sync, and counts.
    struct SlowFile {
        syncs: AtomicUsize,
        written: AtomicUsize,
    }

    impl DiskFile for SlowFile {
        fn name(&self) -> &str {
            "slow"
        }

        fn len(&self) -> Result<u64, DiskError> {
            Ok(self.written.load(Ordering::SeqCst) as u64)
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
            Ok(())
        }

        fn write_at(&self, _: u64, data: &[u8]) -> Result<(), DiskError> {
            self.written.fetch_add(data.len(), Ordering::SeqCst);
            Ok(())
        }

        fn truncate(&self, _: u64) -> Result<(), DiskError> {
            Ok(())
        }

        fn sync(&self) -> Result<(), DiskError> {
            std::thread::sleep(Duration::from_millis(100));
            self.syncs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[test]
    fn appends_that_wait_for_a_sync_share_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (feed, mut inputs) = Feed::channel().unwrap();
        let worker = disk(Arc::new(PosixDisk::new(dir.path())), feed).unwrap();
        let file = Arc::new(SlowFile { syncs: Default::default(), written: Default::default() });
        for n in 0..50 {
            let bytes = Bytes::from_static(b"x");
            worker.give((n, DiskTask::Append { file: file.clone(), offset: n, bytes }));
        }
        assert!(collect(&mut inputs, 50).iter().all(|(_, fine)| *fine));
        assert_eq!(file.len().unwrap(), 50);
        let syncs = file.syncs.load(Ordering::SeqCst);
        assert!(syncs <= 3, "{syncs} syncs for 50 appends");
    }

    fn no_space() -> DiskError {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        DiskError::Io { verb: "append to", name: "the Raft log".into(), source }
    }

    #[test]
    fn raft_records_are_appended_in_order_and_each_is_answered() {
        let (feed, mut inputs) = Feed::channel().unwrap();
        let (wrote, written) = mpsc::channel();
        let append = move |record: &RaftRecord| {
            wrote.send(record.entries.len()).unwrap();
            if record.entries.is_empty() { Ok(()) } else { Err(no_space()) }
        };
        let worker = raft(append, feed).unwrap();
        let bad = RaftRecord { entries: vec![Default::default()], ..Default::default() };
        worker.give((1, RaftRecord::default()));
        worker.give((2, bad));
        assert!(worker.finish(Duration::from_secs(5)));
        assert_eq!(collect(&mut inputs, 2), [(1, true), (2, false)]);
        assert_eq!(written.iter().collect::<Vec<_>>(), [0, 1]);
    }

    /// Linux has a nice value for each thread, and the calling one's is asked for.
    #[test]
    fn a_jobs_thread_stands_back_and_no_other() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let inside = std::thread::spawn(move || {
            stand_back().unwrap();
            nice()
        });
        assert_eq!(inside.join().unwrap(), JOB_NICE.max(before));
        assert_eq!(nice(), before);
    }

    #[test]
    fn that_jobs_may_not_stand_back_is_said_once() {
        let lines = Lines::default();
        let manners = Manners { log: lines.logger(), said: AtomicBool::new(false) };
        manners.note(Ok(()));
        assert_eq!(lines.text(), "");
        manners.note(Err(rustix::io::Errno::PERM));
        manners.note(Err(rustix::io::Errno::PERM));
        let text = lines.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("setpriority") && text.contains("not permitted"), "{text}");
    }

    #[test]
    fn a_job_is_answered_unless_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let (feed, mut inputs) = Feed::channel().unwrap();
        let log = Logger::root(slog::Discard, slog::o!());
        let mut jobs = Jobs::new(Arc::new(PosixDisk::new(dir.path())), feed, log);
        let job = || Job::Mark(Mark::new("no such file".into(), Seq(1)));
        jobs.start(7, job()).unwrap();
        assert_eq!(collect(&mut inputs, 1), [(7, false)]);
        jobs.cancel(7);
        jobs.cancel_all();
    }
}
