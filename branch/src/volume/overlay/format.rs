//! The bytes of an overlay's log: segment header, record header, pieces.
//!
//! Invariant: decoding checks magic, version, lengths, checksum and tag before anything is believed or allocated, and every
//! layout here matches `docs/disk-formats/overlay.md`. Little-endian throughout. Headers are in the clear but authenticated: where
//! a guest wrote is no secret here, what it wrote is. Checksums are xxh3-64 seeded from the random log id, which a guest never sees,
//! so that bytes a guest wrote cannot pass for a record. Only sealed segments are written; plain ones of an earlier release are read.
//! It does no I/O.

use super::seal::{AuthTag, Domain, Form, LogKey, NONCE_BYTES, Nonce, TAG_BYTES};

/// Smallest unit of a guest's request in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Payload bytes that share one tag; pieces are cut on this grid of the *disk*, so an aligned guest block is one piece.
pub const PIECE_BYTES: u64 = 4096;
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

/// Highest sequence number believed: far beyond any desktop's life, and sums stay clear of overflow.
pub const SEQ_MAX: u64 = 1 << 60;

const PLAIN: u32 = 1;
const SEALED: u32 = 2;
const SEGMENT_MAGIC: [u8; 8] = *b"SPLOVSEG";
/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"SPOR";
/// Bytes of a record header that its tag covers.
const RECORD_CLEAR_BYTES: usize = 48;
/// Bytes of a segment header that its tag covers.
const SEGMENT_CLEAR_BYTES: usize = 56;
/// Flag of a record: it moves what an older record says, and says nothing new.
const MOVED: u8 = 1;

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not (all of) such a header: torn, stale or damaged.
    Damaged(String),
    /// A later format.
    Unsupported(String),
    /// Encrypted with the key of this name, which is not the one at hand.
    OtherKey([u8; 8]),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(why) | Self::Unsupported(why) => f.write_str(why),
            Self::OtherKey(id) => {
                write!(
                    f,
                    "it is encrypted with key {:016x}",
                    u64::from_be_bytes(*id)
                )
            }
        }
    }
}

