//! Inspection of disks made here by the ordinary tools (mke2fs, sfdisk, mkfs.*), and of ruined ones.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::seeded;
use dedup_image::{
    FilesystemKind, Inspection, OpenOptions, PartitionTable, fuzz_inspect, fuzz_partition_table,
    inspect, open,
};
use rand::Rng;

const ROOT_UUID: &str = "11111111-2222-4333-8444-555555555555";
const BOOT_UUID: &str = "66666666-7777-4888-9999-aaaaaaaaaaaa";
const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str], input: Option<&str>) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}; these tests need e2fsprogs, fdisk, dosfstools, xfsprogs, btrfs-progs"));
    if let Some(input) = input {
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A kernel as far as its header goes.
fn fake_kernel(version: &str, len: usize) -> Vec<u8> {
    let mut kernel = vec![0x90; len];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x1000u16.to_le_bytes());
    let text = format!("{version} (builder@host) #1 SMP\0");
    kernel[0x1200..0x1200 + text.len()].copy_from_slice(text.as_bytes());
    kernel
}

fn fake_system(root: &Path) {
    write(
        root,
        "usr/lib/os-release",
        b"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n",
    );
    fs::create_dir_all(root.join("etc")).unwrap();
    symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
    write(root, "etc/hostname", b"desktop\n");
    write(
        root,
        "etc/fstab",
        format!("# made here\nUUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n").as_bytes(),
    );
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    fs::copy("/bin/true", root.join("usr/bin/env")).unwrap();
}

fn fake_kernels(boot: &Path) {
    for version in ["6.1.0-1", "6.1.0-10", "6.1.0-9"] {
        write(
            boot,
            &format!("vmlinuz-{version}"),
            &fake_kernel(version, 300_000),
        );
        write(
            boot,
            &format!("initrd.img-{version}"),
            format!("initrd of {version}").repeat(50_000).as_bytes(),
        );
    }
    write(boot, "vmlinuz-0-rescue-99", b"rescue");
}

fn make_ext4(tree: &Path, target: &Path, mib: u64, uuid: &str, more: &[&str]) {
    make_ext("ext4", tree, target, mib, uuid, more);
}

fn make_ext(kind: &str, tree: &Path, target: &Path, mib: u64, uuid: &str, more: &[&str]) {
    let (tree, target, size) = (
        tree.to_str().unwrap(),
        target.to_str().unwrap(),
        format!("{mib}M"),
    );
    let common = ["-q", "-t", kind, "-L", "system", "-U", uuid, "-d", tree];
    run("mke2fs", &[&common, more, &[target, &size]].concat(), None);
}

/// A disk of `mib` MiB with the table that `script` describes and file systems at MiB offsets.
fn make_disk(dir: &Path, mib: u64, script: &str, parts: &[(u64, &Path)]) -> PathBuf {
    let disk = dir.join("disk.raw");
    let file = File::create(&disk).unwrap();
    file.set_len(mib * MIB).unwrap();
    run(
        "sfdisk",
        &[
            "-q",
            "--no-reread",
            "--no-tell-kernel",
            disk.to_str().unwrap(),
        ],
        Some(script),
    );
    for (at, part) in parts {
        file.write_all_at(&fs::read(part).unwrap(), at * MIB)
            .unwrap();
    }
    disk
}

fn inspected(path: &Path) -> Inspection {
    let mut image = open(path, &OpenOptions::new()).unwrap();
    let inspection = inspect(image.as_mut());
    println!("{}", serde_json::to_string_pretty(&inspection).unwrap());
    // The summary survives storage; the artifacts are not part of it.
    let text = serde_json::to_string(&inspection).unwrap();
    let back: Inspection = serde_json::from_str(&text).unwrap();
    assert_eq!(
        back,
        Inspection {
            boot_artifacts: None,
            ..inspection.clone()
        }
    );
    inspection
}

