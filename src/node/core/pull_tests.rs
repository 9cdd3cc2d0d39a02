use std::sync::Arc;

use super::*;
use crate::node::core::testing::{first_of_three, says};
use crate::storage::mem::MemDisk;
use crate::types::Epoch;

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

fn probes(core: &mut Core, mut out: Vec<Action>) -> usize {
    core.drive_pull(&mut out);
    let is_probe = |action: &&Action| matches!(action, Action::Send { message, .. } if matches!(message.kind, Some(Kind::Probe(_))));
    out.iter().filter(is_probe).count()
}

/// Found by the soak (seed 8135715): the holder of the floor had taken damage and said that it has no file. It was asked
/// again at once, and each copy of an answer that the network made was another question.
#[test]
fn a_holder_that_has_it_not_is_asked_again_once_and_a_moment_later() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), at(0));
    let floor = Tip { epoch: Epoch(1), seq: Seq(9), ..core.shelf.tip() };
    let (generation, base_hash) = (core.shelf.generation(), core.shelf.base_hash());
    core.start_pull(Goal::Floor(floor), generation, base_hash, NodeId(2));
    assert_eq!(probes(&mut core, Vec::new()), 1);
    let id = core.pull.as_ref().unwrap().id;
    for ms in 1..4 {
        let no = Kind::ProbeReply(pb::ProbeReply { id, ..pb::ProbeReply::default() });
        let out = says(&mut core, at(ms), 2, no);
        assert_eq!(probes(&mut core, out), 0, "after {ms} ms");
    }
    core.now = at(1 + ASK_HOLDER_AGAIN_MS);
    assert_eq!(probes(&mut core, Vec::new()), 1);
    assert_eq!(probes(&mut core, Vec::new()), 0);

    // Silence is another matter: the question may be lost.
    core.now = at(1 + ASK_HOLDER_AGAIN_MS + PATIENCE_MS);
    probes(&mut core, Vec::new());
    core.now = at(1 + 2 * ASK_HOLDER_AGAIN_MS + PATIENCE_MS);
    assert_eq!(probes(&mut core, Vec::new()), 1);
}
