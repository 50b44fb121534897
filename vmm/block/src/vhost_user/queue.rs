//! One queue at work: its thread takes requests, serves what needs no waiting, and hands the rest to helpers.
//!
//! ```text
//!  available ring ──► queue's thread ── hit ──► device.try_read / try_write ──► used ring, call
//!                           └ miss, flush, discard, large ──► helpers ──────────►┘
//! ```
//!
//! A read that has to come over the WAN takes a second; those behind it that are here already must not wait for it. Invariant: a request
//! that was taken is marked in the memory for requests in flight from before it is worked on until it is in the used ring, and it is
//! answered before the queue stops; one that waits for what is not there is left marked ([`super::waiting`]).

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Scope};
use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::Disk;
use super::again::Again;
use super::event::{Call, Waiter, Woken};
use super::inflight::QueueLog;
use super::memory::GuestMap;
use super::waiting::{Ending, Waiting, chain as error_line};
use crate::Seldom;
use crate::virtio::{Chain, Parsed};

/// Reads and writes above this many bytes leave the queue's thread, so that they do not hold up those behind them.
const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Requests answered before the driver is told, while more are there: it can go on with them meanwhile.
const ANSWERS_UNTOLD_MAX: usize = 16;
/// Helpers of one queue: as many reads over the WAN at once. With them a queue reads 50 times a second over a link of 300 ms.
const HELPERS_MAX: usize = 16;
/// How long a helper waits for more work before it ends.
const HELPER_IDLE: Duration = Duration::from_secs(10);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a queue works with.
pub(crate) struct QueueSetup {
    pub(crate) index: u16,
    /// Ready, with its addresses and places.
    pub(crate) queue: Queue,
    pub(crate) map: Arc<GuestMap>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) call: Arc<Call>,
    pub(crate) log: Option<QueueLog>,
    /// What may be told of requests that fail.
    pub(crate) seldom: Arc<Seldom>,
    /// Heads that another server had taken and not answered.
    pub(crate) again: Vec<u16>,
}

/// A queue's thread.
pub(crate) struct Running {
    ending: Arc<Ending>,
    thread: JoinHandle<Places>,
}

/// Where a queue stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) next_available: u16,
}

impl Running {
    /// Begins to work; `kick` tells that something is in the available ring.
    pub(crate) fn spawn(setup: QueueSetup, kick: &std::os::fd::OwnedFd) -> std::io::Result<Self> {
        let ending = Arc::new(Ending::new()?);
        let waiter = Waiter::new(kick, ending.event())?;
        let shared = Arc::clone(&ending);
        let thread = std::thread::Builder::new()
            .name(format!("vhost-queue-{}", setup.index))
            .spawn(move || run(setup, &waiter, &shared))?;
        Ok(Self { ending, thread })
    }

    /// Has it stop; [`Running::stopped`] waits for that.
    pub(crate) fn stop(&self, grace: Duration) {
        self.ending.begin(grace);
    }

    /// Stops it, when what is in work is finished. Requests that wait for what is not there get so long, and are left then.
    pub(crate) fn stopped(self, grace: Duration) -> Places {
        self.stop(grace);
        match self.thread.join() {
            Ok(places) => places,
            // A defect of ours; its thread has told where.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

struct Ring {
    queue: Queue,
    log: Option<QueueLog>,
}

#[derive(Default)]
struct Jobs<'m> {
    waiting: VecDeque<Chain<'m>>,
    idle: usize,
    helpers: usize,
    /// Handed over and not answered.
    in_work: usize,
    ended: bool,
}

struct Work<'m> {
    memory: &'m GuestMemoryMmap<()>,
    disk: &'m Disk,
    call: &'m Call,
    ending: &'m Ending,
    /// Requests are marked in memory that outlives this queue.
    is_logged: bool,
    seldom: &'m Seldom,
    size: usize,
    ring: Mutex<Ring>,
    jobs: Mutex<Jobs<'m>>,
    /// There are jobs, or it is the end.
    more: Condvar,
    /// A job is done.
    fewer: Condvar,
}

fn run(setup: QueueSetup, waiter: &Waiter, ending: &Ending) -> Places {
    let again = Again::new(&setup.map.memory, &setup.queue, &setup.again);
    let size = usize::from(setup.queue.size());
    let work = Work {
        memory: &setup.map.memory,
        disk: &setup.disk,
        call: &setup.call,
        ending,
        is_logged: setup.log.is_some(),
        seldom: &setup.seldom,
        size,
        ring: Mutex::new(Ring {
            queue: setup.queue,
            log: setup.log,
        }),
        jobs: Mutex::default(),
        more: Condvar::new(),
        fewer: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let mut buffer = Vec::new();
        // Where the other server stopped: it may have been in the middle of any of them, so all wait their turn with the helpers.
        for chain in again.chains() {
            work.hand_over(scope, chain);
        }
        work.drain(scope, &mut buffer);
        while waiter.wait() == Woken::Kicked {
            work.drain(scope, &mut buffer);
        }
        lock(&work.jobs).ended = true;
        work.more.notify_all();
    });
    // What the driver was not told of in the middle of a run.
    work.call.ring();
    let ring = work.ring.into_inner();
    let queue = ring.unwrap_or_else(PoisonError::into_inner).queue;
    Places {
        next_available: queue.next_avail(),
    }
}

/// The next chain. Not `pop_descriptor_chain`, which logs it each time that a guest has spoilt its ring; such a ring has no next one.
fn pop<'m>(queue: &mut Queue, memory: &'m GuestMemoryMmap<()>) -> Option<Chain<'m>> {
    queue.iter(memory).ok()?.next()
}

