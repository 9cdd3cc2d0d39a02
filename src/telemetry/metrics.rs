//! The status as Prometheus reads it: gauges of this node, and what it can say of the cluster.

use std::fmt::Write;

use crate::admin::model::{NodeStatus, PackNode, RebaseStatus, Status, Verdict};

/// Prometheus text exposition format 0.0.4.
pub fn text(status: &Status) -> String {
    let mut out = Exposition::default();
    cluster(status, &mut out);
    if let Some(own) = status.own() {
        node(status, own, &mut out);
    }
    out.family("packmaster_peer_seen_seconds", "Seconds since a member was last heard of.");
    for node in &status.nodes {
        if let Some(ms) = node.seen_ms_ago {
            out.labelled("packmaster_peer_seen_seconds", "node", &node.name, ms as f64 / 1000.0);
        }
    }
    out.family(
        "packmaster_disbelieved",
        "Numbers in a member's name that this node did not believe.",
    );
    for node in &status.nodes {
        let own = node.disbelieved.iter().filter(|it| it.seen_by == status.answered_by);
        let times: u64 = own.map(|it| it.times).sum();
        out.labelled("packmaster_disbelieved", "node", &node.name, times as f64);
    }
    if let Some(pack) = &status.pack {
        packing(&pack.nodes, &mut out);
    }
    out.0
}

/// The pack in progress, node by node, each in its phase.
fn packing(nodes: &[PackNode], out: &mut Exposition) {
    type Value = fn(&PackNode) -> Option<f64>;
    let families: [(&str, &str, Value); 4] = [
        ("packmaster_pack_done_bytes", "Read and written in this phase of the pack.", |node| {
            Some(node.done_bytes as f64)
        }),
        ("packmaster_pack_total_bytes", "The same at the phase's end, about.", |node| {
            node.total_bytes.map(|bytes| bytes as f64)
        }),
        ("packmaster_pack_bytes_per_second", "In this phase of the pack.", |node| {
            Some(node.bytes_per_s as f64)
        }),
        ("packmaster_pack_left_seconds", "To the end of the phase, at that rate.", |node| {
            node.seconds_left
        }),
    ];
    for (name, help, value) in families {
        out.family(name, help);
        for node in nodes {
            if let Some(value) = value(node) {
                let phase = node.phase.split(':').next().unwrap_or_default();
                let labels = format!("node=\"{}\",phase=\"{}\"", escape(&node.name), escape(phase));
                let _ = writeln!(out.0, "{name}{{{labels}}} {value}");
            }
        }
    }
}

fn cluster(status: &Status, out: &mut Exposition) {
    let verdict = match status.verdict {
        Verdict::Healthy => 0,
        Verdict::Degraded => 1,
        Verdict::Unavailable => 2,
    };
    let generation = status.generation.as_ref().map_or(0, |generation| generation.number);
    out.gauge("verdict", "0 healthy, 1 degraded, 2 unavailable, as this node sees it.", verdict);
    out.gauge("epoch", "Epoch of the newest fence.", status.epoch);
    out.gauge("generation", "Agreed generation.", generation);
    out.gauge(
        "survives_failures",
        "Nodes that may still fail with commits going on.",
        status.survives_failures,
    );
    out.gauge("paused", "1: no automatic elections.", u8::from(status.paused));
    out.gauge("packing", "1: a pack is in progress.", u8::from(status.pack.is_some()));
    let risk = status.if_master_died.transactions_at_risk;
    out.gauge("transactions_at_risk", "Acknowledged, but only on the master.", risk);
    let now = &status.durability_now;
    out.family("packmaster_durability", "The cluster setting, as a label; always 1.");
    out.labelled("packmaster_durability", "setting", &status.durability, 1.0);
    let name = "only_on_master_transactions";
    out.gauge(name, "Acknowledged, and no majority is known to have them.", now.only_on_master);
    let seconds = now.only_on_master_ms as f64 / 1000.0;
    out.gauge("only_on_master_seconds", "How long the oldest of them has been so.", seconds);
    let seconds = now.waits_ms as f64 / 1000.0;
    out.gauge("commits_wait_seconds", "How long commits have waited for every voter.", seconds);
    let lost = now.lost_transactions;
    out.gauge("lost_transactions", "Acknowledged ones that were ever lost, at most.", lost);
    let held = status.held_back.as_ref();
    out.gauge(
        "held_back_bytes",
        "Older generations kept only for members that have not moved on.",
        held.map_or(0, |held| held.bytes),
    );
    out.gauge("decisions", "Decisions ever made.", status.decisions);
}

