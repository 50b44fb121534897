//! Lines over a catalog: what is believed of a lease, and what a restart finds.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dedup::{BranchId, DesktopId, IdKey, NodeId, RealmId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{HoldRow, Stage};
use dedup_protocol::state::began::StateRecord;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{LeaseReturned, RecallLease};
use dedup_protocol::state::{Generation, Head, Nonce};
use dedup_protocol::trust::{SigningKey, TrustAnchor};
use dedup_protocol::wire::{Message, SignedBytes};
use dedup_store::kv::MemKv;

use super::line::LineError;
use super::lines::Lines;
use super::rows::{KeptHold, OverlayOf, Rows};
use super::shown::NoRight;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;

const REALM: RealmId = RealmId([1; 16]);
const BRANCH: BranchId = BranchId([6; 16]);
const VOLUME: DesktopId = DesktopId([5; 16]);
const BEGIN: u64 = 1_700_000_000;

struct Time(AtomicU64);

impl Clock for Time {
    fn now_unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1000
    }
}

struct World {
    catalog: Catalog,
    publisher: SigningKey,
    time: Arc<Time>,
}

impl World {
    fn new() -> Self {
        let ((root, _), (publisher, _)) = (SigningKey::generate(), SigningKey::generate());
        let anchor = TrustAnchor {
            realm: REALM,
            root: root.public(),
        };
        let catalog = Catalog::new(Arc::new(MemKv::new()), anchor);
        let endorsement = root.endorse(REALM, publisher.public(), u64::MAX / 2);
        catalog.set_endorsements(&[endorsement]).unwrap();
        Self {
            catalog,
            publisher,
            time: Arc::new(Time(AtomicU64::new(BEGIN))),
        }
    }

    /// As after a start of the branch server.
    fn lines(&self) -> Lines {
        let key = IdKey::new([4; 32]);
        Lines::new(self.catalog.clone(), BRANCH, key, self.time.clone())
    }

    fn lease(nonce: Nonce) -> Lease {
        Lease {
            realm: REALM,
            desktop: VOLUME,
            branch: BRANCH,
            generation: Generation(1),
            renewal: 1,
            nonce,
            base: Head::START,
            issued_unix_s: BEGIN,
            expires_unix_s: BEGIN + 100,
            offline_grace_s: 50,
        }
    }
}

/// The question of a line that was linked just now.
fn question(lines: &Lines) -> Nonce {
    let asked = lines.with(VOLUME, |line, now| {
        line.linked(now)?;
        line.tick(now)?;
        Ok(line.next_message())
    });
    match asked.unwrap() {
        Some(Message::AskLease(ask)) => ask.nonce,
        other => panic!("{other:?} is no question"),
    }
}

fn granted(lines: &Lines, by: &SigningKey, lease: &Lease) -> Result<(), LineError> {
    let bytes = by.sign(lease).to_bytes();
    lines.with(VOLUME, |line, now| {
        let message = Message::LeaseGranted(SignedBytes { bytes });
        line.hear(message, now)
            .map(|replies| assert!(replies.is_empty()))
    })
}

#[test]
fn a_lease_is_believed_by_its_signature_when_it_comes_and_when_it_is_read() {
    let world = World::new();
    let lines = world.lines();
    assert_eq!(lines.shown(VOLUME).unwrap().lease, "unleased");
    let nonce = question(&lines);
    // The question is kept, and asked again after a restart.
    let lines = world.lines();
    assert_eq!(question(&lines), nonce);
    let lease = World::lease(nonce);
    let (stranger, _) = SigningKey::generate();
    let refused = granted(&lines, &stranger, &lease);
    assert!(matches!(
        refused,
        Err(LineError::Catalog(CatalogError::Trust(_)))
    ));
    granted(&lines, &world.publisher, &lease).unwrap();
    let shown = lines.shown(VOLUME).unwrap();
    assert_eq!(
        (shown.lease, shown.ends_unix_s),
        ("held", Some(BEGIN + 150))
    );
    assert_eq!(shown.no_right, None);

    world.time.0.store(BEGIN + 149, Ordering::Relaxed);
    let lines = world.lines();
    assert_eq!(lines.shown(VOLUME).unwrap().no_right, None);
    world.time.0.store(BEGIN + 150, Ordering::Relaxed);
    let lines = world.lines();
    let over = NoRight::Over {
        until_unix_s: BEGIN + 150,
    };
    assert_eq!(lines.shown(VOLUME).unwrap().no_right, Some(over));

    // Who has the disk cannot prolong it.
    let mut kept = world.catalog.hold(VOLUME).unwrap().unwrap();
    let Stage::Held { lease, .. } = &mut kept.row.stage else {
        panic!("it is held");
    };
    lease.expires_unix_s += 1_000_000;
    world.catalog.keep_hold(&kept).unwrap();
    assert!(world.lines().shown(VOLUME).is_err());
    kept.lease = None;
    world.catalog.keep_hold(&kept).unwrap();
    assert!(world.lines().shown(VOLUME).is_err());
}

