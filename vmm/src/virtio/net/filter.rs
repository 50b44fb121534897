//! Which packets a card hands to its guest, and the commands by which a driver says so (virtio 1.2, section 5.1.6.5).
//!
//! A bridge floods what it knows no place for: without a filter each flooded packet wakes every guest. A card may hand on more than was
//! asked for, never less. Invariant: a table has [`ADDRESSES_MAX`] addresses; a longer one stands for all.

use serde::{Deserialize, Serialize};

/// A hardware address.
pub type Mac = [u8; 6];

/// Addresses of a table, as other cards have it. A desktop has a few groups.
const ADDRESSES_MAX: usize = 64;
/// The longest command that is read: two tables of a thousand addresses.
pub(super) const COMMAND_BYTES_MAX: usize = 12 << 10;
const MAC_BYTES: usize = 6;

/// Answers.
pub(super) const OK: u8 = 0;
pub(super) const ERROR: u8 = 1;

/// Classes of commands, and the commands of each.
mod class {
    pub(super) const MODE: u8 = 0;
    pub(super) const MAC: u8 = 1;
}
mod mode {
    pub(super) const PROMISCUOUS: u8 = 0;
    pub(super) const ALL_GROUPS: u8 = 1;
}
mod mac {
    pub(super) const TABLES: u8 = 0;
    pub(super) const ADDRESS: u8 = 1;
}

/// Addresses to be handed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Table {
    All,
    These(Vec<Mac>),
}

impl Table {
    fn has(&self, address: &Mac) -> bool {
        match self {
            Self::All => true,
            Self::These(addresses) => addresses.contains(address),
        }
    }

    /// Takes a table from the beginning of `bytes`.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk()?;
        let count = u32::from_le_bytes(*count) as usize;
        let len = count.checked_mul(MAC_BYTES)?;
        let (addresses, rest) = rest.split_at_checked(len)?;
        *bytes = rest;
        if count > ADDRESSES_MAX {
            return Some(Self::All);
        }
        let (addresses, _) = addresses.as_chunks();
        Some(Self::These(addresses.to_vec()))
    }
}

/// Whether a card can have this address: a group's is nobody's own.
pub(super) fn is_own(mac: &Mac) -> bool {
    mac[0] & 1 == 0
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    own: Mac,
    promiscuous: bool,
    all_groups: bool,
    single: Table,
    groups: Table,
}

impl Filter {
    /// One that hands everything on until its driver says otherwise.
    pub(super) fn new(own: Mac) -> Self {
        Self {
            own,
            promiscuous: true,
            all_groups: true,
            single: Table::These(Vec::new()),
            groups: Table::These(Vec::new()),
        }
    }

    /// The card's address.
    pub(super) fn own(&self) -> Mac {
        self.own
    }

    /// Whether commands can have led to it: one of a snapshot may be anything.
    pub(super) fn is_sound(&self) -> bool {
        let fits = |table: &Table| match table {
            Table::All => true,
            Table::These(addresses) => addresses.len() <= ADDRESSES_MAX,
        };
        is_own(&self.own) && fits(&self.single) && fits(&self.groups)
    }

    /// Whether a packet with this destination is handed on.
    pub(super) fn passes(&self, destination: &Mac) -> bool {
        let is_group = destination[0] & 1 == 1;
        self.promiscuous
            || *destination == self.own
            || *destination == [0xff; MAC_BYTES]
            || is_group && (self.all_groups || self.groups.has(destination))
            || !is_group && self.single.has(destination)
    }

    /// Does a command; its answer.
    pub(super) fn run(&mut self, command: &[u8]) -> u8 {
        match self.try_run(command) {
            Some(()) => OK,
            None => ERROR,
        }
    }

