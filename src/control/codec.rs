//! The state as a Raft snapshot has it, and the parts of commands that are made of the same messages.
//!
//! Encoding has one result for one state: maps are ordered. Decoding checks everything: a snapshot comes from a peer.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::apply::{EPOCH_MAX, NUMBER_MAX};
use super::losses::{ALONE_MAX, LOSSES_MAX, get_loss, put_loss};
use super::state::{
    BuiltBase, Decision, Fencing, GENERATIONS_MAX, GenerationRecord, HISTORY_MAX, Mastership,
    Member, OddBuild, Pack, PackAgain, Reason, Rested, Role, Seal, State,
};
use crate::proto::control as pb;
use crate::proto::replication;
use crate::types::{BlockRoot, BootId, Chain, Epoch, Generation, NodeId, Oid, PackId, Seq};

const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("read the control state: {0}")]
    Decode(String),
    #[error("read the control state: format {0} is not known; a newer version wrote it")]
    Format(u32),
    #[error("read the control state: {0}")]
    Invalid(String),
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let state = pb::ControlState {
            format: FORMAT,
            members: self.members.values().map(put_member).collect(),
            epoch: self.epoch.0,
            fencing: self.fencing.as_ref().map(put_fencing),
            mastership: self.mastership.as_ref().map(put_mastership),
            opened: self.opened.is_some(),
            opened_seq: self.opened.map_or(0, |seq| seq.0),
            generations: self.generations.iter().map(put_generation).collect(),
            pack: self.pack.as_ref().map(put_pack),
            oid_limit: self.oid_limit.0,
            paused: self.paused,
            settings: self.settings.clone(),
            history: self.history.iter().map(put_decision).collect(),
            decisions: self.decisions,
            fenced_wall_us: self.fenced_wall_us,
            pack_again: self.pack_again.as_ref().map_or_else(String::new, |it| it.asked_by.clone()),
            pack_again_id: self.pack_again.as_ref().map_or(0, |again| again.id.0),
            packs_changed: self.packs_changed,
            pause_changed: self.pause_changed,
            settings_changed: self.settings_changed.clone(),
            odd_builds: self.odd_builds.iter().map(put_odd_build).collect(),
            rested_wall_us: self.rested.since_wall_us,
            rested_failed: self.rested.failed,
            garbage_permille: self.garbage_permille,
            alone: self.alone.iter().map(|(epoch, node)| (epoch.0, node.0)).collect(),
            losses: self.losses.iter().map(put_loss).collect(),
            lost_transactions: self.lost_transactions,
            promises: self.promises.iter().map(|(node, epoch)| (node.0, epoch.0)).collect(),
            applied: self.applied,
        };
        state.encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let state = pb::ControlState::decode(bytes);
        let state = state.map_err(|error| StateError::Decode(error.to_string()))?;
        if state.format != FORMAT {
            return Err(StateError::Format(state.format));
        }
        from_message(state).map_err(StateError::Invalid)
    }
}

fn from_message(state: pb::ControlState) -> Result<State, String> {
    let members = state.members.iter().map(|member| Ok((NodeId(member.id), get_member(member)?)));
    let generations = state.generations.iter().map(get_generation);
    let promises = state.promises.iter().map(|(node, epoch)| (NodeId(*node), Epoch(*epoch)));
    let odd_builds = state.odd_builds.iter().map(get_odd_build);
    let mut state = State {
        promises: promises.collect(),
        members: members.collect::<Result<_, String>>()?,
        epoch: Epoch(state.epoch),
        fencing: state.fencing.as_ref().map(get_fencing).transpose()?,
        mastership: state.mastership.as_ref().map(get_mastership).transpose()?,
        opened: state.opened.then_some(Seq(state.opened_seq)),
        generations: generations.collect::<Result<_, String>>()?,
        pack: state.pack.as_ref().map(get_pack).transpose()?,
        oid_limit: Oid(state.oid_limit),
        paused: state.paused,
        settings: state.settings,
        history: state.history.into_iter().map(get_decision).collect(),
        decisions: state.decisions,
        fenced_wall_us: state.fenced_wall_us,
        pack_again: Some(state.pack_again).filter(|by| !by.is_empty()).map(|asked_by| PackAgain {
            id: id_or(state.pack_again_id, state.fenced_wall_us),
            asked_by,
        }),
        packs_changed: state.packs_changed,
        pause_changed: state.pause_changed,
        settings_changed: state.settings_changed,
        odd_builds: odd_builds.collect::<Result<_, String>>()?,
        garbage_permille: state.garbage_permille.min(1000),
        alone: state.alone.iter().map(|(epoch, node)| (Epoch(*epoch), NodeId(*node))).collect(),
        losses: state.losses.iter().map(get_loss).collect::<Result<_, String>>()?,
        lost_transactions: state.lost_transactions,
        rested: Rested { since_wall_us: state.rested_wall_us, failed: state.rested_failed },
        applied: state.applied,
    };
    // An older program's state knows only of the newest election.
    state.note_promises();
    check(&state)?;
    Ok(state)
}

