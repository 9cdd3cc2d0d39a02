//! The machine room: one thread, one queue of events, one seed.
//!
//! A node is the production core with a shell made of events: its inbox is stepped in batches as the real run loop does
//! it, disk tasks go through the production `perform`, Raft records through the production `RaftLog`, each after its
//! time. This file has the state and the queue; what events do is in the rooms below it: `process`, `disks`, `network`,
//! `clients`, `inject` (faults), `siege` (narrow lines) and `liveness` (the end of a run).

mod clients;
mod disks;
mod inject;
mod liveness;
mod network;
mod process;
mod report;
pub mod script;
mod siege;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use packmaster::node::core::io::{LANES, SMALL_COMMIT_BYTES_MAX};
use packmaster::node::core::{Core, Input};
use packmaster::pack::{Job, Pace};
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{ConfigSet, SetPause};
use packmaster::proto::control::{PeerMessage, RaftRecord};
use packmaster::raft::RaftLog;
use packmaster::storage::DiskError;
use packmaster::storage::task::{DiskTask, Performer, TaskDone};
use tempfile::NamedTempFile;

use super::Counts;
use super::askers::Askers;
use super::client::{Book, Client, Tag};
use super::disk::{Image, Loss, Medium, Room};
use super::faults::{Options, Schedule};
use super::history;
use super::ledger::Ledger;
use super::oids;
use super::rng::Rng;
use super::trace::Trace;

const WALL_US: u64 = 1_780_000_000_000_000;

/// More events than any run should have.
const EVENTS_MAX: u64 = 3_000_000;

enum Event {
    Wake { node: usize, life: u64 },
    Deliver(Box<Flight>),
    DiskRun { node: usize, life: u64 },
    DiskDone { node: usize, life: u64, results: Vec<(u64, Result<TaskDone, DiskError>)> },
    RaftRun { node: usize, life: u64 },
    RaftDone { node: usize, life: u64, number: u64, failed: Option<String> },
    JobStep { node: usize, life: u64, job: u64 },
    Start { node: usize, down: u64 },
    PowerOn { node: usize, down: u64 },
    Dial { from: usize, life: u64, to: usize },
    LinkLost { from: usize, to: usize, era: u64 },
    LinkReset { from: usize, to: usize, era: u64 },
    LaneAgain { from: usize, to: usize, era: u64, lane: usize },
    ToNode { node: usize, life: u64, conn: u64, bytes: Option<Vec<u8>> },
    Drained { node: usize, life: u64, conn: u64 },
    ToClient { client: usize, conn: u64, bytes: Option<Bytes> },
    ClientTurn { client: usize, turn: u64 },
    Fault,
    Resume { node: usize },
    Uncut { way: (usize, usize) },
    NoLoss,
    NoLag,
    NoLate,
    Ask { by: usize, verb: Verb },
    Wide,
    FastDisk { node: usize },
    NoRoom { node: usize },
    RoomAgain { node: usize },
    Unhold { by: usize },
    Unlimit { by: usize },
}

struct Flight {
    from: usize,
    to: usize,
    to_life: u64,
    era: u64,
    /// Gone if the connection breaks before it arrives.
    fragile: bool,
    message: PeerMessage,
}

struct Process {
    core: Core,
    raft_log: RaftLog,
    started_us: u64,
    inbox: VecDeque<Input>,
    wake_at: Option<u64>,
    tasks: Vec<(u64, DiskTask)>,
    disk_busy: bool,
    performer: Performer,
    records: VecDeque<(u64, RaftRecord)>,
    raft_busy: bool,
    jobs: BTreeMap<u64, (Job, Pace)>,
    /// Bytes a second for each of them.
    job_rate: u64,
    /// Client connections: which client.
    conns: BTreeMap<u64, usize>,
}

struct Host {
    medium: Medium,
    disk_uuid: [u8; 16],
    process: Option<Process>,
    /// Counts processes; and, apart from that, ends of processes.
    life: u64,
    downs: u64,
    powered: bool,
    stalled: bool,
    deferred: Vec<Event>,
    slow: u64,
    doom: Option<(u32, bool, u64)>,
    /// The wall clock's difference from the right time.
    skew_us: i64,
    /// How much faster the monotonic clock goes, in parts of a million.
    drift_ppm: i64,
    stop_down_us: u64,
    disk: Option<std::sync::Arc<dyn packmaster::storage::Disk>>,
    /// Its disk was damaged at least once.
    damaged: bool,
    /// In a data file, and no process has looked at it since.
    damage_unseen: bool,
    /// So many messages in its name are yet to be forged.
    forge: u32,
    /// It said that it can't go on with that.
    refused: bool,
    /// Out for the rest of the run, and why.
    out: Option<String>,
    image: Option<Image>,
    /// How far the file in it goes.
    image_seq: u64,
    /// Its file was whole, and the node not recovering.
    image_whole: bool,
}

