//! Situations, each as an operator would meet it.

use super::*;
use crate::admin::view::Heard;
use crate::proto::control::{Elect, FenceCommand, OddBuild, PackProgress, PackSeal};

const SILENCE_MS: u64 = 500;

fn beat(seq: u64) -> Beat {
    let tip = Tip { epoch: 7, seq, offset: 10 * seq, chain: vec![0xab; 20].into() };
    let position = Position { generation: 2, base_hash: vec![9; 20].into(), tip: Some(tip) };
    Beat {
        boot: 77,
        promised: 7,
        position: Some(position),
        written_seq: seq,
        committed_seq: seq,
        in_step: true,
        file_bytes: 1 << 20,
        free_bytes: 1 << 30,
        raft_leader: 2,
        version: "0.1.0".into(),
        tip_wall_us: 1_700_000_000_000_000 + 1_000_000 * seq,
        ..Default::default()
    }
}

/// Nodes 1 to `count`, node 1 the open master of epoch 7, everybody at seq 100, asked at node 2.
fn cluster(count: u64) -> ClusterView {
    let members = (1..=count).map(|id| Member {
        id,
        name: format!("n{id}"),
        role: "voter".into(),
        may_be_master: true,
        peer: format!("host{id}:3972"),
        ..Default::default()
    });
    let current = GenerationRecord {
        number: 2,
        base_hash: vec![9; 20].into(),
        cut_seq: 50,
        since_wall_us: 1_700_000_000_000_000,
        ..Default::default()
    };
    let elect = Elect {
        epoch: 7,
        master: 1,
        boot: 77,
        voters: (1..=count).collect(),
        ..Default::default()
    };
    let mut view = ClusterView {
        cluster: "test".into(),
        own: NodeId(2.min(count)),
        durability: "majority".into(),
        raft_leader: Some(NodeId(2)),
        silence_ms: SILENCE_MS,
        ..Default::default()
    };
    view.state.members = members.collect();
    view.state.generations = vec![current];
    view.state.mastership = Some(elect);
    view.state.opened = true;
    view.state.epoch = 7;
    view.heard =
        (1..=count).map(|id| (NodeId(id), Heard { beat: beat(100), age_ms: 12 })).collect();
    edit(&mut view, 1).open = true;
    view
}

fn edit(view: &mut ClusterView, id: u64) -> &mut Beat {
    &mut view.heard.get_mut(&NodeId(id)).unwrap().beat
}

fn silence(view: &mut ClusterView, id: u64) {
    view.heard.get_mut(&NodeId(id)).unwrap().age_ms = SILENCE_MS + 2700;
}

fn why(status: &Status, name: &str) -> String {
    let others = &status.if_master_died.others;
    others.iter().find(|other| other.name == name).map(|other| other.why.clone()).unwrap()
}

#[test]
fn all_in_step_is_healthy() {
    let status = status(&cluster(3));
    assert_eq!(status.verdict, Verdict::Healthy);
    assert_eq!(status.survives_failures, 1);
    assert_eq!(status.master.as_deref(), Some("n1"));
    assert_eq!(status.raft_leader.as_deref(), Some("n2"));
    assert_eq!(status.phase, Phase::Open);
    assert_eq!(status.answered_by, "n2");
    assert_eq!(status.if_master_died.winner.as_deref(), Some("n2"));
    assert!(why(&status, "n3").contains("comes first by number"));
    assert!(status.summary.starts_with("Healthy: n1 is master"), "{}", status.summary);
    assert!(status.summary.ends_with("One more failure is survived."), "{}", status.summary);
    assert_eq!(status.next, Vec::<String>::new());
    let row = status.node("n1").unwrap();
    assert_eq!(
        (row.role.as_str(), row.state.as_str(), row.raft.as_str()),
        ("master", "open", "follower")
    );
    assert_eq!(row.chain, "ab".repeat(20));
    assert_eq!(status.node("n2").unwrap().raft, "leader");
    assert_eq!(status.node("n3").unwrap().state, "in step");
    let generation = status.generation.unwrap();
    assert_eq!(generation.since.as_deref(), Some("2023-11-14T22:13:20Z"));
}

#[test]
fn five_nodes_survive_two() {
    assert_eq!(status(&cluster(5)).survives_failures, 2);
}

