//! What the controller's own tests begin with: some nodes, the replicated state, what each says of itself.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::controller::{Controller, Decision, Timing, View};
use super::health::Health;
use crate::control::legacy::decided_on;
use crate::control::{Applied, Member, Role, State, command};
use crate::proto::control as pb;
use crate::proto::control::command::Kind;
use crate::proto::control::{Beat, Reason};
use crate::proto::replication;
use crate::types::{NodeId, Now};

/// 2026-11-25, 03:00 UTC.
pub(super) const NIGHT_US: u64 = 1_795_575_600_000_000;
/// Node 1 is open master and Raft leader.
pub(super) struct Scene {
    pub(super) state: State,
    pub(super) index: u64,
    pub(super) beats: BTreeMap<NodeId, Beat>,
    pub(super) controller: Controller,
    pub(super) now: Now,
}

pub(super) fn bytes20(fill: u8) -> Bytes {
    Bytes::from(vec![fill; 20])
}

impl Scene {
    pub(super) fn new() -> Scene {
        Scene::of(3)
    }

    pub(super) fn of(nodes: u64) -> Scene {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            disk_uuid: None,
            durus: String::new(),
            peer: String::new(),
            http: String::new(),
            role: Role::Voter,
            priority: 0,
            may_be_master: true,
        };
        let beat = Beat {
            in_step: true,
            file_bytes: 1 << 30,
            free_bytes: 1 << 40,
            garbage_bytes: 1 << 20,
            ..Beat::default()
        };
        let beats = (1..=nodes).map(|id| (NodeId(id), Beat { boot: id, ..beat.clone() })).collect();
        let now = Now { mono_us: 1_000_000, wall_us: NIGHT_US };
        let state = State::new((1..=nodes).map(member));
        let controller = Controller::default();
        let mut scene = Scene { state, index: 0, beats, controller, now };
        scene.beat(1).open = true;
        scene.elect(1);
        scene.decide();
        scene.later(5_000_000);
        scene
    }

    pub(super) fn beat(&mut self, id: u64) -> &mut Beat {
        self.beats.get_mut(&NodeId(id)).unwrap()
    }

    pub(super) fn elect(&mut self, epoch: u64) {
        let reason = if epoch == 1 { Reason::Bootstrap } else { Reason::MasterDead };
        let fence = pb::FenceCommand { epoch, reason: reason.into(), ..Default::default() };
        self.ok(Kind::Fence(fence));
        let tip = replication::Tip { seq: epoch, chain: bytes20(3), ..Default::default() };
        let base_hash = bytes20(1);
        let elect = pb::Elect {
            epoch,
            master: 1,
            boot: 1,
            voters: self.state.members().map(|member| member.id.0).collect(),
            floor: Some(replication::Position {
                generation: 1,
                base_hash: base_hash.clone(),
                tip: Some(tip),
            }),
            generation: Some(pb::GenerationRecord { number: 1, base_hash, ..Default::default() }),
            floor_holder: 1,
            ..Default::default()
        };
        self.ok(Kind::Elect(elect));
        self.ok(Kind::Opened(pb::Opened { epoch, seq: epoch + 1, clients_waited_us: 0 }));
        self.beats.values_mut().for_each(|beat| beat.promised = epoch);
    }

    #[track_caller]
    pub(super) fn ok(&mut self, kind: Kind) {
        self.index += 1;
        let kind = decided_on(&self.state, kind);
        let command = command(self.state.epoch(), self.now.wall_us, NodeId(1), kind);
        assert_eq!(self.state.apply(self.index, &command), Applied::Changed);
        self.controller.on_state_changed();
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        let (name, value) = (name.to_string(), value.to_string());
        self.ok(Kind::Setting(pb::Setting { name, value, asked_by: "ann".into(), after: 0 }));
    }

    pub(super) fn later(&mut self, us: u64) {
        self.now.mono_us += us;
        self.now.wall_us += us;
    }

    pub(super) fn view<T>(&mut self, look: impl FnOnce(&mut Controller, &View<'_>) -> T) -> T {
        let others = self.state.members().map(|member| member.id).filter(|id| id.0 != 1);
        let mut health = Health::new(others, self.now);
        for (id, beat) in &self.beats {
            health.on_beat(*id, beat.clone(), self.now);
        }
        let own_beat = &self.beats[&NodeId(1)];
        let timing = &Timing::default();
        let (me, now, state) = (NodeId(1), self.now, &self.state);
        let view = View { me, now, state, health: &health, own_beat, timing };
        look(&mut self.controller, &view)
    }

    pub(super) fn decide(&mut self) -> Vec<Decision> {
        self.view(|controller, view| controller.decide(view))
    }
}
