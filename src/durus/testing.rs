//! One node with its sessions, and how tests speak to it: bytes in, bytes out, and the master played by hand.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::types::{BootId, CommitId, ConnId, Epoch, Generation, Now, Oid, Seq};

pub const A: ConnId = ConnId(1);
pub const B: ConnId = ConnId(2);

#[derive(Default)]
pub struct Store {
    pub records: BTreeMap<Oid, Bytes>,
    pub applied: Seq,
    /// Up to where clients may be told that what is shown is stored; None: all of it.
    pub acknowledged: Option<Seq>,
    /// What was shown before, as far as it is kept.
    pub before: BTreeMap<Seq, BTreeMap<Oid, Bytes>>,
    /// What the file holds besides: the next transactions, of epoch 7, by what they store.
    pub ahead: Vec<Vec<u64>>,
}

impl View for Store {
    fn load(&self, oid: Oid) -> Result<Option<Bytes>, String> {
        if oid == Oid(666) {
            return Err("bad sector".to_string());
        }
        Ok(self.records.get(&oid).cloned())
    }

    fn load_before(&self, oid: Oid, seq: Seq) -> Result<Option<Option<Bytes>>, String> {
        let records = match seq == self.applied {
            true => Some(&self.records),
            false => self.before.get(&seq),
        };
        Ok(records.map(|records| records.get(&oid).cloned()))
    }

    fn applied(&self) -> Seq {
        self.applied
    }

    fn acknowledged(&self) -> Seq {
        self.acknowledged.unwrap_or(self.applied)
    }

    fn tip(&self) -> Seq {
        Seq(self.applied.0 + self.ahead.len() as u64)
    }

    fn ahead(&self) -> Option<Ahead> {
        let seq = Seq(self.applied.0 + self.ahead.len() as u64);
        let oids = self.ahead.iter().flatten().copied().collect();
        (!self.ahead.is_empty()).then_some(Ahead { epoch: Epoch(7), seq, oids })
    }
}

pub struct Node {
    pub sessions: Sessions,
    pub store: Store,
    pub now: Now,
    pub out: Vec<SessionAction>,
}

pub fn record(oid: u64, data: &[u8]) -> Bytes {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes.into()
}

pub fn found(record: &[u8]) -> Vec<u8> {
    [b"O", &(record.len() as u32).to_be_bytes()[..], record].concat()
}

pub fn load(oid: u64) -> Vec<u8> {
    [&b"L"[..], &oid.to_be_bytes()].concat()
}

pub fn bulk(oids: &[u64]) -> Vec<u8> {
    let mut bytes = b"B".to_vec();
    bytes.extend((oids.len() as u32).to_be_bytes());
    oids.iter().for_each(|oid| bytes.extend(oid.to_be_bytes()));
    bytes
}

pub fn told(oids: &[u64]) -> Vec<u8> {
    bulk(oids)[1..].to_vec()
}

