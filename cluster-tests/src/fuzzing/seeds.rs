//! What the corpora begin with: inputs made of real messages, files and sessions, one for each thing there is.
//!
//! `cargo run -p cluster-tests --example fuzz_seeds` writes them into `cluster-tests/fuzz/corpus`.

use std::collections::BTreeMap;

use bytes::BytesMut;
use packmaster::config::EXAMPLE;
use packmaster::node::frame;
use packmaster::node::hello::Me;
use packmaster::proto::control::Lane;
use packmaster::shelf::{self, Kind, TxMeta};
use packmaster::types::{BootId, Chain, CommitId, Epoch, NodeId, Oid, Seq};
use prost::Message;

use super::machine::{Event, Machine, disk_with, read};
use super::recorded::{NODES, record, recorded};

/// Name and bytes.
pub type Seed = (String, Vec<u8>);

/// By the name of the target.
pub fn all() -> BTreeMap<&'static str, Vec<Seed>> {
    BTreeMap::from([
        ("config", config()),
        ("durus", durus()),
        ("frames", frames()),
        ("peer", peer()),
        ("raft_log", raft_log()),
        ("shelf", files()),
    ])
}

fn named(name: &str, bytes: impl Into<Vec<u8>>) -> Seed {
    (name.to_string(), bytes.into())
}

fn push(out: &mut Vec<u8>, oid: u64, record: &[u8]) {
    out.extend((8 + record.len() as u64).to_be_bytes());
    out.extend(oid.to_be_bytes());
    out.extend(record);
}

/// A plain file of stock Durus: two objects, a hole, a transaction.
fn plain_file() -> Vec<u8> {
    let mut base = Vec::new();
    push(&mut base, 0, &record(0, b"root", &[2]));
    push(&mut base, 2, &record(2, b"two", &[]));
    let mut file = b"SHELF-1\n".to_vec();
    file.extend((base.len() as u64).to_be_bytes());
    let second = 16 + 16 + record(0, b"root", &[2]).len() as u64;
    file.extend(base);
    let map = file.len() as u64;
    for number in [16 + 4, 1, 4] {
        file.extend(u64::to_be_bytes(number));
    }
    file.extend([16, map as u8 + 3, second as u8, map as u8 + 1]);
    let mut objects = Vec::new();
    push(&mut objects, 1, &record(1, b"one", &[0]));
    file.extend((objects.len() as u64).to_be_bytes());
    file.extend(objects);
    file
}

/// That, adopted; an epoch start, and two commits.
pub fn sample_file() -> Vec<u8> {
    let disk = disk_with("file", &plain_file());
    let adopted = shelf::adopt(&disk, "file").expect("a good file");
    let mut file = read(&disk, "file");
    let mut chain: Chain = adopted.tip.chain;
    for (seq, kind) in [(1, Kind::EpochStart), (2, Kind::Commit), (3, Kind::Commit)] {
        let commit_id = CommitId([if seq == 1 { 0 } else { seq as u8 }; 16]);
        let (epoch, time_us) = (Epoch(1), 1000 * seq);
        let meta = TxMeta { kind, epoch, seq: Seq(seq), time_us, commit_id };
        let records = match kind {
            Kind::Commit => vec![(Oid(seq), record(seq, b"new", &[0, 1]).into())],
            _ => Vec::new(),
        };
        let built = shelf::build(&chain, &meta, &records);
        chain = built.chain;
        file.extend(&built.bytes);
    }
    file
}

