//! The judgement of commits by example, and then sessions, judgement and oids together: clients that move money
//! between objects over two nodes that lag, in a thousand random orders.

use std::collections::BTreeMap;

use bytes::Bytes;
use roaring::RoaringTreemap;

use super::*;
use crate::durus::oids::BaseOids;
use crate::shelf;
use crate::types::{BootId, CommitId, ConnId, Epoch, Generation, NodeId, Now, Oid, Seq};

const S1: SessionKey = SessionKey { node: NodeId(1), session: 1 };
const BOOT: BootId = BootId(3);

fn id(count: u64) -> CommitId {
    CommitId::new(BOOT, count)
}

fn record(oid: u64, value: i64, references: &[u64]) -> (Oid, Bytes) {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend(8u32.to_be_bytes());
    bytes.extend(value.to_be_bytes());
    references.iter().for_each(|oid| bytes.extend(oid.to_be_bytes()));
    (Oid(oid), bytes.into())
}

fn value(record: &[u8]) -> i64 {
    i64::from_be_bytes(record[12..20].try_into().unwrap())
}

fn set(oids: &[u64]) -> RoaringTreemap {
    oids.iter().copied().collect()
}

/// Oids 0 to 9 exist.
fn exists(oid: Oid) -> Result<bool, String> {
    Ok(oid.0 < 10)
}

/// They refer to nothing.
fn stored(oid: Oid) -> Result<Option<Bytes>, String> {
    Ok(exists(oid)?.then(|| record(oid.0, 0, &[]).1))
}

/// Seq 101 changed 1, 102 changed 2 (both committed), 103 changed 3 (not yet).
fn checker() -> CommitChecker {
    let mut checker = CommitChecker::new(Seq(100));
    for n in 1..=3 {
        checker.noted(Seq(100 + n), id(n), &[Oid(n)]);
    }
    checker
}

struct Ask {
    commit_id: CommitId,
    base: u64,
    ahead: Option<u64>,
    records: Vec<(Oid, Bytes)>,
    touched: Option<RoaringTreemap>,
}

fn ask(base: u64, oids: &[u64]) -> Ask {
    let records = oids.iter().map(|oid| record(*oid, 0, &[])).collect();
    Ask { commit_id: id(1000 + base), base, ahead: None, records, touched: None }
}

fn judge_on(checker: &mut CommitChecker, ask: &Ask, ground: &Ground<'_>) -> Verdict {
    let request = CommitRequest {
        commit_id: ask.commit_id,
        session: S1,
        base: Seq(ask.base),
        ahead: ask.ahead.map(Seq),
        records: &ask.records,
        touched: ask.touched.as_ref(),
    };
    checker.check(&request, ground).unwrap()
}

fn judge(checker: &mut CommitChecker, ask: &Ask) -> Verdict {
    let mut pool = OidPool::default();
    pool.register(NodeId(1), BOOT, &[(1, vec![Oid(20)]), (2, vec![Oid(21)])], &exists).unwrap();
    let acknowledged = Seq(102);
    let ground = Ground { acknowledged, exists: &exists, pool: &pool, dead: None, stored: &stored };
    judge_on(checker, ask, &ground)
}

fn is_conflict(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Conflict { .. })
}

#[test]
fn who_knows_everything_is_accepted_without_saying_what_he_read() {
    assert_eq!(judge(&mut checker(), &ask(103, &[1, 2, 3, 20, 0])), Verdict::Accept);
}

#[test]
fn a_write_over_an_unseen_change_conflicts_whether_that_is_committed_or_not() {
    assert!(is_conflict(&judge(&mut checker(), &ask(101, &[5, 2]))));
    assert!(is_conflict(&judge(&mut checker(), &ask(102, &[3]))));
}

#[test]
fn a_read_of_an_unseen_change_conflicts_and_any_other_read_does_not() {
    let mut read = ask(102, &[5]);
    assert_eq!(judge(&mut checker(), &read), Verdict::SendTouched);
    read.touched = Some(set(&[1, 2, 5]));
    assert_eq!(judge(&mut checker(), &read), Verdict::Accept);
    read.touched = Some(set(&[3, 5]));
    assert!(is_conflict(&judge(&mut checker(), &read)));
}

