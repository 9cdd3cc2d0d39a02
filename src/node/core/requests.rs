//! What this node's sessions ask of the master, until it is answered, across any number of masters.
//!
//! Every request is kept until its answer comes. With each new epoch the node registers with the new master, then
//! sends again what is open. A commit is sent again only when this node has applied the new epoch's start: whatever an
//! earlier epoch wrote is in the file before that, or never will be; so what has not been found by then was not
//! committed. That only spares the line: the new master has all of it in its own file before it is open, finds the commit
//! there by its id, or says that it can't know (`durus::CommitChecker`). Answers of earlier epochs are not believed.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::serve::ASK_AGAIN_MS;
use super::{Action, Core, Input};
use crate::durus::{self, Ahead, CommitChecker, SessionAction};
use crate::mutants::{self, Mutant};
use crate::plausible::{Disbelieved, OID_AHEAD_MAX, SEQ_AHEAD_MAX, within};
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::proto::replication::client_reply::Answer;
use crate::proto::replication::client_request::Ask;
use crate::replication::wire;
use crate::shelf::Shelf;
use crate::types::{ConnId, Epoch, NodeId, Now, Oid, Seq};

struct Open {
    ask: Ask,
    /// The epoch it was last sent to, and when.
    sent: Option<(Epoch, Now)>,
}

#[derive(Default)]
pub(super) struct Requests {
    open: BTreeMap<u64, Open>,
    /// The epoch whose master knows our sessions.
    registered: Option<Epoch>,
    register_sent: Option<(Epoch, Now)>,
    /// Something is open that was not looked at.
    fresh: bool,
    /// The last request for a pack: one at a time is enough for all clients.
    pack: Option<u64>,
}

impl Requests {
    /// When something is to be asked again, in microseconds of the monotonic clock.
    pub(super) fn deadline_us(&self) -> Option<u64> {
        if self.open.is_empty() {
            return None;
        }
        let sent = self.open.values().filter_map(|open| open.sent).map(|(_, at)| at.mono_us).min();
        let register = self.register_sent.map(|(_, at)| at.mono_us);
        sent.into_iter().chain(register).min().map(|at| at + ASK_AGAIN_MS * 1000)
    }
}

/// Whether somebody waits for the answer; what only tells the master something goes on until that has heard it. Oids that
/// are asked for in vain would be a session's that is gone, if this master does not know that it is.
fn is_wanted(id: u64, ask: &Ask, sessions: &durus::Sessions) -> bool {
    match ask {
        Ask::Sync(_) | Ask::Commit(_) | Ask::NewOids(_) | Ask::Turn(_) => sessions.outstanding(id),
        Ask::FreeSession(_) | Ask::Told(_) | Ask::EndTurn(_) | Ask::Pack(_) => true,
    }
}

/// The same question, once more to the same master. What was sent after the question is read after it, so a master that
/// has not got it by then will not.
fn asked_again(ask: &Ask, bytes_max: u64) -> Ask {
    match ask {
        Ask::Commit(commit) if bytes(commit) > bytes_max => {
            let commit_id = commit.commit_id.clone();
            Ask::Commit(pb::Commit { commit_id, again: true, ..Default::default() })
        }
        other => other.clone(),
    }
}

fn bytes(commit: &pb::Commit) -> u64 {
    commit.records.iter().map(|it| it.record.len() as u64).sum()
}

/// The committed state of this node, as sessions see it.
struct ShelfView<'a> {
    shelf: &'a Shelf,
    checker: &'a CommitChecker,
    applied: Seq,
    acknowledged: Seq,
}

impl durus::View for ShelfView<'_> {
    fn load(&self, oid: Oid) -> Result<Option<Bytes>, String> {
        self.shelf.load(oid).map_err(|error| error.to_string())
    }

    fn load_before(&self, oid: Oid, seq: Seq) -> Result<Option<Option<Bytes>>, String> {
        self.shelf.load_before(oid, seq).map_err(|error| error.to_string())
    }

    fn applied(&self) -> Seq {
        self.applied
    }

    fn acknowledged(&self) -> Seq {
        self.acknowledged
    }

    fn tip(&self) -> Seq {
        self.shelf.tip().seq
    }

    fn ahead(&self) -> Option<Ahead> {
        let tip = self.shelf.tip();
        let oids = self.checker.changed_after(self.applied)?;
        Some(Ahead { epoch: tip.epoch, seq: tip.seq, oids })
    }
}

