//! Where objects were before they were stored again, for who still reads an earlier state: the file has it all.

use std::collections::BTreeMap;

use crate::types::{Oid, Seq};

/// So many places are kept; who needs more can't go on reading its state.
const PLACES_MAX: usize = 1_000_000;

pub(super) struct Before {
    /// States from here on can be read.
    since: Seq,
    /// Of each object, oldest first: which transaction stored it again, and where it was before. None: in the base, or
    /// nowhere.
    places: BTreeMap<Oid, Vec<(Seq, Option<u64>)>>,
    count: usize,
}

impl Before {
    pub fn new(since: Seq) -> Before {
        Before { since, places: BTreeMap::new(), count: 0 }
    }

    /// Transaction `seq` has stored the object that was at `place`.
    pub fn note(&mut self, oid: Oid, seq: Seq, place: Option<u64>) {
        if self.count == PLACES_MAX {
            *self = Before::new(seq);
        }
        // A state that ends at `since` is all there is to read then.
        if seq > self.since {
            self.places.entry(oid).or_default().push((seq, place));
            self.count += 1;
        }
    }

    /// Whether the state after transaction `seq` can be read.
    pub fn knows(&self, seq: Seq) -> bool {
        seq >= self.since
    }

    /// Where the object was after transaction `seq`, if it was stored again since.
    pub fn place(&self, oid: Oid, seq: Seq) -> Option<Option<u64>> {
        let places = self.places.get(&oid)?;
        let later = places.partition_point(|(stored, _)| *stored <= seq);
        places.get(later).map(|(_, place)| *place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_after_a_state_is_that_of_the_state() {
        let mut before = Before::new(Seq(5));
        before.note(Oid(1), Seq(6), None);
        before.note(Oid(1), Seq(8), Some(600));
        before.note(Oid(2), Seq(7), Some(70));
        assert!(before.knows(Seq(5)) && !before.knows(Seq(4)));
        let places = |seq| [1, 2, 3].map(|oid| before.place(Oid(oid), Seq(seq)));
        assert_eq!(places(5), [Some(None), Some(Some(70)), None]);
        assert_eq!(places(6), [Some(Some(600)), Some(Some(70)), None]);
        assert_eq!(places(7), [Some(Some(600)), None, None]);
        assert_eq!(places(8), [None; 3]);
    }

    #[test]
    fn it_is_bounded() {
        let mut before = Before::new(Seq(0));
        (0..PLACES_MAX as u64).for_each(|oid| before.note(Oid(oid), Seq(1), None));
        assert!(before.knows(Seq(0)) && before.count == PLACES_MAX);
        // In the middle of a transaction: its state is not known, the one after it is.
        before.note(Oid(0), Seq(2), Some(1));
        before.note(Oid(1), Seq(2), Some(1));
        assert!(!before.knows(Seq(1)) && before.knows(Seq(2)) && before.count == 0);
        before.note(Oid(0), Seq(3), Some(2));
        assert_eq!(before.place(Oid(0), Seq(2)), Some(Some(2)));
    }
}
