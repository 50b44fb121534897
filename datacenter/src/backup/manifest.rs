//! What a backup consists of: one text file, replaced as a whole, that names every other object by number, length and BLAKE3.
//!
//! Its first line is signed by the realm's publisher key and names the hash of the rest, so that whoever can write to the place where
//! backups lie cannot bring a branch back that was revoked, or a root key of his own: a restore opens the sealed keys with the
//! passphrase and believes no other signature. Objects that change are named by the backup's number, packs by theirs; no name comes from
//! the file. Documented in `docs/disk-formats/backup.md`.
//!
//! ```text
//!   bytes ──parse──► Unproven ──prove(publisher)──► Manifest
//! ```

use dedup::RealmId;
use dedup_protocol::trust::{PublicKey, Record, Signed, SigningKey, TrustError};
use dedup_store::{CLOSED_PACK_BYTES_MAX, PackNumber};
use serde::{Deserialize, Serialize};

use super::folder::Sum;

/// Name of the manifest.
pub const MANIFEST: &str = "backup.manifest";

/// Longest manifest, in bytes: 150 for each pack make this a hundred terabytes.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Longest of the small files, in bytes.
pub const SMALL_BYTES_MAX: u64 = 1 << 20;

const HEAD: &str = "splice backup ";
const FORMAT: &str = "1";

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Something else.
    #[error("{MANIFEST} is no manifest of a backup, or its beginning is damaged")]
    NotOne,
    /// A later program wrote it.
    #[error("{MANIFEST} has format {0:?}, this program reads {FORMAT}; use the newer program")]
    Format(String),
    /// It cannot be read.
    #[error("{MANIFEST} is malformed: {0}")]
    Malformed(String),
    /// Its content is not what was signed.
    #[error("{MANIFEST} is damaged or was changed: its content is not what was signed")]
    Changed,
    /// Nobody signed it, or another realm.
    #[error("{MANIFEST} was not signed by this realm's publisher key")]
    Signature(#[source] TrustError),
}

/// What an object that is not a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// All rows of the catalog.
    Catalog,
    /// `realm.json`.
    Realm,
    /// `realm.sealed`: the keys, sealed under the passphrase.
    Secrets,
    /// `datacenter.toml`.
    Config,
}

impl Role {
    /// All of them, in the order in which they are written.
    pub const ALL: [Self; 4] = [Self::Catalog, Self::Realm, Self::Secrets, Self::Config];

    /// What the names of its objects begin with.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Realm => "realm",
            Self::Secrets => "secrets",
            Self::Config => "config",
        }
    }

    /// The object's name in the backup `number`.
    pub fn object(self, number: u64) -> String {
        format!("{}.{number}", self.word())
    }
}

/// Whether an object of this name could be ours, of whatever backup.
pub fn is_ours(name: &str) -> bool {
    name == MANIFEST
        || Role::ALL.iter().any(|role| {
            let number = name
                .strip_prefix(role.word())
                .and_then(|n| n.strip_prefix('.'));
            number.is_some_and(|n| n.parse::<u64>().is_ok())
        })
}

/// A pack in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Which.
    pub pack: PackNumber,
    /// Its bytes.
    pub sum: Sum,
    /// The digest that the store has of its records.
    pub digest: u64,
    /// Pieces of it that were damaged already when it was copied.
    pub damaged: u64,
}

/// What a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose.
    pub realm: RealmId,
    /// The realm's name, for people.
    pub name: String,
    /// 1 for the first backup in this place, then counting.
    pub number: u64,
    /// When its catalog was looked at, unix seconds.
    pub taken_unix_s: u64,
    /// From where the datacenter's counters go on since its last restore; 0 if it had none. A lower one is of an earlier life.
    pub history: u64,
    /// The program that made it.
    pub software: String,
    /// One of each role, in the order of [`Role::ALL`].
    pub files: [Sum; 4],
    /// In the order of their numbers.
    pub packs: Vec<PackEntry>,
}

impl Manifest {
    /// What `role`'s object holds.
    pub fn file(&self, role: Role) -> Sum {
        self.files[role as usize]
    }

    /// The entry of a pack.
    pub fn pack(&self, pack: PackNumber) -> Option<&PackEntry> {
        let at = self.packs.binary_search_by_key(&pack, |entry| entry.pack);
        at.ok().map(|at| &self.packs[at])
    }

