use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::raft::test_disk::{Keep, TestDisk};
use crate::shelf::testing::{append, commit, get, plain_file, put, record};
use crate::shelf::{self, Kind, Shelf, adopt};
use crate::storage::mem::MemDisk;
use crate::types::Generation;

fn mark(disk: &MemDisk, mark: Mark) -> Marked {
    match Job::Mark(mark).run(disk).unwrap() {
        JobOutcome::Marked(marked) => marked,
        _ => panic!("a mark gave something else"),
    }
}

fn build(disk: &MemDisk, p: u64, f: u64) -> Result<Built, JobError> {
    let build = Build::new("f".into(), Generation(2), Seq(p), Seq(f), "g".into());
    match Job::Build(build).run(disk)? {
        JobOutcome::Built(built) => Ok(built),
        _ => panic!("a build gave something else"),
    }
}

/// Oids of the base's records, in their order, and their data.
fn base_of(file: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let (mut at, end) = (16, 16 + number(8) as usize);
    let mut records = Vec::new();
    while at < end {
        let len = number(at) as usize;
        records.push((number(at + 8), file[at + 16..at + 8 + len].to_vec()));
        at += 8 + len;
    }
    assert_eq!(at, end);
    records
}

fn oids(records: &[(u64, Vec<u8>)]) -> Vec<u64> {
    records.iter().map(|(oid, _)| *oid).collect()
}

#[test]
fn garbage_goes_and_the_rest_is_in_the_order_of_stock_durus() {
    let disk = MemDisk::new();
    // 0 -> 7 -> 3 -> 9; 5 and 6 refer to each other and nobody to them; 8 does not exist
    let base = plain_file(
        &[(0, b"root", &[7, 8]), (3, b"", &[9, 0]), (5, b"", &[6]), (6, b"", &[5, 9])],
        &[&[(7, b"", &[3, 7]), (9, b"", &[])]],
    );
    put(&disk, "f", &base);
    adopt(&disk, "f").unwrap();
    let built = build(&disk, 0, 0).unwrap();
    assert_eq!(oids(&base_of(&get(&disk, "g"))), [0, 7, 3, 9]);
    assert_eq!(built.removed.iter().collect::<Vec<_>>(), [5, 6]);
    let opened = Shelf::open(&disk, "g").unwrap();
    let shelf = opened.shelf;
    assert_eq!((shelf.tip(), shelf.base_hash(), opened.torn), (built.tip, built.base_hash, None));
    assert_eq!(built.base_len, get(&disk, "g").len() as u64);
    assert_eq!(shelf.holes().unwrap(), [8, 6, 5, 4, 2, 1, 10].map(Oid));
    assert_eq!(shelf.generation(), Generation(2));
    let old = Shelf::open(&disk, "f").unwrap().shelf;
    assert_eq!(shelf.seal().previous_chain, old.base_hash());
}

#[test]
fn what_was_touched_after_p_is_kept_behind_the_walk_in_ascending_order() {
    let disk = MemDisk::new();
    put(
        &disk,
        "f",
        &plain_file(
            &[
                (0, b"", &[1]),
                (1, b"", &[4]),
                (4, b"", &[]),
                (5, b"", &[6]),
                (6, b"", &[]),
                (7, b"", &[]),
            ],
            &[],
        ),
    );
    adopt(&disk, "f").unwrap();
    let mut shelf = Shelf::open(&disk, "f").unwrap().shelf;
    commit(&mut shelf, &[(0, b"as of P", &[1])]);
    // 4 is no longer reached, 5 is referred to by something that nobody reaches, 7 stays dead
    commit(&mut shelf, &[(1, b"as of F", &[])]);
    commit(&mut shelf, &[(9, b"", &[5, 99])]);
    let file = get(&disk, "f");
    commit(&mut shelf, &[(0, b"after F", &[])]);
    let built = build(&disk, 1, 3).unwrap();
    let base = base_of(&get(&disk, "g"));
    assert_eq!(oids(&base), [0, 1, 4, 5, 6, 9]);
    assert_eq!(base[1].1, record(1, b"as of F", &[]));
    assert_eq!(built.removed.iter().collect::<Vec<_>>(), [7]);
    assert_eq!((built.tip.seq, built.tip.epoch), (Seq(3), shelf.tip().epoch));
    // what came after F makes no difference
    let bytes = get(&disk, "g");
    put(&disk, "f", &file);
    build(&disk, 1, 3).unwrap();
    assert_eq!(get(&disk, "g"), bytes);
}

