//! A crash at every change of a disk: enumerated, not drawn.
//!
//! An *operation* is something that a node does to its disk, performed by the production code on the simulated disk. It
//! is run once to count its changes: writes, truncations, syncs, creations, renames, removals, links, directory syncs.
//! Then it is run again for every one of them, and the crash comes before that change; and once more with the crash
//! after the last, when all was acknowledged. Each of these *points* is continued with every *fate* of what was not
//! synced (`sim::disk::crash::Fate`). Then the production code starts on what is left, and the operation's invariant is
//! checked on what it made of it. Two things more are checked there, of every operation:
//!
//! * What recovery has said is durable: the power fails directly after it, and the next start says no less.
//! * Recovery can itself be interrupted: a crash before each change that recovery makes, with every fate again, is
//!   recovered from.
//!
//! `watched` is a disk that can lie. An enumeration that does not notice that a sync was left out would be worth
//! nothing: so each sync of each operation is left out once, and has to be missed (`tests/crash_enumeration.rs`).
//!
//! A torn last write at the point before the change is a write that was under way: the point after it has it unsynced.

pub mod cluster;
pub mod content;
pub mod files;
pub mod generations;
pub mod raft_log;
pub mod watched;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use packmaster::storage::Disk;

use crate::sim::disk::Medium;
use crate::sim::disk::crash::Fate;
use watched::{Lies, Watched};

/// More changes than any operation should make.
const CHANGES_MAX: u32 = 100_000;

/// With more bytes than this on the disk, crashes during recovery are not followed: that would be for the bytes' sake.
const LONG: usize = 1 << 20;

/// What a check is told of the crash.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// How far the operation had said that it was durably done; after a recovery, what that said.
    pub acked: u64,
    /// Is it certain that what was written first was kept first?
    pub ordered: bool,
    /// Counts the starts on this disk; a later start has a later clock.
    pub start: u64,
}

type Before = dyn Fn(&Arc<dyn Disk>) -> anyhow::Result<()> + Send + Sync;
type Act = dyn Fn(&Arc<dyn Disk>, &mut u64) -> anyhow::Result<()> + Send + Sync;
type Check = dyn Fn(&Arc<dyn Disk>, &Crash) -> anyhow::Result<u64> + Send + Sync;

pub struct Operation {
    pub name: &'static str,
    /// What is there before, all of it durable.
    pub before: Box<Before>,
    /// Performs it; raises the number with what is durably done.
    pub act: Box<Act>,
    /// Recovers, checks, and says how much is durably done.
    pub check: Box<Check>,
}

/// Every operation.
pub fn operations() -> Vec<Operation> {
    let mut all = files::operations();
    all.extend(generations::operations());
    all.extend(raft_log::operations());
    all
}

/// What was enumerated of one operation.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Crash points: one before each change, and one after the last.
    pub points: u64,
    /// Points continued with a fate.
    pub crashes: u64,
    /// Crashes during the recovery from those.
    pub in_recovery: u64,
    pub millis: u64,
}

/// Enumerates `operations` on `threads` threads. A tally each, or what was violated.
pub fn enumerate(operations: &[Operation], threads: usize) -> Vec<Result<Tally, String>> {
    let watched: Vec<Result<Vec<String>, String>> =
        operations.iter().map(|operation| changes(operation, &[])).collect();
    let mut points = Vec::new();
    for (index, changes) in watched.iter().enumerate() {
        let count = changes.as_ref().map_or(0, |changes| changes.len() + 1);
        points.extend((0..count).map(|point| (index, point)));
    }
    let results: Vec<Result<Vec<String>, String>> = watched;
    let tallies: Mutex<Vec<Result<Tally, String>>> = Mutex::new(
        results.iter().map(|changes| changes.clone().map(|_| Tally::default())).collect(),
    );
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(index, point)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let done = at_point(&operations[index], point as u32, &[], Depth::All);
                    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
                    let Ok(tally) = &mut tallies[index] else { continue };
                    match done {
                        Ok((crashes, in_recovery)) => {
                            tally.points += 1;
                            tally.crashes += crashes;
                            tally.in_recovery += in_recovery;
                            tally.millis += begun.elapsed().as_millis() as u64;
                        }
                        Err(why) => {
                            let changes = results[index].as_deref().unwrap_or_default();
                            let before = changes.get(point).map_or("the end", String::as_str);
                            tallies[index] = Err(format!("crash before {before}: {why}"));
                        }
                    }
                }
            });
        }
    });
    tallies.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The changes that the operation makes, in words.
pub fn changes(operation: &Operation, lies: &[usize]) -> Result<Vec<String>, String> {
    let run = crashed(operation, CHANGES_MAX, lies)?;
    match run.result {
        Ok(()) => Ok(run.changes),
        Err(error) => Err(format!("fails without a crash: {error:#}")),
    }
}

