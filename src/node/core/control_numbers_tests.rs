use std::sync::Arc;

use prost::Message;

use crate::control::Applied;
use crate::node::core::testing::{carry_out, first_of_three, says};
use crate::node::core::{Action, Core};
use crate::plausible::{EPOCH_AHEAD_MAX, INDEX_AHEAD_MAX};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    Command, FenceCommand, FenceRequest, Pause, Propose, RaftConfState, RaftEntry, RaftMessage,
    RaftSnapshot, Reason, SnapshotPlace,
};
use crate::storage::mem::MemDisk;
use crate::types::{Epoch, NodeId, Now};

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

/// Farther than one message would be believed to be ahead, and what the others have come to meanwhile.
const AWAY_EPOCH: u64 = 100_000 + EPOCH_AHEAD_MAX;
const AWAY_TERM: u64 = 100_001;

fn fence_at(on_epoch: u64, epoch: u64) -> Command {
    let reason = if on_epoch == 0 { Reason::Bootstrap } else { Reason::MasterDead }.into();
    let fence = FenceCommand { epoch, reason, ..Default::default() };
    Command { on_epoch, kind: Some(CommandKind::Fence(fence)), ..Command::default() }
}

/// Node 1 takes part, and is asked for a promise of the epoch that the others have come to: it can't know that.
fn away() -> Core {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    for from in [2, 3] {
        let out = says(&mut core, NOW, from, Kind::Beat(Box::default()));
        carry_out(&mut core, NOW, out);
    }
    let out = says(&mut core, NOW, 2, ask(AWAY_EPOCH));
    carry_out(&mut core, NOW, out);
    assert_eq!((core.promised, core.raft.term()), (Epoch(0), 0));
    assert!(!core.own_beat().disbeliefs.is_empty());
    core
}

fn ask(epoch: u64) -> Kind {
    Kind::FenceRequest(FenceRequest { epoch })
}

/// It follows, is not accused, and takes part in the present fence and in the next.
fn has_come_back(core: &mut Core) {
    assert_eq!((core.control.epoch(), core.raft.term()), (Epoch(AWAY_EPOCH), AWAY_TERM));
    assert_eq!(core.promise_durable, Epoch(AWAY_EPOCH));
    assert_eq!((core.suspect.as_str(), core.raft.leader()), ("", Some(NodeId(2))));
    for epoch in [AWAY_EPOCH, AWAY_EPOCH + 1] {
        let out = says(core, NOW, 2, ask(epoch));
        let reports = carry_out(core, NOW, out).into_iter().any(|action| match action {
            Action::Send { to: NodeId(2), message } => {
                matches!(message.kind, Some(Kind::FenceReport(report)) if report.epoch == epoch)
            }
            _ => false,
        });
        assert!(reports, "epoch {epoch}");
    }
}

/// The others elected again and again, each time with a new Raft leader.
#[test]
fn a_node_that_was_away_for_long_comes_back_through_the_log() {
    const STEPS: u64 = 1000;
    let mut core = away();
    let epoch_of = |step: u64| AWAY_EPOCH * step / STEPS;
    let term_of = |step: u64| AWAY_TERM * step / STEPS;
    let entries: Vec<RaftEntry> = (1..=STEPS)
        .map(|index| RaftEntry {
            index,
            term: term_of(index),
            data: fence_at(epoch_of(index - 1), epoch_of(index)).encode_to_vec().into(),
            ..Default::default()
        })
        .collect();
    for some in entries.chunks(100) {
        let before = some[0].index - 1;
        let append = RaftMessage {
            msg_type: 3,
            from: 2,
            to: 1,
            term: AWAY_TERM,
            index: before,
            log_term: term_of(before),
            entries: some.to_vec(),
            commit: before + some.len() as u64,
            ..Default::default()
        };
        let out = says(&mut core, NOW, 2, Kind::Raft(append));
        carry_out(&mut core, NOW, out);
    }
    has_come_back(&mut core);
}

/// The entries are gone by then, and the place of the snapshot is farther than a log may reach beyond this one's.
#[test]
fn a_node_that_was_away_for_long_comes_back_through_a_snapshot() {
    const INDEX: u64 = 3 * INDEX_AHEAD_MAX;
    let mut core = away();
    let mut state = core.control.clone();
    assert_eq!(state.apply(INDEX, &fence_at(0, AWAY_EPOCH)), Applied::Changed);
    let place = SnapshotPlace { raft_index: INDEX, raft_term: AWAY_TERM };
    let data = [state.encode(), place.encode_to_vec()].concat().into();
    let conf_state = Some(RaftConfState { voters: vec![1, 2, 3], ..Default::default() });
    let snapshot = Some(RaftSnapshot { data, conf_state, index: INDEX, term: AWAY_TERM });
    let (from, to, term, msg_type) = (2, 1, AWAY_TERM, 7);
    let message = RaftMessage { from, to, term, msg_type, snapshot, ..Default::default() };
    let out = says(&mut core, NOW, 2, Kind::Raft(message));
    carry_out(&mut core, NOW, out);
    has_come_back(&mut core);
}
