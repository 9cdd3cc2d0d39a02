//! A file's chain of transactions in eight bytes.
//!
//! A transaction is one byte: its epoch, and above it a nonce that tells apart what a master and its own next process
//! would write at the same place (they never do, unless a rule is off). The place in the log is the seq. Two logs that
//! agree on a prefix byte for byte agree on the chain at its end, so the chain itself needs no modelling.

use std::fmt;

/// Transactions, oldest in the lowest byte; the length in the highest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Log(u64);

const LEN_SHIFT: u32 = 56;
const ENTRIES: u64 = (1 << LEN_SHIFT) - 1;
const EPOCH: u8 = 15;

impl Log {
    pub const LEN_MAX: u8 = 7;

    pub fn len(self) -> u8 {
        (self.0 >> LEN_SHIFT) as u8
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The transaction at `seq`, from 1; 0 beyond the end.
    pub fn at(self, seq: u8) -> u8 {
        if seq == 0 || seq > self.len() { 0 } else { (self.0 >> (8 * (seq - 1))) as u8 }
    }

    pub fn epoch_at(self, seq: u8) -> u8 {
        self.at(seq) & EPOCH
    }

    pub fn last_epoch(self) -> u8 {
        self.epoch_at(self.len())
    }

    pub fn push(self, entry: u8) -> Log {
        let len = self.len();
        assert!(len < Log::LEN_MAX && entry != 0, "{self:?} is full");
        Log((self.0 & ENTRIES) | u64::from(entry) << (8 * len) | u64::from(len + 1) << LEN_SHIFT)
    }

    pub fn prefix(self, len: u8) -> Log {
        let len = len.min(self.len());
        Log((self.0 & ((1 << (8 * len)) - 1)) | u64::from(len) << LEN_SHIFT)
    }

    /// How many transactions both begin with.
    pub fn common(self, other: Log) -> u8 {
        let differ = (self.0 ^ other.0) & ENTRIES;
        (differ.trailing_zeros() as u8 / 8).min(self.len()).min(other.len())
    }

    pub fn begins(self, other: Log) -> bool {
        self.common(other) == self.len()
    }

    /// (epoch of the last transaction, seq) in one comparable byte: what elections compare.
    pub fn order(self) -> u8 {
        self.last_epoch() << 4 | self.len()
    }

    /// Seq of the first transaction of `epoch`.
    pub fn start_of(self, epoch: u8) -> Option<u8> {
        (1..=self.len()).find(|seq| self.epoch_at(*seq) == epoch)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for seq in 1..=self.len() {
            let entry = self.at(seq);
            write!(f, "{}{}", entry & EPOCH, ["", "'", "\""][usize::from(entry >> 4).min(2)])?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::Log;

    #[test]
    fn a_log_is_its_transactions() {
        let log = Log::default().push(1).push(1).push(3);
        assert_eq!((log.len(), log.at(3), log.at(4), log.last_epoch()), (3, 3, 0, 3));
        assert_eq!(log.prefix(2), Log::default().push(1).push(1));
        let other = Log::default().push(1).push(2);
        assert_eq!((log.common(other), other.common(log)), (1, 1));
        assert!(log.prefix(2).begins(log) && !other.begins(log));
        assert!(other.order() > log.prefix(2).order() && log.order() > other.order());
        assert_eq!((log.start_of(3), log.start_of(2)), (Some(3), None));
        let full = (1..=7).fold(Log::default(), |log, _| log.push(15));
        assert_eq!((full.len(), full.at(7), full.prefix(7)), (7, 15, full));
    }
}
