//! The bytes of an overlay: header file, segment header, record header, piece checks.
//!
//! Invariant: decoding checks magic, version, lengths and checksum before anything is believed or allocated, and every
//! layout here matches `docs/disk-formats/overlay.md`. Little-endian throughout. Checksums are xxh3-64 seeded from the
//! random log id, which a guest never sees, so that bytes a guest wrote cannot pass for a record.
//! It does no I/O.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Smallest unit of a guest's request in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Payload bytes that share one checksum; pieces are cut on this grid of the *disk*, so an aligned guest block is one piece.
pub const PIECE_BYTES: u64 = 4096;
/// Room in front of each piece: 8 bytes of checksum now, a 16-byte authentication tag once overlays are encrypted.
pub const PIECE_CHECK_BYTES: u64 = 16;
/// Longest payload of one record. Longer guest writes become several records: bounds the append buffer and replay's memory.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 20;
/// Length of a record header.
pub const RECORD_HEADER_BYTES: usize = 96;
/// Length of a segment header.
pub const SEGMENT_HEADER_BYTES: usize = 128;
/// Records start at multiples of this (it follows from the lengths above), so a search for records may step by it.
pub const RECORD_ALIGN_BYTES: u64 = 16;
/// Most disks of one desktop.
pub const DISKS_MAX: usize = 16;
/// Most runs of dropped segments that a header file lists; beyond it segments are kept.
pub const DROPPED_RUNS_MAX: usize = 4096;

/// Highest sequence number believed: far beyond any desktop's life, and sums stay clear of overflow.
const SEQ_MAX: u64 = 1 << 60;

const VERSION: u32 = 1;
const META_MAGIC: [u8; 8] = *b"SPLOVLAY";
const SEGMENT_MAGIC: [u8; 8] = *b"SPLOVSEG";
/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"SPOR";
const META_FIXED_BYTES: usize = 112;

/// The seed of every checksum in one overlay's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogKey(u64);

impl LogKey {
    /// Derives the seed from the log id.
    pub fn new(log_id: &[u8; 16]) -> Self {
        Self(xxh3_64(log_id))
    }

    fn header_check(self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.0)
    }

    /// Checksum of one piece, bound to the record (`seq`) and to the place on the disk, so that a stale or misplaced
    /// piece does not verify.
    pub fn piece_check(self, disk: u16, seq: u64, offset: u64, piece: &[u8]) -> u64 {
        let place = mix(seq ^ mix(offset ^ (u64::from(disk) << 48)));
        xxh3_64_with_seed(piece, self.0 ^ place)
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014): spreads every input bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not (all of) such a header: torn, stale or damaged.
    Damaged(String),
    /// A later format, or encrypted.
    Unsupported(String),
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(why.into()))
}

/// The header file of an overlay; replaced atomically, never written in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The desktop that owns the overlay.
    pub desktop: [u8; 16],
    /// The version it lies over.
    pub base: [u8; 32],
    /// Random name of this log.
    pub log_id: [u8; 16],
    /// Sizes of the desktop's disks in bytes.
    pub disks: Vec<u64>,
    /// Highest segment known to be durable, name and header; all lower ones are durable as a whole.
    pub segments_synced: u32,
    /// Runs (first, last) of segments that were dropped because nothing in them is live, ascending.
    pub dropped: Vec<(u32, u32)>,
}

impl Meta {
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

