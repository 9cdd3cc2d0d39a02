//! Large transactions on lines that carry little, with real processes: a master opens in about the time that the bytes take,
//! whatever dies meanwhile; and a promote brings its target into step before it asks anybody to wait.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cluster_tests::client::{Busy, Client, Committed, Loaded, record};
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::scene::aloud;

const MIB: u64 = 1 << 20;
const ROOT: u64 = 0;

/// An object for each of so many clients, and one for what is large.
fn objects(cluster: &Cluster, count: usize) -> Vec<u64> {
    let mut client = Client::connect(cluster.nodes[cluster.master()].durus).expect("connect");
    assert!(matches!(client.load(ROOT).expect("a load"), Loaded::NoSuchObject));
    let oids = client.new_oids(count as u8 + 1).expect("oids");
    let oids: Vec<u64> = oids.into_iter().filter(|oid| *oid != ROOT).take(count).collect();
    let mut records = vec![(ROOT, record(ROOT, b"root", &oids))];
    records.extend(oids.iter().map(|oid| (*oid, record(*oid, b"nothing yet", &[]))));
    assert_eq!(client.commit(&records).expect("a commit"), Committed::Yes);
    oids
}

/// Its client may be gone before it is answered.
fn store(at: SocketAddr, oid: u64, bytes: u64) -> JoinHandle<bool> {
    thread::spawn(move || {
        let mut client = Client::connect(at).expect("connect");
        let data = vec![b'x'; bytes as usize];
        client.commit(&[(oid, record(oid, &data, &[]))]).is_ok_and(|it| it == Committed::Yes)
    })
}

fn size_of(cluster: &Cluster, node: usize, oid: u64) -> u64 {
    let mut client = Client::connect(cluster.nodes[node].durus).expect("connect");
    client.sync().expect("a sync");
    match client.load(oid).expect("a load") {
        Loaded::Record(record) => record.len() as u64,
        other => panic!("{other:?}"),
    }
}

fn epoch(cluster: &Cluster) -> u64 {
    cluster.try_status().map_or(0, |status| status.epoch)
}

/// The master has a large transaction on its disk that nobody else has; then it is killed and started again at once.
fn killed_with_much_to_send(mib: u64, bytes_per_s: u64, others_up: bool) {
    let mut cluster = Builder::default().lines().start();
    let oid = objects(&cluster, 1)[0];
    cluster.wait_level();
    let master = cluster.master();
    cluster.lines().rate_everywhere(Some(bytes_per_s));
    let before = epoch(&cluster);
    let committing = store(cluster.nodes[master].durus, oid, mib * MIB);
    let file = cluster.nodes[master].file();
    cluster.wait_for("the large transaction on the master's disk", 30, |_| {
        let len = fs::metadata(&file).expect("the master's file").len();
        (len > mib * MIB).then_some(())
    });
    let slave = (master + 2) % 3;
    if !others_up {
        cluster.kill(slave);
    }
    cluster.kill(master);
    let killed = Instant::now();
    cluster.launch(master);
    cluster.wait_for("an open master again", 60, |cluster| {
        let status = cluster.try_status().ok()?;
        status.master.filter(|_| status.epoch > before)
    });
    let opened = killed.elapsed();
    let elections = epoch(&cluster) - before;
    let acknowledged = committing.join().expect("the client");
    let bytes_take = Duration::from_secs_f64((mib * MIB) as f64 / bytes_per_s as f64);
    aloud(&format!(
        "{mib} MiB at {bytes_per_s} bytes/s take {bytes_take:.1?}: open again after {opened:.1?}, {elections} elections"
    ));
    assert!(elections <= 4, "{elections} elections: waiting alone must cause none");
    // Its connection is gone: what became of it shows in the data, and is the same everywhere.
    let found = size_of(&cluster, cluster.master(), oid) >= mib * MIB;
    assert!(found || !acknowledged, "an acknowledged commit is gone");
    assert!(found || others_up, "nobody but the restarted master could be elected, and it had it");
    cluster.lines().rate_everywhere(None);
    if !others_up {
        cluster.launch(slave);
    }
    cluster.wait_healthy();
    cluster.wait_level();
    for node in 0..3 {
        assert_eq!(size_of(&cluster, node, oid) >= mib * MIB, found, "at node {}", node + 1);
    }
    cluster.finish();
}

