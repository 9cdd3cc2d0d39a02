//! Elections as the leader decides upon them.

use super::super::scene::{Scene, bytes20};
use super::*;
use crate::proto::control as pb;
use crate::replication::wire::Position;
use crate::types::{BootId, Chain, Generation, Seq, Tip};

fn report(epoch: u64, boot: u64, may_be_master: bool) -> Report {
    let chain = |fill| Chain(bytes20(fill)[..].try_into().unwrap());
    let tip = Tip { epoch: Epoch(1), seq: Seq(9), offset: 900, chain: chain(3) };
    Report {
        epoch: Epoch(epoch),
        boot: BootId(boot),
        position: Position { generation: Generation(1), base_hash: chain(1), tip },
        suspect: String::new(),
        next: None,
        blank: false,
        may_be_master,
        failing: false,
    }
}

/// Found by the simulator (seed 300): the two whole nodes were being stopped when they reported, the third was damaged. An
/// alarm said that a person must look, and when they came back nobody asked them again.
#[test]
fn who_is_being_stopped_is_waited_for_and_asked_again() {
    let mut scene = Scene::new();
    let reason = Reason::Promote.into();
    scene.ok(Kind::Fence(pb::FenceCommand { epoch: 2, reason, ..Default::default() }));
    for id in 1..=3 {
        scene.beat(id).promised = 2;
    }
    scene.decide();
    let damaged = Report { suspect: "damaged".into(), ..report(2, 3, true) };
    scene.controller.on_report(NodeId(3), damaged);
    scene.controller.on_report(NodeId(1), report(2, 1, false));
    scene.controller.on_report(NodeId(2), report(2, 2, false));
    scene.later(1_000_000);
    let asked = |decisions: &[Decision]| -> Vec<u64> {
        let asked = decisions.iter().map(|decision| match decision {
            Decision::AskFence { voter, .. } => voter.0,
            other => panic!("{other:?}"),
        });
        asked.collect()
    };
    assert_eq!(asked(&scene.decide()), [3]);
    // Node 2 is back.
    scene.beat(2).boot = 20;
    scene.later(1_000_000);
    assert_eq!(asked(&scene.decide()), [2, 3]);
    scene.controller.on_report(NodeId(2), report(2, 20, true));
    scene.later(1_000_000);
    let elected = scene.decide().into_iter().find_map(|decision| match decision {
        Decision::Propose(Kind::Elect(elect)) => Some((elect.master, elect.boot)),
        _ => None,
    });
    assert_eq!(elected, Some((2, 20)));
}
