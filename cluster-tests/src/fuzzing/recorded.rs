//! The life of a cluster of three, recorded once: what happened to each node, and every message.
//!
//! The production cores live it, in one order and without faults: they start, elect, serve clients, promote, pack and
//! switch, and serve again. A fuzzer goes in anywhere: the core is deterministic, so what was lived once is lived again
//! by applying the same events to a new one. Its messages are what seeds are made of.

use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;

use bytes::Bytes;
use packmaster::control::{Member, Role};
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminRequest, Promote};
use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::peer_message::Kind;
use packmaster::types::NodeId;

use super::judge;
use super::machine::{Event, Machine, Word};

pub const NODES: u64 = 3;
/// The clock goes on by so much in a round.
const ROUND_US: u64 = 2000;
/// Rounds until something that is waited for must have happened.
const ROUNDS_MAX: u32 = 2000;

pub struct Recorded {
    /// What happened to each node.
    pub lives: [Vec<Event>; NODES as usize],
    /// Moments at which a fuzzer goes in: how much of each life has passed.
    pub moments: Vec<[usize; NODES as usize]>,
    /// From, to, what; in order.
    pub messages: Vec<(u64, u64, PeerMessage)>,
    /// What Raft committed, by index.
    pub commands: Vec<(u64, Bytes)>,
}

/// The same for the whole process.
pub fn recorded() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let mut cluster = Cluster::new();
        cluster.live();
        cluster.end()
    })
}

/// As the replicated state knows them before they were up.
pub fn members() -> Vec<Member> {
    let member = |id: u64| Member {
        id: NodeId(id),
        name: format!("n{id}"),
        disk_uuid: None,
        durus: format!("n{id}:2972"),
        peer: format!("n{id}:3972"),
        http: format!("n{id}:4972"),
        role: Role::Voter,
        priority: 0,
        may_be_master: true,
    };
    (1..=NODES).map(member).collect()
}

