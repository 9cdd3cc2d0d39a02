//! Stock Durus 4.3 from PyPI: a virtual environment with it, and its source distribution with its own tests.
//!
//! Made once below the target directory and then shared by all test processes: whoever comes first builds it in a
//! temporary directory under a lock and renames it into place, so that it is there whole or not at all.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const VERSION: &str = "4.3";

/// The Python interpreter that can import durus 4.3.
///
/// # Panics
/// If the environment cannot be made: no python3, no venv module, or no package index.
pub fn python() -> PathBuf {
    home().join("venv/bin/python")
}

/// The unpacked source distribution; its tests are in `test`.
///
/// # Panics
/// As [`python`].
pub fn source() -> PathBuf {
    home().join("source")
}

/// A stock storage server; ended when dropped.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Serves `file` at this port of 127.0.0.1, and waits until it does.
    pub fn start(file: &Path, port: u16) -> Server {
        Server::start_with(file, port, |_| {})
    }

    /// The same, with something of the command changed before.
    pub fn start_with(file: &Path, port: u16, change: impl FnOnce(&mut Command)) -> Server {
        let mut command = command(file);
        command.arg(format!("--port={port}"));
        change(&mut command);
        let child = command.spawn().expect("start a stock server");
        let server = Server { address: SocketAddr::from(([127, 0, 0, 1], port)), child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(server.address).is_err() {
            assert!(Instant::now() < deadline, "the stock server does not answer");
            sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Server {
    /// Whether its process ends by itself within this time.
    pub fn ends_within(&mut self, patience: Duration) -> bool {
        ends_within(&mut self.child, patience)
    }
}

/// `durus -s` on a file; where it listens is to be added.
pub fn command(file: &Path) -> Command {
    let mut command = Command::new(python());
    command.args(["-m", "durus", "-s", "--logginglevel=50"]);
    command.arg(format!("--file={}", file.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether a process ends by itself within this time.
pub fn ends_within(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if child.try_wait().expect("look at a process").is_some() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cargo builds: what tests make belongs there too.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("cluster-tests is in the workspace").to_path_buf()
}

/// Waits for the lock file `name` below the target directory; held until the handle is dropped.
pub fn lock(name: &str) -> Result<File> {
    let dir = target_dir().join("cluster-tests");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open lock {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| match make() {
        Ok(dir) => dir,
        Err(error) => panic!(
            "no stock Durus {VERSION} to test against: {error:#}\nIt takes python3 with its venv module (on Debian: \
             apt install python3-venv) and a package index that pip can reach."
        ),
    })
}

fn make() -> Result<PathBuf> {
    let place = target_dir().join("cluster-tests").join(format!("stock-durus-{VERSION}"));
    let _lock = lock("stock-durus.lock")?;
    if place.exists() {
        return Ok(place);
    }
    let parent = place.parent().context("the target directory has no parent")?;
    let fresh = tempfile::Builder::new()
        .prefix("stock-durus-")
        .tempdir_in(parent)
        .with_context(|| format!("make a temporary directory in {}", parent.display()))?;
    build(fresh.path())?;
    // What is built has no path of itself inside that matters: the interpreter is used by its own path, not activated.
    fs::rename(fresh.path(), &place).with_context(|| format!("rename to {}", place.display()))?;
    Ok(place)
}

fn build(dir: &Path) -> Result<()> {
    let venv = dir.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let python = venv.join("bin/python");
    let pip = || {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]);
        command
    };
    let wanted = format!("durus=={VERSION}");
    run(pip().args(["install", &wanted]))?;
    let download = dir.join("download");
    run(pip()
        .args(["download", "--no-deps", "--no-binary", ":all:", &wanted, "-d"])
        .arg(&download))?;
    let archive = only_entry(&download)?;
    let unpacked = dir.join("unpacked");
    run(Command::new(&python).args(["-m", "tarfile", "-e"]).arg(&archive).arg(&unpacked))?;
    fs::rename(only_entry(&unpacked)?, dir.join("source")).context("place the source")?;
    ensure!(
        dir.join("source/test/utest_client_storage.py").exists(),
        "the source distribution has no test/utest_client_storage.py"
    );
    run(Command::new(&python).args(["-c", "import durus.client_storage"]))?;
    fs::remove_dir_all(&download).and_then(|()| fs::remove_dir(&unpacked)).context("clean up")
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    match paths.as_slice() {
        [path] => Ok(path.clone()),
        _ => bail!("{} should have one entry and has {}", dir.display(), paths.len()),
    }
}

fn run(command: &mut Command) -> Result<()> {
    // A virtual environment of whoever started the tests must not leak into ours.
    let command =
        command.env_remove("VIRTUAL_ENV").env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed, {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
