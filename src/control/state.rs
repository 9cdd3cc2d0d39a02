//! The state in its own terms, and how to ask it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use crate::proto::control::Reason;
use crate::proto::replication;
use crate::types::{BlockRoot, BootId, Chain, Epoch, Generation, NodeId, Oid, PackId, Seq};

/// Decisions kept.
pub const HISTORY_MAX: usize = 256;
/// Generations kept; the last is current.
pub const GENERATIONS_MAX: usize = 64;

/// What a member does. Only voters hold masterships.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Voter,
    Learner,
    Witness,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Voter => "voter",
            Role::Learner => "learner",
            Role::Witness => "witness",
        }
    }

    pub fn from_name(name: &str) -> Option<Role> {
        let roles = [Role::Voter, Role::Learner, Role::Witness];
        roles.into_iter().find(|role| role.name() == name)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// None until it was up for the first time; then never another.
    pub disk_uuid: Option<[u8; 16]>,
    /// HOST:PORT of each.
    pub durus: String,
    pub peer: String,
    pub http: String,
    pub role: Role,
    /// Greater is preferred among equals.
    pub priority: i64,
    pub may_be_master: bool,
}

/// An epoch was taken; nobody is elected in it yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fencing {
    pub epoch: Epoch,
    pub reason: Reason,
    pub target: Option<NodeId>,
    pub asked_by: String,
    pub why: String,
    /// The pack that a generation switch is for; no pack for any other reason.
    pub pack: PackId,
}

/// The newest election. While a newer epoch is fenced, it is what was.
#[derive(Clone, PartialEq, Debug)]
pub struct Mastership {
    pub epoch: Epoch,
    pub master: NodeId,
    pub boot: BootId,
    /// Data voters of the epoch, ascending.
    pub voters: Vec<NodeId>,
    /// As it was elected; its number is that of the current generation.
    pub generation: GenerationRecord,
    /// Greatest position reported: the master must have it before it opens. Its chains are 20 bytes, its tip is there.
    pub floor: replication::Position,
    pub floor_holder: NodeId,
    pub why: String,
    /// Whose reports counted, ascending: each has this epoch's promise on its disk.
    pub reported: Vec<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GenerationRecord {
    pub number: Generation,
    pub base_hash: Chain,
    /// P: where the pack's mark was computed; 0 for the first generation.
    pub pack_seq: Seq,
    /// F: where the base was taken.
    pub cut_seq: Seq,
    /// Chain of the generation before at F; zeros for the first.
    pub cut_chain: Chain,
    pub since_wall_us: u64,
    /// Root of the base's block hashes. None: it was never agreed, as for the first generation.
    pub block_root: Option<BlockRoot>,
}

impl GenerationRecord {
    /// Everything but the time at which it became current. Whoever knows no root has nothing against one: it may be of
    /// an older program.
    pub fn same(&self, other: &GenerationRecord) -> bool {
        let block_root = self.block_root.and(other.block_root).or(self.block_root);
        let since_wall_us = self.since_wall_us;
        *self == GenerationRecord { since_wall_us, block_root, ..other.clone() }
    }
}

/// The pack in progress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pack {
    /// What every command and message about it must name.
    pub id: PackId,
    /// To be made.
    pub generation: Generation,
    pub started_epoch: Epoch,
    pub started_wall_us: u64,
    pub asked_by: String,
    /// None: marking.
    pub seal: Option<Seal>,
    /// The agreed base; none: not built yet. Until the generation's election it changes when two nodes have built another.
    pub base_hash: Option<Chain>,
    /// Bytes up to the end of the seal; 0 without a base.
    pub base_len: u64,
    /// Root of the base's block hashes; None also if whoever built it first did not say.
    pub block_root: Option<BlockRoot>,
    /// What each node has built, by its own newest word.
    pub builds: BTreeMap<NodeId, BuiltBase>,
    /// Who has the agreed base and follows in both files.
    pub ready: BTreeSet<NodeId>,
    /// When it was sealed, when the base was agreed, and when the last node became ready; 0: not yet.
    pub sealed_wall_us: u64,
    pub based_wall_us: u64,
    pub readied_wall_us: u64,
}

/// A base as one node has built it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuiltBase {
    pub base_hash: Chain,
    /// Root of its block hashes; none: from an older program.
    pub block_root: Option<BlockRoot>,
    /// Bytes up to the end of the seal.
    pub base_len: u64,
}

/// So many equal bases outvote the agreed one, if fewer have that. One broken disk or memory can't: it has one vote, and
/// makes bytes that nobody else makes. A majority of five is not waited for: `ready` must be a majority of nodes with the
/// agreed base before the generation can be elected, and until then two that are right would be held back by one that is
/// wrong.
pub const VOTES_MIN: usize = 2;

impl Pack {
    /// The base that is agreed so far.
    pub fn agreed(&self) -> Option<BuiltBase> {
        let (base_len, block_root) = (self.base_len, self.block_root);
        self.base_hash.map(|base_hash| BuiltBase { base_hash, block_root, base_len })
    }

