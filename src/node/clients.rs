//! The Durus port: bytes in, bytes out; what they mean is the core's matter.
//!
//! Several addresses may be listened on; all of them serve the same sessions. The core's thread reads (`ears`), in turn, and
//! nothing more of a connection of which the core has enough. How much may wait to be sent is the core's matter, too: it
//! asks to be told when all that it has sent is out. One
//! task a connection writes what does not leave at once, and ends it. A client that takes nothing for as long as a
//! command may stall is closed, and so is one for which more waits than a session may hold. `ClientClosed` is fed
//! exactly once for every `ClientOpened`, after everything else of that connection.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use slog::{Logger, debug, info, warn};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::bind::{Bound, Stream};
use super::core::io::Input;
use super::ears::{self, Feed, Heard, Source, SourceId};
use super::limits::{self, Limits};
use super::listener::ACCEPT_PAUSE;
use super::sockets::StopSeen;
use crate::types::ConnId;

/// Short answers are collected up to this and sent in one write.
const COLLECT_BYTES: usize = 64 << 10;
/// Short answers that are sent from where they are; more are copied together.
const PARTS_MAX: usize = 16;

/// The connections there are; the core's thread sends through it.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<ConnId, Client>>>);

struct Client {
    queue: UnboundedSender<Outgoing>,
    unsent: Arc<Unsent>,
    stream: Arc<Stream>,
    source: SourceId,
    /// The core wants nothing more of it read for now.
    unread: Arc<AtomicBool>,
}

/// Bytes that wait to be sent to one client.
struct Unsent {
    bytes: AtomicUsize,
    bytes_max: usize,
    /// The core wants to know when there is nothing more.
    drain_asked: AtomicBool,
    /// More is held for this client than may be, and why: it is closed without what waits.
    full: Notify,
    full_why: OnceLock<String>,
}

impl Unsent {
    /// After something was sent, and after it was asked: is the core to be told now? Once for each time it asks.
    fn is_drained(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) == 0 && self.drain_asked.swap(false, Ordering::SeqCst)
    }

    fn overflow(&self, why: String) {
        // The first reason is the one.
        let _ = self.full_why.set(why);
        self.full.notify_one();
    }
}

enum Outgoing {
    Data(Bytes),
    /// After everything before it.
    Close(Closing),
}

/// Why the core wants a connection closed.
pub struct Closing {
    pub reason: String,
    /// The limit that bit, by its key, if one did.
    pub limit: Option<&'static str>,
}

impl Client {
    /// Never waits. What the connection does not take at once waits for its task.
    fn send(&self, mut parts: Vec<Bytes>) {
        let mut bytes: usize = parts.iter().map(Bytes::len).sum();
        if parts.len() > PARTS_MAX && bytes <= COLLECT_BYTES {
            parts = vec![parts.concat().into()];
        }
        // Nothing waits, and nothing is being written: only this thread adds, and what is written is taken off after it.
        let idle = self.unsent.bytes.load(Ordering::Acquire) == 0;
        let mut written = match idle && bytes <= COLLECT_BYTES {
            true => self.stream.try_write(&parts),
            false => 0,
        };
        bytes -= written;
        if bytes == 0 {
            return;
        }
        let wait = self.unsent.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if wait > self.unsent.bytes_max {
            self.unsent.overflow(format!("it reads too slowly: {wait} bytes wait for it"));
        }
        for mut part in parts {
            part.advance(written.min(part.len()));
            written -= written.min(part.len());
            if !part.is_empty() {
                // Fails only when the connection's task is ending.
                let _ = self.queue.send(Outgoing::Data(part));
            }
        }
    }
}

/// The core's answers: those of one round go out together.
pub struct Replies {
    clients: Clients,
    feed: Feed,
    /// In the order of their first answers.
    waiting: Vec<(ConnId, Vec<Bytes>)>,
    places: HashMap<ConnId, usize>,
}

impl Replies {
    pub fn new(clients: Clients, feed: Feed) -> Replies {
        Replies { clients, feed, waiting: Vec::new(), places: HashMap::new() }
    }

    pub fn send(&mut self, conn: ConnId, bytes: Bytes) {
        let place = *self.places.entry(conn).or_insert_with(|| {
            self.waiting.push((conn, Vec::new()));
            self.waiting.len() - 1
        });
        self.waiting[place].1.push(bytes);
    }

