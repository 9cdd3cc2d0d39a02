//! What each step does.

use super::super::log::Log;
use super::state::{Base, Broken, Node, Pack, RELINKS, Sent, Step, World};
use super::{Point, Rule, Switch};

pub fn bit(number: u8) -> u8 {
    1 << number
}

/// Does anything from `from` on refer to the object?
pub fn relinks(log: Log, from: u8) -> bool {
    (from..=log.len()).any(|seq| log.at(seq) & RELINKS != 0)
}

impl Switch {
    pub(super) fn perform(&self, w: &mut World, step: Step) {
        match step {
            Step::Fence { switch } => {
                w.epoch += 1;
                w.to_switch = switch;
            }
            Step::Promise(node) => self.promise(w, node, w.epoch),
            Step::Elect { winner, holder, floor, switch } => {
                self.elect(w, winner, holder, floor, switch)
            }
            Step::Pull(node) => self.pull(w, node),
            Step::Start(node) => self.start(w, node),
            Step::Write { node, relinks } => {
                w.written += 1;
                self.push(w, node, if relinks { RELINKS } else { 0 });
            }
            Step::Take { node, epoch } => {
                self.promise(w, node, epoch);
                let it = &mut w.nodes[usize::from(node)];
                it.log = it.log.push(w.sent[usize::from(epoch)].log.at(it.log.len() + 1));
            }
            Step::Sync(node) => self.sync(w, node),
            Step::Cut { node, epoch } => self.cut(w, node, epoch),
            Step::Commit(node) => self.commit(w, node),
            Step::Crash(node) => {
                w.crashes += 1;
                self.crash(w, node);
            }
            Step::PackStart => {
                w.packs += 1;
                w.pack = Pack { started: w.epoch, ..Pack::default() };
            }
            Step::Mark(node) => {
                let it = &mut w.nodes[usize::from(node)];
                it.mark = w.sent[usize::from(it.master)].commit;
            }
            Step::Marked(node) => self.marked(w, node),
            Step::Seal => {
                w.pack.seal = w.proposed;
                let master = w.nodes.iter().find(|node| node.master == w.proposed_in);
                let cut = master.map(|node| node.log).unwrap_or(w.committed);
                w.cut = cut.prefix(w.proposed.cut());
                w.proposed = Base::default();
                w.proposed_in = 0;
            }
            Step::Build { node, broken } => self.build(w, node, broken),
            Step::Flip(node) => self.flip(w, node),
        }
    }

    fn broke(&self, w: &mut World, what: Broken) {
        w.broken |= what as u8;
    }

    /// Everything that was asked of the disk before is durable with the promise: appends to both files, and a flip.
    fn promise(&self, w: &mut World, node: u8, epoch: u8) {
        let it = &mut w.nodes[usize::from(node)];
        if it.promise >= epoch {
            return;
        }
        it.durable = it.log.len();
        it.old_len = 0;
        it.promise = epoch;
        (it.master, it.mark, it.knows_dead) = (0, 0, false);
        self.report(w, node);
    }

    /// To the election under way. A node in an older generation is not counted, and reports again when it has flipped.
    fn report(&self, w: &mut World, node: u8) {
        let (current, fenced) = (w.base, w.epoch);
        let fencing = w.last != w.epoch;
        let it = &mut w.nodes[usize::from(node)];
        let settled = it.durable == it.log.len() && it.promise == fenced;
        if fencing && settled && (it.base == current || !self.on(Rule::CurrentGenerationOnly)) {
            it.report = it.log.order() + 1;
            it.reported_next = it.next;
        }
    }

