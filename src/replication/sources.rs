//! Which block of a base is asked of whom.
//!
//! Every other member may have the base: all are asked whether they do, those that don't answer or say no again and again.
//! Blocks are asked of whoever has it and has least to do already; of the master only if nobody else has it, since it
//! has the commits to see to. So many blocks are under way at once and no more, which bounds memory, and so many bytes
//! in a second.
//!
//! A block that a source does not have is asked of another; a source that is silent for its patience loses what it was
//! asked for, and has more patience the next time: a slow line is not a dead one. Whoever sends something else than
//! the list says is *refused* for a while, twice as long each time.
//!
//! Nothing here knows what is in a block.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{NodeId, Now};

/// Blocks asked for or on their way to our disk: in all, and of one source.
const UNDER_WAY_MAX: usize = 6;
const OF_ONE_MAX: usize = 3;
/// A peer that has not said whether it has the base is asked again after this long.
const PROBE_AGAIN_MS: u64 = 700;
/// So often without an answer, and nobody hopes for one.
const PROBES_MAX: u32 = 3;
/// A source that sends nothing for this long, at first and at most, is taken to have lost our questions.
const PATIENCE_MS: u64 = 3000;
const PATIENCE_MS_MAX: u64 = 48_000;
/// How long a source is refused that sent something wrong, at first and at most.
const REFUSED_MS: u64 = 5000;
const REFUSED_MS_MAX: u64 = 320_000;
/// So many blocks that a source has not, one after the other, and it has not the base.
const ABSENT_MAX: u32 = 3;

/// The members that may have the base.
pub struct Sources {
    peers: BTreeMap<NodeId, Source>,
    master: Option<NodeId>,
}

struct Source {
    /// None: it has not said.
    has: Option<bool>,
    probed: Option<Now>,
    probes: u32,
    /// When anything was heard of it that we had asked for.
    heard: Option<Now>,
    patience_ms: u64,
    refused_until_us: u64,
    refusals: u32,
    absent: u32,
}

impl Source {
    fn new() -> Source {
        Source {
            has: None,
            probed: None,
            probes: 0,
            heard: None,
            patience_ms: PATIENCE_MS,
            refused_until_us: 0,
            refusals: 0,
            absent: 0,
        }
    }
}

impl Sources {
    pub fn new(peers: impl IntoIterator<Item = NodeId>) -> Sources {
        Sources { peers: peers.into_iter().map(|id| (id, Source::new())).collect(), master: None }
    }

    /// Whom to spare.
    pub fn set_master(&mut self, master: Option<NodeId>) {
        self.master = master;
    }

    /// A new attempt: everybody is asked again; who is refused stays so.
    pub fn begin_again(&mut self) {
        for source in self.peers.values_mut() {
            let (refused_until_us, refusals) = (source.refused_until_us, source.refusals);
            *source = Source { refused_until_us, refusals, ..Source::new() };
        }
    }

    /// Who is to be asked now whether it has the base.
    pub fn probe(&mut self, now: Now) -> Vec<NodeId> {
        let due = |source: &Source| {
            source.has != Some(true)
                && source.probed.is_none_or(|at| now.since_ms(at) >= PROBE_AGAIN_MS)
        };
        let mut asked = Vec::new();
        for (id, source) in self.peers.iter_mut().filter(|(_, source)| due(source)) {
            source.probed = Some(now);
            source.probes += 1;
            asked.push(*id);
        }
        asked
    }

    pub fn on_probe_reply(&mut self, from: NodeId, has: bool, now: Now) {
        if let Some(source) = self.peers.get_mut(&from) {
            source.has = Some(has);
            source.heard = Some(now);
        }
    }

    /// Its connection is new, or gone: what was asked may be lost, and it may be another process.
    pub fn on_connection(&mut self, peer: NodeId, up: bool) {
        if let Some(source) = self.peers.get_mut(&peer) {
            source.has = source.has.filter(|has| *has && up);
            source.probed = None;
            source.probes = 0;
        }
    }

    /// Those that have it and are not refused; the master last.
    pub fn usable(&self, now: Now) -> Vec<NodeId> {
        let usable =
            |source: &Source| source.has == Some(true) && source.refused_until_us <= now.mono_us;
        let all = self.peers.iter().filter(|(_, source)| usable(source)).map(|(id, _)| *id);
        let (mut others, spared): (Vec<_>, Vec<_>) = all.partition(|id| Some(*id) != self.master);
        others.extend(spared);
        others
    }

