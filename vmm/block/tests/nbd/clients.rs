//! The client programs that people use.

use std::fs;
use std::sync::Arc;

use vmm_block::{BlockDevice, MemoryDevice};

use crate::lab::{Lab, nbdinfo, noise, qemu_img, qemu_io, run};

#[test]
fn qemu_io_writes_reads_zeroes_discards_and_flushes() {
    let (lab, path) = Lab::with_raw_file(64 << 20);
    qemu_io(
        &lab.uri("disk"),
        &[
            "write -P 0xa5 0 1M",
            "read -P 0xa5 0 1M",
            "write -P 0x11 1234 4321",
            "read -P 0x11 1234 4321",
            "write -z 512k 64k",
            "read -P 0 512k 64k",
            "write -z -u 256k 64k",
            "read -P 0 256k 64k",
            "write -f -P 0x77 33554432 65536",
            "discard 0 128k",
            "aio_write -P 0x22 2M 3M",
            "aio_write -P 0x33 8M 3M",
            "aio_flush",
            "read -P 0x22 2M 3M",
            "read -P 0x33 8M 3M",
            "flush",
        ],
    );
    let disk = fs::read(path).unwrap();
    assert!(
        disk[33_554_432..33_554_432 + 65_536]
            .iter()
            .all(|byte| *byte == 0x77)
    );
    assert!(disk[256 << 10..320 << 10].iter().all(|byte| *byte == 0));
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(3 << 20)));
    lab.add("gold", Arc::new(MemoryDevice::read_only(vec![1; 1 << 20])));
    let json = nbdinfo(&["--json", &lab.uri("disk")]);
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    let disk = &parsed["exports"][0];
    assert_eq!(disk["export-size"], 3 << 20, "{json}");
    for (field, value) in [
        ("is_read_only", false),
        ("is_rotational", false),
        ("can_cache", true),
        ("can_df", true),
        ("can_fast_zero", true),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(disk[field], value, "{field} in {json}");
    }
    assert_eq!(disk["block_size_preferred"], 4096);
    assert_eq!(disk["block_size_maximum"], 32 << 20);
    assert_eq!(disk["contexts"][0], "base:allocation");
    assert_eq!(disk["description"], "a test disk");
    let gold: serde_json::Value =
        serde_json::from_str(&nbdinfo(&["--json", &lab.uri("gold")])).unwrap();
    assert_eq!(gold["exports"][0]["is_read_only"], true);
    assert_eq!(gold["exports"][0]["can_trim"], false);
    let list = nbdinfo(&["--list", &lab.uri("")]);
    assert!(
        list.contains("export=\"disk\"") && list.contains("export=\"gold\""),
        "{list}"
    );
}

#[test]
fn nbdinfo_maps_holes() {
    let device = Arc::new(MemoryDevice::new(1 << 20));
    device.write(256 << 10, &[1; 64 << 10], false).unwrap();
    let lab = Lab::with(device);
    let map: serde_json::Value =
        serde_json::from_str(&nbdinfo(&["--map", "--json", &lab.uri("disk")])).unwrap();
    let ranges: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|range| {
            (
                range["offset"].as_u64().unwrap(),
                range["length"].as_u64().unwrap(),
                range["type"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        ranges,
        [
            (0, 256 << 10, 3),
            (256 << 10, 64 << 10, 0),
            (320 << 10, 704 << 10, 3)
        ]
    );
}

#[test]
fn nbdcopy_copies_in_and_out_over_several_connections() {
    let (lab, path) = Lab::with_raw_file(48 << 20);
    let source = lab.folder.path().join("source.raw");
    let mut bytes = noise(1, 48 << 20);
    bytes[5 << 20..20 << 20].fill(0);
    fs::write(&source, &bytes).unwrap();
    let copy = lab.folder.path().join("copy.raw");
    let (source, copy_path) = (source.to_str().unwrap(), copy.to_str().unwrap());
    run(
        "libnbd-bin",
        "nbdcopy",
        &[
            "--flush",
            "--connections=4",
            "--requests=64",
            source,
            &lab.uri("disk"),
        ],
    );
    assert!(
        fs::read(path).unwrap() == bytes,
        "the copy into the export differs"
    );
    run(
        "libnbd-bin",
        "nbdcopy",
        &["--connections=4", &lab.uri("disk"), copy_path],
    );
    assert!(
        fs::read(copy).unwrap() == bytes,
        "the copy out of the export differs"
    );
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let (lab, _) = Lab::with_raw_file(32 << 20);
    let source = lab.folder.path().join("source.raw");
    let mut bytes = vec![0; 32 << 20];
    bytes[4 << 20..9 << 20].copy_from_slice(&noise(2, 5 << 20));
    fs::write(&source, &bytes).unwrap();
    let (source, uri) = (source.to_str().unwrap(), lab.uri("disk"));
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]);
    assert!(qemu_img(&["compare", "-f", "raw", "-F", "raw", source, &uri]).contains("identical"));
    let map: serde_json::Value =
        serde_json::from_str(&qemu_img(&["map", "--output=json", "-f", "raw", &uri])).unwrap();
    let data: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|range| range["data"] == true)
        .map(|range| range["length"].as_u64().unwrap())
        .sum();
    assert_eq!(data, 5 << 20, "{map}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let (lab, _) = Lab::with_raw_file(32 << 20);
    for (name, pattern, block, depth) in [
        ("small", "randwrite", "4k", "16"),
        ("large", "write", "1M", "4"),
    ] {
        run(
            "fio",
            "fio",
            &[
                &format!("--name={name}"),
                "--ioengine=nbd",
                &format!("--uri={}", lab.uri("disk")),
                &format!("--rw={pattern}"),
                &format!("--bs={block}"),
                &format!("--iodepth={depth}"),
                "--size=32M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--end_fsync=1",
                &format!("--aux-path={}", lab.folder.path().display()),
            ],
        );
    }
}

#[test]
fn clients_come_by_tcp_too() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let address = lab
        .server
        .listen_tcp("127.0.0.1:0".parse().unwrap())
        .unwrap();
    let uri = format!("nbd://{address}/disk");
    qemu_io(
        &uri,
        &["write -P 9 4096 8192", "flush", "read -P 9 4096 8192"],
    );
    assert!(nbdinfo(&["--size", &uri]).starts_with("1048576"));
}
