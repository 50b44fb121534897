//! The planner: cuts the new chunks into batches and lists for each what its frame may refer to.
//!
//! Invariants: batches cover the new chunks in order and once; a prefix lists numbers that come before its batch, each once, within
//! [`PREFIX_BYTES_MAX`]. The list is in ascending order: what lies together in the parent then lies together in the prefix, at one
//! distance, and the list encodes as runs.
//!
//! A chunk's candidates are those it shares super-features with; the best of them brings its neighbours on the parent's disk, because
//! what an upgrade wrote beside one changed chunk mostly resembles what lay beside the old one. A chunk without candidates goes on behind
//! the last match. Memory: 48 bytes for each chunk numbered, and 24 for each new one.

use std::collections::HashSet;
use std::ops::Range;

use crate::update::sketch::SUPER_FEATURES;
use crate::update::{BATCH_CHUNKS_MAX, BATCH_PLAIN_BYTES_MAX, NewChunks, PREFIX_BYTES_MAX, Sketch};

/// What to encode as one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    /// The chunks, as indexes among the new ones.
    pub chunks: Range<u32>,
    /// Numbers of the chunks that form the prefix, in its order: the parent's, or new ones of earlier batches.
    pub prefix: Vec<u32>,
}

/// An update's batches, and what its planner found out about the new chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What to encode, in order.
    pub batches: Vec<BatchPlan>,
    /// For each new chunk the number of the parent's chunk that it probably took the place of: the one it is most alike, or, close
    /// behind such a chunk, the one that follows there.
    pub kin: Vec<Option<u32>>,
}

/// Chunks in a row without a candidate of their own that are taken to follow what the chunk before them resembles. Further on the new
/// content has nothing to do with the old.
const KIN_FOLLOWERS_MAX: u32 = 8;

/// Candidates looked at for each super-feature: those with the lowest numbers, and as many next to the last match. A feature that
/// thousands of chunks share says little about any of them.
const CANDIDATES_MAX: usize = 4;

/// Best candidates that go into the prefix.
const TAKEN: usize = 2;

/// Chunks before the best candidate that come with it, and as many behind it.
const NEIGHBOURS: u32 = 2;

/// Plans an update. `sketch_of` gives the sketch of a chunk by number, and is asked for each once, ascending.
pub fn plan<E>(
    numbering: &NewChunks,
    mut sketch_of: impl FnMut(u32) -> Result<Sketch, E>,
) -> Result<Plan, E> {
    let (parents, new) = (numbering.parent.len() as u32, numbering.new.len() as u32);
    let mut index = Index::with_capacity(numbering.parent.len() + numbering.new.len());
    let mut sketches = Vec::with_capacity(numbering.new.len());
    for number in 0..parents + new {
        let sketch = sketch_of(number)?;
        index.insert(number, sketch);
        if number >= parents {
            sketches.push(sketch);
        }
    }
    index.sort();

    let mut batches = Vec::new();
    let mut kin = Kin::new(numbering);
    let mut prefix = Prefix::new(numbering, 0);
    // Rank, number, and the chunk beside which it lies.
    let mut wanted: Vec<(u32, u32, u32)> = Vec::new();
    // The number behind the last match: where a chunk without one looks.
    let mut next = None;
    for (chunks, sketches) in cut(numbering).map(|r| (r.clone(), &sketches[as_usize(&r)])) {
        prefix.restart(chunks.start);
        wanted.clear();
        for sketch in sketches {
            let matches = index.candidates(*sketch, prefix.end, next);
            kin.push(matches.first().copied(), next);
            if let [best, others @ ..] = &matches[..] {
                for number in best.saturating_sub(NEIGHBOURS)..=best + NEIGHBOURS {
                    wanted.push((2 * number.abs_diff(*best), number, *best));
                }
                wanted.extend(others.iter().map(|other| (1, *other, *other)));
                next = Some(best + 1);
            } else if let Some(number) = next {
                for ahead in number..=number + NEIGHBOURS {
                    wanted.push((2 * (ahead - number) + 1, ahead, number));
                }
                next = Some(number + 1);
            }
        }
        // Where there is not room for all, each chunk's best comes before any chunk's neighbours.
        wanted.sort_by_key(|(rank, ..)| *rank);
        for (_, number, origin) in &wanted {
            prefix.add(*number, *origin);
        }
        batches.push(BatchPlan {
            chunks,
            prefix: prefix.take(),
        });
    }
    let kin = kin.found;
    Ok(Plan { batches, kin })
}

/// [`Plan::kin`] under construction.
struct Kin {
    parents: u32,
    found: Vec<Option<u32>>,
    /// Chunks since the last one with a candidate.
    followers: u32,
}

