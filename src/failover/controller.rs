//! What the Raft leader proposes next, and why.
//!
//! The controller keeps nothing that matters: a new leader asks the voters again and comes to the same end. It is
//! asked after everything that happened (`decide`) and answers with commands to propose and requests to send. A command
//! proposed twice, or on an older state, is refused by the state itself.

use std::collections::BTreeMap;

use super::election::{self, Report, Verdict};
use super::health::{Health, Look, Opinions};
use super::packs::Packs;
pub use super::packs::preflight;
pub use super::progress::PromoteAsked;
use super::progress::{Opening, PromoteStep, Promoting};
use crate::admin::eligible::eligible;
use crate::control::{Phase, State};
use crate::mutants::{self, Mutant};
use crate::plausible::EPOCH_AHEAD_MAX;
use crate::proto::control::command::Kind;
use crate::proto::control::{Beat, ControlState, FenceCommand, Opened, PromoteProgress, Reason};
use crate::replication::quorum::majority;
use crate::types::{Epoch, Generation, NodeId, Now, PackId};

/// How long things may take before something else is tried. All in milliseconds; none matters for safety.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two beats of a node.
    pub beat_ms: u64,
    /// A node that says nothing for this long is taken for dead, if a majority hears nothing.
    pub silence_ms: u64,
    /// Raft's clock.
    pub raft_tick_ms: u64,
    /// Raft followers wait so many ticks for their leader.
    pub raft_election_ticks: u64,
    /// An elected master that has moved next to nothing toward opening for this long is replaced.
    pub open_timeout_ms: u64,
    /// Next to nothing: less than so many bytes a second.
    pub opening_bytes_per_s_min: u64,
    /// A promote is called off when its target has come no nearer to the master for this long.
    pub promote_patience_ms: u64,
    /// How long an election waits for voters that seem alive, beyond a majority.
    pub report_grace_ms: u64,
    /// How long a pack waits for stragglers once a majority is ready.
    pub straggler_ms: u64,
    /// A pack that was called off by an election begins again after the new master has been open for this long.
    pub pack_again_ms: u64,
    /// After a pack that failed none begins by itself for so long, whatever the settings say.
    pub pack_failed_ms: u64,
    /// Raft entries applied since the last snapshot of the state, before the next is taken.
    pub raft_compact_every: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            beat_ms: 50,
            silence_ms: 500,
            raft_tick_ms: 25,
            raft_election_ticks: 16,
            open_timeout_ms: 2000,
            opening_bytes_per_s_min: 8 << 10,
            promote_patience_ms: 5000,
            report_grace_ms: 150,
            straggler_ms: 10_000,
            pack_again_ms: 1000,
            pack_failed_ms: 600_000,
            raft_compact_every: 512,
        }
    }
}

/// All a decision depends on.
pub struct View<'a> {
    pub me: NodeId,
    pub now: Now,
    pub state: &'a State,
    pub health: &'a Health,
    pub own_beat: &'a Beat,
    pub timing: &'a Timing,
}

impl View<'_> {
    pub fn beat(&self, id: NodeId) -> Option<&Beat> {
        if id == self.me { Some(self.own_beat) } else { self.health.beat(id) }
    }

    fn look(&self, id: NodeId) -> Look {
        match id == self.me {
            true => Look::Alive,
            false => self.health.look(id, self.timing.silence_ms, self.now),
        }
    }

    pub(super) fn is_alive(&self, id: NodeId) -> bool {
        self.look(id) == Look::Alive && self.beat(id).is_some()
    }

    /// Who is to take over from a master that goes on until then: the best of the voters in step that are fit for it.
    pub(super) fn best_in_step(
        &self,
        master: NodeId,
        fit: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let can_take_over = |id: &NodeId| {
            let may = self.state.member(*id).is_some_and(|member| member.may_be_master);
            let fine = self.beat(*id).is_some_and(|beat| {
                beat.in_step && !beat.leaving && beat.failing.is_empty() && beat.suspect.is_empty()
            });
            *id != master && may && fine && self.is_alive(*id) && fit(*id)
        };
        let priority = |id: &NodeId| self.state.member(*id).map_or(0, |member| member.priority);
        let ready = self.state.voters().into_iter().filter(can_take_over);
        ready.max_by_key(|id| (priority(id), std::cmp::Reverse(*id)))
    }
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Decision {
    Propose(Kind),
    AskFence {
        voter: NodeId,
        epoch: Epoch,
    },
    /// To build; or, to the master, to hold commits until that node has all of them.
    PackTurn {
        node: NodeId,
        pack: PackId,
        generation: Generation,
        hold_for: Option<NodeId>,
    },
    /// A pack is due, and can't begin.
    PackWaits {
        cause: String,
        why: String,
    },
    /// A person must look: the election can't go on.
    Alarm(String),
    /// A promote waits until its target, which lacks so many bytes, lacks little.
    PromoteWaits {
        target: NodeId,
        lacks_bytes: u64,
    },
    /// A promote will not be.
    PromoteCalledOff {
        target: NodeId,
        asked_by: String,
        why: String,
    },
}

