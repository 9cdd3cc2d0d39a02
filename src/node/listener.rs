//! The peer port: other nodes' messages, and administrators' requests.
//!
//! Nobody is believed before a hello that fits, within a few seconds. After it a peer's connection carries its
//! messages to the core, whose thread reads them itself (`ears`): a peer that sends faster than the core steps waits in its
//! own queue. Whatever is wrong with a connection ends that connection, with one line in the log that
//! says from where and what; nobody else notices.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use slog::{Logger, debug, info, warn};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::core::io::Input;
use super::desk::Desk;
use super::ears::{self, Feed, Heard, Source};
use super::frame::{self, ADMIN_BYTES_MAX, FrameError, FrameReader, HELLO_BYTES_MAX, Taken};
use super::hello::{Me, Visitor};
use super::links::Bells;
use super::sockets::{StopSeen, tune};
use crate::config::Config;
use crate::proto::admin::AdminRequest;
use crate::proto::control::{Hello, Lane, PeerMessage};
use crate::types::NodeId;

const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Connections on the peer port at a time; members need one for each lane.
const CONNECTIONS_MAX: usize = 512;
/// After `accept` has failed, most likely for want of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection here needs.
pub struct PeerPort {
    pub config: Arc<Config>,
    pub me: Me,
    pub feed: Feed,
    pub desk: Desk,
    pub bells: Bells,
    pub log: Logger,
    pub stop: StopSeen,
    pub current: Current,
}

/// The newest connection of each peer and lane: it replaces the one before, whose other end is gone, known or not.
#[derive(Default)]
pub struct Current {
    next: AtomicU64,
    of: Mutex<Newest>,
}

/// By node and lane: the connection's number, and how it is told that it is replaced.
type Newest = HashMap<(NodeId, i32), (u64, Arc<Notify>)>;

impl Current {
    /// The number of this connection, and what is notified when a newer one replaces it.
    fn enter(&self, node: NodeId, lane: Lane) -> (u64, Arc<Notify>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let replaced = Arc::new(Notify::new());
        let older = self.of().insert((node, lane.into()), (number, replaced.clone()));
        if let Some((_, older)) = older {
            older.notify_one();
        }
        (number, replaced)
    }

    /// True if this connection was still the newest.
    fn leave(&self, node: NodeId, lane: Lane, number: u64) -> bool {
        let mut of = self.of();
        let key = (node, lane.into());
        let newest = of.get(&key).is_some_and(|(newest, _)| *newest == number);
        if newest {
            of.remove(&key);
        }
        newest
    }

    fn of(&self) -> MutexGuard<'_, Newest> {
        self.of.lock().expect("a thread panicked while it held the table of peers")
    }
}

/// Why a connection ends, unless it just does.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no hello within {} s", HELLO_WITHIN.as_secs())]
    Mute,
    #[error("{0}")]
    Stranger(String),
    #[error("a message of no known kind")]
    UnknownKind,
}

