//! Putting a kernel into memory as a boot loader does: Linux's 64-bit boot protocol, or an ELF file's entry point.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::layout::{
    ACPI, ACPI_END, COMMAND_LINE, COMMAND_LINE_BYTES_MAX, ECAM, ECAM_BYTES, GDT, HIGH_MEMORY,
    LOW_MEMORY_END, PAGE_TABLES, ZERO_PAGE,
};
use super::memory::Memory;

/// An open file and what it is called.
#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
}

/// What a machine boots. Files are opened once: a machine that is reset boots the same ones again, whatever their names mean then.
#[derive(Debug)]
pub struct BootSource {
    kernel: Opened,
    initrd: Option<Opened>,
    command_line: String,
}

impl BootSource {
    /// A kernel, which is a bzImage or an ELF file, its initial RAM disk and its command line.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        command_line: &str,
    ) -> Result<Self, BootError> {
        Ok(Self {
            kernel: opened("kernel", kernel)?,
            initrd: initrd.map(|path| opened("initrd", path)).transpose()?,
            command_line: command_line.to_owned(),
        })
    }
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file.
    #[error("{what} {}", .path.display())]
    File {
        /// Kernel or initrd.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a kernel.
    #[error("{} is neither a bzImage nor an x86-64 ELF kernel: {reason}", .path.display())]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An old or a 32-bit kernel.
    #[error("{} has no 64-bit entry point: a 64-bit kernel of Linux 3.8 or later is needed", .0.display())]
    No64Bit(PathBuf),
    /// Too long.
    #[error("the kernel command line has {0} bytes, at most {max} are possible", max = COMMAND_LINE_BYTES_MAX - 1)]
    CommandLine(usize),
    /// Control characters in it.
    #[error("the kernel command line may have printable characters only")]
    CommandLineText,
    /// They do not fit.
    #[error(
        "kernel and initrd ({needed} bytes in all) do not fit into {memory} bytes of memory; give the machine more"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes below 4 GiB.
        memory: u64,
    },
    /// Ours.
    #[error("writing boot parameters")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// Where the first processor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Instruction pointer.
    pub instruction: u64,
    /// Address of the boot parameters.
    pub parameters: u64,
}

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// In `xloadflags`: there is a 64-bit entry point, 0x200 behind the start.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// In `loadflags`: the heap's end is valid.
const CAN_USE_HEAP: u8 = 1 << 7;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const PAGE: u64 = 4096;

fn opened(what: &'static str, path: &Path) -> Result<Opened, BootError> {
    let file = File::open(path).map_err(|source| BootError::File {
        what,
        path: path.to_owned(),
        source,
    })?;
    Ok(Opened {
        path: path.to_owned(),
        file,
    })
}

/// Puts kernel, initrd, command line and boot parameters into memory, and what a processor needs to begin in 64-bit mode.
///
/// # Errors
/// A file cannot be read, is no kernel, or does not fit.
pub fn load(memory: &Memory, source: &BootSource) -> Result<Entry, BootError> {
    let mut parameters = boot_params::default();
    let entry = kernel(memory, &source.kernel, &mut parameters)?;
    command_line(memory, &source.command_line, &mut parameters)?;
    if let Some(file) = &source.initrd {
        initrd(memory, file, entry.end, &mut parameters)?;
    }
    memory_map(memory, &mut parameters);
    parameters.hdr.boot_flag = BOOT_FLAG;
    parameters.hdr.header = HEADER_MAGIC;
    parameters.hdr.type_of_loader = LOADER_OTHER;
    parameters.acpi_rsdp_addr = ACPI;
    memory.write_slice(parameters.as_slice(), GuestAddress(ZERO_PAGE))?;
    long_mode_tables(memory)?;
    Ok(Entry {
        instruction: entry.instruction,
        parameters: ZERO_PAGE,
    })
}

struct Loaded {
    instruction: u64,
    /// First byte behind the kernel when it has unpacked itself.
    end: u64,
}