#[test]
fn a_commit_is_found_again_by_its_id() {
    let mut checker = checker();
    let again = |count| Ask { commit_id: id(count), ..ask(100, &[count]) };
    assert_eq!(judge(&mut checker, &again(2)), Verdict::AlreadyCommitted(Seq(102)));
    assert_eq!(judge(&mut checker, &again(3)), Verdict::InFlight(Seq(103)));
    checker.truncated(Seq(102));
    assert_eq!((checker.last(), checker.find(id(3))), (Seq(102), None));
    let mut again = again(3);
    again.base = 102;
    assert_eq!(judge(&mut checker, &again), Verdict::Accept);
    checker.noted(Seq(103), CommitId::NONE, &[]);
    assert_eq!(judge(&mut checker, &again), Verdict::Accept);
}

#[test]
fn a_conflict_stays_one() {
    let mut checker = checker();
    let asked = ask(102, &[3]);
    assert!(is_conflict(&judge(&mut checker, &asked)));
    // What it conflicted with is gone. The client may have heard of the conflict.
    checker.truncated(Seq(102));
    assert!(is_conflict(&judge(&mut checker, &asked)));
    assert_eq!(judge(&mut checker, &Ask { commit_id: id(55), ..asked }), Verdict::Accept);
}

#[test]
fn what_cannot_be_known_is_said_so() {
    let Verdict::Refused(why) = judge(&mut checker(), &ask(99, &[5])) else { panic!() };
    assert!(why.contains("outcome unknown"), "{why}");
    let Verdict::Refused(why) = judge(&mut checker(), &ask(104, &[5])) else { panic!() };
    assert!(why.contains("the chain ends at 103"), "{why}");
    let mut jumped = checker();
    jumped.jumped(Seq(500));
    assert!(matches!(judge(&mut jumped, &ask(103, &[5])), Verdict::Refused(_)));
}

#[test]
fn the_window_of_changes_is_bounded_and_a_base_before_it_conflicts() {
    let mut checker = CommitChecker::new(Seq(0));
    let many: Vec<Oid> = (1000..401_000).map(Oid).collect();
    for seq in 1..=4 {
        checker.noted(Seq(seq), id(seq), &many);
    }
    let quiet = |base| Ask { touched: Some(set(&[5])), ..ask(base, &[5]) };
    assert_eq!(judge(&mut checker, &quiet(2)), Verdict::Accept);
    assert!(is_conflict(&judge(&mut checker, &quiet(1))));
    let own = Ask { commit_id: id(1), ..quiet(0) };
    assert_eq!(judge(&mut checker, &own), Verdict::AlreadyCommitted(Seq(1)));
}