/// Accepts until the word to stop, then waits for nothing: connections see the word themselves.
pub async fn accept(port: Arc<PeerPort>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = port.stop.seen() => break,
        };
        match accepted {
            Ok((stream, from)) if connections.len() < CONNECTIONS_MAX => {
                connections.spawn(serve(port.clone(), stream, from));
            }
            Ok((_, from)) => {
                warn!(port.log, "connection refused: too many"; "from" => from, "max" => CONNECTIONS_MAX);
            }
            Err(error) => {
                warn!(port.log, "cannot accept on the peer port"; "why" => %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve(port: Arc<PeerPort>, stream: TcpStream, from: SocketAddr) {
    let ended = tokio::select! {
        ended = converse(&port, stream, from) => ended,
        () = port.stop.seen() => Ok(()),
    };
    match ended {
        Ok(()) => {}
        // How the connection of a process that was killed ends.
        Err(Wrong::Frame(FrameError::Io(error))) => {
            debug!(port.log, "connection on the peer port lost"; "from" => from, "why" => %error);
        }
        Err(wrong) => {
            warn!(port.log, "connection on the peer port closed"; "from" => from, "why" => %wrong);
        }
    }
}

async fn converse(port: &PeerPort, stream: TcpStream, from: SocketAddr) -> Result<(), Wrong> {
    tune(&stream).map_err(FrameError::Io)?;
    let (read, mut write) = stream.into_split();
    let mut frames = FrameReader::new(read);
    let first = timeout(HELLO_WITHIN, frames.next(HELLO_BYTES_MAX)).await;
    let Some(first) = first.map_err(|_| Wrong::Mute)?? else {
        // Somebody looked whether the port is open.
        return Ok(());
    };
    let hello: Hello = frame::decode("hello", first)?;
    let lane = Lane::try_from(hello.lane).unwrap_or(Lane::Control);
    let admitted = port.me.admit(&hello, &port.config);
    send(&mut write, &port.me.hello(lane)).await?;
    match admitted.map_err(Wrong::Stranger)? {
        Visitor::Admin => answer_admin(port, frames, write).await,
        Visitor::Peer { node, lane, disk_uuid } => {
            debug!(port.log, "a peer has connected"; "from" => from, "node" => node.0, "lane" => lane.as_str_name());
            let (number, replaced) = port.current.enter(node, lane);
            if lane == Lane::Control {
                port.bells.opened(node);
            }
            let ended = tokio::select! {
                ended = take_messages(port, frames, write, Speaker { node, disk_uuid, lane }) => ended,
                () = replaced.notified() => Ok(()),
            };
            // A replaced connection's end says nothing about the peer.
            if port.current.leave(node, lane, number) && lane == Lane::Control {
                info!(port.log, "a peer's control connection has closed"; "node" => node.0);
                port.bells.closed(node);
            }
            ended
        }
    }
}

async fn take_messages(
    port: &PeerPort,
    frames: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    from: Speaker,
) -> Result<(), Wrong> {
    let (read, begun) = frames.into_parts();
    let stream = read.reunite(write).expect("both are of this connection").into_std();
    let stream = stream.map_err(FrameError::Io)?;
    let (says_end, end_said) = oneshot::channel();
    let hearing = Hearing { stream: stream.into(), from, begun, says_end: Some(says_end) };
    let _attached = port.feed.attach(Box::new(hearing));
    // An error: the core has ended.
    end_said.await.unwrap_or(Ok(()))
}

/// Who says what comes by a connection.
#[derive(Clone, Copy)]
struct Speaker {
    node: NodeId,
    disk_uuid: [u8; 16],
    lane: Lane,
}

/// What the core's thread reads of one peer's lane.
struct Hearing {
    stream: OwnedFd,
    from: Speaker,
    /// Of a message that is not whole yet.
    begun: BytesMut,
    /// Taken when the connection has ended.
    says_end: Option<oneshot::Sender<Result<(), Wrong>>>,
}

impl Hearing {
    fn take(&mut self, out: &mut Vec<Input>) -> Result<(), Wrong> {
        let Speaker { node, disk_uuid, lane } = self.from;
        while let Taken::Frame(frame) = frame::take(&mut self.begun, frame::bytes_max(lane))? {
            let message: PeerMessage = frame::decode("peer message", frame)?;
            if message.kind.is_none() {
                return Err(Wrong::UnknownKind);
            }
            out.push(Input::Peer { from: node, from_disk: disk_uuid, message });
        }
        Ok(())
    }

    fn read(&mut self, scratch: &mut [u8], out: &mut Vec<Input>) -> Result<Option<usize>, Wrong> {
        let read = ears::read(self.stream.as_fd(), scratch).map_err(FrameError::Io)?;
        if let Some(len) = read {
            self.begun.extend_from_slice(&scratch[..len]);
        }
        // Also what had come with the hello.
        self.take(out)?;
        if read == Some(0) {
            frame::ended(&self.begun)?;
        }
        Ok(read)
    }
}

impl Source for Hearing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn hear(&mut self, scratch: &mut [u8], ending: bool, out: &mut Vec<Input>) -> Heard {
        let end = match self.read(scratch, out) {
            Ok(None) => return Heard::Enough,
            Ok(Some(0)) => Ok(()),
            Ok(Some(len)) if ending || len == scratch.len() => return Heard::More,
            Ok(Some(_)) => return Heard::Enough,
            Err(wrong) => Err(wrong),
        };
        if let Some(says_end) = self.says_end.take() {
            // Fails if the connection was replaced.
            let _ = says_end.send(end);
        }
        Heard::Ended
    }
}

/// One request at a time; a tool that sends several waits for each.
async fn answer_admin(
    port: &PeerPort,
    mut frames: FrameReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
) -> Result<(), Wrong> {
    while let Some(frame) = frames.next(ADMIN_BYTES_MAX).await? {
        let request: AdminRequest = frame::decode("admin request", frame)?;
        let reply = port.desk.ask(request).await;
        send(&mut write, &reply).await?;
    }
    Ok(())
}

async fn send(write: &mut OwnedWriteHalf, message: &impl prost::Message) -> Result<(), Wrong> {
    let mut out = BytesMut::new();
    frame::encode(message, &mut out);
    Ok(write.write_all(&out).await.map_err(FrameError::Io)?)
}
