//! What one node knows of the cluster at one moment, and the questions that everything else here asks of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::control::{Beat, ControlState, Elect, Member};
use crate::types::NodeId;

/// Everything that goes into a status; plain data, filled in by the core.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    pub cluster: String,
    /// The node whose view this is.
    pub own: NodeId,
    /// `majority`, `all` or `local`.
    pub durability: String,
    pub state: ControlState,
    /// The newest beat of each member that was ever heard; the own one with age 0.
    pub heard: BTreeMap<NodeId, Heard>,
    /// Members whose connection is closed and whose port refuses: their process is gone.
    pub refused: BTreeSet<NodeId>,
    pub raft_leader: Option<NodeId>,
    /// A member that was not heard for longer than this does not count.
    pub silence_ms: u64,
    /// The node's wall clock.
    pub now_wall_us: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub beat: Beat,
    pub age_ms: u64,
}

impl ClusterView {
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.state.members.iter().find(|member| member.id == id.0)
    }

    /// A member's name; its number if it is no member.
    pub fn name(&self, id: NodeId) -> String {
        self.member(id).map_or_else(|| format!("node {id}"), |member| member.name.clone())
    }

    /// The newest beat, however old.
    pub fn beat(&self, id: NodeId) -> Option<&Beat> {
        self.heard.get(&id).map(|heard| &heard.beat)
    }

    /// The newest beat of a node that answers now.
    pub fn fresh_beat(&self, id: NodeId) -> Option<&Beat> {
        let heard = self.heard.get(&id)?;
        let fresh =
            id == self.own || (heard.age_ms <= self.silence_ms && !self.refused.contains(&id));
        fresh.then_some(&heard.beat)
    }

    /// The data voters of the newest mastership; the configured voters before there was one.
    pub fn voters(&self) -> Vec<NodeId> {
        match &self.state.mastership {
            Some(elect) if !elect.voters.is_empty() => {
                elect.voters.iter().copied().map(NodeId).collect()
            }
            _ => {
                let voters = self.state.members.iter().filter(|member| member.role == "voter");
                voters.map(|member| NodeId(member.id)).collect()
            }
        }
    }

    /// How many of the voters must have a transaction for it to be safe.
    pub fn majority(&self) -> usize {
        self.voters().len() / 2 + 1
    }

    /// The newest election, unless a newer epoch was fenced since.
    pub fn mastership(&self) -> Option<&Elect> {
        self.state.mastership.as_ref().filter(|_| self.state.fencing.is_none())
    }

    /// The master that takes commits, as far as this node can know: opened by decision, and saying so itself now.
    pub fn open_master(&self) -> Option<NodeId> {
        let elect = self.mastership().filter(|_| self.state.opened)?;
        let master = NodeId(elect.master);
        let beat = self.fresh_beat(master)?;
        (beat.open && beat.boot == elect.boot && beat.suspect.is_empty()).then_some(master)
    }

    /// Counts for commits now: the open master, or a clean slave that follows it. A process that was stopped and goes on
    /// tells of its old epoch before it has heard of the new one.
    pub fn in_step(&self, id: NodeId) -> bool {
        let open = self.open_master();
        self.fresh_beat(id).is_some_and(|beat| {
            let clean = beat.suspect.is_empty() && beat.failing.is_empty();
            let present = beat.promised >= self.state.epoch;
            clean && present && open.is_some() && (open == Some(id) || beat.in_step)
        })
    }

    pub fn in_step_voters(&self) -> Vec<NodeId> {
        self.voters().into_iter().filter(|&id| self.in_step(id)).collect()
    }
}
