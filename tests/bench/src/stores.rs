//! Deduplicating stores: how each is filled with the versions of a disk, one after another, and what it then holds.
//!
//! What a store grows by from one version to the next is what a holder of the first must receive for the second, before any
//! protocol; for a tool without a protocol that stands for its wire bytes. Growth does not depend on the machine's load, so
//! `ingest` and `update` share one filling. Invariant: what is read back equals what went in, where a run checks it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::images::{Images, folder_bytes};
use crate::process::{Program, Usage};
use crate::session::{SPLICE, Session};
use crate::splice::{Datacenter, Place};
use crate::workshop::Workshop;

/// The slowest peer needs 90 s on a quiet machine for 4 GB.
const FILL: Duration = Duration::from_secs(1200);

/// Seconds of v1, v2 and v3 together that each takes on two quiet cores, for the estimate.
pub(crate) const SYSTEMS: [(&str, f64); 6] = [
    (SPLICE, 30.0),
    ("casync", 240.0),
    ("desync", 200.0),
    ("borg", 85.0),
    ("restic", 70.0),
    ("rdedup", 95.0),
];

/// One version taken in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filled {
    pub(crate) usage: Usage,
    /// Bytes that the store holds more than before, index included.
    pub(crate) grown_bytes: f64,
    /// Of these, the index, where it is a file of its own.
    pub(crate) index_bytes: Option<f64>,
}

/// A store of one system in a folder of its own.
pub(crate) struct Store {
    system: &'static str,
    folder: PathBuf,
    logs: PathBuf,
    splice: Option<Datacenter>,
}

impl Store {
    /// An empty one, in the place of any before it.
    ///
    /// # Errors
    /// The tool refuses.
    pub(crate) fn create(workshop: &Workshop, system: &'static str) -> Result<Self> {
        workshop.discard("store");
        let folder = workshop.scratch("store")?;
        let logs = workshop.scratch("logs")?;
        let mut store = Self {
            system,
            folder,
            logs,
            splice: None,
        };
        // rdedup does not make its folder itself; the others take an empty one.
        if system != SPLICE {
            std::fs::create_dir_all(store.folder.join("repo")).context("a store's folder")?;
        }
        match system {
            SPLICE => {
                let datacenter = Datacenter::start(workshop, Place::Loopback, "store")?;
                datacenter.create("desktop")?;
                store.splice = Some(datacenter);
            }
            "borg" => store
                .tool("borg")
                .args(["init", "-e", "none", "repo"])
                .run(&store.logs, FILL)
                .map(drop)?,
            "restic" => store
                .tool("restic")
                .args(["init", "-q", "-r", "repo"])
                .run(&store.logs, FILL)
                .map(drop)?,
            "rdedup" => store
                .tool("rdedup")
                .args([
                    "--dir",
                    "repo",
                    "init",
                    "--encryption",
                    "none",
                    "--compression",
                    "zstd",
                ])
                .args(["--chunking", "fastcdc", "--chunk-size", "64K"])
                .run(&store.logs, FILL)
                .map(drop)?,
            _ => {}
        }
        Ok(store)
    }

    /// Takes a version in.
    ///
    /// # Errors
    /// The tool fails.
    pub(crate) fn fill(&self, images: &Images, version: u32) -> Result<Filled> {
        let disk = images.version(version);
        let before = self.bytes()?;
        let usage = match &self.splice {
            Some(datacenter) => {
                // Each version's own peak, not the highest so far.
                datacenter.daemon.reset_peak()?;
                let cpu = datacenter.daemon.cpu_s()?;
                let seconds = datacenter.publish("desktop", &disk)?;
                Usage {
                    seconds,
                    cpu_s: datacenter.daemon.cpu_s()? - cpu,
                    rss_mb: datacenter.daemon.rss_mb()?,
                }
            }
            None => self.put(&disk, version).run(&self.logs, FILL)?.usage,
        };
        let index = self.folder.join(format!("v{version}.caibx"));
        Ok(Filled {
            usage,
            grown_bytes: self.bytes()? - before,
            index_bytes: std::fs::metadata(index).ok().map(|m| m.len() as f64),
        })
    }

