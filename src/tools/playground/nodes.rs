//! The node processes of a playground: planned, started, watched, stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::config::{RawConfig, RawMember};

pub const CLUSTER: &str = "playground";
const HOST: &str = "127.0.0.1";
/// As much of a log as a person wants to read.
const LAST_WORDS_LINES: usize = 8;
const LAST_WORDS_BYTES: u64 = 8192;

/// What is to be started, all of it fixed before anything is.
#[derive(Debug)]
pub struct Plan {
    pub nodes: Vec<NodePlan>,
    import: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct NodePlan {
    pub id: u64,
    pub name: String,
    pub durus: String,
    pub peer: String,
    pub http: String,
    pub data: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
}

impl Plan {
    /// `home` is absolute. Refuses an import into nodes that have data already.
    pub fn new(
        count: u16,
        port_base: u16,
        home: &Path,
        import: Option<&Path>,
    ) -> anyhow::Result<Plan> {
        let nodes: Vec<NodePlan> =
            (0..count).map(|index| NodePlan::new(index, port_base, home)).collect();
        let import = match import {
            Some(file) => {
                let name = file.display();
                if let Some(old) = nodes.iter().find(|node| node.data.exists()) {
                    bail!(
                        "{} has data already: import into a new --data directory",
                        old.data.display()
                    );
                }
                File::open(file).with_context(|| format!("cannot read {name}"))?;
                Some(file.canonicalize().with_context(|| format!("cannot read {name}"))?)
            }
            None => None,
        };
        Ok(Plan { nodes, import })
    }

    /// Nothing is started when a port is taken: half a cluster explains itself badly.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            for address in [&node.durus, &node.peer, &node.http] {
                TcpListener::bind(address).with_context(|| {
                    format!(
                        "{}'s port {address} can't be used. Is another playground running? Choose other ports with \
                         --port-base",
                        node.name
                    )
                })?;
            }
        }
        Ok(())
    }

    pub fn write_configurations(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            fs::create_dir_all(&node.data)
                .with_context(|| format!("cannot make {}", node.data.display()))?;
            fs::write(&node.config, self.configuration(node).to_toml())
                .with_context(|| format!("cannot write {}", node.config.display()))?;
        }
        Ok(())
    }

    fn configuration(&self, node: &NodePlan) -> RawConfig {
        let member = |node: &NodePlan| RawMember {
            id: node.id,
            name: node.name.clone(),
            durus: node.durus.clone(),
            peer: node.peer.clone(),
            http: node.http.clone(),
            ..RawMember::default()
        };
        RawConfig {
            cluster: CLUSTER.to_owned(),
            node: node.name.clone(),
            data: node.data.clone(),
            import: self.import.clone(),
            member: self.nodes.iter().map(member).collect(),
            ..RawConfig::default()
        }
    }
}

impl NodePlan {
    fn new(index: u16, port_base: u16, home: &Path) -> NodePlan {
        let name = format!("n{}", index + 1);
        let address = |offset: u16| format!("{HOST}:{}", port_base + offset + index);
        NodePlan {
            id: u64::from(index) + 1,
            durus: address(0),
            peer: address(1000),
            http: address(2000),
            data: home.join(&name),
            config: home.join(format!("{name}.toml")),
            log: home.join(&name).join("node.log"),
            name,
        }
    }
}

/// A node's process, or what is left of it.
pub struct Node {
    pub plan: NodePlan,
    child: Child,
    /// When its death was seen.
    died: Option<Instant>,
}

impl Node {
    pub fn start(plan: &NodePlan) -> anyhow::Result<Node> {
        Ok(Node { plan: plan.clone(), child: spawn(plan)?, died: None })
    }

    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.plan)?;
        self.died = None;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it died, once.
    pub fn newly_dead(&mut self) -> anyhow::Result<Option<String>> {
        if self.died.is_some() {
            return Ok(None);
        }
        let status =
            self.child.try_wait().with_context(|| format!("waiting for {}", self.plan.name))?;
        self.died = status.map(|_| Instant::now());
        Ok(status.map(how))
    }

    /// `None`: it lives.
    pub fn dead_for(&self) -> Option<Duration> {
        self.died.map(|died| died.elapsed())
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        tail(&self.plan.log).unwrap_or_else(|error| format!("(its log can't be read: {error})"))
    }

    fn signal(&self, signal: Signal) {
        // We have not waited for it yet, so the pid is still its own; it may be dead, and that is as well.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    fn is_alive(&mut self) -> bool {
        self.died.is_none() && matches!(self.child.try_wait(), Ok(None))
    }
}

