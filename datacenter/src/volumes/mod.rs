//! Volumes of desktops: which branch may write each, what it wrote, and what of that is kept.
//!
//! A volume is a desktop's system volume (its id is the desktop's) or its user volume. Each has its own lease, its own line of segments and
//! its own snapshots. This is the owner of the datacenter's machines of [`dedup_protocol::state`]: it looks rows up, does their actions in order,
//! and says who is entitled to what.
//!
//! ```text
//!   report of a branch ──► register      the volume, what it begins with
//!   AskLease, ReturnLease, DropLease ──► lease ──┐
//!   OfferPart, PartChunks ──► write_back ──► keep: one transaction each, which reads the rows that it was decided by
//!                                 └► build: manifests from parts
//!   GetVersion, GetOutline, … of a state ──► began   what the holder's generation goes on behind
//!   people ──► manage, forks, back, moves, checkout, wipe
//! ```
//!
//! Invariants: what a message says is durable before it is sent; a row is written only over the row that the decision was made from, so that of
//! two machines of one volume (a link that went and came while work went on) one fails and is loaded again; a machine takes a step only
//! when its actions are done. What it does not do: sockets ([`crate::sync`]).

mod back;
mod began;
mod build;
mod checkout;
mod forks;
mod keep;
mod lease;
mod manage;
mod moves;
mod policy;
mod reading;
mod register;
mod wipe;
mod write_back;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup::{BranchId, ChunkId, DesktopId};
use dedup_protocol::client::AnswerRefused;
use dedup_protocol::state::authority::{Authority, AuthorityRow, Progress};
use dedup_protocol::state::writeback::{LineRow, PartError, ReceiveError, Receiver};
use dedup_protocol::state::{Generation, Nonce};
use dedup_protocol::wire::{Message, RefuseCode};
use dedup_store::{Hold, StoreError};

use crate::catalog::volumes::{LineKey, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::realm::random;
pub use build::BuildError;
use reading::Reading;
pub use reading::TreeUse;
pub use write_back::Received;

/// Most forks of one generation: copies of one disk that came back. A branch draws their names.
pub const FORKS_MAX: usize = 4;
/// Most lines of a volume: its own, and the forks of all generations that may have some.
const LINES_MAX: usize = 1 + FORKS_MAX * dedup_protocol::state::authority::PAST_MAX * 2;
/// Messages that wait for a branch's control stream. It is told again whatever it asks about.
const NOTICES_MAX: usize = 256;

/// Why a branch's message about a volume is not answered.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The message does not fit.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// Its ranges are malformed.
    #[error("the part that is offered")]
    Part(#[from] PartError),
    /// It names a chunk of another length.
    #[error("chunk {id} in a range of {told} bytes; it has {len}")]
    Length {
        /// Which.
        id: ChunkId,
        /// What the part says.
        told: u32,
        /// How long it is.
        len: u32,
    },
    /// What it sends is not what was asked for.
    #[error("the chunks that came")]
    Chunks(#[from] AnswerRefused),
    /// Too many forks of one generation.
    #[error(
        "{FORKS_MAX} forks of that lease are here already; IT is to restore or discard some with `splice desktop-state fork`"
    )]
    Forks,
    /// The rows have changed since the decision.
    #[error("the volume was changed meanwhile; ask again")]
    Stale,
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The chunk store.
    #[error("chunk store")]
    Store(#[from] StoreError),
    /// The state could not be built.
    #[error("the volume's new state")]
    Build(#[source] Box<BuildError>),
}

impl From<BuildError> for StateError {
    fn from(error: BuildError) -> Self {
        Self::Build(Box::new(error))
    }
}

impl StateError {
    /// What the branch is told.
    pub fn code(&self) -> RefuseCode {
        match self {
            Self::Receive(ReceiveError::NotYours) => RefuseCode::NotReadable,
            Self::Receive(_) | Self::Part(_) | Self::Length { .. } | Self::Chunks(_) => {
                RefuseCode::BadRequest
            }
            Self::Forks | Self::Stale | Self::Catalog(_) | Self::Store(_) => RefuseCode::Busy,
            Self::Build(_) => RefuseCode::Damaged,
        }
    }

    /// Whether it is the datacenter's fault, for IT to know.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Catalog(_) | Self::Store(_) | Self::Build(_))
    }
}

/// A line's machine, and what is durable of it.
struct OpenLine {
    receiver: Receiver,
    /// `None` before anything is.
    kept: Option<LineRow>,
    /// Keeps the chunks of the part that is on its way.
    hold: Option<Hold>,
    /// Held by who builds its state: one at a time.
    building: Arc<Mutex<()>>,
}

impl OpenLine {
    fn open(row: LineRow, kept: bool) -> Self {
        let kept = kept.then(|| row.clone());
        // A segment that a crash left whole is built at the start, or when its last part is offered again.
        let (receiver, _) = Receiver::open(row);
        Self {
            receiver,
            kept,
            hold: None,
            building: Arc::default(),
        }
    }
}

/// What a holder said of itself.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// Its newest durable record.
    flushed: u64,
    /// Under which generation.
    generation: Generation,
    /// When, by our clock, unix seconds.
    unix_s: u64,
}

