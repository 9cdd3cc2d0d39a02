//! What each step does.

use super::{BROKEN_NODE, Broken, Command, NODES, Pack, Packs, Point, Rule, Step, World, base};

impl Packs {
    pub(super) fn perform(&self, w: &mut World, step: Step) {
        match step {
            Step::AskStart => {
                w.starts += 1;
                self.propose_start(w);
            }
            Step::StartAgain => self.propose_start(w),
            Step::AskCancel => {
                w.cancels += 1;
                let pack = if w.pack.id != 0 { w.pack.id } else { w.again };
                w.proposed.insert(Command::Cancel { epoch: w.epoch, pack });
            }
            Step::CallOff => {
                w.proposed.insert(Command::Cancel { epoch: w.epoch, pack: w.pack.id });
            }
            Step::Link | Step::Unlink => {
                w.writes += 1;
                w.linked = !w.linked;
            }
            Step::Mark => {
                (w.marked, w.dead) = (w.pack.id, !w.linked);
                let (epoch, pack, drops) = (w.epoch, w.pack.id, w.dead);
                w.proposed.insert(Command::Seal { epoch, pack, drops });
            }
            Step::Elect => self.elect(w),
            Step::Build(node) => {
                let wrong = self.scope.broken_disk && node == BROKEN_NODE;
                let base = base(w.pack.seal_of, wrong);
                w.files[usize::from(node)] = base;
                w.proposed.insert(Command::Base { epoch: w.epoch, pack: w.pack.id, node, base });
            }
            Step::SayReady(node) => {
                let base = w.files[usize::from(node)];
                w.proposed.insert(Command::Ready { epoch: w.epoch, pack: w.pack.id, node, base });
            }
            Step::Apply(command) => self.apply(w, command),
            Step::Switch => self.switch(w),
        }
    }

    fn propose_start(&self, w: &mut World) {
        w.wanted = true;
        w.proposed.insert(Command::Start { epoch: w.epoch, after: w.changed });
    }

    /// The present mastership ends. What was decided in it is refused from now on.
    fn elect(&self, w: &mut World) {
        w.epoch += 1;
        w.index += 1;
        (w.marked, w.dead) = (0, false);
        w.proposed.clear();
        if w.pack.id != 0 {
            w.again = w.pack.id;
            w.wanted = true;
            self.end_pack(w);
        }
    }

    fn end_pack(&self, w: &mut World) {
        w.pack = Pack::default();
        w.files = [0; NODES];
        w.changed = w.index;
    }

    fn apply(&self, w: &mut World, command: Command) {
        match command {
            Command::Start { after, .. } => self.start(w, after),
            Command::Seal { pack, drops, .. } => {
                let names = pack == w.pack.id || !self.on(Rule::SealNamesPack);
                if w.pack.id == 0 || w.pack.seal_of != 0 || !names {
                    self.saw(match w.pack.id != 0 && pack != w.pack.id {
                        true => Point::LateSealRefused,
                        false => Point::RepeatRefused,
                    });
                    return;
                }
                w.index += 1;
                (w.pack.seal_of, w.pack.drops) = (pack, drops);
            }
            Command::Cancel { pack, .. } => self.cancel(w, pack),
            Command::Base { pack, node, base, .. } => self.say_base(w, pack, node, base),
            Command::Ready { pack, node, base, .. } => {
                let builds = w.pack.builds[usize::from(node)];
                let has = base == w.pack.agreed && builds == base;
                if pack == w.pack.id && (has || !self.on(Rule::ReadyNamesBase)) {
                    w.pack.ready |= 1 << node;
                }
            }
        }
    }

    fn start(&self, w: &mut World, after: u8) {
        let names = after == w.changed || !self.on(Rule::StartNamesLast);
        if w.pack.id != 0 || !names {
            return self.saw(Point::RepeatRefused);
        }
        if !w.wanted {
            w.broken |= Broken::CancelledStays as u8;
            return;
        }
        if w.index > 0 {
            self.saw(match w.again != 0 {
                true => Point::StartedAgainAfterElection,
                false => Point::CancelledAndStartedAgain,
            });
        }
        w.index += 1;
        w.again = 0;
        w.changed = w.index;
        w.pack = Pack { id: w.index, epoch: w.epoch, ..Pack::default() };
        w.files = [0; NODES];
    }

    fn cancel(&self, w: &mut World, pack: u8) {
        let present = if w.pack.id != 0 { w.pack.id } else { w.again };
        if present == 0 || (present != pack && self.on(Rule::CancelNamesPack)) {
            return self.saw(Point::RepeatRefused);
        }
        if present != pack {
            w.broken |= Broken::CancelEndsItsPack as u8;
            return;
        }
        w.index += 1;
        (w.again, w.wanted) = (0, false);
        self.end_pack(w);
    }

    fn say_base(&self, w: &mut World, of: u8, node: u8, base: u8) {
        let names = of == w.pack.id || !self.on(Rule::BaseNamesPack);
        if w.pack.id == 0 || w.pack.seal_of == 0 || !names {
            return self.saw(Point::RepeatRefused);
        }
        let pack = &mut w.pack;
        let known = std::mem::replace(&mut pack.builds[usize::from(node)], base) == base;
        // More than two of a kind make no difference.
        let word = &mut pack.words[usize::from(base % 2)];
        if !known || !self.on(Rule::OneVoteEach) {
            *word = (*word + 1).min(NODES as u8);
        }
        let votes = |pack: &Pack, base: u8| match self.on(Rule::OneVoteEach) {
            true => pack.builds.iter().filter(|built| **built == base).count() as u8,
            false => pack.words[usize::from(base % 2)],
        };
        if pack.agreed == 0 {
            pack.agreed = base;
        }
        let other = pack.agreed ^ 1;
        let outvoted = votes(pack, other) >= 2 && votes(pack, other) > votes(pack, pack.agreed);
        if outvoted && self.on(Rule::TwoOutvote) {
            self.saw(Point::FirstBaseOutvoted);
            pack.agreed = other;
            let builds = pack.builds;
            if self.on(Rule::ReadyNamesBase) {
                let has = |node: u8| builds[usize::from(node)] == other;
                pack.ready = (0..NODES as u8)
                    .filter(|node| pack.ready & 1 << node != 0 && has(*node))
                    .map(|node| 1 << node)
                    .sum();
            }
        }
        // Everybody has spoken: what two of them have is what it comes to.
        let right = pack.builds.iter().filter(|built| **built % 2 == 0).count();
        let all = pack.builds.iter().all(|built| *built != 0);
        if all && right >= 2 && !pack.agreed.is_multiple_of(2) {
            w.broken |= Broken::PackComesToEnd as u8;
        }
    }

    fn switch(&self, w: &mut World) {
        w.switched = true;
        if w.pack.drops && w.linked {
            w.broken |= Broken::GenerationEquivalent as u8;
        }
        if self.scope.builds {
            // Who is ready follows in both files: what has to have the new generation is a majority of them.
            let ready =
                w.files.iter().enumerate().filter(|(node, _)| w.pack.ready & 1 << node != 0);
            let have = ready.filter(|(_, file)| **file == w.pack.agreed).count();
            if have < 2 {
                w.broken |= Broken::SwitchedToMajority as u8;
            }
            if w.pack.builds[usize::from(BROKEN_NODE)] % 2 == 1 && w.pack.agreed.is_multiple_of(2) {
                self.saw(Point::SwitchedWithoutTheOdd);
            }
        }
    }
}
