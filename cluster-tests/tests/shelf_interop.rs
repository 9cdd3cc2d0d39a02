//! Files go from stock Durus to us and back, and both serve the same objects.
//!
//! Stock Durus 4.3 is the oracle throughout: it makes the files, says what is in them, reads what we wrote, and its
//! packer says what a packed file is, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use packmaster::pack::{Build, Built, Job, JobOutcome};
use packmaster::shelf::{self, Kind, Shelf, ShelfError, TxMeta};
use packmaster::storage::posix::PosixDisk;
use packmaster::types::{CommitId, Epoch, Generation, Oid, Seq};
use tempfile::TempDir;

/// Bytes of a seal: its transaction's length and its chain record.
const SEAL_LEN: usize = 175;

/// What every script begins with. `dump` prints every object and the oids that would be given out next.
const PRELUDE: &str = r#"
import hashlib, os, random, sys
from durus.connection import Connection, gen_every_instance, touch_every_reference
from durus.file_storage import FileStorage
from durus.persistent import Persistent, PersistentBase
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.btree import BTree
from durus.serialize import unpack_record
from durus.storage import get_census, get_reference_index
from durus.utils import str_to_int8, int8_to_str

def dump(storage, new=40):
    for oid, record in sorted(storage.shelf.items()):
        if oid != b'\xff' * 8:
            print('object', str_to_int8(oid), hashlib.sha1(record).hexdigest())
    for n in range(new):
        print('new', str_to_int8(storage.new_oid()))
"#;

/// Runs a script in `dir` with stock Durus; what it printed.
fn stock(dir: &Path, script: &str) -> String {
    let output = Command::new(cluster_tests::stock::python())
        .arg("-c")
        .arg(format!("{PRELUDE}\n{script}"))
        .current_dir(dir)
        .output()
        .expect("run stock Durus");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "stock Durus failed:\n{talk}\nin\n{script}");
    String::from_utf8(output.stdout).expect("its output is text")
}

/// The same lines that `dump` prints, of ours.
fn dump(shelf: &Shelf, oids_below: u64) -> String {
    let mut text = String::new();
    for oid in 0..oids_below {
        if let Some(record) = shelf.load(Oid(oid)).unwrap() {
            text.push_str(&format!("object {oid} {}\n", sha1_hex(&record)));
        }
    }
    let holes = shelf.holes().unwrap().into_iter().map(|oid| oid.0);
    for oid in holes.chain(shelf.next_free().0..).take(40) {
        text.push_str(&format!("new {oid}\n"));
    }
    text
}

