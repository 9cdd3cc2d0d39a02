//! The status of the cluster as one node sees it: a pure function of what that node knows.

use super::eligible::{Candidate, eligible, winner};
use super::model::{
    Addresses, Disbelieved, DiskStatus, GenerationStatus, IfMasterDied, Lag, LastRebase, Loser,
    NodeStatus, PackNode, PackStatus, Phase, PromoteStatus, RebaseNow, RebaseStatus, RungStatus,
    Status, Verdict, Verified,
};
use super::view::{ClusterView, Heard};
use super::{durability, generations, hex, rfc3339, room, summary};
use crate::proto::control::{Beat, GenerationRecord, Member, PackState, Rebases, Rung, RungNow};
use crate::proto::replication::{Position, Tip};
use crate::types::NodeId;

/// Of the JSON's layout.
const VERSION: u32 = 1;

/// Everything `interface.md` promises to scripts, computed from `view` alone.
pub fn status(view: &ClusterView) -> Status {
    let state = &view.state;
    let mut status = Status {
        version: VERSION,
        cluster: view.cluster.clone(),
        verdict: verdict(view),
        summary: String::new(),
        survives_failures: survives_failures(view),
        epoch: state.epoch,
        generation: state.generations.last().map(generation),
        master: view.open_master().map(|id| view.name(id)),
        raft_leader: view.raft_leader.map(|id| view.name(id)),
        durability: view.durability.clone(),
        durability_now: durability::durability(view),
        paused: state.paused,
        pack: state.pack.as_ref().map(|pack| pack_status(view, pack)),
        pack_again: Some(state.pack_again.clone()).filter(|who| !who.is_empty()),
        promote: promote(view),
        if_master_died: if_master_died(view),
        held_back: generations::held_back(view),
        nodes: state.members.iter().map(|member| node(view, member)).collect(),
        next: Vec::new(),
        answered_by: view.name(view.own),
        phase: phase(view),
        decisions: state.decisions,
    };
    status.summary = summary::summary(view, &status);
    status.next = summary::next(view, &status);
    status
}

fn promote(view: &ClusterView) -> Option<PromoteStatus> {
    let told = view.fresh_beat(view.raft_leader?)?.promote.as_ref()?;
    Some(PromoteStatus {
        id: told.id,
        node: view.name(NodeId(told.target)),
        asked_by: told.asked_by.clone(),
        lacks_bytes: told.lacks_bytes,
        called_off: Some(told.called_off.clone()).filter(|why| !why.is_empty()),
    })
}

fn verdict(view: &ClusterView) -> Verdict {
    let voters = view.voters().len();
    let in_step = view.in_step_voters().len();
    let commits_wait = !durability::durability(view).waits_for.is_empty();
    if view.open_master().is_none() || in_step < view.majority() || commits_wait {
        Verdict::Unavailable
    } else if in_step < voters {
        Verdict::Degraded
    } else {
        Verdict::Healthy
    }
}

/// How many more nodes, chosen by an enemy, may fail with commits going on.
fn survives_failures(view: &ClusterView) -> u32 {
    if verdict(view) == Verdict::Unavailable {
        return 0;
    }
    // With durability `all` the next node that fails stops commits until it is back or out of the voters.
    if view.durability == "all" {
        return 0;
    }
    let in_step = view.in_step_voters();
    // The enemy takes those first that could replace the master.
    let heirs = in_step
        .iter()
        .filter(|&&id| view.member(id).is_some_and(|member| fit(view, member).is_ok()));
    let spare = in_step.len() - view.majority();
    spare.min(heirs.count().saturating_sub(1)) as u32
}

fn phase(view: &ClusterView) -> Phase {
    match (&view.state.fencing, &view.state.mastership, view.state.opened) {
        (Some(_), _, _) => Phase::Fencing,
        (None, None, _) => Phase::None,
        (None, Some(_), false) => Phase::Elected,
        (None, Some(_), true) => Phase::Open,
    }
}

fn generation(record: &GenerationRecord) -> GenerationStatus {
    GenerationStatus {
        number: record.number,
        base_hash: hex(&record.base_hash),
        cut_seq: record.cut_seq,
        since: rfc3339(record.since_wall_us),
    }
}

