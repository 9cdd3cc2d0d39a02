//! A long transaction that arrives in pieces.
//!
//! A transaction that takes longer to send than an election lasts must not begin anew in every epoch. So a node keeps in
//! memory what it has of the one transaction that follows its own tip, under the name of exactly that transaction: the
//! file (generation and base hash), the tip before it, and its own end with its chain. The name says nothing of epochs or
//! senders: whoever sends the rest, in whichever epoch, continues where the transfer stopped. What is kept here proves
//! nothing and is never acknowledged. When it is whole it is verified by its chain, like any transaction, and either
//! taken or dropped.

use bytes::Bytes;

use crate::types::{Chain, Generation, Tip};

/// A node takes no commit of more than 1 GiB (`durus::TRANSACTION_BYTES_MOST`), and a transaction in a file is a little
/// longer than its commit: anything longer than this is none.
const BYTES_MAX: u64 = 2 << 30;

/// How transfers are cut and paced. The simulator has smaller numbers than production.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// Bytes that may be on their way to one slave, unacknowledged: at first, at least and at most. In between, what the
    /// line carries decides (`window`).
    pub window_start: u64,
    pub window_min: u64,
    pub window_max: u64,
    /// Bytes in a piece of a long transaction. A transaction longer than `piece_max`, or than the window, goes in pieces.
    pub piece_min: u64,
    pub piece_max: u64,
    /// A line that carries less is taken for broken: bytes a second.
    pub rate_min: u64,
}

impl Default for Pacing {
    fn default() -> Pacing {
        Pacing {
            window_start: 256 << 10,
            window_min: 64 << 10,
            window_max: 16 << 20,
            piece_min: 16 << 10,
            piece_max: 1 << 20,
            rate_min: 64 << 10,
        }
    }
}

/// One transaction and no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    pub generation: Generation,
    pub base_hash: Chain,
    /// The end of the transaction before it.
    pub prev: Tip,
    pub end: Tip,
}

impl Key {
    /// Bytes of the transaction; None if there is no such transaction.
    pub fn bytes(&self) -> Option<u64> {
        let follows = self.prev.seq.0.checked_add(1) == Some(self.end.seq.0);
        let len = self.end.offset.checked_sub(self.prev.offset)?;
        (follows && len > 0 && len <= BYTES_MAX).then_some(len)
    }

    fn follows(&self, generation: Generation, base_hash: Chain, tip: &Tip) -> bool {
        (self.generation, self.base_hash, self.prev) == (generation, base_hash, *tip)
    }
}

/// What a node has of one transaction: its first bytes, up to somewhere.
#[derive(Default)]
pub struct Incoming {
    held: Option<(Key, Vec<u8>)>,
}

impl Incoming {
    /// Of the transaction that follows this tip: where it ends, and how many of its bytes are here.
    pub fn after(&self, generation: Generation, base_hash: Chain, tip: &Tip) -> Option<(Tip, u64)> {
        let (key, bytes) = self.held.as_ref()?;
        key.follows(generation, base_hash, tip).then_some((key.end, bytes.len() as u64))
    }

    /// How much of this very transaction is here.
    pub fn has(&self, key: &Key) -> u64 {
        self.held
            .as_ref()
            .filter(|(held, _)| held == key)
            .map_or(0, |(_, bytes)| bytes.len() as u64)
    }

    /// Nothing of any other transaction is here.
    pub fn is_free_for(&self, key: &Key) -> bool {
        self.held.as_ref().is_none_or(|(held, _)| held == key)
    }

    /// Takes a piece that begins at `offset` bytes of the transaction; what was here of another one is dropped. A piece
    /// that leaves a gap is not kept.
    pub fn take(&mut self, key: &Key, offset: u64, data: &[u8]) -> Result<(), String> {
        let Some(len) = key.bytes() else {
            return Err(format!("a piece of no possible transaction: {} to {}", key.prev, key.end));
        };
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= len);
        let Some(end) = end else {
            return Err(format!(
                "a piece of {} bytes at {offset} of a transaction of {len} bytes",
                data.len()
            ));
        };
        if self.has(key) == 0 {
            if offset > 0 || data.is_empty() {
                return Ok(());
            }
            self.held = Some((*key, Vec::new()));
        }
        let (_, bytes) = self.held.as_mut().expect("of this key");
        let here = bytes.len() as u64;
        if offset <= here && end > here {
            bytes.extend_from_slice(&data[(here - offset) as usize..]);
        }
        Ok(())
    }

    /// Takes it out, if it is whole. It is still to be verified.
    pub fn take_whole(&mut self, key: &Key) -> Option<Bytes> {
        (key.bytes() == Some(self.has(key))).then(|| self.take_out(key)).map(Bytes::from)
    }

    /// Takes out what is here of this transaction.
    pub fn take_out(&mut self, key: &Key) -> Vec<u8> {
        self.held.take_if(|(held, _)| held == key).map_or(Vec::new(), |(_, bytes)| bytes)
    }

    /// Puts back what was taken out, with more at its end.
    pub fn put_back(&mut self, key: &Key, bytes: Vec<u8>) {
        if !bytes.is_empty() && key.bytes().is_some_and(|len| bytes.len() as u64 <= len) {
            self.held = Some((*key, bytes));
        }
    }

    /// The file ends here by now: a transaction that does not follow is of no use any more.
    pub fn keep_after(&mut self, generation: Generation, base_hash: Chain, tip: &Tip) {
        self.held.take_if(|(key, _)| !key.follows(generation, base_hash, tip));
    }
}