fn files() -> Vec<Seed> {
    let as_is = |name: &str, file: &[u8]| named(name, [&[super::shelf::AS_IS], file].concat());
    let (plain, good) = (plain_file(), sample_file());
    let foreign = [&good[..], &plain[plain.len() - 47..]].concat();
    let mut seeds = vec![
        as_is("plain", &plain),
        as_is("good", &good),
        as_is("torn", &good[..good.len() - 30]),
        as_is("torn-in-length", &good[..good.len() - 171]),
        as_is("zeros-after", &[&good[..], &[0; 64]].concat()),
        as_is("appended-by-stock", &foreign),
        as_is("bad-in-the-middle", &flipped(&good, good.len() - 300)),
        as_is("bad-at-the-end", &flipped(&good, good.len() - 3)),
        as_is("prefix", b"SHELF-1\n"),
        as_is("empty", b""),
        as_is("older-format", b"DFS20\n\0\0\0\0\0\0\0\0"),
    ];
    let disk = disk_with("file", &foreign);
    if shelf::adopt(&disk, "file").is_ok() {
        seeds.push(as_is("adopted-twice", &read(&disk, "file")));
    }
    for node in 1..=NODES {
        let mut machine = Machine::new(node, NODES);
        recorded().lives[node as usize - 1].iter().for_each(|event| machine.apply(event.clone()));
        for (name, bytes) in machine.files() {
            seeds.push(as_is(&format!("node-{node}-{}", &name[..9]), &bytes));
        }
    }
    // base of two objects; adopt; chained commits, an odd one, a piece; damage.
    let object = [5, 1, 4, b'd', b'a', b't', b'a', 1, 0];
    let recipe = [&[1, 2][..], &object, &object, &[6, 1, 2, 2, 1], &object, &[2, 3, 2], &object];
    seeds.push(named("recipe", recipe.concat()));
    let odd = [&recipe.concat()[..], &[6, 1, 1, 2, 9, 0], &[1, 0, 6, 1, 3, 9, 9, 2]].concat();
    seeds.push(named("recipe-odd", odd));
    seeds
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

fn config() -> Vec<Seed> {
    let with = |name: &str, overrides: &str| named(name, format!("{EXAMPLE}\0{overrides}"));
    let edited = |name: &str, from: &str, to: &str| named(name, EXAMPLE.replace(from, to));
    let small = "cluster=\"c\"\nnode=\"a\"\ndata=\"d\"\n[[member]]\nid=1\nname=\"a\"\ndurus=\"h:1\"\npeer=\"h:2\"\nhttp=\"h:3\"\n";
    vec![
        named("small", small),
        named("empty", ""),
        named("example", EXAMPLE),
        edited("all-set", "\n# ", "\n"),
        edited("no-such-node", "\"n1\"", "\"n9\""),
        edited("same-id", "id = 2", "id = 1"),
        edited("bad-address", ":2972", ":0"),
        with("override", "timing.beat_ms=20"),
        with("override-two", "timing.beat_ms=20\0timing.silence_ms=50"),
        with("override-member", "member.id=5"),
        with("override-nothing", "=5"),
        with("override-unknown", "log.nivel=info"),
        with("override-kind", "limits.clients_max=many"),
        named("override-small", format!("{small}\0log.level = debug\0limits.allow_quit=true")),
    ]
}

/// An op of the script with its piece.
fn said(place: u8, bytes: &[u8]) -> Vec<u8> {
    [&[place << 4 | 1, bytes.len() as u8], bytes].concat()
}

fn durus() -> Vec<Seed> {
    let (open, settle, restart) = ([0x10], [14], [15]);
    let load = said(0, b"L\0\0\0\0\0\0\0\0");
    let second = [&open[..], &said(1, b"V\0\0\0\x01"), &said(1, b"S")].concat();
    // places 0 and 1 store the root; one of them in vain
    let conflict = [&second[..], &[14, 0x19, 0, 0, 1, b'a', 0, 9, 0, 0, 1, b'b', 0], &settle];
    let commit = [9, 1, 0, 3, b'n', b'e', b'w', 2, 1, 2, 1, 2, b'x', b'y', 0];
    let odd_commit = [9, 0, 0, 1, b'a', 1, 255];
    vec![
        named("load", [&load[..], &settle].concat()),
        named("bulk", [12, 3, 0, 1, 2, 14]),
        named("sync", [&second[..], &settle].concat()),
        named("conflict", conflict.concat()),
        named("commit", [&commit[..], &settle, &load].concat()),
        named("commit-crash", [&commit[..], &restart, &[0], &load, &settle].concat()),
        named("commit-half-crash", [&commit[..], &[5], &restart].concat()),
        named("commit-refers-to-chain", [&odd_commit[..], &settle].concat()),
        named(
            "commit-by-hand",
            said(0, b"C\0\0\0\x1c\0\0\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04root"),
        ),
        named("commit-empty", said(0, b"C\0\0\0\0S")),
        named("new-oids", [&[11, 32, 14, 11, 39][..], &said(0, b"N"), &settle].concat()),
        named("pack", [&said(0, b"P")[..], &[6, 7, 8, 20, 14], &load].concat()),
        named(
            "pack-busy",
            [&said(0, b"P")[..], &[8, 10], &commit, &[7], &commit, &[8, 40], &load].concat(),
        ),
        named("pack-crash", [&said(0, b"P")[..], &[8, 5, 7, 15, 0, 8, 40, 14]].concat()),
        named("goodbye", said(0, b".")),
        named("quit", said(0, b"Q")),
        named("version", said(0, b"V\0\0\0\x02")),
        named("stall", [&said(0, b"L\0\0")[..], &[8, 110]].concat()),
        named("leave", [&commit[..], &[4, 14]].concat()),
        named("bytewise", [&[3, 10][..], b"SL\0\0\0\0\0\0\0\x01"].concat()),
        named("too-many", [0x10, 0x20, 0x30]),
        named("too-long", said(0, b"C\xff\xff\xff\xff")),
    ]
}

fn frames() -> Vec<Seed> {
    let framed = |name: String, messages: &[Vec<u8>]| {
        let mut bytes = vec![17];
        for message in messages {
            bytes.extend((message.len() as u32).to_be_bytes());
            bytes.extend(message);
        }
        (name, bytes)
    };
    let me = Me { cluster: "shop".into(), node: NodeId(2), boot: BootId(5), disk_uuid: [2; 16] };
    let mut hello = BytesMut::new();
    frame::encode(&me.hello(Lane::Live), &mut hello);
    let mut seeds = vec![named("hello", [&[3][..], &hello].concat())];
    for (name, message) in one_of_each() {
        let bytes = recorded().messages[message].2.encode_to_vec();
        if bytes.len() < 1500 {
            seeds.push(framed(name, &[bytes]));
        }
    }
    for (nth, (_, command)) in recorded().commands.iter().enumerate().take(14) {
        seeds.push(framed(format!("command-{nth}"), &[command.to_vec()]));
    }
    for event in recorded().lives.iter().flatten() {
        if let Event::Admin(request) = event {
            seeds.push(framed("admin".into(), &[request.encode_to_vec()]));
        }
    }
    seeds
}

/// The first recorded message of each kind, and of each type of Raft's.
fn one_of_each() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (at, (_, _, message)) in recorded().messages.iter().enumerate() {
        let text = format!("{:?}", message.kind);
        let name: String =
            text.trim_start_matches("Some(").chars().take_while(|c| *c != '(').collect();
        let kind = match &message.kind {
            Some(packmaster::proto::control::peer_message::Kind::Raft(raft)) => {
                format!("-{}-{}", raft.msg_type, raft.entries.len().min(1))
            }
            _ => String::new(),
        };
        found.entry(format!("{}{kind}", name.to_lowercase())).or_insert(at);
    }
    found
}

