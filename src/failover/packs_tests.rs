//! Packs as the leader decides upon them: traces of what the state and the beats are, and what follows.

use super::super::scene::{Scene, bytes20};
use super::*;
use crate::proto::control as pb;

const HOUR_US: u64 = 3_600_000_000;

impl Scene {
    /// Asked for by whom, if a pack is proposed.
    fn started(&mut self) -> Option<String> {
        self.controller.on_state_changed();
        self.decide().into_iter().find_map(|decision| match decision {
            Decision::Propose(Kind::PackStart(start)) => Some(start.asked_by),
            _ => None,
        })
    }

    /// Whose turn it is told to be.
    fn turns(&mut self) -> Vec<u64> {
        let decisions = self.decide().into_iter();
        let turn = decisions.filter_map(|decision| match decision {
            Decision::PackTurn { node, .. } => Some(node.0),
            _ => None,
        });
        turn.collect()
    }

    fn start_pack(&mut self) {
        let start = PackStart { generation: 2, asked_by: "ann".into(), after: 0 };
        self.ok(Kind::PackStart(start));
    }

    fn seal(&mut self) {
        let cut_chain = bytes20(9);
        self.ok(Kind::PackSeal(pb::PackSeal { generation: 2, cut_chain, ..Default::default() }));
    }

    fn ready(&mut self, node: u64) {
        self.built(node, 7);
        self.ok(Kind::PackReady(pb::PackReady { generation: 2, node, ..Default::default() }));
    }

    fn built(&mut self, node: u64, base: u8) {
        let base_hash = bytes20(base);
        let base = pb::PackBase { generation: 2, base_hash, node, ..Default::default() };
        self.ok(Kind::PackBase(base));
    }

    fn cancel(&mut self) {
        let (why, asked_by) = ("a node failed".into(), "automatic".into());
        self.ok(Kind::PackCancel(PackCancel { generation: 2, why, asked_by, pack: 0 }));
    }
}

/// Of the first pack of a scene.
fn said(scene: &Scene, phase: &str, done_bytes: u64) -> Option<pb::PackProgress> {
    let pack = scene.state.pack().unwrap().id.0;
    let phase = phase.into();
    Some(pb::PackProgress { generation: 2, pack, phase, done_bytes, ..Default::default() })
}

impl Scene {
    fn fails(&mut self, node: u64, phase: &str) {
        self.beat(node).pack = said(self, phase, 0);
    }

    fn builds(&mut self, node: u64, done_bytes: u64) {
        self.beat(node).pack = said(self, "build", done_bytes);
    }
}

#[test]
fn the_garbage_share_asks_for_a_pack() {
    let mut scene = Scene::new();
    assert_eq!(scene.started(), None, "off by default");
    scene.set("pack.garbage_share", "50");
    assert_eq!(scene.started(), None, "it is 0 %");
    scene.beat(2).garbage_bytes = 1 << 30;
    assert_eq!(scene.started(), None, "the master's word counts");
    scene.beat(1).garbage_bytes = 560 << 20;
    assert_eq!(scene.started().as_deref(), Some("automatic, garbage share 54 % >= 50 %"));
}

#[test]
fn so_do_the_bytes_since_the_last_pack() {
    let mut scene = Scene::new();
    scene.set("pack.bytes", "1000");
    scene.beat(1).tail_bytes = 999;
    assert_eq!(scene.started(), None);
    scene.beat(1).tail_bytes = 1000;
    let asked = scene.started();
    assert_eq!(asked.as_deref(), Some("automatic, 1000 bytes since the last pack >= 1000"));
}

fn due() -> Scene {
    let mut scene = Scene::new();
    scene.set("pack.garbage_share", "50");
    scene.beat(1).garbage_bytes = 560 << 20;
    scene
}

#[test]
fn not_out_of_hours_nor_while_paused_nor_just_after_an_election() {
    let mut scene = due();
    scene.set("pack.hours", "22-3");
    assert_eq!(scene.started(), None, "it is three");
    scene.set("pack.hours", "3-4");
    scene.ok(Kind::Pause(pb::Pause { paused: true, asked_by: "ann".into(), after: 0 }));
    let waits: Vec<Decision> = scene.decide();
    assert!(matches!(&waits[..], [Decision::PackWaits { why, .. }] if why.contains("ctl resume")));
    assert_eq!(scene.decide(), [], "said once");
    scene.ok(Kind::Pause(pb::Pause { paused: false, asked_by: "ann".into(), after: 0 }));
    assert!(scene.started().is_some());
    scene.elect(2);
    assert_eq!(scene.started(), None);
    scene.later(2_000_000);
    assert!(scene.started().is_some());
}

