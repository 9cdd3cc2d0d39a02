//! Which oid belongs to whom, on the master, for one mastership.
//!
//! An oid is given out once. It comes from a block that went through Raft before (so no later master can give it out
//! again), or from a hole that a pack left, or from what a session that ended gave back. Holes are used only while
//! the caller says they may be: while some session, on a node that has not spoken up yet, may know the old object
//! of that oid or hold the oid itself, they may not. What sessions hold survives a mastership because their nodes
//! register it with the next master before they ask for anything else.
//!
//! A new mastership begins with a new pool. Nothing here knows the file: whether an object exists is asked of the
//! caller, and "exists" includes transactions that are appended and not yet committed, or not: both are fine.

use std::collections::{BTreeMap, VecDeque};

use roaring::RoaringTreemap;

use crate::mutants::{self, Mutant};
use crate::types::{BootId, NodeId, Oid};

/// Holes that are looked at for one oid.
const HOLES_AT_ONCE: usize = 1000;

/// A session, anywhere in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    pub node: NodeId,
    /// As that node's process numbers them.
    pub session: u64,
}

/// Whether an object with this oid exists. The error is a read that failed.
pub type Exists<'a> = &'a dyn Fn(Oid) -> Result<bool, String>;

/// What an oid in a commit is to the session that commits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OidUse {
    /// An object is there; anyone may change it.
    Existing,
    /// Given to this session and unused.
    Own,
    /// Nobody's: given out once to a session that is gone, or the root's.
    Free,
    /// Another session holds it.
    Foreign,
    /// Never given out.
    Surprise,
}

/// Answer to a session that wants oids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    Granted(Vec<Oid>),
    /// Too few are left of the blocks: get another one through Raft, then ask again. Nothing was given out.
    NeedBlock,
    /// The session ended: this is an old copy of a request.
    Gone,
    /// Its node has to say first what its sessions hold.
    RegisterFirst,
}

#[derive(Default)]
struct Node {
    boot: BootId,
    held: BTreeMap<u64, Held>,
    /// Sessions that were freed; they hold nothing any more, whatever arrives late.
    gone: RoaringTreemap,
}

#[derive(Default)]
struct Held {
    oids: RoaringTreemap,
    /// The newest request that was granted: a second copy of it gets the same oids.
    granted: Option<(u64, Vec<Oid>)>,
}

/// What a file's base says of oids.
#[derive(Default)]
pub struct BaseOids {
    /// Not used by the base; objects may have been made in them since. `None` if that could not be read.
    pub unused: Option<RoaringTreemap>,
    /// Every oid in the base is below.
    pub map_end: Oid,
}

/// What was so when the mastership began: it tells later what an oid that leads nowhere once was.
#[derive(Default)]
struct Origin {
    /// The base's holes; `None` if they could not be read.
    unused: Option<RoaringTreemap>,
    map_end: Oid,
    issued_below: Oid,
}

/// Holes in the order in which stock Durus gives them out: from the greatest down, but the very greatest at the end.
#[derive(Default)]
struct Holes {
    descending: RoaringTreemap,
    last: Option<u64>,
}

impl Holes {
    fn new(mut unused: RoaringTreemap) -> Holes {
        let last = unused.max().inspect(|last| _ = unused.remove(*last));
        Holes { descending: unused, last }
    }

    fn take(&mut self) -> Option<Oid> {
        let next = self.descending.max();
        if let Some(oid) = next {
            self.descending.remove(oid);
        }
        next.or_else(|| self.last.take()).map(Oid)
    }
}

/// The oids of one mastership.
#[derive(Default)]
pub struct OidPool {
    nodes: BTreeMap<NodeId, Node>,
    owners: BTreeMap<Oid, SessionKey>,
    /// Given back.
    freed: RoaringTreemap,
    /// Committed under this mastership, visible yet or not.
    used: RoaringTreemap,
    holes: Holes,
    holes_usable: bool,
    origin: Origin,
    /// Taken for a request that could not be granted whole; the next ones to be given out.
    ready: VecDeque<Oid>,
    /// What is left of the blocks: from, below.
    blocks: VecDeque<(Oid, Oid)>,
}

