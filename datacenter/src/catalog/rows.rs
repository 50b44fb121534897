//! The rows of the catalog and how they are written: one format byte, then the row in postcard's encoding.
//!
//! A row whose shape changes gets the next format number and reads its former shape in [`Row::upgrade`]. The bytes of every
//! row are under test; `docs/disk-formats/catalog.md` tells them.

use dedup::{BranchId, ChunkerParams, RealmId, VersionId};
use dedup_protocol::policy::Policy;
use dedup_protocol::profile::{BootScore, Entries};
use dedup_protocol::records::{MachineType, StartMode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::backend::Table;

/// A typed row.
pub trait Row: Serialize + DeserializeOwned {
    /// Its table.
    const TABLE: Table;
    /// The format that is written.
    const FORMAT: u8 = 1;
    /// Its key.
    type Key: RowKey;

    /// Reads an older format; `None` if there is no such format.
    fn upgrade(_format: u8, _bytes: &[u8]) -> Option<Self> {
        None
    }
}

/// A key whose byte order is its order.
pub trait RowKey: Sized {
    /// The key's bytes.
    fn encode(&self) -> Vec<u8>;
    /// Reads [`Self::encode`]'s bytes.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// A row's bytes.
pub fn encode<R: Row>(row: &R) -> Vec<u8> {
    postcard::to_extend(row, vec![R::FORMAT]).expect("rows serialise without failing")
}

/// Reads a row's bytes.
pub fn decode<R: Row>(bytes: &[u8]) -> Result<R, CatalogError> {
    let bad = |reason: String| CatalogError::Row {
        table: R::TABLE,
        reason,
    };
    match bytes.split_first() {
        Some((&format, body)) if format == R::FORMAT => {
            postcard::from_bytes(body).map_err(|e| bad(e.to_string()))
        }
        Some((&format, body)) => {
            R::upgrade(format, body).ok_or_else(|| bad(format!("unknown format {format}")))
        }
        None => Err(bad("empty".into())),
    }
}

impl RowKey for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl RowKey for String {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl RowKey for VersionId {
    fn encode(&self) -> Vec<u8> {
        self.0.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes)
    }
}

impl RowKey for BranchId {
    fn encode(&self) -> Vec<u8> {
        self.0.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes)
    }
}

/// A SHA-256 of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Hashes a secret that is random enough not to need stretching.
    pub fn of(secret: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, secret);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl RowKey for SecretHash {
    fn encode(&self) -> Vec<u8> {
        self.0.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// An image's version by number. Newest first: the number is stored inverted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberKey {
    /// The image.
    pub image: String,
    /// The version's number.
    pub number: u32,
}

impl NumberKey {
    /// What the keys of all versions of `image` begin with. Names have no zero byte.
    pub fn prefix(image: &str) -> Vec<u8> {
        let mut bytes = image.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }
}

impl RowKey for NumberKey {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::prefix(&self.image);
        bytes.extend_from_slice(&(!self.number).to_be_bytes());
        bytes
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (name, number) = bytes.split_last_chunk::<4>()?;
        let (&zero, name) = name.split_last()?;
        (zero == 0).then_some(())?;
        Some(Self {
            image: String::decode(name)?,
            number: !u32::from_be_bytes(*number),
        })
    }
}

/// A pool at a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// The branch.
    pub branch: BranchId,
    /// The pool's name.
    pub pool: String,
}

impl RowKey for PoolKey {
    fn encode(&self) -> Vec<u8> {
        [self.branch.as_bytes().as_slice(), self.pool.as_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (branch, pool) = bytes.split_at_checked(BranchId::LEN)?;
        Some(Self {
            branch: BranchId::from_slice(branch)?,
            pool: String::decode(pool)?,
        })
    }
}

/// A version at a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantKey {
    /// The branch.
    pub branch: BranchId,
    /// The version.
    pub version: VersionId,
}

impl RowKey for GrantKey {
    fn encode(&self) -> Vec<u8> {
        [self.branch.as_bytes().as_slice(), self.version.as_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (branch, version) = bytes.split_at_checked(BranchId::LEN)?;
        Some(Self {
            branch: BranchId::from_slice(branch)?,
            version: VersionId::from_slice(version)?,
        })
    }
}

/// A recorded boot of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingKey {
    /// The version.
    pub version: VersionId,
    /// Counts up.
    pub number: u64,
}

