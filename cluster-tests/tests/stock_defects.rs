//! The defects of stock Durus 4.3, by their numbers: what ends a stock server, or misleads its clients, does neither to
//! ours. Each test first shows that stock does fail, so that it says something; then the same is done to a cluster, whose
//! other clients go on, and whose files are whole and the same.

use std::fs::Permissions;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster_tests::chaincheck::{assert_same_bytes, check_file};
use cluster_tests::client::{Busy, Client, Committed, Loaded, commit_data, record};
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::disks::SlowDisk;
use cluster_tests::ports::Ports;
use cluster_tests::{python, stock};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

/// What is answered at all is answered sooner; a stock server that is held up is so for ten seconds.
const SOON: Duration = Duration::from_secs(4);
/// An oid that nobody was given.
const NOBODYS: u64 = 1 << 40;
/// The same, near those that are in use.
const NEXT_TO_NONE: u64 = 100;

/// A stock server on a new file.
struct Stock {
    server: stock::Server,
    ports: Ports,
    _dir: TempDir,
}

impl Stock {
    fn new() -> Stock {
        let (dir, ports) = (tempfile::tempdir().expect("make a directory"), Ports::reserve());
        let server = stock::Server::start(&dir.path().join("stock.durus"), ports.port(0));
        Stock { server, ports, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(self.server.address).expect("connect to stock")
    }
}

fn one_node() -> Cluster {
    Builder::default().nodes(1).start()
}

fn client(cluster: &Cluster) -> Client {
    Client::connect(cluster.nodes[cluster.master()].durus).expect("connect to the master")
}

/// Stores the root and objects 1 to `last`, all of which it refers to.
fn fill(client: &mut Client, last: u64) {
    let oids = client.new_oids(last as u8 + 1).expect("new oids");
    assert_eq!(oids, (0..=last).collect::<Vec<_>>(), "a new database");
    let mut records = vec![root(1..=last)];
    records.extend((1..=last).map(|oid| (oid, record(oid, b"object", &[]))));
    assert_eq!(client.commit(&records).expect("the first commit"), Committed::Yes);
}

fn root(refs: impl IntoIterator<Item = u64>) -> (u64, Vec<u8>) {
    (0, record(0, b"root", &refs.into_iter().collect::<Vec<_>>()))
}

/// It reads, and stores the root again.
fn goes_on(client: &mut Client) {
    assert!(matches!(client.load(0).expect("load the root"), Loaded::Record(_)));
    client.sync().expect("sync");
    let Loaded::Record(bytes) = client.load(0).expect("load the root") else { panic!("no root") };
    assert_eq!(client.commit(&[(0, bytes)]).expect("store the root again"), Committed::Yes);
}

/// Nothing of the cluster is harmed: every node is level with the others, in one history without a flaw.
fn unharmed(cluster: Cluster) {
    cluster.wait_level();
    let files: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.file()).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    assert_same_bytes(&files);
    check_file(files[0]);
    cluster.finish();
}

fn is_gone(client: &mut Client, oid: u64) -> bool {
    client.sync().expect("sync");
    client.load(oid).expect("load") == Loaded::NoSuchObject
}

/// Waits until an object is gone, as a new client sees it.
fn wait_until_gone(to: SocketAddr, oid: u64, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if is_gone(&mut Client::connect(to).expect("connect"), oid) {
            return true;
        }
        sleep(Duration::from_millis(50));
    }
    false
}

fn pack(client: &mut Client) {
    client.send(b"P").expect("ask for a pack");
    assert_eq!(client.receive::<1>().expect("the answer to P"), *b"O");
}

