//! One transaction's bytes: building, reading and proving them.
//!
//! A transaction is a length, object records, and the chain record that ends it (`FORMAT.md` owns the bytes).
//! Its chain is the SHA-1 of the chain before it and of everything between its length and its chain; so the
//! same bytes can be put on another history by `rechain`, which changes nothing but those last 20 bytes.
//!
//! Everything here works on bytes in memory and treats them as foreign: no length is believed before it is
//! compared with what is there.

use std::fmt;

use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::types::{Chain, CommitId, Epoch, Generation, Oid, Seq, Tip};

/// What the data of every chain record begins with: the pickle of the class durus.persistent.Persistent and the
/// pickle of an empty state, so that stock Durus can make an instance of it.
pub const PREAMBLE: [u8; 40] = *b"\x80\x02cdurus.persistent\nPersistent\nq\x00.\x80\x02}q\x00.";

/// Layout version in every meta; another one is refused.
const VERSION: u16 = 1;
const KIND_SEAL: u8 = 1;
const KIND_COMMIT: u8 = 2;
const KIND_EPOCH_START: u8 = 3;

const META_LEN: usize = 2 + 1 + 8 + 8 + 8 + 16;
const SEAL_META_LEN: usize = META_LEN + 8 + 8 + Chain::LEN;
/// Length of a record's fixed part in the file: length, oid, oid again, data length.
pub(crate) const RECORD_HEAD: usize = 8 + 8 + 8 + 4;
/// Bytes of the chain record of a commit or epoch start, its length field included.
pub(crate) const CHAIN_RECORD_LEN: usize = RECORD_HEAD + PREAMBLE.len() + META_LEN + Chain::LEN;
/// Bytes of the chain record of a seal, its length field included.
pub(crate) const SEAL_RECORD_LEN: usize = RECORD_HEAD + PREAMBLE.len() + SEAL_META_LEN + Chain::LEN;

/// What a seal says beyond what every transaction says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealInfo {
    pub generation: Generation,
    /// The seq at which this generation's base was taken from the generation before.
    pub cut: Seq,
    /// Chain of the previous generation at the cut; zeros in the first generation.
    pub previous_chain: Chain,
}

/// Why a transaction was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Makes everything before it in the file provable. Holds no objects.
    Seal(SealInfo),
    /// A client's commit.
    Commit,
    /// A new master's first transaction. Holds no objects.
    EpochStart,
}

/// What the chain record says about its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxMeta {
    pub kind: Kind,
    pub epoch: Epoch,
    pub seq: Seq,
    /// Microseconds since 1970-01-01 UTC, never decreasing along the chain; for people, never for decisions.
    pub time_us: u64,
    pub commit_id: CommitId,
}

/// A whole transaction, ready to be appended in one write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuiltTx {
    pub bytes: Bytes,
    pub chain: Chain,
}

/// Where an object record lies in its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordAt {
    pub oid: Oid,
    /// Bytes from the transaction's first byte to the record's length field.
    pub offset: u64,
    /// Value of the record's length field: 8 for the outer oid, and the pack-record.
    pub len: u64,
}

impl RecordAt {
    /// The pack-record (what a client sent), in the bytes of the transaction this was parsed from.
    pub fn record<'a>(&self, tx: &'a [u8]) -> &'a [u8] {
        let start = self.offset as usize + 16;
        &tx[start..start + self.len as usize - 8]
    }
}

/// A transaction whose structure is right. Only `verify` says that its chain is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedTx {
    pub meta: TxMeta,
    pub chain: Chain,
    /// Bytes of the whole transaction, its length field included.
    pub len: u64,
    /// Object records in the order they were sent; the chain record is not among them.
    pub records: Vec<RecordAt>,
}

impl ParsedTx {
    /// Where a file stands after this transaction has been put at `offset`.
    pub fn tip(&self, offset: u64) -> Tip {
        Tip {
            epoch: self.meta.epoch,
            seq: self.meta.seq,
            offset: offset + self.len,
            chain: self.chain,
        }
    }
}