impl OidPool {
    /// With the file's holes, and no block yet. Oids below `issued_below` were given out before, or are of a block that
    /// is still to be added.
    pub fn new(base: BaseOids, issued_below: Oid) -> OidPool {
        let holes = Holes::new(base.unused.clone().unwrap_or_default());
        let origin = Origin { unused: base.unused, map_end: base.map_end, issued_below };
        OidPool { holes, origin, ..OidPool::default() }
    }

    /// Oids from `from` to below `below` may be given out from now on; they are above every block before.
    pub fn add_block(&mut self, from: Oid, below: Oid) {
        let above = self.blocks.back().is_none_or(|(_, limit)| *limit <= from);
        assert!(above && from <= below, "block {from} to {below} after {:?}", self.blocks.back());
        self.blocks.push_back((from, below));
    }

    /// Oids left in the blocks, to get the next one in time.
    pub fn blocks_left(&self) -> u64 {
        self.blocks.iter().map(|(from, below)| below.0 - from.0).sum()
    }

    /// Whether every session there may be is known here and was told of what packs removed.
    pub fn set_holes_usable(&mut self, usable: bool) {
        self.holes_usable = usable;
    }

    /// Whether this process of the node has registered.
    pub fn is_registered(&self, node: NodeId, boot: BootId) -> bool {
        self.nodes.get(&node).is_some_and(|known| known.boot == boot)
    }

    /// What the node's sessions hold. May come again; then it adds to what is known. From another process of the
    /// node it replaces what the process before held. Returns which oids are another's, by the sessions that hold them.
    pub fn register(
        &mut self,
        node: NodeId,
        boot: BootId,
        pools: &[(u64, Vec<Oid>)],
        exists: Exists<'_>,
    ) -> Result<Vec<(u64, Vec<Oid>)>, String> {
        if !self.is_registered(node, boot) {
            let before = self.nodes.insert(node, Node { boot, ..Node::default() });
            for held in before.into_iter().flat_map(|node| node.held.into_values()) {
                self.give_back(held.oids);
            }
        }
        let mut revoked = Vec::new();
        for (session, oids) in pools {
            let key = SessionKey { node, session: *session };
            if self.is_gone(key) {
                continue;
            }
            let mut others = Vec::new();
            for oid in oids {
                match self.check(key, *oid, exists)? {
                    // The root's oid is offered again while a node that holds it is away. There is a root now: this
                    // session must never store another object under its oid. Whether it has stored that root, its node
                    // knows.
                    OidUse::Existing if *oid == Oid::ROOT => others.push(*oid),
                    // Its own commit, whose answer it has not seen yet.
                    OidUse::Existing => {}
                    OidUse::Own => {}
                    OidUse::Free | OidUse::Surprise if self.used.contains(oid.0) => {}
                    OidUse::Free | OidUse::Surprise => self.own(key, *oid),
                    OidUse::Foreign => others.push(*oid),
                }
            }
            if !others.is_empty() {
                revoked.push((*session, others));
            }
        }
        Ok(revoked)
    }

    fn is_gone(&self, key: SessionKey) -> bool {
        self.nodes.get(&key.node).is_some_and(|node| node.gone.contains(key.session))
    }

    fn own(&mut self, key: SessionKey, oid: Oid) {
        self.freed.remove(oid.0);
        self.owners.insert(oid, key);
        let node = self.nodes.get_mut(&key.node).expect("a registered node");
        node.held.entry(key.session).or_default().oids.insert(oid.0);
    }

    fn give_back(&mut self, oids: RoaringTreemap) {
        for oid in &oids {
            self.owners.remove(&Oid(oid));
        }
        self.freed |= oids;
    }

