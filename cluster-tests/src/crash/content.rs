//! Files to crash on, and the start of a node on what a crash left of them.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use packmaster::durus::Limits;
use packmaster::node::core::{Action, FIRST, Input, Setup, Timing, start};
use packmaster::proto::control::peer_message::Kind as Said;
use packmaster::proto::control::{Member, PeerMessage};
use packmaster::replication::transfer::Pacing;
use packmaster::shelf::{self, Kind, Shelf, TxMeta};
use packmaster::storage::Disk;
use packmaster::storage::mem::MemDisk;
use packmaster::storage::task::{CURRENT, RECOVERING};
use packmaster::types::{BootId, CommitId, Epoch, NodeId, Now, Oid, Seq, Tip};

use crate::chaincheck::{self, Checked};

const WALL_US: u64 = 1_780_000_000_000_000;

/// Object data of two sectors and a little, so that a transaction can be torn between them.
pub const LARGE: usize = 1100;

/// A file of the first generation and where its transactions end.
#[derive(Clone)]
pub struct History {
    pub bytes: Vec<u8>,
    /// Tip after each seq; the first is the seal's.
    pub tips: Vec<Tip>,
}

impl History {
    /// An empty base and its seal.
    pub fn empty() -> History {
        let disk = MemDisk::new();
        let shelf = Shelf::create(&disk, FIRST).expect("an empty file");
        History { bytes: read(&disk, FIRST).expect("just made"), tips: vec![shelf.tip()] }
    }

    /// An epoch start, then `commits` commits of an object each, which is `len` bytes and which root refers to.
    pub fn of(commits: u64, len: usize) -> History {
        History::empty().epoch(1).commits(commits, len, 1)
    }

    pub fn epoch(mut self, epoch: u64) -> History {
        self.append(Kind::EpochStart, Epoch(epoch), CommitId::NONE, &[]);
        self
    }

    /// `salt` tells the commits of one history from those of another.
    pub fn commits(mut self, commits: u64, len: usize, salt: u8) -> History {
        for _ in 0..commits {
            let oid = self.tips.len() as u64 - 1;
            let mut id = [salt; 16];
            id[..8].copy_from_slice(&oid.to_be_bytes());
            let root = record(0, &[salt; 10], &(1..=oid).collect::<Vec<_>>());
            let object = record(oid, &vec![salt; len], &[]);
            let epoch = self.tips.last().expect("a seal").epoch;
            self.append(Kind::Commit, epoch, CommitId(id), &[(Oid(0), root), (Oid(oid), object)]);
        }
        self
    }

    fn append(&mut self, kind: Kind, epoch: Epoch, commit_id: CommitId, records: &[(Oid, Bytes)]) {
        let tip = *self.tips.last().expect("a seal");
        let seq = tip.seq.next();
        let meta = TxMeta { kind, epoch, seq, time_us: 1_000_000 + seq.0, commit_id };
        let built = shelf::build(&tip.chain, &meta, records);
        self.bytes.extend_from_slice(&built.bytes);
        let offset = self.bytes.len() as u64;
        self.tips.push(Tip { epoch, seq, offset, chain: built.chain });
    }

    pub fn tip(&self) -> Tip {
        *self.tips.last().expect("a seal")
    }

    /// The file up to this seq.
    pub fn upto(&self, seq: u64) -> &[u8] {
        &self.bytes[..self.end(seq) as usize]
    }

    /// The transactions after `after`, up to `seq`.
    pub fn part(&self, after: u64, seq: u64) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[self.end(after) as usize..self.end(seq) as usize])
    }

    pub fn end(&self, seq: u64) -> u64 {
        self.tips[seq as usize].offset
    }

    pub fn upto_seq(mut self, seq: u64) -> History {
        self.tips.truncate(seq as usize + 1);
        self.bytes.truncate(self.tip().offset as usize);
        self
    }
}

/// A pack-record.
pub fn record(oid: u64, data: &[u8], refs: &[u64]) -> Bytes {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    refs.iter().for_each(|oid| bytes.extend(oid.to_be_bytes()));
    bytes.into()
}

