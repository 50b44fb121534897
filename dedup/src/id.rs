//! Names: what chunks, manifest nodes, versions, branches, desktops and realms are called.
//!
//! Content is named by BLAKE3 keyed with the realm's id key, so that an id proves nothing to someone outside the realm.
//! Chunks and manifest nodes are named under different derived keys: no byte string can be both. The id key of a realm
//! never rotates, because every stored name depends on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a textual id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected} hexadecimal digits, got {text:?}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: usize,
    text: String,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:expr, $kind:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Reads an id from exactly [`Self::LEN`] bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Eight digits tell ids apart in a log; the whole id is in Display.
                write!(f, "{}({}…)", stringify!($name), &hex::encode(self.0)[..8])
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError {
                    kind: $kind,
                    expected: 2 * $len,
                    text: text.chars().take(80).collect(),
                })?;
                Ok(Self(bytes))
            }
        }
    };
}

byte_id!(
    /// Name of a chunk: keyed BLAKE3 of its plain bytes.
    ChunkId, 32, "a chunk id"
);
byte_id!(
    /// Name of a manifest node: keyed BLAKE3 of its encoded bytes, under a key of its own.
    NodeId, 32, "a manifest node id"
);
byte_id!(
    /// Name of a published version: the hash of its signed record.
    VersionId, 32, "a version id"
);
byte_id!(
    /// A realm: one datacenter's trust and deduplication boundary.
    RealmId, 16, "a realm id"
);
byte_id!(
    /// A branch, for as long as it is enrolled.
    BranchId, 16, "a branch id"
);
byte_id!(
    /// A desktop, for as long as it exists and wherever it runs.
    DesktopId, 16, "a desktop id"
);

/// The realm's secret under which content is named.
///
/// Held by the datacenter and by enrolled branches; Debug never prints it.
#[derive(Clone)]
pub struct IdKey {
    secret: [u8; 32],
    chunk: [u8; 32],
    node: [u8; 32],
}

impl IdKey {
    /// Derives the naming keys from the realm's 32-byte secret.
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            chunk: blake3::derive_key("splice 2026 chunk id v1", &secret),
            node: blake3::derive_key("splice 2026 manifest node id v1", &secret),
        }
    }

    /// The secret itself, for sealing into the realm's key file or an enrolment answer.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Public name of this key, safe to write into file headers: formats carry it so that a file of another realm is
    /// refused before a single chunk is read.
    pub fn key_id(&self) -> [u8; 8] {
        let hash = blake3::derive_key("splice 2026 id key name v1", &self.secret);
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        id
    }

    /// Names chunk bytes.
    pub fn chunk_id(&self, bytes: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.chunk, bytes).as_bytes())
    }

    /// Names an encoded manifest node.
    pub fn node_id(&self, bytes: &[u8]) -> NodeId {
        NodeId(*blake3::keyed_hash(&self.node, bytes).as_bytes())
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdKey(key_id={})", hex::encode(self.key_id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_realm_and_kind() {
        let a = IdKey::new([1; 32]);
        let b = IdKey::new([2; 32]);
        assert_ne!(a.chunk_id(b"x"), b.chunk_id(b"x"));
        assert_ne!(a.chunk_id(b"x").0, a.node_id(b"x").0);
        assert_ne!(a.key_id(), b.key_id());
    }

    #[test]
    fn text_round_trip_and_errors() {
        let id = IdKey::new([3; 32]).chunk_id(b"hello");
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        let error = "xyz".parse::<ChunkId>().expect_err("not hexadecimal");
        assert_eq!(
            error.to_string(),
            "a chunk id must be 64 hexadecimal digits, got \"xyz\""
        );
    }

    #[test]
    fn debug_does_not_leak_the_secret() {
        let text = format!("{:?}", IdKey::new([0xAB; 32]));
        assert!(!text.contains("abababab"), "{text}");
    }
}
