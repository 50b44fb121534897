//! The realm: its keys and its certificate authority, made once by `init` and opened at each start.
//!
//! Invariant: private keys are on disk only sealed ([`sealed`]), but for the root key, which `init` hands to the operator to be
//! kept offline and which nothing here needs except [`endorse`]. A data folder is a realm's as soon as `realm.json` is there, which
//! is written last. What it does not do: the catalog and the content, which later parts open beside it.

pub mod files;
pub mod sealed;

use std::io;
use std::path::{Path, PathBuf};

use dedup::{IdKey, RealmId};
use dedup_protocol::trust::{Endorsement, PublicKey, SigningKey, TrustAnchor, TrustError};
use dedup_transport::identity::{IdentityError, RealmCa};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use files::{DataDir, create_private_dir, read_small, write_durably};

/// How long the root's endorsement of the publisher key holds: one year, so that the root key is looked for once a year.
pub const ENDORSEMENT_S: u64 = 365 * 86_400;

const REALM_FORMAT: u32 = 1;
const ROOT_KEY_HEADER: &str = "splice root signing key 1";

/// Why a realm was not made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    /// There is one already.
    #[error(
        "{} holds realm {realm} already; nothing was changed. Use another folder for a new realm, or `splice-datacenter run` for this one",
        dir.display()
    )]
    Exists {
        /// The folder.
        dir: PathBuf,
        /// Whose it is.
        realm: String,
    },
    /// There is none.
    #[error("{} holds no realm; make one with `splice-datacenter init --data {}`", dir.display(), dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A file's content is wrong.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate authority.
    #[error("the realm's certificate authority")]
    Authority(#[from] IdentityError),
    /// A signing key.
    #[error("{}: the key cannot be used", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: TrustError,
    },
    /// Another realm's root key.
    #[error("{} is not the root key of realm {realm}", path.display())]
    WrongRoot {
        /// The key file.
        path: PathBuf,
        /// The realm.
        realm: RealmId,
    },
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RealmError {
    let path = path.to_owned();
    move |source| RealmError::Io {
        path,
        action,
        source,
    }
}

/// `realm.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RealmFile {
    format: u32,
    realm: String,
    name: String,
    created_unix_s: u64,
    root_public: String,
    ca_pem: String,
    endorsements: Vec<EndorsementText>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct EndorsementText {
    publisher: String,
    until_unix_s: u64,
    signature: String,
}

impl From<&Endorsement> for EndorsementText {
    fn from(e: &Endorsement) -> Self {
        Self {
            publisher: hex::encode(e.publisher),
            until_unix_s: e.until_unix_s,
            signature: hex::encode(&e.signature),
        }
    }
}

impl EndorsementText {
    fn parse(&self) -> Option<Endorsement> {
        Some(Endorsement {
            publisher: parse_key(&self.publisher)?,
            until_unix_s: self.until_unix_s,
            signature: hex::decode(&self.signature).ok()?,
        })
    }
}

fn parse_key(text: &str) -> Option<PublicKey> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).ok()?;
    Some(key)
}

/// What is sealed: postcard of this.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    id_key: [u8; 32],
    ca_key_pem: String,
    publisher: Vec<u8>,
}

/// An open realm.
#[derive(Debug)]
pub struct Realm {
    /// Its id.
    pub id: RealmId,
    /// Its name, for people.
    pub name: String,
    /// The root's public key.
    pub root: PublicKey,
    /// Publisher keys that the root endorses.
    pub endorsements: Vec<Endorsement>,
    /// Its certificate authority.
    pub ca: RealmCa,
    /// The secret that content is named under.
    pub id_key: IdKey,
    /// Signs versions and assignments.
    pub publisher: SigningKey,
}

impl Realm {
    /// What a branch is to trust.
    pub fn anchor(&self) -> TrustAnchor {
        TrustAnchor {
            realm: self.id,
            root: self.root,
        }
    }

