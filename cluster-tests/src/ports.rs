//! Blocks of ports on 127.0.0.1 that no other test of this machine uses at the same time.
//!
//! A block is reserved by a locked file in the machine's temporary directory, so that tests of several worktrees and
//! processes stay apart, and it lies below the range the kernel takes outgoing ports from, so that no client's own
//! port can collide with a node that is about to start again.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;

/// Ports in one block.
pub const BLOCK: u16 = 32;
const FIRST: u16 = 12_000;
const BLOCKS: u16 = 600;

/// A reserved block; free again when dropped.
pub struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// A block whose ports are all free now.
    ///
    /// # Panics
    /// If there is none.
    pub fn reserve() -> Ports {
        let dir = std::env::temp_dir().join("packmaster-test-ports");
        fs::create_dir_all(&dir).expect("make the directory of port locks");
        let start = std::process::id() as u16 % BLOCKS;
        for block in (0..BLOCKS).map(|i| (start + i) % BLOCKS) {
            let path = dir.join(format!("{block}.lock"));
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let Ok(lock) = lock else { continue };
            if lock.try_lock().is_err() {
                continue;
            }
            let first = FIRST + block * BLOCK;
            if (first..first + BLOCK).all(is_free) {
                return Ports { first, _lock: lock };
            }
        }
        panic!("no free block of {BLOCK} ports between {FIRST} and {}", FIRST + BLOCKS * BLOCK);
    }

    /// The block's port number `index`.
    pub fn port(&self, index: u16) -> u16 {
        assert!(index < BLOCK, "a block has {BLOCK} ports, there is no number {index}");
        self.first + index
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