#[test]
fn a_volume_that_is_forgotten_leaves_no_rows() {
    let world = World::new();
    let lines = world.lines();
    let lease = World::lease(question(&lines));
    granted(&lines, &world.publisher, &lease).unwrap();
    assert!(world.catalog.send_row(VOLUME).unwrap().is_some());
    lines.forget(VOLUME).unwrap();
    assert_eq!(world.catalog.hold(VOLUME).unwrap(), None);
    assert_eq!(world.catalog.send_row(VOLUME).unwrap(), None);
    assert_eq!(lines.shown(VOLUME).unwrap().lease, "unleased");
}

#[test]
fn a_state_lies_under_an_overlay_of_its_own_generation_only() {
    let world = World::new();
    let state = StateRecord {
        realm: REALM,
        desktop: VOLUME,
        generation: Generation(2),
        base: Head([7; 32]),
        disk: TreeRef {
            root: NodeId([8; 32]),
            size_bytes: 4096,
        },
    };
    let catalog = &world.catalog;
    catalog
        .put_state(VOLUME, &world.publisher.sign(&state))
        .unwrap();
    assert_eq!(catalog.state(VOLUME).unwrap(), Some(state.clone()));
    assert_eq!(catalog.state_under(VOLUME).unwrap(), None);
    let kept = |overlay| KeptHold {
        row: HoldRow {
            desktop: VOLUME,
            stage: Stage::Idle {
                last: Generation(2),
            },
            asking: None,
            seen_unix_s: 0,
        },
        lease: None,
        overlay,
    };
    for overlay in [
        OverlayOf::Unleased,
        OverlayOf::Gone,
        OverlayOf::Under(Generation(1)),
    ] {
        catalog.keep_hold(&kept(overlay)).unwrap();
        assert_eq!(catalog.state_under(VOLUME).unwrap(), None);
    }
    let own = OverlayOf::Under(Generation(2));
    catalog.keep_hold(&kept(own)).unwrap();
    assert_eq!(catalog.state_under(VOLUME).unwrap(), Some(state.clone()));
    let (stranger, _) = SigningKey::generate();
    catalog.put_state(VOLUME, &stranger.sign(&state)).unwrap();
    let forged = catalog.state_under(VOLUME);
    assert!(matches!(forged, Err(CatalogError::Trust(_))), "{forged:?}");
    catalog.forget_volume(VOLUME).unwrap();
    assert_eq!(catalog.state_under(VOLUME).unwrap(), None);
}

/// What a line wants to say just after its link came up.
fn said(lines: &Lines) -> Option<Message> {
    let said = lines.with(VOLUME, |line, now| {
        line.linked(now)?;
        line.tick(now)?;
        Ok(line.next_message())
    });
    said.unwrap()
}

#[test]
fn what_was_given_up_is_told_after_a_restart_too_until_it_is_known() {
    let world = World::new();
    let lines = world.lines();
    let lease = World::lease(question(&lines));
    granted(&lines, &world.publisher, &lease).unwrap();
    assert!(world.catalog.dropped().unwrap().is_empty());
    let dropped = lines.with(VOLUME, |line, now| line.drop_writes(now));
    assert!(dropped.unwrap());
    for _ in 0..2 {
        let lines = world.lines();
        assert_eq!(world.catalog.dropped().unwrap(), [VOLUME]);
        let shown = lines.shown(VOLUME).unwrap();
        assert_eq!(shown.lease, "given up");
        assert_eq!(shown.no_right, Some(NoRight::Dropped));
        match said(&lines) {
            Some(Message::DropLease(told)) => assert_eq!(told.generation, Generation(1)),
            other => panic!("{other:?} tells nothing"),
        }
    }
    let lines = world.lines();
    let returned = LeaseReturned {
        desktop: VOLUME,
        generation: Generation(1),
    };
    let heard = lines.with(VOLUME, |line, now| {
        line.hear(Message::LeaseReturned(returned), now)
    });
    heard.unwrap();
    assert!(world.catalog.dropped().unwrap().is_empty());
    assert_eq!(said(&lines), None);
}

