//! A guest that counts, saved and gone on with on the host's KVM.

mod transports;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Instant;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vm_memory::{Bytes, GuestAddress};
use vmm_api::{Answer, Command, Then};
use vmm_block::MemoryDevice;

use super::*;
use crate::clipboard::{self, Clipboard};
use crate::legacy::generation;
use crate::machine::boot::BootSource;
use crate::machine::memory::Memory;
use crate::machine::{End, MachineSpec, open_kvm};
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{Block, Disk, Limits};
use crate::virtio::console::{Console, HostEnd, PortSpec};
use crate::virtio::input::{Input, InputSender, Model};
use crate::virtio::net::{self, Net, Tap};
use crate::virtio::rng::Rng;

const PATIENCE: Duration = Duration::from_secs(60);
/// Where the guest counts to.
const COUNT: u64 = 0x30_0000;
const CODE: u64 = 0x20_0000;

/// Counts in a register, keeps the count in memory, and prints a dot for every 256.
const GUEST: [u8; 28] = [
    0x48, 0xc7, 0xc3, 0x00, 0x00, 0x30, 0x00, // mov rbx, COUNT
    0x31, 0xc9, //                               xor ecx, ecx
    0x48, 0xff, 0xc1, //                         inc rcx
    0x48, 0x89, 0x0b, //                         mov [rbx], rcx
    0x84, 0xc9, //                               test cl, cl
    0x75, 0xf6, //                               jnz to the inc
    0x66, 0xba, 0xf8, 0x03, //                   mov dx, 0x3f8
    0xb0, 0x2e, //                               mov al, '.'
    0xee, //                                     out dx, al
    0xeb, 0xed, //                               jmp to the inc
];

