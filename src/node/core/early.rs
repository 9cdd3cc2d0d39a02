//! Clients of a node that does not serve yet. After a start the file may show what is to be cut back, so what clients
//! ask waits until everything in it is known to be committed; but no longer than a command may wait, and no client may
//! leave more here than it may send ahead.

use std::collections::{BTreeMap, VecDeque};

use super::{Action, Input};
use crate::durus::{CloseReason, Limits};
use crate::types::{ConnId, Now};

#[derive(Default)]
pub(super) struct Early {
    inputs: VecDeque<(Now, Input)>,
    /// Of who has asked for something: how much, and since when.
    asked: BTreeMap<ConnId, (Now, u64)>,
}

impl Early {
    pub(super) fn put(&mut self, input: Input, limits: &Limits, now: Now, out: &mut Vec<Action>) {
        let mut over = None;
        match &input {
            Input::ClientClosed { conn } => return self.forget(*conn),
            Input::ClientData { conn, bytes } => {
                let (_, sent) = self.asked.entry(*conn).or_insert((now, 0));
                *sent += bytes.len() as u64;
                over = (*sent > limits.input_buffered_bytes_max).then_some((*conn, *sent));
            }
            _ => {}
        }
        self.inputs.push_back((now, input));
        if let Some((conn, sent)) = over {
            let reason = CloseReason::Limit {
                name: "input_buffered_bytes_max",
                limit: limits.input_buffered_bytes_max,
                what: format!("{sent} bytes sent before this node could serve"),
            };
            self.close(conn, &reason, out);
        }
    }

    /// When somebody has waited for too long, in microseconds of the monotonic clock.
    pub(super) fn deadline_us(&self, limits: &Limits) -> Option<u64> {
        let since = self.asked.values().map(|(since, _)| since.mono_us).min()?;
        Some(since.saturating_add(limits.wait_max_ms * 1000))
    }

    pub(super) fn tick(&mut self, limits: &Limits, now: Now, out: &mut Vec<Action>) {
        let waited_ms = |(since, _): &(Now, u64)| now.since_ms(*since);
        let late = self.asked.iter().filter(|(_, asked)| waited_ms(asked) >= limits.wait_max_ms);
        let late: Vec<_> = late.map(|(conn, asked)| (*conn, waited_ms(asked))).collect();
        for (conn, waited_ms) in late {
            let what = "a command to a node that does not serve yet";
            self.close(conn, &CloseReason::Unanswered { what, waited_ms }, out);
        }
    }

    fn close(&mut self, conn: ConnId, reason: &CloseReason, out: &mut Vec<Action>) {
        self.forget(conn);
        let limit = reason.limit();
        out.push(Action::ClientClose { conn, reason: reason.to_string(), limit });
    }

    fn forget(&mut self, conn: ConnId) {
        self.asked.remove(&conn);
        self.inputs.retain(|(_, input)| match input {
            Input::ClientOpened { conn: of, .. } | Input::ClientData { conn: of, .. } => {
                *of != conn
            }
            _ => true,
        });
    }

    /// Everything that waits, in the order it came.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Input> + use<> {
        self.asked.clear();
        std::mem::take(&mut self.inputs).into_iter().map(|(_, input)| input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn at(ms: u64) -> Now {
        Now { mono_us: 1 + ms * 1000, wall_us: 0 }
    }

    fn opened(conn: u64) -> Input {
        Input::ClientOpened { conn: ConnId(conn), address: String::new() }
    }

    fn data(conn: u64, len: usize) -> Input {
        Input::ClientData { conn: ConnId(conn), bytes: Bytes::from(vec![b'S'; len]) }
    }

    fn closed(out: &[Action]) -> Vec<(u64, Option<&'static str>)> {
        let closed = out.iter().map(|action| match action {
            Action::ClientClose { conn, limit, .. } => (conn.0, *limit),
            _ => panic!("not a close"),
        });
        closed.collect()
    }

    #[test]
    fn who_asks_waits_so_long_and_who_is_idle_for_ever() {
        let limits = Limits { wait_max_ms: 500, input_buffered_bytes_max: 9, ..Limits::default() };
        let (mut early, mut out) = (Early::default(), Vec::new());
        for input in [opened(1), opened(2), opened(3), data(2, 4), data(3, 5)] {
            early.put(input, &limits, at(0), &mut out);
        }
        early.put(data(2, 5), &limits, at(100), &mut out);
        early.put(data(3, 5), &limits, at(100), &mut out);
        assert_eq!(closed(&out), [(3, Some("input_buffered_bytes_max"))]);
        assert_eq!(early.deadline_us(&limits), Some(at(500).mono_us));
        out.clear();
        early.tick(&limits, at(499), &mut out);
        assert!(out.is_empty());
        early.tick(&limits, at(500), &mut out);
        assert_eq!(closed(&out), [(2, Some("wait_max"))]);
        assert_eq!(early.deadline_us(&limits), None);
        let left: Vec<Input> = early.take().collect();
        assert!(matches!(left[..], [Input::ClientOpened { conn: ConnId(1), .. }]));
    }
}
