//! Real processes: one message with a number that can't be true, in the name of another node, over a connection of its own.
//! The cluster goes on, nothing of it becomes durable, and `ctl status` says in whose name it came. And what becomes of a node
//! whose Raft log is gone.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cluster_tests::client::{Client, Committed, record};
use cluster_tests::cluster::Cluster;
use packmaster::proto::control::peer_message::Kind;
use packmaster::proto::control::{Beat, FenceRequest, Hello, PeerMessage, PeerView, RaftMessage};
use prost::Message;

/// After a forged message a commit is acknowledged within this time; usually at once.
const GO_ON: Duration = Duration::from_secs(3);
const LOGS: [&str; 2] = ["raft-a.log", "raft-b.log"];

fn frame(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let len = u32::try_from(bytes.len()).expect("a small message");
    [&len.to_be_bytes()[..], &bytes].concat()
}

fn connect(cluster: &Cluster, to: usize) -> TcpStream {
    let stream = TcpStream::connect(cluster.nodes[to].peer).expect("connect to a node");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a patience");
    stream
}

/// Who a node says it is.
fn identity(cluster: &Cluster, of: usize) -> Hello {
    let mut stream = connect(cluster, of);
    stream.write_all(&frame(&Hello { protocol_version: 1, ..Hello::default() })).expect("ask");
    let mut len = [0; 4];
    stream.read_exact(&mut len).expect("an answer");
    let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut bytes).expect("a hello");
    Hello::decode(&bytes[..]).expect("a hello")
}

/// One message to node `to` in the name of node `from`. Both in one write: the true peer connects again at once.
fn forge(cluster: &Cluster, from: usize, to: usize, kind: Kind) {
    let hello = Hello { lane: 0, ..identity(cluster, from) };
    let message = PeerMessage { kind: Some(kind) };
    let mut stream = connect(cluster, to);
    stream.write_all(&[frame(&hello), frame(&message)].concat()).expect("send");
    std::thread::sleep(Duration::from_millis(200));
}

/// A new object, through this node's client port.
fn commit(cluster: &Cluster, through: usize) {
    let began = Instant::now();
    let mut client = Client::connect(cluster.nodes[through].durus).expect("a client");
    loop {
        client.sync().expect("a sync");
        let oid = client.new_oids(1).expect("an oid")[0];
        let done = client.commit(&[(oid, record(oid, b"data", &[]))]).expect("a commit");
        assert!(began.elapsed() < GO_ON, "a commit took {:?}", began.elapsed());
        if let Committed::Yes = done {
            return;
        }
    }
}

fn restart_all(cluster: &mut Cluster) {
    for i in 0..3 {
        cluster.kill(i);
    }
    for i in 0..3 {
        cluster.launch(i);
    }
}

#[test]
fn a_forged_number_ends_nothing_and_is_named() {
    let mut cluster = Cluster::start();
    commit(&cluster, 0);
    let far = [(1u64 << 62) - 1, 1 << 63, u64::MAX, 1 << 40];
    for (round, number) in far.into_iter().enumerate() {
        let before = cluster.wait_healthy();
        for to in 0..3 {
            let from = (to + 1) % 3;
            let raft = |term, commit| {
                let (from, to) = (from as u64 + 1, to as u64 + 1);
                Kind::Raft(RaftMessage {
                    msg_type: 8,
                    from,
                    to,
                    term,
                    commit,
                    ..Default::default()
                })
            };
            // a9, a2, a3 of the trials, and a view that accuses a sound disk.
            forge(&cluster, from, to, raft(number, 0));
            forge(&cluster, from, to, raft(1_000_000, 1_000_000_000));
            forge(&cluster, from, to, Kind::FenceRequest(FenceRequest { epoch: number }));
            let view = PeerView { node: to as u64 + 1, promised: number, ..PeerView::default() };
            let beat = Beat { promised: 1, views: vec![view], ..Beat::default() };
            forge(&cluster, from, to, Kind::Beat(Box::new(beat)));
            commit(&cluster, round % 3);
        }
        let after = cluster.wait_healthy();
        assert!(after.epoch < before.epoch + 10, "epoch {} after {}", after.epoch, before.epoch);
        assert!(after.summary.contains("sends what can't be true"), "{}", after.summary);
    }
    let json = cluster.ctl(&["status"]).done().json();
    for node in json["nodes"].as_array().expect("nodes") {
        let told = node["disbelieved"].as_array().expect("a list");
        assert!(!told.is_empty(), "{node}");
    }
    assert!(
        cluster.metric(0, "packmaster_disbelieved{node=\"n2\"}").is_some_and(|times| times > 0)
    );
    restart_all(&mut cluster);
    let after = cluster.wait_healthy();
    assert!(after.epoch < 100, "epoch {}", after.epoch);
    commit(&cluster, 1);
    cluster.finish();
}

