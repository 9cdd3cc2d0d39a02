use super::*;
use crate::admin::model::{GenerationStatus, IfMasterDied, Loser, PackNode, Phase};

fn node(name: &str) -> NodeStatus {
    let json = serde_json::json!({
        "name": name, "role": "slave", "state": "in step", "epoch": 7, "generation": 3,
        "seq": 12, "offset": 99, "chain": "", "durable_seq": 12, "committed_seq": 12,
        "lag": {"transactions": 0, "bytes": 0, "seconds": 0.0}, "verified": null,
        "eligible": true, "why_not": null, "raft": "follower", "clients": 2,
        "disk": {"file_bytes": 1536, "free_bytes": 17}, "seen_ms_ago": 12, "version": "0.1.0",
        "addresses": {"durus": "h:2972", "peer": "h:3972", "http": "h:4972"},
        "answering": true, "in_step": true, "written_seq": 12, "priority": 0,
        "suspect": null, "failing": null, "fetched_bytes": 0, "rebase": null
    });
    serde_json::from_value(json).unwrap()
}

fn three() -> Status {
    let generation =
        GenerationStatus { number: 3, base_hash: "ab".repeat(20), cut_seq: 10, since: None };
    Status {
        version: 1,
        cluster: "shop".into(),
        verdict: Verdict::Healthy,
        summary: "Healthy: all is well.".into(),
        survives_failures: 1,
        epoch: 7,
        generation: Some(generation),
        master: Some("n1".into()),
        raft_leader: Some("n2".into()),
        durability: "majority".into(),
        durability_now: Default::default(),
        paused: false,
        pack: None,
        pack_again: None,
        promote: None,
        held_back: None,
        if_master_died: IfMasterDied {
            winner: Some("n2".into()),
            transactions_at_risk: 0,
            others: vec![Loser { name: "n3".into(), why: "it is stopping".into() }],
        },
        nodes: vec![node("n1"), node("n2"), node("n3")],
        next: vec!["packmaster ctl pack".into()],
        answered_by: "n2".into(),
        phase: Phase::Open,
        decisions: 3,
    }
}

#[test]
fn the_picture_has_all_that_is_looked_for() {
    let text = status(&three());
    for part in [
        "shop · Healthy",
        "master n1 · epoch 7 · generation 3 (abababab, cut at 10)",
        "raft leader n2",
        "1.5 KiB",
        "if n1 died, n2 would take over, nothing acknowledged lost",
        "n3: it is stopping",
        "next    packmaster ctl pack",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("PAUSED"));
    assert!(!text.contains('\x1b'), "no colours where there is no terminal");
}

#[test]
fn pause_risk_and_a_dead_node_are_shouted() {
    let mut told = three();
    told.paused = true;
    told.if_master_died.transactions_at_risk = 4;
    told.nodes[2].answering = false;
    told.nodes[2].in_step = false;
    told.nodes[2].seen_ms_ago = Some(61_000);
    let text = status(&told);
    for part in ["!! PAUSED", "4 ACKNOWLEDGED COMMITS LOST", "seen 61 s ago"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(line(&told).contains("n3 down · PAUSED"), "{}", line(&told));
}

#[test]
fn a_cluster_without_master_or_generation_renders() {
    let mut told = three();
    told.master = None;
    told.generation = None;
    let text = status(&told);
    assert!(text.contains("master NONE") && text.contains("none yet"), "{text}");
    assert!(line(&told).contains("master none"));
}

fn pack() -> PackStatus {
    let node = |name: &str, phase: &str, percent| PackNode {
        name: name.into(),
        phase: phase.into(),
        percent,
        done_bytes: 0,
        total_bytes: None,
        bytes_per_s: 0,
        seconds_left: None,
    };
    let at_work = PackNode {
        done_bytes: 41 << 20,
        total_bytes: Some(100 << 20),
        bytes_per_s: 12_300_000,
        seconds_left: Some(5.0),
        ..node("n2", "build", 41.3)
    };
    PackStatus {
        generation: 4,
        phase: "build".into(),
        since: None,
        asked_by: "automatic, garbage share 52 % >= 50 %".into(),
        pack_seq: Some(1),
        cut_seq: Some(2),
        dead_objects: Some(40),
        base_hash: None,
        base_bytes: None,
        nodes: vec![node("n1", "waiting", 0.0), at_work],
    }
}

#[test]
fn a_pack_has_a_line_and_a_row_for_each_node() {
    let mut told = three();
    told.pack = Some(pack());
    let text = status(&told);
    for part in [
        "pack    to generation 4, build, 40 objects dropped (asked for by: automatic, garbage share 52 % >= 50 %)",
        "n1     waiting",
        "41.0 MiB",
        "100.0 MiB",
        "41%",
        "12.3 MB/s",
        "5 s",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert_eq!(pack_nodes_line(&pack()), "n1 waiting, n2 build 41% at 12.3 MB/s, 5 s left");
}

#[test]
fn garbage_and_what_is_kept_for_others_are_told() {
    let mut told = three();
    told.nodes[0].disk.garbage_bytes = 630;
    told.held_back = Some(crate::admin::generations::HeldBack {
        by: vec!["n2".into(), "n3".into()],
        generations: 2,
        bytes: 3 << 20,
    });
    let text = status(&told);
    assert!(text.contains("garbage about 41 %"), "{text}");
    let kept =
        "kept    older generations for n2 and n3, behind or not heard of: 2 of them, 3.0 MiB";
    assert!(text.contains(kept), "{text}");
}

fn decisions() -> History {
    let decision = |number, what: &str, waited| Decision {
        raft_index: None,
        number,
        time: Some("2026-01-01T00:00:00Z".into()),
        epoch: 4,
        what: what.into(),
        why: "n1 is dead: its port refuses. ".repeat(5),
        asked_by: "automatic".into(),
        node: Some("n2".into()),
        clients_waited_ms: waited,
    };
    let decisions = vec![decision(8, "fence", None), decision(9, "opened", Some(81.5))];
    History { version: 1, cluster: "shop".into(), decisions }
}

#[test]
fn history_is_short_and_explain_is_full() {
    let text = history(&decisions());
    assert!(text.contains("81.5 ms") && text.contains('…'), "{text}");
    let text = explain(&decisions(), 9);
    assert!(text.contains(&"n1 is dead: its port refuses. ".repeat(5)), "{text}");
    assert!(text.contains("clients waited 81.5 ms"), "{text}");
    assert!(text.contains("      8  2026-01-01T00:00:00Z  fence n2\n"), "{text}");
    assert!(text.contains(">     9"), "{text}");
    assert!(explain(&decisions(), 5).contains("no decision 5"));
    let empty = History { decisions: vec![], ..decisions() };
    assert_eq!(history(&empty), "nothing was decided yet\n");
}

#[test]
fn units_are_for_people() {
    assert_eq!(bytes(17), "17 B");
    assert_eq!(bytes(1536), "1.5 KiB");
    assert_eq!(bytes(5 << 40), "5.0 TiB");
    assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    assert_eq!(milliseconds(2345.0), "2.3 s");
    assert_eq!(seconds(999), "999 ms");
    assert_eq!(seconds(7_200_000), "2 h");
    assert_eq!(shorten("äöü", 2), "ä…");
}

#[test]
fn the_check_codes_are_those_of_monitoring_plugins() {
    let codes = [Verdict::Healthy, Verdict::Degraded, Verdict::Unavailable].map(check_code);
    assert_eq!(codes, [0, 1, 2]);
}
