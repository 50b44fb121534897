//! The check `differential`: the same image, booted under splice-vmm and under QEMU, ends with the same files.
//!
//! Each boots a fresh copy until nothing is being started any more, and powers off. Then its file system is read from outside: for each
//! path its type, mode and size, and a hash of what is in it. What a boot changes by nature is listed below with its reason, and nothing
//! else may differ. A folder's own size is left out: it says how many entries it once had.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::checks::{BOOT, SHELL};
use crate::vm::{Engine, Lab, Options};

/// Where the small Debian's only partition begins (tests/images).
const PARTITION_BYTES: u64 = 1 << 20;
/// A Debian has more files than this; fewer are a sign that nothing was read.
const FILES_MIN: usize = 5_000;
/// Differences that are told in one line; all of them are kept beside it.
const TOLD_MAX: usize = 5;

/// Paths, with all that is below, that differ from boot to boot on the same machine, each with its reason.
const BY_NATURE: &[(&str, &str)] = &[
    (
        "etc/machine-id",
        "each desktop's own, made when it boots first",
    ),
    ("var/lib/dbus/machine-id", "the same"),
    ("var/log", "the journal, and when somebody has logged in"),
    ("var/lib/systemd/random-seed", "new at each boot"),
    ("var/lib/systemd/timers", "when timers have run"),
    ("var/lib/systemd/timesync", "the clock when it was stopped"),
    (
        "var/tmp",
        "services' own folders, with the boot's number in their names",
    ),
    ("tmp", "the same"),
];

/// What is compared of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: char,
    mode: u32,
    bytes: u64,
    content: String,
}

type Files = BTreeMap<PathBuf, Entry>;

/// See the module.
pub fn differential(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let mut lists = Vec::new();
    for engine in [Engine::Splice, Engine::Qemu] {
        let disk = lab.fresh_disk()?;
        let options = Options {
            engine,
            disk: Some(disk.clone()),
            ..Options::default()
        };
        let mut vm = lab.launch(name, &options)?;
        vm.boot_and_log_in(BOOT)?;
        // Until all that a boot starts has been started, or has failed.
        vm.run("systemctl is-system-running --wait || true", BOOT)?;
        vm.run("systemctl poweroff", SHELL)?;
        let end = vm.wait_end(BOOT)?;
        ensure!(end.success(), "{end} of {}", engine.name());
        let files = files_of(&disk).with_context(|| format!("after {}", engine.name()))?;
        ensure!(files.len() >= FILES_MIN, "only {} files", files.len());
        lists.push(files);
    }
    let [splice, qemu] = lists.as_slice() else {
        bail!("two machines were compared");
    };
    let (by_nature, others) = differences(splice, qemu);
    let kept: Vec<String> = others.iter().chain(&by_nature).cloned().collect();
    fs::write(lab.file(name, "differences.vmm"), kept.join("\n"))?;
    let told = others.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>();
    ensure!(
        others.is_empty(),
        "{} differ: {}",
        others.len(),
        told.join("; ")
    );
    // Had neither booted, nothing would differ.
    let identity = Path::new("etc/machine-id");
    ensure!(
        splice.get(identity) != qemu.get(identity),
        "both have the same machine-id"
    );
    Ok(vec![format!(
        "{} paths are the same, {} differ by nature",
        splice.len() - by_nature.len(),
        by_nature.len()
    )])
}

/// Paths that differ, by nature and otherwise, each as a line.
fn differences(splice: &Files, qemu: &Files) -> (Vec<String>, Vec<String>) {
    let paths: std::collections::BTreeSet<_> = splice.keys().chain(qemu.keys()).collect();
    let differing = paths
        .into_iter()
        .filter(|path| splice.get(*path) != qemu.get(*path));
    let (by_nature, others): (Vec<_>, Vec<_>) = differing.partition(|path| {
        let mut known = BY_NATURE.iter();
        known.any(|(nature, _)| path.starts_with(nature))
    });
    let line = |path: &PathBuf| {
        let told = |files: &Files| match files.get(path) {
            Some(entry) => format!(
                "{}{:o} {} bytes {:.12}",
                entry.kind, entry.mode, entry.bytes, entry.content
            ),
            None => "none".into(),
        };
        let (splice, qemu) = (told(splice), told(qemu));
        format!("{}: splice-vmm {splice}, QEMU {qemu}", path.display())
    };
    let lines = |paths: Vec<&PathBuf>| paths.into_iter().map(line).collect();
    (lines(by_nature), lines(others))
}