    fn try_run(&mut self, command: &[u8]) -> Option<()> {
        let ([class, command], mut body) = command.split_first_chunk()?;
        match (*class, *command) {
            (class::MODE, command) => {
                let on = *body.first()? != 0;
                match command {
                    mode::PROMISCUOUS => self.promiscuous = on,
                    mode::ALL_GROUPS => self.all_groups = on,
                    _ => return None,
                }
            }
            (class::MAC, mac::TABLES) => {
                let single = Table::take(&mut body)?;
                self.groups = Table::take(&mut body)?;
                self.single = single;
            }
            (class::MAC, mac::ADDRESS) => {
                let own: Mac = *body.first_chunk()?;
                is_own(&own).then(|| self.own = own)?;
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: Mac = [0x52, 0x54, 0, 9, 9, 9];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

    fn table(addresses: &[Mac]) -> Vec<u8> {
        let mut bytes = (addresses.len() as u32).to_le_bytes().to_vec();
        bytes.extend(addresses.as_flattened());
        bytes
    }

    #[test]
    fn everything_passes_until_the_driver_says_otherwise() {
        let mut filter = Filter::new(OWN);
        assert!(filter.passes(&OTHER) && filter.passes(&GROUP));
        assert_eq!(filter.run(&[0, 0, 0]), OK);
        assert!(!filter.passes(&OTHER) && filter.passes(&GROUP));
        assert_eq!(filter.run(&[0, 1, 0]), OK);
        assert!(!filter.passes(&GROUP));
        assert!(filter.passes(&OWN) && filter.passes(&[0xff; 6]));
        let tables = [&[1, 0], table(&[OTHER]).as_slice(), &table(&[GROUP])].concat();
        assert_eq!(filter.run(&tables), OK);
        assert!(filter.passes(&OTHER) && filter.passes(&GROUP));
        assert!(!filter.passes(&[0x52, 0, 0, 0, 0, 0]) && !filter.passes(&[0x33, 0, 0, 0, 0, 0]));
        let many = [&[1, 0], table(&[]).as_slice(), &table(&[GROUP; 65])].concat();
        assert_eq!(filter.run(&many), OK);
        assert!(!filter.passes(&OTHER) && filter.passes(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(filter.run(&[&[1, 1], OTHER.as_slice()].concat()), OK);
        assert!(filter.passes(&OTHER) && !filter.passes(&OWN));
        assert_eq!(filter.own(), OTHER);
    }

    #[test]
    fn no_command_leads_to_a_table_that_is_too_long_or_to_a_groups_address() {
        let mut filter = Filter::new(OWN);
        filter.groups = Table::These(vec![GROUP; ADDRESSES_MAX]);
        assert!(filter.is_sound());
        filter.groups = Table::These(vec![GROUP; ADDRESSES_MAX + 1]);
        assert!(!filter.is_sound());
        assert!(!Filter::new(GROUP).is_sound());
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut filter = Filter::new(OWN);
        assert_eq!(filter.run(&[0, 0, 0]), OK);
        let half = [&[1, 0], table(&[OTHER]).as_slice(), &[9, 0, 0, 0]].concat();
        for wrong in [
            [].as_slice(),
            &[0],
            &[0, 0],
            &[0, 9, 1],
            &[1, 0, 1, 0, 0, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff],
            &half,
            &[1, 1, 1, 2, 3, 4, 5, 6],
            &[1, 1, 2],
            &[2, 0, 0, 0],
            &[255, 255],
        ] {
            assert_eq!(filter.run(wrong), ERROR, "{wrong:?}");
            assert!(filter.passes(&OWN) && !filter.passes(&OTHER));
        }
    }

    proptest! {
        #[test]
        fn no_command_keeps_a_card_from_its_own_packets(
            commands in prop::collection::vec((0u8..3, 0u8..3, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let mut filter = Filter::new(OWN);
            for (class, command, body) in commands {
                filter.run(&[&[class, command], body.as_slice()].concat());
                prop_assert!(filter.passes(&filter.own()) && filter.passes(&[0xff; 6]));
                prop_assert!(filter.is_sound());
            }
        }
    }
}