#[test]
fn one_node_alone_is_healthy_and_survives_nothing() {
    let status = status(&cluster(1));
    assert_eq!((status.verdict, status.survives_failures), (Verdict::Healthy, 0));
    assert_eq!(status.if_master_died.winner, None);
    assert!(status.summary.contains("One node alone"), "{}", status.summary);
}

#[test]
fn a_dead_slave_degrades_and_keeps_its_row() {
    let mut view = cluster(3);
    silence(&mut view, 3);
    view.refused.insert(NodeId(3));
    let status = status(&view);
    assert_eq!((status.verdict, status.survives_failures), (Verdict::Degraded, 0));
    let row = status.node("n3").unwrap();
    assert_eq!((row.raft.as_str(), row.answering, row.eligible), ("down", false, false));
    assert_eq!((row.seq, row.seen_ms_ago), (100, Some(SILENCE_MS + 2700)));
    assert!(row.state.starts_with("down"), "{}", row.state);
    assert_eq!(why(&status, "n3"), "it does not answer");
    assert_eq!(status.if_master_died.winner, None, "one of three is no majority");
    assert!(why(&status, "n2").contains("no majority"));
    assert!(status.summary.contains("n3 is not in step"), "{}", status.summary);
    assert!(status.next[0].contains("host3"), "{:?}", status.next);
}

#[test]
fn refusal_counts_at_once_and_silence_after_its_time() {
    let mut view = cluster(3);
    view.refused.insert(NodeId(3));
    assert_eq!(status(&view).verdict, Verdict::Degraded);
    let mut view = cluster(3);
    silence(&mut view, 3);
    let told = status(&view);
    assert_eq!(told.node("n3").unwrap().state, "silent for 3.2 s");
    view.heard.remove(&NodeId(3));
    let told = status(&view);
    let row = told.node("n3").unwrap();
    assert_eq!((row.state.as_str(), row.seen_ms_ago), ("never heard", None));
}

#[test]
fn a_silent_master_is_no_master() {
    let mut view = cluster(3);
    silence(&mut view, 1);
    let status = status(&view);
    assert_eq!((status.verdict, status.master.as_deref()), (Verdict::Unavailable, None));
    assert!(status.summary.contains("n1 is master and does not answer"), "{}", status.summary);
    assert!(status.summary.contains("2 of 3 nodes answer n2"), "{}", status.summary);
    assert_eq!(status.if_master_died.winner.as_deref(), Some("n2"), "it is about to take over");
    assert!(status.next.iter().any(|command| command.contains("ctl history")));
}

#[test]
fn a_master_without_its_majority_is_unavailable() {
    let mut view = cluster(3);
    edit(&mut view, 2).in_step = false;
    silence(&mut view, 3);
    let status = status(&view);
    assert_eq!(status.verdict, Verdict::Unavailable);
    assert!(status.summary.contains("only 1 of the 2 voters"), "{}", status.summary);
}

#[test]
fn elections_are_told_apart() {
    let mut view = cluster(3);
    view.state.opened = false;
    edit(&mut view, 1).open = false;
    let told = status(&view);
    assert_eq!((told.phase, told.verdict), (Phase::Elected, Verdict::Unavailable));
    assert!(told.summary.contains("has not opened yet"), "{}", told.summary);

    view.state.fencing = Some(FenceCommand { epoch: 8, ..Default::default() });
    view.state.epoch = 8;
    let told = status(&view);
    assert_eq!((told.phase, told.epoch), (Phase::Fencing, 8));
    assert!(told.summary.contains("epoch 8 is fenced"), "{}", told.summary);
    assert_eq!(told.node("n1").unwrap().role, "slave", "fenced out");

    view.state.fencing = None;
    view.state.mastership = None;
    let told = status(&view);
    assert_eq!(told.phase, Phase::None);
    assert!(told.summary.contains("no master was elected yet"), "{}", told.summary);
}

#[test]
fn the_masters_successor_on_the_same_disk_is_not_the_master() {
    let mut view = cluster(3);
    edit(&mut view, 1).boot = 78;
    assert_eq!(status(&view).verdict, Verdict::Unavailable);
}

