use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::node::core::FIRST;
use crate::node::core::testing::first_of;
use crate::pack::Build;
use crate::shelf::testing::commit;
use crate::storage::mem::MemDisk;
use crate::storage::task::TaskDone;
use crate::storage::{Disk, DiskError, DiskFile};
use crate::types::Chain;

/// A disk whose reads can be made to fail.
#[derive(Clone, Default)]
struct Flaky {
    disk: MemDisk,
    fails: Arc<AtomicBool>,
}

struct FlakyFile {
    file: Arc<dyn DiskFile>,
    fails: Arc<AtomicBool>,
}

impl Flaky {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FlakyFile { file, fails: self.fails.clone() })
    }
}

impl Disk for Flaky {
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.file(self.disk.open(name)?))
    }
    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.file(self.disk.create(name)?))
    }
    fn exists(&self, name: &str) -> Result<bool, DiskError> {
        self.disk.exists(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.disk.remove(name)
    }
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.disk.list()
    }
    fn sync_dir(&self) -> Result<(), DiskError> {
        self.disk.sync_dir()
    }
    fn set_link(&self, name: &str, target: &str) -> Result<(), DiskError> {
        self.disk.set_link(name, target)
    }
    fn read_link(&self, name: &str) -> Result<Option<String>, DiskError> {
        self.disk.read_link(name)
    }
    fn free_bytes(&self) -> Result<u64, DiskError> {
        self.disk.free_bytes()
    }
}

impl DiskFile for FlakyFile {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn len(&self) -> Result<u64, DiskError> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(DiskError::Io {
                verb: "read",
                name: self.name().into(),
                source: std::io::Error::other("this disk is flaky"),
            }),
            false => self.file.read_at(offset, buf),
        }
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.file.write_at(offset, data)
    }
    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.file.truncate(len)
    }
    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync()
    }
}

fn node(disk: &Flaky) -> Core {
    first_of(1, Arc::new(disk.clone()), Now { mono_us: 1, wall_us: 1 })
}

/// Found while hunting mutants (RemovedNotRefused; every rule kept, seed 39): one read failed while a node moved to the
/// new base, the read that asks whether its own file has the cut. "Can't say" was taken for "no": the tail after the
/// cut, acknowledged and committed, was left behind in the old file.
#[test]
fn a_read_that_fails_at_a_rebase_leaves_no_tail_behind() {
    let disk = Flaky::default();
    let mut first = Shelf::create(&disk, FIRST).unwrap();
    commit(&mut first, &[(0, b"root", &[])]);
    let cut = commit(&mut first, &[(0, b"again", &[])]);
    commit(&mut first, &[(0, b"after the cut", &[])]);
    let tip = commit(&mut first, &[(0, b"acknowledged", &[])]);
    let cut_chain = first.tip_at(cut).unwrap().unwrap().chain;
    let build = Build::new(FIRST.into(), Generation(2), cut, cut, "base.durus".into());
    let Ok(JobOutcome::Built(built)) = Job::Build(build).run(&disk) else { panic!("no base") };
    let record = GenerationRecord {
        number: Generation(2),
        base_hash: built.base_hash,
        pack_seq: cut,
        cut_seq: cut,
        cut_chain,
        since_wall_us: 0,
        block_root: None,
    };
    let mut core = node(&disk);
    let mut out = Vec::new();
    let mut rebase = |core: &mut Core, fails: bool| {
        let base = Shelf::open(&disk, "base.durus").unwrap().shelf;
        disk.fails.store(fails, Ordering::Relaxed);
        core.rebase_onto(base, record.clone(), None, &mut out);
        disk.fails.store(false, Ordering::Relaxed);
    };
    rebase(&mut core, true);
    assert_eq!((core.shelf.generation(), core.shelf.tip().seq), (Generation(1), tip));
    assert!(matches!(core.rebase, Some(Rebase::Failed { .. })), "it tries again");
    rebase(&mut core, false);
    assert_eq!((core.shelf.generation(), core.shelf.tip().seq), (Generation(2), tip));
}

/// Found by the simulator (soak, seeds 8092025 and 8129565): on a slow disk a pack's file got its name while its removal
/// and another file of that name were queued. The node opened the first one, and acknowledged what it appended there; the
/// removal took it away.
#[test]
fn a_base_is_opened_when_it_has_its_name_and_not_when_another_had_it() {
    let mut core = node(&Flaky::default());
    let record = GenerationRecord {
        number: Generation(2),
        base_hash: Chain([2; 20]),
        pack_seq: Seq(1),
        cut_seq: Seq(1),
        cut_chain: Chain([1; 20]),
        since_wall_us: 0,
        block_root: None,
    };
    let name = file_name(record.number, record.base_hash);
    let mut out = Vec::new();
    let work = DiskTask::Rename { from: building_name(1), to: name.clone() };
    let of_the_pack = core.disk(Purpose::BaseNamed, work, &mut out);
    core.remove(vec![name], &mut out);
    core.name_built(2, record, RoaringTreemap::new(), &mut out);
    let is_rename = |action: &Action| match action {
        Action::Disk { task, work: DiskTask::Rename { .. } } => Some(*task),
        _ => None,
    };
    let ours = out.iter().filter_map(is_rename).next_back().unwrap();
    let mut opens = |done: u64| {
        let mut out = Vec::new();
        core.on_disk_done(done, Ok(TaskDone::Nothing), &mut out);
        out.iter().any(|action| matches!(action, Action::Job { work: Job::Open(_), .. }))
    };
    assert!(!opens(of_the_pack), "that one is about to be removed");
    assert!(opens(ours));
}
