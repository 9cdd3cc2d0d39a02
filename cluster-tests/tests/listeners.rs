//! Where a node listens for Durus clients: several addresses at once, Unix sockets with their permissions, IPv6, sockets
//! that systemd has opened; what stops it; and what is said when it can't listen.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::binary::packmaster;
use cluster_tests::client::Client;
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::{python, stock};

/// A stock client adds one to a number at this address.
fn count(address: &str) -> u64 {
    python::run("address.py", &[address], 60)["n"].as_u64().expect("a number")
}

fn single(listen: &[&str]) -> Builder {
    let list = listen.iter().map(|address| format!("{address:?}")).collect::<Vec<_>>().join(", ");
    Builder::default().nodes(1).set(&format!("listen.durus=[{list}]"))
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("durus.sock")
}

#[test]
fn all_addresses_serve_the_same_sessions_and_are_named() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = socket(dir.path());
    let path = path.to_str().expect("a plain path");
    let name = format!("@pm-listeners-{}", std::process::id());
    // What a process that was killed leaves behind.
    drop(UnixListener::bind(path).expect("make a socket"));
    let ports = cluster_tests::ports::Ports::reserve();
    let dual = format!("[::]:{}", ports.port(0));
    let mut cluster = single(&[&dual, path, &name]).set("listen.unix.umask=0117").start();
    let addresses = [format!("127.0.0.1:{}", ports.port(0)), format!("[::1]:{}", ports.port(0))];
    let addresses = [&addresses[0], &addresses[1], path, &name];
    for (n, address) in (1..).zip(addresses) {
        assert_eq!(count(address), n, "{address}");
    }
    let there = fs::symlink_metadata(path).expect("the socket's file");
    assert_eq!(there.mode() & 0o777, 0o660);
    let log = cluster.nodes[0].log_text();
    for listener in [&dual, path, &name] {
        assert!(
            log.contains(&format!("listening for Durus clients, listener: {listener}")),
            "{log}"
        );
    }
    // A line about a client says where it came in and who it is.
    let nonsense = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'?'); s.recv(1)";
    let mut python = Command::new(stock::python());
    assert!(python.args(["-c", nonsense, path]).status().expect("run python").success());
    cluster.wait_for("a line about nonsense", 5, |cluster| {
        let log = cluster.nodes[0].log_text();
        let line = log.lines().find(|line| line.contains("unknown command byte 0x3f"))?;
        assert!(
            line.contains("from: process ") && line.contains(&format!("listener: {path}")),
            "{line}"
        );
        Some(())
    });
    // Killed, it leaves its socket; started again, it takes it; stopped, it removes it.
    cluster.kill(0);
    assert!(fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()));
    cluster.launch(0);
    cluster.wait_healthy();
    assert_eq!(count(path), 5);
    cluster.finish();
    assert!(fs::symlink_metadata(path).is_err(), "a clean stop leaves its socket behind");
}

#[test]
fn every_port_may_be_ipv6() {
    let cluster = Builder::default().ipv6().start();
    for (n, node) in (1..).zip(&cluster.nodes) {
        assert_eq!(count(&node.durus.to_string()), n);
    }
    let mut page = std::net::TcpStream::connect(cluster.nodes[0].http).expect("the pages");
    std::io::Write::write_all(&mut page, b"GET /health HTTP/1.0\r\n\r\n").expect("ask");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut page, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    cluster.wait_level();
    cluster.finish();
}

/// A program that does as systemd does. Sockets: a port of 127.0.0.1, `[::1]:PORT`, a path, `@NAME`; after a `!`: one that
/// does not listen. `pid`: whom they are for, if not the process itself.
fn activated_as(sockets: &[String], pid: Option<u32>) -> Command {
    const AS_SYSTEMD: &str = r#"
import os, socket, sys
listeners = []
pid, count = sys.argv[1], int(sys.argv[2])
for address in sys.argv[3:3 + count]:
    listens, address = address[0] != '!', address.lstrip('!')
    if address[0] in '/@':
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.replace('@', '\0'))
    else:
        six = address.startswith('[')
        listener = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(('::1' if six else '127.0.0.1', int(address.rpartition(':')[2])))
    if listens:
        listener.listen(100)
    listeners.append(os.dup(listener.fileno()))