/// Why bytes are not a transaction of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TxError {
    #[error("the transaction needs {wanted} bytes and {have} are there")]
    Short { wanted: u64, have: u64 },
    #[error("a record at {at} in the transaction runs past its end")]
    RecordLength { at: u64 },
    #[error("record {oid}: {why}")]
    Record { oid: Oid, why: RecordError },
    #[error("the transaction has no chain record")]
    NotChained,
    #[error("chain record: {0}")]
    ChainRecord(&'static str),
    #[error("chain is {found}, but data and history give {expected}")]
    WrongChain { expected: Chain, found: Chain },
}

/// Why an object record is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    #[error("shorter than its fixed part")]
    Short,
    #[error("says it is of oid {0}")]
    OtherOid(Oid),
    #[error("its data length runs past its end")]
    DataLength,
    #[error("its references are no multiple of 8 bytes")]
    References,
    #[error("its oid is reserved for chains")]
    Reserved,
    #[error("refers to the oid that is reserved for chains")]
    RefersToReserved,
}

/// Makes the bytes of a transaction that follows `prev`. Each record is as its client sent it, beginning with its
/// oid, and has passed `check_record`.
pub fn build(prev: &Chain, meta: &TxMeta, records: &[(Oid, Bytes)]) -> BuiltTx {
    let tail = match meta.kind {
        Kind::Seal(_) => SEAL_RECORD_LEN,
        Kind::Commit | Kind::EpochStart => CHAIN_RECORD_LEN,
    };
    let body: usize = records.iter().map(|(_, record)| 16 + record.len()).sum();
    assert!(
        matches!(meta.kind, Kind::Commit) || records.is_empty(),
        "only a commit holds objects: {meta:?}"
    );
    let mut bytes = Vec::with_capacity(8 + body + tail);
    bytes.extend_from_slice(&((body + tail) as u64).to_be_bytes());
    for (oid, record) in records {
        if let Err(why) = check_record(*oid, record) {
            panic!("an unchecked record reached the chain: {oid:?}: {why}");
        }
        bytes.extend_from_slice(&(8 + record.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&oid.0.to_be_bytes());
        bytes.extend_from_slice(record);
    }
    push_chain_record(&mut bytes, meta, tail);
    let chain = chain_of(prev, &bytes[8..]);
    bytes.extend_from_slice(&chain.0);
    BuiltTx { bytes: bytes.into(), chain }
}

/// Everything of a chain record but its last 20 bytes.
fn push_chain_record(bytes: &mut Vec<u8>, meta: &TxMeta, record_len: usize) {
    let kind = match meta.kind {
        Kind::Seal(_) => KIND_SEAL,
        Kind::Commit => KIND_COMMIT,
        Kind::EpochStart => KIND_EPOCH_START,
    };
    bytes.extend_from_slice(&(record_len as u64 - 8).to_be_bytes());
    bytes.extend_from_slice(&Oid::CHAIN.0.to_be_bytes());
    bytes.extend_from_slice(&Oid::CHAIN.0.to_be_bytes());
    bytes.extend_from_slice(&((record_len - RECORD_HEAD) as u32).to_be_bytes());
    bytes.extend_from_slice(&PREAMBLE);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&meta.epoch.0.to_be_bytes());
    bytes.extend_from_slice(&meta.seq.0.to_be_bytes());
    bytes.extend_from_slice(&meta.time_us.to_be_bytes());
    bytes.extend_from_slice(&meta.commit_id.0);
    if let Kind::Seal(seal) = meta.kind {
        bytes.extend_from_slice(&seal.generation.0.to_be_bytes());
        bytes.extend_from_slice(&seal.cut.0.to_be_bytes());
        bytes.extend_from_slice(&seal.previous_chain.0);
    }
}

fn chain_of(prev: &Chain, data: &[u8]) -> Chain {
    let mut hash = Sha1::new();
    hash.update(prev.0);
    hash.update(data);
    Chain(hash.finalize().into())
}

/// Reads the one whole transaction that `bytes` begin with; more may follow. Checks the structure only.
pub fn parse(bytes: &[u8]) -> Result<ParsedTx, TxError> {
    let mut records = Vec::new();
    let (meta, chain, len) = parse_into(bytes, &mut records)?;
    Ok(ParsedTx { meta, chain, len, records })
}