#[test]
fn oids_of_others_and_oids_of_nobody_are_refused() {
    for (oid, why) in [(21, "held by another session"), (22, "never given out")] {
        let Verdict::Refused(said) = judge(&mut checker(), &ask(103, &[5, oid])) else { panic!() };
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_peer_that_did_not_check_is_not_believed() {
    let mut twice = ask(103, &[5, 5]);
    assert!(matches!(judge(&mut checker(), &twice), Verdict::Refused(_)));
    twice.records = vec![(Oid(5), record(6, 0, &[]).1)];
    assert!(matches!(judge(&mut checker(), &twice), Verdict::Refused(_)));
    twice.records = vec![];
    assert!(matches!(judge(&mut checker(), &twice), Verdict::Refused(_)));
    assert!(decode_touched(b"\x01\0\0\0\0\0\0\0nonsense").is_err());
}

#[test]
fn nothing_dead_comes_back() {
    // The base has 0 to 5 and no 6 and 7; 6 to 9 are newer. 10 to 29 were given out, 12 to S1 again and 13 to another.
    let base = BaseOids { unused: Some(set(&[6, 7])), map_end: Oid(8) };
    let mut pool = OidPool::new(base, Oid(40));
    pool.add_block(Oid(30), Oid(40));
    pool.register(NodeId(1), BOOT, &[(1, vec![Oid(12)]), (2, vec![Oid(13)])], &exists).unwrap();
    let dead = set(&[4, 7]);
    let acknowledged = Seq(103);
    let ground = Ground { acknowledged, exists: &exists, pool: &pool, dead: None, stored: &stored };
    let during = Ground { dead: Some(&dead), ..ground };
    let refers = |base, oids: &[u64]| Ask { records: vec![record(5, 0, oids)], ..ask(base, &[]) };
    let gone = |verdict| match verdict {
        Verdict::Conflict { dead, .. } => dead.iter().map(|oid| oid.0).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(gone(judge_on(&mut checker(), &refers(103, &[1, 7, 4]), &during)), [4, 7]);
    assert_eq!(gone(judge_on(&mut checker(), &ask(103, &[7]), &during)), [7]);
    assert_eq!(judge_on(&mut checker(), &refers(103, &[1, 2]), &during), Verdict::Accept);
    // After it. 6 and 7 exist again; what is another session's is nothing yet.
    assert_eq!(
        gone(judge_on(&mut checker(), &refers(102, &[1, 10, 13, 6, 12]), &ground)),
        [10, 13]
    );
    assert_eq!(gone(judge_on(&mut checker(), &ask(102, &[14]), &ground)), [14]);
    // Who was told has no more right to it: stock Durus would store a reference to nothing.
    assert_eq!(gone(judge_on(&mut checker(), &refers(103, &[10]), &ground)), [10]);
    assert_eq!(gone(judge_on(&mut checker(), &ask(103, &[14]), &ground)), [14]);
    // What this commit stores itself, what this session has, what was never given out (stock Durus takes it).
    let mut both = refers(103, &[12]);
    both.records.push(record(12, 0, &[12, 5]));
    assert_eq!(judge_on(&mut checker(), &both, &ground), Verdict::Accept);
    assert_eq!(judge_on(&mut checker(), &refers(103, &[12, 35, 99]), &ground), Verdict::Accept);
    assert!(matches!(judge_on(&mut checker(), &ask(103, &[35]), &ground), Verdict::Refused(_)));
}

/// Found by the simulator (seed 7001896): the master knew what the last pack had dropped until it was restarted, and
/// nothing of the packs before.
#[test]
fn a_reference_to_nothing_that_was_there_before_is_nobodys_fault() {
    let base = BaseOids { unused: Some(set(&[10, 11])), map_end: Oid(12) };
    let pool = OidPool::new(base, Oid(12));
    let before = |oid: Oid| Ok((oid.0 == 5).then(|| record(5, 0, &[1, 10]).1));
    let ground = Ground {
        acknowledged: Seq(103),
        exists: &exists,
        pool: &pool,
        dead: None,
        stored: &before,
    };
    let refers = |oid: u64, to: &[u64]| Ask { records: vec![record(oid, 1, to)], ..ask(103, &[]) };
    assert_eq!(judge_on(&mut checker(), &refers(5, &[10, 1]), &ground), Verdict::Accept);
    assert!(is_conflict(&judge_on(&mut checker(), &refers(5, &[10, 11]), &ground)));
    assert!(is_conflict(&judge_on(&mut checker(), &refers(6, &[10]), &ground)));
    // A map that could not be read: every object is looked for.
    let pool = OidPool::new(BaseOids { unused: None, map_end: Oid(12) }, Oid(12));
    let ground = Ground { pool: &pool, ..ground };
    assert_eq!(judge_on(&mut checker(), &refers(6, &[1, 9]), &ground), Verdict::Accept);
    assert!(is_conflict(&judge_on(&mut checker(), &refers(6, &[10]), &ground)));
}

// ---- all together ----

const ACCOUNTS: u64 = 6;
const EACH: i64 = 100;
/// Oid of the first client's journal; the others' follow.
const JOURNAL: u64 = ACCOUNTS;

/// Knuth's generator: enough for orders, and the same on every machine.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// One transaction as the master appended it.
type Appended = (CommitId, Vec<(Oid, Bytes)>);

struct Member {
    sessions: Sessions,
    records: BTreeMap<Oid, Bytes>,
    applied: Seq,
    out: Vec<SessionAction>,
}

/// What a member shows, and what its file holds beyond that.
struct Shown<'a>(&'a BTreeMap<Oid, Bytes>, Seq, &'a [Appended]);

impl View for Shown<'_> {
    fn load(&self, oid: Oid) -> Result<Option<Bytes>, String> {
        Ok(self.0.get(&oid).cloned())
    }
    fn load_before(&self, _: Oid, _: Seq) -> Result<Option<Option<Bytes>>, String> {
        panic!("nobody loads so many")
    }
    fn applied(&self) -> Seq {
        self.1
    }
    fn acknowledged(&self) -> Seq {
        self.1
    }
    fn tip(&self) -> Seq {
        Seq(self.1.0 + self.2.len() as u64)
    }
    fn ahead(&self) -> Option<Ahead> {
        let Shown(_, Seq(applied), ahead) = *self;
        let oids = ahead.iter().flat_map(|(_, records)| records.iter().map(|(oid, _)| oid.0));
        let seq = Seq(applied + ahead.len() as u64);
        (!ahead.is_empty()).then(|| Ahead { epoch: Epoch(1), seq, oids: oids.collect() })
    }
}

/// A client with a cache, as a Durus connection is one.
#[derive(Default)]
struct Client {
    member: usize,
    cache: BTreeMap<u64, i64>,
    moved: u64,
    conflicts: u64,
}

struct Bank {
    chain: Vec<Appended>,
    committed: Seq,
    checker: CommitChecker,
    pool: OidPool,
    members: Vec<Member>,
    clients: Vec<Client>,
    random: Lcg,
}

impl Bank {
    fn new(seed: u64) -> Bank {
        let records: Vec<_> = (0..ACCOUNTS + 4).map(|oid| record(oid, EACH, &[])).collect();
        let members = (0..2).map(|n| Member {
            sessions: Sessions::new(Limits::default(), BootId(n + 1), Seq(1), Generation(1)),
            records: records.iter().cloned().collect(),
            applied: Seq(1),
            out: Vec::new(),
        });
        let clients = (0..4).map(|n| Client { member: n % 2, ..Client::default() });
        let mut bank = Bank {
            chain: vec![(CommitId::NONE, records.clone())],
            committed: Seq(1),
            checker: CommitChecker::new(Seq(1)),
            pool: OidPool::default(),
            members: members.collect(),
            clients: clients.collect(),
            random: Lcg(seed),
        };
        for conn in 0..4 {
            let member = &mut bank.members[conn % 2];
            member.sessions.opened(ConnId(conn as u64), Now::default(), &mut member.out);
            bank.settle(conn);
        }
        bank
    }

    /// A member shows one transaction more, if one more is committed.
    fn apply(&mut self, member: usize) {
        let member = &mut self.members[member];
        if member.applied < self.committed {
            member.applied = member.applied.next();
            let (commit_id, records) = &self.chain[member.applied.0 as usize - 1];
            member.records.extend(records.iter().cloned());
            let oids: Vec<Oid> = records.iter().map(|(oid, _)| *oid).collect();
            member.sessions.applied(member.applied, &oids, *commit_id);
            let shown = Shown(&member.records, member.applied, &[]);
            member.sessions.poke(Now::default(), &shown, &mut member.out);
        }
    }

    /// The master's part, for one request.
    fn serve(&mut self, member: usize, action: SessionAction) {
        let now = Now::default();
        let mut out = Vec::new();
        let asking = &mut self.members[member];
        let shown = Shown(&asking.records, asking.applied, &[]);
        match action {
            SessionAction::Sync { id } => {
                asking.sessions.synced(id, self.committed, now, &shown, &mut out);
            }
            SessionAction::Commit { id, commit_id, session, base, ahead, records, touched } => {
                let touched = touched.map(|bytes| decode_touched(&bytes).unwrap());
                let request = CommitRequest {
                    commit_id,
                    session: SessionKey { node: NodeId(member as u64 + 1), session },
                    base,
                    ahead: ahead.map(|(_, seq)| seq),
                    records: &records,
                    touched: touched.as_ref(),
                };
                let exists = |oid: Oid| Ok(oid.0 < ACCOUNTS + 4);
                let ground = Ground {
                    acknowledged: self.committed,
                    exists: &exists,
                    pool: &self.pool,
                    dead: None,
                    stored: &stored,
                };
                match self.checker.check(&request, &ground).unwrap() {
                    Verdict::Accept => {
                        let oids: Vec<Oid> = records.iter().map(|(oid, _)| *oid).collect();
                        self.chain.push((commit_id, records));
                        self.checker.noted(Seq(self.chain.len() as u64), commit_id, &oids);
                        // The answer is lost: the request comes again.
                    }
                    Verdict::InFlight(seq) | Verdict::AlreadyCommitted(seq) => {
                        asking.sessions.committed(id, seq, now, &shown, &mut out);
                    }
                    Verdict::Conflict { dead, .. } => {
                        asking.sessions.conflict(id, &dead, now, &shown, &mut out);
                    }
                    Verdict::SendTouched => asking.sessions.send_touched(id, &mut out),
                    Verdict::Refused(why) => panic!("{why}"),
                }
            }
            // At once: whether others are held back meanwhile changes nothing of what is accepted.
            SessionAction::Turn { id, .. } => {
                let seq = Seq(self.chain.len() as u64);
                asking.sessions.turn(id, seq, now, &shown, &mut out);
            }
            SessionAction::EndTurn { .. } => {}
            other => panic!("{other:?}"),
        }
        self.members[member].out.extend(out);
    }

    /// Runs everything, in some order, until nothing the client asked is open; returns what was sent to it.
    fn settle(&mut self, client: usize) -> Vec<u8> {
        let (member, conn) = (self.clients[client].member, ConnId(client as u64));
        let mut sent = Vec::new();
        for _ in 0..20 {
            let mut requests = Vec::new();
            for action in std::mem::take(&mut self.members[member].out) {
                match action {
                    SessionAction::Send { conn: to, bytes } => {
                        assert_eq!(to, conn, "nobody else asked anything");
                        sent.extend(bytes);
                    }
                    request => requests.push(request),
                }
            }
            for request in requests {
                let copies = if matches!(request, SessionAction::Commit { .. }) { 2 } else { 1 };
                for _ in 0..copies {
                    self.serve(member, request.clone());
                }
            }
            // Somebody commits on in the chain, somebody shows more.
            self.committed = Seq(self.chain.len() as u64);
            self.apply(member);
        }
        sent
    }

    fn ask(&mut self, client: usize, bytes: &[u8]) -> Vec<u8> {
        let member = &mut self.members[self.clients[client].member];
        // Its file holds some of what it does not show yet.
        let appended = &self.chain[member.applied.0 as usize..];
        let ahead = self.random.below(appended.len() as u64 + 1) as usize;
        let shown = Shown(&member.records, member.applied, &appended[..ahead]);
        let conn = ConnId(client as u64);
        member.sessions.data(conn, bytes, Now::default(), &shown, &mut member.out);
        self.settle(client)
    }

    /// Forgets what the answer to S or C says.
    fn forget(&mut self, client: usize, told: &[u8]) -> Vec<u64> {
        let oids: Vec<u64> = told[4..]
            .chunks_exact(8)
            .map(|oid| u64::from_be_bytes(oid.try_into().unwrap()))
            .collect();
        assert_eq!(u32::from_be_bytes(told[..4].try_into().unwrap()) as usize, oids.len());
        self.clients[client].cache.retain(|oid, _| !oids.contains(oid));
        oids
    }

    fn sync(&mut self, client: usize) {
        let told = self.ask(client, b"S");
        self.forget(client, &told);
    }

    /// The balance, cached or loaded; None if it is invalid.
    fn balance(&mut self, client: usize, oid: u64) -> Option<i64> {
        if let Some(balance) = self.clients[client].cache.get(&oid) {
            return Some(*balance);
        }
        let answer = self.ask(client, &[&b"L"[..], &oid.to_be_bytes()].concat());
        if answer == b"I" {
            return None;
        }
        let balance = value(&answer[5..]);
        self.clients[client].cache.insert(oid, balance);
        Some(balance)
    }

    /// A transaction: read everything, move something; other clients come in between.
    fn move_money(&mut self, client: usize, depth: u32) {
        let mut balances = Vec::new();
        for oid in 0..ACCOUNTS {
            let Some(balance) = self.balance(client, oid) else { return self.sync(client) };
            balances.push(balance);
            self.interfere(client, depth);
        }
        assert_eq!(balances.iter().sum::<i64>(), EACH * ACCOUNTS as i64, "one state");
        let (from, to) = (self.random.below(ACCOUNTS), self.random.below(ACCOUNTS));
        if from == to {
            return;
        }
        let told = self.ask(client, b"C");
        self.interfere(client, depth);
        if !self.forget(client, &told).is_empty() {
            self.clients[client].conflicts += 1;
            assert_eq!(self.ask(client, &[0; 4]), b"");
            return;
        }
        let (less, more) = (balances[from as usize] - 1, balances[to as usize] + 1);
        let changed = match self.random.below(3) {
            // Writes down what it read, and from where: changes nothing that anybody else changes.
            0 => vec![record(JOURNAL + client as u64, less + 1, &[from])],
            _ => vec![record(from, less, &[]), record(to, more, &[])],
        };
        let mut data = Vec::new();
        for (oid, record) in &changed {
            data.extend((8 + record.len() as u32).to_be_bytes());
            data.extend(oid.0.to_be_bytes());
            data.extend(&record[..]);
        }
        match &self.ask(client, &[&(data.len() as u32).to_be_bytes()[..], &data].concat())[..] {
            b"O" => {
                let cached = changed.iter().map(|(oid, record)| (oid.0, value(record)));
                self.clients[client].cache.extend(cached);
                self.clients[client].moved += 1;
            }
            b"I" => {
                self.clients[client].conflicts += 1;
                self.sync(client);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Every journal entry is true where it stands in the chain.
    fn check_journals(&self) {
        let mut state = BTreeMap::new();
        for (_, records) in &self.chain {
            for (oid, record) in records {
                if let Some(read) = shelf::refs(record).unwrap().next() {
                    assert_eq!(value(record), state[&read], "{read} as it was then");
                }
                state.insert(*oid, value(record));
            }
        }
    }

    fn interfere(&mut self, client: usize, depth: u32) {
        if depth < 2 && self.random.below(12) == 0 {
            let other = self.random.below(4) as usize;
            if other != client && depth == 0 {
                self.move_money(other, 2);
            }
        }
        let member = self.random.below(2) as usize;
        self.apply(member);
    }
}

#[test]
fn no_money_is_lost_or_seen_twice() {
    for seed in 0..60 {
        let mut bank = Bank::new(seed);
        for _ in 0..40 {
            let client = bank.random.below(4) as usize;
            bank.move_money(client, 0);
        }
        let moved: u64 = bank.clients.iter().map(|client| client.moved).sum();
        let conflicts: u64 = bank.clients.iter().map(|client| client.conflicts).sum();
        assert_eq!(moved, bank.chain.len() as u64 - 1, "seed {seed}: every O is one transaction");
        bank.check_journals();
        assert!(moved > 5 && conflicts > 0, "seed {seed}: {moved} moved, {conflicts} conflicts");
    }
}