impl Host {
    fn wall_us(&self, now: u64) -> u64 {
        (WALL_US + now).saturating_add_signed(self.skew_us)
    }

    /// What the monotonic clock shows after `us` of the right time.
    fn mono_after(&self, us: u64) -> u64 {
        us.saturating_add_signed(us as i64 * self.drift_ppm / 1_000_000)
    }

    /// How long until the monotonic clock has gone on by `us`.
    fn until_mono(&self, us: u64) -> u64 {
        (us as i128 * 1_000_000 / i128::from(1_000_000 + self.drift_ppm)) as u64 + 1
    }
}

#[derive(Default)]
struct Link {
    up: bool,
    to_life: u64,
    era: u64,
    cut: bool,
    held: Vec<Flight>,
    last: [u64; LANES.len()],
    /// When the lane will have carried what was sent on it, where lines are narrow.
    free: [u64; LANES.len()],
    /// Lanes whose connection is being made again.
    broken: [bool; LANES.len()],
}

/// How many of the messages that something is decided by come late, and how late.
#[derive(Clone, Copy, Default)]
struct Late {
    permille: u64,
    twice_permille: u64,
    us_max: u64,
}

pub struct World {
    options: Options,
    rng: Rng,
    trace: Trace,
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    hosts: Vec<Host>,
    links: Vec<Link>,
    clients: Vec<Client>,
    conns_made: u64,
    askers: Askers,
    ledger: Ledger,
    book: Book,
    schedule: Schedule,
    loss_permille: u64,
    twice_permille: u64,
    lag_us: u64,
    late: Late,
    /// Bytes a second that a lane carries; None: as many as there are.
    narrow: Option<u64>,
    /// The run's long narrow period: see `siege`.
    besieged: bool,
    loss: Loss,
    /// No new faults before this.
    calm_until: u64,
    /// The one node of this run that builds wrong bases.
    wrong_builder: Option<usize>,
    mending: bool,
    priorities: Vec<i64>,
    keep_generations: u32,
    /// Of the blocks in which bases are fetched: they are small here.
    block_bytes: u64,
    /// Transactions are fetched in pieces of them, and commits are asked for again by their ids: as if all were long.
    short_pieces: bool,
    /// One node may come with a first file of its own, also without objects; there can be only one of them.
    brings: Option<(usize, NamedTempFile)>,
    /// Commits that were sent to a master and are not answered: by the asker's boot and number there.
    asked_commits: BTreeMap<(u64, u64), PeerMessage>,
    /// A commit whose request has more bytes is sent on the lane of the appends: some are, here, where all are short.
    small_commit_max: u64,
    commands: BTreeSet<(u64, u64)>,
    /// Elections that were proposed: the epoch, and whose promises counted.
    elections: Vec<(u64, Vec<u64>)>,
    /// When elections began, and whether somebody had asked for it.
    fences: Vec<(u64, bool)>,
    /// When commits were sent that are not answered yet.
    sent_at: BTreeMap<Tag, u64>,
    /// Since when durability is `all` wherever a process runs; and when it was last `local` anywhere.
    all_since: Option<u64>,
    local_at: Option<u64>,
    faults: Counts,
    sometimes: Counts,
    events: u64,
    script: Option<script::Run>,
}

