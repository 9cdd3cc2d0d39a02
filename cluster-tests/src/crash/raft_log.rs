//! The Raft log: made, appended to, compacted by a snapshot, rewritten for its garbage, repaired from its second copy.
//!
//! What is acknowledged is the number of records. A log must come back as what the first n records amount to, n being at
//! least what was acknowledged and at most what was begun. What they amount to is computed here, by a reader of Raft's
//! rules that shares no code with the log.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use packmaster::proto::control::{RaftEntry, RaftHardState, RaftRecord, RaftSnapshot};
use packmaster::raft::{RaftLog, Recovered};
use packmaster::storage::Disk;

use super::content::{put, read};
use super::{Crash, Operation};

const A: &str = "raft-a.log";
const B: &str = "raft-b.log";

pub fn operations() -> Vec<Operation> {
    vec![
        log("raft log: made, and three records", 0, records(3, 40), |_| Ok(())),
        log("raft log: records longer than sectors", 2, records(4, 1500), |_| Ok(())),
        log("raft log: entries replaced", 3, replaced(), |_| Ok(())),
        log("raft log: compaction by a snapshot", 4, compacted(), |_| Ok(())),
        rewritten(),
        log("raft log: repair, a is missing", 3, records(4, 40), |disk| Ok(disk.remove(A)?)),
        log("raft log: repair, b is missing", 3, records(4, 40), |disk| Ok(disk.remove(B)?)),
        log("raft log: repair, a bit of a is flipped", 3, records(4, 40), |disk| flip(disk, A)),
        log("raft log: repair, a bit of b is flipped", 3, records(4, 40), |disk| flip(disk, B)),
        log("raft log: repair, b is torn", 3, records(4, 40), |disk| {
            let file = disk.open(B)?;
            Ok(file.truncate(file.len()? - 7)?)
        }),
        log("raft log: repair, an unfinished rewrite", 3, records(4, 40), |disk| {
            put(disk, "raft-a.tmp", b"PMRAFT1")
        }),
    ]
}

/// A bit in the last third, which is in a record and in no header of the file.
fn flip(disk: &dyn Disk, name: &str) -> anyhow::Result<()> {
    let mut bytes = read(disk, name)?;
    let at = bytes.len() * 2 / 3;
    bytes[at] ^= 4;
    Ok(disk.open(name)?.write_at(0, &bytes)?)
}

fn entry(index: u64, term: u64, len: usize) -> RaftEntry {
    RaftEntry { index, term, data: Bytes::from(vec![index as u8; len]), ..RaftEntry::default() }
}

fn hard_state(term: u64, commit: u64) -> Option<RaftHardState> {
    Some(RaftHardState { term, vote: 1, commit })
}

/// A vote, an entry and a commit of the one before in each.
fn records(count: u64, len: usize) -> Vec<RaftRecord> {
    (1..=count)
        .map(|n| RaftRecord {
            hard_state: hard_state(n, n - 1),
            entries: vec![entry(n, n, len)],
            snapshot: None,
        })
        .collect()
}

/// A new leader's entries take the place of two that were not committed.
fn replaced() -> Vec<RaftRecord> {
    let mut all = records(1, 40);
    let entries = (2..=4).map(|index| entry(index, 1, 100)).collect();
    all.push(RaftRecord { entries, ..RaftRecord::default() });
    all.push(RaftRecord { hard_state: hard_state(2, 2), ..RaftRecord::default() });
    let entries = vec![entry(3, 2, 100), entry(4, 2, 100)];
    all.push(RaftRecord { hard_state: hard_state(2, 3), entries, snapshot: None });
    all
}

/// An entry that makes the file long enough to be rewritten, and is then replaced by a short one.
fn long() -> Vec<RaftRecord> {
    let mut all = records(1, 40);
    let entries = vec![entry(2, 1, 1_100_000)];
    all.push(RaftRecord { entries, ..RaftRecord::default() });
    for index in 2..=3 {
        let entries = vec![entry(index, 2, 100)];
        all.push(RaftRecord { hard_state: hard_state(2, index - 1), entries, snapshot: None });
    }
    all
}

