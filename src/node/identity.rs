//! Whose directory this is: cluster, node and disk.
//!
//! Written durably before anything else is in the directory. The disk uuid is what tells this disk from an empty
//! one that is put in its place: a node that comes back without its memory must not vote as if it had it. So a
//! directory that holds data but no identity, or another's, is refused.
//!
//! When everything else that a node keeps is durably there (the Raft log, the data file and its link, the promise), it is
//! written once more, with `born = true`. From then on what is missing was lost, and is never taken for new; before that, a
//! first start was interrupted, and goes on. Directories of older programs have no `born`: there, what follows in the order of
//! a first start shows what must have been there before (`core::start`).

use serde::{Deserialize, Serialize};

use crate::raft::RaftLog;
use crate::storage::task::CURRENT;
use crate::storage::{Disk, DiskError};
use crate::types::{BootId, NodeId};

const NAME: &str = "identity.toml";
const FRESH: &str = "identity.toml.new";
const FORMAT: u32 = 1;
/// No identity of ours is longer.
const BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("no random numbers from the system: {0}")]
    Random(getrandom::Error),
    #[error(
        "the data directory holds data but no {NAME}: put that file back, from any copy of this directory. An empty \
         directory is another disk, which the cluster refuses under this node's id: replacing a member is not possible \
         in this version"
    )]
    Lost,
    #[error(
        "{NAME} in the data directory is damaged ({0}): put that file back, from any copy of this directory. An empty \
         directory is another disk, which the cluster refuses under this node's id: replacing a member is not possible \
         in this version"
    )]
    Damaged(String),
    #[error(
        "the data directory belongs to node {node} of cluster {cluster:?}, not to what the configuration \
         says: correct `data`, `node` or `cluster`"
    )]
    Other { cluster: String, node: u64 },
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Identity {
    format: u32,
    cluster: String,
    node: u64,
    /// 32 hexadecimal digits.
    disk_uuid: String,
    /// Everything else was there once.
    #[serde(default)]
    born: bool,
}

/// Which disk this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    pub disk_uuid: [u8; 16],
    /// Everything that a node keeps was durably on it once.
    pub born: bool,
}

/// Makes the identity if the directory is new, and refuses one that isn't this node's. `new_uuid` is for a new one.
pub fn read_or_make(
    disk: &dyn Disk,
    cluster: &str,
    node: NodeId,
    new_uuid: impl FnOnce() -> Result<[u8; 16], IdentityError>,
) -> Result<Known, IdentityError> {
    if disk.exists(NAME)? {
        return read(disk, cluster, node);
    }
    if disk.read_link(CURRENT)?.is_some() || disk.exists("promise")? || RaftLog::exists(disk)? {
        return Err(IdentityError::Lost);
    }
    let known = Known { disk_uuid: new_uuid()?, born: false };
    write(disk, cluster, node, known)?;
    Ok(known)
}

/// Everything else is durably there: what is missing from now on was lost.
pub fn mark_born(
    disk: &dyn Disk,
    cluster: &str,
    node: NodeId,
    known: Known,
) -> Result<(), IdentityError> {
    if known.born {
        return Ok(());
    }
    write(disk, cluster, node, Known { born: true, ..known })
}

/// Random.
pub fn new_uuid() -> Result<[u8; 16], IdentityError> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(IdentityError::Random)?;
    Ok(uuid)
}

fn write(disk: &dyn Disk, cluster: &str, node: NodeId, known: Known) -> Result<(), IdentityError> {
    let identity = Identity {
        format: FORMAT,
        cluster: cluster.to_string(),
        node: node.0,
        disk_uuid: format!("{:032x}", u128::from_be_bytes(known.disk_uuid)),
        born: known.born,
    };
    let text = toml::to_string(&identity).expect("strings and numbers can always be written");
    let file = disk.create(FRESH)?;
    file.write_at(0, text.as_bytes())?;
    file.sync()?;
    disk.rename(FRESH, NAME)?;
    disk.sync_dir()?;
    Ok(())
}