impl World {
    pub fn new(seed: u64, options: &Options, trace: Trace) -> World {
        let mut rng = Rng::new(seed);
        let nodes = options.nodes;
        let drifts = rng.chance(400);
        let hosts: Vec<Host> = (0..nodes)
            .map(|index| Host {
                medium: Medium::new(rng.number()),
                disk_uuid: [index as u8 + 1; 16],
                process: None,
                life: 0,
                downs: 0,
                powered: true,
                stalled: false,
                deferred: Vec::new(),
                slow: 1,
                doom: None,
                skew_us: rng.below(5_000_000) as i64,
                drift_ppm: if drifts { rng.below(100_001) as i64 - 50_000 } else { 0 },
                stop_down_us: 0,
                disk: None,
                damaged: false,
                damage_unseen: false,
                forge: 0,
                refused: false,
                out: None,
                image: None,
                image_seq: 0,
                image_whole: false,
            })
            .collect();
        let schedule = Schedule::new(&mut rng, options);
        let equal = rng.chance(500);
        let priorities = (0..nodes).map(|_| if equal { 0 } else { rng.below(3) as i64 }).collect();
        // A hole in what was not synced looks like damage, and costs what damage costs: not where other disks are damaged
        // already (seed 439).
        let loss = match rng.chance(500) {
            _ if !schedule.unlucky.is_empty() => Loss::Ordered,
            true => Loss::Ordered,
            false => Loss::Any,
        };
        if !schedule.unlucky.is_empty() {
            hosts.iter().for_each(|host| host.medium.lock().fail_in_order());
        }
        let keep_generations = rng.below(4) as u32;
        World {
            options: options.clone(),
            trace,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            hosts,
            links: (0..nodes * nodes).map(|_| Link::default()).collect(),
            clients: (0..options.clients).map(|id| Client::new(id as u64 + 1)).collect(),
            conns_made: 0,
            askers: Askers::default(),
            ledger: Ledger::new(nodes),
            book: Book::default(),
            schedule,
            loss_permille: 0,
            twice_permille: 0,
            lag_us: 0,
            late: Late::default(),
            narrow: None,
            besieged: false,
            loss,
            wrong_builder: None,
            calm_until: 0,
            mending: false,
            priorities,
            keep_generations,
            block_bytes: 64 << (seed % 4),
            short_pieces: seed.is_multiple_of(3),
            asked_commits: BTreeMap::new(),
            brings: (options.differing_files || seed % 5 == 4)
                .then(|| (seed as usize / 5 % nodes, script::plain_file(2))),
            small_commit_max: [0, 250, SMALL_COMMIT_BYTES_MAX][(seed % 8).min(2) as usize],
            commands: BTreeSet::new(),
            elections: Vec::new(),
            fences: Vec::new(),
            sent_at: BTreeMap::new(),
            all_since: None,
            local_at: None,
            faults: Counts::new(),
            sometimes: Counts::new(),
            events: 0,
            script: None,
            rng,
        }
    }

