//! From what was written to what can work.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::{Config, ConfigError, Limits, Listen, Log, LogFormat, Member, RawConfig, RawLog};
use super::{RawListen, RawMember, RawTiming};
use crate::types::NodeId;

/// Every member is a voter; more of them make every commit slower and nothing safer.
pub const MEMBERS_MAX: usize = 7;

const KEEP_GENERATIONS: u32 = 1;
const CLIENTS_MAX: usize = 4096;
const PEER_QUEUE_BYTES_MAX: usize = 512 << 20;

type Result<T> = std::result::Result<T, ConfigError>;

impl RawConfig {
    pub fn check(self) -> Result<Config> {
        check_name("cluster", &self.cluster)?;
        let members = check_members(&self.member)?;
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let me = members.iter().find(|member| member.name == self.node).ok_or_else(|| {
            let known = names.join(", ");
            invalid("node", format!("no member is called {:?}; there are {known}", self.node))
        })?;
        if self.data.as_os_str().is_empty() {
            return Err(invalid("data", "is empty: name the directory for this node's files"));
        }
        check_durability(self.durability.as_deref().unwrap_or("majority"))?;
        let keep_generations = self.keep_generations.unwrap_or(KEEP_GENERATIONS);
        if keep_generations == 0 {
            return Err(invalid(
                "keep_generations",
                "must be at least 1: a node that comes late needs the file before the pack",
            ));
        }
        let clients_max = self.limits.clients_max.unwrap_or(CLIENTS_MAX);
        if clients_max == 0 {
            return Err(invalid("limits.clients_max", "must be at least 1"));
        }
        let peer_queue_bytes_max = self.limits.peer_queue_bytes_max.unwrap_or(PEER_QUEUE_BYTES_MAX);
        if peer_queue_bytes_max < 1 << 20 {
            return Err(invalid("limits.peer_queue_bytes_max", "must be at least 1048576 (1 MiB)"));
        }
        Ok(Config {
            node: me.id,
            listen: check_listen(self.listen, me)?,
            cluster: self.cluster,
            data: self.data,
            import: self.import,
            keep_generations,
            timing: check_timing(self.timing)?,
            limits: Limits {
                clients_max,
                allow_quit: self.limits.allow_quit.unwrap_or(false),
                peer_queue_bytes_max,
                fetch_bytes_per_s_max: self.limits.fetch_bytes_per_s_max.unwrap_or(0),
            },
            log: check_log(self.log)?,
            members,
        })
    }
}

fn check_members(raw: &[RawMember]) -> Result<Vec<Member>> {
    if raw.is_empty() || raw.len() > MEMBERS_MAX {
        let why = format!("there are {}; a cluster has 1 to {MEMBERS_MAX}, best 3 or 5", raw.len());
        return Err(invalid("member", why));
    }
    let mut members = BTreeMap::new();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for member in raw {
        let key = |field: &str| format!("member {:?}, {field}", member.name);
        check_name(&key("name"), &member.name)?;
        if member.id == 0 {
            return Err(invalid(key("id"), "0 is no node id: number the members from 1"));
        }
        for (field, address) in
            [("durus", &member.durus), ("peer", &member.peer), ("http", &member.http)]
        {
            check_address(&key(field), address)?;
            if let Some(other) = taken.insert(address.clone(), key(field)) {
                let why = format!("{address} is the address of {other} too: each needs its own");
                return Err(invalid(key(field), why));
            }
        }
        let checked = Member {
            id: NodeId(member.id),
            name: member.name.clone(),
            durus: member.durus.clone(),
            peer: member.peer.clone(),
            http: member.http.clone(),
            priority: member.priority,
            may_be_master: member.may_be_master.unwrap_or(true),
        };
        if members.values().any(|other: &Member| other.name == checked.name) {
            return Err(invalid(key("name"), "two members have this name: each needs its own"));
        }
        if let Some(other) = members.insert(checked.id, checked) {
            let why =
                format!("{} is the id of {:?} too: each needs its own", member.id, other.name);
            return Err(invalid(key("id"), why));
        }
    }
    if !members.values().any(|member| member.may_be_master) {
        return Err(invalid("member", "none has may_be_master = true: nobody could ever serve"));
    }
    Ok(members.into_values().collect())
}

fn check_listen(raw: RawListen, me: &Member) -> Result<Listen> {
    let listen = Listen {
        durus: raw.durus.unwrap_or_else(|| me.durus.clone()),
        peer: raw.peer.unwrap_or_else(|| me.peer.clone()),
        http: raw.http.unwrap_or_else(|| me.http.clone()),
    };
    check_address("listen.durus", &listen.durus)?;
    check_address("listen.peer", &listen.peer)?;
    check_address("listen.http", &listen.http)?;
    Ok(listen)
}

fn check_timing(timing: RawTiming) -> Result<RawTiming> {
    let given = [
        ("timing.beat_ms", timing.beat_ms, 1),
        ("timing.silence_ms", timing.silence_ms, 10),
        ("timing.raft_tick_ms", timing.raft_tick_ms, 1),
        // Fewer, and a vote lost to one late message costs a whole round.
        ("timing.raft_election_ticks", timing.raft_election_ticks, 4),
        ("timing.open_timeout_ms", timing.open_timeout_ms, 100),
    ];
    for (key, value, min) in given {
        if let Some(value) = value.filter(|value| *value < min || *value > 600_000) {
            return Err(invalid(key, format!("{value} is out of range: {min} to 600000")));
        }
    }
    if let (Some(beat), Some(silence)) = (timing.beat_ms, timing.silence_ms)
        && silence < 3 * beat
    {
        let why = format!(
            "{silence} is less than three times timing.beat_ms ({beat}): one lost beat would look like a dead node"
        );
        return Err(invalid("timing.silence_ms", why));
    }
    Ok(timing)
}