/// What no sequence of commands can make. It comes as a leader's snapshot, and whoever took it in would trip over it at
/// the next command.
fn check(state: &State) -> Result<(), String> {
    let must = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_string()) };
    let known = |node: &NodeId| state.members.contains_key(node);
    must(state.epoch.0 < EPOCH_MAX, "an epoch beyond all bounds")?;
    must(state.decisions < NUMBER_MAX, "decisions beyond all bounds")?;
    must(state.oid_limit < Oid::CHAIN, "an oid limit beyond all oids")?;
    let bounded = state.generations.iter().all(|record| record.number.0 < NUMBER_MAX);
    must(bounded, "a generation beyond all bounds")?;
    let few = state.generations.len() <= GENERATIONS_MAX && state.history.len() <= HISTORY_MAX;
    must(few, "more generations or decisions than are kept")?;
    let few = state.losses.len() <= LOSSES_MAX && state.alone.len() <= ALONE_MAX;
    must(few, "more losses, or epochs that may have them, than are kept")?;
    let current = state.generations.back();
    if let Some(pack) = &state.pack {
        let follows = current.is_some_and(|record| record.number.next() == pack.generation);
        must(follows, "a pack to a generation that does not follow")?;
    }
    let ids = [state.packs_changed, state.pause_changed]
        .into_iter()
        .chain(state.cancellable().map(|id| id.0));
    let bounded = ids.chain(state.settings_changed.values().copied()).all(|id| id < NUMBER_MAX);
    must(bounded, "a pack or a change beyond all bounds")?;
    let builders = state.pack.iter().flat_map(|pack| pack.builds.keys());
    let members = builders.chain(state.odd_builds.keys()).all(known);
    must(members, "bases of strangers")?;
    let fenced = state.fencing.as_ref().map(|fencing| fencing.epoch);
    must(fenced.is_none_or(|epoch| epoch == state.epoch), "a fence of another epoch")?;
    let promised = state.promises.iter().all(|(node, it)| known(node) && *it <= state.epoch);
    must(promised, "promises of strangers, or beyond the epoch")?;
    let Some(elected) = &state.mastership else {
        return must(state.opened.is_none() && current.is_none(), "no master, and its generation");
    };
    let order = elected.epoch <= state.epoch && (fenced.is_some() || elected.epoch == state.epoch);
    must(order, "a master of another epoch")?;
    must(current.is_some_and(|it| it.same(&elected.generation)), "a master without generation")?;
    let voters = !elected.voters.is_empty() && elected.voters.iter().all(known);
    must(voters && known(&elected.master), "a master or voters that are no members")
}

/// A pack of an older program has no id: it gets one that is the same wherever that state is decoded. No Raft index is as
/// great.
fn id_or(id: u64, wall_us: u64) -> PackId {
    PackId(if id != 0 { id } else { wall_us.clamp(1, NUMBER_MAX - 1) })
}

pub(super) fn get_chain(what: &str, bytes: &[u8]) -> Result<Chain, String> {
    Chain::from_slice(bytes).ok_or_else(|| format!("{what} has {} bytes, not 20", bytes.len()))
}

fn put_chain(chain: &Chain) -> Bytes {
    Bytes::copy_from_slice(&chain.0)
}

/// Absent in what an older program wrote.
pub(super) fn get_root(bytes: &[u8]) -> Result<Option<BlockRoot>, String> {
    match bytes {
        [] => Ok(None),
        root => Ok(Some(BlockRoot(get_chain("the root of the block hashes", root)?.0))),
    }
}

fn put_root(root: Option<BlockRoot>) -> Bytes {
    root.map_or(Bytes::new(), |root| Bytes::copy_from_slice(&root.0))
}

/// 0 is nobody.
pub(super) fn some_node(id: u64) -> Option<NodeId> {
    Some(NodeId(id)).filter(|node| node.0 != 0)
}

fn put_node(node: Option<NodeId>) -> u64 {
    node.map_or(0, |node| node.0)
}

fn put_member(member: &Member) -> pb::Member {
    pb::Member {
        id: member.id.0,
        name: member.name.clone(),
        disk_uuid: member.disk_uuid.map_or(Bytes::new(), |uuid| Bytes::copy_from_slice(&uuid)),
        durus: member.durus.clone(),
        peer: member.peer.clone(),
        http: member.http.clone(),
        role: member.role.name().into(),
        priority: member.priority,
        may_be_master: member.may_be_master,
    }
}

