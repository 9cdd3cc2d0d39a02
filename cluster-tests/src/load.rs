//! Stock clients that write without a pause while a test does something to their cluster, and the reckoning
//! afterwards: every word they were given is compared with what every node has.

use std::path::{Path, PathBuf};

use crate::chaincheck::{assert_same_bytes, check_file};
use crate::clock::monotonic;
use crate::cluster::Cluster;
use crate::journal::{Entry, Told, acknowledged_since, longest_gap, read};
use crate::python::{self, Workload};

/// Clients that write through every node until they are told to stop.
pub struct Load {
    workload: Workload,
    journal: PathBuf,
}

impl Load {
    /// One client for each node, moving on to the next node when its own goes away, unless it must `stay`.
    pub fn start(cluster: &Cluster, stay: bool) -> Load {
        let journal = cluster.dir().join("journal");
        let ports = cluster.durus_ports(&cluster.running());
        let folder = journal.to_str().expect("a plain path");
        let mut args = vec!["--ports", &ports, "--clients", "3", "--journal", folder];
        if stay {
            args.push("--stay");
        }
        let load = Load { workload: Workload::start("writer.py", &args), journal };
        cluster.wait_for("the first commits of every client", 20, |_| {
            let entries = load.told();
            let writes = |name| entries.iter().filter(|entry| entry.client == name).count() > 5;
            ["w0", "w1", "w2"].into_iter().all(writes).then_some(())
        });
        load
    }

    /// All that the clients were told so far.
    pub fn told(&self) -> Vec<Entry> {
        if self.journal.exists() { read(&self.journal) } else { Vec::new() }
    }

    /// Waits until the clients were acknowledged a good few commits after `since`: more than can have been on their way.
    #[track_caller]
    pub fn wait_for_commits(&self, cluster: &Cluster, since: f64) {
        let enough = || acknowledged_since(&self.told(), since).len() > 20;
        cluster.wait_for("commits to go on", 30, |_| enough().then_some(()));
    }

    /// Fails unless commits went on within `seconds` of `since`, which is measured by the answers the clients got.
    #[track_caller]
    pub fn expect_commits(&mut self, cluster: &Cluster, since: f64, seconds: f64) {
        self.workload.check_running();
        self.wait_for_commits(cluster, since);
        let now = monotonic();
        let times = acknowledged_since(&self.told(), since);
        let (gap, end) = longest_gap(&times, since, now);
        println!("longest gap {:.0} ms, until {:.0} ms after", gap * 1e3, (end - since) * 1e3);
        assert!(gap < seconds, "no commit for {gap:.2} s");
    }

    /// How often this client was acknowledged something after `since`.
    pub fn acknowledged(&self, client: &str, since: f64) -> usize {
        let told = self.told();
        let told = told.iter().filter(|entry| entry.client == client && entry.at > since);
        told.filter(|entry| entry.told == Told::Acknowledged).count()
    }

    /// Stops the clients and checks every word they were given against what the cluster has.
    #[track_caller]
    pub fn finish(self, cluster: &Cluster) -> serde_json::Value {
        let said = self.workload.finish(60);
        println!("writers: {said}");
        assert_eq!(said["errors"], serde_json::json!([]), "clients met what they must not");
        cluster.wait_level();
        let journal = self.journal.to_str().expect("a plain path");
        for i in 0..cluster.nodes.len() {
            let port = cluster.durus_ports(&[i]);
            let found = python::run("verify.py", &["--port", &port, "--journal", journal], 120);
            assert_eq!(found["problems"], serde_json::json!([]), "through n{}: {found}", i + 1);
            assert_eq!(found["acknowledged"], said["acknowledged"], "journal and clients disagree");
        }
        check_files(cluster, journal);
        said
    }
}

/// Every node's file: the same bytes, a whole chain, and readable by stock Durus with nothing missing.
fn check_files(cluster: &Cluster, journal: &str) {
    let files: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.file()).collect();
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    assert_same_bytes(&paths);
    let checked = check_file(paths[0]);
    let status = cluster.wait_level();
    assert_eq!(checked.tip().seq, status.nodes[0].seq, "status and file disagree");
    let file = paths[0].to_str().expect("a plain path");
    let found = python::run("verify.py", &["--file", file, "--journal", journal], 120);
    assert_eq!(found["problems"], serde_json::json!([]), "read by stock Durus: {found}");
}
