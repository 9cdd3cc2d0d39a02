//! What the node tells people about itself: the log, here, and its pages in [`http`].
//!
//! Records are filtered before they are queued, written by a thread of their own, and never dropped: a full queue
//! makes the writer of the record wait. What libraries log through `log` comes by slog's global scope into the same
//! place, warnings and worse only.

pub mod http;
mod metrics;
#[cfg(test)]
pub(crate) mod testing;

pub use metrics::limits as limits_text;

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use slog::{Drain, Level, LevelFilter, Logger, Never, OwnedKVList, Record};

use crate::config::{Log, LogFormat};

/// Records that wait to be written.
const QUEUE_MAX: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot open the log file {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("another logger is set up already")]
    Twice,
}

/// The log, until dropped; dropping it writes out what is queued.
pub struct Logging {
    pub log: Logger,
    _global: slog_scope::GlobalLoggerGuard,
    _writer: slog_async::AsyncGuard,
}

/// Opens the log and brings the libraries' records into it. Once a process.
pub fn start(config: &Log) -> Result<Logging, TelemetryError> {
    let (log, writer) = open(config)?;
    let global = slog_scope::set_global_logger(log.new(slog::o!("from" => "library")));
    slog_stdlog::init().map_err(|_| TelemetryError::Twice)?;
    Ok(Logging { log, _global: global, _writer: writer })
}

fn open(config: &Log) -> Result<(Logger, slog_async::AsyncGuard), TelemetryError> {
    let plain = config.file.is_some();
    let out: Box<dyn Write + Send> = match &config.file {
        None => Box::new(std::io::stderr()),
        Some(path) => {
            let opened = OpenOptions::new().append(true).create(true).open(path);
            let failed = |source| TelemetryError::File { path: path.clone(), source };
            Box::new(opened.map_err(failed)?)
        }
    };
    let (drain, guard) = match (config.format, plain) {
        (LogFormat::Json, _) => queued(
            slog_json::Json::new(BufWriter::new(out))
                .add_default_keys()
                .set_flush(true)
                .build()
                .ignore_res(),
            config.level,
        ),
        (LogFormat::Text, true) => {
            let decorator = slog_term::PlainSyncDecorator::new(out);
            queued(text(decorator), config.level)
        }
        (LogFormat::Text, false) => {
            queued(text(slog_term::TermDecorator::new().stderr().build()), config.level)
        }
    };
    Ok((Logger::root(drain, slog::o!()), guard))
}

fn text<D: slog_term::Decorator>(decorator: D) -> impl Drain<Ok = (), Err = Never> {
    let format = slog_term::FullFormat::new(decorator).use_utc_timestamp();
    format.use_original_order().build().ignore_res()
}

type Queued = LevelFilter<QuietLibraries<slog::Fuse<slog_async::Async>>>;

fn queued(
    drain: impl Drain<Ok = (), Err = Never> + Send + 'static,
    level: Level,
) -> (slog::IgnoreResult<Queued>, slog_async::AsyncGuard) {
    let (queue, guard) = slog_async::Async::new(drain)
        .chan_size(QUEUE_MAX)
        .overflow_strategy(slog_async::OverflowStrategy::Block)
        .thread_name("log".into())
        .build_with_guard();
    (LevelFilter::new(QuietLibraries(queue.fuse()), level).ignore_res(), guard)
}

/// Lets through what is ours, and of the libraries' records only warnings and worse: what a library finds worth an
/// INFO is not worth an operator's attention.
struct QuietLibraries<D>(D);

impl<D: Drain<Ok = (), Err = Never>> Drain for QuietLibraries<D> {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let ours = record.module().starts_with("packmaster");
        if ours || record.level().is_at_least(Level::Warning) {
            return self.0.log(record, values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(format: LogFormat, level: Level) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (log, guard) = open(&Log { level, format, file: Some(path.clone()) }).unwrap();
        slog::info!(log, "node starts"; "node" => "n1");
        slog::debug!(log, "a detail");
        drop(log);
        drop(guard);
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_level_filters_and_dropping_writes_everything() {
        let text = logged(LogFormat::Text, Level::Info);
        assert!(text.contains("INFO node starts, node: n1"), "{text}");
        assert!(!text.contains("a detail"), "{text}");
        assert!(logged(LogFormat::Text, Level::Debug).contains("a detail"));
        assert_eq!(logged(LogFormat::Text, Level::Error), "");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, Level::Debug);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["msg"], "node starts");
        assert_eq!(lines[0]["node"], "n1");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let file = Some("/no/such/place".into());
        let error = open(&Log { level: Level::Info, format: LogFormat::Text, file }).err().unwrap();
        assert!(error.to_string().contains("/no/such/place"), "{error}");
    }
}