fn kernel(
    memory: &Memory,
    Opened { path, file }: &Opened,
    parameters: &mut boot_params,
) -> Result<Loaded, BootError> {
    let io = |source| BootError::File {
        what: "kernel",
        path: path.clone(),
        source,
    };
    // The loaders move their file's position, of which there is one for all copies.
    let mut file = file.try_clone().map_err(io)?;
    let mut magic = [0; 4];
    let read = file
        .rewind()
        .and_then(|()| file.read_exact(&mut magic))
        .and_then(|()| file.rewind());
    read.map_err(io)?;
    let not_a_kernel = |reason: linux_loader::loader::Error| BootError::NotAKernel {
        path: path.clone(),
        reason: reason.to_string(),
    };
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY)))
            .map_err(not_a_kernel)?;
        return Ok(Loaded {
            instruction: loaded.kernel_load.raw_value(),
            end: loaded.kernel_end,
        });
    }
    let loaded = BzImage::load(memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY)))
        .map_err(not_a_kernel)?;
    let header = loaded.setup_header.expect("a bzImage has a header");
    // Behind protocol 2.12 only.
    let flags = header.xloadflags;
    if header.version < 0x020c || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64Bit(path.clone()));
    }
    parameters.hdr = header;
    parameters.hdr.loadflags |= CAN_USE_HEAP;
    let start = loaded.kernel_load.raw_value();
    let unpacked = start + u64::from(header.init_size);
    Ok(Loaded {
        instruction: start + ENTRY_64,
        end: loaded.kernel_end.max(unpacked),
    })
}

fn command_line(
    memory: &Memory,
    text: &str,
    parameters: &mut boot_params,
) -> Result<(), BootError> {
    if text.len() >= COMMAND_LINE_BYTES_MAX {
        return Err(BootError::CommandLine(text.len()));
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(BootError::CommandLineText);
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE))?;
    parameters.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    Ok(())
}

/// As high as the kernel allows, so that it is out of its way.
fn initrd(
    memory: &Memory,
    Opened { path, file }: &Opened,
    kernel_end: u64,
    parameters: &mut boot_params,
) -> Result<(), BootError> {
    let io = |source| BootError::File {
        what: "initrd",
        path: path.clone(),
        source,
    };
    let mut file = file.try_clone().map_err(io)?;
    let len = file.seek(SeekFrom::End(0)).map_err(io)?;
    file.rewind().map_err(io)?;
    let low_end = low_memory_bytes(memory);
    let limit = match parameters.hdr.initrd_addr_max {
        // ELF kernels do not say.
        0 => low_end,
        max => low_end.min(u64::from(max) + 1),
    };
    let start = limit.checked_sub(len).map(|start| start & !(PAGE - 1));
    let start = start.filter(|start| *start >= kernel_end);
    let start = start.ok_or(BootError::Memory {
        // A kernel may say that it ends anywhere.
        needed: kernel_end.saturating_add(len),
        memory: low_end,
    })?;
    memory.read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)?;
    parameters.hdr.ramdisk_image = start as u32;
    parameters.hdr.ramdisk_size = len as u32;
    Ok(())
}

fn low_memory_bytes(memory: &Memory) -> u64 {
    let first = memory.iter().next().expect("a machine has memory");
    vm_memory::GuestMemoryRegion::len(first)
}

fn memory_map(memory: &Memory, parameters: &mut boot_params) {
    let mut map = vec![
        (0, LOW_MEMORY_END, E820_RAM),
        (ACPI, ACPI_END - ACPI, E820_RESERVED),
        (ECAM, ECAM_BYTES, E820_RESERVED),
    ];
    for region in memory.iter() {
        use vm_memory::GuestMemoryRegion;
        let start = region.start_addr().raw_value();
        let len = region.len();
        map.push(match start {
            0 => (HIGH_MEMORY, len - HIGH_MEMORY, E820_RAM),
            _ => (start, len, E820_RAM),
        });
    }
    map.sort_unstable();
    for (slot, (addr, size, type_)) in parameters.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *type_,
        };
    }
    parameters.e820_entries = map.len() as u8;
}

