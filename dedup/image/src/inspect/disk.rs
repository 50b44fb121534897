//! Reads for inspection: bounded by the disk, by a total number of bytes and by a time, so that no arrangement of
//! tables in a hostile image makes inspection long.

use std::time::Instant;

use crate::image::DiskImage;

/// A disk under inspection.
pub(super) struct Disk<'a> {
    image: &'a mut dyn DiskImage,
    bytes_left: u64,
    deadline: Instant,
}

impl<'a> Disk<'a> {
    pub(super) fn new(image: &'a mut dyn DiskImage, bytes_max: u64, deadline: Instant) -> Self {
        Self {
            image,
            bytes_left: bytes_max,
            deadline,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// `len` bytes at `offset`, or fewer at the end of the disk.
    pub(super) fn read_up_to(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let len = self.size_bytes().saturating_sub(offset).min(len as u64);
        if Instant::now() >= self.deadline {
            return Err("inspection took too long".into());
        }
        self.bytes_left = self
            .bytes_left
            .checked_sub(len)
            .ok_or("inspection would read too much")?;
        let mut bytes = vec![0; len as usize];
        self.image
            .read_at(offset, &mut bytes)
            .map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// `len` bytes at `offset`.
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let bytes = self.read_up_to(offset, len)?;
        if bytes.len() == len {
            Ok(bytes)
        } else {
            Err(format!("{len} bytes at {offset} are not on the disk"))
        }
    }
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Foreign text for people: up to the first NUL, without control characters, trimmed; `None` when nothing is left.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    printable(&String::from_utf8_lossy(&bytes[..end]))
}

/// [`text`] for what is a string already.
pub(super) fn printable(text: &str) -> Option<String> {
    let clean: String = text.chars().filter(|c| !c.is_control()).take(256).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// A UUID in the usual form from its 16 bytes in that order.
pub(super) fn uuid(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|&b| b == 0) {
        return None;
    }
    let mut out = String::with_capacity(36);
    for (index, byte) in bytes.iter().take(16).enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    Some(out)
}

/// A GUID as GPT stores it: the first three fields little-endian.
pub(super) fn guid(bytes: &[u8]) -> Option<String> {
    let mut ordered: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    ordered[..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    uuid(&ordered)
}
