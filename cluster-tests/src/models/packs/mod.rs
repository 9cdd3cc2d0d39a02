//! Packs in the control log: commands that are late, come twice, or come in another order.
//!
//! Nothing of files and appends: `switch` has those. Here is what that model leaves out: a command that was proposed once is
//! applied any time later, any number of times, or never. So it is with a line that stalls, with a proxy, with a Raft
//! leader that is replaced. Of the data there is one object. It is garbage at first, a client still holds it and may link it
//! again, unless the master knows it for dead.
//!
//! * A command is refused if it was decided in another epoch; the model keeps that rule, and nothing it shows needs it off.
//! * A mark with what it looks behind is one step (`switch` takes it apart), and so is an election: it calls the pack off, and
//!   leaves the pack to begin again. The new master is another process or another node: it knows no mark.
//! * A base is what it was made from: the pack whose mark the seal is of, and whether its builder's disk is broken.
//! * The master is node 0. It may hand over where it has not built, but not where it did not make the seal itself.

mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use stateright::{Model, Property};

use super::Checked;

pub const NODES: usize = 3;
/// The node whose disk is broken, in a scope with one: the first that builds.
const BROKEN_NODE: u8 = 1;

/// What can be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A seal is taken for the pack that it names.
    SealNamesPack,
    /// A master calls off a pack whose agreed seal it has not marked.
    ForeignSealCalledOff,
    /// A start is refused if any pack has begun or ended since it was decided.
    StartNamesLast,
    /// A cancel ends the pack that it names.
    CancelNamesPack,
    /// A base is taken for the pack that it names.
    BaseNamesPack,
    /// Two equal bases outvote the first.
    TwoOutvote,
    /// However often a node says what it has built, it is one vote.
    OneVoteEach,
    /// Who is ready has the base that is agreed now.
    ReadyNamesBase,
}

#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub epochs: u8,
    /// Packs that people ask for, and cancels.
    pub starts: u8,
    pub cancels: u8,
    /// Times that the object is linked or unlinked.
    pub writes: u8,
    /// Nodes build bases and say so; otherwise a sealed pack can be switched to at once.
    pub builds: bool,
    pub broken_disk: bool,
}

/// A command that was proposed. It is there for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Command {
    Start { epoch: u8, after: u8 },
    Seal { epoch: u8, pack: u8, drops: bool },
    Cancel { epoch: u8, pack: u8 },
    Base { epoch: u8, pack: u8, node: u8, base: u8 },
    Ready { epoch: u8, pack: u8, node: u8, base: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    AskStart,
    AskCancel,
    /// The leader starts what an election called off.
    StartAgain,
    Link,
    Unlink,
    Mark,
    /// The master calls off a pack with a seal that is not its own.
    CallOff,
    /// Another mastership.
    Elect,
    Build(u8),
    SayReady(u8),
    /// Once more, or for the first time.
    Apply(Command),
    Switch,
}

