//! What nodes say to each other, held against their disks at the moment they say it.

use std::collections::BTreeSet;

use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::proto::control::{Beat, Elect, FenceReport, PeerMessage};
use packmaster::proto::replication as pb;
use packmaster::proto::replication::client_reply::Answer;

use super::file::File;
use super::{DiskView, Fate, Ledger, Says};
use crate::sim::parse::{Hash, Kind};

impl Ledger {
    /// What a node says to another, at the moment it says it.
    /// `lived_us`: by its own clock since it started.
    pub fn on_send(&mut self, from: usize, lived_us: u64, message: &PeerMessage) {
        self.is_proved(from, lived_us, message);
        self.is_fresh(from, message);
        if matches!(self.disks[from].fate, Fate::RolledBack | Fate::Forgotten) {
            assert!(
                !counts(message),
                "violated AmnesiacSilent: node {}'s disk has forgotten, and it says {message:?}",
                from + 1
            );
        }
        match &message.kind {
            Some(Message::Append(append)) => self.on_append(from, append),
            Some(Message::AppendReply(reply)) if reply.matched => self.on_ack(from, reply),
            Some(Message::FenceReport(report)) => self.on_report(from, report),
            Some(Message::Beat(beat)) => {
                self.is_unheard(from, lived_us, beat);
                self.on_beat(from, beat);
            }
            Some(Message::Fetch(fetch)) => self.on_fetch(from, fetch),
            Some(Message::ClientReply(reply)) => self.on_client_reply(from, reply),
            _ => {}
        }
        self.note_sometimes(from, message);
    }

    /// What is promised and reported is on the disk, and if it counts, it is all that the disk has.
    fn on_report(&mut self, from: usize, report: &FenceReport) {
        let view = &self.disks[from];
        assert!(
            view.promise >= report.epoch,
            "violated PromiseMonotone: node {} reports for epoch {} with {} on its disk",
            from + 1,
            report.epoch,
            view.promise
        );
        let position = report.position.as_ref().expect("a position");
        let tip = position.tip.as_ref().expect("a tip");
        assert!(
            self.disk_has(from, &position.base_hash, tip.seq, &tip.chain),
            "violated durable position: node {} reports seq {} that is not on its disk",
            from + 1,
            tip.seq
        );
        if !report.suspect.is_empty() {
            return;
        }
        let is_it = |file: &&File| file.seal.is_some_and(|seal| seal[..] == *position.base_hash);
        let last = view.files.values().find(is_it).and_then(|file| file.txs.last());
        let (whole, last) = (last.is_none_or(|tx| tx.0 <= tip.seq), last.map_or(0, |tx| tx.0));
        assert!(
            whole || view.hurt || view.fate != Fate::Sound,
            "violated WholePosition: node {} reports seq {} to the election of epoch {}, and its file ends at seq {last}",
            from + 1,
            tip.seq,
            report.epoch
        );
        let reporter = (report.epoch, from as u64 + 1);
        self.reported.entry(reporter).or_default().insert(position.base_hash.to_vec());
    }

    /// No message, true or forged, makes a node with a sound disk believe that the disk was set back.
    fn is_not_accused(&self, from: usize, beat: &Beat) {
        let view = &self.disks[from];
        let accusations = [
            "this disk does not hold",
            "its Raft log is behind",
            "this node's disk is not the one",
        ];
        let accused = accusations.iter().any(|text| beat.suspect.starts_with(text));
        assert!(
            !accused || view.hurt || view.fate != Fate::Sound,
            "violated SoundNotAccused: node {}'s disk is sound, and it says: {}",
            from + 1,
            beat.suspect
        );
    }

    /// base <= committed <= written, base <= durable <= written; and what is called durable is on the disk.
    fn on_beat(&mut self, from: usize, beat: &Beat) {
        self.is_not_accused(from, beat);
        let phase = beat.pack.as_ref().and_then(|pack| pack.phase.split(':').next());
        self.disks[from].says = Says {
            phase: phase.unwrap_or_default().to_owned(),
            is_master: beat.open,
            leads: beat.raft_leader == from as u64 + 1,
            counts: beat.suspect.is_empty(),
        };
        let position = beat.position.as_ref().expect("a position");
        let tip = position.tip.as_ref().expect("a tip");
        let (base, committed) = (beat.seal_seq, beat.committed_seq);
        let (durable, written) = (tip.seq, beat.written_seq);
        assert!(
            base <= durable && durable <= written && base <= committed && committed <= written,
            "violated Frontiers: node {} has base {base} committed {committed} durable {durable} \
             written {written}",
            from + 1
        );
        assert!(
            self.disk_has(from, &position.base_hash, durable, &tip.chain),
            "violated Frontiers: node {} calls seq {durable} durable, which is not on its disk",
            from + 1
        );
        if beat.in_step && !beat.open {
            self.is_in_step(from, beat);
        }
        assert!(
            beat.promise_durable <= self.disks[from].promise,
            "violated PromiseMonotone: node {} calls epoch {} promised durably; its disk has {}",
            from + 1,
            beat.promise_durable,
            self.disks[from].promise
        );
    }

