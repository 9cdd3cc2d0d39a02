//! Tables for people: the worst first, nothing that is not needed at 3 a.m.

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, TableComponent};

use super::generations::Generations;
use super::history::{Decision, History};
use super::model::{NodeStatus, PackNode, PackStatus, Status, Verdict};

/// Longest text in the `why` column of the history; `--explain` tells it in full.
const WHY_CHARS_MAX: usize = 70;
/// Longest phase in the table of a pack; a node that failed says why at length.
const PHASE_CHARS_MAX: usize = 60;

/// The cluster at a glance: several lines, ending in a newline. Colours only on a terminal.
pub fn status(status: &Status) -> String {
    let mut out = format!("{} · {}\n", status.cluster, status.summary);
    if status.paused {
        out.push_str("!! PAUSED: nobody takes over by itself until `packmaster ctl resume`\n");
    }
    out.push_str(&format!("{}\n{}\n", facts(status), nodes(status)));
    if let Some(pack) = &status.pack {
        out.push_str(&format!("{}{}\n", pack_line(pack), pack_nodes(pack)));
    } else if let Some(who) = &status.pack_again {
        out.push_str(&format!("pack    called off by an election; starts again for {who}\n"));
    }
    out.push_str(&if_master_died(status));
    out.push_str(&status.durability_now.lines(&status.durability));
    out.push_str(&held_back(status));
    for command in &status.next {
        out.push_str(&format!("next    {command}\n"));
    }
    out
}

/// One line without a newline, for a place that is refreshed.
pub fn line(status: &Status) -> String {
    let master = status.master.as_deref().unwrap_or("none");
    let generation = status.generation.as_ref().map_or(0, |generation| generation.number);
    let seq = status.nodes.iter().map(|node| node.committed_seq).max().unwrap_or(0);
    let mut line = format!(
        "{} · master {master} · epoch {} · generation {generation} · seq {seq}",
        status.verdict.as_str(),
        status.epoch
    );
    for node in &status.nodes {
        let sign = match (node.answering, node.in_step) {
            (false, _) => "down".to_owned(),
            (true, true) => "ok".to_owned(),
            (true, false) => format!("-{}", node.lag.transactions),
        };
        line.push_str(&format!(" · {} {sign}", node.name));
    }
    if status.paused {
        line.push_str(" · PAUSED");
    }
    if status.durability != "majority" {
        line.push_str(&format!(" · durability {}", status.durability));
        match &status.durability_now {
            now if !now.waits_for.is_empty() => {
                line.push_str(&format!(", commits wait for {}", now.awaited()));
            }
            now if status.durability == "local" => {
                line.push_str(&format!(", {} transactions only on the master", now.only_on_master));
            }
            _ => {}
        }
    }
    if let Some(pack) = &status.pack {
        line.push_str(&format!(" · packing ({})", pack.phase));
    }
    line
}

fn facts(status: &Status) -> String {
    let master = status.master.as_deref().unwrap_or("NONE");
    let leader = status.raft_leader.as_deref().unwrap_or("NONE");
    let generation = match &status.generation {
        Some(generation) => {
            let hash = generation.base_hash.get(..8).unwrap_or("-");
            format!("{} ({hash}, cut at {})", generation.number, generation.cut_seq)
        }
        None => "none yet".to_owned(),
    };
    let garbage = status.master.as_deref().and_then(|name| status.node(name));
    let garbage = garbage.filter(|node| node.disk.file_bytes != 0);
    let garbage = garbage.map_or(String::new(), |node| {
        format!(" · garbage about {} %", node.disk.garbage_percent())
    });
    format!(
        "master {master} · epoch {} · generation {generation}{garbage} · durability {} · raft leader {leader}",
        status.epoch, status.durability
    )
}

fn nodes(status: &Status) -> Table {
    let mut table = plain_table();
    table.set_header([
        "node", "role", "state", "lag", "seq", "file", "free", "clients", "raft", "durus",
    ]);
    for node in &status.nodes {
        table.add_row([
            Cell::new(&node.name).add_attribute(Attribute::Bold),
            Cell::new(&node.role),
            Cell::new(&node.state).fg(colour(node)),
            Cell::new(lag(node)),
            Cell::new(node.seq),
            Cell::new(bytes(node.disk.file_bytes)),
            Cell::new(bytes(node.disk.free_bytes)),
            Cell::new(node.clients),
            Cell::new(&node.raft),
            Cell::new(&node.addresses.durus),
        ]);
    }
    table
}

