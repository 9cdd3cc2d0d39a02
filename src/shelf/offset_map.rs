//! The offset map of a base: oid to file offset, on disk, exactly as stock Durus writes and reads it.
//!
//! An array with a slot for every oid up to the greatest one in the base and one more. A slot holds the offset
//! of the oid's record, which is less than the map's own start; or, for an unused oid (a hole), the start plus
//! the number of another hole: the next lower one, the lowest one pointing at the last slot. Stock Durus gives
//! out the holes of this ring from the last slot on: highest first, and the last slot itself at the end.

use std::sync::Arc;

use super::scan::Reader;
use super::transaction::u64_at;
use crate::storage::{DiskError, DiskFile};
use crate::types::Oid;

/// Bytes before the first slot: length of what follows, bytes per slot, number of slots, 8 bytes each.
pub(crate) const MAP_HEAD: usize = 24;

/// The numbers that give an offset map its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapShape {
    /// Byte offset of the map in its file: the end of the base transaction.
    pub start: u64,
    /// Bytes per slot, 1 to 8.
    pub width: u64,
    /// Number of slots.
    pub slots: u64,
}

impl MapShape {
    /// The shape stock Durus gives the map of a base that ends at `start` and whose greatest oid is `max_oid`
    /// (None: a base without objects). None: no file can hold it.
    pub fn new(start: u64, max_oid: Option<Oid>) -> Option<MapShape> {
        let slots = match max_oid {
            Some(oid) => oid.0.checked_add(2)?,
            None => 0,
        };
        // The number after the greatest that may be stored still has to fit, so that no value is all ff.
        let greatest = start.checked_add(slots)?.checked_add(1)?;
        let width = 8 - u64::from(greatest.leading_zeros()) / 8;
        let shape = MapShape { start, width, slots };
        shape.checked_end()?;
        Some(shape)
    }

    /// Reads the head of the map at `start`; None if it contradicts itself.
    pub fn parse(start: u64, head: &[u8]) -> Option<MapShape> {
        let (bytes, width, slots) = (u64_at(head, 0)?, u64_at(head, 8)?, u64_at(head, 16)?);
        let shape = MapShape { start, width, slots };
        let fits = (1..=8).contains(&width) && width.checked_mul(slots)?.checked_add(16)? == bytes;
        shape.checked_end().filter(|_| fits)?;
        Some(shape)
    }

    fn checked_end(&self) -> Option<u64> {
        let slots = self.width.checked_mul(self.slots)?;
        self.start.checked_add(MAP_HEAD as u64)?.checked_add(slots)
    }

    /// Byte offset of the first byte after the map.
    pub fn end(&self) -> u64 {
        self.start + MAP_HEAD as u64 + self.width * self.slots
    }

    /// The map's first bytes.
    pub fn head(&self) -> [u8; MAP_HEAD] {
        let mut head = [0; MAP_HEAD];
        head[..8].copy_from_slice(&(16 + self.width * self.slots).to_be_bytes());
        head[8..16].copy_from_slice(&self.width.to_be_bytes());
        head[16..].copy_from_slice(&self.slots.to_be_bytes());
        head
    }

    fn slot_at(&self, slot: u64) -> u64 {
        self.start + MAP_HEAD as u64 + self.width * slot
    }
}

/// Says what is in each slot, in order: the record's offset, or the stitched hole.
pub struct Stitch {
    shape: MapShape,
    last_hole: u64,
}

impl Stitch {
    pub fn new(shape: MapShape) -> Stitch {
        Stitch { shape, last_hole: shape.slots.saturating_sub(1) }
    }

    /// Appends the bytes of the next slot, number `slot`.
    pub fn push(&mut self, slot: u64, offset: Option<u64>, out: &mut Vec<u8>) {
        let value = self.value(slot, offset);
        let bytes = value.to_be_bytes();
        out.extend_from_slice(&bytes[8 - self.shape.width as usize..]);
    }

    fn value(&mut self, slot: u64, offset: Option<u64>) -> u64 {
        offset.unwrap_or_else(|| {
            let value = self.shape.start + self.last_hole;
            self.last_hole = slot;
            value
        })
    }
}

/// An offset map in a file.
#[derive(Clone)]
pub struct OffsetMap {
    file: Arc<dyn DiskFile>,
    shape: MapShape,
}

impl OffsetMap {
    /// Opens the map at `start`. None if there is none, or not all of it.
    pub fn open(file: &Arc<dyn DiskFile>, start: u64) -> Result<Option<OffsetMap>, DiskError> {
        let len = file.len()?;
        let mut head = [0; MAP_HEAD];
        if len.saturating_sub(start) < MAP_HEAD as u64 {
            return Ok(None);
        }
        file.read_at(start, &mut head)?;
        let shape = MapShape::parse(start, &head).filter(|shape| shape.end() <= len);
        Ok(shape.map(|shape| OffsetMap { file: file.clone(), shape }))
    }

    pub fn shape(&self) -> MapShape {
        self.shape
    }

    /// Number of slots; every oid in the base is less.
    pub fn len(&self) -> u64 {
        self.shape.slots
    }

    pub fn is_empty(&self) -> bool {
        self.shape.slots == 0
    }

    /// Offset of the record of `oid` in the base.
    pub fn get(&self, oid: Oid) -> Result<Option<u64>, DiskError> {
        if oid.0 >= self.shape.slots {
            return Ok(None);
        }
        let mut slot = [0; 8];
        let width = self.shape.width as usize;
        self.file.read_at(self.shape.slot_at(oid.0), &mut slot[8 - width..])?;
        Ok(Some(u64::from_be_bytes(slot)).filter(|value| *value < self.shape.start))
    }

