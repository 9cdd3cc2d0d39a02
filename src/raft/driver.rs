//! raft-rs's `RawNode`, and the order in which what it puts out may be used.
//!
//! raft-rs hands out *readies*: entries and votes to keep, messages to send, entries to apply. Here it runs in its
//! asynchronous mode: a ready is taken at once, put into `MemLog`, and answered for later, when it is durable. So that
//! ticks, heartbeats and answers go on while a disk is slow, readies are taken all the time; but only one record is
//! at the disk, and what comes meanwhile is merged into the next one (which is also our group commit).
//!
//! * A leader's messages go out at once; its own copy counts only after `persisted`.
//! * Everybody else's wait for the record of their ready and all before it. A ready that changes nothing but the
//!   commit index needs no record for its messages, and if nothing before it waits, neither do they.
//! * Committed entries come out when raft-rs holds them for committed and durable here, a leader's snapshot when it is
//!   durable here. The caller applies them before it does anything else.
//! * The commit index is written too, and nobody waits for that. It is in the record of the entries that came with it:
//!   who restarts with an entry knows that those before it were committed when it came.

use std::mem;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use raft::{Config, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole, Storage};
use slog::{Logger, o};

use super::convert;
use super::log::Recovered;
use super::mem::MemLog;
use crate::mutants::{self, Mutant};
use crate::plausible::{Claim, Disbelieved, INDEX_AHEAD_MAX, TERM_AHEAD_MAX, within};
use crate::proto::control::{RaftHardState, RaftMessage, RaftRecord};
use crate::types::NodeId;

/// Bytes of entries in one message.
const MESSAGE_SIZE_MAX: u64 = 1 << 20;
/// Append messages to one follower that it has not answered.
const MESSAGES_IN_FLIGHT_MAX: usize = 64;
/// Bytes of entries that are not committed yet; more are refused.
const UNCOMMITTED_SIZE_MAX: u64 = 16 << 20;
/// Bytes of one command.
const COMMAND_SIZE_MAX: usize = 1 << 20;
/// Type of a leader's heartbeat in a `RaftMessage`.
pub const HEARTBEAT: u32 = MessageType::MsgHeartbeat as u32;
/// A leader's heartbeats, in ticks.
const HEARTBEAT_TICKS: usize = 1;

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("propose: this node is not the Raft leader; that is {}", name(.leader))]
    NotLeader { leader: Option<NodeId> },
    #[error("propose: a command of {0} bytes is too large")]
    TooLarge(usize),
    #[error("propose: dropped, leadership is being transferred or too much is uncommitted")]
    Dropped,
    /// Not applied, and nothing else happened; the sender is confused, or not one of us.
    #[error("Raft message of node {from} refused: {why}")]
    Refused { from: u64, why: String },
    /// Not acted upon: a number in it is not believed (see `plausible`).
    #[error("Raft message of node {from} is not believed: {number}")]
    Disbelieved { from: u64, number: Disbelieved },
    /// Not acted upon: one message does not prove what it says. If the claim comes to stand, `step_claimed` takes it.
    #[error("Raft message of node {from} is not believed yet: {number}")]
    Claimed { from: u64, number: Disbelieved, claim: Claim },
    /// Not acted upon. What is committed here is committed for ever, so the others have lost it; this node has not.
    #[error(
        "Raft message of node {from}: {why}. What is committed can't change: that node, or those who elected it, \
         have lost their Raft log"
    )]
    Contradicts { from: u64, why: String },
    #[error(
        "start Raft: the log is of voters {log:?}, the configuration says {configured:?}; set it as it was"
    )]
    Voters { log: Option<Vec<u64>>, configured: Vec<u64> },
    #[error("start Raft: {0}")]
    Start(String),
}

fn name(leader: &Option<NodeId>) -> String {
    leader.map_or("not known".into(), |leader| format!("node {leader}"))
}

