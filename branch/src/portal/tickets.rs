//! Tickets to screens: good once, for one desktop, in the session that asked for it, for half a minute.
//!
//! A WebSocket is opened by an address alone, and addresses end in histories and logs. Invariant: what is in that address is worth nothing
//! afterwards, nor without the session's cookie. Kept in memory by their hashes, with a limit; the one that ends first gives way.

use std::collections::HashMap;

use super::Key;

/// How long a ticket holds, in seconds: the page uses it at once.
const TICKET_S: u64 = 30;
/// Most tickets at once: every user of a large branch in the same half minute, and then some.
const TICKETS_MAX: usize = 4096;

/// What a ticket opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The session that it was given to.
    pub session: Key,
    /// The desktop's pool.
    pub pool: String,
    /// The desktop.
    pub name: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tickets(HashMap<Key, (u64, Ticket)>);

impl Tickets {
    /// Keeps one.
    pub fn give(&mut self, key: Key, ticket: Ticket, now_unix_s: u64) {
        if self.0.len() >= TICKETS_MAX {
            self.0.retain(|_, (until, _)| *until > now_unix_s);
        }
        let first = self.0.iter().min_by_key(|(_, (until, _))| *until);
        let first = first.map(|(key, _)| *key);
        if let Some(first) = first.filter(|_| self.0.len() >= TICKETS_MAX) {
            self.0.remove(&first);
        }
        self.0.insert(key, (now_unix_s + TICKET_S, ticket));
    }

    /// Uses one up; none if it is over, was used or never was.
    pub fn take(&mut self, key: Key, now_unix_s: u64) -> Option<Ticket> {
        let (until, ticket) = self.0.remove(&key)?;
        // A clock that was set back does not make it hold for longer.
        let is_good = now_unix_s < until && until <= now_unix_s + TICKET_S;
        is_good.then_some(ticket)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            session: Key::of("session"),
            pool: "office".into(),
            name: "alice-office".into(),
        }
    }

    #[test]
    fn a_ticket_is_good_once_and_for_half_a_minute() {
        let mut tickets = Tickets::default();
        let key = Key::of("one");
        tickets.give(key, ticket(), 1000);
        assert_eq!(tickets.take(Key::of("other"), 1000), None);
        assert_eq!(tickets.take(key, 1029), Some(ticket()));
        assert_eq!(tickets.take(key, 1029), None);
        for late in [1030, 5000, 900] {
            tickets.give(key, ticket(), 1000);
            assert_eq!(tickets.take(key, late), None, "{late}");
            assert_eq!(tickets.take(key, 1000), None, "it is used up all the same");
        }
    }

    #[test]
    fn there_is_a_limit_and_the_newest_is_kept() {
        let mut tickets = Tickets::default();
        for number in 0..TICKETS_MAX + 10 {
            tickets.give(Key::of(&number.to_string()), ticket(), 1000);
        }
        assert_eq!(tickets.0.len(), TICKETS_MAX);
        let newest = Key::of(&(TICKETS_MAX + 9).to_string());
        assert!(tickets.take(newest, 1000).is_some());
        tickets.give(Key::of("later"), ticket(), 1000 + TICKET_S);
        tickets.give(Key::of("much later"), ticket(), 1000 + TICKET_S);
        assert!(tickets.0.len() <= TICKETS_MAX);
    }
}
