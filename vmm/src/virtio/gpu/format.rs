//! Pixel formats of 2D resources (virtio 1.2, section 5.7.6.8). A format's name is the order of its bytes in memory.

use crate::screen::PIXEL_BYTES;

/// A format: four bytes a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Bgra = 1,
    Bgrx = 2,
    Argb = 3,
    Xrgb = 4,
    Rgba = 67,
    Xbgr = 68,
    Abgr = 121,
    Rgbx = 134,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Bgra,
        Self::Bgrx,
        Self::Argb,
        Self::Xrgb,
        Self::Rgba,
        Self::Xbgr,
        Self::Abgr,
        Self::Rgbx,
    ];

    /// The format of that number.
    pub fn from_wire(number: u32) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|format| *format as u32 == number)
    }

    /// Where in a pixel blue, green, red and opacity are; no opacity means that all is opaque.
    fn places(self) -> ([usize; 3], Option<usize>) {
        match self {
            Self::Bgra => ([0, 1, 2], Some(3)),
            Self::Bgrx => ([0, 1, 2], None),
            Self::Argb => ([3, 2, 1], Some(0)),
            Self::Xrgb => ([3, 2, 1], None),
            Self::Rgba => ([2, 1, 0], Some(3)),
            Self::Xbgr => ([1, 2, 3], None),
            Self::Abgr => ([1, 2, 3], Some(0)),
            Self::Rgbx => ([2, 1, 0], None),
        }
    }

    /// Turns pixels into blue, green, red, opacity, where they are.
    pub fn to_bgra(self, pixels: &mut [u8]) {
        if self == Self::Bgra {
            return;
        }
        let ([blue, green, red], opacity) = self.places();
        for pixel in pixels.chunks_exact_mut(PIXEL_BYTES) {
            let opacity = opacity.map_or(0xff, |at| pixel[at]);
            let turned = [pixel[blue], pixel[green], pixel[red], opacity];
            pixel.copy_from_slice(&turned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_become_the_same_pixel() {
        let (b, g, r, a, x) = (1, 2, 3, 4, 99);
        for (number, bytes, opacity) in [
            (1, [b, g, r, a], a),
            (2, [b, g, r, x], 0xff),
            (3, [a, r, g, b], a),
            (4, [x, r, g, b], 0xff),
            (67, [r, g, b, a], a),
            (68, [x, b, g, r], 0xff),
            (121, [a, b, g, r], a),
            (134, [r, g, b, x], 0xff),
        ] {
            let format = Format::from_wire(number).expect("a format");
            let mut pixels = [bytes, bytes].concat();
            format.to_bgra(&mut pixels);
            assert_eq!(pixels, [[b, g, r, opacity]; 2].concat(), "{format:?}");
        }
        assert_eq!(Format::from_wire(0), None);
    }
}
