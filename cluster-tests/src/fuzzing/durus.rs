//! Clients of a node on its own, whose bytes are a fuzzer's, cut anywhere, while the disk, the Raft log, packs and the
//! clock go on when the script says so, and the process dies.
//!
//! A model reads the same bytes and says how each connection may be answered: which answers, in which order, of which
//! form, and which objects' contents. At the end: what was acknowledged is in the chain once, in one transaction; nothing is
//! there that nobody was given an oid for; every generation's file is whole, and says the same as the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::judge;
use super::machine::{Event, Machine, Word, limits};
use super::recorded::record;
use super::script::Script;

const CONNECTIONS: u64 = 4;
/// Longer than any timeout of a session.
const LONG_US: u64 = 8_000_000;

pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut world = World::new();
    while !script.is_over() && world.machine.exit.is_none() {
        world.act(&mut script);
    }
    world.end();
}

struct World {
    machine: Machine,
    /// The connection each place has now.
    places: [Option<u64>; CONNECTIONS as usize],
    opened: u64,
    talks: BTreeMap<u64, Talk>,
    /// Every record that was sent for an oid, ever.
    sent: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    given: BTreeSet<u64>,
    /// Records of each acknowledged commit.
    acknowledged: Vec<Vec<(u64, Vec<u8>)>>,
}

impl World {
    /// A node that serves, with a root and two more objects.
    fn new() -> World {
        let mut world = World {
            machine: Machine::new(1, 1),
            places: [None; CONNECTIONS as usize],
            opened: 0,
            talks: BTreeMap::new(),
            sent: BTreeMap::new(),
            given: BTreeSet::new(),
            acknowledged: Vec::new(),
        };
        world.open(0);
        world.says(0, b"V\0\0\0\x01M\x03");
        world.settle();
        world.later(1_000_000);
        let [one, two] =
            world.given.iter().copied().filter(|oid| *oid != 0).collect::<Vec<_>>()[..]
        else {
            panic!("the root's oid and two more were asked for")
        };
        world.commits(0, &[(0, record(0, b"root", &[one])), (one, record(one, b"one", &[0, two]))]);
        world.commits(0, &[(two, record(two, b"two", &[]))]);
        world.settle();
        assert_eq!(world.acknowledged.len(), 2, "the ground to stand on");
        world
    }

    fn act(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let place = usize::from(what / 16) % CONNECTIONS as usize;
        match what % 16 {
            0 => self.open(place),
            1 | 2 => self.says(place, script.piece()),
            3 => script.piece().iter().for_each(|byte| self.says(place, &[*byte])),
            4 => self.hangs_up(place),
            5 => self.happens(Event::Disk),
            6 => self.happens(Event::Raft),
            7 => self.happens(Event::Jobs),
            8 => self.later(20_000 * u64::from(script.byte())),
            9 | 10 => {
                let records = self.invent(script);
                self.commits(place, &records);
            }
            11 => self.says(place, &[b'M', script.byte() % 40]),
            12 => self.loads(place, script),
            13 => self.says(place, b"S"),
            14 => self.settle(),
            _ => self.restarts(),
        }
    }

    fn happens(&mut self, event: Event) {
        self.machine.apply(event);
        self.listen();
    }

    fn later(&mut self, us: u64) {
        // In steps, since a disk that does nothing for so long is not what is looked for.
        for _ in 0..us.div_ceil(50_000) {
            self.happens(Event::Later(us.min(50_000)));
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.machine.settle();
        self.listen();
    }

    fn open(&mut self, place: usize) {
        if self.places[place].is_some() {
            return;
        }
        self.opened += 1;
        self.places[place] = Some(self.opened);
        self.talks.insert(self.opened, Talk::default());
        self.happens(Event::ClientOpened(self.opened));
    }

    fn says(&mut self, place: usize, bytes: &[u8]) {
        let Some(conn) = self.places[place] else { return };
        let talk = self.talks.get_mut(&conn).expect("an open one");
        for (oid, record) in talk.says(bytes) {
            self.sent.entry(oid).or_default().insert(record);
        }
        self.happens(Event::ClientData(conn, Bytes::copy_from_slice(bytes)));
    }

    fn hangs_up(&mut self, place: usize) {
        if let Some(conn) = self.places[place].take() {
            self.talks.get_mut(&conn).expect("an open one").gone = true;
            self.happens(Event::ClientClosed(conn));
        }
    }

    fn restarts(&mut self) {
        self.places = [None; CONNECTIONS as usize];
        self.talks.values_mut().for_each(|talk| talk.gone = true);
        let old = std::mem::replace(&mut self.machine, Machine::new(1, 1));
        self.machine = old.restarted().unwrap_or_else(|error| panic!("it can't start: {error}"));
    }

    /// Objects that a client could well store, and some that it could not.
    fn invent(&mut self, script: &mut Script<'_>) -> Vec<(u64, Vec<u8>)> {
        let given: Vec<u64> = self.given.iter().copied().collect();
        let oid = |script: &mut Script<'_>| match script.byte() {
            255 => u64::MAX,
            254 => u64::from(script.byte()),
            nth => given[usize::from(nth) % given.len()],
        };
        let mut records = Vec::new();
        for _ in 0..=script.below(4) {
            let (own, data) = (oid(script), script.piece());
            let refs: Vec<u64> = (0..script.below(4)).map(|_| oid(script)).collect();
            records.push((own, record(own, data, &refs)));
        }
        records
    }

