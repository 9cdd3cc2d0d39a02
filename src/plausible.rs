//! Which numbers from outside are believed.
//!
//! A peer may send any number: it may be broken, or somebody may speak in its name. Epochs, terms and indices only grow,
//! and what was promised or voted for can't be taken back. So one number near the end of its range, once it is durable,
//! would end the cluster. A number that lies far ahead of what this node knows is therefore not refused for ever, and not
//! believed yet: it is not acted upon and never made durable, its sender is named in the log and in `ctl status`, and it
//! is believed once this node's own state has come near it. A node that was away for long comes back by itself, since what
//! brings it near, Raft's log and chains, is not bounded by what it has.
//!
//! | message and field | believed when |
//! | --- | --- |
//! | `RaftMessage.term` | at most [`TERM_AHEAD_MAX`] above this node's term |
//! | `RaftMessage.commit` of a heartbeat | this node's log reaches so far; if not, see "claims" |
//! | `RaftMessage.commit` of an append | at most [`INDEX_AHEAD_MAX`] beyond the last entry that the message brings |
//! | `RaftMessage.index` of a vote request | at most [`INDEX_AHEAD_MAX`] beyond this node's log; if not, see "claims" |
//! | `RaftMessage.log_term` of a vote request | below the term that is voted for |
//! | `RaftMessage.index` of an answer | the leader's log reaches so far |
//! | `RaftSnapshot.index`, `.term` | the same two numbers are in the snapshot's data; they are not bounded by this node's log |
//! | `FenceRequest.epoch`, `Append.epoch`, `Beat.promised` | this node's applied log has the epoch's fence, or it is at most [`EPOCH_AHEAD_MAX`] above this node's |
//! | `Beat.promise_durable`, `PeerView.promised` | this node's applied log has the epoch's fence: nobody promises before that is committed |
//! | `Beat`: seqs | base, durable and committed are at most what is written |
//! | `Beat.position` of an open master, as what it had | its chain is in this node's own file |
//! | `PeerView.acked_seq`, `.promised`, `.disk_uuid`, against this node | see "claims"; and nobody has heard of a seq that it has not itself |
//! | `Beat.raft_applied` | until the same node's next beat |
//! | `Append.commit` | its chain is in this node's file; or at most [`SEQ_AHEAD_MAX`] beyond what the append proves, for what the append proves |
//! | `Append.acknowledged_seq` | at most [`SEQ_AHEAD_MAX`] beyond what this node and the master's beat have |
//! | `Append.prev`, `AppendReply` tips and points, `CommonPoint`, `Probe`, `ProbeReply.match` | the chain is in this node's file |
//! | `FenceReport.epoch`, epochs of `AppendReply`, `CommonPoint`, `Confirm`, `Register`, `ClientRequest`, `ClientReply` and their answers | equal to the one that was asked about, or is being served |
//! | `FenceReport.position.generation`, first election | equal to what the same process says in its beat |
//! | `FenceReport.position` | a floor that nobody has is never opened on: the next fence asks anew |
//! | `ClientReply` seqs | at most [`SEQ_AHEAD_MAX`] beyond what this node and the master's beat have; the question is asked again |
//! | `ClientReply.oids` | at most [`OID_AHEAD_MAX`] above the applied limit |
//! | `Register.told_generation`, `Told.generation` | at most the master's own |
//! | `Propose.command.at_wall_us` | never: the leader puts its own time |
//! | `Propose`: `OidBlock.below` | from the epoch's master, and at most [`OID_AHEAD_MAX`] above the limit and what the leader's file has |
//! | `Propose`: `PackSeal.pack_seq`, `.cut_seq` | from the epoch's master, and at most [`SEQ_AHEAD_MAX`] beyond what it and the leader have |
//! | `Propose`: node of `MemberUp`, `PackBase`, `PackReady`, `TailLost` | it is the sender |
//! | `Propose`: `Fence`, `Elect`, `Opened`, `Setting`, `Pause` | never: the leader decides these |
//! | offsets, lengths, counts, `file_len`, `base_len`, block numbers | as far as bytes with the right chain or block hash come for them |
//! | time in a transaction | as part of a chain that matches; it is for people |
//!
//! **Claims.** Some things only one peer can know: that this node had acknowledged an entry which its log has not, or
//! that it had promised an epoch which its disk has not. Both mean that its disk was set back, and that it must not take
//! part. A single message proves nothing: a claim stands when the same peer has made it [`CLAIM_REPEATS`] times over
//! [`CLAIM_MS`] and has not said otherwise in between. Who is right repeats it with every heartbeat or beat.

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{NodeId, Now};

/// Terms above this node's.
pub const TERM_AHEAD_MAX: u64 = 1 << 32;
/// Epochs above this node's.
pub const EPOCH_AHEAD_MAX: u64 = 1 << 20;
/// Raft indices beyond what is known: more than a Raft log ever holds between two snapshots.
pub const INDEX_AHEAD_MAX: u64 = 1 << 20;
/// Transactions beyond what is known.
pub const SEQ_AHEAD_MAX: u64 = 1 << 20;
/// Oids above the limit: many blocks.
pub const OID_AHEAD_MAX: u64 = 1 << 20;
/// So often a claim is made before it stands...
pub const CLAIM_REPEATS: u32 = 3;
/// ...and over so many milliseconds.
pub const CLAIM_MS: u64 = 200;
/// A claim that is not repeated for so many milliseconds is forgotten.
pub const CLAIM_STALE_MS: u64 = 1000;
/// Bytes of one number's story that are kept.
const TEXT_MAX: usize = 300;

