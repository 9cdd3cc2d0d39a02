//! What administrators ask. Any node answers; what only the leader can decide is passed on to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::{Action, Core};
use crate::admin::view::{ClusterView, Heard};
use crate::admin::{config, data_reply, generations, history_reply, refusal, status_reply};
use crate::control::{Applied, settings};
use crate::failover::controller::{PromoteAsked, may_promote, preflight};
use crate::failover::health::Look;
use crate::mutants::{self, Mutant};
use crate::proto::admin::admin_request::Verb;
use crate::proto::admin::{AdminReply, AdminRequest, ConfigSet, Outcome, PackVerb};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    AdminForward, AdminForwardReply, Asked, Command, ControlState, PackCancel, PackStart, Pause,
    Seen, Setting,
};
use crate::replication::quorum::Durability;
use crate::types::{Epoch, NodeId, Now};

/// Requests that wait for the leader or for the log; more are refused.
const OPEN_MAX: usize = 1000;

/// Of requests that a leader has heard; older ones are forgotten.
const HEARD_MAX: usize = 10_000;

/// So long a request waits for the nodes to have a Raft leader: longer than they need to elect one, shorter than ctl waits.
const LEADER_WAIT_MS: u64 = 2000;

/// Nobody waits longer for an answer.
const FORGET_MS: u64 = 60_000;

/// What only the leader can do, and is not answered yet.
///
/// A change is done when it is applied, and no sooner: a leader may die with what it has proposed, and a command that was
/// decided on an older epoch is refused. Its `Asked` is in the log with it, so whoever asked learns what came of it, from
/// whichever leader. What was given to the leader of one term and has not been applied when the first entry of a later
/// term is, never will be: then it is given to the next leader, and still happens once.
///
/// With the request goes what it acts on (`Seen`), as this node knew it when it took the request. A request that was on its
/// way for long, or for which another leader had to be found, must not be done to what came after: another pack, a setting
/// that somebody has changed since, the master of a later epoch. It is refused then, and whoever asked is told to look again.
#[derive(Default)]
pub(super) struct Requests {
    /// Numbers taken; every time a request is given to a leader it takes another one.
    count: u64,
    open: BTreeMap<u64, Open>,
    /// As the leader of that term: what it was asked. A message that comes twice is heard once.
    heard: (u64, BTreeSet<(u64, u64, u64)>),
}

impl Requests {
    /// False: heard before.
    fn hears(&mut self, term: u64, asked: &Asked) -> bool {
        if self.heard.0 != term {
            self.heard = (term, BTreeSet::new());
        }
        let heard = &mut self.heard.1;
        let news = heard.insert((asked.node, asked.boot, asked.number))
            || mutants::broken(Mutant::HeardTwice);
        while heard.len() > HEARD_MAX {
            heard.pop_first();
        }
        news
    }
}

struct Open {
    /// The shell's number.
    request: u64,
    message: AdminRequest,
    seen: Seen,
    since: Now,
    /// To the leader of that term; none: to nobody yet, or to one who can't have done it.
    given: Option<u64>,
}

impl Core {
    pub(super) fn on_admin(&mut self, request: u64, message: AdminRequest, out: &mut Vec<Action>) {
        if let Some(reply) = self.answer_here(&message) {
            out.push(Action::AdminReply { request, reply });
            return;
        }
        if self.admin.open.len() >= OPEN_MAX {
            let why = "too many requests wait for the Raft leader; try again later";
            out.push(Action::AdminReply { request, reply: refusal(message.id, why) });
            return;
        }
        self.admin.count += 1;
        let seen = self.seen(&message);
        let open = Open { request, message, seen, since: self.now, given: None };
        self.admin.open.insert(self.admin.count, open);
    }

    /// What a request that is taken here and now acts on.
    pub fn seen(&self, request: &AdminRequest) -> Seen {
        let state = &self.control;
        let setting = match &request.verb {
            Some(Verb::ConfigSet(set)) => set.name.as_str(),
            _ => "",
        };
        Seen {
            epoch: state.epoch().0,
            pack: state.cancellable().map_or(0, |id| id.0),
            packs_changed: state.packs_changed(),
            pause_changed: state.pause_changed(),
            setting_changed: state.setting_changed(setting),
        }
    }

