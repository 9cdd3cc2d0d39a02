//! The node, pure: inputs and time in, actions out.
//!
//! This room connects the others. Whatever happens comes in by `step`; what is to be done comes out as actions. Nothing
//! here reads a clock, opens a socket, starts a thread or draws a random number, and the disk is only read, through the
//! trait; so the simulator runs this very code.
//!
//! The files follow the walks: `control` (Raft, and what a changed state means here), `fence` (promises and reports),
//! `master`, `slave` and `transfer` (the data plane), `serve` and `held` (what clients ask of the master), `requests` (what our clients
//! ask), `packing`, `follow`, `handover`, `rebase`, `pull`, `fetch`, `giving` and `generations` (a new one, the ways there, old
//! ones), `durability` (who is told what, and when), `beats`, `ladder`, `admin`.

mod admin;
mod beats;
mod control;
mod disk;
mod durability;
mod early;
mod fence;
mod fetch;
mod follow;
mod generations;
mod giving;
mod handover;
mod held;
pub mod io;
mod ladder;
mod master;
mod packing;
mod proof;
mod proposal;
mod pull;
mod rebase;
mod requests;
mod serve;
mod slave;
mod start;
#[cfg(test)]
mod testing;
mod transfer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use slog::Logger;

use crate::control::{Settings, State};
use crate::durus;
use crate::failover::controller::Controller;
pub use crate::failover::controller::Timing;
use crate::failover::health::{Health, Look};
use crate::mutants::{self, Mutant};
use crate::plausible::{Claims, Memory};
use crate::proto::control::peer_message::Kind;
use crate::proto::control::{Member, PeerMessage};
use crate::raft;
use crate::replication::transfer::{Incoming, Pacing};
use crate::shelf::Shelf;
use crate::storage::Disk;
use crate::storage::loss::Loss;
use crate::types::{BootId, Epoch, Generation, NodeId, Now, Seq, Tip};

pub use fetch::partial_name;
pub use follow::FOLLOW_BYTES;
pub use giving::FETCH_BYTES_MAX;
pub use io::{Action, Input, lane};
pub use start::{FIRST, StartError, start};

use master::Master;
use packing::{PackRun, Progress};
use rebase::Rebase;
use requests::Requests;

/// What works today for a node whose memory is lost for good, in the words of its status.
const REMEDY: &str = "stop this node, put its data directory back as it was when it last ran (an older copy would let it \
    vote twice), and start it again. This version can't replace a member: without that this node stays out, and the others \
    go on while a majority of them runs; start those that are down";

/// What a node is started with.
pub struct Setup {
    pub id: NodeId,
    /// Of this process; random, never 0.
    pub boot: BootId,
    pub disk_uuid: [u8; 16],
    /// Everything that a node keeps was durably on this disk once: what is missing now is lost.
    pub born: bool,
    pub cluster: String,
    /// The program's version, for status.
    pub version: String,
    /// Every member of the configuration, this one too.
    pub members: Vec<Member>,
    pub timing: Timing,
    pub limits: durus::Limits,
    /// Old generations' files kept, beside the current one.
    pub keep_generations: u32,
    /// Bytes of the blocks in which bases are fetched: the same on every node.
    pub block_bytes: u64,
    /// Bytes of a peer's transactions asked for at a time, up to [`FETCH_BYTES_MAX`].
    pub fetch_bytes: u32,
    /// A commit with more bytes of records does not go twice to the same master, unless that has not got it: while it is
    /// still on its way, more of it would only keep it there.
    pub sent_again_bytes_max: u64,
    /// The next generation's file is brought forward by so many bytes at a time.
    pub follow_bytes: u64,
    /// So much of a base is fetched in a second, and no more; None: as much as there is room for.
    pub fetch_bytes_per_s_max: Option<u64>,
    /// How transactions are cut and paced on their way to slaves.
    pub pacing: Pacing,
    pub disk: Arc<dyn Disk>,
    pub log: Logger,
}

/// What this node is for the data, as far as it knows.
enum Role {
    /// Fenced, or not told yet.
    None,
    Slave(slave::Slave),
    Master(Box<Master>),
}

pub struct Core {
    setup: Setup,
    log: Logger,
    now: Now,

