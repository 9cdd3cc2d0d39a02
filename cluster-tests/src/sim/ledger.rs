//! What the disks and the messages show, and what must hold of it (design section 9).
//!
//! Nothing here looks into a node. Files are read again as they become durable; every transaction seen in one is kept
//! for ever by its chain, so that any history can be walked back, also through generations whose files are gone.
//! What is violated is said by a panic, which the run turns into a report.

use std::collections::{BTreeMap, BTreeSet};

use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::proto::replication as pb;
use packmaster::proto::replication::client_reply::Answer;

use super::disk::{Entry, Inode, Medium, Platter};
use super::parse::{self, Hash, Kind, Object, Tx};

/// One generation file on one disk, as a power failure would leave it.
#[derive(Default)]
struct File {
    parsed_to: usize,
    /// Of the whole file.
    len: usize,
    seal: Option<Hash>,
    generation: u64,
    cut: u64,
    /// After the seal: seq, end, chain.
    txs: Vec<(u64, usize, Hash)>,
    commit_ids: BTreeSet<[u8; 16]>,
}

impl File {
    fn tip(&self) -> Option<Hash> {
        self.txs.last().map(|tx| tx.2).or(self.seal)
    }

    fn at(&self, seq: u64) -> Option<Hash> {
        if seq == self.cut {
            return self.seal;
        }
        let index = seq.checked_sub(self.cut + 1)? as usize;
        self.txs.get(index).map(|tx| tx.2)
    }
}

#[derive(Default)]
struct DiskView {
    files: BTreeMap<u64, File>,
    /// Durable names of generation files, and the durable link.
    named: BTreeMap<String, u64>,
    current: Option<u64>,
    promise: u64,
}

#[derive(Default)]
pub struct Ledger {
    disks: Vec<DiskView>,
    /// Every transaction ever seen durable, by its chain.
    pub txs: BTreeMap<Hash, Tx>,
    /// Objects of a generation's base, by the seal's chain.
    pub bases: BTreeMap<Hash, BTreeMap<u64, Object>>,
    masters: BTreeMap<u64, (u64, u64)>,
    /// Committed, by somebody's word: data hash by seq; generation independent.
    committed: BTreeMap<u64, Hash>,
    committed_ids: BTreeMap<[u8; 16], u64>,
    /// The newest committed transaction's chain.
    pub committed_top: Option<(u64, Hash)>,
    /// Tags of clients' transactions: where seen.
    pub tags: BTreeMap<[u8; 16], BTreeSet<(u64, Hash)>>,
}

/// What clients of the simulation write into every record: who wrote it.
pub const MAGIC: &[u8; 8] = b"SIMULATE";

pub fn tag_of(data: &[u8]) -> Option<[u8; 16]> {
    (data.get(..8)? == MAGIC).then(|| data[8..24].try_into().expect("16 bytes"))
}

impl Ledger {
    pub fn new(nodes: usize) -> Ledger {
        Ledger { disks: (0..nodes).map(|_| DiskView::default()).collect(), ..Ledger::default() }
    }

