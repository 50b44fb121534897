//! Keys and names that are the same in every run.

use dedup::{BranchId, IdKey, RealmId};
use dedup_protocol::trust::{Endorsement, SigningKey, TrustAnchor};

pub const REALM: RealmId = RealmId([0x11; 16]);
pub const BRANCH: BranchId = BranchId([0x22; 16]);
/// Virtual clocks begin here, unix seconds.
pub const BEGIN_UNIX_S: u64 = 1_700_000_000;

pub fn id_key() -> IdKey {
    IdKey::new([0x33; 32])
}

/// Key pairs of RFC 8032, section 7.1, tests 1 to 3: secret and public half.
const ROOT: [&str; 2] = [
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
];
const PUBLISHER: [&str; 2] = [
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
];

/// Test 3: the datacenter's certificate.
const CERTIFICATE: [&str; 2] = [
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
];

fn pkcs8([secret, public]: [&str; 2]) -> Vec<u8> {
    hex::decode(format!(
        "3051020101300506032b657004220420{secret}812100{public}"
    ))
    .unwrap()
}

fn rfc8032(pair: [&str; 2]) -> SigningKey {
    SigningKey::from_pkcs8(&pkcs8(pair)).unwrap()
}

/// The key of the datacenter's certificate. The same in every run, because a certificate's length depends on its key's hash.
pub fn certificate_key() -> Vec<u8> {
    pkcs8(CERTIFICATE)
}

/// The realm's keys. Signing needs no randomness, so every run of a process makes the same signatures.
#[derive(Clone)]
pub struct Keys {
    pub anchor: TrustAnchor,
    pub endorsement: Endorsement,
    publisher: std::sync::Arc<SigningKey>,
}

impl Keys {
    pub fn new() -> Self {
        let root = rfc8032(ROOT);
        let publisher = rfc8032(PUBLISHER);
        let anchor = TrustAnchor {
            realm: REALM,
            root: root.public(),
        };
        let until_unix_s = BEGIN_UNIX_S + 400 * 86_400;
        Self {
            endorsement: root.endorse(REALM, publisher.public(), until_unix_s),
            anchor,
            publisher: std::sync::Arc::new(publisher),
        }
    }

    pub fn publisher(&self) -> &SigningKey {
        &self.publisher
    }
}