const REASK_MS: u64 = 100;
const REPROPOSE_MS: u64 = 300;

#[derive(Debug, Default)]
pub struct Controller {
    reports: BTreeMap<NodeId, Report>,
    /// The fence the reports are of, and when this leader first saw it.
    fence: Option<(Epoch, Now)>,
    asked: BTreeMap<NodeId, Now>,
    proposed: Option<(Kind, Now)>,
    promote: Option<Promoting>,
    /// The present election, while it is not open.
    election: Option<Opening>,
    /// Since when somebody says that it has left this epoch, which is open.
    broken: Option<(Epoch, Now)>,
    /// When this leader first saw the present epoch open.
    pub(super) opened: Option<(Epoch, Now)>,
    /// Since when clients have been waiting for a master.
    outage: Option<Now>,
    pub(super) packs: Packs,
    alarmed: Option<String>,
}

impl Controller {
    /// This node is not the leader (any more): everything is asked anew by whoever is.
    pub fn forget(&mut self) {
        *self = Controller::default();
    }

    /// In this epoch, at this time.
    pub fn ask_promote(&mut self, asked: PromoteAsked, epoch: Epoch, now: Now) {
        self.promote = Some(Promoting::new(asked, epoch, now));
    }

    /// For this leader's beats: the promote that it was asked for last.
    pub fn promote_told(&self) -> Option<PromoteProgress> {
        self.promote.as_ref().map(Promoting::told)
    }

    pub fn on_report(&mut self, from: NodeId, report: Report) {
        self.reports.insert(from, report);
    }

    pub fn decide(&mut self, view: &View<'_>) -> Vec<Decision> {
        let mut out = Vec::new();
        match view.state.phase() {
            Phase::None => self.bootstrap(view, &mut out),
            Phase::Fencing { .. } => self.fencing(view, &mut out),
            Phase::Elected { opened: false } => self.opening(view, &mut out),
            Phase::Elected { opened: true } => {
                self.watching(view, &mut out);
                if out.is_empty() {
                    self.packing(view, &mut out);
                }
            }
        }
        out
    }

    fn bootstrap(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let everybody = view
            .state
            .members()
            .all(|member| member.disk_uuid.is_some() && view.is_alive(member.id));
        if everybody {
            self.fence_now(view, Reason::Bootstrap, None, "automatic", "first election", out);
        }
    }

    // ---- fenced: collect reports, elect ----

