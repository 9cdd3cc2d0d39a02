//! A server that only answers: what driver, sockets and wake-ups cost, whatever a server does between question and answer.
//!
//! It speaks as much of the Durus protocol as the driver does, keeps nothing, and answers every load with the same record.
//! Three of them, a thread each, stand beside the three nodes. There is no more in it than sleeping until something comes,
//! reading, finding the command's end, and writing: no bound that holds for every server (one that does not sleep saves
//! the wake-ups), but a measure of how much there is to gain.

pub mod replicated;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

/// As long as one of the driver's objects, and something.
const RECORD_BYTES: usize = 1100;
const READ_BYTES: usize = 64 << 10;

/// Serves until the process ends.
pub fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || serve(&listener));
    address
}

struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    commits: bool,
}

fn serve(listener: &TcpListener) {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let watch = |fd: &dyn AsFd, number: u64| {
        let data = epoll::EventData::new_u64(number);
        epoll::add(&poll, fd.as_fd(), data, epoll::EventFlags::IN).expect("watch a socket");
    };
    watch(listener, 0);
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut events = Vec::with_capacity(64);
    let mut scratch = vec![0; READ_BYTES];
    loop {
        events.clear();
        let wait = || epoll::wait(&poll, spare_capacity(&mut events), None);
        rustix::io::retry_on_intr(wait).expect("wait");
        for event in &events {
            let number = event.data.u64();
            if number == 0 {
                let (stream, _) = listener.accept().expect("accept");
                stream.set_nodelay(true).expect("set an option");
                stream.set_nonblocking(true).expect("set an option");
                let number = stream.as_raw_fd() as u64;
                watch(&stream, number);
                clients.insert(number, Client { stream, unread: Vec::new(), commits: false });
            } else if let Some(client) = clients.get_mut(&number)
                && !client.serve(&mut scratch)
            {
                clients.remove(&number);
            }
        }
    }
}

impl Client {
    /// False at the end of the connection.
    fn serve(&mut self, scratch: &mut [u8]) -> bool {
        match self.stream.read(scratch) {
            Ok(0) => return false,
            Ok(len) => self.unread.extend_from_slice(&scratch[..len]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        let mut answers = Vec::new();
        let mut read = 0;
        while let Some(len) = self.command(&self.unread[read..]) {
            answer(&self.unread[read..read + len], self.commits, &mut answers);
            self.commits = !self.commits && self.unread[read] == b'C';
            read += len;
        }
        self.unread.drain(..read);
        // The driver takes what it has asked for before it asks again: there is room.
        self.stream.write_all(&answers).is_ok()
    }

    /// Length of the command that `bytes` begin with, if it is all there.
    fn command(&self, bytes: &[u8]) -> Option<usize> {
        let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let len = match bytes.first()? {
            _ if self.commits => 4 + number(0)? as usize,
            b'V' => 5,
            b'M' => 2,
            b'L' => 9,
            b'B' => 5 + 8 * number(1)? as usize,
            b'S' | b'C' => 1,
            other => panic!("the driver sent {other:#04x}"),
        };
        (bytes.len() >= len).then_some(len)
    }
}

fn answer(command: &[u8], commits: bool, out: &mut Vec<u8>) {
    let mut record = || {
        out.push(b'O');
        out.extend_from_slice(&(RECORD_BYTES as u32).to_be_bytes());
        out.resize(out.len() + RECORD_BYTES, 7);
    };
    match command[0] {
        _ if commits => out.push(b'O'),
        b'V' => out.extend_from_slice(&command[1..]),
        b'M' => (0..command[1]).for_each(|n| out.extend_from_slice(&u64::from(n).to_be_bytes())),
        b'L' => record(),
        b'B' => (0..(command.len() - 5) / 8).for_each(|_| record()),
        _ => out.extend_from_slice(&[0; 4]),
    }
}
