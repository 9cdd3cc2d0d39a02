//! A pack that nobody should notice: `cargo bench -p cluster-tests --bench pack_cluster [-- OBJECTS]`.
//!
//! Three nodes with a generated file, about half of it garbage; eight clients on all of them load objects and store live
//! ones again, without a pause. Then a pack: latencies before and during it, the longest stretch without an
//! acknowledgement around the switch, and what went over the wire. Then another pack without one of the slaves, which is
//! started again after it: how long it takes to be in step. A picture of all commits over time, with the phases marked,
//! is written to `target/bench/pack.svg`. The last line of the output is everything as JSON.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use cluster_tests::client::{Client, Committed, Loaded};
use cluster_tests::clock::monotonic;
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::journal::longest_gap;
use cluster_tests::{bigfile, stock};
use plotters::prelude::*;
use serde_json::json;

const OBJECTS: u64 = 1_000_000;
/// Bytes of text in an object, on the average; about 300 bytes an object in the file.
const TEXT: usize = 190;
const CLIENTS: usize = 8;
/// Loads between two commits of a client.
const LOADS: usize = 4;
/// Undisturbed, for comparison.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(3);
/// On both sides of the moment in which the new generation was seen.
const AROUND_SWITCH_S: f64 = 1.0;
const GIVE_UP_S: f64 = 600.0;
/// Each look is a process of its own, and takes its share of the machine.
const LOOK: Duration = Duration::from_millis(100);
/// A commit that took longer is told with its moment.
const SLOW_MS: f64 = 20.0;
const MIB: f64 = (1 << 20) as f64;

fn main() {
    // cargo passes --bench of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let objects = args.first().map_or(OBJECTS, |text| text.parse().expect("a number"));
    let dir = tempfile::tempdir_in(stock::target_dir()).expect("a directory");
    let path = dir.path().join("made.durus");
    let made = bigfile::write(&path, objects, TEXT).expect("make the file");
    println!(
        "{} objects, {} of them live, {:.0} MiB",
        made.objects,
        made.live.len(),
        made.bytes as f64 / MIB
    );
    let mut cluster = Builder::default().import(&path).start();
    fs::remove_file(&path).expect("remove the file");
    let under_load = under_load(&cluster, &made.live);
    let late = late_slave(&mut cluster, under_load["local_build_s"].as_f64().expect("a number"));
    cluster.finish();
    println!(
        "{}",
        json!({ "benchmark": "pack in a cluster", "objects": made.objects, "file_bytes": made.bytes,
            "under_load": under_load, "late_slave": late })
    );
}

// ---- a pack under load ----

fn under_load(cluster: &Cluster, live: &[u64]) -> serde_json::Value {
    let load = Load::start(cluster, live);
    sleep(BEFORE);
    let asked = monotonic();
    cluster.ctl(&["pack"]).done();
    let seen = watch(cluster, 2);
    sleep(AFTER);
    let (commits, loads, errors) = load.finish();
    let began = commits.first().expect("commits").told;
    let switch = seen.switched;
    let between = |from: f64, to: f64, all: &[Answer]| -> Vec<f64> {
        let within = all.iter().filter(|answer| answer.told >= from && answer.begun < to);
        within.map(|answer| (answer.told - answer.begun) * 1e3).collect()
    };
    // The first second is the clients' own start.
    let before = between(began + 1.0, asked, &commits);
    let during = between(asked, switch, &commits);
    let times: Vec<f64> = commits.iter().map(|answer| answer.told).collect();
    let (pause, _) = longest_gap(&times, switch - AROUND_SWITCH_S, switch + AROUND_SWITCH_S);
    let (usual, _) = longest_gap(&times, began + 1.0, asked);
    println!("{:<34} {:>8} {:>8} {:>8} {:>8}", "ms", "median", "99 %", "99.9 %", "most");
    let mut rows = Vec::new();
    for (what, latencies) in [
        ("commits before the pack", before.clone()),
        ("commits during the pack", during.clone()),
        ("loads before the pack", between(began + 1.0, asked, &loads)),
        ("loads during the pack", between(asked, switch, &loads)),
    ] {
        let at = |quantile| quantile_of(&latencies, quantile);
        let (p50, p99, p999, most) = (at(0.5), at(0.99), at(0.999), at(1.0));
        println!("{what:<34} {p50:>8.2} {p99:>8.2} {p999:>8.2} {most:>8.2}");
        rows.push(json!({ "what": what, "count": latencies.len(), "p50_ms": p50, "p99_ms": p99, "p999_ms": p999,
            "max_ms": most }));
    }
    let ratio = quantile_of(&during, 0.999) / quantile_of(&before, 0.999);
    let status = cluster.wait_healthy();
    let fetched: u64 = status.nodes.iter().map(|node| node.fetched_bytes).sum();
    println!(
        "pack took {:.1} s; 99.9 % of commits {ratio:.1} times that before (target 3); longest stretch without a commit \
         around the switch {:.0} ms (target 50; before the pack {:.0}); {errors} errors; {fetched} bytes of file data \
         fetched by slaves (target 0)",
        switch - asked,
        pause * 1e3,
        usual * 1e3,
    );
    for (phase, from) in &seen.phases {
        println!("  {:>8.2} s  {phase}", from - asked);
    }
    let slow = commits.iter().filter(|answer| (answer.told - answer.begun) * 1e3 > SLOW_MS);
    let mut moments: Vec<(f64, f64)> =
        slow.map(|answer| (answer.told - asked, (answer.told - answer.begun) * 1e3)).collect();
    moments.sort_by(|a, b| a.0.total_cmp(&b.0));
    for at in moments.chunk_by(|a, b| b.0 - a.0 < 0.02) {
        let most = at.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
        println!("  {:>8.2} s  {} commits of up to {most:.0} ms", at[0].0, at.len());
    }
    let picture = draw(&commits, &seen, asked, began);
    println!("picture: {}", picture.display());
    json!({
        "rows": rows, "pack_s": switch - asked, "p999_ratio": ratio, "pause_ms": pause * 1e3, "usual_gap_ms": usual * 1e3,
        "errors": errors, "fetched_bytes": fetched, "local_build_s": seen.local_build_s,
    })
}

