//! Rows of desktops' volumes: who may write each, what was written, what of that is kept. `docs/disk-formats/catalog.md` tells their bytes.
//!
//! Invariant: every chunk and manifest node that a row here names is durable in the store before the row is; and what a row names is a root of
//! a collection for as long as the row is there ([`crate::roots`]).

use dedup::{BranchId, DesktopId, VersionId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::AuthorityRow;
use dedup_protocol::state::writeback::{LineRow, Snapshot, SnapshotPolicy};
use dedup_protocol::state::{Generation, Head, Line, Nonce};
use serde::{Deserialize, Serialize};

use super::backend::Table;
use super::rows::{PoolKey, Row, RowKey};

impl RowKey for DesktopId {
    fn encode(&self) -> Vec<u8> {
        self.0.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes)
    }
}

/// A line: a volume's own, or a fork of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LineKey {
    /// The volume.
    pub volume: DesktopId,
    /// Under which generation a fork was written, and its name.
    pub fork: Option<(Generation, Nonce)>,
}

impl LineKey {
    /// The volume's own.
    pub fn own(volume: DesktopId) -> Self {
        Self { volume, fork: None }
    }

    /// Of a line as messages name it. All generations of a volume write to one line of its own.
    pub fn of(line: &Line) -> Self {
        Self {
            volume: line.desktop,
            fork: line.fork.map(|name| (line.generation, name)),
        }
    }
}

impl RowKey for LineKey {
    fn encode(&self) -> Vec<u8> {
        // Generations count from 1, so zeros are no fork's.
        let (generation, name) = self.fork.unwrap_or((Generation::NONE, Nonce::NONE));
        [
            self.volume.0.as_slice(),
            &generation.0.to_be_bytes(),
            &name.0,
        ]
        .concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (volume, rest) = bytes.split_at_checked(DesktopId::LEN)?;
        let (generation, name) = rest.split_first_chunk::<8>()?;
        let generation = Generation(u64::from_be_bytes(*generation));
        let name = Nonce(name.try_into().ok()?);
        Some(Self {
            volume: DesktopId::from_slice(volume)?,
            fork: (generation != Generation::NONE).then_some((generation, name)),
        })
    }
}

/// A part of the segment that is staged on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartKey {
    /// The line.
    pub line: LineKey,
    /// Its number.
    pub part: u32,
}

impl RowKey for PartKey {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.line.encode();
        bytes.extend_from_slice(&self.part.to_be_bytes());
        bytes
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (line, part) = bytes.split_last_chunk::<4>()?;
        Some(Self {
            line: LineKey::decode(line)?,
            part: u32::from_be_bytes(*part),
        })
    }
}

/// A generation of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationKey {
    /// The volume.
    pub volume: DesktopId,
    /// The generation.
    pub generation: Generation,
}

impl RowKey for GenerationKey {
    fn encode(&self) -> Vec<u8> {
        [self.volume.0.as_slice(), &self.generation.0.to_be_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (volume, generation) = bytes.split_at_checked(DesktopId::LEN)?;
        Some(Self {
            volume: DesktopId::from_slice(volume)?,
            generation: Generation(u64::from_be_bytes(generation.try_into().ok()?)),
        })
    }
}

/// A snapshot of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotKey {
    /// The volume.
    pub volume: DesktopId,
    /// The snapshot's number.
    pub number: u64,
}