pub(super) fn get_member(member: &pb::Member) -> Result<Member, String> {
    let disk_uuid = match &member.disk_uuid[..] {
        [] => None,
        uuid => Some(uuid.try_into().map_err(|_| format!("disk uuid has {} bytes", uuid.len()))?),
    };
    let role = Role::from_name(&member.role);
    Ok(Member {
        id: some_node(member.id).ok_or("node 0 is nobody")?,
        name: member.name.clone(),
        disk_uuid,
        durus: member.durus.clone(),
        peer: member.peer.clone(),
        http: member.http.clone(),
        role: role.ok_or_else(|| format!("role {:?} is not known", member.role))?,
        priority: member.priority,
        may_be_master: member.may_be_master,
    })
}

fn put_fencing(fencing: &Fencing) -> pb::FenceCommand {
    pb::FenceCommand {
        epoch: fencing.epoch.0,
        reason: fencing.reason as i32,
        target: put_node(fencing.target),
        asked_by: fencing.asked_by.clone(),
        why: fencing.why.clone(),
        pack: fencing.pack.0,
    }
}

pub(super) fn get_fencing(fence: &pb::FenceCommand) -> Result<Fencing, String> {
    let reason = Reason::try_from(fence.reason).ok().filter(|reason| *reason != Reason::None);
    Ok(Fencing {
        epoch: Epoch(fence.epoch),
        reason: reason.ok_or_else(|| format!("reason {} is not known", fence.reason))?,
        target: some_node(fence.target),
        asked_by: fence.asked_by.clone(),
        why: fence.why.clone(),
        pack: PackId(fence.pack),
    })
}

fn put_mastership(mastership: &Mastership) -> pb::Elect {
    pb::Elect {
        epoch: mastership.epoch.0,
        master: mastership.master.0,
        boot: mastership.boot.0,
        voters: mastership.voters.iter().map(|voter| voter.0).collect(),
        generation: Some(put_generation(&mastership.generation)),
        floor: Some(mastership.floor.clone()),
        floor_holder: mastership.floor_holder.0,
        why: mastership.why.clone(),
        reported: mastership.reported.iter().map(|node| node.0).collect(),
    }
}

pub(super) fn get_mastership(elect: &pb::Elect) -> Result<Mastership, String> {
    let voters: BTreeSet<NodeId> = elect.voters.iter().map(|voter| NodeId(*voter)).collect();
    if voters.len() != elect.voters.len() || voters.contains(&NodeId(0)) {
        return Err(format!("voters {:?} are not distinct nodes", elect.voters));
    }
    let generation = elect.generation.as_ref().ok_or("the election names no generation")?;
    let floor = elect.floor.clone().ok_or("the election has no floor")?;
    check_position(&floor)?;
    Ok(Mastership {
        epoch: Epoch(elect.epoch),
        master: some_node(elect.master).ok_or("node 0 cannot be master")?,
        boot: BootId(elect.boot),
        voters: voters.into_iter().collect(),
        generation: get_generation(generation)?,
        floor,
        floor_holder: some_node(elect.floor_holder).ok_or("nobody holds the floor")?,
        why: elect.why.clone(),
        reported: elect.reported.iter().filter_map(|node| some_node(*node)).collect(),
    })
}

fn check_position(position: &replication::Position) -> Result<(), String> {
    let tip = position.tip.as_ref().ok_or("the floor has no tip")?;
    get_chain("the floor's base hash", &position.base_hash)?;
    get_chain("the floor's chain", &tip.chain)?;
    Ok(())
}

fn put_generation(record: &GenerationRecord) -> pb::GenerationRecord {
    pb::GenerationRecord {
        number: record.number.0,
        base_hash: put_chain(&record.base_hash),
        pack_seq: record.pack_seq.0,
        cut_seq: record.cut_seq.0,
        cut_chain: put_chain(&record.cut_chain),
        since_wall_us: record.since_wall_us,
        block_root: put_root(record.block_root),
    }
}

fn get_generation(record: &pb::GenerationRecord) -> Result<GenerationRecord, String> {
    let number = Generation(record.number);
    if number.0 == 0 {
        return Err("generations are numbered from 1".into());
    }
    // the first generation was cut from nothing
    let cut_chain = match &record.cut_chain[..] {
        [] => Chain::ZERO,
        chain => get_chain("the cut's chain", chain)?,
    };
    Ok(GenerationRecord {
        number,
        base_hash: get_chain("the base hash", &record.base_hash)?,
        pack_seq: Seq(record.pack_seq),
        cut_seq: Seq(record.cut_seq),
        cut_chain,
        since_wall_us: record.since_wall_us,
        block_root: get_root(&record.block_root)?,
    })
}