    /// Makes a new realm in `dir`. `passphrase_file` is where the passphrase is read from, or written to if it does not exist.
    pub fn init(
        dir: &DataDir,
        passphrase_file: &Path,
        name: &str,
        now_unix_s: u64,
    ) -> Result<Self, RealmError> {
        refuse_existing(dir)?;
        create_private_dir(dir.root()).map_err(io_error(dir.root(), "create the folder"))?;
        let secrets_dir = dir.secrets();
        create_private_dir(&secrets_dir).map_err(io_error(&secrets_dir, "create the folder"))?;
        let passphrase = provide_passphrase(passphrase_file)?;

        let id = RealmId(random());
        let ca = RealmCa::create(id)?;
        let (root, root_document) = SigningKey::generate();
        let root_document = Zeroizing::new(root_document);
        let (publisher, publisher_document) = SigningKey::generate();
        let endorsement = root.endorse(id, publisher.public(), now_unix_s + ENDORSEMENT_S);
        let secrets = Secrets {
            id_key: random(),
            ca_key_pem: ca.key_pem().to_string(),
            publisher: publisher_document,
        };
        let plain =
            Zeroizing::new(postcard::to_stdvec(&secrets).expect("keys serialise without failing"));
        let realm = Self {
            id,
            name: name.to_owned(),
            root: root.public(),
            endorsements: vec![endorsement],
            ca,
            id_key: IdKey::new(secrets.id_key),
            publisher,
        };

        let root_text = Zeroizing::new(format!(
            "{ROOT_KEY_HEADER}\nrealm {id}\npkcs8 {}\n",
            *Zeroizing::new(hex::encode(&*root_document))
        ));
        let write = |path: PathBuf, mode, content: &[u8]| {
            write_durably(&path, mode, content).map_err(io_error(&path, "write it"))
        };
        write(dir.sealed(), 0o600, &sealed::seal(&passphrase, &plain))?;
        write(dir.root_key(), 0o600, root_text.as_bytes())?;
        write(dir.ca(), 0o644, realm.ca.cert_pem().as_bytes())?;
        Ok(realm)
    }

    /// Ends `init`: from now on the folder is this realm's.
    pub fn finish_init(&self, dir: &DataDir, now_unix_s: u64) -> Result<(), RealmError> {
        write_realm_file(
            dir,
            &RealmFile {
                format: REALM_FORMAT,
                realm: self.id.to_string(),
                name: self.name.clone(),
                created_unix_s: now_unix_s,
                root_public: hex::encode(self.root),
                ca_pem: self.ca.cert_pem(),
                endorsements: self.endorsements.iter().map(Into::into).collect(),
            },
        )
    }

    /// Opens the realm in `dir` with the passphrase in `passphrase_file`.
    pub fn open(dir: &DataDir, passphrase_file: &Path) -> Result<Self, RealmError> {
        let facts = read_realm_file(dir)?;
        let path = dir.sealed();
        let sealed =
            read_small(&path, sealed::SEALED_BYTES_MAX).map_err(io_error(&path, "read it"))?;
        Self::unseal(facts, path, &sealed, passphrase_file)
    }

    /// Opens a realm that does not lie in a data folder: from the bytes of its `realm.json` and `realm.sealed`, which errors call by these
    /// paths.
    pub fn from_files(
        facts: (&Path, &[u8]),
        sealed: (&Path, &[u8]),
        passphrase_file: &Path,
    ) -> Result<Self, RealmError> {
        let (path, bytes) = facts;
        let facts = parse_realm_file(path, bytes)?;
        let (path, bytes) = sealed;
        Self::unseal(facts, path.to_owned(), bytes, passphrase_file)
    }

    fn unseal(
        facts: RealmFacts,
        path: PathBuf,
        sealed: &[u8],
        passphrase_file: &Path,
    ) -> Result<Self, RealmError> {
        let (facts, id, root, endorsements) = facts;
        let passphrase = read_passphrase(passphrase_file)?;
        let wrong = |reason: String| RealmError::Content {
            path: path.clone(),
            reason,
        };
        let plain = sealed::open(&passphrase, sealed).map_err(|e| {
            wrong(format!(
                "{e} (passphrase from {})",
                passphrase_file.display()
            ))
        })?;
        let secrets: Secrets = postcard::from_bytes(&plain).map_err(|e| wrong(e.to_string()))?;
        let ca = RealmCa::from_pem(&facts.ca_pem, &secrets.ca_key_pem)?;
        if ca.realm() != id {
            return Err(wrong(format!("its authority is of realm {}", ca.realm())));
        }
        Ok(Self {
            id,
            name: facts.name,
            root,
            endorsements,
            ca,
            id_key: IdKey::new(secrets.id_key),
            publisher: SigningKey::from_pkcs8(&secrets.publisher)
                .map_err(|source| RealmError::Key { path, source })?,
        })
    }
}

/// Fails if `dir` holds a realm.
pub fn refuse_existing(dir: &DataDir) -> Result<(), RealmError> {
    match read_realm_file(dir) {
        Err(RealmError::Missing { .. }) => Ok(()),
        Ok((facts, ..)) => Err(RealmError::Exists {
            dir: dir.root().to_owned(),
            realm: facts.realm,
        }),
        // Something is there that we cannot read: all the more reason not to write over it.
        Err(error) => Err(error),
    }
}

/// Whose data folder it is.
pub fn read_id(dir: &DataDir) -> Result<RealmId, RealmError> {
    Ok(read_realm_file(dir)?.1)
}