    /// `count` oids for a session, for its request `id`: the root's if there is no root and
    /// nobody holds its oid, then holes, then what was given back, then from the block.
    pub fn allocate(
        &mut self,
        key: SessionKey,
        id: u64,
        count: u32,
        exists: Exists<'_>,
    ) -> Result<Allocation, String> {
        let Some(node) = self.nodes.get(&key.node) else {
            return Ok(Allocation::RegisterFirst);
        };
        if node.gone.contains(key.session) {
            return Ok(Allocation::Gone);
        }
        let granted = node.held.get(&key.session).and_then(|held| held.granted.as_ref());
        if let Some((_, oids)) = granted.filter(|(granted, _)| *granted == id) {
            return Ok(Allocation::Granted(oids.clone()));
        }
        let mut oids = Vec::with_capacity(count as usize);
        while oids.len() < count as usize {
            let Some(oid) = self.take(exists)? else {
                oids.iter().for_each(|oid| _ = self.owners.remove(oid));
                self.ready.extend(oids);
                return Ok(Allocation::NeedBlock);
            };
            // Owned at once: the next one taken must be another.
            self.owners.insert(oid, key);
            oids.push(oid);
        }
        let node = self.nodes.get_mut(&key.node).expect("looked up above");
        let held = node.held.entry(key.session).or_default();
        held.oids.extend(oids.iter().map(|oid| oid.0));
        held.granted = Some((id, oids.clone()));
        Ok(Allocation::Granted(oids))
    }

    /// The next oid nobody has.
    fn take(&mut self, exists: Exists<'_>) -> Result<Option<Oid>, String> {
        if self.is_nobodys(Oid::ROOT, exists)? {
            self.freed.remove(Oid::ROOT.0);
            return Ok(Some(Oid::ROOT));
        }
        while let Some(oid) = self.ready.pop_front() {
            if self.is_nobodys(oid, exists)? {
                return Ok(Some(oid));
            }
        }
        // Many may have been used since, under earlier masters: then the next ones are looked at the next time.
        for _ in 0..HOLES_AT_ONCE {
            let Some(oid) = self.holes_usable.then(|| self.holes.take()).flatten() else { break };
            if self.is_nobodys(oid, exists)? {
                self.freed.remove(oid.0);
                return Ok(Some(oid));
            }
        }
        while let Some(oid) = self.freed.min().map(Oid) {
            self.freed.remove(oid.0);
            if self.is_nobodys(oid, exists)? {
                return Ok(Some(oid));
            }
        }
        while let Some((from, below)) = self.blocks.front_mut() {
            if from == below {
                self.blocks.pop_front();
                continue;
            }
            let oid = *from;
            *from = oid.next();
            if self.is_nobodys(oid, exists)? {
                return Ok(Some(oid));
            }
        }
        Ok(None)
    }

    fn is_nobodys(&self, oid: Oid, exists: Exists<'_>) -> Result<bool, String> {
        let owned = self.owners.contains_key(&oid) && !mutants::broken(Mutant::OwnedOidGiven);
        let used = self.used.contains(oid.0) && !mutants::broken(Mutant::UsedOidGiven);
        let taken = oid == Oid::CHAIN || owned || used;
        Ok(!taken && (!exists(oid)? || mutants::broken(Mutant::StoredOidGiven)))
    }

    /// What `oid` is to the session, if it commits it.
    pub fn check(&self, key: SessionKey, oid: Oid, exists: Exists<'_>) -> Result<OidUse, String> {
        Ok(match self.owners.get(&oid) {
            Some(owner) if *owner == key => OidUse::Own,
            Some(_) => OidUse::Foreign,
            None if exists(oid)? => OidUse::Existing,
            None if oid == Oid::ROOT || self.freed.contains(oid.0) => OidUse::Free,
            None => OidUse::Surprise,
        })
    }

    /// May this oid have been given out once? What is left of the blocks was not, and what is above them; the rest of a
    /// block of an earlier mastership counts as given out, and never will be.
    pub fn was_issued(&self, oid: Oid) -> bool {
        let left = || self.blocks.iter().any(|(from, below)| *from <= oid && oid < *below);
        oid < self.origin.issued_below && !left()
    }

    /// Does a reference to this oid, in a commit of this session that does not store it, lead nowhere, although the oid
    /// was given out once? It was an object then, and a pack has dropped it, whichever pack that was and whoever was
    /// master; or somebody else has the oid and stored nothing yet.
    pub fn leads_nowhere(
        &self,
        key: SessionKey,
        oid: Oid,
        exists: Exists<'_>,
    ) -> Result<bool, String> {
        // Most references are to what the base has, and that is told without a read.
        let origin = &self.origin;
        let in_base = oid < origin.map_end
            && origin.unused.as_ref().is_some_and(|unused| !unused.contains(oid.0));
        if in_base || !self.was_issued(oid) || self.used.contains(oid.0) {
            return Ok(false);
        }
        Ok(self.owners.get(&oid) != Some(&key) && !exists(oid)?)
    }

