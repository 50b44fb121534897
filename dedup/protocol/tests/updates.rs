//! Updates cross a line that is cut at any frame, while the datacenter still encodes them and either end loses its memory; what the
//! branch then holds is what was published, and a cut costs one batch.
//!
//! Each seed is a run of its own. `SPLICE_SEED=n cargo test -p dedup-protocol --test updates` replays one.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;

use bytes::Bytes;
use common::update::{MemUpdate, shown};
use common::{Datacenter, NewVersion, id_key, noise};
use dedup::update::{NewChunks, UpdateRefused, decode_batch};
use dedup::{ChunkId, VersionId};
use dedup_protocol::update::{Next, UpdateExchange, UpdateResponder, UpdateShape};
use dedup_protocol::wire::{BatchRange, FRAME_BYTES_MAX, GetUpdate, Message};
use rand::{Rng, SeedableRng, rngs::StdRng};

const SEEDS: u64 = 20;
const ATTEMPTS_MAX: usize = 10_000;

/// Cuts at random frames, or at one.
struct Line {
    rng: StdRng,
    cut: f64,
    cut_at: Option<usize>,
    frames: usize,
    bytes: usize,
    cuts: usize,
}

struct Gone;

impl Line {
    fn new(seed: u64, cut: f64, cut_at: Option<usize>) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            cut,
            cut_at,
            frames: 0,
            bytes: 0,
            cuts: 0,
        }
    }

    fn send(&mut self, frame: &Message) -> Result<Message, Gone> {
        let frame = frame.encode();
        assert!(frame.len() <= FRAME_BYTES_MAX);
        self.frames += 1;
        self.bytes += frame.len();
        if self.cut_at == Some(self.frames) || self.rng.random_bool(self.cut) {
            self.cuts += 1;
            return Err(Gone);
        }
        Ok(Message::decode(&frame).unwrap())
    }

    fn exchange(
        &mut self,
        update: &MemUpdate,
        request: GetUpdate,
        mut take: impl FnMut(Message),
    ) -> Result<(), Gone> {
        let Message::GetUpdate(request) = self.send(&Message::GetUpdate(request))? else {
            panic!("it was one");
        };
        let mut responder = UpdateResponder::new(update, &request);
        loop {
            match responder.next_frame().unwrap() {
                Next::Frame(frame) => take(self.send(&frame)?),
                // The datacenter may be killed while it encodes: what is encoded stays.
                Next::Later => update.grow(),
                Next::End => return Ok(()),
            }
        }
    }
}

/// A branch: its chunks survive, the rest may be lost at any time.
struct Site<'a> {
    update: &'a MemUpdate,
    parent: VersionId,
    version: VersionId,
    numbering: NewChunks,
    chunks: HashMap<ChunkId, Bytes>,
    line: Line,
    /// Batches that came, once or again.
    came: usize,
    skipped: usize,
}

impl Site<'_> {
    fn request(&self, head: bool, batches: Vec<BatchRange>) -> GetUpdate {
        GetUpdate {
            version: self.version,
            parent: self.parent,
            head,
            batches,
        }
    }

    fn shape(&mut self) -> Result<UpdateShape, Gone> {
        let mut shape = None;
        let request = self.request(true, Vec::new());
        let numbering = &self.numbering;
        self.line.exchange(self.update, request, |message| {
            let Message::UpdateHead(head) = message else {
                panic!("{} came", message.name());
            };
            shape = Some(UpdateShape::new(&head, numbering).unwrap());
        })?;
        shape.ok_or(Gone)
    }

    /// Batches that lack a chunk, joined to ranges; sometimes only some of them.
    fn missing(&mut self, shape: &UpdateShape) -> Vec<BatchRange> {
        let most = self.line.rng.random_range(1..6);
        let mut ranges: Vec<BatchRange> = Vec::new();
        for number in 0..shape.len() as u32 {
            let range = shape.chunks(number);
            let new = &self.numbering.new[range.start as usize..range.end as usize];
            if new.iter().all(|(id, _)| self.chunks.contains_key(id)) {
                continue;
            }
            let full = ranges.len() == most;
            match ranges.last_mut() {
                Some(last) if last.first + last.count == number => last.count += 1,
                _ if full => break,
                _ => ranges.push(BatchRange {
                    first: number,
                    count: 1,
                }),
            }
        }
        ranges
    }

    fn batches(&mut self, shape: &UpdateShape) -> Result<bool, Gone> {
        let ranges = self.missing(shape);
        if ranges.is_empty() {
            return Ok(true);
        }
        let mut exchange = UpdateExchange::new(shape, &ranges);
        let request = self.request(false, ranges);
        let (numbering, chunks) = (&self.numbering, &mut self.chunks);
        let (came, skipped) = (&mut self.came, &mut self.skipped);
        self.line.exchange(self.update, request, |message| {
            let Message::UpdatePart(part) = message else {
                panic!("{} came", message.name());
            };
            let (_, batch) = exchange.part(part).unwrap();
            *came += 1;
            match decode_batch(&batch, numbering, &id_key(), |id| chunks.get(&id).cloned()) {
                Ok(new) => chunks.extend(new.iter().map(|c| (c.id(), c.bytes().clone()))),
                Err(UpdateRefused::MissingPrefix(_)) => *skipped += 1,
                Err(other) => panic!("{other}"),
            }
        })?;
        assert_eq!(exchange.remaining(), 0);
        Ok(false)
    }

    fn follow(&mut self) {
        let mut shape = None;
        for _ in 0..ATTEMPTS_MAX {
            let Some(known) = shape.take() else {
                shape = self.shape().ok();
                continue;
            };
            match self.batches(&known) {
                Ok(true) => return,
                Ok(false) => shape = Some(known),
                // Half of the time the branch's process is lost as well.
                Err(Gone) => shape = self.line.rng.random::<bool>().then_some(known),
            }
        }
        panic!("no progress in {ATTEMPTS_MAX} attempts");
    }
}

