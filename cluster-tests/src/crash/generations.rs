//! What a node does to come into a new generation: build or fetch the base, name it, verify it, put its own tail on it,
//! make it current, remove the old one. The tasks and jobs are production's, in production's order.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use packmaster::node::core::FIRST;
use packmaster::pack::blocks::{Check, Checked, Lister};
use packmaster::pack::{Blocks, Build, Job, JobOutcome};
use packmaster::shelf::{self, Shelf};
use packmaster::storage::mem::MemDisk;
use packmaster::storage::task::{CURRENT, DiskTask};
use packmaster::storage::{Disk, DiskFile};
use packmaster::types::{Generation, Seq};

use super::Operation;
use super::content::{History, LARGE, put_current, read, start_node, started};
use super::files::run;

const BUILDING: &str = "building.durus";
const FETCHING: &str = "fetching.durus";
const SECOND: &str = "g00000002.durus";
/// Where the pack of these tests begins and where it cuts.
const P: u64 = 3;
const F: u64 = 5;
/// Transactions after the cut.
const TAIL: u64 = 2;

pub fn operations() -> Vec<Operation> {
    vec![
        flip(),
        pack("pack: build, name, follow, flip, remove", TAIL),
        pack("pack: build, name, flip, remove", 0),
        fetch("fetch: blocks, name, follow, flip, remove", TAIL),
        fetch("fetch: blocks, name, flip, remove", 0),
    ]
}

/// A file of the first generation, and what becomes of it.
struct Generations {
    old: History,
    /// The second one's base, and whole.
    base: Vec<u8>,
    new: Vec<u8>,
}

fn generations(tail: u64) -> Generations {
    let old = History::of(F + tail - 1, LARGE);
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    put_current(&*disk, &old.bytes).expect("memory");
    build(&disk).expect("a base can be built");
    let base = read(&*disk, BUILDING).expect("built");
    change(&disk, BUILDING, &old, &mut 0).expect("nothing crashes");
    let new = read(&*disk, CURRENT).expect("a current file");
    assert!(new.starts_with(&base) && (new.len() > base.len()) == (tail > 0));
    Generations { old, base, new }
}

fn build(disk: &Arc<dyn Disk>) -> anyhow::Result<()> {
    let (file, to) = (FIRST.to_string(), BUILDING.to_string());
    let build = Build::new(file, Generation(2), Seq(P), Seq(F), to);
    match Job::Build(build).run(&**disk)? {
        JobOutcome::Built(_) => Ok(()),
        _ => bail!("a build gave something else"),
    }
}

/// The base is there under a temporary name; everything after that. 1: flipped, 2: the old file is gone.
fn change(disk: &Arc<dyn Disk>, from: &str, old: &History, acked: &mut u64) -> anyhow::Result<()> {
    let (from, to) = (from.to_string(), SECOND.to_string());
    run(&**disk, vec![DiskTask::Rename { from, to }])?;
    let mut next = match Job::Open(SECOND.to_string()).run(&**disk)? {
        JobOutcome::Opened(opened) if opened.torn.is_none() => opened.shelf,
        _ => bail!("the base is torn"),
    };
    let offset = next.tip().offset;
    let tail = rechained(&mut next, old);
    let file: Arc<dyn DiskFile> = next.file();
    let mut tasks = vec![DiskTask::Flip { target: SECOND.to_string() }];
    if !tail.is_empty() {
        tasks.insert(0, DiskTask::Append { file, offset, bytes: tail.into() });
    }
    run(&**disk, tasks)?;
    *acked = 1;
    run(&**disk, vec![DiskTask::Remove { names: vec![FIRST.to_string()] }])?;
    *acked = 2;
    Ok(())
}

fn rechained(next: &mut Shelf, old: &History) -> Vec<u8> {
    let mut tail = Vec::new();
    for seq in F..old.tip().seq.0 {
        let built = shelf::rechain(&next.tip().chain, &old.part(seq, seq + 1));
        let tx = shelf::parse(&built.bytes).expect("our own transaction");
        tail.extend_from_slice(&built.bytes);
        next.append(&tx, built.bytes);
    }
    tail
}

/// The current file is one generation or the other, whole; the number of the one it is.
fn which(disk: &Arc<dyn Disk>, nth: u64, of: &Generations) -> anyhow::Result<u64> {
    let found = started(disk, nth)?;
    ensure!(!found.recovering, "an unfinished change of generation was taken for damage");
    match found.checked.generation() {
        1 if found.bytes == of.old.bytes => Ok(1),
        2 if found.bytes == of.new => Ok(2),
        other => bail!("the current file, of generation {other}, is not whole"),
    }
}

fn flip() -> Operation {
    let of = Arc::new(generations(TAIL));
    let before = of.clone();
    Operation {
        name: "flip",
        before: Box::new(move |disk| {
            put_current(&**disk, &before.old.bytes)?;
            super::content::put(&**disk, SECOND, &before.new)
        }),
        act: Box::new(|disk, acked| {
            run(&**disk, vec![DiskTask::Flip { target: SECOND.to_string() }])?;
            *acked = 1;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let flipped = which(disk, crash.start, &of)? - 1;
            ensure!(flipped >= crash.acked, "it was flipped, and is back");
            Ok(flipped)
        }),
    }
}