/// Calls a session function with this node's state as its view.
macro_rules! with_view {
    ($core:expr, $out:expr, |$sessions:ident, $now:ident, $view:ident, $actions:ident| $call:expr) => {{
        let applied = $core.shelf.indexed();
        let acknowledged = $core.acknowledged();
        let $view =
            &ShelfView { shelf: &$core.shelf, checker: &$core.checker, applied, acknowledged };
        let ($sessions, $now) = (&mut $core.sessions, $core.now);
        let mut actions = Vec::new();
        let $actions = &mut actions;
        $call;
        $core.on_session_actions(actions, $out);
    }};
}

impl Core {
    // ---- from the sockets ----

    pub(super) fn on_client(&mut self, input: Input, out: &mut Vec<Action>) {
        if !self.serving && !self.suspect.is_empty() {
            return self.turn_away(input, out);
        }
        if !self.serving {
            let (now, before) = (self.now, out.len());
            if self.is_holding()
                && let Input::ClientClosed { conn } = input
            {
                self.on_client_closed(conn, out);
            }
            self.early_clients.put(input, &self.setup.limits, now, out);
            self.leave_held(before, out);
            return;
        }
        match input {
            Input::ClientOpened { .. } if !self.suspect.is_empty() => self.turn_away(input, out),
            Input::ClientOpened { conn, .. } => self.on_client_opened(conn, out),
            Input::ClientData { conn, bytes } => self.on_client_data(conn, bytes, out),
            Input::ClientDrained { conn } => self.on_client_drained(conn, out),
            Input::ClientClosed { conn } => self.on_client_closed(conn, out),
            _ => unreachable!("only clients' inputs come here"),
        }
    }

    /// A node that stands aside never comes to serve, or takes nothing new any more: its clients are to go elsewhere.
    pub(super) fn turn_away(&mut self, input: Input, out: &mut Vec<Action>) {
        if let Input::ClientOpened { conn, .. } = input {
            let reason = format!("this node stands aside: {}", self.suspect);
            out.push(Action::ClientClose { conn, reason, limit: None });
        }
    }

    pub(super) fn turn_away_early(&mut self, out: &mut Vec<Action>) {
        if !self.suspect.is_empty() {
            for input in self.early_clients.take() {
                self.turn_away(input, out);
            }
        }
    }

    /// After a start the file may show what is to be cut back. From when everything in it is known to be committed,
    /// clients are served.
    pub(super) fn serve_early(&mut self, out: &mut Vec<Action>) {
        let shows_more = self.committed < self.shelf.indexed();
        if shows_more && !mutants::broken(Mutant::ServedTooEarly) {
            return;
        }
        self.serving = true;
        let (shown, generation) = (self.shelf.indexed(), self.shelf.generation());
        if self.serves_first() {
            let (limits, boot) = (self.setup.limits.clone(), self.setup.boot);
            self.sessions = durus::Sessions::new(limits, boot, shown, generation);
            // Nothing was asked for before, or its number would be given again.
            assert!(self.requests.open.is_empty(), "a request of nobody's session");
        } else {
            self.sessions.begin_again(shown, generation);
        }
        // The master must hear of this generation.
        self.requests.registered = None;
        self.requests.register_sent = None;
        for input in self.early_clients.take() {
            self.on_client(input, out);
        }
    }

    fn on_client_opened(&mut self, conn: ConnId, out: &mut Vec<Action>) {
        let mut actions = Vec::new();
        self.sessions.opened(conn, self.now, &mut actions);
        self.on_session_actions(actions, out);
    }

    fn on_client_data(&mut self, conn: ConnId, bytes: Bytes, out: &mut Vec<Action>) {
        with_view!(self, out, |sessions, now, view, actions| {
            sessions.data(conn, &bytes, now, view, actions)
        });
    }

    fn on_client_drained(&mut self, conn: ConnId, out: &mut Vec<Action>) {
        let mut actions = Vec::new();
        self.sessions.drained(conn, self.now, &mut actions);
        self.on_session_actions(actions, out);
    }