#[test]
fn not_before_the_last_one_is_long_enough_ago() {
    let mut scene = due();
    scene.set("pack.min_distance", "2h");
    scene.start_pack();
    scene.cancel();
    scene.decide();
    scene.later(2 * HOUR_US - 1_000_000);
    assert_eq!(scene.started(), None);
    // Wherever the wall clock goes meanwhile, this leader has its own.
    scene.now.wall_us += 50 * HOUR_US;
    assert_eq!(scene.started(), None);
    scene.now.wall_us -= 90 * HOUR_US;
    scene.later(1_000_000);
    assert!(scene.started().is_some());
}

#[test]
fn a_new_leader_goes_by_the_wall_clock_but_not_for_ever() {
    let mut scene = due();
    scene.set("pack.min_distance", "2h");
    scene.start_pack();
    scene.cancel();
    scene.later(3 * HOUR_US);
    scene.controller = Controller::default();
    scene.decide();
    scene.later(2_000_000);
    assert!(scene.started().is_some(), "it has been three hours, and this leader has settled");
    // The end of the last pack lies in the future by this leader's clock.
    scene.now.wall_us -= 1000 * HOUR_US;
    scene.controller = Controller::default();
    scene.decide();
    scene.later(2 * HOUR_US - 1_000_000);
    assert_eq!(scene.started(), None);
    scene.later(1_000_000);
    assert!(scene.started().is_some());
}

#[test]
fn after_one_that_failed_not_at_once_again() {
    let mut scene = due();
    scene.set("pack.min_distance", "0s");
    scene.start_pack();
    scene.cancel();
    scene.decide();
    scene.later(599_000_000);
    assert_eq!(scene.started(), None);
    scene.later(1_000_000);
    assert!(scene.started().is_some());
}

#[test]
fn a_pack_that_an_election_called_off_begins_again_in_its_hours() {
    let mut scene = due();
    scene.set("pack.hours", "3-4");
    let asked_by = scene.started().unwrap();
    scene.ok(Kind::PackStart(PackStart { generation: 2, asked_by: asked_by.clone(), after: 0 }));
    scene.elect(2);
    scene.decide();
    scene.later(2_000_000);
    assert_eq!(scene.started(), Some(asked_by), "the distance between packs is not meant for it");
    scene.later(HOUR_US);
    assert_eq!(scene.started(), None);
    scene.later(23 * HOUR_US);
    assert!(scene.started().is_some());
}

#[test]
fn slaves_build_one_by_one_and_the_master_last() {
    let mut scene = Scene::new();
    scene.start_pack();
    assert_eq!(scene.turns(), [0; 0], "it is being marked");
    scene.seal();
    assert_eq!(scene.turns(), [2]);
    assert_eq!(scene.turns(), [0; 0]);
    scene.later(100_000);
    assert_eq!(scene.turns(), [2], "told again: it may have been lost");
    scene.ready(2);
    assert_eq!(scene.turns(), [3]);
    scene.ready(3);
    assert_eq!(scene.turns(), [1]);
    scene.ready(1);
    let decisions = scene.decide();
    assert!(
        matches!(&decisions[..], [Decision::Propose(Kind::Fence(fence))]
            if fence.reason() == Reason::GenerationSwitch && fence.target == 1),
        "{decisions:?}"
    );
}

#[test]
fn as_many_at_once_as_the_settings_say() {
    let mut scene = Scene::new();
    scene.set("pack.builders", "3");
    scene.start_pack();
    scene.seal();
    assert_eq!(scene.turns(), [2, 3], "the master is the last in any case");
    scene.ready(3);
    scene.ready(2);
    assert_eq!(scene.turns(), [1]);
}

#[test]
fn nobody_waits_for_a_node_that_does_not_go_on() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    scene.builds(2, 1);
    assert_eq!(scene.turns(), [2]);
    scene.later(9_000_000);
    scene.builds(2, 2);
    assert_eq!(scene.turns(), [2], "slow, and going on");
    scene.later(10_000_000);
    assert_eq!(scene.turns(), [2, 3], "it keeps its turn");
    scene.ready(3);
    assert_eq!(scene.turns(), [1]);
}

#[test]
fn a_pack_that_cannot_come_to_an_end_is_called_off() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    scene.fails(3, "failed: its disk");
    assert_eq!(scene.turns(), [2], "a majority is left");
    scene.fails(1, "failed: another base");
    let decisions = scene.decide();
    let [Decision::Propose(Kind::PackCancel(cancel))] = &decisions[..] else {
        panic!("{decisions:?}");
    };
    let why = "2 of 3 nodes could not build the new generation \
        (n1: failed: another base; n3: failed: its disk)";
    assert_eq!(cancel.why, why);
}

