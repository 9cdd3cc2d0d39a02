//! The protocol as small machines, searched exhaustively.
//!
//! The simulator runs the production code through some of what can happen; a model is searched through all of it, in a
//! small scope: three nodes, three epochs, three transactions, messages lost, doubled and out of order, crashes. The
//! models are written by hand after `src/failover`, `src/node/core` and `src/control/apply`, and share no code with
//! them. What they leave out, and why nothing is lost by it, is said at the head of each.
//!
//! Every rule that a model keeps can be switched off, one at a time: then the search must find a counterexample. A
//! rule whose absence nobody notices is not needed, or its model is too weak.

pub mod election;
pub mod log;
pub mod packs;
pub mod switch;

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

/// Threads of one search.
const THREADS: usize = 2;

/// A model that can tell what it is and what happened in it.
pub trait Checked: Model {
    /// Which rule is off.
    fn rule(&self) -> String;
    /// One line of a counterexample.
    fn trace(&self, state: &Self::State, step: Option<&Self::Action>) -> String;
}

/// What a search came to; prints as a row of the table.
pub struct Searched {
    pub states: usize,
    pub depth: usize,
    pub seconds: f64,
}

pub fn print_head() {
    println!(
        "{:<22} {:<22} {:>10} {:>6} {:>8}  killed by",
        "model", "rule off", "states", "depth", "seconds"
    );
}

fn print_row(model: &str, rule: &str, searched: &Searched, by: &str) {
    let Searched { states, depth, seconds } = searched;
    println!("{model:<22} {rule:<22} {states:>10} {depth:>6} {seconds:>8.2}  {by}");
}

/// Searches everything: every property holds everywhere, and what must happen sometimes does.
pub fn hold<M>(name: &str, model: M) -> M
where
    M: Checked + Clone + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let begun = Instant::now();
    let search = model.clone().checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures);
    let search = search.spawn_bfs().join();
    let searched = Searched {
        states: search.unique_state_count(),
        depth: search.max_depth(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    print_row(name, &model.rule(), &searched, "-");
    let found = search.discoveries();
    for property in model.properties() {
        let is_failure = property.expectation.discovery_is_failure();
        match found.get(property.name) {
            Some(path) if is_failure => panic!("{}", story(&model, property.name, path.clone())),
            None if !is_failure => panic!("{name}: never: {}", property.name),
            _ => {}
        }
    }
    model
}

/// Searches for a counterexample to `property`, and must find it.
pub fn fall<M>(name: &str, model: M, property: &'static str)
where
    M: Checked + Clone + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let begun = Instant::now();
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let search = model.clone().checker().threads(THREADS).finish_when(wanted).spawn_bfs().join();
    let searched = Searched {
        states: search.unique_state_count(),
        depth: search.max_depth(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    let found = search.discovery(property);
    print_row(name, &model.rule(), &searched, if found.is_some() { property } else { "NOTHING" });
    let Some(path) = found else {
        let others: Vec<_> = search.discoveries().into_keys().collect();
        panic!("{name} without {} keeps {property}; found: {others:?}", model.rule());
    };
    if std::env::var_os("PACKMASTER_MODEL_TRACES").is_some() {
        println!("{}", story(&model, property, path));
    }
}

fn story<M: Checked>(
    model: &M,
    property: &str,
    path: stateright::Path<M::State, M::Action>,
) -> String {
    let lines = path.into_vec().into_iter();
    let lines: Vec<String> =
        lines.map(|(state, step)| model.trace(&state, step.as_ref())).collect();
    format!("{property} is broken, with {}:\n  {}", model.rule(), lines.join("\n  "))
}
