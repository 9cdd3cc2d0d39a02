//! Reads what nodes keep on their disks, by src/shelf/FORMAT.md, and shares no code with the nodes.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

pub type Hash = [u8; 20];

const PREFIX: &[u8] = b"SHELF-1\n";
const CHAIN_OID: u64 = u64::MAX;
const PREAMBLE: usize = 40;
const META: usize = 43;
const SEAL: usize = 36;

pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub fn sha(parts: &[&[u8]]) -> Hash {
    let mut sha = Sha1::new();
    for part in parts {
        sha.update(part);
    }
    sha.finalize().into()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Seal { generation: u64, cut: u64, previous: Hash },
    Commit,
    EpochStart,
}

/// An object's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    pub data: Vec<u8>,
    pub refs: Vec<u64>,
}

/// A chained transaction.
#[derive(Clone, Debug)]
pub struct Tx {
    pub kind: Kind,
    pub epoch: u64,
    pub seq: u64,
    pub time_us: u64,
    pub commit_id: [u8; 16],
    pub prev: Hash,
    pub chain: Hash,
    /// Of everything but the chain: the same transaction in another generation has the same.
    pub data_hash: Hash,
    pub objects: Vec<(u64, Object)>,
}

/// Takes one whole transaction that begins at `at`; where it ends.
pub fn transaction(bytes: &[u8], at: usize, prev: Option<Hash>) -> Result<(Tx, usize), String> {
    let len = be64(bytes, at).ok_or("no length")? as usize;
    let end = (at + 8).checked_add(len).filter(|end| *end <= bytes.len()).ok_or("torn")?;
    let mut objects = Vec::new();
    let mut pos = at + 8;
    while pos < end {
        let len = be64(bytes, pos).ok_or("no record length")? as usize;
        let next =
            (pos + 8).checked_add(len).filter(|next| *next <= end).ok_or("record too long")?;
        let record = &bytes[pos + 8..next];
        let outer = be64(record, 0).ok_or("no oid")?;
        if outer == CHAIN_OID {
            if next != end {
                return Err("records after the chain record".into());
            }
            return chained(bytes, at, end, record, objects, prev).map(|tx| (tx, end));
        }
        let (inner, object) = object(&record[8..])?;
        if inner != outer {
            return Err(format!("oid {outer} is {inner} inside"));
        }
        objects.push((outer, object));
        pos = next;
    }
    Err("no chain record".into())
}

fn chained(
    bytes: &[u8],
    at: usize,
    end: usize,
    record: &[u8],
    objects: Vec<(u64, Object)>,
    prev: Option<Hash>,
) -> Result<Tx, String> {
    let meta = record.get(20 + PREAMBLE..).ok_or("chain record too short")?;
    let number = |at: usize| be64(meta, at).ok_or("meta too short");
    let kind = *meta.get(2).ok_or("meta too short")?;
    let chain: Hash = bytes[end - 20..end].try_into().expect("20 bytes");
    let (kind, meta_len) = match kind {
        1 => {
            let previous = meta.get(META + 16..META + 36).ok_or("seal too short")?;
            let previous = previous.try_into().expect("20 bytes");
            let (generation, cut) = (number(META)?, number(META + 8)?);
            (Kind::Seal { generation, cut, previous }, META + SEAL)
        }
        2 => (Kind::Commit, META),
        3 => (Kind::EpochStart, META),
        other => return Err(format!("kind {other}")),
    };
    if meta.len() != meta_len + 20 {
        return Err("chain record of a wrong length".into());
    }
    let body = &bytes[at + 8..end - 20];
    let prev = match (kind, prev) {
        (Kind::Seal { .. }, None) => sha(&[&bytes[..at]]),
        (Kind::Seal { .. }, Some(_)) => return Err("a second seal".into()),
        (_, Some(prev)) => prev,
        (_, None) => return Err("no seal before it".into()),
    };
    if sha(&[&prev, body]) != chain {
        return Err("the chain does not match".into());
    }
    Ok(Tx {
        kind,
        epoch: number(3)?,
        seq: number(11)?,
        time_us: number(19)?,
        commit_id: meta[27..43].try_into().expect("16 bytes"),
        prev,
        chain,
        data_hash: sha(&[body]),
        objects,
    })
}

/// A pack-record: its oid and the object.
pub fn object(record: &[u8]) -> Result<(u64, Object), String> {
    let oid = be64(record, 0).ok_or("record without oid")?;
    let len = be32(record, 8).ok_or("record without data length")? as usize;
    let data = record.get(12..12 + len).ok_or("record shorter than its data")?.to_vec();
    let refs = record[12 + len..].chunks_exact(8).map(|oid| be64(oid, 0).expect("8")).collect();
    Ok((oid, Object { data, refs }))
}

/// The base of a file: its objects, and where the seal begins.
pub fn base(bytes: &[u8]) -> Result<(BTreeMap<u64, Object>, usize), String> {
    if bytes.get(..PREFIX.len()) != Some(PREFIX) {
        return Err("no SHELF-1 file".into());
    }
    let len = be64(bytes, 8).ok_or("no base")? as usize;
    let end = (16usize).checked_add(len).filter(|end| *end <= bytes.len()).ok_or("base torn")?;
    let mut objects = BTreeMap::new();
    let mut pos = 16;
    while pos < end {
        let len = be64(bytes, pos).ok_or("no record length")? as usize;
        let next =
            (pos + 8).checked_add(len).filter(|next| *next <= end).ok_or("record too long")?;
        let (oid, found) = object(bytes.get(pos + 16..next).ok_or("record too short")?)?;
        if be64(bytes, pos + 8) != Some(oid) {
            return Err("two oids in one record".into());
        }
        objects.insert(oid, found);
        pos = next;
    }
    let map = be64(bytes, end).ok_or("no offset map")? as usize;
    let seal = (end + 8).checked_add(map).filter(|at| *at <= bytes.len()).ok_or("map torn")?;
    Ok((objects, seal))
}

/// The greatest whole copy of the promise file.
pub fn promise(bytes: &[u8]) -> Option<u64> {
    let copy = |at: usize| {
        let copy = bytes.get(at..at + 20)?;
        let whole = &copy[..8] == b"PMPROM-1" && be32(copy, 16) == Some(crc32c(&copy[..16]));
        if whole { be64(copy, 8) } else { None }
    };
    copy(0).max(copy(4096))
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
