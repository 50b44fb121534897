//! Raw disks: a file whose holes are zero regions, or a block device. The last sector of a file that ends inside one
//! is filled up with zeros.

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::image::{DiskImage, Region, RegionKind, SECTOR_BYTES, check_range};
use crate::source::{Source, Sparse};

/// A raw disk.
pub(crate) struct RawImage {
    source: Source,
    size_bytes: u64,
    /// What [`DiskImage::format`] says: a converted image keeps the format that it came in.
    format: ImageFormat,
}

impl RawImage {
    pub(crate) fn new(source: Source, disk_bytes_max: u64) -> Result<Self, ImageError> {
        Self::with_format(source, ImageFormat::Raw, disk_bytes_max)
    }

    pub(crate) fn with_format(
        source: Source,
        format: ImageFormat,
        disk_bytes_max: u64,
    ) -> Result<Self, ImageError> {
        let len = source.len();
        if len == 0 || len > disk_bytes_max {
            return Err(ImageError::Size {
                path: source.path().to_owned(),
                size_bytes: len,
                limit_bytes: disk_bytes_max,
            });
        }
        Ok(Self {
            size_bytes: len.next_multiple_of(SECTOR_BYTES),
            source,
            format,
        })
    }
}

impl DiskImage for RawImage {
    fn format(&self) -> ImageFormat {
        self.format
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
        check_range(offset, 1, self.size_bytes)?;
        let file_end = self.source.len();
        let (end, kind) = if offset >= file_end {
            (self.size_bytes, RegionKind::Zero)
        } else {
            match self.source.sparse_at(offset)? {
                // The padding of the last sector goes with what precedes it: at most 511 bytes.
                Sparse::DataUntil(end) if end == file_end => (self.size_bytes, RegionKind::Data),
                Sparse::HoleUntil(end) if end == file_end => (self.size_bytes, RegionKind::Zero),
                Sparse::DataUntil(end) => (end, RegionKind::Data),
                Sparse::HoleUntil(end) => (end, RegionKind::Zero),
            }
        };
        Ok(Region {
            offset,
            len: end - offset,
            kind,
        })
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        check_range(offset, buf.len() as u64, self.size_bytes)?;
        let in_file = self
            .source
            .len()
            .saturating_sub(offset)
            .min(buf.len() as u64) as usize;
        let (stored, padding) = buf.split_at_mut(in_file);
        padding.fill(0);
        self.source.read_exact_at(offset, stored)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn holes_are_zero_regions_and_data_reads_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        file.as_file().write_all_at(&[7; 65536], 1 << 20).unwrap();
        let mut image = open(file.path(), &OpenOptions::new()).unwrap();
        assert_eq!(image.format(), ImageFormat::Raw);
        assert_eq!(image.size_bytes(), 8 << 20);
        let mut regions = Vec::new();
        let mut at = 0;
        while at < image.size_bytes() {
            let region = image.region_at(at).unwrap();
            at = region.end();
            regions.push(region);
        }
        assert_eq!(
            regions,
            [
                Region {
                    offset: 0,
                    len: 1 << 20,
                    kind: RegionKind::Zero
                },
                Region {
                    offset: 1 << 20,
                    len: 65536,
                    kind: RegionKind::Data
                },
                Region {
                    offset: (1 << 20) + 65536,
                    len: (7 << 20) - 65536,
                    kind: RegionKind::Zero
                },
            ]
        );
        let mut buf = [1; 4];
        image.read_at((1 << 20) - 2, &mut buf).unwrap();
        assert_eq!(buf, [0, 0, 7, 7]);
        assert!(matches!(
            image.region_at(8 << 20),
            Err(ImageError::OutOfRange { .. })
        ));
        assert!(matches!(
            image.read_at(u64::MAX, &mut buf),
            Err(ImageError::OutOfRange { .. })
        ));
    }

    #[test]
    fn an_odd_size_is_filled_up_to_a_sector() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[9; 700]).unwrap();
        let mut image = open(file.path(), &OpenOptions::new()).unwrap();
        assert_eq!(image.size_bytes(), 1024);
        let mut disk = [1; 1024];
        image.read_at(0, &mut disk).unwrap();
        assert!(disk[..700].iter().all(|&b| b == 9) && disk[700..].iter().all(|&b| b == 0));
        assert_eq!(image.region_at(600).unwrap().end(), 1024);
    }

    #[test]
    fn an_empty_file_and_a_folder_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = open(file.path(), &OpenOptions::new()).err().unwrap();
        assert!(
            matches!(refused, ImageError::Size { size_bytes: 0, .. }),
            "{refused}"
        );
        assert!(matches!(
            open(std::path::Path::new("/"), &OpenOptions::new()),
            Err(ImageError::Io { .. })
        ));
    }

    #[test]
    fn a_file_cut_short_while_it_is_read_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 65536], 0).unwrap();
        let mut image = open(file.path(), &OpenOptions::new()).unwrap();
        file.as_file().set_len(4096).unwrap();
        assert!(matches!(
            image.read_at(0, &mut [0; 65536]),
            Err(ImageError::Io { .. })
        ));
    }
}
