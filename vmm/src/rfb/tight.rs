//! Tight (rfbproto, section "Tight Encoding"): one colour, a palette, JPEG or plain pixels, whichever suits what is shown.
//!
//! Text and drawings have few colours and go as palettes, without loss, whatever quality a viewer wishes. JPEG is for what has more
//! colours than a palette holds, and only for viewers that named a quality. What must not be lossy is thus a matter of what is shown, not
//! of settings.
//!
//! A band of tiles may be cut into pieces where that changes, for viewers that need no count of rectangles before (LastRect).

use jpeg_encoder::{ColorType, Encoder};

use super::deflate::Deflate;
use super::palette::{COLOURS_MAX, Palette};
use super::pixel::Translator;
#[cfg(doc)]
use crate::screen::RECT_WIDTH_MAX;
use crate::screen::{PIXEL_BYTES, TILE};

/// Less than this is not compressed, and has no length before it.
const PLAIN_BYTES_MAX: usize = 12;
/// JPEG's quality by the level that a viewer wishes, as TurboVNC and its kin have it.
const QUALITIES: [u8; 10] = [15, 29, 41, 42, 62, 77, 79, 86, 92, 100];

/// The control byte's upper half.
mod control {
    pub(super) const WITH_FILTER: u8 = 0x40;
    pub(super) const FILL: u8 = 0x80;
    pub(super) const JPEG: u8 = 0x90;
}
/// The filter that says that pixels are numbers in a palette.
const FILTER_PALETTE: u8 = 1;

/// Streams of zlib: what is alike is in one, so that each helps the next.
#[derive(Clone, Copy)]
enum Stream {
    Pixels = 0,
    Bits = 1,
    Numbers = 2,
}

/// What a tile is like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Even(u32),
    Few,
    Many,
}

