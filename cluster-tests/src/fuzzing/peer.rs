//! One node of three, in the middle of its life, and peers that say what a fuzzer wants.
//!
//! The first two bytes choose the node and the moment of the recorded life. From there on the script mixes what really
//! came next with messages of its own: any bytes that decode, recorded ones that were damaged, and ones made with care,
//! so that they are believed (an append with good chains from the very master, a Raft message of the present term, a
//! client's request of a registered node).
//!
//! A peer is a member that has lost its mind: it may stop this node, or mislead it; but nothing that it says makes a
//! node panic, its file is whole after every disk task and at every restart, and what it has called committed stays.

use std::collections::BTreeMap;

use bytes::Bytes;
use packmaster::node::frame;
use packmaster::proto::control::peer_message::Kind;
use packmaster::proto::control::{
    Command, FenceReport, FenceRequest, PeerMessage, Propose, RaftConfState, RaftEntry,
    RaftMessage, RaftSnapshot,
};
use packmaster::proto::replication as pb;
use packmaster::proto::replication::client_request::Ask;
use packmaster::shelf::{self, Kind as TxKind, SealInfo, TxMeta};
use packmaster::types::{Chain, CommitId, Epoch, Generation, Oid, Seq};
use prost::Message;

use super::judge::{self, Hash, Whole};
use super::machine::{Event, Machine};
use super::recorded::{NODES, Recorded, record, recorded};
use super::script::{Script, damage};

/// Events of the recorded life that go on at once, at most.
const GO_ON_MAX: usize = 64;

pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut node = Node::new(&mut script);
    while !script.is_over() && node.machine.exit.is_none() {
        node.act(&mut script);
    }
    node.end();
}

struct Node {
    life: &'static Recorded,
    machine: Machine,
    /// So much of its life has passed.
    lived: usize,
    /// What this node has called committed, by seq, of the file with that base.
    base: Hash,
    known: BTreeMap<u64, Hash>,
    committed: u64,
    ground: Ground,
}

/// What peers can know of this node: it has told them.
#[derive(Clone, Default)]
struct Ground {
    epoch: u64,
    /// Of its master, as it answers it.
    master: u64,
    boot: u64,
    term: u64,
    index: u64,
    log_term: u64,
    generation: u64,
    base_hash: Bytes,
}

impl Node {
    fn new(script: &mut Script<'_>) -> Node {
        let life = recorded();
        let id = 1 + script.below(NODES as usize) as u64;
        let moment = script.below(life.moments.len());
        let machine = Machine::new(id, NODES);
        let (base, known) = ([0; 20], BTreeMap::new());
        let ground = Ground { master: 1, ..Ground::default() };
        let mut node = Node { life, machine, lived: 0, base, known, committed: 0, ground };
        node.go_on(life.moments[moment][id as usize - 1]);
        node.look();
        node
    }

    fn go_on(&mut self, upto: usize) {
        let life = &self.life.lives[self.machine.id as usize - 1];
        while self.lived < upto.min(life.len()) && self.machine.exit.is_none() {
            let event = life[self.lived].clone();
            self.lived += 1;
            self.machine.apply(event);
        }
        self.hear();
    }

    fn happens(&mut self, event: Event) {
        self.machine.apply(event);
        self.hear();
    }

    /// Notes what the node says of itself.
    fn hear(&mut self) {
        for (to, message) in std::mem::take(&mut self.machine.sent) {
            match message.kind {
                Some(Kind::Beat(beat)) => {
                    self.ground.epoch = beat.promised;
                    let Some(position) = beat.position else { continue };
                    if position.base_hash[..] == self.base {
                        let seen = beat.committed_seq >= self.committed;
                        assert!(seen, "CommittedNeverTruncated: {} now", beat.committed_seq);
                        self.committed = beat.committed_seq;
                    }
                    self.ground.generation = position.generation;
                    self.ground.base_hash = position.base_hash;
                }
                Some(Kind::AppendReply(reply)) => {
                    (self.ground.master, self.ground.boot) = (to, reply.boot);
                }
                Some(Kind::Append(append)) => self.ground.boot = append.boot,
                Some(Kind::Raft(raft)) => {
                    self.ground.term = raft.term;
                    self.ground.index = raft.index.max(raft.commit);
                    self.ground.log_term = raft.log_term;
                }
                _ => {}
            }
        }
        self.machine.said.clear();
    }

