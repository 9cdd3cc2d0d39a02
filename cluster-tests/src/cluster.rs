//! A cluster of real packmaster processes with their own data directories, to be killed, stopped and started by pid.
//!
//! Whatever was started is ended when the `Cluster` is dropped. If a test is panicking then, the end of every node's
//! log is printed and the directories are kept; otherwise they are removed.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::binary::packmaster;
use crate::disks::{SlowDisk, SmallDisk};
use crate::net::Net;
use crate::ports::{BLOCK, Ports};
use crate::proxy::{Lines, Way};
use crate::status::Status;
use crate::stock;

/// How much of a node's log is shown when a test fails.
const LOG_TAIL_BYTES: u64 = 12_000;
/// How long a node may take to stop by itself.
const STOP_S: u64 = 20;
const METRICS_WITHIN: Duration = Duration::from_secs(2);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(30);

/// How a cluster is to be made.
pub struct Builder {
    nodes: usize,
    settings: Vec<String>,
    import: Option<PathBuf>,
    net: Option<Net>,
    small_disks_mib: Option<u32>,
    slow_disks: bool,
    lines: bool,
    host: IpAddr,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            nodes: 3,
            settings: Vec::new(),
            import: None,
            net: None,
            small_disks_mib: None,
            slow_disks: false,
            lines: false,
            host: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl Builder {
    pub fn nodes(mut self, count: usize) -> Self {
        assert!(count >= 1 && count * 3 <= usize::from(BLOCK), "no room for {count} nodes");
        self.nodes = count;
        self
    }

    /// A `--set KEY=VALUE` for every node.
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_string());
        self
    }

    /// A Durus file every node begins with.
    pub fn import(mut self, file: &Path) -> Self {
        self.import = Some(file.to_path_buf());
        self
    }

    /// Every node on a host of its own of this network, the first nodes first; `ctl` on the last host.
    pub fn network(mut self, net: Net) -> Self {
        assert!(net.hosts() > self.nodes, "one host more than nodes");
        self.net = Some(net);
        self
    }

    /// Every node has a file system of this size for itself, which can be filled.
    pub fn small_disks_mib(mut self, mib: u32) -> Self {
        self.small_disks_mib = Some(mib);
        self
    }

    /// Every node's syncs can be slowed down.
    pub fn slow_disks(mut self) -> Self {
        self.slow_disks = true;
        self
    }

    /// What nodes send each other can be slowed down and stalled.
    pub fn lines(mut self) -> Self {
        self.lines = true;
        self
    }

    /// Every node on IPv6's own loopback.
    pub fn ipv6(mut self) -> Self {
        self.host = Ipv6Addr::LOCALHOST.into();
        self
    }

    /// Starts every node and waits until all of them are in step with an open master.
    pub fn start(self) -> Cluster {
        let mut cluster = self.prepare();
        for i in 0..cluster.nodes.len() {
            cluster.launch(i);
        }
        cluster.wait_healthy();
        cluster
    }

    /// Directories, ports and configurations; nothing runs yet.
    pub fn prepare(self) -> Cluster {
        let ports = Ports::reserve();
        let runs = stock::target_dir().join("cluster-tests/runs");
        fs::create_dir_all(&runs).expect("make the directory of test runs");
        let test = thread::current().name().unwrap_or("test").replace("::", "-");
        let dir = tempfile::Builder::new().prefix(&format!("{test}-")).tempdir_in(&runs);
        let dir = dir.expect("make a directory for this cluster");
        let address = |kind: usize, i: usize| -> SocketAddr {
            let index = u16::try_from(kind * self.nodes + i).expect("few ports");
            let host = self.net.as_ref().map(|net| net.address(i));
            SocketAddr::from((host.unwrap_or(self.host), ports.port(index)))
        };
        let nodes: Vec<Node> = (0..self.nodes)
            .map(|i| {
                let name = format!("n{}", i + 1);
                let disk = dir.path().join(format!("{name}.disk"));
                let small_disk = self.small_disks_mib.map(|mib| {
                    SmallDisk::mount(&disk, mib).unwrap_or_else(|e| panic!("a small disk: {e:#}"))
                });
                let data = if small_disk.is_some() { disk } else { dir.path().to_path_buf() };
                let slow_disk = self.slow_disks.then(|| {
                    let control = dir.path().join(format!("{name}.slow"));
                    SlowDisk::make(control).unwrap_or_else(|e| panic!("a slow disk: {e:#}"))
                });
                Node {
                    durus: address(0, i),
                    peer: address(1, i),
                    http: address(2, i),
                    data: data.join(&name),
                    log: dir.path().join(format!("{name}.log")),
                    config: dir.path().join(format!("{name}.toml")),
                    child: None,
                    frozen: false,
                    host: self.net.as_ref().map_or(Vec::new(), |net| net.command(i)),
                    small_disk,
                    slow_disk,
                    name,
                }
            })
            .collect();
        let ways = if self.lines { ways(&nodes, &ports, self.host) } else { Vec::new() };
        for (i, node) in nodes.iter().enumerate() {
            let text = configuration(i, &nodes, &ways, self.import.as_deref());
            fs::write(&node.config, text).expect("write a node's configuration");
        }
        let lines = self.lines.then(|| Lines::open(&ways));
        let (settings, net, dir) = (self.settings, self.net, Some(dir));
        Cluster { nodes, settings, dir, net, lines, _ports: ports }
    }
}