/// Segment descriptors as the boot protocol wants them: 64-bit code at 0x10, data at 0x18.
pub const CODE_SELECTOR: u16 = 0x10;
/// See [`CODE_SELECTOR`].
pub const DATA_SELECTOR: u16 = 0x18;
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Bytes of the table.
pub const GDT_BYTES: u16 = 32;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Page tables that map 4 GiB one to one by pages of 2 MiB, and segment descriptors.
fn long_mode_tables(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    for (index, descriptor) in [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR].iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(GDT + index as u64 * 8))?;
    }
    let entry = |table: u64, index: u64| GuestAddress(PAGE_TABLES + table * PAGE + index * 8);
    memory.write_obj((PAGE_TABLES + PAGE) | PRESENT_WRITABLE, entry(0, 0))?;
    for directory in 0..4 {
        let address = PAGE_TABLES + (2 + directory) * PAGE;
        memory.write_obj(address | PRESENT_WRITABLE, entry(1, directory))?;
        for page in 0..512 {
            let address = directory << 30 | page << 21;
            memory.write_obj(
                address | PRESENT_WRITABLE | LARGE,
                entry(2 + directory, page),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        file
    }

    /// The smallest bzImage that says it has a 64-bit entry.
    fn kernel_image(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0; 1024 + 4096];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&BOOT_FLAG.to_le_bytes());
        image[0x202..0x206].copy_from_slice(&HEADER_MAGIC.to_le_bytes());
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        image[1024..].fill(0x90);
        image
    }

    fn source(kernel: &tempfile::NamedTempFile) -> BootSource {
        BootSource::open(kernel.path(), None, "console=ttyS0").expect("a file")
    }

    #[test]
    fn a_kernel_lies_where_the_protocol_wants_it() {
        let memory = memory::create(64).expect("memory");
        let kernel = file(&kernel_image(XLF_KERNEL_64));
        let initrd = file(&[7; 5000]);
        let source = BootSource::open(kernel.path(), Some(initrd.path()), "console=ttyS0");
        let source = source.expect("files");
        let entry = load(&memory, &source).expect("a kernel");
        assert_eq!(entry.instruction, 0x10_0200);
        let parameters: boot_params = memory
            .read_obj(GuestAddress(entry.parameters))
            .expect("parameters");
        let start = u64::from(parameters.hdr.ramdisk_image);
        let size = parameters.hdr.ramdisk_size;
        assert_eq!(size, 5000);
        assert_eq!(start, (64 << 20) - 8192);
        let byte: u8 = memory.read_obj(GuestAddress(start + 4999)).expect("initrd");
        assert_eq!(byte, 7);
        let mut text = [0; 14];
        memory
            .read_slice(&mut text, GuestAddress(COMMAND_LINE))
            .expect("command line");
        assert_eq!(&text, b"console=ttyS0\0");
    }

    /// An ELF file whose one segment says that it takes so many bytes of memory.
    fn elf_image(memory_bytes: u64) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        image[0x18..0x20].copy_from_slice(&HIGH_MEMORY.to_le_bytes());
        (image[0x20], image[0x36], image[0x38]) = (64, 56, 1);
        let segment = &mut image[64..];
        segment[0] = 1;
        segment[0x18..0x20].copy_from_slice(&HIGH_MEMORY.to_le_bytes());
        segment[0x20] = 16;
        segment[0x28..0x30].copy_from_slice(&memory_bytes.to_le_bytes());
        image
    }

    #[test]
    fn a_kernel_that_says_it_takes_all_of_memory_is_refused() {
        let memory = memory::create(64).expect("memory");
        let initrd = file(&[7; 5000]);
        for (bytes, fits) in [
            (4096, true),
            (1 << 40, false),
            (u64::MAX - HIGH_MEMORY, false),
        ] {
            let kernel = file(&elf_image(bytes));
            let source = BootSource::open(kernel.path(), Some(initrd.path()), "");
            let loaded = load(&memory, &source.expect("files"));
            assert_eq!(loaded.is_ok(), fits, "{bytes}");
            assert!(fits || matches!(loaded, Err(BootError::Memory { .. })));
        }
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let memory = memory::create(64).expect("memory");
        let text = file(b"#!/bin/sh\n");
        assert!(matches!(
            load(&memory, &source(&text)),
            Err(BootError::NotAKernel { .. })
        ));
        let old = file(&kernel_image(0));
        assert!(matches!(
            load(&memory, &source(&old)),
            Err(BootError::No64Bit(_))
        ));
        let kernel = file(&kernel_image(XLF_KERNEL_64));
        let mut long = source(&kernel);
        long.command_line = "x".repeat(COMMAND_LINE_BYTES_MAX);
        assert!(matches!(
            load(&memory, &long),
            Err(BootError::CommandLine(_))
        ));
        let initrd = file(&[]);
        initrd.as_file().set_len(64 << 20).expect("a sparse file");
        let large = BootSource::open(kernel.path(), Some(initrd.path()), "").expect("files");
        assert!(matches!(
            load(&memory, &large),
            Err(BootError::Memory { .. })
        ));
    }
}
