//! Boot artifacts: the kernel, initial RAM disk and root argument with which a Linux image can be started without a boot
//! loader. Which kernel: the one that /vmlinuz or /boot/vmlinuz leads to, else the newest in /boot, wherever /boot is.

use serde::{Deserialize, Serialize};

use super::config::{self, BootEntry};
use super::linux::{CONFIG_BYTES_MAX, Volume};
use super::version;

const KERNEL_BYTES_MAX: u64 = 64 << 20;
const INITRD_BYTES_MAX: u64 = 512 << 20;

/// What starts a Linux image without its boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArtifacts {
    /// Where the kernel lies in the running system, for example `/boot/vmlinuz-6.1.0-18-amd64`.
    pub kernel_path: String,
    /// The kernel image, at most 64 MiB.
    pub kernel: Vec<u8>,
    /// Its version, from its own header or else its name.
    pub kernel_version: Option<String>,
    /// Where the initial RAM disk that belongs to it lies, if there is one.
    pub initrd_path: Option<String>,
    /// The initial RAM disk, at most 512 MiB.
    pub initrd: Option<Vec<u8>>,
    /// The argument that names the root file system, for example `root=UUID=…`.
    pub root_argument: String,
    /// The arguments that the image's boot loader gives this kernel, where they were found.
    pub cmdline_found: Option<String>,
}

/// [`BootArtifacts`] without the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSummary {
    /// See [`BootArtifacts::kernel_path`].
    pub kernel_path: String,
    /// The kernel's size in bytes.
    pub kernel_bytes: u64,
    /// See [`BootArtifacts::kernel_version`].
    pub kernel_version: Option<String>,
    /// See [`BootArtifacts::initrd_path`].
    pub initrd_path: Option<String>,
    /// The initial RAM disk's size in bytes, 0 when there is none.
    pub initrd_bytes: u64,
    /// See [`BootArtifacts::root_argument`].
    pub root_argument: String,
    /// See [`BootArtifacts::cmdline_found`].
    pub cmdline_found: Option<String>,
}

impl BootArtifacts {
    /// The summary that catalogs keep.
    #[must_use]
    pub fn summary(&self) -> BootSummary {
        BootSummary {
            kernel_path: self.kernel_path.clone(),
            kernel_bytes: self.kernel.len() as u64,
            kernel_version: self.kernel_version.clone(),
            initrd_path: self.initrd_path.clone(),
            initrd_bytes: self.initrd.as_ref().map_or(0, |initrd| initrd.len() as u64),
            root_argument: self.root_argument.clone(),
            cmdline_found: self.cmdline_found.clone(),
        }
    }
}

/// A folder that holds kernels: where it is on its volume, and what it is called in the running system.
struct BootFolder<'a> {
    volume: &'a Volume,
    on_volume: &'static str,
}

impl BootFolder<'_> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.on_volume)
    }

    fn has(&self, name: &str) -> bool {
        self.volume.files.is_file(&self.path(name))
    }

    fn kernels(&self) -> Vec<String> {
        let mut names = self.volume.files.names(if self.on_volume.is_empty() {
            "/"
        } else {
            self.on_volume
        });
        names.retain(|name| is_kernel_name(name) && self.has(name));
        names
    }
}

