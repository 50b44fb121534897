//! ACPI tables (6.5): what a kernel finds of the machine beside what PCI tells.
//!
//! Full, not reduced, hardware: a power button and soft-off by fixed registers, which every kernel knows. The tables lie where firmware
//! puts them, with the root pointer first.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, facs::FACS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::interrupts::TIMER_PIN;
use super::layout::{
    ACPI, CMOS_PORT, CONFIG_PORT, CONFIG_PORT_BYTES, ECAM, ECAM_BYTES, GENERATION, GENERATION_IRQ,
    IO_APIC, LOCAL_APIC, PCI_WINDOW, PCI_WINDOW_BYTES, PM_PORT, RESET_PORT, SCI_IRQ, SERIAL_IRQ,
    SERIAL_PORT,
};
use super::memory::Memory;
use crate::legacy::power::{PM_TIMER, PM1_CONTROL, SLEEP_TYPE_OFF};
use crate::pci::ports::RESET_VALUE;

const OEM: [u8; 6] = *b"SPLICE";
const TABLE: [u8; 8] = *b"DESKTOP ";
const REVISION: u32 = 1;

/// Century register of the clock.
const CENTURY: u8 = 0x32;
/// In FADT's boot flags: there is no VGA; and there are no legacy devices but those in the DSDT.
const NO_VGA: u16 = 1 << 2;

/// In a MADT flag word: level-triggered, active high.
const LEVEL_HIGH: u16 = 0b1101;
/// In the MADT: there are PICs too.
const PC_AT: u32 = 1;

/// Writes the tables of a machine with so many processors.
///
/// # Errors
/// Never with the layout that is checked: the tables have memory.
pub fn write(memory: &Memory, vcpus: u8) -> Result<(), GuestMemoryError> {
    // The root pointer comes first, then tables from the next line on.
    let mut at = ACPI + 64;
    let mut put = |bytes: &[u8]| {
        let here = at;
        at = (here + bytes.len() as u64).next_multiple_of(64);
        assert!(at <= GENERATION, "the tables have 124 KiB");
        memory.write_slice(bytes, GuestAddress(here)).map(|()| here)
    };
    let dsdt = put(&dsdt())?;
    let facs = put(&bytes_of(&FACS::new()))?;
    let fadt = put(&fadt(dsdt, facs))?;
    let madt = put(&madt(vcpus))?;
    let mcfg = put(&mcfg())?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = put(&bytes_of(&xsdt))?;
    let root = bytes_of(&Rsdp::new(OEM, xsdt));
    memory.write_slice(&root, GuestAddress(ACPI))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(GasSpace::SystemIo, bits, 0, access, address.into())
}

fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let (control, timer) = (PM_PORT + PM1_CONTROL, PM_PORT + PM_TIMER);
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = (SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = port(PM_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(control, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(timer, 32, AccessSize::DwordAccess);
    // No C2 and C3 states: their latencies are beyond what is allowed for them.
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (0xfff.into(), 0xfff.into());
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    bytes_of(&fadt.finalize())
}

/// Processors, the I/O APIC and how pins differ from one-to-one.
fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, TABLE, REVISION);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, PC_AT);
    for number in 0..vcpus {
        madt.append_slice(&[0, 8, number, number, 1, 0, 0, 0]);
    }
    let mut io_apic = vec![1, 12, 0, 0];
    io_apic.extend(IO_APIC.to_le_bytes());
    io_apic.extend(0u32.to_le_bytes());
    madt.append_slice(&io_apic);
    for (source, pin, flags) in [(0, TIMER_PIN, 0), (SCI_IRQ as u8, SCI_IRQ, LEVEL_HIGH)] {
        let mut entry = vec![2, 10, 0, source];
        entry.extend(pin.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        madt.append_slice(&entry);
    }
    // Non-maskable interrupts come in at LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.as_slice().to_vec()
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    bytes_of(&mcfg)
}

/// AML that is made already.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A device with its plug-and-play id, unique number and resources, and what it has beside them.
fn device(name: &str, id: &str, unique: u8, resources: Vec<&dyn Aml>, others: &[&dyn Aml]) -> Made {
    let id = Name::new(Path::new("_HID"), &EISAName::new(id));
    let unique = Name::new(Path::new("_UID"), &unique);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let mut parts: Vec<&dyn Aml> = vec![&id, &unique, &resources];
    parts.extend(others);
    Made(bytes_of(&Device::new(Path::new(name), parts)))
}

