//! Raft's round trips, and what a changed state means for this node.

use prost::Message;

use super::master::Master;
use super::{Action, Core, REMEDY, Role};
use crate::control::{self, Applied, Mastership, Phase, Settings};
use crate::failover::controller::{Decision, View, preflight};
use crate::failover::health::Look;
use crate::mutants::{self, Mutant};
use crate::plausible::{Claim, Disbelieved};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    Asked, Command, FenceRequest, Member as MemberMessage, MemberUp, PackTurn, Propose,
    RaftMessage, SnapshotPlace,
};
use crate::raft::{Driver, DriverError, HEARTBEAT};
use crate::replication::quorum::majority;
use crate::replication::wire;
use crate::storage::DiskError;
use crate::types::{Epoch, NodeId};

/// A survivor lets those with lower ids campaign first, so long.
const CAMPAIGN_STEP_MS: u64 = 30;
/// A leader that could not hand over tries again after this long.
const YIELD_AGAIN_MS: u64 = 500;
/// The controller looks at everything again after this long, if nothing happened that concerns it.
const CONTROLLER_EVERY_US: u64 = 10_000;
/// An older decision is not worth a line in the log.
const NEWS_US: u64 = 60_000_000;
/// A command that was lost on its way is proposed again after this long.
const PROPOSE_AGAIN_MS: u64 = 300;

