//! What the open master answers to the nodes, on behalf of their clients.
//!
//! A node registers first: only then the master knows which oids its sessions hold. Requests may come twice; commits
//! are recognised by their ids, oid grants by their request's number.

use super::master::Master;
use super::{Action, Core, Role};
use crate::durus::{self, Allocation, CommitRequest, Ground, SessionKey, Verdict};
use crate::mutants::{self, Mutant};
use crate::plausible::within;
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{OidBlock, PackStart};
use crate::proto::replication as pb;
use crate::proto::replication::client_reply::Answer;
use crate::proto::replication::client_request::Ask;
use crate::replication::wire;
use crate::shelf::{self, TxMeta};
use crate::types::{BootId, Epoch, Generation, NodeId, Oid, Seq};

/// Oids taken through Raft at a time.
const OID_BLOCK: u64 = 16_384;
/// When so few are left, the next block is asked for.
const OID_BLOCK_LOW: u64 = 4096;
/// A question that got no answer is asked again after this long.
pub(super) const ASK_AGAIN_MS: u64 = 300;

/// Refused commits that are remembered; the oldest of a node are forgotten.
const REFUSED_MAX: usize = 10_000;

/// A node that has registered with this mastership.
pub(super) struct Registered {
    pub(super) boot: BootId,
    pub(super) told: Generation,
}

impl Master {
    pub(super) fn has_registered(&self, asker: &Asker) -> bool {
        self.registered.get(&asker.node).is_some_and(|known| known.boot == asker.boot)
    }
}

/// A process of a node, and the number of its request. The node's next process numbers its own from the beginning:
/// what was asked by one is never answered to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asker {
    node: NodeId,
    boot: BootId,
    id: u64,
}

pub(super) struct WantedOids {
    asker: Asker,
    session: u64,
    count: u32,
}

impl Asker {
    /// Of a client of this node.
    pub(super) fn is_of(&self, node: NodeId) -> bool {
        self.node == node
    }

    pub(super) fn session(&self, session: u64) -> SessionKey {
        SessionKey { node: self.node, session }
    }
}

impl Core {
    // ---- registration ----

    pub(super) fn on_register(
        &mut self,
        from: NodeId,
        register: pb::Register,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        // A late one of a process that is no more would give away what its successor's sessions hold. One that is faster than
        // its node's first beat comes again.
        let beat = self.health.beat(from).filter(|_| from != self.setup.id);
        if beat.is_some_and(|beat| beat.boot != register.boot) {
            return Ok(());
        }
        let open = matches!(&self.role, Role::Master(master) if master.open && master.epoch.0 == register.epoch);
        if open {
            self.register(from, register, out);
        } else if register.epoch >= self.promised.0 {
            // The node may have heard of our election before we have.
            self.early_registers.insert(from, register);
        }
        Ok(())
    }

    pub(super) fn register(&mut self, from: NodeId, register: pb::Register, out: &mut Vec<Action>) {
        let boot = BootId(register.boot);
        let pools: Vec<_> = register.pools.into_iter().map(wire::pool).collect();
        let shelf = &self.shelf;
        let exists = |oid| shelf.contains(oid).map_err(|error| error.to_string());
        let Role::Master(master) = &mut self.role else { return };
        let revoked = match master.oids.register(from, boot, &pools, &exists) {
            Ok(revoked) => revoked,
            Err(error) => {
                slog::error!(self.log, "can't register a node's sessions"; "node" => from.0, "error" => error);
                return;
            }
        };
        // What another process of that node asked for is nobody's.
        master.turns.retain(|turn| turn.asker.node != from || turn.asker.boot == boot);
        // Nobody was told of a generation that its master has not: then it counts as not told.
        let told = Some(Generation(register.told_generation));
        let told = told.filter(|told| *told <= shelf.generation()).unwrap_or_default();
        master.registered.insert(from, Registered { boot, told });
        let revoked = revoked.into_iter().map(|(session, oids)| wire::put_pool(session, oids));
        let (epoch, revoked) = (master.epoch.0, revoked.collect());
        let reply = pb::RegisterReply { epoch, boot: boot.0, revoked };
        self.send(from, Kind::RegisterReply(reply), out);
        self.judge_holes();
    }

    /// Holes may be used when every session there may be is known and was told of what the last pack removed.
    fn judge_holes(&mut self) {
        let generation = self.shelf.generation();
        let everybody: Vec<NodeId> = self.control.members().map(|member| member.id).collect();
        let Role::Master(master) = &mut self.role else { return };
        let was_told =
            |node: &Registered| node.told >= generation || mutants::broken(Mutant::HolesBeforeTold);
        let known = everybody.iter().all(|id| master.registered.get(id).is_some_and(was_told));
        master.oids.set_holes_usable(known || mutants::broken(Mutant::HolesTooEarly));
    }

