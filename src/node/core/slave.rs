//! The slave's half of replication: verify, append, acknowledge; find the common point, cut back.

use bytes::Bytes;

use super::disk::Purpose;
use super::transfer::Piece;
use super::{Action, Core, Role};
use crate::mutants::{self, Mutant};
use crate::plausible::{SEQ_AHEAD_MAX, within};
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::replication::{points, wire};
use crate::shelf;
use crate::storage::loss::Loss;
use crate::storage::task::{DiskTask, RECOVERING};
use crate::types::{BootId, Chain, Epoch, Generation, NodeId, Seq, Tip};

/// Whom this node follows.
pub(super) struct Slave {
    pub(super) epoch: Epoch,
    pub(super) master: NodeId,
    pub(super) boot: BootId,
    /// An append of this epoch fitted.
    pub(super) matched: bool,
    /// Up to here our file is proved to be the master's, by appends of this epoch.
    pub(super) proved: Seq,
    /// The master's newest committed position, as it said last; for the lag people see.
    pub(super) announced: Tip,
    /// The number of the append that was processed last. Not the greatest: one that is far ahead would be told for ever.
    pub(super) number: u64,
}

/// An append, checked for form.
struct Checked {
    epoch: Epoch,
    boot: BootId,
    generation: Generation,
    base_hash: Chain,
    prev: Tip,
    commit: Tip,
    acknowledged: Seq,
    transactions: Bytes,
    want_reply: bool,
    number: u64,
    piece: Option<Piece>,
}

fn checked(append: pb::Append) -> Result<Checked, wire::WireError> {
    Ok(Checked {
        epoch: Epoch(append.epoch),
        boot: BootId(append.boot),
        generation: Generation(append.generation),
        base_hash: wire::chain("base hash", &append.base_hash)?,
        prev: wire::tip("prev", append.prev.as_ref())?,
        commit: wire::tip("commit", append.commit.as_ref())?,
        acknowledged: Seq(append.acknowledged_seq),
        transactions: append.transactions,
        want_reply: append.want_reply,
        number: append.number,
        piece: append.piece.map(|piece| Piece::checked(*piece)).transpose()?,
    })
}

impl Slave {
    /// Is our file, which ends at `tip`, proved to be a prefix of the master's?
    pub(super) fn is_prefix(&self, tip: Seq) -> bool {
        self.matched && (self.proved >= tip || mutants::broken(Mutant::ForkMatches))
    }
}

impl Core {
    pub(super) fn on_append(
        &mut self,
        from: NodeId,
        append: pb::Append,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let append = checked(append).map_err(|error| format!("append: {error}"))?;
        if !self.believes_epoch(from, "epoch of an append", append.epoch) {
            return Ok(());
        }
        let suspect = !self.suspect.is_empty() && !mutants::broken(Mutant::SuspectTakes);
        let cutting = self.cutting && !mutants::broken(Mutant::AppendWhileCutting);
        let unproved = self.is_unproved() && !mutants::broken(Mutant::UnprovedTakes);
        if suspect || cutting || unproved || self.is_accused() {
            return Ok(());
        }
        if append.epoch < self.promised && !mutants::broken(Mutant::AppendBelowPromise) {
            return self.on_stale_append(from, append, out);
        }
        if append.epoch > self.promised {
            self.promise(append.epoch, out);
        }
        if !self.follows(from, &append)? {
            return Ok(());
        }
        if (append.generation, append.base_hash)
            != (self.shelf.generation(), self.shelf.base_hash())
        {
            self.refuse_append(from, &append, out);
            return Ok(());
        }
        self.take(from, append, out)
    }

    /// Of an epoch that is over. A piece is of use whoever sent it, and whenever.
    fn on_stale_append(
        &mut self,
        from: NodeId,
        append: Checked,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if let Some(piece) = &append.piece {
            let key = piece.key(append.generation, append.base_hash, append.prev);
            self.take_late_piece(&key, piece)?;
            // Its sender may be master again. What it sent before its election is followed by what it asks as master.
            let boot = append.boot;
            if matches!(&self.role, Role::Slave(slave) if (slave.master, slave.boot) == (from, boot))
            {
                return Ok(());
            }
        }
        // Says which epoch it is by now; a stale master acknowledges nothing on our word.
        self.refuse_append(from, &append, out);
        Ok(())
    }

