//! What administrators ask. Any node answers; what only the leader can decide is passed on to it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message;

use super::{Action, Core};
use crate::admin::view::{ClusterView, Heard};
use crate::admin::{config, data_reply, generations, history_reply, refusal, status_reply};
use crate::control::settings;
use crate::failover::controller::{PromoteAsked, may_promote, preflight};
use crate::failover::health::Look;
use crate::proto::admin::admin_request::Verb;
use crate::proto::admin::{AdminReply, AdminRequest, ConfigSet, Outcome, PackVerb};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    AdminForward, AdminForwardReply, ControlState, PackCancel, PackStart, Pause, Setting,
};
use crate::types::{NodeId, Now};

/// Requests passed on, unanswered, are forgotten beyond so many.
const FORWARDS_MAX: usize = 1000;

/// So long a request waits for the nodes to have a Raft leader: longer than they need to elect one, shorter than ctl waits.
const LEADER_WAIT_MS: u64 = 2000;

/// Requests that were passed on to the leader, or will be.
#[derive(Default)]
pub(super) struct Forwards {
    count: u64,
    /// The leader may have died a moment ago.
    waiting: VecDeque<(Now, u64, AdminRequest)>,
    /// Ours by number: the shell's request and the asker's own id.
    open: BTreeMap<u64, (u64, u64)>,
}

impl Core {
    pub(super) fn on_admin(&mut self, request: u64, message: AdminRequest, out: &mut Vec<Action>) {
        if let Some(reply) = self.answer_here(&message) {
            out.push(Action::AdminReply { request, reply });
            return;
        }
        match self.raft.leader() {
            Some(leader) if leader == self.setup.id => {
                let reply = self.answer_as_leader(message, out);
                out.push(Action::AdminReply { request, reply });
            }
            Some(leader) => {
                self.admin.count += 1;
                let id = self.admin.count;
                self.admin.open.insert(id, (request, message.id));
                while self.admin.open.len() > FORWARDS_MAX {
                    self.admin.open.pop_first();
                }
                let forward = AdminForward { id, request: message.encode_to_vec().into() };
                self.send(leader, Kind::AdminForward(forward), out);
            }
            None if self.admin.waiting.len() < FORWARDS_MAX => {
                self.admin.waiting.push_back((self.now, request, message));
            }
            None => self.refuse_leaderless(request, message.id, out),
        }
    }

    fn refuse_leaderless(&self, request: u64, id: u64, out: &mut Vec<Action>) {
        let why = "the nodes have no Raft leader: fewer than a majority can talk to each other. \
            Start the missing nodes; `packmaster ctl status` says which";
        out.push(Action::AdminReply { request, reply: refusal(id, why) });
    }

    /// Requests that came while nobody led: there is a leader now, or there has been none for long.
    pub(super) fn drive_admin(&mut self, out: &mut Vec<Action>) {
        while let Some((since, request, message)) = self.admin.waiting.pop_front() {
            if self.raft.leader().is_some() {
                self.on_admin(request, message, out);
            } else if self.now.since_ms(since) >= LEADER_WAIT_MS {
                self.refuse_leaderless(request, message.id, out);
            } else {
                self.admin.waiting.push_front((since, request, message));
                break;
            }
        }
    }

    pub(super) fn on_admin_forward(
        &mut self,
        from: NodeId,
        forward: AdminForward,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let request = AdminRequest::decode(forward.request).map_err(|error| error.to_string())?;
        let reply = match self.raft.is_leader() {
            true => self.answer_as_leader(request, out),
            false => refusal(request.id, "the Raft leader has just changed; try again"),
        };
        let reply = AdminForwardReply { id: forward.id, reply: Bytes::from(reply.encode_to_vec()) };
        self.send(from, Kind::AdminForwardReply(reply), out);
        Ok(())
    }

    pub(super) fn on_admin_forward_reply(
        &mut self,
        forwarded: AdminForwardReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some((request, id)) = self.admin.open.remove(&forwarded.id) else { return Ok(()) };
        let reply = AdminReply::decode(forwarded.reply).map_err(|error| error.to_string())?;
        out.push(Action::AdminReply { request, reply: AdminReply { id, ..reply } });
        Ok(())
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

    fn answer_as_leader(&mut self, request: AdminRequest, out: &mut Vec<Action>) -> AdminReply {
        let (id, asked_by) = (request.id, request.asked_by);
        let done = match request.verb {
            Some(Verb::Promote(promote)) => self.ask_promote(promote, asked_by),
            Some(Verb::Pack(pack)) => self.ask_pack(pack.verb(), asked_by, out),
            Some(Verb::SetPause(pause)) => {
                let paused = pause.paused;
                self.propose(CommandKind::Pause(Pause { paused, asked_by }), out);
                Ok(match paused {
                    true => {
                        "automatic elections are paused; `packmaster ctl resume` ends that".into()
                    }
                    false => "automatic elections are on".into(),
                })
            }
            Some(Verb::ConfigSet(set)) => self.ask_setting(set, asked_by, out),
            _ => {
                Err("the leader does not know this verb: is this tool newer than the node?".into())
            }
        };
        match done {
            Ok(message) => {
                AdminReply { id, outcome: Outcome::Done.into(), message, json: Bytes::new() }
            }
            Err(why) => refusal(id, why),
        }
    }

    fn ask_setting(
        &mut self,
        set: ConfigSet,
        asked_by: String,
        out: &mut Vec<Action>,
    ) -> Result<String, String> {
        let ConfigSet { name, value } = set;
        let checked = settings::check(&name, &value)?;
        let shown = checked.clone().unwrap_or_else(|| settings::DEFAULT.to_owned());
        if checked.as_deref() == self.control.setting(&name) {
            return Ok(format!("{name} is {shown:?} already"));
        }
        self.propose(CommandKind::Setting(Setting { name: name.clone(), value, asked_by }), out);
        Ok(format!("{name} is {shown:?}"))
    }

    fn ask_promote(
        &mut self,
        promote: crate::proto::admin::Promote,
        asked_by: String,
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
        self.controller.ask_promote(PromoteAsked { target, asked_by, why });
        self.controller_due_us = 0;
        Ok(format!("{} is taking over", promote.node))
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

    fn ask_pack(
        &mut self,
        verb: PackVerb,
        asked_by: String,
        out: &mut Vec<Action>,
    ) -> Result<String, String> {
        match verb {
            PackVerb::Start => {
                let own = self.own_beat();
                preflight(&self.view(&own))?;
                let current = self.control.generation().ok_or("there is no generation yet")?;
                let generation = current.number.next().0;
                self.propose(CommandKind::PackStart(PackStart { generation, asked_by }), out);
                Ok(format!("packing into generation {generation}"))
            }
            PackVerb::Cancel => {
                let running = self.control.pack().map(|pack| pack.generation);
                // An election may have called it off, to be started again by itself.
                let again = self.control.pack_again().and(self.control.generation());
                let generation = running.or_else(|| again.map(|current| current.number.next()));
                let generation = generation.ok_or("no pack is in progress")?.0;
                let why = "asked for".to_string();
                self.propose(
                    CommandKind::PackCancel(PackCancel { generation, why, asked_by }),
                    out,
                );
                Ok(format!("the pack into generation {generation} is called off"))
            }
        }
    }
}
