//! The power switch and the faults of one simulated machine, shared by its disks and its key-value stores.
//!
//! Invariant: once the machine has stopped, no operation takes effect any more and every one reports an error, so that the
//! code under test cannot act after its death. The operation at which it stops may or may not take effect, as with a real one.

use std::io;
use std::sync::Mutex;

/// Which operations a fault or a count is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads of file content.
    Read,
    /// Writes, truncations and punched holes.
    Write,
    /// Syncs of files and directories.
    Sync,
    /// Creations, renames and removals.
    Name,
    /// Commits of a key-value store.
    Commit,
}

const KINDS: usize = 5;

/// What the operation that asked must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Take effect.
    Go,
    /// The power goes while this is under way: take effect without becoming durable, then report [`stopped`].
    Last,
    /// Report [`eio`]; a sync must forget what it was to make durable.
    Fail,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// Operations that change something, so far.
    changes: u64,
    stop_at: Option<u64>,
    seen: [u64; KINDS],
    fail_at: [Option<u64>; KINDS],
}

/// The switch.
#[derive(Debug, Default)]
pub(crate) struct Power {
    state: Mutex<State>,
}

impl Power {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the switch")
    }

    /// Counts one operation and says how it goes.
    pub(crate) fn step(&self, kind: Kind) -> io::Result<Step> {
        let mut state = self.state();
        if state.stopped {
            return Err(stopped());
        }
        let slot = kind as usize;
        state.seen[slot] += 1;
        if state.fail_at[slot] == Some(state.seen[slot]) {
            state.fail_at[slot] = None;
            return Ok(Step::Fail);
        }
        if kind != Kind::Read {
            state.changes += 1;
            if state.stop_at.is_some_and(|at| state.changes > at) {
                state.stopped = true;
                return Ok(Step::Last);
            }
        }
        Ok(Step::Go)
    }

    /// Refuses when the machine has stopped; for operations that are not worth a step.
    pub(crate) fn alive(&self) -> io::Result<()> {
        if self.state().stopped {
            return Err(stopped());
        }
        Ok(())
    }

    pub(crate) fn stop_after(&self, changes: u64) {
        let mut state = self.state();
        state.stop_at = Some(state.changes + changes);
    }

    pub(crate) fn stop_now(&self) {
        self.state().stopped = true;
    }

    pub(crate) fn fail_nth(&self, kind: Kind, nth: u64) {
        assert!(nth > 0, "the first operation is number 1");
        let mut state = self.state();
        state.fail_at[kind as usize] = Some(state.seen[kind as usize] + nth);
    }

    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }
}

/// What every operation reports after the stop.
pub(crate) fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

/// The error of a medium that fails.
pub(crate) fn eio() -> io::Error {
    const EIO: i32 = 5;
    io::Error::from_raw_os_error(EIO)
}

/// The error of a full disk.
pub(crate) fn enospc() -> io::Error {
    const ENOSPC: i32 = 28;
    io::Error::from_raw_os_error(ENOSPC)
}