fn lose_raft_log(cluster: &Cluster, of: usize) {
    for name in LOGS {
        fs::remove_file(cluster.nodes[of].data.join(name)).expect("a Raft log");
    }
}

#[test]
fn a_node_without_its_raft_log_says_so_and_the_others_go_on() {
    let mut cluster = Cluster::start();
    commit(&cluster, 0);
    let master = cluster.master();
    let lost = (master + 1) % 3;
    cluster.kill(lost);
    let kept = fs::read(cluster.nodes[lost].data.join(LOGS[0])).expect("a Raft log");
    lose_raft_log(&cluster, lost);
    cluster.launch(lost);
    let name = cluster.nodes[lost].name.clone();
    let status = cluster.wait_for("its word", 20, |cluster| {
        let status = cluster.try_status().ok()?;
        status.node(&name).state.contains("its Raft log").then_some(status)
    });
    for node in status.nodes.iter().filter(|node| node.name != name) {
        assert!(!node.state.contains("suspect"), "the wrong one is accused: {status:?}");
    }
    assert!(
        status.next.iter().any(|next| next.contains("has lost its memory")),
        "{:?}",
        status.next
    );
    commit(&cluster, master);
    // It was only moved away: back in its place, all is well.
    cluster.kill(lost);
    fs::write(cluster.nodes[lost].data.join(LOGS[0]), kept).expect("put it back");
    cluster.launch(lost);
    cluster.wait_healthy();
    commit(&cluster, lost);
    cluster.finish();
}

/// exp2 of the trials: what two nodes have acknowledged is not forgotten by one of them and the third.
#[test]
fn what_was_agreed_is_not_lost_with_one_raft_log() {
    let mut cluster = Cluster::start();
    let keep = cluster.master();
    let (lag, lose) = ((keep + 1) % 3, (keep + 2) % 3);
    cluster.stop(lag);
    cluster.ctl(&["config", "set", "pack.bytes", "7777"]).done();
    for i in [keep, lose, lag] {
        cluster.kill(i);
    }
    lose_raft_log(&cluster, lose);
    cluster.launch(lag);
    cluster.launch(lose);
    let (kept, lost) = (cluster.nodes[keep].name.clone(), cluster.nodes[lose].name.clone());
    let until = Instant::now() + Duration::from_secs(6);
    let mut told = None;
    while Instant::now() < until {
        let Ok(status) = cluster.try_status() else { continue };
        assert_eq!(status.master, None, "they went on as if nothing had been: {status:?}");
        let named = status.summary.contains(&format!("{lost} takes no part: its Raft log"));
        let next = status.next.iter().any(|next| next.contains(&format!("{kept} does not answer")));
        told = Some(status).filter(|_| named && next).or(told);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(told.is_some(), "status does not say why, and what to do: {:?}", cluster.try_status());
    cluster.launch(keep);
    cluster.wait_for("a master", 20, |cluster| cluster.try_status().ok()?.master);
    let settings = cluster.ctl(&["config", "show"]).done().stdout;
    assert!(settings.contains("7777"), "what was acknowledged is gone: {settings}");
    commit(&cluster, lag);
    cluster.finish();
}

/// The landed program's directories: a plain identity, and a promise only after the first election.
#[test]
fn a_directory_of_an_older_program_starts_unharmed() {
    let mut cluster = Cluster::start();
    commit(&cluster, 0);
    for i in 0..3 {
        cluster.kill(i);
        let path = cluster.nodes[i].data.join("identity.toml");
        let text = fs::read_to_string(&path).expect("an identity");
        assert!(text.contains("born = true"), "{text}");
        let older: String = text
            .lines()
            .filter(|line| !line.starts_with("born"))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(&path, older).expect("an older one");
    }
    for i in 0..3 {
        cluster.launch(i);
    }
    cluster.wait_healthy();
    commit(&cluster, 2);
    let text =
        fs::read_to_string(cluster.nodes[0].data.join("identity.toml")).expect("an identity");
    assert!(text.contains("born = true"), "{text}");
    cluster.finish();
}
