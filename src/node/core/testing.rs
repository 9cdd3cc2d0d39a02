//! What the core's own tests begin with: node 1 of a cluster, and what another node says to it.

use std::sync::Arc;

use slog::{Discard, Logger, o};

use super::{Action, Core, Input, Setup, Timing, start};
use crate::durus::Limits;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Member, PeerMessage};
use crate::storage::{Disk, task};
use crate::types::{BootId, NodeId, Now};

/// Node 1 of three, started on this disk.
pub(super) fn first_of_three(disk: Arc<dyn Disk>, now: Now) -> Core {
    first_of(3, disk, now)
}

/// Node 1 of so many, started on this disk.
pub(super) fn first_of(nodes: u64, disk: Arc<dyn Disk>, now: Now) -> Core {
    let member = |id: u64| Member {
        id,
        name: format!("n{id}"),
        role: "voter".into(),
        may_be_master: true,
        ..Member::default()
    };
    let setup = Setup {
        id: NodeId(1),
        boot: BootId(11),
        disk_uuid: [1; 16],
        cluster: "c".into(),
        version: "v".into(),
        members: (1..=nodes).map(member).collect(),
        timing: Timing::default(),
        limits: Limits::default(),
        keep_generations: 1,
        block_bytes: 64,
        fetch_bytes: 1 << 20,
        sent_again_bytes_max: 64 << 10,
        fetch_bytes_per_s_max: None,
        disk,
        log: Logger::root(Discard, o!()),
    };
    start(setup, now).expect("a good disk").0
}

pub(super) fn says(core: &mut Core, now: Now, from: u64, kind: Kind) -> Vec<Action> {
    let mut out = Vec::new();
    let message = PeerMessage { kind: Some(kind) };
    let from_disk = [from as u8; 16];
    core.step(now, Input::Peer { from: NodeId(from), from_disk, message }, &mut out);
    out
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
