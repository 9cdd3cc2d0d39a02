//! Traces: what node 1, which has an old file, asks of nodes 2 (the master) and 3, and what it makes of their answers.

use super::*;
use crate::control::State;
use crate::node::core::testing::first_of_three;
use crate::node::core::{FIRST, Input};
use crate::pack::Build;
use crate::pack::blocks::Lister;
use crate::proto::control as control_pb;
use crate::proto::control::PeerMessage;
use crate::shelf::Shelf;
use crate::shelf::testing::commit;
use crate::storage::Disk;
use crate::storage::mem::MemDisk;
use crate::storage::task::perform;
use prost::Message;

const BLOCK: u64 = 64;

/// The base of a second generation, as nodes 2 and 3 have it.
struct Base {
    bytes: Vec<u8>,
    blocks: Blocks,
    record: control_pb::GenerationRecord,
}

fn list(bytes: &[u8]) -> Blocks {
    let mut lister = Lister::new(BLOCK);
    lister.push(bytes);
    lister.finish()
}

fn base(agreed: bool) -> Base {
    let disk = MemDisk::new();
    let mut first = Shelf::create(&disk, FIRST).unwrap();
    commit(&mut first, &[(0, b"root", &[1, 2])]);
    let cut = commit(&mut first, &[(1, &[b'a'; 150], &[]), (2, &[b'b'; 150], &[])]);
    let build = Build::new(FIRST.into(), Generation(2), cut, cut, "base".into());
    let Ok(JobOutcome::Built(built)) = Job::Build(build.with_blocks(BLOCK)).run(&disk) else {
        panic!("no base")
    };
    let mut bytes = vec![0; built.base_len as usize];
    disk.open("base").unwrap().read_at(0, &mut bytes).unwrap();
    let blocks = list(&bytes);
    assert_eq!(built.blocks.as_deref(), Some(&blocks));
    assert!(blocks.count() > 6);
    let record = control_pb::GenerationRecord {
        number: 2,
        base_hash: wire::put_chain(built.base_hash),
        cut_seq: cut.0,
        cut_chain: wire::put_chain(first.tip().chain),
        block_root: wire::put_root(Some(blocks.root()).filter(|_| agreed)),
        ..Default::default()
    };
    Base { bytes, blocks, record }
}

/// Node 2 is master of this generation; the first one was another than what node 1 has, then came those `before`.
fn state(base: &Base, before: &[control_pb::GenerationRecord]) -> State {
    let member = |id: u64| control_pb::Member {
        id,
        name: format!("n{id}"),
        disk_uuid: vec![id as u8; 16].into(),
        role: "voter".into(),
        may_be_master: true,
        ..Default::default()
    };
    let floor = pb::Position {
        generation: base.record.number,
        base_hash: base.record.base_hash.clone(),
        tip: Some(wire::put_tip(&crate::types::Tip::default())),
    };
    let elect = control_pb::Elect {
        epoch: 1,
        master: 2,
        boot: 22,
        voters: vec![1, 2, 3],
        generation: Some(base.record.clone()),
        floor: Some(floor),
        floor_holder: 2,
        ..Default::default()
    };
    let first = control_pb::GenerationRecord {
        number: 1,
        base_hash: vec![9; 20].into(),
        ..Default::default()
    };
    let state = control_pb::ControlState {
        format: 1,
        members: (1..=3).map(member).collect(),
        epoch: 1,
        mastership: Some(elect),
        generations: [vec![first], before.to_vec(), vec![base.record.clone()]].concat(),
        ..Default::default()
    };
    State::decode(&state.encode_to_vec()).unwrap()
}

struct Node {
    core: Core,
    disk: MemDisk,
    now: Now,
    /// What it asked for and was not answered: of whom.
    asked: Vec<(u64, Kind)>,
}

impl Node {
    fn start(disk: &MemDisk, base: &Base) -> Node {
        Node::start_after(disk, base, &[])
    }

    fn start_after(disk: &MemDisk, base: &Base, before: &[control_pb::GenerationRecord]) -> Node {
        let now = Now { mono_us: 1, wall_us: 1 };
        let mut core = first_of_three(Arc::new(disk.clone()), now);
        core.control = state(base, before);
        let mut node = Node { core, disk: disk.clone(), now, asked: Vec::new() };
        node.after(1);
        node
    }

    fn after(&mut self, ms: u64) {
        self.now.mono_us += 1000 * ms;
        self.happens(Input::Tick);
    }

