//! How often a line may be logged for something that a guest or a client can make happen as often as it likes.
//!
//! What they alone do wrong is told at debug level; this is for what the owner of the host must hear of, such as a disk that fails. The
//! first few lines pass, then one a minute, so that nobody can fill a disk with them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that pass at first.
const FIRST: u32 = 10;
/// From one line to the next, afterwards.
const REST: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Seldom {
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    first: u32,
    next: Duration,
}

impl Default for Seldom {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            state: Mutex::new(State {
                first: FIRST,
                next: Duration::ZERO,
            }),
        }
    }
}

impl Seldom {
    /// Whether a line may be logged now.
    #[must_use]
    pub fn passes(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.passes(self.since.elapsed())
    }
}

impl State {
    fn passes(&mut self, now: Duration) -> bool {
        if self.first > 0 {
            self.first -= 1;
        } else if now < self.next {
            return false;
        }
        self.next = now + REST;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_errors_has_a_line_a_minute() {
        let mut state = State {
            first: FIRST,
            next: Duration::ZERO,
        };
        let day = 24 * 60 * 60;
        let lines = (0..day * 10).filter(|tenth| state.passes(Duration::from_millis(tenth * 100)));
        let lines = lines.count() as u64;
        assert!(
            (day / 60..=day / 60 + u64::from(FIRST)).contains(&lines),
            "{lines}"
        );
        assert!(Seldom::default().passes());
    }
}