    /// The file, whenever the disk has done something.
    fn look(&mut self) {
        let whole = judge::whole(&self.machine.file());
        let whole = whole.unwrap_or_else(|why| panic!("the file is not whole: {why}"));
        let base = whole.links[0].chain;
        if base != self.base {
            (self.base, self.committed) = (base, 0);
            self.known.clear();
        }
        let now = |seq: u64| whole.links.iter().find(|link| link.seq == seq).map(|it| it.data_hash);
        for (seq, hash) in &self.known {
            assert_eq!(now(*seq), Some(*hash), "CommittedNeverTruncated: seq {seq}");
        }
        let committed = whole.links.iter().take_while(|link| link.seq <= self.committed);
        self.known.extend(committed.map(|link| (link.seq, link.data_hash)));
    }

    fn act(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let from = self.peer(what / 16);
        match what % 16 {
            0 => {
                let bytes = Bytes::copy_from_slice(script.long_piece());
                if let Ok(message) = frame::decode("message", bytes) {
                    self.happens(Event::Peer(from, message));
                }
            }
            1 | 2 => self.go_on(self.lived + 1 + script.below(GO_ON_MAX)),
            3 | 4 => self.says_again(from, script),
            5 => self.appends(script),
            6 => self.raft(from, script),
            7 => self.asks(from, script),
            8 => self.commands(from, script),
            9 => self.fences(from, script),
            10 => self.works(script),
            11 => self.happens(Event::Later(1000 * u64::from(script.byte()))),
            12 => self.happens(match script.byte() {
                up @ 0..=63 => Event::PeerUp(self.peer(up)),
                down => Event::PeerDown(self.peer(down), down & 64 == 0),
            }),
            13 => {
                let bytes = Bytes::copy_from_slice(script.piece());
                self.happens(Event::ClientData(self.machine.id, bytes));
            }
            14 => self.restarts(),
            _ => self.common_point(from, script),
        }
    }

    fn peer(&self, byte: u8) -> u64 {
        let others: Vec<u64> = (1..=NODES).filter(|id| *id != self.machine.id).collect();
        others[usize::from(byte) % others.len()]
    }

    fn says(&mut self, from: u64, kind: Kind) {
        self.happens(Event::Peer(from, PeerMessage { kind: Some(kind) }));
    }

    /// A message of the recorded life, damaged or not.
    fn says_again(&mut self, from: u64, script: &mut Script<'_>) {
        let messages = &self.life.messages;
        let (_, _, message) = &messages[usize::from(script.short()) % messages.len()];
        let mut bytes = message.encode_to_vec();
        damage(&mut bytes, script.piece());
        if let Ok(message) = frame::decode("message", bytes.into()) {
            self.happens(Event::Peer(from, message));
        }
    }

    fn works(&mut self, script: &mut Script<'_>) {
        match script.below(4) {
            0 => self.happens(Event::Disk),
            1 => self.happens(Event::Raft),
            2 => self.happens(Event::Jobs),
            _ => self.machine.settle(),
        }
        self.hear();
        self.look();
    }

    fn restarts(&mut self) {
        let id = self.machine.id;
        let old = std::mem::replace(&mut self.machine, Machine::new(id, NODES));
        self.machine = old.restarted().unwrap_or_else(|error| panic!("it can't start: {error}"));
        // It is not sure of anything any more, and says so.
        self.committed = 0;
        self.look();
    }

    fn end(mut self) {
        if self.machine.exit.is_none() {
            self.machine.settle();
            self.hear();
        }
        self.look();
        self.restarts();
        self.happens(Event::Later(100_000));
        self.machine.settle();
        self.hear();
        self.look();
    }

    // ---- messages made with care ----

    fn whole(&self) -> Whole {
        judge::whole(&self.machine.file()).expect("looked at whenever it changes")
    }

