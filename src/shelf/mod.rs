//! The Durus file: what is in it, and the proof that it is all there.
//!
//! A file of ours is a valid SHELF-1 file of stock Durus at every moment. Every transaction ends in a chain, a
//! hash of everything before it, so two files that have the same 20 bytes at the same place are equal up to
//! there. `FORMAT.md` beside this module describes the bytes, and nothing else does.
//!
//! * `transaction`: one transaction's bytes, built, read, proved and put on another history
//! * `reader`, `scan`: one pass over a whole file; what is torn and what is corrupt
//! * `open`, `store`: an open file with its index: `Shelf`
//! * `adopt`: a plain file of stock Durus becomes one of ours, by appending
//! * `offset_map`, `oid_map`, `index`: where objects are, on disk and in memory, and how much of the file is garbage
//!
//! Nothing here knows of clients, nodes or time, and nothing here writes but `create`, `cut_torn` and `adopt`:
//! appending is the caller's work, since it decides when a disk is synced.

mod adopt;
mod before;
mod index;
mod offset_map;
mod oid_map;
mod open;
mod reader;
mod scan;
mod store;
mod transaction;

use crate::storage::DiskError;
use crate::types::Seq;

pub use adopt::{Adopted, adopt};
pub use offset_map::{MapShape, OffsetMap, Stitch};
pub use oid_map::OidMap;
pub use open::Opening;
pub(crate) use reader::Reader;
pub use scan::Torn;
pub(crate) use scan::{End, Found, PREFIX, Progress, Scan};
pub use store::{Applied, Opened, Shelf};
pub(crate) use transaction::u64_at;
pub use transaction::{
    BuiltTx, Kind, PREAMBLE, ParsedTx, RecordAt, RecordError, SealInfo, TxError, TxMeta,
    announced_len, build, check_record, parse, rechain, refs, split_transactions, verify,
};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("{name} is not a SHELF-1 file (older formats: packmaster shelf import)")]
    NotShelf { name: String },
    #[error("{name} is a plain Durus file without chains; next: packmaster shelf adopt {name}")]
    Plain { name: String },
    #[error(
        "stock Durus has appended to {name} from offset {offset} on; next: packmaster shelf adopt {name}"
    )]
    ForeignTail { name: String, offset: u64 },
    #[error(
        "{name} ends inside its last transaction: {len} bytes from offset {offset} on; \
         next: packmaster shelf adopt --cut-torn {name}"
    )]
    Torn { name: String, offset: u64, len: u64 },
    #[error("{name} is corrupt at offset {offset}, where seq {seq} should be: {why}")]
    Corrupt { name: String, offset: u64, seq: Seq, why: String },
    #[error("{name} has its chain already")]
    AlreadyChained { name: String },
    #[error("{name} exists already")]
    Exists { name: String },
    #[error("no transaction of {name} ends at offset {offset}")]
    NotBoundary { name: String, offset: u64 },
    #[error(transparent)]
    Io(#[from] DiskError),
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
pub(crate) mod testing;
