//! What is told of rebases: which rung of the ladder each took, how many bytes went over the wire by rung, and how far
//! the one in progress is.
//!
//! For people and for their alarms; nothing here decides anything.

use std::collections::VecDeque;

use crate::proto::control::{Rebases, Rung, RungNow, RungTally};
use crate::types::{Generation, Now};

/// The rate is that of the last seconds.
const RATE_WINDOW_MS: u64 = 5000;
const RATE_SAMPLE_MS: u64 = 250;
const RUNGS: [Rung; 3] = [Rung::Local, Rung::Tail, Rung::Base];

#[derive(Default)]
pub(super) struct Ladder {
    finished: [u64; RUNGS.len()],
    wire_bytes: [u64; RUNGS.len()],
    reused_bytes: u64,
    refused_bytes: u64,
    given_bytes: u64,
    climb: Option<Climb>,
    last: Option<Climb>,
    last_ms: u64,
}

/// One rebase, in progress or done.
struct Climb {
    rung: Rung,
    generation: Generation,
    since: Now,
    /// File data over the wire.
    bytes: u64,
    doing: &'static str,
    done: u64,
    total: u64,
    /// When how much was done of what is being done, oldest first.
    samples: VecDeque<(Now, u64)>,
}

impl Climb {
    fn sample(&mut self, now: Now) {
        if self.samples.back().is_none_or(|(at, _)| now.since_ms(*at) >= RATE_SAMPLE_MS) {
            self.samples.push_back((now, self.done));
        }
        while self.samples.len() > 2 && now.since_ms(self.samples[1].0) >= RATE_WINDOW_MS {
            self.samples.pop_front();
        }
    }

    fn bytes_per_s(&self, now: Now) -> u64 {
        let Some((since, before)) = self.samples.front() else { return 0 };
        let done = self.done.saturating_sub(*before);
        (done * 1000).checked_div(now.since_ms(*since)).unwrap_or(0)
    }

    fn left_ms(&self, now: Now) -> u64 {
        let left = self.total.saturating_sub(self.done);
        (left * 1000).checked_div(self.bytes_per_s(now)).unwrap_or(0)
    }
}

fn place(rung: Rung) -> usize {
    RUNGS.iter().position(|known| *known == rung).expect("a rung that is one")
}

impl Ladder {
    /// A rebase to this generation is on this rung. The tail's rung stays when the building begins.
    pub(super) fn climb(&mut self, rung: Rung, generation: Generation, now: Now) {
        match &mut self.climb {
            Some(climb) if climb.generation == generation => {
                climb.rung = climb.rung.max(rung);
            }
            _ => {
                self.climb = Some(Climb {
                    rung,
                    generation,
                    since: now,
                    bytes: 0,
                    doing: "",
                    done: 0,
                    total: 0,
                    samples: VecDeque::new(),
                });
            }
        }
    }

    /// How far it is with what it is doing.
    pub(super) fn at(&mut self, doing: &'static str, done: u64, total: u64, now: Now) {
        let Some(climb) = &mut self.climb else { return };
        if climb.doing != doing {
            climb.samples.clear();
        }
        (climb.doing, climb.done, climb.total) = (doing, done, total);
        climb.sample(now);
    }

    /// The same, of what was begun with `at`.
    pub(super) fn at_permille(&mut self, permille: u32, now: Now) {
        let Some(climb) = &mut self.climb else { return };
        climb.done = climb.total / 1000 * u64::from(permille.min(1000));
        climb.sample(now);
    }

    /// File data came over the wire.
    pub(super) fn took(&mut self, bytes: u64) {
        let Some(climb) = &mut self.climb else { return };
        climb.bytes += bytes;
        self.wire_bytes[place(climb.rung)] += bytes;
    }

    pub(super) fn reused(&mut self, bytes: u64) {
        self.reused_bytes += bytes;
    }

    pub(super) fn refused(&mut self, bytes: u64) {
        self.refused_bytes += bytes;
    }

    /// To others.
    pub(super) fn gave(&mut self, bytes: u64) {
        self.given_bytes += bytes;
    }

