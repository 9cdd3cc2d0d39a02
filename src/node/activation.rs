//! Sockets that systemd has opened for this process and passes by number (LISTEN_FDS and LISTEN_PID).

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    #[error(
        "socket {number} passed by systemd is neither TCP nor a Unix stream socket ({source}): use ListenStream= alone"
    )]
    Kind { number: usize, source: io::Error },
    #[error(
        "socket {number} passed by systemd is a connection, not one to accept them on: Accept=no belongs into the .socket unit"
    )]
    NotListening { number: usize },
}

/// One that was passed.
pub enum Passed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// All of them; none if this process was not started that way. It takes the variables out of the environment, so it is
/// called once, before there are other threads.
pub fn passed() -> Result<Vec<Passed>, ActivationError> {
    let mut given = ListenFd::from_env();
    let mut passed = Vec::new();
    for number in 0..given.len() {
        let one = take(&mut given, number)
            .map_err(|source| ActivationError::Kind { number: number + 1, source })?;
        let fd = match &one {
            Passed::Tcp(socket) => socket.as_fd(),
            Passed::Unix(socket) => socket.as_fd(),
        };
        if !socket_acceptconn(fd).unwrap_or(false) {
            return Err(ActivationError::NotListening { number: number + 1 });
        }
        passed.push(one);
    }
    Ok(passed)
}

fn take(given: &mut ListenFd, number: usize) -> io::Result<Passed> {
    const TAKEN: &str = "each number is taken once";
    if let Ok(socket) = given.take_tcp_listener(number) {
        return Ok(Passed::Tcp(socket.expect(TAKEN)));
    }
    Ok(Passed::Unix(given.take_unix_listener(number)?.expect(TAKEN)))
}
