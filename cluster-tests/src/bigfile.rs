//! Large files as a busy stock server would have left them, made in seconds, always the same.
//!
//! A plain SHELF-1 file: an empty base and then transactions. About half of its objects cannot be reached: the live ones
//! are a tree from the root, sixteen children each, and nearby objects stand in the file in another order than their
//! oids say. Written by its own few lines of the format, not by packmaster's.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Objects in one transaction.
const TRANSACTION: u64 = 500;
/// Objects that change places among each other.
const NEIGHBOURS: u64 = 4096;
const CHILDREN: usize = 16;

/// The pickles of durus.persistent_dict.PersistentDict and of its state, with nothing in it.
const DICT: &[u8] =
    b"\x80\x02cdurus.persistent_dict\nPersistentDict\nq\x00.\x80\x02}q\x01X\x04\x00\x00\x00dataq\x02}q\x03s.";
/// Those of durus.persistent.Persistent, up to the length of the one text in its state; `END` follows the text.
const OBJECT: &[u8] =
    b"\x80\x02cdurus.persistent\nPersistent\nq\x00.\x80\x02}q\x01X\x04\x00\x00\x00textq\x02X";
const END: &[u8] = b"q\x03s.";

/// What was made.
#[derive(Debug)]
pub struct BigFile {
    pub objects: u64,
    /// Objects that the root reaches, ascending.
    pub live: Vec<u64>,
    pub bytes: u64,
}

/// Writes a file of `objects` objects with about `size` bytes of text each.
pub fn write(path: &Path, objects: u64, size: usize) -> io::Result<BigFile> {
    let mut rng = ChaCha8Rng::seed_from_u64(objects);
    let live: Vec<u64> = (0..objects).filter(|oid| *oid == 0 || rng.next_u32() % 2 == 0).collect();
    let mut children = vec![Vec::new(); objects as usize];
    for (place, oid) in live.iter().enumerate() {
        let first = (place * CHILDREN + 1).min(live.len());
        children[*oid as usize] = live[first..live.len().min(first + CHILDREN)].to_vec();
    }
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut bytes = 0;
    let mut put = |data: &[u8]| {
        bytes += data.len() as u64;
        out.write_all(data)
    };
    // An empty base; its offset map has one byte a slot and no slots.
    put(b"SHELF-1\n")?;
    for number in [0_u64, 16, 1, 0] {
        put(&number.to_be_bytes())?;
    }
    let mut transaction = Vec::new();
    let mut count = 0;
    for from in (0..objects).step_by(NEIGHBOURS as usize) {
        let mut near: Vec<u64> = (from..objects.min(from + NEIGHBOURS)).collect();
        for last in (1..near.len()).rev() {
            near.swap(last, rng.next_u64() as usize % (last + 1));
        }
        for oid in near {
            let text = size / 2 + rng.next_u64() as usize % size.max(1);
            record(oid, text, &children[oid as usize], &mut rng, &mut transaction);
            count += 1;
            if count == TRANSACTION {
                put(&(transaction.len() as u64).to_be_bytes())?;
                put(&transaction)?;
                transaction.clear();
                count = 0;
            }
        }
    }
    put(&(transaction.len() as u64).to_be_bytes())?;
    put(&transaction)?;
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(BigFile { objects, live, bytes })
}

fn record(oid: u64, text: usize, refs: &[u64], rng: &mut ChaCha8Rng, out: &mut Vec<u8>) {
    let mut data = Vec::with_capacity(text + 100);
    if oid == 0 {
        data.extend_from_slice(DICT);
    } else {
        data.extend_from_slice(OBJECT);
        data.extend_from_slice(&(text as u32).to_le_bytes());
        data.extend((0..text).map(|_| b'a' + (rng.next_u32() % 26) as u8));
        data.extend_from_slice(END);
    }
    let length = 8 + 8 + 4 + data.len() + 8 * refs.len();
    out.extend_from_slice(&(length as u64).to_be_bytes());
    out.extend_from_slice(&oid.to_be_bytes());
    out.extend_from_slice(&oid.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(&data);
    for to in refs {
        out.extend_from_slice(&to.to_be_bytes());
    }
}
