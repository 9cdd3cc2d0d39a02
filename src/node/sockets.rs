//! What all sockets share: their options, and the word to stop.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A connection whose other side acknowledges nothing for this long is closed by the kernel: after a cut cable is
/// mended we connect anew instead of waiting for a retransmission that comes later and later.
const UNANSWERED: Duration = Duration::from_secs(5);

/// For a client: nothing waits for more to be sent. One that is silent is never given up, as a stock server never
/// does; that the kernel asks after it every few hours is for those that are gone without a word.
pub fn tune_client(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// Between nodes: and a dead other side is noticed even when nothing is sent.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, UNANSWERED)?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_user_timeout(stream, UNANSWERED.as_millis() as u32)?;
    Ok(())
}

/// The word to stop. Given once; dropping it gives it too.
pub struct Stop(watch::Sender<bool>);

#[derive(Clone)]
pub struct StopSeen(watch::Receiver<bool>);

impl Stop {
    pub fn pair() -> (Stop, StopSeen) {
        let (sender, receiver) = watch::channel(false);
        (Stop(sender), StopSeen(receiver))
    }

    pub fn give(&self) {
        self.0.send_replace(true);
    }
}

impl StopSeen {
    /// Ends when the word is given.
    pub async fn seen(&self) {
        // An error means that the giver is gone: that is the word, too.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}
