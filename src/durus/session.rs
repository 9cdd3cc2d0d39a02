//! All client connections of one node.
//!
//! A session is a connection. It does one command at a time, in the order they came; while one waits for the master,
//! what follows stays in its buffer. What a session asks the master has an id from here, and one answer counts: answers
//! that come late, twice or for a session that is gone are ignored. Asking again, after a failover or a broken
//! connection, is the node's part, and so is dropping answers of a master it has turned away from: an answer
//! from an older epoch than the one the request was last sent in must not be given to us.
//!
//! **Where a session starts.** When a connection opens, the committed position is asked for; changes after it are what
//! the client can be told of. The first command that reads asks once more, so that a client that went away from
//! another node sees here what was acknowledged there.
//!
//! **Syncs** of all sessions share one question at a time. A session only takes the answer to a question that was asked
//! after its command came, so those who come while one is out wait for the next.
//!
//! **Shares.** Who asks for much at once, in one bulk load or in many commands sent ahead, is answered so much at a time,
//! and then the other sessions and everything else of the node have theirs. Meanwhile no more is read of its client. Nor
//! is a client answered on while it has not taken what it was sent, beyond a few megabytes: how much it may be is
//! counted here, and the shell is asked now and then whether it is taken.
//!
//! **Bulk loads** are answered as of one moment, however many shares they take: what is stored again meanwhile is still in the
//! file. A stock client stops reading at the first answer that is not a record, and takes the rest for the
//! answer to its next command, whenever that comes. So it is not sent the rest. A stock client greets with `V` and waits
//! for each answer before its next command; one that has not greeted, or has ever sent a command sooner, is none, and gets
//! every answer.
//!
//! **Commits** are answered when this node shows them, not when they are merely said to be committed, and when the cluster's
//! setting of durability says that they may be: by the master's answer, or by the mark that it announces. A client that
//! leaves in between leaves a session behind until the outcome is known: its oids are not free before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use roaring::RoaringTreemap;

use super::close::{CloseReason, Limits};
use super::unseen::{ChangeLog, Unseen};
use super::unused::UnusedOids;
use crate::mutants::{self, Mutant};
use crate::types::{BootId, CommitId, ConnId, Epoch, Generation, Now, Oid, Seq};

/// The node's own committed state, as loads see it. It does not change during a call.
pub trait View {
    /// The record of an object, as a client gets it; None if there is no such object.
    fn load(&self, oid: Oid) -> Result<Option<Bytes>, String>;
    /// The same as it was after transaction `seq`, which loads saw once; the outer None: that is not known any more.
    fn load_before(&self, oid: Oid, seq: Seq) -> Result<Option<Option<Bytes>>, String>;
    /// Seq of the newest transaction that loads see.
    fn applied(&self) -> Seq;
    /// Clients may be told that what is shown is stored, up to this transaction.
    fn acknowledged(&self) -> Seq;
    /// Seq of the newest transaction in this node's file.
    fn tip(&self) -> Seq;
    /// What this node's file holds beyond what loads see; None if that is nothing, or too much to tell.
    fn ahead(&self) -> Option<Ahead>;
}

/// Transactions that are in the file and not known to be committed: most will be, and come before any commit that is
/// begun now. A client that is told of them can decide for itself whether it conflicts with them.
pub struct Ahead {
    /// Epoch and seq of the newest of them: what comes before it is the same in every file that has it.
    pub epoch: Epoch,
    pub seq: Seq,
    /// What they store.
    pub oids: RoaringTreemap,
}