/// What to do now, in this order: apply `restore`, apply `committed`, persist, send.
#[derive(Debug, Default, PartialEq)]
pub struct Polled {
    /// May leave at once, in this order.
    pub messages: Vec<RaftMessage>,
    /// To be made durable, then `Driver::persisted` with the number. Never empty; never two at a time.
    pub persist: Option<(u64, RaftRecord)>,
    /// A snapshot's data, in place of everything applied so far. Durable here.
    pub restore: Option<Bytes>,
    /// Index and data of committed commands, in order; durable here. Indexes may skip (raft's own entries).
    pub committed: Vec<(u64, Bytes)>,
}

impl Polled {
    pub fn is_empty(&self) -> bool {
        *self == Polled::default()
    }
}

/// A record that readies were merged into, and what waits for it.
#[derive(Default)]
struct Batch {
    record: RaftRecord,
    /// Something other than the commit index: messages must wait.
    must: bool,
    /// Number of the last ready in it; 0: none.
    ready: u64,
    /// Index of a leader's snapshot in it; 0: none.
    installs: u64,
    /// Go out when it is durable.
    held: Vec<Message>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        let RaftRecord { hard_state, entries, snapshot } = &self.record;
        hard_state.is_none() && entries.is_empty() && snapshot.is_none()
    }
}

pub struct Driver {
    id: u64,
    /// Ascending.
    voters: Vec<u64>,
    node: RawNode<MemLog>,
    /// Collects; not at the disk yet.
    pending: Batch,
    /// At the disk, with its number.
    outstanding: Option<(u64, Batch)>,
    /// Number of the last record handed out.
    records: u64,
    applied: u64,
    /// What came up outside `poll`.
    out: Polled,
}

impl Driver {
    /// `voters`: of the configuration, the same on every node. `election_ticks`: without a leader for as many ticks, a
    /// node campaigns; at least 2, different on each node, so that no randomness is needed to part them. The first
    /// `poll` has the recovered snapshot as `restore` and what is known to be committed after it.
    pub fn new(
        id: NodeId,
        voters: &[NodeId],
        recovered: Recovered,
        election_ticks: usize,
        logger: &Logger,
    ) -> Result<Driver, DriverError> {
        let mut voters: Vec<u64> = voters.iter().map(|voter| voter.0).collect();
        voters.sort_unstable();
        if !voters.contains(&id.0) {
            return Err(DriverError::Start(format!(
                "node {id} is not among the voters {voters:?}"
            )));
        }
        let Recovered { hard_state, entries, snapshot, .. } = recovered;
        if let Some(snapshot) = &snapshot {
            let log = snapshot.conf_state.as_ref().and_then(convert::plain_voters);
            if log.as_ref() != Some(&voters) {
                return Err(DriverError::Voters { log, configured: voters });
            }
        }
        let applied = snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let restore = snapshot.as_ref().map(|snapshot| snapshot.data.clone());
        let log = MemLog::new(
            convert::hard_state_to_raft(&hard_state),
            convert::conf_state(&voters),
            snapshot.map(|it| convert::snapshot_to_raft(&it, &voters)).unwrap_or_default(),
            entries.iter().map(convert::entry_to_raft).collect(),
        );
        let config = config(id.0, applied, election_ticks);
        let node = RawNode::new(&config, log, &logger.new(o!("room" => "raft")));
        let node = node.map_err(|error| DriverError::Start(error.to_string()))?;
        Ok(Driver {
            id: id.0,
            voters,
            node,
            pending: Batch::default(),
            outstanding: None,
            records: 0,
            applied,
            out: Polled { restore, ..Default::default() },
        })
    }

    /// One step of raft's clock.
    pub fn tick(&mut self) {
        if !self.installing() {
            self.node.tick();
        }
    }

    /// A leader's snapshot is in memory and not durable yet. raft-rs would panic on the start of a campaign, looking
    /// for entries that the snapshot replaced.
    fn installing(&self) -> bool {
        let outstanding = self.outstanding.as_ref().is_some_and(|(_, batch)| batch.installs != 0);
        outstanding || self.pending.installs != 0
    }

