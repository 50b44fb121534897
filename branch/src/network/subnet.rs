//! The addresses of a NAT: everything that belongs to a desktop's place follows from its address.
//!
//! ```text
//! 10.213.0.0/22: .0.0 the network   .0.1 the branch   .0.2 … .3.254 desktops   .3.255 everybody
//! ```
//!
//! So DHCP and the rules that keep desktops apart are written once, for all places, and nothing has to be undone when a machine ends.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Shortest and longest prefix: a thousand desktops, or five. Rules are written for each place.
const PREFIXES: std::ops::RangeInclusive<u8> = 22..=29;
/// Before the four bytes of the address: locally administered, one card.
const MAC_HEAD: [u8; 2] = [0x52, 0x53];

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// A range of RFC 1918 that few networks use.
pub const DEFAULT: Subnet = Subnet {
    network: u32::from_be_bytes([10, 213, 0, 0]),
    prefix: 22,
};

impl Subnet {
    fn mask_bits(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }

    /// Its mask.
    pub fn mask(self) -> Ipv4Addr {
        self.mask_bits().into()
    }

    /// The address that is the network's.
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// The branch's own address, where desktops find DHCP, names and the way out.
    pub fn gateway(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// The gateway with the length of the prefix, as `ip` takes it.
    pub fn gateway_with_prefix(self) -> String {
        format!("{}/{}", self.gateway(), self.prefix)
    }

    /// Desktops' addresses, in order.
    pub fn places(self) -> impl Iterator<Item = Ipv4Addr> {
        let everybody = self.network | !self.mask_bits();
        (self.network + 2..everybody).map(Ipv4Addr::from)
    }

    /// An address that no other desktop has: `had`, if it still is one. `None`: all are given away.
    pub fn give(self, had: Option<Ipv4Addr>, others: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let is_free = |place: &Ipv4Addr| !others.contains(place);
        let kept = had.filter(|had| is_free(had) && self.places().any(|place| place == *had));
        kept.or_else(|| self.places().find(is_free))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(network, prefix)| {
            let network: Ipv4Addr = network.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            Some((u32::from(network), prefix))
        });
        if let Some((network, prefix)) = parts
            && PREFIXES.contains(&prefix)
        {
            let this = Self { network, prefix };
            if network & !this.mask_bits() == 0 && this.network().is_private() {
                return Ok(this);
            }
        }
        Err(format!(
            "{text:?}: a private network with a prefix of {} to {} bits is needed, such as {DEFAULT}",
            PREFIXES.start(),
            PREFIXES.end()
        ))
    }
}

/// The hardware address of the card at a place.
pub fn mac_of(place: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = place.octets();
    [MAC_HEAD[0], MAC_HEAD[1], a, b, c, d]
}

/// The name of the tap at a place, within the 15 bytes that a name has.
pub fn tap_of(place: Ipv4Addr) -> String {
    format!("sp{:08x}", u32::from(place))
}

/// A hardware address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_subnet_is_private_whole_and_neither_large_nor_tiny() {
        let subnet: Subnet = "10.213.0.0/22".parse().unwrap();
        assert_eq!(subnet, DEFAULT);
        assert_eq!(subnet.to_string(), "10.213.0.0/22");
        assert_eq!(subnet.gateway_with_prefix(), "10.213.0.1/22");
        assert_eq!(subnet.mask().to_string(), "255.255.252.0");
        let places: Vec<Ipv4Addr> = subnet.places().collect();
        assert_eq!(places.len(), 1021);
        assert_eq!(places[0].to_string(), "10.213.0.2");
        assert_eq!(places[1020].to_string(), "10.213.3.254");
        for wrong in [
            "",
            "10.213.0.0",
            "10.213.0.0/21",
            "10.213.0.0/30",
            "10.213.0.1/24",
            "10.213.1.0/22",
            "8.8.8.0/24",
            "10.213.0.0/-1",
            "fd00::/24",
        ] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_and_hardware_addresses_follow_from_the_place() {
        let place: Ipv4Addr = "10.213.3.254".parse().unwrap();
        assert_eq!(tap_of(place), "sp0ad503fe");
        assert_eq!(mac_text(mac_of(place)), "52:53:0a:d5:03:fe");
        // Not of a group, and given by nobody who makes cards.
        assert_eq!(MAC_HEAD[0] & 3, 2);
    }

    proptest! {
        #[test]
        fn no_place_is_given_twice_and_one_that_was_had_is_kept(
            had in proptest::option::of(0..10u8),
            taken in prop::collection::btree_set(0..10u8, 0..9),
        ) {
            let subnet: Subnet = "192.168.7.0/29".parse().unwrap();
            let at = |last: u8| Ipv4Addr::new(192, 168, 7, last);
            let others: BTreeSet<Ipv4Addr> = taken.into_iter().map(at).collect();
            let free: Vec<Ipv4Addr> = (2..7).map(at).filter(|one| !others.contains(one)).collect();
            let given = subnet.give(had.map(at), &others);
            prop_assert_eq!(given.is_none(), free.is_empty());
            if let Some(given) = given {
                prop_assert!(free.contains(&given));
                let kept = had.map(at).filter(|had| free.contains(had));
                prop_assert!(kept.is_none_or(|kept| kept == given));
            }
        }
    }
}