/// A file as stock Durus 4.3 leaves it: a base without objects, and two commits.
pub fn plain_file() -> Vec<u8> {
    let mut bytes = b"SHELF-1\n".to_vec();
    // An empty base; a map of 16 bytes: one byte a slot, no slot.
    for number in [0u64, 16, 1, 0] {
        bytes.extend(number.to_be_bytes());
    }
    for (oid, len) in [(0u64, 30), (1, LARGE)] {
        let record = record(oid, &vec![7; len], &[]);
        let mut body = (8 + record.len() as u64).to_be_bytes().to_vec();
        body.extend(oid.to_be_bytes());
        body.extend_from_slice(&record);
        bytes.extend((body.len() as u64).to_be_bytes());
        bytes.extend(body);
    }
    bytes
}

pub fn put(disk: &dyn Disk, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(disk.create(name)?.write_at(0, bytes)?)
}

/// The current file, by its name.
pub fn put_current(disk: &dyn Disk, bytes: &[u8]) -> anyhow::Result<()> {
    put(disk, FIRST, bytes)?;
    Ok(disk.set_link(CURRENT, FIRST)?)
}

pub fn read(disk: &dyn Disk, name: &str) -> anyhow::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

pub fn setup(disk: &Arc<dyn Disk>) -> Setup {
    let member = |id: u64| Member {
        id,
        name: format!("n{id}"),
        durus: format!("n{id}:2972"),
        peer: format!("n{id}:2970"),
        http: format!("n{id}:2971"),
        role: "voter".into(),
        may_be_master: true,
        ..Member::default()
    };
    Setup {
        id: NodeId(1),
        boot: BootId(1),
        disk_uuid: [1; 16],
        born: false,
        cluster: "crashed".into(),
        version: "crashed".into(),
        members: (1..=3).map(member).collect(),
        timing: Timing::default(),
        limits: Limits::default(),
        keep_generations: 1,
        block_bytes: 512,
        fetch_bytes: 1 << 20,
        sent_again_bytes_max: 64 << 10,
        follow_bytes: 512,
        fetch_bytes_per_s_max: None,
        pacing: Pacing::default(),
        disk: disk.clone(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
    }
}

/// A start on a disk that is born or not: what the node says against itself, to a peer that it hears.
pub fn start_born(disk: &Arc<dyn Disk>, born: bool) -> anyhow::Result<String> {
    let now = Now { mono_us: 1, wall_us: WALL_US };
    let (mut core, _) =
        start(Setup { born, ..setup(disk) }, now).context("the node can't start")?;
    let mut out = Vec::new();
    core.step(now, Input::Tick, &mut out);
    let beat = out.into_iter().find_map(|action| match action {
        Action::Send { message: PeerMessage { kind: Some(Said::Beat(beat)) }, .. } => Some(beat),
        _ => None,
    });
    Ok(beat.context("it says nothing")?.suspect)
}

/// The `nth` start of a process on this disk: the production code, nothing before it.
pub fn start_node(disk: &Arc<dyn Disk>, nth: u64) -> anyhow::Result<()> {
    let now = Now { mono_us: 1, wall_us: WALL_US + nth };
    start(setup(disk), now).context("the node can't start")?;
    Ok(())
}

/// What a node has after its start, read by a parser that shares no code with it.
pub struct Found {
    pub bytes: Vec<u8>,
    pub checked: Checked,
    /// It knows that it may have lost something.
    pub recovering: bool,
}

impl Found {
    pub fn seq(&self) -> u64 {
        self.checked.tip().seq
    }
}

pub fn started(disk: &Arc<dyn Disk>, nth: u64) -> anyhow::Result<Found> {
    start_node(disk, nth)?;
    let bytes = read(&**disk, CURRENT)?;
    let checked = chaincheck::check(&bytes).map_err(anyhow::Error::msg)?;
    Ok(Found { bytes, checked, recovering: disk.exists(RECOVERING)? })
}

/// The found file is a prefix of `history`, and reaches at least to `seq`.
pub fn expect_prefix(found: &Found, history: &History, seq: u64) -> anyhow::Result<()> {
    let have = found.seq();
    ensure!(have >= seq, "seq {seq} was acknowledged and {have} is the last");
    ensure!(Seq(have) <= history.tip().seq, "seq {have} was never written");
    if found.bytes != history.upto(have) {
        bail!("the file is not what was written up to seq {have}");
    }
    Ok(())
}
