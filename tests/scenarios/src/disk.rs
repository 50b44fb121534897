//! Disks made from seeds: incompressible runs, text, and holes, as real ones have them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::datacenter::text;
use crate::rng::Rng;
use crate::run::run;

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

const WORDS: [&str; 12] = [
    "branch",
    "datacenter",
    "desktop",
    "office",
    "update",
    "kernel",
    "library",
    "user",
    "config",
    "system",
    "the",
    "of",
];

/// A raw disk file.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
}

fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if rng.below(5) < 3 {
        rng.fill(&mut bytes);
        return bytes;
    }
    let mut at = 0;
    while at < len {
        let word = WORDS[rng.below(WORDS.len() as u64) as usize].as_bytes();
        let take = word.len().min(len - at);
        bytes[at..at + take].copy_from_slice(&word[..take]);
        at += take + 1;
    }
    bytes
}

impl Disk {
    /// A sparse file of `size_bytes`, a third of it holes.
    pub fn make(path: PathBuf, size_bytes: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let file = File::create_new(&path).expect("the path is new");
        file.set_len(size_bytes).expect("the disk has room");
        let mut at = 0;
        while at < size_bytes {
            let len = (4096 * (1 + rng.below(200)) + rng.below(2) * 512).min(size_bytes - at);
            if rng.below(3) > 0 {
                let bytes = content(&mut rng, len as usize);
                file.write_all_at(&bytes, at).expect("the disk has room");
            }
            at += len;
        }
        Self { path, size_bytes }
    }

    /// A copy with `edits` places overwritten, and a run moved by a few bytes: what an update does to a disk.
    pub fn edited(&self, path: PathBuf, edits: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let arguments = ["--sparse=always", text(&self.path), text(&path)];
        run("cp", &arguments, Duration::from_secs(60)).ok();
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.expect("it was just copied");
        for _ in 0..edits {
            let len = 1 + rng.below(64 << 10);
            let at = rng.below(self.size_bytes - len);
            let bytes = content(&mut rng, len as usize);
            file.write_all_at(&bytes, at).expect("the disk has room");
        }
        let mut moved = vec![0; (self.size_bytes / 8) as usize];
        file.read_exact_at(&mut moved, 0).expect("it is that long");
        let at = self.size_bytes / 2 + 777;
        file.write_all_at(&moved, at).expect("the disk has room");
        Self {
            path,
            size_bytes: self.size_bytes,
        }
    }

    /// A copy in which a byte changes about every `every` bytes of data: most chunks are new, and each resembles an old one.
    pub fn touched(&self, path: PathBuf, every: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let arguments = ["--sparse=always", text(&self.path), text(&path)];
        run("cp", &arguments, Duration::from_secs(60)).ok();
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.expect("it was just copied");
        let mut at = rng.below(every);
        while at < self.size_bytes {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("it is that long");
            if byte[0] != 0 {
                file.write_all_at(&[byte[0] ^ 0x80], at)
                    .expect("the disk has room");
            }
            at += 1 + rng.below(2 * every);
        }
        Self {
            path,
            size_bytes: self.size_bytes,
        }
    }

    /// The same disk in another format, by qemu-img; `options` go to it as they are.
    pub fn convert(&self, path: PathBuf, options: &[&str]) -> PathBuf {
        let mut arguments = vec!["convert", "-f", "raw"];
        arguments.extend(options);
        arguments.extend([text(&self.path), text(&path)]);
        run("qemu-img", &arguments, Duration::from_secs(120)).ok();
        path
    }

    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        read(&self.path)
    }
}

/// All bytes of a file.
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Flips a bit in `count` blocks of a file that hold data, and nowhere below `from`; answers how many were flipped.
pub fn damage(path: &Path, from: u64, count: usize, rng: &mut Rng) -> usize {
    const BLOCK: usize = 4096;
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let len = file.metadata().expect("an open file has metadata").len();
    let mut block = vec![0; BLOCK];
    let mut full = Vec::new();
    let mut at = from.next_multiple_of(BLOCK as u64);
    while at + BLOCK as u64 <= len {
        file.read_exact_at(&mut block, at).expect("it is that long");
        if block.iter().any(|byte| *byte != 0) {
            full.push(at);
        }
        at += BLOCK as u64;
    }
    let mut flipped = 0;
    while flipped < count && !full.is_empty() {
        let at = full.swap_remove(rng.below(full.len() as u64) as usize) + rng.below(BLOCK as u64);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is that long");
        byte[0] ^= 1 << rng.below(8);
        file.write_all_at(&byte, at).expect("the disk has room");
        flipped += 1;
    }
    flipped
}
