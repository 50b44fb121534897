//! Measures the update encoder on two disk images: what each form of the update weighs and what it costs in processor time.
//!
//!     cargo run --example update_probe -- PARENT.raw VERSION.raw [least]
//!
//! Both raw images are chunked, the update is planned and encoded on two threads, decoded on one and compared with the image. Printed
//! beside it, for the same images: chunks packed one by one, solid frames, and chunks of 64 KiB one by one, which is what chunk-based
//! peers send. `least` takes the least effort instead of what an update of this size gets. Seconds are of one core.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dedup::update::{
    Effort, NewChunks, Sketch, UpdateBatch, decode_batch, encode_batch, plan, sketch,
};
use dedup::{ChunkId, Chunker, ChunkerParams, IdKey, Piece};

/// Level of what is packed for comparison.
const PLAIN_LEVEL: i32 = 3;

/// A disk's chunks in disk order.
struct Disk {
    file: File,
    /// Name, offset on the disk and length in bytes.
    chunks: Vec<(ChunkId, u64, u32)>,
}

impl Disk {
    fn listed(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.chunks.iter().map(|(id, _, len)| (*id, *len))
    }

    fn new_against<'a>(&'a self, parent: &Disk) -> Vec<&'a (ChunkId, u64, u32)> {
        let mut seen: HashSet<ChunkId> = parent.chunks.iter().map(|c| c.0).collect();
        self.chunks.iter().filter(|c| seen.insert(c.0)).collect()
    }
}

/// Chunks the image at `path` with each of `params` in one pass.
fn chunk<const N: usize>(path: &str, key: &IdKey, params: [ChunkerParams; N]) -> [Disk; N] {
    let file = File::open(path).unwrap();
    let mut disks = params.map(|params| (Chunker::new(params), Vec::new(), 0u64));
    let mut buffer = vec![0; 4 << 20];
    let mut at = 0;
    let push = |chunks: &mut Vec<_>, position: &mut u64, piece: Piece<'_>| match piece {
        Piece::Zero(len) => *position += len,
        Piece::Data(bytes) => {
            chunks.push((key.chunk_id(bytes), *position, bytes.len() as u32));
            *position += bytes.len() as u64;
        }
    };
    loop {
        let len = file.read_at(&mut buffer, at).unwrap();
        if len == 0 {
            break;
        }
        for (chunker, chunks, position) in &mut disks {
            chunker.push_data(&buffer[..len], &mut |piece| push(chunks, position, piece));
        }
        at += len as u64;
    }
    disks.map(|(chunker, mut chunks, mut position)| {
        chunker.finish(&mut |piece| push(&mut chunks, &mut position, piece));
        let file = file.try_clone().unwrap();
        Disk { file, chunks }
    })
}

/// Seconds that the calling thread has run.
fn core_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}

/// Runs `work` for 0..count on two threads: results in order, and seconds of one core.
fn on_two_threads<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> (Vec<T>, f64) {
    let next = AtomicUsize::new(0);
    let one = || {
        let begun = core_seconds();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return (done, core_seconds() - begun);
            }
            done.push((index, work(index)));
        }
    };
    let [a, b] = std::thread::scope(|scope| {
        [scope.spawn(one), scope.spawn(one)].map(|thread| thread.join().unwrap())
    });
    let mut all: Vec<(usize, T)> = a.0.into_iter().chain(b.0).collect();
    all.sort_by_key(|(index, _)| *index);
    (all.into_iter().map(|(_, value)| value).collect(), a.1 + b.1)
}

fn read(file: &File, offset: u64, len: u32) -> Bytes {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes.into()
}

fn packed_len(plain: &[u8]) -> u64 {
    let packed = zstd::bulk::compress(plain, PLAIN_LEVEL).unwrap();
    packed.len().min(plain.len()) as u64
}

fn print(what: &str, bytes: u64, seconds: f64) {
    println!("{what:<44} {:>9.2} MB {seconds:>8.1} s", bytes as f64 / 1e6);
}

