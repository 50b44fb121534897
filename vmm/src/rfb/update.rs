//! Updates in their wire form.

use super::pixel::{PixelFormat, Translator};
use super::tight::Tight;
use super::wire::{encoding, to_client};
use super::wishes::{CursorForm, Form, Pseudo, Update};
use super::zrle::Zrle;
use crate::screen::{Cursor, PIXEL_BYTES, Rect};

/// The count of an update that ends with a rectangle that says so (LastRect).
const UNCOUNTED: u16 = u16::MAX;

/// Encodes for one viewer.
pub(super) struct Encoder {
    translator: Translator,
    zrle: Option<Zrle>,
    tight: Option<Tight>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            translator: Translator::new(PixelFormat::NATIVE),
            zrle: None,
            tight: None,
        }
    }
}

/// Whether an update's rectangles are cut into an unknown number of pieces.
fn is_cut(update: &Update) -> bool {
    update.last_rect && matches!(update.form, Form::Tight { .. }) && !update.rects.is_empty()
}

fn head(x: u16, y: u16, width: u16, height: u16, encoding: i32, out: &mut Vec<u8>) {
    for field in [x, y, width, height] {
        out.extend(field.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

impl Encoder {
    /// The beginning of an update: all that is not pixels of the screen. Its rectangles must follow, all of them, and its end.
    pub(super) fn begin(&mut self, update: &Update, out: &mut Vec<u8>) {
        if self.translator.format() != update.format {
            self.translator = Translator::new(update.format);
        }
        if !update.sizes.is_empty() {
            out.extend([to_client::UPDATE, 0]);
            out.extend((update.sizes.len() as u16).to_be_bytes());
            for size in &update.sizes {
                self.pseudo(size, out);
            }
        }
        // A screen has 64 by 64 tiles at most, so this has 16 bits.
        let count = update.pseudo.len() + usize::from(update.change.is_some()) + update.rects.len();
        if count == 0 {
            return;
        }
        let count = if is_cut(update) {
            UNCOUNTED
        } else {
            count as u16
        };
        out.extend([to_client::UPDATE, 0]);
        out.extend(count.to_be_bytes());
        for pseudo in &update.pseudo {
            self.pseudo(pseudo, out);
        }
        if let Some(change) = update.change {
            let Rect {
                x,
                y,
                width,
                height,
            } = change.to;
            head(x, y, width, height, encoding::COPY_RECT, out);
            out.extend(change.x.to_be_bytes());
            out.extend(change.y.to_be_bytes());
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
            Pseudo::MoreButtons => head(0, 0, 0, 0, encoding::MORE_BUTTONS, out),
            Pseudo::Cursor(cursor, CursorForm::Mask) => self.cursor(cursor, out),
            Pseudo::Cursor(cursor, CursorForm::Alpha) => alpha_cursor(cursor, out),
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
        let Rect {
            x,
            y,
            width,
            height,
        } = rect;
        match update.form {
            Form::Raw => {
                head(x, y, width, height, encoding::RAW, out);
                self.translator.raw(pixels, out);
            }
            Form::Zrle => {
                head(x, y, width, height, encoding::ZRLE, out);
                let zrle = self.zrle.get_or_insert_with(|| Zrle::new(update.level));
                zrle.encode(&self.translator, width, pixels, out);
            }
            Form::Tight { quality } => {
                let tight = self.tight.get_or_insert_with(|| Tight::new(update.level));
                tight.set_level(update.level);
                let pieces = tight.cut(&self.translator, width, pixels, is_cut(update));
                for (from, piece) in pieces {
                    head(x + from, y, piece, height, encoding::TIGHT, out);
                    let band = (width, pixels);
                    tight.encode(&self.translator, quality, band, (from, piece), out);
                }
            }
        }
    }

    /// The end of an update, behind its last rectangle.
    pub(super) fn end(&self, update: &Update, out: &mut Vec<u8>) {
        if is_cut(update) {
            head(0, 0, 0, 0, encoding::LAST_RECT, out);
        }
        out.extend_from_slice(&update.fence);
    }
}

/// Red, green, blue and opacity. Guests' colours are those of what is drawn, darkened by their opacity; here they are not.
fn alpha_cursor(cursor: &Cursor, out: &mut Vec<u8>) {
    let Cursor {
        width,
        height,
        hot_x,
        hot_y,
        pixels,
    } = cursor;
    head(*hot_x, *hot_y, *width, *height, encoding::ALPHA_CURSOR, out);
    // An image with opacity, and a byte without meaning.
    out.extend([1, 0]);
    for pixel in pixels.chunks_exact(PIXEL_BYTES) {
        let alpha = u16::from(pixel[3]);
        let colour = |value: u8| match alpha {
            0 => 0,
            alpha => (u16::from(value) * 255 / alpha).min(255) as u8,
        };
        out.extend([
            colour(pixel[2]),
            colour(pixel[1]),
            colour(pixel[0]),
            pixel[3],
        ]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::wishes::SizeAnswer;
    use super::*;
    use crate::screen::Size;

    fn begun(sizes: Vec<Pseudo>, pseudo: Vec<Pseudo>) -> Vec<u8> {
        let update = Update {
            format: PixelFormat::NATIVE,
            form: Form::Raw,
            level: 2,
            last_rect: false,
            sizes,
            pseudo,
            change: None,
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
        let out = begun(
            vec![Pseudo::DesktopSize(size), Pseudo::Layout { size, answer }],
            vec![Pseudo::Keys, Pseudo::MoreButtons],
        );
        let expected = [
            [0, 0, 0, 2].as_slice(),
            &[0, 0, 0, 0, 4, 0, 3, 0, 0xff, 0xff, 0xff, 0x21],
            &[0, 1, 0, 3, 4, 0, 3, 0, 0xff, 0xff, 0xfe, 0xcc],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0, 0],
            &[0, 0, 0, 3],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xfe, 0xfe],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xfe, 0xc4],
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
        let cursor = Arc::new(cursor);
        let out = begun(
            Vec::new(),
            vec![Pseudo::Cursor(Arc::clone(&cursor), CursorForm::Mask)],
        );
        assert_eq!(out[4..16], [0, 3, 0, 1, 0, 9, 0, 2, 0xff, 0xff, 0xff, 0x11]);
        assert_eq!(out[16..16 + pixels.len()], pixels);
        assert_eq!(out[16 + pixels.len()..], [0, 0x80, 0, 0x80]);
        let none = Pseudo::Cursor(Arc::default(), CursorForm::Mask);
        assert_eq!(begun(Vec::new(), vec![none]).len(), 16);
        let alpha = begun(Vec::new(), vec![Pseudo::Cursor(cursor, CursorForm::Alpha)]);
        assert_eq!(alpha[12..18], [0x57, 0x4d, 0x56, 0x64, 1, 0]);
        assert_eq!(alpha[18..26], [0, 0, 0, 127, 0, 0, 2, 127]);
        assert_eq!(alpha[18 + 8 * 4..18 + 9 * 4], [0, 0, 8, 255]);
    }
}
