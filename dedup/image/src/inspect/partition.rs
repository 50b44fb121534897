//! Partition tables: MBR with logical partitions, and GPT with its checksums and backup (UEFI specification, chapter 5).
//! Sectors are 512 bytes. What is wrong with a table becomes a note; the chain of logical partitions is followed for a
//! limited number of links, so that a loop in it ends.

use serde::{Deserialize, Serialize};

use super::disk::{Disk, guid, le32, le64, printable};
use super::filesystem::{self, Filesystem};

const SECTOR: u64 = 512;
const PARTITIONS_MAX: usize = 256;
const LOGICAL_MAX: u32 = 128;
const GPT_TABLE_BYTES_MAX: u64 = 1 << 20;
const TYPE_GPT_PROTECTIVE: u8 = 0xee;

/// The kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionTable {
    /// Master boot record, with logical partitions where there is an extended one.
    Mbr,
    /// GUID partition table.
    Gpt,
}

/// A partition, or the whole disk where a file system begins at its first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// As Linux counts: 1 to 4 primary, from 5 logical; the entry's place in a GPT; 0 for the whole disk.
    pub number: u32,
    /// Where it begins, in bytes from the start of the disk.
    pub offset_bytes: u64,
    /// Its length in bytes, clipped to the disk.
    pub len_bytes: u64,
    /// The type: two hexadecimal digits in an MBR, a GUID in a GPT, empty for the whole disk.
    pub type_id: String,
    /// Its name in a GPT.
    pub name: Option<String>,
    /// What Linux calls PARTUUID.
    pub part_uuid: Option<String>,
    /// Marked active (MBR) or legacy-BIOS bootable (GPT).
    pub bootable: bool,
    /// What its first blocks say is on it.
    pub filesystem: Option<Filesystem>,
}

/// Reads the partition table and names the file system of each partition.
pub(super) fn read(
    disk: &mut Disk<'_>,
    notes: &mut Vec<String>,
) -> (Option<PartitionTable>, Vec<Partition>) {
    let (table, mut partitions) = match read_table(disk, notes) {
        Ok(found) => found,
        Err(why) => {
            notes.push(format!("partition table: {why}"));
            (None, Vec::new())
        }
    };
    if table.is_none() {
        partitions = vec![Partition {
            number: 0,
            offset_bytes: 0,
            len_bytes: disk.size_bytes(),
            type_id: String::new(),
            name: None,
            part_uuid: None,
            bootable: false,
            filesystem: None,
        }];
    }
    for partition in &mut partitions {
        match filesystem::probe(disk, partition.offset_bytes, partition.len_bytes) {
            Ok(found) => partition.filesystem = found,
            Err(why) => notes.push(format!("partition {}: {why}", partition.number)),
        }
    }
    if table.is_none() {
        partitions.retain(|whole| whole.filesystem.is_some());
        if partitions.is_empty() {
            notes.push("there is neither a partition table nor a file system known here".into());
        }
    }
    (table, partitions)
}

type Table = (Option<PartitionTable>, Vec<Partition>);

fn read_table(disk: &mut Disk<'_>, notes: &mut Vec<String>) -> Result<Table, String> {
    let sector = disk.read(0, SECTOR as usize)?;
    // Boot sectors of FAT and NTFS carry the same signature where an MBR has it.
    if sector[510..] != [0x55, 0xaa] || filesystem::is_boot_sector(&sector) {
        return Ok((None, Vec::new()));
    }
    let entries: Vec<MbrEntry> = (0..4)
        .map(|i| MbrEntry::parse(&sector[446 + i * 16..]))
        .collect();
    if entries.iter().any(|entry| entry.status & 0x7f != 0) {
        return Ok((None, Vec::new()));
    }
    if entries
        .iter()
        .any(|entry| entry.kind == TYPE_GPT_PROTECTIVE)
    {
        match read_gpt(disk, SECTOR) {
            Ok(partitions) => {
                return Ok((Some(PartitionTable::Gpt), clip(partitions, disk, notes)));
            }
            Err(why) => notes.push(format!("the primary GPT is bad ({why})")),
        }
        let backup = disk.size_bytes() / SECTOR * SECTOR - SECTOR;
        match read_gpt(disk, backup) {
            Ok(partitions) => {
                notes.push("the backup GPT at the end of the disk was used".into());
                return Ok((Some(PartitionTable::Gpt), clip(partitions, disk, notes)));
            }
            Err(why) => notes.push(format!("the backup GPT is bad ({why})")),
        }
    }
    let partitions = read_mbr(disk, &entries, le32(&sector, 440), notes);
    if partitions.is_empty() {
        return Ok((None, Vec::new()));
    }
    Ok((Some(PartitionTable::Mbr), clip(partitions, disk, notes)))
}

