//! Elections and promotes that take their time, as the leader (node 1) decides upon them.

use super::super::controller::Decision;
use super::super::scene::{Scene, bytes20};
use super::*;
use crate::proto::control as pb;
use crate::proto::control::Reason;
use crate::proto::control::command::Kind;
use crate::proto::replication;

const PATIENCE_US: u64 = 2_000_000;
/// Moves enough in a tenth of the patience.
const QUICK: u64 = 10_000;

fn position(seq: u64, offset: u64) -> Option<replication::Position> {
    let tip = replication::Tip { epoch: 1, seq, offset, chain: bytes20(3) };
    Some(replication::Position { generation: 1, base_hash: bytes20(1), tip: Some(tip) })
}

/// Node 2 was elected in epoch 2 to fetch up to seq 9 from node 3, and has not opened.
fn elected() -> Scene {
    let mut scene = Scene::new();
    let reason = Reason::MasterDead.into();
    scene.ok(Kind::Fence(pb::FenceCommand { epoch: 2, reason, ..Default::default() }));
    scene.ok(Kind::Elect(pb::Elect {
        epoch: 2,
        master: 2,
        boot: 2,
        voters: vec![1, 2, 3],
        floor: position(9, 900),
        generation: Some(pb::GenerationRecord {
            number: 1,
            base_hash: bytes20(1),
            ..Default::default()
        }),
        floor_holder: 3,
        ..Default::default()
    }));
    for id in 1..=3 {
        let beat = scene.beat(id);
        (beat.promised, beat.open, beat.position) = (2, false, position(5, 500));
    }
    assert_eq!(scene.decide(), []);
    scene
}

