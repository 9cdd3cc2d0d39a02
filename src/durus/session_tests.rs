//! Sessions as traces: what clients send, what the master answers, what is sent back.

use roaring::RoaringTreemap;

use super::testing::*;
use super::*;
use crate::types::{ConnId, Epoch, Generation, Oid, Seq};

#[test]
fn a_client_says_hello_and_loads() {
    let mut node = Node::new();
    node.open(A);
    node.send(A, b"V\0\0\0\x01");
    assert_eq!(node.sent(A), 1u32.to_be_bytes());
    node.send(A, &load(3));
    assert_eq!(node.sent(A), b"", "waits for a sync of its own");
    let opening = node.sync_id();
    node.synced(opening, 9);
    assert_eq!(node.sent(A), b"");
    let first = node.sync_id();
    assert!(first > opening);
    node.synced(first, 10);
    assert_eq!(node.sent(A), found(&record(3, b"old")));
    node.send(A, &load(77));
    assert_eq!(node.sent(A), b"K");
    node.send(A, &bulk(&[1, 77, 2]));
    assert_eq!(node.sent(A), [found(&record(1, b"old")), b"K".to_vec()].concat());
    node.send(A, &bulk(&[]));
    assert_eq!(node.sent(A), b"");
    assert_eq!(node.asked(), []);
    node.send(A, b".");
    assert_eq!(node.closed_for(), CloseReason::Goodbye);
    assert!(node.sessions.is_empty());
}

/// Thousands of reads from a cold disk would be seconds in which nobody hears of this node.
#[test]
fn a_long_bulk_load_is_done_in_turns_with_the_others() {
    let mut node = Node::with_two();
    let oids: Vec<u64> = (0..600).map(|n| n % 5).collect();
    let (old, new) = (|oid| found(&record(oid, b"old")), |oid| found(&record(oid, b"new")));
    let answers = |oids: &[u64]| oids.iter().flat_map(|oid| old(*oid)).collect::<Vec<u8>>();
    // It does not greet: it wants all answers.
    node.send(A, &bulk(&oids));
    node.send(B, &bulk(&oids[..300]));
    assert_eq!(node.sent(A), answers(&oids[..256]));
    assert_eq!(node.sent(B), answers(&oids[..256]));
    assert!(node.sessions.reads_on());
    node.read_on();
    assert_eq!((node.sent(A), node.sent(B)), (answers(&oids[256..512]), Vec::new()));
    node.others_change(&[3]);
    node.send(A, b"S");
    node.read_on();
    node.read_on();
    // No commit falls into it.
    assert_eq!(node.sent(B), answers(&oids[256..300]));
    assert_eq!(node.sent(A), answers(&oids[512..]));
    // What was sent ahead follows, and what has changed is told.
    node.sync_all();
    assert_eq!(node.sent(A), told(&[3]));
    node.send(B, &load(3));
    assert_eq!(node.sent(B), b"I");
    node.send(A, &load(3));
    assert_eq!(node.sent(A), new(3));
    // Who leaves in the middle is not gone on with.
    node.send(A, &bulk(&oids));
    node.sessions.closed(A, &mut node.out);
    node.read_on();
    assert!(!node.sessions.reads_on());
}

#[test]
fn a_long_bulk_load_is_answered_as_of_its_beginning_or_not_at_all() {
    let long: Vec<u64> = [vec![0; 256], vec![1, 2, 3, 4, 50]].concat();
    let begun = || {
        let mut node = Node::with_two();
        node.others_change(&[1]);
        node.send(A, &bulk(&long));
        assert_eq!(node.sent(A), found(&record(0, b"old")).repeat(256));
        assert!(node.sessions.reads_before());
        // Stored again twice, and made since.
        node.others_change(&[2, 50]);
        node.others_change(&[2]);
        node
    };
    let (invalid, old) = (b"I".to_vec(), |oid| found(&record(oid, b"old")));
    let mut node = begun();
    node.read_on();
    assert_eq!(node.sent(A), [invalid.clone(), old(2), old(3), old(4), b"K".to_vec()].concat());
    assert!(!node.sessions.reads_before());
    node.send(A, &[load(2), b"S".to_vec(), load(2)].concat());
    node.sync_all();
    let new = found(&record(2, b"new"));
    assert_eq!(node.sent(A), [invalid.clone(), told(&[1, 2, 50]), new].concat());
    // That state is not known any more: what has changed is refused, the rest is the same in both.
    let refused = [invalid.repeat(2), old(3), old(4), invalid.clone()].concat();
    let mut node = begun();
    node.store.before.clear();
    node.read_on();
    assert_eq!(node.sent(A), refused);
    // A pack's switch: what it has removed is nowhere.
    let mut node = begun();
    node.sessions.removed(Generation(2), &[4].into_iter().collect(), &mut node.out);
    node.read_on();
    assert_eq!(node.sent(A), [invalid.repeat(2), old(3), invalid.repeat(2)].concat());
    // Who leaves reads no more.
    let mut node = begun();
    node.sessions.closed(A, &mut node.out);
    assert!(!node.sessions.reads_before());
}

