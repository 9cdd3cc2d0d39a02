//! From what a disk holds to a running core.
//!
//! Everything is read back and checked before a word is said to anybody: the Raft log, the promise, the current file
//! with its whole chain. A torn tail is cut aside; corruption stops the start with words for the operator. A flip or a
//! build that a crash interrupted needs nothing here: the link points at one whole file or the other, and the rebase
//! ladder finishes the rest.
//!
//! A first start makes, each durably before the next: the Raft log, the data file and the link to it, the promise (of
//! epoch 0). Then the shell notes in the identity that the disk is *born*. So what is missing beside anything that comes
//! later in this order was lost, and a crash in a first start never looks like a loss:
//!
//! | missing | beside | |
//! | --- | --- | --- |
//! | Raft log | born, link or promise | *lost*: this node may vote and acknowledge what it can't remember. It starts, says so, and takes no part; no log is made, so that one that is put back is found |
//! | promise | born | *lost*, and noted on the disk: the same |
//! | link, or the file it points at | born, a promise of an epoch, or a Raft log with something in it | the data is lost: fetched from the others, and this node counts for nothing until it has all of it (`storage::loss`) |
//! | anything | nothing | a first start, or one that was interrupted |
//!
//! Directories of older programs are never born, and have no promise before the first election: there, a missing promise
//! is taken for none, as they did, and the others tell if there was one (`proof`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use slog::o;

use super::proof::Proof;
use super::{
    Core, REMEDY, Role, Setup, admin, beats, disk, durability, fetch, generations, giving, ladder,
    packing, requests,
};
use crate::control::{Member, Role as MemberRole, Settings, State};
use crate::durus::{CommitChecker, Sessions};
use crate::failover::controller::Controller;
use crate::failover::health::Health;
use crate::mutants::{self, Mutant};
use crate::plausible::{Claims, Memory};
use crate::raft::{Driver, DriverError, RaftLog, RaftLogError};
use crate::shelf::{self, Opened, Shelf, ShelfError};
use crate::storage::loss::{self, Loss};
use crate::storage::promise::{self, PromiseError};
use crate::storage::synced;
use crate::storage::task::{AMNESIAC, CURRENT};
use crate::storage::{Disk, DiskError};
use crate::types::{Epoch, Generation, NodeId, Now, Seq};

/// What works today for a node alone that has lost its memory.
const ALONE: &str = "A node alone has nobody to ask: put raft-a.log or raft-b.log back as they were when it last ran. Its \
    objects are whole: current.durus is a Durus file, which stock Durus opens";

/// The first generation's file.
pub const FIRST: &str = "g00000001.durus";
/// What stands for the current file while that is fetched again.
const BLANK: &str = "g00000001-blank.durus";
/// And while that is damaged itself.
const BLANK_AGAIN: &str = "g00000001-blank-again.durus";
/// So many of the newest transactions are read again, to recognise commits that are asked for twice.
const REMEMBER_SEQS: u64 = 50_000;
/// And not more bytes of them than this.
const REMEMBER_BYTES: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the Raft log: {0}")]
    RaftLog(#[from] RaftLogError),
    #[error("Raft: {0}")]
    Raft(#[from] DriverError),
    #[error("{0}; this node can't take part: {REMEDY}")]
    Promise(#[from] PromiseError),
    #[error("{name}: {error}")]
    Shelf { name: String, error: ShelfError },
    #[error(
        "{0} is gone, and other files show that there was data here. Put the data directory back as it was, or its file \
         {CURRENT} from a backup; an empty directory begins an empty database"
    )]
    DataLost(String),
    #[error("the configuration: {0}")]
    Setup(String),
}

