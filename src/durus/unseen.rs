//! What has changed that a client was not told of yet.
//!
//! A commit must not cost a step for every session, so it is only noted once, in a log they share; each session has a
//! cursor into it. Where a session needs to know (a load, a sync), it reads the log from its cursor on into a set of its
//! own. The log is bounded: when it is full, the sessions are brought forward to what is its end then, a few at every
//! commit, so that nobody waits for all of it; and when all of them are there, that much of the log is dropped. What a pack
//! removed is one set, shared by all that were not told yet.
//!
//! For a client that is idle, meanwhile any number of objects may change. Beyond a bound only those are kept that it may have
//! in its cache: of the others it need not be told, and a load of one is answered as invalid until it was told. What is
//! dropped so is in one set for all of them.
//!
//! A session's own commits are not news to it.
//!
//! A client that begins a commit is also told what this node has in its file and not committed yet: what it then
//! decides holds against that too (`ahead`). When those changes become visible they are no news to it, unless it gave
//! the commit up, and may have loaded the old state since.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use roaring::RoaringTreemap;

use super::wire;
use crate::mutants::{self, Mutant};
use crate::types::{ConnId, Generation, Oid, Seq};

/// Oids and transactions in the shared log before the sessions are brought forward. Meanwhile there may come half as much
/// again; and one transaction more, of any size.
const LOG_OIDS_MAX: usize = 1 << 14;
const LOG_TRANSACTIONS_MAX: usize = 1 << 12;
/// What a transaction counts for, in oids, beside its own.
const TRANSACTION_OIDS: usize = LOG_OIDS_MAX / LOG_TRANSACTIONS_MAX;

/// Of what an idle client was not told, with all that it can't have in its cache: some 16,000 oids, if they are far apart.
pub(super) const IDLE_BYTES_MAX: u64 = 32 << 10;

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
    round: Option<Round>,
    /// All that was dropped of what idle sessions were not told, since there was none of which something was.
    dropped: RoaringTreemap,
    /// Some session was not told of them; oldest first.
    removals: VecDeque<Arc<Removal>>,
    generation: Generation,
}

/// What a pack removed. Every session is told all of it, which may be megabytes: all of them send the same.
pub(super) struct Removal {
    generation: Generation,
    pub oids: RoaringTreemap,
    list: OnceLock<Bytes>,
}

impl Removal {
    /// As it goes over the wire.
    pub fn list(&self) -> Bytes {
        self.list.get_or_init(|| wire::oid_list(&self.oids)).clone()
    }
}

/// What a client is told: no oid is in both.
pub(super) struct Told {
    pub oids: RoaringTreemap,
    pub removal: Option<Arc<Removal>>,
}

impl Told {
    fn new(oids: RoaringTreemap, removal: Option<Arc<Removal>>) -> Told {
        let mut told = Told { oids: RoaringTreemap::new(), removal };
        told.add(&oids);
        told
    }

    pub fn add(&mut self, oids: &RoaringTreemap) {
        self.oids |= oids;
        if let Some(removal) = &self.removal {
            self.oids -= &removal.oids;
        }
    }
}

/// One session after the other is brought forward.
struct Round {
    /// The changes that are read.
    first: Seq,
    upto: Seq,
    oids: RoaringTreemap,
    /// The last one that was brought forward; they take turns in this order.
    after: Option<ConnId>,
    /// What has been pushed since and not yet been made up for, in oids times sessions.
    due: usize,
    /// Some session is not told of all that was dropped.
    dropped: bool,
}

