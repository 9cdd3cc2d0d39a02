//! The master's picture of one slave, and what to send it next.
//!
//! A slave is *probed* until it has shown that it takes appends from a known place, then *streamed* to: appends go out
//! one after the other without waiting, up to a window. Whatever breaks the stream (a mismatch, a lost connection,
//! silence) leads back to probing from the newest place known to be common. Nothing is lost by sending twice: the slave
//! recognises what it has by its chains.

use std::collections::VecDeque;

use crate::types::{Now, Seq, Tip};

/// Bytes that may be on their way to one slave, unacknowledged.
const WINDOW_BYTES: u64 = 16 << 20;
/// Of transactions a probe brings along. It is repeated while its answer is awaited, and may wait behind a long one that is
/// still being sent: so it never brings a long one itself.
const PROBE_BYTES: u64 = 64 << 10;
/// A probe is repeated after this long without an answer.
const PROBE_RETRY_MS: u64 = 100;
/// A new connection repeats a probe that is older than this.
const PROBE_PAUSE_MS: u64 = 5;
/// A stream without an acknowledgement for this long is probed again.
const STALL_MS: u64 = 400;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// `asked`: when the last probe went out.
    Probing {
        asked: Option<Now>,
    },
    Streaming,
}

/// The next append to a slave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// It begins after this transaction.
    pub prev: Tip,
    /// How many bytes of transactions it may carry; 0: none, just the news of a commit.
    pub bytes_max: u64,
    /// It carries one at least, however long that is.
    pub one_at_least: bool,
    pub want_reply: bool,
}

#[derive(Debug)]
pub struct Follower {
    state: State,
    /// Everything up to here is known to be in the slave's file or on its way.
    sent: Tip,
    /// Everything up to here is durable there.
    acked: Tip,
    in_flight: VecDeque<(Seq, u64)>,
    in_flight_bytes: u64,
    commit_sent: Seq,
    progress: Now,
}

impl Follower {
    /// A slave that is believed, but not known, to have everything up to `guess`.
    pub fn new(guess: Tip, now: Now) -> Follower {
        Follower {
            state: State::Probing { asked: None },
            sent: guess,
            acked: Tip::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            commit_sent: Seq(0),
            progress: now,
        }
    }

    pub fn acked(&self) -> Tip {
        self.acked
    }

    /// Takes what is sent to it.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// What to send now, if anything, when the master's file ends at `tip`.
    pub fn plan(&mut self, tip: Tip, committed: Seq, now: Now) -> Option<Plan> {
        if self.state == State::Streaming
            && !self.in_flight.is_empty()
            && now.since_ms(self.progress) >= STALL_MS
        {
            self.probe_again();
        }
        match self.state {
            State::Probing { asked: Some(asked) } if now.since_ms(asked) < PROBE_RETRY_MS => None,
            State::Probing { .. } => {
                let (bytes_max, one_at_least) = (PROBE_BYTES, false);
                Some(Plan { prev: self.sent, bytes_max, one_at_least, want_reply: true })
            }
            State::Streaming => {
                let room = WINDOW_BYTES.saturating_sub(self.in_flight_bytes);
                let behind = self.sent.seq < tip.seq && room > 0;
                let news = committed > self.commit_sent;
                (behind || news).then_some(Plan {
                    prev: self.sent,
                    bytes_max: if behind { room.min(1 << 20) } else { 0 },
                    one_at_least: behind,
                    want_reply: false,
                })
            }
        }
    }

    /// An append went out that ends at `upto`.
    pub fn sent(&mut self, upto: Tip, bytes: u64, committed: Seq, now: Now) {
        self.commit_sent = self.commit_sent.max(committed);
        match &mut self.state {
            State::Probing { asked } => *asked = Some(now),
            State::Streaming if bytes > 0 => {
                if self.in_flight.is_empty() {
                    self.progress = now;
                }
                self.in_flight.push_back((upto.seq, bytes));
                self.in_flight_bytes += bytes;
                self.sent = upto;
            }
            State::Streaming => {}
        }
    }

    /// The slave took an append; it has everything durably up to `durable`, and in its file up to `written`; both are in
    /// the master's file too.
    pub fn matched(&mut self, durable: Tip, written: Tip, now: Now) {
        if matches!(self.state, State::Probing { .. }) {
            self.state = State::Streaming;
            self.sent = durable;
            self.commit_sent = Seq(0);
            if written.seq > durable.seq {
                // Not to be sent again, and still to be acknowledged.
                self.sent = written;
                self.progress = now;
                self.in_flight_bytes = written.offset - durable.offset;
                self.in_flight.push_back((written.seq, self.in_flight_bytes));
            }
        }
        if durable.seq > self.acked.seq {
            self.acked = durable;
            self.progress = now;
        }
        if durable.seq > self.sent.seq {
            self.sent = durable;
        }
        while self.in_flight.front().is_some_and(|(seq, _)| *seq <= durable.seq) {
            let (_, bytes) = self.in_flight.pop_front().expect("just seen");
            self.in_flight_bytes -= bytes;
        }
    }