/// See the module.
pub(super) struct Tight {
    level: u32,
    streams: [Option<Deflate>; 3],
    /// Streams that the viewer has to begin anew, a bit each.
    anew: u8,
    palette: Palette,
    /// Another one, of a single tile.
    tile: Palette,
    /// Pixels of the band, and of the piece that is being encoded.
    band: Vec<u32>,
    piece: Vec<u32>,
    /// Bytes before compression, and what JPEG reads.
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Tight {
    /// Streams of this level of zlib.
    pub(super) fn new(level: u32) -> Self {
        Self {
            level,
            streams: [None, None, None],
            anew: 0,
            palette: Palette::new(COLOURS_MAX),
            tile: Palette::new(COLOURS_MAX),
            band: Vec::new(),
            piece: Vec::new(),
            plain: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// From now on with this level; streams begin anew if it is another one.
    pub(super) fn set_level(&mut self, level: u32) {
        if self.level != level {
            self.level = level;
            for (bit, stream) in self.streams.iter_mut().enumerate() {
                if stream.take().is_some() {
                    self.anew |= 1 << bit;
                }
            }
        }
    }

    /// Reads a band of pixels that is `width` wide and at most a tile high, and cuts it: where pieces begin and how wide they are. One
    /// that is not to be cut is one piece. Each must then be encoded.
    pub(super) fn cut(
        &mut self,
        translator: &Translator,
        width: u16,
        pixels: &[u8],
        is_cut: bool,
    ) -> Vec<(u16, u16)> {
        self.band.clear();
        translator.values(pixels, &mut self.band);
        if !is_cut {
            return vec![(0, width)];
        }
        let mut pieces: Vec<(u16, u16)> = Vec::new();
        let mut before = None;
        for x in (0..width).step_by(TILE.into()) {
            let tile_width = TILE.min(width - x);
            let columns = columns(&self.band, width, x, tile_width);
            let kind = match self.tile.count(columns.clone()) {
                true if self.tile.colours().len() == 1 => Kind::Even(self.tile.colours()[0]),
                true => Kind::Few,
                false => Kind::Many,
            };
            let goes_on = before == Some(kind)
                && (kind != Kind::Few || self.palette.add(self.tile.colours().iter().copied()));
            match pieces.last_mut() {
                Some(last) if goes_on => last.1 += tile_width,
                _ => {
                    pieces.push((x, tile_width));
                    if kind == Kind::Few {
                        self.palette.count(self.tile.colours().iter().copied());
                    }
                }
            }
            before = Some(kind);
        }
        pieces
    }

    /// Encodes a piece of the band that was cut. `pixels` is the whole band.
    pub(super) fn encode(
        &mut self,
        translator: &Translator,
        quality: Option<u8>,
        (width, pixels): (u16, &[u8]),
        (x, piece_width): (u16, u16),
        out: &mut Vec<u8>,
    ) {
        self.piece.clear();
        self.piece
            .extend(columns(&self.band, width, x, piece_width));
        let few = self.palette.count(self.piece.iter().copied());
        let colours = self.palette.colours().len();
        if few && colours == 1 {
            out.push(control::FILL | std::mem::take(&mut self.anew));
            translator.tight(self.piece[0], out);
        } else if few && (colours == 2 || translator.tight_bytes() > 1) {
            self.put_palette(translator, piece_width, out);
        } else {
            let quality = quality.filter(|_| translator.tight_bytes() > 1);
            let is_lossy = quality.is_some_and(|quality| {
                self.packed.clear();
                for row in pixels.chunks_exact(usize::from(width) * PIXEL_BYTES) {
                    let (from, to) = (usize::from(x), usize::from(x) + usize::from(piece_width));
                    self.packed
                        .extend_from_slice(&row[from * PIXEL_BYTES..to * PIXEL_BYTES]);
                }
                self.put_jpeg(quality, piece_width, out)
            });
            if !is_lossy {
                self.plain.clear();
                for value in &self.piece {
                    translator.tight(*value, &mut self.plain);
                }
                out.push((Stream::Pixels as u8) << 4 | std::mem::take(&mut self.anew));
                self.put_plain(Stream::Pixels, out);
            }
        }
    }

    fn put_palette(&mut self, translator: &Translator, width: u16, out: &mut Vec<u8>) {
        let colours = self.palette.colours().len();
        let stream = if colours == 2 {
            Stream::Bits
        } else {
            Stream::Numbers
        };
        let anew = std::mem::take(&mut self.anew);
        out.push(control::WITH_FILTER | (stream as u8) << 4 | anew);
        out.extend([FILTER_PALETTE, (colours - 1) as u8]);
        for colour in self.palette.colours() {
            translator.tight(*colour, out);
        }
        self.plain.clear();
        let numbers = self.piece.iter().map(|value| self.palette.number(*value));
        match stream {
            Stream::Bits => {
                let numbers: Vec<u8> = numbers.collect();
                for row in numbers.chunks(width.into()) {
                    let bytes = row.chunks(8).map(|bits| {
                        let bits = bits.iter().enumerate();
                        bits.fold(0, |byte, (at, bit)| byte | bit << (7 - at))
                    });
                    self.plain.extend(bytes);
                }
            }
            _ => self.plain.extend(numbers),
        }
        self.put_plain(stream, out);
    }

    /// What is in `plain`, with its length if it is compressed.
    fn put_plain(&mut self, stream: Stream, out: &mut Vec<u8>) {
        if self.plain.len() < PLAIN_BYTES_MAX {
            out.extend_from_slice(&self.plain);
            return;
        }
        let level = self.level;
        let zlib = self.streams[stream as usize].get_or_insert_with(|| Deflate::new(level));
        self.packed.clear();
        zlib.put(&self.plain, &mut self.packed);
        put_len(self.packed.len(), out);
        out.extend_from_slice(&self.packed);
    }

    /// What is in `packed` as JPEG; false, and nothing is put, if that cannot be.
    fn put_jpeg(&mut self, quality: u8, width: u16, out: &mut Vec<u8>) -> bool {
        let rows = self.packed.len() / (usize::from(width) * PIXEL_BYTES);
        let quality = QUALITIES[usize::from(quality).min(QUALITIES.len() - 1)];
        self.plain.clear();
        let jpeg = Encoder::new(&mut self.plain, quality);
        let encoded = jpeg.encode(&self.packed, width, rows as u16, ColorType::Bgra);
        if let Err(error) = encoded {
            // Only for sizes that there are none of here.
            tracing::debug!(%error, width, rows, "no JPEG of a rectangle; it goes without loss");
            return false;
        }
        out.push(control::JPEG | std::mem::take(&mut self.anew));
        put_len(self.plain.len(), out);
        out.extend_from_slice(&self.plain);
        true
    }
}

/// Pixels of some columns of a band, row after row.
fn columns(band: &[u32], width: u16, x: u16, columns: u16) -> impl Iterator<Item = u32> + Clone {
    let (x, columns) = (usize::from(x), usize::from(columns));
    let rows = band.chunks_exact(width.into());
    rows.flat_map(move |row| row[x..x + columns].iter().copied())
}

/// A length of up to 22 bits, seven at a time, lowest first. The widest band ([`RECT_WIDTH_MAX`]) has
/// 512 KiB before compression.
fn put_len(len: usize, out: &mut Vec<u8>) {
    let low = (len & 0x7f) as u8;
    match len {
        0..0x80 => out.push(low),
        0x80..0x4000 => out.extend([low | 0x80, (len >> 7) as u8]),
        _ => out.extend([low | 0x80, (len >> 7) as u8 | 0x80, (len >> 14) as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pixel::PixelFormat;
    use super::*;

    /// A band of pixels as a canvas has them.
    fn pixels(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
        values.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn encoded(tight: &mut Tight, quality: Option<u8>, width: u16, pixels: &[u8]) -> Vec<u8> {
        let translator = Translator::new(PixelFormat::NATIVE);
        let mut out = Vec::new();
        for piece in tight.cut(&translator, width, pixels, false) {
            tight.encode(&translator, quality, (width, pixels), piece, &mut out);
        }
        out
    }

    #[test]
    fn each_kind_has_its_form() {
        let mut tight = Tight::new(2);
        let even = pixels([0x0a_0b_0c; 64]);
        assert_eq!(
            encoded(&mut tight, None, 8, &even),
            [0x80, 0x0a, 0x0b, 0x0c]
        );
        let two = pixels((0..18).map(|at| u32::from(at % 9 == 8) * 0xffffff));
        let bits = [0x50, 1, 1, 0, 0, 0, 255, 255, 255, 0, 0x80, 0, 0x80];
        assert_eq!(
            encoded(&mut tight, None, 9, &two),
            bits,
            "too short for zlib"
        );
        let three = pixels([1, 2, 3]);
        let numbers = [0x60, 1, 2, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 1, 2];
        assert_eq!(encoded(&mut tight, Some(9), 3, &three), numbers, "no loss");
        let many = pixels((0..4096).map(|at| (at * 4099) & 0xffffff));
        let plain = encoded(&mut tight, None, 64, &many);
        assert_eq!(plain[0], 0x00);
        let lossy = encoded(&mut tight, Some(6), 64, &many);
        assert_eq!(lossy[0], 0x90);
        let len = usize::from(lossy[1] & 0x7f) | usize::from(lossy[2] & 0x7f) << 7;
        assert_eq!(lossy[3..5], [0xff, 0xd8], "a JPEG image");
        assert_eq!(lossy.len(), 3 + len);
        let better = encoded(&mut tight, Some(9), 64, &many);
        assert!(better.len() > lossy.len());
    }

    #[test]
    fn another_level_begins_the_streams_in_use_anew() {
        let mut tight = Tight::new(2);
        let three = pixels((0..64).map(|at| at % 3));
        assert_eq!(encoded(&mut tight, None, 64, &three)[0], 0x60);
        tight.set_level(5);
        tight.set_level(5);
        let anew = encoded(&mut tight, None, 64, &three);
        assert_eq!(anew[0], 0x64, "stream 2");
        assert_eq!(anew[12 + 1..12 + 3], [0x78, 0x5e], "a head of zlib");
        assert_eq!(encoded(&mut tight, None, 64, &three)[0], 0x60);
    }

    #[test]
    fn a_band_is_cut_where_its_kind_changes() {
        let mut band = Vec::new();
        for y in 0..2u32 {
            // Two even tiles of one colour, one of another, text, a picture of two tiles, text of other colours.
            band.extend([5; 128]);
            band.extend([6; 64]);
            band.extend((0..64).map(|at| at % 2));
            band.extend((0..128).map(|at| 0x10000 + at * 1000 + y));
            band.extend((0..30).map(|at| at % 3));
        }
        // A picture has more colours than a palette holds only when it is higher.
        let width = (band.len() / 2) as u16;
        let mut tall = Vec::new();
        for y in 0..64u32 {
            let row = &band[..usize::from(width)];
            tall.extend(
                row.iter()
                    .map(|value| if *value >= 0x10000 { value + y } else { *value }),
            );
        }
        let translator = Translator::new(PixelFormat::NATIVE);
        let mut tight = Tight::new(2);
        let pieces = tight.cut(&translator, width, &pixels(tall), true);
        assert_eq!(
            pieces,
            [(0, 128), (128, 64), (192, 64), (256, 128), (384, 30)]
        );
    }

    #[test]
    fn lengths_have_seven_bits_a_byte() {
        let len = |len| {
            let mut out = Vec::new();
            put_len(len, &mut out);
            out
        };
        assert_eq!(len(0x7f), [0x7f]);
        assert_eq!(len(0x80), [0x80, 0x01]);
        assert_eq!(len(10_000), [0x90, 0x4e]);
        assert_eq!(len(0x3fff), [0xff, 0x7f]);
        assert_eq!(len(0x4000), [0x80, 0x80, 0x01]);
        assert_eq!(len(0x3f_ffff), [0xff, 0xff, 0xff]);
    }
}
