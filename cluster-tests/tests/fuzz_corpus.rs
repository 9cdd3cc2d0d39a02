//! Every input of the fuzz corpora again, without a fuzzer: what was found once stays mended.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use cluster_tests::fuzzing::TARGETS;

/// Fewer inputs than this, and the corpus has been lost.
const INPUTS_MIN: usize = 10;

fn replay(target: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= INPUTS_MIN, "{} inputs in {}", files.len(), corpus.display());
    let mut failed = Vec::new();
    for file in &files {
        let bytes = fs::read(file).expect("readable");
        if catch_unwind(|| run(&bytes)).is_err() {
            failed.push(file.file_name().expect("a name").to_owned());
        }
    }
    assert!(failed.is_empty(), "{target}: {failed:?} (the panics are above)");
    println!("{target}: {} inputs", files.len());
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn durus() {
    replay("durus");
}

#[test]
fn frames() {
    replay("frames");
}

#[test]
fn peer() {
    replay("peer");
}

#[test]
fn raft_log() {
    replay("raft_log");
}

#[test]
fn shelf() {
    replay("shelf");
}
