use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::node::core::start::FIRST;
use crate::node::core::testing::{
    carry_out, decide, elect_second, first_of_three, make_open_master, own_generation,
};
use crate::node::core::{Action, Input};
use crate::proto::control::{GenerationRecord, Opened, PackStart};
use crate::shelf::Shelf;
use crate::shelf::testing::commit;
use crate::storage::Disk;
use crate::storage::mem::MemDisk;
use crate::types::Epoch;

/// So much is re-chained at a time here, and 16 times as much for a promise.
const STEP: u64 = 64;

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

/// Node 1, which has built generation 2 and is far from having re-chained what came after the cut.
fn re_chaining() -> Core {
    let disk = Arc::new(MemDisk::default());
    let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
    let cut = commit(&mut shelf, &[(0, b"root", &[])]);
    for _ in 0..100 {
        commit(&mut shelf, &[(0, b"after the cut", &[])]);
    }
    let mut core = first_of_three(disk.clone(), at(0));
    core.committed = core.shelf.tip().seq;
    core.apply_committed(&mut Vec::new());
    let build = Build::new(FIRST.into(), Generation(2), cut, cut, "built".into());
    let Ok(JobOutcome::Built(built)) = Job::Build(build).run(&*disk) else { panic!("no base") };
    let name = file_name(Generation(2), built.base_hash);
    disk.rename("built", &name).unwrap();
    let shelf = Shelf::open(&*disk, &name).unwrap().shelf;
    let (durable, removed) = (shelf.tip(), RoaringTreemap::new());
    core.next = Some(Next { shelf, durable, removed, said_ready: false, followed: at(0) });
    core.pack.of = Some((PackId(7), Generation(2)));
    core.pack.building = Building::Following { proposed: None };
    core
}

fn followed(core: &Core) -> u64 {
    let next = &core.next.as_ref().unwrap().shelf;
    next.tip().offset - next.base_end()
}

/// Found by reading: a promise re-chained everything that the next file lacked, gigabytes perhaps, before it was made, and
/// the clients waited for it as all the core's work did.
#[test]
fn a_promise_does_not_wait_for_who_was_never_ready() {
    let mut core = re_chaining();
    core.promise(Epoch(5), &mut Vec::new());
    let done = followed(&core);
    assert!((16 * STEP..20 * STEP).contains(&done), "{done} bytes");
    assert!(core.next_complete().is_none());
}

/// The switch was asked for because enough have said that they are: none of them may report otherwise.
#[test]
fn who_has_said_that_it_is_ready_is_so_when_it_promises() {
    let mut core = re_chaining();
    core.next.as_mut().unwrap().said_ready = true;
    core.promise(Epoch(5), &mut Vec::new());
    assert!(core.next_complete().is_some());
}

/// Its file is as good as the others', and only late: it was thrown away once, and built anew.
#[test]
fn who_is_late_for_the_switch_goes_on_and_flips() {
    let mut core = re_chaining();
    let base_hash = core.next.as_ref().unwrap().shelf.base_hash();
    let tip = core.shelf.tip().seq;
    is_late(&mut core);
    let mut ms = 0;
    while core.shelf.generation() == Generation(1) {
        assert!(ms < 1000, "{} bytes in {ms} ms", followed(&core));
        ms += 2;
        assert!(!builds(&mut core, ms), "again");
    }
    assert!(ms > 20, "at once");
    assert_eq!((core.shelf.tip().seq, core.shelf.base_hash()), (tip, base_hash));
    assert!(core.is_current_file() && core.next.is_none());
}

/// It would never be done: what cannot be read is the ladder's to judge.
#[test]
fn who_is_late_and_can_t_read_its_own_file_rebases_as_any_does() {
    let mut core = re_chaining();
    let bad = core.shelf.tip_at(Seq(50)).unwrap().unwrap();
    core.shelf.file().write_at(bad.offset + 40, &[0xff; 8]).unwrap();
    is_late(&mut core);
    let mut ms = 0;
    while !builds(&mut core, ms) {
        assert!(ms < 1000, "{} bytes in {ms} ms", followed(&core));
        ms += 2;
    }
    assert!(core.next.is_none());
}

