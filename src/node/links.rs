//! Our connections to the other nodes: one for each lane, for our messages only; theirs come by their own.
//!
//! A link is dialled at once when it closes, then in growing intervals. While it has never failed since it was last
//! open, messages wait for it; once dialling has failed they are dropped, and so is everything that waited: whoever
//! sends messages must be fine with losing them, as with any network. A queue has a bound in bytes; past it the
//! connection is given up and opened anew, empty.
//!
//! When a lane that was lost is open again, the core is told by another `PeerUp`: what was under way on it may be lost.
//!
//! Short messages of one round of the core are written together, by its own thread, where nothing waits before them: to
//! wake the link's task would take about as long. What a connection does not take at once, and what is long, waits in the
//! queue.
//!
//! The control link is how a dead process is noticed: its connection closes and the port refuses. A peer whose own
//! control connection to us closes is asked in the same way at once. Nothing here waits for a timer before it looks.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use slog::{Logger, debug, info};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::core::io::{Input, LANES, SMALL_COMMIT_BYTES_MAX, lane};
use super::ears::Feed;
use super::frame::{self, FrameReader, HELLO_BYTES_MAX};
use super::hello::Me;
use super::limits::{self, Limits};
use super::sockets::{StopSeen, tune};
use crate::config::{Config, Member};
use crate::proto::control::{Hello, Lane, PeerMessage};
use crate::types::NodeId;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// A dying process closes its listening socket and its connections one after the other: a connection made in between
/// is reset, and asking again shortly gets the true answer.
const RESETS_MAX: u32 = 3;
const RESET_PAUSE: Duration = Duration::from_millis(2);
/// Bytes that are sent in one write, if that many wait.
const WRITE_BYTES: usize = 1 << 20;
const BATCH_MAX: usize = 256;
/// Messages of one round that are written together by the core's thread; longer ones wait for the link's task.
const ROUND_BYTES: usize = 64 << 10;

/// All our links; the core's thread sends through it. Dropping it lets every link send what waits and close.
pub struct Links {
    links: BTreeMap<NodeId, [Link; LANES.len()]>,
}

struct Link {
    queue: UnboundedSender<Queued>,
    gate: Arc<Gate>,
    peer: NodeId,
    lane: Lane,
    limits: Arc<Limits>,
    /// Short messages of this round, and of which era they are.
    round: BytesMut,
    round_era: u64,
}

/// What a link's sender, its task and the listener share.
struct Gate {
    /// Do messages wait, or are they dropped?
    accepts: AtomicBool,
    /// Messages of an earlier era are dropped instead of sent, unless they are begun: they were meant for a connection that
    /// is lost, perhaps for a process that is gone.
    era: AtomicU64,
    queued_bytes: AtomicUsize,
    queued_bytes_max: usize,
    /// There is a connection.
    connected: AtomicBool,
    /// It, while its task carries what waits.
    stream: Mutex<Option<Arc<TcpStream>>>,
    /// Past the bound since the connection was opened.
    overflowed: AtomicBool,
    overflow: Notify,
    dial_now: Notify,
    verify: Notify,
}

/// A message that waits; its bytes are charged to the queue until it is dropped.
struct Queued {
    waits: Waits,
    era: u64,
    charge: Charge,
}

enum Waits {
    Message(Box<PeerMessage>),
    /// Of messages that are encoded.
    Frames(Bytes),
    /// What this connection has not taken of such: it may begin in the middle of a message, so it must come next there,
    /// whatever its era, and is of no use to any other connection.
    Rest(Weak<TcpStream>, Bytes),
}

struct Charge {
    bytes: usize,
    gate: Arc<Gate>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.gate.queued_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Through which the listener tells what it sees of a peer's own connections.
#[derive(Clone)]
pub struct Bells(Arc<BTreeMap<NodeId, Arc<Gate>>>);

impl Bells {
    /// The peer has opened its control connection: it is there.
    pub fn opened(&self, peer: NodeId) {
        if let Some(gate) = self.0.get(&peer) {
            gate.dial_now.notify_one();
        }
    }