/// Found by reading: one node was dead, another had no room, the third had built. It was nobody's turn, and the pack stood
/// there for ever, what it took for dead refused.
#[test]
fn a_pack_that_nobody_is_left_to_build_is_called_off() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    let third = scene.beats.remove(&NodeId(3)).unwrap();
    scene.fails(2, "failed: no room");
    assert_eq!(scene.turns(), [1]);
    scene.ready(1);
    assert_eq!(scene.decide(), []);
    scene.later(9_000_000);
    assert_eq!(scene.decide(), []);
    // It may come back in time, and stand aside.
    scene.beats.insert(NodeId(3), third);
    assert_eq!(scene.turns(), [3]);
    scene.later(9_000_000);
    scene.beat(3).suspect = "its disk has forgotten".into();
    scene.decide();
    scene.later(9_999_000);
    assert!(called_off(&mut scene).is_none());
    scene.beats.remove(&NodeId(3));
    scene.later(1000);
    let why = "1 of 3 nodes have built the new generation, and nobody is left who could \
        (n2: failed: no room; n3 takes no part)";
    assert_eq!(called_off(&mut scene).as_deref(), Some(why));
}

/// Why, if it is.
fn called_off(scene: &mut Scene) -> Option<String> {
    scene.decide().into_iter().find_map(|decision| match decision {
        Decision::Propose(Kind::PackCancel(cancel)) => Some(cancel.why),
        _ => None,
    })
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let mut scene = Scene::new();
    let why = |spoil: &dyn Fn(&mut Scene)| {
        let mut scene = Scene::new();
        spoil(&mut scene);
        scene.view(|_, view| preflight(view)).unwrap_err()
    };
    assert!(
        why(&|it| it.beat(3).free_bytes = 1 << 30).starts_with("n3 has 1.0 GiB free and needs")
    );
    assert!(why(&Scene::start_pack).contains("a pack to generation 2 is in progress"));
    let pause = Kind::Pause(pb::Pause { paused: true, asked_by: "ann".into(), after: 0 });
    assert!(why(&|it| it.ok(pause.clone())).contains("ctl resume"));
    let alone = why(&|it| {
        it.beat(2).in_step = false;
        it.beat(3).in_step = false;
    });
    assert!(alone.contains("only 1 of 3 nodes are in step"), "{alone}");
    assert_eq!(scene.view(|_, view| preflight(view)), Ok(()));
}

/// A pack is sealed, after which the master is to hand over.
fn handing_over() -> Scene {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    scene.set("pack.master", "hand_over");
    scene
}

/// The slaves have built, the master has not: it is told to hold commits until the heir has all of them, then the heir is
/// elected in the new generation. Nobody asks the master to build.
#[test]
fn a_master_that_does_not_build_hands_over() {
    let mut scene = handing_over();
    scene.ready(2);
    scene.later(200_000);
    assert_eq!(scene.turns(), [3]);
    scene.ready(3);
    scene.later(200_000);
    let generation = crate::types::Generation(2);
    let hold_for = Some(NodeId(2));
    let pack = scene.state.pack().unwrap().id;
    let hold = Decision::PackTurn { node: NodeId(1), pack, generation, hold_for };
    assert_eq!(scene.decide(), [hold]);
    scene.fails(1, "wait");
    scene.beat(1).drained_for = 2;
    scene.later(10_000);
    let fences: Vec<Decision> = scene.decide();
    let [Decision::Propose(Kind::Fence(fence))] = &fences[..] else { panic!("{fences:?}") };
    assert_eq!((fence.reason(), fence.target), (Reason::GenerationSwitch, 2));
    assert!(fence.why.ends_with("n1 hands over to n2"), "{}", fence.why);
}

/// Nobody takes over for too long: then the master builds after all.
#[test]
fn without_an_heir_the_master_builds_itself() {
    let mut scene = handing_over();
    scene.ready(2);
    scene.ready(3);
    scene.later(200_000);
    assert_eq!(scene.turns(), [1], "told to hold");
    scene.later(31_000_000);
    let told = scene.decide();
    let turn = |told: &Decision| match told {
        Decision::PackTurn { node, hold_for: None, .. } => Some(node.0),
        _ => None,
    };
    assert_eq!(told.iter().filter_map(turn).collect::<Vec<_>>(), [1], "{told:?}");
}

