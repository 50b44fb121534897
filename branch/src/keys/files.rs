//! Key files: read whole, replaced whole or not at all, destroyed.
//!
//! Invariant: what is replaced is durable on return, and at every moment either the old file or the new one is there. It knows nothing of
//! what is in them.

use std::io;

use dedup_store::disk::{Disk, DiskFile, Open};
use zeroize::Zeroizing;

use super::error::KeyError;
use super::unlock::BRANCH_KEY_BYTES_MAX;
use super::wrap::DATA_KEY_BYTES;
use crate::volume::FillRandom;

/// Longest file read here.
const FILE_BYTES_MAX: u64 = BRANCH_KEY_BYTES_MAX as u64;
const _: () = assert!((DATA_KEY_BYTES as u64) < FILE_BYTES_MAX);

/// Names file and step in an error of the operating system.
pub fn io_error<'a>(file: &'a str, what: &'static str) -> impl Fn(io::Error) -> KeyError + 'a {
    move |source| KeyError::Io {
        file: file.to_owned(),
        what,
        source,
    }
}

/// The content of a file, if it is there.
pub fn read(disk: &dyn Disk, file: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let opened = match disk.open(file, Open::Read) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(file, "open")(e)),
    };
    let error = io_error(file, "read");
    let len = opened.len().map_err(&error)?.min(FILE_BYTES_MAX);
    let mut bytes = Zeroizing::new(vec![0; len as usize]);
    opened.read_at(0, &mut bytes).map_err(&error)?;
    Ok(Some(bytes))
}

/// The name of a file while it is written.
fn part_of(file: &str) -> String {
    format!("{file}.part")
}

/// Replaces a file whole or not at all; durable on return.
pub fn replace(disk: &dyn Disk, file: &str, content: &[u8]) -> Result<(), KeyError> {
    let part = part_of(file);
    let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
    let error = io_error(file, "write");
    match disk.remove(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let made = disk.open(&part, Open::CreateNew).map_err(&error)?;
    made.write_at(0, content)
        .and_then(|()| made.sync())
        .and_then(|()| disk.rename(&part, file))
        .and_then(|()| disk.sync_dir(dir))
        .map_err(&error)
}

/// Overwrites a file and removes it, and before it what a replacement that was cut left beside it, which holds a key as well. Nothing
/// happens to what is not there.
pub fn destroy(disk: &dyn Disk, file: &str, random: FillRandom) -> Result<(), KeyError> {
    destroy_one(disk, &part_of(file), random)?;
    destroy_one(disk, file, random)
}

fn destroy_one(disk: &dyn Disk, file: &str, random: FillRandom) -> Result<(), KeyError> {
    let error = io_error(file, "destroy");
    let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
    let opened = match disk.open(file, Open::Write) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error(e)),
    };
    overwrite(&*opened, random)
        .and_then(|()| disk.remove(file))
        .and_then(|()| disk.sync_dir(dir))
        .map_err(&error)
}

/// Puts random bytes in the place of a file's content.
pub fn overwrite(file: &dyn DiskFile, random: FillRandom) -> io::Result<()> {
    let mut bytes = vec![0; file.len()?.min(FILE_BYTES_MAX) as usize];
    random(&mut bytes);
    file.write_at(0, &bytes)?;
    file.sync()
}
