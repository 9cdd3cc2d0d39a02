//! Lines between the nodes of a cluster that carry only so much, or nothing for a while.
//!
//! Every node reaches every other by a proxy of its own (`Builder::lines`), which passes on what it gets, in order and
//! whole. A node's messages travel on connections that it has opened itself, so a connection belongs to a directed pair of
//! nodes, and the rate of a pair holds for each of its connections. What goes the other way (the answer to a hello) is never
//! held up. Where the other node's port refuses, the connection is reset.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Passed on at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// Held by the kernel in front of a proxy, about: a real line holds little, too.
const BUFFER_BYTES: usize = 64 << 10;
/// How often a thread that waits looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(5);

/// From one node to another.
#[derive(Default)]
struct Line {
    /// Bytes a second on each connection; 0: as many as there are.
    rate: AtomicU64,
    stalled: AtomicBool,
    carried: AtomicU64,
}

pub struct Lines {
    lines: BTreeMap<(usize, usize), Arc<Line>>,
    over: Arc<AtomicBool>,
}

/// Where one node reaches another, and where that one listens.
pub struct Way {
    pub from: usize,
    pub to: usize,
    pub entrance: SocketAddr,
    pub exit: SocketAddr,
}

impl Lines {
    /// # Panics
    /// If an entrance can't be listened on.
    pub fn open(ways: &[Way]) -> Lines {
        let over = Arc::new(AtomicBool::new(false));
        let mut lines = BTreeMap::new();
        for way in ways {
            let line = Arc::new(Line::default());
            let listener = TcpListener::bind(way.entrance)
                .unwrap_or_else(|e| panic!("listen on {} for a proxy: {e}", way.entrance));
            rustix::net::sockopt::set_socket_recv_buffer_size(&listener, BUFFER_BYTES)
                .expect("a socket has this option");
            listener.set_nonblocking(true).expect("a listener that does not wait");
            let (its, exit, end) = (line.clone(), way.exit, over.clone());
            thread::spawn(move || accept(&listener, exit, &its, &end));
            lines.insert((way.from, way.to), line);
        }
        Lines { lines, over }
    }

    fn line(&self, from: usize, to: usize) -> &Line {
        self.lines.get(&(from, to)).expect("two different nodes")
    }

    /// What `from` sends to `to` takes its time from now on: bytes a second; `None`: no time.
    pub fn rate(&self, from: usize, to: usize, bytes_per_s: Option<u64>) {
        self.line(from, to).rate.store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// The same between all nodes.
    pub fn rate_everywhere(&self, bytes_per_s: Option<u64>) {
        self.lines.keys().for_each(|(from, to)| self.rate(*from, *to, bytes_per_s));
    }

    /// What `from` sends to `to` waits, until `resume`.
    pub fn stall(&self, from: usize, to: usize) {
        self.line(from, to).stalled.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self, from: usize, to: usize) {
        self.line(from, to).stalled.store(false, Ordering::Relaxed);
    }

    /// Bytes that have come from `from` to `to`.
    pub fn carried(&self, from: usize, to: usize) -> u64 {
        self.line(from, to).carried.load(Ordering::Relaxed)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, exit: SocketAddr, line: &Arc<Line>, over: &Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((near, _)) => {
                let (line, over) = (line.clone(), over.clone());
                thread::spawn(move || serve(near, exit, &line, &over));
            }
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn serve(near: TcpStream, exit: SocketAddr, line: &Arc<Line>, over: &Arc<AtomicBool>) {
    let _ = near.set_nonblocking(false);
    let Ok(far) = TcpStream::connect(exit) else {
        let _ = rustix::net::sockopt::set_socket_linger(&near, Some(Duration::ZERO));
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (Ok(back), Ok(forth)) = (far.try_clone(), near.try_clone()) else { return };
    let end = over.clone();
    thread::spawn(move || carry(back, forth, None, &end));
    carry(near, far, Some(line), over);
}

/// Until one side is gone.
fn carry(mut from: TcpStream, mut to: TcpStream, line: Option<&Line>, over: &AtomicBool) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(100)));
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut free = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let len = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        if let Some(line) = line {
            while line.stalled.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
            }
            let rate = line.rate.load(Ordering::Relaxed);
            if rate > 0 {
                free = free.max(Instant::now()) + Duration::from_secs_f64(len as f64 / rate as f64);
                thread::sleep(free.saturating_duration_since(Instant::now()));
            }
            line.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
