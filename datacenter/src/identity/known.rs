//! Places that people logged in from: whoever guesses at a name elsewhere does not keep its owner out there.
//!
//! An attempt from a known place is counted by strikes of that place, which lock it alone, and not by the account's. Invariant: memory is bounded
//! ([`PLACES_MAX`]); a place that is not remembered, as none is after a start, is a stranger's, whose strikes are durable. It knows no passwords, and time
//! is an argument.

use std::collections::HashMap;
use std::net::IpAddr;

use dedup_protocol::people::strikes::Strikes;

use super::gate::site;

/// Most places of all accounts that are remembered; the one that was used longest ago gives way.
const PLACES_MAX: usize = 4096;

struct Place {
    strikes: Strikes,
    used_unix_s: u64,
}

/// See the module.
#[derive(Default)]
pub struct Known {
    places: HashMap<([u8; 16], String), Place>,
}

fn key(account: [u8; 16], from: &str) -> ([u8; 16], String) {
    let address = from.parse::<IpAddr>();
    (
        account,
        address.map_or_else(|_| from.to_owned(), |address| site(address).to_string()),
    )
}

impl Known {
    /// Counts an attempt as wrong, or says for how many seconds more that place is locked. `None`, and nothing is counted: it is a stranger's.
    pub fn attempt(
        &mut self,
        account: [u8; 16],
        from: &str,
        now_unix_s: u64,
    ) -> Option<Result<(), u64>> {
        let place = self.places.get_mut(&key(account, from))?;
        Some(place.strikes.attempt(now_unix_s))
    }

    /// Somebody logged in from there.
    pub fn entered(&mut self, account: [u8; 16], from: &str, now_unix_s: u64) {
        let key = key(account, from);
        if self.places.len() >= PLACES_MAX && !self.places.contains_key(&key) {
            let oldest = self
                .places
                .iter()
                .min_by_key(|(_, place)| place.used_unix_s);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.places.remove(&oldest);
            }
        }
        let place = Place {
            strikes: Strikes::default(),
            used_unix_s: now_unix_s,
        };
        self.places.insert(key, place);
    }

    /// An account is unlocked, or is not its owner's any more: no place of it is known.
    pub fn forget(&mut self, account: [u8; 16]) {
        self.places.retain(|(of, _), _| *of != account);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dedup_protocol::people::strikes::{FREE, LOCK_S};

    use super::*;

    const ALICE: [u8; 16] = [1; 16];

    #[test]
    fn a_known_place_locks_itself_and_no_other() {
        let mut known = Known::default();
        assert_eq!(known.attempt(ALICE, "10.0.0.1", 7), None);
        known.entered(ALICE, "10.0.0.1", 7);
        known.entered(ALICE, "2001:db8:1:2::3", 7);
        assert_eq!(known.attempt([2; 16], "10.0.0.1", 7), None, "another's");
        for _ in 0..FREE {
            known.attempt(ALICE, "10.0.0.1", 7).unwrap().unwrap();
        }
        assert_eq!(known.attempt(ALICE, "10.0.0.1", 7), Some(Err(LOCK_S)));
        let neighbour = known.attempt(ALICE, "2001:db8:1:2:ffff::1", 7);
        assert_eq!(neighbour, Some(Ok(())), "of one customer's network");
        known.forget(ALICE);
        assert_eq!(known.attempt(ALICE, "10.0.0.1", 7), None);
    }

    #[test]
    fn the_place_that_was_used_longest_ago_gives_way() {
        let mut known = Known::default();
        for place in 0..=PLACES_MAX as u64 {
            known.entered(ALICE, &place.to_string(), place);
        }
        assert_eq!(known.places.len(), PLACES_MAX);
        assert_eq!(known.attempt(ALICE, "0", 7), None);
        assert_eq!(known.attempt(ALICE, "1", 7), Some(Ok(())));
    }
}
