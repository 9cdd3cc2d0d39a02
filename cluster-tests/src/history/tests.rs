//! A good history, and one made bad for each rule: the judge must name that rule.

use std::collections::BTreeMap;

use super::{
    Commit, Event, History, Judged, Mark, NEVER, Oid, Outcome, Rule, Session, Step, Tag, What,
    judge,
};
use crate::sim::parse::Object;

const ROOT: Oid = 0;
const X: Oid = 1;
const Y: Oid = 2;
const SETUP: Tag = tag(0);

const fn tag(n: u128) -> Tag {
    n.to_be_bytes()
}

/// An object's data in these tests: tag, then count.
fn object(of: Tag, count: u8, refs: &[Oid]) -> Object {
    Object { data: [&of[..], &[count]].concat(), refs: refs.to_vec() }
}

fn mark(data: &[u8]) -> Option<Mark> {
    let tag = data.get(..16)?.try_into().ok()?;
    Some(Mark { tag, count: u64::from(data[16]) })
}

fn event(asked: u64, answered: u64, what: What) -> Event {
    Event { asked, answered, what }
}

fn loaded(at: u64, oid: Oid, of: Tag) -> Event {
    event(at, at + 1, What::Loaded { oid, tag: Some(of) })
}

fn synced(at: u64, invalid: &[Oid]) -> Event {
    event(at, at + 1, What::Synced { invalid: invalid.to_vec() })
}

fn commit(at: u64, answered: u64, of: Tag, reads: &[(Oid, Tag)], outcome: Outcome) -> Event {
    let writes = vec![X];
    event(at, answered, What::Commit(Commit { tag: of, reads: reads.to_vec(), writes, outcome }))
}

/// Root refers to X and Y. Session 0 changes X by 1; then session 1 syncs, sees it, and changes X by 2.
struct Sample {
    transactions: Vec<(u64, Vec<(Oid, Object)>)>,
    /// A base, and before which transaction it comes.
    packs: Vec<(usize, BTreeMap<Oid, Object>)>,
    sessions: Vec<Vec<Event>>,
}

fn initial() -> BTreeMap<Oid, Object> {
    let objects =
        [(ROOT, object(SETUP, 0, &[X, Y])), (X, object(SETUP, 1, &[])), (Y, object(SETUP, 1, &[]))];
    objects.into()
}

fn sample() -> Sample {
    let x = |of, count| vec![(X, object(of, count, &[]))];
    let begun = |at| event(at, at + 1, What::Begun { invalid: vec![] });
    Sample {
        transactions: vec![(1, vec![]), (2, x(tag(1), 2)), (3, x(tag(2), 3))],
        packs: vec![],
        sessions: vec![
            vec![
                loaded(10, X, SETUP),
                begun(12),
                commit(14, 16, tag(1), &[(X, SETUP)], Outcome::Acknowledged),
            ],
            vec![
                loaded(11, X, SETUP),
                synced(20, &[X]),
                loaded(22, X, tag(1)),
                loaded(24, Y, SETUP),
                begun(26),
                commit(28, 30, tag(2), &[(X, tag(1)), (Y, SETUP)], Outcome::Acknowledged),
            ],
        ],
    }
}

impl Sample {
    fn judge(&self) -> Result<Judged, Rule> {
        let mut order = Vec::new();
        for (place, (seq, objects)) in self.transactions.iter().enumerate() {
            for (generation, (_, base)) in
                self.packs.iter().enumerate().filter(|(_, pack)| pack.0 == place)
            {
                let generation = generation as u64 + 2;
                order.push(Step::Pack { generation, base, switch: Some(*seq) });
            }
            order.push(Step::Transaction { seq: *seq, objects });
        }
        let session = |(n, events): (usize, &Vec<Event>)| Session {
            name: format!("s{n}"),
            events: events.clone(),
            elsewhere: false,
        };
        let sessions = self.sessions.iter().enumerate().map(session).collect();
        let judged =
            judge(&History { initial: initial(), order, sessions, mark, abandoned: false });
        judged.map_err(|violation| {
            println!("{violation}");
            violation.rule
        })
    }

    fn commit(&mut self, session: usize) -> &mut Commit {
        let events = self.sessions[session].iter_mut();
        let found = events.rev().find_map(|event| match &mut event.what {
            What::Commit(commit) => Some(commit),
            _ => None,
        });
        found.expect("a commit")
    }
}

fn broken_by(change: impl FnOnce(&mut Sample)) -> Rule {
    let mut sample = sample();
    change(&mut sample);
    sample.judge().expect_err("a bad history passed")
}

#[test]
fn a_good_history_passes_and_is_counted() {
    let wanted =
        Judged { transactions: 3, acknowledged: 2, loads: 4, syncs: 1, ..Judged::default() };
    assert_eq!(sample().judge(), Ok(wanted));
}