fn is_kernel_name(name: &str) -> bool {
    let plain = matches!(name, "vmlinuz" | "bzImage" | "Image" | "vmlinux");
    let versioned = ["vmlinuz-", "bzImage-", "Image-", "kernel-"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    (plain || versioned) && !name.contains("rescue") && !name.ends_with(".old")
}

/// Finds what boots the system whose root is `volumes[root]`, or that only a boot volume shows.
pub(super) fn find(
    volumes: &[Volume],
    root: Option<usize>,
    notes: &mut Vec<String>,
) -> Option<BootArtifacts> {
    let root = root.map(|index| &volumes[index]);
    let Some(folder) = boot_folder(volumes, root) else {
        if root.is_some() {
            notes.push("there is a Linux system but no kernel in /boot".into());
        }
        return None;
    };
    let name = choose_kernel(&folder, root)?;
    let kernel = match folder
        .volume
        .files
        .read(&folder.path(&name), KERNEL_BYTES_MAX)
    {
        Ok(kernel) => kernel,
        Err(why) => {
            notes.push(format!("the kernel cannot be read: {why}"));
            return None;
        }
    };
    let initrd_name = choose_initrd(&folder, root, &name);
    let initrd = initrd_name.and_then(|name| {
        match folder
            .volume
            .files
            .read(&folder.path(&name), INITRD_BYTES_MAX)
        {
            Ok(bytes) => Some((name, bytes)),
            Err(why) => {
                notes.push(format!("the initial RAM disk cannot be read: {why}"));
                None
            }
        }
    });
    if initrd.is_none() {
        notes.push(format!("no initial RAM disk for {name} was found"));
    }
    let cmdline_found = command_line(&folder, root, &name);
    let root_argument = root_argument(root, cmdline_found.as_deref(), notes)?;
    let (initrd_name, initrd) = initrd.unzip();
    Some(BootArtifacts {
        kernel_version: kernel_version(&kernel).or_else(|| version_in(&name).map(str::to_owned)),
        kernel_path: format!("/boot/{name}"),
        kernel,
        initrd_path: initrd_name.map(|name| format!("/boot/{name}")),
        initrd,
        root_argument,
        cmdline_found,
    })
}

/// Where the kernels are: /boot of the root volume, the volume that fstab mounts there, or any with kernels on top.
fn boot_folder<'a>(volumes: &'a [Volume], root: Option<&'a Volume>) -> Option<BootFolder<'a>> {
    let mounted = root
        .and_then(|root| root.files.text("/etc/fstab", CONFIG_BYTES_MAX))
        .and_then(|fstab| config::fstab_device(&fstab, "/boot"))
        .and_then(|device| volumes.iter().find(|volume| volume.is_named(&device)));
    let on_top = mounted.into_iter().chain(volumes).map(|volume| BootFolder {
        volume,
        on_volume: "",
    });
    let in_root = root.map(|volume| BootFolder {
        volume,
        on_volume: "/boot",
    });
    // What is mounted over /boot hides what lies below it.
    let (first, then) = if mounted.is_some() {
        (None, in_root)
    } else {
        (in_root, None)
    };
    first
        .into_iter()
        .chain(on_top)
        .chain(then)
        .find(|folder| !folder.kernels().is_empty())
}

/// The kernel's name in `folder`.
fn choose_kernel(folder: &BootFolder<'_>, root: Option<&Volume>) -> Option<String> {
    linked(folder, root, &["/vmlinuz", "/boot/vmlinuz"])
        .or_else(|| linked(folder, Some(folder.volume), &["/vmlinuz"]))
        .or_else(|| {
            folder.kernels().into_iter().max_by(|a, b| {
                // With a version beats without.
                let (a, b) = (version_in(a), version_in(b));
                a.is_some()
                    .cmp(&b.is_some())
                    .then_with(|| version::compare(a.unwrap_or(""), b.unwrap_or("")))
            })
        })
}

/// The name in `folder` that one of the symbolic links leads to. The link may lead from the root volume to another one,
/// so only the name that it ends in counts.
fn linked(folder: &BootFolder<'_>, on: Option<&Volume>, links: &[&str]) -> Option<String> {
    let files = &on?.files;
    links.iter().find_map(|link| {
        let target = files
            .canonical(link)
            .filter(|path| path != link)
            .or_else(|| files.link_target(link))?;
        let name = target.rsplit('/').next()?;
        folder.has(name).then(|| name.to_owned())
    })
}

fn choose_initrd(folder: &BootFolder<'_>, root: Option<&Volume>, kernel: &str) -> Option<String> {
    if let Some(version) = version_in(kernel) {
        return [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
            format!("initrd-{version}.img"),
            format!("initramfs-{version}"),
        ]
        .into_iter()
        .find(|name| folder.has(name));
    }
    linked(folder, root, &["/initrd.img", "/boot/initrd.img"]).or_else(|| {
        ["initrd.img", "initrd", "initramfs.img", "initramfs"]
            .map(str::to_owned)
            .into_iter()
            .find(|n| folder.has(n))
    })
}

fn version_in(name: &str) -> Option<&str> {
    name.split_once('-').map(|(_, version)| version)
}

/// The version that an x86 kernel image carries (Linux, Documentation/arch/x86/boot.rst, field `kernel_version`).
fn kernel_version(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(
        kernel.get(0x20e..0x210)?.try_into().ok()?,
    )) + 0x200;
    let text = kernel.get(at..(at + 128).min(kernel.len()))?;
    let text = super::disk::text(text)?;
    text.split_whitespace().next().map(str::to_owned)
}