    fn fencing(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let Some(fence) = view.state.fencing() else { return };
        let epoch = fence.epoch;
        if self.fence.map(|(of, _)| of) != Some(epoch) {
            self.fence = Some((epoch, view.now));
            if !mutants::broken(Mutant::OldReportsCounted) {
                self.reports.clear();
            }
            self.asked.clear();
            self.outage.get_or_insert(view.now);
        }
        self.promote.take_if(|promote| Some(promote.asked.target) == fence.target);
        let since = self.fence.expect("just set").1;
        let voters = view.state.voters();
        let fits =
            |report: &Report| report.epoch == epoch || mutants::broken(Mutant::OldReportsCounted);
        // A process that has started since reports anew: what the one before it said of itself holds no more. That only
        // spares an election: the promise it told of was durable and binds the next process, too, so whatever commits is in
        // the greatest position told; if that is lost with its disk, the elected can't fetch it, does not open, and the
        // next election hears the new process; and an elected process that is gone is none (`Mutant::MasterBootIgnored`).
        let gone = |id: &NodeId, report: &Report| {
            view.beat(*id)
                .is_some_and(|beat| beat.boot != report.boot.0 && beat.promised == epoch.0)
        };
        self.reports.retain(|id, report| fits(report) && voters.contains(id) && !gone(id, report));
        for &voter in &voters {
            let counts = self.reports.get(&voter).is_some_and(|report| report.counts(view.state));
            let due = self.asked.get(&voter).is_none_or(|at| view.now.since_ms(*at) >= REASK_MS);
            if !counts && due {
                self.asked.insert(voter, view.now);
                out.push(Decision::AskFence { voter, epoch });
            }
        }
        let waited = view.now.since_ms(since) >= view.timing.report_grace_ms;
        let awaited = |voter: &NodeId| !self.reports.contains_key(voter) && view.is_alive(*voter);
        if !waited && voters.iter().any(awaited) {
            return;
        }
        match election::judge(view.state, fence, &self.reports) {
            Verdict::Wait => {}
            Verdict::Alarm(why) => self.alarm(why, out),
            Verdict::Elect(elect) => self.propose(view, Kind::Elect(elect), out),
        }
    }

    // ---- elected: wait for it to open ----

    fn opening(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let epoch = view.state.epoch();
        if self.election.as_ref().is_none_or(|election| election.epoch != epoch) {
            self.election = Some(Opening::new(epoch, view.now));
        }
        let (master, boot) = view.state.master().expect("somebody was elected");
        let beat = view.beat(master);
        if let Some(beat) = beat.filter(|beat| beat.boot == boot.0)
            && beat.open
            && beat.promised == epoch.0
        {
            let waited =
                self.outage.map_or(0, |since| view.now.mono_us.saturating_sub(since.mono_us));
            let opened =
                Opened { epoch: epoch.0, seq: beat.committed_seq, clients_waited_us: waited };
            self.propose(view, Kind::Opened(opened), out);
            return;
        }
        let restarted = beat.is_some_and(|beat| beat.boot != boot.0);
        let opinions = self.opinions(view, master);
        let dead = opinions.refused >= majority(view.state.voters().len());
        let election = self.election.as_mut().expect("just set");
        let stuck = election.stuck(view, master);
        let why = match (restarted, dead, stuck) {
            (true, ..) => "restarted before it opened".to_string(),
            (_, true, _) => "died before it opened".to_string(),
            (.., Some(why)) => why,
            _ => return,
        };
        let why = format!("{} {why}", name(view, master));
        self.fence_now(view, Reason::NotOpened, None, "automatic", &why, out);
    }

    // ---- open: watch the master, do what was asked ----

    fn watching(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let epoch = view.state.epoch();
        if self.opened.map(|(of, _)| of) != Some(epoch) {
            self.opened = Some((epoch, view.now));
            self.outage = None;
        }
        let (master, boot) = view.state.master().expect("somebody is open");
        let beat = view.beat(master);
        if let Some(beat) = beat.filter(|beat| beat.boot != boot.0) {
            let why = format!("{} runs as a new process ({:016x})", name(view, master), beat.boot);
            let target = view.state.paused().then_some(master);
            self.outage = Some(view.now);
            self.fence_now(view, Reason::MasterRestarted, target, "automatic", &why, out);
            return;
        }
        if beat.is_some_and(|beat| beat.leaving) && view.state.voters().len() > 1 {
            let why = format!("{} is shutting down", name(view, master));
            self.fence_now(view, Reason::HandOver, None, "automatic", &why, out);
            return;
        }
        if !view.state.paused()
            && (self.judge_master(view, master, out) || self.end_broken_epoch(view, master, out))
        {
            return;
        }
        self.go_on_with_promote(view, master, out);
    }

