//! The machine room: one thread, one queue of events, one seed.
//!
//! A node is the production core with a shell made of events: its inbox is stepped in batches as the real run loop does
//! it, disk tasks go through the production `perform`, Raft records through the production `RaftLog`, each after its
//! time. A connection between nodes is a lane: messages on it keep their order, unless it breaks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use packmaster::durus::Limits;
use packmaster::node::core::{Action, Core, Input, Setup, Timing, lane, start};
use packmaster::pack::{Job, Step};
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminRequest, Pack, PackVerb, Promote, SetPause};
use packmaster::proto::control::command::Kind as Command;
use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::proto::control::{self, Member, PeerMessage, RaftRecord, Reason};
use packmaster::raft::RaftLog;
use packmaster::storage::DiskError;
use packmaster::storage::task::{DiskTask, TaskDone, perform};
use packmaster::types::{BootId, ConnId, NodeId, Now};
use prost::Message as _;

use super::client::{Book, Client, Next, Outcome};
use super::disk::{Loss, Medium};
use super::faults::{Fault, Options, Schedule};
use super::history;
use super::ledger::{Ledger, tag_text};
use super::rng::Rng;
use super::trace::Trace;

const WALL_US: u64 = 1_780_000_000_000_000;
/// Once everything is mended: until a client on every node has committed.
const COMMIT_WITHIN_US: u64 = 20_000_000;
/// And from then on until all is still and equal. A pack may wait 10 s for a straggler.
const REST_WITHIN_US: u64 = 60_000_000;

/// More events than any run should have.
const EVENTS_MAX: u64 = 3_000_000;

enum Event {
    Wake { node: usize, life: u64 },
    Deliver(Flight),
    DiskRun { node: usize, life: u64 },
    DiskDone { node: usize, life: u64, results: Vec<(u64, Result<TaskDone, DiskError>)> },
    RaftRun { node: usize, life: u64 },
    RaftDone { node: usize, life: u64, number: u64 },
    JobStep { node: usize, life: u64, job: u64 },
    Start { node: usize, down: u64 },
    PowerOn { node: usize, down: u64 },
    Dial { from: usize, life: u64, to: usize },
    LinkLost { from: usize, to: usize, era: u64 },
    LaneAgain { from: usize, to: usize, era: u64, lane: usize },
    ToNode { node: usize, life: u64, conn: u64, bytes: Option<Vec<u8>> },
    ToClient { client: usize, conn: u64, bytes: Option<Bytes> },
    ClientTurn { client: usize, turn: u64 },
    Fault,
    Resume { node: usize },
    Uncut { way: (usize, usize) },
    NoLoss,
    NoLag,
    FastDisk { node: usize },
    Unhold { by: usize },
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
    records: VecDeque<(u64, RaftRecord)>,
    raft_busy: bool,
    jobs: BTreeMap<u64, Job>,
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
    skew_us: u64,
    stop_down_us: u64,
    disk: Option<std::sync::Arc<super::disk::SimDisk>>,
}

#[derive(Default)]
struct Link {
    up: bool,
    to_life: u64,
    era: u64,
    cut: bool,
    held: Vec<Flight>,
    last: [u64; 3],
    /// Lanes whose connection is being made again.
    broken: [bool; 3],
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
    requests: u64,
    ledger: Ledger,
    book: Book,
    schedule: Schedule,
    loss_permille: u64,
    lag_us: u64,
    loss: Loss,
    mending: bool,
    priorities: Vec<i64>,
    keep_generations: u32,
    commands: BTreeSet<(u64, u64)>,
    counts: BTreeMap<&'static str, u64>,
    events: u64,
}

