//! Checks a node's file from its first byte to its last, sharing no code with the node.
//!
//! Written from the format's description alone, reading the whole file into memory and trusting nothing: every
//! length, every chain, that seqs run on without a gap, that epochs and times never go back, that a new epoch begins
//! with an epoch start, and that no commit id comes twice.

use std::collections::HashSet;
use std::path::Path;

use sha1::{Digest, Sha1};

const MAGIC: &[u8] = b"SHELF-1\n";
const CHAIN_OID: [u8; 8] = [0xff; 8];
const PREAMBLE: &[u8] = b"\x80\x02cdurus.persistent\nPersistent\nq\x00.\x80\x02}q\x00.";
/// Format version, kind, epoch, seq, time, commit id.
const META_LEN: usize = 2 + 1 + 8 + 8 + 8 + 16;
/// Generation, cut, chain of the previous generation there.
const SEAL_LEN: usize = 8 + 8 + 20;
const FORMAT_VERSION: u16 = 1;

pub type Hash = [u8; 20];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Seal { generation: u64, cut: u64, previous_chain: Hash },
    Commit,
    EpochStart,
}

/// One chained transaction.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where its length field is, and where it ends, in bytes.
    pub start: usize,
    pub end: usize,
    pub kind: Kind,
    pub epoch: u64,
    pub seq: u64,
    pub time_us: u64,
    pub commit_id: [u8; 16],
    pub chain: Hash,
    /// The objects it stores, in order.
    pub oids: Vec<u64>,
}

/// A file that passed.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The seal and everything after it.
    pub links: Vec<Link>,
}

impl Checked {
    pub fn seal(&self) -> &Link {
        &self.links[0]
    }

    pub fn tip(&self) -> &Link {
        self.links.last().expect("a checked file has a seal")
    }

    pub fn generation(&self) -> u64 {
        match self.seal().kind {
            Kind::Seal { generation, .. } => generation,
            _ => unreachable!("the first link is the seal"),
        }
    }

    /// How many transactions clients asked for.
    pub fn commits(&self) -> usize {
        self.links.iter().filter(|link| link.kind == Kind::Commit).count()
    }
}

/// Checks a file.
///
/// # Panics
/// If anything is wrong with it, naming what and where.
#[track_caller]
pub fn check_file(path: &Path) -> Checked {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    check(&bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Fails unless the files have the same bytes; says where they part.
#[track_caller]
pub fn assert_same_bytes(paths: &[&Path]) {
    let read = |path: &Path| {
        std::fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
    };
    let first = read(paths[0]);
    for path in &paths[1..] {
        let other = read(path);
        let common = first.iter().zip(&other).take_while(|(a, b)| a == b).count();
        assert!(
            common == first.len() && common == other.len(),
            "{} has {} bytes, {} has {}; they part at {common}",
            paths[0].display(),
            first.len(),
            path.display(),
            other.len()
        );
    }
}

/// Checks a whole file's bytes.
pub fn check(bytes: &[u8]) -> Result<Checked, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("no SHELF-1 file".to_string());
    }
    let base = transaction(bytes, MAGIC.len())?;
    if base.link(bytes)?.is_some() {
        return Err("the base has a chain record in it".to_string());
    }
    let map_len = length(bytes, base.end)?;
    let mut at = base.end + 8 + map_len;
    let mut links: Vec<Link> = Vec::new();
    let mut commit_ids = HashSet::new();
    while at < bytes.len() {
        let tx = transaction(bytes, at)?;
        let link = match (tx.link(bytes)?, links.last()) {
            (Some(link), _) => link,
            (None, None) => {
                // A transaction of the plain file that was adopted.
                at = tx.end;
                continue;
            }
            (None, Some(_)) => return Err(format!("the transaction at {at} has no chain")),
        };
        if let Kind::Seal { .. } = link.kind {
            expect_chain(&link, Sha1::digest(&bytes[..at]).into(), bytes)?;
            links.clear();
        } else {
            let before =
                links.last().ok_or(format!("a chained transaction at {at}, no seal before"))?;
            expect_chain(&link, before.chain, bytes)?;
            follows(before, &link)?;
        }
        if link.kind != Kind::Commit && !link.oids.is_empty() {
            return Err(format!("seq {} stores objects and is no commit", link.seq));
        }
        if link.kind == Kind::Commit
            && (link.commit_id == [0; 16] || !commit_ids.insert(link.commit_id))
        {
            return Err(format!("seq {} has a commit id that is zero or not new", link.seq));
        }
        at = tx.end;
        links.push(link);
    }
    if links.is_empty() {
        return Err("no seal".to_string());
    }
    Ok(Checked { links })
}