    pub(super) fn on_client_closed(&mut self, conn: ConnId, out: &mut Vec<Action>) {
        let mut actions = Vec::new();
        self.sessions.closed(conn, &mut actions);
        self.on_session_actions(actions, out);
    }

    pub(super) fn poke_sessions(&mut self, out: &mut Vec<Action>) {
        with_view!(self, out, |sessions, now, view, actions| sessions.poke(now, view, actions));
    }

    /// This node's file has grown.
    pub(super) fn poke_file(&mut self, out: &mut Vec<Action>) {
        with_view!(self, out, |sessions, now, view, actions| sessions
            .poke_file(now, view, actions));
    }

    /// A session that has had its turn goes on when everything else had its own.
    pub(super) fn read_on(&mut self, out: &mut Vec<Action>) {
        if self.serving {
            with_view!(self, out, |sessions, now, view, actions| sessions
                .read_on(now, view, actions));
        }
    }

    pub(super) fn on_session_actions(
        &mut self,
        actions: Vec<SessionAction>,
        out: &mut Vec<Action>,
    ) {
        for action in actions {
            let (id, ask) = match action {
                SessionAction::Send { conn, bytes } => {
                    out.push(Action::ClientSend { conn, bytes });
                    continue;
                }
                SessionAction::Read { conn, on } => {
                    out.push(Action::ClientRead { conn, on });
                    continue;
                }
                SessionAction::Drain { conn } => {
                    out.push(Action::ClientDrain { conn });
                    continue;
                }
                SessionAction::Close { conn, reason } => {
                    let limit = reason.limit();
                    out.push(Action::ClientClose { conn, reason: reason.to_string(), limit });
                    continue;
                }
                SessionAction::Quit { conn } => {
                    slog::info!(self.log, "a client asked the server to stop"; "connection" => conn.0);
                    self.on_stop();
                    continue;
                }
                SessionAction::Sync { id } => (id, Ask::Sync(pb::Sync {})),
                SessionAction::Commit { id, commit_id, session, base, ahead, records, touched } => {
                    let record =
                        |(oid, record): (Oid, Bytes)| pb::ObjectRecord { oid: oid.0, record };
                    let commit = pb::Commit {
                        commit_id: Bytes::copy_from_slice(&commit_id.0),
                        session,
                        base_seq: base.0,
                        ahead_epoch: ahead.map_or(0, |(epoch, _)| epoch.0),
                        ahead_seq: ahead.map_or(0, |(_, seq)| seq.0),
                        records: records.into_iter().map(record).collect(),
                        has_touched: touched.is_some(),
                        touched: touched.unwrap_or_default(),
                        again: false,
                    };
                    (id, Ask::Commit(commit))
                }
                SessionAction::NewOids { id, session, count } => {
                    (id, Ask::NewOids(pb::NewOids { session, count }))
                }
                SessionAction::Turn { id, session, touched } => {
                    let has_touched = touched.is_some();
                    let touched = touched.unwrap_or_default();
                    (id, Ask::Turn(pb::Turn { session, touched, has_touched }))
                }
                SessionAction::EndTurn { id, session, asked } => {
                    self.requests.open.remove(&asked);
                    (id, Ask::EndTurn(pb::EndTurn { session }))
                }
                SessionAction::FreeSession { id, session } => {
                    (id, Ask::FreeSession(pb::FreeSession { session }))
                }
                SessionAction::Pack { id } => {
                    let asked = self.requests.pack.filter(|id| self.requests.open.contains_key(id));
                    if asked.is_some() {
                        continue;
                    }
                    self.requests.pack = Some(id);
                    (id, Ask::Pack(pb::Pack {}))
                }
                SessionAction::Told { id, generation } => {
                    (id, Ask::Told(pb::Told { generation: generation.0 }))
                }
            };
            self.requests.open.insert(id, Open { ask, sent: None });
            self.requests.fresh = true;
        }
    }

    // ---- to the master ----

