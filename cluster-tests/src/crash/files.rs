//! What a node does to its own file: identity, import, adoption, appends, promises, cut-backs, torn tails.

use std::sync::Arc;

use anyhow::{Context, ensure};
use packmaster::node::{identity, prepare};
use packmaster::storage::task::{CURRENT, DiskTask, RECOVERING, perform};
use packmaster::storage::{Disk, DiskFile, loss, promise};
use packmaster::types::{Epoch, NodeId};

use super::content::{
    Found, History, LARGE, expect_prefix, plain_file, put, put_current, read, start_born,
    start_node, started,
};
use super::{Crash, Operation};
use crate::sim::parse;

pub fn operations() -> Vec<Operation> {
    let mut all = vec![
        make_identity(),
        first_start(),
        import(),
        start_empty(),
        start_torn(),
        start_hollow(),
        start_damaged(),
        start_anew(),
        start_anew_again(),
    ];
    all.extend([append("append", LARGE, 1), append("append of a few bytes", 5, 1)]);
    all.extend([append("append, three in a batch", LARGE, 3), append_and_promise()]);
    all.extend([promise_first(), promise_again(), cut_back()]);
    all.extend([create(), rename(), remove()]);
    all
}

/// Performs tasks as a node's disk thread does; the first failure ends it.
pub fn run(disk: &dyn Disk, tasks: Vec<DiskTask>) -> anyhow::Result<()> {
    let tasks = tasks.into_iter().enumerate().map(|(number, task)| (number as u64, task));
    for (_, result) in perform(disk, tasks.collect()) {
        result?;
    }
    Ok(())
}

fn open(disk: &Arc<dyn Disk>) -> anyhow::Result<Arc<dyn DiskFile>> {
    Ok(disk.open(CURRENT)?)
}

// ---- a new directory ----

/// What is acknowledged is the uuid: a directory has one for ever, once it was told. (A process that was killed before
/// the directory's sync left the next one to tell a uuid whose file was a name in memory only; after a power failure
/// the disk would have had another one.)
fn make_identity() -> Operation {
    let make = |disk: &Arc<dyn Disk>| -> anyhow::Result<u64> {
        let known = identity::read_or_make(&**disk, "crashed", NodeId(1), identity::new_uuid)?;
        Ok(u64::from_be_bytes(known.disk_uuid[..8].try_into()?) | 1)
    };
    Operation {
        name: "identity: made",
        before: Box::new(|_| Ok(())),
        act: Box::new(move |disk, acked| {
            *acked = make(disk)?;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let uuid = make(disk)?;
            ensure!(crash.acked == 0 || crash.acked == uuid, "the disk has another uuid now");
            Ok(uuid)
        }),
    }
}

/// The copy gets its seal before its name. (It got it after, at the first start. A power failure in the middle of the
/// seal then left a file that looked like the operator's own torn one, and the node refused to start. And a process that
/// was killed between writing the seal and syncing it left the next one to make a file current whose seal was in memory
/// only.)
/// Identity, Raft log, data file, link, promise, and that all of it is there: wherever a first start is interrupted, the
/// next one goes on, and takes nothing of what is missing for lost.
fn first_start() -> Operation {
    let start = |disk: &Arc<dyn Disk>, acked: &mut u64| -> anyhow::Result<()> {
        let id = NodeId(1);
        let known = identity::read_or_make(&**disk, "crashed", id, identity::new_uuid)?;
        let doubts = start_born(disk, known.born)?;
        ensure!(doubts.is_empty(), "a first start was taken for a loss: {doubts}");
        identity::mark_born(&**disk, "crashed", id, known)?;
        *acked = 1;
        Ok(())
    };
    Operation {
        name: "first start: everything is born",
        before: Box::new(|_| Ok(())),
        act: Box::new(start),
        check: Box::new(move |disk, crash| {
            let known = identity::read_or_make(&**disk, "crashed", NodeId(1), identity::new_uuid)?;
            ensure!(crash.acked == 0 || known.born, "it was born, and is not any more");
            start(disk, &mut 0)?;
            Ok(1)
        }),
    }
}

