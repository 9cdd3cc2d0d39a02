//! The limits of `[limits]`: each closes who passes it, with one line in the log that names it, and is counted in
//! /metrics; nobody else notices. And what a node holds within them: thousands of idle clients.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use cluster_tests::client::{Client, Committed, Loaded, commit_data, record};
use cluster_tests::cluster::{Builder, Cluster};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SOON: Duration = Duration::from_secs(5);

fn metric(cluster: &Cluster, name: &str, limit: &str) -> f64 {
    metric_of(cluster, 0, name, limit)
}

fn metric_of(cluster: &Cluster, node: usize, name: &str, limit: &str) -> f64 {
    let mut page = TcpStream::connect(cluster.nodes[node].http).expect("the pages");
    page.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("ask");
    let mut answer = String::new();
    page.read_to_string(&mut answer).expect("an answer");
    let wanted = format!("{name}{{limit=\"{limit}\"}} ");
    let line = answer.lines().find_map(|line| line.strip_prefix(wanted.as_str()));
    line.unwrap_or_else(|| panic!("no {wanted}in {answer}")).parse().expect("a number")
}

/// The one line about this limit has all that helps, and one hit was counted.
fn is_said_and_counted(cluster: &Cluster, limit: &str, from: &str) {
    cluster.wait_for(limit, 5, |cluster| {
        let log = cluster.nodes[0].log_text();
        let line = log.lines().find(|line| line.contains(&format!("limit: limits.{limit},")))?;
        assert!(
            line.contains("WARN") && line.contains(from) && line.contains(" at 127.0.0.1:"),
            "{line}"
        );
        (metric(cluster, "packmaster_limit_hits_total", limit) == 1.0).then_some(())
    });
}

fn connect(to: SocketAddr) -> Client {
    Client::connect(to).expect("connect")
}

/// Stores the root and objects 1 to `last` with so many bytes each.
fn fill(client: &mut Client, last: u64, bytes: usize) {
    let oids = client.new_oids(last as u8 + 1).expect("new oids");
    let records: Vec<_> =
        oids.iter().map(|oid| (*oid, record(*oid, &vec![b'x'; bytes], &[]))).collect();
    assert_eq!(client.commit(&records).expect("the first commit"), Committed::Yes);
}

#[test]
fn each_closes_who_passes_it_and_is_counted_and_said() {
    let settings = [
        "clients_max=4",
        "transaction_bytes_max=\"64 KiB\"",
        "record_bytes_max=\"32 KiB\"",
        "objects_per_transaction_max=20",
        "bulk_oids_max=50",
        "session_bytes_max=\"256 KiB\"",
        "input_buffered_bytes_max=\"16 KiB\"",
        "commits_waiting_bytes_max=\"64 KiB\"",
        "unused_oids_max=255",
        "command_max=\"1s\"",
    ];
    let mut builder = Builder::default().nodes(1);
    for setting in settings {
        builder = builder.set(&format!("limits.{setting}"));
    }
    let cluster = builder.start();
    let to = cluster.nodes[0].durus;
    let mut bystander = connect(to);
    fill(&mut bystander, 9, 6000);
    let bulk = |count: u32, oid: u64| {
        let oids = (0..count).flat_map(|_| oid.to_be_bytes());
        [&b"B"[..], &count.to_be_bytes()].concat().into_iter().chain(oids).collect::<Vec<u8>>()
    };
    let commit = |records: &[(u64, Vec<u8>)]| [b"C", &commit_data(records)[..]].concat();
    // It looks for 70,000 objects that are not there, wide apart: the list of them is long. Then for one that is.
    let wide = |nth: u64| (0..50).flat_map(move |n| ((50 * nth + n + 1) << 32).to_be_bytes());
    let wide = |nth| [b"B\0\0\0\x32".to_vec(), wide(nth).collect()].concat();
    let much_read = (0..1400).flat_map(wide).chain(*b"L\0\0\0\0\0\0\0\x01").collect();
    let many: Vec<_> = (0..21).map(|oid| (oid, record(oid, b"x", &[]))).collect();
    let offences = [
        ("transaction_bytes_max", [&b"C"[..], &100_000_u32.to_be_bytes()].concat()),
        ("record_bytes_max", commit(&[(1, record(1, &[0; 40_000], &[]))])),
        ("objects_per_transaction_max", commit(&many)),
        ("bulk_oids_max", bulk(51, 1)),
        ("session_bytes_max", much_read),
        ("unused_oids_max", b"M\xffM\xff".to_vec()),
        ("command_max", b"L\0\0".to_vec()),
    ];
    for (limit, bytes) in &offences {
        let mut offender = connect(to);
        let from = offender.address().to_string();
        offender.send(bytes).expect("send");
        assert!(offender.is_closed_within(SOON), "{limit}: it is there still");
        is_said_and_counted(&cluster, limit, &from);
        assert!(matches!(bystander.load(1).expect("load"), Loaded::Record(_)), "{limit}");
    }
    assert_eq!(metric(&cluster, "packmaster_limit", "command_max"), 1.0);
    assert_eq!(metric(&cluster, "packmaster_limit", "session_bytes_max"), 262_144.0);
    // One more client than there may be, again and again: each is counted, and a line is written now and then.
    let _held: Vec<Client> = (0..3).map(|_| connect(to)).collect();
    for _ in 0..40 {
        let mut refused = Client::connect_silent(to).expect("connect");
        assert!(refused.is_closed_within(SOON), "a fifth client is let in");
    }
    assert_eq!(metric(&cluster, "packmaster_limit_hits_total", "clients_max"), 40.0);
    let log = cluster.nodes[0].log_text();
    let lines = log.lines().filter(|line| line.contains("limits.clients_max,")).count();
    assert!((1..10).contains(&lines), "{lines} lines about 40 refused clients");
    bystander.sync().expect("it goes on");
    cluster.finish();
}