    pub(super) fn drive_requests(&mut self, out: &mut Vec<Action>) {
        self.turn_away_early(out);
        let before = out.len();
        self.early_clients.tick(&self.setup.limits, self.now, out);
        self.leave_held(before, out);
        let mut actions = Vec::new();
        self.sessions.tick(self.now, &mut actions);
        self.on_session_actions(actions, out);
        if self.sessions.goes_on() {
            self.poke_sessions(out);
        }
        let Some((epoch, master)) = self.master_to_ask() else { return };
        if self.requests.registered != Some(epoch) {
            self.send_register(epoch, master, out);
            return;
        }
        let overdue = self.requests.deadline_us().is_some_and(|due| due <= self.now.mono_us);
        if self.requests.fresh || overdue {
            self.requests.fresh = false;
            self.send_open(epoch, master, out);
        }
    }

    /// The newest elected master, if we are on its epoch.
    fn master_to_ask(&self) -> Option<(Epoch, NodeId)> {
        // What they ask is of a state that may be lost.
        if self.is_holding() && !mutants::broken(Mutant::HeldStillAsks) {
            return None;
        }
        let (master, _) = self.control.master()?;
        let epoch = self.control.epoch();
        (self.control.fencing().map(|fencing| fencing.epoch).is_none() && self.promised == epoch)
            .then_some((epoch, master))
    }

    fn send_register(&mut self, epoch: Epoch, master: NodeId, out: &mut Vec<Action>) {
        let waiting = self
            .requests
            .register_sent
            .is_some_and(|(to, at)| to == epoch && self.now.since_ms(at) < ASK_AGAIN_MS);
        if waiting {
            return;
        }
        self.requests.register_sent = Some((epoch, self.now));
        let pools = self.sessions.pools().into_iter();
        let pools = pools.map(|(session, oids)| wire::put_pool(session, oids));
        let register = pb::Register {
            epoch: epoch.0,
            boot: self.setup.boot.0,
            pools: pools.collect(),
            told_generation: self.sessions.told_generation().0,
        };
        self.send(master, Kind::Register(register), out);
    }

    pub(super) fn on_register_reply(
        &mut self,
        _from: NodeId,
        reply: pb::RegisterReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let current = Some(Epoch(reply.epoch)) == self.master_to_ask().map(|(epoch, _)| epoch);
        if reply.boot != self.setup.boot.0 || !current {
            return Ok(());
        }
        self.requests.registered = Some(Epoch(reply.epoch));
        self.requests.fresh = true;
        let mut actions = Vec::new();
        let revoked: Vec<_> = reply.revoked.into_iter().map(wire::pool).collect();
        self.sessions.revoke(&revoked, &mut actions);
        self.on_session_actions(actions, out);
        Ok(())
    }

    fn send_open(&mut self, epoch: Epoch, master: NodeId, out: &mut Vec<Action>) {
        let (now, applied_epoch) = (self.now, self.applied_epoch);
        let again_max = self.setup.sent_again_bytes_max;
        let mut due = Vec::new();
        let mut unwanted = Vec::new();
        for (id, open) in &mut self.requests.open {
            let may = match open.sent {
                None => true,
                Some((to, at)) if to == epoch => now.since_ms(at) >= ASK_AGAIN_MS,
                Some(_) => !matches!(open.ask, Ask::Commit(_)) || applied_epoch >= epoch,
            };
            if may && !is_wanted(*id, &open.ask, &self.sessions) {
                unwanted.push(*id);
            } else if may {
                let again = open.sent.is_some_and(|(to, _)| to == epoch);
                open.sent = Some((epoch, now));
                due.push((
                    *id,
                    if again { asked_again(&open.ask, again_max) } else { open.ask.clone() },
                ));
            }
        }
        unwanted.iter().for_each(|id| _ = self.requests.open.remove(id));
        for (id, ask) in due {
            let request =
                pb::ClientRequest { epoch: epoch.0, boot: self.setup.boot.0, id, ask: Some(ask) };
            self.send(master, Kind::ClientRequest(request), out);
        }
    }

    /// A new epoch start was applied: commits of earlier epochs that were not found may be sent again.
    pub(super) fn on_epoch_applied(&mut self) {
        self.requests.fresh = true;
    }

    // ---- answers ----

