//! A crash at every change of a disk, operation by operation; see `cluster_tests::crash`.

use cluster_tests::crash::cluster::{OTHER_FATES, SCRIPTS};
use cluster_tests::crash::{Tally, changes, cluster, enumerate, lie_is_noticed, operations};
use cluster_tests::sim::disk::crash::Fate;

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

/// Syncs that may be left out, and why nothing is lost by it.
const NOT_MISSED: &[(&str, &str, &str)] = &[];

/// Each sync of each operation is left out once, on a disk that says it was done. The enumeration has to notice.
#[test]
fn a_disk_that_lies_is_noticed() {
    let mut missed = 0;
    let mut unnoticed = Vec::new();
    for operation in operations() {
        let changes = changes(&operation, None).expect("it works without a crash");
        for (at, change) in changes.iter().enumerate().filter(|(_, what)| what.starts_with("sync"))
        {
            match lie_is_noticed(&operation, at) {
                Some(_) => missed += 1,
                None => unnoticed.push((operation.name, at, change.clone())),
            }
        }
    }
    println!("{missed} syncs left out and missed; not missed: {unnoticed:#?}");
    let known = |name: &str, change: &str| {
        NOT_MISSED.iter().any(|(operation, sync, _)| *operation == name && *sync == change)
    };
    unnoticed.retain(|(name, _, change)| !known(name, change));
    assert!(unnoticed.is_empty(), "left out, and nothing was lost: {unnoticed:#?}");
}

fn clusters(fates: &[Fate], stride: usize) {
    let tallies = cluster::enumerate(fates, stride, threads());
    println!("{:<55} {:>18} {:>6} {:>6} {:>8}", "script", "changes by node", "runs", "moot", "s");
    let mut failed = Vec::new();
    let (mut runs, mut moot, mut millis) = (0, 0, 0);
    for (script, tally) in SCRIPTS.iter().zip(tallies) {
        match tally {
            Ok(tally) => {
                let changes = format!("{:?}", tally.changes);
                let seconds = tally.millis as f64 / 1000.0;
                let (ran, nothing) = (tally.runs, tally.moot);
                println!("{:<55} {changes:>18} {ran:>6} {nothing:>6} {seconds:>8.1}", script.name);
                (runs, moot, millis) = (runs + ran, moot + nothing, millis + tally.millis);
            }
            Err(why) => failed.push(format!("{}: {why}", script.name)),
        }
    }
    let seconds = millis as f64 / 1000.0;
    println!("{:<55} {:>18} {runs:>6} {moot:>6} {seconds:>8.1}", "together", "");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
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