impl World {
    pub fn new(seed: u64, options: &Options, trace: Trace) -> World {
        let mut rng = Rng::new(seed);
        let nodes = options.nodes;
        let hosts = (0..nodes)
            .map(|index| Host {
                medium: Medium::default(),
                disk_uuid: [index as u8 + 1; 16],
                process: None,
                life: 0,
                downs: 0,
                powered: true,
                stalled: false,
                deferred: Vec::new(),
                slow: 1,
                doom: None,
                skew_us: rng.below(5_000_000),
                stop_down_us: 0,
                disk: None,
            })
            .collect();
        let schedule = Schedule::new(&mut rng, options);
        let equal = rng.chance(500);
        let priorities = (0..nodes).map(|_| if equal { 0 } else { rng.below(3) as i64 }).collect();
        let loss = if rng.chance(500) { Loss::Ordered } else { Loss::Any };
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
            requests: 0,
            ledger: Ledger::new(nodes),
            book: Book::default(),
            schedule,
            loss_permille: 0,
            lag_us: 0,
            loss,
            mending: false,
            priorities,
            keep_generations,
            commands: BTreeSet::new(),
            counts: BTreeMap::new(),
            events: 0,
            rng,
        }
    }

    fn at(&mut self, after_us: u64, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + after_us, self.order), event);
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let nodes = self.hosts.len();
        &mut self.links[from * nodes + to]
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
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
            let first = self.rng.between(300_000, 2_000_000);
            self.at(first, Event::Fault);
        }
        let faults_until = self.options.faults_ms * 1000;
        self.until(faults_until, |_| false);
        self.mend();
        self.check_liveness();
        let (_, tip) = self.ledger.current(0).expect("a current file");
        let judged = history::judge(&self.ledger, &self.book, tip);
        *self.counts.entry("generation switch").or_default() += judged.generations as u64 - 1;
        *self.counts.entry("in-doubt commit found").or_default() += judged.unknown_found;
        *self.counts.entry("in-doubt commit absent").or_default() += judged.unknown_absent;
        *self.counts.entry("transactions").or_default() += judged.transactions as u64;
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

    fn mend(&mut self) {
        self.trace.line(format_args!("everything is mended;{}", self.ledger.describe()));
        self.mending = true;
        self.loss_permille = 0;
        self.lag_us = 0;
        for node in 0..self.hosts.len() {
            self.hosts[node].slow = 1;
            self.hosts[node].doom = None;
            self.resume(node);
            if !self.hosts[node].powered {
                self.hosts[node].powered = true;
            }
            for to in 0..self.hosts.len() {
                self.uncut((node, to));
            }
            if self.hosts[node].process.is_none() {
                let down = self.hosts[node].downs;
                self.at(10_000, Event::Start { node, down });
            }
        }
        self.ask(0, Verb::SetPause(SetPause { paused: false }));
    }

    fn check_liveness(&mut self) {
        for client in &mut self.clients {
            client.quiet = true;
            client.packs = false;
        }
        let first = self.clients.len();
        for node in 0..self.hosts.len() {
            let mut client = Client::new(1000 + node as u64);
            client.probing = true;
            self.clients.push(client);
            let client = first + node;
            self.turn(client, 1000);
        }
        let end = self.now + COMMIT_WITHIN_US;
        let committed = |world: &mut World| {
            world.clients[first..].iter().all(|client| client.commits_here >= 2)
        };
        if !self.until(end, committed) {
            let waiting: Vec<String> = self.clients[first..]
                .iter()
                .map(|client| {
                    let node = client.connection.as_ref().map(|connection| connection.node + 1);
                    format!(
                        "{} commits on node {node:?}, waits for {}",
                        client.commits_here,
                        client.waits_for()
                    )
                })
                .collect();
            panic!(
                "violated Liveness: {} s after the faults ended not every node's client has committed: {waiting:?};{}",
                COMMIT_WITHIN_US / 1_000_000,
                self.ledger.describe()
            );
        }
        let waited_ms = (self.now + COMMIT_WITHIN_US - end) / 1000;
        self.trace.line(format_args!("every node's client has committed after {waited_ms} ms"));
        self.counts.insert("recovery, ms", waited_ms);
        for client in &mut self.clients {
            client.quiet = true;
        }
        let end = self.now + REST_WITHIN_US;
        let mut look_at = self.now;
        let rested = |world: &mut World| {
            if world.now < look_at {
                return false;
            }
            look_at = world.now + 100_000;
            world.clients.iter().all(|client| client.connection.is_none()) && world.is_equal()
        };
        if !self.until(end, rested) {
            panic!(
                "violated Liveness: {} s after the last commit the nodes are not equal:{} clients {:?}",
                REST_WITHIN_US / 1_000_000,
                self.ledger.describe(),
                self.clients
                    .iter()
                    .filter(|client| client.connection.is_some())
                    .map(|client| (client.id, client.waits_for()))
                    .collect::<Vec<_>>()
            );
        }
    }

    fn is_equal(&mut self) -> bool {
        let mut contents = BTreeSet::new();
        for host in &self.hosts {
            let platter = host.medium.lock();
            let Some(inode) = platter.durable_file("current.durus") else { return false };
            contents.insert(super::parse::sha(&[inode.durable()]));
        }
        contents.len() == 1
    }

    pub fn sometimes(&mut self) -> BTreeMap<&'static str, u64> {
        let said = [
            ("torn tail cut", "the file ends inside its last transaction"),
            ("orphan made", "cut back to the common point"),
            ("local rebase", "rebasing: building the generation from our own file"),
            ("tail fetch", "rebasing: fetching what our generation lacks"),
            ("base fetch", "rebasing: fetching the base"),
            ("rebased", "rebased"),
            ("pack marked", "pack: marked"),
            ("master opened", "open: serving as master"),
            ("raft log mended", "the Raft log was mended"),
        ];
        for (what, start) in said {
            self.counts.insert(what, self.trace.said(start));
        }
        self.counts.insert("commits acknowledged", self.book.acked);
        self.counts.insert("commits refused", self.book.refused);
        self.counts.insert("commits unknown", self.book.unknown);
        self.counts.insert("commits given up", self.book.aborted);
        self.counts.insert("connections closed", self.book.closed);
        self.counts.insert("invalid loads", self.book.invalid_loads);
        self.counts.insert("missing loads", self.book.missing_loads);
        self.counts.insert("simulated ms", self.now / 1000);
        std::mem::take(&mut self.counts)
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
            Event::Deliver(flight) => self.deliver(flight),
            Event::DiskRun { node, .. } => self.disk_run(node),
            Event::DiskDone { node, results, .. } => self.disk_done(node, results),
            Event::RaftRun { node, .. } => self.raft_run(node),
            Event::RaftDone { node, number, .. } => {
                self.process(node).raft_busy = false;
                self.put(node, Input::RaftDone { number, result: Ok(()) });
                self.raft_next(node);
            }
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
            Event::LaneAgain { from, to, era, lane } => {
                let control = lane == 0;
                let link = self.link(from, to);
                if link.era == era {
                    link.broken[lane] = false;
                }
                if link.up && link.era == era {
                    let peer = NodeId(to as u64 + 1);
                    if control {
                        self.put(from, Input::PeerDown { peer, refused: false });
                    }
                    self.put(from, Input::PeerUp { peer });
                }
            }
            Event::ToNode { node, life, conn, bytes } => {
                self.arrive_at_node(node, life, conn, bytes)
            }
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
            Event::FastDisk { node } => self.hosts[node].slow = 1,
            Event::Unhold { by } => self.ask(by, Verb::SetPause(SetPause { paused: false })),
        }
    }

    fn process(&mut self, node: usize) -> &mut Process {
        self.hosts[node].process.as_mut().expect("a process")
    }

    // ---- processes ----

    fn setup(&mut self, node: usize) -> Setup {
        let members = (0..self.hosts.len())
            .map(|index| Member {
                id: index as u64 + 1,
                name: format!("n{}", index + 1),
                durus: format!("n{}:2972", index + 1),
                peer: format!("n{}:2970", index + 1),
                http: format!("n{}:2971", index + 1),
                role: "voter".into(),
                priority: self.priorities[index],
                may_be_master: true,
                ..Member::default()
            })
            .collect();
        let disk = self.hosts[node].medium.mount();
        self.hosts[node].disk = Some(disk.clone());
        Setup {
            id: NodeId(node as u64 + 1),
            boot: BootId(self.rng.number() | 1),
            disk_uuid: self.hosts[node].disk_uuid,
            cluster: "simulated".into(),
            version: "simulated".into(),
            members,
            timing: Timing::default(),
            limits: Limits {
                wait_max_ms: self.options.wait_max_ms,
                command_timeout_ms: 4000,
                ..Limits::default()
            },
            keep_generations: self.keep_generations,
            disk,
            log: self.trace.logger(),
        }
    }

    fn start(&mut self, node: usize) {
        self.hosts[node].powered = true;
        self.hosts[node].life += 1;
        let life = self.hosts[node].life;
        self.trace.line(format_args!("n{} starts, life {life}", node + 1));
        let setup = self.setup(node);
        let fuse = (!self.mending && self.options.faults && self.rng.chance(60))
            .then(|| self.rng.below(30) as u32);
        self.hosts[node].medium.lock().set_fuse(fuse);
        let now = Now { mono_us: 1, wall_us: WALL_US + self.now + self.hosts[node].skew_us };
        let started = start(setup, now);
        let broken = self.hosts[node].medium.lock().is_broken();
        self.hosts[node].medium.lock().set_fuse(None);
        let started = match started {
            _ if broken => None,
            Ok(started) => Some(started),
            Err(error) => panic!("violated restart: node {} can't start again: {error}", node + 1),
        };
        let Some((core, raft_log)) = started else {
            self.trace.line(format_args!("n{} dies while it starts", node + 1));
            self.count("crash at start");
            let power = self.rng.chance(500);
            self.dies(node, power, 50_000);
            return;
        };
        self.hosts[node].process = Some(Process {
            core,
            raft_log,
            started_us: self.now,
            inbox: VecDeque::new(),
            wake_at: None,
            tasks: Vec::new(),
            disk_busy: false,
            records: VecDeque::new(),
            raft_busy: false,
            jobs: BTreeMap::new(),
            conns: BTreeMap::new(),
        });
        self.look(node);
        for peer in 0..self.hosts.len() {
            if peer != node {
                let after = self.rng.delay(300, 20_000);
                self.at(after, Event::Dial { from: node, life, to: peer });
                // Its own connections ring the others' bells.
                let their_life = self.hosts[peer].life;
                let after = self.rng.delay(500, 30_000);
                self.at(after, Event::Dial { from: peer, life: their_life, to: node });
            }
        }
        self.wake_soon(node, 0);
    }

    /// The process ends here and now. `power`: the machine loses what was not synced.
    fn dies(&mut self, node: usize, power: bool, down_us: u64) {
        let host = &mut self.hosts[node];
        host.doom = None;
        host.stalled = false;
        host.deferred.clear();
        host.slow = 1;
        host.life += 1;
        host.downs += 1;
        let down = host.downs;
        let process = host.process.take();
        host.disk = None;
        let mut platter = host.medium.lock();
        platter.unmount();
        let lost = power.then(|| platter.power_fails(&mut self.rng, self.loss));
        drop(platter);
        self.hosts[node].powered = !power;
        self.trace.line(format_args!(
            "n{} dies{}",
            node + 1,
            lost.map(|lost| format!(" by a power failure: {lost}")).unwrap_or_default()
        ));
        self.look(node);
        for peer in (0..self.hosts.len()).filter(|peer| *peer != node) {
            let mine = self.link(node, peer);
            mine.up = false;
            mine.era += 1;
            mine.held.clear();
            let era = self.link(peer, node).era;
            let after = match power {
                true => self.rng.between(500_000, 3_000_000),
                false => self.rng.between(100, 3000),
            };
            self.at(after, Event::LinkLost { from: peer, to: node, era });
        }
        if let Some(process) = process {
            for (conn, client) in process.conns {
                let after = match power {
                    true => self.rng.between(10_000, 2_000_000),
                    false => self.rng.between(100, 2000),
                };
                self.at(after, Event::ToClient { client, conn, bytes: None });
            }
        }
        if power {
            let on = self.rng.below(down_us + 1);
            self.at(on, Event::PowerOn { node, down });
        }
        self.at(down_us, Event::Start { node, down });
    }

    fn look(&mut self, node: usize) {
        let medium = self.hosts[node].medium.clone();
        self.ledger.look(node, &medium);
    }

    fn put(&mut self, node: usize, input: Input) {
        if let Some(process) = &mut self.hosts[node].process {
            process.inbox.push_back(input);
            let after = self.rng.delay(5, 600);
            self.wake_soon(node, after);
        }
    }

    fn wake_soon(&mut self, node: usize, after_us: u64) {
        let at = self.now + after_us;
        let life = self.hosts[node].life;
        let Some(process) = &mut self.hosts[node].process else { return };
        if process.wake_at.is_none_or(|known| known > at || known <= self.now) {
            process.wake_at = Some(at);
            self.at(after_us, Event::Wake { node, life });
        }
    }

    /// The run loop's round: everything that waits, then a tick if it is time, then what is to be done.
    fn wake(&mut self, node: usize) {
        let now = self.now;
        let wall_us = WALL_US + now + self.hosts[node].skew_us;
        let trace = self.trace.clone();
        let process = self.hosts[node].process.as_mut().expect("checked");
        if process.wake_at != Some(now) {
            return;
        }
        process.wake_at = None;
        let at = Now { mono_us: 1 + now - process.started_us, wall_us };
        let mut out = Vec::new();
        while let Some(input) = process.inbox.pop_front() {
            process.core.step(at, input, &mut out);
        }
        if out.len() > 10_000 {
            let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
            for action in &out {
                let kind = match action {
                    Action::Send { to, message } => {
                        format!(
                            "to {to} {}",
                            format!("{message:?}").chars().take(60).collect::<String>()
                        )
                    }
                    Action::ClientSend { .. } => "client send".into(),
                    Action::Disk { .. } => "disk".into(),
                    _ => "other".into(),
                };
                *kinds.entry(kind).or_default() += 1;
            }
            kinds.retain(|_, count| *count > 100);
            trace.line(format_args!("n{} wants {} things at once: {kinds:?}", node + 1, out.len()));
            panic!("violated Liveness: node {} wants {} things at once", node + 1, out.len());
        }
        if at.mono_us >= process.core.deadline() {
            process.core.step(at, Input::Tick, &mut out);
        }
        let due = process.started_us + process.core.deadline().saturating_sub(1);
        self.wake_soon(node, due.saturating_sub(now).clamp(20, 1_000_000));
        let life = self.hosts[node].life;
        for action in out {
            if self.hosts[node].life != life {
                break;
            }
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let life = self.hosts[node].life;
        match action {
            Action::Send { to, message } => self.send(node, to.0 as usize - 1, message),
            Action::ClientSend { conn, bytes } => self.client_send(node, conn, bytes),
            Action::ClientClose { conn, reason } => {
                let Some(client) = self.process(node).conns.remove(&conn.0) else { return };
                self.trace.line(format_args!(
                    "n{} closes c{}: {reason}",
                    node + 1,
                    self.clients[client].id
                ));
                let after = self.rng.delay(50, 2000);
                self.at(after, Event::ToClient { client, conn: conn.0, bytes: None });
            }
            Action::AdminReply { reply, .. } => {
                self.trace.line(format_args!(
                    "n{} replies: {:?} {}",
                    node + 1,
                    reply.outcome(),
                    reply.message
                ));
            }
            Action::Disk { task, work } => {
                self.trace.line(format_args!("n{} disk {task}: {}", node + 1, describe(&work)));
                self.process(node).tasks.push((task, work));
                self.disk_next(node);
            }
            Action::RaftPersist { number, record } => {
                self.note_commands(&record);
                self.process(node).records.push_back((number, record));
                self.raft_next(node);
            }
            Action::Job { job, work } => {
                self.process(node).jobs.insert(job, work);
                let after = self.rng.delay(100, 20_000);
                self.at(after, Event::JobStep { node, life, job });
            }
            Action::CancelJob { job } => {
                self.process(node).jobs.remove(&job);
            }
            Action::Exit { reason, failed } => {
                assert!(!failed, "violated: node {} gives up: {reason}", node + 1);
                self.trace.line(format_args!("n{} exits: {reason}", node + 1));
                self.finish(node);
                let down_us = self.hosts[node].stop_down_us;
                self.dies(node, false, down_us);
            }
        }
    }

    /// An orderly end: what is queued for the disks is still done.
    fn finish(&mut self, node: usize) {
        let Some(disk) = self.hosts[node].disk.clone() else { return };
        let process = self.process(node);
        let tasks = std::mem::take(&mut process.tasks);
        perform(&*disk, tasks);
        while let Some((_, record)) = process.records.pop_front() {
            process.raft_log.append(&record).expect("the Raft log takes a record");
        }
        self.look(node);
    }

    fn note_commands(&mut self, record: &RaftRecord) {
        for entry in &record.entries {
            if !self.commands.insert((entry.term, entry.index)) {
                continue;
            }
            let Ok(command) = control::Command::decode(&entry.data[..]) else { continue };
            let what = match command.kind {
                Some(Command::Fence(fence)) => match fence.reason() {
                    Reason::Promote => "fence: promote",
                    Reason::MasterDead => "fence: dead",
                    Reason::MasterSilent => "fence: silent",
                    Reason::MasterRestarted => "fence: restarted",
                    Reason::GenerationSwitch => "fence: generation switch",
                    Reason::NotOpened => "fence: not opened",
                    Reason::HandOver => "fence: hand over",
                    _ => "fence: other",
                },
                Some(Command::PackStart(_)) => "pack started",
                Some(Command::PackSeal(_)) => "pack sealed",
                Some(Command::PackCancel(_)) => "pack cancelled",
                _ => continue,
            };
            self.count(what);
        }
    }

    // ---- disks ----

    fn disk_next(&mut self, node: usize) {
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
    fn light_fuse(&mut self, node: usize) {
        if let Some((changes, ..)) = self.hosts[node].doom {
            self.hosts[node].medium.lock().set_fuse(Some(changes));
        }
    }

    /// True if the fuse has burnt down.
    fn fuse_burnt(&mut self, node: usize) -> bool {
        let broken = self.hosts[node].medium.lock().is_broken();
        self.hosts[node].medium.lock().set_fuse(None);
        if broken {
            let (_, power, down_us) = self.hosts[node].doom.take().expect("a fuse has a reason");
            self.count("crash in a disk operation");
            self.dies(node, power, down_us);
        }
        broken
    }

    fn disk_run(&mut self, node: usize) {
        let life = self.hosts[node].life;
        let slow = self.hosts[node].slow;
        let tasks = std::mem::take(&mut self.process(node).tasks);
        let disk = self.hosts[node].disk.clone().expect("a disk");
        self.light_fuse(node);
        let results = perform(&*disk, tasks);
        if self.fuse_burnt(node) {
            return;
        }
        self.look(node);
        let after = self.rng.delay(20, 3000) * slow;
        self.at(after, Event::DiskDone { node, life, results });
    }

    fn disk_done(&mut self, node: usize, results: Vec<(u64, Result<TaskDone, DiskError>)>) {
        self.process(node).disk_busy = false;
        for (task, result) in results {
            if let Err(error) = &result {
                panic!("violated: a disk task of node {} failed on a good disk: {error}", node + 1);
            }
            self.put(node, Input::DiskDone { task, result });
        }
        self.disk_next(node);
    }

    fn raft_next(&mut self, node: usize) {
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

    fn raft_run(&mut self, node: usize) {
        let life = self.hosts[node].life;
        self.light_fuse(node);
        let process = self.process(node);
        let (number, record) = process.records.pop_front().expect("not empty");
        let result = process.raft_log.append(&record);
        if self.fuse_burnt(node) {
            return;
        }
        result.expect("the Raft log takes a record");
        let after = self.rng.delay(20, 500);
        self.at(after, Event::RaftDone { node, life, number });
    }

    fn job_step(&mut self, node: usize, job: u64) {
        let life = self.hosts[node].life;
        let disk = self.hosts[node].disk.clone().expect("a disk");
        let Some(mut work) = self.process(node).jobs.remove(&job) else { return };
        self.light_fuse(node);
        let step = work.step(&*disk);
        if self.fuse_burnt(node) {
            return;
        }
        self.look(node);
        let result = match step {
            Ok(Step::More { permille }) => {
                self.put(node, Input::JobProgress { job, permille });
                self.process(node).jobs.insert(job, work);
                let after = self.rng.delay(200, 60_000);
                self.at(after, Event::JobStep { node, life, job });
                return;
            }
            Ok(Step::Done(outcome)) => Ok(outcome),
            Err(error) => {
                self.trace.line(format_args!("n{} job {job} failed: {error}", node + 1));
                Err(error)
            }
        };
        self.put(node, Input::JobDone { job, result });
    }

    // ---- the network ----

    fn send(&mut self, from: usize, to: usize, message: PeerMessage) {
        self.ledger.on_send(from, &message);
        self.trace.note((from * 8 + to) as u64, message.encoded_len() as u64);
        if let Some(text) = words(&message) {
            self.trace.line(format_args!("n{} -> n{}: {text}", from + 1, to + 1));
        }
        let link = self.link(from, to);
        if !link.up {
            return;
        }
        let (to_life, era) = (link.to_life, link.era);
        let lane = lane(&message) as usize;
        if self.link(from, to).broken[lane] {
            // Waits for the new connection, if it is lucky.
            if self.rng.chance(500) {
                return;
            }
        } else if self.loss_permille > 0 && self.rng.chance(self.loss_permille) {
            // The connection of this lane broke with the message in it; it is made again.
            self.link(from, to).broken[lane] = true;
            let after = self.rng.delay(500, 30_000);
            self.at(after, Event::LaneAgain { from, to, era, lane });
            return;
        }
        let fragile = self.rng.chance(500);
        let copy = self.loss_permille > 0 && self.rng.chance(30);
        let flight = Flight { from, to, to_life, era, fragile, message };
        if self.link(from, to).cut {
            self.link(from, to).held.push(flight);
            return;
        }
        if copy {
            let after = self.rng.between(100, 80_000);
            let message = flight.message.clone();
            self.at(after, Event::Deliver(Flight { from, to, to_life, era, fragile, message }));
        }
        self.fly(flight);
    }

    fn fly(&mut self, flight: Flight) {
        let delay = self.rng.delay(30, 3000) + self.rng.below(self.lag_us + 1);
        let number = lane(&flight.message) as usize;
        let now = self.now;
        let link = self.link(flight.from, flight.to);
        let at = (now + delay).max(link.last[number] + 1);
        link.last[number] = at;
        self.at(at - now, Event::Deliver(flight));
    }

    fn deliver(&mut self, flight: Flight) {
        let Flight { from, to, to_life, era, fragile, message } = flight;
        if self.hosts[to].life != to_life || self.hosts[to].process.is_none() {
            return;
        }
        let link = self.link(from, to);
        if link.era != era && fragile {
            return;
        }
        if link.cut {
            link.held.push(Flight { from, to, to_life, era, fragile, message });
            return;
        }
        let from_disk = self.hosts[from].disk_uuid;
        self.put(to, Input::Peer { from: NodeId(from as u64 + 1), from_disk, message });
    }

    /// `from` finds that its connections to `to` are gone.
    fn link_lost(&mut self, from: usize, to: usize, era: u64) {
        let link = self.link(from, to);
        if !link.up || link.era != era {
            return;
        }
        link.up = false;
        link.era += 1;
        link.held.clear();
        let life = self.hosts[from].life;
        if self.hosts[from].process.is_some() {
            self.dial(from, life, to);
        }
    }

    fn dial(&mut self, from: usize, life: u64, to: usize) {
        if self.hosts[from].life != life
            || self.hosts[from].process.is_none()
            || self.link(from, to).up
        {
            return;
        }
        let peer = NodeId(to as u64 + 1);
        let open = !self.link(from, to).cut && !self.link(to, from).cut;
        let (there, stalled, powered, to_life) = {
            let host = &self.hosts[to];
            (host.process.is_some(), host.stalled, host.powered, host.life)
        };
        if open && there && !stalled {
            let link = self.link(from, to);
            let again = link.to_life != 0;
            link.up = true;
            link.era += 1;
            link.broken = [false; 3];
            link.to_life = to_life;
            if again {
                self.put(from, Input::PeerDown { peer, refused: false });
            }
            self.put(from, Input::PeerUp { peer });
            return;
        }
        let refused = open && !there && powered;
        self.put(from, Input::PeerDown { peer, refused });
        let after = self.rng.between(20_000, 250_000);
        self.at(after, Event::Dial { from, life, to });
    }

    fn cut(&mut self, way: (usize, usize), us: u64) {
        if way.0 == way.1 {
            return;
        }
        self.link(way.0, way.1).cut = true;
        let era = self.link(way.0, way.1).era;
        // The sender's kernel gives up in the end.
        let gives_up = self.rng.between(100_000, 3_000_000);
        if gives_up < us {
            self.at(gives_up, Event::LinkLost { from: way.0, to: way.1, era });
        }
        self.at(us, Event::Uncut { way });
    }

    fn uncut(&mut self, way: (usize, usize)) {
        let link = self.link(way.0, way.1);
        link.cut = false;
        for flight in std::mem::take(&mut link.held) {
            self.fly(flight);
        }
    }

    // ---- clients ----

    /// The client's next turn, and only that.
    fn turn(&mut self, client: usize, after_us: u64) {
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        self.at(after_us, Event::ClientTurn { client, turn });
    }

    fn client_turn(&mut self, client: usize) {
        if self.clients[client].connection.is_none() {
            if self.clients[client].quiet {
                return;
            }
            let node = match self.clients[client].probing {
                true => client - self.options.clients,
                false => self.rng.index(self.hosts.len()),
            };
            self.connect(client, node);
            return;
        }
        let next = self.clients[client].next(&mut self.rng, &mut self.book);
        match next {
            Next::Say(bytes) => {
                if let Some(tag) = self.clients[client].awaits_commit() {
                    let text = tag_text(&tag);
                    self.trace.line(format_args!("c{} sends {text}", self.clients[client].id));
                }
                self.say(client, bytes);
                if self.clients[client].is_idle() {
                    // Nothing is answered to that.
                    let after = self.rng.delay(500, 20_000);
                    self.turn(client, after);
                }
            }
            Next::Think => {
                if self.clients[client].is_idle() {
                    let after = self.rng.delay(500, 200_000);
                    self.turn(client, after);
                }
            }
            Next::Leave => {
                if self.rng.chance(500) {
                    self.say(client, b".".to_vec());
                }
                self.hang_up(client);
            }
        }
    }

    fn connect(&mut self, client: usize, node: usize) {
        let there = self.hosts[node].process.is_some();
        if !there {
            let after = self.rng.between(10_000, 100_000);
            self.turn(client, after);
            return;
        }
        self.conns_made += 1;
        let conn = self.conns_made;
        self.process(node).conns.insert(conn, client);
        let address = format!("c{}", self.clients[client].id);
        self.trace.line(format_args!("{address} connects to n{} as {conn}", node + 1));
        self.put(node, Input::ClientOpened { conn: ConnId(conn), address });
        let hello = self.clients[client].connected(node, conn, &mut self.book);
        self.say(client, hello);
    }

    fn say(&mut self, client: usize, bytes: Vec<u8>) {
        let Some(connection) = &self.clients[client].connection else { return };
        let (node, conn) = (connection.node, connection.conn);
        let life = self.hosts[node].life;
        let after = self.rng.delay(30, 1000);
        if bytes.len() > 1 && self.rng.chance(150) {
            // Cut somewhere by the network.
            let (first, rest) = bytes.split_at(self.rng.between(1, bytes.len() as u64) as usize);
            let more = self.rng.delay(10, 3000);
            self.at(after, Event::ToNode { node, life, conn, bytes: Some(first.to_vec()) });
            self.at(after + more, Event::ToNode { node, life, conn, bytes: Some(rest.to_vec()) });
        } else {
            self.at(after, Event::ToNode { node, life, conn, bytes: Some(bytes) });
        }
    }

    fn hang_up(&mut self, client: usize) {
        let Some(connection) = &self.clients[client].connection else { return };
        let (node, conn) = (connection.node, connection.conn);
        let life = self.hosts[node].life;
        self.trace.line(format_args!("c{} hangs up {conn}", self.clients[client].id));
        self.at(4000, Event::ToNode { node, life, conn, bytes: None });
        self.disconnected(client);
    }

    fn disconnected(&mut self, client: usize) {
        self.clients[client].closed(&mut self.book);
        let after = self.rng.delay(1000, 300_000);
        self.turn(client, after);
    }

    fn arrive_at_node(&mut self, node: usize, life: u64, conn: u64, bytes: Option<Vec<u8>>) {
        if self.hosts[node].life != life || self.hosts[node].process.is_none() {
            return;
        }
        if !self.process(node).conns.contains_key(&conn) {
            return;
        }
        match bytes {
            Some(bytes) => {
                self.put(node, Input::ClientData { conn: ConnId(conn), bytes: bytes.into() });
            }
            None => {
                self.process(node).conns.remove(&conn);
                self.put(node, Input::ClientClosed { conn: ConnId(conn) });
            }
        }
    }

    fn client_send(&mut self, node: usize, conn: ConnId, bytes: Bytes) {
        let Some(&client) = self.process(node).conns.get(&conn.0) else { return };
        let current = self.clients[client].connection.as_ref().is_some_and(|c| c.conn == conn.0);
        if current
            && let Some(tag) = self.clients[client].awaits_commit()
            && bytes.first() == Some(&b'O')
        {
            let seq = self.ledger.on_acknowledged(&tag);
            let sent = self.book.sent.get_mut(&tag).expect("sent");
            assert_eq!(sent.outcome, Outcome::Open, "a commit answered twice");
            sent.seq = seq;
            self.book.acked_seq = self.book.acked_seq.max(seq);
            self.trace.line(format_args!(
                "n{} acknowledges {} at seq {seq}",
                node + 1,
                tag_text(&tag)
            ));
        }
        let after = self.rng.delay(30, 1000);
        // One connection keeps its order.
        let after = after.max(1);
        self.at_in_order(
            client,
            after,
            Event::ToClient { client, conn: conn.0, bytes: Some(bytes) },
        );
    }

    /// Answers to one client arrive in the order in which they were sent.
    fn at_in_order(&mut self, client: usize, after_us: u64, event: Event) {
        let now = self.now;
        let after = self.clients[client].arrival(now, after_us);
        self.at(after, event);
    }

    fn arrive_at_client(&mut self, client: usize, conn: u64, bytes: Option<Bytes>) {
        let current = self.clients[client].connection.as_ref().is_some_and(|c| c.conn == conn);
        if !current {
            return;
        }
        match bytes {
            None => {
                self.trace.line(format_args!("c{} finds {conn} closed", self.clients[client].id));
                self.disconnected(client);
            }
            Some(bytes) => {
                let answered = self.clients[client].received(&bytes, &mut self.book);
                let answered = answered
                    .unwrap_or_else(|why| panic!("client c{}: {why}", self.clients[client].id));
                self.check_oids(client);
                if answered {
                    let after = match self.rng.chance(40) {
                        true => self.rng.between(10_000, 400_000),
                        false => self.rng.delay(20, 20_000),
                    };
                    self.turn(client, after);
                }
            }
        }
    }

    /// No two sessions that are alive hold the same oid.
    fn check_oids(&self, client: usize) {
        let is_alive = |client: usize| {
            self.clients[client].connection.as_ref().is_some_and(|connection| {
                let process = self.hosts[connection.node].process.as_ref();
                process.is_some_and(|process| process.conns.contains_key(&connection.conn))
            })
        };
        for other in (0..self.clients.len()).filter(|other| *other != client) {
            if let Some(oid) = self.clients[client].shares_oid(&self.clients[other])
                && is_alive(client)
                && is_alive(other)
            {
                let (one, two) = (self.clients[client].id, self.clients[other].id);
                panic!("violated OidUnique: oid {oid} was given to c{one} and to c{two}");
            }
        }
    }

    // ---- faults ----

    fn next_fault(&mut self) {
        if self.mending {
            return;
        }
        let (wait, fault) =
            self.schedule.next(&mut self.rng, self.hosts.len(), self.options.clients);
        self.at(wait, Event::Fault);
        self.trace.line(format_args!("FAULT {fault:?}"));
        self.inject(fault);
    }

    fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { node, power, down_us } => {
                if self.hosts[node].process.is_some() {
                    self.count(if power { "power failure" } else { "kill" });
                    self.dies(node, power, down_us);
                }
            }
            Fault::CrashInDisk { node, changes, power, down_us } => {
                if self.hosts[node].process.is_some() {
                    self.hosts[node].doom = Some((changes, power, down_us));
                }
            }
            Fault::CrashAll { power } => {
                for node in 0..self.hosts.len() {
                    if self.hosts[node].process.is_some() {
                        let down_us = self.rng.between(1000, 500_000);
                        self.dies(node, power, down_us);
                    }
                }
            }
            Fault::Stall { node, us } => {
                if self.hosts[node].process.is_some() && !self.hosts[node].stalled {
                    self.hosts[node].stalled = true;
                    self.at(us, Event::Resume { node });
                }
            }
            Fault::Cut { ways, us } => ways.into_iter().for_each(|way| self.cut(way, us)),
            Fault::Lossy { permille, us } => {
                self.loss_permille = permille;
                self.at(us, Event::NoLoss);
            }
            Fault::Laggy { us_max, us } => {
                self.lag_us = us_max;
                self.at(us, Event::NoLag);
            }
            Fault::SlowDisk { node, factor, us } => {
                self.hosts[node].slow = factor;
                self.at(us, Event::FastDisk { node });
            }
            Fault::Promote { to, by } => {
                let promote = Promote {
                    node: format!("n{}", to + 1),
                    force: self.rng.chance(200),
                    ..Promote::default()
                };
                self.ask(by, Verb::Promote(promote));
            }
            Fault::Pack { by } => self.ask(by, Verb::Pack(Pack { verb: PackVerb::Start.into() })),
            Fault::PackCancel { by } => {
                self.ask(by, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
            }
            Fault::Hold { by, us } => {
                self.ask(by, Verb::SetPause(SetPause { paused: true }));
                self.at(us, Event::Unhold { by });
            }
            Fault::Stop { node, down_us } => {
                self.hosts[node].stop_down_us = down_us;
                self.put(node, Input::Stop);
            }
            Fault::KillClient { client } => {
                if self.clients[client].connection.is_some() {
                    self.hang_up(client);
                }
            }
        }
    }

    fn resume(&mut self, node: usize) {
        if !self.hosts[node].stalled {
            return;
        }
        self.hosts[node].stalled = false;
        self.trace.line(format_args!("n{} goes on", node + 1));
        for event in std::mem::take(&mut self.hosts[node].deferred) {
            // Its clock has gone on: what came meanwhile is let in first.
            match event {
                Event::Wake { .. } => {}
                other => {
                    let after = self.rng.below(2000);
                    self.at(after, other);
                }
            }
        }
        if let Some(process) = &mut self.hosts[node].process {
            process.wake_at = None;
        }
        self.wake_soon(node, 10_000);
    }

    fn ask(&mut self, by: usize, verb: Verb) {
        self.requests += 1;
        let request = self.requests;
        let message = AdminRequest { id: request, asked_by: "somebody".into(), verb: Some(verb) };
        self.put(by, Input::Admin { request, message });
    }
}

fn describe(work: &DiskTask) -> String {
    match work {
        DiskTask::Append { file, offset, bytes } => {
            format!("append {} bytes at {offset} to {}", bytes.len(), file.name())
        }
        DiskTask::Promise { epoch } => format!("promise {epoch}"),
        DiskTask::CutBack { file, offset, .. } => format!("cut {} back to {offset}", file.name()),
        DiskTask::Flip { target } => format!("flip to {target}"),
        DiskTask::Create { name } => format!("create {name}"),
        DiskTask::Rename { from, to } => format!("rename {from} to {to}"),
        DiskTask::Remove { names } => format!("remove {names:?}"),
    }
}

/// A message in a line; None for what comes all the time.
fn words(message: &PeerMessage) -> Option<String> {
    let tip = |tip: &Option<packmaster::proto::replication::Tip>| {
        tip.as_ref().map_or("-".into(), |tip| {
            let chain: String =
                tip.chain.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
            format!("{}/{}@{}:{chain}", tip.epoch, tip.seq, tip.offset)
        })
    };
    Some(match message.kind.as_ref()? {
        Message::Beat(_) => return None,
        Message::Raft(raft) if raft.entries.is_empty() && !raft.reject => return None,
        Message::Raft(raft) => format!(
            "raft type {} term {} index {} {} entries, commit {}{}",
            raft.msg_type,
            raft.term,
            raft.index,
            raft.entries.len(),
            raft.commit,
            if raft.reject { " REJECT" } else { "" }
        ),
        Message::Append(append) => format!(
            "append epoch {} g{} prev {} {} bytes commit {}{}",
            append.epoch,
            append.generation,
            tip(&append.prev),
            append.transactions.len(),
            tip(&append.commit),
            if append.want_reply { " reply" } else { "" }
        ),
        Message::AppendReply(reply) => format!(
            "append reply epoch {} g{} durable {} {}{} {} points",
            reply.epoch,
            reply.generation,
            tip(&reply.durable),
            if reply.matched { "matched" } else { "no match" },
            if reply.hello { " hello" } else { "" },
            reply.points.len()
        ),
        Message::FenceReport(report) => format!(
            "fence report epoch {} at {:?} next {} {}",
            report.epoch,
            report.position.as_ref().map(|p| (p.generation, tip(&p.tip))),
            report.next_generation,
            report.suspect
        ),
        Message::FetchReply(reply) => {
            format!("fetch reply {} at {}: {} bytes", reply.id, reply.offset, reply.data.len())
        }
        Message::ClientRequest(request) => {
            let ask = format!("{:?}", request.ask);
            format!(
                "request {} epoch {}: {}",
                request.id,
                request.epoch,
                ask.chars().take(100).collect::<String>()
            )
        }
        other => {
            let text = format!("{other:?}");
            text.chars().take(220).collect()
        }
    })
}