    // ---- requests ----

    pub(super) fn on_client_request(
        &mut self,
        from: NodeId,
        request: pb::ClientRequest,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Role::Master(master) = &self.role else { return Ok(()) };
        if !master.open || request.epoch != master.epoch.0 {
            return Ok(());
        }
        let asker = Asker { node: from, boot: BootId(request.boot), id: request.id };
        if !master.has_registered(&asker) {
            self.answer(asker, Answer::RegisterFirst(true), out);
            return Ok(());
        }
        match request.ask.ok_or("request without a question")? {
            Ask::Sync(_) => {
                if let Some(master) = self.master() {
                    master.confirm.ask(asker);
                }
            }
            Ask::Commit(commit) => {
                // Nobody was told of more than there is: judged as of later, it would overwrite what its client has not
                // seen.
                let ours = self.shelf.tip().seq.0;
                if let Err(number) = within("base of a commit", commit.base_seq, ours, 0)
                    && !mutants::broken(Mutant::FarSeqBelieved)
                {
                    self.disbelieve(from, &number.to_string());
                    return Ok(());
                }
                return self.on_commit(asker, commit, out);
            }
            Ask::NewOids(wanted) => {
                let (session, count) = (wanted.session, wanted.count.min(255));
                self.grant_oids(WantedOids { asker, session, count }, out);
            }
            Ask::FreeSession(gone) => {
                let session = asker.session(gone.session);
                if let Some(master) = self.master() {
                    master.oids.free(session);
                }
                self.end_turn(session);
                self.answer(asker, Answer::Done(true), out);
            }
            Ask::Turn(turn) => return self.on_turn(asker, &turn),
            Ask::EndTurn(turn) => {
                self.end_turn(asker.session(turn.session));
                self.answer(asker, Answer::Done(true), out);
            }
            Ask::Pack(_) => {
                self.propose_pack(from, out);
                self.answer(asker, Answer::Done(true), out);
            }
            Ask::Told(told) => {
                let told = Generation(told.generation);
                let ours = self.shelf.generation();
                if let Err(number) = within("told generation", told.0, ours.0, 0) {
                    self.disbelieve(from, &number.to_string());
                    return Ok(());
                }
                if let Some(known) =
                    self.master().and_then(|master| master.registered.get_mut(&from))
                {
                    known.told = known.told.max(told);
                }
                self.judge_holes();
                self.answer(asker, Answer::Done(true), out);
            }
        }
        Ok(())
    }

    /// Proposed once, until the state has changed, or until it must have been lost: a client may ask again and again.
    fn propose_pack(&mut self, from: NodeId, out: &mut Vec<Action>) {
        let (now, packing) = (self.now, self.control.pack().is_some());
        let Some(master) = self.master() else { return };
        let asked = master.pack_asked.is_some_and(|at| now.since_ms(at) < ASK_AGAIN_MS);
        if packing || asked {
            return;
        }
        master.pack_asked = Some(now);
        let generation = self.shelf.generation().next().0;
        let asked_by = format!("a client of node {from}");
        let after = self.control.packs_changed();
        self.propose(CommandKind::PackStart(PackStart { generation, asked_by, after }), out);
    }

    pub(super) fn answer(&mut self, to: Asker, answer: Answer, out: &mut Vec<Action>) {
        let Asker { node, boot, id } = to;
        let reply =
            pb::ClientReply { epoch: self.promised.0, boot: boot.0, id, answer: Some(answer) };
        self.send(node, Kind::ClientReply(reply), out);
    }

    // ---- commits ----

