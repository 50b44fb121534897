//! The management API as types: what the datacenter's `/v1` takes and gives, what a branch reports about itself, and (feature
//! `client`) a typed client.
//!
//! Ids travel as hexadecimal text, times as unix seconds, sizes as bytes. Fields that a peer does not know are ignored and
//! missing ones default, so that old and new programs understand each other inside one major version. This crate decides nothing.

pub mod audit;
pub mod backup;
pub mod branch;
#[cfg(feature = "client")]
pub mod client;
pub mod health;
pub mod image;
pub mod laptop;
pub mod operation;
pub mod people;
pub mod policy;
pub mod problem;
pub mod readiness;
pub mod reference;
pub mod rollout;
pub mod status;
pub mod store;
pub mod support;
pub mod token;
pub mod units;
pub mod volume;

pub use audit::{AuditEntry, AuditFacts, AuditLine, AuditList, AuditState};
pub use backup::{BackupRequest, BackupResult};
pub use branch::{
    AssignRequest, BootReport, Branch, BranchAhead, BranchIntroduction, BranchKind, BranchList,
    BranchState, BranchStatus, CacheStatus, DesktopSigns, DesktopStatus, Latencies, LinkReport,
    MachineType, Pool, PoolList, StartMode, TokenRequest, TokenResponse, TransferCounters,
    VersionResidency,
};
#[cfg(feature = "client")]
pub use client::{Client, ClientError, ClientOptions};
pub use health::{Health, ReadyReport};
pub use image::{
    BootOutcome, BootSummary, ChunkSizes, CreateImage, Image, ImageList, ProfileSummary,
    PublishRequest, TreeSummary, UpdateRequest, UpdateSummary, VerifyMode, Version, VersionDiff,
    VersionList,
};
pub use laptop::{
    CheckInRequest, CheckOutRequest, Checkout, CheckoutList, CheckoutStage, ExtendRequest,
    WipeOrder, WipeOrderList, WipeRequest,
};
pub use operation::{
    DamagedItem, Operation, OperationKind, OperationList, OperationResult, OperationState, Phase,
    Progress, PublishResult, VerifyResult,
};
pub use people::{
    AccountKind, Entitlement, EntitlementList, Grant, Group, GroupList, LogInRequest,
    PasswordRequest, ProofRequest, Role, Session, SetupCode, SetupRequest, SubjectKind, TotpSetup,
    User, UserList, UserRequest,
};
pub use policy::{BranchPolicy, PolicyRequest};
pub use problem::{Problem, ProblemCode};
pub use readiness::{OfflineBoot, PoolReadiness, Readiness};
pub use reference::{NameError, VersionRef, check_name};
pub use rollout::{
    BranchPrice, Channel, ChannelList, ChannelRequest, HealthGate, HealthSign, PriceBasis, Rollout,
    RolloutEntry, RolloutList, RolloutPool, RolloutPoolState, RolloutPrice, RolloutRequest,
    RolloutState,
};
pub use status::{DatacenterStatus, StoreStatus};
pub use store::{
    CollectRequest, CollectResult, DamagedName, DeletedVersion, DeletedVersionList, ExportRequest,
    ExportResult, PinRequest, Retention, ScrubRequest, ScrubResult, ScrubStatus, StoreReport,
    VersionPin,
};
pub use support::{SupportFile, SupportReport};
pub use token::{ApiToken, ApiTokenList, ApiTokenRequest, NewApiToken};
pub use volume::{
    BreakLeaseRequest, EndedLease, Move, MoveList, MoveRequest, MoveState, MoveVolume,
    ReasonRequest, RollBackRequest, SnapshotCause, StatePolicy, StatePolicyRequest, Volume,
    VolumeFork, VolumeKind, VolumeLease, VolumeList, VolumeReport, VolumeSnapshot, VolumeState,
};
