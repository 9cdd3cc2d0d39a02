//! The cluster under faults, many seeds. The seed decides everything: nodes, clients, length, faults.
//!
//! What can be set:
//!
//! * `SIM_SEED=123 cargo test -p cluster-tests --test simulation one_seed -- --nocapture` runs one seed again and
//!   prints its report; `SIM_ECHO=1` prints everything as it happens, `SIM_NODES=5` overrules the number of nodes.
//! * `SIM_FIRST=10000 SIM_COUNT=5000` changes which seeds `the_cluster_keeps_its_promises` runs; with `SIM_GO_ON=1` it
//!   says which seeds failed and goes on to the next. `SIM_THREADS` sets the number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cluster_tests::sim::{Counts, Options, Report, run};

/// Seeds that failed once, and what they showed.
const REMEMBERED: [(u64, &str); 0] = [];

const SEEDS: u64 = 2000;

/// What must have happened at least once over all seeds.
const SOMETIMES: [&str; 4] = ["torn tail cut", "orphan made", "generation switch", "local rebuild"];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn fail(report: &Report) -> ! {
    let violation = report.violation.as_deref().unwrap_or_default();
    eprintln!("{}", report.story(200));
    panic!("seed {}: {violation}", report.seed);
}

#[derive(Debug, Default)]
struct Total {
    seeds: u64,
    commits: u64,
    elections: u64,
    packs: u64,
    simulated_ms: u64,
    events: u64,
    faults: Counts,
    sometimes: Counts,
}

impl Total {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.commits += report.commits;
        self.elections += report.elections;
        self.packs += report.packs;
        self.simulated_ms += report.simulated_ms;
        self.events += report.events;
        let both = [(&mut self.faults, report.faults), (&mut self.sometimes, report.sometimes)];
        for (total, counts) in both {
            counts.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
        }
    }
}

/// Runs the seeds on all cores; the first that fails ends it.
fn run_seeds(seeds: std::ops::Range<u64>) -> Total {
    let next = AtomicU64::new(seeds.start);
    let go_on = std::env::var("SIM_GO_ON").is_ok();
    let failed: Mutex<Option<Report>> = Mutex::new(None);
    let total: Mutex<Total> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    let threads = number("SIM_THREADS").map_or(cores, |threads| threads as usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let report = run(seed, &Options::of_seed(seed));
                    if let Some(violation) = &report.violation {
                        println!("FAILED {seed}: {violation}");
                        if !go_on {
                            failed.lock().unwrap().get_or_insert(report);
                            return;
                        }
                    }
                    total.lock().unwrap().add(report);
                }
            });
        }
    });
    if let Some(report) = failed.into_inner().unwrap() {
        fail(&report);
    }
    total.into_inner().unwrap()
}

#[test]
fn the_cluster_keeps_its_promises() {
    let began = Instant::now();
    let first = number("SIM_FIRST").unwrap_or(0);
    let count = number("SIM_COUNT").unwrap_or(SEEDS);
    let total = run_seeds(first..first + count);
    println!("{count} seeds in {:.1} s: {total:#?}", began.elapsed().as_secs_f64());
    if count < SEEDS {
        return;
    }
    let never: Vec<&str> = SOMETIMES
        .into_iter()
        .filter(|what| total.sometimes.get(what).is_none_or(|count| *count == 0))
        .collect();
    assert!(never.is_empty(), "never happened in {count} seeds: {never:?}");
}

#[test]
fn seeds_that_failed_once() {
    for (seed, story) in REMEMBERED {
        let report = run(seed, &Options::of_seed(seed));
        if report.violation.is_some() {
            eprintln!("this seed is remembered: {story}");
            fail(&report);
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [7, 8, 9, 10, 11, 12] {
        let options = Options::of_seed(seed);
        let (first, second) = (run(seed, &options), run(seed, &options));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert!(first.hash.1 > 1000);
    }
}

#[test]
fn one_seed() {
    let Some(seed) = number("SIM_SEED") else { return };
    let mut options = Options::of_seed(seed);
    if let Some(nodes) = number("SIM_NODES") {
        options.nodes = nodes as usize;
    }
    options.echo = std::env::var("SIM_ECHO").is_ok();
    let report = run(seed, &options);
    match report.violation {
        Some(_) => fail(&report),
        None => {
            println!("{options:?} hash {:x?}", report.hash);
            let mut total = Total::default();
            total.add(report);
            println!("{total:#?}");
        }
    }
}