/// Reads everything back. Synchronous disk work; what it mends is durable when it returns.
pub fn start(setup: Setup, now: Now) -> Result<(Core, RaftLog), StartError> {
    let log = setup.log.new(o!("node" => setup.id.0));
    let disk = setup.disk.clone();
    let lost = find_lost(&*disk, setup.born)?;
    let (raft_log, recovered) = match lost.raft_log {
        true => RaftLog::lost(disk.clone()),
        false => RaftLog::open(disk.clone())?,
    };
    if let Some(repaired) = &recovered.repaired {
        slog::warn!(log, "the Raft log was mended from its second copy"; "what" => repaired);
    }
    let promised = promise::read(&*disk)?.filter(|_| !mutants::broken(Mutant::PromiseForgotten));
    let promised = promised.unwrap_or(Epoch(0));
    let others = setup.members.len() > 1;
    remove_unfinished(&*disk)?;
    let was_used = setup.born || promised > Epoch(0) || !recovered.is_blank();
    let shelf = open_current(&disk, promised, &log, now, others, was_used)?;
    // What was read may be in memory only, if a process was killed before its sync: it is reported as durable from now on.
    shelf.file().sync()?;
    if !others {
        synced::write(&*disk, shelf.generation(), shelf.tip().offset)?;
    }
    disk.sync_dir()?;
    let cut_before = durability::cut_before(&*disk, setup.id)?;
    let recovering = loss::read(&*disk, promised)?;
    let recovering = recovering.filter(|_| !mutants::broken(Mutant::LossForgotten));
    let suspect = doubts(&*disk, &lost, others)?;
    if !suspect.is_empty() {
        slog::crit!(log, "this node's disk has lost its memory: it takes no part"; "why" => &suspect);
    } else if !disk.exists(promise::NAME)? {
        promise::write(&*disk, Epoch(0))?;
    }
    let members = members(&setup)?;
    let voters: Vec<NodeId> = members.iter().map(|member| member.id).collect();
    let rank = voters.iter().position(|id| *id == setup.id).expect("checked by members()");
    // Different on every node, so that two seldom campaign at once.
    let election_ticks = setup.timing.raft_election_ticks as usize + 3 * rank;
    // A disk that has never promised anything has nothing to forget, and a node alone has nobody to ask.
    let blank = recovered.fresh && promised == Epoch(0);
    let proof = (!blank && voters.len() > 1).then(|| Proof::new(now, shelf.tip().seq));
    let raft = Driver::new(setup.id, &voters, recovered, election_ticks, &log)?;
    let checker =
        remember(&shelf).map_err(|error| StartError::Shelf { name: shelf.name().into(), error })?;
    let control = State::new(members);
    let peers = voters.iter().copied().filter(|id| *id != setup.id);
    let tip = shelf.tip();
    slog::info!(log, "started"; "generation" => shelf.generation().0, "tip" => %tip, "promised" => promised.0);
    let core = Core {
        log,
        now,
        raft,
        raft_tick_due_us: now.mono_us,
        raft_campaign_due_us: None,
        raft_persist_since: None,
        raft_yielded: None,
        compacted_index: 0,
        proposed: false,
        settings: Settings::of(&control),
        control,
        member_up_sent: None,
        promised,
        promise_durable: promised,
        fence_asked_by: None,
        role: Role::None,
        health: Health::new(peers, now),
        controller: Controller::default(),
        durable: tip,
        committed: shelf.cut(),
        applied_epoch: Epoch(0),
        verified: (tip.seq, now.wall_us),
        synced_noted: None,
        cutting: false,
        next: None,
        old: BTreeMap::new(),
        old_files: generations::OldFiles::default(),
        dead_bytes: (Generation(0), 0),
        tasks: disk::Tasks::default(),
        checker,
        sessions: Sessions::new(
            setup.limits.clone(),
            setup.boot,
            shelf.indexed(),
            shelf.generation(),
        ),
        serving: false,
        told: durability::Told::new(cut_before),
        early_clients: Default::default(),
        requests: requests::Requests::default(),
        pack: packing::PackRun::default(),
        rebase: None,
        pull: None,
        incoming: Default::default(),
        late_fetch: None,
        jobs_begun: 0,
        fetch: None,
        fetch_past: fetch::Past::default(),
        giving: giving::Giving::default(),
        fetched_bytes: 0,
        ladder: ladder::Ladder::default(),
        last_rebase: String::new(),
        tail_failed_for: None,
        opening_old: None,
        unopened_old: None,
        controller_due_us: 0,
        beats: beats::Beats::default(),
        admin: admin::Requests::default(),
        early_registers: BTreeMap::new(),
        loopback: VecDeque::new(),
        claims: Claims::default(),
        disbelieved: Memory::default(),
        suspect,
        proof,
        recovering,
        leaving: None,
        exited: false,
        shelf,
        setup,
    };
    Ok((core, raft_log))
}

/// What is not there and was.
struct Lost {
    raft_log: bool,
    promise: bool,
}

