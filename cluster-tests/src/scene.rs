//! A cluster of real processes with stock clients on it, to which a test does something bad at moments drawn from a
//! seed, and the judgement afterwards: of every word that any client was given, and of every byte the nodes hold.
//!
//! What the clients may notice is a matter of where they are. One whose node has had something done to it may lose its
//! connection; everybody else meets conflicts at most.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::chaincheck::{assert_same_bytes, check_file};
use crate::clock::monotonic;
use crate::cluster::{Builder, Cluster};
use crate::history::{
    self, Files, History, Judged, Outcome, Recorded, Session, Step, Tag, Time, What,
};
use crate::python::{self, Workload};
use crate::sim::rng::Rng;

/// What must be acknowledged after the last fault before the clients are stopped.
const AFTER_HEALING: usize = 50;
/// A connection that broke with its node is noticed within this time.
const NOTICED: Duration = Duration::from_secs(3);
/// Mean pause of a client between two transactions, in seconds.
const PACE: &str = "0.01";

/// Says something that shows even if the test passes and its output is captured.
pub fn aloud(text: &str) {
    writeln!(io::stderr(), "{text}").expect("talk");
}

/// Where clients are, and which nodes they know, their own first.
pub struct Place {
    /// The node's host it runs on; the outside of the network if there is no such node.
    pub host: usize,
    pub nodes: Vec<usize>,
    pub packs: bool,
}

/// When something was done to a node, and when that was over.
struct Harm {
    node: usize,
    from: Time,
    to: Option<Time>,
}

pub struct Scene {
    pub name: String,
    pub cluster: Cluster,
    pub rng: Rng,
    clients: Vec<Workload>,
    records: PathBuf,
    harms: Vec<Harm>,
    faults: usize,
    began: Instant,
}

impl Scene {
    /// Starts the cluster on a file with cells, and the clients, and waits until every client has committed.
    pub fn start(name: &str, builder: Builder, places: &[Place], seed: u64) -> Scene {
        let began = Instant::now();
        let seed = std::env::var("REAL_FAULTS_SEED")
            .map_or(seed, |text| text.parse().expect("REAL_FAULTS_SEED is a number"));
        println!("{name}: seed {seed}");
        let file = tempfile::NamedTempFile::new().expect("make a file for the cells");
        // Stock Durus makes it anew.
        let cells = file.into_temp_path();
        std::fs::remove_file(&cells).expect("remove it again");
        python::run("cells.py", &[cells.to_str().expect("a plain path")], 60);
        // Every generation is kept for the judge.
        let cluster = builder.import(&cells).set("keep_generations=100000").start();
        let _ = std::fs::remove_file(&cells);
        let records = cluster.dir().join("records");
        std::fs::create_dir(&records).expect("make the directory of records");
        let mut scene = Scene {
            name: name.to_string(),
            cluster,
            rng: Rng::new(seed),
            clients: Vec::new(),
            records,
            harms: Vec::new(),
            faults: 0,
            began,
        };
        for place in places {
            scene.add_client(place, seed);
        }
        scene.wait_for_commits("the first commits", 5 * places.len());
        scene
    }

    fn add_client(&mut self, place: &Place, seed: u64) {
        let number = (self.clients.len() + 1).to_string();
        let own_seed = (seed * 1000 + self.clients.len() as u64).to_string();
        let node = |&i: &usize| {
            let node = &self.cluster.nodes[i];
            format!("{}={}", node.name, node.durus)
        };
        let nodes: Vec<String> = place.nodes.iter().map(node).collect();
        let nodes = nodes.join(",");
        let records = self.records.to_str().expect("a plain path");
        let mut args = vec!["--nodes", &nodes, "--records", records, "--number", &number];
        args.extend(["--seed", &own_seed, "--pace", PACE]);
        if place.nodes.len() == 1 {
            args.push("--stay");
        }
        if place.packs {
            args.push("--packs");
        }
        let host = self.cluster.host(place.host);
        self.clients.push(Workload::start_on(&host, "history.py", &args));
    }

    /// A pause drawn between so many milliseconds.
    pub fn pause(&mut self, least: u64, most: u64) {
        sleep(Duration::from_millis(self.rng.between(least, most)));
        for client in &mut self.clients {
            client.check_running();
        }
    }

    /// From now on, clients at node `i` may lose their connections.
    pub fn harm(&mut self, i: usize) {
        self.faults += 1;
        self.harms.push(Harm { node: i, from: now(), to: None });
    }

    /// What was done to node `i` is over.
    pub fn healed(&mut self, i: usize) {
        let open = self.harms.iter_mut().filter(|harm| harm.node == i && harm.to.is_none());
        open.for_each(|harm| harm.to = Some(now()));
    }

