//! The control stream: greeting, assignments, status. Both ends as values.
//!
//! ```text
//!   branch      Greeting ──Welcome──► Open ──Assign, Policy, Roster, Renewed, ProfileAvailable, Wanted, ProveLease, FenceLease, RecallLease,
//!                                            CheckOut, Wipe, Wiped, Moved──► Open
//!   datacenter  Greeting ──Hello────► Open ──Status, Renew, Wiped────► Open
//! ```
//!
//! A frame that the state does not expect is an error and closes the link. The branch's end decides here whether an assignment is
//! to be followed: signed, for this branch, not expired, its counter higher than any it has followed; and whether a checkout or a wipe is meant for it.

use dedup::BranchId;

use crate::people::Roster;
use crate::policy::Policy;
use crate::records::Assignment;
use crate::state::checkout::Checkout;
use crate::state::moved::MovedDesktop;
use crate::trust::{Endorsement, Signed, Trust, TrustAnchor, TrustError};
use crate::wipe::Wipe;
use crate::wire::{
    Hello, Message, PROTOCOL_MINOR, ProfileAvailable, RUNS_MAX, Refuse, RefuseCode, SignedBytes,
    Wanted, Welcome, WireError,
};

/// Why the control stream ends.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A frame that is malformed or not due.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A signature, realm or endorsement that does not hold.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The other end said no.
    #[error("the other end refused: {} ({:?})", .0.message, .0.code)]
    Refused(Refuse),
    /// An assignment, a roster, a checkout or a wipe for somebody else.
    #[error("what is for branch {0} came to this one")]
    WrongBranch(BranchId),
}

/// What a branch does after a control frame.
#[derive(Debug)]
pub enum BranchAction {
    /// Connected; these publisher keys are endorsed now (to be kept).
    Welcomed(Welcome),
    /// Follow this assignment; keep the envelope.
    Follow(Box<Assignment>, Signed<Assignment>),
    /// Nothing new: the assignment or roster is the one already followed, or older.
    Stale {
        /// Its counter.
        counter: u64,
    },
    /// An assignment that ran out before it arrived (or the branch's clock is wrong).
    Expired {
        /// When it ran out, unix seconds.
        expires_unix_s: u64,
    },
    /// These may log in from now on; keep the envelope.
    Admit(Box<Roster>, Signed<Roster>),
    /// Keep to these caps and hours.
    Keep(Policy),
    /// Use this certificate (DER) from the next connection on.
    Certificate(Vec<u8>),
    /// A renewal cannot be had now; ask again on the next connection.
    NotNow(Refuse),
    /// This is the newest boot profile of a version.
    Profile(ProfileAvailable),
    /// Send the datacenter those of these chunks that are here.
    Restore(Wanted),
    /// Something of the lease of a volume, which nobody asked for: what was not read in an answer, a break, or a recall.
    Lease(Message),
    /// A desktop is checked out to this branch; keep the envelope.
    CheckedOut(Box<Checkout>, Signed<Checkout>),
    /// A desktop was moved to this branch.
    Moved(Box<MovedDesktop>),
    /// Destroy keys; keep the envelope first.
    Wipe(Box<Wipe>, Signed<Wipe>),
    /// The datacenter knows that this wipe was done.
    WipeNoted(u64),
}

/// The branch's end.
#[derive(Debug)]
pub struct BranchControl {
    branch: BranchId,
    anchor: TrustAnchor,
    endorsements: Vec<Endorsement>,
    counter: u64,
    roster_counter: u64,
    greeted: bool,
}

impl BranchControl {
    /// For one connection. `counter` is that of the newest assignment followed, 0 for none.
    pub fn new(
        branch: BranchId,
        anchor: TrustAnchor,
        endorsements: Vec<Endorsement>,
        counter: u64,
    ) -> Self {
        Self {
            branch,
            anchor,
            endorsements,
            counter,
            roster_counter: 0,
            greeted: false,
        }
    }

    /// The same for a branch that has a roster; `counter` is that one's.
    #[must_use]
    pub fn with_roster(mut self, counter: u64) -> Self {
        self.roster_counter = counter;
        self
    }

    /// The first frame to send.
    pub fn hello(&self, software: &str) -> Message {
        Message::Hello(Hello {
            minor: PROTOCOL_MINOR,
            software: software.into(),
            assignment_counter: self.counter,
        })
    }