    /// A peer's message, whose sender the caller has made sure of.
    pub fn step(&mut self, message: &RaftMessage) -> Result<(), DriverError> {
        self.step_believing(message, false)
    }

    /// One that was refused as `Claimed`, and whose claim stands by now.
    pub fn step_claimed(&mut self, message: &RaftMessage) -> Result<(), DriverError> {
        self.step_believing(message, true)
    }

    fn step_believing(&mut self, message: &RaftMessage, claimed: bool) -> Result<(), DriverError> {
        let from = message.from;
        let refused = |why| DriverError::Refused { from, why };
        if message.to != self.id || from == self.id || self.voters.binary_search(&from).is_err() {
            let why = format!("it is to node {}, this is node {}", message.to, self.id);
            return Err(refused(why));
        }
        self.check_numbers(message, claimed)?;
        let message = convert::message_to_raft(message, &self.voters).map_err(refused)?;
        self.check(&message)?;
        if message.msg_type == MessageType::MsgTimeoutNow && self.installing() {
            return Ok(());
        }
        self.node.step(message).map_err(|error| refused(error.to_string()))
    }

    /// Does somebody want to lead?
    pub fn asks_for_vote(message: &RaftMessage) -> bool {
        [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote]
            .iter()
            .any(|kind| *kind as u32 == message.msg_type)
    }

    /// Does the message ask for a vote, or to campaign for some?
    pub fn is_about_votes(message: &RaftMessage) -> bool {
        [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote, MessageType::MsgTimeoutNow]
            .iter()
            .any(|kind| *kind as u32 == message.msg_type)
    }

