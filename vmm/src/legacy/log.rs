//! The file that keeps what a guest prints: all of it for a while, then the latest.
//!
//! A guest prints as much as it likes, so what lies long behind is given back to the file system: the file has a hole at its start,
//! which reads as zeros, and offsets stay what they were. Where holes cannot be made, the file begins anew.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Bytes that are kept at least, once there are so many; at most twice as many take room.
const KEPT_BYTES: u64 = 16 << 20;
/// What holes are made of.
const BLOCK_BYTES: u64 = 4096;

/// See the module.
pub(super) struct Log {
    file: File,
    len: u64,
    hole: u64,
    kept: u64,
}

impl Log {
    /// Appends to the file at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::keeping(path, KEPT_BYTES)
    }

    fn keeping(path: &Path, kept: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            len,
            hole: 0,
            kept,
        })
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        if self.len - self.hole < 2 * self.kept {
            return Ok(());
        }
        self.hole = (self.len - self.kept) / BLOCK_BYTES * BLOCK_BYTES;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no pointers; the file is open.
        let made = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, 0, self.hole as i64) };
        if made != 0 {
            self.file.set_len(0)?;
            (self.len, self.hole) = (0, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_guest_that_prints_without_end_fills_no_disk_and_its_last_words_are_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("serial");
        const KEPT: u64 = 64 << 10;
        let mut log = Log::keeping(&path, KEPT).expect("a log");
        let line = |number: u32| format!("line {number:010}\n");
        const LINES: u32 = 100_000;
        for number in 0..LINES {
            log.write(line(number).as_bytes()).expect("written");
            if number % 1000 == 0 {
                let taken = log.file.metadata().expect("its size").blocks() * 512;
                assert!(taken <= 2 * KEPT + 2 * BLOCK_BYTES, "{taken}");
            }
        }
        let text = std::fs::read(&path).expect("the log");
        let lines = (KEPT / 16) as u32 - 300;
        let last: String = (LINES - lines..LINES).map(line).collect();
        assert!(text.ends_with(last.as_bytes()));
        drop(log);
        // The next machine goes on behind it.
        let mut log = Log::keeping(&path, KEPT).expect("a log");
        log.write(b"again\n").expect("written");
        assert!(
            std::fs::read(&path)
                .expect("the log")
                .ends_with(b"\nagain\n")
        );
    }
}