#[test]
fn unknown_outcomes_may_be_there_or_not_and_refused_ones_may_not() {
    let mut found = sample();
    found.commit(1).outcome = Outcome::Unknown;
    assert_eq!(found.judge().unwrap().unknown_found, 1);
    let mut absent = found;
    absent.transactions.pop();
    assert_eq!(absent.judge().unwrap().unknown_absent, 1);
    absent.commit(1).outcome = Outcome::Conflict;
    let judged = absent.judge().unwrap();
    assert_eq!((judged.conflicts, judged.needless_conflicts), (1, 1));
    absent.commit(1).outcome = Outcome::GivenUp;
    assert_eq!(absent.judge().unwrap().given_up, 1);
}

/// Session 0 is refused because session 1 changed X, which it had read; in the sample before, nobody had.
#[test]
fn conflicts_that_stock_durus_would_not_report_are_counted() {
    let mut needed = sample();
    needed.sessions[0].push(commit(40, 41, tag(9), &[(X, tag(1))], Outcome::Conflict));
    let judged = needed.judge().unwrap();
    assert_eq!((judged.conflicts, judged.needless_conflicts), (1, 0));
}

#[test]
fn one_order() {
    let swapped = broken_by(|sample| sample.transactions[0].0 = 2);
    assert_eq!(swapped, Rule::OneOrder);
}

#[test]
fn exactly_once() {
    let stored_twice = broken_by(|sample| {
        let again = sample.transactions[1].1.clone();
        sample.transactions.push((4, again));
    });
    assert_eq!(stored_twice, Rule::ExactlyOnce);
    let sent_twice = broken_by(|sample| sample.commit(1).tag = tag(1));
    assert_eq!(sent_twice, Rule::ExactlyOnce);
}

#[test]
fn as_sent() {
    let nobodys = broken_by(|sample| sample.transactions[2].1[0].1 = object(tag(7), 3, &[]));
    assert_eq!(nobodys, Rule::AsSent);
    let a_part = broken_by(|sample| sample.commit(0).writes = vec![X, Y]);
    assert_eq!(a_part, Rule::AsSent);
    let more = broken_by(|sample| sample.transactions[1].1.push((Y, object(tag(1), 2, &[]))));
    assert_eq!(more, Rule::AsSent);
    let mixed = broken_by(|sample| sample.transactions[1].1.push((Y, object(tag(2), 2, &[]))));
    assert_eq!(mixed, Rule::AsSent);
}

#[test]
fn acked_is_durable() {
    let lost = broken_by(|sample| _ = sample.transactions.pop());
    assert_eq!(lost, Rule::AckedIsDurable);
}

#[test]
fn refused_is_absent() {
    let refused = broken_by(|sample| sample.commit(1).outcome = Outcome::Conflict);
    assert_eq!(refused, Rule::RefusedIsAbsent);
    let given_up = broken_by(|sample| sample.commit(1).outcome = Outcome::GivenUp);
    assert_eq!(given_up, Rule::RefusedIsAbsent);
}

/// Two that touch nothing in common, stored the other way round than one was answered before the other was sent.
#[test]
fn real_time() {
    let apart = |sample: &mut Sample| {
        sample.transactions[2].1 = vec![(Y, object(tag(2), 2, &[]))];
        sample.sessions[1] = vec![commit(28, 30, tag(2), &[], Outcome::Acknowledged)];
        sample.commit(1).writes = vec![Y];
        let (seq1, seq2) = (sample.transactions[1].0, sample.transactions[2].0);
        sample.transactions.swap(1, 2);
        (sample.transactions[1].0, sample.transactions[2].0) = (seq1, seq2);
    };
    assert_eq!(broken_by(apart), Rule::RealTime);
    let mut overlapping = sample();
    apart(&mut overlapping);
    overlapping.sessions[1][0].asked = 15;
    overlapping.judge().unwrap();
}

#[test]
fn stale_read() {
    // Y changes between what session 1 read and its commit, which does not write it.
    let unseen = broken_by(|sample| {
        sample.transactions.insert(2, (3, vec![(Y, object(tag(3), 2, &[]))]));
        sample.transactions[3].0 = 4;
        sample.sessions.push(vec![commit(25, NEVER, tag(3), &[], Outcome::Unknown)]);
        sample.commit(2).writes = vec![Y];
    });
    assert_eq!(unseen, Rule::StaleRead);
}

#[test]
fn lost_update() {
    let lost = broken_by(|sample| sample.transactions[2].1[0].1 = object(tag(2), 2, &[]));
    assert_eq!(lost, Rule::LostUpdate);
}

#[test]
fn packs_keep_what_is_reachable_and_make_nothing_up() {
    let as_of = |of, count| {
        let mut base = initial();
        base.insert(X, object(of, count, &[]));
        base
    };
    let mut good = sample();
    good.packs.push((2, as_of(tag(1), 2)));
    assert_eq!(good.judge().unwrap().packs, 1);
    let old = broken_by(|sample| sample.packs.push((2, initial())));
    assert_eq!(old, Rule::GenerationEquivalent);
    let dropped = broken_by(|sample| {
        let mut base = as_of(tag(1), 2);
        base.remove(&Y);
        sample.packs.push((2, base));
    });
    assert_eq!(dropped, Rule::GenerationEquivalent);
    let made_up = broken_by(|sample| {
        let mut base = as_of(tag(1), 2);
        base.insert(9, object(tag(1), 2, &[]));
        sample.packs.push((2, base));
    });
    assert_eq!(made_up, Rule::GenerationEquivalent);
}

