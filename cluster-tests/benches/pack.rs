//! Packs beside stock Durus's: `cargo bench -p cluster-tests --bench pack [-- OBJECTS [RUNS]]`.
//!
//! The same generated file (about half of it garbage) is packed by stock Durus 4.3 and by `packmaster shelf pack`, each a
//! process of its own; the bytes of both results are compared up to our seal. The last line of the output is the
//! table as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::journal::median;
use cluster_tests::{bigfile, binary, python};
use serde_json::json;

const OBJECTS: u64 = 1_000_000;
const RUNS: usize = 3;
/// Bytes of text in an object, on the average; about 300 bytes an object in the file.
const TEXT: usize = 190;
const MIB: f64 = (1 << 20) as f64;

fn main() {
    // cargo passes --bench of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |nth: usize| args.get(nth).map(|text| text.parse::<u64>().expect("a number"));
    let objects = number(0).unwrap_or(OBJECTS);
    let runs = number(1).unwrap_or(RUNS as u64) as usize;
    let dir = tempfile::tempdir_in(cluster_tests::stock::target_dir()).expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let made = bigfile::write(&at("made"), objects, TEXT).expect("make the file");
    println!(
        "{} objects, {} of them live, {:.0} MiB",
        made.objects,
        made.live.len(),
        made.bytes as f64 / MIB
    );
    let stock: Vec<Duration> = (0..runs).map(|_| stock_pack(&at("made"), &at("stock"))).collect();
    let ours: Vec<(Duration, u64)> =
        (0..runs).map(|_| our_pack(&at("made"), &at("ours"))).collect();
    let packed = same_up_to_the_seal(&at("stock"), &at("ours"));
    let stock_s = median(stock.iter().map(Duration::as_secs_f64).collect());
    let ours_s = median(ours.iter().map(|(time, _)| time.as_secs_f64()).collect());
    let peak = ours.iter().map(|(_, peak)| *peak).max().unwrap_or(0);
    let allowed = made.bytes / 10 + (64 << 20);
    println!("{:<44} {:>10} {:>10}", "offline pack", "median s", "MiB/s");
    let rate = |seconds: f64| made.bytes as f64 / MIB / seconds;
    println!("{:<44} {stock_s:>10.2} {:>10.0}", "stock Durus 4.3", rate(stock_s));
    println!("{:<44} {ours_s:>10.2} {:>10.0}", "packmaster shelf pack", rate(ours_s));
    println!(
        "{:.1} times as fast (target 25); peak memory {:.0} MiB (target {:.0}); the same {packed} bytes",
        stock_s / ours_s,
        peak as f64 / MIB,
        allowed as f64 / MIB
    );
    let rsync = rsync_bytes(&at("made"), &at("ours"), &at("copy"));
    match &rsync {
        Some(bytes) => println!(
            "rsync of the packed file over the unpacked one would move {:.0} MiB of {:.0}; our slaves in step: 0",
            *bytes as f64 / MIB,
            packed as f64 / MIB
        ),
        None => println!("rsync is not installed: what it would move is not measured"),
    }
    println!(
        "{}",
        json!({
            "benchmark": "pack", "objects": made.objects, "file_bytes": made.bytes, "stock_s": stock_s, "ours_s": ours_s,
            "times_as_fast": stock_s / ours_s, "peak_bytes": peak, "peak_allowed_bytes": allowed, "rsync_bytes": rsync,
        })
    );
}

fn stock_pack(made: &Path, to: &Path) -> Duration {
    fs::copy(made, to).expect("copy the file");
    let began = Instant::now();
    let answer = python::run("stock_pack.py", &[to.to_str().expect("a name")], 3600);
    let took = began.elapsed();
    assert!(answer["bytes"].as_u64() < Some(fs::metadata(made).expect("look").len()));
    took
}

/// How long, and the most memory that was resident, in bytes.
fn our_pack(made: &Path, to: &Path) -> (Duration, u64) {
    fs::copy(made, to).expect("copy the file");
    // It may have to be built.
    let packmaster = binary::packmaster();
    let began = Instant::now();
    let mut child = Command::new(packmaster)
        .args(["shelf", "pack"])
        .arg(to)
        .stdout(Stdio::null())
        .spawn()
        .expect("start packmaster");
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    loop {
        if let Some(ended) = child.try_wait().expect("look at packmaster") {
            let took = began.elapsed();
            assert!(ended.success(), "packmaster shelf pack: {ended}");
            return (took, peak);
        }
        // The high-water mark, in kibibytes; the last look is at most 2 ms before the end.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that both files begin with, which must be all of the stock one.
fn same_up_to_the_seal(stock: &Path, ours: &Path) -> u64 {
    let (stock, ours) = (fs::read(stock).expect("read"), fs::read(ours).expect("read"));
    assert!(ours.starts_with(&stock), "stock Durus has packed to other bytes");
    assert!(ours.len() < stock.len() + 1000, "there is more than a seal behind");
    stock.len() as u64
}

/// What rsync would send to make `old` into `new`, by its own statistics; None without rsync.
fn rsync_bytes(old: &Path, new: &Path, copy: &Path) -> Option<u64> {
    fs::copy(old, copy).expect("copy the file");
    let output = Command::new("rsync")
        .args(["--no-whole-file", "--inplace", "--stats"])
        .args([new, copy])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Literal data:"))?;
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().ok()
}
