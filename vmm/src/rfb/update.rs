//! Updates in their wire form.

use super::pixel::{PixelFormat, Translator};
use super::wire::{encoding, to_client};
use super::wishes::{Pseudo, Update};
use super::zrle::Zrle;
use crate::screen::{Cursor, PIXEL_BYTES, Rect};

/// Encodes for one viewer.
pub(super) struct Encoder {
    translator: Translator,
    zrle: Option<Zrle>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            translator: Translator::new(PixelFormat::NATIVE),
            zrle: None,
        }
    }
}

fn head(x: u16, y: u16, width: u16, height: u16, encoding: i32, out: &mut Vec<u8>) {
    for field in [x, y, width, height] {
        out.extend(field.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

impl Encoder {
    /// The beginning of an update: all that is not pixels of the screen. Its rectangles must follow, all of them.
    pub(super) fn begin(&mut self, update: &Update, out: &mut Vec<u8>) {
        if self.translator.format() != update.format {
            self.translator = Translator::new(update.format);
        }
        // A screen has 64 by 64 tiles at most, so this has 16 bits.
        let count = update.pseudo.len() + update.rects.len();
        out.extend([to_client::UPDATE, 0]);
        out.extend((count as u16).to_be_bytes());
        for pseudo in &update.pseudo {
            self.pseudo(pseudo, out);
        }
    }

    fn pseudo(&self, pseudo: &Pseudo, out: &mut Vec<u8>) {
        match pseudo {
            Pseudo::DesktopSize(size) => {
                head(0, 0, size.width, size.height, encoding::DESKTOP_SIZE, out);
            }
            Pseudo::Layout { size, answer } => {
                let (reason, status) = answer.map_or((0, 0), |answer| (1, answer as u16));
                let kind = encoding::EXTENDED_DESKTOP_SIZE;
                head(reason, status, size.width, size.height, kind, out);
                // One screen, number 0, at the upper left, without flags.
                out.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                out.extend(size.width.to_be_bytes());
                out.extend(size.height.to_be_bytes());
                out.extend([0; 4]);
            }
            Pseudo::Keys => head(0, 0, 0, 0, encoding::QEMU_KEYS, out),
            Pseudo::Cursor(cursor) => self.cursor(cursor, out),
        }
    }

    /// Pixels, and which of them are shown: those that are rather opaque.
    fn cursor(&self, cursor: &Cursor, out: &mut Vec<u8>) {
        let Cursor {
            width,
            height,
            hot_x,
            hot_y,
            pixels,
        } = cursor;
        head(*hot_x, *hot_y, *width, *height, encoding::CURSOR, out);
        if *width == 0 {
            return;
        }
        self.translator.raw(pixels, out);
        for row in pixels.chunks_exact(usize::from(*width) * PIXEL_BYTES) {
            for pixels in row.chunks(8 * PIXEL_BYTES) {
                let mut byte = 0u8;
                for (place, pixel) in pixels.chunks_exact(PIXEL_BYTES).enumerate() {
                    byte |= (pixel[3] >> 7) << (7 - place);
                }
                out.push(byte);
            }
        }
    }

    /// A rectangle of an update that has begun, with its pixels.
    pub(super) fn rect(&mut self, update: &Update, rect: Rect, pixels: &[u8], out: &mut Vec<u8>) {
        let kind = if update.zrle {
            encoding::ZRLE
        } else {
            encoding::RAW
        };
        head(rect.x, rect.y, rect.width, rect.height, kind, out);
        if update.zrle {
            let zrle = self.zrle.get_or_insert_default();
            zrle.encode(&self.translator, rect.width, pixels, out);
        } else {
            self.translator.raw(pixels, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::wishes::SizeAnswer;
    use super::*;
    use crate::screen::Size;

    fn begun(pseudo: Vec<Pseudo>) -> Vec<u8> {
        let update = Update {
            format: PixelFormat::NATIVE,
            zrle: false,
            pseudo,
            rects: vec![Rect::new(0, 0, 1, 1)],
            fence: Vec::new(),
        };
        let mut out = Vec::new();
        Encoder::default().begin(&update, &mut out);
        out
    }

    #[test]
    fn sizes_and_keys_are_rectangles_without_pixels() {
        let size = Size::new(1024, 768).expect("a size");
        let answer = Some(SizeAnswer::Invalid);
        let out = begun(vec![
            Pseudo::Keys,
            Pseudo::DesktopSize(size),
            Pseudo::Layout { size, answer },
        ]);
        let expected = [
            [0, 0, 0, 4].as_slice(),
            &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xfe, 0xfe],
            &[0, 0, 0, 0, 4, 0, 3, 0, 0xff, 0xff, 0xff, 0x21],
            &[0, 1, 0, 3, 4, 0, 3, 0, 0xff, 0xff, 0xfe, 0xcc],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0, 0],
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn pointers_have_a_mask_of_whole_bytes_a_row() {
        let mut pixels = Vec::new();
        for at in 0..18u8 {
            pixels.extend([at, 0, 0, if at % 9 == 8 { 255 } else { 127 }]);
        }
        let cursor = Cursor {
            width: 9,
            height: 2,
            hot_x: 3,
            hot_y: 1,
            pixels: pixels.clone(),
        };
        let out = begun(vec![Pseudo::Cursor(Arc::new(cursor))]);
        assert_eq!(out[4..16], [0, 3, 0, 1, 0, 9, 0, 2, 0xff, 0xff, 0xff, 0x11]);
        assert_eq!(out[16..16 + pixels.len()], pixels);
        assert_eq!(out[16 + pixels.len()..], [0, 0x80, 0, 0x80]);
        let none = begun(vec![Pseudo::Cursor(Arc::default())]);
        assert_eq!(none.len(), 16);
    }
}