    /// Binds this node to the epoch's master; false for anybody else's appends.
    fn follows(&mut self, from: NodeId, append: &Checked) -> Result<bool, String> {
        match &self.role {
            // Raft elected us; whoever says the same of itself is out of its mind, and not believed.
            Role::Master(master) if master.epoch == append.epoch => {
                Err(format!("EpochUnique: two masters in {}", append.epoch))
            }
            Role::Master(_) => Ok(false),
            Role::Slave(slave) if slave.epoch == append.epoch => {
                Ok(slave.master == from && slave.boot == append.boot)
            }
            _ => {
                self.follow(append.epoch, from, append.boot);
                Ok(true)
            }
        }
    }

    pub(super) fn follow(&mut self, epoch: Epoch, master: NodeId, boot: BootId) {
        let (matched, proved, announced) = (false, Seq(0), Tip::default());
        let slave = Slave { epoch, master, boot, matched, proved, announced, number: 0 };
        self.role = Role::Slave(slave);
        self.beats.soon();
    }

    fn take(&mut self, from: NodeId, append: Checked, out: &mut Vec<Action>) -> Result<(), String> {
        let tip = self.shelf.tip();
        if mutants::broken(Mutant::CommitBeforeMatch) {
            self.committed = self.committed.max(append.commit.seq.min(tip.seq));
        }
        let blind = mutants::broken(Mutant::ChainNotCompared) && append.prev.seq <= tip.seq;
        let fits = blind
            || append.prev == tip
            || (append.prev.seq < tip.seq && self.is_in_file(&append.prev)?);
        if !fits {
            self.refuse_append(from, &append, out);
            return Ok(());
        }
        if let Role::Slave(slave) = &mut self.role {
            slave.number = append.number;
        }
        if let Some(piece) = &append.piece {
            return self.take_piece(from, &append, piece, out);
        }
        let offset = tip.offset;
        let mut taken = Vec::new();
        let mut proved = append.prev.seq;
        let mut forks = false;
        let mut outcome = Ok(());
        for tx in shelf::split_transactions(&append.transactions) {
            let took = tx
                .map_err(|error| format!("append: {error}"))
                .and_then(|tx| self.take_one(&append, append.transactions.slice_ref(tx)));
            match took {
                Ok(Took::New(bytes, seq)) => {
                    taken.push(bytes);
                    proved = seq;
                }
                Ok(Took::Known(seq)) => proved = seq,
                Ok(Took::Fork) => {
                    self.refuse_append(from, &append, out);
                    forks = true;
                    break;
                }
                Err(why) => {
                    outcome = Err(why);
                    break;
                }
            }
        }
        // What was taken is in the file whatever came after it in the message.
        self.matched(from, append.commit, proved, forks, tip.seq);
        self.learn_announced(from, append.acknowledged);
        if !taken.is_empty() {
            self.write_appended(offset, join(taken), out);
        } else if append.want_reply && outcome.is_ok() && !forks {
            self.acknowledge(out);
        }
        self.apply_committed(out);
        self.poke_file(out);
        outcome
    }

    /// What an append says of acknowledgements, if it can be true: with durability `local` a master may have acknowledged
    /// more than it has committed or sent, and never more than it has written.
    fn learn_announced(&mut self, from: NodeId, announced: Seq) {
        let written = self.health.beat(from).map_or(0, |beat| beat.written_seq);
        let known = written.max(self.shelf.tip().seq.0);
        let far = within("acknowledged seq", announced.0, known, SEQ_AHEAD_MAX);
        if let Err(number) = far
            && !mutants::broken(Mutant::FarSeqBelieved)
        {
            return self.disbelieve(from, &number.to_string());
        }
        self.learn_acknowledged(announced);
    }

