//! The realm's part of the data folder: where its files are, and writing them so that a crash leaves the old or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The data folder.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// At `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Public facts of the realm. Written last: a folder that has it is complete.
    pub fn realm(&self) -> PathBuf {
        self.root.join("realm.json")
    }

    /// The daemon's configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("datacenter.toml")
    }

    /// The CA certificate, for clients.
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    /// The `splice` command's configuration.
    pub fn cli(&self) -> PathBuf {
        self.root.join("cli.toml")
    }

    /// What is known of the branches' paths; may be deleted at any time.
    pub fn paths(&self) -> PathBuf {
        self.root.join("paths")
    }

    /// The root signing key, until the operator moves it away.
    pub fn root_key(&self) -> PathBuf {
        self.root.join("root.key")
    }

    /// Folder of what is kept sealed, and by default of what opens it.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// The sealed keys.
    pub fn sealed(&self) -> PathBuf {
        self.secrets().join("realm.sealed")
    }

    /// Where the passphrase is unless the operator keeps it elsewhere.
    pub fn passphrase(&self) -> PathBuf {
        self.secrets().join("passphrase")
    }

    /// Where buckets for backups are, and the key to them; the operator's to write.
    pub fn buckets(&self) -> PathBuf {
        self.secrets().join("s3.toml")
    }

    /// There while a backup is restored into the folder: which.
    pub fn restoring(&self) -> PathBuf {
        self.root.join("restoring")
    }

    /// Locked by whoever works on the folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The chunk store's packs.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The chunk store's index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The catalog's database.
    pub fn catalog(&self) -> PathBuf {
        self.root.join("catalog")
    }

    /// Encoded updates; they can be made again.
    pub fn updates(&self) -> PathBuf {
        self.root.join("updates")
    }

    /// Converted images while they are published, unless configured elsewhere.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }
}

/// A locked data folder; the lock ends with the value, or with the process.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// Why the folder was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "the data folder {} is in use by another splice-datacenter{}; stop it first or use another folder",
        dir.display(),
        holder.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held {
        /// The folder.
        dir: PathBuf,
        /// The holder's process id, as it left it in the lock file.
        holder: Option<String>,
    },
    /// The lock file cannot be used.
    #[error("{}: cannot lock the data folder", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl DataLock {
    /// Locks the folder, or says who has it.
    pub fn take(dir: &DataDir) -> Result<Self, LockError> {
        let path = dir.lock();
        let fail = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let read = (&mut file).take(20).read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                let known = read.is_ok() && holder.parse::<u32>().is_ok();
                return Err(LockError::Held {
                    dir: dir.root().to_owned(),
                    holder: known.then_some(holder),
                });
            }
            Err(errno) => return Err(fail(errno.into())),
        }
        // The process id is for the error above only; the lock is the kernel's.
        file.set_len(0).map_err(fail)?;
        file.write_all(std::process::id().to_string().as_bytes())
            .map_err(fail)?;
        Ok(Self { _file: file })
    }
}

/// Creates a folder that only its owner may look into.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces `path` by a file with `content` and `mode`, atomically and durably.
pub fn write_durably(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let parent = path
        .parent()
        .expect("a file in the data folder has a parent");
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(".new");
    let temporary = parent.join(name);
    // A left-over of a crash may have another mode; it is of no use.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(parent)?.sync_all()
}

/// Reads a small file of at most `bytes_max` bytes.
pub fn read_small(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut content)?;
    if content.len() > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {bytes_max} bytes"),
        ));
    }
    Ok(content)
}
