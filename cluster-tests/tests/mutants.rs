//! Every rule is broken on purpose once, and the simulator must notice: `cargo test --test mutants -- --nocapture` shows
//! the table. The slow ones have a command of their own: `cargo test --test mutants -- --ignored --nocapture`. `MUTANTS`
//! names the ones to hunt, with commas between them, if it is not to be all.

#![cfg(debug_assertions)]

use std::time::Duration;

use cluster_tests::mutants::{Hunt, Limit, hunt_all, is_elusive, table};
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
