//! What this node listens on: bound, named in every line of the log, and cleared away at the end.
//!
//! Everything is bound before anything is served, so that a node either listens on all it should or says on what it
//! can't, and why, and does not start.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;

use bytes::Bytes;
use rustix::net::Shutdown;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::activation::Passed;
use super::sockets::tune_client;
use super::unix_socket::{self, SocketFile, UnixError};
use crate::config::{DurusAddress, UnixSockets, host_and_port};

/// The most that is taken from a client at once.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {name} ({key}): {source}{}", remedy(.name, source))]
    Socket { key: &'static str, name: String, source: io::Error },
    #[error("cannot listen on {name} ({key}): {source}")]
    Unix { key: &'static str, name: String, source: UnixError },
}

/// What to do about it.
fn remedy(name: &str, error: &io::Error) -> String {
    let port = host_and_port(name).map_or(0, |(_, port)| port);
    match error.kind() {
        ErrorKind::AddrInUse if port > 0 => {
            format!(": stop whoever listens there (`ss -ltnp sport = :{port}` shows it), or choose another port")
        }
        ErrorKind::AddrInUse => {
            ": stop whoever listens there (`ss -lxp` shows it), or choose another name".into()
        }
        ErrorKind::PermissionDenied if port > 0 && port < 1024 => {
            ": ports below 1024 are root's: choose another, or give this process CAP_NET_BIND_SERVICE".into()
        }
        ErrorKind::AddrNotAvailable => {
            ": no interface of this machine has this address: correct it, or listen on 0.0.0.0 or [::]".into()
        }
        _ if port > 0 => ": does this machine know that host?".into(),
        _ => String::new(),
    }
}

/// One of the addresses that Durus clients may connect to.
pub struct Bound {
    /// For the log: as it is configured.
    pub name: String,
    // Dropped in this order.
    socket: Socket,
    _file: Option<SocketFile>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// HOST:PORT, for the peers or the pages.
pub async fn tcp(key: &'static str, address: &str) -> Result<TcpListener, BindError> {
    let failed = |source| BindError::Socket { key, name: address.to_string(), source };
    TcpListener::bind(address).await.map_err(failed)
}

/// For Durus clients.
pub async fn durus(address: &DurusAddress, as_: &UnixSockets) -> Result<Bound, BindError> {
    const KEY: &str = "listen.durus";
    let name = address.to_string();
    let failed = |source| BindError::Socket { key: KEY, name: address.to_string(), source };
    let (socket, file) = match address {
        DurusAddress::Tcp(address) => (Socket::Tcp(tcp(KEY, address).await?), None),
        DurusAddress::Path(path) => {
            let (listener, file) = unix_socket::listen(path, as_)
                .map_err(|source| BindError::Unix { key: KEY, name: name.clone(), source })?;
            (Socket::Unix(unix(listener).map_err(failed)?), Some(file))
        }
        DurusAddress::Abstract(abstract_name) => {
            let bind = || {
                let at = UnixAddr::from_abstract_name(abstract_name)?;
                unix(std::os::unix::net::UnixListener::bind_addr(&at)?)
            };
            (Socket::Unix(bind().map_err(failed)?), None)
        }
    };
    Ok(Bound { name, socket, _file: file })
}

/// What systemd has passed; the files of its Unix sockets are its own.
pub fn passed(number: usize, passed: Passed) -> Result<Bound, BindError> {
    let mut name = format!("systemd's socket {number}");
    let adopted = match passed {
        Passed::Tcp(listener) => {
            if let Ok(address) = listener.local_addr() {
                name += &format!(" ({address})");
            }
            listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
                .map(Socket::Tcp)
        }
        Passed::Unix(listener) => {
            if let Ok(address) = listener.local_addr() {
                name += &format!(" ({})", of_unix(&address));
            }
            unix(listener).map(Socket::Unix)
        }
    };
    match adopted {
        Ok(socket) => Ok(Bound { name, socket, _file: None }),
        Err(source) => Err(BindError::Socket { key: "LISTEN_FDS", name, source }),
    }
}

fn of_unix(address: &UnixAddr) -> String {
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", name.escape_ascii()),
        (None, None) => "without a name".into(),
    }
}

fn unix(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

impl Bound {
    /// The next client, and who it is, for the log.
    pub async fn accept(&self) -> io::Result<(Stream, String)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((Stream::Tcp(stream), from.to_string()))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let from = match stream.peer_cred() {
                    Ok(cred) => match cred.pid() {
                        Some(pid) => format!("process {pid} of user {}", cred.uid()),
                        None => format!("a process of user {}", cred.uid()),
                    },
                    Err(_) => "a process of this machine".into(),
                };
                Ok((Stream::Unix(stream), from))
            }
        }
    }
}

/// A client's connection. Nothing is kept for one that is idle.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn tune(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => tune_client(stream),
            Stream::Unix(_) => Ok(()),
        }
    }

    /// What has come; nothing at the end. May be called again if it was not waited for.
    pub async fn read(&self) -> io::Result<Bytes> {
        thread_local! {
            /// Shared by all connections of a thread, and copied from: a buffer of each one's own would be idle
            /// nearly always.
            static SCRATCH: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; READ_BYTES]);
        }
        loop {
            match self {
                Stream::Tcp(stream) => stream.readable().await?,
                Stream::Unix(stream) => stream.readable().await?,
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let read = match self {
                    Stream::Tcp(stream) => stream.try_read(scratch),
                    Stream::Unix(stream) => stream.try_read(scratch),
                };
                read.map(|len| Bytes::copy_from_slice(&scratch[..len]))
            });
            match read {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// How many of the bytes were taken.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Stream::Tcp(stream) => stream.try_write(bytes),
                Stream::Unix(stream) => stream.try_write(bytes),
            };
            match written {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            match self {
                Stream::Tcp(stream) => stream.writable().await?,
                Stream::Unix(stream) => stream.writable().await?,
            }
        }
    }

    /// Nothing more will be written.
    pub fn shutdown(&self) {
        // It may be closed already.
        let _ = match self {
            Stream::Tcp(stream) => rustix::net::shutdown(stream, Shutdown::Write),
            Stream::Unix(stream) => rustix::net::shutdown(stream, Shutdown::Write),
        };
    }
}