struct MbrEntry {
    status: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl MbrEntry {
    fn parse(bytes: &[u8]) -> Self {
        Self {
            status: bytes[0],
            kind: bytes[4],
            start: u64::from(le32(bytes, 8)),
            sectors: u64::from(le32(bytes, 12)),
        }
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.kind != TYPE_GPT_PROTECTIVE && self.sectors != 0
    }

    fn partition(&self, number: u32, first_sector: u64, signature: u32) -> Partition {
        Partition {
            number,
            offset_bytes: first_sector * SECTOR,
            len_bytes: self.sectors * SECTOR,
            type_id: format!("{:02x}", self.kind),
            name: None,
            part_uuid: (signature != 0).then(|| format!("{signature:08x}-{number:02x}")),
            bootable: self.status == 0x80,
            filesystem: None,
        }
    }
}

fn read_mbr(
    disk: &mut Disk<'_>,
    entries: &[MbrEntry],
    signature: u32,
    notes: &mut Vec<String>,
) -> Vec<Partition> {
    let mut partitions = Vec::new();
    for (number, entry) in (1..)
        .zip(entries)
        .filter(|(_, entry)| entry.is_used() && !entry.is_extended())
    {
        partitions.push(entry.partition(number, entry.start, signature));
    }
    if let Some(extended) = entries
        .iter()
        .find(|entry| entry.is_used() && entry.is_extended())
        && let Err(why) = read_logical(disk, extended, signature, &mut partitions)
    {
        notes.push(format!("logical partitions: {why}"));
    }
    partitions
}

fn read_logical(
    disk: &mut Disk<'_>,
    extended: &MbrEntry,
    signature: u32,
    partitions: &mut Vec<Partition>,
) -> Result<(), String> {
    let mut record_at = extended.start;
    for number in 5..5 + LOGICAL_MAX {
        let sector = disk.read(record_at * SECTOR, SECTOR as usize)?;
        if sector[510..] != [0x55, 0xaa] {
            return Err(format!("there is no record at sector {record_at}"));
        }
        let logical = MbrEntry::parse(&sector[446..]);
        if logical.is_used() {
            partitions.push(logical.partition(number, record_at + logical.start, signature));
        }
        let next = MbrEntry::parse(&sector[462..]);
        if !next.is_extended() || next.sectors == 0 {
            return Ok(());
        }
        record_at = extended.start + next.start;
    }
    Err(format!("the chain does not end after {LOGICAL_MAX}"))
}

fn read_gpt(disk: &mut Disk<'_>, header_at: u64) -> Result<Vec<Partition>, String> {
    let mut header = disk.read(header_at, SECTOR as usize)?;
    if &header[..8] != b"EFI PART" {
        return Err("no signature".into());
    }
    let header_bytes = le32(&header, 12) as usize;
    if !(92..=SECTOR as usize).contains(&header_bytes) {
        return Err(format!("a header of {header_bytes} bytes"));
    }
    let stated = le32(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..header_bytes]) != stated {
        return Err("wrong header checksum".into());
    }
    if le64(&header, 24).checked_mul(SECTOR) != Some(header_at) {
        return Err("it is meant for another place".into());
    }
    let (table_sector, entries, entry_bytes) =
        (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    if entry_bytes < 128 || !entry_bytes.is_power_of_two() {
        return Err(format!("entries of {entry_bytes} bytes"));
    }
    let table_bytes = u64::from(entries) * u64::from(entry_bytes);
    if table_bytes == 0 || table_bytes > GPT_TABLE_BYTES_MAX {
        return Err(format!("a table of {table_bytes} bytes"));
    }
    let table = disk.read(
        table_sector
            .checked_mul(SECTOR)
            .ok_or("a table off the disk")?,
        table_bytes as usize,
    )?;
    if crc32fast::hash(&table) != le32(&header, 88) {
        return Err("wrong table checksum".into());
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(table.chunks_exact(entry_bytes as usize)) {
        let Some(type_id) = guid(&entry[..16]) else {
            continue;
        };
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let bounds = last
            .checked_sub(first)
            .and_then(|n| n.checked_add(1))
            .and_then(|sectors| Some((first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?)));
        let Some((offset_bytes, len_bytes)) = bounds else {
            continue;
        };
        let name: Vec<u16> = entry[56..128]
            .chunks_exact(2)
            .map(|c| u16::from_le_bytes([c[0], c[1]]))
            .collect();
        let name_end = name.iter().position(|&c| c == 0).unwrap_or(name.len());
        partitions.push(Partition {
            number,
            offset_bytes,
            len_bytes,
            type_id,
            name: printable(&String::from_utf16_lossy(&name[..name_end])),
            part_uuid: guid(&entry[16..32]),
            bootable: le64(entry, 48) & 4 != 0,
            filesystem: None,
        });
    }
    Ok(partitions)
}

/// Drops what begins behind the disk's end, and shortens what reaches over it.
fn clip(
    mut partitions: Vec<Partition>,
    disk: &Disk<'_>,
    notes: &mut Vec<String>,
) -> Vec<Partition> {
    let size_bytes = disk.size_bytes();
    if partitions.len() > PARTITIONS_MAX {
        notes.push(format!(
            "only the first {PARTITIONS_MAX} of {} partitions were looked at",
            partitions.len()
        ));
        partitions.truncate(PARTITIONS_MAX);
    }
    partitions.retain_mut(|partition| {
        let Some(room) = size_bytes
            .checked_sub(partition.offset_bytes)
            .filter(|&room| room > 0)
        else {
            notes.push(format!(
                "partition {} begins behind the end of the disk",
                partition.number
            ));
            return false;
        };
        if partition.len_bytes > room {
            notes.push(format!(
                "partition {} reaches over the end of the disk",
                partition.number
            ));
            partition.len_bytes = room;
        }
        true
    });
    partitions
}
