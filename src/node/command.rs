//! `packmaster node`: one node in the foreground.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, crit, error, info};

use super::activation::{self, ActivationError, Passed};
use super::core::{Core, FETCH_BYTES_MAX, FOLLOW_BYTES, Setup, StartError, start};
use super::hello::Me;
use super::identity::{IdentityError, Known, mark_born, new_boot};
use super::limits::{self, Limits};
use super::prepare::{PrepareError, prepare};
use super::run_loop::{Clock, Machine};
use super::server::{
    Exit, Inlet, Parts, RaftAppend, ServeError, runtime, serve, stop_on_signals, stop_with_stdin,
};
use crate::config::{Config, ConfigError, Member, RawTiming};
use crate::failover::controller::Timing;
use crate::node::core::io::{Action, Input, SMALL_COMMIT_BYTES_MAX};
use crate::proto::control;
use crate::raft::{RaftLog, RaftLogError};
use crate::replication::transfer::Pacing;
use crate::storage::DiskError;
use crate::telemetry::{self, TelemetryError};
use crate::types::{BootId, Now};

/// Records of a commit that is sent again whole; a longer one is asked for by its id first, on the lane it was sent on.
const SENT_AGAIN_BYTES_MAX: u64 = SMALL_COMMIT_BYTES_MAX;
/// How long a panic's line has to reach the log.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Exit status: 0 stopped as asked; 1 could not start, or failed, with the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: packmaster node --config /etc/packmaster.toml --set node=n2\n\n\
    SIGTERM and SIGINT hand over mastership, then stop; the same again stops at once.")]
