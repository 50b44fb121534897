//! One simulated file: its bytes as programs see them, its bytes as the medium has them, and what lies between.
//!
//! Invariant: `live` is `durable` with `pending` applied, except after a failed sync, where the kernel has forgotten changes that
//! programs still see. A power cut leaves, for each 512-byte sector, one of the states that the sector had since the last sync.
//! A later state never lacks an earlier change of the same sector, because the page cache merges them; truncations and holes
//! are metadata and survive in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::rng::Rng;

/// What a disk writes whole or not at all, in bytes.
pub(crate) const SECTOR: u64 = 512;
const PAGE: usize = 4096;

/// Sparse bytes. Everything past `len` is zero.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bytes {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

/// The pieces of `[offset, offset + len)` by page: (page number, start within the page, start within the range, length).
fn by_page(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let piece = (PAGE - start).min(len - done);
        let item = (at / PAGE as u64, start, done, piece);
        done += piece;
        Some(item)
    })
}

impl Bytes {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that take space.
    pub(crate) fn allocated(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Bytes that `write` would newly allocate.
    pub(crate) fn would_allocate(&self, offset: u64, len: usize) -> u64 {
        let new = by_page(offset, len)
            .filter(|(page, ..)| !self.pages.contains_key(page))
            .count();
        (new * PAGE) as u64
    }

    /// Fills `buf`; what lies past the end is zero.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        for (page, start, done, len) in by_page(offset, buf.len()) {
            let to = &mut buf[done..done + len];
            match self.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[start..start + len]),
                None => to.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, start, done, len) in by_page(offset, data.len()) {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[start..start + len].copy_from_slice(&data[done..done + len]);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    fn zero(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (first, last) = (from / PAGE as u64, (to - 1) / PAGE as u64);
        let touched: Vec<u64> = self.pages.range(first..=last).map(|(p, _)| *p).collect();
        for page in touched {
            let begin = page * PAGE as u64;
            let start = from.saturating_sub(begin) as usize;
            let end = (to - begin).min(PAGE as u64) as usize;
            if start == 0 && end == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[start..end].fill(0);
            }
        }
    }

    fn resize(&mut self, len: u64) {
        // To the end of the last page, which pages alone can reach past `self.len`.
        let end = self
            .pages
            .keys()
            .next_back()
            .map_or(0, |p| (p + 1) * PAGE as u64);
        self.zero(len, end);
        self.len = len;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::Truncate { len } => self.resize(*len),
            Change::Punch { offset, len } => {
                self.zero(*offset, (offset.saturating_add(*len)).min(self.len));
            }
        }
    }
}

/// One change of a file that is not durable yet.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Truncate { len: u64 },
    Punch { offset: u64, len: u64 },
}

impl Change {
    fn is_metadata(&self) -> bool {
        !matches!(self, Change::Write { .. })
    }

    /// Whether this truncation or hole clears anything of the sector at `start`.
    fn clears(&self, start: u64) -> bool {
        match self {
            Change::Write { .. } => false,
            Change::Truncate { len } => *len < start + SECTOR,
            Change::Punch { offset, len } => {
                *offset < start + SECTOR && start < offset.saturating_add(*len)
            }
        }
    }

    fn apply_to_sector(&self, start: u64, sector: &mut [u8; SECTOR as usize]) {
        let clip = |at: u64| at.clamp(start, start + SECTOR) - start;
        match self {
            Change::Write { offset, data } => {
                let (from, to) = (clip(*offset), clip(offset + data.len() as u64));
                if from < to {
                    let source = (start + from - offset) as usize;
                    sector[from as usize..to as usize]
                        .copy_from_slice(&data[source..source + (to - from) as usize]);
                }
            }
            Change::Truncate { len } => sector[clip(*len) as usize..].fill(0),
            Change::Punch { offset, len } => {
                let to = clip(offset.saturating_add(*len));
                sector[clip(*offset) as usize..to as usize].fill(0);
            }
        }
    }
}