#[test]
fn d1_nonsense_ends_its_sender_and_not_the_server() {
    let short = [&b"C\0\0\0\x14\0\0\0\x40"[..], &[0; 16]].concat();
    let unknown = [b"C", &commit_data(&[(NOBODYS, record(NOBODYS, b"x", &[]))])[..]].concat();
    let offences = [("a record longer than its commit", short), ("an oid of nobody's", unknown)];
    let cluster = Cluster::start();
    let mut bystander = client(&cluster);
    fill(&mut bystander, 3);
    for (what, bytes) in offences {
        let mut theirs = Stock::new();
        fill(&mut theirs.client(), 3);
        theirs.client().send(&bytes).expect("send");
        assert!(theirs.server.ends_within(SOON), "stock Durus survives {what}");

        let mut offender = client(&cluster);
        offender.send(&bytes).expect("send");
        assert!(offender.is_closed_within(SOON), "{what}");
        goes_on(&mut bystander);
    }
    unharmed(cluster);
}

#[test]
fn d1_a_pack_of_what_cannot_be_packed_ends_nobody() {
    // Without a root.
    let mut theirs = Stock::new();
    theirs.client().send(b"P").expect("ask for a pack");
    assert!(theirs.server.ends_within(SOON), "stock Durus survives a pack without a root");
    let cluster = one_node();
    let mut ours = client(&cluster);
    pack(&mut ours);
    sleep(Duration::from_millis(500));
    fill(&mut ours, 3);
    goes_on(&mut ours);
    // With a reference to what never was.
    let dangling = [root([1, 2, NEXT_TO_NONE])];
    let mut theirs = Stock::new();
    let mut their_client = theirs.client();
    fill(&mut their_client, 3);
    assert_eq!(their_client.commit(&dangling).expect("store"), Committed::Yes);
    their_client.send(b"P").expect("ask for a pack");
    assert!(theirs.server.ends_within(SOON), "stock Durus survives a dangling reference");

    assert_eq!(ours.commit(&dangling).expect("store"), Committed::Yes);
    pack(&mut ours);
    let address = cluster.nodes[0].durus;
    assert!(wait_until_gone(address, 3, Duration::from_secs(20)), "it was never packed");
    assert!(!is_gone(&mut ours, 2));
    goes_on(&mut ours);
    unharmed(cluster);
}

/// The file of an import may be one that nobody may write to: it is copied.
#[test]
fn d1_a_commit_to_a_read_only_file_is_stored_in_the_copy() {
    let (dir, ports) = (tempfile::tempdir().expect("make a directory"), Ports::reserve());
    let file = dir.path().join("precious.durus");
    let server = stock::Server::start(&file, ports.port(0));
    fill(&mut Client::connect(server.address).expect("connect to stock"), 3);
    drop(server);
    std::fs::set_permissions(&file, Permissions::from_mode(0o444)).expect("protect the file");
    let before = std::fs::read(&file).expect("read the file");
    let mut server =
        stock::Server::start_with(&file, ports.port(0), |command| _ = command.arg("--readonly"));
    let mut theirs = Client::connect(server.address).expect("connect to stock");
    assert!(theirs.commit(&[root([1])]).is_err());
    assert!(server.ends_within(SOON), "stock Durus survives a commit to a read-only file");

    let cluster = Builder::default().import(&file).start();
    let mut ours = client(&cluster);
    goes_on(&mut ours);
    assert_eq!(ours.commit(&[(3, record(3, b"changed", &[]))]).expect("store"), Committed::Yes);
    assert_eq!(std::fs::read(&file).expect("read the file"), before, "it was touched");
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o444);
    assert!(mode(&cluster.nodes[0].file()) & 0o200 != 0, "its owner must be able to write to it");
    unharmed(cluster);
}

#[test]
fn d2_more_connections_than_select_can_count() {
    const MANY: usize = 1100;
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.is_none_or(|most| most > 2 * MANY as u64);
    assert!(enough, "this test takes more open files than {limit:?} allows");
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .expect("raise my own limit");
    let connect = |to: SocketAddr| -> Vec<TcpStream> {
        let all = (0..MANY).map(|_| TcpStream::connect_timeout(&to, SOON));
        all.map_while(Result::ok).collect()
    };
    let mut theirs = Stock::new();
    let held = connect(theirs.server.address);
    assert!(theirs.server.ends_within(SOON), "stock Durus has {} connections", held.len());
    drop(held);

    let cluster = one_node();
    let mut bystander = client(&cluster);
    fill(&mut bystander, 3);
    let held = connect(cluster.nodes[0].durus);
    assert_eq!(held.len(), MANY);
    cluster.wait_for("every connection", 10, |cluster| {
        (cluster.try_status().ok()?.nodes[0].clients > MANY as u64).then_some(())
    });
    goes_on(&mut bystander);
    goes_on(&mut client(&cluster));
    unharmed(cluster);
}

