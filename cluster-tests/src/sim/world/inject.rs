//! Faults, done.

use packmaster::node::core::Input;
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminRequest, ConfigSet, Pack, PackVerb, Promote, SetPause};

use super::{Event, Late, World};
use crate::sim::disk::{Gone, Part, Room};
use crate::sim::faults::Fault;
use crate::sim::ledger::Fate;

/// Whoever puts an old image or a new disk in does so while the cluster is well, and watches it for so long. That
/// is the assumption under which such a node can be known: somebody who remembers it is there to be heard.
const WATCHED_US: u64 = 3_000_000;

impl World {
    pub(super) fn next_fault(&mut self) {
        if self.mending {
            return;
        }
        let (wait, fault) =
            self.schedule.next(&mut self.rng, self.hosts.len(), self.options.clients);
        self.at(wait, Event::Fault);
        let Some(fault) = fault.filter(|_| self.now >= self.calm_until) else { return };
        if self.inject(&fault) {
            World::add(&mut self.faults, fault.name(), 1);
        }
    }

    /// False if it makes no sense now.
    fn inject(&mut self, fault: &Fault) -> bool {
        let node = match *fault {
            Fault::Crash { node, .. }
            | Fault::CrashInDisk { node, .. }
            | Fault::Stall { node, .. }
            | Fault::Stop { node, .. }
            | Fault::DiskError { node, .. } => node,
            Fault::Rot { .. }
            | Fault::AstrayWrite { .. }
            | Fault::Lose { .. }
            | Fault::Image { .. }
            | Fault::Rollback { .. }
            | Fault::Replace { .. } => return self.damage(fault),
            _ => return self.inject_anywhere(fault),
        };
        if self.hosts[node].process.is_none() {
            return false;
        }
        self.trace.line(format_args!("FAULT {fault:?}"));
        match *fault {
            Fault::Crash { power, down_us, .. } => self.dies(node, power, down_us),
            Fault::CrashInDisk { changes, power, down_us, .. } => {
                self.hosts[node].doom = Some((changes, power, down_us));
            }
            Fault::Stall { us, .. } => {
                if !self.hosts[node].stalled {
                    self.hosts[node].stalled = true;
                    self.at(us, Event::Resume { node });
                }
            }
            Fault::Stop { down_us, .. } => self.stop(node, down_us),
            Fault::DiskError { error, after, .. } => {
                self.hosts[node].medium.lock().arm(error, after);
            }
            _ => unreachable!("sorted above"),
        }
        true
    }

