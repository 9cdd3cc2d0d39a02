use std::sync::Arc;

use super::{FIRST, StartError, start};
use crate::node::core::Core;
use crate::node::core::testing::{first_of, setup_of};
use crate::raft::RaftLog;
use crate::shelf::Shelf;
use crate::shelf::testing::{commit, get, put};
use crate::storage::mem::MemDisk;
use crate::storage::synced;
use crate::storage::task::{AMNESIAC, CURRENT, RECOVERING};
use crate::storage::{Disk, promise};
use crate::types::{Epoch, Generation, Now, Seq};

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

/// A file of three commits with a hole in the second, and where each of them ends.
fn with_a_hole() -> (Arc<MemDisk>, Vec<u64>) {
    let disk = Arc::new(MemDisk::default());
    promise::write(&*disk, Epoch(1)).unwrap();
    let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
    let mut ends = Vec::new();
    for oid in 0..3 {
        commit(&mut shelf, &[(oid, &[7; 1500], &[])]);
        ends.push(shelf.tip().offset);
    }
    let mut bytes = get(&disk, FIRST);
    let sector = (ends[0] as usize + 512).next_multiple_of(512);
    bytes[sector..sector + 512].fill(0);
    put(&disk, FIRST, &bytes);
    disk.set_link(CURRENT, FIRST).unwrap();
    (disk, ends)
}

/// Found by the soak (seeds 4000008, 4001564): a power failure left a hole in what was not synced yet, and the node, which
/// was alone, waited for ever for peers to fetch it from.
#[test]
fn a_node_alone_cuts_off_what_was_never_synced_whatever_is_left_of_it() {
    let (disk, ends) = with_a_hole();
    synced::write(&*disk, Generation(1), ends[0]).unwrap();
    let core = first_of(1, disk.clone(), NOW);
    assert_eq!(core.shelf.tip().seq, Seq(1));
    assert!(core.recovering.is_none());
    let kept = |name: &String| name.starts_with("orphans/");
    assert!(disk.list().unwrap().iter().any(kept), "what was cut off is kept");
    assert_eq!(synced::read(&*disk, Generation(1)).unwrap(), ends[0]);
}

#[test]
fn what_was_synced_and_is_bad_is_damage_alone_and_among_others() {
    for (nodes, upto) in [(1, 2), (1, 1), (3, 0)] {
        let (disk, ends) = with_a_hole();
        synced::write(&*disk, Generation(1), ends[upto]).unwrap();
        let core = first_of(nodes, disk.clone(), NOW);
        assert!(core.recovering.is_some(), "{nodes} nodes, synced up to {upto}");
        assert!(disk.exists(RECOVERING).unwrap());
    }
}

const LOGS: [&str; 2] = ["raft-a.log", "raft-b.log"];

fn on(disk: &Arc<MemDisk>, born: bool) -> Core {
    start(setup_of(3, disk.clone(), born), NOW).expect("it starts").0
}

/// What a first start leaves.
fn used() -> Arc<MemDisk> {
    let disk = Arc::new(MemDisk::default());
    assert!(on(&disk, false).suspect.is_empty());
    assert_eq!(promise::read(&*disk).unwrap(), Some(Epoch(0)), "the last thing that is born");
    assert!(on(&disk, true).suspect.is_empty());
    disk
}

fn lose(disk: &MemDisk, names: &[&str]) {
    names.iter().for_each(|name| disk.remove(name).unwrap());
}

/// Tried from outside: both copies were removed, and the node voted and acknowledged as if it had never done so.
#[test]
fn a_raft_log_that_is_gone_is_lost_whatever_shows_that_there_was_one() {
    for born in [true, false] {
        for beside in [vec![], vec!["promise"], vec![CURRENT]] {
            let disk = used();
            lose(&disk, &LOGS);
            lose(&disk, &beside);
            for process in ["first", "next"] {
                let core = on(&disk, born);
                let said = &core.suspect;
                assert!(
                    said.contains("its Raft log"),
                    "{process}, born {born}, {beside:?}: {said}"
                );
                assert!(
                    !RaftLog::exists(&*disk).unwrap(),
                    "one that is put back would not be found"
                );
            }
        }
    }
    let disk = used();
    let kept = LOGS.map(|name| get(&disk, name));
    lose(&disk, &LOGS);
    assert!(!on(&disk, true).suspect.is_empty());
    put(&disk, LOGS[0], &kept[0]);
    assert!(on(&disk, true).suspect.is_empty(), "one copy was put back, and the other is mended");
    assert!(disk.exists(LOGS[1]).unwrap());
}

#[test]
fn a_first_start_that_was_interrupted_goes_on() {
    let disk = used();
    lose(&disk, &["promise"]);
    assert!(on(&disk, false).suspect.is_empty());
    lose(&disk, &["promise", CURRENT]);
    let core = on(&disk, false);
    assert!(core.suspect.is_empty() && core.recovering.is_none());
    lose(&disk, &["promise", CURRENT, LOGS[0], LOGS[1]]);
    assert!(on(&disk, false).suspect.is_empty());
}

#[test]
fn a_promise_that_is_gone_from_a_born_disk_is_lost_for_every_process_to_come() {
    let disk = used();
    lose(&disk, &["promise"]);
    assert!(on(&disk, true).suspect.contains("what this node has promised"));
    assert!(disk.exists(AMNESIAC).unwrap());
    promise::write(&*disk, Epoch(9)).unwrap();
    assert!(
        !on(&disk, true).suspect.is_empty(),
        "a promise made since is not the one that is lost"
    );
}

#[test]
fn data_that_is_gone_is_fetched_again_and_is_not_an_empty_database() {
    for gone in [CURRENT, FIRST] {
        let disk = used();
        promise::write(&*disk, Epoch(4)).unwrap();
        lose(&disk, &[gone]);
        let core = on(&disk, false);
        assert!(core.recovering.is_some() && core.suspect.is_empty(), "{gone}");
        let alone = used();
        lose(&alone, &[gone]);
        let refused = start(setup_of(1, alone, true), NOW).err();
        assert!(matches!(refused, Some(StartError::DataLost(_))), "{gone}");
    }
}
