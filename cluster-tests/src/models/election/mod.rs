//! Election, commit and cut-back, of three nodes or four.
//!
//! What is reduced, and why nothing is lost by it:
//!
//! * Raft is an agreed list of fences and elections. A node learns of a fence at any later time or never; an elected
//!   master learns of its election at once, since one that learns it later does nothing in between.
//! * Messages are sent as early as they can be, and stay: loss is "never delivered", duplication and reordering are
//!   "delivered at any time, again". An append is any part of what the epoch's master has ever written; an
//!   acknowledgement is the longest that its sender has sent (shorter ones say less). A message that can have no
//!   effect any more is forgotten.
//! * The disk keeps the order of its tasks, so a promise makes durable what was written before it, and a crash before it
//!   is a crash before the fence was heard of. A cut is one durable step: nothing is taken while it is under way.
//! * A slave's own knowledge of what is committed is checked when it gets it, and not kept: with it the slave can only
//!   refuse a cut, and no such cut is ever asked for (`CommittedNeverTruncated`).
//! * Nodes are interchangeable: states are sorted. Whom an election prefers among those it may elect is left open.
//! * A second fence of an election that is still under way is left out, since the controller never makes one.
//!
//! **Two marks.** What a master acknowledges to its own clients (`replication::quorum`) is another mark than what is
//! committed, and with durability `local` above it. No other rule looks at it: it needs no state here, and
//! `CommittedAnnounced` shows what happens if slaves are told of it as committed. With `all` it is below, and changes
//! nothing for elections.
//!
//! **Change of voters**, as it is to be built. The voters are those of the newest election; a change is an election
//! like any other. Three rules make it safe, and each is needed:
//!
//! 1. The election that changes the voters takes reports of a majority of the voters before it, and the new set
//!    differs from theirs by one node that came or went (`DifferByOne`): majorities of the two overlap. A node is
//!    replaced in two steps.
//! 2. The voters before it have committed an epoch start of their own: the mastership was `Opened`
//!    (`OpenedBeforeChange`). Two elections that never opened would be a step by two.
//! 3. The new epoch commits, and so opens, by a majority of its own voters (`NewVotersCommit`).
//!
//! That a new voter has caught up first is *not* needed: it is asked for so that a commit need not wait for it.
//!
//! **Looked at, and found not to be needed** (each is kept in production, where it saves work or explains itself):
//! that a recovering node's acknowledgements do not count (it keeps its promise, and what it says is durable is); that
//! a slave knows what is committed and refuses to be cut below (nobody asks it to).
//!
//! **A disk that goes back in time**: the model shows that a node with an earlier image must be silent like one with
//! an empty disk (`RollBackNoticed`). How it finds out is `src/node/core/proof.rs`: the others know, if one that does
//! is there to be heard. That somebody is, is assumed here.

mod properties;
mod rules;
mod state;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use stateright::{Model, Property};

pub use rules::{Point, Rule, Scope};
pub use state::{Broken, EPOCHS_MAX, Lost, NODES_MAX, Name, Node, Step, World};
use steps::bit;

use super::Checked;

#[derive(Clone)]
pub struct Election {
    pub scope: Scope,
    pub off: Option<Rule>,
    /// Where the search starts: after each of these sequences of steps. Empty: at the beginning.
    pub seeds: Vec<Vec<Step>>,
    seen: Arc<AtomicU32>,
}

impl Election {
    pub fn new(scope: Scope) -> Election {
        Election { scope, off: None, seeds: Vec::new(), seen: Arc::default() }
    }

    pub fn without(self, rule: Rule) -> Election {
        Election { off: Some(rule), ..self }
    }

    /// From the middle: `seeds` name nodes by number, and are walked by the model's own steps.
    pub fn seeded(self, seeds: &[&[Step]]) -> Election {
        Election { seeds: seeds.iter().map(|seed| seed.to_vec()).collect(), ..self }
    }

