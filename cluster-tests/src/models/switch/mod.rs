//! Pack and generation switch, of three nodes.
//!
//! The election model's nodes, with a file that has a generation and perhaps a next file beside it, and one object that
//! may be dead: a pack leaves it out if nothing up to the cut refers to it, and then nothing after the cut may.
//! Positions, elections, appends and cut-backs are as in `election`, reduced in the same way, with the rules that are
//! broken there kept. Besides:
//!
//! * A base is what it is made from: the history up to F, whether the object is in it, whether its builder's disk is
//!   broken. Equal bases are equal hashes. P has no part in it: the mark at F is what counts.
//! * The next file follows the current one whenever anybody could look: a node lets it catch up before it promises,
//!   and before it flips.
//! * To flip to the file one has, to build it late from one's own file, and to fetch what is missing up to the cut
//!   (or a base) are one step with one outcome: the new base, and one's own tail if one shares the cut. The flip is
//!   durable with the next sync, behind everything else that was asked of the disk.
//! * The search begins with the first epoch elected, not started.
//! * There is one switch; packs that are called off may come before it.
//!
//! Positions of an old and a new generation compare by (epoch, seq), which run on: that alone does no harm. What must
//! not be is a master that opens the old file after the switch, counted as if it were current
//! (`CurrentGenerationOnly`). Nor is it needed, for what is acknowledged, that a majority has the new file before the
//! switch (every node that has the old history at the cut can build it), or that appends name their generation: the
//! chains of two generations differ, and an append names its tip by chain.

mod state;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use stateright::{Model, Property};

pub use state::{Base, Broken, EPOCHS_MAX, NODES, Node, Pack, Step, World};
use steps::{bit, relinks};

use super::Checked;
use super::election::Name;

/// What can be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Any election but the switch ends a pack: the new master knows no dead.
    OtherElectionsCallOff,
    /// From F on the master refuses what refers to the dead.
    DeadRefused,
    /// What was appended while the mark ran is looked at before anything is sealed.
    MarkLooksBehind,
    /// A seal that was decided in another epoch is refused.
    SealNamesEpoch,
    /// A base that differs from the agreed one is not used.
    BaseAgreed,
    /// The next file has what the current one has when it takes its place.
    NextFollows,
    /// Who builds late re-chains its own tail: what it acknowledged stays.
    RebaseKeepsTail,
    /// The flip is durable after what the new file holds, not before.
    FlipAfterData,
    /// A node in an older generation is not counted by an election, and does not open.
    CurrentGenerationOnly,
    /// The elected of a new generation has the greatest position, in that generation's file.
    SwitchTakesGreatest,
}

#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub epochs: u8,
    pub writes: u8,
    pub crashes: u8,
    pub packs: u8,
    /// Nodes that build something else than they should.
    pub broken_disks: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    Switched,
    CalledOff,
    MarkExtended,
    BasesDiffered,
    Flipped,
    Rebased,
    Fetched,
    FlipUndone,
}

#[derive(Clone)]
pub struct Switch {
    pub scope: Scope,
    pub off: Option<Rule>,
    seen: Arc<AtomicU32>,
}

impl Switch {
    pub fn new(scope: Scope) -> Switch {
        Switch { scope, off: None, seen: Arc::default() }
    }