    /// And what it wants done with disks is done.
    fn happens(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            self.core.step(self.now, input, &mut out);
            for action in out {
                match action {
                    Action::Disk { task, work } => {
                        let done = perform(&self.disk, vec![(task, work)]);
                        let done = done.into_iter();
                        inputs.extend(done.map(|(task, result)| Input::DiskDone { task, result }));
                    }
                    Action::Job { job, work } => {
                        inputs.push(Input::JobDone { job, result: work.run(&self.disk) });
                    }
                    Action::Send { to, message } => self.asked.extend(question(to, message)),
                    _ => {}
                }
            }
        }
    }

    fn hears(&mut self, from: u64, kind: Kind) {
        let message = PeerMessage { kind: Some(kind) };
        let from_disk = [from as u8; 16];
        self.happens(Input::Peer { from: NodeId(from), from_disk, message });
    }

    /// They are asked whether they have the base, and say so; node 3 first.
    fn is_told_who_has_it(&mut self, have: &[u64]) {
        for (to, question) in std::mem::take(&mut self.asked).into_iter().rev() {
            let Kind::Probe(probe) = question else { panic!("{question:?}") };
            let has_file = have.contains(&to);
            let reply = pb::ProbeReply { id: probe.id, has_file, ..Default::default() };
            self.hears(to, Kind::ProbeReply(reply));
        }
    }

    /// The list is asked of this one, and given in parts.
    fn is_listed(&mut self, of: u64, lists: &Blocks) {
        while let Some((to, Kind::BlockListRequest(request))) = self.asked.first().cloned() {
            assert_eq!(to, of, "whom it asks for the list");
            self.asked.clear();
            let list = pb::BlockList {
                id: request.id,
                has_file: true,
                base_len: lists.base_len(),
                block_bytes: BLOCK,
                first: request.first,
                hashes: lists.part(request.first, 3),
                ..Default::default()
            };
            self.hears(of, Kind::BlockList(list));
        }
    }

    /// The blocks it has asked for, and whom.
    fn wants(&self) -> Vec<(u64, u64)> {
        let block = |kind: &Kind| match kind {
            Kind::Fetch(fetch) => fetch.offset / BLOCK,
            other => panic!("{other:?}"),
        };
        self.asked.iter().map(|(to, kind)| (*to, block(kind))).collect()
    }

    /// The oldest question for a block is answered with what these bytes have there.
    fn is_given(&mut self, bytes: &[u8]) {
        let (to, Kind::Fetch(fetch)) = self.asked.remove(0) else { panic!("no question") };
        let data = &bytes[fetch.offset as usize..][..fetch.len as usize];
        let data = Bytes::copy_from_slice(data);
        self.hears(
            to,
            Kind::FetchReply(pb::FetchReply { id: fetch.id, offset: fetch.offset, data }),
        );
    }

    fn is_given_all(&mut self, bytes: &[u8]) {
        while matches!(self.asked.first(), Some((_, Kind::Fetch(_)))) {
            self.is_given(bytes);
        }
    }

    fn partials(&self) -> Vec<String> {
        let names = self.disk.list().unwrap().into_iter();
        names.filter(|name| name.starts_with(PARTIAL)).collect()
    }

    fn partial(&self) -> Option<String> {
        self.partials().pop()
    }
}

fn question(to: NodeId, message: PeerMessage) -> Option<(u64, Kind)> {
    match message.kind? {
        kind @ (Kind::Probe(_) | Kind::BlockListRequest(_) | Kind::Fetch(_)) => Some((to.0, kind)),
        _ => None,
    }
}