/// What sessions want done. Everything with an `id` goes to the master, until it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    Send {
        conn: ConnId,
        bytes: Bytes,
    },
    /// Close after what was sent before is out. The session is gone already.
    Close {
        conn: ConnId,
        reason: CloseReason,
    },
    /// Whether more of what the client sends is to be read: while it waits for its next share, what it has sent is enough.
    Read {
        conn: ConnId,
        on: bool,
    },
    /// Answer, as soon as the client has taken all that was sent before: [`Sessions::drained`].
    Drain {
        conn: ConnId,
    },
    /// A client asked the server to stop, and may.
    Quit {
        conn: ConnId,
    },
    /// Answer: [`Sessions::synced`].
    Sync {
        id: u64,
    },
    /// Answer: [`Sessions::committed`], [`Sessions::conflict`], [`Sessions::send_touched`] or
    /// [`Sessions::refused`]. The same id and commit id come again, with `touched`, after `send_touched`.
    Commit {
        id: u64,
        commit_id: CommitId,
        session: u64,
        base: Seq,
        /// What its client was told of besides, by epoch and seq: counts if the master's file has that transaction.
        ahead: Option<(Epoch, Seq)>,
        records: Vec<(Oid, Bytes)>,
        /// Serialized set of all that the client may have read.
        touched: Option<Bytes>,
    },
    /// Answer: [`Sessions::oids`] or [`Sessions::refused`].
    NewOids {
        id: u64,
        session: u64,
        count: u32,
    },
    /// Answer: [`Sessions::turn`].
    Turn {
        id: u64,
        session: u64,
        /// As with a commit; None: it is too large.
        touched: Option<Bytes>,
    },
    /// No answer needed. The session needs the turn that it asked for no more, whether it has come or not.
    EndTurn {
        id: u64,
        session: u64,
        asked: u64,
    },
    /// No answer needed. The session's unused oids are free.
    FreeSession {
        id: u64,
        session: u64,
    },
    /// No answer needed.
    Pack {
        id: u64,
    },
    /// No answer needed. Every session here was told what the packs up to this generation removed.
    Told {
        id: u64,
        generation: Generation,
    },
}

/// What a session does once it reads a state that is new enough.
#[derive(Debug)]
pub(super) enum Reading {
    Load(Oid),
    Bulk(Vec<Oid>),
    Sync,
    Commit,
}

/// A commit on its way.
#[derive(Debug)]
pub(super) struct Commit {
    pub id: u64,
    pub base: Seq,
    pub ahead: Option<(Epoch, Seq)>,
    pub records: Vec<(Oid, Bytes)>,
    /// Length of the data, as counted in `commits_waiting_bytes_max`.
    pub bytes: u64,
    /// Its session had its turn when the data came.
    pub in_turn: bool,
    /// Known to be stored there.
    pub seq: Option<Seq>,
    /// The master has answered: its client may be told.
    pub said: bool,
}

/// What a session's current command waits for.
#[derive(Debug)]
pub(super) enum Waiting {
    /// The committed position.
    Sync(Reading),
    /// This node to show that seq.
    Visible(Seq, Reading),
    /// Its turn to commit; then the answer to `C`.
    Turn {
        id: u64,
    },
    /// This node's file to hold that seq; then the answer to `C`.
    InFile(Seq),
    /// Its next share, to go on with a bulk load.
    Bulk(Bulk),
    /// Its next share, to go on with what is in its buffer.
    Commands,
    NewOids {
        id: u64,
        count: u32,
    },
    Commit(Commit),
}

/// A bulk load that takes more than one share. All of it is answered as of one moment: no commit falls into it.
#[derive(Debug)]
pub(super) struct Bulk {
    pub oids: Vec<Oid>,
    /// So many of them are answered.
    pub done: usize,
    /// What was shown when it began, and of which generation's file.
    pub as_of: Seq,
    pub generation: Generation,
    /// Those that its client could not load then.
    pub invalid: RoaringTreemap,
}

/// What was done for a session in one share.
#[derive(Default)]
pub(super) struct Spent {
    pub commands: usize,
    pub oids: usize,
    pub bytes: usize,
}

