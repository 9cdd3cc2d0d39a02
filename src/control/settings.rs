//! Settings that people change while the cluster runs: one table, and what the values mean.
//!
//! A value is checked by `check` where somebody asks for it and again when the command is applied; what the state holds
//! is its canonical text, or nothing for the default. Whoever acts by a setting reads it typed, by `Settings::of`: a
//! text that this version does not understand (a later one may have set it) counts as not set.

use std::collections::BTreeMap;
use std::time::Duration;

use super::State;
use crate::replication::quorum::{DURABILITIES, Durability};

/// What asks for the default again.
pub const DEFAULT: &str = "default";
/// More voters than that can't be, and so no more builders.
const BUILDERS_MAX: u64 = 7;
const GENERATIONS_MAX: u64 = 1_000_000;
/// A hundred years; longer ones would run out of the clock.
const DURATION_S_MAX: u64 = 100 * 365 * 86_400;
const HOUR_US: u64 = 3_600_000_000;
const HAND_OVER: &str = "hand_over";
pub const DURABILITY: &str = "durability";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Number {
        min: u64,
        max: u64,
    },
    Bytes,
    Duration,
    Hours,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// One setting, for people and for the check.
#[derive(Debug)]
pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    /// What is counted.
    pub unit: &'static str,
    /// As a person would type it. `keep.generations` has each node's configuration instead.
    pub default: &'static str,
    pub help: &'static str,
}

/// Every setting there is, in the order in which they are shown.
pub const TABLE: [Definition; 11] = [
    Definition {
        name: "pack.garbage_share",
        kind: Kind::Number { min: 0, max: 99 },
        unit: "percent",
        default: "0",
        help: "pack by itself when so much of the file is garbage; 0: never for that",
    },
    Definition {
        name: "pack.bytes",
        kind: Kind::Bytes,
        unit: "bytes",
        default: "0",
        help: "pack by itself when so much was committed since the last pack; 0: never for that",
    },
    Definition {
        name: "pack.hours",
        kind: Kind::Hours,
        unit: "UTC hours",
        default: "",
        help: "hours in which packs may begin by themselves, such as 22-5 or 1-3,12-13; empty: all",
    },
    Definition {
        name: "pack.min_distance",
        kind: Kind::Duration,
        unit: "time",
        default: "1h",
        help: "from the end of a pack to the next that begins by itself, at least",
    },
    Definition {
        name: "pack.builders",
        kind: Kind::Number { min: 1, max: BUILDERS_MAX },
        unit: "voters",
        default: "1",
        help: "voters that build the new generation at once; the master is the last in any case",
    },
    Definition {
        name: "pack.master",
        kind: Kind::Choice(&["last", HAND_OVER]),
        unit: "",
        default: "last",
        help: "last: the master builds when the slaves have, and stays master; hand_over: a slave becomes master of the new \
               generation, and the old one builds afterwards",
    },
    Definition {
        name: "pack.rate",
        kind: Kind::Bytes,
        unit: "bytes a second",
        default: "0",
        help: "what a pack may read and write on each node; 0: as much as the disk gives",
    },
    Definition {
        name: "keep.generations",
        kind: Kind::Number { min: 1, max: GENERATIONS_MAX },
        unit: "files",
        default: "",
        help: "files of older generations to keep; default: keep_generations of each node's configuration",
    },
    Definition {
        name: "keep.age",
        kind: Kind::Duration,
        unit: "time",
        default: "0s",
        help: "keep older ones too, so long after they were replaced; 0s: none for that",
    },
    Definition {
        name: "keep.bytes",
        kind: Kind::Bytes,
        unit: "bytes",
        default: "0",
        help: "but not more than that of older generations on a node; 0: no limit",
    },
    Definition {
        name: DURABILITY,
        kind: Kind::Choice(&DURABILITIES),
        unit: "",
        default: "majority",
        help: "who must have a commit on disk before its client hears of it. majority: more than half of the voters. all: every \
               voter; survives the loss of all disks but one, and commits wait while any voter is away. local: the master \
               alone; commits of the master's own clients that no majority has yet are LOST if mastership moves",
    },
];

/// All of them, typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Percent; 0: off.
    pub garbage_share: u64,
    /// 0: off.
    pub pack_bytes: u64,
    pub hours: Hours,
    pub min_distance_ms: u64,
    pub builders: usize,
    /// The master does not build, but hands over to one who has.
    pub hand_over: bool,
    /// Bytes a second; 0: unlimited.
    pub rate: u64,
    /// None: as each node is configured.
    pub keep_generations: Option<u64>,
    /// 0: none are kept for their age.
    pub keep_age_us: u64,
    /// 0: no limit.
    pub keep_bytes: u64,
    pub durability: Durability,
}

impl Settings {
    pub fn of(state: &State) -> Settings {
        Settings::from_texts(&state.settings)
    }