    raft: raft::Driver,
    raft_tick_due_us: u64,
    raft_campaign_due_us: Option<u64>,
    /// Since when a record is at the disk.
    raft_persist_since: Option<Now>,
    /// When this leader last asked somebody else to lead.
    raft_yielded: Option<Now>,
    compacted_index: u64,
    /// Something was put into the Raft log since it was last polled.
    proposed: bool,
    control: State,
    member_up_sent: Option<Now>,
    /// As the replicated state has them.
    settings: Settings,

    /// Nothing below this is taken; `promise_durable` says how much of it a crash can't undo.
    promised: Epoch,
    promise_durable: Epoch,
    /// Who waits for our position, as soon as the promise is durable.
    fence_asked_by: Option<(Epoch, NodeId)>,
    role: Role,
    health: Health,
    controller: Controller,

    shelf: Shelf,
    /// What the disk has confirmed of the current file.
    durable: Tip,
    /// Known to be committed, by a chain that matched.
    committed: Seq,
    /// Epoch of the newest epoch start that is committed and applied here.
    applied_epoch: Epoch,
    /// The file was verified against its chain up to here, at that wall-clock time in microseconds.
    verified: (Seq, u64),
    /// A node alone notes now and then how far its file is durable: of which generation, and when it last did.
    synced_noted: Option<(Generation, Now)>,
    /// A cut-back is on its way to the disk: nothing is taken meanwhile.
    cutting: bool,
    /// Following the current file, while a pack is under way.
    next: Option<follow::Next>,
    /// Files of older generations, to serve those who come later.
    old: BTreeMap<Generation, Shelf>,
    /// Such files on the disk, opened or not.
    old_files: generations::OldFiles,
    /// Of that generation's file, found by a mark: bytes of objects that nothing refers to.
    dead_bytes: (Generation, u64),
    tasks: disk::Tasks,

    checker: durus::CommitChecker,
    sessions: durus::Sessions,
    /// What our file shows is known to be committed; until then clients wait, in `early_clients`.
    serving: bool,
    told: durability::Told,
    early_clients: early::Early,
    requests: Requests,

    pack: PackRun,
    rebase: Option<Rebase>,
    pull: Option<pull::Pull>,
    /// What is here of one transaction that arrives in pieces.
    incoming: Incoming,
    /// A fetch whose epoch has ended and whose answer may still come.
    late_fetch: Option<pull::Late>,
    fetch: Option<fetch::BaseFetch>,
    fetch_past: fetch::Past,
    giving: giving::Giving,
    jobs_begun: u64,
    /// File data taken over the wire since the start of this process; and what of it by rebases.
    fetched_bytes: u64,
    ladder: ladder::Ladder,
    last_rebase: String,
    /// Nobody had the rest of our generation up to that generation's cut.
    tail_failed_for: Option<Generation>,
    /// The job that opens an older file for others, and its name.
    opening_old: Option<(u64, Generation, String)>,
    /// The older file that could not be opened when that was last tried.
    unopened_old: Option<String>,
    controller_due_us: u64,

    beats: beats::Beats,
    admin: admin::Requests,
    /// Said to us before we were open.
    early_registers: BTreeMap<NodeId, crate::proto::replication::Register>,
    loopback: VecDeque<PeerMessage>,
    /// What peers say that one message does not prove.
    claims: Claims,
    /// What peers sent that was not believed.
    disbelieved: Memory,
    /// Not empty: this node's file or promise can't be trusted; it neither votes nor acknowledges.
    suspect: String,
    /// Just started: takes no part before others had a chance to say what they know of this disk.
    proof: Option<proof::Proof>,
    /// This disk has lost what it may have acknowledged: nothing here counts until all of it is back.
    recovering: Option<Loss>,
    leaving: Option<Now>,
    exited: bool,
}

