//! Packs, as the Raft leader sees to them: when one begins by itself, whose turn it is to build, when all is ready for
//! the new generation, and when there is no point in going on.
//!
//! A pack that begins by itself is one that somebody could have asked for: wherever the wall clock is wrong, one pack too
//! many or too few comes of it. Between two of them the leader counts on its own monotonic clock from the moment at
//! which it first heard of the end of the last one; the wall clock says only how long ago that may have been before.

use std::collections::BTreeMap;

use super::controller::{Controller, Decision, View, name};
use crate::admin::room;
use crate::control::{Pack, Phase, Rested, Settings};
use crate::proto::control::command::Kind;
use crate::proto::control::{Beat, PackCancel, PackProgress, PackStart, Reason};
use crate::replication::quorum::majority;
use crate::types::{NodeId, Now, PackId};

/// Who asks for packs that begin by themselves; the cause follows.
const AUTOMATIC: &str = "automatic";
/// Once a majority is ready, a slave that goes on building is waited for so long at most, an hour.
const GOES_ON_MS_MAX: u64 = 3_600_000;
/// A turn that may have been lost is told again after this long.
const TURN_AGAIN_MS: u64 = 100;

/// What this leader remembers of packs.
#[derive(Debug, Default)]
pub(super) struct Packs {
    running: Running,
    /// The end of the last pack, and when this leader first saw that.
    rested: Option<(Rested, Now)>,
    /// Why a pack that is due does not begin, as was last said.
    waits: String,
}

/// What it remembers of the pack in progress, and of no other.
#[derive(Debug, Default)]
struct Running {
    /// Which pack; none: there is none.
    of: Option<PackId>,
    turns: BTreeMap<NodeId, Turn>,
    majority_ready: Option<Now>,
    /// Since when nobody is left who could build, though too few have.
    nobody_left: Option<Now>,
    /// Since when the master, whose own base was outvoted, has nobody to hand over to.
    no_heir: Option<Now>,
    /// When the master was first told to hold commits, to hand over, and when it last was.
    hold_told: Option<(Now, Now)>,
}

#[derive(Debug)]
struct Turn {
    told: Now,
    /// How far the node was when it last went on, and when that was.
    at: (String, u64),
    since: Now,
}

impl Running {
    /// Who becomes master of the new generation in place of the one who has not built it, if it is to be handed over, or
    /// can't be built there; none when that was tried for too long.
    fn heir(&self, view: &View<'_>, pack: &Pack) -> Option<NodeId> {
        let tried_ms = self.hold_told.map_or(0, |(first, _)| view.now.since_ms(first));
        let (master, _) = view.state.master()?;
        let hands_over = Settings::of(view.state).hand_over || pack.is_outvoted(master);
        if !hands_over || tried_ms >= 3 * view.timing.straggler_ms {
            return None;
        }
        view.best_in_step(master, |id| pack.ready.contains(&id))
    }

    /// Looks how far those have come whose turn it is.
    fn note_progress(&mut self, view: &View<'_>, pack: &Pack) {
        for (node, turn) in &mut self.turns {
            let at = progress(view, pack, *node);
            if turn.at != at {
                (turn.at, turn.since) = (at, view.now);
            }
        }
    }

    /// It has not stood still for too long; it may have yet to begin.
    fn goes_on(&self, view: &View<'_>, node: NodeId) -> bool {
        let stands = |turn: &Turn| view.now.since_ms(turn.since) >= view.timing.straggler_ms;
        !self.turns.get(&node).is_some_and(stands)
    }
}

impl Controller {
    pub(super) fn packing(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let rested = view.state.rested();
        if self.packs.rested.is_none_or(|(known, _)| known != rested) {
            self.packs.rested = Some((rested, view.now));
        }
        // Another pack may have begun between two looks, of the same generation: nothing of the one before counts for it.
        let of = view.state.pack().map(|pack| pack.id);
        if self.packs.running.of != of {
            self.packs.running = Running { of, ..Running::default() };
        }
        let Some(pack) = view.state.pack() else {
            match view.state.pack_again() {
                Some(again) => self.pack_again(view, &again.asked_by, out),
                None => self.automatic_pack(view, out),
            }
            return;
        };
        self.packs.running.note_progress(view, pack);
        if pack.seal.is_none() || self.given_up(view, pack, out) || self.switching(view, pack, out)
        {
            return;
        }
        self.give_turns(view, pack, out);
    }

    // ---- a pack in progress ----

