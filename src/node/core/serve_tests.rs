use std::sync::Arc;

use crate::node::core::start::FIRST;
use crate::node::core::testing::{carry_out, first_of, open_master, says};
use crate::node::core::{Action, Core, Input};
use crate::proto::control::Pause;
use crate::proto::control::command::Kind as Command;
use crate::proto::control::peer_message::Kind as Message;
use crate::proto::replication as pb;
use crate::proto::replication::client_reply::Answer;
use crate::proto::replication::client_request::Ask;
use crate::shelf::testing::commit;
use crate::shelf::{Kind, Shelf};
use crate::storage::mem::MemDisk;
use crate::types::{Epoch, NodeId, Now, Oid, Seq};

/// A master that believed it would store a commit whose client had never heard of what it may have read: after a
/// failover other transactions have those numbers.
#[test]
fn what_a_client_was_told_ahead_counts_only_if_it_is_in_our_file() {
    let disk = Arc::new(MemDisk::default());
    let mut shelf = Shelf::create(&*disk, FIRST).unwrap();
    commit(&mut shelf, &[(0, b"root", &[])]);
    let at = shelf.tip().offset;
    let start = crate::shelf::testing::append(&mut shelf, Kind::EpochStart, &[]);
    shelf.file().write_at(at, &start).unwrap();
    commit(&mut shelf, &[(1, b"of the later epoch", &[])]);
    let (first, later) = (shelf.tip_at(Seq(1)).unwrap().unwrap().epoch, shelf.tip().epoch);
    let core = first_of(1, disk, Now { mono_us: 1, wall_us: 1 });
    let ahead = |epoch, seq| core.known_ahead(epoch, Seq(seq)).unwrap();
    assert_eq!(ahead(first, 1), Some(Seq(1)));
    assert_eq!(ahead(later, 3), Some(Seq(3)));
    assert_eq!(ahead(Epoch(later.0 + 1), 3), None, "another history");
    assert_eq!(ahead(later, 4), None, "not here");
    assert_eq!(ahead(Epoch(0), 0), None, "nothing was told");
}

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

fn registers(boot: u64) -> Message {
    Message::Register(pb::Register { boot, ..pb::Register::default() })
}

fn asks(boot: u64, id: u64, ask: Ask) -> Message {
    Message::ClientRequest(pb::ClientRequest { epoch: 0, boot, id, ask: Some(ask) })
}

/// Boots and requests that were answered, but for "register first".
fn answered(actions: &[Action]) -> Vec<(u64, u64)> {
    let answers = actions.iter().filter_map(|action| match action {
        Action::Send { message, .. } => match &message.kind {
            Some(Message::ClientReply(reply)) => Some(reply),
            _ => None,
        },
        _ => None,
    });
    answers
        .filter(|reply| !matches!(reply.answer, Some(Answer::RegisterFirst(_))))
        .map(|reply| (reply.boot, reply.id))
        .collect()
}

/// Found by the soak (seed 8107301): a request for oids waited for the next block, and its node was started anew. A
/// session of the process that was gone got them, with the root's oid, which nobody could ever store then.
#[test]
fn what_a_gone_process_asked_for_is_given_to_nobody() {
    let mut core = open_master(0, at(0));
    let oids = |session| Ask::NewOids(pb::NewOids { session, count: 2 });
    says(&mut core, at(1), 2, registers(21));
    says(&mut core, at(2), 2, asks(21, 1, oids(8)));
    says(&mut core, at(3), 2, registers(22));
    let mut out = says(&mut core, at(4), 2, asks(22, 1, oids(3)));
    core.use_block(Oid(0), Oid(100), &mut out);
    assert_eq!(answered(&out), [(22, 1)]);
    let owner = core.master().unwrap().oids.owner(Oid::ROOT).unwrap();
    assert_eq!((owner.node, owner.session), (NodeId(2), 3));
}

/// Found by reading, for the one above: the answer named the process that had registered since, which numbers its
/// requests from the beginning, and might take it for that of its own read, or of its own commit.
#[test]
fn an_answer_goes_to_the_process_that_asked() {
    let mut core = open_master(0, at(0));
    says(&mut core, at(1), 2, registers(21));
    says(&mut core, at(2), 2, asks(21, 1, Ask::Sync(pb::Sync {})));
    core.drive_confirm(&mut Vec::new());
    says(&mut core, at(3), 2, registers(22));
    let confirm = pb::ConfirmReply { epoch: 0, boot: 11, round: 1 };
    let out = says(&mut core, at(4), 3, Message::ConfirmReply(confirm));
    assert_eq!(answered(&out), [(21, 1)]);
}

/// The heir may have died: what is held for it is no more than late.
#[test]
fn what_is_held_for_an_heir_goes_on_by_itself() {
    let mut core = open_master(0, at(0));
    says(&mut core, at(1), 2, registers(21));
    let oids = Ask::NewOids(pb::NewOids { session: 3, count: 1 });
    says(&mut core, at(2), 2, asks(21, 1, oids));
    core.use_block(Oid(0), Oid(100), &mut Vec::new());
    let tip = core.shelf.tip().seq;
    core.now = at(10);
    core.hold_commits(NodeId(2));
    let record = crate::shelf::testing::record(0, b"root", &[]);
    let commit = Ask::Commit(pb::Commit {
        commit_id: vec![7; 16].into(),
        session: 3,
        base_seq: tip.0,
        records: vec![pb::ObjectRecord { oid: 0, record }],
        ..pb::Commit::default()
    });
    says(&mut core, at(11), 2, asks(21, 2, commit));
    let mut seq_at = |ms| {
        core.now = at(ms);
        core.drive_held(&mut Vec::new());
        (core.shelf.tip().seq, core.handover_due_us())
    };
    let due = at(310).mono_us;
    assert_eq!(seq_at(309), (tip, Some(due)));
    assert_eq!(seq_at(310), (tip.next(), None));
}

/// Found by reading: what a client asked of a master that leads Raft, too, went into the log unlooked at, and a pack began
/// while elections were paused, or where there was no room for it.
#[test]
fn a_client_s_pack_begins_only_if_anybody_s_could() {
    let mut core = first_of(1, Arc::new(MemDisk::default()), at(0));
    let mut ms = 0;
    let mut until = |core: &mut Core, what: &str, is_so: &dyn Fn(&Core) -> bool| {
        let end = ms + 10_000;
        while !is_so(core) {
            assert!(ms < end, "{what} takes too long");
            ms += 10;
            let mut out = Vec::new();
            core.step(at(ms), Input::Tick, &mut out);
            carry_out(core, at(ms), out);
        }
        at(ms)
    };
    let pause = |core: &mut Core, paused| {
        let pause = Pause { paused, asked_by: "ann".into() };
        core.propose(Command::Pause(pause), &mut Vec::new());
    };
    let ask = |core: &mut Core, now: Now, id: u64| {
        let (epoch, boot) = (core.promised.0, core.setup.boot.0);
        let ask = Some(Ask::Pack(pb::Pack {}));
        let request = pb::ClientRequest { epoch, boot, id, ask };
        let out = says(core, now, 1, Message::ClientRequest(request));
        carry_out(core, now, out)
    };
    until(&mut core, "the first election", &|core| core.control.is_open());
    pause(&mut core, true);
    let now = until(&mut core, "a pause", &|core| core.control.paused());
    ask(&mut core, now, 1001);
    assert!(core.control.pack().is_none(), "elections are paused, and a pack ends in one");
    pause(&mut core, false);
    let now = until(&mut core, "its end", &|core| !core.control.paused());
    ask(&mut core, now, 1002);
    assert!(core.control.pack().is_some());
}
