//! The committed order itself: what is stored was sent, once, on top of what its client had read, and survives packs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Commit, History, Judged, Mark, NEVER, Oid, Outcome, Rule, Session, Step, Tag, Time, Violation,
    What, broken, tag_text,
};
use crate::sim::parse::Object;

/// Every transaction that a client sent or gave up, by its tag.
pub(super) struct Sent<'a> {
    pub by_tag: BTreeMap<Tag, SentOne<'a>>,
}

pub(super) struct SentOne<'a> {
    pub commit: &'a Commit,
    pub asked: Time,
    pub answered: Time,
}

impl<'a> Sent<'a> {
    pub fn collect(sessions: &'a [Session]) -> Result<Sent<'a>, Violation> {
        let mut by_tag = BTreeMap::new();
        for event in sessions.iter().flat_map(|session| &session.events) {
            let What::Commit(commit) = &event.what else { continue };
            let answered = match commit.outcome {
                Outcome::Unknown | Outcome::Alone => NEVER,
                _ => event.answered,
            };
            let one = SentOne { commit, asked: event.asked, answered };
            if by_tag.insert(commit.tag, one).is_some() {
                return broken(
                    Rule::ExactlyOnce,
                    format!("the clients used {} twice", tag_text(&commit.tag)),
                );
            }
        }
        Ok(Sent { by_tag })
    }
}

/// What an object was from a seq on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Of this transaction; of none if it was there before any, or has no mark.
    Stored(Option<Tag>),
    /// A pack took it away.
    Dropped,
}

/// The order, by transaction and by object.
#[derive(Default)]
pub(super) struct Past {
    pub seqs: BTreeMap<Tag, u64>,
    objects: BTreeMap<Oid, Vec<(u64, State)>>,
    /// What packs took away: the cut of each, and the first seq that only the new generation has.
    taken: BTreeMap<Oid, Vec<(u64, u64)>>,
}

impl Past {
    /// Where the object was stored with this tag; an object without a mark was stored first.
    pub fn stored(&self, oid: Oid, tag: Option<Tag>) -> Option<u64> {
        let versions = self.objects.get(&oid)?;
        let wanted = State::Stored(tag);
        versions.iter().find(|(_, state)| *state == wanted).map(|(seq, _)| *seq)
    }

    /// When the object was stored again after `seq`; never if it was not.
    pub fn changed_after(&self, oid: Oid, seq: u64) -> u64 {
        let Some(versions) = self.objects.get(&oid) else { return u64::MAX };
        let from = versions.partition_point(|(at, _)| *at <= seq);
        let stored = |(_, state): &&(u64, State)| matches!(state, State::Stored(_));
        versions[from..].iter().find(stored).map_or(u64::MAX, |(at, _)| *at)
    }

    /// Whose transaction stored the object next after `seq`.
    pub fn next_writer(&self, oid: Oid, seq: u64) -> Option<Tag> {
        let versions = self.objects.get(&oid)?;
        let from = versions.partition_point(|(at, _)| *at <= seq);
        versions[from..].iter().find_map(|(_, state)| match state {
            State::Stored(tag) => *tag,
            State::Dropped => None,
        })
    }

    /// Was it there by `seq`, and did no pack take it away, ever?
    pub fn always_there(&self, oid: Oid, seq: u64) -> bool {
        self.objects.get(&oid).is_some_and(|versions| {
            versions[0].0 <= seq && versions.iter().all(|(_, state)| *state != State::Dropped)
        })
    }

    /// From which seq on a pack has taken away what was there as of `seq`.
    pub fn taken_after(&self, oid: Oid, seq: u64) -> Option<u64> {
        let packs = self.taken.get(&oid)?;
        packs.iter().find(|(cut, _)| *cut >= seq).map(|(_, switch)| *switch)
    }

    fn note(&mut self, oid: Oid, seq: u64, state: State) {
        self.objects.entry(oid).or_default().push((seq, state));
    }
}

