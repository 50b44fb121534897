//! What the monitor says of itself (VESA E-EDID 1.4): one mode, that of the asked size, with CVT's reduced blanking.

use crate::screen::Size;

/// Bytes of it: one block, no extensions.
pub(super) const EDID_BYTES: usize = 128;

/// Refreshes a second. Nothing is sent by it: guests draw at most so often.
const REFRESH_HZ: u64 = 60;
/// Size of a pixel: 96 to the inch.
const MICRONS_PER_PIXEL: u32 = 265;

/// CVT 1.2, reduced blanking version 1: pixels beside a row, lines before the pulse, least lines behind it, least blanking time.
const H_BLANK: u16 = 160;
const H_FRONT: u16 = 48;
const H_SYNC: u16 = 32;
const V_FRONT: u16 = 3;
const V_BACK_MIN: u16 = 6;
const V_BLANK_US: u64 = 460;
/// Pixel clocks are multiples of 250 kHz; an EDID has 16 bits for 10 kHz steps, so very large screens refresh less often.
const CLOCK_STEP_10_KHZ: u64 = 25;

/// A mode's timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timing {
    clock_10_khz: u16,
    v_blank: u16,
    v_sync: u16,
}

fn timing(size: Size) -> Timing {
    let (width, height) = (u64::from(size.width), u64::from(size.height));
    // CVT tells a screen's proportions by the length of the vertical pulse.
    let v_sync = [(4, 3, 4), (16, 9, 5), (16, 10, 6), (5, 4, 7), (15, 9, 7)]
        .into_iter()
        .find_map(|(w, h, lines)| (width * h == height * w).then_some(lines))
        .unwrap_or(10);
    // Lines that pass in the least blanking time when the others take the rest of a refresh. One more covers what is cut off.
    let lines_time_us = 1_000_000 / REFRESH_HZ - V_BLANK_US;
    let least = (V_BLANK_US * height / lines_time_us) as u16 + 1;
    let v_blank = least.max(V_FRONT + v_sync + V_BACK_MIN);
    let total = (width + u64::from(H_BLANK)) * (height + u64::from(v_blank));
    let clock = REFRESH_HZ * total / 10_000 / CLOCK_STEP_10_KHZ * CLOCK_STEP_10_KHZ;
    Timing {
        clock_10_khz: u16::try_from(clock.max(1)).unwrap_or(u16::MAX),
        v_blank,
        v_sync,
    }
}

/// The detailed timing descriptor of a size.
fn descriptor(size: Size) -> [u8; 18] {
    let Timing {
        clock_10_khz,
        v_blank,
        v_sync,
    } = timing(size);
    let mm = |pixels: u16| (u32::from(pixels) * MICRONS_PER_PIXEL / 1000) as u16;
    let (width_mm, height_mm) = (mm(size.width), mm(size.height));
    let high = |upper: u16, lower: u16| ((upper >> 8) << 4 | lower >> 8) as u8;
    let clock = clock_10_khz.to_le_bytes();
    [
        clock[0],
        clock[1],
        size.width as u8,
        H_BLANK as u8,
        high(size.width, H_BLANK),
        size.height as u8,
        v_blank as u8,
        high(size.height, v_blank),
        H_FRONT as u8,
        H_SYNC as u8,
        ((V_FRONT & 0xf) << 4 | v_sync & 0xf) as u8,
        // The pulses' and porches' upper bits: none is so long.
        0,
        width_mm as u8,
        height_mm as u8,
        high(width_mm, height_mm),
        0,
        0,
        // Digital, separate pulses, horizontal positive, vertical negative, as reduced blanking is told.
        0x1a,
    ]
}