/// What was seen of a pack.
struct Seen {
    /// What began, and when.
    phases: Vec<(String, f64)>,
    switched: f64,
    /// The shortest time from a node's first to its last look at its own build.
    local_build_s: f64,
}

/// Looks at the cluster until `generation` is current everywhere it should be.
fn watch(cluster: &Cluster, generation: u64) -> Seen {
    let began = monotonic();
    let mut phases: Vec<(String, f64)> = Vec::new();
    loop {
        assert!(monotonic() - began < GIVE_UP_S, "the pack does not end: {phases:?}");
        sleep(LOOK);
        let Ok(status) = cluster.try_status() else { continue };
        let at = monotonic();
        if status.generation.as_ref().is_some_and(|now| now.number >= generation) {
            phases.push(("switch".into(), at));
            let local_build_s = shortest_build(&phases);
            return Seen { phases, switched: at, local_build_s };
        }
        let Some(pack) = &status.pack else { continue };
        for node in pack["nodes"].as_array().into_iter().flatten() {
            let (name, phase) = (node["name"].as_str(), node["phase"].as_str());
            let what = format!("{} {}", name.unwrap_or_default(), phase.unwrap_or_default());
            let quiet = what.ends_with("waiting") || what.ends_with("unknown");
            if !quiet && !phases.iter().any(|(known, _)| *known == what) {
                phases.push((what, at));
            }
        }
    }
}

/// From `build` to whatever comes next on the same node.
fn shortest_build(phases: &[(String, f64)]) -> f64 {
    let builds = phases.iter().filter(|(what, _)| what.ends_with(" build"));
    let lengths = builds.filter_map(|(what, from)| {
        let node = what.split(' ').next()?;
        let next = phases
            .iter()
            .filter(|(other, at)| other.starts_with(node) && at > from)
            .map(|(_, at)| *at);
        Some(next.fold(f64::INFINITY, f64::min) - from)
    });
    lengths.filter(|length| length.is_finite()).fold(f64::INFINITY, f64::min)
}

/// Every commit as a dot: when it was acknowledged, and how long it took.
fn draw(commits: &[Answer], seen: &Seen, asked: f64, began: f64) -> PathBuf {
    let dir = stock::target_dir().join("bench");
    fs::create_dir_all(&dir).expect("make the directory of pictures");
    let path = dir.join("pack.svg");
    plot(&path, commits, seen, asked, began).expect("draw the picture");
    path
}