    /// Appends a command to the log. That it will be committed is not sure before it comes back from `poll`.
    pub fn propose(&mut self, command: Vec<u8>) -> Result<(), DriverError> {
        if !self.is_leader() {
            return Err(DriverError::NotLeader { leader: self.leader() });
        }
        if command.len() > COMMAND_SIZE_MAX {
            return Err(DriverError::TooLarge(command.len()));
        }
        self.node.propose(Vec::new(), command).map_err(|_| DriverError::Dropped)
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whom this node follows, or itself.
    pub fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.node.raft.leader_id)).filter(|leader| leader.0 != 0)
    }

    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Index of the last entry handed out by `poll` for applying.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Term of that entry. What was proposed in an earlier term and has not been handed out by now never will be.
    pub fn applied_term(&self) -> u64 {
        self.node.raft.raft_log.term(self.applied).unwrap_or(0)
    }

    /// The leader is known to be dead: do not refuse others our vote on its account. Nothing if this is the leader.
    pub fn forget_leader(&mut self) {
        if !self.is_leader() && self.leader().is_some() {
            let term = self.term();
            self.node.raft.become_follower(term, 0);
        }
    }

    /// Asks for votes now (pre-votes first). Nothing if this is the leader, or while a snapshot is being written.
    pub fn campaign(&mut self) {
        if !self.installing() {
            // the only error is about messages that a campaign is not
            let _ = self.node.campaign();
        }
    }

    /// Hands leadership over; nothing if this is not the leader. Proposals are dropped until it is done or has failed.
    pub fn transfer_leader(&mut self, to: NodeId) {
        if self.is_leader() {
            self.node.transfer_leader(to.0);
        }
    }

    /// What was sent last probably did not arrive.
    pub fn report_unreachable(&mut self, node: NodeId) {
        self.node.report_unreachable(node.0);
    }

    /// Everything that may be done now. Empty when there is nothing new.
    pub fn poll(&mut self) -> Polled {
        while self.node.has_ready() {
            self.take_ready();
        }
        if self.outstanding.is_none() && !self.pending.is_empty() {
            let batch = mem::take(&mut self.pending);
            self.records += 1;
            self.out.persist = Some((self.records, batch.record.clone()));
            self.outstanding = Some((self.records, batch));
        }
        mem::take(&mut self.out)
    }

    /// The record of this number is durable.
    pub fn persisted(&mut self, number: u64) {
        let Some((expected, batch)) = self.outstanding.take() else {
            panic!("record {number} is durable, but none is at the disk");
        };
        assert_eq!(number, expected, "one record at a time");
        self.settle(batch.ready, batch.installs, batch.held);
        if !self.pending.must && self.pending.ready != 0 {
            // readies that came meanwhile and need no record of their own
            let (ready, held) =
                (mem::take(&mut self.pending.ready), mem::take(&mut self.pending.held));
            self.settle(ready, 0, held);
        }
    }

    /// Makes a snapshot of what was applied up to an index, and drops the entries before it. Nothing if there is a
    /// newer one already. It becomes durable with the next record.
    pub fn compact(&mut self, index: u64, snapshot: Vec<u8>) {
        assert!(index <= self.applied, "compact to {index}, applied {}", self.applied);
        let log = self.node.mut_store();
        if index <= log.snapshot_index() {
            return;
        }
        let metadata = SnapshotMetadata {
            conf_state: Some(convert::conf_state(&self.voters)).into(),
            index,
            term: log.term(index).expect("applied, and after the last snapshot"),
            ..Default::default()
        };
        let data = snapshot.into();
        let metadata = Some(metadata).into();
        let snapshot = Snapshot { data, metadata, ..Default::default() };
        self.pending.record.snapshot = Some(convert::snapshot_from_raft(&snapshot));
        self.pending.record.entries.retain(|entry| entry.index > index);
        log.compact(snapshot);
    }

    /// Numbers that lie further ahead than this node can account for: the table in `plausible`. A term or an index that
    /// was taken once can't be taken back, and raft-rs counts up from it.
    fn check_numbers(&self, message: &RaftMessage, claimed: bool) -> Result<(), DriverError> {
        let from = message.from;
        let (term, last) = (self.term(), self.node.raft.raft_log.last_index());
        let is = |kind: MessageType| message.msg_type == kind as u32;
        let disbelieved = |number| DriverError::Disbelieved { from, number };
        if !mutants::broken(Mutant::FarTermBelieved) {
            within("term", message.term, term, TERM_AHEAD_MAX).map_err(disbelieved)?;
        }
        let votes = is(MessageType::MsgRequestVote) || is(MessageType::MsgRequestPreVote);
        if votes && message.log_term >= message.term.max(1) {
            let (theirs, ours) = (message.log_term, message.term);
            return Err(disbelieved(Disbelieved { what: "term of its last entry", theirs, ours }));
        }
        if mutants::broken(Mutant::FarIndexBelieved) {
            return Ok(());
        }
        if is(MessageType::MsgAppend) {
            let brings = message.index.saturating_add(message.entries.len() as u64);
            within("commit index", message.commit, brings, INDEX_AHEAD_MAX).map_err(disbelieved)?;
        }
        let unproved = |what, theirs, ahead, claim| match within(what, theirs, last, ahead) {
            Err(number) if !claimed => Err(DriverError::Claimed { from, number, claim }),
            _ => Ok(()),
        };
        if is(MessageType::MsgHeartbeat) && message.term >= term {
            // A leader tells only what was acknowledged to it.
            unproved("commit index", message.commit, 0, Claim::RaftLogForgotten)?;
        }
        if votes {
            unproved("last index", message.index, INDEX_AHEAD_MAX, Claim::FarAhead)?;
        }
        Ok(())
    }

    /// Refuses what raft-rs would panic on.
    fn check(&self, message: &Message) -> Result<(), DriverError> {
        let log = &self.node.raft.raft_log;
        let (from, last, committed) = (message.from, log.last_index(), log.committed);
        let current = message.term == self.term();
        match message.msg_type {
            MessageType::MsgHeartbeat if message.term >= self.term() && message.commit > last => {
                let why =
                    format!("it says that {} is committed here; {last} is last", message.commit);
                Err(DriverError::Refused { from, why })
            }
            MessageType::MsgAppend if message.term >= self.term() => {
                let conflicts =
                    |index: u64, term| index <= committed && !log.match_term(index, term);
                let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
                let known = entries.filter(|(index, _)| *index >= log.first_index());
                let joins = log.match_term(message.index, message.log_term);
                match known.into_iter().find(|&(index, term)| joins && conflicts(index, term)) {
                    None => Ok(()),
                    Some((index, term)) => {
                        let why =
                            format!("entry {index} of term {term} is committed here otherwise");
                        Err(DriverError::Contradicts { from, why })
                    }
                }
            }
            MessageType::MsgAppendResponse
                if current && self.is_leader() && !message.reject && message.index > last =>
            {
                let (what, theirs, ours) = ("acknowledged index", message.index, last);
                let number = Disbelieved { what, theirs, ours };
                Err(DriverError::Disbelieved { from, number })
            }
            _ => Ok(()),
        }
    }

    fn take_ready(&mut self) {
        let mut ready = self.node.ready();
        let number = ready.number();
        let messages = ready.take_messages();
        let held = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        self.keep(&ready);
        self.node.advance_append_async(ready);

        self.release(messages);
        self.pending.held.extend(held);
        self.pending.ready = number;
        for entry in committed {
            self.applied = entry.index;
            if !entry.data.is_empty() {
                self.out.committed.push((entry.index, entry.data));
            }
        }
        self.node.advance_apply_to(self.applied);

        let waits = self.outstanding.as_ref().is_some_and(|(_, batch)| batch.must);
        let free = !waits && !self.pending.must;
        if free || mutants::broken(Mutant::RaftSendsEarly) {
            let held = mem::take(&mut self.pending.held);
            self.pending.ready = 0;
            self.settle(number, 0, held);
        }
    }

    /// Puts what a ready wants kept into memory and into the next record.
    fn keep(&mut self, ready: &Ready) {
        let Batch { record, must, installs, .. } = &mut self.pending;
        *must |= ready.must_sync();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot();
            record.entries.clear();
            record.snapshot = Some(convert::snapshot_from_raft(snapshot));
            *installs = snapshot.get_metadata().index;
            self.node.mut_store().install(snapshot.clone());
        }
        if let Some(first) = ready.entries().first() {
            record.entries.retain(|entry| entry.index < first.index);
            record.entries.extend(ready.entries().iter().map(convert::entry_from_raft));
            self.node.mut_store().append(ready.entries());
        }
        if let Some(hard_state) = ready.hs() {
            let hard_state: RaftHardState = convert::hard_state_from_raft(hard_state);
            record.hard_state = Some(hard_state);
        }
    }

    /// Readies up to a number are durable.
    fn settle(&mut self, ready: u64, installed: u64, held: Vec<Message>) {
        if ready != 0 {
            self.node.on_persist_ready(ready);
        }
        if installed != 0 {
            let log = self.node.store();
            // a newer one may have come meanwhile: then that will be handed out
            if log.snapshot_index() == installed {
                let data = log.snapshot(0, 0).expect("just looked at").data;
                // what was to be applied before it is part of it
                self.out.committed.clear();
                self.out.restore = Some(data);
                self.applied = installed;
                self.node.advance_apply_to(installed);
            }
        }
        self.release(held);
    }

    fn release(&mut self, messages: Vec<Message>) {
        for message in messages {
            if message.msg_type == MessageType::MsgSnapshot {
                // whether it arrives shows in the answer to what follows it; without this word nothing ever follows
                self.node.report_snapshot(message.to, SnapshotStatus::Finish);
            }
            self.out.messages.push(convert::message_from_raft(&message));
        }
    }
}

fn config(id: u64, applied: u64, election_ticks: usize) -> Config {
    Config {
        id,
        applied,
        election_tick: election_ticks,
        heartbeat_tick: HEARTBEAT_TICKS,
        // one possible value: raft-rs draws from the thread's random generator otherwise
        min_election_tick: election_ticks,
        max_election_tick: election_ticks + 1,
        max_size_per_msg: MESSAGE_SIZE_MAX,
        max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
        max_uncommitted_size: UNCOMMITTED_SIZE_MAX,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
