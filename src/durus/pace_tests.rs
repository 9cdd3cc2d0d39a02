//! How much is done for a client at a time, and how much is held for it.

use super::testing::*;
use super::*;
use crate::types::Oid;

fn loads(oids: impl Iterator<Item = u64>) -> Vec<u8> {
    oids.flat_map(load).collect()
}

fn answers(oids: impl Iterator<Item = u64>) -> Vec<u8> {
    oids.flat_map(|oid| found(&record(oid, b"old"))).collect()
}

/// Exactly these, and not too much to print.
#[track_caller]
fn is_sent(sent: &[u8], expected: &[u8]) {
    assert!(sent == expected, "{} bytes were sent, {} expected", sent.len(), expected.len());
}

/// What is to be read of A from now on, if that was said.
fn reads(node: &mut Node) -> Option<bool> {
    match node.asked()[..] {
        [SessionAction::Read { conn: A, on }] => Some(on),
        [] => None,
        ref other => panic!("{other:?}"),
    }
}

/// One read of a socket may hold 14,000 loads. All of them were done in one step.
#[test]
fn what_is_sent_ahead_is_done_in_turns_with_the_others() {
    let mut node = Node::with_two();
    node.send(A, &loads((0..600).map(|n| n % 5)));
    is_sent(&node.sent(A), &answers((0..256).map(|n| n % 5)));
    assert!(node.sessions.reads_on());
    node.send(B, &loads((0..300).map(|n| n % 5)));
    is_sent(&node.sent(B), &answers((0..256).map(|n| n % 5)));
    // Who sends more meanwhile has no turn more.
    node.send(A, &load(4));
    assert_eq!(node.sent(A), b"");
    node.read_on();
    is_sent(&node.sent(A), &answers((256..512).map(|n| n % 5)));
    is_sent(&node.sent(B), b"");
    node.read_on();
    is_sent(&node.sent(A), b"");
    is_sent(&node.sent(B), &answers((256..300).map(|n| n % 5)));
    node.others_change(&[3]);
    node.read_on();
    // Each load is one of its own.
    let changed = |oid| if oid == 3 { b"I".to_vec() } else { found(&record(oid, b"old")) };
    let rest: Vec<u8> = (512..600).map(|n| n % 5).chain([4]).flat_map(changed).collect();
    is_sent(&node.sent(A), &rest);
    assert!(!node.sessions.reads_on());
    assert_eq!((reads(&mut node), node.sessions.deadline()), (None, None));
}

#[test]
fn a_turn_has_so_many_commands_and_bytes_of_any_kind() {
    let long = record(3, &[b'x'; 1 << 20]);
    let version = b"V\0\0\0\x01";
    let cases = [
        (bulk(&[1; 100]).repeat(5), 256 * found(&record(1, b"old")).len()),
        (version.repeat(300), 256 * 4),
        ([&b"M\0".repeat(255)[..], &version.repeat(2)].concat(), 4),
        (b"C\0\0\0\0".repeat(300), 256 * 4),
        (b"P".repeat(300), 256),
        (load(3).repeat(6), 4 * found(&long).len()),
        (
            [bulk(&[1; 200]), bulk(&[3; 9])].concat(),
            200 * found(&record(1, b"old")).len() + 4 * found(&long).len(),
        ),
    ];
    for (bytes, first) in cases {
        let mut node = Node::with_two();
        node.store.records.insert(Oid(3), long.clone());
        node.send(A, &bytes);
        assert_eq!(node.sent(A).len(), first, "{:?}", bytes[0] as char);
        node.drain(A);
        assert!(node.sessions.reads_on());
        while node.sessions.reads_on() {
            node.read_on();
            assert!(!node.sent(A).is_empty());
            node.drain(A);
        }
    }
}

/// What a client has waited for and what it sends then do not make it one that does not wait.
#[test]
fn who_is_made_to_wait_for_its_turn_still_waits_for_answers() {
    let mut node = Node::with_two();
    node.send(A, b"V\0\0\0\x01");
    node.send(A, &bulk(&[1; 600]));
    (0..2).for_each(|_| node.read_on());
    node.sent(A);
    node.send(A, &bulk(&[1, 77, 3]));
    assert_eq!(node.sent(A), [found(&record(1, b"old")), b"K".to_vec()].concat());
    // Only who sends something before it has everything.
    node.send(A, &bulk(&[1; 300]));
    node.send(A, &bulk(&[1, 77, 3]));
    node.read_on();
    node.sent(A);
    node.send(A, &bulk(&[77, 77]));
    assert_eq!(node.sent(A), b"KK");
}

