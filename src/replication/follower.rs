//! The master's picture of one slave, and what to send it next.
//!
//! A slave is *probed* until it has shown that it takes appends from a known place, then *streamed* to: appends go out
//! one after the other without waiting, up to a window. Whatever breaks the stream (a mismatch, a lost connection,
//! silence) leads back to probing from the newest place known to be common. Nothing is lost by sending twice: the slave
//! recognises what it has by its chains.
//!
//! A long transaction goes in pieces (`transfer`). Appends are numbered, and every reply names the newest one that the
//! slave had processed. Messages on a line keep their order, so a reply to number n tells what became of everything up to
//! n and of nothing after it: what was sent after n is still on its way and is not sent again.

use std::collections::VecDeque;

use super::transfer::{Moved, Pacing};
use super::window::Window;
use crate::types::{Now, Seq, Tip};

/// Of transactions the first probe brings along, and no more than goes whole on this line: every new connection is another
/// first probe. It is repeated without them while its answer is awaited: it may wait behind something long that is still
/// being sent.
const PROBE_BYTES: u64 = 64 << 10;
/// Of short transactions in one append.
const BATCH_BYTES: u64 = 1 << 20;
/// A probe is repeated after this long without an answer, and then after twice as long each time.
const PROBE_RETRY_MS: u64 = 100;
const PROBE_RETRY_DOUBLINGS_MAX: u32 = 4;
/// A new connection repeats a probe that is older than this.
const PROBE_PAUSE_MS: u64 = 5;
/// A stream without an acknowledgement for this long, and for the time that what is on its way may take, is probed again.
const STALL_MS: u64 = 400;
const STALL_MS_MAX: u64 = 5000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Probing {
        /// When the last probe went out, and how many were sent before it.
        asked: Option<(Now, u32)>,
        /// Number of the first probe: replies to what was sent before tell nothing of where to begin.
        first: u64,
    },
    Streaming,
}

/// The next append to a slave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// It begins after this transaction.
    pub prev: Tip,
    pub number: u64,
    pub brings: Brings,
    pub want_reply: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Brings {
    /// Just the news of a commit, or a question: there is nothing more.
    Nothing,
    /// As many whole transactions as fit into so many bytes; `one_at_least`: however long it is.
    Whole { bytes_max: u64, one_at_least: bool },
    /// Bytes of the transaction after `prev`, from this offset in it on; 0 bytes: it is named.
    Piece { offset: u64, bytes: u64 },
}

/// What a slave says that took an append. Everything named is in the master's file too.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// It has everything durably up to here.
    pub durable: Tip,
    /// And in its file up to here.
    pub written: Tip,
    /// The newest append that it had processed.
    pub number: u64,
    /// Of the transaction after `written`: so many bytes.
    pub incoming: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u64,
    /// The transaction it ends with, or is a piece of.
    seq: Seq,
    bytes: u64,
    /// A piece that is not the last: it is off the line when a later number is answered.
    is_piece: bool,
    sent: Now,
}

/// A transaction that is being sent in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Partial {
    /// Bytes of it that are there or on their way.
    upto: u64,
    /// Pieces with lower numbers were sent before it was begun again.
    since: u64,
}

#[derive(Debug)]
pub struct Follower {
    state: State,
    /// Everything up to here is known to be in the slave's file or on its way.
    sent: Tip,
    /// Of the transaction after `sent`.
    partial: Option<Partial>,
    /// The last piece of this transaction went out under this number: then it must be in the slave's file.
    finished: Option<(u64, Seq)>,
    /// Everything up to here is durable there.
    acked: Tip,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    window: Window,
    /// Of the newest append.
    number: u64,
    commit_sent: Seq,
    progress: Now,
    moved: Moved,
}

impl Follower {
    /// A slave that is believed, but not known, to have everything up to `guess`.
    pub fn new(guess: Tip, pacing: Pacing, now: Now) -> Follower {
        Follower {
            state: State::Probing { asked: None, first: 1 },
            sent: guess,
            partial: None,
            finished: None,
            acked: Tip::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            window: Window::new(pacing, now),
            number: 0,
            commit_sent: Seq(0),
            progress: now,
            moved: Moved::default(),
        }
    }

    pub fn acked(&self) -> Tip {
        self.acked
    }

    /// Takes what is sent to it.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Whoever is sent pieces tells by what it has written what became of them.
    pub fn is_sent_pieces(&self) -> bool {
        self.partial.is_some() || self.finished.is_some()
    }

