//! What clients ask: one command after the other, as far as they can be done now.

use bytes::{Bytes, BytesMut};

use super::close::{CloseReason, Limits};
use super::session::{
    Bulk, Commit, Reading, Session, SessionAction, Sessions, Spent, View, Waiter, Waiting,
};
use super::unseen::ChangeLog;
use super::wire::{self, Command};
use crate::mutants::{self, Mutant};
use crate::types::{ConnId, Now, Oid};

/// A client that waits for its next share and has sent so much is not read meanwhile.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// A record longer than this is sent as it is, not copied beside others.
const COPY_BYTES_MAX: usize = 32 << 10;
/// What a client may have read goes along with its commit at once if it is not larger, or not larger than the commit itself;
/// else only if the master asks, and then all of it is sent once more.
pub(super) const TOUCHED_ALONG_BYTES_MAX: usize = 4 << 10;
/// A client whose data comes later than this after the answer to `C` gets no turns: others would wait for it in vain.
const PROMPT_MS: u64 = 10;
/// A buffer that grew beyond this for one large command is given back after it.
const BUFFER_KEPT_BYTES_MAX: usize = 64 << 10;

impl Sessions {
    /// Bytes of a client, in the order they came, cut anywhere.
    pub fn data(
        &mut self,
        conn: ConnId,
        bytes: &[u8],
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some(session) = self.sessions.get_mut(&conn).filter(|session| !session.closed) else {
            return;
        };
        session.buffer.extend_from_slice(bytes);
        session.last_input = now;
        // Whether it has sent more than one command by its next share, is seen then: it may be the rest of one.
        session.pipelines |= !matches!(session.waiting, None | Some(Waiting::Commands));
        let ahead = session.buffer.len() as u64;
        let waits = session.waiting.is_some() && !session.waits_for_share();
        if waits && ahead > self.limits.input_buffered_bytes_max {
            let reason = CloseReason::Limit {
                name: "input_buffered_bytes_max",
                limit: self.limits.input_buffered_bytes_max,
                what: format!("{ahead} bytes sent ahead"),
            };
            return self.close(conn, reason, out);
        }
        if let Err(reason) = session.check_held(0, &self.limits) {
            return self.close(conn, reason, out);
        }
        self.run(conn, now, view, out);
    }

    /// Does commands until one waits, is not all there, or ends the connection, or until it is time for others.
    pub(super) fn run(
        &mut self,
        conn: ConnId,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        loop {
            match self.run_one(conn, now, view, out) {
                Ok(true) => {}
                Ok(false) => break,
                Err(reason) => return self.close(conn, reason, out),
            }
        }
        self.end_share(conn, out);
        self.retime(conn);
    }

    /// What the session does next is another share's.
    fn end_share(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        let Some(session) = self.sessions.get_mut(&conn).filter(|session| !session.closed) else {
            return;
        };
        session.spent = Spent::default();
        if session.draining.is_none() && session.must_drain(&self.limits) {
            session.draining = Some(session.unsent);
            out.push(SessionAction::Drain { conn });
        }
        let waits = session.waits_for_share();
        if waits && session.draining.is_none() && !session.queued {
            session.queued = true;
            self.sharing.push_back(conn);
        }
        let unread = waits && session.buffer.len() > AHEAD_BYTES_MAX;
        if unread != session.unread {
            session.unread = unread;
            out.push(SessionAction::Read { conn, on: !unread });
        }
    }