/// A repeatable sequence of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

type Objects = BTreeMap<u64, Vec<u64>>;

/// A shelf with a random history; the objects and their references as of each seq.
fn history(disk: &MemDisk, seed: u64, commits: u64) -> (Shelf, Vec<Objects>, Vec<Objects>) {
    let mut numbers = Numbers(seed);
    let mut shelf = Shelf::create(disk, "f").unwrap();
    let (mut states, mut changes) = (vec![Objects::new()], vec![Objects::new()]);
    for n in 0..commits {
        let mut change = Objects::new();
        for _ in 0..1 + numbers.below(4) {
            let oid = if n == 0 { 0 } else { numbers.below(40) };
            let refs = (0..numbers.below(3)).map(|_| numbers.below(40)).collect();
            change.insert(oid, refs);
        }
        let data = n.to_be_bytes();
        let objects: Vec<_> =
            change.iter().map(|(oid, refs)| (*oid, &data[..], &refs[..])).collect();
        if n % 7 == 3 {
            let at = shelf.tip().offset;
            let bytes = append(&mut shelf, Kind::EpochStart, &[]);
            shelf.file().write_at(at, &bytes).unwrap();
            states.push(states[states.len() - 1].clone());
            changes.push(Objects::new());
        }
        commit(&mut shelf, &objects);
        let mut state = states[states.len() - 1].clone();
        state.extend(change.clone());
        states.push(state);
        changes.push(change);
    }
    (shelf, states, changes)
}

fn reach(objects: &Objects, from: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    let mut todo: Vec<u64> = from.into_iter().filter(|oid| objects.contains_key(oid)).collect();
    let mut seen = BTreeSet::new();
    while let Some(oid) = todo.pop() {
        if seen.insert(oid) {
            todo.extend(objects[&oid].iter().filter(|oid| objects.contains_key(oid)));
        }
    }
    seen
}

/// The definition, word by word.
fn kept(states: &[Objects], changes: &[Objects], p: usize, f: usize) -> BTreeSet<u64> {
    let mut kept = reach(&states[p], [0]);
    for change in &changes[p + 1..=f] {
        kept.extend(change.keys());
        kept.extend(change.values().flatten());
    }
    kept.retain(|oid| states[f].contains_key(oid));
    let reached_at_p = reach(&states[p], [0]);
    let touched: Vec<u64> = changes[p + 1..=f]
        .iter()
        .flat_map(|c| c.keys().chain(c.values().flatten()))
        .copied()
        .collect();
    kept.extend(reach(&states[f], touched));
    kept.extend(reach(&states[f], reached_at_p));
    kept
}

#[test]
fn marks_and_bases_are_what_the_definition_says_however_they_come_about() {
    for seed in 0..60 {
        let disk = MemDisk::new();
        let (shelf, states, changes) = history(&disk, seed, 12);
        let last = states.len() - 1;
        let mut numbers = Numbers(seed ^ 0xabcd);
        let p = 1 + numbers.below(last as u64) as usize;
        let mut marked = mark(&disk, Mark::new("f".into(), Seq(p as u64)));
        let mut f = p;
        loop {
            let expected = kept(&states, &changes, p, f);
            assert_eq!(
                marked.kept.iter().collect::<BTreeSet<_>>(),
                expected,
                "seed {seed} {p} {f}"
            );
            let dead = states[f].keys().filter(|oid| !expected.contains(oid)).copied();
            assert_eq!(marked.dead.iter().collect::<Vec<_>>(), dead.collect::<Vec<_>>());
            check_base(&disk, &shelf, &states, &expected, p, f);
            if f == last {
                break;
            }
            f = (f + numbers.below(4) as usize).min(last);
            marked = mark(&disk, Mark::extend("f".into(), marked, Seq(f as u64)));
        }
    }
}