/// The same comparison as an election makes, over the newest beats and without the present master.
fn if_master_died(view: &ClusterView) -> IfMasterDied {
    let master = view.mastership().map(|elect| NodeId(elect.master));
    let mut candidates = Vec::new();
    let mut others = Vec::new();
    for member in view.state.members.iter().filter(|member| Some(NodeId(member.id)) != master) {
        match fit(view, member) {
            Ok(beat) => candidates.push(candidate(member, beat)),
            Err(why) => others.push(Loser { name: member.name.clone(), why }),
        }
    }
    let won = winner(&candidates);
    if let Some(won) = &won {
        let name = view.name(won.node);
        for lost in candidates.iter().filter(|lost| lost.node != won.node) {
            others.push(Loser { name: view.name(lost.node), why: lost.loses_because(won, &name) });
        }
    }
    // An election needs reports of a majority of the voters: without it nobody wins, however good.
    let reports = view.voters().into_iter().filter(|&id| Some(id) != master);
    let clean = reports.filter(|&id| {
        view.fresh_beat(id).is_some_and(|beat| beat.suspect.is_empty() && beat.failing.is_empty())
    });
    if clean.count() < view.majority() {
        if let Some(won) = won {
            let why = "no majority of the voters would be left to elect it".to_owned();
            others.insert(0, Loser { name: view.name(won.node), why });
        }
        return IfMasterDied { winner: None, transactions_at_risk: 0, others };
    }
    IfMasterDied {
        winner: won.map(|won| view.name(won.node)),
        transactions_at_risk: at_risk(view, master, won.as_ref()),
        others,
    }
}

/// The beat that makes it eligible, or why it is not.
fn fit<'a>(view: &'a ClusterView, member: &Member) -> Result<&'a Beat, String> {
    let beat = view.fresh_beat(NodeId(member.id)).ok_or("it does not answer")?;
    eligible(member, beat, &view.state).map(|()| beat)
}

fn candidate(member: &Member, beat: &Beat) -> Candidate {
    let tip = tip(beat);
    Candidate {
        node: NodeId(member.id),
        order: (tip.epoch, tip.seq),
        requested: false,
        priority: member.priority,
        master: false,
    }
}

/// With `majority` and `all`, whoever wins has every acknowledged transaction. With `local` the master acknowledges
/// what it alone has; and what it has acknowledged stays so when the setting is changed back.
fn at_risk(view: &ClusterView, master: Option<NodeId>, winner: Option<&Candidate>) -> u64 {
    let (Some(master), Some(winner)) = (master.and_then(|id| view.beat(id)), winner) else {
        return 0;
    };
    let acknowledged = match view.durability.as_str() {
        "local" => tip(master).seq.max(master.acknowledged_seq),
        _ if master.acknowledged_seq > master.committed_seq => master.acknowledged_seq,
        _ => return 0,
    };
    acknowledged.saturating_sub(winner.order.1)
}

fn node(view: &ClusterView, member: &Member) -> NodeStatus {
    let id = NodeId(member.id);
    let last_known = Beat::default();
    let beat = view.beat(id).unwrap_or(&last_known);
    let position = position(beat);
    let tip = tip(beat);
    let answering = view.fresh_beat(id).is_some();
    let fit = fit(view, member);
    NodeStatus {
        name: member.name.clone(),
        role: role(view, member),
        state: state(view, id),
        epoch: beat.promised,
        generation: position.generation,
        seq: tip.seq,
        offset: tip.offset,
        chain: hex(&tip.chain),
        durable_seq: tip.seq,
        committed_seq: beat.committed_seq,
        lag: lag(view, beat),
        verified: (beat.verified_wall_us != 0)
            .then(|| Verified { seq: beat.verified_seq, at: rfc3339(beat.verified_wall_us) }),
        eligible: fit.is_ok(),
        why_not: fit.err(),
        raft: raft(view, id).to_owned(),
        clients: if answering { beat.clients } else { 0 },
        disk: DiskStatus {
            file_bytes: beat.file_bytes,
            free_bytes: beat.free_bytes,
            garbage_bytes: beat.garbage_bytes,
            pack_needs_bytes: room::for_pack(beat.file_bytes, beat.garbage_bytes),
        },
        seen_ms_ago: view.heard.get(&id).map(|heard| heard.age_ms),
        version: beat.version.clone(),
        addresses: Addresses {
            durus: member.durus.clone(),
            peer: member.peer.clone(),
            http: member.http.clone(),
        },
        answering,
        in_step: view.in_step(id),
        written_seq: beat.written_seq,
        priority: member.priority,
        suspect: said(&beat.suspect),
        failing: said(&beat.failing),
        fetched_bytes: beat.fetched_bytes,
        rebase: said(&beat.rebase),
        rebases: beat.rebases.as_deref().map(rebases).unwrap_or_default(),
        odd_build: odd_build(view, member),
        disbelieved: disbelieved(view, id),
    }
}

