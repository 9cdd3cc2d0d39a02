//! Which proposals of another node the leader puts into the Raft log.
//!
//! What is applied can't be taken back, and the replicated state can't know who has sent a command. So the leader looks:
//! a node speaks for itself only, the master alone decides about its epoch's file and oids, and what only a leader may
//! decide comes from nobody else. What can be judged on the state alone is judged there (`control::apply`).

use super::Core;
use crate::plausible::{Disbelieved, OID_AHEAD_MAX, SEQ_AHEAD_MAX, within};
use crate::proto::control::Command;
use crate::proto::control::command::Kind;
use crate::types::NodeId;

impl Core {
    /// False: it is not proposed. Whoever wants it sends it again; what can't be true is named in `ctl status`.
    pub(super) fn believes_proposal(
        &mut self,
        from: NodeId,
        command: &Command,
    ) -> Result<bool, String> {
        let number = match command.kind.as_ref() {
            None => {
                return Err("a command of a kind that this node's program does not know".into());
            }
            Some(Kind::Fence(_) | Kind::Elect(_) | Kind::Opened(_)) => {
                return Err("only the leader itself fences, elects and opens".into());
            }
            Some(Kind::Setting(_) | Kind::Pause(_)) => {
                return Err("only the leader itself does what administrators ask for".into());
            }
            Some(Kind::MemberUp(up)) => {
                let node = up.member.as_ref().map_or(0, |member| member.id);
                speaks_for("member that comes up", node, from)
            }
            Some(Kind::PackBase(base)) => speaks_for("node that built a base", base.node, from),
            Some(Kind::PackReady(ready)) => speaks_for("node that is ready", ready.node, from),
            Some(Kind::TailLost(lost)) => speaks_for("node that lost a tail", lost.node, from),
            Some(Kind::PackSeal(seal)) => {
                if !self.is_of_master(from, command) {
                    return Ok(false);
                }
                // P is at most F: that is for the state.
                let told = self.health.beat(from).map_or(0, |beat| beat.written_seq);
                let known = told.max(self.shelf.tip().seq.0);
                within("F of a seal", seal.cut_seq, known, SEQ_AHEAD_MAX)
            }
            Some(Kind::OidBlock(block)) => {
                if !self.is_of_master(from, command) {
                    return Ok(false);
                }
                // The first block begins above what an imported file has.
                let known = self.control.oid_limit().max(self.shelf.next_free()).0;
                within("oid limit", block.below, known, OID_AHEAD_MAX)
            }
            Some(Kind::PackStart(_) | Kind::PackCancel(_)) => Ok(()),
        };
        if let Err(number) = &number {
            self.disbelieve(from, &number.to_string());
        }
        Ok(number.is_ok())
    }

    /// What only a master decides, and this node is the one that was elected. A master that was replaced meanwhile is late
    /// and no liar, and a new leader may not have applied the election yet.
    fn is_of_master(&mut self, from: NodeId, command: &Command) -> bool {
        let master = self.control.master().map(|(master, _)| master);
        let present = command.on_epoch == self.control.epoch().0;
        if let Some(ours) = master.filter(|master| *master != from && present) {
            let number = Disbelieved { what: "master of the epoch", theirs: from.0, ours: ours.0 };
            self.disbelieve(from, &number.to_string());
        }
        present && master == Some(from)
    }
}

fn speaks_for(what: &'static str, node: u64, from: NodeId) -> Result<(), Disbelieved> {
    match node == from.0 {
        true => Ok(()),
        false => Err(Disbelieved { what, theirs: node, ours: from.0 }),
    }
}

#[cfg(test)]
#[path = "proposal_tests.rs"]
mod tests;
