//! What people and scripts are told about the cluster, and how it is told.
//!
//! A node collects what it knows (the replicated state, everybody's last beat and its age) in a [`view::ClusterView`];
//! [`status::status`] and [`history::history`] make of it the JSON that `interface.md` promises to scripts, and
//! [`render`] makes of that JSON the tables a person reads. ctl, the node's pages and the playground all go the same
//! way, so none of them can tell another story than the rest.
//!
//! Who may become master is decided by [`eligible`], here and nowhere else: the failover controller, `promote
//! --dry-run` and status ask the same predicate, so that status never says "in step" of a node that promote refuses.
//!
//! Nothing here reads a clock, a file or a socket.

pub mod config;
pub mod durability;
pub mod eligible;
pub mod generations;
pub mod history;
pub mod keep;
pub mod model;
pub mod render;
pub mod room;
pub mod status;
mod summary;
pub mod view;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proto::admin::{AdminReply, Outcome};
use crate::proto::control::ControlState;

/// The answer to `status`: done, with the JSON.
pub fn status_reply(id: u64, view: &view::ClusterView) -> AdminReply {
    let status = status::status(view);
    let json = serde_json::to_vec(&status).expect("a status is always representable");
    AdminReply { id, outcome: Outcome::Done.into(), message: status.summary, json: json.into() }
}

/// The answer to `history`: done, with the JSON; refused if `number` is of no decision that is kept.
pub fn history_reply(id: u64, cluster: &str, state: &ControlState, number: u64) -> AdminReply {
    match history::history(cluster, state, number) {
        Ok(history) => {
            let json = serde_json::to_vec(&history).expect("a history is always representable");
            let message = format!("{} decisions", history.decisions.len());
            AdminReply { id, outcome: Outcome::Done.into(), message, json: json.into() }
        }
        Err(why) => refusal(id, why),
    }
}

/// The answer to a question for data: done, with the JSON.
pub fn data_reply(id: u64, data: &impl serde::Serialize) -> AdminReply {
    let json = serde_json::to_vec(data).expect("data is always representable").into();
    AdminReply { id, outcome: Outcome::Done.into(), message: String::new(), json }
}

/// The answer to anything that is not done, with the reason and the remedy.
pub fn refusal(id: u64, message: impl Into<String>) -> AdminReply {
    AdminReply {
        id,
        outcome: Outcome::Refused.into(),
        message: message.into(),
        json: Default::default(),
    }
}

/// RFC 3339 in UTC, to the millisecond; `None` for 0, which stands for "never" everywhere.
pub fn rfc3339(wall_us: u64) -> Option<String> {
    if wall_us == 0 {
        return None;
    }
    let nanos = i128::from(wall_us / 1000) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
}

/// 40 hex digits for a chain; as many as there are for anything else.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_in_utc() {
        assert_eq!(rfc3339(1_700_000_000_123_456).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(u64::MAX), None, "a wild clock is no panic");
    }

    #[test]
    fn hex_is_lower_case_and_padded() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
