//! Pixel formats of clients, and a screen's pixels in them.

use crate::screen::PIXEL_BYTES;

/// Bytes of a format in its wire form.
pub const FORMAT_BYTES: usize = 16;

/// A true-colour format. The colours are red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat {
    bytes: u8,
    depth: u8,
    big_endian: bool,
    max: [u16; 3],
    shift: [u8; 3],
}

/// A format that is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Only 8, 16 and 32 exist.
    #[error("{0} bits a pixel: 8, 16 and 32 are possible")]
    Bits(u8),
    /// Palettes are no longer in use anywhere.
    #[error("colour maps are not served")]
    ColourMap,
    /// Bits beside the pixel.
    #[error("a colour of at most {max} at bit {shift} lies beside a pixel of {bits} bits")]
    Colour {
        /// Its largest value.
        max: u16,
        /// Where it is.
        shift: u8,
        /// Bits of a pixel.
        bits: u8,
    },
}

impl PixelFormat {
    /// The screen's own: 32 bits, blue lowest.
    pub const NATIVE: Self = Self {
        bytes: 4,
        depth: 24,
        big_endian: false,
        max: [255; 3],
        shift: [16, 8, 0],
    };

    /// Reads its wire form.
    ///
    /// # Errors
    /// It is not served.
    pub fn parse(wire: &[u8; FORMAT_BYTES]) -> Result<Self, FormatError> {
        let [
            bits,
            depth,
            big_endian,
            true_colour,
            r0,
            r1,
            g0,
            g1,
            b0,
            b1,
            r,
            g,
            b,
            ..,
        ] = *wire;
        if !matches!(bits, 8 | 16 | 32) {
            return Err(FormatError::Bits(bits));
        }
        if true_colour == 0 {
            return Err(FormatError::ColourMap);
        }
        let max = [[r0, r1], [g0, g1], [b0, b1]].map(u16::from_be_bytes);
        let shift = [r, g, b];
        for (max, shift) in max.into_iter().zip(shift) {
            let used = 16 - max.leading_zeros();
            if u32::from(shift) + used > u32::from(bits) || shift >= bits {
                return Err(FormatError::Colour { max, shift, bits });
            }
        }
        Ok(Self {
            bytes: bits / 8,
            depth,
            big_endian: big_endian != 0,
            max,
            shift,
        })
    }

    /// Its wire form.
    pub fn to_wire(self) -> [u8; FORMAT_BYTES] {
        let mut wire = [0; FORMAT_BYTES];
        wire[..4].copy_from_slice(&[self.bytes * 8, self.depth, self.big_endian.into(), 1]);
        for (index, max) in self.max.iter().enumerate() {
            wire[4 + 2 * index..6 + 2 * index].copy_from_slice(&max.to_be_bytes());
        }
        wire[10..13].copy_from_slice(&self.shift);
        wire
    }
}

/// Turns the screen's pixels into a format.
pub(super) struct Translator {
    format: PixelFormat,
    /// By colour and the screen's value of it: the pixel's bits.
    tables: Box<[[u32; 256]; 3]>,
    /// Which bytes of a pixel in its wire form are sent where unused ones may be left out.
    compact: std::ops::Range<usize>,
}

impl Translator {
    pub(super) fn new(format: PixelFormat) -> Self {
        let mut tables = Box::new([[0; 256]; 3]);
        for (colour, table) in tables.iter_mut().enumerate() {
            let (max, shift) = (u32::from(format.max[colour]), format.shift[colour]);
            for (value, bits) in (0..).zip(table.iter_mut()) {
                *bits = ((value * max + 127) / 255) << shift;
            }
        }
        let used = tables.iter().fold(0, |used, table| used | table[255]);
        let bytes = usize::from(format.bytes);
        // A pixel of ZRLE leaves out the byte in which nothing is, at either end (RFC 6143, section 7.7.5); as the others do it, it is
        // the last one if it could be both.
        let (is_low, is_high) = (used >> 24 == 0, used & 0xff == 0);
        let (without_last, without_first) = if format.big_endian {
            (is_high, is_low)
        } else {
            (is_low, is_high)
        };
        let compact = match (
            bytes == 4 && format.depth <= 24,
            without_last,
            without_first,
        ) {
            (true, true, _) => 0..3,
            (true, false, true) => 1..4,
            _ => 0..bytes,
        };
        Self {
            format,
            tables,
            compact,
        }
    }

