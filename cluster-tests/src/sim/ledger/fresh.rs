//! What a master answers to requests, held against what it has answered before, and for reads against who could have had a
//! newer master meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::proto::replication::client_reply::Answer;
use packmaster::proto::replication::client_request::Ask;

use super::Ledger;

/// What happens is numbered.
#[derive(Default)]
pub(super) struct Fresh {
    now: u64,
    /// When a sync came to the master of an epoch for the first time: by epoch, the asker's boot, and the number there.
    asked: BTreeMap<(u64, u64, u64), u64>,
    /// Commits that were answered by a conflict.
    refused: BTreeSet<(u64, u64, u64)>,
    /// When a node last said that it follows nobody newer: by epoch and node.
    confirmed: BTreeMap<(u64, usize), u64>,
}

impl Ledger {
    pub(super) fn note_asked(&mut self, message: &PeerMessage) {
        self.fresh.now += 1;
        if let Some(Message::ClientRequest(request)) = &message.kind
            && matches!(request.ask, Some(Ask::Sync(_)))
        {
            let key = (request.epoch, request.boot, request.id);
            self.fresh.asked.entry(key).or_insert(self.fresh.now);
        }
    }

    /// A sync is answered when a majority has said, since it came, that it follows nobody newer. A commit that was a conflict
    /// is one whenever it comes again: its client may have heard it.
    pub(super) fn is_fresh(&mut self, from: usize, message: &PeerMessage) {
        let fresh = &mut self.fresh;
        fresh.now += 1;
        match &message.kind {
            Some(Message::ConfirmReply(reply)) => {
                let promise = self.disks[from].promise;
                assert!(
                    promise <= reply.epoch,
                    "violated NoAckBelowPromise: node {} confirms epoch {} with promise {promise} on its disk",
                    from + 1,
                    reply.epoch
                );
                fresh.confirmed.insert((reply.epoch, from), fresh.now);
            }
            Some(Message::ClientReply(reply))
                if matches!(reply.answer, Some(Answer::SyncedSeq(_))) =>
            {
                let Some(since) = fresh.asked.get(&(reply.epoch, reply.boot, reply.id)) else {
                    return;
                };
                let others = (0..self.disks.len()).filter(|node| *node != from);
                let confirms =
                    |node: &usize| fresh.confirmed.get(&(reply.epoch, *node)) > Some(since);
                let confirmed = 1 + others.filter(confirms).count();
                assert!(
                    confirmed > self.disks.len() / 2,
                    "violated FreshRead: node {} answers a sync in epoch {}, which {confirmed} nodes have confirmed since it came",
                    from + 1,
                    reply.epoch
                );
            }
            Some(Message::ClientReply(reply)) => {
                let key = (reply.epoch, reply.boot, reply.id);
                match reply.answer {
                    Some(Answer::Conflict(_)) => _ = fresh.refused.insert(key),
                    Some(Answer::CommittedSeq(seq)) => assert!(
                        !fresh.refused.contains(&key),
                        "violated RefusedStays: node {} answers seq {seq} to a commit that it has refused in epoch {}",
                        from + 1,
                        reply.epoch
                    ),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
