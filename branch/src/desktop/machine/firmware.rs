//! What boots a disk whose kernel was not found: UEFI where the disk has an EFI system partition, else a PC's BIOS.
//!
//! The partition table is read from the version, which is signed. A guest that writes another one later changes what its firmware finds, not
//! which firmware it has.

use std::io;
use std::path::{Path, PathBuf};

use vmm_block::BlockError;

use crate::volume::Base;

/// UEFI firmware of one desktop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The firmware itself, the same for all desktops.
    pub code: PathBuf,
    /// The desktop's own variables.
    pub vars: PathBuf,
}

/// Where Debian's package `ovmf` has firmware and fresh variables, the best first.
const OVMF: [(&str, &str); 2] = [
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
];
/// The package's folder.
const OVMF_DIR: &str = "/usr/share/OVMF";

/// Type of an EFI system partition in a GPT, as its bytes stand there (C12A7328-F81F-11D2-BA4B-00A0C93EC93B).
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const SECTOR: usize = 512;
/// Types of partitions in an MBR.
const MBR_GPT: u8 = 0xee;
const MBR_ESP: u8 = 0xef;
/// Most entries of a GPT that are looked at; the specification's least is 128, and all tools write that.
const ENTRIES_MAX: u32 = 128;
const ENTRY_BYTES: std::ops::RangeInclusive<u32> = 128..=4096;

/// Firmware with the desktop's own variables, made if they are not there; none if the package is not installed.
///
/// # Errors
/// The variables cannot be written.
pub fn uefi(vars: PathBuf) -> io::Result<Option<Firmware>> {
    uefi_of(Path::new(OVMF_DIR), vars)
}

fn uefi_of(folder: &Path, vars: PathBuf) -> io::Result<Option<Firmware>> {
    let pairs = OVMF.map(|(code, fresh)| (folder.join(code), folder.join(fresh)));
    let found = pairs
        .into_iter()
        .find(|(code, fresh)| code.is_file() && fresh.is_file());
    let Some((code, fresh)) = found else {
        return Ok(None);
    };
    if !vars.exists() {
        // Whole or not at all: half of the variables would be no variables.
        let part = vars.with_extension("part");
        if let Some(folder) = vars.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(&fresh, &part)?;
        std::fs::rename(&part, &vars)?;
    }
    Ok(Some(Firmware { code, vars }))
}

/// Bytes of the disk; none where it ends before.
fn read(disk: &dyn Base, at: u64, len: usize) -> Result<Option<Vec<u8>>, BlockError> {
    let end = at.checked_add(len as u64);
    if end.is_none_or(|end| end > disk.size_bytes()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read(at, &mut bytes)?;
    Ok(Some(bytes))
}

/// Whether a disk has an EFI system partition. A table that makes no sense has none.
///
/// # Errors
/// The disk cannot be read, for now.
pub fn has_efi_system_partition(disk: &dyn Base) -> Result<bool, BlockError> {
    let Some(mbr) = read(disk, 0, SECTOR)?.filter(|mbr| mbr[510..] == [0x55, 0xaa]) else {
        return Ok(false);
    };
    let types: Vec<u8> = (0..4).map(|entry| mbr[446 + entry * 16 + 4]).collect();
    if !types.contains(&MBR_GPT) {
        return Ok(types.contains(&MBR_ESP));
    }
    let header = read(disk, SECTOR as u64, SECTOR)?;
    let Some(header) = header.filter(|header| header.starts_with(b"EFI PART")) else {
        return Ok(false);
    };
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let table = u64::from_le_bytes(header[72..80].try_into().expect("eight bytes"));
    let (count, entry_bytes) = (word(80).min(ENTRIES_MAX), word(84));
    let table = table.checked_mul(SECTOR as u64);
    let Some(table) = table.filter(|_| ENTRY_BYTES.contains(&entry_bytes)) else {
        return Ok(false);
    };
    let entries = read(disk, table, (count * entry_bytes) as usize)?.unwrap_or_default();
    let mut entries = entries.chunks_exact(entry_bytes as usize);
    Ok(entries.any(|entry| entry.starts_with(&ESP)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::volume::MemBase;

    fn mbr(kinds: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 64 * SECTOR];
        for (entry, kind) in kinds.iter().enumerate() {
            disk[446 + entry * 16 + 4] = *kind;
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    fn gpt(types: &[[u8; 16]]) -> Vec<u8> {
        let mut disk = mbr(&[MBR_GPT]);
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 128;
        disk[512 + 84] = 128;
        for (entry, kind) in types.iter().enumerate() {
            let at = 2 * SECTOR + entry * 128;
            disk[at..at + 16].copy_from_slice(kind);
        }
        disk
    }

    fn has(disk: Vec<u8>) -> bool {
        has_efi_system_partition(&MemBase::new(disk)).unwrap()
    }

    #[test]
    fn an_efi_system_partition_is_found_in_either_table() {
        assert!(has(gpt(&[[1; 16], ESP])));
        assert!(has(mbr(&[0x83, MBR_ESP])));
        assert!(!has(gpt(&[[1; 16]])));
        assert!(!has(mbr(&[0x83, 0x07])));
        assert!(!has(vec![0; 64 * SECTOR]));
        assert!(!has(Vec::new()));
    }

    #[test]
    fn tables_that_make_no_sense_have_none() {
        let mut far = gpt(&[ESP]);
        far[512 + 72..512 + 80].fill(0xff);
        assert!(!has(far));
        for entry_bytes in [0u32, 127, 4097, u32::MAX] {
            let mut odd = gpt(&[ESP]);
            odd[512 + 84..512 + 88].copy_from_slice(&entry_bytes.to_le_bytes());
            assert!(!has(odd), "{entry_bytes}");
        }
        let mut many = gpt(&[[1; 16], ESP]);
        many[512 + 80..512 + 84].fill(0xff);
        assert!(has(many), "the first 128 are looked at");
        let mut cut = gpt(&[ESP]);
        cut.truncate(700);
        assert!(!has(cut));
    }

    #[test]
    fn each_desktop_has_variables_of_its_own_and_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let vars = folder.path().join("vars.fd");
        assert_eq!(uefi_of(folder.path(), vars.clone()).unwrap(), None);
        std::fs::write(folder.path().join("OVMF_CODE_4M.fd"), "code").unwrap();
        std::fs::write(folder.path().join("OVMF_VARS_4M.fd"), "fresh").unwrap();
        let firmware = uefi_of(folder.path(), vars.clone()).unwrap().unwrap();
        assert!(firmware.code.ends_with("OVMF_CODE_4M.fd"));
        assert_eq!(std::fs::read(&vars).unwrap(), b"fresh");
        std::fs::write(&vars, "written by a guest").unwrap();
        uefi_of(folder.path(), vars.clone()).unwrap();
        assert_eq!(std::fs::read(&vars).unwrap(), b"written by a guest");
    }
}