fn check_log(raw: RawLog) -> Result<Log> {
    let level = raw.level.as_deref().unwrap_or("info");
    let level = slog::Level::from_str(level).map_err(|()| {
        let known = "critical, error, warning, info, debug or trace";
        invalid("log.level", format!("{level:?} is none of {known}"))
    })?;
    let format = match raw.format.as_deref().unwrap_or("text") {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => return Err(invalid("log.format", format!("{other:?} is neither text nor json"))),
    };
    Ok(Log { level, format, file: raw.file })
}

fn check_durability(durability: &str) -> Result<()> {
    if durability == "majority" {
        return Ok(());
    }
    let why =
        format!("{durability:?} is not possible in this version; leave it out, or \"majority\"");
    Err(invalid("durability", why))
}

/// Names go into file names, status lines and scripts.
fn check_name(key: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let why = format!("{name:?} must be 1 to 64 letters, digits, '-', '_' or '.'");
        return Err(invalid(key, why));
    }
    Ok(())
}

fn check_address(key: &str, address: &str) -> Result<()> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(invalid(key, format!("{address:?} is not HOST:PORT, such as 10.0.0.1:2972"))),
    }
}

fn invalid(key: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.into(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EXAMPLE;

    fn load(text: &str) -> Result<Config> {
        Config::parse(text, "test.toml", &[])
    }

    /// The example with one piece of its text replaced.
    fn edited(from: &str, to: &str) -> String {
        assert!(EXAMPLE.contains(from), "the example has no {from:?}");
        EXAMPLE.replacen(from, to, 1)
    }

    fn error_of(from: &str, to: &str) -> String {
        load(&edited(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_what_it_says() {
        let config = load(EXAMPLE).unwrap();
        assert_eq!(config.me().name, "n1");
        assert_eq!(config.members.len(), 3);
        // Every key that is commented out shows its default: with all of them in, nothing changes.
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| {
                let key = line.strip_prefix("# ").filter(|rest| rest.contains(" = "));
                let key =
                    key.filter(|rest| !rest.starts_with("import") && !rest.starts_with("file"));
                format!("{}\n", key.unwrap_or(line))
            })
            .collect();
        let mut full = load(&uncommented).unwrap();
        assert_ne!(full.timing, RawTiming::default());
        full.timing = RawTiming::default();
        assert_eq!(full, config);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let raw = RawConfig::parse(EXAMPLE, "example", &[]).unwrap();
        assert_eq!(load(&raw.to_toml()).unwrap(), load(EXAMPLE).unwrap());
    }

    #[test]
    fn errors_name_the_key() {
        let cases = [
            (
                "node = \"n1\"",
                "node = \"n9\"",
                "node: no member is called \"n9\"; there are n1, n2",
            ),
            ("id = 2", "id = 1", "member \"n2\", id: 1 is the id of \"n1\" too"),
            ("id = 2", "id = 0", "member \"n2\", id: 0 is no node id"),
            ("name = \"n2\"", "name = \"n1\"", "two members have this name"),
            ("name = \"n2\"", "name = \"a/b\"", "must be 1 to 64 letters"),
            (
                "\"10.0.0.2:2972\"",
                "\"10.0.0.2\"",
                "member \"n2\", durus: \"10.0.0.2\" is not HOST:PORT",
            ),
            (
                "\"10.0.0.2:2972\"",
                "\"10.0.0.1:2972\"",
                "is the address of member \"n1\", durus too",
            ),
            ("cluster = \"", "cluster = \"a b", "cluster: "),
            ("node = ", "nodes = ", "unknown field `nodes`"),
            (
                "# keep_generations = 1",
                "keep_generations = 0",
                "keep_generations: must be at least 1",
            ),
            (
                "# durability = \"majority\"",
                "durability = \"all\"",
                "durability: \"all\" is not possible",
            ),
            ("# level = \"info\"", "level = \"loud\"", "log.level: \"loud\" is none of"),
            ("# clients_max = 4096", "clients_max = \"many\"", "expected usize"),
        ];
        for (from, to, wanted) in cases {
            let error = error_of(from, to);
            assert!(error.contains(wanted), "{to}: {error}");
        }
    }

    #[test]
    fn overrides() {
        let set = |given: &str| Config::parse(EXAMPLE, "test.toml", &[given.to_string()]);
        assert_eq!(set("timing.beat_ms=20").unwrap().timing.beat_ms, Some(20));
        assert_eq!(set("node=n2").unwrap().me().name, "n2");
        assert_eq!(set("log.level = debug").unwrap().log.level, slog::Level::Debug);
        assert_eq!(set("data=/x=y").unwrap().data.to_str(), Some("/x=y"));
        for (given, wanted) in [
            ("node", "not of the form KEY=VALUE"),
            ("=5", "no key before"),
            ("member.priority=5", "edit the file"),
            ("member=5", "edit the file"),
            ("timing.beat=5", "unknown field `beat`"),
            ("timing.silence_ms=5", "timing.silence_ms: 5 is out of range"),
        ] {
            let error = set(given).unwrap_err().to_string();
            assert!(error.contains(wanted), "{given}: {error}");
        }
        let both = ["timing.beat_ms=50".to_string(), "timing.silence_ms=100".to_string()];
        let error = Config::parse(EXAMPLE, "test.toml", &both).unwrap_err().to_string();
        assert!(error.contains("three times timing.beat_ms (50)"), "{error}");
    }
}