    /// Who reports and who commits overlap: every election is built on a majority of its voters. `leader` has proposed it.
    pub fn on_elect(&self, leader: usize, elect: &Elect) {
        let reported: BTreeSet<u64> = elect.reported.iter().copied().collect();
        let voters: BTreeSet<u64> = elect.voters.iter().copied().collect();
        assert!(
            reported.is_subset(&voters)
                && 2 * reported.len() > voters.len()
                && voters.len() == self.disks.len(),
            "violated QuorumsOverlap: epoch {} is elected by {reported:?} of {voters:?}",
            elect.epoch
        );
        // At the first election there is no file yet that all must have.
        let files = elect.reported.iter().map(|id| match *id as usize == leader + 1 {
            // Its own report is not sent, and what it has reported to another leader of the same election may be of a file
            // that it has replaced since.
            true => Some(self.files_of(leader)),
            false => self.reported.get(&(elect.epoch, *id)).cloned(),
        });
        let files: Vec<_> = files.collect::<Option<_>>().unwrap_or_default();
        let is_common = |file: &&Vec<u8>| files.iter().all(|of| of.contains(*file));
        assert!(
            self.masters.is_empty()
                || files.first().is_none_or(|of| of.iter().any(|it| is_common(&it))),
            "violated OneFile: the election of epoch {} counts nodes {reported:?}, which have different files",
            elect.epoch
        );
    }

    /// Seals of the files on its disk.
    fn files_of(&self, node: usize) -> BTreeSet<Vec<u8>> {
        let seals = self.disks[node].files.values().filter_map(|file| file.seal);
        seals.map(|seal| seal.to_vec()).collect()
    }

    fn note_sometimes(&mut self, from: usize, message: &PeerMessage) {
        let what = match &message.kind {
            Some(Message::Fetch(fetch)) if fetch.offset == 0 && self.disks[from].spoilt => {
                "base fetched where builds came out wrong"
            }
            Some(Message::FenceReport(report)) if report.suspect.starts_with("recovering") => {
                "recovering node silent"
            }
            Some(Message::FenceReport(report)) if !report.suspect.is_empty() => {
                "node that stands aside reports so"
            }
            Some(Message::AppendReply(reply)) if reply.recovering => {
                "recovering node does not count"
            }
            Some(Message::AppendReply(reply))
                if !reply.matched
                    && !reply.hello
                    && self
                        .masters
                        .get(&reply.epoch)
                        .is_none_or(|(_, boot)| *boot != reply.boot) =>
            {
                "stale master's append refused"
            }
            Some(Message::CommonPoint(_)) => "common point found",
            Some(Message::ClientReply(reply)) => match &reply.answer {
                Some(pb::client_reply::Answer::SendTouched(_)) => {
                    "commit asked again with what it read"
                }
                Some(pb::client_reply::Answer::TurnSeq(_)) => "turn to commit",
                Some(pb::client_reply::Answer::RegisterFirst(_)) => "request before registration",
                _ => return,
            },
            _ => return,
        };
        *self.sometimes.entry(what).or_default() += 1;
    }

    fn on_append(&mut self, from: usize, append: &pb::Append) {
        let me = (from as u64 + 1, append.boot);
        let master = *self.masters.entry(append.epoch).or_insert(me);
        assert_eq!(
            master, me,
            "violated EpochUnique: two masters (node, boot) in epoch {}",
            append.epoch
        );
        self.note_sent(append);
        let commit = append.commit.as_ref().expect("a commit position");
        if commit.chain.len() == 20 && commit.seq > 0 {
            let chain: Hash = commit.chain[..].try_into().expect("20 bytes");
            self.claim(from, append.epoch, commit.seq, chain);
        }
    }

