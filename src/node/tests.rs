//! Whole shells on loopback, with a stand-in for the core that notes what it is told and does what it is asked.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prost::Message;
use slog::Logger;

use super::core::io::{Action, Input};
use super::ears::Feed;
use super::frame;
use super::hello::Me;
use super::limits::Limits;
use super::run_loop::{Clock, Machine};
use super::server::{Exit, Inlet, Parts, runtime, serve};
use crate::config::{ByteSize, Config, RawConfig, RawLimits, RawMember};
use crate::proto::admin::{AdminReply, AdminRequest};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Hello, Lane, PeerMessage};
use crate::proto::replication::{Append, Fetch};
use crate::storage::posix::PosixDisk;
use crate::types::{BootId, ConnId, NodeId, Now};

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq)]
enum Event {
    Up(NodeId),
    Down { peer: NodeId, refused: bool },
    Heard { from: NodeId, disk: u8, kind: &'static str, bytes: usize },
    Opened(ConnId),
    Closed(ConnId),
}

/// Echoes clients, and has no more read of them before they have it ("bye" is answered and closed); answers administrators, sends what `Feed` brings as jobs' progress.
struct Echo {
    events: Sender<Event>,
}

impl Machine for Echo {
    fn step(&mut self, _: Now, input: Input, out: &mut Vec<Action>) {
        let event = match input {
            Input::PeerUp { peer } => Event::Up(peer),
            Input::PeerDown { peer, refused } => Event::Down { peer, refused },
            Input::Peer { from, from_disk, message } => heard(from, from_disk[0], &message),
            Input::ClientOpened { conn, .. } => Event::Opened(conn),
            Input::ClientClosed { conn } => Event::Closed(conn),
            Input::ClientData { conn, bytes } => {
                let bye = bytes.ends_with(b"bye");
                out.push(Action::ClientSend { conn, bytes });
                out.push(Action::ClientRead { conn, on: false });
                out.push(Action::ClientDrain { conn });
                if bye {
                    out.push(Action::ClientClose {
                        conn,
                        reason: "it said bye".into(),
                        limit: None,
                    });
                }
                return;
            }
            Input::ClientDrained { conn } => {
                return out.push(Action::ClientRead { conn, on: true });
            }
            Input::Admin { request, message } => {
                let reply =
                    AdminReply { id: message.id, message: "hi".into(), ..Default::default() };
                return out.push(Action::AdminReply { request, reply });
            }
            Input::JobProgress { job, permille, .. } => {
                return out.push(Action::Send { to: NodeId(job), message: message(permille) });
            }
            Input::Stop => {
                return out.push(Action::Exit { reason: "asked".into(), failed: false });
            }
            _ => return,
        };
        // Fails when a test has ended and its node is still stopping.
        let _ = self.events.send(event);
    }

    fn deadline(&self) -> u64 {
        u64::MAX
    }
}

fn heard(from: NodeId, disk: u8, message: &PeerMessage) -> Event {
    let kind = match &message.kind {
        Some(Kind::Beat(_)) => "beat",
        Some(Kind::Append(_)) => "append",
        Some(Kind::Fetch(_)) => "fetch",
        _ => "something else",
    };
    Event::Heard { from, disk, kind, bytes: message.encoded_len() }
}

/// 0 a beat, 1 a fetch; otherwise an append of that many KiB.
fn message(what: u32) -> PeerMessage {
    let kind = match what {
        0 => Kind::Beat(Box::default()),
        1 => Kind::Fetch(Fetch::default()),
        kib => Kind::Append(Append {
            transactions: Bytes::from(vec![b'x'; kib as usize * 1024]),
            ..Append::default()
        }),
    };
    PeerMessage { kind: Some(kind) }
}

struct Node {
    config: Config,
    feed: Feed,
    events: Receiver<Event>,
    thread: Option<JoinHandle<Exit>>,
}

impl Node {
    fn start(configs: &[Config], number: usize) -> Node {
        let config = configs[number - 1].clone();
        let inlet = Inlet::new().unwrap();
        let feed = inlet.feed.clone();
        let (sender, events) = mpsc::channel();
        let parts = Parts {
            config: Arc::new(config.clone()),
            limits: Limits::new(&config.limits, Logger::root(slog::Discard, slog::o!())),
            passed: Vec::new(),
            me: me(number as u64),
            disk: Arc::new(PosixDisk::new("/nonexistent")),
            raft_append: Box::new(|_| Ok(())),
            pages: Box::new(|_| axum::Router::new()),
            clock: Clock::start(),
            log: Logger::root(slog::Discard, slog::o!()),
        };
        let thread = std::thread::spawn(move || {
            let runtime = runtime().unwrap();
            serve(parts, &mut Echo { events: sender }, inlet, &runtime).unwrap()
        });
        let node = Node { config, feed, events, thread: Some(thread) };
        node.peer_port();
        node
    }