#[test]
fn d3_a_client_that_stalls_holds_up_nobody() {
    let cluster = Cluster::start();
    fill(&mut client(&cluster), 3);
    let theirs = Stock::new();
    fill(&mut theirs.client(), 3);
    for (what, bytes) in [("half a load", &b"L\0\0"[..]), ("a commit without its data", b"C")] {
        let mut theirs_stalled = theirs.client();
        let mut theirs_waits = theirs.client();
        theirs_stalled.send(bytes).expect("send");
        sleep(Duration::from_millis(200));
        let since = Instant::now();
        goes_on(&mut theirs_waits);
        assert!(since.elapsed() > SOON, "stock Durus is not held up by {what}");

        let mut stalled = client(&cluster);
        let mut bystander = client(&cluster);
        stalled.send(bytes).expect("send");
        sleep(Duration::from_millis(200));
        let since = Instant::now();
        goes_on(&mut bystander);
        assert!(since.elapsed() < SOON / 2, "held up by {what} for {:?}", since.elapsed());
        // Its own time is up as it would be with stock.
        assert!(stalled.is_closed_within(Duration::from_secs(15)), "{what}: it is there still");
    }
    unharmed(cluster);
}

/// An offender stores object 1, and is not there any more to hear that it did; is a witness told?
#[test]
fn d4_a_commit_whose_client_is_gone_is_told_to_the_others() {
    let data = commit_data(&[(1, record(1, b"changed", &[]))]);
    let theirs = Stock::new();
    let mut witness = theirs.client();
    fill(&mut witness, 3);
    let (mut holding, mut offender) = (theirs.client(), theirs.client());
    // While it waits for the rest of this, the server hears of nobody.
    holding.send(b"L\0").expect("send");
    sleep(Duration::from_millis(100));
    offender.send(&[b"C", &data[..]].concat()).expect("send");
    drop(offender);
    sleep(Duration::from_millis(100));
    holding.send(&[0; 7]).expect("send");
    sleep(Duration::from_millis(500));
    let Loaded::Record(stored) = theirs.client().load(1).expect("load") else { panic!("lost") };
    assert!(stored.ends_with(b"changed"), "stock Durus has not stored it");
    assert_eq!(witness.sync().expect("sync"), [0_u64; 0], "stock Durus has told the others");

    let cluster = Cluster::start();
    let mut witness = client(&cluster);
    fill(&mut witness, 3);
    let mut stored = 0;
    for attempt in 0..20 {
        let text = format!("changed {attempt}");
        let mut offender = client(&cluster);
        offender.send(b"C").expect("send");
        // The count, and the oids of what this witness has stored.
        let count = u32::from_be_bytes(offender.receive().expect("the answer to C"));
        assert_eq!(count, 0, "a client that has read nothing is told nothing");
        let data = commit_data(&[(1, record(1, text.as_bytes(), &[]))]);
        offender.send(&data).expect("send");
        if attempt % 2 == 0 {
            sleep(Duration::from_millis(2));
        }
        offender.reset();
        let mut told = Vec::new();
        let deadline = Instant::now() + Duration::from_millis(300);
        while told.is_empty() && Instant::now() < deadline {
            told = witness.sync().expect("sync");
        }
        let Loaded::Record(now) = client(&cluster).load(1).expect("load") else { panic!("lost") };
        let is_stored = now.ends_with(text.as_bytes());
        assert_eq!(told, if is_stored { vec![1] } else { vec![] }, "stored: {is_stored}");
        stored += u32::from(is_stored);
    }
    assert!(stored > 0, "not one of those commits was stored: nothing was put to the test");
    unharmed(cluster);
}