fn import() -> Operation {
    let source = Arc::new(tempfile::NamedTempFile::new().expect("a temporary file"));
    let plain = plain_file();
    std::fs::write(source.path(), &plain).expect("a temporary file");
    let again = source.clone();
    Operation {
        name: "first start: import, adopt",
        before: Box::new(|_| Ok(())),
        act: Box::new(move |disk, acked| {
            prepare::import(&**disk, source.path())?;
            *acked = 1;
            start_node(disk, 0)?;
            *acked = 2;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let was_there = prepare::import(&**disk, again.path())?.is_none();
            ensure!(was_there || crash.acked == 0, "it was imported, and is gone");
            let found = started(disk, crash.start)?;
            ensure!(found.bytes.starts_with(&plain), "what was imported was changed");
            let seal = found.checked.seal();
            // Every node that imports the same file adopts it to the same bytes.
            ensure!(seal.start == plain.len(), "the seal is at {}, not at the end", seal.start);
            ensure!(seal.end == found.bytes.len(), "there is something after the seal");
            Ok(2)
        }),
    }
}

/// Every node of a cluster makes the same first file, else they would have nothing in common.
fn start_empty() -> Operation {
    Operation {
        name: "first start: an empty file",
        before: Box::new(|_| Ok(())),
        act: Box::new(start_once),
        check: Box::new(|disk, crash| {
            let found = started(disk, crash.start)?;
            ensure!(found.bytes == History::empty().bytes, "another first file than elsewhere");
            Ok(1)
        }),
    }
}

fn start_once(disk: &Arc<dyn Disk>, acked: &mut u64) -> anyhow::Result<()> {
    start_node(disk, 0)?;
    *acked = 1;
    Ok(())
}

// ---- what a start mends ----

const WHOLE: u64 = 3;

fn start_torn() -> Operation {
    let history = History::of(4, LARGE);
    let torn = history.bytes.len() - 700;
    let before = history.bytes[..torn].to_vec();
    Operation {
        name: "start: torn tail cut",
        before: Box::new(move |disk| put_current(&**disk, &before)),
        act: Box::new(start_once),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            ensure!(!found.recovering, "a torn tail was taken for damage");
            let last = history.tip().seq.0 - 1;
            ensure!(found.bytes == history.upto(last), "not cut where the tear is");
            let tail = &history.bytes[history.end(last) as usize..torn];
            ensure!(kept(disk, tail)?, "what was cut off is gone");
            Ok(1)
        }),
    }
}

/// A file that got its length and not its last sectors is torn, too.
fn start_hollow() -> Operation {
    let history = History::of(4, LARGE);
    let mut before = history.bytes.clone();
    let last = history.tip().seq.0 - 1;
    let begins = history.end(last) as usize;
    let hollow = (begins + 700).next_multiple_of(512);
    before[hollow..].fill(0);
    let file = before.clone();
    Operation {
        name: "start: hollow tail cut",
        before: Box::new(move |disk| put_current(&**disk, &file)),
        act: Box::new(start_once),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            ensure!(!found.recovering, "a hollow tail was taken for damage");
            ensure!(found.bytes == history.upto(last), "not cut where the tear is");
            ensure!(kept(disk, &before[begins..])?, "what was cut off is gone");
            Ok(1)
        }),
    }
}