impl ChangeLog {
    pub fn new(applied: Seq, generation: Generation) -> ChangeLog {
        ChangeLog {
            changes: VecDeque::new(),
            oids: 0,
            last: applied,
            round: None,
            dropped: RoaringTreemap::new(),
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

    /// After a push of so many oids: how many of the sessions there are have to be brought forward now, and after which.
    pub fn turns(&mut self, oids: usize, sessions: usize) -> (usize, Option<ConnId>) {
        if self.round.is_none() && self.is_full() {
            self.begin_round();
        }
        let Some(round) = &mut self.round else { return (0, None) };
        round.due += (TRANSACTION_OIDS + oids) * sessions;
        let turns = round.due / (LOG_OIDS_MAX / 2);
        round.due %= LOG_OIDS_MAX / 2;
        (turns, round.after)
    }

    fn is_full(&self) -> bool {
        self.oids >= LOG_OIDS_MAX || self.changes.len() >= LOG_TRANSACTIONS_MAX
    }

    fn begin_round(&mut self) {
        let Some(first) = self.changes.front() else { return };
        let mut oids = RoaringTreemap::new();
        for change in &self.changes {
            oids.extend(change.oids.iter().map(|oid| oid.0));
        }
        let (first, upto) = (first.seq, self.last);
        let round = Round { first, upto, oids, after: None, due: 0, dropped: false };
        self.round = Some(round);
    }

    /// A session's turn.
    pub fn bring_forward(&mut self, conn: ConnId, unseen: &mut Unseen) {
        let Some(mut round) = self.round.take() else { return };
        let first = round.first;
        if unseen.cursor < first && unseen.own < first && unseen.ahead < first {
            unseen.oids |= &round.oids;
            unseen.cursor = round.upto;
        } else {
            unseen.read(conn, self);
        }
        round.after = Some(conn);
        self.round = Some(round);
    }

    /// After its turn. A session that takes no part, and has not since its last turn, keeps not more than so many bytes beside
    /// what is `touched`.
    pub fn bound(
        &mut self,
        unseen: &mut Unseen,
        takes_part: bool,
        touched: &RoaringTreemap,
        bytes_max: u64,
    ) {
        let idle = !std::mem::take(&mut unseen.asked) && !takes_part;
        unseen.bytes = unseen.oids.serialized_size() as u64;
        if idle && unseen.bytes > bytes_max {
            if !unseen.oids.is_subset(&self.dropped) {
                self.dropped |= &unseen.oids;
            }
            unseen.oids &= touched;
            unseen.dropped = true;
            unseen.bytes = unseen.oids.serialized_size() as u64;
        }
        if let Some(round) = &mut self.round {
            round.dropped |= unseen.dropped;
        }
    }

    /// Every session has had its turn.
    pub fn end_round(&mut self) {
        let Some(round) = self.round.take() else { return };
        if !round.dropped {
            self.dropped.clear();
        }
        let read = self.changes.partition_point(|change| change.seq <= round.upto);
        let read = self.changes.drain(..read);
        self.oids -= read.map(|change| change.oids.len()).sum::<usize>();
    }

    /// Nobody is there to be told.
    pub fn forget(&mut self) {
        self.changes.clear();
        self.oids = 0;
        self.round = None;
        self.dropped.clear();
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
            let removal = Removal { generation, oids: oids.clone(), list: OnceLock::new() };
            self.removals.push_back(Arc::new(removal));
        }
    }

    /// Everybody was told of the removals up to here.
    pub fn told(&mut self, generation: Generation) {
        while self.removals.front().is_some_and(|oldest| oldest.generation <= generation) {
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
    /// Memory that `oids` takes, as of the last time the session was brought forward.
    bytes: u64,
    /// Its client has loaded something since then.
    asked: bool,
    /// Of what its client has not touched, whatever was dropped may have changed.
    dropped: bool,
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
            bytes: 0,
            asked: false,
            dropped: false,
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
        self.bytes = 0;
        self.dropped = false;
        self.all = false;
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
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

    /// Whether the object may have changed, for a load. `touched`: all that the client can have in its cache.
    pub fn contains(
        &mut self,
        conn: ConnId,
        oid: Oid,
        touched: &RoaringTreemap,
        log: &ChangeLog,
    ) -> bool {
        self.read(conn, log);
        self.asked = true;
        self.all
            || self.dropped && !touched.contains(oid.0) && log.dropped.contains(oid.0)
            || self.oids.contains(oid.0)
            || self.removals(log).any(|removal| removal.oids.contains(oid.0))
    }

    fn removals<'a>(&self, log: &'a ChangeLog) -> impl Iterator<Item = &'a Arc<Removal>> + use<'a> {
        let told = self.generation;
        log.removals.iter().filter(move |removal| removal.generation > told)
    }

    /// What the client is to be told now; after this it knows everything up to the log's end. `touched`: all it
    /// can have in its cache.
    pub fn tell(&mut self, conn: ConnId, log: &ChangeLog, touched: &RoaringTreemap) -> Told {
        self.read(conn, log);
        let mut removals = self.removals(log);
        let (first, second) = (removals.next(), removals.next());
        // Who missed several packs is told of their union: an oid can have been removed twice.
        let removal = first.filter(|_| second.is_none()).cloned();
        if removal.is_none() {
            for removal in first.into_iter().chain(second).chain(removals) {
                self.oids |= &removal.oids;
            }
        }
        if self.all {
            self.oids |= touched;
        }
        let told = Told::new(std::mem::take(&mut self.oids), removal);
        self.bytes = 0;
        self.dropped = false;
        self.all = false;
        self.ahead = Seq(0);
        self.generation = log.generation;
        told
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

    /// Each once.
    fn all(told: Told) -> RoaringTreemap {
        let removed = told.removal.map(|removal| removal.oids.clone()).unwrap_or_default();
        assert!(told.oids.is_disjoint(&removed), "told twice");
        told.oids | removed
    }

    #[test]
    fn the_shared_log_says_what_a_set_for_everybody_would() {
        let none = RoaringTreemap::new();
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
                    6 => {
                        // Some of the sessions, of a round that may have begun long ago.
                        if log.round.is_none() {
                            log.begin_round();
                        }
                        let (_, after) = log.turns(0, 4);
                        let begin = after.map_or(0, |conn| conn.0 as usize + 1);
                        let end = begin + random.below(4) as usize;
                        let turns = real.iter_mut().enumerate().take(end).skip(begin);
                        turns.for_each(|(n, unseen)| log.bring_forward(conn(n), unseen));
                        if end > 4 {
                            log.end_round();
                        }
                    }
                    7 => {
                        let told = real.iter().map(Unseen::generation).min().unwrap();
                        log.told(told);
                    }
                    8 => {
                        let told = all(real[who].tell(conn(who), &log, &RoaringTreemap::new()));
                        let expected = std::mem::take(&mut naive[who].invalid);
                        assert!(told.iter().eq(expected), "seed {seed}");
                    }
                    _ => {
                        let oid = random.below(30);
                        let invalid = real[who].contains(conn(who), Oid(oid), &none, &log);
                        assert_eq!(invalid, naive[who].invalid.contains(&oid), "seed {seed}");
                    }
                }
            }
        }
    }

