//! What administrators are told: what is done, the history has; what is refused, it never has; and nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminReply, Outcome};
use serde_json::Value;

/// Who asks in the simulation; the request's number follows.
const NAME: &str = "asker ";
/// Requests of a run that are looked into: a script may make hundreds to fill the Raft log.
const LOOKED_INTO_MAX: u64 = 100;

#[derive(Default)]
pub struct Askers {
    asked: u64,
    answered: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Reads of the history, and the change that each is to show.
    reads: BTreeMap<u64, u64>,
    /// Requests whose outcome is a decision of its own.
    changes: BTreeSet<u64>,
}

impl Askers {
    /// The number of the request, and who asks.
    pub fn ask(&mut self, verb: &Verb) -> (u64, String) {
        self.asked += 1;
        let change = matches!(verb, Verb::Pack(_) | Verb::SetPause(_) | Verb::ConfigSet(_));
        if change && self.asked <= LOOKED_INTO_MAX {
            self.changes.insert(self.asked);
        }
        (self.asked, format!("{NAME}{}", self.asked))
    }

    /// The read of the history that was just asked for is to show this change.
    pub fn reads(&mut self, read: u64, change: u64) {
        self.reads.insert(read, change);
    }

    pub fn is_answered(&self, request: u64) -> bool {
        self.answered.contains(&request)
    }

    /// True: the history of the node that has answered is to be read now.
    pub fn on_reply(&mut self, reply: &AdminReply) -> bool {
        self.answered.insert(reply.id);
        if let Some(change) = self.reads.remove(&reply.id) {
            self.check(change, reply);
            return false;
        }
        if !self.changes.contains(&reply.id) {
            return false;
        }
        if reply.outcome() == Outcome::Refused {
            self.refused.insert(reply.id);
        }
        // What was so before needs no decision.
        reply.outcome() == Outcome::Done && !reply.message.contains("already")
    }

    fn check(&self, change: u64, reply: &AdminReply) {
        let history: Value = serde_json::from_slice(&reply.json).expect("a history");
        let mut done = BTreeMap::new();
        for decision in history["decisions"].as_array().expect("decisions") {
            let what = decision["what"].as_str().expect("what");
            let by = decision["asked_by"].as_str().expect("by whom").strip_prefix(NAME);
            let Some(by) = by.and_then(|number| number.parse::<u64>().ok()) else { continue };
            assert!(
                !self.refused.contains(&by) || !self.changes.contains(&by),
                "violated ToldTheTruth: request {by} was refused, and here it is done: {decision}"
            );
            // A pack that an election called off begins again for whoever asked.
            let told = done.entry(by).or_insert_with(Vec::new);
            assert!(
                !matches!(what, "setting" | "pause" | "resume" | "pack cancel") || told.is_empty(),
                "violated ToldTheTruth: request {by} was done twice: {told:?}, {decision}"
            );
            told.push(what.to_string());
        }
        assert!(
            done.contains_key(&change),
            "violated ToldTheTruth: request {change} is said to be done, and no decision shows it: {done:?}"
        );
    }
}
