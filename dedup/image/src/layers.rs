//! Tells images that are one layer of several (differencing disks, descriptors of extent files, backing files) from
//! whole disks, for the formats that qemu-img converts. Two looks: at the file's own bytes before qemu-img runs, because
//! opening some of these formats already opens what they refer to, and at `qemu-img info` afterwards.

use serde_json::Value;

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::source::Source;

const VMDK_CAPACITY_AT: u64 = 12;
const VMDK_CAPACITY_AT_VERSION: u64 = 4;
const VMDK_DESCRIPTOR_AT: u64 = 28;
const VMDK_DESCRIPTOR_BYTES_MAX: u64 = 64 << 10;
const VHD_TYPE_AT: u64 = 60;
const VHD_FOOTER_BYTES: u64 = 512;
const VDI_DATA_AT: u64 = 344;
const VDI_BLOCK_BYTES_AT: u64 = 376;
const VDI_BLOCKS_ALLOCATED_AT: u64 = 388;
const SECTOR: u64 = 512;

/// Refuses what the file's own bytes show to need another file, or to be cut short where qemu-img would not notice.
pub(crate) fn refuse_layered(source: &Source, format: ImageFormat) -> Result<(), ImageError> {
    match format {
        ImageFormat::Vmdk => refuse_layered_vmdk(source),
        ImageFormat::Vhd => refuse_layered_vhd(source),
        ImageFormat::Vdi => refuse_truncated_vdi(source),
        // qemu-img knows no differencing VHDX and refuses it itself.
        ImageFormat::Vhdx | ImageFormat::Raw | ImageFormat::Qcow2 => Ok(()),
    }
}

fn refuse_layered_vmdk(source: &Source) -> Result<(), ImageError> {
    let unsupported = |what: &str| ImageError::Unsupported {
        path: source.path().to_owned(),
        format: ImageFormat::Vmdk,
        what: what.into(),
    };
    let mut magic = [0; 4];
    source.read_exact_at(0, &mut magic)?;
    if &magic != b"KDMV" {
        return Err(unsupported(
            "it describes data that are in other files; make one file of them: qemu-img convert -O qcow2",
        ));
    }
    let field = |at: u64| -> Result<u64, ImageError> {
        let mut bytes = [0; 8];
        source.read_exact_at(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let version = field(VMDK_CAPACITY_AT_VERSION)? as u32;
    if !(1..=3).contains(&version) {
        return Err(unsupported(
            "its version is unknown here; convert it with a current qemu-img",
        ));
    }
    // With no capacity of its own the sparse header only wraps a descriptor that names extent files.
    if field(VMDK_CAPACITY_AT)? == 0 {
        return Err(unsupported(
            "it describes data that are in other files; make one file of them: qemu-img convert -O qcow2",
        ));
    }
    let begin = field(VMDK_DESCRIPTOR_AT)?.saturating_mul(SECTOR);
    let len = field(VMDK_DESCRIPTOR_AT + 8)?
        .saturating_mul(SECTOR)
        .min(VMDK_DESCRIPTOR_BYTES_MAX);
    if begin == 0 || len == 0 {
        return Ok(());
    }
    let mut descriptor = vec![0; len.min(source.len().saturating_sub(begin)) as usize];
    source.read_exact_at(begin, &mut descriptor)?;
    let text = String::from_utf8_lossy(&descriptor);
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if key.trim().eq_ignore_ascii_case("parentFileNameHint") {
            return Err(layered(source, value.trim().trim_matches('"')));
        }
        if key.trim().eq_ignore_ascii_case("parentCID")
            && !value.trim().eq_ignore_ascii_case("ffffffff")
        {
            return Err(layered(source, "its parent disk"));
        }
    }
    Ok(())
}

fn refuse_layered_vhd(source: &Source) -> Result<(), ImageError> {
    let Some(footer) = source.len().checked_sub(VHD_FOOTER_BYTES) else {
        return Err(ImageError::Truncated {
            path: source.path().to_owned(),
            offset: 0,
            len: VHD_FOOTER_BYTES,
            file_bytes: source.len(),
        });
    };
    let mut cookie = [0; 8];
    source.read_exact_at(footer, &mut cookie)?;
    if &cookie != b"conectix" {
        return Err(ImageError::Corrupt {
            path: source.path().to_owned(),
            format: ImageFormat::Vhd,
            offset: footer,
            what: "it does not end in a footer, so its end is missing; copy the image again".into(),
        });
    }
    // Dynamic disks keep a copy of the footer in front; either may be the one that is believed.
    for at in [0, footer] {
        let mut bytes = [0; 64];
        source.read_exact_at(at, &mut bytes)?;
        let kind = &bytes[VHD_TYPE_AT as usize..];
        if bytes.starts_with(b"conectix") && kind == 4u32.to_be_bytes() {
            return Err(layered(source, "its parent disk"));
        }
    }
    Ok(())
}

/// qemu-img reads the missing end of a VDI as zeros. Its blocks lie one after the other, so the header tells the length.
fn refuse_truncated_vdi(source: &Source) -> Result<(), ImageError> {
    let field = |at: u64| -> Result<u64, ImageError> {
        let mut bytes = [0; 4];
        source.read_exact_at(at, &mut bytes)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    };
    let data = field(VDI_DATA_AT)?;
    let len = field(VDI_BLOCK_BYTES_AT)?.saturating_mul(field(VDI_BLOCKS_ALLOCATED_AT)?);
    if data.saturating_add(len) > source.len() {
        return Err(ImageError::Truncated {
            path: source.path().to_owned(),
            offset: data,
            len,
            file_bytes: source.len(),
        });
    }
    Ok(())
}

/// Refuses what `qemu-img info` shows to need another file.
pub(crate) fn refuse_layered_info(source: &Source, info: &Value) -> Result<(), ImageError> {
    for key in ["backing-filename", "full-backing-filename"] {
        if let Some(name) = info[key].as_str() {
            return Err(layered(source, name));
        }
    }
    let data = &info["format-specific"]["data"];
    if let Some(kind) = data["create-type"].as_str()
        && !["monolithicSparse", "streamOptimized"].contains(&kind)
    {
        return Err(layered(source, &format!("extents of a {kind} disk")));
    }
    let extents = data["extents"].as_array().map_or(&[][..], Vec::as_slice);
    match extents {
        [] => Ok(()),
        [one] if one["filename"] == "/dev/stdin" || one["filename"] == info["filename"] => Ok(()),
        _ => {
            let other = extents
                .iter()
                .filter_map(|e| e["filename"].as_str())
                .find(|name| *name != "/dev/stdin");
            Err(layered(source, other.unwrap_or("several extents")))
        }
    }
}

fn layered(source: &Source, reference: &str) -> ImageError {
    ImageError::Layered {
        path: source.path().to_owned(),
        reference: reference.chars().take(1024).collect(),
    }
}
