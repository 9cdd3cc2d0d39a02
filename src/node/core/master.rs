//! The master's half of replication: open the epoch, stream to the slaves, count what is durable, commit.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::handover::Handover;
use super::serve::{Asker, Registered, WantedOids};
use super::{Action, Core, Role};
use crate::durus::{BaseOids, OidPool, Turns};
use crate::mutants::{self, Mutant};
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::replication::confirm::Confirm;
use crate::replication::follower::{Brings, Follower, Plan, Said};
use crate::replication::points::newest_match;
use crate::replication::quorum::Quorum;
use crate::replication::transfer::Moved;
use crate::replication::wire::{self, Position};
use crate::shelf::{self, TxMeta};
use crate::types::{CommitId, Epoch, NodeId, Now, Oid, Seq, Tip};

/// Bytes of transactions that are sent to one slave in one step; its acknowledgements bring the next step.
const STEP_BYTES: u64 = 4 << 20;

/// What a slave says of its file, checked for form.
struct Acknowledged {
    durable: Tip,
    written: Tip,
    number: u64,
    /// The end of the transaction after `written`, and how much of it is there.
    incoming: Option<(Tip, u64)>,
}

/// A mastership of this node, from its election to the next fence.
pub(super) struct Master {
    pub(super) epoch: Epoch,
    pub(super) voters: Vec<NodeId>,
    /// What it must have before it opens, and who has it.
    pub(super) floor: Position,
    pub(super) floor_holder: NodeId,
    /// The epoch-start transaction, once it is written.
    pub(super) start: Option<Seq>,
    pub(super) open: bool,
    /// How far its own file has come since the election.
    pub(super) moved: Moved,
    pub(super) quorum: Quorum,
    pub(super) followers: BTreeMap<NodeId, Follower>,
    /// Reads that wait for a round.
    pub(super) confirm: Confirm<Asker>,
    pub(super) confirm_sent: Now,
    /// Commits on their way: who asked.
    pub(super) in_flight: BTreeMap<Seq, Asker>,
    pub(super) registered: BTreeMap<NodeId, Registered>,
    /// Commits that were refused or in conflict, and what was answered: one that comes twice is not judged again, when a
    /// pack may have been called off that it was in conflict with.
    pub(super) refused: BTreeMap<Asker, pb::client_reply::Answer>,
    pub(super) oids: OidPool,
    /// Wait for the next block.
    pub(super) oids_wanted: VecDeque<WantedOids>,
    pub(super) block_asked: Option<Now>,
    /// Blocks that came before we were open.
    pub(super) oid_blocks: Vec<(Oid, Oid)>,
    /// A client's pack was proposed, and the state has not changed since.
    pub(super) pack_asked: Option<Now>,
    pub(super) opened_at: Option<Now>,
    pub(super) handover: Handover,
    pub(super) turns: Turns<Asker>,
    /// Commits that are to be judged later: see `held`.
    pub(super) held: Vec<(Asker, pb::Commit)>,
}

impl Master {
    pub(super) fn new(
        me: NodeId,
        epoch: Epoch,
        voters: Vec<NodeId>,
        floor: Position,
        floor_holder: NodeId,
        now: Now,
    ) -> Master {
        Master {
            epoch,
            floor,
            floor_holder,
            start: None,
            open: false,
            moved: Moved::default(),
            quorum: Quorum::new(voters.iter().copied(), Seq(u64::MAX)),
            followers: BTreeMap::new(),
            confirm: Confirm::new(me, voters.iter().copied()),
            voters,
            confirm_sent: now,
            in_flight: BTreeMap::new(),
            registered: BTreeMap::new(),
            refused: BTreeMap::new(),
            oids: OidPool::default(),
            oids_wanted: VecDeque::new(),
            block_asked: None,
            oid_blocks: Vec::new(),
            pack_asked: None,
            opened_at: None,
            handover: Handover::default(),
            turns: Turns::default(),
            held: Vec::new(),
        }
    }
}

impl Master {
    /// Oids that can be given out before the next block, counting what came before we were open.
    pub(super) fn oid_left(&self) -> u64 {
        let early: u64 = self.oid_blocks.iter().map(|(from, below)| below.0 - from.0).sum();
        self.oids.blocks_left() + early
    }
}

impl Core {
    pub(super) fn master(&mut self) -> Option<&mut Master> {
        match &mut self.role {
            Role::Master(master) => Some(master),
            _ => None,
        }
    }

    pub(super) fn is_open_master(&self) -> bool {
        matches!(&self.role, Role::Master(master) if master.open)
    }