    pub fn from_texts(texts: &BTreeMap<String, String>) -> Settings {
        let value = |name: &str| -> Value {
            let set =
                texts.get(name).and_then(|text| Value::parse(definition(name)?.kind, text).ok());
            set.unwrap_or_else(|| default(name))
        };
        let number = |name: &str| value(name).number();
        Settings {
            garbage_share: number("pack.garbage_share"),
            pack_bytes: number("pack.bytes"),
            hours: match value("pack.hours") {
                Value::Hours(hours) => hours,
                _ => Hours::default(),
            },
            min_distance_ms: number("pack.min_distance") * 1000,
            builders: number("pack.builders") as usize,
            hand_over: value("pack.master") == Value::Choice(HAND_OVER),
            rate: number("pack.rate"),
            keep_generations: texts
                .contains_key("keep.generations")
                .then(|| number("keep.generations"))
                .filter(|count| *count > 0),
            keep_age_us: number("keep.age") * 1_000_000,
            keep_bytes: number("keep.bytes"),
            durability: match value(DURABILITY) {
                Value::Choice(name) => Durability::from_name(name).unwrap_or(Durability::Majority),
                _ => Durability::Majority,
            },
        }
    }
}

fn definition(name: &str) -> Option<&'static Definition> {
    TABLE.iter().find(|definition| definition.name == name)
}

fn default(name: &str) -> Value {
    let known = definition(name).expect("asked by a name of the table");
    // The one without a default of its own is none.
    Value::parse(known.kind, known.default).unwrap_or(Value::Number(0))
}