fn assert_debian(inspection: &Inspection) {
    let os = inspection.os.as_ref().unwrap();
    assert_eq!(
        os.pretty_name.as_deref(),
        Some("Debian GNU/Linux 12 (bookworm)")
    );
    assert_eq!(
        (os.id.as_deref(), os.version_id.as_deref()),
        (Some("debian"), Some("12"))
    );
    assert_eq!(
        (os.hostname.as_deref(), os.architecture.as_deref()),
        (Some("desktop"), Some(std::env::consts::ARCH))
    );
}

fn assert_boots(inspection: &Inspection, version: &str, root_argument: &str) {
    let boot = inspection.boot_artifacts.as_ref().unwrap();
    assert_eq!(boot.kernel_path, format!("/boot/vmlinuz-{version}"));
    assert_eq!(boot.kernel, fake_kernel(version, 300_000));
    assert_eq!(boot.kernel_version.as_deref(), Some(version));
    assert_eq!(
        boot.initrd_path.as_deref(),
        Some(format!("/boot/initrd.img-{version}").as_str())
    );
    assert_eq!(
        boot.initrd.as_deref(),
        Some(format!("initrd of {version}").repeat(50_000).as_bytes())
    );
    assert_eq!(boot.root_argument, root_argument);
    assert_eq!(inspection.boot.as_ref(), Some(&boot.summary()));
}

#[test]
fn a_debian_disk_with_an_mbr_boots_its_newest_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fake_system(&tree);
    fake_kernels(&tree.join("boot"));
    let part = dir.path().join("part");
    make_ext4(&tree, &part, 24, ROOT_UUID, &[]);
    let script = "label: dos\nlabel-id: 0xcafe0001\nstart=2048, size=49152, type=83, bootable\n";
    let disk = make_disk(dir.path(), 26, script, &[(1, &part)]);
    let inspection = inspected(&disk);
    assert_eq!(inspection.partition_table, Some(PartitionTable::Mbr));
    assert_eq!(inspection.partitions.len(), 1);
    let partition = &inspection.partitions[0];
    assert_eq!(
        (
            partition.number,
            partition.offset_bytes,
            partition.len_bytes
        ),
        (1, MIB, 24 * MIB)
    );
    assert_eq!(partition.part_uuid.as_deref(), Some("cafe0001-01"));
    assert!(partition.bootable);
    let filesystem = partition.filesystem.as_ref().unwrap();
    assert_eq!(filesystem.kind, FilesystemKind::Ext4);
    assert_eq!(
        (filesystem.label.as_deref(), filesystem.uuid.as_deref()),
        (Some("system"), Some(ROOT_UUID))
    );
    assert_debian(&inspection);
    assert_boots(&inspection, "6.1.0-10", &format!("root=UUID={ROOT_UUID}"));
    assert_eq!(inspection.notes, Vec::<String>::new());

    // The same through qcow2.
    let qcow2 = dir.path().join("disk.qcow2");
    common::qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-c",
        disk.to_str().unwrap(),
        qcow2.to_str().unwrap(),
    ]);
    assert_eq!(inspected(&qcow2), inspection);
}

#[test]
fn a_link_chooses_the_kernel_and_the_boot_loader_gives_the_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fake_system(&tree);
    fake_kernels(&tree.join("boot"));
    symlink("boot/vmlinuz-6.1.0-9", tree.join("vmlinuz")).unwrap();
    write(
        &tree,
        "boot/grub/grub.cfg",
b"menuentry a {\n linux /boot/vmlinuz-6.1.0-10 root=/dev/sda1\n}\n\
             menuentry b {\n linux /boot/vmlinuz-6.1.0-9 root=PARTUUID=cafe0001-01 ro quiet $extra\n}\n",
    );
    let part = dir.path().join("part");
    make_ext4(&tree, &part, 24, ROOT_UUID, &[]);
    let script = "label: dos\nlabel-id: 0xcafe0001\nstart=2048, size=49152, type=83\n";
    let inspection = inspected(&make_disk(dir.path(), 26, script, &[(1, &part)]));
    assert_boots(&inspection, "6.1.0-9", "root=PARTUUID=cafe0001-01");
    let boot = inspection.boot.unwrap();
    assert_eq!(
        boot.cmdline_found.as_deref(),
        Some("root=PARTUUID=cafe0001-01 ro quiet")
    );
}

