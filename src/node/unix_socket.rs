//! Unix sockets that have a path: made with the permissions that are wanted from the first moment on, and cleared away.
//!
//! A process that was killed leaves its socket's file behind, which keeps the next one from taking the name. It is
//! removed if it is a socket that nobody listens on; nothing else ever is.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use rustix::fs::Mode;
use rustix::process::umask;

use crate::config::UnixSockets;

/// What is wrong; the remedy too.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    #[error("another process listens on it: stop that one, or choose another path")]
    InUse,
    #[error(
        "there is something that is no socket, which is left alone: move it away, or choose another path"
    )]
    NotASocket,
    #[error("this user may not {verb} ({source}): run as {remedy}")]
    Denied { verb: &'static str, remedy: &'static str, source: io::Error },
    #[error("its directory does not exist: make it, or choose another path")]
    NoDirectory,
    #[error(
        "listen.unix.{key}: there is no {what} {name:?} on this machine: use one of {file}, or a number"
    )]
    Unknown { key: &'static str, what: &'static str, name: String, file: &'static str },
    #[error("cannot {verb}: {source}")]
    Io { verb: &'static str, source: io::Error },
}

/// The file of a socket of ours; removed when this is dropped, which is to be after the socket was closed.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have taken the name by now. And whoever comes next removes what is left here.
        let _ = remove_stale(&self.0);
    }
}

/// Listens on `path`. To be called before other threads make files: the umask is the whole process's.
pub fn listen(path: &Path, as_: &UnixSockets) -> Result<(UnixListener, SocketFile), UnixError> {
    let owner = as_.owner.as_deref().map(user).transpose()?;
    let group = as_.group.as_deref().map(group).transpose()?;
    remove_stale(path)?;
    // Nobody may connect before it belongs to whom it should.
    let usual = umask(Mode::from_raw_mode(0o777));
    let bound = UnixListener::bind(path);
    umask(usual);
    let listener = bound.map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => UnixError::InUse,
        ErrorKind::NotFound => UnixError::NoDirectory,
        _ => failed("make it", "one that may write to its directory", source),
    })?;
    let file = SocketFile(path.to_path_buf());
    if owner.is_some() || group.is_some() {
        chown(path, owner, group).map_err(|source| {
            failed("give it to listen.unix.owner and group", "root, or leave them out", source)
        })?;
    }
    let mode = 0o777 & !as_.umask.unwrap_or(usual.as_raw_mode());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|source| failed("set its permissions", "root", source))?;
    Ok((listener, file))
}

fn failed(verb: &'static str, remedy: &'static str, source: io::Error) -> UnixError {
    match source.kind() {
        ErrorKind::PermissionDenied => UnixError::Denied { verb, remedy, source },
        _ => UnixError::Io { verb, source },
    }
}

fn remove_stale(path: &Path) -> Result<(), UnixError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at it", "one that may", source)),
        Ok(there) if !there.file_type().is_socket() => return Err(UnixError::NotASocket),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(UnixError::InUse),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(source) => {
            return Err(failed("see whether anybody listens on it", "its owner", source));
        }
    }
    std::fs::remove_file(path)
        .map_err(|source| failed("remove the one a dead process left", "its owner", source))
}

fn user(name: &str) -> Result<u32, UnixError> {
    let found = || Ok(User::from_name(name)?.map(|user| user.uid.as_raw()));
    number_of(name, found, ("owner", "user", "/etc/passwd"))
}

fn group(name: &str) -> Result<u32, UnixError> {
    let found = || Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    number_of(name, found, ("group", "group", "/etc/group"))
}

fn number_of(
    name: &str,
    found: impl Fn() -> Result<Option<u32>, nix::errno::Errno>,
    (key, what, file): (&'static str, &'static str, &'static str),
) -> Result<u32, UnixError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match found() {
        Ok(Some(number)) => Ok(number),
        // Nobody of that name, or no directory of users to be asked.
        Ok(None) | Err(_) => Err(UnixError::Unknown { key, what, name: name.to_string(), file }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_socket_is_made_as_wanted_and_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let wanted = UnixSockets { umask: Some(0o007), ..UnixSockets::default() };
        let (listener, file) = listen(&path, &wanted).unwrap();
        assert_eq!(mode(&path), 0o770);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path, &wanted), Err(UnixError::InUse)));
        drop(listener);
        // What a process that was killed leaves.
        assert!(path.exists());
        let open = UnixSockets { umask: Some(0), ..UnixSockets::default() };
        let (listener, newer) = listen(&path, &open).unwrap();
        assert_eq!(mode(&path), 0o777);
        drop(file);
        assert!(path.exists(), "it is another's by now");
        drop(listener);
        drop(newer);
        assert!(!path.exists());
    }

    /// Who is not root can give it to itself and to its own group alone.
    #[test]
    fn a_socket_belongs_to_whom_it_should() {
        const NOBODY: u32 = 65534;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (me, mine) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mut wanted = vec![(Some(me), Some(mine)), (None, Some(mine)), (Some(me), None)];
        if me == 0 {
            wanted.extend([
                (Some(NOBODY), Some(NOBODY)),
                (None, Some(NOBODY)),
                (Some(NOBODY), None),
            ]);
        }
        for (owner, group) in wanted {
            let number = |number: u32| number.to_string();
            let (to, of) = (owner.map(number), group.map(number));
            let as_ = UnixSockets { owner: to, group: of, umask: Some(0o007) };
            let (listener, file) = listen(&path, &as_).unwrap();
            let there = std::fs::symlink_metadata(&path).unwrap();
            let expected = (owner.unwrap_or(me), group.unwrap_or(mine), 0o770);
            assert_eq!((there.uid(), there.gid(), there.mode() & 0o777), expected);
            drop((listener, file));
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone_and_errors_name_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let usual = UnixSockets::default();
        let error = listen(&path, &usual).unwrap_err().to_string();
        assert!(error.contains("no socket") && error.contains("move it away"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(listen(&link, &usual), Err(UnixError::NotASocket)));
        let error = listen(&dir.path().join("no/socket"), &usual).unwrap_err().to_string();
        assert!(error.contains("make it"), "{error}");
        let nobody = UnixSockets { owner: Some("no such user".into()), ..UnixSockets::default() };
        let error = listen(&dir.path().join("new"), &nobody).unwrap_err().to_string();
        assert!(error.contains("listen.unix.owner") && error.contains("/etc/passwd"), "{error}");
        assert!(!dir.path().join("new").exists());
    }
}