/// The machines of one volume.
struct Machines {
    authority: Authority,
    /// `None` before the first lease.
    kept: Option<AuthorityRow>,
    lines: HashMap<LineKey, OpenLine>,
    told: Option<Told>,
}

impl Machines {
    fn load(tx: &mut Tx<'_>, volume: DesktopId) -> Result<Self, CatalogError> {
        let kept: Option<AuthorityRow> = tx.get(&volume)?;
        let row = kept.clone();
        let lines = tx.list::<LineRow>(&volume.0, None, LINES_MAX)?;
        Ok(Self {
            authority: Authority::open(row.unwrap_or_else(|| AuthorityRow::new(volume))),
            kept,
            lines: lines
                .into_iter()
                .map(|(key, row)| (key, OpenLine::open(row, true)))
                .collect(),
            told: None,
        })
    }

    /// How far the volume's own line is, as a holder of `generation` may know it.
    fn progress(&self, volume: DesktopId, generation: Generation) -> Option<Progress> {
        let line = self.lines.get(&LineKey::own(volume))?;
        Some(line.receiver.row().progress(generation))
    }
}

struct Open {
    home: BranchId,
    machines: Arc<Mutex<Machines>>,
}

/// The volumes that are worked with, and what branches are to be told of theirs.
#[derive(Default)]
pub struct Volumes {
    open: Mutex<HashMap<DesktopId, Open>>,
    notices: Mutex<HashMap<BranchId, Vec<Message>>>,
    /// Trees that are being read.
    reading: Reading,
    /// Volumes that each branch has told of, once somebody counted.
    counts: Mutex<Option<HashMap<BranchId, usize>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Machines are replaced whole, after their actions are done; maps are changed in one step.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A random number that is not 0.
fn fresh() -> u64 {
    u64::from_le_bytes(random::<8>()).max(1)
}

impl Datacenter {
    /// A volume's row; `None` if no branch has told of it.
    fn volume_row(&self, volume: DesktopId) -> Result<Option<VolumeRow>, CatalogError> {
        self.catalog().read(|tx| tx.get::<VolumeRow>(&volume))
    }

    /// The machines of a volume, loaded if they are not.
    fn machines(
        &self,
        volume: DesktopId,
        row: &VolumeRow,
    ) -> Result<Arc<Mutex<Machines>>, CatalogError> {
        let mut open = lock(&self.volumes().open);
        if let Some(found) = open.get(&volume).filter(|found| found.home == row.home) {
            return Ok(Arc::clone(&found.machines));
        }
        let machines = self.catalog().read(|tx| Machines::load(tx, volume))?;
        let machines = Arc::new(Mutex::new(machines));
        let entry = Open {
            home: row.home,
            machines: Arc::clone(&machines),
        };
        open.insert(volume, entry);
        Ok(machines)
    }

    /// Has a volume loaded again when it is needed next: what is durable of it is not known, or not what was thought.
    fn forget_volume(&self, volume: DesktopId) {
        lock(&self.volumes().open).remove(&volume);
    }

    /// A branch's last link is gone: its volumes need no memory. Offers on their way are made again.
    pub(crate) fn forget_volumes_of(&self, branch: BranchId) {
        lock(&self.volumes().open).retain(|_, open| open.home != branch);
        lock(&self.volumes().notices).remove(&branch);
    }

    /// Has `message` sent on the branch's control stream, if its link is up.
    fn notify(&self, branch: BranchId, message: Message) {
        if self.link_remote(branch).is_none() {
            return;
        }
        let mut notices = lock(&self.volumes().notices);
        let waiting = notices.entry(branch).or_default();
        if waiting.len() < NOTICES_MAX {
            waiting.push(message);
        }
        drop(notices);
        self.announce_assignments();
    }

    /// What is to be sent on the branch's control stream now.
    pub fn take_notices(&self, branch: BranchId) -> Vec<Message> {
        lock(&self.volumes().notices)
            .remove(&branch)
            .unwrap_or_default()
    }
}

/// A fork as people name it.
pub(crate) fn fork_name(generation: Generation, name: Nonce) -> String {
    format!("{}-{}", generation.0, hex::encode(name.0))
}

/// Reads [`fork_name`]'s text.
fn parse_fork(text: &str) -> Option<(Generation, Nonce)> {
    let (generation, name) = text.split_once('-')?;
    let mut bytes = [0; 16];
    hex::decode_to_slice(name, &mut bytes).ok()?;
    Some((Generation(generation.parse().ok()?), Nonce(bytes)))
}
