//! Folders that are refused, for a backup or for a restore, with what is wrong and the way out.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use datacenter::backup::folder::Folder;
use datacenter::backup::manifest::{MANIFEST, Unproven};
use datacenter::backup::{BackupError, operation};
use datacenter::operations::Meter;
use datacenter::problem::describe;
use datacenter_api::Problem;
use dedup_protocol::trust::SigningKey;
use dedup_store::disk::{Disk, DiskFile, HostDisk, Open};
use support::backup::{backup, files, folder, open, options, publish, restored};
use support::{Bench, request, sparse_disk};

#[test]
fn foreign_and_occupied_folders_are_refused_with_the_way_out() {
    let (bench, other) = (Bench::on_rocks(), Bench::on_rocks());
    let place = bench.path("elsewhere");
    backup(&bench, &place).unwrap();
    let help = |error: BackupError| {
        let problem: Problem = (&error).into();
        format!("{} {}", problem.message, problem.help.unwrap())
    };
    let told = help(backup(&other, &place).unwrap_err());
    assert!(told.contains(&bench.dc.realm().to_string()), "{told}");
    assert!(told.contains("another folder"), "{told}");
    let home = bench.path("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("letters.txt"), "dear all").unwrap();
    let told = help(backup(&bench, &home).unwrap_err());
    assert!(told.contains("letters.txt"), "{told}");
    let manifest = place.join(MANIFEST);
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"test\"", "\"tent\"")).unwrap();
    let told = help(backup(&bench, &place).unwrap_err());
    assert!(told.contains("damaged or was changed"), "{told}");
}

/// Each bent folder is refused, says what is wrong, and leaves no realm behind.
#[test]
fn hostile_backups_are_refused() {
    let (bench, other) = (Bench::on_rocks(), Bench::on_rocks());
    let place = bench.path("elsewhere");
    for bench in [&bench, &other] {
        bench.dc.create_image("deb", None).unwrap();
        publish(bench, "deb", 1);
        backup(bench, &bench.path("elsewhere")).unwrap();
    }
    let foreign = other.path("elsewhere");
    let pack = "packs/0000000000000001.pack";
    let cut = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(path, &bytes).unwrap();
    };
    let rewrite = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replace("\"history\": 0", "\"history\": 7")).unwrap();
    };
    type Bend<'a> = Box<dyn Fn(&Path) + 'a>;
    let bends: [(&str, Bend<'_>); 15] = [
        (
            "holds no backup",
            Box::new(|dir: &Path| std::fs::remove_file(dir.join(MANIFEST)).unwrap()),
        ),
        (MANIFEST, Box::new(|dir: &Path| cut(&dir.join(MANIFEST)))),
        (
            MANIFEST,
            Box::new(|dir: &Path| rewrite(&dir.join(MANIFEST))),
        ),
        (
            "0000000000000001.pack is missing",
            Box::new(|dir: &Path| std::fs::remove_file(dir.join(pack)).unwrap()),
        ),
        (
            "0000000000000001.pack",
            Box::new(|dir: &Path| cut(&dir.join(pack))),
        ),
        (
            "0000000000000001.pack",
            Box::new(|dir: &Path| flip(&dir.join(pack))),
        ),
        (
            "catalog.1 is missing",
            Box::new(|dir: &Path| std::fs::remove_file(dir.join("catalog.1")).unwrap()),
        ),
        (
            "catalog.1",
            Box::new(|dir: &Path| cut(&dir.join("catalog.1"))),
        ),
        (
            "catalog.1",
            Box::new(|dir: &Path| flip(&dir.join("catalog.1"))),
        ),
        ("realm.1", Box::new(|dir: &Path| flip(&dir.join("realm.1")))),
        (
            "secrets.1",
            Box::new(|dir: &Path| cut(&dir.join("secrets.1"))),
        ),
        (
            "config.1",
            Box::new(|dir: &Path| std::fs::write(dir.join("config.1"), "link = 1").unwrap()),
        ),
        // Parts of another realm's backup among ours.
        (
            "0000000000000001.pack",
            Box::new(|dir: &Path| copy(&foreign.join(pack), &dir.join(pack))),
        ),
        (
            "realm.1",
            Box::new(|dir: &Path| copy(&foreign.join(MANIFEST), &dir.join(MANIFEST))),
        ),
        (
            "secrets.1",
            Box::new(|dir: &Path| copy(&foreign.join("secrets.1"), &dir.join("secrets.1"))),
        ),
    ];
    for (n, (word, bend)) in bends.iter().enumerate() {
        let bent = bench.path(&format!("bent-{n}"));
        copy_tree(&place, &bent);
        bend(&bent);
        let data = bench.path(&format!("data-{n}"));
        let refused = restored(&options(&bench, &bent, &data)).unwrap_err();
        let told = describe(refused.as_ref());
        assert!(told.contains(word), "{n}: {told}");
        assert!(!data.join("realm.json").exists(), "{n}");
    }
    // Nobody without the passphrase, and nobody else's backup with it.
    let mut wrong = options(&bench, &foreign, &bench.path("data-x"));
    let told = describe(restored(&wrong).unwrap_err().as_ref());
    assert!(told.contains("passphrase does not fit"), "{told}");
    wrong.folder = bench.path("nowhere");
    let told = describe(restored(&wrong).unwrap_err().as_ref());
    assert!(told.contains("is no folder"), "{told}");
    assert!(!wrong.folder.exists());
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("packs")).unwrap();
    for file in files(from) {
        std::fs::copy(&file, to.join(file.strip_prefix(from).unwrap())).unwrap();
    }
}