fn node(status: &Status, own: &NodeStatus, out: &mut Exposition) {
    let is_master = status.master.as_ref() == Some(&own.name);
    out.family("packmaster_node_info", "Which node and version this is.");
    let labels = format!("node=\"{}\",version=\"{}\"", escape(&own.name), escape(&own.version));
    let _ = writeln!(out.0, "packmaster_node_info{{{labels}}} 1");
    out.gauge("is_master", "1: this node is the open master.", u8::from(is_master));
    out.gauge("is_raft_leader", "1: this node leads Raft.", u8::from(own.raft == "leader"));
    out.gauge("in_step", "1: open master, or follows it.", u8::from(own.in_step));
    out.gauge("suspect", "1: neither votes nor acknowledges.", u8::from(own.suspect.is_some()));
    out.gauge("failing", "1: can't make progress.", u8::from(own.failing.is_some()));
    out.gauge("eligible", "1: could become master.", u8::from(own.eligible));
    out.gauge("durable_seq", "Newest transaction on this node's disk.", own.durable_seq);
    out.gauge("committed_seq", "Newest transaction known to be committed.", own.committed_seq);
    out.gauge("lag_transactions", "Behind the newest known commit.", own.lag.transactions);
    out.gauge("lag_bytes", "Behind the newest known commit.", own.lag.bytes);
    out.gauge("lag_seconds", "Behind the newest known commit.", own.lag.seconds);
    out.gauge("clients", "Connected Durus clients.", own.clients);
    out.gauge("file_bytes", "Size of the database file.", own.disk.file_bytes);
    out.gauge(
        "garbage_bytes",
        "Of the file, about: what a pack would not keep.",
        own.disk.garbage_bytes,
    );
    out.gauge(
        "pack_needs_bytes",
        "What must be free on the disk for a pack.",
        own.disk.pack_needs_bytes,
    );
    out.gauge("disk_free_bytes", "Free on the file's disk.", own.disk.free_bytes);
    let verified = own.verified.as_ref().map_or(0, |verified| verified.seq);
    out.gauge("verified_seq", "The file was re-verified up to here.", verified);
    out.gauge(
        "rebase_fetched_bytes",
        "File data that rebases took over the wire.",
        own.fetched_bytes,
    );
    ladder(&own.rebases, out);
}

fn ladder(rebases: &RebaseStatus, out: &mut Exposition) {
    let rungs = [("local", rebases.local), ("tail", rebases.tail), ("base", rebases.base)];
    out.family("packmaster_rebases", "Rebases done since start, by the rung of the ladder.");
    for (rung, tally) in rungs {
        out.labelled("packmaster_rebases", "rung", rung, tally.finished as f64);
    }
    out.family("packmaster_rebase_wire_bytes", "File data over the wire since start, by rung.");
    for (rung, tally) in rungs {
        out.labelled("packmaster_rebase_wire_bytes", "rung", rung, tally.wire_bytes as f64);
    }
    let reused = rebases.reused_bytes;
    out.gauge("rebase_reused_bytes", "Of bases: here from a fetch that was interrupted.", reused);
    let refused = rebases.refused_bytes;
    out.gauge("rebase_refused_bytes", "Of bases: blocks that were not as they should be.", refused);
    out.gauge("rebase_given_bytes", "Of bases: given to other nodes.", rebases.given_bytes);
    let now = rebases.now.as_ref();
    out.gauge("rebasing", "1: a rebase is in progress.", u8::from(now.is_some()));
    let Some(now) = now else { return };
    out.gauge("rebase_progress_bytes", "Done of the present step.", now.bytes);
    if let Some(total) = now.total_bytes {
        out.gauge("rebase_progress_total_bytes", "Of the present step.", total);
    }
    if let Some(rate) = now.bytes_per_second {
        out.gauge("rebase_bytes_per_second", "Lately.", rate);
    }
    if let Some(left) = now.seconds_left {
        out.gauge("rebase_seconds_left", "At that rate.", left);
    }
}

/// The limits: key, value (a count, bytes, or seconds), and how often each was reached since the process started.
pub fn limits(all: &[(&'static str, f64, u64)]) -> String {
    let mut out = Exposition::default();
    const LIMIT: &str = "packmaster_limit";
    const HITS: &str = "packmaster_limit_hits_total";
    out.family(LIMIT, "A key of [limits] in the configuration: a count, bytes, or seconds.");
    for (key, value, _) in all {
        out.labelled(LIMIT, "limit", key, *value);
    }
    let help = "How often the limit closed a connection since this process started.";
    let _ = writeln!(out.0, "# HELP {HITS} {help}\n# TYPE {HITS} counter");
    for (key, _, hits) in all {
        out.labelled(HITS, "limit", key, *hits as f64);
    }
    out.0
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        let name = format!("packmaster_{name}");
        self.family(&name, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn labelled(&mut self, name: &str, label: &str, of: &str, value: f64) {
        let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} {value}", escape(of));
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