    fn elect(&self, w: &mut World, winner: u8, holder: u8, floor: u8, switch: bool) {
        let epoch = w.epoch;
        w.last = epoch;
        w.to_switch = false;
        for it in &mut w.nodes {
            it.report = 0;
            it.reported_next = Base::default();
        }
        w.sent[usize::from(epoch)].floor = floor;
        w.nodes[usize::from(holder)].holds |= bit(epoch);
        w.nodes[usize::from(winner)].master = epoch;
        if switch {
            w.base = w.pack.agreed;
            w.switched = epoch;
            w.pack = Pack::default();
            self.saw(Point::Switched);
            if !w.nodes[usize::from(winner)].base.is_there() {
                self.flip(w, winner);
            }
        } else if w.pack.started != 0 && self.on(Rule::OtherElectionsCallOff) {
            w.pack = Pack::default();
            w.cut = Log::default();
            self.saw(Point::CalledOff);
            for it in &mut w.nodes {
                it.next = Base::default();
            }
        }
    }

    pub(super) fn holder(&self, w: &World, epoch: u8) -> Option<Node> {
        let floor = w.sent[usize::from(epoch)].floor;
        let has = |node: &&Node| node.log.prefix(node.durable).prefix(floor & 15).order() == floor;
        w.nodes.iter().filter(|node| node.holds & bit(epoch) != 0).find(has).copied()
    }

    fn pull(&self, w: &mut World, node: u8) {
        let epoch = w.nodes[usize::from(node)].master;
        let holder = self.holder(w, epoch).expect("enabled");
        let source = holder.log.prefix(w.sent[usize::from(epoch)].floor & 15);
        let common = w.nodes[usize::from(node)].log.common(source);
        self.cut_to(w, node, common);
        w.nodes[usize::from(node)].log = source;
    }

    fn start(&self, w: &mut World, node: u8) {
        let it = &w.nodes[usize::from(node)];
        if w.committed.last_epoch() < it.master && !w.committed.begins(it.log) {
            self.broke(w, Broken::LeaderCompleteness);
        }
        self.push(w, node, 0);
    }

    fn push(&self, w: &mut World, node: u8, kind: u8) {
        let it = &mut w.nodes[usize::from(node)];
        it.log = it.log.push(it.master | kind);
        let sent = &mut w.sent[usize::from(it.master)];
        (sent.log, sent.base) = (it.log, it.base);
    }

    fn sync(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        it.durable = it.log.len();
        it.old_len = 0;
        let sent = &w.sent[usize::from(it.promise)];
        if it.master == 0 && it.base == sent.base && it.log.begins(sent.log) {
            it.acks[usize::from(it.promise)] = it.durable;
        }
        self.report(w, node);
    }

    fn cut(&self, w: &mut World, node: u8, epoch: u8) {
        self.promise(w, node, epoch);
        let it = &mut w.nodes[usize::from(node)];
        it.old_len = 0;
        it.next = Base::default();
        let common = it.log.common(w.sent[usize::from(epoch)].log);
        self.cut_to(w, node, common);
    }

    fn cut_to(&self, w: &mut World, node: u8, upto: u8) {
        let committed = w.committed;
        let it = &mut w.nodes[usize::from(node)];
        let lost = it.promise >= committed.last_epoch() && it.log.common(committed) > upto;
        it.log = it.log.prefix(upto);
        // The disk keeps the order: what was appended before the cut is durable when the cut is.
        it.durable = upto;
        if lost {
            self.broke(w, Broken::CommittedNeverTruncated);
        }
    }

    pub(super) fn majority_has(&self, w: &World, node: u8) -> u8 {
        let master = &w.nodes[usize::from(node)];
        let mut has: Vec<u8> =
            w.nodes.iter().map(|it| it.acks[usize::from(master.master)]).collect();
        has[usize::from(node)] = master.durable;
        has.sort_unstable();
        has[1]
    }

    fn commit(&self, w: &mut World, node: u8) {
        let upto = self.majority_has(w, node);
        let it = w.nodes[usize::from(node)];
        w.sent[usize::from(it.master)].commit = upto;
        let log = it.log.prefix(upto);
        if !log.begins(w.committed) && !w.committed.begins(log) {
            self.broke(w, Broken::CommittedNeverTruncated);
        }
        if log.len() > w.committed.len() {
            w.committed = log;
        }
    }

