//! One node put together: sockets on one side, disks on the other, the machine between them.
//!
//! The machine runs on the thread that calls `serve`. Everything it wants done goes to a queue that never makes it
//! wait: a socket's task, or a thread of `threads`. At the end the order is: no more machine, no new connections, what
//! was said is sent, what was written is finished, all within a bounded time.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::activation::Passed;
use super::bind::{self, BindError, Bound};
use super::clients::{self, Clients, Closing, DurusPort, Replies};
use super::core::io::{Action, Input};
use super::desk::Desk;
use super::ears::{Ears, Feed};
use super::hello::Me;
use super::limits::Limits;
use super::links::Links;
use super::listener::{self, Current, PeerPort};
use super::run_loop::{self, Clock, Machine, Outlet};
use super::sockets::{Stop, StopSeen};
use super::threads::{self, Jobs, Worker};
use crate::config::Config;
use crate::proto::control::RaftRecord;
use crate::storage::task::DiskTask;
use crate::storage::{Disk, DiskError};

/// Sockets are quick; what takes long has its own thread.
const SOCKET_THREADS: usize = 2;
/// For sending what was said, and again for finishing what was written. A disk that hangs does not keep the process.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// As long as two sleeping threads take to wake each other on a small machine; `timing.busy_poll_us` says otherwise.
pub(super) const BUSY_POLL_US: u64 = 100;

/// A node whose starter is gone has this long to hand over.
const ORPHAN_STOPS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: io::Error },
}

/// Why the machine ended.
#[derive(Debug, PartialEq)]
pub struct Exit {
    pub reason: String,
    pub failed: bool,
}

/// Makes a record of the Raft log durable.
pub type RaftAppend = Box<dyn FnMut(&RaftRecord) -> Result<(), DiskError> + Send>;
/// The pages of the HTTP port.
pub type Pages = Box<dyn FnOnce(Desk) -> axum::Router + Send>;

/// What a node is made of.
pub struct Parts {
    pub config: Arc<Config>,
    pub limits: Arc<Limits>,
    /// Sockets for Durus clients, in place of those of the configuration.
    pub passed: Vec<Passed>,
    pub me: Me,
    pub disk: Arc<dyn Disk>,
    pub raft_append: RaftAppend,
    pub pages: Pages,
    pub clock: Clock,
    pub log: Logger,
}

/// The way into a running node, for signals and tests.
pub struct Inlet {
    pub feed: Feed,
    ears: Ears,
}

impl Inlet {
    pub fn new() -> Result<Inlet, ServeError> {
        let what = "to wait for sockets (epoll)";
        let (feed, ears) = Feed::channel().map_err(|source| ServeError::Start { what, source })?;
        Ok(Inlet { feed, ears })
    }
}

/// Runs the node until the machine says `Exit`.
pub fn serve<M: Machine>(
    parts: Parts,
    machine: &mut M,
    inlet: Inlet,
    runtime: &Runtime,
) -> Result<Exit, ServeError> {
    let Inlet { feed, mut ears } = inlet;
    let (clock, log) = (parts.clock, parts.log.clone());
    let busy_poll_us = parts.config.timing.busy_poll_us.unwrap_or(BUSY_POLL_US);
    ears.set_busy_poll(Duration::from_micros(busy_poll_us));
    let (stop, seen) = Stop::pair();
    let mut tasks = JoinSet::new();
    let mut outlets = {
        let _inside = runtime.enter();
        Outlets::open(parts, feed, runtime, &seen, &mut tasks)?
    };
    info!(log, "node is up");
    let exit = run_loop::run(machine, clock, &mut ears, &log, &mut outlets);
    let exit = exit.expect("the outlets hold a feed, so the loop ends only by an exit");
    info!(log, "node stops"; "why" => &exit.reason);
    stop.give();
    outlets.close(!exit.failed);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if runtime.block_on(async { timeout(STOP_WITHIN, ended).await }).is_err() {
        warn!(log, "connections that could not be closed in time are dropped");
    }
    Ok(exit)
}

/// Two threads for the sockets.
pub fn runtime() -> Result<Runtime, ServeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .thread_name("sockets")
        .enable_all()
        .build()
        .map_err(|source| ServeError::Start { what: "the sockets' threads", source })
}

/// SIGTERM and SIGINT ask the machine to stop; the second one ends the process at once.
pub fn stop_on_signals(runtime: &Runtime, feed: Feed, log: Logger) -> Result<(), ServeError> {
    let failed = |source| ServeError::Start { what: "to listen for signals", source };
    let _inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    runtime.spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                info!(log, "asked to stop: handing over; the same again ends this node at once");
                feed.put(Input::Stop);
            }
        }
        std::process::exit(1);
    });
    Ok(())
}

/// The end of standard input asks the machine to stop, and ends the process if it does not: whoever started this node
/// is gone and can't see to it any more.
pub fn stop_with_stdin(feed: Feed, log: Logger) -> Result<(), ServeError> {
    let wait = move || {
        // An error is an end too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        info!(log, "standard input has ended: stopping with whoever started this node");
        feed.put(Input::Stop);
        std::thread::sleep(ORPHAN_STOPS_WITHIN);
        std::process::exit(1);
    };
    let spawned = std::thread::Builder::new().name("stdin".into()).spawn(wait);
    spawned
        .map(|_| ())
        .map_err(|source| ServeError::Start { what: "to watch standard input", source })
}

/// Where actions go.
struct Outlets {
    links: Links,
    clients: Replies,
    desk: Desk,
    disk: Worker<(u64, DiskTask)>,
    raft: Worker<(u64, RaftRecord)>,
    jobs: Jobs,
    log: Logger,
}