/// In one share of a session, before others have theirs: each oid may be a read of the disk.
const OIDS_AT_ONCE: usize = 256;
const COMMANDS_AT_ONCE: usize = OIDS_AT_ONCE;
const BYTES_AT_ONCE: usize = 4 << 20;
/// Bytes that a client has not taken before it has to, or is answered no more.
const UNSENT_BYTES_MAX: u64 = 4 << 20;

impl Spent {
    /// Its share is spent.
    pub fn is_all(&self) -> bool {
        self.commands >= COMMANDS_AT_ONCE
            || self.oids >= OIDS_AT_ONCE
            || self.bytes >= BYTES_AT_ONCE
    }
}

pub(super) struct Session {
    pub buffer: BytesMut,
    /// When the client last sent something, or was last answered.
    pub last_input: Now,
    pub waiting: Option<Waiting>,
    pub waiting_since: Now,
    /// `C` was answered as of this seq; its data is to come.
    pub commit_base: Option<Seq>,
    /// And was told of what comes after that, up to the transaction of this epoch and seq.
    pub commit_ahead: Option<(Epoch, Seq)>,
    /// When it was answered.
    pub commit_told: Now,
    /// It takes turns for so many commits more, and for so many after the next one that is refused.
    pub turns: u32,
    turns_next: u32,
    /// The request for a turn that has not ended.
    pub turn: Option<u64>,
    /// Its data has come soon after the answer to `C`, the last time.
    pub prompt: bool,
    /// The first reading command had its sync.
    pub fresh: bool,
    pub unseen: Unseen,
    /// All that the client may have in its cache: what it loaded, looked for or stored, and was not told to forget since.
    pub touched: RoaringTreemap,
    /// Memory that `touched` takes, as of its size then.
    pub touched_bytes: u64,
    touched_noted: u64,
    /// Bytes that were sent to its client, and may not be taken yet.
    pub unsent: u64,
    /// So much of it was sent when it was asked to be told that all of that is taken.
    pub draining: Option<u64>,
    /// In its present share; nothing between two.
    pub spent: Spent,
    /// Nothing is read of its client for now.
    pub unread: bool,
    /// It is among those who wait for their next share.
    pub queued: bool,
    /// It said which version it speaks.
    pub greeted: bool,
    /// It does not always wait for an answer before its next command.
    pub pipelines: bool,
    /// Oids it was given and has not used.
    pub pool: UnusedOids,
    /// Those of them that are somebody else's, as the master says; its commit under way may show that they are not.
    pub revoked: Vec<Oid>,
    /// It may hold oids on the master.
    pub held_oids: bool,
    /// The connection is gone, the commit is not settled.
    pub closed: bool,
    timer_us: Option<u64>,
}

/// Who has not been given its turn to commit by then goes on without.
const TURN_WAIT_MS: u64 = 100;
/// So many commits of a session are made in turn after one that was refused: more, if more than about one in six is refused
/// that is not made in turn, and fewer, if others get through, since a turn takes a question to the master.
const TURNS_MIN: u32 = 2;
const TURNS_MAX: u32 = 64;
/// New oids in `touched` before its size is taken again.
const TOUCHED_NOTED_MAX: u64 = 1 << 16;

impl Session {
    /// The client may have this in its cache from now on.
    pub fn touch(&mut self, oid: Oid) {
        self.touched_noted += u64::from(self.touched.insert(oid.0));
        if self.touched_noted >= TOUCHED_NOTED_MAX {
            self.touched_noted = 0;
            self.touched_bytes = self.touched.serialized_size() as u64;
        }
    }

    /// Its commit was refused for what others had changed.
    pub fn overtaken(&mut self) {
        if self.prompt {
            self.turns = self.turns_next;
            self.turns_next = (2 * self.turns_next).min(TURNS_MAX);
        }
    }

    /// Its commit was not made in turn, and is stored.
    pub fn got_through(&mut self) {
        self.turns_next = (self.turns_next - self.turns_next.div_ceil(8)).max(TURNS_MIN);
    }

