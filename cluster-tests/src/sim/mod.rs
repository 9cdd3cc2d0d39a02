//! The deterministic simulator: whole clusters of the production core in one thread, everything from one seed.
//!
//! `world` is the machine room: processes (the real `Core`), their disks (`disk`), the network, clients (`client`), and
//! the schedule of faults. Nothing in it reads a clock, draws a number from anywhere but the seed, or iterates over what
//! has no order. `ledger` and `history` are the judges: they read disks and messages with their own parser (`parse`)
//! and never look into a core.

pub mod client;
pub mod disk;
pub mod faults;
pub mod history;
pub mod ledger;
pub mod parse;
pub mod rng;
pub mod trace;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use faults::Options;
use trace::Trace;
use world::World;

/// How a run went.
pub struct Report {
    pub seed: u64,
    /// What was violated, if anything was.
    pub violation: Option<String>,
    pub hash: (u64, u64),
    pub sometimes: std::collections::BTreeMap<&'static str, u64>,
    trace: Trace,
}

impl Report {
    /// The last lines of what happened.
    pub fn tail(&self, lines: usize) -> String {
        self.trace.last(lines).join("\n")
    }
}

/// One run. Never panics for what the cluster does: that is in the report.
pub fn run(seed: u64, options: &Options) -> Report {
    let trace = Trace::new(options.echo);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, options, trace.clone());
        world.run();
        world.sometimes()
    }));
    let (violation, sometimes) = match result {
        Ok(sometimes) => (None, sometimes),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
                .unwrap_or_else(|| "a panic without words".into());
            (Some(text), Default::default())
        }
    };
    Report { seed, violation, hash: trace.hash(), sometimes, trace }
}