    fn at(&mut self, after_us: u64, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + after_us, self.order), event);
    }

    /// How long its process runs, by its own clock.
    fn lived_us(&self, node: usize) -> u64 {
        let host = &self.hosts[node];
        let started_us = host.process.as_ref().map_or(self.now, |process| process.started_us);
        host.mono_after(self.now - started_us)
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let nodes = self.hosts.len();
        &mut self.links[from * nodes + to]
    }

    // ---- the run ----

    pub fn run(&mut self) {
        for node in 0..self.hosts.len() {
            let after = self.rng.below(50_000);
            self.at(after, Event::Start { node, down: 0 });
        }
        for client in 0..self.clients.len() {
            self.clients[client].packs = client == 0;
            let after = self.rng.between(100_000, 1_000_000);
            self.turn(client, after);
        }
        if self.options.faults {
            let first = match self.options.differing_files {
                true => self.rng.between(50_000, 500_000),
                false => self.rng.between(300_000, 2_000_000),
            };
            self.at(first, Event::Fault);
        }
        let faults_until = self.options.faults_ms * 1000;
        self.until(faults_until, |_| false);
        self.come_to_rest();
    }

    /// The end of a run: everything is mended, has to come to rest, and is judged.
    fn come_to_rest(&mut self) {
        self.mend();
        if self.options.faults && self.rng.chance(self.options.siege_permille) {
            self.siege();
            self.mend();
        }
        self.check_liveness();
        self.last_pack();
        self.check_told();
        let node = (0..self.hosts.len()).find(|node| self.takes_part(*node));
        let (_, tip) = self.ledger.current(node.expect("a majority")).expect("a current file");
        let judged = history::judge(&self.ledger, &self.book, tip);
        oids::judge(&self.ledger, &self.book, tip);
        let packs = judged.generations as u64 - 1;
        World::add(&mut self.sometimes, "generation switch", packs);
        World::add(&mut self.sometimes, "in-doubt commit found", judged.unknown_found);
        World::add(&mut self.sometimes, "in-doubt commit absent", judged.unknown_absent);
        World::add(&mut self.sometimes, "acknowledged locally and lost", judged.lost);
        self.trace.line(format_args!("judged: {judged:?}"));
    }

    /// Runs until `end_us`, or until `done`; true if it was done.
    fn until(&mut self, end_us: u64, mut done: impl FnMut(&mut World) -> bool) -> bool {
        loop {
            let Some((&(at, _), _)) = self.queue.first_key_value() else { return done(self) };
            if at > end_us {
                self.now = end_us;
                return done(self);
            }
            let ((at, _), event) = self.queue.pop_first().expect("not empty");
            self.now = at;
            self.trace.set_now(at);
            self.handle(event);
            self.events += 1;
            assert!(self.events < EVENTS_MAX, "violated Liveness: the cluster is busy with itself");
            if done(self) {
                return true;
            }
        }
    }

    /// The node an event happens in, and the life of the process it is for.
    fn place(event: &Event) -> Option<(usize, u64)> {
        match event {
            Event::Wake { node, life }
            | Event::DiskRun { node, life }
            | Event::DiskDone { node, life, .. }
            | Event::RaftRun { node, life }
            | Event::RaftDone { node, life, .. }
            | Event::JobStep { node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some((node, life)) = World::place(&event) {
            let host = &mut self.hosts[node];
            if host.process.is_none() || host.life != life {
                return;
            }
            if host.stalled {
                host.deferred.push(event);
                return;
            }
        }
        match event {
            Event::Wake { node, .. } => self.wake(node),
            Event::Deliver(flight) => self.deliver(*flight),
            Event::DiskRun { node, .. } => self.disk_run(node),
            Event::DiskDone { node, results, .. } => self.disk_done(node, results),
            Event::RaftRun { node, .. } => self.raft_run(node),
            Event::RaftDone { node, number, failed, .. } => self.raft_done(node, number, failed),
            Event::JobStep { node, job, .. } => self.job_step(node, job),
            Event::Start { node, down } => {
                if self.hosts[node].downs == down && self.hosts[node].process.is_none() {
                    self.start(node);
                }
            }
            Event::PowerOn { node, down } => {
                if self.hosts[node].downs == down {
                    self.hosts[node].powered = true;
                }
            }
            Event::Dial { from, life, to } => self.dial(from, life, to),
            Event::LinkLost { from, to, era } => self.link_lost(from, to, era),
            Event::LinkReset { from, to, era } => {
                if !self.link(from, to).cut && !self.link(to, from).cut {
                    self.link_lost(from, to, era);
                }
            }
            Event::LaneAgain { from, to, era, lane } => self.lane_again(from, to, era, lane),
            Event::ToNode { node, life, conn, bytes } => {
                self.arrive_at_node(node, life, conn, bytes)
            }
            Event::Drained { node, life, conn } => self.drained(node, life, conn),
            Event::ToClient { client, conn, bytes } => self.arrive_at_client(client, conn, bytes),
            Event::ClientTurn { client, turn } => {
                if self.clients[client].turn == turn {
                    self.client_turn(client);
                }
            }
            Event::Fault => self.next_fault(),
            Event::Resume { node } => self.resume(node),
            Event::Uncut { way } => self.uncut(way),
            Event::NoLoss => self.loss_permille = 0,
            Event::NoLag => self.lag_us = 0,
            Event::NoLate => self.late = Late::default(),
            Event::Ask { .. } if self.mending => {}
            Event::Ask { by, verb } => _ = self.ask(by, verb),
            Event::Wide if self.besieged => {}
            Event::Wide => self.widen(),
            Event::FastDisk { node } => self.hosts[node].slow = 1,
            Event::NoRoom { .. } if self.mending => {}
            Event::NoRoom { node } => self.hosts[node].medium.lock().set_room(Room::None),
            Event::RoomAgain { node } => self.hosts[node].medium.lock().set_room(Room::Enough),
            Event::Unlimit { by } => {
                for name in ["pack.rate", "durability"] {
                    let (name, value) = (name.to_string(), "default".to_string());
                    self.ask(by, Verb::ConfigSet(ConfigSet { name, value }));
                }
            }
            Event::Unhold { by } => {
                self.ask(by, Verb::SetPause(SetPause { paused: false }));
            }
        }
    }

    /// Is it to serve in the end?
    fn takes_part(&self, node: usize) -> bool {
        self.hosts[node].out.is_none()
    }

    fn process(&mut self, node: usize) -> &mut Process {
        self.hosts[node].process.as_mut().expect("a process")
    }
}
