//! The long run: seeds of the simulator, one after the other, for hours, until one fails.
//!
//!     cargo run --release -p cluster-tests --example soak -- --hours 1
//!     cargo run --release -p cluster-tests --example soak -- --first 1000000 --seeds 1000000
//!     cargo run --release -p cluster-tests --example soak -- --seed 615        # one seed again, with its whole trace
//!
//! A seed alone decides everything in its run, the size of the cluster too. The first failure ends the run: its seed, the
//! commit of the source, what was violated and the last of what happened are printed, and the whole trace is written
//! to a file. `--keep-going` lists failures instead and ends with status 1 all the same. Ctrl-C ends it early, without the
//! table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cluster_tests::sim::{Options, Report, run};

/// So often a line of progress.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// Lines of the trace on the screen, when a seed fails.
const TAIL_LINES: usize = 80;
const USAGE: &str = "usage: soak [--hours H | --seeds N] [--first SEED] [--threads N] [--keep-going] | soak --seed SEED";

struct Args {
    first: u64,
    seeds: Option<u64>,
    hours: Option<f64>,
    threads: usize,
    keep_going: bool,
    one: Option<u64>,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("soak: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match args.one {
        Some(seed) => one(seed),
        None => many(&args),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    let mut args =
        Args { first: 0, seeds: None, hours: None, threads: cores, keep_going: false, one: None };
    while let Some(flag) = words.next() {
        if flag == "--keep-going" {
            args.keep_going = true;
            continue;
        }
        let value = words.next().ok_or(format!("{flag} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--first" => args.first = number()?,
            "--seeds" => args.seeds = Some(number()?),
            "--seed" => args.one = Some(number()?),
            "--threads" => args.threads = number()?.max(1) as usize,
            "--hours" => {
                let hours = value.parse::<f64>().ok().filter(|hours| *hours > 0.0);
                args.hours = Some(hours.ok_or(format!("--hours {value}: not a time"))?);
            }
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok(args)
}

/// The seed again, everything printed as it happens.
fn one(seed: u64) -> ExitCode {
    let options = Options { echo: true, ..Options::of_seed(seed) };
    let report = run(seed, &options);
    println!("{}", report.story(0));
    println!("faults {:#?}\nsometimes {:#?}", report.faults, report.sometimes);
    println!(
        "seed {seed}, {options:?}, trace hash {:016x} over {} words",
        report.hash.0, report.hash.1
    );
    match report.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("FAILED: {violation}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    by_nodes: BTreeMap<usize, u64>,
    simulated_ms: u64,
    commits: u64,
    elections: u64,
    packs: u64,
    faults: BTreeMap<&'static str, u64>,
    sometimes: BTreeMap<&'static str, u64>,
    failed: BTreeSet<u64>,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.simulated_ms += report.simulated_ms;
        self.commits += report.commits;
        self.elections += report.elections;
        self.packs += report.packs;
        for (what, count) in &report.faults {
            *self.faults.entry(what).or_default() += count;
        }
        for (what, count) in &report.sometimes {
            *self.sometimes.entry(what).or_default() += count;
        }
    }
}

/// A thread that panicked has added whole reports only.
fn lock(total: &Mutex<Total>) -> MutexGuard<'_, Total> {
    total.lock().unwrap_or_else(PoisonError::into_inner)
}

fn many(args: &Args) -> ExitCode {
    let began = Instant::now();
    let until = args.hours.map(|hours| began + Duration::from_secs_f64(hours * 3600.0));
    // Without a limit of either kind: an hour.
    let until = until.or(args.seeds.is_none().then(|| began + Duration::from_secs(3600)));
    let end = args.seeds.map_or(u64::MAX, |seeds| args.first.saturating_add(seeds));
    println!("soak of {}, seeds from {}, {} threads", commit(), args.first, args.threads);
    let next = AtomicU64::new(args.first);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads)
            .map(|_| scope.spawn(|| work(args, &next, end, until, &stop, &total)))
            .collect();
        let mut told = Instant::now();
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(200));
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(&lock(&total), began);
            }
        }
    });
    let total = lock(&total);
    tell(&total, began);
    println!("clusters by size: {:?}", total.by_nodes);
    for (title, counts) in [("faults", &total.faults), ("sometimes", &total.sometimes)] {
        println!("{title}:");
        for (what, count) in counts {
            println!("{count:>14}  {what}");
        }
    }
    if total.failed.is_empty() {
        println!("no seed failed");
        return ExitCode::SUCCESS;
    }
    println!("{} of {} seeds failed: {:?}", total.failed.len(), total.seeds, total.failed);
    ExitCode::FAILURE
}

fn work(
    args: &Args,
    next: &AtomicU64,
    end: u64,
    until: Option<Instant>,
    stop: &AtomicBool,
    total: &Mutex<Total>,
) {
    loop {
        let over = until.is_some_and(|until| Instant::now() >= until);
        if over || stop.load(Ordering::Relaxed) {
            return;
        }
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let options = Options::of_seed(seed);
        let report = run(seed, &options);
        let mut total = lock(total);
        total.seeds += 1;
        *total.by_nodes.entry(options.nodes).or_default() += 1;
        total.add(&report);
        if report.violation.is_some() {
            total.failed.insert(seed);
            if !args.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
            failed(&report, args.keep_going);
        }
    }
}

fn failed(report: &Report, short: bool) {
    let violation = report.violation.as_deref().unwrap_or_default();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../target/soak/seed-{}.trace", report.seed));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&path, report.story(usize::MAX)));
    if !short {
        println!("{}", report.story(TAIL_LINES));
    }
    println!("FAILED: seed {} of {}: {violation}", report.seed, commit());
    match written {
        Ok(()) => println!("  the trace: {}", path.display()),
        Err(error) => println!("  the trace could not be written to {}: {error}", path.display()),
    }
    println!(
        "  again: cargo run --release -p cluster-tests --example soak -- --seed {}",
        report.seed
    );
}

fn tell(total: &Total, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{:>6.0} s: {} seeds, {:.1} a second; {:.1} simulated hours, {} commits, {} elections, {} packs; {} failed",
        seconds,
        total.seeds,
        total.seeds as f64 / seconds.max(0.001),
        total.simulated_ms as f64 / 3.6e6,
        total.commits,
        total.elections,
        total.packs,
        total.failed.len()
    );
}

/// The commit of this source tree, and whether it was changed since: as it was when first asked for, since people go on
/// while a soak runs.
fn commit() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(read_commit)
}

fn read_commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let head =
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "an unknown commit".into());
    match git(&["status", "--porcelain", "-uno"]) {
        Some(changes) if changes.is_empty() => format!("commit {head}"),
        _ => format!("commit {head} with changes"),
    }
}