    fn commits(&mut self, place: usize, records: &[(u64, Vec<u8>)]) {
        let mut data = Vec::new();
        for (oid, record) in records {
            data.extend((8 + record.len() as u32).to_be_bytes());
            data.extend(oid.to_be_bytes());
            data.extend(record);
        }
        let len = (data.len() as u32).to_be_bytes();
        self.says(place, &[b"C", &len[..], &data].concat());
    }

    fn loads(&mut self, place: usize, script: &mut Script<'_>) {
        let given: Vec<u64> = self.given.iter().copied().collect();
        let oids: Vec<u64> =
            (0..script.below(6)).map(|_| given[script.below(given.len())]).collect();
        let mut bytes = b"B".to_vec();
        bytes.extend((oids.len() as u32).to_be_bytes());
        bytes.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
        self.says(place, &bytes);
    }

    /// What the node has said since, as those hear it to whom it was said.
    fn listen(&mut self) {
        let mut given = Vec::new();
        while let Some((conn, word)) = self.machine.said.pop_front() {
            let talk = self.talks.get_mut(&conn).expect("a connection there was");
            assert!(!talk.closed, "client {conn} was closed, and then told {word:?}");
            match word {
                Word::Bytes(bytes) => talk.heard.extend(&bytes),
                Word::Closed(why) => {
                    assert!(!why.is_empty());
                    talk.closed = true;
                    self.places
                        .iter_mut()
                        .for_each(|place| *place = place.filter(|it| *it != conn));
                    self.machine.apply(Event::ClientClosed(conn));
                }
            }
            while let Some(answer) = talk.take() {
                match answer {
                    Answer::Given(oids) => given.push((conn, oids)),
                    Answer::Loaded(oid, record) => {
                        let known = self.sent.get(&oid).is_some_and(|all| all.contains(&record));
                        assert!(known, "oid {oid} is {record:02x?}, which nobody has stored");
                    }
                    Answer::Committed(records) => {
                        talk.holds.retain(|oid| records.iter().all(|(stored, _)| stored != oid));
                        self.acknowledged.push(records);
                    }
                    Answer::Other => {}
                }
            }
        }
        for (conn, oids) in given {
            self.holds(conn, &oids);
        }
    }

    /// What one session holds unused, no other that is still there may be given.
    fn holds(&mut self, conn: u64, oids: &[u64]) {
        for oid in oids {
            for (other, talk) in &self.talks {
                let there = !talk.gone && !talk.closed && talk.holds.contains(oid);
                assert!(!there, "OidUnique: oid {oid} of client {other} is given to {conn}");
            }
            self.given.insert(*oid);
            self.talks.get_mut(&conn).expect("just heard").holds.insert(*oid);
        }
    }

    /// Nothing more comes. Everything must be answered or closed, and the files must be what was said.
    fn end(mut self) {
        if self.machine.exit.is_none() {
            self.settle();
            self.later(1_000_000);
            self.happens(Event::Later(LONG_US));
            self.settle();
            for (conn, talk) in &self.talks {
                talk.check_over(*conn);
            }
        }
        check_files(&self.machine, &self.acknowledged, &self.given);
        let again = self.machine.restarted();
        again.unwrap_or_else(|error| panic!("it can't start: {error}"));
    }
}

