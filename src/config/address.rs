//! Where a node listens, as it is written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What a Unix socket's address has room for, in bytes; one more is the zero at its end or the one that makes it abstract.
const UNIX_NAME_BYTES_MAX: usize = 107;

/// Where Durus clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DurusAddress {
    /// HOST:PORT; a numeric IPv6 host is in brackets.
    Tcp(String),
    /// A Unix socket in the file system.
    Path(PathBuf),
    /// A Unix socket that has a name and no file; written with an @ before the name.
    Abstract(String),
}

impl FromStr for DurusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<DurusAddress, String> {
        let name = match text.strip_prefix('@') {
            Some(name) => name,
            None if text.starts_with('/') => text,
            None => {
                check_tcp(text).map_err(|why| {
                    format!("{why}; nor is it the path of a Unix socket (/run/durus.sock) or the name of an abstract one (@durus)")
                })?;
                return Ok(DurusAddress::Tcp(text.to_string()));
            }
        };
        if name.is_empty() || name.len() > UNIX_NAME_BYTES_MAX || name.contains('\0') {
            let why = format!("1 to {UNIX_NAME_BYTES_MAX} bytes without a zero");
            return Err(format!("{text:?} cannot be a Unix socket: its name must be {why}"));
        }
        Ok(match text.starts_with('@') {
            true => DurusAddress::Abstract(name.to_string()),
            false => DurusAddress::Path(PathBuf::from(name)),
        })
    }
}

impl fmt::Display for DurusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DurusAddress::Tcp(address) => f.write_str(address),
            DurusAddress::Path(path) => write!(f, "{}", path.display()),
            DurusAddress::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// Host and port of `address`; the host without its brackets.
pub fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match inner {
        Some(inner) => Some(inner),
        // Without brackets nobody knows where the port begins.
        None => Some(host).filter(|host| !host.contains([':', '[', ']'])),
    };
    host.filter(|host| !host.is_empty()).map(|host| (host, port))
}

pub(super) fn check_tcp(address: &str) -> Result<(), String> {
    match host_and_port(address) {
        Some(_) => Ok(()),
        None => {
            Err(format!("{address:?} is not HOST:PORT, such as 10.0.0.1:2972 or [fd00::1]:2972"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["10.0.0.1:2972", "[::]:2972", "db1.example:1", "/run/durus.sock", "@durus"] {
            assert_eq!(text.parse::<DurusAddress>().unwrap().to_string(), text);
        }
        assert_eq!("@a/b".parse(), Ok(DurusAddress::Abstract("a/b".into())));
        assert_eq!("/a@b".parse(), Ok(DurusAddress::Path("/a@b".into())));
        assert_eq!(host_and_port("[fe80::1]:7"), Some(("fe80::1", 7)));
        let long = format!("/{}", "x".repeat(UNIX_NAME_BYTES_MAX));
        for text in
            ["", "@", "::1:2972", "[::1]2972", "[]:1", ":2972", "h:0", "h:65536", "run/sock", &long]
        {
            text.parse::<DurusAddress>().unwrap_err();
        }
    }
}
