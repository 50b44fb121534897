//! Who this branch is: its certificate and key, the realm it belongs to, and where the datacenter is.
//!
//! Written once by `splice-branch join`, all files before the one that says that joining succeeded (`realm.json`); a certificate is
//! replaced when the datacenter renews it. Keys are readable by their owner only.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dedup::{BranchId, IdKey};
use dedup_protocol::join::{JoinAnswer, JoinRequest, JoinToken};
use dedup_protocol::trust::{Endorsement, TrustAnchor};
use dedup_protocol::wire::{FRAME_BYTES_MAX, Message};
use dedup_transport::identity::{BranchKey, CertAndKey};
use dedup_transport::link::{Class, LinkClient, LinkError, LinkTuning};
use serde::{Deserialize, Serialize};

/// Why joining or reading the identity failed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data directory has no identity.
    #[error(
        "{} is not a branch yet; get a token with `splice branch token NAME` at the datacenter and run `splice-branch join TOKEN --data {}`", dir.display(), dir.display()
    )]
    NotJoined {
        /// The data directory.
        dir: PathBuf,
    },
    /// It has one already.
    #[error("{} is branch {name:?} already; use another --data directory, or remove this one to start over", dir.display())]
    AlreadyJoined {
        /// The data directory.
        dir: PathBuf,
        /// The branch's name.
        name: String,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is malformed.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The datacenter said no.
    #[error("the datacenter refused: {0}")]
    Refused(String),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It answered something else.
    #[error("the datacenter's answer: {0}")]
    Answer(String),
}

/// The identity of this branch.
#[derive(Debug, Clone)]
pub struct Identity {
    dir: PathBuf,
    /// Its id.
    pub branch: BranchId,
    /// Its name.
    pub name: String,
    /// The datacenter's link address, `host:port`.
    pub address: String,
    /// Realm and root key.
    pub anchor: TrustAnchor,
    /// Publisher keys endorsed when it joined.
    pub endorsements: Vec<Endorsement>,
    /// The secret under which the realm names content.
    pub id_key: IdKey,
    /// The realm's CA certificate.
    pub ca_pem: String,
}

#[derive(Serialize, Deserialize)]
struct RealmFile {
    branch: String,
    name: String,
    address: String,
    anchor: TrustAnchor,
    endorsements: Vec<Endorsement>,
}

fn realm_file(dir: &Path) -> PathBuf {
    dir.join("identity/realm.json")
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> IdentityError + '_ {
    |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Writes a file whole or not at all, readable by its owner only.
fn write_secret(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let part = path.with_extension("part");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&part)
        .map_err(io(&part))?;
    file.write_all(content).map_err(io(&part))?;
    file.sync_all().map_err(io(&part))?;
    std::fs::rename(&part, path).map_err(io(path))?;
    let dir = path.parent().expect("identity files are in a directory");
    let dir_file = std::fs::File::open(dir).map_err(io(dir))?;
    dir_file.sync_all().map_err(io(dir))
}

fn read(path: PathBuf) -> Result<String, IdentityError> {
    std::fs::read_to_string(&path).map_err(io(&path))
}

