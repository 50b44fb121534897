//! Whose a desktop is: its name says so. A user has one desktop of each pool, and its name is made of both.
//!
//! Invariant: a name is always made of a user and a pool and never taken apart, so that no name of a user or a pool can pass for another pair. It needs no
//! row: it comes along with moves between branches and with backups, and whoever manages desktops makes one for a user by naming it so.

use crate::desktop::record::{NAME_BYTES_MAX, check_name};

/// Digits of the hash in a name that could not be put together plainly.
const HASH_DIGITS: usize = 12;

/// The name of a user's desktop of a pool: `alice-office`. Where that is too long or has other letters than names have, what can be kept of it and a
/// hash of both.
pub fn desktop_of(user: &str, pool: &str) -> String {
    let plain = format!("{user}-{pool}");
    if check_name(&plain).is_ok() {
        return plain;
    }
    let both = [user.as_bytes(), b"\0", pool.as_bytes()].concat();
    let hash = blake3::hash(&both).to_hex();
    let kept = user.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'0'..=b'9' => char::from(byte),
        _ => '-',
    });
    let kept: String = kept
        .skip_while(|letter| *letter == '-')
        .take(NAME_BYTES_MAX - HASH_DIGITS - 1)
        .collect();
    // Names do not begin with a dash.
    let kept = if kept.is_empty() { "u" } else { &kept };
    format!("{kept}-{}", &hash[..HASH_DIGITS])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_as_they_always_were() {
        for (user, pool, name) in [
            ("alice", "office", "alice-office"),
            ("alice", "a-very-long-name-of-a-pool-of-ours", "alice-"),
            ("alice.smith@example.com", "office", "alice-smith-example-"),
            ("-", "office", "u-"),
            ("\u{e4}", "office", "u-"),
        ] {
            let made = desktop_of(user, pool);
            assert!(made.starts_with(name), "{made}");
            assert!(check_name(&made).is_ok(), "{made}");
        }
        // Two people whose names look the same then.
        assert_ne!(desktop_of("a.b", "office"), desktop_of("a_b", "office"));
    }

    proptest! {
        #[test]
        fn every_pair_has_a_name_of_its_own_in_its_pool(
            a in "[a-z0-9._@-]{1,40}", b in "[a-z0-9._@-]{1,40}", pool in "[a-z0-9-]{1,32}"
        ) {
            let name = desktop_of(&a, &pool);
            prop_assert!(check_name(&name).is_ok(), "{name}");
            prop_assert_eq!(a == b, name == desktop_of(&b, &pool));
        }
    }
}