impl RowKey for SnapshotKey {
    fn encode(&self) -> Vec<u8> {
        [self.volume.0.as_slice(), &self.number.to_be_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (volume, number) = bytes.split_at_checked(DesktopId::LEN)?;
        Some(Self {
            volume: DesktopId::from_slice(volume)?,
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

/// Which of a desktop's volumes. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// Its system volume, over a version.
    System,
    /// Its user volume.
    User,
}

/// A volume that a branch has told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// Which of the desktop's.
    pub kind: VolumeKind,
    /// The desktop's name, for people.
    pub desktop: String,
    /// Its pool at the branch it was told of by.
    pub pool: String,
    /// The branch that may ask for it.
    pub home: BranchId,
    /// The version that a system volume began with.
    pub version: Option<VersionId>,
    /// What it began with: a version's disk, or zeros.
    pub began: TreeRef,
    /// When it was told of first, unix seconds.
    pub known_unix_s: u64,
    /// Snapshots that were ever cut of it; the newest one's number.
    pub snapshots: u64,
}

/// A part that is durable, with all of its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRow {
    /// Encoded [`dedup_protocol::state::writeback::Part`].
    pub ranges: Vec<u8>,
    /// A tree of its distinct chunks one behind the other, so that a collection finds them; none if it shows only zeros.
    pub chunks: Option<TreeRef>,
}

/// What a generation began with: the state under its lease's base, kept for as long as a fork of it may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginRow {
    /// The history up to there.
    pub head: Head,
    /// The state.
    pub tree: TreeRef,
}

/// How a pool's volumes are leased, and which snapshots of them are cut and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePolicyRow {
    /// From a lease's signature to its expiry, in seconds.
    pub lease_s: u64,
    /// How long a branch may run a desktop offline after that, in seconds.
    pub offline_grace_s: u64,
    /// Snapshots.
    pub snapshots: SnapshotPolicy,
}

impl Default for StatePolicyRow {
    /// An office: a day, and a week offline.
    fn default() -> Self {
        Self {
            lease_s: 86_400,
            offline_grace_s: 7 * 86_400,
            snapshots: SnapshotPolicy::default(),
        }
    }
}

/// What happened to a volume that somebody has to answer for. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditEvent {
    /// IT broke a lease.
    LeaseBroken,
    /// A branch came with an older copy of its disk.
    OldCopy,
    /// IT discarded a fork.
    ForkDiscarded,
    /// IT made a fork the volume's state.
    ForkRestored,
    /// IT expects nothing more of a generation.
    GenerationSettled,
    /// IT deleted a snapshot.
    SnapshotDeleted,
    /// IT deleted a volume.
    VolumeDeleted,
    /// IT named another branch that may ask for a volume, while nobody held it.
    HomeChanged,
    /// IT made a snapshot the volume's state.
    RolledBack,
    /// IT checked a desktop out to a laptop, or changed until when it is.
    CheckedOut,
    /// IT wants a desktop back from a laptop, or it came back.
    CheckedIn,
    /// IT ordered that keys are destroyed.
    WipeOrdered,
    /// A branch said that they are.
    Wiped,
    /// IT moved the desktop to another branch.
    Moved,
    /// IT took a move back.
    MoveCancelled,
}

impl AuditEvent {
    /// In the audit log's words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaseBroken => "lease_broken",
            Self::OldCopy => "old_copy",
            Self::ForkDiscarded => "fork_discarded",
            Self::ForkRestored => "fork_restored",
            Self::GenerationSettled => "generation_settled",
            Self::SnapshotDeleted => "snapshot_deleted",
            Self::VolumeDeleted => "volume_deleted",
            Self::HomeChanged => "home_changed",
            Self::RolledBack => "rolled_back",
            Self::CheckedOut => "checked_out",
            Self::CheckedIn => "checked_in",
            Self::WipeOrdered => "wipe_ordered",
            Self::Wiped => "wiped",
            Self::Moved => "moved",
            Self::MoveCancelled => "move_cancelled",
        }
    }

    /// Who is behind it: who it was of those that manage is told by the call that the entry stands between the beginning and the end of.
    pub fn who(self) -> &'static str {
        match self {
            Self::OldCopy | Self::Wiped => "datacenter",
            _ => "management",
        }
    }
}

/// What happened to a volume, on its way into the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEvent {
    /// When, unix seconds.
    pub unix_s: u64,
    /// What.
    pub event: AuditEvent,
    /// Of which volume.
    pub volume: DesktopId,
    /// The desktop's name, for people.
    pub desktop: String,
    /// Of which generation; 0 if it is of none.
    pub generation: Generation,
    /// The branch that it was taken from, if it was.
    pub branch: Option<BranchId>,
    /// Who did it and why; what the datacenter saw, if it was not IT.
    pub reason: String,
}

/// How a move ended. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveEnd {
    /// The target holds all of it.
    Done {
        /// Since when, unix seconds.
        unix_s: u64,
    },
    /// IT took it back.
    Cancelled {
        /// When, unix seconds.
        unix_s: u64,
    },
}

