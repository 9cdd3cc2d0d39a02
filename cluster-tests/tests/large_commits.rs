//! Commits of many megabytes, by stock Durus clients: through a slave and through the master, over a line on which one takes
//! longer than any patience of the nodes with each other, and to a slave that comes back. Nothing is sent again and again,
//! and no election comes of it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cluster_tests::cluster::{Builder, Cluster, command_on};
use cluster_tests::net::Net;
use cluster_tests::python::Workload;
use cluster_tests::scene::aloud;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// The host in a network that is no node's.
const OUTSIDE: usize = 3;

/// Written at one node, read at another.
fn store(cluster: &Cluster, host: &[String], write: usize, read: usize, sizes: &[u64]) -> Value {
    let at = |i: usize| cluster.nodes[i].durus.to_string();
    let (write, read) = (at(write), at(read));
    let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
    let mut args = vec!["--write", &write, "--read", &read];
    args.extend(sizes.iter().map(String::as_str));
    let said = Workload::start_on(host, "large.py", &args).finish(120);
    assert_eq!(said["wrong"], json!([]), "{said}");
    said
}

fn epoch(cluster: &Cluster) -> u64 {
    cluster.metric(cluster.master(), "packmaster_epoch").expect("the epoch")
}

/// Bytes that this host has sent.
fn sent(cluster: &Cluster, host: usize) -> u64 {
    let output = command_on(&cluster.host(host), Path::new("cat"))
        .arg("/sys/class/net/eth0/statistics/tx_bytes")
        .output();
    let text = String::from_utf8(output.expect("run cat").stdout).expect("a number");
    text.trim().parse().unwrap_or_else(|e| panic!("{text:?} is no number of bytes: {e}"))
}

#[test]
fn large_commits_go_through_every_node_and_to_one_that_was_down() {
    let mut cluster = Cluster::start();
    let before = epoch(&cluster);
    let master = cluster.master();
    let (slave, other) = ((master + 1) % 3, (master + 2) % 3);
    store(&cluster, &[], slave, master, &[20 * MIB, 60 * MIB, MIB]);
    store(&cluster, &[], master, slave, &[30 * MIB, MIB]);
    cluster.wait_level();
    assert_eq!(epoch(&cluster), before, "a node was thought to be gone");
    cluster.kill(other);
    store(&cluster, &[], slave, master, &[30 * MIB]);
    cluster.launch(other);
    cluster.wait_healthy();
    cluster.wait_level();
    // In pieces, each of them shorter than a transaction.
    cluster.kill(other);
    store(&cluster, &[], slave, master, &[20 * MIB, MIB]);
    cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
    cluster.launch(other);
    cluster.wait_for("the late node in the new generation", 60, |cluster| {
        let status = cluster.try_status().ok()?;
        let flipped = status.nodes.iter().all(|node| node.generation == 2);
        (flipped && status.is_healthy() && status.is_level()).then_some(())
    });
    let tail = cluster.metric(other, "packmaster_rebase_wire_bytes{rung=\"tail\"}");
    let base = cluster.metric(other, "packmaster_rebase_wire_bytes{rung=\"base\"}");
    assert!(tail >= Some(21 * MIB), "{tail:?} bytes of the old file");
    assert_eq!(base, Some(0));
    cluster.finish();
}

#[test]
fn a_commit_that_takes_its_time_on_the_line_is_sent_once() {
    let net = match Net::make(OUTSIDE + 1, 1) {
        Ok(net) => net,
        Err(why) => {
            return aloud(&format!("SKIPPED: large commits: no network namespaces: {why}"));
        }
    };
    let mut cluster = Builder::default().network(net).start();
    cluster.net().worsen(0, (15, 15));
    cluster.wait_healthy();
    let master = cluster.master();
    let slave = (master + 1) % 3;
    let host = cluster.host(OUTSIDE);
    let state = |cluster: &Cluster| {
        let len = fs::metadata(cluster.nodes[master].file()).expect("the file").len();
        (len, sent(cluster, slave), sent(cluster, master))
    };
    let before = state(&cluster);
    let said = store(&cluster, &host, slave, master, &[24 * MIB]);
    let took = said["took_s"][0].as_f64().expect("a time");
    let after = state(&cluster);
    // Else this says nothing: each way from node to node took longer than the patience for an answer.
    assert!(took > 1.5, "24 MiB took {took} s");
    let grown = (after.0 - before.0) as f64;
    let by_slave = (after.1 - before.1) as f64 / grown;
    let by_master = (after.2 - before.2) as f64 / grown;
    aloud(&format!(
        "a large commit took {took} s; its slave sent it {by_slave:.2} times, the master {by_master:.2}"
    ));
    // To the master; and to two slaves, and to the client that reads it there. Frames take something.
    assert!(by_slave < 1.5 && by_master < 3.5, "{by_slave:.2} times, {by_master:.2} times");
    cluster.finish();
}

/// Tried from outside: a read waited until the large commit of another client was through, seconds on such a line.
#[test]
fn reads_go_on_while_a_large_commit_takes_its_time_on_the_line() {
    let net = match Net::make(OUTSIDE + 1, 2) {
        Ok(net) => net,
        Err(why) => {
            return aloud(&format!(
                "SKIPPED: reads beside large commits: no network namespaces: {why}"
            ));
        }
    };
    let mut cluster = Builder::default().network(net).start();
    cluster.net().worsen(0, (15, 15));
    cluster.wait_healthy();
    let master = cluster.master();
    let (slave, other) = ((master + 1) % 3, (master + 2) % 3);
    let host = cluster.host(OUTSIDE);
    // Makes the root.
    store(&cluster, &host, slave, master, &[1000]);
    let reads = |node: usize| {
        Workload::start_on(&host, "reads.py", &[&cluster.nodes[node].durus.to_string()])
    };
    let median = |said: &Value| said["median_ms"].as_f64().expect("a time");
    let alone = reads(slave);
    thread::sleep(Duration::from_secs(2));
    let alone = alone.finish(60);
    // Where the commit comes in, where it goes to the file, and where it is sent from there.
    let during = [slave, master, other].map(|node| (node, reads(node)));
    let committed = store(&cluster, &host, slave, master, &[40 * MIB]);
    let took_ms = 1000.0 * committed["took_s"][0].as_f64().expect("a time");
    assert!(took_ms > 2000.0, "40 MiB took {took_ms} ms: nobody would have waited");
    for (node, reads) in during {
        let said = reads.finish(60);
        aloud(&format!(
            "reads at n{} beside a commit of {took_ms} ms: {said}; alone: {alone}",
            node + 1
        ));
        let longest = said["longest_ms"].as_f64().expect("a time");
        assert!(longest < took_ms / 3.0, "a read waited for the commit: {said}");
        assert!(median(&said) < 4.0 * median(&alone), "reads are slow: {said}, alone {alone}");
    }
    cluster.finish();
}