    pub(super) fn on_commit(
        &mut self,
        asker: Asker,
        commit: pb::Commit,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if let Some(answer) = self.master().and_then(|master| master.refused.get(&asker).cloned()) {
            self.answer(asker, answer, out);
            return Ok(());
        }
        if commit.again {
            return self.on_commit_again(asker, &commit, out);
        }
        let Some(commit) = self.unless_held(asker, commit) else { return Ok(()) };
        let session = asker.session(commit.session);
        let commit_id = wire::commit_id(&commit.commit_id).map_err(|error| error.to_string())?;
        let touched = match commit.has_touched {
            true => {
                Some(durus::decode_touched(&commit.touched).map_err(|error| error.to_string())?)
            }
            false => None,
        };
        let records: Vec<_> =
            commit.records.into_iter().map(|record| (Oid(record.oid), record.record)).collect();
        let ahead = self.known_ahead(Epoch(commit.ahead_epoch), Seq(commit.ahead_seq))?;
        let request = CommitRequest {
            commit_id,
            session,
            base: Seq(commit.base_seq),
            ahead,
            records: &records,
            touched: touched.as_ref(),
        };
        let verdict = self.judge_commit(&asker, &request)?;
        if verdict != Verdict::SendTouched {
            self.end_turn(session);
        }
        let answer = match verdict {
            Verdict::Accept => {
                self.append_commit(asker, &request, out);
                return Ok(());
            }
            Verdict::InFlight(seq) => {
                if let Some(master) = self.master() {
                    master.in_flight.insert(seq, asker);
                }
                return Ok(());
            }
            Verdict::AlreadyCommitted(seq) => Answer::CommittedSeq(seq.0),
            Verdict::SendTouched => Answer::SendTouched(true),
            Verdict::Conflict { why, dead } => {
                slog::debug!(self.log, "conflict"; "node" => asker.node.0, "why" => &why);
                let dead = dead.into_iter().map(|oid| oid.0).collect();
                Answer::Conflict(pb::Conflict { why, dead })
            }
            Verdict::Refused(why) => Answer::Refused(why),
        };
        if let (Answer::Conflict(_) | Answer::Refused(_), Some(master)) = (&answer, self.master()) {
            master.refused.insert(asker, answer.clone());
            while master.refused.len() > REFUSED_MAX {
                master.refused.pop_first();
            }
        }
        self.answer(asker, answer, out);
        Ok(())
    }

    /// A commit that came before, or did not: only its id comes again.
    fn on_commit_again(
        &mut self,
        asker: Asker,
        commit: &pb::Commit,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let commit_id = wire::commit_id(&commit.commit_id).map_err(|error| error.to_string())?;
        let told = self.told_to(&asker);
        let answer = match self.checker.find(commit_id) {
            Some(seq) if seq <= told || mutants::broken(Mutant::AgainIsTold) => {
                Answer::CommittedSeq(seq.0)
            }
            Some(seq) => {
                if let Some(master) = self.master() {
                    master.in_flight.insert(seq, asker);
                }
                return Ok(());
            }
            None if self.is_held(&asker) => return Ok(()),
            // It is not here, or was a conflict: what becomes of it is said when it is here whole.
            None => Answer::SendRecords(true),
        };
        self.answer(asker, answer, out);
        Ok(())
    }

    /// The client was told of a file's transactions up to this one: do they count? They do if ours has it, and so
    /// all before it: no two transactions have the same epoch and seq.
    fn known_ahead(&self, epoch: Epoch, seq: Seq) -> Result<Option<Seq>, String> {
        if seq == Seq(0) || seq > self.shelf.tip().seq {
            return Ok(None);
        }
        let ours = self.shelf.tip_at(seq).map_err(|error| error.to_string())?;
        let known = ours.is_some_and(|ours| ours.epoch == epoch);
        Ok((known || mutants::broken(Mutant::AheadBelieved)).then_some(seq))
    }

    fn judge_commit(
        &mut self,
        asker: &Asker,
        request: &CommitRequest<'_>,
    ) -> Result<Verdict, String> {
        let acknowledged = self.told_to(asker);
        let shelf = &self.shelf;
        let exists = |oid| shelf.contains(oid).map_err(|error| error.to_string());
        let stored = |oid| shelf.load(oid).map_err(|error| error.to_string());
        let Role::Master(master) = &self.role else { return Err("not master".into()) };
        let ground = Ground {
            acknowledged,
            exists: &exists,
            pool: &master.oids,
            dead: self.pack.dead(),
            stored: &stored,
        };
        self.checker.check(request, &ground)
    }

    fn append_commit(&mut self, asker: Asker, request: &CommitRequest<'_>, out: &mut Vec<Action>) {
        let seq = self.shelf.tip().seq.next();
        let time_us = self.next_time_us();
        self.note_waiting();
        let Some(master) = self.master() else { return };
        master.in_flight.insert(seq, asker);
        master.oids.used(request.records.iter().map(|(oid, _)| *oid));
        let meta = TxMeta {
            kind: shelf::Kind::Commit,
            epoch: master.epoch,
            seq,
            time_us,
            commit_id: request.commit_id,
        };
        self.append_own(&meta, request.records, out);
    }

    // ---- fresh reads ----

    pub(super) fn drive_confirm(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let boot = self.setup.boot;
        let Some(master) = self.master() else { return };
        let round = match master.confirm.begin() {
            Some(round) => Some(round),
            None => master
                .confirm
                .pending()
                .filter(|_| now.since_ms(master.confirm_sent) >= ASK_AGAIN_MS),
        };
        if let Some(round) = round {
            master.confirm_sent = now;
            let confirm = pb::Confirm { epoch: master.epoch.0, boot: boot.0, round };
            let voters: Vec<NodeId> = master.followers.keys().copied().collect();
            for voter in voters {
                self.send(voter, Kind::Confirm(confirm), out);
            }
        }
        if let Some(master) = self.master() {
            let done = master.confirm.done();
            self.answer_synced(done, out);
        }
    }