/// A way from every node to every other.
fn ways(nodes: &[Node], ports: &Ports, host: IpAddr) -> Vec<Way> {
    let count = nodes.len();
    let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    let way = |(from, to): (usize, usize)| {
        let index = u16::try_from((3 + from) * count + to).expect("few ports");
        let entrance = SocketAddr::from((host, ports.port(index)));
        Way { from, to, entrance, exit: nodes[to].peer }
    };
    pairs.filter(|(from, to)| from != to).map(way).collect()
}

fn configuration(index: usize, all: &[Node], ways: &[Way], import: Option<&Path>) -> String {
    let me = &all[index];
    let reached = |to: usize| {
        let way = ways.iter().find(|way| (way.from, way.to) == (index, to));
        way.map_or(all[to].peer, |way| way.entrance)
    };
    let mut text = format!("cluster = \"test\"\nnode = {:?}\ndata = {:?}\n", me.name, me.data);
    if let Some(import) = import {
        text += &format!("import = {import:?}\n");
    }
    for (i, node) in all.iter().enumerate() {
        text += &format!(
            "\n[[member]]\nid = {}\nname = {:?}\ndurus = \"{}\"\npeer = \"{}\"\nhttp = \"{}\"\n",
            i + 1,
            node.name,
            node.durus,
            reached(i),
            node.http
        );
    }
    text
}

/// One node; its process may or may not run.
pub struct Node {
    pub name: String,
    pub durus: SocketAddr,
    pub peer: SocketAddr,
    pub http: SocketAddr,
    pub data: PathBuf,
    pub log: PathBuf,
    config: PathBuf,
    child: Option<Child>,
    frozen: bool,
    /// What its command begins with.
    host: Vec<String>,
    small_disk: Option<SmallDisk>,
    slow_disk: Option<SlowDisk>,
}

impl Node {
    /// Its disk, if the cluster has small ones.
    pub fn small_disk(&self) -> &SmallDisk {
        self.small_disk.as_ref().expect("a cluster with small disks")
    }

    /// Its disk, if the cluster has ones that can be slow.
    pub fn slow_disk(&self) -> &SlowDisk {
        self.slow_disk.as_ref().expect("a cluster with disks that can be slow")
    }

    /// The Durus file it serves now.
    pub fn file(&self) -> PathBuf {
        self.data.join("current.durus")
    }

    /// All that its processes have logged.
    pub fn log_text(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(Pid::from_child)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().unwrap_or_else(|| panic!("{} does not run", self.name));
        kill_process(pid, signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.name));
    }
}

