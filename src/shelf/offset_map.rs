//! The offset map of a base: oid to file offset, on disk, exactly as stock Durus writes and reads it.
//!
//! An array with a slot for every oid up to the greatest one in the base and one more. A slot holds the offset
//! of the oid's record, which is less than the map's own start; or, for an unused oid (a hole), the start plus
//! the number of another hole: the next lower one, the lowest one pointing at the last slot. Stock Durus gives
//! out the holes of this ring from the last slot on: highest first, and the last slot itself at the end.
//!
//! A slot tells nothing of whose it is, so a read that came from elsewhere would say that an object is not there, or that
//! a used oid is a hole. The checksum of every block of slots is kept in memory, as they were when the file was proved.

use std::sync::Arc;

use roaring::RoaringTreemap;

use super::reader::Reader;
use super::transaction::u64_at;
use crate::storage::{DiskError, DiskFile};
use crate::types::Oid;

/// Bytes before the first slot: length of what follows, bytes per slot, number of slots, 8 bytes each.
pub(crate) const MAP_HEAD: usize = 24;

/// Bytes of slots, at most, with a checksum of their own.
const BLOCK: usize = 4096;
/// Bytes read at a time.
const READ: u64 = 1 << 16;

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

    /// Byte offset of the first slot.
    pub(crate) fn slots_start(&self) -> u64 {
        self.slot_at(0)
    }

    fn slot_at(&self, slot: u64) -> u64 {
        self.start + MAP_HEAD as u64 + self.width * slot
    }

    /// No slot lies across the end of a block.
    fn slots_per_block(&self) -> u64 {
        BLOCK as u64 / self.width
    }

    fn block_len(&self) -> usize {
        (self.slots_per_block() * self.width) as usize
    }
}

/// Checksums (crc32c) of a map's blocks, made while its slots are read once, in pieces of any size.
pub(crate) struct Sums {
    block_len: usize,
    done: Vec<u32>,
    crc: u32,
    summed: usize,
}

impl Sums {
    pub(crate) fn new(shape: &MapShape) -> Sums {
        Sums { block_len: shape.block_len(), done: Vec::new(), crc: 0, summed: 0 }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(self.block_len - self.summed));
            self.crc = crc32c::crc32c_append(self.crc, piece);
            self.summed += piece.len();
            if self.summed == self.block_len {
                self.close_block();
            }
            bytes = rest;
        }
    }

    fn close_block(&mut self) {
        self.done.push(std::mem::take(&mut self.crc));
        self.summed = 0;
    }

    fn finish(&self) -> Arc<[u32]> {
        let last = (self.summed > 0).then_some(self.crc);
        self.done.iter().copied().chain(last).collect()
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
    sums: Arc<[u32]>,
}

impl OffsetMap {
    /// The map at `start`, as it is now. None if there is none, or not all of it.
    pub fn open(file: &Arc<dyn DiskFile>, start: u64) -> Result<Option<OffsetMap>, DiskError> {
        let len = file.len()?;
        let mut head = [0; MAP_HEAD];
        if len.saturating_sub(start) < MAP_HEAD as u64 {
            return Ok(None);
        }
        file.read_at(start, &mut head)?;
        let shape = MapShape::parse(start, &head).filter(|shape| shape.end() <= len);
        let Some(shape) = shape else { return Ok(None) };
        let mut sums = Sums::new(&shape);
        let mut reader = Reader::new(file.clone(), shape.end());
        let mut at = shape.slots_start();
        while at < shape.end() {
            let piece = (shape.end() - at).min(READ) as usize;
            sums.update(reader.bytes(at, piece)?);
            at += piece as u64;
        }
        Ok(Some(OffsetMap::proved(file, shape, &sums)))
    }

