//! What a driver is told of a disk: its features and its configuration (virtio 1.2, sections 5.2.3 and 5.2.4).

use super::{SECTOR_BYTES, features};
use crate::Geometry;

/// Bytes of the configuration, up to and with the fields of zeroing.
pub const CONFIG_BYTES: usize = 60;
/// Where in it the number of queues is, two bytes.
pub const CONFIG_QUEUES_AT: usize = 34;

/// Sectors of one range of a discard or zeroing: 1 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Ranges of one discard or zeroing.
const RANGES_MAX: u32 = 64;
/// Blocks as guests count them; they are told to prefer the device's own.
const BLOCK_BYTES: u32 = 512;

/// Features of a disk, beside those of rings.
#[must_use]
pub fn features_of(geometry: &Geometry) -> u64 {
    let may_write = if geometry.read_only {
        features::RO
    } else {
        features::DISCARD | features::WRITE_ZEROES
    };
    let always = features::SEG_MAX
        | features::BLK_SIZE
        | features::FLUSH
        | features::TOPOLOGY
        | features::MQ;
    always | may_write
}

/// The configuration of a disk with `queues` queues, whose requests have at most `segments_max` data segments.
#[must_use]
pub fn config_of(geometry: &Geometry, queues: u16, segments_max: u32) -> [u8; CONFIG_BYTES] {
    let block = geometry.block_bytes_preferred.clamp(BLOCK_BYTES, 4096);
    let exponent = (block / BLOCK_BYTES).trailing_zeros() as u8;
    let mut config = Vec::with_capacity(CONFIG_BYTES);
    config.extend((geometry.size_bytes / SECTOR_BYTES).to_le_bytes());
    config.extend(0u32.to_le_bytes()); // size_max: none
    config.extend(segments_max.to_le_bytes());
    config.extend([0; 4]); // cylinders, heads and sectors
    config.extend(BLOCK_BYTES.to_le_bytes());
    config.extend([exponent, 0]);
    config.extend(1u16.to_le_bytes()); // best smallest transfer, blocks
    config.extend(0u32.to_le_bytes()); // best transfer: none
    config.extend([0, 0]); // writeback, unused
    config.extend(queues.to_le_bytes());
    config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // discard
    config.extend(RANGES_MAX.to_le_bytes());
    config.extend((block / BLOCK_BYTES).to_le_bytes());
    config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // zeroing
    config.extend(RANGES_MAX.to_le_bytes());
    config.extend([1, 0, 0, 0]); // zeroing may give storage back
    config
        .try_into()
        .expect("the fields above add up to the length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let geometry = Geometry {
            size_bytes: (3 << 30) + 511,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only: false,
        };
        let config = config_of(&geometry, 7, 254);
        assert_eq!(config[..8], (6u64 << 20).to_le_bytes(), "whole sectors");
        assert_eq!(config[12..16], 254u32.to_le_bytes());
        assert_eq!(config[20..26], [0, 2, 0, 0, 3, 0]);
        assert_eq!(config[CONFIG_QUEUES_AT..CONFIG_QUEUES_AT + 2], [7, 0]);
        assert_eq!(config[44..48], 8u32.to_le_bytes(), "alignment of discards");
        assert_eq!(config[56], 1);
    }

    #[test]
    fn a_disk_that_is_read_only_takes_no_discards() {
        let mut geometry = Geometry {
            size_bytes: 0,
            block_bytes_min: 1,
            block_bytes_preferred: 1,
            read_only: true,
        };
        let taken = features::DISCARD | features::WRITE_ZEROES;
        assert_eq!(
            features_of(&geometry) & (taken | features::RO),
            features::RO
        );
        geometry.read_only = false;
        assert_eq!(features_of(&geometry) & (taken | features::RO), taken);
    }
}
