//! A crash at every change of a disk, operation by operation, and of each node of a cluster; see `cluster_tests::crash`.
//! The tables: cargo test -p cluster-tests --test crash_enumeration -- --nocapture

use std::collections::BTreeMap;

use cluster_tests::crash::cluster::{OTHER_FATES, SCRIPTS};
use cluster_tests::crash::{Tally, changes, cluster, enumerate, lies_are_noticed, operations};
use cluster_tests::sim::disk::crash::Fate;
use cluster_tests::sim::world::script;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().min(2))
}

fn line(name: &str, tally: &Tally) {
    let Tally { points, crashes, in_recovery, millis } = tally;
    let seconds = *millis as f64 / 1000.0;
    println!("{name:<50} {points:>6} {crashes:>8} {in_recovery:>12} {seconds:>8.1}");
}

#[test]
fn every_disk_operation_survives_a_crash_at_every_change() {
    let operations = operations();
    let tallies = enumerate(&operations, threads());
    println!(
        "{:<50} {:>6} {:>8} {:>12} {:>8}",
        "operation", "points", "crashes", "in recovery", "s"
    );
    let mut sum = Tally::default();
    let mut failed = Vec::new();
    for (operation, tally) in operations.iter().zip(tallies) {
        match tally {
            Ok(tally) => {
                line(operation.name, &tally);
                sum.points += tally.points;
                sum.crashes += tally.crashes;
                sum.in_recovery += tally.in_recovery;
                sum.millis += tally.millis;
            }
            Err(why) => failed.push(format!("{}: {why}", operation.name)),
        }
    }
    line("together", &sum);
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Files whose syncs may all be left out, and why nothing is lost by it.
const NOT_MISSED: &[(&str, &str, &str)] = &[
    ("start: damaged base kept aside", "promise", "durable before; it is for what a kill left"),
    ("start: damaged base kept aside", "g00000001-blank.durus", "synced under its name before"),
    ("start: damaged blank kept aside", "promise", "durable before; it is for what a kill left"),
    (
        "start: damaged blank kept aside",
        "g00000001-blank-again.durus",
        "synced under its name before",
    ),
    ("pack: build, name, follow, flip, remove", "building.durus", "synced under its next name"),
    ("fetch: blocks, name, follow, flip, remove", "fetching.durus", "synced under its next name"),
    ("first start: import, adopt", "g00000001.durus", "synced under its name before"),
    ("first start: an empty file", "g00000001.durus", "synced under its name before"),
    ("first start: everything is born", "g00000001.durus", "synced under its name before"),
    ("start: torn tail cut", "g00000001.durus", "whatever is torn again is cut again"),
    ("start: hollow tail cut", "g00000001.durus", "whatever is torn again is cut again"),
    ("start: damage kept aside", "g00000001.durus", "whatever is damaged again is cut again"),
    (
        "raft log: records longer than sectors",
        "the directory",
        "durable before; it is for names a kill left",
    ),
    ("raft log: entries replaced", "the directory", "durable before; it is for names a kill left"),
];

/// Operations that sync one thing more than once on their way (after a kill it may not be durable yet), or keep two
/// copies of it. In the others every single sync has to be missed.
const SYNC_AGAIN: &[&str] = &["first start", "start:", "pack", "fetch", "raft log"];

/// What is left out at once: every sync of a file, or of the directory; the copies of the Raft log are one file here.
/// And each sync alone.
fn lies(operation: &str, changes: &[String]) -> BTreeMap<String, Vec<usize>> {
    let mut lies: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate() {
        let Some(name) = change.strip_prefix("sync ") else { continue };
        lies.entry(name.replace("-b.", "-a.")).or_default().push(at);
        if !SYNC_AGAIN.iter().any(|start| operation.starts_with(start)) {
            lies.insert(format!("{name}, change {at}"), vec![at]);
        }
    }
    lies
}

/// Syncs of each operation are left out, on a disk that says they were done. The enumeration has to notice.
#[test]
fn a_disk_that_lies_is_noticed() {
    let mut noticed = 0;
    let mut unnoticed = Vec::new();
    for operation in operations() {
        let changes = changes(&operation, &[]).expect("it works without a crash");
        for (what, lies) in lies(operation.name, &changes) {
            let known =
                NOT_MISSED.iter().any(|known| (known.0, known.1) == (operation.name, &what));
            match lies_are_noticed(&operation, &lies) {
                Some(_) if known => {
                    unnoticed.push(format!("{}: {what} is missed now", operation.name))
                }
                Some(_) => noticed += 1,
                None if known => {}
                None => unnoticed.push(format!("{}: {what} {lies:?}", operation.name)),
            }
        }
    }
    println!(
        "{noticed} lies noticed; {} syncs that are not missed, for known reasons",
        NOT_MISSED.len()
    );
    assert!(unnoticed.is_empty(), "left out, and nothing was lost: {unnoticed:#?}");
}

fn clusters(fates: &[Fate], stride: usize) {
    let tallies = cluster::enumerate(fates, stride, threads());
    println!("{:<55} {:>18} {:>6} {:>6} {:>8}", "script", "changes by node", "runs", "moot", "s");
    let mut resumed = 0;
    let mut failed = Vec::new();
    let (mut runs, mut moot, mut millis) = (0, 0, 0);
    for (script, tally) in SCRIPTS.iter().zip(tallies) {
        match tally {
            Ok(tally) => {
                let changes = format!("{:?}", tally.changes);
                let seconds = tally.millis as f64 / 1000.0;
                let (ran, nothing) = (tally.runs, tally.moot);
                println!("{:<55} {changes:>18} {ran:>6} {nothing:>6} {seconds:>8.1}", script.name);
                resumed += tally.resumed;
                (runs, moot, millis) = (runs + ran, moot + nothing, millis + tally.millis);
            }
            Err(why) => failed.push(format!("{}: {why}", script.name)),
        }
    }
    let seconds = millis as f64 / 1000.0;
    println!("{:<55} {:>18} {runs:>6} {moot:>6} {seconds:>8.1}", "together", "");
    println!("{resumed} runs with a base fetch that went on after the crash");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(resumed > 0, "no crash came in the middle of a fetch");
}

/// The judges of the scripts can judge: on disks that only say that a file is synced, a commit is acknowledged that is
/// not there, or a position is reported.
#[test]
fn a_cluster_on_disks_that_lie_is_noticed() {
    for script in SCRIPTS {
        let violation = script::run_on_disks_that_lie(script, 0).violation.expect(script.name);
        println!("{}: {}", script.name, violation.lines().next().unwrap_or_default());
        assert!(violation.starts_with("violated"), "{}: {violation}", script.name);
    }
}

/// Each node killed, and its power lost, at every change of its disk.
#[test]
fn a_cluster_survives_the_crash_of_a_node_at_every_change_of_its_disk() {
    clusters(&[Fate::Kill, Fate::LoseAll], 1);
}

/// The rest of the fates, by `cargo test -p cluster-tests --test crash_enumeration -- --ignored --nocapture`.
#[test]
#[ignore = "minutes"]
fn a_cluster_survives_every_other_fate_of_what_was_not_synced() {
    clusters(&OTHER_FATES, 1);
}