#[test]
fn d5_a_stock_client_stays_in_step_after_a_miss_in_a_bulk_load() {
    let cluster = Cluster::start();
    for (spoiled, raised) in [("missing", "DurusKeyError"), ("changed", "ReadConflictError")] {
        let theirs = Stock::new();
        let said = python::run("defects.py", &[spoiled, &theirs.ports.port(0).to_string()], 60);
        assert_eq!(said["raised"], raised);
        assert_eq!(said["in_step"], false, "with stock Durus: {said}");
        for i in 0..cluster.nodes.len() {
            let said = python::run("defects.py", &[spoiled, &cluster.durus_ports(&[i])], 60);
            assert_eq!((&said["raised"], &said["in_step"]), (&raised.into(), &true.into()));
        }
    }
    unharmed(cluster);
}

/// A witness has the objects 3 to 5 in its cache; the root lets go of them, and a pack removes them.
#[test]
fn d6_every_removed_object_is_announced() {
    let told_of = |to: SocketAddr| {
        let mut witness = Client::connect(to).expect("connect");
        fill(&mut witness, 5);
        assert!(matches!(witness.load(5).expect("load"), Loaded::Record(_)));
        let mut other = Client::connect(to).expect("connect");
        assert_eq!(other.commit(&[root([1, 2])]).expect("store"), Committed::Yes);
        assert_eq!(witness.sync().expect("sync"), [0]);
        pack(&mut other);
        assert!(wait_until_gone(to, 5, Duration::from_secs(20)), "nothing was packed");
        let mut told = witness.sync().expect("sync");
        told.sort_unstable();
        told
    };
    let theirs = Stock::new();
    assert!(!told_of(theirs.server.address).contains(&5), "stock Durus has announced it");
    let cluster = one_node();
    assert_eq!(told_of(cluster.nodes[0].durus), [3, 4, 5]);
    unharmed(cluster);
}

/// Somebody stores another's oid, and is refused; then a pack is asked for.
#[test]
fn d7_a_refused_commit_keeps_nobody_from_packing() {
    let packs = |to: SocketAddr, patience| {
        let mut bystander = Client::connect(to).expect("connect");
        fill(&mut bystander, 3);
        let foreign = bystander.new_oids(1).expect("new oids")[0];
        let mut offender = Client::connect(to).expect("connect");
        let refused = offender.commit(&[(foreign, record(foreign, b"mine", &[]))]);
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(bystander.commit(&[root([1, 2])]).expect("store"), Committed::Yes);
        // The same again, just before the pack.
        let mut offender = Client::connect(to).expect("connect");
        let refused = offender.commit(&[(foreign, record(foreign, b"mine", &[]))]);
        assert!(refused.is_err(), "{refused:?}");
        pack(&mut bystander);
        wait_until_gone(to, 3, patience)
    };
    let theirs = Stock::new();
    assert!(!packs(theirs.server.address, SOON), "stock Durus has packed");
    let cluster = one_node();
    assert!(packs(cluster.nodes[0].durus, Duration::from_secs(20)));
    unharmed(cluster);
}

