//! `packmaster playground`: a whole cluster on one machine, to try things and to test with.
//!
//! The nodes are real: processes of this very program with configuration files, sockets and disks of their own. The
//! playground only starts them, starts them again when they die, and stops them. It holds the writing end of their
//! standard input: when the playground is gone, however that happened, they read its end and stop too.

mod nodes;
mod words;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::model::{Status, Verdict};
use crate::ctl::client::Client;
use nodes::{Node, Plan};

/// Between two looks at the processes.
const TICK: Duration = Duration::from_millis(50);
/// Between two questions for the status.
const LOOK: Duration = Duration::from_millis(200);
/// For one question, all nodes asked one after the other.
const ASK_MAX: Duration = Duration::from_secs(5);
/// A cluster that takes longer to open is told of again and again.
const STILL_WAITING: Duration = Duration::from_secs(5);
/// Nodes that have not stopped by then are killed.
const STOP_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Node i (n1 is 0) has its Durus port at base+i, its peer port at base+1000+i and its pages at base+2000+i.
Ctrl-C stops everything; a second one at once.
Examples: packmaster playground
          packmaster playground --data ./play --import site.durus
          packmaster playground --output json --restart-after never   # for scripts")]
pub struct Args {
    /// How many nodes; 3 survive the loss of one, 5 of two
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Keep the data here, and go on from it next time; without it, a temporary directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Durus port of the first node
    #[arg(long, default_value_t = 2972, value_parser = clap::value_parser!(u16).range(1024..=63500))]
    port_base: u16,
    /// Begin with a copy of this Durus file
    #[arg(long, value_name = "FILE.durus")]
    import: Option<PathBuf>,
    /// Start a node that died again after this time, or never
    #[arg(long, default_value = "5s", value_name = "5s|never", value_parser = restart_after)]
    restart_after: RestartAfter,
    /// json: one line on standard output as soon as the cluster takes commits
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Human,
    Json,
}

/// `None`: never.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RestartAfter(Option<Duration>);

fn restart_after(text: &str) -> Result<RestartAfter, String> {
    if text == "never" {
        return Ok(RestartAfter(None));
    }
    let time = humantime::parse_duration(text);
    time.map(|time| RestartAfter(Some(time))).map_err(|_| "a time such as 5s, or never".to_owned())
}

/// Plays until a signal. Exit status: 0 stopped as asked, 1 it could not start.
pub fn run(args: Args) -> ExitCode {
    match play(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packmaster playground: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let home = Home::of(args.data.as_deref())?;
    let plan = Plan::new(args.nodes, args.port_base, home.path(), args.import.as_deref())?;
    plan.check_ports()?;
    plan.write_configurations()?;
    let mut nodes = Vec::new();
    let result =
        start(&plan, &mut nodes).and_then(|()| Play::new(args, &plan, &stop).run(&mut nodes));
    nodes::stop_all(&mut nodes, STOP_MAX, || stop.count() > 1);
    result
}

/// What was started is in `nodes`, also if a later one could not be.
fn start(plan: &Plan, nodes: &mut Vec<Node>) -> anyhow::Result<()> {
    for node in &plan.nodes {
        nodes.push(Node::start(node)?);
    }
    Ok(())
}

/// How often we were asked to stop.
#[derive(Clone)]
struct Stop(Arc<AtomicU32>);

impl Stop {
    /// Catches SIGINT and SIGTERM from here on. Not SIGHUP: `nohup` must keep its meaning.
    fn on_signals() -> anyhow::Result<Stop> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let stop = Stop(Arc::default());
        let guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        drop(guard);
        let count = stop.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    count.0.fetch_add(1, Ordering::Relaxed);
                }
            })
        })?;
        Ok(stop)
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn asked(&self) -> bool {
        self.count() > 0
    }
}

/// Where the data is; a temporary directory goes away with this.
enum Home {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Home {
    fn of(data: Option<&Path>) -> anyhow::Result<Home> {
        let Some(path) = data else {
            let made = tempfile::Builder::new().prefix("packmaster-playground-").tempdir();
            return Ok(Home::Temporary(made.context("cannot make a temporary directory")?));
        };
        let name = path.display();
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {name}"))?;
        let path = path.canonicalize().with_context(|| format!("cannot open {name}"))?;
        Ok(Home::Kept(path))
    }

    fn path(&self) -> &Path {
        match self {
            Home::Kept(path) => path,
            Home::Temporary(dir) => dir.path(),
        }
    }
}

/// Asks for the status in a thread of its own: a stopped node may make it wait.
fn observe(mut peers: Vec<String>, stop: Stop) -> Receiver<Option<Status>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        while !stop.asked() {
            let asked = Instant::now();
            let status = Client::new(peers.clone(), ASK_MAX).status().ok();
            if asked.elapsed() > LOOK {
                // The first one is slow to answer: begin with another next time.
                peers.rotate_left(1);
            }
            if tell.send(status).is_err() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    });
    told
}