    /// The client has taken all that was sent to it before this was asked.
    pub fn drained(&mut self, conn: ConnId, now: Now, out: &mut Vec<SessionAction>) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let Some(taken) = session.draining.take() else { return };
        session.unsent -= taken;
        session.last_input = now;
        self.end_share(conn, out);
        self.retime(conn);
    }

    /// Whether there was something to do.
    fn run_one(
        &mut self,
        conn: ConnId,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<bool, CloseReason> {
        let session = self.sessions.get_mut(&conn);
        let Some(session) = session.filter(|session| !session.closed && session.waiting.is_none())
        else {
            return Ok(false);
        };
        let held = session.draining.is_some() || session.must_drain(&self.limits);
        if (held || session.spent.is_all()) && !session.buffer.is_empty() {
            session.waiting = Some(Waiting::Commands);
            return Ok(false);
        }
        if session.commit_base.is_some() {
            let Some(data) = wire::take_commit_data(&mut session.buffer, &self.limits)? else {
                return Ok(false);
            };
            self.begin_commit(conn, data, now, out)?;
            return Ok(true);
        }
        match wire::take_command(&mut session.buffer, &self.limits)? {
            Some(command) => {
                session.pipelines |= !session.buffer.is_empty();
                session.spent.commands += 1;
                self.execute(conn, command, now, view, out).map(|()| true)
            }
            None => {
                if session.buffer.is_empty() && session.buffer.capacity() > BUFFER_KEPT_BYTES_MAX {
                    session.buffer = BytesMut::new();
                }
                Ok(false)
            }
        }
    }

    fn execute(
        &mut self,
        conn: ConnId,
        command: Command,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        match command {
            Command::Version(version) => {
                let session = self.sessions.get_mut(&conn).expect("an open session");
                session.greeted = true;
                let bytes = Bytes::copy_from_slice(&wire::PROTOCOL_VERSION.to_be_bytes());
                session.send(conn, bytes, out);
                if version != wire::PROTOCOL_VERSION {
                    return Err(CloseReason::Version(version));
                }
            }
            Command::NewOids(0) => {}
            Command::NewOids(count) => self.ask_oids(conn, count.into(), now, out)?,
            Command::Load(oid) => self.read(conn, Reading::Load(oid), now, view, out)?,
            Command::Bulk(oids) => self.read(conn, Reading::Bulk(oids), now, view, out)?,
            Command::Sync => self.sync(conn, Reading::Sync, now, out),
            Command::Commit if self.sessions[&conn].turns > 0 => self.ask_turn(conn, now, out),
            Command::Commit => self.read(conn, Reading::Commit, now, view, out)?,
            Command::Pack => {
                let id = self.new_id();
                out.push(SessionAction::Pack { id });
                let session = self.sessions.get_mut(&conn).expect("an open session");
                session.send(conn, Bytes::from_static(&[wire::OKAY]), out);
            }
            Command::Quit if self.limits.allow_quit => {
                out.push(SessionAction::Quit { conn });
                return Err(CloseReason::Goodbye);
            }
            Command::Quit => return Err(CloseReason::QuitNotAllowed),
            Command::Goodbye => return Err(CloseReason::Goodbye),
        }
        Ok(())
    }

    /// Reads from what this node shows now; a session's first reading command syncs before.
    fn read(
        &mut self,
        conn: ConnId,
        reading: Reading,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        if self.sessions[&conn].fresh {
            self.answer_reading(conn, reading, now, view, out)
        } else {
            self.sync(conn, reading, now, out);
            Ok(())
        }
    }

    fn sync(&mut self, conn: ConnId, then: Reading, now: Now, out: &mut Vec<SessionAction>) {
        self.wait(conn, Waiting::Sync(then), now);
        self.ask_position(Waiter::Command(conn), out);
    }

    pub(super) fn wait(&mut self, conn: ConnId, waiting: Waiting, now: Now) {
        let session = self.sessions.get_mut(&conn).expect("an open session");
        session.waiting = Some(waiting);
        session.waiting_since = now;
    }

    /// Answers from what this node shows, in one step: no commit falls into it.
    pub(super) fn answer_reading(
        &mut self,
        conn: ConnId,
        reading: Reading,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        let (shown, told) = (view.applied(), self.log.last());
        assert!(shown == told, "the node shows {shown}, the sessions were told of {told}");
        let session = self.sessions.get_mut(&conn).expect("an open session");
        session.last_input = now;
        match reading {
            Reading::Load(oid) => {
                load(session, &self.log, conn, &[oid], &self.limits, view)?.0.send(conn, out)
            }
            Reading::Bulk(oids) => self.bulk(conn, oids, now, view, out)?,
            Reading::Sync => self.tell(conn, None, out),
            Reading::Commit => {
                session.commit_base = Some(shown);
                session.commit_told = now;
                self.tell(conn, view.ahead(), out);
            }
        }
        Ok(())
    }

    /// The next session has its share, if one waits for it: after each, others have theirs.
    pub fn read_on(&mut self, now: Now, view: &dyn View, out: &mut Vec<SessionAction>) {
        let Some(conn) = self.sharing.pop_front() else { return };
        let Some(session) = self.sessions.get_mut(&conn).filter(|session| !session.closed) else {
            return;
        };
        session.queued = false;
        if session.draining.is_some() {
            return;
        }
        session.last_input = now;
        let done = match session.waiting.take() {
            Some(Waiting::Bulk(bulk)) => self.bulk_on(conn, bulk, now, view, out),
            Some(Waiting::Commands) => Ok(()),
            other => unreachable!("session {conn} waited for its share, now for {other:?}"),
        };
        self.go_on(conn, done, now, view, out);
    }

    /// A bulk load: as much as is done at a time, and the rest in later shares.
    fn bulk(
        &mut self,
        conn: ConnId,
        oids: Vec<Oid>,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        let session = self.sessions.get_mut(&conn).expect("an open session");
        let (answers, done) = load(session, &self.log, conn, &oids, &self.limits, view)?;
        answers.send(conn, out);
        if done < oids.len() {
            let rest = oids[done..].iter().copied();
            let Session { unseen, touched, .. } = session;
            let changed = |oid: &Oid| unseen.contains(conn, *oid, touched, &self.log);
            let invalid = rest.filter(changed).map(|oid| oid.0).collect();
            let (as_of, generation) = (view.applied(), self.log.generation());
            let bulk = Bulk { oids, done, as_of, generation, invalid };
            self.wait(conn, Waiting::Bulk(bulk), now);
            self.in_bulk.insert(conn);
        }
        Ok(())
    }

    /// Its next share. What has changed since it began is answered as it was then: its client hears of the change at its next
    /// sync, as of any that came after the load.
    fn bulk_on(
        &mut self,
        conn: ConnId,
        mut bulk: Bulk,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        self.in_bulk.remove(&conn);
        let session = self.sessions.get_mut(&conn).expect("an open session");
        let log = &self.log;
        // A pack's switch in between: what it has removed is in no file any more.
        let same_file = bulk.generation == log.generation();
        let (as_of, invalid) = (bulk.as_of, &bulk.invalid);
        let mut find = |session: &mut Session, oid: Oid| {
            if invalid.contains(oid.0) {
                return Ok(Err(wire::INVALID));
            }
            let Session { unseen, touched, .. } = session;
            if !unseen.contains(conn, oid, touched, log) {
                return Ok(view.load(oid)?.ok_or(wire::KEY_ERROR));
            }
            let before = if same_file { view.load_before(oid, as_of)? } else { None };
            Ok(before.map_or(Err(wire::INVALID), |found| found.ok_or(wire::KEY_ERROR)))
        };
        let rest = &bulk.oids[bulk.done..];
        let (answers, done) = load_with(session, rest, &self.limits, &mut find)?;
        answers.send(conn, out);
        bulk.done += done;
        if bulk.done < bulk.oids.len() {
            self.wait(conn, Waiting::Bulk(bulk), now);
            self.in_bulk.insert(conn);
        }
        Ok(())
    }

    fn ask_oids(
        &mut self,
        conn: ConnId,
        count: u32,
        now: Now,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        let session = self.sessions.get_mut(&conn).expect("an open session");
        if session.pool.len() + u64::from(count) > self.limits.unused_oids_max {
            let Some(oids) = session.pool.take_forgotten(count) else {
                return Err(CloseReason::Limit {
                    name: "unused_oids_max",
                    limit: self.limits.unused_oids_max,
                    what: format!("{count} more oids with {} unused", session.pool.len()),
                });
            };
            session.send(conn, wire::new_oids(&oids), out);
            return Ok(());
        }
        session.held_oids = true;
        let id = self.new_id();
        self.requests.insert(id, conn);
        self.wait(conn, Waiting::NewOids { id, count }, now);
        out.push(SessionAction::NewOids { id, session: conn.0, count });
        Ok(())
    }

    /// The data after `C`: nothing happens if there is none.
    fn begin_commit(
        &mut self,
        conn: ConnId,
        data: Bytes,
        now: Now,
        out: &mut Vec<SessionAction>,
    ) -> Result<(), CloseReason> {
        let session = self.sessions.get_mut(&conn).expect("an open session");
        let base = session.commit_base.take().expect("C was answered");
        let ahead = session.commit_ahead.take();
        let base = if mutants::broken(Mutant::BaseMoved) { self.log.last() } else { base };
        session.prompt = now.since_ms(session.commit_told) <= PROMPT_MS;
        if !session.prompt {
            session.turns = 0;
        }
        if data.is_empty() {
            session.unseen.forget_ahead(conn, &self.log);
            self.end_turn(conn, out);
            return Ok(());
        }
        let records = wire::split_records(&data, &self.limits)?;
        let bytes = data.len() as u64;
        if self.commit_bytes + bytes > self.limits.commits_waiting_bytes_max {
            return Err(CloseReason::Limit {
                name: "commits_waiting_bytes_max",
                limit: self.limits.commits_waiting_bytes_max,
                what: format!("{} bytes of commits and {bytes} more", self.commit_bytes),
            });
        }
        records.iter().for_each(|(oid, _)| session.touch(*oid));
        session.pool.tried(&records);
        // Its commit ends its turn.
        let in_turn = session.turn.take().is_some();
        self.commit_bytes += bytes;
        let id = self.new_id();
        self.requests.insert(id, conn);
        self.wait(
            conn,
            Waiting::Commit(Commit {
                id,
                base,
                ahead,
                records,
                bytes,
                in_turn,
                seq: None,
                said: false,
            }),
            now,
        );
        self.ask_commit(conn, TOUCHED_ALONG_BYTES_MAX, out);
        Ok(())
    }

    /// Sends the session's commit to the master, with what the client may have read if that is not too large.
    pub(super) fn ask_commit(
        &self,
        conn: ConnId,
        touched_bytes_max: usize,
        out: &mut Vec<SessionAction>,
    ) {
        let session = &self.sessions[&conn];
        let Some(Waiting::Commit(commit)) = &session.waiting else {
            unreachable!("session {conn} commits")
        };
        let touched = session.touched_along(touched_bytes_max.max(commit.bytes as usize));
        out.push(SessionAction::Commit {
            id: commit.id,
            commit_id: self.commit_id(commit.id),
            session: conn.0,
            base: commit.base,
            ahead: commit.ahead,
            records: commit.records.clone(),
            touched,
        });
    }
}