    /// A promote fences when its target lacks little: until then the present master goes on.
    fn go_on_with_promote(&mut self, view: &View<'_>, master: NodeId, out: &mut Vec<Decision>) {
        let Some(mut promote) = self.promote.take() else { return };
        if promote.asked.target == master {
            return;
        }
        match promote.step(view, master) {
            PromoteStep::Waits | PromoteStep::Over => {}
            PromoteStep::BeginsToWait { lacks_bytes } => {
                out.push(Decision::PromoteWaits { target: promote.asked.target, lacks_bytes });
            }
            PromoteStep::CalledOff { why } => {
                let PromoteAsked { target, asked_by, .. } = promote.asked.clone();
                out.push(Decision::PromoteCalledOff { target, asked_by, why });
            }
            PromoteStep::Fence => {
                let PromoteAsked { target, asked_by, why } = promote.asked.clone();
                self.fence_now(view, Reason::Promote, Some(target), &asked_by, &why, out);
            }
        }
        self.promote = Some(promote);
    }

    /// Somebody has left the epoch for one that Raft does not know: the master, which then serves nobody, or a slave, which
    /// takes nothing from it any more. No connection and no silence will ever tell, so what they say themselves counts, if
    /// they say it for so long that it can be no old word. True if something was decided.
    fn end_broken_epoch(
        &mut self,
        view: &View<'_>,
        master: NodeId,
        out: &mut Vec<Decision>,
    ) -> bool {
        let epoch = view.state.epoch();
        let Some(why) = self.broken_epoch(view, master) else {
            self.broken = None;
            return false;
        };
        let since = match self.broken {
            Some((of, since)) if of == epoch => since,
            _ => view.now,
        };
        self.broken = Some((epoch, since));
        if view.now.since_ms(since) < view.timing.open_timeout_ms {
            return false;
        }
        self.outage = Some(since);
        self.fence_now(view, Reason::NotOpened, Some(master), "automatic", &why, out);
        true
    }

    fn broken_epoch(&self, view: &View<'_>, master: NodeId) -> Option<String> {
        let epoch = view.state.epoch();
        let says = |id: NodeId| view.beat(id).filter(|_| view.is_alive(id));
        let beat = says(master);
        if let Some(beat) = beat.filter(|beat| !beat.open || beat.promised != epoch.0) {
            return Some(format!(
                "{} is the master of epoch {epoch} and says that it is not: it has promised epoch {} and is {}",
                name(view, master),
                beat.promised,
                if beat.open { "open" } else { "not open" },
            ));
        }
        let ahead = |beat: &&Beat| {
            beat.promised > epoch.0
                && beat.promised - epoch.0 <= EPOCH_AHEAD_MAX
                && beat.suspect.is_empty()
        };
        let left = |id: NodeId| says(id).filter(ahead).map(|beat| (id, beat.promised));
        let (id, promised) = view.state.voters().into_iter().find_map(left)?;
        Some(format!(
            "{} has promised epoch {promised}, which was never decided, and takes nothing in epoch {epoch}",
            name(view, id)
        ))
    }

    /// Replaces a master that is dead or silent, and relieves one that is failing. True if something was decided.
    fn judge_master(&mut self, view: &View<'_>, master: NodeId, out: &mut Vec<Decision>) -> bool {
        let voters = view.state.voters();
        let enough = majority(voters.len());
        let opinions = self.opinions(view, master);
        let who = name(view, master);
        let (reason, why) = if opinions.refused >= enough {
            let why = format!(
                "{who}'s connections closed and {} of {} voters are refused by it",
                opinions.refused,
                voters.len()
            );
            (Reason::MasterDead, why)
        } else if opinions.refused + opinions.silent >= enough {
            let why = format!(
                "{} of {} voters heard nothing of {who} for {} ms",
                opinions.refused + opinions.silent,
                voters.len(),
                view.timing.silence_ms
            );
            (Reason::MasterSilent, why)
        } else {
            return self.relieve(view, master, out);
        };
        self.outage = view.health.peer(master).map(|peer| peer.heard).or(Some(view.now));
        self.fence_now(view, reason, None, "automatic", &why, out);
        true
    }