    /// These are in a transaction that was appended: nobody's any more, and never given out again by this pool.
    pub fn used(&mut self, oids: impl IntoIterator<Item = Oid>) {
        for oid in oids {
            let owner = self.owners.remove(&oid);
            if let Some(key) = owner
                && let Some(node) = self.nodes.get_mut(&key.node)
                && let Some(held) = node.held.get_mut(&key.session)
            {
                held.oids.remove(oid.0);
            }
            if self.freed.remove(oid.0) || owner.is_some() || oid == Oid::ROOT {
                self.used.insert(oid.0);
            }
        }
    }

    /// The session ended: what it holds unused is free.
    pub fn free(&mut self, key: SessionKey) {
        let Some(node) = self.nodes.get_mut(&key.node) else { return };
        node.gone.insert(key.session);
        if let Some(held) = node.held.remove(&key.session) {
            self.give_back(held.oids);
        }
    }

    /// Who holds an oid, for assertions and status.
    pub fn owner(&self, oid: Oid) -> Option<SessionKey> {
        self.owners.get(&oid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);
    const BOOT: BootId = BootId(77);

    fn key(node: NodeId, session: u64) -> SessionKey {
        SessionKey { node, session }
    }

    fn none(_: Oid) -> Result<bool, String> {
        Ok(false)
    }

    fn rooted(oid: Oid) -> Result<bool, String> {
        Ok(oid.0 < 3)
    }

    fn pool(holes: &[u64], block: (u64, u64)) -> OidPool {
        let unused = Some(holes.iter().copied().collect());
        let mut pool = OidPool::new(BaseOids { unused, map_end: Oid(block.0) }, Oid(block.0));
        pool.add_block(Oid(block.0), Oid(block.1));
        assert_eq!(pool.register(N1, BOOT, &[], &none), Ok(vec![]));
        assert_eq!(pool.register(N2, BOOT, &[], &none), Ok(vec![]));
        pool
    }

    fn take(
        pool: &mut OidPool,
        key: SessionKey,
        id: u64,
        count: u32,
        exists: Exists<'_>,
    ) -> Vec<u64> {
        match pool.allocate(key, id, count, exists).unwrap() {
            Allocation::Granted(oids) => oids.iter().map(|oid| oid.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fresh_file_gives_0_1_2_across_clients_and_0_again_if_nobody_uses_it() {
        let mut pool = pool(&[], (0, 100));
        assert_eq!(take(&mut pool, key(N1, 1), 1, 2, &none), [0, 1]);
        assert_eq!(take(&mut pool, key(N2, 1), 1, 2, &none), [2, 3]);
        pool.free(key(N1, 1));
        assert_eq!(take(&mut pool, key(N1, 2), 2, 3, &none), [0, 1, 4]);
        pool.used([Oid(0), Oid(4)]);
        pool.free(key(N1, 2));
        // The root is appended and not visible yet: not given out again.
        assert_eq!(take(&mut pool, key(N1, 3), 3, 2, &none), [1, 5]);
    }

    #[test]
    fn a_request_that_comes_twice_gets_the_same_and_one_of_a_gone_session_nothing() {
        let mut pool = pool(&[], (10, 20));
        let stranger = key(NodeId(3), 1);
        assert_eq!(pool.allocate(stranger, 5, 3, &rooted), Ok(Allocation::RegisterFirst));
        let first = take(&mut pool, key(N1, 1), 5, 3, &rooted);
        assert_eq!(take(&mut pool, key(N1, 1), 5, 3, &rooted), first);
        assert_ne!(take(&mut pool, key(N1, 1), 6, 3, &rooted), first);
        pool.free(key(N1, 1));
        assert_eq!(pool.allocate(key(N1, 1), 6, 3, &rooted), Ok(Allocation::Gone));
        assert_eq!(pool.check(key(N2, 9), Oid(10), &rooted), Ok(OidUse::Free));
    }

    #[test]
    fn without_a_block_nothing_is_given_out_and_nothing_is_lost() {
        let mut pool = pool(&[], (10, 12));
        assert_eq!(pool.allocate(key(N1, 1), 1, 3, &rooted), Ok(Allocation::NeedBlock));
        assert_eq!(pool.owner(Oid(10)), None);
        assert_eq!(pool.blocks_left(), 0);
        assert_eq!(pool.check(key(N1, 1), Oid(10), &rooted), Ok(OidUse::Surprise));
        pool.add_block(Oid(50), Oid(60));
        assert_eq!(take(&mut pool, key(N1, 1), 1, 3, &rooted), [10, 11, 50]);
        pool.add_block(Oid(70), Oid(80));
        assert_eq!(take(&mut pool, key(N1, 1), 2, 11, &rooted)[7..], [58, 59, 70, 71]);
    }

    #[test]
    fn holes_come_first_in_the_files_order_and_only_when_they_may() {
        let mut pool = pool(&[11, 9, 7, 5, 1], (20, 30));
        let held = [(4, vec![Oid(7)])];
        assert_eq!(pool.register(N2, BOOT, &held, &rooted), Ok(vec![]));
        assert_eq!(take(&mut pool, key(N1, 1), 1, 1, &rooted), [20]);
        pool.set_holes_usable(true);
        // 7 is held, 1 exists.
        assert_eq!(take(&mut pool, key(N1, 1), 2, 4, &rooted), [9, 5, 11, 21]);
        pool.free(key(N2, 4));
        assert_eq!(take(&mut pool, key(N1, 1), 3, 2, &rooted), [7, 22]);
    }

    #[test]
    fn who_may_commit_what() {
        let mut pool = pool(&[], (10, 20));
        take(&mut pool, key(N1, 1), 1, 2, &rooted);
        let uses = |pool: &OidPool, key, oid| pool.check(key, Oid(oid), &rooted).unwrap();
        assert_eq!(uses(&pool, key(N1, 1), 2), OidUse::Existing);
        assert_eq!(uses(&pool, key(N1, 1), 10), OidUse::Own);
        assert_eq!(uses(&pool, key(N1, 2), 10), OidUse::Foreign);
        assert_eq!(uses(&pool, key(N2, 1), 10), OidUse::Foreign);
        assert_eq!(uses(&pool, key(N1, 1), 12), OidUse::Surprise);
        assert_eq!(pool.check(key(N1, 1), Oid(0), &none), Ok(OidUse::Free));
        pool.used([Oid(10)]);
        assert_eq!(uses(&pool, key(N1, 1), 10), OidUse::Surprise);
        assert_eq!(pool.check(key(N1, 1), Oid(10), &|_| Err("disk".into())), Err("disk".into()));
    }

    #[test]
    fn registration_adds_within_a_process_and_replaces_across() {
        let mut pool = pool(&[], (100, 200));
        let held = [(1, vec![Oid(50), Oid(51), Oid(2)])];
        assert_eq!(pool.register(N1, BOOT, &held, &rooted), Ok(vec![]));
        assert_eq!(pool.owner(Oid(2)), None, "exists: its own commit");
        // A grant whose answer is on its way survives another registration.
        let granted = take(&mut pool, key(N1, 1), 1, 1, &rooted);
        assert_eq!(pool.register(N1, BOOT, &held, &rooted), Ok(vec![]));
        assert_eq!(pool.owner(Oid(granted[0])), Some(key(N1, 1)));
        // Somebody was away while his oid was given to another.
        let clash = [(8, vec![Oid(51), Oid(50)]), (9, vec![Oid(60)])];
        let revoked = vec![(8, vec![Oid(51), Oid(50)])];
        assert_eq!(pool.register(N2, BOOT, &clash, &rooted), Ok(revoked));
        assert_eq!(pool.owner(Oid(51)), Some(key(N1, 1)));
        let late = [(5, vec![Oid(52), Oid::ROOT])];
        assert_eq!(pool.register(N2, BOOT, &late, &rooted), Ok(vec![(5, vec![Oid::ROOT])]));
        assert_eq!(pool.owner(Oid(60)), Some(key(N2, 9)));
        // The process died: what its sessions held is free.
        assert_eq!(pool.register(N1, BootId(78), &[], &rooted), Ok(vec![]));
        assert!(!pool.is_registered(N1, BOOT) && pool.is_registered(N1, BootId(78)));
        assert_eq!(pool.owner(Oid(51)), None);
        assert_eq!(take(&mut pool, key(N1, 1), 1, 2, &rooted), [50, 51]);
    }
}
