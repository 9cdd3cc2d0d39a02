use std::sync::Arc;

use super::FIRST;
use crate::node::core::testing::first_of;
use crate::shelf::Shelf;
use crate::shelf::testing::{commit, get, put};
use crate::storage::mem::MemDisk;
use crate::storage::synced;
use crate::storage::task::RECOVERING;
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