/// Whoever can write to the backup cannot sign what he made of it.
#[test]
fn a_manifest_signed_by_another_key_is_refused() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    backup(&bench, &place).unwrap();
    let bytes = std::fs::read(place.join(MANIFEST)).unwrap();
    let mut forged = Unproven::parse(&bytes).unwrap().claims().clone();
    forged.history = 7;
    let (key, _) = SigningKey::generate();
    std::fs::write(place.join(MANIFEST), forged.encode(&key)).unwrap();
    let refused = restored(&options(&bench, &place, &bench.path("data"))).unwrap_err();
    let told = describe(refused.as_ref());
    assert!(told.contains("was not signed by this realm"), "{told}");
    assert!(!bench.path("data").exists());
}

#[test]
fn only_an_empty_folder_or_its_own_unfinished_restore_is_written_to() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &place).unwrap();
    let data = bench.path("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("notes"), "mine").unwrap();
    let wanted = options(&bench, &place, &data);
    let told = describe(restored(&wanted).unwrap_err().as_ref());
    assert!(
        told.contains("is not empty") && told.contains("notes"),
        "{told}"
    );
    assert_eq!(std::fs::read(data.join("notes")).unwrap(), b"mine");
    std::fs::remove_file(data.join("notes")).unwrap();

    // Interrupted for a branch that is not there, it goes on with what it has.
    let mut unknown = wanted.clone();
    unknown.revoke = vec!["nobody".into()];
    let told = describe(restored(&unknown).unwrap_err().as_ref());
    assert!(told.contains("nobody"), "{told}");
    publish(&bench, "deb", 2);
    let newer = bench.path("newer");
    backup(&bench, &newer).unwrap();
    let told = describe(
        restored(&options(&bench, &newer, &data))
            .unwrap_err()
            .as_ref(),
    );
    assert!(told.contains("another backup"), "{told}");
    restored(&wanted).unwrap();
    assert!(!data.join("restoring").exists());
    let told = describe(restored(&wanted).unwrap_err().as_ref());
    assert!(told.contains("holds realm"), "{told}");
    let mode = |name: &str| data.join(name).metadata().unwrap().permissions().mode() & 0o777;
    for secret in ["secrets/realm.sealed", "secrets/passphrase", "cli.toml"] {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    assert!(!data.join("root.key").exists());
    open(&data);
}

#[test]
fn a_former_life_does_not_overwrite_the_backup_of_a_later_one() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    backup(&bench, &place).unwrap();
    restored(&options(&bench, &place, &bench.path("data"))).unwrap();
    let later = open(&bench.path("data"));
    operation::run(&later.dc, &folder(&place), false, &Meter::default()).unwrap();
    let refused = backup(&bench, &place).unwrap_err();
    assert!(
        matches!(refused, BackupError::Superseded { .. }),
        "{refused}"
    );
}

#[test]
fn a_datacenter_that_went_another_way_does_not_overwrite_where_it_would_have_gone() {
    let bench = Bench::on_rocks();
    let (older, newer) = (bench.path("older"), bench.path("newer"));
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &older).unwrap();
    publish(&bench, "deb", 2);
    backup(&bench, &newer).unwrap();
    restored(&options(&bench, &older, &bench.path("data"))).unwrap();
    let other = open(&bench.path("data"));
    let disk = bench.path("other.raw");
    sparse_disk(&disk, 1 << 20, &[(0, 65_536)], 99);
    let turn = datacenter::publish::reserve(&other.dc, "deb").unwrap();
    datacenter::publish::publish(&turn, &request("deb", &disk), &Meter::default()).unwrap();
    let before = files(&newer);
    let refused = operation::run(&other.dc, &folder(&newer), false, &Meter::default());
    assert!(matches!(refused, Err(BackupError::Diverged { .. })));
    assert!(before.iter().all(|file| file.exists()));
    restored(&options(&bench, &newer, &bench.path("still-whole"))).unwrap();
}

/// A disk that removes nothing, or gives no answer about the manifest.
struct Failing {
    disk: HostDisk,
    removes: bool,
    answers: bool,
}

impl Disk for Failing {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(name, how)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.removes && self.disk.open(name, Open::Read).is_ok() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)?;
        // It is there, and nobody knows.
        if to == MANIFEST && !self.answers {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.disk.available_bytes()
    }
}

#[test]
fn a_failure_behind_the_manifest_does_not_say_that_the_backup_before_is_as_it_was() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &place).unwrap();
    for (removes, answers) in [(false, true), (true, false)] {
        let disk = Failing {
            disk: HostDisk::new(&place).unwrap(),
            removes,
            answers,
        };
        let failing = Folder::new(Arc::new(disk), place.display().to_string());
        let failed = operation::run(&bench.dc, &failing, false, &Meter::default()).unwrap_err();
        assert!(
            matches!(
                (&failed, answers),
                (BackupError::Unswept(_), true) | (BackupError::Replacing(_), false)
            ),
            "{failed:?}"
        );
        let help = Problem::from(&failed).help.unwrap();
        assert!(!help.contains("before is as it was"), "{help}");
        let data = bench.path(if answers { "first" } else { "second" });
        restored(&options(&bench, &place, &data)).unwrap();
        backup(&bench, &place).unwrap();
    }
}