/// The canonical text of a value, None for the default; or why it is none, in a sentence with the remedy.
pub fn check(name: &str, value: &str) -> Result<Option<String>, String> {
    let Some(known) = definition(name) else {
        let names: Vec<&str> = TABLE.iter().map(|definition| definition.name).collect();
        return Err(format!("there is no setting {name:?}; there are {}", names.join(", ")));
    };
    if value.trim() == DEFAULT {
        return Ok(None);
    }
    match Value::parse(known.kind, value) {
        Ok(value) => Ok(Some(value.text())),
        Err(wanted) => Err(format!("{name} can't be {value:?}: it is {wanted}, or {DEFAULT:?}")),
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    Number(u64),
    Bytes(u64),
    /// Seconds.
    Duration(u64),
    Hours(Hours),
    Choice(&'static str),
}

impl Value {
    /// The error says what is wanted.
    fn parse(kind: Kind, text: &str) -> Result<Value, String> {
        let text = text.trim();
        match kind {
            Kind::Number { min, max } => {
                let number = text.parse().ok().filter(|number| (min..=max).contains(number));
                number.map(Value::Number).ok_or_else(|| format!("a number from {min} to {max}"))
            }
            Kind::Bytes => parse_bytes(text)
                .map(Value::Bytes)
                .ok_or_else(|| "a number of bytes, such as 500MB or 20GiB".into()),
            Kind::Duration => parse_seconds(text)
                .map(Value::Duration)
                .ok_or_else(|| "a time in whole seconds, such as 90s, 12h or 7days".into()),
            Kind::Hours => {
                Hours::parse(text).map(Value::Hours).ok_or_else(|| "hours such as 22-5".into())
            }
            Kind::Choice(words) => {
                let known = words.iter().find(|word| **word == text);
                known.map(|word| Value::Choice(word)).ok_or_else(|| words.join(" or "))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Value::Number(number) | Value::Bytes(number) => number.to_string(),
            Value::Duration(seconds) => {
                humantime::format_duration(Duration::from_secs(*seconds)).to_string()
            }
            Value::Hours(hours) => hours.text(),
            Value::Choice(word) => word.to_string(),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Value::Number(number) | Value::Bytes(number) | Value::Duration(number) => *number,
            Value::Hours(_) | Value::Choice(_) => 0,
        }
    }
}

/// "17", "500MB", "20GiB"; a unit without B is one of 1024, as with most tools.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let power = |unit: &str| match unit {
        "k" => Some(1),
        "m" => Some(2),
        "g" => Some(3),
        "t" => Some(4),
        _ => None,
    };
    let factor = match unit.as_str() {
        "" | "b" => 1,
        unit => match (unit.strip_suffix("ib"), unit.strip_suffix('b')) {
            (Some(binary), _) => 1024_u64.pow(power(binary)?),
            (None, Some(decimal)) => 1000_u64.pow(power(decimal)?),
            (None, None) => 1024_u64.pow(power(unit)?),
        },
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn parse_seconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let time = humantime::parse_duration(text).ok()?;
    (time.subsec_nanos() == 0 && time.as_secs() <= DURATION_S_MAX).then_some(time.as_secs())
}

/// Hours of the day, UTC. None at all means every hour.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hours(Vec<(u8, u8)>);

impl Hours {
    /// "22-5,12-13": from the full hour on, to before the full hour.
    fn parse(text: &str) -> Option<Hours> {
        if text.is_empty() || text == "always" {
            return Some(Hours::default());
        }
        let span = |span: &str| {
            let (from, to) = span.split_once('-')?;
            let hour = |text: &str, max| text.trim().parse::<u8>().ok().filter(|hour| *hour <= max);
            let (from, to) = (hour(from, 23)?, hour(to, 24)?);
            (from != to % 24 || (from, to) == (0, 24)).then_some((from, to))
        };
        text.split(',').map(span).collect::<Option<Vec<_>>>().map(Hours)
    }

    fn text(&self) -> String {
        let spans: Vec<String> = self.0.iter().map(|(from, to)| format!("{from}-{to}")).collect();
        spans.join(",")
    }

    /// By the clock that the asker believes in.
    pub fn contain(&self, wall_us: u64) -> bool {
        let hour = (wall_us / HOUR_US % 24) as u8;
        let inside = |(from, to): &(u8, u8)| match from < to {
            true => (*from..*to).contains(&hour),
            false => hour >= *from || hour < *to,
        };
        self.0.is_empty() || self.0.iter().any(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> Settings {
        let texts = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Settings::from_texts(&texts.collect())
    }

    #[test]
    fn every_default_is_a_value_that_stays_as_it_is() {
        for known in TABLE.iter().filter(|known| known.name != "keep.generations") {
            let value = Value::parse(known.kind, known.default).expect(known.name);
            assert_eq!(Value::parse(known.kind, &value.text()), Ok(value), "{}", known.name);
        }
        let unset = set(&[]);
        assert_eq!((unset.garbage_share, unset.pack_bytes, unset.rate), (0, 0, 0), "off");
        assert_eq!((unset.min_distance_ms, unset.builders), (3_600_000, 1));
        assert_eq!((unset.keep_generations, unset.durability), (None, Durability::Majority));
        assert_eq!(set(&[("durability", "all")]).durability, Durability::All);
        assert_eq!(set(&[("durability", "local")]).durability, Durability::Local);
    }

    #[test]
    fn values_are_canonical_and_nonsense_is_refused_with_what_is_wanted() {
        let ok = |name, value| check(name, value).unwrap();
        assert_eq!(ok("pack.rate", "20 MiB").as_deref(), Some("20971520"));
        assert_eq!(ok("pack.bytes", "3GB").as_deref(), Some("3000000000"));
        assert_eq!(ok("pack.bytes", "3g").as_deref(), Some("3221225472"));
        assert_eq!(ok("pack.min_distance", "90m").as_deref(), Some("1h 30m"));
        assert_eq!(ok("keep.age", "0").as_deref(), Some("0s"));
        assert_eq!(ok("pack.hours", " 22-5, 12-13").as_deref(), Some("22-5,12-13"));
        assert_eq!(ok("pack.hours", "always").as_deref(), Some(""));
        assert_eq!(ok("pack.rate", "default"), None);
        for (name, value) in [
            ("pack.garbage_share", "100"),
            ("pack.garbage_share", "50%"),
            ("pack.bytes", "-1"),
            ("pack.bytes", "GB"),
            ("pack.bytes", "99999999999T"),
            ("pack.hours", "22"),
            ("pack.hours", "5-5"),
            ("pack.hours", "24-5"),
            ("pack.min_distance", "soon"),
            ("pack.min_distance", "1500ms"),
            ("keep.age", "900years"),
            ("pack.builders", "0"),
            ("pack.master", "first"),
            ("keep.generations", "0"),
            ("durability", "async"),
        ] {
            let why = check(name, value).expect_err(value);
            assert!(why.contains(name) && why.contains("it is"), "{why}");
        }
        let why = check("pack.colour", "red").unwrap_err();
        assert!(why.contains("pack.colour") && why.contains("durability"), "{why}");
    }

    #[test]
    fn settings_are_typed_and_what_is_not_understood_is_not_set() {
        let typed = set(&[
            ("pack.garbage_share", "50"),
            ("pack.min_distance", "1m"),
            ("keep.generations", "3"),
            ("keep.age", "1day"),
            ("pack.builders", "hundreds"),
            ("pack.master", "hand_over"),
            ("of a later version", "x"),
        ]);
        assert_eq!((typed.garbage_share, typed.min_distance_ms, typed.builders), (50, 60_000, 1));
        assert!(typed.hand_over && !set(&[("pack.master", "last")]).hand_over);
        assert_eq!((typed.keep_generations, typed.keep_age_us), (Some(3), 86_400_000_000));
    }

    #[test]
    fn hours_go_round_midnight() {
        let at = |hour: u64| hour * HOUR_US + 5;
        let hours = set(&[("pack.hours", "22-5,12-13")]).hours;
        let inside: Vec<u64> = (0..24).filter(|hour| hours.contain(at(*hour))).collect();
        assert_eq!(inside, [0, 1, 2, 3, 4, 12, 22, 23]);
        assert!(hours.contain(at(24 * 20_000 + 23)), "on any day");
        assert!((0..24).all(|hour| Hours::default().contain(at(hour))));
        assert!((0..24).all(|hour| set(&[("pack.hours", "0-24")]).hours.contain(at(hour))));
    }
}
