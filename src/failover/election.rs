//! Whom the reports elect.
//!
//! A pure function of the replicated state, the fence and the voters' reports. The greatest (epoch, seq) of a majority
//! of clean reports holds every committed transaction, because every commit was acknowledged by a majority and every
//! reporter had promised the fence, durably, before it read its position.

use std::collections::BTreeMap;

use crate::control::{Fencing, State};
use crate::mutants::{self, Mutant};
use crate::proto::control::{Elect, GenerationRecord, Reason};
use crate::replication::quorum::majority;
use crate::replication::wire::{Position, put_chain, put_position, put_root};
use crate::types::{BootId, Chain, Epoch, Generation, NodeId, PackId, Seq, Tip};

/// What a voter said after its promise was durable.
#[derive(Clone, Debug)]
pub struct Report {
    pub epoch: Epoch,
    pub boot: BootId,
    pub position: Position,
    /// Not empty: its word about its file can't be trusted.
    pub suspect: String,
    /// A complete next generation that follows to the same seq, and the pack that it was made for.
    pub next: Option<(PackId, Generation, Chain)>,
    /// No object was ever stored in its file.
    pub blank: bool,
    pub may_be_master: bool,
    /// It can't go on for long: anybody else is better.
    pub failing: bool,
}

impl Report {
    /// A suspect voter does not count, and one that has yet to rebase will, when it has.
    pub fn counts(&self, state: &State) -> bool {
        (self.suspect.is_empty() || mutants::broken(Mutant::SuspectCounted))
            && state.generation().is_none_or(|current| {
                self.position.same_file(current.number, current.base_hash)
                    || mutants::broken(Mutant::BaseNotCompared)
                        && self.position.generation == current.number
            })
    }
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Not enough reports.
    Wait,
    Elect(Elect),
    Alarm(String),
}

pub fn judge(state: &State, fence: &Fencing, reports: &BTreeMap<NodeId, Report>) -> Verdict {
    let voters = state.voters();
    let counted: BTreeMap<NodeId, &Report> = reports
        .iter()
        .filter(|(_, report)| report.counts(state))
        .map(|(id, report)| (*id, report))
        .collect();
    if state.generation().is_none() {
        return judge_first(state, fence, &counted);
    }
    let alone = !counted.is_empty() && mutants::broken(Mutant::FenceWithoutMajority);
    if counted.len() < majority(voters.len()) && !alone {
        return Verdict::Wait;
    }
    if let Some(why) = two_histories(state, &counted) {
        return Verdict::Alarm(why);
    }
    let (holder, greatest) = counted
        .iter()
        .max_by_key(|(id, report)| (order(&report.position.tip), std::cmp::Reverse(**id)))
        .map(|(id, report)| (*id, report.position))
        .expect("a majority is not empty");
    let switch = agreed_switch(state, fence, &counted, voters.len());
    let candidates = counted.iter().filter(|(_, report)| {
        report.may_be_master && switch.as_ref().is_none_or(|next| has_next(report, fence, next))
    });
    let preferred = |id: NodeId, report: &Report| {
        let asked = Some(id) == fence.target;
        // For a planned change the one asked for may fetch the last moments from the holder; so may anybody when the
        // holder is to be relieved.
        let planned = (asked && fence.reason == Reason::Promote)
            || (fence.reason == Reason::MasterFailing && !report.failing);
        let member = state.member(id);
        let priority = member.map_or(0, |member| member.priority);
        let present = state.mastership().is_some_and(|before| before.master == id);
        let order = if planned { order(&greatest.tip) } else { order(&report.position.tip) };
        (order, !report.failing, asked, priority, present, std::cmp::Reverse(id))
    };
    let Some((winner, report)) = candidates.max_by_key(|(id, report)| preferred(**id, report))
    else {
        // One that is being stopped may be master when it is back.
        let stopping = |id: &NodeId| state.member(*id).is_some_and(|member| member.may_be_master);
        return match counted.keys().any(stopping) {
            true => Verdict::Wait,
            false => Verdict::Alarm("no voter that reported may be master".into()),
        };
    };
    let current = || state.generation().map(record_message);
    let generation = switch.or_else(current).expect("checked above");
    Verdict::Elect(elect(state, fence, *winner, report, generation, holder, &greatest, &counted))
}

/// Who has the greatest has every committed transaction.
fn order(tip: &Tip) -> (Epoch, Seq) {
    match mutants::broken(Mutant::GreatestSeqOnly) {
        true => (Epoch(0), tip.seq),
        false => tip.order(),
    }
}

