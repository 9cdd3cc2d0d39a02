//! What this node listens on: bound, named in every line of the log, and cleared away at the end.
//!
//! Everything is bound before anything is served, so that a node either listens on all it should or says on what it
//! can't, and why, and does not start.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;

use bytes::Bytes;
use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::activation::Passed;
use super::sockets::tune_client;
use super::unix_socket::{self, SocketFile, UnixError};
use crate::config::{DurusAddress, UnixSockets, host_and_port};

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
                Ok((Stream::tcp(stream)?, from.to_string()))
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
                Ok((Stream::unix(stream)?, from))
            }
        }
    }
}

/// A client's connection. The core's thread reads it and writes short answers; a task writes what it does not take.
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    fn tcp(stream: TcpStream) -> io::Result<Stream> {
        tune_client(&stream)?;
        Stream::new(stream.into_std()?.into())
    }

    fn unix(stream: UnixStream) -> io::Result<Stream> {
        Stream::new(stream.into_std()?.into())
    }

    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may lie about their fd: an OwnedFd does not"
    )]
    fn new(fd: OwnedFd) -> io::Result<Stream> {
        Ok(Stream(AsyncFd::with_interest(fd, Interest::WRITABLE)?))
    }

    /// How many bytes were taken at once. An error is for whoever waits for this connection to find.
    pub fn try_write(&self, parts: &[Bytes]) -> usize {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        rustix::io::writev(self, &slices).unwrap_or(0)
    }

    /// How many of the bytes were taken.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut room = self.0.writable().await?;
            if let Ok(done) = room.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                return done;
            }
        }
    }

    /// Nothing more will be written.
    pub fn shutdown(&self) {
        // It may be closed already.
        let _ = rustix::net::shutdown(self, Shutdown::Write);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
