//! What can go wrong on a link, sorted by what to do about it.
//!
//! Every message is one line, names the party or place, and says the way out where there is one. Whether trying again
//! can help is decided by [`LinkError::is_permanent`], never by reading text.

use std::fmt;
use std::io;
use std::sync::Arc;

use dedup::RealmId;
use quinn::{ConnectionError, ReadError, TransportErrorCode, VarInt, WriteError};
use rustls::AlertDescription;

use crate::identity::IdentityError;
use crate::tls::LINK_PROTOCOL_NAME;

/// Application close code: an ordinary end, the reason is text.
pub(crate) const CODE_CLOSED: VarInt = VarInt::from_u32(0);
/// Application close code: this peer is not wanted; trying again does not help.
pub(crate) const CODE_REFUSED: VarInt = VarInt::from_u32(1);
/// Stream code: the sender or receiver gave this one stream up.
pub(crate) const CODE_CANCELLED: VarInt = VarInt::from_u32(2);

/// Longest close reason that is sent or repeated, in bytes: it must fit one packet and one log line.
pub(crate) const REASON_BYTES_MAX: usize = 256;

/// One of the two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The datacenter, which listens.
    Datacenter,
    /// The branch, which dials.
    Branch,
}

impl Party {
    /// The party at the other end.
    pub fn other(self) -> Self {
        match self {
            Self::Datacenter => Self::Branch,
            Self::Branch => Self::Datacenter,
        }
    }

    fn renewal(self) -> &'static str {
        match self {
            Self::Datacenter => "renew the datacenter's certificate",
            Self::Branch => "enrol the branch again with a new join token",
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Datacenter => "datacenter",
            Self::Branch => "branch",
        })
    }
}