    pub(super) fn drive_master(&mut self, out: &mut Vec<Action>) {
        let Role::Master(master) = &self.role else { return };
        if master.start.is_none() {
            if !self.may_start(out) {
                return;
            }
            self.start_epoch(out);
        }
        self.drive_oid_block(out);
        self.drive_confirm(out);
        self.drive_held(out);
        self.stream(out);
    }

    /// The elected node opens from the agreed file, with everything the greatest report had.
    fn may_start(&mut self, out: &mut Vec<Action>) -> bool {
        let Role::Master(master) = &self.role else { return false };
        let (floor, holder) = (master.floor, master.floor_holder);
        if !self.is_current_file() || self.cutting || !self.suspect.is_empty() {
            return false;
        }
        let lacking = self.shelf.tip().order() < floor.tip.order();
        if lacking && !mutants::broken(Mutant::FloorNotFetched) {
            self.pull_floor(floor, holder, out);
            return false;
        }
        self.pull.is_none()
    }

    fn start_epoch(&mut self, out: &mut Vec<Action>) {
        let before = self.shelf.tip();
        let time_us = self.next_time_us();
        let Role::Master(master) = &mut self.role else { return };
        let floor = master.floor.tip;
        assert!(
            before.order() >= floor.order(),
            "LeaderCompleteness: elected at {before} below the floor {floor}"
        );
        let epoch = master.epoch;
        let start = before.seq.next();
        master.start = Some(start);
        master.quorum = Quorum::new(master.voters.iter().copied(), start);
        let slaves = master.voters.iter().copied().filter(|id| *id != self.setup.id);
        master.followers =
            slaves.map(|id| (id, Follower::new(before, self.setup.pacing, self.now))).collect();
        slog::info!(self.log, "elected: opening the epoch"; "epoch" => epoch.0, "seq" => start.0);
        let meta = TxMeta {
            kind: shelf::Kind::EpochStart,
            epoch,
            seq: start,
            time_us,
            commit_id: CommitId::NONE,
        };
        self.append_own(&meta, &[], out);
        if mutants::broken(Mutant::ServeBeforeEpochStart) {
            self.open(out);
        }
    }

    /// For the next transaction: never less than that of the one before.
    pub(super) fn next_time_us(&self) -> u64 {
        match mutants::broken(Mutant::TimeGoesBack) {
            true => self.now.wall_us,
            false => self.shelf.last_time_us().max(self.now.wall_us),
        }
    }

    /// Appends a transaction of our own epoch: memory, disk and slaves at once.
    pub(super) fn append_own(
        &mut self,
        meta: &TxMeta,
        records: &[(Oid, Bytes)],
        out: &mut Vec<Action>,
    ) {
        let tip = self.shelf.tip();
        let built = shelf::build(&tip.chain, meta, records);
        let tx = shelf::parse(&built.bytes).expect("what we have just built");
        assert!(meta.epoch >= tip.epoch, "ChainEpochMonotone: {} after {tip}", meta.epoch);
        self.extend(&tx, built.bytes.clone());
        self.write_appended(tip.offset, built.bytes, out);
        let me = self.setup.id;
        if mutants::broken(Mutant::OwnUnsyncedCounts)
            && let Some(master) = self.master()
        {
            master.quorum.acked(me, meta.seq);
        }
    }

    // ---- to the slaves ----

    fn stream(&mut self, out: &mut Vec<Action>) {
        let Role::Master(master) = &self.role else { return };
        let slaves: Vec<NodeId> = master.followers.keys().copied().collect();
        for id in slaves {
            let mut begun = 0;
            while begun < STEP_BYTES
                && let Some(plan) = self.plan_append(id)
            {
                match self.send_append(id, plan, out) {
                    0 => break,
                    bytes => begun += bytes,
                }
            }
        }
    }

    fn plan_append(&mut self, id: NodeId) -> Option<Plan> {
        let (tip, committed, now) = (self.shelf.tip(), self.committed, self.now);
        let Role::Master(master) = &mut self.role else { return None };
        let shelf = &self.shelf;
        master.followers.get_mut(&id)?.plan(tip, committed, |seq| shelf.end_of(seq), now)
    }