fn elf(code: &[u8]) -> tempfile::NamedTempFile {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for long in [CODE, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let len = code.len() as u64;
    for long in [120, CODE, CODE, len, len, 0x1000] {
        file.extend(u64::to_le_bytes(long));
    }
    file.extend(code);
    let named = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(named.path(), file).expect("written");
    named
}

fn kvm() -> Option<Kvm> {
    let kvm = open_kvm();
    kvm.inspect_err(|error| eprintln!("{error}: nothing to run a guest on"))
        .ok()
}

fn devices(disk_bytes: usize) -> Devices {
    devices_and_cable(disk_bytes).0
}

/// With the cable of the network card.
fn devices_and_cable(disk_bytes: usize) -> (Devices, Link) {
    let disk = Disk {
        device: Arc::new(MemoryDevice::new(disk_bytes)),
        serial: "one".into(),
        queues: 2,
        limits: Limits::default(),
    };
    let (tap, _wire) = Tap::wire().expect("sockets");
    let card = Net::new([2, 0, 0, 0, 0, 1], tap, net::Limits::default());
    let link = card.link();
    let port = PortSpec {
        name: clipboard::PORT_NAME.into(),
        end: HostEnd::Clipboard(Clipboard::default()),
    };
    let ports = Console::new(&[port]).expect("an event");
    let keyboard = Input::new(Model::Keyboard, InputSender::default());
    let devices: Devices = vec![
        ("disk-0".into(), Box::new(Block::new(disk))),
        ("net-0".into(), Box::new(card)),
        ("ports".into(), Box::new(ports)),
        ("balloon".into(), Box::new(Balloon::default())),
        ("rng".into(), Box::<Rng>::default()),
        ("keyboard".into(), Box::new(keyboard)),
    ];
    (devices, link)
}

fn build(kvm: &Kvm) -> Machine {
    build_with(kvm, devices(1 << 20), Vec::new())
}

fn build_with(kvm: &Kvm, devices: Devices, links: Vec<Link>) -> Machine {
    let kernel = elf(&GUEST);
    let boot = BootSource::open(kernel.path(), None, "").expect("a file");
    let spec = MachineSpec {
        memory_mib: 64,
        vcpus: 2,
        boot: &boot,
        devices,
        serial: SerialLine::default(),
        balloon: None,
        links,
    };
    Machine::build(kvm, spec).expect("a machine")
}

fn spec(devices: Devices) -> ResumeSpec {
    ResumeSpec {
        devices,
        serial: SerialLine::default(),
        balloon: None,
        links: Vec::new(),
        loading: Loading::begun(),
        faults: Faults::open().ok(),
        on_damage: Box::new(|error| panic!("{error}")),
    }
}

/// A machine that runs.
struct Running {
    memory: Memory,
    events: Events,
    thread: JoinHandle<(End, Devices)>,
}

impl Running {
    fn start(machine: Machine) -> Self {
        Self {
            memory: machine.board.memory.clone(),
            events: machine.events(),
            thread: std::thread::spawn(move || machine.run(0)),
        }
    }

    fn ask(&self, command: Command) -> Answer {
        self.ask_with(command, Vec::new())
    }

    fn ask_with(&self, command: Command, files: Vec<OwnedFd>) -> Answer {
        let (sender, answers) = sync_channel(1);
        self.events.put(Event::Command(command, files, sender));
        answers.recv_timeout(PATIENCE).expect("an answer")
    }

    /// Has it saved into a folder that is made for it.
    fn snapshot(&self, dir: &Path, then: Then) -> Answer {
        std::fs::create_dir(dir).expect("made");
        let make = |name: &str| OwnedFd::from(File::create(dir.join(name)).expect("made"));
        let files = vec![make("state"), make("memory")];
        self.ask_with(Command::Snapshot { then }, files)
    }

    fn count(&self) -> u64 {
        count(&self.memory)
    }

    fn wait_beyond(&self, count: u64) -> u64 {
        let begun = Instant::now();
        loop {
            let now = self.count();
            if now > count {
                return now;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the guest does not count beyond {count}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) -> End {
        self.thread.join().expect("no panic").0
    }
}

fn count(memory: &Memory) -> u64 {
    memory.read_obj(GuestAddress(COUNT)).expect("memory")
}

fn read(dir: &Path) -> Result<Snapshot, SnapshotError> {
    Snapshot::open(dir)?.read()
}

#[test]
fn a_guest_goes_on_counting_in_every_machine_of_its_snapshot() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("snap");
    let before = Running::start(build(&kvm));
    let reached = before.wait_beyond(1000);
    assert_eq!(before.snapshot(&dir, Then::GoOn), Answer::Done);
    let generation = generation::read(&before.memory).expect("memory");
    let later = before.count();
    before.wait_beyond(later + 1000);
    // Without files, and with one that is not empty.
    let then = Then::GoOn;
    let again = before.ask(Command::Snapshot { then });
    assert!(matches!(again, Answer::Refused(reason) if reason.contains("`splice-vmm snapshot`")));
    let open = |name: &str| OwnedFd::from(File::open(dir.join(name)).expect("opened"));
    let full = vec![open("state"), open("memory")];
    let again = before.ask_with(Command::Snapshot { then }, full);
    assert!(matches!(again, Answer::Refused(reason) if reason.contains("is not empty")));
    before.wait_beyond(before.count());
    assert_eq!(before.ask(Command::Quit), Answer::Done);
    assert_eq!(before.end(), End::Off);

    let mut generations = vec![generation];
    let mut saved = None;
    for _ in 0..2 {
        let opened = read(&dir).expect("whole");
        let machine = Machine::resume(&kvm, opened, spec(devices(1 << 20)));
        let machine = machine.expect("the same host and devices");
        let from = count(&machine.board.memory);
        assert!(from >= reached, "{from} was saved after {reached}");
        assert_eq!(*saved.get_or_insert(from), from, "the same place");
        generations.push(generation::read(&machine.board.memory).expect("memory"));
        let after = Running::start(machine);
        after.wait_beyond(from + 1000);
        assert_eq!(after.ask(Command::Quit), Answer::Done);
        assert_eq!(after.end(), End::Off);
    }
    generations.sort_unstable();
    generations.dedup();
    assert_eq!(
        generations.len(),
        3,
        "each machine has a generation of its own"
    );
}

#[test]
fn a_machine_that_ends_with_its_snapshot_can_be_saved_again_while_it_loads() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let mut running = Running::start(build(&kvm));
    let mut reached = running.wait_beyond(500);
    for round in 0..3 {
        let dir = temp.path().join(format!("snap-{round}"));
        // A paused machine is saved as well, and what goes on runs.
        if round == 1 {
            assert_eq!(running.ask(Command::Pause), Answer::Done);
        }
        assert_eq!(running.snapshot(&dir, Then::Quit), Answer::Done);
        let last = running.count();
        assert!(last >= reached);
        assert_eq!(running.end(), End::Off);
        let opened = read(&dir).expect("whole");
        let machine = Machine::resume(&kvm, opened, spec(devices(1 << 20))).expect("a machine");
        assert_eq!(count(&machine.board.memory), last, "nothing ran in between");
        running = Running::start(machine);
        reached = running.wait_beyond(last + 500);
    }
    assert_eq!(running.ask(Command::Quit), Answer::Done);
    assert_eq!(running.end(), End::Off);
}

#[test]
fn a_cable_that_was_pulled_is_out_in_the_machine_that_goes_on_until_it_is_put_in() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("snap");
    let (devices, link) = devices_and_cable(1 << 20);
    let running = Running::start(build_with(&kvm, devices, vec![link.clone()]));
    running.wait_beyond(1);
    let cable = |up| Command::Link { card: 0, up };
    assert_eq!(running.ask(cable(false)), Answer::Done);
    assert!(!link.is_up());
    assert_eq!(running.snapshot(&dir, Then::Quit), Answer::Done);
    running.end();
    let (devices, link) = devices_and_cable(1 << 20);
    let spec = ResumeSpec {
        links: vec![link.clone()],
        ..spec(devices)
    };
    let machine = Machine::resume(&kvm, read(&dir).expect("whole"), spec);
    let running = Running::start(machine.expect("the same host and devices"));
    assert!(!link.is_up());
    assert_eq!(running.ask(cable(true)), Answer::Done);
    assert!(link.is_up());
    let other = running.ask(Command::Link { card: 1, up: true });
    assert!(matches!(other, Answer::Refused(_)), "{other:?}");
    assert_eq!(running.ask(Command::Quit), Answer::Done);
    assert_eq!(running.end(), End::Off);
}

