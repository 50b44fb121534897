//! One volume: its lease, its write-back and its overlay, moved by one owner at a time.
//!
//! ```text
//!   hear, tick, linked … ──► Hold, Sender (values) ──actions──► rows kept, parts made, overlay told ──► messages to be sent
//! ```
//!
//! Invariant: actions are done in order, and what is to be kept is durable before the next is done. If that fails the line stands still until
//! its rows are read again ([`Line::reload`]), as after a crash. A fork is made only of an overlay that no machine uses. Without the
//! overlay nothing is sealed, made or called settled: how much there is to send is not known.
//!
//! It opens no overlays, stops no machines, and knows nothing of streams.

mod leases;
mod segments;

use std::collections::VecDeque;
use std::sync::Arc;

use dedup::{BranchId, DesktopId, IdKey};
use dedup_protocol::state::Nonce;
use dedup_protocol::state::authority::{Hold, HoldAction, HoldRow, Stage};
use dedup_protocol::state::message::DenyLease;
use dedup_protocol::state::writeback::{SealPolicy, SendRow, Sender};
use dedup_protocol::wire::Message;

use super::make::{MadePart, Maker};
use super::rows::{KeptHold, OverlayOf, Rows};
use super::shown::LineShown;
use crate::catalog::CatalogError;
use crate::volume::{Overlay, OverlayError};

/// Why a line stands still.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A row could not be kept, or what came was not believed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// What is to be sent cannot be read.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The datacenter wants chunks of a part by numbers that it has not.
    #[error("the datacenter asks for chunks that part {0} does not have")]
    Wanted(u32),
    /// The overlay in the volume's place is not the one that was sent, or an older copy of it.
    #[error(
        "the overlay ends at record {found}, and record {sent} of it is at the datacenter: it is gone or an older copy; put the right one in its place, or have IT break the lease"
    )]
    Older {
        /// Its last record.
        found: u64,
        /// What is there.
        sent: u64,
    },
    /// A message that is not of leases or write-back.
    #[error("{0} came in answer to a lease or a part")]
    Unexpected(&'static str),
}

/// What lines of a branch have in common.
#[derive(Clone)]
pub struct Common {
    /// The branch.
    pub branch: BranchId,
    /// The realm's id key.
    pub key: IdKey,
    /// Where rows are kept.
    pub rows: Arc<dyn Rows>,
    /// Draws a name for a question, segment or fork.
    pub fresh: fn() -> Nonce,
    /// When segments are sealed.
    pub policy: SealPolicy,
}

/// The overlay that is open.
struct Attached {
    overlay: Arc<Overlay>,
    /// Whether a machine may write to it.
    in_use: bool,
}

/// A segment's parts under way.
struct Making {
    bounds: (u64, u64),
    maker: Maker,
    made: Option<MadePart>,
}

/// See the module.
pub struct Line {
    common: Common,
    volume: DesktopId,
    hold: Hold,
    lease: Option<Vec<u8>>,
    overlay_of: OverlayOf,
    send: Option<Sender>,
    attached: Option<Attached>,
    making: Option<Making>,
    /// To be sent, each on a stream of its own.
    out: VecDeque<Message>,
    /// To be sent in answer to what was heard last.
    replies: Vec<Message>,
    asked_unix_s: Option<u64>,
    is_linked: bool,
    /// Somebody wants to run it here.
    is_wanted: bool,
    /// It is to be given back.
    is_recalled: bool,
    is_broken: bool,
    /// The overlay was let go, with nothing in it that is to be sent.
    is_spent: bool,
    denied: Option<DenyLease>,
    trouble: Option<String>,
    applied_unix_s: Option<u64>,
}

impl Line {
    /// From its rows.
    pub fn open(
        common: Common,
        volume: DesktopId,
        kept: Option<KeptHold>,
        send: Option<SendRow>,
        now_unix_s: u64,
    ) -> Self {
        let mut line = Self {
            hold: Hold::open(common.branch, HoldRow::new(volume)),
            common,
            volume,
            lease: None,
            overlay_of: OverlayOf::Unleased,
            send: None,
            attached: None,
            making: None,
            out: VecDeque::new(),
            replies: Vec::new(),
            asked_unix_s: None,
            is_linked: false,
            is_wanted: false,
            is_recalled: false,
            is_broken: false,
            is_spent: false,
            denied: None,
            trouble: None,
            applied_unix_s: None,
        };
        line.take_rows(kept, send, now_unix_s);
        line
    }

