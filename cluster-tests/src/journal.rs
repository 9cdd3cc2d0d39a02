//! The journal that writer.py keeps of what its clients were told, one file a client.
//!
//! A line is `KIND NUMBER TIME`: A acknowledged, U unknown (the connection broke), C conflict; the client's running
//! number of the commit; and the time of the answer on the machine's monotonic clock.

use std::fs;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Acknowledged,
    Unknown,
    Conflict,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub client: String,
    pub told: Told,
    pub number: u64,
    /// Seconds on the monotonic clock, as [`crate::clock::monotonic`].
    pub at: f64,
}

/// Everything in the journals of `dir`, in order of time. A last line that is still being written is left out.
pub fn read(dir: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for file in fs::read_dir(dir).expect("list the journals") {
        let path = file.expect("list the journals").path();
        let client = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("read a journal");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        entries.extend(whole.lines().map(|line| parse(&client, line)));
    }
    entries.sort_by(|a, b| a.at.total_cmp(&b.at));
    entries
}

fn parse(client: &str, line: &str) -> Entry {
    let words: Vec<&str> = line.split(' ').collect();
    let bad = || -> ! { panic!("the journal of {client} has the line {line:?}") };
    let [told, number, at] = words[..] else { bad() };
    let told = match told {
        "A" => Told::Acknowledged,
        "U" => Told::Unknown,
        "C" => Told::Conflict,
        _ => bad(),
    };
    let (Ok(number), Ok(at)) = (number.parse(), at.parse()) else { bad() };
    Entry { client: client.to_string(), told, number, at }
}

/// The times of acknowledgements after `since`.
pub fn acknowledged_since(entries: &[Entry], since: f64) -> Vec<f64> {
    let told = entries.iter().filter(|entry| entry.told == Told::Acknowledged && entry.at > since);
    told.map(|entry| entry.at).collect()
}

/// The middle of the values, or the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { 0.0 } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

/// The longest time without an acknowledgement between `from` and `to`: how long, and when it ended.
pub fn longest_gap(times: &[f64], from: f64, to: f64) -> (f64, f64) {
    let inside = times.iter().copied().filter(|at| (from..to).contains(at));
    let mut last = from;
    let mut longest = (0.0, from);
    for at in inside.chain([to]) {
        if at - last > longest.0 {
            longest = (at - last, at);
        }
        last = at;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_an_unfinished_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("w0.journal"), "A 1 10.5\nU 2 12.0\nA 3 1").unwrap();
        fs::write(dir.path().join("w1.journal"), "C 1 11.0\n").unwrap();
        let entries = read(dir.path());
        let seen: Vec<_> = entries.iter().map(|e| (e.client.as_str(), e.told, e.number)).collect();
        assert_eq!(
            seen,
            [("w0", Told::Acknowledged, 1), ("w1", Told::Conflict, 1), ("w0", Told::Unknown, 2)]
        );
        assert_eq!(acknowledged_since(&entries, 10.0), [10.5]);
        assert!(acknowledged_since(&entries, 10.5).is_empty());
    }

    #[test]
    fn gaps_count_the_edges() {
        assert_eq!(longest_gap(&[1.0, 2.0, 5.0, 5.5], 0.5, 6.0), (3.0, 5.0));
        assert_eq!(longest_gap(&[], 1.0, 4.0), (3.0, 4.0));
    }
}
