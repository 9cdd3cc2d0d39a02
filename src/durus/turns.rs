//! Whose turn it is to commit, on the master.
//!
//! Between what a client was told and its data, others may commit here; its commit is then refused if they changed what it
//! may have read, which is all that is in its cache. Where clients contend for the same objects that would refuse many a
//! commit that stock Durus accepts, where nothing happens in between. So a session whose commit was refused takes turns for
//! its next ones: before its client is told what has changed, it asks for its turn, and until its data is here, commits of
//! others that store what this client may have read wait.
//!
//! Nobody depends on a turn: it lapses after a moment, and the commit is judged as any other.

use std::collections::VecDeque;

use roaring::RoaringTreemap;

use super::oids::SessionKey;
use crate::types::{Now, Oid};

/// A turn lapses after this long: by then a client that is quick and near has sent its data.
const TURN_MS: u64 = 30;
/// Sessions that wait for their turns. Who comes when there are more gets none, and goes on without.
const WAITING_MAX: usize = 16_384;

/// `A`: whoever is to be told that its turn has come.
pub struct Turn<A> {
    pub asker: A,
    pub session: SessionKey,
    /// All that the client may have read; None: not known.
    pub touched: Option<RoaringTreemap>,
}

/// At most one session's at a time, in the order in which they asked.
pub struct Turns<A> {
    current: Option<(Turn<A>, Now)>,
    waiting: VecDeque<Turn<A>>,
}

impl<A> Default for Turns<A> {
    fn default() -> Turns<A> {
        Turns { current: None, waiting: VecDeque::new() }
    }
}

impl<A: Copy> Turns<A> {
    /// Who has asked before asks for another one.
    pub fn ask(&mut self, turn: Turn<A>) {
        self.end(turn.session);
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(turn);
        }
    }

    /// The session needs none, or no more.
    pub fn end(&mut self, session: SessionKey) {
        self.retain(|turn| turn.session != session);
    }

    pub fn retain(&mut self, keep: impl Fn(&Turn<A>) -> bool) {
        self.current.take_if(|(turn, _)| !keep(turn));
        self.waiting.retain(keep);
    }

    /// Whether it is anybody's turn now.
    pub fn is_taken(&self, now: Now) -> bool {
        self.current.as_ref().is_some_and(|(_, since)| now.since_ms(*since) < TURN_MS)
    }

    /// The next session's turn begins, unless it is somebody's already.
    pub fn begin(&mut self, now: Now) -> Option<A> {
        if self.is_taken(now) {
            return None;
        }
        let next = self.waiting.pop_front();
        self.current = next.map(|turn| (turn, now));
        self.current.as_ref().map(|(turn, _)| turn.asker)
    }

    /// Whether a commit that stores these has to wait for another session's turn to end.
    pub fn holds_back(
        &self,
        session: SessionKey,
        mut stores: impl Iterator<Item = Oid>,
        now: Now,
    ) -> bool {
        let Some((turn, _)) = self.current.as_ref().filter(|_| self.is_taken(now)) else {
            return false;
        };
        let touched = turn.touched.as_ref();
        turn.session != session && touched.is_none_or(|it| stores.any(|oid| it.contains(oid.0)))
    }

    /// When the present turn lapses, in microseconds of the monotonic clock.
    pub fn lapses_us(&self) -> Option<u64> {
        self.current.as_ref().map(|(_, since)| since.mono_us + TURN_MS * 1000)
    }

    pub fn anybody_waits(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn session(session: u64) -> SessionKey {
        SessionKey { node: NodeId(1), session }
    }

    fn turn(of: u64, touched: Option<&[u64]>) -> Turn<u64> {
        let touched = touched.map(|oids| oids.iter().copied().collect());
        Turn { asker: of, session: session(of), touched }
    }

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, ..Now::default() }
    }

    fn held(turns: &Turns<u64>, of: u64, stores: &[u64], ms: u64) -> bool {
        turns.holds_back(session(of), stores.iter().copied().map(Oid), at(ms))
    }

    #[test]
    fn one_after_the_other_in_the_order_asked() {
        let mut turns = Turns::default();
        assert_eq!(turns.begin(at(0)), None);
        (1..=3).for_each(|of| turns.ask(turn(of, None)));
        assert_eq!((turns.begin(at(1)), turns.begin(at(2))), (Some(1), None));
        assert!(turns.is_taken(at(2)) && turns.anybody_waits());
        // Who waits may give up, too.
        turns.end(session(2));
        turns.end(session(1));
        assert!(!turns.is_taken(at(3)));
        assert_eq!(turns.begin(at(3)), Some(3));
        turns.end(session(3));
        assert_eq!((turns.begin(at(4)), turns.anybody_waits()), (None, false));
        // Asked twice is one turn, the later one.
        turns.ask(turn(4, None));
        turns.ask(Turn { asker: 40, ..turn(4, None) });
        assert_eq!((turns.begin(at(5)), turns.anybody_waits()), (Some(40), false));
        // What is asked by a process that is gone is nobody's turn.
        turns.ask(turn(5, None));
        turns.retain(|turn| turn.asker == 5);
        assert_eq!(turns.begin(at(5)), Some(5));
    }

    #[test]
    fn who_stores_what_it_may_have_read_waits_and_nobody_else() {
        let mut turns = Turns::default();
        turns.ask(turn(1, Some(&[7, 8])));
        assert!(!held(&turns, 2, &[7], 0));
        turns.begin(at(0));
        assert!(held(&turns, 2, &[6, 7], 1) && !held(&turns, 2, &[6, 9], 1));
        assert!(!held(&turns, 1, &[7], 1));
        turns.ask(turn(3, None));
        turns.end(session(1));
        turns.begin(at(2));
        assert!(held(&turns, 2, &[9], 3));
    }

    #[test]
    fn a_turn_lapses() {
        let mut turns = Turns::default();
        turns.ask(turn(1, None));
        turns.ask(turn(2, None));
        turns.begin(at(5));
        assert_eq!(turns.lapses_us(), Some((5 + TURN_MS) * 1000));
        let last = 5 + TURN_MS - 1;
        assert!(held(&turns, 3, &[1], last) && turns.begin(at(last)).is_none());
        assert!(!held(&turns, 3, &[1], last + 1) && !turns.is_taken(at(last + 1)));
        assert_eq!(turns.begin(at(last + 1)), Some(2));
        // Too late to end anybody else's.
        turns.end(session(1));
        assert!(turns.is_taken(at(last + 2)));
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let mut turns = Turns::default();
        (0..2 * WAITING_MAX as u64).for_each(|of| turns.waiting.push_back(turn(of, None)));
        let before = turns.waiting.len();
        turns.ask(turn(u64::MAX, None));
        assert_eq!(turns.waiting.len(), before);
    }
}
