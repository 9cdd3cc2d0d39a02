//! A long period of narrow lines, once everything is mended.
//!
//! A client stores so much that sending it takes longer than several elections. The master has it on its disk, then dies and
//! is started again at once, with just a majority of the nodes up: nobody else can be elected, and it can't open before a
//! slave has all of it. It must open in about the time that the bytes take, however often it is restarted meanwhile, and
//! no election must come of the waiting alone.

use super::World;
use crate::sim::client::Client;

/// Bytes a second that a lane carries.
const BYTES_PER_S: u64 = 12_000;
/// How long the large commit takes on such a line.
const TAKES_US: u64 = 9_000_000;
/// What else may take time: detection, elections, probes, and what the line carries besides.
const BESIDES_US: u64 = 6_000_000;
/// Between two restarts of the master: more than an election takes, less than the commit does.
const RESTART_US: u64 = 2_500_000;
/// How long one restart may delay it.
const RESTART_COSTS_US: u64 = 1_500_000;
const RESTARTS_MAX: u64 = 16;
/// Elections that may happen where nobody is restarted: the master's own, and one more for whatever comes with it.
const ELECTIONS_MAX: usize = 3;
/// Until there is an open master, and until it has the commit on its disk.
const BEGINS_WITHIN_US: u64 = 20_000_000;

impl World {
    pub(super) fn siege(&mut self) {
        let nodes = self.hosts.len();
        if nodes < 3 {
            return;
        }
        self.clients.iter_mut().for_each(|client| client.quiet = true);
        let end = self.now + BEGINS_WITHIN_US;
        let ready = |world: &mut World| {
            world.open_master().is_some()
                && world.is_equal()
                && world.clients.iter().all(|client| client.connection.is_none())
        };
        // Every node is needed: one that has lost something is not counted by elections until it has all of it again, and a
        // damaged one may find only when it starts that it can't take part.
        let counts = |world: &World, node| world.takes_part(node) && world.ledger.says(node).counts;
        let all = |world: &World| (0..nodes).all(|node| counts(world, node));
        if !self.until(end, ready) || !all(self) {
            return;
        }
        let master = self.open_master().expect("just seen");
        let bytes = BYTES_PER_S * TAKES_US / 1_000_000;
        let before = self.durable_bytes(master);
        (self.narrow, self.besieged) = (Some(BYTES_PER_S), true);
        let mut client = Client::new(2000);
        client.probing = Some(master);
        client.large = bytes as usize;
        self.clients.push(client);
        let number = self.clients.len() - 1;
        self.turn(number, 1000);
        let end = self.now + BEGINS_WITHIN_US;
        let stored = |world: &mut World| {
            world.durable_bytes(master) >= before + bytes
                || world.open_master().is_some_and(|open| open != master)
        };
        let stored = self.until(end, stored) && self.open_master() == Some(master);
        self.clients[number].quiet = true;
        if stored {
            self.restart_under_siege(master);
        }
        self.besieged = false;
        self.widen();
    }

    fn restart_under_siege(&mut self, master: usize) {
        let nodes = self.hosts.len();
        let others: Vec<usize> = (0..nodes).filter(|node| *node != master).collect();
        for node in &others[..(nodes - 1) / 2] {
            self.dies(*node, false, 1 << 40);
        }
        let often = self.rng.chance(500);
        self.trace.line(format_args!("SIEGE of n{}, often {often}", master + 1));
        let began = self.now;
        let elections_before = self.fences.len();
        let mut restarts = 0;
        loop {
            self.dies(master, false, 20_000);
            restarts += 1;
            let within = if often { RESTART_US } else { TAKES_US + BESIDES_US };
            let end = self.now + within;
            // What it said last, it said before.
            if self.until(end, |world| world.open_master() == Some(master)) {
                break;
            }
            assert!(
                often && restarts < RESTARTS_MAX,
                "violated OpensInTimeOfBytes: {restarts} times restarted, n{} has not opened {} ms after the first; \
                 what it has to send takes {} ms;{}",
                master + 1,
                (self.now - began) / 1000,
                TAKES_US / 1000,
                self.ledger.describe()
            );
        }
        let took_us = self.now - began;
        let allowed_us = TAKES_US + BESIDES_US + restarts * RESTART_COSTS_US;
        let elections = self.fences.len() - elections_before;
        self.trace.line(format_args!(
            "opened after {} ms, {restarts} restarts, {elections} elections",
            took_us / 1000
        ));
        assert!(
            took_us <= allowed_us,
            "violated OpensInTimeOfBytes: n{} opened after {} ms and {restarts} restarts; {} ms are allowed",
            master + 1,
            took_us / 1000,
            allowed_us / 1000
        );
        assert!(
            elections <= ELECTIONS_MAX * restarts as usize,
            "violated ProgressIsPatience: {elections} elections while n{} was sending, with {restarts} restarts",
            master + 1
        );
        self.count("opened by what narrow lines carry");
    }

    /// By its last beat.
    fn open_master(&self) -> Option<usize> {
        (0..self.hosts.len())
            .find(|node| self.hosts[*node].process.is_some() && self.ledger.says(*node).is_master)
    }

    fn durable_bytes(&self, node: usize) -> u64 {
        let platter = self.hosts[node].medium.lock();
        platter.durable_file("current.durus").map_or(0, |inode| inode.durable().len() as u64)
    }
}