/// Broken in a step, not to be seen in a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    GenerationEquivalent = 1,
    CancelledStays = 2,
    CancelEndsItsPack = 4,
    PackComesToEnd = 8,
    SwitchedToMajority = 16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    CancelledAndStartedAgain,
    StartedAgainAfterElection,
    LateSealRefused,
    RepeatRefused,
    FirstBaseOutvoted,
    SwitchedWithoutTheOdd,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pack {
    /// 0: there is none.
    pub id: u8,
    pub epoch: u8,
    /// The pack whose mark the seal is of; 0: not sealed.
    pub seal_of: u8,
    pub drops: bool,
    /// By node: what it has built, by its own word; 0: nothing.
    pub builds: [u8; NODES],
    /// Votes of right and wrong bases, where every word counts as one.
    pub words: [u8; 2],
    pub agreed: u8,
    /// Nodes, as bits.
    pub ready: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct World {
    pub epoch: u8,
    /// Of the Raft log: of the newest command that was taken.
    pub index: u8,
    /// Index of the last command that began or ended a pack.
    pub changed: u8,
    pub pack: Pack,
    /// A pack that an election called off; 0: none waits.
    pub again: u8,
    /// Somebody has asked for a pack since the last cancel.
    pub wanted: bool,
    pub linked: bool,
    pub writes: u8,
    pub starts: u8,
    pub cancels: u8,
    /// The pack that the present master has marked; 0: none. And whether the object is dead in it.
    pub marked: u8,
    pub dead: bool,
    /// By node: what it has built for the pack in progress; 0: nothing.
    pub files: [u8; NODES],
    pub proposed: BTreeSet<Command>,
    pub switched: bool,
    pub broken: u8,
}

/// What a healthy disk makes of a seal, and what a broken one does.
pub fn base(seal_of: u8, wrong: bool) -> u8 {
    2 * seal_of + u8::from(wrong)
}

#[derive(Clone)]
pub struct Packs {
    pub scope: Scope,
    pub off: Vec<Rule>,
    /// A foreign seal may be agreed: is the second wall enough?
    second_wall_only: bool,
    seen: Arc<AtomicU32>,
}

impl Packs {
    pub fn new(scope: Scope) -> Packs {
        Packs { scope, off: Vec::new(), second_wall_only: false, seen: Arc::default() }
    }

    pub fn without(mut self, rule: Rule) -> Packs {
        self.off.push(rule);
        self
    }

    /// That a foreign seal is agreed is no failure by itself.
    pub fn judge_the_second_wall(self) -> Packs {
        Packs { second_wall_only: true, ..self }
    }

    pub fn on(&self, rule: Rule) -> bool {
        !self.off.contains(&rule)
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

    fn of_people(&self, w: &World, out: &mut Vec<Step>) {
        if w.pack.id == 0 && w.starts < self.scope.starts {
            out.push(Step::AskStart);
        }
        if (w.pack.id != 0 || w.again != 0) && w.cancels < self.scope.cancels {
            out.push(Step::AskCancel);
        }
        if w.writes < self.scope.writes {
            let refused = w.marked != 0 && w.marked == w.pack.id && w.dead;
            match w.linked {
                true => out.push(Step::Unlink),
                false if refused => {}
                false => out.push(Step::Link),
            }
        }
    }

    fn of_the_master(&self, w: &World, out: &mut Vec<Step>) {
        let again = Command::Start { epoch: w.epoch, after: w.changed };
        if w.again != 0 && !w.proposed.contains(&again) {
            out.push(Step::StartAgain);
        }
        if w.epoch < self.scope.epochs {
            out.push(Step::Elect);
        }
        let pack = &w.pack;
        if pack.id == 0 || pack.epoch != w.epoch {
            return;
        }
        if pack.seal_of == 0 && w.marked != pack.id {
            out.push(Step::Mark);
        }
        let cancel = Command::Cancel { epoch: w.epoch, pack: pack.id };
        if self.is_foreign(w) && !w.proposed.contains(&cancel) {
            out.push(Step::CallOff);
        }
        let is_ready = |node: u8| !self.scope.builds || pack.ready & 1 << node != 0;
        let ready = (0..NODES as u8).filter(|node| is_ready(*node)).count();
        if pack.seal_of != 0 && ready >= 2 && !self.is_foreign(w) {
            out.push(Step::Switch);
        }
    }

    /// The master sees a seal that it has not made.
    fn is_foreign(&self, w: &World) -> bool {
        let foreign = w.pack.seal_of != 0 && w.marked != w.pack.seal_of;
        let foreign = foreign || (w.pack.seal_of != 0 && w.pack.seal_of != w.pack.id);
        foreign && self.on(Rule::ForeignSealCalledOff)
    }

    fn of_a_builder(&self, w: &World, node: u8, out: &mut Vec<Step>) {
        let pack = &w.pack;
        if !self.scope.builds || pack.seal_of == 0 || pack.epoch != w.epoch {
            return;
        }
        let mine = w.files[usize::from(node)];
        if mine == 0 && !(node == 0 && self.is_foreign(w)) {
            out.push(Step::Build(node));
        }
        let said = pack.builds[usize::from(node)] == mine || !self.on(Rule::BaseNamesPack);
        let ready = Command::Ready { epoch: w.epoch, pack: pack.id, node, base: mine };
        if mine != 0 && said && pack.agreed == mine && !w.proposed.contains(&ready) {
            out.push(Step::SayReady(node));
        }
    }
}

fn held(w: &World, what: Broken) -> bool {
    w.broken & what as u8 == 0
}

impl Model for Packs {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World { epoch: 1, ..World::default() }]
    }

    fn actions(&self, w: &World, out: &mut Vec<Step>) {
        if w.broken != 0 || w.switched {
            return;
        }
        self.of_people(w, out);
        self.of_the_master(w, out);
        for node in 0..NODES as u8 {
            self.of_a_builder(w, node, out);
        }
        out.extend(w.proposed.iter().map(|command| Step::Apply(*command)));
    }

    fn next_state(&self, w: &World, step: Step) -> Option<World> {
        let mut next = w.clone();
        self.perform(&mut next, step);
        (next != *w).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Packs>> {
        vec![
            Property::always("GenerationEquivalent", |_, w| held(w, Broken::GenerationEquivalent)),
            Property::always("SealOfItsPack", |model: &Packs, w: &World| {
                w.pack.seal_of == 0 || w.pack.seal_of == w.pack.id || model.second_wall_only
            }),
            Property::always("BaseOfItsPack", |model: &Packs, w: &World| {
                let of_this = w.pack.agreed == 0 || w.pack.agreed / 2 == w.pack.seal_of;
                of_this || model.second_wall_only
            }),
            Property::always("CancelledStays", |_, w| held(w, Broken::CancelledStays)),
            Property::always("CancelEndsItsPack", |_, w| held(w, Broken::CancelEndsItsPack)),
            Property::always("PackComesToEnd", |_, w| held(w, Broken::PackComesToEnd)),
            Property::always("SwitchedToMajority", |_, w| held(w, Broken::SwitchedToMajority)),
            Property::sometimes("a switch", |_, w: &World| w.switched),
        ]
    }
}

impl Checked for Packs {
    fn rule(&self) -> String {
        match &self.off[..] {
            [] => "all rules".into(),
            off => off.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>().join(" "),
        }
    }

    fn trace(&self, world: &World, step: Option<&Step>) -> String {
        let step = step.map_or(String::new(), |step| format!("{step:?}"));
        format!("{step:<60} in {world:?}")
    }
}