/// A number that is not believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disbelieved {
    /// Of what: "term".
    pub what: &'static str,
    pub theirs: u64,
    pub ours: u64,
}

impl fmt::Display for Disbelieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (ours {})", self.what, self.theirs, self.ours)
    }
}

/// Is `theirs` at most `ahead` above `ours`?
pub fn within(what: &'static str, theirs: u64, ours: u64, ahead: u64) -> Result<(), Disbelieved> {
    match theirs <= ours.saturating_add(ahead) {
        true => Ok(()),
        false => Err(Disbelieved { what, theirs, ours }),
    }
}

/// What a peer says of this node or of itself that one message does not prove.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Claim {
    /// This node's Raft log lacks what it has acknowledged.
    RaftLogForgotten,
    /// The peer's Raft log is far ahead, and it asks for a vote.
    FarAhead,
    /// This node's disk is below what it said.
    DiskForgotten,
    /// The same, of an epoch that this node has not heard of yet.
    Unsettled,
}

/// Claims that are being made, by peer.
#[derive(Debug, Default)]
pub struct Claims {
    made: BTreeMap<(NodeId, Claim), Made>,
}

#[derive(Debug)]
struct Made {
    first: Now,
    last: Now,
    times: u32,
}

impl Made {
    fn is_fresh(&self, now: Now) -> bool {
        now.since_ms(self.last) <= CLAIM_STALE_MS
    }
}

impl Claims {
    /// Made once more. True: it stands.
    pub fn make(&mut self, from: NodeId, claim: Claim, now: Now) -> bool {
        let fresh = Made { first: now, last: now, times: 0 };
        let made = self.made.entry((from, claim)).or_insert(fresh);
        if !made.is_fresh(now) {
            *made = Made { first: now, last: now, times: 0 };
        }
        made.last = now;
        made.times += 1;
        made.times >= CLAIM_REPEATS && now.since_ms(made.first) >= CLAIM_MS
    }

    /// The peer says otherwise.
    pub fn withdraw(&mut self, from: NodeId, claim: Claim) {
        self.made.remove(&(from, claim));
    }

    /// Does anybody make it now?
    pub fn is_made(&self, claim: Claim, now: Now) -> bool {
        self.made.iter().any(|((_, of), made)| *of == claim && made.is_fresh(now))
    }
}

/// What of a peer was not believed, for people.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub text: String,
    pub last: Now,
    /// How often since this process started.
    pub times: u64,
}

/// By the peer that sent it.
#[derive(Debug, Default)]
pub struct Memory {
    peers: BTreeMap<NodeId, Remembered>,
}

impl Memory {
    /// True: it is news, worth a line in the log.
    pub fn note(&mut self, from: NodeId, text: &str, now: Now) -> bool {
        /// The same is said again after so many milliseconds.
        const AGAIN_MS: u64 = 10_000;
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        let known = self.peers.get(&from);
        let times = known.map_or(0, |it| it.times) + 1;
        let news = known.is_none_or(|it| it.text != text || now.since_ms(it.last) >= AGAIN_MS);
        self.peers.insert(from, Remembered { text: text.to_string(), last: now, times });
        news
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Remembered)> {
        self.peers.iter().map(|(id, remembered)| (*id, remembered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { mono_us: 1 + ms * 1000, wall_us: 0 }
    }

    #[test]
    fn a_jump_is_bounded_by_what_is_known() {
        assert!(within("epoch", 7 + EPOCH_AHEAD_MAX, 7, EPOCH_AHEAD_MAX).is_ok());
        let error = within("epoch", 8 + EPOCH_AHEAD_MAX, 7, EPOCH_AHEAD_MAX).unwrap_err();
        assert_eq!(error.to_string(), "epoch 1048584 (ours 7)");
        assert!(within("epoch", u64::MAX, u64::MAX - 1, EPOCH_AHEAD_MAX).is_ok(), "no overflow");
        assert!(within("term", 3, 7, TERM_AHEAD_MAX).is_ok(), "what is behind is judged elsewhere");
    }

    #[test]
    fn a_claim_stands_when_one_peer_repeats_it_for_a_while() {
        let (mut claims, claim) = (Claims::default(), Claim::DiskForgotten);
        let made = |claims: &mut Claims, node, ms| claims.make(NodeId(node), claim, at(ms));
        assert!(!made(&mut claims, 2, 0));
        assert!(
            !made(&mut claims, 3, 150) && !made(&mut claims, 2, 160),
            "two peers, once or twice"
        );
        assert!(claims.is_made(claim, at(160)));
        claims.withdraw(NodeId(2), claim);
        assert!(
            !made(&mut claims, 2, 300) && !made(&mut claims, 2, 301),
            "it said otherwise before"
        );
        assert!(!made(&mut claims, 2, 302), "three times, but in one moment");
        assert!(made(&mut claims, 2, 501));
        assert!(!claims.is_made(claim, at(1502)) && !made(&mut claims, 2, 1600), "forgotten");
        assert!(!claims.is_made(Claim::FarAhead, at(1600)));
    }

    #[test]
    fn what_was_not_believed_is_told_once_and_counted() {
        let mut memory = Memory::default();
        assert!(memory.note(NodeId(2), "term 9 (ours 1)", at(0)));
        assert!(!memory.note(NodeId(2), "term 9 (ours 1)", at(5)));
        assert!(memory.note(NodeId(2), "term 8 (ours 1)", at(6)));
        let all: Vec<_> = memory.iter().map(|(id, it)| (id.0, it.times, &it.text[..])).collect();
        assert_eq!(all, [(2, 3, "term 8 (ours 1)")]);
    }
}