fn check_base(
    disk: &MemDisk,
    old: &Shelf,
    states: &[Objects],
    kept: &BTreeSet<u64>,
    p: usize,
    f: usize,
) {
    let built = build(disk, p as u64, f as u64).unwrap();
    assert_eq!(Some(built.tip.seq), Some(Seq(f as u64)));
    let base = base_of(&get(disk, "g"));
    // the walk: always the smallest that waits
    let (mut order, mut waiting) = (Vec::new(), BTreeSet::from([0]));
    while let Some(oid) = waiting.pop_first() {
        order.push(oid);
        let next = states[f][&oid].iter().filter(|oid| states[f].contains_key(oid));
        waiting.extend(next.filter(|oid| !order.contains(oid)));
    }
    order.extend(kept.iter().filter(|oid| !order.contains(oid)).collect::<Vec<_>>());
    assert_eq!(oids(&base), order);
    // what came after F follows, and then both files serve the same objects, but for the dead
    let mut new = Shelf::open(disk, "g").unwrap().shelf;
    let cut = old.tip_at(Seq(f as u64)).unwrap().unwrap();
    assert_eq!(new.seal().previous_chain, cut.chain);
    assert_eq!(new.last_time_us(), old.meta_at(Seq(f as u64)).unwrap().unwrap().time_us);
    let tail = old.read_range(cut.offset, u64::MAX).unwrap();
    for tx in shelf::split_transactions(&tail) {
        let tx = shelf::rechain(&new.tip().chain, tx.unwrap());
        new.file().write_at(new.tip().offset, &tx.bytes).unwrap();
        let parsed = shelf::verify(&new.tip().chain, &tx.bytes).unwrap();
        new.append(&parsed, tx.bytes);
    }
    let new = Shelf::open(disk, "g").unwrap().shelf;
    assert_eq!(new.tip().order(), old.tip().order());
    for oid in 0..45 {
        let (before, after) = (old.load(Oid(oid)).unwrap(), new.load(Oid(oid)).unwrap());
        assert!(before == after || after.is_none() && built.removed.contains(oid), "oid {oid}");
    }
}