fn fence(decisions: Vec<Decision>) -> Option<(i32, u64, String)> {
    match decisions.into_iter().next()? {
        Decision::Propose(Kind::Fence(fence)) => Some((fence.reason, fence.epoch, fence.why)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_elected_master_that_goes_on_moving_is_left_alone() {
    let mut scene = elected();
    for _ in 0..100 {
        scene.later(PATIENCE_US / 10);
        scene.beat(2).opening_moved_bytes += QUICK;
        assert_eq!(scene.decide(), []);
    }
    scene.later(PATIENCE_US);
    let (reason, epoch, why) = fence(scene.decide()).unwrap();
    assert_eq!((reason, epoch), (Reason::NotOpened.into(), 3));
    assert_eq!(why, "n2 has not opened, and has moved fewer than 16384 bytes toward it in 2000 ms");
}

#[test]
fn one_that_moves_next_to_nothing_is_replaced() {
    let mut scene = elected();
    for _ in 0..9 {
        scene.later(PATIENCE_US / 10);
        scene.beat(2).opening_moved_bytes += 1000;
        assert_eq!(scene.decide(), []);
    }
    scene.later(PATIENCE_US / 10);
    assert!(fence(scene.decide()).is_some());
}

#[test]
fn what_was_moved_in_another_epoch_does_not_count() {
    let mut scene = elected();
    scene.later(PATIENCE_US);
    (scene.beat(2).promised, scene.beat(2).opening_moved_bytes) = (1, 1 << 30);
    assert!(fence(scene.decide()).is_some());
}

#[test]
fn somebody_who_has_the_floor_already_is_preferred_after_the_patience() {
    let moving = |scene: &mut Scene| {
        scene.later(PATIENCE_US / 4);
        scene.beat(2).opening_moved_bytes += 1 << 20;
        fence(scene.decide()).map(|(_, _, why)| why)
    };
    let mut scene = elected();
    scene.beat(3).position = position(9, 900);
    assert_eq!([0; 3].map(|_| moving(&mut scene)), [const { None }; 3]);
    let why = moving(&mut scene).unwrap();
    assert_eq!(why, "n2 has not opened in 2000 ms, and n3 has already what it is still fetching");

    // Not one that can't open either; and not for one that has it, and waits for its slaves.
    let unfit: [fn(&mut Beat); 4] = [
        |beat| beat.suspect = "damaged".into(),
        |beat| beat.failing = "its disk is full".into(),
        |beat| beat.leaving = true,
        |beat| beat.position.as_mut().unwrap().base_hash = bytes20(2),
    ];
    for spoil in unfit {
        let mut scene = elected();
        scene.beat(3).position = position(9, 900);
        spoil(scene.beat(3));
        assert_eq!([0; 9].map(|_| moving(&mut scene)), [const { None }; 9]);
    }
    let mut scene = elected();
    (scene.beat(2).position, scene.beat(3).position) = (position(9, 900), position(9, 900));
    assert_eq!([0; 9].map(|_| moving(&mut scene)), [const { None }; 9]);
}

/// Node 1 is open in epoch 1.
fn open() -> Scene {
    let mut scene = Scene::new();
    for id in 1..=3 {
        let beat = scene.beat(id);
        (beat.promised, beat.position) = (1, position(9, 50 << 20));
        (beat.written_seq, beat.file_bytes) = (9, 50 << 20);
    }
    scene
}

/// A forged promise made a master close, with an epoch that Raft knows nothing of; or it was stopped in between. It lived
/// and answered, so nobody replaced it.
#[test]
fn a_master_that_says_it_is_not_open_is_replaced() {
    let shut: [fn(&mut Beat); 2] = [|beat| beat.open = false, |beat| beat.promised = 1000];
    for shut in shut {
        let mut scene = open();
        shut(scene.beat(1));
        assert_eq!(scene.decide(), []);
        scene.later(PATIENCE_US - 1000);
        assert_eq!(scene.decide(), [], "it may be an old word");
        scene.later(1000);
        let highest = scene.beats.values().map(|beat| beat.promised).max().unwrap();
        let (reason, epoch, why) = fence(scene.decide()).unwrap();
        assert_eq!((reason, epoch), (Reason::NotOpened.into(), highest + 1), "{why}");
        assert!(why.starts_with("n1 is the master of epoch 1 and says that it is not"), "{why}");
    }
}

/// The same done to a slave: it took nothing from the master any more, whose epoch it had left.
#[test]
fn a_slave_that_has_left_the_epoch_is_taken_into_a_new_one() {
    let mut scene = open();
    scene.beat(3).promised = 1000;
    assert_eq!(scene.decide(), []);
    scene.later(PATIENCE_US);
    let (_, epoch, why) = fence(scene.decide()).unwrap();
    assert_eq!(epoch, 1001);
    assert!(why.starts_with("n3 has promised epoch 1000, which was never decided"), "{why}");
    let beyond_help: [fn(&mut Beat); 2] =
        [|beat| beat.promised = 1 << 40, |beat| beat.suspect = "it is".into()];
    for spoil in beyond_help {
        let mut scene = open();
        scene.beat(3).promised = 1000;
        spoil(scene.beat(3));
        scene.decide();
        scene.later(PATIENCE_US);
        assert_eq!(scene.decide(), [], "no election helps that");
    }
}

#[test]
fn a_moment_of_not_being_open_is_forgotten() {
    let mut scene = open();
    for _ in 0..10 {
        scene.beat(1).open = false;
        assert_eq!(scene.decide(), []);
        scene.later(PATIENCE_US / 2);
        assert_eq!(scene.decide(), []);
        scene.beat(1).open = true;
        scene.later(PATIENCE_US / 2);
        assert_eq!(scene.decide(), []);
    }
}

#[test]
fn a_promise_from_beyond_what_can_be_is_not_followed() {
    let mut scene = open();
    scene.beat(1).promised = 4_611_686_018_427_387_903;
    scene.decide();
    scene.later(PATIENCE_US);
    assert_eq!(fence(scene.decide()).unwrap().1, 2);
}

fn ask(scene: &mut Scene, target: u64) {
    let asked = PromoteAsked {
        target: NodeId(target),
        asked_by: "ann".into(),
        why: "n2 was asked for".into(),
    };
    let (epoch, now) = (scene.state.epoch(), scene.now);
    scene.controller.ask_promote(asked, epoch, now);
}

#[test]
fn a_target_in_step_is_promoted_at_once() {
    let mut scene = open();
    scene.beat(2).position = position(8, (50 << 20) - 1000);
    ask(&mut scene, 2);
    assert_eq!(fence(scene.decide()).unwrap().0, i32::from(Reason::Promote));
}

#[test]
fn a_target_that_lacks_much_catches_up_first() {
    let mut scene = open();
    scene.beat(2).position = position(8, 10 << 20);
    ask(&mut scene, 2);
    let lacks_bytes = 40 << 20;
    assert_eq!(scene.decide(), [Decision::PromoteWaits { target: NodeId(2), lacks_bytes }]);
    // All but the last bytes arrive in pieces, which are not on its disk yet.
    for _ in 0..38 {
        scene.later(4_000_000);
        scene.beat(2).incoming_bytes += 1 << 20;
        assert_eq!(scene.decide(), []);
    }
    let told = scene.controller.promote_told().unwrap();
    assert_eq!((told.target, told.lacks_bytes, &told.called_off[..]), (2, 40 << 20, ""));
    (scene.beat(2).position, scene.beat(2).incoming_bytes) = (position(9, 50 << 20), 0);
    assert_eq!(fence(scene.decide()).unwrap().0, i32::from(Reason::Promote));
}

#[test]
fn a_target_that_comes_no_nearer_is_given_up_and_the_master_goes_on() {
    let mut scene = open();
    scene.beat(2).position = position(8, 10 << 20);
    ask(&mut scene, 2);
    scene.decide();
    scene.later(5_000_000);
    let decided = scene.decide();
    let [Decision::PromoteCalledOff { target: NodeId(2), asked_by, why }] = &decided[..] else {
        panic!("{decided:?}")
    };
    assert_eq!(asked_by, "ann");
    assert!(why.starts_with("n2 lacks 41943040 bytes of the master's file"), "{why}");
    assert_eq!(&scene.controller.promote_told().unwrap().called_off, why);
    // It is over, also when the target is there at last.
    scene.beat(2).position = position(9, 50 << 20);
    scene.later(5_000_000);
    assert_eq!(scene.decide(), []);
}

#[test]
fn a_promote_is_about_the_epoch_in_which_it_was_asked_for() {
    let mut scene = open();
    scene.beat(2).position = position(8, 10 << 20);
    ask(&mut scene, 2);
    scene.decide();
    scene.elect(2);
    for id in 1..=3 {
        scene.beat(id).promised = 2;
    }
    scene.beat(2).position = position(9, 50 << 20);
    let decided = scene.decide();
    let why = "an election (epoch 2) came between".to_string();
    let (target, asked_by) = (NodeId(2), "ann".to_string());
    assert_eq!(decided, [Decision::PromoteCalledOff { target, asked_by, why }]);
}
