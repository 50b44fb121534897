//! The file system that the agent looks at: `/`, or a test's folder.
//!
//! A file is replaced whole or not at all, and is on the disk when the call returns.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest file of text that is read: files of /proc, /sys and /run are far shorter.
const TEXT_BYTES_MAX: u64 = 256 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// What is below `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Where `path`, which begins with a slash, is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text; none if it is not there, is no plain file, or is not text.
    pub fn text(&self, path: &str) -> Option<String> {
        let path = self.path(path);
        // A pipe would hold us up.
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut text = String::new();
        let file = File::open(&path).ok()?;
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// A file's text without what is white at its ends.
    pub fn line(&self, path: &str) -> Option<String> {
        Some(self.text(path)?.trim().to_owned())
    }

    /// Names in a folder, sorted; none if it cannot be read.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether something is there.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Replaces a file, or makes it, with its folder.
    ///
    /// # Errors
    /// As of the file system; the former file is there then.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> io::Result<()> {
        let path = self.path(path);
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder)?;
        let mut part = path.clone().into_os_string();
        part.push(".splice-part");
        let written = write_whole(Path::new(&part), text, mode)
            .and_then(|()| std::fs::rename(&part, &path))
            .and_then(|()| File::open(folder)?.sync_all());
        if written.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        written
    }

    /// Writes to a file that the kernel has there, as it is: one of /sys is told something, not replaced.
    ///
    /// # Errors
    /// As of the kernel; it is not there.
    pub fn tell(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(self.path(path))?;
        file.write_all(text.as_bytes())
    }

    /// Removes a file for good; that it is not there is as well.
    ///
    /// # Errors
    /// As of the file system.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)?;
    // Whatever the umask is.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_pipes_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert_eq!(root.text("/etc/hostname"), None);
        root.write("/etc/hostname", "one\n", 0o644).unwrap();
        root.write("/etc/hostname", "two\n", 0o444).unwrap();
        assert_eq!(root.line("/etc/hostname").unwrap(), "two");
        assert_eq!(root.names("/etc"), ["hostname"]);
        let mode = std::fs::metadata(root.path("/etc/hostname")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o444);
        root.remove("/etc/hostname").unwrap();
        root.remove("/etc/hostname").unwrap();
        assert!(!root.exists("/etc/hostname"));
        assert_eq!(root.text("/etc"), None, "a folder is no text");
    }
}
