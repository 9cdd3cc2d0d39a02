//! From what was written to what can work.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::address::{check_tcp, host_and_port};
use super::units::Span;
use super::{Config, ConfigError, DurusAddress, Limits, Listen, Log, LogFormat, Member, RawConfig};
use super::{RawLimits, RawListen, RawLog, RawMember, RawTiming, RawUnix, UnixSockets};
use crate::durus;
use crate::types::NodeId;

/// Every member is a voter; more of them make every commit slower and nothing safer.
pub const MEMBERS_MAX: usize = 7;

const KEEP_GENERATIONS: u32 = 1;
const PEER_QUEUE_BYTES_MAX: u64 = 1 << 30;
/// What a length or count of the client protocol has room for.
const PROTOCOL_MAX: u64 = u32::MAX as u64;
const CLIENTS_MOST: u64 = 1 << 20;
const BYTES_MOST: u64 = 1 << 62;
const KIB: u64 = 1 << 10;

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
        Ok(Config {
            node: me.id,
            listen: check_listen(self.listen, me)?,
            cluster: self.cluster,
            data: self.data,
            import: self.import,
            keep_generations,
            timing: check_timing(self.timing)?,
            limits: check_limits(self.limits, members.len())?,
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
        let durus = check_durus(&key("durus"), &member.durus)?;
        for (field, address) in
            [("durus", &member.durus), ("peer", &member.peer), ("http", &member.http)]
        {
            match field {
                // Each host has its own Unix sockets.
                "durus" if !matches!(durus, DurusAddress::Tcp(_)) => continue,
                "durus" => {}
                _ => check_address(&key(field), address)?,
            }
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
    let durus = raw.durus.map_or_else(|| vec![me.durus.clone()], |given| given.0);
    if durus.is_empty() {
        return Err(invalid("listen.durus", "is an empty list: name one address at least"));
    }
    let mut checked = Vec::new();
    for address in &durus {
        let address = check_durus("listen.durus", address)?;
        if checked.contains(&address) {
            return Err(invalid("listen.durus", format!("{address} is there twice")));
        }
        checked.push(address);
    }
    check_any_hosts(&checked)?;
    let listen = Listen {
        durus: checked,
        peer: raw.peer.unwrap_or_else(|| me.peer.clone()),
        http: raw.http.unwrap_or_else(|| me.http.clone()),
        unix: check_unix(raw.unix.unwrap_or_default())?,
    };
    check_address("listen.peer", &listen.peer)?;
    check_address("listen.http", &listen.http)?;
    Ok(listen)
}

/// [::] takes IPv4 too: whoever comes second finds the port in use.
fn check_any_hosts(durus: &[DurusAddress]) -> Result<()> {
    let tcp = |address: &DurusAddress| match address {
        DurusAddress::Tcp(address) => {
            host_and_port(address).map(|(host, port)| (host.to_string(), port))
        }
        _ => None,
    };
    let all: Vec<_> = durus.iter().filter_map(tcp).collect();
    for (_, port) in all.iter().filter(|(host, _)| host == "::") {
        if all.iter().any(|(host, other)| other == port && host == "0.0.0.0") {
            let why = format!("[::]:{port} takes IPv4 connections, too: leave 0.0.0.0:{port} out");
            return Err(invalid("listen.durus", why));
        }
    }
    Ok(())
}

fn check_unix(raw: RawUnix) -> Result<UnixSockets> {
    for (key, name) in [("listen.unix.owner", &raw.owner), ("listen.unix.group", &raw.group)] {
        if name.as_ref().is_some_and(|name| name.is_empty() || name.contains('\0')) {
            return Err(invalid(key, "is neither a name nor a number"));
        }
    }
    let umask = raw.umask.map(|text| {
        let octal = text.len() <= 5 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let read = u32::from_str_radix(&text, 8).ok().filter(|umask| octal && *umask <= 0o777);
        read.ok_or_else(|| {
            let why = format!(
                "{text:?} is no umask in octal, such as \"0007\" (nobody but owner and group)"
            );
            invalid("listen.unix.umask", why)
        })
    });
    Ok(UnixSockets { owner: raw.owner, group: raw.group, umask: umask.transpose()? })
}

fn check_limits(raw: RawLimits, members: usize) -> Result<Limits> {
    let usual = durus::Limits::default();
    macro_rules! bytes {
        ($key:ident, $most:expr) => {
            in_range(stringify!($key), raw.$key.map_or(usual.$key, |size| size.0), KIB, $most)?
        };
    }
    macro_rules! count {
        ($key:ident, $least:expr, $most:expr) => {
            in_range(stringify!($key), raw.$key.unwrap_or(usual.$key as u64), $least, $most)?
        };
    }
    let clients = durus::Limits {
        clients_max: count!(clients_max, 1, CLIENTS_MOST) as usize,
        transaction_bytes_max: bytes!(transaction_bytes_max, durus::TRANSACTION_BYTES_MOST),
        objects_per_transaction_max: count!(objects_per_transaction_max, 1, PROTOCOL_MAX) as usize,
        record_bytes_max: bytes!(record_bytes_max, PROTOCOL_MAX),
        bulk_oids_max: count!(bulk_oids_max, 1, PROTOCOL_MAX) as u32,
        session_bytes_max: bytes!(session_bytes_max, BYTES_MOST),
        input_buffered_bytes_max: bytes!(input_buffered_bytes_max, BYTES_MOST),
        commits_waiting_bytes_max: bytes!(commits_waiting_bytes_max, BYTES_MOST),
        // One command may ask for 255.
        unused_oids_max: count!(unused_oids_max, 255, BYTES_MOST),
        command_max_ms: time(durus::COMMAND_MAX, raw.command_max, usual.command_max_ms)?,
        wait_max_ms: time(durus::WAIT_MAX, raw.wait_max, usual.wait_max_ms)?,
        allow_quit: raw.allow_quit.unwrap_or(usual.allow_quit),
    };
    check_limits_fit(&clients)?;
    let peers = raw.peer_queue_bytes_max.map_or(PEER_QUEUE_BYTES_MAX, |size| size.0);
    let peers = in_range("peer_queue_bytes_max", peers, KIB * KIB, BYTES_MOST)?;
    check_queue_fits(&clients, peers, members)?;
    let fetch = raw.fetch_bytes_per_s_max.map_or(0, |size| size.0);
    Ok(Limits { peer_queue_bytes_max: peers as usize, fetch_bytes_per_s_max: fetch, clients })
}

fn time(key: &str, given: Option<Span>, usual_ms: u64) -> Result<u64> {
    let ms = given.map_or(u128::from(usual_ms), |span| span.0.as_millis());
    let fits = u64::try_from(ms).ok().filter(|ms| (10..=365 * 86_400_000).contains(ms));
    fits.ok_or_else(|| invalid(format!("limits.{key}"), "is out of range: 10ms to 365d"))
}

/// Clients' commits wait in the queue to the master. Were there not room for all that may wait, the connection would be opened
/// anew for what it has to carry, again and again.
fn check_queue_fits(limits: &durus::Limits, queue: u64, members: usize) -> Result<()> {
    let waiting = limits.commits_waiting_bytes_max;
    if members > 1 && waiting.saturating_add(waiting / 2) > queue {
        let why = format!(
            "{queue} is less than limits.commits_waiting_bytes_max ({waiting}) and half as much again, which may have to \
             wait there: raise this or lower that"
        );
        return Err(invalid("limits.peer_queue_bytes_max", why));
    }
    Ok(())
}

/// A limit that another one never lets anybody reach is a mistake.
fn check_limits_fit(limits: &durus::Limits) -> Result<()> {
    let session = ("session_bytes_max", limits.session_bytes_max);
    let waiting = ("commits_waiting_bytes_max", limits.commits_waiting_bytes_max);
    let transaction = ("transaction_bytes_max", limits.transaction_bytes_max);
    let record = ("record_bytes_max", limits.record_bytes_max);
    for ((less, is), (more, most)) in
        [(transaction, session), (transaction, waiting), (record, transaction)]
    {
        if is > most {
            let why = format!(
                "{is} is more than limits.{more} ({most}), which it has to fit in: raise that or lower this"
            );
            return Err(invalid(format!("limits.{less}"), why));
        }
    }
    Ok(())
}

fn in_range(key: &str, value: u64, least: u64, most: u64) -> Result<u64> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(invalid(format!("limits.{key}"), format!("{value} is out of range: {least} to {most}")))
}

const BUSY_POLL_US_MAX: u64 = 1000;

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
    // Longer than any rest that it could shorten: it would only take a processor.
    if let Some(busy_poll) = timing.busy_poll_us.filter(|us| *us > BUSY_POLL_US_MAX) {
        let why = format!("{busy_poll} is out of range: 0 to {BUSY_POLL_US_MAX}");
        return Err(invalid("timing.busy_poll_us", why));
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
    let why = format!(
        "{durability:?} is not possible here: leave it out, and type `packmaster ctl config set durability VALUE`"
    );
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
    check_tcp(address).map_err(|why| invalid(key, why))
}

fn check_durus(key: &str, address: &str) -> Result<DurusAddress> {
    address.parse().map_err(|why: String| invalid(key, why))
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
                // These have no default that could be written.
                let without = ["import", "file", "owner", "group", "umask"];
                let key = key.filter(|rest| !without.iter().any(|key| rest.starts_with(key)));
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
            ("# clients_max = 4096", "clients_max = \"many\"", "expected u64"),
            (
                "# clients_max = 4096",
                "clients_max = 0",
                "limits.clients_max: 0 is out of range: 1 to",
            ),
            (
                "# transaction_bytes_max = \"128 MiB\"",
                "transaction_bytes_max = \"2 GiB\"",
                "limits.transaction_bytes_max: 2147483648 is out of range: 1024 to 1073741824",
            ),
            (
                "# transaction_bytes_max = \"128 MiB\"",
                "transaction_bytes_max = \"1 GiB\"",
                "limits.transaction_bytes_max: 1073741824 is more than limits.commits_waiting_bytes_max (536870912)",
            ),
            (
                "# peer_queue_bytes_max = \"1 GiB\"",
                "peer_queue_bytes_max = \"512 MiB\"",
                "limits.peer_queue_bytes_max: 536870912 is less than limits.commits_waiting_bytes_max (536870912) and half",
            ),
            (
                "# wait_max = \"60s\"",
                "wait_max = \"0s\"",
                "limits.wait_max: is out of range: 10ms to",
            ),
            ("# wait_max = \"60s\"", "wait_max = 60", "with its unit, such as \"60s\""),
            (
                "durus = \"0.0.0.0:2972\"",
                "durus = [\"0.0.0.0:2972\", \"[::]:2972\"]",
                "listen.durus: [::]:2972 takes IPv4 connections, too: leave 0.0.0.0:2972 out",
            ),
            ("durus = \"0.0.0.0:2972\"", "durus = []", "listen.durus: is an empty list"),
            (
                "durus = \"0.0.0.0:2972\"",
                "durus = [\"@a\", \"@a\"]",
                "listen.durus: @a is there twice",
            ),
            (
                "peer = \"0.0.0.0:3972\"",
                "peer = \"::1:3972\"",
                "listen.peer: \"::1:3972\" is not HOST:PORT",
            ),
            (
                "# umask = \"0007\"",
                "umask = \"0o7\"",
                "listen.unix.umask: \"0o7\" is no umask in octal",
            ),
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
        let two = set("listen.durus=[\"[::1]:2972\", \"/run/durus.sock\"]").unwrap();
        assert_eq!(two.listen.durus.len(), 2);
        assert_eq!(set("limits.wait_max=2s").unwrap().limits.clients.wait_max_ms, 2000);
        assert_eq!(set("data=/x=y").unwrap().data.to_str(), Some("/x=y"));
        for (given, wanted) in [
            ("node", "not of the form KEY=VALUE"),
            ("=5", "no key before"),
            ("member.priority=5", "edit the file"),
            ("member=5", "edit the file"),
            ("timing.beat=5", "unknown field `beat`"),
            ("timing.silence_ms=5", "timing.silence_ms: 5 is out of range"),
            ("timing.busy_poll_us=5000", "timing.busy_poll_us: 5000 is out of range"),
        ] {
            let error = set(given).unwrap_err().to_string();
            assert!(error.contains(wanted), "{given}: {error}");
        }
        let both = ["timing.beat_ms=50".to_string(), "timing.silence_ms=100".to_string()];
        let error = Config::parse(EXAMPLE, "test.toml", &both).unwrap_err().to_string();
        assert!(error.contains("three times timing.beat_ms (50)"), "{error}");
    }
}
