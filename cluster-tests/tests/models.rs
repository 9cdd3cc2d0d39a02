//! The models, searched: with all rules everything holds; with any rule off there is a counterexample.
//!
//! `cargo test -p cluster-tests --test models -- --nocapture` prints the tables. One search at a time: each takes both
//! cores. The searches that take longer are `--ignored`. `PACKMASTER_MODEL_TRACES=1` prints each counterexample.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cluster_tests::models::election::{self, Election, Step};
use cluster_tests::models::packs::{self, Packs};
use cluster_tests::models::switch::{self, Switch};
use cluster_tests::models::{fall, hold, print_head};

/// Three nodes, three epochs, three transactions, two crashes.
const WHOLE: election::Scope = election::Scope { writes: 3, crashes: 2, ..election::Scope::NONE };
/// For what is to be found soon.
const MUTANT: election::Scope = election::Scope { writes: 2, crashes: 1, ..election::Scope::NONE };

const PACK: switch::Scope =
    switch::Scope { epochs: 3, writes: 1, crashes: 1, packs: 2, broken_disks: 1 };
/// Where neither a crash nor a broken disk is needed.
const SOUND_PACK: switch::Scope = switch::Scope { crashes: 0, broken_disks: 0, ..PACK };

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static SEARCHING: Mutex<()> = Mutex::new(());
    let guard = SEARCHING.lock().unwrap_or_else(PoisonError::into_inner);
    println!();
    print_head();
    guard
}

// ---- election and commit ----

#[test]
fn what_is_acknowledged_stays() {
    use election::Point::*;
    let _guard = one_at_a_time();
    let searched = hold("election", Election::new(WHOLE));
    for point in [MasterFenced, ElectedBelowFloor, FloorFetched, TailCut, UnsyncedLost] {
        assert!(searched.has_seen(point), "never: {point:?}");
    }
}

/// The Raft paper's figure 8: what the first master wrote is nowhere else, the second wrote something else, and the
/// first is elected again. A third epoch that counts copies and a fourth that never saw them are left to the search.
const FIGURE_8: &[Step] = &[
    Step::Fence,
    Step::Promise(0),
    Step::Promise(1),
    Step::Promise(2),
    Step::Elect { winner: 0, holder: 0, floor: 0, voters: 7 },
    Step::Start(0),
    Step::Sync(0),
    Step::Fence,
    Step::Promise(1),
    Step::Promise(2),
    Step::Elect { winner: 1, holder: 1, floor: 0, voters: 7 },
    Step::Start(1),
    Step::Sync(1),
    Step::Fence,
    Step::Promise(0),
    Step::Promise(2),
    Step::Elect { winner: 0, holder: 0, floor: 0x11, voters: 7 },
];

/// The first master is open, and has one more that nobody else has; the second was behind, fetched what it lacked, and
/// is about to be fenced with a start that nobody else has.
const OPENED: &[Step] = &[
    Step::Fence,
    Step::Promise(0),
    Step::Promise(1),
    Step::Promise(2),
    Step::Elect { winner: 0, holder: 0, floor: 0, voters: 7 },
    Step::Start(0),
    Step::Sync(0),
    Step::Take { node: 1, epoch: 1 },
    Step::Sync(1),
    Step::Commit(0),
    Step::Write(0),
    Step::Fence,
    Step::Promise(1),
    Step::Promise(2),
    Step::Elect { winner: 2, holder: 1, floor: 0x11, voters: 7 },
    Step::Pull(2),
    Step::Start(2),
    Step::Fence,
];

const FOUR_EPOCHS: election::Scope =
    election::Scope { epochs: 4, writes: 2, crashes: 2, ..election::Scope::NONE };

#[test]
fn four_epochs_from_the_middle() {
    let _guard = one_at_a_time();
    hold("election, 4 epochs", Election::new(FOUR_EPOCHS).seeded(&[FIGURE_8, OPENED]));
    let figure_8 = Election::new(FOUR_EPOCHS).seeded(&[FIGURE_8]);
    fall("figure 8", figure_8.without(election::Rule::OwnEpochCommits), "LeaderCompleteness");
}

