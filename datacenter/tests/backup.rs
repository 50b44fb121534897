//! Backup and restore of a datacenter: what is copied, what is mended, what is refused and with which way out.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datacenter::backup::manifest::{MANIFEST, Unproven};
use datacenter::backup::{BackupError, operation};
use datacenter::operations::Meter;
use datacenter::problem::describe;
use datacenter::upkeep::collect::collect_garbage;
use datacenter_api::{CollectRequest, Problem};
use dedup_protocol::trust::SigningKey;
use support::backup::{backup, files, folder, open, options, publish, restored};
use support::{Bench, request, sparse_disk};

#[test]
fn a_second_backup_copies_what_is_new_and_drops_what_is_old() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    let first = backup(&bench, &place).unwrap();
    assert_eq!((first.number, first.packs, first.packs_copied), (1, 1, 1));
    for file in files(&place) {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    let same = backup(&bench, &place).unwrap();
    assert_eq!((same.number, same.packs, same.packs_copied), (2, 1, 0));
    publish(&bench, "deb", 2);
    let third = backup(&bench, &place).unwrap();
    assert_eq!((third.number, third.packs, third.packs_copied), (3, 2, 1));
    let names: Vec<_> = files(&place)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(
        names,
        [
            MANIFEST,
            "catalog.3",
            "config.3",
            "0000000000000001.pack",
            "0000000000000002.pack",
            "realm.3",
            "secrets.3"
        ]
    );
    // The keys are sealed, and neither what opens them nor the root key is there.
    let passphrase = std::fs::read(bench.path("secrets/passphrase")).unwrap();
    for file in files(&place) {
        let bytes = std::fs::read(&file).unwrap();
        let secret = &passphrase[..32];
        assert!(
            !bytes.windows(32).any(|w| w == secret),
            "{}",
            file.display()
        );
        assert!(!bytes.windows(11).any(|w| w == b"PRIVATE KEY"));
    }
}

#[test]
fn damage_in_the_backup_is_found_by_verify_and_mended() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &place).unwrap();
    let pack = place.join("packs/0000000000000001.pack");
    let good = std::fs::read(&pack).unwrap();
    let mut bent = good.clone();
    bent[200_000] ^= 1;
    std::fs::write(&pack, &bent).unwrap();
    let verified = operation::run(&bench.dc, &folder(&place), true, &Meter::default()).unwrap();
    assert_eq!(verified.packs_copied, 1);
    assert_eq!(std::fs::read(&pack).unwrap(), good);
    // A short one is seen without reading it.
    std::fs::write(&pack, &good[..1000]).unwrap();
    assert_eq!(backup(&bench, &place).unwrap().packs_copied, 1);
    assert_eq!(std::fs::read(&pack).unwrap(), good);
}

#[test]
fn a_cancelled_backup_leaves_the_one_before_and_the_next_goes_on() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &place).unwrap();
    let before = std::fs::read(place.join(MANIFEST)).unwrap();
    publish(&bench, "deb", 2);
    let meter = Meter::default();
    meter.cancel();
    let cancelled = operation::run(&bench.dc, &folder(&place), false, &meter);
    assert!(matches!(cancelled, Err(BackupError::Cancelled)));
    assert_eq!(std::fs::read(place.join(MANIFEST)).unwrap(), before);
    restored(&options(&bench, &place, &bench.path("first"))).unwrap();

    // A pack that a dead backup left is proven and taken over; one that is not the store's is not.
    bench.dc.store().freeze_packs().list().unwrap();
    let store = bench.path("store/packs/0000000000000002.pack");
    std::fs::copy(&store, place.join("packs/0000000000000002.pack")).unwrap();
    assert_eq!(backup(&bench, &place).unwrap().packs_copied, 0);
    publish(&bench, "deb", 3);
    std::fs::copy(&store, place.join("packs/0000000000000003.pack")).unwrap();
    assert_eq!(backup(&bench, &place).unwrap().packs_copied, 1);
    restored(&options(&bench, &place, &bench.path("second"))).unwrap();
    let again = open(&bench.path("second"));
    for number in 1..=3 {
        let name = format!("deb@{number}");
        let found = again.dc.verify_version(&name, &Meter::default()).unwrap();
        assert_eq!(found.damaged_count, 0, "{name}");
    }
}

