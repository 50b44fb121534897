//! Machines: scripts of drivers that keep to the rules, in the form of `vmm::virtio::hostile::run`, kernels, commands and snapshots.

use std::time::Duration;

use splice_fuzz::script::piece;
use vmm::snapshot::Shape;
use vmm::snapshot::memory::Blocks;
use vmm::snapshot::parts::Parts;
use vmm::snapshot::sealed::{Kind, seal};
use vmm::virtio::hostile::{KINDS, saved};

use crate::Seeds;
use crate::screen::message as agent;

/// A chain in queue `queue`: what is read of it, and lengths of what is written.
fn chain(queue: u8, readable: &[&[u8]], writable: &[u16]) -> Vec<u8> {
    let mut bytes = vec![queue << 4, readable.len() as u8, writable.len() as u8, 1];
    for part in readable {
        bytes.push(u8::try_from(part.len()).expect("parts are short"));
        bytes.extend(*part);
    }
    for len in writable {
        bytes.extend(len.to_le_bytes());
        bytes.push(3);
    }
    bytes
}

/// What the host does.
fn host(bytes: &[u8]) -> Vec<u8> {
    [&[14, bytes.len() as u8][..], bytes].concat()
}

/// A reset in the middle.
const RESET: [u8; 3] = [11, 0, 0];

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn block() -> Vec<Vec<u8>> {
    let head = |kind: u32, sector: u32| words(&[kind, 0, sector, 0]);
    let range = words(&[8, 0, 8, 0]);
    vec![
        chain(0, &[&head(0, 0)], &[512, 512, 1]),
        chain(0, &[&head(1, 3), &[7; 255], &[7; 255], &[7; 2]], &[1]),
        chain(1, &[&head(4, 0)], &[1]),
        chain(1, &[&head(8, 0)], &[20, 1]),
        chain(0, &[&head(11, 0), &range], &[1]),
        chain(0, &[&head(13, 0), &range], &[1]),
        RESET.to_vec(),
        chain(0, &[&head(0, 200)], &[512, 1]),
    ]
}

fn console() -> Vec<Vec<u8>> {
    let say = |port: u32, event: u16, value: u16| {
        let message = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat();
        chain(3, &[&message], &[])
    };
    vec![
        chain(2, &[], &[64]),
        chain(2, &[], &[64]),
        say(u32::MAX, 0, 1),
        host(&[0]),
        say(1, 3, 1),
        say(1, 6, 1),
        host(&[1, b'h', b'i']),
        chain(4, &[], &[100]),
        chain(5, &[b"answer"], &[]),
        host(&[]),
        // The clipboard's agent says what it can, and is offered a text.
        say(2, 3, 1),
        say(2, 6, 1),
        chain(6, &[], &[100]),
        chain(7, &[&agent(6, &[1, 0, 0, 0, 0x60, 0, 0, 0])], &[]),
        host(&[2, b'h', b'i']),
        chain(6, &[], &[100]),
        chain(7, &[&agent(8, &[0, 0, 0, 0, 1, 0, 0, 0])], &[]),
        chain(6, &[], &[100]),
        RESET.to_vec(),
    ]
}

fn gpu() -> Vec<Vec<u8>> {
    let command = |kind: u32, fields: &[u32]| {
        let bytes = [words(&[kind, 1, 7, 0, 0, 0]), words(fields)].concat();
        chain(0, &[&bytes], &[408])
    };
    vec![
        command(0x0100, &[]),
        command(0x010a, &[0, 0]),
        command(0x0101, &[1, 1, 64, 64]),
        command(0x0106, &[1, 2, 0x8_0000, 0, 8192, 0, 0x9_0000, 0, 8192, 0]),
        command(0x0103, &[0, 0, 64, 64, 0, 1]),
        command(0x0105, &[0, 0, 64, 64, 0, 0, 1, 0]),
        command(0x0104, &[0, 0, 64, 64, 1, 0]),
        chain(
            1,
            &[&words(&[0x0300, 0, 0, 0, 0, 0, 0, 5, 6, 0, 1, 2, 3, 0])],
            &[],
        ),
        chain(1, &[&words(&[0x0301, 0, 0, 0, 0, 0, 0, 9, 9, 0])], &[]),
        command(0x0107, &[1, 0]),
        command(0x0102, &[1, 0]),
        host(&[1, 2, 3]),
    ]
}

