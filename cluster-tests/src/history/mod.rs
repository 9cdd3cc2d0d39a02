//! What clients saw, judged against what the nodes' files hold. One judge for the simulator and for real processes.
//!
//! A [`History`] has two halves that know nothing of each other: the **sessions**, each a list of what one connection
//! asked and was answered, with the times of both on one clock; and the **order**, the committed transactions as an
//! independent parser found them in the files, with the packs in between. Every transaction of a client carries a tag
//! that is used once, in every object it stores; so a load tells whose transaction it saw, and the order tells where
//! that is. Nothing here searches for an order that would explain the answers: the files say which one it was, and
//! every answer must agree with that one. So the judge is exact and its time is linear.
//!
//! What stock Durus promises its clients is in the rules below, each by the name that a violation bears. Weaker than
//! stock only where the design says so: a load may show an object as it was at the session's last sync although
//! somebody has changed it since, which stock Durus would answer with a conflict.

mod files;
mod order;
mod record;
mod sessions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

pub use files::Files;
pub use record::{Lost, Recorded, mark, tag_text};

use crate::sim::parse::Object;

pub type Oid = u64;
/// Of one transaction of one client, and never of another.
pub type Tag = [u8; 16];
/// On a clock that all sessions share; only the order of times counts.
pub type Time = u64;

/// What a client's transaction writes into the data of every object it stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    pub tag: Tag,
    /// Goes up by one with each change of the object; 0 for an object that is not counted.
    pub count: u64,
}

/// All that is judged.
pub struct History<'a> {
    /// What was there before any client.
    pub initial: BTreeMap<Oid, Object>,
    pub order: Vec<Step<'a>>,
    pub sessions: Vec<Session>,
    /// Finds the mark in an object's data.
    pub mark: fn(&[u8]) -> Option<Mark>,
    /// An election has chosen another history: only what was seen of this one is judged, and not what became of it.
    pub abandoned: bool,
}

/// What happened to the committed state, in the order of the files.
#[derive(Clone, Copy)]
pub enum Step<'a> {
    Transaction {
        seq: u64,
        objects: &'a [(Oid, Object)],
    },
    /// From here on only these are there, and as they are here.
    Pack {
        generation: u64,
        base: &'a BTreeMap<Oid, Object>,
        /// The first seq that is not in the generation before, if that is known: whoever sees it sees the pack.
        switch: Option<u64>,
    },
}

/// What one connection saw, in order.
#[derive(Clone, Debug, Default)]
pub struct Session {
    pub name: String,
    pub events: Vec<Event>,
    /// It saw another history: what it sent is known, what it saw is not judged here.
    pub elsewhere: bool,
}

/// One question and its answer. An answer that never came has the last of all times.
#[derive(Clone, Debug)]
pub struct Event {
    pub asked: Time,
    pub answered: Time,
    pub what: What,
}

pub const NEVER: Time = Time::MAX;

#[derive(Clone, Debug)]
pub enum What {
    /// S was answered with these.
    Synced {
        invalid: Vec<Oid>,
    },
    /// C was answered with these; a commit may follow.
    Begun {
        invalid: Vec<Oid>,
    },
    /// An object without a mark has no tag.
    Loaded {
        oid: Oid,
        tag: Option<Tag>,
    },
    /// I: changed since the session was told.
    Invalid {
        oid: Oid,
    },
    /// K: there is none.
    Missing {
        oid: Oid,
    },
    Commit(Commit),
}

/// A transaction whose data was sent, or given up after C.
#[derive(Clone, Debug)]
pub struct Commit {
    pub tag: Tag,
    /// What it had read, from the cache or by loads: the tags that were there.
    pub reads: Vec<(Oid, Tag)>,
    pub writes: Vec<Oid>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Acknowledged,
    /// Refused: definitely not stored.
    Conflict,
    /// The connection ended first.
    Unknown,
    /// Acknowledged, and only the master had it (durability `local`): it may be lost if mastership moved.
    Alone,
    /// The client itself took no for an answer: nothing was sent.
    GivenUp,
}

/// What must hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// Seqs go up, one transaction each.
    OneOrder,
    /// A transaction is stored once at most.
    ExactlyOnce,
    /// Nothing is stored that no client sent, and what is stored is all of what was sent and no more.
    AsSent,
    /// What was acknowledged is stored.
    AckedIsDurable,
    /// What was refused or given up is not.
    RefusedIsAbsent,
    /// What was acknowledged before another was sent comes before it.
    RealTime,
    /// A stored transaction had read every object as it was when it was stored: else stock Durus reports a conflict.
    StaleRead,
    /// A counter goes up by one with each transaction.
    LostUpdate,
    /// A pack keeps all that the root reaches, as it was, and makes nothing up.
    GenerationEquivalent,
    /// All that the root reaches is there.
    ReferencesClosed,
    /// What a load shows was committed, and that object was in it.
    ReadIsCommittedPrefix,
    /// Nothing is seen before it was sent.
    ReadFromFuture,
    /// A session never sees an object older than one it has seen, nor, after a sync or when it is new, older than
    /// what was acknowledged to anybody before it asked.
    SessionMonotone,
    /// All that a client holds and was not told of, and all it loads, belongs to one moment between two syncs.
    Snapshot,
    /// What changed since is among the invalid oids of a sync, if the client may hold it.
    ToldOfChanges,
    /// What a pack took away is among the invalid oids of a sync after it, if the client may hold it.
    ToldOfTaken,
    /// An object is missing only if a pack dropped it, or nobody had made it.
    NotMissing,
}

/// A rule that does not hold, and where.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "violated {:?}: {}", self.rule, self.what)
    }
}

fn broken<T>(rule: Rule, what: String) -> Result<T, Violation> {
    Err(Violation { rule, what })
}

/// A history that holds, in figures.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Judged {
    pub transactions: u64,
    pub packs: u64,
    pub acknowledged: u64,
    pub conflicts: u64,
    /// Of these, such as stock Durus would not report: nothing that was read or written had changed. Allowed, not nice.
    pub needless_conflicts: u64,
    pub given_up: u64,
    pub unknown_found: u64,
    pub unknown_absent: u64,
    pub loads: u64,
    pub invalid_loads: u64,
    pub missing_loads: u64,
    pub syncs: u64,
    /// Acknowledged by a master alone, and lost.
    pub lost: u64,
}

/// Judges a whole history.
pub fn judge(history: &History<'_>) -> Result<Judged, Violation> {
    let mut judged = Judged::default();
    let sent = order::Sent::collect(&history.sessions)?;
    let past = order::walk(history, &sent, &mut judged)?;
    if !history.abandoned {
        order::outcomes(&sent, &past, &mut judged)?;
    }
    let acknowledged = sessions::Acknowledged::new(&sent, &past);
    for session in history.sessions.iter().filter(|session| !session.elsewhere) {
        sessions::judge(session, &sent, &past, &acknowledged, &mut judged)?;
    }
    Ok(judged)
}
