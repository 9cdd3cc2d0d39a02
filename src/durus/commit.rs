//! The master's judgement of a commit.
//!
//! In stock Durus nothing is committed between what a client was told and its data. Here something may be; so a
//! commit says up to which seq its client was told (its base), and it is stored only if nothing that changed after
//! the base is among what it writes or what its client may have read. Changes count from the moment they are appended,
//! committed or not: they come before this one in the file.
//!
//! A commit may be asked for more than once, also of different masters. Its id is in the file, so a node knows, for
//! every commit whose base is within a window, whether it is in its chain. Outside the window that cannot be known, and
//! is said so. Every node feeds its window from its own chain, slave or master, so that it is ready to judge.
//!
//! A judgement "conflict" is final for this process: a second copy of the request gets it too, so that a client that
//! heard of a conflict never has its data stored after all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringTreemap;

use super::oids::{Exists, OidPool, OidUse, SessionKey};
use crate::mutants::{self, Mutant};
use crate::shelf;
use crate::types::{CommitId, Oid, Seq};

/// Changed oids that are remembered. A commit with an older base conflicts.
const WINDOW_OIDS_MAX: usize = 1_000_000;
/// Transactions whose commit ids are remembered.
const IDS_MAX: usize = 262_144;
/// Oids that a client is told of before they are visible.
const AHEAD_OIDS_MAX: usize = 20_000;
/// Conflicts that are remembered.
const CONFLICTS_MAX: usize = 65_536;

/// One commit, as it was asked for.
pub struct CommitRequest<'a> {
    pub commit_id: CommitId,
    pub session: SessionKey,
    /// The client was told of every change up to here.
    pub base: Seq,
    /// And of what comes after it, up to here. The caller has made sure that it was this chain's.
    pub ahead: Option<Seq>,
    pub records: &'a [(Oid, Bytes)],
    /// What the client may have read, if it was sent along.
    pub touched: Option<&'a RoaringTreemap>,
}

/// Reads an object's record. The error is a read that failed.
pub type Stored<'a> = &'a dyn Fn(Oid) -> Result<Option<Bytes>, String>;

/// What a commit is judged on.
pub struct Ground<'a> {
    /// The newest transaction that the asker's client may be told is stored.
    pub acknowledged: Seq,
    pub exists: Exists<'a>,
    pub pool: &'a OidPool,
    /// Objects that the pack in progress will not keep.
    pub dead: Option<&'a RoaringTreemap>,
    /// The record of an object as it is committed.
    pub stored: Stored<'a>,
}

/// What to do with a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it now, then [`CommitChecker::noted`] and [`OidPool::used`].
    Accept,
    /// It is stored as this transaction, and its client may be told so.
    AlreadyCommitted(Seq),
    /// It is appended as this transaction: answer when its client may be told.
    InFlight(Seq),
    /// Others changed something since its base: ask for what its client may have read.
    SendTouched,
    /// Definitely not stored. `dead`: what it used and a pack drops.
    Conflict { why: String, dead: Vec<Oid> },
    /// Close the session.
    Refused(String),
}