/// The EDID of a monitor whose only and preferred mode has that size.
pub(super) fn edid(size: Size) -> Vec<u8> {
    let cm = |pixels: u16| (u32::from(pixels) * MICRONS_PER_PIXEL / 10_000).clamp(1, 255) as u8;
    let mut edid = Vec::with_capacity(EDID_BYTES);
    edid.extend([0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00]);
    // "SPL": five bits a letter, A is 1. Then product 1, no serial number, made in 2026 of model year kind.
    edid.extend([0x4e, 0x0c, 0x01, 0x00, 0, 0, 0, 0, 0xff, 36]);
    edid.extend([1, 4]);
    // Digital, 8 bits a colour, DisplayPort; size; gamma 2.2; sRGB, and the preferred mode is the monitor's own.
    edid.extend([0xa5, cm(size.width), cm(size.height), 120, 0x06]);
    // Colours of sRGB.
    edid.extend([0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // No established and no standard timings.
    edid.extend([0, 0, 0]);
    edid.extend([0x01; 16]);
    edid.extend(descriptor(size));
    // Its name, ended by a line feed and filled with spaces.
    edid.extend([0, 0, 0, 0xfc, 0]);
    edid.extend(b"Splice\n      ");
    // Two descriptors of nothing.
    for _ in 0..2 {
        edid.extend([0, 0, 0, 0x10]);
        edid.extend([0; 14]);
    }
    edid.push(0);
    let sum = edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    edid.push(sum.wrapping_neg());
    edid
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size::new(width, height).expect("a size")
    }

    /// Active, blank, front porch and pulse of a direction, and the clock, as a driver reads a detailed timing.
    fn read(d: &[u8]) -> (u32, [u16; 4], [u16; 4]) {
        let clock = u32::from(u16::from_le_bytes([d[0], d[1]])) * 10;
        let part = |low: u8, high: u8| u16::from(high & 0xf) << 8 | u16::from(low);
        let h = [
            part(d[2], d[4] >> 4),
            part(d[3], d[4]),
            u16::from(d[11] >> 6) << 8 | u16::from(d[8]),
            u16::from(d[11] >> 4 & 3) << 8 | u16::from(d[9]),
        ];
        let v = [
            part(d[5], d[7] >> 4),
            part(d[6], d[7]),
            u16::from(d[11] >> 2 & 3) << 4 | u16::from(d[10] >> 4),
            u16::from(d[11] & 3) << 4 | u16::from(d[10] & 0xf),
        ];
        (clock, h, v)
    }

    #[test]
    fn timings_are_those_of_the_cvt_generator() {
        // `cvt -r 1920 1080` and `cvt -r 2560 1600` print these.
        let (clock, h, v) = read(&descriptor(size(1920, 1080)));
        assert_eq!(
            (clock, h, v),
            (138_500, [1920, 160, 48, 32], [1080, 31, 3, 5])
        );
        let (clock, h, v) = read(&descriptor(size(2560, 1600)));
        assert_eq!(
            (clock, h, v),
            (268_500, [2560, 160, 48, 32], [1600, 46, 3, 6])
        );
    }

    #[test]
    fn the_block_follows_the_rules() {
        let edid = edid(size(1280, 800));
        assert_eq!(edid.len(), EDID_BYTES);
        assert_eq!(edid[..8], [0, 255, 255, 255, 255, 255, 255, 0]);
        let id = u16::from_be_bytes([edid[8], edid[9]]);
        let letter = |shift: u16| char::from((id >> shift & 0x1f) as u8 + b'A' - 1);
        assert_eq!([letter(10), letter(5), letter(0)], ['S', 'P', 'L']);
        assert_eq!(edid[18..20], [1, 4], "version");
        assert_eq!(edid[24] & 2, 2, "the first timing is preferred");
        assert_eq!(&edid[72..77], &[0, 0, 0, 0xfc, 0]);
        assert_eq!(&edid[77..90], b"Splice\n      ");
        assert_eq!(edid[126], 0, "extensions");
    }

    proptest! {
        #[test]
        fn every_size_is_told_right(width in 64u32..=4095, height in 64u32..=4095) {
            let edid = edid(size(width, height));
            prop_assert_eq!(edid.len(), EDID_BYTES);
            prop_assert_eq!(edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let (clock, h, v) = read(&edid[54..72]);
            prop_assert_eq!((u32::from(h[0]), u32::from(v[0])), (width, height));
            // What Linux refuses: no clock, pulses that are empty or end behind the blanking.
            prop_assert!(clock > 0 && h[3] > 0 && v[3] > 0);
            prop_assert!(h[2] + h[3] < h[1] && v[2] + v[3] < v[1]);
            let total = u64::from(h[0] + h[1]) * u64::from(v[0] + v[1]);
            prop_assert!(u64::from(clock) * 1000 <= 60 * total);
            prop_assert!(u64::from(clock) * 1000 >= 30 * total || clock == 655_350);
        }
    }
}
