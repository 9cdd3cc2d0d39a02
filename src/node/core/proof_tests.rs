use std::sync::Arc;

use crate::node::core::testing::{self, says};
use crate::node::core::{Action, Core, Input};
use crate::plausible::CLAIM_STALE_MS;
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Beat, FenceCommand, FenceRequest, PeerView, Reason, command};
use crate::proto::replication::{Append, CommonPoint, Confirm};
use crate::replication::wire;
use crate::shelf::{self, TxMeta};
use crate::storage::mem::MemDisk;
use crate::storage::promise;
use crate::storage::task::{AMNESIAC, DiskTask, TaskDone};
use crate::types::{CommitId, Epoch, NodeId, Now, Seq, Tip};

fn node(disk: &Arc<MemDisk>) -> Core {
    testing::first_of_three(disk.clone(), at(0))
}

/// A disk that was used, and on which this epoch is promised.
fn promised(epoch: u64) -> Arc<MemDisk> {
    let disk = Arc::new(MemDisk::default());
    drop(node(&disk));
    promise::write(&*disk, Epoch(epoch)).unwrap();
    disk
}

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + ms * 1000, wall_us: 1 }
}

/// A beat whose sender has heard that node 1 had promised `epoch`, and had `seq` in it.
fn beat(epoch: u64, seq: u64) -> Kind {
    let view = PeerView {
        node: 1,
        promised: epoch,
        acked_epoch: epoch,
        acked_seq: seq,
        ..PeerView::default()
    };
    Kind::Beat(Box::new(Beat { views: vec![view], written_seq: seq.min(100), ..Beat::default() }))
}

/// This node's Raft log has the fence of `epoch`.
fn fenced(core: &mut Core, epoch: u64) {
    let reason = Reason::Bootstrap.into();
    testing::decide(
        core,
        command::Kind::Fence(FenceCommand { epoch, reason, ..Default::default() }),
    );
}

fn promises(actions: &[Action], promised: u64) -> bool {
    actions.iter().any(|action| {
        matches!(action, Action::Disk { work: DiskTask::Promise { epoch }, .. } if epoch.0 == promised)
    })
}

fn fence(epoch: u64) -> Kind {
    Kind::FenceRequest(FenceRequest { epoch })
}

#[test]
fn after_a_start_nothing_is_promised_before_the_others_were_heard() {
    let disk = promised(3);
    let mut core = node(&disk);
    assert!(!promises(&says(&mut core, at(1), 2, fence(5)), 5));
    says(&mut core, at(2), 2, beat(3, 0));
    assert!(!promises(&says(&mut core, at(3), 2, fence(5)), 5), "node 3 may know more");
    says(&mut core, at(4), 3, beat(2, 0));
    assert!(promises(&says(&mut core, at(5), 2, fence(5)), 5));
    assert!(core.suspect.is_empty());
}

#[test]
fn who_is_silent_as_long_as_the_dead_are_is_not_waited_for() {
    let disk = promised(3);
    let mut core = node(&disk);
    let silence_ms = core.setup.timing.silence_ms;
    assert!(!promises(&says(&mut core, at(silence_ms - 2), 2, fence(5)), 5));
    core.step(at(10 * silence_ms), Input::Tick, &mut Vec::new());
    let alone = says(&mut core, at(10 * silence_ms + 1), 2, fence(5));
    assert!(!promises(&alone, 5), "time alone proves nothing: one of three is no majority");
    says(&mut core, at(10 * silence_ms + 2), 2, beat(3, 0));
    assert!(promises(&says(&mut core, at(10 * silence_ms + 3), 2, fence(5)), 5));
}

#[test]
fn a_disk_below_what_others_have_heard_of_it_stands_aside() {
    for (epoch, seq, why) in [(4, 0, "promised epoch 4"), (3, 7, "had seq 7 of epoch 3")] {
        let disk = promised(3);
        let mut core = node(&disk);
        fenced(&mut core, 4);
        let mut out = says(&mut core, at(1), 2, beat(epoch, seq));
        assert!(core.suspect.is_empty(), "one message proves nothing");
        out.extend(says(&mut core, at(2), 3, beat(3, 0)));
        assert!(core.is_unproved(), "and clears nothing");
        out.extend(says(&mut core, at(101), 2, beat(epoch, seq)));
        out.extend(says(&mut core, at(202), 2, beat(epoch, seq)));
        assert!(core.suspect.contains(why), "{}", core.suspect);
        let marks = out.iter().any(|action| {
            matches!(action, Action::Disk { work: DiskTask::Create { name }, .. } if name == AMNESIAC)
        });
        assert!(marks, "the next process must know it too");
    }
    let disk = Arc::new(MemDisk::default());
    crate::storage::Disk::create(&*disk, AMNESIAC).unwrap();
    assert!(!node(&disk).suspect.is_empty());
}