/// Columns and one line under the header: the fewer lines, the more rows on a screen.
fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table
}

fn colour(node: &NodeStatus) -> Color {
    match node {
        NodeStatus { in_step: true, .. } => Color::Green,
        NodeStatus { answering: true, suspect: None, failing: None, .. } => Color::Yellow,
        _ => Color::Red,
    }
}

fn lag(node: &NodeStatus) -> String {
    match (node.answering, node.seen_ms_ago) {
        (true, _) if node.lag.transactions == 0 => "-".to_owned(),
        (true, _) => format!("{} tx, {}", node.lag.transactions, bytes(node.lag.bytes)),
        (false, Some(ms)) => format!("seen {} ago", seconds(ms)),
        (false, None) => "?".to_owned(),
    }
}

fn held_back(status: &Status) -> String {
    let Some(held) = &status.held_back else { return String::new() };
    format!(
        "kept    older generations for {}, behind or not heard of: {} of them, {}\n",
        held.by.join(" and "),
        held.generations,
        bytes(held.bytes)
    )
}

/// What the pack as a whole is at; a line without indentation, ending in a newline.
pub fn pack_line(pack: &PackStatus) -> String {
    let dead = pack.dead_objects.map_or(String::new(), |dead| format!(", {dead} objects dropped"));
    format!(
        "pack    to generation {}, {}{dead} (asked for by: {})\n",
        pack.generation, pack.phase, pack.asked_by
    )
}

/// A row for each node: phase, share, rate, time left.
pub fn pack_nodes(pack: &PackStatus) -> Table {
    let mut table = plain_table();
    table.set_header(["        node", "phase", "done", "of", "share", "rate", "left"]);
    for node in &pack.nodes {
        let at_work = node.total_bytes.is_some();
        let when = |text: String| if at_work { text } else { "-".to_owned() };
        table.add_row([
            format!("        {}", node.name),
            shorten(&node.phase, PHASE_CHARS_MAX),
            when(bytes(node.done_bytes)),
            node.total_bytes.map_or("-".to_owned(), bytes),
            when(format!("{:.0}%", node.percent)),
            when(rate(node.bytes_per_s)),
            node.seconds_left.map_or("-".to_owned(), |left| seconds((left * 1000.0) as u64)),
        ]);
    }
    table
}

/// The same in one line, for logs.
pub fn pack_nodes_line(pack: &PackStatus) -> String {
    let node = |node: &PackNode| match (node.total_bytes, node.seconds_left) {
        (Some(_), Some(left)) => format!(
            "{} {} {:.0}% at {}, {} left",
            node.name,
            node.phase,
            node.percent,
            rate(node.bytes_per_s),
            seconds((left * 1000.0) as u64)
        ),
        (Some(_), None) => format!("{} {} {:.0}%", node.name, node.phase, node.percent),
        _ => format!("{} {}", node.name, node.phase),
    };
    pack.nodes.iter().map(node).collect::<Vec<_>>().join(", ")
}

/// "12.3 MB/s".
fn rate(bytes_per_s: u64) -> String {
    format!("{:.1} MB/s", bytes_per_s as f64 / 1e6)
}

fn if_master_died(status: &Status) -> String {
    let fate = &status.if_master_died;
    let Some(master) = &status.master else { return String::new() };
    if status.nodes.len() == 1 {
        return String::new();
    }
    let mut line = match &fate.winner {
        Some(winner) => format!("if {master} died, {winner} would take over"),
        None => format!("if {master} died, NOBODY could take over"),
    };
    match fate.transactions_at_risk {
        0 => line.push_str(", nothing acknowledged lost"),
        n => line.push_str(&format!(", {n} ACKNOWLEDGED COMMITS LOST")),
    }
    for other in &fate.others {
        line.push_str(&format!("\n        {}: {}", other.name, other.why));
    }
    if status.paused {
        line.push_str("\n        but not by itself: automatic elections are paused");
    }
    format!("safety  {line}\n")
}