    pub fn votes(&self, base: &BuiltBase) -> usize {
        self.builds.values().filter(|built| *built == base).count()
    }

    /// It has built another base than the agreed one, and nobody knows yet which of them is right.
    pub fn is_held_back(&self, node: NodeId) -> bool {
        let differs = self.builds.get(&node).is_some_and(|built| self.agreed() != Some(*built));
        differs && !self.is_outvoted(node)
    }

    /// It has built another base than several nodes that agree.
    pub fn is_outvoted(&self, node: NodeId) -> bool {
        let (Some(built), Some(agreed)) = (self.builds.get(&node), self.agreed()) else {
            return false;
        };
        *built != agreed && self.votes(&agreed) >= VOTES_MIN
    }

    /// The base that takes the place of the agreed one: enough nodes have built it, and more than have built the agreed.
    pub(super) fn outvoting(&self) -> Option<BuiltBase> {
        let agreed = self.agreed()?;
        let others = self.builds.values().filter(|built| **built != agreed);
        let best = others.max_by_key(|built| (self.votes(built), built.base_hash))?;
        let votes = self.votes(best);
        (votes >= VOTES_MIN && votes > self.votes(&agreed)).then_some(*best)
    }
}

/// A pack that an election called off, and that is to begin again by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackAgain {
    /// Of the pack that was called off.
    pub id: PackId,
    pub asked_by: String,
}

/// A node whose base was outvoted: its disk or memory gave other bytes than those of two others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OddBuild {
    /// That was being made.
    pub generation: Generation,
    pub base_hash: Chain,
    pub wall_us: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    /// P.
    pub pack_seq: Seq,
    /// F.
    pub cut_seq: Seq,
    /// Chain of the present generation at F.
    pub cut_chain: Chain,
    pub dead_count: u64,
    /// Bytes of the file up to F, and about how many of them are records that are kept; 0: not told.
    pub file_bytes: u64,
    pub kept_bytes: u64,
    /// Of the file up to F, committed since the last pack.
    pub tail_bytes: u64,
}

/// How and when the last pack ended, by its proposer's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rested {
    /// 0: there never was one.
    pub since_wall_us: u64,
    pub failed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// From 1.
    pub number: u64,
    pub wall_us: u64,
    pub epoch: Epoch,
    /// "fence", "elect", "opened", "pack start", ...
    pub what: String,
    pub why: String,
    pub asked_by: String,
    pub node: Option<NodeId>,
    /// Of "opened".
    pub clients_waited_us: u64,
    /// Raft index of the command that made it; 0: an older program's. Of "pack start" it is the pack's id.
    pub index: u64,
}

/// Transactions that were acknowledged by a master alone, and are lost (`losses`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    pub node: NodeId,
    /// In which they were written.
    pub epoch: Epoch,
    /// At most so many.
    pub transactions: u64,
    /// Where the file was cut, and the newest that was cut off.
    pub after: Seq,
    pub to: Seq,
    /// The file of the node's data directory that has them now.
    pub kept: String,
    pub at_wall_us: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// No mastership was ever decided, and none is being.
    None,
    Fencing {
        epoch: Epoch,
    },
    Elected {
        opened: bool,
    },
}

/// What Raft replicates. Changed by `apply` only.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct State {
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) epoch: Epoch,
    pub(super) fencing: Option<Fencing>,
    pub(super) mastership: Option<Mastership>,
    /// The greatest epoch whose election counted a member's promise. The newest election does not name all, and whoever
    /// has heard the others promise may have been started anew since.
    pub(super) promises: BTreeMap<NodeId, Epoch>,
    /// Seq of the mastership's epoch start, once it is committed.
    pub(super) opened: Option<Seq>,
    pub(super) generations: VecDeque<GenerationRecord>,
    pub(super) pack: Option<Pack>,
    pub(super) oid_limit: Oid,
    pub(super) paused: bool,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) history: VecDeque<Decision>,
    pub(super) decisions: u64,
    pub(super) fenced_wall_us: u64,
    pub(super) pack_again: Option<PackAgain>,
    /// Raft indexes of the last command that began or ended a pack, of the last pause or resume, and of the last change of
    /// each setting; 0 or absent: there was none. Whoever wants another change names the one that it knows of.
    pub(super) packs_changed: u64,
    pub(super) pause_changed: u64,
    pub(super) settings_changed: BTreeMap<String, u64>,
    /// Whose newest base was outvoted.
    pub(super) odd_builds: BTreeMap<NodeId, OddBuild>,
    pub(super) rested: Rested,
    pub(super) garbage_permille: u64,
    /// Epochs in which durability was `local` at some time, and their masters: the newest ones.
    pub(super) alone: BTreeMap<Epoch, NodeId>,
    pub(super) losses: VecDeque<Loss>,
    /// All that were ever lost.
    pub(super) lost_transactions: u64,
    /// Raft index of the last command.
    pub(super) applied: u64,
}