#[test]
fn every_rule_of_elections_is_needed() {
    use election::Rule::*;
    let _guard = one_at_a_time();
    let rules = [
        (AckAfterSync, "AckedIsDurable"),
        (OwnAckAfterSync, "AckedIsDurable"),
        (MajorityCommits, "AckedIsDurable"),
        (AckCarriesEpoch, "AckedIsDurable"),
        (AckCarriesChain, "AckedIsDurable"),
        (LateCutRefused, "AckedIsDurable"),
        (RecheckPromise, "NoAckBelowPromise"),
        (PromiseStopsAppends, "LeaderCompleteness"),
        (PositionWithPromise, "LeaderCompleteness"),
        (PromiseDurable, "LeaderCompleteness"),
        (FenceStopsMaster, "LeaderCompleteness"),
        (FenceMajority, "LeaderCompleteness"),
        (GreatestByEpoch, "LeaderCompleteness"),
        (FloorFirst, "LeaderCompleteness"),
        (ServeAfterStart, "LeaderCompleteness"),
        (CutAtDivergence, "LeaderCompleteness"),
        (ElectOnce, "EpochUnique"),
        (BootChecked, "ChainMatch"),
        (AppendNamesTip, "ChainMatch"),
        (WatermarkAfterMatch, "ReadIsCommittedPrefix"),
        (CommittedAnnounced, "ReadIsCommittedPrefix"),
    ];
    for (rule, property) in rules {
        fall("election", Election::new(MUTANT).without(rule), property);
    }
}

// ---- disks that lost something ----

#[test]
fn who_lost_something_is_silent_until_it_is_back() {
    use election::Rule::*;
    let _guard = one_at_a_time();
    let damage = election::Scope { writes: 1, damages: 1, ..election::Scope::NONE };
    let searched = hold("damaged tail", Election::new(damage));
    assert!(searched.has_seen(election::Point::Recovered));
    let damage = || Election::new(election::Scope { writes: 2, ..damage });
    fall("damaged tail", damage().without(RecoveringNotCounted), "LeaderCompleteness");
    fall("damaged tail", damage().without(RecoveredWhole), "LeaderCompleteness");

    let wipe = election::Scope { writes: 1, crashes: 1, wipes: 1, ..election::Scope::NONE };
    hold("empty disk", Election::new(wipe));
    fall("empty disk", Election::new(wipe).without(WipedNotCounted), "LeaderCompleteness");
    fall("empty disk", Election::new(wipe).without(WipedNotAcked), "LeaderCompleteness");

    let roll_back = election::Scope { writes: 1, roll_backs: 1, ..election::Scope::NONE };
    hold("rolled-back disk", Election::new(roll_back));
    fall(
        "rolled-back disk",
        Election::new(roll_back).without(RollBackNoticed),
        "LeaderCompleteness",
    );
}

// ---- voters ----

const VOTERS: election::Scope = election::Scope { nodes: 4, changes: 2, ..election::Scope::NONE };

#[test]
fn voters_change_one_by_one() {
    use election::Rule::*;
    let _guard = one_at_a_time();
    let searched = hold("voters", Election::new(VOTERS));
    assert!(searched.has_seen(election::Point::VotersChanged));
    fall("voters", Election::new(VOTERS).without(DifferByOne), "LeaderCompleteness");
    fall("voters", Election::new(VOTERS).without(OpenedBeforeChange), "QuorumsOverlap");
    fall("voters", Election::new(VOTERS).without(NewVotersCommit), "AckedIsDurable");
}

// ---- pack and switch ----

#[test]
fn a_switch_loses_nothing() {
    use switch::Point::*;
    let _guard = one_at_a_time();
    let searched = hold("switch", Switch::new(PACK));
    let points =
        [Switched, CalledOff, MarkExtended, BasesDiffered, Flipped, Rebased, Fetched, FlipUndone];
    for point in points {
        assert!(searched.has_seen(point), "never: {point:?}");
    }
}