    /// Calls it off if it can't come to an end. True if so.
    fn given_up(&mut self, view: &View<'_>, pack: &Pack, out: &mut Vec<Decision>) -> bool {
        let why = too_many_failed(view, pack)
            .or_else(|| all_differ(view, pack))
            .or_else(|| self.no_heir(view, pack))
            .or_else(|| self.nobody_left(view, pack));
        let Some(why) = why else { return false };
        let (pack, generation) = (pack.id.0, pack.generation.0);
        let cancel = PackCancel { pack, generation, why, asked_by: AUTOMATIC.into() };
        self.propose(view, Kind::PackCancel(cancel), out);
        true
    }

    /// Each is ready, has failed or takes no part, and too few are ready, for as long as a straggler would have had. The
    /// reason to call the pack off, then: as long as it is there, what it takes for dead is refused.
    fn nobody_left(&mut self, view: &View<'_>, pack: &Pack) -> Option<String> {
        let voters = view.state.voters();
        let (ready, others): (Vec<NodeId>, Vec<NodeId>) =
            voters.iter().partition(|id| pack.ready.contains(id));
        let stands_aside = |id: NodeId| view.beat(id).is_some_and(|beat| !beat.suspect.is_empty());
        let could = |id: &NodeId| waits(view, pack, *id) && !stands_aside(*id);
        if ready.len() >= majority(voters.len()) || others.iter().any(could) {
            self.packs.running.nobody_left = None;
            return None;
        }
        let since = *self.packs.running.nobody_left.get_or_insert(view.now);
        if view.now.since_ms(since) < view.timing.straggler_ms {
            return None;
        }
        let causes = others.iter().map(|&id| match failure(view, pack, id) {
            Some(said) => format!("{}: {said}", name(view, id)),
            None if pack.is_held_back(id) => format!("{} built another base", name(view, id)),
            None => format!("{} takes no part", name(view, id)),
        });
        Some(format!(
            "{} of {} nodes have built the new generation, and nobody is left who could ({})",
            ready.len(),
            voters.len(),
            causes.collect::<Vec<_>>().join("; ")
        ))
    }

    /// The master has built another base than the others, and for as long as a straggler would have had there is nobody who
    /// could take over in the new generation. The reason to call the pack off, then.
    fn no_heir(&mut self, view: &View<'_>, pack: &Pack) -> Option<String> {
        let (master, _) = view.state.master()?;
        let running = &mut self.packs.running;
        let waits = pack.is_outvoted(master) && running.heir(view, pack).is_none();
        if !waits {
            running.no_heir = None;
            return None;
        }
        let since = *running.no_heir.get_or_insert(view.now);
        (view.now.since_ms(since) >= view.timing.straggler_ms).then(|| {
            let who = name(view, master);
            format!("{who} is master and built another base than the others, and nobody could take over from it")
        })
    }

    /// A majority is ready, and the master among them or about to hand over: the election, once the stragglers have had
    /// their time, and who goes on is done. True if it is time.
    fn switching(&mut self, view: &View<'_>, pack: &Pack, out: &mut Vec<Decision>) -> bool {
        let (master, _) = view.state.master().expect("somebody is open");
        let voters = view.state.voters();
        let is_ready = |id: &NodeId| pack.ready.contains(id);
        let ready = voters.iter().filter(|id| is_ready(id)).count();
        if ready < majority(voters.len()) {
            // It was one before two others outvoted its base.
            self.packs.running.majority_ready = None;
            return false;
        }
        let since = *self.packs.running.majority_ready.get_or_insert(view.now);
        let waited_ms = view.now.since_ms(since);
        let heir = self.packs.running.heir(view, pack).filter(|_| !is_ready(&master));
        if heir.is_none() && !is_ready(&master) {
            return false;
        }
        let done = |id: &NodeId| {
            is_ready(id)
                || pack.is_outvoted(*id)
                || failure(view, pack, *id).is_some()
                || !view.is_alive(*id)
                || (heir.is_some() && *id == master)
        };
        let late: Vec<NodeId> = voters.iter().copied().filter(|id| !done(id)).collect();
        let goes_on = late.iter().any(|id| self.packs.running.goes_on(view, *id));
        let patience_ms = if goes_on { GOES_ON_MS_MAX } else { view.timing.straggler_ms };
        if !late.is_empty() && waited_ms < patience_ms {
            return false;
        }
        if view.state.paused() {
            return true;
        }
        let drained = |heir: NodeId| {
            let of_this = |beat: &&Beat| beat.pack.as_ref().is_some_and(|it| it.pack == pack.id.0);
            let said = view.beat(master).filter(of_this);
            said.is_some_and(|beat| beat.drained_for == heir.0)
        };
        if let Some(heir) = heir.filter(|heir| !drained(*heir)) {
            let told = self.packs.running.hold_told;
            if told.is_none_or(|(_, last)| view.now.since_ms(last) >= TURN_AGAIN_MS) {
                let first = told.map_or(view.now, |(first, _)| first);
                self.packs.running.hold_told = Some((first, view.now));
                out.push(Decision::PackTurn {
                    node: master,
                    pack: pack.id,
                    generation: pack.generation,
                    hold_for: Some(heir),
                });
            }
            return true;
        }
        let generation = pack.generation;
        let mut why = format!("{ready} of {} nodes have generation {generation}", voters.len());
        if let Some(heir) = heir {
            why.push_str(&format!("; {} hands over to {}", name(view, master), name(view, heir)));
        }
        let target = heir.unwrap_or(master);
        self.fence_now(view, Reason::GenerationSwitch, Some(target), AUTOMATIC, &why, out);
        true
    }

