//! What the disks and the messages show, and what must hold of it (design section 9).
//!
//! Nothing here looks into a node. Files are read again as they become durable; every transaction seen in one is kept
//! for ever by its chain, so that any history can be walked back, also through generations whose files are gone.
//! What is violated is said by a panic, which the run turns into a report.
//!
//! Where each property is checked:
//!
//! | property | when | where |
//! | --- | --- | --- |
//! | EpochUnique | at every append that is sent | `messages::on_append` |
//! | PromiseMonotone | at every change of a disk, and at every report and beat | `look`, `messages` |
//! | NoAckBelowPromise | at every acknowledgement | `messages::on_ack` |
//! | ChainMatch | at every transaction that becomes durable anywhere | `placed` |
//! | ChainEpochMonotone | the same, in each file | `file::read_on` |
//! | LeaderCompleteness | when a master's epoch start becomes durable | `is_complete` |
//! | CommittedNeverTruncated | at every change of a disk; at every word on what is committed | `keeps_committed`, `claim` |
//! | CommitNeedsOwnEpoch | at every append that commits something new | `messages::on_append` |
//! | AckedByAll | at every answer to a client, with durability `all` | `has_everybody` |
//! | AckedIsDurable | at every acknowledgement, commit, and answer to a client; at the end | `messages`, `on_acknowledged`, `history` |
//! | ExactlyOnce | in each file; at every commit; at the end | `file::read_on`, `claim`, `history` |
//! | QuorumsOverlap | at every commit and every election | `claim`, `messages::on_elect` |
//! | SoundNotAccused: a sound disk's node does not say that its disk has forgotten | at every beat | `messages::on_beat` |
//! | AmnesiacSilent | at every message | `messages::on_send` |
//! | RefusedStays: a commit that was refused is refused again | at every answer to a commit | `fresh` |
//! | FreshRead: a read is of no older moment than its sync | at every answer to a sync | `fresh` |
//! | ProvedFirst: who has just started is silent until it has heard the others | at every message | `started` |
//! | WipedUnheard: another disk under a known id is silent for all | at every beat | `started` |
//! | WholePosition: what is reported is all there is | at every report | `messages::on_report` |
//! | OneFile: who is counted together has the same file | at every election | `messages::on_elect` |
//! | InStep: who says so has its master's file | at every beat | `in_step` |
//! | RaftLogAgreed | at every durable record of a Raft log | `raft::on_raft_record` |
//! | base <= committed, durable <= written | at every beat | `messages::on_beat` |
//! | ReadIsCommittedPrefix, SessionMonotone, GenerationEquivalent, ReferencesClosed | at the end | `history` |
//! | OidUnique | at the end | `oids` |
//!
//! A node's own committed position may be ahead of its own durable one: others made it committed.

mod file;
mod fresh;
mod in_step;
mod messages;
mod raft;
mod started;

use std::collections::{BTreeMap, BTreeSet};

use super::disk::{Entry, Medium};
use super::parse::{self, Hash, Kind, Object, Tx};
use file::{File, is_cut, is_kept, read_on};

/// What a node says of itself.
#[derive(Clone, Default)]
pub struct Says {
    /// The first word of its phase in a pack; empty: there is none.
    pub phase: String,
    pub is_master: bool,
    pub leads: bool,
    /// Its word counts in elections: it has lost nothing, or has all of it again.
    pub counts: bool,
}

/// What became of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fate {
    #[default]
    Sound,
    /// Something synced is gone or changed; the node must notice, and repair it or stay away.
    Damaged,
    /// As a whole it is what it was some time ago.
    RolledBack,
    /// It has lost what its node has voted or promised: its Raft log, its promise.
    Forgotten,
    /// Another, empty disk.
    Replaced,
}

