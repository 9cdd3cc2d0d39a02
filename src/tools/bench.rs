//! `packmaster bench`: how fast a Durus server is, ours or a stock one.
//!
//! N clients, each on a connection of its own, do one thing as fast as they are answered; what is measured is the time from
//! a request to its whole answer. A few threads drive them all (`drive`). It makes its own objects first, and nothing refers to them: the next
//! pack drops them. Standard output is the result, standard error is talk.

use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

mod client;
mod drive;

use client::{Client, Committed, Socket, record, root};
use drive::{Outcome, Request};

/// Objects stored in one commit while the set is made.
const MAKE_BATCH: usize = 500;
/// Oids in one request, at most.
const OIDS_MAX: usize = 255;
/// Latencies above this are counted as this, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The objects it makes are referred to by nothing: the next pack drops them.
Exit status: 0 done; 1 a client failed, or nobody could be reached; 2 usage.
Example: packmaster bench --workload commit --clients 16 --address 127.0.0.1:2972,127.0.0.1:2973")]
pub struct Args {
    /// Where to connect: HOST:PORT, the path of a Unix socket, or @NAME for an abstract one; the clients take turns among
    /// several
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1:2972")]
    address: Vec<String>,
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Mixed)]
    workload: Workload,
    /// How many clients at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Objects that are made first, and then loaded or stored again
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    objects: u32,
    /// Bytes of text in an object
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=16 << 20))]
    size: u32,
    /// Objects in one bulk load
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    bulk: u32,
    /// Objects in one commit
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    per_commit: u32,
    /// How long to measure, such as 10s
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// What standard output is for
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// One object a request
    Load,
    /// Many objects a request
    Bulk,
    /// Store objects again; every client has its own, so there are no conflicts
    Commit,
    /// Nine loads, then a commit
    Mixed,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Workload::Load => "load",
            Workload::Bulk => "bulk",
            Workload::Commit => "commit",
            Workload::Mixed => "mixed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For scripts
    Json,
}

/// What the clients have done, all of them together in the end.
struct Done {
    latency_us: Histogram<u64>,
    objects: u64,
    bytes: u64,
    conflicts: u64,
}

impl Done {
    fn new() -> Result<Done> {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3)?;
        Ok(Done { latency_us, objects: 0, bytes: 0, conflicts: 0 })
    }

    fn add(&mut self, other: &Done) -> Result<()> {
        self.latency_us.add(&other.latency_us)?;
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.conflicts += other.conflicts;
        Ok(())
    }
}

pub fn run(args: Args) -> ExitCode {
    match bench(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    if args.objects < args.clients {
        bail!("--objects {} is less than --clients {}", args.objects, args.clients);
    }
    let connect = |address: &String| {
        Client::connect(address).with_context(|| format!("connect to {address}"))
    };
    let first = args.address.first().context("no address was given")?;
    // A client of its own: whoever made the objects has them in its cache, and would conflict with all the others.
    let oids = make_objects(args, &mut connect(first)?)?;
    let mut clients = Vec::new();
    for (_, address) in (0..args.clients).zip(args.address.iter().cycle()) {
        let mut client = connect(address)?;
        client.sync()?;
        clients.push(client.into_socket()?);
    }
    let (done, seconds) = measure(args, clients, &oids)?;
    print(args, &done, seconds);
    Ok(())
}

fn make_objects(args: &Args, client: &mut Client) -> Result<Vec<u64>> {
    let bar = ProgressBar::new(u64::from(args.objects)).with_style(
        ProgressStyle::with_template("making objects {bar:40} {pos}/{len}")
            .context("the progress bar's template")?,
    );
    if client.load(0)?.is_none() {
        // A new database: the root comes first, as a stock Connection does it.
        if client.new_oids(1)? != [0] {
            bail!(
                "the database has no root and gives out other oids first; open it with a Durus client once"
            );
        }
        store(client, &[(0, root())])?;
    }
    let mut oids = Vec::with_capacity(args.objects as usize);
    while oids.len() < args.objects as usize {
        let mut batch = Vec::new();
        let wanted = MAKE_BATCH.min(args.objects as usize - oids.len());
        while batch.len() < wanted {
            batch.extend(client.new_oids(OIDS_MAX.min(wanted - batch.len()) as u8)?);
        }
        let size = args.size as usize;
        let records: Vec<_> = batch.iter().map(|oid| (*oid, record(*oid, size, &[]))).collect();
        store(client, &records)?;
        oids.extend(batch);
        bar.set_position(oids.len() as u64);
    }
    bar.finish_and_clear();
    Ok(oids)
}

fn store(client: &mut Client, records: &[(u64, Vec<u8>)]) -> Result<()> {
    match client.commit(records)? {
        Committed::Yes => Ok(()),
        Committed::Conflict => bail!("the objects could not be stored: a conflict"),
    }
}

/// Everybody works until the time is over; also returns how many seconds that were.
fn measure(args: &Args, clients: Vec<Socket>, oids: &[u64]) -> Result<(Done, f64)> {
    let stop = AtomicBool::new(false);
    let requests = AtomicU64::new(0);
    let all = Barrier::new(threads(clients.len()) + 1);
    let bar = ProgressBar::new(args.time.as_millis() as u64).with_style(
        ProgressStyle::with_template("{bar:40} {percent}% {msg}")
            .context("the progress bar's template")?,
    );
    let mut total = Done::new()?;
    let mut seconds = 0.0;
    std::thread::scope(|scope| -> Result<()> {
        let (stop, requests, all) = (&stop, &requests, &all);
        let workers: Vec<_> = share(args, clients, oids)
            .into_iter()
            .map(|(sockets, mut mine)| {
                scope.spawn(move || {
                    all.wait();
                    work(args, sockets, &mut mine, stop, requests)
                })
            })
            .collect();
        all.wait();
        let began = Instant::now();
        while began.elapsed() < args.time && !workers.iter().any(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50).min(args.time));
            bar.set_position(began.elapsed().as_millis() as u64);
            let rate = requests.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
            bar.set_message(format!("{rate:.0} requests/s"));
        }
        stop.store(true, Ordering::Relaxed);
        seconds = began.elapsed().as_secs_f64();
        for worker in workers {
            let done = worker.join().expect("a bug in the bench's own client");
            total.add(&done.context("a client failed")?)?;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok((total, seconds))
}

/// Threads for so many clients: half of the machine is the server's.
fn threads(clients: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    (cores / 2).clamp(1, clients)
}

/// Each thread's clients, and what they know.
fn share<'a>(
    args: &'a Args,
    clients: Vec<Socket>,
    oids: &'a [u64],
) -> Vec<(Vec<Socket>, Vec<Worker<'a>>)> {
    let (count, threads) = (clients.len(), threads(clients.len()));
    let mut shares: Vec<_> = (0..threads).map(|_| (Vec::new(), Vec::new())).collect();
    for (nth, socket) in clients.into_iter().enumerate() {
        // A client's own objects: nobody else stores them.
        let own = oids.iter().copied().skip(nth).step_by(count).collect();
        let (sockets, workers) = &mut shares[nth % threads];
        sockets.push(socket);
        workers.push(Worker { args, oids, own, seed: nth as u64 + 1, nth: 0 });
    }
    shares
}

fn work(
    args: &Args,
    sockets: Vec<Socket>,
    workers: &mut [Worker<'_>],
    stop: &AtomicBool,
    requests: &AtomicU64,
) -> Result<Done> {
    let mut total = Done::new()?;
    let next = |nth: usize| workers[nth].next(args.workload);
    let count = |outcome: Outcome, took: Duration| {
        let us = u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX);
        total.objects += outcome.objects;
        total.bytes += outcome.bytes;
        total.conflicts += u64::from(outcome.conflict);
        let recorded = total.latency_us.record(us.clamp(1, LATENCY_US_MAX));
        recorded.map_err(std::io::Error::other)
    };
    drive::drive(sockets, stop, requests, next, count)?;
    Ok(total)
}

/// What one client asks for.
struct Worker<'a> {
    args: &'a Args,
    oids: &'a [u64],
    own: Vec<u64>,
    seed: u64,
    nth: u64,
}