    fn take_piece(
        &mut self,
        from: NodeId,
        append: &Checked,
        piece: &Piece,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let tip = self.shelf.tip();
        let key = piece.key(append.generation, append.base_hash, append.prev);
        let mut outcome = Ok(());
        if append.prev == tip {
            outcome = self.incoming.take(&key, piece.offset, &piece.data);
        } else if !self.is_in_file(&key.end)? {
            self.refuse_append(from, append, out);
            self.matched(from, append.commit, append.prev.seq, true, tip.seq);
            self.learn_announced(from, append.acknowledged);
            self.apply_committed(out);
            return Ok(());
        }
        let known = append.prev.seq < tip.seq;
        let whole = self.incoming.take_whole(&key).filter(|_| append.prev == tip);
        if let Some(bytes) = whole {
            // That its chain is right does not make it the master's: it must be the one that was named.
            let took = match bytes.ends_with(&key.end.chain.0) {
                true => self.take_one(append, bytes),
                false => Ok(Took::Fork),
            };
            match took {
                Ok(Took::New(bytes, _)) => self.write_appended(tip.offset, bytes, out),
                // All of it is sent again.
                Ok(_) => outcome = Err(format!("a transaction in pieces that is not {}", key.end)),
                Err(why) => outcome = Err(why),
            }
        }
        let taken =
            known || self.shelf.tip().seq > tip.seq || mutants::broken(Mutant::PieceProvesWhole);
        let proved = if taken { key.end.seq } else { tip.seq };
        self.matched(from, append.commit, proved, false, tip.seq);
        self.learn_announced(from, append.acknowledged);
        // Also if it did not verify: the master must know that nothing of it is here.
        self.acknowledge(out);
        self.apply_committed(out);
        self.poke_file(out);
        outcome
    }

    fn take_one(&mut self, append: &Checked, bytes: Bytes) -> Result<Took, String> {
        let tip = self.shelf.tip();
        let seq = shelf::parse(&bytes).map_err(|error| format!("append: {error}"))?.meta.seq;
        if seq <= tip.seq {
            // Sent twice, or a different history: the chain tells.
            let chain = Chain::from_slice(&bytes[bytes.len() - Chain::LEN..]).expect("parsed");
            let mine = self.shelf.tip_at(seq).map_err(|error| error.to_string())?;
            let blind = mutants::broken(Mutant::ChainNotCompared);
            return Ok(match blind || mine.is_some_and(|tip| tip.chain == chain) {
                true => Took::Known(seq),
                false => Took::Fork,
            });
        }
        let tx = shelf::verify(&tip.chain, &bytes)
            .map_err(|error| format!("append at seq {seq}: {error}"))?;
        self.shelf.check_next(&tx).map_err(|why| format!("append: {why}"))?;
        if tx.meta.epoch > append.epoch {
            return Err(format!("append: seq {seq} of epoch {}, to come", tx.meta.epoch));
        }
        self.extend(&tx, bytes.clone());
        Ok(Took::New(bytes, seq))
    }

    /// The master's word on what is committed counts only now, when our file is proved to be a prefix of its file.
    /// `proved`: up to here our file is known to be the master's, by this very append. `forks`: and not further.
    /// `before`: where our file ended before it.
    fn matched(&mut self, from: NodeId, commit: Tip, proved: Seq, forks: bool, before: Seq) {
        let tip = self.shelf.tip().seq;
        let by_chain = commit.seq <= tip && self.shelf.find(&commit).unwrap_or(false);
        let Role::Slave(slave) = &mut self.role else { return };
        let was_prefix = slave.is_prefix(before);
        slave.matched |= !forks || mutants::broken(Mutant::ForkMatches);
        slave.proved = slave.proved.max(proved);
        if slave.is_prefix(tip) != was_prefix {
            self.beats.soon();
        }
        // A number without its chain says how much of what the append proves is committed, if it can be true.
        let far = within("commit position", commit.seq.0, proved.0, SEQ_AHEAD_MAX);
        if let Err(number) = far
            && !by_chain
            && !mutants::broken(Mutant::FarSeqBelieved)
        {
            return self.disbelieve(from, &number.to_string());
        }
        if commit.seq >= slave.announced.seq {
            slave.announced = commit;
        }
        let proved = if mutants::broken(Mutant::CommitBeyondProved) { tip } else { proved };
        let known = if by_chain { commit.seq } else { proved.min(commit.seq) };
        self.committed = self.committed.max(known);
    }

    fn is_in_file(&self, tip: &Tip) -> Result<bool, String> {
        self.shelf.find(tip).map_err(|error| error.to_string())
    }

