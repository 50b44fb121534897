//! NBD clients: handshakes that qemu-img, nbdinfo and old kernels make, and one request of each kind.

use crate::Seeds;

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [&b"IHAVEOPT"[..], &code.to_be_bytes(), &len, data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn request(command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &7u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ]
    .concat()
}

pub fn write(seeds: &Seeds) {
    // In the order of their numbers: READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS.
    let requests = [
        request(0, 0, 0, 4096, &[]),
        request(1, 1, 512, 1024, &[5; 1024]),
        request(3, 0, 0, 0, &[]),
        request(4, 0, 4096, 65_536, &[]),
        request(6, 2, 4096, 65_536, &[]),
        request(7, 8, 0, 262_144, &[]),
        request(0, 4, 262_000, 144, &[]),
        request(2, 0, 0, 0, &[]),
    ];
    for choice in 0..8u8 {
        let all = [&[choice][..], &requests.concat()].concat();
        seeds.write("nbd_transmission", &format!("all-{choice}"), &all);
    }
    let flags = 3u32.to_be_bytes();
    let structured = option(8, &[]);
    let info = [
        string("disk"),
        2u16.to_be_bytes().to_vec(),
        vec![0, 0, 0, 3],
    ]
    .concat();
    let queries = [
        string("disk"),
        1u32.to_be_bytes().to_vec(),
        string("base:allocation"),
    ]
    .concat();
    let all = [string("disk"), 0u32.to_be_bytes().to_vec()].concat();
    for (name, options) in [
        (
            "go",
            vec![structured.clone(), option(10, &queries), option(7, &info)],
        ),
        ("info-then-go", vec![option(6, &info), option(7, &info)]),
        ("old-name", vec![option(1, b"disk")]),
        (
            "list",
            vec![option(3, &[]), structured, option(9, &all), option(2, &[])],
        ),
        ("tls", vec![option(5, &[]), option(7, &info)]),
    ] {
        let bytes = [&flags[..], &options.concat(), &requests.concat()].concat();
        seeds.write("nbd_handshake", name, &bytes);
    }
}
