//! Wire messages. A frame is `version byte, tag byte, postcard body`; bulk bytes are the last field of a body.
//!
//! Tags are explicit, with gaps for what comes; a tag that this program does not know is an error that names it. Every list has a
//! limit that a decoder checks before it works on it; the transport bounds the frame itself ([`FRAME_BYTES_MAX`]).

use dedup::{ChunkerParams, NodeId, VersionId};
use serde::{Deserialize, Serialize};

use crate::join::{JoinAnswer, JoinRequest};
use crate::policy::Policy;
use crate::profile::{BootScore, Entries};
use crate::records::Tree;
use crate::state::message::{
    AskLease, DenyLease, DropLease, FenceLease, LeaseReturned, OfferPart, PartChunks, PartStaged,
    ProveLease, RecallLease, RestartSegment, ReturnLease, SegmentApplied, WantChunks,
};
use crate::state::moved::MovedDesktop;
use crate::trust::Endorsement;
use crate::wipe::Wiped;

/// First byte of every frame. The major version is in the connection's ALPN.
pub const FRAME_VERSION: u8 = 1;

/// Newest message set that this program speaks, told in the greeting. Revisions: 1, the first; 2, assignments of
/// the second kind (machine types); 3, `Wanted`, `Restore`, `Restored`, and assignments of the third kind (user volumes); 4, leases and
/// write-back of desktops; 5, checkouts to laptops, moves between branches, recalls of leases, leases that are given up, wipes, and assignments
/// of the fourth kind (pooled desktops, desktops that resume); 6, rosters of people.
pub const PROTOCOL_MINOR: u16 = 6;

/// The message set from which on `Wanted` is understood.
pub const MINOR_WANTED: u16 = 3;

/// The message set from which on leases and write-back are understood.
pub const MINOR_STATE: u16 = 4;

/// The message set from which on checkouts, recalls of leases and wipes are understood.
pub const MINOR_LAPTOP: u16 = 5;

/// The message set from which on rosters are understood.
pub const MINOR_ROSTER: u16 = 6;

/// Largest frame of any kind, in bytes: a solid batch (see [`BATCH_RAW_BYTES`]) that did not compress, and its head.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Plain bytes after which the datacenter closes a batch. 4 MiB is where one frame for many chunks stops to gain.
pub const BATCH_RAW_BYTES: usize = 4 << 20;

/// Most runs in one chunk request.
pub const RUNS_MAX: usize = 4096;

/// Most chunks that one request may name: 64 MiB of average chunks, so that a cut loses little and a queue stays short.
pub const CHUNKS_MAX: usize = 4096;

/// Most leaves in one leaf request or one outline frame.
pub const LEAVES_MAX: usize = 4096;

/// Most batches of one update: 1.9 TiB of new chunks. The head of the largest still fits one frame.
pub const UPDATE_BATCHES_MAX: usize = 1 << 18;

/// Most chunks that the datacenter asks a branch for at once, and that one offer holds: 16 MiB of the longest chunks, 1 MiB of average ones.
pub const RESTORE_CHUNKS_MAX: usize = 64;

/// Most ranges of batches in one request: a branch that holds every other batch asks again.
pub const UPDATE_RANGES_MAX: usize = 1024;

/// Consecutive extents of one leaf, whose chunks are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Leaf index.
    pub leaf: u32,
    /// First extent in the leaf.
    pub first: u16,
    /// Number of extents. Zero extents among them are passed over, and so is an extent of the chunk just before it.
    pub count: u16,
}

/// How a batch's chunks are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchEncoding {
    /// One zstd frame over the chunks' joined plain bytes: fewest bytes, costs the sender CPU.
    Solid,
    /// Chunks as they are stored, each `u32 length × 2 + (1 if zstd)` little-endian, then its bytes: no work at the sender.
    Each,
}

/// Whether a guest waits for a chunk request's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Urgency {
    /// A guest waits.
    Demand,
    /// Boot prefetch and read-ahead.
    Boot,
    /// Prepopulation.
    Fill,
}

