//! Does the simulator notice when a rule is broken? One seed after the other with the rule's switch on, until a run
//! reports a violation.
//!
//! What counts is a violation that the same seed does not show with every rule kept. Best is a property that a checker
//! of the simulator named; an assertion of the node itself, or of raft-rs, counts too and is told apart by where the
//! panic came from.

use std::cell::{Cell, RefCell};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use packmaster::mutants::{self, Mutant};

use crate::sim::faults::weight;
use crate::sim::world::script::{self, LATE_SEAL, LOST_ELSEWHERE, Script};
use crate::sim::{Options, run};

/// Not found out in a few hundred seeds: for the long hunt.
pub fn is_elusive(mutant: Mutant) -> bool {
    matches!(
        mutant,
        Mutant::GreatestSeqOnly
            | Mutant::RemovedNotRefused
            | Mutant::PackSurvivesElection
            | Mutant::FlipInTwoSteps
            | Mutant::RecoveringCounts
            | Mutant::AheadBelieved
            | Mutant::ConflictForgotten
            | Mutant::LocalNeverCut
            | Mutant::AppendWhileCutting
            | Mutant::LateMismatchTaken
            | Mutant::OldEpochReply
            | Mutant::HeldGoOnEarly
            | Mutant::HeldStillAsks
            | Mutant::HolesBeforeTold
            | Mutant::CutIdsKept
    )
}

/// How long a mutant may live.
#[derive(Clone, Copy)]
pub struct Limit {
    pub seeds: u64,
    pub time: Duration,
}

/// One mutant, and the circumstances in which its rule matters.
pub struct Hunt {
    pub mutant: Mutant,
    pub options: Options,
    /// What each seed runs in place of random faults, where these do not come to the schedule that the rule is for.
    pub script: Option<&'static Script>,
}