    /// What it took over the wire; the node is in the new generation.
    pub(super) fn finish(&mut self, now: Now) -> u64 {
        let Some(climb) = self.climb.take() else { return 0 };
        self.finished[place(climb.rung)] += 1;
        self.last_ms = now.since_ms(climb.since);
        self.last.insert(climb).bytes
    }

    pub(super) fn give_up(&mut self) {
        self.climb = None;
    }

    /// "41 % at 85.0 MiB/s, 3 s left"; empty if nothing is known yet.
    pub(super) fn progress_text(&self, now: Now) -> String {
        let Some(climb) = self.climb.as_ref().filter(|climb| climb.total > 0) else {
            return String::new();
        };
        let share = climb.done.min(climb.total) as f64 / climb.total as f64 * 100.0;
        let mut text = format!(", {share:.0} %");
        let rate = climb.bytes_per_s(now);
        if rate > 0 {
            let mib = rate as f64 / f64::from(1 << 20);
            text += &format!(" at {mib:.1} MiB/s, {} s left", climb.left_ms(now).div_ceil(1000));
        }
        text
    }

    pub(super) fn report(&self, now: Now) -> Rebases {
        let rungs = RUNGS.iter().enumerate().map(|(at, rung)| RungTally {
            rung: (*rung).into(),
            finished: self.finished[at],
            wire_bytes: self.wire_bytes[at],
        });
        let now = self.climb.as_ref().map(|climb| RungNow {
            rung: climb.rung.into(),
            generation: climb.generation.0,
            doing: climb.doing.into(),
            done_bytes: climb.done,
            total_bytes: climb.total,
            bytes_per_s: climb.bytes_per_s(now),
            left_ms: climb.left_ms(now),
        });
        let last = self.last.as_ref();
        Rebases {
            rungs: rungs.collect(),
            now,
            last: last.map_or(Rung::NoRung, |last| last.rung).into(),
            last_generation: last.map_or(0, |last| last.generation.0),
            last_bytes: last.map_or(0, |last| last.bytes),
            last_ms: self.last_ms,
            reused_bytes: self.reused_bytes,
            refused_bytes: self.refused_bytes,
            given_bytes: self.given_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Now {
        Now { mono_us: 1 + 1000 * ms, wall_us: 0 }
    }

    #[test]
    fn the_tail_s_rung_stays_while_the_base_is_built() {
        let mut ladder = Ladder::default();
        ladder.climb(Rung::Tail, Generation(2), at_ms(0));
        ladder.took(300);
        ladder.climb(Rung::Local, Generation(2), at_ms(50));
        assert_eq!(ladder.finish(at_ms(80)), 300);
        ladder.climb(Rung::Local, Generation(3), at_ms(80));
        assert_eq!(ladder.finish(at_ms(90)), 0);
        let told = ladder.report(at_ms(90));
        let counts: Vec<_> = told.rungs.iter().map(|it| (it.finished, it.wire_bytes)).collect();
        assert_eq!(counts, [(1, 0), (1, 300), (0, 0)]);
        assert_eq!((told.last(), told.last_generation, told.last_ms), (Rung::Local, 3, 10));
        assert_eq!(told.now, None);
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut ladder = Ladder::default();
        ladder.climb(Rung::Base, Generation(2), at_ms(0));
        // Ten seconds at 1000 bytes a second, then six at 100.
        for tenth in 0..=100 {
            ladder.at("fetch", 100 * tenth, 20_000, at_ms(100 * tenth));
        }
        assert_eq!(ladder.report(at_ms(10_000)).now.unwrap().bytes_per_s, 1000);
        for tenth in 1..=60 {
            ladder.at("fetch", 10_000 + 10 * tenth, 20_000, at_ms(10_000 + 100 * tenth));
        }
        let told = ladder.report(at_ms(16_000)).now.unwrap();
        assert_eq!((told.bytes_per_s, told.left_ms), (100, 94_000));
        assert_eq!(ladder.progress_text(at_ms(16_000)), ", 53 % at 0.0 MiB/s, 94 s left");
    }
}