#[test]
fn a_gpt_disk_with_boot_on_a_partition_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for in_fstab in [true, false] {
        let (tree, boot) = (
            dir.path().join(format!("tree{in_fstab}")),
            dir.path().join(format!("boot{in_fstab}")),
        );
        fake_system(&tree);
        fs::create_dir_all(tree.join("boot")).unwrap();
        symlink("boot/vmlinuz-6.1.0-10", tree.join("vmlinuz")).unwrap();
        let mut fstab = format!("UUID={ROOT_UUID} / ext4 defaults 0 1\n");
        if in_fstab {
            fstab += &format!("UUID={BOOT_UUID} /boot ext4 defaults 0 2\n");
        }
        write(&tree, "etc/fstab", fstab.as_bytes());
        fake_kernels(&boot);
        write(
            &boot,
            "extlinux/extlinux.conf",
            b"DEFAULT l\nLABEL l\n  LINUX /vmlinuz-6.1.0-10\n  APPEND root=/dev/sda3 ro console=ttyS0\n",
        );
        let (root_part, boot_part) = (dir.path().join("root"), dir.path().join("bootpart"));
        let _ = fs::remove_file(&root_part);
        let _ = fs::remove_file(&boot_part);
        make_ext4(&tree, &root_part, 16, ROOT_UUID, &["-b", "4096"]);
        make_ext4(&boot, &boot_part, 16, BOOT_UUID, &["-b", "1024"]);
        let script = "label: gpt\nlabel-id: 0F6A1E0B-52D4-4C39-9B0C-7E5D3C1A8842\n\
            start=2048, size=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
            start=4096, size=32768, type=L, name=boot\n\
            start=36864, size=32768, type=L, uuid=6E4D2C1B-3A59-4F70-8C66-1B2A9D0E7F35, name=root\n";
        let disk = make_disk(dir.path(), 36, script, &[(2, &boot_part), (18, &root_part)]);
        let inspection = inspected(&disk);
        assert_eq!(inspection.partition_table, Some(PartitionTable::Gpt));
        assert_eq!(inspection.partitions.len(), 3);
        assert_eq!(
            inspection.partitions[0].type_id,
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
        );
        assert_eq!(inspection.partitions[1].name.as_deref(), Some("boot"));
        assert_eq!(
            inspection.partitions[2].part_uuid.as_deref(),
            Some("6e4d2c1b-3a59-4f70-8c66-1b2a9d0e7f35")
        );
        assert_debian(&inspection);
        assert_boots(&inspection, "6.1.0-10", &format!("root=UUID={ROOT_UUID}"));
        assert!(
            inspection
                .boot
                .unwrap()
                .cmdline_found
                .unwrap()
                .contains("console=ttyS0")
        );

        // The backup table stands in for a bad primary one, and is not used unless it is right itself.
        let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
        file.write_all_at(&[0xff], 512 + 60).unwrap();
        let inspection = inspected(&disk);
        assert_eq!(inspection.partitions.len(), 3);
        assert!(
            inspection.notes.iter().any(|n| n.contains("checksum")),
            "{:?}",
            inspection.notes
        );
        assert_boots(&inspection, "6.1.0-10", &format!("root=UUID={ROOT_UUID}"));
        file.write_all_at(&[0xff], 36 * MIB - 512 + 60).unwrap();
        let inspection = inspected(&disk);
        assert_eq!(
            (inspection.partition_table, inspection.partitions.len()),
            (None, 0)
        );
        assert!(inspection.boot.is_none());
    }
}