    pub(super) fn format(&self) -> PixelFormat {
        self.format
    }

    /// A pixel's bits.
    fn value(&self, pixel: &[u8]) -> u32 {
        let [red, green, blue] = &*self.tables;
        let at = |index: usize| usize::from(pixel[index]);
        red[at(2)] | green[at(1)] | blue[at(0)]
    }

    /// Pixels' bits, behind what is in `out`.
    pub(super) fn values(&self, pixels: &[u8], out: &mut Vec<u32>) {
        let pixels = pixels.chunks_exact(PIXEL_BYTES);
        out.extend(pixels.map(|pixel| self.value(pixel)));
    }

    /// A pixel's bits in the order of its bytes.
    fn bytes(&self, value: u32) -> [u8; 4] {
        let bytes = usize::from(self.format.bytes);
        if self.format.big_endian {
            let mut wire = [0; 4];
            wire[..bytes].copy_from_slice(&value.to_be_bytes()[4 - bytes..]);
            wire
        } else {
            value.to_le_bytes()
        }
    }

    /// Pixels in their wire form.
    pub(super) fn raw(&self, pixels: &[u8], out: &mut Vec<u8>) {
        if self.format == PixelFormat::NATIVE {
            out.extend_from_slice(pixels);
            return;
        }
        let bytes = usize::from(self.format.bytes);
        for pixel in pixels.chunks_exact(PIXEL_BYTES) {
            out.extend_from_slice(&self.bytes(self.value(pixel))[..bytes]);
        }
    }

    /// Whether a pixel of Tight is red, green and blue, a byte each (rfbproto, TPIXEL); otherwise it is as everywhere.
    fn is_24_bit(&self) -> bool {
        let PixelFormat {
            bytes, depth, max, ..
        } = self.format;
        bytes == 4 && depth == 24 && max == [255; 3]
    }

    /// Bytes of a pixel of Tight.
    pub(super) fn tight_bytes(&self) -> usize {
        if self.is_24_bit() {
            3
        } else {
            self.format.bytes.into()
        }
    }

    /// A pixel as Tight has it.
    pub(super) fn tight(&self, value: u32, out: &mut Vec<u8>) {
        if self.is_24_bit() {
            out.extend(self.format.shift.map(|shift| (value >> shift) as u8));
        } else {
            let bytes = usize::from(self.format.bytes);
            out.extend_from_slice(&self.bytes(value)[..bytes]);
        }
    }

    /// Bytes of a pixel where unused ones are left out.
    pub(super) fn compact_bytes(&self) -> usize {
        self.compact.len()
    }