#[test]
fn what_changed_after_connecting_is_invalid_and_what_changed_before_is_not() {
    let mut node = Node::new();
    node.open(A);
    let opening = node.sync_id();
    // Committed elsewhere before A connected, visible here only afterwards.
    node.synced(opening, 11);
    node.others_change(&[1]);
    node.others_change(&[2]);
    node.send(A, &[load(1), load(2), load(2), b"S".to_vec(), load(2)].concat());
    node.sync_all();
    let new = |oid| found(&record(oid, b"new"));
    let expected = [new(1), b"I".to_vec(), b"I".to_vec(), told(&[2]), new(2)].concat();
    assert_eq!(node.sent(A), expected);
}

#[test]
fn answers_do_not_depend_on_how_the_bytes_are_cut() {
    let mut stream = b"V\0\0\0\x01".to_vec();
    stream.extend(load(1));
    stream.extend(b"M\x02SC");
    stream.extend(commit_data(&[(1, record(1, b"mine")), (40, record(40, b""))]));
    stream.extend(bulk(&[1, 40, 2]));
    stream.extend(b"M\0PC\0\0\0\0NS");
    stream.extend(load(9));
    let mut answers = Vec::new();
    for piece in [1, 2, 3, 7, 1000] {
        let mut node = Node::new();
        node.open(A);
        for bytes in stream.chunks(piece) {
            node.send(A, bytes);
            serve(&mut node);
        }
        let mut committed = 1u32.to_be_bytes().to_vec();
        committed.extend(found(&record(1, b"old")));
        committed.extend([40u64.to_be_bytes(), 41u64.to_be_bytes()].concat());
        committed.extend([told(&[]), told(&[]), b"O".to_vec()].concat());
        committed.extend([found(&record(1, b"mine")), found(&record(40, b""))].concat());
        committed.extend(found(&record(2, b"old")));
        committed.extend([b"O".to_vec(), told(&[])].concat());
        committed.extend([42u64.to_be_bytes().to_vec(), told(&[]), b"K".to_vec()].concat());
        assert_eq!(node.sent(A), committed);
        answers.push(committed);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_commit_is_news_to_everybody_else() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    assert_eq!(node.sent(A), told(&[]));
    let mine = [(1, record(1, b"mine")), (3, record(3, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    assert_eq!(node.sent(A), b"", "not visible yet");
    node.committed(id, 11);
    assert_eq!(node.sent(A), b"", "committed, and not visible here yet");
    node.apply(&mine, commit_id);
    assert_eq!(node.sent(A), b"O");
    node.send(A, &[load(1), b"S".to_vec()].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [found(&record(1, b"mine")), told(&[])].concat());
    node.send(B, &[load(1), load(2), b"C\0\0\0\0".to_vec(), load(1)].concat());
    let two = [b"I".to_vec(), found(&record(2, b"old")), told(&[1, 3])].concat();
    assert_eq!(node.sent(B), [two, found(&record(1, b"mine"))].concat());
}

#[test]
fn a_commit_that_becomes_visible_before_its_answer_comes_is_answered_once() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    let mine = [(1, record(1, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    assert!(node.sessions.outstanding(id));
    node.others_change(&[2]);
    node.apply(&mine, commit_id);
    assert!(!node.sessions.outstanding(id));
    for _ in 0..2 {
        node.committed(id, 12);
        // A master that lost its office says this about a request it got late.
        node.conflict(id, &[]);
        node.sessions.refused(id, "late", &mut node.out);
        node.sessions.send_touched(id, &mut node.out);
    }
    assert_eq!(node.sent(A), [told(&[]), b"O".to_vec()].concat());
    assert_eq!(node.asked(), []);
    node.send(A, &[load(1), load(2)].concat());
    assert_eq!(node.sent(A), [found(&record(1, b"mine")), b"I".to_vec()].concat());
}

#[test]
fn a_commit_known_to_be_committed_is_not_talked_away() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    let mine = [(1, record(1, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    node.committed(id, 11);
    node.conflict(id, &[]);
    node.sessions.refused(id, "no", &mut node.out);
    node.apply(&mine, commit_id);
    assert_eq!(node.sent(A), [told(&[]), b"O".to_vec()].concat());
}

#[test]
fn a_conflict_leaves_the_client_connected() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let (id, _) = node.commit_id();
    node.conflict(id, &[Oid(4)]);
    assert_eq!(node.sent(A), [told(&[]), b"I".to_vec()].concat());
    node.others_change(&[1]);
    node.send(A, &[load(4), b"S".to_vec()].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [b"I".to_vec(), told(&[1, 4])].concat());
    node.conflict(id, &[Oid(3)]);
    assert_eq!(node.sent(A), b"");
}

#[test]
fn what_a_client_may_have_read_goes_with_its_commit() {
    let mut node = Node::with_two();
    node.others_change(&[3]);
    node.send(A, &[load(2), load(3), load(88), b"C".to_vec()].concat());
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let SessionAction::Commit { touched: Some(touched), base, session, .. } = node.asked_one()
    else {
        panic!("small sets go along")
    };
    assert_eq!((base, session), (Seq(11), 1));
    let touched: Vec<u64> = decode_touched(&touched).unwrap().iter().collect();
    assert_eq!(touched, [1, 2, 88], "3 was answered with I: it was not read");
}

/// Else a client with everything in its cache would conflict with every commit, and not only with those that it could not
/// know of.
#[test]
fn what_a_client_was_told_to_forget_it_has_not_read() {
    let mut node = Node::with_two();
    node.send(A, &[load(2), load(3), load(4)].concat());
    node.others_change(&[2, 3]);
    node.send(A, b"S");
    node.sync_all();
    node.others_change(&[4]);
    node.send(A, &[load(3), b"C".to_vec()].concat());
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let SessionAction::Commit { touched: Some(touched), .. } = node.asked_one() else {
        panic!("small sets go along")
    };
    let touched: Vec<u64> = decode_touched(&touched).unwrap().iter().collect();
    assert_eq!(touched, [1, 3], "3 was loaded again; 2 and 4 were not");
}

/// Else it would conflict with every commit that was under way when it began its own.
#[test]
fn who_begins_a_commit_is_told_of_what_is_in_the_file_and_not_committed_yet() {
    let mut node = Node::with_two();
    node.send(A, &[load(1), load(2), load(3)].concat());
    node.sent(A);
    node.store.ahead = vec![vec![2], vec![9]];
    node.send(A, b"C");
    assert_eq!(node.sent(A), told(&[2, 9]));
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let asked = node.asked_one();
    let SessionAction::Commit { id, commit_id, base, ahead, touched, .. } = asked else {
        panic!("{asked:?}")
    };
    assert_eq!((base, ahead), (Seq(10), Some((Epoch(7), Seq(12)))));
    let touched: Vec<u64> = decode_touched(&touched.unwrap()).unwrap().iter().collect();
    assert_eq!(touched, [1, 3]);
    node.store.ahead.clear();
    node.others_change(&[2]);
    node.others_change(&[9]);
    node.others_change(&[4]);
    node.apply(&[(1, record(1, b"mine"))], commit_id);
    node.committed(id, 14);
    assert_eq!(node.sent(A), b"O");
    // 2 and 9 are no news any more, 4 is: it came after what was told.
    node.send(A, &[load(2), load(4), b"S".to_vec()].concat());
    node.sync_all();
    let two = found(&record(2, b"new"));
    assert_eq!(node.sent(A), [two, b"I".to_vec(), told(&[4])].concat());
}

#[test]
fn what_a_client_was_told_early_is_news_again_if_its_commit_came_to_nothing() {
    for outcome in ["given up", "conflict", "cut back"] {
        let mut node = Node::with_two();
        node.store.ahead = vec![vec![2], vec![3]];
        node.send(A, b"C");
        assert_eq!(node.sent(A), told(&[2, 3]));
        match outcome {
            "given up" => node.send(A, &[0; 4]),
            "conflict" => {
                node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
                let (id, _) = node.commit_id();
                node.conflict(id, &[]);
                assert_eq!(node.sent(A), b"I");
            }
            _ => node.sessions.truncated(Seq(11)),
        }
        node.store.ahead.clear();
        if outcome == "cut back" {
            node.others_change(&[2]);
            node.others_change(&[4]);
            node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
            let asked = node.asked_one();
            assert!(matches!(asked, SessionAction::Commit { ahead: None, .. }), "{asked:?}");
            let SessionAction::Commit { id, .. } = asked else { unreachable!("as matched") };
            node.conflict(id, &[]);
            node.sent(A);
            node.send(A, b"S");
            node.sync_all();
            assert_eq!(node.sent(A), told(&[4]), "another transaction has its number");
            continue;
        }
        // Nobody has it yet, so this is right; and it is out of date in a moment.
        node.send(A, &load(2));
        assert_eq!(node.sent(A), found(&record(2, b"old")));
        node.others_change(&[2]);
        node.others_change(&[3]);
        node.send(A, &[load(2), b"S".to_vec()].concat());
        node.sync_all();
        assert_eq!(node.sent(A), [b"I".to_vec(), told(&[2, 3])].concat(), "{outcome}");
    }
}

#[test]
fn a_large_set_of_what_was_read_is_sent_when_the_master_asks() {
    let mut node = Node::with_two();
    for oid in 0..600u64 {
        node.send(A, &load(oid << 20 | 1 << 10));
    }
    node.send(A, b"C");
    node.sent(A);
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let first = node.asked_one();
    let SessionAction::Commit { id, touched: None, .. } = first else { panic!("{first:?}") };
    node.sessions.send_touched(id, &mut node.out);
    let SessionAction::Commit { id: again, touched: Some(touched), .. } = node.asked_one() else {
        panic!("with the set now")
    };
    assert_eq!((again, decode_touched(&touched).unwrap().len()), (id, 601));
}

#[test]
fn a_sync_is_only_used_by_who_asked_before_it_was_sent() {
    let mut node = Node::with_two();
    node.send(A, b"S");
    let first = node.sync_id();
    node.send(B, b"S");
    assert_eq!(node.asked(), [], "one at a time");
    node.others_change(&[1]);
    node.synced(first, 10);
    assert_eq!((node.sent(A), node.sent(B)), (told(&[1]), vec![]));
    let second = node.sync_id();
    node.synced(first, 11);
    assert_eq!(node.sent(B), b"", "a second answer to the first");
    node.synced(second, 12);
    assert_eq!(node.sent(B), b"", "not visible here yet");
    node.others_change(&[2]);
    assert_eq!(node.sent(B), told(&[1, 2]));
    assert_eq!(node.asked(), []);
}

#[test]
fn what_a_pack_removed_is_told_to_everybody_before_the_master_hears_so() {
    let mut node = Node::with_two();
    let removed: RoaringTreemap = [3, 4].into_iter().collect();
    node.store.records.remove(&Oid(3));
    node.store.records.remove(&Oid(4));
    node.sessions.removed(Generation(2), &removed, &mut node.out);
    node.send(A, &[load(3), b"S".to_vec(), load(3)].concat());
    node.sync_all();
    assert_eq!(node.sent(A), [b"I".to_vec(), told(&[3, 4]), b"K".to_vec()].concat());
    assert_eq!((node.asked(), node.sessions.told_generation()), (vec![], Generation(1)));
    let late = ConnId(3);
    node.open(late);
    node.send(late, b"S");
    node.sync_all();
    assert_eq!(node.sent(late), told(&[]));
    node.send(B, b"C\0\0\0\0");
    assert_eq!(node.sent(B), told(&[3, 4]));
    let SessionAction::Told { generation, .. } = node.asked_one() else { panic!() };
    assert_eq!((generation, node.sessions.told_generation()), (Generation(2), Generation(2)));
    // Whoever leaves need not be told.
    node.sessions.removed(Generation(3), &removed, &mut node.out);
    node.send(A, b"C\0\0\0\0");
    for conn in [B, late] {
        assert_eq!(node.asked(), []);
        node.sessions.closed(conn, &mut node.out);
    }
    let SessionAction::Told { generation: Generation(3), .. } = node.asked_one() else { panic!() };
}

#[test]
fn after_a_jump_nothing_is_believed_until_the_client_was_told() {
    let mut node = Node::with_two();
    node.send(A, &load(2));
    node.store.applied = Seq(50);
    node.sessions.jumped(Seq(50));
    node.sessions.poke(node.now, &node.store, &mut node.out);
    node.send(A, &[load(1), b"S".to_vec(), load(1)].concat());
    node.sync_all();
    let old = |oid| found(&record(oid, b"old"));
    assert_eq!(node.sent(A), [old(2), b"I".to_vec(), told(&[2]), old(1)].concat());
}

#[test]
fn unused_oids_are_known_and_freed() {
    let mut node = Node::with_two();
    node.send(A, b"M\x03");
    let SessionAction::NewOids { id, session: 1, count: 3 } = node.asked_one() else { panic!() };
    let oids = [Oid(7), Oid(9), Oid(8)];
    node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
    node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
    let expected: Vec<u8> = oids.iter().flat_map(|oid| oid.0.to_be_bytes()).collect();
    assert_eq!(node.sent(A), expected);
    assert_eq!(node.sessions.pools(), [(1, vec![Oid(7), Oid(8), Oid(9)])]);
    node.send(A, b"C");
    let mine = [(8, record(8, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (_, commit_id) = node.commit_id();
    assert_eq!(node.sessions.pools().len(), 1);
    // The client goes; what it holds is not free before its commit is settled.
    node.sessions.closed(A, &mut node.out);
    assert_eq!((node.asked(), node.sessions.len()), (vec![], 1));
    assert_eq!(node.sessions.pools(), [(1, vec![Oid(7), Oid(8), Oid(9)])]);
    node.apply(&mine, commit_id);
    let SessionAction::FreeSession { session: 1, .. } = node.asked_one() else { panic!() };
    assert_eq!(node.sessions.pools(), []);
    node.sessions.closed(B, &mut node.out);
    assert_eq!(node.asked(), [], "B never held an oid");
}

/// A takes so many oids, of which the master has those from `next` on.
fn take_oids(node: &mut Node, next: &mut u64, count: u8) -> Vec<u64> {
    node.send(A, &[b'M', count]);
    match node.asked()[..] {
        [SessionAction::NewOids { id, .. }] => {
            let oids: Vec<_> = (*next..*next + u64::from(count)).map(Oid).collect();
            *next += u64::from(count);
            node.sessions.oids(id, &oids, node.now, &node.store, &mut node.out);
        }
        [] => {}
        [SessionAction::Close { reason: CloseReason::Limit { name, .. }, .. }, ..] => {
            assert_eq!(name, "unused_oids_max");
        }
        ref other => panic!("{other:?}"),
    }
    node.sent(A).as_chunks::<8>().0.iter().map(|oid| u64::from_be_bytes(*oid)).collect()
}

/// A stock client forgets the oids of a refused commit and takes others. It was closed after a million of them.
#[test]
fn a_client_with_many_conflicts_may_go_on_and_one_that_only_takes_oids_may_not() {
    let mut node = Node::limited(Limits { unused_oids_max: 8, ..Limits::default() });
    node.open(A);
    node.send(A, b"S");
    node.sync_all();
    node.sent(A);
    let try_with = |node: &mut Node, oids: &[u64]| {
        let mut records = vec![(1, record(1, b"mine"))];
        records.extend(oids.iter().map(|oid| (*oid, record(*oid, b"new"))));
        node.send(A, b"C");
        node.give_turn();
        node.send(A, &commit_data(&records));
        let (id, commit_id) = node.commit_id();
        (id, commit_id, records)
    };
    let (mut next, mut before) = (100, vec![]);
    for _ in 0..50 {
        let oids = take_oids(&mut node, &mut next, 2);
        assert!(oids.len() == 2 && !before.contains(&oids[0]) && !before.contains(&oids[1]));
        let (id, ..) = try_with(&mut node, &oids);
        node.conflict(id, &[]);
        node.sent(A);
        before = oids;
    }
    assert_eq!(next, 108, "it was given its own again");
    assert_eq!(node.sessions.pools(), [(1, (100..108).map(Oid).collect())]);
    // It may also try again with those of the last one; then they are an object's, and nobody's any more.
    let (id, ..) = try_with(&mut node, &before);
    node.conflict(id, &[]);
    let (id, commit_id, records) = try_with(&mut node, &before);
    node.apply(&records, commit_id);
    node.committed(id, 11);
    node.sent(A);
    let mut given = take_oids(&mut node, &mut next, 2);
    assert_eq!(given, [108, 109], "there is room for two");
    while !node.sessions.is_empty() {
        given.extend(take_oids(&mut node, &mut next, 2));
        assert!(given.len() <= 8, "each of its own once: {given:?}");
    }
    assert!(before.iter().all(|oid| !given.contains(oid)), "{before:?} are objects now");
}

#[test]
fn who_leaves_while_waiting_leaves_nothing_behind() {
    let mut node = Node::with_two();
    node.send(A, b"S");
    let sync = node.sync_id();
    node.send(B, b"N");
    let SessionAction::NewOids { id, .. } = node.asked_one() else { panic!() };
    node.sessions.closed(A, &mut node.out);
    node.sessions.closed(A, &mut node.out);
    node.sessions.closed(B, &mut node.out);
    let SessionAction::FreeSession { session: 2, .. } = node.asked_one() else { panic!() };
    node.synced(sync, 10);
    node.sessions.oids(id, &[Oid(50)], node.now, &node.store, &mut node.out);
    node.send(A, b"S");
    assert_eq!((node.out.len(), node.sessions.deadline()), (0, None));
    // The same for a commit that only a conflict settles.
    node.open(ConnId(3));
    node.send(ConnId(3), b"C");
    node.sync_all();
    node.send(ConnId(3), &commit_data(&[(1, record(1, b"mine"))]));
    node.sent(ConnId(3));
    let (id, _) = node.commit_id();
    node.sessions.closed(ConnId(3), &mut node.out);
    node.sessions.send_touched(id, &mut node.out);
    assert_eq!(node.commit_id().0, id, "it is still settled");
    node.conflict(id, &[]);
    assert_eq!((node.out.len(), node.sessions.outstanding(id)), (0, false));
}

#[test]
fn revoked_sessions_are_closed() {
    let mut node = Node::with_two();
    node.send(B, b"N");
    let SessionAction::NewOids { id, .. } = node.asked_one() else { panic!() };
    node.sessions.oids(id, &[Oid(50)], node.now, &node.store, &mut node.out);
    node.sent(B);
    let revoked = [(2, vec![Oid(50)]), (99, vec![Oid(51)])];
    node.sessions.revoke(&revoked, &mut node.out);
    let closes = SessionAction::Close { conn: B, reason: CloseReason::Revoked };
    assert_eq!(node.asked()[0], closes);
}

/// Found by reading: the master of a first root commit died before its answer. At the next one the root exists, by that very
/// commit, so its session seemed to hold an oid of somebody else's object, and its client was disconnected.
#[test]
fn a_session_that_stores_the_oid_in_question_is_judged_by_the_outcome() {
    let root = [(0, record(0, b"root"))];
    let closed = |node: &mut Node| {
        matches!(
            node.asked()[..],
            [SessionAction::Close { conn: A, reason: CloseReason::Revoked }, ..]
        )
    };
    // A holds 0 and 50, and stores 0.
    let begin = || {
        let mut node = Node::with_two();
        node.send(A, b"M\x02");
        let SessionAction::NewOids { id, .. } = node.asked_one() else { panic!() };
        node.sessions.oids(id, &[Oid(0), Oid(50)], node.now, &node.store, &mut node.out);
        node.send(A, b"C");
        node.send(A, &commit_data(&root));
        let (id, commit_id) = node.commit_id();
        node.sent(A);
        (node, id, commit_id)
    };
    let says = |node: &mut Node, oids: &[u64]| {
        let oids = oids.iter().copied().map(Oid).collect();
        node.sessions.revoke(&[(1, oids)], &mut node.out);
    };
    let (mut node, _, commit_id) = begin();
    says(&mut node, &[0]);
    assert_eq!(node.asked(), []);
    node.apply(&root, commit_id);
    assert_eq!((node.sent(A), node.asked()), (b"O".to_vec(), vec![]));
    // Late, to what was said before the commit was shown.
    says(&mut node, &[0]);
    assert_eq!(node.asked(), []);
    says(&mut node, &[50]);
    assert!(closed(&mut node));

    let (mut node, id, _) = begin();
    says(&mut node, &[0]);
    node.conflict(id, &[]);
    assert_eq!(node.sent(A), b"I");
    assert!(closed(&mut node));

    // Its commit says nothing of 50.
    let (mut node, ..) = begin();
    says(&mut node, &[50]);
    assert!(closed(&mut node));
    let (mut node, _, commit_id) = begin();
    says(&mut node, &[0, 50]);
    node.apply(&root, commit_id);
    assert_eq!(node.sent(A), b"O");
    assert!(closed(&mut node));

    // What another master says is the newer word.
    let (mut node, id, _) = begin();
    says(&mut node, &[0]);
    says(&mut node, &[]);
    node.conflict(id, &[]);
    assert_eq!((node.sent(A), node.asked()), (b"I".to_vec(), vec![]));
}

/// Recorded from stock Durus 4.3's server on an empty file, oids apart.
#[test]
fn stock_durus_says_the_same() {
    let mut node = Node::new();
    node.store.records.clear();
    let mut says = |conn, bytes: &[u8], answer: &[u8]| {
        if node.sessions.len() < 2 {
            [A, B].into_iter().for_each(|conn| node.open(conn));
            serve(&mut node);
        }
        node.send(conn, bytes);
        serve(&mut node);
        assert_eq!(node.sent(conn), answer);
    };
    let zero = &[0; 8][..];
    says(A, &[b"V\0\0\0\x01L", zero, b"M\0B\0\0\0\0"].concat(), b"\0\0\0\x01K");
    let one = [[0u8, 0, 0, 0, 0, 0, 0, 1], [0u8, 0, 0, 0, 0, 0, 0, 9]];
    let root = [zero, b"\0\0\0\x04root", &one[0]].concat();
    let leaf = [&one[0][..], b"\0\0\0\x03one"].concat();
    let data = [b"\0\0\0\x20", zero, &root, b"\0\0\0\x17", &one[0], &leaf].concat();
    says(A, &[b"C\0\0\0\x3f", &data[..]].concat(), b"\0\0\0\0O");
    let three = [b"B\0\0\0\x03", zero, &one[1], &one[0], b"S"].concat();
    let found = [b"O\0\0\0\x18", &root[..], b"KO\0\0\0\x0f", &leaf, b"\0\0\0\0"].concat();
    says(A, &three, &found);
    let reads = [b"L", zero, b"L", &one[1], b"C\0\0\0\0L", &one[0]].concat();
    let told = [b"IK\0\0\0\x02", zero, &one[0], b"O\0\0\0\x0f", &leaf].concat();
    says(B, &reads, &told);
    let empty = [b"C\0\0\0\x18\0\0\0\x14", zero, zero, b"\0\0\0\0L", zero].concat();
    says(A, &empty, &[b"\0\0\0\0OO\0\0\0\x0c", zero, b"\0\0\0\0"].concat());
}

/// A stock client stops reading at the first answer of a bulk load that is no record, and takes what comes after it for
/// the answer to its next command: a count of changed oids in the billions, or another object's record.
#[test]
fn a_client_that_reads_no_further_than_the_first_miss_is_in_step() {
    let mut node = Node::with_two();
    let one = found(&record(1, b"old"));
    node.send(A, b"V\0\0\0\x01");
    node.sent(A);
    node.send(A, &bulk(&[1, 77, 3]));
    assert_eq!(node.sent(A), [&one[..], b"K"].concat());
    assert_eq!(node.sessions.deadline(), None, "nothing is held for it");
    // However long it takes until its next command.
    node.later(3_600_000);
    assert_eq!(node.sent(A), b"");
    node.send(A, &load(1));
    assert_eq!(node.sent(A), one);
    node.others_change(&[2]);
    node.send(A, &bulk(&[1, 2, 1]));
    assert_eq!(node.sent(A), [&one[..], b"I"].concat());
    // It has not read 3, which it was not sent.
    node.send(A, b"C");
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let SessionAction::Commit { touched: Some(touched), .. } = node.asked_one() else {
        panic!("small sets go along")
    };
    let touched: Vec<u64> = decode_touched(&touched).unwrap().iter().collect();
    assert_eq!(touched, [1, 77]);
}

/// No stock client is who does not greet, and who does not wait for each answer.
#[test]
fn any_other_client_gets_every_answer_of_a_bulk_load() {
    let one = found(&record(1, b"old"));
    let all = [b"K", &one[..], b"K"].concat();
    let mut node = Node::with_two();
    node.send(A, &bulk(&[77, 1, 77]));
    assert_eq!(node.sent(A), all);
    for early in [b"V\0\0\0\x01S".to_vec(), [b"V\0\0\0\x01", &load(1)[..], &load(1)].concat()] {
        let mut node = Node::with_two();
        node.send(B, &early);
        node.sync_all();
        node.sent(B);
        node.send(B, &bulk(&[77, 1, 77]));
        assert_eq!(node.sent(B), all);
    }
    // Its first command waits for a sync, and it does not.
    let late = ConnId(3);
    node.open(late);
    node.send(late, b"V\0\0\0\x01");
    node.send(late, &bulk(&[77, 1, 77]));
    node.send(late, &bulk(&[1]));
    node.sync_all();
    assert_eq!(node.sent(late), [&[0, 0, 0, 1], &all[..], &one].concat());
}

/// With durability `all` a commit is shown before its client may be told.
#[test]
fn a_commit_that_is_shown_is_answered_when_its_client_may_be_told() {
    let begun = || {
        let mut node = Node::with_two();
        node.store.acknowledged = Some(Seq(10));
        node.send(A, b"C");
        node.sent(A);
        node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
        let (id, commit_id) = node.commit_id();
        node.apply(&[(1, record(1, b"mine"))], commit_id);
        assert_eq!(node.sent(A), b"", "not every voter has it");
        node.send(B, &[b"S".to_vec(), load(1)].concat());
        node.sync_all();
        assert_eq!(
            node.sent(B),
            [told(&[1]), found(&record(1, b"mine"))].concat(),
            "others see it"
        );
        (node, id)
    };
    // By the master's answer; once.
    let (mut node, id) = begun();
    node.committed(id, 11);
    node.committed(id, 11);
    assert_eq!(node.sent(A), b"O");
    // By the mark that the master announces.
    let (mut node, id) = begun();
    node.store.acknowledged = Some(Seq(11));
    node.sessions.poke(node.now, &node.store, &mut node.out);
    assert_eq!(node.sent(A), b"O");
    assert!(!node.sessions.outstanding(id));
    // Who leaves leaves nothing behind: it is stored.
    let (mut node, id) = begun();
    node.sessions.closed(A, &mut node.out);
    assert!(!node.sessions.outstanding(id));
    // And who waits for too long is told that the outcome is not known.
    let (mut node, id) = begun();
    node.later(Limits::default().wait_max_ms);
    assert!(matches!(node.closed_for(), CloseReason::Unanswered { what: "a commit", .. }));
    assert!(!node.sessions.outstanding(id));
}

/// With durability `local` a history that was shown can be left behind.
#[test]
fn when_what_was_shown_is_lost_all_sessions_end_and_nothing_of_them_is_asked_any_more() {
    let mut node = Node::with_two();
    node.send(A, b"C");
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let (id, _) = node.commit_id();
    node.send(B, b"S");
    let sync = node.sync_id();
    node.sessions.end_all(&CloseReason::Lost { after: Seq(9) }, &mut node.out);
    let closes = |action: &SessionAction| matches!(action, SessionAction::Close { .. });
    assert_eq!(node.asked().iter().filter(|action| closes(action)).count(), 2);
    assert!(!node.sessions.outstanding(id) && !node.sessions.outstanding(sync));
    node.store.applied = Seq(9);
    node.sessions.begin_again(Seq(9), Generation(1));
    node.committed(id, 10);
    node.open(ConnId(77));
    node.send(ConnId(77), b"S");
    node.sync_all();
    assert_eq!(node.sent(ConnId(77)), told(&[]));
}