/// The whole history, out of every generation's file; where two have the same seq they say the same.
fn check_files(machine: &Machine, acknowledged: &[Vec<(u64, Vec<u8>)>], given: &BTreeSet<u64>) {
    let mut history = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (name, bytes) in machine.files() {
        let whole = judge::whole(&bytes).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(whole.map_is_right, "{name}: the offset map");
        let strict = crate::chaincheck::check(&bytes);
        strict.unwrap_or_else(|why| panic!("{name}: {why}"));
        for link in &whole.links[1..] {
            let before = history.insert(link.seq, link.clone());
            let same = before.is_none_or(|before| before.data_hash == link.data_hash);
            assert!(same, "GenerationEquivalent: seq {} of {name}", link.seq);
        }
        assert!(whole.objects.keys().all(|oid| given.contains(oid)), "{name}: an oid of nobody's");
    }
    for link in history.values() {
        assert!(link.commit_id == [0; 16] || ids.insert(link.commit_id), "ExactlyOnce");
        assert!(link.objects.iter().all(|(oid, _)| given.contains(oid)), "an oid of nobody's");
    }
    let mut stored: Vec<_> = history.values().map(|link| link.objects.clone()).collect();
    for records in acknowledged {
        let found = stored.iter().position(|objects| objects == records);
        let found = found.unwrap_or_else(|| panic!("AckedIsDurable: {records:02x?} is nowhere"));
        stored.remove(found);
    }
}

// ---- one connection ----

/// What a client waits for.
#[derive(Debug)]
enum Wanted {
    Version,
    Oids(u8),
    /// And the number of the bulk load it is of; 0: of none. One that greeted and is not hasty is told of a bulk load's
    /// objects up to the first that is no record.
    Object(u64, u64),
    /// Count and oids: to S, and to C.
    Invalid,
    /// To a commit's data.
    Verdict(Vec<(u64, Vec<u8>)>),
    Packed,
}

/// What it got.
enum Answer {
    Given(Vec<u64>),
    Loaded(u64, Vec<u8>),
    Committed(Vec<(u64, Vec<u8>)>),
    Other,
}