    /// Bytes of all objects but the manifest.
    pub fn bytes(&self) -> u64 {
        let packs = self.packs.iter().map(|entry| entry.sum.bytes);
        let files = self.files.iter().map(|sum| sum.bytes);
        packs.chain(files).fold(0, u64::saturating_add)
    }

    /// The file's bytes, signed.
    pub fn encode(&self, key: &SigningKey) -> Vec<u8> {
        let body =
            serde_json::to_vec_pretty(&Body::from(self)).expect("text and numbers serialise");
        let seal = Seal {
            realm: self.realm,
            number: self.number,
            body: *blake3::hash(&body).as_bytes(),
        };
        let mut bytes = format!(
            "{HEAD}{FORMAT} {}\n",
            hex::encode(key.sign(&seal).to_bytes())
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    realm: RealmId,
    number: u64,
    body: [u8; 32],
}

impl Record for Seal {
    const NAME: &'static str = "datacenter backup";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    realm: String,
    name: String,
    number: u64,
    taken_unix_s: u64,
    history: u64,
    software: String,
    files: Vec<FileText>,
    packs: Vec<PackText>,
}

#[derive(Serialize, Deserialize)]
struct FileText {
    role: Role,
    bytes: u64,
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct PackText {
    pack: u64,
    bytes: u64,
    blake3: String,
    digest: u64,
    damaged: u64,
}

impl From<&Manifest> for Body {
    fn from(manifest: &Manifest) -> Self {
        Self {
            realm: manifest.realm.to_string(),
            name: manifest.name.clone(),
            number: manifest.number,
            taken_unix_s: manifest.taken_unix_s,
            history: manifest.history,
            software: manifest.software.clone(),
            files: Role::ALL
                .iter()
                .map(|role| FileText {
                    role: *role,
                    bytes: manifest.file(*role).bytes,
                    blake3: hex::encode(manifest.file(*role).blake3),
                })
                .collect(),
            packs: manifest
                .packs
                .iter()
                .map(|entry| PackText {
                    pack: entry.pack.0,
                    bytes: entry.sum.bytes,
                    blake3: hex::encode(entry.sum.blake3),
                    digest: entry.digest,
                    damaged: entry.damaged,
                })
                .collect(),
        }
    }
}

fn sum(bytes: u64, blake3: &str) -> Result<Sum, String> {
    let mut hash = [0; 32];
    hex::decode_to_slice(blake3, &mut hash).map_err(|e| format!("a BLAKE3: {e}"))?;
    Ok(Sum {
        bytes,
        blake3: hash,
    })
}

impl Body {
    fn check(self) -> Result<Manifest, String> {
        let realm: RealmId = self
            .realm
            .parse()
            .map_err(|e: dedup::id::ParseIdError| e.to_string())?;
        let mut files = Vec::new();
        for (role, file) in Role::ALL.iter().zip(&self.files) {
            if file.role != *role {
                return Err(format!("{:?} where {role:?} belongs", file.role));
            }
            if *role != Role::Catalog && file.bytes > SMALL_BYTES_MAX {
                return Err(format!("{role:?} of {} bytes", file.bytes));
            }
            files.push(sum(file.bytes, &file.blake3)?);
        }
        let files: [Sum; 4] = files
            .try_into()
            .ok()
            .filter(|_| self.files.len() == Role::ALL.len())
            .ok_or_else(|| format!("{} files", self.files.len()))?;
        let mut packs: Vec<PackEntry> = Vec::with_capacity(self.packs.len());
        for pack in &self.packs {
            if packs.last().is_some_and(|last| last.pack.0 >= pack.pack) {
                return Err(format!("pack {} out of order", pack.pack));
            }
            if pack.bytes > CLOSED_PACK_BYTES_MAX {
                return Err(format!("pack {} of {} bytes", pack.pack, pack.bytes));
            }
            packs.push(PackEntry {
                pack: PackNumber(pack.pack),
                sum: sum(pack.bytes, &pack.blake3)?,
                digest: pack.digest,
                damaged: pack.damaged,
            });
        }
        Ok(Manifest {
            realm,
            name: self.name,
            number: self.number,
            taken_unix_s: self.taken_unix_s,
            history: self.history,
            software: self.software,
            files,
            packs,
        })
    }
}

/// A manifest that says things which nobody has vouched for.
pub struct Unproven {
    signed: Signed<Seal>,
    body: [u8; 32],
    manifest: Manifest,
}

impl Unproven {
    /// Reads a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let end = bytes.iter().take(4096).position(|b| *b == b'\n');
        let (head, body) = bytes.split_at(end.ok_or(ManifestError::NotOne)?);
        let body = &body[1..];
        let head = std::str::from_utf8(head).map_err(|_| ManifestError::NotOne)?;
        let rest = head.strip_prefix(HEAD).ok_or(ManifestError::NotOne)?;
        let (format, seal) = rest.split_once(' ').ok_or(ManifestError::NotOne)?;
        if format != FORMAT {
            return Err(ManifestError::Format(format.into()));
        }
        let seal = hex::decode(seal).map_err(|_| ManifestError::NotOne)?;
        let malformed = ManifestError::Malformed;
        let signed = Signed::from_bytes(&seal).map_err(|e| malformed(e.to_string()))?;
        let parsed: Body = serde_json::from_slice(body).map_err(|e| malformed(e.to_string()))?;
        Ok(Self {
            signed,
            body: *blake3::hash(body).as_bytes(),
            manifest: parsed.check().map_err(malformed)?,
        })
    }

    /// What it claims. To be used for nothing but finding what proves it.
    pub fn claims(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest, if `publisher` signed it.
    pub fn prove(self, publisher: &PublicKey) -> Result<Manifest, ManifestError> {
        let seal = self
            .signed
            .open_by(publisher)
            .map_err(ManifestError::Signature)?;
        let same = seal.body == self.body
            && seal.realm == self.manifest.realm
            && seal.number == self.manifest.number;
        same.then_some(self.manifest).ok_or(ManifestError::Changed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest() -> Manifest {
        let sum = |bytes| Sum {
            bytes,
            blake3: [bytes as u8; 32],
        };
        let pack = |number, damaged| PackEntry {
            pack: PackNumber(number),
            sum: sum(number),
            digest: u64::MAX,
            damaged,
        };
        Manifest {
            realm: RealmId([7; 16]),
            name: "acme".into(),
            number: 3,
            taken_unix_s: 4,
            history: 5,
            software: "0.1.0".into(),
            files: [sum(1), sum(2), sum(3), sum(4)],
            packs: vec![pack(1, 0), pack(9, 2)],
        }
    }

    #[test]
    fn only_the_realms_own_and_unchanged_manifest_is_believed() {
        let (key, _) = SigningKey::generate();
        let (other, _) = SigningKey::generate();
        let bytes = manifest().encode(&key);
        let prove = |bytes: &[u8], key: &SigningKey| {
            Unproven::parse(bytes).and_then(|found| found.prove(&key.public()))
        };
        assert_eq!(prove(&bytes, &key).unwrap(), manifest());
        assert!(matches!(
            prove(&bytes, &other),
            Err(ManifestError::Signature(_))
        ));
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            assert!(prove(&bent, &key).is_err(), "byte {at}");
            assert!(prove(&bytes[..at], &key).is_err(), "cut at {at}");
        }
        let text = String::from_utf8(bytes).unwrap();
        let newer = text.replacen("backup 1", "backup 2", 1);
        assert!(matches!(
            prove(newer.as_bytes(), &key),
            Err(ManifestError::Format(_))
        ));
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        let (key, _) = SigningKey::generate();
        let mut twice = manifest();
        twice.packs[1].pack = PackNumber(1);
        let mut huge = manifest();
        huge.packs[0].sum.bytes = CLOSED_PACK_BYTES_MAX + 1;
        let mut long = manifest();
        long.files[Role::Secrets as usize].bytes = SMALL_BYTES_MAX + 1;
        for bad in [twice, huge, long] {
            let parsed = Unproven::parse(&bad.encode(&key));
            assert!(matches!(parsed, Err(ManifestError::Malformed(_))));
        }
    }

    #[test]
    fn names_of_objects_are_known_again() {
        for role in Role::ALL {
            assert!(is_ours(&role.object(12)));
        }
        assert!(is_ours(MANIFEST));
        for foreign in ["catalog", "catalog.x", "notes.1", "realm.1.txt"] {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }
}
