//! Durus clients, at the level of bytes: one command at a time, as the stock client.
//!
//! They work on a small graph. The root refers to counters, journal heads and holders; a transaction reads some objects
//! (from its cache, if it was not told that they changed), and writes some, each with a tag that is its own for ever.
//! What each transaction read, by tags, what each session loaded and when it synced goes to the *book*, from which the
//! final history is judged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ledger::MAGIC;
use super::parse::{Hash, Object, be32, be64, object};
use super::rng::Rng;
use crate::history::{self, Event, Session, Time, What};

pub const COUNTERS: usize = 5;
const HEADS: usize = 2;
const HOLDERS: usize = 2;
/// Entries a journal keeps.
const ENTRIES: usize = 4;
const NEW_AT_ONCE: u8 = 16;

pub type Tag = [u8; 16];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Open,
    /// The client heard O.
    Acked,
    /// The client heard I: not committed.
    Refused,
    /// The connection ended first.
    Unknown,
}

/// A transaction that was sent.
pub struct Sent {
    pub session: usize,
    pub reads: Vec<(u64, Tag)>,
    pub writes: Vec<u64>,
    pub outcome: Outcome,
    pub asked: Time,
    /// As found on the disks when it was acknowledged.
    pub seq: u64,
    /// When, by the judge's clock.
    pub answered: Time,
    /// Durability may have been `local`: clients elsewhere need not see it yet.
    pub local: bool,
    /// And only its own node had it then: it may be lost.
    pub alone: bool,
}

impl Sent {
    /// For the judge. What a node has acknowledged is acknowledged, even if the client was gone before it heard.
    pub fn event(&self, tag: Tag) -> Event {
        let (outcome, answered) = match self.outcome {
            _ if self.local => (history::Outcome::Alone, history::NEVER),
            _ if self.seq > 0 => (history::Outcome::Acknowledged, self.answered),
            Outcome::Refused => (history::Outcome::Conflict, history::NEVER),
            _ => (history::Outcome::Unknown, history::NEVER),
        };
        let (reads, writes) = (self.reads.clone(), self.writes.clone());
        let what = What::Commit(history::Commit { tag, reads, writes, outcome });
        Event { asked: self.asked, answered, what }
    }
}

struct Home {
    node: usize,
    conn: u64,
    tip: Option<Hash>,
}

#[derive(Default)]
pub struct Book {
    /// Oids under which a transaction made new objects.
    pub made: BTreeMap<Tag, Vec<u64>>,
    pub sent: BTreeMap<Tag, Sent>,
    pub sessions: Vec<Session>,
    /// Where each session is, or was.
    homes: Vec<Home>,
    /// Acknowledgements so far.
    answers: u64,
    pub acked: u64,
    pub refused: u64,
    pub unknown: u64,
    pub aborted: u64,
    pub closed: u64,
    pub invalid_loads: u64,
    pub missing_loads: u64,
}

impl Book {
    /// The judge's clock. In one thread, what was acknowledged so far tells before from after: an acknowledgement is an even
    /// number, everything that is asked until the next one is the odd number after it.
    pub fn clock(&self) -> Time {
        2 * self.answers + 1
    }

    /// A node has acknowledged it.
    pub fn acknowledged(&mut self, tag: &Tag, seq: u64, local: bool, alone: bool) {
        self.answers += 1;
        let answered = 2 * self.answers;
        let sent = self.sent.get_mut(tag).expect("sent");
        assert_eq!(sent.outcome, Outcome::Open, "a commit answered twice");
        (sent.seq, sent.answered) = (seq, answered);
        (sent.local, sent.alone) = (local, alone);
    }

    /// The node's disk has left the history that ends in `tip`: sessions that have ended there saw that history.
    pub fn left(&mut self, node: usize, tip: Hash, is_open: impl Fn(u64) -> bool) {
        for home in self.homes.iter_mut().filter(|home| home.node == node && home.tip.is_none()) {
            if !is_open(home.conn) {
                home.tip = Some(tip);
            }
        }
    }

    /// By session: the history that it saw, if its node has left that.
    pub fn tips(&self) -> impl Iterator<Item = Option<Hash>> {
        self.homes.iter().map(|home| home.tip)
    }

