//! How often anybody may try to log in: so many attempts from an address, so many in all.
//!
//! A token bucket for each address and one over all; time is an argument. Invariant: memory is bounded ([`ADDRESSES_MAX`]), and an address that is forgotten
//! for room counts as fresh, which the bucket over all still bounds. An IPv6 customer has a /64, so that counts as one address. It knows no
//! accounts: those lock themselves.

use std::collections::HashMap;
use std::net::IpAddr;

/// Attempts that an address may make at once.
const BURST: u64 = 10;
/// Seconds after which it may make one more.
const EVERY_S: u64 = 6;
/// Attempts that all may make at once: a company at nine o'clock.
const BURST_ALL: u64 = 200;
/// So many more each second, what stretching passwords on one core keeps up with.
const PER_S_ALL: u64 = 4;
/// Most addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// Attempts that were made, as seconds that they cost and that pass.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// When it is empty.
    empty_unix_s: u64,
}

impl Bucket {
    /// For how many seconds nobody may; 0: now, and it is counted.
    fn take(&mut self, now_unix_s: u64) -> u64 {
        let begin = self.empty_unix_s.max(now_unix_s);
        let full = now_unix_s.saturating_add(BURST * EVERY_S);
        // A clock that was set back does not keep anybody out for long.
        let begin = begin.min(full);
        self.empty_unix_s = begin;
        if begin.saturating_add(EVERY_S) > full {
            return begin + EVERY_S - full;
        }
        self.empty_unix_s = begin + EVERY_S;
        0
    }
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    addresses: HashMap<IpAddr, Bucket>,
    left: u64,
    filled_unix_s: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            addresses: HashMap::new(),
            left: BURST_ALL,
            filled_unix_s: 0,
        }
    }
}

impl Gate {
    /// Counts an attempt from an address; or says in how many seconds to try again.
    pub fn pass(&mut self, from: IpAddr, now_unix_s: u64) -> Result<(), u64> {
        let passed = now_unix_s.saturating_sub(self.filled_unix_s);
        self.left = BURST_ALL.min(self.left.saturating_add(passed.saturating_mul(PER_S_ALL)));
        self.filled_unix_s = now_unix_s;
        if self.left == 0 {
            return Err(1);
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses
                .retain(|_, bucket| bucket.empty_unix_s > now_unix_s);
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.clear();
        }
        let bucket = self.addresses.entry(site(from)).or_default();
        match bucket.take(now_unix_s) {
            0 => {
                self.left -= 1;
                Ok(())
            }
            wait_s => Err(wait_s),
        }
    }
}

/// Whom an address stands for.
pub(super) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) >> 64 << 64;
            std::net::Ipv6Addr::from(prefix).into()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + last).into()
    }

    #[test]
    fn an_address_may_try_ten_times_and_then_once_in_six_seconds() {
        let (mut gate, now) = (Gate::default(), 1_000_000);
        for _ in 0..BURST {
            gate.pass(address(1), now).unwrap();
        }
        assert_eq!(gate.pass(address(1), now), Err(EVERY_S));
        assert_eq!(gate.pass(address(1), now + 5), Err(1));
        gate.pass(address(1), now + 6).unwrap();
        assert!(gate.pass(address(1), now + 6).is_err());
        gate.pass(address(2), now).unwrap();
    }

    #[test]
    fn all_together_are_bounded_however_many_addresses_they_have() {
        let (mut gate, now) = (Gate::default(), 1_000_000);
        let passed = (0..20_000).filter(|i| gate.pass(address(*i), now).is_ok());
        assert_eq!(passed.count() as u64, BURST_ALL);
        assert!(gate.addresses.len() <= ADDRESSES_MAX);
        let passed = (0..100).filter(|i| gate.pass(address(*i), now + 2).is_ok());
        assert_eq!(passed.count() as u64, 2 * PER_S_ALL);
    }

    #[test]
    fn neighbours_of_ipv6_are_one() {
        let site_of = |text: &str| site(text.parse().unwrap());
        assert_eq!(site_of("2001:db8:1:2::3"), site_of("2001:db8:1:2:ffff::1"));
        assert_ne!(site_of("2001:db8:1:2::3"), site_of("2001:db8:1:3::3"));
        assert_eq!(site_of("::ffff:10.0.0.1"), address(1));
    }

    #[test]
    fn a_clock_set_back_keeps_nobody_out_for_long() {
        let mut gate = Gate::default();
        for _ in 0..BURST {
            gate.pass(address(1), 2_000_000).unwrap();
        }
        assert_eq!(gate.pass(address(1), 1_000_000), Err(EVERY_S));
        gate.pass(address(1), 1_000_006).unwrap();
    }
}