/// Looked at before anything is made. The table is at the head of this file.
fn find_lost(disk: &dyn Disk, born: bool) -> Result<Lost, DiskError> {
    let promised = disk.exists(promise::NAME)?;
    let used = born || promised || disk.read_link(CURRENT)?.is_some();
    let raft_log = used && !RaftLog::exists(disk)? && !mutants::broken(Mutant::RaftLogMadeAnew);
    Ok(Lost { raft_log, promise: born && !promised })
}

/// Why this node takes no part, for its status; empty if it does.
fn doubts(disk: &dyn Disk, lost: &Lost, others: bool) -> Result<String, DiskError> {
    let what_to_do = if others { REMEDY } else { ALONE };
    if lost.raft_log {
        return Ok(format!(
            "its Raft log (raft-a.log and raft-b.log) is gone, and its other files show that there was one: it can't know \
             what it has voted for and acknowledged. {what_to_do}"
        ));
    }
    if lost.promise && !disk.exists(AMNESIAC)? {
        // The next epoch would be promised into a new file, which the start after that would take for this one.
        disk.create(AMNESIAC)?.sync()?;
        disk.sync_dir()?;
    }
    let amnesiac = disk.exists(AMNESIAC)? && !mutants::broken(Mutant::AmnesiaForgotten);
    Ok(match amnesiac {
        true => format!("this disk does not hold what this node has promised. {what_to_do}"),
        false => String::new(),
    })
}

/// Bases that this node was building when its process ended. Durable with the directory's next sync.
fn remove_unfinished(disk: &dyn Disk) -> Result<(), DiskError> {
    let names = disk.list()?;
    names
        .iter()
        .filter(|name| generations::is_building(name))
        .try_for_each(|name| disk.remove(name))
}

fn members(setup: &Setup) -> Result<Vec<Member>, StartError> {
    if !setup.members.iter().any(|member| member.id == setup.id.0) {
        return Err(StartError::Setup(format!("node {} is not among the members", setup.id)));
    }
    let member = |member: &crate::proto::control::Member| {
        let role = MemberRole::from_name(&member.role).ok_or_else(|| {
            StartError::Setup(format!("{}: there is no role {:?}", member.name, member.role))
        })?;
        Ok(Member {
            id: NodeId(member.id),
            name: member.name.clone(),
            disk_uuid: None,
            durus: member.durus.clone(),
            peer: member.peer.clone(),
            http: member.http.clone(),
            role,
            priority: member.priority,
            may_be_master: member.may_be_master,
        })
    };
    let mut members: Vec<Member> =
        setup.members.iter().map(member).collect::<Result<_, StartError>>()?;
    members.sort_by_key(|member| member.id);
    Ok(members)
}

/// The current file, verified, its torn tail cut aside; a new one in an empty directory.
fn open_current(
    disk: &Arc<dyn Disk>,
    promised: Epoch,
    log: &slog::Logger,
    now: Now,
    others: bool,
    was_used: bool,
) -> Result<Shelf, StartError> {
    let link = disk.read_link(CURRENT)?;
    let is_there = link.as_ref().map_or(Ok(false), |name| disk.exists(name))?;
    if was_used && !is_there {
        let what = link.unwrap_or_else(|| format!("the link {CURRENT}"));
        if !others {
            return Err(StartError::DataLost(what));
        }
        slog::crit!(log, "the data file is gone: it is fetched from the others; until then this node neither votes nor \
            acknowledges"; "missing" => what);
        return begin_anew(&**disk, promised, None, now);
    }
    let name = match link {
        Some(name) => name,
        None => {
            if !disk.exists(FIRST)? {
                slog::info!(log, "an empty data directory: making an empty file"; "file" => FIRST);
                at(FIRST, Shelf::create(&**disk, FIRST))?;
            }
            // Its name may be that of a process that was killed before its sync: first it, then what points at it.
            disk.sync_dir()?;
            disk.set_link(CURRENT, FIRST)?;
            disk.sync_dir()?;
            FIRST.to_string()
        }
    };
    let opened = Shelf::open_proved(&**disk, &name);
    if let Err(damage @ (ShelfError::Corrupt { .. } | ShelfError::NotShelf { .. })) = &opened
        && others
        && promised > Epoch(0)
    {
        // It has taken part: the others have the file.
        slog::crit!(log, "the file's base is damaged: it is kept aside, and fetched from the others; until then this \
            node neither votes nor acknowledges"; "damage" => %damage);
        return begin_anew(&**disk, promised, Some(&name), now);
    }
    let (Opened { shelf, torn }, mut damage) = at(&name, opened)?;
    if let Some(ShelfError::Corrupt { offset, why, .. }) = &damage
        && !others
        && shelf.tip().offset >= synced::read(&**disk, shelf.generation())?
    {
        slog::warn!(log, "the end of the file was never synced, and the power failure left it in pieces; nothing of it was \
            acknowledged"; "offset" => offset, "what" => why);
        damage = None;
    }
    if let Some(damage) = damage.as_ref().filter(|_| !mutants::broken(Mutant::CorruptionCutAsTorn))
    {
        slog::crit!(log, "the file is damaged: what is proved of it is used, the rest is kept aside; this node neither \
            votes nor acknowledges until it has fetched everything again"; "damage" => %damage, "proved" => %shelf.tip());
        // First this: a crash after the cut must not make a node that looks sound.
        let end = torn.as_ref().map_or(shelf.tip().offset, |torn| torn.offset + torn.len);
        let generation = shelf.generation();
        loss::write(&**disk, Loss { epoch: promised, generation, end })?;
    }
    let Some(torn) = torn else { return Ok(shelf) };
    drop(shelf);
    let keep_as = format!("orphans/{name}-torn-at-{}-{}", torn.offset, now.wall_us);
    if damage.is_none() {
        slog::warn!(log, "the file ends inside its last transaction: cut there, the piece is kept";
            "offset" => torn.offset, "bytes" => torn.len, "kept_as" => &keep_as);
    }
    at(&name, Shelf::cut_torn(&**disk, &name, &torn, &keep_as))?;
    let Opened { shelf, torn } = at(&name, Shelf::open(&**disk, &name))?;
    match torn {
        None => Ok(shelf),
        Some(torn) => Err(StartError::Setup(format!("{name} is torn again at {}", torn.offset))),
    }
}