    /// For a connection that is gone: dropped.
    pub fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.places.clear();
        let table = self.clients.table();
        for (conn, parts) in self.waiting.drain(..) {
            if let Some(client) = table.get(&conn) {
                client.send(parts);
            }
        }
    }

    /// Whether more of what the client sends is to be read.
    pub fn read(&mut self, conn: ConnId, on: bool) {
        if let Some(client) = self.clients.table().get(&conn) {
            client.unread.store(!on, Ordering::Relaxed);
            if on {
                self.feed.resume(client.source);
            }
        }
    }

    /// The core is told when all that was sent to this client before is out.
    pub fn drain(&mut self, conn: ConnId) {
        self.flush();
        let table = self.clients.table();
        if let Some(client) = table.get(&conn) {
            client.unsent.drain_asked.store(true, Ordering::SeqCst);
            if client.unsent.is_drained() {
                // With the table locked, so that its end is fed after this.
                self.feed.put(Input::ClientDrained { conn });
            }
        }
    }

    /// Closes the connection after what was sent before has left; at once, if that is too much.
    pub fn close(&mut self, conn: ConnId, closing: Closing) {
        self.flush();
        self.clients.close(conn, closing);
    }

    /// At shutdown: every connection sends what waits, and closes.
    pub fn close_all(&mut self) {
        self.flush();
        self.clients.close_all();
    }
}

impl Clients {
    fn close(&self, conn: ConnId, closing: Closing) {
        if let Some(client) = self.table().get(&conn) {
            if closing.limit == Some(limits::SESSION_BYTES_MAX) {
                return client.unsent.overflow(closing.reason);
            }
            let _ = client.queue.send(Outgoing::Close(closing));
        }
    }

