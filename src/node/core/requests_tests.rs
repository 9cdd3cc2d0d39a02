use std::sync::Arc;

use super::*;
use crate::node::core::testing::{
    elect_second, first_of_three, make_open_master, open_master, own_generation, says,
};
use crate::storage::mem::MemDisk;

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

const CLIENT: ConnId = ConnId(1);

/// A node that serves, with a client.
fn serving() -> Core {
    let mut core = first_of_three(Arc::new(MemDisk::default()), at(0));
    core.serving = true;
    opens(&mut core, CLIENT);
    core
}

fn opens(core: &mut Core, conn: ConnId) -> Vec<Action> {
    let mut out = Vec::new();
    core.on_client(Input::ClientOpened { conn, address: String::new() }, &mut out);
    out
}

fn client_says(core: &mut Core, conn: ConnId, bytes: &[u8]) -> Vec<Action> {
    let mut out = Vec::new();
    core.on_client(Input::ClientData { conn, bytes: Bytes::copy_from_slice(bytes) }, &mut out);
    out
}

/// What clients are sent.
fn sent(out: &[Action]) -> Vec<u8> {
    let of = |action: &Action| match action {
        Action::ClientSend { bytes, .. } => bytes.to_vec(),
        _ => Vec::new(),
    };
    out.iter().flat_map(of).collect()
}