    /// All that the client may have read, as it goes to the master; None if that would be more than so many bytes.
    pub fn touched_along(&self, bytes_max: usize) -> Option<Bytes> {
        let size = self.touched.serialized_size();
        (size <= bytes_max).then(|| {
            let mut bytes = Vec::with_capacity(size);
            self.touched.serialize_into(&mut bytes).expect("writing to memory");
            Bytes::from(bytes)
        })
    }

    /// As a stock client does: at the first answer of a bulk load that is no record.
    pub fn stops_reading(&self) -> bool {
        self.greeted && !self.pipelines
    }

    /// Whether it waits for its next share and for nothing else.
    pub fn waits_for_share(&self) -> bool {
        matches!(self.waiting, Some(Waiting::Bulk(..) | Waiting::Commands))
    }

    pub fn send(&mut self, conn: ConnId, bytes: Bytes, out: &mut Vec<SessionAction>) {
        self.answered(bytes.len());
        out.push(SessionAction::Send { conn, bytes });
    }

    /// So much is sent, or will be in this step.
    pub fn answered(&mut self, bytes: usize) {
        self.unsent += bytes as u64;
        self.spent.bytes += bytes;
    }

    /// Bytes that its client has sent and that are not done with.
    fn input(&self) -> u64 {
        let commit = match &self.waiting {
            Some(Waiting::Commit(commit)) => commit.bytes,
            _ => 0,
        };
        self.buffer.len() as u64 + commit
    }

    /// Memory for what its client may have read, and for what has changed that it was not told of.
    fn known(&self) -> u64 {
        self.touched_bytes + self.unseen.bytes()
    }

    /// Whether its client has to take what it was sent before it is answered any more: there has to be room for one more
    /// record.
    pub fn must_drain(&self, limits: &Limits) -> bool {
        let held = self.input() + self.unsent + self.known();
        self.unsent > UNSENT_BYTES_MAX
            || self.unsent > 0 && held + limits.record_bytes_max > limits.session_bytes_max
    }

    /// Judges what is held for this client here, as `session_bytes_max` counts it: with so much for it, which may be taken
    /// already.
    pub fn check_held(&self, unsent: u64, limits: &Limits) -> Result<(), CloseReason> {
        let (sent, known) = (self.input(), self.known());
        if sent + unsent + known <= limits.session_bytes_max {
            return Ok(());
        }
        Err(CloseReason::Limit {
            name: "session_bytes_max",
            limit: limits.session_bytes_max,
            what: format!(
                "{sent} bytes from the client, {unsent} for it, {known} of what it may have read and was not told"
            ),
        })
    }
}

/// Who waits for a committed position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A session that was just opened.
    Start(ConnId),
    /// A command.
    Command(ConnId),
}

/// All client connections of one node.
pub struct Sessions {
    pub(super) limits: Limits,
    boot: BootId,
    pub(super) sessions: BTreeMap<ConnId, Session>,
    /// Connections that are open.
    pub(super) live: usize,
    pub(super) log: ChangeLog,
    /// Open sessions by the generation they were told of.
    pub(super) generations: BTreeMap<Generation, usize>,
    pub(super) announced: Generation,
    last_id: u64,
    /// Who asked, of the requests whose answer is still wanted. Syncs are not here but in `round`.
    pub(super) requests: BTreeMap<u64, ConnId>,
    /// The sync that is out.
    pub(super) round: Option<(u64, Vec<Waiter>)>,
    pub(super) next_round: Vec<Waiter>,
    /// Sessions that go on once this node shows a seq.
    pub(super) visible: BTreeSet<(Seq, ConnId)>,
    /// Sessions whose commit this node shows, once their clients may be told.
    pub(super) settling: BTreeSet<(Seq, ConnId)>,
    /// Sessions whose turn has come, once this node's file holds a seq.
    pub(super) in_file: BTreeSet<(Seq, ConnId)>,
    /// Sessions that wait for their next share, in the order in which they have it; some may have left.
    pub(super) sharing: VecDeque<ConnId>,
    /// Those that wait to go on with a bulk load.
    pub(super) in_bulk: BTreeSet<ConnId>,
    timers: BTreeSet<(u64, ConnId)>,
    pub(super) commit_bytes: u64,
}