pub struct Args {
    /// The configuration file; `packmaster config example` prints one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Stop when standard input ends: for programs that start nodes and must not leave any behind
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Activation(#[from] ActivationError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

pub fn run(args: Args) -> ExitCode {
    let begun = Config::load(&args.config, &args.overrides)
        .map_err(NodeError::from)
        .and_then(|config| Ok((activation::passed()?, telemetry::start(&config.log)?, config)));
    let (passed, logging, config) = match begun {
        Ok(all) => all,
        Err(error) => {
            eprintln!("packmaster: {error}");
            return ExitCode::FAILURE;
        }
    };
    let log = logging.log.clone();
    end_on_panic(log.clone());
    // The logging is dropped last: dropping it writes out what is queued.
    match run_node(config, passed, args.exit_with_stdin, &log) {
        Ok(exit) if !exit.failed => ExitCode::SUCCESS,
        Ok(exit) => {
            error!(log, "this node has failed"; "why" => exit.reason);
            ExitCode::FAILURE
        }
        Err(error) => {
            error!(log, "cannot start"; "why" => %error);
            ExitCode::FAILURE
        }
    }
}

fn run_node(
    mut config: Config,
    passed: Vec<Passed>,
    exit_with_stdin: bool,
    log: &Logger,
) -> Result<Exit, NodeError> {
    let version = env!("CARGO_PKG_VERSION");
    let name = config.me().name.clone();
    info!(log, "packmaster"; "version" => version, "node" => name, "cluster" => &config.cluster);
    config.limits.clients.clients_max =
        limits::provide_files(config.limits.clients.clients_max, log);
    let limits = Limits::new(&config.limits, log.clone());
    let prepared = prepare(&config, log)?;
    let boot = new_boot()?;
    let setup = setup(&config, &prepared.disk, prepared.known, boot, log);
    let clock = Clock::start();
    let (mut core, raft_log) = start(setup, clock.now())?;
    mark_born(&*prepared.disk, &config.cluster, config.node, prepared.known)?;

    let me = Me {
        cluster: config.cluster.clone(),
        node: config.node,
        boot,
        disk_uuid: prepared.known.disk_uuid,
    };
    let parts = Parts {
        config: Arc::new(config),
        limits: limits.clone(),
        passed,
        me,
        disk: prepared.disk.clone(),
        raft_append: raft_append(raft_log),
        pages: Box::new(|desk| {
            let ask = move |request| {
                let desk = desk.clone();
                async move { desk.ask(request).await }
            };
            telemetry::http::router(ask, move || telemetry::limits_text(&limits.told()))
        }),
        clock,
        log: log.clone(),
    };
    let runtime = runtime()?;
    let inlet = Inlet::new()?;
    stop_on_signals(&runtime, inlet.feed.clone(), log.clone())?;
    if exit_with_stdin {
        stop_with_stdin(inlet.feed.clone(), log.clone())?;
    }
    let exit = serve(parts, &mut core, inlet, &runtime)?;
    // A task that hangs must not keep the process.
    runtime.shutdown_background();
    Ok(exit)
}

fn setup(
    config: &Config,
    disk: &Arc<crate::storage::posix::PosixDisk>,
    known: Known,
    boot: BootId,
    log: &Logger,
) -> Setup {
    let member = |member: &Member| control::Member {
        id: member.id.0,
        name: member.name.clone(),
        // Each node says its own when it is up.
        disk_uuid: Default::default(),
        durus: member.durus.clone(),
        peer: member.peer.clone(),
        http: member.http.clone(),
        role: "voter".into(),
        priority: member.priority,
        may_be_master: member.may_be_master,
    };
    Setup {
        id: config.node,
        boot,
        disk_uuid: known.disk_uuid,
        born: known.born,
        cluster: config.cluster.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        members: config.members.iter().map(member).collect(),
        timing: timing(&config.timing),
        limits: config.limits.clients.clone(),
        keep_generations: config.keep_generations,
        block_bytes: crate::pack::BLOCK_BYTES,
        fetch_bytes: FETCH_BYTES_MAX,
        sent_again_bytes_max: SENT_AGAIN_BYTES_MAX,
        follow_bytes: FOLLOW_BYTES,
        fetch_bytes_per_s_max: Some(config.limits.fetch_bytes_per_s_max).filter(|max| *max > 0),
        pacing: Pacing::default(),
        disk: disk.clone(),
        log: log.clone(),
    }
}

fn timing(raw: &RawTiming) -> Timing {
    let default = Timing::default();
    Timing {
        beat_ms: raw.beat_ms.unwrap_or(default.beat_ms),
        silence_ms: raw.silence_ms.unwrap_or(default.silence_ms),
        raft_tick_ms: raw.raft_tick_ms.unwrap_or(default.raft_tick_ms),
        raft_election_ticks: raw.raft_election_ticks.unwrap_or(default.raft_election_ticks),
        open_timeout_ms: raw.open_timeout_ms.unwrap_or(default.open_timeout_ms),
        ..default
    }
}

fn raft_append(mut log: RaftLog) -> RaftAppend {
    Box::new(move |record| {
        log.append(record).map_err(|error| match error {
            RaftLogError::Disk(error) => error,
            other => DiskError::Io {
                verb: "append to",
                name: "the Raft log".into(),
                source: io::Error::other(other),
            },
        })
    })
}

/// A panic is a bug of ours, on whatever thread: the process ends at once, which the other nodes notice at once,
/// rather than going on without that thread.
fn end_on_panic(log: Logger) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        crit!(log, "panic: this node ends; please report this"; "what" => %panic);
        std::thread::sleep(LAST_WORDS);
        std::process::abort();
    }));
}

impl Machine for Core {
    fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        Core::step(self, now, input, out);
    }

    fn deadline(&self) -> u64 {
        Core::deadline(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EXAMPLE;

    #[test]
    fn the_example_shows_the_core_s_own_timing() {
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| format!("{}\n", shown_default(line).unwrap_or(line)))
            .collect();
        let config = Config::parse(&uncommented, "example", &[]).unwrap();
        assert!(config.timing.beat_ms.is_some());
        assert_eq!(config.timing.busy_poll_us, Some(super::super::server::BUSY_POLL_US));
        assert_eq!(format!("{:?}", timing(&config.timing)), format!("{:?}", Timing::default()));
    }

    fn shown_default(line: &str) -> Option<&str> {
        let keys = [
            "beat_ms",
            "silence_ms",
            "raft_tick_ms",
            "raft_election_ticks",
            "open_timeout_ms",
            "busy_poll_us",
        ];
        let shown = line.strip_prefix("# ")?;
        keys.iter().any(|key| shown.starts_with(&format!("{key} = "))).then_some(shown)
    }
}