    /// The master, and the others.
    pub fn slaves(&self) -> (usize, [usize; 2]) {
        let master = self.cluster.master();
        let slaves: Vec<usize> = (0..3).filter(|&i| i != master).collect();
        (master, slaves.try_into().expect("three nodes"))
    }

    pub fn recorded(&self) -> Recorded {
        Recorded::read(&self.records)
    }

    /// Waits until so many commits were acknowledged that were answered from now on.
    #[track_caller]
    pub fn wait_for_commits(&mut self, what: &str, count: usize) {
        let since = now();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let times = self.recorded().acknowledged();
            let fresh = times.len() - times.partition_point(|at| *at < since);
            if fresh >= count {
                return;
            }
            self.pause(50, 51);
            assert!(Instant::now() < deadline, "{}: {what} do not come", self.name);
        }
    }

    /// With every fault healed: all nodes become equal, and every word is judged.
    #[track_caller]
    pub fn finish(mut self) {
        self.cluster.wait_healthy();
        self.wait_for_commits("commits after healing", AFTER_HEALING);
        let mut said = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            said.push(client.finish(60));
        }
        for client in &said {
            assert_eq!(client["errors"], serde_json::json!([]), "a client met what it must not");
        }
        self.cluster.wait_level();
        let recorded = self.recorded();
        self.losses_are_explained(&recorded);
        let gap = longest_gap(&recorded.acknowledged());
        let judged = judge(&self.cluster, recorded.sessions.clone());
        let sum =
            |what: &str| said.iter().filter_map(|one: &Value| one[what].as_u64()).sum::<u64>();
        let epoch = self.cluster.wait_level().epoch;
        aloud(&format!(
            "real faults: {}: {} faults, {} epochs, {} lost connections, {} moves of clients, longest time \
             without an acknowledgement {} ms; {judged:?}; {:.0} s",
            self.name,
            self.faults,
            epoch,
            recorded.lost.len(),
            sum("hops"),
            gap / 1_000_000,
            self.began.elapsed().as_secs_f64()
        ));
        let numbers = [judged.acknowledged, judged.conflicts + judged.given_up, judged.loads];
        assert!(!numbers.contains(&0), "nothing was put to the test: {judged:?}");
        self.cluster.finish();
    }

    /// A client lost its connection only to a node that had something done to it.
    fn losses_are_explained(&self, recorded: &Recorded) {
        let noticed = NOTICED.as_nanos() as Time;
        for lost in &recorded.lost {
            let node = self.cluster.index(&lost.node);
            let explained = self.harms.iter().any(|harm| {
                harm.node == node
                    && harm.from <= lost.at
                    && harm.to.is_none_or(|to| lost.at <= to + noticed)
            });
            assert!(explained, "{}: nothing was done to that node: {lost:?}", self.name);
        }
    }
}

/// The clients' sessions against the files of all nodes, which are the same.
fn judge(cluster: &Cluster, sessions: Vec<Session>) -> Judged {
    let current: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.file()).collect();
    let paths: Vec<&Path> = current.iter().map(PathBuf::as_path).collect();
    assert_same_bytes(&paths);
    let tip = check_file(paths[0]).tip().chain;
    let mut files = Files::default();
    for node in &cluster.nodes {
        files.read(&node.data);
    }
    let (initial, order) = files.order(tip);
    let mut history = History { initial, order, sessions, mark: history::mark, abandoned: false };
    let judged = history::judge(&history).unwrap_or_else(|violation| panic!("{violation}"));
    // The same without what was acknowledged last must not pass.
    let last = last_acknowledged(&history.sessions);
    history.order.retain(|step| match step {
        Step::Transaction { objects, .. } => {
            objects.iter().all(|(_, object)| history::mark(&object.data).map(|m| m.tag) != last)
        }
        Step::Pack { .. } => true,
    });
    history::judge(&history).expect_err("a history that lacks an acknowledged transaction passed");
    judged
}

fn last_acknowledged(sessions: &[Session]) -> Option<Tag> {
    let events = sessions.iter().flat_map(|session| &session.events);
    let acknowledged = events.filter_map(|event| match &event.what {
        What::Commit(commit) if commit.outcome == Outcome::Acknowledged => {
            Some((event.answered, commit.tag))
        }
        _ => None,
    });
    acknowledged.max().map(|(_, tag)| tag)
}

/// Between two acknowledgements to anybody, in nanoseconds.
fn longest_gap(times: &[Time]) -> Time {
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

fn now() -> Time {
    (monotonic() * 1e9) as Time
}
