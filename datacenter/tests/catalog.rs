//! The catalog as its users see it: whole transactions or nothing, rows that stay readable, scans that see own changes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datacenter::catalog::people;
use datacenter::catalog::rows::{self, ImageRow, NumberKey, OperationRow, Row, RowKey};
use datacenter::catalog::{Catalog, CatalogError};
use dedup::{BranchId, ChunkerParams, RealmId, VersionId};
use dedup_protocol::policy::{Hours, Policy};
use dedup_protocol::profile::{BootScore, Entries, Entry, Place};
use dedup_protocol::records::{MachineType, StartMode};
use dedup_store::kv::{Batch, Durability, Kv, KvError, MemKv};
use proptest::prelude::*;

const REALM: RealmId = RealmId([7; 16]);

fn image(latest: u32) -> ImageRow {
    ImageRow {
        params: ChunkerParams::default(),
        created_unix_s: 1,
        latest,
    }
}

#[derive(Debug)]
enum Stop {
    OnPurpose,
    #[allow(dead_code, reason = "shown by Debug when a test fails")]
    Catalog(CatalogError),
}

impl From<CatalogError> for Stop {
    fn from(e: CatalogError) -> Self {
        Self::Catalog(e)
    }
}

#[test]
fn a_transaction_that_fails_leaves_nothing() {
    let catalog = Catalog::open(Arc::new(MemKv::new()), REALM).unwrap();
    let failed = catalog.transact(|tx| {
        tx.put(&"a".to_owned(), &image(1));
        tx.put(&"b".to_owned(), &image(1));
        assert_eq!(
            tx.get::<ImageRow>(&"a".to_owned())?,
            Some(image(1)),
            "own changes are seen"
        );
        Err::<(), _>(Stop::OnPurpose)
    });
    assert!(matches!(failed, Err(Stop::OnPurpose)));
    let left = catalog
        .read(|tx| tx.list::<ImageRow>(&[], None, 10))
        .unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_transaction_inside_another_fails_at_once_and_spoils_nothing() {
    let catalog = Catalog::open(Arc::new(MemKv::new()), REALM).unwrap();
    let nested = std::panic::AssertUnwindSafe(|| {
        catalog.read(|_| {
            catalog.read(|tx| tx.get::<ImageRow>(&"a".to_owned()))?;
            Ok::<_, CatalogError>(())
        })
    });
    std::panic::catch_unwind(nested).unwrap_err();
    catalog
        .transact(|tx| {
            tx.put(&"a".to_owned(), &image(1));
            Ok::<_, CatalogError>(())
        })
        .unwrap();
}

/// Refuses to commit, as a full disk does.
struct FullKv(MemKv, std::sync::atomic::AtomicBool);

impl Kv for FullKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.0.get(key)
    }
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> std::ops::ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.0.scan(prefix, from, visit)
    }
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(KvError::NoSpace {
                path: "here".into(),
            });
        }
        self.0.commit(batch, durability)
    }
}

#[test]
fn a_full_disk_is_told_apart_and_changes_nothing() {
    let kv = Arc::new(FullKv(MemKv::new(), false.into()));
    let catalog = Catalog::open(kv.clone(), REALM).unwrap();
    kv.1.store(true, Ordering::SeqCst);
    let failed = catalog.transact(|tx| {
        tx.put(&"a".to_owned(), &image(1));
        Ok::<_, CatalogError>(())
    });
    assert!(
        matches!(failed, Err(CatalogError::NoSpace { .. })),
        "{failed:?}"
    );
    kv.1.store(false, Ordering::SeqCst);
    assert_eq!(
        catalog
            .read(|tx| tx.get::<ImageRow>(&"a".to_owned()))
            .unwrap(),
        None
    );
}

#[test]
fn concurrent_transactions_do_not_lose_updates() {
    let catalog = Catalog::open(Arc::new(MemKv::new()), REALM).unwrap();
    let key = "counter".to_owned();
    let ran = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    catalog
                        .transact(|tx| {
                            let latest = tx.get::<ImageRow>(&key)?.map_or(0, |row| row.latest);
                            tx.put(&key, &image(latest + 1));
                            Ok::<_, CatalogError>(())
                        })
                        .unwrap();
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let row = catalog
        .read(|tx| tx.get::<ImageRow>(&key))
        .unwrap()
        .unwrap();
    assert_eq!(u64::from(row.latest), ran.into_inner());
}

