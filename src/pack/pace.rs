//! Bulk work at a bounded rate.
//!
//! Whoever steps a job asks before every step how long it is to wait, and waits: on a thread of its own in a node, in
//! the queue of events in the simulator. Time that was not used is not saved up: what waited long must not then take
//! the whole disk for as long.

/// Unused time beyond this is forgotten.
const SAVED_US_MAX: u64 = 200_000;

/// What one job has moved, and since when that counts.
#[derive(Default)]
pub struct Pace {
    rate: u64,
    since_us: u64,
    moved_before: u64,
}

impl Pace {
    /// The job has read and written `moved` bytes so far, and may do `rate` a second; 0: as many as it can.
    pub fn wait_us(&mut self, now_us: u64, moved: u64, rate: u64) -> u64 {
        if rate != self.rate {
            *self = Pace { rate, since_us: now_us, moved_before: moved };
        }
        if rate == 0 {
            return 0;
        }
        let took_us =
            u128::from(moved.saturating_sub(self.moved_before)) * 1_000_000 / u128::from(rate);
        let due_us = self.since_us.saturating_add(u64::try_from(took_us).unwrap_or(u64::MAX));
        if now_us > due_us.saturating_add(SAVED_US_MAX) {
            (self.since_us, self.moved_before) = (now_us - SAVED_US_MAX, moved);
        }
        due_us.saturating_sub(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_a_changed_one_begins_anew() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait_us(5, 1 << 20, 0), 0, "unlimited");
        assert_eq!(pace.wait_us(10, 1 << 20, 1000), 0, "what was moved before does not count");
        assert_eq!(pace.wait_us(10, (1 << 20) + 500, 1000), 500_000);
        assert_eq!(pace.wait_us(300_010, (1 << 20) + 500, 1000), 200_000);
        assert_eq!(pace.wait_us(300_010, (1 << 20) + 500, 2000), 0);
        assert_eq!(pace.wait_us(300_010, (1 << 20) + 501, 2000), 500);
    }

    #[test]
    fn unused_time_is_not_saved_up() {
        let mut pace = Pace::default();
        pace.wait_us(0, 0, 1000);
        assert_eq!(pace.wait_us(60_000_000, 100, 1000), 0);
        let wait_us = pace.wait_us(60_000_000, 1100, 1000);
        assert_eq!(wait_us, 1_000_000 - SAVED_US_MAX);
    }
}
