//! The cluster under faults, many seeds; one seed again: SIM_SEED=123 cargo test --test simulation one_seed

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster_tests::sim::{Options, Report, run};

fn fail(report: &Report) -> ! {
    let violation = report.violation.as_deref().unwrap_or_default();
    eprintln!("{}", report.tail(300));
    panic!("seed {}: {violation}", report.seed);
}

/// Runs the seeds on all cores; the first that fails ends it.
fn run_seeds(seeds: std::ops::Range<u64>, options: &Options) {
    let next = AtomicU64::new(seeds.start);
    let failed: Mutex<Option<Report>> = Mutex::new(None);
    let total: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let report = run(seed, options);
                    if report.violation.is_some() {
                        failed.lock().unwrap().get_or_insert(report);
                        return;
                    }
                    let mut total = total.lock().unwrap();
                    for (what, count) in report.sometimes {
                        *total.entry(what).or_default() += count;
                    }
                }
            });
        }
    });
    if let Some(report) = failed.into_inner().unwrap() {
        fail(&report);
    }
    let total = total.into_inner().unwrap();
    println!("sometimes, over {} seeds: {total:#?}", seeds.end - seeds.start);
    for what in
        ["torn tail cut", "orphan made", "generation switch", "local rebase", "fence: promote"]
    {
        assert!(total.get(what).is_some_and(|count| *count > 0), "never happened: {what}");
    }
}

#[test]
fn a_cluster_of_three_keeps_its_promises() {
    run_seeds(0..200, &Options::default());
}

#[test]
fn one_node_alone_keeps_its_promises() {
    let options = Options { nodes: 1, clients: 2, ..Options::default() };
    for seed in 0..20 {
        let report = run(seed, &options);
        if report.violation.is_some() {
            fail(&report);
        }
    }
}

#[test]
fn five_nodes_keep_their_promises() {
    let options = Options { nodes: 5, clients: 5, ..Options::default() };
    for seed in 0..10 {
        let report = run(seed, &options);
        if report.violation.is_some() {
            fail(&report);
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let options = Options::default();
    let (first, second) = (run(7, &options), run(7, &options));
    assert_eq!(first.hash, second.hash);
    assert!(first.hash.1 > 10_000);
}

/// SIM_SEED, in decimal; SIM_ECHO prints everything as it happens.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    let nodes = std::env::var("SIM_NODES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let echo = std::env::var("SIM_ECHO").is_ok();
    let report = run(seed, &Options { nodes, echo, ..Options::default() });
    match report.violation {
        Some(_) => fail(&report),
        None => println!("{:#?}", report.sometimes),
    }
}