impl Outlets {
    fn open(
        parts: Parts,
        feed: Feed,
        runtime: &Runtime,
        stop: &StopSeen,
        tasks: &mut JoinSet<()>,
    ) -> Result<Outlets, ServeError> {
        let Parts { config, limits, passed, me, disk, raft_append, pages, log, .. } = parts;
        let Bindings { durus, peer, http } = runtime.block_on(bind_all(&config, passed, &log))?;
        let threads = |source| ServeError::Start { what: "a thread", source };
        let disk_worker = threads::disk(disk.clone(), feed.clone()).map_err(threads)?;
        let raft = threads::raft(raft_append, feed.clone()).map_err(threads)?;
        let desk = Desk::new(feed.clone());
        let clients = Clients::default();
        let (links, bells) = Links::start(&config, &me, &feed, &limits, stop, &log, tasks);

        let taken = &config.limits.clients;
        let durus_port = Arc::new(DurusPort {
            clients: clients.clone(),
            clients_max: taken.clients_max,
            session_bytes_max: usize::try_from(taken.session_bytes_max).unwrap_or(usize::MAX),
            stalled: Duration::from_millis(taken.command_max_ms),
            limits,
            feed: feed.clone(),
            log: log.clone(),
            stop: stop.clone(),
            connected: Default::default(),
            accepted: Default::default(),
        });
        for bound in durus {
            tasks.spawn(clients::accept(durus_port.clone(), bound));
        }
        let peer_port = PeerPort {
            config,
            me,
            feed: feed.clone(),
            desk: desk.clone(),
            bells,
            log: log.clone(),
            stop: stop.clone(),
            current: Current::default(),
        };
        tasks.spawn(listener::accept(Arc::new(peer_port), peer));
        tasks.spawn(serve_pages(pages(desk.clone()), http, stop.clone(), log.clone()));
        let clients = Replies::new(clients, feed.clone());
        let jobs = Jobs::new(disk, feed, log.clone());
        Ok(Outlets { links, clients, desk, disk: disk_worker, raft, jobs, log })
    }

    /// `finish`: waits for the disks. After a failure there is nothing to wait for.
    fn close(mut self, finish: bool) {
        self.jobs.cancel_all();
        self.clients.close_all();
        self.desk.close();
        drop(self.links);
        if finish && !(self.disk.finish(STOP_WITHIN) && self.raft.finish(STOP_WITHIN)) {
            warn!(self.log, "the disk did not finish in time");
        }
    }
}

impl Outlet<Exit> for Outlets {
    fn dispatch(&mut self, action: Action) -> ControlFlow<Exit> {
        match action {
            Action::Send { to, message } => self.links.send(to, message, &self.log),
            Action::ClientSend { conn, bytes } => self.clients.send(conn, bytes),
            Action::ClientRead { conn, on } => self.clients.read(conn, on),
            Action::ClientDrain { conn } => self.clients.drain(conn),
            Action::ClientClose { conn, reason, limit } => {
                self.clients.close(conn, Closing { reason, limit });
            }
            Action::AdminReply { request, reply } => self.desk.answer(request, reply),
            Action::Disk { task, work } => self.disk.give((task, work)),
            Action::RaftPersist { number, record } => self.raft.give((number, record)),
            Action::Job { job, work } => {
                if let Err(error) = self.jobs.start(job, work) {
                    let reason = format!("cannot start a thread for a job: {error}");
                    return ControlFlow::Break(Exit { reason, failed: true });
                }
            }
            Action::CancelJob { job } => self.jobs.cancel(job),
            Action::JobRate { bytes_per_s } => self.jobs.set_rate(bytes_per_s),
            Action::Exit { reason, failed } => return ControlFlow::Break(Exit { reason, failed }),
        }
        ControlFlow::Continue(())
    }

    fn flush(&mut self) {
        self.links.flush();
        self.clients.flush();
    }
}

/// Everything this node listens on.
struct Bindings {
    durus: Vec<Bound>,
    peer: TcpListener,
    http: TcpListener,
}

async fn bind_all(
    config: &Config,
    passed: Vec<Passed>,
    log: &Logger,
) -> Result<Bindings, BindError> {
    let listen = &config.listen;
    let peer = bind::tcp("listen.peer", &listen.peer).await?;
    let http = bind::tcp("listen.http", &listen.http).await?;
    let mut durus = Vec::new();
    if !passed.is_empty() {
        info!(log, "systemd has opened the sockets for Durus clients: listen.durus is not used");
    }
    for (number, one) in (1..).zip(passed) {
        durus.push(bind::passed(number, one)?);
    }
    if durus.is_empty() {
        for address in &listen.durus {
            durus.push(bind::durus(address, &listen.unix).await?);
        }
    }
    for bound in &durus {
        info!(log, "listening for Durus clients"; "listener" => &bound.name);
    }
    info!(log, "listening for nodes and ctl"; "listener" => &listen.peer);
    info!(log, "listening for page readers"; "listener" => &listen.http);
    Ok(Bindings { durus, peer, http })
}

async fn serve_pages(pages: axum::Router, listener: TcpListener, stop: StopSeen, log: Logger) {
    let stopped = stop.clone();
    let serving = axum::serve(listener, pages)
        .with_graceful_shutdown(async move { stopped.seen().await })
        .into_future();
    // A page that is never read must not keep the node: the word to stop ends the serving itself, a moment later.
    let result = tokio::select! {
        result = serving => result,
        () = async { stop.seen().await; tokio::time::sleep(STOP_WITHIN / 4).await } => Ok(()),
    };
    if let Err(error) = result {
        warn!(log, "the HTTP port does not serve any more"; "why" => %error);
    }
}