#[test]
fn a_question_that_is_out_is_not_forgotten_with_what_is_given_up() {
    let world = World::new();
    let lines = world.lines();
    let nonce = question(&lines);
    let dropped = lines.with(VOLUME, |line, now| line.drop_writes(now));
    assert!(dropped.unwrap());
    let lines = world.lines();
    assert_eq!(question(&lines), nonce, "asked until it is answered");
    granted(&lines, &world.publisher, &World::lease(nonce)).unwrap();
    let told = lines.with(VOLUME, |line, _| Ok(line.next_message()));
    assert!(
        matches!(told.unwrap(), Some(Message::DropLease(told)) if told.generation == Generation(1))
    );
    // Of what nobody ever asked for there is nothing to tell.
    let other = DesktopId([9; 16]);
    let dropped = lines.with(other, |line, now| line.drop_writes(now));
    assert!(dropped.unwrap());
    assert_eq!(world.catalog.hold(other).unwrap(), None);
}

#[test]
fn what_is_wanted_no_more_is_away_when_its_question_is_answered() {
    let world = World::new();
    let gone = KeptHold {
        row: HoldRow::new(VOLUME),
        lease: None,
        overlay: OverlayOf::Gone,
    };
    world.catalog.keep_hold(&gone).unwrap();
    let lines = world.lines();
    let is_away = || {
        let away = lines.with(VOLUME, |line, now| {
            line.want_no_more(now)?;
            Ok(line.is_away())
        });
        away.unwrap()
    };
    assert!(is_away(), "nobody was asked");
    let wanted = lines.with(VOLUME, |line, _| {
        line.want();
        Ok(())
    });
    wanted.unwrap();
    let nonce = question(&lines);
    assert!(!is_away(), "it may be granted yet");
    granted(&lines, &world.publisher, &World::lease(nonce)).unwrap();
    assert!(!is_away(), "the datacenter thinks that it is here");
    let returned = LeaseReturned {
        desktop: VOLUME,
        generation: Generation(1),
    };
    let heard = lines.with(VOLUME, |line, now| {
        line.hear(Message::LeaseReturned(returned), now)
    });
    heard.unwrap();
    assert!(is_away());
}

#[test]
fn what_is_recalled_is_not_given_back_before_it_is_known_what_was_written() {
    let world = World::new();
    let lines = world.lines();
    let lease = World::lease(question(&lines));
    granted(&lines, &world.publisher, &lease).unwrap();
    let recall = Message::RecallLease(RecallLease {
        desktop: VOLUME,
        generation: Generation(1),
    });
    let heard = lines.with(VOLUME, |line, now| {
        line.hear(recall, now)?;
        line.tick(now)?;
        assert!(line.needs_overlay());
        Ok(line.next_message())
    });
    assert_eq!(heard.unwrap(), None);
    assert_eq!(lines.shown(VOLUME).unwrap().lease, "recalled");
    // What IT takes back is forgotten with a restart, and told again where it holds still.
    assert_eq!(world.lines().shown(VOLUME).unwrap().lease, "held");
}

/// Lines are moved by a task each, and most are in the midst of something when somebody is in a hurry.
#[tokio::test]
async fn a_hurry_in_the_midst_of_a_step_is_lost_for_no_line() {
    let lines = World::new().lines();
    let mut tasks = [lines.hurries(), lines.hurries()];
    for hurries in &mut tasks {
        hurries.mark_unchanged();
    }
    // They move their lines.
    lines.hurry();
    lines.hurry();
    for hurries in &mut tasks {
        hurries.changed().await.unwrap();
        assert!(!hurries.has_changed().unwrap(), "one more look is enough");
    }
}
