//! From wire messages to checked values and back. What does not fit is refused here, with the reason.

use bytes::Bytes;

use crate::proto::replication as pb;
use crate::types::{BlockRoot, Chain, CommitId, Epoch, Generation, Oid, Seq, Tip};

/// A peer's message that says nothing sensible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} has {len} bytes instead of {wanted}")]
    Length { what: &'static str, len: usize, wanted: usize },
}

/// Which file, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    pub generation: Generation,
    pub base_hash: Chain,
    pub tip: Tip,
}

impl Position {
    /// Same file, whatever was appended.
    pub fn same_file(&self, generation: Generation, base_hash: Chain) -> bool {
        self.generation == generation && self.base_hash == base_hash
    }
}

pub fn chain(what: &'static str, bytes: &[u8]) -> Result<Chain, WireError> {
    Chain::from_slice(bytes).ok_or(WireError::Length { what, len: bytes.len(), wanted: Chain::LEN })
}

pub fn commit_id(bytes: &[u8]) -> Result<CommitId, WireError> {
    let id = bytes.try_into().map_err(|_| WireError::Length {
        what: "commit id",
        len: bytes.len(),
        wanted: 16,
    })?;
    Ok(CommitId(id))
}

pub fn tip(what: &'static str, tip: Option<&pb::Tip>) -> Result<Tip, WireError> {
    let tip = tip.ok_or(WireError::Missing(what))?;
    Ok(Tip {
        epoch: Epoch(tip.epoch),
        seq: Seq(tip.seq),
        offset: tip.offset,
        chain: chain(what, &tip.chain)?,
    })
}

/// The end of a transaction that arrives in pieces, and how many of its bytes are there.
pub fn incoming(incoming: &pb::Incoming) -> Result<(Tip, u64), WireError> {
    Ok((tip("end of what is incoming", incoming.end.as_ref())?, incoming.bytes))
}

pub fn tips(what: &'static str, tips: &[pb::Tip]) -> Result<Vec<Tip>, WireError> {
    tips.iter().map(|each| tip(what, Some(each))).collect()
}

pub fn position(what: &'static str, at: Option<&pb::Position>) -> Result<Position, WireError> {
    let at = at.ok_or(WireError::Missing(what))?;
    Ok(Position {
        generation: Generation(at.generation),
        base_hash: chain(what, &at.base_hash)?,
        tip: tip(what, at.tip.as_ref())?,
    })
}

/// A session, and oids of it.
pub fn pool(pool: pb::SessionPool) -> (u64, Vec<Oid>) {
    (pool.session, pool.oids.into_iter().map(Oid).collect())
}

pub fn put_chain(chain: Chain) -> Bytes {
    Bytes::copy_from_slice(&chain.0)
}

/// Empty: there is none.
pub fn put_root(root: Option<BlockRoot>) -> Bytes {
    root.map_or(Bytes::new(), |root| Bytes::copy_from_slice(&root.0))
}

pub fn put_tip(tip: &Tip) -> pb::Tip {
    pb::Tip { epoch: tip.epoch.0, seq: tip.seq.0, offset: tip.offset, chain: put_chain(tip.chain) }
}

pub fn put_tips(tips: &[Tip]) -> Vec<pb::Tip> {
    tips.iter().map(put_tip).collect()
}

pub fn put_position(at: &Position) -> pb::Position {
    pb::Position {
        generation: at.generation.0,
        base_hash: put_chain(at.base_hash),
        tip: Some(put_tip(&at.tip)),
    }
}

pub fn put_pool(session: u64, oids: Vec<Oid>) -> pb::SessionPool {
    pb::SessionPool { session, oids: oids.into_iter().map(|oid| oid.0).collect() }
}