    /// Takes a frame.
    pub fn handle(&mut self, frame: &[u8], now_unix_s: u64) -> Result<BranchAction, ControlError> {
        let message = Message::decode(frame)?;
        match message {
            // What was asked for cannot be done now; the link itself is well.
            Message::Refuse(refuse) if self.greeted && refuse.code == RefuseCode::Busy => {
                Ok(BranchAction::NotNow(refuse))
            }
            Message::Refuse(refuse) => Err(ControlError::Refused(refuse)),
            Message::Welcome(welcome) if !self.greeted => {
                self.greeted = true;
                self.endorsements.clone_from(&welcome.endorsements);
                Ok(BranchAction::Welcomed(welcome))
            }
            Message::Assign(SignedBytes { bytes }) if self.greeted => {
                let signed = Signed::<Assignment>::from_bytes(&bytes)?;
                let assignment =
                    signed.open(&self.anchor, &self.endorsements, Trust::New { now_unix_s })?;
                if assignment.branch != self.branch {
                    return Err(ControlError::WrongBranch(assignment.branch));
                }
                if assignment.counter <= self.counter {
                    return Ok(BranchAction::Stale {
                        counter: assignment.counter,
                    });
                }
                if assignment.expires_unix_s < now_unix_s {
                    return Ok(BranchAction::Expired {
                        expires_unix_s: assignment.expires_unix_s,
                    });
                }
                self.counter = assignment.counter;
                Ok(BranchAction::Follow(Box::new(assignment), signed))
            }
            Message::Roster(SignedBytes { bytes }) if self.greeted => {
                let signed = Signed::<Roster>::from_bytes(&bytes)?;
                let roster =
                    signed.open(&self.anchor, &self.endorsements, Trust::New { now_unix_s })?;
                if roster.branch != self.branch {
                    return Err(ControlError::WrongBranch(roster.branch));
                }
                if !roster.is_valid() {
                    return Err(WireError::Malformed { name: "Roster" }.into());
                }
                if roster.counter <= self.roster_counter {
                    return Ok(BranchAction::Stale {
                        counter: roster.counter,
                    });
                }
                self.roster_counter = roster.counter;
                Ok(BranchAction::Admit(Box::new(roster), signed))
            }
            Message::Policy(policy) if self.greeted => {
                if policy.is_valid() {
                    Ok(BranchAction::Keep(policy))
                } else {
                    Err(WireError::Malformed { name: "Policy" }.into())
                }
            }
            Message::Renewed(der) if self.greeted => Ok(BranchAction::Certificate(der.bytes)),
            Message::ProfileAvailable(told) if self.greeted => Ok(BranchAction::Profile(told)),
            Message::Wanted(wanted) if self.greeted => {
                if wanted.runs.len() <= RUNS_MAX {
                    Ok(BranchAction::Restore(wanted))
                } else {
                    Err(WireError::Malformed { name: "Wanted" }.into())
                }
            }
            told @ (Message::ProveLease(_) | Message::FenceLease(_) | Message::RecallLease(_))
                if self.greeted =>
            {
                Ok(BranchAction::Lease(told))
            }
            Message::CheckOut(SignedBytes { bytes }) if self.greeted => {
                self.checked_out(&bytes, now_unix_s)
            }
            Message::Moved(moved) if self.greeted => {
                if moved.is_valid() {
                    Ok(BranchAction::Moved(Box::new(moved)))
                } else {
                    Err(WireError::Malformed { name: "Moved" }.into())
                }
            }
            Message::Wipe(SignedBytes { bytes }) if self.greeted => self.wipe(&bytes),
            Message::Wiped(wiped) if self.greeted => Ok(BranchAction::WipeNoted(wiped.number)),
            other => Err(WireError::Unexpected {
                got: other.name(),
                expected: if self.greeted { "Assign" } else { "Welcome" },
            }
            .into()),
        }
    }
}

impl BranchControl {
    fn checked_out(&self, bytes: &[u8], now_unix_s: u64) -> Result<BranchAction, ControlError> {
        let signed = Signed::<Checkout>::from_bytes(bytes)?;
        let trust = Trust::New { now_unix_s };
        let checkout = signed.open(&self.anchor, &self.endorsements, trust)?;
        if checkout.branch != self.branch {
            return Err(ControlError::WrongBranch(checkout.branch));
        }
        if !checkout.is_valid() {
            return Err(WireError::Malformed { name: "CheckOut" }.into());
        }
        Ok(BranchAction::CheckedOut(Box::new(checkout), signed))
    }

    fn wipe(&self, bytes: &[u8]) -> Result<BranchAction, ControlError> {
        let signed = Signed::<Wipe>::from_bytes(bytes)?;
        // Also under an endorsement that has ended by this branch's clock: who stole it sets that.
        let wipe = signed.open(&self.anchor, &self.endorsements, Trust::Kept)?;
        if wipe.branch != self.branch {
            return Err(ControlError::WrongBranch(wipe.branch));
        }
        if !wipe.is_valid() {
            return Err(WireError::Malformed { name: "Wipe" }.into());
        }
        Ok(BranchAction::Wipe(Box::new(wipe), signed))
    }
}

/// What the datacenter does after a control frame.
#[derive(Debug)]
pub enum DatacenterAction {
    /// Greet, then send the branch's assignment if its counter is higher than this.
    Greeted {
        /// Newest message set that the branch speaks: it is sent nothing of a later one.
        minor: u16,
        /// Counter of the assignment the branch has.
        assignment_counter: u64,
        /// The branch's software version.
        software: String,
    },
    /// Keep this report (JSON).
    Report(String),
    /// Issue a certificate for this request (DER).
    Renew(Vec<u8>),
    /// The wipe of this number was done.
    Wiped(u64),
}

/// The datacenter's end.
#[derive(Debug, Default)]
pub struct DatacenterControl {
    greeted: bool,
}

impl DatacenterControl {
    /// For one connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a frame.
    pub fn handle(&mut self, frame: &[u8]) -> Result<DatacenterAction, ControlError> {
        match Message::decode(frame)? {
            Message::Hello(hello) if !self.greeted => {
                self.greeted = true;
                Ok(DatacenterAction::Greeted {
                    minor: hello.minor,
                    assignment_counter: hello.assignment_counter,
                    software: hello.software,
                })
            }
            Message::Status(report) if self.greeted => Ok(DatacenterAction::Report(report.json)),
            Message::Renew(der) if self.greeted => Ok(DatacenterAction::Renew(der.bytes)),
            Message::Wiped(wiped) if self.greeted => Ok(DatacenterAction::Wiped(wiped.number)),
            Message::Refuse(refuse) => Err(ControlError::Refused(refuse)),
            other => Err(WireError::Unexpected {
                got: other.name(),
                expected: if self.greeted { "Status" } else { "Hello" },
            }
            .into()),
        }
    }
}
