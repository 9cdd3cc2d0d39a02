//! Durus clients beside stock Durus: `cargo bench -p cluster-tests --bench clients [-- SECONDS [RUNS]]`.
//!
//! The driver is `packmaster bench`, the same for both; a stock `durus -s` 4.3 and a cluster of three nodes on this machine
//! take turns, so that whatever else the machine does hits both. Ours is durable on a majority (fdatasync) before a commit
//! is answered; stock Durus never syncs. Others take their turns: a server that only answers (`floor`), for what requests
//! cost in any case, three of it and one alone; and, for commits, three that only replicate (`floor::replicated`), for what it
//! costs to have them on the disks of a majority. Then what loads from slaves cost each node, and a file of a million
//! objects: how soon a node serves it, and how much memory it takes. The last line of the output is everything as JSON.

mod floor;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::client::{Client, Loaded};
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::journal::median;
use cluster_tests::ports::Ports;
use cluster_tests::{bigfile, binary, stock};
use serde_json::{Value, json};

const SECONDS: u64 = 4;
const RUNS: u64 = 3;
const OBJECTS: u64 = 1_000_000;
/// Bytes of text in an object, on the average.
const TEXT: usize = 190;
const MIB: f64 = (1 << 20) as f64;

/// What is measured, with which words for the driver, and what is wanted of it.
struct Row {
    name: &'static str,
    words: &'static [&'static str],
    /// Of the driver's answer; a latency if it is in `latency_ms`.
    figure: &'static str,
    target: &'static str,
}

const ROWS: [Row; 6] = [
    Row {
        name: "loads/s, 16 clients",
        words: &["--workload", "load", "--clients", "16"],
        figure: "/requests_per_second",
        target: "10 times",
    },
    Row {
        name: "load, 1 client, median ms",
        words: &["--workload", "load", "--clients", "1"],
        figure: "/latency_ms/p50",
        target: "half",
    },
    Row {
        name: "bulk loads, 16 clients, 1 KB objects/s",
        words: &["--workload", "bulk", "--clients", "16"],
        figure: "/objects_per_second",
        target: "10 times",
    },
    Row {
        name: "commits/s, 16 clients",
        words: &["--workload", "commit", "--clients", "16"],
        figure: "/requests_per_second",
        target: "3 times",
    },
    Row {
        name: "commit, 1 client, median ms",
        words: &["--workload", "commit", "--clients", "1"],
        figure: "/latency_ms/p50",
        target: "1.5 fdatasync + round trips",
    },
    Row {
        name: "mixed, 16 clients, requests/s",
        words: &["--workload", "mixed", "--clients", "16"],
        figure: "/requests_per_second",
        target: "-",
    },
];

fn main() {
    // cargo passes --bench of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |nth: usize| args.get(nth).map(|text| text.parse::<u64>().expect("a number"));
    let (seconds, runs) = (number(0).unwrap_or(SECONDS), number(1).unwrap_or(RUNS));
    let dir = tempfile::tempdir_in(stock::target_dir()).expect("a directory");
    let fdatasync_ms = fdatasync_ms(dir.path());
    println!("fdatasync of 1.2 KB: median {fdatasync_ms:.2} ms");
    let rows = beside_stock(dir.path(), seconds, runs);
    let reads = reads_at_slaves(seconds);
    let large = large_file(dir.path());
    println!(
        "{}",
        json!({ "benchmark": "clients", "fdatasync_ms": fdatasync_ms, "rows": rows,
            "reads_at_slaves": reads, "large_file": large })
    );
}

/// Of an append as a commit makes it, on the disk that is used here.
fn fdatasync_ms(dir: &Path) -> f64 {
    let mut file = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(dir.join("synced"))
        .expect("make a file");
    let times = (0..200).map(|_| {
        file.write_all(&[7; 1200]).expect("write");
        let began = Instant::now();
        rustix::fs::fdatasync(file.as_fd()).expect("fdatasync");
        began.elapsed().as_secs_f64() * 1e3
    });
    median(times.collect())
}

