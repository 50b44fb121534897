//! Backup of a datacenter and back: what is copied, what is mended, what goes on meanwhile.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datacenter::backup::manifest::MANIFEST;
use datacenter::backup::{BackupError, operation};
use datacenter::operations::Meter;
use datacenter::problem::describe;
use datacenter::upkeep::collect::collect_garbage;
use datacenter_api::CollectRequest;
use support::Bench;
use support::backup::{backup, files, folder, open, options, publish, restored};

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
    let passphrase = std::fs::read(bench.path("own/secrets/passphrase")).unwrap();
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
