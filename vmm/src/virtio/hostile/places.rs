//! What else of a machine takes foreign bytes: configuration space, the transport's registers, and kernels.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use super::driver::MEMORY_BYTES;
use super::subject::{Kind, make};
use crate::machine::boot::{self, BootSource};
use crate::machine::bus::{Bus, lock};
use crate::machine::interrupts::Interrupts;
use crate::machine::layout::{PCI_WINDOW, PCI_WINDOW_BYTES};
use crate::machine::memory::{self, Memory};
use crate::machine::{create_vm, open_kvm};
use crate::pci::Function;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{self, Msix, Vector};
use crate::virtio::pci::{BAR_BYTES, VirtioPci};

const VECTORS: usize = 5;
const BAR: u32 = PCI_WINDOW as u32;
/// Memory of a machine that boots something.
const BOOT_MIB: u64 = 64;

/// One access: what, where, and bytes.
struct Access<'a> {
    what: u8,
    at: usize,
    bytes: &'a [u8],
}

/// Accesses of 1 to 8 bytes.
fn accesses(data: &[u8]) -> impl Iterator<Item = Access<'_>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (head, behind) = rest.split_first_chunk::<4>()?;
        let [what, low, high, len] = *head;
        let (bytes, behind) = behind.split_at(behind.len().min(usize::from(len % 8) + 1));
        rest = behind;
        Some(Access {
            what,
            at: usize::from(u16::from_le_bytes([low, high])),
            bytes,
        })
    })
}

#[derive(Default)]
struct Wire(bool);

impl Vector for Wire {
    fn connect(&mut self, _: u64, _: u32) {
        self.0 = true;
    }

    fn disconnect(&mut self) {
        self.0 = false;
    }

    fn is_pending(&self) -> bool {
        !self.0
    }
}

/// Reads and writes of a function's configuration space and of its table of interrupts.
///
/// # Panics
/// Something that a guest must not change has changed, or an interrupt is connected that should not be.
pub fn configuration(data: &[u8]) {
    let mut space = ConfigSpace::new(0x1af4, 0x1042, [1, 0, 0]).with_bar(BAR, BAR_BYTES);
    let body = msix::capability(VECTORS, 0x4000, 0x5000);
    let writable = [(msix::CONTROL_HIGH, msix::ENABLE | msix::MASK_ALL)];
    let at = space.add_capability(msix::CAPABILITY, &body, &writable);
    let mut table = Msix::new((0..VECTORS).map(|_| Wire::default()).collect());
    for access in accesses(data) {
        let mut read = vec![0; access.bytes.len()];
        match access.what % 5 {
            0 => space.read(access.at, &mut read),
            1 => {
                space.write(access.at, access.bytes);
                table.control(space.byte(at + msix::CONTROL_HIGH));
            }
            2 => table.read_table(access.at, &mut read),
            3 => table.write_table(access.at, access.bytes),
            _ => table.read_pending(access.at, &mut read),
        }
        let mut id = [0; 4];
        space.read(0, &mut id);
        assert_eq!(u32::from_le_bytes(id), 0x1042_1af4);
        assert!(usize::from(space.byte(0x34)) == at && space.byte(at + 1) == 0);
        assert!(
            space
                .bar()
                .is_none_or(|bar| bar.is_multiple_of(BAR_BYTES.into()))
        );
        let control = space.byte(at + msix::CONTROL_HIGH);
        let on = control & msix::ENABLE != 0 && control & msix::MASK_ALL == 0;
        for (words, vector) in table.table().into_iter().zip(table.vectors()) {
            assert_eq!(vector.0, on && words[3] & 1 == 0);
        }
    }
}

struct Transport {
    device: Arc<Mutex<VirtioPci>>,
    bus: Arc<Bus>,
    memory: Memory,
}

impl Transport {
    fn new() -> Option<Self> {
        let kvm = open_kvm().ok()?;
        let memory = memory::small(MEMORY_BYTES).ok()?;
        let vm = Arc::new(create_vm(&kvm, &memory).ok()?);
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm)).ok()?);
        let bus = Arc::new(Bus::default());
        let (block, _) = make(Kind::Block);
        let on = Arc::clone(&bus);
        let device = VirtioPci::new("hostile", block, vm, on, &interrupts, memory.clone(), BAR);
        Some(Self {
            device: device.ok()?,
            bus,
            memory,
        })
    }

    fn begin(&self) {
        let mut device = lock(&self.device);
        let (command, bar) = (0x04, 0x10);
        device.write_config(bar, &BAR.to_le_bytes());
        device.write_config(command, &[0b10, 0]);
        drop(device);
        // Device status: reset.
        self.bus.write(u64::from(BAR) + 0x14, &[0]);
        let zeros = vec![0; MEMORY_BYTES as usize / 4];
        let written =
            vm_memory::Bytes::write_slice(&self.memory, &zeros, vm_memory::GuestAddress(0));
        written.expect("inside of memory");
    }

    fn run(&self, data: &[u8]) {
        self.begin();
        for access in accesses(data) {
            let mut read = vec![0; access.bytes.len()];
            let bar = lock(&self.device).config().bar().unwrap_or(BAR.into());
            let register = bar + access.at as u64 % u64::from(BAR_BYTES);
            match access.what % 6 {
                0 => self.bus.read(register, &mut read),
                // Writes into the common configuration are what there is most to find in.
                1 | 2 => self
                    .bus
                    .write(register & !0xfc0 | register & 0x3f, access.bytes),
                3 => self.bus.write(register, access.bytes),
                4 => lock(&self.device).write_config(access.at % 300, access.bytes),
                _ => {
                    let at = vm_memory::GuestAddress(access.at as u64);
                    let written = vm_memory::Bytes::write_slice(&self.memory, access.bytes, at);
                    written.expect("inside of memory");
                }
            }
            let bar = lock(&self.device).config().bar();
            let window = PCI_WINDOW..PCI_WINDOW + PCI_WINDOW_BYTES;
            if let Some(bar) = bar.filter(|bar| !window.contains(bar)) {
                let mut nobody = [0];
                self.bus.read(bar, &mut nobody);
                assert_eq!(nobody, [0xff], "a BAR answers outside of its window");
            }
        }
        self.begin();
    }
}

/// Accesses to a device's registers and configuration space. Without KVM there is nothing to be tried: false.
pub fn transport(data: &[u8]) -> bool {
    static TRANSPORT: OnceLock<Option<Mutex<Transport>>> = OnceLock::new();
    let transport = TRANSPORT.get_or_init(|| Transport::new().map(Mutex::new));
    let Some(transport) = transport else {
        return false;
    };
    lock(transport).run(data);
    true
}

/// A file of these bytes, and a name for it as long as it is open.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let file = memory::memfd(bytes.len() as u64).expect("room for a file");
    file.write_all_at(bytes, 0).expect("written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

/// Loads a kernel with an initrd and a command line of these bytes, as a machine that starts does. What is loaded begins in memory.
///
/// # Panics
/// The host has no room.
pub fn boot(kernel: &[u8], initrd: &[u8], command_line: &[u8]) {
    let ((_kernel, kernel), (_initrd, initrd)) = (file(kernel), file(initrd));
    let command_line = String::from_utf8_lossy(command_line);
    let source = BootSource::open(&kernel, Some(&initrd), &command_line).expect("open files");
    let memory = memory::create(BOOT_MIB).expect("room for a machine");
    if let Ok(entry) = boot::load(&memory, &source) {
        assert_eq!(entry.parameters, crate::machine::layout::ZERO_PAGE);
    }
}