#[test]
fn a_large_transaction_is_sent_while_its_master_and_a_slave_die() {
    killed_with_much_to_send(40, 10_000_000, false);
}

#[test]
fn a_large_transaction_is_settled_when_its_master_alone_dies() {
    killed_with_much_to_send(40, 10_000_000, true);
}

#[test]
fn a_narrow_line_takes_as_long_as_its_bytes() {
    killed_with_much_to_send(8, 1_000_000, false);
}

#[test]
fn a_promote_brings_its_target_into_step_before_anybody_waits() {
    let cluster = Builder::default().lines().start();
    let oids = objects(&cluster, 3);
    cluster.wait_level();
    let master = cluster.master();
    let target = (master + 1) % 3;
    cluster.lines().rate(master, target, Some(500_000));
    let large = store(cluster.nodes[master].durus, oids[0], 40 * MIB);
    assert!(large.join().expect("the client"), "the other slave and the master are a majority");
    cluster.lines().rate(master, target, Some(10_000_000));

    let longest_us = Arc::new(AtomicU64::new(0));
    let client = |(nth, oid): (usize, u64)| {
        let mut client = Client::connect(cluster.nodes[nth].durus).expect("connect");
        let longest_us = longest_us.clone();
        move || {
            let begun = Instant::now();
            let done = client.commit(&[(oid, record(oid, b"something", &[]))]);
            assert_eq!(done.expect("no error through a promote"), Committed::Yes);
            longest_us.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    };
    // Not at the target: to it, the line is narrow.
    let nodes = [master, (master + 2) % 3];
    let busy = Busy::start(nodes.into_iter().zip(oids[1..].iter().copied()).map(client));
    let name = cluster.nodes[target].name.clone();
    let asked = Instant::now();
    let promoted = cluster.ctl(&["promote", &name, "--timeout", "5s"]).done();
    let took = asked.elapsed();
    busy.finish();
    let longest = Duration::from_micros(longest_us.load(Ordering::Relaxed));
    aloud(&format!(
        "promoted after {took:.1?}; a commit waited {longest:.1?} at most; ctl: {} {}",
        promoted.stderr.trim(),
        promoted.stdout.trim()
    ));
    assert_eq!(cluster.master(), target);
    assert!(took > Duration::from_secs(2), "it lacked nothing: this test shows nothing");
    assert!(longest < took / 2, "commits waited while the target caught up");
    assert!(promoted.stderr.contains("catches up first"), "{promoted:?}");
    cluster.finish();
}

#[test]
fn a_promote_to_a_node_that_comes_no_nearer_is_called_off() {
    let cluster = Builder::default().lines().start();
    let oids = objects(&cluster, 1);
    cluster.wait_level();
    let master = cluster.master();
    let target = (master + 1) % 3;
    let before = epoch(&cluster);
    cluster.lines().rate(master, target, Some(500_000));
    let large = store(cluster.nodes[master].durus, oids[0], 10 * MIB);
    assert!(large.join().expect("the client"));
    // Beats come through, appends do not: every connection carries this much.
    cluster.lines().rate(master, target, Some(6_000));
    let name = cluster.nodes[target].name.clone();
    let said = cluster.ctl(&["promote", &name, "--timeout", "10s"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("called off"), "{said:?}");
    assert_eq!((cluster.master(), epoch(&cluster)), (master, before), "the master goes on");
    cluster.lines().rate_everywhere(None);
    cluster.wait_level();
    cluster.ctl(&["promote", &name, "--timeout", "10s"]).done();
    cluster.finish();
}