    fn note(&mut self, session: usize, asked: Time, what: What) {
        let event = Event { asked, answered: self.clock(), what };
        self.sessions[session].events.push(event);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    Nothing,
    Version,
    Oids,
    Load(u64),
    /// Answers of a bulk load still to come.
    Bulk,
    Sync,
    CommitStart,
    CommitEnd,
    Pack,
}

/// What an answer makes necessary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Todo {
    /// The data of the commit that was begun.
    Data,
    /// No data after all.
    Decline,
    /// Oids for a root.
    Oids,
    /// The commit of a root.
    Root,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plan {
    Count { a: usize, b: Option<usize>, read: usize },
    Journal { head: usize },
    Hold { holder: usize, deep: bool },
    Move { from: usize, to: usize },
    Look,
}

pub struct Connection {
    pub node: usize,
    pub conn: u64,
    pub session: usize,
    received: Vec<u8>,
}

pub struct Client {
    pub id: u64,
    pub connection: Option<Connection>,
    wait: Wait,
    cache: BTreeMap<u64, (Tag, Object)>,
    pool: Vec<u64>,
    plan: Option<Plan>,
    reads: BTreeMap<u64, Tag>,
    writes: Vec<(u64, Object)>,
    tag: Tag,
    count: u64,
    /// When the present question was asked, by the book's clock.
    asked: Time,
    /// Bulk loads still to be answered.
    bulk: Vec<u64>,
    /// What is said next, whatever the plan.
    todo: Option<Todo>,
    /// A journal entry that was dropped from its head, to be put elsewhere.
    hand: Option<u64>,
    /// Loads in a row of an object that should be there and was not.
    missing: u32,
    /// Only what proves that commits work, on this node.
    pub probing: Option<usize>,
    pub packs: bool,
    pub commits_here: u64,
    /// Its next commit is longer by so many bytes.
    pub large: usize,
    /// What a script has it do, in this order and nothing else; it stays connected in between.
    directed: Option<VecDeque<Plan>>,
    /// Says nothing new any more.
    pub quiet: bool,
    /// When the last answer that was sent to it arrives.
    last_arrival: u64,
    /// Its only turn that counts.
    pub turn: u64,
}

/// What the client does next.
pub enum Next {
    Say(Vec<u8>),
    /// Nothing for a while.
    Think,
    Leave,
}

impl Client {
    pub fn new(id: u64) -> Client {
        Client {
            id,
            connection: None,
            wait: Wait::Nothing,
            cache: BTreeMap::new(),
            pool: Vec::new(),
            plan: None,
            reads: BTreeMap::new(),
            writes: Vec::new(),
            tag: [0; 16],
            count: 0,
            asked: 0,
            bulk: Vec::new(),
            todo: None,
            hand: None,
            missing: 0,
            probing: None,
            packs: false,
            commits_here: 0,
            large: 0,
            directed: None,
            quiet: false,
            last_arrival: 0,
            turn: 0,
        }
    }

    pub fn connected(&mut self, node: usize, conn: u64, book: &mut Book) -> Vec<u8> {
        let session = book.sessions.len();
        let name = format!("session {session} of c{} at n{}", self.id, node + 1);
        book.sessions.push(Session { name, ..Session::default() });
        book.homes.push(Home { node, conn, tip: None });
        self.connection = Some(Connection { node, conn, session, received: Vec::new() });
        self.cache.clear();
        self.pool.clear();
        self.plan = None;
        self.hand = None;
        self.todo = None;
        self.bulk.clear();
        self.missing = 0;
        self.commits_here = 0;
        self.wait = Wait::Version;
        vec![b'V', 0, 0, 0, 1]
    }

    /// The connection is gone.
    pub fn closed(&mut self, book: &mut Book) {
        if self.wait == Wait::CommitEnd {
            book.sent.get_mut(&self.tag).expect("sent").outcome = Outcome::Unknown;
            book.unknown += 1;
        }
        book.closed += 1;
        self.connection = None;
        self.wait = Wait::Nothing;
    }

    /// Is this client waiting for the last answer to a commit? Its tag.
    pub fn awaits_commit(&self) -> Option<Tag> {
        (self.wait == Wait::CommitEnd).then_some(self.tag)
    }

    /// What is sent now arrives after so long, and not before what was sent earlier.
    pub fn arrival(&mut self, now: u64, after_us: u64) -> u64 {
        self.last_arrival = (now + after_us).max(self.last_arrival + 1);
        self.last_arrival - now
    }

    /// An oid that was given to both and that neither has used. The root's is offered to anybody while there is no root.
    pub fn shares_oid(&self, other: &Client) -> Option<u64> {
        self.pool.iter().copied().find(|oid| *oid != 0 && other.pool.contains(oid))
    }

