//! `packmaster shelf`: work on database files, without a cluster.
//!
//! `verify` and `log` only look: they take no lock, and so work on the file of a running node too. `adopt` and `pack`
//! write, and hold the lock that a stock Durus server would hold. Standard output is data, standard error is talk.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::shelf::{self, Adopted, End, Found, Progress, Scan, Shelf, ShelfError, Torn, TxMeta};
use crate::storage::Disk;
use crate::storage::posix::PosixDisk;
use crate::types::{Seq, Tip};

/// Bytes read between two looks at the progress bar.
const STEP_BYTES: u64 = 16 << 20;

mod pack;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 done, the file is whole; 1 refused, or the file is not whole; 2 usage.
Example: packmaster shelf verify /var/lib/site/site.durus")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Read a whole file, prove its chain, and say what state it is in
    #[command(after_help = "Example: packmaster shelf verify site.durus")]
    Verify { file: PathBuf },
    /// List the transactions of a file
    #[command(after_help = "Example: packmaster shelf log --limit 20 site.durus")]
    Log {
        file: PathBuf,
        /// Only the newest N
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// What standard output is for; json is one object a line
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Make a plain Durus file a chained one, in place, by appending its seal
    #[command(after_help = "Example: packmaster shelf adopt site.durus")]
    Adopt {
        file: PathBuf,
        /// If the file ends inside its last transaction: keep that piece in FILE.torn-OFFSET and cut it off
        #[arg(long)]
        cut_torn: bool,
    },
    /// Drop what the root does not reach, from a file that no server uses; the old file stays as FILE.prepack
    #[command(after_help = "Example: packmaster shelf pack site.durus")]
    Pack { file: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For scripts
    Json,
}

pub fn run(args: Args) -> ExitCode {
    let result = match args.verb {
        Verb::Verify { file } => verify(&file),
        Verb::Log { file, limit, output } => log(&file, limit, output),
        Verb::Adopt { file, cut_torn } => adopt(&file, cut_torn),
        Verb::Pack { file } => pack::pack(&file),
    };
    match result {
        Ok(whole) => ExitCode::from(u8::from(!whole)),
        Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            // whoever read our output has had enough of it
            Some(io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
            _ => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// A file's directory and its name in it.
fn place(file: &Path) -> Result<(&Path, &str)> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} is no name of a file", file.display()))?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    Ok((dir.unwrap_or(Path::new(".")), name))
}

/// Scans the whole file and shows how far it is.
fn scan_whole(file: &Path, visit: &mut dyn FnMut(Found<'_>)) -> Result<(Scan, End)> {
    let (dir, name) = place(file)?;
    let mut scan = Scan::new(PosixDisk::read_only(dir).open(name)?, None)?;
    let bar = ProgressBar::new(scan.position().1).with_style(
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
            .context("the progress bar's template")?,
    );
    loop {
        match scan.step(STEP_BYTES, visit)? {
            Progress::End(end) => {
                bar.finish_and_clear();
                return Ok((scan, end));
            }
            _ => bar.set_position(scan.position().0),
        }
    }
}

// ---- verify ----

fn verify(file: &Path) -> Result<bool> {
    let (mut transactions, mut objects, mut first) = (0_u64, 0_u64, None);
    let (scan, end) = scan_whole(file, &mut |found| match found {
        Found::Base { .. } => objects += 1,
        Found::Plain { records, .. } => objects += records.len() as u64,
        Found::Seal { tip, .. } => {
            first = Some(tip);
            transactions = 0;
        }
        Found::Chained { records, .. } => {
            transactions += 1;
            objects += records.len() as u64;
        }
    })?;
    let name = file.display();
    let state = match (scan.sealed(), first) {
        (Some((info, tip)), Some(seal)) => format!(
            "generation {} (base hash {}, cut {}), {transactions} transactions after its seal, \
             {objects} object records; {tip}",
            info.generation, seal.chain, info.cut
        ),
        _ => format!("a plain Durus file, {objects} object records"),
    };
    let (verdict, next) = judge(&scan, &end);
    let mut out = io::stdout().lock();
    writeln!(out, "{name}: {verdict}: {state}")?;
    if let Some(next) = next {
        writeln!(out, "next: packmaster shelf {next} {name}")?;
        return Ok(false);
    }
    Ok(true)
}

/// A file's state in a few words, and the command that mends it.
fn judge(scan: &Scan, end: &End) -> (String, Option<&'static str>) {
    if let Some(Torn { offset, len }) = &end.torn {
        let what = format!("torn, {len} bytes from offset {offset} on are no whole transaction");
        return (what, Some("adopt --cut-torn"));
    }
    if let Some(offset) = end.foreign {
        return (format!("stock Durus has appended from offset {offset} on"), Some("adopt"));
    }
    match scan.sealed() {
        Some(_) => ("whole and verified".to_owned(), None),
        None => ("readable, but without a chain to prove it".to_owned(), Some("adopt")),
    }
}

// ---- log ----

/// One transaction, as scripts get it. Fields may be added, never changed.
#[derive(Serialize)]
struct Row {
    /// Absent for transactions of stock Durus.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    kind: String,
    /// RFC 3339; absent if the transaction has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    objects: u64,
    /// Offset of its first byte, and bytes in all.
    offset: u64,
    bytes: u64,
    /// 40 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

impl Row {
    fn chained(offset: u64, objects: usize, meta: &TxMeta, tip: &Tip) -> Row {
        let generation = match meta.kind {
            shelf::Kind::Seal(info) => Some(info.generation.0),
            _ => None,
        };
        Row {
            seq: Some(meta.seq.0),
            epoch: Some(meta.epoch.0),
            kind: meta.kind.to_string(),
            time: Some(meta.time_us).filter(|time_us| *time_us > 0).and_then(rfc3339),
            objects: objects as u64,
            offset,
            bytes: tip.offset - offset,
            chain: Some(tip.chain.to_string()),
            generation,
        }
    }

    fn plain(offset: u64, bytes: u64, objects: usize) -> Row {
        Row {
            seq: None,
            epoch: None,
            kind: "plain".to_owned(),
            time: None,
            objects: objects as u64,
            offset,
            bytes,
            chain: None,
            generation: None,
        }
    }

    fn cells(&self) -> [String; 7] {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let kind = match self.generation {
            Some(generation) => format!("{} {generation}", self.kind),
            None => self.kind.clone(),
        };
        let (objects, bytes) = (self.objects.to_string(), self.bytes.to_string());
        let (seq, epoch) = (number(self.seq), number(self.epoch));
        [seq, epoch, kind, text(&self.time), objects, bytes, text(&self.chain)]
    }
}

fn rfc3339(time_us: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_us) * 1000).ok()?;
    time.format(&Rfc3339).ok()
}

fn log(file: &Path, limit: Option<usize>, output: Output) -> Result<bool> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut rows = VecDeque::new();
    let scanned = scan_whole(file, &mut |found| {
        let row = match found {
            Found::Base { .. } => return,
            Found::Plain { offset, bytes, records } => Row::plain(offset, bytes, records.len()),
            Found::Seal { offset, meta, tip } => Row::chained(offset, 0, &meta, &tip),
            Found::Chained { offset, records, meta, tip, .. } => {
                Row::chained(offset, records.len(), &meta, &tip)
            }
        };
        if rows.len() == limit {
            rows.pop_front();
        }
        if limit > 0 {
            rows.push_back(row);
        }
    });
    print(rows.iter(), output)?;
    // what could be read is shown, whatever came after it
    let (_, end) = scanned?;
    if let Some(Torn { offset, len }) = end.torn {
        bail!("the file is torn: {len} bytes from offset {offset} on are no whole transaction");
    }
    Ok(true)
}

fn print<'a>(rows: impl Iterator<Item = &'a Row>, output: Output) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match output {
        Output::Json => {
            for row in rows {
                let line = serde_json::to_string(row).context("a row as JSON")?;
                writeln!(out, "{line}")?;
            }
        }
        Output::Table => {
            let mut table = comfy_table::Table::new();
            table.load_preset(comfy_table::presets::NOTHING);
            table.set_header(["SEQ", "EPOCH", "KIND", "TIME", "OBJECTS", "BYTES", "CHAIN"]);
            for row in rows {
                table.add_row(row.cells());
            }
            for line in table.lines() {
                writeln!(out, "{}", line.trim_end())?;
            }
        }
    }
    Ok(out.flush()?)
}