    fn crash(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        if it.old_len != 0 && self.on(Rule::FlipAfterData) {
            self.saw(Point::FlipUndone);
            it.log = it.log.prefix(it.old_len);
            it.durable = it.old_len;
            it.base = Base::default();
        }
        it.log = it.log.prefix(it.durable);
        it.old_len = 0;
        it.next = Base::default();
        (it.master, it.mark, it.knows_dead) = (0, 0, false);
    }

    /// The mark is done, as of F. What was appended meanwhile must not refer to what is dead; what comes is refused.
    fn marked(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        let f = it.mark;
        let drops = !relinks(it.log.prefix(f), 1);
        if drops && relinks(it.log, f + 1) && self.on(Rule::MarkLooksBehind) {
            it.mark = 0; // extended: marked anew from a later F
            self.saw(Point::MarkExtended);
            return;
        }
        it.knows_dead = true;
        w.proposed = Base::new(f, drops, false);
        w.proposed_in = it.master;
    }

    fn build(&self, w: &mut World, node: u8, broken: bool) {
        let built = Base::new(w.pack.seal.cut(), w.pack.seal.drops(), broken);
        w.broken_disks += u8::from(broken);
        if !w.pack.agreed.is_there() {
            w.pack.agreed = built;
        } else if w.pack.agreed != built {
            self.saw(Point::BasesDiffered);
            if self.on(Rule::BaseAgreed) {
                return;
            }
        }
        w.nodes[usize::from(node)].next = built;
    }

    /// The new generation's file becomes current. Whoever has the old history at the cut keeps its tail.
    fn flip(&self, w: &mut World, node: u8) {
        self.promise(w, node, w.switched);
        let (base, cut) = (w.base, w.cut);
        let it = &mut w.nodes[usize::from(node)];
        let had_next = it.next.is_there();
        let old_len = it.log.len();
        let shares_cut = cut.begins(it.log);
        let before = it.log;
        it.base = if had_next { it.next } else { base };
        it.next = Base::default();
        it.log = match shares_cut {
            false => cut,
            true if had_next && !self.on(Rule::NextFollows) => cut,
            true if !had_next && !self.on(Rule::RebaseKeepsTail) => cut,
            true => it.log,
        };
        self.saw(match (had_next, shares_cut) {
            (true, _) => Point::Flipped,
            (false, true) => Point::Rebased,
            (false, false) => Point::Fetched,
        });
        it.old_len = old_len.max(1);
        // Of the new file only the base is surely durable; the old one stands until the flip is.
        it.durable = cut.len();
        let by_rule = self.on(Rule::NextFollows) && self.on(Rule::RebaseKeepsTail);
        let kept = it.log;
        if by_rule && before.common(w.committed) > kept.common(w.committed) {
            self.broke(w, Broken::CommittedNeverTruncated);
        }
    }

    /// Forgets what can have no effect any more, and sorts the nodes.
    pub(super) fn tidy(&self, w: &mut World) {
        let lowest = w.nodes.iter().map(|node| node.promise).min().expect("nodes");
        for epoch in 1..=self.scope.epochs {
            let led = w.nodes.iter().find(|node| node.master == epoch).copied();
            let waits = led.is_some_and(|node| node.log.start_of(epoch).is_none());
            if lowest > epoch {
                w.sent[usize::from(epoch)] = Sent::default();
            }
            if !waits {
                w.sent[usize::from(epoch)].floor = 0;
            }
            for node in &mut w.nodes {
                if led.is_none() {
                    node.acks[usize::from(epoch)] = 0;
                }
                if !waits {
                    node.holds &= !bit(epoch);
                }
            }
        }
        let late_seal_matters = !self.on(Rule::SealNamesEpoch);
        if w.proposed_in != w.epoch && !late_seal_matters {
            w.proposed = Base::default();
            w.proposed_in = 0;
        }
        w.nodes.sort_unstable();
    }
}
