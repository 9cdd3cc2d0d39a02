//! What the cluster setting `durability` means here: what clients may be told, what this node shows, and what is lost.
//!
//! `replication::quorum` has the two marks. What follows from them on a node:
//!
//! * A node shows what is committed. The master of an epoch also shows what it has acknowledged, if that is more: its own
//!   clients must see their own commits.
//! * A client of another node hears of its commit when that node shows it, so when it is committed, also with `local`: were
//!   it told at once, its next command would have to wait for the same moment. So what `local` may lose is only what the
//!   clients of the master were told.
//! * An acknowledgement is never taken back: the mark only grows, whatever the setting becomes.
//!
//! When mastership ends and this node shows more than is committed, its clients are **held**: an election may choose a
//! history without what they were shown. What they ask meanwhile waits, as before a node serves at all (`early`). If all of
//! it is committed after all, they go on and notice nothing. If this node's file is cut back below what it showed, they are
//! disconnected: a client must not go on from a state that never was. What was cut is counted, told to the cluster through
//! Raft (`control::losses`), and kept as an orphan file.

use std::collections::{BTreeMap, VecDeque};

use super::serve::Asker;
use super::{Action, Core, Role};
use crate::durus::CloseReason;
use crate::mutants::{self, Mutant};
use crate::proto::control::command::Kind as CommandKind;
use crate::proto::control::{Beat, TailLost};
use crate::proto::replication::client_reply::Answer;
use crate::replication::quorum::Durability;
use crate::shelf::Kind;
use crate::storage::{Disk, DiskError};
use crate::types::{Epoch, NodeId, Now, Seq};

/// Commits that wait for a voter for so long are told in status.
const WAITS_MS: u64 = 500;
/// Acknowledged and not committed: their times are kept apart if they are so far from each other.
const TIMES_APART_MS: u64 = 20;
/// Transactions of a tail that is cut whose epochs are looked at; older ones count as of the oldest of these.
const COUNTED_MAX: u64 = 10_000;
/// A loss that is not in the replicated state is told again after this long.
const TELL_AGAIN_MS: u64 = 500;
/// A line of an orphan file's header: epoch, number of clients' transactions, where the file was cut, the newest of them, and
/// when, in microseconds since 1970.
const COMMITS: &str = "commits_of_epoch ";
/// Orphan files whose headers are read at a start, and how much of each.
const ORPHANS_READ_MAX: usize = 32;
const HEAD_BYTES: u64 = 4096;
/// Losses that are still to be told.
const UNTOLD_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Told {
    /// Clients may hear of transactions up to here. Above `committed` only with durability `local`, on a node that is or
    /// was master.
    acknowledged: Seq,
    /// The newest of them at a time, and when it was acknowledged; those above what is committed.
    alone: VecDeque<(Seq, Now)>,
    /// When the mark last moved, or had nothing to move to.
    moved: Now,
    /// Clients were served by this process.
    has_served: bool,
    /// Mastership has ended, and clients were shown more than is committed.
    held: bool,
    /// Cut from this node's file, and not in the replicated state yet.
    untold: Vec<TailLost>,
    untold_sent: Option<Now>,
}

impl Told {
    pub(super) fn new(untold: Vec<TailLost>) -> Told {
        Told { untold, ..Told::default() }
    }
}

impl Core {
    pub fn durability(&self) -> Durability {
        self.settings.durability
    }

    // ---- the marks ----

    /// More is committed, or durable here, or the setting has changed: whoever waits for that hears so.
    pub(super) fn advance_acknowledged(&mut self, out: &mut Vec<Action>) {
        let (me, durability) = (self.setup.id, self.durability());
        let Role::Master(master) = &self.role else { return };
        let mark = master.quorum.acknowledged(durability, me).unwrap_or_default();
        if mark > self.told.acknowledged {
            self.told.acknowledged = mark;
            self.told.moved = self.now;
        }
        self.note_alone();
        self.apply_committed(out);
        self.answer_acknowledged(out);
    }

    /// A slave: its master says up to where clients may be told of what is committed.
    pub(super) fn learn_acknowledged(&mut self, announced: Seq) {
        let committed = match mutants::broken(Mutant::AnnouncedBelieved) {
            true => announced,
            false => self.committed,
        };
        self.told.acknowledged = self.told.acknowledged.max(announced.min(committed));
    }

    /// To go along with what is announced.
    pub(super) fn acknowledged(&self) -> Seq {
        self.told.acknowledged
    }

    /// What loads see here. It never goes back but by a cut.
    pub(super) fn visible(&self) -> Seq {
        match &self.role {
            Role::Master(_) => self.committed.max(self.told.acknowledged),
            _ => self.committed,
        }
    }

    /// Up to where this asker's client may be told that a commit is stored.
    pub(super) fn told_to(&self, asker: &Asker) -> Seq {
        let elsewhere = !asker.is_of(self.setup.id);
        match elsewhere && !mutants::broken(Mutant::LocalToldElsewhere) {
            true => self.told.acknowledged.min(self.committed),
            false => self.told.acknowledged,
        }
    }

