//! Taking from a peer the transactions that our own file lacks. (A whole base: `fetch`. The other side: `giving`.)
//!
//! A pull asks one peer after the other whether it has the file, finds the common point with it, and fetches from
//! there, in pieces that may end anywhere; each transaction is verified by its chain before it is appended to our own file.
//! What is there of one that is not whole yet is kept in `Core::incoming`, beyond the end of the pull and of its epoch. It
//! has one question out at a time, for about as much as the line carries in a moment; silence means the next peer. A peer that has started since has its older files closed,
//! opens the one that is asked for, and is asked again meanwhile.

use bytes::Bytes;

use super::{Action, Core};
use crate::proto::control::peer_message::Kind;
use crate::proto::replication as pb;
use crate::replication::points;
use crate::replication::transfer::Key;
use crate::replication::wire::{self, Position};
use crate::shelf;
use crate::types::{Chain, Generation, NodeId, Now, Seq, Tip};

/// A peer that does not answer for this long is left for the next.
const PATIENCE_MS: u64 = 700;
/// The holder of the floor that has it not, or not yet, is asked again after this long.
const ASK_HOLDER_AGAIN_MS: u64 = 50;
/// So is a peer that opens the file; and after so long it is left for the next.
const ASK_OPENING_AGAIN_MS: u64 = 200;
const OPENING_MS_MAX: u64 = 600_000;
/// Bytes that are asked for at first, and at least; half or twice as many after an answer that was slow or quick.
const ASK_BYTES_START: u64 = 64 << 10;
const ASK_BYTES_MIN: u64 = 8 << 10;
const QUICK_MS: u64 = 150;
const SLOW_MS: u64 = 600;

/// What for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Goal {
    /// The elected master's missing last moments.
    Floor(Tip),
    /// The rest of an older generation, up to its cut, which has this chain. Our own file may be longer and another
    /// history: then it is cut back first.
    OldTail { until: Seq, chain: Chain },
}

enum Stage {
    /// Asking for the common point, or whether the file is there.
    Probing {
        asked: Option<Now>,
        points: Vec<Tip>,
    },
    Fetching {
        asked: Option<Now>,
    },
    /// The disk has it; the next question follows.
    Writing,
    /// The peer had no use of the last question yet, and is asked again after so long. What it still says, also twice, is
    /// old: were each answer another question, they would be ever more.
    Resting {
        since: Now,
        ms: u64,
    },
}

pub(super) struct Pull {
    id: u64,
    pub(super) goal: Goal,
    generation: Generation,
    base_hash: Chain,
    source: NodeId,
    failed: Vec<NodeId>,
    /// When the source first said that it opens the file.
    opening: Option<Now>,
    stage: Stage,
    /// Bytes of the source's file, as it said.
    file_len: u64,
    /// The transaction that is fetched.
    next: Option<Key>,
    /// Bytes to ask for, and how long the last answer took.
    ask_bytes: u64,
    took_ms: Option<u64>,
}

/// A fetch that is still on its way when its pull has ended: what comes of it is of use.
pub(super) struct Late {
    id: u64,
    source: NodeId,
    next: Key,
}

impl Pull {
    /// How long an answer is waited for. One that is late comes before the answer to what is asked next.
    fn patience_ms(&self, rate_min: u64) -> u64 {
        let Stage::Fetching { .. } = self.stage else { return PATIENCE_MS };
        let expected_ms = self.took_ms.map_or(self.ask_bytes * 1000 / rate_min.max(1), |ms| 4 * ms);
        PATIENCE_MS + expected_ms
    }

    fn answered(&mut self, after_ms: u64, ask_bytes_max: u64) {
        self.took_ms = Some(after_ms);
        if after_ms <= QUICK_MS {
            self.ask_bytes = (2 * self.ask_bytes).min(ask_bytes_max);
        } else if after_ms >= SLOW_MS {
            self.ask_bytes = (self.ask_bytes / 2).max(ASK_BYTES_MIN.min(ask_bytes_max));
        }
    }
}

