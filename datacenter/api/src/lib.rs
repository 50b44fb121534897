//! The management API as types: what the datacenter's `/v1` takes and gives, what a branch reports about itself, and (feature
//! `client`) a typed client.
//!
//! Ids travel as hexadecimal text, times as unix seconds, sizes as bytes. Fields that a peer does not know are ignored and
//! missing ones default, so that old and new programs understand each other inside one major version. This crate decides nothing.

pub mod backup;
pub mod branch;
#[cfg(feature = "client")]
pub mod client;
pub mod image;
pub mod operation;
pub mod policy;
pub mod problem;
pub mod readiness;
pub mod reference;
pub mod status;
pub mod store;
pub mod units;
pub mod volume;

pub use backup::{BackupRequest, BackupResult};
pub use branch::{
    AssignRequest, BootReport, Branch, BranchAhead, BranchIntroduction, BranchList, BranchState,
    BranchStatus, CacheStatus, DesktopStatus, Latencies, LinkReport, MachineType, Pool, PoolList,
    StartMode, TokenRequest, TokenResponse, TransferCounters, VersionResidency,
};
#[cfg(feature = "client")]
pub use client::{Client, ClientError, ClientOptions};
pub use image::{
    BootOutcome, BootSummary, ChunkSizes, CreateImage, Image, ImageList, ProfileSummary,
    PublishRequest, TreeSummary, UpdateRequest, UpdateSummary, VerifyMode, Version, VersionDiff,
    VersionList,
};
pub use operation::{
    DamagedItem, Operation, OperationKind, OperationList, OperationResult, OperationState, Phase,
    Progress, PublishResult, VerifyResult,
};
pub use policy::{BranchPolicy, PolicyRequest};
pub use problem::{Problem, ProblemCode};
pub use readiness::{OfflineBoot, PoolReadiness, Readiness};
pub use reference::{NameError, VersionRef, check_name};
pub use status::{DatacenterStatus, StoreStatus};
pub use store::{
    CollectRequest, CollectResult, DamagedName, DeletedVersion, DeletedVersionList, ExportRequest,
    ExportResult, PinRequest, Retention, ScrubRequest, ScrubResult, ScrubStatus, StoreReport,
    VersionPin,
};
pub use volume::{
    AuditEntry, AuditList, BreakLeaseRequest, EndedLease, ReasonRequest, RollBackRequest,
    SnapshotCause, StatePolicy, StatePolicyRequest, Volume, VolumeFork, VolumeKind, VolumeLease,
    VolumeList, VolumeReport, VolumeSnapshot, VolumeState,
};