    pub fn is_idle(&self) -> bool {
        self.wait == Wait::Nothing
    }

    pub fn waits_for(&self) -> String {
        format!("{:?}", self.wait)
    }

    /// Takes bytes; true if a whole answer was there.
    pub fn received(&mut self, bytes: &[u8], book: &mut Book) -> Result<bool, String> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        connection.received.extend_from_slice(bytes);
        let mut any = false;
        loop {
            let data = &self.connection.as_ref().expect("connected").received;
            if data.is_empty() {
                return Ok(any);
            }
            let Some(len) = self.answer_len(data) else { return Ok(any) };
            let answer: Vec<u8> =
                self.connection.as_mut().expect("connected").received.drain(..len).collect();
            self.answered(&answer, book)?;
            any = true;
        }
    }

    /// How long the answer at the front is, once that is known and it is all there.
    fn answer_len(&self, data: &[u8]) -> Option<usize> {
        let len = match self.wait {
            Wait::Nothing => 1,
            Wait::Version => 4,
            Wait::Oids => 8 * usize::from(NEW_AT_ONCE),
            Wait::Load(_) | Wait::Bulk => match data[0] {
                b'O' => 5 + be32(data, 1)? as usize,
                _ => 1,
            },
            Wait::Sync | Wait::CommitStart => 4 + 8 * be32(data, 0)? as usize,
            Wait::CommitEnd | Wait::Pack => 1,
        };
        (data.len() >= len).then_some(len)
    }

    fn answered(&mut self, answer: &[u8], book: &mut Book) -> Result<(), String> {
        let session = self.connection.as_ref().expect("connected").session;
        let wait = std::mem::replace(&mut self.wait, Wait::Nothing);
        match wait {
            Wait::Nothing => return Err(format!("an answer nobody asked for: {answer:?}")),
            Wait::Version => {
                if answer != [0, 0, 0, 1] {
                    return Err(format!("version {answer:?}"));
                }
            }
            Wait::Oids => {
                let oids = answer.chunks_exact(8).map(|oid| be64(oid, 0).expect("8"));
                // The root's is for a root only, and somebody else may have made it.
                self.pool.extend(oids.filter(|oid| *oid != 0));
            }
            Wait::Load(oid) => self.loaded(oid, answer, session, book)?,
            Wait::Bulk => {
                let oid = self.bulk.remove(0);
                if answer[0] != b'O' {
                    // A stock client reads no further, and is not sent more.
                    self.bulk.clear();
                }
                if !self.bulk.is_empty() {
                    self.wait = Wait::Bulk;
                }
                self.loaded(oid, answer, session, book)?;
            }
            Wait::Sync => {
                let invalid = self.told(answer).into_iter().collect();
                book.note(session, self.asked, What::Synced { invalid });
            }
            Wait::CommitStart => self.commit_started(answer, session, book),
            Wait::CommitEnd => self.commit_ended(answer[0], session, book)?,
            Wait::Pack => {
                if answer != b"O" {
                    return Err(format!("answer to a pack: {answer:?}"));
                }
            }
        }
        Ok(())
    }

    /// The oids that changed since this client was told last.
    fn told(&mut self, answer: &[u8]) -> BTreeSet<u64> {
        let oids: BTreeSet<u64> =
            answer[4..].chunks_exact(8).map(|oid| be64(oid, 0).expect("8")).collect();
        self.cache.retain(|oid, _| !oids.contains(oid));
        oids
    }

    fn loaded(
        &mut self,
        oid: u64,
        answer: &[u8],
        session: usize,
        book: &mut Book,
    ) -> Result<(), String> {
        match answer[0] {
            b'O' => {
                let (inner, object) = object(&answer[5..])?;
                if inner != oid {
                    return Err(format!("asked for oid {oid}, got {inner}"));
                }
                let tag = super::ledger::tag_of(&object.data)
                    .ok_or_else(|| format!("oid {oid} holds something no client wrote"))?;
                book.note(session, self.asked, What::Loaded { oid, tag: Some(tag) });
                self.cache.insert(oid, (tag, object));
                self.missing = 0;
            }
            b'I' => {
                book.invalid_loads += 1;
                book.note(session, self.asked, What::Invalid { oid });
                self.give_up();
            }
            b'K' if oid == 0 => self.begin_root(),
            b'K' => {
                book.missing_loads += 1;
                book.note(session, self.asked, What::Missing { oid });
                self.missing += 1;
                if self.missing > 20 {
                    return Err(format!(
                        "violated ReferencesClosed: oid {oid} is referred to and is not there, \
                         however often this client syncs"
                    ));
                }
                // Perhaps it was packed away since this client was told: begin again from the root.
                self.give_up();
                self.cache.clear();
                self.hand = None;
            }
            other => return Err(format!("answer {other} to a load")),
        }
        Ok(())
    }

