//! What the portal asks of the branch server: who somebody is, and desktops. A trait, so that its rules are tested without machines.

use std::path::PathBuf;
use std::sync::Arc;

use branch_api::{DesktopState, LogIn};
use dedup_protocol::records::PoolAssignment;
use tokio::sync::Semaphore;

use super::line::Memory;
use crate::desktop::DesktopError;
use crate::people::{Admitted, LogInError, Standing};
use crate::server::Branch;

/// Memory of the host that is never given to desktops begun at the portal, in MiB: the branch server's own, and the system's.
const OWN_MIB: u64 = 1024;

/// A desktop, as far as the portal cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its pool.
    pub pool: String,
    /// What it is doing.
    pub state: DesktopState,
    /// Why, if it failed or is paused.
    pub error: Option<String>,
    /// Whether its system begins anew at log-off.
    pub pooled: bool,
    /// Unix socket of its screen, while it runs.
    pub screen: Option<PathBuf>,
}

/// See the module. All calls may block.
pub trait House: Send + Sync + 'static {
    /// The branch's name.
    fn branch(&self) -> String;
    /// Unix seconds.
    fn now_unix_s(&self) -> u64;
    /// Turns for [`Self::log_in`].
    fn stretching(&self) -> Arc<Semaphore>;
    /// Proves who somebody is.
    fn log_in(&self, request: &LogIn) -> Result<Admitted, LogInError>;
    /// What somebody may do who was let in.
    fn standing(&self, user: &str) -> Option<Standing>;
    /// A desktop, if there is one of that name.
    fn desktop(&self, name: &str) -> Result<Option<Seen>, DesktopError>;
    /// Has one run, fresh or stopped.
    fn start(&self, pool: &str, name: &str) -> Result<(), DesktopError>;
    /// Stops one.
    fn stop(&self, name: &str, force: bool) -> Result<(), DesktopError>;
    /// Memory of desktops.
    fn memory(&self) -> Result<Memory, DesktopError>;
    /// What a desktop of a pool needs of it, in MiB; none if there is no such pool.
    fn wants_mib(&self, pool: &str) -> Option<u64>;
}

/// The branch server itself.
pub struct BranchHouse {
    branch: Arc<Branch>,
    limit_mib: u64,
}

impl BranchHouse {
    /// Desktops may have `limit_mib` of memory together; without it, what the host has but a tenth and at least a GiB.
    pub fn new(branch: Arc<Branch>, limit_mib: Option<u64>) -> Self {
        let limit_mib = limit_mib.unwrap_or_else(|| {
            let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            // Where that cannot be read nobody is kept waiting.
            total_mib(&info).map_or(u64::MAX, |total| {
                total.saturating_sub(OWN_MIB.max(total / 10))
            })
        });
        Self { branch, limit_mib }
    }

    fn told(&self) {
        self.branch.link.report_now.notify_one();
    }
}

/// The host's memory, of `/proc/meminfo`.
fn total_mib(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

impl House for BranchHouse {
    fn branch(&self) -> String {
        self.branch.identity.name.clone()
    }

    fn now_unix_s(&self) -> u64 {
        self.branch.clock.now_unix_s()
    }

    fn stretching(&self) -> Arc<Semaphore> {
        Arc::clone(self.branch.people.stretching())
    }

    fn log_in(&self, request: &LogIn) -> Result<Admitted, LogInError> {
        let assignment = self.branch.versions.assignment();
        self.branch.people.log_in(
            &request.name,
            request.password.as_bytes(),
            request.code.as_deref(),
            assignment.as_deref(),
            self.branch.clock.now_unix_s(),
        )
    }

    fn standing(&self, user: &str) -> Option<Standing> {
        let assignment = self.branch.versions.assignment();
        self.branch.people.standing(user, assignment.as_deref())
    }

    fn desktop(&self, name: &str) -> Result<Option<Seen>, DesktopError> {
        match self.branch.desktops.show(name) {
            Ok(desktop) => Ok(Some(Seen {
                pool: desktop.pool,
                state: desktop.state,
                error: desktop.error,
                pooled: desktop.pooled,
                screen: desktop.screen_socket.map(PathBuf::from),
            })),
            Err(DesktopError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn start(&self, pool: &str, name: &str) -> Result<(), DesktopError> {
        let started = self.branch.desktops.start(pool, name);
        self.told();
        started.map(|_| ())
    }

    fn stop(&self, name: &str, force: bool) -> Result<(), DesktopError> {
        let stopped = self.branch.desktops.stop(name, force);
        self.told();
        stopped.map(|_| ())
    }

    fn memory(&self) -> Result<Memory, DesktopError> {
        Ok(Memory {
            limit_mib: self.limit_mib,
            used_mib: self.branch.desktops.running_memory_mib()?,
        })
    }

    fn wants_mib(&self, pool: &str) -> Option<u64> {
        let assignment = self.branch.versions.assignment()?;
        let found = assignment.pools.iter().find(|one| one.pool == pool);
        found.map(|pool: &PoolAssignment| u64::from(pool.memory_mib))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_s_memory_is_read_from_its_first_line() {
        let info = "MemTotal:       16384000 kB\nMemFree:         1000 kB\n";
        assert_eq!(total_mib(info), Some(16_000));
        for odd in ["", "MemTotal:", "MemTotal: x kB"] {
            assert_eq!(total_mib(odd), None, "{odd}");
        }
    }
}