#[test]
fn d8_a_cut_or_flipped_file_is_noticed_and_mended() {
    let dir = tempfile::tempdir().expect("make a directory");
    let run = |verb: &str| {
        let file = dir.path().join(verb);
        python::run("defects.py", &[verb, file.to_str().expect("a plain path")], 60)
    };
    let torn = run("torn");
    assert_eq!(torn["first"], "fine", "stock Durus has noticed: {torn}");
    assert_ne!(torn["then"], "fine", "stock Durus can go on: {torn}");
    assert_eq!(run("flipped")["greeting"], "hellp", "stock Durus has noticed a flipped bit");

    // Alone, a node that was cut says so, keeps the piece, and goes on for good.
    let mut cluster = one_node();
    fill(&mut client(&cluster), 50);
    goes_on(&mut client(&cluster));
    for _ in 0..2 {
        damage(&mut cluster, 0, |bytes| bytes.truncate(bytes.len() - 3));
        cluster.wait_healthy();
        said(&cluster, 0, "ends inside its last transaction: cut there, the piece is kept");
        goes_on(&mut client(&cluster));
    }
    unharmed(cluster);

    // Among others, one whose disk lies is mended by them. If it has forgotten what it acknowledged, it counts for nothing
    // any more.
    let mut cluster = Cluster::start();
    let mut bystander = client(&cluster);
    fill(&mut bystander, 50);
    cluster.wait_level();
    let hurt = (cluster.master() + 1) % 3;
    damage(&mut cluster, hurt, |bytes| {
        let at = bytes.windows(6).rposition(|piece| piece == b"object").expect("an object");
        bytes[at] ^= 0x20;
    });
    goes_on(&mut bystander);
    cluster.wait_level();
    said(&cluster, hurt, "the file is damaged");
    damage(&mut cluster, hurt, |bytes| bytes.truncate(bytes.len() - 3));
    goes_on(&mut bystander);
    said(&cluster, hurt, "this node has forgotten what it promised or acknowledged");
    goes_on(&mut bystander);
    let others = (0..3).filter(|&i| i != hurt);
    let files: Vec<PathBuf> = others.map(|i| cluster.nodes[i].file()).collect();
    cluster.wait_for("the others to be level", 10, |_| {
        let [a, b] = [0, 1].map(|i| std::fs::read(&files[i]).expect("a file"));
        (a == b).then_some(())
    });
    check_file(&files[0]);
    cluster.finish();
}

/// Stops a node, changes its file, and starts it again.
fn damage(cluster: &mut Cluster, i: usize, change: impl FnOnce(&mut Vec<u8>)) {
    cluster.terminate(i);
    let path = cluster.nodes[i].file();
    let mut bytes = std::fs::read(&path).expect("read a node's file");
    change(&mut bytes);
    std::fs::write(&path, &bytes).expect("damage a node's file");
    cluster.launch(i);
}

fn said(cluster: &Cluster, i: usize, what: &str) {
    cluster.wait_for(what, 10, |cluster| cluster.nodes[i].log_text().contains(what).then_some(()));
}

#[test]
fn d9_what_was_acknowledged_is_on_the_disk() {
    const SLOW: Duration = Duration::from_millis(400);
    let takes = |client: &mut Client| {
        let since = Instant::now();
        assert_eq!(client.commit(&[root([1])]).expect("store"), Committed::Yes);
        since.elapsed()
    };
    let theirs = {
        let (dir, ports) = (tempfile::tempdir().expect("make a directory"), Ports::reserve());
        let disk = SlowDisk::make(dir.path().join("slow")).expect("a slow disk");
        let file = dir.path().join("stock.durus");
        let server = stock::Server::start_with(&file, ports.port(0), |command| {
            command.envs(disk.environment());
        });
        let mut client = Client::connect(server.address).expect("connect");
        fill(&mut client, 3);
        disk.set_ms(SLOW.as_millis() as u64);
        takes(&mut client)
    };
    assert!(theirs < SLOW / 2, "stock Durus has waited for its disk: {theirs:?}");
    let cluster = Builder::default().nodes(1).slow_disks().start();
    let mut ours = client(&cluster);
    fill(&mut ours, 3);
    cluster.nodes[0].slow_disk().set_ms(SLOW.as_millis() as u64);
    let took = takes(&mut ours);
    assert!(took >= SLOW, "acknowledged in {took:?}, before it was synced");
    cluster.nodes[0].slow_disk().set_ms(0);
    unharmed(cluster);
}

