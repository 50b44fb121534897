//! The threads of one export that may block: on the WAN, on a flush, on a large transfer.
//!
//! They are started when work waits and nobody is idle, and end after [`WORKER_IDLE`] without work, so a quiet desktop
//! has none. The queue needs no limit of its own: it holds at most what the connections' allowances let in.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::connection::Connection;
use super::exchange::Exchange;
use super::limits::WORKER_IDLE;

/// A request that a worker shall perform and answer.
pub(crate) struct Job {
    pub(crate) connection: Arc<Connection>,
    pub(crate) exchange: Box<Exchange>,
}

impl Job {
    fn run(mut self) {
        let performed = panic::catch_unwind(AssertUnwindSafe(|| {
            self.connection.perform(&mut self.exchange)
        }));
        if performed.is_err() {
            // A defect in a device: the guest gets an error instead of waiting for ever. The panic hook has told it.
            self.connection.reply_panic(&mut self.exchange);
        }
        self.connection.outbox.push(self.exchange);
        self.connection.outbox.flush_from_worker();
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    workers: usize,
}

/// A bounded pool of threads.
pub(crate) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    workers_max: usize,
}

impl Pool {
    /// With `workers_max` 0 everything runs on the submitting thread.
    pub(crate) fn new(workers_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            workers_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `job` performed on a worker. Where not a single worker can be had, performs it right here.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) {
        if self.workers_max == 0 {
            return job.run();
        }
        let mut state = self.lock();
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle {
            drop(state);
            self.work.notify_one();
            return;
        }
        if state.workers == self.workers_max {
            return;
        }
        state.workers += 1;
        drop(state);
        let pool = Arc::clone(self);
        if let Err(error) = std::thread::Builder::new()
            .name("nbd-worker".into())
            .spawn(move || pool.work())
        {
            let mut state = self.lock();
            state.workers -= 1;
            // With other workers the job waits for one of them.
            let stranded = if state.workers == 0 {
                state.jobs.pop_front()
            } else {
                None
            };
            drop(state);
            tracing::warn!(%error, "no thread for a block request; it holds up its connection");
            if let Some(job) = stranded {
                job.run();
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job.run();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .work
                .wait_timeout(state, WORKER_IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.workers -= 1;
                return;
            }
        }
    }
}