/// The new generation is elected, and this node lacks too much of it.
fn is_late(core: &mut Core) {
    let base_hash = core.next.as_ref().unwrap().shelf.base_hash();
    let first = own_generation(core);
    elect_second(core, 5, first);
    core.adopt_phase(None, &mut Vec::new());
    elected_in_the_new_generation(core, base_hash);
    let mut out = Vec::new();
    core.adopt_phase(Some(Epoch(5)), &mut out);
    core.on_pack_changed(&mut out);
    assert_eq!(core.shelf.generation(), Generation(1));
    carry_out(core, at(0), out);
}

/// A tick at that time; does it begin to build?
fn builds(core: &mut Core, ms: u64) -> bool {
    let mut out = Vec::new();
    core.step(at(ms), Input::Tick, &mut out);
    let rest = carry_out(core, at(ms), out);
    rest.iter().any(|action| matches!(action, Action::Job { work: Job::Build(_), .. }))
}

/// All the steps of a pack, as the cluster decides them.
fn elected_in_the_new_generation(core: &mut Core, base_hash: Chain) {
    let cut = core.shelf.tip_at(Seq(1)).unwrap().unwrap();
    let (generation, base_hash) = (2, wire::put_chain(base_hash));
    let cut_chain = wire::put_chain(cut.chain);
    let record = GenerationRecord {
        number: generation,
        base_hash: base_hash.clone(),
        pack_seq: 1,
        cut_seq: 1,
        cut_chain: cut_chain.clone(),
        ..GenerationRecord::default()
    };
    let seq = core.shelf.tip().seq.0 + 1;
    decide(core, CommandKind::Opened(Opened { epoch: 5, seq, clients_waited_us: 0 }));
    decide(
        core,
        CommandKind::PackStart(PackStart { generation, asked_by: "ann".into(), after: 0 }),
    );
    core.pack.of = core.control.pack().map(|pack| (pack.id, pack.generation));
    let (pack_seq, cut_seq) = (1, 1);
    let seal = PackSeal { generation, pack_seq, cut_seq, cut_chain, ..PackSeal::default() };
    decide(core, CommandKind::PackSeal(seal));
    for node in [2, 3] {
        let base_hash = base_hash.clone();
        let base = PackBase { generation, base_hash, node, ..PackBase::default() };
        decide(core, CommandKind::PackBase(base));
        decide(core, CommandKind::PackReady(PackReady { generation, node, ..Default::default() }));
    }
    elect_second(core, 6, record);
}

/// Found by stock's check_oid_reuse on a busy machine: two slaves had synced what the master itself had not yet, and a client
/// that had just made its root asked for a pack. It was made of the state before, which had none, and called off.
#[test]
fn a_pack_is_of_all_that_was_committed_when_it_was_asked_for() {
    let disk = Arc::new(MemDisk::default());
    let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
    let written = commit(&mut shelf, &[(0, b"root", &[])]);
    let mut core = first_of_three(disk, at(0));
    make_open_master(&mut core, 5);
    (core.durable, core.committed) = (core.shelf.tip_at(Seq(0)).unwrap().unwrap(), written);
    let pack = Pack {
        id: PackId(1),
        builds: Default::default(),
        generation: Generation(2),
        started_epoch: Epoch(5),
        started_wall_us: 1,
        asked_by: "a client".into(),
        seal: None,
        base_hash: None,
        base_len: 0,
        block_root: None,
        ready: BTreeSet::new(),
        sealed_wall_us: 0,
        based_wall_us: 0,
        readied_wall_us: 0,
    };
    core.pack.from = core.committed;
    let marks = |core: &mut Core| {
        let mut out = Vec::new();
        core.drive_mark(&pack, &mut out);
        out.iter().filter(|it| matches!(it, Action::Job { work: Job::Mark(_), .. })).count()
    };
    assert_eq!(marks(&mut core), 0);
    core.durable = core.shelf.tip();
    assert_eq!((marks(&mut core), marks(&mut core)), (1, 0));
    // What fails calls the pack off once, until that must have been lost.
    let failed = JobError::NoRoot { p: written };
    core.on_pack_job_failed(failed, &mut Vec::new());
    assert_eq!(marks(&mut core), 0);
    core.now = at(10_000);
    assert_eq!((marks(&mut core), marks(&mut core)), (0, 1));
}