/// Why the datacenter does not answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefuseCode {
    /// The branch may not read that version, or it does not exist: the two are not told apart.
    NotReadable,
    /// The request is malformed or over a limit.
    BadRequest,
    /// What was asked for is damaged at the datacenter; IT is alarmed there.
    Damaged,
    /// The datacenter cannot answer now; ask again later.
    Busy,
    /// The token is unknown, used or expired.
    JoinRefused,
    /// The branch's certificate was revoked.
    Revoked,
    /// The other end speaks no common message set.
    Version,
}

macro_rules! messages {
    ($($(#[$doc:meta])* $tag:literal => $name:ident($body:ty),)*) => {
        /// Every message of the link.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $name($body),)*
        }

        impl Message {
            /// The frame.
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(body) => {
                        let frame = vec![FRAME_VERSION, $tag];
                        postcard::to_extend(body, frame).expect("wire bodies serialise without failing")
                    })*
                }
            }

            /// Parses a foreign frame.
            pub fn decode(frame: &[u8]) -> Result<Self, WireError> {
                let [version, tag, body @ ..] = frame else {
                    return Err(WireError::Short(frame.len()));
                };
                if *version != FRAME_VERSION {
                    return Err(WireError::Version(*version));
                }
                let malformed = |name| move |_| WireError::Malformed { name };
                match tag {
                    $($tag => {
                        let (body, rest) = postcard::take_from_bytes(body)
                            .map_err(malformed(stringify!($name)))?;
                        if !rest.is_empty() {
                            return Err(WireError::Malformed { name: stringify!($name) });
                        }
                        Ok(Self::$name(body))
                    })*
                    tag => Err(WireError::Tag(*tag)),
                }
            }

            /// What the message is called in errors.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }
        }
    };
}