    /// How many bytes of transactions it has sent.
    fn send_append(&mut self, id: NodeId, plan: Plan, out: &mut Vec<Action>) -> u64 {
        // A follower is never ahead of us, but a guess may be of a file we have left.
        let Ok(Some(prev)) = self.shelf.tip_at(plan.prev.seq.min(self.shelf.tip().seq)) else {
            return 0;
        };
        let read = match plan.brings {
            Brings::Nothing => Ok((Bytes::new(), None)),
            Brings::Whole { bytes_max, one_at_least } => {
                let fits = one_at_least || self.shelf.has_short(prev.offset, bytes_max);
                match fits && prev.offset < self.shelf.tip().offset {
                    true => self.read_back(prev.offset, bytes_max).map(|data| (data, None)),
                    false => Ok((Bytes::new(), None)),
                }
            }
            Brings::Piece { offset, bytes } => self
                .read_piece(&prev, offset, bytes)
                .map(|(end, piece)| (Bytes::new(), Some((end, piece)))),
        };
        let (data, piece) = match read {
            Ok(read) => read,
            Err(error) => {
                slog::error!(self.log, "can't read back what the slaves lack: this node stops, and \
                    verifies its file when it is started again"; "error" => &error);
                self.exit(&format!("disk failed: {error}"), true, out);
                return 0;
            }
        };
        let upto = match data.is_empty() {
            true => prev,
            false => last_tip(prev.offset, &data),
        };
        let commit = match mutants::broken(Mutant::LocalAnnounced) {
            true => self.committed.max(self.acknowledged()),
            false => self.committed,
        };
        let commit = self.shelf.tip_at(commit).ok().flatten().unwrap_or_default();
        let Role::Master(master) = &mut self.role else { return 0 };
        let Some(follower) = master.followers.get_mut(&id) else { return 0 };
        let bytes = match &piece {
            Some((end, piece)) => {
                let bytes = piece.data.len() as u64;
                follower.sent_piece(*end, piece.offset, bytes, commit.seq, self.now);
                bytes
            }
            None => {
                follower.sent(upto, data.len() as u64, commit.seq, self.now);
                data.len() as u64
            }
        };
        let append = pb::Append {
            epoch: master.epoch.0,
            boot: self.setup.boot.0,
            generation: self.shelf.generation().0,
            base_hash: wire::put_chain(self.shelf.base_hash()),
            prev: Some(wire::put_tip(&prev)),
            transactions: data,
            want_reply: plan.want_reply,
            commit: Some(wire::put_tip(&commit)),
            acknowledged_seq: self.acknowledged().0,
            number: plan.number,
            piece: piece.map(|(_, piece)| Box::new(piece)),
        };
        self.send(id, Kind::Append(append), out);
        bytes
    }

    /// Whole transactions of our own file. They were whole when it was proved; a disk can give back something else.
    fn read_back(&self, offset: u64, bytes_max: u64) -> Result<Bytes, String> {
        let data = self.shelf.read_range(offset, bytes_max).map_err(|error| error.to_string())?;
        for tx in shelf::split_transactions(&data) {
            let parsed = tx.and_then(shelf::parse);
            parsed.map_err(|error| format!("read {} at {offset}: {error}", self.shelf.name()))?;
        }
        Ok(data)
    }

    // ---- from the slaves ----

    pub(super) fn on_append_reply(
        &mut self,
        from: NodeId,
        reply: pb::AppendReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Role::Master(master) = &self.role else { return Ok(()) };
        // Acknowledgements carry epoch, boot, generation and chain; any other is somebody else's.
        let of_this_epoch = reply.epoch == master.epoch.0 || mutants::broken(Mutant::OldEpochReply);
        if !of_this_epoch
            || reply.boot != self.setup.boot.0
            || reply.generation != self.shelf.generation().0
            || reply.base_hash[..] != self.shelf.base_hash().0
            || !master.followers.contains_key(&from)
        {
            return Ok(());
        }
        let text = |error: wire::WireError| format!("append reply: {error}");
        let durable = wire::tip("durable", reply.durable.as_ref()).map_err(text)?;
        if reply.matched {
            let written = reply.written.as_ref();
            let written = written.map(|tip| wire::tip("written", Some(tip))).transpose();
            let written = written.map_err(text)?.unwrap_or(durable);
            let number = reply.number;
            let incoming = reply.incoming.as_deref().map(wire::incoming).transpose();
            let incoming = incoming.map_err(text)?;
            let said = Acknowledged { durable, written, number, incoming };
            return self.on_acknowledged(from, &said, reply.recovering, out);
        }
        let points = wire::tips("points", &reply.points).map_err(text)?;
        self.on_mismatch(from, &points, (!reply.hello).then_some(reply.number), out)
    }

