//! `packmaster playground` as a newcomer uses it: it starts, clients write, a killed node comes back by itself,
//! the word to stop ends every process, and ports in use are said before anything starts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster_tests::binary::packmaster;
use cluster_tests::chaincheck::check_file;
use cluster_tests::python::{self, Workload};
use cluster_tests::status::Status;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Bases tried; a playground takes ports at the base, 1000 above and 2000 above.
const BASES: std::ops::Range<u16> = 8000..8900;

/// A base nobody else uses, held by a lock file as long as the test runs.
fn reserve_base() -> (u16, File) {
    let start = BASES.start + (std::process::id() % u32::from(BASES.end - BASES.start)) as u16;
    for base in (start..BASES.end).chain(BASES.start..start).step_by(3) {
        let path = std::env::temp_dir().join(format!("packmaster-test-playground-{base}.lock"));
        let lock = File::create(path).expect("make a lock file");
        let all = || [0, 1000, 2000].into_iter().flat_map(|kind| (0..3).map(move |i| kind + i));
        let free = |offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok();
        if lock.try_lock().is_ok() && all().all(free) {
            return (base, lock);
        }
    }
    panic!("no free base of ports in {BASES:?}");
}

/// A playground's process; ended when dropped.
struct Playground {
    child: Child,
    stdout: BufReader<ChildStdout>,
    base: u16,
}

impl Playground {
    fn start(base: u16, data: &Path) -> Playground {
        let mut child = Command::new(packmaster())
            .args(["playground", "--output", "json", "--restart-after", "1s", "--data"])
            .arg(data)
            .args(["--port-base", &base.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a playground");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Playground { child, stdout, base }
    }

    /// The line that says the cluster takes commits.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read from the playground");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"))
    }

    fn wait_healthy(&self) {
        let peers: Vec<String> =
            (0..3).map(|i| format!("127.0.0.1:{}", self.base + 1000 + i)).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = Command::new(packmaster())
                .args(["ctl", "status", "--output", "json", "--node", &peers.join(",")])
                .output()
                .expect("run ctl");
            let status = serde_json::from_slice::<Status>(&output.stdout);
            if status.is_ok_and(|status| status.is_healthy()) {
                return;
            }
            assert!(Instant::now() < deadline, "not healthy: {output:?}");
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // Its nodes end with it: they watch for its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pids(line: &Value) -> Vec<Pid> {
    let nodes = line["nodes"].as_array().expect("nodes");
    let pid = |node: &Value| node["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
    nodes.iter().map(|node| pid(node).expect("a pid")).collect()
}

fn runs(pid: Pid) -> bool {
    Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()
}

#[test]
fn starts_restarts_and_stops() {
    let (base, _lock) = reserve_base();
    let dir = tempfile::tempdir().expect("a directory");
    let mut playground = Playground::start(base, dir.path());
    let line = playground.line();
    let nodes = line["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3);
    for (i, node) in (0u16..).zip(nodes) {
        assert_eq!(node["name"], format!("n{}", i + 1));
        for (kind, offset) in [("durus", 0), ("peer", 1000), ("http", 2000)] {
            assert_eq!(node[kind], format!("127.0.0.1:{}", base + offset + i));
        }
    }
    let journal = dir.path().join("journal");
    let journal = journal.to_str().expect("a plain path");
    let ports: Vec<String> = (0..3).map(|i| (base + i).to_string()).collect();
    let load = Workload::start("writer.py", &["--ports", &ports.join(","), "--journal", journal]);
    sleep(Duration::from_secs(1));
    kill_process(pids(&line)[0], Signal::KILL).expect("kill n1");
    sleep(Duration::from_secs(1));
    playground.wait_healthy();
    let said = load.finish(30);
    assert_eq!(said["errors"], Value::Array(Vec::new()));
    let found = python::run("verify.py", &["--port", &ports[0], "--journal", journal], 60);
    assert_eq!(found["problems"], Value::Array(Vec::new()), "{found}");

    // A second one on the same ports says so and starts nothing.
    let second = second_playground(base);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(told.contains(&base.to_string()), "it should name the port: {told}");
    playground.wait_healthy();

    let all = pids(&line);
    kill_process(Pid::from_child(&playground.child), Signal::TERM).expect("stop it");
    let ended = playground.child.wait().expect("collect it");
    assert!(ended.success(), "{ended}");
    assert!(!all.iter().any(|pid| runs(*pid)), "a node was left behind");
    for i in 0..3 {
        assert!(TcpListener::bind(("127.0.0.1", base + i)).is_ok(), "a port is still in use");
    }
    verify_files(nodes);
}

fn second_playground(base: u16) -> Output {
    Command::new(packmaster())
        .args(["playground", "--output", "json", "--port-base", &base.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("start a second playground")
}

/// Stopped one after the other, the nodes may differ in the last epoch starts and in nothing else; each file is
/// whole, and `shelf verify` says so too.
fn verify_files(nodes: &[Value]) {
    let mut bases = Vec::new();
    for node in nodes {
        let data = Path::new(node["data"].as_str().expect("a directory"));
        let file = data.join("current.durus");
        let checked = check_file(&file);
        bases.push((checked.generation(), checked.seal().chain, checked.commits()));
        let verify = Command::new(packmaster()).args(["shelf", "verify"]).arg(&file).output();
        let verify = verify.expect("run shelf verify");
        assert!(verify.status.success(), "{verify:?}");
    }
    assert!(bases.windows(2).all(|pair| pair[0] == pair[1]), "{bases:?}");
}