    /// Reads again what changed on the disk of `node` (from 0).
    pub fn look(&mut self, node: usize, medium: &Medium) {
        let mut platter = medium.lock();
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
            view.current = match names.get("current.durus") {
                Some(Entry::Link(target)) => match names.get(target) {
                    Some(Entry::File(number)) => Some(*number),
                    _ => panic!(
                        "Flip: node {}'s link points at {target}, which is not there",
                        node + 1
                    ),
                },
                _ => None,
            };
            assert!(
                view.current.is_some() || !had_current,
                "violated OneRename: node {} has no current file any more",
                node + 1
            );
            let used: BTreeSet<u64> = view.named.values().copied().collect();
            view.files.retain(|number, _| used.contains(number));
        }
        if let Some(inode) = platter.durable_file("promise") {
            let promise = parse::promise(inode.durable()).unwrap_or(0);
            assert!(
                promise >= view.promise,
                "violated PromiseMonotone: node {} promised {} and then {promise}",
                node + 1,
                view.promise
            );
            view.promise = promise;
        }
        let numbers: BTreeSet<u64> = view.named.values().copied().collect();
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
            if let Some((seq, ..)) =
                before.iter().find(|tx| is_cut(file, inode, tx) && !is_kept(&platter, &tx.2))
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
                self.txs.entry(tx.chain).or_insert(tx);
            }
        }
    }

    /// What a node says to another, at the moment it says it.
    pub fn on_send(&mut self, from: usize, message: &PeerMessage) {
        match &message.kind {
            Some(Message::Append(append)) => self.on_append(from, append),
            Some(Message::AppendReply(reply)) if reply.matched => self.on_ack(from, reply),
            Some(Message::Fetch(fetch)) => self.on_fetch(from, fetch),
            Some(Message::ClientReply(reply)) => self.on_client_reply(from, reply),
            Some(Message::FenceReport(report)) => {
                let promise = self.disks[from].promise;
                assert!(
                    promise >= report.epoch,
                    "violated PromiseMonotone: node {} reports for epoch {} with {promise} on its disk",
                    from + 1,
                    report.epoch
                );
                let position = report.position.as_ref().expect("a position");
                let tip = position.tip.as_ref().expect("a tip");
                assert!(
                    self.disk_has(from, &position.base_hash, tip.seq, &tip.chain),
                    "violated durable position: node {} reports seq {} that is not on its disk",
                    from + 1,
                    tip.seq
                );
            }
            _ => {}
        }
    }

    fn on_append(&mut self, from: usize, append: &pb::Append) {
        let me = (from as u64 + 1, append.boot);
        let master = *self.masters.entry(append.epoch).or_insert(me);
        assert_eq!(
            master, me,
            "violated EpochUnique: two masters (node, boot) in epoch {}",
            append.epoch
        );
        let commit = append.commit.as_ref().expect("a commit position");
        if commit.chain.len() == 20 && commit.seq > 0 {
            let chain: Hash = commit.chain[..].try_into().expect("20 bytes");
            self.claim(from, append.epoch, commit.seq, chain);
        }
    }

    /// `node`, master of `epoch`, says that everything up to `seq` in the history of `chain` is committed.
    fn claim(&mut self, node: usize, epoch: u64, seq: u64, chain: Hash) {
        if self.committed_top.is_some_and(|(_, top)| top == chain) {
            return;
        }
        let Some(tx) = self.txs.get(&chain) else {
            panic!(
                "violated AckedIsDurable: node {} calls seq {seq} committed, which was never durable anywhere",
                node + 1
            );
        };
        assert_eq!(tx.seq, seq, "node {} calls a chain committed under another seq", node + 1);
        let top = self.committed_top.map_or(0, |(seq, _)| seq);
        let mut new = Vec::new();
        let mut at = tx;
        // Down to what is known, collecting; a seal stands for the transaction at its cut.
        loop {
            let data = match at.kind {
                Kind::Seal { previous, .. } => {
                    if at.seq == 0 {
                        break;
                    }
                    at = self.txs.get(&previous).expect("the generation before was seen");
                    continue;
                }
                _ => at.data_hash,
            };
            if at.seq <= top {
                let known = self.committed.get(&at.seq);
                assert_eq!(
                    known,
                    Some(&data),
                    "violated ChainMatch/CommittedNeverTruncated: node {} calls seq {seq} committed, \
                     whose history differs at seq {} from what was committed before",
                    node + 1,
                    at.seq
                );
                break;
            }
            new.push((at.seq, data, at.commit_id, at.chain));
            at = self.txs.get(&at.prev).expect("the one before was seen");
        }
        if let Some((_, data, ..)) = new.first() {
            // The master of an earlier epoch may have told nobody what it had committed; but it knows, and so does who
            // has heard of its pack.
            let told_nobody =
                self.masters.get(&tx.epoch).is_some_and(|(id, _)| *id == node as u64 + 1);
            assert!(
                tx.epoch == epoch || told_nobody || matches!(tx.kind, Kind::Seal { .. }),
                "violated CommitNeedsOwnEpoch: node {} calls seq {seq} of epoch {} committed in epoch {epoch}",
                node + 1,
                tx.epoch
            );
            let holders = (0..self.disks.len()).filter(|node| self.has(*node, seq, data)).count();
            assert!(
                holders > self.disks.len() / 2,
                "violated AckedIsDurable: node {} calls seq {seq} committed, which {holders} disks have",
                node + 1
            );
        }
        for (seq, data, id, _) in &new {
            self.committed.insert(*seq, *data);
            if id != &[0; 16]
                && let Some(other) = self.committed_ids.insert(*id, *seq)
            {
                panic!("violated ExactlyOnce: commit id {id:02x?} at seq {other} and at seq {seq}");
            }
        }
        if seq >= top {
            self.committed_top = Some((seq, chain));
        }
    }

    fn on_ack(&mut self, from: usize, reply: &pb::AppendReply) {
        let promise = self.disks[from].promise;
        assert_eq!(
            promise,
            reply.epoch,
            "violated NoAckBelowPromise: node {} acknowledges in epoch {} with promise {promise} on its disk",
            from + 1,
            reply.epoch
        );
        let tip = reply.durable.as_ref().expect("a tip");
        assert!(
            self.disk_has(from, &reply.base_hash, tip.seq, &tip.chain),
            "violated AckedIsDurable: node {} acknowledges seq {} that is not on its disk",
            from + 1,
            tip.seq
        );
        // A torn append is cut off before a node says anything.
        let rest = self.disks[from]
            .files
            .values()
            .find(|file| file.seal.is_some_and(|seal| seal[..] == *reply.base_hash))
            .map_or(0, |file| file.len - file.parsed_to);
        assert!(
            rest == 0,
            "violated WholeTransactions: node {} acknowledges, and its file ends in {rest} bytes of something else",
            from + 1
        );
    }

    /// Whoever answers clients as the master of an epoch has opened it: a majority has a transaction of it.
    fn on_client_reply(&self, from: usize, reply: &pb::ClientReply) {
        if matches!(reply.answer, None | Some(Answer::RegisterFirst(_))) {
            return;
        }
        let is_there = |view: &&DiskView| {
            let mut tips = view.files.values().filter_map(File::tip);
            tips.any(|tip| self.txs.get(&tip).is_some_and(|tx| tx.epoch >= reply.epoch))
        };
        let holders = self.disks.iter().filter(is_there).count();
        assert!(
            holders > self.disks.len() / 2,
            "violated ServesOnlyWhenOpen: node {} answers in epoch {}, of which {holders} disks have a transaction",
            from + 1,
            reply.epoch
        );
    }

    /// Whoever has a generation's cut in its own file needs nobody's copy of the base.
    fn on_fetch(&self, from: usize, fetch: &pb::Fetch) {
        let base: Option<Hash> = fetch.base_hash[..].try_into().ok();
        let Some(Kind::Seal { generation, cut, previous }) =
            base.and_then(|base| self.txs.get(&base)).map(|seal| seal.kind)
        else {
            return;
        };
        // From another offset on it is what its file lacks, of the generation it has moved to by now.
        let view = &self.disks[from];
        let current = view.current.filter(|_| fetch.offset == 0);
        let Some(file) = current.and_then(|number| view.files.get(&number)) else { return };
        assert!(
            file.generation + 1 != generation || file.at(cut) != Some(previous),
            "violated NoNeedlessCopy: node {} fetches the base of generation {generation}, and its own file has the cut",
            from + 1
        );
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

    /// A client is about to hear that its transaction is committed. Its seq.
    pub fn on_acknowledged(&self, tag: &[u8; 16]) -> u64 {
        let found = self.tags.get(tag).into_iter().flatten();
        for (seq, data) in found {
            let holders = (0..self.disks.len()).filter(|node| self.has(*node, *seq, data)).count();
            if holders > self.disks.len() / 2 {
                return *seq;
            }
        }
        panic!(
            "violated AckedIsDurable: a client hears that {} is committed, and no majority of disks has it: {:?}",
            tag_text(tag),
            self.tags.get(tag).map(|seqs| seqs.iter().map(|(seq, _)| *seq).collect::<Vec<_>>())
        );
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

/// Was this transaction taken out of the file: is the file shorter now, or another in its place? (What a damaged disk
/// made unreadable was not taken out.)
fn is_cut(file: &File, inode: &Inode, (seq, end, chain): &(u64, usize, Hash)) -> bool {
    match file.at(*seq) {
        Some(found) => found != *chain,
        None => inode.durable().len() < *end,
    }
}

/// Does an orphan file have the transaction that ends in this chain?
fn is_kept(platter: &Platter, chain: &Hash) -> bool {
    platter.durable_names().iter().any(|(name, entry)| match entry {
        Entry::File(number) if name.starts_with("orphans/") => platter
            .inode(*number)
            .is_some_and(|inode| inode.durable().windows(chain.len()).any(|bytes| bytes == chain)),
        _ => false,
    })
}

type Found = Vec<(Tx, Option<BTreeMap<u64, Object>>)>;

/// Parses what is new since byte `from`; a torn or broken tail is left for the node to judge.
fn read_on(file: &mut File, bytes: &[u8], from: usize) -> Found {
    let mut found = Vec::new();
    if from < file.parsed_to {
        while file.txs.last().is_some_and(|(_, end, _)| *end > from) {
            file.txs.pop();
        }
        file.commit_ids.clear();
        match file.txs.last() {
            Some((_, end, _)) => file.parsed_to = *end,
            None => *file = File::default(),
        }
    }
    if file.seal.is_none() {
        let Ok((objects, seal_at)) = parse::base(bytes) else { return found };
        let Ok((tx, end)) = parse::transaction(bytes, seal_at, None) else { return found };
        let Kind::Seal { generation, cut, .. } = tx.kind else { return found };
        (file.seal, file.generation, file.cut, file.parsed_to) =
            (Some(tx.chain), generation, cut, end);
        found.push((tx, Some(objects)));
    }
    let mut last: Option<(u64, u64, u64)> = None;
    while let Ok((tx, end)) = parse::transaction(bytes, file.parsed_to, file.tip()) {
        let expected = file.txs.last().map_or(file.cut, |tx| tx.0) + 1;
        assert_eq!(tx.seq, expected, "a hole in a durable file");
        if let Some((seq, epoch, time)) = last {
            assert!(tx.epoch >= epoch, "violated ChainEpochMonotone after seq {seq}");
            assert!(tx.time_us >= time, "violated TimeMonotone: it goes back after seq {seq}");
        }
        last = Some((tx.seq, tx.epoch, tx.time_us));
        if tx.commit_id != [0; 16] {
            assert!(
                file.commit_ids.insert(tx.commit_id),
                "violated ExactlyOnce: a commit id twice in one file, again at seq {}",
                tx.seq
            );
        }
        file.txs.push((tx.seq, end, tx.chain));
        file.parsed_to = end;
        found.push((tx, None));
    }
    found
}