    fn on_acknowledged(
        &mut self,
        from: NodeId,
        said: &Acknowledged,
        recovering: bool,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let durable = said.durable;
        let find = |tip| self.shelf.find(tip).map_err(|error| error.to_string());
        let ours = find(&durable)?;
        if !ours && !mutants::broken(Mutant::AckBySeqOnly) {
            // It has more than we: a tail of an earlier epoch that our next append will show it.
            return Ok(());
        }
        let Role::Master(master) = &self.role else { return Ok(()) };
        // Whoever is streamed to has what it was sent, unless it went in pieces.
        let follower = master.followers.get(&from);
        let asked = follower.is_some_and(|it| !it.is_streaming() || it.is_sent_pieces());
        let written = if asked && find(&said.written)? { said.written } else { durable };
        let incoming = match said.incoming {
            Some((end, bytes)) if end.seq == written.seq.next() && find(&end)? => {
                bytes.min(end.offset - written.offset)
            }
            _ => 0,
        };
        let (now, number) = (self.now, said.number);
        let Some(master) = self.master() else { return Ok(()) };
        if let Some(follower) = master.followers.get_mut(&from) {
            follower.matched(Said { durable, written, number, incoming }, now);
        }
        let epoch = master.epoch;
        let counts = !recovering || mutants::broken(Mutant::RecoveringCounts);
        if counts && master.quorum.acked(from, durable.seq) {
            self.health.on_acked(from, epoch.0, durable.seq.0);
            self.advance_commit(out);
        }
        Ok(())
    }

    fn on_mismatch(
        &mut self,
        from: NodeId,
        points: &[Tip],
        // Of the append that was refused; None: the slave says hello.
        number: Option<u64>,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let found = newest_match(points, |tip| self.shelf.find(tip)).map_err(|e| e.to_string())?;
        let Some(found) = found else {
            return Err(format!("node {from} has nothing in common with us, not even the seal"));
        };
        let Some(master) = self.master() else { return Ok(()) };
        let epoch = master.epoch;
        if found.newer_mismatch.is_none() {
            if let Some(follower) = master.followers.get_mut(&from) {
                follower.mismatched(found.point, number.unwrap_or(0));
                if number.is_none() {
                    follower.restart_from(found.point);
                }
            }
            return Ok(());
        }
        let common = pb::CommonPoint {
            epoch: epoch.0,
            boot: self.setup.boot.0,
            generation: self.shelf.generation().0,
            base_hash: wire::put_chain(self.shelf.base_hash()),
            point: Some(wire::put_tip(&found.point)),
            newer_mismatch: found.newer_mismatch.as_ref().map(wire::put_tip),
        };
        self.send(from, Kind::CommonPoint(common), out);
        Ok(())
    }

    // ---- commit ----

    pub(super) fn on_own_durable(&mut self, out: &mut Vec<Action>) {
        let seq = self.durable.seq;
        let (promised, me) = (self.promised, self.setup.id);
        let Some(master) = self.master() else { return };
        assert_eq!(master.epoch, promised, "a fenced master has no role");
        if master.start.is_some_and(|start| seq >= start) && master.quorum.acked(me, seq) {
            self.advance_commit(out);
        }
    }

    fn advance_commit(&mut self, out: &mut Vec<Action>) {
        let known = self.committed;
        let Some(master) = self.master() else { return };
        let Some(committed) = master.quorum.committed().filter(|seq| *seq > known) else {
            // Only the mark of what is acknowledged can have moved.
            return self.advance_acknowledged(out);
        };
        let start = master.start.expect("nothing is acknowledged before the start");
        let own = committed >= start || mutants::broken(Mutant::CommitByCounting);
        assert!(own, "CommitNeedsOwnEpoch: {committed} before the start {start}");
        self.committed = committed;
        self.advance_acknowledged(out);
        if !self.is_open_master() {
            self.open(out);
        }
    }

    fn open(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let base =
            BaseOids { unused: self.shelf.base_unused().cloned(), map_end: self.shelf.map_end() };
        let oid_limit = self.control.oid_limit();
        let Some(master) = self.master() else { return };
        master.open = true;
        master.opened_at = Some(now);
        let blocks = std::mem::take(&mut master.oid_blocks);
        master.oids = OidPool::new(base, oid_limit);
        for (from, below) in blocks {
            master.oids.add_block(from, below);
        }
        let epoch = master.epoch;
        let early = std::mem::take(&mut self.early_registers);
        slog::info!(self.log, "open: serving as master"; "epoch" => epoch.0, "oid_limit" => oid_limit.0);
        for (from, register) in early.into_iter().filter(|(_, said)| said.epoch == epoch.0) {
            self.register(from, register, out);
        }
        self.beats.soon();
    }
}

/// Where whole transactions that begin at `offset` end.
fn last_tip(offset: u64, data: &[u8]) -> Tip {
    let last = shelf::split_transactions(data).last().expect("not empty").expect("our own file");
    let begins = offset + (data.len() - last.len()) as u64;
    shelf::parse(last).expect("our own file").tip(begins)
}