impl Sessions {
    /// For a node that shows its file as of `applied`, which is of `generation`.
    pub fn new(limits: Limits, boot: BootId, applied: Seq, generation: Generation) -> Sessions {
        Sessions {
            limits,
            boot,
            sessions: BTreeMap::new(),
            live: 0,
            log: ChangeLog::new(applied, generation),
            generations: BTreeMap::new(),
            announced: generation,
            last_id: 0,
            requests: BTreeMap::new(),
            round: None,
            next_round: Vec::new(),
            visible: BTreeSet::new(),
            settling: BTreeSet::new(),
            in_file: BTreeSet::new(),
            sharing: VecDeque::new(),
            in_bulk: BTreeSet::new(),
            timers: BTreeSet::new(),
            commit_bytes: 0,
        }
    }

    /// A client has connected. `conn` is never used again for another.
    pub fn opened(&mut self, conn: ConnId, now: Now, out: &mut Vec<SessionAction>) {
        if self.live >= self.limits.clients_max {
            let limit = self.limits.clients_max as u64;
            let what = "one more connection".to_string();
            let reason = CloseReason::Limit { name: "clients_max", limit, what };
            out.push(SessionAction::Close { conn, reason });
            return;
        }
        let session = Session {
            buffer: BytesMut::new(),
            last_input: now,
            waiting: None,
            waiting_since: now,
            commit_base: None,
            commit_ahead: None,
            commit_told: now,
            turns: 0,
            turns_next: TURNS_MIN,
            turn: None,
            prompt: false,
            fresh: false,
            unseen: Unseen::new(&self.log),
            touched: RoaringTreemap::new(),
            touched_bytes: 0,
            touched_noted: 0,
            unsent: 0,
            draining: None,
            spent: Spent::default(),
            unread: false,
            queued: false,
            greeted: false,
            pipelines: false,
            pool: UnusedOids::default(),
            revoked: Vec::new(),
            held_oids: false,
            closed: false,
            timer_us: None,
        };
        *self.generations.entry(session.unseen.generation()).or_default() += 1;
        let before = self.sessions.insert(conn, session);
        assert!(before.is_none(), "connection {conn} opened twice");
        self.live += 1;
        self.ask_position(Waiter::Start(conn), out);
    }

    /// The client's connection is gone, whoever ended it.
    pub fn closed(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        self.leave(conn, out);
    }

    /// The master's newest word on what sessions hold: these, by session, are somebody else's by now. Who holds one is
    /// closed.
    pub fn revoke(&mut self, revoked: &[(u64, Vec<Oid>)], out: &mut Vec<SessionAction>) {
        self.sessions.values_mut().for_each(|session| session.revoked.clear());
        for (conn, oids) in revoked {
            if let Some(session) = self.sessions.get_mut(&ConnId(*conn)) {
                session.revoked.clone_from(oids);
                self.judge_revoked(ConnId(*conn), out);
            }
        }
    }

    /// The commit that has made such an oid an object may be the session's own, and its answer on its way: then the outcome
    /// tells.
    pub(super) fn judge_revoked(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        session.revoked.retain(|oid| session.pool.holds(*oid));
        let stores =
            |commit: &Commit| commit.records.iter().any(|(oid, _)| session.revoked.contains(oid));
        let is_open = matches!(&session.waiting, Some(Waiting::Commit(commit)) if stores(commit));
        if !session.revoked.is_empty() && !is_open {
            self.close(conn, CloseReason::Revoked, out);
        }
    }

    pub(super) fn commit_id(&self, id: u64) -> CommitId {
        CommitId::new(self.boot, id)
    }

