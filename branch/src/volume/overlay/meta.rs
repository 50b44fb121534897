//! The header file of an overlay: whose it is, which segments are durable, which are gone.
//!
//! Invariant: replaced atomically, never written in place, and written authenticated (format version 2). Version 1, in the clear, is read,
//! so that what an earlier release wrote opens; the first opening replaces it. A tag keeps anybody without the key from declaring a
//! segment dropped, which would bring back what it had replaced. It does no I/O.

use xxhash_rust::xxh3::xxh3_64;

use super::format::{DISKS_MAX, Fault, array_at, damaged, u32_at, u64_at};
use super::seal::{AuthTag, Domain, LogKey, NONCE_BYTES, Nonce, OverlayKey, TAG_BYTES};

/// Most runs of dropped segments that a header file lists; beyond it segments are kept.
pub const DROPPED_RUNS_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"SPLOVLAY";
const PLAIN: u32 = 1;
const SEALED: u32 = 2;
const FIXED_BYTES: usize = 112;
/// Nonce, tag and checksum at the end of a header file of version 2.
const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES + 8;

/// The content of the header file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The desktop that owns the overlay.
    pub desktop: [u8; 16],
    /// The version it lies over.
    pub base: [u8; 32],
    /// Random name of this log.
    pub log_id: [u8; 16],
    /// Public name of the key; zeros: written by an earlier release, in the clear.
    pub key_id: [u8; 8],
    /// Sizes of the desktop's disks in bytes.
    pub disks: Vec<u64>,
    /// Highest segment known to be durable, name and header; all lower ones are durable as a whole.
    pub segments_synced: u32,
    /// Highest segment that may be in the clear, because an earlier release wrote it. Without this, whoever can write to the disk
    /// could put a segment of version 1, which needs no key, in the place of a sealed one.
    pub plain_until: u32,
    /// Runs (first, last) of segments that were dropped because nothing in them is live, ascending.
    pub dropped: Vec<(u32, u32)>,
}

impl Meta {
    /// What [`Meta::starts_plain`] looks at.
    pub const START_BYTES: usize = 12;

    /// Whether these are the first bytes of a header file in the clear.
    pub fn starts_plain(bytes: &[u8; Self::START_BYTES]) -> bool {
        bytes[..8] == MAGIC && u32_at(bytes, 8) == PLAIN
    }

    /// The end of the run of dropped segments that `segment` is in, if it was dropped.
    pub fn dropped_until(&self, segment: u32) -> Option<u32> {
        self.dropped
            .iter()
            .find(|&&(first, last)| (first..=last).contains(&segment))
            .map(|&(_, last)| last)
    }

    /// Notes that `segment` is dropped; false, and no change, if the list is full.
    pub fn add_dropped(&mut self, segment: u32) -> bool {
        let mut runs = self.dropped.clone();
        runs.push((segment, segment));
        runs.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(runs.len());
        for (first, last) in runs {
            match merged.last_mut() {
                Some(run) if u64::from(run.1) + 1 >= u64::from(first) => run.1 = run.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        if merged.len() > DROPPED_RUNS_MAX {
            return false;
        }
        self.dropped = merged;
        true
    }

    /// The bytes of the header file, under the log's key.
    pub fn encode(&self, key: &LogKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            FIXED_BYTES + 8 * self.disks.len() + 8 * self.dropped.len() + SEAL_BYTES,
        );
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&SEALED.to_le_bytes());
        out.extend_from_slice(&(self.disks.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.desktop);
        out.extend_from_slice(&self.base);
        out.extend_from_slice(&self.log_id);
        out.extend_from_slice(&self.key_id);
        out.extend_from_slice(&self.segments_synced.to_le_bytes());
        out.extend_from_slice(&(self.dropped.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.plain_until.to_le_bytes());
        out.extend_from_slice(&[0; 12]);
        debug_assert_eq!(out.len(), FIXED_BYTES);
        for size in &self.disks {
            out.extend_from_slice(&size.to_le_bytes());
        }
        for (first, last) in &self.dropped {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
        }
        let nonce = key.nonce();
        let tag = key.seal(Domain::Meta, &nonce, &digest(&out), &mut []);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&tag);
        let check = xxh3_64(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header file with the desktop's key, and derives the log's.
    pub fn decode(bytes: &[u8], key: &OverlayKey) -> Result<(Self, LogKey), Fault> {
        if bytes.len() < FIXED_BYTES + 8 || bytes[..8] != MAGIC {
            return damaged("not an overlay header");
        }
        let version = u32_at(bytes, 8);
        if version != PLAIN && version != SEALED {
            return Err(Fault::Unsupported(format!(
                "it has format version {version}"
            )));
        }
        let seal_bytes = if version == SEALED { SEAL_BYTES } else { 8 };
        let (disks, dropped) = (u32_at(bytes, 12) as usize, u32_at(bytes, 92) as usize);
        if disks == 0 || disks > DISKS_MAX || dropped > DROPPED_RUNS_MAX {
            return damaged(format!(
                "it claims {disks} disks and {dropped} dropped runs"
            ));
        }
        let end = FIXED_BYTES + 8 * (disks + dropped);
        let checked = end + seal_bytes - 8;
        if bytes.len() != checked + 8 || xxh3_64(&bytes[..checked]) != u64_at(bytes, checked) {
            return damaged("its checksum does not match");
        }
        if version == PLAIN && !key.takes_plain() {
            return damaged("it is in the clear, and the desktop's key says that it is encrypted");
        }
        let key_id: [u8; 8] = array_at(bytes, 80);
        let reserved = if version == PLAIN { 96 } else { 100 };
        if (version == PLAIN) != (key_id == [0; 8])
            || bytes[reserved..FIXED_BYTES].iter().any(|&b| b != 0)
        {
            return Err(Fault::Unsupported(
                "it has fields of a later release".to_owned(),
            ));
        }
        let log = LogKey::new(&array_at(bytes, 64), key);
        if version == SEALED {
            if key_id != key.key_id() {
                return Err(Fault::OtherKey(key_id));
            }
            let nonce: Nonce = array_at(bytes, end);
            let tag: AuthTag = array_at(bytes, end + NONCE_BYTES);
            if !log.open(Domain::Meta, &nonce, &digest(&bytes[..end]), &mut [], &tag) {
                return damaged("it was not written with the desktop's key");
            }
        }
        let at = |i: usize| FIXED_BYTES + 8 * i;
        let runs: Vec<_> = (disks..disks + dropped)
            .map(|i| (u32_at(bytes, at(i)), u32_at(bytes, at(i) + 4)))
            .collect();
        if runs.iter().any(|(first, last)| first > last)
            || runs.windows(2).any(|w| w[0].1 >= w[1].0)
        {
            return damaged("its list of dropped segments is out of order");
        }
        let meta = Self {
            desktop: array_at(bytes, 16),
            base: array_at(bytes, 32),
            log_id: array_at(bytes, 64),
            key_id,
            disks: (0..disks).map(|i| u64_at(bytes, at(i))).collect(),
            segments_synced: u32_at(bytes, 88),
            plain_until: if version == PLAIN {
                u32::MAX
            } else {
                u32_at(bytes, 96)
            },
            dropped: runs,
        };
        Ok((meta, log))
    }
}

/// What the tag covers of a header file, whose length varies.
fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}