fn beside_stock(dir: &Path, seconds: u64, runs: u64) -> Vec<Value> {
    let cluster = Cluster::start();
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    let addresses: Vec<String> = all.iter().map(|i| cluster.nodes[*i].durus.to_string()).collect();
    let ports = Ports::reserve();
    let server = stock::Server::start(&dir.join("stock.durus"), ports.port(0));
    let floor: Vec<String> = all.iter().map(|_| floor::start().to_string()).collect();
    let replicated = floor::replicated::start(dir);
    let replicated: Vec<String> = replicated.iter().map(|it| it.to_string()).collect();
    println!(
        "{:<42} {:>10} {:>10} {:>8} {:>13} {:>11} {:>16}  target",
        "median of runs", "stock", "ours", "times", "only answers", "one alone", "only replicates"
    );
    let mut rows = Vec::new();
    for row in &ROWS {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        let (mut bare, mut alone, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut conflicts = 0;
        for _ in 0..runs {
            theirs.push(drive(row, &server.address.to_string(), seconds).0);
            let (figure, refused) = drive(row, &addresses.join(","), seconds);
            ours.push(figure);
            conflicts += refused;
            bare.push(drive(row, &floor.join(","), seconds).0);
            alone.push(drive(row, &floor[0], seconds).0);
            if row.words.contains(&"commit") {
                copies.push(drive(row, &replicated.join(","), seconds).0);
            }
        }
        let (theirs, ours) = (median(theirs), median(ours));
        let (bare, alone) = (median(bare), median(alone));
        let copies = (!copies.is_empty()).then(|| median(copies));
        let shown = copies.map_or("-".to_string(), |figure| format!("{figure:.3}"));
        println!(
            "{:<42} {theirs:>10.3} {ours:>10.3} {:>8.2} {bare:>13.3} {alone:>11.3} {shown:>16}  {}",
            row.name,
            ours / theirs,
            row.target
        );
        rows.push(json!({
            "what": row.name, "stock": theirs, "ours": ours, "ratio": ours / theirs, "target": row.target,
            "only_answers": bare, "only_answers_alone": alone, "only_replicates": copies,
            "conflicts": conflicts, "runs": runs, "seconds": seconds,
        }));
    }
    drop(server);
    cluster.finish();
    rows
}

/// What each node spends while clients load from the slaves alone. What the master does not spend is there for others: so
/// much reading is added with each node.
fn reads_at_slaves(seconds: u64) -> Value {
    let cluster = Cluster::start();
    let all = 0..cluster.nodes.len();
    let master = cluster.master();
    let slaves = all.clone().filter(|node| *node != master);
    let addresses: Vec<_> = slaves.map(|node| cluster.nodes[node].durus.to_string()).collect();
    let spent = || all.clone().map(|node| processor_s(&cluster, node)).collect::<Vec<_>>();
    let row = &ROWS[0];
    drive(row, &addresses.join(","), 1);
    let before = spent();
    let (per_second, _) = drive(row, &addresses.join(","), seconds);
    let after = spent();
    cluster.finish();
    let of = |node: usize| after[node] - before[node];
    let at_slaves: f64 = all.clone().filter(|node| *node != master).map(of).sum();
    println!(
        "16 clients load from the two slaves: {per_second:.0}/s; processor time of the slaves {at_slaves:.2} s, of the master {:.2} s",
        of(master)
    );
    json!({ "loads_per_s": per_second, "slaves_processor_s": at_slaves, "master_processor_s": of(master) })
}

/// Time on a processor that the node has had, of all its threads.
fn processor_s(cluster: &Cluster, node: usize) -> f64 {
    let pid = cluster.nodes[node].pid().expect("it runs").as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("look at the node");
    // After the name, which may have blanks in it: user and system time are the 14th and 15th of all fields.
    let (_, fields) = text.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|it| it.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

/// The figure, and how many commits were refused as conflicts.
fn drive(row: &Row, address: &str, seconds: u64) -> (f64, u64) {
    let output = Command::new(binary::packmaster())
        .args(["bench", "--output", "json", "--address", address])
        .args(row.words)
        .arg(format!("--time={seconds}s"))
        .output()
        .expect("start packmaster bench");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    let figure = answer.pointer(row.figure).and_then(Value::as_f64).expect("the figure");
    (figure, answer["conflicts"].as_u64().unwrap_or(0))
}

/// A node alone with a million objects, about half of them garbage: started after a clean stop and after kill -9.
fn large_file(dir: &Path) -> Value {
    let path = dir.join("large.durus");
    let made = bigfile::write(&path, OBJECTS, TEXT).expect("make the file");
    let mut cluster = Builder::default().nodes(1).import(&path).start();
    let mut open = |clean: bool| {
        match clean {
            true => {
                cluster.terminate(0);
            }
            false => cluster.kill(0),
        }
        let began = Instant::now();
        cluster.launch(0);
        while !serves(&cluster) {
            std::thread::sleep(Duration::from_millis(1));
            assert!(began.elapsed() < Duration::from_secs(120), "the node does not serve");
        }
        began.elapsed().as_secs_f64()
    };
    let (clean_s, killed_s) = (open(true), open(false));
    let pid = cluster.nodes[0].pid().expect("it runs").as_raw_nonzero();
    let resident = resident_bytes(pid.get());
    let allowed = OBJECTS * 100 + (100 << 20);
    println!(
        "{} objects, {:.0} MiB: serves {clean_s:.2} s after a clean stop's start, {killed_s:.2} s after kill -9 (target 1); \
         {:.0} MiB resident, file pages included (target {:.0})",
        made.objects,
        made.bytes as f64 / MIB,
        resident as f64 / MIB,
        allowed as f64 / MIB
    );
    cluster.finish();
    json!({
        "objects": made.objects, "file_bytes": made.bytes, "open_clean_s": clean_s, "open_killed_s": killed_s,
        "resident_bytes": resident, "resident_allowed_bytes": allowed,
    })
}

fn serves(cluster: &Cluster) -> bool {
    let loaded = Client::connect(cluster.nodes[0].durus).and_then(|mut client| client.load(0));
    matches!(loaded, Ok(Loaded::Record(_)))
}

fn resident_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("look at the node");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib = line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number");
    kib * 1024
}