#[test]
fn suspect_and_failing_nodes_do_not_count() {
    let mut view = cluster(3);
    edit(&mut view, 3).suspect = "chain mismatch at 512".into();
    let told = status(&view);
    assert_eq!(told.verdict, Verdict::Degraded);
    let row = told.node("n3").unwrap();
    assert_eq!(row.state, "suspect: chain mismatch at 512");
    assert_eq!(row.suspect.as_deref(), Some("chain mismatch at 512"));
    assert!(row.why_not.as_ref().unwrap().contains("suspect"));
    assert!(told.next[0].contains("shelf verify"));

    let mut view = cluster(3);
    edit(&mut view, 3).failing = "disk full".into();
    assert_eq!(status(&view).node("n3").unwrap().state, "failing: disk full");
    assert!(!status(&view).node("n3").unwrap().in_step);
}

#[test]
fn the_furthest_wins_then_priority() {
    let mut view = cluster(3);
    edit(&mut view, 2).position.as_mut().unwrap().tip.as_mut().unwrap().seq = 98;
    let told = status(&view);
    assert_eq!(told.if_master_died.winner.as_deref(), Some("n3"));
    assert_eq!(why(&told, "n2"), "it is 2 transactions behind n3");
    let lag = told.node("n2").unwrap().lag;
    assert_eq!(lag.transactions, 2);

    let mut view = cluster(3);
    view.state.members[2].priority = 5;
    let told = status(&view);
    assert_eq!(told.if_master_died.winner.as_deref(), Some("n3"));
    assert!(told.next[0].contains("ctl promote n3"), "{:?}", told.next);
}

#[test]
fn lag_has_transactions_bytes_and_seconds() {
    let mut view = cluster(3);
    *edit(&mut view, 3) = Beat { lag_bytes: 4096, ..beat(97) };
    let lag = status(&view).node("n3").unwrap().lag;
    assert_eq!((lag.transactions, lag.bytes, lag.seconds), (3, 4096, 3.0));
    assert_eq!(status(&view).node("n1").unwrap().lag, Lag::default());
}

#[test]
fn nothing_may_take_over_where_only_the_master_may_be_master() {
    let mut view = cluster(3);
    view.state.members[1].may_be_master = false;
    view.state.members[2].may_be_master = false;
    let status = status(&view);
    assert_eq!((status.verdict, status.survives_failures), (Verdict::Healthy, 0));
    assert_eq!(status.if_master_died.winner, None);
    assert!(why(&status, "n2").contains("may_be_master"));
}

#[test]
fn local_durability_states_the_loss_it_permits() {
    let mut view = cluster(3);
    view.durability = "local".into();
    edit(&mut view, 1).position.as_mut().unwrap().tip.as_mut().unwrap().seq = 104;
    *edit(&mut view, 1) =
        Beat { acknowledged_seq: 104, alone_ms: 35, ..edit(&mut view, 1).clone() };
    let told = status(&view);
    assert_eq!(told.if_master_died.transactions_at_risk, 4);
    assert!(told.summary.contains("4 acknowledged commits"), "{}", told.summary);
    let now = &told.durability_now;
    assert_eq!((now.only_on_master, now.only_on_master_ms), (4, 35));
    let text = crate::admin::render::status(&told);
    assert!(text.contains("LOST if mastership moves"), "{text}");
    assert!(
        text.contains("4 transactions are only on the master now, the oldest for 35 ms"),
        "{text}"
    );
    // What was acknowledged stays so.
    view.durability = "majority".into();
    assert_eq!(status(&view).if_master_died.transactions_at_risk, 4);
}

#[test]
fn what_is_lost_stays_told_with_the_file_that_has_it() {
    let mut view = cluster(3);
    view.state.lost_transactions = 4;
    view.state.losses = vec![crate::proto::control::TailLost {
        node: 3,
        epoch: 5,
        transactions: 4,
        after_seq: 80,
        to_seq: 84,
        kept: "orphans/g00000002-seq81-84-abababab.orphan".into(),
        at_wall_us: 1_700_000_000_000_000,
    }];
    let told = status(&view);
    assert!(
        told.summary.contains("Up to 4 acknowledged transactions were LOST"),
        "{}",
        told.summary
    );
    let text = crate::admin::render::status(&told);
    assert!(text.contains("kept on n3 in orphans/g00000002-seq81-84-abababab.orphan"), "{text}");
}

