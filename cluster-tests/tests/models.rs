use cluster_tests::models::election::{Election, Rule, Scope};
use cluster_tests::models::{fall, hold, print_head};

#[test]
fn mutants() {
    print_head();
    let scope = Scope { writes: 2, crashes: 1, ..Scope::NONE };
    let mutants = [
        (Rule::AckAfterSync, "AckedIsDurable"),
        (Rule::OwnAckAfterSync, "AckedIsDurable"),
        (Rule::PromiseStopsAppends, "LeaderCompleteness"),
        (Rule::RecheckPromise, "NoAckBelowPromise"),
        (Rule::PositionWithPromise, "LeaderCompleteness"),
        (Rule::PromiseDurable, "LeaderCompleteness"),
        (Rule::FenceStopsMaster, "LeaderCompleteness"),
        (Rule::FenceMajority, "LeaderCompleteness"),
        (Rule::GreatestByEpoch, "LeaderCompleteness"),
        (Rule::FloorFirst, "LeaderCompleteness"),
        (Rule::ElectOnce, "EpochUnique"),
        (Rule::BootChecked, "ChainMatch"),
        (Rule::MajorityCommits, "AckedIsDurable"),
        (Rule::ServeAfterStart, "LeaderCompleteness"),
        (Rule::AckCarriesEpoch, "AckedIsDurable"),
        (Rule::AckCarriesChain, "AckedIsDurable"),
        (Rule::AppendNamesTip, "ChainMatch"),
        (Rule::WatermarkAfterMatch, "ReadIsCommittedPrefix"),
        (Rule::CutAtDivergence, "LeaderCompleteness"),
        (Rule::LateCutRefused, "AckedIsDurable"),
    ];
    let mut bad = 0;
    for (rule, by) in mutants {
        bad += usize::from(
            std::panic::catch_unwind(|| fall("election", Election::new(scope).without(rule), by))
                .is_err(),
        );
    }
    assert_eq!(bad, 0);
}

#[test]
fn losses() {
    let damage = Scope { writes: 2, crashes: 1, damages: 1, ..Scope::NONE };
    let bad = std::panic::catch_unwind(|| {
        hold("damage", Election::new(damage));
    })
    .is_err();
    for (rule, by) in [
        (Rule::RecoveringNotCounted, "LeaderCompleteness"),
        (Rule::RecoveringNotAcked, "LeaderCompleteness"),
        (Rule::RecoveredWhole, "AckedIsDurable"),
    ] {
        let _ =
            std::panic::catch_unwind(|| fall("damage", Election::new(damage).without(rule), by));
    }
    let wipe = Scope { writes: 2, crashes: 1, wipes: 1, ..Scope::NONE };
    let _ = std::panic::catch_unwind(|| {
        hold("wipe", Election::new(wipe));
    })
    .is_err();
    for (rule, by) in
        [(Rule::WipedNotCounted, "LeaderCompleteness"), (Rule::WipedNotAcked, "LeaderCompleteness")]
    {
        let _ = std::panic::catch_unwind(|| fall("wipe", Election::new(wipe).without(rule), by));
    }
    assert!(!bad);
}

#[test]
fn voters() {
    let scope = Scope { nodes: 4, writes: 0, crashes: 0, changes: 2, ..Scope::NONE };
    let _ = std::panic::catch_unwind(|| {
        hold("voters", Election::new(scope));
    })
    .is_err();
    for (rule, by) in [
        (Rule::DifferByOne, "LeaderCompleteness"),
        (Rule::OpenedBeforeChange, "LeaderCompleteness"),
        (Rule::OldVotersFenced, "LeaderCompleteness"),
        (Rule::NewVotersCommit, "LeaderCompleteness"),
    ] {
        let _ = std::panic::catch_unwind(|| fall("voters", Election::new(scope).without(rule), by));
    }
}
