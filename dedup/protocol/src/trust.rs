//! Who may say what a branch runs: the realm's root key, publisher keys it endorses, and records they sign.
//!
//! The root key is kept offline and signs only [`Endorsement`]s. A publisher key, endorsed until a date, signs versions
//! and assignments. A record is signed as bytes, with a context that keeps one kind of record from passing as another, and its bytes
//! are parsed only after the signature holds. Ed25519 (RFC 8032) by `ring`.

use std::marker::PhantomData;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use dedup::RealmId;

/// Largest signed record accepted, in bytes.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];

/// Why a record or key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The signature does not hold for these bytes, this context and any endorsed key.
    #[error("{what} is not signed by a publisher this realm endorses")]
    Signature {
        /// What was to be trusted.
        what: &'static str,
    },
    /// The publisher's endorsement has run out.
    #[error(
        "the endorsement of publisher key {key} ended at {until_unix_s} (unix seconds), now is {now_unix_s}; endorse it again with the realm's root key"
    )]
    EndorsementExpired {
        /// The key, shortened.
        key: String,
        /// When the endorsement ended.
        until_unix_s: u64,
        /// The time of the check.
        now_unix_s: u64,
    },
    /// Signed, but not a record that this program understands.
    #[error("signed {what} is malformed: {reason}")]
    Malformed {
        /// What was to be trusted.
        what: &'static str,
        /// Why it cannot be read.
        reason: String,
    },
    /// The record belongs to another realm.
    #[error("{what} belongs to realm {actual}, not to {expected}")]
    Realm {
        /// What was to be trusted.
        what: &'static str,
        /// The record's realm.
        actual: RealmId,
        /// Ours.
        expected: RealmId,
    },
    /// A private key file's content is not a key.
    #[error("not an Ed25519 private key in PKCS#8 form")]
    PrivateKey,
}

/// A record that publisher keys sign.
///
/// Its *kind* is signed with it, and keeps one kind of record from passing as another. Fields that change make a new kind; former ones
/// stay readable, told apart by their signatures.
pub trait Record: Serialize + DeserializeOwned {
    /// What it is called in errors, and its first kind.
    const NAME: &'static str;
    /// Kinds that are read, newest first.
    const KINDS: &'static [&'static str] = &[Self::NAME];
    /// The realm it belongs to.
    fn realm(&self) -> RealmId;
    /// The kind that it is signed as, one of [`Self::KINDS`].
    fn kind(&self) -> &'static str {
        Self::KINDS[0]
    }
    /// Its bytes in that kind.
    fn encode(&self, _kind: &str) -> Vec<u8> {
        encode_record(self)
    }
    /// Reads it from all of its bytes in a kind of [`Self::KINDS`].
    ///
    /// # Errors
    /// Why they are not such a record.
    fn decode(_kind: &str, bytes: &[u8]) -> Result<Self, String> {
        decode_record(bytes)
    }
}

/// A private signing key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Makes a new key; the PKCS#8 document is what must be kept, wrapped.
    pub fn generate() -> (Self, Vec<u8>) {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .expect("the system's random source works");
        let key = Self::from_pkcs8(document.as_ref()).expect("ring reads what it wrote");
        (key, document.as_ref().to_vec())
    }

    /// Reads a kept key.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, TrustError> {
        Ok(Self {
            pair: Ed25519KeyPair::from_pkcs8(document).map_err(|_| TrustError::PrivateKey)?,
        })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.pair
            .public_key()
            .as_ref()
            .try_into()
            .expect("an Ed25519 public key has 32 bytes")
    }

    /// Endorses a publisher key; the key that calls this is the realm's root.
    pub fn endorse(&self, realm: RealmId, publisher: PublicKey, until_unix_s: u64) -> Endorsement {
        let signature = self.sign_bytes(&Endorsement::message(realm, &publisher, until_unix_s));
        Endorsement {
            publisher,
            until_unix_s,
            signature,
        }
    }

    /// Signs a record.
    pub fn sign<T: Record>(&self, record: &T) -> Signed<T> {
        let kind = record.kind();
        let payload = record.encode(kind);
        let signature = self.sign_bytes(&message(kind, &payload));
        Signed {
            publisher: self.public(),
            signature,
            payload,
            kind: PhantomData,
        }
    }

    fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey(public={})", hex::encode(self.public()))
    }
}

fn message(name: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + name.len() + payload.len());
    message.extend_from_slice(b"splice v1 ");
    message.extend_from_slice(name.as_bytes());
    message.push(0);
    message.extend_from_slice(payload);
    message
}