    /// Bytes that have come to it and to its disk.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.bytes()
    }

    /// What to send now, if anything, when the master's file ends at `tip`; `end_of` says where a transaction of it ends.
    pub fn plan(
        &mut self,
        tip: Tip,
        committed: Seq,
        end_of: impl FnOnce(Seq) -> Option<u64>,
        now: Now,
    ) -> Option<Plan> {
        if self.state == State::Streaming
            && !self.in_flight.is_empty()
            && now.since_ms(self.progress) >= self.patience_ms()
        {
            self.probe_again();
        }
        let (prev, number) = (self.sent, self.number + 1);
        match self.state {
            State::Probing { asked: Some((at, tries)), .. }
                if now.since_ms(at) < PROBE_RETRY_MS << tries =>
            {
                None
            }
            State::Probing { asked, .. } => {
                let next = (prev.seq < tip.seq).then(|| end_of(prev.seq.next())).flatten();
                let bytes_max = PROBE_BYTES.min(self.window.whole_max());
                let brings = match next.map(|end| end.saturating_sub(prev.offset)) {
                    None => Brings::Nothing,
                    Some(len) if asked.is_none() && len <= bytes_max => {
                        Brings::Whole { bytes_max, one_at_least: false }
                    }
                    // What comes next is only named: a slave with another history must see that.
                    Some(_) => Brings::Piece { offset: 0, bytes: 0 },
                };
                Some(Plan { prev, number, brings, want_reply: true })
            }
            State::Streaming => {
                let room = self.window.bytes().saturating_sub(self.in_flight_bytes);
                let behind = self.sent.seq < tip.seq && room > 0;
                let brings = match behind {
                    true => self.next_part(room, end_of(self.sent.seq.next())?),
                    false => Brings::Nothing,
                };
                let news = committed > self.commit_sent;
                let want_reply = false;
                (behind || news).then_some(Plan { prev, number, brings, want_reply })
            }
        }
    }

    fn next_part(&self, room: u64, end: u64) -> Brings {
        let len = end.saturating_sub(self.sent.offset);
        match self.partial {
            None if len <= self.window.whole_max() => {
                Brings::Whole { bytes_max: room.min(BATCH_BYTES), one_at_least: true }
            }
            partial => {
                let offset = partial.map_or(0, |partial| partial.upto).min(len);
                Brings::Piece { offset, bytes: self.window.piece().min(len - offset) }
            }
        }
    }

    /// An append without a piece went out that ends at `upto`.
    pub fn sent(&mut self, upto: Tip, bytes: u64, committed: Seq, now: Now) {
        self.number += 1;
        self.commit_sent = self.commit_sent.max(committed);
        match &mut self.state {
            State::Probing { asked, .. } => {
                let tries = asked.map_or(0, |(_, tries)| tries + 1);
                *asked = Some((now, tries.min(PROBE_RETRY_DOUBLINGS_MAX)));
            }
            State::Streaming if bytes > 0 => {
                self.is_on_its_way(upto.seq, bytes, false, now);
                self.sent = upto;
            }
            State::Streaming => {}
        }
    }

    /// `bytes` from `offset` on went out of the transaction that ends at `end`.
    pub fn sent_piece(&mut self, end: Tip, offset: u64, bytes: u64, committed: Seq, now: Now) {
        if !self.is_streaming() {
            return self.sent(self.sent, 0, committed, now);
        }
        self.number += 1;
        self.commit_sent = self.commit_sent.max(committed);
        let upto = offset + bytes;
        let is_last = self.sent.offset + upto == end.offset;
        self.is_on_its_way(end.seq, bytes.max(1), !is_last, now);
        if is_last {
            self.finished = Some((self.number, end.seq));
            (self.sent, self.partial) = (end, None);
        } else {
            let since = self.partial.map_or(self.number, |partial| partial.since);
            self.partial = Some(Partial { upto, since });
        }
    }

    fn is_on_its_way(&mut self, seq: Seq, bytes: u64, is_piece: bool, now: Now) {
        if self.in_flight.is_empty() {
            self.progress = now;
            self.window.begins(now);
        }
        let number = self.number;
        self.in_flight.push_back(InFlight { number, seq, bytes, is_piece, sent: now });
        self.in_flight_bytes += bytes;
    }

    /// The slave took an append.
    pub fn matched(&mut self, said: Said, now: Now) {
        self.moved.is_at(said.durable.offset + said.written.offset + said.incoming);
        // One that was never given out tells nothing.
        let number = if said.number > self.number { 0 } else { said.number };
        if said.durable.seq > self.acked.seq {
            self.acked = said.durable;
            self.progress = now;
        }
        match self.state {
            // What was on its way before the probe still is, and the answer to the probe comes behind it.
            State::Probing { first, .. } if number < first => return,
            State::Probing { .. } => self.begin_streaming(&said, now),
            State::Streaming => {}
        }
        if said.durable.seq > self.sent.seq {
            (self.sent, self.partial) = (said.durable, None);
        }
        self.take_off(said.durable.seq, number, now);
        self.judge_pieces(&said, number);
    }

    fn begin_streaming(&mut self, said: &Said, now: Now) {
        self.state = State::Streaming;
        self.sent = said.written;
        self.commit_sent = Seq(0);
        if said.written.seq > said.durable.seq {
            // Not to be sent again, and still to be acknowledged.
            let bytes = said.written.offset - said.durable.offset;
            self.is_on_its_way(said.written.seq, bytes, false, now);
        }
        let since = self.number + 1;
        self.partial = (said.incoming > 0).then_some(Partial { upto: said.incoming, since });
    }

    /// What is durable there, or was answered, is not on its way any more.
    fn take_off(&mut self, durable: Seq, number: u64, now: Now) {
        while let Some(first) = self.in_flight.front()
            && (first.seq <= durable || (first.is_piece && first.number <= number))
        {
            let InFlight { bytes, sent, .. } = *first;
            self.window.acknowledged(bytes, self.in_flight_bytes, sent, now);
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
            self.progress = now;
        }
    }

    /// Is there of the transaction in pieces what should be?
    fn judge_pieces(&mut self, said: &Said, number: u64) {
        if let Some((last, seq)) = self.finished
            && number >= last
        {
            self.finished = None;
            if said.written.seq < seq {
                // It did not verify there, or a piece was lost.
                self.probe_again();
                return;
            }
        }
        let Some(partial) = self.partial.filter(|_| said.written.seq == self.sent.seq) else {
            return;
        };
        let on_its_way = self.in_flight.iter().filter(|it| it.is_piece && it.number > number);
        let on_its_way: u64 = on_its_way.map(|it| it.bytes).sum();
        let should_have = partial.upto.saturating_sub(on_its_way);
        if said.incoming > partial.upto {
            self.partial = Some(Partial { upto: said.incoming, ..partial });
        } else if said.incoming < should_have && number >= partial.since {
            // What is behind the gap is of no use there.
            self.in_flight.retain(|it| !it.is_piece);
            self.in_flight_bytes = self.in_flight.iter().map(|it| it.bytes).sum();
            let since = self.number + 1;
            self.partial = Some(Partial { upto: said.incoming, since });
        }
    }

    /// The slave could not take append `number` (0: not said which); `common` is in both files. False if this was known
    /// already.
    pub fn mismatched(&mut self, common: Tip, number: u64) -> bool {
        match self.state {
            State::Probing { asked: None, .. } if self.sent == common => return false,
            // Late refusals of what was on its way when the stream broke.
            State::Probing { first, .. } if number > 0 && number < first => return false,
            _ => {}
        }
        let asked = match self.state {
            // One probe is enough for all of them.
            State::Probing { asked, .. } if self.sent == common => asked,
            _ => None,
        };
        self.moved.begins_again();
        self.probe_from(common, asked);
        true
    }

    /// The slave says by itself that it can take appends from here: no waiting for the last probe's time.
    pub fn restart_from(&mut self, common: Tip) {
        self.probe_from(common, None);
    }

    /// The connection is new. A probe that has just gone out is not repeated for it: a network that loses much would
    /// be answered with ever more messages.
    pub fn on_connection(&mut self, now: Now) {
        match self.state {
            State::Probing { asked: Some((at, _)), .. } if now.since_ms(at) < PROBE_PAUSE_MS => {}
            _ => self.probe_again(),
        }
    }

    /// Nothing is known of what was on its way.
    fn probe_again(&mut self) {
        let from = if self.acked.seq > Seq(0) { self.acked } else { self.sent };
        self.probe_from(from, None);
    }

    fn probe_from(&mut self, from: Tip, asked: Option<(Now, u32)>) {
        let first = match (self.state, asked) {
            (State::Probing { first, .. }, Some(_)) => first,
            _ => self.number + 1,
        };
        self.state = State::Probing { asked, first };
        self.sent = from;
        (self.partial, self.finished) = (None, None);
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// How long an acknowledgement is waited for: what is on its way takes its time.
    fn patience_ms(&self) -> u64 {
        let on_its_way_ms = self.in_flight_bytes * 1000 / self.window.pacing().rate_min.max(1);
        (STALL_MS + 2 * self.window.last_ms() + on_its_way_ms).min(STALL_MS_MAX)
    }

    /// When `plan` should be asked again at the latest, in microseconds of the monotonic clock.
    pub fn deadline_us(&self) -> Option<u64> {
        match self.state {
            State::Probing { asked, .. } => {
                Some(asked.map_or(0, |(at, tries)| at.mono_us + (PROBE_RETRY_MS << tries) * 1000))
            }
            State::Streaming if self.in_flight.is_empty() => None,
            State::Streaming => Some(self.progress.mono_us + self.patience_ms() * 1000),
        }
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