/// A damaged file is cut only once it is known on the disk that the node has lost something.
fn start_damaged() -> Operation {
    let history = History::of(5, LARGE);
    let mut damaged = history.bytes.clone();
    damaged[history.end(WHOLE) as usize + 600] ^= 1;
    let before = damaged.clone();
    Operation {
        name: "start: damage kept aside",
        before: Box::new(move |disk| put_current(&**disk, &before)),
        act: Box::new(start_once),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            ensure!(found.recovering, "it lost transactions and looks sound");
            expect_loss(disk, damaged.len())?;
            ensure!(found.bytes == history.upto(WHOLE), "not cut where the damage is");
            let tail = &damaged[history.end(WHOLE) as usize..];
            ensure!(kept(disk, tail)?, "what was cut off is gone");
            Ok(1)
        }),
    }
}

/// The base is damaged: the node begins with a blank file, and knows that it has lost something before it does.
fn start_anew() -> Operation {
    anew("start: damaged base kept aside", "g00000001.durus")
}

/// And so is what took its place. Found by the soak (seed 6006203): a crash here left a link that pointed at nothing.
fn start_anew_again() -> Operation {
    anew("start: damaged blank kept aside", "g00000001-blank.durus")
}

fn anew(name: &'static str, file: &'static str) -> Operation {
    let mut damaged = History::of(2, LARGE).bytes;
    damaged[20] ^= 1;
    let before = damaged.clone();
    Operation {
        name,
        before: Box::new(move |disk| {
            promise::write(&**disk, Epoch(1))?;
            put(&**disk, file, &before)?;
            Ok(disk.set_link(CURRENT, file)?)
        }),
        act: Box::new(start_once),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            ensure!(found.recovering, "it lost everything and looks sound");
            expect_loss(disk, damaged.len())?;
            ensure!(found.bytes == History::empty().bytes, "the new file is not blank");
            let mut names = disk.list()?.into_iter().filter(|name| name != CURRENT);
            let kept = names.any(|name| read(&**disk, &name).is_ok_and(|bytes| bytes == damaged));
            ensure!(kept, "the damaged file is gone");
            Ok(1)
        }),
    }
}

/// It is known how much may have been acknowledged: without that it recovers with a new epoch only.
fn expect_loss(disk: &Arc<dyn Disk>, end: usize) -> anyhow::Result<()> {
    let loss = loss::read(&**disk, Epoch(99))?.context("nothing is known of a loss")?;
    ensure!(loss.end == end as u64, "a file of {end} bytes was damaged, and {loss:?} is known");
    Ok(())
}

/// Is there a file with this content under orphans/?
fn kept(disk: &Arc<dyn Disk>, content: &[u8]) -> anyhow::Result<bool> {
    for name in disk.list()?.iter().filter(|name| name.starts_with("orphans/")) {
        if read(&**disk, name)?.ends_with(content) {
            return Ok(true);
        }
    }
    Ok(false)
}

// ---- appends ----

const DURABLE: u64 = 3;

/// A crash that keeps what was written first can leave nothing that looks like damage.
fn expect_sound(found: &Found, crash: &Crash) -> anyhow::Result<()> {
    ensure!(!found.recovering || !crash.ordered, "an unfinished append was taken for damage");
    Ok(())
}

fn append(name: &'static str, len: usize, count: u64) -> Operation {
    let history = History::of(2, LARGE).commits(count, len, 2);
    let written = history.clone();
    let before = history.upto(DURABLE).to_vec();
    Operation {
        name,
        before: Box::new(move |disk| put_current(&**disk, &before)),
        act: Box::new(move |disk, acked| {
            let file = open(disk)?;
            let tasks = (DURABLE..DURABLE + count).map(|seq| DiskTask::Append {
                file: file.clone(),
                offset: written.end(seq),
                bytes: written.part(seq, seq + 1),
            });
            run(&**disk, tasks.collect())?;
            *acked = DURABLE + count;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            expect_sound(&found, crash)?;
            expect_prefix(&found, &history, crash.acked.max(DURABLE))?;
            Ok(found.seq())
        }),
    }
}

