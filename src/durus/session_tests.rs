//! Sessions as traces: what clients send, what the master answers, what is sent back.

use std::collections::BTreeMap;

use bytes::Bytes;
use roaring::RoaringTreemap;

use super::*;
use crate::types::{BootId, CommitId, ConnId, Generation, Now, Oid, Seq};

const A: ConnId = ConnId(1);
const B: ConnId = ConnId(2);

#[derive(Default)]
struct Store {
    records: BTreeMap<Oid, Bytes>,
    applied: Seq,
}

impl View for Store {
    fn load(&self, oid: Oid) -> Result<Option<Bytes>, String> {
        if oid == Oid(666) {
            return Err("bad sector".to_string());
        }
        Ok(self.records.get(&oid).cloned())
    }

    fn applied(&self) -> Seq {
        self.applied
    }
}

struct Node {
    sessions: Sessions,
    store: Store,
    now: Now,
    out: Vec<SessionAction>,
}

fn record(oid: u64, data: &[u8]) -> Bytes {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes.into()
}

fn found(record: &[u8]) -> Vec<u8> {
    [b"O", &(record.len() as u32).to_be_bytes()[..], record].concat()
}

fn load(oid: u64) -> Vec<u8> {
    [&b"L"[..], &oid.to_be_bytes()].concat()
}

fn bulk(oids: &[u64]) -> Vec<u8> {
    let mut bytes = b"B".to_vec();
    bytes.extend((oids.len() as u32).to_be_bytes());
    oids.iter().for_each(|oid| bytes.extend(oid.to_be_bytes()));
    bytes
}

fn told(oids: &[u64]) -> Vec<u8> {
    bulk(oids)[1..].to_vec()
}