    /// So many slaves at once as the settings say, and the master when no slave is left that goes on.
    fn give_turns(&mut self, view: &View<'_>, pack: &Pack, out: &mut Vec<Decision>) {
        let hands_over = self.packs.running.majority_ready.is_some()
            && self.packs.running.heir(view, pack).is_some();
        let builders = Settings::of(view.state).builders;
        let (master, _) = view.state.master().expect("somebody is open");
        let voters = view.state.voters();
        let mut building = 0;
        for slave in voters.into_iter().filter(|id| *id != master && waits(view, pack, *id)) {
            if building >= builders {
                return;
            }
            if self.give_turn(view, pack, slave, out) {
                building += 1;
            }
        }
        if building == 0 && waits(view, pack, master) && !hands_over {
            self.give_turn(view, pack, master, out);
        }
    }

    /// True unless the node has not gone on for too long: it keeps its turn, and others are not to wait for it.
    fn give_turn(
        &mut self,
        view: &View<'_>,
        pack: &Pack,
        node: NodeId,
        out: &mut Vec<Decision>,
    ) -> bool {
        let now = view.now;
        let first = !self.packs.running.turns.contains_key(&node);
        let turn = self.packs.running.turns.entry(node).or_insert_with(|| Turn {
            told: now,
            at: progress(view, pack, node),
            since: now,
        });
        if first || now.since_ms(turn.told) >= TURN_AGAIN_MS {
            turn.told = now;
            let (pack, generation) = (pack.id, pack.generation);
            out.push(Decision::PackTurn { node, pack, generation, hold_for: None });
        }
        self.packs.running.goes_on(view, node)
    }

    // ---- the next one ----

    /// An election called one off: it begins again by itself, one that had begun by itself only in its hours.
    fn pack_again(&mut self, view: &View<'_>, asked_by: &str, out: &mut Vec<Decision>) {
        let hours = Settings::of(view.state).hours;
        let out_of_hours = asked_by.starts_with(AUTOMATIC) && !hours.contain(view.now.wall_us);
        if self.has_settled(view) && !out_of_hours && preflight(view).is_ok() {
            self.start_pack(view, asked_by.to_owned(), out);
        }
    }

    fn automatic_pack(&mut self, view: &View<'_>, out: &mut Vec<Decision>) {
        let settings = Settings::of(view.state);
        let Some(cause) = self.cause(view, &settings) else {
            self.packs.waits.clear();
            return;
        };
        // What ends by itself is not worth a word.
        let now = view.now.wall_us;
        if !self.has_settled(view) || !settings.hours.contain(now) || !self.has_rested(view) {
            return;
        }
        match preflight(view) {
            Ok(()) => self.start_pack(view, format!("{AUTOMATIC}, {cause}"), out),
            Err(why) if self.packs.waits != why => {
                self.packs.waits.clone_from(&why);
                out.push(Decision::PackWaits { cause, why });
            }
            Err(_) => {}
        }
    }

    /// What asks for a pack now, by the master's own word on its file.
    fn cause(&self, view: &View<'_>, settings: &Settings) -> Option<String> {
        let (master, _) = view.state.master()?;
        let beat = view.beat(master)?;
        let share = room::garbage_percent(beat.file_bytes, beat.garbage_bytes);
        if settings.garbage_share != 0 && share >= settings.garbage_share {
            return Some(format!("garbage share {share} % >= {} %", settings.garbage_share));
        }
        let (tail, most) = (beat.tail_bytes, settings.pack_bytes);
        (most != 0 && tail >= most).then(|| format!("{tail} bytes since the last pack >= {most}"))
    }

    fn has_settled(&self, view: &View<'_>) -> bool {
        self.opened.is_some_and(|(_, since)| view.now.since_ms(since) >= view.timing.pack_again_ms)
    }

    /// Long enough since the last pack, and longer after one that failed.
    fn has_rested(&self, view: &View<'_>) -> bool {
        let Some((rested, seen)) = self.packs.rested else { return false };
        if rested.since_wall_us == 0 {
            return true;
        }
        let before_ms = seen.wall_us.saturating_sub(rested.since_wall_us) / 1000;
        let rested_ms = before_ms.saturating_add(view.now.since_ms(seen));
        let failed_ms = if rested.failed { view.timing.pack_failed_ms } else { 0 };
        rested_ms >= Settings::of(view.state).min_distance_ms.max(failed_ms)
    }