/// What the same images cost without similarity.
fn print_plain(parent: &Disk, version: &Disk, what: &str) {
    let new = version.new_against(parent);
    let read = |chunk: &&(ChunkId, u64, u32)| read(&version.file, chunk.1, chunk.2);
    let (sizes, seconds) = on_two_threads(new.len(), |index| packed_len(&read(&new[index])));
    print(&format!("{what}, zstd-3 each"), sizes.iter().sum(), seconds);
    let mut solid: Vec<Vec<&(ChunkId, u64, u32)>> = vec![Vec::new()];
    let mut filled = 0;
    for chunk in new {
        if filled >= 4 << 20 {
            solid.push(Vec::new());
            filled = 0;
        }
        filled += chunk.2;
        solid.last_mut().unwrap().push(chunk);
    }
    let (sizes, seconds) = on_two_threads(solid.len(), |index| {
        packed_len(&solid[index].iter().map(read).collect::<Vec<_>>().concat())
    });
    print(
        &format!("{what}, zstd-3 in frames of 4 MiB"),
        sizes.iter().sum(),
        seconds,
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [parent, version, options @ ..] = &arguments[..] else {
        eprintln!("usage: update_probe PARENT.raw VERSION.raw [least]");
        std::process::exit(2);
    };
    let key = IdKey::new([7; 32]);
    let coarse = ChunkerParams::new(16 << 10, 64 << 10, 256 << 10).unwrap();
    let params = [ChunkerParams::default(), coarse];
    let [parent, parent_coarse] = chunk(parent, &key, params);
    let [version, version_coarse] = chunk(version, &key, params);
    print_plain(&parent_coarse, &version_coarse, "64 KiB chunks");
    print_plain(&parent, &version, "16 KiB chunks");

    let begun = core_seconds();
    let numbering = NewChunks::between(parent.listed(), version.listed()).unwrap();
    println!(
        "{} chunks of the parent, {} new ones of {:.1} MB, numbered in {:.2} s",
        numbering.parent.len(),
        numbering.new.len(),
        numbering.new_bytes() as f64 / 1e6,
        core_seconds() - begun
    );
    let places: HashMap<ChunkId, (&File, u64, u32)> = [&parent, &version]
        .into_iter()
        .flat_map(|disk| {
            disk.chunks
                .iter()
                .map(move |c| (c.0, (&disk.file, c.1, c.2)))
        })
        .collect();
    let by_id = |id: ChunkId| places.get(&id).map(|(file, at, len)| read(file, *at, *len));
    let by_number = |number: u32| by_id(numbering.number(number).unwrap().0).unwrap();

    let count = numbering.parent.len() + numbering.new.len();
    let (sketches, seconds): (Vec<Sketch>, f64) =
        on_two_threads(count, |number| sketch(&by_number(number as u32)));
    let sketched: u64 = (0..count as u32)
        .map(|n| u64::from(numbering.number(n).unwrap().1))
        .sum();
    print("sketched, reading included", sketched, seconds);
    let begun = core_seconds();
    let plan = plan(&numbering, |n| Ok::<_, Infallible>(sketches[n as usize])).unwrap();
    let plans = plan.batches;
    println!(
        "{} batches planned in {:.2} s",
        plans.len(),
        core_seconds() - begun
    );

    let effort = match options {
        [option] if option == "least" => Effort::least(),
        _ => Effort::for_update(numbering.new_bytes()),
    };
    println!("{effort:?}");
    let (batches, seconds) = on_two_threads(plans.len(), |index| {
        let encoded = encode_batch(
            &plans[index],
            &numbering,
            |n| Ok::<_, Infallible>(by_number(n)),
            effort,
        );
        let mut bytes = Vec::new();
        encoded.unwrap().encode(&mut bytes);
        Bytes::from(bytes)
    });
    print(
        "update",
        batches.iter().map(|b| b.len() as u64).sum(),
        seconds,
    );
    let decoded: Vec<UpdateBatch> = batches
        .iter()
        .map(|b| UpdateBatch::decode(b).unwrap())
        .collect();
    let packed: u64 = decoded.iter().map(|b| b.packed.len() as u64).sum();
    let lists = batches.iter().map(|b| b.len() as u64).sum::<u64>() - packed;
    let prefix = |batch: &UpdateBatch| -> u64 {
        let listed = batch.prefix.iter().map(|n| numbering.number(*n).unwrap().1);
        listed.map(u64::from).sum()
    };
    println!(
        "of it {lists} bytes of lists; {:.1} MB of prefixes, {} batches without",
        decoded.iter().map(prefix).sum::<u64>() as f64 / 1e6,
        decoded.iter().filter(|b| b.prefix.is_empty()).count()
    );

    let (begun, mut bytes) = (core_seconds(), 0);
    for batch in &decoded {
        // Verified against the names that the image's own bytes gave, so it is the image.
        for chunk in decode_batch(batch, &numbering, &key, by_id).unwrap() {
            bytes += chunk.bytes().len() as u64;
        }
    }
    assert_eq!(bytes, numbering.new_bytes());
    let seconds = core_seconds() - begun;
    print("decoded and verified, reading included", bytes, seconds);
    println!("{:.0} MB/s on one core", bytes as f64 / 1e6 / seconds);
}
