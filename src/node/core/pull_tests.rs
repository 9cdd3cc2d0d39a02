use std::sync::Arc;

use super::*;
use crate::node::core::testing::{decide, first_of_three, says};
use crate::node::core::{Input, Role};
use crate::proto::control::command::Kind as Command;
use crate::proto::control::{Elect, FenceCommand, FenceRequest, GenerationRecord, Reason};
use crate::storage::mem::MemDisk;
use crate::storage::task::{DiskTask, TaskDone};
use crate::types::Epoch;

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

/// Node 1 promises and is elected, and has to have what node 2 has up to `floor`.
fn is_elected(core: &mut Core, epoch: u64, reason: Reason, floor: Tip) -> Vec<Action> {
    let fence = FenceCommand { epoch, reason: reason.into(), ..FenceCommand::default() };
    decide(core, Command::Fence(fence));
    let asked = says(core, NOW, 2, Kind::FenceRequest(FenceRequest { epoch }));
    let promise = asked.iter().find_map(|action| match action {
        Action::Disk { task, work: DiskTask::Promise { .. } } => Some(*task),
        _ => None,
    });
    let (task, result) = (promise.expect("a promise"), Ok(TaskDone::Nothing));
    core.step(NOW, Input::DiskDone { task, result }, &mut Vec::new());
    let elect = Elect {
        epoch,
        master: 1,
        boot: core.setup.boot.0,
        voters: vec![1, 2, 3],
        generation: Some(GenerationRecord {
            number: core.shelf.generation().0,
            base_hash: wire::put_chain(core.shelf.base_hash()),
            ..GenerationRecord::default()
        }),
        floor: Some(wire::put_position(&Position { tip: floor, ..core.position() })),
        floor_holder: 2,
        reported: vec![1, 2],
        ..Elect::default()
    };
    decide(core, Command::Elect(elect));
    let mut out = Vec::new();
    core.adopt_phase(None, &mut out);
    core.drive_master(&mut out);
    out
}

fn probes(actions: &[Action]) -> usize {
    let is_probe = |action: &&Action| matches!(action, Action::Send { message, .. } if matches!(message.kind, Some(Kind::Probe(_))));
    actions.iter().filter(is_probe).count()
}

fn has_started(core: &Core) -> bool {
    matches!(&core.role, Role::Master(master) if master.start.is_some())
}

/// Soak, seeds 8023474, 8152174, 8045641 and 8120362: an elected node asked the holder of the greatest position for its
/// last transaction, which nobody else had; then the holder's disk was lost. Every later election chose the same node,
/// whose own file was the greatest by now, and it went on asking for what the first one had wanted, for ever.
#[test]
fn what_an_election_wanted_is_not_waited_for_in_the_next() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let own = core.shelf.tip();
    let lost = Tip { epoch: Epoch(4), seq: Seq(7), ..own };
    assert_eq!(probes(&is_elected(&mut core, 5, Reason::Bootstrap, lost)), 1);
    assert!(!has_started(&core), "it lacks the floor");
    is_elected(&mut core, 6, Reason::NotOpened, own);
    assert!(has_started(&core), "it has everything that this election wants");
}

/// The offset that is asked for.
fn fetches(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Send { message, .. } => match &message.kind {
            Some(Kind::Fetch(fetch)) => Some(fetch.offset),
            _ => None,
        },
        _ => None,
    })
}

/// Longer than what is asked for at a time: then a peer would need longer to send it than anybody waits for an answer.
#[test]
fn a_long_transaction_comes_in_pieces() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let own = core.shelf.tip();
    let record = |len: usize| {
        let head = [&7u64.to_be_bytes()[..], &(len as u32).to_be_bytes()].concat();
        Bytes::from([head, vec![b'x'; len]].concat())
    };
    let meta = |seq| shelf::TxMeta {
        kind: shelf::Kind::Commit,
        epoch: Epoch(1),
        seq,
        time_us: 1,
        commit_id: crate::types::CommitId::NONE,
    };
    let long =
        shelf::build(&own.chain, &meta(own.seq.next()), &[(crate::types::Oid(7), record(5000))]);
    let short_seq = own.seq.next().next();
    let short = shelf::build(&long.chain, &meta(short_seq), &[(crate::types::Oid(7), record(9))]);
    let theirs = [&long.bytes[..], &short.bytes[..]].concat();
    let end = own.offset + theirs.len() as u64;
    let floor = Tip { epoch: Epoch(1), seq: short_seq, offset: end, chain: short.chain };
    core.start_pull(Goal::Floor(floor), core.shelf.generation(), core.shelf.base_hash(), NodeId(2));
    core.drive_pull(&mut Vec::new());
    let id = core.pull.as_ref().unwrap().id;
    let found = pb::ProbeReply {
        id,
        has_file: true,
        r#match: Some(wire::put_tip(&own)),
        next: Some(wire::put_tip(&Tip {
            epoch: Epoch(1),
            seq: own.seq.next(),
            offset: own.offset + long.bytes.len() as u64,
            chain: long.chain,
        })),
        file_len: end,
        ..pb::ProbeReply::default()
    };
    let mut out = says(&mut core, NOW, 2, Kind::ProbeReply(found));
    let mut taken = 0;
    while let Some(offset) = fetches(&out) {
        assert_eq!(offset, own.offset + taken, "what follows is asked for");
        let from = taken as usize;
        let piece = Bytes::copy_from_slice(&theirs[from..theirs.len().min(from + 520)]);
        let reply = pb::FetchReply { id, offset, data: piece };
        // A copy of it, made by the network, changes nothing.
        let next = says(&mut core, NOW, 2, Kind::FetchReply(reply.clone()));
        out = says(&mut core, NOW, 2, Kind::FetchReply(reply));
        assert_eq!(fetches(&out), None);
        out = next;
        taken += 520;
        assert!(taken < 2 * theirs.len() as u64);
    }
    // The second one was cut off, and is fetched again when the disk has the first.
    assert_eq!(core.shelf.tip().chain, long.chain);
    let is_append = |action: &Action| matches!(action, Action::Disk { work: DiskTask::Append { bytes, .. }, .. } if *bytes == long.bytes);
    assert!(out.iter().any(is_append));
}

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

