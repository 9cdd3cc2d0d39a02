//! The JSON others script against, field by field.
//!
//! Fields may be added, never changed. Every field is always there; what is not known is `null`.

use serde::{Deserialize, Serialize};

use super::durability::DurabilityStatus;
use super::generations::HeldBack;

/// `ctl status --output json`, and `/status` of every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of this layout: 1.
    pub version: u32,
    pub cluster: String,
    pub verdict: Verdict,
    /// One line: is the data safe, and how much more is survived.
    pub summary: String,
    /// How many more nodes may fail, whichever they are, with commits going on.
    pub survives_failures: u32,
    pub epoch: u64,
    /// `null` before the first master was elected.
    pub generation: Option<GenerationStatus>,
    /// The open master, the one that takes commits; `null` if there is none.
    pub master: Option<String>,
    pub raft_leader: Option<String>,
    /// `majority`, `all` or `local`.
    pub durability: String,
    #[serde(default)]
    pub durability_now: DurabilityStatus,
    /// No automatic elections until somebody says `ctl resume`.
    pub paused: bool,
    pub pack: Option<PackStatus>,
    /// Who asked for a pack that an election called off; it is started again by itself.
    pub pack_again: Option<String>,
    /// The promote that the Raft leader was asked for last, while its target catches up or after it was called off.
    #[serde(default)]
    pub promote: Option<PromoteStatus>,
    pub if_master_died: IfMasterDied,
    /// Older generations that are kept only because a member has not moved on; `null`: none.
    #[serde(default)]
    pub held_back: Option<HeldBack>,
    pub nodes: Vec<NodeStatus>,
    /// Suggested commands, most urgent first.
    pub next: Vec<String>,
    /// The node whose view this is.
    pub answered_by: String,
    pub phase: Phase,
    /// Decisions ever made: the number of the newest in the history.
    pub decisions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// An open master, and every voter in step with it.
    Healthy,
    /// An open master and a majority, but not all.
    Degraded,
    /// No open master, or no majority, or with durability `all` not every voter: commits wait.
    Unavailable,
}