#[test]
fn every_rule_of_the_switch_is_needed() {
    use switch::Rule::*;
    let _guard = one_at_a_time();
    let rules = [
        (DeadRefused, SOUND_PACK, "GenerationEquivalent"),
        (MarkLooksBehind, SOUND_PACK, "GenerationEquivalent"),
        (OtherElectionsCallOff, SOUND_PACK, "GenerationEquivalent"),
        (SealNamesEpoch, SOUND_PACK, "GenerationEquivalent"),
        (CurrentGenerationOnly, SOUND_PACK, "GenerationEquivalent"),
        (NextFollows, SOUND_PACK, "LeaderCompleteness"),
        (SwitchTakesGreatest, SOUND_PACK, "LeaderCompleteness"),
        (RebaseKeepsTail, SOUND_PACK, "AckedIsDurable"),
        (BaseAgreed, PACK, "ChainMatch"),
        (FlipAfterData, PACK, "AckedIsDurable"),
    ];
    for (rule, scope, property) in rules {
        fall("switch", Switch::new(scope).without(rule), property);
    }
}

// ---- packs in the control log ----

/// Two masterships; packs that are asked for, cancelled, called off and begun again.
const LOG: packs::Scope =
    packs::Scope { epochs: 3, starts: 3, cancels: 2, writes: 3, builds: false, broken_disk: false };
/// Nodes build, the first of them wrong.
const BUILDS: packs::Scope =
    packs::Scope { epochs: 1, starts: 1, cancels: 0, writes: 0, builds: true, broken_disk: true };
/// Nodes build for two packs of one epoch.
const TWO_PACKS: packs::Scope =
    packs::Scope { starts: 2, cancels: 1, broken_disk: false, ..BUILDS };

#[test]
fn a_late_command_about_a_pack_does_no_harm() {
    use packs::Point::*;
    let _guard = one_at_a_time();
    let searched = hold("packs", Packs::new(LOG));
    let points =
        [CancelledAndStartedAgain, StartedAgainAfterElection, LateSealRefused, RepeatRefused];
    for point in points {
        assert!(searched.has_seen(point), "never: {point:?}");
    }
    let searched = hold("packs, bases", Packs::new(BUILDS));
    for point in [FirstBaseOutvoted, SwitchedWithoutTheOdd] {
        assert!(searched.has_seen(point), "never: {point:?}");
    }
    // Were a foreign seal agreed after all, nothing would come of it.
    let second = Packs::new(LOG).without(packs::Rule::SealNamesPack).judge_the_second_wall();
    hold("packs, second wall", second);
}

#[test]
fn every_rule_of_packs_in_the_log_is_needed() {
    use packs::Rule::*;
    let _guard = one_at_a_time();
    let rules = [
        (SealNamesPack, LOG, "SealOfItsPack"),
        (StartNamesLast, LOG, "CancelledStays"),
        (CancelNamesPack, LOG, "CancelEndsItsPack"),
        (BaseNamesPack, TWO_PACKS, "BaseOfItsPack"),
        (TwoOutvote, BUILDS, "PackComesToEnd"),
        (OneVoteEach, BUILDS, "PackComesToEnd"),
        (ReadyNamesBase, BUILDS, "SwitchedToMajority"),
    ];
    for (rule, scope, property) in rules {
        fall("packs", Packs::new(scope).without(rule), property);
    }
    // The second wall matters where the first is down: so it was.
    let neither = Packs::new(LOG).without(SealNamesPack).without(ForeignSealCalledOff);
    fall("packs", neither.judge_the_second_wall(), "GenerationEquivalent");
}

// ---- larger scopes, for the long run ----

#[test]
#[ignore = "many minutes"]
fn larger_scopes() {
    let _guard = one_at_a_time();
    let damage = election::Scope { writes: 2, crashes: 1, damages: 1, ..election::Scope::NONE };
    hold("damaged tail", Election::new(damage));
    hold("voters", Election::new(election::Scope { writes: 1, ..VOTERS }));
    hold("voters", Election::new(election::Scope { crashes: 1, ..VOTERS }));
    hold("switch", Switch::new(switch::Scope { writes: 2, crashes: 2, ..PACK }));
    hold("switch, 4 epochs", Switch::new(switch::Scope { epochs: 4, ..PACK }));
    hold("election, 4 epochs", Election::new(election::Scope { epochs: 4, writes: 2, ..MUTANT }));
}
