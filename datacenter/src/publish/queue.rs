//! What the threads of a publish share: a queue of work with an end, buffers that are used again, and the first failure.
//!
//! Invariant: whatever ends a publish — its last byte, an error, a cancellation, a panic — every thread that waits here is woken and
//! told so. Both the queue and the buffers are limited, so a publish takes the same memory for any disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::PublishError;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic is noticed by `StopOnPanic`; what is behind these locks is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work for several threads.
pub(super) struct Queue<T> {
    state: Mutex<QueueState<T>>,
    changed: Condvar,
    waiting_max: usize,
}

struct QueueState<T> {
    urgent: VecDeque<T>,
    waiting: VecDeque<T>,
    closed: bool,
    stopped: bool,
}

impl<T> Queue<T> {
    /// A queue in which at most `waiting_max` pieces of new work wait.
    pub(super) fn new(waiting_max: usize) -> Self {
        Self {
            state: Mutex::new(QueueState {
                urgent: VecDeque::new(),
                waiting: VecDeque::new(),
                closed: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            waiting_max,
        }
    }

    /// Adds work, when there is room for it. Whether anyone will do it: not after a stop.
    pub(super) fn push(&self, work: T) -> bool {
        let mut state = lock(&self.state);
        while state.waiting.len() >= self.waiting_max && !state.stopped {
            state = self.wait(state);
        }
        if state.stopped {
            return false;
        }
        state.waiting.push_back(work);
        self.changed.notify_all();
        true
    }

    /// Adds work that is done before all other, without waiting: it comes of work that was taken from here, which limits it.
    pub(super) fn push_urgent(&self, work: T) {
        let mut state = lock(&self.state);
        state.urgent.push_back(work);
        self.changed.notify_all();
    }

    /// Takes work, when there is some. `None` when all is done, or after a stop.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some(work) = state.urgent.pop_front() {
                return Some(work);
            }
            if let Some(work) = state.waiting.pop_front() {
                self.changed.notify_all();
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Says that nothing will be added any more.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Drops all work and lets nobody wait.
    pub(super) fn stop(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            state.stopped = true;
            (
                std::mem::take(&mut state.urgent),
                std::mem::take(&mut state.waiting),
            )
        };
        self.changed.notify_all();
        // Outside the lock: work may own buffers, which lock their pool.
        drop(dropped);
    }

    fn wait<'a>(&self, state: MutexGuard<'a, QueueState<T>>) -> MutexGuard<'a, QueueState<T>> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A limited number of buffers of one size.
#[derive(Clone)]
pub(super) struct Pool(Arc<PoolShared>);

struct PoolShared {
    state: Mutex<PoolState>,
    returned: Condvar,
    buffer_bytes: usize,
}

struct PoolState {
    free: Vec<Box<[u8]>>,
    /// Buffers that may still be made.
    unmade: usize,
    stopped: bool,
}

/// A buffer, which goes back to its pool when it is dropped. It holds what its last user left.
pub(super) struct Buffer {
    bytes: Option<Box<[u8]>>,
    len: usize,
    pool: Pool,
}

impl Pool {
    /// At most `count` buffers of `buffer_bytes`; each is made when it is first needed.
    pub(super) fn new(count: usize, buffer_bytes: usize) -> Self {
        Self(Arc::new(PoolShared {
            state: Mutex::new(PoolState {
                free: Vec::new(),
                unmade: count,
                stopped: false,
            }),
            returned: Condvar::new(),
            buffer_bytes,
        }))
    }

    /// A buffer, when one is free; `None` after a stop.
    pub(super) fn take(&self) -> Option<Buffer> {
        let mut state = lock(&self.0.state);
        let bytes = loop {
            if state.stopped {
                return None;
            }
            if let Some(bytes) = state.free.pop() {
                break bytes;
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                drop(state);
                break vec![0; self.0.buffer_bytes].into_boxed_slice();
            }
            state = self
                .0
                .returned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        Some(Buffer {
            bytes: Some(bytes),
            len: self.0.buffer_bytes,
            pool: self.clone(),
        })
    }

    /// Lets nobody wait for a buffer.
    pub(super) fn stop(&self) {
        lock(&self.0.state).stopped = true;
        self.0.returned.notify_all();
    }
}

impl Buffer {
    /// The first `len` bytes, which from now on are all that there are.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.bytes
            .as_mut()
            .map_or(&mut [], |bytes| &mut bytes[..len])
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref().map_or(&[], |bytes| &bytes[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            lock(&self.pool.0.state).free.push(bytes);
            self.pool.0.returned.notify_one();
        }
    }
}

/// The first failure of any thread; it makes all others stop.
#[derive(Default)]
pub(super) struct Failure {
    is_set: AtomicBool,
    first: Mutex<Option<PublishError>>,
}

impl Failure {
    pub(super) fn set(&self, error: PublishError) {
        lock(&self.first).get_or_insert(error);
        self.is_set.store(true, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    pub(super) fn into_result(self) -> Result<(), PublishError> {
        let first = self.first.into_inner();
        match first.unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Stops the others when its thread panics, so that the panic is reported rather than waited for.
pub(super) struct StopOnPanic<'a, T> {
    pub(super) queue: &'a Queue<T>,
    pub(super) pool: &'a Pool,
}

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue.stop();
            self.pool.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urgent_work_comes_first_and_a_closed_queue_ends_when_it_is_empty() {
        let queue = Queue::new(2);
        assert!(queue.push(1) && queue.push(2));
        queue.push_urgent(3);
        queue.close();
        let taken: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(taken, [3, 1, 2]);
    }

    #[test]
    fn a_stop_and_a_panic_wake_everyone_who_waits() {
        let queue = Queue::new(1);
        let pool = Pool::new(1, 16);
        let held = pool.take().unwrap();
        assert!(queue.push(1));
        std::thread::scope(|scope| {
            let (queue, pool) = (&queue, &pool);
            let full = scope.spawn(move || queue.push(2));
            let no_buffer = scope.spawn(move || pool.take().is_none());
            let panicked = scope.spawn(move || {
                let _guard = StopOnPanic { queue, pool };
                std::panic::resume_unwind(Box::new("a defect"));
            });
            assert!(panicked.join().is_err());
            assert!(!full.join().unwrap() && no_buffer.join().unwrap());
        });
        assert_eq!(queue.pop(), None);
        drop(held);
    }

    #[test]
    fn buffers_are_used_again_and_never_more_than_the_limit() {
        let pool = Pool::new(2, 16);
        let mut first = pool.take().unwrap();
        first.truncate(4);
        first.bytes_mut().fill(7);
        let address = first.as_ref().as_ptr();
        let _second = pool.take().unwrap();
        drop(bytes::Bytes::from_owner(first).slice(1..2));
        let again = pool.take().unwrap();
        assert_eq!(
            (again.as_ref().as_ptr(), again.as_ref().len()),
            (address, 16)
        );
        assert_eq!(lock(&pool.0.state).unmade, 0);
    }
}