    /// Unused oids by session, of those that hold any.
    pub fn pools(&self) -> Vec<(u64, Vec<Oid>)> {
        let holders = self.sessions.iter().filter(|(_, session)| !session.pool.is_empty());
        holders.map(|(conn, session)| (conn.0, session.pool.iter().collect())).collect()
    }

    /// Client connections that are open.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Whether the answer to this Sync, Commit, NewOids or Turn still matters. A request that does not can be dropped.
    pub fn outstanding(&self, id: u64) -> bool {
        self.requests.contains_key(&id) || self.round.as_ref().is_some_and(|(out, _)| *out == id)
    }

    /// When [`Sessions::tick`] has something to do, in microseconds of the monotonic clock.
    pub fn deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether somebody goes on reading what was shown before ([`View::load_before`]).
    pub fn reads_before(&self) -> bool {
        !self.in_bulk.is_empty()
    }

    /// Whether [`Sessions::read_on`] has something to do.
    pub fn reads_on(&self) -> bool {
        !self.sharing.is_empty()
    }

    /// Whether [`Sessions::poke`] has something to do although nothing new is shown: somebody goes on without its turn.
    pub fn goes_on(&self) -> bool {
        self.visible.first().is_some_and(|(seq, _)| *seq == Seq(0))
    }

    /// Closes who stalled, and who waited too long.
    pub fn tick(&mut self, now: Now, out: &mut Vec<SessionAction>) {
        while let Some((at, conn)) = self.timers.first().copied() {
            if at > now.mono_us {
                break;
            }
            let session = self.sessions.get(&conn).expect("a timer has a session");
            if let Some(Waiting::Turn { .. } | Waiting::InFile(_)) = session.waiting {
                self.do_without_turn(conn, now, out);
                continue;
            }
            let what = match &session.waiting {
                None => None,
                Some(Waiting::Commit(_)) => Some("a commit"),
                Some(Waiting::NewOids { .. }) => Some("a request for oids"),
                Some(_) => Some("a sync"),
            };
            if what == Some("a commit") && mutants::broken(Mutant::UnknownSaidAsDone) {
                let bytes = Bytes::from_static(&[super::wire::OKAY]);
                out.push(SessionAction::Send { conn, bytes });
            }
            let reason = match what {
                Some(what) => {
                    CloseReason::Unanswered { what, waited_ms: now.since_ms(session.waiting_since) }
                }
                None => CloseReason::Stalled(now.since_ms(session.last_input)),
            };
            self.close(conn, reason, out);
        }
    }

