//! The one line at the top of a status, and the commands suggested under it.

use super::model::{NodeStatus, PackNode, Status, Verdict};
use super::room;
use super::view::ClusterView;
use crate::types::NodeId;

/// Whether the data is safe and how much more is survived, in one line.
pub(super) fn summary(view: &ClusterView, status: &Status) -> String {
    let mut line = match status.verdict {
        Verdict::Healthy => healthy(status),
        Verdict::Degraded => degraded(view, status),
        Verdict::Unavailable => unavailable(view, status),
    };
    let lost = status.durability_now.lost_transactions;
    if lost > 0 {
        line.push_str(&format!(
            " Up to {lost} acknowledged transactions were LOST so far, with durability local."
        ));
    }
    if status.paused {
        line.insert_str(0, "PAUSED (no automatic failover). ");
    }
    for node in &status.nodes {
        line.push_str(&disbelieved(node));
    }
    line
}

/// In whose name something came that can't be true: a broken node, or somebody who speaks in its name.
fn disbelieved(node: &NodeStatus) -> String {
    /// It stays in the node's row after that.
    const NEWS_SECONDS: f64 = 3600.0;
    let newest = node.disbelieved.iter().min_by(|a, b| a.seconds_ago.total_cmp(&b.seconds_ago));
    let Some(newest) = newest.filter(|it| it.seconds_ago < NEWS_SECONDS) else {
        return String::new();
    };
    format!(
        " {} sends what can't be true: {}, says {}, {:.0} s ago; it was not believed.",
        node.name, newest.what, newest.seen_by, newest.seconds_ago
    )
}

fn healthy(status: &Status) -> String {
    let master = status.master.as_deref().unwrap_or("nobody");
    format!("Healthy: {master} is master, all nodes are in step. {}", safety(status))
}

fn degraded(view: &ClusterView, status: &Status) -> String {
    let master = status.master.as_deref().unwrap_or("nobody");
    let missing = out_of_step(view, status);
    format!("Degraded: {master} is master, but {missing}. {}", safety(status))
}

/// "n2 is down and n3 is catching up": every voter that does not count, and why.
fn out_of_step(view: &ClusterView, status: &Status) -> String {
    let voters = view.voters();
    let away = voters.iter().filter(|&&id| !view.in_step(id)).map(|&id| {
        let name = view.name(id);
        let state = status.node(&name).map_or("unknown", |node| node.state.as_str());
        format!("{name} is not in step ({state})")
    });
    let away: Vec<String> = away.collect();
    away.join(" and ")
}

/// What an acknowledgement is worth now, and what more may happen.
fn safety(status: &Status) -> String {
    let worth = match status.durability.as_str() {
        "local" => {
            let now = &status.durability_now;
            let risk = status.if_master_died.transactions_at_risk.max(now.only_on_master);
            let oldest = match now.only_on_master {
                0 => String::new(),
                _ => format!(" (the oldest for {} ms)", now.only_on_master_ms),
            };
            format!(
                "Durability is local: {risk} acknowledged commits are only on the master{oldest} and would be lost with it."
            )
        }
        "all" => "Data is safe: every acknowledged commit is on every voter.".to_owned(),
        _ => "Data is safe: every acknowledged commit is on a majority.".to_owned(),
    };
    let more = match status.survives_failures {
        _ if status.nodes.len() == 1 => "One node alone survives no failure.".to_owned(),
        0 => "No further failure is survived.".to_owned(),
        1 => "One more failure is survived.".to_owned(),
        n => format!("{n} more failures are survived."),
    };
    format!("{worth} {more}")
}

/// Why commits wait, and what that means for the data.
fn unavailable(view: &ClusterView, status: &Status) -> String {
    let now = &status.durability_now;
    if !now.waits_for.is_empty() && view.in_step_voters().len() >= view.majority() {
        let since = match now.waits_ms {
            0 => String::new(),
            ms => format!(" (for {:.1} s)", ms as f64 / 1000.0),
        };
        let away = now.awaited();
        return format!(
            "Commits wait for {away}{since}: durability is all. Reads go on, and nothing acknowledged is lost. Bring {away} \
             back, or go on without: packmaster ctl config set durability majority."
        );
    }
    let state = &view.state;
    let why = match (&state.fencing, view.mastership()) {
        (Some(fence), _) => format!("epoch {} is fenced, nobody is elected yet", fence.epoch),
        (None, None) => "no master was elected yet".to_owned(),
        (None, Some(elect)) => of_master(view, NodeId(elect.master)),
    };
    let answering = status.nodes.iter().filter(|node| node.answering).count();
    let all = status.nodes.len();
    let safe = match status.durability.as_str() {
        "local" => "Durability is local: what only a lost master had would be lost",
        _ => "Nothing acknowledged is lost: it is on a majority",
    };
    let mut line = format!(
        "Unavailable, commits wait: {why}. {answering} of {all} nodes answer {}. {safe}.",
        status.answered_by
    );
    for node in &status.nodes {
        // Up to its first colon it says what is wrong, after that what follows from it.
        if let Some(why) = node.suspect.as_ref().and_then(|why| why.split(':').next()) {
            line.push_str(&format!(" {} takes no part: {why}.", node.name));
        }
    }
    line
}

