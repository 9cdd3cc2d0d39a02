//! What each step does. Every function is one atomic step of one node, or of the agreed state.

use super::super::log::Log;
use super::state::{Broken, Lost, Step, World};
use super::{Election, Point, Rule};

pub fn bit(number: u8) -> u8 {
    1 << number
}

/// (epoch, seq) the other way round: what `Rule::GreatestByEpoch` is about.
fn by_seq(order: u8) -> u8 {
    order.rotate_right(4)
}

impl Election {
    pub(super) fn perform(&self, w: &mut World, step: Step) {
        match step {
            Step::Fence => w.epoch += 1,
            Step::Promise(node) => self.promise(w, node, w.epoch),
            Step::Elect { winner, holder, floor, voters } => {
                self.elect(w, winner, holder, floor, voters)
            }
            Step::Pull(node) => self.pull(w, node),
            Step::Start(node) => self.start(w, node),
            Step::Write(node) => {
                w.written += 1;
                self.push(w, node);
            }
            Step::Take { node, epoch } => self.take(w, node, epoch),
            Step::Sync(node) => self.sync(w, node),
            Step::Cut { node, epoch } => self.cut(w, node, epoch),
            Step::Commit(node) => self.commit(w, node),
            Step::Crash(node) => {
                w.crashes += 1;
                self.crash(w, node);
            }
            Step::Damage { node, upto } => self.damage(w, node, upto),
            Step::Recover(node) => self.recover(w, node),
            Step::Wipe(node) => self.wipe(w, node),
            Step::RollBack { node, upto } => self.roll_back(w, node, upto),
            Step::AskPosition(node) => {
                let it = &mut w.nodes[usize::from(node)];
                it.early = it.log.prefix(it.durable).order() + 1;
            }
            Step::CutLate(node) => {
                let upto = w.nodes[usize::from(node)].late - 1;
                self.cut_to(w, node, upto);
            }
            Step::CutToWatermark { node, upto } => {
                let epoch = self.newest_to_follow(w, node).expect("enabled");
                self.promise(w, node, epoch);
                self.cut_to(w, node, upto);
            }
            Step::Adopt { node, epoch } => {
                let it = &w.nodes[usize::from(node)];
                let known = it.log.prefix(w.sent[usize::from(epoch)].commit);
                if !known.begins(w.committed) {
                    self.broke(w, Broken::ReadIsCommittedPrefix);
                }
            }
            Step::AnnounceAlone(node) => {
                let it = w.nodes[usize::from(node)];
                w.sent[usize::from(it.master)].commit = it.durable;
            }
            Step::Expose(node) => self.commit_upto(w, w.nodes[usize::from(node)].log),
        }
    }

    fn broke(&self, w: &mut World, what: Broken) {
        w.broken |= what as u8;
    }

    /// Promise and position in one durable step. What was written before is durable before: the disk keeps the order.
    pub(super) fn promise(&self, w: &mut World, node: u8, epoch: u8) {
        let before = w.nodes[usize::from(node)];
        if before.promise >= epoch {
            return;
        }
        if before.durable < before.log.len() && before.master == 0 && !self.on(Rule::RecheckPromise)
        {
            // The sync that the promise waits for is answered as if there were no promise.
            w.nodes[usize::from(node)].promise = epoch;
            w.nodes[usize::from(node)].durable = before.log.len();
            self.acknowledge(w, node, before.log.last_epoch());
        }
        let counts = self.may_report(w, node);
        let it = &mut w.nodes[usize::from(node)];
        it.durable = it.log.len();
        it.promise = epoch;
        if self.on(Rule::PromiseDurable) {
            it.kept = epoch;
        }
        if it.master != 0 && self.on(Rule::FenceStopsMaster) {
            it.master = 0;
            self.saw(Point::MasterFenced);
        }
        it.lost_len = 0;
        it.late = 0;
        let position = if it.early != 0 { it.early } else { it.log.order() + 1 };
        it.early = 0;
        if counts && epoch == w.epoch && w.last != w.epoch {
            it.report = position;
        }
    }

