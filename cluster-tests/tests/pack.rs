//! A pack of a real cluster: one new generation on every node, with the bytes stock Durus's own packer writes.

use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::chaincheck::{Kind, assert_same_bytes, check_file};
use cluster_tests::clock::monotonic;
use cluster_tests::cluster::Cluster;
use cluster_tests::load::Load;
use cluster_tests::python;
use cluster_tests::status::Status;
use serde_json::Value;

/// Files of some 14 MB, of which a pack keeps 1 MB.
const GARBAGE: &[&str] = &["--objects", "50", "--size", "20000", "--rounds", "9"];
/// How long a pack of that may take on a busy machine.
const PACK_S: u64 = 60;

fn garbage(cluster: &Cluster, node: usize, args: &[&str]) -> Value {
    let port = cluster.durus_ports(&[node]);
    python::run("garbage.py", &[&["--port", port.as_str()], args].concat(), 120)
}

/// What root reaches, with every record's hash, as this node serves it.
fn dump(cluster: &Cluster, node: usize) -> Value {
    python::run("dump.py", &["--port", &cluster.durus_ports(&[node])], 60)
}

fn generation(status: &Status) -> u64 {
    status.generation.as_ref().map_or(0, |generation| generation.number)
}

/// Waits until every node has this generation and all are at the same end.
#[track_caller]
fn wait_generation(cluster: &Cluster, number: u64) -> Status {
    cluster.wait_for("the new generation on every node", PACK_S, |cluster| {
        let status = cluster.try_status().ok()?;
        let flipped = status.nodes.iter().all(|node| node.generation == number);
        (flipped && generation(&status) == number && status.is_healthy() && status.is_level())
            .then_some(status)
    })
}

#[track_caller]
fn assert_files_same(cluster: &Cluster) {
    let files: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.file()).collect();
    assert_same_bytes(&files.iter().map(PathBuf::as_path).collect::<Vec<&Path>>());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn one_new_generation_as_stock_would_pack_it() {
    let cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let before = dump(&cluster, 1);
    assert_eq!(generation(&cluster.wait_level()), 1);
    let old = check_file(&cluster.nodes[0].file());
    let copy = cluster.dir().join("before.durus");
    fs::copy(cluster.nodes[0].file(), &copy).expect("copy the file");

    cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
    let status = wait_generation(&cluster, 2);
    assert_files_same(&cluster);

    let file = cluster.nodes[0].file();
    let new = check_file(&file);
    let tip = old.tip();
    let cut = Kind::Seal { generation: 2, cut: tip.seq, previous_chain: tip.chain };
    assert_eq!(new.seal().kind, cut, "nobody wrote: the cut is where the file ended");
    assert_eq!((new.seal().seq, new.seal().epoch), (tip.seq, tip.epoch));
    let told = status.generation.expect("a generation");
    assert_eq!((told.base_hash, told.cut_seq), (hex(&new.seal().chain), tip.seq));

    let packed = fs::read(&file).expect("read the packed file");
    let was = fs::metadata(&copy).expect("look at the copy").len();
    assert!((packed.len() as u64) < was / 4, "{was} bytes became {}", packed.len());
    let path = copy.to_str().expect("a plain path");
    python::run("stock_pack.py", &[path], 60);
    let stock = fs::read(&copy).expect("read what stock packed");
    assert_eq!(new.seal().start, stock.len(), "the base is as long as stock's");
    assert!(packed.starts_with(&stock), "the base has other bytes than stock's");

    for i in 0..3 {
        assert_eq!(garbage(&cluster, i, &["--check"]), made, "objects through n{}", i + 1);
        assert_eq!(dump(&cluster, i), before, "records through n{}", i + 1);
        assert_eq!(status.nodes[i].fetched_bytes, 0, "n{} has copied", i + 1);
    }
    // Life goes on in the new generation, for stock Durus too.
    garbage(&cluster, 2, &["--rounds", "1", "--objects", "50", "--size", "100"]);
    cluster.wait_level();
    assert_files_same(&cluster);
    let name = file.to_str().expect("a plain path");
    let all = python::run("dump.py", &["--file", name, "--all"], 60);
    assert!(all["count"].as_u64() > Some(50), "stock reads the file: {}", all["count"]);
    cluster.finish();
}

#[test]
fn packed_while_clients_write() {
    let cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let load = Load::start(&cluster, true);
    for number in 2..4 {
        cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
        cluster.wait_for("the new generation", PACK_S, |cluster| {
            let status = cluster.try_status().ok()?;
            (generation(&status) == number && status.is_healthy()).then_some(())
        });
        load.wait_for_commits(&cluster, monotonic());
    }
    let said = load.finish(&cluster);
    for error in ["unknown", "refused", "reconnects"] {
        assert_eq!(said[error], 0, "a client lost its connection ({error}): {said}");
    }
    wait_generation(&cluster, 3);
    assert_eq!(garbage(&cluster, 1, &["--check"]), made);
    cluster.finish();
}