    fn wait_for(&self, wanted: &Event) -> Duration {
        let since = Instant::now();
        let mut others = Vec::new();
        loop {
            match self.events.recv_timeout(SOON) {
                Ok(event) if event == *wanted => return since.elapsed(),
                Ok(event) => others.push(event),
                Err(error) => panic!("no {wanted:?}: {error}; only {others:?}"),
            }
        }
    }

    fn send(&self, to: u64, what: u32) {
        self.feed.put(Input::JobProgress { job: to, permille: what, moved: 0 });
    }

    fn stop(&mut self) -> Exit {
        self.feed.put(Input::Stop);
        self.thread.take().unwrap().join().unwrap()
    }

    fn peer_port(&self) -> TcpStream {
        connect(&self.config.listen.peer)
    }

    fn client(&self) -> TcpStream {
        connect(&self.config.listen.durus[0].to_string())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

fn connect(address: &str) -> TcpStream {
    let until = Instant::now() + SOON;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SOON)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn me(node: u64) -> Me {
    let disk_uuid = [node as u8; 16];
    Me { cluster: "test".into(), node: NodeId(node), boot: BootId(node), disk_uuid }
}

/// Configurations of a cluster on ports that are free now.
fn configs(count: usize) -> Vec<Config> {
    let sockets: Vec<TcpListener> =
        (0..3 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let address = |at: usize| sockets[at].local_addr().unwrap().to_string();
    let member = |n: usize| RawMember {
        id: n as u64 + 1,
        name: format!("n{}", n + 1),
        durus: address(3 * n),
        peer: address(3 * n + 1),
        http: address(3 * n + 2),
        ..RawMember::default()
    };
    let of_node = |n: usize| RawConfig {
        cluster: "test".into(),
        node: format!("n{}", n + 1),
        data: "/nonexistent".into(),
        member: (0..count).map(member).collect(),
        limits: RawLimits {
            record_bytes_max: Some(ByteSize(1 << 20)),
            transaction_bytes_max: Some(ByteSize(1 << 20)),
            commits_waiting_bytes_max: Some(ByteSize(2 << 20)),
            peer_queue_bytes_max: Some(ByteSize(4 << 20)),
            ..RawLimits::default()
        },
        ..RawConfig::default()
    };
    (0..count).map(|n| of_node(n).check().unwrap()).collect()
}

fn send(stream: &mut TcpStream, message: &impl Message) {
    let mut out = BytesMut::new();
    frame::encode(message, &mut out);
    stream.write_all(&out).unwrap();
}

fn receive<M: Message + Default>(stream: &mut TcpStream) -> M {
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; u32::from_be_bytes(head) as usize];
    stream.read_exact(&mut body).unwrap();
    M::decode(&body[..]).unwrap()
}

/// Everything until the other side closes; a reset counts.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => all,
    }
}

#[test]
fn a_client_is_served_and_closed_after_its_last_answer() {
    let node = Node::start(&configs(1), 1);
    let mut client = node.client();
    for piece in [&b"a"[..], b"bc", &[7; 300_000]] {
        client.write_all(piece).unwrap();
        let mut back = vec![0; piece.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, piece);
    }
    client.write_all(b"good bye").unwrap();
    assert_eq!(rest(&mut client), b"good bye");
    node.wait_for(&Event::Opened(ConnId(1)));
    node.wait_for(&Event::Closed(ConnId(1)));
    drop(node.client());
    node.wait_for(&Event::Opened(ConnId(2)));
    node.wait_for(&Event::Closed(ConnId(2)));
}

#[test]
fn a_client_that_does_not_read_stops_only_itself() {
    let node = Node::start(&configs(1), 1);
    let mut greedy = node.client();
    greedy.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = [1; 1 << 20];
    let mut taken = 0;
    // Its own kernel buffers, ours, and what may wait: then nothing more is taken from it.
    while greedy.write_all(&chunk).is_ok() {
        taken += chunk.len();
        assert!(taken < 64 << 20, "the node takes everything");
    }
    let mut other = node.client();
    other.write_all(b"bye").unwrap();
    assert_eq!(rest(&mut other), b"bye");
}

#[test]
fn an_administrator_is_answered() {
    ask(&Node::start(&configs(1), 1));
}

fn ask(node: &Node) {
    let mut tool = node.peer_port();
    send(&mut tool, &Hello { protocol_version: 1, ..Hello::default() });
    let hello: Hello = receive(&mut tool);
    assert_eq!((hello.cluster.as_str(), hello.node), ("test", 1));
    for id in [5, 6] {
        send(&mut tool, &AdminRequest { id, ..AdminRequest::default() });
        let reply: AdminReply = receive(&mut tool);
        assert_eq!((reply.id, reply.message.as_str()), (id, "hi"));
    }
}

#[test]
fn garbage_closes_its_connection_and_disturbs_nobody() {
    let configs = configs(2);
    let node = Node::start(&configs, 1);
    let frames = |message: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        message(&mut out);
        out.to_vec()
    };
    let hello = me(2).hello(Lane::Control);
    let good = frames(&|out| frame::encode(&hello, out));
    let with = |mut start: Vec<u8>, more: &[u8]| {
        start.extend_from_slice(more);
        start
    };
    let cases = [
        b"GET /status HTTP/1.1\r\n\r\n".to_vec(),
        b"\xff\xff\xff\xff".to_vec(),
        b"\0\0\0\x05\xff\xff\xff\xff\xff".to_vec(),
        b"\0\0\0\0".to_vec(),
        frames(&|out| frame::encode(&Hello { protocol_version: 9, ..hello.clone() }, out)),
        frames(&|out| frame::encode(&Hello { cluster: "other".into(), ..hello.clone() }, out)),
        frames(&|out| frame::encode(&Hello { node: 3, ..hello.clone() }, out)),
        with(good.clone(), b"\x7f\0\0\0"),
        with(good.clone(), b"\0\0\0\0"),
        with(good.clone(), b"\0\0\0\x03\x0a\x7f\x00"),
        with(frames(&|out| frame::encode(&Hello { node: 0, ..hello.clone() }, out)), b"\xff\0\0\0"),
    ];
    for bytes in &cases {
        let mut stranger = node.peer_port();
        stranger.write_all(bytes).unwrap();
        rest(&mut stranger);
    }
    // Ends in the middle of a frame.
    let mut stranger = node.peer_port();
    stranger.write_all(&with(good.clone(), b"\0\0\x01\0abc")).unwrap();
    drop(stranger);

