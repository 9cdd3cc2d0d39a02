//! Stock Python clients that read and write the same objects, at all nodes at once.

use std::time::Duration;

use cluster_tests::chaincheck;
use cluster_tests::cluster::Cluster;
use cluster_tests::python::Workload;

const SECONDS: &str = "8";

/// Each counts what it was acknowledged; in the end the counters have counted just that (`contend.py` compares).
#[test]
fn no_update_is_lost_among_clients_in_contention_while_masters_change() {
    let cluster = Cluster::start();
    let first = cluster.master();
    let ports = cluster.durus_ports(&[0, 1, 2]);
    let args = ["--ports", &ports, "--workload", "hot", "--seconds", SECONDS, "--objects", "16"];
    let mut clients = Workload::start("contend.py", &args);
    for nth in 1..=4 {
        std::thread::sleep(Duration::from_millis(1200));
        let heir = cluster.nodes[(first + nth) % 3].name.clone();
        cluster.ctl(&["promote", &heir]).done();
        clients.check_running();
    }
    let said = clients.finish(60);
    let count = |key: &str| said[key].as_u64().expect("a count");
    println!("{said}");
    // All of them got on, and they did meet.
    assert!(count("least") > 20, "{said}");
    assert!(count("told") + count("read") + count("refused") > 50, "{said}");
    cluster.wait_level();
    let files: Vec<_> = cluster.nodes.iter().map(|node| node.file()).collect();
    let files: Vec<_> = files.iter().map(|file| file.as_path()).collect();
    chaincheck::assert_same_bytes(&files);
    chaincheck::check_file(files[0]);
    cluster.finish();
}
