//! Whose directory this is: cluster, node and disk.
//!
//! Written durably once, before anything else is in the directory. The disk uuid is what tells this disk from an empty
//! one that is put in its place: a node that comes back without its memory must not vote as if it had it. So a
//! directory that holds data but no identity, or another's, is refused.

use serde::{Deserialize, Serialize};

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
        "the data directory holds data but no {NAME}: it was not made by this version, or was damaged; \
         use an empty directory, and this node gets everything from the others"
    )]
    Lost,
    #[error(
        "{NAME} in the data directory is damaged ({0}): use an empty directory, and this node gets \
         everything from the others"
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
}

/// The disk's uuid. Makes the identity if the directory is new, and refuses one that isn't this node's.
pub fn read_or_make(
    disk: &dyn Disk,
    cluster: &str,
    node: NodeId,
) -> Result<[u8; 16], IdentityError> {
    if disk.exists(NAME)? {
        return read(disk, cluster, node);
    }
    if disk.read_link(CURRENT)?.is_some() || disk.exists("promise")? {
        return Err(IdentityError::Lost);
    }
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(IdentityError::Random)?;
    let identity = Identity {
        format: FORMAT,
        cluster: cluster.to_string(),
        node: node.0,
        disk_uuid: format!("{:032x}", u128::from_be_bytes(uuid)),
    };
    let text = toml::to_string(&identity).expect("strings and numbers can always be written");
    let file = disk.create(FRESH)?;
    file.write_at(0, text.as_bytes())?;
    file.sync()?;
    disk.rename(FRESH, NAME)?;
    disk.sync_dir()?;
    Ok(uuid)
}

fn read(disk: &dyn Disk, cluster: &str, node: NodeId) -> Result<[u8; 16], IdentityError> {
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
    Ok(uuid.ok_or_else(|| damaged("disk_uuid is not 32 hexadecimal digits"))?.to_be_bytes())
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

    fn make(disk: &PosixDisk, cluster: &str, node: u64) -> Result<[u8; 16], IdentityError> {
        read_or_make(disk, cluster, NodeId(node))
    }

    #[test]
    fn made_once_and_only_for_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::new(dir.path());
        let uuid = make(&disk, "shop", 1).unwrap();
        assert_ne!(uuid, [0; 16]);
        assert_eq!(make(&disk, "shop", 1).unwrap(), uuid);
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
