//! Prints what is inside a disk image as JSON and how fast all of its data can be read.
//!
//!     cargo run -p dedup-image --example inspect -- IMAGE [SCRATCH-FOLDER]

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use dedup_image::{OpenOptions, RegionKind, inspect, open};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(path) = arguments.first() else {
        eprintln!("usage: inspect IMAGE [SCRATCH-FOLDER]");
        std::process::exit(2);
    };
    let mut options = OpenOptions::new();
    if let Some(dir) = arguments.get(1) {
        options = options.scratch_dir(dir);
    }
    let begun = Instant::now();
    let mut image = open(Path::new(path), &options).unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(1);
    });
    println!(
        "{} of {} bytes, opened in {:?}",
        image.format(),
        image.size_bytes(),
        begun.elapsed()
    );
    let begun = Instant::now();
    let inspection = inspect(image.as_mut());
    println!(
        "{}\ninspected in {:?}",
        serde_json::to_string_pretty(&inspection).unwrap(),
        begun.elapsed()
    );

    let begun = Instant::now();
    let (mut at, mut data, mut regions) = (0, 0u64, 0u64);
    let mut buf = vec![0; 4 << 20];
    while at < image.size_bytes() {
        let region = image.region_at(at).unwrap();
        regions += 1;
        if region.kind == RegionKind::Data {
            while at < region.end() {
                let len = (region.end() - at).min(buf.len() as u64);
                image.read_at(at, &mut buf[..len as usize]).unwrap();
                (at, data) = (at + len, data + len);
            }
        }
        at = region.end();
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{data} bytes of data in {regions} regions read in {seconds:.2} s, {:.0} MB/s",
        data as f64 / seconds / 1e6
    );
}