fn expect_chain(link: &Link, before: Hash, bytes: &[u8]) -> Result<(), String> {
    let mut sha = Sha1::new();
    sha.update(before);
    sha.update(&bytes[link.start + 8..link.end - 20]);
    let expected: Hash = sha.finalize().into();
    if expected == link.chain {
        return Ok(());
    }
    Err(format!("the chain of seq {} at {} does not match", link.seq, link.start))
}

fn follows(before: &Link, link: &Link) -> Result<(), String> {
    let seq = link.seq;
    if seq != before.seq + 1 {
        return Err(format!("seq {seq} follows seq {}", before.seq));
    }
    if link.epoch < before.epoch || link.time_us < before.time_us {
        return Err(format!("epoch or time goes back at seq {seq}: {before:?}, {link:?}"));
    }
    let starts = link.kind == Kind::EpochStart;
    if starts != (link.epoch > before.epoch) {
        return Err(format!("seq {seq} is of epoch {}, after epoch {}", link.epoch, before.epoch));
    }
    Ok(())
}

/// The place of a transaction and of its records.
struct Transaction {
    start: usize,
    end: usize,
    /// Start of each record's length field, and the record's end.
    records: Vec<(usize, usize)>,
}

fn transaction(bytes: &[u8], start: usize) -> Result<Transaction, String> {
    let end = start + 8 + length(bytes, start)?;
    let mut records = Vec::new();
    let mut at = start + 8;
    while at < end {
        let record_end = at + 8 + length(bytes, at)?;
        if record_end > end || record_end < at + 16 {
            return Err(format!("the record at {at} does not fit its transaction at {start}"));
        }
        records.push((at, record_end));
        at = record_end;
    }
    Ok(Transaction { start, end, records })
}

impl Transaction {
    /// What its chain record says; None if it has none.
    fn link(&self, bytes: &[u8]) -> Result<Option<Link>, String> {
        let oid = |&(at, _): &(usize, usize)| -> [u8; 8] { array(bytes, at + 8) };
        let chained = self.records.iter().position(|record| oid(record) == CHAIN_OID);
        let Some(position) = chained else { return Ok(None) };
        let wrong = |what: &str| {
            Err(format!("the chain record of the transaction at {}: {what}", self.start))
        };
        if position + 1 != self.records.len() {
            return wrong("is not the last record");
        }
        let (at, end) = self.records[position];
        let record = &bytes[at + 16..end];
        let data_at = 12;
        if record.len() < data_at || record[..8] != CHAIN_OID {
            return wrong("its inner oid");
        }
        let data = &record[data_at..];
        if u32::from_be_bytes(array(record, 8)) as usize != data.len() {
            return wrong("its data length");
        }
        let Some(meta) = data.strip_prefix(PREAMBLE) else { return wrong("its preamble") };
        let seal = match meta.len() {
            len if len == META_LEN + 20 => false,
            len if len == META_LEN + SEAL_LEN + 20 => true,
            _ => return wrong("the length of its meta"),
        };
        if u16::from_be_bytes(array(meta, 0)) != FORMAT_VERSION {
            return wrong("its format version");
        }
        let kind = match (meta[2], seal) {
            (1, true) => Kind::Seal {
                generation: u64::from_be_bytes(array(meta, META_LEN)),
                cut: u64::from_be_bytes(array(meta, META_LEN + 8)),
                previous_chain: array(meta, META_LEN + 16),
            },
            (2, false) => Kind::Commit,
            (3, false) => Kind::EpochStart,
            _ => return wrong("its kind"),
        };
        let objects = &self.records[..position];
        Ok(Some(Link {
            start: self.start,
            end: self.end,
            kind,
            epoch: u64::from_be_bytes(array(meta, 3)),
            seq: u64::from_be_bytes(array(meta, 11)),
            time_us: u64::from_be_bytes(array(meta, 19)),
            commit_id: array(meta, 27),
            chain: array(meta, meta.len() - 20),
            oids: objects.iter().map(|record| u64::from_be_bytes(oid(record))).collect(),
        }))
    }
}