/// Whatever was left, a node that is still in the old generation can do it all again, with the same result.
fn finish(disk: &Arc<dyn Disk>, nth: u64, of: &Generations, acked: u64) -> anyhow::Result<u64> {
    let generation = which(disk, nth, of)?;
    ensure!(generation == 2 || acked == 0, "it was flipped, and is back");
    if generation == 1 {
        build(disk).context("building again")?;
        ensure!(read(&**disk, BUILDING)? == of.base, "built again, the base is another");
        change(disk, BUILDING, &of.old, &mut 0).context("changing again")?;
        start_node(disk, nth)?;
        ensure!(which(disk, nth, of)? == 2, "changed again, it is not current");
    }
    ensure!(acked < 2 || !disk.exists(FIRST)?, "the old file was removed, and is there");
    Ok(if disk.exists(FIRST)? { 1 } else { 2 })
}

fn pack(name: &'static str, tail: u64) -> Operation {
    let of = Arc::new(generations(tail));
    let (before, doing) = (of.clone(), of.clone());
    Operation {
        name,
        before: Box::new(move |disk| put_current(&**disk, &before.old.bytes)),
        act: Box::new(move |disk, acked| {
            build(disk)?;
            change(disk, BUILDING, &doing.old, acked)
        }),
        check: Box::new(move |disk, crash| finish(disk, crash.start, &of, crash.acked)),
    }
}

/// Blocks in which the base comes: some of them.
const BLOCK_BYTES: u64 = 512;

fn blocks(base: &[u8]) -> Arc<Blocks> {
    let mut lister = Lister::new(BLOCK_BYTES);
    lister.push(base);
    Arc::new(lister.finish())
}

/// What is there of the base from before; every block that counts has to be what it should be.
fn begun(disk: &Arc<dyn Disk>, base: &[u8]) -> anyhow::Result<Checked> {
    let blocks = blocks(base);
    if !disk.exists(FETCHING)? {
        run(&**disk, vec![DiskTask::Create { name: FETCHING.to_string() }])?;
        let (file, have) = (disk.open(FETCHING)?, vec![false; blocks.count() as usize]);
        return Ok(Checked { file, have });
    }
    let job = Job::Check(Check::new(FETCHING.to_string(), blocks.clone()));
    let JobOutcome::Checked(checked) = job.run(&**disk)? else { bail!("not a check") };
    let there = read(&**disk, FETCHING)?;
    for (block, _) in checked.have.iter().enumerate().filter(|(_, have)| **have) {
        let from = blocks.offset(block as u64) as usize;
        let to = from + blocks.len(block as u64) as usize;
        ensure!(there.get(from..to) == Some(&base[from..to]), "block {block} counts, and is not");
    }
    Ok(checked)
}

/// The base comes over the wire, in blocks, not in their order; only what is not there comes.
fn fetch_rest(disk: &Arc<dyn Disk>, base: &[u8]) -> anyhow::Result<()> {
    let blocks = blocks(base);
    let Checked { file, have } = begun(disk, base)?;
    let missing: Vec<u64> = (0..blocks.count()).filter(|it| !have[*it as usize]).collect();
    let (odd, even): (Vec<u64>, Vec<u64>) = missing.into_iter().partition(|block| block % 2 == 1);
    // Two at a time share their sync, as those do that wait together.
    for pair in [odd, even].concat().chunks(2) {
        let append = |block: &u64| {
            let offset = blocks.offset(*block);
            let bytes = &base[offset as usize..(offset + blocks.len(*block)) as usize];
            let bytes = bytes::Bytes::copy_from_slice(bytes);
            DiskTask::Append { file: file.clone(), offset, bytes }
        };
        run(&**disk, pair.iter().map(append).collect())?;
    }
    ensure!(read(&**disk, FETCHING)? == base, "fetched, the base is another");
    Ok(())
}

/// A fetch that goes on where it was.
fn finish_fetch(
    disk: &Arc<dyn Disk>,
    nth: u64,
    of: &Generations,
    acked: u64,
) -> anyhow::Result<u64> {
    if which(disk, nth, of)? == 1 {
        ensure!(acked == 0, "it was flipped, and is back");
        fetch_rest(disk, &of.base).context("fetching the rest")?;
        change(disk, FETCHING, &of.old, &mut 0).context("changing again")?;
        start_node(disk, nth)?;
    }
    finish(disk, nth, of, acked)
}

fn fetch(name: &'static str, tail: u64) -> Operation {
    let of = Arc::new(generations(tail));
    assert!(blocks(&of.base).count() > 4, "a base of {} bytes", of.base.len());
    let (before, doing) = (of.clone(), of.clone());
    Operation {
        name,
        before: Box::new(move |disk| put_current(&**disk, &before.old.bytes)),
        act: Box::new(move |disk, acked| {
            fetch_rest(disk, &doing.base)?;
            change(disk, FETCHING, &doing.old, acked)
        }),
        check: Box::new(move |disk, crash| finish_fetch(disk, crash.start, &of, crash.acked)),
    }
}