    /// Gives every request to the leader that may have it.
    pub(super) fn drive_admin(&mut self, out: &mut Vec<Action>) {
        let numbers: Vec<u64> = self.admin.open.keys().copied().collect();
        for number in numbers {
            let open = &self.admin.open[&number];
            let waited_ms = self.now.since_ms(open.since);
            let newest = match mutants::broken(Mutant::GivenTwice) {
                true => self.raft.term(),
                false => self.raft.applied_term(),
            };
            let free = open.given.is_none_or(|term| newest > term);
            match self.raft.leader() {
                _ if waited_ms >= FORGET_MS => {
                    self.admin.open.remove(&number);
                }
                Some(leader) if free => self.give(number, leader, out),
                None if free && waited_ms >= LEADER_WAIT_MS => {
                    let why = "the nodes have no Raft leader: fewer than a majority can talk to each other. \
                        Start the missing nodes; `packmaster ctl status` says which";
                    self.tell(number, Err(why.into()), out);
                }
                _ => {}
            }
        }
    }

    fn give(&mut self, number: u64, leader: NodeId, out: &mut Vec<Action>) {
        let open = self.admin.open.remove(&number).expect("it is open");
        self.admin.count += 1;
        let (number, term) = (self.admin.count, self.raft.term());
        let asked = Asked { node: self.setup.id.0, boot: self.setup.boot.0, number };
        let (message, seen) = (open.message.clone(), open.seen);
        self.admin.open.insert(number, Open { given: Some(term), ..open });
        if leader == self.setup.id {
            if let Some(done) = self.answer_as_leader(asked, message, &seen) {
                self.tell(number, done, out);
            }
            return;
        }
        let request = message.encode_to_vec().into();
        let forward = AdminForward { asked: Some(asked), request, term, seen: Some(seen) };
        self.send(leader, Kind::AdminForward(forward), out);
    }

    fn tell(&mut self, number: u64, done: Result<String, String>, out: &mut Vec<Action>) {
        let Some(Open { request, message, .. }) = self.admin.open.remove(&number) else { return };
        out.push(Action::AdminReply { request, reply: reply(message.id, done) });
    }

    pub(super) fn on_admin_forward(
        &mut self,
        from: NodeId,
        forward: AdminForward,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let AdminForward { asked, request, term, seen } = forward;
        let asked = asked.ok_or("a request of nobody")?;
        let seen = seen.ok_or("a request that does not say what it acts on")?;
        let request = AdminRequest::decode(request).map_err(|error| error.to_string())?;
        // Otherwise there is a later term, or soon will be, and whoever asks gives it to that one's leader.
        if self.raft.is_leader() && self.raft.term() == term && self.admin.hears(term, &asked) {
            let id = request.id;
            if let Some(done) = self.answer_as_leader(asked, request, &seen) {
                let reply = Bytes::from(reply(id, done).encode_to_vec());
                let reply = AdminForwardReply { asked: Some(asked), reply, term };
                self.send(from, Kind::AdminForwardReply(reply), out);
            }
        }
        Ok(())
    }

    pub(super) fn on_admin_forward_reply(
        &mut self,
        forwarded: AdminForwardReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let AdminForwardReply { asked, reply, term } = forwarded;
        let asked = asked.ok_or("an answer to nobody")?;
        let reply = AdminReply::decode(reply).map_err(|error| error.to_string())?;
        // A late answer of an earlier leader says nothing of what the present one does.
        let fits = |open: &Open| open.given == Some(term) && open.message.id == reply.id;
        if self.is_ours(&asked)
            && self.admin.open.get(&asked.number).is_some_and(fits)
            && let Some(open) = self.admin.open.remove(&asked.number)
        {
            out.push(Action::AdminReply { request: open.request, reply });
        }
        Ok(())
    }

    fn is_ours(&self, asked: &Asked) -> bool {
        asked.node == self.setup.id.0 && asked.boot == self.setup.boot.0
    }

    /// A command was applied that somebody has asked for. `outdated`: only because an election has come in between.
    pub(super) fn on_asked_applied(
        &mut self,
        command: &Command,
        outdated: bool,
        applied: &Applied,
        out: &mut Vec<Action>,
    ) {
        let (Some(asked), Some(kind)) = (&command.asked, &command.kind) else { return };
        if !self.is_ours(asked) {
            return;
        }
        match applied {
            Applied::Changed => self.tell(asked.number, Ok(what_was_done(kind)), out),
            Applied::Refused(_) if outdated => {
                if let Some(open) = self.admin.open.get_mut(&asked.number) {
                    open.given = None;
                }
            }
            Applied::Refused(why) => self.tell(asked.number, Err(why.clone()), out),
        }
    }

    /// The leader's state replaced the log: what came of requests that were given to leaders is not seen any more.
    pub(super) fn on_log_skipped(&mut self, out: &mut Vec<Action>) {
        let given = self.admin.open.iter().filter(|(_, open)| open.given.is_some());
        let numbers: Vec<u64> = given.map(|(number, _)| *number).collect();
        for number in numbers {
            let open = self.admin.open.remove(&number).expect("just seen");
            let message = "this node was too far behind to learn what came of it: see `packmaster ctl history`";
            let outcome = Outcome::Unknown.into();
            let reply = AdminReply { outcome, ..reply(open.message.id, Err(message.into())) };
            out.push(Action::AdminReply { request: open.request, reply });
        }
    }