#[test]
fn publishes_and_backups_at_once_give_whole_backups() {
    let bench = Bench::on_rocks();
    bench.dc.create_image("deb", None).unwrap();
    let places: Vec<_> = (0..6).map(|n| bench.path(&format!("place-{n}"))).collect();
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| (1..=8).for_each(|seed| publish(&bench, "deb", seed)));
        for place in &places {
            backup(&bench, place).unwrap();
        }
        publishing.join().unwrap();
    });
    for (n, place) in places.iter().enumerate() {
        let data = bench.path(&format!("data-{n}"));
        // It refuses a catalog whose versions are not whole.
        restored(&options(&bench, place, &data)).unwrap();
    }
}

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

/// What a collection took away at the datacenter goes from the backup too, with the next one; what it moved comes.
#[test]
fn collections_between_backups_are_followed() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    for seed in 1..=3 {
        publish(&bench, "deb", seed);
        backup(&bench, &place).unwrap();
    }
    let full = backup(&bench, &place).unwrap();
    for version in ["deb@1", "deb@2"] {
        bench.dc.delete_version(version).unwrap();
    }
    for hours in [8 * 24, 25] {
        bench.clock.advance(hours * 3600);
        collect_garbage(&bench.dc, &CollectRequest::default(), &Meter::default()).unwrap();
    }
    let less = backup(&bench, &place).unwrap();
    assert!(
        less.bytes < full.bytes && less.packs < full.packs,
        "{less:?}"
    );
    let packs = files(&place)
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "pack"))
        .count();
    assert_eq!(packs as u64, less.packs);
    restored(&options(&bench, &place, &bench.path("data"))).unwrap();
    let again = open(&bench.path("data"));
    let found = again.dc.verify_version("deb@3", &Meter::default()).unwrap();
    assert_eq!(found.damaged_count, 0);
}

#[test]
fn backups_beside_collections_and_publishes_are_whole() {
    let bench = Bench::on_rocks();
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    let places: Vec<_> = (0..6).map(|n| bench.path(&format!("place-{n}"))).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // So that what one collection condemns the next erases.
                bench.clock.advance(9 * 24 * 3600);
                collect_garbage(&bench.dc, &CollectRequest::default(), &Meter::default()).unwrap();
                // Whoever waits for the packs gets a turn.
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let publishing = scope.spawn(|| {
            for seed in 2..=8 {
                publish(&bench, "deb", seed);
                let before = format!("deb@{}", seed - 1);
                bench.dc.delete_version(&before).unwrap();
            }
        });
        let backups: Vec<_> = places.iter().map(|place| backup(&bench, place)).collect();
        let published = publishing.join();
        done.store(true, Ordering::Relaxed);
        collecting.join().unwrap();
        published.unwrap();
        backups.into_iter().for_each(|made| drop(made.unwrap()));
    });
    for (n, place) in places.iter().enumerate() {
        let data = bench.path(&format!("data-{n}"));
        // It refuses a catalog whose versions are not whole.
        restored(&options(&bench, place, &data)).unwrap();
    }
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

#[test]
fn a_store_that_lost_content_is_backed_up_and_the_loss_is_told() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    bench.dc.store().freeze_packs().list().unwrap();
    publish(&bench, "deb", 2);
    let pack = bench.path("store/packs/0000000000000001.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[150_000] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    let told = backup(&bench, &place).unwrap();
    assert!(told.damaged > 0);
    let mut wanted = options(&bench, &place, &bench.path("data"));
    let refused = describe(restored(&wanted).unwrap_err().as_ref());
    assert!(
        refused.contains("deb@1") && refused.contains("--accept-damage"),
        "{refused}"
    );
    assert!(!refused.contains("deb@2"), "{refused}");
    wanted.accept_damage = true;
    let lines = restored(&wanted).unwrap().join("\n");
    assert!(lines.contains("deb@1: publish"), "{lines}");
}
