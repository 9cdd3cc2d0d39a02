use std::sync::Arc;

use crate::node::core::{Action, Input, testing};
use crate::proto::admin::admin_request::Verb;
use crate::proto::admin::{AdminReply, AdminRequest, Outcome, SetPause};
use crate::storage::mem::MemDisk;
use crate::types::Now;

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 + ms * 1000 }
}

fn replies(actions: Vec<Action>) -> Vec<AdminReply> {
    let replies = actions.into_iter().filter_map(|action| match action {
        Action::AdminReply { reply, .. } => Some(reply),
        _ => None,
    });
    replies.collect()
}

/// Nobody else can be heard: the request waits as long as an election would take, and then it is refused for sure.
#[test]
fn without_a_leader_a_request_waits_and_is_then_refused() {
    let mut node = testing::first_of_three(Arc::new(MemDisk::default()), at(0));
    let mut out = Vec::new();
    let verb = Some(Verb::SetPause(SetPause { paused: true }));
    let message = AdminRequest { id: 7, asked_by: "ann@host".into(), verb };
    node.step(at(0), Input::Admin { request: 70, message }, &mut out);
    for ms in (10..2000).step_by(10) {
        node.step(at(ms), Input::Tick, &mut out);
    }
    assert_eq!(replies(std::mem::take(&mut out)), []);
    node.step(at(2000), Input::Tick, &mut out);
    let told = replies(out);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].id, told[0].outcome()), (7, Outcome::Refused));
    assert!(told[0].message.contains("no Raft leader"), "{}", told[0].message);
}