/// Four of five build, and the third of them is ready: as many as it takes.
fn three_of_five_are_ready() -> Scene {
    let mut scene = Scene::of(5);
    scene.start_pack();
    scene.seal();
    scene.set("pack.master", "hand_over");
    for node in 2..=4 {
        scene.ready(node);
    }
    assert_eq!(scene.turns(), [5]);
    scene
}

fn is_told_to_hold(scene: &mut Scene) -> bool {
    let decisions = scene.decide();
    let hold = |told: &Decision| matches!(told, Decision::PackTurn { hold_for: Some(_), .. });
    decisions.iter().any(hold)
}

/// Found by reading: the last slave was left behind after the stragglers' time, however well it went on, and had to build
/// all over again afterwards.
#[test]
fn who_goes_on_is_no_straggler() {
    let mut scene = three_of_five_are_ready();
    for done in 1..=5 {
        scene.later(9_000_000);
        scene.builds(5, done);
        assert!(!is_told_to_hold(&mut scene), "{done}");
    }
    scene.later(10_000_000);
    assert!(is_told_to_hold(&mut scene), "it has stopped");
    scene.later(29_000_000);
    assert!(is_told_to_hold(&mut scene), "the heir's time begins only now");
}

#[test]
fn nor_is_it_waited_for_all_day() {
    let mut scene = three_of_five_are_ready();
    let mut waited_s = 0;
    while !is_told_to_hold(&mut scene) {
        waited_s += 5;
        scene.later(5_000_000);
        scene.builds(5, waited_s);
    }
    assert_eq!(waited_s, 3600);
}

/// The first that built was wrong, and with it nothing could come to an end: the others' bases were refused one by one.
#[test]
fn a_disagreement_is_settled_by_the_master_also_where_it_hands_over() {
    let mut scene = handing_over();
    assert_eq!(scene.turns(), [2]);
    scene.built(2, 8);
    scene.later(200_000);
    assert_eq!(scene.turns(), [2], "it goes on to be ready");
    scene.ok(Kind::PackReady(pb::PackReady { generation: 2, node: 2, ..Default::default() }));
    assert_eq!(scene.turns(), [3]);
    scene.built(3, 7);
    scene.later(200_000);
    assert_eq!(scene.turns(), [1], "who differs waits, and the master builds");
    scene.built(1, 7);
    scene.later(200_000);
    assert_eq!(scene.turns(), [3], "its base is the agreed one now");
    for node in [3, 1] {
        scene.ok(Kind::PackReady(pb::PackReady { generation: 2, node, ..Default::default() }));
    }
    scene.fails(2, "failed: outvoted");
    let decisions = scene.decide();
    let [Decision::Propose(Kind::Fence(fence))] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!((fence.reason(), fence.target), (Reason::GenerationSwitch, 1));
    assert_eq!(fence.pack, scene.state.pack().unwrap().id.0);
}

/// One bad node called off every pack when it was the master.
#[test]
fn a_master_whose_base_is_outvoted_hands_over() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    scene.ready(2);
    scene.built(1, 8);
    scene.ready(3);
    scene.fails(1, "failed: outvoted");
    let decisions = scene.decide();
    let hold = |told: &Decision| match told {
        Decision::PackTurn { node: NodeId(1), hold_for, .. } => *hold_for,
        _ => None,
    };
    assert_eq!(decisions.iter().find_map(hold), Some(NodeId(2)), "{decisions:?}");
    // Nobody can take over.
    for node in [2, 3] {
        scene.beat(node).in_step = false;
    }
    scene.decide();
    scene.later(10_000_000);
    let why = called_off(&mut scene).unwrap();
    assert!(why.contains("n1 is master and built another base"), "{why}");
}

#[test]
fn where_all_bases_differ_the_pack_is_called_off() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    scene.built(2, 7);
    scene.built(3, 8);
    assert!(called_off(&mut scene).is_none(), "the master has yet to build");
    scene.built(1, 9);
    let why = called_off(&mut scene).unwrap();
    assert!(why.starts_with("every node built another base (n1: 0909"), "{why}");
}

/// What a node said of the pack before, of the same generation, says nothing of this one.
#[test]
fn a_pack_that_begins_again_is_not_the_one_before() {
    let mut scene = Scene::new();
    scene.start_pack();
    scene.seal();
    assert_eq!(scene.turns(), [2]);
    for node in 1..=3 {
        scene.fails(node, "failed: its disk");
    }
    scene.cancel();
    scene.start_pack();
    scene.seal();
    assert_eq!(scene.turns(), [2], "nobody has failed in this one, and nobody was told");
}