/// Where mastership stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nobody was ever elected.
    None,
    /// The epoch is fenced, nobody is elected yet.
    Fencing,
    /// Elected, but its epoch start is not committed yet.
    Elected,
    Open,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    pub number: u64,
    /// 40 hex digits.
    pub base_hash: String,
    /// The transaction at which the base was taken; 0 for the first generation.
    pub cut_seq: u64,
    /// RFC 3339.
    pub since: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackStatus {
    /// The generation being made.
    pub generation: u64,
    /// `mark`, `build` or `switch`: what the cluster as a whole is at.
    pub phase: String,
    /// RFC 3339.
    pub since: Option<String>,
    pub asked_by: String,
    /// P, F and the number of objects dropped; `null` while marking.
    pub pack_seq: Option<u64>,
    pub cut_seq: Option<u64>,
    pub dead_objects: Option<u64>,
    /// 40 hex digits; `null` until the first node has built it.
    pub base_hash: Option<String>,
    pub base_bytes: Option<u64>,
    pub nodes: Vec<PackNode>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackNode {
    pub name: String,
    /// `waiting`, `mark`, `build`, `verify`, `rechain`, `ready`, `differs: ...`, `failed: ...` or `unknown`.
    pub phase: String,
    /// Of the phase, and so are the following.
    pub percent: f64,
    /// Read and written, or re-chained.
    #[serde(default)]
    pub done_bytes: u64,
    /// About; `null`: not known yet.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    #[serde(default)]
    pub bytes_per_s: u64,
    /// At that rate; `null`: not known yet.
    #[serde(default)]
    pub seconds_left: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromoteStatus {
    /// Not that of another promote of the same Raft leader.
    pub id: u64,
    pub node: String,
    pub asked_by: String,
    /// Of the master's file; the promote begins when it is little.
    pub lacks_bytes: u64,
    /// Why it will not be; `null`: it goes on.
    pub called_off: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IfMasterDied {
    /// `null`: nobody could, see `others`.
    pub winner: Option<String>,
    /// Acknowledged transactions that would be lost: 0 unless durability is `local`.
    pub transactions_at_risk: u64,
    /// Why the other nodes would not win.
    pub others: Vec<Loser>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loser {
    pub name: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    /// `master`, `slave`, `learner` or `witness`.
    pub role: String,
    /// For people: what it is doing, or what is wrong with it.
    pub state: String,
    /// The epoch it has durably promised.
    pub epoch: u64,
    pub generation: u64,
    /// Position: `seq`, `offset` and `chain` are of one transaction's end, the newest durable one.
    pub seq: u64,
    pub offset: u64,
    /// 40 hex digits.
    pub chain: String,
    pub durable_seq: u64,
    pub committed_seq: u64,
    pub lag: Lag,
    /// `null`: never verified.
    pub verified: Option<Verified>,
    pub eligible: bool,
    pub why_not: Option<String>,
    /// `leader`, `follower`, `candidate` or `down`.
    pub raft: String,
    pub clients: u64,
    pub disk: DiskStatus,
    /// `null`: never, since the answering node started.
    pub seen_ms_ago: Option<u64>,
    pub version: String,
    pub addresses: Addresses,
    /// Heard of recently enough to count.
    pub answering: bool,
    /// Is the open master, or follows it with its position matched.
    pub in_step: bool,
    pub written_seq: u64,
    pub priority: i64,
    pub suspect: Option<String>,
    pub failing: Option<String>,
    /// Bytes of file data that rebases took over the wire since the node started.
    pub fetched_bytes: u64,
    /// How the last rebase was done; `null` if there was none.
    pub rebase: Option<String>,
    #[serde(default)]
    pub rebases: RebaseStatus,
    /// In a pack it has built another base than two others, and no right one since: which, and what to do; `null`: it has not.
    #[serde(default)]
    pub odd_build: Option<String>,
    /// What came in this node's name and can't be true, by who was sent it: it was not acted upon.
    #[serde(default)]
    pub disbelieved: Vec<Disbelieved>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disbelieved {
    pub seen_by: String,
    /// The newest: "term 461 (ours 7)".
    pub what: String,
    pub seconds_ago: f64,
    /// Since the process of `seen_by` started.
    pub times: u64,
}

/// How a node has moved to newer generations since it started. The rungs of the ladder: `local`, built from its own file;
/// `tail`, what that file lacked was fetched first; `base`, the packed file was fetched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RebaseStatus {
    pub local: RungStatus,
    pub tail: RungStatus,
    pub base: RungStatus,
    /// Of bases: found on its own disk, from a fetch that a restart had interrupted.
    pub reused_bytes: u64,
    /// Of bases: blocks from peers that were not what they should be.
    pub refused_bytes: u64,
    /// Of bases: given to other nodes.
    #[serde(default)]
    pub given_bytes: u64,
    /// The newest that is done; `null`: none since it started.
    pub last: Option<LastRebase>,
    /// The one in progress.
    pub now: Option<RebaseNow>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RungStatus {
    /// Rebases that came to their end on this rung.
    pub finished: u64,
    /// File data taken over the wire on it, whether or not the rebase is done.
    pub wire_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastRebase {
    pub rung: String,
    pub generation: u64,
    pub wire_bytes: u64,
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RebaseNow {
    pub rung: String,
    /// It leads to.
    pub generation: u64,
    /// `build`, `fetch`, `check` (what is here from before) or `verify`.
    pub doing: String,
    pub bytes: u64,
    /// `null`: not known yet; so with the next three.
    pub total_bytes: Option<u64>,
    /// Of what it is doing: 0 to 1.
    pub share: Option<f64>,
    pub bytes_per_second: Option<u64>,
    pub seconds_left: Option<f64>,
}

/// Behind the master's last known commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    pub transactions: u64,
    pub bytes: u64,
    /// Between the times of the newest transactions here and there.
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    pub seq: u64,
    /// RFC 3339.
    pub at: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub file_bytes: u64,
    pub free_bytes: u64,
    /// About how much of the file a pack would not keep; and what must be free for a pack.
    #[serde(default)]
    pub garbage_bytes: u64,
    #[serde(default)]
    pub pack_needs_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    pub durus: String,
    pub peer: String,
    pub http: String,
}

impl DiskStatus {
    pub fn garbage_percent(&self) -> u64 {
        super::room::garbage_percent(self.file_bytes, self.garbage_bytes)
    }
}

impl Status {
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The row of the node that answered; absent only before it is a member.
    pub fn own(&self) -> Option<&NodeStatus> {
        self.node(&self.answered_by)
    }
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Degraded => "degraded",
            Verdict::Unavailable => "unavailable",
        }
    }
}