for number, fd in enumerate(listeners):
    os.dup2(fd, 100 + number, inheritable=False)
for number in range(count):
    os.dup2(100 + number, 3 + number, inheritable=True)
os.environ['LISTEN_FDS'] = str(count)
os.environ['LISTEN_PID'] = pid or str(os.getpid())
os.execv(sys.argv[3 + count], sys.argv[3 + count:])
"#;
    let mut command = Command::new(stock::python());
    let pid = pid.map_or(String::new(), |pid| pid.to_string());
    command
        .args(["-c", AS_SYSTEMD, &pid, &sockets.len().to_string()])
        .args(sockets)
        .arg(packmaster());
    command
}

fn activated(sockets: &[String]) -> Command {
    activated_as(sockets, None)
}

#[test]
fn sockets_from_systemd_are_taken_in_place_of_the_configured_ones() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = socket(dir.path()).to_str().expect("a plain path").to_string();
    let mut cluster = Builder::default().nodes(1).prepare();
    // The configuration's own port is left alone, so that it can be one of those passed.
    let port = cluster.nodes[0].durus.port().to_string();
    cluster.launch_by(0, activated(&[port.clone(), path.clone()]));
    cluster.wait_healthy();
    assert_eq!(count(&format!("127.0.0.1:{port}")), 1);
    assert_eq!(count(&path), 2);
    let log = cluster.nodes[0].log_text();
    assert!(log.contains("listener: systemd's socket 1 (127.0.0.1:"), "{log}");
    assert!(log.contains(&format!("listener: systemd's socket 2 ({path})")), "{log}");
    cluster.finish();
    assert!(fs::symlink_metadata(&path).is_ok(), "systemd's socket is not ours to remove");
}

#[test]
fn systemd_may_pass_ipv6_and_abstract_sockets() {
    let mut cluster = Builder::default().nodes(1).prepare();
    let port = cluster.nodes[0].durus.port();
    let (six, name) = (format!("[::1]:{port}"), format!("@pm-activated-{}", std::process::id()));
    cluster.launch_by(0, activated(&[six.clone(), name.clone()]));
    cluster.wait_healthy();
    assert_eq!(count(&six), 1);
    assert_eq!(count(&name), 2);
    let log = cluster.nodes[0].log_text();
    for (number, listener) in [(1, &six), (2, &name)] {
        let said = format!("listener: systemd's socket {number} ({listener})");
        assert!(log.contains(&said), "{said} is not in {log}");
    }
    cluster.finish();
}

/// The variables are inherited by whatever a process starts, and are for one of them only.
#[test]
fn sockets_that_are_for_another_process_are_not_taken() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = socket(dir.path()).to_str().expect("a plain path").to_string();
    let mut cluster = Builder::default().nodes(1).prepare();
    cluster.launch_by(0, activated_as(&[path], Some(std::process::id())));
    cluster.wait_healthy();
    assert_eq!(count(&cluster.nodes[0].durus.to_string()), 1, "its configuration counts");
    assert!(!cluster.nodes[0].log_text().contains("systemd's socket"));
    cluster.finish();
}

#[test]
fn a_socket_from_systemd_that_does_not_listen_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = socket(dir.path()).to_str().expect("a plain path").to_string();
    let mut cluster = Builder::default().nodes(1).prepare();
    let port = cluster.nodes[0].durus.port().to_string();
    cluster.launch_by(0, activated(&[port, format!("!{path}")]));
    let status = cluster.wait_ended(0, 20);
    let log = cluster.nodes[0].log_text();
    let said =
        log.contains("socket 2 passed by systemd is a connection") && log.contains("Accept=no");
    assert!(!status.success() && said, "{status}: {log}");
}

/// The node does not start, and says this.
fn refused(settings: &[String], said: &str) {
    let mut builder = Builder::default().nodes(1);
    for setting in settings {
        builder = builder.set(setting);
    }
    let mut cluster = builder.prepare();
    cluster.launch(0);
    let status = cluster.wait_ended(0, 20);
    let log = cluster.nodes[0].log_text();
    assert!(!status.success() && log.contains(said), "{status}: {log}");
}

