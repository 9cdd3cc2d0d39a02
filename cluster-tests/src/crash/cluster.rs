//! The same of whole clusters: a script, and a crash of each node at every change of its disk while the script runs.
//!
//! The script is run once without a crash, and must come to what it is for; this counts the changes of each disk. Then it
//! runs again for every node and every change, with the crash there. The node comes back, after a moment or after the
//! others had the time to elect another; the script goes on, and all judges of the simulator judge the run: the
//! ledger's properties at every step, in the end a commit on every node, equal files, and the history.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::sim::disk::crash::Fate;
use crate::sim::world::script::{CrashAt, Script, Scripted, Step, Who, run};

/// A seed whose timing brings a script to what it is for is found among so many.
const SEEDS_MAX: u64 = 60;
/// Back at once, or after the others have gone on without it: one after the other, by the number of the change.
const DOWN_US: [u64; 2] = [5_000, 600_000];

/// What a kill and the loss of everything unsynced leave open.
pub const OTHER_FATES: [Fate; 6] = [
    Fate::FilesOnly,
    Fate::NamesOnly,
    Fate::TornMiddle,
    Fate::TornHead,
    Fate::Hollow,
    Fate::HollowTail,
];

pub const SCRIPTS: &[Script] = {
    use Step::*;
    &[
        Script {
            name: "start, adopt an import, commit",
            steps: &[Import, Commits(3), Equal],
            reaches: &["commit acknowledged"],
        },
        Script {
            name: "commits",
            steps: &[Commits(4), Arm, Commits(6), Equal],
            reaches: &["commit acknowledged"],
        },
        Script {
            name: "divergent tail, cut back",
            steps: &[Commits(4), Busy(3), Arm, CutOff(Who::Master), Busy(4), Rest, Back, Equal],
            reaches: &["orphan made"],
        },
        Script {
            name: "promote",
            steps: &[Commits(4), Arm, Promote, Commits(2), Equal],
            reaches: &["election: promote"],
        },
        Script {
            name: "pack, switch, flip",
            steps: &[Commits(6), Arm, Pack, Switched, Commits(2), Equal],
            reaches: &["generation switch"],
        },
        Script {
            name: "away during a pack, tip after the cut: local rebuild",
            steps: &[
                Commits(6),
                Pack,
                PackSealed,
                Down(Who::Slave),
                Switched,
                Commits(2),
                Arm,
                Back,
                Equal,
            ],
            reaches: &["local rebuild"],
        },
        Script {
            name: "away before the cut: tail fetch, rebuild",
            steps: &[
                Commits(6),
                Down(Who::Slave),
                Commits(3),
                Pack,
                Switched,
                Commits(2),
                Arm,
                Back,
                Equal,
            ],
            reaches: &["tail fetch", "local rebuild"],
        },
        Script {
            name: "away over two packs: base fetch",
            steps: &[
                Commits(6),
                Down(Who::Slave),
                Commits(3),
                Pack,
                Switched,
                Commits(2),
                Pack,
                Switched,
                ForgetFirst,
                Commits(2),
                Arm,
                Back,
                Equal,
            ],
            reaches: &["base fetch"],
        },
        Script {
            name: "Raft log compaction",
            steps: &[Commits(4), RaftIndex(508), Arm, RaftIndex(514), Compacted, Commits(2), Equal],
            reaches: &["raft logs compacted"],
        },
    ]
};

/// What was enumerated of one script.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// Changes of each node's disk.
    pub changes: Vec<u32>,
    pub runs: u64,
    /// The fate could not differ from a kill at that change.
    pub moot: u64,
    /// Runs in which a fetch of a base went on after the crash.
    pub resumed: u64,
    pub millis: u64,
}

struct Point {
    script: usize,
    seed: u64,
    crash: CrashAt,
}

/// Enumerates every script with `fates`, on `threads` threads; of the changes every `stride`th.
pub fn enumerate(fates: &[Fate], stride: usize, threads: usize) -> Vec<Result<Tally, String>> {
    let first: Vec<Result<(u64, Scripted), String>> = SCRIPTS.iter().map(without_crash).collect();
    let mut points = Vec::new();
    for (script, first) in first.iter().enumerate() {
        let Ok((seed, first)) = first else { continue };
        for (node, changes) in first.changes.iter().enumerate() {
            for change in (0..*changes).step_by(stride) {
                let down_us = DOWN_US[(change as usize / stride) % DOWN_US.len()];
                points.extend(fates.iter().map(|fate| Point {
                    script,
                    seed: *seed,
                    crash: CrashAt { node, change, fate: *fate, down_us },
                }));
            }
        }
    }
    let tallies = first
        .into_iter()
        .map(|first| first.map(|(_, first)| Tally { changes: first.changes, ..Tally::default() }));
    let tallies = Mutex::new(tallies.collect::<Vec<_>>());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let scripted = run(&SCRIPTS[point.script], point.seed, Some(point.crash));
                    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
                    let Ok(tally) = &mut tallies[point.script] else { continue };
                    tally.runs += u64::from(scripted.crashed);
                    tally.moot += u64::from(!scripted.crashed);
                    let resumed = scripted.counts.contains_key("fetch resumed after a crash");
                    tally.resumed += u64::from(resumed);
                    tally.millis += begun.elapsed().as_millis() as u64;
                    if let Some(why) = &scripted.violation {
                        let (seed, crash) = (point.seed, point.crash);
                        let tail = scripted.tail(150);
                        tallies[point.script] =
                            Err(format!("seed {seed}, {crash:?}: {why}\n{tail}"));
                    }
                }
            });
        }
    });
    tallies.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The first seed with which the script comes to what it is for, and how that went.
fn without_crash(script: &Script) -> Result<(u64, Scripted), String> {
    let mut missing = Vec::new();
    for seed in 0..SEEDS_MAX {
        let scripted = run(script, seed, None);
        if let Some(why) = &scripted.violation {
            return Err(format!("without a crash, seed {seed}: {why}\n{}", scripted.tail(150)));
        }
        let count = |what: &&str| scripted.counts.get(what).copied().unwrap_or(0);
        missing = script.reaches.iter().copied().filter(|what| count(what) == 0).collect();
        if missing.is_empty() {
            return Ok((seed, scripted));
        }
    }
    Err(format!("with no seed below {SEEDS_MAX} it reaches {missing:?}"))
}
