//! A reader of files, written from `src/shelf/FORMAT.md` alone: is this file whole, and what is in it?
//!
//! Stricter than `chaincheck`, which checks what nodes made: this one is asked about any bytes, so it holds every rule of
//! the format and none of the protocol's. Two readers of one description must agree on every file there can be.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

pub type Hash = [u8; 20];

const PREAMBLE: &[u8; 40] = b"\x80\x02cdurus.persistent\nPersistent\nq\x00.\x80\x02}q\x00.";
const RESERVED: u64 = u64::MAX;
/// A transaction of stock Durus after a seal.
const PLAIN: u8 = 0;
const SEAL: u8 = 1;
const COMMIT: u8 = 2;
const EPOCH_START: u8 = 3;

/// A transaction with a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub start: u64,
    pub end: u64,
    pub kind: u8,
    pub epoch: u64,
    pub seq: u64,
    pub time_us: u64,
    pub commit_id: [u8; 16],
    /// Of a seal.
    pub generation: u64,
    pub previous: Hash,
    pub chain: Hash,
    /// Of everything between length and chain: the same in every generation.
    pub data_hash: Hash,
    /// Objects in it: oid and record, which begins with the oid again.
    pub objects: Vec<(u64, Vec<u8>)>,
}

/// A whole file.
#[derive(Default, Debug)]
pub struct Whole {
    /// Where the offset map begins.
    pub map: u64,
    /// Does it say of every object of the base where it is, and of every other oid that it is not there?
    pub map_is_right: bool,
    /// Objects as of the end.
    pub objects: BTreeMap<u64, Vec<u8>>,
    /// The last seal and what came after it.
    pub links: Vec<Link>,
}

type Checked<T> = Result<T, String>;

/// Reads fields from a slice, none of which need be there.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: u64, what: &str) -> Checked<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| format!("{what}: {len} bytes"))?;
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or(format!("{what} at {}: {len} bytes", self.at))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Checked<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("N bytes"))
    }

    fn number(&mut self, what: &str) -> Checked<u64> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    fn is_over(&self) -> bool {
        self.at == self.bytes.len()
    }
}

fn must(holds: bool, why: &str) -> Checked<()> {
    if holds { Ok(()) } else { Err(why.to_string()) }
}

/// The file, if it is whole and chained to its last byte; otherwise what is wrong, the first thing found.
pub fn whole(bytes: &[u8]) -> Checked<Whole> {
    let mut file = Fields { bytes, at: 0 };
    must(file.take(8, "prefix")? == b"SHELF-1\n", "another prefix")?;
    let len = file.number("length of the base")?;
    let base_at = file.at as u64;
    let base = file.take(len, "base")?;
    let mut whole = Whole { map: file.at as u64, ..Whole::default() };
    let mut offsets = BTreeMap::new();
    for (at, oid, record) in records(base)? {
        check_object(oid, record)?;
        offsets.insert(oid, base_at + at);
        whole.objects.insert(oid, record.to_vec());
    }
    whole.map_is_right = offset_map(&mut file, whole.map, &offsets)?;
    while !file.is_over() {
        let start = file.at as u64;
        let len = file.number("length of a transaction")?;
        let body = file.take(len, "transaction")?;
        transaction(&mut whole, bytes, start, body)?;
    }
    let last = whole.links.last().ok_or("no seal")?;
    must(last.kind != PLAIN, "stock Durus has appended")?;
    Ok(whole)
}

fn offset_map(file: &mut Fields<'_>, start: u64, offsets: &BTreeMap<u64, u64>) -> Checked<bool> {
    let (len, width, slots) = (file.number("map")?, file.number("width")?, file.number("slots")?);
    must((1..=8).contains(&width), "width of the map")?;
    let bytes = width.checked_mul(slots).ok_or("size of the map")?;
    must(bytes.checked_add(16) == Some(len), "length of the map")?;
    let values = file.take(bytes, "slots of the map")?;
    let mut right = offsets.last_key_value().is_none_or(|(last, _)| *last < slots);
    for (slot, value) in (0..).zip(values.chunks_exact(width as usize)) {
        let value = value.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        right &= match offsets.get(&slot) {
            Some(offset) => *offset == value,
            None => value >= start,
        };
    }
    Ok(right)
}

/// Where each record's length is, its oid, and the pack-record; they must fill the body.
fn records(body: &[u8]) -> Checked<Vec<(u64, u64, &[u8])>> {
    let mut fields = Fields { bytes: body, at: 0 };
    let mut found = Vec::new();
    while !fields.is_over() {
        let at = fields.at as u64;
        let len = fields.number("length of a record")?;
        let oid = fields.number("oid of a record")?;
        let rest = len.checked_sub(8).ok_or("a record without room for its oid")?;
        found.push((at, oid, fields.take(rest, "record")?));
    }
    Ok(found)
}

