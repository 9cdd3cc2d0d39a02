//! The Raft log's two copies and the promise's, as a disk may give them back.
//!
//! A log is written by the production `RaftLog`, or record by record with good checksums and strange contents; then one
//! copy is damaged, or both, or a rewrite left its temporary files. While one copy is good nothing may be lost; when
//! both are damaged, the log is refused or what is left is a beginning of what was written. What `RaftLog::open` hands
//! out, raft-rs must be able to start from.

use std::sync::Arc;

use packmaster::proto::control::{
    RaftConfState, RaftEntry, RaftHardState, RaftRecord, RaftSnapshot,
};
use packmaster::raft::{Driver, RaftLog, Recovered};
use packmaster::storage::mem::MemDisk;
use packmaster::storage::promise;
use packmaster::storage::{Disk, DiskFile};
use packmaster::types::{Epoch, NodeId};
use prost::Message;

use super::machine::read;
use super::script::{Script, damage};
use crate::sim::parse;

const VOTERS: [u64; 3] = [1, 2, 3];
const NAMES: [&str; 2] = ["raft-a.log", "raft-b.log"];
const LEFT_OVER: &str = "raft-b.tmp";

pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    match script.byte() % 4 {
        0 => written(&mut script),
        1 => composed(&mut script),
        2 => any(&mut script),
        _ => promised(&mut script),
    }
}

fn put(disk: &MemDisk, name: &str, bytes: &[u8]) {
    let file: Arc<dyn DiskFile> = disk.create(name).expect("a file");
    file.write_at(0, bytes).expect("room");
}

/// Writes records that raft-rs could have asked for; then damages.
fn written(script: &mut Script<'_>) {
    let disk = MemDisk::new();
    let (mut log, recovered) = RaftLog::open(Arc::new(disk.clone())).expect("an empty disk");
    assert!(recovered.fresh);
    let mut life = Life::default();
    let mut states = vec![Kept::default()];
    for _ in 0..script.below(10) {
        let record = life.record(script);
        log.append(&record).expect("a disk in memory");
        states.push(life.kept());
    }
    drop(log);
    let [a, b] = NAMES;
    let (mut first, mut second) = (read(&disk, a), read(&disk, b));
    assert_eq!(first, second);
    let whole = first.clone();
    damage(&mut first, script.piece());
    damage(&mut second, script.piece());
    let one_is_good = first == whole || second == whole;
    put(&disk, a, &first);
    put(&disk, b, &second);
    let left_over = script.piece();
    if !left_over.is_empty() {
        put(&disk, LEFT_OVER, left_over);
    }
    let Some(recovered) = open(&disk) else {
        assert!(!one_is_good, "a good copy was refused");
        return;
    };
    let found = Kept::of(&recovered);
    match one_is_good {
        true => assert_eq!(Some(&found), states.last(), "one copy was good, and something is lost"),
        false => assert!(states.contains(&found), "{found:?} was never written"),
    }
    start(recovered);
}

/// What must come back.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kept {
    hard_state: RaftHardState,
    snapshot: u64,
    entries: Vec<(u64, u64)>,
}

impl Kept {
    fn of(recovered: &Recovered) -> Kept {
        Kept {
            hard_state: recovered.hard_state,
            snapshot: recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index),
            entries: recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect(),
        }
    }
}

/// A log's life as raft-rs would live it.
#[derive(Default)]
struct Life {
    kept: Kept,
    snapshot_term: u64,
}

impl Life {
    fn kept(&self) -> Kept {
        self.kept.clone()
    }

    fn last(&self) -> (u64, u64) {
        self.kept.entries.last().copied().unwrap_or((self.kept.snapshot, self.snapshot_term))
    }

    fn record(&mut self, script: &mut Script<'_>) -> RaftRecord {
        let mut record = RaftRecord::default();
        let state = &mut self.kept.hard_state;
        state.term = (state.term + script.below(3) as u64).max(1);
        let term = state.term;
        if script.below(4) == 0 && self.kept.hard_state.commit > self.kept.snapshot {
            let index = self.kept.hard_state.commit;
            let entry = self.kept.entries.iter().find(|(at, _)| *at == index);
            self.snapshot_term = entry.expect("it is committed").1;
            self.kept.snapshot = index;
            self.kept.entries.retain(|(at, _)| *at > index);
            record.snapshot = Some(snapshot(index, self.snapshot_term, script.piece()));
        }
        let (last, _) = self.last();
        // New ones, perhaps in place of some that are not committed.
        let again = script.below(3) as u64;
        let first = (last + 1).saturating_sub(again).max(self.kept.hard_state.commit + 1);
        for nth in 0..script.below(4) as u64 {
            let index = first + nth;
            if nth == 0 {
                self.kept.entries.retain(|(at, _)| *at < index);
            }
            self.kept.entries.push((index, term));
            record.entries.push(entry(index, term, script.piece()));
        }
        let (last, _) = self.last();
        let commit = self.kept.hard_state.commit + script.below(4) as u64;
        self.kept.hard_state.commit = commit.min(last);
        self.kept.hard_state.vote = script.below(4) as u64;
        record.hard_state = Some(self.kept.hard_state);
        record
    }
}