    fn inject_anywhere(&mut self, fault: &Fault) -> bool {
        self.trace.line(format_args!("FAULT {fault:?}"));
        if self.ledger.is_packing() {
            match fault {
                Fault::CrashAll { .. } => self.count("all die in a pack"),
                Fault::Cut { .. } => self.count("partition in a pack"),
                Fault::SlowDisk { .. } => self.count("slow disk in a pack"),
                Fault::DiskFull { .. } => self.count("full disk in a pack"),
                Fault::Promote { .. } => self.count("promote in a pack"),
                Fault::Pack { .. } => self.count("second pack asked for"),
                _ => {}
            }
        }
        match *fault {
            Fault::CrashAll { power } => {
                for node in 0..self.hosts.len() {
                    if self.hosts[node].process.is_some() {
                        let down_us = self.rng.between(1000, 500_000);
                        self.dies(node, power, down_us);
                    }
                }
            }
            Fault::StopAll { down_us } => {
                for node in 0..self.hosts.len() {
                    if self.hosts[node].process.is_some() {
                        self.stop(node, down_us);
                    }
                }
            }
            Fault::Cut { ref ways, us } => ways.iter().for_each(|way| self.cut(*way, us)),
            Fault::Lossy { permille, twice_permille, us } => {
                (self.loss_permille, self.twice_permille) = (permille, twice_permille);
                self.at(us, Event::NoLoss);
            }
            Fault::Laggy { us_max, us } => {
                self.lag_us = us_max;
                self.at(us, Event::NoLag);
            }
            Fault::Late { permille, twice_permille, us_max, us } => {
                self.late = Late { permille, twice_permille, us_max };
                self.at(us, Event::NoLate);
            }
            Fault::Narrow { bytes_per_s, large, us } => {
                self.narrow = Some(bytes_per_s);
                if let Some((client, bytes)) = large {
                    self.clients[client].large = bytes as usize;
                }
                self.at(us, Event::Wide);
            }
            Fault::SlowDisk { node, factor, us } => {
                self.hosts[node].slow = factor;
                self.at(us, Event::FastDisk { node });
            }
            Fault::DiskFull { node, nearly_us, us } => {
                self.hosts[node].medium.lock().set_room(Room::Little);
                self.at(nearly_us, Event::NoRoom { node });
                self.at(nearly_us + us, Event::RoomAgain { node });
            }
            Fault::ClockJump { node, us } => self.hosts[node].skew_us += us,
            Fault::Promote { to, by } => {
                let promote = Promote {
                    node: format!("n{}", to + 1),
                    force: self.rng.chance(200),
                    ..Promote::default()
                };
                self.ask(by, Verb::Promote(promote));
            }
            Fault::Pack { by } => {
                self.ask(by, Verb::Pack(Pack { verb: PackVerb::Start.into() }));
            }
            Fault::PackCancel { by } => {
                self.ask(by, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
            }
            Fault::PackAgain { by, cancel_us, again_us } => {
                let pack = |verb: PackVerb| Verb::Pack(Pack { verb: verb.into() });
                self.ask(by, pack(PackVerb::Start));
                self.at(cancel_us, Event::Ask { by, verb: pack(PackVerb::Cancel) });
                let again = Event::Ask { by, verb: pack(PackVerb::Start) };
                self.at(cancel_us + again_us, again);
            }
            Fault::Setting { by, ref settings } => {
                for (name, value) in settings {
                    let set = ConfigSet { name: name.to_string(), value: value.clone() };
                    self.ask(by, Verb::ConfigSet(set));
                }
            }
            Fault::WrongBuild { node, builds } => {
                // Two of them might agree on what is wrong, the second also when the first's build is long done.
                let alone = self.wrong_builder.is_none_or(|first| first == node);
                if self.hosts.len() == 1 || !alone {
                    return false;
                }
                self.wrong_builder = Some(node);
                self.hosts[node].medium.lock().spoil_builds(builds);
            }
            Fault::Forge { node, messages } => {
                if self.hosts.len() == 1 {
                    return false;
                }
                self.hosts[node].forge = messages;
            }
            Fault::Hold { by, us } => {
                self.ask(by, Verb::SetPause(SetPause { paused: true }));
                self.at(us, Event::Unhold { by });
            }
            Fault::KillClient { client } => {
                if self.clients[client].connection.is_some() {
                    self.hang_up(client);
                }
            }
            _ => unreachable!("sorted above"),
        }
        true
    }

    fn stop(&mut self, node: usize, down_us: u64) {
        self.hosts[node].stop_down_us = down_us;
        self.put(node, Input::Stop);
    }

    /// What is done to disks that may be damaged.
    fn damage(&mut self, fault: &Fault) -> bool {
        let (Fault::Rot { node, .. }
        | Fault::AstrayWrite { node, .. }
        | Fault::Lose { node, .. }
        | Fault::Image { node }
        | Fault::Rollback { node }
        | Fault::Replace { node }) = *fault
        else {
            unreachable!("sorted above")
        };
        // Before the first election all disks are needed, and one that is out can't get worse.
        if !self.ledger.has_begun() || self.hosts[node].out.is_some() {
            return false;
        }
        if let Fault::Image { .. } = fault {
            let image = self.hosts[node].medium.lock().image();
            self.hosts[node].image_seq = self.ledger.last_seq(node);
            self.hosts[node].image_whole =
                !self.hosts[node].damage_unseen && !image.is_recovering();
            self.hosts[node].image = Some(image);
            return true;
        }
        if let Fault::Rollback { .. } | Fault::Replace { .. } = fault {
            return self.swap_disk(node, fault);
        }
        // Twice at once and unseen, in the last transactions, can look like a torn tail, which a node must cut off (seeds
        // 8075180, 8103175).
        let in_a_file = match fault {
            Fault::Rot { part, .. } => !matches!(part, Part::Promise | Part::RaftLog),
            Fault::Lose { what, .. } => matches!(what, Gone::Link | Gone::Data),
            _ => true,
        };
        if in_a_file && self.hosts[node].damage_unseen {
            return false;
        }
        self.trace.line(format_args!("FAULT {fault:?}"));
        let down_us = match *fault {
            Fault::Rot { down_us, .. }
            | Fault::AstrayWrite { down_us, .. }
            | Fault::Lose { down_us, .. } => down_us,
            _ => unreachable!("sorted above"),
        };
        let medium = self.hosts[node].medium.clone();
        match self.hosts[node].process {
            Some(_) => self.dies(node, true, down_us),
            // What a killed process had not synced must not mend later what is damaged now.
            None => {
                medium.lock().power_fails(&mut self.rng, self.loss);
            }
        }
        if let Fault::Lose { what, .. } = *fault {
            return self.lose(node, what, in_a_file);
        }
        self.ledger.disk_damaged(node, Fate::Damaged);
        let what = match *fault {
            Fault::Rot { part, .. } => medium.lock().rot(part, &mut self.rng),
            _ => medium.lock().astray_write(&mut self.rng),
        };
        let Some(what) = what else { return false };
        self.hosts[node].damaged = true;
        self.hosts[node].damage_unseen |= in_a_file;
        self.trace.line(format_args!("n{}: damaged: {what}", node + 1));
        self.look(node);
        true
    }

    /// Files are gone. Without its memory the node is not to take part any more, and has to know that by itself.
    fn lose(&mut self, node: usize, what: Gone, in_a_file: bool) -> bool {
        if !self.hosts[node].medium.lock().vanish(what) {
            return false;
        }
        match what.is_memory() {
            true => {
                self.ledger.disk_damaged(node, Fate::Forgotten);
                self.hosts[node].out = Some(format!("its disk has lost its {what:?}"));
            }
            false => self.ledger.disk_damaged(node, Fate::Damaged),
        }
        if let Gone::RaftLog = what {
            self.ledger.raft_log_lost(node);
        }
        self.hosts[node].damaged = true;
        self.hosts[node].damage_unseen |= in_a_file;
        self.look(node);
        true
    }

    /// An older image, or an empty disk. The node is not to take part any more.
    fn swap_disk(&mut self, node: usize, fault: &Fault) -> bool {
        let image = self.hosts[node].image.take();
        if let Fault::Rollback { .. } = fault {
            let Some(image) = &image else { return false };
            // The image must be older than something that can be known.
            let promised = image.promise();
            let forgotten = self.elections.iter().any(|(epoch, reported)| {
                *epoch > promised
                    && reported.contains(&(node as u64 + 1))
                    && self.ledger.has_master(*epoch)
            });
            // A node whose file is damaged knows that it lacks something, and counts for nothing until it has everything
            // again, with what others have heard of it. It is not taken for one that has forgotten.
            let (seq, whole) = (self.hosts[node].image_seq, self.hosts[node].image_whole);
            let lacks = whole && self.is_known_to_lack(node, promised, seq);
            if !(forgotten || lacks) {
                return false;
            }
        }
        self.trace.line(format_args!("FAULT {fault:?}"));
        self.calm();
        if self.hosts[node].process.is_some() {
            self.dies(node, true, WATCHED_US / 2);
        }
        match (fault, image) {
            (Fault::Rollback { .. }, Some(image)) => {
                self.ledger.disk_damaged(node, Fate::RolledBack);
                self.hosts[node].medium.lock().restore(&image);
                self.ledger.raft_log_lost(node);
                self.hosts[node].out = Some("its disk is an older image".into());
            }
            _ => {
                self.ledger.disk_damaged(node, Fate::Replaced);
                self.hosts[node].medium.lock().wipe();
                self.ledger.raft_log_lost(node);
                self.hosts[node].disk_uuid[1] ^= 0x55;
                self.hosts[node].out = Some("it has another disk".into());
            }
        }
        self.hosts[node].damaged = true;
        self.look(node);
        true
    }

    /// Has this node acknowledged more than `seq` to the master of `epoch`, who goes on, and who has heard it?
    fn is_known_to_lack(&self, node: usize, epoch: u64, seq: u64) -> bool {
        let heard = self.ledger.heard_acks(node, epoch).is_some_and(|acked| acked > seq);
        // A process that has ended has forgotten what it heard.
        let remembers = |master: usize| master != node && self.hosts[master].process.is_some();
        heard && self.ledger.master().is_some_and(remembers)
    }

    /// The others are well, and stay so for a while.
    fn calm(&mut self) {
        self.calm_until = self.now + 2 * WATCHED_US;
        self.make_well();
    }

    pub(super) fn resume(&mut self, node: usize) {
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

    /// The request's number.
    pub(super) fn ask(&mut self, by: usize, verb: Verb) -> u64 {
        let (request, asked_by) = self.askers.ask(&verb);
        let message = AdminRequest { id: request, asked_by, verb: Some(verb) };
        self.put(by, Input::Admin { request, message });
        request
    }
}