    /// Sets the session's only timer by what it is doing.
    pub(super) fn retime(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let inside = session.commit_base.is_some() || !session.buffer.is_empty();
        let at = match (&session.waiting, inside) {
            _ if session.closed => None,
            (Some(Waiting::Turn { .. } | Waiting::InFile(_)), _) => {
                Some((session.waiting_since, TURN_WAIT_MS))
            }
            // That is for us to see to.
            _ if session.waits_for_share() => None,
            (Some(_), _) => Some((session.waiting_since, self.limits.wait_max_ms)),
            // Not before it has all that it was sent: that it takes it is the shell's to see to.
            (None, true) if session.draining.is_some() => None,
            (None, true) => Some((session.last_input, self.limits.command_max_ms)),
            (None, false) => None,
        };
        let at = at.map(|(from, after_ms)| from.mono_us.saturating_add(after_ms * 1000));
        if session.timer_us != at {
            if let Some(old) = session.timer_us {
                self.timers.remove(&(old, conn));
            }
            self.timers.extend(at.map(|at| (at, conn)));
            session.timer_us = at;
        }
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Waits for a committed position that is asked for from now on.
    pub(super) fn ask_position(&mut self, waiter: Waiter, out: &mut Vec<SessionAction>) {
        self.next_round.push(waiter);
        if self.round.is_none() {
            self.ask_round(out);
        }
    }

    /// Asks for all that wait, if any do.
    pub(super) fn ask_round(&mut self, out: &mut Vec<SessionAction>) {
        assert!(self.round.is_none(), "one sync at a time");
        if !self.next_round.is_empty() {
            let id = self.new_id();
            self.round = Some((id, std::mem::take(&mut self.next_round)));
            out.push(SessionAction::Sync { id });
        }
    }

    pub(super) fn close(
        &mut self,
        conn: ConnId,
        reason: CloseReason,
        out: &mut Vec<SessionAction>,
    ) {
        if self.sessions.get(&conn).is_some_and(|session| !session.closed) {
            out.push(SessionAction::Close { conn, reason });
            self.leave(conn, out);
        }
    }

    /// The connection is gone; the session too, unless a commit of it is not settled.
    fn leave(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        let Some(session) = self.sessions.get_mut(&conn).filter(|session| !session.closed) else {
            return;
        };
        session.closed = true;
        session.buffer = BytesMut::new();
        let generation = session.unseen.generation();
        let unsettled = match &session.waiting {
            // It is known to be stored, and there is nobody to wait for more.
            Some(Waiting::Commit(Commit { id, bytes, seq: Some(seq), said: false, .. })) => {
                self.settling.remove(&(*seq, conn));
                self.requests.remove(id);
                self.commit_bytes -= bytes;
                false
            }
            Some(Waiting::Commit(_)) => true,
            Some(Waiting::NewOids { id, .. } | Waiting::Turn { id }) => {
                self.requests.remove(id);
                false
            }
            Some(Waiting::InFile(seq)) => {
                self.in_file.remove(&(*seq, conn));
                false
            }
            Some(Waiting::Visible(seq, _)) => {
                self.visible.remove(&(*seq, conn));
                false
            }
            Some(Waiting::Sync(_) | Waiting::Bulk(..) | Waiting::Commands) | None => false,
        };
        self.in_bulk.remove(&conn);
        self.end_turn(conn, out);
        self.retime(conn);
        self.live -= 1;
        self.leave_generation(generation);
        if self.live == 0 {
            self.log.forget();
        }
        if !unsettled {
            self.forget(conn, out);
        }
        self.announce(out);
    }

    /// The newest transaction that sessions were shown.
    pub fn newest_shown(&self) -> Seq {
        self.log.last()
    }

    /// What sessions were shown is not the cluster's: all of them end, and nothing that they asked for is asked any more.
    pub fn end_all(&mut self, reason: &CloseReason, out: &mut Vec<SessionAction>) {
        let open: Vec<ConnId> = self.sessions.keys().copied().collect();
        open.iter().for_each(|conn| self.close(*conn, reason.clone(), out));
        // What becomes of a commit that is not settled is nobody's business any more: it was made on what is gone.
        let unsettled: Vec<ConnId> = self.sessions.keys().copied().collect();
        unsettled.iter().for_each(|conn| self.forget(*conn, out));
        self.requests.clear();
        self.round = None;
        self.next_round.clear();
        self.visible.clear();
        self.settling.clear();
        self.in_file.clear();
        self.commit_bytes = 0;
    }

    /// Nobody is connected; those who come are shown this. Numbers of requests go on.
    pub fn begin_again(&mut self, applied: Seq, generation: Generation) {
        assert!(self.sessions.is_empty(), "sessions that were shown something else");
        self.log = ChangeLog::new(applied, generation);
        self.announced = generation;
    }

    /// The last of a session: nothing of it is outstanding.
    pub(super) fn forget(&mut self, conn: ConnId, out: &mut Vec<SessionAction>) {
        let session = self.sessions.remove(&conn).expect("a session is forgotten once");
        assert!(session.closed, "session {conn} is open");
        if session.held_oids {
            let id = self.new_id();
            out.push(SessionAction::FreeSession { id, session: conn.0 });
        }
    }
}