    /// A voter whose word about its file counts.
    pub(super) fn may_report(&self, w: &World, node: u8) -> bool {
        let it = &w.nodes[usize::from(node)];
        let silent = match it.lost {
            Lost::Nothing => false,
            Lost::Tail => self.on(Rule::RecoveringNotCounted),
            Lost::Disk => self.on(Rule::WipedNotCounted),
        };
        it.votes & bit(w.last) != 0 && !silent
    }

    fn elect(&self, w: &mut World, winner: u8, holder: u8, floor: u8, voters: u8) {
        let epoch = w.epoch;
        let before = w.last;
        w.last = epoch;
        w.opened = false;
        let mut changed = false;
        for (place, it) in (0..).zip(&mut w.nodes[..self.scope.nodes]) {
            changed |= (it.votes & bit(before) != 0) != (voters & bit(place) != 0);
            if voters & bit(place) != 0 {
                it.votes |= bit(epoch);
            }
            if self.on(Rule::ElectOnce) {
                it.report = 0;
            }
        }
        if changed {
            w.changes += 1;
            self.saw(Point::VotersChanged);
        }
        let sent = &mut w.sent[usize::from(epoch)];
        sent.floor = floor;
        w.nodes[usize::from(holder)].holds |= bit(epoch);
        let it = &mut w.nodes[usize::from(winner)];
        // A process that died since it reported is not the one that was elected; nor is one that promised more since.
        if it.lost == Lost::Nothing || !self.on(Rule::WipedNotCounted) {
            it.master = epoch;
        }
        if it.log.order() < floor {
            self.saw(Point::ElectedBelowFloor);
        }
    }

    fn pull(&self, w: &mut World, node: u8) {
        let epoch = w.nodes[usize::from(node)].master;
        let floor = w.sent[usize::from(epoch)].floor;
        let holder = self.holder(w, epoch).expect("enabled");
        let source = holder.prefix(floor & 15);
        let common = w.nodes[usize::from(node)].log.common(source);
        self.cut_to(w, node, common);
        w.nodes[usize::from(node)].log = source;
        self.saw(Point::FloorFetched);
    }

    /// The durable file of a node that has what `epoch`'s elected must have.
    pub(super) fn holder(&self, w: &World, epoch: u8) -> Option<Log> {
        let floor = w.sent[usize::from(epoch)].floor;
        let durable = |node: &super::state::Node| node.log.prefix(node.durable);
        w.nodes[..self.scope.nodes]
            .iter()
            .filter(|node| node.holds & bit(epoch) != 0)
            .map(durable)
            .find(|log| log.prefix(floor & 15).order() == floor)
    }

    fn start(&self, w: &mut World, node: u8) {
        let it = &w.nodes[usize::from(node)];
        // One that is late, and superseded, knows nothing of what came after it.
        let is_newest = w.committed.last_epoch() < it.master;
        if is_newest && !w.committed.begins(it.log) {
            self.broke(w, Broken::LeaderCompleteness);
        }
        self.push(w, node);
    }

    /// The master's next transaction: to its disk and to everybody at once.
    fn push(&self, w: &mut World, node: u8) {
        // A process that goes on in its predecessor's name writes something else at the same place.
        let nonce = if self.on(Rule::BootChecked) { 0 } else { w.crashes };
        let it = &mut w.nodes[usize::from(node)];
        it.log = it.log.push(it.master | nonce << 4);
        w.sent[usize::from(it.master)].log = it.log;
    }

    fn take(&self, w: &mut World, node: u8, epoch: u8) {
        self.promise(w, node, epoch);
        let sent = w.sent[usize::from(epoch)];
        let it = &mut w.nodes[usize::from(node)];
        it.log = it.log.push(sent.log.at(it.log.len() + 1));
        let known = it.log.prefix(sent.commit);
        if it.promise > epoch || !self.on(Rule::AckAfterSync) {
            if it.promise > epoch {
                it.durable = it.log.len();
            }
            self.acknowledge(w, node, epoch);
        }
        if !known.begins(w.committed) && self.on(Rule::WatermarkAfterMatch) {
            self.broke(w, Broken::ReadIsCommittedPrefix);
        }
    }