fn vsock() -> Vec<Vec<u8>> {
    let packet = |op: u16, host_port: u32, guest_port: u32, data: &[u8]| {
        let mut header = words(&[3, 0, 2, 0, guest_port, host_port, data.len() as u32]);
        header.extend(1u16.to_le_bytes());
        header.extend(op.to_le_bytes());
        header.extend(words(&[3, 1 << 16, 0]));
        chain(1, &[&header, data], &[])
    };
    vec![
        chain(0, &[], &[4000]),
        chain(0, &[], &[44, 1000]),
        packet(1, 1, 500, &[]),
        packet(5, 1, 500, b"hello"),
        host(&[1, b'x', b'y']),
        chain(0, &[], &[4000]),
        packet(6, 1, 500, &[]),
        packet(7, 1, 500, &[]),
        packet(4, 1, 500, &[]),
        host(&[&[0][..], b"CONNECT 52\nbody"].concat()),
        chain(0, &[], &[4000]),
        packet(2, 1 << 30, 52, &[]),
        packet(5, 1 << 30, 52, b"data"),
        packet(3, 1 << 30, 52, &[]),
    ]
}

fn kernel() -> Vec<u8> {
    let mut image = vec![0; 1024 + 512];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236] = 1;
    image[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    image
}

fn elf() -> Vec<u8> {
    let mut image = vec![0; 64 + 2 * 56];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[0x10] = 2;
    image[0x12] = 62;
    image[0x18..0x20].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    image[0x20] = 64;
    image[0x34] = 64;
    image[0x36] = 56;
    image[0x38] = 2;
    // A segment of code, and a note.
    for (at, kind, bytes) in [(64, 1u32, 64u64), (120, 4, 24)] {
        image[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        image[at + 0x18..at + 0x20].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        image[at + 0x20..at + 0x28].copy_from_slice(&bytes.to_le_bytes());
        image[at + 0x28..at + 0x30].copy_from_slice(&bytes.to_le_bytes());
    }
    image
}

fn registers() -> Vec<u8> {
    let set = |at: u16, bytes: &[u8]| {
        let [low, high] = at.to_le_bytes();
        [&[1, low, high, bytes.len() as u8 - 1][..], bytes].concat()
    };
    let all = [
        set(0x14, &[1]),
        set(0x14, &[3]),
        set(0x08, &1u32.to_le_bytes()),
        set(0x0c, &1u32.to_le_bytes()),
        set(0x14, &[11]),
        set(0x16, &[0, 0]),
        set(0x18, &[16, 0]),
        set(0x20, &0x1000u64.to_le_bytes()),
        set(0x28, &0x2000u64.to_le_bytes()),
        set(0x30, &0x3000u64.to_le_bytes()),
        set(0x1a, &[1, 0]),
        set(0x1c, &[1, 0]),
        set(0x14, &[15]),
        // Configuration space: MSI-X on, the BAR elsewhere and back.
        vec![4, 0x9b, 0, 0, 0x80],
        [&[4, 0x10, 0, 3][..], &0xc100_0000_u32.to_le_bytes()].concat(),
        [&[3, 0, 0x40, 7][..], &0xfee0_0000_u64.to_le_bytes()].concat(),
        set(0x14, &[0]),
    ];
    all.concat()
}

/// Parts of a state that need no machine.
fn parts() -> Vec<u8> {
    let mut parts = Parts::default();
    let shape = Shape {
        memory_mib: 64,
        vcpus: 2,
        taken_at: Duration::new(1_800_000_000, 5),
    };
    parts.put(&shape).unwrap();
    parts.put(&Blocks(vec![None, Some([7; 32])])).unwrap();
    parts.bytes().unwrap()
}

fn snapshot(seeds: &Seeds) {
    let parts = parts();
    let file = seal(Kind::State, &parts);
    seeds.write("snapshot", "file", &[&[0][..], &file].concat());
    seeds.write("snapshot", "parts", &[&[1][..], &parts].concat());
    for (number, kind) in (0..).zip(KINDS) {
        let state = [&[2, number][..], &saved(kind)].concat();
        seeds.write("snapshot", &format!("device-{number}"), &state);
    }
}

pub fn write(seeds: &Seeds) {
    snapshot(seeds);
    let net = vec![
        chain(0, &[], &[2000]),
        host(&[5; 80]),
        chain(1, &[&[0; 12], &[6; 80]], &[]),
        chain(0, &[], &[10, 100]),
        host(&[5; 80]),
        // Not all packets, another address, and tables of one and of a group.
        chain(2, &[&[0, 0], &[0]], &[1]),
        chain(2, &[&[1, 1], &[2, 0, 0, 0, 0, 2]], &[1]),
        chain(
            2,
            &[
                &[1, 0],
                &words(&[1]),
                &[2, 0, 0, 0, 0, 3],
                &words(&[1]),
                &[1, 0, 0, 0, 0, 1],
            ],
            &[1],
        ),
        chain(0, &[], &[2000]),
        host(&[5; 80]),
    ];
    let balloon = vec![
        host(&[1]),
        chain(0, &[&words(&[0x80, 0x81, 0x82, 0x90, 0xffff_ffff])], &[]),
        chain(1, &[&words(&[0x80])], &[]),
        chain(2, &[], &[4000, 4000]),
    ];
    let keyboard = vec![
        host(&[61, 60]),
        chain(0, &[], &[8]),
        chain(0, &[], &[8]),
        chain(1, &[&[17, 0, 0, 0, 1, 0, 0, 0]], &[]),
        vec![12, 0, 0, 1, 1],
        vec![13, 0, 0, 8],
    ];
    let rng = vec![chain(0, &[], &[64, 3]), RESET.to_vec(), chain(0, &[], &[1])];
    for (target, script) in [
        ("virtio_block", block()),
        ("virtio_net", net),
        ("virtio_rng", rng),
        ("virtio_console", console()),
        ("virtio_balloon", balloon),
        ("virtio_keyboard", keyboard),
        ("virtio_gpu", gpu()),
        ("virtio_vsock", vsock()),
    ] {
        for features in [0, 1] {
            let all = [vec![features], script.concat()].concat();
            seeds.write(target, &format!("driver-{features}"), &all);
        }
    }
    seeds.write("virtio_transport", "driver", &registers());
    seeds.write("pci_config", "driver", &registers());
    let boot =
        |kernel: &[u8]| [piece(b"console=ttyS0"), piece(&[1; 300]), kernel.to_vec()].concat();
    seeds.write("boot_kernel", "bzimage", &boot(&kernel()));
    seeds.write("boot_kernel", "elf", &boot(&elf()));
    for (name, line) in [
        ("status", &br#"{"do":"status"}"#[..]),
        ("balloon", br#"{"do":"balloon","mib":256}"#),
        ("snapshot", br#"{"do":"snapshot","then":"quit"}"#),
        ("link", br#"{"do":"link","card":0,"up":false}"#),
        ("done", br#""done""#),
        ("refused", br#"{"refused":"no"}"#),
        (
            "told",
            br#"{"status":{"state":"running","memory_mib":1,"balloon_mib":0,"vcpus":1,"resets":0}}"#,
        ),
    ] {
        seeds.write("vmm_control", name, line);
    }
    for (name, code, fds, body) in [
        ("features", 1u32, 0u8, vec![]),
        (
            "memory",
            5,
            1,
            words(&[1, 0, 0, 0, 0x10_0000, 0, 0x7000_0000, 0, 0, 0]),
        ),
        ("addresses", 9, 0, words(&[0; 10])),
        ("kick", 12, 1, words(&[0, 0])),
        ("config", 24, 0, words(&[0, 8, 0, 0, 0])),
        ("inflight", 32, 1, words(&[4096, 0, 0, 0, 0x0080_0001, 0])),
    ] {
        let header = words(&[code, 9, body.len() as u32]);
        seeds.write("vhost_user_wire", name, &[vec![fds], header, body].concat());
    }
}
