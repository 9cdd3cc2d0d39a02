use std::sync::Arc;

use super::*;
use crate::node::core::packing::file_name;
use crate::node::core::start::FIRST;
use crate::node::core::testing::{elect_second, first_of_three, own_generation};
use crate::pack::{Build, Job, JobOutcome};
use crate::shelf::Shelf;
use crate::shelf::testing::{commit, put};
use crate::storage::Disk;
use crate::storage::mem::MemDisk;
use crate::storage::task::CURRENT;

#[test]
fn names_tell_the_generation() {
    assert_eq!(generation_of("g00000001.durus"), Some(Generation(1)));
    assert_eq!(generation_of("g00000012-89abcdef.durus"), Some(Generation(12)));
    assert_eq!(generation_of("g123456789.durus"), Some(Generation(123_456_789)));
    for other in ["garbage.durus", "g1.durus", "g00000001", "orphans/g00000001-torn-at-5-9"] {
        assert_eq!(generation_of(other), None, "{other}");
    }
    assert!(is_building(&building_name(7)) && !is_building("g00000007.durus"));
}

#[test]
fn a_file_is_left_over_if_another_base_was_agreed() {
    let agreed = |of| (of == Generation(3)).then_some(Chain([0x33; 20]));
    let current = (Generation(4), "g00000004-44444444.durus");
    let is_left = |name: &str| is_left(name, current, agreed);
    for left in ["building-1.durus", "g00000003-00000000.durus", "g00000004-00000000.durus"] {
        assert!(is_left(left), "{left}");
    }
    // Of the second generation nobody knows any more, and the first was brought along.
    for kept in [
        "g00000001.durus",
        "g00000001-blank.durus",
        "g00000002-22222222.durus",
        "g00000003-33333333.durus",
        "g00000004-44444444.durus",
        "orphans/g00000005-55555555.durus-torn-at-5-9",
    ] {
        assert!(!is_left(kept), "{kept}");
    }
}

#[test]
fn a_base_is_found_by_its_name() {
    let names = ["g00000001-blank.durus", "g00000001.durus", "g00000003-33333333.durus"];
    let names = names.map(str::to_owned);
    let find = |generation, fill| file_of_base(&names, Generation(generation), &[fill; 20]);
    assert_eq!(find(1, 0x11).as_deref(), Some("g00000001.durus"));
    assert_eq!(find(2, 0x22), None);
    assert_eq!(find(3, 0x33).as_deref(), Some("g00000003-33333333.durus"));
    assert_eq!(find(3, 0x34), None, "another base");
}

/// Node 1, in generation 2 as all are.
fn in_the_second_generation(disk: &Arc<MemDisk>) -> Core {
    let mut first = Shelf::create(&**disk, FIRST).unwrap();
    let cut = commit(&mut first, &[(0, b"root", &[])]);
    let build = Build::new(FIRST.into(), Generation(2), cut, cut, "built".into());
    let Ok(JobOutcome::Built(built)) = Job::Build(build).run(&**disk) else { panic!("no base") };
    let name = file_name(Generation(2), built.base_hash);
    disk.rename("built", &name).unwrap();
    disk.set_link(CURRENT, &name).unwrap();
    let mut core = first_of_three(disk.clone(), Now { mono_us: 1, wall_us: 1 });
    let generation = own_generation(&core);
    elect_second(&mut core, 5, generation);
    core
}

/// Found by reading: a node had named its file, died, and missed how the pack was called off, began again and came to
/// another base. When it was back and in the new generation, the file had that generation's number, and stayed for ever.
#[test]
fn what_a_pack_has_left_is_found_by_its_base_too() {
    let disk = Arc::new(MemDisk::default());
    let mut core = in_the_second_generation(&disk);
    let left = ["building-7.durus", "g00000002-00000000.durus", "g00000003-00000000.durus"];
    for name in left {
        put(&disk, name, b"whatever");
    }
    let mut out = Vec::new();
    core.drive_generations(&mut out);
    let removed = out.iter().find_map(|action| match action {
        Action::Disk { work: DiskTask::Remove { names }, .. } => Some(names.clone()),
        _ => None,
    });
    assert_eq!(removed.expect("something is removed"), left);
}