/// While the disk takes its time, commits wait, and what their clients send after them.
#[test]
fn what_waits_for_the_disk_is_bounded() {
    const SLOW_MS: u64 = 3000;
    let cluster = Builder::default()
        .nodes(1)
        .slow_disks()
        .set("limits.transaction_bytes_max=\"64 KiB\"")
        .set("limits.record_bytes_max=\"64 KiB\"")
        .set("limits.commits_waiting_bytes_max=\"64 KiB\"")
        .set("limits.input_buffered_bytes_max=\"16 KiB\"")
        .start();
    let to = cluster.nodes[0].durus;
    let mut bystander = connect(to);
    fill(&mut bystander, 3, 10);
    // A commit of 40 KiB, of which two are more than may wait.
    let begin = |oid: u64| {
        let mut client = connect(to);
        client.send(b"C").expect("send");
        assert_eq!(client.receive::<4>().expect("the answer to C"), [0; 4]);
        let from = client.address().to_string();
        (client, from, commit_data(&[(oid, record(oid, &[b'x'; 40_000], &[]))]))
    };
    let (mut waits, _, data) = begin(1);
    let (mut second, second_from, second_data) = begin(2);
    let (mut ahead, ahead_from, _) = begin(3);
    cluster.nodes[0].slow_disk().set_ms(SLOW_MS);
    waits.send(&data).expect("send");
    std::thread::sleep(Duration::from_millis(100));
    second.send(&second_data).expect("send");
    assert!(second.is_closed_within(SOON), "80 KiB of commits wait");
    is_said_and_counted(&cluster, "commits_waiting_bytes_max", &second_from);
    // A small commit fits; what its client says next waits with it.
    ahead.send(&commit_data(&[(3, record(3, b"small", &[]))])).expect("send");
    std::thread::sleep(Duration::from_millis(100));
    ahead.send(&vec![b'S'; 17 << 10]).expect("send");
    assert!(ahead.is_closed_within(SOON), "17 KiB were sent ahead");
    is_said_and_counted(&cluster, "input_buffered_bytes_max", &ahead_from);
    cluster.nodes[0].slow_disk().set_ms(0);
    // The first was within every limit.
    assert_eq!(waits.receive::<1>().expect("the answer to the commit"), *b"O");
    assert!(matches!(bystander.load(2).expect("load"), Loaded::Record(_)));
    cluster.finish();
}

