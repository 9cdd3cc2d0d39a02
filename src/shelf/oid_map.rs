//! Where every object is: oid to file offset, in memory.
//!
//! Oids are mostly dense, so offsets lie in pages of 256 consecutive oids, about 9 bytes an object. A page with
//! few objects holds a short sorted list instead, so that widely spread oids cost memory by their number and not
//! by their distance. Iteration is in ascending order: whatever is made from it is the same everywhere.

use std::collections::BTreeMap;

use crate::types::Oid;

const PAGE: usize = 256;
/// A page with more objects than this holds an array.
const FEW_MAX: usize = 24;

/// Oids and a number for each, never 0 (no record is at offset 0).
#[derive(Default, Clone)]
pub struct OidMap {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

#[derive(Clone)]
enum Page {
    /// Low byte of the oid and its offset, ascending.
    Few(Vec<(u8, u64)>),
    /// By the low byte of the oid; 0 for none.
    Full(Box<[u64; PAGE]>),
}

impl OidMap {
    pub fn new() -> OidMap {
        OidMap::default()
    }

    /// How many oids it holds.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, oid: Oid) -> Option<u64> {
        match self.pages.get(&(oid.0 >> 8))? {
            Page::Few(few) => {
                let found = few.binary_search_by_key(&(oid.0 as u8), |(low, _)| *low).ok()?;
                Some(few[found].1)
            }
            Page::Full(slots) => Some(slots[oid.0 as u8 as usize]).filter(|offset| *offset != 0),
        }
    }

    pub fn contains(&self, oid: Oid) -> bool {
        self.get(oid).is_some()
    }

    /// Returns what was there.
    pub fn insert(&mut self, oid: Oid, offset: u64) -> Option<u64> {
        assert!(offset != 0, "no record can be at offset 0: {oid:?}");
        let low = oid.0 as u8;
        let page = self.pages.entry(oid.0 >> 8).or_insert_with(|| Page::Few(Vec::new()));
        if let Page::Few(few) = page
            && few.len() == FEW_MAX
        {
            let mut slots = Box::new([0; PAGE]);
            few.iter().for_each(|(low, offset)| slots[usize::from(*low)] = *offset);
            *page = Page::Full(slots);
        }
        let old = match page {
            Page::Few(few) => match few.binary_search_by_key(&low, |(low, _)| *low) {
                Ok(found) => std::mem::replace(&mut few[found].1, offset),
                Err(place) => {
                    few.insert(place, (low, offset));
                    0
                }
            },
            Page::Full(slots) => std::mem::replace(&mut slots[usize::from(low)], offset),
        };
        self.len += u64::from(old == 0);
        Some(old).filter(|old| *old != 0)
    }

    /// Returns what was there.
    pub fn remove(&mut self, oid: Oid) -> Option<u64> {
        let low = oid.0 as u8;
        let old = match self.pages.get_mut(&(oid.0 >> 8))? {
            Page::Few(few) => {
                let found = few.binary_search_by_key(&low, |(low, _)| *low).ok()?;
                few.remove(found).1
            }
            Page::Full(slots) => std::mem::take(&mut slots[usize::from(low)]),
        };
        self.len -= u64::from(old != 0);
        Some(old).filter(|old| *old != 0)
    }

    /// Every oid with its offset, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, u64)> + '_ {
        self.pages.iter().flat_map(|(high, page)| {
            let (few, full) = match page {
                Page::Few(few) => (few.as_slice(), [].as_slice()),
                Page::Full(slots) => ([].as_slice(), slots.as_slice()),
            };
            let full = full.iter().enumerate().map(|(low, offset)| (low as u64, *offset));
            let few = few.iter().map(|(low, offset)| (u64::from(*low), *offset));
            few.chain(full)
                .filter(|(_, offset)| *offset != 0)
                .map(move |(low, offset)| (Oid(high << 8 | low), offset))
        })
    }

    /// The greatest oid.
    pub fn last(&self) -> Option<Oid> {
        self.pages.iter().rev().find_map(|(high, page)| {
            let low = match page {
                Page::Few(few) => few.last().map(|(low, _)| u64::from(*low)),
                Page::Full(slots) => slots.iter().rposition(|at| *at != 0).map(|low| low as u64),
            };
            Some(Oid(high << 8 | low?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A repeatable sequence without a random generator.
    fn scrambled(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ n
    }

    #[test]
    fn behaves_as_a_map() {
        let (mut map, mut model) = (OidMap::new(), BTreeMap::new());
        for n in 0..20_000 {
            // dense low oids, some spread over the whole range, some at both ends
            let oid = match n % 4 {
                0 | 1 => scrambled(n) % 3000,
                2 => scrambled(n % 500),
                _ => u64::MAX - scrambled(n) % 40,
            };
            if scrambled(n + 7).is_multiple_of(5) {
                assert_eq!(map.remove(Oid(oid)), model.remove(&oid));
            } else {
                assert_eq!(map.insert(Oid(oid), n + 1), model.insert(oid, n + 1));
            }
            assert_eq!(map.len(), model.len() as u64);
            assert_eq!(map.get(Oid(oid)), model.get(&oid).copied());
        }
        let all: Vec<_> = map.iter().map(|(oid, offset)| (oid.0, offset)).collect();
        assert_eq!(all, model.iter().map(|(oid, offset)| (*oid, *offset)).collect::<Vec<_>>());
        assert_eq!(map.last().map(|oid| oid.0), model.keys().last().copied());
        assert_eq!(map.get(Oid(4000)), None);
    }

    #[test]
    fn last_skips_pages_that_were_emptied() {
        let mut map = OidMap::new();
        (0..600).for_each(|oid| assert_eq!(map.insert(Oid(oid), 1), None));
        (10..600).for_each(|oid| assert_eq!(map.remove(Oid(oid)), Some(1)));
        assert_eq!(map.last(), Some(Oid(9)));
        assert_eq!(map.remove(Oid(599)), None);
        (0..10).for_each(|oid| assert_eq!(map.remove(Oid(oid)), Some(1)));
        assert_eq!(map.last(), None);
        assert!(map.is_empty());
    }
}