    /// As `Sessions` does it.
    fn push(log: &mut ChangeLog, oids: &[Oid], readers: &mut [Unseen]) {
        log.push(log.last().next(), None, oids, true);
        let (turns, after) = log.turns(oids.len(), readers.len());
        let begin = after.map_or(0, |conn| conn.0 as usize + 1);
        let end = begin + turns;
        for (n, unseen) in readers.iter_mut().enumerate().take(end).skip(begin) {
            log.bring_forward(ConnId(n as u64), unseen);
        }
        if end > readers.len() {
            log.end_round();
        }
    }

    #[test]
    fn a_full_log_is_read_by_one_session_after_the_other_and_dropped() {
        let cases = [
            (1, 1, 10_000),
            (3, 1, 20_000),
            (3, 50, 5000),
            (1000, 1, 10_000),
            (2, 2 * LOG_OIDS_MAX, 20),
            (100, 700, 500),
        ];
        for (sessions, oids_each, transactions) in cases {
            let mut log = ChangeLog::new(Seq(0), Generation(1));
            let mut readers: Vec<Unseen> = (0..sessions).map(|_| Unseen::new(&log)).collect();
            let oids = |n: u64| -> Vec<Oid> { (0..oids_each as u64).map(|k| Oid(n + k)).collect() };
            for n in 0..transactions {
                push(&mut log, &oids(n), &mut readers);
                let most = 2 * LOG_OIDS_MAX + 2 * oids_each;
                assert!(log.oids <= most && log.changes.len() <= 2 * LOG_TRANSACTIONS_MAX);
                assert_eq!(log.oids, log.changes.len() * oids_each);
            }
            let none = RoaringTreemap::new();
            for (n, unseen) in readers.iter_mut().enumerate() {
                let conn = ConnId(n as u64);
                let last = transactions - 1;
                assert!([0, last].iter().all(|oid| unseen.contains(conn, Oid(*oid), &none, &log)));
                let told = all(unseen.tell(conn, &log, &RoaringTreemap::new()));
                assert_eq!(told.len(), last + oids_each as u64);
            }
        }
    }