#[test]
fn with_durability_all_it_is_said_for_whom_commits_wait_and_what_ends_it() {
    let mut view = cluster(3);
    view.durability = "all".into();
    silence(&mut view, 3);
    let told = status(&view);
    assert_eq!(told.verdict, Verdict::Unavailable);
    assert!(told.summary.starts_with("Commits wait for n3: durability is all"), "{}", told.summary);
    let typed = "packmaster ctl config set durability majority";
    assert!(told.next.iter().any(|command| command.starts_with(typed)), "{:?}", told.next);
    // It answers, and its disk is stuck.
    let mut view = cluster(3);
    view.durability = "all".into();
    *edit(&mut view, 1) = Beat { waits_for: vec![2], waits_ms: 2500, ..edit(&mut view, 1).clone() };
    let told = status(&view);
    assert!(told.summary.starts_with("Commits wait for n2 (for 2.5 s)"), "{}", told.summary);
    // The master is away as well.
    silence(&mut view, 1);
    assert!(status(&view).summary.contains("n1 is master and does not answer"));
}

#[test]
fn durability_all_stops_at_the_next_failure() {
    let mut view = cluster(3);
    view.durability = "all".into();
    let status = status(&view);
    assert_eq!(status.survives_failures, 0);
    assert!(status.summary.contains("on every voter"), "{}", status.summary);
}

#[test]
fn pause_is_shouted() {
    let mut view = cluster(3);
    view.state.paused = true;
    let status = status(&view);
    assert!(status.summary.starts_with("PAUSED"), "{}", status.summary);
    assert!(status.next.iter().any(|command| command.starts_with("packmaster ctl resume")));
}

#[test]
fn a_short_disk_is_said_early() {
    let mut view = cluster(3);
    edit(&mut view, 2).free_bytes = 1 << 20;
    let status = status(&view);
    assert!(status.next[0].contains("1.0 MiB free"), "{:?}", status.next);
}

#[test]
fn a_pack_is_shown_by_node() {
    let mut view = cluster(3);
    let seal = PackSeal { pack_seq: 90, cut_seq: 95, dead_count: 40, ..Default::default() };
    let pack = PackState {
        generation: 3,
        started_wall_us: 1_700_000_000_000_000,
        asked_by: "dba@host".into(),
        seal: Some(seal),
        ready: vec![3],
        ..Default::default()
    };
    view.state.pack = Some(pack);
    let progress =
        PackProgress { generation: 3, phase: "build".into(), permille: 413, ..Default::default() };
    edit(&mut view, 2).pack = Some(progress);
    let status = status(&view);
    let pack = status.pack.unwrap();
    assert_eq!((pack.generation, pack.phase.as_str(), pack.dead_objects), (3, "build", Some(40)));
    let told: Vec<_> = pack.nodes.iter().map(|node| (node.phase.as_str(), node.percent)).collect();
    assert_eq!(told, [("waiting", 0.0), ("build", 41.3), ("ready", 100.0)]);
    assert!(status.next.iter().any(|command| command.contains("pack --wait")));
}

/// The pack goes on without it, and when it is over nothing but this tells of the bad disk.
#[test]
fn a_node_whose_base_was_outvoted_is_named() {
    let mut view = cluster(3);
    let base_hash = vec![0xcd; 20].into();
    view.state.odd_builds = vec![OddBuild { node: 3, generation: 2, base_hash, wall_us: 1 }];
    let status = status(&view);
    let told = status.node("n3").unwrap().odd_build.as_deref().unwrap();
    assert!(told.starts_with("for generation 2 it built base cdcd"), "{told}");
    assert_eq!(status.node("n2").unwrap().odd_build, None);
    let next = &status.next[0];
    assert!(next.starts_with("packmaster shelf verify FILE  # on host3: n3: "), "{next}");
    assert!(next.ends_with("check or replace its disk and memory"), "{next}");
}

#[test]
fn an_old_generation_must_rebase_before_it_may_win() {
    let mut view = cluster(3);
    edit(&mut view, 2).position.as_mut().unwrap().generation = 1;
    edit(&mut view, 2).in_step = false;
    let status = status(&view);
    assert!(status.node("n2").unwrap().why_not.as_ref().unwrap().contains("rebases first"));
    assert_eq!(status.if_master_died.winner.as_deref(), Some("n3"));
}