    /// `node`, master of `epoch`, says that everything up to `seq` in the history of `chain` is committed.
    fn claim(&mut self, node: usize, epoch: u64, seq: u64, chain: Hash) {
        if self.committed_top.is_some_and(|(_, top)| top == chain) {
            return;
        }
        let Some(tx) = self.txs.get(&chain) else {
            panic!(
                "violated AckedIsDurable: node {} calls seq {seq} committed, which was never durable anywhere",
                node + 1
            );
        };
        assert_eq!(tx.seq, seq, "node {} calls a chain committed under another seq", node + 1);
        let top = self.committed_top.map_or(0, |(seq, _)| seq);
        let mut new = Vec::new();
        let mut at = tx;
        // Down to what is known, collecting; a seal stands for the transaction at its cut.
        loop {
            let data = match at.kind {
                Kind::Seal { previous, .. } => {
                    if at.seq == 0 {
                        break;
                    }
                    at = self.txs.get(&previous).expect("the generation before was seen");
                    continue;
                }
                _ => at.data_hash,
            };
            if at.seq <= top {
                let known = self.committed.get(&at.seq);
                assert_eq!(
                    known,
                    Some(&data),
                    "violated ChainMatch/CommittedNeverTruncated: node {} calls seq {seq} committed, \
                     whose history differs at seq {} from what was committed before",
                    node + 1,
                    at.seq
                );
                break;
            }
            new.push((at.seq, data, at.commit_id, at.chain));
            at = self.txs.get(&at.prev).expect("the one before was seen");
        }
        if let Some((_, data, ..)) = new.first() {
            // The master of an earlier epoch may have told nobody what it had committed; but it knows, and so does who
            // has heard of its pack.
            let told_nobody =
                self.masters.get(&tx.epoch).is_some_and(|(id, _)| *id == node as u64 + 1);
            assert!(
                tx.epoch == epoch || told_nobody || matches!(tx.kind, Kind::Seal { .. }),
                "violated CommitNeedsOwnEpoch: node {} calls seq {seq} of epoch {} committed in epoch {epoch}",
                node + 1,
                tx.epoch
            );
            let holders = (0..self.disks.len()).filter(|node| self.has(*node, seq, data)).count();
            assert!(
                holders > self.disks.len() / 2,
                "violated AckedIsDurable: node {} calls seq {seq} committed, which {holders} disks have",
                node + 1
            );
        }
        for (seq, data, id, _) in &new {
            self.committed.insert(*seq, *data);
            if id != &[0; 16]
                && let Some(other) = self.committed_ids.insert(*id, *seq)
            {
                panic!("violated ExactlyOnce: commit id {id:02x?} at seq {other} and at seq {seq}");
            }
        }
        if seq >= top {
            self.committed_top = Some((seq, chain));
        }
    }

    fn on_ack(&mut self, from: usize, reply: &pb::AppendReply) {
        let promise = self.disks[from].promise;
        assert_eq!(
            promise,
            reply.epoch,
            "violated NoAckBelowPromise: node {} acknowledges in epoch {} with promise {promise} on its disk",
            from + 1,
            reply.epoch
        );
        let tip = reply.durable.as_ref().expect("a tip");
        assert!(
            self.disk_has(from, &reply.base_hash, tip.seq, &tip.chain),
            "violated AckedIsDurable: node {} acknowledges seq {} that is not on its disk",
            from + 1,
            tip.seq
        );
        // A torn append is cut off before a node says anything.
        let view = &self.disks[from];
        let is_it = |file: &&File| file.seal.is_some_and(|seal| seal[..] == *reply.base_hash);
        let rest = view.files.values().find(is_it).map_or(0, |file| file.len - file.parsed_to);
        assert!(
            rest == 0 || view.hurt || view.fate != Fate::Sound,
            "violated WholeTransactions: node {} acknowledges, and its file ends in {rest} bytes of something else",
            from + 1
        );
    }

    /// Whoever answers clients as the master of an epoch has opened it: a majority has a transaction of it.
    fn on_client_reply(&self, from: usize, reply: &pb::ClientReply) {
        if matches!(reply.answer, None | Some(Answer::RegisterFirst(_))) {
            return;
        }
        let is_there = |view: &&DiskView| {
            let mut tips = view.files.values().filter_map(File::tip);
            view.fate != Fate::Sound
                || tips.any(|tip| self.txs.get(&tip).is_some_and(|tx| tx.epoch >= reply.epoch))
        };
        let holders = self.disks.iter().filter(is_there).count();
        assert!(
            holders > self.disks.len() / 2,
            "violated ServesOnlyWhenOpen: node {} answers in epoch {}, of which {holders} disks have a transaction",
            from + 1,
            reply.epoch
        );
    }

    /// Whoever has a generation's cut in its own file needs nobody's copy of the base.
    fn on_fetch(&self, from: usize, fetch: &pb::Fetch) {
        let base: Option<Hash> = fetch.base_hash[..].try_into().ok();
        let Some(Kind::Seal { generation, cut, previous }) =
            base.and_then(|base| self.txs.get(&base)).map(|seal| seal.kind)
        else {
            return;
        };
        // From another offset on it is what its file lacks, of the generation it has moved to by now.
        let view = &self.disks[from];
        let sound = view.fate == Fate::Sound && !view.spoilt;
        let current = view.current.filter(|_| fetch.offset == 0 && sound);
        let Some(file) = current.and_then(|number| view.files.get(&number)) else { return };
        assert!(
            file.generation + 1 != generation || file.at(cut) != Some(previous),
            "violated NoNeedlessCopy: node {} fetches the base of generation {generation}, and its own file has the cut",
            from + 1
        );
    }
}

/// Is this a vote, a word on a position that counts, an acknowledgement, or one for a read?
pub(super) fn counts(message: &PeerMessage) -> bool {
    // raft-rs's numbers: an append, a request for votes, an answer to one, a snapshot, a heartbeat; votes before the vote.
    const RAFT: [u32; 7] = [3, 5, 6, 7, 8, 17, 18];
    match &message.kind {
        Some(Message::Append(_) | Message::ConfirmReply(_)) => true,
        Some(Message::AppendReply(reply)) => reply.matched && !reply.recovering,
        Some(Message::FenceReport(report)) => report.suspect.is_empty(),
        Some(Message::Raft(raft)) => RAFT.contains(&raft.msg_type) && !raft.reject,
        _ => false,
    }
}
