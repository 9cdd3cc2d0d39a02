//! How long nobody can commit when mastership moves: `cargo bench -p cluster-tests --bench failover [-- ROUNDS [MODE]]`.
//!
//! Each round has four clients on the nodes that survive, each committing a small object of its own as fast as it is
//! answered. The *pause* is the time from the blow to the first acknowledgement of a commit that was begun after it: an
//! answer that was on its way already does not count. For promote, where there is no blow, it is the longest stretch
//! in which no client was acknowledged anything. The last line of the output is the table as JSON.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use cluster_tests::client::{Client, Committed, record};
use cluster_tests::clock::monotonic;
use cluster_tests::cluster::Cluster;
use cluster_tests::journal::longest_gap;
use serde_json::json;

const ROUNDS: usize = 20;
const CLIENTS: usize = 4;
/// Commits run undisturbed for this long before the blow.
const BEFORE: Duration = Duration::from_millis(500);
/// And are watched for this long after they have gone on.
const AFTER: Duration = Duration::from_millis(500);
const GIVE_UP_S: f64 = 20.0;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// kill -9 of the master; the Raft leader is on another node.
    Kill,
    /// kill -9 of the master, the Raft leader being on the same node.
    KillWithLeader,
    /// SIGSTOP of the master.
    Stop,
    /// `ctl promote`.
    Promote,
}

const MODES: [(Mode, &str, &str, f64); 4] = [
    (Mode::Kill, "kill", "kill -9 of the master, Raft leader elsewhere", 0.1),
    (Mode::KillWithLeader, "kill-with-leader", "kill -9 of the master, Raft leader there too", 0.1),
    (Mode::Stop, "stop", "SIGSTOP of the master", 1.0),
    (Mode::Promote, "promote", "ctl promote, longest gap", 0.02),
];

/// What one round has shown, in seconds.
struct Round {
    pause: f64,
    /// The longest stretch without an acknowledgement from the blow on.
    gap: f64,
    /// The longest such stretch before the blow: what is there anyway.
    usual: f64,
    errors: usize,
}

fn main() {
    // cargo passes --bench of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let rounds = args.first().map_or(ROUNDS, |n| n.parse().expect("the number of rounds"));
    let wanted = args.get(1);
    let mut rows = Vec::new();
    println!(
        "{:<46} {:>8} {:>8} {:>8} {:>8} {:>7}",
        "ms", "median", "max", "target", "usual", "errors"
    );
    for (mode, name, what, target) in MODES {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let mut cluster = Cluster::start();
        make_root(&cluster);
        let seen: Vec<Round> = (0..rounds).map(|_| round(&mut cluster, mode)).collect();
        cluster.finish();
        let rounds_ms: Vec<_> = seen
            .iter()
            .map(|round| json!({ "pause": round.pause * 1e3, "gap": round.gap * 1e3 }))
            .collect();
        let mut pauses: Vec<f64> = seen.iter().map(|round| round.pause * 1e3).collect();
        let mut usual: Vec<f64> = seen.iter().map(|round| round.usual * 1e3).collect();
        let middle = median(&mut pauses);
        let max = pauses.last().copied().unwrap_or_default();
        let usual = median(&mut usual);
        let errors: usize = seen.iter().map(|round| round.errors).sum();
        let target = target * 1e3;
        println!("{what:<46} {middle:>8.1} {max:>8.1} {target:>8.0} {usual:>8.1} {errors:>7}");
        rows.push(json!({
            "mode": name, "what": what, "rounds": rounds, "median_ms": middle, "max_ms": max,
            "target_ms": target, "usual_gap_ms": usual, "errors": errors, "rounds_ms": rounds_ms,
        }));
    }
    println!("{}", json!({ "benchmark": "failover", "clients": CLIENTS, "rows": rows }));
}

/// Sorts, and returns the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { 0.0 } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

/// The root object, which stock clients would make.
fn make_root(cluster: &Cluster) {
    let mut client = Client::connect(cluster.nodes[0].durus).expect("connect");
    assert_eq!(client.new_oids(1).expect("an oid"), [0], "the database is not empty");
    let stored = client.commit(&[(0, record(0, b"root", &[]))]).expect("commit the root");
    assert_eq!(stored, Committed::Yes);
}