    /// Transactions after the node's own tip, each with a good chain; what they say is the script's.
    fn appends(&mut self, script: &mut Script<'_>) {
        let whole = self.whole();
        let Some(last) = whole.links.last() else { return };
        let back = script.below(3).min(whole.links.len() - 1);
        let prev = whole.links[whole.links.len() - 1 - back].clone();
        let mut chain = Chain(prev.chain);
        let (mut seq, mut epoch, mut time_us) = (prev.seq, prev.epoch, prev.time_us);
        let odd = script.byte();
        let ground = self.ground.clone();
        if odd & 1 != 0 {
            (epoch, time_us) = (script.number(), script.number());
        } else {
            (epoch, time_us) = (epoch.max(ground.epoch), time_us.max(last.time_us));
        }
        let mut transactions = Vec::new();
        for _ in 0..script.below(4) {
            seq = if odd & 2 == 0 { seq.wrapping_add(1) } else { script.number() };
            let meta = meta(script, epoch, seq, time_us);
            let records = match meta.kind {
                TxKind::Commit => records(script),
                _ => Vec::new(),
            };
            let built = shelf::build(&chain, &meta, &records);
            chain = built.chain;
            transactions.extend_from_slice(&built.bytes);
        }
        damage(&mut transactions, if odd & 4 != 0 { script.piece() } else { &[] });
        let tip = |link: &judge::Link| pb::Tip {
            epoch: link.epoch,
            seq: link.seq,
            offset: link.end,
            chain: Bytes::copy_from_slice(&link.chain),
        };
        let mut commit = tip(&whole.links[script.below(whole.links.len())]);
        if odd & 8 != 0 {
            commit.seq = script.number();
        }
        // All of it as a piece: a whole transaction, if it is one, from its beginning or from somewhere.
        let piece = (odd & 128 != 0).then(|| {
            let data = Bytes::from(std::mem::take(&mut transactions));
            let offset = prev.end.wrapping_add(data.len() as u64);
            let end = pb::Tip { epoch, seq, offset, chain: Bytes::copy_from_slice(&chain.0) };
            let offset = if script.byte() & 1 == 0 { 0 } else { script.number() };
            Box::new(pb::Piece { end: Some(end), offset, data })
        });
        let append = pb::Append {
            number: 0,
            piece,
            epoch: if odd & 16 == 0 { ground.epoch } else { script.number() },
            boot: if odd & 32 == 0 { ground.boot } else { script.number() },
            generation: ground.generation,
            base_hash: ground.base_hash.clone(),
            prev: Some(tip(&prev)),
            transactions: transactions.into(),
            want_reply: odd & 64 != 0,
            commit: Some(commit),
            acknowledged_seq: 0,
        };
        self.says(ground.master, Kind::Append(append));
    }

