//! The file of one encoded update, as values over a [`Disk`]: created with its plan, appended to batch by batch, read by number.
//!
//! While it grows its name ends in `.part`; it is synced, renamed, and from then on only read. Invariant: a batch that [`UpdateFile`]
//! hands out is the bytes that were appended under its number, by their checksum. What a crash left is found again by
//! [`UpdateFile::resume`]: all batches up to the first that is torn. Documented byte by byte in `docs/disk-formats/update.md`.
//! What it does not do: deciding what is encoded, and when.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dedup::codec::{Reader, write_varint};
use dedup::update::{BatchPlan, UpdateBatch};
use dedup::{IdKey, RealmId, VersionId};
use dedup_protocol::wire::{BatchSize, FRAME_BYTES_MAX, UPDATE_BATCHES_MAX};
use dedup_store::disk::{Disk, DiskFile, Open};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: [u8; 8] = *b"SPLUPDT\0";
/// The format that this release writes.
const FORMAT: u16 = 1;
const HEADER_LEN: usize = 128;
/// Where the header's checksum of all before it lies.
const HEADER_SUM_AT: usize = 120;
const RECORD_MARK: [u8; 4] = *b"UREC";
const RECORD_HEADER_LEN: usize = 32;
/// Where a record header's checksum of all before it lies.
const RECORD_SUM_AT: usize = 24;

/// Longest plan in bytes: 2 KiB for each batch of the largest update, which is what real prefix lists take at most.
const PLAN_BYTES_MAX: usize = 512 << 20;

/// Name of the complete file, and of the one that grows.
pub fn names(pair: &Pair) -> (String, String) {
    let whole = format!("{}-{}.update", pair.parent, pair.version);
    let part = format!("{whole}.part");
    (whole, part)
}

/// The pair that a file name means, and whether the file is still growing.
pub fn pair_of_name(name: &str) -> Option<(Pair, bool)> {
    let (stem, growing) = match name.strip_suffix(".part") {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let (parent, version) = stem.strip_suffix(".update")?.split_once('-')?;
    let pair = Pair {
        parent: parent.parse().ok()?,
        version: version.parse().ok()?,
    };
    Some((pair, growing))
}

/// Which update: of `version`, for holders of `parent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// What a branch has.
    pub parent: VersionId,
    /// What it is to get.
    pub version: VersionId,
}

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Whose content.
    pub realm: RealmId,
    /// Under which id key chunks are named.
    pub key_id: [u8; 8],
    /// Between which versions.
    pub pair: Pair,
}

impl Identity {
    /// Of an update in a realm.
    pub fn new(realm: RealmId, key: &IdKey, pair: Pair) -> Self {
        Self {
            realm,
            key_id: key.key_id(),
            pair,
        }
    }
}

/// Why a file of an update cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpdateFileError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what its name says, or torn, or its bytes are not what was written. It can be made again.
    #[error("{name} is damaged: {reason}")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// An open file. Appending and reading may go on at once.
pub struct UpdateFile {
    name: String,
    file: Arc<dyn DiskFile>,
    plans: Vec<BatchPlan>,
    plain_bytes: u64,
    /// Where each batch's bytes lie: offset and length.
    places: Mutex<Vec<Option<(u64, u32)>>>,
    /// Where the next record goes. Held while one is written, so that a crash tears at most the last.
    end: Mutex<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no code panics while it holds this lock")
}

impl UpdateFile {
    /// Creates the growing file `name` with its plan, which is durable before the first batch is.
    pub fn create(
        disk: &dyn Disk,
        name: &str,
        identity: &Identity,
        plans: Vec<BatchPlan>,
        plain_bytes: u64,
    ) -> Result<Self, UpdateFileError> {
        let plan = encode_plans(&plans);
        let header = encode_header(identity, &plan, plain_bytes);
        let file = disk.open(name, Open::CreateNew)?;
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(&plan);
        file.write_at(0, &bytes)?;
        file.sync()?;
        disk.sync_dir("")?;
        Ok(Self {
            name: name.into(),
            file,
            places: Mutex::new(vec![None; plans.len()]),
            plans,
            plain_bytes,
            end: Mutex::new(bytes.len() as u64),
        })
    }

