//! What one session saw: committed, never going back, one moment between two syncs, and told of every change.
//!
//! A client holds what it loaded or stored until it is told that it changed; what it holds is as good as loaded again
//! at every sync. So at any time the state a session sees is a **moment** of the order: at or after the newest
//! transaction it holds something of, before the first that changed anything it holds, and not before its **floor**,
//! which what it saw before and what others were acknowledged before its last sync put under it.

use std::collections::BTreeMap;

use super::order::{Past, Sent};
use super::{
    Commit, Event, Judged, Oid, Outcome, Rule, Session, Tag, Time, Violation, What, broken,
    tag_text,
};

/// The newest seq that anybody had been acknowledged by a time.
pub(super) struct Acknowledged {
    /// (answered, newest seq answered by then), in order of time.
    by_time: Vec<(Time, u64)>,
}

impl Acknowledged {
    pub fn new(sent: &Sent<'_>, past: &Past) -> Acknowledged {
        let acked = |(tag, one): (&Tag, &super::order::SentOne<'_>)| {
            let seq = past.seqs.get(tag)?;
            (one.commit.outcome == Outcome::Acknowledged).then_some((one.answered, *seq))
        };
        let mut by_time: Vec<(Time, u64)> = sent.by_tag.iter().filter_map(acked).collect();
        by_time.sort_unstable();
        let mut newest = 0;
        for (_, seq) in &mut by_time {
            newest = newest.max(*seq);
            *seq = newest;
        }
        Acknowledged { by_time }
    }

    fn before(&self, time: Time) -> u64 {
        let upto = self.by_time.partition_point(|(answered, _)| *answered < time);
        upto.checked_sub(1).map_or(0, |last| self.by_time[last].1)
    }
}

struct View<'a> {
    session: &'a Session,
    past: &'a Past,
    /// What the client may hold, and as of which seq.
    held: BTreeMap<Oid, u64>,
    /// What it must see at least.
    floor: u64,
    /// The newest of what it holds.
    newest: u64,
    /// The first change of anything it holds, and of what.
    below: (u64, Oid),
}

pub(super) fn judge(
    session: &Session,
    sent: &Sent<'_>,
    past: &Past,
    acknowledged: &Acknowledged,
    judged: &mut Judged,
) -> Result<(), Violation> {
    let mut view = View {
        session,
        past,
        held: BTreeMap::new(),
        // Nothing that was acknowledged before is hidden from a new session.
        floor: session.events.first().map_or(0, |first| acknowledged.before(first.asked)),
        newest: 0,
        below: (u64::MAX, 0),
    };
    for event in &session.events {
        match &event.what {
            What::Synced { invalid } => {
                judged.syncs += 1;
                view.told(invalid);
                view.floor = view.floor.max(acknowledged.before(event.asked));
                view.looks_again("after a sync")?;
                view.holds_nothing_taken()?;
            }
            What::Begun { invalid } => {
                view.told(invalid);
                view.looks_again("after C")?;
            }
            What::Loaded { oid, tag } => {
                judged.loads += 1;
                view.loaded(*oid, *tag, event, sent)?;
            }
            What::Invalid { .. } => judged.invalid_loads += 1,
            What::Missing { oid } => {
                judged.missing_loads += 1;
                view.missing(*oid)?;
            }
            What::Commit(commit)
                if matches!(commit.outcome, Outcome::Acknowledged | Outcome::Alone) =>
            {
                // Nothing that it holds may have changed unseen before its own transaction.
                let Some(&seq) = past.seqs.get(&commit.tag) else {
                    let (name, tag) = (&session.name, tag_text(&commit.tag));
                    let what = format!("{name} was acknowledged {tag}, which is lost, and went on");
                    return broken(Rule::SessionMonotone, what);
                };
                view.held.extend(commit.writes.iter().map(|oid| (*oid, seq)));
                view.floor = view.floor.max(seq);
                view.looks_again("after its commit")?;
            }
            What::Commit(commit) if commit.outcome == Outcome::Conflict => {
                judged.needless_conflicts += u64::from(is_needless(commit, event, sent, past));
            }
            What::Commit(_) => {}
        }
    }
    Ok(())
}

