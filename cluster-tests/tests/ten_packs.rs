//! Ten packs in a row, under stock Durus clients whose every word is judged, with kills in between: of the master, of
//! the Raft leader, of a slave, at moments drawn from a seed, most of them in the middle of a pack.
//!
//! REAL_FAULTS_SEED draws other moments. About 17 s.

use std::fs;
use std::time::{Duration, Instant};

use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::scene::{Place, Scene};
use cluster_tests::status::Status;

const PACKS: u64 = 10;
/// So slow that a kill meets a pack in every phase: a file of a megabyte takes a second or two. Only until the kill, since
/// how many megabytes there are is up to the clients, who write all the while.
const RATE: &str = "1500KB";
/// How long after the start of a pack somebody is killed, in milliseconds.
const KILL_WITHIN_MS: u64 = 1000;
/// So many of the kills, at least, must have met a pack.
const HIT_MIN: usize = 4;
/// For a pack that is called off by an election or two, and begins again by itself.
const PACK_S: u64 = 60;
/// Leftovers are looked for every 5 s, once all is quiet.
const TIDY_S: u64 = 20;

#[derive(Clone, Copy, Debug)]
enum Whom {
    Nobody,
    Master,
    Slave,
    Leader,
}

const KILLED: [Whom; PACKS as usize] = [
    Whom::Nobody,
    Whom::Master,
    Whom::Slave,
    Whom::Leader,
    Whom::Master,
    Whom::Slave,
    Whom::Master,
    Whom::Nobody,
    Whom::Slave,
    Whom::Master,
];

/// Clients that stay with a node and clients that go where they can.
fn places() -> [Place; 6] {
    let place = |host: usize, nodes: &[usize]| Place { host, nodes: nodes.to_vec(), packs: false };
    [
        place(0, &[0]),
        place(1, &[1]),
        place(2, &[2]),
        place(0, &[0, 1, 2]),
        place(1, &[1, 2, 0]),
        place(2, &[2, 0, 1]),
    ]
}

fn generation(status: &Status) -> u64 {
    status.generation.as_ref().map_or(0, |generation| generation.number)
}

fn find(scene: &mut Scene, whom: Whom) -> Option<usize> {
    let (master, slaves) = scene.slaves();
    match whom {
        Whom::Nobody => None,
        Whom::Master => Some(master),
        Whom::Slave => Some(slaves[scene.rng.index(2)]),
        Whom::Leader => {
            let leader = scene.cluster.wait_healthy().raft_leader;
            Some(scene.cluster.index(&leader.expect("a healthy cluster has one")))
        }
    }
}

/// What a pack or a build has left in the directories of the nodes.
fn leftovers(cluster: &Cluster, current: u64) -> Vec<String> {
    let mut left = Vec::new();
    for node in &cluster.nodes {
        for entry in fs::read_dir(&node.data).expect("a data directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let newer = name.starts_with('g')
                && name
                    .get(1..9)
                    .and_then(|digits| digits.parse().ok())
                    .is_some_and(|it: u64| it > current);
            if name.starts_with("building") || newer {
                left.push(format!("{}: {name}", node.name));
            }
        }
    }
    left
}

#[test]
fn ten_packs_in_a_row_under_load_with_kills_in_between() {
    let mut scene = Scene::start("ten packs", Builder::default(), &places(), 8);
    let rate = |scene: &Scene, rate| {
        scene.cluster.ctl(&["config", "set", "pack.rate", rate]).done();
    };
    let first = generation(&scene.cluster.wait_healthy());
    let mut hit = 0;
    for (nth, whom) in (1..=PACKS).zip(KILLED) {
        scene.cluster.wait_healthy();
        let victim = find(&mut scene, whom);
        rate(&scene, RATE);
        let began = Instant::now();
        scene.cluster.ctl(&["pack"]).done();
        if let Some(victim) = victim {
            scene.pause(0, KILL_WITHIN_MS);
            let packs = scene.cluster.try_status().is_ok_and(|status| status.pack.is_some());
            hit += usize::from(packs);
            scene.harm(victim);
            scene.cluster.kill(victim);
            scene.pause(0, 500);
            scene.cluster.launch(victim);
        }
        rate(&scene, "0");
        scene.cluster.wait_for("the next generation on every node", PACK_S, |cluster| {
            let status = cluster.try_status().ok()?;
            let there = |node: &cluster_tests::status::Node| node.generation >= first + nth;
            (status.is_healthy() && status.nodes.iter().all(there)).then_some(())
        });
        if let Some(victim) = victim {
            scene.healed(victim);
        }
        println!("pack {nth}, killed: {whom:?}: {:.1} s", began.elapsed().as_secs_f64());
    }
    let current = generation(&scene.cluster.wait_healthy());
    assert_eq!(current, first + PACKS, "nobody asked for more");
    assert!(hit >= HIT_MIN, "only {hit} kills met a pack");
    let deadline = Instant::now() + Duration::from_secs(TIDY_S);
    while !leftovers(&scene.cluster, current).is_empty() {
        let left = leftovers(&scene.cluster, current);
        assert!(Instant::now() < deadline, "left of packs: {left:?}");
        scene.pause(100, 200);
    }
    let history = scene.cluster.ctl(&["history"]).json();
    let decisions = history["decisions"].as_array().expect("decisions");
    let ended = decisions.iter().filter(|told| told["what"] == "generation");
    let told = ended.filter_map(|told| told["why"].as_str()).filter(|why| why.contains(" became "));
    assert!(
        told.count() as u64 >= PACKS.min(5),
        "how packs ended is in the history: {decisions:?}"
    );
    scene.finish();
}