impl Identity {
    /// Reads the identity of the data directory `dir`.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = realm_file(dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(IdentityError::NotJoined { dir: dir.into() });
            }
            Err(e) => return Err(io(&path)(e)),
        };
        let malformed = |path: &Path, reason: String| IdentityError::Malformed {
            path: path.into(),
            reason,
        };
        let file: RealmFile =
            serde_json::from_str(&text).map_err(|e| malformed(&path, e.to_string()))?;
        let key_path = dir.join("identity/id.key");
        let secret = hex::decode(read(key_path.clone())?.trim())
            .ok()
            .and_then(|k| <[u8; 32]>::try_from(k).ok());
        let secret =
            secret.ok_or_else(|| malformed(&key_path, "not 64 hexadecimal digits".into()))?;
        Ok(Self {
            dir: dir.into(),
            branch: file
                .branch
                .parse()
                .map_err(|e: dedup::id::ParseIdError| malformed(&path, e.to_string()))?,
            name: file.name,
            address: file.address,
            anchor: file.anchor,
            endorsements: file.endorsements,
            id_key: IdKey::new(secret),
            ca_pem: read(dir.join("identity/ca.crt"))?,
        })
    }

    /// Certificate and key, as they are now.
    pub fn certificate(&self) -> Result<CertAndKey, IdentityError> {
        Ok(CertAndKey {
            cert_pem: read(self.dir.join("identity/branch.crt"))?,
            key_pem: read(self.dir.join("identity/branch.key"))?.into(),
        })
    }

    /// The secret under which the realm names content, as its file holds it, so that it can be kept out of texts.
    pub fn id_key_text(&self) -> Option<String> {
        read(self.dir.join("identity/id.key")).ok()
    }

    /// Until when the certificate holds, unix seconds; none if it cannot be read.
    pub fn certificate_until_unix_s(&self) -> Option<u64> {
        let certificate = read(self.dir.join("identity/branch.crt")).ok()?;
        dedup_transport::identity::expires_at(&certificate).ok()
    }

    /// Keeps a renewed certificate with its new key: the key first, beside the old one, then both by rename.
    pub fn replace_certificate(&self, der: &[u8], key_pem: &str) -> Result<(), IdentityError> {
        // A crash between the two leaves a pair that does not match; the pair file is the commit.
        let pair = format!("{}{key_pem}", dedup_transport::identity::cert_pem(der));
        write_secret(&self.dir.join("identity/renewed.pem"), pair.as_bytes())?;
        self.finish_renewal()
    }

    /// Completes a renewal that a crash cut.
    pub fn finish_renewal(&self) -> Result<(), IdentityError> {
        let pair_path = self.dir.join("identity/renewed.pem");
        let Ok(pair) = std::fs::read_to_string(&pair_path) else {
            return Ok(());
        };
        let split = pair
            .find("-----BEGIN PRIVATE KEY-----")
            .unwrap_or(pair.len());
        write_secret(
            &self.dir.join("identity/branch.key"),
            &pair.as_bytes()[split..],
        )?;
        write_secret(
            &self.dir.join("identity/branch.crt"),
            &pair.as_bytes()[..split],
        )?;
        std::fs::remove_file(&pair_path).map_err(io(&pair_path))
    }
}

/// Whether the identity of the data directory `dir` was destroyed, or began to be.
pub fn is_destroyed(dir: &Path) -> bool {
    !dir.join("identity/branch.crt").exists()
}

/// Overwrites and removes what makes this machine a branch. To be called last: nobody can be told anything afterwards. Interrupted, it is to be done again.
///
/// # Errors
/// A file could not be removed.
pub fn destroy(dir: &Path) -> Result<(), IdentityError> {
    let folder = dir.join("identity");
    // It is no secret, and that it is gone says that this has begun.
    remove_if_there(&folder.join("branch.crt"))?;
    let folder_file = std::fs::File::open(&folder).map_err(io(&folder))?;
    folder_file.sync_all().map_err(io(&folder))?;
    for name in [
        // Whoever has it could stand before the branch's users.
        "portal/portal.key",
        "identity/renewed.pem",
        "identity/branch.key",
        "identity/id.key",
        "identity/ca.crt",
        "identity/realm.json",
    ] {
        let path = dir.join(name);
        let len = match std::fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(io(&path)(e)),
        };
        let file = OpenOptions::new().write(true).open(&path);
        let mut file = file.map_err(io(&path))?;
        let noise: Vec<u8> = (0..len).map(|_| rand::random()).collect();
        file.write_all(&noise).map_err(io(&path))?;
        file.sync_all().map_err(io(&path))?;
        remove_if_there(&path)?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), IdentityError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io(path)(e)),
        _ => Ok(()),
    }
}