    pub fn without(self, rule: Rule) -> Switch {
        Switch { off: Some(rule), ..self }
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

    // ---- which steps are possible ----

    fn of_the_agreed_state(&self, w: &World, out: &mut Vec<Step>) {
        if w.last != w.epoch {
            self.elections(w, out);
            return;
        }
        if w.epoch < self.scope.epochs {
            out.push(Step::Fence { switch: false });
            if w.pack.agreed.is_there() {
                out.push(Step::Fence { switch: true });
            }
        }
        let is_open = w.sent[usize::from(w.epoch)].commit > 0;
        let may_pack = w.pack.started == 0 && !w.base.is_there() && w.packs < self.scope.packs;
        if is_open && may_pack {
            out.push(Step::PackStart);
        }
        let fits = w.pack.started != 0 && !w.pack.seal.is_there() && w.proposed.is_there();
        let own = w.proposed_in == w.epoch && w.pack.started == w.epoch;
        if fits && (own || !self.on(Rule::SealNamesEpoch)) {
            out.push(Step::Seal);
        }
    }

    fn elections(&self, w: &World, out: &mut Vec<Step>) {
        let at = |node: u8| &w.nodes[usize::from(node)];
        let has_next = |node: u8| match self.on(Rule::BaseAgreed) {
            true => at(node).reported_next == w.pack.agreed,
            false => at(node).reported_next.is_there(),
        };
        for some in 1..bit(NODES as u8) {
            let members = (0..NODES as u8).filter(|node| some & bit(*node) != 0);
            if members.clone().count() < 2 || members.clone().any(|node| at(node).report == 0) {
                continue;
            }
            let holder = members.clone().max_by_key(|node| at(*node).report).expect("a majority");
            let greatest = at(holder).report;
            let ready: Vec<u8> = members.clone().filter(|node| has_next(*node)).collect();
            let holds_all = ready.iter().any(|node| at(*node).report == greatest)
                || !self.on(Rule::SwitchTakesGreatest);
            let switch = w.to_switch && w.pack.agreed.is_there() && ready.len() >= 2 && holds_all;
            for winner in members {
                let has_all = at(winner).report == greatest || !self.on(Rule::SwitchTakesGreatest);
                if switch && !(has_next(winner) && has_all) {
                    continue;
                }
                let floor = match switch && !self.on(Rule::SwitchTakesGreatest) {
                    true => at(winner).report - 1,
                    false => greatest - 1,
                };
                let step = Step::Elect { winner, holder, floor, switch };
                if !out.contains(&step) {
                    out.push(step);
                }
            }
        }
    }

    fn of_a_node(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        if it.promise < w.epoch && w.last != w.epoch {
            out.push(Step::Promise(node));
        }
        let pending = it.durable < it.log.len() || it.old_len != 0;
        if pending {
            out.push(Step::Sync(node));
        }
        if (pending || it.master != 0 || it.next.is_there()) && w.crashes < self.scope.crashes {
            out.push(Step::Crash(node));
        }
        if w.base.is_there() && !it.base.is_there() && it.promise <= w.epoch {
            out.push(Step::Flip(node));
        }
        match it.master {
            0 => self.of_a_slave(w, node, out),
            epoch => self.of_a_master(w, node, epoch, out),
        }
        self.of_a_builder(w, node, out);
    }

    fn of_a_builder(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        // While a fence is under way the pack is of an epoch before: nothing more is agreed.
        let under_way = w.pack.seal.is_there()
            && w.last == w.epoch
            && (w.pack.started == w.epoch || !self.on(Rule::OtherElectionsCallOff));
        let reaches = w.cut.begins(it.log.prefix(it.durable));
        if !under_way || !reaches || it.base.is_there() || it.next.is_there() {
            return;
        }
        out.push(Step::Build { node, broken: false });
        if w.broken_disks < self.scope.broken_disks {
            out.push(Step::Build { node, broken: true });
        }
    }

    fn of_a_master(&self, w: &World, node: u8, epoch: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        let sent = &w.sent[usize::from(epoch)];
        let Some(start) = it.log.start_of(epoch) else {
            // It opens from the agreed file only. One that was superseded may not know of the newest.
            let agreed = if epoch >= w.switched { w.base } else { Base::default() };
            let is_current = it.base == agreed
                || !self.on(Rule::BaseAgreed)
                || !self.on(Rule::CurrentGenerationOnly);
            if !is_current {
                return;
            }
            if it.log.order() >= sent.floor {
                out.push(Step::Start(node));
            } else if self.holder(w, epoch).is_some_and(|holder| holder.base == it.base) {
                out.push(Step::Pull(node));
            }
            return;
        };
        let upto = self.majority_has(w, node);
        if upto >= start && upto > sent.commit {
            out.push(Step::Commit(node));
        }
        if sent.commit < start {
            return;
        }
        if w.written < self.scope.writes {
            out.push(Step::Write { node, relinks: false });
            let dead = it.knows_dead && !relinks(it.log.prefix(it.mark), 1);
            let gone = it.base.drops();
            if !gone && (!dead || !self.on(Rule::DeadRefused)) {
                out.push(Step::Write { node, relinks: true });
            }
        }
        if w.pack.started == epoch && w.epoch == epoch && !w.pack.seal.is_there() {
            match (it.mark, it.knows_dead) {
                (0, _) => out.push(Step::Mark(node)),
                (_, false) => out.push(Step::Marked(node)),
                _ => {}
            }
        }
    }

    fn of_a_slave(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let it = &w.nodes[usize::from(node)];
        for epoch in it.promise.max(1)..=w.epoch {
            let sent = &w.sent[usize::from(epoch)];
            if sent.log.is_empty() || sent.base != it.base {
                continue;
            }
            match it.log.begins(sent.log) {
                true if sent.log.len() > it.log.len() => out.push(Step::Take { node, epoch }),
                true => {}
                false => out.push(Step::Cut { node, epoch }),
            }
        }
    }

    // ---- properties ----

    /// The current file, and the old one where a crash could bring it back.
    fn has_committed(&self, w: &World, node: &Node) -> bool {
        let old = node.log.prefix(node.old_len);
        w.committed.begins(node.log.prefix(node.durable)) || w.committed.begins(old)
    }

    fn acked_is_durable(&self, w: &World) -> bool {
        w.nodes.iter().filter(|node| self.has_committed(w, node)).count() >= 2
    }

    fn chains_match(&self, w: &World) -> bool {
        w.nodes.iter().enumerate().all(|(place, a)| {
            w.nodes[place + 1..].iter().all(|b| {
                let common = a.log.common(b.log);
                let differ = (common + 1..=a.log.len().min(b.log.len()))
                    .all(|seq| a.log.epoch_at(seq) != b.log.epoch_at(seq));
                let one_file = a.base == b.base || !a.base.is_there() || !b.base.is_there();
                differ && one_file
            })
        })
    }

    /// The generation holds what the old one held at the cut, but for what nothing refers to, then or ever after.
    fn generation_equivalent(&self, w: &World) -> bool {
        let sound = |base: Base, log: crate::models::log::Log| {
            let loses = base.drops() && relinks(log, 1);
            !base.is_there() || !(base.is_broken() || loses)
        };
        sound(w.base, w.committed)
            && w.nodes
                .iter()
                .filter(|node| node.base == w.base)
                .all(|node| sound(node.base, node.log))
    }

    fn epoch_unique(&self, w: &World) -> bool {
        (1..=w.epoch).all(|epoch| w.nodes.iter().filter(|it| it.master == epoch).count() <= 1)
    }
}

fn held(w: &World, what: Broken) -> bool {
    w.broken & what as u8 == 0
}

impl Model for Switch {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World { epoch: 1, last: 1, ..World::default() };
        for (place, node) in world.nodes.iter_mut().enumerate() {
            node.name = Name(place as u8);
            node.promise = 1;
        }
        world.nodes[0].master = 1;
        self.tidy(&mut world);
        vec![world]
    }

