//! The deterministic simulator: whole clusters of the production core in one thread, everything from one seed.
//!
//! `world` is the machine room: processes (the real `Core`), their disks (`disk`), the network, clients (`client`), and
//! the schedule of faults. Nothing in it reads a clock, draws a number from anywhere but the seed, or iterates over what
//! has no order. `ledger`, `history` and `oids` are the judges: they read disks and messages with their own parser
//! (`parse`) and never look into a core. The head of `ledger` lists which property is checked where.

pub mod askers;
pub mod client;
pub mod disk;
pub mod faults;
pub mod forge;
pub mod history;
pub mod ledger;
pub mod oids;
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
    /// What was done to the cluster, by kind.
    pub faults: Counts,
    /// Rare branches that were taken.
    pub sometimes: Counts,
    /// Acknowledged to clients.
    pub commits: u64,
    pub elections: u64,
    /// New generations that became current.
    pub packs: u64,
    pub simulated_ms: u64,
    pub events: u64,
    trace: Trace,
}

pub type Counts = std::collections::BTreeMap<&'static str, u64>;

impl Report {
    /// The last lines of what happened.
    pub fn tail(&self, lines: usize) -> String {
        self.trace.last(lines).join("\n")
    }

    /// For a person: what was done to the cluster and what became of it, then the last lines, then what was violated.
    pub fn story(&self, lines: usize) -> String {
        let violation = self.violation.as_deref().unwrap_or("nothing was violated");
        format!(
            "seed {}: what happened, from the beginning\n{}\n\nthe last {lines} lines\n{}\n\nseed {}: {violation}",
            self.seed,
            self.trace.headlines().join("\n"),
            self.tail(lines),
            self.seed
        )
    }
}

/// One run. Never panics for what the cluster does: that is in the report.
pub fn run(seed: u64, options: &Options) -> Report {
    let trace = Trace::new(options.echo);
    let mut world = World::new(seed, options, trace.clone());
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = result.err().map(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| "a panic without words".into())
    });
    world.report(seed, violation)
}