struct Published {
    dc: Datacenter,
    parent: VersionId,
    version: VersionId,
}

/// A disk, and what an upgrade makes of it: files that resemble old ones, new ones, moved ones.
fn published(rng: &mut StdRng) -> Published {
    let mut dc = Datacenter::default();
    let mut disk = noise(
        &rng.random::<u64>().to_string(),
        rng.random_range(1..4usize << 20),
    );
    let parent = dc.publish(&NewVersion::first("desktop", &disk));
    for _ in 0..rng.random_range(1..120) {
        let at = rng.random_range(0..disk.len());
        disk[at] ^= 1;
    }
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..disk.len());
        disk.splice(at..at, noise(&rng.random::<u64>().to_string(), 30_000));
    }
    let version = dc.publish(&NewVersion {
        number: 2,
        parent: Some(parent),
        ..NewVersion::first("desktop", &disk)
    });
    Published {
        dc,
        parent,
        version,
    }
}

fn site<'a>(at: &Published, update: &'a MemUpdate, line: Line) -> Site<'a> {
    let held = shown(&at.dc, at.parent);
    Site {
        update,
        parent: at.parent,
        version: at.version,
        numbering: update.numbering.clone(),
        chunks: held
            .iter()
            .map(|(id, _)| (*id, at.dc.chunks[id].clone()))
            .collect(),
        line,
        came: 0,
        skipped: 0,
    }
}

fn assert_whole(at: &Published, site: &Site<'_>) {
    for (id, _) in shown(&at.dc, at.version) {
        assert_eq!(site.chunks[&id], at.dc.chunks[&id]);
    }
    // Nothing got in that does not match its name.
    for (id, bytes) in &site.chunks {
        assert_eq!(id_key().chunk_id(bytes), *id);
    }
}

/// Returns how often the line was cut.
fn run(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let at = published(&mut rng);
    let chunks_max = rng.random_range(1..40);
    let update = MemUpdate::new(
        &at.dc,
        at.parent,
        at.version,
        chunks_max,
        |numbering, first| {
            // The parent's chunks, and new ones of earlier batches.
            let own = numbering.number_of_new(first);
            (0..rng.random_range(0..5))
                .map(|_| rng.random_range(0..own))
                .collect()
        },
    );
    update.forget();
    let line = Line::new(!seed, rng.random_range(0.0..0.5), None);
    let mut site = site(&at, &update, line);
    // A desktop read some of it before.
    for (id, _) in update.numbering.new.clone() {
        if rng.random_bool(0.1) {
            site.chunks.insert(id, at.dc.chunks[&id].clone());
        }
    }
    site.follow();
    assert_whole(&at, &site);
    println!(
        "seed {seed}: {} batches, {} came, {} cuts, {} bytes on the wire",
        update.plans.len(),
        site.came,
        site.line.cuts,
        site.line.bytes
    );
    site.line.cuts
}

#[test]
fn any_line_ends_in_what_was_published() {
    let only: Option<u64> = std::env::var("SPLICE_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let mut cuts = 0;
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(seen) => cuts += seen,
            Err(panic) => {
                eprintln!("replay: SPLICE_SEED={seed} cargo test -p dedup-protocol --test updates");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // A line that never failed would have proven nothing.
    assert!(only.is_some() || cuts > 50, "{cuts} cuts");
}

/// One cut, at every frame in turn: no batch that came before it crosses again, at most the cut one is lost.
#[test]
fn a_cut_at_any_frame_costs_one_batch() {
    let at = published(&mut StdRng::seed_from_u64(77));
    let update = MemUpdate::new(&at.dc, at.parent, at.version, 4, |_, _| Vec::new());
    let batches = update.plans.len();
    assert!(batches > 10, "{batches}");
    let mut clean = site(&at, &update, Line::new(1, 0.0, None));
    clean.follow();
    assert_eq!(clean.came, batches);
    assert_whole(&at, &clean);
    for frame in 1..=clean.line.frames {
        let mut site = site(&at, &update, Line::new(1, 0.0, Some(frame)));
        site.follow();
        assert_eq!(site.line.cuts, 1);
        assert_eq!(
            site.came, batches,
            "cut at frame {frame}: what came before it stays"
        );
        assert_eq!(site.skipped, 0);
        assert_whole(&at, &site);
    }
}