fn probes_of(core: &mut Core, mut out: Vec<Action>) -> usize {
    core.drive_pull(&mut out);
    probes(&out)
}

/// Found by the soak (seed 8135715): the holder of the floor had taken damage and said that it has no file. It was asked
/// again at once, and each copy of an answer that the network made was another question.
#[test]
fn a_holder_that_has_it_not_is_asked_again_once_and_a_moment_later() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), at(0));
    let floor = Tip { epoch: Epoch(1), seq: Seq(9), ..core.shelf.tip() };
    let (generation, base_hash) = (core.shelf.generation(), core.shelf.base_hash());
    core.start_pull(Goal::Floor(floor), generation, base_hash, NodeId(2));
    assert_eq!(probes_of(&mut core, Vec::new()), 1);
    let id = core.pull.as_ref().unwrap().id;
    for ms in 1..4 {
        let no = Kind::ProbeReply(pb::ProbeReply { id, ..pb::ProbeReply::default() });
        let out = says(&mut core, at(ms), 2, no);
        assert_eq!(probes_of(&mut core, out), 0, "after {ms} ms");
    }
    core.now = at(1 + ASK_HOLDER_AGAIN_MS);
    assert_eq!(probes_of(&mut core, Vec::new()), 1);
    assert_eq!(probes_of(&mut core, Vec::new()), 0);

    // Silence is another matter: the question may be lost.
    core.now = at(1 + ASK_HOLDER_AGAIN_MS + PATIENCE_MS);
    probes_of(&mut core, Vec::new());
    core.now = at(1 + 2 * ASK_HOLDER_AGAIN_MS + PATIENCE_MS);
    assert_eq!(probes_of(&mut core, Vec::new()), 1);
}

/// Who is asked by this, and by what the pull does next.
fn asked(core: &mut Core, ms: u64, mut out: Vec<Action>) -> Vec<u64> {
    core.now = at(ms);
    core.drive_pull(&mut out);
    let probe = |action: &Action| match action {
        Action::Send { to, message } if matches!(message.kind, Some(Kind::Probe(_))) => Some(to.0),
        _ => None,
    };
    out.iter().filter_map(probe).collect()
}

/// Found by reading: whoever had been started since had its older files closed, said so at the first question, and was left
/// for the next; where all had been, a whole base came over the wire instead of a few transactions.
#[test]
fn a_peer_that_opens_the_file_is_waited_for() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), at(0));
    let (generation, base_hash) = (core.shelf.generation(), core.shelf.base_hash());
    let goal = Goal::OldTail { until: Seq(9), chain: Chain([9; 20]) };
    core.start_pull(goal, generation, base_hash, NodeId(2));
    assert_eq!(asked(&mut core, 0, Vec::new()), [2]);
    let id = core.pull.as_ref().unwrap().id;
    let opens = |core: &mut Core, ms: u64| {
        let reply = pb::ProbeReply { id, opening: true, ..pb::ProbeReply::default() };
        let out = says(core, at(ms), 2, Kind::ProbeReply(reply));
        asked(core, ms, out)
    };
    let mut ms = 1;
    while ms < OPENING_MS_MAX {
        assert_eq!(opens(&mut core, ms), [0; 0], "after {ms} ms");
        assert_eq!(asked(&mut core, ms + ASK_OPENING_AGAIN_MS - 1, Vec::new()), [0; 0]);
        ms += ASK_OPENING_AGAIN_MS;
        assert_eq!(asked(&mut core, ms, Vec::new()), [2], "after {ms} ms");
    }
    assert_eq!(opens(&mut core, ms), [3], "no file is so large");
}