/// Found by the simulator (seed 1346): the node fetched what it lacked of the last generation before the claim stood, and
/// the claim was withdrawn by its peer's next beat.
#[test]
fn what_was_fetched_since_the_start_is_no_memory() {
    let disk = promised(3);
    let mut core = node(&disk);
    says(&mut core, at(1), 2, beat(3, 1));
    says(&mut core, at(2), 3, beat(3, 0));
    let epoch_start = shelf::Kind::EpochStart;
    shelf::testing::append(&mut core.shelf, epoch_start, &[]);
    assert_eq!(core.shelf.tip().seq, Seq(1), "it was fetched");
    says(&mut core, at(101), 2, beat(3, 1));
    assert!(core.is_unproved());
    says(&mut core, at(202), 2, beat(3, 1));
    assert!(core.suspect.contains("had seq 1 of epoch 3"), "{}", core.suspect);
}

/// One forged beat silences a sound node until its peer's next one, or for as long as a claim is kept.
#[test]
fn who_is_accused_says_nothing_that_counts_until_that_is_settled() {
    let disk = promised(3);
    let mut core = node(&disk);
    fenced(&mut core, 4);
    let confirms = |core: &mut Core, ms| {
        let epoch = core.promised.0;
        let out = says(core, at(ms), 3, Kind::Confirm(Confirm { epoch, ..Confirm::default() }));
        out.iter().any(|action| {
            matches!(action, Action::Send { message, .. }
                if matches!(message.kind, Some(Kind::ConfirmReply(_))))
        })
    };
    says(&mut core, at(1), 2, beat(3, 0));
    says(&mut core, at(2), 3, beat(3, 0));
    assert!(!core.is_unproved() && confirms(&mut core, 3));
    // It had promised epoch 4, it had promised an epoch that Raft does not know yet, it had seq 7.
    for (epoch, seq) in [(4, 0), (5, 0), (3, 7)] {
        says(&mut core, at(4), 2, beat(epoch, seq));
        assert!(!confirms(&mut core, 5), "epoch {epoch} seq {seq}");
        says(&mut core, at(6), 3, beat(3, 0));
        assert!(!promises(&says(&mut core, at(7), 3, fence(5)), 5), "another peer clears nothing");
        says(&mut core, at(8), 2, beat(3, 0));
        assert!(confirms(&mut core, 9));
    }
    says(&mut core, at(10), 2, beat(4, 0));
    assert!(!confirms(&mut core, 10 + CLAIM_STALE_MS));
    assert!(confirms(&mut core, 11 + CLAIM_STALE_MS));
    assert!(promises(&says(&mut core, at(2000), 3, fence(5)), 5));
    assert!(core.suspect.is_empty());
}

/// Found by the simulator (mutants' options, seed 218): the same process was master of two epochs in a row, and a late
/// question of the first was answered for the second, in which the round of that number had yet to begin.
#[test]
fn a_question_of_an_earlier_epoch_is_not_answered_for_this_one() {
    let mut core = node(&promised(3));
    says(&mut core, at(1), 2, beat(3, 0));
    says(&mut core, at(2), 3, beat(3, 0));
    let mut answers = |epoch| {
        let confirm = Confirm { epoch, boot: 7, round: 24 };
        let out = says(&mut core, at(3), 3, Kind::Confirm(confirm));
        out.into_iter().find_map(|action| match action {
            Action::Send { message, .. } => match message.kind {
                Some(Kind::ConfirmReply(reply)) => Some((reply.epoch, reply.round)),
                _ => None,
            },
            _ => None,
        })
    };
    assert_eq!((answers(2), answers(3), answers(4)), (None, Some((3, 24)), None));
}

/// An older image of a disk whose file was damaged then: its own note of what it lost is too small.
#[test]
fn who_recovers_gets_back_what_others_have_heard_of_it_in_this_epoch() {
    let mut core = node(&promised(3));
    says(&mut core, at(1), 2, beat(3, 7));
    assert!(core.is_remembered_beyond(Epoch(3), Seq(6)));
    assert!(!core.is_remembered_beyond(Epoch(3), Seq(7)));
    assert!(!core.is_remembered_beyond(Epoch(4), Seq(6)), "a later master counts none of that");
    says(&mut core, at(2), 2, beat(3, 101));
    assert!(!core.is_remembered_beyond(Epoch(3), Seq(6)), "its sender has not so much itself");
}