    /// A pixel without unused bytes.
    pub(super) fn compact(&self, value: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes(value)[self.compact.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, depth: u8, big: bool, max: [u16; 3], shift: [u8; 3]) -> PixelFormat {
        PixelFormat {
            bytes: bits / 8,
            depth,
            big_endian: big,
            max,
            shift,
        }
    }

    fn raw(format: PixelFormat, pixel: [u8; 4]) -> Vec<u8> {
        let mut out = Vec::new();
        Translator::new(format).raw(&pixel, &mut out);
        out
    }

    fn compact(format: PixelFormat, pixel: [u8; 4]) -> Vec<u8> {
        let translator = Translator::new(format);
        let (mut values, mut out) = (Vec::new(), Vec::new());
        translator.values(&pixel, &mut values);
        translator.compact(values[0], &mut out);
        assert_eq!(out.len(), translator.compact_bytes());
        out
    }

    /// Blue 1, green 2, red 255.
    const PIXEL: [u8; 4] = [1, 2, 255, 0];

    #[test]
    fn formats_come_through_the_wire() {
        let wire = PixelFormat::NATIVE.to_wire();
        assert_eq!(
            wire,
            [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]
        );
        assert_eq!(PixelFormat::parse(&wire), Ok(PixelFormat::NATIVE));
        let with = |at: usize, value| {
            let mut wire = wire;
            wire[at] = value;
            PixelFormat::parse(&wire)
        };
        assert_eq!(with(0, 24), Err(FormatError::Bits(24)));
        assert_eq!(with(3, 0), Err(FormatError::ColourMap));
        for (at, value) in [(10, 25), (10, 32), (11, 255), (4, 255)] {
            let wrong = with(at, value);
            let is_colour = matches!(wrong, Err(FormatError::Colour { .. }));
            // 16 bits of red at bit 16 still fit.
            assert_eq!(is_colour, (at, value) != (4, 255), "{wrong:?}");
        }
    }

    #[test]
    fn pixels_are_scaled_placed_and_ordered() {
        assert_eq!(raw(PixelFormat::NATIVE, PIXEL), PIXEL);
        let big = format(32, 24, true, [255; 3], [16, 8, 0]);
        assert_eq!(raw(big, PIXEL), [0, 255, 2, 1]);
        let rgb565 = format(16, 16, false, [31, 63, 31], [11, 5, 0]);
        assert_eq!(raw(rgb565, PIXEL), 0xf800u16.to_le_bytes());
        assert_eq!(raw(rgb565, [255, 255, 255, 9]), [0xff, 0xff]);
        let rgb565 = format(16, 16, true, [31, 63, 31], [11, 5, 0]);
        assert_eq!(raw(rgb565, PIXEL), 0xf800u16.to_be_bytes());
        let bgr233 = format(8, 8, false, [7, 7, 3], [0, 3, 6]);
        assert_eq!(raw(bgr233, PIXEL), [7]);
    }

    #[test]
    fn tight_has_red_green_blue_if_there_are_24_bits() {
        let tight = |format| {
            let translator = Translator::new(format);
            let (mut values, mut out) = (Vec::new(), Vec::new());
            translator.values(&PIXEL, &mut values);
            translator.tight(values[0], &mut out);
            assert_eq!(out.len(), translator.tight_bytes());
            out
        };
        assert_eq!(tight(PixelFormat::NATIVE), [255, 2, 1]);
        let other = format(32, 24, true, [255; 3], [0, 8, 16]);
        assert_eq!(tight(other), [255, 2, 1]);
        let deep = format(32, 32, true, [255; 3], [16, 8, 0]);
        assert_eq!(tight(deep), [0, 255, 2, 1]);
        let rgb565 = format(16, 16, false, [31, 63, 31], [11, 5, 0]);
        assert_eq!(tight(rgb565), 0xf800u16.to_le_bytes());
    }

    #[test]
    fn bytes_without_colour_are_left_out() {
        assert_eq!(compact(PixelFormat::NATIVE, PIXEL), [1, 2, 255]);
        let high = format(32, 24, false, [255; 3], [24, 16, 8]);
        assert_eq!(compact(high, PIXEL), [1, 2, 255]);
        let big = format(32, 24, true, [255; 3], [16, 8, 0]);
        assert_eq!(compact(big, PIXEL), [255, 2, 1]);
        let deep = format(32, 32, false, [255; 3], [16, 8, 0]);
        assert_eq!(compact(deep, PIXEL), [1, 2, 255, 0]);
        let wide = format(32, 24, false, [255; 3], [24, 8, 0]);
        assert_eq!(compact(wide, PIXEL), [1, 2, 0, 255]);
        let rgb565 = format(16, 16, false, [31, 63, 31], [11, 5, 0]);
        assert_eq!(compact(rgb565, PIXEL).len(), 2);
    }
}
