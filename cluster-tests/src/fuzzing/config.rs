//! Texts of configuration files, with overrides after zero bytes: a checked `Config`, or an error that says where.

use packmaster::config::{Config, ConfigError, DurusAddress, RawConfig};

pub fn run(bytes: &[u8]) {
    let mut pieces = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let text = pieces.next().unwrap_or_default();
    let overrides: Vec<String> = pieces.map(String::from).collect();
    match Config::parse(&text, "fuzzed.toml", &overrides) {
        Ok(config) => check(&config, &text, &overrides),
        Err(error) => check_error(&error),
    }
}

/// What the rest of the program takes for granted.
fn check(config: &Config, text: &str, overrides: &[String]) {
    assert_eq!(config.me().id, config.node);
    assert!(config.members.is_sorted_by(|a, b| a.id < b.id), "members are unique, in order");
    assert!(config.members.iter().any(|member| member.may_be_master));
    assert!(config.members.iter().all(|member| member.id.0 != 0 && !member.name.is_empty()));
    assert!(config.keep_generations > 0 && config.limits.clients.clients_max > 0);
    assert!(!config.cluster.is_empty() && !config.data.as_os_str().is_empty());
    let addresses = [&config.listen.peer, &config.listen.http];
    let members = config.members.iter().flat_map(|it| [&it.peer, &it.http]);
    let clients = config.listen.durus.iter().filter_map(|address| match address {
        DurusAddress::Tcp(address) => Some(address),
        DurusAddress::Path(path) => {
            assert!(path.is_absolute(), "{path:?}");
            None
        }
        DurusAddress::Abstract(name) => {
            assert!(!name.is_empty());
            None
        }
    });
    assert!(!config.listen.durus.is_empty());
    for address in members.chain(addresses).chain(clients) {
        let (host, port) = address.rsplit_once(':').expect("HOST:PORT");
        assert!(!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0), "{address:?}");
    }
    let raw = RawConfig::parse(text, "fuzzed.toml", overrides).expect("it was checked");
    let again = Config::parse(&raw.to_toml(), "written", &[]);
    assert_eq!(&again.expect("what was written can be read"), config);
}

/// Whoever wrote the file must find the place.
fn check_error(error: &ConfigError) {
    let said = error.to_string();
    match error {
        ConfigError::Invalid { key, why } => {
            assert!(!key.is_empty() && !why.is_empty(), "{said}");
            assert!(said.starts_with(key.as_str()), "{said}");
        }
        ConfigError::Override { given, why } => {
            assert!(said.contains(given.as_str()) && !why.is_empty(), "{said}");
        }
        ConfigError::Syntax { origin, message } => {
            assert!(origin.starts_with("fuzzed.toml"), "{said}");
            // A line and column of the text; or, after overrides, the key's own name.
            let place = message.contains("line ") || message.contains('`');
            assert!(place, "no place is named: {said}");
        }
        ConfigError::Read { .. } => panic!("nothing was read: {said}"),
    }
}