    /// What is durable here, to the master; after the promise was checked again.
    pub(super) fn acknowledge(&mut self, out: &mut Vec<Action>) {
        let Role::Slave(slave) = &self.role else { return };
        let durable =
            self.promise_durable == self.promised || mutants::broken(Mutant::AckBeforePromise);
        let promised = (slave.epoch == self.promised && durable)
            || mutants::broken(Mutant::PromiseNotRechecked)
            || mutants::broken(Mutant::AppendBelowPromise);
        if !promised || !slave.matched || self.is_accused() {
            return; // asked again in a moment
        }
        let (master, boot) = (slave.master, slave.boot);
        // Everything that was committed before this epoch is below what its open master says is. What our file has since
        // the loss it took from masters of this and later epochs than those it acknowledged in, and each of them had all
        // of that: so a file that is long enough has it. That it is also known to be committed proves the same by chain,
        // up to `announced`; nothing depends on that.
        let all_back = slave.announced.epoch == slave.epoch
            && self.durable.seq >= slave.announced.seq
            && self.committed >= slave.announced.seq;
        let (epoch, generation, durable) = (slave.epoch, self.shelf.generation(), self.durable);
        let is_good = |loss: Loss| loss.is_made_good(epoch, generation, durable);
        let recovered = all_back
            && self.recovering.is_some_and(is_good)
            && !self.is_remembered_beyond(epoch, durable.seq);
        let reply = pb::AppendReply { epoch: epoch.0, ..self.append_reply(boot, true, Vec::new()) };
        self.send(master, Kind::AppendReply(reply), out);
        if recovered {
            let names = vec![RECOVERING.to_string()];
            self.disk(Purpose::Recovered, DiskTask::Remove { names }, out);
        }
    }

    /// Everything committed is here again, durably: from now on this node counts.
    pub(super) fn on_recovered(&mut self, out: &mut Vec<Action>) {
        if self.recovering.is_some() {
            slog::info!(self.log, "recovered: this node votes and acknowledges again"; "seq" => self.durable.seq.0);
        }
        self.recovering = None;
        self.beats.soon();
        self.acknowledge(out);
        self.report_to_leader(out);
    }

    fn refuse_append(&mut self, to: NodeId, append: &Checked, out: &mut Vec<Action>) {
        let shown = self.coarse_points();
        let mut reply = self.append_reply(append.boot, false, shown);
        reply.number = append.number;
        self.send(to, Kind::AppendReply(reply), out);
    }

    /// Unasked, to the epoch's master: appends can be taken from here now.
    pub(super) fn hello_master(&mut self, out: &mut Vec<Action>) {
        let Role::Slave(slave) = &self.role else { return };
        let (master, boot) = (slave.master, slave.boot);
        let shown = self.coarse_points();
        let mut reply = self.append_reply(boot, false, shown);
        reply.hello = true;
        self.send(master, Kind::AppendReply(reply), out);
    }

    fn append_reply(&self, boot: BootId, matched: bool, points: Vec<Tip>) -> pb::AppendReply {
        let number = match &self.role {
            Role::Slave(slave) if matched => slave.number,
            _ => 0,
        };
        pb::AppendReply {
            number,
            incoming: self.incoming_told().filter(|_| matched).map(Box::new),
            epoch: self.promised.0,
            boot: boot.0,
            generation: self.shelf.generation().0,
            base_hash: wire::put_chain(self.shelf.base_hash()),
            durable: Some(wire::put_tip(&self.durable)),
            matched,
            hello: false,
            recovering: self.recovering.is_some(),
            written: matched.then(|| wire::put_tip(&self.shelf.tip())),
            points: wire::put_tips(&points),
        }
    }

    pub(super) fn coarse_points(&self) -> Vec<Tip> {
        self.tips_at(&points::coarse(self.shelf.cut(), self.shelf.tip().seq))
    }

    pub(super) fn tips_at(&self, seqs: &[Seq]) -> Vec<Tip> {
        seqs.iter().filter_map(|seq| self.shelf.tip_at(*seq).ok().flatten()).collect()
    }

    // ---- a different history: cut back to the common point ----