impl Core {
    pub(super) fn start_pull(
        &mut self,
        goal: Goal,
        generation: Generation,
        base_hash: Chain,
        source: NodeId,
    ) {
        let id = self.next_job();
        self.pull = Some(Pull {
            id,
            goal,
            generation,
            base_hash,
            source,
            failed: Vec::new(),
            opening: None,
            stage: Stage::Probing { asked: None, points: Vec::new() },
            file_len: 0,
            next: None,
            ask_bytes: ASK_BYTES_START.min(u64::from(self.setup.fetch_bytes)),
            took_ms: None,
        });
        self.beats.soon();
    }

    /// The elected master lacks what the holder of the greatest position has.
    pub(super) fn pull_floor(&mut self, floor: Position, holder: NodeId, out: &mut Vec<Action>) {
        if self.pull.is_none() {
            slog::info!(self.log, "fetching what the election's greatest position has"; "from" => holder.0, "to" => %floor.tip);
            self.start_pull(Goal::Floor(floor.tip), floor.generation, floor.base_hash, holder);
        }
        self.drive_pull(out);
    }

    /// Ends with its election: a later one has a floor of its own, and what only a lost disk had can be fetched from nobody.
    pub(super) fn drop_floor_pull(&mut self) {
        let ended = self.pull.take_if(|pull| matches!(pull.goal, Goal::Floor(_)));
        if let Some(Pull { id, source, next: Some(next), .. }) = ended {
            self.late_fetch = Some(Late { id, source, next });
        }
    }

    pub(super) fn drive_pull(&mut self, out: &mut Vec<Action>) {
        if self.pull_is_done() {
            self.pull = None;
            self.beats.soon();
            return;
        }
        let now = self.now;
        let Some(pull) = &mut self.pull else { return };
        let asked = match &pull.stage {
            Stage::Probing { asked, .. } | Stage::Fetching { asked } => *asked,
            Stage::Writing => return,
            Stage::Resting { since, ms } if now.since_ms(*since) < *ms => return,
            Stage::Resting { .. } => {
                pull.stage = Stage::Probing { asked: None, points: Vec::new() };
                None
            }
        };
        match asked {
            None => self.ask_source(out),
            Some(at) if now.since_ms(at) >= pull.patience_ms(self.setup.pacing.rate_min) => {
                self.next_source(out)
            }
            Some(_) => {}
        }
    }

    fn pull_is_done(&self) -> bool {
        let Some(pull) = &self.pull else { return false };
        match pull.goal {
            Goal::Floor(tip) => self.durable.order() >= tip.order(),
            Goal::OldTail { until, chain } => {
                let at_cut = self.shelf.tip_at(until).ok().flatten();
                self.durable.seq >= until && at_cut.is_some_and(|tip| tip.chain == chain)
            }
        }
    }

    /// Goes on after the disk has done something.
    pub(super) fn pull_on(&mut self, out: &mut Vec<Action>) {
        if let Some(pull) = &mut self.pull
            && matches!(pull.stage, Stage::Writing)
            && self.durable.seq == self.shelf.tip().seq
        {
            pull.stage = Stage::Probing { asked: None, points: Vec::new() };
            self.drive_pull(out);
        }
    }

    fn ask_source(&mut self, out: &mut Vec<Action>) {
        let coarse = self.coarse_points();
        let now = self.now;
        let tip = self.shelf.tip();
        let Some(pull) = &mut self.pull else { return };
        let base_hash = wire::put_chain(pull.base_hash);
        let (id, source, generation) = (pull.id, pull.source, pull.generation.0);
        let question = match &mut pull.stage {
            Stage::Probing { asked, points } => {
                *asked = Some(now);
                if points.is_empty() {
                    *points = coarse;
                }
                let points = wire::put_tips(points);
                Kind::Probe(pb::Probe { id, generation, base_hash, points })
            }
            Stage::Fetching { asked } => {
                *asked = Some(now);
                let here = pull.next.as_ref().map_or(0, |next| self.incoming.has(next));
                let offset = tip.offset + here;
                let len = pull.ask_bytes as u32;
                Kind::Fetch(pb::Fetch { id, generation, base_hash, offset, len })
            }
            Stage::Writing | Stage::Resting { .. } => return,
        };
        self.send(source, question, out);
    }

