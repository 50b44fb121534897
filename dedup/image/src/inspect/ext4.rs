//! Files of ext2/3/4 file systems, through the `ext4-view` crate, kept at arm's length.
//!
//! The crate checks what it reads, but its time and memory are up to the file system's tables, and a mistake in it
//! would be a panic in the middle of a publish. So it runs on a thread of its own that owns nothing: it asks for disk
//! bytes over a channel ([`on_thread`]), its panic is an error here, and when its time is over it is left behind with
//! every further read refused. Two things that a hostile superblock could make it allocate for are ruled out before it
//! sees the file system: more block groups than the partition can hold, and journal replay (a note says when a journal
//! was left unplayed).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread;
use std::time::Instant;

use ext4_view::{Ext4, Ext4Read, Path};

use super::disk::{Disk, le32};
use crate::recent::Recent;

/// Bytes asked for at a time: a kernel arrives in a hundred round trips rather than in thousands.
const PIECE_BYTES: u64 = 128 << 10;
const PIECES_KEPT: usize = 48;
/// Enough for 32 TiB in groups of 128 MiB.
const BLOCK_GROUPS_MAX: u64 = 1 << 18;
const DIRECTORY_ENTRIES_MAX: usize = 20_000;

enum Message<T> {
    Read(u64),
    Done(T),
}

type Bytes = Result<Vec<u8>, String>;

/// Runs `job` on a thread, with a [`DiskHandle`] whose reads are served from `disk` here.
pub(super) fn on_thread<T: Send + 'static>(
    disk: &mut Disk<'_>,
    job: impl FnOnce(DiskHandle) -> T + Send + 'static,
) -> Result<T, String> {
    let (to_us, from_thread) = mpsc::sync_channel::<Message<T>>(1);
    let (to_thread, answers) = mpsc::channel::<Bytes>();
    let size_bytes = disk.size_bytes();
    let body = move || {
        let finished = to_us.clone();
        let result = job(DiskHandle::new(size_bytes, to_us, answers));
        // Nobody waits any more when the time was over.
        let _ = finished.send(Message::Done(result));
    };
    thread::Builder::new()
        .name("image-inspect".into())
        .spawn(body)
        .map_err(|e| format!("no thread to read it with: {e}"))?;
    serve(disk, &from_thread, &to_thread)
}

fn serve<T>(
    disk: &mut Disk<'_>,
    from_thread: &Receiver<Message<T>>,
    to_thread: &Sender<Bytes>,
) -> Result<T, String> {
    loop {
        match from_thread.recv_timeout(disk.deadline().saturating_duration_since(Instant::now())) {
            Ok(Message::Done(result)) => return Ok(result),
            // A thread that has gone meanwhile shows at the next receive.
            Ok(Message::Read(offset)) => {
                drop(to_thread.send(disk.read_up_to(offset, PIECE_BYTES as usize)))
            }
            Err(RecvTimeoutError::Timeout) => return Err("reading its files took too long".into()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err("its file system made the reader panic".into());
            }
        }
    }
}

/// The disk as the reading thread sees it: pieces on request, the last few kept.
#[derive(Clone)]
pub(super) struct DiskHandle {
    shared: Rc<RefCell<Pieces>>,
    size_bytes: u64,
}

struct Pieces {
    kept: Recent<Vec<u8>>,
    fetch: Box<dyn FnMut(u64) -> Bytes>,
}

impl DiskHandle {
    fn new<T: 'static>(
        size_bytes: u64,
        requests: SyncSender<Message<T>>,
        answers: Receiver<Bytes>,
    ) -> Self {
        let fetch = move |offset| {
            let gone = |_| "inspection is over".to_owned();
            requests
                .send(Message::Read(offset))
                .map_err(|_| "inspection is over".to_owned())?;
            answers.recv().map_err(gone)?
        };
        let pieces = Pieces {
            kept: Recent::new(PIECES_KEPT),
            fetch: Box::new(fetch),
        };
        Self {
            shared: Rc::new(RefCell::new(pieces)),
            size_bytes,
        }
    }

    fn read(&self, mut offset: u64, mut dst: &mut [u8]) -> Result<(), String> {
        let end = offset.checked_add(dst.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(format!(
                "{} bytes at {offset} are not on the disk",
                dst.len()
            ));
        }
        let mut pieces = self.shared.borrow_mut();
        let Pieces { kept, fetch } = &mut *pieces;
        while !dst.is_empty() {
            let piece_at = offset / PIECE_BYTES * PIECE_BYTES;
            let piece = if let Some(piece) = kept.find(piece_at) {
                piece
            } else {
                let fetched = fetch(piece_at)?;
                kept.insert(piece_at, fetched)
            };
            let from = (offset - piece_at) as usize;
            let available = piece
                .get(from..)
                .filter(|rest| !rest.is_empty())
                .ok_or("the disk has changed")?;
            let len = available.len().min(dst.len());
            let (now, later) = dst.split_at_mut(len);
            now.copy_from_slice(&available[..len]);
            dst = later;
            offset += len as u64;
        }
        Ok(())
    }
}

/// What `ext4-view` reads: one partition, with the superblock that [`check_superblock`] approved.
struct PartitionReader {
    disk: DiskHandle,
    offset_bytes: u64,
    len_bytes: u64,
    superblock: Vec<u8>,
}