    /// Opens a growing file that a former process left, and cuts off what is torn at its end.
    pub fn resume(
        disk: &dyn Disk,
        name: &str,
        identity: &Identity,
    ) -> Result<Self, UpdateFileError> {
        let opened = Self::open_as(disk, name, identity, Open::Write)?;
        let end = opened.scan(true)?;
        opened.file.truncate(end)?;
        // The process that created it may have died before it was durable.
        opened.file.sync()?;
        disk.sync_dir("")?;
        *lock(&opened.end) = end;
        Ok(opened)
    }

    /// Opens a complete file. Its batches are checked when they are read.
    pub fn open(disk: &dyn Disk, name: &str, identity: &Identity) -> Result<Self, UpdateFileError> {
        let opened = Self::open_as(disk, name, identity, Open::Read)?;
        let end = opened.scan(false)?;
        if end != opened.file.len()? || !opened.missing().is_empty() {
            return Err(opened.damaged(format!(
                "{} of {} batches are readable",
                opened.plans.len() - opened.missing().len(),
                opened.plans.len()
            )));
        }
        *lock(&opened.end) = end;
        Ok(opened)
    }

    fn open_as(
        disk: &dyn Disk,
        name: &str,
        identity: &Identity,
        how: Open,
    ) -> Result<Self, UpdateFileError> {
        let damaged = |reason: String| UpdateFileError::Damaged {
            name: name.into(),
            reason,
        };
        let file = disk.open(name, how)?;
        let len = file.len()?;
        let mut header = [0; HEADER_LEN];
        if len < HEADER_LEN as u64 {
            return Err(damaged("it ends in its header".into()));
        }
        file.read_at(0, &mut header)?;
        let header = decode_header(&header, identity).map_err(damaged)?;
        if len - (HEADER_LEN as u64) < header.plan_len as u64 {
            return Err(damaged("it ends in its plan".into()));
        }
        let mut plan = vec![0; header.plan_len];
        file.read_at(HEADER_LEN as u64, &mut plan)?;
        if xxh3_64(&plan) != header.plan_sum {
            return Err(damaged("its plan does not match its checksum".into()));
        }
        let plans = decode_plans(&plan).map_err(damaged)?;
        Ok(Self {
            name: name.into(),
            file,
            places: Mutex::new(vec![None; plans.len()]),
            plans,
            plain_bytes: header.plain_bytes,
            end: Mutex::new((HEADER_LEN + header.plan_len) as u64),
        })
    }

    fn damaged(&self, reason: String) -> UpdateFileError {
        UpdateFileError::Damaged {
            name: self.name.clone(),
            reason,
        }
    }

    /// Finds the records; returns where the first thing lies that is none. `deep`: a record whose bytes do not match is none.
    fn scan(&self, deep: bool) -> Result<u64, UpdateFileError> {
        let len = self.file.len()?;
        let mut at = *lock(&self.end);
        let mut places = lock(&self.places);
        while at + RECORD_HEADER_LEN as u64 <= len {
            let mut header = [0; RECORD_HEADER_LEN];
            self.file.read_at(at, &mut header)?;
            let Some(record) = RecordHeader::decode(&header, at) else {
                break;
            };
            let bytes_at = at + RECORD_HEADER_LEN as u64;
            let end = bytes_at + u64::from(record.len);
            let fits = end <= len && (record.number as usize) < places.len();
            if !fits || (deep && xxh3_64(&self.bytes_at(bytes_at, record.len)?) != record.sum) {
                break;
            }
            places[record.number as usize] = Some((bytes_at, record.len));
            at = end;
        }
        Ok(at)
    }

