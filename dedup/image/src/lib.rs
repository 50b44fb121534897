//! Foreign disk images: sparse readers and inspection.
//!
//! This crate owns everything that parses bytes which came from outside as a disk file: the image formats
//! themselves ([`open`] and [`DiskImage`]) and what lies inside a disk. A disk image is hostile until
//! proven otherwise: every offset is checked before it is used, every allocation has a limit, and a bad image ends in
//! an [`ImageError`] that names the file and the place. Nothing here mounts, executes or writes an image, and nothing
//! here hashes or chunks: callers walk [`DiskImage::region_at`] and read the data regions only.

mod error;
mod format;
mod image;
mod options;
mod raw;
mod source;

pub use error::ImageError;
pub use format::ImageFormat;
pub use image::{DiskImage, Region, RegionKind, SECTOR_BYTES};
pub use options::{OpenOptions, Progress};

use std::path::Path;

use source::Source;

/// Opens the disk image at `path` for reading.
///
/// The format is taken from the file's magic numbers, never from its name, unless `options` states one. A file without
/// a known magic is a raw disk.
///
/// # Errors
///
/// [`ImageError`] when the file cannot be read, is empty, is corrupt, or uses a feature that is not supported; the
/// message says which and what to do about it.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn DiskImage>, ImageError> {
    let source = Source::open(path)?;
    let format = match options.format {
        Some(format) => format,
        None => format::sniff(&source)?,
    };
    match format {
        ImageFormat::Raw => Ok(Box::new(raw::RawImage::new(source)?)),
        other => Err(ImageError::Unsupported {
            path: path.to_owned(),
            format: other,
            what: "this format cannot be read yet".into(),
        }),
    }
}
