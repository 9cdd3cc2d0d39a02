//! Which files of older generations a node keeps, and why.
//!
//! A member that is still in an older generation needs that one and all later ones: it fetches from them what its own
//! file lacks, and then builds. Those stay, whatever the settings say. Of the rest as many are kept as the settings
//! want by number or by age, newest first, as long as all that is kept is within the space they allow: the first that has no
//! room goes, and with it all before it, since whoever comes from there would need it.
//!
//! One judgement for the node, which removes what nothing keeps, and for `ctl generations` and status, which say why.

use std::collections::BTreeMap;

use crate::control::Settings;

/// A file of an older generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    pub generation: u64,
    pub bytes: u64,
}

pub struct Rules<'a> {
    pub settings: &'a Settings,
    /// By this node's configuration.
    pub keep_generations: u64,
    /// The generation each member is in, by name; None: not heard of since this node's start.
    pub members: &'a [(String, Option<u64>)],
    /// When each generation became current.
    pub since_wall_us: &'a BTreeMap<u64, u64>,
    pub now_wall_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// These members have not moved on yet.
    Needed(Vec<String>),
    /// By `keep.generations`, or the configuration's `keep_generations`.
    Number,
    /// By `keep.age`.
    Age,
}

impl Why {
    pub fn text(&self) -> String {
        match self {
            Why::Needed(names) => format!("needed by {}", names.join(", ")),
            Why::Number => "by number (keep.generations)".to_owned(),
            Why::Age => "by age (keep.age)".to_owned(),
        }
    }
}

/// Why each of the files is kept; None: by nothing. In the order given.
pub fn why_kept(files: &[Old], rules: &Rules<'_>) -> Vec<Option<Why>> {
    let mut newest_first: Vec<usize> = (0..files.len()).collect();
    newest_first.sort_by_key(|nth| std::cmp::Reverse(files[*nth].generation));
    let mut why = vec![None; files.len()];
    let (mut generations, mut bytes, mut last) = (0, 0u64, None);
    let mut is_full = false;
    for nth in newest_first {
        let file = &files[nth];
        if last != Some(file.generation) {
            (generations, last) = (generations + 1, Some(file.generation));
        }
        let needed_by = rules.needing(file.generation);
        let with_it = bytes.saturating_add(file.bytes);
        is_full |= rules.settings.keep_bytes != 0 && with_it > rules.settings.keep_bytes;
        why[nth] = match () {
            () if !needed_by.is_empty() => Some(Why::Needed(needed_by)),
            () if is_full => None,
            () if generations <= rules.count() => Some(Why::Number),
            () if rules.is_young(file.generation) => Some(Why::Age),
            () => None,
        };
        if why[nth].is_some() {
            bytes = with_it;
        }
    }
    why
}

impl Rules<'_> {
    fn needing(&self, generation: u64) -> Vec<String> {
        let behind = |of: &Option<u64>| of.is_none_or(|of| of <= generation);
        let members = self.members.iter().filter(|(_, of)| behind(of));
        members.map(|(name, _)| name.clone()).collect()
    }

    fn count(&self) -> u64 {
        self.settings.keep_generations.unwrap_or(self.keep_generations)
    }

    /// Was it replaced not long ago? By the clocks of those who decided so and of whoever asks, which may differ: then a
    /// file goes too early or too late, and nobody depended on it.
    fn is_young(&self, generation: u64) -> bool {
        let replaced = self.since_wall_us.range(generation + 1..).next();
        replaced.is_some_and(|(_, since)| {
            self.now_wall_us.saturating_sub(*since) < self.settings.keep_age_us
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: u64 = 86_400_000_000;

    /// Generations 1 to 5, generation n since day n, 10 bytes each; it is day 6.
    fn kept(settings: &[(&str, &str)], members: &[(&str, Option<u64>)]) -> Vec<Option<Why>> {
        let texts = settings.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        let settings = Settings::from_texts(&texts.collect());
        let members: Vec<_> = members.iter().map(|(name, of)| (name.to_string(), *of)).collect();
        let rules = Rules {
            settings: &settings,
            keep_generations: 1,
            members: &members,
            since_wall_us: &(1..=5).map(|number| (number, number * DAY_US)).collect(),
            now_wall_us: 6 * DAY_US,
        };
        let files: Vec<Old> = (1..=4).map(|generation| Old { generation, bytes: 10 }).collect();
        why_kept(&files, &rules)
    }

    const ALL_MOVED: &[(&str, Option<u64>)] = &[("n1", Some(5)), ("n2", Some(5))];

    #[test]
    fn by_number_age_and_space() {
        let number = || Some(Why::Number);
        let age = || Some(Why::Age);
        assert_eq!(kept(&[], ALL_MOVED), [None, None, None, number()], "as configured");
        let three = ("keep.generations", "3");
        assert_eq!(kept(&[three], ALL_MOVED), [None, number(), number(), number()]);
        // Generation 3 was replaced on day 4, two days ago.
        let days = ("keep.age", "3days");
        assert_eq!(kept(&[days], ALL_MOVED), [None, None, age(), number()]);
        let space = ("keep.bytes", "25");
        assert_eq!(kept(&[three, space], ALL_MOVED), [None, None, number(), number()]);
        assert_eq!(kept(&[("keep.bytes", "5")], ALL_MOVED), [None, None, None, None]);
    }

    #[test]
    fn what_a_member_needs_stays_and_is_laid_at_its_door() {
        let needed = || Some(Why::Needed(vec!["n3".to_owned()]));
        let behind = [("n1", Some(5)), ("n3", Some(3))];
        assert_eq!(kept(&[("keep.bytes", "5")], &behind), [None, None, needed(), needed()]);
        let unheard = [("n1", Some(5)), ("n3", None)];
        assert_eq!(kept(&[], &unheard), [needed(), needed(), needed(), needed()]);
    }

    /// The newest was too large and went, and the one before it stayed: of use to nobody, since whoever comes from there
    /// needs all later ones, too.
    #[test]
    fn what_is_older_than_one_that_has_no_room_goes_as_well() {
        let texts = [("keep.generations", "3"), ("keep.bytes", "25")];
        let texts = texts.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let settings = Settings::from_texts(&texts.into_iter().collect());
        let members = [("n1".to_owned(), Some(5))];
        let rules = Rules {
            settings: &settings,
            keep_generations: 1,
            members: &members,
            since_wall_us: &BTreeMap::new(),
            now_wall_us: 6 * DAY_US,
        };
        let kept = |bytes: [u64; 3]| {
            let files = bytes.iter().zip(2..).map(|(&bytes, generation)| Old { generation, bytes });
            let why = why_kept(&files.collect::<Vec<_>>(), &rules);
            why.iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(kept([10, 10, 30]), [false, false, false]);
        assert_eq!(kept([5, 30, 10]), [false, false, true]);
        assert_eq!(kept([5, 10, 10]), [true, true, true]);
    }
}