/// With a blank file, onto which nothing can be rebased but what is fetched.
fn begin_anew(
    disk: &dyn Disk,
    promised: Epoch,
    damaged: Option<&str>,
    now: Now,
) -> Result<Shelf, StartError> {
    // Which generation it was is not known either: no later one makes up for it within the epoch. And of a file that is
    // gone not even how long it was.
    let end = damaged.map_or(Ok(u64::MAX), |name| disk.open(name)?.len())?;
    loss::write(disk, Loss { epoch: promised, generation: Generation(u64::MAX), end })?;
    // The link must never point at what is not there: the damaged file keeps its name as long as it is the current one.
    let blank = if damaged == Some(BLANK) { BLANK_AGAIN } else { BLANK };
    if disk.exists(blank)? {
        disk.remove(blank)?;
    }
    let shelf = at(blank, Shelf::create(disk, blank))?;
    disk.set_link(CURRENT, blank)?;
    disk.sync_dir()?;
    if let Some(damaged) = damaged {
        disk.rename(damaged, &format!("orphans/{damaged}-damaged-{}", now.wall_us))?;
        disk.sync_dir()?;
    }
    Ok(shelf)
}

fn at<T>(name: &str, result: Result<T, ShelfError>) -> Result<T, StartError> {
    result.map_err(|error| StartError::Shelf { name: name.into(), error })
}

/// The commit checker, fed with the newest transactions of the file.
fn remember(shelf: &Shelf) -> Result<CommitChecker, ShelfError> {
    let tip = shelf.tip();
    let mut from = Seq(shelf.cut().0.max(tip.seq.0.saturating_sub(REMEMBER_SEQS)));
    let begins = |seq| shelf.tip_at(seq).map(|found| found.expect("between the seal and the tip"));
    let mut at = begins(from)?;
    while tip.offset - at.offset > REMEMBER_BYTES {
        from = Seq(from.0 + (tip.seq.0 - from.0).div_ceil(2));
        at = begins(from)?;
    }
    let mut checker = CommitChecker::new(from);
    let mut offset = at.offset;
    while offset < tip.offset {
        let data = shelf.read_range(offset, 1 << 20)?;
        for tx in shelf::split_transactions(&data) {
            let tx = tx.expect("a verified file");
            let parsed = shelf::parse(tx).expect("a verified file");
            let oids: Vec<_> = parsed.records.iter().map(|record| record.oid).collect();
            checker.noted(parsed.meta.seq, parsed.meta.commit_id, &oids);
            offset += tx.len() as u64;
        }
    }
    Ok(checker)
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
