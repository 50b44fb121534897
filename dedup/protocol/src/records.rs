//! The signed records: a published version, and what a branch is to run.

use dedup::{BranchId, ChunkerParams, NodeId, RealmId, VersionId};
use serde::{Deserialize, Serialize};

use crate::trust::{Record, Signed, decode_record, encode_record};

/// One tree of chunks: a disk or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TreeRef {
    /// Name of its root node.
    pub root: NodeId,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// Which tree of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tree {
    /// The disk.
    Disk,
    /// The kernel found inside it.
    Kernel,
    /// The initial RAM disk found inside it.
    Initrd,
}

/// What a desktop needs to boot a Linux image without firmware, found inside the image at publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootArtifacts {
    /// The kernel file.
    pub kernel: TreeRef,
    /// The initial RAM disk, if the image has one.
    pub initrd: Option<TreeRef>,
    /// `root=…`, as the kernel takes it.
    pub root_argument: String,
    /// Path of the kernel inside the image, for people.
    pub kernel_path: String,
}

/// An immutable published revision of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The realm that published it.
    pub realm: RealmId,
    /// The image's name.
    pub image: String,
    /// 1 for the image's first version, then counting.
    pub number: u32,
    /// The version it follows, whose leaves it shares.
    pub parent: Option<VersionId>,
    /// When it was published, unix seconds.
    pub created_unix_s: u64,
    /// The disk.
    pub disk: TreeRef,
    /// How it was chunked.
    pub params: ChunkerParams,
    /// Boot artifacts, where the image has them.
    pub boot: Option<BootArtifacts>,
    /// Operating system as the image names it, for people.
    pub os: Option<String>,
    /// Bytes of the disk that are not zero.
    pub data_bytes: u64,
}

impl VersionRecord {
    /// The tree `tree`, if this version has it.
    pub fn tree(&self, tree: Tree) -> Option<TreeRef> {
        match tree {
            Tree::Disk => Some(self.disk),
            Tree::Kernel => self.boot.as_ref().map(|b| b.kernel),
            Tree::Initrd => self.boot.as_ref().and_then(|b| b.initrd),
        }
    }
}

impl Record for VersionRecord {
    const NAME: &'static str = "version";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

impl Signed<VersionRecord> {
    /// The version's name.
    pub fn id(&self) -> VersionId {
        VersionId(self.digest())
    }
}

/// Which kind of machine runs a pool's desktops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// The branch chooses: splice-vmm where it can run the desktop, else QEMU.
    #[default]
    Auto,
    /// splice-vmm, or nothing.
    Splice,
    /// QEMU.
    Qemu,
}

/// What one pool at one branch runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAssignment {
    /// The pool's name, unique at the branch.
    pub pool: String,
    /// The image, for people.
    pub image: String,
    /// The version that desktops started from now on boot.
    pub version: VersionId,
    /// Versions kept whole at the branch besides it, so that going back needs no WAN.
    pub pinned: Vec<VersionId>,
    /// Memory of a desktop in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a desktop.
    pub vcpus: u32,
    /// Whether the whole version is fetched ahead of use.
    pub prestage: bool,
    /// What runs its desktops.
    pub machine: MachineType,
    /// Whether they have a TPM.
    pub tpm: bool,
}

impl PoolAssignment {
    /// Whether the first kind of assignment says all of it.
    fn is_first_kind(&self) -> bool {
        self.machine == MachineType::Auto && !self.tpm
    }
}

/// What a branch is to run. The counter never goes back, so that an old assignment cannot be played again; going back to
/// an older *version* is a new assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The realm.
    pub realm: RealmId,
    /// The branch it is for.
    pub branch: BranchId,
    /// Counts up with every assignment for this branch.
    pub counter: u64,
    /// When it was signed, unix seconds.
    pub issued_unix_s: u64,
    /// When it stops to give new trust, unix seconds. Desktops inside the branch's offline grace go on.
    pub expires_unix_s: u64,
    /// How long after the expiry an offline branch may still power on, in seconds.
    pub offline_grace_s: u64,
    /// One entry for each pool.
    pub pools: Vec<PoolAssignment>,
}

impl Assignment {
    /// The minor version of an end that can read it.
    pub fn minor(&self) -> u16 {
        if self.kind() == FIRST_KIND { 1 } else { 2 }
    }
}

/// The kind that knows neither machine types nor TPMs. Still written where it says all, so that older branches follow.
const FIRST_KIND: &str = "assignment";

impl Record for Assignment {
    const NAME: &'static str = "assignment";
    const KINDS: &'static [&'static str] = &["assignment 2", FIRST_KIND];

    fn realm(&self) -> RealmId {
        self.realm
    }

    fn kind(&self) -> &'static str {
        if self.pools.iter().all(PoolAssignment::is_first_kind) {
            FIRST_KIND
        } else {
            Self::KINDS[0]
        }
    }

    fn encode(&self, kind: &str) -> Vec<u8> {
        if kind == FIRST_KIND {
            encode_record(&FirstAssignment::from(self))
        } else {
            encode_record(self)
        }
    }

    fn decode(kind: &str, bytes: &[u8]) -> Result<Self, String> {
        if kind == FIRST_KIND {
            decode_record(bytes).map(FirstAssignment::into)
        } else {
            decode_record(bytes)
        }
    }
}

/// An assignment of the first kind.
#[derive(Serialize, Deserialize)]
struct FirstAssignment {
    realm: RealmId,
    branch: BranchId,
    counter: u64,
    issued_unix_s: u64,
    expires_unix_s: u64,
    offline_grace_s: u64,
    pools: Vec<FirstPool>,
}

#[derive(Serialize, Deserialize)]
struct FirstPool {
    pool: String,
    image: String,
    version: VersionId,
    pinned: Vec<VersionId>,
    memory_mib: u32,
    vcpus: u32,
    prestage: bool,
}

impl From<&Assignment> for FirstAssignment {
    fn from(new: &Assignment) -> Self {
        let pool = |new: &PoolAssignment| FirstPool {
            pool: new.pool.clone(),
            image: new.image.clone(),
            version: new.version,
            pinned: new.pinned.clone(),
            memory_mib: new.memory_mib,
            vcpus: new.vcpus,
            prestage: new.prestage,
        };
        Self {
            realm: new.realm,
            branch: new.branch,
            counter: new.counter,
            issued_unix_s: new.issued_unix_s,
            expires_unix_s: new.expires_unix_s,
            offline_grace_s: new.offline_grace_s,
            pools: new.pools.iter().map(pool).collect(),
        }
    }
}

impl From<FirstAssignment> for Assignment {
    fn from(first: FirstAssignment) -> Self {
        let pool = |first: FirstPool| PoolAssignment {
            pool: first.pool,
            image: first.image,
            version: first.version,
            pinned: first.pinned,
            memory_mib: first.memory_mib,
            vcpus: first.vcpus,
            prestage: first.prestage,
            machine: MachineType::Auto,
            tpm: false,
        };
        Self {
            realm: first.realm,
            branch: first.branch,
            counter: first.counter,
            issued_unix_s: first.issued_unix_s,
            expires_unix_s: first.expires_unix_s,
            offline_grace_s: first.offline_grace_s,
            pools: first.pools.into_iter().map(pool).collect(),
        }
    }
}
