//! What the master answers, and what becomes visible on this node: both let sessions go on.
//!
//! An answer may come twice, late, or for a session that is gone; and a commit may become visible before the master's
//! answer comes. Whatever comes first settles a request, the rest finds nobody who asked.

use bytes::Bytes;

use super::close::CloseReason;
use super::session::{Commit, SessionAction, Sessions, View, Waiter, Waiting};
use super::wire;
use crate::types::{ConnId, Now, Oid, Seq};

impl Sessions {
    /// Answer to a Sync: all that was committed when it was asked is within `seq`.
    pub fn synced(
        &mut self,
        id: u64,
        seq: Seq,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some((_, waiters)) = self.round.take_if(|(asked, _)| *asked == id) else { return };
        for waiter in &waiters {
            match waiter {
                Waiter::Start(conn) => {
                    if let Some(session) = self.sessions.get_mut(conn) {
                        session.unseen.start_at(seq);
                    }
                }
                Waiter::Command(conn) => self.read_at(*conn, seq),
            }
        }
        self.ask_round(out);
        self.poke(now, view, out);
    }

    /// The session's command may read as soon as this node shows `seq`.
    fn read_at(&mut self, conn: ConnId, seq: Seq) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        session.waiting = match session.waiting.take() {
            Some(Waiting::Sync(reading)) => {
                self.visible.insert((seq, conn));
                Some(Waiting::Visible(seq, reading))
            }
            // A client that left while it synced leaves no session.
            other => unreachable!("session {conn} waited for a sync, now for {other:?}"),
        };
    }

    /// Lets sessions go on that waited for what this node shows by now.
    pub fn poke(&mut self, now: Now, view: &dyn View, out: &mut Vec<SessionAction>) {
        let shown = view.applied();
        while let Some((seq, conn)) = self.visible.first().copied() {
            if seq > shown {
                break;
            }
            self.visible.pop_first();
            self.shown(conn, now, view, out);
        }
        let told = shown.min(view.acknowledged());
        while let Some((seq, conn)) = self.settling.first().copied() {
            if seq > told {
                break;
            }
            self.settling.pop_first();
            self.shown(conn, now, view, out);
        }
        self.poke_file(now, view, out);
    }

    /// What the session waited for is visible.
    fn shown(&mut self, conn: ConnId, now: Now, view: &dyn View, out: &mut Vec<SessionAction>) {
        let session = self.sessions.get_mut(&conn).expect("who leaves does not wait");
        let done = match session.waiting.take() {
            Some(Waiting::Visible(_, reading)) => {
                session.fresh = true;
                self.answer_reading(conn, reading, now, view, out)
            }
            Some(Waiting::Commit(commit)) => {
                session.pool.stored(&commit.records);
                if !commit.in_turn {
                    session.got_through();
                }
                self.settle(conn, commit, wire::OKAY, now, out);
                self.judge_revoked(conn, out);
                Ok(())
            }
            other => unreachable!("session {conn} waited to see something, now {other:?}"),
        };
        self.go_on(conn, done, now, view, out);
    }

    pub(super) fn go_on(
        &mut self,
        conn: ConnId,
        done: Result<(), CloseReason>,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        match done {
            Ok(()) => self.run(conn, now, view, out),
            Err(reason) => self.close(conn, reason, out),
        }
    }

    /// The commit's outcome is known. Its session has nothing outstanding any more.
    fn settle(
        &mut self,
        conn: ConnId,
        commit: Commit,
        status: u8,
        now: Now,
        out: &mut Vec<SessionAction>,
    ) {
        self.requests.remove(&commit.id);
        self.commit_bytes -= commit.bytes;
        let session = self.sessions.get_mut(&conn).expect("a commit has a session");
        session.last_input = now;
        if session.closed {
            self.forget(conn, out);
        } else {
            session.send(conn, Bytes::copy_from_slice(&[status]), out);
        }
    }

    /// The session that still waits for this commit, unless it is known to be committed.
    fn committer(&mut self, id: u64) -> Option<(ConnId, &mut Commit)> {
        let conn = *self.requests.get(&id)?;
        match &mut self.sessions.get_mut(&conn)?.waiting {
            Some(Waiting::Commit(commit)) if commit.id == id && commit.seq.is_none() => {
                Some((conn, commit))
            }
            _ => None,
        }
    }

    fn take_commit(&mut self, id: u64) -> Option<(ConnId, Commit)> {
        let (conn, _) = self.committer(id)?;
        match self.sessions.get_mut(&conn)?.waiting.take() {
            Some(Waiting::Commit(commit)) => Some((conn, commit)),
            other => unreachable!("session {conn} commits, not {other:?}"),
        }
    }

    /// Answer to a Commit: it is transaction `seq`, and its client may be told. It is when this node shows that.
    pub fn committed(
        &mut self,
        id: u64,
        seq: Seq,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some(conn) = self.requests.get(&id).copied() else { return };
        let session = self.sessions.get_mut(&conn).expect("requests are of sessions");
        let Some(Waiting::Commit(commit)) = &mut session.waiting else { return };
        if commit.id != id || commit.said {
            return;
        }
        commit.said = true;
        // What this node's own file says of where it is counts more.
        let seq = match commit.seq {
            Some(shown) => {
                self.settling.remove(&(shown, conn));
                shown
            }
            None => seq,
        };
        commit.seq = Some(seq);
        self.visible.insert((seq, conn));
        self.poke(now, view, out);
    }

    /// Answer to a Commit: definitely not committed, and will not be. `dead`: objects it used that are gone; the
    /// client is told of them at its next sync.
    pub fn conflict(
        &mut self,
        id: u64,
        dead: &[Oid],
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some((conn, commit)) = self.take_commit(id) else { return };
        let session = self.sessions.get_mut(&conn).expect("a commit has a session");
        if dead.is_empty() {
            session.overtaken();
        }
        session.unseen.forget_ahead(conn, &self.log);
        session.unseen.add(dead);
        session.pool.refused(&commit.records);
        self.settle(conn, commit, wire::INVALID, now, out);
        self.judge_revoked(conn, out);
        self.go_on(conn, Ok(()), now, view, out);
    }

    /// Answer to a Commit: others committed since its base; the master needs to know what the client may have read.
    pub fn send_touched(&mut self, id: u64, out: &mut Vec<SessionAction>) {
        if let Some((conn, _)) = self.committer(id) {
            self.ask_commit(conn, usize::MAX, out);
        }
    }

    /// Answer to NewOids.
    pub fn oids(
        &mut self,
        id: u64,
        oids: &[Oid],
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some(conn) = self.requests.get(&id).copied() else { return };
        let session = self.sessions.get_mut(&conn).expect("requests are of sessions");
        let Some(Waiting::NewOids { count, .. }) =
            session.waiting.take_if(|waiting| matches!(waiting, Waiting::NewOids { .. }))
        else {
            return;
        };
        self.requests.remove(&id);
        session.last_input = now;
        let done = if oids.len() == count as usize {
            session.pool.given(oids);
            session.send(conn, wire::new_oids(oids), out);
            Ok(())
        } else {
            Err(CloseReason::Answer(format!("{} oids instead of {count}", oids.len())))
        };
        self.go_on(conn, done, now, view, out);
    }

    /// Answer to any request of a session: a rule was broken, or the outcome cannot be known. The connection ends.
    pub fn refused(&mut self, id: u64, why: &str, out: &mut Vec<SessionAction>) {
        let reason = CloseReason::Refused(why.to_string());
        if let Some((conn, commit)) = self.take_commit(id) {
            self.requests.remove(&id);
            self.commit_bytes -= commit.bytes;
            if self.sessions[&conn].closed {
                self.forget(conn, out);
            } else {
                self.close(conn, reason, out);
            }
        } else if let Some(conn) = self.requests.get(&id).copied()
            && matches!(self.sessions[&conn].waiting, Some(Waiting::NewOids { .. }))
        {
            self.close(conn, reason, out);
        }
    }
}