    /// Abort: the next thing is a sync.
    fn give_up(&mut self) {
        self.plan = None;
        self.reads.clear();
        self.writes.clear();
    }

    fn commit_started(&mut self, answer: &[u8], session: usize, book: &mut Book) {
        let changed = self.told(answer);
        let invalid = changed.iter().copied().collect();
        book.note(session, self.asked, What::Begun { invalid });
        let touched = |oid: &u64| {
            self.reads.contains_key(oid) || self.writes.iter().any(|(own, _)| own == oid)
        };
        if changed.iter().any(touched) {
            book.aborted += 1;
            self.give_up();
            self.todo = Some(Todo::Decline);
        } else {
            self.todo = Some(Todo::Data);
        }
    }

    fn commit_ended(&mut self, status: u8, session: usize, book: &mut Book) -> Result<(), String> {
        let sent = book.sent.get_mut(&self.tag).expect("sent");
        match status {
            b'O' => {
                sent.outcome = Outcome::Acked;
                book.acked += 1;
                self.commits_here += 1;
                let event = sent.event(self.tag);
                book.sessions[session].events.push(event);
                for (oid, object) in std::mem::take(&mut self.writes) {
                    self.cache.insert(oid, (self.tag, object));
                    self.pool.retain(|own| *own != oid);
                }
                self.plan = None;
                self.reads.clear();
            }
            b'I' => {
                sent.outcome = Outcome::Refused;
                book.refused += 1;
                self.give_up();
            }
            other => return Err(format!("answer {other} to a commit")),
        }
        Ok(())
    }

    fn commit_data(&mut self, book: &mut Book) -> Vec<u8> {
        let made = self.writes.iter().map(|(oid, _)| *oid).filter(|oid| self.pool.contains(oid));
        book.made.insert(self.tag, made.collect());
        let session = self.connection.as_ref().expect("connected").session;
        let reads = self.reads.iter().map(|(oid, tag)| (*oid, *tag)).collect();
        let writes = self.writes.iter().map(|(oid, _)| *oid).collect();
        let (outcome, asked) = (Outcome::Open, book.clock());
        let (seq, answered, local, alone) = (0, 0, false, false);
        let sent = Sent { session, reads, writes, outcome, asked, seq, answered, local, alone };
        book.sent.insert(self.tag, sent);
        let mut data = Vec::new();
        for (oid, object) in &self.writes {
            let record = record(*oid, object);
            data.extend_from_slice(&(record.len() as u32 + 8).to_be_bytes());
            data.extend_from_slice(&oid.to_be_bytes());
            data.extend_from_slice(&record);
        }
        [&(data.len() as u32).to_be_bytes()[..], &data].concat()
    }

    /// The commit of what is in `writes` begins.
    fn commit(&mut self, filler: usize) -> Next {
        self.count += 1;
        self.tag[..8].copy_from_slice(&self.id.to_be_bytes());
        self.tag[8..].copy_from_slice(&self.count.to_be_bytes());
        for (_, object) in &mut self.writes {
            object.data = [&MAGIC[..], &self.tag, &object.data].concat();
            object.data.resize(object.data.len() + filler, 0x55);
        }
        self.wait = Wait::CommitStart;
        Next::Say(b"C".to_vec())
    }

    // ---- what to do ----

