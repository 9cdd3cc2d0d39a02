//! Between our messages and raft-rs's, field by field.
//!
//! What comes from a peer is checked on the way in, so far as one message can be checked alone.

use bytes::Bytes;
use raft::eraftpb::{self, EntryType, MessageType};

use crate::proto::control::{RaftConfState, RaftEntry, RaftHardState, RaftMessage, RaftSnapshot};

/// Terms and indexes from here on are nonsense: raft-rs counts up from what it is told.
const NUMBER_MAX: u64 = 1 << 62;

/// Types of messages that peers send each other; everything else raft-rs knows is local, or not used here.
fn peer_type(number: u32) -> Result<MessageType, String> {
    let types = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    let found = types.into_iter().find(|known| *known as u32 == number);
    found.ok_or_else(|| format!("type {number} is not one that a peer may send"))
}

pub fn entry_to_raft(entry: &RaftEntry) -> eraftpb::Entry {
    eraftpb::Entry {
        entry_type: EntryType::EntryNormal,
        term: entry.term,
        index: entry.index,
        data: entry.data.clone(),
        context: entry.context.clone(),
        ..Default::default()
    }
}

pub fn entry_from_raft(entry: &eraftpb::Entry) -> RaftEntry {
    RaftEntry {
        entry_type: entry.entry_type as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

pub fn hard_state_to_raft(state: &RaftHardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
        ..Default::default()
    }
}

pub fn hard_state_from_raft(state: &eraftpb::HardState) -> RaftHardState {
    RaftHardState { term: state.term, vote: state.vote, commit: state.commit }
}

pub fn conf_state(voters: &[u64]) -> eraftpb::ConfState {
    eraftpb::ConfState { voters: voters.to_vec(), ..Default::default() }
}

/// The voters, ascending, if there is nothing but voters.
pub fn plain_voters(state: &RaftConfState) -> Option<Vec<u64>> {
    let RaftConfState { voters, learners, voters_outgoing, learners_next, auto_leave: _ } = state;
    let mut plain = voters.clone();
    plain.sort_unstable();
    (learners.is_empty() && voters_outgoing.is_empty() && learners_next.is_empty()).then_some(plain)
}

pub fn snapshot_to_raft(snapshot: &RaftSnapshot, voters: &[u64]) -> eraftpb::Snapshot {
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state(voters)).into(),
        index: snapshot.index,
        term: snapshot.term,
        ..Default::default()
    };
    eraftpb::Snapshot {
        data: snapshot.data.clone(),
        metadata: Some(metadata).into(),
        ..Default::default()
    }
}

pub fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> RaftSnapshot {
    let metadata = snapshot.get_metadata();
    RaftSnapshot {
        data: snapshot.data.clone(),
        conf_state: Some(RaftConfState {
            voters: metadata.get_conf_state().voters.clone(),
            ..Default::default()
        }),
        index: metadata.index,
        term: metadata.term,
    }
}

/// `voters`: ascending. The error says what is wrong with the message.
pub fn message_to_raft(message: &RaftMessage, voters: &[u64]) -> Result<eraftpb::Message, String> {
    let msg_type = peer_type(message.msg_type)?;
    check_numbers(message)?;
    let entries = message.entries.iter().map(entry_to_raft).collect::<Vec<_>>();
    let mut converted = eraftpb::Message {
        msg_type,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: entries.into(),
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.clone(),
        priority: message.priority,
        ..Default::default()
    };
    match (&message.snapshot, msg_type) {
        (Some(snapshot), MessageType::MsgSnapshot) => {
            check_snapshot(snapshot, message.term, voters)?;
            converted.set_snapshot(snapshot_to_raft(snapshot, voters));
        }
        (None, MessageType::MsgSnapshot) => return Err("a snapshot message without one".into()),
        (Some(_), _) => return Err("a snapshot in a message of another type".into()),
        (None, _) => {}
    }
    Ok(converted)
}

fn check_numbers(message: &RaftMessage) -> Result<(), String> {
    // term 0 marks raft-rs's local messages, whose terms it does not check
    if message.term == 0 {
        return Err("term 0".into());
    }
    let RaftMessage { term, log_term, index, commit, commit_term, reject_hint, .. } = *message;
    if [term, log_term, index, commit, commit_term, reject_hint].iter().any(|n| *n >= NUMBER_MAX) {
        return Err("a term or index beyond all bounds".into());
    }
    if message.request_snapshot != 0 {
        return Err("it asks for a snapshot, which nobody here does".into());
    }
    let is_append = message.msg_type == MessageType::MsgAppend as u32;
    if !message.entries.is_empty() && !is_append {
        return Err("entries in a message that carries none".into());
    }
    // raft-rs says of every index that it has not that its term is 0, and takes such a message for one that joins its log.
    if is_append && message.log_term == 0 && message.index != 0 {
        return Err(format!("entries after index {}, which has no term", message.index));
    }
    let mut previous = message.log_term.max(1);
    for (entry, index) in message.entries.iter().zip(message.index + 1..) {
        if entry.index != index || entry.term < previous || entry.term > message.term {
            return Err(format!("entry {} of term {} is out of order", entry.index, entry.term));
        }
        if entry.entry_type != EntryType::EntryNormal as u32 {
            return Err(format!("entry {index} would change the members"));
        }
        previous = entry.term;
    }
    Ok(())
}

