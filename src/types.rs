//! The numbers and identities everything else speaks in.
//!
//! Each is its own type, so that a seq is never compared with an epoch. Every one of them is a fixed-width
//! number on disk and on the wire; none of them is a `usize`.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("number space exhausted"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// A member of the cluster, as Raft knows it. Never 0, never reused for another disk.
    NodeId
}
number! {
    /// A transaction's number; runs on across generations.
    Seq
}
number! {
    /// Number of a mastership.
    Epoch
}
number! {
    /// Number of a packed file and what is appended to it. The first is 1.
    Generation
}
number! {
    /// A pack: the Raft index of the command that began it, so no other pack ever has it. Generation and epoch do not
    /// identify a pack: one that is cancelled and started again in the same epoch has the same pair. 0: no pack.
    PackId
}
number! {
    /// A start of a node process: random, never 0. Distinguishes a process from its successor on the same disk.
    BootId
}
number! {
    /// A client connection of this node process; never reused within it.
    ConnId
}
number! {
    /// A Durus object id.
    Oid
}

impl Oid {
    /// The root object.
    pub const ROOT: Oid = Oid(0);
    /// Reserved for the chain record that ends every transaction of ours.
    pub const CHAIN: Oid = Oid(u64::MAX);
}

/// The 20 bytes that end a transaction: SHA-1 over the previous chain and the transaction's data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chain(pub [u8; 20]);

impl Chain {
    pub const LEN: usize = 20;
    pub const ZERO: Chain = Chain([0; 20]);

    /// From exactly 20 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Chain> {
        Some(Chain(bytes.try_into().ok()?))
    }

    /// From 40 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Chain> {
        if text.len() != 40 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 20];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Chain(bytes))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

/// The root of a base's block hashes (`pack::blocks`): 20 bytes that prove every block of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRoot(pub [u8; 20]);

/// Names one commit request for ever: 8 bytes of the boot id of the node that took it, 8 bytes of that node's
/// count, both big-endian. All zeros in transactions that no client asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitId(pub [u8; 16]);

impl CommitId {
    pub const NONE: CommitId = CommitId([0; 16]);

    pub fn new(boot: BootId, count: u64) -> CommitId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&boot.0.to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
        CommitId(bytes)
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitId({self})")
    }
}

/// The end of a transaction in a file: everything up to here is proved by `chain`.
///
/// (`epoch`, `seq`) orders histories everywhere; (`offset`, `chain`) proves them inside one generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tip {
    /// Epoch in which the transaction that ends here was written.
    pub epoch: Epoch,
    pub seq: Seq,
    /// Byte offset of the end of the transaction in its generation's file.
    pub offset: u64,
    pub chain: Chain,
}

impl Tip {
    /// What elections compare.
    pub fn order(&self) -> (Epoch, Seq) {
        (self.epoch, self.seq)
    }
}

impl fmt::Display for Tip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "epoch {} seq {} offset {} chain {}",
            self.epoch, self.seq, self.offset, self.chain
        )
    }
}

/// What time it is, as the shell (or the simulator) says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Microseconds on a clock that never goes back; for every timeout.
    pub mono_us: u64,
    /// Microseconds since 1970-01-01 UTC; for people, never for decisions.
    pub wall_us: u64,
}

impl Now {
    /// Milliseconds from `earlier` to now on the monotonic clock.
    pub fn since_ms(&self, earlier: Now) -> u64 {
        self.mono_us.saturating_sub(earlier.mono_us) / 1000
    }
}