    fn start_pack(&mut self, view: &View<'_>, asked_by: String, out: &mut Vec<Decision>) {
        let generation = view.state.generation().map_or(1, |current| current.number.next().0);
        let after = view.state.packs_changed();
        self.propose(view, Kind::PackStart(PackStart { generation, asked_by, after }), out);
    }
}

/// A majority can't be had any more, or not with the master. The reason to call it off, then.
fn too_many_failed(view: &View<'_>, pack: &Pack) -> Option<String> {
    let (master, _) = view.state.master().expect("somebody is open");
    let voters = view.state.voters();
    let failed: Vec<(NodeId, &str)> =
        voters.iter().filter_map(|id| Some((*id, failure(view, pack, *id)?))).collect();
    // One whose base was outvoted hands over to one whose base is right.
    let by_master = failed.iter().any(|(id, _)| *id == master) && !pack.is_outvoted(master);
    let causes = failed.iter().map(|(id, said)| format!("{}: {said}", name(view, *id)));
    (by_master || failed.len() >= majority(voters.len())).then(|| {
        format!(
            "{} of {} nodes could not build the new generation ({})",
            failed.len(),
            voters.len(),
            causes.collect::<Vec<_>>().join("; ")
        )
    })
}

/// Everybody has built, and no two have the same. The reason to call the pack off, then: no one of them can be believed.
fn all_differ(view: &View<'_>, pack: &Pack) -> Option<String> {
    let voters = view.state.voters();
    let built: Vec<_> = voters.iter().filter_map(|id| Some((*id, pack.builds.get(id)?))).collect();
    let none_twice = built.iter().all(|(_, base)| pack.votes(base) == 1);
    if built.len() < voters.len() || built.len() < 2 || !none_twice {
        return None;
    }
    let told = built.iter().map(|(id, base)| format!("{}: {}", name(view, *id), base.base_hash));
    Some(format!(
        "every node built another base ({}): disks or memory give wrong bytes, or the nodes run different programs",
        told.collect::<Vec<_>>().join("; ")
    ))
}

/// What a node has said of this very pack.
fn said<'a>(view: &'a View<'_>, pack: &Pack, id: NodeId) -> Option<&'a PackProgress> {
    view.beat(id)?.pack.as_ref().filter(|said| said.pack == pack.id.0)
}

/// What a node has said of a pack in which it failed.
fn failure<'a>(view: &'a View<'_>, pack: &Pack, id: NodeId) -> Option<&'a str> {
    let phase = said(view, pack, id)?.phase.as_str();
    Some(phase).filter(|phase| phase.starts_with("failed"))
}

/// What a node is at, and how many bytes of it are done.
fn progress(view: &View<'_>, pack: &Pack, id: NodeId) -> (String, u64) {
    said(view, pack, id).map_or(Default::default(), |said| (said.phase.clone(), said.done_bytes))
}

/// It has yet to build, and can be heard. Who has built another base than the agreed one waits for others to build.
fn waits(view: &View<'_>, pack: &Pack, id: NodeId) -> bool {
    let differs = pack.is_held_back(id) || pack.is_outvoted(id);
    let may = !pack.ready.contains(&id) && !differs;
    may && failure(view, pack, id).is_none() && view.is_alive(id)
}

/// Can a pack begin now? The reason why not is for whoever asked, and ends in the remedy.
pub fn preflight(view: &View<'_>) -> Result<(), String> {
    let state = view.state;
    if !matches!(state.phase(), Phase::Elected { opened: true, .. }) {
        return Err("there is no open master; see `packmaster ctl status`".into());
    }
    if let Some(pack) = state.pack() {
        return Err(format!(
            "a pack to generation {} is in progress; `packmaster ctl pack --wait` follows it",
            pack.generation
        ));
    }
    if state.paused() {
        return Err(
            "elections are paused, and a pack ends in one: `packmaster ctl resume` first".into()
        );
    }
    let voters = state.voters();
    let in_step =
        |id: &&NodeId| view.is_alive(**id) && view.beat(**id).is_some_and(|beat| beat.in_step);
    let healthy = voters.iter().filter(in_step).count();
    if healthy < majority(voters.len()) {
        return Err(format!(
            "only {healthy} of {} nodes are in step; `packmaster ctl status` says why",
            voters.len()
        ));
    }
    for &id in voters.iter().filter(|id| view.is_alive(**id)) {
        let beat = view.beat(id).expect("alive nodes have said something");
        room::check(beat).map_err(|why| format!("{} {why}", name(view, id)))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "packs_tests.rs"]
mod tests;
