//! Three servers that only replicate: what a commit costs that is on the disks of a majority before it is answered,
//! whatever else a server does with it.
//!
//! They answer as `floor` does, but a commit's data goes to the first of them, which hands it to the other two; each has a
//! thread that appends and syncs (fdatasync), all that waits together; and when two have it the client is answered. There is
//! no check, no chain, no encoding worth the name, no election: nobody who loses a server could go on. So it is a measure of
//! how much there is to gain, and no bound that holds for every server.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::retry_on_intr;

use super::{Client, READ_BYTES, answer};

const NODES: usize = 3;
const FIRST: usize = 0;
const MAJORITY: usize = 2;
/// Numbers of what is watched: the listener, the disk's thread, then the other servers; clients have their own.
const LISTENER: u64 = 0;
const DISK: u64 = 1;
const PEERS: u64 = 2;
const CLIENTS: u64 = PEERS + NODES as u64;

/// Serves until the process ends; the files are in `dir`.
pub fn start(dir: &Path) -> Vec<SocketAddr> {
    let listeners: Vec<_> =
        (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let addresses = listeners.iter().map(|it| it.local_addr().expect("its address")).collect();
    let mut peers: Vec<HashMap<usize, TcpStream>> = (0..NODES).map(|_| HashMap::new()).collect();
    for follower in (0..NODES).filter(|nth| *nth != FIRST) {
        let (one, other) = pair();
        peers[FIRST].insert(follower, one);
        peers[follower].insert(FIRST, other);
    }
    for ((nth, listener), peers) in listeners.into_iter().enumerate().zip(peers) {
        let file = File::create_new(dir.join(format!("replicated-{nth}"))).expect("make a file");
        thread::spawn(move || Node::new(nth, listener, peers, file).serve());
    }
    addresses
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let one = TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
    let (other, _) = listener.accept().expect("accept");
    for stream in [&one, &other] {
        stream.set_nodelay(true).expect("set an option");
        stream.set_nonblocking(true).expect("set an option");
    }
    (one, other)
}

/// Another server's connection.
struct Peer {
    stream: TcpStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// A commit on its way, at the first server: who has it, and whose it is.
struct Commit {
    durable: usize,
    node: usize,
    client: u64,
}

struct Node {
    nth: usize,
    listener: TcpListener,
    poll: OwnedFd,
    clients: HashMap<u64, Client>,
    peers: HashMap<usize, Peer>,
    disk: Sender<Vec<u8>>,
    disk_done: OwnedFd,
    /// Handed to the disk in this round.
    to_disk: Vec<u8>,
    to_disk_commits: u64,
    /// Commits in each of the disk's batches.
    at_disk: VecDeque<u64>,
    in_flight: VecDeque<Commit>,
    /// Commits that this server, and each other, has on its disk; of those that are not answered, how many were answered before.
    durable: HashMap<usize, u64>,
    answered: u64,
    answers: HashMap<u64, Vec<u8>>,
}

impl Node {
    fn new(
        nth: usize,
        listener: TcpListener,
        peers: HashMap<usize, TcpStream>,
        file: File,
    ) -> Node {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let (disk_done, says_done) = rustix::pipe::pipe().expect("a pipe");
        let (disk, queued) = mpsc::channel();
        thread::spawn(move || sync(&file, &queued, &says_done));
        let peer = |(nth, stream)| (nth, Peer { stream, unread: Vec::new(), unsent: Vec::new() });
        let node = Node {
            nth,
            listener,
            poll,
            clients: HashMap::new(),
            peers: peers.into_iter().map(peer).collect(),
            disk,
            disk_done,
            to_disk: Vec::new(),
            to_disk_commits: 0,
            at_disk: VecDeque::new(),
            in_flight: VecDeque::new(),
            durable: HashMap::new(),
            answered: 0,
            answers: HashMap::new(),
        };
        node.watch(&node.listener, LISTENER);
        node.watch(&node.disk_done, DISK);
        for (nth, peer) in &node.peers {
            node.watch(&peer.stream, PEERS + *nth as u64);
        }
        node
    }

    fn watch(&self, fd: &dyn AsFd, number: u64) {
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.poll, fd.as_fd(), data, epoll::EventFlags::IN).expect("watch a socket");
    }

    fn serve(mut self) {
        let mut events = Vec::with_capacity(64);
        let mut scratch = vec![0; READ_BYTES];
        loop {
            events.clear();
            retry_on_intr(|| epoll::wait(&self.poll, spare_capacity(&mut events), None))
                .expect("wait");
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    DISK => self.on_disk(&mut scratch),
                    nth @ PEERS..CLIENTS => self.on_peer((nth - PEERS) as usize, &mut scratch),
                    number => self.on_client(number, &mut scratch),
                }
            }
            self.flush();
        }
    }

    fn accept(&mut self) {
        let (stream, _) = self.listener.accept().expect("accept");
        stream.set_nodelay(true).expect("set an option");
        stream.set_nonblocking(true).expect("set an option");
        let number = CLIENTS + stream.as_raw_fd() as u64;
        self.watch(&stream, number);
        self.clients.insert(number, Client { stream, unread: Vec::new(), commits: false });
    }

    fn on_client(&mut self, number: u64, scratch: &mut [u8]) {
        let Some(mut client) = self.clients.remove(&number) else { return };
        match client.stream.read(scratch) {
            Ok(0) => return,
            Ok(len) => client.unread.extend_from_slice(&scratch[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        let mut read = 0;
        while let Some(len) = client.command(&client.unread[read..]) {
            let command = &client.unread[read..read + len];
            if client.commits {
                let data = &command[4..];
                self.commit(self.nth, number, data);
            } else {
                answer(command, false, self.answers.entry(number).or_default());
            }
            client.commits = !client.commits && client.unread[read] == b'C';
            read += len;
        }
        client.unread.drain(..read);
        self.clients.insert(number, client);
    }

    fn commit(&mut self, node: usize, client: u64, data: &[u8]) {
        if self.nth != FIRST {
            return self.say(FIRST, client, data);
        }
        self.in_flight.push_back(Commit { durable: 0, node, client });
        self.append(data);
        for peer in 1..NODES {
            self.say(peer, 0, data);
        }
    }

    fn append(&mut self, data: &[u8]) {
        self.to_disk.extend_from_slice(data);
        self.to_disk_commits += 1;
    }

    /// A number and bytes. To the first server: a client's commit, or how many commits are durable; from it: a commit, or
    /// a client that is to be answered.
    fn say(&mut self, peer: usize, number: u64, data: &[u8]) {
        let unsent = &mut self.peers.get_mut(&peer).expect("a peer").unsent;
        unsent.extend_from_slice(&number.to_be_bytes());
        unsent.extend_from_slice(&(data.len() as u32).to_be_bytes());
        unsent.extend_from_slice(data);
    }

    fn on_peer(&mut self, nth: usize, scratch: &mut [u8]) {
        let peer = self.peers.get_mut(&nth).expect("a peer");
        let len = match peer.stream.read(scratch) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            read => read.expect("read what another server says"),
        };
        let mut said = std::mem::take(&mut peer.unread);
        said.extend_from_slice(&scratch[..len]);
        let mut read = 0;
        while let Some(head) = said.get(read..read + 12) {
            let number = u64::from_be_bytes(head[..8].try_into().expect("eight"));
            let len = u32::from_be_bytes(head[8..].try_into().expect("four")) as usize;
            let Some(data) = said.get(read + 12..read + 12 + len) else { break };
            match (self.nth == FIRST, data.is_empty()) {
                (true, true) => self.on_durable(nth, number),
                (true, false) => self.commit(nth, number, data),
                (false, true) => self.answers.entry(number).or_default().push(b'O'),
                (false, false) => self.append(data),
            }
            read += 12 + len;
        }
        said.drain(..read);
        self.peers.get_mut(&nth).expect("a peer").unread = said;
    }

    fn on_disk(&mut self, scratch: &mut [u8]) {
        let batches = rustix::io::read(&self.disk_done, scratch).expect("hear of the disk");
        let commits: u64 = self.at_disk.drain(..batches).sum();
        match self.nth {
            FIRST => self.on_durable(FIRST, commits),
            _ => self.say(FIRST, commits, &[]),
        }
    }

    /// So many more are on the disk of that server: whoever waits for a majority of them is answered.
    fn on_durable(&mut self, node: usize, commits: u64) {
        let durable = self.durable.entry(node).or_default();
        let from = (*durable).max(self.answered);
        *durable += commits;
        for at in from..*durable {
            self.in_flight[(at - self.answered) as usize].durable += 1;
        }
        while self.in_flight.front().is_some_and(|commit| commit.durable >= MAJORITY) {
            let commit = self.in_flight.pop_front().expect("just seen");
            self.answered += 1;
            match commit.node {
                FIRST => self.answers.entry(commit.client).or_default().push(b'O'),
                node => self.say(node, commit.client, &[]),
            }
        }
    }

    fn flush(&mut self) {
        if self.to_disk_commits > 0 {
            self.at_disk.push_back(std::mem::take(&mut self.to_disk_commits));
            self.disk.send(std::mem::take(&mut self.to_disk)).expect("the disk's thread runs");
        }
        for peer in self.peers.values_mut().filter(|peer| !peer.unsent.is_empty()) {
            // What is under way at a time is little: there is room.
            peer.stream.write_all(&peer.unsent).expect("send to another server");
            peer.unsent.clear();
        }
        for (number, bytes) in self.answers.drain() {
            if let Some(client) = self.clients.get_mut(&number) {
                // A client that is gone is noticed by its end.
                let _ = client.stream.write_all(&bytes);
            }
        }
    }
}

/// Appends what waits together, syncs, and says how many batches that were, by a byte each.
fn sync(mut file: &File, queued: &Receiver<Vec<u8>>, done: &OwnedFd) {
    while let Ok(first) = queued.recv() {
        let mut batches = 1;
        let mut bytes = first;
        for more in queued.try_iter() {
            bytes.extend_from_slice(&more);
            batches += 1;
        }
        file.write_all(&bytes).expect("write");
        rustix::fs::fdatasync(file.as_fd()).expect("fdatasync");
        rustix::io::write(done, &vec![0; batches]).expect("say that it is done");
    }
}