/// However much a client asks for: what it has not taken is little, and a quick one gets all of it.
#[test]
fn who_asks_for_more_than_a_session_may_hold_is_answered_as_it_reads() {
    const OBJECT: usize = 1 << 20;
    const MANY: usize = 100;
    let cluster = Builder::default()
        .nodes(1)
        .set("limits.session_bytes_max=\"24 MiB\"")
        .set("limits.transaction_bytes_max=\"16 MiB\"")
        .set("limits.record_bytes_max=\"16 MiB\"")
        .set("limits.command_max=\"2s\"")
        .start();
    let to = cluster.nodes[0].durus;
    let mut bystander = connect(to);
    fill(&mut bystander, 3, OBJECT);
    let mut quick = connect(to);
    assert!(matches!(quick.load(1).expect("load"), Loaded::Record(_)));
    let before = resident_bytes(&cluster);
    let held = |cluster: &Cluster| resident_bytes(cluster).saturating_sub(before);
    // One that takes nothing at all: 100 GB, if it were answered.
    let mut stalled = connect(to);
    assert!(matches!(stalled.load(1).expect("load"), Loaded::Record(_)));
    let load = [b"L", &1_u64.to_be_bytes()[..]].concat();
    stalled.send(&load.repeat(100_000)).expect("send");
    // One that takes its time.
    let mut slow = connect(to);
    let bulk = [&b"B"[..], &(MANY as u32).to_be_bytes(), &1_u64.to_be_bytes().repeat(MANY)];
    slow.send(&bulk.concat()).expect("send");
    let mut most = 0;
    let mut left = MANY * (5 + record(1, &[b'x'; OBJECT], &[]).len());
    while left >= 1 << 16 {
        slow.receive::<{ 1 << 16 }>().expect("more of the answer");
        left -= 1 << 16;
        std::thread::sleep(Duration::from_millis(2));
        if left % (16 << 16) < 1 << 16 {
            most = most.max(held(&cluster));
        }
    }
    for _ in 0..left {
        slow.receive::<1>().expect("the end of the answer");
    }
    assert!(matches!(slow.load(2).expect("load"), Loaded::Record(_)));
    println!("{} MiB more were held", most >> 20);
    assert!(most < 32 << 20, "{} MiB more are held", most >> 20);
    // And one that takes it at once.
    assert_eq!(quick.load_all(&[1; MANY]).expect("load").len(), MANY);
    cluster.wait_for("who takes nothing to be closed", 15, |cluster| {
        (metric(cluster, "packmaster_limit_hits_total", "command_max") == 1.0).then_some(())
    });
    assert_eq!(metric(&cluster, "packmaster_limit_hits_total", "session_bytes_max"), 0.0);
    assert!(matches!(bystander.load(2).expect("load"), Loaded::Record(_)));
    cluster.finish();
}

/// `P` is answered at once, and so a client can send it again and again.
#[test]
fn a_client_that_asks_for_packs_without_end_begins_a_few() {
    const ASKED: usize = 128 << 10;
    // The log has the commands that come to nothing.
    let cluster = Builder::default().set("log.level=\"debug\"").start();
    let to = cluster.nodes[cluster.master()].durus;
    let mut bystander = connect(to);
    fill(&mut bystander, 0, 10);
    let mut asks = connect(to);
    asks.send(&vec![b'P'; ASKED]).expect("send");
    let since = Instant::now();
    // The root: a pack drops what nothing refers to.
    assert!(matches!(bystander.load(0).expect("load"), Loaded::Record(_)));
    let records = [(0, record(0, b"y", &[]))];
    assert_eq!(bystander.commit(&records).expect("commit"), Committed::Yes);
    println!("a load and a commit beside {ASKED} P took {:?}", since.elapsed());
    let answers = asks.receive::<ASKED>().expect("the answers");
    assert!(answers.iter().all(|answer| *answer == b'O'));
    cluster.wait_for("the packs to end", 30, |cluster| {
        let status = cluster.try_status().ok()?;
        (status.is_level() && status.pack.is_none()).then_some(())
    });
    let history = cluster.ctl(&["history"]).json();
    let decisions = history["decisions"].as_array().expect("decisions");
    let packs = decisions.iter().filter(|told| told["what"] == "pack start").count();
    assert!((1..=5).contains(&packs), "{packs} packs");
    for node in &cluster.nodes {
        let refused = node.log_text().matches("command refused").count();
        assert!(refused < 20, "{refused} commands came to nothing");
    }
    bystander.sync().expect("it goes on");
    cluster.finish();
}