pub(super) fn damaged<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(why.into()))
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
    /// The bytes of the header of a sealed segment.
    pub fn encode(&self, key: &LogKey) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&SEALED.to_le_bytes());
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..32].copy_from_slice(key.log_id());
        out[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.to_le_bytes());
        out[48..56].copy_from_slice(&self.durable.to_le_bytes());
        let nonce = key.nonce();
        let tag = key.seal(
            Domain::Segment,
            &nonce,
            &out[..SEGMENT_CLEAR_BYTES],
            &mut [],
        );
        out[56..80].copy_from_slice(&nonce);
        out[80..96].copy_from_slice(&tag);
        let check = key.header_check(&out[..120]);
        out[120..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads the header of segment `number` of the log whose key this is.
    pub fn decode(
        bytes: &[u8; SEGMENT_HEADER_BYTES],
        key: &LogKey,
        number: u32,
    ) -> Result<(Self, Form), Fault> {
        if bytes[..8] != SEGMENT_MAGIC {
            return damaged("not a segment header");
        }
        if key.header_check(&bytes[..120]) != u64_at(bytes, 120) || bytes[16..32] != *key.log_id() {
            return damaged("the segment header's checksum does not match");
        }
        let form = match u32_at(bytes, 8) {
            PLAIN => Form::Plain,
            SEALED => Form::Sealed,
            version => {
                return Err(Fault::Unsupported(format!(
                    "it has format version {version}"
                )));
            }
        };
        if u32_at(bytes, 12) != number {
            return damaged(format!("it is segment {}", u32_at(bytes, 12)));
        }
        let reserved = match form {
            Form::Plain => 56..120,
            Form::Sealed => 96..120,
        };
        if bytes[reserved].iter().any(|&b| b != 0) {
            return Err(Fault::Unsupported(
                "it has fields of a later release".to_owned(),
            ));
        }
        let (nonce, tag): (Nonce, AuthTag) = (array_at(bytes, 56), array_at(bytes, 80));
        let clear = &bytes[..SEGMENT_CLEAR_BYTES];
        if form == Form::Sealed && !key.open(Domain::Segment, &nonce, clear, &mut [], &tag) {
            return damaged("the segment header was not written with the desktop's key");
        }
        let (first_seq, durable) = (u64_at(bytes, 32), u64_at(bytes, 48));
        if first_seq == 0 || first_seq > SEQ_MAX || durable >= first_seq {
            return damaged(format!(
                "it begins at record {first_seq} with {durable} durable"
            ));
        }
        let header = Self {
            number,
            first_seq,
            chain: u64_at(bytes, 40),
            durable,
        };
        Ok((header, form))
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
    /// It moves what an older record says, and says nothing new: compaction wrote it, no guest.
    pub moved: bool,
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
    /// The bytes of the header in a sealed segment, and its checksum, which the next record carries as `chain`.
    pub fn encode(&self, key: &LogKey, nonce: &Nonce) -> ([u8; RECORD_HEADER_BYTES], u64) {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = self.kind.code();
        out[5] = if self.moved { MOVED } else { 0 };
        out[6..8].copy_from_slice(&self.disk.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        out[24..32].copy_from_slice(&self.offset.to_le_bytes());
        out[32..40].copy_from_slice(&self.len.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.to_le_bytes());
        let check = finish_header(&mut out, key, nonce);
        (out, check)
    }

    /// Reads a header and its checksum; `None` if these are not the untouched bytes of a header of this log.
    pub fn decode(
        bytes: &[u8; RECORD_HEADER_BYTES],
        key: &LogKey,
        form: Form,
    ) -> Option<(Result<Self, Fault>, u64)> {
        let check = u64_at(bytes, 88);
        if bytes[..4] != RECORD_MAGIC || key.header_check(&bytes[..88]) != check {
            return None;
        }
        let (nonce, tag): (Nonce, AuthTag) = (array_at(bytes, 48), array_at(bytes, 72));
        let clear = &bytes[..RECORD_CLEAR_BYTES];
        if form == Form::Sealed && !key.open(Domain::Record, &nonce, clear, &mut [], &tag) {
            return None;
        }
        Some((Self::fields(bytes, form), check))
    }

    fn fields(bytes: &[u8; RECORD_HEADER_BYTES], form: Form) -> Result<Self, Fault> {
        let Some(kind) = Kind::from_code(bytes[4]) else {
            return Err(Fault::Unsupported(format!("record kind {}", bytes[4])));
        };
        let known = match form {
            Form::Plain => bytes[5] == 0 && bytes[48..88].iter().all(|&b| b == 0),
            Form::Sealed => bytes[5] & !MOVED == 0,
        };
        if !known {
            return Err(Fault::Unsupported("record flags".to_owned()));
        }
        Ok(Self {
            kind,
            moved: bytes[5] == MOVED,
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

    /// Length in bytes of what follows the header: pieces, each behind its front.
    pub fn body_bytes(&self, form: Form) -> u64 {
        match self.kind {
            Kind::Write => self.len + form.front_bytes() * piece_count(self.offset, self.len),
            Kind::Zero | Kind::Discard | Kind::Mark => 0,
        }
    }
}

/// Puts nonce, tag and checksum into a record header; returns the checksum.
fn finish_header(out: &mut [u8; RECORD_HEADER_BYTES], key: &LogKey, nonce: &Nonce) -> u64 {
    let tag = key.seal(Domain::Record, nonce, &out[..RECORD_CLEAR_BYTES], &mut []);
    out[48..72].copy_from_slice(nonce);
    out[72..88].copy_from_slice(&tag);
    let check = key.header_check(&out[..88]);
    out[88..].copy_from_slice(&check.to_le_bytes());
    check
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

/// What the tag of a piece covers besides the piece: record and place.
fn piece_place(disk: u16, seq: u64, start: u64) -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&seq.to_le_bytes());
    out[8..16].copy_from_slice(&start.to_le_bytes());
    out[16..].copy_from_slice(&disk.to_le_bytes());
    out
}

/// Appends a piece of record `seq` that begins at byte `start` of the disk: nonce, tag, 8 zeros, ciphertext.
pub fn push_piece(
    out: &mut Vec<u8>,
    key: &LogKey,
    nonce: &Nonce,
    (disk, seq, start): (u16, u64, u64),
    piece: &[u8],
) {
    let front = out.len();
    out.extend_from_slice(nonce);
    out.extend_from_slice(&[0; Form::Sealed.front_bytes() as usize - NONCE_BYTES]);
    let body = out.len();
    out.extend_from_slice(piece);
    let place = piece_place(disk, seq, start);
    let tag = key.seal(Domain::Piece, nonce, &place, &mut out[body..]);
    out[front + NONCE_BYTES..front + NONCE_BYTES + TAG_BYTES].copy_from_slice(&tag);
}

/// Verifies a piece that begins at byte `start` of the disk against its front, and decrypts it in place. False: it is not what
/// record `seq` wrote there, and `piece` holds anything.
#[must_use]
pub fn open_piece(
    key: &LogKey,
    form: Form,
    (disk, seq, start): (u16, u64, u64),
    front: &[u8],
    piece: &mut [u8],
) -> bool {
    match form {
        Form::Plain => {
            u64_at(front, 8) == 0
                && u64_at(front, 0) == key.plain_piece_check(disk, seq, start, piece)
        }
        Form::Sealed => {
            let (nonce, tag): (Nonce, AuthTag) = (array_at(front, 0), array_at(front, NONCE_BYTES));
            let place = piece_place(disk, seq, start);
            u64_at(front, NONCE_BYTES + TAG_BYTES) == 0
                && key.open(Domain::Piece, &nonce, &place, piece, &tag)
        }
    }
}

/// Makes hostile header fields pass the checks of magic, sequence, chain, tag and checksum: the bytes, their checksum, and the
/// length of the body that they claim. For the fuzz target.
pub fn reseal(
    fields: &[u8; RECORD_HEADER_BYTES],
    seq: u64,
    chain: u64,
    key: &LogKey,
    form: Form,
) -> ([u8; RECORD_HEADER_BYTES], u64, u64) {
    let mut out = *fields;
    out[..4].copy_from_slice(&RECORD_MAGIC);
    out[4] = [1, 2, 3, 16, out[4]][usize::from(out[4] % 5)];
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[40..48].copy_from_slice(&chain.to_le_bytes());
    if out[5] < 128 {
        out[5] &= MOVED;
        if form == Form::Plain {
            out[5] = 0;
            out[48..88].fill(0);
        }
    }
    let check = match form {
        Form::Plain => {
            let check = key.header_check(&out[..88]);
            out[88..].copy_from_slice(&check.to_le_bytes());
            check
        }
        Form::Sealed => finish_header(&mut out, key, &[9; NONCE_BYTES]),
    };
    let body = match RecordHeader::fields(&out, form) {
        Ok(record) if (1..=PAYLOAD_BYTES_MAX).contains(&record.len) && record.offset <= SEQ_MAX => {
            record.body_bytes(form)
        }
        _ => 0,
    };
    (out, check, body)
}
