//! Where everything lies in a guest's physical address space and in its port space. One place, so that nothing overlaps.
//!
//! ```text
//! 0x0000_0000  640 KiB of low memory: zero page, command line, page tables, GDT (only while booting)
//! 0x000a_0000  no memory (VGA, option ROMs, as on any PC)
//! 0x000e_0000  ACPI tables, reserved in the memory map; the machine's generation in the last page of this range
//! 0x0010_0000  the kernel, then memory up to 3 GiB at most; the initrd at its end
//! 0xc000_0000  BARs of PCI devices
//! 0xe000_0000  ECAM: configuration space of PCI bus 0
//! 0xfec0_0000  I/O APIC        0xfee0_0000  local APICs
//! 0xfffb_c000  KVM's own pages (real-mode identity map, TSS)
//! 0x1_0000_0000  the rest of memory
//! ```

/// Boot parameters of Linux ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Global descriptor table that the first processor starts with.
pub const GDT: u64 = 0x500;
/// Page tables that map the first 4 GiB one to one: one page each of PML4 and PDPT, four of directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Stack of the first instructions; Linux sets its own at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Most bytes of it, its final zero included: Linux takes 2,048 on x86.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// End of low memory that Linux may use.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// The root pointer to the ACPI tables, where firmware would put it, and the tables behind it.
pub const ACPI: u64 = 0xe_0000;
/// End of the range for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// The machine's generation, at the end of this range: tables end before it.
pub const GENERATION: u64 = ACPI_END - 0x1000;
/// Start of high memory, where kernels are loaded.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// End of the memory below 4 GiB; devices follow.
pub const MEMORY_LOW_MAX: u64 = 0xc000_0000;
/// Start of the memory that has no room below.
pub const MEMORY_HIGH: u64 = 1 << 32;

/// Window for BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Bytes of it.
pub const PCI_WINDOW_BYTES: u64 = 0x2000_0000;
/// Configuration space of the one bus, 4 KiB a function.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of it: 32 devices of 8 functions.
pub const ECAM_BYTES: u64 = 1 << 20;

/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs on Intel processors to run real mode.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs there too.
pub const TSS: usize = 0xfffb_d000;

/// First serial port and its interrupt.
pub const SERIAL_PORT: u16 = 0x3f8;
/// See [`SERIAL_PORT`].
pub const SERIAL_IRQ: u32 = 4;
/// Keyboard controller: only its reset line exists.
pub const I8042_PORT: u16 = 0x60;
/// Clock and its memory.
pub const CMOS_PORT: u16 = 0x70;
/// ACPI power management registers.
pub const PM_PORT: u16 = 0x600;
/// Interrupt of ACPI events.
pub const SCI_IRQ: u32 = 9;
/// Interrupt that tells of a new generation.
pub const GENERATION_IRQ: u32 = 10;
/// PCI configuration by ports, as kernels use it before they know of ECAM.
pub const CONFIG_PORT: u16 = 0xcf8;
/// Bytes of it.
pub const CONFIG_PORT_BYTES: u64 = 8;
/// Reset register that ACPI names; it lies in the middle of them, as on every PC.
pub const RESET_PORT: u16 = 0xcf9;

/// Interrupts of the I/O APIC; message-signalled ones are numbered from here on.
pub const IO_APIC_PINS: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the documentation's tables that begin with an address, as it is written there.
    fn documented() -> Vec<String> {
        let text = include_str!("../../../docs/vmm.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `0x"));
        rows.filter_map(|row| Some(format!("0x{}", row.split_once('`')?.0)))
            .collect()
    }

    /// With a line between the two halves, as addresses are written.
    fn written(address: u64) -> String {
        let digits = format!("{address:x}");
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(4) {
                text.push('_');
            }
            text.push(digit);
        }
        format!("0x{text}")
    }

    #[test]
    fn the_documented_map_is_this_one() {
        let memory = [
            0,
            LOW_MEMORY_END,
            ACPI,
            HIGH_MEMORY,
            PCI_WINDOW,
            ECAM,
            IO_APIC.into(),
            LOCAL_APIC.into(),
            IDENTITY_MAP,
            MEMORY_HIGH,
        ];
        let ports = [I8042_PORT, CMOS_PORT, SERIAL_PORT, PM_PORT, CONFIG_PORT];
        let all = memory.into_iter().chain(ports.map(u64::from));
        assert_eq!(documented(), all.map(written).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_overlaps() {
        let low = [GDT, ZERO_PAGE, PAGE_TABLES, COMMAND_LINE, LOW_MEMORY_END];
        assert!(low.is_sorted());
        const {
            assert!(ZERO_PAGE + 0x1000 < BOOT_STACK && BOOT_STACK < PAGE_TABLES);
            assert!(PAGE_TABLES + 6 * 0x1000 <= COMMAND_LINE);
            assert!(ACPI_END <= HIGH_MEMORY && MEMORY_LOW_MAX <= PCI_WINDOW);
            assert!(PCI_WINDOW + PCI_WINDOW_BYTES <= ECAM);
            assert!(ECAM + ECAM_BYTES <= IO_APIC as u64);
            assert!(IDENTITY_MAP + 0x1000 <= TSS as u64);
            assert!(TSS as u64 + 3 * 0x1000 <= MEMORY_HIGH);
        }
    }
}
