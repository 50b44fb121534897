//! A viewer's side of the encodings, for the screen's own format, written from their documents (RFC 6143, rfbproto) apart from the
//! encoders.

use flate2::{Decompress, FlushDecompress};

use super::super::client::Client;
use super::super::encoding;
use crate::screen::{PIXEL_BYTES, Rect, Size, TILE};

/// What a viewer shows: blue, green, red and a byte without meaning.
pub(super) struct Picture {
    pub size: Size,
    pub pixels: Vec<u8>,
}

impl Picture {
    fn at(&self, x: u16, y: u16) -> usize {
        (usize::from(y) * usize::from(self.size.width) + usize::from(x)) * PIXEL_BYTES
    }

    fn put(&mut self, rect: Rect, pixels: &[[u8; 3]]) {
        assert_eq!(pixels.len(), rect.pixels());
        let rows = (rect.y..rect.bottom()).zip(pixels.chunks(rect.width.into()));
        for (y, row) in rows {
            for (x, pixel) in (rect.x..).zip(row) {
                let at = self.at(x, y);
                self.pixels[at..at + 3].copy_from_slice(pixel);
            }
        }
    }

    fn copy(&mut self, to: Rect, x: u16, y: u16) {
        let before = self.pixels.clone();
        let bytes = usize::from(to.width) * PIXEL_BYTES;
        for row in 0..to.height {
            let (from, to) = (self.at(x, y + row), self.at(to.x, to.y + row));
            self.pixels[to..to + bytes].copy_from_slice(&before[from..from + bytes]);
        }
    }
}

/// A zlib stream that goes on.
pub(super) struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    fn unpack(&mut self, packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(1 << 20);
        let before = self.0.total_in();
        self.0
            .decompress_vec(packed, &mut plain, FlushDecompress::Sync)
            .expect("a zlib stream");
        assert_eq!(self.0.total_in() - before, packed.len() as u64);
        plain
    }
}

/// A viewer's side of ZRLE.
pub(super) struct Zrle(pub(super) Inflate);

impl Zrle {
    pub(super) fn unpack(&mut self, packed: &[u8], rect: Rect, picture: &mut Picture) {
        let mut bytes = self.0.unpack(packed).into_iter();
        for y in (rect.y..rect.bottom()).step_by(TILE.into()) {
            for x in (rect.x..rect.right()).step_by(TILE.into()) {
                let tile = Rect::new(x, y, TILE, TILE).intersect(rect);
                picture.put(tile, &Self::tile(&mut bytes, tile));
            }
        }
        assert_eq!(bytes.next(), None, "nothing behind the last tile");
    }

    fn tile(bytes: &mut impl Iterator<Item = u8>, tile: Rect) -> Vec<[u8; 3]> {
        let mut byte = || bytes.next().expect("a byte");
        let kind = byte();
        let pixel = |byte: &mut dyn FnMut() -> u8| [byte(), byte(), byte()];
        let count = tile.pixels();
        let colours = match kind {
            0 | 128 => 0,
            1..=16 => usize::from(kind),
            130.. => usize::from(kind - 128),
            other => panic!("{other} is no kind of tile"),
        };
        let palette: Vec<[u8; 3]> = (0..colours).map(|_| pixel(&mut byte)).collect();
        let mut pixels = Vec::new();
        match kind {
            0 => pixels.extend((0..count).map(|_| pixel(&mut byte))),
            1 => pixels.resize(count, palette[0]),
            2..=16 => {
                let bits = match kind {
                    2 => 1,
                    3..=4 => 2,
                    _ => 4,
                };
                for _ in 0..tile.height {
                    let (mut here, mut left) = (0, 0);
                    for _ in 0..tile.width {
                        if left == 0 {
                            (here, left) = (byte(), 8);
                        }
                        left -= bits;
                        pixels.push(palette[usize::from(here >> left & ((1 << bits) - 1))]);
                    }
                }
            }
            _ => {
                while pixels.len() < count {
                    let (colour, is_run) = if kind == 128 {
                        (pixel(&mut byte), true)
                    } else {
                        let index = byte();
                        (palette[usize::from(index & 0x7f)], index & 0x80 != 0)
                    };
                    let (mut len, mut more) = (1, if is_run { 255 } else { 0 });
                    while more == 255 {
                        more = byte();
                        len += usize::from(more);
                    }
                    pixels.extend(std::iter::repeat_n(colour, len));
                }
                assert_eq!(pixels.len(), count, "runs end with the tile");
            }
        }
        pixels
    }
}

/// A viewer's side of Tight.
#[derive(Default)]
struct Tight([Inflate; 4]);

