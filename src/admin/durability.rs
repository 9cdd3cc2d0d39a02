//! What the setting of durability means right now: what it permits to lose, whom commits wait for, and what was lost.

use serde::{Deserialize, Serialize};

use super::rfc3339;
use super::view::ClusterView;
use crate::proto::control::TailLost;
use crate::replication::quorum::Durability;
use crate::types::NodeId;

/// Part of `ctl status --output json`. Fields may be added, never changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DurabilityStatus {
    /// What the setting permits to lose, and for whom commits may have to wait; a sentence for people.
    pub permits: String,
    /// Transactions that the master acknowledged and that no majority is known to have: lost if it died now.
    pub only_on_master: u64,
    /// How long the oldest of them has been so, in milliseconds.
    pub only_on_master_ms: u64,
    /// Voters without which no commit is acknowledged, and that are away (durability `all`).
    pub waits_for: Vec<String>,
    /// How long the oldest commit has waited for them, in milliseconds; 0: none waits now.
    pub waits_ms: u64,
    /// Acknowledged transactions that were ever lost, at most.
    pub lost_transactions: u64,
    /// Each time that some were, newest last; the newest ones only.
    pub losses: Vec<LossStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossStatus {
    /// Which node had acknowledged them, as master of that epoch.
    pub node: String,
    pub epoch: u64,
    /// At most.
    pub transactions: u64,
    /// They came after this transaction, and this was the newest.
    pub after_seq: u64,
    pub to_seq: u64,
    /// The file in the node's data directory that has them now.
    pub kept: String,
    /// RFC 3339.
    pub at: Option<String>,
}

pub(super) fn durability(view: &ClusterView) -> DurabilityStatus {
    let setting = Durability::from_name(&view.durability).unwrap_or(Durability::Majority);
    let master = view.open_master().and_then(|id| view.fresh_beat(id)).cloned().unwrap_or_default();
    DurabilityStatus {
        permits: setting.permits().to_owned(),
        only_on_master: master.acknowledged_seq.saturating_sub(master.committed_seq),
        only_on_master_ms: master.alone_ms,
        waits_for: waits_for(view, &master.waits_for).iter().map(|id| view.name(*id)).collect(),
        waits_ms: master.waits_ms,
        lost_transactions: view.state.lost_transactions,
        losses: view.state.losses.iter().map(|lost| loss(view, lost)).collect(),
    }
}

/// Those that the master says commits wait for, and those without which the next one would.
fn waits_for(view: &ClusterView, said: &[u64]) -> Vec<NodeId> {
    if view.durability != Durability::All.name() || view.open_master().is_none() {
        return Vec::new();
    }
    let away = |id: &NodeId| said.contains(&id.0) || !view.in_step(*id);
    view.voters().into_iter().filter(away).collect()
}

fn loss(view: &ClusterView, lost: &TailLost) -> LossStatus {
    LossStatus {
        node: view.name(NodeId(lost.node)),
        epoch: lost.epoch,
        transactions: lost.transactions,
        after_seq: lost.after_seq,
        to_seq: lost.to_seq,
        kept: lost.kept.clone(),
        at: rfc3339(lost.at_wall_us),
    }
}

impl DurabilityStatus {
    /// "n2 and n3": commits wait for them. Empty: they don't.
    pub fn awaited(&self) -> String {
        self.waits_for.join(" and ")
    }

    /// Lines for a status; nothing where there is nothing to know but the setting's name.
    pub(super) fn lines(&self, setting: &str) -> String {
        let mut out = String::new();
        if setting != Durability::Majority.name() {
            out += &format!("loss    durability {setting}: {}\n", self.permits);
        }
        if self.only_on_master > 0 {
            let (count, ms) = (self.only_on_master, self.only_on_master_ms);
            out += &format!(
                "        {count} transactions are only on the master now, the oldest for {ms} ms\n"
            );
        }
        for lost in &self.losses {
            let LossStatus { node, epoch, transactions, after_seq, to_seq, kept, at } = lost;
            let at = at.as_deref().unwrap_or("an unknown time");
            out += &format!(
                "LOST    up to {transactions} acknowledged transactions of epoch {epoch}, after seq {after_seq} up to {to_seq}, at \
                 {at}: kept on {node} in {kept}\n"
            );
        }
        out
    }
}