/// The master has not built: a slave that has becomes master of the new generation, no client loses its connection, and the
/// old master builds its own afterwards.
#[test]
fn the_master_hands_over_and_builds_afterwards() {
    let cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let load = Load::start(&cluster, true);
    cluster.ctl(&["config", "set", "pack.master", "hand_over"]).done();
    for number in 2..4 {
        let before = cluster.master();
        cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
        let status = cluster.wait_for("the new generation on every node", PACK_S, |cluster| {
            let status = cluster.try_status().ok()?;
            let flipped = status.nodes.iter().all(|node| node.generation == number);
            (flipped && status.is_healthy()).then_some(status)
        });
        let old = cluster.nodes[before].name.clone();
        assert_ne!(status.master.as_ref(), Some(&old), "generation {number}: {status:?}");
        let rebase = status.node(&old).rebase.as_deref().expect("it has rebased");
        assert!(
            rebase.ends_with("locally, 0 bytes fetched"),
            "generation {number}: {old} {rebase}"
        );
        assert_eq!(status.node(&old).fetched_bytes, 0, "{old} has copied");
        load.wait_for_commits(&cluster, monotonic());
    }
    let said = load.finish(&cluster);
    for error in ["unknown", "refused", "reconnects"] {
        assert_eq!(said[error], 0, "a client lost its connection ({error}): {said}");
    }
    wait_generation(&cluster, 3);
    assert_files_same(&cluster);
    assert_eq!(garbage(&cluster, 1, &["--check"]), made);
    cluster.finish();
}

#[test]
fn a_node_that_was_down_rebases_without_copying() {
    let mut cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let mut before = cluster.wait_level();
    // First with nothing missed before the cut, then with something.
    for (number, missed) in [(2, false), (3, true)] {
        let late = (cluster.master() + 1) % 3;
        let at_work = (late + 1) % 3;
        let name = cluster.nodes[late].name.clone();
        cluster.kill(late);
        if missed {
            load_some(&cluster, at_work);
        }
        let file_bytes = fs::metadata(cluster.nodes[late].file()).expect("its file").len();
        cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
        cluster.wait_for("the new generation without it", PACK_S, |cluster| {
            (generation(&cluster.try_status().ok()?) == number).then_some(())
        });
        load_some(&cluster, at_work);
        cluster.launch(late);
        let status = wait_generation(&cluster, number);
        let node = status.node(&name);
        println!("{name}: {:?}, {} of {file_bytes} bytes fetched", node.rebase, node.fetched_bytes);
        assert!(node.rebase.is_some(), "status does not say how {name} has rebased");
        if missed {
            assert!(node.fetched_bytes > 0, "what it missed must have come from somewhere");
            assert!(node.fetched_bytes < file_bytes / 4, "{} bytes fetched", node.fetched_bytes);
        } else {
            assert_eq!(node.fetched_bytes, 0, "it had all that the base is made of");
        }
        assert_files_same(&cluster);
        assert_eq!(check_file(&cluster.nodes[late].file()).generation(), number);
        assert!(status.epoch > before.epoch, "a generation is switched by an election");
        before = status;
    }
    assert_eq!(garbage(&cluster, 0, &["--check"])["objects"], made["objects"]);
    cluster.finish();
}

/// A few small commits.
fn load_some(cluster: &Cluster, node: usize) {
    garbage(cluster, node, &["--rounds", "2", "--objects", "50", "--size", "200"]);
}

#[test]
fn a_pack_survives_the_masters_death() {
    let mut cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let load = Load::start(&cluster, false);
    for number in 2..5 {
        cluster.ctl(&["pack"]).done();
        let master = cluster.master();
        cluster.kill(master);
        load.wait_for_commits(&cluster, monotonic());
        cluster.launch(master);
        // Whatever the kill has hit, the pack is started again by itself until there is a new generation.
        cluster.wait_for("the new generation", PACK_S, |cluster| {
            let status = cluster.try_status().ok()?;
            (generation(&status) >= number && status.is_healthy()).then_some(())
        });
    }
    load.finish(&cluster);
    assert_eq!(garbage(&cluster, 1, &["--check"]), made);
    cluster.finish();
}

#[test]
fn a_client_may_ask_for_a_pack() {
    let cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    let slave = (cluster.master() + 1) % 3;
    let mut client =
        cluster_tests::client::Client::connect(cluster.nodes[slave].durus).expect("connect");
    client.send(b"P").expect("ask for a pack");
    assert_eq!(client.receive::<1>().expect("an answer"), *b"O");
    wait_generation(&cluster, 2);
    assert_files_same(&cluster);
    let removed = client.sync().expect("sync");
    assert!(removed.len() >= 400, "{} removed objects were announced", removed.len());
    assert_eq!(garbage(&cluster, slave, &["--check"]), made);
    cluster.finish();
}