/// A file's content in both places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inode {
    pub(crate) live: Bytes,
    durable: Bytes,
    pending: Vec<Change>,
}

impl Inode {
    pub(crate) fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.pending.push(change);
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// A sync that reports EIO: some sectors reached the medium, the rest are marked clean and never will, although programs go
    /// on reading them (Rebello and others: "Can applications recover from fsync failures?", 2020).
    pub(crate) fn fail_sync(&mut self, rng: &mut Rng) {
        self.durable = self.after_power_cut(rng);
        self.pending.clear();
    }

    /// The file that the next boot finds.
    pub(crate) fn rebooted(&self, rng: &mut Rng) -> Self {
        let found = self.after_power_cut(rng);
        Self {
            live: found.clone(),
            durable: found,
            pending: Vec::new(),
        }
    }

    fn after_power_cut(&self, rng: &mut Rng) -> Bytes {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        // Independent sectors alone would make the simple outcomes too rare to be met.
        let all = self.pending.len();
        match rng.below(5) {
            0 => self.durable.clone(),
            1 => self.prefix(all),
            2 => self.torn_prefix(rng.below(all as u64) as usize, rng),
            _ => self.scattered(rng),
        }
    }

    fn prefix(&self, count: usize) -> Bytes {
        let mut bytes = self.durable.clone();
        for change in &self.pending[..count] {
            bytes.apply(change);
        }
        bytes
    }

    /// The first `count` changes, and of the next, if it is a write, the sectors up to a random one.
    fn torn_prefix(&self, count: usize, rng: &mut Rng) -> Bytes {
        let mut bytes = self.prefix(count);
        if let Change::Write { offset, data } = &self.pending[count] {
            let first = offset / SECTOR;
            let sectors = (offset + data.len() as u64).div_ceil(SECTOR) - first;
            let end = (first + rng.below(sectors + 1)) * SECTOR;
            let keep = end.saturating_sub(*offset).min(data.len() as u64) as usize;
            if keep > 0 {
                bytes.write(*offset, &data[..keep]);
            }
        }
        bytes
    }

    /// Every sector at a state of its own, the length and the holes at one of theirs.
    fn scattered(&self, rng: &mut Rng) -> Bytes {
        let settled = rng.below(self.pending.len() as u64 + 1) as usize;
        let mut len = self.durable.len();
        let mut bytes = self.durable.clone();
        for change in &self.pending[..settled] {
            match change {
                Change::Write { offset, data } => len = len.max(offset + data.len() as u64),
                Change::Truncate { len: new } => len = *new,
                Change::Punch { .. } => {}
            }
            if change.is_metadata() {
                bytes.apply(change);
            }
        }
        let mut writes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, change) in self.pending.iter().enumerate() {
            if let Change::Write { offset, data } = change {
                let end = (offset + data.len() as u64).div_ceil(SECTOR);
                for sector in offset / SECTOR..end {
                    writes.entry(sector).or_default().push(index);
                }
            }
        }
        let metadata: Vec<usize> = (0..self.pending.len())
            .filter(|i| self.pending[*i].is_metadata())
            .collect();
        for (sector, indexes) in writes {
            let start = sector * SECTOR;
            let clearing = || metadata.iter().filter(|i| self.pending[**i].clears(start));
            let lowest = clearing().rfind(|i| **i < settled).map_or(0, |i| i + 1);
            let limit = clearing()
                .find(|i| **i >= settled)
                .map_or(self.pending.len(), |i| *i);
            let states: Vec<usize> = std::iter::once(lowest)
                .chain(
                    indexes
                        .iter()
                        .filter(|i| (lowest..limit).contains(*i))
                        .map(|i| i + 1),
                )
                .collect();
            let state = states[rng.below(states.len() as u64) as usize];
            let mut content = [0; SECTOR as usize];
            self.durable.read(start, &mut content);
            for change in &self.pending[..state] {
                change.apply_to_sector(start, &mut content);
            }
            bytes.write(start, &content);
        }
        bytes.resize(len);
        bytes
    }
}