impl State {
    /// Before the first command. The members are those of the configuration: ids and roles must be the same on every
    /// node, the rest is replaced by what each member says of itself when it comes up.
    pub fn new(members: impl IntoIterator<Item = Member>) -> State {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        State { members, ..State::default() }
    }

    pub fn phase(&self) -> Phase {
        match (&self.fencing, &self.mastership) {
            (Some(fencing), _) => Phase::Fencing { epoch: fencing.epoch },
            (None, Some(_)) => Phase::Elected { opened: self.opened.is_some() },
            (None, None) => Phase::None,
        }
    }

    /// Of the newest fence; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn fencing(&self) -> Option<&Fencing> {
        self.fencing.as_ref()
    }

    /// When the newest fence was decided, by its proposer's clock.
    pub fn fenced_wall_us(&self) -> u64 {
        self.fenced_wall_us
    }

    /// The newest election, also while a newer epoch is fenced.
    pub fn mastership(&self) -> Option<&Mastership> {
        self.mastership.as_ref()
    }

    /// The greatest epoch whose election counted this member's promise: it was on its disk. 0: none did.
    pub fn promise_of(&self, id: NodeId) -> Epoch {
        self.promises.get(&id).copied().unwrap_or_default()
    }

    /// The elected of the present epoch; None while it is fenced.
    pub fn master(&self) -> Option<(NodeId, BootId)> {
        let elected = self.mastership.as_ref().filter(|_| self.fencing.is_none());
        elected.map(|mastership| (mastership.master, mastership.boot))
    }

    /// The present epoch's master serves.
    pub fn is_open(&self) -> bool {
        self.phase() == Phase::Elected { opened: true }
    }

    /// Seq of the newest mastership's epoch start, once it is committed; also while a newer epoch is fenced.
    pub fn opened_seq(&self) -> Option<Seq> {
        self.opened
    }

    /// Data voters, ascending: of the newest mastership, and before the first all members that are voters.
    pub fn voters(&self) -> Vec<NodeId> {
        let configured = || {
            let voters = self.members.values().filter(|member| member.role == Role::Voter);
            voters.map(|member| member.id).collect()
        };
        self.mastership.as_ref().map_or_else(configured, |mastership| mastership.voters.clone())
    }

    /// The current generation; None before the first election.
    pub fn generation(&self) -> Option<&GenerationRecord> {
        self.generations.back()
    }

    /// A generation that is still remembered.
    pub fn generation_record(&self, number: Generation) -> Option<&GenerationRecord> {
        self.generations.iter().find(|record| record.number == number)
    }

    /// Oldest first.
    pub fn generations(&self) -> impl DoubleEndedIterator<Item = &GenerationRecord> {
        self.generations.iter()
    }

    pub fn pack(&self) -> Option<&Pack> {
        self.pack.as_ref()
    }

    /// An election called a pack off: start it again.
    pub fn pack_again(&self) -> Option<&PackAgain> {
        self.pack_again.as_ref()
    }

    /// What a cancel acts on: the pack in progress, or the one that waits to begin again.
    pub fn cancellable(&self) -> Option<PackId> {
        let running = self.pack.as_ref().map(|pack| pack.id);
        running.or_else(|| self.pack_again.as_ref().map(|again| again.id))
    }

    /// Raft index of the last command that began or ended a pack: what the start of the next one must name.
    pub fn packs_changed(&self) -> u64 {
        self.packs_changed
    }

    /// Raft index of the last pause or resume: what the next one must name.
    pub fn pause_changed(&self) -> u64 {
        self.pause_changed
    }

    /// Raft index of a setting's last change: what the next one must name.
    pub fn setting_changed(&self, name: &str) -> u64 {
        self.settings_changed.get(name).copied().unwrap_or_default()
    }

    /// Nodes whose newest base was outvoted by two others, ascending.
    pub fn odd_builds(&self) -> impl Iterator<Item = (NodeId, &OddBuild)> {
        self.odd_builds.iter().map(|(node, odd)| (*node, odd))
    }

    /// How the last pack ended; one that is started again by itself has not.
    pub fn rested(&self) -> Rested {
        self.rested
    }

    /// How much of what is committed between two packs is garbage by the second, as the last mark found it; 0 before the
    /// first.
    pub fn garbage_permille(&self) -> u64 {
        self.garbage_permille
    }

    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    pub fn member_by_name(&self, name: &str) -> Option<&Member> {
        self.members.values().find(|member| member.name == name)
    }

    /// By ascending id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Oids below were or may be given out.
    pub fn oid_limit(&self) -> Oid {
        self.oid_limit
    }

    pub fn paused(&self) -> bool {
        self.paused
    }

    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Oldest first, at most `HISTORY_MAX`.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.history.iter()
    }

    /// Raft index of the last command applied or refused.
    pub fn applied(&self) -> u64 {
        self.applied
    }
}