    /// With nothing under way: what is said next.
    pub fn next(&mut self, rng: &mut Rng, book: &mut Book) -> Next {
        if self.wait != Wait::Nothing || self.connection.is_none() {
            return Next::Think;
        }
        self.asked = book.clock();
        match self.todo.take() {
            Some(Todo::Data) => {
                let data = self.commit_data(book);
                self.wait = Wait::CommitEnd;
                return Next::Say(data);
            }
            Some(Todo::Decline) => return Next::Say(vec![0; 4]),
            Some(Todo::Oids) => {
                self.wait = Wait::Oids;
                return Next::Say(vec![b'M', NEW_AT_ONCE]);
            }
            Some(Todo::Root) => return self.commit(0),
            None => {}
        }
        if self.plan.is_none() {
            if self.quiet {
                return Next::Leave;
            }
            if let Some(plans) = &mut self.directed {
                let Some(plan) = plans.pop_front() else { return Next::Think };
                self.plan = Some(plan);
                self.reads.clear();
                self.writes.clear();
                self.wait = Wait::Sync;
                return Next::Say(b"S".to_vec());
            }
            if rng.chance(15) && self.probing.is_none() {
                return Next::Leave;
            }
            if self.packs && rng.chance(20) {
                self.wait = Wait::Pack;
                return Next::Say(b"P".to_vec());
            }
            self.plan = Some(self.choose(rng));
            self.reads.clear();
            self.writes.clear();
            if self.probing.is_some()
                || rng.chance(600)
                || self.cache.is_empty()
                || self.missing > 0
            {
                self.wait = Wait::Sync;
                return Next::Say(b"S".to_vec());
            }
        }
        self.go_on(rng)
    }

    /// As a script has it: an entry goes into a journal, the journal's last one leaves it, and this client keeps it in hand.
    pub fn unlink(&mut self) {
        self.hand = None;
        let plans = [Plan::Journal { head: 0 }, Plan::Move { from: 0, to: 0 }];
        self.directed.get_or_insert_default().extend(plans);
    }

    /// As a script has it: one commit, of an object that it changes.
    pub fn change(&mut self) {
        let plan = Plan::Count { a: 0, b: None, read: 0 };
        self.directed.get_or_insert_default().push_back(plan);
    }

    /// The entry in hand goes into another journal; false if there is none in hand.
    pub fn link_again(&mut self) -> bool {
        self.directed.get_or_insert_default().push_back(Plan::Move { from: 0, to: 1 });
        self.hand.is_some()
    }

    /// Everything that a script had it do was done, or was refused.
    pub fn plans_are_done(&self) -> bool {
        let none_left = self.directed.as_ref().is_none_or(|plans| plans.is_empty());
        none_left && self.plan.is_none() && self.is_idle() && self.todo.is_none()
    }

    fn choose(&self, rng: &mut Rng) -> Plan {
        if self.probing.is_some() {
            return Plan::Count { a: rng.index(COUNTERS), b: None, read: rng.index(COUNTERS) };
        }
        match rng.below(12) {
            0..=3 => {
                let b = rng.chance(400).then(|| rng.index(COUNTERS));
                Plan::Count { a: rng.index(COUNTERS), b, read: rng.index(COUNTERS) }
            }
            4..=6 => Plan::Journal { head: rng.index(HEADS) },
            7..=8 => Plan::Hold { holder: rng.index(HOLDERS), deep: rng.chance(500) },
            9..=10 => Plan::Move { from: rng.index(HEADS), to: rng.index(HEADS) },
            _ => Plan::Look,
        }
    }

    fn go_on(&mut self, rng: &mut Rng) -> Next {
        let plan = self.plan.expect("a plan");
        match self.work_out(plan) {
            Ok(()) if self.writes.is_empty() => {
                self.plan = None;
                Next::Think
            }
            Ok(()) => {
                let filler = if rng.chance(150) { rng.index(3000) } else { rng.index(40) };
                let filler = filler + std::mem::take(&mut self.large);
                self.commit(filler)
            }
            Err(Need::Oids) => {
                self.writes.clear();
                self.wait = Wait::Oids;
                Next::Say(vec![b'M', NEW_AT_ONCE])
            }
            Err(Need::Load(oid)) => {
                self.writes.clear();
                self.wait = Wait::Load(oid);
                Next::Say([&b"L"[..], &oid.to_be_bytes()].concat())
            }
            Err(Need::Bulk(oids)) => {
                self.writes.clear();
                self.wait = Wait::Bulk;
                self.bulk = oids.clone();
                let mut bytes = vec![b'B'];
                bytes.extend_from_slice(&(oids.len() as u32).to_be_bytes());
                oids.iter().for_each(|oid| bytes.extend_from_slice(&oid.to_be_bytes()));
                Next::Say(bytes)
            }
        }
    }

    fn get(&mut self, oid: u64) -> Result<Object, Need> {
        let (tag, object) = self.cache.get(&oid).ok_or(Need::Load(oid))?;
        self.reads.insert(oid, *tag);
        Ok(object.clone())
    }

    fn put(&mut self, oid: u64, value: u64, refs: Vec<u64>) {
        self.writes.retain(|(other, _)| *other != oid);
        self.writes.push((oid, Object { data: value.to_be_bytes().to_vec(), refs }));
    }

