use std::sync::Arc;

use crate::node::core::start::FIRST;
use crate::node::core::testing::first_of;
use crate::shelf::testing::commit;
use crate::shelf::{Kind, Shelf};
use crate::storage::mem::MemDisk;
use crate::types::{Epoch, Now, Seq};

/// A master that believed it would store a commit whose client had never heard of what it may have read: after a
/// failover other transactions have those numbers.
#[test]
fn what_a_client_was_told_ahead_counts_only_if_it_is_in_our_file() {
    let disk = Arc::new(MemDisk::default());
    let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
    commit(&mut shelf, &[(0, b"root", &[])]);
    let at = shelf.tip().offset;
    let start = crate::shelf::testing::append(&mut shelf, Kind::EpochStart, &[]);
    shelf.file().write_at(at, &start).unwrap();
    commit(&mut shelf, &[(1, b"of the later epoch", &[])]);
    let (first, later) = (shelf.tip_at(Seq(1)).unwrap().unwrap().epoch, shelf.tip().epoch);
    let core = first_of(1, disk, Now { mono_us: 1, wall_us: 1 });
    let ahead = |epoch, seq| core.known_ahead(epoch, Seq(seq)).unwrap();
    assert_eq!(ahead(first, 1), Some(Seq(1)));
    assert_eq!(ahead(later, 3), Some(Seq(3)));
    assert_eq!(ahead(Epoch(later.0 + 1), 3), None, "another history");
    assert_eq!(ahead(later, 4), None, "not here");
    assert_eq!(ahead(Epoch(0), 0), None, "nothing was told");
}
