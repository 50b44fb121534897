//! MSI-X (PCI 3.0, section 6.8.2): a table in a BAR that says where each of a function's interrupts goes.
//!
//! A vector that is masked holds its interrupt back; the pending bits tell of that.

use crate::machine::interrupts::{InterruptError, Message};

/// Number of the capability.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_BYTES: usize = 16;
/// Where in the capability message control's high byte is.
pub const CONTROL_HIGH: usize = 3;
/// In that byte.
pub const ENABLE: u8 = 1 << 7;
/// See [`ENABLE`].
pub const MASK_ALL: u8 = 1 << 6;

/// In an entry's last word.
const MASKED: u32 = 1;

/// The body of the capability: table at `table` and pending bits at `pending` in BAR 0.
pub fn capability(vectors: usize, table: u32, pending: u32) -> [u8; 10] {
    let mut body = [0; 10];
    body[..2].copy_from_slice(&(vectors as u16 - 1).to_le_bytes());
    body[2..6].copy_from_slice(&table.to_le_bytes());
    body[6..].copy_from_slice(&pending.to_le_bytes());
    body
}

/// Where a vector's interrupts go. What the table is of, so that it can be tested without KVM.
pub trait Vector: Send {
    /// Delivers from now on.
    fn connect(&mut self, address: u64, data: u32);
    /// Holds back from now on.
    fn disconnect(&mut self);
    /// Whether something is held back.
    fn is_pending(&self) -> bool;
}

/// What a guest may have in its table is the guest's affair, and KVM refuses it as often as it is written: debug level.
fn told(done: Result<(), InterruptError>, what: &str) {
    if let Err(error) = done {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(error, "{what}");
    }
}

impl Vector for Message {
    fn connect(&mut self, address: u64, data: u32) {
        told(
            Self::connect(self, address, data),
            "interrupt not connected",
        );
    }

    fn disconnect(&mut self) {
        told(Self::disconnect(self), "interrupt not disconnected");
    }

    fn is_pending(&self) -> bool {
        Self::is_pending(self)
    }
}

struct Entry<V> {
    words: [u32; 4],
    vector: V,
}

/// See the module.
pub struct Msix<V> {
    entries: Vec<Entry<V>>,
    enabled: bool,
    masked: bool,
}

impl<V: Vector> Msix<V> {
    /// A table for these interrupts, all masked.
    pub fn new(vectors: Vec<V>) -> Self {
        let entry = |vector| Entry {
            words: [0, 0, 0, MASKED],
            vector,
        };
        Self {
            entries: vectors.into_iter().map(entry).collect(),
            enabled: false,
            masked: false,
        }
    }

    /// Interrupts in it.
    pub fn vectors(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|entry| &entry.vector)
    }

    /// The guest wrote message control's high byte.
    pub fn control(&mut self, high: u8) {
        (self.enabled, self.masked) = (high & ENABLE != 0, high & MASK_ALL != 0);
        for index in 0..self.entries.len() {
            self.show(index);
        }
    }

    fn show(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        let [low, high, data, control] = entry.words;
        if self.enabled && !self.masked && control & MASKED == 0 {
            entry
                .vector
                .connect(u64::from(high) << 32 | u64::from(low), data);
        } else {
            entry.vector.disconnect();
        }
    }

    /// Reads from the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let bytes = |at: usize| {
            let entry = self.entries.get(at / ENTRY_BYTES)?;
            Some(entry.words[at % ENTRY_BYTES / 4].to_le_bytes()[at % 4])
        };
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes(at).unwrap_or(0);
        }
    }

    /// Writes a word or two of the table; other widths are not allowed and do nothing.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return;
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            if let Some(entry) = self.entries.get_mut(at / ENTRY_BYTES) {
                let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
                entry.words[at % ENTRY_BYTES / 4] = word;
            }
        }
        let last = (offset + data.len() - 1) / ENTRY_BYTES;
        for index in offset / ENTRY_BYTES..=last {
            if index < self.entries.len() {
                self.show(index);
            }
        }
    }

    /// Reads pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let bits = self.entries.iter().skip(at.saturating_mul(8)).take(8);
            *byte = bits
                .enumerate()
                .map(|(bit, entry)| u8::from(entry.vector.is_pending()) << bit)
                .sum();
        }
    }

    /// All entries as words, for a snapshot.
    pub fn table(&self) -> Vec<[u32; 4]> {
        self.entries.iter().map(|entry| entry.words).collect()
    }

    /// Which interrupts are held back.
    pub fn pending(&self) -> Vec<bool> {
        let entries = self.entries.iter();
        entries.map(|entry| entry.vector.is_pending()).collect()
    }

    /// Takes up a table. Nothing is delivered before message control is told again.
    pub fn restore(&mut self, table: &[[u32; 4]]) {
        self.control(0);
        for (entry, words) in self.entries.iter_mut().zip(table) {
            entry.words = *words;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        to: Option<(u64, u32)>,
    }

    impl Vector for Fake {
        fn connect(&mut self, address: u64, data: u32) {
            self.to = Some((address, data));
        }
        fn disconnect(&mut self) {
            self.to = None;
        }
        fn is_pending(&self) -> bool {
            self.to.is_none()
        }
    }

    fn filled() -> Msix<Fake> {
        let mut msix = Msix::new((0..10).map(|_| Fake::default()).collect());
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &[0x41, 0, 0, 0]);
        msix
    }

    fn to(msix: &Msix<Fake>) -> Option<(u64, u32)> {
        msix.vectors().nth(1).and_then(|vector| vector.to)
    }

    #[test]
    fn a_vector_delivers_when_nothing_masks_it() {
        let mut msix = filled();
        assert_eq!(to(&msix), None);
        msix.control(ENABLE | MASK_ALL);
        msix.write_table(28, &[0; 4]);
        assert_eq!(to(&msix), None, "all are masked");
        msix.control(ENABLE);
        assert_eq!(to(&msix), Some((0xfee0_1000, 0x41)));
        msix.write_table(28, &[1, 0, 0, 0]);
        assert_eq!(to(&msix), None);
        msix.write_table(28, &[0; 4]);
        msix.control(0);
        assert_eq!(to(&msix), None);
    }

    #[test]
    fn a_table_that_is_taken_up_delivers_as_before() {
        let mut before = filled();
        before.control(ENABLE);
        before.write_table(28, &[0; 4]);
        let mut after = Msix::new((0..10).map(|_| Fake::default()).collect());
        after.restore(&before.table());
        assert_eq!(to(&after), None, "message control comes later");
        after.control(ENABLE);
        assert_eq!(after.table(), before.table());
        assert_eq!(
            (to(&after), after.pending()),
            (to(&before), before.pending())
        );
    }

    #[test]
    fn pending_bits_and_odd_accesses() {
        let mut msix = filled();
        msix.control(ENABLE);
        msix.write_table(28, &[0; 4]);
        let mut bits = [0; 4];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0b1111_1101, 0b11, 0, 0]);
        msix.write_table(29, &[9; 4]);
        msix.write_table(28, &[9]);
        msix.write_table(usize::MAX - 15, &[9; 8]);
        let mut word = [9; 8];
        msix.read_table(24, &mut word);
        assert_eq!(word, [0x41, 0, 0, 0, 0, 0, 0, 0]);
        msix.read_table(10 * 16, &mut word);
        assert_eq!(word, [0; 8]);
    }
}
