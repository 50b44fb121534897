//! People log in at a branch: who is on its roster, with which words, how often, and what is left of it on the disk.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use dedup::{BranchId, RealmId, VersionId};
use dedup_protocol::people::Person;
use dedup_protocol::people::strikes::{FREE, LOCK_S};
use dedup_protocol::people::totp::TotpSecret;
use dedup_protocol::records::{MachineType, PoolAssignment, StartMode};
use dedup_protocol::trust::{SigningKey, TrustAnchor};
use dedup_store::kv::MemKv;

use super::*;

const REALM: RealmId = RealmId([1; 16]);
const BRANCH: BranchId = BranchId([2; 16]);
const NOW: u64 = 1_800_000_000;
const PASSWORD: &[u8] = b"correct horse battery";

struct World {
    kv: Arc<MemKv>,
    catalog: Catalog,
    publisher: SigningKey,
    people: People,
}

fn secret() -> Secret {
    Secret::new([9; 32])
}

fn pool(name: &str) -> PoolAssignment {
    PoolAssignment {
        pool: name.into(),
        image: "debian".into(),
        version: VersionId([3; 32]),
        pinned: Vec::new(),
        memory_mib: 1024,
        vcpus: 1,
        prestage: true,
        machine: MachineType::Auto,
        tpm: false,
        user_volume_mib: 0,
        pooled: false,
        start: StartMode::Boot,
    }
}

fn assignment() -> Assignment {
    Assignment {
        realm: REALM,
        branch: BRANCH,
        counter: 1,
        issued_unix_s: NOW,
        expires_unix_s: NOW + 1000,
        offline_grace_s: 1000,
        pools: vec![pool("lab"), pool("office")],
    }
}

fn person(name: &str, totp: Option<TotpSecret>) -> Person {
    Person {
        name: name.into(),
        // Cheap, so that tests are quick.
        verifier: Verifier::with_cost(PASSWORD, [4; 16], (8, 1, 1)).unwrap(),
        totp,
        pools: vec!["gone".into(), "office".into()],
    }
}

impl World {
    fn new() -> Self {
        let ((root, _), (publisher, _)) = (SigningKey::generate(), SigningKey::generate());
        let anchor = TrustAnchor {
            realm: REALM,
            root: root.public(),
        };
        let kv = Arc::new(MemKv::new());
        let catalog = Catalog::new(kv.clone(), anchor);
        let endorsement = root.endorse(REALM, publisher.public(), u64::MAX / 2);
        catalog.set_endorsements(&[endorsement]).unwrap();
        let people = People::open(kv.clone(), catalog.clone(), &secret());
        Self {
            kv,
            catalog,
            publisher,
            people,
        }
    }

    fn admit(&self, counter: u64, people: Vec<Person>) {
        let roster = Roster {
            realm: REALM,
            branch: BRANCH,
            counter,
            issued_unix_s: NOW,
            people,
        };
        let signed = self.publisher.sign(&roster);
        self.people.admit(roster, &signed).unwrap();
    }

    fn again(&mut self, secret: &Secret) {
        self.people = People::open(self.kv.clone(), self.catalog.clone(), secret);
    }

    fn try_at(
        &self,
        name: &str,
        password: &[u8],
        code: Option<&str>,
        now: u64,
    ) -> Result<Admitted, LogInError> {
        let assignment = assignment();
        self.people
            .log_in(name, password, code, Some(&assignment), now)
    }

    fn is_let_in(&self, name: &str, now: u64) -> bool {
        self.try_at(name, PASSWORD, None, now).is_ok()
    }
}

#[test]
fn who_is_on_the_roster_is_let_in_to_the_pools_that_are_there() {
    let world = World::new();
    let early = world.try_at("alice", PASSWORD, None, NOW);
    assert!(matches!(early, Err(LogInError::NobodyTold)));
    world.admit(1, vec![person("alice", None)]);
    let admitted = world.try_at(" Alice", PASSWORD, None, NOW).unwrap();
    assert_eq!(
        (admitted.name.as_str(), &*admitted.pools),
        ("alice", &["office".to_owned()][..])
    );
    let wrong = world.try_at("alice", b"wrong", None, NOW);
    assert!(matches!(wrong, Err(LogInError::Wrong)));
    assert!(matches!(
        world.try_at("bob", PASSWORD, None, NOW),
        Err(LogInError::Wrong)
    ));
    world.admit(2, Vec::new());
    assert!(!world.is_let_in("alice", NOW), "taken off it");
}

#[test]
fn a_lock_outlives_the_server_and_ends_by_itself() {
    let mut world = World::new();
    world.admit(1, vec![person("alice", None), person("bob", None)]);
    for _ in 0..FREE {
        assert!(world.try_at("alice", b"wrong", None, NOW).is_err());
    }
    world.again(&secret());
    let locked = world.try_at("alice", PASSWORD, None, NOW);
    assert!(matches!(locked, Err(LogInError::Wrong)));
    assert!(world.is_let_in("bob", NOW), "the others are not");
    assert!(world.is_let_in("alice", NOW + LOCK_S));
    for _ in 1..FREE {
        assert!(world.try_at("alice", b"wrong", None, NOW + LOCK_S).is_err());
    }
    assert!(world.is_let_in("alice", NOW + LOCK_S), "they began anew");
}

#[test]
fn a_code_is_asked_for_and_taken_once() {
    let mut world = World::new();
    let factor = TotpSecret([5; 20]);
    world.admit(1, vec![person("alice", Some(factor.clone()))]);
    let needed = world.try_at("alice", PASSWORD, None, NOW);
    assert!(matches!(needed, Err(LogInError::CodeNeeded)));
    let code = factor.code_at(NOW);
    world.try_at("alice", PASSWORD, Some(&code), NOW).unwrap();
    world.again(&secret());
    let used = world.try_at("alice", PASSWORD, Some(&code), NOW + 1);
    assert!(matches!(used, Err(LogInError::WrongCode)));
    let next = factor.code_at(NOW + 60);
    world
        .try_at("alice", PASSWORD, Some(&next), NOW + 60)
        .unwrap();
}

#[test]
fn a_branch_that_was_alone_for_too_long_lets_nobody_in() {
    let world = World::new();
    world.admit(1, vec![person("alice", None)]);
    assert!(world.is_let_in("alice", NOW + 2000));
    let alone = world.try_at("alice", PASSWORD, None, NOW + 2001);
    assert!(matches!(alone, Err(LogInError::Alone { since_s: 1 })));
}

#[test]
fn the_disk_tells_nothing_without_the_key_and_a_roster_comes_back_with_it() {
    let mut world = World::new();
    world.admit(7, vec![person("alice", None)]);
    let hash = person("alice", None).verifier.hash;
    world
        .kv
        .scan(b"", b"", &mut |_, row| {
            assert!(!row.windows(8).any(|bytes| *bytes == hash[..8]));
            ControlFlow::Continue(())
        })
        .unwrap();
    world.again(&Secret::new([8; 32]));
    assert_eq!(world.people.counter(), 0);
    assert!(!world.is_let_in("alice", NOW));
    world.again(&secret());
    assert_eq!(world.people.counter(), 7);
    assert!(world.is_let_in("alice", NOW));
}

#[test]
fn who_leaves_the_roster_leaves_nothing() {
    let world = World::new();
    world.admit(1, vec![person("alice", None)]);
    assert!(world.try_at("alice", b"wrong", None, NOW).is_err());
    assert!(world.kv.get(b"lalice").unwrap().is_some());
    world.admit(2, vec![person("bob", None)]);
    assert!(world.kv.get(b"lalice").unwrap().is_none());
}
