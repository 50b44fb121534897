//! Requests that wait because they cannot be done for now, and queues that end meanwhile.
//!
//! A read that the WAN does not bring, or a write for which the branch's disk has no room, is no error of the guest's disk: an error would
//! make its file system stop for good. So the request waits and is tried again until it can be done.
//!
//! A queue that ends does not wait for ever: after its grace such a request is left, marked as in flight, for whoever serves the queue
//! next. Invariant: only a request that is marked in memory that outlives the queue is left; any other is answered.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::event::Stop;
use crate::BlockError;
use crate::virtio::{Next, Patience};

/// Rest between two attempts. A device waits for the WAN by itself; this is for those that refuse at once, as a full disk does.
const REST: Duration = Duration::from_secs(1);
/// How soon the end of a queue is noticed.
const LOOK: Duration = Duration::from_millis(50);

/// How many requests of a disk wait, and why.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<(usize, String)>);

impl Held {
    /// Why requests wait, if any do.
    pub(crate) fn reason(&self) -> Option<String> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (held.0 > 0).then(|| held.1.clone())
    }

    fn begin(&self, serial: &str, error: &BlockError) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += 1;
        held.1 = chain(error);
        if held.0 == 1 {
            tracing::warn!(serial, reason = held.1, "requests of a disk wait");
        }
    }

    fn end(&self, serial: &str) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 -= 1;
        if held.0 == 0 {
            tracing::info!(serial, "no request of the disk waits any more");
        }
    }
}

/// The end of a queue: whether it has come, and when requests that wait are left.
pub(crate) struct Ending {
    event: Stop,
    begun: AtomicBool,
    leave_at: OnceLock<Instant>,
}

impl Ending {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            event: Stop::new()?,
            begun: AtomicBool::new(false),
            leave_at: OnceLock::new(),
        })
    }

    /// The queue is to end. Requests that wait get so long; what is said first holds.
    pub(crate) fn begin(&self, grace: Duration) {
        self.leave_at.get_or_init(|| Instant::now() + grace);
        self.begun.store(true, Ordering::Release);
        self.event.raise();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.leave_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    /// The event that wakes the queue's thread.
    pub(crate) fn event(&self) -> &Stop {
        &self.event
    }
}

/// One request that may have to wait.
pub(crate) struct Waiting<'a> {
    pub(crate) ending: &'a Ending,
    pub(crate) held: &'a Held,
    pub(crate) serial: &'a str,
    /// It is marked in memory that outlives the queue.
    pub(crate) is_marked: bool,
    pub(crate) is_held: Cell<bool>,
}

impl Patience for Waiting<'_> {
    fn is_over(&self) -> bool {
        self.is_marked && self.ending.is_over()
    }

    fn wait(&self, error: &BlockError) -> Next {
        if !self.is_held.replace(true) {
            self.held.begin(self.serial, error);
        }
        let until = Instant::now() + REST;
        loop {
            if self.is_over() {
                return Next::Leave;
            }
            if !self.is_marked && self.ending.has_begun() {
                return Next::Tell;
            }
            if Instant::now() >= until {
                return Next::Again;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_held.get() {
            self.held.end(self.serial);
        }
    }
}

/// An error and what is below it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text = format!("{text}: {error}");
        below = error.source();
    }
    text
}