/// A promise is durable only after everything that was appended before it.
fn append_and_promise() -> Operation {
    let history = History::of(2, LARGE).commits(2, LARGE, 2);
    let written = history.clone();
    let before = history.upto(DURABLE).to_vec();
    Operation {
        name: "append, promise, append in a batch",
        before: Box::new(move |disk| {
            promise::write(&**disk, Epoch(1))?;
            put_current(&**disk, &before)
        }),
        act: Box::new(move |disk, acked| {
            let file = open(disk)?;
            let part = |seq: u64| DiskTask::Append {
                file: file.clone(),
                offset: written.end(seq),
                bytes: written.part(seq, seq + 1),
            };
            let promise = DiskTask::Promise { epoch: Epoch(7) };
            run(&**disk, vec![part(DURABLE), promise, part(DURABLE + 1)])?;
            *acked = DURABLE + 2;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let promised = promised(disk)?.context("the promise is gone")?;
            let found = started(disk, crash.start)?;
            expect_sound(&found, crash)?;
            let least = if promised == 7 { DURABLE + 1 } else { DURABLE };
            expect_prefix(&found, &history, crash.acked.max(least))?;
            ensure!(crash.acked <= DURABLE || promised == 7, "the promise went back to {promised}");
            Ok(if promised == 7 { found.seq() } else { DURABLE })
        }),
    }
}

// ---- promises ----

/// As production reads it; a parser of another author must agree.
fn promised(disk: &Arc<dyn Disk>) -> anyhow::Result<Option<u64>> {
    let promised = promise::read(&**disk)?.map(|epoch| epoch.0);
    if promised.is_some() {
        let parsed = parse::promise(&read(&**disk, "promise")?);
        ensure!(parsed == promised, "two readers of the promise differ: {parsed:?} {promised:?}");
    }
    Ok(promised)
}

/// (A promise was read whose file was a name in memory only, left by a killed process. And a power failure in the first
/// promise could leave a file as long as it should be that read as zeros: damaged in both copies, and the node could
/// never start again.)
fn promise_first() -> Operation {
    Operation {
        name: "promise, the first",
        before: Box::new(|_| Ok(())),
        act: Box::new(|disk, acked| {
            run(&**disk, vec![DiskTask::Promise { epoch: Epoch(5) }])?;
            *acked = 5;
            Ok(())
        }),
        check: Box::new(|disk, crash| {
            let promised = promised(disk)?;
            ensure!(matches!(promised, None | Some(5)), "promised {promised:?}");
            ensure!(promised.unwrap_or(0) >= crash.acked, "the promise {} is gone", crash.acked);
            Ok(promised.unwrap_or(0))
        }),
    }
}

fn promise_again() -> Operation {
    Operation {
        name: "promise, a second and third",
        before: Box::new(|disk| Ok(promise::write(&**disk, Epoch(5))?)),
        act: Box::new(|disk, acked| {
            for epoch in [6, 9] {
                run(&**disk, vec![DiskTask::Promise { epoch: Epoch(epoch) }])?;
                *acked = epoch;
            }
            Ok(())
        }),
        check: Box::new(|disk, crash| {
            let promised = promised(disk)?.context("the promise is gone")?;
            ensure!([5, 6, 9].contains(&promised), "nobody promised {promised}");
            ensure!(
                promised >= crash.acked,
                "promised {} and went back to {promised}",
                crash.acked
            );
            Ok(promised)
        }),
    }
}

// ---- cut back ----

const POINT: u64 = 2;
const ORPHAN: &str = "orphans/g00000001-seq3-5.orphan";
const HEADER: &str = "packmaster orphan 1\n\n";

