//! Judges the committed history against what clients sent, heard and saw.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{Book, Outcome, Seen, Tag, value_of};
use super::ledger::{Ledger, tag_of, tag_text};
use super::parse::{Hash, Kind, Object};

#[derive(Default, Debug)]
pub struct Judged {
    pub transactions: usize,
    pub generations: usize,
    pub unknown_found: u64,
    pub unknown_absent: u64,
}

/// A version of an object: who wrote it and where.
type Versions = BTreeMap<u64, Vec<(u64, Tag)>>;

pub fn judge(ledger: &Ledger, book: &Book, tip: Hash) -> Judged {
    let (history, seals) = ledger.history(tip);
    let mut judged =
        Judged { transactions: history.len(), generations: seals.len(), ..Judged::default() };
    let mut now: BTreeMap<u64, Object> = BTreeMap::new();
    let mut versions: Versions = BTreeMap::new();
    let mut committed: BTreeMap<Tag, u64> = BTreeMap::new();
    let cuts: BTreeMap<u64, Hash> =
        seals.iter().map(|seal| (ledger.txs[seal].seq, *seal)).collect();
    for tx in &history {
        if let Some(seal) = cuts.get(&(tx.seq - 1)) {
            generation_is_equivalent(ledger, *seal, &mut now);
        }
        let tags: BTreeSet<Tag> =
            tx.objects.iter().filter_map(|(_, object)| tag_of(&object.data)).collect();
        assert!(tags.len() <= 1, "seq {} mixes transactions", tx.seq);
        if let Some(tag) = tags.first().copied() {
            if let Some(other) = committed.insert(tag, tx.seq) {
                panic!(
                    "violated ExactlyOnce: {} at seq {other} and at seq {}",
                    tag_text(&tag),
                    tx.seq
                );
            }
            reads_hold(book, &tag, tx.seq, &now);
            for (oid, object) in &tx.objects {
                let was = now.get(oid).map(value_of);
                let is = value_of(object);
                if let Some(was) = was
                    && was > 0
                    && is != 0
                {
                    assert_eq!(
                        is,
                        was + 1,
                        "violated lost update: oid {oid} at seq {} by {}",
                        tx.seq,
                        tag_text(&tag)
                    );
                }
                versions.entry(*oid).or_default().push((tx.seq, tag));
            }
        } else {
            assert!(tx.objects.is_empty(), "objects nobody wrote at seq {}", tx.seq);
        }
        for (oid, object) in &tx.objects {
            now.insert(*oid, object.clone());
        }
    }
    if let Some(seal) = history.last().and_then(|tx| cuts.get(&tx.seq)) {
        generation_is_equivalent(ledger, *seal, &mut now);
    }
    is_closed(&now);
    for (tag, sent) in &book.sent {
        let found = committed.get(tag);
        match (sent.outcome, found) {
            (Outcome::Acked, None) => {
                panic!(
                    "violated AckedIsDurable: {} was acknowledged at seq {} and is lost",
                    tag_text(tag),
                    sent.seq
                )
            }
            (Outcome::Refused, Some(seq)) => {
                panic!("violated ExactlyOnce: {} was refused and is at seq {seq}", tag_text(tag))
            }
            (Outcome::Unknown, Some(_)) => judged.unknown_found += 1,
            (Outcome::Unknown, None) => judged.unknown_absent += 1,
            _ => {}
        }
    }
    for (session, seen) in book.sessions.iter().enumerate() {
        session_is_monotone(session, seen, &versions, &committed, book);
    }
    judged
}

/// Was everything a transaction had read still so when it was committed?
fn reads_hold(book: &Book, tag: &Tag, seq: u64, now: &BTreeMap<u64, Object>) {
    let sent = book.sent.get(tag).unwrap_or_else(|| panic!("{} was never sent", tag_text(tag)));
    for (oid, read) in &sent.reads {
        let there = now.get(oid).and_then(|object| tag_of(&object.data));
        assert_eq!(
            there.as_ref(),
            Some(read),
            "violated stale read: {} at seq {seq} had read oid {oid} as of {}, and it is of {}",
            tag_text(tag),
            tag_text(read),
            there.map_or("nobody".into(), |tag| tag_text(&tag))
        );
    }
}

/// A base holds what the root reaches, as it was at the cut, and nothing that was not there. What it dropped is gone.
fn generation_is_equivalent(ledger: &Ledger, seal: Hash, now: &mut BTreeMap<u64, Object>) {
    let Kind::Seal { generation, cut, .. } = ledger.txs[&seal].kind else { unreachable!() };
    let base = &ledger.bases[&seal];
    for oid in reachable(now) {
        if let Some(object) = now.get(&oid) {
            assert_eq!(
                base.get(&oid),
                Some(object),
                "violated GenerationEquivalent: oid {oid} in generation {generation}, cut {cut}"
            );
        }
    }
    for (oid, object) in base {
        assert_eq!(
            now.get(oid),
            Some(object),
            "violated GenerationEquivalent: oid {oid} in the base of generation {generation}, cut {cut}"
        );
    }
    *now = base.clone();
}

fn reachable(now: &BTreeMap<u64, Object>) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![0];
    while let Some(oid) = todo.pop() {
        if seen.insert(oid)
            && let Some(object) = now.get(&oid)
        {
            todo.extend(&object.refs);
        }
    }
    seen
}

fn is_closed(now: &BTreeMap<u64, Object>) {
    if !now.contains_key(&0) {
        return;
    }
    for oid in reachable(now) {
        assert!(
            now.contains_key(&oid),
            "violated ReferencesClosed: oid {oid} is reachable and is not there"
        );
    }
}

/// Loads see the committed history only, never go back, and between two syncs see one moment of it.
fn session_is_monotone(
    session: usize,
    seen: &[Seen],
    versions: &Versions,
    committed: &BTreeMap<Tag, u64>,
    book: &Book,
) {
    // What the session must see at least, and the moment the loads since the last sync can have in common.
    let mut floor = 0;
    let (mut newest, mut below) = (0, u64::MAX);
    for event in seen {
        match event {
            Seen::Synced { floor: acked } => {
                floor = floor.max(*acked);
                (newest, below) = (0, u64::MAX);
            }
            Seen::Acked { tag } => {
                // Commits tell a client what changed, as a sync does.
                floor = floor.max(committed.get(tag).copied().unwrap_or(0));
                (newest, below) = (0, u64::MAX);
            }
            Seen::Load { oid, tag } => {
                let Some(seq) = committed.get(tag).copied() else {
                    panic!(
                        "violated ReadIsCommittedPrefix: session {session} saw oid {oid} of {}, which is not in the history",
                        tag_text(tag)
                    );
                };
                let next =
                    versions[oid].iter().find(|(at, _)| *at > seq).map_or(u64::MAX, |(at, _)| *at);
                assert!(
                    next > floor,
                    "violated SessionMonotone: session {session} saw oid {oid} as of seq {seq}, changed at {next}, \
                     after it had seen seq {floor}"
                );
                let own = book.sent.get(tag).is_some_and(|sent| sent.session == session);
                if !own {
                    newest = newest.max(seq);
                    below = below.min(next);
                    assert!(
                        newest < below,
                        "violated snapshot: session {session} saw seq {newest} and, before the next sync, oid {oid} \
                         of {}, which was changed at {below}",
                        tag_text(tag)
                    );
                }
                floor = floor.max(seq);
            }
        }
    }
}
