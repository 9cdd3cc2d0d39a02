//! The Durus port: bytes in, bytes out; what they mean is the core's matter.
//!
//! Several addresses may be listened on; all of them serve the same sessions. One task a connection reads and writes.
//! It reads no further while the core has a budget's worth of this connection's bytes to step, or while too much waits
//! to be sent to it: a client that asks without reading stops itself. A client that takes nothing for as long as a
//! command may stall is closed, and so is one for which more waits than a session may hold. `ClientClosed` is fed
//! exactly once for every `ClientOpened`, after everything else of that connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use slog::{Logger, debug, info, warn};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::bind::{Bound, Stream};
use super::core::io::Input;
use super::limits::{self, Limits};
use super::listener::ACCEPT_PAUSE;
use super::run_loop::Feed;
use super::sockets::StopSeen;
use crate::types::ConnId;

/// Bytes of one client that may wait for the core.
const BUDGET_BYTES: usize = 1 << 20;
/// Answers that may wait before nothing more is read from the client.
const UNSENT_BYTES_PAUSE: usize = 4 << 20;
/// Short answers are collected up to this and sent in one write.
const COLLECT_BYTES: usize = 64 << 10;

/// The connections there are; the core's thread sends through it.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<ConnId, Client>>>);

struct Client {
    queue: UnboundedSender<Outgoing>,
    unsent: Arc<Unsent>,
}

/// Bytes that wait to be sent to one client.
struct Unsent {
    bytes: AtomicUsize,
    bytes_max: usize,
    shrunk: Notify,
    /// More is held for this client than may be, and why: it is closed without what waits.
    full: Notify,
    full_why: OnceLock<String>,
}

impl Unsent {
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

impl Clients {
    /// Never waits. For a connection that is gone: dropped.
    pub fn send(&self, conn: ConnId, bytes: Bytes) {
        if let Some(client) = self.table().get(&conn) {
            let unsent = &client.unsent;
            let before = unsent.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
            let wait = before + bytes.len();
            if wait > unsent.bytes_max {
                unsent.overflow(format!("it reads too slowly: {wait} bytes wait for it"));
            }
            // Fails only when the connection's task is ending.
            let _ = client.queue.send(Outgoing::Data(bytes));
        }
    }

    /// Closes the connection after what was sent before has left; at once, if that is too much.
    pub fn close(&self, conn: ConnId, closing: Closing) {
        if let Some(client) = self.table().get(&conn) {
            if closing.limit == Some(limits::SESSION_BYTES_MAX) {
                return client.unsent.overflow(closing.reason);
            }
            let _ = client.queue.send(Outgoing::Close(closing));
        }
    }

    /// At shutdown: every connection sends what waits, and closes.
    pub fn close_all(&self) {
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
    if let Err(error) = stream.tune() {
        return End::Lost(error.to_string());
    }
    let (queue, queued) = unbounded_channel();
    let unsent = Arc::new(Unsent {
        bytes: AtomicUsize::new(0),
        bytes_max: port.session_bytes_max,
        shrunk: Notify::new(),
        full: Notify::new(),
        full_why: OnceLock::new(),
    });
    port.clients.table().insert(conn, Client { queue, unsent: unsent.clone() });
    port.feed.put(Input::ClientOpened { conn, address });
    let ended = tokio::select! {
        ended = read_all(&port.feed, conn, &stream, &unsent) => ended,
        ended = write_all(port, queued, &stream, &unsent) => ended,
        () = unsent.full.notified() => End::Full(unsent.full_why.get().cloned().unwrap_or_default()),
    };
    port.clients.table().remove(&conn);
    port.feed.put(Input::ClientClosed { conn });
    ended
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

async fn read_all(feed: &Feed, conn: ConnId, stream: &Stream, unsent: &Unsent) -> End {
    let budget = Arc::new(Semaphore::new(BUDGET_BYTES));
    loop {
        while unsent.bytes.load(Ordering::Relaxed) > UNSENT_BYTES_PAUSE {
            unsent.shrunk.notified().await;
        }
        let bytes = match stream.read().await {
            Ok(bytes) if bytes.is_empty() => return End::Left,
            Ok(bytes) => bytes,
            Err(error) => return End::Lost(error.to_string()),
        };
        let permit = budget.clone().acquire_many_owned(bytes.len() as u32).await;
        let permit = permit.expect("the semaphore is never closed");
        feed.put_within(Input::ClientData { conn, bytes }, permit);
    }
}

async fn write_all(
    port: &DurusPort,
    queued: UnboundedReceiver<Outgoing>,
    stream: &Stream,
    unsent: &Unsent,
) -> End {
    let end = match write_queued(port, queued, stream, unsent).await {
        Ok(end) => end,
        Err(end) => return end,
    };
    stream.shutdown();
    end
}

/// `Ok`: everything before the end was sent.
async fn write_queued(
    port: &DurusPort,
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
                    push(port, stream, &collected, unsent).await?;
                    collected.clear();
                    // What is long is sent as it is, not copied.
                    push(port, stream, &bytes, unsent).await?;
                }
                Outgoing::Data(bytes) => collected.extend_from_slice(&bytes),
                Outgoing::Close(closing) => {
                    push(port, stream, &collected, unsent).await?;
                    return Ok(End::Closed(closing));
                }
            }
            next = queued.try_recv().ok();
        }
        push(port, stream, &collected, unsent).await?;
        // An idle client keeps nothing.
        collected = BytesMut::new();
    }
    Ok(End::Left)
}

async fn push(
    port: &DurusPort,
    stream: &Stream,
    mut bytes: &[u8],
    unsent: &Unsent,
) -> Result<(), End> {
    while !bytes.is_empty() {
        let written = timeout(port.stalled, stream.write(bytes)).await.map_err(|_| End::Stalled)?;
        let written = written.map_err(|error| End::Lost(error.to_string()))?;
        bytes = &bytes[written..];
        unsent.bytes.fetch_sub(written, Ordering::Relaxed);
        unsent.shrunk.notify_one();
    }
    Ok(())
}
