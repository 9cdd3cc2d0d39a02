//! The records that python/history.py keeps: one file a client, a line of JSON for everything it asked.
//!
//! Times are nanoseconds of the machine's monotonic clock, which all processes share. A transaction has a line when its
//! data is about to be sent and another when it was answered: if the second is missing, the outcome is unknown.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::{Commit, Event, Mark, NEVER, Oid, Outcome, Session, Tag, Time, What};

const MARK: &[u8] = b"PMTAG:";
const TAG_DIGITS: usize = 32;
const COUNT_DIGITS: usize = 16;

/// What every cell that python/history.py stores has among its data: the word, the tag and the count, in hexadecimal.
pub fn mark(data: &[u8]) -> Option<Mark> {
    let at = data.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = data.get(at..at + TAG_DIGITS + COUNT_DIGITS)?;
    let (tag, count) = digits.split_at(TAG_DIGITS);
    let count = u64::from_str_radix(std::str::from_utf8(count).ok()?, 16).ok()?;
    Some(Mark { tag: tag_from(std::str::from_utf8(tag).ok()?)?, count })
}

fn tag_from(digits: &str) -> Option<Tag> {
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}

/// A tag is the number of its client and of the client's transaction.
pub fn tag_text(tag: &Tag) -> String {
    let number = u128::from_be_bytes(*tag);
    format!("c{}#{}", number >> 64, number as u64)
}

#[derive(Deserialize)]
#[serde(tag = "k", rename_all = "snake_case")]
enum Line {
    Open { node: String },
    Sync { t: (Time, Time), oids: Vec<Oid> },
    Begin { t: (Time, Time), oids: Vec<Oid> },
    Load { t: (Time, Time), oid: Oid, tag: Option<String> },
    Invalid { t: (Time, Time), oid: Oid },
    Missing { t: (Time, Time), oid: Oid },
    Send { t: Time, tag: String, reads: Vec<(Oid, String)>, writes: Vec<Oid> },
    Answer { t: Time, outcome: Said },
    Lost { t: Time, node: String, why: String },
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Said {
    Acknowledged,
    Conflict,
    GivenUp,
}

/// A connection that ended before its client wanted.
#[derive(Clone, Debug)]
pub struct Lost {
    pub client: String,
    pub node: String,
    pub at: Time,
    pub why: String,
}

/// What the clients recorded.
#[derive(Default)]
pub struct Recorded {
    pub sessions: Vec<Session>,
    pub lost: Vec<Lost>,
}

impl Recorded {
    /// Everything in the records of `dir`. A last line that is still being written is left out.
    pub fn read(dir: &Path) -> Recorded {
        let mut recorded = Recorded::default();
        let list = fs::read_dir(dir).expect("list the records");
        let mut paths: Vec<_> = list.map(|entry| entry.expect("list the records").path()).collect();
        paths.sort();
        for path in paths {
            let client = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("read a record");
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                recorded.take(&client, line);
            }
        }
        recorded
    }

    fn take(&mut self, client: &str, line: &str) {
        let parsed: Line = serde_json::from_str(line)
            .unwrap_or_else(|e| panic!("the record of {client} has the line {line:?}: {e}"));
        let tag_of =
            |digits: &str| tag_from(digits).unwrap_or_else(|| panic!("{client}: {line:?}"));
        let (asked, answered, what) = match parsed {
            Line::Open { node } => {
                let name = format!("{client}.{} at {node}", self.sessions.len());
                self.sessions.push(Session { name, ..Session::default() });
                return;
            }
            Line::Lost { t, node, why } => {
                self.lost.push(Lost { client: client.into(), node, at: t, why });
                return;
            }
            Line::Answer { t, outcome } => return self.answer(client, t, outcome),
            Line::Sync { t, oids } => (t.0, t.1, What::Synced { invalid: oids }),
            Line::Begin { t, oids } => (t.0, t.1, What::Begun { invalid: oids }),
            Line::Load { t, oid, tag } => {
                (t.0, t.1, What::Loaded { oid, tag: tag.as_deref().map(tag_of) })
            }
            Line::Invalid { t, oid } => (t.0, t.1, What::Invalid { oid }),
            Line::Missing { t, oid } => (t.0, t.1, What::Missing { oid }),
            Line::Send { t, tag, reads, writes } => {
                let reads = reads.iter().map(|(oid, tag)| (*oid, tag_of(tag))).collect();
                let outcome = Outcome::Unknown;
                (t, NEVER, What::Commit(Commit { tag: tag_of(&tag), reads, writes, outcome }))
            }
        };
        let session = self.sessions.last_mut().expect("a session was opened");
        session.events.push(Event { asked, answered, what });
    }

    /// To what was sent last.
    fn answer(&mut self, client: &str, at: Time, said: Said) {
        let event = self.sessions.last_mut().and_then(|session| session.events.last_mut());
        let Some(Event { answered, what: What::Commit(commit), .. }) = event else {
            panic!("{client} was answered what it had not sent");
        };
        *answered = at;
        commit.outcome = match said {
            Said::Acknowledged => Outcome::Acknowledged,
            Said::Conflict => Outcome::Conflict,
            Said::GivenUp => Outcome::GivenUp,
        };
    }

    /// Answers to commits, in order of time.
    pub fn acknowledged(&self) -> Vec<Time> {
        let acked = |event: &Event| match &event.what {
            What::Commit(commit) if commit.outcome == Outcome::Acknowledged => Some(event.answered),
            _ => None,
        };
        let mut times: Vec<Time> =
            self.sessions.iter().flat_map(|session| &session.events).filter_map(acked).collect();
        times.sort_unstable();
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_in_a_pickle_and_a_cut_one_is_not() {
        let data =
            b"\x80\x02}q\x01X\x36\0\0\0PMTAG:00000000000000020000000000000007000000000000000bu.";
        let found = mark(data).unwrap();
        assert_eq!((tag_text(&found.tag), found.count), ("c2#7".into(), 11));
        assert_eq!(mark(&data[..40]), None);
        assert_eq!(mark(b"nothing"), None);
    }

    #[test]
    fn lines_become_sessions_and_what_was_not_answered_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let tag = "0000000000000001000000000000000";
        let text = format!(
            r#"{{"k":"open","node":"n1"}}
{{"k":"load","t":[1,2],"oid":3,"tag":"{tag}1"}}
{{"k":"begin","t":[3,4],"oids":[9]}}
{{"k":"send","t":5,"tag":"{tag}2","reads":[[3,"{tag}1"]],"writes":[3]}}
{{"k":"answer","t":6,"outcome":"acknowledged"}}
{{"k":"send","t":7,"tag":"{tag}3","reads":[],"writes":[3]}}
{{"k":"lost","t":8,"node":"n1","why":"ShortRead"}}
{{"k":"open","node":"n2"}}
{{"k":"sync","t":[9,"#
        );
        fs::write(dir.path().join("c1.json"), text).unwrap();
        let recorded = Recorded::read(dir.path());
        assert_eq!(recorded.sessions.len(), 2);
        assert_eq!(recorded.lost.len(), 1);
        assert_eq!(recorded.acknowledged(), [6]);
        let commits: Vec<_> = recorded.sessions[0]
            .events
            .iter()
            .filter_map(|event| match &event.what {
                What::Commit(commit) => {
                    Some((tag_text(&commit.tag), commit.outcome, event.answered))
                }
                _ => None,
            })
            .collect();
        assert_eq!(
            commits,
            [("c1#2".into(), Outcome::Acknowledged, 6), ("c1#3".into(), Outcome::Unknown, NEVER)]
        );
    }
}