    /// The peer's control connection has closed: is it still there?
    pub fn closed(&self, peer: NodeId) {
        if let Some(gate) = self.0.get(&peer) {
            gate.verify.notify_one();
        }
    }
}

impl Links {
    /// Starts to dial every other member, on `tasks`.
    pub fn start(
        config: &Config,
        me: &Me,
        feed: &Feed,
        limits: &Arc<Limits>,
        stop: &StopSeen,
        log: &Logger,
        tasks: &mut JoinSet<()>,
    ) -> (Links, Bells) {
        let mut links = BTreeMap::new();
        let mut bells = BTreeMap::new();
        for peer in config.members.iter().filter(|member| member.id != me.node) {
            let gates: [Arc<Gate>; LANES.len()] =
                std::array::from_fn(|_| Arc::new(Gate::new(config.limits.peer_queue_bytes_max)));
            let of_peer = LANES.map(|lane| {
                let (queue, queued) = unbounded_channel();
                let gate = gates[lane as usize].clone();
                let dialler = Dialler {
                    me: me.clone(),
                    peer: peer.clone(),
                    lane,
                    gate: gate.clone(),
                    queued,
                    control: gates[Lane::Control as usize].clone(),
                    others: if lane == Lane::Control { gates[1..].to_vec() } else { Vec::new() },
                    feed: feed.clone(),
                    stop: stop.clone(),
                    log: log.new(slog::o!("peer" => peer.name.clone(), "lane" => name(lane))),
                    up: false,
                    failing: false,
                };
                tasks.spawn(dialler.run());
                let (round, round_era, limits) = (BytesMut::new(), 0, limits.clone());
                Link { queue, gate, peer: peer.id, lane, limits, round, round_era }
            });
            bells.insert(peer.id, gates[Lane::Control as usize].clone());
            links.insert(peer.id, of_peer);
        }
        (Links { links }, Bells(Arc::new(bells)))
    }

    /// Never waits; goes out at the next `flush` at the latest. To nobody we know: dropped.
    pub fn send(&mut self, to: NodeId, message: PeerMessage, log: &Logger) {
        let Some(links) = self.links.get_mut(&to) else {
            debug!(log, "a message to a node that is no member is dropped"; "node" => to.0);
            return;
        };
        links[lane(&message, SMALL_COMMIT_BYTES_MAX) as usize].send(message);
    }

    /// Sends what this round has brought.
    pub fn flush(&mut self) {
        self.links.values_mut().flatten().for_each(Link::flush);
    }
}

impl Link {
    fn send(&mut self, message: PeerMessage) {
        if !self.gate.accepts.load(Ordering::Acquire) {
            return;
        }
        let bytes = message.encoded_len();
        let era = self.gate.era.load(Ordering::Acquire);
        if self.lane == Lane::Bulk || bytes > ROUND_BYTES {
            self.flush();
            return self.enqueue(Waits::Message(Box::new(message)), bytes, era);
        }
        if era != self.round_era || self.round.len() + bytes > ROUND_BYTES {
            self.flush();
        }
        self.round_era = era;
        frame::encode(&message, &mut self.round);
    }

    fn flush(&mut self) {
        if self.round.is_empty() {
            return;
        }
        let mut frames = self.round.split().freeze();
        let gate = &self.gate;
        let mut begun = None;
        // Nothing waits, and nothing is being written: only this thread adds, and what is written is taken off after it.
        if gate.queued_bytes.load(Ordering::Acquire) == 0
            && gate.era.load(Ordering::Acquire) == self.round_era
            && let Some(stream) = &*gate.stream()
        {
            // An error is for the link's task to find.
            let written = stream.try_write(&frames).unwrap_or(0);
            frames.advance(written);
            begun = (written > 0).then(|| Arc::downgrade(stream));
        }
        if !frames.is_empty() {
            let bytes = frames.len();
            let waits = match begun {
                Some(stream) => Waits::Rest(stream, frames),
                None => Waits::Frames(frames),
            };
            self.enqueue(waits, bytes, self.round_era);
        }
    }

    fn enqueue(&self, waits: Waits, bytes: usize, era: u64) {
        let gate = &self.gate;
        let before = gate.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        let queued = Queued { waits, era, charge: Charge { bytes, gate: gate.clone() } };
        // A message that is longer than the bound passes an empty queue.
        if before > 0 && before + bytes > gate.queued_bytes_max {
            if !gate.overflowed.swap(true, Ordering::AcqRel) {
                let why = format!("{before} bytes wait to be sent to it; it is opened anew");
                let node = format!("node {}", self.peer);
                self.limits.bit(limits::PEER_QUEUE_BYTES_MAX, &node, &why);
            }
            gate.overflow.notify_one();
            return;
        }
        // Fails only when the link's task has ended, at shutdown.
        let _ = self.queue.send(queued);
    }
}

impl Gate {
    /// What waits now is not sent any more.
    fn new_era(&self) {
        self.era.fetch_add(1, Ordering::AcqRel);
    }

    /// And what comes later is dropped.
    fn shut(&self) {
        self.accepts.store(false, Ordering::Release);
        self.new_era();
    }