/// May this pack-record be in a file under `oid`?
pub fn check_object(oid: u64, record: &[u8]) -> Checked<()> {
    let mut fields = Fields { bytes: record, at: 0 };
    must(oid != RESERVED, "the reserved oid")?;
    must(fields.number("inner oid")? == oid, "another oid inside")?;
    let len = u32::from_be_bytes(fields.array("length of data")?);
    fields.take(len.into(), "data")?;
    let rest = &record[fields.at..];
    must(rest.len().is_multiple_of(8), "half a reference")?;
    let reserved = rest.chunks_exact(8).any(|oid| *oid == [0xff; 8]);
    must(!reserved, "a reference to the reserved oid")
}

fn transaction(whole: &mut Whole, bytes: &[u8], start: u64, body: &[u8]) -> Checked<()> {
    let mut objects = records(body)?;
    let chained = objects.pop_if(|(_, oid, _)| *oid == RESERVED);
    for (_, oid, record) in &objects {
        check_object(*oid, record)?;
        must(chained.is_some() || !record[12..].starts_with(PREAMBLE), "a preamble")?;
    }
    let stored = objects.iter().map(|(_, oid, record)| (*oid, record.to_vec()));
    let stored: Vec<(u64, Vec<u8>)> = stored.collect();
    whole.objects.extend(stored.iter().cloned());
    let Some((_, _, record)) = chained else {
        // A later seal makes up for it.
        if whole.links.last().is_some_and(|last| last.kind != PLAIN) {
            whole.links.push(Link { start, kind: PLAIN, ..unchained() });
        }
        return Ok(());
    };
    let mut link = chain_record(record)?;
    link.start = start;
    link.end = start + 8 + body.len() as u64;
    link.objects = stored;
    let data = &body[..body.len() - 20];
    link.data_hash = Sha1::digest(data).into();
    let before: Hash = match (link.kind, whole.links.last()) {
        (SEAL, _) => Sha1::digest(&bytes[..start as usize]).into(),
        (_, Some(last)) if last.kind != PLAIN => last.chain,
        _ => return Err("a chained transaction that follows no other".into()),
    };
    let chain: Hash = Sha1::new().chain_update(before).chain_update(data).finalize().into();
    must(chain == link.chain, "the chain does not match")?;
    must(link.kind == COMMIT || link.objects.is_empty(), "objects in what is no commit")?;
    follows(&mut whole.links, link)
}

fn unchained() -> Link {
    Link {
        start: 0,
        end: 0,
        kind: PLAIN,
        epoch: 0,
        seq: 0,
        time_us: 0,
        commit_id: [0; 16],
        generation: 0,
        previous: [0; 20],
        chain: [0; 20],
        data_hash: [0; 20],
        objects: Vec::new(),
    }
}

fn follows(links: &mut Vec<Link>, link: Link) -> Checked<()> {
    let generation = links.first().map(|seal| seal.generation);
    let last = links.iter().rfind(|last| last.kind != PLAIN);
    if link.kind == SEAL {
        if let (Some(generation), Some(last)) = (generation, last) {
            let next = generation.saturating_add(1) == link.generation;
            must(next && link.previous == last.chain, "a seal of another generation")?;
            let same = (link.seq, link.epoch, link.time_us) == (last.seq, last.epoch, last.time_us);
            must(same, "a seal that goes on elsewhere")?;
        }
        links.clear();
    } else if let Some(last) = last {
        must(last.seq.checked_add(1) == Some(link.seq), "a gap in the seqs")?;
        must(link.epoch >= last.epoch && link.time_us >= last.time_us, "going back")?;
    }
    links.push(link);
    Ok(())
}

fn chain_record(record: &[u8]) -> Checked<Link> {
    let mut fields = Fields { bytes: record, at: 0 };
    must(fields.number("inner oid")? == RESERVED, "another oid in a chain record")?;
    let len = u32::from_be_bytes(fields.array("length of data")?);
    must(len as usize == record.len() - 12, "a chain record with references")?;
    must(fields.array("preamble")? == *PREAMBLE, "another preamble")?;
    must(fields.array("version")? == [0, 1], "another version")?;
    let [kind] = fields.array("kind")?;
    must([SEAL, COMMIT, EPOCH_START].contains(&kind), "another kind")?;
    let mut link = Link {
        kind,
        epoch: fields.number("epoch")?,
        seq: fields.number("seq")?,
        time_us: fields.number("time")?,
        commit_id: fields.array("commit id")?,
        ..unchained()
    };
    if kind == SEAL {
        link.generation = fields.number("generation")?;
        must(fields.number("cut")? == link.seq, "a seal whose seq is not its cut")?;
        link.previous = fields.array("previous chain")?;
    }
    link.chain = fields.array("chain")?;
    must(fields.is_over(), "more in a chain record")?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A judge that lets everything pass, or nothing, is none.
    #[test]
    fn knows_a_good_file_from_one_with_a_flipped_bit() {
        let good = crate::fuzzing::seeds::sample_file();
        let found = whole(&good).unwrap();
        assert_eq!(found.links.iter().map(|link| link.kind).collect::<Vec<_>>(), [1, 3, 2, 2]);
        assert!(found.map_is_right);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(whole(&bad).is_err(), "a bit flipped at {at} passed");
        }
    }
}
