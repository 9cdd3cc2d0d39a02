//! Real processes under real faults, with stock Durus clients whose every word is judged.
//!
//! Each test starts a cluster of its own and clients all over it, and then kills, stops, cuts off, fills and slows down
//! its nodes at moments drawn from a seed, while packs go on. REAL_FAULTS_SEED draws other moments. The soak does
//! everything to one cluster for so long: REAL_FAULTS_MINUTES=60 cargo test --test real_faults -- --ignored

use std::time::{Duration, Instant};

use cluster_tests::cluster::Builder;
use cluster_tests::disks::SmallDisk;
use cluster_tests::net::Net;
use cluster_tests::scene::{Place, Scene, aloud};

/// The host in a network that is no node's.
const OUTSIDE: usize = 3;
const SMALL_DISK_MIB: u32 = 48;
/// Every generation is kept for the judge: room for minutes of packs.
const SOAK_DISK_MIB: u32 = 1024;
/// What is left of a disk that is nearly full: so little that the node minds, and more than one pack takes.
const NEARLY_FULL: u64 = 6 << 20;
/// A disk so slow that the node calls it stuck.
const STUCK_MS: u64 = 6000;
/// How soon a node whose disk is full or stuck is master no more.
const RELIEVED_S: u64 = 10;

fn place(host: usize, nodes: &[usize], packs: bool) -> Place {
    Place { host, nodes: nodes.to_vec(), packs }
}

/// A client for each node that knows all of them and one that stays with it, so that whichever node is in trouble,
/// somebody is on the others; one of them packs.
fn everywhere() -> [Place; 6] {
    [
        place(0, &[0], false),
        place(2, &[2], false),
        place(0, &[0, 1, 2], false),
        place(1, &[1, 2, 0], false),
        place(2, &[2, 0, 1], true),
        place(1, &[1], false),
    ]
}

/// In a network: clients that stay with the node of their host, and two on the outside that go where they can.
fn in_a_network() -> [Place; 5] {
    [
        place(0, &[0], false),
        place(1, &[1], false),
        place(2, &[2], false),
        place(OUTSIDE, &[0, 1, 2], false),
        place(OUTSIDE, &[2, 1, 0], true),
    ]
}

/// A network for three nodes; None, and said aloud, where the machine does not let us have one.
fn network(name: &str, seed: u64) -> Option<Net> {
    let made = Net::make(OUTSIDE + 1, seed);
    made.map_err(|why| {
        aloud(&format!("SKIPPED: real faults: {name}: no network namespaces: {why}"))
    })
    .ok()
}

/// Can small disks be had here? If not, it is said aloud.
fn small_disks(name: &str) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let tried = SmallDisk::mount(&dir.path().join("disk"), 1);
    let why = tried.as_ref().err();
    why.inspect(|why| aloud(&format!("SKIPPED: real faults: {name}: no tmpfs: {why:#}")));
    tried.is_ok()
}

// ---- what is done to a cluster ----

#[derive(Clone, Copy, Debug)]
enum Whom {
    Master,
    Slave,
    Leader,
}

impl Whom {
    fn find(self, scene: &mut Scene) -> usize {
        let (master, slaves) = scene.slaves();
        match self {
            Whom::Master => master,
            Whom::Slave => slaves[scene.rng.index(2)],
            Whom::Leader => {
                let leader = scene.cluster.wait_healthy().raft_leader;
                scene.cluster.index(&leader.expect("a healthy cluster has one"))
            }
        }
    }
}

fn kill(scene: &mut Scene, whom: Whom, down_ms_max: u64) {
    let i = whom.find(scene);
    scene.harm(i);
    scene.cluster.kill(i);
    scene.pause(0, down_ms_max);
    scene.cluster.launch(i);
    scene.cluster.wait_healthy();
    scene.healed(i);
}

fn kill_all(scene: &mut Scene) {
    for i in 0..3 {
        scene.harm(i);
        scene.cluster.kill(i);
    }
    (0..3).for_each(|i| scene.cluster.launch(i));
    scene.cluster.wait_healthy();
    (0..3).for_each(|i| scene.healed(i));
}

fn stop(scene: &mut Scene, whom: Whom, ms: u64) {
    let i = whom.find(scene);
    scene.harm(i);
    scene.cluster.stop(i);
    scene.pause(ms, ms + ms / 10);
    scene.cluster.cont(i);
    scene.cluster.wait_healthy();
    scene.healed(i);
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The master, from everybody.
    Master,
    /// From the other nodes: clients on the outside still reach it.
    MasterFromNodes,
    /// The master hears the slaves, they do not hear it.
    MasterIsNotHeard,
    MasterIsDeaf,
    Slave,
}