impl Ext4Read for PartitionReader {
    fn read(
        &mut self,
        start: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = start
            .checked_add(dst.len() as u64)
            .filter(|&end| end <= self.len_bytes);
        let Some(end) = end else {
            return Err("a block behind the end of the partition".into());
        };
        self.disk.read(self.offset_bytes + start, dst)?;
        let (begin, until) = (
            start.max(SUPERBLOCK_AT),
            end.min(SUPERBLOCK_AT + self.superblock.len() as u64),
        );
        if begin < until {
            dst[(begin - start) as usize..(until - start) as usize].copy_from_slice(
                &self.superblock
                    [(begin - SUPERBLOCK_AT) as usize..(until - SUPERBLOCK_AT) as usize],
            );
        }
        Ok(())
    }
}

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const CHECKSUM_AT: usize = 0x3fc;
const INCOMPATIBLE_AT: usize = 96;
const NEEDS_RECOVERY: u32 = 0x4;
const INCOMPATIBLE_64BIT: u32 = 0x80;
const READ_ONLY_METADATA_CHECKSUM: u32 = 0x400;

/// Bounds what the superblock claims by the partition, and marks the file system clean. Says whether it was not.
fn check_superblock(superblock: &mut [u8], partition_bytes: u64) -> Result<bool, String> {
    let block_bits = le32(superblock, 24)
        .checked_add(10)
        .filter(|bits| *bits <= 16)
        .ok_or("a bad block size")?;
    let incompatible = le32(superblock, INCOMPATIBLE_AT);
    let high = if incompatible & INCOMPATIBLE_64BIT == 0 {
        0
    } else {
        u64::from(le32(superblock, 0x150))
    };
    let blocks = high << 32 | u64::from(le32(superblock, 4));
    if blocks > partition_bytes >> block_bits {
        return Err("it is larger than its partition".into());
    }
    let blocks_per_group = u64::from(le32(superblock, 32)).max(1);
    if blocks.div_ceil(blocks_per_group) > BLOCK_GROUPS_MAX {
        return Err("it has too many block groups".into());
    }
    let unclean = incompatible & NEEDS_RECOVERY != 0;
    if unclean {
        let clean = incompatible & !NEEDS_RECOVERY;
        superblock[INCOMPATIBLE_AT..INCOMPATIBLE_AT + 4].copy_from_slice(&clean.to_le_bytes());
        if le32(superblock, 100) & READ_ONLY_METADATA_CHECKSUM != 0 {
            // ext4 stores CRC-32C without the final inversion.
            let checksum = !crc32c::crc32c(&superblock[..CHECKSUM_AT]);
            superblock[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        }
    }
    Ok(unclean)
}

/// An ext file system's files, read only.
pub(super) struct Files {
    fs: Ext4,
    /// A journal was left unplayed: recent changes may be missing.
    pub(super) unclean: bool,
}

impl Files {
    pub(super) fn open(
        disk: &DiskHandle,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Self, String> {
        let mut superblock = vec![0; SUPERBLOCK_BYTES];
        disk.read(offset_bytes + SUPERBLOCK_AT, &mut superblock)?;
        let unclean = check_superblock(&mut superblock, len_bytes)?;
        let reader = PartitionReader {
            disk: disk.clone(),
            offset_bytes,
            len_bytes,
            superblock,
        };
        let fs = Ext4::load(Box::new(reader)).map_err(|e| e.to_string())?;
        Ok(Self { fs, unclean })
    }

    /// The bytes of a regular file, symbolic links followed, or why not. `limit` bounds them.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, String> {
        let path_of = Path::try_from(path).map_err(|e| e.to_string())?;
        let mut file = self.fs.open(path_of).map_err(|e| format!("{path}: {e}"))?;
        let len = file.metadata().len();
        if len > limit {
            return Err(format!(
                "{path}: {len} bytes are more than the {limit} that are read"
            ));
        }
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        while done < bytes.len() {
            match file
                .read_bytes(&mut bytes[done..])
                .map_err(|e| format!("{path}: {e}"))?
            {
                0 => return Err(format!("{path}: it ends early")),
                more => done += more,
            }
        }
        Ok(bytes)
    }

    /// A configuration file as text, if it can be read.
    pub(super) fn text(&self, path: &str, limit: u64) -> Option<String> {
        let bytes = self.read(path, limit).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether `path` is, after symbolic links, a regular file.
    pub(super) fn is_file(&self, path: &str) -> bool {
        let Ok(path) = Path::try_from(path) else {
            return false;
        };
        self.fs
            .metadata(path)
            .is_ok_and(|m| m.file_type().is_regular_file())
    }

    /// Whether `path` is, after symbolic links, a folder.
    pub(super) fn is_dir(&self, path: &str) -> bool {
        let Ok(path) = Path::try_from(path) else {
            return false;
        };
        self.fs.metadata(path).is_ok_and(|m| m.is_dir())
    }

    /// `path` without symbolic links, if all of it exists here.
    pub(super) fn canonical(&self, path: &str) -> Option<String> {
        let canonical = self.fs.canonicalize(Path::try_from(path).ok()?).ok()?;
        canonical.to_str().ok().map(str::to_owned)
    }

    /// Where the symbolic link `path` points, as written.
    pub(super) fn link_target(&self, path: &str) -> Option<String> {
        let target = self.fs.read_link(Path::try_from(path).ok()?).ok()?;
        target.to_str().ok().map(str::to_owned)
    }

    /// The names in a folder, up to a limit; none when it cannot be read.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(path) = Path::try_from(path) else {
            return Vec::new();
        };
        let Ok(entries) = self.fs.read_dir(path) else {
            return Vec::new();
        };
        entries
            .take(DIRECTORY_ENTRIES_MAX)
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
            .filter(|name| name != "." && name != "..")
            .collect()
    }
}