/// The machine's generation: where it is, by the names under which kernels look for it.
fn generation() -> Made {
    let id = Name::new(Path::new("_HID"), &"SPLCVMGN");
    let compatible = Name::new(Path::new("_CID"), &"VM_Gen_Counter");
    let described = Name::new(Path::new("_DDN"), &"VM_Gen_Counter");
    let (low, high) = (GENERATION as u32, (GENERATION >> 32) as u32);
    let address = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    let parts: Vec<&dyn Aml> = vec![&id, &compatible, &described, &address];
    Made(bytes_of(&Device::new(Path::new("VGEN"), parts)))
}

/// An event device (ACPI 6.5, section 5.6.9): its interrupt says that there is a new generation.
fn events() -> Made {
    const NEW_GENERATION: u8 = 0x80;
    let id = Name::new(Path::new("_HID"), &"ACPI0013");
    let unique = Name::new(Path::new("_UID"), &ZERO);
    let interrupt = Interrupt::new(true, true, false, false, GENERATION_IRQ);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt]));
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &NEW_GENERATION);
    // It has one interrupt: what it is called with is known.
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&notify]);
    let parts: Vec<&dyn Aml> = vec![&id, &unique, &resources, &event];
    Made(bytes_of(&Device::new(Path::new("GED_"), parts)))
}

fn dsdt() -> Vec<u8> {
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW as u32,
        (PCI_WINDOW + PCI_WINDOW_BYTES - 1) as u32,
        None,
    );
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(CONFIG_PORT, CONFIG_PORT, 1, CONFIG_PORT_BYTES as u8);
    // PCI Express, which is also PCI: kernels look for the latter.
    let compatible = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let segment = Name::new(Path::new("_SEG"), &ZERO);
    let first_bus = Name::new(Path::new("_BBN"), &ZERO);
    let others: [&dyn Aml; 3] = [&compatible, &segment, &first_bus];
    let pci = device("PCI0", "PNP0A08", 0, vec![&bus, &ports, &window], &others);
    // Kernels use ECAM only where somebody has reserved it.
    let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_BYTES as u32);
    let board = device("MBRD", "PNP0C02", 0, vec![&ecam], &[]);
    let port = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ);
    let serial = device("COM1", "PNP0501", 1, vec![&port, &interrupt], &[]);
    let port = IO::new(CMOS_PORT, CMOS_PORT, 1, 2);
    let clock = device("RTC_", "PNP0B00", 0, vec![&port], &[]);

    let (generation, events) = (generation(), events());
    let parts: Vec<&dyn Aml> = vec![&pci, &board, &serial, &clock, &generation, &events];
    let bus = Scope::new(Path::new("_SB_"), parts);
    let kind = SLEEP_TYPE_OFF as u8;
    let off = Package::new(vec![&kind, &kind, &ZERO, &ZERO]);
    let off = Name::new(Path::new("_S5_"), &off);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&bytes_of(&bus));
    dsdt.append_slice(&bytes_of(&off));
    dsdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// A table by its address.
    fn find(read: &dyn Fn(u64, usize) -> Vec<u8>, at: u64) -> Vec<u8> {
        let head = read(at, 8);
        let len = u32::from_le_bytes(head[4..].try_into().expect("four bytes"));
        read(at, len as usize)
    }

    #[test]
    fn all_tables_are_found_from_the_root_and_add_up() {
        let memory = memory::create(64).expect("memory");
        write(&memory, 4).expect("room for tables");
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory
                .read_slice(&mut bytes, GuestAddress(at))
                .expect("memory");
            bytes
        };
        let long = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let table = |at: u64| find(&read, at);
        let root = read(ACPI, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        let xsdt = table(long(&root[24..32]));
        assert_eq!(sum(&xsdt), 0);
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let table = table(long(entry));
            assert_eq!(sum(&table), 0);
            names.push(String::from_utf8_lossy(&table[..4]).into_owned());
            if names.last().is_some_and(|name| name == "FACP") {
                let dsdt = find(&read, long(&table[140..148]));
                assert_eq!(&dsdt[..4], b"DSDT");
                for name in [&b"VGEN"[..], b"VM_Gen_Counter\0", b"ACPI0013\0", b"_EVT"] {
                    let found = dsdt.windows(name.len()).any(|window| window == name);
                    assert!(found, "{}", String::from_utf8_lossy(name));
                }
            }
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
    }
}