/// Two of three nodes are gone: a commit can neither be acknowledged nor refused.
#[test]
fn without_a_majority_a_client_waits_so_long_and_is_closed() {
    let mut cluster = Builder::default().set("limits.wait_max=\"2s\"").start();
    let last = cluster.master();
    let mut idle = connect(cluster.nodes[last].durus);
    let mut client = connect(cluster.nodes[last].durus);
    fill(&mut client, 3, 10);
    cluster.wait_level();
    for i in (0..3).filter(|&i| i != last) {
        cluster.kill(i);
    }
    client.send(b"C").expect("send");
    let since = Instant::now();
    client.send(&commit_data(&[(1, record(1, b"y", &[]))])).expect("send");
    assert!(client.is_closed_within(Duration::from_secs(10)));
    assert!(since.elapsed() >= Duration::from_millis(1900), "{:?}", since.elapsed());
    assert!(!idle.is_closed_within(Duration::from_secs(1)), "who waits for nothing may stay");
    let hits =
        |cluster: &Cluster| metric_of(cluster, last, "packmaster_limit_hits_total", "wait_max");
    assert_eq!(hits(&cluster), 1.0);
    // A node that was never able to serve keeps nobody for longer, either.
    cluster.kill(last);
    cluster.launch(last);
    let mut early = cluster.wait_for("the node to listen", 10, |cluster| {
        Client::connect_silent(cluster.nodes[last].durus).ok()
    });
    let mut idle = Client::connect_silent(cluster.nodes[last].durus).expect("connect");
    early.send(&[b"L", &[0; 8][..]].concat()).expect("send");
    let since = Instant::now();
    assert!(early.is_closed_within(Duration::from_secs(10)), "it waits still");
    assert!(since.elapsed() >= Duration::from_millis(1900), "{:?}", since.elapsed());
    assert!(!idle.is_closed_within(Duration::from_secs(1)), "who asks for nothing may stay");
    assert_eq!(hits(&cluster), 1.0, "its process is a new one");
    let log = cluster.nodes[last].log_text();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("limit: limits.wait_max,")).collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains("WARN")), "{lines:?}");
    for i in (0..3).filter(|&i| i != last) {
        cluster.launch(i);
    }
    cluster.wait_healthy();
    cluster.finish();
}

fn resident_bytes(cluster: &Cluster) -> u64 {
    let pid = cluster.nodes[0].pid().expect("it runs").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the node's memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB");
    kib << 10
}

/// Each has said hello and read something: more than a connection that never said a word. And while they are idle, somebody
/// stores a million objects.
#[test]
fn five_thousand_idle_clients() {
    const MANY: usize = 5000;
    const MOST: u64 = 500 << 20;
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|most| most > MANY as u64 + 500), "too few files: {limit:?}");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("raise my limit");
    // The node raises its own soft limit.
    let mut cluster = Builder::default().nodes(1).set("limits.clients_max=6000").prepare();
    let mut few_files = std::process::Command::new("prlimit");
    few_files.args(["--nofile=1024:", "--"]).arg(cluster_tests::binary::packmaster());
    cluster.launch_by(0, few_files);
    cluster.wait_healthy();
    let to = cluster.nodes[0].durus;
    fill(&mut connect(to), 3, 1000);
    let before = resident_bytes(&cluster);
    let mut all: Vec<Client> = Vec::new();
    for _ in 0..MANY {
        let mut client = connect(to);
        assert!(matches!(client.load(1).expect("load"), Loaded::Record(_)));
        all.push(client);
    }
    let mut busy = connect(to);
    for _ in 0..50 {
        let oids = (0..80).flat_map(|_| busy.new_oids(250).expect("new oids"));
        let records: Vec<_> = oids.map(|oid| (oid, record(oid, b"x", &[]))).collect();
        assert_eq!(busy.commit(&records).expect("commit"), Committed::Yes);
    }
    drop(busy);
    cluster.wait_for("the busy one to be gone", 5, |cluster| {
        (cluster.wait_healthy().nodes[0].clients as usize == MANY).then_some(())
    });
    let with = resident_bytes(&cluster);
    println!(
        "{MANY} idle clients: {} MiB resident, {} MiB without them, {} bytes each",
        with >> 20,
        before >> 20,
        (with - before) / MANY as u64
    );
    assert!(with < MOST, "{} MiB", with >> 20);
    assert_eq!(cluster.wait_healthy().nodes[0].clients as usize, MANY);
    for client in all.iter_mut().step_by(500) {
        assert!(matches!(client.load(2).expect("load"), Loaded::Record(_)));
    }
    drop(all);
    cluster.finish();
}

#[test]
fn too_few_files_for_the_clients_that_are_promised_are_said() {
    let mut cluster = Builder::default().nodes(1).set("limits.clients_max=5000").prepare();
    let mut few_files = std::process::Command::new("prlimit");
    few_files.args(["--nofile=300:600", "--"]).arg(cluster_tests::binary::packmaster());
    cluster.launch_by(0, few_files);
    cluster.wait_healthy();
    let log = cluster.nodes[0].log_text();
    let line = log.lines().find(|line| line.contains("limits.clients_max cannot be met"));
    let line = line.unwrap_or_else(|| panic!("not a word: {log}"));
    assert!(line.contains("LimitNOFILE=") && line.contains("clients_let_in: 344"), "{line}");
    assert_eq!(metric(&cluster, "packmaster_limit", "clients_max"), 344.0);
    cluster.finish();
}