/// What a client may have read did not parse.
#[derive(Debug, thiserror::Error)]
#[error("set of touched oids: {0}")]
pub struct TouchedError(#[from] std::io::Error);

/// The set that came with a commit, from its bytes.
pub fn decode_touched(bytes: &[u8]) -> Result<RoaringTreemap, TouchedError> {
    Ok(RoaringTreemap::deserialize_from(bytes)?)
}

/// The recent past of one node's chain.
pub struct CommitChecker {
    changes: VecDeque<(Seq, Arc<[Oid]>)>,
    oids: usize,
    /// Every change after this is in `changes`.
    changes_after: Seq,
    ids: BTreeMap<CommitId, Seq>,
    ids_in_order: VecDeque<(Seq, CommitId)>,
    /// Every commit after this is in `ids`.
    ids_after: Seq,
    last: Seq,
    conflicts: BTreeSet<CommitId>,
    conflicts_in_order: VecDeque<CommitId>,
}

impl CommitChecker {
    /// Knows nothing up to `last`, the chain's end or an earlier point from which on it is told now.
    pub fn new(last: Seq) -> CommitChecker {
        CommitChecker {
            changes: VecDeque::new(),
            oids: 0,
            changes_after: last,
            ids: BTreeMap::new(),
            ids_in_order: VecDeque::new(),
            ids_after: last,
            last,
            conflicts: BTreeSet::new(),
            conflicts_in_order: VecDeque::new(),
        }
    }

    /// The next transaction of the chain was appended, whether it is committed or not.
    pub fn noted(&mut self, seq: Seq, commit_id: CommitId, oids: &[Oid]) {
        let last = self.last;
        assert!(seq == last.next(), "transaction {seq} appended after {last}");
        self.last = seq;
        if !oids.is_empty() {
            self.oids += oids.len();
            self.changes.push_back((seq, oids.into()));
        }
        if commit_id != CommitId::NONE {
            self.ids.insert(commit_id, seq);
            self.ids_in_order.push_back((seq, commit_id));
        }
        while self.oids > WINDOW_OIDS_MAX
            && let Some((dropped, oids)) = self.changes.pop_front()
        {
            self.oids -= oids.len();
            self.changes_after = dropped;
        }
        while self.ids_in_order.len() > IDS_MAX
            && let Some((dropped, id)) = self.ids_in_order.pop_front()
        {
            self.ids.remove(&id);
            self.ids_after = dropped;
        }
    }

    /// The chain was cut back to `seq`.
    pub fn truncated(&mut self, seq: Seq) {
        while let Some((_, oids)) = self.changes.pop_back_if(|(above, _)| *above > seq) {
            self.oids -= oids.len();
        }
        while let Some((_, id)) = self.ids_in_order.pop_back_if(|(above, _)| *above > seq) {
            if !mutants::broken(Mutant::CutIdsKept) {
                self.ids.remove(&id);
            }
        }
        self.last = self.last.min(seq);
        self.changes_after = self.changes_after.min(seq);
        self.ids_after = self.ids_after.min(seq);
    }

    /// The node took another file, which ends at `last`.
    pub fn jumped(&mut self, last: Seq) {
        *self = CommitChecker::new(last);
    }

    /// What the chain's transactions after `seq` store. None: there are none, or they are too old or too many.
    pub fn changed_after(&self, seq: Seq) -> Option<RoaringTreemap> {
        if seq >= self.last || seq < self.changes_after {
            return None;
        }
        let from = self.changes.partition_point(|(at, _)| *at <= seq);
        let mut oids = RoaringTreemap::new();
        let mut left = AHEAD_OIDS_MAX;
        for (_, changed) in self.changes.range(from..) {
            left = left.checked_sub(changed.len())?;
            oids.extend(changed.iter().map(|oid| oid.0));
        }
        Some(oids)
    }

    /// Newest transaction known here.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Where the commit of this id is in the chain, if it is within the window.
    pub fn find(&self, commit_id: CommitId) -> Option<Seq> {
        self.ids.get(&commit_id).copied()
    }

    /// Judges one commit. The error is a read of the file that failed.
    pub fn check(
        &mut self,
        request: &CommitRequest<'_>,
        ground: &Ground<'_>,
    ) -> Result<Verdict, String> {
        let verdict = self.judge(request, ground)?;
        if let Verdict::Conflict { .. } = verdict
            && !mutants::broken(Mutant::ConflictForgotten)
        {
            self.remember_conflict(request.commit_id);
        }
        Ok(verdict)
    }

    fn remember_conflict(&mut self, id: CommitId) {
        if self.conflicts.insert(id) {
            self.conflicts_in_order.push_back(id);
        }
        while self.conflicts_in_order.len() > CONFLICTS_MAX
            && let Some(id) = self.conflicts_in_order.pop_front()
        {
            self.conflicts.remove(&id);
        }
    }

    fn judge(&self, request: &CommitRequest<'_>, ground: &Ground<'_>) -> Result<Verdict, String> {
        let known = self.find(request.commit_id);
        if let Some(seq) = known.filter(|_| !mutants::broken(Mutant::CommitIdNotChecked)) {
            let told = seq <= ground.acknowledged || mutants::broken(Mutant::ToldWhenInFlight);
            return Ok(if told { Verdict::AlreadyCommitted(seq) } else { Verdict::InFlight(seq) });
        }
        let (base, last) = (request.base, self.last);
        if self.conflicts.contains(&request.commit_id) {
            return Ok(conflict("it was a conflict when it was asked for before"));
        }
        if base < self.ids_after {
            let after = self.ids_after;
            let why = format!("outcome unknown: based on {base}, commits are known after {after}");
            return Ok(Verdict::Refused(why));
        }
        if base > last {
            return Ok(Verdict::Refused(format!("based on {base}, the chain ends at {last}")));
        }
        let oids = match well_formed(request.records) {
            Ok(oids) => oids,
            Err(why) => return Ok(Verdict::Refused(why)),
        };
        let gone = gone(request, &oids, ground)?;
        if !gone.is_empty() {
            let why = format!("uses {} objects a pack dropped", gone.len());
            return Ok(Verdict::Conflict { why, dead: gone });
        }
        if let Some(verdict) = self.changed(request, &oids) {
            return Ok(verdict);
        }
        for (oid, _) in request.records {
            match ground.pool.check(request.session, *oid, ground.exists)? {
                OidUse::Existing | OidUse::Own | OidUse::Free => {}
                OidUse::Foreign => {
                    return Ok(Verdict::Refused(format!("oid {oid} is held by another session")));
                }
                OidUse::Surprise => {
                    return Ok(Verdict::Refused(format!("oid {oid} was never given out")));
                }
            }
        }
        Ok(Verdict::Accept)
    }

    /// A conflict with what changed since the base, or too little known to say that there is none.
    fn changed(&self, request: &CommitRequest<'_>, writes: &RoaringTreemap) -> Option<Verdict> {
        let base = request.ahead.map_or(request.base, |ahead| ahead.max(request.base));
        if base < self.changes_after {
            let after = self.changes_after;
            let why = format!("based on {base}, changes are known after {after}");
            return Some(Verdict::Conflict { why, dead: Vec::new() });
        }
        let from = self.changes.partition_point(|(seq, _)| *seq <= base);
        let from =
            if mutants::broken(Mutant::ChangesNotChecked) { self.changes.len() } else { from };
        let read = request.touched.filter(|_| !mutants::broken(Mutant::ReadsNotChecked));
        let mut others = false;
        for (seq, oids) in self.changes.range(from..) {
            others = true;
            for oid in oids.iter() {
                let hit = if writes.contains(oid.0) {
                    "writes"
                } else if read.is_some_and(|read| read.contains(oid.0)) {
                    "may have read"
                } else {
                    continue;
                };
                return Some(conflict(&format!("{hit} oid {oid}, changed by {seq}, after {base}")));
            }
        }
        (others && request.touched.is_none()).then_some(Verdict::SendTouched)
    }
}

fn conflict(why: &str) -> Verdict {
    Verdict::Conflict { why: why.to_string(), dead: Vec::new() }
}

/// The oids of the records, if the records may be stored at all. The session's node has checked that: a peer is
/// believed no more than a client.
fn well_formed(records: &[(Oid, Bytes)]) -> Result<RoaringTreemap, String> {
    let mut oids = RoaringTreemap::new();
    for (oid, record) in records {
        shelf::check_record(*oid, record).map_err(|why| format!("record of oid {oid}: {why}"))?;
        if !oids.insert(oid.0) {
            return Err(format!("oid {oid} twice in one commit"));
        }
    }
    if oids.is_empty() {
        return Err("commit without a record".to_string());
    }
    Ok(oids)
}

/// The objects that this commit stores or refers to and that a pack drops, or has dropped: the last one or any before.
/// A client that was told can still have such an object at hand and link it again: stock Durus stores a reference to
/// nothing then.
fn gone(
    request: &CommitRequest<'_>,
    writes: &RoaringTreemap,
    ground: &Ground<'_>,
) -> Result<Vec<Oid>, String> {
    let dead = ground.dead.filter(|_| !mutants::broken(Mutant::DeadNotRefused));
    let is_dead = |oid: Oid| dead.is_some_and(|dead| dead.contains(oid.0));
    let (pool, session, exists) = (ground.pool, request.session, ground.exists);
    let removed_refused = !mutants::broken(Mutant::RemovedNotRefused);
    let mut gone = RoaringTreemap::new();
    for (oid, record) in request.records {
        let surprise = || Ok::<_, String>(pool.check(session, *oid, exists)? == OidUse::Surprise);
        if is_dead(*oid) || removed_refused && pool.was_issued(*oid) && surprise()? {
            gone.insert(oid.0);
        }
        let mut nowhere = RoaringTreemap::new();
        for to in shelf::refs(record).map_err(|why| format!("record of oid {oid}: {why}"))? {
            if is_dead(to) && !mutants::broken(Mutant::DeadReferredTo) {
                gone.insert(to.0);
            } else if removed_refused
                && !writes.contains(to.0)
                && pool.leads_nowhere(session, to, exists)?
            {
                nowhere.insert(to.0);
            }
        }
        if !nowhere.is_empty() {
            // A file that stock Durus has written may have had such a reference all along: it is this client's no more
            // than anybody's.
            if let Some(before) = (ground.stored)(*oid)? {
                let before = shelf::refs(&before).map_err(|why| format!("oid {oid}: {why}"))?;
                before.for_each(|to| _ = nowhere.remove(to.0));
            }
            gone |= nowhere;
        }
    }
    Ok(gone.iter().map(Oid).collect())
}
