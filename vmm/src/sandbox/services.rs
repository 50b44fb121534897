//! Programs of the host that a guest may call: Unix sockets of one name, `_` and the number of a port behind it.
//!
//! Held by the outer process, which connects on behalf of the machine. Invariant: whatever number the machine says, the name is the one that
//! was given at the start with digits behind it, in the folder where that is; and calls beyond the rate are refused before a name is looked
//! at. Whoever may write to that folder decides what is behind a name.

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::SandboxError;
use crate::machine::rate::Bucket;

/// Calls at once: as many as a guest may have connections.
const CALLS_BURST: u64 = 64;
/// Calls a second after that: agents call when they start, and seldom again.
const CALLS_PER_S: u64 = 16;

/// See the module.
pub(super) struct Services {
    /// Everything before the port.
    head: OsString,
    calls: Bucket,
    since: Instant,
}

impl Services {
    /// Those whose names begin with `path`.
    ///
    /// # Errors
    /// A name would be too long.
    pub(super) fn new(path: &Path) -> Result<Self, SandboxError> {
        let mut head = path.as_os_str().to_owned();
        head.push("_");
        let this = Self {
            head,
            calls: Bucket::new(CALLS_PER_S, CALLS_BURST),
            since: Instant::now(),
        };
        match this.name(u32::MAX) {
            Ok(_) => Ok(this),
            Err(_) => Err(SandboxError::SocketName(path.to_owned())),
        }
    }

    fn name(&self, port: u32) -> rustix::io::Result<SocketAddrUnix> {
        let mut name = self.head.clone();
        name.push(port.to_string());
        SocketAddrUnix::new(name.as_os_str())
    }

    /// Where a port is served, if it may be called now.
    pub(super) fn call(&mut self, port: u32) -> rustix::io::Result<SocketAddrUnix> {
        if self.calls.take(1, self.since.elapsed()).is_err() {
            return Err(Errno::AGAIN);
        }
        self.name(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_one_that_was_given_and_digits() {
        let mut services = Services::new(Path::new("/run/a/agent.sock")).expect("short");
        for (port, name) in [
            (0, "/run/a/agent.sock_0"),
            (52, "/run/a/agent.sock_52"),
            (u32::MAX, "/run/a/agent.sock_4294967295"),
        ] {
            let address = services.call(port).expect("a call");
            let path = address.path().expect("a path");
            assert_eq!(path.to_str(), Ok(name));
        }
        let long = "x".repeat(100);
        assert!(
            Services::new(Path::new(&long)).is_err(),
            "no room for a port"
        );
    }

    #[test]
    fn calls_beyond_the_burst_are_refused() {
        let mut services = Services::new(Path::new("agent")).expect("short");
        let passed = (0..10_000).filter(|port| services.call(*port).is_ok());
        let passed = passed.count() as u64;
        // Ten thousand take far less than a minute.
        assert!((CALLS_BURST..CALLS_BURST + 60 * CALLS_PER_S).contains(&passed));
        assert_eq!(services.call(1).map(drop), Err(Errno::AGAIN));
    }
}