    /// What any node can say from what it knows.
    fn answer_here(&self, request: &AdminRequest) -> Option<AdminReply> {
        match request.verb.as_ref() {
            Some(Verb::Status(_)) => Some(status_reply(request.id, &self.cluster_view())),
            Some(Verb::History(history)) => {
                let state = self.control_message();
                Some(history_reply(request.id, &self.setup.cluster, &state, history.number))
            }
            Some(Verb::ConfigShow(_)) => {
                let (cluster, keep) = (&self.setup.cluster, self.setup.keep_generations);
                Some(data_reply(request.id, &config::show(cluster, &self.control_message(), keep)))
            }
            Some(Verb::Generations(_)) => {
                let told = generations::generations(&self.cluster_view());
                Some(data_reply(request.id, &told))
            }
            Some(_) => None,
            None => Some(refusal(
                request.id,
                "a request without a verb: is this tool newer than the node?",
            )),
        }
    }

    pub(super) fn control_message(&self) -> ControlState {
        ControlState::decode(&self.control.encode()[..]).expect("what was just encoded")
    }

    fn cluster_view(&self) -> ClusterView {
        let me = self.setup.id;
        let mut heard = BTreeMap::from([(me, Heard { beat: self.own_beat(), age_ms: 0 })]);
        let mut view = ClusterView {
            cluster: self.setup.cluster.clone(),
            own: me,
            durability: self.durability().name().to_string(),
            state: self.control_message(),
            raft_leader: self.raft.leader(),
            silence_ms: self.setup.timing.silence_ms,
            now_wall_us: self.now.wall_us,
            ..ClusterView::default()
        };
        for id in self.control.members().map(|member| member.id).filter(|id| *id != me) {
            if let Some((beat, at)) = self.health.peer(id).and_then(|peer| peer.beat.as_ref()) {
                heard.insert(id, Heard { beat: beat.clone(), age_ms: self.now.since_ms(*at) });
            }
            if self.health.look(id, self.setup.timing.silence_ms, self.now) == Look::Refused {
                view.refused.insert(id);
            }
        }
        view.heard = heard;
        view
    }

    // ---- the leader ----

    /// None: it is proposed, and what came of it shows in the log.
    fn answer_as_leader(
        &mut self,
        asked: Asked,
        request: AdminRequest,
        seen: &Seen,
    ) -> Option<Result<String, String>> {
        let asked_by = request.asked_by;
        let decided = match request.verb {
            Some(Verb::Promote(promote)) => return Some(self.ask_promote(promote, asked_by, seen)),
            Some(Verb::Pack(pack)) => self.ask_pack(pack.verb(), asked_by, seen),
            Some(Verb::SetPause(pause)) => self.ask_pause(pause.paused, asked_by, seen),
            Some(Verb::ConfigSet(set)) => self.ask_setting(set, asked_by, seen),
            _ => {
                Err("the leader does not know this verb: is this tool newer than the node?".into())
            }
        };
        match decided {
            Ok(Asks::Already(done)) => Some(Ok(done)),
            Ok(Asks::For(kind)) => {
                let done = what_was_done(&kind);
                let refused = self.propose_asked(asked, kind).err().map(Err);
                let early = mutants::broken(Mutant::SaidBeforeDone);
                refused.or_else(|| early.then_some(Ok(done)))
            }
            Err(why) => Some(Err(why)),
        }
    }

    // What was seen is judged by the state machine alone: what is in the log already may change it before this is applied.

    fn ask_pause(&self, paused: bool, asked_by: String, seen: &Seen) -> Result<Asks, String> {
        let after = seen.pause_changed;
        let pause = CommandKind::Pause(Pause { paused, asked_by, after });
        Ok(match paused == self.control.paused() {
            true => Asks::Already(if paused {
                "automatic elections are paused already; `packmaster ctl resume` ends that".into()
            } else {
                "automatic elections are on already".into()
            }),
            false => Asks::For(pause),
        })
    }

    fn ask_setting(&self, set: ConfigSet, asked_by: String, seen: &Seen) -> Result<Asks, String> {
        let ConfigSet { name, value } = set;
        let checked = settings::check(&name, &value)?;
        let shown = checked.clone().unwrap_or_else(|| settings::DEFAULT.to_owned());
        if checked.as_deref() == self.control.setting(&name) {
            return Ok(Asks::Already(format!("{name} is {shown:?} already")));
        }
        let after = seen.setting_changed;
        Ok(Asks::For(CommandKind::Setting(Setting { name, value, asked_by, after })))
    }

