//! A small blocking Durus client: one request, one answer.

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};

const PROTOCOL: [u8; 4] = [0, 0, 0, 1];
/// Longer than any pause a cluster may make.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A longer record is not believed.
pub const RECORD_BYTES_MAX: u32 = 1 << 30;
const BUFFER_BYTES: usize = 64 << 10;

pub struct Client {
    read: BufReader<Blocking>,
    write: BufWriter<Blocking>,
    scratch: Vec<u8>,
}

/// Either kind of connection.
pub enum Either<T, U> {
    Tcp(T),
    Unix(U),
}

type Blocking = Either<TcpStream, UnixStream>;

/// A connection that never waits.
pub type Socket = Either<mio::net::TcpStream, mio::net::UnixStream>;

impl Blocking {
    fn prepare(&self) -> io::Result<()> {
        let within = Some(ANSWER_WITHIN);
        match self {
            Blocking::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(within)?;
                stream.set_write_timeout(within)
            }
            Blocking::Unix(stream) => {
                stream.set_read_timeout(within)?;
                stream.set_write_timeout(within)
            }
        }
    }

    fn try_clone(&self) -> io::Result<Blocking> {
        Ok(match self {
            Blocking::Tcp(stream) => Blocking::Tcp(stream.try_clone()?),
            Blocking::Unix(stream) => Blocking::Unix(stream.try_clone()?),
        })
    }
}

impl<T: Read, U: Read> Read for Either<T, U> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Either::Tcp(stream) => stream.read(buf),
            Either::Unix(stream) => stream.read(buf),
        }
    }
}

/// Nothing is kept back: there is nothing to flush.
impl<T: Write, U: Write> Write for Either<T, U> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Either::Tcp(stream) => stream.write(buf),
            Either::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(&mut self, at: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.register(at, token, interest),
            Socket::Unix(stream) => stream.register(at, token, interest),
        }
    }

    fn reregister(&mut self, at: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.reregister(at, token, interest),
            Socket::Unix(stream) => stream.reregister(at, token, interest),
        }
    }

    fn deregister(&mut self, at: &Registry) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.deregister(at),
            Socket::Unix(stream) => stream.deregister(at),
        }
    }
}

/// The answer to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Yes,
    Conflict,
}

impl Client {
    /// `address` is HOST:PORT, the path of a Unix socket, or an abstract one's name after a @.
    pub fn connect(address: &str) -> io::Result<Client> {
        let stream = match address {
            path if path.starts_with(['/', '.', '@']) => {
                Blocking::Unix(match path.strip_prefix('@') {
                    Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                    None => UnixStream::connect(path)?,
                })
            }
            address => Blocking::Tcp(TcpStream::connect(address)?),
        };
        stream.prepare()?;
        let mut client = Client {
            read: BufReader::with_capacity(BUFFER_BYTES, stream.try_clone()?),
            write: BufWriter::with_capacity(BUFFER_BYTES, stream),
            scratch: Vec::new(),
        };
        // Who greets and waits is taken for a stock client, which reads a bulk load no further than to the first object
        // that is not there.
        client.ask(&[b"V", &PROTOCOL[..], b"S"])?;
        match client.receive::<4>()? {
            PROTOCOL => {}
            theirs => return Err(broken(format!("the server speaks version {theirs:?}"))),
        }
        client.invalid()?;
        Ok(client)
    }

