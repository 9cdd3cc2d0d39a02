//! `packmaster shelf pack`: drops what the root does not reach from a file that no server uses.
//!
//! It is the build of a generation (`pack::Build`) with nothing going on beside it, so what it writes is byte for byte
//! what stock Durus 4.3 writes up to the end of the offset map, and then a seal. Since nothing goes on beside it, the new
//! file is written on a second thread, while the first reads on. The name changes hands by one rename: a crash at any
//! point leaves the old file or the new one under it, whole.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::place;
use crate::pack::{Build, Built, Job, JobOutcome, Step};
use crate::storage::Disk;
use crate::storage::posix::PosixDisk;
use crate::storage::task::CURRENT;

pub(super) fn pack(file: &Path) -> Result<bool> {
    let (dir, name) = place(file)?;
    let disk = PosixDisk::new(dir).writing_behind();
    if disk.read_link(CURRENT)?.is_some() {
        bail!(
            "{} is in the data directory of a node, where a pack is agreed upon; next: packmaster ctl pack",
            file.display()
        );
    }
    let began = Instant::now();
    // Held to the end, so that the lock of the file is.
    let open = disk.open(name)?;
    let before_bytes = open.len()?;
    let fresh = format!("{name}.pack");
    let built = match build(&disk, name, &fresh) {
        Ok(built) => built,
        Err(error) => {
            // Of no use to anybody; if it can't be removed, the next pack replaces it.
            let _ = disk.remove(&fresh);
            return Err(error);
        }
    };
    let kept = take_the_name(&disk, dir, name, &fresh)?;
    println!(
        "{name}: packed in {:.2} s: {} became {}, {} objects are gone; generation {}, base hash {}; \
         the file as it was: {kept}",
        began.elapsed().as_secs_f64(),
        HumanBytes(before_bytes),
        HumanBytes(built.base_len),
        built.removed.len(),
        built.generation,
        built.base_hash,
    );
    Ok(true)
}

fn build(disk: &PosixDisk, name: &str, fresh: &str) -> Result<Built> {
    let mut job = Job::Build(Build::whole(name.to_owned(), fresh.to_owned()));
    let bar = ProgressBar::new(1000).with_style(
        ProgressStyle::with_template("{bar:40} {percent}% {elapsed}, {eta} left")
            .context("the progress bar's template")?,
    );
    loop {
        match job.step(disk)? {
            Step::More { permille } => bar.set_position(u64::from(permille)),
            Step::Done(JobOutcome::Built(built)) => {
                bar.finish_and_clear();
                return Ok(built);
            }
            Step::Done(_) => bail!("a build gave something else"),
        }
    }
}

/// The old file keeps a second name, as with stock Durus; then the new one takes the first. Returns the second name.
fn take_the_name(disk: &PosixDisk, dir: &Path, name: &str, fresh: &str) -> Result<String> {
    let kept = format!("{name}.prepack");
    match fs::remove_file(dir.join(&kept)) {
        Ok(()) => eprintln!("{kept} of an earlier pack is replaced"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("replace {kept}")),
    }
    fs::hard_link(dir.join(name), dir.join(&kept)).with_context(|| format!("keep {kept}"))?;
    disk.sync_dir()?;
    disk.rename(fresh, name)?;
    disk.sync_dir()?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::testing::plain_file;
    use crate::shelf::{self, Shelf};

    #[test]
    fn a_plain_file_is_packed_in_place_and_kept_beside() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("site.durus");
        let plain = plain_file(&[(0, b"root", &[2]), (1, b"garbage", &[0])], &[&[(2, b"", &[])]]);
        fs::write(&file, &plain)?;
        assert!(pack(&file)?);
        assert_eq!(fs::read(dir.path().join("site.durus.prepack"))?, plain);
        let disk = PosixDisk::new(dir.path());
        let packed = Shelf::open(&disk, "site.durus")?.shelf;
        assert_eq!(packed.holes()?.len(), 2);
        assert!(packed.load(crate::types::Oid(1))?.is_none());
        let first = (packed.generation(), packed.tip());
        drop(packed);
        assert!(!dir.path().join("site.durus.pack").exists());
        // Packed again, there is nothing to drop: another generation with the same base.
        let before = fs::read(&file)?;
        assert!(pack(&file)?);
        let again = Shelf::open(&disk, "site.durus")?.shelf;
        assert_eq!(again.generation(), first.0.next());
        assert_eq!(again.seal().previous_chain, first.1.chain);
        assert_eq!(fs::read(dir.path().join("site.durus.prepack"))?, before);
        Ok(())
    }

    /// The seal of a packed plain file says what that of an adopted one says.
    #[test]
    fn packing_a_packed_plain_file_adopts_it() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let disk = PosixDisk::new(dir.path());
        let plain = plain_file(&[(0, b"root", &[1]), (1, b"one", &[])], &[]);
        for name in ["adopted", "packed"] {
            fs::write(dir.path().join(name), &plain)?;
        }
        shelf::adopt(&disk, "adopted")?;
        assert!(pack(&dir.path().join("packed"))?);
        let read = |name: &str| fs::read(dir.path().join(name));
        assert_eq!(read("adopted")?, read("packed")?);
        Ok(())
    }

    #[test]
    fn what_cannot_be_packed_stays_as_it_is() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("site.durus");
        let whole = plain_file(&[(0, b"root", &[])], &[]);
        for (bytes, why) in [
            (plain_file(&[(1, b"no root", &[])], &[]), "no root object"),
            ([&whole[..], b"\0\0\0\0\0\0\0\x50piece"].concat(), "adopt --cut-torn"),
            (b"something else".to_vec(), "not a SHELF-1 file"),
        ] {
            fs::write(&file, &bytes)?;
            let refused = pack(&file).unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
            assert_eq!(fs::read(&file)?, bytes);
            assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        }
        fs::write(&file, &whole)?;
        std::os::unix::fs::symlink("site.durus", dir.path().join(CURRENT))?;
        assert!(pack(&file).unwrap_err().to_string().contains("packmaster ctl pack"));
        Ok(())
    }
}
