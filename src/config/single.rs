//! `packmaster config single`: the configuration of one node alone, from the options that people know from `durus -s`.
//!
//! What is printed has passed the same check as any configuration. Nothing is made or changed on the disk.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, OneOrMore, RawConfig, RawLimits, RawListen, RawLog, RawMember};
use super::{RawUnix, host_and_port};

/// As a stock server has them.
const HOST: &str = "127.0.0.1";
const PORT: u16 = 2972;
/// From the Durus port to the others, as in the playground.
const PEER_PLUS: u16 = 1000;
const HTTP_PLUS: u16 = 2000;

pub const HELP: &str = "\
Example, in place of `durus -s --file /srv/site.durus --port 2972`:
  packmaster config single --file /srv/site.durus --port 2972 >packmaster.toml
  packmaster node --config packmaster.toml

The file is copied into --data at the first start; it is not touched itself.";

#[derive(Debug, clap::Args)]
pub struct Single {
    /// The Durus file to begin with; if it does not exist, the node begins empty
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Directory for the node's files [default: FILE with .packmaster in place of its suffix]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Host to listen on; ::1 and :: are IPv6
    #[arg(long, default_value = HOST)]
    host: String,
    /// Port to listen on
    #[arg(long, default_value_t = PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// A Unix socket in place of host and port: its path, or @NAME for an abstract one; may be repeated
    #[arg(long, value_name = "ADDRESS", conflicts_with = "host")]
    address: Vec<String>,
    /// Owner of the Unix socket, by name or number
    #[arg(long, requires = "address")]
    owner: Option<String>,
    /// Group of the Unix socket, by name or number
    #[arg(long, requires = "address")]
    group: Option<String>,
    /// Umask of the Unix socket, in octal: 007 lets in owner and group
    #[arg(long, requires = "address")]
    umask: Option<String>,
    /// Log file [default: standard error]
    #[arg(long, value_name = "FILE")]
    logfile: Option<PathBuf>,
    /// Least level that is logged, as Python numbers it: 10 debug, 20 info, 30 warning, 40 error, 50 critical
    #[arg(long, value_name = "NUMBER")]
    logginglevel: Option<u32>,
    /// Let `durus -s --stop` stop this node, as it stops a stock server
    #[arg(long)]
    allow_quit: bool,
    /// Where `packmaster ctl` connects [default: 127.0.0.1, port + 1000]
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// The status pages [default: 127.0.0.1, port + 2000]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
}

/// The text of a checked configuration.
pub fn write(options: &Single) -> Result<String, ConfigError> {
    let raw = raw(options)?;
    let text = raw.to_toml();
    let checked = Config::parse(&text, "the options", &[])?;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# One packmaster node alone, in place of `durus -s --file {}`.",
        options.file.display()
    );
    out += "# `packmaster config example` explains every key, and what else there is.\n";
    let _ = match &checked.import {
        Some(file) => writeln!(
            out,
            "# {} is copied when the data directory is new, and never touched.",
            file.display()
        ),
        None => {
            writeln!(out, "# {} does not exist: the node begins empty.", options.file.display())
        }
    };
    out.push('\n');
    Ok(out + &text)
}

