//! Signals as something to wait for: SIGINT, SIGTERM and SIGHUP are blocked in every thread and taken here.

use std::io;
use std::mem::MaybeUninit;

/// How often a waiting command looks at its links, in seconds.
const LOOK_EVERY_S: libc::time_t = 1;

pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals. Call before any thread is started, because threads inherit the mask.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that the later calls read; all pointers are to live locals.
        let (set, blocked) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let set = set.assume_init();
            (
                set,
                libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()),
            )
        };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        Ok(Self { set })
    }

    /// Waits for a signal for a second at most; true if one came.
    pub fn arrived(&self) -> bool {
        let limit = libc::timespec {
            tv_sec: LOOK_EVERY_S,
            tv_nsec: 0,
        };
        // SAFETY: both pointers are to live values, and no siginfo is asked for.
        unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &limit) > 0 }
    }
}