/// Compares what `dump` says, and shows no more than the first difference.
fn same(ours: &str, theirs: &str, what: &str) {
    let lines = ours.lines().zip(theirs.lines());
    for (ours, theirs) in lines {
        assert_eq!(ours, theirs, "{what}");
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{what}");
}

fn sha1_hex(bytes: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory for one test at a time: a process that another test has just forked holds our locks until it becomes
/// Python.
fn directory() -> (Directory, PosixDisk) {
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let disk = PosixDisk::new(dir.path());
    (Directory { dir, _alone: alone }, disk)
}

struct Directory {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Directory {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn commit(shelf: &mut Shelf, records: &[(Oid, Bytes)]) {
    let tip = shelf.tip();
    let (epoch, seq) = (Epoch(1), tip.seq.next());
    let meta = TxMeta {
        kind: Kind::Commit,
        epoch,
        seq,
        time_us: 1_700_000_000_000_000,
        commit_id: CommitId::NONE,
    };
    let built = shelf::build(&tip.chain, &meta, records);
    shelf.file().write_at(tip.offset, &built.bytes).unwrap();
    shelf.append(&shelf::parse(&built.bytes).unwrap(), built.bytes);
    shelf.written_to(shelf.tip().offset);
    shelf.index_to(seq);
}

/// The scripts that make `f.durus`, by name.
fn stock_files() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("empty", "s = FileStorage('f.durus')"),
        (
            "small",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
r['a'] = PersistentDict(x=1); r['b'] = PersistentList([r['a']]); c.commit()",
        ),
        (
            "with garbage in cycles",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
for n in range(60):
    d = PersistentDict(n=n); d['me'] = d; d['other'] = PersistentList([d, r.get(n - 1)]); r[n] = d
    c.commit()
for n in range(60):
    if n % 3: del r[n]
c.commit()",
        ),
        (
            "packed, with holes, and used again",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
for n in range(300): r[n] = PersistentDict(n=n)
c.commit()
for n in range(300):
    if n % 4 == 1: del r[n]
c.commit(); c.pack()
for n in range(20): r['new', n] = PersistentDict(n=n)
c.commit(); r[0]['changed'] = 1; c.commit()
for n in range(100): r.pop(n, None)
c.commit()",
        ),
        (
            "thousands of transactions",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
rnd = random.Random(4); t = r['t'] = BTree()
for n in range(2500):
    t[rnd.randrange(900)] = PersistentDict(n=n)
    if n % 5 == 0: t.pop(rnd.randrange(900), None)
    c.commit()",
        ),
        (
            "empty transactions",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root(); c.commit()
s.begin(); s.end(); s.begin(); s.end()
r['x'] = PersistentDict(); c.commit(); s.begin(); s.end()",
        ),
        (
            "large records, so that offsets need four bytes",
            "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root(); rnd = random.Random(1)
r['large'] = PersistentDict(x=rnd.randbytes(9 << 20)); c.commit()
r['more'] = PersistentDict(x=rnd.randbytes(9 << 20), y=r['large']); r['z'] = PersistentDict(); c.commit()
del r['z']; c.commit()",
        ),
    ])
}

#[test]
fn files_of_stock_durus_are_adopted_and_serve_the_same_objects() {
    for (name, script) in stock_files() {
        let (dir, disk) = directory();
        let expected =
            stock(dir.path(), &format!("{script}\ns.close(); dump(FileStorage('f.durus'))"));
        let before = fs::read(dir.path().join("f.durus")).unwrap();
        assert!(matches!(Shelf::open(&disk, "f.durus"), Err(ShelfError::Plain { .. })), "{name}");
        shelf::adopt(&disk, "f.durus").unwrap_or_else(|error| panic!("{name}: {error}"));
        let after = fs::read(dir.path().join("f.durus")).unwrap();
        assert!(after.starts_with(&before) && after.len() == before.len() + SEAL_LEN, "{name}");
        let opened = Shelf::open(&disk, "f.durus").unwrap();
        assert_eq!(opened.torn, None, "{name}");
        assert_eq!(opened.shelf.is_blank(), name == "empty");
        same(&dump(&opened.shelf, 6000), &expected, name);
        // and stock Durus does not mind the seal
        drop(opened);
        drop(disk);
        let again = stock(dir.path(), "s = FileStorage('f.durus')\ndump(s)");
        same(&expected, &again, name);
    }
}

/// Packs `f.durus` with stock Durus into `p.durus`, and an adopted copy of it with ours; both files' bytes.
fn pack_both(dir: &Path, disk: &PosixDisk) -> (Vec<u8>, Vec<u8>, Built) {
    fs::copy(dir.join("f.durus"), dir.join("p.durus")).unwrap();
    stock(dir, "s = FileStorage('p.durus'); s.pack(); s.close()");
    if matches!(Shelf::open(disk, "f.durus"), Err(ShelfError::Plain { .. })) {
        shelf::adopt(disk, "f.durus").unwrap();
    }
    let seq = Shelf::open(disk, "f.durus").unwrap().shelf.tip().seq;
    let build = Build::new("f.durus".into(), Generation(2), seq, seq, "g.durus".into());
    let JobOutcome::Built(built) = Job::Build(build).run(disk).unwrap() else { panic!() };
    let ours = fs::read(dir.join("g.durus")).unwrap();
    assert_eq!(built.base_len, ours.len() as u64);
    (fs::read(dir.join("p.durus")).unwrap(), ours[..ours.len() - SEAL_LEN].to_vec(), built)
}

#[test]
fn a_base_is_what_the_packer_of_stock_durus_writes() {
    let mut widths = Vec::new();
    for (name, script) in stock_files() {
        if name == "empty" {
            continue; // stock Durus dies of it
        }
        let (dir, disk) = directory();
        stock(dir.path(), script);
        let (stock_base, ours, built) = pack_both(dir.path(), &disk);
        assert!(stock_base == ours, "{name}: {} and {} bytes", stock_base.len(), ours.len());
        let start = 16 + u64::from_be_bytes(ours[8..16].try_into().unwrap()) as usize;
        widths.push(ours[start + 15]);
        // what is gone is what stock Durus says is gone
        let old = Shelf::open(&disk, "f.durus").unwrap().shelf;
        let new = Shelf::open(&disk, "g.durus").unwrap().shelf;
        for oid in (0..6000).map(Oid) {
            let gone = old.contains(oid).unwrap() && !new.contains(oid).unwrap();
            assert_eq!(built.removed.contains(oid.0), gone, "{name}: {oid:?}");
        }
    }
    widths.sort();
    widths.dedup();
    assert_eq!(widths, [2, 3, 4], "number widths that were tried");
}

#[test]
fn a_base_with_numbers_of_one_byte_is_the_same_too() {
    let (dir, disk) = directory();
    // the smallest root there is, as the file is to stay below 256 bytes
    stock(
        dir.path(),
        "s = FileStorage('f.durus'); s.begin(); s.store(int8_to_str(0), int8_to_str(0) + b'\\0\\0\\0\\1x'); s.end()",
    );
    let (stock_base, ours, _) = pack_both(dir.path(), &disk);
    assert!(stock_base == ours);
    assert_eq!(ours[16 + 29 + 15], 1);
}

#[test]
fn random_graphs_pack_to_the_same_bytes() {
    for seed in 0..12 {
        let (dir, disk) = directory();
        let script = format!(
            "s = FileStorage('f.durus'); rnd = random.Random({seed})
for t in range(40):
    new = set(str_to_int8(s.new_oid()) for n in range(rnd.randrange(8)))
    if t == 0: new.add(0)
    there = sorted(new.union(str_to_int8(oid) for oid in s.shelf))
    s.begin()
    for oid in sorted(new.union(rnd.choice(there) for n in range(rnd.randrange(4)))):
        refs = sorted(set(rnd.choice(there) for n in range(rnd.randrange(4))))
        data = rnd.randbytes(rnd.randrange(300))
        record = int8_to_str(oid) + len(data).to_bytes(4, 'big') + data
        s.store(int8_to_str(oid), record + b''.join(map(int8_to_str, refs)))
    s.end()
    if t == 20: s.pack(); s.sync()
"
        );
        stock(dir.path(), &script);
        let (stock_base, ours, _) = pack_both(dir.path(), &disk);
        assert!(stock_base == ours, "seed {seed}");
    }
}

#[test]
fn stock_durus_works_on_a_file_of_ours_and_we_take_it_back() {
    let (dir, disk) = directory();
    stock(
        dir.path(),
        "s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
for n in range(10): r[n] = PersistentDict(n=n)
c.commit(); r.pop(3); c.commit(); c.pack()",
    );
    shelf::adopt(&disk, "f.durus").unwrap();
    let mut shelf = Shelf::open(&disk, "f.durus").unwrap().shelf;
    // objects of stock Durus's making, stored by us: one again, and a copy of it as a new object
    let old = shelf.load(Oid(5)).unwrap().unwrap();
    let fresh = shelf.next_free();
    let copy: Bytes = [&fresh.0.to_be_bytes()[..], &old[8..]].concat().into();
    commit(&mut shelf, &[(Oid(5), old)]);
    commit(&mut shelf, &[(fresh, copy)]);
    let ours = dump(&shelf, 100);
    let tip = shelf.tip();
    drop((shelf, disk));
    let theirs = stock(
        dir.path(),
        "s = FileStorage('f.durus'); c = Connection(s)
instances = list(gen_every_instance(c, PersistentBase))
assert len(instances) == len(list(s.gen_oid_record())) == 12, instances  # the root, 9, the copy, the chain
assert [type(x) for x in instances if x._p_oid == b'\\xff' * 8] == [Persistent]
for x in instances:
    if x._p_is_ghost(): x._p_load_state()
assert vars(c.get(b'\\xff' * 8)) == {}
census = get_census(s); assert census == {b'PersistentDict': 11, b'Persistent': 1}, census
touch_every_reference(c, 'PersistentDict'); c.abort()
touch_every_reference(c, 'Persistent'); c.abort()
get_reference_index(s)
dump(s)
s.close()
s = FileStorage('f.durus'); c = Connection(s); r = c.get_root()
r['stock'] = PersistentDict(was='here'); r[5]['n'] = 'changed'; c.commit()
s.close(); s = FileStorage('f.durus'); assert Connection(s).get_root()[5]['n'] == 'changed'",
    );
    same(&ours, &theirs, "stock Durus on our file");
    let disk = PosixDisk::new(dir.path());
    match Shelf::open(&disk, "f.durus") {
        Err(ShelfError::ForeignTail { offset, .. }) => assert_eq!(offset, tip.offset),
        other => panic!("{:?}", other.map(|_| "opened").map_err(|error| error.to_string())),
    }
    let adopted = shelf::adopt(&disk, "f.durus").unwrap();
    assert_eq!((adopted.generation, adopted.tip.seq), (Generation(2), Seq(2)));
    let shelf = Shelf::open(&disk, "f.durus").unwrap().shelf;
    let ours = dump(&shelf, 100);
    drop((shelf, disk));
    let theirs = stock(dir.path(), "dump(FileStorage('f.durus'))");
    same(&ours, &theirs, "adopted again");
    // the stock packer drops the chain records and leaves a file that can be adopted
    stock(dir.path(), "s = FileStorage('f.durus'); s.pack()\nassert b'\\xff' * 8 not in s.shelf");
    let disk = PosixDisk::new(dir.path());
    assert_eq!(shelf::adopt(&disk, "f.durus").unwrap().generation, Generation(1));
}

#[test]
fn a_base_of_ours_serves_stock_durus_with_later_transactions() {
    let (dir, disk) = directory();
    stock(dir.path(), stock_files()["with garbage in cycles"]);
    shelf::adopt(&disk, "f.durus").unwrap();
    let mut old = Shelf::open(&disk, "f.durus").unwrap().shelf;
    let (p, root) = (old.tip().seq, old.load(Oid::ROOT).unwrap().unwrap());
    commit(&mut old, &[(Oid::ROOT, root.clone())]);
    let cut = old.tip();
    commit(&mut old, &[(Oid::ROOT, root)]);
    let build = Build::new("f.durus".into(), Generation(2), p, cut.seq, "g.durus".into());
    Job::Build(build).run(&disk).unwrap();
    let mut new = Shelf::open(&disk, "g.durus").unwrap().shelf;
    for tx in shelf::split_transactions(&old.read_range(cut.offset, u64::MAX).unwrap()) {
        let tx = shelf::rechain(&new.tip().chain, tx.unwrap());
        new.file().write_at(new.tip().offset, &tx.bytes).unwrap();
        new.append(&shelf::parse(&tx.bytes).unwrap(), tx.bytes);
    }
    new.index_to(new.tip().seq);
    let ours = dump(&new, 1000);
    drop((old, new, disk));
    let theirs = stock(
        dir.path(),
        "s = FileStorage('g.durus'); c = Connection(s)
for n, d in c.get_root().items(): assert d['me'] is d and d['n'] == n
dump(s)",
    );
    same(&ours, &theirs, "stock Durus on our file");
}
