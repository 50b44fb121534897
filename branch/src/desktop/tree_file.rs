//! Trees of a version as files: kernel and initrd, which machines read by themselves.
//!
//! Invariant: a file that is there is whole; it is written beside its place and renamed.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::fetch::base::CachedBase;
use crate::volume::Base;

/// Bytes read at a time when a tree is written out as a file. Its chunks are being prefetched, and less than a prefetch has in flight
/// follows that without asking for anything by itself.
const COPY_BYTES: usize = 256 << 10;

/// Writes a tree out as the file `path`, whole or not at all; nothing happens if it is there. The name is that of the
/// content, so a file that is there is the right one.
pub fn materialise(
    path: &Path,
    tree: &CachedBase,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if path.exists() {
        return Ok(());
    }
    let dir = path.parent().expect("boot files are in a directory");
    std::fs::create_dir_all(dir)?;
    // Several desktops may start at once; each writes a part file of its own.
    let part = path.with_extension(format!(
        "{}.{:?}.part",
        std::process::id(),
        std::thread::current().id()
    ));
    let written = write_tree(&part, tree).and_then(|()| Ok(std::fs::rename(&part, path)?));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_tree(
    path: &Path,
    tree: &CachedBase,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let file: File = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let mut buf = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < tree.size_bytes() {
        let len = (tree.size_bytes() - at).min(COPY_BYTES as u64) as usize;
        tree.read(at, &mut buf[..len])?;
        std::os::unix::fs::FileExt::write_all_at(&file, &buf[..len], at)?;
        at += len as u64;
    }
    Ok(file.sync_all()?)
}
