//! A Durus client of our own, small and blocking: for benches, where Python's own pauses would be measured, and for
//! tests that send what no proper client sends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The version that V exchanges.
pub const PROTOCOL: [u8; 4] = [0, 0, 0, 1];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any pause a cluster may make; past it, the test fails instead of hanging.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const RECORD_BYTES_MAX: u32 = 64 << 20;

/// The answer to a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    Record(Vec<u8>),
    NoSuchObject,
    Invalid,
}

/// The answer to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Yes,
    Conflict,
}

pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects and exchanges versions.
    pub fn connect(to: SocketAddr) -> io::Result<Client> {
        let mut client = Client::connect_silent(to)?;
        client.send(&[b"V", &PROTOCOL[..]].concat())?;
        let theirs: [u8; 4] = client.receive()?;
        if theirs != PROTOCOL {
            return Err(broken(format!("the server speaks version {theirs:?}")));
        }
        Ok(client)
    }

    /// Connects and says nothing.
    pub fn connect_silent(to: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Client { stream })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket has an address")
    }

    /// Leaves without a word: what is on its way to it is answered with a reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))
            .expect("a socket has this option");
    }

    pub fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn receive_vec(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Waits until the server has closed or reset this connection; false if it has not within `patience`.
    pub fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.stream.set_read_timeout(Some(patience)).expect("a timeout that is not zero");
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                }
            }
        }
    }

    pub fn new_oids(&mut self, count: u8) -> io::Result<Vec<u64>> {
        self.send(&[b'M', count])?;
        (0..count).map(|_| Ok(u64::from_be_bytes(self.receive()?))).collect()
    }

    pub fn load(&mut self, oid: u64) -> io::Result<Loaded> {
        self.send(&[b"L", &oid.to_be_bytes()[..]].concat())?;
        self.loaded()
    }

    /// Loads these together, all of which must be there. As a stock client, it stops reading where one is not.
    pub fn load_all(&mut self, oids: &[u64]) -> io::Result<Vec<Vec<u8>>> {
        let count = u32::try_from(oids.len()).expect("few objects");
        let bytes = oids.iter().flat_map(|oid| oid.to_be_bytes()).collect::<Vec<u8>>();
        self.send(&[b"B", &count.to_be_bytes()[..], &bytes].concat())?;
        let one = |oid: &u64| match self.loaded()? {
            Loaded::Record(record) => Ok(record),
            other => Err(broken(format!("oid {oid}: {other:?}"))),
        };
        oids.iter().map(one).collect()
    }

    fn loaded(&mut self) -> io::Result<Loaded> {
        match self.receive::<1>()? {
            [b'O'] => {
                let len = u32::from_be_bytes(self.receive()?);
                if len > RECORD_BYTES_MAX {
                    return Err(broken(format!("a record of {len} bytes was announced")));
                }
                Ok(Loaded::Record(self.receive_vec(len as usize)?))
            }
            [b'K'] => Ok(Loaded::NoSuchObject),
            [b'I'] => Ok(Loaded::Invalid),
            [other] => Err(broken(format!("a load was answered {other:#04x}"))),
        }
    }

    /// The oids that became invalid.
    pub fn sync(&mut self) -> io::Result<Vec<u64>> {
        self.send(b"S")?;
        self.receive_oids()
    }

    fn receive_oids(&mut self) -> io::Result<Vec<u64>> {
        let count = u32::from_be_bytes(self.receive()?);
        // After a pack they can be hundreds of thousands.
        let bytes = self.receive_vec(count as usize * 8)?;
        let (oids, _) = bytes.as_chunks::<8>();
        Ok(oids.iter().map(|oid| u64::from_be_bytes(*oid)).collect())
    }

    /// Stores (oid, record) pairs in one commit, whatever the invalidations in between say.
    pub fn commit(&mut self, records: &[(u64, Vec<u8>)]) -> io::Result<Committed> {
        self.send(b"C")?;
        self.receive_oids()?;
        self.send(&commit_data(records))?;
        match self.receive::<1>()? {
            [b'O'] => Ok(Committed::Yes),
            [b'I'] => Ok(Committed::Conflict),
            [other] => Err(broken(format!("a commit was answered {other:#04x}"))),
        }
    }
}

/// Threads, each with clients of its own, that go on with what they do until they are told to stop, or the test ends.
pub struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// One thread for each of these, which does it again and again.
    pub fn start<F: FnMut() + Send + 'static>(each: impl IntoIterator<Item = F>) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |mut turn: F| {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    turn();
                }
            })
        };
        let threads = each.into_iter().map(spawn).collect();
        Busy { stop, threads }
    }

    /// Fails if one of them has.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a busy client");
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What comes after the answer to C: length, and for each record its length, oid and bytes.
pub fn commit_data(records: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut data = vec![0; 4];
    for (oid, record) in records {
        let len = u32::try_from(8 + record.len()).expect("a record fits");
        data.extend_from_slice(&len.to_be_bytes());
        data.extend_from_slice(&oid.to_be_bytes());
        data.extend_from_slice(record);
    }
    let len = u32::try_from(data.len() - 4).expect("a commit fits");
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

/// A record as clients store it: oid, length of the data, data, references.
pub fn record(oid: u64, data: &[u8], references: &[u64]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("data fits");
    let mut bytes = [&oid.to_be_bytes()[..], &len.to_be_bytes()[..], data].concat();
    bytes.extend(references.iter().flat_map(|oid| oid.to_be_bytes()));
    bytes
}

fn broken(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