/// The endorsements now in `realm.json`, for a daemon that runs while they are renewed.
pub fn read_endorsements(dir: &DataDir) -> Result<Vec<Endorsement>, RealmError> {
    Ok(read_realm_file(dir)?.3)
}

/// Renews the endorsement of every publisher key with the root key in `root_key`; answers until when it holds.
pub fn endorse(dir: &DataDir, root_key: &Path, until_unix_s: u64) -> Result<u64, RealmError> {
    let (mut facts, id, root, endorsements) = read_realm_file(dir)?;
    let key = read_root_key(root_key, id)?;
    if key.public() != root {
        return Err(RealmError::WrongRoot {
            path: root_key.to_owned(),
            realm: id,
        });
    }
    facts.endorsements = endorsements
        .iter()
        .map(|e| (&key.endorse(id, e.publisher, until_unix_s)).into())
        .collect();
    write_realm_file(dir, &facts)?;
    Ok(until_unix_s)
}

fn read_root_key(path: &Path, realm: RealmId) -> Result<SigningKey, RealmError> {
    let text = Zeroizing::new(read_small(path, 4096).map_err(io_error(path, "read the root key"))?);
    let text = std::str::from_utf8(&text).unwrap_or_default();
    let mut lines = text.lines();
    let document = (lines.next() == Some(ROOT_KEY_HEADER))
        .then(|| lines.find_map(|line| line.strip_prefix("pkcs8 ")))
        .flatten()
        .and_then(|hexadecimal| hex::decode(hexadecimal.trim()).ok())
        .map(Zeroizing::new)
        .ok_or_else(|| RealmError::Content {
            path: path.to_owned(),
            reason: format!("not a root key file; it begins with {ROOT_KEY_HEADER:?}"),
        })?;
    if !text.contains(&realm.to_string()) {
        return Err(RealmError::WrongRoot {
            path: path.to_owned(),
            realm,
        });
    }
    SigningKey::from_pkcs8(&document).map_err(|source| RealmError::Key {
        path: path.to_owned(),
        source,
    })
}

type RealmFacts = (RealmFile, RealmId, PublicKey, Vec<Endorsement>);

fn read_realm_file(dir: &DataDir) -> Result<RealmFacts, RealmError> {
    let path = dir.realm();
    let bytes = match read_small(&path, 1 << 20) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(RealmError::Missing {
                dir: dir.root().to_owned(),
            });
        }
        other => other.map_err(io_error(&path, "read it"))?,
    };
    parse_realm_file(&path, &bytes)
}

fn parse_realm_file(path: &Path, bytes: &[u8]) -> Result<RealmFacts, RealmError> {
    let wrong = |reason: String| RealmError::Content {
        path: path.to_owned(),
        reason,
    };
    let facts: RealmFile = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    if facts.format != REALM_FORMAT {
        return Err(wrong(format!(
            "format {}, this program knows {REALM_FORMAT}; run the newer program",
            facts.format
        )));
    }
    let id = facts
        .realm
        .parse()
        .map_err(|e: dedup::id::ParseIdError| wrong(e.to_string()))?;
    let root = parse_key(&facts.root_public).ok_or_else(|| wrong("root_public".into()))?;
    let endorsements = facts
        .endorsements
        .iter()
        .map(EndorsementText::parse)
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("an endorsement is malformed".into()))?;
    Ok((facts, id, root, endorsements))
}

fn write_realm_file(dir: &DataDir, facts: &RealmFile) -> Result<(), RealmError> {
    let path = dir.realm();
    let text = serde_json::to_vec_pretty(facts).expect("text and numbers serialise");
    write_durably(&path, 0o644, &text).map_err(io_error(&path, "write it"))
}

fn provide_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, RealmError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => return read_passphrase(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_error(path, "read the passphrase")(e)),
    }
    let text = Zeroizing::new(format!(
        "{}\n",
        *Zeroizing::new(hex::encode(random::<32>()))
    ));
    write_durably(path, 0o600, text.as_bytes()).map_err(io_error(path, "write the passphrase"))?;
    read_passphrase(path)
}

/// The first line of the file, without its end.
fn read_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, RealmError> {
    let content =
        Zeroizing::new(read_small(path, 4096).map_err(io_error(path, "read the passphrase"))?);
    let line = content
        .split(|b| *b == b'\n' || *b == b'\r')
        .next()
        .unwrap_or_default();
    if line.is_empty() {
        return Err(RealmError::Content {
            path: path.to_owned(),
            reason: "the passphrase is empty; put one on the first line".into(),
        });
    }
    Ok(Zeroizing::new(line.to_vec()))
}

/// Bytes from the system's random source.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random source works");
    bytes
}
