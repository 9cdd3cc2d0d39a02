//! A session's part in turns: when it asks for one, what it does with it, and how it ends.

use super::testing::*;
use super::*;
use crate::types::Oid;

/// The id of the one turn that is asked for.
fn turn_id(node: &mut Node) -> u64 {
    match node.asked_one() {
        SessionAction::Turn { id, session: 1, touched: Some(touched) } => {
            assert!(decode_touched(&touched).unwrap().contains(1), "what A may have read");
            id
        }
        other => panic!("{other:?}"),
    }
}

fn ended(node: &mut Node, turn: u64) {
    match node.asked_one() {
        SessionAction::EndTurn { session: 1, asked, .. } => assert_eq!(asked, turn),
        other => panic!("{other:?}"),
    }
}

/// A's commit, answered after so long, is refused.
fn refuse(node: &mut Node, after_ms: u64) {
    node.send(A, b"C");
    node.sent(A);
    node.later(after_ms);
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let (id, _) = node.commit_id();
    node.conflict(id, &[]);
    assert_eq!(node.sent(A), b"I");
}

/// A's next commits are made in turn.
fn contended() -> Node {
    let mut node = Node::with_two();
    node.send(A, &load(1));
    node.sent(A);
    refuse(&mut node, 0);
    node
}

#[test]
fn after_a_refusal_the_client_is_told_when_its_turn_has_come() {
    let mut node = contended();
    node.send(A, b"C");
    let id = turn_id(&mut node);
    assert_eq!(node.sent(A), b"", "it waits");
    // Its turn, as of a transaction that is not in this node's file yet; twice is once.
    node.turn(id, 11);
    node.turn(id, 11);
    assert_eq!(node.sent(A), b"");
    node.store.ahead.push(vec![3]);
    node.sessions.poke_file(node.now, &node.store, &mut node.out);
    assert_eq!(node.sent(A), told(&[3]), "before it is visible");
    let mine = [(1, record(1, b"mine"))];
    node.send(A, &commit_data(&mine));
    let (id, commit_id) = node.commit_id();
    node.store.ahead.clear();
    node.others_change(&[3]);
    node.apply(&mine, commit_id);
    node.committed(id, 12);
    assert_eq!((node.sent(A), node.asked()), (b"O".to_vec(), vec![]), "its commit ends its turn");
}

#[test]
fn a_turn_ends_when_the_client_gives_up_or_leaves() {
    let mut node = contended();
    node.send(A, b"C");
    let id = turn_id(&mut node);
    node.turn(id, 10);
    assert_eq!(node.sent(A), told(&[]));
    node.send(A, &[0; 4]);
    ended(&mut node, id);
    for comes in [false, true] {
        let mut node = contended();
        node.send(A, b"C");
        let id = turn_id(&mut node);
        if comes {
            node.turn(id, 11);
        }
        node.sessions.closed(A, &mut node.out);
        ended(&mut node, id);
        // Too late.
        node.turn(id, 10);
        node.others_change(&[2]);
        assert_eq!((node.sent(A), node.asked()), (vec![], vec![]));
    }
}

/// The master may have changed, or its answer is lost: nobody depends on a turn.
#[test]
fn who_waits_too_long_goes_on_without() {
    for comes in [false, true] {
        let mut node = contended();
        node.send(A, b"C");
        let id = turn_id(&mut node);
        if comes {
            node.turn(id, 1000);
        }
        node.later(99);
        assert!(!node.sessions.goes_on());
        node.later(1);
        ended(&mut node, id);
        assert!(node.sessions.goes_on());
        node.sessions.poke(node.now, &node.store, &mut node.out);
        assert_eq!(node.sent(A), told(&[]));
        node.turn(id, 10);
        assert_eq!((node.sent(A), node.sessions.goes_on()), (vec![], false));
        // And the commit goes as any other.
        let mine = [(1, record(1, b"mine"))];
        node.send(A, &commit_data(&mine));
        let (id, commit_id) = node.commit_id();
        node.apply(&mine, commit_id);
        node.committed(id, 11);
        assert_eq!(node.sent(A), b"O");
    }
}

#[test]
fn turns_are_for_those_who_are_refused_and_prompt() {
    // So many, then as before; more when it is refused again at once, and fewer when it gets through.
    let turns = |node: &mut Node| {
        let mut turns = 0;
        loop {
            node.send(A, b"C");
            match node.asked()[..] {
                [SessionAction::Turn { id, .. }] => node.turn(id, 10),
                ref other => break assert_eq!(other, []),
            }
            turns += 1;
            node.send(A, &[0; 4]);
            node.asked();
        }
        node.send(A, &[0; 4]);
        node.sent(A);
        turns
    };
    let mut node = contended();
    for expected in [2, 4, 8, 16, 32, 64, 64] {
        assert_eq!(turns(&mut node), expected);
        refuse(&mut node, 0);
    }
    let store = |node: &mut Node| {
        let mine = [(1, record(1, b"mine"))];
        node.send(A, b"C");
        node.send(A, &commit_data(&mine));
        let (id, commit_id) = node.commit_id();
        node.apply(&mine, commit_id);
        node.committed(id, node.store.applied.0);
        node.sent(A);
    };
    for (stored, expected) in [(8, 20), (40, 2)] {
        turns(&mut node);
        (0..stored).for_each(|_| store(&mut node));
        refuse(&mut node, 0);
        assert_eq!(turns(&mut node), expected);
        refuse(&mut node, 0);
    }
    // Whose data comes late keeps others waiting once, and no more.
    let mut node = contended();
    node.send(A, b"C");
    let id = turn_id(&mut node);
    node.turn(id, 10);
    node.later(11);
    node.send(A, &[0; 4]);
    ended(&mut node, id);
    node.send(A, b"C");
    assert_eq!((node.sent(A).len(), node.asked()), (8, vec![]));
    // Or never.
    let mut node = Node::with_two();
    refuse(&mut node, 11);
    node.send(A, b"C");
    assert_eq!((node.sent(A), node.asked()), (told(&[]), vec![]));
    node.send(A, &[0; 4]);
    // What a pack drops would be refused in turn as well.
    node.send(A, b"C");
    node.send(A, &commit_data(&[(1, record(1, b"mine"))]));
    let (id, _) = node.commit_id();
    node.conflict(id, &[Oid(3)]);
    node.sent(A);
    node.send(A, b"C");
    assert_eq!((node.sent(A), node.asked()), (told(&[3]), vec![]));
    // Nobody else takes turns for it.
    let mut node = contended();
    node.send(B, b"C");
    assert_eq!((node.sent(B), node.asked()), (told(&[]), vec![]));
}