/// All files of a disk, which nobody uses any more.
fn files_of(disk: &Path) -> Result<Files> {
    let at = std::env::temp_dir().join("files");
    fs::create_dir_all(&at)?;
    // It was unmounted in order: there is nothing in its journal to be done.
    let options = format!("ro,noload,loop,offset={PARTITION_BYTES}");
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "ext4", "-o", &options])
        .arg(disk)
        .arg(&at);
    ensure!(mount.status()?.success(), "mounting its file system");
    let mut files = Files::new();
    let walked = walk(&at, &at, &mut files);
    let unmounted = Command::new("umount").arg(&at).status()?;
    walked?;
    ensure!(unmounted.success(), "unmounting its file system");
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Files) -> Result<()> {
    for found in fs::read_dir(folder)? {
        let path = found?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let entry = entry(&path, &metadata);
        let entry = entry.with_context(|| path.display().to_string())?;
        files.insert(path.strip_prefix(root)?.to_owned(), entry);
        if metadata.is_dir() {
            walk(root, &path, files)?;
        }
    }
    Ok(())
}

fn entry(path: &Path, metadata: &Metadata) -> Result<Entry> {
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_file() {
        ('f', blake3::hash(&fs::read(path)?).to_string())
    } else if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_symlink() {
        ('l', fs::read_link(path)?.display().to_string())
    } else if kind.is_char_device() || kind.is_block_device() {
        ('n', metadata.rdev().to_string())
    } else {
        ('s', String::new())
    };
    Ok(Entry {
        kind,
        mode: metadata.permissions().mode() & 0o7777,
        bytes: if kind == 'd' { 0 } else { metadata.len() },
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let entry = |content: &str| Entry {
            kind: 'f',
            mode: 0o644,
            bytes: content.len() as u64,
            content: content.into(),
        };
        let files = list
            .iter()
            .map(|(path, content)| (PathBuf::from(path), entry(content)));
        files.collect()
    }

    #[test]
    fn what_differs_by_nature_is_told_apart_from_what_does_not() {
        let splice = files(&[
            ("etc/machine-id", "1"),
            ("etc/passwd", "same"),
            ("etc/fstab", "one"),
            ("var/log/journal/1/system.journal", "x"),
            ("var/logs", "y"),
        ]);
        let qemu = files(&[
            ("etc/machine-id", "2"),
            ("etc/passwd", "same"),
            ("etc/fstab", "two"),
        ]);
        let (by_nature, others) = differences(&splice, &qemu);
        assert_eq!(by_nature.len(), 2, "{by_nature:?}");
        assert_eq!(others.len(), 2, "{others:?}");
        assert!(others[0].starts_with("etc/fstab: splice-vmm f644 3 bytes one, QEMU f644"));
        assert!(others[1].starts_with("var/logs: ") && others[1].ends_with("QEMU none"));
    }

    #[test]
    fn a_path_is_its_type_mode_size_and_content() {
        let folder = std::env::temp_dir().join(format!("differential-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).expect("a folder");
        fs::write(folder.join("sub/file"), "text").expect("a file");
        std::os::unix::fs::symlink("file", folder.join("sub/link")).expect("a link");
        let mut files = Files::new();
        walk(&folder, &folder, &mut files).expect("all can be read");
        fs::remove_dir_all(&folder).expect("it is ours");
        let kinds: Vec<char> = files.values().map(|entry| entry.kind).collect();
        assert_eq!(kinds, ['d', 'f', 'l']);
        let file = &files[Path::new("sub/file")];
        let hash = blake3::hash(b"text").to_string();
        assert_eq!((file.bytes, &file.content), (4, &hash));
        assert_eq!(files[Path::new("sub/link")].content, "file");
    }
}
