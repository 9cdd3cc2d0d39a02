//! All the chance there is in a run: one seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub struct Rng(ChaCha8Rng);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From 0 to below `end`; 0 if there is nothing to choose from.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.next_u64() % end }
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).max(1))
    }

    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Mostly near `low`, seldom up to `high`: how long things take.
    pub fn delay(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).max(1);
        match self.below(10) {
            0 => low + self.below(span),
            1..=3 => low + self.below(span / 4 + 1),
            _ => low + self.below(span / 20 + 1),
        }
    }
}