    /// With no room at all: what is told and answered of objects that a client has touched is what it would be, and more is
    /// called invalid only of others, that have changed once.
    #[test]
    fn an_idle_session_is_told_of_what_its_client_may_have() {
        let (mut refused, mut ever) = (0, BTreeSet::new());
        for seed in 0..200 {
            let mut random = Lcg(seed);
            let mut log = ChangeLog::new(Seq(5), Generation(1));
            let (conn, mut unseen) = (ConnId(1), Unseen::new(&log));
            let mut naive = Naive::default();
            let mut touched = RoaringTreemap::new();
            ever.clear();
            for _ in 0..100 {
                let oids: Vec<u64> = (0..random.below(4)).map(|_| random.below(30)).collect();
                match random.below(10) {
                    0..3 => {
                        let oid_list: Vec<Oid> = oids.iter().map(|oid| Oid(*oid)).collect();
                        log.push(log.last().next(), None, &oid_list, true);
                        naive.invalid.extend(&oids);
                        ever.extend(oids);
                    }
                    3 => {
                        log.remove(log.generation().next(), &oids.iter().copied().collect());
                        naive.invalid.extend(&oids);
                    }
                    4 | 5 => {
                        log.begin_round();
                        log.bring_forward(conn, &mut unseen);
                        log.bound(&mut unseen, random.below(4) == 0, &touched, 0);
                        log.end_round();
                    }
                    6 => {
                        let told = all(unseen.tell(conn, &log, &touched));
                        let invalid = std::mem::take(&mut naive.invalid);
                        let due = invalid.iter().filter(|oid| touched.contains(**oid));
                        assert!(due.into_iter().all(|oid| told.contains(*oid)), "seed {seed}");
                        assert!(told.iter().all(|oid| invalid.contains(&oid)), "seed {seed}");
                        touched -= told;
                    }
                    _ => {
                        let oid = random.below(30);
                        let invalid = unseen.contains(conn, Oid(oid), &touched, &log);
                        let may_differ = invalid && !touched.contains(oid) && ever.contains(&oid);
                        let expected = naive.invalid.contains(&oid);
                        assert!(invalid == expected || may_differ, "seed {seed}");
                        refused += u64::from(invalid && !expected);
                        if !invalid {
                            touched.insert(oid);
                        }
                    }
                }
            }
        }
        assert!(refused > 0, "nobody was idle");
    }

    /// What it will read is not older than 10.
    #[test]
    fn a_session_that_starts_ahead_is_not_brought_back() {
        let mut log = ChangeLog::new(Seq(0), Generation(1));
        let mut starting = [Unseen::new(&log)];
        starting[0].start_at(Seq(10));
        let many: Vec<Oid> = (0..LOG_OIDS_MAX as u64).map(Oid).collect();
        for _ in 1..=10 {
            push(&mut log, &many, &mut starting);
        }
        let none = RoaringTreemap::new();
        assert!(log.changes.is_empty() && !starting[0].contains(ConnId(0), Oid(7), &none, &log));
        push(&mut log, &[Oid(7)], &mut starting);
        assert!(starting[0].contains(ConnId(0), Oid(7), &none, &log));
    }
}