    fn stream(&self) -> MutexGuard<'_, Option<Arc<TcpStream>>> {
        self.stream.lock().expect("a thread panicked while it held a link's connection")
    }

    fn new(queued_bytes_max: usize) -> Gate {
        Gate {
            accepts: AtomicBool::new(true),
            era: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max,
            connected: AtomicBool::new(false),
            stream: Mutex::new(None),
            overflowed: AtomicBool::new(false),
            overflow: Notify::new(),
            dial_now: Notify::new(),
            verify: Notify::new(),
        }
    }
}

/// The task of one link. Ends when the queue is closed and sent, or at a stop while it has no connection.
struct Dialler {
    me: Me,
    peer: Member,
    lane: Lane,
    gate: Arc<Gate>,
    queued: UnboundedReceiver<Queued>,
    control: Arc<Gate>,
    /// Of the control link: the other lanes.
    others: Vec<Arc<Gate>>,
    feed: Feed,
    stop: StopSeen,
    log: Logger,
    /// It has been open; of the control link: and the core believes that it is.
    up: bool,
    /// Dialling has failed, and that was logged.
    failing: bool,
}

/// Why there is no connection.
#[derive(Debug)]
enum Failure {
    Refused,
    /// It was accepted and then closed without an answer.
    Reset(String),
    Other(String),
}

enum End {
    /// Our own side has closed the queue, and all of it is sent.
    Finished,
    Lost(String),
    Refused,
}

impl Dialler {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let dialled = tokio::select! {
                dialled = self.dial() => dialled,
                () = self.stop.seen() => return,
            };
            let failure = match dialled {
                Ok(stream) => {
                    backoff = BACKOFF_MIN;
                    let opened = Instant::now();
                    self.on_open();
                    let end = self.carry(stream).await;
                    self.gate.connected.store(false, Ordering::Release);
                    match end {
                        End::Finished => return,
                        End::Refused => Failure::Refused,
                        End::Lost(why) => {
                            self.tell("connection lost", &why);
                            self.gate.new_era();
                            self.drop_queued();
                            if opened.elapsed() < BACKOFF_MIN {
                                sleep(BACKOFF_MIN).await;
                            }
                            continue;
                        }
                    }
                }
                Err(failure) => failure,
            };
            self.on_failure(&failure);
            tokio::select! {
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = self.gate.dial_now.notified() => {}
                () = self.stop.seen() => return,
            }
        }
    }

    fn on_open(&mut self) {
        self.tell("connected", "");
        self.failing = false;
        self.gate.overflowed.store(false, Ordering::Release);
        self.gate.accepts.store(true, Ordering::Release);
        self.gate.connected.store(true, Ordering::Release);
        if self.lane != Lane::Control {
            let again = std::mem::replace(&mut self.up, true);
            if again && self.control.connected.load(Ordering::Acquire) {
                self.feed.put(Input::PeerUp { peer: self.peer.id });
            }
            return;
        }
        // What the core sends because of this must find the other lanes waiting for it.
        for gate in &self.others {
            gate.accepts.store(true, Ordering::Release);
            gate.dial_now.notify_one();
        }
        if std::mem::replace(&mut self.up, true) {
            self.feed.put(Input::PeerDown { peer: self.peer.id, refused: false });
        }
        self.feed.put(Input::PeerUp { peer: self.peer.id });
    }

    fn on_failure(&mut self, failure: &Failure) {
        self.gate.shut();
        self.drop_queued();
        // A peer that can't be reached here is not reached by the other lanes either; they may not know it yet.
        for gate in &self.others {
            gate.shut();
        }
        let refused = matches!(failure, Failure::Refused);
        if !std::mem::replace(&mut self.failing, true) {
            let why = match failure {
                Failure::Refused => "connection refused",
                Failure::Reset(why) | Failure::Other(why) => why,
            };
            self.tell("cannot connect", why);
        }
        if self.lane == Lane::Control {
            self.up = false;
            self.feed.put(Input::PeerDown { peer: self.peer.id, refused });
        }
    }

    /// The lanes mostly come and go together: the control lane speaks for them.
    fn tell(&self, what: &str, why: &str) {
        let (log, address) = (&self.log, &self.peer.peer);
        match self.lane {
            Lane::Control => info!(log, "{}", what; "address" => address, "why" => why),
            _ => debug!(log, "{}", what; "address" => address, "why" => why),
        }
    }

    /// Gives the memory back; what is of an older era would not be sent anyway.
    fn drop_queued(&mut self) {
        while self.queued.try_recv().is_ok() {}
    }

    async fn dial(&self) -> Result<TcpStream, Failure> {
        for _ in 0..RESETS_MAX {
            match self.dial_once().await {
                Err(Failure::Reset(_)) => sleep(RESET_PAUSE).await,
                other => return other,
            }
        }
        self.dial_once().await
    }

    async fn dial_once(&self) -> Result<TcpStream, Failure> {
        let mut stream = connect(&self.peer.peer).await?;
        let mut out = BytesMut::new();
        frame::encode(&self.me.hello(self.lane), &mut out);
        let answered = timeout(ANSWER_WITHIN, async {
            stream.write_all(&out).await.map_err(from_io)?;
            let mut frames = FrameReader::new(&mut stream);
            match frames.next(HELLO_BYTES_MAX).await {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(Failure::Reset("it closed without an answer".into())),
                Err(frame::FrameError::Io(error)) => Err(from_io(error)),
                Err(error) => Err(Failure::Other(error.to_string())),
            }
        });
        let answer =
            answered.await.map_err(|_| Failure::Other("no answer to our hello".into()))??;
        let other = |why: frame::FrameError| Failure::Other(why.to_string());
        let hello: Hello = frame::decode("hello", answer).map_err(other)?;
        self.me.check_answer(&hello, &self.peer).map_err(Failure::Other)?;
        Ok(stream)
    }

    /// Sends what is queued until the connection or the queue ends.
    async fn carry(&mut self, stream: TcpStream) -> End {
        let stream = Arc::new(stream);
        let gate = self.gate.clone();
        *gate.stream() = Some(stream.clone());
        let end = tokio::select! {
            end = write_queued(&mut self.queued, &gate, &stream) => end,
            why = read_nothing(&stream) => End::Lost(why),
            () = overflow(&gate) => End::Lost("too much waited to be sent".into()),
            () = refused(&gate, &self.peer.peer) => End::Refused,
        };
        *gate.stream() = None;
        end
    }
}

