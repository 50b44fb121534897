//! The order in which a machine that went on touched its memory: blocks, as they were first needed. The next machine of the same snapshot
//! is given them before it asks.
//!
//! It lies beside the snapshot and is advice: without it, or when it is damaged, a machine goes on as well, later, and records it anew. It
//! is written in place, because a machine in its sandbox makes no file and names none; two machines that write at the same time may leave
//! one that is of no use, which its checksum tells.
//!
//! Refused: to write through a name. A snapshot may come from anybody, and whoever goes on from it may be root: what is written is a file of
//! its own in that folder, no link to another.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::sealed::{self, HEAD_BYTES, Kind, SealError};

/// The file in a snapshot's folder.
pub const FILE: &str = "working-set";

/// Most bytes of a block's number, and of their count.
const NUMBER_BYTES: u64 = 5;
const COUNT_BYTES: u64 = 10;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The file.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Its body.
    #[error("it is no list of blocks")]
    List(#[from] postcard::Error),
}

/// The file of an order, open; none where there is none and none can be made.
#[derive(Debug, Default)]
pub struct WorkingSet {
    file: Option<File>,
    is_writable: bool,
}

impl WorkingSet {
    /// Opens the one beside a snapshot, or makes an empty one. Who may not write there only reads.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let open = |is_writable: bool| {
            let mut options = File::options();
            options.read(true).write(is_writable).create(is_writable);
            options.mode(0o600);
            // Nor does a pipe hold up whoever opens it.
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = options.truncate(false).open(&path).ok()?;
            let is_own = |about: &Metadata| about.is_file() && about.nlink() == 1;
            let is_own = file.metadata().is_ok_and(|about| is_own(&about));
            is_own.then_some(Self {
                file: Some(file),
                is_writable,
            })
        };
        open(true).or_else(|| open(false)).unwrap_or_default()
    }

    /// The one in this file, which is empty if none is known.
    pub(super) fn of(file: File) -> Self {
        Self {
            file: Some(file),
            is_writable: true,
        }
    }

    /// Whether an order can be kept.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Reads the order for a snapshot of so many blocks; blocks that do not exist are left out. `None`: none was recorded yet.
    ///
    /// # Errors
    /// The file is of no use.
    pub fn read(&self, blocks: usize) -> Result<Option<Vec<u32>>, OrderError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let bytes_max = HEAD_BYTES as u64 + COUNT_BYTES + blocks as u64 * NUMBER_BYTES;
        let body = match sealed::read(Kind::WorkingSet, file, bytes_max) {
            Err(SealError::Length { there: 0, .. }) => return Ok(None),
            body => body?,
        };
        let mut order: Vec<u32> = postcard::from_bytes(&body)?;
        order.retain(|block| (*block as usize) < blocks);
        Ok(Some(order))
    }

    /// Writes the order.
    ///
    /// # Errors
    /// The disk fails, or the file may not be written.
    pub fn write(&self, order: &[u32]) -> std::io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_writable) else {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        };
        let body = postcard::to_stdvec(order).map_err(std::io::Error::other)?;
        let bytes = sealed::seal(Kind::WorkingSet, &body);
        file.write_all_at(&bytes, 0)?;
        // What a longer one before it has left behind.
        file.set_len(bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_order_comes_back_and_damage_is_told() {
        let temp = tempfile::tempdir().expect("a folder");
        let read = |blocks| WorkingSet::open(temp.path()).read(blocks);
        assert!(read(100).expect("an empty file").is_none());
        let write = |order: &[u32]| WorkingSet::open(temp.path()).write(order);
        write(&[1; 200]).expect("written");
        assert!(read(1).is_err(), "more than so few blocks can have");
        write(&[5, 99, 3, 100, u32::MAX]).expect("written");
        let order = read(100).expect("whole");
        assert_eq!(order.as_deref(), Some(&[5, 99, 3][..]));
        let path = temp.path().join(FILE);
        let mut bytes = fs::read(&path).expect("there");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(read(100).is_err());
        write(&[7]).expect("written");
        assert_eq!(read(100).expect("whole").as_deref(), Some(&[7][..]));
    }

    #[test]
    fn a_place_where_nothing_can_be_written_has_none() {
        let temp = tempfile::tempdir().expect("a folder");
        let none = WorkingSet::open(&temp.path().join("missing"));
        assert!(!none.is_writable() && none.read(9).expect("no file").is_none());
        assert!(none.write(&[1]).is_err());
    }

    #[test]
    fn what_is_another_file_by_another_name_is_left_alone() {
        let temp = tempfile::tempdir().expect("a folder");
        let (other, own) = (temp.path().join("other"), temp.path().join(FILE));
        fs::write(&other, "precious").expect("written");
        let none = || {
            let none = WorkingSet::open(temp.path());
            assert!(!none.is_writable() && none.read(9).expect("no file").is_none());
        };
        std::os::unix::fs::symlink(&other, &own).expect("a link");
        none();
        fs::remove_file(&own).expect("removed");
        fs::hard_link(&other, &own).expect("a link");
        none();
        fs::remove_file(&own).expect("removed");
        fs::create_dir(&own).expect("made");
        none();
        assert_eq!(fs::read(&other).expect("there"), b"precious");
    }
}
