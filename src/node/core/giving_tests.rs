use std::sync::Arc;

use super::*;
use crate::node::core::packing::file_name;
use crate::node::core::start::FIRST;
use crate::node::core::testing::{first_of_three, says};
use crate::node::core::{Action, Core};
use crate::pack::Build;
use crate::shelf::testing::{commit, get, put};
use crate::storage::Disk;
use crate::storage::mem::MemDisk;
use crate::storage::task::CURRENT;
use crate::types::{Now, Seq};

const NOW: Now = Now { mono_us: 1, wall_us: 1 };

/// Makes a base of the first file, under the name that it has on a node. Returns its hash.
fn base(disk: &MemDisk, generation: u64, cut: Seq) -> Chain {
    let generation = Generation(generation);
    let build = Build::new(FIRST.into(), generation, cut, cut, "building".into());
    let Ok(JobOutcome::Built(built)) = Job::Build(build).run(disk) else { panic!("no base") };
    let name = file_name(generation, built.base_hash);
    disk.rename("building", &name).unwrap();
    built.base_hash
}

/// A node that was started in generation 3, and still has a file of generation 2, and what a pack that was called off has
/// left of another generation 2.
fn node() -> (Core, Arc<MemDisk>, Chain) {
    let disk = Arc::new(MemDisk::default());
    let mut first = crate::shelf::Shelf::create(&*disk, FIRST).unwrap();
    let early = commit(&mut first, &[(0, b"root", &[])]);
    let late = commit(&mut first, &[(0, b"again", &[])]);
    let left = base(&disk, 2, early);
    let bytes = get(&disk, &file_name(Generation(2), left));
    put(&disk, "g00000002-00000000.durus", &bytes);
    let agreed = base(&disk, 2, late);
    let current = base(&disk, 3, late);
    let current = file_name(Generation(3), current);
    disk.set_link(CURRENT, &current).unwrap();
    (first_of_three(disk.clone(), NOW), disk, agreed)
}

fn probe(core: &mut Core, generation: u64, base_hash: Chain) -> (pb::ProbeReply, Vec<Action>) {
    let base_hash = wire::put_chain(base_hash);
    let probe = pb::Probe { id: 7, generation, base_hash, ..pb::Probe::default() };
    let out = says(core, NOW, 2, Kind::Probe(probe));
    let reply = out.iter().find_map(|action| match action {
        Action::Send { message, .. } => match &message.kind {
            Some(Kind::ProbeReply(reply)) => Some(reply.clone()),
            _ => None,
        },
        _ => None,
    });
    (reply.expect("an answer"), out)
}

/// Runs the job that opens a file; which one that is.
fn open(core: &mut Core, disk: &MemDisk, out: Vec<Action>) -> Option<String> {
    let found = out.into_iter().find_map(|action| match action {
        Action::Job { job, work: Job::Open(name) } => Some((job, name)),
        _ => None,
    });
    let (job, name) = found?;
    let result = Job::Open(name.clone()).run(disk);
    core.on_job_done(job, result, &mut Vec::new());
    Some(name)
}

/// Found by reading: of two files of one old generation the first was opened, which may be what a pack that was called off
/// has left. Nobody could fetch from this node what it had.
#[test]
fn of_two_old_files_the_one_that_is_asked_for_is_opened() {
    let (mut core, disk, agreed) = node();
    let (_, out) = probe(&mut core, 2, agreed);
    let name = file_name(Generation(2), agreed);
    assert_eq!(open(&mut core, &disk, out), Some(name));
    let (reply, _) = probe(&mut core, 2, agreed);
    assert!(reply.has_file);
}

#[test]
fn while_an_old_file_is_opened_that_is_said() {
    let (mut core, disk, agreed) = node();
    let (reply, out) = probe(&mut core, 2, agreed);
    assert_eq!((reply.has_file, reply.opening), (false, true));
    let (reply, again) = probe(&mut core, 2, agreed);
    assert_eq!((reply.has_file, reply.opening), (false, true));
    assert!(open(&mut core, &disk, again).is_none(), "it is under way");
    open(&mut core, &disk, out).unwrap();
    let (reply, _) = probe(&mut core, 2, agreed);
    assert_eq!((reply.has_file, reply.opening), (true, false));
    let (reply, out) = probe(&mut core, 2, Chain([7; 20]));
    assert_eq!((reply.has_file, reply.opening), (false, false), "it is not here");
    assert!(open(&mut core, &disk, out).is_none());
}

/// Nobody waits for it a second time, and it is tried again all the same.
#[test]
fn an_old_file_that_can_t_be_opened_is_not_waited_for() {
    let (mut core, disk, agreed) = node();
    let name = file_name(Generation(2), agreed);
    let bytes = get(&disk, &name);
    put(&disk, &name, b"rotten");
    let (reply, out) = probe(&mut core, 2, agreed);
    assert!(reply.opening);
    open(&mut core, &disk, out).unwrap();
    let (reply, out) = probe(&mut core, 2, agreed);
    assert!(!reply.opening);
    put(&disk, &name, &bytes);
    open(&mut core, &disk, out).unwrap();
    assert!(probe(&mut core, 2, agreed).0.has_file);
}