/// A desktop that is moved to another branch, or was last. Each volume that moves has the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRow {
    /// The desktop's name.
    pub desktop: String,
    /// Its pool at the target.
    pub pool: String,
    /// Its pool at the source.
    pub from_pool: String,
    /// The source.
    pub from: BranchId,
    /// The target.
    pub to: BranchId,
    /// The desktop's random id.
    pub identity: DesktopId,
    /// Its system volume and the version that began with, if it moves.
    pub system: Option<(DesktopId, VersionId)>,
    /// Its user volume and that one's size in bytes, if it has one.
    pub user: Option<(DesktopId, u64)>,
    /// When it was asked for, unix seconds.
    pub asked_unix_s: u64,
    /// How it ended.
    pub end: Option<MoveEnd>,
}

impl MoveRow {
    /// Ids of the volumes that move, the system's first.
    pub fn volumes(&self) -> Vec<DesktopId> {
        let system = self.system.map(|(id, _)| id);
        let user = self.user.map(|(id, _)| id);
        system.into_iter().chain(user).collect()
    }
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
    VolumeRow, DesktopId, Volumes;
    AuthorityRow, DesktopId, Authorities;
    LineRow, LineKey, Lines;
    PartRow, PartKey, StagedParts;
    BeginRow, GenerationKey, Begins;
    Snapshot, SnapshotKey, Snapshots;
    StatePolicyRow, PoolKey, StatePolicies;
    MoveRow, DesktopId, Moves;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dedup_protocol::state::authority::{Holder, Past};
    use dedup_protocol::state::message::Cut;
    use dedup_protocol::state::writeback::{Retention, Staged};
    use dedup_protocol::state::{Ended, Position};

