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

/// How a pool's fresh desktops come to their log-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// They boot.
    #[default]
    Boot,
    /// They go on from a desktop that has booted, where the branch can do that; else they boot.
    Resume,
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
    /// Size of the user volume that each of them gets, in MiB; 0 for none.
    pub user_volume_mib: u32,
    /// Whether desktops' systems begin anew at log-off. Else they are kept.
    pub pooled: bool,
    /// How fresh ones come to their log-in.
    pub start: StartMode,
}

impl PoolAssignment {
    /// Whether the first kind of assignment says all of it.
    fn is_first_kind(&self) -> bool {
        self.machine == MachineType::Auto && !self.tpm && self.is_second_kind()
    }

    /// Whether the second kind of assignment says all of it.
    fn is_second_kind(&self) -> bool {
        self.user_volume_mib == 0 && self.is_third_kind()
    }

    /// Whether the third kind of assignment says all of it.
    fn is_third_kind(&self) -> bool {
        !self.pooled && self.start == StartMode::Boot
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
        match self.kind() {
            FIRST_KIND => 1,
            SECOND_KIND => 2,
            THIRD_KIND => 3,
            _ => 5,
        }
    }
}

/// The kind that knows neither machine types nor TPMs. Still written where it says all, so that older branches follow.
const FIRST_KIND: &str = "assignment";
/// The kind that knows no user volumes; still written for the same reason.
const SECOND_KIND: &str = "assignment 2";
/// The kind that knows no pooled desktops, and no start but a boot; the same.
const THIRD_KIND: &str = "assignment 3";

impl Record for Assignment {
    const NAME: &'static str = "assignment";
    const KINDS: &'static [&'static str] = &["assignment 4", THIRD_KIND, SECOND_KIND, FIRST_KIND];

    fn realm(&self) -> RealmId {
        self.realm
    }

    fn kind(&self) -> &'static str {
        if self.pools.iter().all(PoolAssignment::is_first_kind) {
            FIRST_KIND
        } else if self.pools.iter().all(PoolAssignment::is_second_kind) {
            SECOND_KIND
        } else if self.pools.iter().all(PoolAssignment::is_third_kind) {
            THIRD_KIND
        } else {
            Self::KINDS[0]
        }
    }

    fn encode(&self, kind: &str) -> Vec<u8> {
        match kind {
            FIRST_KIND => encode_record(&former(self, FirstPool::of)),
            SECOND_KIND => encode_record(&former(self, SecondPool::of)),
            THIRD_KIND => encode_record(&former(self, ThirdPool::of)),
            _ => encode_record(self),
        }
    }

    fn decode(kind: &str, bytes: &[u8]) -> Result<Self, String> {
        match kind {
            FIRST_KIND => decode_record::<FormerAssignment<FirstPool>>(bytes).map(Self::from),
            SECOND_KIND => decode_record::<FormerAssignment<SecondPool>>(bytes).map(Self::from),
            THIRD_KIND => decode_record::<FormerAssignment<ThirdPool>>(bytes).map(Self::from),
            _ => decode_record(bytes),
        }
    }
}

/// An assignment of a former kind: what is said of pools differs.
#[derive(Serialize, Deserialize)]
struct FormerAssignment<P> {
    realm: RealmId,
    branch: BranchId,
    counter: u64,
    issued_unix_s: u64,
    expires_unix_s: u64,
    offline_grace_s: u64,
    pools: Vec<P>,
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

#[derive(Serialize, Deserialize)]
struct SecondPool {
    first: FirstPool,
    machine: MachineType,
    tpm: bool,
}

#[derive(Serialize, Deserialize)]
struct ThirdPool {
    second: SecondPool,
    user_volume_mib: u32,
}

fn former<P>(new: &Assignment, pool: impl Fn(&PoolAssignment) -> P) -> FormerAssignment<P> {
    FormerAssignment {
        realm: new.realm,
        branch: new.branch,
        counter: new.counter,
        issued_unix_s: new.issued_unix_s,
        expires_unix_s: new.expires_unix_s,
        offline_grace_s: new.offline_grace_s,
        pools: new.pools.iter().map(pool).collect(),
    }
}

impl<P: Into<PoolAssignment>> From<FormerAssignment<P>> for Assignment {
    fn from(former: FormerAssignment<P>) -> Self {
        Self {
            realm: former.realm,
            branch: former.branch,
            counter: former.counter,
            issued_unix_s: former.issued_unix_s,
            expires_unix_s: former.expires_unix_s,
            offline_grace_s: former.offline_grace_s,
            pools: former.pools.into_iter().map(Into::into).collect(),
        }
    }
}

impl FirstPool {
    fn of(new: &PoolAssignment) -> Self {
        Self {
            pool: new.pool.clone(),
            image: new.image.clone(),
            version: new.version,
            pinned: new.pinned.clone(),
            memory_mib: new.memory_mib,
            vcpus: new.vcpus,
            prestage: new.prestage,
        }
    }
}

impl SecondPool {
    fn of(new: &PoolAssignment) -> Self {
        Self {
            first: FirstPool::of(new),
            machine: new.machine,
            tpm: new.tpm,
        }
    }
}

impl ThirdPool {
    fn of(new: &PoolAssignment) -> Self {
        Self {
            second: SecondPool::of(new),
            user_volume_mib: new.user_volume_mib,
        }
    }
}

impl From<FirstPool> for PoolAssignment {
    fn from(first: FirstPool) -> Self {
        Self {
            pool: first.pool,
            image: first.image,
            version: first.version,
            pinned: first.pinned,
            memory_mib: first.memory_mib,
            vcpus: first.vcpus,
            prestage: first.prestage,
            machine: MachineType::Auto,
            tpm: false,
            user_volume_mib: 0,
            pooled: false,
            start: StartMode::Boot,
        }
    }
}

impl From<SecondPool> for PoolAssignment {
    fn from(second: SecondPool) -> Self {
        Self {
            machine: second.machine,
            tpm: second.tpm,
            ..second.first.into()
        }
    }
}

impl From<ThirdPool> for PoolAssignment {
    fn from(third: ThirdPool) -> Self {
        Self {
            user_volume_mib: third.user_volume_mib,
            ..third.second.into()
        }
    }
}
