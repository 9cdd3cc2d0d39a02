//! What administrators are told: what is done, the history has; what is refused, it never has; and nothing twice. And
//! nothing is done to another object than the one that the node which took the request knew then.

use std::collections::{BTreeMap, BTreeSet};

use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminReply, Outcome};
use packmaster::proto::control::Seen;
use serde_json::Value;

/// Who asks in the simulation; the request's number follows.
const NAME: &str = "asker ";
/// Requests of a run that are looked into: a script may make hundreds to fill the Raft log.
const LOOKED_INTO_MAX: u64 = 100;

/// Which of these changes a history does not show. What came before the oldest decision that is kept is not known.
fn lacks_of(done: &BTreeSet<u64>, json: &[u8]) -> BTreeSet<u64> {
    let history: Value = serde_json::from_slice(json).expect("a history");
    let decisions = history["decisions"].as_array().expect("decisions");
    if decisions.first().is_none_or(|oldest| oldest["number"] != 1) && !decisions.is_empty() {
        return BTreeSet::new();
    }
    let asker = |decision: &Value| {
        let by = decision["asked_by"].as_str().expect("by whom").strip_prefix(NAME)?;
        by.parse::<u64>().ok()
    };
    let shown: BTreeSet<u64> = decisions.iter().filter_map(asker).collect();
    done.difference(&shown).copied().collect()
}

#[derive(Default)]
pub struct Askers {
    asked: u64,
    answered: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Changes that somebody was told are done.
    done: BTreeSet<u64>,
    /// Reads of the history at the end of the run, and what each lacks of that; None: not answered yet.
    last_reads: BTreeMap<u64, Option<BTreeSet<u64>>>,
    /// Reads of the history, and the change that each is to show.
    reads: BTreeMap<u64, u64>,
    /// Requests whose outcome is a decision of its own.
    changes: BTreeSet<u64>,
    /// What the node that took a request knew then.
    seen: BTreeMap<u64, Seen>,
}

/// What was decided last, in a history that is read from its beginning.
#[derive(Default)]
struct Last {
    epoch: u64,
    /// Raft indexes: of the last decision that began or ended a pack, of the last pack's beginning, of the last pause or
    /// resume, of each setting's last change.
    packs: u64,
    started: u64,
    pause: u64,
    settings: BTreeMap<String, u64>,
    /// Packs that were begun for each asker: the later ones begin again by themselves.
    begun: BTreeSet<u64>,
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

    /// A node takes the request.
    pub fn taken(&mut self, request: u64, seen: Seen) {
        self.seen.insert(request, seen);
    }

    pub fn is_answered(&self, request: u64) -> bool {
        self.answered.contains(&request)
    }

    /// True: the history of the node that has answered is to be read now.
    pub fn on_reply(&mut self, reply: &AdminReply) -> bool {
        self.answered.insert(reply.id);
        if let Some(lacks) = self.last_reads.get_mut(&reply.id) {
            *lacks = (reply.outcome() == Outcome::Done).then(|| lacks_of(&self.done, &reply.json));
            return false;
        }
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
        let done = reply.outcome() == Outcome::Done && !reply.message.contains("already");
        if done {
            self.done.insert(reply.id);
        }
        done
    }

    /// This read is to show everything that was ever said to be done.
    pub fn reads_all(&mut self, read: u64) {
        self.last_reads.insert(read, None);
    }

    /// What the history that was read lacks; None: it was not answered.
    pub fn lacks(&self, read: u64) -> Option<&BTreeSet<u64>> {
        self.last_reads.get(&read).and_then(|lacks| lacks.as_ref())
    }

    fn check(&self, change: u64, reply: &AdminReply) {
        let history: Value = serde_json::from_slice(&reply.json).expect("a history");
        let decisions = history["decisions"].as_array().expect("decisions");
        // What came before the oldest that is kept is not known.
        if decisions.first().is_some_and(|oldest| oldest["number"] == 1) {
            let mut last = Last::default();
            decisions.iter().for_each(|decision| self.check_seen(&mut last, decision));
        }
        let mut done = BTreeMap::new();
        for decision in decisions {
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

    /// Was this done to what its asker's node had seen? Then it is what was decided last.
    fn check_seen(&self, last: &mut Last, decision: &Value) {
        let text = |field: &str| decision[field].as_str().expect("a text").to_string();
        let (what, why, index) =
            (text("what"), text("why"), decision["raft_index"].as_u64().unwrap_or(0));
        let by = text("asked_by").strip_prefix(NAME).and_then(|number| number.parse::<u64>().ok());
        let setting = why.split(" = ").next().unwrap_or_default().to_string();
        if let Some((by, seen)) = by.and_then(|by| Some((by, self.seen.get(&by)?))) {
            let (acts_on, saw) = match what.as_str() {
                "pack start" if last.begun.insert(by) => (last.packs, seen.packs_changed),
                "pack cancel" => (last.started, seen.pack),
                "pause" | "resume" => (last.pause, seen.pause_changed),
                "setting" => {
                    (last.settings.get(&setting).copied().unwrap_or(0), seen.setting_changed)
                }
                "fence" => (last.epoch, seen.epoch),
                _ => (0, 0),
            };
            assert!(
                acts_on == saw,
                "violated ActsOnWhatWasSeen: request {by} was done to {acts_on}, and its node knew of {saw}: {decision}"
            );
        }
        match what.as_str() {
            "pack start" => (last.packs, last.started) = (index, index),
            "pack cancel" | "pack called off" => last.packs = index,
            // The first was made by no pack.
            "generation" if last.started != 0 => last.packs = index,
            "pause" | "resume" => last.pause = index,
            "setting" => _ = last.settings.insert(setting, index),
            "fence" => last.epoch = decision["epoch"].as_u64().expect("an epoch"),
            _ => {}
        }
    }
}