const CUTS: [Cut; 5] =
    [Cut::Master, Cut::MasterFromNodes, Cut::MasterIsNotHeard, Cut::MasterIsDeaf, Cut::Slave];

fn cut(scene: &mut Scene, kind: Cut) {
    let (master, slaves) = scene.slaves();
    let [one, other] = slaves;
    let victim = if let Cut::Slave = kind { one } else { master };
    scene.harm(victim);
    let net = scene.cluster.net();
    match kind {
        Cut::Master => net.cut_off(master, &[one, other, OUTSIDE]),
        Cut::MasterFromNodes => net.cut_off(master, &slaves),
        Cut::MasterIsNotHeard => slaves.iter().for_each(|&slave| net.cut_way(master, slave)),
        Cut::MasterIsDeaf => slaves.iter().for_each(|&slave| net.cut_way(slave, master)),
        Cut::Slave => net.cut_off(one, &[master, other]),
    }
    scene.pause(1500, 2500);
    scene.cluster.net().heal();
    scene.cluster.wait_healthy();
    scene.healed(victim);
}

fn worsen(scene: &mut Scene, loss_permille: u32, delay_ms: (u32, u32)) {
    (0..3).for_each(|i| scene.harm(i));
    scene.cluster.net().worsen(loss_permille, delay_ms);
    scene.pause(2500, 3500);
    scene.cluster.net().heal();
    scene.cluster.wait_healthy();
    (0..3).for_each(|i| scene.healed(i));
}

/// The node says that its disk fills up, and is master no more, before it is full. Then it counts no more, whether it
/// stops or tries again and again; when there is room it is as if nothing had been.
fn fill(scene: &mut Scene, whom: Whom) {
    let i = whom.find(scene);
    let name = scene.cluster.nodes[i].name.clone();
    scene.harm(i);
    scene.cluster.nodes[i].small_disk().fill(NEARLY_FULL);
    scene.cluster.wait_for("a disk that fills up to be noticed", RELIEVED_S, |cluster| {
        let status = cluster.try_status().ok()?;
        let mut hints = status.next.iter().filter(|line| line.contains("df -h"));
        let told = hints.any(|line| line.contains(&format!("{name} is failing")));
        let why_not = status.node(&name).why_not.as_deref();
        let barred = why_not.is_some_and(|why| why.contains("nearly full"));
        let relieved = status.master.is_some_and(|master| master != name);
        (told && barred && relieved).then_some(())
    });
    scene.wait_for_commits("commits beside a disk that is nearly full", 20);
    scene.cluster.nodes[i].small_disk().fill(0);
    let out_of_space =
        |scene: &Scene| scene.cluster.nodes[i].log_text().contains("No space left on device");
    let deadline = Instant::now() + Duration::from_secs(RELIEVED_S);
    while !out_of_space(scene) {
        assert!(Instant::now() < deadline, "{name} does not notice that its disk is full");
        scene.pause(20, 30);
    }
    scene.wait_for_commits("commits beside a full disk", 20);
    let ended = |scene: &mut Scene| match scene.cluster.has_ended(i) {
        Some(status) => {
            assert!(!status.success(), "{name} calls a full disk a success");
            true
        }
        None => scene.cluster.nodes[i].pid().is_none(),
    };
    // Starting it again is no use, and does no harm.
    if ended(scene) {
        scene.cluster.launch(i);
        scene.pause(200, 400);
    }
    scene.cluster.nodes[i].small_disk().empty();
    scene.pause(100, 200);
    if ended(scene) {
        scene.cluster.launch(i);
    }
    scene.cluster.wait_healthy();
    scene.healed(i);
}

fn slow_down(scene: &mut Scene, whom: Whom, ms: u64) {
    let i = whom.find(scene);
    let name = scene.cluster.nodes[i].name.clone();
    scene.harm(i);
    scene.cluster.nodes[i].slow_disk().set_ms(ms);
    if ms >= STUCK_MS {
        scene.cluster.wait_for(
            "a node whose disk is stuck to be relieved",
            RELIEVED_S,
            |cluster| {
                let status = cluster.try_status().ok()?;
                (status.master? != name && status.raft_leader? != name).then_some(())
            },
        );
    }
    scene.wait_for_commits("commits beside a slow disk", 20);
    scene.pause(500, 1500);
    scene.cluster.nodes[i].slow_disk().set_ms(0);
    scene.cluster.wait_healthy();
    scene.healed(i);
}

// ---- the tests ----