impl RowKey for RecordingKey {
    fn encode(&self) -> Vec<u8> {
        [
            self.version.as_bytes().as_slice(),
            &self.number.to_be_bytes(),
        ]
        .concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, number) = bytes.split_at_checked(VersionId::LEN)?;
        Some(Self {
            version: VersionId::from_slice(version)?,
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

/// A number, largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestFirst(pub u64);

impl RowKey for NewestFirst {
    fn encode(&self) -> Vec<u8> {
        (!self.0).to_be_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self(!u64::from_be_bytes(bytes.try_into().ok()?)))
    }
}

/// What the catalog is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Its format as a whole.
    pub format: u32,
    /// Whose it is.
    pub realm: RealmId,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// How its versions are chunked, for as long as it lives.
    pub params: ChunkerParams,
    /// When it was created, unix seconds.
    pub created_unix_s: u64,
    /// Its latest visible version's number; 0 before the first.
    pub latest: u32,
}

/// Whether a version can be had. The tag is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionState {
    /// It is complete, verified and signed.
    Visible,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Whether it can be had.
    pub state: VersionState,
    /// Its image.
    pub image: String,
    /// Its number.
    pub number: u32,
    /// `Signed<VersionRecord>` as bytes.
    pub signed: Vec<u8>,
    /// Its publisher's note.
    pub note: Option<String>,
    /// Chunks that it added to the store.
    pub new_chunks: u64,
    /// Compressed bytes that it added to the store.
    pub stored_bytes: u64,
}

/// Which version has an image's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionNumberRow {
    /// The version.
    pub version: VersionId,
}

/// A branch's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// Its serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
}

/// What a branch is. The tags are on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BranchKind {
    /// A site with a branch server.
    #[default]
    Site,
    /// One user's machine, which desktops are checked out to.
    Laptop,
}

/// A branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchRow {
    /// Its name.
    pub name: String,
    /// Where it is, for people.
    pub site: Option<String>,
    /// When it was first invited, unix seconds.
    pub created_unix_s: u64,
    /// When it joined.
    pub joined_unix_s: Option<u64>,
    /// Its newest certificate.
    pub certificate: Option<CertificateRow>,
    /// When it was revoked.
    pub revoked_unix_s: Option<u64>,
    /// What it is.
    pub kind: BranchKind,
}

/// [`BranchRow`] in format 1.
#[derive(Deserialize)]
struct FirstBranchRow {
    name: String,
    site: Option<String>,
    created_unix_s: u64,
    joined_unix_s: Option<u64>,
    certificate: Option<CertificateRow>,
    revoked_unix_s: Option<u64>,
}

impl Row for BranchRow {
    const TABLE: Table = Table::Branches;
    const FORMAT: u8 = 2;
    type Key = BranchId;

    fn upgrade(format: u8, bytes: &[u8]) -> Option<Self> {
        if format != 1 {
            return None;
        }
        let first: FirstBranchRow = postcard::from_bytes(bytes).ok()?;
        Some(Self {
            name: first.name,
            site: first.site,
            created_unix_s: first.created_unix_s,
            joined_unix_s: first.joined_unix_s,
            certificate: first.certificate,
            revoked_unix_s: first.revoked_unix_s,
            kind: BranchKind::Site,
        })
    }
}

/// Which branch has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchNameRow {
    /// The branch.
    pub branch: BranchId,
}

/// How a join token was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// When, unix seconds.
    pub unix_s: u64,
    /// SHA-256 of the public key that it paid for.
    pub key_hash: [u8; 32],
    /// The branch that came of it.
    pub branch: BranchId,
    /// The certificate that was issued, so that a lost answer can be given again.
    pub certificate_der: Vec<u8>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRow {
    /// The branch's name.
    pub name: String,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
    /// Whether it may replace a server that has joined.
    pub replace: bool,
    /// How it was used.
    pub used: Option<TokenUse>,
}

/// What a pool is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// The image.
    pub image: String,
    /// The version that new desktops boot.
    pub version: VersionId,
    /// Versions kept whole besides it.
    pub pinned: Vec<VersionId>,
    /// Memory of a desktop in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a desktop.
    pub vcpus: u32,
    /// Whether the version is fetched ahead of use.
    pub prestage: bool,
    /// What runs desktops.
    pub machine: MachineType,
    /// Whether desktops have a TPM.
    pub tpm: bool,
    /// Size of desktops' user volumes in MiB; 0 for none.
    pub user_volume_mib: u32,
    /// Whether desktops' systems begin anew at log-off.
    pub pooled: bool,
    /// How fresh desktops come to their log-in.
    pub start: StartMode,
    /// The channel of the image's versions that it follows.
    pub channel: Option<String>,
}

