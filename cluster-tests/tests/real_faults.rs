//! Real processes under real faults, with stock Durus clients whose every word is judged.
//!
//! Each test starts a cluster of its own and clients all over it, and then kills, stops, cuts off, fills and slows down
//! its nodes at moments drawn from a seed, while packs go on. REAL_FAULTS_ROUNDS does everything so many times;
//! REAL_FAULTS_SEED draws other moments.

use std::time::{Duration, Instant};

use cluster_tests::cluster::Builder;
use cluster_tests::net::Net;
use cluster_tests::scene::{Place, Scene, aloud};

/// The switch's host on the outside is the one after the nodes'.
const OUTSIDE: usize = 3;

fn rounds() -> usize {
    std::env::var("REAL_FAULTS_ROUNDS").map_or(1, |text| text.parse().expect("a number"))
}

/// A client on each node's host that knows all nodes, one that stays with its node, one that packs.
fn everywhere() -> Vec<Place> {
    let at = |host: usize, nodes: &[usize], packs| Place { host, nodes: nodes.to_vec(), packs };
    vec![
        at(0, &[0, 1, 2], false),
        at(1, &[1, 2, 0], false),
        at(2, &[2, 0, 1], true),
        at(1, &[1], false),
    ]
}

/// In a network: clients that stay with their nodes' hosts, and two on the outside that go where they can.
fn in_a_network() -> Vec<Place> {
    let at = |host: usize, nodes: &[usize], packs| Place { host, nodes: nodes.to_vec(), packs };
    vec![
        at(0, &[0], false),
        at(1, &[1], false),
        at(2, &[2], false),
        at(OUTSIDE, &[0, 1, 2], false),
        at(OUTSIDE, &[2, 1, 0], true),
    ]
}

/// A cluster in a network of its own; None, and said aloud, where the machine does not let us have one.
fn network(name: &str, seed: u64) -> Option<Builder> {
    match Net::make(OUTSIDE + 1, seed) {
        Ok(net) => Some(Builder::default().network(net)),
        Err(why) => {
            aloud(&format!("SKIPPED: real faults: {name}: no network namespaces here: {why}"));
            None
        }
    }
}

#[test]
fn killed() {
    let mut scene = Scene::start("killed", Builder::default(), &everywhere(), 1);
    for _ in 0..rounds() {
        let (master, slaves) = scene.slaves();
        scene.pause(200, 800);
        scene.kill_and_start(master, 600);
        scene.pause(200, 800);
        let slave = slaves[scene.rng.index(2)];
        scene.kill_and_start(slave, 600);
        scene.pause(100, 500);
        let leader = scene.cluster.wait_healthy().raft_leader.expect("a healthy cluster has one");
        let leader = scene.cluster.index(&leader);
        scene.kill_and_start(leader, 1);
        scene.pause(100, 500);
        // In the middle of a pack, perhaps.
        scene.cluster.ctl(&["pack"]);
        scene.pause(0, 100);
        let (master, _) = scene.slaves();
        scene.kill_and_start(master, 1);
        scene.pause(200, 500);
        for i in 0..3 {
            scene.harm(i);
            scene.cluster.kill(i);
        }
        for i in 0..3 {
            scene.cluster.launch(i);
        }
        scene.cluster.wait_healthy();
        (0..3).for_each(|i| scene.healed(i));
    }
    scene.finish();
}

#[test]
fn stopped_and_woken() {
    let mut scene = Scene::start("stopped and woken", Builder::default(), &everywhere(), 2);
    for _ in 0..rounds() {
        scene.pause(200, 800);
        let (master, _) = scene.slaves();
        scene.stop_and_cont(master, 3000);
        scene.pause(100, 500);
        let (master, slaves) = scene.slaves();
        let slave = slaves[scene.rng.index(2)];
        scene.stop_and_cont(slave, 1500);
        scene.pause(100, 500);
        // Shorter than anybody calls silence.
        scene.stop_and_cont(master, 200);
        scene.cluster.ctl(&["pack"]);
        scene.pause(0, 50);
        let (master, _) = scene.slaves();
        scene.stop_and_cont(master, 800);
    }
    scene.finish();
}