#[test]
fn killed() {
    let mut scene = Scene::start("killed", Builder::default(), &everywhere(), 1);
    for (whom, down_ms_max) in
        [(Whom::Master, 600), (Whom::Slave, 600), (Whom::Leader, 1), (Whom::Master, 1)]
    {
        scene.pause(200, 800);
        // At times in the middle of a pack; whether it begins does not matter.
        scene.cluster.ctl(&["pack"]);
        scene.pause(0, 100);
        kill(&mut scene, whom, down_ms_max);
    }
    scene.pause(200, 500);
    kill_all(&mut scene);
    scene.finish();
}

#[test]
fn stopped_and_woken() {
    let mut scene = Scene::start("stopped and woken", Builder::default(), &everywhere(), 2);
    // The third is shorter than what anybody calls silence.
    for (whom, ms) in
        [(Whom::Master, 3000), (Whom::Slave, 1500), (Whom::Master, 200), (Whom::Master, 800)]
    {
        scene.pause(200, 800);
        scene.cluster.ctl(&["pack"]);
        scene.pause(0, 50);
        stop(&mut scene, whom, ms);
    }
    scene.finish();
}

#[test]
fn cut_off() {
    let Some(net) = network("cut off", 3) else { return };
    let builder = Builder::default().network(net);
    let mut scene = Scene::start("cut off", builder, &in_a_network(), 3);
    for kind in CUTS {
        scene.pause(200, 600);
        cut(&mut scene, kind);
    }
    scene.finish();
}

#[test]
fn lossy_and_slow_network() {
    let Some(net) = network("lossy and slow network", 4) else { return };
    let builder = Builder::default().network(net);
    let mut scene = Scene::start("lossy and slow network", builder, &in_a_network(), 4);
    for (loss_permille, delay_ms) in [(0, (40, 60)), (300, (0, 2)), (300, (30, 70))] {
        scene.pause(200, 500);
        worsen(&mut scene, loss_permille, delay_ms);
    }
    scene.finish();
}

#[test]
fn full_disk() {
    if !small_disks("full disk") {
        return;
    }
    let builder = Builder::default().small_disks_mib(SMALL_DISK_MIB);
    let mut scene = Scene::start("full disk", builder, &everywhere(), 5);
    for whom in [Whom::Slave, Whom::Master] {
        scene.pause(200, 600);
        fill(&mut scene, whom);
    }
    scene.finish();
}

/// A slow disk is carried along; a stuck one is relieved. When it was the Raft leader's, it beat on, so that nobody
/// replaced it, and applied nothing that it had decided, not even that somebody else was to be master: no commit for as
/// long as the disk was stuck (seed 6).
#[test]
fn slow_disk() {
    let builder = Builder::default().slow_disks();
    let mut scene = Scene::start("slow disk", builder, &everywhere(), 6);
    for (whom, ms) in [
        (Whom::Slave, 300),
        (Whom::Master, 300),
        (Whom::Master, STUCK_MS),
        (Whom::Leader, STUCK_MS),
    ] {
        scene.pause(200, 600);
        slow_down(&mut scene, whom, ms);
    }
    scene.finish();
}

/// Everything to one cluster, for REAL_FAULTS_MINUTES.
#[test]
#[ignore = "runs for as long as it is told to"]
fn soak() {
    let minutes =
        std::env::var("REAL_FAULTS_MINUTES").map_or(5, |text| text.parse().expect("a number"));
    let Some(net) = network("soak", 7) else { return };
    if !small_disks("soak") {
        return;
    }
    let builder = Builder::default().network(net).small_disks_mib(SOAK_DISK_MIB).slow_disks();
    let mut scene = Scene::start("soak", builder, &in_a_network(), 7);
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    while Instant::now() < end {
        scene.pause(100, 1500);
        let whom = [Whom::Master, Whom::Slave, Whom::Leader][scene.rng.index(3)];
        match scene.rng.below(12) {
            0..=2 => kill(&mut scene, whom, 800),
            3 => kill_all(&mut scene),
            4..=5 => {
                let ms = scene.rng.between(50, 3000);
                stop(&mut scene, whom, ms);
            }
            6..=7 => {
                let kind = CUTS[scene.rng.index(CUTS.len())];
                cut(&mut scene, kind);
            }
            8 => worsen(&mut scene, 300, (30, 70)),
            9 => fill(&mut scene, whom),
            10 => {
                let ms = scene.rng.between(50, 800);
                slow_down(&mut scene, whom, ms);
            }
            _ => slow_down(&mut scene, Whom::Master, STUCK_MS),
        }
    }
    scene.finish();
}