async fn connect(address: &str) -> Result<TcpStream, Failure> {
    let connected = timeout(CONNECT_WITHIN, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| Failure::Other("no answer to the connection".into()))?
        .map_err(from_io)?;
    // A port of the ephemeral range that nobody listens on can be connected to itself.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        return Err(Failure::Refused);
    }
    tune(&stream).map_err(from_io)?;
    Ok(stream)
}

fn from_io(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Failure::Reset(error.to_string())
        }
        _ => Failure::Other(error.to_string()),
    }
}

async fn write_queued(
    queued: &mut UnboundedReceiver<Queued>,
    gate: &Gate,
    stream: &Arc<TcpStream>,
) -> End {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut out = BytesMut::new();
    let mut charges = Vec::new();
    loop {
        if queued.recv_many(&mut batch, BATCH_MAX).await == 0 {
            // Closing is all that is left to do; how it went changes nothing.
            let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
            return End::Finished;
        }
        let mut rest = batch.drain(..).peekable();
        while let Some(next) = rest.next() {
            let is_due = match &next.waits {
                Waits::Rest(begun, _) => begun.as_ptr() == Arc::as_ptr(stream),
                _ => next.era == gate.era.load(Ordering::Acquire),
            };
            if is_due {
                match next.waits {
                    Waits::Message(message) => frame::encode(&*message, &mut out),
                    Waits::Frames(frames) | Waits::Rest(_, frames) => {
                        out.extend_from_slice(&frames)
                    }
                }
                charges.push(next.charge);
            }
            if rest.peek().is_some() && out.len() < WRITE_BYTES {
                continue;
            }
            if let Err(error) = write_all(stream, &out).await {
                return End::Lost(error.to_string());
            }
            charges.clear();
            out.clear();
            if out.capacity() > 4 * WRITE_BYTES {
                out = BytesMut::new();
            }
        }
    }
}

/// The other side says nothing on our connection after its hello; what it does say is the connection's end.
async fn read_nothing(stream: &TcpStream) -> String {
    loop {
        if let Err(error) = stream.readable().await {
            return error.to_string();
        }
        match stream.try_read(&mut [0; 1]) {
            Ok(0) => return "closed by the peer".into(),
            Ok(_) => return "the peer sent something where it has nothing to say".into(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.to_string(),
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn overflow(gate: &Gate) {
    loop {
        gate.overflow.notified().await;
        // A notice can be left over from the connection before.
        if gate.overflowed.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Ends when the peer was to be verified and its port refuses.
async fn refused(gate: &Gate, address: &str) {
    loop {
        gate.verify.notified().await;
        if matches!(connect(address).await, Err(Failure::Refused)) {
            return;
        }
    }
}

fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Live => "live",
        Lane::Bulk => "bulk",
        Lane::Requests => "requests",
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