#[derive(Default)]
struct DiskView {
    fate: Fate,
    /// What it had before it was damaged, as (seq, data hash), and below which seq it had everything.
    had: BTreeSet<(u64, Hash)>,
    had_below: u64,
    /// The newest committed transaction it had: it must go on having it.
    held: u64,
    files: BTreeMap<u64, File>,
    /// Durable names of generation files, and the durable link.
    named: BTreeMap<String, u64>,
    current: Option<u64>,
    promise: u64,
    /// An operation failed on it: a write may have been done in part, and the process is about to end.
    hurt: bool,
    /// A base that was built here came out wrong.
    spoilt: bool,
    /// Tips of what was cut off, or left for another generation's file.
    left: Vec<Hash>,
    /// What the node last said it is at in a pack, and of what it is master or leader.
    says: Says,
}

#[derive(Default)]
pub struct Ledger {
    disks: Vec<DiskView>,
    started: Vec<started::Started>,
    fresh: fresh::Fresh,
    /// The files that nodes have reported to be in, to an election that counts them: by epoch and node.
    reported: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>,
    raft: raft::Agreed,
    /// Every transaction ever seen durable, by its chain.
    pub txs: BTreeMap<Hash, Tx>,
    /// Objects of a generation's base, by the seal's chain.
    pub bases: BTreeMap<Hash, BTreeMap<u64, Object>>,
    masters: BTreeMap<u64, (u64, u64)>,
    /// What the master of an epoch has sent of its file.
    sent: BTreeMap<u64, in_step::Sent>,
    /// Committed, by somebody's word: data hash by seq; generation independent.
    committed: BTreeMap<u64, Hash>,
    committed_ids: BTreeMap<[u8; 16], u64>,
    /// The newest committed transaction's chain.
    pub committed_top: Option<(u64, Hash)>,
    /// Tags of clients' transactions: where seen.
    pub tags: BTreeMap<[u8; 16], BTreeSet<(u64, Hash)>>,
    /// What was written at an epoch's seq, in whatever generation.
    placed: BTreeMap<(u64, u64), Hash>,
    pub sometimes: BTreeMap<&'static str, u64>,
}

/// What clients of the simulation write into every record: who wrote it.
pub const MAGIC: &[u8; 8] = b"SIMULATE";

pub fn tag_of(data: &[u8]) -> Option<[u8; 16]> {
    (data.get(..8)? == MAGIC).then(|| data[8..24].try_into().expect("16 bytes"))
}

impl Ledger {
    pub fn new(nodes: usize) -> Ledger {
        let disks = (0..nodes).map(|_| DiskView::default()).collect();
        let started = (0..nodes).map(|_| started::Started::default()).collect();
        Ledger { disks, started, ..Ledger::default() }
    }

