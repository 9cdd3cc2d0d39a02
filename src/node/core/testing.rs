//! What the core's own tests begin with: node 1 of a cluster, and what another node says to it.

use std::sync::Arc;

use slog::{Discard, Logger, o};

use super::master::Master;
use super::{Action, Core, Input, Role, Setup, Timing, start};
use crate::control::legacy::decided_on;
use crate::control::{self, Applied};
use crate::durus::Limits;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{
    Elect, FenceCommand, GenerationRecord, Member, PeerMessage, Reason, command,
};
use crate::raft::RaftLog;
use crate::replication::transfer::Pacing;
use crate::replication::wire;
use crate::storage::mem::MemDisk;
use crate::storage::{Disk, task};
use crate::types::{BootId, Epoch, NodeId, Now};

/// Node 1 of three, started on this disk.
pub(super) fn first_of_three(disk: Arc<dyn Disk>, now: Now) -> Core {
    first_of(3, disk, now)
}

/// Node 1 of so many, started on this disk.
pub(super) fn first_of(nodes: u64, disk: Arc<dyn Disk>, now: Now) -> Core {
    // A disk that was used has a Raft log.
    if !disk.list().expect("a good disk").is_empty() {
        drop(RaftLog::open(disk.clone()).expect("a good disk"));
    }
    start(setup_of(nodes, disk, false), now).expect("a good disk").0
}

/// Node 1 of so many.
pub(super) fn setup_of(nodes: u64, disk: Arc<dyn Disk>, born: bool) -> Setup {
    let member = |id: u64| Member {
        id,
        name: format!("n{id}"),
        role: "voter".into(),
        may_be_master: true,
        ..Member::default()
    };
    Setup {
        id: NodeId(1),
        boot: BootId(11),
        disk_uuid: [1; 16],
        born,
        cluster: "c".into(),
        version: "v".into(),
        members: (1..=nodes).map(member).collect(),
        timing: Timing::default(),
        limits: Limits::default(),
        keep_generations: 1,
        block_bytes: 64,
        fetch_bytes: 1 << 20,
        sent_again_bytes_max: 64 << 10,
        follow_bytes: 64,
        fetch_bytes_per_s_max: None,
        pacing: Pacing::default(),
        disk,
        log: Logger::root(Discard, o!()),
    }
}

/// Node 1 of three, the open master of this epoch.
pub(super) fn open_master(epoch: u64, now: Now) -> Core {
    let mut core = first_of_three(Arc::new(MemDisk::default()), now);
    make_open_master(&mut core, epoch);
    core
}

pub(super) fn make_open_master(core: &mut Core, epoch: u64) {
    core.promised = Epoch(epoch);
    let (floor, voters) = (core.position(), [1, 2, 3].map(NodeId).to_vec());
    let mut master = Master::new(NodeId(1), Epoch(epoch), voters, floor, NodeId(1), core.now);
    master.open = true;
    core.role = Role::Master(Box::new(master));
}

pub(super) fn says(core: &mut Core, now: Now, from: u64, kind: Kind) -> Vec<Action> {
    let mut out = Vec::new();
    let message = PeerMessage { kind: Some(kind) };
    let from_disk = [from as u8; 16];
    core.step(now, Input::Peer { from: NodeId(from), from_disk, message }, &mut out);
    out
}

/// The cluster has decided this.
pub(super) fn decide(core: &mut Core, kind: command::Kind) {
    let kind = decided_on(&core.control, kind);
    let command = control::command(core.control.epoch(), 1, NodeId(1), kind);
    let applied = core.control.apply(core.control.applied() + 1, &command);
    assert_eq!(applied, Applied::Changed);
}

/// Node 2 was elected in this generation, by nodes that are where this one is.
pub(super) fn elect_second(core: &mut Core, epoch: u64, generation: GenerationRecord) {
    let reason = match core.control.mastership() {
        None => Reason::Bootstrap,
        Some(_) if core.control.pack().is_none() => Reason::MasterDead,
        Some(_) => Reason::GenerationSwitch,
    };
    let reason = reason.into();
    decide(core, command::Kind::Fence(FenceCommand { epoch, reason, ..Default::default() }));
    let elect = Elect {
        epoch,
        master: 2,
        boot: 22,
        voters: vec![1, 2, 3],
        generation: Some(generation),
        floor: Some(wire::put_position(&core.position())),
        floor_holder: 2,
        ..Elect::default()
    };
    decide(core, command::Kind::Elect(elect));
}

/// The record of the generation that this node is in.
pub(super) fn own_generation(core: &Core) -> GenerationRecord {
    let base_hash = wire::put_chain(core.shelf.base_hash());
    GenerationRecord { number: core.shelf.generation().0, base_hash, ..Default::default() }
}

/// Does what the disk and the Raft log are asked for, and what comes of that, until all is still; the rest is returned.
pub(super) fn carry_out(core: &mut Core, now: Now, actions: Vec<Action>) -> Vec<Action> {
    let (mut todo, mut rest) = (actions, Vec::new());
    while !todo.is_empty() {
        let mut out = Vec::new();
        for action in todo {
            let done = match action {
                Action::Disk { task, work } => {
                    let disk = core.setup.disk.clone();
                    let (task, result) = task::perform(&*disk, vec![(task, work)]).remove(0);
                    Input::DiskDone { task, result }
                }
                Action::RaftPersist { number, .. } => Input::RaftDone { number, result: Ok(()) },
                other => {
                    rest.push(other);
                    continue;
                }
            };
            core.step(now, done, &mut out);
        }
        todo = out;
    }
    rest
}