    /// For a conversation that never waits; nothing may be under way.
    pub fn into_socket(self) -> io::Result<Socket> {
        let stream = self.write.into_inner().map_err(|error| error.into_error())?;
        Ok(match stream {
            Blocking::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Tcp(mio::net::TcpStream::from_std(stream))
            }
            Blocking::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Unix(mio::net::UnixStream::from_std(stream))
            }
        })
    }

    fn ask(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            self.write.write_all(part)?;
        }
        self.write.flush()
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.receive()?))
    }

    pub fn new_oids(&mut self, count: u8) -> io::Result<Vec<u64>> {
        self.ask(&[&[b'M', count]])?;
        (0..count).map(|_| Ok(u64::from_be_bytes(self.receive()?))).collect()
    }

    /// Bytes of the record, or None if the object is gone or was changed by somebody else.
    pub fn load(&mut self, oid: u64) -> io::Result<Option<u64>> {
        self.ask(&[b"L", &oid.to_be_bytes()])?;
        self.loaded()
    }

    fn loaded(&mut self) -> io::Result<Option<u64>> {
        match self.receive::<1>()? {
            [b'O'] => {
                let len = self.number()?;
                if len > RECORD_BYTES_MAX {
                    return Err(broken(format!("a record of {len} bytes was announced")));
                }
                self.scratch.resize(len as usize, 0);
                self.read.read_exact(&mut self.scratch)?;
                Ok(Some(u64::from(len)))
            }
            [b'K' | b'I'] => Ok(None),
            [other] => Err(broken(format!("a load was answered {other:#04x}"))),
        }
    }

    /// How many objects have become invalid.
    pub fn sync(&mut self) -> io::Result<u32> {
        self.ask(&[b"S"])?;
        self.invalid()
    }

    fn invalid(&mut self) -> io::Result<u32> {
        let count = self.number()?;
        for _ in 0..count {
            self.receive::<8>()?;
        }
        Ok(count)
    }

    /// Stores (oid, record) pairs, at least one, whatever the invalidations in between say.
    pub fn commit(&mut self, records: &[(u64, Vec<u8>)]) -> io::Result<Committed> {
        self.ask(&[b"C"])?;
        self.invalid()?;
        self.ask(&[&commit_data(records)?])?;
        match self.receive::<1>()? {
            [b'O'] => Ok(Committed::Yes),
            [b'I'] => Ok(Committed::Conflict),
            [other] => Err(broken(format!("a commit was answered {other:#04x}"))),
        }
    }
}

/// What follows the invalidations of a commit.
pub fn commit_data(records: &[(u64, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut data = vec![0; 4];
    for (oid, record) in records {
        let len = u32::try_from(8 + record.len()).map_err(|_| broken("too long".into()))?;
        data.extend_from_slice(&len.to_be_bytes());
        data.extend_from_slice(&oid.to_be_bytes());
        data.extend_from_slice(record);
    }
    let len = u32::try_from(data.len() - 4).map_err(|_| broken("too long".into()))?;
    data[..4].copy_from_slice(&len.to_be_bytes());
    Ok(data)
}

/// A record as stock clients store it: oid, length of the data, data, references. The data is the pickle of a
/// Persistent with one text, so that stock Durus can load it.
pub fn record(oid: u64, text_bytes: usize, refs: &[u64]) -> Vec<u8> {
    const HEAD: &[u8] =
        b"\x80\x02cdurus.persistent\nPersistent\nq\x00.\x80\x02}q\x01X\x04\x00\x00\x00textq\x02X";
    let mut data = HEAD.to_vec();
    data.extend_from_slice(&(text_bytes as u32).to_le_bytes());
    data.resize(data.len() + text_bytes, b'x');
    data.extend_from_slice(b"q\x03s.");
    whole(oid, &data, refs)
}

/// An empty root, as a stock Connection makes it.
pub fn root() -> Vec<u8> {
    const DATA: &[u8] = b"\x80\x02cdurus.persistent_dict\nPersistentDict\nq\x00.\
        \x80\x02}q\x01X\x04\x00\x00\x00dataq\x02}q\x03s.";
    whole(0, DATA, &[])
}

fn whole(oid: u64, data: &[u8], refs: &[u64]) -> Vec<u8> {
    let mut record = oid.to_be_bytes().to_vec();
    record.extend_from_slice(&(data.len() as u32).to_be_bytes());
    record.extend_from_slice(data);
    record.extend(refs.iter().flat_map(|oid| oid.to_be_bytes()));
    record
}

pub fn broken(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