struct Cluster {
    machines: Vec<Machine>,
    lives: [Vec<Event>; NODES as usize],
    moments: Vec<[usize; NODES as usize]>,
    messages: Vec<(u64, u64, PeerMessage)>,
    flying: VecDeque<(u64, u64, PeerMessage)>,
    heard: BTreeMap<u64, Vec<u8>>,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster {
            machines: (1..=NODES).map(|id| Machine::new(id, NODES)).collect(),
            lives: Default::default(),
            moments: Vec::new(),
            messages: Vec::new(),
            flying: VecDeque::new(),
            heard: BTreeMap::new(),
        }
    }

    fn happens(&mut self, node: u64, event: Event) {
        let life = &mut self.lives[node as usize - 1];
        match (life.last_mut(), &event) {
            (Some(Event::Later(us)), Event::Later(more)) => *us += more,
            _ => life.push(event.clone()),
        }
        let machine = &mut self.machines[node as usize - 1];
        machine.apply(event);
        assert!(machine.exit.is_none(), "{:?}", machine.exit);
        for (to, message) in machine.sent.drain(..) {
            self.messages.push((node, to, message.clone()));
            self.flying.push_back((node, to, message));
        }
        for (conn, word) in machine.said.drain(..) {
            match word {
                Word::Bytes(bytes) => self.heard.entry(conn).or_default().extend(bytes),
                Word::Closed(why) => panic!("client {conn} is sent away: {why}"),
            }
        }
    }

    fn moment(&mut self) {
        self.moments.push(self.lives.each_ref().map(Vec::len));
    }

    fn round(&mut self) {
        for (from, to, message) in std::mem::take(&mut self.flying) {
            self.happens(to, Event::Peer(from, message));
        }
        for node in 1..=NODES {
            let at = node as usize - 1;
            if self.machines[at].wants_disk() {
                self.happens(node, Event::Disk);
            }
            if self.machines[at].wants_raft() {
                self.happens(node, Event::Raft);
            }
            if self.machines[at].wants_jobs() {
                self.happens(node, Event::Jobs);
            }
            self.happens(node, Event::Later(ROUND_US));
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if done(self) {
                return;
            }
            self.round();
        }
        panic!("the recorded cluster: {what} does not come about");
    }

    /// A client's bytes, and so many of the answer.
    fn ask(&mut self, node: u64, bytes: &[u8], answer: usize) -> Vec<u8> {
        let conn = node;
        self.happens(node, Event::ClientData(conn, Bytes::copy_from_slice(bytes)));
        self.until("an answer", |it| it.heard.get(&conn).is_some_and(|got| got.len() >= answer));
        let got = self.heard.remove(&conn).unwrap_or_default();
        assert_eq!(got.len(), answer, "{got:?} to {bytes:?}");
        got
    }

    /// A commit by the client of that node; what was changed by others it is told first.
    fn commit(&mut self, node: u64, records: &[(u64, Vec<u8>)]) {
        let mut data = Vec::new();
        for (oid, record) in records {
            data.extend((8 + record.len() as u32).to_be_bytes());
            data.extend(oid.to_be_bytes());
            data.extend(record);
        }
        self.sync(node, b"S");
        self.sync(node, b"C");
        let data = [&(data.len() as u32).to_be_bytes()[..], &data].concat();
        assert_eq!(self.ask(node, &data, 1), b"O");
    }

    /// Something that is answered by a count and oids.
    fn sync(&mut self, node: u64, command: &'static [u8]) {
        self.happens(node, Event::ClientData(node, Bytes::from_static(command)));
        self.until("a sync", |it| {
            it.heard.get(&node).is_some_and(|got| {
                let count = got.first_chunk::<4>().map(|count| u32::from_be_bytes(*count));
                count.is_some_and(|count| got.len() == 4 + 8 * count as usize)
            })
        });
        self.heard.remove(&node);
    }

    fn new_oid(&mut self, node: u64) -> u64 {
        u64::from_be_bytes(self.ask(node, b"N", 8).try_into().expect("8 bytes"))
    }

    fn generation(&self, node: u64) -> u64 {
        let whole = judge::whole(&self.machines[node as usize - 1].file()).expect("a whole file");
        whole.links[0].generation
    }

    fn live(&mut self) {
        self.moment();
        for from in 1..=NODES {
            for peer in (1..=NODES).filter(|peer| *peer != from) {
                self.happens(from, Event::PeerUp(peer));
            }
            self.happens(from, Event::ClientOpened(from));
        }
        for _ in 0..20 {
            self.round();
        }
        self.moment();
        for node in 1..=NODES {
            assert_eq!(self.ask(node, b"V\0\0\0\x01", 4), [0, 0, 0, 1]);
        }
        self.sync(1, b"S");
        self.moment();
        self.commit(1, &[(0, record(0, b"root", &[]))]);
        let (one, two) = (self.new_oid(1), self.new_oid(2));
        self.commit(1, &[(0, record(0, b"root", &[one])), (one, record(one, b"one", &[0]))]);
        self.commit(2, &[(two, record(two, b"nobody refers to this", &[]))]);
        self.moment();
        let promote = Promote { node: "n2".into(), ..Promote::default() };
        let asked_by = "somebody".to_string();
        let verb = Some(Verb::Promote(promote));
        self.happens(3, Event::Admin(AdminRequest { id: 5, asked_by, verb }));
        for _ in 0..6 {
            self.round();
        }
        self.moment();
        self.commit(3, &[(one, record(one, b"another one", &[0]))]);
        self.moment();
        assert_eq!(self.ask(1, b"P", 1), b"O");
        for _ in 0..4 {
            self.round();
        }
        self.moment();
        self.until("a pack", |it| (1..=NODES).all(|node| it.generation(node) == 2));
        self.moment();
        let three = self.new_oid(1);
        self.commit(
            1,
            &[(0, record(0, b"root", &[one, three])), (three, record(three, b"3", &[]))],
        );
        for _ in 0..30 {
            self.round();
        }
        self.moment();
    }

    fn end(self) -> Recorded {
        let mut commands = BTreeMap::new();
        for (_, _, message) in &self.messages {
            if let Some(Kind::Raft(raft)) = &message.kind {
                let entries = raft.entries.iter().filter(|entry| !entry.data.is_empty());
                commands.extend(entries.map(|entry| (entry.index, entry.data.clone())));
            }
        }
        Recorded {
            lives: self.lives,
            moments: self.moments,
            messages: self.messages,
            commands: commands.into_iter().collect(),
        }
    }
}

pub fn record(oid: u64, data: &[u8], refs: &[u64]) -> Vec<u8> {
    crate::client::record(oid, data, refs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fuzzer's ground: without it every input would be about a node that nobody speaks to.
    #[test]
    fn the_recorded_life_has_everything_in_it_and_is_lived_again_exactly() {
        let life = recorded();
        let mut kinds = BTreeMap::new();
        for (_, _, message) in &life.messages {
            let kind = format!("{:?}", message.kind);
            let name = kind.trim_start_matches("Some(").split('(').next().unwrap().to_string();
            *kinds.entry(name).or_insert(0) += 1;
        }
        for kind in
            ["Raft", "Beat", "FenceRequest", "FenceReport", "Append", "AppendReply", "PackTurn"]
        {
            assert!(kinds.contains_key(kind), "{kinds:?}");
        }
        println!("{kinds:?}, events {:?}", life.lives.each_ref().map(Vec::len));
        for node in 1..=NODES {
            let mut machine = Machine::new(node, NODES);
            for event in &life.lives[node as usize - 1] {
                machine.apply(event.clone());
            }
            let mine = life.messages.iter().filter(|(from, ..)| *from == node);
            let again: Vec<_> = machine.sent.iter().collect();
            assert_eq!(again.len(), mine.clone().count());
            for ((to, message), (_, wanted_to, wanted)) in again.into_iter().zip(mine) {
                assert_eq!((to, message), (wanted_to, wanted));
            }
        }
    }
}