/// In a process group of its own, so that Ctrl-C on the terminal is for the playground alone.
fn spawn(plan: &NodePlan) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program itself")?;
    let open = || OpenOptions::new().append(true).create(true).open(&plan.log);
    let log = open().with_context(|| format!("cannot open {}", plan.log.display()))?;
    let mut command = Command::new(program);
    command.arg("node").arg("--config").arg(&plan.config).arg("--exit-with-stdin");
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("cannot start {}", plan.name))
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_WORDS_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return Ok("(nothing)".to_owned());
    }
    Ok(lines[lines.len().saturating_sub(LAST_WORDS_LINES)..].join("\n"))
}

/// Asks all to stop, waits, and kills who has not by then, or as soon as `hurry` says so.
pub fn stop_all(nodes: &mut [Node], within: Duration, hurry: impl Fn() -> bool) {
    for node in nodes.iter_mut().filter(|node| node.died.is_none()) {
        node.signal(Signal::TERM);
        // A stopped process hears only this.
        node.signal(Signal::CONT);
    }
    let deadline = Instant::now() + within;
    while Instant::now() < deadline && !hurry() && nodes.iter_mut().any(Node::is_alive) {
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in nodes {
        if node.is_alive() {
            eprintln!("{} does not stop (see {}): killed", node.plan.name, node.plan.log.display());
            node.signal(Signal::KILL);
        }
        let _ = node.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn plan(home: &Path, port_base: u16) -> Plan {
        Plan::new(3, port_base, home, None).unwrap()
    }

    #[test]
    fn ports_are_those_of_the_interface() {
        let plan = plan(Path::new("/home"), 2972);
        let n3 = &plan.nodes[2];
        assert_eq!((n3.name.as_str(), n3.durus.as_str()), ("n3", "127.0.0.1:2974"));
        assert_eq!((n3.peer.as_str(), n3.http.as_str()), ("127.0.0.1:3974", "127.0.0.1:4974"));
        assert_eq!(n3.log, Path::new("/home/n3/node.log"));
    }

    #[test]
    fn the_configurations_are_ones_that_a_node_takes() {
        let home = tempfile::tempdir().unwrap();
        let plan = plan(home.path(), 2972);
        plan.write_configurations().unwrap();
        for node in &plan.nodes {
            let config = Config::load(&node.config, &[]).unwrap();
            assert_eq!((config.me().name.as_str(), config.members.len()), (node.name.as_str(), 3));
            assert_eq!(config.listen.durus[0].to_string(), node.durus);
            assert_eq!(config.data, node.data);
        }
    }

    #[test]
    fn a_port_in_use_is_named_with_the_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        // The taken port as some node's peer port, or, near the upper end, as its Durus port.
        let base = if port > 3072 { port - 1000 } else { port };
        let why = plan(Path::new("/home"), base.min(63000)).check_ports().unwrap_err().to_string();
        assert!(why.contains(&port.to_string()) && why.contains("--port-base"), "{why}");
    }

    #[test]
    fn an_import_needs_a_file_and_an_empty_home() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("old.durus");
        assert!(Plan::new(1, 2972, home.path(), Some(&file)).is_err(), "no such file");
        fs::write(&file, "SHELF-1\n").unwrap();
        let plan = Plan::new(1, 2972, home.path(), Some(&file)).unwrap();
        plan.write_configurations().unwrap();
        let written = fs::read_to_string(home.path().join("n1.toml")).unwrap();
        assert!(written.contains("old.durus"), "{written}");
        let why = Plan::new(1, 2972, home.path(), Some(&file)).unwrap_err().to_string();
        assert!(why.contains("has data already"), "{why}");
    }

    #[test]
    fn last_words_are_the_last_lines() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        fs::write(&log, "").unwrap();
        assert_eq!(tail(&log).unwrap(), "(nothing)");
        let lines: Vec<String> = (0..5000).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, lines.concat()).unwrap();
        let words = tail(&log).unwrap();
        assert!(words.starts_with("line 4992\n") && words.ends_with("line 4999"), "{words}");
    }

    fn process(script: &str) -> Node {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        Node { plan: NodePlan::new(0, 2972, Path::new("/home")), child, died: None }
    }

    #[test]
    fn a_death_is_told_once_and_with_its_cause() {
        let mut node = process("exit 3");
        let how = loop {
            if let Some(how) = node.newly_dead().unwrap() {
                break how;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(how, "exit status 3");
        assert!(node.dead_for().is_some());
        assert_eq!(node.newly_dead().unwrap(), None);
    }

    #[test]
    fn who_does_not_stop_is_killed() {
        let stubborn = process("trap '' TERM; while :; do sleep 0.1; done");
        let docile = process("sleep 100");
        std::thread::sleep(Duration::from_millis(100));
        let mut nodes = [stubborn, docile];
        stop_all(&mut nodes, Duration::from_millis(300), || false);
        let signals = nodes.map(|mut node| node.child.wait().unwrap().signal());
        assert_eq!(signals, [Some(9), Some(15)]);
    }
}
