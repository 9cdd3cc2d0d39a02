//! A crash at every change of a disk, operation by operation; see `cluster_tests::crash`.

use cluster_tests::crash::{Tally, changes, enumerate, lie_is_noticed, operations};

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
