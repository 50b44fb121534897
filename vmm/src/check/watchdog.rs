//! Bounds in time for something that blocks in the kernel: it runs on a thread of its own, which is sent a signal
//! until it comes back.
//!
//! The signal's handler does nothing: its arrival alone makes KVM_RUN return with EINTR. It is sent again and again,
//! because one that arrives just before KVM_RUN is entered would be lost.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two kicks.
const KICK_PAUSE: Duration = Duration::from_millis(5);

/// How long a thread is kicked before it is left to itself.
const KICK_TIME: Duration = Duration::from_secs(2);

/// The kicking signal. Real-time signals belong to the application; SIGRTMIN itself is popular with libraries.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 4
}

extern "C" fn ignore_kick(_signal: libc::c_int) {}

/// Whether the time is over; the work looks at it whenever it is interrupted.
#[derive(Clone, Default)]
pub(super) struct Expired(Arc<AtomicBool>);

impl Expired {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Runs `work` on a thread of its own for at most `time`. `None` if it panicked, could not be started, or does not
/// come back although it was kicked (its thread is then left behind).
pub(super) fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce(Expired) -> T + Send + 'static,
) -> Option<T> {
    let _handler = Handler::install();
    let expired = Expired::default();
    let (done, result) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("vmm-check".into())
        .spawn({
            let expired = expired.clone();
            move || {
                // The receiver is gone only if nobody waits any more.
                let _ = done.send(work(expired));
            }
        })
        .ok()?;
    let mut outcome = result.recv_timeout(time);
    if matches!(outcome, Err(mpsc::RecvTimeoutError::Timeout)) {
        expired.0.store(true, Ordering::Release);
        let until = Instant::now() + KICK_TIME;
        while matches!(outcome, Err(mpsc::RecvTimeoutError::Timeout)) && Instant::now() < until {
            // SAFETY: the handle keeps the thread's id valid until it is joined or dropped, which is after this.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
            outcome = result.recv_timeout(KICK_PAUSE);
        }
        if matches!(outcome, Err(mpsc::RecvTimeoutError::Timeout)) {
            return None;
        }
    }
    // A panic has been told by the panic hook already, and the result says so too.
    let _ = thread.join();
    outcome.ok()
}

/// Keeps the kick's handler in place; dropping it restores what was there.
struct Handler {
    before: libc::sigaction,
}

impl Handler {
    fn install() -> Self {
        // SAFETY: all-zero bytes are a valid sigaction (no flags, empty mask, default action).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore_kick as *const () as libc::sighandler_t;
        // No SA_RESTART: the interrupted call must return.
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both point to valid values, and the handler is an async-signal-safe function (it does nothing).
        let installed =
            unsafe { libc::sigaction(kick_signal(), &raw const action, &raw mut before) };
        assert_eq!(installed, 0, "a real-time signal can always be handled");
        Self { before }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: `before` is what the kernel gave us for the same signal.
        unsafe { libc::sigaction(kick_signal(), &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::within;
    use std::time::{Duration, Instant};

    #[test]
    fn work_that_hangs_in_the_kernel_is_kicked_out_of_it() {
        let started = Instant::now();
        let interrupted = within(Duration::from_millis(20), |expired| {
            while !expired.is_set() {
                // SAFETY: pause has no arguments and no effect but waiting for a signal.
                unsafe { libc::pause() };
            }
            7
        });
        assert_eq!(interrupted, Some(7));
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn work_that_panics_has_no_result() {
        assert_eq!(
            within(Duration::from_secs(5), |_| -> u8 { panic!("on purpose") }),
            None
        );
    }
}
