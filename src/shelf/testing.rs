//! What the tests of shelf and pack make their files from.

use bytes::Bytes;

use super::{Kind, MapShape, Shelf, Stitch, TxMeta, build, parse};
use crate::storage::Disk;
use crate::storage::mem::MemDisk;
use crate::types::{CommitId, Oid, Seq};

/// A pack-record.
pub fn record(oid: u64, data: &[u8], refs: &[u64]) -> Bytes {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    refs.iter().for_each(|oid| bytes.extend_from_slice(&oid.to_be_bytes()));
    bytes.into()
}

/// Oid, data and references of objects to be stored.
pub type Objects<'a> = &'a [(u64, &'a [u8], &'a [u64])];

fn push_records(bytes: &mut Vec<u8>, objects: Objects<'_>) {
    for (oid, data, refs) in objects {
        let record = record(*oid, data, refs);
        bytes.extend_from_slice(&(8 + record.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&oid.to_be_bytes());
        bytes.extend_from_slice(&record);
    }
}

/// A file as stock Durus would write it.
pub fn plain_file(base: Objects<'_>, transactions: &[Objects<'_>]) -> Vec<u8> {
    let mut bytes = b"SHELF-1\n\0\0\0\0\0\0\0\0".to_vec();
    let mut offsets = Vec::new();
    for object in base {
        offsets.push((object.0, bytes.len() as u64));
        push_records(&mut bytes, &[*object]);
    }
    let len = bytes.len() as u64 - 16;
    bytes[8..16].copy_from_slice(&len.to_be_bytes());
    let max = offsets.iter().map(|(oid, _)| Oid(*oid)).max();
    let shape = MapShape::new(bytes.len() as u64, max).unwrap();
    bytes.extend_from_slice(&shape.head());
    let mut stitch = Stitch::new(shape);
    for slot in 0..shape.slots {
        let found = offsets.iter().find(|(oid, _)| *oid == slot);
        stitch.push(slot, found.map(|(_, offset)| *offset), &mut bytes);
    }
    for objects in transactions {
        bytes.extend_from_slice(&plain_transaction(objects));
    }
    bytes
}

pub fn plain_transaction(objects: Objects<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    push_records(&mut bytes, objects);
    let len = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&len.to_be_bytes());
    bytes
}

pub fn put(disk: &MemDisk, name: &str, bytes: &[u8]) {
    disk.create(name).unwrap().write_at(0, bytes).unwrap();
}

pub fn get(disk: &MemDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A commit, or an epoch start, that fits the shelf's tip; appended but neither written nor indexed.
pub fn append(shelf: &mut Shelf, kind: Kind, objects: Objects<'_>) -> Bytes {
    let tip = shelf.tip();
    let epoch = match kind {
        Kind::EpochStart => tip.epoch.next(),
        _ => tip.epoch,
    };
    let seq = tip.seq.next();
    let commit_id = CommitId([seq.0 as u8; 16]);
    let meta = TxMeta { kind, epoch, seq, time_us: 1_000_000 + seq.0, commit_id };
    let records: Vec<_> =
        objects.iter().map(|(oid, data, refs)| (Oid(*oid), record(*oid, data, refs))).collect();
    let built = build(&tip.chain, &meta, &records);
    let tx = parse(&built.bytes).unwrap();
    assert_eq!(tx.chain, built.chain);
    shelf.append(&tx, built.bytes.clone());
    built.bytes
}

/// A commit that is written and visible.
pub fn commit(shelf: &mut Shelf, objects: Objects<'_>) -> Seq {
    let at = shelf.tip().offset;
    let bytes = append(shelf, Kind::Commit, objects);
    shelf.file().write_at(at, &bytes).unwrap();
    shelf.written_to(shelf.tip().offset);
    let seq = shelf.tip().seq;
    shelf.index_to(seq);
    seq
}