fn read(disk: &dyn Disk, cluster: &str, node: NodeId) -> Result<Known, IdentityError> {
    let file = disk.open(NAME)?;
    let mut bytes = vec![0; file.len()?.min(BYTES_MAX) as usize];
    file.read_at(0, &mut bytes)?;
    // Its name may be in memory only, left by a process that was killed before its sync. Others are told of this disk
    // from now on: it must not be another one after a power failure.
    disk.sync_dir()?;
    let damaged = |why: &str| IdentityError::Damaged(why.to_string());
    let text = String::from_utf8(bytes).map_err(|_| damaged("not text"))?;
    let identity: Identity = toml::from_str(&text).map_err(|error| damaged(error.message()))?;
    if identity.format != FORMAT {
        return Err(damaged(&format!("format {}, not {FORMAT}", identity.format)));
    }
    if identity.cluster != cluster || identity.node != node.0 {
        return Err(IdentityError::Other { cluster: identity.cluster, node: identity.node });
    }
    let digits = Some(identity.disk_uuid).filter(|digits| digits.len() == 32);
    let uuid = digits.and_then(|digits| u128::from_str_radix(&digits, 16).ok());
    let uuid = uuid.ok_or_else(|| damaged("disk_uuid is not 32 hexadecimal digits"))?;
    Ok(Known { disk_uuid: uuid.to_be_bytes(), born: identity.born })
}

/// A new boot id, never 0.
pub fn new_boot() -> Result<BootId, IdentityError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(IdentityError::Random)?;
    Ok(BootId(u64::from_be_bytes(bytes).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::posix::PosixDisk;

    fn make(disk: &PosixDisk, cluster: &str, node: u64) -> Result<Known, IdentityError> {
        read_or_make(disk, cluster, NodeId(node), new_uuid)
    }

    #[test]
    fn made_once_and_only_for_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::new(dir.path());
        let known = make(&disk, "shop", 1).unwrap();
        assert!(known.disk_uuid != [0; 16] && !known.born);
        assert_eq!(make(&disk, "shop", 1).unwrap(), known);
        mark_born(&disk, "shop", NodeId(1), known).unwrap();
        assert_eq!(make(&disk, "shop", 1).unwrap(), Known { born: true, ..known });
        for (cluster, node) in [("shop", 2), ("mall", 1)] {
            let error = make(&disk, cluster, node).unwrap_err().to_string();
            assert!(error.contains("belongs to node 1 of cluster \"shop\""), "{error}");
        }
    }

    #[test]
    fn data_without_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::new(dir.path());
        disk.set_link(CURRENT, "g00000001.durus").unwrap();
        assert!(matches!(make(&disk, "shop", 1), Err(IdentityError::Lost)));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("raft-b.log"), b"").unwrap();
        let disk = PosixDisk::new(dir.path());
        assert!(matches!(make(&disk, "shop", 1), Err(IdentityError::Lost)));
    }

    #[test]
    fn an_identity_of_an_older_program_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = "format = 1\ncluster = \"shop\"\nnode = 1\ndisk_uuid = \"00000000000000000000000000000001\"\n";
        std::fs::write(dir.path().join(NAME), text).unwrap();
        let known = make(&PosixDisk::new(dir.path()), "shop", 1).unwrap();
        assert_eq!((known.disk_uuid[15], known.born), (1, false));
    }

    #[test]
    fn a_damaged_identity_is_not_made_anew() {
        let texts: [&[u8]; 5] = [
            b"",
            b"\xff\xfe",
            b"format = 1",
            b"format = 2\ncluster = \"shop\"\nnode = 1\ndisk_uuid = \"00000000000000000000000000000001\"\n",
            b"format = 1\ncluster = \"shop\"\nnode = 1\ndisk_uuid = \"1\"\n",
        ];
        for text in texts {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(NAME), text).unwrap();
            let error = make(&PosixDisk::new(dir.path()), "shop", 1).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged(_)), "{error}");
        }
    }

    #[test]
    fn boots_differ() {
        assert_ne!(new_boot().unwrap(), new_boot().unwrap());
    }
}