#[test]
fn a_bad_block_is_refused_and_after_a_crash_only_the_rest_is_fetched() {
    let (disk, base) = (MemDisk::new(), base(true));
    let mut node = Node::start(&disk, &base);
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(3, &base.blocks);
    assert_eq!(node.wants(), [(3, 0), (3, 1), (3, 2)], "the master is spared");
    node.is_given(&base.bytes);
    assert_eq!(node.wants(), [(3, 1), (3, 2), (3, 3)]);
    let mut rotten = base.bytes.clone();
    rotten[BLOCK as usize + 5] ^= 1;
    node.is_given(&rotten);
    // Of the master now: that one, and what the other was to give; its late answer is as good as any.
    assert_eq!(node.wants(), [(3, 2), (3, 3), (2, 1), (2, 2), (2, 3)]);
    node.is_given(&base.bytes);
    node.asked.remove(0);
    node.is_given(&base.bytes);
    let told = node.core.ladder.report(node.now);
    assert_eq!((told.refused_bytes, told.now.unwrap().done_bytes), (BLOCK, 3 * BLOCK));

    // Killed. What is in the file counts after it was proved again; one block of it was damaged meanwhile.
    let name = node.partial().expect("an unfinished base");
    disk.open(&name).unwrap().write_at(2 * BLOCK, b"rot").unwrap();
    let mut node = Node::start(&disk, &base);
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(3, &base.blocks);
    assert_eq!(node.wants(), [(3, 2), (3, 3), (3, 4)]);
    node.is_given_all(&base.bytes);
    assert_eq!(node.core.shelf.generation(), Generation(2));
    assert!(node.core.is_current_file());
    assert_eq!(node.partial(), None);
    let told = node.core.ladder.report(node.now);
    assert_eq!(told.reused_bytes, 2 * BLOCK);
    assert_eq!(told.rungs[2].wire_bytes + told.reused_bytes, base.bytes.len() as u64);
    assert_eq!(told.last(), Rung::Base);
}

#[test]
fn a_list_that_is_not_the_agreed_one_is_refused() {
    let (disk, base) = (MemDisk::new(), base(true));
    let mut node = Node::start(&disk, &base);
    let mut other = base.bytes.clone();
    other[100] ^= 1;
    node.is_told_who_has_it(&[3]);
    node.is_listed(3, &list(&other));
    assert_eq!(node.asked.len(), 0, "nobody else has it, and node 3 is not asked for a while");
    assert_eq!(node.partial(), None);
}

/// No root was agreed: the base hash is the judge, and whoever gave the list is to blame.
#[test]
fn without_a_root_a_false_list_is_found_out_at_the_end() {
    let (disk, base) = (MemDisk::new(), base(false));
    let mut node = Node::start(&disk, &base);
    let mut other = base.bytes.clone();
    other[3 * BLOCK as usize] ^= 1;
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(3, &list(&other));
    node.is_given_all(&other);
    assert_eq!(node.core.shelf.generation(), Generation(1), "that was not the base");
    assert!(matches!(node.core.rebase, Some(Rebase::Failed { .. })));
    assert!(node.partial().is_some());
    node.after(1100);
    // The other's list; and of the blocks only the one that was false.
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(2, &base.blocks);
    assert_eq!(node.wants(), [(2, 3)]);
    node.is_given_all(&base.bytes);
    assert!(node.core.is_current_file());
}

#[test]
fn unfinished_bases_that_nobody_wants_are_removed() {
    let (disk, base) = (MemDisk::new(), base(true));
    // From an older program; of another base of this generation; of one that Raft has not told of yet.
    let names = ["fetching.durus", "fetching-g00000002-00000000.durus"];
    let to_come = "fetching-g00000003-00000000.durus";
    names.iter().chain([&to_come]).for_each(|name| drop(disk.create(name).unwrap()));
    let mut node = Node::start(&disk, &base);
    assert_eq!(node.partials(), [to_come]);
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(3, &base.blocks);
    node.is_given_all(&base.bytes);
    assert!(node.core.is_current_file());
    assert_eq!(node.partials(), [to_come]);
    // In step from the start, it has no use for one of its own generation.
    drop(disk.create(names[1]).unwrap());
    let node = Node::start(&disk, &base);
    assert_eq!(node.partials(), [to_come]);
}

/// There was a pack since. What was begun leads to the new generation too, as long as somebody has the rest of it.
#[test]
fn a_base_that_was_begun_is_gone_on_with_after_a_pack() {
    let (disk, begun) = (MemDisk::new(), base(true));
    let mut node = Node::start(&disk, &begun);
    node.is_told_who_has_it(&[2, 3]);
    node.is_listed(3, &begun.blocks);
    node.is_given(&begun.bytes);
    let generation = |node: &Node| match &node.asked[0].1 {
        Kind::Probe(probe) => probe.generation,
        other => panic!("{other:?}"),
    };
    let mut packed = base(true);
    packed.record.number = 3;
    packed.record.base_hash = vec![7; 20].into();
    let mut node = Node::start_after(&disk, &packed, std::slice::from_ref(&begun.record));
    assert_eq!((generation(&node), node.partials().len()), (2, 1));
    node.is_told_who_has_it(&[]);
    assert!(matches!(node.core.rebase, Some(Rebase::Failed { .. })), "it is gone everywhere");
    node.after(1100);
    assert_eq!((generation(&node), node.partials().len()), (3, 0));
}