impl Hunt {
    /// A rule that matters seldom is hunted where it matters: where there are more packs, or longer tails to be cut.
    pub fn new(mutant: Mutant) -> Hunt {
        use Mutant as M;
        let usual = Options::default();
        let options = match mutant {
            M::RemovedNotRefused
            | M::MarkNotRechecked
            | M::DeadReferredTo
            | M::UncommittedPacked
            | M::BuiltBeforeCut => Options {
                clients: 8,
                every_us: Some(150_000),
                favour: vec![(weight::PACK, 60), (weight::PROMOTE, 30)],
                ..usual
            },
            M::PackSurvivesElection => Options {
                clients: 6,
                every_us: Some(100_000),
                favour: vec![(weight::PACK, 80), (weight::PROMOTE, 30)],
                ..usual
            },
            M::PackIdentityNotChecked => Options {
                clients: 6,
                every_us: Some(100_000),
                favour: vec![(weight::LATE, 150), (weight::PACK_AGAIN, 200), (weight::PROMOTE, 15)],
                ..usual
            },
            M::LateStartTaken | M::LateCancelTaken | M::LatePromoteTaken | M::LateSettingTaken => {
                Options {
                    clients: 1,
                    every_us: Some(100_000),
                    favour: vec![
                        (weight::LATE, 60),
                        (weight::PACK, 40),
                        (weight::PACK_AGAIN, 40),
                        (weight::PROMOTE, 40),
                        (weight::SETTING, 40),
                    ],
                    ..usual
                }
            }
            M::FirstBaseForGood => {
                Options { every_us: Some(400_000), favour: vec![(weight::ROT, 0)], ..usual }
            }
            M::FlipInTwoSteps => Options {
                clients: 1,
                every_us: Some(40_000),
                favour: vec![(weight::PACK, 40), (weight::CRASH_IN_DISK, 80)],
                ..usual
            },
            M::GreatestSeqOnly | M::AheadBelieved => Options {
                clients: 6,
                every_us: Some(60_000),
                favour: vec![(weight::CRASH, 40), (weight::CUT, 60), (weight::LAGGY, 30)],
                ..usual
            },
            M::AckBySeqOnly
            | M::LateCutTaken
            | M::CutLeftOut
            | M::AppendWhileCutting
            | M::LateMismatchTaken
            | M::OldEpochReply
            | M::CutStillDurable
            | M::CutIdsKept
            | M::AgainIsTold => Options {
                clients: 10,
                every_us: Some(200_000),
                favour: vec![(weight::CUT, 40), (weight::LOSSY, 20), (weight::STALL, 20)],
                ..usual
            },
            M::ForkMatches | M::CommitBeyondProved | M::ServedTooEarly => Options {
                clients: 8,
                every_us: Some(150_000),
                favour: vec![(weight::CUT, 40), (weight::CRASH, 20), (weight::LAGGY, 20)],
                ..usual
            },
            M::FenceWithoutMajority => Options {
                every_us: Some(200_000),
                favour: vec![(weight::SLOW_DISK, 40), (weight::CUT, 20), (weight::PROMOTE, 20)],
                ..usual
            },
            M::SuspectCounted
            | M::RecoveringCounts
            | M::CorruptionCutAsTorn
            | M::RecoveringAccused
            | M::LossForgotten => Options {
                every_us: Some(150_000),
                favour: vec![(weight::ROT, 60), (weight::PROMOTE, 30), (weight::CUT, 20)],
                ..usual
            },
            M::AmnesiacTakesPart
            | M::LostAcknowledged
            | M::WipedBelieved
            | M::SuspectTakes
            | M::SuspectConfirms
            | M::AccusedTakesPart
            | M::AmnesiaForgotten => Options {
                every_us: Some(150_000),
                favour: vec![
                    (weight::IMAGE, 30),
                    (weight::ROLLBACK, 30),
                    (weight::REPLACE, 10),
                    (weight::PROMOTE, 20),
                ],
                ..usual
            },
            // Whoever starts among others that go on.
            M::UnprovedConfirms
            | M::UnprovedVotes
            | M::ProvedWithoutLog
            | M::UnprovedTakes
            | M::ProvedUnheard => Options {
                every_us: Some(100_000),
                favour: vec![(weight::CRASH, 80), (weight::LAGGY, 20), (weight::PROMOTE, 20)],
                ..usual
            },
            M::OldRoundConfirms
            | M::ConfirmOfNewerEpoch
            | M::ReadJoinsRound
            | M::ToldWhenInFlight => Options {
                clients: 8,
                every_us: Some(150_000),
                favour: vec![(weight::LAGGY, 60), (weight::LOSSY, 40), (weight::CUT, 20)],
                ..usual
            },
            // What is refused since a pack would drop it is not refused any more when the pack is called off.
            M::ConflictForgotten => Options {
                clients: 8,
                every_us: Some(150_000),
                favour: vec![(weight::PACK, 60), (weight::LOSSY, 80)],
                refused_again_permille: 1000,
                ..usual
            },
            // Where commits are written while elections are asked after, on disks that take their time.
            M::UnsettledReported => Options {
                clients: 8,
                every_us: Some(100_000),
                favour: vec![
                    (weight::SLOW_DISK, 60),
                    (weight::LOSSY, 40),
                    (weight::PROMOTE, 60),
                    (weight::PACK, 20),
                ],
                ..usual
            },
            // Where elections come before every node has the first file.
            M::BaseNotCompared => Options {
                every_us: Some(60_000),
                favour: vec![(weight::LAGGY, 100), (weight::PROMOTE, 100), (weight::CUT, 20)],
                differing_files: true,
                ..usual
            },
            M::FailedSyncIgnored => {
                Options { every_us: Some(150_000), favour: vec![(weight::DISK_ERROR, 80)], ..usual }
            }
            // Of all that is asked for, only a pack can be refused once and done once.
            M::HeardTwice => Options {
                clients: 1,
                every_us: Some(150_000),
                favour: vec![(weight::LOSSY, 40), (weight::PACK, 60)],
                ..usual
            },
            // Where masters acknowledge alone, and lose mastership alive.
            M::LocalNeverCut | M::LostStillServed | M::HeldGoOnEarly | M::HeldStillAsks => {
                Options {
                    clients: 10,
                    every_us: Some(120_000),
                    favour: vec![
                        (weight::SETTING, 30),
                        (weight::CUT, 60),
                        (weight::STALL, 30),
                        (weight::LAGGY, 20),
                    ],
                    durability: Some("local"),
                    ..usual
                }
            }
            M::AllIsMajority | M::ShownIsTold | M::LocalAnnounced | M::AnnouncedBelieved => {
                Options {
                    clients: 6,
                    every_us: Some(120_000),
                    favour: vec![
                        (weight::SETTING, 60),
                        (weight::CRASH, 15),
                        (weight::CUT, 40),
                        (weight::LAGGY, 20),
                    ],
                    ..usual
                }
            }
            M::RaftLogMadeAnew => {
                Options { every_us: Some(150_000), favour: vec![(weight::LOSE, 60)], ..usual }
            }
            M::FarTermBelieved | M::FarEpochBelieved | M::ViewBelieved | M::FarSeqBelieved => {
                Options { every_us: Some(60_000), favour: vec![(weight::FORGE, 100)], ..usual }
            }
            // A snapshot's place is taken over as it is said: where snapshots are sent often.
            M::FarIndexBelieved => Options {
                every_us: Some(60_000),
                favour: vec![(weight::FORGE, 100), (weight::CUT, 60), (weight::CRASH, 20)],
                compact_every: Some(4),
                ..usual
            },
            M::OpenTimeoutByClock | M::TransferForgotten | M::PieceProvesWhole => {
                Options { siege_permille: 1000, faults_ms: 2000, ..usual }
            }
            M::UnknownSaidAsDone => Options { wait_max_ms: 300, ..usual },
            _ => usual,
        };
        let script = match mutant {
            M::LateSealBuilt => Some(&LATE_SEAL),
            M::LocalToldElsewhere => Some(&LOST_ELSEWHERE),
            _ => None,
        };
        Hunt { mutant, options, script }
    }