messages! {
    /// Branch → datacenter, first on the control stream.
    0x01 => Hello(Hello),
    /// Datacenter → branch, the answer.
    0x02 => Welcome(Welcome),
    /// Datacenter → branch: a signed assignment, on connection and at each change.
    0x03 => Assign(SignedBytes),
    /// Branch → datacenter: JSON of `datacenter_api::BranchStatus`.
    0x04 => Status(StatusReport),
    /// Branch → datacenter: a new certificate for this request (PKCS#10, DER).
    0x05 => Renew(Der),
    /// Datacenter → branch: the new certificate (DER).
    0x06 => Renewed(Der),
    /// Either way: no, and why.
    0x0F => Refuse(Refuse),

    /// Branch → datacenter: the signed record of a version.
    0x10 => GetVersion(GetVersion),
    /// Datacenter → branch: it.
    0x11 => Version(SignedBytes),
    /// Branch → datacenter: which leaves of a tree differ from the parent's.
    0x12 => GetOutline(GetOutline),
    /// Datacenter → branch: some of them, in order; the stream's end ends the list.
    0x13 => Outline(Outline),
    /// Branch → datacenter: leaves by index.
    0x14 => GetLeaves(GetLeaves),
    /// Datacenter → branch: some of them, in the order asked.
    0x15 => Leaves(Leaves),
    /// Branch → datacenter: the chunks that a version shows at some places.
    0x16 => GetChunks(GetChunks),
    /// Datacenter → branch: the next of them, in the order asked.
    0x17 => Batch(Batch),
    /// Datacenter → branch: the next of them are damaged here; the answer goes on behind them.
    0x18 => Unreadable(Unreadable),
    /// Branch → datacenter: how a version follows from one that the branch holds whole.
    0x19 => GetUpdate(GetUpdate),
    /// Datacenter → branch: the update's batches and their sizes.
    0x1A => UpdateHead(UpdateHead),
    /// Datacenter → branch: the next batch of those asked for.
    0x1B => UpdatePart(UpdatePart),

    /// Branch → datacenter, on a join connection.
    0x20 => Join(JoinRequest),
    /// Datacenter → branch.
    0x21 => Joined(JoinAnswer),

    /// Datacenter → branch, on the control stream: caps and hours, on connection and at each change.
    0x40 => Policy(Policy),
    /// Branch → datacenter: what one boot touched.
    0x30 => BootRecorded(BootRecorded),
    /// Datacenter → branch: the newest boot profile of a version, on the control stream and as an answer to 0x30 and 0x32.
    0x31 => ProfileAvailable(ProfileAvailable),
    /// Branch → datacenter: a version's boot profile, if there is a newer one.
    0x32 => GetProfile(GetProfile),
    /// Datacenter → branch: it, signed.
    0x33 => Profile(SignedBytes),

    /// Datacenter → branch, on the control stream: chunks that are damaged at the datacenter, by where a version shows them.
    0x50 => Wanted(Wanted),
    /// Branch → datacenter: some of them follow, each frame a `Batch`.
    0x51 => Restore(Restore),
    /// Datacenter → branch: they were proven and stored.
    0x52 => Restored(Restored),
    /// Branch → datacenter: a desktop is wanted, or its next lease.
    0x60 => AskLease(AskLease),
    /// Datacenter → branch: the signed lease.
    0x61 => LeaseGranted(SignedBytes),
    /// Datacenter → branch: say now how far you are. Also by itself.
    0x62 => ProveLease(ProveLease),
    /// Datacenter → branch: no lease.
    0x63 => DenyLease(DenyLease),
    /// Datacenter → branch: the generation has ended.
    0x64 => FenceLease(FenceLease),
    /// Branch → datacenter: a desktop is given back.
    0x65 => ReturnLease(ReturnLease),
    /// Datacenter → branch: it was.
    0x66 => LeaseReturned(LeaseReturned),
    /// Branch → datacenter: what was written under a generation was destroyed; it is to end.
    0x67 => DropLease(DropLease),
    /// Branch → datacenter: a part of a segment, by names of chunks.
    0x68 => OfferPart(OfferPart),
    /// Datacenter → branch: the chunks of it that are wanted.
    0x69 => WantChunks(WantChunks),
    /// Branch → datacenter: the next of them.
    0x6A => PartChunks(PartChunks),
    /// Datacenter → branch: the part is durable.
    0x6B => PartStaged(PartStaged),
    /// Datacenter → branch: the segment is.
    0x6C => SegmentApplied(SegmentApplied),
    /// Datacenter → branch: begin the segment again.
    0x6D => RestartSegment(RestartSegment),

    /// Datacenter → branch, on the control stream: a desktop is checked out to it, signed; on connection and at each change.
    0x70 => CheckOut(SignedBytes),
    /// Datacenter → branch, on the control stream: a volume is to be given back when it stands still.
    0x71 => RecallLease(RecallLease),
    /// Datacenter → branch, on the control stream: destroy keys, signed; on each connection until it was done.
    0x72 => Wipe(SignedBytes),
    /// Branch → datacenter, on the control stream: it was done. Back: that is noted.
    0x73 => Wiped(Wiped),
    /// Datacenter → branch, on the control stream: a desktop was moved there; on each connection until it has its leases.
    0x74 => Moved(MovedDesktop),

    /// Datacenter → branch, on the control stream: the signed roster of people who may log in there, on connection and at each change.
    0x78 => Roster(SignedBytes),
}

/// Greeting of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_MINOR`] of the branch.
    pub minor: u16,
    /// Its software version, for the console.
    pub software: String,
    /// Counter of the newest assignment it holds, 0 for none.
    pub assignment_counter: u64,
}

/// Greeting of the datacenter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL_MINOR`] of the datacenter.
    pub minor: u16,
    /// Its software version.
    pub software: String,
    /// Its clock, unix seconds, so that a branch with a wrong clock can say so.
    pub now_unix_s: u64,
    /// The realm's endorsed publisher keys.
    pub endorsements: Vec<Endorsement>,
}

/// A `Signed<…>` in encoded form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBytes {
    /// The envelope.
    pub bytes: Vec<u8>,
}

/// What a branch tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// JSON.
    pub json: String,
}

/// A certificate or certificate request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Der {
    /// DER bytes.
    pub bytes: Vec<u8>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// For programs.
    pub code: RefuseCode,
    /// For people.
    pub message: String,
}

/// Asks for a version's signed record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetVersion {
    /// Which.
    pub version: VersionId,
}

/// Asks for the shape of a tree against one the branch holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetOutline {
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// A version whose same tree the branch holds whole.
    pub parent: Option<VersionId>,
}

