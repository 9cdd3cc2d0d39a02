//! One node without a will of its own: the production core, a disk in memory, and a shell that lets the disk, the Raft
//! log, the jobs and the clock go on when it is told to, and only then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use packmaster::durus::Limits;
use packmaster::node::core::{Action, Core, Input, Setup, StartError, Timing, start};
use packmaster::pack::{Job, Step};
use packmaster::proto::admin::AdminRequest;
use packmaster::proto::control::{Member, PeerMessage, RaftRecord};
use packmaster::raft::RaftLog;
use packmaster::replication::transfer::Pacing;
use packmaster::storage::mem::MemDisk;
use packmaster::storage::task::{CURRENT, DiskTask, perform};
use packmaster::storage::{Disk, DiskFile};
use packmaster::types::{BootId, ConnId, NodeId, Now};

const WALL_US: u64 = 1_780_000_000_000_000;
/// Rounds in which everything is let go on before it counts as being busy with itself.
const ROUNDS_MAX: u32 = 5_000;
/// Files that are kept of older generations: all.
const KEEP: u32 = 1000;

/// What happens to a machine. Values, so that a life can be recorded and lived again.
#[derive(Clone, Debug)]
pub enum Event {
    /// The clock goes on by so many microseconds.
    Later(u64),
    Peer(u64, PeerMessage),
    PeerUp(u64),
    PeerDown(u64, bool),
    ClientOpened(u64),
    ClientData(u64, Bytes),
    ClientClosed(u64),
    Admin(AdminRequest),
    /// The disk does everything it was asked for, and says so.
    Disk,
    /// The Raft log keeps the oldest record it was given, and says so.
    Raft,
    /// Every job does one step.
    Jobs,
}

/// What a client is told.
#[derive(Debug)]
pub enum Word {
    Bytes(Bytes),
    Closed(String),
}

pub struct Machine {
    core: Core,
    pub id: u64,
    nodes: u64,
    boots: u64,
    disk: MemDisk,
    raft_log: RaftLog,
    now_us: u64,
    tasks: Vec<(u64, DiskTask)>,
    records: VecDeque<(u64, RaftRecord)>,
    jobs: BTreeMap<u64, Job>,
    /// Whose clients have taken what they were sent: the core wants to know.
    drains: VecDeque<ConnId>,
    /// To clients, in order.
    pub said: VecDeque<(u64, Word)>,
    /// To peers, in order.
    pub sent: VecDeque<(u64, PeerMessage)>,
    /// The process has ended: why, and whether that is a failure.
    pub exit: Option<(String, bool)>,
}

fn setup(id: u64, nodes: u64, boots: u64, disk: &MemDisk) -> Setup {
    let member = |id: u64| Member {
        id,
        name: format!("n{id}"),
        durus: format!("n{id}:2972"),
        peer: format!("n{id}:3972"),
        http: format!("n{id}:4972"),
        role: "voter".into(),
        may_be_master: true,
        ..Member::default()
    };
    Setup {
        id: NodeId(id),
        boot: BootId(1000 * boots + id),
        disk_uuid: disk_uuid(id),
        born: false,
        cluster: "fuzzed".into(),
        version: "fuzzed".into(),
        members: (1..=nodes).map(member).collect(),
        timing: Timing { raft_election_ticks: 6, ..Timing::default() },
        limits: limits(),
        keep_generations: KEEP,
        block_bytes: 64,
        fetch_bytes: 1 << 20,
        sent_again_bytes_max: 64 << 10,
        follow_bytes: 64,
        fetch_bytes_per_s_max: None,
        pacing: Pacing::default(),
        disk: Arc::new(disk.clone()),
        log: slog::Logger::root(slog::Discard, slog::o!()),
    }
}

/// Small, so that a fuzzer comes upon them.
pub fn limits() -> Limits {
    Limits {
        clients_max: 3,
        transaction_bytes_max: 4000,
        objects_per_transaction_max: 6,
        record_bytes_max: 600,
        bulk_oids_max: 12,
        session_bytes_max: 1500,
        input_buffered_bytes_max: 2000,
        unused_oids_max: 300,
        commits_waiting_bytes_max: 6000,
        wait_max_ms: 6000,
        command_max_ms: 4000,
        ..Limits::default()
    }
}

pub fn disk_uuid(id: u64) -> [u8; 16] {
    [id as u8; 16]
}

impl Machine {
    /// On an empty disk.
    pub fn new(id: u64, nodes: u64) -> Machine {
        Machine::on(id, nodes, 1, MemDisk::new(), 1).expect("an empty disk is as good as any")
    }

    fn on(
        id: u64,
        nodes: u64,
        boots: u64,
        disk: MemDisk,
        now_us: u64,
    ) -> Result<Machine, StartError> {
        let now = Now { mono_us: now_us, wall_us: WALL_US + now_us };
        let (core, raft_log) = start(setup(id, nodes, boots, &disk), now)?;
        Ok(Machine {
            core,
            id,
            nodes,
            boots,
            disk,
            raft_log,
            now_us,
            tasks: Vec::new(),
            records: VecDeque::new(),
            jobs: BTreeMap::new(),
            drains: VecDeque::new(),
            said: VecDeque::new(),
            sent: VecDeque::new(),
            exit: None,
        })
    }