/// Goes through the order once, with the state as of each step.
pub(super) fn walk(
    history: &History<'_>,
    sent: &Sent<'_>,
    judged: &mut Judged,
) -> Result<Past, Violation> {
    let mut walk = Walk {
        history,
        sent,
        past: Past::default(),
        now: history.initial.iter().map(|(oid, object)| (*oid, object)).collect(),
        last_seq: 0,
        last_sent: None,
    };
    for (oid, object) in &history.initial {
        let tag = (history.mark)(&object.data).map(|mark| mark.tag);
        walk.past.note(*oid, 0, State::Stored(tag));
    }
    for step in &history.order {
        match *step {
            Step::Transaction { seq, objects } => {
                walk.transaction(seq, objects)?;
                judged.transactions += 1;
            }
            Step::Pack { generation, base, switch } => {
                walk.pack(generation, base, switch)?;
                judged.packs += 1;
            }
        }
    }
    walk.is_closed()?;
    Ok(walk.past)
}

struct Walk<'a> {
    history: &'a History<'a>,
    sent: &'a Sent<'a>,
    past: Past,
    now: BTreeMap<Oid, &'a Object>,
    last_seq: u64,
    /// Which transaction so far was sent last, and when.
    last_sent: Option<(Time, Tag)>,
}

impl<'a> Walk<'a> {
    fn transaction(&mut self, seq: u64, objects: &'a [(Oid, Object)]) -> Result<(), Violation> {
        if seq <= self.last_seq {
            return broken(Rule::OneOrder, format!("seq {seq} follows seq {}", self.last_seq));
        }
        self.last_seq = seq;
        if objects.is_empty() {
            return Ok(());
        }
        let marks: Vec<Option<Mark>> =
            objects.iter().map(|(_, object)| (self.history.mark)(&object.data)).collect();
        let tags: BTreeSet<Tag> = marks.iter().flatten().map(|mark| mark.tag).collect();
        let Some(tag) = tags.first().copied().filter(|_| tags.len() == 1) else {
            let tags: Vec<String> = tags.iter().map(tag_text).collect();
            return broken(Rule::AsSent, format!("seq {seq} is of nobody or of many: {tags:?}"));
        };
        self.is_as_sent(seq, &tag, objects)?;
        self.reads_hold(seq, &tag)?;
        self.counts_go_up(seq, &tag, objects, &marks)?;
        for ((oid, object), mark) in objects.iter().zip(marks) {
            self.now.insert(*oid, object);
            self.past.note(*oid, seq, State::Stored(mark.map(|mark| mark.tag)));
        }
        Ok(())
    }

    fn is_as_sent(
        &mut self,
        seq: u64,
        tag: &Tag,
        objects: &[(Oid, Object)],
    ) -> Result<(), Violation> {
        let text = tag_text(tag);
        if let Some(other) = self.past.seqs.insert(*tag, seq) {
            return broken(Rule::ExactlyOnce, format!("{text} at seq {other} and at seq {seq}"));
        }
        let Some(one) = self.sent.by_tag.get(tag) else {
            return broken(Rule::AsSent, format!("{text} at seq {seq} was never sent"));
        };
        let stored: BTreeSet<Oid> = objects.iter().map(|(oid, _)| *oid).collect();
        let wrote: BTreeSet<Oid> = one.commit.writes.iter().copied().collect();
        if stored != wrote {
            let what = format!("{text} wrote {wrote:?}, and seq {seq} stores {stored:?}");
            return broken(Rule::AsSent, what);
        }
        if let Some((asked, later)) = self.last_sent
            && one.answered < asked
        {
            let later = tag_text(&later);
            let what = format!(
                "{text} at seq {seq} was acknowledged before {later} was sent, and comes after it"
            );
            return broken(Rule::RealTime, what);
        }
        self.last_sent = self.last_sent.max(Some((one.asked, *tag)));
        Ok(())
    }

    /// Was everything a transaction had read still so when it was stored?
    fn reads_hold(&self, seq: u64, tag: &Tag) -> Result<(), Violation> {
        for (oid, read) in &self.sent.by_tag[tag].commit.reads {
            // What a pack dropped was changed by nobody: nothing that is kept refers to it, and storing or linking it
            // is refused. Having read it once does no harm.
            let Some(object) = self.now.get(oid) else { continue };
            let there = (self.history.mark)(&object.data).map(|mark| mark.tag);
            if there != Some(*read) {
                let there = there.map_or("nobody".into(), |tag| tag_text(&tag));
                let (text, read) = (tag_text(tag), tag_text(read));
                let what = format!(
                    "{text} at seq {seq} had read oid {oid} as of {read}, and it is of {there}"
                );
                return broken(Rule::StaleRead, what);
            }
        }
        Ok(())
    }