/// Is it noticed anywhere that these changes, all of them syncs, were not done? Then how.
pub fn lies_are_noticed(operation: &Operation, lies: &[usize]) -> Option<String> {
    let count = match changes(operation, lies) {
        Ok(changes) => (changes.len() - lies.len()) as u32,
        Err(why) => return Some(why),
    };
    // The later a crash, the more had been acknowledged.
    let at = |point: u32| at_point(operation, point, lies, Depth::Recovery).err();
    (0..=count).rev().find_map(at)
}

/// How far the consequences of a crash are followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Depth {
    /// Recovery, and a loss of power directly after it.
    Recovery,
    /// And crashes during recovery.
    All,
}

/// All fates at one point. The numbers of crashes, and of crashes in recoveries.
fn at_point(
    operation: &Operation,
    point: u32,
    lies: &[usize],
    depth: Depth,
) -> Result<(u64, u64), String> {
    let Run { medium, acked, .. } = crashed(operation, point, lies)?;
    let fates = medium.lock().fates();
    let depth = if medium.lock().bytes() > LONG { Depth::Recovery } else { depth };
    let mut in_recovery = 0;
    for fate in &fates {
        let story = |why: String| format!("{fate:?}: {why}");
        let medium = medium.fork();
        medium.lock().crash(*fate);
        let crash = Crash { acked, ordered: fate.is_ordered(), start: 1 };
        in_recovery += after(operation, &medium, crash, depth).map_err(story)?;
    }
    Ok((fates.len() as u64, in_recovery))
}

/// Everything that follows from one crash. The number of crashes during its recovery.
fn after(
    operation: &Operation,
    medium: &Medium,
    crash: Crash,
    depth: Depth,
) -> Result<u64, String> {
    let recovered = medium.fork();
    let (said, changes) = recover(operation, &recovered, crash, None)?;
    let said = said.ok_or("recovery ends without a word")?;
    // What it said, it has to say again.
    recovered.lock().crash(Fate::LoseAll);
    let (again, _) = recover(operation, &recovered, Crash { acked: said, start: 2, ..crash }, None)
        .map_err(|why| format!("recovered, then the power failed: {why}"))?;
    if again.is_none_or(|again| again < said) {
        return Err(format!("recovery said {said}, and after a power failure {again:?}"));
    }
    let mut crashes = 0;
    let changes = if depth == Depth::All { changes } else { 0 };
    for change in 0..changes {
        let interrupted = medium.fork();
        recover(operation, &interrupted, crash, Some(change))
            .map_err(|why| format!("change {change} of recovery: {why}"))?;
        let fates = interrupted.lock().fates();
        for second in fates {
            let medium = interrupted.fork();
            medium.lock().crash(second);
            let ordered = crash.ordered && second.is_ordered();
            recover(operation, &medium, Crash { ordered, start: 2, ..crash }, None)
                .map_err(|why| format!("{second:?} before change {change} of recovery: {why}"))?;
            crashes += 1;
        }
    }
    Ok(crashes)
}

/// Starts on what is left. With a fuse, recovery may come to nothing; else it has to succeed. What it said, if it came
/// to an end, and the number of changes it made.
fn recover(
    operation: &Operation,
    medium: &Medium,
    crash: Crash,
    fuse: Option<u32>,
) -> Result<(Option<u64>, u32), String> {
    let disk: Arc<dyn Disk> = medium.mount();
    medium.lock().set_fuse(Some(fuse.unwrap_or(CHANGES_MAX)));
    let checked = no_panic(|| (operation.check)(&disk, &crash));
    let platter = medium.lock();
    let made = CHANGES_MAX - platter.fuse_left().unwrap_or_default().min(CHANGES_MAX);
    match checked {
        _ if platter.is_broken() && fuse.is_some() => Ok((None, made)),
        Ok(Ok(said)) => Ok((Some(said), made)),
        Ok(Err(why)) => Err(format!("{why:#}")),
        Err(panic) => Err(panic),
    }
}

struct Run {
    medium: Medium,
    acked: u64,
    result: anyhow::Result<()>,
    changes: Vec<String>,
}

/// Runs the operation up to the crash; the disk's fate is still open.
fn crashed(operation: &Operation, point: u32, lies: &[usize]) -> Result<Run, String> {
    let medium = Medium::new(0);
    let watched = Watched::new(medium.mount());
    let disk: Arc<dyn Disk> = watched.clone();
    (operation.before)(&disk).map_err(|error| format!("cannot be prepared: {error:#}"))?;
    medium.lock().settle();
    medium.lock().set_fuse(Some(point));
    watched.begin(Lies::About(lies.to_vec()));
    let mut acked = 0;
    let result = no_panic(|| (operation.act)(&disk, &mut acked))?;
    if !medium.lock().is_broken() {
        result.as_ref().map_err(|error| format!("fails without a crash: {error:#}"))?;
    }
    Ok(Run { medium, acked, result, changes: watched.changes() })
}

fn no_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        format!("a panic: {}", text.unwrap_or_default())
    })
}