fn peer() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let moments = recorded().moments.len() as u8;
    for moment in 0..moments {
        for node in 0..NODES as u8 {
            let life = [node, moment, 1, 63, 1, 63, 10, 3, 14];
            seeds.push(named(&format!("life-{node}-{moment}"), life));
        }
    }
    for (nth, (name, at)) in one_of_each().into_iter().enumerate() {
        let [high, low] = (at as u16).to_be_bytes();
        let again = [nth as u8 % 3, nth as u8 % moments, 3, high, low, 0, 10, 3, 19, high, low, 0];
        seeds.push(named(&format!("again-{name}"), again));
    }
    let late = moments - 1;
    seeds.push(named("append", [0, late, 5, 0, 64, 2, 3, 1, 1, 7, 1, b'x', 0, 0, 0, 10, 3]));
    seeds.push(named("raft", [0, late, 6, 0, 100, 100, 1, 0, 100, 0, 0, 100, 100, 10, 3]));
    seeds.push(named("snapshot", [2, 1, 6, 68, 9, 100, 0, 100, 100, 0, 0, 100, 100, 10, 3]));
    seeds.push(named("register", [1, late, 7, 5, 0, 1, 9, 2, 7, 5, 6, 1, 0, 0, 10, 3]));
    seeds.push(named("propose", [1, late, 8, 3, 0, 0, 10, 3]));
    seeds.push(named("fence", [0, late, 9, 1, 0, 10, 3]));
    seeds.push(named("common-point", [0, late, 15, 1, 2, 0, 10, 3]));
    seeds
}

fn raft_log() -> Vec<Seed> {
    let record = [1, 1, 0, 2, 3, b'a', b'b', b'c', 0, 1, 0];
    let several = [&[0, 4][..], &record, &record, &record, &record].concat();
    let with = |name: &str, damage: &[u8]| named(name, [&several[..], damage].concat());
    vec![
        with("written", &[]),
        with("written-one-bad", &[3, 0, 60, 1]),
        with("written-other-bad", &[0, 3, 0, 60, 1]),
        with("written-both-torn", &[3, 0, 90, 0, 3, 0, 90, 0]),
        with("written-left-over", &[0, 0, 4, 1, 2, 3, 4]),
        named("composed", [1, 1, 1, 2, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 3, 2, 1, 1]),
        named("composed-snapshot", [1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 0, 0]),
        named("any", [&[2, 0, 20][..], b"PMRAFT1\n\0\0\0\0\0\0\0\x01", &[0; 4]].concat()),
        named("promise-any", [&[3, 0][..], b"PMPROM-1"].concat()),
        named("promise-good", [3, 1, 9, 0]),
        named("promise-one-bad", [3, 1, 9, 3, 0, 3, 1]),
        named("promise-both-bad", [3, 1, 9, 6, 0, 3, 1, 16, 3, 1]),
        named("promise-short", [3, 1, 9, 3, 0, 30, 0]),
    ]
}