#[test]
fn another_realm_and_a_newer_format_are_refused() {
    let kv = Arc::new(MemKv::new());
    Catalog::open(kv.clone(), REALM).unwrap();
    Catalog::open(kv.clone(), REALM).unwrap();
    let other = Catalog::open(kv.clone(), RealmId([8; 16])).err().unwrap();
    assert!(matches!(other, CatalogError::Realm { .. }), "{other}");
    let mut batch = Batch::new();
    batch.put(vec![2, b'x'], vec![9, 1, 2, 3]);
    kv.commit(batch, Durability::Synced).unwrap();
    let catalog = Catalog::open(kv, REALM).unwrap();
    let row = catalog
        .read(|tx| tx.get::<ImageRow>(&"x".to_owned()))
        .err()
        .unwrap();
    assert!(row.to_string().contains("unknown format 9"), "{row}");
}

#[test]
fn a_dump_is_of_one_moment_and_transactions_go_on_meanwhile() {
    let catalog = Catalog::open(Arc::new(MemKv::new()), REALM).unwrap();
    let put = |name: &str, latest| {
        catalog
            .transact(|tx| {
                tx.put(&name.to_owned(), &image(latest));
                Ok::<_, CatalogError>(())
            })
            .unwrap();
    };
    put("a", 1);
    put("b", 1);
    let mut seen = Vec::new();
    catalog
        .dump(&mut |key, row| {
            put("a", 2);
            put("c", 1);
            seen.push((key.to_vec(), row.to_vec()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let images: Vec<_> = seen.iter().filter(|(key, _)| key[0] == 2).collect();
    assert_eq!(images.len(), 2, "{seen:?}");
    assert_eq!(images[0].1, rows::encode(&image(1)));
    assert!(seen.iter().any(|(key, _)| key == &[1]), "whose it is");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A transaction's view is the stored rows with its own changes over them, at every page size.
    #[test]
    fn scans_inside_a_transaction_see_what_a_map_would(
        stored in prop::collection::btree_map("[a-c]{1,3}", 0u32..9, 0..12),
        changes in prop::collection::vec(("[a-c]{1,3}", prop::option::of(10u32..19)), 0..12),
        after in prop::option::of("[a-c]{1,3}"),
        prefix in "[a-c]{0,1}",
        limit in 0usize..14,
    ) {
        let catalog = Catalog::open(Arc::new(MemKv::new()), REALM).unwrap();
        catalog.transact(|tx| {
            for (name, latest) in &stored {
                tx.put(name, &image(*latest));
            }
            Ok::<_, CatalogError>(())
        }).unwrap();
        let mut expected: BTreeMap<String, u32> = stored.clone();
        for (name, change) in &changes {
            match change {
                Some(latest) => expected.insert(name.clone(), *latest),
                None => expected.remove(name),
            };
        }
        let seen = catalog.transact(|tx| {
            for (name, change) in &changes {
                match change {
                    Some(latest) => tx.put(name, &image(*latest)),
                    None => tx.delete::<ImageRow>(name),
                }
            }
            tx.list::<ImageRow>(prefix.as_bytes(), after.as_ref(), limit)
        }).unwrap();
        let seen: Vec<_> = seen.into_iter().map(|(name, row)| (name, row.latest)).collect();
        let expected: Vec<_> = expected.into_iter()
            .filter(|(name, _)| name.starts_with(&prefix) && after.as_ref().is_none_or(|a| name > a))
            .take(limit)
            .collect();
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn keys_keep_their_order() {
    let key = |image: &str, number| NumberKey {
        image: image.into(),
        number,
    };
    let keys = [
        key("a", 300),
        key("a", 2),
        key("a", 1),
        key("a.b", 5),
        key("b", 1),
    ];
    let bytes: Vec<_> = keys.iter().map(RowKey::encode).collect();
    assert!(
        bytes.is_sorted(),
        "newest first inside an image, images apart"
    );
    assert_eq!(NumberKey::decode(&bytes[0]), Some(keys[0].clone()));
    assert_eq!(NumberKey::decode(b"short"), None);
}

fn hex_of<R: Row>(row: &R) -> String {
    let bytes = rows::encode(row);
    let again: R = rows::decode(&bytes).unwrap();
    assert_eq!(rows::encode(&again), bytes);
    hex::encode(bytes)
}

/// The bytes of every row. A change here needs a new format number and an upgrade from the old one.
#[test]
fn golden_rows() {
    let version = VersionId([0xAA; 32]);
    let branch = BranchId([0xBB; 16]);
    let aa = "aa".repeat(32);
    let bb = "bb".repeat(16);
    let golden = [
        (
            hex_of(&rows::Meta {
                format: 1,
                realm: REALM,
            }),
            format!("0101{}", "07".repeat(16)),
        ),
        (hex_of(&image(3)), "0180208080018080040103".to_owned()),
        (
            hex_of(&rows::VersionRow {
                state: rows::VersionState::Visible,
                image: "deb".into(),
                number: 2,
                signed: vec![1, 2],
                note: Some("n".into()),
                new_chunks: 5,
                stored_bytes: 300,
            }),
            "01000364656202020102 01016e 05 ac02".replace(' ', ""),
        ),
        (
            hex_of(&rows::VersionNumberRow { version }),
            format!("01{aa}"),
        ),
        (
            hex_of(&rows::BranchRow {
                name: "ny".into(),
                site: None,
                created_unix_s: 1,
                joined_unix_s: Some(2),
                certificate: Some(rows::CertificateRow {
                    serial: vec![9],
                    expires_unix_s: 3,
                }),
                revoked_unix_s: None,
                kind: rows::BranchKind::Laptop,
            }),
            "02026e79 00 01 0102 01010903 00 01".replace(' ', ""),
        ),
        (hex_of(&rows::BranchNameRow { branch }), format!("01{bb}")),
        (
            hex_of(&rows::JoinTokenRow {
                name: "ny".into(),
                created_unix_s: 1,
                expires_unix_s: 2,
                replace: true,
                used: Some(rows::TokenUse {
                    unix_s: 3,
                    key_hash: [0xAA; 32],
                    branch,
                    certificate_der: vec![4],
                }),
            }),
            format!("01026e7901020101 03{aa}{bb}0104").replace(' ', ""),
        ),
        (
            hex_of(&rows::PoolRow {
                image: "deb".into(),
                version,
                pinned: vec![version],
                memory_mib: 1024,
                vcpus: 2,
                prestage: true,
                machine: MachineType::Qemu,
                tpm: true,
                user_volume_mib: 8192,
                pooled: true,
                start: StartMode::Resume,
                channel: Some("lts".into()),
            }),
            format!("0503646562{aa}01{aa}8008020102018040010101036c7473"),
        ),
        (
            hex_of(&rows::AssignmentRow {
                counter: 1,
                issued_unix_s: 2,
                expires_unix_s: 3,
                signed: vec![4],
            }),
            "010102030104".into(),
        ),
        (
            hex_of(&rows::GrantRow {
                assigned_unix_s: 300,
            }),
            "01ac02".into(),
        ),
        (
            hex_of(&OperationRow { json: "{}".into() }),
            "01027b7d".into(),
        ),
        (
            hex_of(&people::ApiTokenRow::root("init", 1)),
            "0204696e697401000001000000".into(),
        ),
        (
            hex_of(&rows::BranchStatusRow {
                received_unix_s: 1,
                json: "{}".into(),
            }),
            "0101027b7d".into(),
        ),
        (
            hex_of(&rows::BranchPolicyRow {
                policy: Policy {
                    link_bytes_per_s: 300,
                    fill_bytes_per_s: 0,
                    fill_hours: Some(Hours {
                        from_min: 1200,
                        until_min: 360,
                        utc_offset_min: -60,
                    }),
                },
            }),
            "01ac02 00 01b009e80277".replace(' ', ""),
        ),
        (
            hex_of(&rows::BootProfileRow {
                counter: 1,
                made_unix_s: 2,
                boots: 3,
                carried_from: Some(version),
                chunks: 4,
                bytes: 300,
                reported: 5,
                made_of: 6,
                last: vec![rows::BootRow {
                    branch,
                    reported_unix_s: 7,
                    score: BootScore {
                        profile: 8,
                        boot_ms: 9,
                        touched_chunks: 10,
                        touched_bytes: 11,
                        covered_bytes: 12,
                        waited_bytes: 13,
                        prefetched_bytes: 14,
                        wasted_bytes: 15,
                    },
                }],
            }),
            format!("01 01 02 03 01{aa} 04 ac02 05 06 01 {bb} 07 08 09 0a 0b 0c 0d 0e 0f")
                .replace(' ', ""),
        ),
        (
            hex_of(&rows::SignedProfileRow { signed: vec![4] }),
            "010104".into(),
        ),
        (
            hex_of(&rows::BootRecordingRow {
                branch,
                reported_unix_s: 1,
                entries: Entries::new(vec![Entry {
                    place: Place { leaf: 0, extent: 5 },
                    at_ms: 300,
                    seen: 1,
                }]),
            }),
            format!("01 {bb} 01 05 01 ac02 0a 00").replace(' ', ""),
        ),
        (
            hex_of(&rows::ChunkKinRow {
                parent: version,
                steps: vec![300, -300, 1],
            }),
            format!("01 {aa} 03 d804 d704 02").replace(' ', ""),
        ),
        (
            hex_of(&rows::DeletedVersionRow {
                version: rows::VersionRow {
                    state: rows::VersionState::Visible,
                    image: "deb".into(),
                    number: 2,
                    signed: vec![1, 2],
                    note: Some("n".into()),
                    new_chunks: 5,
                    stored_bytes: 300,
                },
                deleted_unix_s: 7,
                purge_unix_s: 300,
                by_retention: true,
            }),
            "01 00 03646562 02 020102 01016e 05 ac02 07 ac02 01".replace(' ', ""),
        ),
        (
            hex_of(&rows::VersionPinRow {
                pinned_unix_s: 7,
                note: Some("n".into()),
            }),
            "01 07 01016e".replace(' ', ""),
        ),
        (
            hex_of(&rows::RetentionRow {
                last: 3,
                newer_s: 300,
            }),
            "01 03 ac02".replace(' ', ""),
        ),
        (
            hex_of(&rows::RestoreRow {
                taken_unix_s: 1,
                restored_unix_s: 2,
                history: 300,
            }),
            "010102ac02".into(),
        ),
        (
            hex_of(&rows::AheadRow {
                counter: 300,
                told_unix_s: 1,
                lost: vec![rows::LostPool {
                    pool: "p".into(),
                    image: "deb".into(),
                    version,
                }],
            }),
            format!("01 ac02 01 01 0170 03646562 {aa}").replace(' ', ""),
        ),
    ];
    for (i, (actual, expected)) in golden.iter().enumerate() {
        assert_eq!(actual, expected, "row {i}");
    }
    // A pool as programs before machine types wrote it.
    let first = hex::decode(format!("0103646562{aa}01{aa}80080201")).unwrap();
    let pool: rows::PoolRow = rows::decode(&first).unwrap();
    assert_eq!(
        (pool.memory_mib, pool.vcpus, pool.prestage),
        (1024, 2, true)
    );
    assert_eq!((pool.machine, pool.tpm), (MachineType::Auto, false));
    assert_eq!(pool.user_volume_mib, 0);
    // And as programs before user volumes wrote it.
    let second = hex::decode(format!("0203646562{aa}01{aa}800802010201")).unwrap();
    let pool: rows::PoolRow = rows::decode(&second).unwrap();
    assert_eq!((pool.machine, pool.tpm), (MachineType::Qemu, true));
    assert_eq!(pool.user_volume_mib, 0);
    // And as programs before channels wrote it.
    let fourth = format!("0403646562{aa}01{aa}80080201020180400101");
    let pool: rows::PoolRow = rows::decode(&hex::decode(fourth).unwrap()).unwrap();
    assert_eq!(
        (pool.pooled, pool.start, pool.channel),
        (true, StartMode::Resume, None)
    );
    // And as programs before pooled desktops, and those that resume, wrote it.
    let third = hex::decode(format!("0303646562{aa}01{aa}8008020102018040")).unwrap();
    let pool: rows::PoolRow = rows::decode(&third).unwrap();
    assert_eq!((pool.user_volume_mib, pool.pooled), (8192, false));
    assert_eq!(pool.start, StartMode::Boot);
}