    /// Nobody has it, as far as anybody answers. One that is refused may be good again.
    pub fn is_hopeless(&self) -> bool {
        self.peers.values().all(|source| match source.has {
            Some(has) => !has,
            None => source.probes >= PROBES_MAX,
        })
    }

    /// Everybody says that it has not the base. Silence is no such word.
    pub fn all_lack_it(&self) -> bool {
        self.peers.values().all(|source| source.has == Some(false))
    }

    /// It has not what it said that it has.
    pub fn lacks(&mut self, peer: NodeId) {
        if let Some(source) = self.peers.get_mut(&peer) {
            source.has = Some(false);
        }
    }

    /// It sent something wrong. For how many milliseconds it is not asked.
    pub fn refuse(&mut self, peer: NodeId, now: Now) -> u64 {
        let Some(source) = self.peers.get_mut(&peer) else { return 0 };
        let ms = (REFUSED_MS << source.refusals.min(10)).min(REFUSED_MS_MAX);
        source.refusals += 1;
        source.refused_until_us = now.mono_us + 1000 * ms;
        ms
    }

    fn heard(&mut self, peer: NodeId, now: Now) {
        if let Some(source) = self.peers.get_mut(&peer) {
            source.heard = Some(now);
            source.patience_ms = PATIENCE_MS;
        }
    }

    /// Asked at `asked`, has it been silent for too long?
    pub fn is_silent(&self, peer: NodeId, asked: Now, now: Now) -> bool {
        self.peers.get(&peer).is_none_or(|source| {
            let since = source.heard.map_or(asked, |heard| heard.max(asked));
            now.since_ms(since) >= source.patience_ms
        })
    }

    /// It was, and is given more time from now on.
    pub fn was_silent(&mut self, peer: NodeId) {
        if let Some(source) = self.peers.get_mut(&peer) {
            source.patience_ms = (2 * source.patience_ms).min(PATIENCE_MS_MAX);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Missing,
    Asked {
        of: NodeId,
        at: Now,
    },
    /// Proved, and on its way to our disk.
    Writing,
    Have,
}

/// A question to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    pub of: NodeId,
    pub block: u64,
    /// Another could not give it.
    pub elsewhere: bool,
}

/// What is here and what is not.
pub struct Plan {
    blocks: Vec<Block>,
    /// Every block before this one was asked for once.
    cursor: usize,
    /// And these have to be asked for again.
    again: BTreeSet<usize>,
    /// Who could not give which.
    failed: BTreeMap<usize, BTreeSet<NodeId>>,
    under_way: BTreeSet<usize>,
    have: usize,
    bytes_per_s_max: Option<u64>,
    next_at_us: u64,
}

impl Plan {
    pub fn new(have: Vec<bool>, bytes_per_s_max: Option<u64>) -> Plan {
        let count = have.iter().filter(|have| **have).count();
        let block = |have| if have { Block::Have } else { Block::Missing };
        Plan {
            blocks: have.into_iter().map(block).collect(),
            cursor: 0,
            again: BTreeSet::new(),
            failed: BTreeMap::new(),
            under_way: BTreeSet::new(),
            have: count,
            bytes_per_s_max,
            next_at_us: 0,
        }
    }

    pub fn is_complete(&self) -> bool {
        self.have == self.blocks.len()
    }

    /// The next block to ask for, and whom; `len` says how long a block is.
    pub fn next(&mut self, sources: &Sources, now: Now, len: impl Fn(u64) -> u64) -> Option<Ask> {
        if self.under_way.len() >= UNDER_WAY_MAX || now.mono_us < self.next_at_us {
            return None;
        }
        let block = self.first_missing()?;
        let of = self.whom(block, sources, now)?;
        self.again.remove(&block);
        self.under_way.insert(block);
        self.blocks[block] = Block::Asked { of, at: now };
        if let Some(max) = self.bytes_per_s_max {
            let from = self.next_at_us.max(now.mono_us.saturating_sub(100_000));
            self.next_at_us = from + len(block as u64) * 1_000_000 / max.max(1);
        }
        Some(Ask { of, block: block as u64, elsewhere: self.failed.contains_key(&block) })
    }

    /// When `next` is worth another try although nothing has happened.
    pub fn due_us(&self) -> Option<u64> {
        let waits = self.under_way.len() < UNDER_WAY_MAX
            && self.have + self.under_way.len() < self.blocks.len();
        Some(self.next_at_us).filter(|_| waits && self.bytes_per_s_max.is_some())
    }