/// Watches over nodes that were started.
struct Play<'a> {
    args: &'a Args,
    plan: &'a Plan,
    stop: &'a Stop,
    screen: Screen,
    opened: bool,
    waiting_since: Instant,
}

impl<'a> Play<'a> {
    fn new(args: &'a Args, plan: &'a Plan, stop: &'a Stop) -> Play<'a> {
        let screen = Screen::new(args.output == Output::Human);
        Play { args, plan, stop, screen, opened: false, waiting_since: Instant::now() }
    }

    /// Until asked to stop. An error if the cluster never opened.
    fn run(&mut self, nodes: &mut [Node]) -> anyhow::Result<()> {
        let peers = self.plan.nodes.iter().map(|node| node.peer.clone()).collect();
        let told = observe(peers, self.stop.clone());
        while !self.stop.asked() {
            for node in nodes.iter_mut() {
                self.look_after(node)?;
            }
            while let Ok(status) = told.try_recv() {
                self.on_status(status, nodes);
            }
            self.still_waiting();
            std::thread::sleep(TICK);
        }
        self.screen.done("stopping ...");
        Ok(())
    }

    /// Starts it again when its time has come; a death before the cluster ever opened ends the playground.
    fn look_after(&mut self, node: &mut Node) -> anyhow::Result<()> {
        if let Some(how) = node.newly_dead()? {
            let name = &node.plan.name;
            if !self.opened {
                let (log, last) = (node.plan.log.display(), node.last_words());
                anyhow::bail!("{name} died at once ({how}). Its log {log} ends in:\n{last}");
            }
            let then = match self.args.restart_after.0 {
                Some(time) => format!("started again in {}", humantime::format_duration(time)),
                None => "not started again".to_owned(),
            };
            self.screen.event(&format!("{name} died ({how}); {then}"));
        }
        let due = self.args.restart_after.0.is_some_and(|after| node.dead_for() >= Some(after));
        if due {
            node.start_again()?;
            self.screen.event(&format!("{} started again, pid {}", node.plan.name, node.pid()));
        }
        Ok(())
    }

    fn on_status(&mut self, status: Option<Status>, nodes: &[Node]) {
        let Some(status) = status else {
            return self.screen.live("nobody answers", "nobody answers");
        };
        if !self.opened && status.verdict != Verdict::Unavailable {
            self.opened = true;
            let text = match self.args.output {
                Output::Json => words::json(nodes),
                Output::Human => words::welcome(nodes, &status, self.args.data.is_some()),
            };
            print(&text);
        }
        if self.opened {
            self.screen.status(&status);
        }
    }

    fn still_waiting(&mut self) {
        if !self.opened && self.waiting_since.elapsed() > STILL_WAITING {
            self.waiting_since = Instant::now();
            let home = self.plan.nodes[0].log.display();
            self.screen.event(&format!("still waiting for the cluster to open; see {home}"));
        }
    }
}

/// Standard output is data; whoever reads it may have gone.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Standard error: a line that is refreshed in place on a terminal, a line for each change elsewhere.
struct Screen {
    bar: ProgressBar,
    /// Of the last plain line: what of it is worth another.
    shown: String,
}

impl Screen {
    fn new(human: bool) -> Screen {
        static STYLE: OnceLock<ProgressStyle> = OnceLock::new();
        let style = STYLE.get_or_init(|| {
            ProgressStyle::with_template("{wide_msg}").expect("the template is right")
        });
        let target = match human && std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target).with_style(style.clone());
        Screen { bar, shown: String::new() }
    }

    fn status(&mut self, status: &Status) {
        self.live(&crate::admin::render::line(status), &words::gist(status));
    }

    /// `gist` is what must change for another plain line.
    fn live(&mut self, line: &str, gist: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(line.to_owned());
            self.bar.tick();
        } else if self.shown != gist {
            self.shown = gist.to_owned();
            eprintln!("{line}");
        }
    }

    fn event(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn done(&self, text: &str) {
        self.bar.finish_and_clear();
        eprintln!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        playground: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("playground").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.playground)
    }

    #[test]
    fn the_defaults_are_those_of_the_interface() {
        let args = parse("").unwrap();
        assert_eq!((args.nodes, args.port_base, args.output), (3, 2972, Output::Human));
        assert_eq!(args.restart_after, RestartAfter(Some(Duration::from_secs(5))));
        assert!(args.data.is_none() && args.import.is_none());
        let args = parse("--restart-after never --output json --nodes 5").unwrap();
        assert_eq!((args.nodes, args.restart_after), (5, RestartAfter(None)));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in ["--nodes 0", "--nodes 8", "--restart-after soon", "--port-base 80", "--fast"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_temporary_home_goes_away_and_a_given_one_stays() {
        let kept = tempfile::tempdir().unwrap();
        let wanted = kept.path().join("a/b");
        assert!(Home::of(Some(&wanted)).unwrap().path().is_dir());
        assert!(wanted.is_dir());
        let home = Home::of(None).unwrap();
        let path = home.path().to_owned();
        assert!(path.is_dir());
        drop(home);
        assert!(!path.exists());
    }
}
