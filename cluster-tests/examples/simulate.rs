//! Long runs: simulate FIRST COUNT [NODES] [FAULTS_MS]. Says which seeds failed and how, and goes on.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cluster_tests::sim::{Options, run};

fn main() {
    let numbers: Vec<u64> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [first, count] =
        [numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(1000)];
    let mut options = Options::default();
    if let Some(nodes) = numbers.get(2) {
        options.nodes = *nodes as usize;
    }
    if let Some(faults_ms) = numbers.get(3) {
        options.faults_ms = *faults_ms;
    }
    options.echo = std::env::var("SIM_ECHO").is_ok();
    let threads = std::env::var("SIM_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let next = AtomicU64::new(first);
    let total: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failures: Mutex<Vec<(u64, String)>> = Mutex::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    if std::env::var("SIM_LIST").is_ok() {
                        eprintln!("begin {seed}");
                    }
                    let report = run(seed, &options);
                    if let Some(violation) = &report.violation {
                        println!("seed {seed}: {violation}");
                        failures.lock().unwrap().push((seed, violation.clone()));
                        if count == 1 {
                            println!("{}", report.tail(400));
                        }
                    }
                    let mut total = total.lock().unwrap();
                    for (what, count) in report.sometimes {
                        *total.entry(what).or_default() += count;
                    }
                }
            });
        }
    });
    println!("{:#?}", total.into_inner().unwrap());
    let failures = failures.into_inner().unwrap();
    println!(
        "{count} seeds in {:.1} s, {} failed: {:?}",
        began.elapsed().as_secs_f64(),
        failures.len(),
        failures.iter().map(|(seed, _)| seed).collect::<Vec<_>>()
    );
}