/// `parse`, and the proof that it follows `prev`.
pub fn verify(prev: &Chain, bytes: &[u8]) -> Result<ParsedTx, TxError> {
    let tx = parse(bytes)?;
    check_chain(prev, &bytes[..tx.len as usize], &tx.chain)?;
    Ok(tx)
}

/// The same transaction, whole in `tx`, on another history.
pub fn rechain(prev: &Chain, tx: &[u8]) -> BuiltTx {
    assert!(tx.len() >= 8 + CHAIN_RECORD_LEN, "{} bytes are no chained transaction", tx.len());
    let end = tx.len() - Chain::LEN;
    let chain = chain_of(prev, &tx[8..end]);
    let mut bytes = tx.to_vec();
    bytes[end..].copy_from_slice(&chain.0);
    BuiltTx { bytes: bytes.into(), chain }
}

/// Cuts `bytes` into whole transactions, by their lengths alone. Ends after the first error.
pub fn split_transactions(bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], TxError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let len = match whole_len(rest) {
            Ok(len) => len,
            Err(error) => {
                rest = &[];
                return Some(Err(error));
            }
        };
        let (tx, after) = rest.split_at(len);
        rest = after;
        Some(Ok(tx))
    })
}

/// May this record, beginning with its own oid, be stored under `oid`? This is the one rule for every way in: a client's
/// commit, what a peer says a client's commit is, and a file.
pub fn check_record(oid: Oid, record: &[u8]) -> Result<(), RecordError> {
    let mut refs = refs(record)?;
    let own = Oid(u64_at(record, 0).unwrap_or_default());
    if own != oid {
        return Err(RecordError::OtherOid(own));
    }
    if oid == Oid::CHAIN {
        return Err(RecordError::Reserved);
    }
    // It would make stock Durus pack the chain record, into a map of 2^64 slots.
    if refs.any(|oid| oid == Oid::CHAIN) {
        return Err(RecordError::RefersToReserved);
    }
    Ok(())
}

/// The references of a pack-record, in their order.
pub fn refs(record: &[u8]) -> Result<impl Iterator<Item = Oid> + use<'_>, RecordError> {
    let data_len = record.get(8..12).ok_or(RecordError::Short)?;
    let data_len = data_len.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let refs = record[12..].get(data_len..).ok_or(RecordError::DataLength)?;
    let (refs, odd) = refs.as_chunks::<8>();
    if !odd.is_empty() {
        return Err(RecordError::References);
    }
    Ok(refs.iter().map(|oid| Oid(u64::from_be_bytes(*oid))))
}

/// `parse` into a list that is used again.
pub(crate) fn parse_into(
    bytes: &[u8],
    records: &mut Vec<RecordAt>,
) -> Result<(TxMeta, Chain, u64), TxError> {
    let tx = &bytes[..whole_len(bytes)?];
    walk(tx, records)?;
    let Some(last) = records.last().copied().filter(|record| record.oid == Oid::CHAIN) else {
        return Err(TxError::NotChained);
    };
    records.pop();
    let (meta, chain) = parse_chain_record(&tx[last.offset as usize..])?;
    for at in records.iter() {
        let checked = check_record(at.oid, at.record(tx));
        checked.map_err(|why| TxError::Record { oid: at.oid, why })?;
    }
    if !matches!(meta.kind, Kind::Commit) && !records.is_empty() {
        return Err(TxError::ChainRecord("a transaction of this kind holds no objects"));
    }
    Ok((meta, chain, tx.len() as u64))
}

/// The records of one whole transaction as stock Durus writes it. One that resembles a transaction of ours is an
/// error: it would be a damaged one.
pub(crate) fn parse_plain_into(bytes: &[u8], records: &mut Vec<RecordAt>) -> Result<u64, TxError> {
    let tx = &bytes[..whole_len(bytes)?];
    walk(tx, records)?;
    for at in records.iter() {
        let record = at.record(tx);
        check_record(at.oid, record).map_err(|why| TxError::Record { oid: at.oid, why })?;
        if record[12..].starts_with(&PREAMBLE) {
            return Err(TxError::ChainRecord("the chain's preamble under an ordinary oid"));
        }
    }
    Ok(tx.len() as u64)
}