/// What each node holds; ends in a newline.
pub fn generations(told: &Generations) -> String {
    let mut table = plain_table();
    table.set_header([
        "node",
        "generation",
        "base",
        "cut",
        "since (UTC)",
        "size",
        "why it is kept",
    ]);
    for node in &told.nodes {
        let mut name = match node.answering {
            true => node.name.clone(),
            false => format!("{} (silent)", node.name),
        };
        for kept in &node.generations {
            let hash = kept.base_hash.as_deref().and_then(|hash| hash.get(..8));
            table.add_row([
                std::mem::take(&mut name),
                kept.number.to_string(),
                hash.unwrap_or("?").to_owned(),
                kept.cut_seq.map_or("?".to_owned(), |cut| cut.to_string()),
                kept.since.clone().unwrap_or_else(|| "?".to_owned()),
                bytes(kept.bytes),
                kept.why.clone(),
            ]);
        }
        if node.generations.is_empty() {
            table.add_row([name.as_str(), "?", "", "", "", "", "nothing was heard of it"]);
        }
    }
    let mut out = format!("{table}\n");
    if !told.held_back_by.is_empty() {
        out.push_str(&format!(
            "{} has not moved on to the current generation: what it needs stays on the other nodes until it has\n",
            told.held_back_by.join(" and ")
        ));
    }
    out
}

/// Newest last, as a log; ends in a newline.
pub fn history(history: &History) -> String {
    if history.decisions.is_empty() {
        return "nothing was decided yet\n".to_owned();
    }
    let mut table = plain_table();
    table.set_header(["no", "time (UTC)", "epoch", "what", "node", "asked by", "waited", "why"]);
    for decision in &history.decisions {
        table.add_row([
            decision.number.to_string(),
            decision.time.clone().unwrap_or_else(|| "?".to_owned()),
            decision.epoch.to_string(),
            decision.what.clone(),
            decision.node.clone().unwrap_or_default(),
            decision.asked_by.clone(),
            decision.clients_waited_ms.map(milliseconds).unwrap_or_default(),
            shorten(&decision.why, WHY_CHARS_MAX),
        ]);
    }
    format!("{table}\n")
}

/// One decision in full, and the others of its epoch in short.
pub fn explain(history: &History, number: u64) -> String {
    let Some(decision) = history.decisions.iter().find(|told| told.number == number) else {
        return format!("no decision {number} is kept\n");
    };
    let mut out = format!("decision {number}: {}\n", decision.what);
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("  {name:<10}{value}\n"));
        }
    };
    row("time", decision.time.as_deref().unwrap_or("unknown"));
    row("epoch", &decision.epoch.to_string());
    row("node", decision.node.as_deref().unwrap_or(""));
    row("asked by", &decision.asked_by);
    row("why", &decision.why);
    row("waited", &decision.clients_waited_ms.map(waited).unwrap_or_default());
    out.push_str(&format!("all of epoch {}:\n", decision.epoch));
    for told in &history.decisions {
        out.push_str(&story_line(told, told.number == number));
    }
    out
}

fn story_line(told: &Decision, this: bool) -> String {
    let mark = if this { '>' } else { ' ' };
    let node = told.node.as_deref().map_or(String::new(), |node| format!(" {node}"));
    let waited = told.clients_waited_ms.map(|ms| format!(" after {}", milliseconds(ms)));
    let time = told.time.as_deref().unwrap_or("?");
    format!(
        "{mark} {:>5}  {time}  {}{node}{}\n",
        told.number,
        told.what,
        waited.unwrap_or_default()
    )
}

fn waited(ms: f64) -> String {
    format!("clients waited {}, from the old master's last word to the opening", milliseconds(ms))
}

/// "81.5 ms", "2.3 s".
pub fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

fn seconds(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// "17 B", "1.5 MiB".
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn shorten(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max - 1).collect();
    format!("{kept}…")
}

/// 0, 1 or 2, as monitoring plugins expect.
pub fn check_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Healthy => 0,
        Verdict::Degraded => 1,
        Verdict::Unavailable => 2,
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
