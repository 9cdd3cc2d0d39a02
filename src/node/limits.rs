//! The limits of this process as operators see them: how often each bit, in /metrics and in the log; and whether the
//! system gives it as many files as its limits promise.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use slog::{Logger, info, warn};

use crate::config;

/// A limit that bites again and again has one line in this time; the line says how often it has.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Files, peers' connections, pages and administrators: what a process opens besides its clients' connections.
const OTHER_FILES: u64 = 256;

pub const CLIENTS_MAX: &str = "clients_max";
pub const SESSION_BYTES_MAX: &str = "session_bytes_max";
pub const COMMAND_MAX: &str = crate::durus::COMMAND_MAX;
pub const PEER_QUEUE_BYTES_MAX: &str = "peer_queue_bytes_max";

/// Every limit there is, by its key in `[limits]`.
pub struct Limits {
    log: Logger,
    by_key: BTreeMap<&'static str, Limit>,
}

struct Limit {
    /// A count, bytes, or seconds.
    value: f64,
    hits: AtomicU64,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    at: Option<Instant>,
    /// Times it bit since, without a line.
    left_out: u64,
}

impl Limits {
    pub fn new(limits: &config::Limits, log: Logger) -> Arc<Limits> {
        let peers = (PEER_QUEUE_BYTES_MAX, limits.peer_queue_bytes_max as f64);
        let all = limits.clients.by_key().into_iter().chain([peers]);
        let limit = |value| Limit { value, hits: AtomicU64::new(0), said: Mutex::default() };
        let by_key = all.map(|(key, value)| (key, limit(value))).collect();
        Arc::new(Limits { log, by_key })
    }

    /// The limit bit: `whom` it closed, and why.
    pub fn bit(&self, key: &'static str, whom: &str, why: &str) {
        let limit = self.by_key.get(key).unwrap_or_else(|| panic!("limit {key} is not listed"));
        limit.hits.fetch_add(1, Ordering::Relaxed);
        let mut said = limit.said.lock().expect("a thread panicked while it wrote a line");
        if said.at.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            said.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut said.left_out);
        said.at = Some(Instant::now());
        drop(said);
        warn!(self.log, "a limit was reached: connection closed";
            "limit" => format!("limits.{key}"), "whom" => whom, "why" => why, "lines_left_out" => left_out);
    }

    /// Key, value, and how often it bit.
    pub fn told(&self) -> Vec<(&'static str, f64, u64)> {
        let told = |(key, limit): (&&'static str, &Limit)| {
            (*key, limit.value, limit.hits.load(Ordering::Relaxed))
        };
        self.by_key.iter().map(told).collect()
    }
}

/// Sees to it that this process may open a file for every client that `clients_max` lets in, and lowers that, with a
/// line in the log, if the system does not allow so many.
pub fn provide_files(clients_max: usize, log: &Logger) -> usize {
    let Some((may, most)) = files_allowed() else {
        warn!(log, "cannot find out how many files this process may open: no /proc/self/limits");
        return clients_max;
    };
    let needed = clients_max as u64 + OTHER_FILES;
    let mut have = may;
    if may < needed {
        let wanted = needed.min(most);
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(most) }) {
            Ok(()) => {
                have = wanted;
                info!(log, "may open more files now"; "before" => may, "now" => wanted);
            }
            Err(error) => warn!(log, "cannot raise how many files this process may open";
                "now" => may, "wanted" => wanted, "why" => %error),
        }
    }
    if have >= needed {
        return clients_max;
    }
    let fits = usize::try_from(have.saturating_sub(OTHER_FILES)).unwrap_or(clients_max).max(1);
    warn!(log, "limits.clients_max cannot be met: this process may not open so many files. Raise its hard limit \
        (LimitNOFILE= in its systemd unit, `ulimit -Hn`), or lower limits.clients_max";
        "clients_max" => clients_max, "files_allowed" => have, "files_needed" => needed, "clients_let_in" => fits);
    fits
}

/// Soft and hard limit. From /proc: the system call is among those that hardened services must not make, and rustix
/// takes it for one that can't fail.
fn files_allowed() -> Option<(u64, u64)> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((words.next()??, words.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, EXAMPLE};
    use crate::telemetry::testing::Lines;

    #[test]
    fn every_hit_is_counted_and_a_flood_has_one_line() {
        let lines = Lines::default();
        let config = Config::parse(EXAMPLE, "example", &[]).unwrap();
        let limits = Limits::new(&config.limits, lines.logger());
        for _ in 0..50 {
            limits.bit("bulk_oids_max", "10.0.0.9:4711 at 0.0.0.0:2972", "too many");
        }
        limits.bit(PEER_QUEUE_BYTES_MAX, "node 2", "it is slow");
        let told = limits.told();
        assert!(told.contains(&("bulk_oids_max", 100_000.0, 50)), "{told:?}");
        assert!(told.contains(&(PEER_QUEUE_BYTES_MAX, f64::from(1 << 30), 1)), "{told:?}");
        assert!(told.contains(&("wait_max", 60.0, 0)), "{told:?}");
        let text = lines.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("limits.bulk_oids_max, whom: 10.0.0.9:4711 at"), "{text}");
    }

    #[test]
    fn there_are_files_for_a_few_clients() {
        let log = Logger::root(slog::Discard, slog::o!());
        let (may, most) = files_allowed().unwrap();
        assert!(0 < may && may <= most);
        assert_eq!(provide_files(3, &log), 3);
    }
}
