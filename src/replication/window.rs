//! How much may be on its way to one slave.
//!
//! As much as keeps the line busy, and no more: what waits in front of a narrow line delays everything behind it, the next
//! epoch's first append above all. So the window grows while acknowledgements come about as fast as they ever did, and
//! shrinks when they take longer: then the difference is time spent waiting in a queue.

use super::transfer::Pacing;
use crate::types::Now;

/// The window grows while what is acknowledged has waited no longer than this.
const QUEUED_SHORT_MS: u64 = 250;
/// It shrinks when it has waited this long.
const QUEUED_LONG_MS: u64 = 750;
/// After so long without traffic nothing is known of the line any more, and the window begins anew.
const IDLE_MS: u64 = 1000;
/// The fastest acknowledgement is remembered for between one and two of these: routes change.
const FASTEST_VALID_MS: u64 = 10_000;

#[derive(Debug)]
pub struct Window {
    pacing: Pacing,
    bytes: u64,
    /// The fastest acknowledgement since `since`, and of the time before that.
    fastest_ms: u64,
    fastest_before_ms: u64,
    since: Now,
    shrunk: Now,
    last_ms: u64,
    /// When something was last acknowledged.
    last: Now,
}

impl Window {
    pub fn new(pacing: Pacing, now: Now) -> Window {
        Window {
            pacing,
            bytes: pacing.window_start,
            fastest_ms: u64::MAX,
            fastest_before_ms: u64::MAX,
            since: now,
            shrunk: now,
            last_ms: 0,
            last: now,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn pacing(&self) -> &Pacing {
        &self.pacing
    }

    /// Bytes in the next piece of a long transaction: several of them fill the window.
    pub fn piece(&self) -> u64 {
        (self.bytes / 4).clamp(self.pacing.piece_min, self.pacing.piece_max)
    }

    /// A longer transaction goes in pieces.
    pub fn whole_max(&self) -> u64 {
        self.bytes.min(self.pacing.piece_max)
    }

    /// How long the last acknowledgement took, in milliseconds; 0: none yet.
    pub fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Something is sent, and nothing is on its way.
    pub fn begins(&mut self, now: Now) {
        if now.since_ms(self.last) >= IDLE_MS {
            self.bytes = self.bytes.min(self.pacing.window_start);
        }
    }

    /// `bytes` of `in_flight` were acknowledged; they were sent at `sent`.
    pub fn acknowledged(&mut self, bytes: u64, in_flight: u64, sent: Now, now: Now) {
        let took_ms = now.since_ms(sent);
        (self.last_ms, self.last) = (took_ms, now);
        if now.since_ms(self.since) >= FASTEST_VALID_MS {
            (self.fastest_before_ms, self.fastest_ms, self.since) = (self.fastest_ms, took_ms, now);
        }
        self.fastest_ms = self.fastest_ms.min(took_ms);
        let queued_ms = took_ms - self.fastest_ms.min(self.fastest_before_ms).min(took_ms);
        if queued_ms <= QUEUED_SHORT_MS {
            // One that is not used up says nothing of a larger one.
            if 2 * in_flight >= self.bytes {
                self.bytes = (self.bytes + bytes).min(self.pacing.window_max);
            }
        } else if queued_ms >= QUEUED_LONG_MS && now.since_ms(self.shrunk) >= took_ms {
            // What is acknowledged next was sent before this: once for all of it.
            self.bytes = (self.bytes / 2).max(self.pacing.window_min);
            self.shrunk = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, wall_us: 0 }
    }

    /// Keeps a line of this rate busy for so long; the window at the end, and how long the last piece took.
    fn streamed(bytes_per_ms: u64, delay_ms: u64, ms: u64) -> (u64, u64) {
        let mut window = Window::new(Pacing::default(), at(0));
        let (mut now, mut free, mut in_flight) = (0, 0, 0);
        let mut queue = std::collections::VecDeque::new();
        while now < ms {
            while in_flight < window.bytes() {
                let piece = window.piece();
                free = free.max(now) + piece.div_ceil(bytes_per_ms);
                queue.push_back((piece, now, free + delay_ms));
                in_flight += piece;
            }
            let (piece, sent, arrives) = queue.pop_front().unwrap();
            now = now.max(arrives);
            window.acknowledged(piece, in_flight, at(sent), at(now));
            in_flight -= piece;
        }
        (window.bytes(), window.last_ms())
    }

    #[test]
    fn a_fast_line_is_filled_and_a_long_one_too() {
        assert_eq!(streamed(1_000_000, 1, 1000).0, Pacing::default().window_max);
        // 10 MB/s, and 200 ms until the answer is there: 2 MB are on their way at least.
        assert!(streamed(10_000, 200, 10_000).0 >= 2_000_000);
    }

    #[test]
    fn what_waits_before_a_narrow_line_waits_a_second_or_so() {
        for bytes_per_ms in [100, 1000, 10_000] {
            let (bytes, took_ms) = streamed(bytes_per_ms, 1, 60_000);
            assert!(took_ms <= 2000, "{bytes_per_ms} kB/s: {bytes} bytes, {took_ms} ms");
            assert!(bytes >= Pacing::default().window_min);
        }
    }

    #[test]
    fn a_line_that_was_not_used_is_tried_anew() {
        let mut window = Window::new(Pacing::default(), at(0));
        for _ in 0..100 {
            window.acknowledged(1 << 20, 16 << 20, at(0), at(1));
        }
        window.begins(at(2));
        assert_eq!(window.bytes(), Pacing::default().window_max);
        window.begins(at(1 + IDLE_MS));
        assert_eq!(window.bytes(), Pacing::default().window_start);
    }

    #[test]
    fn a_window_that_is_not_used_up_does_not_grow() {
        let mut window = Window::new(Pacing::default(), at(0));
        for ms in 0..1000 {
            window.acknowledged(1000, 1000, at(ms), at(ms + 1));
        }
        assert_eq!(window.bytes(), Pacing::default().window_start);
    }
}