#[test]
fn other_machines_and_hosts_are_refused_with_what_differs() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("snap");
    let running = Running::start(build(&kvm));
    running.wait_beyond(1);
    assert_eq!(running.snapshot(&dir, Then::Quit), Answer::Done);
    running.end();
    let open = || read(&dir).expect("whole");
    let refused = |snapshot, devices| {
        let resumed = Machine::resume(&kvm, snapshot, spec(devices));
        super::super::chain(&resumed.err().expect("refused"))
    };
    let mut fewer = devices(1 << 20);
    fewer.pop();
    let told = refused(open(), fewer);
    assert!(
        told.contains(
            "has the devices disk-0, net-0, ports, balloon, rng, keyboard, this one has disk-0, net-0, ports, balloon, rng"
        ),
        "{told}"
    );
    let told = refused(open(), devices(2 << 20));
    assert_eq!(told, "device disk-0: it had 1048576 bytes, now 2097152");
    let mut other = open();
    let mut cpuid = other.saved.processors.0[0].cpuid.iter_mut();
    let leaf = cpuid.find(|entry| entry.function == 7 && entry.index == 0);
    if let Some(leaf) = leaf {
        leaf.ebx = u32::MAX;
        let told = refused(other, devices(1 << 20));
        assert!(told.contains("whose guest relies on: "), "{told}");
    }
    let mut fewer = open();
    fewer.saved.processors.0.pop();
    assert!(refused(fewer, devices(1 << 20)).contains("processors"));
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("snap");
    let running = Running::start(build(&kvm));
    running.wait_beyond(1);
    assert_eq!(running.snapshot(&dir, Then::Quit), Answer::Done);
    running.end();
    let path = dir.join("state");
    let whole = std::fs::read(&path).expect("there");
    for round in 0..40 {
        let at = whole.len() * round / 40;
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (round % 8);
        std::fs::write(&path, damaged).expect("written");
        assert!(read(&dir).is_err(), "bit {} of byte {at}", round % 8);
        std::fs::write(&path, &whole[..at]).expect("written");
        assert!(read(&dir).is_err(), "cut at {at}");
    }
    std::fs::write(&path, &whole).expect("written");
    assert!(read(&dir).is_ok());
    std::fs::remove_file(dir.join("memory")).expect("removed");
    assert!(read(&dir).is_err());
    assert!(read(temp.path()).is_err(), "a folder that is none");
}

/// A file that is whole and makes no sense, as somebody may have written it: it is refused, or a machine that is its own loss.
#[test]
fn no_state_that_somebody_has_made_up_ends_the_process() {
    let Some(kvm) = kvm() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("snap");
    let running = Running::start(build(&kvm));
    running.wait_beyond(1);
    assert_eq!(running.snapshot(&dir, Then::Quit), Answer::Done);
    running.end();
    let path = dir.join("state");
    let whole = std::fs::read(&path).expect("there");
    let mut random = TestRunner::deterministic();
    let mut draw = |end: usize| {
        let tree = (0..end).new_tree(&mut random).expect("a number");
        tree.current()
    };
    for _ in 0..150 {
        let mut body = whole[56..].to_vec();
        for _ in 0..=draw(3) {
            let at = draw(body.len());
            body[at] = draw(256) as u8;
        }
        let mut file = whole[..24].to_vec();
        file.extend(blake3::hash(&body).as_bytes());
        file.extend(body);
        std::fs::write(&path, file).expect("written");
        let Ok(opened) = read(&dir) else {
            continue;
        };
        let spec = ResumeSpec {
            on_damage: Box::new(|_| ()),
            ..spec(devices(1 << 20))
        };
        if let Ok(machine) = Machine::resume(&kvm, opened, spec) {
            machine.end();
        }
    }
}