    fn first_missing(&mut self) -> Option<usize> {
        if let Some(block) = self.again.first() {
            return Some(*block);
        }
        while self.blocks.get(self.cursor).is_some_and(|block| *block != Block::Missing) {
            self.cursor += 1;
        }
        Some(self.cursor).filter(|block| *block < self.blocks.len())
    }

    /// Of those who have not failed to give it the one with the least to do, the master only if there is nobody else;
    /// all over again when all have failed.
    fn whom(&mut self, block: usize, sources: &Sources, now: Now) -> Option<NodeId> {
        let usable = sources.usable(now);
        if let Some(failed) = self.failed.get(&block)
            && usable.iter().all(|id| failed.contains(id))
        {
            self.failed.remove(&block);
        }
        let failed = self.failed.get(&block);
        let able = |id: &NodeId| failed.is_none_or(|them| !them.contains(id));
        let able: Vec<NodeId> = usable.into_iter().filter(able).collect();
        let free = able.iter().filter(|id| able.len() == 1 || Some(**id) != sources.master);
        let (busy, of) = free.map(|id| (self.asked_of(*id), *id)).min()?;
        (busy < OF_ONE_MAX).then_some(of)
    }

    fn asked_of(&self, peer: NodeId) -> usize {
        let of =
            |block: &&usize| matches!(self.blocks[**block], Block::Asked { of, .. } if of == peer);
        self.under_way.iter().filter(of).count()
    }

    /// Somebody sent this block: is it wanted? A late answer to a question that was given up is as good as any.
    pub fn on_reply(&mut self, sources: &mut Sources, from: NodeId, block: u64, now: Now) -> bool {
        sources.heard(from, now);
        let block = self.blocks.get(block as usize);
        matches!(block, Some(Block::Missing | Block::Asked { .. }))
    }

    /// What was sent is proved, and goes to the disk.
    pub fn proved(&mut self, sources: &mut Sources, from: NodeId, block: u64) {
        if let Some(source) = sources.peers.get_mut(&from) {
            source.absent = 0;
        }
        let block = block as usize;
        self.again.remove(&block);
        self.under_way.insert(block);
        self.blocks[block] = Block::Writing;
    }

    pub fn written(&mut self, block: u64) {
        let block = block as usize;
        if self.under_way.remove(&block) {
            self.blocks[block] = Block::Have;
            self.failed.remove(&block);
            self.have += 1;
        }
    }

    /// What was sent was not the block.
    pub fn bad(&mut self, from: NodeId, block: u64) {
        self.failed_to_give(from, block);
        self.give_back_all_of(from, true);
    }

    /// The source has not this one.
    pub fn absent(&mut self, sources: &mut Sources, from: NodeId, block: u64) {
        self.failed_to_give(from, block);
        let Some(source) = sources.peers.get_mut(&from) else { return };
        source.absent += 1;
        if source.absent >= ABSENT_MAX {
            (source.absent, source.has) = (0, Some(false));
            self.give_back_all_of(from, true);
        }
    }

    fn failed_to_give(&mut self, from: NodeId, block: u64) {
        let block = block as usize;
        self.failed.entry(block).or_default().insert(from);
        if matches!(self.blocks[block], Block::Asked { of, .. } if of == from) {
            self.give_back(block);
        }
    }

    fn give_back(&mut self, block: usize) {
        self.blocks[block] = Block::Missing;
        self.under_way.remove(&block);
        self.again.insert(block);
    }

    /// What this peer was asked for has to be asked for again; of others, if it has `failed`.
    pub fn give_back_all_of(&mut self, peer: NodeId, failed: bool) {
        let is_its =
            |block: &usize| matches!(self.blocks[*block], Block::Asked { of, .. } if of == peer);
        let its: Vec<usize> = self.under_way.iter().copied().filter(is_its).collect();
        for block in its {
            self.give_back(block);
            if failed {
                self.failed.entry(block).or_default().insert(peer);
            }
        }
    }

    /// Sources that are silent lose what they were asked for; who they are.
    pub fn expire(&mut self, sources: &mut Sources, now: Now) -> Vec<NodeId> {
        let silent = |block: &usize| match self.blocks[*block] {
            Block::Asked { of, at } if sources.is_silent(of, at, now) => Some((*block, of)),
            _ => None,
        };
        let expired: Vec<(usize, NodeId)> = self.under_way.iter().filter_map(silent).collect();
        let mut who = BTreeSet::new();
        for (block, of) in expired {
            self.failed_to_give(of, block as u64);
            who.insert(of);
        }
        who.iter().for_each(|peer| sources.was_silent(*peer));
        who.into_iter().collect()
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