/// The settings say so, and nobody types anything. What clients unlink shows in no record; how much of it there is
/// likely to be, the first pack has learnt.
#[test]
fn a_pack_begins_by_itself_when_there_is_enough_garbage() {
    let cluster = Cluster::start();
    cluster.ctl(&["config", "set", "pack.min_distance", "0s"]).done();
    cluster.ctl(&["config", "set", "pack.garbage_share", "50"]).done();
    garbage(&cluster, 0, GARBAGE);
    cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
    wait_generation(&cluster, 2);
    let made = garbage(&cluster, 0, GARBAGE);
    cluster.wait_for("a generation that nobody has asked for", PACK_S, |cluster| {
        (generation(&cluster.try_status().ok()?) > 2).then_some(())
    });
    // With no distance between them there may be several.
    cluster.ctl(&["config", "set", "pack.garbage_share", "default"]).done();
    let history = cluster.ctl(&["history"]).json();
    let decisions = history["decisions"].as_array().expect("decisions");
    let mut starts = decisions.iter().filter(|told| told["what"] == "pack start");
    let start = starts.nth(1).expect("it has begun");
    let asked_by = start["asked_by"].as_str().expect("a text");
    assert!(asked_by.starts_with("automatic, garbage share "), "{asked_by}");
    assert!(asked_by.ends_with(" % >= 50 %"), "{asked_by}");
    assert_eq!(garbage(&cluster, 1, &["--check"]), made);
    let refused = cluster.ctl(&["config", "set", "pack.garbage_share", "lots"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("a number from 0 to 99"), "{refused:?}");
    cluster.finish();
}

fn files(cluster: &Cluster, begin: &str) -> Vec<String> {
    let mut found = Vec::new();
    for node in &cluster.nodes {
        for entry in fs::read_dir(&node.data).expect("a data directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(begin) {
                found.push(format!("{}/{name}", node.name));
            }
        }
    }
    found
}

/// In the middle of a build that would take minutes.
#[test]
fn a_pack_that_is_called_off_leaves_nothing() {
    let cluster = Cluster::start();
    let made = garbage(&cluster, 0, GARBAGE);
    cluster.ctl(&["config", "set", "pack.rate", "3MB"]).done();
    cluster.ctl(&["pack"]).done();
    cluster.wait_for("a base that is being written", 60, |cluster| {
        let pack = cluster.try_status().ok()?.pack?;
        let nodes = pack["nodes"].as_array()?;
        let at_work = nodes.iter().find(|node| node["phase"] == "build")?;
        // The rate is kept, but for the first step and the last.
        let (done, rate) = (at_work["done_bytes"].as_u64()?, at_work["bytes_per_s"].as_u64()?);
        assert!(done < 9_000_000 || rate <= 4_000_000, "{rate} bytes a second");
        (!files(cluster, "building").is_empty() && at_work["seconds_left"].is_f64()).then_some(())
    });
    cluster.ctl(&["pack", "--cancel"]).done();
    cluster.wait_for("the directories to be clean", 15, |cluster| {
        let left = [files(cluster, "building"), files(cluster, "g00000002")].concat();
        (left.is_empty() && cluster.try_status().ok()?.pack.is_none()).then_some(())
    });
    assert_eq!(generation(&cluster.wait_healthy()), 1);
    cluster.ctl(&["config", "set", "pack.rate", "default"]).done();
    cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
    wait_generation(&cluster, 2);
    assert_eq!(garbage(&cluster, 2, &["--check"]), made);
    cluster.finish();
}

/// Old files go when the settings let them and every member has moved on; who has not is named.
#[test]
fn old_generations_are_kept_for_a_member_that_is_away() {
    let mut cluster = Cluster::start();
    garbage(&cluster, 0, GARBAGE);
    let away = (cluster.master() + 1) % 3;
    let name = cluster.nodes[away].name.clone();
    let at_work = (away + 1) % 3;
    cluster.kill(away);
    for number in 2..5 {
        load_some(&cluster, at_work);
        cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
        cluster.wait_for("the new generation without it", PACK_S, |cluster| {
            (generation(&cluster.try_status().ok()?) == number).then_some(())
        });
    }
    let held = cluster.wait_for("what is kept to be told", 20, |cluster| {
        let status = cluster.ctl(&["status"]).json();
        (status["held_back"]["generations"] == 2).then(|| status["held_back"].clone())
    });
    assert_eq!(held["by"], serde_json::json!([name]), "{held}");
    let told = cluster.ctl(&["generations"]).json();
    let of = |i: usize| told["nodes"][i]["generations"].as_array().expect("a list").clone();
    let why: Vec<Value> = of(at_work).iter().map(|kept| kept["why"].clone()).collect();
    let needed = format!("needed by {name}");
    assert_eq!(why, [needed.as_str(), needed.as_str(), needed.as_str(), "current"], "{told}");
    // It comes back, and finds what it needs.
    cluster.launch(away);
    wait_generation(&cluster, 4);
    cluster.wait_for("the old generations to be removed", 20, |cluster| {
        let old = [files(cluster, "g00000001"), files(cluster, "g00000002")].concat();
        old.is_empty().then_some(())
    });
    assert_eq!(files(&cluster, "g00000003").len(), 3, "one is kept; the late one came by it, too");
    cluster.finish();
}