    fn common_point(&mut self, from: u64, script: &mut Script<'_>) {
        let whole = self.whole();
        let point = |script: &mut Script<'_>| {
            let link = &whole.links[script.below(whole.links.len())];
            let chain = Bytes::copy_from_slice(&link.chain);
            pb::Tip { epoch: link.epoch, seq: link.seq, offset: link.end, chain }
        };
        let common = pb::CommonPoint {
            epoch: self.ground.epoch,
            boot: self.ground.boot,
            generation: self.ground.generation,
            base_hash: self.ground.base_hash.clone(),
            point: Some(point(script)),
            newer_mismatch: Some(point(script)),
        };
        let from = if script.byte() < 200 { self.ground.master } else { from };
        self.says(from, Kind::CommonPoint(common));
    }

    /// A Raft message of about the present term and place.
    fn raft(&mut self, from: u64, script: &mut Script<'_>) {
        let ground = self.ground.clone();
        let near = |script: &mut Script<'_>, number: u64| match script.byte() {
            by @ 0..=15 => number.wrapping_add(u64::from(by)).wrapping_sub(8),
            16..=199 => number,
            _ => script.number(),
        };
        let what = script.byte();
        let index = near(script, ground.index);
        let term = near(script, ground.term);
        let entries = (0..script.below(3) as u64).map(|nth| RaftEntry {
            entry_type: u32::from(script.byte() == 255),
            term: near(script, term),
            index: index.wrapping_add(1 + nth),
            data: self.command(script),
            ..RaftEntry::default()
        });
        let entries = entries.collect();
        let snapshot = (what & 64 != 0).then(|| RaftSnapshot {
            index: near(script, index),
            term: near(script, term),
            data: Bytes::copy_from_slice(script.long_piece()),
            conf_state: Some(RaftConfState { voters: vec![1, 2, 3], ..Default::default() }),
        });
        let message = RaftMessage {
            msg_type: [3, 4, 5, 6, 7, 8, 9, 14, 17, 18][usize::from(what & 63) % 10],
            to: self.machine.id,
            from,
            term,
            log_term: near(script, ground.log_term),
            index,
            entries,
            commit: near(script, ground.index),
            snapshot,
            reject: what & 128 != 0,
            reject_hint: if what & 128 != 0 { script.number() } else { 0 },
            commit_term: if what & 128 != 0 { script.number() } else { 0 },
            ..RaftMessage::default()
        };
        self.says(from, Kind::Raft(message));
    }

    /// A command of the recorded life, damaged or not.
    fn command(&self, script: &mut Script<'_>) -> Bytes {
        let commands = &self.life.commands;
        let (_, command) = &commands[script.below(commands.len())];
        let mut bytes = command.to_vec();
        damage(&mut bytes, script.piece());
        bytes.into()
    }

    /// A command that a peer asks this node to propose, as of the present epoch.
    fn commands(&mut self, from: u64, script: &mut Script<'_>) {
        let Ok(mut command) = Command::decode(self.command(script)) else { return };
        if script.byte() < 200 {
            command.on_epoch = self.ground.epoch;
        }
        self.says(from, Kind::Propose(Propose { command: Some(command) }));
    }

    fn fences(&mut self, from: u64, script: &mut Script<'_>) {
        let epoch = match script.byte() {
            by @ 0..=199 => self.ground.epoch.wrapping_add(u64::from(by)),
            _ => script.number(),
        };
        if script.byte() < 128 {
            return self.says(from, Kind::FenceRequest(FenceRequest { epoch }));
        }
        let tip = pb::Tip {
            epoch: script.number(),
            seq: script.number(),
            offset: script.number(),
            chain: Bytes::copy_from_slice(&self.base),
        };
        let report = FenceReport {
            epoch,
            boot: script.number(),
            position: Some(pb::Position {
                generation: self.ground.generation,
                base_hash: self.ground.base_hash.clone(),
                tip: Some(tip),
            }),
            next_generation: script.number(),
            next_base_hash: self.ground.base_hash.clone(),
            blank: script.byte() & 1 != 0,
            may_be_master: script.byte() & 1 != 0,
            ..FenceReport::default()
        };
        self.says(from, Kind::FenceReport(report));
    }

    /// What a node asks the master for its clients.
    fn asks(&mut self, from: u64, script: &mut Script<'_>) {
        let (epoch, boot) = (self.ground.epoch, 77 + from);
        let session = script.number();
        let ask = match script.below(10) {
            0 => {
                let oids = (0..script.below(5)).map(|_| script.number()).collect();
                let pools = vec![pb::SessionPool { session, oids }];
                let register =
                    pb::Register { epoch, boot, pools, told_generation: script.number() };
                return self.says(from, Kind::Register(register));
            }
            1 => Ask::Sync(pb::Sync {}),
            2 => Ask::NewOids(pb::NewOids { session, count: script.number() as u32 }),
            3 => Ask::FreeSession(pb::FreeSession { session }),
            4 => Ask::Pack(pb::Pack {}),
            5 => Ask::Told(pb::Told { generation: script.number() }),
            6 => Ask::Turn(pb::Turn {
                session,
                touched: Bytes::copy_from_slice(script.piece()),
                has_touched: script.byte() & 1 != 0,
            }),
            7 => Ask::EndTurn(pb::EndTurn { session }),
            _ => Ask::Commit(pb::Commit {
                commit_id: Bytes::copy_from_slice(&[script.byte(); 16]),
                session,
                base_seq: script.number(),
                records: records(script)
                    .into_iter()
                    .map(|(oid, record)| pb::ObjectRecord { oid: oid.0, record })
                    .collect(),
                touched: Bytes::copy_from_slice(script.piece()),
                has_touched: script.byte() & 1 != 0,
                ahead_seq: script.number(),
                ahead_epoch: script.number(),
                again: script.byte() & 1 != 0,
            }),
        };
        let id = script.number();
        self.says(from, Kind::ClientRequest(pb::ClientRequest { epoch, boot, id, ask: Some(ask) }));
    }
}

fn meta(script: &mut Script<'_>, epoch: u64, seq: u64, time_us: u64) -> TxMeta {
    let kind = match script.below(6) {
        0 => TxKind::EpochStart,
        1 => TxKind::Seal(SealInfo {
            generation: Generation(script.number()),
            cut: Seq(seq),
            previous_chain: Chain::ZERO,
        }),
        _ => TxKind::Commit,
    };
    let commit_id = CommitId([script.byte(); 16]);
    TxMeta { kind, epoch: Epoch(epoch), seq: Seq(seq), time_us, commit_id }
}

/// Records that may be stored.
fn records(script: &mut Script<'_>) -> Vec<(Oid, Bytes)> {
    let mut records = Vec::new();
    for _ in 0..script.below(4) {
        let oid = script.number();
        let refs: Vec<u64> = (0..script.below(3)).map(|_| script.number()).collect();
        let record = record(oid, script.piece(), &refs);
        if shelf::check_record(Oid(oid), &record).is_ok() {
            records.push((Oid(oid), record.into()));
        }
    }
    records
}