pub fn commit_data(records: &[(u64, Bytes)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (oid, record) in records {
        data.extend((8 + record.len() as u32).to_be_bytes());
        data.extend(oid.to_be_bytes());
        data.extend(&record[..]);
    }
    [&(data.len() as u32).to_be_bytes()[..], &data].concat()
}

impl Node {
    pub fn new() -> Node {
        Node::limited(Limits::default())
    }

    /// Objects 0 to 4, as of seq 10.
    pub fn limited(limits: Limits) -> Node {
        let mut store = Store { applied: Seq(10), ..Store::default() };
        for oid in 0..5 {
            store.records.insert(Oid(oid), record(oid, b"old"));
        }
        let sessions = Sessions::new(limits, BootId(9), Seq(10), Generation(1));
        Node { sessions, store, now: Now::default(), out: Vec::new() }
    }

    /// With A and B connected, and past their first sync.
    pub fn with_two() -> Node {
        let mut node = Node::new();
        for conn in [A, B] {
            node.open(conn);
            node.send(conn, b"S");
            node.sync_all();
            assert_eq!(node.sent(conn), told(&[]));
        }
        node
    }

    pub fn open(&mut self, conn: ConnId) {
        self.sessions.opened(conn, self.now, &mut self.out);
    }

    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        self.sessions.data(conn, bytes, self.now, &self.store, &mut self.out);
    }

    pub fn read_on(&mut self) {
        self.sessions.read_on(self.now, &self.store, &mut self.out);
    }

    /// The client has taken what it was sent. False: nobody wants to know.
    pub fn drain(&mut self, conn: ConnId) -> bool {
        let before = self.out.len();
        self.out.retain(|action| *action != SessionAction::Drain { conn });
        let asked = before > self.out.len();
        if asked {
            self.sessions.drained(conn, self.now, &mut self.out);
        }
        asked
    }

    pub fn synced(&mut self, id: u64, seq: u64) {
        self.sessions.synced(id, Seq(seq), self.now, &self.store, &mut self.out);
    }

    pub fn committed(&mut self, id: u64, seq: u64) {
        self.sessions.committed(id, Seq(seq), self.now, &self.store, &mut self.out);
    }

    pub fn conflict(&mut self, id: u64, dead: &[Oid]) {
        self.sessions.conflict(id, dead, self.now, &self.store, &mut self.out);
    }

    /// One transaction becomes visible.
    pub fn apply(&mut self, records: &[(u64, Bytes)], commit_id: CommitId) {
        match self.sessions.reads_before() {
            true => _ = self.store.before.insert(self.store.applied, self.store.records.clone()),
            false => self.store.before.clear(),
        }
        self.store.applied = self.store.applied.next();
        let oids: Vec<Oid> = records.iter().map(|(oid, _)| Oid(*oid)).collect();
        for (oid, record) in records {
            self.store.records.insert(Oid(*oid), record.clone());
        }
        self.sessions.applied(self.store.applied, &oids, commit_id);
        self.sessions.poke(self.now, &self.store, &mut self.out);
    }

    /// Somebody on another node changed these.
    pub fn others_change(&mut self, oids: &[u64]) {
        let records: Vec<_> = oids.iter().map(|oid| (*oid, record(*oid, b"new"))).collect();
        self.apply(&records, CommitId::NONE);
    }

    /// Bytes sent to a client since it was last asked.
    pub fn sent(&mut self, conn: ConnId) -> Vec<u8> {
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
    pub fn asked(&mut self) -> Vec<SessionAction> {
        let sends = |action: &mut SessionAction| !matches!(action, SessionAction::Send { .. });
        self.out.extract_if(.., sends).collect()
    }

    pub fn asked_one(&mut self) -> SessionAction {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }

    pub fn sync_id(&mut self) -> u64 {
        match self.asked_one() {
            SessionAction::Sync { id } => id,
            other => panic!("{other:?}"),
        }
    }

    /// The id of the one commit that is asked for, and its commit id.
    pub fn commit_id(&mut self) -> (u64, CommitId) {
        match self.asked_one() {
            SessionAction::Commit { id, commit_id, .. } => (id, commit_id),
            other => panic!("{other:?}"),
        }
    }

    /// If somebody asks for its turn to commit, it has come.
    pub fn give_turn(&mut self) {
        if let [SessionAction::Turn { id, .. }] = self.asked()[..] {
            self.turn(id, self.store.applied.0);
        }
    }

    pub fn turn(&mut self, id: u64, seq: u64) {
        self.sessions.turn(id, Seq(seq), self.now, &self.store, &mut self.out);
    }

    /// Answers syncs with the newest position until none is out.
    pub fn sync_all(&mut self) {
        while let Some(at) =
            self.out.iter().position(|action| matches!(action, SessionAction::Sync { .. }))
        {
            let SessionAction::Sync { id } = self.out.remove(at) else { unreachable!() };
            self.synced(id, self.store.applied.0);
        }
    }

    pub fn closed_for(&mut self) -> CloseReason {
        match self.asked_one() {
            SessionAction::Close { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn later(&mut self, ms: u64) {
        self.now.mono_us += ms * 1000;
        self.sessions.tick(self.now, &mut self.out);
    }
}

/// A master that says yes to everything, at once.
pub fn serve(node: &mut Node) {
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