    fn bytes_at(&self, at: u64, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.file.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The plan: what each batch has, and its prefix.
    pub fn plans(&self) -> &[BatchPlan] {
        &self.plans
    }

    /// Plain bytes of all new chunks.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Each batch's chunks and, once it is here, length.
    pub fn sizes(&self) -> Vec<BatchSize> {
        let places = lock(&self.places);
        let sizes = self.plans.iter().zip(places.iter());
        sizes
            .map(|(plan, place)| BatchSize {
                chunks: plan.chunks.end - plan.chunks.start,
                packed_bytes: place.map_or(0, |(_, len)| len),
            })
            .collect()
    }

    /// Batches that are not here yet, ascending.
    pub fn missing(&self) -> Vec<u32> {
        let places = lock(&self.places);
        let missing = (0..).zip(places.iter()).filter(|(_, p)| p.is_none());
        missing.map(|(number, _)| number).collect()
    }

    /// Adds a batch. It survives the death of the process from here on, and that of the machine from [`Self::finish`] on.
    pub fn append(&self, number: u32, batch: &UpdateBatch) -> Result<u32, UpdateFileError> {
        let mut record = vec![0; RECORD_HEADER_LEN];
        batch.encode(&mut record);
        let len = (record.len() - RECORD_HEADER_LEN) as u32;
        let sum = xxh3_64(&record[RECORD_HEADER_LEN..]);
        let mut end = lock(&self.end);
        let header = RecordHeader { number, len, sum }.encode(*end);
        record[..RECORD_HEADER_LEN].copy_from_slice(&header);
        self.file.write_at(*end, &record)?;
        let bytes_at = *end + RECORD_HEADER_LEN as u64;
        *end += record.len() as u64;
        lock(&self.places)[number as usize] = Some((bytes_at, len));
        Ok(len)
    }

    /// Batch `number`, encoded, checked; `None`: not here yet, or there is none.
    pub fn read(&self, number: u32) -> Result<Option<Bytes>, UpdateFileError> {
        let place = lock(&self.places).get(number as usize).copied().flatten();
        let Some((bytes_at, len)) = place else {
            return Ok(None);
        };
        let mut record = vec![0; RECORD_HEADER_LEN + len as usize];
        let at = bytes_at - RECORD_HEADER_LEN as u64;
        self.file.read_at(at, &mut record)?;
        let (header, bytes) = record.split_at(RECORD_HEADER_LEN);
        let header = RecordHeader::decode(header.try_into().expect("split there"), at);
        let sound =
            header.is_some_and(|h| (h.number, h.len) == (number, len) && h.sum == xxh3_64(bytes));
        if !sound {
            return Err(self.damaged(format!("batch {number} does not match its checksum")));
        }
        Ok(Some(Bytes::from(record).slice(RECORD_HEADER_LEN..)))
    }

    /// Makes a file that lacks nothing durable under its final name `whole`.
    pub fn finish(&self, disk: &dyn Disk, whole: &str) -> Result<(), UpdateFileError> {
        debug_assert!(self.missing().is_empty(), "every batch was appended");
        self.file.sync()?;
        disk.rename(&self.name, whole)?;
        disk.sync_dir("")?;
        Ok(())
    }
}

struct Header {
    plan_len: usize,
    plan_sum: u64,
    plain_bytes: u64,
}

fn encode_header(identity: &Identity, plan: &[u8], plain_bytes: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..16].copy_from_slice(&(plan.len() as u32).to_le_bytes());
    header[16..32].copy_from_slice(identity.realm.as_bytes());
    header[32..40].copy_from_slice(&identity.key_id);
    header[40..72].copy_from_slice(identity.pair.parent.as_bytes());
    header[72..104].copy_from_slice(identity.pair.version.as_bytes());
    header[104..112].copy_from_slice(&xxh3_64(plan).to_le_bytes());
    header[112..120].copy_from_slice(&plain_bytes.to_le_bytes());
    let sum = xxh3_64(&header[..HEADER_SUM_AT]);
    header[HEADER_SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn decode_header(header: &[u8; HEADER_LEN], identity: &Identity) -> Result<Header, String> {
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if header[..8] != MAGIC {
        return Err("it is no file of an update".into());
    }
    if header[8..10] != FORMAT.to_le_bytes() {
        return Err("it is of another format".into());
    }
    if u64_at(HEADER_SUM_AT) != xxh3_64(&header[..HEADER_SUM_AT]) {
        return Err("its header does not match its checksum".into());
    }
    let same = header[16..32] == identity.realm.0
        && header[32..40] == identity.key_id
        && header[40..72] == identity.pair.parent.0
        && header[72..104] == identity.pair.version.0;
    if !same {
        return Err("it is of other versions, or of another realm".into());
    }
    let plan_len = u32::from_le_bytes(header[12..16].try_into().expect("4 bytes")) as usize;
    if plan_len > PLAN_BYTES_MAX {
        return Err(format!("a plan of {plan_len} bytes"));
    }
    Ok(Header {
        plan_len,
        plan_sum: u64_at(104),
        plain_bytes: u64_at(112),
    })
}

/// A count, then for each batch its length in bytes and a batch without packed bytes.
fn encode_plans(plans: &[BatchPlan]) -> Vec<u8> {
    let mut out = Vec::new();
    write_varint(&mut out, plans.len() as u64);
    for plan in plans {
        let mut one = Vec::new();
        UpdateBatch {
            first: plan.chunks.start,
            count: plan.chunks.end - plan.chunks.start,
            prefix: plan.prefix.clone(),
            packed: Bytes::new(),
        }
        .encode(&mut one);
        write_varint(&mut out, one.len() as u64);
        out.extend_from_slice(&one);
    }
    out
}

fn decode_plans(bytes: &[u8]) -> Result<Vec<BatchPlan>, String> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint().map_err(|e| e.to_string())?;
    if count > UPDATE_BATCHES_MAX as u64 {
        return Err(format!("a plan of {count} batches"));
    }
    let mut plans = Vec::new();
    let mut due = 0;
    for _ in 0..count {
        let len = reader.varint().map_err(|e| e.to_string())?;
        let one = reader.take(usize::try_from(len).unwrap_or(usize::MAX));
        let one = Bytes::copy_from_slice(one.map_err(|e| e.to_string())?);
        let plan = UpdateBatch::decode(&one).map_err(|e| e.to_string())?.plan();
        if plan.chunks.start != due {
            return Err(format!(
                "a batch from chunk {}, {due} is due",
                plan.chunks.start
            ));
        }
        due = plan.chunks.end;
        plans.push(plan);
    }
    if reader.remaining() > 0 {
        return Err(format!("{} bytes behind the plan", reader.remaining()));
    }
    Ok(plans)
}

struct RecordHeader {
    number: u32,
    len: u32,
    sum: u64,
}

impl RecordHeader {
    /// The checksum depends on where the record lies, so that bytes of an update inside an update are never taken for a record.
    fn encode(&self, at: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut header = [0; RECORD_HEADER_LEN];
        header[..4].copy_from_slice(&RECORD_MARK);
        header[4..8].copy_from_slice(&self.number.to_le_bytes());
        header[8..12].copy_from_slice(&self.len.to_le_bytes());
        header[16..24].copy_from_slice(&self.sum.to_le_bytes());
        let sum = xxh3_64_with_seed(&header[..RECORD_SUM_AT], at);
        header[RECORD_SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    fn decode(header: &[u8; RECORD_HEADER_LEN], at: u64) -> Option<Self> {
        let u32_at =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let u64_at =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let sound = header[..4] == RECORD_MARK
            && u64_at(RECORD_SUM_AT) == xxh3_64_with_seed(&header[..RECORD_SUM_AT], at);
        let record = Self {
            number: u32_at(4),
            len: u32_at(8),
            sum: u64_at(16),
        };
        (sound && record.len as usize <= FRAME_BYTES_MAX).then_some(record)
    }
}