#[test]
fn logical_partitions_and_other_file_systems_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let blank = |name: &str, mib: u64| {
        File::create(path(name))
            .unwrap()
            .set_len(mib * MIB)
            .unwrap();
        path(name).to_str().unwrap().to_owned()
    };
    run(
        "mkfs.vfat",
        &["-n", "EFI", "-i", "1234abcd", &blank("fat", 8)],
        None,
    );
    run(
        "mkfs.xfs",
        &[
            "-q",
            "-L",
            "data",
            "-m",
            &format!("uuid={BOOT_UUID}"),
            &blank("xfs", 320),
        ],
        None,
    );
    run(
        "mkfs.btrfs",
        &["-q", "-L", "tree", "-U", ROOT_UUID, &blank("btrfs", 128)],
        None,
    );
    run(
        "mkswap",
        &["-q", "-L", "swp", "-U", BOOT_UUID, &blank("swap", 8)],
        None,
    );
    run(
        "mke2fs",
        &["-q", "-t", "ext2", "-L", "two", &blank("ext2", 8)],
        None,
    );
    run(
        "mke2fs",
        &["-q", "-t", "ext3", "-L", "three", &blank("ext3", 8)],
        None,
    );
    let script = "label: dos\nlabel-id: 0xcafe0002\n\
        start=1MiB, size=8MiB, type=ef\nstart=9MiB, size=320MiB, type=83\nstart=330MiB, size=200MiB, type=5\n\
        start=331MiB, size=128MiB, type=83\nstart=460MiB, size=8MiB, type=82\nstart=470MiB, size=8MiB, type=83\n\
        start=480MiB, size=8MiB, type=83\n";
    let parts: &[(u64, &str)] = &[
        (1, "fat"),
        (9, "xfs"),
        (331, "btrfs"),
        (460, "swap"),
        (470, "ext2"),
        (480, "ext3"),
    ];
    let parts: Vec<(u64, PathBuf)> = parts.iter().map(|(at, name)| (*at, path(name))).collect();
    let parts: Vec<(u64, &Path)> = parts
        .iter()
        .map(|(at, path)| (*at, path.as_path()))
        .collect();
    let disk = make_disk(dir.path(), 540, script, &parts);
    let inspection = inspected(&disk);
    let seen: Vec<_> = inspection
        .partitions
        .iter()
        .map(|p| {
            let f = p.filesystem.as_ref().unwrap();
            (
                p.number,
                f.kind,
                f.label.as_deref().unwrap(),
                f.uuid.as_deref().unwrap(),
            )
        })
        .collect();
    assert_eq!(seen[0], (1, FilesystemKind::Fat, "EFI", "1234-ABCD"));
    assert_eq!(seen[1], (2, FilesystemKind::Xfs, "data", BOOT_UUID));
    assert_eq!(seen[2], (5, FilesystemKind::Btrfs, "tree", ROOT_UUID));
    assert_eq!(seen[3], (6, FilesystemKind::Swap, "swp", BOOT_UUID));
    assert_eq!(
        (seen[4].0, seen[4].1, seen[4].2),
        (7, FilesystemKind::Ext2, "two")
    );
    assert_eq!(
        (seen[5].0, seen[5].1, seen[5].2),
        (8, FilesystemKind::Ext3, "three")
    );
    assert!(inspection.notes.iter().any(|note| note.contains("XFS")));

    // A loop in the chain of logical partitions ends.
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&disk)
        .unwrap();
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 330 * MIB).unwrap();
    let second = u64::from(u32::from_le_bytes(sector[470..474].try_into().unwrap()));
    let at = 330 * MIB + second * 512;
    file.read_exact_at(&mut sector, at).unwrap();
    sector[470..474].copy_from_slice(&(second as u32).to_le_bytes());
    file.write_all_at(&sector, at).unwrap();
    let inspection = inspected(&disk);
    assert!(
        inspection
            .notes
            .iter()
            .any(|note| note.contains("does not end")),
        "{:?}",
        inspection.notes
    );
}