#[test]
fn d10_a_crash_in_a_pack_leaves_a_file() {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("stock.durus");
    let said = python::run("defects.py", &["between", file.to_str().expect("a plain path")], 60);
    assert_eq!(said["ended"], 9, "the pack was to end between its renames: {said}");
    assert_eq!(said["there"], false, "stock Durus has left a file");
    assert_eq!(said["greeting"], serde_json::Value::Null, "stock Durus has it still");

    let mut cluster = one_node();
    let to = cluster.nodes[0].durus.to_string();
    python::run("address.py", &[&to], 60);
    let (mut packs, mut generation) = (0, 1);
    for round in 0..8 {
        let mut ours = client(&cluster);
        pack(&mut ours);
        sleep(Duration::from_millis(12 * round));
        cluster.kill(0);
        let file = cluster.nodes[0].file();
        let seen =
            python::run("defects.py", &["greeting", file.to_str().expect("a plain path")], 60);
        assert_eq!(seen["greeting"], serde_json::Value::Null, "round {round}: {seen}");
        check_file(&file);
        cluster.launch(0);
        let now = cluster.wait_healthy().generation.expect("a generation").number;
        packs += u32::from(now > generation);
        generation = now;
        let said = python::run("address.py", &[&to], 60);
        assert_eq!(said["n"], round + 2, "a commit is missing");
    }
    println!("{packs} of 8 packs were over before the kill");
    unharmed(cluster);
}

#[test]
fn d11_an_abstract_address() {
    let dir = tempfile::tempdir().expect("make a directory");
    let name = format!("@packmaster-test-{}", std::process::id());
    let mut theirs = stock::command(&dir.path().join("stock.durus"));
    let theirs = theirs.args(["--address", &name]).spawn();
    let mut theirs = theirs.expect("start a stock server");
    assert!(stock::ends_within(&mut theirs, Duration::from_secs(10)), "stock Durus serves it");

    let cluster = Builder::default().nodes(1).set(&format!("listen.durus={name}")).start();
    for n in 1..=2 {
        assert_eq!(python::run("address.py", &[&name], 60)["n"], n);
    }
    unharmed(cluster);
}

/// A stock server packs a step at a time when nobody asks for anything; left alone, it takes 0.6 s for so many objects. Each
/// busy client has some requests under way at once, so that there is no such moment however the machine shares its processors.
#[test]
fn d11_a_pack_ends_while_clients_are_busy() {
    const OBJECTS: u64 = 20_000;
    const BUSY: u64 = 16;
    const UNDER_WAY: usize = 32;
    let fill = |client: &mut Client| {
        let mut oids = Vec::new();
        while (oids.len() as u64) < OBJECTS {
            oids.extend(client.new_oids(255).expect("new oids"));
        }
        let last = oids.pop().expect("the last");
        for some in oids[1..].chunks(10_000) {
            let records: Vec<_> = some.iter().map(|oid| (*oid, record(*oid, b"x", &[]))).collect();
            assert_eq!(client.commit(&records).expect("store"), Committed::Yes);
        }
        let records = [root(oids[1..].iter().copied()), (last, record(last, b"garbage", &[]))];
        assert_eq!(client.commit(&records).expect("store"), Committed::Yes);
        last
    };
    // Is what nobody refers to gone within `patience`, while sixteen clients load one object after the other?
    let packs = |to: SocketAddr, patience: Duration| {
        let mut client = Client::connect(to).expect("connect");
        let garbage = fill(&mut client);
        let busy = Busy::start((1..=BUSY).map(|nth| {
            let mut busy = Client::connect(to).expect("connect");
            let load = [b"L", &nth.to_be_bytes()[..]].concat();
            busy.send(&load.repeat(UNDER_WAY)).expect("send");
            move || assert!(matches!(busy.load(nth).expect("load"), Loaded::Record(_)))
        }));
        pack(&mut client);
        let gone = wait_until_gone(to, garbage, patience);
        busy.finish();
        (garbage, gone)
    };
    let theirs = Stock::new();
    let to = theirs.server.address;
    let (garbage, gone) = packs(to, SOON);
    assert!(!gone, "stock Durus has packed beside {BUSY} busy clients");
    assert!(wait_until_gone(to, garbage, Duration::from_secs(30)), "stock Durus never packs");

    let cluster = one_node();
    let (_, gone) = packs(cluster.nodes[0].durus, Duration::from_secs(30));
    assert!(gone, "the pack has not ended");
    unharmed(cluster);
}
