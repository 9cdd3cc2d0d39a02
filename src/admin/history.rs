//! Decisions: when, what, why, by whom, and how long clients waited.

use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::proto::control::{self, ControlState};

/// `ctl history --output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Of this layout: 1.
    pub version: u32,
    pub cluster: String,
    /// Oldest first.
    pub decisions: Vec<Decision>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Counts up from 1 and is never reused.
    pub number: u64,
    /// RFC 3339.
    pub time: Option<String>,
    /// The epoch it was made in, or that it began.
    pub epoch: u64,
    pub what: String,
    pub why: String,
    /// `automatic`, or who typed it.
    pub asked_by: String,
    /// Whom it concerns.
    pub node: Option<String>,
    /// Of `opened`: from the old master's last word to the new one's opening.
    pub clients_waited_ms: Option<f64>,
    /// Raft index of the command that made it; `null`: of an older program. Of `pack start` it identifies the pack.
    #[serde(default)]
    pub raft_index: Option<u64>,
}

impl Decision {
    /// The master of a new epoch takes commits.
    pub fn is_opened(&self) -> bool {
        self.what == "opened"
    }

    /// A pack was called off.
    pub fn is_pack_cancel(&self) -> bool {
        self.what.starts_with("pack") && self.what.contains("cancel")
    }
}

/// All decisions that are kept; or with a `number` the story it belongs to: all decisions of its epoch.
/// Refuses a number that is not kept, in words for the operator.
pub fn history(cluster: &str, state: &ControlState, number: u64) -> Result<History, String> {
    let kept = &state.history;
    let epoch = match number {
        0 => None,
        _ => match kept.iter().find(|decision| decision.number == number) {
            Some(decision) => Some(decision.epoch),
            None => return Err(not_kept(kept, number)),
        },
    };
    let told = kept.iter().filter(|decision| epoch.is_none_or(|epoch| decision.epoch == epoch));
    let decisions = told.map(|decision| tell(state, decision)).collect();
    Ok(History { version: 1, cluster: cluster.to_owned(), decisions })
}

fn not_kept(kept: &[control::Decision], number: u64) -> String {
    match (kept.first(), kept.last()) {
        (Some(first), Some(last)) => format!(
            "no decision {number} is kept: `packmaster ctl history` shows {} to {}",
            first.number, last.number
        ),
        _ => format!("no decision {number}: nothing was decided yet"),
    }
}

fn tell(state: &ControlState, decision: &control::Decision) -> Decision {
    let member = state.members.iter().find(|member| member.id == decision.node);
    let node = (decision.node != 0)
        .then(|| member.map_or_else(|| decision.node.to_string(), |member| member.name.clone()));
    let waited_us = Some(decision.clients_waited_us).filter(|&waited| waited != 0);
    Decision {
        number: decision.number,
        time: rfc3339(decision.wall_us),
        epoch: decision.epoch,
        what: decision.what.clone(),
        why: decision.why.clone(),
        asked_by: decision.asked_by.clone(),
        node,
        clients_waited_ms: waited_us.map(|waited| waited as f64 / 1000.0),
        raft_index: Some(decision.index).filter(|index| *index != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Member;

    fn state() -> ControlState {
        let decision = |number, epoch, what: &str, node, waited| control::Decision {
            number,
            epoch,
            node,
            what: what.into(),
            why: "because".into(),
            asked_by: "automatic".into(),
            index: 0,
            wall_us: 1_700_000_000_000_000,
            clients_waited_us: waited,
        };
        ControlState {
            members: vec![Member { id: 2, name: "n2".into(), ..Default::default() }],
            history: vec![
                decision(7, 3, "fence", 0, 0),
                decision(8, 4, "elect", 2, 0),
                decision(9, 4, "opened", 2, 81_500),
                decision(10, 4, "pack cancel", 9, 0),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn everything_kept_is_told_with_names_and_waiting_time() {
        let told = history("c", &state(), 0).unwrap();
        assert_eq!(told.decisions.len(), 4);
        assert_eq!(told.decisions[0].node, None);
        assert_eq!(told.decisions[2].node.as_deref(), Some("n2"));
        assert_eq!(told.decisions[2].clients_waited_ms, Some(81.5));
        assert_eq!(told.decisions[0].clients_waited_ms, None);
        assert_eq!(told.decisions[3].node.as_deref(), Some("9"), "a member that is gone");
        assert!(told.decisions[2].is_opened() && told.decisions[3].is_pack_cancel());
    }

    #[test]
    fn a_number_selects_its_epoch() {
        let told = history("c", &state(), 8).unwrap();
        let numbers: Vec<u64> = told.decisions.iter().map(|decision| decision.number).collect();
        assert_eq!(numbers, [8, 9, 10]);
    }

    #[test]
    fn a_number_that_is_not_kept_is_refused_with_what_is() {
        let why = history("c", &state(), 3).unwrap_err();
        assert!(why.contains("shows 7 to 10"), "{why}");
        let why = history("c", &ControlState::default(), 1).unwrap_err();
        assert!(why.contains("nothing was decided"), "{why}");
    }
}