    pub fn on(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    fn saw(&self, point: Point) {
        if !self.has_seen(point) {
            self.seen.fetch_or(1 << point as u32, Ordering::Relaxed);
        }
    }

    pub fn has_seen(&self, point: Point) -> bool {
        self.seen.load(Ordering::Relaxed) & 1 << point as u32 != 0
    }

    /// Old messages may be forgotten, unless a rule is off that makes them harmless.
    fn forgets(&self) -> bool {
        !matches!(
            self.off,
            Some(
                Rule::PromiseStopsAppends
                    | Rule::PromiseDurable
                    | Rule::FenceStopsMaster
                    | Rule::AckCarriesEpoch
                    | Rule::BootChecked
                    | Rule::ElectOnce
            )
        )
    }

    fn beginning(&self) -> World {
        let mut world = World::default();
        for (place, node) in world.nodes[..self.scope.nodes].iter_mut().enumerate() {
            node.name = Name(place as u8);
            node.votes = u8::from(place < self.scope.voters);
        }
        self.tidy(&mut world);
        world
    }

    /// The state after a seed's steps. Each must be possible: it stays a state that can be reached.
    fn walk(&self, seed: &[Step]) -> World {
        seed.iter().fold(self.beginning(), |world, step| {
            let step = step.map(|name| world.place_of(name, self.scope.nodes));
            let mut possible = Vec::new();
            self.actions(&world, &mut possible);
            // Which of several equal positions is fetched does not matter, and depends on the order of the nodes.
            let same = |other: &&Step| match (**other, step) {
                (Step::Elect { winner, floor, voters, .. }, Step::Elect { .. }) => {
                    let holder = match step {
                        Step::Elect { holder, .. } => holder,
                        _ => 0,
                    };
                    step == Step::Elect { winner, holder, floor, voters }
                }
                (other, _) => other == step,
            };
            let step = possible.iter().find(same);
            let step = step.unwrap_or_else(|| panic!("{step:?} is not possible in {world:?}"));
            self.next_state(&world, *step).expect("possible")
        })
    }

    // ---- which steps are possible ----

    /// The newest epoch above its promise whose appends this node could hear.
    fn newest_to_follow(&self, w: &World, node: u8) -> Option<u8> {
        let promise = w.nodes[usize::from(node)].promise;
        (promise + 1..=w.epoch).rev().find(|epoch| !w.sent[usize::from(*epoch)].log.is_empty())
    }

    fn of_the_agreed_state(&self, w: &World, out: &mut Vec<Step>) {
        if w.last == w.epoch && w.epoch < self.scope.epochs {
            out.push(Step::Fence);
        }
        if w.epoch > 0 && (w.last != w.epoch || !self.on(Rule::ElectOnce)) {
            self.elections(w, out);
        }
    }

    /// Every election that some majority of the reports allows.
    fn elections(&self, w: &World, out: &mut Vec<Step>) {
        let nodes = self.scope.nodes as u8;
        let is = |mask: u8, node: u8| mask & bit(node) != 0;
        let at = |node: u8| &w.nodes[usize::from(node)];
        let mask = |is_in: &dyn Fn(u8) -> bool| {
            (0..nodes).filter(|node| is_in(*node)).fold(0, |mask, node| mask | bit(node))
        };
        // With an election repeated in one epoch, the voters are those of the epoch.
        let voters = mask(&|node| at(node).votes & bit(w.last) != 0);
        let reported = mask(&|node| at(node).report != 0);
        for new in self.voters_to_be(w, voters) {
            let size = voters.count_ones();
            let mut enough = if w.last == 0 { size } else { size / 2 + 1 };
            if !self.on(Rule::FenceMajority) && w.last != 0 {
                enough -= 1;
            }
            for some in 1..bit(nodes) {
                if some & reported != some || some.count_ones() < enough {
                    continue;
                }
                let members = (0..nodes).filter(|node| is(some, *node));
                let holder = members
                    .clone()
                    .reduce(|best, node| {
                        let better = self.greater(at(node).report - 1, at(best).report - 1);
                        if better { node } else { best }
                    })
                    .expect("not empty");
                let floor = at(holder).report - 1;
                for winner in members.filter(|node| is(new, *node)) {
                    let step = Step::Elect { winner, holder, floor, voters: new };
                    if !out.contains(&step) {
                        out.push(step);
                    }
                }
            }
        }
    }

    /// The sets of voters that an election may make.
    fn voters_to_be(&self, w: &World, voters: u8) -> Vec<u8> {
        let mut sets = vec![voters];
        let settled = w.opened || !self.on(Rule::OpenedBeforeChange);
        if w.changes >= self.scope.changes || !settled {
            return sets;
        }
        for set in 1..bit(self.scope.nodes as u8) {
            let differ = (set ^ voters).count_ones();
            let fits = differ == 1 || (differ == 2 && !self.on(Rule::DifferByOne));
            if fits && set.count_ones() >= 2 {
                sets.push(set);
            }
        }
        sets
    }

    fn of_a_node(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        if it.promise < w.epoch && w.last != w.epoch {
            out.push(Step::Promise(node));
            if !self.on(Rule::PositionWithPromise) && it.early == 0 && self.may_report(w, node) {
                out.push(Step::AskPosition(node));
            }
        }
        if it.durable < it.log.len() || it.kept < it.promise {
            out.push(Step::Sync(node));
        }
        let has_something_to_lose =
            it.durable < it.log.len() || it.kept < it.promise || it.master != 0;
        if has_something_to_lose && w.crashes < self.scope.crashes {
            out.push(Step::Crash(node));
        }
        match it.master {
            0 => {}
            epoch => self.of_a_master(w, node, epoch, out),
        }
        if it.master == 0 || !self.on(Rule::FenceStopsMaster) {
            self.of_a_slave(w, node, out);
        }
        self.of_a_disk(w, node, out);
    }

    fn of_a_master(&self, w: &World, node: u8, epoch: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        let sent = &w.sent[usize::from(epoch)];
        let Some(start) = it.log.start_of(epoch) else {
            let has_floor = it.log.order() >= sent.floor;
            if !has_floor && self.holder(w, epoch).is_some() {
                out.push(Step::Pull(node));
            }
            if has_floor || !self.on(Rule::FloorFirst) {
                out.push(Step::Start(node));
            }
            if !self.on(Rule::ServeAfterStart) {
                out.push(Step::Expose(node));
            }
            return;
        };
        let first = if self.on(Rule::OwnEpochCommits) { start } else { 1 };
        let upto = self.majority_has(w, node);
        if upto >= first && upto > sent.commit {
            out.push(Step::Commit(node));
        }
        let alone = it.durable.min(it.log.len());
        if !self.on(Rule::CommittedAnnounced) && sent.commit >= start && alone > sent.commit {
            out.push(Step::AnnounceAlone(node));
        }
        if sent.commit >= start && w.written < self.scope.writes {
            out.push(Step::Write(node));
        }
    }

    fn of_a_slave(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        if it.lost == Lost::Disk && self.on(Rule::WipedNotAcked) {
            return; // it may take what it likes: nobody hears of it
        }
        let lowest = if self.on(Rule::PromiseStopsAppends) { it.promise.max(1) } else { 1 };
        for epoch in lowest..=w.epoch {
            let sent = &w.sent[usize::from(epoch)];
            if sent.log.is_empty() || it.master == epoch {
                continue;
            }
            let is_part = it.log.begins(sent.log);
            let longer = sent.log.len() > it.log.len();
            if longer && (is_part || !self.on(Rule::AppendNamesTip)) {
                out.push(Step::Take { node, epoch });
            }
            if !is_part && epoch >= it.promise {
                out.push(Step::Cut { node, epoch });
            }
            if !self.on(Rule::WatermarkAfterMatch) && epoch >= it.promise {
                out.push(Step::Adopt { node, epoch });
            }
        }
        if it.late != 0 && it.late - 1 < it.log.len() {
            out.push(Step::CutLate(node));
        }
        if !self.on(Rule::CutAtDivergence) && self.newest_to_follow(w, node).is_some() {
            out.extend((0..it.log.len()).map(|upto| Step::CutToWatermark { node, upto }));
        }
    }

    fn of_a_disk(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        if it.lost == Lost::Tail {
            let sent = &w.sent[usize::from(it.promise)];
            let proved = it.log.prefix(it.durable).begins(sent.log) && sent.commit > 0;
            if proved && it.durable >= sent.commit && it.durable >= it.lost_len {
                out.push(Step::Recover(node));
            }
        }
        if w.losses < self.scope.damages && it.lost == Lost::Nothing {
            out.extend((0..it.durable).map(|upto| Step::Damage { node, upto }));
        }
        if w.losses < self.scope.roll_backs && it.lost == Lost::Nothing && it.promise > 0 {
            let image = |upto| Step::RollBack { node, upto };
            out.extend(
                (0..=it.durable).filter(|upto| it.log.epoch_at(*upto) < it.promise).map(image),
            );
        }
        if w.losses < self.scope.wipes && it.lost == Lost::Nothing && it.promise > 0 {
            out.push(Step::Wipe(node));
        }
    }
}

impl Model for Election {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        match self.seeds.is_empty() {
            true => vec![self.beginning()],
            false => self.seeds.iter().map(|seed| self.walk(seed)).collect(),
        }
    }

    fn actions(&self, w: &World, out: &mut Vec<Step>) {
        if w.broken != 0 {
            return;
        }
        self.of_the_agreed_state(w, out);
        for node in 0..self.scope.nodes as u8 {
            self.of_a_node(w, node, out);
        }
    }

    fn next_state(&self, w: &World, step: Step) -> Option<World> {
        let mut next = *w;
        self.perform(&mut next, step);
        self.tidy(&mut next);
        Some(next)
    }

    fn format_action(&self, step: &Step) -> String {
        format!("{step:?}")
    }

    fn properties(&self) -> Vec<Property<Election>> {
        properties::all()
    }
}

impl Checked for Election {
    fn rule(&self) -> String {
        self.off.map_or("all rules".into(), |rule| format!("{rule:?}"))
    }

    fn trace(&self, world: &World, step: Option<&Step>) -> String {
        let step = step.map_or(String::new(), |step| {
            format!("{:?}", step.map(|place| world.nodes[usize::from(place)].name.0))
        });
        format!("{step:<60} in {world:?}")
    }
}
