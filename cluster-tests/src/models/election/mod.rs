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

mod state;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use stateright::{Model, Property};

pub use state::{Broken, EPOCHS_MAX, Lost, NODES_MAX, Name, Node, Step, World};
use steps::bit;

use super::Checked;
use super::log::Log;

/// What can be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Written is not durable: a slave acknowledges after its sync.
    AckAfterSync,
    /// Nor is it on the master, whose own copy is one acknowledgement like any other.
    OwnAckAfterSync,
    /// A node that promised an epoch takes no append of an earlier one.
    PromiseStopsAppends,
    /// The promise is looked at again after the sync, before the acknowledgement.
    RecheckPromise,
    /// Promise and position are one step: nothing is taken after the position was read.
    PositionWithPromise,
    /// A promise is durable before it is told.
    PromiseDurable,
    /// A master that promises a later epoch is none any more.
    FenceStopsMaster,
    /// Elections take the reports of a majority of the voters.
    FenceMajority,
    /// Of positions the greatest (epoch, seq) counts, not the longest.
    GreatestByEpoch,
    /// The elected has the greatest position before it starts.
    FloorFirst,
    /// One election an epoch: the command is refused if there was one.
    ElectOnce,
    /// A process is master if it is the one that was elected, not one that runs in its place.
    BootChecked,
    MajorityCommits,
    /// What an earlier epoch wrote commits only through a transaction of this one.
    OwnEpochCommits,
    /// The master shows nothing before its epoch start is committed.
    ServeAfterStart,
    AckCarriesEpoch,
    AckCarriesChain,
    /// An append is taken only onto the tip that it names, by chain.
    AppendNamesTip,
    /// A slave believes what is said to be committed only of a file that matched.
    WatermarkAfterMatch,
    /// A file is cut at the proven divergence, not at what its node knows to be committed.
    CutAtDivergence,
    /// A cut that arrives again later finds nothing to cut.
    LateCutRefused,
    /// A node that lost a damaged tail reports no position ...
    RecoveringNotCounted,
    /// ... until it has all that it may have acknowledged: not only what its master says is committed.
    RecoveredWhole,
    /// A node with another disk than it is known by is not believed: not its position, not its acknowledgements.
    WipedNotCounted,
    WipedNotAcked,
    /// A node with an earlier image of its disk finds out, and is as one with another disk.
    RollBackNoticed,
    /// Sets of voters that follow each other differ by one.
    DifferByOne,
    /// The next change waits until the epoch that made the last one has committed its start.
    OpenedBeforeChange,
    /// A new epoch commits by a majority of its own voters.
    NewVotersCommit,
}

/// How far the search goes. Every number is a bound on how often something happens.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub nodes: usize,
    /// Voters at first; the others are learners.
    pub voters: usize,
    pub epochs: u8,
    /// Clients' transactions; each epoch's start comes on top.
    pub writes: u8,
    pub crashes: u8,
    /// Disks damaged.
    pub damages: u8,
    /// Disks replaced by empty ones.
    pub wipes: u8,
    /// Disks replaced by an earlier image of their own.
    pub roll_backs: u8,
    /// Changes of the voters.
    pub changes: u8,
}

impl Scope {
    pub const NONE: Scope = Scope {
        nodes: 3,
        voters: 3,
        epochs: 3,
        writes: 0,
        crashes: 0,
        damages: 0,
        wipes: 0,
        roll_backs: 0,
        changes: 0,
    };
}

