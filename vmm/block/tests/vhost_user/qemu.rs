//! QEMU as the front-end: its firmware boots from the disk, reads a sector and writes it somewhere else.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_block::{BlockDevice, MemoryDevice};

use crate::guest::{SECTOR, pattern};
use crate::serve::{place, serve};

/// What a QEMU that emulates every instruction on a busy machine may take; two seconds are usual.
const PATIENCE: Duration = Duration::from_secs(120);

/// A boot sector that reads sector 1, writes it as sector 2 and leaves QEMU with status 33, or 3 if one of them failed.
const BOOT: [u8; 64] = [
    0x31, 0xc0, //                   xor ax, ax
    0x8e, 0xd8, //                   mov ds, ax
    0x8e, 0xc0, //                   mov es, ax
    0x8e, 0xd0, //                   mov ss, ax
    0xbc, 0x00, 0x7c, //             mov sp, 0x7c00
    0xbe, 0x30, 0x7c, //             mov si, packet
    0xb4, 0x42, //                   mov ah, 0x42       read
    0xcd, 0x13, //                   int 0x13
    0x72, 0x13, //                   jc failed
    0xc6, 0x06, 0x38, 0x7c, 0x02, // mov byte [packet + 8], 2
    0xbe, 0x30, 0x7c, //             mov si, packet
    0xb8, 0x00, 0x43, //             mov ax, 0x4300     write
    0xcd, 0x13, //                   int 0x13
    0x72, 0x04, //                   jc failed
    0xb0, 0x10, //                   mov al, 0x10
    0xeb, 0x02, //                   jmp leave
    0xb0, 0x01, //           failed: mov al, 1
    0xe6, 0xf4, //            leave: out 0xf4, al
    0xf4, //                   wait: hlt
    0xeb, 0xfd, //                   jmp wait
    0x90, 0x90, //
    0x10, 0x00, 0x01, 0x00, // packet: 16 bytes, one sector
    0x00, 0x7e, 0x00, 0x00, //         at 0000:7e00
    0x01, 0, 0, 0, 0, 0, 0, 0, //      from sector 1
];

#[test]
fn qemu_boots_from_a_disk_that_is_served() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(1 << 20));
    let data = pattern(5, SECTOR);
    disk.write(0, &BOOT, false).unwrap();
    disk.write(510, &[0x55, 0xaa], false).unwrap();
    disk.write(SECTOR as u64, &data, false).unwrap();
    let _server = serve(&place, Arc::clone(&disk) as _);
    let socket = format!("socket,id=disk,path={}", place.socket.display());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-m", "64"])
        .args(["-machine", "q35,accel=tcg,memory-backend=memory"])
        .args([
            "-object",
            "memory-backend-memfd,id=memory,size=64M,share=on",
        ])
        .args(["-chardev", &socket])
        .args([
            "-device",
            "vhost-user-blk-pci,chardev=disk,num-queues=2,bootindex=0",
        ])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = qemu.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            qemu.kill().unwrap();
            break qemu.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(33));
    assert!(disk.content()[2 * SECTOR..3 * SECTOR] == data);
}