    /// An oid from the pool; they are taken off it when the commit succeeds.
    fn new_oid(&self, nth: usize) -> Result<u64, Need> {
        let unused = |oid: &&u64| !self.writes.iter().any(|(other, _)| other == *oid);
        self.pool.iter().filter(unused).nth(nth).copied().ok_or(Need::Oids)
    }

    fn work_out(&mut self, plan: Plan) -> Result<(), Need> {
        self.writes.clear();
        let root = self.get(0)?;
        let heads = COUNTERS;
        let holders = heads + HEADS;
        match plan {
            Plan::Count { a, b, read } => {
                self.get(root.refs[read])?;
                for counter in std::iter::once(a).chain(b) {
                    let oid = root.refs[counter];
                    let before = self.get(oid)?;
                    self.put(oid, value_of(&before) + 1, Vec::new());
                }
            }
            Plan::Journal { head } => {
                let oid = root.refs[heads + head];
                let before = self.get(oid)?;
                let entry = self.new_oid(0)?;
                self.put(entry, value_of(&before) + 1, vec![root.refs[head]]);
                let mut refs = vec![entry];
                refs.extend(before.refs.iter().take(ENTRIES));
                self.put(oid, value_of(&before) + 1, refs);
            }
            Plan::Hold { holder, deep } => {
                let oid = root.refs[holders + holder];
                let before = self.get(oid)?;
                if let Some(inner) = before.refs.first().copied() {
                    let inner = self.get(inner)?;
                    if deep && let Some(below) = inner.refs.first().copied() {
                        self.get(below)?;
                    }
                }
                let leaf = self.new_oid(0)?;
                let middle = self.new_oid(1)?;
                self.put(leaf, 0, vec![]);
                self.put(middle, 0, vec![leaf]);
                // What was held is garbage now; at times what it held lives on.
                let refs = match (deep, before.refs.first()) {
                    (true, Some(old)) => {
                        let old = self.get(*old)?;
                        std::iter::once(middle).chain(old.refs.first().copied()).collect()
                    }
                    _ => vec![middle],
                };
                self.put(oid, value_of(&before) + 1, refs);
            }
            Plan::Move { from, to } => match self.hand {
                None => {
                    let oid = root.refs[heads + from];
                    let before = self.get(oid)?;
                    let Some(entry) = before.refs.last().copied() else { return Ok(()) };
                    self.get(entry)?;
                    let mut refs = before.refs.clone();
                    refs.pop();
                    self.put(oid, value_of(&before) + 1, refs);
                    self.hand = Some(entry);
                }
                Some(entry) => {
                    let oid = root.refs[heads + to];
                    let before = self.get(oid)?;
                    self.get(entry)?;
                    let mut refs = vec![entry];
                    refs.extend(before.refs.iter().filter(|old| **old != entry).take(ENTRIES));
                    self.put(oid, value_of(&before) + 1, refs);
                    self.hand = None;
                }
            },
            Plan::Look => {
                let unknown: Vec<u64> =
                    root.refs.iter().filter(|oid| !self.cache.contains_key(oid)).copied().collect();
                if !unknown.is_empty() {
                    return Err(Need::Bulk(unknown));
                }
                for oid in root.refs.clone() {
                    let object = self.get(oid)?;
                    for inner in object.refs {
                        self.get(inner)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// There is no root: make the graph. Others may try the same.
    fn begin_root(&mut self) {
        let wanted = COUNTERS + HEADS + HOLDERS;
        if self.pool.len() < wanted {
            self.todo = Some(Todo::Oids);
            return;
        }
        self.writes.clear();
        self.reads.clear();
        let oids: Vec<u64> =
            self.pool.iter().copied().filter(|oid| *oid != 0).take(wanted).collect();
        self.put(0, 0, oids.clone());
        for oid in oids {
            self.put(oid, 0, Vec::new());
        }
        self.todo = Some(Todo::Root);
    }
}

enum Need {
    Load(u64),
    Bulk(Vec<u64>),
    Oids,
}

pub fn value_of(object: &Object) -> u64 {
    be64(&object.data, 24).unwrap_or(0)
}

fn record(oid: u64, object: &Object) -> Vec<u8> {
    let mut record = oid.to_be_bytes().to_vec();
    record.extend_from_slice(&(object.data.len() as u32).to_be_bytes());
    record.extend_from_slice(&object.data);
    object.refs.iter().for_each(|oid| record.extend_from_slice(&oid.to_be_bytes()));
    record
}
