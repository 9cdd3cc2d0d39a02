//! Input that no proper client or peer sends, to each port of each node: that connection is closed, with a line in
//! the log that names the peer, and everybody else goes on as if nothing had happened.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use cluster_tests::client::{Client, PROTOCOL, record};
use cluster_tests::clock::monotonic;
use cluster_tests::cluster::{Cluster, Node};
use cluster_tests::load::Load;
use packmaster::proto::control::{Hello, Lane, PeerMessage};
use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Nonsense is answered by closing at once; this is for a busy machine.
const CLOSED: Duration = Duration::from_secs(8);
/// A client that stops in the middle of a command is dropped after 10 s.
const STALLED: Duration = Duration::from_secs(25);

/// One piece of nonsense and what is done after sending it.
struct Nonsense {
    what: &'static str,
    bytes: Vec<u8>,
    /// Says that nothing more will come.
    hang_up: bool,
    patience: Duration,
}

fn nonsense(what: &'static str, bytes: impl Into<Vec<u8>>) -> Nonsense {
    Nonsense { what, bytes: bytes.into(), hang_up: false, patience: CLOSED }
}

fn cut_off(what: &'static str, bytes: impl Into<Vec<u8>>) -> Nonsense {
    Nonsense { hang_up: true, ..nonsense(what, bytes) }
}

fn stalled(what: &'static str, bytes: impl Into<Vec<u8>>) -> Nonsense {
    Nonsense { patience: STALLED, ..nonsense(what, bytes) }
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A commit of these (oid, record) pairs as it goes over the wire, with the C before it.
fn commit(records: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (oid, record) in records {
        data.extend((8 + record.len() as u32).to_be_bytes());
        data.extend(oid.to_be_bytes());
        data.extend(record);
    }
    [&b"C"[..], &(data.len() as u32).to_be_bytes(), &data].concat()
}

fn for_durus(seed: u64) -> Vec<Nonsense> {
    let mut noise = random(seed, 100_000);
    // No command of the protocol.
    noise[0] = 0xff;
    let one = |oid: u64| (oid, record(oid, b"x", &[]));
    vec![
        nonsense("random bytes", noise),
        nonsense("an unknown command", *b"?"),
        nonsense("another version", [&b"V"[..], &[0, 0, 0, 9]].concat()),
        nonsense("a load of 4 billion objects", [&b"B"[..], &[0xff; 4]].concat()),
        nonsense("a commit of 4 GB", [&b"C"[..], &[0xff; 4]].concat()),
        nonsense("a record longer than its commit", b"C\0\0\0\x0c\0\0\xff\xff\0\0\0\0\0\0\0\x01"),
        nonsense("a record without room for its oid", b"C\0\0\0\x06\0\0\0\x02\0\0"),
        nonsense("the oid twice", commit(&[one(0), one(0)])),
        nonsense("another oid inside", commit(&[(0, record(1, b"x", &[]))])),
        nonsense("an oid that nobody was given", commit(&[one(1 << 40)])),
        nonsense("the oid of chains", commit(&[one(u64::MAX)])),
        nonsense("a reference to the oid of chains", commit(&[(0, record(0, b"x", &[u64::MAX]))])),
        nonsense("half a reference", commit(&[(0, [&one(0).1[..], b"half"].concat())])),
        cut_off("half a load", *b"L\0\0\0"),
        cut_off("half a commit", *b"C\0\0\x10\0\0\0\0\x20"),
        stalled("half a load, then silence", *b"L\0\0\0"),
    ]
}

fn frame(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

fn hello() -> Hello {
    Hello {
        protocol_version: 1,
        cluster: "test".to_string(),
        node: 0,
        boot: 1,
        disk_uuid: vec![7; 16].into(),
        lane: Lane::Control as i32,
    }
}

fn for_peer(seed: u64) -> Vec<Nonsense> {
    let mut noise = random(seed, 100_000);
    // A length that is beyond everything.
    noise[0] = 0xff;
    let garbled = [&64u32.to_be_bytes()[..], &random(seed + 1, 64)].concat();
    let good = frame(&hello());
    let then = |bytes: &[u8]| [&good[..], bytes].concat();
    vec![
        nonsense("random bytes", noise),
        nonsense("4 GB announced", [0xff; 4]),
        nonsense("no message", garbled.clone()),
        nonsense("another protocol version", frame(&Hello { protocol_version: 99, ..hello() })),
        nonsense("another cluster", frame(&Hello { cluster: "other".into(), ..hello() })),
        nonsense("a node that is no member", frame(&Hello { node: 77, ..hello() })),
        nonsense("Hello is not the first", frame(&PeerMessage { kind: None })),
        nonsense("4 GB announced after Hello", then(&[0xff; 4])),
        nonsense("no message after Hello", then(&garbled)),
        cut_off("half a Hello", &good[..good.len() / 2]),
        cut_off("half a frame", then(&[0, 0, 1, 0, 1, 2, 3])),
    ]
}

fn for_http(seed: u64) -> Vec<Nonsense> {
    let mut noise = random(seed, 100_000);
    noise[0] = 0;
    let endless = [&b"GET /status HTTP/1.1\r\nX: "[..], &vec![b'x'; 4 << 20]].concat();
    vec![
        nonsense("random bytes", noise),
        nonsense("another version", *b"GET / HTTP/9.9\r\n\r\n"),
        nonsense("an endless header", endless),
        cut_off("half a request", *b"GET /status HT"),
    ]
}

/// Sends it and expects to be left; returns the address it was sent from.
fn send(to: SocketAddr, nonsense: &Nonsense) -> SocketAddr {
    let mut stream = TcpStream::connect(to).expect("connect");
    let from = stream.local_addr().expect("my address");
    // The node may close before it has read everything: that is an answer too.
    let _ = stream.write_all(&nonsense.bytes);
    if nonsense.hang_up {
        let _ = stream.shutdown(Shutdown::Write);
    }
    stream.set_read_timeout(Some(nonsense.patience)).expect("a timeout");
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return from,
            Ok(_) => {}
            Err(error) => {
                let waited = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!waited, "{to} keeps a connection with {}", nonsense.what);
                return from;
            }
        }
    }
}

