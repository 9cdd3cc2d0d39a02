use std::sync::Arc;

use bytes::Bytes;

use crate::node::core::{Action, Core, Input, testing};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{FenceRequest, PeerMessage};
use crate::proto::replication::{Append, Tip};
use crate::storage::mem::MemDisk;
use crate::storage::task::{DiskTask, TaskDone};
use crate::types::Now;

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

fn node() -> Core {
    testing::first_of_three(Arc::new(MemDisk::default()), NOW)
}

fn says(core: &mut Core, from: u64, kind: Kind) -> Vec<Action> {
    testing::says(core, NOW, from, kind)
}

/// The number of the task that makes this promise durable.
fn promise_task(actions: &[Action], promised: u64) -> u64 {
    let task = actions.iter().find_map(|action| match action {
        Action::Disk { task, work: DiskTask::Promise { epoch } } if epoch.0 == promised => {
            Some(*task)
        }
        _ => None,
    });
    task.unwrap_or_else(|| panic!("epoch {promised} is not promised"))
}

fn done(core: &mut Core, task: u64) -> Vec<Action> {
    let mut out = Vec::new();
    core.step(NOW, Input::DiskDone { task, result: Ok(TaskDone::Nothing) }, &mut out);
    out
}

fn reported(actions: &[Action]) -> Vec<u64> {
    let epoch = |action: &Action| match action {
        Action::Send { message: PeerMessage { kind: Some(Kind::FenceReport(report)) }, .. } => {
            Some(report.epoch)
        }
        _ => None,
    };
    actions.iter().filter_map(epoch).collect()
}

#[test]
fn a_position_is_reported_when_the_promise_is_durable() {
    let mut core = node();
    let asked = says(&mut core, 2, Kind::FenceRequest(FenceRequest { epoch: 5 }));
    assert!(reported(&asked).is_empty());
    let task = promise_task(&asked, 5);
    assert_eq!(reported(&done(&mut core, task)), [5]);
}

/// Found while hunting mutants (GreatestSeqOnly; every rule kept, crashes and partitions only, seed 58): a fence of epoch
/// 5 was waiting for its promise when epoch 6 came another way. When promise 5 was durable, the report said 6, which a
/// power failure could still make undone: then this node would have acknowledged, in epoch 5, what the election of
/// epoch 6 had not seen.
#[test]
fn a_promise_that_is_durable_does_not_report_for_a_newer_one_that_is_not() {
    let mut core = node();
    let older = promise_task(&says(&mut core, 2, Kind::FenceRequest(FenceRequest { epoch: 5 })), 5);
    let tip = Tip { chain: Bytes::from_static(&[0; 20]), ..Tip::default() };
    let append = Append {
        epoch: 6,
        boot: 33,
        generation: 1,
        base_hash: Bytes::from_static(&[0; 20]),
        prev: Some(tip.clone()),
        commit: Some(tip),
        ..Append::default()
    };
    let newer = promise_task(&says(&mut core, 3, Kind::Append(append)), 6);
    assert!(reported(&done(&mut core, older)).is_empty(), "epoch 6 is not promised yet");
    done(&mut core, newer);
    let asked = says(&mut core, 2, Kind::FenceRequest(FenceRequest { epoch: 6 }));
    assert_eq!(reported(&asked), [6]);
}