    use super::super::rows::{decode, encode};
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        let volume = DesktopId([7; 16]);
        let fork = LineKey {
            volume,
            fork: Some((Generation(300), Nonce([9; 16]))),
        };
        for line in [LineKey::own(volume), fork] {
            assert_eq!(LineKey::decode(&line.encode()), Some(line));
            let part = PartKey { line, part: 70_000 };
            assert_eq!(PartKey::decode(&part.encode()), Some(part));
        }
        assert!(
            LineKey::own(volume).encode() < fork.encode(),
            "a volume's own line comes first"
        );
        let key = GenerationKey {
            volume,
            generation: Generation(5),
        };
        assert_eq!(GenerationKey::decode(&key.encode()), Some(key));
        let key = SnapshotKey { volume, number: 6 };
        assert_eq!(SnapshotKey::decode(&key.encode()), Some(key));
        assert_eq!(LineKey::decode(&[0; 39]), None);
    }

    fn hex_of<R: Row>(row: &R) -> String {
        let bytes = encode(row);
        decode::<R>(&bytes).unwrap();
        hex::encode(bytes)
    }

    fn plain(text: &str) -> String {
        text.replace(' ', "")
    }

    const VOLUME: DesktopId = DesktopId([0xdd; 16]);
    const BRANCH: BranchId = BranchId([0xbb; 16]);
    const HEAD: Head = Head([3; 32]);

    fn tree() -> TreeRef {
        TreeRef {
            root: dedup::NodeId([0xcc; 32]),
            size_bytes: 300,
        }
    }

    fn line() -> Line {
        Line {
            desktop: VOLUME,
            generation: Generation(300),
            fork: None,
        }
    }

    /// The bytes of small fields again and again: volume, branch, tree, head.
    fn words() -> [String; 4] {
        let tree = format!("{}ac02", "cc".repeat(32));
        ["dd".repeat(16), "bb".repeat(16), tree, "03".repeat(32)]
    }

    #[test]
    fn golden_rows_of_volumes_and_authorities() {
        let [volume, branch, began, head] = words();
        let (aa, one, two) = ("aa".repeat(32), "01".repeat(16), "02".repeat(16));
        let row = VolumeRow {
            kind: VolumeKind::User,
            desktop: "alice".into(),
            pool: "office".into(),
            home: BRANCH,
            version: Some(VersionId([0xaa; 32])),
            began: tree(),
            known_unix_s: 1,
            snapshots: 2,
        };
        let golden = format!("01 01 05616c696365 066f6666696365 {branch} 01{aa} {began} 01 02");
        assert_eq!(hex_of(&row), plain(&golden));
        let row = AuthorityRow {
            desktop: VOLUME,
            last: Generation(300),
            holder: Some(Holder {
                branch: BRANCH,
                renewal: 2,
                nonce: Nonce([1; 16]),
                asked: Nonce([2; 16]),
                base: HEAD,
                issued_unix_s: 4,
                expires_unix_s: 5,
                offline_grace_s: 6,
            }),
            past: vec![Past {
                generation: Generation(1),
                branch: BRANCH,
                asked: Nonce([2; 16]),
                base: HEAD,
                ended: Ended::Broken,
                ended_unix_s: 7,
            }],
        };
        let golden = format!(
            "01 {volume} ac02 01 {branch} 02 {one} {two} {head} 04 05 06 01 01 {branch} {two} {head} 01 07"
        );
        assert_eq!(hex_of(&row), plain(&golden));
        let row = StatePolicyRow {
            lease_s: 300,
            offline_grace_s: 1,
            snapshots: SnapshotPolicy {
                every_s: 2,
                at_log_off: true,
                keep: Retention {
                    newest: 3,
                    hourly: 4,
                    daily: 5,
                    weekly: 6,
                },
            },
        };
        assert_eq!(hex_of(&row), "01ac0201020103040506");
    }

    #[test]
    fn golden_rows_of_moves() {
        let [volume, branch, ..] = words();
        let (aa, other) = ("aa".repeat(32), "ee".repeat(16));
        let row = MoveRow {
            desktop: "alice".into(),
            pool: "office".into(),
            from_pool: "desk".into(),
            from: BRANCH,
            to: BranchId([0xee; 16]),
            identity: VOLUME,
            system: Some((VOLUME, VersionId([0xaa; 32]))),
            user: Some((DesktopId([0xee; 16]), 300)),
            asked_unix_s: 1,
            end: Some(MoveEnd::Cancelled { unix_s: 2 }),
        };
        let golden = format!(
            "01 05616c696365 066f6666696365 046465736b {branch} {other} {volume} 01{volume}{aa} 01{other}ac02 01 010102"
        );
        assert_eq!(hex_of(&row), plain(&golden));
    }

    #[test]
    fn golden_rows_of_lines_and_snapshots() {
        let [volume, _, disk, head] = words();
        let (one, two, four) = ("01".repeat(16), "02".repeat(16), "04".repeat(32));
        let at = Position { seq: 5, head: HEAD };
        let row = LineRow {
            line: line(),
            applied: at,
            before: Position::START,
            newest: Nonce([1; 16]),
            sealed_unix_s: 6,
            disks: vec![tree()],
            staged: Some(Staged {
                segment: Nonce([2; 16]),
                to: 7,
                parts: 2,
                head: Head([4; 32]),
                is_whole: true,
                cut: Cut::LogOff,
                sealed_unix_s: 8,
            }),
        };
        let start = "00".repeat(32);
        let golden = format!(
            "01 {volume} ac02 00 05 {head} 00 {start} {one} 06 01 {disk} 01 {two} 07 02 {four} 01 01 08"
        );
        assert_eq!(hex_of(&row), plain(&golden));
        let row = PartRow {
            ranges: vec![1, 2],
            chunks: Some(tree()),
        };
        assert_eq!(hex_of(&row), plain(&format!("01 02 0102 01 {disk}")));
        let row = BeginRow {
            head: HEAD,
            tree: tree(),
        };
        assert_eq!(hex_of(&row), plain(&format!("01 {head} {disk}")));
        let row = Snapshot {
            number: 1,
            line: line(),
            at,
            cut: Cut::Frozen,
            sealed_unix_s: 6,
            taken_unix_s: 7,
            is_pinned: true,
            disks: vec![tree()],
        };
        let golden = format!("01 01 {volume} ac02 00 05 {head} 03 06 07 01 01 {disk}");
        assert_eq!(hex_of(&row), plain(&golden));
    }
}