    /// What a sync is answered: everything that a client of the asker's node may have been told of before.
    pub(super) fn synced_to(&self, asker: &Asker) -> Seq {
        match asker.is_of(self.setup.id) {
            true => self.visible(),
            false => self.committed,
        }
    }

    fn answer_acknowledged(&mut self, out: &mut Vec<Action>) {
        let Role::Master(master) = &self.role else { return };
        let done = |(seq, asker): &(&Seq, &Asker)| **seq <= self.told_to(asker);
        let done = master.in_flight.range(..=self.visible()).filter(done);
        let done: Vec<(Seq, Asker)> = done.map(|(seq, asker)| (*seq, *asker)).collect();
        for (seq, asker) in done {
            if let Some(master) = self.master() {
                master.in_flight.remove(&seq);
            }
            self.answer(asker, Answer::CommittedSeq(seq.0), out);
        }
    }

    fn note_alone(&mut self) {
        let (committed, acknowledged, now) = (self.committed, self.told.acknowledged, self.now);
        let alone = &mut self.told.alone;
        while alone.front().is_some_and(|(seq, _)| *seq <= committed) {
            alone.pop_front();
        }
        if acknowledged <= committed {
            return;
        }
        match alone.back_mut() {
            Some((seq, at)) if now.since_ms(*at) < TIMES_APART_MS => *seq = acknowledged,
            Some((seq, _)) if *seq >= acknowledged => {}
            _ => alone.push_back((acknowledged, now)),
        }
    }

    // ---- what others are told of it ----

    pub(super) fn put_durability(&self, beat: &mut Beat) {
        let Role::Master(master) = &self.role else { return };
        if !master.open {
            return;
        }
        beat.acknowledged_seq = self.told.acknowledged.0;
        if self.told.acknowledged > self.committed {
            let oldest = self.told.alone.front();
            beat.alone_ms = oldest.map_or(0, |(_, at)| self.now.since_ms(*at));
        }
        let waited_ms = self.now.since_ms(self.told.moved);
        if let Some((seq, _)) = master.in_flight.first_key_value()
            && self.durability() == Durability::All
            && *seq <= self.committed
            && waited_ms >= WAITS_MS
        {
            beat.waits_for = master.quorum.lacking(*seq).map(|voter| voter.0).collect();
            beat.waits_ms = waited_ms;
        }
    }

    /// A commit begins to wait: until now there was nothing to acknowledge.
    pub(super) fn note_waiting(&mut self) {
        let now = self.now;
        let Role::Master(master) = &self.role else { return };
        if master.in_flight.is_empty() {
            self.told.moved = now;
        }
    }

    // ---- when mastership ends ----

    /// Clients that were shown more than is committed wait until it is, or is cut away.
    pub(super) fn hold_if_ahead(&mut self) {
        let ahead = self.shelf.indexed() > self.committed;
        if self.serving && ahead && !mutants::broken(Mutant::LostStillServed) {
            slog::warn!(self.log, "mastership ended with transactions that were acknowledged here and that no majority is known to \
                have (durability local): this node's clients wait for what becomes of them";
                "acknowledged" => self.told.acknowledged.0, "committed" => self.committed.0);
            self.told.held = true;
            self.serving = false;
        }
    }

    /// True the first time.
    pub(super) fn serves_first(&mut self) -> bool {
        !std::mem::replace(&mut self.told.has_served, true)
    }

    pub(super) fn is_holding(&self) -> bool {
        self.told.held
    }

    /// Everything that clients were shown is committed: they go on.
    pub(super) fn go_on_if_committed(&mut self, out: &mut Vec<Action>) {
        let shows_more = self.committed < self.shelf.indexed();
        if shows_more && !mutants::broken(Mutant::HeldGoOnEarly) {
            return;
        }
        self.told.held = false;
        self.serving = true;
        for input in self.early_clients.take() {
            self.on_client(input, out);
        }
        self.poke_sessions(out);
        self.beats.soon();
    }

    /// While clients are held: who is disconnected there has no session any more.
    pub(super) fn leave_held(&mut self, before: usize, out: &mut Vec<Action>) {
        let closed = |action: &Action| match action {
            Action::ClientClose { conn, .. } => Some(*conn),
            _ => None,
        };
        let closed: Vec<_> = out[before..].iter().filter_map(closed).collect();
        for conn in closed {
            self.on_client_closed(conn, out);
        }
    }

    // ---- what is lost ----