    let mut client = node.client();
    client.write_all(b"bye").unwrap();
    assert_eq!(rest(&mut client), b"bye");
    let peer = Node::start(&configs, 2);
    node.wait_for(&Event::Up(NodeId(2)));
    peer.wait_for(&Event::Up(NodeId(1)));
}

#[test]
fn messages_arrive_on_every_lane_and_a_dead_peer_is_noticed_at_once() {
    let configs = configs(2);
    let one = Node::start(&configs, 1);
    one.wait_for(&Event::Down { peer: NodeId(2), refused: true });
    let mut two = Node::start(&configs, 2);
    two.wait_for(&Event::Up(NodeId(1)));
    let up = one.wait_for(&Event::Up(NodeId(2)));
    assert!(up < Duration::from_secs(1), "{up:?}");
    for (what, kind) in [(0, "beat"), (1, "fetch"), (2, "append"), (20 << 10, "append")] {
        one.send(2, what);
        let bytes = message(what).encoded_len();
        two.wait_for(&Event::Heard { from: NodeId(1), disk: 1, kind, bytes });
    }
    one.send(9, 0);
    for _ in 0..3 {
        let stopping = Instant::now();
        assert_eq!(two.stop(), Exit { reason: "asked".into(), failed: false });
        one.wait_for(&Event::Down { peer: NodeId(2), refused: true });
        let took = stopping.elapsed();
        assert!(took < Duration::from_secs(1), "noticed after {took:?}");
        two = Node::start(&configs, 2);
        one.wait_for(&Event::Up(NodeId(2)));
        // At once after the control link is up, the other lanes wait for what is sent.
        one.send(2, 2);
        let bytes = message(2).encoded_len();
        two.wait_for(&Event::Heard { from: NodeId(1), disk: 1, kind: "append", bytes });
    }
}

