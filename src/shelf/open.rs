//! From a file's name to an open shelf, in steps.

use super::index::Index;
use super::scan::{Found, Progress, Scan, Torn};
use super::store::{Opened, Parts, Shelf};
use super::{ShelfError, TxMeta};
use crate::storage::Disk;
use crate::types::Chain;

/// A shelf file that is being read, proved and indexed.
pub struct Opening {
    name: String,
    scan: Scan,
    index: Index,
    ends: Vec<u64>,
    seal: Option<(TxMeta, Chain)>,
}

impl Opening {
    pub fn new(disk: &dyn Disk, name: &str) -> Result<Opening, ShelfError> {
        let scan = Scan::new(disk.open(name)?, None)?;
        let name = name.to_owned();
        Ok(Opening { name, scan, index: Index::default(), ends: Vec::new(), seal: None })
    }

    /// How much of the file has been read.
    pub fn permille(&self) -> u32 {
        let (part, whole) = self.scan.position();
        (part as f64 / whole.max(1) as f64 * 1000.0) as u32
    }

    pub fn read_bytes(&self) -> u64 {
        self.scan.position().0
    }

    /// Reads about `budget` bytes further. After `Some` or an error it is over.
    pub fn step(&mut self, budget: u64) -> Result<Option<Opened>, ShelfError> {
        let Opening { scan, index, ends, seal, .. } = self;
        let progress = scan.step(budget, &mut |found| match found {
            Found::Base { oid, .. } => {
                index.base.insert(oid.0);
            }
            Found::Plain { offset, records, .. } => index.add(offset, records),
            Found::Seal { meta, tip, .. } => {
                *seal = Some((meta, tip.chain));
                ends.clear();
                ends.push(tip.offset);
            }
            Found::Chained { offset, records, tip, .. } => {
                ends.push(tip.offset);
                index.add(offset, records);
            }
        })?;
        let end = match progress {
            Progress::More => return Ok(None),
            Progress::Stopped => unreachable!("it was not told to stop"),
            Progress::End(end) => end,
        };
        if let Some(offset) = end.foreign {
            return Err(ShelfError::ForeignTail { name: self.name.clone(), offset });
        }
        let shelf = self.shelf()?;
        Ok(Some(Opened { shelf, torn: end.torn }))
    }

    /// After `step` has said that the file is corrupt: what was proved before that, with everything after it as
    /// torn. None if there is nothing to go on with: no seal yet, or unchained transactions after it.
    pub fn proved(&mut self) -> Result<Option<Opened>, ShelfError> {
        let Some((_, tip)) = self.scan.sealed().filter(|_| !self.scan.in_foreign()) else {
            return Ok(None);
        };
        let len = self.scan.position().1 - tip.offset;
        let torn = Some(Torn { offset: tip.offset, len }).filter(|torn| torn.len > 0);
        Ok(Some(Opened { shelf: self.shelf()?, torn }))
    }

    fn shelf(&mut self) -> Result<Shelf, ShelfError> {
        let name = self.name.clone();
        let Some(((info, tip), (seal_meta, base_hash))) = self.scan.sealed().zip(self.seal) else {
            return Err(ShelfError::Plain { name });
        };
        let file = self.scan.file();
        let map = self.scan.map().expect("before the seal");
        // Once here, in a job or at the start, and not while a new master's clients wait.
        let base_unused = map.unused().ok();
        Ok(Shelf::from_parts(Parts {
            name,
            file,
            map,
            seal: info,
            seal_meta,
            base_hash,
            base_records: self.scan.base_records(),
            base_unused,
            ends: std::mem::take(&mut self.ends),
            tip,
            time_us: self.scan.time_us(),
            index: std::mem::take(&mut self.index),
        }))
    }
}