    fn close_all(&self) {
        self.table().clear();
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ConnId, Client>> {
        self.0.lock().expect("a thread panicked while it held the table of clients")
    }
}

/// What every connection here needs.
pub struct DurusPort {
    pub clients: Clients,
    pub clients_max: usize,
    /// Bytes that may wait for one client.
    pub session_bytes_max: usize,
    /// How long a client may take nothing while something waits for it.
    pub stalled: Duration,
    pub limits: Arc<Limits>,
    pub feed: Feed,
    pub log: Logger,
    pub stop: StopSeen,
    /// Of all listeners together.
    pub connected: AtomicUsize,
    pub accepted: AtomicU64,
}

/// Accepts until the word to stop, then waits for the connections to end.
pub async fn accept(port: Arc<DurusPort>, listener: Bound) {
    let name: Arc<str> = listener.name.as_str().into();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = port.stop.seen() => break,
        };
        match accepted {
            Ok((_, from)) if port.connected.load(Ordering::Relaxed) >= port.clients_max => {
                let why = format!("there are {} already", port.clients_max);
                port.limits.bit(limits::CLIENTS_MAX, &format!("{from} at {name}"), &why);
            }
            Ok((stream, from)) => {
                port.connected.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(port.clone(), stream, from, name.clone()));
            }
            Err(error) => {
                warn!(port.log, "cannot accept Durus clients"; "listener" => &*name, "why" => %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Nobody who connects from now on may believe to be served.
    drop(listener);
    // A connection that was accepted in this very moment is not in the table before its task runs.
    while !connections.is_empty() {
        port.clients.close_all();
        let _ = timeout(Duration::from_millis(10), connections.join_next()).await;
    }
}

async fn serve(port: Arc<DurusPort>, stream: Stream, from: String, listener: Arc<str>) {
    let conn = ConnId(1 + port.accepted.fetch_add(1, Ordering::Relaxed));
    let ended = converse(&port, conn, stream, format!("{from} at {listener}")).await;
    port.connected.fetch_sub(1, Ordering::Relaxed);
    let limit = |key, why: &str| port.limits.bit(key, &format!("{from} at {listener}"), why);
    match ended {
        End::Left => {
            debug!(port.log, "client left"; "from" => from, "listener" => &*listener, "conn" => conn.0)
        }
        End::Lost(why) => {
            debug!(port.log, "client lost"; "from" => from, "listener" => &*listener, "conn" => conn.0, "why" => why)
        }
        End::Closed(Closing { reason, limit: Some(key) }) => limit(key, &reason),
        End::Closed(Closing { reason, limit: None }) => {
            info!(port.log, "client closed"; "from" => from, "listener" => &*listener, "conn" => conn.0, "why" => reason)
        }
        End::Stalled => limit(limits::COMMAND_MAX, "it takes nothing of what waits for it"),
        End::Full(why) => limit(limits::SESSION_BYTES_MAX, &why),
    }
}

async fn converse(port: &DurusPort, conn: ConnId, stream: Stream, address: String) -> End {
    let (queue, queued) = unbounded_channel();
    let unsent = Arc::new(Unsent {
        bytes: AtomicUsize::new(0),
        bytes_max: port.session_bytes_max,
        drain_asked: AtomicBool::new(false),
        full: Notify::new(),
        full_why: OnceLock::new(),
    });
    let stream = Arc::new(stream);
    let (source, unread) = (port.feed.number(), Arc::new(AtomicBool::new(false)));
    let client = Client {
        queue,
        unsent: unsent.clone(),
        stream: stream.clone(),
        source,
        unread: unread.clone(),
    };
    port.clients.table().insert(conn, client);
    port.feed.put(Input::ClientOpened { conn, address });
    let (says_end, end_said) = oneshot::channel();
    let heard = Hearing { conn, stream: stream.clone(), unread, says_end: Some(says_end) };
    let attached = port.feed.attach_as(source, Box::new(heard));
    let ended = tokio::select! {
        ended = write_all(port, conn, queued, &stream, &unsent) => ended,
        ended = end_said => ended.unwrap_or(End::Left),
        () = unsent.full.notified() => End::Full(unsent.full_why.get().cloned().unwrap_or_default()),
    };
    port.clients.table().remove(&conn);
    drop(attached);
    port.feed.put(Input::ClientClosed { conn });
    ended
}

/// What the core's thread reads of one client.
struct Hearing {
    conn: ConnId,
    stream: Arc<Stream>,
    unread: Arc<AtomicBool>,
    /// Taken when the client has ended.
    says_end: Option<oneshot::Sender<End>>,
}

impl Source for Hearing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn hear(&mut self, scratch: &mut [u8], ending: bool, out: &mut Vec<Input>) -> Heard {
        if self.unread.load(Ordering::Relaxed) {
            return Heard::Enough;
        }
        let end = match ears::read(self.stream.as_fd(), scratch) {
            Ok(None) => return Heard::Enough,
            Ok(Some(0)) => End::Left,
            Ok(Some(len)) => {
                let bytes = Bytes::copy_from_slice(&scratch[..len]);
                out.push(Input::ClientData { conn: self.conn, bytes });
                let more = ending || len == scratch.len();
                return if more { Heard::More } else { Heard::Enough };
            }
            Err(error) => End::Lost(error.to_string()),
        };
        if let Some(says_end) = self.says_end.take() {
            // Fails if the task has ended for another reason.
            let _ = says_end.send(end);
        }
        Heard::Ended
    }
}

enum End {
    /// It closed, or the node stops.
    Left,
    Lost(String),
    /// The core wanted it so.
    Closed(Closing),
    Stalled,
    /// Too much is held for it.
    Full(String),
}

async fn write_all(
    port: &DurusPort,
    conn: ConnId,
    queued: UnboundedReceiver<Outgoing>,
    stream: &Stream,
    unsent: &Unsent,
) -> End {
    let end = match write_queued(port, conn, queued, stream, unsent).await {
        Ok(end) => end,
        Err(end) => return end,
    };
    stream.shutdown();
    end
}

/// `Ok`: everything before the end was sent.
async fn write_queued(
    port: &DurusPort,
    conn: ConnId,
    mut queued: UnboundedReceiver<Outgoing>,
    stream: &Stream,
    unsent: &Unsent,
) -> Result<End, End> {
    let mut collected = BytesMut::new();
    while let Some(first) = queued.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            match outgoing {
                Outgoing::Data(bytes) if collected.len() + bytes.len() > COLLECT_BYTES => {
                    push(port, conn, stream, &collected, unsent).await?;
                    collected.clear();
                    // What is long is sent as it is, not copied.
                    push(port, conn, stream, &bytes, unsent).await?;
                }
                Outgoing::Data(bytes) => collected.extend_from_slice(&bytes),
                Outgoing::Close(closing) => {
                    push(port, conn, stream, &collected, unsent).await?;
                    return Ok(End::Closed(closing));
                }
            }
            next = queued.try_recv().ok();
        }
        push(port, conn, stream, &collected, unsent).await?;
        // An idle client keeps nothing.
        collected = BytesMut::new();
    }
    Ok(End::Left)
}

async fn push(
    port: &DurusPort,
    conn: ConnId,
    stream: &Stream,
    mut bytes: &[u8],
    unsent: &Unsent,
) -> Result<(), End> {
    while !bytes.is_empty() {
        let written = timeout(port.stalled, stream.write(bytes)).await.map_err(|_| End::Stalled)?;
        let written = written.map_err(|error| End::Lost(error.to_string()))?;
        bytes = &bytes[written..];
        unsent.bytes.fetch_sub(written, Ordering::SeqCst);
        if unsent.is_drained() {
            port.feed.put(Input::ClientDrained { conn });
        }
    }
    Ok(())
}
