//! Applying commands. Each handler first checks everything, then changes; what it returns as an error is the reason of a
//! refusal, in a sentence for the history's readers.

use prost::Message;

use super::codec::{get_build, get_chain, get_fencing, get_mastership, get_member, get_seal};
use super::legacy;
use super::settings;
use super::state::{
    Decision, GENERATIONS_MAX, GenerationRecord, HISTORY_MAX, Mastership, OddBuild, Pack,
    PackAgain, Phase, Reason, Rested, Role, State, VOTES_MIN,
};
use crate::mutants::{self, Mutant};
use crate::proto::control as pb;
use crate::proto::control::command::Kind;
use crate::types::{Epoch, Generation, NodeId, Oid, PackId, Seq};

/// Bytes of a text that is kept; more is cut off.
const TEXT_MAX: usize = 512;
/// Of commands: since this one they name the object that they act on.
pub const FORMAT: u32 = 2;
/// Epochs from here on are nonsense; they would soon run out.
pub const EPOCH_MAX: u64 = 1 << 62;
/// And so is whatever else is counted.
pub(super) const NUMBER_MAX: u64 = 1 << 62;
/// Who asks when nobody did.
const AUTOMATIC: &str = "automatic";

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    Changed,
    /// The state is as before; why, in a sentence.
    Refused(String),
}

type Decided = Result<(), String>;

/// A command as the node `by` proposes it, decided on a state of that epoch.
pub fn command(on_epoch: Epoch, at_wall_us: u64, by: NodeId, kind: Kind) -> pb::Command {
    let (on_epoch, by, kind) = (on_epoch.0, by.0, Some(kind));
    pb::Command { on_epoch, at_wall_us, by, asked: None, format: FORMAT, kind }
}

/// What a decision was about, for the history.
#[derive(Default)]
struct About<'a> {
    what: &'a str,
    why: &'a str,
    asked_by: &'a str,
    node: Option<NodeId>,
    clients_waited_us: u64,
}

fn refuse_if(refused: bool, why: impl FnOnce() -> String) -> Decided {
    if refused { Err(why()) } else { Ok(()) }
}

fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_string()
}

impl State {
    /// Applies the bytes of a committed entry, a `Command`. Indexes must grow.
    pub fn apply_bytes(&mut self, index: u64, bytes: &[u8]) -> Applied {
        match pb::Command::decode(bytes) {
            Ok(command) => self.apply(index, &command),
            Err(error) => {
                self.pass(index);
                Applied::Refused(format!("not a command: {error}"))
            }
        }
    }

    /// Applies a committed command. Indexes must grow.
    pub fn apply(&mut self, index: u64, command: &pb::Command) -> Applied {
        self.pass(index);
        match self.decide(command) {
            Ok(()) => Applied::Changed,
            Err(why) => Applied::Refused(why),
        }
    }

    fn pass(&mut self, index: u64) {
        assert!(index > self.applied, "command {index} after command {}", self.applied);
        self.applied = index;
    }

    fn decide(&mut self, command: &pb::Command) -> Decided {
        let (on, epoch, at) = (command.on_epoch, self.epoch, command.at_wall_us);
        refuse_if(on != epoch.0, || format!("decided on epoch {on}, and it is {epoch}"))?;
        let kind = command.kind.as_ref().ok_or("a command of a kind that is not known")?;
        let completed = (command.format < FORMAT).then(|| legacy::decided_on(self, kind.clone()));
        if let Some(Kind::PackReady(ready)) = &completed {
            self.built_without_a_word(ready);
        }
        match completed.as_ref().unwrap_or(kind) {
            Kind::MemberUp(up) => self.on_member_up(at, up),
            Kind::Fence(fence) => self.on_fence(at, fence),
            Kind::Elect(elect) => self.on_elect(at, elect),
            Kind::Opened(opened) => self.on_opened(at, opened),
            Kind::PackStart(start) => self.on_pack_start(at, start),
            Kind::PackSeal(seal) => self.on_pack_seal(at, seal),
            Kind::PackBase(base) => self.on_pack_base(at, base),
            Kind::PackReady(ready) => self.on_pack_ready(at, ready),
            Kind::PackCancel(cancel) => self.on_pack_cancel(at, cancel),
            Kind::OidBlock(block) => self.on_oid_block(block),
            Kind::Pause(pause) => self.on_pause(at, pause),
            Kind::Setting(setting) => self.on_setting(at, setting),
            Kind::TailLost(lost) => {
                let (why, node) = self.on_tail_lost(lost)?;
                let about = About { what: "transactions lost", why: &why, ..Default::default() };
                self.record(at, About { node: Some(node), asked_by: AUTOMATIC, ..about });
                Ok(())
            }
        }
    }

