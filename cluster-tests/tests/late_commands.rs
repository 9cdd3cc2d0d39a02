//! Real processes, and the line from the master to the Raft leader stalls for some seconds: what it carries was decided on a
//! pack that a person has cancelled meanwhile, and arrives when the next one of the same epoch is in progress.

use std::thread::{scope, sleep};
use std::time::Duration;

use cluster_tests::client::{Client, Committed, Loaded, record};
use cluster_tests::cluster::{Builder, Cluster};

const ROOT: u64 = 0;
/// Much longer than a master needs to mark a file of three objects.
const MARKED: Duration = Duration::from_millis(1000);
/// Longer than a decision needs to get from the Raft leader to the master.
const HEARD: Duration = Duration::from_millis(400);

/// A cluster whose master does not lead Raft: the master, and the Raft leader.
fn apart() -> (Cluster, usize, usize) {
    let cluster = Builder::default().lines().start();
    let who = |cluster: &Cluster| {
        let status = cluster.wait_healthy();
        let of = |name: Option<String>| cluster.index(&name.expect("a healthy cluster has one"));
        (of(status.master), of(status.raft_leader))
    };
    let (master, leader) = who(&cluster);
    if master != leader {
        return (cluster, master, leader);
    }
    let other = format!("n{}", (master + 1) % 3 + 1);
    cluster.ctl(&["promote", &other]).done();
    let (master, leader) = who(&cluster);
    assert_ne!(master, leader, "a promote does not move Raft's leader");
    (cluster, master, leader)
}

fn wait_for_generation_2(cluster: &Cluster) {
    cluster.wait_for("generation 2 on every node", 30, |cluster| {
        let status = cluster.try_status().ok()?;
        status.nodes.iter().all(|node| node.generation == 2).then_some(())
    });
}

/// Found from outside: the seal of the cancelled pack was taken for the next one's. An object that a client had linked
/// again in between, acknowledged, was gone on all nodes.
#[test]
fn a_late_seal_is_not_the_next_packs() {
    let (cluster, master, leader) = apart();
    let mut client = Client::connect(cluster.nodes[master].durus).expect("connect");
    let oids = client.new_oids(2).expect("oids");
    assert_eq!(oids[0], ROOT);
    let precious = oids[1];
    let mut store = |records: &[(u64, Vec<u8>)]| {
        assert_eq!(client.commit(records).expect("a commit"), Committed::Yes);
    };
    let root = |references: &[u64]| (ROOT, record(ROOT, b"root", references));
    store(&[root(&[precious]), (precious, record(precious, b"precious", &[]))]);
    store(&[root(&[])]);

    cluster.lines().stall(master, leader);
    cluster.ctl_on(leader, &["pack"]).done();
    sleep(MARKED);
    cluster.ctl_on(leader, &["pack", "--cancel"]).done();
    sleep(HEARD);
    // The pack is no more, and its client still holds what was garbage.
    store(&[root(&[precious])]);
    cluster.ctl_on(leader, &["pack"]).done();
    sleep(HEARD);
    cluster.lines().resume(master, leader);

    wait_for_generation_2(&cluster);
    for node in &cluster.nodes {
        let mut client = Client::connect(node.durus).expect("connect");
        let loaded = client.load(precious).expect("a load");
        let wanted = record(precious, b"precious", &[]);
        assert_eq!(loaded, Loaded::Record(wanted), "what the root refers to, on {}", node.name);
    }
    cluster.finish();
}

/// A cancel that a node took while one pack was in progress, and that came to the leader during the next.
#[test]
fn a_late_cancel_is_refused_and_says_why() {
    let (cluster, master, leader) = apart();
    // Without a root there is nothing to pack.
    let mut client = Client::connect(cluster.nodes[master].durus).expect("connect");
    assert_eq!(client.new_oids(1).expect("an oid"), [ROOT]);
    let stored = client.commit(&[(ROOT, record(ROOT, b"root", &[]))]);
    assert_eq!(stored.expect("a commit"), Committed::Yes);
    cluster.lines().stall(master, leader);
    cluster.ctl_on(leader, &["pack"]).done();
    sleep(HEARD);
    let late = scope(|scope| {
        let late = scope.spawn(|| cluster.ctl_on(master, &["pack", "--cancel"]));
        sleep(HEARD);
        cluster.ctl_on(leader, &["pack", "--cancel"]).done();
        cluster.ctl_on(leader, &["pack"]).done();
        cluster.lines().resume(master, leader);
        late.join().expect("ctl runs")
    });
    assert_eq!(late.code, Some(1), "{late:?}");
    let why = format!("{}{}", late.stdout, late.stderr);
    assert!(why.contains("was to be cancelled, and by now it is pack"), "{why}");
    assert!(why.contains("packmaster ctl history"), "it says what to do: {why}");
    wait_for_generation_2(&cluster);
    cluster.finish();
}
