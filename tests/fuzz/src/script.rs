//! A fuzzer's bytes read as instructions. Reading never fails: what is not there is missing or shorter.

/// A cursor over the input.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// From the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// The next byte, if there is one.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// The next two bytes as a little-endian number; 0 at the end.
    pub fn word(&mut self) -> u16 {
        let low = self.byte().unwrap_or(0);
        u16::from_le_bytes([low, self.byte().unwrap_or(0)])
    }

    /// The next `len` bytes, or as many as are left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// A length of two bytes, then so many bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.word());
        self.take(len)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Changes `bytes`, up to seven times, as the next bytes say.
    pub fn edit(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.byte().unwrap_or(0) & 7 {
            let (what, at) = (self.byte().unwrap_or(0), usize::from(self.word()));
            // Low places are heads and counts, high ones lie in the bulk: both are reached by a word.
            let at = if what & 0x80 != 0 {
                bytes.len().saturating_sub(at)
            } else {
                at
            };
            let Some(place) = bytes.get_mut(at) else {
                continue;
            };
            match what & 7 {
                0 => *place ^= 1 << (what >> 3 & 7),
                1 | 2 => *place = self.byte().unwrap_or(0),
                3 => *place = place.wrapping_add(1),
                4 => *place = place.wrapping_sub(1),
                5 => bytes.insert(at, self.byte().unwrap_or(0)),
                6 => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
    }
}

/// Writes the form that [`Script::piece`] reads, for seeds.
pub fn piece(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("seeds are small");
    [&len.to_le_bytes()[..], bytes].concat()
}
