//! The order in which a machine that went on touched its memory: blocks, as they were first needed. The next machine of the same snapshot
//! is given them before it asks.
//!
//! It lies beside the snapshot and is advice: without it, or when it is damaged, a machine goes on as well, later.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::sealed::{self, Kind, SealError};

/// The file in a snapshot's folder.
pub const FILE: &str = "working-set";

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

/// Reads the order beside a snapshot of so many blocks; blocks that do not exist are left out. `None`: none was recorded yet.
///
/// # Errors
/// The file is there and of no use.
pub fn read(dir: &Path, blocks: usize) -> Result<Option<Vec<u32>>, OrderError> {
    let body = match sealed::read(Kind::WorkingSet, &dir.join(FILE)) {
        Err(SealError::Read(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        body => body?,
    };
    let mut order: Vec<u32> = postcard::from_bytes(&body)?;
    order.retain(|block| (*block as usize) < blocks);
    Ok(Some(order))
}

/// Writes the order beside a snapshot, at once or not at all.
///
/// # Errors
/// The disk fails, or the folder may not be written to.
pub fn write(dir: &Path, order: &[u32]) -> std::io::Result<()> {
    let body = postcard::to_stdvec(order).map_err(std::io::Error::other)?;
    // Each process its own: two machines of one snapshot may come to this at the same time.
    let partial = dir.join(format!("{FILE}.{}", std::process::id()));
    let mut file = File::create(&partial)?;
    let written = file
        .write_all(&sealed::seal(Kind::WorkingSet, &body))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&partial, dir.join(FILE)));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_comes_back_and_damage_is_told() {
        let temp = tempfile::tempdir().expect("a folder");
        assert!(read(temp.path(), 100).expect("no file").is_none());
        write(temp.path(), &[5, 99, 3, 100, u32::MAX]).expect("written");
        let order = read(temp.path(), 100).expect("whole");
        assert_eq!(order.as_deref(), Some(&[5, 99, 3][..]));
        assert_eq!(fs::read_dir(temp.path()).expect("folder").count(), 1);
        let path = temp.path().join(FILE);
        let mut bytes = fs::read(&path).expect("there");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(read(temp.path(), 100).is_err());
    }
}