    pub fn scripted(mutant: Mutant, script: &'static Script) -> Hunt {
        Hunt { mutant, options: Options::default(), script: Some(script) }
    }

    /// One run; what was violated.
    fn run(&self, seed: u64) -> Option<String> {
        match self.script {
            Some(script) => script::run(script, seed, None).violation,
            None => run(seed, &self.options).violation,
        }
    }
}

/// The run that found it out.
pub struct Kill {
    pub seed: u64,
    /// The property that was violated, or whose assertion failed.
    pub property: String,
    pub violation: String,
}

/// How a hunt ended.
pub struct Verdict {
    pub mutant: Mutant,
    pub seeds: u64,
    pub seconds: f64,
    /// How often the place of the rule was reached, over all seeds.
    pub reached: u64,
    pub kill: Option<Kill>,
    /// Seeds that show a violation with every rule kept, too: those are bugs, and no kills.
    pub found: Vec<(u64, String)>,
}

/// Hunts all of them, on every core; the verdicts in the same order.
pub fn hunt_all(hunts: &[Hunt], limit: Limit) -> Vec<Verdict> {
    let next = AtomicU64::new(0);
    let verdicts: Mutex<Vec<(usize, Verdict)>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let at = next.fetch_add(1, Ordering::Relaxed) as usize
                    && let Some(hunt) = hunts.get(at)
                {
                    let verdict = hunt_one(hunt, limit);
                    verdicts.lock().unwrap_or_else(PoisonError::into_inner).push((at, verdict));
                }
            });
        }
    });
    let mut verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdicts.sort_by_key(|(at, _)| *at);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

pub fn hunt_one(hunt: &Hunt, limit: Limit) -> Verdict {
    let mutant = &hunt.mutant;
    let began = Instant::now();
    let mut verdict = Verdict {
        mutant: *mutant,
        seeds: 0,
        seconds: 0.0,
        reached: 0,
        kill: None,
        found: Vec::new(),
    };
    while verdict.kill.is_none() && verdict.seeds < limit.seeds && began.elapsed() < limit.time {
        let seed = verdict.seeds;
        let ((violation, at), reached) =
            mutants::with(*mutant, || noting_panics(|| hunt.run(seed)));
        verdict.seeds += 1;
        verdict.reached += reached;
        let Some(violation) = violation else { continue };
        match noting_panics(|| hunt.run(seed)).0 {
            Some(found) => verdict.found.push((seed, found)),
            None => {
                let property = property(&violation, &at);
                verdict.kill = Some(Kill { seed, property, violation });
            }
        }
    }
    verdict.seconds = began.elapsed().as_secs_f64();
    verdict
}

/// The checkers' panics begin with "violated", and most name a property of the design.
fn property(violation: &str, at: &str) -> String {
    let first = violation.lines().next().unwrap_or_default();
    let said = first.split_once(" failed: ").map_or(first, |(_, said)| said);
    match said.strip_prefix("violated ") {
        Some(rest) => rest.split(": ").next().unwrap_or_default().to_string(),
        _ if at.contains("cluster-tests/") => first.chars().take(60).collect(),
        _ if at.contains("/raft-") => format!("assertion in raft-rs: {}", clip(first)),
        _ => format!("assertion in the core: {}", clip(first)),
    }
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

thread_local! {
    static NOTING: Cell<bool> = const { Cell::new(false) };
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs something that catches its own panics: they are not printed, and where the last one came from is returned.
fn noting_panics<T>(run: impl FnOnce() -> T) -> (T, String) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !NOTING.get() {
                return before(info);
            }
            let at = info.location().map(|at| at.file().to_string()).unwrap_or_default();
            PANICKED_AT.set(at);
        }));
    });
    PANICKED_AT.take();
    NOTING.set(true);
    let result = run();
    NOTING.set(false);
    (result, PANICKED_AT.take())
}

/// For people: which rule, killed by what, after how many seeds.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut text = format!(
        "{:<22} {:<64} {:>7} {:>8}  {}\n",
        "mutant", "killed by", "seeds", "seconds", "the rule it breaks (where it comes from)"
    );
    for Verdict { mutant, seeds, seconds, reached, kill, .. } in verdicts {
        let rule = format!("{} ({})", mutant.rule(), mutant.source());
        let killed = match kill {
            Some(kill) => kill.property.clone(),
            None => format!("NOT KILLED, reached {reached} times"),
        };
        text += &format!("{:<22} {killed:<64} {seeds:>7} {seconds:>8.1}  {rule}\n", mutant.name());
    }
    let killed = verdicts.iter().filter(|verdict| verdict.kill.is_some()).count();
    text + &format!("{killed} of {} mutants killed\n", verdicts.len())
}