#[derive(Default)]
struct Talk {
    /// Of what was said, what is no whole command yet.
    rest: Vec<u8>,
    /// C was said, its data comes.
    in_commit: bool,
    /// What was said can't go on: a broken rule, or goodbye.
    over: bool,
    wanted: VecDeque<Wanted>,
    /// It said V.
    greeted: bool,
    /// It said something before it had heard everything, or two things at once.
    hasty: bool,
    bulks: u64,
    /// Oids it was given and has not stored.
    holds: BTreeSet<u64>,
    heard: Vec<u8>,
    closed: bool,
    gone: bool,
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl Talk {
    /// Takes what is whole; the records among it that might be stored.
    fn says(&mut self, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        self.hasty |= !self.wanted.is_empty();
        self.rest.extend(bytes);
        let mut stored = Vec::new();
        while !self.over {
            let rest = std::mem::take(&mut self.rest);
            match self.command(&rest, &mut stored) {
                Some(used) => {
                    self.rest = rest[used..].to_vec();
                    self.hasty |= !self.rest.is_empty();
                }
                None => {
                    self.rest = rest;
                    break;
                }
            }
        }
        stored
    }

    /// One command at the front: how long it is; None if it is not all there.
    fn command(&mut self, rest: &[u8], stored: &mut Vec<(u64, Vec<u8>)>) -> Option<usize> {
        if self.in_commit {
            let len = be32(rest)? as usize;
            if len as u64 > limits().transaction_bytes_max {
                self.over = true;
                return Some(4);
            }
            let data = rest[4..].get(..len)?;
            self.in_commit = false;
            match records_of(data) {
                Some(records) if records.is_empty() => {}
                Some(records) => {
                    stored.extend(records.iter().cloned());
                    self.wanted.push_back(Wanted::Verdict(records));
                }
                None => self.over = true,
            }
            return Some(4 + len);
        }
        let (&command, body) = rest.split_first()?;
        let used = match command {
            b'V' => {
                let version = be32(body)?;
                self.greeted = true;
                self.wanted.push_back(Wanted::Version);
                self.over = version != 1;
                4
            }
            b'N' => {
                self.wanted.push_back(Wanted::Oids(1));
                0
            }
            b'M' => {
                let count = *body.first()?;
                self.wanted.extend((count > 0).then_some(Wanted::Oids(count)));
                1
            }
            b'L' => {
                self.wanted.push_back(Wanted::Object(be64(body)?, 0));
                8
            }
            b'B' => {
                let count = be32(body)?;
                if count > limits().bulk_oids_max {
                    self.over = true;
                    return Some(rest.len());
                }
                let len = 8 * count as usize;
                let oids = body[4..].get(..len)?.chunks_exact(8);
                self.bulks += 1;
                let wanted = |oid| Wanted::Object(be64(oid).expect("8"), self.bulks);
                self.wanted.extend(oids.map(wanted));
                4 + len
            }
            b'S' => {
                self.wanted.push_back(Wanted::Invalid);
                0
            }
            b'C' => {
                self.wanted.push_back(Wanted::Invalid);
                self.in_commit = true;
                0
            }
            b'P' => {
                self.wanted.push_back(Wanted::Packed);
                0
            }
            _ => {
                self.over = true;
                0
            }
        };
        Some(1 + used)
    }

    /// The next answer, if it is all there.
    fn take(&mut self) -> Option<Answer> {
        if self.heard.is_empty() {
            return None;
        }
        let wanted = self.wanted.front();
        let wanted = wanted.unwrap_or_else(|| panic!("nobody asked for {:02x?}", self.heard));
        let status = self.heard[0];
        let (len, answer) = match wanted {
            Wanted::Version => {
                assert_eq!(be32(&self.heard)?, 1, "the version");
                (4, Answer::Other)
            }
            Wanted::Oids(count) => {
                let len = 8 * usize::from(*count);
                let oids = self.heard.get(..len)?.chunks_exact(8);
                (len, Answer::Given(oids.map(|oid| be64(oid).expect("8")).collect()))
            }
            &Wanted::Object(oid, bulk) => match status {
                b'O' => {
                    let len = be32(&self.heard[1..])? as usize;
                    let record = self.heard[5..].get(..len)?.to_vec();
                    assert_eq!(be64(&record), Some(oid), "another object");
                    (5 + len, Answer::Loaded(oid, record))
                }
                b'K' | b'I' => {
                    if bulk > 0 && self.greeted && !self.hasty {
                        self.wanted.truncate(1);
                    }
                    (1, Answer::Other)
                }
                other => panic!("{other} to a load"),
            },
            Wanted::Invalid => {
                let len = 4 + 8 * be32(&self.heard)? as usize;
                let oids = self.heard.get(4..len)?;
                assert!(oids.chunks_exact(8).is_sorted(), "ascending");
                (len, Answer::Other)
            }
            Wanted::Verdict(records) => match status {
                b'O' => (1, Answer::Committed(records.clone())),
                b'I' => (1, Answer::Other),
                other => panic!("{other} to a commit"),
            },
            Wanted::Packed => {
                assert_eq!(status, b'O', "to a pack");
                (1, Answer::Other)
            }
        };
        self.heard.drain(..len);
        self.wanted.pop_front();
        Some(answer)
    }

    fn check_over(&self, conn: u64) {
        if self.gone || self.closed {
            return;
        }
        assert!(self.heard.is_empty(), "client {conn}: half an answer: {:02x?}", self.heard);
        assert!(self.wanted.is_empty(), "client {conn} still waits for {:?}", self.wanted);
        assert!(!self.over, "client {conn} broke a rule, and is there still");
        // Within a command, it has been silent for far too long.
        assert!(
            self.rest.is_empty() && !self.in_commit,
            "client {conn} stalls, and is there still"
        );
    }
}

/// The records of a commit, if it is one that may be stored, as far as a client can be judged by it alone.
fn records_of(mut data: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut records: Vec<(u64, Vec<u8>)> = Vec::new();
    while !data.is_empty() {
        let len = be32(data)? as usize;
        let record = data[4..].get(..len)?;
        let oid = be64(record)?;
        judge::check_object(oid, &record[8..]).ok()?;
        let again = records.iter().any(|(other, _)| *other == oid);
        let long = (len - 8) as u64 > limits().record_bytes_max;
        if again || long || records.len() == limits().objects_per_transaction_max {
            return None;
        }
        records.push((oid, record[8..].to_vec()));
        data = &data[4 + len..];
    }
    Some(records)
}