/// It would be taken for one that stalls, or for one that sends too much while it waits for the master.
#[test]
fn who_waits_for_its_turn_is_not_closed_and_not_read() {
    let limits = Limits { input_buffered_bytes_max: 100, ..Limits::default() };
    let mut node = Node::limited(limits);
    node.open(A);
    node.send(A, b"S");
    node.sync_all();
    node.sent(A);
    node.send(A, &loads((0..600).map(|n| n % 5)));
    assert_eq!(reads(&mut node), None);
    node.later(3_600_000);
    node.send(A, &loads((0..10_000).map(|n| n % 5)));
    assert_eq!(reads(&mut node), Some(false));
    node.later(3_600_000);
    // Half a command at the end.
    node.send(A, b"L\0\0");
    let mut sent = node.sent(A);
    while node.sessions.reads_on() {
        node.read_on();
        sent.extend(node.sent(A));
    }
    is_sent(&sent, &answers((0..600).chain(0..10_000).map(|n| n % 5)));
    assert_eq!(reads(&mut node), Some(true));
    // It has its time for the other half.
    node.later(9_000);
    node.send(A, &[0, 0, 0, 0, 0, 3]);
    assert_eq!(node.sent(A), found(&record(3, b"old")));
    // Who leaves has no turn any more, and who is closed has none.
    node.send(A, &loads((0..600).map(|n| n % 5)));
    node.sessions.closed(A, &mut node.out);
    node.sent(A);
    node.read_on();
    assert_eq!((node.sent(A), node.sessions.reads_on()), (vec![], false));
}

/// One bulk load may be of more than a session may hold. It was closed, however quick it took what it was sent: only what it
/// sent next was taken for a sign that it had.
#[test]
fn who_takes_its_answers_may_load_more_than_is_ever_held_for_it() {
    let limits = Limits { session_bytes_max: 2000, record_bytes_max: 600, ..Limits::default() };
    let long = record(3, &[b'x'; 400]);
    for (bytes, wanted) in [(bulk(&[3; 200]), 200), (load(3).repeat(120), 120)] {
        let mut node = Node::limited(limits.clone());
        node.store.records.insert(Oid(3), long.clone());
        node.open(A);
        node.send(A, b"S");
        node.sync_all();
        node.sent(A);
        node.send(A, &bytes);
        let mut count = 0;
        while node.drain(A) || node.sessions.reads_on() {
            node.read_on();
            let sent = node.sent(A).len();
            assert!(sent <= 2000, "{sent} bytes at once");
            count += sent / found(&long).len();
        }
        assert_eq!((count, node.asked()), (wanted, vec![]));
    }
}

/// Turn after turn, up to what a session may hold, a gigabyte, was read and queued for a client that took nothing.
#[test]
fn who_does_not_take_its_answers_is_sent_a_few_megabytes() {
    let long = found(&record(3, &[b'x'; 1 << 20]));
    for bytes in [bulk(&[3; 10]), load(3).repeat(10)] {
        let mut node = Node::with_two();
        node.store.records.insert(Oid(3), record(3, &[b'x'; 1 << 20]));
        node.send(A, &bytes);
        is_sent(&node.sent(A), &long.repeat(4));
        // No time is too long, and what it sends meanwhile is read up to a bound.
        for read in [None, Some(false)] {
            node.send(A, &b"V\0\0\0\x01".repeat(10_000));
            node.later(3_600_000);
            let drain = SessionAction::Drain { conn: A };
            let said = node.out.iter().filter(|action| **action != drain).cloned();
            let expected = read.map(|on| SessionAction::Read { conn: A, on });
            assert_eq!(said.collect::<Vec<_>>(), Vec::from_iter(expected));
            assert!(!node.sessions.reads_on());
        }
        // Others do not wait.
        node.send(B, &load(1));
        is_sent(&node.sent(B), &found(&record(1, b"old")));
        for count in [4, 2] {
            assert!(node.drain(A) && !node.drain(A));
            node.read_on();
            let sent = node.sent(A);
            is_sent(&sent[..count * long.len()], &long.repeat(count));
            assert!(sent.len() < (count + 1) * long.len());
        }
        // Who leaves in the middle leaves nothing.
        node.sessions.closed(A, &mut node.out);
        node.sessions.drained(A, node.now, &mut node.out);
        (0..2).for_each(|_| node.read_on());
        assert!(!node.sessions.reads_on() && node.sent(A).is_empty());
    }
}

