//! The smallest guest that can be told what to do: it prints a letter when it starts and obeys letters that are typed at its console.

use std::path::{Path, PathBuf};

/// What it prints when it starts.
pub const HELLO: u8 = b'S';
/// Resets the machine.
pub const RESET: u8 = b'r';
/// Powers it off.
pub const OFF: u8 = b'p';
/// Runs into an exception that it has no handler for, and for that one neither.
pub const FALL: u8 = b'f';
/// What it prints for any other letter.
pub const ECHO: u8 = b'.';

const LOAD: u64 = 0x10_0000;
const HEADERS: u64 = 0x1000;

/// 64-bit code for [`LOAD`]. Encodings: Intel SDM, volume 2.
const CODE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // 00 mov dx, 0x3f8
    0xb0, HELLO, //            04 mov al, HELLO
    0xee,  //                   06 out dx, al
    0x66, 0xba, 0xfd, 0x03, // 07 mov dx, 0x3fd
    0xec, //                   0b in al, dx
    0xa8, 0x01, //             0c test al, 1
    0x74, 0xf7, //             0e jz 07
    0x66, 0xba, 0xf8, 0x03, // 10 mov dx, 0x3f8
    0xec, //                   14 in al, dx
    0x3c, RESET, //            15 cmp al, RESET
    0x74, 0x0d, //             17 je 26
    0x3c, OFF, //              19 cmp al, OFF
    0x74, 0x0f, //             1b je 2c
    0x3c, FALL, //             1d cmp al, FALL
    0x74, 0x17, //             1f je 38
    0xb0, ECHO, //             21 mov al, ECHO
    0xee, //                   23 out dx, al
    0xeb, 0xe1, //             24 jmp 07
    0xb0, 0xfe, //             26 mov al, 0xfe
    0xe6, 0x64, //             28 out 0x64, al
    0xeb, 0xfe, //             2a jmp to itself
    0x66, 0xba, 0x04, 0x06, // 2c mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // 30 mov ax, 1 << 13 | 5 << 10
    0x66, 0xef, //             34 out dx, ax
    0xeb, 0xfe, //             36 jmp to itself
    0x0f, 0x0b, //             38 ud2
];

/// Writes it as an ELF kernel into a folder.
pub fn kernel(folder: &Path) -> PathBuf {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64.
    for field in [2u16, 62] {
        file.extend(field.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    // Entry, program headers behind this one, no sections.
    for field in [LOAD, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    // Sizes and numbers of headers.
    for field in [64u16, 56, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    // Loaded, readable, writable and executable.
    for field in [1u32, 7] {
        file.extend(field.to_le_bytes());
    }
    let len = CODE.len() as u64;
    for field in [HEADERS, LOAD, LOAD, len, len, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.resize(HEADERS as usize, 0);
    file.extend(CODE);
    let path = folder.join("kernel");
    std::fs::write(&path, file).unwrap();
    path
}