/// A peer made by hand: takes connections and answers hellos as `answer` says.
struct FakePeer {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl FakePeer {
    fn start(address: &str, answer: Hello) -> FakePeer {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while stopped.try_recv().is_err() {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    let hello: Hello = receive(&mut stream);
                    send(&mut stream, &Hello { lane: hello.lane, ..answer.clone() });
                    held.push(stream);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        FakePeer { stop, thread }
    }

    /// As the kernel does for a killed process: listening socket and connections, one after the other.
    fn kill(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn a_killed_peer_is_refused_within_milliseconds() {
    let configs = configs(2);
    let one = Node::start(&configs, 1);
    for _ in 0..5 {
        let peer = FakePeer::start(&configs[1].listen.peer, me(2).hello(Lane::Control));
        one.wait_for(&Event::Up(NodeId(2)));
        std::thread::sleep(Duration::from_millis(50));
        let killed = Instant::now();
        peer.kill();
        one.wait_for(&Event::Down { peer: NodeId(2), refused: true });
        let took = killed.elapsed();
        assert!(took < Duration::from_millis(100), "noticed after {took:?}");
    }
}

#[test]
fn another_node_behind_the_address_is_not_taken_for_the_peer() {
    let configs = configs(3);
    let peer = FakePeer::start(&configs[1].listen.peer, me(3).hello(Lane::Control));
    let one = Node::start(&configs, 1);
    let down = Event::Down { peer: NodeId(2), refused: false };
    one.wait_for(&down);
    one.wait_for(&down);
    peer.kill();
    one.wait_for(&Event::Down { peer: NodeId(2), refused: true });
}

#[test]
fn a_peer_that_does_not_read_is_connected_anew_and_empty() {
    let configs = configs(2);
    let peer = FakePeer::start(&configs[1].listen.peer, me(2).hello(Lane::Control));
    let one = Node::start(&configs, 1);
    one.wait_for(&Event::Up(NodeId(2)));
    // More than the bound of 4 MiB and all kernel buffers; the link must come back and bound what waits each time.
    for _ in 0..200 {
        one.send(2, 1 << 10);
    }
    // Answered after all of them were handed out.
    ask(&one);
    peer.kill();
    one.wait_for(&Event::Down { peer: NodeId(2), refused: true });
    let two = Node::start(&configs, 2);
    one.wait_for(&Event::Up(NodeId(2)));
    one.send(2, 2);
    let bytes = message(2).encoded_len();
    let wanted = Event::Heard { from: NodeId(1), disk: 1, kind: "append", bytes };
    assert_eq!(
        two.events.iter().find(|event| matches!(event, Event::Heard { .. })),
        Some(wanted),
        "nothing from before the new connection arrives"
    );
}

#[test]
fn stopping_takes_no_longer_than_it_may() {
    let configs = configs(2);
    let mut one = Node::start(&configs, 1);
    let _two = Node::start(&configs, 2);
    one.wait_for(&Event::Up(NodeId(2)));
    let mut client = one.client();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    let _mute = one.peer_port();
    let since = Instant::now();
    one.stop();
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(rest(&mut client), b"");
}
