//! Stock Durus's own tests, as far as they have a client in them, against a node of a cluster: once through the
//! master, once through a slave, once against a node alone, once at a slave while the master is killed. And its stress test,
//! also while masters are killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::python;

/// How the checks of one of stock's test classes are run.
enum How {
    /// Each on a database that nobody has used.
    Fresh,
    /// One after the other on the same database.
    Shared,
    /// Each on a database of its own, through a Unix socket that has a path, as stock has it.
    Unix,
    /// Not at all, and why not.
    Left(&'static str),
}

use How::{Fresh, Left, Shared, Unix};

const IN_MEMORY: &str = "has neither storage nor server in it";
const OWN_FILES: &str = "tests stock's own reading and writing of files";

/// Every test class of the source distribution; `nothing_is_left_out` compares.
const PLAN: &[(&str, &str, How)] = &[
    ("utest_btree", "CoverageTest", Left(IN_MEMORY)),
    ("utest_btree", "DurusTest", Fresh),
    ("utest_btree", "SlowTest", Left(IN_MEMORY)),
    ("utest_client_storage", "ClientTest", Fresh),
    ("utest_client_storage", "UnixDomainSocketTest", Unix),
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

/// The checks of stock's 177 that are run. Left out, with their reasons in `PLAN`: 90 that have neither storage nor server in
/// them, 18 that test its own files, 2 that start its server in their process, and 5 of a class whose checks another has
/// too.
const RUN: usize = 62;
const ALL: usize = 177;

/// Loops of stress.py; each commits up to 128 objects.
const STRESS_LOOPS: &str = "30";

/// Which node the checks talk to.
#[derive(Clone, Copy)]
enum Through {
    Master,
    Slave,
    Single,
}

impl Through {
    fn cluster(self) -> Builder {
        match self {
            Through::Master | Through::Slave => Builder::default(),
            Through::Single => Builder::default().nodes(1),
        }
    }

    fn port(self, cluster: &Cluster) -> String {
        let master = cluster.master();
        let node = match self {
            Through::Master | Through::Single => master,
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
    let checks = |module: &str, class: &str| listed[module][class].as_array().map_or(0, Vec::len);
    assert_eq!(theirs.iter().map(|(module, class)| checks(module, class)).sum::<usize>(), ALL);
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

/// Of several clients that come to an empty database at once, a stock Connection lets only one in.
fn make_graph(port: &str) {
    python::run("stock_suite.py", &["stress", port, "1"], 60);
}

/// In place of `durus -s --file`.
#[test]
fn through_a_single_node() {
    suite(Through::Single);
}

#[test]
fn stress_on_a_single_node() {
    let cluster = Through::Single.cluster().start();
    let port = cluster.durus_ports(&[0]);
    make_graph(&port);
    let both = [(); 2]
        .map(|()| python::Workload::start("stock_suite.py", &["stress", &port, STRESS_LOOPS]));
    for workload in both {
        workload.finish(60);
    }
    cluster_tests::chaincheck::check_file(&cluster.nodes[0].file());
    cluster.finish();
}

/// Two clients at nodes that stay, each of which is master from one kill to the next promote; killed is always the
/// third, while it is master.
#[test]
fn stress_while_masters_are_killed() {
    const KILLS: usize = 6;
    let mut cluster = Cluster::start();
    let victim = cluster.master();
    let others: Vec<usize> = (0..3).filter(|&i| i != victim).collect();
    make_graph(&cluster.durus_ports(&others[..1]));
    let mut clients: Vec<python::Workload> = others
        .iter()
        .map(|&i| {
            python::Workload::start(
                "stock_suite.py",
                &["stress", &cluster.durus_ports(&[i]), "until"],
            )
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..KILLS {
        let status = cluster.try_status().expect("a status");
        let (epoch, before) = (status.epoch, status.nodes[others[0]].committed_seq);
        cluster.kill(victim);
        // Until the others have agreed that it is gone (some ms), their status goes on to name the dead one.
        let master = cluster.wait_for("a new master", 20, |cluster| {
            let status = cluster.try_status().ok()?;
            status.master.filter(|_| status.epoch > epoch)
        });
        assert_ne!(master, cluster.nodes[victim].name);
        // The clients go on at once, one of them through the new master.
        cluster.wait_for("commits after a kill", 10, |cluster| {
            let now = cluster.try_status().ok()?.nodes[others[0]].committed_seq;
            (now > before + 3).then_some(())
        });
        cluster.launch(victim);
        cluster.wait_healthy();
        cluster.ctl(&["promote", &cluster.nodes[victim].name.clone()]).done();
        cluster.wait_for("the victim to be master again", 20, |cluster| {
            (cluster.try_status().ok()?.master == Some(cluster.nodes[victim].name.clone()))
                .then_some(())
        });
        clients.iter_mut().for_each(python::Workload::check_running);
    }
    for client in clients {
        let said = client.finish(30);
        assert_eq!(said["failure"], serde_json::Value::Null);
        assert!(said["loops"].as_u64() > Some(5), "{said}");
        println!("stress: {said}");
    }
    cluster.wait_level();
    let files: Vec<_> = cluster.nodes.iter().map(|node| node.file()).collect();
    let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    cluster_tests::chaincheck::assert_same_bytes(&files);
    cluster_tests::chaincheck::check_file(files[0]);
    cluster.finish();
}

/// With as many objects as stock has in it: the first commit is some 20 MB.
#[test]
fn stress_with_stocks_own_number_of_objects() {
    let cluster = Cluster::start();
    python::run("stock_suite.py", &["stress", &Through::Slave.port(&cluster), "5", "10000"], 120);
    let log_bytes = std::fs::metadata(cluster.nodes[0].file()).expect("a file").len();
    assert!(log_bytes > 4 << 20, "{log_bytes} bytes: a small graph");
    cluster.wait_level();
    cluster_tests::chaincheck::check_file(&cluster.nodes[0].file());
    cluster.finish();
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
    let shared = through.cluster().start();
    let mut failures = Vec::new();
    let mut count = 0;
    for (module, class, how) in PLAN {
        let checks = listed[module][class].as_array().expect("checks");
        for check in checks.iter().map(|check| check.as_str().expect("a name")) {
            let failure = match how {
                Left(_) => continue,
                Shared => run(&shared, through, module, class, check),
                Fresh => run(&through.cluster().start(), through, module, class, check),
                Unix => {
                    let dir = tempfile::tempdir().expect("make a directory");
                    let path = dir.path().join("durus_server");
                    let path = path.to_str().expect("a plain path");
                    let node = Builder::default().nodes(1).set(&format!("listen.durus={path}"));
                    run_at(path, node.start(), module, class, check)
                }
            };
            count += 1;
            failures.extend(failure.map(|why| format!("{module}.{class}.{check}:\n{why}")));
        }
    }
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(count, RUN);
    shared.finish();
}

/// Those of stock's checks in which a client stores something; not what waits for a pack's end, since an election calls a
/// pack off.
const WHILE_KILLED: &[(&str, &str, &str)] = &[
    ("utest_btree", "DurusTest", "a"),
    ("utest_client_storage", "ClientTest", "check_client_storage"),
    ("utest_client_storage", "ClientTest", "check_oid_reuse_with_invalidation"),
    ("utest_client_storage", "ClientTest", "check_write_conflict"),
    ("utest_connection", "TestConnectionClientStorage", "check_alternative_root"),
    ("utest_connection", "TestConnectionClientStorage", "check_conflict"),
    ("utest_connection", "TestConnectionClientStorage", "check_connection"),
    ("utest_connection", "TestConnectionClientStorage", "check_fine_conflict"),
    ("utest_connection", "TestConnectionClientStorage", "check_shrink"),
    ("utest_connection", "TestConnectionClientStorage", "check_storage_tools"),
    ("utest_connection", "TestConnectionClientStorage", "check_touch_every_reference"),
    (
        "utest_connection",
        "TestConnectionClientStorage",
        "no_conflict_from_invalid_removable_not_previously_accessed",
    ),
    ("utest_storage", "Test", "check_memory_storage"),
];

#[test]
fn through_a_slave_while_the_master_is_killed() {
    let mut failures = Vec::new();
    let mut among = 0;
    for (module, class, check) in WHILE_KILLED {
        let mut cluster = Cluster::start();
        let master = cluster.master();
        let slave = (master + 1) % cluster.nodes.len();
        let port = cluster.durus_ports(&[slave]);
        let arguments = ["run", module, class, check, &port, "slowly"];
        let running = python::Workload::start("stock_suite.py", &arguments);
        let committed = |cluster: &Cluster| {
            cluster.try_status().ok()?.nodes.get(slave).map(|node| node.committed_seq)
        };
        let empty = committed(&cluster);
        // Once it has made its root; the next request comes after a tenth of a second.
        let before = cluster.wait_for("its first commit", 20, |cluster| {
            committed(cluster).filter(|seq| Some(*seq) > empty)
        });
        cluster.kill(master);
        let result = running.finish(60);
        if let Some(why) = result["failure"].as_str() {
            failures.push(format!("{module}.{class}.{check}:\n{why}"));
        }
        cluster.launch(master);
        // An election's own transaction is one more.
        among += u32::from(cluster.wait_level().nodes[slave].committed_seq > before + 1);
        cluster.finish();
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    println!("the master was killed amid {among} of {} checks", WHILE_KILLED.len());
    assert!(among >= 6, "the master was killed amid {among} checks only");
}

/// The same at a Unix socket.
fn run_at(
    address: &str,
    cluster: Cluster,
    module: &str,
    class: &str,
    check: &str,
) -> Option<String> {
    let result = python::run("stock_suite.py", &["run", module, class, check, address], 60);
    cluster.finish();
    result["failure"].as_str().map(str::to_string)
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
