//! Starting a desktop: which version it has, what boots it, and which machine runs it.

use std::path::PathBuf;
use std::sync::Arc;

use branch_api::Desktop;
use dedup::VersionId;
use dedup_protocol::records::{PoolAssignment, Tree, VersionRecord};

use super::machine::{
    self, Boot, Choice, DirectBoot, DiskFront, Files, MachineError, MachineKind, MachineSpec,
    Needs, choose, firmware, libvirt,
};
use super::record::{self, DesktopRecord, THROWAWAY, UserVolumeRecord};
use super::resume::Begun;
use super::{DesktopError, Desktops, error_line, refuse_if_up, tree_file};
use crate::fetch::base::CachedBase;
use crate::fetch::queue::TreeHandle;

impl Desktops {
    /// Runs a desktop of `pool`: a fresh one, or a stopped one again. Blocks until its machine runs; kernel and initrd may have to come
    /// over the link first.
    pub fn start(&self, pool: &str, name: &str) -> Result<Desktop, DesktopError> {
        record::check_name(name).map_err(DesktopError::Name)?;
        self.wait_until_left(name)?;
        let _turn = self.turn(name)?;
        let mut desktop = self.stopped(pool, name)?;
        self.refuse_if_ending(&desktop)?;
        if let Some(too_long) = self.files(name).too_long() {
            return Err(DesktopError::PathTooLong(too_long));
        }
        self.end_cloning(&mut desktop)?;
        let (version, record) = self.version_of(&desktop)?;
        let choice = self.choose_machine(&mut desktop, &record)?;
        self.give_user_volume(&mut desktop);
        self.take_leases(&desktop)?;
        self.fetcher.boot_begins();
        let why = match self.go_on(&mut desktop, version, &record, &choice)? {
            Begun::Resumed => return Ok(self.describe(&desktop, false)),
            Begun::Boots(why) => why,
        };
        let files = self.absent_boot_files(version, &record)?;
        self.boots.prepare(name, version, &files);
        let started = self.start_machine(&mut desktop, version, &record, choice);
        if started.is_err() {
            self.boots.forget(name);
        }
        started?;
        if let Some(why) = why
            && let Some(machine) = &mut desktop.machine
        {
            machine.start = Some(format!("booted: {why}"));
            self.versions.catalog().put_desktop(&desktop)?;
        }
        let machine = desktop.machine.as_ref();
        tracing::info!(
            desktop = name,
            pool,
            version = %version,
            machine = machine.map(|m| m.kind.name()),
            reason = machine.map(|m| m.reason.as_str()),
            "started"
        );
        Ok(self.describe(&desktop, false))
    }

    /// Opens the volume of a desktop of `pool`, fresh or stopped, for a machine that somebody else runs.
    pub fn serve(&self, pool: &str, name: &str) -> Result<Desktop, DesktopError> {
        record::check_name(name).map_err(DesktopError::Name)?;
        self.wait_until_left(name)?;
        let _turn = self.turn(name)?;
        let mut desktop = self.stopped(pool, name)?;
        self.refuse_if_ending(&desktop)?;
        if let Some(too_long) = self.files(name).too_long() {
            return Err(DesktopError::PathTooLong(too_long));
        }
        self.end_cloning(&mut desktop)?;
        let (version, _) = self.version_of(&desktop)?;
        self.give_user_volume(&mut desktop);
        self.take_leases(&desktop)?;
        desktop.served = true;
        desktop.error = None;
        self.versions.catalog().put_desktop(&desktop)?;
        let opened = self.open_volume(&desktop);
        if opened.is_err() {
            desktop.served = false;
            self.versions.catalog().put_desktop(&desktop)?;
        }
        opened?;
        self.note_user_volume(&mut desktop)?;
        tracing::info!(desktop = name, pool, version = %version, "its disk is served");
        Ok(self.describe(&desktop, false))
    }