fn round(cluster: &mut Cluster, mode: Mode) -> Round {
    let master = prepare(cluster, mode);
    let survivors: Vec<usize> = match mode {
        Mode::Promote => (0..3).collect(),
        _ => (0..3).filter(|&i| i != master).collect(),
    };
    let load = Load::start(cluster, &survivors);
    let started = monotonic();
    sleep(BEFORE);
    let blow = monotonic();
    match mode {
        Mode::Kill | Mode::KillWithLeader => cluster.kill(master),
        Mode::Stop => cluster.stop(master),
        Mode::Promote => {
            let target = cluster.nodes[(master + 1) % 3].name.clone();
            cluster.ctl(&["promote", &target, "--reason", "benchmark"]).done();
        }
    }
    let struck = monotonic();
    if mode != Mode::Promote {
        cluster.wait_for("another master", GIVE_UP_S as u64, |cluster| {
            let now = cluster.try_status().ok()?.master?;
            (cluster.index(&now) != master).then_some(())
        });
    }
    sleep(AFTER);
    let end = monotonic();
    let (commits, errors) = load.finish();
    match mode {
        Mode::Kill | Mode::KillWithLeader => cluster.launch(master),
        Mode::Stop => cluster.cont(master),
        Mode::Promote => {}
    }
    cluster.wait_healthy();
    let times: Vec<f64> = commits.iter().map(|commit| commit.told).collect();
    let (gap, _) = longest_gap(&times, blow, end);
    let (usual, _) = longest_gap(&times, started + 0.1, blow);
    let next = commits.iter().find(|commit| commit.begun > struck).expect("commits have gone on");
    let pause = if mode == Mode::Promote { gap } else { next.told - blow };
    Round { pause, gap, usual, errors }
}

/// Brings master and Raft leader together, or apart, by promoting; returns the master.
fn prepare(cluster: &Cluster, mode: Mode) -> usize {
    let status = cluster.wait_healthy();
    let master = cluster.index(status.master.as_deref().expect("a healthy cluster has one"));
    let leader = cluster.index(status.raft_leader.as_deref().expect("and a Raft leader"));
    let wanted = match mode {
        Mode::Kill if leader == master => (leader + 1) % 3,
        Mode::KillWithLeader => leader,
        _ => master,
    };
    if wanted != master {
        let name = cluster.nodes[wanted].name.clone();
        cluster.ctl(&["promote", &name, "--reason", "benchmark"]).done();
        cluster.wait_for("the promotion", 20, |cluster| {
            let status = cluster.try_status().ok()?;
            (status.is_healthy() && status.master.as_ref() == Some(&name)).then_some(())
        });
    }
    wanted
}

/// An acknowledged commit: when it was begun and when the answer came, in seconds.
struct Commit {
    begun: f64,
    told: f64,
}

/// Clients that commit until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Vec<Commit>, usize)>>,
}

impl Load {
    fn start(cluster: &Cluster, on: &[usize]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|i| {
            let to = cluster.nodes[on[i % on.len()]].durus;
            let mut client = Client::connect(to).expect("connect");
            let oid = client.new_oids(1).expect("an oid")[0];
            let stop = stop.clone();
            thread::spawn(move || {
                let mut commits = Vec::new();
                let mut errors = 0;
                while !stop.load(Ordering::Relaxed) {
                    let begun = monotonic();
                    match commit(&mut client, oid, commits.len()) {
                        Ok(()) => commits.push(Commit { begun, told: monotonic() }),
                        Err(error) => {
                            eprintln!("client {i}: {error}");
                            errors += 1;
                            break;
                        }
                    }
                }
                (commits, errors)
            })
        });
        Load { stop: stop.clone(), threads: threads.collect() }
    }

    /// All acknowledged commits, by the time of the answer, and how many clients were let down.
    fn finish(self) -> (Vec<Commit>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut commits = Vec::new();
        let mut errors = 0;
        for thread in self.threads {
            let (told, failed) = thread.join().expect("a client thread");
            commits.extend(told);
            errors += failed;
        }
        commits.sort_by(|a: &Commit, b| a.told.total_cmp(&b.told));
        (commits, errors)
    }
}

fn commit(client: &mut Client, oid: u64, count: usize) -> io::Result<()> {
    let data = format!("benchmark {count:>100}");
    match client.commit(&[(oid, record(oid, data.as_bytes(), &[]))])? {
        Committed::Yes => Ok(()),
        Committed::Conflict => Err(io::Error::other("a conflict, though nobody else writes this")),
    }
}
