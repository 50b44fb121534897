//! Whether a host's processor has all that a guest found on another's.
//!
//! A guest looks once, at its start, at what its processor can, and relies on it ever after. So a host may have more than the one where a
//! machine was saved, but nothing less, and the maker must be the same.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX as BY_INDEX, kvm_cpuid_entry2 as Entry};

/// Registers that an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    fn of(self, entry: &Entry) -> u32 {
        match self {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        }
    }
}

/// Where features are told, one a bit (Intel SDM, volume 2, CPUID; AMD APM, volume 3, appendix E; KVM's own).
const FEATURES: [(u32, u32, Register); 14] = [
    (1, 0, Ecx),
    (1, 0, Edx),
    (7, 0, Ebx),
    (7, 0, Ecx),
    (7, 0, Edx),
    (7, 1, Eax),
    (7, 1, Edx),
    (0xd, 0, Eax),
    (0xd, 1, Eax),
    (0x8000_0001, 0, Ecx),
    (0x8000_0001, 0, Edx),
    (0x8000_0007, 0, Edx),
    (0x8000_0008, 0, Ebx),
    (0x4000_0001, 0, Eax),
];

/// Names of those that differ between servers as a rule; others are told by their place.
const NAMES: [(u32, Register, u32, &str); 20] = [
    (1, Ecx, 13, "cx16"),
    (1, Ecx, 12, "fma"),
    (1, Ecx, 20, "sse4.2"),
    (1, Ecx, 23, "popcnt"),
    (1, Ecx, 24, "tsc-deadline"),
    (1, Ecx, 26, "xsave"),
    (1, Ecx, 28, "avx"),
    (1, Ecx, 29, "f16c"),
    (1, Ecx, 30, "rdrand"),
    (7, Ebx, 3, "bmi1"),
    (7, Ebx, 5, "avx2"),
    (7, Ebx, 8, "bmi2"),
    (7, Ebx, 16, "avx512f"),
    (7, Ebx, 18, "rdseed"),
    (7, Ebx, 29, "sha"),
    (7, Ecx, 2, "umip"),
    (7, Ecx, 3, "pku"),
    (7, Ecx, 16, "la57"),
    (0x8000_0001, Edx, 27, "rdtscp"),
    (0x8000_0007, Edx, 8, "invariant-tsc"),
];

/// The answer that KVM gives a guest with this list: the first that fits, and one that is not told apart by its index fits all.
fn find(entries: &[Entry], function: u32, index: u32) -> Option<&Entry> {
    let mut entries = entries.iter();
    entries.find(|entry| {
        entry.function == function && (entry.index == index || entry.flags & BY_INDEX == 0)
    })
}

fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let mut names = NAMES.iter();
    let known =
        names.find(|name| index == 0 && (name.0, name.1, name.2) == (function, register, bit));
    known.map_or_else(
        || format!("CPUID {function:#x}.{index} {register:?} bit {bit}").to_lowercase(),
        |name| name.3.to_owned(),
    )
}

/// What a guest that was told `saved` would miss where guests are told `here`; nothing, if it can go on.
pub fn missing(saved: &[Entry], here: &[Entry]) -> Vec<String> {
    let maker = |entries| {
        find(entries, 0, 0).map_or([0; 3], |entry: &Entry| [entry.ebx, entry.edx, entry.ecx])
    };
    if maker(saved) != maker(here) {
        let text = |entries| {
            let bytes: Vec<u8> = maker(entries)
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        return vec![format!(
            "it is by {:?}, this one by {:?}",
            text(saved),
            text(here)
        )];
    }
    let mut missing = Vec::new();
    for (function, index, register) in FEATURES {
        let of = |entries| find(entries, function, index).map_or(0, |entry| register.of(entry));
        let lost = of(saved) & !of(here);
        let bits = (0..32).filter(|bit| lost & 1 << bit != 0);
        missing.extend(bits.map(|bit| name(function, index, register, bit)));
    }
    let address_bits = |entries| find(entries, 0x8000_0008, 0).map_or(0, |entry| entry.eax & 0xff);
    if address_bits(saved) > address_bits(here) {
        let (saved, here) = (address_bits(saved), address_bits(here));
        missing.push(format!(
            "{saved} bits of physical addresses, here are {here}"
        ));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> Entry {
        let [eax, ebx, ecx, edx] = registers;
        Entry {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Entry::default()
        }
    }

    #[test]
    fn more_is_no_difference_and_less_is_named() {
        let maker = entry(0, [7, 1, 2, 3]);
        let old = [maker, entry(1, [5, 0, 1 << 26, 0])];
        let new = [
            maker,
            entry(1, [6, 9, 1 << 28 | 1 << 26, 0]),
            entry(7, [0, 1 << 5 | 1 << 19, 0, 0]),
        ];
        assert!(missing(&old, &new).is_empty());
        assert_eq!(
            missing(&new, &old),
            ["avx", "avx2", "cpuid 0x7.0 ebx bit 19"]
        );
    }

    #[test]
    fn a_list_that_is_made_up_is_read_as_kvm_reads_it() {
        let maker = entry(0, [7, 1, 2, 3]);
        let plain = Entry {
            flags: BY_INDEX,
            ..entry(7, [0, 1 << 5, 0, 0])
        };
        // Before the real one, and for any index.
        let forged = Entry {
            index: 9,
            ..entry(7, [0, 1 << 16, 0, 0])
        };
        let told = missing(&[maker, forged, plain], &[maker, plain]);
        assert_eq!(told, ["avx512f"]);
    }

    #[test]
    fn other_makers_and_narrower_addresses_are_told() {
        let intel = [entry(
            0,
            [
                0,
                u32::from_le_bytes(*b"Genu"),
                u32::from_le_bytes(*b"ntel"),
                u32::from_le_bytes(*b"ineI"),
            ],
        )];
        let none: &[Entry] = &[];
        let told = missing(&intel, none);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("GenuineIntel"), "{told:?}");
        let (wide, narrow) = (
            entry(0x8000_0008, [0x302e, 0, 0, 0]),
            entry(0x8000_0008, [0x3027, 0, 0, 0]),
        );
        assert!(missing(&[narrow], &[wide]).is_empty());
        assert_eq!(
            missing(&[wide], &[narrow]),
            ["46 bits of physical addresses, here are 39"]
        );
    }
}
