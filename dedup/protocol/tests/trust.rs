//! What signatures must and must not let through.
#![allow(clippy::unwrap_used, missing_docs)]

use dedup::{BranchId, RealmId};
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::{Signed, SigningKey, Trust, TrustAnchor, TrustError};

const REALM: RealmId = RealmId([1; 16]);

fn assignment() -> Assignment {
    Assignment {
        realm: REALM,
        branch: BranchId([2; 16]),
        counter: 7,
        issued_unix_s: 100,
        expires_unix_s: 200,
        offline_grace_s: 50,
        pools: vec![],
    }
}

#[test]
fn endorsed_publisher_is_trusted_until_its_endorsement_ends() {
    let (root, _) = SigningKey::generate();
    let (publisher, kept) = SigningKey::generate();
    assert_eq!(
        SigningKey::from_pkcs8(&kept).unwrap().public(),
        publisher.public()
    );
    let anchor = TrustAnchor {
        realm: REALM,
        root: root.public(),
    };
    let endorsements = [root.endorse(REALM, publisher.public(), 1000)];
    let signed =
        Signed::<Assignment>::from_bytes(&publisher.sign(&assignment()).to_bytes()).unwrap();
    let now = |now_unix_s| Trust::New { now_unix_s };
    assert_eq!(
        signed.open(&anchor, &endorsements, now(1000)),
        Ok(assignment())
    );
    assert!(matches!(
        signed.open(&anchor, &endorsements, now(1001)),
        Err(TrustError::EndorsementExpired { .. })
    ));
    assert_eq!(
        signed.open(&anchor, &endorsements, Trust::Kept),
        Ok(assignment())
    );
}

#[test]
fn foreign_keys_realms_and_flipped_bits_are_refused() {
    let (root, _) = SigningKey::generate();
    let (publisher, _) = SigningKey::generate();
    let (stranger, _) = SigningKey::generate();
    let anchor = TrustAnchor {
        realm: REALM,
        root: root.public(),
    };
    let endorsements = [root.endorse(REALM, publisher.public(), 1000)];
    let kept = Trust::Kept;
    let refused = |signed: &Signed<Assignment>| {
        matches!(
            signed.open(&anchor, &endorsements, kept),
            Err(TrustError::Signature { .. })
        )
    };
    assert!(refused(&stranger.sign(&assignment())));
    // A stranger's own endorsement of itself.
    let forged = [stranger.endorse(REALM, stranger.public(), 1000)];
    assert!(
        stranger
            .sign(&assignment())
            .open(&anchor, &forged, kept)
            .is_err()
    );
    // An endorsement for another realm under the same root.
    let other = [root.endorse(RealmId([9; 16]), publisher.public(), 1000)];
    assert!(
        publisher
            .sign(&assignment())
            .open(&anchor, &other, kept)
            .is_err()
    );
    // A record for another realm, properly signed.
    let mut foreign = assignment();
    foreign.realm = RealmId([9; 16]);
    assert!(matches!(
        publisher.sign(&foreign).open(&anchor, &endorsements, kept),
        Err(TrustError::Realm { .. })
    ));
    // Every flipped bit of the envelope is noticed.
    let bytes = publisher.sign(&assignment()).to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut bent = bytes.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        if let Ok(signed) = Signed::<Assignment>::from_bytes(&bent) {
            assert!(
                signed.open(&anchor, &endorsements, kept).is_err(),
                "flipped bit {bit} went unnoticed"
            );
        }
    }
}

/// A backup's manifest is believed for the very key that is sealed with it, and no endorsement stands in for that.
#[test]
fn a_record_of_ones_own_is_opened_by_that_key_only() {
    let (publisher, _) = SigningKey::generate();
    let (other, _) = SigningKey::generate();
    let signed = publisher.sign(&assignment());
    assert_eq!(signed.open_by(&publisher.public()), Ok(assignment()));
    assert!(matches!(
        signed.open_by(&other.public()),
        Err(TrustError::Signature { .. })
    ));
    let bytes = signed.to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut bent = bytes.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        if let Ok(signed) = Signed::<Assignment>::from_bytes(&bent) {
            assert!(signed.open_by(&publisher.public()).is_err(), "bit {bit}");
        }
    }
}
