//! The qcow2 header, versions 2 and 3: parsed once, and every feature that a reader cannot do without understanding is
//! refused by name. Field offsets are those of QEMU's docs/interop/qcow2.txt. The header is big-endian.

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::source::Source;

const V2_HEADER_BYTES: usize = 72;
const V3_HEADER_BYTES: usize = 104;
/// QEMU writes no larger L1 table; with 64 KiB clusters it describes 2 PiB.
const L1_ENTRIES_MAX: u64 = 4 << 20;
/// The longest backing file name that QEMU accepts.
const BACKING_NAME_BYTES_MAX: u32 = 1023;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate streams.
    Deflate,
    /// One zstd frame a cluster.
    Zstd,
}

/// What a reader needs of the header, all of it checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    /// 9 to 21: clusters are 512 bytes to 2 MiB.
    pub(super) cluster_bits: u32,
    /// The virtual size as stated.
    pub(super) size_bytes: u64,
    pub(super) l1_offset: u64,
    /// Entries that the virtual size needs; the stored table is at least as long.
    pub(super) l1_entries: u64,
    pub(super) extended_l2: bool,
    pub(super) compression: Compression,
}

impl Header {
    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The binary logarithm of the number of entries in an L2 table, which fills one cluster.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 4 } else { 3 }
    }

    /// Reads and checks the header of `source`; `disk_bytes_max` limits the virtual size.
    pub(super) fn read(source: &Source, disk_bytes_max: u64) -> Result<Self, ImageError> {
        let unsupported = |what: String| ImageError::Unsupported {
            path: source.path().to_owned(),
            format: ImageFormat::Qcow2,
            what,
        };
        let corrupt = |offset: u64, what: String| ImageError::Corrupt {
            path: source.path().to_owned(),
            format: ImageFormat::Qcow2,
            offset,
            what,
        };
        let mut bytes = [0; V3_HEADER_BYTES + 8];
        source.read_exact_at(0, &mut bytes[..V2_HEADER_BYTES])?;
        if &bytes[..4] != b"QFI\xfb" {
            return Err(corrupt(0, "there is no qcow2 magic".into()));
        }
        let version = be32(&bytes, 4);
        if version != 2 && version != 3 {
            return Err(unsupported(format!(
                "version {version}; convert it to version 3 with: qemu-img convert -O qcow2"
            )));
        }
        let mut incompatible = 0;
        let mut compression_type = 0;
        if version == 3 {
            source.read_exact_at(0, &mut bytes[..V3_HEADER_BYTES])?;
            let header_bytes = be32(&bytes, 100) as usize;
            if header_bytes < V3_HEADER_BYTES || !header_bytes.is_multiple_of(8) {
                return Err(corrupt(
                    100,
                    format!("its header claims a length of {header_bytes} bytes"),
                ));
            }
            if header_bytes >= V3_HEADER_BYTES + 8 {
                source.read_exact_at(0, &mut bytes)?;
                compression_type = bytes[104];
            }
            incompatible = be64(&bytes, 72);
        }
        Self::check_features(incompatible).map_err(unsupported)?;

        let backing_offset = be64(&bytes, 8);
        if backing_offset != 0 {
            let len = be32(&bytes, 16).min(BACKING_NAME_BYTES_MAX) as usize;
            let mut name = vec![0; len];
            source.read_exact_at(backing_offset, &mut name)?;
            return Err(ImageError::Layered {
                path: source.path().to_owned(),
                reference: String::from_utf8_lossy(&name).into_owned(),
            });
        }
        let crypt_method = be32(&bytes, 32);
        if crypt_method != 0 {
            return Err(unsupported(
                "its clusters are encrypted; decrypt it with qemu-img convert and the key".into(),
            ));
        }
        let compression = match (
            incompatible & INCOMPATIBLE_COMPRESSION != 0,
            compression_type,
        ) {
            (_, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (_, other) => {
                return Err(unsupported(format!(
                    "its compression type is {other}; deflate and zstd can be read"
                )));
            }
        };

        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt(
                20,
                format!("its clusters would be 2^{cluster_bits} bytes"),
            ));
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(corrupt(
                20,
                "its clusters are too small for subclusters".into(),
            ));
        }
        let size_bytes = be64(&bytes, 24);
        if size_bytes == 0 || size_bytes > disk_bytes_max {
            return Err(ImageError::Size {
                path: source.path().to_owned(),
                size_bytes,
                limit_bytes: disk_bytes_max,
            });
        }
        let mut header = Self {
            version,
            cluster_bits,
            size_bytes,
            l1_offset: be64(&bytes, 40),
            l1_entries: 0,
            extended_l2,
            compression,
        };
        header.l1_entries = size_bytes.div_ceil(1 << (cluster_bits + header.l2_bits()));
        let stored = u64::from(be32(&bytes, 36));
        if stored < header.l1_entries {
            return Err(corrupt(
                36,
                format!(
                    "its L1 table has {stored} entries where the disk needs {}",
                    header.l1_entries
                ),
            ));
        }
        if header.l1_entries > L1_ENTRIES_MAX {
            return Err(corrupt(
                36,
                format!("its L1 table would have {} entries", header.l1_entries),
            ));
        }
        if !header.l1_offset.is_multiple_of(header.cluster_bytes()) || header.l1_offset == 0 {
            return Err(corrupt(
                40,
                format!("its L1 table would begin at {}", header.l1_offset),
            ));
        }
        Ok(header)
    }

    fn check_features(incompatible: u64) -> Result<(), String> {
        const KNOWN: u64 = INCOMPATIBLE_DIRTY
            | INCOMPATIBLE_CORRUPT
            | INCOMPATIBLE_EXTERNAL_DATA
            | INCOMPATIBLE_COMPRESSION
            | INCOMPATIBLE_EXTENDED_L2;
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err("it is marked corrupt; repair it with: qemu-img check -r all".into());
        }
        if incompatible & INCOMPATIBLE_DIRTY != 0 {
            return Err(
                "it was not closed cleanly; stop what uses it, then: qemu-img check -r all".into(),
            );
        }
        if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
            return Err(
                "its data are in another file; put them into one with: qemu-img convert -O qcow2"
                    .into(),
            );
        }
        match incompatible & !KNOWN {
            0 => Ok(()),
            unknown => Err(format!(
                "it needs features unknown here (incompatible feature bits {unknown:#x})"
            )),
        }
    }
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
