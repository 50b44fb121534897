//! Named network namespaces: use, creation, and removal that survives a crash.
//!
//! A named namespace is a bind mount that would outlive a killed process, so a small shell is started first whose
//! standard input is a pipe from us: when the pipe closes (we exit, or are killed), it deletes what we created.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{TunError, ip};
use std::os::fd::AsFd;

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Deletes its arguments once standard input ends; a terminal's Ctrl-C must not end it first.
const JANITOR: &str =
    r#"trap '' INT TERM HUP; cat >/dev/null; for n in "$@"; do ip netns del "$n"; done"#;

/// Namespaces that this process created; deleted when dropped, or when the process dies.
#[derive(Debug)]
pub struct Namespaces {
    janitor: Option<Child>,
}

impl Namespaces {
    /// Creates the named namespaces, with their loopback device up. All or none are made.
    ///
    /// # Errors
    /// [`TunError::NamespaceExists`], or `ip` refuses.
    pub fn create(names: &[String]) -> Result<Self, TunError> {
        for name in names {
            if path_of(name).exists() {
                return Err(TunError::NamespaceExists(name.clone()));
            }
        }
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "sim-wan-janitor"])
            .args(names)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(TunError::io("starting the shell that removes namespaces"))?;
        let created = Self {
            janitor: Some(janitor),
        };
        for name in names {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(created)
    }

    /// Checks that namespaces which others made are there.
    ///
    /// # Errors
    /// [`TunError::NamespaceMissing`].
    pub fn existing(names: &[String]) -> Result<Self, TunError> {
        for name in names {
            if !path_of(name).exists() {
                return Err(TunError::NamespaceMissing(name.clone()));
            }
        }
        Ok(Self { janitor: None })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            // It ends by itself once its input has ended; waiting makes the removal complete on return.
            let _ = janitor.wait();
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

/// Runs `work` on a thread inside a named namespace and returns its result. Sockets and TUN devices opened there stay
/// in that namespace and may be used from any thread.
///
/// # Errors
/// [`TunError::NamespaceMissing`], or the namespace cannot be entered (root only).
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T, TunError> {
    let handle = match File::open(path_of(namespace)) {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TunError::NamespaceMissing(namespace.to_owned()));
        }
        Err(error) => {
            return Err(TunError::io(format!("opening namespace {namespace}"))(
                error,
            ));
        }
    };
    thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<T, io::Error>(work())
        });
        visitor
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(TunError::io(format!("entering namespace {namespace}")))
}
