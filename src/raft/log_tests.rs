//! The log against torn files, flipped bits and crashes at every step.

use bytes::Bytes;

use super::super::test_disk::{Keep, TestDisk};
use super::*;

fn entry(index: u64, term: u64) -> RaftEntry {
    let data = Bytes::from(format!("command {index}"));
    RaftEntry { index, term, data, ..Default::default() }
}

/// Record n: a vote, an entry, a commit of the one before.
fn record(n: u64) -> RaftRecord {
    let hard_state = Some(RaftHardState { term: n, vote: 1, commit: n - 1 });
    RaftRecord { hard_state, entries: vec![entry(n, n)], snapshot: None }
}

fn snapshot(index: u64) -> RaftRecord {
    let data = Bytes::from_static(b"state");
    let snapshot = RaftSnapshot { index, term: index, data, conf_state: None };
    RaftRecord { snapshot: Some(snapshot), ..Default::default() }
}

fn open(disk: &TestDisk) -> Result<(RaftLog, Recovered), RaftLogError> {
    RaftLog::open(Arc::new(disk.clone()))
}

/// A log of records 1 to `count`, and what each number of records amounts to.
fn log_of(disk: &TestDisk, count: u64) -> Vec<Recovered> {
    let (mut log, recovered) = open(disk).unwrap();
    assert!(recovered.fresh);
    let mut states = vec![Recovered::default()];
    for n in 1..=count {
        log.append(&record(n)).unwrap();
        states.push(of(&log.image));
    }
    states
}

fn of(image: &LogImage) -> Recovered {
    let LogImage { hard_state, snapshot, entries } = image.clone();
    Recovered { hard_state, snapshot, entries: entries.into(), fresh: false, repaired: None }
}

/// Opens, forgets what was repaired, and sees that the log is whole and can be appended to afterwards.
fn recover(disk: &TestDisk) -> Result<Recovered, RaftLogError> {
    let (mut log, mut recovered) = open(disk)?;
    assert!(!recovered.fresh);
    recovered.repaired = None;
    let next = record(recovered.hard_state.term + 1);
    let last = recovered.entries.last().map_or(0, |entry| entry.index);
    if last + 1 == next.entries[0].index {
        log.append(&next).unwrap();
    }
    let (_, again) = open(disk).unwrap();
    assert_eq!(again.repaired, None);
    assert_eq!(again, of(&log.image));
    assert_eq!(disk.contents(NAMES[0]), disk.contents(NAMES[1]));
    Ok(recovered)
}

/// Ends of the records of a file, in bytes; the first is that of the image.
fn ends(file: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = format::FILE_HEADER;
    while at < file.len() {
        let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
        at += format::RECORD_HEADER + length as usize;
        ends.push(at);
    }
    ends
}

fn pair(a: &[u8], b: &[u8]) -> TestDisk {
    let disk = TestDisk::default();
    disk.put(NAMES[0], a);
    disk.put(NAMES[1], b);
    disk
}

#[test]
fn what_was_appended_is_recovered() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 5);
    let (_, recovered) = open(&disk.crashed(Keep::Nothing, false)).unwrap();
    assert_eq!(recovered, states[5]);
    assert_eq!(recovered.entries.len(), 5);
    assert_eq!(recovered.hard_state.commit, 4);
}

#[test]
fn every_truncation_of_either_or_both_copies_is_survived() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 3);
    let file = disk.contents(NAMES[0]);
    let ends = ends(&file);
    let expect = |longest: usize| ends.iter().filter(|end| **end <= longest).count();
    let check = |a: usize, b: usize| {
        let result = recover(&pair(&file[..a], &file[..b]));
        match expect(a.max(b)) {
            0 => assert!(matches!(result, Err(RaftLogError::Corrupt { .. })), "{a} {b}"),
            count => assert_eq!(result.unwrap(), states[count - 1], "{a} {b}"),
        }
    };
    for length in 0..=file.len() {
        check(length, file.len());
        check(file.len(), length);
        check(length, length);
        (0..=file.len()).step_by(7).for_each(|other| check(length, other));
    }
}

#[test]
fn a_missing_copy_is_made_again() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 3);
    for name in NAMES {
        let disk = disk.crashed(Keep::All, true);
        disk.remove(name).unwrap();
        assert_eq!(recover(&disk).unwrap(), states[3]);
    }
}

#[test]
fn a_flip_in_one_copy_is_mended_from_the_other() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 3);
    let file = disk.contents(NAMES[0]);
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        for disk in [pair(&flipped, &file), pair(&file, &flipped)] {
            let (_, recovered) = open(&disk).unwrap();
            assert!(recovered.repaired.is_some(), "bit {bit}");
            assert_eq!(recover(&disk).unwrap(), states[3], "bit {bit}");
        }
    }
}

