//! What each master has sent as its history, held against who says that it is in step with it.

use std::collections::BTreeMap;

use packmaster::proto::control::Beat;
use packmaster::proto::replication as pb;

use super::Ledger;
use crate::sim::parse::{self, Hash};

/// The part of its file that the master of an epoch has sent to anybody.
#[derive(Default)]
pub(super) struct Sent {
    base: Hash,
    chains: BTreeMap<u64, Hash>,
    /// Something was sent that can't be read here: how far the history goes is not known.
    unreadable: bool,
}

impl Ledger {
    pub(super) fn note_sent(&mut self, append: &pb::Append) {
        let hash = |bytes: &[u8]| <Hash>::try_from(bytes).ok();
        let Some(base) = hash(&append.base_hash) else { return };
        let Some((mut seq, mut chain)) =
            append.prev.as_ref().and_then(|prev| Some((prev.seq, hash(&prev.chain)?)))
        else {
            return;
        };
        let sent = self.sent.entry(append.epoch).or_default();
        sent.base = base;
        sent.chains.insert(seq, chain);
        // Of a piece it is named what it is a piece of.
        let named = append.piece.as_ref().and_then(|piece| piece.end.as_ref());
        if let Some((seq, chain)) = named.and_then(|end| Some((end.seq, hash(&end.chain)?))) {
            sent.chains.insert(seq, chain);
        }
        let mut at = 0;
        while at < append.transactions.len() {
            let Ok((tx, end)) = parse::transaction(&append.transactions, at, Some(chain)) else {
                sent.unreadable = true;
                return;
            };
            (at, seq, chain) = (end, tx.seq, tx.chain);
            sent.chains.insert(seq, chain);
        }
    }

    /// Who says that it is in step has a file that is, to its end, its master's. Both what is durable there, and what is
    /// written: the master has sent it.
    pub(super) fn is_in_step(&self, from: usize, beat: &Beat) {
        let position = beat.position.as_ref().expect("a position");
        let tip = position.tip.as_ref().expect("a tip");
        let sent = self.sent.get(&beat.promised);
        let Some(sent) = sent.filter(|sent| sent.base[..] == position.base_hash[..]) else {
            panic!(
                "violated InStep: node {} says that it is in step in epoch {}, whose master has sent nothing of its file",
                from + 1,
                beat.promised
            );
        };
        let last = sent.chains.last_key_value().map_or(0, |(seq, _)| *seq);
        assert!(
            sent.unreadable || beat.written_seq <= last,
            "violated InStep: node {} says that it is in step in epoch {} with seq {}, and its master has sent seq {last}",
            from + 1,
            beat.promised,
            beat.written_seq
        );
        let known = self.chain_of(sent, tip.seq);
        assert!(
            known.is_none_or(|known| known[..] == tip.chain[..]),
            "violated InStep: node {} says that it is in step in epoch {}, and its seq {} is not its master's",
            from + 1,
            beat.promised,
            tip.seq
        );
    }

    /// The chain at `seq` in the history that was sent; None: it goes back beyond what was ever durable.
    fn chain_of(&self, sent: &Sent, seq: u64) -> Option<Hash> {
        let (mut at, mut chain) =
            sent.chains.range(seq..).next().map(|(at, chain)| (*at, *chain))?;
        while at > seq {
            let tx = self.txs.get(&chain)?;
            (at, chain) = (at - 1, tx.prev);
        }
        Some(chain)
    }
}