/// A snapshot in the middle of the log, entries after it, and a snapshot of another's log beyond its end.
fn compacted() -> Vec<RaftRecord> {
    let snapshot = |index: u64, term: u64| {
        let data = Bytes::from(vec![index as u8; 700]);
        Some(RaftSnapshot { index, term, data, conf_state: None })
    };
    let mut all = records(4, 40);
    all.push(RaftRecord { snapshot: snapshot(3, 3), ..RaftRecord::default() });
    all.push(RaftRecord {
        hard_state: hard_state(5, 4),
        entries: vec![entry(5, 5, 40)],
        snapshot: None,
    });
    all.push(RaftRecord { snapshot: snapshot(20, 6), ..RaftRecord::default() });
    all
}

/// What is to come back after each number of records.
fn states(records: &[RaftRecord]) -> Vec<Recovered> {
    let mut states = vec![Recovered::default()];
    for record in records {
        let mut state = states.last().cloned().unwrap_or_default();
        if let Some(snapshot) = &record.snapshot {
            let agrees = state
                .entries
                .iter()
                .any(|entry| entry.index == snapshot.index && entry.term == snapshot.term);
            state.entries.retain(|entry| agrees && entry.index > snapshot.index);
            state.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = record.entries.first() {
            state.entries.retain(|entry| entry.index < first.index);
            state.entries.extend(record.entries.iter().cloned());
        }
        state.hard_state = record.hard_state.unwrap_or(state.hard_state);
        let covered = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        state.hard_state.commit = state.hard_state.commit.max(covered);
        states.push(state);
    }
    states
}

thread_local! {
    /// A log that is written on by the process that made it: only that one knows how long it was when it was new.
    static OPEN: RefCell<Option<RaftLog>> = const { RefCell::new(None) };
}

fn rewritten() -> Operation {
    const BEFORE: usize = 2;
    let records = long();
    let states = states(&records);
    let (first, rest) = (records[..BEFORE].to_vec(), records[BEFORE..].to_vec());
    Operation {
        name: "raft log: rewritten for its length",
        before: Box::new(move |disk| {
            let (mut log, _) = RaftLog::open(disk.clone())?;
            for record in &first {
                log.append(record)?;
            }
            OPEN.set(Some(log));
            Ok(())
        }),
        act: Box::new(move |_, acked| {
            let mut log = OPEN.take().context("opened before")?;
            *acked = BEFORE as u64;
            for record in &rest {
                log.append(record)?;
                *acked += 1;
            }
            Ok(())
        }),
        check: Box::new(move |disk, crash| check(disk, crash, BEFORE as u64, &states)),
    }
}

/// The first `before` records are there, then `spoilt`; the rest is appended, after the log was opened again.
fn log(
    name: &'static str,
    before: usize,
    records: Vec<RaftRecord>,
    spoil: fn(&dyn Disk) -> anyhow::Result<()>,
) -> Operation {
    let (first, rest) = (records[..before].to_vec(), records[before..].to_vec());
    let states = states(&records);
    Operation {
        name,
        before: Box::new(move |disk| {
            if first.is_empty() {
                return Ok(());
            }
            let (mut log, _) = RaftLog::open(disk.clone())?;
            for record in &first {
                log.append(record)?;
            }
            spoil(&**disk)
        }),
        act: Box::new(move |disk, acked| {
            let (mut log, _) = RaftLog::open(disk.clone())?;
            *acked = before as u64;
            for record in &rest {
                log.append(record)?;
                *acked += 1;
            }
            Ok(())
        }),
        check: Box::new(move |disk, crash| check(disk, crash, before as u64, &states)),
    }
}

fn check(
    disk: &Arc<dyn Disk>,
    crash: &Crash,
    before: u64,
    states: &[Recovered],
) -> anyhow::Result<u64> {
    let (_, recovered) = RaftLog::open(disk.clone())?;
    let least = crash.acked.max(before);
    ensure!(!recovered.fresh || least == 0, "{least} records were there, and it starts empty");
    let found = Recovered { repaired: None, fresh: false, ..recovered };
    // Where two numbers of records amount to the same, the greater counts.
    let Some(number) = states.iter().rposition(|state| *state == found) else {
        bail!("it came back as what was never written: {found:?}");
    };
    ensure!(number as u64 >= least, "{least} records were there, {number} came back");
    // Mended for good: both copies are the same, and nothing is to be mended the next time.
    let (_, again) = RaftLog::open(disk.clone())?;
    ensure!(again.repaired.is_none(), "mended twice: {:?}", again.repaired);
    ensure!(again == Recovered { fresh: false, ..found }, "read twice, it is not the same");
    ensure!(read(&**disk, A)? == read(&**disk, B)?, "the copies differ");
    Ok(number as u64)
}