#[test]
fn a_mark_goes_on_in_a_file_that_grows_while_it_is_made() {
    let disk = MemDisk::new();
    let mut shelf = Shelf::create(&disk, "f").unwrap();
    commit(&mut shelf, &[(0, b"", &[1]), (1, b"", &[]), (2, b"", &[3]), (3, b"", &[])]);
    let mut job = Job::Mark(Mark::new("f".into(), Seq(1)));
    let marked = loop {
        commit(&mut shelf, &[(4, b"", &[])]);
        match job.step(&disk).unwrap() {
            Step::More { permille } => assert!(permille <= 1000),
            Step::Done(JobOutcome::Marked(marked)) => break marked,
            Step::Done(_) => panic!(),
        }
    };
    assert_eq!(marked.dead.iter().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(marked.kept_bytes, 2 * 28 + 8, "what the root reaches, length fields included");
    let f = commit(&mut shelf, &[(0, b"", &[2])]);
    let marked = mark(&disk, Mark::extend("f".into(), marked, f));
    assert_eq!((marked.f, marked.dead.len(), marked.kept.len()), (f, 0, 5));
}

#[test]
fn what_is_moved_is_counted_and_what_is_abandoned_leaves_nothing() {
    let disk = MemDisk::new();
    let mut shelf = Shelf::create(&disk, "f").unwrap();
    let large = vec![7; 3_000_000];
    commit(&mut shelf, &[(0, b"", &[1]), (1, &large, &[]), (2, &large, &[])]);
    commit(&mut shelf, &[(1, &large, &[])]);
    let mut job = Job::Build(Build::new("f".into(), Generation(2), Seq(2), Seq(2), "g".into()));
    let (mut moved, mut most) = (0, 0);
    while let Step::More { .. } = job.step(&disk).unwrap() {
        assert!(job.moved() >= moved, "{moved} became {}", job.moved());
        most = most.max(job.moved() - moved);
        moved = job.moved();
    }
    // The whole file is read, what is kept is read by both walks, written, and read back.
    let (file, base) = (shelf.tip().offset, get(&disk, "g").len() as u64);
    assert!((file + 3 * base..file + 5 * base).contains(&moved), "{moved} of {file} and {base}");
    assert!(most <= 7_000_000, "a step of {most} bytes can't be paced");
    let mut job = Job::Build(Build::new("f".into(), Generation(2), Seq(2), Seq(2), "h".into()));
    while !disk.exists("h").unwrap() {
        assert!(matches!(job.step(&disk), Ok(Step::More { .. })));
    }
    job.abandon(&disk);
    assert!(!disk.exists("h").unwrap());
}

/// The syncs of commits wait behind what a build has left to sync. A tool has no commits, and its disk sees to it.
#[test]
fn a_node_syncs_a_base_as_it_grows_and_a_tool_when_it_is_whole() {
    let disk = MemDisk::new();
    let mut shelf = Shelf::create(&disk, "f").unwrap();
    let refs: Vec<u64> = (1..50).collect();
    commit(&mut shelf, &[(0, b"", &refs)]);
    for oid in refs {
        commit(&mut shelf, &[(oid, &[1; 100_000], &[])]);
    }
    let (from, tip) = (get(&disk, "f"), shelf.tip().seq);
    let base_of = |build: Build| {
        let disk = TestDisk::default();
        disk.put("f", &from);
        let (mut job, mut unsynced_max) = (Job::Build(build), 0);
        loop {
            let step = job.step(&disk).unwrap();
            let written = if disk.exists("g").unwrap() { disk.contents("g") } else { Vec::new() };
            let durable = disk.crashed(Keep::Nothing, true);
            if let Step::Done(_) = step {
                assert!(durable.contents("g") == written, "it is done before it is durable");
                return (written, unsynced_max);
            }
            if !written.is_empty() {
                unsynced_max = unsynced_max.max(written.len() - durable.contents("g").len());
            }
        }
    };
    let (base, unsynced_max) = base_of(Build::new("f".into(), Generation(2), tip, tip, "g".into()));
    assert!(unsynced_max <= 1 << 20, "{unsynced_max} bytes at once");
    let (whole, unsynced_max) = base_of(Build::whole("f".into(), "g".into()));
    assert!(whole == base, "not the same bytes");
    assert!(unsynced_max > 4 << 20, "{unsynced_max} bytes at once");
}

#[test]
fn a_pack_that_cannot_be_says_why() {
    let disk = MemDisk::new();
    let mut shelf = Shelf::create(&disk, "f").unwrap();
    assert!(matches!(build(&disk, 0, 0), Err(JobError::NoRoot { p: Seq(0) })));
    commit(&mut shelf, &[(1, b"", &[])]);
    assert!(matches!(build(&disk, 1, 1), Err(JobError::NoRoot { .. })));
    commit(&mut shelf, &[(0, b"", &[1 << 40]), (1 << 40, b"far away", &[])]);
    assert!(matches!(build(&disk, 1, 2), Err(JobError::NoRoot { .. })));
    assert!(matches!(build(&disk, 2, 3), Err(JobError::NoSuchSeq { wanted: Seq(3), .. })));
    assert!(matches!(
        build(&disk, 2, 2),
        Err(JobError::MapTooLarge { oid, .. }) if oid == Oid(1 << 40)
    ));
    let missing = Job::Open("none".into()).run(&disk);
    assert!(matches!(missing, Err(JobError::Shelf(shelf::ShelfError::Io(_)))));
    assert!(matches!(Job::Open("f".into()).run(&disk), Ok(JobOutcome::Opened(_))));
    // the job proves what it reads
    let mut bytes = get(&disk, "f");
    let end = bytes.len();
    bytes[end - 30] ^= 1;
    put(&disk, "f", &bytes);
    assert!(matches!(build(&disk, 2, 2), Err(JobError::Shelf(_))));
}

#[test]
fn records_larger_than_every_buffer_are_carried_over() {
    let disk = MemDisk::new();
    let mut shelf = Shelf::create(&disk, "f").unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 3) as u8).collect();
    commit(&mut shelf, &[(0, b"", &[1, 2]), (1, &large, &[3]), (2, b"two", &[])]);
    commit(&mut shelf, &[(3, &large[..40_000], &[]), (4, b"", &[])]);
    build(&disk, 1, 2).unwrap();
    let base = base_of(&get(&disk, "g"));
    assert_eq!(oids(&base), [0, 1, 2, 3, 4]);
    assert_eq!(base[1].1, record(1, &large, &[3]));
    assert_eq!(base[3].1, record(3, &large[..40_000], &[]));
}
