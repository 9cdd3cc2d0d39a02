//! Disks that can be filled or slowed down, for one node each.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::stock;

const SOURCE: &str = "pmtest-";

/// A small file system in memory, mounted on a directory until it is dropped.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounted on `at`, which is made; or why that can't be done here.
    pub fn mount(at: &Path, mib: u32) -> Result<SmallDisk> {
        unmount_stale();
        fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        let options = format!("size={mib}m,mode=755");
        let source = format!("{SOURCE}{}", std::process::id());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, &source]).arg(at);
        let output = mount.output().context("run mount")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim());
        Ok(SmallDisk { at: at.to_path_buf() })
    }

    /// Leaves `free` bytes, as near as blocks allow.
    pub fn fill(&self, free: u64) {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("open the ballast");
        let chunk = [0x5a; 4096];
        while self.free_bytes() > free {
            // Somebody else may take the last block.
            if ballast.write_all(&chunk).is_err() {
                return;
            }
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("remove the ballast");
    }

    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).expect("measure a small disk");
        stat.f_bavail * stat.f_frsize
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            unmount(&self.at);
        }
    }
}

fn unmount(at: &Path) {
    // Lazily: whatever still has a file open there keeps it.
    let done = Command::new("umount").arg("-l").arg(at).status();
    if !done.is_ok_and(|status| status.success()) {
        eprintln!("{} stays mounted", at.display());
    }
}

/// What test processes that are gone have left mounted.
fn unmount_stale() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(at)) = (words.next(), words.next()) else { continue };
        if let Some(pid) = source.strip_prefix(SOURCE)
            && !Path::new("/proc").join(pid).exists()
        {
            unmount(Path::new(at));
        }
    }
}

/// What makes a process's syncs slow; see slow_disk.c.
pub struct SlowDisk {
    library: PathBuf,
    control: PathBuf,
}

impl SlowDisk {
    /// Controlled by a file that is made at `control`.
    pub fn make(control: PathBuf) -> Result<SlowDisk> {
        let disk = SlowDisk { library: library()?, control };
        disk.set_ms(0);
        Ok(disk)
    }

    /// Every sync from now on takes so much longer; those that wait, too.
    pub fn set_ms(&self, ms: u64) {
        // At no moment is the file empty: that would be a zero.
        let fresh = self.control.with_extension("new");
        fs::write(&fresh, ms.to_string()).expect("write how slow a disk is");
        fs::rename(&fresh, &self.control).expect("say how slow a disk is");
    }

    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("SLOW_DISK", &self.control)]
    }
}

/// Compiled once, below the target directory.
fn library() -> Result<PathBuf> {
    let place = stock::target_dir().join("cluster-tests/slow_disk.so");
    let source = stock::workspace().join("cluster-tests/src/slow_disk.c");
    let _lock = stock::lock("slow-disk.lock")?;
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    if changed(&place) >= changed(&source) {
        return Ok(place);
    }
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&place).arg(&source);
    let output = cc.arg("-ldl").output().context("run cc")?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(place)
}