fn entry(index: u64, term: u64, data: &[u8]) -> RaftEntry {
    RaftEntry { index, term, data: data.to_vec().into(), ..Default::default() }
}

fn snapshot(index: u64, term: u64, data: &[u8]) -> RaftSnapshot {
    let conf_state = Some(RaftConfState { voters: VOTERS.to_vec(), ..Default::default() });
    RaftSnapshot { index, term, conf_state, data: data.to_vec().into() }
}

/// Records of any numbers, with good checksums: what a bug, or a disk of another cluster, could leave.
fn composed(script: &mut Script<'_>) {
    let generation = script.number();
    let mut file = b"PMRAFT1\n".to_vec();
    file.extend(generation.to_be_bytes());
    file.extend(parse::crc32c(&file).to_be_bytes());
    let mut seq = script.number();
    for _ in 0..script.below(6) {
        let payload = match script.below(4) {
            0 => script.piece().to_vec(),
            _ => odd_record(script).encode_to_vec(),
        };
        let mut head = (payload.len() as u32).to_be_bytes().to_vec();
        head.extend(generation.to_be_bytes());
        head.extend(seq.to_be_bytes());
        head.extend(parse::crc32c(&payload).to_be_bytes());
        head.extend(parse::crc32c(&head).to_be_bytes());
        file.extend(head);
        file.extend(payload);
        seq = seq.wrapping_add(1);
    }
    let disk = MemDisk::new();
    drop(RaftLog::open(Arc::new(disk.clone())).expect("an empty disk"));
    NAMES.iter().for_each(|name| put(&disk, name, &file));
    open(&disk).into_iter().for_each(start);
}

fn odd_record(script: &mut Script<'_>) -> RaftRecord {
    let mut record = RaftRecord::default();
    let what = script.byte();
    if what & 1 != 0 {
        let (term, vote, commit) = (script.number(), script.number(), script.number());
        record.hard_state = Some(RaftHardState { term, vote, commit });
    }
    if what & 2 != 0 {
        let mut it = snapshot(script.number(), script.number(), script.piece());
        if what & 4 != 0 {
            it.conf_state = None;
        }
        record.snapshot = Some(it);
    }
    for _ in 0..script.below(4) {
        let mut it = entry(script.number(), script.number(), script.piece());
        it.entry_type = u32::from(script.byte() & 3);
        record.entries.push(it);
    }
    record
}

/// Two files of any bytes.
fn any(script: &mut Script<'_>) {
    let disk = MemDisk::new();
    drop(RaftLog::open(Arc::new(disk.clone())).expect("an empty disk"));
    let [a, b] = NAMES;
    put(&disk, a, script.long_piece());
    put(&disk, b, script.rest());
    open(&disk).into_iter().for_each(start);
}

/// Opens twice: what was mended once is whole, and says the same; and goes on.
fn open(disk: &MemDisk) -> Option<Recovered> {
    let before: Vec<_> = NAMES.iter().map(|name| read(disk, name)).collect();
    let (_, first) = match RaftLog::open(Arc::new(disk.clone())) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let after: Vec<_> = NAMES.iter().map(|name| read(disk, name)).collect();
            assert_eq!(before, after, "what is refused is left as it is");
            return None;
        }
    };
    assert!(!first.fresh, "it is there, and was taken for new");
    let (mut log, second) = RaftLog::open(Arc::new(disk.clone())).expect("it was just mended");
    assert_eq!(Kept::of(&first), Kept::of(&second));
    assert!(second.repaired.is_none(), "{:?}", second.repaired);
    log.append(&RaftRecord::default()).expect("a disk in memory");
    Some(second)
}

/// raft-rs begins with it, campaigns, and is the leader of nobody.
fn start(recovered: Recovered) {
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let voters = VOTERS.map(NodeId);
    let Ok(mut driver) = Driver::new(NodeId(1), &voters, recovered, 4, &log) else { return };
    for _ in 0..12 {
        driver.tick();
        while let Some((number, _)) = driver.poll().persist {
            driver.persisted(number);
        }
    }
}

/// The promise: the greater of its good copies, or an error, never less.
fn promised(script: &mut Script<'_>) {
    let disk = MemDisk::new();
    if script.byte().is_multiple_of(2) {
        put(&disk, "promise", script.rest());
    } else {
        let epoch = Epoch(script.number());
        promise::write(&disk, epoch).expect("room");
        let mut bytes = read(&disk, "promise");
        damage(&mut bytes, script.piece());
        put(&disk, "promise", &bytes);
        let told = parse::promise(&bytes);
        assert!(told.is_none_or(|told| told == epoch.0), "{told:?} instead of {epoch}");
    }
    let bytes = read(&disk, "promise");
    match (promise::read(&disk), parse::promise(&bytes)) {
        (Ok(Some(epoch)), Some(told)) => assert_eq!(epoch.0, told),
        (Ok(None), None) => assert!(bytes.is_empty(), "a promise was forgotten"),
        (Err(_), None) => {}
        (read, told) => panic!("{read:?}, and the judge reads {told:?}"),
    }
    promise::write(&disk, Epoch(7)).expect("room");
    assert_eq!(promise::read(&disk).expect("just written"), Some(Epoch(7)));
}
