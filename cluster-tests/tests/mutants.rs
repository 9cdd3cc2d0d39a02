//! Every rule is broken on purpose once, and the simulator must notice: `cargo test --test mutants -- --nocapture` shows
//! the table. The slow ones have a command of their own: `cargo test --test mutants -- --ignored --nocapture`. `MUTANTS`
//! names the ones to hunt, with commas between them, if it is not to be all.

#![cfg(debug_assertions)]

use std::time::Duration;

use cluster_tests::mutants::{Hunt, Limit, hunt_all, hunt_one, is_elusive, table};
use cluster_tests::sim::world::script::{LATE_SEAL, LOST_ELSEWHERE};
use packmaster::mutants::Mutant;

fn hunt(elusive: bool, limit: Limit) {
    let named = std::env::var("MUTANTS").ok();
    let is_named = |mutant: &Mutant| {
        named.as_ref().is_none_or(|names| names.split(',').any(|name| name == mutant.name()))
    };
    let wanted =
        Mutant::ALL.iter().filter(|mutant| is_elusive(**mutant) == elusive && is_named(mutant));
    let hunts: Vec<Hunt> = wanted.map(|mutant| Hunt::new(*mutant)).collect();
    let verdicts = hunt_all(&hunts, limit);
    println!("{}", table(&verdicts));
    let survivors: Vec<&str> = verdicts
        .iter()
        .filter(|verdict| verdict.kill.is_none())
        .map(|verdict| verdict.mutant.name())
        .collect();
    assert!(survivors.is_empty(), "nobody noticed that these rules were broken: {survivors:?}");
    for verdict in &verdicts {
        let name = verdict.mutant.name();
        assert!(verdict.found.is_empty(), "{name}, with every rule kept: {:?}", verdict.found);
    }
}

#[test]
fn every_broken_rule_is_noticed() {
    hunt(false, Limit { seeds: 400, time: Duration::MAX });
}

#[test]
#[ignore = "takes long: up to 100,000 seeds each"]
fn every_elusive_broken_rule_is_noticed() {
    hunt(true, Limit { seeds: 100_000, time: Duration::MAX });
}

/// Schedules that random seeds do not come to, or hardly ever, are made by scripts: each shows its mutant at once.
///
/// Two rules keep the seal of a cancelled pack from dropping what clients have linked since: no seal counts for another
/// pack, and a master calls off a pack whose agreed seal it has not marked. Without the first, the second is reported as
/// SealOfItsPack; without both, an object that a client has linked is gone.
#[test]
fn scripts_show_what_they_are_for() {
    let limit = Limit { seeds: 1, time: Duration::MAX };
    let killed = [
        (Mutant::PackIdentityNotChecked, &LATE_SEAL, "SealOfItsPack"),
        (Mutant::LateSealBuilt, &LATE_SEAL, "ReferencesClosed"),
        (Mutant::LocalToldElsewhere, &LOST_ELSEWHERE, "AckedIsDurable"),
    ];
    for (mutant, script, property) in killed {
        let verdict = hunt_one(&Hunt::scripted(mutant, script), limit);
        assert!(verdict.found.is_empty(), "with every rule kept: {:?}", verdict.found);
        let kill = verdict.kill.unwrap_or_else(|| panic!("{} is not noticed", mutant.name()));
        assert!(kill.property.starts_with(property), "{}: {}", mutant.name(), kill.violation);
    }
}