    fn take_rows(&mut self, kept: Option<KeptHold>, send: Option<SendRow>, now_unix_s: u64) {
        let kept = kept.unwrap_or_else(|| KeptHold {
            row: HoldRow::new(self.volume),
            lease: None,
            overlay: OverlayOf::Unleased,
        });
        self.hold = Hold::open(self.common.branch, kept.row);
        self.lease = kept.lease;
        self.overlay_of = kept.overlay;
        // A row of an overlay that is gone says nothing of the one that comes after it.
        let send = send.filter(|row| self.overlay_of == OverlayOf::Under(row.line.generation));
        self.send = send.map(|row| {
            let sealed = row.sealed.as_ref().map_or(0, |sealed| sealed.to);
            let flushed = row.acked.seq.max(sealed);
            Sender::open(row, flushed, now_unix_s)
        });
    }

    /// Begins again from its rows.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn reload(
        &mut self,
        kept: Option<KeptHold>,
        send: Option<SendRow>,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        self.forget_way();
        self.is_broken = false;
        self.take_rows(kept, send, now_unix_s);
        self.start(now_unix_s)?;
        if let Some(Attached { overlay, in_use }) = &self.attached {
            let (overlay, in_use) = (Arc::clone(overlay), *in_use);
            let attached = self.attach(overlay, in_use, now_unix_s);
            self.is_broken |= attached.is_err();
            attached?;
        }
        if self.is_linked {
            self.linked(now_unix_s)?;
        }
        Ok(())
    }

    /// Does what is to be done at each start, also if it was done.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn start(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        match self.hold.row().stage {
            Stage::Idle { .. } | Stage::Dropped { .. } => Ok(()),
            Stage::Held { .. } | Stage::Fenced { .. } => {
                let actions = vec![HoldAction::Aim];
                self.do_holds(actions, now_unix_s)
            }
        }
    }

    /// Whether its rows are to be read again.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Its overlay is open, and nothing was done with it yet. `in_use`: a machine may write to it from now on.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn attach(
        &mut self,
        overlay: Arc<Overlay>,
        in_use: bool,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        let row = self.send.as_ref().map(Sender::row);
        let sent = row.map_or(0, |row| {
            let sealed = row.sealed.as_ref().map_or(0, |sealed| sealed.to);
            row.acked.seq.max(sealed)
        });
        let found = overlay.stats().seq;
        if found < sent {
            return Err(LineError::Older { found, sent });
        }
        match row.filter(|row| row.line.fork.is_none()) {
            Some(SendRow { acked, sealed, .. }) => {
                // First: this may have to flush.
                if let Some(sealed) = sealed {
                    overlay.hold(acked.seq, sealed.to);
                }
                overlay.send_after(acked.seq)?;
            }
            None => overlay.send_after(0)?,
        }
        (self.is_spent, self.trouble) = (false, None);
        self.attached = Some(Attached { overlay, in_use });
        // What is under way goes on with the next tick: that it cannot be read keeps no machine from starting.
        self.note_flushed(now_unix_s);
        Ok(())
    }

    /// Whether a machine may write to its overlay from now on. Nothing happens without one.
    pub fn set_in_use(&mut self, in_use: bool, now_unix_s: u64) {
        if let Some(attached) = &mut self.attached {
            attached.in_use = in_use;
        }
        // What came last is to be sent as well.
        self.note_flushed(now_unix_s);
        if !self.is_linked {
            self.put_down();
        }
    }

    /// Lets go of an overlay that no machine uses while nothing can be sent: its index takes memory. It is asked for again when the link is up.
    fn put_down(&mut self) {
        if self.is_at_rest() {
            self.is_spent = self.is_drained();
            self.detach();
        }
    }

    /// Whether it has its overlay.
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Whether a machine may write to its overlay.
    pub fn is_in_use(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.in_use)
    }

    /// Whether the link is up.
    pub fn is_linked(&self) -> bool {
        self.is_linked
    }

    /// Notes what keeps it from going on; returns whether that is new.
    pub fn note_trouble(&mut self, trouble: &str) -> bool {
        let is_new = self.trouble.as_deref() != Some(trouble);
        self.trouble = Some(trouble.to_owned());
        is_new
    }

    /// Lets go of an overlay of which all is at the datacenter. It is not needed again before somebody uses it.
    pub fn let_go(&mut self) {
        self.detach();
        self.is_spent = true;
    }

    /// Lets go of the overlay.
    pub fn detach(&mut self) {
        self.attached = None;
        self.making = None;
    }

    /// Whether it has the overlay, and no machine uses that.
    pub fn is_at_rest(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| !a.in_use)
    }

    /// Whether it cannot go on without the overlay, which is not open.
    pub fn needs_overlay(&self) -> bool {
        self.attached.is_none() && self.send.is_some() && !self.is_spent && !self.is_broken
    }

    /// Whether all that is known to be written is at the datacenter. Never of a fork: that is settled.
    pub fn is_drained(&self) -> bool {
        self.send.as_ref().is_none_or(|send| {
            let facts = send.facts();
            send.row().line.fork.is_none()
                && facts.sealed == Nonce::NONE
                && facts.acked.seq == facts.flushed
        })
    }

    /// Whether the volume is not here any more: its overlay is to be removed, and [`Self::left`] told.
    pub fn is_to_leave(&self) -> bool {
        matches!(self.hold.row().stage, Stage::Idle { .. })
            && matches!(self.overlay_of, OverlayOf::Under(_))
    }

    /// Its overlay is removed.
    ///
    /// # Errors
    /// It could not be kept.
    pub fn left(&mut self) -> Result<(), LineError> {
        self.detach();
        self.send = None;
        self.overlay_of = OverlayOf::Gone;
        let row = self.hold.row().clone();
        self.keep_hold(row)
    }

    /// The link is up.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn linked(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        self.forget_way();
        self.is_linked = true;
        if self.is_broken {
            return Ok(());
        }
        if let Some(send) = &mut self.send {
            let actions = send.linked();
            self.do_sends(actions, now_unix_s)?;
        }
        Ok(())
    }

    /// The link is gone.
    pub fn unlinked(&mut self) {
        self.forget_way();
        self.is_linked = false;
        if let Some(send) = &mut self.send {
            send.unlinked();
        }
        self.put_down();
    }

    fn forget_way(&mut self) {
        self.out.clear();
        self.replies.clear();
        self.making = None;
        self.asked_unix_s = None;
    }

    /// What is to be sent next, on a stream of its own, if anything is.
    pub fn next_message(&mut self) -> Option<Message> {
        self.out.pop_front()
    }

    /// To be called every few seconds, but not while an answer is waited for.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn tick(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        if self.is_broken {
            return Ok(());
        }
        let actions = self.hold.tick(now_unix_s);
        self.do_holds(actions, now_unix_s)?;
        if self.is_linked {
            self.ask_if_due(now_unix_s)?;
            self.go_on(now_unix_s)?;
        }
        self.poll(now_unix_s)
    }

    /// Takes a message; returns what is to be sent in answer, on the same stream.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn hear(&mut self, message: Message, now_unix_s: u64) -> Result<Vec<Message>, LineError> {
        if self.is_broken {
            return Ok(Vec::new());
        }
        let (fresh, facts) = ((self.common.fresh)(), self.facts());
        match message {
            Message::LeaseGranted(signed) => self.granted(signed.bytes, now_unix_s)?,
            Message::ProveLease(prove) => {
                let actions = self.hold.prove(&prove, fresh, &facts);
                self.do_holds(actions, now_unix_s)?;
            }
            Message::DenyLease(deny) => {
                let actions = self.hold.denied(&deny);
                self.denied = Some(deny);
                self.do_holds(actions, now_unix_s)?;
            }
            Message::FenceLease(fence) => {
                let actions = self.hold.fenced(&fence, fresh);
                self.do_holds(actions, now_unix_s)?;
            }
            Message::LeaseReturned(returned) => {
                let actions = self.hold.returned(&returned);
                self.do_holds(actions, now_unix_s)?;
            }
            Message::RecallLease(recall) => {
                self.hold.recalled(&recall);
                if self.hold.is_recalled() {
                    // Perhaps it can go at once.
                    self.asked_unix_s = None;
                }
            }
            other => self.hear_of_segment(&other, now_unix_s)?,
        }
        Ok(std::mem::take(&mut self.replies))
    }

    /// For people.
    pub fn shown(&self, now_unix_s: u64) -> LineShown {
        LineShown::new(
            self.volume,
            self.hold.row(),
            self.send.as_ref(),
            (self.may_run(now_unix_s).err(), self.is_recalled()),
            self.applied_unix_s,
            self.trouble.clone(),
            now_unix_s,
        )
    }
}
