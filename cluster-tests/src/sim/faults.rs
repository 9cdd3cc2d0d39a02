//! What goes wrong, and when: drawn from the seed, a bit at a time, while the run goes on.
//!
//! What is promised holds while a majority of the disks keep what was synced to them. So at the start of a run a
//! minority of the nodes is chosen whose disks may be damaged, rolled back or replaced; everything else happens to all.

use super::disk::{Error, Gone, Part};
use super::rng::Rng;

#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: usize,
    pub clients: usize,
    /// Simulated milliseconds with faults; then everything is mended and must come to rest.
    pub faults_ms: u64,
    /// Print the trace as it grows.
    pub echo: bool,
    /// False: nothing goes wrong.
    pub faults: bool,
    /// Not left to the seed: how often a kind of fault (see `weight`) is drawn.
    pub favour: Vec<(usize, u64)>,
    /// The same: microseconds between two faults.
    pub every_us: Option<u64>,
    /// Milliseconds a client waits for an answer before its node gives it up.
    pub wait_max_ms: u64,
    /// One node comes with another first file, and faults begin before all have the same.
    pub differing_files: bool,
    /// How many of a thousand runs end in a long period of narrow lines.
    pub siege_permille: u64,
    /// Raft entries between two snapshots; None: as usual.
    pub compact_every: Option<u64>,
    /// Whoever changes settings sets `durability` to this, and nothing else.
    pub durability: Option<&'static str>,
    /// How many of a thousand commits that were refused for a pack come again after it, where messages come twice.
    pub refused_again_permille: u64,
}

/// Kinds of faults by their places in `WEIGHTS`, for `Options::favour`.
pub mod weight {
    pub const CRASH: usize = 0;
    pub const CRASH_IN_DISK: usize = 1;
    pub const STALL: usize = 3;
    pub const CUT: usize = 4;
    pub const LOSSY: usize = 5;
    pub const LAGGY: usize = 6;
    pub const SLOW_DISK: usize = 7;
    pub const PROMOTE: usize = 8;
    pub const PACK: usize = 9;
    pub const PACK_CANCEL: usize = 10;
    pub const DISK_ERROR: usize = 15;
    pub const ROT: usize = 18;
    pub const IMAGE: usize = 20;
    pub const ROLLBACK: usize = 21;
    pub const REPLACE: usize = 22;
    pub const SETTING: usize = 23;
    pub const WRONG_BUILD: usize = 24;
    pub const LATE: usize = 25;
    pub const PACK_AGAIN: usize = 26;
    pub const LOSE: usize = 27;
    pub const FORGE: usize = 28;
    pub const NARROW: usize = 29;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 3,
            clients: 4,
            faults_ms: 8000,
            echo: false,
            faults: true,
            favour: Vec::new(),
            every_us: None,
            wait_max_ms: 6000,
            differing_files: false,
            siege_permille: 150,
            compact_every: None,
            durability: None,
            refused_again_permille: 300,
        }
    }
}

