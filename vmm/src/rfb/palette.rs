//! The colours of some pixels, numbered in the order in which they come. Looked up once for each run of equal pixels.

/// Most colours that one can have.
pub(super) const COLOURS_MAX: usize = 256;
/// Places to look a colour up: four times as many as colours, so that few share one.
const SLOTS: usize = 4 * COLOURS_MAX;
const SLOT_BITS: u32 = SLOTS.ilog2();

/// See the module.
pub(super) struct Palette {
    max: usize,
    colours: Vec<u32>,
    /// By hash: a colour's number plus one, 0 where none is.
    slots: Box<[u16; SLOTS]>,
}

impl Palette {
    /// An empty one for up to `max` colours, [`COLOURS_MAX`] at most.
    pub(super) fn new(max: usize) -> Self {
        assert!((1..=COLOURS_MAX).contains(&max));
        Self {
            max,
            colours: Vec::with_capacity(max),
            slots: Box::new([0; SLOTS]),
        }
    }

    /// Its colours by their number.
    pub(super) fn colours(&self) -> &[u32] {
        &self.colours
    }

    /// Becomes the palette of these pixels; false, and of no use, if they have too many colours.
    pub(super) fn count(&mut self, values: impl IntoIterator<Item = u32>) -> bool {
        self.colours.clear();
        self.slots.fill(0);
        self.add(values)
    }

    /// Takes more pixels' colours in; false if they are too many.
    pub(super) fn add(&mut self, values: impl IntoIterator<Item = u32>) -> bool {
        let mut last = None;
        for value in values {
            if last == Some(value) {
                continue;
            }
            last = Some(value);
            let slot = self.slot(value);
            if self.slots[slot] == 0 {
                if self.colours.len() == self.max {
                    return false;
                }
                self.colours.push(value);
                self.slots[slot] = self.colours.len() as u16;
            }
        }
        true
    }

    /// A colour's number. It has one if it was counted.
    pub(super) fn number(&self, value: u32) -> u8 {
        self.slots[self.slot(value)].wrapping_sub(1) as u8
    }

    /// Where a colour is, or would be. There is always a free place.
    fn slot(&self, value: u32) -> usize {
        let mut slot = (value.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOT_BITS)) as usize;
        loop {
            match usize::from(self.slots[slot]) {
                0 => return slot,
                number if self.colours[number - 1] == value => return slot,
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_numbered_as_they_come_until_they_are_too_many() {
        let mut palette = Palette::new(COLOURS_MAX);
        assert!(palette.count([7, 7, 9, 7, 0]));
        assert_eq!(palette.colours(), [7, 9, 0]);
        assert_eq!([7, 9, 0].map(|value| palette.number(value)), [0, 1, 2]);
        // Multiples of the number of places would share one if they were not mixed.
        let many = || (0..256).map(|at| at * 1024);
        assert!(palette.count(many()));
        for (number, value) in many().enumerate() {
            assert_eq!(usize::from(palette.number(value)), number);
        }
        assert!(palette.add([5 * 1024, 1024]), "nothing new");
        assert!(!palette.add([1]), "one too many");
        let mut two = Palette::new(2);
        assert!(two.count([1, 2, 1]) && !two.count([1, 2, 3]));
    }
}