/// A length field, whose bytes are all there.
fn length(bytes: &[u8], at: usize) -> Result<usize, String> {
    let field = bytes.get(at..at + 8).ok_or(format!("the file ends in a length at {at}"))?;
    let len = u64::from_be_bytes(array(field, 0));
    let left = bytes.len() - at - 8;
    match usize::try_from(len) {
        Ok(len) if len <= left => Ok(len),
        _ => Err(format!("the length at {at} is {len}, {left} bytes are left")),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(kind: u8, epoch: u64, seq: u64, id: u8) -> Vec<u8> {
        let mut bytes = vec![0, 1, kind];
        for number in [epoch, seq, 1000 + seq] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend([id; 16]);
        if kind == 1 {
            bytes.extend(1u64.to_be_bytes());
            bytes.extend(seq.to_be_bytes());
            bytes.extend([0; 20]);
        }
        bytes
    }

    fn append(file: &mut Vec<u8>, meta: &[u8], oids: &[u64]) {
        let before: Hash = match meta[2] {
            1 => Sha1::digest(&*file).into(),
            _ => array(file, file.len() - 20),
        };
        let mut data = Vec::new();
        for oid in oids {
            data.extend(20u64.to_be_bytes());
            data.extend(oid.to_be_bytes());
            data.extend(oid.to_be_bytes());
            data.extend([0; 4]);
        }
        let record_len = PREAMBLE.len() + meta.len() + 20;
        data.extend((20 + record_len as u64).to_be_bytes());
        data.extend([0xff; 16]);
        data.extend((record_len as u32).to_be_bytes());
        data.extend(PREAMBLE);
        data.extend(meta);
        let chain = Sha1::new().chain_update(before).chain_update(&data).finalize();
        file.extend((data.len() as u64 + 20).to_be_bytes());
        file.extend(&data);
        file.extend(chain);
    }

    /// An adopted plain file with one transaction, then epoch 1 and a commit.
    fn sample() -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(0u64.to_be_bytes());
        for number in [16u64, 1, 0] {
            file.extend(number.to_be_bytes());
        }
        file.extend(0u64.to_be_bytes());
        append(&mut file, &meta(1, 0, 0, 0), &[]);
        append(&mut file, &meta(3, 1, 1, 0), &[]);
        append(&mut file, &meta(2, 1, 2, 7), &[0, 5]);
        file
    }

    #[test]
    fn a_good_file_passes() {
        let checked = check(&sample()).unwrap();
        assert_eq!(checked.generation(), 1);
        assert_eq!(checked.commits(), 1);
        assert_eq!(checked.tip().oids, [0, 5]);
        assert_eq!((checked.tip().epoch, checked.tip().seq), (1, 2));
    }

    /// The format's description ends in a whole file, in hexadecimal. Two readers of one description must agree on it.
    #[test]
    fn the_example_of_the_description_passes() {
        let text = include_str!("../../src/shelf/FORMAT.md");
        let example = text.split("## Example").nth(1).expect("an example");
        let mut bytes = Vec::new();
        for line in example.lines().filter_map(|line| line.strip_prefix("    ")) {
            let mut words = line.split_whitespace();
            let offset = words.next().expect("an offset");
            assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "{line}");
            let digits = words.next().expect("bytes");
            let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
            bytes.extend(pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")));
        }
        let checked = check(&bytes).unwrap();
        let seen: Vec<_> = checked.links.iter().map(|l| (l.seq, l.epoch, l.oids.len())).collect();
        assert_eq!(seen, [(0, 0, 0), (1, 7, 0), (2, 7, 1)]);
        assert_eq!(checked.generation(), 1);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(check(&bad).is_err(), "a bit flipped at {at} passed");
        }
    }

    #[test]
    fn what_must_not_follow_is_noticed() {
        let refused = |meta: &[u8], why: &str| {
            let mut file = sample();
            append(&mut file, meta, &[]);
            let error = check(&file).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&meta(2, 1, 4, 8), "seq 4 follows seq 2");
        refused(&meta(2, 2, 3, 8), "of epoch 2, after epoch 1");
        refused(&meta(3, 1, 3, 0), "of epoch 1, after epoch 1");
        refused(&meta(2, 1, 3, 7), "not new");
        refused(&meta(2, 1, 3, 0), "zero");
        let mut plain = sample();
        plain.extend(0u64.to_be_bytes());
        assert!(check(&plain).unwrap_err().contains("has no chain"));
    }
}