fn closed(out: &[Action]) -> Vec<ConnId> {
    let of = |action: &Action| match action {
        Action::ClientClose { conn, .. } => Some(*conn),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

/// The node, as number 2, sends the master of this epoch what is due, and hears the answers.
fn asks(node: &mut Core, ms: u64, master: &mut Core) -> Vec<Action> {
    let (epoch, mut due) = (master.promised, Vec::new());
    node.now = at(ms);
    node.send_open(epoch, NodeId(2), &mut due);
    tells(node, ms, master, due)
}

fn registers(node: &mut Core, ms: u64, master: &mut Core) -> Vec<Action> {
    let (epoch, mut due) = (master.promised, Vec::new());
    node.now = at(ms);
    node.send_register(epoch, NodeId(2), &mut due);
    tells(node, ms, master, due)
}

fn nothing_is_held(epoch: u64) -> Kind {
    Kind::Register(pb::Register { epoch, boot: 11, ..pb::Register::default() })
}

fn tells(node: &mut Core, ms: u64, master: &mut Core, due: Vec<Action>) -> Vec<Action> {
    let kinds = |actions: Vec<Action>| {
        actions.into_iter().filter_map(|action| match action {
            Action::Send { to: NodeId(2), message } => message.kind,
            _ => None,
        })
    };
    let mut out = Vec::new();
    for kind in kinds(due) {
        for answer in kinds(says(master, at(ms), 2, kind)) {
            match answer {
                Kind::ClientReply(reply) => {
                    node.on_client_reply(NodeId(2), reply, &mut out).unwrap()
                }
                Kind::RegisterReply(reply) => {
                    node.on_register_reply(NodeId(2), reply, &mut out).unwrap();
                }
                _ => {}
            }
        }
    }
    out
}

/// Found by the simulator (soak, seed 8099700): a master that had stood still answered after another was elected, and a
/// node that had already told the new master what its sessions hold took oids of it. The new master gave them out too.
#[test]
fn what_an_older_master_gives_out_is_refused_once_a_newer_was_told_what_we_hold() {
    let now = Now { mono_us: 1, wall_us: 1 };
    let mut core = first_of_three(Arc::new(MemDisk::default()), now);
    let ask = Ask::NewOids(pb::NewOids { session: 5, count: 16 });
    core.requests.open.insert(61, Open { ask, sent: Some((Epoch(4), now)) });
    core.requests.register_sent = Some((Epoch(5), now));
    let boot = core.setup.boot.0;
    let grant = |epoch| pb::ClientReply {
        epoch,
        boot,
        id: 61,
        answer: Some(Answer::Oids(pb::OidGrant { oids: vec![16360] })),
    };
    core.on_client_reply(NodeId(2), grant(4), &mut Vec::new()).unwrap();
    assert!(core.requests.open.contains_key(&61), "the new master is asked");
    core.requests.open.get_mut(&61).unwrap().sent = Some((Epoch(5), now));
    core.on_client_reply(NodeId(2), grant(5), &mut Vec::new()).unwrap();
    assert!(!core.requests.open.contains_key(&61));
}

/// The loop takes who is far behind its deadline for a process that was stopped, and waits for what came meanwhile: with a
/// deadline of 0, it did so at every turn of a bulk load.
#[test]
fn a_bulk_load_goes_on_at_once_and_not_in_the_past() {
    let now = Now { mono_us: 1_000_000, wall_us: 1 };
    let mut core = first_of_three(Arc::new(MemDisk::default()), now);
    core.step(now, Input::Tick, &mut Vec::new());
    assert!(core.deadline() > now.mono_us);
    let (conn, mut out) = (ConnId(1), Vec::new());
    core.serving = true;
    core.on_client(Input::ClientOpened { conn, address: String::new() }, &mut out);
    let oids = (0..300u64).flat_map(u64::to_be_bytes);
    let bulk = [&b"B"[..], &300u32.to_be_bytes()].concat().into_iter().chain(oids);
    core.on_client(Input::ClientData { conn, bytes: bulk.collect() }, &mut out);
    for id in 1..=2 {
        with_view!(core, &mut out, |sessions, now, view, actions| {
            sessions.synced(id, Seq(0), now, view, actions)
        });
    }
    let answered = |out: &[Action]| -> usize {
        let of = |action: &Action| match action {
            Action::ClientSend { bytes, .. } => bytes.len(),
            _ => 0,
        };
        out.iter().map(of).sum()
    };
    assert!(core.sessions.reads_on() && answered(&out) < 300);
    assert_eq!(core.deadline(), now.mono_us);
    core.step(now, Input::Tick, &mut out);
    assert!(!core.sessions.reads_on());
    assert_eq!(answered(&out), 300, "a byte for each object that is not there");
}

/// Found by reading: every `P` of one read, 131,072 of them, was a request of its own, and all of them waited for a master.
#[test]
fn a_pack_is_asked_for_once_until_that_is_answered() {
    let mut core = serving();
    let asked = |core: &Core| -> Vec<u64> {
        let packs = core.requests.open.iter().filter(|(_, open)| matches!(open.ask, Ask::Pack(_)));
        packs.map(|(id, _)| *id).collect()
    };
    let out = client_says(&mut core, CLIENT, b"PPP");
    assert_eq!(sent(&out), b"OOO");
    let [first] = asked(&core)[..] else { panic!("{:?}", asked(&core)) };
    opens(&mut core, ConnId(2));
    assert_eq!(sent(&client_says(&mut core, ConnId(2), b"P")), b"O");
    // Across masters, too.
    for epoch in [4, 5] {
        core.send_open(Epoch(epoch), NodeId(2), &mut Vec::new());
        client_says(&mut core, CLIENT, b"P");
        assert_eq!(asked(&core), [first]);
    }
    let done = Some(Answer::Done(true));
    let boot = core.setup.boot.0;
    let reply = pb::ClientReply { epoch: 5, boot, id: first, answer: done };
    core.on_client_reply(NodeId(2), reply, &mut Vec::new()).unwrap();
    assert!(asked(&core).is_empty());
    client_says(&mut core, CLIENT, b"P");
    assert!(matches!(asked(&core)[..], [next] if next > first));
}

/// Found by reading: a master that has heard that a session is gone says nothing of its oids, so they were asked for again
/// and again. The next master gave them to the session that was gone, the root's oid among them: in an empty database
/// nobody could ever store a root then.
#[test]
fn oids_for_a_client_that_has_left_are_asked_for_no_more() {
    let mut node = serving();
    client_says(&mut node, CLIENT, b"M\x02");
    let mut second = open_master(4, at(0));
    says(&mut second, at(1), 2, nothing_is_held(4));
    asks(&mut node, 2, &mut second);
    node.on_client(Input::ClientClosed { conn: CLIENT }, &mut Vec::new());
    asks(&mut node, 3, &mut second);
    second.use_block(Oid(0), Oid(100), &mut Vec::new());
    assert_eq!(second.master().unwrap().oids.owner(Oid::ROOT), None, "it has heard of it");
    let mut third = open_master(5, at(400));
    says(&mut third, at(400), 2, nothing_is_held(5));
    third.use_block(Oid(0), Oid(100), &mut Vec::new());
    asks(&mut node, 401, &mut third);
    assert_eq!(third.master().unwrap().oids.owner(Oid::ROOT), None);
    let wanted = node.requests.open.values();
    assert_eq!(wanted.filter(|open| matches!(open.ask, Ask::NewOids(_))).count(), 0);
}

/// The walk of it: what sessions do is in `durus::session_tests`.
#[test]
fn who_has_stored_the_root_by_a_master_that_died_is_acknowledged_by_the_next() {
    let mut node = serving();
    let mut master = open_master(4, at(0));
    says(&mut master, at(1), 2, nothing_is_held(4));
    master.use_block(Oid(0), Oid(100), &mut Vec::new());
    client_says(&mut node, CLIENT, b"N");
    assert_eq!(sent(&asks(&mut node, 2, &mut master)), [0; 8]);
    client_says(&mut node, CLIENT, b"C");
    let mut out = Vec::new();
    for ms in [3, 4] {
        asks(&mut node, ms, &mut master);
        let is_sync = |open: &Open| matches!(open.ask, Ask::Sync(_));
        let id = *node.requests.open.iter().find(|(_, open)| is_sync(open)).unwrap().0;
        let (boot, answer) = (node.setup.boot.0, Some(Answer::SyncedSeq(0)));
        let reply = pb::ClientReply { epoch: 4, boot, id, answer };
        node.on_client_reply(NodeId(2), reply, &mut out).unwrap();
    }
    assert_eq!(sent(&out), [0; 4], "nothing has changed");
    let record = crate::shelf::testing::record(0, b"root", &[]);
    let len = 8 + record.len() as u32;
    let object = [&len.to_be_bytes()[..], &[0; 8], &record].concat();
    let data = [&(object.len() as u32).to_be_bytes()[..], &object].concat();
    client_says(&mut node, CLIENT, &data);
    asks(&mut node, 5, &mut master);
    // Its answer is not heard. The next one has everything.
    let stored = master.shelf.tip().seq;
    assert_eq!(stored, Seq(1));
    master.shelf.written_to(master.shelf.tip().offset);
    master.shelf.index_to(stored);
    master.committed = stored;
    master.learn_acknowledged(stored);
    make_open_master(&mut master, 5);
    let generation = own_generation(&node);
    elect_second(&mut node, 5, generation);
    node.promised = Epoch(5);
    assert_eq!(closed(&registers(&mut node, 10, &mut master)), []);
    node.applied_epoch = Epoch(5);
    assert_eq!(closed(&asks(&mut node, 11, &mut master)), []);
    assert!(node.requests.open.is_empty(), "it was found by its id");
}

/// Found by reading: it went on to take clients, whose first read waited for what it takes from no master any more.
#[test]
fn who_comes_to_be_suspect_turns_new_clients_away() {
    let mut core = serving();
    core.suspect = "its disk was rolled back".into();
    assert_eq!(closed(&opens(&mut core, ConnId(2))), [ConnId(2)]);
    assert_eq!(sent(&client_says(&mut core, ConnId(2), b"P")), b"", "it is gone");
    assert_eq!(sent(&client_says(&mut core, CLIENT, b"P")), b"O");
}
