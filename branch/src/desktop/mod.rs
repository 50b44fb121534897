//! Desktops at this branch: their volumes, exports and machines, across restarts of the branch server.
//!
//! ```text
//!             start                 machine ends by itself
//!   (none) ─────────► Running ───────────────────────────► Failed ──start──► Running
//!                       │  ▲                                  │
//!                  stop ▼  │ start (goes on with its overlay) │ delete
//!                     Stopped ──────────delete────────────► (none)
//! ```
//!
//! A machine outlives the branch server. On start the server opens the volumes of all machines that still run before it
//! listens for NBD, so that a guest that reconnects finds everything it wrote.

pub mod machine;
pub mod qmp;
pub mod record;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use branch_api::{Desktop, DesktopState};
use dedup::VersionId;
use dedup_protocol::records::{PoolAssignment, Tree, VersionRecord};

use crate::catalog::CatalogError;
use crate::clock::Clock;
use crate::fetch::Fetcher;
use crate::fetch::base::CachedBase;
use crate::fetch::queue::TreeHandle;
use crate::profile::{BOOT_MS_MAX, Boots};
use crate::versions::Versions;
use crate::volume::Shortage;
use machine::{MachineError, MachineSpec};
use record::DesktopRecord;
pub use volumes::{OpenVolume, VolumeError, Volumes};

/// How long a guest gets to shut down when it is asked to.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// How long a call waits for another that works on the same desktop.
const TURN_WAIT: Duration = Duration::from_secs(15);

/// What the cache gives up beyond what is missing when the disk is full, so that desktops do not stand still again at once.
const SPARE_BYTES: u64 = 256 << 20;

/// Longest Unix socket path that Linux takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a desktop could not be started, stopped or deleted.
#[derive(Debug, thiserror::Error)]
pub enum DesktopError {
    /// The name cannot be used.
    #[error("{0}")]
    Name(String),
    /// No such desktop.
    #[error("there is no desktop {0:?} at this branch")]
    NotFound(String),
    /// No such pool.
    #[error("there is no pool {pool:?} at this branch; it has: {known}")]
    NoPool {
        /// The pool asked for.
        pool: String,
        /// The pools there are.
        known: String,
    },
    /// A desktop of that name belongs to another pool.
    #[error("desktop {name:?} belongs to pool {pool:?}")]
    OtherPool {
        /// The desktop.
        name: String,
        /// Its pool.
        pool: String,
    },
    /// It is in a state that does not allow this.
    #[error("desktop {name:?} is {state}; {way_out}")]
    Busy {
        /// The desktop.
        name: String,
        /// What it is doing.
        state: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The assignment has run out and so has its offline grace.
    #[error(
        "the assignment of this branch ended {since_s} s ago and its offline grace is over; \
         new desktops start again when the branch has reached the datacenter"
    )]
    AssignmentEnded {
        /// Seconds past the end of the grace.
        since_s: u64,
    },
    /// The version's manifest is not here yet.
    #[error(
        "version {version} has not reached this branch yet: its manifest is still to come; try again when the link is up"
    )]
    NotHere {
        /// The version.
        version: String,
    },
    /// The data directory's path is too long.
    #[error(
        "{} is too long for a Unix socket ({SOCKET_PATH_BYTES_MAX} bytes at most); use a shorter --data directory", .0.display()
    )]
    PathTooLong(PathBuf),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The version's kernel or initrd could not be had.
    #[error("{what} of version {version} could not be read")]
    Boot {
        /// Which file.
        what: &'static str,
        /// Which version.
        version: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What machines are made with.
#[derive(Debug, Clone)]
pub struct MachineHost {
    /// Whether this host's KVM runs unmodified guests.
    pub kvm: bool,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// The server's NBD socket.
    pub nbd_socket: PathBuf,
}

/// See the module.
pub struct Desktops {
    dir: PathBuf,
    versions: Arc<Versions>,
    fetcher: Arc<Fetcher>,
    volumes: Volumes,
    boots: Boots,
    host: MachineHost,
    clock: Arc<dyn Clock>,
    /// Names of desktops that a call is working on.
    busy: Mutex<HashSet<String>>,
    turn_over: Condvar,
    /// Whether the cache gave room up since the disk was last full.
    made_room: AtomicBool,
}

/// Keeps a desktop's name busy until dropped.
struct Turn<'a> {
    desktops: &'a Desktops,
    name: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.desktops.busy().remove(&self.name);
        self.desktops.turn_over.notify_all();
    }
}

