//! A slave (node 1) that is sent a long transaction in pieces.

use std::sync::Arc;

use super::super::testing::{carry_out, first_of_three, says};
use super::*;
use crate::node::core::{Action, Core};
use crate::proto::control::FenceRequest;
use crate::proto::control::peer_message::Kind;
use crate::shelf;
use crate::storage::mem::MemDisk;
use crate::storage::task::DiskTask;
use crate::types::{CommitId, Epoch, Now, Oid};

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

/// The transaction after this tip that stores so many bytes, and where it ends.
fn transaction(tip: &Tip, bytes: u8) -> (Bytes, Tip) {
    let meta = shelf::TxMeta {
        kind: shelf::Kind::Commit,
        epoch: Epoch(1),
        seq: tip.seq.next(),
        time_us: 1,
        commit_id: CommitId::NONE,
    };
    let record = [&7u64.to_be_bytes()[..], &[0, 0, 0, bytes], &vec![b'x'; bytes.into()]].concat();
    let built = shelf::build(&tip.chain, &meta, &[(Oid(7), record.into())]);
    let offset = tip.offset + built.bytes.len() as u64;
    (built.bytes, Tip { epoch: Epoch(1), seq: meta.seq, offset, chain: built.chain })
}

/// From the master of this epoch, which is the node of that number.
struct Master {
    epoch: u64,
    node: u64,
    number: u64,
}

impl Master {
    fn new(epoch: u64, node: u64) -> Master {
        Master { epoch, node, number: 0 }
    }

    /// What the slave answers, and what it appends to its file.
    fn sends(
        &mut self,
        core: &mut Core,
        prev: &Tip,
        end: &Tip,
        offset: u64,
        data: &[u8],
    ) -> (Vec<pb::AppendReply>, Vec<Bytes>) {
        self.number += 1;
        let data = Bytes::copy_from_slice(data);
        let append = pb::Append {
            epoch: self.epoch,
            boot: 11 * self.node,
            generation: core.shelf.generation().0,
            base_hash: wire::put_chain(core.shelf.base_hash()),
            prev: Some(wire::put_tip(prev)),
            want_reply: true,
            commit: Some(wire::put_tip(&Tip::default())),
            number: self.number,
            piece: Some(Box::new(pb::Piece { end: Some(wire::put_tip(end)), offset, data })),
            ..pb::Append::default()
        };
        let actions = says(core, NOW, self.node, Kind::Append(append));
        let appended = actions.iter().filter_map(|action| match action {
            Action::Disk { work: DiskTask::Append { bytes, .. }, .. } => Some(bytes.clone()),
            _ => None,
        });
        let appended = appended.collect();
        let rest = carry_out(core, NOW, actions);
        let replies = rest.into_iter().filter_map(|action| match action {
            Action::Send { message, .. } => match message.kind {
                Some(Kind::AppendReply(reply)) => Some(reply),
                _ => None,
            },
            _ => None,
        });
        (replies.collect(), appended)
    }
}

fn has(reply: &pb::AppendReply) -> u64 {
    reply.incoming.as_ref().map_or(0, |incoming| incoming.bytes)
}

#[test]
fn pieces_of_one_epoch_are_continued_in_the_next_by_another_master() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let prev = core.shelf.tip();
    let (whole, end) = transaction(&prev, 200);
    let mut first = Master::new(1, 2);
    let (replies, _) = first.sends(&mut core, &prev, &end, 0, &whole[..50]);
    let last = replies.last().expect("an answer");
    assert_eq!((last.matched, last.number, has(last)), (true, 1, 50));
    let (replies, _) = first.sends(&mut core, &prev, &end, 80, &whole[80..90]);
    assert_eq!((replies[0].number, has(&replies[0])), (2, 50), "one was lost in between");

    let fenced = says(&mut core, NOW, 3, Kind::FenceRequest(FenceRequest { epoch: 2 }));
    carry_out(&mut core, NOW, fenced);
    let (replies, appended) = first.sends(&mut core, &prev, &end, 50, &whole[50..100]);
    assert!(replies.iter().all(|reply| !reply.matched) && appended.is_empty(), "its epoch is over");

    let mut second = Master::new(2, 3);
    let (replies, _) = second.sends(&mut core, &prev, &end, 0, &[]);
    let last = replies.last().expect("an answer");
    assert_eq!((last.epoch, last.matched, has(last)), (2, true, 100), "and what it sent is of use");
    let (replies, appended) = second.sends(&mut core, &prev, &end, 100, &whole[100..]);
    assert_eq!(appended, [whole]);
    let durable = replies.last().and_then(|reply| reply.durable.clone());
    assert_eq!(durable, Some(wire::put_tip(&end)));
}

/// All of it came in an epoch that was over: the next master has but to say that it is the one.
#[test]
fn what_became_whole_too_late_is_taken_when_a_master_names_it() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let prev = core.shelf.tip();
    let (whole, end) = transaction(&prev, 200);
    let (mut first, mut second) = (Master::new(1, 2), Master::new(2, 3));
    first.sends(&mut core, &prev, &end, 0, &whole[..50]);
    let fenced = says(&mut core, NOW, 3, Kind::FenceRequest(FenceRequest { epoch: 2 }));
    carry_out(&mut core, NOW, fenced);
    let (_, appended) = first.sends(&mut core, &prev, &end, 50, &whole[50..]);
    assert!(appended.is_empty());
    let (_, appended) = second.sends(&mut core, &prev, &end, 0, &[]);
    assert_eq!(appended, [whole]);
}

#[test]
fn what_is_not_the_named_transaction_is_dropped_and_said_to_be() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let prev = core.shelf.tip();
    let (whole, end) = transaction(&prev, 200);
    let mut damaged = whole.to_vec();
    damaged[60] ^= 1;
    let mut master = Master::new(1, 2);
    master.sends(&mut core, &prev, &end, 0, &damaged[..100]);
    let (replies, appended) = master.sends(&mut core, &prev, &end, 100, &damaged[100..]);
    assert!(appended.is_empty());
    let last = replies.last().expect("an answer");
    assert_eq!((last.number, has(last), last.written.clone()), (2, 0, Some(wire::put_tip(&prev))));
    // A good one under another's name, as only a broken peer would send it.
    let forged = Tip { chain: Chain([7; 20]), ..end };
    let (_, appended) = master.sends(&mut core, &prev, &forged, 0, &whole);
    assert!(appended.is_empty());
    let (_, appended) = master.sends(&mut core, &prev, &end, 0, &whole);
    assert_eq!(appended, [whole]);
}

/// A question that brings nothing of the next transaction names it: so a slave with another history can tell.
#[test]
fn another_history_is_noticed_by_the_name_alone() {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    let prev = core.shelf.tip();
    let ((own, own_end), (_, end)) = (transaction(&prev, 100), transaction(&prev, 200));
    let (mut first, mut second) = (Master::new(1, 2), Master::new(2, 3));
    first.sends(&mut core, &prev, &own_end, 0, &own);
    let (replies, _) = second.sends(&mut core, &prev, &end, 0, &[]);
    let last = replies.last().expect("an answer");
    assert!(!last.matched && last.number == 1 && last.points.len() == 2, "{last:?}");
    let (replies, _) = second.sends(&mut core, &prev, &own_end, 0, &[]);
    assert!(replies.last().expect("an answer").matched);
}