/// Steps that must happen somewhere in the search, or it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    MasterFenced,
    ElectedBelowFloor,
    FloorFetched,
    TailCut,
    UnsyncedLost,
    Recovered,
    VotersChanged,
}

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

    // ---- properties ----

    fn has_committed(&self, w: &World, node: &Node) -> bool {
        w.committed.begins(node.log.prefix(node.durable))
    }

    /// What was acknowledged to a client is durable on a majority of the voters it was acknowledged by.
    fn acked_is_durable(&self, w: &World) -> bool {
        let epoch = w.committed.last_epoch();
        let voters = w.nodes[..self.scope.nodes].iter().filter(|node| node.votes & bit(epoch) != 0);
        let size = voters.clone().count();
        let have = voters.filter(|node| node.lost != Lost::Nothing || self.has_committed(w, node));
        w.committed.is_empty() || have.count() > size / 2
    }

    /// No majority of those who will be asked next lacks something committed.
    fn quorums_overlap(&self, w: &World) -> bool {
        let voters =
            w.nodes[..self.scope.nodes].iter().filter(|node| node.votes & bit(w.last) != 0);
        let size = voters.clone().count();
        let lack = voters.filter(|node| node.lost == Lost::Nothing && !self.has_committed(w, node));
        lack.count() <= size / 2
    }

    /// The same seq of the same epoch: the same history.
    fn chains_match(&self, w: &World) -> bool {
        let nodes = &w.nodes[..self.scope.nodes];
        nodes.iter().enumerate().all(|(place, a)| {
            nodes[place + 1..].iter().all(|b| {
                let (a, b): (Log, Log) = (a.log, b.log);
                let common = a.common(b);
                (common + 1..=a.len().min(b.len())).all(|seq| a.epoch_at(seq) != b.epoch_at(seq))
            })
        })
    }

    fn epoch_unique(&self, w: &World) -> bool {
        let nodes = &w.nodes[..self.scope.nodes];
        (1..=w.epoch).all(|epoch| nodes.iter().filter(|node| node.master == epoch).count() <= 1)
    }

    fn epochs_grow_along(&self, log: Log) -> bool {
        (1..log.len()).all(|seq| log.epoch_at(seq) <= log.epoch_at(seq + 1))
    }

    /// Whoever told a position has promised the fence, and still does.
    fn promises_stand(&self, w: &World) -> bool {
        w.nodes[..self.scope.nodes]
            .iter()
            .all(|node| node.report == 0 || node.promise >= w.epoch || node.lost == Lost::Disk)
    }

    fn amnesiac_is_silent(&self, w: &World) -> bool {
        let direct = [Rule::WipedNotCounted, Rule::RecoveringNotCounted];
        !direct.iter().all(|rule| self.on(*rule))
            || w.nodes[..self.scope.nodes]
                .iter()
                .all(|node| node.lost == Lost::Nothing || node.master == 0)
    }
}

fn held(w: &World, what: Broken) -> bool {
    w.broken & what as u8 == 0
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
        vec![
            Property::always("AckedIsDurable", |model: &Election, w: &World| {
                model.acked_is_durable(w)
            }),
            Property::always("LeaderCompleteness", |_, w: &World| {
                held(w, Broken::LeaderCompleteness)
            }),
            Property::always("CommittedNeverTruncated", |_, w: &World| {
                held(w, Broken::CommittedNeverTruncated)
            }),
            Property::always("QuorumsOverlap", |model: &Election, w: &World| {
                model.quorums_overlap(w)
            }),
            Property::always("ChainMatch", |model: &Election, w: &World| model.chains_match(w)),
            Property::always("EpochUnique", |model: &Election, w: &World| model.epoch_unique(w)),
            Property::always("ChainEpochMonotone", |model: &Election, w: &World| {
                w.nodes.iter().all(|node| model.epochs_grow_along(node.log))
            }),
            Property::always("PromiseMonotone", |model: &Election, w: &World| {
                model.promises_stand(w)
            }),
            Property::always("NoAckBelowPromise", |_, w: &World| {
                held(w, Broken::NoAckBelowPromise)
            }),
            Property::always("CommitNeedsOwnEpoch", |_, w: &World| {
                held(w, Broken::CommitNeedsOwnEpoch)
            }),
            Property::always("ReadIsCommittedPrefix", |_, w: &World| {
                held(w, Broken::ReadIsCommittedPrefix)
            }),
            Property::always("AmnesiacSilent", |model: &Election, w: &World| {
                model.amnesiac_is_silent(w)
            }),
            Property::sometimes("a commit in the last epoch", |model: &Election, w: &World| {
                w.committed.last_epoch() == model.scope.epochs
            }),
            Property::sometimes("all writes are committed", |model: &Election, w: &World| {
                let starts = (1..=model.scope.epochs)
                    .filter(|epoch| w.committed.start_of(*epoch).is_some())
                    .count() as u8;
                w.committed.len() >= starts + model.scope.writes
            }),
            Property::sometimes("three histories at once", |model: &Election, w: &World| {
                let nodes = &w.nodes[..model.scope.nodes];
                if model.scope.epochs < 3 {
                    return true;
                }
                let apart = |a: &Node, b: &Node| !a.log.begins(b.log) && !b.log.begins(a.log);
                nodes.iter().enumerate().any(|(place, a)| {
                    nodes[place + 1..]
                        .iter()
                        .any(|b| apart(a, b) && nodes.iter().any(|c| apart(a, c) && apart(b, c)))
                })
            }),
        ]
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