fn commit_data(records: &[(u64, Bytes)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (oid, record) in records {
        data.extend((8 + record.len() as u32).to_be_bytes());
        data.extend(oid.to_be_bytes());
        data.extend(&record[..]);
    }
    [&(data.len() as u32).to_be_bytes()[..], &data].concat()
}

impl Node {
    fn new() -> Node {
        Node::limited(Limits::default())
    }

    /// Objects 0 to 4, as of seq 10.
    fn limited(limits: Limits) -> Node {
        let mut store = Store { applied: Seq(10), ..Store::default() };
        for oid in 0..5 {
            store.records.insert(Oid(oid), record(oid, b"old"));
        }
        let sessions = Sessions::new(limits, BootId(9), Seq(10), Generation(1));
        Node { sessions, store, now: Now::default(), out: Vec::new() }
    }

    /// With A and B connected, and past their first sync.
    fn with_two() -> Node {
        let mut node = Node::new();
        for conn in [A, B] {
            node.open(conn);
            node.send(conn, b"S");
            node.sync_all();
            assert_eq!(node.sent(conn), told(&[]));
        }
        node
    }

    fn open(&mut self, conn: ConnId) {
        self.sessions.opened(conn, self.now, &mut self.out);
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        self.sessions.data(conn, bytes, self.now, &self.store, &mut self.out);
    }

    fn synced(&mut self, id: u64, seq: u64) {
        self.sessions.synced(id, Seq(seq), self.now, &self.store, &mut self.out);
    }

    fn committed(&mut self, id: u64, seq: u64) {
        self.sessions.committed(id, Seq(seq), self.now, &self.store, &mut self.out);
    }

    fn conflict(&mut self, id: u64, dead: &[Oid]) {
        self.sessions.conflict(id, dead, self.now, &self.store, &mut self.out);
    }

    /// One transaction becomes visible.
    fn apply(&mut self, records: &[(u64, Bytes)], commit_id: CommitId) {
        self.store.applied = self.store.applied.next();
        let oids: Vec<Oid> = records.iter().map(|(oid, _)| Oid(*oid)).collect();
        for (oid, record) in records {
            self.store.records.insert(Oid(*oid), record.clone());
        }
        self.sessions.applied(self.store.applied, &oids, commit_id);
        self.sessions.poke(self.now, &self.store, &mut self.out);
    }

    /// Somebody on another node changed these.
    fn others_change(&mut self, oids: &[u64]) {
        let records: Vec<_> = oids.iter().map(|oid| (*oid, record(*oid, b"new"))).collect();
        self.apply(&records, CommitId::NONE);
    }

    /// Bytes sent to a client since it was last asked.
    fn sent(&mut self, conn: ConnId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.out.retain(|action| match action {
            SessionAction::Send { conn: to, bytes: more } if *to == conn => {
                bytes.extend_from_slice(more);
                false
            }
            _ => true,
        });
        bytes
    }

    /// Everything else that is wanted.
    fn asked(&mut self) -> Vec<SessionAction> {
        let sends = |action: &mut SessionAction| !matches!(action, SessionAction::Send { .. });
        self.out.extract_if(.., sends).collect()
    }

    fn asked_one(&mut self) -> SessionAction {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }

    fn sync_id(&mut self) -> u64 {
        match self.asked_one() {
            SessionAction::Sync { id } => id,
            other => panic!("{other:?}"),
        }
    }

    /// The id of the one commit that is asked for, and its commit id.
    fn commit_id(&mut self) -> (u64, CommitId) {
        match self.asked_one() {
            SessionAction::Commit { id, commit_id, .. } => (id, commit_id),
            other => panic!("{other:?}"),
        }
    }

    /// Answers syncs with the newest position until none is out.
    fn sync_all(&mut self) {
        while let Some(at) =
            self.out.iter().position(|action| matches!(action, SessionAction::Sync { .. }))
        {
            let SessionAction::Sync { id } = self.out.remove(at) else { unreachable!() };
            self.synced(id, self.store.applied.0);
        }
    }

    fn closed_for(&mut self) -> CloseReason {
        match self.asked_one() {
            SessionAction::Close { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn later(&mut self, ms: u64) {
        self.now.mono_us += ms * 1000;
        self.sessions.tick(self.now, &mut self.out);
    }
}

#[test]
fn a_client_says_hello_and_loads() {
    let mut node = Node::new();
    node.open(A);
    node.send(A, b"V\0\0\0\x01");
    assert_eq!(node.sent(A), 1u32.to_be_bytes());
    node.send(A, &load(3));
    assert_eq!(node.sent(A), b"", "waits for a sync of its own");
    let opening = node.sync_id();
    node.synced(opening, 9);
    assert_eq!(node.sent(A), b"");
    let first = node.sync_id();
    assert!(first > opening);
    node.synced(first, 10);
    assert_eq!(node.sent(A), found(&record(3, b"old")));
    node.send(A, &load(77));
    assert_eq!(node.sent(A), b"K");
    node.send(A, &bulk(&[1, 77, 2]));
    let two = [found(&record(1, b"old")), b"K".to_vec(), found(&record(2, b"old"))].concat();
    assert_eq!(node.sent(A), two);
    node.send(A, &bulk(&[]));
    assert_eq!(node.sent(A), b"");
    assert_eq!(node.asked(), []);
    node.send(A, b".");
    assert_eq!(node.closed_for(), CloseReason::Goodbye);
    assert!(node.sessions.is_empty());
}

#[test]
fn what_changed_after_connecting_is_invalid_and_what_changed_before_is_not() {
    let mut node = Node::new();
    node.open(A);
    let opening = node.sync_id();
    // Committed elsewhere before A connected, visible here only afterwards.
    node.synced(opening, 11);
    node.others_change(&[1]);
    node.others_change(&[2]);
    node.send(A, &[load(1), load(2), load(2), b"S".to_vec(), load(2)].concat());
    node.sync_all();
    let new = |oid| found(&record(oid, b"new"));
    let expected = [new(1), b"I".to_vec(), b"I".to_vec(), told(&[2]), new(2)].concat();
    assert_eq!(node.sent(A), expected);
}

#[test]
fn answers_do_not_depend_on_how_the_bytes_are_cut() {
    let mut stream = b"V\0\0\0\x01".to_vec();
    stream.extend(load(1));
    stream.extend(b"M\x02SC");
    stream.extend(commit_data(&[(1, record(1, b"mine")), (40, record(40, b""))]));
    stream.extend(bulk(&[1, 40, 2]));
    stream.extend(b"M\0PC\0\0\0\0NS");
    stream.extend(load(9));
    let mut answers = Vec::new();
    for piece in [1, 2, 3, 7, 1000] {
        let mut node = Node::new();
        node.open(A);
        for bytes in stream.chunks(piece) {
            node.send(A, bytes);
            serve(&mut node);
        }
        let mut committed = 1u32.to_be_bytes().to_vec();
        committed.extend(found(&record(1, b"old")));
        committed.extend([40u64.to_be_bytes(), 41u64.to_be_bytes()].concat());
        committed.extend([told(&[]), told(&[]), b"O".to_vec()].concat());
        committed.extend([found(&record(1, b"mine")), found(&record(40, b""))].concat());
        committed.extend(found(&record(2, b"old")));
        committed.extend([b"O".to_vec(), told(&[])].concat());
        committed.extend([42u64.to_be_bytes().to_vec(), told(&[]), b"K".to_vec()].concat());
        assert_eq!(node.sent(A), committed);
        answers.push(committed);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
}

/// A master that says yes to everything, at once.
fn serve(node: &mut Node) {
    let mut next =
        40 + node.sessions.pools().iter().map(|(_, oids)| oids.len() as u64).sum::<u64>();
    next += u64::from(node.store.records.contains_key(&Oid(40)));
    while let asked = node.asked()
        && !asked.is_empty()
    {
        for action in asked {
            match action {
                SessionAction::Sync { id } => node.synced(id, node.store.applied.0),
                SessionAction::Commit { id, commit_id, records, .. } => {
                    let records: Vec<_> = records.into_iter().map(|(oid, r)| (oid.0, r)).collect();
                    node.apply(&records, commit_id);
                    node.committed(id, node.store.applied.0);
                }
                SessionAction::NewOids { id, count, .. } => {
                    let oids: Vec<_> = (next..next + u64::from(count)).map(Oid).collect();
                    next += u64::from(count);
                    node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
                }
                SessionAction::Pack { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_commit_is_news_to_everybody_else() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    assert_eq!(node.sent(A), told(&[]));
    let mine = [(1, record(1, b"mine")), (3, record(3, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    assert_eq!(node.sent(A), b"", "not visible yet");
    node.committed(id, 11);
    assert_eq!(node.sent(A), b"", "committed, and not visible here yet");
    node.apply(&mine, commit_id);
    assert_eq!(node.sent(A), b"O");
    node.send(A, &[load(1), b"S".to_vec()].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [found(&record(1, b"mine")), told(&[])].concat());
    node.send(B, &[load(1), load(2), b"C\0\0\0\0".to_vec(), load(1)].concat());
    let two = [b"I".to_vec(), found(&record(2, b"old")), told(&[1, 3])].concat();
    assert_eq!(node.sent(B), [two, found(&record(1, b"mine"))].concat());
}

#[test]
fn a_commit_that_becomes_visible_before_its_answer_comes_is_answered_once() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    let mine = [(1, record(1, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    assert!(node.sessions.outstanding(id));
    node.others_change(&[2]);
    node.apply(&mine, commit_id);
    assert!(!node.sessions.outstanding(id));
    for _ in 0..2 {
        node.committed(id, 12);
        // A master that lost its office says this about a request it got late.
        node.conflict(id, &[]);
        node.sessions.refused(id, "late", &mut node.out);
        node.sessions.send_touched(id, &mut node.out);
    }
    assert_eq!(node.sent(A), [told(&[]), b"O".to_vec()].concat());
    assert_eq!(node.asked(), []);
    node.send(A, &[load(1), load(2)].concat());
    assert_eq!(node.sent(A), [found(&record(1, b"mine")), b"I".to_vec()].concat());
}

#[test]
fn a_commit_known_to_be_committed_is_not_talked_away() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    let mine = [(1, record(1, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    node.committed(id, 11);
    node.conflict(id, &[]);
    node.sessions.refused(id, "no", &mut node.out);
    node.apply(&mine, commit_id);
    assert_eq!(node.sent(A), [told(&[]), b"O".to_vec()].concat());
}

#[test]
fn a_conflict_leaves_the_client_connected() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let (id, _) = node.commit_id();
    node.conflict(id, &[Oid(4)]);
    assert_eq!(node.sent(A), [told(&[]), b"I".to_vec()].concat());
    node.others_change(&[1]);
    node.send(A, &[load(4), b"S".to_vec()].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [b"I".to_vec(), told(&[1, 4])].concat());
    node.conflict(id, &[Oid(3)]);
    assert_eq!(node.sent(A), b"");
}

#[test]
fn what_a_client_may_have_read_goes_with_its_commit() {
    let mut node = Node::with_two();
    node.others_change(&[3]);
    node.send(A, &[load(2), load(3), load(88), b"C".to_vec()].concat());
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let SessionAction::Commit { touched: Some(touched), base, session, .. } = node.asked_one()
    else {
        panic!("small sets go along")
    };
    assert_eq!((base, session), (Seq(11), 1));
    let touched: Vec<u64> = decode_touched(&touched).unwrap().iter().collect();
    assert_eq!(touched, [1, 2, 88], "3 was answered with I: it was not read");
}

#[test]
fn a_large_set_of_what_was_read_is_sent_when_the_master_asks() {
    let mut node = Node::with_two();
    for oid in 0..600u64 {
        node.send(A, &load(oid << 20 | 1 << 10));
    }
    node.send(A, b"C");
    node.sent(A);
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let first = node.asked_one();
    let SessionAction::Commit { id, touched: None, .. } = first else { panic!("{first:?}") };
    node.sessions.send_touched(id, &mut node.out);
    let SessionAction::Commit { id: again, touched: Some(touched), .. } = node.asked_one() else {
        panic!("with the set now")
    };
    assert_eq!((again, decode_touched(&touched).unwrap().len()), (id, 601));
}

#[test]
fn a_sync_is_only_used_by_who_asked_before_it_was_sent() {
    let mut node = Node::with_two();
    node.send(A, b"S");
    let first = node.sync_id();
    node.send(B, b"S");
    assert_eq!(node.asked(), [], "one at a time");
    node.others_change(&[1]);
    node.synced(first, 10);
    assert_eq!((node.sent(A), node.sent(B)), (told(&[1]), vec![]));
    let second = node.sync_id();
    node.synced(first, 11);
    assert_eq!(node.sent(B), b"", "a second answer to the first");
    node.synced(second, 12);
    assert_eq!(node.sent(B), b"", "not visible here yet");
    node.others_change(&[2]);
    assert_eq!(node.sent(B), told(&[1, 2]));
    assert_eq!(node.asked(), []);
}

#[test]
fn what_a_pack_removed_is_told_to_everybody_before_the_master_hears_so() {
    let mut node = Node::with_two();
    let removed: RoaringTreemap = [3, 4].into_iter().collect();
    node.store.records.remove(&Oid(3));
    node.store.records.remove(&Oid(4));
    node.sessions.removed(Generation(2), &removed, &mut node.out);
    node.send(A, &[load(3), b"S".to_vec(), load(3)].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [b"I".to_vec(), told(&[3, 4]), b"K".to_vec()].concat());
    assert_eq!((node.asked(), node.sessions.told_generation()), (vec![], Generation(1)));
    let late = ConnId(3);
    node.open(late);
    node.send(late, b"S");
    node.sync_all();
    assert_eq!(node.sent(late), told(&[]));
    node.send(B, b"C\0\0\0\0");
    assert_eq!(node.sent(B), told(&[3, 4]));
    let SessionAction::Told { generation, .. } = node.asked_one() else { panic!() };
    assert_eq!((generation, node.sessions.told_generation()), (Generation(2), Generation(2)));
    // Whoever leaves need not be told.
    node.sessions.removed(Generation(3), &removed, &mut node.out);
    node.send(A, b"C\0\0\0\0");
    for conn in [B, late] {
        assert_eq!(node.asked(), []);
        node.sessions.closed(conn, &mut node.out);
    }
    let SessionAction::Told { generation: Generation(3), .. } = node.asked_one() else { panic!() };
}

#[test]
fn after_a_jump_nothing_is_believed_until_the_client_was_told() {
    let mut node = Node::with_two();
    node.send(A, &load(2));
    node.store.applied = Seq(50);
    node.sessions.jumped(Seq(50));
    node.sessions.poke(node.now, &node.store, &mut node.out);
    node.send(A, &[load(1), b"S".to_vec(), load(1)].concat());
    node.sync_all();
    let old = |oid| found(&record(oid, b"old"));
    assert_eq!(node.sent(A), [old(2), b"I".to_vec(), told(&[2]), old(1)].concat());
}

#[test]
fn unused_oids_are_known_and_freed() {
    let mut node = Node::with_two();
    node.send(A, b"M\x03");
    let SessionAction::NewOids { id, session: 1, count: 3 } = node.asked_one() else { panic!() };
    let oids = [Oid(7), Oid(9), Oid(8)];
    node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
    node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
    let expected: Vec<u8> = oids.iter().flat_map(|oid| oid.0.to_be_bytes()).collect();
    assert_eq!(node.sent(A), expected);
    assert_eq!(node.sessions.pools(), [(1, vec![Oid(7), Oid(8), Oid(9)])]);
    node.send(A, b"C");
    let mine = [(8, record(8, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (_, commit_id) = node.commit_id();
    assert_eq!(node.sessions.pools().len(), 1);
    // The client goes; what it holds is not free before its commit is settled.
    node.sessions.closed(A, &mut node.out);
    assert_eq!((node.asked(), node.sessions.len()), (vec![], 1));
    assert_eq!(node.sessions.pools(), [(1, vec![Oid(7), Oid(8), Oid(9)])]);
    node.apply(&mine, commit_id);
    let SessionAction::FreeSession { session: 1, .. } = node.asked_one() else { panic!() };
    assert_eq!(node.sessions.pools(), []);
    node.sessions.closed(B, &mut node.out);
    assert_eq!(node.asked(), [], "B never held an oid");
}

#[test]
fn who_leaves_while_waiting_leaves_nothing_behind() {
    let mut node = Node::with_two();
    node.send(A, b"S");
    let sync = node.sync_id();
    node.send(B, b"N");
    let SessionAction::NewOids { id, .. } = node.asked_one() else { panic!() };
    node.sessions.closed(A, &mut node.out);
    node.sessions.closed(A, &mut node.out);
    node.sessions.closed(B, &mut node.out);
    let SessionAction::FreeSession { session: 2, .. } = node.asked_one() else { panic!() };
    node.synced(sync, 10);
    node.sessions.oids(id, &[Oid(50)], node.now, &node.store, &mut node.out);
    node.send(A, b"S");
    assert_eq!((node.out.len(), node.sessions.deadline()), (0, None));
    // The same for a commit that only a conflict settles.
    node.open(ConnId(3));
    node.send(ConnId(3), b"C");
    node.sync_all();
    node.send(ConnId(3), &commit_data(&[(1, record(1, b"mine"))]));
    node.sent(ConnId(3));
    let (id, _) = node.commit_id();
    node.sessions.closed(ConnId(3), &mut node.out);
    node.sessions.send_touched(id, &mut node.out);
    assert_eq!(node.commit_id().0, id, "it is still settled");
    node.conflict(id, &[]);
    assert_eq!((node.out.len(), node.sessions.outstanding(id)), (0, false));
}

#[test]
fn revoked_sessions_are_closed() {
    let mut node = Node::with_two();
    node.sessions.revoke(&[2, 99], &mut node.out);
    let SessionAction::Close { conn: B, reason: CloseReason::Revoked } = node.asked_one() else {
        panic!()
    };
}

#[test]
fn malformed_commits_close_and_ask_nothing_of_the_master() {
    let cases: [(Vec<u8>, &str); 4] = [
        (commit_data(&[(1, record(2, b"x"))]), "says it is of oid 2"),
        (commit_data(&[(1, record(1, b"x")), (1, record(1, b"y"))]), "twice"),
        (commit_data(&[(u64::MAX, record(u64::MAX, b"x"))]), "reserved"),
        (b"\0\0\0\x05\0\0\0\xff\0".to_vec(), "ends inside a record's header"),
    ];
    for (data, why) in cases {
        let mut node = Node::with_two();
        node.send(A, &[b"C", &data[..]].concat());
        let reason = node.closed_for().to_string();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(node.sessions.len(), 1);
    }
}

#[test]
fn odd_commands_close() {
    for (bytes, why) in [
        (&b"x"[..], "unknown command byte 0x78"),
        (b"V\0\0\0\x02", "version 2"),
        (b"Q", "allow_quit"),
        (b"L\0\0\0\0\0\0\x02\x9a", "bad sector"),
    ] {
        let mut node = Node::with_two();
        node.send(A, bytes);
        let reason = node.closed_for().to_string();
        assert!(reason.contains(why), "{reason}");
    }
    let mut node = Node::limited(Limits { allow_quit: true, ..Limits::default() });
    node.open(A);
    node.sync_all();
    node.send(A, b"Q");
    assert_eq!(node.asked()[0], SessionAction::Quit { conn: A });
}

#[test]
fn every_limit_that_bites_is_named() {
    let tight = Limits {
        connections_max: 2,
        transaction_bytes_max: 1000,
        objects_per_transaction_max: 2,
        record_bytes_max: 100,
        bulk_oids_max: 3,
        answer_bytes_max: 40,
        input_buffered_max: 50,
        unused_oids_max: 5,
        commits_waiting_bytes_max: 200,
        ..Limits::default()
    };
    let three = commit_data(&[1, 2, 3].map(|oid| (oid, record(oid, b""))));
    let wide = commit_data(&[(1, record(1, &[0; 100]))]);
    let two = commit_data(&[1, 2].map(|oid| (oid, record(oid, &[0; 80]))));
    for (bytes, name) in [
        (bulk(&[1, 2, 3, 4]), "bulk_oids_max"),
        (bulk(&[1, 2, 3]), "answer_bytes_max"),
        (b"M\x06".to_vec(), "unused_oids_max"),
        (b"C\0\0\x10\0".to_vec(), "transaction_bytes_max"),
        ([b"C", &three[..]].concat(), "objects_per_transaction_max"),
        ([b"C", &wide[..]].concat(), "record_bytes_max"),
        ([b"C", &two[..]].concat(), "commits_waiting_bytes_max"),
    ] {
        let mut node = Node::limited(tight.clone());
        node.open(A);
        node.send(A, b"S");
        node.sync_all();
        node.send(A, &bytes);
        match node.closed_for() {
            CloseReason::Limit { name: bit, .. } => assert_eq!(bit, name),
            other => panic!("{name}: {other}"),
        }
    }
    let mut node = Node::limited(tight);
    for conn in 1..=3 {
        node.open(ConnId(conn));
    }
    node.sync_all();
    let reason = node.closed_for().to_string();
    assert!(reason.contains("connections_max = 2"), "{reason}");
    node.send(A, b"S");
    node.sync_id();
    node.send(A, &[b'S'; 50]);
    assert_eq!(node.asked(), []);
    node.send(A, b"S");
    assert!(node.closed_for().to_string().contains("input_buffered_max"));
}

#[test]
fn only_who_stalls_inside_a_command_or_waits_too_long_is_closed() {
    let mut node = Node::with_two();
    node.later(1_000_000);
    assert_eq!(node.asked(), [], "idle clients stay");
    node.send(A, b"L\0\0");
    assert_eq!(node.sessions.deadline(), Some(node.now.mono_us + 10_000_000));
    node.later(9_000);
    node.send(A, b"\0");
    node.later(9_000);
    assert_eq!(node.asked(), []);
    node.later(1_000);
    assert_eq!(node.closed_for(), CloseReason::Stalled(10_000));
    node.send(B, b"C");
    node.later(10_000);
    assert_eq!(node.closed_for(), CloseReason::Stalled(10_000));
    assert_eq!(node.sessions.deadline(), None);

    let mut node = Node::with_two();
    node.send(B, b"C");
    node.send(B, &commit_data(&[(1, record(1, b"mine"))]));
    node.send(A, b"S");
    assert_eq!(node.sessions.deadline(), Some(node.now.mono_us + 60_000_000));
    node.later(59_999);
    assert_eq!(node.asked().len(), 2);
    node.later(1);
    let reasons: Vec<String> = node
        .asked()
        .into_iter()
        .map(|action| match action {
            SessionAction::Close { reason, .. } => reason.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(reasons[0].contains("sync") && reasons[1].contains("outcome of a commit unknown"));
}