    /// Reads again what changed on the disk of `node` (from 0).
    pub fn look(&mut self, node: usize, medium: &Medium) {
        let mut platter = medium.lock();
        self.disks[node].hurt = platter.hurt().is_some();
        self.disks[node].spoilt = platter.has_spoilt();
        let (changed, names_changed) = platter.take_changes();
        if changed.is_empty() && !names_changed {
            return;
        }
        let view = &mut self.disks[node];
        if names_changed {
            let is_file = |name: &str| name.starts_with('g') && name.ends_with(".durus");
            let names = platter.durable_names();
            view.named = names
                .iter()
                .filter(|(name, _)| is_file(name))
                .filter_map(|(name, entry)| match entry {
                    Entry::File(number) => Some((name.clone(), *number)),
                    Entry::Link(_) => None,
                })
                .collect();
            let had_current = view.current.is_some();
            let tip = view.current.and_then(|number| view.files.get(&number)).and_then(File::tip);
            let before = view.current;
            view.current = match names.get("current.durus") {
                Some(Entry::Link(target)) => match names.get(target) {
                    Some(Entry::File(number)) => Some(*number),
                    // The file was lost, and the node has not looked yet.
                    None if view.fate != Fate::Sound => None,
                    _ => panic!(
                        "Flip: node {}'s link points at {target}, which is not there",
                        node + 1
                    ),
                },
                _ => None,
            };
            if view.current != before {
                view.left.extend(tip);
            }
            assert!(
                view.current.is_some() || !had_current || view.fate != Fate::Sound,
                "violated OneRename: node {} has no current file any more",
                node + 1
            );
            let used: BTreeSet<u64> = view.named.values().copied().collect();
            view.files.retain(|number, _| used.contains(number));
        }
        if let Some(inode) = platter.durable_file("promise") {
            let promise = match parse::promise(inode.durable()) {
                // Both copies are damaged: the node must see that, and stay away.
                None if view.fate == Fate::Damaged => view.promise,
                promise => promise.unwrap_or(0),
            };
            assert!(
                promise >= view.promise,
                "violated PromiseMonotone: node {} promised {} and then {promise}",
                node + 1,
                view.promise
            );
            view.promise = promise;
        }
        let numbers: BTreeSet<u64> = view.named.values().copied().collect();
        let mut starts = Vec::new();
        for number in numbers {
            let fresh = !view.files.contains_key(&number);
            let from =
                changed.iter().find(|(changed, _)| *changed == number).map(|(_, from)| *from);
            if !fresh && from.is_none() {
                continue;
            }
            let file = view.files.entry(number).or_default();
            let Some(inode) = platter.inode(number) else { continue };
            let before = file.txs.clone();
            let found = read_on(file, inode.durable(), from.unwrap_or(0) as usize);
            file.len = inode.durable().len();
            if before.iter().any(|tx| is_cut(file, tx)) {
                view.left.extend(before.last().map(|tx| tx.2));
            }
            let is_lost = |tx: &&(u64, usize, Hash)| is_cut(file, tx) && !is_kept(&platter, &tx.2);
            if view.fate == Fate::Sound
                && let Some((seq, ..)) = before.iter().find(is_lost)
            {
                panic!(
                    "violated NothingErased: node {} cut seq {seq} from its file, and no orphan has it",
                    node + 1
                );
            }
            for (tx, base) in found {
                if let (Kind::Seal { .. }, Some(base)) = (tx.kind, base) {
                    self.bases.entry(tx.chain).or_insert(base);
                }
                for (_, object) in &tx.objects {
                    if let Some(tag) = tag_of(&object.data) {
                        self.tags.entry(tag).or_default().insert((tx.seq, tx.data_hash));
                    }
                }
                if !matches!(tx.kind, Kind::Seal { .. }) {
                    let known = *self.placed.entry((tx.epoch, tx.seq)).or_insert(tx.data_hash);
                    assert_eq!(
                        known,
                        tx.data_hash,
                        "violated ChainMatch: node {} has another transaction at epoch {} seq {} than was \
                         written there",
                        node + 1,
                        tx.epoch,
                        tx.seq
                    );
                }
                let fresh = !self.txs.contains_key(&tx.chain);
                if fresh && tx.kind == Kind::EpochStart {
                    starts.push(tx.chain);
                }
                self.txs.entry(tx.chain).or_insert(tx);
            }
        }
        drop(platter);
        starts.into_iter().for_each(|start| self.is_complete(start));
        self.keeps_committed(node);
    }

    /// The history that an epoch begins on has everything that was committed before.
    fn is_complete(&self, start: Hash) {
        let Some((top, _)) = self.committed_top else { return };
        let epoch = self.txs[&start].epoch;
        let mut at = &self.txs[&start];
        // An epoch start that was re-chained into a newer generation stands on that generation's seal.
        while at.seq > top || matches!(at.kind, Kind::Seal { .. }) {
            let before = match at.kind {
                Kind::Seal { previous, .. } => previous,
                _ => at.prev,
            };
            match self.txs.get(&before) {
                Some(tx) => at = tx,
                None => return,
            }
        }
        let newer = self.committed.range(at.seq..).next_back().map_or(0, |(seq, _)| *seq);
        let complete = self.committed.get(&at.seq) == Some(&at.data_hash);
        // The same start may come later, in another file: then more is committed by now.
        let own = self.committed_top.is_some_and(|(_, chain)| self.txs[&chain].epoch >= epoch);
        assert!(
            own || (complete && newer == at.seq),
            "violated LeaderCompleteness: epoch {epoch} begins after seq {} without seq {newer}, which is committed",
            at.seq
        );
    }