#[cfg(test)]
mod tests {
    //! What the fuzzer, or the writing of it, came upon: each is what a peer of its right mind never says.

    use super::*;

    /// A slave at the end of its recorded life.
    fn slave() -> Node {
        let moments = recorded().moments.len() as u8;
        let mut node = Node::new(&mut Script::new(&[2, moments - 1]));
        node.machine.settle();
        node.look();
        node
    }

    /// One transaction after the node's tip, with a good chain, from its very master.
    fn append(node: &Node, change: impl FnOnce(&mut TxMeta, &mut pb::Append)) -> pb::Append {
        let whole = node.whole();
        let last = whole.links.last().expect("a seal");
        let mut meta = TxMeta {
            kind: TxKind::Commit,
            epoch: Epoch(last.epoch),
            seq: Seq(last.seq + 1),
            time_us: last.time_us,
            commit_id: CommitId([9; 16]),
        };
        let tip = pb::Tip {
            epoch: last.epoch,
            seq: last.seq,
            offset: last.end,
            chain: Bytes::copy_from_slice(&last.chain),
        };
        let mut append = pb::Append {
            epoch: node.ground.epoch,
            boot: node.ground.boot,
            generation: node.ground.generation,
            base_hash: node.ground.base_hash.clone(),
            prev: Some(tip.clone()),
            commit: Some(tip),
            ..pb::Append::default()
        };
        change(&mut meta, &mut append);
        append.transactions = shelf::build(&Chain(last.chain), &meta, &[]).bytes;
        append
    }

    fn says(node: &mut Node, kind: Kind) {
        let master = node.ground.master;
        node.says(master, kind);
        node.machine.settle();
        node.look();
    }

    /// The others are refused because of what is odd in them, and not because nothing is taken.
    #[test]
    fn a_good_transaction_is_taken() {
        let mut node = slave();
        let before = node.whole().links.len();
        let append = append(&node, |_, _| {});
        says(&mut node, Kind::Append(append));
        assert_eq!(node.whole().links.len(), before + 1);
        node.end();
    }

    /// Its chain fits, so it was taken for a transaction like others, and the shelf's own assertion ended the process.
    #[test]
    fn a_seal_in_an_append_is_refused() {
        let mut node = slave();
        let before = node.whole().links.len();
        let append = append(&node, |meta, _| {
            let (generation, cut) = (Generation(3), meta.seq);
            let previous_chain = Chain::ZERO;
            meta.kind = TxKind::Seal(SealInfo { generation, cut, previous_chain });
        });
        says(&mut node, Kind::Append(append));
        assert_eq!(node.whole().links.len(), before);
        node.end();
    }

    /// A transaction whose time goes back was written, acknowledged, and found to be corrupt at the next start.
    #[test]
    fn a_transaction_whose_time_goes_back_is_refused_before_it_is_written() {
        let mut node = slave();
        let before = node.whole().links.len();
        let append = append(&node, |meta, _| meta.time_us = 5);
        says(&mut node, Kind::Append(append));
        assert_eq!(node.whole().links.len(), before);
        node.end();
    }

    /// The assertion that there is one master an epoch was made about a peer's word, and ended the true master.
    #[test]
    fn a_second_master_of_our_epoch_is_not_believed() {
        let life = recorded();
        for id in 0..NODES as u8 {
            let mut node = Node::new(&mut Script::new(&[id, life.moments.len() as u8 - 1]));
            node.machine.settle();
            node.look();
            let append = append(&node, |_, append| append.boot = 4711);
            for nth in 0..2 {
                let from = node.peer(nth);
                node.says(from, Kind::Append(append.clone()));
            }
            node.end();
        }
    }

    /// It was promised, durably, and no election could ever take an epoch above it.
    #[test]
    fn an_epoch_beyond_all_bounds_is_not_promised() {
        let mut node = slave();
        let before = node.ground.epoch;
        for epoch in [u64::MAX, 1 << 62] {
            let fence = FenceRequest { epoch };
            says(&mut node, Kind::FenceRequest(fence));
            let append = append(&node, |_, append| append.epoch = epoch);
            says(&mut node, Kind::Append(append));
            let beat = packmaster::proto::control::Beat { promised: epoch, ..Default::default() };
            says(&mut node, Kind::Beat(Box::new(beat)));
        }
        node.happens(Event::Later(200_000));
        assert_eq!(node.ground.epoch, before);
        node.end();
    }
}