fn odd_build(view: &ClusterView, member: &Member) -> Option<String> {
    let odd = view.state.odd_builds.iter().find(|odd| odd.node == member.id)?;
    Some(format!(
        "for generation {} it built base {}, and two others built another one: check or replace its disk and memory",
        odd.generation,
        hex(&odd.base_hash)
    ))
}

fn disbelieved(view: &ClusterView, id: NodeId) -> Vec<Disbelieved> {
    let seen = |(by, heard): (&NodeId, &Heard)| {
        let of_it = heard.beat.disbeliefs.iter().find(|it| it.node == id.0)?;
        let age_ms = of_it.age_ms.saturating_add(heard.age_ms);
        Some(Disbelieved {
            seen_by: view.name(*by),
            what: of_it.what.clone(),
            seconds_ago: age_ms as f64 / 1000.0,
            times: of_it.times,
        })
    };
    view.heard.iter().filter_map(seen).collect()
}

fn rebases(told: &Rebases) -> RebaseStatus {
    let rung = |rung: Rung| {
        let tally = told.rungs.iter().find(|tally| tally.rung() == rung);
        tally.map_or(RungStatus::default(), |tally| RungStatus {
            finished: tally.finished,
            wire_bytes: tally.wire_bytes,
        })
    };
    let last = LastRebase {
        rung: rung_name(told.last()).to_owned(),
        generation: told.last_generation,
        wire_bytes: told.last_bytes,
        seconds: told.last_ms as f64 / 1000.0,
    };
    RebaseStatus {
        local: rung(Rung::Local),
        tail: rung(Rung::Tail),
        base: rung(Rung::Base),
        reused_bytes: told.reused_bytes,
        refused_bytes: told.refused_bytes,
        given_bytes: told.given_bytes,
        last: Some(last).filter(|_| told.last() != Rung::NoRung),
        now: told.now.as_ref().map(rebase_now),
    }
}

fn rebase_now(now: &RungNow) -> RebaseNow {
    let known = |number: u64| Some(number).filter(|number| *number > 0);
    let share = |total: u64| now.done_bytes.min(total) as f64 / total as f64;
    RebaseNow {
        rung: rung_name(now.rung()).to_owned(),
        generation: now.generation,
        doing: now.doing.clone(),
        bytes: now.done_bytes,
        total_bytes: known(now.total_bytes),
        share: known(now.total_bytes).map(share),
        bytes_per_second: known(now.bytes_per_s),
        seconds_left: known(now.bytes_per_s).map(|_| now.left_ms as f64 / 1000.0),
    }
}

fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::NoRung => "none",
        Rung::Local => "local",
        Rung::Tail => "tail",
        Rung::Base => "base",
    }
}

fn role(view: &ClusterView, member: &Member) -> String {
    let elected = view.mastership().is_some_and(|elect| elect.master == member.id);
    match member.role.as_str() {
        _ if elected => "master".to_owned(),
        "voter" => "slave".to_owned(),
        other => other.to_owned(),
    }
}

/// In the order of what a person must know first.
fn state(view: &ClusterView, id: NodeId) -> String {
    if view.refused.contains(&id) && id != view.own {
        return "down: its port refuses connections".to_owned();
    }
    let Some(beat) = view.fresh_beat(id) else {
        return match view.heard.get(&id) {
            Some(heard) => format!("silent for {:.1} s", heard.age_ms as f64 / 1000.0),
            None => "never heard".to_owned(),
        };
    };
    if !beat.suspect.is_empty() {
        return format!("suspect: {}", beat.suspect);
    }
    if !beat.failing.is_empty() {
        return format!("failing: {}", beat.failing);
    }
    if beat.leaving {
        return "stopping".to_owned();
    }
    if !beat.state.is_empty() {
        return beat.state.clone();
    }
    let words = match (view.open_master() == Some(id), view.in_step(id)) {
        (true, _) => "open",
        (false, true) => "in step",
        (false, false) => "not in step",
    };
    words.to_owned()
}