#[test]
fn cut_off() {
    let Some(builder) = network("cut off", 3) else { return };
    let mut scene = Scene::start("cut off", builder, &in_a_network(), 3);
    for _ in 0..rounds() {
        for kind in 0..5 {
            scene.pause(200, 600);
            let (master, slaves) = scene.slaves();
            let [one, other] = slaves;
            let victim = if kind == 4 { one } else { master };
            scene.harm(victim);
            let net = scene.cluster.net();
            match kind {
                // From everybody.
                0 => net.cut_off(master, &[one, other, OUTSIDE]),
                // From the other nodes: clients on the outside still reach it.
                1 => net.cut_off(master, &[one, other]),
                // It hears them, they do not hear it.
                2 => slaves.iter().for_each(|&slave| net.cut_way(master, slave)),
                // They hear it, it does not hear them.
                3 => slaves.iter().for_each(|&slave| net.cut_way(slave, master)),
                _ => net.cut_off(one, &[master, other]),
            }
            scene.pause(1500, 2500);
            scene.cluster.net().heal();
            scene.cluster.wait_healthy();
            scene.healed(victim);
        }
    }
    scene.finish();
}

#[test]
fn lossy_and_slow_network() {
    let Some(builder) = network("lossy and slow network", 4) else { return };
    let mut scene = Scene::start("lossy and slow network", builder, &in_a_network(), 4);
    for _ in 0..rounds() {
        for (loss_permille, delay_ms) in [(0, (40, 60)), (300, (0, 2)), (300, (30, 70))] {
            (0..3).for_each(|i| scene.harm(i));
            scene.cluster.net().worsen(loss_permille, delay_ms);
            scene.pause(2500, 3500);
            scene.cluster.net().heal();
            scene.cluster.wait_healthy();
            (0..3).for_each(|i| scene.healed(i));
            scene.pause(200, 500);
        }
    }
    scene.finish();
}

/// A disk that fills up: the node says so before it is full, stops when it is, and counts again when there is room.
#[test]
fn full_disk() {
    let builder = Builder::default().small_disks_mib(48);
    let mut scene = Scene::start("full disk", builder, &everywhere(), 5);
    for _ in 0..rounds() {
        for of_master in [false, true] {
            scene.pause(200, 600);
            let (master, slaves) = scene.slaves();
            let victim = if of_master { master } else { slaves[scene.rng.index(2)] };
            let name = scene.cluster.nodes[victim].name.clone();
            scene.harm(victim);
            scene.cluster.nodes[victim].small_disk().fill(64 << 10);
            let said = format!("{name} has ");
            scene.cluster.wait_for("status to name the disk that fills up", 10, |cluster| {
                let next = cluster.try_status().ok()?.next;
                next.iter().any(|line| line.contains("df -h") && line.contains(&said)).then_some(())
            });
            scene.cluster.nodes[victim].small_disk().fill(0);
            let deadline = Instant::now() + Duration::from_secs(20);
            let status = loop {
                if let Some(status) = scene.cluster.has_ended(victim) {
                    break status;
                }
                assert!(Instant::now() < deadline, "{name} goes on with a full disk");
                scene.pause(20, 30);
            };
            assert!(!status.success(), "{name} calls a full disk a success");
            let log = scene.cluster.nodes[victim].log_text();
            assert!(log.contains("No space left on device"), "{name} does not say why");
            scene.wait_for_commits("commits without the node whose disk is full", 30);
            assert_ne!(scene.cluster.master(), victim);
            scene.cluster.nodes[victim].small_disk().empty();
            scene.cluster.launch(victim);
            scene.cluster.wait_healthy();
            scene.healed(victim);
        }
    }
    scene.finish();
}

#[test]
fn slow_disk() {
    let builder = Builder::default().slow_disks();
    let mut scene = Scene::start("slow disk", builder, &everywhere(), 6);
    for _ in 0..rounds() {
        for (of_master, ms) in [(false, 300), (true, 300), (true, 4000)] {
            scene.pause(200, 600);
            let (master, slaves) = scene.slaves();
            let victim = if of_master { master } else { slaves[scene.rng.index(2)] };
            scene.harm(victim);
            scene.cluster.nodes[victim].slow_disk().set_ms(ms);
            scene.pause(500, 1000);
            scene.wait_for_commits("commits while one disk is slow", 20);
            scene.pause(500, 1500);
            scene.cluster.nodes[victim].slow_disk().set_ms(0);
            scene.cluster.wait_healthy();
            scene.healed(victim);
        }
    }
    scene.finish();
}
