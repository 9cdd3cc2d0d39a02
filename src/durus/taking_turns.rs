//! A session's part in turns (`turns` is the master's): it asks for one before `C` is answered, has its client told of
//! everything up to then, and gives it back if no commit comes of it.

use super::commands::TOUCHED_ALONG_BYTES_MAX;
use super::session::{Reading, SessionAction, Sessions, View, Waiting};
use crate::types::{ConnId, Now, Seq};

impl Sessions {
    /// Its commits were refused for what came between what its client was told and its data: nothing is to, this time.
    pub(super) fn ask_turn(&mut self, conn: ConnId, now: Now, out: &mut Vec<SessionAction>) {
        let id = self.new_id();
        self.requests.insert(id, conn);
        self.wait(conn, Waiting::Turn { id }, now);
        let session = self.sessions.get_mut(&conn).expect("an open session");
        session.turns -= 1;
        session.turn = Some(id);
        let touched = session.touched_along(TOUCHED_ALONG_BYTES_MAX);
        out.push(SessionAction::Turn { id, session: conn.0, touched });
    }

    /// Answer to a Turn: it has come. Its client is to be told of everything up to `seq`, committed or not.
    pub fn turn(
        &mut self,
        id: u64,
        seq: Seq,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let Some(conn) = self.requests.get(&id).copied() else { return };
        let session = self.sessions.get_mut(&conn).expect("requests are of sessions");
        if !matches!(session.waiting, Some(Waiting::Turn { .. })) {
            return;
        }
        self.requests.remove(&id);
        session.waiting = Some(Waiting::InFile(seq));
        self.in_file.insert((seq, conn));
        self.poke_file(now, view, out);
    }

    /// Lets sessions go on whose turn it is and that waited for what this node's file holds by now.
    pub fn poke_file(&mut self, now: Now, view: &dyn View, out: &mut Vec<SessionAction>) {
        let tip = view.tip();
        while let Some((seq, conn)) = self.in_file.first().copied() {
            if seq > tip {
                break;
            }
            self.in_file.pop_first();
            self.tell_in_turn(conn, now, view, out);
        }
    }

    fn tell_in_turn(
        &mut self,
        conn: ConnId,
        now: Now,
        view: &dyn View,
        out: &mut Vec<SessionAction>,
    ) {
        let session = self.sessions.get_mut(&conn).expect("who leaves does not wait");
        session.waiting = None;
        let done = self.answer_reading(conn, Reading::Commit, now, view, out);
        self.go_on(conn, done, now, view, out);
    }

    /// Its turn has not come, or not with what its client is to be told of: it goes on at the next poke.
    pub(super) fn do_without_turn(&mut self, conn: ConnId, now: Now, out: &mut Vec<SessionAction>) {
        let session = self.sessions.get_mut(&conn).expect("a timer has a session");
        let then = Waiting::Visible(Seq(0), Reading::Commit);
        match session.waiting.replace(then) {
            Some(Waiting::Turn { id }) => _ = self.requests.remove(&id),
            Some(Waiting::InFile(seq)) => _ = self.in_file.remove(&(seq, conn)),
            other => unreachable!("session {conn} waited for its turn, now for {other:?}"),
        }
        session.waiting_since = now;
        self.visible.insert((Seq(0), conn));
        self.end_turn(conn, out);
        self.retime(conn);
    }

    /// Others need not wait for the session's turn any more.
    pub(super) fn end_turn(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        let session = self.sessions.get_mut(&conn).expect("a session has its turn");
        if let Some(asked) = session.turn.take() {
            let id = self.new_id();
            out.push(SessionAction::EndTurn { id, session: conn.0, asked });
        }
    }
}
