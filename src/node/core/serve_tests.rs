use std::sync::Arc;

use roaring::RoaringTreemap;

use crate::node::core::start::FIRST;
use crate::node::core::testing::{carry_out, first_of, open_master, says};
use crate::node::core::{Action, Core, Input};
use crate::proto::control::command::Kind as Command;
use crate::proto::control::peer_message::Kind as Message;
use crate::proto::control::{PackCancel, Pause};
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

/// What node `from` says, and what goes on then.
fn hears(core: &mut Core, now: Now, from: u64, message: Message) -> Vec<Action> {
    let mut out = says(core, now, from, message);
    core.drive_held(&mut out);
    out
}

/// Oids 0 and 1 are stored; sessions 3 and 4 of node 2 may have read both.
fn two_sessions() -> Core {
    let mut core = open_master(0, at(0));
    hears(&mut core, at(1), 2, registers(21));
    let oids = Ask::NewOids(pb::NewOids { session: 3, count: 2 });
    hears(&mut core, at(1), 2, asks(21, 1, oids));
    core.use_block(Oid(0), Oid(100), &mut Vec::new());
    let base = core.shelf.tip().seq;
    hears(&mut core, at(1), 2, stores(2, 3, &[0, 1], base));
    core.committed = base.next();
    core.shelf.index_to(base.next());
    core
}

/// A commit of a client that was told of everything up to `base`.
fn stores(id: u64, session: u64, oids: &[u64], base: Seq) -> Message {
    let mut touched = Vec::new();
    RoaringTreemap::from_iter([0, 1]).serialize_into(&mut touched).unwrap();
    let record = |oid: &u64| pb::ObjectRecord {
        oid: *oid,
        record: crate::shelf::testing::record(*oid, b"it", &[]),
    };
    let commit = pb::Commit {
        commit_id: vec![id as u8; 16].into(),
        session,
        base_seq: base.0,
        records: oids.iter().map(record).collect(),
        touched: touched.into(),
        has_touched: true,
        ..pb::Commit::default()
    };
    asks(21, id, Ask::Commit(commit))
}

fn turn(id: u64, session: u64, touched: Option<u64>) -> Message {
    let mut bytes = Vec::new();
    RoaringTreemap::from_iter(touched).serialize_into(&mut bytes).unwrap();
    let has_touched = touched.is_some();
    asks(21, id, Ask::Turn(pb::Turn { session, touched: bytes.into(), has_touched }))
}

/// The answers to node 2, by request.
fn answers(actions: Vec<Action>) -> Vec<(u64, Answer)> {
    let answer = |action| match action {
        Action::Send { message, .. } => match message.kind {
            Some(Message::ClientReply(reply)) => Some((reply.id, reply.answer.unwrap())),
            _ => None,
        },
        _ => None,
    };
    actions.into_iter().filter_map(answer).collect()
}

#[test]
fn in_its_turn_a_session_is_not_overtaken() {
    let mut core = two_sessions();
    let base = core.shelf.tip().seq;
    let out = hears(&mut core, at(2), 2, turn(3, 3, Some(1)));
    assert_eq!(answers(out), [(3, Answer::TurnSeq(base.0))]);
    // The next one waits, and so does who would store what the first may have read, and nobody else.
    assert_eq!(answers(hears(&mut core, at(3), 2, turn(4, 4, None))), []);
    let (one, other) = (stores(5, 5, &[1], base), stores(6, 6, &[0], base));
    assert_eq!(answers(hears(&mut core, at(4), 2, one)), []);
    assert_eq!(core.shelf.tip().seq, base);
    hears(&mut core, at(5), 2, other);
    assert_eq!(core.shelf.tip().seq, base.next());
    // Asked for again by its id alone, it is here.
    let again = pb::Commit { commit_id: vec![5; 16].into(), again: true, ..pb::Commit::default() };
    assert_eq!(answers(hears(&mut core, at(5), 2, asks(21, 5, Ask::Commit(again)))), []);
    // The first one's commit ends its turn. What was held is judged then: it comes too late.
    let out = hears(&mut core, at(6), 2, stores(7, 3, &[1], base.next()));
    assert_eq!(core.shelf.tip().seq, base.next().next());
    let [(5, Answer::Conflict(_)), (4, Answer::TurnSeq(seq))] = answers(out)[..] else { panic!() };
    assert_eq!(Seq(seq), core.shelf.tip().seq, "the next one hears of all that");
    // It gives up; nobody is held back any more.
    let over = asks(21, 8, Ask::EndTurn(pb::EndTurn { session: 4 }));
    assert_eq!(answers(hears(&mut core, at(7), 2, over)), [(8, Answer::Done(true))]);
    let before = core.shelf.tip().seq;
    hears(&mut core, at(8), 2, stores(9, 5, &[1], before));
    assert_eq!(core.shelf.tip().seq, before.next());
}