    fn ask_promote(
        &mut self,
        promote: crate::proto::admin::Promote,
        asked_by: String,
        seen: &Seen,
    ) -> Result<String, String> {
        let Some(target) = self.control.member_by_name(&promote.node).map(|member| member.id)
        else {
            let names: Vec<&str> =
                self.control.members().map(|member| member.name.as_str()).collect();
            return Err(format!(
                "there is no member {:?}; members are {}",
                promote.node,
                names.join(", ")
            ));
        };
        let own = self.own_beat();
        let state = self.control_message();
        may_promote(&self.view(&own), &state, target, promote.force)?;
        let (epoch, present) = (Epoch(seen.epoch), self.control.epoch());
        if epoch != present && !mutants::broken(Mutant::LatePromoteTaken) {
            return Err(format!(
                "it was asked for in epoch {epoch}, and by now it is epoch {present}: `packmaster ctl status` says who is \
                 master; ask again if {} is still to take over",
                promote.node
            ));
        }
        let lag = self.lag_of(target);
        if promote.dry_run {
            return Ok(format!(
                "{} would take over: {lag}; clients of every node would wait for some milliseconds",
                promote.node
            ));
        }
        let why = match promote.reason.is_empty() {
            true => format!("{} was asked for", promote.node),
            false => promote.reason,
        };
        let asked = PromoteAsked { target, asked_by, why };
        self.controller.ask_promote(asked, epoch, self.now);
        self.controller_due_us = 0;
        Ok(format!("{} is taking over, as soon as it lacks little", promote.node))
    }

    fn lag_of(&self, target: NodeId) -> String {
        let theirs = self.health.beat(target).and_then(|beat| beat.position.as_ref());
        let theirs = theirs.and_then(|position| position.tip.as_ref()).map_or(0, |tip| tip.seq);
        let ours = match target == self.setup.id {
            true => return "it is the Raft leader and in step".into(),
            false => self.shelf.tip().seq.0,
        };
        match ours.saturating_sub(theirs) {
            0 => "it is in step".into(),
            behind => format!("it is {behind} transactions behind, which it fetches first"),
        }
    }

    fn ask_pack(&self, verb: PackVerb, asked_by: String, seen: &Seen) -> Result<Asks, String> {
        match verb {
            PackVerb::Start => {
                let own = self.own_beat();
                preflight(&self.view(&own))?;
                let current = self.control.generation().ok_or("there is no generation yet")?;
                let generation = current.number.next().0;
                let after = seen.packs_changed;
                Ok(Asks::For(CommandKind::PackStart(PackStart { generation, asked_by, after })))
            }
            PackVerb::Cancel => {
                if self.control.cancellable().is_none() {
                    return Err("no pack is in progress".into());
                }
                if seen.pack == 0 {
                    return Err("the node that was asked knew of no pack: see `packmaster ctl status`, and cancel again".into());
                }
                let current = self.control.generation().ok_or("there is no generation yet")?;
                let (pack, generation) = (seen.pack, current.number.next().0);
                let why = "asked for".to_string();
                Ok(Asks::For(CommandKind::PackCancel(PackCancel {
                    pack,
                    generation,
                    why,
                    asked_by,
                })))
            }
        }
    }
}

/// What a request comes to.
enum Asks {
    /// It is so, and nothing is to be decided.
    Already(String),
    For(CommandKind),
}

fn reply(id: u64, done: Result<String, String>) -> AdminReply {
    match done {
        Ok(message) => {
            AdminReply { id, outcome: Outcome::Done.into(), message, json: Bytes::new() }
        }
        Err(why) => refusal(id, why),
    }
}

/// For whoever asked for this command.
fn what_was_done(kind: &CommandKind) -> String {
    match kind {
        CommandKind::PackStart(start) => format!("packing into generation {}", start.generation),
        CommandKind::PackCancel(cancel) => {
            format!("the pack into generation {} is called off", cancel.generation)
        }
        CommandKind::Pause(Pause { paused: true, .. }) => {
            "automatic elections are paused; `packmaster ctl resume` ends that".into()
        }
        CommandKind::Pause(_) => "automatic elections are on".into(),
        CommandKind::Setting(Setting { name, value, .. }) => {
            let checked = settings::check(name, value).ok().flatten();
            let shown = checked.as_deref().unwrap_or(settings::DEFAULT);
            match Durability::from_name(shown).filter(|_| name == settings::DURABILITY) {
                Some(durability) => format!("{name} is {shown:?}: {}", durability.permits()),
                None => format!("{name} is {shown:?}"),
            }
        }
        _ => "done".into(),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