#[test]
fn a_file_system_on_the_whole_disk_and_an_empty_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fake_system(&tree);
    fake_kernels(&tree.join("boot"));
    let disk = dir.path().join("whole");
    make_ext4(&tree, &disk, 24, ROOT_UUID, &[]);
    let inspection = inspected(&disk);
    assert_eq!(
        (inspection.partition_table, inspection.partitions[0].number),
        (None, 0)
    );
    assert_boots(&inspection, "6.1.0-10", &format!("root=UUID={ROOT_UUID}"));

    File::create(&disk).unwrap().set_len(MIB).unwrap();
    let inspection = inspected(&disk);
    assert!(inspection.partitions.is_empty() && inspection.os.is_none());
    assert_eq!(inspection.notes.len(), 1);
}

#[test]
fn an_unclean_file_system_is_read_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fake_system(&tree);
    fake_kernels(&tree.join("boot"));
    let disk = dir.path().join("whole");
    make_ext4(&tree, &disk, 24, ROOT_UUID, &["-O", "metadata_csum"]);
    run(
        "debugfs",
        &[
            "-w",
            "-R",
            "feature +needs_recovery",
            disk.to_str().unwrap(),
        ],
        None,
    );
    let inspection = inspected(&disk);
    assert!(
        inspection
            .notes
            .iter()
            .any(|note| note.contains("not unmounted cleanly")),
        "{:?}",
        inspection.notes
    );
    assert_boots(&inspection, "6.1.0-10", &format!("root=UUID={ROOT_UUID}"));
}

#[test]
fn mutated_file_systems_and_tables_never_fail_inspection() {
    let (_, mut rng) = seeded();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fake_system(&tree);
    write(
        &tree,
        "boot/vmlinuz-6.1.0-1",
        &fake_kernel("6.1.0-1", 20_000),
    );
    write(&tree, "boot/initrd.img-6.1.0-1", &[1; 20_000]);
    for number in 0..200 {
        write(&tree, &format!("boot/file-with-a-long-name-{number}"), b"x");
    }
    let mut corpus = Vec::new();
    for (kind, more) in [
        ("ext4", &["-O", "^metadata_csum"][..]),
        ("ext2", &[]),
        ("ext4", &[]),
    ] {
        let part = dir.path().join("part");
        let _ = fs::remove_file(&part);
        let more = [&["-b", "1024", "-N", "400"], more].concat();
        make_ext(kind, &tree, &part, 8, ROOT_UUID, &more);
        corpus.push(fs::read(part).unwrap());
    }
    let script = "label: gpt\nstart=2048, size=2048, type=L\nstart=4096, size=2048, type=L\n";
    let tables = fs::read(make_disk(dir.path(), 4, script, &[])).unwrap();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 0..3000 {
        let one = Instant::now();
        if round % 3 == 0 {
            let mut bytes = tables.clone();
            mutate(&mut bytes, 2048, &mut rng);
            fuzz_partition_table(&bytes);
        } else {
            let mut bytes = corpus[round % corpus.len()].clone();
            mutate(&mut bytes, 200_000, &mut rng);
            fuzz_inspect(&bytes);
        }
        slowest = slowest.max(one.elapsed());
    }
    println!(
        "3000 disks in {:?}, the slowest took {slowest:?}",
        begun.elapsed()
    );
    assert!(slowest < Duration::from_secs(9), "one took {slowest:?}");
}

/// Changes bytes that are there (most of a file system is empty), to anything or to edges.
fn mutate(bytes: &mut [u8], head: usize, rng: &mut rand::rngs::StdRng) {
    for _ in 0..rng.random_range(1..12) {
        let from = rng.random_range(0..head.min(bytes.len()));
        let at = bytes[from..]
            .iter()
            .position(|&b| b != 0)
            .map_or(from, |skip| from + skip);
        match rng.random_range(0..4) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
            _ => bytes[at..]
                .iter_mut()
                .take(4)
                .for_each(|b| *b = rng.random()),
        }
    }
}
