//! Lines between nodes that can be stalled: small TCP forwarders, one for each ordered pair of nodes.
//!
//! A stalled line keeps its connections and delivers nothing: what is sent into it waits, as behind a router that is being
//! started again, and arrives when the line goes on. Only the direction from the one who connects is stalled; the other
//! node's answers come on its own line. The forwarders end with the process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// Bytes taken from a socket at a time.
const CHUNK: usize = 64 << 10;
/// How often a stalled line looks whether it goes on.
const LOOK: Duration = Duration::from_millis(2);

/// A line that one node uses to reach another.
struct Line {
    address: SocketAddr,
    stalled: Arc<AtomicBool>,
    /// Where it leads; told once the other node's port is known.
    target: Arc<OnceLock<SocketAddr>>,
}

/// Lines from every node to every other.
pub struct Proxy {
    lines: BTreeMap<(usize, usize), Line>,
}

impl Proxy {
    /// Lines among so many nodes, not connected to anything yet.
    pub fn new(nodes: usize) -> Proxy {
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        let lines = pairs.filter(|(from, to)| from != to).map(|pair| (pair, Line::open()));
        Proxy { lines: lines.collect() }
    }

    /// What `from` is to connect to in order to reach `to`.
    pub fn address(&self, from: usize, to: usize) -> SocketAddr {
        self.lines[&(from, to)].address
    }

    /// Where the lines to this node end.
    pub fn connect(&self, to: usize, target: SocketAddr) {
        for ((_, end), line) in &self.lines {
            if *end == to {
                line.target.set(target).expect("connected once");
            }
        }
    }

    /// Nothing that `from` sends reaches `to` any more, until `resume`.
    pub fn stall(&self, from: usize, to: usize) {
        self.lines[&(from, to)].stalled.store(true, Ordering::SeqCst);
    }

    /// What was held back arrives, in its order.
    pub fn resume(&self, from: usize, to: usize) {
        self.lines[&(from, to)].stalled.store(false, Ordering::SeqCst);
    }
}

impl Line {
    fn open() -> Line {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("open a line");
        let address = listener.local_addr().expect("a listener has an address");
        let (stalled, target) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (stall, end) = (stalled.clone(), target.clone());
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = end.get().and_then(|target| TcpStream::connect(target).ok());
                // Nobody is there: the node learns it by its connection's end.
                let Some(far) = far else { continue };
                forward(near, far, &stall);
            }
        });
        Line { address, stalled, target }
    }
}

fn forward(near: TcpStream, far: TcpStream, stalled: &Arc<AtomicBool>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("share a socket");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("a socket has this option");
    }
    let (back_from, back_to) = (clone(&far), clone(&near));
    let stalled = stalled.clone();
    thread::spawn(move || pump(near, far, || stalled.load(Ordering::SeqCst)));
    thread::spawn(move || pump(back_from, back_to, || false));
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_stalled: impl Fn() -> bool) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(taken @ 1..) = from.read(&mut buffer) {
        while is_stalled() {
            thread::sleep(LOOK);
        }
        if to.write_all(&buffer[..taken]).is_err() {
            break;
        }
    }
    // Whichever end is gone, the other is to learn it. It may know already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