    pub(super) fn on_confirm(
        &mut self,
        from: NodeId,
        confirm: pb::Confirm,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        // Who may have forgotten a newer promise must not confirm an older mastership.
        let proved = !self.is_unproved() || mutants::broken(Mutant::UnprovedConfirms);
        let sound = self.suspect.is_empty() || mutants::broken(Mutant::SuspectConfirms);
        // A late question of an epoch before must not be answered for this one: its master may be the same process, whose
        // rounds begin again with each epoch.
        let of_this_epoch =
            confirm.epoch == self.promised.0 || mutants::broken(Mutant::ConfirmOfNewerEpoch);
        if of_this_epoch && sound && proved && !self.is_accused() {
            let pb::Confirm { epoch, boot, round } = confirm;
            self.send(from, Kind::ConfirmReply(pb::ConfirmReply { epoch, boot, round }), out);
        }
        Ok(())
    }

    pub(super) fn on_confirm_reply(
        &mut self,
        from: NodeId,
        reply: pb::ConfirmReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let boot = self.setup.boot;
        let Some(master) = self.master() else { return Ok(()) };
        if (reply.epoch, reply.boot) == (master.epoch.0, boot.0) {
            let done = master.confirm.confirmed(from, reply.round);
            self.answer_synced(done, out);
        }
        Ok(())
    }

    fn answer_synced(&mut self, waiting: Vec<Asker>, out: &mut Vec<Action>) {
        for asker in waiting {
            let seq = self.synced_to(&asker);
            self.answer(asker, Answer::SyncedSeq(seq.0), out);
        }
    }

    // ---- oids ----

    fn grant_oids(&mut self, wanted: WantedOids, out: &mut Vec<Action>) {
        let WantedOids { asker, session, count } = wanted;
        let key = asker.session(session);
        let shelf = &self.shelf;
        let exists = |oid| shelf.contains(oid).map_err(|error| error.to_string());
        let Role::Master(master) = &mut self.role else { return };
        let answer = match master.oids.allocate(key, asker.id, count, &exists) {
            Ok(Allocation::Granted(oids)) => {
                Answer::Oids(pb::OidGrant { oids: oids.into_iter().map(|oid| oid.0).collect() })
            }
            Ok(Allocation::NeedBlock) => {
                master.oids_wanted.push_back(wanted);
                return;
            }
            Ok(Allocation::Gone) => return,
            Ok(Allocation::RegisterFirst) => Answer::RegisterFirst(true),
            Err(error) => {
                slog::error!(self.log, "can't give out oids"; "error" => error);
                return;
            }
        };
        self.answer(asker, answer, out);
    }

    /// Has the next block on its way before the present one is used up.
    pub(super) fn drive_oid_block(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let limit = self.control.oid_limit();
        let from = limit.max(self.shelf.next_free());
        let Some(master) = self.master() else { return };
        let asked = master.block_asked.is_some_and(|at| now.since_ms(at) < ASK_AGAIN_MS);
        if asked || (master.oid_left() >= OID_BLOCK_LOW && master.oids_wanted.is_empty()) {
            return;
        }
        master.block_asked = Some(now);
        let below = from.0.saturating_add(OID_BLOCK);
        if mutants::broken(Mutant::OidsBeforeRaft) {
            return self.use_block(from, Oid(below), out);
        }
        let block = OidBlock { epoch: master.epoch.0, below, from: limit.0 };
        self.propose(CommandKind::OidBlock(block), out);
    }

    /// Raft has given this epoch the oids from `before` up to the state's limit.
    pub(super) fn on_oid_block(&mut self, epoch: Epoch, before: Oid, out: &mut Vec<Action>) {
        let from = before.max(self.shelf.next_free());
        let below = self.control.oid_limit();
        let Some(master) = self.master() else { return };
        if master.epoch == epoch && from < below {
            self.use_block(from, below, out);
        }
    }

    pub(super) fn use_block(&mut self, from: Oid, below: Oid, out: &mut Vec<Action>) {
        let Some(master) = self.master() else { return };
        master.block_asked = None;
        if !master.open {
            master.oid_blocks.push((from, below));
            return;
        }
        master.oids.add_block(from, below);
        let mut wanted = std::mem::take(&mut master.oids_wanted);
        // Nobody would give back what the sessions of a process that is gone were given, the root's oid among it
        // (soak, seed 8107301).
        wanted.retain(|it| master.has_registered(&it.asker));
        for wanted in wanted {
            self.grant_oids(wanted, out);
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
