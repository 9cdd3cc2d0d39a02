//! Objects across a pack: dead ones, holes, invalidations, attempts to bring them back, oids that are used again. Each
//! case is played by stock clients against a stock `durus -s` and against a cluster, the clients spread over its nodes
//! (python/pack_objects.py); what they saw must be the same, or safer where a test says so and why.

use cluster_tests::cluster::Cluster;
use cluster_tests::ports::Ports;
use cluster_tests::{python, stock};
use serde_json::{Value, json};

const CASE_S: u64 = 100;

fn play(case: &str, ports: &str) -> Value {
    python::run("pack_objects.py", &[case, "--ports", ports], CASE_S)
}

/// What the clients of a stock server saw, and those of a cluster.
fn both(case: &str) -> (Value, Value) {
    let dir = tempfile::tempdir().expect("a directory for the stock server");
    let ports = Ports::reserve();
    let server = stock::Server::start(&dir.path().join("stock.durus"), ports.port(0));
    let theirs = play(case, &server.address.port().to_string());
    drop(server);
    let cluster = Cluster::start();
    let ours = play(case, &cluster.durus_ports(&[0, 1, 2]));
    cluster.wait_level();
    cluster.finish();
    println!("{case}\n  stock {theirs}\n  ours  {ours}");
    (theirs, ours)
}

#[track_caller]
fn same(case: &str) -> Value {
    let (theirs, ours) = both(case);
    assert_eq!(ours, theirs, "{case}: what clients of the cluster saw, and those of stock Durus");
    ours
}

#[test]
fn a_dead_object_loads_as_missing_and_its_ghost_as_a_conflict() {
    let saw = same("dead_object_loads");
    assert_eq!(saw["its storage loads it"], "DurusKeyError");
    assert_eq!(saw["the ghost is loaded"], "ReadConflictError");
    assert_eq!(saw["what was loaded before is a ghost"], true);
}

#[test]
fn every_client_is_told_once_of_all_that_is_gone() {
    let saw = same("invalidations");
    assert_eq!(saw["of all that is gone"], true);
    assert_eq!(saw["and not again"], true);
}

/// Safer. Stock Durus looks for what is gone among the holes of the new file's map, which ends at the highest oid that is
/// left: what is above it is never announced, and a client goes on with an object that is not there (stock defect D6).
#[test]
fn what_is_gone_above_the_highest_oid_is_told_too() {
    let (theirs, ours) = both("invalidations_above_the_highest");
    assert_eq!(theirs, json!({"told": [true, false]}));
    assert_eq!(ours, json!({"told": [true, true]}));
}

#[test]
fn holes_are_given_out_again_the_highest_first() {
    let saw = same("holes");
    assert_eq!(saw["given"], json!([true, true, true, true, true, true]));
    assert_eq!(saw["descending"], true);
}

/// Nobody is given an oid that somebody still takes for the old object; the same in both. Better: stock Durus throws away
/// every hole that it passes over meanwhile, until the next pack; here it is given out once all have been told.
#[test]
fn no_removed_oid_is_given_out_before_every_client_was_told() {
    let (theirs, ours) = both("no_reuse_before_told");
    assert_eq!(theirs, json!({"given out before": [], "given out after": false}));
    assert_eq!(ours, json!({"given out before": [], "given out after": true}));
}

#[test]
fn an_object_that_was_read_can_not_be_brought_back() {
    let saw = same("resurrection_of_a_read_object");
    assert_eq!(saw["commit"], "WriteConflictError");
    assert_eq!(saw["linked"], false);
}

/// What clients see when they link an object again that is gone, and the server lets them: a reference to nothing, which
/// nobody can ever read.
fn dangling() -> Value {
    json!({"commit": null, "linked": true, "another client reads it": "ReadConflictError"})
}

/// What they see when it does not.
fn refused() -> Value {
    let linked = "not linked";
    json!({"commit": "WriteConflictError", "linked": false, "another client reads it": linked})
}

/// Safer. The client is told with the answer to its C that the object is gone, and goes on, since it has not read it in
/// this transaction. Stock Durus takes the commit, and with it a reference to nothing. Here the master knows what the
/// pack has dropped and refuses the commit as a conflict; nothing is stored.
#[test]
fn an_object_that_was_only_held_can_not_be_brought_back() {
    let (theirs, ours) = both("resurrection_of_an_unread_object");
    assert_eq!(theirs, dangling());
    assert_eq!(ours, refused());
}

/// Safer, for the same reason: the client was told with an earlier sync, and has the ghost still.
#[test]
fn an_object_can_not_be_brought_back_by_who_was_told() {
    let (theirs, ours) = both("resurrection_after_being_told");
    assert_eq!(theirs, dangling());
    assert_eq!(ours, refused());
}

#[test]
fn a_change_of_a_dead_object_is_a_conflict() {
    let saw = same("change_of_a_dead_object");
    assert_eq!(saw["commit"], "WriteConflictError");
    assert_eq!(saw["it is gone"], "DurusKeyError");
}

/// The same in both, and nothing a server can help with: who was told that an object is gone and keeps its ghost reads
/// the new object under the old one's oid.
#[test]
fn an_oid_is_used_again_once_its_old_holders_were_told() {
    let saw = same("reused_oid");
    assert_eq!(saw["the new one is what it is"], "new");
}