/// Answers to loads, in order.
#[derive(Default)]
struct Answers {
    pieces: Vec<Bytes>,
    /// The last piece, being written.
    last: BytesMut,
}

impl Answers {
    fn record(&mut self, record: Bytes) {
        wire::put_record_header(&mut self.last, &record);
        if record.len() <= COPY_BYTES_MAX {
            self.last.extend_from_slice(&record);
        } else {
            self.end_piece();
            self.pieces.push(record);
        }
    }

    fn miss(&mut self, status: u8) {
        self.last.extend_from_slice(&[status]);
    }

    fn end_piece(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push(self.last.split().freeze());
        }
    }

    fn send(mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        self.end_piece();
        out.extend(self.pieces.into_iter().map(|bytes| SessionAction::Send { conn, bytes }));
    }
}

/// Answers, up to what is done at a time, and how many of the oids are done with. What is not sent counts as not read.
fn load(
    session: &mut Session,
    log: &ChangeLog,
    conn: ConnId,
    oids: &[Oid],
    limits: &Limits,
    view: &dyn View,
) -> Result<(Answers, usize), CloseReason> {
    let mut find = |session: &mut Session, oid: Oid| {
        let Session { unseen, touched, .. } = session;
        if unseen.contains(conn, oid, touched, log) && !mutants::broken(Mutant::ChangedIsLoaded) {
            return Ok(Err(wire::INVALID));
        }
        Ok(view.load(oid)?.ok_or(wire::KEY_ERROR))
    };
    load_with(session, oids, limits, &mut find)
}

/// A record, or why there is none. The error is a read that failed.
type Found = Result<Result<Bytes, u8>, String>;

fn load_with(
    session: &mut Session,
    oids: &[Oid],
    limits: &Limits,
    find: &mut dyn FnMut(&mut Session, Oid) -> Found,
) -> Result<(Answers, usize), CloseReason> {
    let mut answers = Answers::default();
    for (done, oid) in oids.iter().enumerate() {
        let over = session.spent.is_all() || session.must_drain(limits);
        if done > 0 && over {
            return Ok((answers, done));
        }
        session.spent.oids += 1;
        let found = find(session, *oid).map_err(CloseReason::Read)?;
        if found != Err(wire::INVALID) {
            session.touch(*oid);
        }
        let record = match found {
            Ok(record) => record,
            Err(status) => {
                session.answered(1);
                answers.miss(status);
                if session.stops_reading() {
                    break;
                }
                continue;
            }
        };
        session.answered(wire::RECORD_HEADER_BYTES + record.len());
        session.check_held(session.unsent, limits)?;
        answers.record(record);
    }
    Ok((answers, oids.len()))
}
