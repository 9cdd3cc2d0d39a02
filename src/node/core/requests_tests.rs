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

/// The loop takes who is far behind its deadline for a process that was stopped, and waits for what came meanwhile: with a
/// deadline of 0, it did so at every turn of a bulk load.
#[test]
fn a_bulk_load_goes_on_at_once_and_not_in_the_past() {
    let now = Now { mono_us: 1_000_000, wall_us: 1 };
    let mut core = first_of_three(Arc::new(MemDisk::default()), now);
    core.step(now, Input::Tick, &mut Vec::new());
    assert!(core.deadline() > now.mono_us);
    let (conn, mut out) = (ConnId(1), Vec::new());
    core.serving = true;
    core.on_client(Input::ClientOpened { conn, address: String::new() }, &mut out);
    let oids = (0..300u64).flat_map(u64::to_be_bytes);
    let bulk = [&b"B"[..], &300u32.to_be_bytes()].concat().into_iter().chain(oids);
    core.on_client(Input::ClientData { conn, bytes: bulk.collect() }, &mut out);
    for id in 1..=2 {
        with_view!(core, &mut out, |sessions, now, view, actions| {
            sessions.synced(id, Seq(0), now, view, actions)
        });
    }
    let answered = |out: &[Action]| -> usize {
        let of = |action: &Action| match action {
            Action::ClientSend { bytes, .. } => bytes.len(),
            _ => 0,
        };
        out.iter().map(of).sum()
    };
    assert!(core.sessions.reads_on() && answered(&out) < 300);
    assert_eq!(core.deadline(), now.mono_us);
    core.step(now, Input::Tick, &mut out);
    assert!(!core.sessions.reads_on());
    assert_eq!(answered(&out), 300, "a byte for each object that is not there");
}