    /// This peer has it not, or is silent.
    fn next_source(&mut self, out: &mut Vec<Action>) {
        let me = self.setup.id;
        let others: Vec<NodeId> =
            self.control.members().map(|member| member.id).filter(|id| *id != me).collect();
        let now = self.now;
        let Some(pull) = &mut self.pull else { return };
        if let Goal::Floor(_) = pull.goal {
            // Only the holder is known to have it; if it is gone, so is this election, by its timeout.
            pull.stage = Stage::Resting { since: now, ms: ASK_HOLDER_AGAIN_MS };
            return;
        }
        pull.failed.push(pull.source);
        match others.iter().find(|id| !pull.failed.contains(id)) {
            Some(next) => {
                (pull.source, pull.opening) = (*next, None);
                pull.stage = Stage::Probing { asked: None, points: Vec::new() };
                self.ask_source(out);
            }
            None => {
                let goal = pull.goal;
                self.pull = None;
                self.on_pull_failed(goal);
            }
        }
    }

    // ---- answers ----

    pub(super) fn on_probe_reply(
        &mut self,
        from: NodeId,
        reply: pb::ProbeReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.fetch_id() == Some(reply.id) {
            self.on_source_found(from, &reply, out);
            return Ok(());
        }
        let Some(pull) = &mut self.pull else { return Ok(()) };
        if pull.id != reply.id
            || pull.source != from
            || !matches!(pull.stage, Stage::Probing { .. })
        {
            return Ok(());
        }
        pull.file_len = reply.file_len;
        if !reply.has_file {
            self.on_no_file(reply.opening, out);
            return Ok(());
        }
        pull.opening = None;
        let Some(point) = reply.r#match.as_ref() else {
            return Err(format!("node {from} has this generation and nothing in common with us"));
        };
        let point = wire::tip("match", Some(point)).map_err(|error| error.to_string())?;
        if !self.shelf.find(&point).map_err(|error| error.to_string())? {
            return Err(format!("node {from} matched a point that we have not shown: {point}"));
        }
        let mismatch = match reply.newer_mismatch.as_ref() {
            None => Seq(0),
            shown => {
                let mismatch = wire::tip("newer mismatch", shown).map_err(|e| e.to_string())?;
                if !self.shelf.find(&mismatch).map_err(|error| error.to_string())? {
                    return Ok(()); // about what our file held before
                }
                mismatch.seq
            }
        };
        let now = self.now;
        if mismatch == Seq(0) || point == self.shelf.tip() {
            self.fetch_after(from, point, reply.next.as_ref(), out)?;
        } else if mismatch > point.seq.next() {
            let points = self.tips_at(&points::fine(point.seq, mismatch));
            if let Some(pull) = &mut self.pull {
                pull.stage = Stage::Probing { asked: None, points };
            }
            self.drive_pull(out);
        } else if !self.cutting {
            if let Some(pull) = &mut self.pull {
                pull.stage = Stage::Writing;
            }
            self.cut_back(point, &format!("what node {from} has, at {}", now.wall_us), out);
        }
        Ok(())
    }

    /// The source has it not, or not yet.
    fn on_no_file(&mut self, opening: bool, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(pull) = &mut self.pull else { return };
        if opening && now.since_ms(*pull.opening.get_or_insert(now)) < OPENING_MS_MAX {
            pull.stage = Stage::Resting { since: now, ms: ASK_OPENING_AGAIN_MS };
        } else {
            self.next_source(out);
        }
    }

    pub(super) fn on_fetch_reply(
        &mut self,
        from: NodeId,
        reply: pb::FetchReply,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.fetch_id() == Some(reply.id) {
            self.on_block(from, reply.offset, reply.data, out);
            return Ok(());
        }
        if self.late_fetch.as_ref().is_some_and(|late| (late.id, late.source) == (reply.id, from)) {
            let next = self.late_fetch.take().expect("just seen").next;
            return self.keep_fetched(&next, &reply);
        }
        let Some(pull) = &mut self.pull else { return Ok(()) };
        let Some(next) = pull.next.filter(|_| (pull.id, pull.source) == (reply.id, from)) else {
            return Ok(());
        };
        let wanted = next.prev.offset + self.incoming.has(&next);
        let Stage::Fetching { asked } = &mut pull.stage else {
            // We have lost patience with it already.
            return self.keep_fetched(&next, &reply);
        };
        if reply.offset != wanted {
            return Ok(());
        }
        let asked = asked.take();
        if reply.data.is_empty() {
            self.next_source(out);
            return Ok(());
        }
        let after_ms = asked.map_or(0, |asked| self.now.since_ms(asked));
        pull.answered(after_ms, u64::from(self.setup.fetch_bytes));
        let (bytes, total, goal) = (reply.data.len() as u64, pull.file_len, pull.goal);
        self.fetched_bytes += bytes;
        if let Goal::OldTail { .. } = goal {
            self.ladder.took(bytes);
            self.ladder.at("fetch", wanted, total, self.now);
        }
        let mut here = self.incoming.take_out(&next);
        here.extend_from_slice(&reply.data);
        if next.bytes().is_some_and(|len| (here.len() as u64) < len) {
            self.incoming.put_back(&next, here);
            self.drive_pull(out);
            return Ok(());
        }
        let until = match goal {
            Goal::Floor(tip) => tip.seq,
            Goal::OldTail { until, .. } => until,
        };
        self.take_fetched(Bytes::from(here), until, out)
    }

    /// The source has what follows `point`, our tip; which transaction that is, it says.
    fn fetch_after(
        &mut self,
        from: NodeId,
        point: Tip,
        next: Option<&pb::Tip>,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some(pull) = &mut self.pull else { return Ok(()) };
        let Some(next) = next.filter(|_| point == self.shelf.tip()) else {
            // Not on its disk yet.
            self.next_source(out);
            return Ok(());
        };
        let end = wire::tip("next", Some(next)).map_err(|error| error.to_string())?;
        let (generation, base_hash) = (pull.generation, pull.base_hash);
        let next = Key { generation, base_hash, prev: point, end };
        let len = next.bytes().filter(|_| end.offset <= pull.file_len);
        let len = len.ok_or_else(|| format!("node {from} has {end} after {point}"))?;
        pull.next = Some(next);
        pull.stage = Stage::Fetching { asked: None };
        // All of it may have come by other ways.
        match self.incoming.has(&next) == len {
            true => {
                let whole = self.incoming.take_out(&next);
                self.take_fetched(Bytes::from(whole), end.seq, out)
            }
            false => {
                self.drive_pull(out);
                Ok(())
            }
        }
    }

    /// An answer that comes late.
    fn keep_fetched(&mut self, next: &Key, reply: &pb::FetchReply) -> Result<(), String> {
        let ours = (self.shelf.generation(), self.shelf.base_hash(), self.shelf.tip());
        let offset = reply.offset.checked_sub(next.prev.offset);
        let of_use =
            ours == (next.generation, next.base_hash, next.prev) && self.incoming.is_free_for(next);
        let (Some(offset), Some(len), true) = (offset, next.bytes(), of_use) else { return Ok(()) };
        // What comes after this transaction is not kept.
        let data_max = len.saturating_sub(offset).min(reply.data.len() as u64) as usize;
        self.incoming.take(next, offset.min(len), &reply.data[..data_max])
    }

    /// Fetched transactions, each verified, into our own file; none after `until`.
    fn take_fetched(
        &mut self,
        data: Bytes,
        until: Seq,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        let offset = self.shelf.tip().offset;
        let mut len = 0;
        for tx in shelf::split_transactions(&data) {
            let tip = self.shelf.tip();
            if tip.seq >= until {
                break;
            }
            // The last one's rest comes when the disk has these.
            let Ok(tx) = tx else { break };
            let bytes = data.slice_ref(tx);
            match shelf::verify(&tip.chain, &bytes) {
                Ok(parsed) => {
                    if let Err(why) = self.shelf.check_next(&parsed) {
                        slog::warn!(self.log, "fetched a transaction that does not follow"; "why" => why);
                        break;
                    }
                    len += bytes.len();
                    self.extend(&parsed, bytes);
                }
                Err(error) => {
                    slog::warn!(self.log, "fetched a transaction that does not verify"; "error" => %error);
                    break;
                }
            }
        }
        if len == 0 {
            self.next_source(out);
            return Ok(());
        }
        if let Some(pull) = &mut self.pull {
            pull.stage = Stage::Writing;
        }
        self.write_appended(offset, data.slice(..len), out);
        Ok(())
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