    /// The bytes of the header file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            META_FIXED_BYTES + 8 * self.disks.len() + 8 * self.dropped.len() + 8,
        );
        out.extend_from_slice(&META_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.disks.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.desktop);
        out.extend_from_slice(&self.base);
        out.extend_from_slice(&self.log_id);
        out.extend_from_slice(&0u64.to_le_bytes()); // key id: 0, not encrypted
        out.extend_from_slice(&self.segments_synced.to_le_bytes());
        out.extend_from_slice(&(self.dropped.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        debug_assert_eq!(out.len(), META_FIXED_BYTES);
        for size in &self.disks {
            out.extend_from_slice(&size.to_le_bytes());
        }
        for (first, last) in &self.dropped {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
        }
        let check = xxh3_64(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() < META_FIXED_BYTES + 8 || bytes[..8] != META_MAGIC {
            return damaged("not an overlay header");
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Fault::Unsupported(format!(
                "it has format version {version}"
            )));
        }
        let (disks, dropped) = (u32_at(bytes, 12) as usize, u32_at(bytes, 92) as usize);
        if disks == 0 || disks > DISKS_MAX || dropped > DROPPED_RUNS_MAX {
            return damaged(format!(
                "it claims {disks} disks and {dropped} dropped runs"
            ));
        }
        let end = META_FIXED_BYTES + 8 * (disks + dropped);
        if bytes.len() != end + 8 || xxh3_64(&bytes[..end]) != u64_at(bytes, end) {
            return damaged("its checksum does not match");
        }
        if u64_at(bytes, 80) != 0 || bytes[96..META_FIXED_BYTES].iter().any(|&b| b != 0) {
            return Err(Fault::Unsupported(
                "it is encrypted, or has fields of a later release".to_owned(),
            ));
        }
        let at = |i: usize| META_FIXED_BYTES + 8 * i;
        let dropped: Vec<_> = (disks..disks + dropped)
            .map(|i| (u32_at(bytes, at(i)), u32_at(bytes, at(i) + 4)))
            .collect();
        if dropped.iter().any(|(first, last)| first > last)
            || dropped.windows(2).any(|w| w[0].1 >= w[1].0)
        {
            return damaged("its list of dropped segments is out of order");
        }
        Ok(Self {
            desktop: array_at(bytes, 16),
            base: array_at(bytes, 32),
            log_id: array_at(bytes, 64),
            disks: (0..disks).map(|i| u64_at(bytes, at(i))).collect(),
            segments_synced: u32_at(bytes, 88),
            dropped,
        })
    }
}

/// The first bytes of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment, from 1.
    pub number: u32,
    /// Sequence number of its first record.
    pub first_seq: u64,
    /// Checksum of the header of the record before that.
    pub chain: u64,
    /// Every record up to this one was durable when the segment was begun.
    pub durable: u64,
}

impl SegmentHeader {
    /// The bytes of the header.
    pub fn encode(&self, log_id: &[u8; 16]) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..32].copy_from_slice(log_id);
        out[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.to_le_bytes());
        out[48..56].copy_from_slice(&self.durable.to_le_bytes());
        let check = LogKey::new(log_id).header_check(&out[..120]);
        out[120..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads the header of segment `number` of the log `log_id`.
    pub fn decode(
        bytes: &[u8; SEGMENT_HEADER_BYTES],
        log_id: &[u8; 16],
        number: u32,
    ) -> Result<Self, Fault> {
        if bytes[..8] != SEGMENT_MAGIC {
            return damaged("not a segment header");
        }
        if LogKey::new(log_id).header_check(&bytes[..120]) != u64_at(bytes, 120)
            || bytes[16..32] != *log_id
        {
            return damaged("the segment header's checksum does not match");
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Fault::Unsupported(format!(
                "it has format version {version}"
            )));
        }
        if u32_at(bytes, 12) != number {
            return damaged(format!("it is segment {}", u32_at(bytes, 12)));
        }
        if bytes[56..120].iter().any(|&b| b != 0) {
            return Err(Fault::Unsupported(
                "it is encrypted, or has fields of a later release".to_owned(),
            ));
        }
        let (first_seq, durable) = (u64_at(bytes, 32), u64_at(bytes, 48));
        if first_seq == 0 || first_seq > SEQ_MAX || durable >= first_seq {
            return damaged(format!(
                "it begins at record {first_seq} with {durable} durable"
            ));
        }
        Ok(Self {
            number,
            first_seq,
            chain: u64_at(bytes, 40),
            durable,
        })
    }
}

/// What a record says about its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The payload follows.
    Write,
    /// The range reads as zeros.
    Zero,
    /// The guest no longer needs the range; it reads as zeros.
    Discard,
    /// No range: only carries `durable` forward after a flush.
    Mark,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Zero => 2,
            Self::Discard => 3,
            Self::Mark => 16,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Write, Self::Zero, Self::Discard, Self::Mark]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it does.
    pub kind: Kind,
    /// To which disk of the desktop.
    pub disk: u16,
    /// Its number in the overlay's one sequence, from 1.
    pub seq: u64,
    /// Every record up to this one was durable when this one was written.
    pub durable: u64,
    /// First byte of the range on the disk.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// Checksum of the header of the record before it.
    pub chain: u64,
}

