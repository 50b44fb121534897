//! A screen as a picture file: PPM, and PNG by the compressor that is here anyway. A PNG of one kind of pixels is a header, one
//! compressed stream and checksums; a crate for all kinds would be larger than this.

use std::io::{self, Write};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::canvas::PIXEL_BYTES;
use super::geometry::Size;

/// Which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Portable pixmap: a line of text and the pixels.
    Ppm,
    /// Portable network graphics.
    Png,
}

const PNG_SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Eight bits a channel, red green blue, the only compression and filtering, not interlaced.
const PNG_PIXELS: [u8; 5] = [8, 2, 0, 0, 0];
/// Each row is the difference to the row above: screens repeat downwards.
const PNG_FILTER_UP: u8 = 2;

/// Writes a picture of `pixels` (blue, green, red and one more byte each; `size.pixels()` of them).
///
/// # Errors
/// The writer's, and [`io::ErrorKind::InvalidInput`] if there are too few pixels.
pub fn write(kind: Kind, size: Size, pixels: &[u8], out: &mut impl Write) -> io::Result<()> {
    let Some(pixels) = pixels.get(..size.pixels() * PIXEL_BYTES) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let rows = pixels.chunks_exact(usize::from(size.width) * PIXEL_BYTES);
    let rows = rows.map(|row| {
        let pixels = row.chunks_exact(PIXEL_BYTES);
        pixels.flat_map(|pixel| [pixel[2], pixel[1], pixel[0]])
    });
    match kind {
        Kind::Ppm => {
            write!(out, "P6\n{} {}\n255\n", size.width, size.height)?;
            for row in rows {
                out.write_all(&row.collect::<Vec<u8>>())?;
            }
        }
        Kind::Png => {
            let mut head = Vec::new();
            head.extend(u32::from(size.width).to_be_bytes());
            head.extend(u32::from(size.height).to_be_bytes());
            head.extend(PNG_PIXELS);
            let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
            let mut above = vec![0u8; usize::from(size.width) * 3];
            for row in rows {
                let row: Vec<u8> = row.collect();
                let differences = row
                    .iter()
                    .zip(&above)
                    .map(|(here, up)| here.wrapping_sub(*up));
                let differences: Vec<u8> = differences.collect();
                zlib.write_all(&[PNG_FILTER_UP])?;
                zlib.write_all(&differences)?;
                above = row;
            }
            out.write_all(&PNG_SIGNATURE)?;
            png_chunk(*b"IHDR", &head, out)?;
            png_chunk(*b"IDAT", &zlib.finish()?, out)?;
            png_chunk(*b"IEND", &[], out)?;
        }
    }
    Ok(())
}

fn png_chunk(name: [u8; 4], data: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut crc = Crc::new();
    crc.update(&name);
    crc.update(data);
    // A screen of the largest size is 48 MiB before compression.
    out.write_all(&(data.len() as u32).to_be_bytes())?;
    out.write_all(&name)?;
    out.write_all(data)?;
    out.write_all(&crc.sum().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const BLUE_RED: [u8; 8] = [255, 0, 0, 77, 0, 0, 255, 0];

    fn size(width: u32, height: u32) -> Size {
        Size::shown(width, height).expect("a size")
    }

    #[test]
    fn ppm_is_text_and_red_green_blue() {
        let mut out = Vec::new();
        write(Kind::Ppm, size(2, 1), &BLUE_RED, &mut out).expect("written");
        assert_eq!(out, b"P6\n2 1\n255\n\0\0\xff\xff\0\0");
        let short = write(Kind::Ppm, size(2, 2), &BLUE_RED, &mut out);
        assert!(short.is_err());
    }

    #[test]
    fn png_unpacks_to_the_same_pixels() {
        let mut out = Vec::new();
        write(Kind::Png, size(1, 2), &BLUE_RED, &mut out).expect("written");
        assert_eq!(out[..8], PNG_SIGNATURE);
        let mut chunks = Vec::new();
        let mut rest = &out[8..];
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[..4].try_into().expect("four")) as usize;
            let mut crc = Crc::new();
            crc.update(&rest[4..8 + len]);
            assert_eq!(rest[8 + len..12 + len], crc.sum().to_be_bytes());
            chunks.push((&rest[4..8], &rest[8..8 + len]));
            rest = &rest[12 + len..];
        }
        let names: Vec<_> = chunks.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [b"IHDR", b"IDAT", b"IEND"]);
        assert_eq!(chunks[0].1, [0, 0, 0, 1, 0, 0, 0, 2, 8, 2, 0, 0, 0]);
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(chunks[1].1)
            .read_to_end(&mut rows)
            .expect("a zlib stream");
        // Filter byte, then red, green, blue as difference to the row above.
        assert_eq!(rows, [2, 0, 0, 255, 2, 255, 0, 1]);
    }
}