impl Options {
    /// What the seed alone decides: a failing seed's number is all one needs.
    pub fn of_seed(seed: u64) -> Options {
        // Not the numbers of the run itself.
        let mut rng = Rng::new(seed ^ 0x6f70_7469_6f6e_7300);
        let nodes = match rng.below(20) {
            0 | 1 => 1,
            2..=4 => 5,
            _ => 3,
        };
        let clients = match nodes {
            1 => rng.between(1, 4),
            _ => rng.between(2, 7),
        };
        let faults_ms = match rng.below(8) {
            0 => rng.between(1000, 4000),
            7 => rng.between(10_000, 16_000),
            _ => rng.between(4000, 9000),
        };
        // That both copies of a Raft log are damaged, and a node must give up, is rarest of all.
        let favour = match rng.chance(60) {
            true => vec![(weight::ROT, 100)],
            false => Vec::new(),
        };
        Options { nodes, clients: clients as usize, faults_ms, favour, ..Options::default() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The process is killed; `power`: and what it had not synced may be lost. Back after `down_us`.
    Crash {
        node: usize,
        power: bool,
        down_us: u64,
    },
    /// A crash in the middle of the next thing it does on its disk, after `changes` changes.
    CrashInDisk {
        node: usize,
        changes: u32,
        power: bool,
        down_us: u64,
    },
    CrashAll {
        power: bool,
    },
    Stall {
        node: usize,
        us: u64,
    },
    /// No bytes from the first to the second.
    Cut {
        ways: Vec<(usize, usize)>,
        us: u64,
    },
    /// Connections break with messages in them; what is sent again may arrive twice.
    Lossy {
        permille: u64,
        twice_permille: u64,
        us: u64,
    },
    Laggy {
        us_max: u64,
        us: u64,
    },
    /// Every line carries only so many bytes a second; and, now and then, a client stores much at once.
    Narrow {
        bytes_per_s: u64,
        large: Option<(usize, u64)>,
        us: u64,
    },
    SlowDisk {
        node: usize,
        factor: u64,
        us: u64,
    },
    Promote {
        to: usize,
        by: usize,
    },
    Pack {
        by: usize,
    },
    PackCancel {
        by: usize,
    },
    /// A pack is asked for, cancelled a moment later, and asked for again.
    PackAgain {
        by: usize,
        cancel_us: u64,
        again_us: u64,
    },
    /// So many of the messages that something is decided by (proposals, administrators' requests, turns, reports) are held
    /// back up to `us_max`, past what came later on the same line; of these, so many are delivered at once as well.
    Late {
        permille: u64,
        twice_permille: u64,
        us_max: u64,
        us: u64,
    },
    /// Somebody changes settings.
    Setting {
        by: usize,
        settings: Vec<(&'static str, String)>,
    },
    Hold {
        by: usize,
        us: u64,
    },
    Stop {
        node: usize,
        down_us: u64,
    },
    StopAll {
        down_us: u64,
    },
    KillClient {
        client: usize,
    },
    /// One operation of the disk goes wrong, after so many of its kind.
    DiskError {
        node: usize,
        error: Error,
        after: u32,
    },
    /// Little room is left, and after `nearly_us` none.
    DiskFull {
        node: usize,
        nearly_us: u64,
        us: u64,
    },
    /// So many bases that the node builds come out with a bit flipped, without a word.
    WrongBuild {
        node: usize,
        builds: u32,
    },
    /// The wall clock jumps.
    ClockJump {
        node: usize,
        us: i64,
    },
    /// The power fails, and meanwhile a bit of what was synced flips.
    Rot {
        node: usize,
        part: Part,
        down_us: u64,
    },
    /// The power fails, and a synced write is found to have gone elsewhere.
    AstrayWrite {
        node: usize,
        down_us: u64,
    },
    /// The power fails, and files are gone.
    Lose {
        node: usize,
        what: Gone,
        down_us: u64,
    },
    /// So many messages in this node's name come with a number that is far ahead, instead of or after the true ones.
    Forge {
        node: usize,
        messages: u32,
    },
    /// Somebody makes an image of the disk.
    Image {
        node: usize,
    },
    /// Somebody puts the image back.
    Rollback {
        node: usize,
    },
    /// Somebody puts an empty disk in its place.
    Replace {
        node: usize,
    },
}

impl Fault {
    /// For the report.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Crash { power: false, .. } => "kill",
            Fault::Crash { power: true, .. } => "power failure",
            Fault::CrashInDisk { .. } => "crash in a disk operation",
            Fault::CrashAll { .. } => "crash of all",
            Fault::Stall { .. } => "process paused",
            Fault::Cut { .. } => "partition",
            Fault::Lossy { .. } => "lossy network",
            Fault::Laggy { .. } => "slow network",
            Fault::Narrow { .. } => "narrow network",
            Fault::SlowDisk { .. } => "slow disk",
            Fault::Promote { .. } => "promote",
            Fault::Pack { .. } => "pack",
            Fault::PackCancel { .. } => "pack cancel",
            Fault::PackAgain { .. } => "pack, cancelled and asked for again",
            Fault::Late { .. } => "decisions' messages held back",
            Fault::Setting { .. } => "setting",
            Fault::WrongBuild { .. } => "disk: wrong bytes in a build",
            Fault::Hold { .. } => "pause",
            Fault::Stop { .. } => "stop",
            Fault::StopAll { .. } => "restart of all",
            Fault::KillClient { .. } => "client killed",
            Fault::DiskError { error: Error::Read, .. } => "disk: failed read",
            Fault::DiskError { error: Error::AstrayRead, .. } => "disk: misdirected read",
            Fault::DiskError { error: Error::AstrayForPeer, .. } => "disk: wrong bytes for a peer",
            Fault::DiskError { error: Error::Write, .. } => "disk: failed write",
            Fault::DiskError { error: Error::Sync, .. } => "disk: failed fsync",
            Fault::DiskFull { .. } => "disk: full",
            Fault::ClockJump { us, .. } if *us < 0 => "clock went backwards",
            Fault::ClockJump { .. } => "clock went forwards",
            Fault::Rot { part: Part::Data, .. } => "disk: bit flip in the file",
            Fault::Rot { part: Part::Other, .. } => "disk: bit flip in another generation's file",
            Fault::Rot { part: Part::RaftLog, .. } => "disk: bit flip in the Raft log",
            Fault::Rot { part: Part::Promise, .. } => "disk: bit flip in the promise",
            Fault::AstrayWrite { .. } => "disk: misdirected write",
            Fault::Lose { what: Gone::RaftLog, .. } => "disk: Raft log lost",
            Fault::Lose { what: Gone::RaftLogCopy, .. } => "disk: one copy of the Raft log lost",
            Fault::Lose { what: Gone::Promise, .. } => "disk: promise lost",
            Fault::Lose { what: Gone::Identity, .. } => "disk: identity lost",
            Fault::Lose { what: Gone::Link, .. } => "disk: link to the data lost",
            Fault::Lose { what: Gone::Data, .. } => "disk: data file lost",
            Fault::Forge { .. } => "forged number",
            Fault::Image { .. } => "disk: image made",
            Fault::Rollback { .. } => "disk: rolled back",
            Fault::Replace { .. } => "disk: replaced",
        }
    }
}

/// How often each is drawn, before a run has its own emphasis.
const WEIGHTS: [u64; 30] =
    [10, 8, 1, 6, 8, 5, 3, 4, 10, 10, 2, 2, 4, 1, 6, 6, 2, 3, 2, 2, 3, 2, 1, 4, 3, 4, 4, 2, 4, 4];

/// The character of a run.
pub struct Schedule {
    every_us: u64,
    weights: [u64; WEIGHTS.len()],
    /// Nodes whose disks may be damaged: a minority.
    pub unlucky: Vec<usize>,
    durability: Option<&'static str>,
}

impl Schedule {
    pub fn new(rng: &mut Rng, options: &Options) -> Schedule {
        let every_us = [120_000, 300_000, 800_000, 2_500_000][rng.index(4)];
        let mut weights = WEIGHTS;
        // Every run has its own emphasis, and leaves some things out.
        for weight in &mut weights {
            *weight = match rng.below(6) {
                0 => 0,
                1 => *weight * 5,
                _ => *weight,
            };
        }
        for (which, weight) in &options.favour {
            weights[*which] = *weight;
        }
        let every_us = options.every_us.unwrap_or(every_us);
        let nodes = options.nodes;
        if weights.iter().sum::<u64>() == 0 {
            weights[0] = 1;
        }
        let mut unlucky = Vec::new();
        while unlucky.len() < (nodes - 1) / 2 {
            let node = rng.index(nodes);
            if !unlucky.contains(&node) {
                unlucky.push(node);
            }
        }
        if rng.chance(400) {
            unlucky.clear();
        }
        let durability = options.durability;
        Schedule { every_us, weights, unlucky, durability }
    }