/// [`PoolRow`] in format 1.
#[derive(Deserialize)]
struct FirstPoolRow {
    image: String,
    version: VersionId,
    pinned: Vec<VersionId>,
    memory_mib: u32,
    vcpus: u32,
    prestage: bool,
}

/// [`PoolRow`] in format 2.
#[derive(Deserialize)]
struct SecondPoolRow {
    first: FirstPoolRow,
    machine: MachineType,
    tpm: bool,
}

/// [`PoolRow`] in format 3.
#[derive(Deserialize)]
struct ThirdPoolRow {
    second: SecondPoolRow,
    user_volume_mib: u32,
}

/// [`PoolRow`] in format 4.
#[derive(Deserialize)]
struct FourthPoolRow {
    third: ThirdPoolRow,
    pooled: bool,
    start: StartMode,
}

impl From<FourthPoolRow> for PoolRow {
    fn from(fourth: FourthPoolRow) -> Self {
        Self {
            pooled: fourth.pooled,
            start: fourth.start,
            ..fourth.third.into()
        }
    }
}

impl From<ThirdPoolRow> for PoolRow {
    fn from(third: ThirdPoolRow) -> Self {
        Self {
            user_volume_mib: third.user_volume_mib,
            ..third.second.into()
        }
    }
}

impl From<SecondPoolRow> for PoolRow {
    fn from(second: SecondPoolRow) -> Self {
        let first = second.first;
        Self {
            image: first.image,
            version: first.version,
            pinned: first.pinned,
            memory_mib: first.memory_mib,
            vcpus: first.vcpus,
            prestage: first.prestage,
            machine: second.machine,
            tpm: second.tpm,
            user_volume_mib: 0,
            pooled: false,
            start: StartMode::Boot,
            channel: None,
        }
    }
}

impl Row for PoolRow {
    const TABLE: Table = Table::Pools;
    const FORMAT: u8 = 5;
    type Key = PoolKey;

    fn upgrade(format: u8, bytes: &[u8]) -> Option<Self> {
        let second = match format {
            1 => SecondPoolRow {
                first: postcard::from_bytes(bytes).ok()?,
                machine: MachineType::Auto,
                tpm: false,
            },
            2 => postcard::from_bytes(bytes).ok()?,
            3 => {
                return postcard::from_bytes::<ThirdPoolRow>(bytes)
                    .ok()
                    .map(Self::from);
            }
            4 => {
                return postcard::from_bytes::<FourthPoolRow>(bytes)
                    .ok()
                    .map(Self::from);
            }
            _ => return None,
        };
        Some(second.into())
    }
}

/// The current signed assignment of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentRow {
    /// Its counter.
    pub counter: u64,
    /// When it was signed, unix seconds.
    pub issued_unix_s: u64,
    /// When it stops to give new trust, unix seconds.
    pub expires_unix_s: u64,
    /// `Signed<Assignment>` as bytes.
    pub signed: Vec<u8>,
}

/// That a branch was assigned a version once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRow {
    /// When it was assigned last, unix seconds.
    pub assigned_unix_s: u64,
}

/// Long work, as the API shows it (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRow {
    /// `datacenter_api::Operation` as JSON.
    pub json: String,
}

/// What a branch last reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchStatusRow {
    /// When it came, unix seconds, by our clock.
    pub received_unix_s: u64,
    /// `datacenter_api::BranchStatus` as JSON.
    pub json: String,
}

/// A branch's caps and hours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPolicyRow {
    /// As the branch is told.
    pub policy: Policy,
}

/// How one boot went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRow {
    /// Where.
    pub branch: BranchId,
    /// When it was reported, unix seconds.
    pub reported_unix_s: u64,
    /// How.
    pub score: BootScore,
}

/// What is known of how a version boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootProfileRow {
    /// Counter of the signed profile; 0 before the first.
    pub counter: u64,
    /// When that was made, unix seconds.
    pub made_unix_s: u64,
    /// Boots that it is made of.
    pub boots: u32,
    /// Version that it was carried over from.
    pub carried_from: Option<VersionId>,
    /// Chunks that it names.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Boots reported in all; the next recording's number.
    pub reported: u64,
    /// What `reported` was when the profile was made.
    pub made_of: u64,
    /// The last boots, newest first.
    pub last: Vec<BootRow>,
}