/// Why a link could not be made, or stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The address is not `host:port`.
    #[error("{addr:?} is not a link address: expected host:port, such as datacenter.example:4433")]
    BadAddress {
        /// What was given.
        addr: String,
    },
    /// The name has no address at present.
    #[error("the name of {addr} cannot be resolved")]
    ResolveFailed {
        /// What was to be resolved.
        addr: String,
        /// The resolver's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another program listens there.
    #[error(
        "{addr} is in use by another program: stop it, or set another listen address for the link"
    )]
    AddressInUse {
        /// The address asked for.
        addr: String,
    },
    /// The operating system gave no socket for this address.
    #[error("no UDP socket on {addr}")]
    Socket {
        /// The address asked for.
        addr: String,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// This machine has no way to the address.
    #[error("{addr} cannot be reached from this machine")]
    Unreachable {
        /// Where to.
        addr: String,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// Nothing came back in time. A firewall that drops UDP looks like this too.
    #[error(
        "no answer from {addr}: is the datacenter running, and does the network let UDP through?"
    )]
    TimedOut {
        /// The peer.
        addr: String,
    },
    /// No common major version of the link protocol.
    #[error("{}", version_text(*here))]
    ProtocolVersion {
        /// Which end reports it.
        here: Party,
    },
    /// A certificate has run out, or is not valid yet.
    #[error("the {holder}'s certificate is out of date ({detail}): {}, and check both clocks", holder.renewal())]
    CertificateExpired {
        /// Whose certificate.
        holder: Party,
        /// The dates, as far as this end knows them.
        detail: String,
    },
    /// A certificate of another realm.
    #[error("the {holder} belongs to realm {actual}, not to {expected}")]
    ForeignRealm {
        /// Whose certificate.
        holder: Party,
        /// The realm of the end that checked.
        expected: RealmId,
        /// The realm that the certificate names.
        actual: RealmId,
    },
    /// A certificate that the realm's authority did not issue.
    #[error("the {holder}'s certificate was not issued by the authority of the {}'s realm", holder.other())]
    WrongAuthority {
        /// Whose certificate.
        holder: Party,
    },
    /// The datacenter reached is not the one the join token was made for.
    #[error(
        "the datacenter at this address is not the one that made the join token: ask for a new token and check the address"
    )]
    WrongJoinAuthority,
    /// The other end does not want this peer.
    #[error("refused: {reason}")]
    Refused {
        /// Why, in the words of the end that refused.
        reason: String,
    },
    /// The peer closed the link.
    #[error("closed by the peer: {reason}")]
    Closed {
        /// The peer's reason.
        reason: String,
    },
    /// This end closed the link.
    #[error("the link was closed here")]
    ClosedHere,
    /// The peer has restarted and does not know this link any more.
    #[error("the peer restarted")]
    PeerRestarted,
    /// The peer gave up this one stream; the link goes on.
    #[error("the peer cancelled the stream")]
    StreamCancelled,
    /// The stream was finished, reset, or left in the middle of a frame at this end.
    #[error("the stream is closed for sending")]
    StreamClosed,
    /// A frame longer than its reader allows; nothing was allocated for it.
    #[error("a frame of {bytes} bytes is over the limit of {bytes_max}")]
    FrameTooLarge {
        /// The length announced.
        bytes: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// The peer leaves a hole in a stream and goes on behind it.
    #[error("a hole in a stream keeps more than {bytes_max} bytes waiting")]
    TooFarAhead {
        /// The limit.
        bytes_max: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    FrameTruncated,
    /// Settings that cannot work.
    #[error("link settings: {reason}")]
    Tuning {
        /// What is wrong with them.
        reason: String,
    },
    /// Our own certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The peer broke the rules of QUIC or TLS.
    #[error("the link broke: {detail}")]
    Broken {
        /// What the transport reported.
        detail: String,
    },
}

impl LinkError {
    /// Whether trying the same again is pointless until somebody changes something (a certificate, a setting, a
    /// program's version). Everything else is worth a retry with back-off.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::BadAddress { .. }
            | Self::AddressInUse { .. }
            | Self::ProtocolVersion { .. }
            | Self::CertificateExpired { .. }
            | Self::ForeignRealm { .. }
            | Self::WrongAuthority { .. }
            | Self::WrongJoinAuthority
            | Self::Refused { .. }
            | Self::FrameTooLarge { .. }
            | Self::TooFarAhead { .. }
            | Self::Tuning { .. }
            | Self::Identity(_) => true,
            Self::ResolveFailed { .. }
            | Self::Socket { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::ClosedHere
            | Self::PeerRestarted
            | Self::StreamCancelled
            | Self::StreamClosed
            | Self::FrameTruncated
            | Self::Broken { .. } => false,
        }
    }

    /// Reads a connection's end. `here` is our side, `peer` its address for messages.
    pub(crate) fn from_connection(error: ConnectionError, here: Party, peer: &str) -> Self {
        match error {
            ConnectionError::TimedOut => Self::TimedOut {
                addr: peer.to_owned(),
            },
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::Reset => Self::PeerRestarted,
            ConnectionError::ApplicationClosed(close) => {
                let reason = readable(&close.reason);
                if close.error_code == CODE_REFUSED {
                    Self::Refused { reason }
                } else {
                    Self::Closed { reason }
                }
            }
            // The peer's TLS refused us: the alert says why, the text is for people.
            ConnectionError::ConnectionClosed(close) => {
                let detail = readable(&close.reason);
                match alert(close.error_code) {
                    Some(AlertDescription::CertificateExpired) => Self::CertificateExpired {
                        holder: here,
                        detail: format!("reported by the {}", here.other()),
                    },
                    Some(AlertDescription::UnknownCA) => Self::WrongAuthority { holder: here },
                    Some(AlertDescription::NoApplicationProtocol) => Self::ProtocolVersion { here },
                    Some(_) => Self::Refused { reason: detail },
                    None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                        Self::Closed {
                            reason: format!("the {} accepts no links now", here.other()),
                        }
                    }
                    None => Self::Broken { detail },
                }
            }
            // Our own TLS refused the peer. Certificate verdicts were taken from the verifier before this is called.
            ConnectionError::TransportError(error) => match alert(error.code) {
                Some(AlertDescription::NoApplicationProtocol) => Self::ProtocolVersion { here },
                _ => Self::Broken {
                    detail: error.to_string(),
                },
            },
            ConnectionError::VersionMismatch => Self::ProtocolVersion { here },
            ConnectionError::CidsExhausted => Self::Broken {
                detail: "no connection id is free".to_owned(),
            },
        }
    }

    pub(crate) fn from_write(error: WriteError, here: Party, peer: &str) -> Self {
        match error {
            WriteError::Stopped(_) => Self::StreamCancelled,
            WriteError::ConnectionLost(error) => Self::from_connection(error, here, peer),
            // 0-RTT is never used, so a rejected early stream cannot occur; it would be closed all the same.
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::StreamClosed,
        }
    }

    pub(crate) fn from_read(error: ReadError, here: Party, peer: &str) -> Self {
        match error {
            ReadError::Reset(_) => Self::StreamCancelled,
            ReadError::ConnectionLost(error) => Self::from_connection(error, here, peer),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::StreamClosed,
        }
    }
}

/// The TLS alert inside a QUIC error code (RFC 9001 section 4.8: 0x0100 plus the alert).
fn alert(code: TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code);
    (0x100..0x200)
        .contains(&code)
        .then(|| AlertDescription::from((code & 0xFF) as u8))
}

/// A peer's text, made safe for a log line: bounded, one line, no control characters, never empty.
fn readable(reason: &[u8]) -> String {
    if reason.is_empty() {
        return "no reason given".to_owned();
    }
    let bounded = &reason[..reason.len().min(REASON_BYTES_MAX)];
    String::from_utf8_lossy(bounded)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn version_text(here: Party) -> String {
    match here {
        Party::Branch => format!(
            "this branch speaks {LINK_PROTOCOL_NAME}, the datacenter does not: upgrade the older of the two, the datacenter first"
        ),
        Party::Datacenter => format!(
            "this datacenter speaks {LINK_PROTOCOL_NAME}, the program that called does not: upgrade that branch"
        ),
    }
}