    fn sync(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        it.durable = it.log.len();
        it.kept = it.promise;
        if it.master == 0 {
            let epoch = it.promise;
            self.acknowledge(w, node, epoch);
        }
    }

    /// What is durable, to the epoch's master. It counts if it is a part of the master's file: the chain tells.
    fn acknowledge(&self, w: &mut World, node: u8, epoch: u8) {
        let it = w.nodes[usize::from(node)];
        let mutant = [Rule::PromiseStopsAppends, Rule::PromiseDurable];
        if it.promise > epoch && mutant.iter().all(|rule| self.on(*rule)) {
            self.broke(w, Broken::NoAckBelowPromise);
        }
        // A damaged node keeps its promise, and what it says is durable is: believing it would do no harm.
        if it.lost == Lost::Tail || (it.lost == Lost::Disk && self.on(Rule::WipedNotAcked)) {
            return;
        }
        let upto = if self.on(Rule::AckAfterSync) { it.durable } else { it.log.len() };
        let matches = it.log.prefix(upto).begins(w.sent[usize::from(epoch)].log);
        if matches || !self.on(Rule::AckCarriesChain) {
            let known = &mut w.nodes[usize::from(node)].acks[usize::from(epoch)];
            *known = upto.max(*known);
        }
    }

    fn cut(&self, w: &mut World, node: u8, epoch: u8) {
        self.promise(w, node, epoch);
        let common = w.nodes[usize::from(node)].log.common(w.sent[usize::from(epoch)].log);
        if !self.on(Rule::AckCarriesChain) {
            self.acknowledge(w, node, epoch);
        }
        self.cut_to(w, node, common);
        if !self.on(Rule::LateCutRefused) {
            w.nodes[usize::from(node)].late = common + 1;
        }
        self.saw(Point::TailCut);
    }

    /// A node that is told by an old epoch's master to cut what only a later epoch has committed, without this node,
    /// may do so: `AckedIsDurable` and `QuorumsOverlap` look after the copies that count.
    fn cut_to(&self, w: &mut World, node: u8, upto: u8) {
        let committed = w.committed;
        let it = &mut w.nodes[usize::from(node)];
        let by = it.promise;
        let lost = by >= committed.last_epoch() && it.log.common(committed) > upto;
        it.log = it.log.prefix(upto);
        // The disk keeps the order: what was appended before the cut is durable when the cut is.
        it.durable = upto;
        let direct = [Rule::CutAtDivergence, Rule::LateCutRefused];
        if lost && direct.iter().all(|rule| self.on(*rule)) {
            self.broke(w, Broken::CommittedNeverTruncated);
        }
    }

    /// What a majority of the epoch's voters has durably, by their acknowledgements and the master's own disk.
    pub(super) fn majority_has(&self, w: &World, node: u8) -> u8 {
        let master = &w.nodes[usize::from(node)];
        let epoch = usize::from(master.master);
        let mut has = [0u8; super::state::NODES_MAX];
        let mut voters = 0;
        for (place, it) in (0..).zip(&w.nodes[..self.scope.nodes]) {
            if it.votes & bit(master.master) == 0 {
                continue;
            }
            has[voters] = match place == node {
                true if self.on(Rule::OwnAckAfterSync) => it.durable,
                true => it.log.len(),
                false if self.on(Rule::AckCarriesEpoch) => it.acks[epoch],
                false => it.acks.iter().copied().max().expect("epochs"),
            };
            voters += 1;
        }
        has[..voters].sort_unstable();
        let mut enough = voters / 2 + 1;
        if !self.on(Rule::MajorityCommits) || (!self.on(Rule::NewVotersCommit) && voters == 4) {
            enough -= 1;
        }
        has[voters - enough].min(master.log.len())
    }