    /// A desktop that no machine uses, or a fresh one.
    fn stopped(&self, pool: &str, name: &str) -> Result<DesktopRecord, DesktopError> {
        match self.record(name)? {
            Some(desktop) if desktop.pool != pool => Err(DesktopError::OtherPool {
                name: name.into(),
                pool: desktop.pool,
            }),
            Some(mut desktop) => {
                refuse_if_up(&desktop)?;
                self.follow_version(&mut desktop)?;
                Ok(desktop)
            }
            None => self.fresh(pool, name),
        }
    }

    /// A desktop's machine as a libvirt domain, whose disk comes over `disk`.
    pub fn libvirt_domain(&self, name: &str, disk: DiskFront) -> Result<String, DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self.record(name)?;
        let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        let (version, record) = self.version_of(&desktop)?;
        let choice = choose::qemu("it is all that libvirt runs".into(), &self.host);
        let kernel = self.boot_files(version, &record)?;
        let mut spec = self.spec(&desktop, version, kernel, choice)?;
        spec.host.qemu_disk = disk;
        Ok(libvirt::domain(&spec, desktop.id))
    }

    pub(super) fn start_machine(
        &self,
        desktop: &mut DesktopRecord,
        version: VersionId,
        record: &VersionRecord,
        choice: Choice,
    ) -> Result<(), DesktopError> {
        let name = desktop.name.clone();
        let kernel = self.boot_files(version, record)?;
        desktop.boot = None;
        if choice.kind == MachineKind::Splice {
            self.give_user(desktop)?;
        }
        let card = self.plug(desktop)?;
        self.versions.catalog().put_desktop(desktop)?;
        self.open_volume(desktop)?;
        self.note_user_volume(desktop)?;
        // What a boot over a state touches is no place of the version, so nothing is learned of it.
        if let Some(volume) = self.volumes.find(&name)
            && volume.base().version() == version
        {
            self.boots.begin(&name, volume.base());
        }
        desktop.error = None;
        let spec = self.spec(desktop, version, kernel, choice);
        let started = spec.and_then(|spec| {
            let spec = MachineSpec { card, ..spec };
            Ok(spec.start(self.clock.now_unix_ms())?)
        });
        match started {
            Ok(machine) => desktop.machine = Some(machine),
            Err(error) => {
                desktop.machine = None;
                desktop.error = Some(error_line(&error));
                self.versions.catalog().put_desktop(desktop)?;
                self.volumes.close(&name)?;
                return Err(error);
            }
        }
        Ok(self.versions.catalog().put_desktop(desktop)?)
    }

    /// Gives a desktop a user volume if its pool asks for one and it has none. The caller keeps the record before the volume is opened.
    fn give_user_volume(&self, desktop: &mut DesktopRecord) {
        // One that came from elsewhere goes back as it came.
        if desktop.user_volume.is_some() || self.is_checked_out(desktop) {
            return;
        }
        let assignment = self.versions.assignment();
        let mut pools = assignment.iter().flat_map(|a| &a.pools);
        let mib = pools.find(|p| p.pool == desktop.pool);
        let mib = mib.map_or(0, |pool| pool.user_volume_mib);
        desktop.user_volume = (mib > 0).then(|| UserVolumeRecord::new(mib));
    }

    /// Notes that the user volume is there: if it is not, another time, that is a loss.
    fn note_user_volume(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        match &mut desktop.user_volume {
            Some(user) if !user.made => user.made = true,
            _ => return Ok(()),
        }
        Ok(self.versions.catalog().put_desktop(desktop)?)
    }

    /// Which machine runs it. What the pool asks for now holds; where the pool is gone, what it asked for last.
    pub(super) fn choose_machine(
        &self,
        desktop: &mut DesktopRecord,
        record: &VersionRecord,
    ) -> Result<Choice, DesktopError> {
        let assignment = self.versions.assignment();
        let pools = assignment.iter().flat_map(|a| &a.pools);
        if let Some(pool) = pools.into_iter().find(|p| p.pool == desktop.pool) {
            desktop.wanted = pool.machine;
            desktop.tpm = pool.tpm;
        }
        let needs = Needs {
            has_kernel: record.boot.is_some(),
            tpm: desktop.tpm,
            vcpus: desktop.vcpus,
        };
        let choice = machine::choose(desktop.wanted, needs, &self.host);
        choice.map_err(|source| {
            tracing::warn!(desktop = desktop.name, %source, "not started");
            let name = desktop.name.clone();
            MachineError::NoSplice { name, source }.into()
        })
    }

    pub(super) fn spec(
        &self,
        desktop: &DesktopRecord,
        version: VersionId,
        kernel: Option<DirectBoot>,
        choice: Choice,
    ) -> Result<MachineSpec, DesktopError> {
        let files = self.files(&desktop.name);
        let boot = match kernel {
            Some(kernel) => Boot::Kernel(kernel),
            None => self.firmware(&desktop.name, version, &files)?,
        };
        Ok(MachineSpec {
            name: desktop.name.clone(),
            files,
            memory_mib: desktop.memory_mib,
            vcpus: desktop.vcpus,
            choice,
            boot,
            tpm: desktop.tpm,
            user_serial: desktop.user_volume.as_ref().map(UserVolumeRecord::serial),
            uid: desktop.uid,
            card: None,
            resume: None,
            is_saved: desktop.name == THROWAWAY,
            host: self.host.clone(),
        })
    }

    /// What boots a disk whose kernel was not found.
    fn firmware(
        &self,
        name: &str,
        version: VersionId,
        files: &Files,
    ) -> Result<Boot, DesktopError> {
        let tree = self.versions.tree(version, Tree::Disk)?;
        let tree = tree.ok_or_else(|| DesktopError::NotHere {
            version: version.to_string(),
        })?;
        let disk = CachedBase::new(tree, Arc::clone(&self.fetcher));
        let is_uefi = firmware::has_efi_system_partition(&disk);
        let is_uefi = is_uefi.map_err(|source| DesktopError::Boot {
            what: "the partition table",
            version: version.to_string(),
            source: source.into(),
        })?;
        if !is_uefi {
            return Ok(Boot::Bios);
        }
        let found = firmware::uefi(files.efi_vars()).map_err(|source| MachineError::Io {
            name: name.into(),
            what: "the variables of its firmware".into(),
            source,
        })?;
        let found = found.ok_or_else(|| MachineError::NoUefi { name: name.into() })?;
        Ok(Boot::Uefi(found))
    }

    /// A new desktop on the pool's version.
    pub(super) fn fresh(&self, pool: &str, name: &str) -> Result<DesktopRecord, DesktopError> {
        let (assigned, version) = self.pool_version(pool)?;
        if version != assigned.version {
            tracing::info!(pool, assigned = %assigned.version, boots = %version, "the assigned version is not here yet");
        }
        let mut id = [0; 16];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut id);
        Ok(DesktopRecord {
            name: name.into(),
            pool: pool.into(),
            id,
            version: version.to_string(),
            memory_mib: assigned.memory_mib,
            vcpus: assigned.vcpus,
            wanted: assigned.machine,
            tpm: assigned.tpm,
            system: None,
            user_volume: None,
            pooled: assigned.pooled,
            chosen: None,
            kept_back: None,
            rebasing: None,
            trial: false,
            uid: None,
            address: None,
            created_unix_ms: self.clock.now_unix_ms(),
            served: false,
            machine: None,
            cloning: false,
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
    pub(crate) fn absent_boot_files(
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
    pub(super) fn boot_files(
        &self,
        version: VersionId,
        record: &VersionRecord,
    ) -> Result<Option<DirectBoot>, DesktopError> {
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
            tree_file::materialise(&path, &CachedBase::new(handle, Arc::clone(&self.fetcher)))
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
        Ok(Some(DirectBoot {
            kernel,
            initrd,
            command_line,
        }))
    }
}