/// What was asked of the shell may be answered after the next command has come.
#[test]
fn who_has_to_take_its_answer_first_has_waited_for_it() {
    let mut node = Node::with_two();
    node.store.records.insert(Oid(3), record(3, &[b'x'; 5 << 20]));
    node.send(A, b"V\0\0\0\x01");
    node.send(A, &load(3));
    assert!(node.sent(A).len() > 5 << 20);
    let next = bulk(&[1, 77, 3]);
    node.send(A, &next[..7]);
    node.send(A, &next[7..]);
    assert_eq!(node.sent(A), b"");
    assert!(node.drain(A));
    node.read_on();
    assert_eq!(node.sent(A), [found(&record(1, b"old")), b"K".to_vec()].concat());
    // It has time to take what it is told, and then as much as ever for its data.
    let mut node = Node::with_two();
    node.store.ahead = vec![Vec::from_iter(0..600_000)];
    node.send(A, b"C");
    node.later(3_600_000);
    assert_eq!(node.sent(A).len(), 4 + 8 * 600_000);
    assert!(node.drain(A));
    node.later(9_999);
    assert_eq!(node.asked(), []);
    node.later(1);
    assert_eq!(node.closed_for(), CloseReason::Stalled(10_000));
}

/// Every changed oid was kept for every idle session: 125 KB each after a million objects.
#[test]
fn what_changes_while_a_client_is_idle_takes_little_memory() {
    let mut node = Node::with_two();
    for conn in [A, B] {
        node.send(conn, &[load(1), load(2)].concat());
        node.sent(conn);
    }
    let changed = |n: u64| -> Vec<u64> { (0..1000).map(|k| 100 + 10 * (1000 * n + k)).collect() };
    let mut news = vec![1];
    node.others_change(&[1]);
    for n in 0..200 {
        node.others_change(&changed(n));
        news.extend(changed(n));
        // B is not idle.
        node.send(B, &load(2));
        assert_eq!(node.sent(B), found(&record(2, b"old")));
    }
    let bytes = |node: &Node, conn| node.sessions.sessions[&conn].unseen.bytes();
    let bound = super::unseen::IDLE_BYTES_MAX;
    assert!(bytes(&node, A) <= bound && bytes(&node, B) > 3 * bound);
    // What it has and what it has not, if it has changed.
    node.send(A, &[load(2), load(1), load(3), load(100)].concat());
    let two = [found(&record(2, b"old")), b"I".to_vec()];
    assert_eq!(node.sent(A), [&two.concat()[..], &found(&record(3, b"old")), b"I"].concat());
    node.send(B, &load(3));
    assert_eq!(node.sent(B), found(&record(3, b"old")));
    [A, B].iter().for_each(|conn| node.send(*conn, b"S"));
    node.sync_all();
    is_sent(&node.sent(B), &told(&news));
    let of_a: Vec<u64> =
        node.sent(A)[4..].as_chunks().0.iter().map(|it| u64::from_be_bytes(*it)).collect();
    assert!(of_a.contains(&1) && !of_a.contains(&2) && of_a.iter().all(|oid| news.contains(oid)));
    node.send(A, &[load(1), load(100)].concat());
    assert_eq!(node.sent(A), [found(&record(1, b"new")), found(&record(100, b"new"))].concat());
    // Between C and its data nothing is forgotten: its client may store what it has never touched.
    node.send(A, b"C");
    node.sent(A);
    (200..400).for_each(|n| node.others_change(&changed(n)));
    assert!(bytes(&node, A) > 3 * bound);
}
