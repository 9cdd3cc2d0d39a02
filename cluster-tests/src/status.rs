//! What `ctl status --output json` says, read as a script would read it: by the documented fields, with types of our
//! own, so that a field that changes its name or kind is noticed here.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub version: u32,
    pub cluster: String,
    /// `healthy`, `degraded` or `unavailable`.
    pub verdict: String,
    pub summary: String,
    pub survives_failures: u32,
    pub epoch: u64,
    pub generation: Option<Generation>,
    pub master: Option<String>,
    pub raft_leader: Option<String>,
    pub durability: String,
    pub paused: bool,
    pub pack: Option<serde_json::Value>,
    pub nodes: Vec<Node>,
    pub next: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Generation {
    pub number: u64,
    /// 40 hex digits.
    pub base_hash: String,
    pub cut_seq: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub name: String,
    /// `master`, `slave`, `learner` or `witness`.
    pub role: String,
    pub state: String,
    pub epoch: u64,
    pub generation: u64,
    pub seq: u64,
    pub offset: u64,
    /// 40 hex digits.
    pub chain: String,
    pub durable_seq: u64,
    pub committed_seq: u64,
    pub eligible: bool,
    pub why_not: Option<String>,
    pub raft: String,
    pub clients: u64,
    pub seen_ms_ago: Option<u64>,
    /// File data that rebases took over the wire, in bytes.
    pub fetched_bytes: u64,
    /// How the last rebase was done.
    pub rebase: Option<String>,
    pub rebases: Rebases,
}

/// How a node came into its generations, by the rungs of the ladder.
#[derive(Clone, Debug, Deserialize)]
pub struct Rebases {
    pub local: Rung,
    pub tail: Rung,
    pub base: Rung,
    pub reused_bytes: u64,
    pub refused_bytes: u64,
    pub last: Option<LastRebase>,
    pub now: Option<RebaseNow>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct Rung {
    pub finished: u64,
    pub wire_bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LastRebase {
    pub rung: String,
    pub generation: u64,
    pub wire_bytes: u64,
    pub seconds: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RebaseNow {
    pub rung: String,
    pub generation: u64,
    pub doing: String,
    pub bytes: u64,
    pub total_bytes: Option<u64>,
    pub share: Option<f64>,
    pub bytes_per_second: Option<u64>,
    pub seconds_left: Option<f64>,
}

impl Status {
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("status has no row of {name}: {self:#?}"))
    }

    pub fn is_healthy(&self) -> bool {
        self.verdict == "healthy"
    }

    /// Every node has the very same file, as far as their own words go.
    pub fn is_level(&self) -> bool {
        let place = |node: &Node| (node.generation, node.seq, node.offset, node.chain.clone());
        let settled = |node: &Node| node.committed_seq == node.seq && node.durable_seq == node.seq;
        self.nodes.iter().all(settled)
            && self.nodes.windows(2).all(|pair| place(&pair[0]) == place(&pair[1]))
    }
}