    fn commit(&self, w: &mut World, node: u8) {
        let upto = self.majority_has(w, node);
        let it = w.nodes[usize::from(node)];
        let epoch = it.master;
        if it.log.epoch_at(upto) != epoch && self.on(Rule::OwnEpochCommits) {
            self.broke(w, Broken::CommitNeedsOwnEpoch);
        }
        w.sent[usize::from(epoch)].commit = upto;
        if w.epoch == epoch && w.last == epoch && self.scope.changes > 0 {
            w.opened = true;
        }
        self.commit_upto(w, it.log.prefix(upto));
    }

    /// Clients may know all of `log` from now on.
    fn commit_upto(&self, w: &mut World, log: Log) {
        if !log.begins(w.committed) && !w.committed.begins(log) {
            self.broke(w, Broken::CommittedNeverTruncated);
        }
        if log.len() > w.committed.len() {
            w.committed = log;
        }
    }

    fn crash(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        if it.durable < it.log.len() {
            self.saw(Point::UnsyncedLost);
        }
        it.log = it.log.prefix(it.durable);
        it.promise = it.kept;
        it.early = 0;
        if self.on(Rule::BootChecked) {
            it.master = 0;
        }
    }

    fn damage(&self, w: &mut World, node: u8, upto: u8) {
        w.losses += 1;
        self.crash(w, node);
        let it = &mut w.nodes[usize::from(node)];
        it.lost = Lost::Tail;
        it.lost_len = it.log.len();
        it.log = it.log.prefix(upto);
        it.durable = upto;
        if !self.on(Rule::RecoveredWhole) {
            it.lost_len = 0;
        }
    }

    fn recover(&self, w: &mut World, node: u8) {
        let it = &mut w.nodes[usize::from(node)];
        it.lost = Lost::Nothing;
        it.lost_len = 0;
        let epoch = it.promise;
        self.acknowledge(w, node, epoch);
        self.saw(Point::Recovered);
    }

    fn wipe(&self, w: &mut World, node: u8) {
        w.losses += 1;
        let it = &mut w.nodes[usize::from(node)];
        it.log = Log::default();
        (it.durable, it.promise, it.kept, it.master) = (0, 0, 0, 0);
        it.lost = Lost::Disk;
    }

    /// The image has the file up to `upto`, and no promise above what is in the file.
    fn roll_back(&self, w: &mut World, node: u8, upto: u8) {
        let log = w.nodes[usize::from(node)].log.prefix(upto);
        self.wipe(w, node);
        let it = &mut w.nodes[usize::from(node)];
        (it.log, it.durable) = (log, upto);
        (it.promise, it.kept) = (log.last_epoch(), log.last_epoch());
        if !self.on(Rule::RollBackNoticed) {
            it.lost = Lost::Nothing;
        }
    }

    /// Whether the other rank of the same two numbers is greater.
    pub(super) fn greater(&self, a: u8, b: u8) -> bool {
        match self.on(Rule::GreatestByEpoch) {
            true => a > b,
            false => by_seq(a) > by_seq(b),
        }
    }

    /// Forgets what can have no effect any more, and sorts the nodes: fewer states for the same behaviour.
    pub(super) fn tidy(&self, w: &mut World) {
        let nodes = self.scope.nodes;
        if self.forgets() {
            let lowest = w.nodes[..nodes].iter().map(|node| node.promise).min().expect("nodes");
            let shown = w.committed.last_epoch();
            for epoch in 1..=self.scope.epochs {
                let led = w.nodes[..nodes].iter().find(|node| node.master == epoch).copied();
                let waits = led.is_some_and(|node| node.log.start_of(epoch).is_none());
                if lowest > epoch {
                    w.sent[usize::from(epoch)] = Default::default();
                }
                if !waits {
                    w.sent[usize::from(epoch)].floor = 0;
                }
                let keeps_votes = led.is_some() || epoch == w.last || epoch == shown;
                for node in &mut w.nodes[..nodes] {
                    if led.is_none() {
                        node.acks[usize::from(epoch)] = 0;
                    }
                    if !waits {
                        node.holds &= !bit(epoch);
                    }
                    if !keeps_votes {
                        node.votes &= !bit(epoch);
                    }
                }
            }
        }
        w.nodes[..nodes].sort_unstable();
    }
}
