//! Signed records. The first byte chooses: a whole envelope, which nobody can have signed, or the content of an envelope whose
//! signature holds, as version, assignment, lease, checkout, order to wipe or roster.
#![no_main]

use std::fmt::Debug;
use std::sync::OnceLock;

use dedup_protocol::people::Roster;
use dedup_protocol::records::{Assignment, VersionRecord};
use dedup_protocol::state::checkout::Checkout;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::trust::{Endorsement, Record, Signed, SigningKey, Trust, TrustAnchor};
use dedup_protocol::wipe::Wipe;
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::REALM;

const NOW: u64 = 1_780_000_000;

struct Realm {
    publisher: SigningKey,
    anchor: TrustAnchor,
    endorsements: Vec<Endorsement>,
}

fn realm() -> &'static Realm {
    static MADE: OnceLock<Realm> = OnceLock::new();
    MADE.get_or_init(|| {
        let (root, _) = SigningKey::generate();
        let (publisher, _) = SigningKey::generate();
        Realm {
            anchor: TrustAnchor {
                realm: REALM,
                root: root.public(),
            },
            endorsements: vec![root.endorse(REALM, publisher.public(), NOW)],
            publisher,
        }
    })
}

/// An envelope without a signature around `payload`: publisher, then signature and payload with their lengths.
fn envelope(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 33];
    let mut len = payload.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    [&bytes, payload].concat()
}

fn open<T: Record + PartialEq + Debug>(data: &[u8], whole: bool) {
    let bytes = if whole { data.to_vec() } else { envelope(data) };
    let Ok(signed) = Signed::<T>::from_bytes(&bytes) else {
        assert!(whole, "an envelope around any bytes parses");
        return;
    };
    let realm = realm();
    let trust = Trust::New { now_unix_s: NOW };
    let forged = signed.open(&realm.anchor, &realm.endorsements, trust);
    assert!(forged.is_err(), "nobody signed this");
    let _ = signed.digest();
    let Ok(record) = signed.open_own() else {
        return;
    };
    let own = realm.publisher.sign(&record);
    let again = Signed::<T>::from_bytes(&own.to_bytes()).expect("what we wrote parses");
    match again.open(&realm.anchor, &realm.endorsements, trust) {
        Ok(opened) => assert_eq!(opened, record),
        Err(_) => assert_ne!(record.realm(), REALM, "signed, endorsed, of this realm"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    match choice & 14 {
        0 => open::<VersionRecord>(data, choice & 1 == 0),
        2 => open::<Assignment>(data, choice & 1 == 0),
        8 => open::<Checkout>(data, choice & 1 == 0),
        10 => open::<Wipe>(data, choice & 1 == 0),
        12 => open::<Roster>(data, choice & 1 == 0),
        _ => open::<Lease>(data, choice & 1 == 0),
    }
});
