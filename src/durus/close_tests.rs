//! How connections end: what closes them, what it is called, and that nobody else notices.

use super::testing::*;
use super::*;
use crate::types::{ConnId, Oid};

#[test]
fn malformed_commits_close_and_ask_nothing_of_the_master() {
    let to_chain = [&record(1, b"x")[..], &u64::MAX.to_be_bytes()].concat();
    let cases: [(Vec<u8>, &str); 5] = [
        (commit_data(&[(1, record(2, b"x"))]), "says it is of oid 2"),
        (commit_data(&[(1, record(1, b"x")), (1, record(1, b"y"))]), "twice"),
        (commit_data(&[(u64::MAX, record(u64::MAX, b"x"))]), "its oid is reserved"),
        // Once accepted here and refused by the file's builder, which is a panic of the master: two rules for one thing.
        (commit_data(&[(1, to_chain.into())]), "refers to the oid that is reserved"),
        (b"\0\0\0\x05\0\0\0\xff\0".to_vec(), "ends inside a record's header"),
    ];
    for (data, why) in cases {
        let mut node = Node::with_two();
        node.send(A, &[b"C", &data[..]].concat());
        let reason = node.closed_for().to_string();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(node.sessions.len(), 1);
    }
}

#[test]
fn odd_commands_close() {
    for (bytes, why) in [
        (&b"x"[..], "unknown command byte 0x78"),
        (b"V\0\0\0\x02", "version 2"),
        (b"Q", "allow_quit"),
        (b"L\0\0\0\0\0\0\x02\x9a", "bad sector"),
    ] {
        let mut node = Node::with_two();
        node.send(A, bytes);
        let reason = node.closed_for().to_string();
        assert!(reason.contains(why), "{reason}");
    }
    let mut node = Node::limited(Limits { allow_quit: true, ..Limits::default() });
    node.open(A);
    node.sync_all();
    node.send(A, b"Q");
    assert_eq!(node.asked()[0], SessionAction::Quit { conn: A });
}

#[test]
fn every_limit_that_bites_is_named() {
    let tight = Limits {
        clients_max: 2,
        transaction_bytes_max: 1000,
        objects_per_transaction_max: 2,
        record_bytes_max: 100,
        bulk_oids_max: 3,
        input_buffered_bytes_max: 50,
        unused_oids_max: 5,
        commits_waiting_bytes_max: 200,
        ..Limits::default()
    };
    let three = commit_data(&[1, 2, 3].map(|oid| (oid, record(oid, b""))));
    let wide = commit_data(&[(1, record(1, &[0; 100]))]);
    let two = commit_data(&[1, 2].map(|oid| (oid, record(oid, &[0; 80]))));
    for (bytes, name) in [
        (bulk(&[1, 2, 3, 4]), "bulk_oids_max"),
        (b"M\x06".to_vec(), "unused_oids_max"),
        (b"C\0\0\x10\0".to_vec(), "transaction_bytes_max"),
        ([b"C", &three[..]].concat(), "objects_per_transaction_max"),
        ([b"C", &wide[..]].concat(), "record_bytes_max"),
        ([b"C", &two[..]].concat(), "commits_waiting_bytes_max"),
    ] {
        let mut node = Node::limited(tight.clone());
        node.open(A);
        node.send(A, b"S");
        node.sync_all();
        node.send(A, &bytes);
        match node.closed_for() {
            CloseReason::Limit { name: bit, .. } => assert_eq!(bit, name),
            other => panic!("{name}: {other}"),
        }
    }
    let mut node = Node::limited(tight);
    for conn in 1..=3 {
        node.open(ConnId(conn));
    }
    node.sync_all();
    let reason = node.closed_for().to_string();
    assert!(reason.contains("clients_max = 2"), "{reason}");
    node.send(A, b"S");
    node.sync_id();
    node.send(A, &[b'S'; 50]);
    assert_eq!(node.asked(), []);
    node.send(A, b"S");
    assert!(node.closed_for().to_string().contains("input_buffered_bytes_max"));
}

#[test]
fn what_one_client_makes_us_hold_is_bounded() {
    let tight = Limits { session_bytes_max: 60, record_bytes_max: 30, ..Limits::default() };
    // What it sends, and what it asks for: longer than any that may be stored by now.
    for bytes in [[b"C\0\0\0\xff", &[0; 60][..]].concat(), load(4)] {
        let mut node = Node::limited(tight.clone());
        node.open(A);
        node.send(A, b"S");
        node.sync_all();
        node.store.records.insert(Oid(4), record(4, &[b'x'; 60]));
        node.send(A, &bytes);
        let reason = node.closed_for();
        assert_eq!(reason.limit(), Some("session_bytes_max"), "{reason}");
    }
}

#[test]
fn only_who_stalls_inside_a_command_or_waits_too_long_is_closed() {
    let mut node = Node::with_two();
    node.later(1_000_000);
    assert_eq!(node.asked(), [], "idle clients stay");
    node.send(A, b"L\0\0");
    assert_eq!(node.sessions.deadline(), Some(node.now.mono_us + 10_000_000));
    node.later(9_000);
    node.send(A, b"\0");
    node.later(9_000);
    assert_eq!(node.asked(), []);
    node.later(1_000);
    assert_eq!(node.closed_for(), CloseReason::Stalled(10_000));
    node.send(B, b"C");
    node.later(10_000);
    assert_eq!(node.closed_for(), CloseReason::Stalled(10_000));
    assert_eq!(node.sessions.deadline(), None);

    let mut node = Node::with_two();
    node.send(B, b"C");
    node.send(B, &commit_data(&[(1, record(1, b"mine"))]));
    node.send(A, b"S");
    assert_eq!(node.sessions.deadline(), Some(node.now.mono_us + 60_000_000));
    node.later(59_999);
    assert_eq!(node.asked().len(), 2);
    node.later(1);
    let reasons: Vec<String> = node
        .asked()
        .into_iter()
        .map(|action| match action {
            SessionAction::Close { reason, .. } => reason.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(reasons[0].contains("sync") && reasons[1].contains("outcome of a commit unknown"));
}
