//! What has changed that a client was not told of yet.
//!
//! A commit must not cost a step for every session, so it is only noted once, in a log they share; each session has a
//! cursor into it. Where a session needs to know (a load, a sync), it reads the log from its cursor on into a set of its
//! own. The log is bounded: when it is full, everybody reads it to the end and it is emptied. What a pack
//! removed is one set, shared by all that were not told yet.
//!
//! A session's own commits are not news to it.
//!
//! A client that begins a commit is also told what this node has in its file and not committed yet: what it then
//! decides holds against that too (`ahead`). When those changes become visible they are no news to it, unless it gave
//! the commit up, and may have loaded the old state since.

use std::collections::VecDeque;
use std::sync::Arc;

use roaring::RoaringTreemap;

use crate::mutants::{self, Mutant};
use crate::types::{ConnId, Generation, Oid, Seq};

/// Oids and transactions in the shared log before it is read out and emptied.
const LOG_OIDS_MAX: usize = 1 << 18;
const LOG_TRANSACTIONS_MAX: usize = 1 << 16;

struct Change {
    seq: Seq,
    /// The session of this node whose commit it was.
    owner: Option<ConnId>,
    oids: Arc<[Oid]>,
}

/// Everything recent that became visible on this node.
pub(super) struct ChangeLog {
    changes: VecDeque<Change>,
    oids: usize,
    /// Newest transaction that is visible.
    last: Seq,
    /// Removals some session was not told of, oldest first.
    removals: VecDeque<(Generation, Arc<RoaringTreemap>)>,
    generation: Generation,
}

impl ChangeLog {
    pub fn new(applied: Seq, generation: Generation) -> ChangeLog {
        ChangeLog {
            changes: VecDeque::new(),
            oids: 0,
            last: applied,
            removals: VecDeque::new(),
            generation,
        }
    }

    pub fn last(&self) -> Seq {
        self.last
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Notes one transaction; `heard` is false if no session is there to be told.
    pub fn push(&mut self, seq: Seq, owner: Option<ConnId>, oids: &[Oid], heard: bool) {
        let last = self.last;
        assert!(seq == last.next(), "transaction {seq} became visible after {last}");
        self.last = seq;
        if heard && !oids.is_empty() && !mutants::broken(Mutant::InvalidationLost) {
            self.oids += oids.len();
            self.changes.push_back(Change { seq, owner, oids: oids.into() });
        }
    }

    pub fn is_full(&self) -> bool {
        self.oids >= LOG_OIDS_MAX || self.changes.len() >= LOG_TRANSACTIONS_MAX
    }

    /// Reads the whole log into every one of `readers`, then empties it.
    pub fn read_out<'a>(&mut self, readers: impl Iterator<Item = (ConnId, &'a mut Unseen)>) {
        let Some(first) = self.changes.front().map(|change| change.seq) else { return };
        let mut all = RoaringTreemap::new();
        for change in &self.changes {
            all.extend(change.oids.iter().map(|oid| oid.0));
        }
        for (conn, unseen) in readers {
            if unseen.cursor < first && unseen.own < first && unseen.ahead < first {
                unseen.oids |= &all;
                unseen.cursor = self.last;
            } else {
                unseen.read(conn, self);
            }
        }
        self.changes.clear();
        self.oids = 0;
    }

    /// Nobody is there to be told.
    pub fn forget(&mut self) {
        self.changes.clear();
        self.oids = 0;
    }

    /// Objects are at `to` without their changes having been seen one by one.
    pub fn jump(&mut self, to: Seq) {
        self.forget();
        self.last = to;
    }

    pub fn remove(&mut self, generation: Generation, oids: &RoaringTreemap) {
        let current = self.generation;
        assert!(generation > current, "generation {generation} after {current}");
        self.generation = generation;
        if !oids.is_empty() {
            self.removals.push_back((generation, Arc::new(oids.clone())));
        }
    }

    /// Everybody was told of the removals up to here.
    pub fn told(&mut self, generation: Generation) {
        while self.removals.front().is_some_and(|(number, _)| *number <= generation) {
            self.removals.pop_front();
        }
    }
}

/// One session's place.
pub(super) struct Unseen {
    /// The log was read up to here.
    cursor: Seq,
    /// The session's own newest commit.
    own: Seq,
    /// What was read from the log since the client was told.
    oids: RoaringTreemap,
    /// The client was told of the removals up to this generation.
    generation: Generation,
    /// Anything may have changed.
    all: bool,
    /// Changes up to here were told before they were visible; 0: none were.
    ahead: Seq,
}

