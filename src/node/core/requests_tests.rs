use std::sync::Arc;

use super::*;
use crate::node::core::testing::first_of_three;
use crate::storage::mem::MemDisk;

/// Found by the simulator (soak, seed 8099700): a master that had stood still answered after another was elected, and a
/// node that had already told the new master what its sessions hold took oids of it. The new master gave them out too.
#[test]
fn what_an_older_master_gives_out_is_refused_once_a_newer_was_told_what_we_hold() {
    let now = Now { mono_us: 1, wall_us: 1 };
    let mut core = first_of_three(Arc::new(MemDisk::default()), now);
    let ask = Ask::NewOids(pb::NewOids { session: 5, count: 16 });
    core.requests.open.insert(61, Open { ask, sent: Some((Epoch(4), now)) });
    core.requests.register_sent = Some((Epoch(5), now));
    let boot = core.setup.boot.0;
    let grant = |epoch| pb::ClientReply {
        epoch,
        boot,
        id: 61,
        answer: Some(Answer::Oids(pb::OidGrant { oids: vec![16360] })),
    };
    core.on_client_reply(grant(4), &mut Vec::new()).unwrap();
    assert!(core.requests.open.contains_key(&61), "the new master is asked");
    core.requests.open.get_mut(&61).unwrap().sent = Some((Epoch(5), now));
    core.on_client_reply(grant(5), &mut Vec::new()).unwrap();
    assert!(!core.requests.open.contains_key(&61));
}