impl Core {
    pub(super) fn on_raft_message(
        &mut self,
        from: NodeId,
        message: RaftMessage,
    ) -> Result<(), String> {
        if message.from != from.0 {
            return Err(format!("a Raft message of node {}, sent by node {from}", message.from));
        }
        let silent = self.is_silent();
        let votes = Driver::is_about_votes(&message) && !mutants::broken(Mutant::UnprovedVotes);
        if !self.suspect.is_empty() || (silent && votes) {
            return Ok(());
        }
        if let Err(number) = check_snapshot(&message) {
            self.disbelieve(from, &number.to_string());
            return Ok(());
        }
        self.leave_dead_leader(&message);
        match self.raft.step(&message) {
            Ok(()) => {
                if message.msg_type == HEARTBEAT {
                    self.claims.withdraw(from, Claim::RaftLogForgotten);
                }
                Ok(())
            }
            Err(DriverError::Disbelieved { number, .. }) => {
                self.disbelieve(from, &number.to_string());
                Ok(())
            }
            Err(DriverError::Claimed { number, claim, .. }) => {
                self.on_raft_claim(from, &message, claim, &number)
            }
            Err(error @ DriverError::Contradicts { .. }) => {
                self.disbelieve(from, &error.to_string());
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// A follower that has a leader ignores who asks for its vote, and forgets the leader only when a majority is known to
    /// find its port closed. The request can be faster than the beat in which the asker says what it finds; but who asks
    /// has no leader, and we know ourselves that the port is closed. So the vote is judged as any other.
    fn leave_dead_leader(&mut self, message: &RaftMessage) {
        if !Driver::asks_for_vote(message) {
            return;
        }
        let silence_ms = self.setup.timing.silence_ms;
        let is_dead = |id: &NodeId| self.health.look(*id, silence_ms, self.now) == Look::Refused;
        if self.raft.leader().filter(is_dead).is_some() {
            self.raft.forget_leader();
            // Its log may be too old, and ours is then wanted.
            self.plan_campaign(1);
        }
    }

    /// One message proves nothing: see `plausible`.
    fn on_raft_claim(
        &mut self,
        from: NodeId,
        message: &RaftMessage,
        claim: Claim,
        number: &Disbelieved,
    ) -> Result<(), String> {
        if !self.claims.make(from, claim, self.now) {
            self.disbelieve(from, &number.to_string());
            return Ok(());
        }
        if claim == Claim::FarAhead {
            return self.raft.step_claimed(message).map_err(|error| error.to_string());
        }
        let name = self.name_of(from);
        self.suspect = format!(
            "its Raft log is behind what it has acknowledged: {name}, which leads Raft, was told of index {}, and the \
             log ends at {}. The disk was set back, or is another one: {REMEDY}",
            number.theirs, number.ours
        );
        slog::crit!(self.log, "this node has forgotten what it acknowledged; it stands aside";
            "why" => &self.suspect);
        self.beats.soon();
        Ok(())
    }

    /// A leader says that this node's Raft log has lost something, and that is not settled yet: no votes meanwhile.
    fn is_doubted(&self) -> bool {
        self.claims.is_made(Claim::RaftLogForgotten, self.now)
    }

    /// A peer sent what can't be true. It is not acted upon, and people are told in whose name it came.
    pub(super) fn disbelieve(&mut self, from: NodeId, what: &str) {
        if self.disbelieved.note(from, what, self.now) {
            slog::error!(self.log, "a peer sends what can't be true; it is not believed"; "node" => self.name_of(from),
                "what" => what);
            self.beats.soon();
        }
    }

    pub(super) fn name_of(&self, id: NodeId) -> String {
        self.control.member(id).map_or_else(|| format!("node {id}"), |member| member.name.clone())
    }

    pub(super) fn on_raft_done(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        out: &mut Vec<Action>,
    ) {
        self.raft_persist_since = None;
        match result {
            Ok(()) => self.raft.persisted(number),
            Err(error) => {
                slog::error!(self.log, "the Raft log can't be written; this node stops"; "error" => %error);
                self.exit(&format!("disk failed: {error}"), true, out);
            }
        }
    }

    pub(super) fn drive_raft(&mut self, out: &mut Vec<Action>) {
        let tick_us = self.setup.timing.raft_tick_ms * 1000;
        if self.now.mono_us >= self.raft_tick_due_us {
            // Without ticks it never campaigns.
            if self.suspect.is_empty() && !self.is_unproved() && !self.is_doubted() {
                self.raft.tick();
            }
            // A late tick is one tick: a process that was stopped must not think that it waited.
            self.raft_tick_due_us = self.now.mono_us + tick_us;
        }
        self.replace_dead_leader();
        self.yield_leadership();
        loop {
            let polled = self.raft.poll();
            if polled.is_empty() {
                break;
            }
            if let Some(snapshot) = polled.restore {
                self.restore_control(&snapshot, out);
            }
            for (index, command) in polled.committed {
                self.apply_command(index, &command, out);
                if self.exited {
                    return;
                }
            }
            if let Some((number, record)) = polled.persist {
                self.raft_persist_since = Some(self.now);
                out.push(Action::RaftPersist { number, record });
            }
            for message in polled.messages {
                self.send(NodeId(message.to), Kind::Raft(message), out);
            }
        }
        self.compact_raft();
        self.drive_member_up(out);
    }

    /// The Raft leader's process is gone, and a majority sees it: a new leader at once, without waiting for timeouts.
    fn replace_dead_leader(&mut self) {
        let me = self.setup.id;
        let voters: Vec<NodeId> = self.control.members().map(|member| member.id).collect();
        if let Some(leader) = self.raft.leader().filter(|leader| *leader != me) {
            let silence_ms = self.setup.timing.silence_ms;
            let opinions = self.health.count(me, leader, &voters, silence_ms, self.now);
            if opinions.refused < majority(voters.len()) {
                self.raft_campaign_due_us = None;
                return;
            }
            self.raft.forget_leader();
            self.plan_campaign(0);
        } else if self.raft.is_leader() {
            self.raft_campaign_due_us = None;
        }
        if let Some(due) = self.raft_campaign_due_us
            && self.now.mono_us >= due
            && self.suspect.is_empty()
            && !self.is_unproved()
            && !self.is_doubted()
        {
            self.raft.campaign();
            let again = CAMPAIGN_STEP_MS * 1000 * (voters.len() as u64 + 1);
            self.raft_campaign_due_us = Some(self.now.mono_us + again);
        }
    }

    /// Those with lower ids go first; at least so many steps from now.
    fn plan_campaign(&mut self, steps_min: u64) {
        let (me, silence_ms) = (self.setup.id, self.setup.timing.silence_ms);
        let alive = |id: &NodeId| self.health.look(*id, silence_ms, self.now) == Look::Alive;
        let others = self.control.members().map(|member| member.id);
        let rank = others.filter(|id| *id < me).filter(alive).count() as u64;
        let wait_us = rank.max(steps_min) * CAMPAIGN_STEP_MS * 1000;
        self.raft_campaign_due_us = Some(self.now.mono_us + wait_us);
    }

    /// A leader whose disk is stuck goes on to beat, so nobody replaces it, and applies nothing, so nothing it decides is
    /// carried out: it must go by itself.
    fn yield_leadership(&mut self) {
        let Some(ms) = self.stuck_ms().filter(|_| self.raft.is_leader()) else { return };
        if self.raft_yielded.is_some_and(|at| self.now.since_ms(at) < YIELD_AGAIN_MS) {
            return;
        }
        let silence_ms = self.setup.timing.silence_ms;
        let fine = |id: &NodeId| {
            let says = self.health.beat(*id);
            self.health.look(*id, silence_ms, self.now) == Look::Alive
                && says.is_some_and(|beat| beat.failing.is_empty() && beat.suspect.is_empty())
        };
        let others = self.control.members().map(|member| member.id);
        let Some(to) = others.filter(|id| *id != self.setup.id).find(fine) else { return };
        slog::warn!(self.log, "the disk is stuck: somebody else is to lead Raft"; "ms" => ms, "to" => to.0);
        self.raft_yielded = Some(self.now);
        self.raft.transfer_leader(to);
    }

    fn compact_raft(&mut self) {
        let applied = self.raft.applied();
        if applied >= self.compacted_index + self.setup.timing.raft_compact_every {
            self.compacted_index = applied;
            let place = SnapshotPlace { raft_index: applied, raft_term: self.raft.applied_term() };
            self.raft.compact(applied, [self.control.encode(), place.encode_to_vec()].concat());
        }
    }

    // ---- proposing ----

    /// On the leader into the log, elsewhere to the leader. Whether it is applied shows in the state.
    pub(super) fn propose(&mut self, kind: CommandKind, out: &mut Vec<Action>) {
        let command = self.command(kind);
        match self.raft.leader() {
            Some(leader) if leader == self.setup.id => self.consider(&command),
            Some(leader) => {
                self.send(leader, Kind::Propose(Propose { command: Some(command) }), out);
            }
            None => {}
        }
    }

    /// Decided on the state as it is here.
    fn command(&self, kind: CommandKind) -> Command {
        control::command(self.control.epoch(), self.now.wall_us, self.setup.id, kind)
    }

    /// On the leader, for somebody who waits for it; an error says why it never will be.
    pub(super) fn propose_asked(&mut self, asked: Asked, kind: CommandKind) -> Result<(), String> {
        let command = Command { asked: Some(asked), ..self.command(kind) };
        self.propose_here(&command).map_err(|error| format!("{error}; try again"))
    }

    fn propose_here(&mut self, command: &Command) -> Result<(), DriverError> {
        self.proposed = true;
        self.raft.propose(command.encode_to_vec())
    }

    /// Whoever wants it proposes it again, as long as the state does not show it.
    fn try_propose(&mut self, command: &Command) {
        if let Err(error) = self.propose_here(command) {
            slog::debug!(self.log, "not proposed"; "why" => %error);
        }
    }

    pub(super) fn on_propose(&mut self, from: NodeId, propose: Propose) -> Result<(), String> {
        let mut command = propose.command.ok_or("propose without a command")?;
        if !self.raft.is_leader() || !self.believes_proposal(from, &command)? {
            return Ok(());
        }
        // It is decided here and now, and a time that is far ahead would stay in the state. Nobody waits for it.
        (command.at_wall_us, command.by, command.asked) = (self.now.wall_us, from.0, None);
        command.format = control::FORMAT;
        self.consider(&command);
        Ok(())
    }

    /// On the leader, whoever wants it.
    fn consider(&mut self, command: &Command) {
        if let Some(CommandKind::PackStart(_)) = &command.kind {
            let own = self.own_beat();
            if let Err(why) = preflight(&self.view(&own)) {
                slog::info!(self.log, "no pack now"; "why" => why);
                return;
            }
        }
        self.try_propose(command);
    }

    /// This node says once, through Raft, which disk and addresses it has.
    fn drive_member_up(&mut self, out: &mut Vec<Action>) {
        let Some(known) = self.control.member(self.setup.id) else { return };
        if known.disk_uuid == Some(self.setup.disk_uuid) || !self.suspect.is_empty() {
            return;
        }
        if known.disk_uuid.is_some() {
            self.suspect = "this node's disk is not the one the cluster knows under its id: \
                its promises and votes are lost with that disk, so it must not take part"
                .into();
            slog::crit!(self.log, "amnesia"; "why" => &self.suspect);
            return;
        }
        let due = self.member_up_sent.is_none_or(|at| self.now.since_ms(at) >= PROPOSE_AGAIN_MS);
        if !due || self.raft.leader().is_none() {
            return;
        }
        self.member_up_sent = Some(self.now);
        let me = self.setup.members.iter().find(|member| member.id == self.setup.id.0);
        let me = me.expect("the configuration has this node");
        let disk_uuid = bytes::Bytes::copy_from_slice(&self.setup.disk_uuid);
        let member = MemberMessage { disk_uuid, ..me.clone() };
        self.propose(CommandKind::MemberUp(MemberUp { member: Some(member) }), out);
    }

    // ---- applying ----

    fn restore_control(&mut self, snapshot: &[u8], out: &mut Vec<Action>) {
        let applied = self.raft.applied();
        let decoded = crate::control::State::decode(snapshot)
            .map_err(|error| error.to_string())
            .and_then(|state| match state.applied() <= applied {
                true => Ok(state),
                false => Err(format!("it is of index {}, Raft's is {applied}", state.applied())),
            });
        match decoded {
            Ok(state) => {
                let before = std::mem::replace(&mut self.control, state);
                self.compacted_index = self.raft.applied();
                self.on_log_skipped(out);
                self.on_control_changed(&before, out);
            }
            Err(error) => {
                slog::crit!(self.log, "can't read the leader's snapshot; this node stops"; "error" => %error);
                self.exit(&format!("snapshot of the replicated state: {error}"), true, out);
            }
        }
    }

    fn apply_command(&mut self, index: u64, bytes: &[u8], out: &mut Vec<Action>) {
        let why = match Command::decode(bytes) {
            Ok(command) if command.kind.is_some() => return self.apply_known(index, &command, out),
            Ok(_) => "its kind is not known".to_string(),
            Err(error) => error.to_string(),
        };
        // The others apply it: whoever passes over it has another state than they from then on, and says nothing of it.
        let version = &self.setup.version;
        let why = format!(
            "the cluster has agreed on a command that this node's program (version {version}) does not know (Raft index \
             {index}: {why}): the program is older than the cluster's. Install the version that the other nodes run, and \
             start this node again; it has lost nothing"
        );
        slog::crit!(self.log, "this node stops"; "why" => &why);
        self.exit(&why, true, out);
    }

    fn apply_known(&mut self, index: u64, command: &Command, out: &mut Vec<Action>) {
        let before = self.control.clone();
        let outdated = command.on_epoch != before.epoch().0;
        let applied = self.control.apply(index, command);
        self.on_asked_applied(command, outdated, &applied, out);
        match applied {
            Applied::Changed => self.on_control_changed(&before, out),
            Applied::Refused(why) => {
                slog::debug!(self.log, "command refused"; "index" => index, "why" => why);
                self.controller.on_state_changed();
            }
        }
    }

    /// What the cluster has decided, this node does.
    fn on_control_changed(&mut self, before: &crate::control::State, out: &mut Vec<Action>) {
        self.controller.on_state_changed();
        self.controller_due_us = 0;
        self.beats.soon();
        if let Some(master) = self.master() {
            master.pack_asked = None;
        }
        if self.control.oid_limit() > before.oid_limit() {
            self.on_oid_block(self.control.epoch(), before.oid_limit(), out);
        }
        self.adopt_settings(out);
        self.tell_of_packs(before);
        self.tell_of_bases(before);
        if before.pack_again().is_none() && self.control.pack_again().is_some() {
            slog::info!(self.log, "pack: an election called it off; it begins again by itself");
        }
        self.check_elected_on_me(out);
        self.adopt_phase(before.mastership().map(|old| old.epoch), out);
        self.on_pack_changed(out);
    }

    fn adopt_settings(&mut self, out: &mut Vec<Action>) {
        let (rate_before, durability) = (self.settings.rate, self.settings.durability);
        self.settings = Settings::of(&self.control);
        if self.settings.durability != durability {
            self.advance_acknowledged(out);
        }
        if self.settings.rate != rate_before {
            out.push(Action::JobRate { bytes_per_s: self.settings.rate });
        }
    }

    /// How a pack ended, for the log: by what the history says.
    fn tell_of_packs(&self, before: &crate::control::State) {
        if self.control.rested() == before.rested() {
            return;
        }
        let is_end = |what: &str| matches!(what, "generation" | "pack cancel");
        let ended = self.control.history().rev().find(|decision| is_end(&decision.what));
        // What is read again at the start of a process is no news.
        let age_us = |wall_us: u64| self.now.wall_us.saturating_sub(wall_us);
        if let Some(decision) = ended.filter(|decision| age_us(decision.wall_us) < NEWS_US) {
            slog::info!(self.log, "pack: ended"; "what" => &decision.what, "why" => &decision.why,
                "asked_by" => &decision.asked_by, "decision" => decision.number);
        }
    }

    /// Which node's base was outvoted, for the log.
    fn tell_of_bases(&self, before: &crate::control::State) {
        let known: Vec<_> = before.odd_builds().collect();
        for (node, odd) in self.control.odd_builds().filter(|odd| !known.contains(odd)) {
            slog::error!(self.log, "pack: a node's base was outvoted: check or replace its disk and memory"; "node" => node.0,
                "base" => %odd.base_hash);
        }
        let base = |state: &crate::control::State| {
            state.pack().and_then(|pack| Some((pack.id, pack.base_hash?)))
        };
        if let (Some((id, old)), Some((same, new))) = (base(before), base(&self.control))
            && id == same
            && old != new
        {
            slog::warn!(self.log, "pack: two equal bases have outvoted the first"; "first" => %old, "agreed" => %new);
        }
    }

    /// `known`: epoch of the election that was acted upon already.
    pub(super) fn adopt_phase(&mut self, known: Option<Epoch>, out: &mut Vec<Action>) {
        if self.is_unproved() {
            return;
        }
        match self.control.phase() {
            Phase::None => {}
            Phase::Fencing { epoch } => {
                if epoch > self.promised {
                    self.promise(epoch, out);
                }
                self.report_to_leader(out);
            }
            Phase::Elected { .. } => {
                let elected = self.control.mastership().expect("somebody was elected").clone();
                if known != Some(elected.epoch) {
                    self.on_elected(&elected, out);
                }
            }
        }
    }

    fn on_elected(&mut self, elected: &Mastership, out: &mut Vec<Action>) {
        let epoch = elected.epoch;
        if epoch < self.promised {
            return; // superseded already
        }
        if epoch > self.promised {
            self.promise(epoch, out);
        }
        self.flip_if_ready(out);
        let me = self.setup.id;
        let floor = match wire::position("floor", Some(&elected.floor)) {
            Ok(floor) => floor,
            Err(error) => {
                slog::error!(self.log, "an election without a floor"; "error" => %error);
                return;
            }
        };
        let my_boot = elected.boot == self.setup.boot || mutants::broken(Mutant::MasterBootIgnored);
        if elected.master == me && my_boot {
            if self.suspect.is_empty() {
                let master = Master::new(
                    me,
                    epoch,
                    elected.voters.clone(),
                    floor,
                    elected.floor_holder,
                    self.now,
                );
                self.role = Role::Master(Box::new(master));
            }
        } else if elected.master != me {
            let same = matches!(&self.role, Role::Slave(slave) if slave.epoch == epoch);
            if !same {
                self.follow(epoch, elected.master, elected.boot);
            }
            if mutants::broken(Mutant::CutToCommitted)
                && !self.cutting
                && let Ok(Some(point)) = self.shelf.tip_at(self.committed)
            {
                self.cut_back(point, "what it knows to be committed", out);
            }
            if self.is_current_file() {
                self.hello_master(out);
            }
        }
    }

    // ---- deciding, on the leader ----

    pub(super) fn view<'a>(&'a self, own_beat: &'a crate::proto::control::Beat) -> View<'a> {
        View {
            me: self.setup.id,
            now: self.now,
            state: &self.control,
            health: &self.health,
            own_beat,
            timing: &self.setup.timing,
        }
    }

    pub(super) fn drive_controller(&mut self, out: &mut Vec<Action>) {
        if !self.raft.is_leader() || !self.suspect.is_empty() {
            self.controller.forget();
            return;
        }
        if self.now.mono_us < self.controller_due_us && !self.beats.is_soon() {
            return;
        }
        self.controller_due_us = self.now.mono_us + CONTROLLER_EVERY_US;
        let own = self.own_beat();
        let mut controller = std::mem::take(&mut self.controller);
        let decisions = controller.decide(&self.view(&own));
        self.controller = controller;
        for decision in decisions {
            match decision {
                Decision::Propose(kind) => self.propose(kind, out),
                Decision::AskFence { voter, epoch } => self.ask_fence(voter, epoch, out),
                Decision::PackTurn { node, pack, generation, hold_for } => {
                    let hold_for = hold_for.map_or(0, |id| id.0);
                    let turn = PackTurn { generation: generation.0, hold_for, pack: pack.0 };
                    self.send(node, Kind::PackTurn(turn), out);
                }
                Decision::PackWaits { cause, why } => {
                    slog::warn!(self.log, "a pack is due and can't begin"; "cause" => cause, "why" => why);
                }
                Decision::PromoteWaits { target, lacks_bytes } => {
                    slog::info!(self.log, "promote: the target catches up first"; "target" => target.0, "lacks_bytes" => lacks_bytes);
                }
                Decision::PromoteCalledOff { target, asked_by, why } => {
                    slog::warn!(self.log, "promote: called off; the master goes on"; "target" => target.0, "asked_by" => asked_by, "why" => why);
                }
                Decision::Alarm(why) => {
                    slog::crit!(self.log, "election stopped: a person must look"; "why" => &why);
                }
            }
        }
    }

    fn ask_fence(&mut self, voter: NodeId, epoch: Epoch, out: &mut Vec<Action>) {
        self.send(voter, Kind::FenceRequest(FenceRequest { epoch: epoch.0 }), out);
    }
}

/// A snapshot says in its data where it was taken. Its place becomes the end of this node's log: one that was not taken
/// there would leave a log that no leader can ever reach.
fn check_snapshot(message: &RaftMessage) -> Result<(), Disbelieved> {
    let Some(snapshot) = &message.snapshot else { return Ok(()) };
    let place = SnapshotPlace::decode(&snapshot.data[..]).unwrap_or_default();
    if place == SnapshotPlace::default() || mutants::broken(Mutant::FarIndexBelieved) {
        return Ok(());
    }
    let both = [
        ("snapshot index", snapshot.index, place.raft_index),
        ("snapshot term", snapshot.term, place.raft_term),
    ];
    match both.into_iter().find(|(_, theirs, ours)| theirs != ours) {
        Some((what, theirs, ours)) => Err(Disbelieved { what, theirs, ours }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "control_numbers_tests.rs"]
mod number_tests;