    /// The next fault, and how long until the one after it. None: this time nothing.
    pub fn next(&self, rng: &mut Rng, nodes: usize, clients: usize) -> (u64, Option<Fault>) {
        let wait = rng.between(self.every_us / 10, 2 * self.every_us);
        let mut at = rng.below(self.weights.iter().sum());
        let mut which = 0;
        while at >= self.weights[which] {
            at -= self.weights[which];
            which += 1;
        }
        let node = rng.index(nodes);
        let other = rng.index(nodes);
        let unlucky = self.unlucky.get(rng.index(self.unlucky.len())).copied();
        let power = rng.chance(500);
        let down_us = match rng.below(4) {
            0 => rng.between(1_000, 20_000),
            1 | 2 => rng.between(20_000, 800_000),
            _ => rng.between(800_000, 4_000_000),
        };
        let short_us = rng.between(20_000, 2_500_000);
        let fault = match which {
            0 => Fault::Crash { node, power, down_us },
            1 => {
                let changes = rng.below(8) as u32;
                Fault::CrashInDisk { node, changes, power, down_us }
            }
            2 => Fault::CrashAll { power },
            3 => Fault::Stall { node, us: short_us },
            4 => Fault::Cut { ways: ways(rng, node, other, nodes), us: short_us },
            5 => {
                let permille = rng.between(5, 301);
                let twice_permille = rng.between(0, 150);
                Fault::Lossy { permille, twice_permille, us: short_us }
            }
            6 => Fault::Laggy { us_max: rng.between(5_000, 150_000), us: short_us },
            7 => Fault::SlowDisk { node, factor: rng.between(5, 150), us: short_us },
            8 => Fault::Promote { to: node, by: other },
            9 => Fault::Pack { by: node },
            10 => Fault::PackCancel { by: node },
            11 => Fault::Hold { by: node, us: short_us },
            12 => Fault::Stop { node, down_us },
            13 => Fault::StopAll { down_us: down_us.min(1_000_000) },
            14 => Fault::KillClient { client: rng.index(clients) },
            15 => {
                let errors = [
                    Error::Read,
                    Error::AstrayRead,
                    Error::AstrayForPeer,
                    Error::Write,
                    Error::Sync,
                ];
                let error = errors[rng.index(errors.len())];
                Fault::DiskError { node, error, after: rng.below(12) as u32 }
            }
            16 => {
                let nearly_us = if power { rng.between(1, 3_000_000) } else { 0 };
                Fault::DiskFull { node, nearly_us, us: short_us }
            }
            17 => {
                let size = [1_000, 100_000, 3_000_000, 7_200_000_000][rng.index(4)];
                let us = rng.between(1, size) as i64;
                Fault::ClockJump { node, us: if rng.chance(500) { -us } else { us } }
            }
            23 => {
                let settings = match self.durability {
                    Some(value) => vec![("durability", value.to_string())],
                    None => settings(rng),
                };
                Fault::Setting { by: node, settings }
            }
            29 => {
                let bytes_per_s = rng.between(10_000, 80_000);
                let large =
                    rng.chance(500).then(|| (rng.index(clients), rng.between(5_000, 40_000)));
                Fault::Narrow { bytes_per_s, large, us: 2 * short_us }
            }
            24 => Fault::WrongBuild { node, builds: rng.between(1, 4) as u32 },
            25 => {
                let permille = [100, 400, 900][rng.index(3)];
                let twice_permille = rng.between(0, 800);
                let us_max = [30_000, 400_000, 3_000_000][rng.index(3)];
                Fault::Late { permille, twice_permille, us_max, us: 2 * short_us }
            }
            26 => {
                // About as long as a mark takes, or much longer.
                let us_max = if power { 60_000 } else { 600_000 };
                let cancel_us = rng.between(2_000, us_max);
                Fault::PackAgain { by: node, cancel_us, again_us: rng.between(1_000, us_max / 2) }
            }
            28 => Fault::Forge { node, messages: rng.between(3, 30) as u32 },
            _ => {
                let Some(node) = unlucky else { return (wait, None) };
                match which {
                    18 => {
                        let parts = [Part::Data, Part::Other, Part::RaftLog, Part::Promise];
                        let part = parts[rng.index(parts.len())];
                        Fault::Rot { node, part, down_us }
                    }
                    19 => Fault::AstrayWrite { node, down_us },
                    20 => Fault::Image { node },
                    21 => Fault::Rollback { node },
                    27 => {
                        let all = [
                            Gone::RaftLog,
                            Gone::RaftLog,
                            Gone::RaftLogCopy,
                            Gone::Promise,
                            Gone::Identity,
                            Gone::Link,
                            Gone::Data,
                        ];
                        Fault::Lose { node, what: all[rng.index(all.len())], down_us }
                    }
                    _ => Fault::Replace { node },
                }
            }
        };
        (wait, Some(fault))
    }
}

fn ways(rng: &mut Rng, node: usize, other: usize, nodes: usize) -> Vec<(usize, usize)> {
    match rng.below(5) {
        0 => vec![(node, other)],
        1 => vec![(node, other), (other, node)],
        2 => (0..nodes).map(|peer| (node, peer)).collect(),
        3 => (0..nodes).map(|peer| (peer, node)).collect(),
        _ => (0..nodes).flat_map(|peer| [(peer, node), (node, peer)]).collect(),
    }
}

/// Files are of some hundred KB at most, and a run is of seconds: so are the settings.
fn settings(rng: &mut Rng) -> Vec<(&'static str, String)> {
    let distance = |rng: &mut Rng| ("pack.min_distance", format!("{}s", rng.below(3)));
    let mut settings = match rng.below(20) {
        0..=2 => vec![("pack.garbage_share", rng.between(5, 60).to_string()), distance(rng)],
        3 | 4 => vec![("pack.bytes", rng.between(2_000, 50_000).to_string()), distance(rng)],
        5 => vec![distance(rng)],
        6 => vec![("pack.hours", format!("{}-{}", rng.below(12), rng.between(12, 24)))],
        7 => vec![("pack.builders", rng.between(1, 4).to_string())],
        8 => vec![("pack.rate", rng.between(100_000, 1_000_000).to_string())],
        9 => vec![("keep.generations", rng.between(1, 4).to_string())],
        10 => vec![("keep.age", format!("{}s", rng.below(20)))],
        14..=19 => {
            let value = ["all", "local", "local", "majority"][rng.index(4)];
            vec![("durability", value.to_string())]
        }
        12 | 13 => vec![("pack.master", "hand_over".to_string())],
        _ => vec![("keep.bytes", rng.between(10_000, 500_000).to_string())],
    };
    if rng.chance(200) {
        settings.iter_mut().for_each(|(_, value)| *value = "default".to_string());
    }
    settings
}