/// The arguments that the image's own boot loader would give the kernel called `name`.
fn command_line(folder: &BootFolder<'_>, root: Option<&Volume>, name: &str) -> Option<String> {
    let files = &folder.volume.files;
    let read = |path: &str| files.text(&folder.path(path), CONFIG_BYTES_MAX);
    let mut entries: Vec<BootEntry> = Vec::new();
    for path in [
        "extlinux/extlinux.conf",
        "syslinux/syslinux.cfg",
        "extlinux.conf",
    ] {
        entries.extend(
            read(path)
                .map(|text| config::extlinux(&text))
                .unwrap_or_default(),
        );
    }
    let mut loader_entries = files.names(&folder.path("loader/entries"));
    loader_entries.sort_by(|a, b| version::compare(b, a));
    for file in loader_entries
        .iter()
        .filter(|name| name.ends_with(".conf") && !name.contains("rescue"))
        .take(64)
    {
        entries.extend(
            read(&format!("loader/entries/{file}")).and_then(|text| config::loader_entry(&text)),
        );
    }
    for path in ["grub/grub.cfg", "grub2/grub.cfg"] {
        entries.extend(
            read(path)
                .map(|text| config::grub(&text))
                .unwrap_or_default(),
        );
    }
    let last = |path: &str| path.rsplit('/').next().unwrap_or("").to_owned();
    let of_this = entries.iter().find(|entry| last(&entry.kernel) == name);
    let of_link = || {
        entries
            .iter()
            .find(|entry| last(&entry.kernel) == "vmlinuz")
    };
    let found = of_this
        .or_else(of_link)
        .or(entries.first())
        .map(|entry| entry.arguments.clone());
    found
        .or_else(|| root?.files.text("/etc/kernel/cmdline", CONFIG_BYTES_MAX))
        .and_then(|text| {
            Some(
                text.split_whitespace()
                    .map(super::disk::printable)
                    .collect::<Option<Vec<_>>>()?
                    .join(" "),
            )
        })
        .filter(|text| !text.is_empty() && text.len() <= 2048)
}

/// How the root file system is named to the kernel. What the image's own files say counts if it names the root volume in
/// a way that does not depend on the machine; else its UUID does.
fn root_argument(
    root: Option<&Volume>,
    cmdline: Option<&str>,
    notes: &mut Vec<String>,
) -> Option<String> {
    let from_cmdline = cmdline.and_then(config::root_value).map(str::to_owned);
    let Some(root) = root else {
        // A kernel on a boot volume, a root that cannot be read (another file system, LVM, encryption).
        let lasting =
            from_cmdline.filter(|value| is_lasting(value) || value.starts_with("/dev/mapper/"));
        if lasting.is_none() {
            notes.push("a kernel was found but not what its root file system is".into());
        }
        return lasting.map(|value| format!("root={value}"));
    };
    let from_fstab = root
        .files
        .text("/etc/fstab", CONFIG_BYTES_MAX)
        .and_then(|fstab| config::fstab_device(&fstab, "/"));
    for (value, place) in [(from_cmdline, "its boot loader"), (from_fstab, "its fstab")] {
        let Some(value) = value else { continue };
        if root.is_named(&value) {
            return Some(format!("root={value}"));
        }
        if is_lasting(&value) {
            notes.push(format!(
                "{place} names {value} as root, which is not on this disk"
            ));
        }
    }
    if let Some(uuid) = root
        .partition
        .filesystem
        .as_ref()
        .and_then(|f| f.uuid.as_ref())
    {
        return Some(format!("root=UUID={uuid}"));
    }
    match &root.partition.part_uuid {
        Some(uuid) => Some(format!("root=PARTUUID={uuid}")),
        None => {
            notes.push("the root file system has no UUID to name it by".into());
            None
        }
    }
}

fn is_lasting(device: &str) -> bool {
    ["UUID=", "PARTUUID=", "LABEL="]
        .iter()
        .any(|prefix| device.starts_with(prefix))
}
