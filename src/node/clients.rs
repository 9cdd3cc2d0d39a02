//! The Durus port: bytes in, bytes out; what they mean is the core's matter.
//!
//! One task a connection reads and writes. It reads no further while the core has a budget's worth of this
//! connection's bytes to step, or while too much waits to be sent to it: a client that asks without reading stops
//! itself. A client that takes nothing for as long as a stock server would wait is closed. `ClientClosed` is fed
//! exactly once for every `ClientOpened`, after everything else of that connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use slog::{Logger, debug, info, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::core::io::Input;
use super::listener::ACCEPT_PAUSE;
use super::run_loop::Feed;
use super::sockets::{StopSeen, tune_client};
use crate::types::ConnId;

/// Bytes of one client that may wait for the core.
const BUDGET_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 32 << 10;
/// Answers that may wait before nothing more is read from the client.
const UNSENT_BYTES_PAUSE: usize = 4 << 20;
/// How long a client may take nothing while something waits for it. Stock Durus's own time.
const STALLED: Duration = Duration::from_secs(10);
/// Short answers are collected up to this and sent in one write.
const COLLECT_BYTES: usize = 64 << 10;
const BATCH_MAX: usize = 256;

/// The connections there are; the core's thread sends through it.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<ConnId, Client>>>);

struct Client {
    queue: UnboundedSender<Outgoing>,
    unsent: Arc<Unsent>,
}

/// Bytes that wait to be sent to one client.
#[derive(Default)]
struct Unsent {
    bytes: AtomicUsize,
    shrunk: Notify,
}

enum Outgoing {
    Data(Bytes),
    /// After everything before it.
    Close(String),
}

impl Clients {
    /// Never waits. For a connection that is gone: dropped.
    pub fn send(&self, conn: ConnId, bytes: Bytes) {
        if let Some(client) = self.table().get(&conn) {
            client.unsent.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
            // Fails only when the connection's task is ending.
            let _ = client.queue.send(Outgoing::Data(bytes));
        }
    }

    /// Closes the connection after what was sent before has left.
    pub fn close(&self, conn: ConnId, reason: String) {
        if let Some(client) = self.table().get(&conn) {
            let _ = client.queue.send(Outgoing::Close(reason));
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
    pub feed: Feed,
    pub log: Logger,
    pub stop: StopSeen,
}

/// Accepts until the word to stop, then waits for the connections to end.
pub async fn accept(port: Arc<DurusPort>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut next = 1;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = port.stop.seen() => break,
        };
        match accepted {
            Ok((stream, from)) if connections.len() < port.clients_max => {
                connections.spawn(serve(port.clone(), ConnId(next), stream, from));
                next += 1;
            }
            Ok((_, from)) => {
                warn!(port.log, "client refused: too many, see limits.clients_max";
                    "from" => from, "max" => port.clients_max);
            }
            Err(error) => {
                warn!(port.log, "cannot accept on the Durus port"; "why" => %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // A connection that was accepted in this very moment is not in the table before its task runs.
    while !connections.is_empty() {
        port.clients.close_all();
        let _ = timeout(Duration::from_millis(10), connections.join_next()).await;
    }
}

async fn serve(port: Arc<DurusPort>, conn: ConnId, stream: TcpStream, from: SocketAddr) {
    if let Err(error) = tune_client(&stream) {
        debug!(port.log, "client gone before it was served"; "from" => from, "why" => %error);
        return;
    }
    let (read, write) = stream.into_split();
    let (queue, queued) = unbounded_channel();
    let unsent = Arc::new(Unsent::default());
    port.clients.table().insert(conn, Client { queue, unsent: unsent.clone() });
    port.feed.put(Input::ClientOpened { conn, address: from.to_string() });
    let ended = tokio::select! {
        ended = read_all(&port.feed, conn, read, &unsent) => ended,
        ended = write_all(queued, write, &unsent) => ended,
    };
    port.clients.table().remove(&conn);
    port.feed.put(Input::ClientClosed { conn });
    match ended {
        End::Left => debug!(port.log, "client left"; "from" => from, "conn" => conn.0),
        End::Lost(why) => {
            debug!(port.log, "client lost"; "from" => from, "conn" => conn.0, "why" => why)
        }
        End::Closed(reason) => {
            info!(port.log, "client closed"; "from" => from, "conn" => conn.0, "why" => reason)
        }
        End::Stalled => warn!(port.log, "client closed: it takes nothing of what waits for it";
            "from" => from, "conn" => conn.0, "seconds" => STALLED.as_secs()),
    }
}

enum End {
    /// It closed, or the node stops.
    Left,
    Lost(String),
    /// The core wanted it so.
    Closed(String),
    Stalled,
}

async fn read_all(feed: &Feed, conn: ConnId, mut read: OwnedReadHalf, unsent: &Unsent) -> End {
    let budget = Arc::new(Semaphore::new(BUDGET_BYTES));
    let mut buf = BytesMut::new();
    loop {
        while unsent.bytes.load(Ordering::Relaxed) > UNSENT_BYTES_PAUSE {
            unsent.shrunk.notified().await;
        }
        buf.reserve(READ_BYTES);
        match read.read_buf(&mut buf).await {
            Ok(0) => return End::Left,
            Ok(_) => {}
            Err(error) => return End::Lost(error.to_string()),
        }
        let bytes = buf.split().freeze();
        let permit = budget.clone().acquire_many_owned(bytes.len() as u32).await;
        let permit = permit.expect("the semaphore is never closed");
        feed.put_within(Input::ClientData { conn, bytes }, permit);
    }
}

async fn write_all(
    queued: UnboundedReceiver<Outgoing>,
    mut write: OwnedWriteHalf,
    unsent: &Unsent,
) -> End {
    let end = match write_queued(queued, &mut write, unsent).await {
        Ok(end) => end,
        Err(end) => return end,
    };
    // Closing is all that is left to do; how it went changes nothing.
    let _ = write.shutdown().await;
    end
}

/// `Ok`: everything before the end was sent.
async fn write_queued(
    mut queued: UnboundedReceiver<Outgoing>,
    write: &mut OwnedWriteHalf,
    unsent: &Unsent,
) -> Result<End, End> {
    let mut batch = Vec::new();
    let mut collected = BytesMut::new();
    while queued.recv_many(&mut batch, BATCH_MAX).await > 0 {
        for next in batch.drain(..) {
            match next {
                Outgoing::Data(bytes) if collected.len() + bytes.len() > COLLECT_BYTES => {
                    push(write, &collected, unsent).await?;
                    collected.clear();
                    // What is long is sent as it is, not copied.
                    push(write, &bytes, unsent).await?;
                }
                Outgoing::Data(bytes) => collected.extend_from_slice(&bytes),
                Outgoing::Close(reason) => {
                    push(write, &collected, unsent).await?;
                    return Ok(End::Closed(reason));
                }
            }
        }
        push(write, &collected, unsent).await?;
        collected.clear();
    }
    Ok(End::Left)
}

async fn push(write: &mut OwnedWriteHalf, mut bytes: &[u8], unsent: &Unsent) -> Result<(), End> {
    while !bytes.is_empty() {
        let written = timeout(STALLED, write.write(bytes)).await.map_err(|_| End::Stalled)?;
        let written = written.map_err(|error| End::Lost(error.to_string()))?;
        bytes = &bytes[written..];
        unsent.bytes.fetch_sub(written, Ordering::Relaxed);
        unsent.shrunk.notify_one();
    }
    Ok(())
}
