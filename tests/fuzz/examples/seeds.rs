//! Writes what the fuzz targets start from: valid instances of each format, `DIRECTORY/TARGET/NAME`. A fuzzer that begins with
//! them is past the magic numbers, lengths and checksums at once.
//!
//! Usage: seeds DIRECTORY. It is linked with libFuzzer, whose symbols instrumented crates need, and is done before anything is
//! fuzzed. Images come from qemu-img, sfdisk and mke2fs; where one is missing, its seeds are left out.
#![no_main]
#![allow(clippy::unwrap_used)]

#[path = "seeds/link.rs"]
mod link;
#[path = "seeds/machine.rs"]
mod machine;
#[path = "seeds/nbd.rs"]
mod nbd;
#[path = "seeds/screen.rs"]
mod screen;
#[path = "seeds/stored.rs"]
mod stored;
#[path = "seeds/text.rs"]
mod text;

use std::fs;
use std::path::PathBuf;

use splice_fuzz::disks;

/// Writes seeds of one target after the other.
struct Seeds {
    directory: PathBuf,
}

impl Seeds {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.directory.join(target);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), bytes).unwrap();
    }
}

libfuzzer_sys::fuzz_target!(init: write_all(), |_data: &[u8]| {});

fn write_all() {
    let directory = std::env::args_os().nth(1).expect("usage: seeds DIRECTORY");
    let seeds = Seeds {
        directory: directory.into(),
    };
    link::write(&seeds);
    machine::write(&seeds);
    nbd::write(&seeds);
    screen::write(&seeds);
    stored::write(&seeds);
    text::write(&seeds);
    let scratch = seeds.directory.join("scratch");
    fs::create_dir_all(&scratch).unwrap();
    for (name, image) in disks::qcow2(&scratch) {
        seeds.write("qcow2", &name, &image);
    }
    for (name, disk) in disks::partition_tables(&scratch) {
        seeds.write("partition_table", &name, &disk);
    }
    for (name, part) in disks::file_systems(&scratch) {
        seeds.write("inspect", &name, &part);
        seeds.write("partition_table", &name, &part);
    }
    fs::remove_dir_all(&scratch).unwrap();
    std::process::exit(0);
}