/// The object records of one whole transaction that has been checked before, chained or not.
pub(crate) fn list_records(tx: &[u8], records: &mut Vec<RecordAt>) -> Result<(), TxError> {
    walk(tx, records)?;
    records.retain(|record| record.oid != Oid::CHAIN);
    Ok(())
}

pub(crate) fn check_chain(prev: &Chain, tx: &[u8], found: &Chain) -> Result<(), TxError> {
    let expected = chain_of(prev, &tx[8..tx.len() - Chain::LEN]);
    if expected != *found {
        return Err(TxError::WrongChain { expected, found: *found });
    }
    Ok(())
}

/// Bytes of the transaction at the start of `bytes`, which must hold it all.
/// How many bytes the transaction that begins here says it has, its length field included; None: that is not all there.
pub fn announced_len(bytes: &[u8]) -> Option<u64> {
    u64_at(bytes, 0).map(|len| len.saturating_add(8))
}

fn whole_len(bytes: &[u8]) -> Result<usize, TxError> {
    let have = bytes.len() as u64;
    let len = u64_at(bytes, 0).ok_or(TxError::Short { wanted: 8, have })?;
    let wanted = len.saturating_add(8);
    if wanted > have {
        return Err(TxError::Short { wanted, have });
    }
    Ok(wanted as usize)
}

/// Lists every record of `tx`, the chain record among them; they must fill it exactly.
fn walk(tx: &[u8], records: &mut Vec<RecordAt>) -> Result<(), TxError> {
    records.clear();
    let mut at = 8;
    while at < tx.len() {
        let bad = TxError::RecordLength { at: at as u64 };
        let len = u64_at(tx, at).ok_or(bad)?;
        let oid = Oid(u64_at(tx, at + 8).ok_or(bad)?);
        if len < 8 || len > (tx.len() - at - 8) as u64 {
            return Err(bad);
        }
        records.push(RecordAt { oid, offset: at as u64, len });
        at += 8 + len as usize;
    }
    Ok(())
}

/// Reads a whole chain record, from its length field to the end of `bytes`.
pub(crate) fn parse_chain_record(bytes: &[u8]) -> Result<(TxMeta, Chain), TxError> {
    let bad = |why| TxError::ChainRecord(why);
    let mut rest = Fields(bytes);
    let len = rest.number().ok_or(bad("too short"))?;
    if len != bytes.len() as u64 - 8 {
        return Err(bad("its length is not the one of its place"));
    }
    if rest.number() != Some(u64::MAX) || rest.number() != Some(u64::MAX) {
        return Err(bad("not the reserved oid"));
    }
    let data_len = rest.take::<4>().map(u32::from_be_bytes).ok_or(bad("too short"))?;
    if data_len as usize != bytes.len() - RECORD_HEAD {
        return Err(bad("has references, or its data length is wrong"));
    }
    if rest.take::<40>() != Some(PREAMBLE) {
        return Err(bad("another preamble: a file that uses the reserved oid for itself"));
    }
    if rest.take::<2>() != Some(VERSION.to_be_bytes()) {
        return Err(bad("another format version"));
    }
    let meta = parse_meta(&mut rest).ok_or(bad("unknown kind, or too short for it"))?;
    let chain = Chain::from_slice(rest.0).ok_or(bad("too long or too short"))?;
    Ok((meta, chain))
}

fn parse_meta(rest: &mut Fields<'_>) -> Option<TxMeta> {
    let [kind] = rest.take::<1>()?;
    let epoch = Epoch(rest.number()?);
    let seq = Seq(rest.number()?);
    let time_us = rest.number()?;
    let commit_id = CommitId(rest.take()?);
    let kind = match kind {
        KIND_SEAL => Kind::Seal(SealInfo {
            generation: Generation(rest.number()?),
            cut: Seq(rest.number()?),
            previous_chain: Chain(rest.take()?),
        }),
        KIND_COMMIT => Kind::Commit,
        KIND_EPOCH_START => Kind::EpochStart,
        _ => return None,
    };
    Some(TxMeta { kind, epoch, seq, time_us, commit_id })
}

/// Fixed-width fields, taken from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Seal(_) => "seal",
            Kind::Commit => "commit",
            Kind::EpochStart => "epoch start",
        })
    }
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
