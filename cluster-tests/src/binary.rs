//! The packmaster binary under test, built by cargo in the profile the tests were built in.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::stock;

/// The path of the binary: `PACKMASTER_BIN`, or what cargo builds (once in a test process, fresh ones are left).
///
/// # Panics
/// If it does not build.
pub fn packmaster() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let path = BINARY.get_or_init(|| match env::var_os("PACKMASTER_BIN") {
        Some(path) => PathBuf::from(path),
        None => build().unwrap_or_else(|error| panic!("no packmaster to test: {error:#}")),
    });
    path.clone()
}

fn build() -> Result<PathBuf> {
    let _lock = stock::lock("build.lock")?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // The whole workspace, so that dependencies have the features the tests were built with and nothing is built twice.
    command.args([
        "build",
        "--workspace",
        "--bin",
        "packmaster",
        "--message-format=json",
        "--offline",
    ]);
    match profile()?.as_str() {
        "debug" => {}
        "release" => {
            command.arg("--release");
        }
        other => {
            command.args(["--profile", other]);
        }
    }
    command.current_dir(stock::workspace()).stderr(Stdio::piped());
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "packmaster")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built, but named no executable")
}

/// The directory below target that this test was built into: .../target/PROFILE/deps/test.
fn profile() -> Result<String> {
    let me = env::current_exe().context("find my own path")?;
    let dir = me.ancestors().nth(2).and_then(|dir| dir.file_name()).context("my own path")?;
    Ok(dir.to_string_lossy().into_owned())
}
