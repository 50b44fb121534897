//! Who looks at which desktop: one browser each. The one that comes takes over, and the one before is told so.
//!
//! Invariant: whatever ends a right to look (a log-out, a lost entitlement, another client) ends the looking, by the [`Why`] that its proxy
//! waits for.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::Key;

/// Why a browser is shown a desktop no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Another client of the same user has it.
    TakenOver,
    /// The session is over, or the user may not use the pool any more.
    NoRight,
}

#[derive(Debug)]
struct Viewer {
    number: u64,
    session: Key,
    user: String,
    pool: String,
    end: oneshot::Sender<Why>,
}

/// A browser that is shown a desktop.
#[derive(Debug)]
pub struct Entered {
    /// Which of all it is.
    pub number: u64,
    /// Tells when that is to end. A sender that is dropped says the same.
    pub end: oneshot::Receiver<Why>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Viewers {
    by_desktop: HashMap<String, Viewer>,
    count: u64,
}

impl Viewers {
    /// Lets a browser look; the one before is told that it is taken over.
    pub fn enter(&mut self, name: &str, pool: &str, user: &str, session: Key) -> Entered {
        self.count += 1;
        let (sender, end) = oneshot::channel();
        let viewer = Viewer {
            number: self.count,
            session,
            user: user.to_owned(),
            pool: pool.to_owned(),
            end: sender,
        };
        if let Some(before) = self.by_desktop.insert(name.to_owned(), viewer) {
            // One that has just gone hears nothing.
            let _ = before.end.send(Why::TakenOver);
        }
        let number = self.count;
        Entered { number, end }
    }

    /// Notes that a browser is gone; answers whether nobody looks now. It is not if another one took over.
    pub fn leave(&mut self, name: &str, number: u64) -> bool {
        let is_last = self.by_desktop.get(name).map(|viewer| viewer.number) == Some(number);
        if is_last {
            self.by_desktop.remove(name);
        }
        is_last
    }

    /// Whether a browser is shown this desktop.
    pub fn sees(&self, name: &str) -> bool {
        self.by_desktop.contains_key(name)
    }

    /// Has those look no longer who may not, by their session, user and pool.
    pub fn sweep(&mut self, mut may: impl FnMut(Key, &str, &str) -> bool) {
        let gone = self
            .by_desktop
            .extract_if(|_, viewer| !may(viewer.session, &viewer.user, &viewer.pool));
        for (_, viewer) in gone {
            let _ = viewer.end.send(Why::NoRight);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_one_that_comes_takes_over() {
        let mut viewers = Viewers::default();
        let session = Key::of("session");
        let mut first = viewers.enter("a-office", "office", "a", session);
        let mut other = viewers.enter("b-office", "office", "b", Key::of("other"));
        let mut second = viewers.enter("a-office", "office", "a", session);
        assert_eq!(first.end.try_recv(), Ok(Why::TakenOver));
        // Its end is not the end of the one that took over.
        assert!(!viewers.leave("a-office", first.number));
        assert!(viewers.sees("a-office"));
        assert!(second.end.try_recv().is_err());
        viewers.sweep(|key, user, pool| {
            assert_eq!(pool, "office");
            key != session && user == "b"
        });
        assert_eq!(second.end.try_recv(), Ok(Why::NoRight));
        assert!(other.end.try_recv().is_err());
        assert!(viewers.leave("b-office", other.number));
        assert!(!viewers.sees("b-office"));
    }
}