impl<'m> Work<'m> {
    /// The next request. When there is none, the driver will kick for the next one.
    fn next(&self) -> Option<Chain<'m>> {
        let mut ring = lock(&self.ring);
        let Ring { queue, log } = &mut *ring;
        let mut chain = pop(queue, self.memory);
        // One may come between the look and the asking.
        if chain.is_none() && queue.enable_notification(self.memory).unwrap_or(false) {
            chain = pop(queue, self.memory);
        }
        if let (Some(log), Some(chain)) = (log, &chain) {
            log.taken(chain.head_index());
        }
        chain
    }

    /// Gives a request back.
    fn answer(&self, head: u16, written: u32) {
        let mut ring = lock(&self.ring);
        let Ring { queue, log } = &mut *ring;
        if head >= queue.size() {
            // The guest has named a descriptor that does not exist: there is nothing to give back.
            return;
        }
        if let Some(log) = log.as_mut() {
            log.answering(head);
        }
        match queue.add_used(self.memory, head, written) {
            Ok(()) => {
                let used = queue.next_used();
                if let Some(log) = log.as_mut() {
                    log.answered(head, used);
                }
            }
            Err(error) => tracing::debug!(%error, "a guest has spoilt its queue"),
        }
    }

    /// Tells the driver, if it wants to know.
    fn tell(&self) {
        let wants = lock(&self.ring).queue.needs_notification(self.memory);
        if wants.unwrap_or(true) {
            self.call.ring();
        }
    }

    /// Serves all that is in the ring.
    fn drain<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, buffer: &mut Vec<u8>)
    where
        'm: 'scope,
    {
        let mut untold = 0;
        while !self.ending.has_begun() {
            let Some(chain) = self.next() else { break };
            let head = chain.head_index();
            match self.serve(chain.clone(), buffer, false) {
                Some(written) => {
                    self.answer(head, written);
                    untold += 1;
                }
                None => self.hand_over(scope, chain),
            }
            if untold >= ANSWERS_UNTOLD_MAX {
                self.tell();
                untold = 0;
            }
        }
        if untold > 0 {
            self.tell();
        }
    }

    /// Serves a request; what was written is told. `None`: it needs waiting and may not, or it may and was left.
    fn serve(&self, chain: Chain<'m>, buffer: &mut Vec<u8>, may_wait: bool) -> Option<u32> {
        let Disk { device, serial, .. } = self.disk;
        let failed = chain.clone();
        let served = catch_unwind(AssertUnwindSafe(|| {
            let parsed = match Parsed::read(self.memory, chain) {
                Ok(parsed) => parsed,
                Err(reason) => {
                    tracing::debug!(%reason, "not a request");
                    return Some(0);
                }
            };
            let served = if may_wait {
                let waiting = Waiting {
                    ending: self.ending,
                    held: &self.disk.held,
                    serial,
                    is_marked: self.is_logged,
                    is_held: Cell::new(false),
                };
                parsed.serve_patiently(&**device, serial, buffer, &waiting)?
            } else {
                parsed.try_serve(&**device, serial, buffer, INLINE_BYTES_MAX)?
            };
            if let Some(error) = served.error {
                if !error.kind.is_askers() && self.seldom.passes() {
                    let error = error_line(&error);
                    tracing::warn!(
                        serial,
                        error,
                        "request failed; not every such failure is told"
                    );
                } else {
                    tracing::debug!(serial, %error, "request failed");
                }
            }
            Some(served.written)
        }));
        served.unwrap_or_else(|_| {
            // A defect in a device: the guest gets an error instead of waiting for ever. The panic hook has told it.
            let failed = Parsed::read(self.memory, failed).map(Parsed::fail);
            Some(failed.map_or(0, |served| served.written))
        })
    }

    /// Has a helper serve a request. A driver has no more requests in work than its queue has entries; one that claims to is held up.
    fn hand_over<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, chain: Chain<'m>)
    where
        'm: 'scope,
    {
        let mut jobs = lock(&self.jobs);
        while jobs.in_work >= self.size {
            jobs = self
                .fewer
                .wait(jobs)
                .unwrap_or_else(PoisonError::into_inner);
        }
        jobs.in_work += 1;
        jobs.waiting.push_back(chain);
        if jobs.waiting.len() <= jobs.idle {
            self.more.notify_one();
            return;
        }
        if jobs.helpers == HELPERS_MAX {
            return;
        }
        jobs.helpers += 1;
        drop(jobs);
        let spawned = std::thread::Builder::new()
            .name("vhost-helper".into())
            .spawn_scoped(scope, move || self.help(true));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a block request; it holds up its queue");
            // This thread is the helper, until nothing waits.
            self.help(false);
        }
    }

    /// Serves what waits. `stays`: also what comes later.
    fn help(&self, stays: bool) {
        let mut buffer = Vec::new();
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(chain) = jobs.waiting.pop_front() {
                drop(jobs);
                let head = chain.head_index();
                if let Some(written) = self.serve(chain, &mut buffer, true) {
                    self.answer(head, written);
                    self.tell();
                }
                jobs = lock(&self.jobs);
                jobs.in_work -= 1;
                self.fewer.notify_one();
                continue;
            }
            if jobs.ended || !stays {
                break;
            }
            jobs.idle += 1;
            let (woken, timeout) = self
                .more
                .wait_timeout(jobs, HELPER_IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            jobs = woken;
            jobs.idle -= 1;
            if timeout.timed_out() && jobs.waiting.is_empty() {
                break;
            }
        }
        jobs.helpers -= 1;
    }
}