fn of_master(view: &ClusterView, master: NodeId) -> String {
    let name = view.name(master);
    if view.fresh_beat(master).is_none() {
        format!("{name} is master and does not answer")
    } else if view.open_master().is_none() {
        format!("{name} is elected and has not opened yet")
    } else {
        let (have, need) = (view.in_step_voters().len(), view.majority());
        format!("{name} is master, but only {have} of the {need} voters it needs are in step")
    }
}

/// Commands worth typing now, most urgent first.
pub(super) fn next(view: &ClusterView, status: &Status) -> Vec<String> {
    let mut next = Vec::new();
    for node in &status.nodes {
        next.extend(for_node(node));
    }
    if !status.durability_now.waits_for.is_empty() {
        let away = status.durability_now.awaited();
        next.push(format!(
            "packmaster ctl config set durability majority  # commits go on without {away}"
        ));
    }
    if status.verdict == Verdict::Unavailable {
        next.push("packmaster ctl history  # what led here".to_owned());
    }
    if status.paused {
        next.push("packmaster ctl resume  # automatic failover is off".to_owned());
    }
    if let Some(pack) = &status.pack {
        // Without a node whose base was outvoted the pack goes on.
        let is_odd = |name: &str| status.node(name).is_some_and(|node| node.odd_build.is_some());
        let failed = |node: &PackNode| node.phase.starts_with("failed") && !is_odd(&node.name);
        if pack.nodes.iter().any(failed) {
            next.push("packmaster ctl pack --cancel  # a node can't pack, see its log".to_owned());
        } else {
            next.push("packmaster ctl pack --wait  # follow the pack".to_owned());
        }
    }
    if status.held_back.is_some() {
        next.push("packmaster ctl generations  # what is kept, and for whom".to_owned());
    }
    next.extend(better_master(view, status));
    next
}

fn for_node(node: &NodeStatus) -> Option<String> {
    let host = node.addresses.peer.rsplit_once(':').map_or("its host", |(host, _)| host);
    let name = &node.name;
    if !node.answering {
        return Some(format!("systemctl restart packmaster  # on {host}: {name} does not answer"));
    }
    if let Some(why) = &node.suspect {
        // A file that recovers, or that a person must look at, is one thing; a memory that is gone is another.
        let forgotten = ["Raft log", "promised", "disk is not"].iter().any(|it| why.contains(it));
        return Some(match forgotten {
            true => format!(
                "systemctl stop packmaster  # on {host}: {name} has lost its memory; put its data directory back as it was"
            ),
            false => format!("packmaster shelf verify FILE  # on {host}: {name} is suspect"),
        });
    }
    // What a node says of itself when it is failing is of its disk.
    if let Some(why) = &node.failing {
        return Some(format!("df -h  # on {host}: {name} is failing: {why}"));
    }
    if let Some(why) = &node.odd_build {
        return Some(format!("packmaster shelf verify FILE  # on {host}: {name}: {why}"));
    }
    let disk = &node.disk;
    // 0 of both: not told.
    let told = (disk.free_bytes, disk.file_bytes) != (0, 0);
    let short = room::enough(disk.free_bytes, disk.pack_needs_bytes).err().filter(|_| told);
    short.map(|why| format!("df -h  # on {host}: {name} {why}"))
}

/// Somebody of higher priority is in step: mastership may go home.
fn better_master(view: &ClusterView, status: &Status) -> Option<String> {
    let master = status.node(status.master.as_deref()?)?;
    let ready = status.nodes.iter().filter(|node| node.eligible && node.in_step);
    let best = ready.max_by_key(|node| node.priority)?;
    (best.priority > master.priority && view.state.pack.is_none()).then(|| {
        let (name, priority) = (&best.name, best.priority);
        format!("packmaster ctl promote {name}  # has priority {priority} and is in step")
    })
}
