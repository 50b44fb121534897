//! When an account is locked: wrong passwords in a row cost time that doubles.
//!
//! ```text
//!   free ──wrong, 5th in a row──► locked 30 s ──wrong after it──► locked 60 s … ──► locked 1 h
//!     ▲                                                                               │
//!     └──────────────────────────────────── right, or unlocked ◄──────────────────────┘
//! ```
//!
//! Invariant: an attempt is counted before the password is looked at ([`Strikes::attempt`]), so that a hundred at once are a hundred. A lock ends
//! by itself: whoever guesses at a name keeps its owner out for an hour at most. It reads no clock.

use serde::{Deserialize, Serialize};

/// Wrong passwords in a row that cost nothing: people mistype.
pub const FREE: u32 = 5;
/// The first lock, in seconds.
pub const LOCK_S: u64 = 30;
/// The longest, in seconds.
pub const LOCK_S_MAX: u64 = 3600;

/// An account's wrong passwords.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strikes {
    /// In a row.
    pub failures: u32,
    /// When the lock ends, unix seconds; 0: it is not locked.
    pub until_unix_s: u64,
}

impl Strikes {
    /// Counts an attempt as wrong, unless the account is locked: then the answer is for how many seconds more. Whoever finds the password right
    /// calls [`Self::clear`].
    pub fn attempt(&mut self, now_unix_s: u64) -> Result<(), u64> {
        match self.wait_s(now_unix_s) {
            0 => {}
            wait_s => return Err(wait_s),
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FREE {
            let doublings = (self.failures - FREE).min(16);
            let lock_s = (LOCK_S << doublings).min(LOCK_S_MAX);
            self.until_unix_s = now_unix_s.saturating_add(lock_s);
        }
        Ok(())
    }

    /// For how many seconds the account is locked. A clock that was set back does not make it more than [`LOCK_S_MAX`].
    pub fn wait_s(&self, now_unix_s: u64) -> u64 {
        self.until_unix_s.saturating_sub(now_unix_s).min(LOCK_S_MAX)
    }

    /// The password was right, or somebody unlocked the account.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_fifth_in_a_row_locks_and_each_after_it_doubles() {
        let (mut strikes, mut now) = (Strikes::default(), 1_000_000);
        for _ in 0..FREE {
            strikes.attempt(now).unwrap();
        }
        for lock_s in [30, 60, 120, 240, 480, 960, 1920, 3600, 3600] {
            assert_eq!(strikes.attempt(now), Err(lock_s));
            assert_eq!(strikes.attempt(now + lock_s - 1), Err(1));
            now += lock_s;
            strikes.attempt(now).unwrap();
        }
    }

    #[test]
    fn a_right_password_begins_anew() {
        let mut strikes = Strikes::default();
        for _ in 1..FREE {
            strikes.attempt(7).unwrap();
        }
        strikes.clear();
        for _ in 0..FREE {
            strikes.attempt(7).unwrap();
        }
        assert_eq!(strikes.attempt(7), Err(LOCK_S));
    }

    #[test]
    fn no_clock_makes_a_lock_longer_than_the_longest() {
        let mut strikes = Strikes {
            failures: u32::MAX,
            until_unix_s: 0,
        };
        strikes.attempt(u64::MAX - 5).unwrap();
        assert_eq!(strikes.wait_s(0), LOCK_S_MAX);
        assert_eq!(strikes.wait_s(u64::MAX), 0);
    }
}
