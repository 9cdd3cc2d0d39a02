//! What goes wrong, and when: drawn from the seed, a bit at a time, while the run goes on.

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
}

/// Kinds of faults, for `Options::favour`.
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
        }
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
    Lossy {
        permille: u64,
        us: u64,
    },
    Laggy {
        us_max: u64,
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
    Hold {
        by: usize,
        us: u64,
    },
    Stop {
        node: usize,
        down_us: u64,
    },
    KillClient {
        client: usize,
    },
}

/// The character of a run.
pub struct Schedule {
    every_us: u64,
    weights: [u64; 14],
}

impl Schedule {
    pub fn new(rng: &mut Rng, options: &Options) -> Schedule {
        let every_us = [120_000, 300_000, 800_000, 2_500_000][rng.index(4)];
        let mut weights = [10, 8, 1, 6, 8, 5, 3, 4, 10, 10, 1, 2, 4, 6];
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
        if weights.iter().sum::<u64>() == 0 {
            weights[0] = 1;
        }
        Schedule { every_us, weights }
    }

    /// The next fault, and how long until then.
    pub fn next(&self, rng: &mut Rng, nodes: usize, clients: usize) -> (u64, Fault) {
        let wait = rng.between(self.every_us / 10, 2 * self.every_us);
        let mut at = rng.below(self.weights.iter().sum());
        let mut which = 0;
        while at >= self.weights[which] {
            at -= self.weights[which];
            which += 1;
        }
        let node = rng.index(nodes);
        let other = rng.index(nodes);
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
            5 => Fault::Lossy { permille: rng.between(5, 250), us: short_us },
            6 => Fault::Laggy { us_max: rng.between(5_000, 150_000), us: short_us },
            7 => Fault::SlowDisk { node, factor: rng.between(5, 150), us: short_us },
            8 => Fault::Promote { to: node, by: other },
            9 => Fault::Pack { by: node },
            10 => Fault::PackCancel { by: node },
            11 => Fault::Hold { by: node, us: short_us },
            12 => Fault::Stop { node, down_us },
            _ => Fault::KillClient { client: rng.index(clients) },
        };
        (wait, fault)
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