#[test]
fn a_turn_that_is_not_used_lapses() {
    let mut core = two_sessions();
    let base = core.shelf.tip().seq;
    hears(&mut core, at(2), 2, turn(3, 3, None));
    hears(&mut core, at(3), 2, stores(4, 4, &[1], base));
    hears(&mut core, at(4), 2, turn(5, 5, None));
    assert_eq!((core.shelf.tip().seq, core.turn_due_us()), (base, Some(at(32).mono_us)));
    let mut tick = |ms| {
        let mut out = Vec::new();
        core.now = at(ms);
        core.drive_held(&mut out);
        (answers(out), core.shelf.tip().seq)
    };
    assert_eq!(tick(31), (vec![], base));
    let (said, tip) = tick(32);
    assert_eq!((said, tip), (vec![(5, Answer::TurnSeq(tip.0))], base.next()));
}

/// Found by reading: a commit was held, its node was started anew, and its oids were given to another session.
#[test]
fn what_is_held_of_a_gone_process_is_not_judged() {
    let mut core = two_sessions();
    let base = core.shelf.tip().seq;
    hears(&mut core, at(2), 3, registers(31));
    let turn = pb::Turn { session: 1, ..pb::Turn::default() };
    hears(&mut core, at(2), 3, asks(31, 1, Ask::Turn(turn)));
    hears(&mut core, at(3), 2, stores(4, 4, &[1], base));
    hears(&mut core, at(4), 2, registers(22));
    let over = asks(31, 2, Ask::EndTurn(pb::EndTurn { session: 1 }));
    hears(&mut core, at(5), 3, over);
    assert_eq!((core.shelf.tip().seq, core.master().unwrap().held.len()), (base, 0));
    // Nor does it have its turn.
    let turn = |session| Ask::Turn(pb::Turn { session, ..pb::Turn::default() });
    hears(&mut core, at(6), 2, asks(22, 1, turn(7)));
    hears(&mut core, at(7), 3, asks(31, 3, turn(1)));
    let out = hears(&mut core, at(8), 2, registers(23));
    assert_eq!(answered(&out), [(31, 3)]);
}

/// A node alone, whose clients ask for packs.
struct Alone {
    core: Core,
    ms: u64,
    asked: u64,
}

impl Alone {
    fn open() -> Alone {
        let core = first_of(1, Arc::new(MemDisk::default()), at(0));
        let mut alone = Alone { core, ms: 0, asked: 1000 };
        alone.until("the first election", &|core| core.control.is_open());
        alone
    }

    fn until(&mut self, what: &str, is_so: &dyn Fn(&Core) -> bool) {
        let end = self.ms + 10_000;
        while !is_so(&self.core) {
            assert!(self.ms < end, "{what} takes too long");
            self.ms += 10;
            let mut out = Vec::new();
            self.core.step(at(self.ms), Input::Tick, &mut out);
            carry_out(&mut self.core, at(self.ms), out);
        }
    }

    fn decide(&mut self, command: Command, what: &str, is_so: &dyn Fn(&Core) -> bool) {
        self.core.propose(command, &mut Vec::new());
        self.until(what, is_so);
    }

    /// What comes of it is still to be carried out.
    fn ask(&mut self) -> Vec<Action> {
        self.asked += 1;
        let (epoch, boot) = (self.core.promised.0, self.core.setup.boot.0);
        let ask = Some(Ask::Pack(pb::Pack {}));
        let request = pb::ClientRequest { epoch, boot, id: self.asked, ask };
        says(&mut self.core, at(self.ms), 1, Message::ClientRequest(request))
    }

    fn ask_once(&mut self) {
        let out = self.ask();
        carry_out(&mut self.core, at(self.ms), out);
    }
}