impl Desktops {
    /// Takes up the desktops in the catalog. `dir` holds a directory for each.
    pub fn new(
        dir: PathBuf,
        versions: Arc<Versions>,
        fetcher: Arc<Fetcher>,
        volumes: Volumes,
        host: MachineHost,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            dir,
            boots: Boots::new(Arc::clone(&versions), Arc::clone(&fetcher)),
            versions,
            fetcher,
            volumes,
            host,
            clock,
            busy: Mutex::default(),
            turn_over: Condvar::new(),
            made_room: AtomicBool::new(false),
        }
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock().expect("no panic under this lock")
    }

    /// Takes the desktop for one call. Another call, or [`Self::tend`], may have it for a moment: that is waited for.
    fn turn(&self, name: &str) -> Result<Turn<'_>, DesktopError> {
        let begun = Instant::now();
        let mut busy = self.busy();
        while busy.contains(name) {
            let waited = begun.elapsed();
            if waited >= TURN_WAIT {
                return Err(DesktopError::Busy {
                    name: name.into(),
                    state: "being worked on",
                    way_out: "wait until that is done",
                });
            }
            busy = self
                .turn_over
                .wait_timeout(busy, TURN_WAIT - waited)
                .expect("no panic under this lock")
                .0;
        }
        busy.insert(name.to_owned());
        Ok(Turn {
            desktops: self,
            name: name.into(),
        })
    }

    /// Takes the desktop only if nobody has it.
    fn try_turn(&self, name: &str) -> Option<Turn<'_>> {
        self.busy().insert(name.to_owned()).then(|| Turn {
            desktops: self,
            name: name.into(),
        })
    }

    fn record(&self, name: &str) -> Result<Option<DesktopRecord>, DesktopError> {
        Ok(self
            .versions
            .catalog()
            .desktops()?
            .into_iter()
            .find(|d| d.name == name))
    }

    /// The exports, for the NBD server.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The boots that run, and what is known of boots.
    pub fn boots(&self) -> &Boots {
        &self.boots
    }

    /// Opens the volumes of machines that run since before this server started, and forgets machines that ended meanwhile. To be called
    /// before the NBD server listens.
    pub fn recover(&self) -> Result<(), DesktopError> {
        for mut desktop in self.versions.catalog().desktops()? {
            let Some(machine) = &desktop.machine else {
                continue;
            };
            if !machine::is_alive(machine) {
                tracing::warn!(
                    desktop = desktop.name,
                    "the machine ended while the branch server was down"
                );
                desktop.machine = None;
                desktop.error = Some("the machine ended while the branch server was down".into());
                self.versions.catalog().put_desktop(&desktop)?;
                continue;
            }
            match self.open_volume(&desktop) {
                Ok(()) => {
                    tracing::info!(
                        desktop = desktop.name,
                        pid = machine.pid,
                        "the machine goes on"
                    );
                    // A boot that began before is followed to its end, but it is not a whole recording any more.
                    let age_ms = self
                        .clock
                        .now_unix_ms()
                        .saturating_sub(machine.started_unix_ms);
                    if age_ms < u64::from(BOOT_MS_MAX)
                        && let Ok((version, _)) = self.version_of(&desktop)
                    {
                        self.boots.prepare(&desktop.name, version, &[]);
                    }
                }
                Err(error) => {
                    // Its guest waits at the export; others must not wait with it.
                    tracing::error!(
                        desktop = desktop.name,
                        error = &error as &dyn std::error::Error,
                        "volume does not open"
                    );
                    desktop.error = Some(error_line(&error));
                    self.versions.catalog().put_desktop(&desktop)?;
                }
            }
        }
        Ok(())
    }

    fn version_of(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<(VersionId, VersionRecord), DesktopError> {
        let not_here = || DesktopError::NotHere {
            version: desktop.version.clone(),
        };
        let id = VersionId::from_str(&desktop.version).map_err(|_| not_here())?;
        let record = self.versions.catalog().version(id)?.ok_or_else(not_here)?;
        Ok((id, record))
    }

    fn open_volume(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let (id, _) = self.version_of(desktop)?;
        let tree = self.versions.tree(id, Tree::Disk)?;
        let tree = tree.ok_or_else(|| DesktopError::NotHere {
            version: desktop.version.clone(),
        })?;
        let base = Arc::new(CachedBase::new(tree, Arc::clone(&self.fetcher)));
        self.volumes.open(desktop, id, base)?;
        Ok(())
    }

    /// Runs a desktop of `pool`: a fresh one, or a stopped one again. Blocks until its machine runs; kernel and initrd may have to come
    /// over the link first.
    pub fn start(&self, pool: &str, name: &str) -> Result<Desktop, DesktopError> {
        record::check_name(name).map_err(DesktopError::Name)?;
        let _turn = self.turn(name)?;
        let mut desktop = match self.record(name)? {
            Some(desktop) if desktop.pool != pool => {
                return Err(DesktopError::OtherPool {
                    name: name.into(),
                    pool: desktop.pool,
                });
            }
            Some(desktop) if desktop.machine.as_ref().is_some_and(machine::is_alive) => {
                return Err(DesktopError::Busy {
                    name: name.into(),
                    state: "running",
                    way_out: "stop it first",
                });
            }
            Some(desktop) => desktop,
            None => self.fresh(pool, name)?,
        };
        let dir = self.dir.join(name);
        let longest = MachineSpec::serial_socket(&dir);
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(DesktopError::PathTooLong(longest));
        }
        std::fs::create_dir_all(&dir).map_err(|source| MachineError::Io {
            name: name.into(),
            what: "make its directory".into(),
            source,
        })?;
        let (version, record) = self.version_of(&desktop)?;
        self.fetcher.boot_begins();
        let files = self.absent_boot_files(version, &record)?;
        self.boots.prepare(name, version, &files);
        let started = self.start_machine(&mut desktop, version, &record, dir);
        if started.is_err() {
            self.boots.forget(name);
        }
        started?;
        tracing::info!(desktop = name, pool, version = %version, "started");
        Ok(self.describe(&desktop, false))
    }

    fn start_machine(
        &self,
        desktop: &mut DesktopRecord,
        version: VersionId,
        record: &VersionRecord,
        dir: PathBuf,
    ) -> Result<(), DesktopError> {
        let name = desktop.name.clone();
        let boot = self.boot_files(version, record)?;
        desktop.boot = None;
        self.versions.catalog().put_desktop(desktop)?;
        self.open_volume(desktop)?;
        if let Some(volume) = self.volumes.find(&name) {
            self.boots.begin(&name, volume.base());
        }
        let spec = MachineSpec {
            name: name.clone(),
            dir,
            memory_mib: desktop.memory_mib,
            vcpus: desktop.vcpus,
            kvm: self.host.kvm,
            nbd_socket: self.host.nbd_socket.clone(),
            boot,
            qemu: self.host.qemu.clone(),
        };
        desktop.error = None;
        match spec.start(self.clock.now_unix_ms()) {
            Ok(machine) => desktop.machine = Some(machine),
            Err(error) => {
                desktop.machine = None;
                desktop.error = Some(error.to_string());
                self.versions.catalog().put_desktop(desktop)?;
                self.volumes.close(&name)?;
                return Err(error.into());
            }
        }
        Ok(self.versions.catalog().put_desktop(desktop)?)
    }

    /// A new desktop on the pool's version.
    fn fresh(&self, pool: &str, name: &str) -> Result<DesktopRecord, DesktopError> {
        let (assigned, version) = self.pool_version(pool)?;
        let mut id = [0; 16];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut id);
        Ok(DesktopRecord {
            name: name.into(),
            pool: pool.into(),
            id,
            version: version.to_string(),
            memory_mib: assigned.memory_mib,
            vcpus: assigned.vcpus,
            created_unix_ms: self.clock.now_unix_ms(),
            machine: None,
            error: None,
            boot: None,
        })
    }

    /// What a fresh desktop of `pool` boots now: the assigned version, or, while its manifest is still on its way, the newest
    /// earlier version of the image that can boot.
    pub fn pool_version(&self, pool: &str) -> Result<(PoolAssignment, VersionId), DesktopError> {
        let assignment = self.versions.assignment();
        let pools = assignment
            .as_ref()
            .map(|a| a.pools.as_slice())
            .unwrap_or_default();
        let assigned = pools.iter().find(|p| p.pool == pool).ok_or_else(|| {
            let known: Vec<&str> = pools.iter().map(|p| p.pool.as_str()).collect();
            DesktopError::NoPool {
                pool: pool.into(),
                known: if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                },
            }
        })?;
        if let Some(assignment) = &assignment {
            let end = assignment
                .expires_unix_s
                .saturating_add(assignment.offline_grace_s);
            let now = self.clock.now_unix_s();
            if now > end {
                return Err(DesktopError::AssignmentEnded { since_s: now - end });
            }
        }
        let not_here = || DesktopError::NotHere {
            version: assigned.version.to_string(),
        };
        if let Some(record) = self.versions.catalog().version(assigned.version)?
            && self.versions.can_boot(&record)?
        {
            return Ok((assigned.clone(), assigned.version));
        }
        let mut earlier = self.versions.catalog().versions()?;
        earlier.retain(|(id, r)| r.image == assigned.image && assigned.pinned.contains(id));
        earlier.sort_by_key(|(_, record)| std::cmp::Reverse(record.number));
        for (id, record) in earlier {
            if self.versions.can_boot(&record)? {
                tracing::info!(pool, assigned = %assigned.version, boots = %id, "the assigned version is not here yet");
                return Ok((assigned.clone(), id));
            }
        }
        Err(not_here())
    }

    /// Where a version's kernel or initrd lies as a file, once it does.
    fn boot_file(&self, record: &VersionRecord, tree: Tree) -> Option<PathBuf> {
        let root = record.tree(tree)?.root;
        Some(self.dir.join(".boot").join(root.to_string()))
    }

    /// Those of kernel and initrd that are not files here yet.
    fn absent_boot_files(
        &self,
        version: VersionId,
        record: &VersionRecord,
    ) -> Result<Vec<TreeHandle>, DesktopError> {
        let mut absent = Vec::new();
        for tree in [Tree::Kernel, Tree::Initrd] {
            let path = self.boot_file(record, tree);
            if path.is_some_and(|path| !path.exists()) {
                absent.extend(self.versions.tree(version, tree)?);
            }
        }
        Ok(absent)
    }

    /// Kernel and initrd as files, read through the cache.
    fn boot_files(
        &self,
        version: VersionId,
        record: &VersionRecord,
    ) -> Result<Option<(PathBuf, Option<PathBuf>, String)>, DesktopError> {
        let Some(boot) = &record.boot else {
            return Ok(None);
        };
        let file = |tree: Tree, what: &'static str| -> Result<Option<PathBuf>, DesktopError> {
            let Some(handle) = self.versions.tree(version, tree)? else {
                return Ok(None);
            };
            let path = self
                .boot_file(record, tree)
                .expect("the version has this tree");
            volumes::materialise(&path, &CachedBase::new(handle, Arc::clone(&self.fetcher)))
                .map_err(|source| DesktopError::Boot {
                    what,
                    version: version.to_string(),
                    source,
                })?;
            Ok(Some(path))
        };
        let kernel = file(Tree::Kernel, "the kernel")?.ok_or_else(|| DesktopError::NotHere {
            version: version.to_string(),
        })?;
        let initrd = file(Tree::Initrd, "the initrd")?;
        let command_line = format!(
            "{} ro console=tty0 console=ttyS0,115200",
            boot.root_argument
        );
        Ok(Some((kernel, initrd, command_line)))
    }

    /// Stops a desktop. Blocks until its machine has ended.
    pub fn stop(&self, name: &str, force: bool) -> Result<Desktop, DesktopError> {
        let _turn = self.turn(name)?;
        let mut desktop = self
            .record(name)?
            .ok_or_else(|| DesktopError::NotFound(name.into()))?;
        // Shutting down is not part of the boot.
        if let Some(score) = self.boots.end(name) {
            desktop.boot = Some(record::boot_report(&score));
        }
        if let Some(machine) = desktop.machine.take() {
            let grace = if force { Duration::ZERO } else { STOP_GRACE };
            machine::stop(&machine, &self.dir.join(name), grace);
        }
        desktop.error = None;
        self.volumes.close(name)?;
        self.versions.catalog().put_desktop(&desktop)?;
        tracing::info!(desktop = name, "stopped");
        Ok(self.describe(&desktop, false))
    }

    /// Deletes a stopped desktop with its overlay.
    pub fn delete(&self, name: &str) -> Result<(), DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self
            .record(name)?
            .ok_or_else(|| DesktopError::NotFound(name.into()))?;
        if desktop.machine.as_ref().is_some_and(machine::is_alive) {
            return Err(DesktopError::Busy {
                name: name.into(),
                state: "running",
                way_out: "stop it first",
            });
        }
        self.volumes.close(name)?;
        // The key first, the row last: a stop in between leaves a desktop without data that can be deleted again.
        self.volumes.delete(&desktop)?;
        self.versions.catalog().delete_desktop(name)?;
        match std::fs::remove_dir_all(self.dir.join(name)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(MachineError::Io {
                name: name.into(),
                what: "remove its directory".into(),
                source,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// All desktops.
    pub fn list(&self) -> Result<Vec<Desktop>, DesktopError> {
        let desktops = self.versions.catalog().desktops()?;
        Ok(desktops.iter().map(|d| self.describe(d, true)).collect())
    }

    /// One desktop.
    pub fn show(&self, name: &str) -> Result<Desktop, DesktopError> {
        let desktop = self
            .record(name)?
            .ok_or_else(|| DesktopError::NotFound(name.into()))?;
        Ok(self.describe(&desktop, true))
    }

    /// Looks after machines: those that ended are noted, those that paused on a failed read or write are let go on. To be called about
    /// every second; `connected` says whether the link is up.
    pub fn tend(&self, connected: bool) {
        self.tend_boots();
        self.make_room();
        let desktops = match self.versions.catalog().desktops() {
            Ok(desktops) => desktops,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "desktops cannot be read"
                );
                return;
            }
        };
        for listed in desktops {
            if listed.machine.is_none() {
                continue;
            }
            let Some(_turn) = self.try_turn(&listed.name) else {
                continue;
            };
            // As it is now that nobody else changes it.
            let Ok(Some(mut desktop)) = self.record(&listed.name) else {
                continue;
            };
            let Some(machine) = desktop.machine.clone() else {
                continue;
            };
            let dir = self.dir.join(&desktop.name);
            if machine::is_alive(&machine) {
                let volume = self.volumes.find(&desktop.name);
                let is_short = volume.as_ref().is_some_and(|v| v.shortage().is_some());
                // A guest that ran out of room goes on when there is some, whatever the link does.
                let may = connected || volume.is_some_and(|v| v.was_short());
                if !is_short && may && machine::resume_after_io_error(&dir) {
                    tracing::info!(
                        desktop = desktop.name,
                        "goes on after a failed read or write"
                    );
                }
                continue;
            }
            tracing::info!(desktop = desktop.name, "the machine ended");
            desktop.machine = None;
            if let Some(score) = self.boots.end(&desktop.name) {
                desktop.boot = Some(record::boot_report(&score));
            }
            if let Err(error) = self.volumes.close(&desktop.name) {
                desktop.error = Some(error.to_string());
            }
            if let Err(error) = self.versions.catalog().put_desktop(&desktop) {
                tracing::error!(
                    desktop = desktop.name,
                    error = &error as &dyn std::error::Error,
                    "state not kept"
                );
            }
        }
    }

    /// Gives what the cache can spare of the host's disk to desktops that have no room to write, once for each time that it runs out: a
    /// cache on another disk would be emptied in vain.
    fn make_room(&self) {
        let missing = self.volumes.missing_bytes();
        if missing == 0 {
            self.made_room.store(false, Ordering::Relaxed);
            return;
        }
        if self.made_room.swap(true, Ordering::Relaxed) {
            return;
        }
        match self.fetcher.give_room(missing.saturating_add(SPARE_BYTES)) {
            Ok(freed) => tracing::warn!(
                missing,
                freed,
                "the disk is full: desktops wait for room, and the cache gave up what no assignment wants"
            ),
            Err(error) => tracing::error!(
                error = error_line(&error),
                "the disk is full, and the cache could give nothing up"
            ),
        }
    }

    /// Notes how boots went that have settled.
    fn tend_boots(&self) {
        for (name, score) in self.boots.settled() {
            // A call that works on it waits for nothing of ours.
            let Ok(_turn) = self.turn(&name) else {
                continue;
            };
            let Ok(Some(mut desktop)) = self.record(&name) else {
                continue;
            };
            desktop.boot = Some(record::boot_report(&score));
            if let Err(error) = self.versions.catalog().put_desktop(&desktop) {
                tracing::error!(
                    desktop = name,
                    error = &error as &dyn std::error::Error,
                    "how it booted is not kept"
                );
            }
        }
    }

    fn describe(&self, desktop: &DesktopRecord, look: bool) -> Desktop {
        let dir = self.dir.join(&desktop.name);
        let alive = desktop.machine.as_ref().filter(|m| machine::is_alive(m));
        let volume = self.volumes.find(&desktop.name);
        let shortage = volume.as_ref().and_then(|v| v.shortage());
        let failed = volume.as_ref().and_then(|v| v.failure());
        // Who works on it knows its state; only a look from outside can meet it half way.
        let starting = look && alive.is_none() && self.busy().contains(&desktop.name);
        let state = match alive {
            _ if failed.is_some() => DesktopState::Failed,
            // Its writes wait, and so does it soon: reads go on until QEMU stops it.
            Some(_) if shortage.is_some() => DesktopState::Paused,
            Some(_) if look && machine::is_paused_by_io_error(&dir) => DesktopState::Paused,
            Some(_) => DesktopState::Running,
            None if starting => DesktopState::Starting,
            None if desktop.error.is_some() => DesktopState::Failed,
            None => DesktopState::Stopped,
        };
        let version = self.version_of(desktop).ok();
        Desktop {
            name: desktop.name.clone(),
            pool: desktop.pool.clone(),
            version: desktop.version.clone(),
            image: version
                .as_ref()
                .map(|(_, r)| r.image.clone())
                .unwrap_or_default(),
            version_number: version.map_or(0, |(_, r)| r.number),
            state,
            error: failed
                .or_else(|| shortage.map(shortage_line))
                .or_else(|| desktop.error.clone()),
            missing_bytes: match shortage {
                Some(Shortage::DiskBytes(bytes)) => Some(bytes),
                Some(Shortage::IndexFull) | None => None,
            },
            machine: alive.map(|m| m.accelerator.clone()),
            pid: alive.map(|m| m.pid),
            serial_log: path_text(&MachineSpec::serial_log(&dir)),
            serial_socket: path_text(&MachineSpec::serial_socket(&dir)),
            nbd_export: volumes::export_name(&desktop.name),
            started_unix_ms: alive.map(|m| m.started_unix_ms),
            demand_chunks: volume.as_ref().map_or(0, |v| v.demand_chunks()),
            boot: desktop.boot,
            overlay_bytes: volume.map_or(0, |v| v.overlay_bytes()),
        }
    }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// Why a desktop's writes wait, and what ends that.
fn shortage_line(shortage: Shortage) -> String {
    match shortage {
        Shortage::DiskBytes(bytes) => format!(
            "no room: {bytes} bytes are missing on the branch's disk; it goes on by itself when they come free"
        ),
        Shortage::IndexFull => {
            "no room: its writes are scattered over more places than are kept in memory; it goes on by itself when some are joined"
                .to_owned()
        }
    }
}

/// An error with its causes, on one line.
pub fn error_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Open volumes by desktop name.
type OpenVolumes = HashMap<String, Arc<OpenVolume>>;
