//! What happened, for people and for comparing two runs.
//!
//! Every event goes into the hash; the last of them are kept as lines. The nodes' own log lines are among them.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer, o};

/// Lines kept.
const KEPT: usize = 20_000;
/// Headlines kept.
const HEADLINES: usize = 500;

#[derive(Default)]
struct Inner {
    now_us: u64,
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
    /// What a person reads first: faults, deaths, elections.
    headlines: Vec<String>,
    /// What the nodes said, by message, and how often.
    said: std::collections::BTreeMap<String, u64>,
    echo: bool,
}

/// A clone is the same trace.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

impl Trace {
    pub fn new(echo: bool) -> Trace {
        let trace = Trace::default();
        trace.lock().echo = echo;
        trace
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_now(&self, now_us: u64) {
        self.lock().now_us = now_us;
    }

    /// Into the hash only.
    pub fn note(&self, a: u64, b: u64) {
        let mut inner = self.lock();
        let now = inner.now_us;
        for word in [now, a, b] {
            inner.mix(word);
        }
    }

    pub fn line(&self, text: fmt::Arguments<'_>) {
        let mut inner = self.lock();
        let line = format!("{:>11.6} {text}", inner.now_us as f64 / 1e6);
        for chunk in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            inner.mix(u64::from_le_bytes(word));
        }
        if inner.echo {
            eprintln!("{line}");
        }
        let text = &line[12..];
        let head = text.starts_with("FAULT")
            || [" starts, ", " dies", ": damaged", " refuses to start", " goes on", "is mended"]
                .iter()
                .any(|word| text.contains(word))
            || text.trim_start().starts_with("INFO open: ")
            || text.trim_start().starts_with("CRIT");
        if head && inner.headlines.len() < HEADLINES {
            inner.headlines.push(line.clone());
        }
        inner.lines.push_back(line);
        if inner.lines.len() > KEPT {
            inner.lines.pop_front();
        }
    }

    pub fn hash(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.hash, inner.events)
    }

    pub fn last(&self, lines: usize) -> Vec<String> {
        let inner = self.lock();
        inner.lines.iter().skip(inner.lines.len().saturating_sub(lines)).cloned().collect()
    }

    pub fn headlines(&self) -> Vec<String> {
        self.lock().headlines.clone()
    }

    /// How often the nodes logged a message that begins so.
    pub fn said(&self, start: &str) -> u64 {
        let inner = self.lock();
        inner.said.iter().filter(|(message, _)| message.starts_with(start)).map(|(_, n)| n).sum()
    }

    /// A logger whose lines go here.
    pub fn logger(&self) -> Logger {
        Logger::root(Lines(self.clone()).fuse(), o!())
    }
}

impl Inner {
    /// FNV-1a, a word at a time.
    fn mix(&mut self, word: u64) {
        self.events += 1;
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

struct Lines(Trace);

#[derive(Default)]
struct Pairs(String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        // Later pairs come first: the node's own stands at the end, which is where nobody looks for it.
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        // Raft's own words are too many.
        let wanted = match record.level() {
            Level::Debug => record.module().starts_with("packmaster::node"),
            level => level.is_at_least(Level::Info) && !record.module().starts_with("raft"),
        };
        if !wanted {
            return Ok(());
        }
        let message = record.msg().to_string();
        let mut pairs = Pairs::default();
        // Formatting into a string can't fail.
        let _ = record.kv().serialize(record, &mut pairs);
        let _ = values.serialize(record, &mut pairs);
        let level = record.level().as_short_str();
        self.0.line(format_args!("    {level} {message}{}", pairs.0));
        if record.level().is_at_least(Level::Info) {
            *self.0.lock().said.entry(message).or_default() += 1;
        }
        Ok(())
    }
}
