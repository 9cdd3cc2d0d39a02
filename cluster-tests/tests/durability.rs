//! The setting of durability, with real processes: `all` waits for everybody and says for whom, `local` waits for nobody,
//! and what it loses is counted, named and kept.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cluster_tests::client::{Client, Committed, Loaded, record};
use cluster_tests::cluster::Cluster;

/// A commit that is not acknowledged by then waits.
const WAITS: Duration = Duration::from_millis(1500);
/// One that waits for nobody is acknowledged long before.
const SOON: Duration = Duration::from_secs(10);

/// Commits in a thread of its own; says so when it is acknowledged.
fn commit_aside(mut client: Client, oid: u64, data: &'static [u8]) -> Receiver<Client> {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let committed = client.commit(&[(oid, record(oid, data, &[]))]);
        assert!(matches!(committed, Ok(Committed::Yes)), "the commit of {oid}");
        _ = said.send(client);
    });
    heard
}

/// A client of this node that has made an object.
fn client_with_root(cluster: &Cluster, node: usize) -> Client {
    let mut client = Client::connect(cluster.nodes[node].durus).unwrap();
    client.sync().unwrap();
    if let Loaded::NoSuchObject = client.load(0).unwrap() {
        client.new_oids(1).unwrap();
        client.commit(&[(0, record(0, b"first", &[]))]).unwrap();
    }
    client
}

fn set_durability(cluster: &Cluster, value: &str) {
    cluster.ctl(&["config", "set", "durability", value]).done();
    cluster.wait_for("the setting", 10, |cluster| {
        (cluster.try_status().ok()?.durability == value).then_some(())
    });
}

#[test]
fn with_all_commits_wait_for_a_stopped_slave_and_others_read() {
    let mut cluster = Cluster::start();
    let master = cluster.wait_healthy().master.expect("a master");
    let master = cluster.index(&master);
    let (stopped, slave) = ((master + 1) % 3, (master + 2) % 3);
    let client = client_with_root(&cluster, master);
    set_durability(&cluster, "all");
    let client = commit_aside(client, 0, b"all there").recv_timeout(SOON).expect("all are there");

    cluster.stop(stopped);
    let waits = commit_aside(client, 0, b"waits");
    assert_eq!(waits.recv_timeout(WAITS).err(), Some(RecvTimeoutError::Timeout));
    // A client of the other slave whose commit is seen there, and not acknowledged either.
    let mut reader = Client::connect(cluster.nodes[slave].durus).unwrap();
    reader.sync().unwrap();
    assert!(matches!(reader.load(0).unwrap(), Loaded::Record(_)), "others read");
    let name = cluster.nodes[stopped].name.clone();
    let status = cluster.wait_for("status to say it", 10, |cluster| {
        let status = cluster.try_status().ok()?;
        status.summary.contains(&format!("Commits wait for {name}")).then_some(status)
    });
    assert!(status.summary.contains("durability is all"), "{}", status.summary);
    let typed = "packmaster ctl config set durability majority";
    assert!(status.next.iter().any(|next| next.starts_with(typed)), "{:?}", status.next);

    cluster.cont(stopped);
    let client = waits.recv_timeout(SOON).expect("it goes on");
    // Or the setting goes back: what waits is released at once.
    cluster.stop(stopped);
    let waits = commit_aside(client, 0, b"released");
    assert_eq!(waits.recv_timeout(WAITS).err(), Some(RecvTimeoutError::Timeout));
    set_durability(&cluster, "majority");
    waits.recv_timeout(SOON).expect("released");
    cluster.cont(stopped);
    cluster.wait_level();
    cluster.finish();
}

#[test]
fn what_local_loses_is_counted_named_and_kept() {
    let mut cluster = Cluster::start();
    let master = cluster.wait_healthy().master.expect("a master");
    let master = cluster.index(&master);
    let slaves = [(master + 1) % 3, (master + 2) % 3];
    let mut client = client_with_root(&cluster, master);
    set_durability(&cluster, "local");
    client.commit(&[(0, record(0, b"everywhere", &[]))]).unwrap();
    cluster.wait_level();

    // Not stopped: what is in a stopped process's sockets it would still take in.
    slaves.iter().for_each(|slave| cluster.kill(*slave));
    for data in [&b"alone 1"[..], b"alone 2", b"alone 3"] {
        let committed = client.commit(&[(0, record(0, data, &[]))]);
        assert!(matches!(committed, Ok(Committed::Yes)), "acknowledged by the master alone");
    }
    assert!(matches!(client.load(0).unwrap(), Loaded::Record(_)));
    let told = cluster.ctl(&["status"]).json();
    assert_eq!(told["durability_now"]["only_on_master"], 3, "{told:#}");
    cluster.kill(master);
    slaves.iter().for_each(|slave| cluster.launch(*slave));
    assert!(client.sync().is_err(), "its node is gone");

    let new = cluster.master();
    let mut reader = Client::connect(cluster.nodes[new].durus).unwrap();
    reader.sync().unwrap();
    let Loaded::Record(found) = reader.load(0).unwrap() else { panic!("no root") };
    assert!(found.windows(10).any(|bytes| bytes == b"everywhere"), "{found:?}");
    reader.commit(&[(0, record(0, b"afterwards", &[]))]).unwrap();

    cluster.launch(master);
    let told = cluster.wait_for("the loss in status", 30, |cluster| {
        let told = cluster.ctl(&["status"]).json();
        (told["durability_now"]["lost_transactions"] == 3).then_some(told)
    });
    let lost = &told["durability_now"]["losses"][0];
    assert_eq!(lost["node"], cluster.nodes[master].name.as_str());
    assert_eq!(lost["transactions"], 3);
    let kept = cluster.nodes[master].data.join(lost["kept"].as_str().unwrap());
    let kept = std::fs::read(kept).expect("the file that status names");
    assert!(kept.windows(7).any(|bytes| bytes == b"alone 3"), "it has what was lost");
    assert!(told["summary"].as_str().unwrap().contains("LOST"), "{told:#}");
    let history = cluster.ctl(&["history"]).json();
    let decisions = history["decisions"].as_array().unwrap();
    assert!(decisions.iter().any(|decision| decision["what"] == "transactions lost"));
    // Once, also when the node is started again.
    cluster.terminate(master);
    cluster.launch(master);
    cluster.wait_level();
    let told = cluster.ctl(&["status"]).json();
    assert_eq!(told["durability_now"]["lost_transactions"], 3);
    cluster.finish();
}
