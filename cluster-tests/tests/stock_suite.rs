//! Stock Durus's own tests, as far as they have a client in them, against a node of a cluster: once through the
//! master, once through a slave. And its stress test.

use std::collections::BTreeSet;
use std::path::Path;

use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::python;

/// How the checks of one of stock's test classes are run.
enum How {
    /// Each on a database that nobody has used.
    Fresh,
    /// One after the other on the same database.
    Shared,
    /// Not at all, and why not.
    Left(&'static str),
}

use How::{Fresh, Left, Shared};

const IN_MEMORY: &str = "has neither storage nor server in it";
const OWN_FILES: &str = "tests stock's own reading and writing of files";

/// Every test class of the source distribution; `nothing_is_left_out` compares.
const PLAN: &[(&str, &str, How)] = &[
    ("utest_btree", "CoverageTest", Left(IN_MEMORY)),
    ("utest_btree", "DurusTest", Fresh),
    ("utest_btree", "SlowTest", Left(IN_MEMORY)),
    ("utest_client_storage", "ClientTest", Fresh),
    ("utest_client_storage", "UnixDomainSocketTest", Left("ClientTest again; nodes listen on TCP")),
    ("utest_connection", "TestConnection", Left("TestConnectionClientStorage has all its checks")),
    ("utest_connection", "TestConnectionClientStorage", Fresh),
    ("utest_connection", "TestObjectDictionary", Left(IN_MEMORY)),
    ("utest_file", "FileTest", Left(OWN_FILES)),
    ("utest_file_storage", "FileStorageTest", Left(OWN_FILES)),
    ("utest_file_storage", "ShelfStorageTest", Left(OWN_FILES)),
    ("utest_persistent", "TestPersistent", Shared),
    ("utest_persistent", "TestPersistentObject", Left(IN_MEMORY)),
    ("utest_persistent", "TestSlottedPersistentObject", Left(IN_MEMORY)),
    ("utest_persistent", "TestSlottedPersistentObjectWithDict", Left(IN_MEMORY)),
    ("utest_persistent_dict", "PersistentDictTest", Shared),
    ("utest_persistent_list", "PersistentListTest", Shared),
    ("utest_persistent_set", "SetTest", Left(IN_MEMORY)),
    ("utest_serialize", "Test", Left(IN_MEMORY)),
    ("utest_shelf", "ShelfTest", Left(OWN_FILES)),
    ("utest_storage", "Test", Fresh),
    ("utest_storage_server", "Test", Left("starts a stock server in its own process")),
    ("utest_utils", "BitArrayTest", Left(IN_MEMORY)),
    ("utest_utils", "ByteArrayTest", Left(IN_MEMORY)),
    ("utest_utils", "ByteTest", Left(IN_MEMORY)),
    ("utest_utils", "IntArrayTest", Left(IN_MEMORY)),
    ("utest_utils", "IntSetTest", Left(IN_MEMORY)),
    ("utest_utils", "UtilTest", Left(IN_MEMORY)),
    ("utest_utils", "WordArrayTest", Left(IN_MEMORY)),
];

/// Loops of stress.py; each commits up to 128 objects.
const STRESS_LOOPS: &str = "30";

/// Which node the checks talk to.
#[derive(Clone, Copy)]
enum Through {
    Master,
    Slave,
}

impl Through {
    fn port(self, cluster: &Cluster) -> String {
        let master = cluster.master();
        let node = match self {
            Through::Master => master,
            Through::Slave => (master + 1) % cluster.nodes.len(),
        };
        cluster.durus_ports(&[node])
    }
}

#[test]
fn nothing_is_left_out() {
    let listed = python::run("stock_suite.py", &["list"], 60);
    let mut theirs = BTreeSet::new();
    for (module, classes) in listed.as_object().expect("modules") {
        let classes = classes.as_object().expect("classes");
        theirs.extend(classes.keys().map(|class| (module.as_str(), class.as_str())));
    }
    let ours: BTreeSet<_> = PLAN.iter().map(|(module, class, _)| (*module, *class)).collect();
    assert_eq!(ours, theirs);
    for (module, class, how) in PLAN {
        if let Left(why) = how {
            println!("not run: {module}.{class}: {why}");
        }
    }
}

#[test]
fn through_the_master() {
    suite(Through::Master);
}

#[test]
fn through_a_slave() {
    suite(Through::Slave);
}

#[test]
fn stress() {
    let cluster = Cluster::start();
    for through in [Through::Master, Through::Slave] {
        let port = through.port(&cluster);
        python::run("stock_suite.py", &["stress", &port, STRESS_LOOPS], 120);
    }
    // Two at once change the same objects: each verifies what it reads, conflicts are its to live with.
    let ports = [Through::Master.port(&cluster), Through::Slave.port(&cluster)];
    let both = ports
        .each_ref()
        .map(|port| python::Workload::start("stock_suite.py", &["stress", port, STRESS_LOOPS]));
    for workload in both {
        workload.finish(120);
    }
    cluster.wait_level();
    let files: Vec<_> = cluster.nodes.iter().map(|node| node.file()).collect();
    let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    cluster_tests::chaincheck::assert_same_bytes(&files);
    cluster_tests::chaincheck::check_file(files[0]);
    cluster.finish();
}

fn suite(through: Through) {
    let listed = python::run("stock_suite.py", &["list"], 60);
    let shared = Cluster::start();
    let mut failures = Vec::new();
    let mut count = 0;
    for (module, class, how) in PLAN {
        let checks = listed[module][class].as_array().expect("checks");
        for check in checks.iter().map(|check| check.as_str().expect("a name")) {
            let failure = match how {
                Left(_) => continue,
                Shared => run(&shared, through, module, class, check),
                Fresh => run(&Builder::default().start(), through, module, class, check),
            };
            count += 1;
            failures.extend(failure.map(|why| format!("{module}.{class}.{check}:\n{why}")));
        }
    }
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 40, "only {count} checks were run");
    shared.finish();
}

/// What went wrong with one check, if anything did.
fn run(
    cluster: &Cluster,
    through: Through,
    module: &str,
    class: &str,
    check: &str,
) -> Option<String> {
    let port = through.port(cluster);
    let result = python::run("stock_suite.py", &["run", module, class, check, &port], 60);
    result["failure"].as_str().map(str::to_string)
}