    /// The process is killed and started again on what its disk has.
    pub fn restarted(self) -> Result<Machine, StartError> {
        Machine::on(self.id, self.nodes, self.boots + 1, self.disk, self.now_us + 1)
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub fn disk(&self) -> &MemDisk {
        &self.disk
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Later(us) => self.later(us),
            Event::Peer(from, message) => {
                let from_disk = disk_uuid(from);
                self.step(Input::Peer { from: NodeId(from), from_disk, message });
            }
            Event::PeerUp(peer) => self.step(Input::PeerUp { peer: NodeId(peer) }),
            Event::PeerDown(peer, refused) => {
                self.step(Input::PeerDown { peer: NodeId(peer), refused });
            }
            Event::ClientOpened(conn) => {
                let address = format!("client {conn}");
                self.step(Input::ClientOpened { conn: ConnId(conn), address });
            }
            Event::ClientData(conn, bytes) => {
                self.step(Input::ClientData { conn: ConnId(conn), bytes });
            }
            Event::ClientClosed(conn) => self.step(Input::ClientClosed { conn: ConnId(conn) }),
            Event::Admin(message) => self.step(Input::Admin { request: 1, message }),
            Event::Disk => self.work_disk(),
            Event::Raft => self.work_raft(),
            Event::Jobs => self.work_jobs(),
        }
    }

    pub fn step(&mut self, input: Input) {
        let now = Now { mono_us: self.now_us, wall_us: WALL_US + self.now_us };
        let mut out = Vec::new();
        self.core.step(now, input, &mut out);
        for action in out {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => self.sent.push_back((to.0, message)),
            Action::ClientSend { conn, bytes } => self.said.push_back((conn.0, Word::Bytes(bytes))),
            // What comes is the script's, and little.
            Action::ClientRead { .. } => {}
            Action::ClientDrain { conn } => self.drains.push_back(conn),
            Action::ClientClose { conn, reason, .. } => {
                self.said.push_back((conn.0, Word::Closed(reason)));
            }
            Action::AdminReply { .. } => {}
            Action::Disk { task, work } => self.tasks.push((task, work)),
            Action::RaftPersist { number, record } => self.records.push_back((number, record)),
            Action::Job { job, work } => drop(self.jobs.insert(job, work)),
            Action::CancelJob { job } => {
                if let Some(work) = self.jobs.remove(&job) {
                    work.abandon(&self.disk);
                }
            }
            Action::JobRate { .. } => {}
            Action::Exit { reason, failed } => self.exit = Some((reason, failed)),
        }
    }

    fn later(&mut self, us: u64) {
        let until = self.now_us + us;
        let mut ticks = 0;
        while self.exit.is_none() {
            let due = self.core.deadline().max(self.now_us + 20);
            if due > until {
                break;
            }
            self.now_us = due;
            self.step(Input::Tick);
            ticks += 1;
            assert!(ticks < 1_000_000, "node {} is busy with itself", self.id);
        }
        self.now_us = until;
    }

    fn work_disk(&mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        for (task, result) in perform(&self.disk, tasks) {
            if let Err(error) = &result {
                panic!("node {} asked its disk for what can't be done: {error}", self.id);
            }
            self.step(Input::DiskDone { task, result });
        }
    }

    fn work_raft(&mut self) {
        let Some((number, record)) = self.records.pop_front() else { return };
        self.raft_log.append(&record).expect("a disk in memory takes everything");
        self.step(Input::RaftDone { number, result: Ok(()) });
    }

    /// Clients take their answers, and have their turns.
    fn work_sessions(&mut self) {
        while let Some(conn) = self.drains.pop_front() {
            self.step(Input::ClientDrained { conn });
            self.step(Input::Tick);
        }
    }

    fn work_jobs(&mut self) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            // The one before it may have called it off.
            let Some(mut work) = self.jobs.remove(&job) else { continue };
            let result = match work.step(&self.disk) {
                Ok(Step::More { permille }) => {
                    let moved = work.moved();
                    self.jobs.insert(job, work);
                    self.step(Input::JobProgress { job, permille, moved });
                    continue;
                }
                Ok(Step::Done(outcome)) => Ok(outcome),
                Err(error) => {
                    work.abandon(&self.disk);
                    Err(error)
                }
            };
            self.step(Input::JobDone { job, result });
        }
    }

    pub fn wants_disk(&self) -> bool {
        !self.tasks.is_empty()
    }

    pub fn wants_raft(&self) -> bool {
        !self.records.is_empty()
    }

    pub fn wants_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
            && self.records.is_empty()
            && self.jobs.is_empty()
            && self.drains.is_empty()
    }

    /// Everything that was asked for is done, and what follows from it.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if self.is_idle() || self.exit.is_some() {
                return;
            }
            self.work_disk();
            self.work_raft();
            self.work_jobs();
            self.work_sessions();
        }
        panic!("node {} never comes to rest", self.id);
    }

    /// The current generation's file, as its disk has it.
    pub fn file(&self) -> Vec<u8> {
        read(&self.disk, CURRENT)
    }

    /// Every generation's file, oldest first.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.disk.list().expect("a list");
        let is_one = |name: &String| name.starts_with('g') && name.ends_with(".durus");
        names
            .into_iter()
            .filter(is_one)
            .map(|name| (name.clone(), read(&self.disk, &name)))
            .collect()
    }
}

pub fn read(disk: &dyn Disk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_at(0, &mut bytes).expect("all of it");
    bytes
}

/// A disk with one file on it.
pub fn disk_with(name: &str, bytes: &[u8]) -> MemDisk {
    let disk = MemDisk::new();
    let file: Arc<dyn DiskFile> = disk.create(name).expect("a file");
    file.write_at(0, bytes).expect("room");
    disk
}