/// A divergent tail is kept aside, then cut, then the common history goes on in its place.
fn cut_back() -> Operation {
    let old = History::of(4, LARGE);
    let new = old.clone().upto_seq(POINT).epoch(2).commits(1, LARGE, 9);
    let (before, onto) = (old.bytes.clone(), new.clone());
    Operation {
        name: "cut back, then append",
        before: Box::new(move |disk| put_current(&**disk, &before)),
        act: Box::new(move |disk, acked| {
            let file = open(disk)?;
            let offset = onto.end(POINT);
            let (keep_as, header) = (ORPHAN.to_string(), HEADER.to_string());
            run(&**disk, vec![DiskTask::CutBack { file: file.clone(), offset, keep_as, header }])?;
            *acked = 1;
            run(
                &**disk,
                vec![DiskTask::Append { file, offset, bytes: onto.part(POINT, POINT + 2) }],
            )?;
            *acked = 2;
            Ok(())
        }),
        check: Box::new(move |disk, crash| {
            let found = started(disk, crash.start)?;
            expect_sound(&found, crash)?;
            if found.bytes == old.bytes {
                ensure!(crash.acked == 0, "it was cut back, and is not");
                return Ok(0);
            }
            expect_prefix(&found, &new, if crash.acked == 2 { POINT + 2 } else { POINT })?;
            let orphan = read(&**disk, ORPHAN).context("it was cut, and the orphan is lost")?;
            let whole = [HEADER.as_bytes(), &old.bytes[old.end(POINT) as usize..]].concat();
            ensure!(orphan == whole, "it was cut, and the orphan is not whole");
            Ok(if found.seq() == POINT + 2 { 2 } else { 1 })
        }),
    }
}

// ---- names ----

fn create() -> Operation {
    Operation {
        name: "create",
        before: Box::new(|disk| put(&**disk, "other", b"other")),
        act: Box::new(|disk, acked| {
            run(&**disk, vec![DiskTask::Create { name: "fetching.durus".into() }])?;
            *acked = 1;
            Ok(())
        }),
        check: Box::new(|disk, crash| {
            ensure!(read(&**disk, "other")? == b"other", "another file was touched");
            let there = disk.exists("fetching.durus")?;
            ensure!(there || crash.acked == 0, "it was made, and is gone");
            Ok(u64::from(there && crash.acked == 1))
        }),
    }
}

fn rename() -> Operation {
    Operation {
        name: "rename",
        before: Box::new(|disk| put(&**disk, "building.durus", b"content")),
        act: Box::new(|disk, acked| {
            let (from, to) = ("building.durus".into(), "g00000002.durus".into());
            run(&**disk, vec![DiskTask::Rename { from, to }])?;
            *acked = 1;
            Ok(())
        }),
        check: Box::new(|disk, crash| {
            let renamed = disk.exists("g00000002.durus")?;
            ensure!(renamed || crash.acked == 0, "it was renamed, and is not");
            ensure!(renamed != disk.exists("building.durus")?, "it has two names or none");
            let name = if renamed { "g00000002.durus" } else { "building.durus" };
            ensure!(read(&**disk, name)? == b"content", "its content is gone");
            Ok(u64::from(renamed && crash.acked == 1))
        }),
    }
}

/// Of two files, and of the mark that a node is recovering: who is told that it is gone must not find it again.
fn remove() -> Operation {
    const NAMES: [&str; 2] = [RECOVERING, "g00000001.durus"];
    Operation {
        name: "remove",
        before: Box::new(|disk| {
            NAMES.iter().chain(&["other"]).try_for_each(|name| put(&**disk, name, b"content"))
        }),
        act: Box::new(|disk, acked| {
            let names = NAMES.iter().map(|name| name.to_string()).collect();
            run(&**disk, vec![DiskTask::Remove { names }])?;
            *acked = 1;
            Ok(())
        }),
        check: Box::new(|disk, crash| {
            ensure!(read(&**disk, "other")? == b"content", "another file was touched");
            for name in NAMES.iter().filter(|name| disk.exists(name).unwrap_or(true)) {
                ensure!(crash.acked == 0, "{name} was removed, and is there");
                ensure!(read(&**disk, name)? == b"content", "{name} lost its content");
            }
            Ok(crash.acked)
        }),
    }
}