    /// A master that says it is failing hands over, if there is somebody in step to whom. A full disk everywhere is no
    /// reason to stop: the last who can goes on. True if something was decided.
    fn relieve(&mut self, view: &View<'_>, master: NodeId, out: &mut Vec<Decision>) -> bool {
        let Some(beat) = view.beat(master).filter(|beat| !beat.failing.is_empty()) else {
            return false;
        };
        let why = format!("{} says: {}", name(view, master), beat.failing);
        let Some(target) = view.best_in_step(master, |_| true) else {
            return false;
        };
        self.outage = Some(view.now);
        self.fence_now(view, Reason::MasterFailing, Some(target), "automatic", &why, out);
        true
    }

    fn opinions(&self, view: &View<'_>, whom: NodeId) -> Opinions {
        let voters = view.state.voters();
        view.health.count(view.me, whom, &voters, view.timing.silence_ms, view.now)
    }

    // ---- plumbing ----

    pub(super) fn fence_now(
        &mut self,
        view: &View<'_>,
        reason: Reason,
        target: Option<NodeId>,
        asked_by: &str,
        why: &str,
        out: &mut Vec<Decision>,
    ) {
        let present = view.state.epoch().0;
        let beats = view.state.members().filter_map(|member| view.beat(member.id));
        // One forged promise near the end of the range would use it up.
        let believed = |promised: &u64| promised.saturating_sub(present) <= EPOCH_AHEAD_MAX;
        let highest = beats.map(|beat| beat.promised).filter(believed).max().unwrap_or(0);
        let switch = view.state.pack().filter(|_| reason == Reason::GenerationSwitch);
        let fence = FenceCommand {
            pack: switch.map_or(0, |pack| pack.id.0),
            epoch: highest.max(present) + 1,
            reason: reason.into(),
            target: target.map_or(0, |id| id.0),
            asked_by: asked_by.to_string(),
            why: why.to_string(),
        };
        self.propose(view, Kind::Fence(fence), out);
    }

    pub(super) fn propose(&mut self, view: &View<'_>, kind: Kind, out: &mut Vec<Decision>) {
        let again = self.proposed.as_ref().is_some_and(|(last, at)| {
            std::mem::discriminant(last) == std::mem::discriminant(&kind)
                && view.now.since_ms(*at) < REPROPOSE_MS
        });
        if !again {
            self.proposed = Some((kind.clone(), view.now));
            out.push(Decision::Propose(kind));
        }
    }

    /// The replicated state changed: whatever was proposed has been decided upon.
    pub fn on_state_changed(&mut self) {
        self.proposed = None;
    }

    fn alarm(&mut self, why: String, out: &mut Vec<Decision>) {
        if self.alarmed.as_ref() != Some(&why) {
            self.alarmed = Some(why.clone());
            out.push(Decision::Alarm(why));
        }
    }
}

pub(super) fn name(view: &View<'_>, id: NodeId) -> String {
    view.state.member(id).map_or_else(|| format!("node {id}"), |member| member.name.clone())
}

/// Can `target` take over now? Shared by `ctl promote`, its dry run and the execution.
pub fn may_promote(
    view: &View<'_>,
    message: &ControlState,
    target: NodeId,
    force: bool,
) -> Result<(), String> {
    let Some(member) = view.state.member(target) else {
        return Err(format!("node {target} is not a member"));
    };
    match view.state.phase() {
        Phase::Fencing { .. } => {
            return Err("an election is under way; try again in a second".into());
        }
        Phase::None => return Err("the cluster has not had its first election yet".into()),
        Phase::Elected { .. } => {}
    }
    if view.state.master().is_some_and(|(master, _)| master == target) && view.state.is_open() {
        return Err(format!("{} is the master already", member.name));
    }
    if !view.is_alive(target) {
        return Err(format!("{} can't be reached", member.name));
    }
    let beat = view.beat(target).expect("alive nodes have said something");
    let described = message.members.iter().find(|member| member.id == target.0).expect("a member");
    match eligible(described, beat, message) {
        Err(why) if !force => Err(format!("{}: {why}", member.name)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
