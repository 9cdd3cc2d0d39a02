use std::sync::Arc;

use prost::Message;

use crate::node::core::Action;
use crate::node::core::testing::first_of_three;
use crate::node::core::testing::says;
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    Command, Pause, Propose, RaftConfState, RaftMessage, RaftSnapshot, SnapshotPlace,
};
use crate::storage::mem::MemDisk;
use crate::types::{NodeId, Now};

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

/// A newer program's command was passed over with a line in the log, and the state was another than the others' from then
/// on.
#[test]
fn a_command_that_is_not_known_stops_the_node() {
    // Field 200 of a `Command`: a kind of a later version. And bytes that are none.
    let later =
        [Command { on_epoch: 0, ..Command::default() }.encode_to_vec(), vec![0xc2, 0x0c, 0]];
    for bytes in [later.concat(), vec![0xff; 9]] {
        let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
        let (applied, mut out) = (core.control.applied(), Vec::new());
        core.apply_command(applied + 1, &bytes, &mut out);
        let exit = out.iter().find_map(|action| match action {
            Action::Exit { reason, failed: true } => Some(reason),
            _ => None,
        });
        assert!(exit.expect("it stops").contains("older than the cluster's"));
        assert_eq!(core.control.applied(), applied);
    }
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let kind = Some(CommandKind::Pause(Pause { after: 0, paused: true, asked_by: "test".into() }));
    let known = Command { kind, ..Command::default() };
    core.apply_command(1, &known.encode_to_vec(), &mut Vec::new());
    assert!(core.control.paused() && !core.exited);
}

#[test]
fn a_snapshot_that_was_not_taken_where_it_is_said_is_not_believed() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let place = SnapshotPlace { raft_index: 40, raft_term: 2 };
    let data = [core.control.encode(), place.encode_to_vec()].concat();
    let snapshot = |index| {
        let conf_state = Some(RaftConfState { voters: vec![1, 2, 3], ..Default::default() });
        let snapshot = RaftSnapshot { data: data.clone().into(), conf_state, index, term: 2 };
        let (from, to, term, msg_type) = (2, 1, 2, 7);
        let snapshot = Some(snapshot);
        Kind::Raft(RaftMessage { from, to, term, msg_type, snapshot, ..Default::default() })
    };
    let kept = |actions: &[Action]| {
        actions.iter().any(|action| {
            matches!(action, Action::RaftPersist { record, .. } if record.snapshot.is_some())
        })
    };
    assert!(!kept(&says(&mut core, NOW, 2, snapshot(1 << 61))));
    assert!(core.own_beat().disbeliefs[0].what.contains("snapshot index"));
    assert!(kept(&says(&mut core, NOW, 2, snapshot(40))), "it is not bounded by the own log");
}

#[test]
fn nobody_else_speaks_for_a_peer_in_raft_and_only_the_leader_decides() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let message = RaftMessage { from: 3, to: 1, term: 9, msg_type: 8, ..Default::default() };
    says(&mut core, NOW, 2, Kind::Raft(message));
    assert_eq!(core.raft.term(), 0);
    let unknown = Propose { command: Some(Command::default()) };
    assert!(core.on_propose(NodeId(2), unknown).is_ok(), "it does not lead");
}
