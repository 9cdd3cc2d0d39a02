//! Dynamic settings as they are shown.

use serde::{Deserialize, Serialize};

use crate::control::settings::{DEFAULT, Kind, TABLE};
use crate::proto::control::ControlState;

/// `ctl config show --output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Of this layout: 1.
    pub version: u32,
    pub cluster: String,
    /// In the order of the table.
    pub settings: Vec<Setting>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    pub name: String,
    /// What holds now.
    pub value: String,
    pub default: String,
    /// Nobody has set it.
    pub is_default: bool,
    /// `number`, `bytes`, `duration` or `hours`.
    pub kind: String,
    pub unit: String,
    pub help: String,
}

/// `keep_generations` is that of the answering node's configuration.
pub fn show(cluster: &str, state: &ControlState, keep_generations: u32) -> Shown {
    let setting = |known: &crate::control::settings::Definition| {
        let default = match known.name {
            "keep.generations" => keep_generations.to_string(),
            _ => known.default.to_owned(),
        };
        let set = state.settings.get(known.name);
        Setting {
            name: known.name.to_owned(),
            value: set.unwrap_or(&default).clone(),
            default,
            is_default: set.is_none(),
            kind: kind(known.kind).to_owned(),
            unit: known.unit.to_owned(),
            help: known.help.to_owned(),
        }
    };
    let settings = TABLE.iter().map(setting).collect();
    Shown { version: 1, cluster: cluster.to_owned(), settings }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Number { .. } => "number",
        Kind::Bytes => "bytes",
        Kind::Duration => "duration",
        Kind::Hours => "hours",
        Kind::Choice(_) => "choice",
    }
}

/// For people: bytes with a unit, an empty value as such.
pub fn readable(setting: &Setting) -> String {
    let value = match (setting.kind.as_str(), setting.value.parse()) {
        ("bytes", Ok(bytes)) if bytes > 0 => super::render::bytes(bytes),
        _ if setting.value.is_empty() => "(empty)".to_owned(),
        _ => setting.value.clone(),
    };
    if setting.is_default { format!("{value} ({DEFAULT})") } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_shown_and_whether_somebody_has_set_it() {
        let settings = [("pack.rate".to_owned(), "20971520".to_owned())].into();
        let shown = show("c", &ControlState { settings, ..Default::default() }, 3);
        assert_eq!(shown.settings.len(), TABLE.len());
        let find = |name: &str| shown.settings.iter().find(|it| it.name == name).unwrap();
        let rate = find("pack.rate");
        assert_eq!((rate.value.as_str(), rate.is_default), ("20971520", false));
        assert_eq!(readable(rate), "20.0 MiB");
        let keep = find("keep.generations");
        assert_eq!((keep.value.as_str(), keep.is_default), ("3", true), "as configured");
        assert_eq!(readable(find("pack.hours")), "(empty) (default)");
        assert_eq!(readable(find("pack.min_distance")), "1h (default)");
    }
}