    /// No disk loses what it had of the committed history, unless it was damaged.
    fn keeps_committed(&mut self, node: usize) {
        let Some((top, _)) = self.committed_top else { return };
        let view = &self.disks[node];
        if view.fate != Fate::Sound {
            return;
        }
        if let Some(data) = self.committed.get(&view.held) {
            assert!(
                self.has(node, view.held, data),
                "violated CommittedNeverTruncated: node {} had committed seq {}, and has it no more",
                node + 1,
                view.held
            );
        }
        let Some(current) = view.current.and_then(|number| view.files.get(&number)) else { return };
        let newest = current.txs.last().map_or(current.cut, |tx| tx.0).min(top);
        let tx = current.at(newest).map(|chain| &self.txs[&chain]);
        if tx.is_some_and(|tx| self.committed.get(&newest) == Some(&tx.data_hash)) {
            self.disks[node].held = view.held.max(newest);
        }
    }

    pub fn says(&self, node: usize) -> &Says {
        &self.disks[node].says
    }

    /// Does any node say that it is at a pack?
    pub fn is_packing(&self) -> bool {
        self.disks.iter().any(|view| !view.says.phase.is_empty())
    }

    /// Nothing that a process said holds after its end.
    pub fn has_died(&mut self, node: usize) {
        self.disks[node].says = Says::default();
    }

    /// Has a client committed anything?
    pub fn has_begun(&self) -> bool {
        self.committed_top.is_some() && !self.tags.is_empty()
    }

    pub fn has_master(&self, epoch: u64) -> bool {
        self.masters.contains_key(&epoch)
    }

    /// Something is about to happen to the disk that no crash does. What it has now counts as acknowledged for good.
    pub fn disk_damaged(&mut self, node: usize, fate: Fate) {
        let view = &mut self.disks[node];
        let tip = view.current.and_then(|number| view.files.get(&number)).and_then(File::tip);
        view.left.extend(tip);
        if let Some(current) = view.current.and_then(|number| view.files.get(&number)) {
            view.had_below = view.had_below.max(current.cut);
        }
        for file in view.files.values() {
            for (seq, _, chain) in &file.txs {
                view.had.insert((*seq, self.txs[chain].data_hash));
            }
        }
        if view.fate == Fate::Sound || fate != Fate::Damaged {
            view.fate = fate;
        }
        if fate != Fate::Damaged {
            view.promise = 0;
        }
    }

    fn disk_has(&self, node: usize, base: &[u8], seq: u64, chain: &[u8]) -> bool {
        self.disks[node].files.values().any(|file| {
            file.seal.is_some_and(|seal| seal[..] == *base)
                && file.at(seq).is_some_and(|found| found[..] == *chain)
        })
    }

    /// Does the disk have the transaction in its current or a newer file, or below its current file's cut?
    fn has(&self, node: usize, seq: u64, data: &Hash) -> bool {
        let view = &self.disks[node];
        if seq <= view.had_below || view.had.contains(&(seq, *data)) {
            return true;
        }
        let Some(current) = view.current.and_then(|number| view.files.get(&number)) else {
            return false;
        };
        if seq <= current.cut {
            return true;
        }
        let is_it = |file: &File| {
            file.at(seq)
                .is_some_and(|chain| self.txs.get(&chain).is_some_and(|tx| tx.data_hash == *data))
        };
        is_it(current)
            || view.files.values().any(|file| file.generation > current.generation && is_it(file))
    }