/// Was nothing that a refused transaction had read changed by another that was sent before the answer?
fn is_needless(commit: &Commit, event: &Event, sent: &Sent<'_>, past: &Past) -> bool {
    commit.reads.iter().all(|(oid, tag)| {
        let next = past.stored(*oid, Some(*tag)).and_then(|seq| past.next_writer(*oid, seq));
        next.is_none_or(|tag| sent.by_tag.get(&tag).is_none_or(|one| one.asked > event.answered))
    })
}

impl View<'_> {
    fn told(&mut self, invalid: &[Oid]) {
        for oid in invalid {
            self.held.remove(oid);
        }
    }

    /// All that the client still holds is as good as read again.
    fn looks_again(&mut self, when: &str) -> Result<(), Violation> {
        (self.newest, self.below) = (0, (u64::MAX, 0));
        for (oid, seq) in &self.held {
            self.newest = self.newest.max(*seq);
            self.below = self.below.min((self.past.changed_after(*oid, *seq), *oid));
        }
        let (below, oid) = self.below;
        if below <= self.floor || below <= self.newest {
            let (name, newest) = (&self.session.name, self.newest.max(self.floor));
            let what = format!(
                "{name}, {when}, was not told that oid {oid} changed at seq {below}, and sees seq {newest}"
            );
            return broken(Rule::ToldOfChanges, what);
        }
        Ok(())
    }

    /// Stock Durus tells its clients of everything that a pack took away, and they drop it.
    fn holds_nothing_taken(&self) -> Result<(), Violation> {
        let sees = self.newest.max(self.floor);
        for (oid, seq) in &self.held {
            if let Some(switch) = self.past.taken_after(*oid, *seq)
                && switch <= sees
            {
                let name = &self.session.name;
                let what = format!(
                    "{name}, after a sync, was not told that a pack took oid {oid} away at seq {switch}, and sees seq {sees}"
                );
                return broken(Rule::ToldOfTaken, what);
            }
        }
        Ok(())
    }

    fn loaded(
        &mut self,
        oid: Oid,
        tag: Option<Tag>,
        event: &Event,
        sent: &Sent<'_>,
    ) -> Result<(), Violation> {
        let name = &self.session.name;
        let text = tag.map_or("nobody".into(), |tag| tag_text(&tag));
        let Some(seq) = self.past.stored(oid, tag) else {
            let what = format!("{name} saw oid {oid} of {text}, which is not in the history");
            return broken(Rule::ReadIsCommittedPrefix, what);
        };
        if let Some(one) = tag.and_then(|tag| sent.by_tag.get(&tag))
            && one.asked > event.answered
        {
            let what = format!("{name} saw oid {oid} of {text} before that was sent");
            return broken(Rule::ReadFromFuture, what);
        }
        let changed = self.past.changed_after(oid, seq);
        if changed <= self.floor {
            let what = format!(
                "{name} saw oid {oid} as of seq {seq}, changed at {changed}, and was to see seq {} at least",
                self.floor
            );
            return broken(Rule::SessionMonotone, what);
        }
        self.held.insert(oid, seq);
        self.newest = self.newest.max(seq);
        self.below = self.below.min((changed, oid));
        let (below, other) = self.below;
        if self.newest >= below {
            let what = format!(
                "{name} holds something of seq {} and, without a sync in between, oid {other} as before seq {below}",
                self.newest
            );
            return broken(Rule::Snapshot, what);
        }
        // It may not go back behind what it has seen.
        self.floor = self.floor.max(seq);
        Ok(())
    }

    fn missing(&mut self, oid: Oid) -> Result<(), Violation> {
        if self.past.always_there(oid, self.floor) {
            let (name, floor) = (&self.session.name, self.floor);
            let what =
                format!("{name} found no oid {oid}, which is there since before seq {floor}");
            return broken(Rule::NotMissing, what);
        }
        Ok(())
    }
}
