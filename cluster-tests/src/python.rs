//! Runs the workloads of cluster-tests/python with unmodified stock Durus clients.
//!
//! A workload prints one line of JSON on standard output when it is done and talks on standard error. One that goes
//! on until told to stop is told by the end of its standard input, so none outlives the test that started it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::command_on;
use crate::stock;

/// A workload that runs.
pub struct Workload {
    script: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Workload {
    /// Starts cluster-tests/python/`script` with the stock interpreter.
    pub fn start(script: &str, args: &[&str]) -> Workload {
        Workload::start_on(&[], script, args)
    }

    /// The same on another host: the command begins with `host`.
    pub fn start_on(host: &[String], script: &str, args: &[&str]) -> Workload {
        let stdout = tempfile::tempfile().expect("make a file for the output");
        let stderr = tempfile::tempfile().expect("make a file for the talk");
        let child = command_on(host, &stock::python())
            .arg("-B")
            .arg(directory().join(script))
            .args(args)
            .env("DURUS_SOURCE", stock::source())
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::piped())
            .stdout(stdout.try_clone().expect("share a file"))
            .stderr(stderr.try_clone().expect("share a file"))
            .spawn()
            .expect("start python");
        Workload { script: script.to_string(), child, stdout, stderr }
    }

    /// Tells it to stop, waits until it has, and returns what it printed.
    #[track_caller]
    pub fn finish(mut self, seconds: u64) -> Value {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("look at python") {
                break status;
            }
            let talk = || text(&self.stderr);
            assert!(Instant::now() < deadline, "{} ran over {seconds} s:\n{}", self.script, talk());
            thread::sleep(Duration::from_millis(10));
        };
        let (said, talk) = (text(&self.stdout), text(&self.stderr));
        assert!(status.success(), "{} ended with {status}:\n{said}{talk}", self.script);
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .unwrap_or_else(|e| panic!("{} printed no JSON ({e}):\n{said}{talk}", self.script))
    }

    /// Fails if it has ended by itself.
    #[track_caller]
    pub fn check_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("look at python") {
            panic!("{} ended with {status}:\n{}", self.script, text(&self.stderr));
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a workload that ends by itself.
#[track_caller]
pub fn run(script: &str, args: &[&str], seconds: u64) -> Value {
    Workload::start(script, args).finish(seconds)
}

fn directory() -> PathBuf {
    stock::workspace().join("cluster-tests/python")
}

fn text(mut file: &File) -> String {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    read.expect("read what python wrote");
    String::from_utf8_lossy(&bytes).into_owned()
}
