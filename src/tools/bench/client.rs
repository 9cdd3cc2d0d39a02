//! A small blocking Durus client: one request, one answer.

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

const PROTOCOL: [u8; 4] = [0, 0, 0, 1];
/// Longer than any pause a cluster may make.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A longer record is not believed.
const RECORD_BYTES_MAX: u32 = 1 << 30;
const BUFFER_BYTES: usize = 64 << 10;

pub struct Client {
    read: BufReader<Box<dyn Read + Send>>,
    write: BufWriter<Box<dyn Write + Send>>,
    scratch: Vec<u8>,
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
        let (read, write): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match address {
            path if path.starts_with(['/', '.', '@']) => {
                let stream = match path.strip_prefix('@') {
                    Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                    None => UnixStream::connect(path)?,
                };
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
            address => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
        };
        let mut client = Client {
            read: BufReader::with_capacity(BUFFER_BYTES, read),
            write: BufWriter::with_capacity(BUFFER_BYTES, write),
            scratch: Vec::new(),
        };
        client.ask(&[b"V", &PROTOCOL[..]])?;
        match client.receive::<4>()? {
            PROTOCOL => Ok(client),
            theirs => Err(broken(format!("the server speaks version {theirs:?}"))),
        }
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

    /// All in one request. Bytes of the records that there are.
    pub fn load_many(&mut self, oids: &[u64]) -> io::Result<u64> {
        let mut ask = Vec::with_capacity(5 + 8 * oids.len());
        ask.push(b'B');
        ask.extend_from_slice(&(oids.len() as u32).to_be_bytes());
        ask.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
        self.ask(&[&ask])?;
        let mut bytes = 0;
        for _ in oids {
            bytes += self.loaded()?.unwrap_or(0);
        }
        Ok(bytes)
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
        let mut data = vec![0; 4];
        for (oid, record) in records {
            let len = u32::try_from(8 + record.len()).map_err(|_| broken("too long".into()))?;
            data.extend_from_slice(&len.to_be_bytes());
            data.extend_from_slice(&oid.to_be_bytes());
            data.extend_from_slice(record);
        }
        let len = u32::try_from(data.len() - 4).map_err(|_| broken("too long".into()))?;
        data[..4].copy_from_slice(&len.to_be_bytes());
        self.ask(&[&data])?;
        match self.receive::<1>()? {
            [b'O'] => Ok(Committed::Yes),
            [b'I'] => Ok(Committed::Conflict),
            [other] => Err(broken(format!("a commit was answered {other:#04x}"))),
        }
    }
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

fn broken(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