/// Bytes that have moved, counted by how far each place has come: what is moved twice counts once.
#[derive(Clone, Copy, Default, Debug)]
pub struct Moved {
    best: Option<u64>,
    bytes: u64,
}

impl Moved {
    pub fn is_at(&mut self, place: u64) {
        let best = self.best.unwrap_or(place);
        self.bytes += place.saturating_sub(best);
        self.best = Some(best.max(place));
    }

    /// It had to go back: what it comes by again counts.
    pub fn begins_again(&mut self) {
        self.best = None;
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Seq};

    fn tip(seq: u64, offset: u64, fill: u8) -> Tip {
        Tip { epoch: Epoch(1), seq: Seq(seq), offset, chain: Chain([fill; 20]) }
    }

    fn key(fill: u8) -> Key {
        let (prev, end) = (tip(5, 100, 5), tip(6, 110, fill));
        Key { generation: Generation(1), base_hash: Chain([1; 20]), prev, end }
    }

    fn after(incoming: &Incoming) -> Option<u64> {
        let key = key(6);
        incoming.after(key.generation, key.base_hash, &key.prev).map(|(_, bytes)| bytes)
    }

    #[test]
    fn pieces_add_up_whoever_sends_them_and_however_often() {
        let mut incoming = Incoming::default();
        incoming.take(&key(6), 4, b"efgh").unwrap();
        assert_eq!(after(&incoming), None, "a gap");
        incoming.take(&key(6), 0, b"abcd").unwrap();
        incoming.take(&key(6), 0, b"abcd").unwrap();
        incoming.take(&key(6), 2, b"cdef").unwrap();
        incoming.take(&key(6), 8, b"ij").unwrap();
        assert_eq!(after(&incoming), Some(6), "a gap again");
        assert_eq!(incoming.take_whole(&key(6)), None);
        incoming.take(&key(6), 6, b"ghij").unwrap();
        assert_eq!(incoming.take_whole(&key(6)).as_deref(), Some(&b"abcdefghij"[..]));
        assert_eq!(after(&incoming), None);
    }

    #[test]
    fn another_transaction_at_the_same_place_begins_anew() {
        let mut incoming = Incoming::default();
        incoming.take(&key(6), 0, b"abcd").unwrap();
        assert!(!incoming.is_free_for(&key(7)));
        incoming.take(&key(7), 4, b"xxxx").unwrap();
        assert_eq!((incoming.has(&key(6)), incoming.has(&key(7))), (4, 0), "nothing to put there");
        incoming.take(&key(7), 0, b"xx").unwrap();
        assert_eq!((incoming.has(&key(6)), incoming.has(&key(7))), (0, 2));
    }

    #[test]
    fn what_does_not_follow_the_file_is_dropped() {
        let (mut incoming, key) = (Incoming::default(), key(6));
        incoming.take(&key, 0, b"abcd").unwrap();
        incoming.keep_after(key.generation, key.base_hash, &key.prev);
        assert_eq!(incoming.has(&key), 4);
        incoming.keep_after(key.generation, key.base_hash, &key.end);
        assert_eq!(incoming.has(&key), 0);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut incoming = Incoming::default();
        let not_next = Key { end: tip(7, 110, 6), ..key(6) };
        let backwards = Key { end: tip(6, 90, 6), ..key(6) };
        let endless = Key { end: tip(6, u64::MAX, 6), ..key(6) };
        let last = Key { prev: tip(u64::MAX, 100, 5), ..key(6) };
        for key in [not_next, backwards, endless, last] {
            assert!(incoming.take(&key, 0, b"a").is_err(), "{key:?}");
        }
        assert!(incoming.take(&key(6), 8, b"abc").is_err(), "beyond its end");
        assert!(incoming.take(&key(6), u64::MAX, b"abc").is_err());
        assert!(incoming.held.is_none());
    }

    #[test]
    fn what_is_moved_twice_counts_once() {
        let mut moved = Moved::default();
        moved.is_at(100);
        moved.is_at(130);
        moved.is_at(100);
        moved.is_at(135);
        assert_eq!(moved.bytes(), 35);
        moved.begins_again();
        moved.is_at(50);
        moved.is_at(60);
        assert_eq!(moved.bytes(), 45);
    }
}