    pub(super) fn on_common_point(
        &mut self,
        from: NodeId,
        common: pb::CommonPoint,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Role::Slave(slave) = &self.role else { return Ok(()) };
        let same = slave.epoch == self.promised
            && (slave.epoch.0, slave.master, slave.boot.0) == (common.epoch, from, common.boot)
            && common.generation == self.shelf.generation().0
            && common.base_hash[..] == self.shelf.base_hash().0;
        let boot = slave.boot;
        if !same || self.cutting {
            return Ok(());
        }
        let point = wire::tip("common point", common.point.as_ref()).map_err(|e| e.to_string())?;
        let mismatch = wire::tip("newer mismatch", common.newer_mismatch.as_ref())
            .map_err(|e| e.to_string())?;
        // Computed anew here: a late message about what the file held before finds neither, and cuts nothing.
        let ours = self.is_in_file(&point)?
            && (self.is_in_file(&mismatch)? || mutants::broken(Mutant::LateMismatchTaken));
        if !ours && !mutants::broken(Mutant::LateCutTaken) {
            return Ok(());
        }
        let mismatch = mismatch.seq;
        if mismatch > point.seq.next() {
            let shown = self.tips_at(&points::fine(point.seq, mismatch));
            let reply = self.append_reply(boot, false, shown);
            self.send(from, Kind::AppendReply(reply), out);
            return Ok(());
        }
        if mismatch == point.seq.next() {
            self.cut_back(point, &format!("epoch {} of node {from}", common.epoch), out);
        }
        Ok(())
    }

    /// Cuts the file back to `point`; what is cut is kept as an orphan.
    pub(super) fn cut_back(&mut self, point: Tip, whose: &str, out: &mut Vec<Action>) {
        let tip = self.shelf.tip();
        let known = match mutants::broken(Mutant::LocalNeverCut) {
            true => self.committed.max(self.acknowledged()),
            false => self.committed,
        };
        if point.seq < known {
            self.suspect = format!(
                "asked to cut back to seq {} for {whose}, but seq {} is known to be committed",
                point.seq, self.committed
            );
            slog::crit!(self.log, "committed data would be cut: this node stands aside, a person must look";
                "why" => &self.suspect);
            self.beats.soon();
            return;
        }
        let generation = self.shelf.generation();
        let keep_as = format!(
            "orphans/g{:08}-seq{}-{}-{}.orphan",
            generation.0,
            point.seq.next(),
            tip.seq,
            &tip.chain.to_string()[..8]
        );
        let lost = self.note_lost(point.seq, &keep_as);
        let header = format!(
            "packmaster orphan 1\ngeneration {generation}\nbase_hash {}\nafter {point}\nto {tip}\ncut_for {whose}\ncut_at_wall_us {}\n{lost}\n",
            self.shelf.base_hash(),
            self.now.wall_us,
        );
        slog::warn!(self.log, "cut back to the common point; what was cut is kept";
            "to" => %point, "from" => %tip, "orphan" => &keep_as, "for" => whose);
        if let Err(error) = self.shelf.cut_to(point.seq) {
            slog::error!(self.log, "can't read the file while cutting back; this node stops"; "error" => %error);
            self.exit(&format!("disk failed: {error}"), true, out);
            return;
        }
        self.checker.truncated(point.seq);
        self.sessions.truncated(point.seq);
        let applied = self.shelf.indexed();
        self.drop_shown(point.seq, applied, out);
        // What comes before the point may still be on its way to the disk.
        if self.durable.seq > point.seq && !mutants::broken(Mutant::CutStillDurable) {
            self.durable = point;
        }
        self.drop_next(out);
        self.cutting = true;
        let file = self.shelf.file();
        let work = DiskTask::CutBack { file, offset: point.offset, keep_as, header };
        self.disk(Purpose::CutBack, work, out);
    }

    pub(super) fn on_cut_back(&mut self, out: &mut Vec<Action>) {
        self.cutting = false;
        // Everything before the cut was written before it, and nothing was taken since.
        self.durable = self.shelf.tip();
        if let Some(master) = self.master() {
            master.moved.begins_again();
        }
        self.hello_master(out);
        self.report_to_leader(out);
        self.pull_on(out);
    }
}

enum Took {
    New(Bytes, Seq),
    Known(Seq),
    Fork,
}

fn join(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        1 => parts.pop().expect("one"),
        _ => parts.concat().into(),
    }
}