/// What `packmaster ctl` answered.
#[derive(Debug)]
pub struct Ctl {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ctl {
    /// The JSON on standard output.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// Panics unless it was done.
    #[track_caller]
    pub fn done(self) -> Ctl {
        assert_eq!(self.code, Some(0), "ctl did not do it: {self:?}");
        self
    }
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    settings: Vec<String>,
    dir: Option<TempDir>,
    net: Option<Net>,
    lines: Option<Lines>,
    _ports: Ports,
}

/// A command that may have to run on another host.
pub fn command_on(host: &[String], program: &Path) -> Command {
    let Some((first, rest)) = host.split_first() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

impl Cluster {
    /// Three nodes with default settings, in step with an open master.
    pub fn start() -> Cluster {
        Builder::default().start()
    }

    /// A directory for what the test itself writes.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("the directory lives as long as the cluster").path()
    }

    /// Starts node `i`'s process.
    #[track_caller]
    pub fn launch(&mut self, i: usize) {
        let command = command_on(&self.nodes[i].host, &packmaster());
        self.launch_by(i, command);
    }

    /// The same by a command that starts it with the arguments that follow.
    pub fn launch_by(&mut self, i: usize, mut command: Command) {
        let node = &mut self.nodes[i];
        assert!(node.child.is_none(), "{} runs already", node.name);
        let log = File::options().create(true).append(true).open(&node.log).expect("open a log");
        command.args(["node", "--config"]).arg(&node.config);
        if let Some(disk) = &node.slow_disk {
            command.envs(disk.environment());
        }
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share a log")).stderr(log);
        node.child = Some(command.spawn().expect("start a node"));
    }

    /// kill -9.
    pub fn kill(&mut self, i: usize) {
        self.nodes[i].signal(Signal::KILL);
        self.nodes[i].frozen = false;
        let mut child = self.nodes[i].child.take().expect("it runs");
        child.wait().expect("collect a killed node");
    }

    /// Waits until node `i` has ended by itself.
    #[track_caller]
    pub fn wait_ended(&mut self, i: usize, seconds: u64) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.has_ended(i) {
                return status;
            }
            assert!(Instant::now() < deadline, "{} goes on", self.nodes[i].name);
            thread::sleep(LOOK);
        }
    }

    /// SIGSTOP: the process is there and does nothing.
    pub fn stop(&mut self, i: usize) {
        self.nodes[i].signal(Signal::STOP);
        self.nodes[i].frozen = true;
    }

    /// SIGCONT.
    pub fn cont(&mut self, i: usize) {
        self.nodes[i].signal(Signal::CONT);
        self.nodes[i].frozen = false;
    }

    /// Its process has ended by itself: how; None if it runs.
    pub fn has_ended(&mut self, i: usize) -> Option<ExitStatus> {
        let child = self.nodes[i].child.as_mut()?;
        let status = child.try_wait().expect("look at a node")?;
        self.nodes[i].child = None;
        Some(status)
    }

    /// The network, if the cluster has one of its own.
    pub fn net(&mut self) -> &mut Net {
        self.net.as_mut().expect("a cluster with a network of its own")
    }

    /// What is between the nodes, if the cluster has such lines.
    pub fn lines(&self) -> &Lines {
        self.lines.as_ref().expect("a cluster with lines")
    }

    /// What commands on this node's host begin with; on the outside, if there is no such node.
    pub fn host(&self, i: usize) -> Vec<String> {
        self.net.as_ref().map_or(Vec::new(), |net| net.command(i.min(net.outside())))
    }

    /// SIGTERM, and waits until the process has ended by itself.
    pub fn terminate(&mut self, i: usize) -> ExitStatus {
        self.nodes[i].signal(Signal::TERM);
        let mut child = self.nodes[i].child.take().expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(STOP_S);
        loop {
            if let Some(status) = child.try_wait().expect("look at a node") {
                return status;
            }
            if Instant::now() > deadline {
                self.nodes[i].child = Some(child);
                panic!("{} did not stop within {STOP_S} s of SIGTERM", self.nodes[i].name);
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends every node in order and looks whether any of them has panicked while the test ran.
    pub fn finish(mut self) {
        for i in self.running() {
            let status = self.terminate(i);
            assert!(status.success(), "{} ended with {status}", self.nodes[i].name);
        }
        for node in &self.nodes {
            let log = node.log_text();
            assert!(!log.contains("panicked at"), "{} has panicked", node.name);
        }
    }

    /// The nodes whose process was started and not ended.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].child.is_some()).collect()
    }

    /// The Durus ports of these nodes, for workloads.
    pub fn durus_ports(&self, of: &[usize]) -> String {
        let ports: Vec<String> =
            of.iter().map(|&i| self.nodes[i].durus.port().to_string()).collect();
        ports.join(",")
    }

    pub fn index(&self, name: &str) -> usize {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// Runs `packmaster ctl` against the nodes that run and are not stopped.
    pub fn ctl(&self, verb: &[&str]) -> Ctl {
        let awake = self.nodes.iter().filter(|node| node.child.is_some() && !node.frozen);
        self.ctl_of(awake, verb)
    }

    /// The same, against one node.
    pub fn ctl_on(&self, i: usize, verb: &[&str]) -> Ctl {
        self.ctl_of(std::iter::once(&self.nodes[i]), verb)
    }

    fn ctl_of<'a>(&self, nodes: impl Iterator<Item = &'a Node>, verb: &[&str]) -> Ctl {
        let peers: Vec<String> = nodes.map(|node| node.peer.to_string()).collect();
        let outside = self.net.as_ref().map(|net| net.command(net.outside())).unwrap_or_default();
        let output = command_on(&outside, &packmaster())
            .arg("ctl")
            .args(verb)
            .args(["--node", &peers.join(","), "--output", "json"])
            .stdin(Stdio::null())
            .output()
            .expect("run ctl");
        Ctl {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What the cluster says of itself, or why nothing was learnt.
    pub fn try_status(&self) -> Result<Status, String> {
        let answer = self.ctl(&["status", "--timeout", "2s"]);
        if answer.code != Some(0) {
            return Err(format!("exit status {:?}, {}", answer.code, answer.stderr.trim()));
        }
        let parsed = serde_json::from_str(&answer.stdout);
        Ok(parsed.unwrap_or_else(|e| panic!("status is not as documented ({e}): {answer:?}")))
    }

    /// A number of this node's `/metrics`, by its name with its labels; None if the node does not answer or has it not.
    pub fn metric(&self, i: usize, name: &str) -> Option<u64> {
        let address = self.nodes[i].http;
        let mut page = TcpStream::connect_timeout(&address, METRICS_WITHIN).ok()?;
        page.set_read_timeout(Some(METRICS_WITHIN)).ok()?;
        page.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        page.read_to_string(&mut text).ok()?;
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.filter_map(|value| value.parse::<f64>().ok()).map(|value| value as u64).next()
    }

    /// The index of the open master.
    #[track_caller]
    pub fn master(&self) -> usize {
        self.wait_for("an open master", 20, |cluster| {
            cluster.try_status().ok()?.master.map(|name| cluster.index(&name))
        })
    }

    /// Waits until `look` finds something; looks often. Fails at once if a node has ended that nobody ended.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        seconds: u64,
        mut look: impl FnMut(&Cluster) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            self.check_running();
            if Instant::now() > deadline {
                let status = self.try_status();
                panic!("waited {seconds} s for {what}; the cluster says {status:#?}");
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits until there is an open master and every node is in step with it.
    #[track_caller]
    pub fn wait_healthy(&self) -> Status {
        self.wait_for("a healthy cluster", 30, |cluster| {
            cluster.try_status().ok().filter(Status::is_healthy)
        })
    }

    /// Waits until nothing moves any more: healthy, and every node at the same end. Only while nobody writes.
    #[track_caller]
    pub fn wait_level(&self) -> Status {
        self.wait_for("every node at the same end", 30, |cluster| {
            cluster.try_status().ok().filter(|status| status.is_healthy() && status.is_level())
        })
    }

    fn check_running(&self) {
        for node in &self.nodes {
            let Some(pid) = node.pid() else { continue };
            // A process that ended and was not collected is a zombie: its state letter comes after the last ')'.
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            let ended = match stat {
                Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")),
                Err(_) => true,
            };
            assert!(!ended, "{} has ended by itself", node.name);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // SIGKILL ends a stopped process too. Nothing is left to do if it has ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if thread::panicking() {
            for node in &self.nodes {
                eprintln!("---- end of the log of {} ----\n{}", node.name, log_tail(&node.log));
            }
            if let Some(dir) = self.dir.take() {
                eprintln!("---- kept: {} ----", dir.keep().display());
            }
        }
    }
}

fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(cannot read it: {error})"),
    }
}