impl RecordHeader {
    /// The bytes of the header, and its checksum, which the next record carries as `chain`.
    pub fn encode(&self, key: LogKey) -> ([u8; RECORD_HEADER_BYTES], u64) {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = self.kind.code();
        out[6..8].copy_from_slice(&self.disk.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        out[24..32].copy_from_slice(&self.offset.to_le_bytes());
        out[32..40].copy_from_slice(&self.len.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.to_le_bytes());
        let check = key.header_check(&out[..88]);
        out[88..].copy_from_slice(&check.to_le_bytes());
        (out, check)
    }

    /// Reads a header and its checksum; `None` if these are not the untouched bytes of a header of this log.
    pub fn decode(
        bytes: &[u8; RECORD_HEADER_BYTES],
        key: LogKey,
    ) -> Option<(Result<Self, Fault>, u64)> {
        let check = u64_at(bytes, 88);
        if bytes[..4] != RECORD_MAGIC || key.header_check(&bytes[..88]) != check {
            return None;
        }
        Some((Self::fields(bytes), check))
    }

    fn fields(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, Fault> {
        let Some(kind) = Kind::from_code(bytes[4]) else {
            return Err(Fault::Unsupported(format!("record kind {}", bytes[4])));
        };
        if bytes[5] != 0 || bytes[48..88].iter().any(|&b| b != 0) {
            return Err(Fault::Unsupported("record flags, key or tag".to_owned()));
        }
        Ok(Self {
            kind,
            disk: u16::from_le_bytes([bytes[6], bytes[7]]),
            seq: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            offset: u64_at(bytes, 24),
            len: u64_at(bytes, 32),
            chain: u64_at(bytes, 40),
        })
    }

    /// Checks the fields against each other and against the desktop's disks.
    pub fn validate(&self, disks: &[u64]) -> Result<(), Fault> {
        if self.durable >= self.seq {
            return damaged(format!(
                "record {} claims that {} was durable",
                self.seq, self.durable
            ));
        }
        if self.kind == Kind::Mark {
            return if self.len == 0 && self.offset == 0 && self.disk == 0 {
                Ok(())
            } else {
                damaged("a mark with a range")
            };
        }
        let Some(&size) = disks.get(usize::from(self.disk)) else {
            return damaged(format!("disk {} of {}", self.disk, disks.len()));
        };
        let aligned =
            self.offset.is_multiple_of(SECTOR_BYTES) && self.len.is_multiple_of(SECTOR_BYTES);
        let inside = self
            .offset
            .checked_add(self.len)
            .is_some_and(|end| end <= size);
        let short = self.kind != Kind::Write || self.len <= PAYLOAD_BYTES_MAX;
        if self.len == 0 || !aligned || !inside || !short {
            return damaged(format!(
                "{} bytes at {} of disk {} ({size} bytes)",
                self.len, self.offset, self.disk
            ));
        }
        Ok(())
    }

    /// Length in bytes of what follows the header: pieces, each behind its check.
    pub fn body_bytes(&self) -> u64 {
        match self.kind {
            Kind::Write => self.len + PIECE_CHECK_BYTES * piece_count(self.offset, self.len),
            Kind::Zero | Kind::Discard | Kind::Mark => 0,
        }
    }
}

/// How many pieces `len` > 0 bytes at `offset` of a disk are cut into.
pub fn piece_count(offset: u64, len: u64) -> u64 {
    (offset + len - 1) / PIECE_BYTES - offset / PIECE_BYTES + 1
}

/// Cuts the range into pieces on the disk's 4 KiB grid: (start, end) of each.
pub fn pieces(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let start = at;
        at = ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(end);
        Some((start, at))
    })
}

/// Reads a piece check as it stands in front of its piece; `None` if the room for the tag is in use.
pub fn decode_piece_check(bytes: &[u8]) -> Option<u64> {
    (u64_at(bytes, 8) == 0).then(|| u64_at(bytes, 0))
}

/// Appends a piece check and the piece.
pub fn push_piece(out: &mut Vec<u8>, check: u64, piece: &[u8]) {
    out.extend_from_slice(&check.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(piece);
}

/// Makes hostile header fields pass the checks of magic, sequence, chain and checksum: the bytes, their checksum, and the
/// length of the body that they claim. For the fuzz target.
pub fn reseal(
    fields: &[u8; RECORD_HEADER_BYTES],
    seq: u64,
    chain: u64,
    key: LogKey,
) -> ([u8; RECORD_HEADER_BYTES], u64, u64) {
    let mut out = *fields;
    out[..4].copy_from_slice(&RECORD_MAGIC);
    out[4] = [1, 2, 3, 16, out[4]][usize::from(out[4] % 5)];
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[40..48].copy_from_slice(&chain.to_le_bytes());
    if out[5] < 128 {
        out[5] = 0;
        out[48..88].fill(0);
    }
    let check = key.header_check(&out[..88]);
    out[88..].copy_from_slice(&check.to_le_bytes());
    let body = match RecordHeader::fields(&out) {
        Ok(record) if (1..=PAYLOAD_BYTES_MAX).contains(&record.len) && record.offset <= SEQ_MAX => {
            record.body_bytes()
        }
        _ => 0,
    };
    (out, check, body)
}