/// A version's newest boot profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedProfileRow {
    /// `Signed<BootProfile>` as bytes.
    pub signed: Vec<u8>,
}

/// A recorded boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecordingRow {
    /// Where.
    pub branch: BranchId,
    /// When it was reported, unix seconds.
    pub reported_unix_s: u64,
    /// What it touched.
    pub entries: Entries,
}

/// What an update's planner found out about a version's new chunks. Numbers are those of the update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkKinRow {
    /// The version whose chunks they took the place of.
    pub parent: VersionId,
    /// For each new chunk the number of a chunk of the parent, plus 1, or 0 for none; as the difference from the one before.
    pub steps: Vec<i64>,
}

/// A version that was deleted and can still be had back. Its content is kept as long as this row is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedVersionRow {
    /// What it was.
    pub version: VersionRow,
    /// When it was deleted, unix seconds.
    pub deleted_unix_s: u64,
    /// When it cannot be had back any more, unix seconds.
    pub purge_unix_s: u64,
    /// Whether its image's retention did it, not a person.
    pub by_retention: bool,
}

/// That a version must not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionPinRow {
    /// Since when, unix seconds.
    pub pinned_unix_s: u64,
    /// Why, for people.
    pub note: Option<String>,
}

/// Which versions of an image are kept: those that either rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRow {
    /// So many of the newest, at least one.
    pub last: u32,
    /// Those published less than so many seconds ago.
    pub newer_s: u64,
}

/// That the datacenter was restored from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRow {
    /// When the backup was taken, unix seconds.
    pub taken_unix_s: u64,
    /// When it was restored, unix seconds.
    pub restored_unix_s: u64,
    /// Above all counters that were given out before; those given out since are above it. 0 is a datacenter that was never restored.
    pub history: u64,
}

/// A pool of an assignment that a branch follows and that cannot be taken over, because the catalog lacks its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostPool {
    /// The pool.
    pub pool: String,
    /// The image, for people.
    pub image: String,
    /// The version.
    pub version: VersionId,
}

/// That a branch follows an assignment which is not remembered here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AheadRow {
    /// The assignment's counter.
    pub counter: u64,
    /// When the branch told of it, unix seconds.
    pub told_unix_s: u64,
    /// Its pools that somebody must decide about.
    pub lost: Vec<LostPool>,
}

macro_rules! rows {
    ($($row:ty, $key:ty, $table:ident;)*) => {
        $(impl Row for $row {
            const TABLE: Table = Table::$table;
            type Key = $key;
        })*
    };
}

rows! {
    Meta, (), Meta;
    ImageRow, String, Images;
    VersionRow, VersionId, Versions;
    VersionNumberRow, NumberKey, VersionNumbers;
    BranchNameRow, String, BranchNames;
    JoinTokenRow, SecretHash, JoinTokens;
    AssignmentRow, BranchId, Assignments;
    GrantRow, GrantKey, Grants;
    OperationRow, NewestFirst, Operations;
    BranchStatusRow, BranchId, BranchStatus;
    BranchPolicyRow, BranchId, BranchPolicies;
    BootProfileRow, VersionId, BootProfiles;
    SignedProfileRow, VersionId, SignedProfiles;
    BootRecordingRow, RecordingKey, BootRecordings;
    ChunkKinRow, VersionId, ChunkKin;
    DeletedVersionRow, VersionId, DeletedVersions;
    VersionPinRow, VersionId, VersionPins;
    RetentionRow, String, Retentions;
    RestoreRow, (), Restores;
    AheadRow, BranchId, Ahead;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_branch_of_before_laptops_is_a_site() {
        let row = BranchRow {
            name: "ny".into(),
            site: None,
            created_unix_s: 1,
            joined_unix_s: Some(2),
            certificate: None,
            revoked_unix_s: Some(3),
            kind: BranchKind::Site,
        };
        let first = hex::decode("01026e79000101020001 03".replace(' ', "")).unwrap();
        assert_eq!(decode::<BranchRow>(&first).unwrap(), row);
        assert_eq!(decode::<BranchRow>(&encode(&row)).unwrap(), row);
        assert!(decode::<BranchRow>(&[9, 0]).is_err());
    }
}