    /// A map whose bytes, with these sums, have been proved.
    pub(crate) fn proved(file: &Arc<dyn DiskFile>, shape: MapShape, sums: &Sums) -> OffsetMap {
        OffsetMap { file: file.clone(), shape, sums: sums.finish() }
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
        let per_block = self.shape.slots_per_block();
        let (block, slot) = (oid.0 / per_block, (oid.0 % per_block) as usize);
        let mut bytes = [0; BLOCK];
        let width = self.shape.width as usize;
        let slots = per_block.min(self.shape.slots - block * per_block) as usize;
        let bytes = &mut bytes[..slots * width];
        let at = self.shape.slot_at(block * per_block);
        self.file.read_at(at, bytes)?;
        self.check(block, at, bytes)?;
        let value = number(&bytes[slot * width..(slot + 1) * width]);
        Ok(Some(value).filter(|value| *value < self.shape.start))
    }

    /// Are these the bytes that were proved?
    fn check(&self, block: u64, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        match self.sums.get(block as usize) {
            Some(sum) if *sum == crc32c::crc32c(bytes) => Ok(()),
            _ => Err(DiskError::Changed { name: self.file.name().to_owned(), offset: at }),
        }
    }

    /// Calls `visit` with the number and the value of every slot, ascending, until it says false.
    pub fn for_each(&self, mut visit: impl FnMut(u64, u64) -> bool) -> Result<(), DiskError> {
        let width = self.shape.width as usize;
        let mut reader = Reader::new(self.file.clone(), self.shape.end());
        let per_block = self.shape.slots_per_block();
        let mut slot = 0;
        for block in 0..self.shape.slots.div_ceil(per_block) {
            let count = per_block.min(self.shape.slots - slot) as usize;
            let at = self.shape.slot_at(slot);
            let bytes = reader.bytes(at, count * width)?;
            self.check(block, at, bytes)?;
            for word in bytes.chunks_exact(width) {
                if !visit(slot, number(word)) {
                    return Ok(());
                }
                slot += 1;
            }
        }
        Ok(())
    }

    /// Unused oids, as a set.
    pub fn unused(&self) -> Result<RoaringTreemap, DiskError> {
        let mut unused = RoaringTreemap::new();
        self.for_each(|slot, value| {
            if value >= self.shape.start {
                unused.insert(slot);
            }
            true
        })?;
        Ok(unused)
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

/// Big-endian, of up to 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
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

    /// Found by the simulator (seeds 2003070, 2004326): a read gone astray, and a client was told that there is no such
    /// object. A used oid could have been taken for a hole as well.
    #[test]
    fn other_bytes_than_were_proved_are_no_answer() {
        let records: Vec<(u64, u64)> = (0..3000).map(|slot| (slot, 16 + slot)).collect();
        let bytes = write(5000, &records);
        let disk = MemDisk::new();
        let file = disk.create("map").unwrap();
        file.write_at(5000, &bytes).unwrap();
        let map = OffsetMap::open(&file, 5000).unwrap().unwrap();
        let shape = map.shape();
        assert_eq!((shape.width, shape.slots_per_block()), (2, 2048));
        for oid in [0, 1, 2047, 2048, 2999] {
            assert_eq!(map.get(Oid(oid)).unwrap(), Some(16 + oid));
        }
        assert_eq!(map.holes().unwrap(), [Oid(3000)]);
        file.write_at(shape.slot_at(2500), &[0xff; 2]).unwrap();
        assert!(matches!(map.get(Oid(2500)), Err(DiskError::Changed { .. })));
        assert!(matches!(map.get(Oid(2999)), Err(DiskError::Changed { .. })), "of the same block");
        assert_eq!(map.get(Oid(2047)).unwrap(), Some(16 + 2047));
        assert!(map.holes().is_err());
    }

    #[test]
    fn sums_do_not_depend_on_the_pieces() {
        let records: Vec<(u64, u64)> = (0..9000).map(|slot| (slot, 16 + 7 * slot)).collect();
        let bytes = write(70_000, &records);
        let shape = open(70_000, &bytes).unwrap().shape();
        let slots = &bytes[MAP_HEAD..];
        let of = |piece: usize| {
            let mut sums = Sums::new(&shape);
            slots.chunks(piece).for_each(|piece| sums.update(piece));
            sums.finish()
        };
        assert_eq!(of(1), of(slots.len()));
        assert_eq!(of(4095), of(slots.len()));
        assert_eq!(of(1).len(), slots.len().div_ceil(shape.block_len()));
    }
}
