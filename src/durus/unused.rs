//! The oids that one session was given and has not used.
//!
//! A stock client forgets the oids of a commit that was refused, and takes others for the same objects. They stay the
//! session's all the same: a client on its storage's level may try again with them, and if somebody else were given them
//! meanwhile, it would overwrite that one's object. But they must not count against a healthy client for ever: one that
//! has seen hundreds of thousands of conflicts would hold as many as a session may. So where a session would pass its
//! limit, it is given those again that it has forgotten, which is what a stock client does itself with the oids of a
//! commit in which it was the one to find the conflict. Forgotten is what its next commit does not try again.
//!
//! Nothing here ever leaves the session: the master knows no difference, and what is held is bounded by
//! `unused_oids_max`.

use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::types::Oid;

#[derive(Default)]
pub(super) struct UnusedOids {
    /// All of them.
    held: RoaringTreemap,
    /// Among them: those of the last commit with data, if it was refused.
    refused: RoaringTreemap,
    /// Among them: those of earlier refused commits. What is in a commit's data is not.
    forgotten: RoaringTreemap,
}

impl UnusedOids {
    pub fn len(&self) -> u64 {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn holds(&self, oid: Oid) -> bool {
        self.held.contains(oid.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = Oid> {
        self.held.iter().map(Oid)
    }

    /// The master gave it these.
    pub fn given(&mut self, oids: &[Oid]) {
        self.held.extend(oids.iter().map(|oid| oid.0));
    }

    /// Its client tries to store these.
    pub fn tried(&mut self, records: &[(Oid, Bytes)]) {
        self.forgotten |= std::mem::take(&mut self.refused);
        for (oid, _) in records {
            self.forgotten.remove(oid.0);
        }
    }

    /// They are stored.
    pub fn stored(&mut self, records: &[(Oid, Bytes)]) {
        for (oid, _) in records {
            self.held.remove(oid.0);
        }
    }

    /// They are not, and will not be.
    pub fn refused(&mut self, records: &[(Oid, Bytes)]) {
        let oids = records.iter().map(|(oid, _)| *oid);
        // The root's is for the root alone: whoever asks for just any oid must not be given it.
        let own = oids.filter(|oid| *oid != Oid::ROOT && self.held.contains(oid.0));
        self.refused = own.map(|oid| oid.0).collect();
    }

    /// So many that the client has forgotten, to be given to it again; None if there are not so many.
    pub fn take_forgotten(&mut self, count: u32) -> Option<Vec<Oid>> {
        if self.forgotten.len() < u64::from(count) {
            return None;
        }
        let oids: Vec<Oid> = self.forgotten.iter().take(count as usize).map(Oid).collect();
        oids.iter().for_each(|oid| _ = self.forgotten.remove(oid.0));
        Some(oids)
    }
}
