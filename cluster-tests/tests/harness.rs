//! The checkers themselves, against a stock server, where nothing fails over: what is wrong must be noticed.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use cluster_tests::client::{Client, Committed, Loaded, record};
use cluster_tests::clock::monotonic;
use cluster_tests::journal::{acknowledged_since, longest_gap, read};
use cluster_tests::ports::Ports;
use cluster_tests::python::{self, Workload};
use cluster_tests::stock::Server;
use serde_json::Value;

fn verify(server: &Server, journal: &Path) -> Vec<String> {
    let port = server.address.port().to_string();
    let journal = journal.to_str().expect("a plain path");
    let found = python::run("verify.py", &["--port", &port, "--journal", journal], 60);
    let problems = found["problems"].as_array().expect("a list").iter();
    problems.map(|problem| problem.as_str().expect("text").to_string()).collect()
}

#[test]
fn a_false_journal_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = Ports::reserve();
    let server = Server::start(&dir.path().join("db.durus"), ports.port(0));
    let journal = dir.path().join("journal");
    let port = server.address.port().to_string();
    let folder = journal.to_str().expect("a plain path");
    let since = monotonic();
    let load = Workload::start("writer.py", &["--ports", &port, "--journal", folder]);
    sleep(Duration::from_secs(2));
    let said = load.finish(20);
    assert_eq!(said["errors"], Value::Array(Vec::new()));
    let told = read(&journal);
    let times = acknowledged_since(&told, since);
    assert_eq!(said["acknowledged"], times.len());
    assert!(longest_gap(&times, times[0], monotonic()).0 < 2.0, "the clocks agree");
    assert_eq!(verify(&server, &journal), Vec::<String>::new());

    let file = journal.join("w1.journal");
    let good = fs::read_to_string(&file).expect("read a journal");
    let noticed = |false_journal: String, problem: &str| {
        fs::write(&file, false_journal).expect("write a journal");
        let problems = verify(&server, &journal);
        assert!(problems.len() == 1 && problems[0].contains(problem), "{problem}: {problems:?}");
    };
    noticed(format!("{good}A 999999 1.0\n"), "acknowledged and lost");
    noticed(good.replacen("A 3 ", "C 3 ", 1), "in conflict and stored");
    noticed(good.lines().skip(1).map(|line| format!("{line}\n")).collect(), "not in the journal");
}

/// Our own small client speaks the protocol as stock has it.
#[test]
fn our_client_against_the_stock_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = Ports::reserve();
    let server = Server::start(&dir.path().join("db.durus"), ports.port(0));
    let mut one = Client::connect(server.address).expect("connect");
    let mut other = Client::connect(server.address).expect("connect");
    assert_eq!(one.new_oids(3).expect("oids"), [0, 1, 2]);
    assert_eq!(one.load(0).expect("an answer"), Loaded::NoSuchObject);
    let root = record(0, b"root", &[1]);
    let stored = one.commit(&[(0, root.clone()), (1, record(1, b"leaf", &[]))]);
    assert_eq!(stored.expect("an answer"), Committed::Yes);
    assert_eq!(one.load(0).expect("an answer"), Loaded::Record(root.clone()));
    assert_eq!(other.load(0).expect("an answer"), Loaded::Invalid);
    let mut told = other.sync().expect("oids");
    told.sort_unstable();
    assert_eq!(told, [0, 1]);
    assert_eq!(other.load(0).expect("an answer"), Loaded::Record(root));
    other.send(b".").expect("say goodbye");
    assert!(other.is_closed_within(Duration::from_secs(5)));
    assert!(!one.is_closed_within(Duration::from_millis(300)));
}