/// A forged view, and the true one after it.
#[test]
fn one_message_does_not_make_a_sound_disk_stand_aside() {
    let disk = promised(3);
    let mut core = node(&disk);
    fenced(&mut core, 4);
    for round in 0..9 {
        let ms = round * 100;
        says(&mut core, at(ms + 1), 2, beat(4, 0));
        says(&mut core, at(ms + 2), 2, beat(3, 0));
    }
    // Nobody can have heard of what is far from any fence, however often it is said, or of a seq that it has not itself.
    for (epoch, seq) in [(1 << 61, 0), (u64::MAX, 0), (5 + (1 << 21), 0), (3, 1 << 61)] {
        for ms in 0..9 {
            says(&mut core, at(2000 + ms * 100), 2, beat(epoch, seq));
        }
        let told = core.own_beat().disbeliefs;
        assert!(told[0].node == 2 && told[0].what.contains("ours"), "{told:?}");
    }
    assert!(core.suspect.is_empty(), "{}", core.suspect);
}

/// Found by the simulator (forged numbers): a beat of n2 said that it had promised an epoch that nobody ever will, and
/// whoever heard it told n2 so ever after.
#[test]
fn what_a_peer_had_is_remembered_only_if_it_can_be_true() {
    let mut core = node(&Arc::new(MemDisk::default()));
    fenced(&mut core, 4);
    let beat = |promise_durable| {
        Kind::Beat(Box::new(Beat { promised: 4, promise_durable, ..Beat::default() }))
    };
    says(&mut core, at(1), 2, beat(1 << 60));
    says(&mut core, at(2), 2, beat(5));
    assert_eq!(core.views()[0].promised, 0);
    says(&mut core, at(3), 2, beat(4));
    assert_eq!(core.views()[0].promised, 4);
    // And no epoch is counted up from what is far ahead.
    for promised in [1 << 61, (1 << 62) - 1, u64::MAX, 5 + (1 << 21)] {
        says(&mut core, at(4), 2, Kind::Beat(Box::new(Beat { promised, ..Beat::default() })));
        assert_eq!(core.health.beat(NodeId(2)).unwrap().promised, 4);
        assert!(!promises(&says(&mut core, at(5), 2, fence(promised)), promised));
        assert!(core.own_beat().disbeliefs[0].what.contains(&promised.to_string()));
    }
    // Raft says so: then it is believed, however far it is.
    fenced(&mut core, 200_000_000);
    says(&mut core, at(700), 2, beat(4));
    assert!(promises(&says(&mut core, at(701), 2, fence(200_000_000)), 200_000_000));
}

/// Found by the simulator (seed 204): two transactions were on their way to a slow disk when the master said that only
/// the first is in its own file. The node cut the second off, and called the first durable at once.
#[test]
fn what_is_before_a_cut_is_durable_when_the_disk_says_so() {
    let disk = Arc::new(MemDisk::default());
    let mut core = node(&disk);
    let blank = core.shelf.tip();
    let transaction = |after: Tip| {
        let meta = TxMeta {
            kind: shelf::Kind::EpochStart,
            epoch: Epoch(5),
            seq: after.seq.next(),
            time_us: 1,
            commit_id: CommitId::NONE,
        };
        let built = shelf::build(&after.chain, &meta, &[]).bytes;
        let tip = shelf::parse(&built).unwrap().tip(after.offset);
        (built, tip)
    };
    let (first, point) = transaction(blank);
    let (second, tip) = transaction(point);
    let (generation, base_hash) =
        (core.shelf.generation().0, wire::put_chain(core.shelf.base_hash()));
    let append = Append {
        epoch: 5,
        boot: 22,
        generation,
        base_hash: base_hash.clone(),
        prev: Some(wire::put_tip(&blank)),
        commit: Some(wire::put_tip(&blank)),
        transactions: [&first[..], &second[..]].concat().into(),
        ..Append::default()
    };
    let mut out = says(&mut core, at(1), 2, Kind::Append(append));
    assert_eq!(core.shelf.tip(), tip);
    let common = CommonPoint {
        epoch: 5,
        boot: 22,
        generation,
        base_hash,
        point: Some(wire::put_tip(&point)),
        newer_mismatch: Some(wire::put_tip(&tip)),
    };
    out.extend(says(&mut core, at(2), 2, Kind::CommonPoint(common)));
    assert_eq!(core.shelf.tip(), point, "it is cut");
    assert_eq!(core.durable.seq, Seq(0), "the disk has said nothing yet");
    for action in out {
        if let Action::Disk { task, .. } = action {
            let done = Input::DiskDone { task, result: Ok(TaskDone::Nothing) };
            core.step(at(3), done, &mut Vec::new());
        }
    }
    assert_eq!(core.durable, point);
}