    /// The file is about to be cut back to `point`, or to be replaced by one that has nothing of it but what comes before.
    /// `kept`: where what comes after it is kept. Returns lines for the header of that file, by which the node's next
    /// process knows what it may still have to tell.
    pub(super) fn note_lost(&mut self, point: Seq, kept: &str) -> String {
        let mut lost: BTreeMap<Epoch, (u64, Seq)> = BTreeMap::new();
        let tip = self.shelf.tip();
        let first = Seq(point.0.max(tip.seq.0.saturating_sub(COUNTED_MAX)) + 1);
        for seq in (first.0..=tip.seq.0).map(Seq) {
            let Ok(Some(meta)) = self.shelf.meta_at(seq) else { continue };
            if let Kind::Commit = meta.kind {
                let (count, newest) = lost.entry(meta.epoch).or_default();
                *count += 1;
                *newest = seq;
            }
        }
        let mut lines = String::new();
        for (epoch, (transactions, newest)) in lost {
            let (at_wall_us, after_seq) = (self.now.wall_us, point.0);
            lines +=
                &format!("{COMMITS}{epoch} {transactions} {after_seq} {newest} {at_wall_us}\n");
            if self.told.untold.len() < UNTOLD_MAX {
                self.told.untold.push(TailLost {
                    node: self.setup.id.0,
                    epoch: epoch.0,
                    transactions,
                    after_seq,
                    to_seq: newest.0,
                    kept: kept.to_string(),
                    at_wall_us,
                });
            }
        }
        lines
    }

    /// The file is cut back to `point`, or replaced by one that shows `applied`: clients that were shown more are
    /// disconnected, and told why. This node serves again when all that its file shows is committed.
    pub(super) fn drop_shown(&mut self, point: Seq, applied: Seq, out: &mut Vec<Action>) {
        let shown = self.sessions.newest_shown();
        self.told.acknowledged = self.told.acknowledged.min(point);
        self.told.alone.clear();
        if mutants::broken(Mutant::LostStillServed) && point < shown {
            return self.sessions.jumped(applied);
        }
        if !self.told.held || point >= shown {
            return;
        }
        slog::error!(self.log, "transactions that were acknowledged here are lost: mastership moved before a majority had them, as \
            durability local permits; this node's clients are disconnected"; "after" => point.0, "shown" => shown.0);
        self.told.held = false;
        let mut actions = Vec::new();
        let reason = CloseReason::Lost { after: point };
        self.sessions.end_all(&reason, &mut actions);
        self.on_session_actions(actions, out);
        self.beats.soon();
    }

    /// What was cut is told to the cluster, until the replicated state shows that it knows. Whether any of it was
    /// acknowledged is judged there.
    pub(super) fn drive_losses(&mut self, out: &mut Vec<Action>) {
        if self.told.untold.is_empty() {
            return;
        }
        let control = &self.control;
        // Our own copy of the state may not have come to the end of that epoch yet.
        let is_over = |lost: &TailLost| control.epoch().0 > lost.epoch;
        self.told.untold.retain(|lost| !is_over(lost) || control.may_be_lost(lost).is_ok());
        let sent = self.told.untold_sent;
        let due = sent.is_none_or(|at| self.now.since_ms(at) >= TELL_AGAIN_MS);
        if !due || self.raft.leader().is_none() {
            return;
        }
        let judged: Vec<TailLost> =
            self.told.untold.iter().filter(|lost| is_over(lost)).cloned().collect();
        if !judged.is_empty() {
            self.told.untold_sent = Some(self.now);
        }
        for lost in judged {
            self.propose(CommandKind::TailLost(lost), out);
        }
    }
}

/// What earlier processes of this node have cut, by the headers of the newest orphan files. The state knows most of it. A
/// header that can't be read is passed over: nothing depends on it but what people are told.
pub(super) fn cut_before(disk: &dyn Disk, node: NodeId) -> Result<Vec<TailLost>, DiskError> {
    let names = disk.list()?.into_iter().filter(|name| name.ends_with(".orphan"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    let newest = names.split_off(names.len().saturating_sub(ORPHANS_READ_MAX));
    Ok(newest.iter().flat_map(|name| lines_of(disk, name, node).unwrap_or_default()).collect())
}

fn lines_of(disk: &dyn Disk, name: &str, node: NodeId) -> Result<Vec<TailLost>, DiskError> {
    let file = disk.open(name)?;
    let mut head = vec![0; file.len()?.min(HEAD_BYTES) as usize];
    file.read_at(0, &mut head)?;
    let text = String::from_utf8_lossy(&head);
    let header = text.split("\n\n").next().unwrap_or_default();
    let lines = header.lines().filter_map(|line| line.strip_prefix(COMMITS));
    Ok(lines.filter_map(|line| get_line(line, name, node)).collect())
}

fn get_line(line: &str, kept: &str, node: NodeId) -> Option<TailLost> {
    let mut numbers = line.split(' ').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Some(TailLost {
        node: node.0,
        epoch: next()?,
        transactions: next()?,
        after_seq: next()?,
        to_seq: next()?,
        at_wall_us: next()?,
        kept: kept.to_string(),
    })
}