/// Parses all of `bytes`. What this program would pass over might be a restriction that a later one wrote.
pub(crate) fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes behind its end", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn encode_record(record: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(record).expect("records serialise without failing")
}

fn holds(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(message, signature)
        .is_ok()
}

/// The root's word that a publisher key speaks for the realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endorsement {
    /// The endorsed key.
    pub publisher: PublicKey,
    /// Last second at which it may sign something new to us.
    pub until_unix_s: u64,
    /// By the root key.
    pub signature: Vec<u8>,
}

impl Endorsement {
    fn message(realm: RealmId, publisher: &PublicKey, until_unix_s: u64) -> Vec<u8> {
        let mut payload = Vec::with_capacity(56);
        payload.extend_from_slice(realm.as_bytes());
        payload.extend_from_slice(publisher);
        payload.extend_from_slice(&until_unix_s.to_le_bytes());
        message("publisher endorsement", &payload)
    }
}

/// What a branch trusts: one root key, and the endorsements it has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustAnchor {
    /// The realm.
    pub realm: RealmId,
    /// The realm's root public key.
    pub root: PublicKey,
}

/// A record with its signature. The record itself is reached only through [`Signed::open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    publisher: PublicKey,
    signature: Vec<u8>,
    payload: Vec<u8>,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

/// When a record's trust is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The record is new to us: the endorsement must hold now.
    New {
        /// The time of the check, unix seconds.
        now_unix_s: u64,
    },
    /// We accepted the record before; an endorsement that ended since does not take it back.
    Kept,
}

impl<T: Record> Signed<T> {
    /// Checks signature, endorsement and realm, then parses.
    pub fn open(
        &self,
        anchor: &TrustAnchor,
        endorsements: &[Endorsement],
        trust: Trust,
    ) -> Result<T, TrustError> {
        let unsigned = TrustError::Signature { what: T::NAME };
        let endorsement = endorsements
            .iter()
            .find(|e| e.publisher == self.publisher)
            .ok_or(unsigned.clone())?;
        let endorsed =
            Endorsement::message(anchor.realm, &self.publisher, endorsement.until_unix_s);
        if !holds(&anchor.root, &endorsed, &endorsement.signature) {
            return Err(unsigned);
        }
        let kind = self.kind().ok_or(unsigned)?;
        if let Trust::New { now_unix_s } = trust
            && now_unix_s > endorsement.until_unix_s
        {
            return Err(TrustError::EndorsementExpired {
                key: hex::encode(&self.publisher[..4]),
                until_unix_s: endorsement.until_unix_s,
                now_unix_s,
            });
        }
        let record: T = self.parse(kind)?;
        if record.realm() != anchor.realm {
            return Err(TrustError::Realm {
                what: T::NAME,
                actual: record.realm(),
                expected: anchor.realm,
            });
        }
        Ok(record)
    }

    /// Parses without checking anything: only for records that this process signed itself or has opened before.
    pub fn open_own(&self) -> Result<T, TrustError> {
        let kind = match T::KINDS {
            [only] => *only,
            // The signature tells which; of what nobody signed the newest is as good as any.
            kinds => self.kind().unwrap_or(kinds[0]),
        };
        self.parse(kind)
    }

    /// Checks that this very key signed it, then parses: for one's own records that left one's hands, such as a backup's.
    pub fn open_by(&self, publisher: &PublicKey) -> Result<T, TrustError> {
        let unsigned = TrustError::Signature { what: T::NAME };
        if self.publisher != *publisher {
            return Err(unsigned);
        }
        let kind = self.kind().ok_or(unsigned)?;
        self.parse(kind)
    }

    /// The kind of record that its signature holds for.
    fn kind(&self) -> Option<&'static str> {
        T::KINDS.iter().copied().find(|kind| {
            holds(
                &self.publisher,
                &message(kind, &self.payload),
                &self.signature,
            )
        })
    }

    fn parse(&self, kind: &str) -> Result<T, TrustError> {
        let malformed = |reason: String| TrustError::Malformed {
            what: T::NAME,
            reason,
        };
        if self.payload.len() > RECORD_BYTES_MAX {
            return Err(malformed(format!("{} bytes long", self.payload.len())));
        }
        T::decode(kind, &self.payload).map_err(malformed)
    }

    /// Encoded record and signature, for the disk and the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode_record(self)
    }

    /// Parses the envelope; nothing is trusted yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TrustError> {
        decode_record(bytes).map_err(|reason| TrustError::Malformed {
            what: T::NAME,
            reason,
        })
    }

    /// BLAKE3 of the bytes that are signed with a record of the first kind: a version's name.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&message(T::NAME, &self.payload)).as_bytes()
    }
}