// ---- adopt ----

fn adopt(file: &Path, cut_torn: bool) -> Result<bool> {
    let (dir, name) = place(file)?;
    let disk = PosixDisk::new(dir);
    // Held to the end, so that the lock of the file is.
    let _open = disk.open(name)?;
    let adopted = match shelf::adopt(&disk, name) {
        Err(ShelfError::Torn { offset, len, .. }) if cut_torn => {
            let keep_as = format!("{name}.torn-{offset}");
            Shelf::cut_torn(&disk, name, &Torn { offset, len }, &keep_as)?;
            eprintln!("{len} bytes from offset {offset} on were cut off and kept as {keep_as}");
            match shelf::adopt(&disk, name) {
                Err(ShelfError::AlreadyChained { .. }) => {
                    println!("{name}: cut; it has had its chain before");
                    return Ok(true);
                }
                adopted => adopted?,
            }
        }
        adopted => adopted?,
    };
    let Adopted { generation, tip, base_objects, plain_transactions } = adopted;
    println!(
        "{name}: adopted as generation {generation}: base hash {}, {base_objects} objects in the base and \
         {plain_transactions} transactions of stock Durus below it",
        tip.chain
    );
    if tip.seq != Seq(0) {
        eprintln!(
            "Its history differs from its old cluster's at seq {}: use it to start a new one.",
            tip.seq
        );
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::testing::{commit, plain_file};
    use std::fs;

    #[test]
    fn a_plain_file_is_adopted_verified_and_listed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("site.durus");
        fs::write(&file, plain_file(&[(0, b"root", &[])], &[&[(1, b"one", &[0])]]))?;
        assert!(!verify(&file)?);
        assert!(adopt(&file, false)?);
        assert!(verify(&file)?);
        let refused = adopt(&file, false).unwrap_err();
        assert!(refused.to_string().contains("has its chain already"), "{refused}");
        let disk = PosixDisk::new(dir.path());
        let mut shelf = Shelf::open(&disk, "site.durus")?.shelf;
        commit(&mut shelf, &[(1, b"again", &[])]);
        assert!(log(&file, Some(2), Output::Json)?);
        assert!(log(&file, None, Output::Table)?);
        Ok(())
    }

    #[test]
    fn a_torn_file_is_cut_only_when_asked_and_the_piece_is_kept() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("site.durus");
        let whole = plain_file(&[(0, b"root", &[])], &[]);
        fs::write(&file, [&whole[..], b"\0\0\0\0\0\0\0\x50piece"].concat())?;
        assert!(!verify(&file)?);
        assert!(adopt(&file, false).unwrap_err().to_string().contains("--cut-torn"));
        assert!(adopt(&file, true)?);
        assert!(verify(&file)?);
        let kept = dir.path().join(format!("site.durus.torn-{}", whole.len()));
        assert_eq!(fs::read(kept)?, b"\0\0\0\0\0\0\0\x50piece");
        Ok(())
    }

    #[test]
    fn rows_leave_out_what_stock_transactions_do_not_have() -> Result<()> {
        let row = serde_json::to_string(&Row::plain(40, 8, 0))?;
        assert_eq!(row, r#"{"kind":"plain","objects":0,"offset":40,"bytes":8}"#);
        assert_eq!(rfc3339(1_700_000_000_000_000).as_deref(), Some("2023-11-14T22:13:20Z"));
        Ok(())
    }
}