/// The very first election: everybody must have spoken, since a file that was brought along counts however few have it.
fn judge_first(state: &State, fence: &Fencing, counted: &BTreeMap<NodeId, &Report>) -> Verdict {
    if counted.len() < state.members().count() {
        return Verdict::Wait;
    }
    let brought: Vec<_> = counted.iter().filter(|(_, report)| !report.blank).collect();
    let different =
        brought.windows(2).any(|pair| pair[0].1.position.base_hash != pair[1].1.position.base_hash);
    if different {
        let files: Vec<String> = brought
            .iter()
            .map(|(id, report)| format!("{} has {}", name(state, **id), report.position.base_hash))
            .collect();
        return Verdict::Alarm(format!(
            "the nodes were started with different files ({}): keep one, empty the other nodes' data directories",
            files.join(", ")
        ));
    }
    let pool: Vec<_> = if brought.is_empty() { counted.iter().collect() } else { brought };
    let best =
        pool.into_iter().filter(|(_, report)| report.may_be_master).max_by_key(|(id, report)| {
            let priority = state.member(**id).map_or(0, |member| member.priority);
            (report.position.tip.order(), priority, std::cmp::Reverse(**id))
        });
    let Some((winner, report)) = best else {
        return Verdict::Alarm("no node that has the first file may be master".into());
    };
    let generation = GenerationRecord {
        number: report.position.generation.0,
        base_hash: put_chain(report.position.base_hash),
        ..GenerationRecord::default()
    };
    let floor = report.position;
    Verdict::Elect(elect(state, fence, *winner, report, generation, *winner, &floor, counted))
}

/// Equal positions in one file must be equal histories.
fn two_histories(state: &State, counted: &BTreeMap<NodeId, &Report>) -> Option<String> {
    let all: Vec<_> = counted.iter().collect();
    for (i, (a, left)) in all.iter().enumerate() {
        for (b, right) in &all[i + 1..] {
            let (left, right) = (&left.position.tip, &right.position.tip);
            if left.order() == right.order() && left.chain != right.chain {
                return Some(format!(
                    "{} and {} have different histories at the same position: {left} and {right}",
                    name(state, **a),
                    name(state, **b),
                ));
            }
        }
    }
    None
}

/// The next generation, if that is what the fence was for and a majority has it whole.
fn agreed_switch(
    state: &State,
    fence: &Fencing,
    counted: &BTreeMap<NodeId, &Report>,
    voters: usize,
) -> Option<GenerationRecord> {
    let pack = state.pack().filter(|_| fence.reason == Reason::GenerationSwitch)?;
    // The fence was for one pack, and that is gone: this one is not ready.
    if pack.id != fence.pack {
        return None;
    }
    let seal = pack.seal.as_ref()?;
    let next = GenerationRecord {
        number: pack.generation.0,
        base_hash: put_chain(pack.base_hash?),
        pack_seq: seal.pack_seq.0,
        cut_seq: seal.cut_seq.0,
        cut_chain: put_chain(seal.cut_chain),
        since_wall_us: 0,
        block_root: put_root(pack.block_root),
    };
    let greatest = counted.values().map(|report| report.position.tip.order()).max()?;
    let ready = counted.values().filter(|report| has_next(report, fence, &next));
    let holds_all =
        ready.clone().any(|report| report.position.tip.order() == greatest && report.may_be_master);
    (holds_all && ready.count() >= majority(voters)).then_some(next)
}

fn record_message(record: &crate::control::GenerationRecord) -> GenerationRecord {
    GenerationRecord {
        number: record.number.0,
        base_hash: put_chain(record.base_hash),
        pack_seq: record.pack_seq.0,
        cut_seq: record.cut_seq.0,
        cut_chain: put_chain(record.cut_chain),
        since_wall_us: record.since_wall_us,
        block_root: put_root(record.block_root),
    }
}

fn has_next(report: &Report, fence: &Fencing, next: &GenerationRecord) -> bool {
    report.next.is_some_and(|(pack, number, base_hash)| {
        pack == fence.pack && number.0 == next.number && base_hash.0[..] == next.base_hash[..]
    })
}

#[expect(clippy::too_many_arguments, reason = "the fields of one command, named")]
fn elect(
    state: &State,
    fence: &Fencing,
    winner: NodeId,
    report: &Report,
    generation: GenerationRecord,
    holder: NodeId,
    floor: &Position,
    counted: &BTreeMap<NodeId, &Report>,
) -> Elect {
    let compared: Vec<String> = counted
        .iter()
        .map(|(id, report)| {
            let tip = &report.position.tip;
            format!("{} at epoch {} seq {}", name(state, *id), tip.epoch, tip.seq)
        })
        .collect();
    Elect {
        epoch: fence.epoch.0,
        master: winner.0,
        boot: report.boot.0,
        voters: state.voters().iter().map(|id| id.0).collect(),
        generation: Some(generation),
        floor: Some(put_position(floor)),
        floor_holder: holder.0,
        why: format!("{} of {}", name(state, winner), compared.join(", ")),
        reported: counted.keys().map(|id| id.0).collect(),
    }
}

fn name(state: &State, id: NodeId) -> String {
    state.member(id).map_or_else(|| format!("node {id}"), |member| member.name.clone())
}
