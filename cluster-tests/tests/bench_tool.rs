//! `packmaster bench` against a real cluster and against a stock server: what it says it did is what the server has.

use std::path::Path;
use std::process::Command;

use cluster_tests::binary::packmaster;
use cluster_tests::client::{Client, Loaded};
use cluster_tests::cluster::Builder;
use cluster_tests::ports::Ports;
use cluster_tests::{chaincheck, stock};
use serde_json::Value;

const SECONDS: f64 = 0.6;
const SIZE: u64 = 100;
/// What the bench's record has around its text: oid, length, and the pickle.
const AROUND: u64 = 12 + 59;

fn bench(address: &str, args: &[&str]) -> Value {
    bench_for("600ms", address, args)
}

fn bench_for(time: &str, address: &str, args: &[&str]) -> Value {
    let output = Command::new(packmaster())
        .args(["bench", "--address", address, "--output", "json", "--time", time])
        .args(["--size", "100", "--objects", "60", "--clients", "3"])
        .args(args)
        .output()
        .expect("run bench");
    let said = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{talk}");
    assert_eq!(said.lines().count(), 1, "standard output is data: {said}");
    serde_json::from_str(&said).expect("JSON")
}

fn number(said: &Value, key: &str) -> f64 {
    said[key].as_f64().unwrap_or_else(|| panic!("{key} in {said}"))
}

/// What a result says fits together: rates are counts over seconds, percentiles ascend, and `each` objects are one
/// request, with so many bytes each.
fn check(said: &Value, workload: &str, each: f64, bytes: f64) {
    assert_eq!(
        (&said["workload"], &said["clients"], &said["version"]),
        (&workload.into(), &3.into(), &1.into())
    );
    let (requests, seconds) = (number(said, "requests"), number(said, "seconds"));
    assert!(requests > 10.0 && (SECONDS..SECONDS + 1.0).contains(&seconds), "{said}");
    let near = |is: f64, should: f64| (is - should).abs() <= should * 1e-6;
    assert!(near(number(said, "requests_per_second"), requests / seconds), "{said}");
    // Clients that load each other's objects and store their own may conflict; nothing was stored then.
    let conflicts = number(said, "conflicts");
    assert!(conflicts == 0.0 || workload == "mixed" && conflicts < requests * 0.1 + 1.0, "{said}");
    let objects = requests * each - conflicts;
    assert!(near(number(said, "objects_per_second"), objects / seconds), "{said}");
    // A load of what somebody else has stored since is answered without a record.
    let (taken, all) = (number(said, "bytes_per_second"), objects * bytes / seconds);
    assert!(near(taken, all) || workload == "mixed" && taken < all && taken > all * 0.8, "{said}");
    let latency = ["p50", "p90", "p99", "p999", "max"].map(|key| number(&said["latency_ms"], key));
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{said}");
    // Three clients that ask one after the other can't have waited longer in all than there was time.
    let waited = number(&said["latency_ms"], "mean") / 1000.0 * requests;
    assert!(waited <= 3.0 * (seconds + 0.2) && waited > 0.5 * seconds, "{waited} s: {said}");
}

/// All workloads. The commits that were counted.
fn all(address: &str) -> f64 {
    let object = (AROUND + SIZE) as f64;
    check(&bench(address, &["--workload", "load"]), "load", 1.0, object);
    check(&bench(address, &["--workload", "bulk", "--bulk", "20"]), "bulk", 20.0, object);
    check(&bench(address, &["--workload", "mixed"]), "mixed", 1.0, object);
    let commits = bench(address, &["--workload", "commit", "--per-commit", "2"]);
    check(&commits, "commit", 2.0, object);
    number(&commits, "requests")
}

#[test]
fn against_a_cluster_and_against_stock() {
    let cluster = Builder::default().start();
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.durus.to_string()).collect();
    all(&addresses.join(","));
    // The transactions in the file: those that were counted, one that makes the objects, and what elections start.
    cluster.wait_level();
    let before = chaincheck::check_file(&cluster.nodes[0].file()).commits();
    let commits = bench(&addresses[0], &["--workload", "commit"]);
    cluster.wait_level();
    let after = chaincheck::check_file(&cluster.nodes[0].file()).commits();
    assert_eq!((after - before) as f64, number(&commits, "requests") + 1.0, "{commits}");
    cluster.finish();

    let (dir, ports) = (tempfile::tempdir().expect("make a directory"), Ports::reserve());
    let file = dir.path().join("stock.durus");
    let theirs = stock::Server::start(&file, ports.port(0));
    let counted = all(&theirs.address.to_string());
    assert!(counted > 0.0);
    let mut client = Client::connect(theirs.address).expect("connect");
    let Loaded::Record(bytes) = client.load(1).expect("load") else { panic!("no object 1") };
    assert_eq!(bytes.len() as u64, AROUND + SIZE);
    let (before, commits) =
        (len(&file), bench(&theirs.address.to_string(), &["--workload", "commit"]));
    // Per transaction and per record as FORMAT.md has them, after one transaction with the objects.
    let object = 16 + AROUND + SIZE;
    let wanted = number(&commits, "requests") as u64 * (8 + object) + 8 + 60 * object;
    assert_eq!(len(&file) - before, wanted, "{commits}");
}

/// Nothing refers to the bench's objects. It reads every answer of a bulk load, whatever is missing; at an abstract socket,
/// by the way.
#[test]
fn bulk_loads_go_on_when_a_pack_has_dropped_the_objects() {
    let name = format!("@pm-bench-{}", std::process::id());
    let cluster = Builder::default().nodes(1).set(&format!("listen.durus={name}")).start();
    let said = std::thread::scope(|scope| {
        let bench = scope.spawn(|| bench_for("3s", &name, &["--workload", "bulk", "--bulk", "20"]));
        std::thread::sleep(std::time::Duration::from_secs(1));
        cluster.ctl(&["pack", "--wait"]).done();
        bench.join().expect("the bench")
    });
    let all = number(&said, "objects_per_second") * (AROUND + SIZE) as f64;
    let found = number(&said, "bytes_per_second");
    assert!(0.0 < found && found < 0.99 * all, "nothing was missing: {said}");
    cluster.finish();
}

fn len(file: &Path) -> u64 {
    std::fs::metadata(file).expect("a stock file").len()
}
