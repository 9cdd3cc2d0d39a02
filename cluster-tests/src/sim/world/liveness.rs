//! The end of a run: everything is mended, every node's client must be able to commit, then all is still and equal.

use std::collections::BTreeSet;

use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{History, Pack, PackVerb};

use super::{Event, Late, World};
use crate::sim::client::Client;
use crate::sim::disk::Medium;
use crate::sim::parse;

/// Once everything is mended: until a client on every node has committed.
const COMMIT_WITHIN_US: u64 = 20_000_000;
/// A node that must fetch the whole file does so block by block, and the simulator's blocks are of some dozens of bytes:
/// where the file has grown to many thousands of them, its client waits for these (soak, seed 8035200).
const BLOCK_WITHIN_US: u64 = 2000;
/// And from then on until all is still and equal. A pack may wait 10 s for a straggler.
const REST_WITHIN_US: u64 = 60_000_000;

/// In so many of a thousand runs a pack is asked for at the end, and must be done within this time. A pack may wait 10 s for a
/// straggler, and one that was called off by an election a second for the next.
const LAST_PACK_PERMILLE: u64 = 250;
const PACK_WITHIN_US: u64 = 60_000_000;
/// Every node has applied what was ever said to be done.
const TOLD_WITHIN_US: u64 = 10_000_000;
/// All of them: what a bad disk or memory does once it may do always.
const BUILDS_SPOILT: u32 = u32::MAX;
/// What a node says whose base was outvoted.
const OUTVOTED: &str = "pack: this node's base was outvoted";

impl World {
    pub(super) fn mend(&mut self) {
        self.trace.line(format_args!("everything is mended;{}", self.ledger.describe()));
        self.mending = true;
        self.make_well();
        // Whoever comes up must be able to hear it.
        for by in 0..self.hosts.len() {
            // Who is refused, since there is no Raft leader yet, asks again.
            for after_us in [500_000, 2_500_000, 6_000_000] {
                self.at(after_us, Event::Unhold { by });
                self.at(after_us + 100_000, Event::Unlimit { by });
            }
        }
    }

    /// Every node runs, every line is open.
    pub(super) fn make_well(&mut self) {
        self.loss_permille = 0;
        self.twice_permille = 0;
        self.lag_us = 0;
        self.late = Late::default();
        self.widen();
        for node in 0..self.hosts.len() {
            self.hosts[node].slow = 1;
            self.hosts[node].doom = None;
            self.hosts[node].forge = 0;
            self.hosts[node].medium.lock().disarm();
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
    }

    pub(super) fn check_liveness(&mut self) {
        for client in &mut self.clients {
            client.quiet = true;
            client.packs = false;
        }
        let first = self.clients.len();
        for node in 0..self.hosts.len() {
            if self.takes_part(node) {
                let mut client = Client::new(1000 + node as u64);
                client.probing = Some(node);
                self.clients.push(client);
                self.turn(self.clients.len() - 1, 1000);
            }
        }
        let within = COMMIT_WITHIN_US.max(self.blocks() * BLOCK_WITHIN_US);
        let end = self.now + within;
        let committed = |world: &mut World| {
            world.clients[first..].iter().all(|client| {
                // A damaged node may find only now that it can't go on.
                let home = client.probing.expect("they probe");
                client.commits_here >= 2 || !world.takes_part(home)
            })
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
                within / 1_000_000,
                self.ledger.describe()
            );
        }
        let waited_ms = (self.now + within - end) / 1000;
        self.trace.line(format_args!("every node's client has committed after {waited_ms} ms"));
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

    /// A healthy cluster's pack comes to its end, also if one of the nodes, the first that builds perhaps, gets wrong bytes
    /// out of its disk or memory: two others outvote it.
    pub(super) fn last_pack(&mut self) {
        let all_well = self.hosts.iter().all(|host| !host.damaged && host.out.is_none());
        if !all_well || self.script.is_some() || !self.rng.chance(LAST_PACK_PERMILLE) {
            return;
        }
        let nodes = self.hosts.len();
        let any = self.rng.index(nodes);
        let spoilt = self.wrong_builder.unwrap_or(any);
        if nodes > 1 {
            self.hosts[spoilt].medium.lock().spoil_builds(BUILDS_SPOILT);
        }
        let generations = |world: &World| -> Vec<u64> {
            let of = |node| world.ledger.current(node).map_or(0, |(generation, _)| generation);
            (0..nodes).map(of).collect()
        };
        let before = generations(self).into_iter().max().unwrap_or(0);
        let outvoted = self.trace.said(OUTVOTED);
        self.trace.line(format_args!("the last pack; n{} builds wrong", spoilt + 1));
        // The odd node fetches the base in the simulator's small blocks.
        let within = PACK_WITHIN_US + self.blocks() * BLOCK_WITHIN_US;
        let end = self.now + within;
        let mut ask_at = self.now;
        let done = |world: &mut World| {
            if world.now >= ask_at {
                // It may be refused while another pack is under way.
                ask_at = world.now + 3_000_000;
                world.ask(any, Verb::Pack(Pack { verb: PackVerb::Start.into() }));
            }
            generations(world).into_iter().all(|generation| generation > before) && world.is_equal()
        };
        if !self.until(end, done) {
            panic!(
                "violated PackSucceeds: {} s after it was asked for no pack is done, with one node that builds wrong \
                 bytes (n{}); generations {:?};{}",
                within / 1_000_000,
                spoilt + 1,
                generations(self),
                self.ledger.describe()
            );
        }
        self.hosts[spoilt].medium.lock().spoil_builds(0);
        if self.trace.said(OUTVOTED) > outvoted {
            self.count("last pack's wrong base outvoted");
        }
    }

    /// What an administrator was told is done, every node's history shows in the end.
    pub(super) fn check_told(&mut self) {
        let nodes: Vec<usize> = (0..self.hosts.len())
            .filter(|node| self.takes_part(*node) && self.hosts[*node].process.is_some())
            .collect();
        for node in nodes {
            let (mut read, mut ask_at) = (0, self.now);
            let shows_all = |world: &mut World| {
                let done = world.askers.lacks(read).is_some_and(|lacks| lacks.is_empty());
                if !done && world.now >= ask_at && world.hosts[node].process.is_some() {
                    ask_at = world.now + 200_000;
                    read = world.ask(node, Verb::History(History { number: 0 }));
                    world.askers.reads_all(read);
                }
                done
            };
            let end = self.now + TOLD_WITHIN_US;
            if !self.until(end, shows_all) {
                panic!(
                    "violated ToldTheTruth: the history of node {} does not show what was said to be done: {:?} \
                     (None: it does not answer)",
                    node + 1,
                    self.askers.lacks(read)
                );
            }
        }
    }

    /// Of the longest current file.
    fn blocks(&self) -> u64 {
        let len = |medium: &Medium| {
            let platter = medium.lock();
            platter.durable_file("current.durus").map_or(0, |inode| inode.durable().len())
        };
        let longest = self.hosts.iter().map(|host| len(&host.medium)).max().unwrap_or(0);
        longest as u64 / self.block_bytes
    }

    pub(super) fn is_equal(&mut self) -> bool {
        let mut contents = BTreeSet::new();
        for host in self.hosts.iter().filter(|host| host.out.is_none()) {
            let platter = host.medium.lock();
            let Some(inode) = platter.durable_file("current.durus") else { return false };
            contents.insert(parse::sha(&[inode.durable()]));
        }
        contents.len() == 1
    }
}