/// Behind the open master's committed transaction; behind the greatest that anybody knows if there is none.
fn lag(view: &ClusterView, beat: &Beat) -> Lag {
    let beats = || view.heard.values().map(|heard| &heard.beat);
    let known = beats().map(|other| other.committed_seq).max().unwrap_or(0);
    let transactions = known.saturating_sub(tip(beat).seq);
    if transactions == 0 {
        return Lag::default();
    }
    let newest_us = beats().map(|other| other.tip_wall_us).max().unwrap_or(0);
    let behind_us = if beat.tip_wall_us == 0 { 0 } else { newest_us - beat.tip_wall_us };
    Lag { transactions, bytes: beat.lag_bytes, seconds: (behind_us / 1000) as f64 / 1000.0 }
}

fn raft(view: &ClusterView, id: NodeId) -> &'static str {
    match view.fresh_beat(id) {
        None => "down",
        Some(_) if view.raft_leader == Some(id) => "leader",
        // The own beat may be older than what Raft told this node since.
        Some(beat) if beat.raft_leader == 0 && id != view.own => "candidate",
        Some(_) if id == view.own && view.raft_leader.is_none() => "candidate",
        Some(_) => "follower",
    }
}

fn pack_status(view: &ClusterView, pack: &PackState) -> PackStatus {
    // The master is the last to build.
    let master = view.mastership().map(|elect| elect.master);
    let master_ready = master.is_some_and(|master| pack.ready.contains(&master));
    let phase = match (&pack.seal, pack.base_hash.is_empty()) {
        (None, _) => "mark",
        (Some(_), true) => "build",
        (Some(_), false) if pack.ready.len() < view.majority() || !master_ready => "build",
        (Some(_), false) => "switch",
    };
    let seal = pack.seal.as_ref();
    PackStatus {
        generation: pack.generation,
        phase: phase.to_owned(),
        since: rfc3339(pack.started_wall_us),
        asked_by: pack.asked_by.clone(),
        pack_seq: seal.map(|seal| seal.pack_seq),
        cut_seq: seal.map(|seal| seal.cut_seq),
        dead_objects: seal.map(|seal| seal.dead_count),
        base_hash: (!pack.base_hash.is_empty()).then(|| hex(&pack.base_hash)),
        base_bytes: (pack.base_len != 0).then_some(pack.base_len),
        nodes: view.state.members.iter().map(|member| pack_node(view, pack, member)).collect(),
    }
}

fn pack_node(view: &ClusterView, pack: &PackState, member: &Member) -> PackNode {
    let id = NodeId(member.id);
    let beat = view.fresh_beat(id);
    let said = beat.and_then(|beat| beat.pack.as_ref());
    let said = said.filter(|progress| progress.pack == pack.id);
    let (phase, permille) = match said {
        _ if pack.ready.contains(&member.id) => ("ready", 1000),
        Some(progress) => (progress.phase.as_str(), progress.permille),
        None if beat.is_none() => ("unknown", 0),
        None => ("waiting", 0),
    };
    let percent = f64::from(permille.min(1000)) / 10.0;
    // Who is ready has nothing left to do but to follow.
    let said = said.filter(|_| phase != "ready");
    let (done, total) = said.map_or((0, 0), |progress| (progress.done_bytes, progress.total_bytes));
    let bytes_per_s = said.map_or(0, |progress| progress.bytes_per_s);
    let left = total.saturating_sub(done);
    PackNode {
        name: member.name.clone(),
        phase: phase.to_owned(),
        percent,
        done_bytes: done,
        total_bytes: (total != 0).then_some(total),
        bytes_per_s,
        seconds_left: (total != 0 && bytes_per_s != 0).then(|| {
            let tenths = left.saturating_mul(10) / bytes_per_s;
            tenths as f64 / 10.0
        }),
    }
}

fn position(beat: &Beat) -> Position {
    beat.position.clone().unwrap_or_default()
}

fn tip(beat: &Beat) -> Tip {
    position(beat).tip.unwrap_or_default()
}

/// proto3 knows no absent string; an empty one stands for it.
fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
