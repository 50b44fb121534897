//! The image formats and how a file's format is told from its first (for VHD also its last) bytes. File names are
//! never looked at. Refusing what a format cannot do is the business of its reader.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::source::Source;

/// A disk image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes as they are: a file with holes, or a block device.
    Raw,
    /// QEMU copy-on-write, versions 2 and 3.
    Qcow2,
    /// Hyper-V virtual hard disk v2.
    Vhdx,
    /// VMware virtual machine disk, single-file subformats.
    Vmdk,
    /// VirtualBox disk image.
    Vdi,
    /// Virtual PC / Hyper-V virtual hard disk v1, fixed or dynamic.
    Vhd,
}

impl ImageFormat {
    /// Every format, in the order in which help texts list them.
    pub const ALL: [Self; 6] = [
        Self::Raw,
        Self::Qcow2,
        Self::Vhdx,
        Self::Vmdk,
        Self::Vdi,
        Self::Vhd,
    ];

    /// The name for people and command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vhd",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A format name that is none of [`ImageFormat::ALL`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an image format; use raw, qcow2, vhdx, vmdk, vdi or vhd")]
pub struct UnknownFormat(String);

impl FromStr for ImageFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

const VDI_SIGNATURE_OFFSET: usize = 64;
const VDI_SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
const VHD_COOKIE: &[u8] = b"conectix";
const VHD_FOOTER_BYTES: u64 = 512;

/// Tells the format of `source`; what has no known magic is raw.
pub(crate) fn sniff(source: &Source) -> Result<ImageFormat, ImageError> {
    let mut head = [0; 512];
    let len = source.len().min(512) as usize;
    source.read_exact_at(0, &mut head[..len])?;
    if head.starts_with(b"QFI\xfb") {
        return Ok(ImageFormat::Qcow2);
    }
    if head.starts_with(b"vhdxfile") {
        return Ok(ImageFormat::Vhdx);
    }
    if head.starts_with(b"KDMV")
        || head.starts_with(b"COWD")
        || head.starts_with(b"# Disk DescriptorFile")
    {
        return Ok(ImageFormat::Vmdk);
    }
    if head[VDI_SIGNATURE_OFFSET..].starts_with(&VDI_SIGNATURE) {
        return Ok(ImageFormat::Vdi);
    }
    if head.starts_with(VHD_COOKIE) {
        return Ok(ImageFormat::Vhd);
    }
    if let Some(footer) = source.len().checked_sub(VHD_FOOTER_BYTES) {
        let mut cookie = [0; 8];
        source.read_exact_at(footer, &mut cookie)?;
        if cookie == VHD_COOKIE {
            return Ok(ImageFormat::Vhd);
        }
    }
    Ok(ImageFormat::Raw)
}
