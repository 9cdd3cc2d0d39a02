//! Values with a unit: numbers of bytes ("256 MiB") and lengths of time ("60s"), and one address or several.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many bytes: a number, or a text with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// How long: a text with units, such as "1m 30s".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// One text or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMore(pub Vec<String>);

const UNITS: [(&str, u64); 4] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl ByteSize {
    fn read(text: &str) -> Option<ByteSize> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "" | "B" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).map(ByteSize)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"256 MiB\" (KiB, MiB, GiB, TiB)")
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<ByteSize, E> {
                let wrong = |_| E::invalid_value(Unexpected::Signed(n), &self);
                u64::try_from(n).map(ByteSize).map_err(wrong)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::read(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Read)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let unit =
            UNITS.iter().rev().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => to.serialize_str(&format!("{} {name}", self.0 / factor)),
            None => to.serialize_str(&format!("{} B", self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time with its unit, such as \"60s\" or \"500ms\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                let read = humantime::parse_duration(text);
                read.map(Span).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Read)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&humantime::format_duration(self.0).to_string())
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<OneOrMore, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or a list of addresses")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_string()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<OneOrMore, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = from.next_element()? {
                    all.push(one);
                }
                Ok(OneOrMore(all))
            }
        }
        from.deserialize_any(Read)
    }
}

impl Serialize for OneOrMore {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => to.serialize_str(one),
            more => more.serialize(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct All {
        bytes: ByteSize,
        time: Span,
        text: OneOrMore,
    }

    #[test]
    fn values_are_read_and_written() {
        let read = |text: &str| toml::from_str::<All>(text);
        let text = "bytes = \"256 MiB\"\ntime = \"1m 30s\"\ntext = [\"a\", \"b\"]\n";
        let all = read(text).unwrap();
        assert_eq!((all.bytes.0, all.time.0), (256 << 20, Duration::from_secs(90)));
        assert_eq!(toml::to_string(&all).unwrap(), text);
        let other = read("bytes = 1500\ntime = \"20ms\"\ntext = \"a\"").unwrap();
        assert_eq!((other.bytes.0, other.text.0.len()), (1500, 1));
        assert_eq!(read(&toml::to_string(&other).unwrap()).unwrap(), other);
        for (bytes, time) in [
            ("-1", "\"1s\""),
            ("\"1 MB\"", "\"1s\""),
            ("\"MiB\"", "\"1s\""),
            ("\"99999999 TiB\"", "\"1s\""),
            ("1.5", "\"1s\""),
            ("1", "1"),
            ("1", "\"1\""),
        ] {
            let error = read(&format!("bytes = {bytes}\ntime = {time}\ntext = \"a\"")).unwrap_err();
            assert!(error.to_string().contains("such as"), "{error}");
        }
    }
}
