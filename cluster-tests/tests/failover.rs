//! Clients write through every node of a real cluster while its processes are killed, stopped and started again:
//! whatever was acknowledged is there afterwards, exactly once, and every node ends with the same bytes.

use std::thread::sleep;
use std::time::Duration;

use cluster_tests::clock::monotonic;
use cluster_tests::cluster::Cluster;
use cluster_tests::load::Load;
use cluster_tests::status::Status;

/// After a node was killed, commits go on within this time. Usually it takes a twentieth of it.
const GO_ON_S: f64 = 2.0;
/// After the master was stopped, which takes longer to notice. The default settings aim at one second.
const GO_ON_SILENT_S: f64 = 5.0;
/// How long the clients write between two blows.
const BETWEEN: Duration = Duration::from_millis(400);

#[test]
fn twenty_kills() {
    let mut cluster = Cluster::start();
    let mut load = Load::start(&cluster, false);
    for round in 1..=20 {
        let master = cluster.master();
        // The master and a slave in turn; of the slaves now one, now the other.
        let slaves: Vec<usize> = (0..3).filter(|&i| i != master).collect();
        let victim = if round % 2 == 1 { master } else { slaves[round / 2 % 2] };
        let kind = if victim == master { "master" } else { "slave" };
        print!("round {round}: kill {kind} n{}: ", victim + 1);
        let since = monotonic();
        cluster.kill(victim);
        load.expect_commits(&cluster, since, GO_ON_S);
        sleep(BETWEEN);
        cluster.launch(victim);
        cluster.wait_healthy();
        sleep(BETWEEN);
    }
    load.finish(&cluster);
    cluster.finish();
}

#[test]
fn a_stopped_master_acknowledges_nothing() {
    let mut cluster = Cluster::start();
    let mut load = Load::start(&cluster, true);
    for round in 0..6 {
        let master = cluster.master();
        let epoch = cluster.wait_healthy().epoch;
        let stale = format!("w{master}");
        print!("round {round}: stop n{}: ", master + 1);
        cluster.stop(master);
        let since = monotonic();
        load.expect_commits(&cluster, since, GO_ON_SILENT_S);
        let elected = cluster.wait_for("a new master", 20, |cluster| {
            let status = cluster.try_status().ok()?;
            (status.epoch > epoch && status.master.is_some()).then_some(status)
        });
        assert_ne!(elected.master, Some(cluster.nodes[master].name.clone()));
        // Its client stays with it. One answer may have been on its way to it; there can be no second.
        assert!(load.acknowledged(&stale, since) <= 1, "a stopped process has answered");
        cluster.cont(master);
        let status = cluster.wait_healthy();
        // Nothing of the old epoch was added: verify.py and the chain's epochs tell at the end; here, that it follows.
        assert!(status.epoch >= elected.epoch, "the epoch went back: {status:?}");
        let name = &cluster.nodes[master].name;
        assert_eq!(status.node(name).epoch, status.epoch, "{name} has not promised the epoch");
        sleep(BETWEEN);
    }
    load.finish(&cluster);
    cluster.finish();
}

#[test]
fn promoted_under_load() {
    let cluster = Cluster::start();
    let mut load = Load::start(&cluster, true);
    for round in 0..6 {
        let master = cluster.master();
        let target = (master + 1) % 3;
        let name = cluster.nodes[target].name.clone();
        print!("round {round}: n{} to {name}: ", master + 1);
        let dry = cluster.ctl(&["promote", &name, "--dry-run"]).done();
        assert_eq!(cluster.master(), master, "a dry run moved it: {dry:?}");
        let since = monotonic();
        cluster.ctl(&["promote", &name, "--reason", "the test says so"]).done();
        load.expect_commits(&cluster, since, GO_ON_S);
        let status = cluster.wait_for("the promotion", 20, |cluster| {
            let moved = |status: &Status| status.master.as_ref() == Some(&name);
            cluster.try_status().ok().filter(|status| moved(status) && status.is_healthy())
        });
        assert_eq!(status.node(&cluster.nodes[master].name).role, "slave");
        sleep(BETWEEN);
    }
    let said = load.finish(&cluster);
    for error in ["unknown", "conflicts", "read_conflicts", "refused", "reconnects"] {
        assert_eq!(said[error], 0, "a client noticed a promotion ({error}): {said}");
    }
    cluster.finish();
}

#[test]
fn all_killed_at_once() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, false);
    let mut before = cluster.wait_healthy();
    for round in 0..3 {
        for i in 0..3 {
            cluster.kill(i);
        }
        for i in 0..3 {
            cluster.launch(i);
        }
        let since = monotonic();
        let status = cluster.wait_healthy();
        assert!(status.epoch > before.epoch, "round {round}: no new epoch after a restart");
        before = status;
        load.wait_for_commits(&cluster, since);
    }
    load.finish(&cluster);
    cluster.finish();
}

#[test]
fn one_node_alone_waits_and_goes_on() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, true);
    let master = cluster.master();
    for i in (0..3).filter(|&i| i != master) {
        cluster.kill(i);
    }
    // What was acknowledged by then had a majority; from now on nobody has one.
    let alone = monotonic();
    sleep(Duration::from_secs(2));
    // One commit may have reached a slave and its answer been on its way; the next one can't have.
    let late = load.acknowledged(&format!("w{master}"), alone);
    assert!(late <= 1, "{late} commits were acknowledged without a majority");
    for i in (0..3).filter(|&i| i != master) {
        cluster.launch(i);
    }
    cluster.wait_healthy();
    let since = monotonic();
    load.wait_for_commits(&cluster, since);
    load.finish(&cluster);
    cluster.finish();
}

/// A disk changes one bit in the middle of a slave's file. The node uses what is proved, keeps the rest aside, counts
/// for nothing until it has everything again, and ends with the same bytes as the others.
#[test]
fn a_damaged_file_is_repaired_from_the_others() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, true);
    sleep(Duration::from_secs(1));
    let master = cluster.master();
    let victim = (master + 1) % 3;
    cluster.kill(victim);
    let file = cluster.nodes[victim].file();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, &bytes).unwrap();
    cluster.launch(victim);
    cluster.wait_for("the damaged node to count again", 20, |cluster| {
        cluster.nodes[victim].log_text().contains("recovered: this node votes").then_some(())
    });
    cluster.wait_healthy();
    let log = cluster.nodes[victim].log_text();
    assert!(log.contains("the file is damaged"), "it did not notice: {log}");
    let data = file.parent().unwrap();
    let orphans = std::fs::read_dir(data.join("orphans")).unwrap().count();
    assert_eq!(orphans, 1, "what was damaged is kept");
    assert!(!data.join("recovering").exists());
    load.finish(&cluster);
    cluster.finish();
}