    /// Calls `visit` with the number and the value of every slot, ascending, until it says false.
    pub fn for_each(&self, mut visit: impl FnMut(u64, u64) -> bool) -> Result<(), DiskError> {
        let width = self.shape.width as usize;
        let mut reader = Reader::new(self.file.clone(), self.shape.end());
        // a whole number of slots a time, of less than one read
        let slots_a_time = (1 << 16) / self.shape.width;
        let mut slot = 0;
        while slot < self.shape.slots {
            let count = slots_a_time.min(self.shape.slots - slot);
            let bytes = reader.bytes(self.shape.slot_at(slot), count as usize * width)?;
            for word in bytes.chunks_exact(width) {
                let value = word.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
                if !visit(slot, value) {
                    return Ok(());
                }
                slot += 1;
            }
        }
        Ok(())
    }

    /// Unused oids in the order in which stock Durus gives them out.
    ///
    /// The ring is not followed: its order is known, and a damaged one must not lead anywhere.
    pub fn holes(&self) -> Result<Vec<Oid>, DiskError> {
        let mut holes = Vec::new();
        self.for_each(|slot, value| {
            if value >= self.shape.start {
                holes.push(Oid(slot));
            }
            true
        })?;
        let last = holes.pop();
        holes.reverse();
        holes.extend(last);
        Ok(holes)
    }

    /// The first slot whose value is not what stock Durus would have written for records at `offset_of`.
    pub fn first_wrong(
        &self,
        offset_of: impl Fn(Oid) -> Option<u64>,
    ) -> Result<Option<Oid>, DiskError> {
        let mut stitch = Stitch::new(self.shape);
        let mut wrong = None;
        self.for_each(|slot, value| {
            let expected = stitch.value(slot, offset_of(Oid(slot)));
            if expected != value {
                wrong = Some(Oid(slot));
            }
            wrong.is_none()
        })?;
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Disk;
    use crate::storage::mem::MemDisk;

    fn write(start: u64, records: &[(u64, u64)]) -> Vec<u8> {
        let shape = MapShape::new(start, records.iter().map(|(oid, _)| Oid(*oid)).max()).unwrap();
        let mut bytes = shape.head().to_vec();
        let mut stitch = Stitch::new(shape);
        for slot in 0..shape.slots {
            let offset = records.iter().find(|(oid, _)| *oid == slot).map(|(_, offset)| *offset);
            stitch.push(slot, offset, &mut bytes);
        }
        assert_eq!(start + bytes.len() as u64, shape.end());
        bytes
    }

    fn open(start: u64, bytes: &[u8]) -> Option<OffsetMap> {
        let disk = MemDisk::new();
        let file = disk.create("map").unwrap();
        file.write_at(start, bytes).unwrap();
        OffsetMap::open(&file, start).unwrap()
    }

    #[test]
    fn an_empty_base_has_an_empty_map_of_width_one() {
        let bytes = write(16, &[]);
        let expected = [[0, 0, 0, 0, 0, 0, 0, 16], [0, 0, 0, 0, 0, 0, 0, 1], [0; 8]].concat();
        assert_eq!(bytes, expected);
        let map = open(16, &bytes).unwrap();
        assert!(map.is_empty());
        assert_eq!(map.holes().unwrap(), []);
        assert_eq!(map.get(Oid(0)).unwrap(), None);
    }

    #[test]
    fn holes_are_given_out_from_the_highest_down_and_the_last_slot_at_the_end() {
        let bytes = write(100, &[(0, 16), (3, 50), (5, 70)]);
        assert_eq!(bytes[24..], [16, 106, 101, 50, 102, 70, 104]);
        let map = open(100, &bytes).unwrap();
        assert_eq!(map.holes().unwrap(), [Oid(4), Oid(2), Oid(1), Oid(6)]);
        assert_eq!(map.get(Oid(3)).unwrap(), Some(50));
        assert_eq!(map.get(Oid(2)).unwrap(), None);
        assert_eq!(map.get(Oid(7)).unwrap(), None);
        let records = |oid| [(0, 16), (3, 50), (5, 70)].iter().find(|r| r.0 == oid).map(|r| r.1);
        assert_eq!(map.first_wrong(|oid| records(oid.0)).unwrap(), None);
        assert_eq!(map.first_wrong(|_| None).unwrap(), Some(Oid(0)));
    }

    #[test]
    fn the_width_grows_where_the_greatest_number_would_be_all_ones() {
        // start + slots + 1 must fit
        assert_eq!(MapShape::new(252, Some(Oid(0))).unwrap().width, 1);
        assert_eq!(MapShape::new(253, Some(Oid(0))).unwrap().width, 2);
        assert_eq!(MapShape::new(65_532, Some(Oid(0))).unwrap().width, 2);
        assert_eq!(MapShape::new(65_533, Some(Oid(0))).unwrap().width, 3);
        assert_eq!(MapShape::new(16, Some(Oid(u64::MAX - 1))), None);
        assert_eq!(MapShape::new(16, Some(Oid(u64::MAX / 4))), None);
    }

    #[test]
    fn a_head_that_contradicts_itself_or_the_file_is_no_map() {
        let good = write(100, &[(0, 16)]);
        assert!(open(100, &good).is_some());
        assert!(open(100, &good[..good.len() - 1]).is_none());
        assert!(open(100, &good[..10]).is_none());
        for (at, value) in [(0, 1), (7, 0), (15, 0), (15, 9), (16, 255), (23, 200)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(open(100, &bad).is_none(), "byte {at} set to {value}");
        }
    }
}