    fn put(&self, disk: &Path, version: u32) -> Program {
        let (name, index) = (format!("v{version}"), format!("v{version}.caibx"));
        let tool = self.tool(self.system);
        match self.system {
            "casync" => tool.args(["make", "--store=repo", &index]).arg(disk),
            "desync" => tool
                .args(["make", "-n", "2", "-s", "repo", &index])
                .arg(disk),
            "borg" => tool
                .args(["create", "-C", "zstd,3", &format!("repo::{name}")])
                .arg(disk),
            // With the disk on standard input each version is the same file to it.
            "restic" => tool
                .args([
                    "backup",
                    "-q",
                    "-r",
                    "repo",
                    "--stdin",
                    "--stdin-filename",
                    "disk",
                    "--tag",
                    &name,
                ])
                .stdin(disk),
            _ => tool.args(["--dir", "repo", "store", &name]).stdin(disk),
        }
    }

    /// Compares a version in the store with the disk it was made of.
    ///
    /// # Errors
    /// They differ, or the tool fails.
    pub(crate) fn verify(&self, images: &Images, version: u32) -> Result<()> {
        let (name, disk) = (format!("v{version}"), images.version(version));
        if let Some(datacenter) = &self.splice {
            let reference = format!("desktop@{version}");
            return datacenter
                .splice(&["version", "verify", &reference], FILL)
                .map(drop);
        }
        let get = match self.system {
            "casync" => format!("casync extract --store=repo {name}.caibx out && cmp out \"$0\""),
            "desync" => format!("desync extract -n 2 -s repo {name}.caibx out && cmp out \"$0\""),
            "borg" => format!("borg extract --stdout repo::{name} | cmp - \"$0\""),
            "restic" => format!("restic dump -q -r repo --tag {name} latest /disk | cmp - \"$0\""),
            _ => format!("rdedup --dir repo load {name} | cmp - \"$0\""),
        };
        let script = format!("set -o pipefail; {get}");
        let done = self
            .tool("bash")
            .args(["-c", &script])
            .arg(&disk)
            .run(&self.logs, FILL);
        let _ = std::fs::remove_file(self.folder.join("out"));
        done.map(drop).context("reading it back")
    }

    /// The tool, with nothing of it outside the store's folder.
    fn tool(&self, name: &str) -> Program {
        Program::new(name)
            .folder(&self.folder)
            .env("HOME", &self.folder)
            .env("XDG_CACHE_HOME", self.folder.join("cache"))
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("RESTIC_PASSWORD", "bench")
    }

    /// Bytes of the store: chunks and index, not a tool's own cache.
    fn bytes(&self) -> Result<f64> {
        match &self.splice {
            Some(datacenter) => folder_bytes(datacenter.data()),
            None => {
                let indexes = std::fs::read_dir(&self.folder).context("a store's folder")?;
                let indexes = indexes
                    .flatten()
                    .filter(|e| e.file_name().to_string_lossy().ends_with(".caibx"));
                let indexes: u64 = indexes.filter_map(|e| Some(e.metadata().ok()?.len())).sum();
                Ok(folder_bytes(&self.folder.join("repo"))? + indexes as f64)
            }
        }
    }
}

/// Whether a system's tool is there; else it is reported.
pub(crate) fn is_there(session: &mut Session, system: &str) -> bool {
    match system {
        SPLICE => true,
        "desync" => session.has(
            system,
            system,
            "it is not in Debian 12 and needs a newer Go than Debian's; put one in the path to have it measured",
        ),
        "rdedup" => session.has(system, system, "cargo install rdedup --version 3.2.1 (needs libsodium-dev)"),
        _ => session.has(system, system, "install its Debian package"),
    }
}