/// Enrols: spends `token` and writes the identity into `dir`. `address` replaces the token's.
pub async fn join(
    dir: &Path,
    token: &JoinToken,
    address: Option<&str>,
    tuning: &LinkTuning,
) -> Result<Identity, IdentityError> {
    if let Ok(identity) = Identity::load(dir) {
        return Err(IdentityError::AlreadyJoined {
            dir: dir.into(),
            name: identity.name,
        });
    }
    let identity_dir = dir.join("identity");
    std::fs::create_dir_all(&identity_dir).map_err(io(&identity_dir))?;
    let address = address.unwrap_or(&token.address);
    // The key is on the disk before the token is spent: a crash after that must not lose the certificate's key.
    let key = BranchKey::generate();
    write_secret(&identity_dir.join("branch.key"), key.key_pem().as_bytes())?;
    let link = LinkClient::join(address, token.ca_hash, tuning).await?;
    let (mut send, mut recv) = link.open(Class::Demand).await?;
    let request = Message::Join(JoinRequest {
        secret: token.secret,
        csr_der: key.csr_der().to_vec(),
    });
    send.send(&request.encode()).await?;
    send.finish()?;
    let frame = recv.recv(FRAME_BYTES_MAX).await?;
    let frame = frame.ok_or_else(|| IdentityError::Answer("ended without one".into()))?;
    let answer = match Message::decode(&frame) {
        Ok(Message::Joined(answer)) => answer,
        Ok(Message::Refuse(refuse)) => return Err(IdentityError::Refused(refuse.message)),
        Ok(other) => {
            return Err(IdentityError::Answer(format!(
                "unexpected {}",
                other.name()
            )));
        }
        Err(error) => return Err(IdentityError::Answer(error.to_string())),
    };
    link.close("joined");
    keep(dir, &identity_dir, address, token, answer)?;
    Identity::load(dir)
}

fn keep(
    dir: &Path,
    identity_dir: &Path,
    address: &str,
    token: &JoinToken,
    answer: JoinAnswer,
) -> Result<(), IdentityError> {
    if answer.anchor.realm != token.realm {
        let text = format!(
            "is of realm {}, the token's is {}",
            answer.anchor.realm, token.realm
        );
        return Err(IdentityError::Answer(text));
    }
    let certificate = dedup_transport::identity::cert_pem(&answer.certificate_der);
    write_secret(&identity_dir.join("branch.crt"), certificate.as_bytes())?;
    write_secret(&identity_dir.join("ca.crt"), answer.ca_pem.as_bytes())?;
    write_secret(
        &identity_dir.join("id.key"),
        hex::encode(answer.id_key).as_bytes(),
    )?;
    let realm = RealmFile {
        branch: answer.branch.to_string(),
        name: answer.name,
        address: address.into(),
        anchor: answer.anchor,
        endorsements: answer.endorsements,
    };
    let text = serde_json::to_string_pretty(&realm).expect("the realm file serialises");
    write_secret(&realm_file(dir), text.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    const FILES: [&str; 6] = [
        "branch.crt",
        "branch.key",
        "ca.crt",
        "id.key",
        "realm.json",
        "renewed.pem",
    ];

    #[test]
    fn a_destruction_that_was_cut_is_known_and_gone_on_with() {
        // As many as a cut destruction has removed; the certificate is the first.
        for gone in [0, 1, 3, FILES.len()] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("identity");
            std::fs::create_dir(&folder).unwrap();
            for name in &FILES[gone..] {
                std::fs::write(folder.join(name), "a secret").unwrap();
            }
            let portal_key = dir.path().join("portal/portal.key");
            std::fs::create_dir(dir.path().join("portal")).unwrap();
            std::fs::write(&portal_key, "a secret").unwrap();
            assert_eq!(is_destroyed(dir.path()), gone > 0);
            for _ in 0..2 {
                destroy(dir.path()).unwrap();
                assert!(is_destroyed(dir.path()));
                assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
                assert!(!portal_key.exists());
            }
        }
    }
}