impl Kin {
    fn new(numbering: &NewChunks) -> Self {
        Self {
            parents: numbering.parent.len() as u32,
            found: Vec::with_capacity(numbering.new.len()),
            followers: 0,
        }
    }

    /// The next new chunk has this best candidate, or it is looked for at `next`.
    fn push(&mut self, best: Option<u32>, next: Option<u32>) {
        self.followers = best.map_or(self.followers + 1, |_| 0);
        let follows = next.filter(|_| self.followers <= KIN_FOLLOWERS_MAX);
        let number = best.or(follows);
        // A chunk that is alike one of an earlier batch is as that one is.
        let kin = number.and_then(|number| match number.checked_sub(self.parents) {
            None => Some(number),
            Some(new) => self.found.get(new as usize).copied().flatten(),
        });
        self.found.push(kin);
    }
}

fn as_usize(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Ranges of new chunks, each within a batch's limits.
fn cut(numbering: &NewChunks) -> impl Iterator<Item = Range<u32>> + '_ {
    let mut end = 0u32;
    std::iter::from_fn(move || {
        let first = end;
        let mut plain_bytes = 0;
        while let Some((_, len)) = numbering.new.get(end as usize) {
            plain_bytes += *len as usize;
            if plain_bytes > BATCH_PLAIN_BYTES_MAX || end - first == BATCH_CHUNKS_MAX {
                break;
            }
            end += 1;
        }
        (end > first).then_some(first..end)
    })
}

/// Numbers by super-feature, one table for each place in a sketch.
struct Index {
    tables: [Vec<(u32, u32)>; SUPER_FEATURES],
}

impl Index {
    fn with_capacity(chunks: usize) -> Self {
        Self {
            tables: std::array::from_fn(|_| Vec::with_capacity(chunks)),
        }
    }

    fn insert(&mut self, number: u32, sketch: Sketch) {
        for (table, feature) in self.tables.iter_mut().zip(sketch.0) {
            if feature != 0 {
                table.push((feature, number));
            }
        }
    }

    fn sort(&mut self) {
        for table in &mut self.tables {
            table.sort_unstable();
        }
    }

    /// The best chunks below `end` that share a super-feature with `sketch`, by how many they share, then by nearness to `next`.
    fn candidates(&self, sketch: Sketch, end: u32, next: Option<u32>) -> Vec<u32> {
        let mut votes: Vec<(u32, u32)> = Vec::new();
        for (table, feature) in self.tables.iter().zip(sketch.0) {
            if feature == 0 {
                continue;
            }
            let from = |number| {
                let at = table.partition_point(|entry| *entry < (feature, number));
                let same = move |(f, n): &&(u32, u32)| *f == feature && *n < end;
                table[at..].iter().take_while(same).take(CANDIDATES_MAX)
            };
            let near = next.map(|next| from(next.saturating_sub(1)));
            let mut voters: Vec<u32> = from(0)
                .chain(near.into_iter().flatten())
                .map(|e| e.1)
                .collect();
            voters.sort_unstable();
            voters.dedup();
            for number in voters {
                match votes.iter_mut().find(|(n, _)| *n == number) {
                    Some((_, count)) => *count += 1,
                    None => votes.push((number, 1)),
                }
            }
        }
        let distance = |number: u32| next.map_or(0, |next| number.abs_diff(next));
        votes.sort_unstable_by_key(|(n, count)| (u32::MAX - count, distance(*n), *n));
        votes.truncate(TAKEN);
        votes.into_iter().map(|(number, _)| number).collect()
    }
}

/// The list under construction.
struct Prefix<'a> {
    numbering: &'a NewChunks,
    /// The batch's own first number, which ends what may be listed.
    end: u32,
    listed: HashSet<u32>,
    bytes: usize,
}

impl<'a> Prefix<'a> {
    fn new(numbering: &'a NewChunks, first: u32) -> Self {
        Self {
            numbering,
            end: numbering.number_of_new(first),
            listed: HashSet::new(),
            bytes: 0,
        }
    }

    fn restart(&mut self, first: u32) {
        *self = Self::new(self.numbering, first);
    }

    /// Lists `number`, which lies beside `origin`, unless it is of the other disk, not before the batch, listed or too much.
    fn add(&mut self, number: u32, origin: u32) {
        let parents = self.numbering.parent.len() as u32;
        if number >= self.end || (number < parents) != (origin < parents) {
            return;
        }
        let Some((_, len)) = self.numbering.number(number) else {
            return;
        };
        if self.bytes + len as usize <= PREFIX_BYTES_MAX && self.listed.insert(number) {
            self.bytes += len as usize;
        }
    }

    fn take(&mut self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.listed.drain().collect();
        numbers.sort_unstable();
        numbers
    }
}
