//! Long transactions in pieces: what the master reads of one, what a slave keeps of one, and what is said of both.
//!
//! Whoever receives pieces (a slave by appends, an elected master by a pull) keeps them in one place, `Core::incoming`,
//! through fences, elections and changes of its own role, until its file ends somewhere else.

use bytes::Bytes;

use super::{Core, Role};
use crate::proto::replication as pb;
use crate::replication::transfer::Key;
use crate::replication::wire::{self, WireError};
use crate::types::{Chain, Generation, Tip};

/// A piece, checked for form.
pub(super) struct Piece {
    end: Tip,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

impl Piece {
    pub(super) fn checked(piece: pb::Piece) -> Result<Piece, WireError> {
        let end = wire::tip("end of a transaction in pieces", piece.end.as_ref())?;
        Ok(Piece { end, offset: piece.offset, data: piece.data })
    }

    /// Of which transaction it is.
    pub(super) fn key(&self, generation: Generation, base_hash: Chain, prev: Tip) -> Key {
        Key { generation, base_hash, prev, end: self.end }
    }
}

impl Core {
    /// Of the transaction after `prev` in our own file. It is not verified here: whoever gets all of it does that.
    pub(super) fn read_piece(
        &self,
        prev: &Tip,
        offset: u64,
        bytes: u64,
    ) -> Result<(Tip, pb::Piece), String> {
        let text = |error: crate::shelf::ShelfError| error.to_string();
        let end = self.shelf.tip_at(prev.seq.next()).map_err(text)?;
        let end = end.ok_or_else(|| format!("nothing follows {prev}"))?;
        let data = match bytes {
            0 => Bytes::new(),
            _ => self.shelf.read_part(prev.offset + offset, bytes).map_err(text)?,
        };
        Ok((end, pb::Piece { end: Some(wire::put_tip(&end)), offset, data }))
    }

    /// From a master whose epoch is over, if it is of what is on its way to us anyway.
    pub(super) fn take_late_piece(&mut self, key: &Key, piece: &Piece) -> Result<(), String> {
        let ours = (self.shelf.generation(), self.shelf.base_hash(), self.shelf.tip());
        if ours == (key.generation, key.base_hash, key.prev) && self.incoming.is_free_for(key) {
            self.incoming.take(key, piece.offset, &piece.data)?;
        }
        Ok(())
    }

    /// The end of the transaction after our tip that is on its way to us, and how much of it is here.
    pub(super) fn incoming_after_tip(&self) -> Option<(Tip, u64)> {
        let shelf = &self.shelf;
        self.incoming.after(shelf.generation(), shelf.base_hash(), &shelf.tip())
    }

    pub(super) fn incoming_told(&self) -> Option<pb::Incoming> {
        let (end, bytes) = self.incoming_after_tip()?;
        Some(pb::Incoming { end: Some(wire::put_tip(&end)), bytes })
    }

    /// What does not follow our file any more is dropped; and an elected master notes how far it has come.
    pub(super) fn drive_transfer(&mut self) {
        let tip = self.shelf.tip();
        self.incoming.keep_after(self.shelf.generation(), self.shelf.base_hash(), &tip);
        let incoming = self.incoming_after_tip().map_or(0, |(_, bytes)| bytes);
        let place = tip.offset + self.durable.offset + incoming;
        if let Some(master) = self.master().filter(|master| !master.open) {
            master.moved.is_at(place);
        }
    }

    /// Since its election, toward opening: on its own disk and to its slaves.
    pub(super) fn opening_moved_bytes(&self) -> u64 {
        let Role::Master(master) = &self.role else { return 0 };
        let slaves = master.followers.values().map(|follower| follower.moved_bytes());
        master.moved.bytes() + slaves.sum::<u64>()
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