/// Sends everything to one port of one node. Where the node is the one to close, its log must say so; a client that
/// hangs up in the middle of a command is no more than one that was killed.
fn send_all(cluster: &Cluster, node: &Node, to: SocketAddr, all: &[Nonsense], logged: bool) {
    for piece in all {
        let from = send(to, piece);
        if logged && !piece.hang_up {
            let what =
                format!("a line about {} from {from} in the log of {}", piece.what, node.name);
            cluster
                .wait_for(&what, 10, |_| node.log_text().contains(&from.to_string()).then_some(()));
        }
    }
}

#[test]
fn disturbs_nobody() {
    let cluster = Cluster::start();
    let load = Load::start(&cluster, true);
    let before = cluster.wait_healthy();
    for (i, node) in cluster.nodes.iter().enumerate() {
        let seed = 100 * i as u64;
        send_all(&cluster, node, node.durus, &for_durus(seed), true);
        send_all(&cluster, node, node.peer, &for_peer(seed + 10), true);
        send_all(&cluster, node, node.http, &for_http(seed + 20), false);
    }
    load.wait_for_commits(&cluster, monotonic());
    let after = cluster.wait_healthy();
    assert_eq!((before.epoch, &before.master), (after.epoch, &after.master));
    let clients: u64 = after.nodes.iter().map(|node| node.clients).sum();
    assert_eq!(clients, 3, "only the writers are left: {after:#?}");
    let said = load.finish(&cluster);
    for error in ["unknown", "conflicts", "refused", "reconnects"] {
        assert_eq!(said[error], 0, "a writer was disturbed ({error}): {said}");
    }
    cluster.finish();
}

/// Connections that say nothing, or go away at once, are nothing to talk about.
#[test]
fn silence_is_no_crime() {
    let cluster = Cluster::start();
    let node = &cluster.nodes[cluster.master()];
    let mut idle = Client::connect(node.durus).expect("connect");
    for _ in 0..200 {
        drop(Client::connect_silent(node.durus).expect("connect"));
        drop(TcpStream::connect(node.peer).expect("connect"));
    }
    assert!(!idle.is_closed_within(Duration::from_secs(12)), "an idle client was dropped");
    // A version byte by byte, and commands of which nobody waits for the answer.
    for byte in [&b"V"[..], &PROTOCOL].concat() {
        idle.send(&[byte]).expect("send");
    }
    assert_eq!(idle.receive::<4>().expect("its version"), PROTOCOL);
    idle.send(b"SSS").expect("send");
    assert_eq!(idle.receive::<12>().expect("three answers"), [0; 12]);
    idle.send(b".").expect("send");
    assert!(idle.is_closed_within(CLOSED), "a client that said goodbye was kept");
    cluster.finish();
}