fn raw(options: &Single) -> Result<RawConfig, ConfigError> {
    let file = absolute("file", &options.file)?;
    let data = match &options.data {
        Some(data) => absolute("data", data)?,
        None => file.with_extension("packmaster"),
    };
    let port_of = |plus: u16, key: &str| {
        let port = options.port.checked_add(plus).ok_or_else(|| ConfigError::Invalid {
            key: key.to_string(),
            why: format!("port {} + {plus} is above 65535: give --{key} HOST:PORT", options.port),
        });
        port.map(|port| format!("{HOST}:{port}"))
    };
    let durus = match options.address.is_empty() {
        false => options.address.clone(),
        true => vec![tcp(&options.host, options.port)],
    };
    let member = RawMember {
        id: 1,
        name: "n1".into(),
        durus: durus[0].clone(),
        peer: options.peer.clone().map_or_else(|| port_of(PEER_PLUS, "peer"), Ok)?,
        http: options.http.clone().map_or_else(|| port_of(HTTP_PLUS, "http"), Ok)?,
        ..RawMember::default()
    };
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let unix = options.owner.is_some() || options.group.is_some() || options.umask.is_some();
    Ok(RawConfig {
        cluster: name
            .filter(|name| name.len() <= 64 && name.chars().all(fits))
            .unwrap_or("single".into()),
        node: "n1".into(),
        data,
        import: file.exists().then_some(file),
        listen: RawListen {
            durus: (durus.len() > 1).then_some(OneOrMore(durus)),
            unix: unix.then(|| RawUnix {
                owner: options.owner.clone(),
                group: options.group.clone(),
                umask: options.umask.clone(),
            }),
            ..RawListen::default()
        },
        member: vec![member],
        limits: RawLimits {
            allow_quit: options.allow_quit.then_some(true),
            ..RawLimits::default()
        },
        log: RawLog {
            level: options.logginglevel.map(|number| level(number).into()),
            file: options.logfile.as_deref().map(|path| absolute("logfile", path)).transpose()?,
            ..RawLog::default()
        },
        ..RawConfig::default()
    })
}

/// The node may be started from anywhere.
fn absolute(key: &str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map_err(|error| ConfigError::Invalid { key: key.to_string(), why: error.to_string() })
}

fn tcp(host: &str, port: u16) -> String {
    let bare = format!("{host}:{port}");
    match host_and_port(&bare) {
        None if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        _ => bare,
    }
}

fn level(number: u32) -> &'static str {
    match number {
        0..=10 => "debug",
        11..=20 => "info",
        21..=30 => "warning",
        31..=40 => "error",
        _ => "critical",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        single: Single,
    }

    fn written(args: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["x", "--file", "/srv/site.durus"], args].concat());
        let text = write(&cli.map_err(|error| error.to_string())?.single);
        let text = text.map_err(|error| error.to_string())?;
        Ok(Config::parse(&text, "written", &[]).unwrap())
    }

    #[test]
    fn the_options_of_durus_s_make_a_configuration() {
        let config = written(&[]).unwrap();
        assert_eq!((config.cluster.as_str(), config.members.len()), ("site", 1));
        assert_eq!(config.data, Path::new("/srv/site.packmaster"));
        assert_eq!(config.import, None, "there is no such file");
        assert_eq!(config.listen.durus[0].to_string(), "127.0.0.1:2972");
        assert_eq!(config.listen.peer, "127.0.0.1:3972");
        assert!(!config.limits.clients.allow_quit);
        let config = written(&["--host", "::", "--port", "3000", "--allow-quit"]).unwrap();
        assert_eq!(config.listen.durus[0].to_string(), "[::]:3000");
        assert_eq!(config.listen.http, "127.0.0.1:5000");
        assert!(config.limits.clients.allow_quit);
        let unix = ["--address", "/run/durus.sock", "--address", "@durus", "--owner", "www"];
        let more = ["--umask", "0007", "--logginglevel", "30", "--logfile", "/var/log/durus.log"];
        let config = written(&[&unix[..], &more].concat()).unwrap();
        assert_eq!(config.listen.durus.len(), 2);
        assert_eq!((config.listen.unix.umask, config.log.level), (Some(7), slog::Level::Warning));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let why = |args: &[&str]| written(args).unwrap_err();
        assert!(why(&["--port", "65000"]).contains("--peer"), "{}", why(&["--port", "65000"]));
        assert!(why(&["--address", "run/durus"]).contains("HOST:PORT"));
        assert!(why(&["--address", "/s", "--umask", "9"]).contains("octal"));
        assert!(why(&["--owner", "www"]).contains("--address"));
        assert!(why(&["--address", "@x", "--host", "h"]).contains("--host"));
    }
}