fn check_snapshot(snapshot: &RaftSnapshot, term: u64, voters: &[u64]) -> Result<(), String> {
    let RaftSnapshot { index, term: snapshot_term, .. } = *snapshot;
    if index == 0 || index >= NUMBER_MAX || snapshot_term == 0 || snapshot_term > term {
        return Err(format!("a snapshot at index {index} of term {snapshot_term}"));
    }
    let theirs = snapshot.conf_state.as_ref().and_then(plain_voters);
    if theirs.as_deref() != Some(voters) {
        return Err(format!("a snapshot of voters {theirs:?}; the configuration says {voters:?}"));
    }
    Ok(())
}

pub fn message_from_raft(message: &eraftpb::Message) -> RaftMessage {
    let snapshot = message.snapshot.as_ref().filter(|snapshot| !snapshot.is_empty());
    RaftMessage {
        msg_type: message.msg_type as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry_from_raft).collect(),
        commit: message.commit,
        snapshot: snapshot.map(snapshot_from_raft),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: Bytes::clone(&message.context),
        commit_term: message.commit_term,
        priority: message.priority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append() -> RaftMessage {
        let entry = |index, term| RaftEntry {
            index,
            term,
            data: Bytes::from_static(b"x"),
            ..Default::default()
        };
        RaftMessage {
            msg_type: 3,
            to: 1,
            from: 2,
            term: 7,
            log_term: 4,
            index: 10,
            entries: vec![entry(11, 5), entry(12, 7)],
            commit: 10,
            ..Default::default()
        }
    }

    fn snapshot() -> RaftMessage {
        let conf_state = Some(RaftConfState { voters: vec![2, 1], ..Default::default() });
        let snapshot = Some(RaftSnapshot { index: 9, term: 7, conf_state, ..Default::default() });
        RaftMessage { msg_type: 7, to: 1, from: 2, term: 7, snapshot, ..Default::default() }
    }

    #[test]
    fn there_and_back() {
        let message = append();
        let there = message_to_raft(&message, &[1, 2]).unwrap();
        assert_eq!(message_from_raft(&there), message);
        let mut message = snapshot();
        let there = message_to_raft(&message, &[1, 2]).unwrap();
        let conf_state = Some(RaftConfState { voters: vec![1, 2], ..Default::default() });
        message.snapshot.as_mut().unwrap().conf_state = conf_state;
        assert_eq!(message_from_raft(&there), message);
    }

    #[test]
    fn foreign_nonsense_is_refused() {
        let append_with = |spoil: fn(&mut RaftMessage)| {
            let mut message = append();
            spoil(&mut message);
            message_to_raft(&message, &[1, 2]).unwrap_err()
        };
        let snapshot_with = |spoil: fn(&mut RaftMessage)| {
            let mut message = snapshot();
            spoil(&mut message);
            message_to_raft(&message, &[1, 2]).unwrap_err()
        };
        assert!(append_with(|m| m.msg_type = 2).contains("type 2"), "a proposal");
        assert!(append_with(|m| m.msg_type = 0).contains("type 0"), "a local message");
        assert!(append_with(|m| m.msg_type = 15).contains("type 15"), "a read index");
        assert!(append_with(|m| m.msg_type = 99).contains("type 99"));
        assert!(append_with(|m| m.term = 0).contains("term 0"));
        assert!(append_with(|m| m.term = u64::MAX).contains("bounds"));
        assert!(append_with(|m| m.request_snapshot = 1).contains("asks"));
        assert!(append_with(|m| m.entries[1].index = 13).contains("out of order"));
        assert!(append_with(|m| m.entries[0].term = 3).contains("out of order"));
        assert!(append_with(|m| m.entries[1].term = 8).contains("out of order"));
        assert!(append_with(|m| m.log_term = 0).contains("no term"));
        assert!(
            append_with(
                |m| (m.log_term, m.index, m.entries[0].index, m.entries[0].term) = (0, 0, 1, 0)
            )
            .contains("out of order")
        );
        assert!(append_with(|m| m.entries[0].entry_type = 1).contains("members"));
        assert!(append_with(|m| m.msg_type = 8).contains("carries none"));
        assert!(append_with(|m| m.snapshot = Some(RaftSnapshot::default())).contains("another"));
        assert!(snapshot_with(|m| m.snapshot = None).contains("without"));
        assert!(snapshot_with(|m| m.snapshot.as_mut().unwrap().index = 0).contains("index 0"));
        assert!(snapshot_with(|m| m.snapshot.as_mut().unwrap().term = 8).contains("term 8"));
        assert!(snapshot_with(|m| m.snapshot.as_mut().unwrap().conf_state = None).contains("None"));
    }
}