#[test]
fn an_empty_view_is_a_status_too() {
    let told = status(&ClusterView::default());
    assert_eq!((told.verdict, told.nodes.len(), told.epoch), (Verdict::Unavailable, 0, 0));
}

#[test]
fn the_json_has_every_promised_field() {
    let mut view = cluster(3);
    view.heard.get_mut(&NodeId(3)).unwrap().beat.verified_wall_us = 1_700_000_000_000_000;
    let json = serde_json::to_value(status(&view)).unwrap();
    for field in [
        "version",
        "cluster",
        "verdict",
        "summary",
        "survives_failures",
        "epoch",
        "generation",
        "master",
        "raft_leader",
        "durability",
        "paused",
        "pack",
        "if_master_died",
        "nodes",
        "next",
    ] {
        assert!(json.get(field).is_some(), "{field}");
    }
    assert_eq!(json["verdict"], "healthy");
    for field in ["number", "base_hash", "cut_seq", "since"] {
        assert!(json["generation"].get(field).is_some(), "{field}");
    }
    for field in ["winner", "transactions_at_risk"] {
        assert!(json["if_master_died"].get(field).is_some(), "{field}");
    }
    for field in [
        "name",
        "role",
        "state",
        "epoch",
        "generation",
        "seq",
        "offset",
        "chain",
        "durable_seq",
        "committed_seq",
        "lag",
        "verified",
        "eligible",
        "why_not",
        "raft",
        "clients",
        "disk",
        "seen_ms_ago",
        "version",
        "addresses",
    ] {
        assert!(json["nodes"][0].get(field).is_some(), "{field}");
    }
    assert_eq!(json["nodes"][2]["verified"]["at"], "2023-11-14T22:13:20Z");
    for field in ["transactions", "bytes", "seconds"] {
        assert!(json["nodes"][0]["lag"].get(field).is_some(), "{field}");
    }
    for field in ["file_bytes", "free_bytes"] {
        assert!(json["nodes"][0]["disk"].get(field).is_some(), "{field}");
    }
    for field in ["durus", "peer", "http"] {
        assert!(json["nodes"][0]["addresses"].get(field).is_some(), "{field}");
    }
    let read: Status = serde_json::from_value(json).unwrap();
    assert_eq!(read, status(&view), "what ctl reads is what a node wrote");
}

#[test]
fn the_ladder_is_told_rung_by_rung() {
    use crate::proto::control::RungTally;
    let mut view = cluster(3);
    assert_eq!(status(&view).node("n3").unwrap().rebases, RebaseStatus::default());
    let base = RungTally { rung: Rung::Base.into(), finished: 0, wire_bytes: 400 };
    let local = RungTally { rung: Rung::Local.into(), finished: 2, wire_bytes: 0 };
    let now = RungNow {
        rung: Rung::Base.into(),
        generation: 4,
        doing: "fetch".into(),
        done_bytes: 500,
        total_bytes: 2000,
        bytes_per_s: 0,
        left_ms: 0,
    };
    let told = Rebases {
        rungs: vec![local, base],
        now: Some(now),
        last: Rung::Local.into(),
        last_generation: 3,
        last_ms: 1500,
        reused_bytes: 100,
        ..Rebases::default()
    };
    edit(&mut view, 3).rebases = Some(Box::new(told));
    let told = status(&view).node("n3").unwrap().rebases.clone();
    assert_eq!((told.local.finished, told.tail.finished, told.base.finished), (2, 0, 0));
    assert_eq!((told.base.wire_bytes, told.reused_bytes), (400, 100));
    let last = told.last.unwrap();
    assert_eq!((last.rung.as_str(), last.generation, last.seconds), ("local", 3, 1.5));
    let now = told.now.unwrap();
    assert_eq!((now.share, now.total_bytes), (Some(0.25), Some(2000)));
    assert_eq!((now.bytes_per_second, now.seconds_left), (None, None), "not known yet");
}

/// A master that was stopped goes on, and its first beat is of the epoch it knew.
#[test]
fn who_tells_of_an_older_epoch_is_not_in_step() {
    let mut view = cluster(3);
    edit(&mut view, 3).promised = 6;
    let status = status(&view);
    assert_eq!(status.verdict, Verdict::Degraded);
    assert!(!status.nodes[2].in_step && status.nodes[1].in_step);
}