    fn counts_go_up(
        &self,
        seq: u64,
        tag: &Tag,
        objects: &[(Oid, Object)],
        marks: &[Option<Mark>],
    ) -> Result<(), Violation> {
        for ((oid, _), mark) in objects.iter().zip(marks) {
            let before = self.now.get(oid).and_then(|object| (self.history.mark)(&object.data));
            let (before, is) =
                (before.map_or(0, |mark| mark.count), mark.map_or(0, |mark| mark.count));
            if before > 0 && is > 0 && is != before + 1 {
                let text = tag_text(tag);
                let what = format!("oid {oid} goes from {before} to {is} at seq {seq} by {text}");
                return broken(Rule::LostUpdate, what);
            }
        }
        Ok(())
    }

    /// A base holds what the root reaches, as it is now, and nothing that is not there. What it dropped is gone.
    fn pack(
        &mut self,
        generation: u64,
        base: &'a BTreeMap<Oid, Object>,
        switch: Option<u64>,
    ) -> Result<(), Violation> {
        let seq = self.last_seq;
        for oid in self.reachable() {
            if let Some(object) = self.now.get(&oid)
                && base.get(&oid) != Some(*object)
            {
                let what = format!("oid {oid} in generation {generation}, cut after seq {seq}");
                return broken(Rule::GenerationEquivalent, what);
            }
        }
        for (oid, object) in base {
            if self.now.get(oid) != Some(&object) {
                let what = format!(
                    "oid {oid} in the base of generation {generation}, cut after seq {seq}"
                );
                return broken(Rule::GenerationEquivalent, what);
            }
        }
        let now = std::mem::take(&mut self.now);
        for oid in now.keys().filter(|oid| !base.contains_key(oid)) {
            self.past.note(*oid, seq, State::Dropped);
            if let Some(switch) = switch {
                self.past.taken.entry(*oid).or_default().push((seq, switch));
            }
        }
        self.now = base.iter().map(|(oid, object)| (*oid, object)).collect();
        Ok(())
    }

    fn reachable(&self) -> BTreeSet<Oid> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![0];
        while let Some(oid) = todo.pop() {
            if seen.insert(oid)
                && let Some(object) = self.now.get(&oid)
            {
                todo.extend(&object.refs);
            }
        }
        seen
    }

    fn is_closed(&self) -> Result<(), Violation> {
        if !self.now.contains_key(&0) {
            return Ok(());
        }
        match self.reachable().into_iter().find(|oid| !self.now.contains_key(oid)) {
            Some(oid) => {
                broken(Rule::ReferencesClosed, format!("oid {oid} is reachable and is not there"))
            }
            None => Ok(()),
        }
    }
}

/// Is each transaction there or not, as its client was told?
pub(super) fn outcomes(sent: &Sent<'_>, past: &Past, judged: &mut Judged) -> Result<(), Violation> {
    for (tag, one) in &sent.by_tag {
        match (one.commit.outcome, past.seqs.get(tag)) {
            (Outcome::Acknowledged | Outcome::Alone, Some(_)) => judged.acknowledged += 1,
            (Outcome::Alone, None) => judged.lost += 1,
            (Outcome::Acknowledged, None) => {
                let what = format!("{} was acknowledged and is lost", tag_text(tag));
                return broken(Rule::AckedIsDurable, what);
            }
            (Outcome::Conflict | Outcome::GivenUp, Some(seq)) => {
                let what =
                    format!("{}: {:?}, and is at seq {seq}", tag_text(tag), one.commit.outcome);
                return broken(Rule::RefusedIsAbsent, what);
            }
            (Outcome::Conflict, None) => judged.conflicts += 1,
            (Outcome::GivenUp, None) => judged.given_up += 1,
            (Outcome::Unknown, Some(_)) => judged.unknown_found += 1,
            (Outcome::Unknown, None) => judged.unknown_absent += 1,
        }
    }
    Ok(())
}