/// Found by reading: what a client asked of a master that leads Raft, too, went into the log unlooked at, and a pack began
/// while elections were paused, or where there was no room for it.
#[test]
fn a_client_s_pack_begins_only_if_anybody_s_could() {
    let mut alone = Alone::open();
    let pause = |alone: &Alone, paused| {
        let after = alone.core.control.pause_changed();
        Command::Pause(Pause { paused, asked_by: "ann".into(), after })
    };
    let pauses = pause(&alone, true);
    alone.decide(pauses, "a pause", &|core| core.control.paused());
    alone.ask_once();
    assert!(alone.core.control.pack().is_none(), "elections are paused, and a pack ends in one");
    let resumes = pause(&alone, false);
    alone.decide(resumes, "its end", &|core| !core.control.paused());
    alone.ask_once();
    assert!(alone.core.control.pack().is_some());
}

/// Found by reading: each `P` was a command in the Raft log until the first of them was applied, 131,072 of one read.
#[test]
fn many_clients_packs_are_one_command() {
    let mut alone = Alone::open();
    let before = alone.core.control.applied();
    let out: Vec<Action> = (0..100).flat_map(|_| alone.ask()).collect();
    carry_out(&mut alone.core, at(alone.ms), out);
    let begun = alone.core.control.pack().expect("it has begun");
    let (pack, generation) = (begun.id.0, begun.generation.0);
    let commands = alone.core.control.applied() - before;
    assert!(commands < 10, "{commands} commands");
    // After its end, the next.
    let cancel = PackCancel { pack, generation, why: "no".into(), asked_by: "ann".into() };
    let cancel = Command::PackCancel(cancel);
    alone.decide(cancel, "its end", &|core| core.control.pack().is_none());
    alone.ask_once();
    assert!(alone.core.control.pack().is_some());
}

/// What was proposed may be lost on its way to the leader.
#[test]
fn a_pack_of_which_nothing_came_can_be_asked_for_again() {
    let mut core = open_master(0, at(0));
    says(&mut core, at(1), 2, registers(21));
    for (ms, proposed_ms) in [(2, 2), (301, 2), (302, 302)] {
        let out = says(&mut core, at(ms), 2, asks(21, ms, Ask::Pack(pb::Pack {})));
        assert_eq!(answered(&out), [(21, ms)]);
        assert_eq!(core.master().unwrap().pack_asked, Some(at(proposed_ms)));
    }
}

/// Found by reading: a commit that its node had sent twice was in conflict with a pack's dead objects, and its client was told
/// so. The pack was called off, the second copy came, and what was called a conflict was stored.
#[test]
fn a_commit_that_was_a_conflict_stays_one() {
    let mut core = two_sessions();
    let base = core.shelf.tip().seq;
    let first = hears(&mut core, at(2), 2, stores(5, 4, &[1], Seq(base.0 - 1)));
    let told = answers(first);
    let [(5, Answer::Conflict(_))] = &told[..] else { panic!("{told:?}") };
    // Judged anew, it would be stored.
    let again = || stores(5, 4, &[1], base);
    assert_eq!(answers(hears(&mut core, at(3), 2, again())), told);
    assert_eq!(core.shelf.tip().seq, base);
    let id_alone = pb::Commit { commit_id: vec![5; 16].into(), again: true, ..Default::default() };
    assert_eq!(answers(hears(&mut core, at(4), 2, asks(21, 5, Ask::Commit(id_alone)))), told);
    // The session's next commit is another request.
    hears(&mut core, at(5), 2, stores(6, 4, &[1], base));
    assert_eq!(core.shelf.tip().seq, base.next());
}

/// A registration that was on its way for long is of a process that is no more: it would give back the oids that its
/// successor's sessions hold.
#[test]
fn a_late_registration_of_a_gone_process_is_not_taken() {
    let mut core = open_master(0, at(0));
    let beat =
        |boot| Message::Beat(Box::new(crate::proto::control::Beat { boot, ..Default::default() }));
    says(&mut core, at(1), 2, beat(22));
    says(&mut core, at(2), 2, registers(22));
    says(&mut core, at(3), 2, registers(21));
    assert_eq!(core.master().unwrap().registered[&NodeId(2)].boot.0, 22);
    says(&mut core, at(4), 2, beat(23));
    says(&mut core, at(5), 2, registers(23));
    assert_eq!(core.master().unwrap().registered[&NodeId(2)].boot.0, 23);
}
