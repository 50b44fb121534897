//! ZRLE (RFC 6143, section 7.7.6): tiles of 64 by 64 as palettes and runs, whichever is shortest, in one zlib stream that lasts as long
//! as its viewer.

use super::deflate::Deflate;
use super::palette::Palette;
use super::pixel::Translator;
use crate::screen::{PIXEL_BYTES, TILE};

/// Most colours of a palette with runs.
const PALETTE_MAX: usize = 127;
/// Most colours of a palette with packed pixels.
const PACKED_MAX: usize = 16;
const RAW: u8 = 0;
const PLAIN_RUNS: u8 = 128;

/// See the module.
pub(super) struct Zrle {
    zlib: Deflate,
    palette: Palette,
    /// Before compression.
    plain: Vec<u8>,
    values: Vec<u32>,
}

impl Zrle {
    /// A new stream. Its level stays as it is: viewers cannot be told to begin it anew.
    pub(super) fn new(level: u32) -> Self {
        Self {
            zlib: Deflate::new(level),
            palette: Palette::new(PALETTE_MAX),
            plain: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Encodes the pixels of a rectangle that is `width` wide: four bytes of length, and what zlib makes of its tiles.
    pub(super) fn encode(
        &mut self,
        translator: &Translator,
        width: u16,
        pixels: &[u8],
        out: &mut Vec<u8>,
    ) {
        let (width, tile) = (usize::from(width), usize::from(TILE));
        self.plain.clear();
        for band in pixels.chunks(width * PIXEL_BYTES * tile) {
            for x in (0..width).step_by(tile) {
                let tile_width = tile.min(width - x);
                self.values.clear();
                for row in band.chunks_exact(width * PIXEL_BYTES) {
                    let row = &row[x * PIXEL_BYTES..(x + tile_width) * PIXEL_BYTES];
                    translator.values(row, &mut self.values);
                }
                let (palette, plain) = (&mut self.palette, &mut self.plain);
                encode_tile(translator, palette, tile_width, &self.values, plain);
            }
        }
        let start = out.len();
        out.extend([0; 4]);
        self.zlib.put(&self.plain, out);
        let len = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }
}

/// Colours and lengths of runs, in order.
fn runs(values: &[u32]) -> impl Iterator<Item = (u32, usize)> {
    let runs = values.chunk_by(|a, b| a == b);
    runs.map(|run| (run[0], run.len()))
}

/// Bytes that a run's length takes.
fn len_bytes(len: usize) -> usize {
    (len - 1) / 255 + 1
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    let rest = len - 1;
    out.extend(std::iter::repeat_n(255, rest / 255));
    out.push((rest % 255) as u8);
}

/// Bits of a packed pixel.
fn packed_bits(colours: usize) -> usize {
    match colours {
        ..=2 => 1,
        3..=4 => 2,
        _ => 4,
    }
}

fn encode_tile(
    translator: &Translator,
    palette: &mut Palette,
    width: usize,
    values: &[u32],
    out: &mut Vec<u8>,
) {
    let pixel = translator.compact_bytes();
    let fits = palette.count(values.iter().copied());
    let palette = &*palette;
    let colours = if fits {
        palette.colours().len()
    } else {
        usize::MAX
    };
    let put_palette = |kind: usize, out: &mut Vec<u8>| {
        out.push(kind as u8);
        for colour in palette.colours() {
            translator.compact(*colour, out);
        }
    };
    let index = |colour: u32| palette.number(colour);
    if colours == 1 {
        put_palette(1, out);
        return;
    }
    let raw = values.len() * pixel;
    let plain_runs: usize = runs(values).map(|(_, len)| pixel + len_bytes(len)).sum();
    let with_palette = |bytes: usize| colours.saturating_mul(pixel).saturating_add(bytes);
    let palette_runs = with_palette(
        runs(values)
            .map(|(_, len)| if len == 1 { 1 } else { 1 + len_bytes(len) })
            .sum(),
    );
    let bits = packed_bits(colours);
    let packed = if colours <= PACKED_MAX {
        with_palette((width * bits).div_ceil(8) * (values.len() / width))
    } else {
        usize::MAX
    };
    let least = raw.min(plain_runs).min(palette_runs).min(packed);
    if least == packed {
        put_palette(colours, out);
        for row in values.chunks(width) {
            for pixels in row.chunks(8 / bits) {
                let mut byte = 0;
                for (place, value) in pixels.iter().enumerate() {
                    byte |= index(*value) << (8 - bits * (place + 1));
                }
                out.push(byte);
            }
        }
    } else if least == palette_runs {
        put_palette(colours | 0x80, out);
        for (colour, len) in runs(values) {
            if len == 1 {
                out.push(index(colour));
            } else {
                out.push(index(colour) | 0x80);
                put_len(len, out);
            }
        }
    } else if least == plain_runs {
        out.push(PLAIN_RUNS);
        for (colour, len) in runs(values) {
            translator.compact(colour, out);
            put_len(len, out);
        }
    } else {
        out.push(RAW);
        for value in values {
            translator.compact(*value, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pixel::PixelFormat;
    use super::*;

    fn tile(width: usize, values: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        let translator = Translator::new(PixelFormat::NATIVE);
        let mut palette = Palette::new(PALETTE_MAX);
        encode_tile(&translator, &mut palette, width, values, &mut out);
        out
    }

    #[test]
    fn the_shortest_form_is_taken() {
        assert_eq!(tile(8, &[0x030201; 64]), [1, 1, 2, 3], "one colour");
        let mut two = [0; 64];
        for at in [1, 20, 40, 63] {
            two[at] = 0xffffff;
        }
        let packed = tile(8, &two);
        assert_eq!(packed[..7], [2, 0, 0, 0, 255, 255, 255]);
        assert_eq!(packed[7..], [0x40, 0, 0x08, 0, 0, 0x80, 0, 1]);
        let mut long = [0; 4096];
        (long[100], long[4095]) = (5, 5);
        let with_runs = [
            [130, 0, 0, 0, 5, 0, 0, 0x80, 99, 1, 0x80].as_slice(),
            &[255; 15],
            &[168, 1],
        ];
        assert_eq!(tile(64, &long), with_runs.concat(), "a palette and runs");
        let many: Vec<u32> = (0..4096).collect();
        let raw = tile(64, &many);
        assert_eq!((raw[0], raw.len()), (RAW, 1 + 3 * 4096));
        let runs: Vec<u32> = (0..4096).map(|at| at / 16).collect();
        let plain = tile(64, &runs);
        assert_eq!((plain[0], plain.len()), (PLAIN_RUNS, 1 + 256 * 4));
        assert_eq!(plain[1..9], [0, 0, 0, 15, 1, 0, 0, 15]);
    }

    #[test]
    fn three_colours_take_two_bits_and_rows_end_with_bytes() {
        let packed = tile(3, &[1, 2, 3, 3, 2, 1]);
        assert_eq!(packed[0], 3);
        assert_eq!(packed[10..], [0b0001_1000, 0b1001_0000]);
    }
}