    /// Programs before `FORMAT` said nothing of a base that is the agreed one, but that they are ready.
    fn built_without_a_word(&mut self, ready: &pb::PackReady) {
        if let Some(pack) = &mut self.pack
            && let Some(agreed) = pack.agreed()
        {
            pack.builds.entry(NodeId(ready.node)).or_insert(agreed);
        }
    }

    fn record(&mut self, wall_us: u64, about: About<'_>) {
        self.decisions += 1;
        self.history.push_back(Decision {
            number: self.decisions,
            wall_us,
            epoch: self.epoch,
            what: about.what.to_string(),
            why: clip(about.why),
            asked_by: clip(about.asked_by),
            node: about.node,
            clients_waited_us: about.clients_waited_us,
            index: self.applied,
        });
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    fn known(&self, node: NodeId) -> Decided {
        let unknown = !self.members.contains_key(&node);
        refuse_if(unknown, || format!("node {node} is not a member"))
    }

    fn on_member_up(&mut self, at: u64, up: &pb::MemberUp) -> Decided {
        let mut member = get_member(up.member.as_ref().ok_or("no member is named")?)?;
        for text in [&mut member.name, &mut member.durus, &mut member.peer, &mut member.http] {
            *text = clip(text);
        }
        let (id, name) = (member.id, member.name.clone());
        let uuid = member.disk_uuid.ok_or("the member does not tell its disk")?;
        let present = self.members.get(&id).ok_or_else(|| format!("node {id} is not a member"))?;
        for other in self.members.values().filter(|other| other.id != id) {
            let same_disk = other.disk_uuid == Some(uuid);
            refuse_if(same_disk, || format!("node {id} has the disk of node {}", other.id))?;
            let same_name = other.name == name;
            refuse_if(same_name, || format!("node {id} has the name of node {}", other.id))?;
        }
        match present.disk_uuid {
            Some(bound) if bound != uuid => {
                let why = format!("node {id} came up with another disk than it is known by");
                self.record_once(at, "member refused", &why, id);
                return Err(why);
            }
            Some(_) => {}
            None => {
                let why =
                    format!("{name} is up for the first time; its disk is bound to node {id}");
                let node = Some(id);
                let about = About { what: "member up", why: &why, node, ..Default::default() };
                self.record(at, About { asked_by: AUTOMATIC, ..about });
            }
        }
        self.members.insert(id, member);
        Ok(())
    }

    /// The one refusal that people must find later: it is tried again at every start, and recorded the first time.
    fn record_once(&mut self, at: u64, what: &str, why: &str, node: NodeId) {
        if self.history.iter().all(|decision| decision.what != what || decision.why != why) {
            let about =
                About { what, why, asked_by: AUTOMATIC, node: Some(node), ..Default::default() };
            self.record(at, about);
        }
    }

    fn on_fence(&mut self, at: u64, fence: &pb::FenceCommand) -> Decided {
        let mut fencing = get_fencing(fence)?;
        fencing.why = clip(&fencing.why);
        fencing.asked_by = clip(&fencing.asked_by);
        let (epoch, present) = (fencing.epoch, self.epoch);
        let fits = epoch > present && epoch.0 < EPOCH_MAX;
        refuse_if(!fits, || format!("epoch {epoch} cannot follow epoch {present}"))?;
        fencing.target.map_or(Ok(()), |target| self.known(target))?;
        let bootstrap = fencing.reason == Reason::Bootstrap;
        let elected = self.mastership.is_some();
        refuse_if(bootstrap && elected, || "there was a master already".into())?;
        let switch = fencing.reason == Reason::GenerationSwitch;
        let running = self.pack.as_ref().map_or(PackId(0), |pack| pack.id);
        refuse_if(switch && (running != fencing.pack || running == PackId(0)), || {
            format!("a switch for pack {}, and {} is in progress", fencing.pack, or_none(running))
        })?;
        self.epoch = epoch;
        self.fenced_wall_us = at;
        self.record(
            at,
            About {
                what: "fence",
                why: &fencing.why,
                asked_by: &fencing.asked_by,
                node: fencing.target,
                ..Default::default()
            },
        );
        self.fencing = Some(fencing);
        Ok(())
    }

    fn on_elect(&mut self, at: u64, elect: &pb::Elect) -> Decided {
        let mut mastership = get_mastership(elect)?;
        mastership.why = clip(&mastership.why);
        let fenced = self.fencing.as_ref().is_some_and(|it| it.epoch == mastership.epoch);
        refuse_if(!fenced, || format!("epoch {} is not being fenced", mastership.epoch))?;
        self.check_master(&mastership)?;
        let switched = self.check_generation(&mastership.generation)?;
        let asked_by = self.fencing.take().expect("just looked at").asked_by;
        let about = About { why: &mastership.why, asked_by: &asked_by, ..Default::default() };
        self.record(at, About { what: "elect", node: Some(mastership.master), ..about });
        if switched {
            let agreed = self.pack.as_ref().and_then(|pack| pack.block_root);
            mastership.generation.since_wall_us = at;
            mastership.generation.block_root = agreed;
            self.begin_generation(at, &mastership.generation);
            self.pack_again = None;
        } else {
            mastership.generation = self.generation().expect("checked").clone();
            self.call_off(at);
        }
        self.opened = None;
        self.mastership = Some(mastership);
        self.note_promises();
        self.note_alone();
        Ok(())
    }

    /// Whose promises the newest election was built on.
    pub(super) fn note_promises(&mut self) {
        let Some(Mastership { epoch, reported, .. }) = &self.mastership else { return };
        for node in reported.iter().filter(|node| self.members.contains_key(node)) {
            self.promises.insert(*node, *epoch);
        }
    }

    fn check_master(&self, elected: &Mastership) -> Decided {
        let Mastership { master, boot, voters, floor_holder, .. } = elected;
        self.known(*master)?;
        self.known(*floor_holder)?;
        let may = self.members.get(master).is_some_and(|member| member.may_be_master);
        refuse_if(!may, || format!("node {master} may not be master"))?;
        refuse_if(boot.0 == 0, || format!("node {master} tells no boot id"))?;
        refuse_if(!voters.contains(master), || format!("node {master} is not among the voters"))?;
        for voter in voters {
            let votes = self.members.get(voter).is_some_and(|it| it.role == Role::Voter);
            refuse_if(!votes, || format!("node {voter} cannot be a data voter"))?;
        }
        // sets that differ by one have no disjoint majorities
        let before = self.voters();
        let gone = before.iter().filter(|voter| !voters.contains(voter)).count();
        let come = voters.iter().filter(|voter| !before.contains(voter)).count();
        let far = self.mastership.is_some() && gone + come > 1;
        refuse_if(far, || format!("voters {before:?} and {voters:?} differ by more than one"))?;
        // Two steps without a commit between them are a step by two: {A, B} of the three have what is committed, and
        // {C, D} elect after {A, B, C, D} and then {B, C, D} (the model's `OpenedBeforeChange`).
        let unsettled = self.mastership.is_some() && gone + come > 0 && self.opened.is_none();
        refuse_if(unsettled, || {
            format!(
                "voters {before:?} have not committed an epoch start: they can't be changed yet"
            )
        })
    }

    /// May this generation be elected, and is it a new one?
    fn check_generation(&self, record: &GenerationRecord) -> Result<bool, String> {
        let number = record.number;
        let absurd = number.0 >= NUMBER_MAX;
        refuse_if(absurd, || format!("generation {number} is beyond all bounds"))?;
        let Some(current) = self.generation() else { return Ok(true) };
        if number == current.number {
            let same = record.same(current);
            refuse_if(!same, || {
                format!("generation {number} is not as it was agreed: {record:?}")
            })?;
            return Ok(false);
        }
        let pack = self.pack.as_ref().filter(|pack| pack.generation == number);
        let Some(pack) = pack else {
            return Err(format!(
                "generation {number} is neither {} nor being packed",
                current.number
            ));
        };
        let (Some(seal), Some(base_hash)) = (&pack.seal, pack.base_hash) else {
            return Err(format!("generation {number} has no agreed base"));
        };
        let agreed = GenerationRecord {
            number,
            base_hash,
            pack_seq: seal.pack_seq,
            cut_seq: seal.cut_seq,
            cut_chain: seal.cut_chain,
            since_wall_us: 0,
            block_root: pack.block_root,
        };
        refuse_if(!record.same(&agreed), || {
            format!("generation {number} is elected as {record:?}, and agreed as {agreed:?}")
        })?;
        Ok(true)
    }

    fn begin_generation(&mut self, at: u64, record: &GenerationRecord) {
        let pack = self.pack.take();
        let mut why =
            format!("generation {} with base {} is current", record.number, record.base_hash);
        if let Some(pack) = &pack {
            why.push_str(&how_it_went(pack, at));
            self.rested = Rested { since_wall_us: at, failed: false };
            self.packs_changed = self.applied;
        }
        let asked_by = pack.map_or(AUTOMATIC.into(), |pack| pack.asked_by);
        let about = About { what: "generation", why: &why, ..Default::default() };
        self.record(at, About { asked_by: &asked_by, ..about });
        self.generations.push_back(record.clone());
        while self.generations.len() > GENERATIONS_MAX {
            self.generations.pop_front();
        }
    }

    /// An election other than the switch ends a pack: the new master knows no dead set.
    fn call_off(&mut self, at: u64) {
        if mutants::broken(Mutant::PackSurvivesElection) {
            return;
        }
        let Some(pack) = self.pack.take() else { return };
        let why = format!("an election called off the pack to generation {}", pack.generation);
        let about = About { what: "pack called off", why: &why, ..Default::default() };
        self.record(at, About { asked_by: &pack.asked_by, ..about });
        self.pack_again = Some(PackAgain { id: pack.id, asked_by: pack.asked_by });
        self.packs_changed = self.applied;
    }

    fn on_opened(&mut self, at: u64, opened: &pb::Opened) -> Decided {
        let (epoch, seq) = (opened.epoch, Seq(opened.seq));
        let waits = epoch == self.epoch.0 && self.phase() == Phase::Elected { opened: false };
        refuse_if(!waits, || format!("epoch {epoch} does not wait for its master to open"))?;
        let mastership = self.mastership.as_ref().expect("elected");
        let floor = mastership.floor.tip.as_ref().map_or(0, |tip| tip.seq);
        let follows = seq.0 > floor && seq.0 < NUMBER_MAX;
        refuse_if(!follows, || format!("seq {seq} does not follow the floor {floor}"))?;
        let why = format!("its epoch start is committed at seq {seq}");
        let about = About { what: "opened", why: &why, asked_by: AUTOMATIC, ..Default::default() };
        let node = Some(mastership.master);
        let clients_waited_us = opened.clients_waited_us;
        self.record(at, About { node, clients_waited_us, ..about });
        self.opened = Some(seq);
        Ok(())
    }

    fn on_pack_start(&mut self, at: u64, start: &pb::PackStart) -> Decided {
        refuse_if(!self.is_open(), || "no master is open".into())?;
        if let Some(pack) = &self.pack {
            return Err(format!("the pack to generation {} is in progress", pack.generation));
        }
        let (after, changed) = (start.after, self.packs_changed);
        let stale = after != changed && !mutants::broken(Mutant::LateStartTaken);
        refuse_if(stale, || {
            format!(
                "asked for after decision {after} on packs, and another was made since (Raft index {changed}): \
                 see `packmaster ctl history`, and ask again if a pack is still wanted"
            )
        })?;
        let current = self.generation().expect("a master is open").number;
        let generation = Generation(start.generation);
        let follows = generation == current.next();
        refuse_if(!follows, || format!("generation {generation} does not follow {current}"))?;
        // an empty asker would be lost when the pack is called off
        let asked_by = Some(clip(&start.asked_by)).filter(|by| !by.is_empty());
        let asked_by = asked_by.unwrap_or(AUTOMATIC.into());
        let why = format!("generation {generation} is being made (pack {})", self.applied);
        let about = About { what: "pack start", why: &why, ..Default::default() };
        self.record(at, About { asked_by: &asked_by, ..about });
        self.pack_again = None;
        self.packs_changed = self.applied;
        self.pack = Some(Pack {
            id: PackId(self.applied),
            builds: Default::default(),
            generation,
            started_epoch: self.epoch,
            started_wall_us: at,
            asked_by,
            seal: None,
            base_hash: None,
            base_len: 0,
            block_root: None,
            ready: Default::default(),
            sealed_wall_us: 0,
            based_wall_us: 0,
            readied_wall_us: 0,
        });
        Ok(())
    }

    /// The pack in progress, if it is this one and belongs to the present epoch.
    fn pack_of(&mut self, id: u64, generation: u64) -> Result<&mut Pack, String> {
        let epoch = self.epoch;
        let identity_kept = !mutants::broken(Mutant::PackIdentityNotChecked)
            && !mutants::broken(Mutant::LateSealBuilt);
        refuse_if(id == 0 && identity_kept, || "the command does not say which pack".into())?;
        let pack = self.pack.as_mut().filter(|pack| pack.generation.0 == generation);
        let pack =
            pack.ok_or_else(|| format!("no pack to generation {generation} is in progress"))?;
        let other = pack.id.0 != id && identity_kept;
        refuse_if(other, || format!("it is of pack {id}, and pack {} is in progress", pack.id))?;
        let started = pack.started_epoch;
        let other = started != epoch && !mutants::broken(Mutant::PackSurvivesElection);
        refuse_if(other, || format!("the pack is of epoch {started}, it is {epoch}"))?;
        Ok(pack)
    }

    fn on_pack_seal(&mut self, at: u64, command: &pb::PackSeal) -> Decided {
        let seal = get_seal(command)?;
        let counts =
            [seal.cut_seq.0, seal.dead_count, seal.file_bytes, seal.kept_bytes, seal.tail_bytes];
        let absurd = counts.iter().any(|number| *number >= NUMBER_MAX);
        refuse_if(absurd, || "a seal in numbers beyond all bounds".into())?;
        let base = self.generation().map_or(Seq(0), |record| record.cut_seq);
        let pack = self.pack_of(command.pack, command.generation)?;
        refuse_if(pack.seal.is_some(), || "the pack is sealed already".into())?;
        let (p, f) = (seal.pack_seq, seal.cut_seq);
        let ordered = base <= p && p <= f;
        refuse_if(!ordered, || format!("P {p} and F {f} are not in order after {base}"))?;
        let asked_by = pack.asked_by.clone();
        let why = format!("P {p}, F {f}, {} objects dead", seal.dead_count);
        let garbage = u128::from(seal.file_bytes.saturating_sub(seal.kept_bytes));
        let share = garbage * 1000 / u128::from(seal.tail_bytes.max(1));
        let garbage_permille = (seal.tail_bytes != 0).then_some(share.min(1000) as u64);
        pack.seal = Some(seal);
        pack.sealed_wall_us = at;
        self.garbage_permille = garbage_permille.unwrap_or(self.garbage_permille);
        let about = About { what: "pack seal", why: &why, ..Default::default() };
        self.record(at, About { asked_by: &asked_by, ..about });
        Ok(())
    }

    /// A node says what it has built. The first base is agreed until two nodes have built another one; who built it does not
    /// matter, so a node with a broken disk fails alone, and not the pack.
    fn on_pack_base(&mut self, at: u64, base: &pb::PackBase) -> Decided {
        let built = get_build(base)?;
        let node = NodeId(base.node);
        self.known(node)?;
        let pack = self.pack_of(base.pack, base.generation)?;
        refuse_if(pack.seal.is_none(), || "the pack is not sealed".into())?;
        let known = pack.builds.insert(node, built) == Some(built);
        refuse_if(known, || format!("node {node} has said that already"))?;
        let first = pack.base_hash.is_none();
        if first {
            pack.base_hash = Some(built.base_hash);
            pack.base_len = built.base_len;
            pack.block_root = built.block_root;
            pack.based_wall_us = at;
            let asked_by = pack.asked_by.clone();
            let (hash, len) = (built.base_hash, built.base_len);
            let why = format!("base {hash} of {len} bytes was built first here");
            let about = About { what: "pack base", why: &why, ..Default::default() };
            self.record(at, About { asked_by: &asked_by, node: Some(node), ..about });
        }
        self.count_builds(at);
        Ok(())
    }

    /// Two equal bases outvote another one, also if that was first. `ready` must have the agreed one.
    fn count_builds(&mut self, at: u64) {
        let Some(pack) = self.pack.as_mut() else { return };
        if let Some(base) = pack.outvoting().filter(|_| !mutants::broken(Mutant::FirstBaseForGood))
        {
            pack.base_hash = Some(base.base_hash);
            pack.base_len = base.base_len;
            pack.block_root = base.block_root;
            pack.based_wall_us = at;
            let builds = &pack.builds;
            pack.ready.retain(|node| builds.get(node) == Some(&base));
        }
        let Some(agreed) = pack.agreed().filter(|agreed| pack.votes(agreed) >= VOTES_MIN) else {
            return;
        };
        let (generation, asked_by) = (pack.generation, pack.asked_by.clone());
        let (right, wrong): (Vec<_>, Vec<_>) =
            pack.builds.clone().into_iter().partition(|(_, built)| *built == agreed);
        right.iter().for_each(|(node, _)| _ = self.odd_builds.remove(node));
        let others: Vec<String> = right.iter().map(|(node, _)| self.name_of(*node)).collect();
        for (node, built) in wrong {
            let base_hash = built.base_hash;
            let odd = OddBuild { generation, base_hash, wall_us: at };
            let known = self.odd_builds.get(&node);
            if known
                .is_some_and(|known| (known.generation, known.base_hash) == (generation, base_hash))
            {
                continue;
            }
            self.odd_builds.insert(node, odd);
            let why = format!(
                "{} built base {base_hash}, and {} built {}: the disk or memory of {0} gave other bytes than two \
                 others; check or replace it",
                self.name_of(node),
                others.join(" and "),
                agreed.base_hash,
            );
            let about = About { what: "pack base outvoted", why: &why, ..Default::default() };
            self.record(at, About { asked_by: &asked_by, node: Some(node), ..about });
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| format!("node {node}"), |it| it.name.clone())
    }

    fn on_pack_ready(&mut self, at: u64, ready: &pb::PackReady) -> Decided {
        let node = NodeId(ready.node);
        let has = get_chain("the base hash", &ready.base_hash)?;
        self.known(node)?;
        let pack = self.pack_of(ready.pack, ready.generation)?;
        let agreed = pack.agreed().ok_or("no base is agreed")?;
        let built = pack.builds.get(&node);
        let right = has == agreed.base_hash && built == Some(&agreed);
        refuse_if(!right, || {
            format!("node {node} has base {has}, and agreed is {}", agreed.base_hash)
        })?;
        refuse_if(!pack.ready.insert(node), || format!("node {node} is ready already"))?;
        pack.readied_wall_us = at;
        Ok(())
    }

    fn on_pack_cancel(&mut self, at: u64, cancel: &pb::PackCancel) -> Decided {
        let id = PackId(cancel.pack);
        refuse_if(id == PackId(0), || "the command does not say which pack".into())?;
        let present = self.cancellable();
        // also one that would be started again by itself
        let next = self.generation().map(|record| record.number.next().0);
        let present = present
            .filter(|_| next == Some(cancel.generation))
            .ok_or_else(|| format!("no pack to generation {} is in progress", cancel.generation))?;
        let other = present != id && !mutants::broken(Mutant::LateCancelTaken);
        refuse_if(other, || {
            format!(
                "pack {id} was to be cancelled, and by now it is pack {present}: see `packmaster ctl history`, and cancel \
                 again if that one is meant"
            )
        })?;
        self.pack = None;
        self.pack_again = None;
        self.packs_changed = self.applied;
        self.rested = Rested { since_wall_us: at, failed: true };
        let asked_by = cancel.asked_by.as_str();
        let asked_by = if asked_by.is_empty() { AUTOMATIC } else { asked_by };
        let why = format!("{} (pack {present})", cancel.why);
        let about = About { what: "pack cancel", why: &why, ..Default::default() };
        self.record(at, About { asked_by, ..about });
        Ok(())
    }

    /// Not recorded: a busy master takes many.
    fn on_oid_block(&mut self, block: &pb::OidBlock) -> Decided {
        let (epoch, limit) = (block.epoch, self.oid_limit);
        let own = epoch == self.epoch.0 && self.master().is_some();
        refuse_if(!own, || format!("epoch {epoch} has no master to give out oids"))?;
        let from = Oid(block.from);
        refuse_if(from != limit, || format!("decided on oid limit {from}, and it is {limit}"))?;
        let below = Oid(block.below);
        let raises = below > limit && below < Oid::CHAIN;
        refuse_if(!raises, || format!("oid limit {below} does not raise {limit}"))?;
        self.oid_limit = below;
        Ok(())
    }

    fn on_pause(&mut self, at: u64, pause: &pb::Pause) -> Decided {
        let same = pause.paused == self.paused;
        let (what, already) = match pause.paused {
            true => ("pause", "automatic elections are paused already"),
            false => ("resume", "automatic elections are not paused"),
        };
        refuse_if(same, || already.into())?;
        let (after, changed) = (pause.after, self.pause_changed);
        let stale = after != changed && !mutants::broken(Mutant::LateSettingTaken);
        refuse_if(stale, || changed_since("paused or resumed", after, changed, "status"))?;
        self.paused = pause.paused;
        self.pause_changed = self.applied;
        self.record(at, About { what, asked_by: &pause.asked_by, ..Default::default() });
        Ok(())
    }

    fn on_setting(&mut self, at: u64, setting: &pb::Setting) -> Decided {
        let pb::Setting { name, value, asked_by, after } = setting;
        let fits = value.len() <= TEXT_MAX;
        refuse_if(!fits, || format!("a value of {} bytes is too long", value.len()))?;
        let value = settings::check(name, value)?;
        let before = self.settings.get(name).cloned();
        refuse_if(value == before, || format!("{name} is {} already", shown(&value)))?;
        let (after, changed) = (*after, self.setting_changed(name));
        let stale = after != changed && !mutants::broken(Mutant::LateSettingTaken);
        refuse_if(stale, || changed_since(name, after, changed, "config show"))?;
        let why = format!("{name} = {}, was {}", shown(&value), shown(&before));
        match value {
            Some(value) => self.settings.insert(name.clone(), value),
            None => self.settings.remove(name),
        };
        self.settings_changed.insert(name.clone(), self.applied);
        self.record(at, About { what: "setting", why: &why, asked_by, ..Default::default() });
        self.note_alone();
        Ok(())
    }
}

/// ": mark 1.2 s, build 8.0 s, switch 0.1 s; 300.0 MB became 150.0 MB", by the proposers' clocks.
fn how_it_went(pack: &Pack, at: u64) -> String {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let readied = pack.readied_wall_us;
    let times = format!(
        ": mark {:.1} s, build {:.1} s, switch {:.1} s",
        seconds(pack.started_wall_us, pack.sealed_wall_us),
        seconds(pack.sealed_wall_us, readied),
        seconds(readied, at)
    );
    let Some(seal) = pack.seal.as_ref().filter(|seal| seal.file_bytes != 0) else { return times };
    let (before, after) = (megabytes(seal.file_bytes), megabytes(pack.base_len));
    format!("{times}; {before:.1} MB became {after:.1} MB")
}

/// Somebody else was faster: what to do about it.
fn changed_since(what: &str, after: u64, changed: u64, see: &str) -> String {
    format!(
        "{what}: it was changed meanwhile (at Raft index {changed}; known was {after}): look at `packmaster ctl {see}`, and \
         ask again if it is still to be changed"
    )
}

fn or_none(id: PackId) -> String {
    if id == PackId(0) { "none".into() } else { format!("pack {id}") }
}

fn shown(value: &Option<String>) -> &str {
    match value {
        None => settings::DEFAULT,
        Some(text) if text.is_empty() => "empty",
        Some(text) => text,
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