#[test]
fn references_are_closed() {
    let dangling = broken_by(|sample| sample.transactions[2].1[0].1 = object(tag(2), 3, &[77]));
    assert_eq!(dangling, Rule::ReferencesClosed);
}

#[test]
fn reads_are_of_the_committed_prefix() {
    let nobodys = broken_by(|sample| sample.sessions[1][3] = loaded(24, Y, tag(8)));
    assert_eq!(nobodys, Rule::ReadIsCommittedPrefix);
    // That transaction is there, and did not store Y.
    let another = broken_by(|sample| sample.sessions[1][3] = loaded(24, Y, tag(1)));
    assert_eq!(another, Rule::ReadIsCommittedPrefix);
    let uncommitted = broken_by(|sample| {
        sample.transactions.pop();
        sample.commit(1).outcome = Outcome::Unknown;
        sample.sessions.push(vec![loaded(29, X, tag(2))]);
    });
    assert_eq!(uncommitted, Rule::ReadIsCommittedPrefix);
}

#[test]
fn nothing_is_seen_before_it_was_sent() {
    let future = broken_by(|sample| sample.sessions[1][0] = loaded(11, X, tag(1)));
    assert_eq!(future, Rule::ReadFromFuture);
}

#[test]
fn sessions_never_go_back() {
    let after_a_sync = broken_by(|sample| sample.sessions[1][2] = loaded(22, X, SETUP));
    assert_eq!(after_a_sync, Rule::SessionMonotone);
    // Without any sync: what it loads itself puts a floor under it.
    let by_its_own_loads = broken_by(|sample| {
        sample.sessions.push(vec![loaded(15, X, tag(1)), loaded(17, X, SETUP)]);
    });
    assert_eq!(by_its_own_loads, Rule::SessionMonotone);
    let new_session = broken_by(|sample| sample.sessions.push(vec![loaded(17, X, SETUP)]));
    assert_eq!(new_session, Rule::SessionMonotone);
    let mut in_time = sample();
    in_time.sessions.push(vec![loaded(16, X, SETUP)]);
    in_time.judge().unwrap();
}

/// Y as before transaction 3 is held; X of transaction 3 is loaded on top of it, and no sync lies in between.
#[test]
fn between_two_syncs_there_is_one_moment() {
    let both = |sample: &mut Sample| {
        sample.transactions[2].1.push((Y, object(tag(2), 2, &[])));
        sample.commit(1).writes = vec![X, Y];
        sample.sessions.push(vec![loaded(18, Y, SETUP), loaded(40, X, tag(2))]);
    };
    assert_eq!(broken_by(both), Rule::Snapshot);
    let mut told = sample();
    both(&mut told);
    told.sessions[2].insert(1, synced(35, &[Y]));
    told.judge().unwrap();
}

#[test]
fn changes_of_what_is_held_are_told() {
    let by_sync = broken_by(|sample| sample.sessions[1][1] = synced(20, &[]));
    assert_eq!(by_sync, Rule::ToldOfChanges);
    // Its own commit comes after a change of Y, which it holds and was not told of.
    let by_commit = broken_by(|sample| {
        sample.transactions.insert(2, (3, vec![(Y, object(tag(3), 2, &[]))]));
        sample.transactions[3].0 = 4;
        sample.sessions.push(vec![commit(25, NEVER, tag(3), &[], Outcome::Unknown)]);
        sample.commit(2).writes = vec![Y];
        sample.commit(1).reads.clear();
    });
    assert_eq!(by_commit, Rule::ToldOfChanges);
}

#[test]
fn what_a_pack_took_away_is_told() {
    const GARBAGE: Oid = 9;
    let packed = |sample: &mut Sample| {
        sample.commit(0).writes = vec![X, GARBAGE];
        sample.transactions[1].1.push((GARBAGE, object(tag(1), 0, &[])));
        let mut base = initial();
        base.insert(X, object(tag(1), 2, &[]));
        sample.packs.push((2, base));
        sample.sessions[1].insert(3, loaded(23, GARBAGE, tag(1)));
    };
    let untold = broken_by(|sample| {
        packed(sample);
        sample.sessions[1].push(synced(40, &[]));
    });
    assert_eq!(untold, Rule::ToldOfTaken);
    let mut told = sample();
    packed(&mut told);
    told.sessions[1].push(synced(40, &[GARBAGE]));
    told.judge().unwrap();
}

#[test]
fn what_is_there_is_not_missing() {
    let missing = |oid| event(24, 25, What::Missing { oid });
    let there = broken_by(|sample| sample.sessions[1][3] = missing(Y));
    assert_eq!(there, Rule::NotMissing);
    let mut nowhere = sample();
    nowhere.sessions[1].insert(3, missing(50));
    nowhere.judge().unwrap();
}