impl Core {
    /// One thing happened. Time never goes back between calls.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        if self.exited {
            return;
        }
        self.now = now;
        match input {
            Input::Tick => self.read_on(out),
            Input::Peer { from, from_disk, message } => self.on_peer(from, from_disk, message, out),
            Input::PeerUp { peer } => self.on_peer_up(peer),
            Input::PeerDown { peer, refused } => self.on_peer_down(peer, refused),
            Input::ClientOpened { .. }
            | Input::ClientData { .. }
            | Input::ClientDrained { .. }
            | Input::ClientClosed { .. } => self.on_client(input, out),
            Input::Admin { request, message } => self.on_admin(request, message, out),
            Input::DiskDone { task, result } => self.on_disk_done(task, result, out),
            Input::RaftDone { number, result } => self.on_raft_done(number, result, out),
            Input::JobProgress { job, permille, moved } => {
                self.pack.on_progress(job, Progress { permille, moved });
                self.on_rebase_progress(job, permille);
            }
            Input::JobDone { job, result } => self.on_job_done(job, result, out),
            Input::Stop => self.on_stop(),
        }
        self.drive(out);
    }

    /// Lets everything go on that can: state first, then data, then clients, then what the others are told.
    fn drive(&mut self, out: &mut Vec<Action>) {
        // Each round can make the next one possible; a handful is enough, and the next input goes on from there.
        for _ in 0..8 {
            self.drive_raft(out);
            self.drive_proof(out);
            self.drive_rebase(out);
            self.drive_pack(out);
            self.drive_generations(out);
            self.drive_master(out);
            self.drive_requests(out);
            self.drive_losses(out);
            self.drive_admin(out);
            self.drive_controller(out);
            if !self.drive_loopback(out) && !std::mem::take(&mut self.proposed) {
                break;
            }
        }
        self.drive_transfer();
        self.drive_beats(out);
        self.drive_stop(out);
        self.assert_frontiers();
    }

    /// base <= committed <= written, durable <= written (design section 9), in every local file.
    fn assert_frontiers(&self) {
        let tip = self.shelf.tip();
        assert!(
            self.shelf.cut() <= tip.seq
                && self.durable.seq <= tip.seq
                && self.committed <= tip.seq
                && self.acknowledged() <= tip.seq,
            "frontiers out of order: cut {} committed {} acknowledged {} durable {} tip {}",
            self.shelf.cut(),
            self.committed,
            self.acknowledged(),
            self.durable,
            tip
        );
    }

    /// When `Tick` is wanted, in microseconds of the monotonic clock.
    pub fn deadline(&self) -> u64 {
        let mut due = self.raft_tick_due_us.min(self.beats.due_us(&self.setup.timing));
        if let Some(campaign) = self.raft_campaign_due_us {
            due = due.min(campaign);
        }
        if let Some(sessions) = self.sessions.deadline() {
            due = due.min(sessions);
        }
        // At once, and not in the past: who is late takes itself for a process that was stopped.
        if self.sessions.reads_on() {
            due = due.min(self.now.mono_us);
        }
        if let Some(early) = self.early_clients.deadline_us(&self.setup.limits) {
            due = due.min(early);
        }
        if let Some(requests) = self.requests.deadline_us() {
            due = due.min(requests.max(self.now.mono_us + 1000));
        }
        if let Some(follow) = self.follow_due_us() {
            due = due.min(follow.max(self.now.mono_us + 1000));
        }
        if let Some(held) = self.handover_due_us() {
            due = due.min(held.max(self.now.mono_us + 1000));
        }
        if let Some(turn) = self.turn_due_us() {
            due = due.min(turn.max(self.now.mono_us + 1000));
        }
        if let Some(fetch) = self.fetch_deadline_us() {
            due = due.min(fetch.max(self.now.mono_us + 5000));
        }
        if let Role::Master(master) = &self.role {
            for follower in master.followers.values() {
                due = due.min(follower.deadline_us().unwrap_or(u64::MAX));
            }
        }
        due
    }

    fn on_peer(
        &mut self,
        from: NodeId,
        from_disk: [u8; 16],
        message: PeerMessage,
        out: &mut Vec<Action>,
    ) {
        let Some(member) = self.control.member(from) else { return };
        // A wiped node under its old id must not be believed: its promises and votes are gone with its disk.
        if member.disk_uuid.is_some_and(|known| known != from_disk)
            && !mutants::broken(Mutant::WipedBelieved)
        {
            self.beats.complain_about_disk(from, &self.log, self.now);
            return;
        }
        self.health.on_heard(from, self.now);
        self.route(from, message, out);
    }

    fn route(&mut self, from: NodeId, message: PeerMessage, out: &mut Vec<Action>) {
        let Some(kind) = message.kind else { return };
        let refused = match kind {
            Kind::Raft(message) => self.on_raft_message(from, message),
            Kind::Beat(beat) => self.on_beat(from, *beat, out),
            Kind::FenceRequest(request) => self.on_fence_request(from, request, out),
            Kind::FenceReport(report) => self.on_fence_report(from, report),
            Kind::Propose(propose) => self.on_propose(from, propose),
            Kind::PackTurn(turn) => self.on_pack_turn(turn),
            Kind::AdminForward(forward) => self.on_admin_forward(from, forward, out),
            Kind::AdminForwardReply(reply) => self.on_admin_forward_reply(reply, out),
            Kind::Append(append) => self.on_append(from, append, out),
            Kind::AppendReply(reply) => self.on_append_reply(from, reply, out),
            Kind::CommonPoint(common) => self.on_common_point(from, common, out),
            Kind::Probe(probe) => self.on_probe(from, probe, out),
            Kind::ProbeReply(reply) => self.on_probe_reply(from, reply, out),
            Kind::Fetch(fetch) => self.on_fetch(from, fetch, out),
            Kind::FetchReply(reply) => self.on_fetch_reply(from, reply, out),
            Kind::BlockListRequest(request) => self.on_block_list_request(from, request, out),
            Kind::BlockList(list) => self.on_block_list(from, list, out),
            Kind::Confirm(confirm) => self.on_confirm(from, confirm, out),
            Kind::ConfirmReply(reply) => self.on_confirm_reply(from, reply, out),
            Kind::Register(register) => self.on_register(from, register, out),
            Kind::RegisterReply(reply) => self.on_register_reply(from, reply, out),
            Kind::ClientRequest(request) => self.on_client_request(from, request, out),
            Kind::ClientReply(reply) => self.on_client_reply(from, reply, out),
        };
        if let Err(why) = refused {
            slog::warn!(self.log, "refused a peer's message"; "from" => from.0, "why" => why);
        }
    }

    /// To a peer, or to ourselves by the same path.
    fn send(&mut self, to: NodeId, kind: Kind, out: &mut Vec<Action>) {
        let message = PeerMessage { kind: Some(kind) };
        if to == self.setup.id {
            self.loopback.push_back(message);
        } else {
            out.push(Action::Send { to, message });
        }
    }

    fn drive_loopback(&mut self, out: &mut Vec<Action>) -> bool {
        let mut any = false;
        while let Some(message) = self.loopback.pop_front() {
            any = true;
            self.route(self.setup.id, message, out);
        }
        any
    }

    fn on_peer_up(&mut self, peer: NodeId) {
        if self.health.on_up(peer) {
            self.beats.soon();
        }
        self.fetch_connection(peer, true);
        if let Role::Master(master) = &mut self.role
            && let Some(follower) = master.followers.get_mut(&peer)
        {
            follower.on_connection(self.now);
        }
    }

    fn on_peer_down(&mut self, peer: NodeId, refused: bool) {
        self.fetch_connection(peer, false);
        if self.health.on_down(peer, refused) {
            self.raft.report_unreachable(peer);
            self.beats.soon();
        }
    }

    fn on_stop(&mut self) {
        if self.leaving.is_none() {
            self.leaving = Some(self.now);
            self.beats.soon();
        }
    }

    /// Leaves when somebody else is master and leader, or when waiting any longer helps nobody.
    fn drive_stop(&mut self, out: &mut Vec<Action>) {
        const PATIENCE_MS: u64 = 5000;
        let Some(since) = self.leaving else { return };
        let alone = self.control.voters().len() <= 1;
        let is_master = self.control.master().is_some_and(|(master, _)| master == self.setup.id);
        let handing_over = !alone && (is_master || !self.control.is_open());
        if handing_over && self.now.since_ms(since) < PATIENCE_MS {
            return;
        }
        if !alone && self.raft.is_leader() && self.now.since_ms(since) < PATIENCE_MS {
            // While leadership is being handed over nothing can be proposed: not to somebody who is gone.
            let (silence_ms, now) = (self.setup.timing.silence_ms, self.now);
            let is_there = |id: &NodeId| self.health.look(*id, silence_ms, now) == Look::Alive;
            let heir = self.control.master().map(|(master, _)| master).filter(is_there);
            if let Some(heir) = heir {
                self.raft.transfer_leader(heir);
            }
            return;
        }
        self.exit("stopped as asked", false, out);
    }

    fn exit(&mut self, reason: &str, failed: bool, out: &mut Vec<Action>) {
        self.exited = true;
        out.push(Action::Exit { reason: reason.to_string(), failed });
    }

    /// A number for a job nobody else has.
    fn next_job(&mut self) -> u64 {
        self.jobs_begun += 1;
        self.jobs_begun
    }

    fn is_current_file(&self) -> bool {
        self.control.generation().is_some_and(|current| {
            (current.number, current.base_hash) == (self.shelf.generation(), self.shelf.base_hash())
        })
    }
}