impl Tight {
    fn len(client: &mut Client) -> usize {
        let (mut len, mut shift) = (0, 0);
        loop {
            let [byte] = client.read().expect("a length");
            if shift == 14 {
                return len | usize::from(byte) << shift;
            }
            len |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return len;
            }
            shift += 7;
        }
    }

    fn data(&mut self, client: &mut Client, stream: usize, len: usize) -> Vec<u8> {
        if len < 12 {
            return client.read_bytes(len).expect("pixels");
        }
        let packed = Self::len(client);
        let packed = client.read_bytes(packed).expect("pixels");
        let plain = self.0[stream].unpack(&packed);
        assert_eq!(plain.len(), len);
        plain
    }

    /// Blue, green, red.
    fn pixels(rgb: &[u8]) -> Vec<[u8; 3]> {
        rgb.chunks_exact(3)
            .map(|rgb| [rgb[2], rgb[1], rgb[0]])
            .collect()
    }

    /// Whether it was lossy.
    fn rect(&mut self, client: &mut Client, rect: Rect, picture: &mut Picture) -> bool {
        let [control] = client.read().expect("a control byte");
        for (bit, stream) in self.0.iter_mut().enumerate() {
            if control >> bit & 1 == 1 {
                *stream = Inflate::default();
            }
        }
        let stream = usize::from(control >> 4 & 3);
        let (width, height) = (usize::from(rect.width), usize::from(rect.height));
        match control >> 4 {
            8 => {
                let pixel = Self::pixels(&client.read::<3>().expect("a pixel"))[0];
                picture.put(rect, &vec![pixel; rect.pixels()]);
            }
            9 => {
                let len = Self::len(client);
                let jpeg = client.read_bytes(len).expect("a picture");
                let mut decoder = jpeg_decoder::Decoder::new(jpeg.as_slice());
                let rgb = decoder.decode().expect("a JPEG picture");
                picture.put(rect, &Self::pixels(&rgb));
                return true;
            }
            0..4 => {
                let rgb = self.data(client, stream, rect.pixels() * 3);
                picture.put(rect, &Self::pixels(&rgb));
            }
            4..8 => {
                let [filter, last] = client.read().expect("a filter");
                assert_eq!(filter, 1, "a palette");
                let colours = usize::from(last) + 1;
                let palette = client.read_bytes(3 * colours).expect("a palette");
                let palette = Self::pixels(&palette);
                let row_bytes = if colours == 2 {
                    width.div_ceil(8)
                } else {
                    width
                };
                let numbers = self.data(client, stream, row_bytes * height);
                let mut pixels = Vec::new();
                for row in numbers.chunks(row_bytes) {
                    pixels.extend((0..width).map(|x| {
                        palette[usize::from(if colours == 2 {
                            row[x / 8] >> (7 - x % 8) & 1
                        } else {
                            row[x]
                        })]
                    }));
                }
                picture.put(rect, &pixels);
            }
            other => panic!("{other} is no kind of rectangle"),
        }
        false
    }
}

/// All of them together.
pub(super) struct Decoder {
    pub picture: Picture,
    zrle: Zrle,
    tight: Tight,
    /// Moves, and rectangles that were lossy.
    pub moves: usize,
    pub lossy: usize,
    /// Bytes are not counted by the client: rectangles with pixels are.
    pub rects: usize,
}

impl Decoder {
    pub(super) fn new(size: Size) -> Self {
        Self {
            picture: Picture {
                size,
                pixels: vec![0; size.pixels() * PIXEL_BYTES],
            },
            zrle: Zrle(Inflate::default()),
            tight: Tight::default(),
            moves: 0,
            lossy: 0,
            rects: 0,
        }
    }

    /// Reads an update.
    pub(super) fn update(&mut self, client: &mut Client) {
        for _ in 0..client.read_update().expect("an update") {
            let (rect, kind) = client.read_head().expect("a rectangle");
            match kind {
                encoding::LAST_RECT => break,
                encoding::COPY_RECT => {
                    let [a, b, c, d] = client.read().expect("a place");
                    let (x, y) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    self.picture.copy(rect, x, y);
                    self.moves += 1;
                    continue;
                }
                encoding::RAW => {
                    let pixels = client.read_bytes(rect.pixels() * PIXEL_BYTES);
                    let pixels = pixels.expect("pixels");
                    let pixels = pixels.chunks_exact(PIXEL_BYTES).map(|p| [p[0], p[1], p[2]]);
                    self.picture.put(rect, &pixels.collect::<Vec<_>>());
                }
                encoding::ZRLE => {
                    let len = u32::from_be_bytes(client.read().expect("a length"));
                    let packed = client.read_bytes(len as usize).expect("pixels");
                    self.zrle.unpack(&packed, rect, &mut self.picture);
                }
                encoding::TIGHT => {
                    let lossy = self.tight.rect(client, rect, &mut self.picture);
                    self.lossy += usize::from(lossy);
                }
                other => panic!("encoding {other} was not asked for"),
            }
            self.rects += 1;
        }
    }
}