    /// The slave could not take an append; `common` is in both files. False if this was known already.
    pub fn mismatched(&mut self, common: Tip) -> bool {
        if self.state == (State::Probing { asked: None }) && self.sent == common {
            return false;
        }
        let asked = match self.state {
            // Late refusals of what was on its way when the stream broke: one probe is enough for all of them.
            State::Probing { asked } if self.sent == common => asked,
            _ => None,
        };
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
            State::Probing { asked: Some(asked) } if now.since_ms(asked) < PROBE_PAUSE_MS => {}
            _ => self.probe_again(),
        }
    }

    /// Nothing is known of what was on its way.
    fn probe_again(&mut self) {
        let from = if self.acked.seq > Seq(0) { self.acked } else { self.sent };
        self.probe_from(from, None);
    }

    fn probe_from(&mut self, from: Tip, asked: Option<Now>) {
        self.state = State::Probing { asked };
        self.sent = from;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// When `plan` should be asked again at the latest, in microseconds of the monotonic clock.
    pub fn deadline_us(&self) -> Option<u64> {
        match self.state {
            State::Probing { asked } => {
                Some(asked.map_or(0, |asked| asked.mono_us + PROBE_RETRY_MS * 1000))
            }
            State::Streaming if self.in_flight.is_empty() => None,
            State::Streaming => Some(self.progress.mono_us + STALL_MS * 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Chain, Epoch};

    fn tip(seq: u64) -> Tip {
        Tip { epoch: Epoch(1), seq: Seq(seq), offset: seq * 100, chain: Chain([seq as u8; 20]) }
    }

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, wall_us: 0 }
    }

    #[test]
    fn a_slave_is_probed_before_it_is_streamed_to() {
        let mut slave = Follower::new(tip(5), at(0));
        let probe = slave.plan(tip(9), Seq(4), at(0)).unwrap();
        assert_eq!((probe.prev, probe.want_reply), (tip(5), true));
        slave.sent(tip(9), 400, Seq(4), at(0));
        assert_eq!(slave.plan(tip(9), Seq(4), at(50)), None, "one probe at a time");
        assert!(slave.plan(tip(9), Seq(4), at(100)).is_some(), "repeated after silence");
        slave.matched(tip(6), tip(6), at(101));
        let next = slave.plan(tip(9), Seq(4), at(101)).unwrap();
        assert_eq!((next.prev, next.want_reply), (tip(6), false));
    }

    #[test]
    fn a_stream_goes_on_without_waiting_and_stops_at_the_window() {
        let mut slave = Follower::new(tip(5), at(0));
        slave.matched(tip(5), tip(5), at(0));
        slave.sent(tip(6), WINDOW_BYTES - 10, Seq(5), at(1));
        let next = slave.plan(tip(8), Seq(5), at(1)).unwrap();
        assert_eq!((next.prev, next.bytes_max), (tip(6), 10));
        slave.sent(tip(7), 10, Seq(5), at(1));
        assert_eq!(slave.plan(tip(8), Seq(5), at(1)), None);
        let news = slave.plan(tip(8), Seq(6), at(1)).unwrap();
        assert_eq!(news.bytes_max, 0, "news of a commit passes a full window");
        slave.matched(tip(6), tip(6), at(2));
        assert_eq!(slave.plan(tip(8), Seq(5), at(2)).unwrap().prev, tip(7));
    }

    #[test]
    fn what_is_written_there_is_not_sent_again_and_is_still_waited_for() {
        let mut slave = Follower::new(tip(5), at(0));
        slave.matched(tip(5), tip(8), at(0));
        assert_eq!(slave.plan(tip(8), Seq(0), at(1)), None);
        assert_eq!(slave.plan(tip(9), Seq(0), at(1)).unwrap().prev, tip(8));
        slave.sent(tip(9), 100, Seq(0), at(1));
        assert_eq!(slave.deadline_us(), Some(STALL_MS * 1000));
        slave.matched(tip(9), tip(9), at(2));
        assert_eq!((slave.deadline_us(), slave.in_flight_bytes), (None, 0));
    }

    /// A long transaction takes longer than any patience here: it is sent once, whatever is asked meanwhile.
    #[test]
    fn only_a_stream_carries_what_is_long() {
        let mut slave = Follower::new(tip(5), at(0));
        assert!(!slave.plan(tip(6), Seq(4), at(0)).unwrap().one_at_least);
        slave.matched(tip(5), tip(5), at(0));
        assert!(slave.plan(tip(6), Seq(4), at(0)).unwrap().one_at_least);
        slave.sent(tip(6), 1 << 30, Seq(4), at(0));
        let asked = slave.plan(tip(6), Seq(4), at(STALL_MS)).unwrap();
        assert_eq!((asked.one_at_least, asked.want_reply), (false, true));
    }

    #[test]
    fn silence_and_mismatch_lead_back_to_the_newest_common_place() {
        let mut slave = Follower::new(tip(5), at(0));
        slave.matched(tip(5), tip(5), at(0));
        slave.sent(tip(9), 100, Seq(5), at(0));
        assert_eq!(slave.plan(tip(9), Seq(5), at(STALL_MS)).unwrap().prev, tip(5));
        slave.sent(tip(9), 100, Seq(5), at(STALL_MS));
        assert!(slave.mismatched(tip(3)));
        assert_eq!(slave.plan(tip(9), Seq(5), at(STALL_MS)).unwrap().prev, tip(3));
        slave.sent(tip(9), 100, Seq(5), at(STALL_MS));
        slave.mismatched(tip(3));
        assert_eq!(slave.plan(tip(9), Seq(5), at(STALL_MS + 1)), None, "no storm of probes");
    }
}