impl Worker<'_> {
    fn next(&mut self, workload: Workload) -> Request {
        self.nth += 1;
        match workload {
            Workload::Bulk => {
                let from = self.random();
                let around = self.oids.iter().cycle().skip(from).take(self.args.bulk as usize);
                Request::Load(around.copied().collect())
            }
            Workload::Commit => self.commit(),
            Workload::Mixed if self.nth.is_multiple_of(10) => self.commit(),
            Workload::Load | Workload::Mixed => Request::Load(vec![self.oids[self.random()]]),
        }
    }

    fn commit(&self) -> Request {
        let per_commit = self.args.per_commit.min(self.own.len() as u32) as usize;
        let from = self.nth as usize * per_commit;
        let records = (from..from + per_commit)
            .map(|place| self.own[place % self.own.len()])
            .map(|oid| (oid, record(oid, self.args.size as usize, &[])));
        Request::Commit(records.collect())
    }

    /// A place among all objects. (Marsaglia's xorshift: repeatable, and random enough for this.)
    fn random(&mut self) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % self.oids.len() as u64) as usize
    }
}

fn print(args: &Args, done: &Done, seconds: f64) {
    let latency = &done.latency_us;
    let requests = latency.len();
    let at = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1000.0;
    let rate = |count: u64| count as f64 / seconds;
    if args.output == Output::Json {
        let result = json!({
            "version": 1, "workload": args.workload.name(), "clients": args.clients, "address": args.address,
            "size_bytes": args.size, "bulk": args.bulk, "per_commit": args.per_commit, "seconds": seconds,
            "requests": requests, "requests_per_second": rate(requests), "objects_per_second": rate(done.objects),
            "bytes_per_second": rate(done.bytes), "conflicts": done.conflicts,
            "latency_ms": {
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
                "max": latency.max() as f64 / 1000.0, "mean": latency.mean() / 1000.0,
            },
        });
        println!("{result}");
        return;
    }
    println!(
        "{}: {} clients on {}, objects of {} bytes, {seconds:.1} s",
        args.workload.name(),
        args.clients,
        args.address.join(", "),
        args.size
    );
    println!(
        "{:.0} requests/s, {:.0} objects/s, {:.1} MB/s, {} conflicts",
        rate(requests),
        rate(done.objects),
        rate(done.bytes) / 1e6,
        done.conflicts
    );
    println!(
        "latency in ms: median {:.3}, 90 % {:.3}, 99 % {:.3}, 99.9 % {:.3}, most {:.3}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        latency.max() as f64 / 1000.0
    );
}
