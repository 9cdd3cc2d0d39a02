//! The clock that our processes and the Python workloads share.

use rustix::time::{ClockId, clock_gettime};

/// Seconds on the machine's monotonic clock: the very numbers of Python's `time.monotonic()`.
pub fn monotonic() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