fn put_pack(pack: &Pack) -> pb::PackState {
    let seal = pack.seal.as_ref().map(|seal| pb::PackSeal {
        generation: pack.generation.0,
        pack_seq: seal.pack_seq.0,
        cut_seq: seal.cut_seq.0,
        cut_chain: put_chain(&seal.cut_chain),
        dead_count: seal.dead_count,
        file_bytes: seal.file_bytes,
        kept_bytes: seal.kept_bytes,
        tail_bytes: seal.tail_bytes,
        pack: pack.id.0,
    });
    pb::PackState {
        id: pack.id.0,
        builds: pack.builds.iter().map(|(node, built)| put_build(pack, *node, built)).collect(),
        generation: pack.generation.0,
        started_epoch: pack.started_epoch.0,
        started_wall_us: pack.started_wall_us,
        asked_by: pack.asked_by.clone(),
        seal,
        base_hash: pack.base_hash.as_ref().map_or(Bytes::new(), put_chain),
        base_len: pack.base_len,
        ready: pack.ready.iter().map(|node| node.0).collect(),
        block_root: put_root(pack.block_root),
        sealed_wall_us: pack.sealed_wall_us,
        based_wall_us: pack.based_wall_us,
        readied_wall_us: pack.readied_wall_us,
    }
}

fn get_pack(pack: &pb::PackState) -> Result<Pack, String> {
    let base_hash = match &pack.base_hash[..] {
        [] => None,
        hash => Some(get_chain("the new base hash", hash)?),
    };
    let builds = pack.builds.iter().map(|base| Ok((NodeId(base.node), get_build(base)?)));
    Ok(Pack {
        id: id_or(pack.id, pack.started_wall_us),
        builds: builds.collect::<Result<BTreeMap<_, _>, String>>()?,
        generation: Generation(pack.generation),
        started_epoch: Epoch(pack.started_epoch),
        started_wall_us: pack.started_wall_us,
        asked_by: pack.asked_by.clone(),
        seal: pack.seal.as_ref().map(get_seal).transpose()?,
        base_hash,
        base_len: pack.base_len,
        ready: pack.ready.iter().map(|node| NodeId(*node)).collect(),
        block_root: get_root(&pack.block_root)?,
        sealed_wall_us: pack.sealed_wall_us,
        based_wall_us: pack.based_wall_us,
        readied_wall_us: pack.readied_wall_us,
    })
}

fn put_build(pack: &Pack, node: NodeId, built: &BuiltBase) -> pb::PackBase {
    pb::PackBase {
        generation: pack.generation.0,
        base_hash: put_chain(&built.base_hash),
        node: node.0,
        base_len: built.base_len,
        block_root: put_root(built.block_root),
        pack: pack.id.0,
    }
}

pub(super) fn get_build(base: &pb::PackBase) -> Result<BuiltBase, String> {
    Ok(BuiltBase {
        base_hash: get_chain("the base hash", &base.base_hash)?,
        block_root: get_root(&base.block_root)?,
        base_len: base.base_len,
    })
}

fn put_odd_build((node, odd): (&NodeId, &OddBuild)) -> pb::OddBuild {
    pb::OddBuild {
        node: node.0,
        generation: odd.generation.0,
        base_hash: put_chain(&odd.base_hash),
        wall_us: odd.wall_us,
    }
}

fn get_odd_build(odd: &pb::OddBuild) -> Result<(NodeId, OddBuild), String> {
    let base_hash = get_chain("an outvoted base's hash", &odd.base_hash)?;
    let generation = Generation(odd.generation);
    Ok((NodeId(odd.node), OddBuild { generation, base_hash, wall_us: odd.wall_us }))
}

pub(super) fn get_seal(seal: &pb::PackSeal) -> Result<Seal, String> {
    Ok(Seal {
        pack_seq: Seq(seal.pack_seq),
        cut_seq: Seq(seal.cut_seq),
        cut_chain: get_chain("the cut's chain", &seal.cut_chain)?,
        dead_count: seal.dead_count,
        file_bytes: seal.file_bytes,
        kept_bytes: seal.kept_bytes,
        tail_bytes: seal.tail_bytes,
    })
}

fn put_decision(decision: &Decision) -> pb::Decision {
    pb::Decision {
        number: decision.number,
        wall_us: decision.wall_us,
        epoch: decision.epoch.0,
        what: decision.what.clone(),
        why: decision.why.clone(),
        asked_by: decision.asked_by.clone(),
        node: put_node(decision.node),
        clients_waited_us: decision.clients_waited_us,
        index: decision.index,
    }
}

fn get_decision(decision: pb::Decision) -> Decision {
    Decision {
        number: decision.number,
        wall_us: decision.wall_us,
        epoch: Epoch(decision.epoch),
        what: decision.what,
        why: decision.why,
        asked_by: decision.asked_by,
        node: some_node(decision.node),
        clients_waited_us: decision.clients_waited_us,
        index: decision.index,
    }
}
