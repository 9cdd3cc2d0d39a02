//! Processes: how one starts, is stepped as the real run loop does it, and ends.

use std::collections::{BTreeMap, VecDeque};

use packmaster::durus::Limits;
use packmaster::node::core::{Action, Input, Setup, Timing, start};
use packmaster::node::identity;
use packmaster::pack::Pace;
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{self, Outcome};
use packmaster::proto::control::command::Kind as Command;
use packmaster::proto::control::{self, Member, RaftRecord, Reason};
use packmaster::replication::quorum::Durability;
use packmaster::replication::transfer::Pacing;
use packmaster::storage::task::Performer;
use packmaster::types::{BootId, NodeId, Now};
use prost::Message as _;

use super::words::describe;
use super::{Event, Host, Process, World};

const CLUSTER: &str = "simulated";

/// Files are of some hundred KB at most: so are windows and pieces.
const SIM_PACING: Pacing = Pacing {
    window_start: 4 << 10,
    window_min: 1 << 10,
    window_max: 64 << 10,
    piece_min: 400,
    piece_max: 4 << 10,
    rate_min: 4 << 10,
};

impl World {
    pub(super) fn setup(&mut self, node: usize) -> Setup {
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
        let disk = self.scripted_disk(disk);
        self.hosts[node].disk = Some(disk.clone());
        let usual = Limits::default();
        Setup {
            id: NodeId(node as u64 + 1),
            boot: BootId(self.rng.number() | 1),
            disk_uuid: self.hosts[node].disk_uuid,
            born: false,
            cluster: CLUSTER.into(),
            version: "simulated".into(),
            members,
            timing: Timing {
                pack_failed_ms: 2000,
                opening_bytes_per_s_min: 300,
                raft_compact_every: self
                    .options
                    .compact_every
                    .unwrap_or(Timing::default().raft_compact_every),
                ..Timing::default()
            },
            limits: Limits {
                // On every other node, room for one answer at a time.
                session_bytes_max: match node % 2 {
                    0 => usual.session_bytes_max,
                    _ => usual.record_bytes_max + 1,
                },
                wait_max_ms: self.options.wait_max_ms,
                command_max_ms: 4000,
                ..usual
            },
            keep_generations: self.keep_generations,
            block_bytes: self.block_bytes,
            fetch_bytes: if self.short_pieces { 400 } else { 1 << 20 },
            // As lines are narrower here.
            sent_again_bytes_max: if self.short_pieces { 0 } else { 2 << 10 },
            follow_bytes: self.block_bytes,
            fetch_bytes_per_s_max: None,
            pacing: SIM_PACING,
            disk,
            log: self.trace.logger(),
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        if self.hosts[node].refused {
            return;
        }
        self.hosts[node].powered = true;
        self.hosts[node].life += 1;
        let life = self.hosts[node].life;
        self.trace.line(format_args!("n{} starts, life {life}", node + 1));
        let mut setup = self.setup(node);
        let fuse = (!self.mending && self.options.faults && self.rng.chance(60))
            .then(|| self.rng.below(30) as u32);
        self.hosts[node].medium.lock().set_fuse(fuse);
        if self.script.is_some() {
            self.light_scripted_fuse(node);
        }
        self.import(node);
        let now = Now { mono_us: 1, wall_us: self.hosts[node].wall_us(self.now) };
        // As production does it: whose disk it is, everything that is read back, and that it is all there.
        let (disk, id, uuid) = (setup.disk.clone(), setup.id, setup.disk_uuid);
        let known = identity::read_or_make(&*disk, CLUSTER, id, || Ok(uuid));
        let started = known.map_err(|error| error.to_string()).and_then(|known| {
            setup.born = known.born;
            let started = start(setup, now).map_err(|error| error.to_string())?;
            let born = identity::mark_born(&*disk, CLUSTER, id, known);
            born.map(|()| started).map_err(|error| error.to_string())
        });
        if self.script.is_some() && self.scripted_fuse_burnt(node) {
            return;
        }
        let broken = self.hosts[node].medium.lock().is_broken();
        self.hosts[node].medium.lock().set_fuse(None);
        let hurt = self.hosts[node].medium.lock().hurt();
        let started = match started {
            _ if broken => {
                self.trace.line(format_args!("n{} dies while it starts", node + 1));
                self.count("crash at start");
                None
            }
            Ok(started) => Some(started),
            Err(error) if hurt.is_some() => {
                let hurt = hurt.expect("checked");
                self.trace.line(format_args!("n{} can't start ({hurt}): {error}", node + 1));
                self.count("start failed on a disk error");
                None
            }
            Err(error) if self.hosts[node].damaged => {
                self.trace.line(format_args!("n{} refuses to start: {error}", node + 1));
                self.count("damaged node refused to start");
                self.hosts[node].refused = true;
                self.hosts[node].out = Some(error);
                None
            }
            Err(error) => panic!("violated restart: node {} can't start again: {error}", node + 1),
        };
        let Some((core, raft_log)) = started else {
            let power = self.rng.chance(500);
            self.dies(node, power, 50_000);
            return;
        };
        self.ledger.has_started(node);
        self.hosts[node].damage_unseen = false;
        self.hosts[node].process = Some(Process {
            core,
            raft_log,
            started_us: self.now,
            inbox: VecDeque::new(),
            wake_at: None,
            tasks: Vec::new(),
            disk_busy: false,
            performer: Performer::default(),
            records: VecDeque::new(),
            raft_busy: false,
            jobs: BTreeMap::new(),
            job_rate: 0,
            conns: BTreeMap::new(),
        });
        self.look(node);
        for peer in 0..self.hosts.len() {
            if peer != node {
                let after = self.rng.delay(300, 20_000);
                self.at(after, Event::Dial { from: node, life, to: peer });
                // What they send to the process before is answered by a reset.
                let era = self.link(peer, node).era;
                let after = self.rng.delay(500, 60_000);
                self.at(after, Event::LinkReset { from: peer, to: node, era });
                // Its own connections ring the others' bells.
                let their_life = self.hosts[peer].life;
                let after = self.rng.delay(500, 30_000);
                self.at(after, Event::Dial { from: peer, life: their_life, to: node });
            }
        }
        self.wake_soon(node, 0);
    }

    /// The process ends here and now. `power`: the machine loses what was not synced.
    pub(super) fn dies(&mut self, node: usize, power: bool, down_us: u64) {
        self.count_death(node);
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

    /// In which phase of a pack, and as what.
    fn count_death(&mut self, node: usize) {
        let says = self.ledger.says(node).clone();
        self.ledger.has_died(node);
        let what = match says.phase.as_str() {
            "" => return,
            "mark" => "death in a pack: mark",
            "build" => "death in a pack: build",
            "verify" => "death in a pack: verify",
            "rechain" => "death in a pack: rechain",
            "ready" => "death in a pack: ready",
            "failed" => "death in a pack: failed",
            _ => "death in a pack: waiting",
        };
        self.count(what);
        if says.is_master {
            self.count("death in a pack: of the master");
        }
        if says.leads {
            self.count("death in a pack: of the Raft leader");
        }
    }

    pub(super) fn look(&mut self, node: usize) {
        let medium = self.hosts[node].medium.clone();
        self.ledger.look(node, &medium);
        for tip in self.ledger.take_left(node) {
            let conns = self.hosts[node].process.as_ref().map(|process| &process.conns);
            let is_open = |conn: u64| conns.is_some_and(|conns| conns.contains_key(&conn));
            // Without durability `local` nobody was shown what can be cut.
            if self.local_at.is_some() {
                self.book.left(node, tip, is_open);
            }
        }
    }

    /// What the nodes act by decides what an acknowledgement is worth.
    fn note_durability(&mut self) {
        let running = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let settings: Vec<Durability> = running.map(|process| process.core.durability()).collect();
        if settings.contains(&Durability::Local) {
            self.local_at = Some(self.now);
        }
        match settings.iter().all(|setting| *setting == Durability::All) {
            true => _ = self.all_since.get_or_insert(self.now),
            false => self.all_since = None,
        }
    }

    pub(super) fn put(&mut self, node: usize, input: Input) {
        if let Some(process) = &mut self.hosts[node].process {
            process.inbox.push_back(input);
            let after = self.rng.delay(5, 600);
            self.wake_soon(node, after);
        }
    }

    pub(super) fn wake_soon(&mut self, node: usize, after_us: u64) {
        let at = self.now + after_us;
        let life = self.hosts[node].life;
        let Some(process) = &mut self.hosts[node].process else { return };
        if process.wake_at.is_none_or(|known| known > at || known <= self.now) {
            process.wake_at = Some(at);
            self.at(after_us, Event::Wake { node, life });
        }
    }

    /// The run loop's round: everything that waits, then a tick if it is time, then what is to be done.
    pub(super) fn wake(&mut self, node: usize) {
        let now = self.now;
        let wall_us = self.hosts[node].wall_us(now);
        let started_us = self.process(node).started_us;
        let mono_us = 1 + self.hosts[node].mono_after(now - started_us);
        let trace = self.trace.clone();
        let process = self.hosts[node].process.as_mut().expect("checked");
        if process.wake_at != Some(now) {
            return;
        }
        process.wake_at = None;
        let at = Now { mono_us, wall_us };
        let mut out = Vec::new();
        while let Some(input) = process.inbox.pop_front() {
            if let Input::Admin { message, .. } = &input {
                self.askers.taken(message.id, process.core.seen(message));
            }
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
        let wait = process.core.deadline().saturating_sub(mono_us);
        let wait = self.hosts[node].until_mono(wait.min(2_000_000));
        self.wake_soon(node, wait.clamp(20, 1_000_000));
        self.note_durability();
        let life = self.hosts[node].life;
        for action in out {
            if self.hosts[node].life != life {
                break;
            }
            self.act(node, action);
        }
    }

    pub(super) fn act(&mut self, node: usize, action: Action) {
        let life = self.hosts[node].life;
        match action {
            Action::Send { to, message } => self.send(node, to.0 as usize - 1, message),
            Action::ClientSend { conn, bytes } => self.client_send(node, conn, bytes),
            // What clients send here is never so much.
            Action::ClientRead { .. } => {}
            Action::ClientDrain { conn } => {
                self.count("client that had to take its answers first");
                let after = self.rng.delay(30, 3000);
                self.at(after, Event::Drained { node, life, conn: conn.0 });
            }
            Action::ClientClose { conn, reason, .. } => {
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
                self.count(match reply.outcome() {
                    Outcome::Done => "an administrator's request done",
                    Outcome::Refused => "an administrator's request refused",
                    Outcome::Unknown => "an administrator told that it is not known",
                });
                if self.askers.on_reply(&reply) {
                    let read = self.ask(node, Verb::History(admin::History { number: 0 }));
                    self.askers.reads(read, reply.id);
                }
            }
            Action::Disk { task, work } => {
                self.trace.line(format_args!("n{} disk {task}: {}", node + 1, describe(&work)));
                self.process(node).tasks.push((task, work));
                self.disk_next(node);
            }
            Action::RaftPersist { number, record } => {
                self.note_commands(node, &record);
                self.process(node).records.push_back((number, record));
                self.raft_next(node);
            }
            Action::Job { job, work } => {
                self.process(node).jobs.insert(job, (work, Pace::default()));
                let after = self.rng.delay(100, 20_000);
                self.at(after, Event::JobStep { node, life, job });
            }
            Action::CancelJob { job } => {
                if let Some((work, _)) = self.process(node).jobs.remove(&job) {
                    let disk = self.hosts[node].disk.clone().expect("a disk");
                    work.abandon(&*disk);
                    self.look(node);
                }
            }
            Action::JobRate { bytes_per_s } => self.process(node).job_rate = bytes_per_s,
            Action::Exit { reason, failed } => {
                let hurt = self.hosts[node].medium.lock().hurt();
                assert!(
                    !failed || hurt.is_some(),
                    "violated: node {} gives up, and nothing hurt it: {reason}",
                    node + 1
                );
                if failed {
                    let hurt = hurt.expect("checked");
                    self.trace.line(format_args!("n{} dies of {hurt}: {reason}", node + 1));
                    self.count(match hurt {
                        "a failed sync" => "death of an fsync error",
                        "no space" => "death of a full disk",
                        _ => "death of another disk error",
                    });
                    let (power, down_us) =
                        (self.rng.chance(300), self.rng.between(10_000, 1_500_000));
                    return self.dies(node, power, down_us);
                }
                self.trace.line(format_args!("n{} exits: {reason}", node + 1));
                self.finish(node);
                let down_us = self.hosts[node].stop_down_us;
                self.dies(node, false, down_us);
            }
        }
    }

    /// An orderly end: what is queued for the disks is still done.
    pub(super) fn finish(&mut self, node: usize) {
        let Some(disk) = self.hosts[node].disk.clone() else { return };
        let process = self.process(node);
        let tasks = std::mem::take(&mut process.tasks);
        process.performer.perform(&*disk, tasks);
        let mut done = Vec::new();
        while let Some((_, record)) = process.records.pop_front() {
            if let Err(error) = process.raft_log.append(&record) {
                assert!(disk_hurt(&self.hosts[node]), "the Raft log takes a record: {error}");
                self.ledger.raft_log_lost(node);
                done.clear();
                break;
            }
            done.push(record);
        }
        done.iter().for_each(|record| self.ledger.on_raft_record(node, record));
        self.look(node);
    }

    /// Whoever has an entry first has proposed it: it leads Raft.
    pub(super) fn note_commands(&mut self, node: usize, record: &RaftRecord) {
        for entry in &record.entries {
            if !self.commands.insert((entry.term, entry.index)) {
                continue;
            }
            let Ok(command) = control::Command::decode(&entry.data[..]) else { continue };
            let what = match command.kind {
                Some(Command::Fence(fence)) => {
                    self.fences.push((self.now, fence.reason() == Reason::Promote));
                    match fence.reason() {
                        Reason::Promote => "election: promote",
                        Reason::MasterDead => "election: closed connections",
                        Reason::MasterSilent => "election: silence",
                        Reason::MasterRestarted => "election: the master restarted",
                        Reason::MasterFailing => "election: the master is failing",
                        Reason::GenerationSwitch => "election: generation switch",
                        Reason::NotOpened => "election: not opened",
                        Reason::HandOver => "election: hand over at a stop",
                        _ => "election: the first",
                    }
                }
                Some(Command::Elect(elect)) => {
                    self.ledger.on_elect(node, &elect);
                    self.elections.push((elect.epoch, elect.reported));
                    continue;
                }
                Some(Command::PackStart(start)) if start.asked_by.starts_with("automatic") => {
                    "pack started by itself"
                }
                Some(Command::PackStart(_)) => "pack started",
                Some(Command::Setting(_)) => "setting changed",
                Some(Command::PackSeal(_)) => "pack sealed",
                // That is the second wall; the first is that no such seal is agreed.
                Some(Command::PackCancel(cancel))
                    if cancel.why.contains("was not made by this master") =>
                {
                    panic!("violated SealOfItsPack: {}", cancel.why)
                }
                Some(Command::PackCancel(cancel)) => match cancel.asked_by.as_str() {
                    "automatic" => "pack cancelled by itself",
                    _ => "pack cancelled by request",
                },
                _ => continue,
            };
            self.count(what);
        }
    }
}

fn disk_hurt(host: &Host) -> bool {
    host.medium.lock().hurt().is_some()
}
