//! What the simulation's clients saw and what its disks hold, given to the judge that real processes have too.

use std::collections::{BTreeMap, BTreeSet};

use super::client::Book;
use super::ledger::{Ledger, tag_of, tag_text};
use super::parse::{Hash, Kind, Tx, be64};
use crate::history::{self, History, Mark, Session, Step, Tag, What};

#[derive(Default, Debug)]
pub struct Judged {
    pub transactions: usize,
    pub generations: usize,
    pub unknown_found: u64,
    pub unknown_absent: u64,
    /// Acknowledged by a master alone, and lost.
    pub lost: u64,
}

/// # Panics
/// With what is violated, if anything is.
pub fn judge(ledger: &Ledger, book: &Book, tip: Hash) -> Judged {
    let sessions = sessions(book);
    let (transactions, seals) = ledger.history(tip);
    let ours: BTreeSet<(u64, Hash)> =
        transactions.iter().map(|tx| (tx.seq, tx.data_hash)).collect();
    // Who saw a history that is no part of this one is judged by that one (durability `local`).
    let is_elsewhere = |tip: &Hash| {
        let mut at = &ledger.txs[tip];
        while let Kind::Seal { previous, .. } = at.kind
            && at.seq > 0
        {
            at = &ledger.txs[&previous];
        }
        at.seq > 0 && !ours.contains(&(at.seq, at.data_hash))
    };
    let mut tips: Vec<Option<Hash>> = book.tips().map(|tip| tip.filter(is_elsewhere)).collect();
    tips.resize(sessions.len(), None);
    let judged = judge_by(ledger, &sessions, &tips, None, tip);
    for (tag, _) in book.sent.iter().filter(|(_, sent)| sent.seq > 0 && !sent.alone) {
        let places = ledger.tags.get(tag).into_iter().flatten();
        assert!(
            { places }.any(|place| ours.contains(place)),
            "violated AckedIsDurable: {} was acknowledged when a majority had it, and is lost",
            tag_text(tag)
        );
    }
    let others: BTreeSet<Hash> = tips.iter().flatten().copied().collect();
    for other in others {
        judge_by(ledger, &sessions, &tips, Some(other), other);
    }
    Judged {
        transactions: transactions.len(),
        generations: seals.len(),
        unknown_found: judged.unknown_found,
        unknown_absent: judged.unknown_absent,
        lost: judged.lost,
    }
}

/// Those sessions that saw `seen`, by the history that ends in `tip`.
fn judge_by(
    ledger: &Ledger,
    sessions: &[Session],
    tips: &[Option<Hash>],
    seen: Option<Hash>,
    tip: Hash,
) -> history::Judged {
    let mut sessions = sessions.to_vec();
    for (session, saw) in sessions.iter_mut().zip(tips) {
        session.elsewhere = *saw != seen;
    }
    let (transactions, seals) = ledger.history(tip);
    // A seal comes after the transaction at its cut.
    let cuts: BTreeMap<u64, Hash> =
        seals.iter().map(|seal| (ledger.txs[seal].seq, *seal)).collect();
    let followers = ledger.followers();
    let mut order = Vec::new();
    for (at, tx) in transactions.iter().enumerate() {
        order.push(Step::Transaction { seq: tx.seq, objects: &tx.objects });
        if let Some(seal) = cuts.get(&tx.seq) {
            let Kind::Seal { generation, previous, .. } = ledger.txs[seal].kind else {
                unreachable!()
            };
            let switch = switch(&followers, previous, &transactions[at + 1..]);
            order.push(Step::Pack { generation, base: &ledger.bases[seal], switch });
        }
    }
    let history =
        History { initial: BTreeMap::new(), order, sessions, mark, abandoned: seen.is_some() };
    history::judge(&history).unwrap_or_else(|violation| panic!("{violation}"))
}

/// The seq of a new generation's own election: the first epoch start after the cut that was never written in the generation
/// before. (Others may come first: a cut can be older than the election that the pack was begun under.)
fn switch(followers: &BTreeMap<Hash, Vec<&Tx>>, previous: Hash, after_cut: &[&Tx]) -> Option<u64> {
    let mut before = BTreeSet::new();
    let mut todo = vec![previous];
    while let Some(chain) = todo.pop() {
        for tx in followers.get(&chain).into_iter().flatten() {
            before.insert(tx.data_hash);
            todo.push(tx.chain);
        }
    }
    let mut epoch_starts = after_cut.iter().filter(|tx| matches!(tx.kind, Kind::EpochStart));
    epoch_starts.find(|tx| !before.contains(&tx.data_hash)).map(|tx| tx.seq)
}

/// The book's sessions, and at the end of each what was sent and its client never heard acknowledged.
fn sessions(book: &Book) -> Vec<Session> {
    let mut sessions = book.sessions.clone();
    let heard: BTreeSet<Tag> = sessions
        .iter()
        .flat_map(|session| &session.events)
        .filter_map(|event| match &event.what {
            What::Commit(commit) => Some(commit.tag),
            _ => None,
        })
        .collect();
    for (tag, sent) in book.sent.iter().filter(|(tag, _)| !heard.contains(*tag)) {
        sessions[sent.session].events.push(sent.event(*tag));
    }
    sessions
}

fn mark(data: &[u8]) -> Option<Mark> {
    Some(Mark { tag: tag_of(data)?, count: be64(data, 24).unwrap_or(0) })
}
