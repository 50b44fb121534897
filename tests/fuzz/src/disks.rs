//! Disk images for targets and seeds, and which panics of a file system reader count.

use std::fs;
use std::panic;
use std::path::Path;
use std::process::{Command, Stdio};

/// Lets a panic of the `ext4-view` crate pass. It runs on a thread of its own, where a panic is an answer like any other
/// (`dedup/image/src/inspect/ext4.rs`); a panic of our code, on that thread too, still ends the fuzzer.
pub fn contain_reader_panics() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let theirs = panic
            .location()
            .is_some_and(|at| at.file().contains("/ext4-view-"));
        let named = std::thread::current().name() == Some("image-inspect");
        if !(theirs && named) {
            abort(panic);
        }
    }));
}

/// Runs a program whose work is a file; `None`, with a line that says so, where there is no such program.
fn made_by(program: &str, arguments: &[&str], input: &str, target: &Path) -> Option<Vec<u8>> {
    let stdin = target.with_extension("stdin");
    fs::write(&stdin, input).expect("a scratch directory can be written");
    let run = Command::new(program)
        .args(arguments)
        .arg(target)
        .env(
            "PATH",
            format!(
                "{}:/usr/sbin:/sbin",
                std::env::var("PATH").unwrap_or_default()
            ),
        )
        .stdin(fs::File::open(&stdin).expect("just written"))
        .stdout(Stdio::null())
        .output();
    match run {
        Ok(run) if run.status.success() => fs::read(target).ok(),
        Ok(run) => panic!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&run.stderr)
        ),
        Err(error) => {
            println!("{program}: {error}; its seeds are left out");
            None
        }
    }
}

/// Small qcow2 images of every kind that is read, made in `scratch`.
pub fn qcow2(scratch: &Path) -> Vec<(String, Vec<u8>)> {
    let raw = scratch.join("disk.raw");
    let mut disk = vec![0u8; 96 << 10];
    disk[..20_000].copy_from_slice(&b"a text that packs. ".repeat(1053)[..20_000]);
    blake3::Hasher::new()
        .finalize_xof()
        .fill(&mut disk[40_960..49_152]);
    fs::write(&raw, disk).expect("a scratch directory can be written");
    let raw = raw.to_str().expect("a plain path");
    let kinds: [(&str, &[&str]); 6] = [
        ("v2", &["-o", "compat=0.10,cluster_size=512"]),
        ("v3", &["-o", "compat=1.1,cluster_size=4096"]),
        (
            "extended-l2",
            &["-o", "compat=1.1,cluster_size=16k,extended_l2=on"],
        ),
        ("deflate", &["-c", "-o", "compat=1.1,cluster_size=4096"]),
        (
            "zstd",
            &[
                "-c",
                "-o",
                "compat=1.1,cluster_size=4096,compression_type=zstd",
            ],
        ),
        (
            "refcount-64",
            &["-o", "compat=1.1,cluster_size=512,refcount_bits=64"],
        ),
    ];
    let made = kinds.into_iter().filter_map(|(name, options)| {
        let arguments = [&["convert", "-f", "raw", "-O", "qcow2"], options, &[raw]].concat();
        Some((
            name.to_owned(),
            made_by("qemu-img", &arguments, "", &scratch.join("disk.qcow2"))?,
        ))
    });
    made.collect()
}

/// Disks of 64 KiB with each kind of partition table.
pub fn partition_tables(scratch: &Path) -> Vec<(String, Vec<u8>)> {
    let tables = [
        (
            "mbr",
            "label: dos\nstart=2, size=20, type=83, bootable\nstart=30, size=60, type=5\nstart=32, size=20, type=82\n",
        ),
        (
            "gpt",
            "label: gpt\nstart=40, size=16, type=U, name=efi\nstart=60, size=20, type=L, name=root\n",
        ),
    ];
    let target = scratch.join("table.raw");
    let made = tables.into_iter().filter_map(|(name, script)| {
        fs::write(&target, vec![0; 64 << 10]).expect("a scratch directory can be written");
        Some((
            name.to_owned(),
            made_by("sfdisk", &["-q"], script, &target)?,
        ))
    });
    made.collect()
}

/// File systems of 128 KiB with a small Linux system in each.
pub fn file_systems(scratch: &Path) -> Vec<(String, Vec<u8>)> {
    let tree = scratch.join("tree");
    let write = |path: &str, bytes: &[u8]| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("scratch");
        fs::write(path, bytes).expect("a scratch directory can be written");
    };
    let mut kernel = vec![0x90; 6000];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x1000u16.to_le_bytes());
    kernel[0x1200..0x1210].copy_from_slice(b"6.1.0-1 (x) #1\0\0");
    write("boot/vmlinuz-6.1.0-1", &kernel);
    write("boot/initrd.img-6.1.0-1", &[1; 3000]);
    write(
        "boot/grub/grub.cfg",
        b"menuentry 'x' {\n\tlinux /boot/vmlinuz-6.1.0-1 root=UUID=9 ro quiet\n\tinitrd /boot/initrd.img-6.1.0-1\n}\n",
    );
    write(
        "usr/lib/os-release",
        b"PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n",
    );
    write("etc/fstab", b"UUID=1 / ext4 defaults 0 1\n");
    write("etc/hostname", b"desk\n");
    let link = tree.join("etc/os-release");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("../usr/lib/os-release", link).expect("scratch");
    }
    let tree = tree.to_str().expect("a plain path");
    let kinds: [(&str, &[&str]); 4] = [
        ("ext2", &["-t", "ext2"]),
        ("ext4", &["-t", "ext4", "-O", "^has_journal"]),
        (
            "ext4-no-checksums",
            &["-t", "ext4", "-O", "^has_journal,^metadata_csum,^64bit"],
        ),
        (
            "ext4-inline",
            &[
                "-t",
                "ext4",
                "-O",
                "^has_journal,^metadata_csum,inline_data",
                "-I",
                "256",
            ],
        ),
    ];
    let target = scratch.join("part");
    let made = kinds.into_iter().filter_map(|(name, options)| {
        fs::write(&target, vec![0; 128 << 10]).expect("a scratch directory can be written");
        let rest = ["-q", "-F", "-b", "1024", "-N", "32", "-m", "0", "-d", tree];
        Some((
            name.to_owned(),
            made_by("mke2fs", &[options, &rest].concat(), "", &target)?,
        ))
    });
    made.collect()
}