    /// A session waits until its node has what the answer names: one that can't be true is not taken, and asked for again.
    fn check_answer(&self, from: NodeId, answer: &Answer) -> Result<(), Disbelieved> {
        let written = self.health.beat(from).map_or(0, |beat| beat.written_seq);
        let known = written.max(self.shelf.tip().seq.0);
        match answer {
            Answer::SyncedSeq(seq) | Answer::TurnSeq(seq) | Answer::CommittedSeq(seq) => {
                within("seq of an answer", *seq, known, SEQ_AHEAD_MAX)
            }
            Answer::Oids(grant) => {
                let greatest = grant.oids.iter().copied().max().unwrap_or(0);
                within("oid", greatest, self.control.oid_limit().0, OID_AHEAD_MAX)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn on_client_reply(
        &mut self,
        from: NodeId,
        reply: pb::ClientReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if reply.boot != self.setup.boot.0 {
            return Ok(());
        }
        let epoch = Epoch(reply.epoch);
        // A newer master was told what our sessions hold: what an older one still gives out, or says, comes too late.
        let late = self.requests.register_sent.is_some_and(|(to, _)| to > epoch);
        let believed = self
            .requests
            .open
            .get(&reply.id)
            .is_some_and(|open| open.sent.is_some_and(|(to, _)| to == epoch));
        if late || !believed {
            return Ok(());
        }
        let id = reply.id;
        let answer = reply.answer.ok_or("reply without an answer")?;
        if let Err(number) = self.check_answer(from, &answer) {
            self.disbelieve(from, &number.to_string());
            return Ok(());
        }
        match answer {
            Answer::RegisterFirst(_) => {
                if self.requests.registered == Some(epoch) {
                    self.requests.registered = None;
                    self.requests.register_sent = None;
                }
                // Refused unseen. Should an older copy have been taken, the commit id tells.
                if let Some(open) = self.requests.open.get_mut(&id) {
                    open.sent = None;
                }
            }
            Answer::SendRecords(_) => {
                if let Some(open) = self.requests.open.get_mut(&id) {
                    open.sent = None;
                    self.requests.fresh = true;
                }
            }
            Answer::SendTouched(_) => {
                let asked = self.requests.open.get(&id).is_some_and(
                    |open| matches!(&open.ask, Ask::Commit(commit) if !commit.has_touched),
                );
                if asked {
                    let mut actions = Vec::new();
                    self.sessions.send_touched(id, &mut actions);
                    if actions.is_empty() {
                        self.requests.open.remove(&id);
                    }
                    self.on_session_actions(actions, out);
                }
            }
            Answer::SyncedSeq(seq) => self.answered(id, out, |core, out| {
                let seq = if mutants::broken(Mutant::SyncNotAwaited) { 0 } else { seq };
                with_view!(core, out, |sessions, now, view, actions| {
                    sessions.synced(id, Seq(seq), now, view, actions)
                });
            }),
            Answer::TurnSeq(seq) => self.answered(id, out, |core, out| {
                with_view!(core, out, |sessions, now, view, actions| {
                    sessions.turn(id, Seq(seq), now, view, actions)
                });
            }),
            Answer::CommittedSeq(seq) => self.answered(id, out, |core, out| {
                with_view!(core, out, |sessions, now, view, actions| {
                    sessions.committed(id, Seq(seq), now, view, actions)
                });
            }),
            Answer::Conflict(conflict) => self.answered(id, out, |core, out| {
                let dead: Vec<Oid> = conflict.dead.iter().copied().map(Oid).collect();
                with_view!(core, out, |sessions, now, view, actions| {
                    sessions.conflict(id, &dead, now, view, actions)
                });
            }),
            Answer::Oids(grant) => self.answered(id, out, |core, out| {
                let oids: Vec<Oid> = grant.oids.iter().copied().map(Oid).collect();
                with_view!(core, out, |sessions, now, view, actions| {
                    sessions.oids(id, &oids, now, view, actions)
                });
            }),
            Answer::Refused(why) => self.answered(id, out, |core, out| {
                let mut actions = Vec::new();
                core.sessions.refused(id, &why, &mut actions);
                core.on_session_actions(actions, out);
            }),
            Answer::Done(_) => self.answered(id, out, |_, _| {}),
        }
        Ok(())
    }

    fn answered(
        &mut self,
        id: u64,
        out: &mut Vec<Action>,
        tell: impl FnOnce(&mut Core, &mut Vec<Action>),
    ) {
        self.requests.open.remove(&id);
        tell(self, out);
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