    fn actions(&self, w: &World, out: &mut Vec<Step>) {
        if w.broken != 0 {
            return;
        }
        self.of_the_agreed_state(w, out);
        for node in 0..NODES as u8 {
            self.of_a_node(w, node, out);
        }
    }

    fn next_state(&self, w: &World, step: Step) -> Option<World> {
        let mut next = *w;
        self.perform(&mut next, step);
        self.tidy(&mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Switch>> {
        type Of<'a> = &'a Switch;
        vec![
            Property::always("GenerationEquivalent", |model: Of<'_>, w: &World| {
                model.generation_equivalent(w)
            }),
            Property::always("AckedIsDurable", |model: Of<'_>, w: &World| {
                model.acked_is_durable(w)
            }),
            Property::always("LeaderCompleteness", |_, w: &World| {
                held(w, Broken::LeaderCompleteness)
            }),
            Property::always("CommittedNeverTruncated", |_, w: &World| {
                held(w, Broken::CommittedNeverTruncated)
            }),
            Property::always("ChainMatch", |model: Of<'_>, w: &World| model.chains_match(w)),
            Property::always("EpochUnique", |model: Of<'_>, w: &World| model.epoch_unique(w)),
            Property::sometimes("the switch completes everywhere", |_, w: &World| {
                w.base.is_there()
                    && w.nodes.iter().all(|node| node.base == w.base && node.old_len == 0)
            }),
            Property::sometimes("a commit in the new generation", |_, w: &World| {
                w.switched != 0 && w.committed.last_epoch() >= w.switched
            }),
            Property::sometimes("an object is dropped", |_, w: &World| w.base.drops()),
            Property::sometimes("an object is kept", |_, w: &World| {
                w.base.is_there() && !w.base.drops()
            }),
        ]
    }
}

impl Checked for Switch {
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