#[test]
fn flips_of_one_record_in_both_copies_are_reported() {
    let disk = TestDisk::default();
    log_of(&disk, 3);
    let file = disk.contents(NAMES[0]);
    let mut bounds = vec![0, format::FILE_HEADER];
    bounds.extend(ends(&file));
    for bit in 0..file.len() * 8 {
        let mut a = file.clone();
        a[bit / 8] ^= 1 << (bit % 8);
        let part = bounds.windows(2).find(|part| bit / 8 < part[1]).unwrap();
        // the same bit, and one elsewhere in the same record
        for other in [bit, part[0] * 8 + (bit * 31 + 5) % ((part[1] - part[0]) * 8)] {
            let mut b = file.clone();
            b[other / 8] ^= 1 << (other % 8);
            let disk = pair(&a, &b);
            assert!(matches!(open(&disk), Err(RaftLogError::Corrupt { .. })), "{bit} {other}");
            assert_eq!(disk.contents(NAMES[0]), a, "evidence is left alone");
        }
    }
}

#[test]
fn flips_of_different_records_are_mended() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 3);
    let file = disk.contents(NAMES[0]);
    let ends = ends(&file);
    for (x, y) in [(0, 1), (1, 0), (2, 3), (3, 2), (0, 3), (3, 0)] {
        let (mut a, mut b) = (file.clone(), file.clone());
        a[ends[x] - 1] ^= 4;
        b[ends[y] - 1] ^= 4;
        assert_eq!(recover(&pair(&a, &b)).unwrap(), states[3]);
    }
}

const CRASHES: [(Keep, bool); 8] = [
    (Keep::Nothing, false),
    (Keep::Nothing, true),
    (Keep::Half, false),
    (Keep::Half, true),
    (Keep::Zeros, false),
    (Keep::Zeros, true),
    (Keep::All, false),
    (Keep::All, true),
];

/// Does `last` after a log of 4 records and crashes at each change it makes: what is found is the log before, or with
/// `last`; with it if `last` was acknowledged.
fn crash_at_each_change(last: &RaftRecord) {
    for change in 0.. {
        let disk = TestDisk::default();
        log_of(&disk, 4);
        let (mut log, _) = open(&disk).unwrap();
        let before = of(&log.image);
        let mut image = log.image.clone();
        image.apply(last).unwrap();
        let after = of(&image);
        disk.fail_in(change);
        let acknowledged = log.append(last).is_ok();
        for (data, names) in CRASHES {
            let found = recover(&disk.crashed(data, names)).unwrap();
            let fits = found == after || (!acknowledged && found == before);
            assert!(fits, "change {change} {data:?} {names}: {found:?}");
        }
        if acknowledged {
            return;
        }
        assert!(matches!(log.append(&record(9)), Err(RaftLogError::Failed)));
    }
}

#[test]
fn a_crash_at_any_change_of_an_append_is_survived() {
    crash_at_each_change(&record(5));
}

#[test]
fn a_crash_at_any_change_of_a_compaction_is_survived() {
    crash_at_each_change(&snapshot(3));
}

#[test]
fn a_crash_at_any_change_of_a_repair_is_survived() {
    let disk = TestDisk::default();
    let states = log_of(&disk, 3);
    let file = disk.contents(NAMES[0]);
    let mut flipped = file.clone();
    flipped[60] ^= 1;
    for damaged in [pair(&flipped, &file), pair(&file, &flipped), pair(&flipped, &file)] {
        for change in 0.. {
            let disk = damaged.crashed(Keep::All, true);
            disk.fail_in(change);
            let done = open(&disk).is_ok();
            for (data, names) in CRASHES {
                let found = recover(&disk.crashed(data, names));
                assert_eq!(found.unwrap(), states[3], "change {change} {data:?} {names}");
            }
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_crash_at_any_change_of_the_making_is_survived() {
    for change in 0.. {
        let disk = TestDisk::default();
        disk.fail_in(change);
        let done = open(&disk).is_ok();
        for (data, names) in CRASHES {
            let (mut log, recovered) = open(&disk.crashed(data, names)).unwrap();
            assert_eq!(recovered.entries, []);
            assert!(!done || !recovered.fresh, "made once: never fresh again");
            log.append(&record(1)).unwrap();
        }
        if done {
            return;
        }
    }
}

#[test]
fn a_snapshot_shortens_the_files() {
    let disk = TestDisk::default();
    log_of(&disk, 50);
    let (mut log, _) = open(&disk).unwrap();
    let long = disk.contents(NAMES[0]).len();
    log.append(&snapshot(49)).unwrap();
    assert!(disk.contents(NAMES[0]).len() < long / 5);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.repaired, None);
    assert_eq!(recovered.snapshot, snapshot(49).snapshot);
    assert_eq!(recovered.entries, [entry(50, 50)]);
}

#[test]
fn garbage_is_dropped_without_a_snapshot_too() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    // one entry, rewritten by leader after leader
    for term in 1..=3000 {
        let mut entry = entry(1, term);
        entry.data = Bytes::from(vec![7; 1000]);
        let hard_state = Some(RaftHardState { term, vote: 0, commit: 0 });
        log.append(&RaftRecord { hard_state, entries: vec![entry], snapshot: None }).unwrap();
    }
    assert!((disk.contents(NAMES[0]).len() as u64) < REWRITE_ABOVE + 3000);
    assert_eq!(open(&disk).unwrap().1.entries[0].term, 3000);
}