/// Leaves in which a tree differs from the parent's (from an all-absent tree, without parent).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// Tree size in bytes, repeated in every frame.
    pub size_bytes: u64,
    /// Chunker parameters, repeated in every frame.
    pub params: ChunkerParams,
    /// Leaf index and name, ascending.
    pub changed: Vec<(u32, NodeId)>,
}

/// Asks for leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLeaves {
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// A version whose leaf at the same index the branch holds: deltas are against it.
    pub parent: Option<VersionId>,
    /// Leaf indexes, ascending.
    pub leaves: Vec<u32>,
}

/// Leaves, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaves {
    /// For each, whether it is a delta against the parent's leaf, and its length in `packed` once unpacked, in bytes.
    pub entries: Vec<(bool, u32)>,
    /// One zstd frame over them all.
    #[serde(with = "serde_bytes")]
    pub packed: Vec<u8>,
}

/// Asks for chunks by where a version shows them: never by bare id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunks {
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// How much it matters.
    pub urgency: Urgency,
    /// Where.
    pub runs: Vec<Run>,
}

/// The next `count` chunks of those asked for. Names and lengths are known to the branch from its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// How many chunks.
    pub count: u32,
    /// How they are packed.
    pub encoding: BatchEncoding,
    /// Packed bytes.
    #[serde(with = "serde_bytes")]
    pub packed: Vec<u8>,
}

/// The next `count` chunks of those asked for cannot be read at the datacenter, where IT is alarmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// How many chunks.
    pub count: u32,
    /// For people.
    pub message: String,
}

/// Consecutive batches of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRange {
    /// The first.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// Asks for the update of a version's disk from a version that the branch holds whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetUpdate {
    /// Which version.
    pub version: VersionId,
    /// The version that the branch has, of the same image.
    pub parent: VersionId,
    /// Whether the head is wanted.
    pub head: bool,
    /// Batches wanted: ascending, without overlap.
    pub batches: Vec<BatchRange>,
}

/// One batch of an update, as its head tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSize {
    /// Chunks in it, at least one. Batches follow each other over the new chunks without gaps.
    pub chunks: u32,
    /// Its encoded length in bytes; 0: not encoded yet.
    pub packed_bytes: u32,
}

/// The shape of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateHead {
    /// All batches, in order.
    pub batches: Vec<BatchSize>,
}

/// The next batch of those asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePart {
    /// A `dedup::update::UpdateBatch`, encoded.
    #[serde(with = "serde_bytes")]
    pub batch: Vec<u8>,
}

/// What one boot of a version touched first of its disk, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecorded {
    /// Which version.
    pub version: VersionId,
    /// How the boot went.
    pub score: BootScore,
    /// What it touched, in order; at most [`crate::profile::RECORDING_BYTES_MAX`] bytes.
    pub entries: Entries,
}

/// Tells which boot profile of a version is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileAvailable {
    /// Which version.
    pub version: VersionId,
    /// The profile's counter; 0: there is none.
    pub counter: u64,
}

/// Asks for a version's boot profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetProfile {
    /// Which version.
    pub version: VersionId,
    /// Counter of the one that the branch has, 0 for none: only a newer one is sent.
    pub have: u64,
}

/// Asks a branch for chunks that it may hold, by where a version that it may read shows them. Nothing answers it but `Restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// Where; at most [`RESTORE_CHUNKS_MAX`] chunks.
    pub runs: Vec<Run>,
}

/// Offers chunks of a version, which follow in batches; at most [`RESTORE_CHUNKS_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// Where it shows them.
    pub runs: Vec<Run>,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Chunks that were damaged at the datacenter and are not any more.
    pub chunks: u32,
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too short for a head.
    #[error("a frame of {0} bytes is too short")]
    Short(usize),
    /// From a program that speaks another framing.
    #[error(
        "frame version {0} is not spoken here (this program speaks {FRAME_VERSION}); upgrade the older end"
    )]
    Version(u8),
    /// A message this program does not know.
    #[error("unknown message tag {0:#04x}; upgrade the older end")]
    Tag(u8),
    /// The body does not parse.
    #[error("malformed {name} message")]
    Malformed {
        /// Which message.
        name: &'static str,
    },
    /// A message where another was due.
    #[error("{got} message where {expected} was due")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What was due.
        expected: &'static str,
    },
}
