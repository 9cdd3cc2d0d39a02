use std::sync::Arc;

use crate::node::core::Core;
use crate::node::core::testing::{
    carry_out, decide, elect_second, first_of_three, own_generation, says,
};
use crate::proto::control::command::Kind;
use crate::proto::control::peer_message::Kind as PeerKind;
use crate::proto::control::{
    Beat, Command, Elect, FenceCommand, Member, MemberUp, OidBlock, Opened, PackBase, PackReady,
    PackSeal, Pause, Propose, RaftMessage, Setting, TailLost,
};
use crate::storage::mem::MemDisk;
use crate::types::{NodeId, Now};

const NOW: Now = Now { mono_us: 1, wall_us: 1 };
const FAR: u64 = 1 << 40;

/// Node 1 leads Raft, and node 2 is the elected master of epoch 1.
fn leader() -> Core {
    let mut core = first_of_three(Arc::new(MemDisk::default()), NOW);
    for from in [2, 3] {
        let out = says(&mut core, NOW, from, PeerKind::Beat(Box::default()));
        carry_out(&mut core, NOW, out);
    }
    core.raft.campaign();
    // raft-rs's numbers of what a voter answers: before the vote, and the vote.
    for msg_type in [18, 6] {
        let vote = RaftMessage { msg_type, from: 2, to: 1, term: 1, ..Default::default() };
        let out = says(&mut core, NOW, 2, PeerKind::Raft(vote));
        carry_out(&mut core, NOW, out);
    }
    assert!(core.raft.is_leader());
    let generation = own_generation(&core);
    elect_second(&mut core, 1, generation);
    let beat = Beat { written_seq: 5, ..Beat::default() };
    core.health.on_beat(NodeId(2), beat, NOW);
    core
}

/// Is the command of node `from` put into the log?
fn takes(core: &mut Core, from: u64, kind: Kind) -> bool {
    let command =
        Command { on_epoch: core.control.epoch().0, kind: Some(kind), ..Command::default() };
    core.proposed = false;
    let _refused = core.on_propose(NodeId(from), Propose { command: Some(command) });
    core.proposed
}

/// What `ctl status` says was not believed of this node.
fn disbelieved(core: &Core, of: u64) -> String {
    let of_node = core.disbelieved.iter().find(|(id, _)| *id == NodeId(of));
    of_node.map(|(_, it)| it.text.clone()).unwrap_or_default()
}

#[test]
fn a_node_proposes_for_itself_only() {
    let up = |id| {
        let member = Some(Member { id, ..Member::default() });
        Kind::MemberUp(MemberUp { member })
    };
    let base = |node| Kind::PackBase(PackBase { node, ..Default::default() });
    let ready = |node| Kind::PackReady(PackReady { node, ..Default::default() });
    let lost = |node| Kind::TailLost(TailLost { node, ..Default::default() });
    let kinds: [(&str, &dyn Fn(u64) -> Kind); 4] = [
        ("member that comes up", &up),
        ("node that built a base", &base),
        ("node that is ready", &ready),
        ("node that lost a tail", &lost),
    ];
    for (what, kind) in kinds {
        let mut core = leader();
        assert!(takes(&mut core, 3, kind(3)), "{what}");
        assert_eq!(disbelieved(&core, 3), "");
        for other in [1, 2, 4, FAR] {
            assert!(!takes(&mut core, 3, kind(other)), "{what} {other}");
        }
        assert_eq!(disbelieved(&core, 3), format!("{what} {FAR} (ours 3)"));
    }
}

#[test]
fn only_the_master_seals_a_pack_and_takes_oids_and_not_far_ahead() {
    let seal = |cut_seq| Kind::PackSeal(PackSeal { cut_seq, ..Default::default() });
    let oids = |below| Kind::OidBlock(OidBlock { epoch: 1, below, from: 0 });
    let kinds: [(&str, &dyn Fn(u64) -> Kind); 2] = [("F of a seal", &seal), ("oid limit", &oids)];
    for (what, kind) in kinds {
        let mut core = leader();
        assert!(takes(&mut core, 2, kind(5)), "{what}");
        assert!(!takes(&mut core, 3, kind(5)), "{what}");
        assert_eq!(disbelieved(&core, 3), "master of the epoch 3 (ours 2)");
        assert!(!takes(&mut core, 2, kind(FAR)), "{what}");
        assert!(disbelieved(&core, 2).starts_with(&format!("{what} {FAR}")));
    }
    // A master that was replaced is late: it is not called a liar.
    let mut core = leader();
    let reason = crate::proto::control::Reason::MasterDead.into();
    decide(&mut core, Kind::Fence(FenceCommand { epoch: 2, reason, ..Default::default() }));
    assert!(!takes(&mut core, 2, oids(5)));
    assert_eq!(disbelieved(&core, 2), "");
}

#[test]
fn nobody_else_decides_what_is_the_leaders() {
    let kinds = [
        Kind::Fence(FenceCommand { epoch: FAR, ..Default::default() }),
        Kind::Elect(Elect { epoch: FAR, ..Default::default() }),
        Kind::Opened(Opened { epoch: 1, seq: FAR, ..Default::default() }),
        Kind::Setting(Setting::default()),
        Kind::Pause(Pause { paused: true, ..Default::default() }),
    ];
    let mut core = leader();
    for kind in kinds {
        for from in [2, 3] {
            assert!(!takes(&mut core, from, kind.clone()), "{kind:?}");
        }
    }
}
