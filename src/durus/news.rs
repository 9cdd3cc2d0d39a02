//! What sessions hear of changes, and what their clients are told of them.
//!
//! Every node keeps one log of what became visible (`unseen`), and each session its place in it; a client is told what
//! came since it was told the last time, when it syncs or commits. What a pack removed is news of the same kind, for all
//! at once; when every client of this node was told of it, the master hears so, for its oids may be used again.

use std::iter::once;
use std::ops::Bound;

use roaring::RoaringTreemap;

use super::session::{Ahead, SessionAction, Sessions, Waiting};
use super::unseen::IDLE_BYTES_MAX;
use super::wire;
use crate::mutants::{self, Mutant};
use crate::types::{CommitId, ConnId, Generation, Oid, Seq};

impl Sessions {
    /// One transaction became visible on this node. Called for every one, in order, before [`Sessions::poke`] and
    /// before anything else is asked of the sessions.
    pub fn applied(&mut self, seq: Seq, oids: &[Oid], commit_id: CommitId) {
        let owner = self.owner_of(commit_id);
        self.log.push(seq, owner, oids, self.live > 0);
        if let Some(conn) = owner {
            let session = self.sessions.get_mut(&conn).expect("requests are of sessions");
            // The chain is a master's word: the id may be one of ours that is no commit's.
            if let Some(Waiting::Commit(commit)) = &mut session.waiting {
                if let Some(said) = commit.seq.replace(seq) {
                    self.visible.remove(&(said, conn));
                }
                session.unseen.own_commit(seq);
                // Nobody waits for more than the outcome where the client is gone.
                match commit.said || session.closed || mutants::broken(Mutant::ShownIsTold) {
                    true => self.visible.insert((seq, conn)),
                    false => self.settling.insert((seq, conn)),
                };
            }
        }
        self.bring_forward(oids.len());
    }

    /// After a change of so many objects: some sessions read of changes what they have not read yet, if it is time.
    fn bring_forward(&mut self, changed: usize) {
        let (turns, after) = self.log.turns(changed, self.live);
        if turns == 0 {
            return;
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.sessions.range_mut((from, Bound::Unbounded));
        let mut live = rest.filter(|(_, session)| !session.closed);
        for _ in 0..turns {
            match live.next() {
                Some((conn, session)) => {
                    self.log.bring_forward(*conn, &mut session.unseen);
                    // What it is about to store it may not have touched before.
                    let takes_part = session.waiting.is_some() || session.commit_base.is_some();
                    let (unseen, touched) = (&mut session.unseen, &session.touched);
                    self.log.bound(unseen, takes_part, touched, IDLE_BYTES_MAX);
                }
                None => return self.log.end_round(),
            }
        }
    }

    /// The session whose commit this is, if its answer is still wanted.
    fn owner_of(&self, commit_id: CommitId) -> Option<ConnId> {
        let count = u64::from_be_bytes(commit_id.0[8..].try_into().expect("8 of 16 bytes"));
        if self.commit_id(count) != commit_id {
            return None;
        }
        self.requests.get(&count).copied()
    }

    /// This node's file was cut back to `seq`.
    pub fn truncated(&mut self, seq: Seq) {
        for session in self.sessions.values_mut() {
            session.unseen.truncated(seq);
            session.commit_ahead = session.commit_ahead.filter(|(_, ahead)| *ahead <= seq);
        }
    }

    /// This node's state went to `to` without its transactions being seen one by one (it took another file).
    pub fn jumped(&mut self, to: Seq) {
        self.log.jump(to);
        for session in self.sessions.values_mut() {
            session.unseen.jumped(to);
        }
    }

    /// The node changed to `generation`, whose pack removed these.
    pub fn removed(
        &mut self,
        generation: Generation,
        oids: &RoaringTreemap,
        out: &mut Vec<SessionAction>,
    ) {
        self.log.remove(generation, oids);
        self.announce(out);
    }

    /// Every session here was told what the packs up to this generation removed.
    pub fn told_generation(&self) -> Generation {
        let oldest = self.generations.first_key_value();
        oldest.map_or(self.log.generation(), |(generation, _)| *generation)
    }

    /// Tells the client what it was not told of: count and oids.
    pub(super) fn tell(
        &mut self,
        conn: ConnId,
        ahead: Option<Ahead>,
        out: &mut Vec<SessionAction>,
    ) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let before = session.unseen.generation();
        let mut told = session.unseen.tell(conn, &self.log, &session.touched);
        if let Some(ahead) = ahead {
            told.add(&ahead.oids);
            session.unseen.told_ahead(ahead.seq);
            session.commit_ahead = Some((ahead.epoch, ahead.seq));
        }
        // It forgets them, or gives the transaction up if it has used one in it: only what it loads again counts.
        let removed = told.removal.as_ref().map(|removal| &removal.oids);
        let sets = once(&told.oids).chain(removed);
        for oids in sets.filter(|oids| !oids.is_empty()) {
            session.touched -= oids;
            if session.touched_bytes > 0 {
                session.touched_bytes = session.touched.serialized_size() as u64;
            }
        }
        let after = session.unseen.generation();
        let more = removed.map_or(0, RoaringTreemap::len);
        let first = wire::invalid_oids(&told.oids, more);
        let answers = once(first).chain(told.removal.map(|removal| removal.list()));
        answers.for_each(|bytes| session.send(conn, bytes, out));
        if before != after {
            self.leave_generation(before);
            *self.generations.entry(after).or_default() += 1;
            self.announce(out);
        }
    }

    pub(super) fn leave_generation(&mut self, generation: Generation) {
        let count = self.generations.get_mut(&generation).expect("every open session is counted");
        *count -= 1;
        if *count == 0 {
            self.generations.remove(&generation);
        }
    }

    pub(super) fn announce(&mut self, out: &mut Vec<SessionAction>) {
        let told = self.told_generation();
        if told > self.announced {
            self.announced = told;
            self.log.told(told);
            let id = self.new_id();
            out.push(SessionAction::Told { id, generation: told });
        }
    }
}