fn plot(
    path: &Path,
    commits: &[Answer],
    seen: &Seen,
    asked: f64,
    began: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let end = commits.last().map_or(1.0, |last| last.told - began);
    let most = commits.iter().map(|it| (it.told - it.begun) * 1e3).fold(1.0, f64::max);
    let root = SVGBackend::new(path, (1200, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Commit latency through a pack", ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, (0.1..most * 1.5).log_scale())?;
    chart.configure_mesh().x_desc("seconds").y_desc("ms (logarithmic)").draw()?;
    chart.draw_series(commits.iter().map(|it| {
        let (x, y) = (it.told - began, (it.told - it.begun) * 1e3);
        Circle::new((x, y.max(0.1)), 1, BLUE.mix(0.25).filled())
    }))?;
    let marks = std::iter::once(("pack asked for".to_string(), asked));
    for (nth, (what, at)) in marks.chain(seen.phases.iter().cloned()).enumerate() {
        let x = at - began;
        chart.draw_series(LineSeries::new([(x, 0.1), (x, most * 1.5)], RED.mix(0.4)))?;
        // One below the other, so that they can be read.
        let height = most * 1.4 / 1.35_f64.powi(nth as i32 % 12);
        chart.draw_series([Text::new(what, (x, height), ("sans-serif", 13).into_font())])?;
    }
    root.present()?;
    Ok(())
}

// ---- a slave that was away ----

/// A pack without one slave; then that is started again.
fn late_slave(cluster: &mut Cluster, local_build_s: f64) -> serde_json::Value {
    let status = cluster.wait_healthy();
    let master = cluster.index(status.master.as_deref().expect("a master"));
    let away = (master + 1) % 3;
    let name = cluster.nodes[away].name.clone();
    cluster.kill(away);
    // It may have been Raft's leader.
    cluster.wait_for("another Raft leader", 20, |cluster| {
        let leader = cluster.try_status().ok()?.raft_leader?;
        (leader != name).then_some(())
    });
    cluster.ctl(&["pack"]).done();
    let seen = watch(cluster, 3);
    let began = monotonic();
    cluster.launch(away);
    let row = cluster.wait_for("the slave to be in step", GIVE_UP_S as u64, |cluster| {
        let status = cluster.try_status().ok()?;
        let row = status.node(&name).clone();
        (status.is_healthy() && row.generation == 3).then_some(row)
    });
    let took = monotonic() - began;
    let local = local_build_s.min(seen.local_build_s);
    println!(
        "a slave that was away through a pack is in step {took:.1} s after its start, {:.1} times a local build of {local:.1} s \
         (target 3); {} bytes of file data fetched",
        took / local,
        row.fetched_bytes
    );
    json!({ "in_step_s": took, "local_build_s": local, "times": took / local, "fetched_bytes": row.fetched_bytes })
}

// ---- clients ----

/// One answer: when it was asked for and when it came, in seconds.
#[derive(Clone, Copy)]
struct Answer {
    begun: f64,
    told: f64,
}

/// Commits, loads, and what went wrong.
type Told = (Vec<Answer>, Vec<Answer>, Vec<String>);

struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Told>>,
}

impl Load {
    fn start(cluster: &Cluster, live: &[u64]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|nth| {
            let to = cluster.nodes[nth % cluster.nodes.len()].durus;
            // A client's own: nobody else stores them.
            let own: Vec<u64> = live.iter().copied().skip(nth + 1).step_by(CLIENTS).collect();
            let stop = stop.clone();
            thread::spawn(move || work(to, nth, &own, &stop))
        });
        Load { stop: stop.clone(), threads: threads.collect() }
    }

    fn finish(self) -> (Vec<Answer>, Vec<Answer>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut commits, mut loads, mut errors) = (Vec::new(), Vec::new(), 0);
        for thread in self.threads {
            let (stored, loaded, failed) = thread.join().expect("a client thread");
            commits.extend(stored);
            loads.extend(loaded);
            errors += failed.len();
            failed.iter().for_each(|why| eprintln!("{why}"));
        }
        commits.sort_by(|a: &Answer, b| a.told.total_cmp(&b.told));
        (commits, loads, errors)
    }
}

fn work(to: SocketAddr, nth: usize, own: &[u64], stop: &AtomicBool) -> Told {
    let (mut commits, mut loads, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let mut client = Client::connect(to).expect("connect");
    let mut place = nth * 7919;
    while !stop.load(Ordering::Relaxed) {
        let mut last = None;
        for _ in 0..LOADS {
            place = (place + 104_729) % own.len();
            let begun = monotonic();
            match client.load(own[place]) {
                Ok(Loaded::Record(record)) => last = Some((own[place], record)),
                other => errors.push(format!("client {nth}: load of {}: {other:?}", own[place])),
            }
            loads.push(Answer { begun, told: monotonic() });
        }
        let Some((oid, mut record)) = last else { break };
        change(&mut record);
        let begun = monotonic();
        match client.commit(&[(oid, record)]) {
            Ok(Committed::Yes) => commits.push(Answer { begun, told: monotonic() }),
            Ok(Committed::Conflict) => errors.push(format!("client {nth}: a conflict")),
            Err(error) => {
                errors.push(format!("client {nth}: {error}"));
                break;
            }
        }
    }
    (commits, loads, errors)
}

/// Another text of the same length: what it refers to stays.
fn change(record: &mut [u8]) {
    let len = u32::from_be_bytes(record[8..12].try_into().expect("4 bytes")) as usize;
    // The text is followed by four bytes of pickle.
    if let Some(letter) = record.get_mut(12 + len - 5) {
        *letter = b'a' + (*letter + 1) % 26;
    }
}

/// Of unsorted values; 1.0 is the greatest.
fn quantile_of(values: &[f64], quantile: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = ((values.len() as f64 * quantile).ceil() as usize).saturating_sub(1);
    values.get(place).copied().unwrap_or(f64::NAN)
}