    /// A client of `node` is about to hear that its transaction is stored. Its seq, and whether no majority has it: that is
    /// allowed only if durability may be `local`, and only if the node's own disk has it.
    pub fn on_acknowledged(&self, node: usize, tag: &[u8; 16], local: bool) -> (u64, bool) {
        let found = || self.tags.get(tag).into_iter().flatten();
        for (seq, data) in found() {
            // Another transaction is known to be committed there: this copy is an orphan's. What is below a file's cut
            // can't be looked up on the disks any more.
            if self.committed.get(seq).is_some_and(|committed| committed != data) {
                continue;
            }
            let holders = (0..self.disks.len()).filter(|node| self.has(*node, *seq, data)).count();
            if holders > self.disks.len() / 2 {
                return (*seq, false);
            }
        }
        let current = |seq: &u64, data: &Hash| {
            let file = self.disks[node].current.and_then(|it| self.disks[node].files.get(&it));
            file.and_then(|file| file.at(*seq)).is_some_and(|at| self.txs[&at].data_hash == *data)
        };
        // Only whoever is or was master since tells its clients of what it has alone.
        let is_masters = |seq: &u64, data: &Hash| {
            let epochs = self.txs.values().filter(|tx| tx.seq == *seq && tx.data_hash == *data);
            let epoch = epochs.map(|tx| tx.epoch).min().unwrap_or(u64::MAX);
            self.masters.range(epoch..).any(|(_, (id, _))| *id == node as u64 + 1)
        };
        let alone = |(seq, data): &&(u64, Hash)| current(seq, data) && is_masters(seq, data);
        if local && let Some((seq, _)) = found().find(alone) {
            return (*seq, true);
        }
        panic!(
            "violated AckedIsDurable: a client hears that {} is committed, and no majority of disks has it: {:?}",
            tag_text(tag),
            self.tags.get(tag).map(|seqs| seqs.iter().map(|(seq, _)| *seq).collect::<Vec<_>>())
        );
    }

    /// With durability `all`: every voter's disk has what is acknowledged. (What is below a file's cut is in its base.)
    pub fn has_everybody(&self, tag: &[u8; 16], seq: u64) {
        let datas: Vec<Hash> =
            self.tags[tag].iter().filter(|(at, _)| *at == seq).map(|(_, data)| *data).collect();
        for node in (0..self.disks.len()).filter(|node| self.disks[*node].fate == Fate::Sound) {
            assert!(
                datas.iter().any(|data| self.has(node, seq, data)),
                "violated AckedByAll: a client hears that {} is stored at seq {seq}, and node {} has it not",
                tag_text(tag),
                node + 1
            );
        }
    }

    /// Tips of histories that this node's disk had and has no more, since the last time.
    pub fn take_left(&mut self, node: usize) -> Vec<Hash> {
        std::mem::take(&mut self.disks[node].left)
    }

    /// The newest epoch's master (from 0), as its appends say it.
    pub fn master(&self) -> Option<usize> {
        self.masters.last_key_value().map(|(_, (node, _))| *node as usize - 1)
    }

    /// (generation, tip's chain) of the durable current file.
    pub fn current(&self, node: usize) -> Option<(u64, Hash)> {
        let view = &self.disks[node];
        let file = view.files.get(&view.current?)?;
        Some((file.generation, file.tip()?))
    }

    /// The history that ends in `chain`, oldest first, without seals; and the seals passed, newest first.
    pub fn history(&self, chain: Hash) -> (Vec<&Tx>, Vec<Hash>) {
        let (mut history, mut seals) = (Vec::new(), Vec::new());
        let mut at = self.txs.get(&chain).expect("a known chain");
        loop {
            if let Kind::Seal { previous, .. } = at.kind {
                seals.push(at.chain);
                if at.seq == 0 {
                    break;
                }
                at = self.txs.get(&previous).expect("the generation before was seen");
            } else {
                history.push(at);
                at = self.txs.get(&at.prev).expect("the one before was seen");
            }
        }
        history.reverse();
        (history, seals)
    }

    /// Everything that was ever written, by what it follows.
    pub fn followers(&self) -> BTreeMap<Hash, Vec<&Tx>> {
        let mut followers: BTreeMap<Hash, Vec<&Tx>> = BTreeMap::new();
        for tx in self.txs.values() {
            followers.entry(tx.prev).or_default().push(tx);
        }
        followers
    }

    /// The file's own length, for the trace.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (index, view) in self.disks.iter().enumerate() {
            let file = view.current.and_then(|number| view.files.get(&number));
            let (generation, seq) = file.map_or((0, 0), |file| {
                (file.generation, file.txs.last().map_or(file.cut, |tx| tx.0))
            });
            text += &format!(" n{}: g{generation} seq {seq} promise {};", index + 1, view.promise);
        }
        text
    }
}

pub fn tag_text(tag: &[u8; 16]) -> String {
    let client = u64::from_be_bytes(tag[..8].try_into().expect("8"));
    let count = u64::from_be_bytes(tag[8..].try_into().expect("8"));
    format!("c{client}#{count}")
}
