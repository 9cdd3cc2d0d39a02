//! A network of its own for a cluster: each node in a network namespace, with an address of its own, and an Ethernet
//! switch between them (python/switch.py) that loses, delays and cuts off frames as it is told.
//!
//! The last host is the outside: clients and `ctl` that run on no node's machine. Addresses are of 192.0.2.0/24, which
//! belongs to nobody. Namespaces bear the pid of who made them; those of processes that are gone are removed first.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use crate::stock;

const PREFIX: &str = "pmtest";

pub struct Net {
    namespaces: Vec<String>,
    switch: Option<(Child, BufReader<ChildStdout>)>,
    cut: Vec<(usize, usize)>,
    loss_permille: u32,
    delay_ms: (u32, u32),
}

impl Net {
    /// So many hosts that reach each other; or why that can't be had on this machine.
    pub fn make(hosts: usize, seed: u64) -> Result<Net, String> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        if !Path::new("/dev/net/tun").exists() {
            return Err("the kernel has no /dev/net/tun".into());
        }
        remove_stale();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let mut net = Net {
            namespaces: Vec::new(),
            switch: None,
            cut: Vec::new(),
            loss_permille: 0,
            delay_ms: (0, 0),
        };
        for host in 0..hosts {
            let name = format!("{PREFIX}-{pid}-{number}-{}", host + 1);
            ip(&["netns", "add", &name])?;
            net.namespaces.push(name);
        }
        net.start_switch(seed)?;
        for (host, name) in net.namespaces.iter().enumerate() {
            let hardware = format!("02:00:00:00:00:{:02x}", host + 1);
            let address = format!("{}/24", net.address(host));
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "eth0", "address", &hardware])?;
            ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
        }
        Ok(net)
    }

    fn start_switch(&mut self, seed: u64) -> Result<(), String> {
        let mut child = Command::new("python3")
            .arg("-B")
            .arg(stock::workspace().join("cluster-tests/python/switch.py"))
            .arg(seed.to_string())
            .args(&self.namespaces)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("start the switch: {e}"))?;
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        self.switch = Some((child, answers));
        self.await_ok().map_err(|why| format!("the switch does not start: {why}"))
    }

    fn await_ok(&mut self) -> Result<(), String> {
        let (_, answers) = self.switch.as_mut().expect("the switch runs");
        let mut line = String::new();
        answers.read_line(&mut line).map_err(|e| e.to_string())?;
        if line == "ok\n" { Ok(()) } else { Err(format!("it said {line:?}")) }
    }

    pub fn hosts(&self) -> usize {
        self.namespaces.len()
    }

    /// The host that is no node's.
    pub fn outside(&self) -> usize {
        self.hosts() - 1
    }

    pub fn address(&self, host: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(host + 1).expect("few hosts")))
    }

    /// What a command must begin with to run on this host.
    pub fn command(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespaces[host]].map(String::from).to_vec()
    }

    // ---- faults ----

    /// What `from` sends does not reach `to` any more.
    pub fn cut_way(&mut self, from: usize, to: usize) {
        self.cut.push((from, to));
        self.tell();
    }

    /// Nothing goes between `host` and the others.
    pub fn cut_off(&mut self, host: usize, others: &[usize]) {
        self.cut.extend(others.iter().flat_map(|&other| [(host, other), (other, host)]));
        self.tell();
    }

    /// Of a thousand frames so many are lost; the others take between so many milliseconds.
    pub fn worsen(&mut self, loss_permille: u32, delay_ms: (u32, u32)) {
        (self.loss_permille, self.delay_ms) = (loss_permille, delay_ms);
        self.tell();
    }

    /// A perfect network again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.worsen(0, (0, 0));
    }

    fn tell(&mut self) {
        let faults =
            json!({ "cut": self.cut, "loss": self.loss_permille, "delay_ms": self.delay_ms });
        let (child, _) = self.switch.as_mut().expect("the switch runs");
        let stdin = child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{faults}").expect("the switch listens");
        self.await_ok().expect("the switch does as it is told");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some((mut switch, _)) = self.switch.take() {
            // It may have ended by itself.
            let _ = switch.kill();
            let _ = switch.wait();
        }
        for name in &self.namespaces {
            // What is left here is removed by the next who makes a network.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|e| format!("run `ip`: {e} (on Debian: apt install iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`ip {}`: {}", args.join(" "), said.trim()))
}

/// Removes the namespaces of test processes that are gone.
fn remove_stale() {
    let Ok(list) = fs::read_dir("/run/netns") else { return };
    for entry in list.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        if parts.next() == Some(PREFIX)
            && let Some(pid) = parts.next()
            && !Path::new("/proc").join(pid).exists()
        {
            // Another test process may be doing the same.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}