impl Unseen {
    /// A new session, that knows nothing older than now.
    pub fn new(log: &ChangeLog) -> Unseen {
        Unseen {
            cursor: log.last,
            own: Seq(0),
            oids: RoaringTreemap::new(),
            generation: log.generation,
            all: false,
            ahead: Seq(0),
        }
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The client has read nothing yet, and what it will read is not older than `seq`.
    pub fn start_at(&mut self, seq: Seq) {
        self.cursor = self.cursor.max(seq);
        self.oids.clear();
        self.all = false;
    }

    /// The session's own commit was made visible.
    pub fn own_commit(&mut self, seq: Seq) {
        self.own = self.own.max(seq);
    }

    /// These are gone for this client, whatever the log says.
    pub fn add(&mut self, oids: &[Oid]) {
        self.oids.extend(oids.iter().map(|oid| oid.0));
    }

    /// The log has a gap: whatever the client knows may be out of date.
    pub fn jumped(&mut self, to: Seq) {
        self.all = true;
        self.cursor = to;
        self.ahead = Seq(0);
    }

    /// The client was told of changes up to `seq`, not all of which are visible yet.
    pub fn told_ahead(&mut self, seq: Seq) {
        self.ahead = seq;
    }

    /// This node's file was cut back to `seq`: what comes after it will be something else.
    pub fn truncated(&mut self, seq: Seq) {
        self.ahead = self.ahead.min(seq);
    }

    /// The commit came to nothing: what becomes visible from now on is news again.
    pub fn forget_ahead(&mut self, conn: ConnId, log: &ChangeLog) {
        self.read(conn, log);
        self.ahead = Seq(0);
    }

    fn read(&mut self, conn: ConnId, log: &ChangeLog) {
        let from = log.changes.partition_point(|change| change.seq <= self.cursor);
        for change in log.changes.range(from..) {
            if change.owner != Some(conn) && change.seq > self.ahead {
                self.oids.extend(change.oids.iter().map(|oid| oid.0));
            }
        }
        // A session that starts at a seq not visible yet has its cursor ahead of the log.
        self.cursor = self.cursor.max(log.last);
    }

    pub fn contains(&mut self, conn: ConnId, oid: Oid, log: &ChangeLog) -> bool {
        self.read(conn, log);
        self.all
            || self.oids.contains(oid.0)
            || self.removals(log).any(|removed| removed.contains(oid.0))
    }

    fn removals<'a>(
        &self,
        log: &'a ChangeLog,
    ) -> impl Iterator<Item = &'a RoaringTreemap> + use<'a> {
        let told = self.generation;
        log.removals.iter().filter(move |(number, _)| *number > told).map(|(_, oids)| &**oids)
    }

    /// What the client is to be told now; after this it knows everything up to the log's end. `touched`: all it
    /// can have in its cache.
    pub fn tell(
        &mut self,
        conn: ConnId,
        log: &ChangeLog,
        touched: &RoaringTreemap,
    ) -> RoaringTreemap {
        self.read(conn, log);
        for removed in self.removals(log) {
            self.oids |= removed;
        }
        if self.all {
            self.oids |= touched;
        }
        self.all = false;
        self.ahead = Seq(0);
        self.generation = log.generation;
        std::mem::take(&mut self.oids)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What stock Durus keeps: a set for everybody, added to at every commit.
    #[derive(Default, Clone)]
    struct Naive {
        invalid: BTreeSet<u64>,
    }

    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % n
        }
    }

    #[test]
    fn the_shared_log_says_what_a_set_for_everybody_would() {
        for seed in 0..200 {
            let mut random = Lcg(seed);
            let mut log = ChangeLog::new(Seq(5), Generation(1));
            let mut naive = vec![Naive::default(); 4];
            let mut real: Vec<Unseen> = (0..4).map(|_| Unseen::new(&log)).collect();
            let conn = |n: usize| ConnId(n as u64);
            for _ in 0..400 {
                let who = random.below(4) as usize;
                let oids: Vec<u64> = (0..random.below(4)).map(|_| random.below(30)).collect();
                match random.below(12) {
                    0..5 => {
                        let own = random.below(2) == 0;
                        let seq = log.last().next();
                        let oid_list: Vec<Oid> = oids.iter().map(|oid| Oid(*oid)).collect();
                        log.push(seq, own.then_some(conn(who)), &oid_list, true);
                        if own {
                            real[who].own_commit(seq);
                        }
                        let others = naive.iter_mut().enumerate();
                        for (_, naive) in others.filter(|(n, _)| !own || *n != who) {
                            naive.invalid.extend(&oids);
                        }
                    }
                    5 => {
                        let generation = log.generation().next();
                        log.remove(generation, &oids.iter().copied().collect());
                        naive.iter_mut().for_each(|naive| naive.invalid.extend(&oids));
                    }
                    6 => log.read_out(real.iter_mut().enumerate().map(|(n, r)| (conn(n), r))),
                    7 => {
                        let told = real.iter().map(Unseen::generation).min().unwrap();
                        log.told(told);
                    }
                    8 => {
                        let told = real[who].tell(conn(who), &log, &RoaringTreemap::new());
                        let expected = std::mem::take(&mut naive[who].invalid);
                        assert!(told.iter().eq(expected), "seed {seed}");
                    }
                    _ => {
                        let oid = random.below(30);
                        let invalid = real[who].contains(conn(who), Oid(oid), &log);
                        assert_eq!(invalid, naive[who].invalid.contains(&oid), "seed {seed}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_log_is_read_out_to_everybody_and_emptied() {
        let mut log = ChangeLog::new(Seq(0), Generation(1));
        let mut idle = Unseen::new(&log);
        let mut starting = Unseen::new(&log);
        starting.start_at(Seq(10));
        let oids: Vec<Oid> = (0..LOG_OIDS_MAX as u64 / 4).map(Oid).collect();
        for seq in 1..=4 {
            assert!(!log.is_full());
            log.push(Seq(seq), None, &oids, true);
        }
        assert!(log.is_full());
        let readers = [(ConnId(1), &mut idle), (ConnId(2), &mut starting)];
        log.read_out(readers.into_iter());
        assert!(!log.is_full() && log.changes.is_empty());
        assert!(idle.contains(ConnId(1), oids[7], &log));
        // What it will read is not older than 10.
        for seq in 5..=10 {
            log.push(Seq(seq), None, &oids[..9], true);
        }
        assert!(!starting.contains(ConnId(2), oids[7], &log));
        log.push(Seq(11), None, &oids[..1], true);
        assert!(starting.contains(ConnId(2), oids[0], &log));
    }
}