#[test]
fn what_keeps_a_node_from_listening_is_said_with_the_remedy() {
    let dir = tempfile::tempdir().expect("make a directory");
    let at = |name: &str| format!("listen.durus={}", dir.path().join(name).display());
    fs::write(dir.path().join("precious"), "data").expect("write a file");
    refused(&[at("precious")], "no socket, which is left alone: move it away");
    assert_eq!(fs::read(dir.path().join("precious")).expect("it is there"), b"data");
    let _held = UnixListener::bind(dir.path().join("held")).expect("listen");
    refused(&[at("held")], "another process listens on it: stop that one");
    refused(&[at("no/such/place")], "its directory does not exist: make it");
    let owner = "listen.unix.owner=no-such-user".to_string();
    refused(&[at("new"), owner], "there is no user \"no-such-user\" on this machine");
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let held = held.local_addr().expect("its address");
    refused(&[format!("listen.durus={held}")], "stop whoever listens there");
    refused(&["listen.http=192.0.2.1:80".into()], "(listen.http)");
}

/// `durus -s --stop` asks, and then looks until nobody answers any more.
#[test]
fn a_stock_stop_stops_a_node_that_may_be_stopped() {
    let stop = |cluster: &Cluster| {
        let port = cluster.nodes[0].durus.port().to_string();
        let mut stop = Command::new(stock::python());
        stop.args(["-m", "durus", "-s", "--stop", "--port", &port]).stdout(Stdio::null());
        stop.stderr(Stdio::null()).status().expect("run a stock stop").success()
    };
    let mut cluster = Builder::default().nodes(1).set("limits.allow_quit=true").start();
    count(&cluster.nodes[0].durus.to_string());
    assert!(stop(&cluster));
    let status = cluster.wait_ended(0, 5);
    assert!(status.success(), "{status}");
    cluster.launch(0);
    cluster.wait_healthy();
    assert_eq!(count(&cluster.nodes[0].durus.to_string()), 2);
    cluster.finish();

    let cluster = Builder::default().nodes(1).start();
    let mut bystander = Client::connect(cluster.nodes[0].durus).expect("connect");
    let mut quitter = Client::connect(cluster.nodes[0].durus).expect("connect");
    quitter.send(b"Q").expect("send");
    assert!(quitter.is_closed_within(Duration::from_secs(5)));
    bystander.sync().expect("it goes on");
    cluster.wait_for("a line about it", 5, |cluster| {
        cluster.nodes[0].log_text().contains("limits.allow_quit").then_some(())
    });
    cluster.finish();
}

/// A newcomer's two commands, in place of `durus -s --file F --port P`.
#[test]
fn a_single_node_comes_from_the_options_of_a_stock_server() {
    let dir = tempfile::tempdir().expect("make a directory");
    let ports = cluster_tests::ports::Ports::reserve();
    let file = dir.path().join("site.durus");
    let port = ports.port(0);
    let theirs = stock::Server::start(&file, port);
    assert_eq!(count(&theirs.address.to_string()), 1);
    drop(theirs);
    let before = fs::read(&file).expect("the stock file");
    let mut config = Command::new(packmaster());
    config.args(["config", "single", "--allow-quit", "--file"]).arg(&file);
    config.args(["--port", &port.to_string()]);
    for (option, index) in [("--peer", 1), ("--http", 2)] {
        config.arg(option).arg(format!("127.0.0.1:{}", ports.port(index)));
    }
    let printed = config.output().expect("print a configuration");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let toml = dir.path().join("packmaster.toml");
    fs::write(&toml, &printed.stdout).expect("write the configuration");
    let mut node = Command::new(packmaster());
    node.args(["node", "--config"]).arg(&toml).stderr(Stdio::null());
    let mut node = node.spawn().expect("start the node");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(std::time::Instant::now() < deadline, "nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(count(&format!("127.0.0.1:{port}")), 2, "what stock stored, and one");
    let mut stop = Command::new(stock::python());
    stop.args(["-m", "durus", "-s", "--stop", "--port", &port.to_string()]);
    assert!(stop.stderr(Stdio::null()).status().expect("run a stock stop").success());
    assert!(stock::ends_within(&mut node, Duration::from_secs(5)));
    assert_eq!(fs::read(&file).expect("the stock file"), before, "it was touched");
    // And back: stock Durus serves the node's file.
    let theirs = stock::Server::start(&dir.path().join("site.packmaster/current.durus"), port);
    assert_eq!(count(&theirs.address.to_string()), 3);
}
