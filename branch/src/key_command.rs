//! `splice-branch key`: what protects this branch's keys, and changing that.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use branch::keys::{self, KeyStore, Unlock};
use clap::Subcommand;
use dedup_store::disk::{Disk, HostDisk};

// No doc comment: clap would take it for the description of the commands that have these options.
#[derive(clap::Args)]
pub struct Data {
    /// Where this branch keeps everything.
    #[arg(long, default_value = "/var/lib/splice-branch")]
    pub data: PathBuf,
    /// The file with the passphrase that protects the branch key now, if one does.
    #[arg(long)]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Show what protects this branch's keys, and against what. The server may run.
    Status {
        /// Where this branch keeps everything.
        #[arg(long, default_value = "/var/lib/splice-branch")]
        data: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a new branch key and wrap all keys under it; no data is touched. What was destroyed before is gone for good then, also where
    /// the disk keeps old blocks. The server must be stopped.
    Rotate {
        #[command(flatten)]
        data: Data,
    },
    /// Protect the branch key in another way. The server must be stopped.
    Protect {
        #[command(flatten)]
        data: Data,
        /// By the passphrase in the first line of this file. Keep the file off this machine's disk, or it protects nothing.
        #[arg(long, group = "way")]
        new_passphrase_file: Option<PathBuf>,
        /// By this machine's TPM 2.0, bound to its secure-boot state. Needs Debian's package tpm2-tools.
        #[arg(long, group = "way")]
        tpm: bool,
        /// By a key file beside it, as at first: protects deleted desktops only.
        #[arg(long, group = "way")]
        key_file: bool,
    },
}

/// The keys' directory in the data directory, as a disk.
pub fn disk(data: &Path) -> Result<Arc<dyn Disk>> {
    Ok(Arc::new(HostDisk::new(data.join("keys"))?))
}

/// Opens the keys of the data directory.
pub fn open(data: &Path, passphrase_file: Option<&Path>) -> Result<KeyStore> {
    let passphrase = passphrase_file.map(keys::read_passphrase).transpose()?;
    Ok(KeyStore::open(
        disk(data)?,
        passphrase,
        keys::system_random,
    )?)
}

/// Does it. `lock` keeps the server off the data directory.
pub fn run(command: KeyCommand, lock: impl Fn(&Path) -> Result<std::fs::File>) -> Result<()> {
    match command {
        KeyCommand::Status { data, json } => status(&data, json),
        KeyCommand::Rotate { data } => {
            let _lock = lock(&data.data)?;
            let store = open(&data.data, data.passphrase_file.as_deref())?;
            let passphrase = data.passphrase_file.as_deref();
            store.rotate(passphrase.map(keys::read_passphrase).transpose()?)?;
            writeln!(io::stdout(), "the branch key is a new one")?;
            status(&data.data, false)
        }
        KeyCommand::Protect {
            data,
            new_passphrase_file,
            tpm,
            key_file,
        } => {
            let unlock = match (new_passphrase_file, tpm, key_file) {
                (Some(path), _, _) => Some(Unlock::Passphrase(keys::read_passphrase(&path)?)),
                (None, true, _) => Some(Unlock::Tpm),
                (None, false, true) => None,
                (None, false, false) => {
                    bail!("say how: --new-passphrase-file FILE, --tpm or --key-file")
                }
            };
            let _lock = lock(&data.data)?;
            let store = open(&data.data, data.passphrase_file.as_deref())?;
            store.protect(unlock)?;
            status(&data.data, false)
        }
    }
}

fn status(data: &Path, json: bool) -> Result<()> {
    // Not made by asking.
    if !data.join("keys").exists() {
        bail!(
            "{} has no keys yet; the first `splice-branch run` makes them",
            data.display()
        );
    }
    let found = KeyStore::status(&*disk(data)?)?;
    let status =
        found.context("there is no branch key yet; the first `splice-branch run` makes it")?;
    let key = format!("{:016x}", u64::from_be_bytes(status.key_id));
    let mut out = io::stdout();
    if json {
        let value = serde_json::json!({
            "mode": status.mode.name(),
            "protects": status.mode.protects(),
            "branch_key": key,
            "desktop_keys": status.desktops,
            "cache": status.cache,
            "changing": status.is_changing,
        });
        return Ok(writeln!(out, "{value:#}")?);
    }
    let cache = if status.cache { "yes" } else { "none yet" };
    writeln!(out, "branch key    {key}")?;
    writeln!(out, "protected by  {}", status.mode.protects())?;
    writeln!(out, "desktop keys  {}", status.desktops)?;
    writeln!(out, "cache key     {cache}")?;
    if status.is_changing {
        writeln!(
            out,
            "a change of the branch key was cut; the next start completes it"
        )?;
    }
    Ok(())
}
