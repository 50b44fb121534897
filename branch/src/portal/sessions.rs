//! Sessions of the portal: who was let in, until when.
//!
//! Invariant: of a session's secret only the hash is kept, in memory: a branch server that starts anew has its users log in again, and finds their desktops
//! as they are. A session is as good as its user's standing at the moment of a call, which [`super::Portal::caller`] asks for. There is a
//! limit to how many one user has; the oldest gives way.

use std::collections::HashMap;

use super::Key;

/// How long a session holds at most, in seconds: a long day's work.
pub const SESSION_S: u64 = 12 * 3600;
/// Most sessions of one user: a few places, and browsers that were never logged out.
const SESSIONS_MAX: usize = 8;

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The account's name.
    pub user: String,
    /// What proved the user then ([`crate::people::Standing`]).
    pub epoch: [u8; 32],
    /// When it ends at the latest, unix seconds.
    pub ends_unix_s: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sessions(HashMap<Key, Session>);

impl Sessions {
    /// Begins one; answers the session that gave way, if there was one.
    pub fn begin(&mut self, key: Key, session: Session) -> Option<Key> {
        let of_user = self.0.iter().filter(|(_, s)| s.user == session.user);
        let of_user: Vec<(u64, Key)> = of_user.map(|(key, s)| (s.ends_unix_s, *key)).collect();
        let oldest = of_user.iter().min().map(|(_, key)| *key);
        let gone = oldest.filter(|_| of_user.len() >= SESSIONS_MAX);
        if let Some(gone) = gone {
            self.0.remove(&gone);
        }
        self.0.insert(key, session);
        gone
    }

    /// A session that has not ended.
    pub fn find(&self, key: Key, now_unix_s: u64) -> Option<&Session> {
        let session = self.0.get(&key)?;
        (now_unix_s < session.ends_unix_s).then_some(session)
    }

    /// Ends one.
    pub fn end(&mut self, key: Key) {
        self.0.remove(&key);
    }

    /// Ends those that are over, or not good any more; answers which.
    pub fn sweep(
        &mut self,
        now_unix_s: u64,
        mut is_good: impl FnMut(&Session) -> bool,
    ) -> Vec<Key> {
        let ended = self
            .0
            .iter()
            .filter(|(_, session)| now_unix_s >= session.ends_unix_s || !is_good(session));
        let ended: Vec<Key> = ended.map(|(key, _)| *key).collect();
        for key in &ended {
            self.0.remove(key);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn session(user: &str, ends_unix_s: u64) -> Session {
        Session {
            user: user.into(),
            epoch: [0; 32],
            ends_unix_s,
        }
    }

    fn key(number: u8) -> Key {
        Key::of(&number.to_string())
    }

    #[test]
    fn a_session_ends_at_its_time() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.begin(key(1), session("alice", 100)), None);
        assert_eq!(sessions.find(key(1), 99).unwrap().user, "alice");
        assert_eq!(sessions.find(key(1), 100), None);
        assert_eq!(sessions.find(key(2), 99), None);
        assert!(sessions.sweep(99, |_| true).is_empty());
        assert_eq!(sessions.sweep(100, |_| true), [key(1)]);
        assert_eq!(sessions.find(key(1), 99), None);
    }

    #[test]
    fn the_oldest_of_a_user_gives_way_and_nobody_else_s() {
        let mut sessions = Sessions::default();
        sessions.begin(key(100), session("bob", 1));
        for number in 0..SESSIONS_MAX {
            let ends = 100 + number as u64;
            assert_eq!(
                sessions.begin(key(number as u8), session("alice", ends)),
                None
            );
        }
        assert_eq!(sessions.begin(key(50), session("alice", 200)), Some(key(0)));
        assert!(sessions.find(key(100), 0).is_some());
        assert!(sessions.find(key(1), 0).is_some());
    }

    #[test]
    fn who_lost_his_standing_loses_his_sessions() {
        let mut sessions = Sessions::default();
        sessions.begin(key(1), session("alice", 100));
        sessions.begin(key(2), session("bob", 100));
        assert_eq!(sessions.sweep(0, |s| s.user != "alice"), [key(1)]);
        assert!(sessions.find(key(2), 0).is_some());
    }
}
