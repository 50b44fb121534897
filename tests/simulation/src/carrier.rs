//! What carries messages between the two ends: the seam between a world and its line.
//!
//! A carrier is a pure value on the world's clock. The world gives it messages and troubles, and asks what happens next; it answers
//! with arrivals. Whatever lies beneath, its streams behave as QUIC's do: frames of one stream arrive in order and once, or their
//! link is lost and everything on the way with it. The branch has one link at most; the datacenter may still have older ones, which
//! it does not know to be dead.

use dedup_protocol::wire::Message;

use crate::tally::Tally;

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    Branch,
    Datacenter,
}

/// What comes out of a carrier. Links are those of the datacenter, numbered over the whole run; streams are numbered by the branch,
/// which opens them.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// The branch's attempt succeeded: it may send.
    Up,
    /// The branch's attempt failed (`was_up` is false), or it found out that its link is gone.
    Down { was_up: bool },
    /// A frame for the branch; `None` is the stream's end.
    ToBranch { stream: u64, frame: Option<Vec<u8>> },
    /// A frame for the datacenter.
    ToDatacenter {
        link: u64,
        stream: u64,
        frame: Vec<u8>,
    },
    /// What was sent on this stream has been taken: it is time for the next frame of an answer.
    Room { link: u64, stream: u64 },
    /// The datacenter found out that a link is gone.
    Lost { link: u64 },
}

impl Arrival {
    /// Which end it is for.
    pub(crate) fn end(&self) -> End {
        match self {
            Self::Up | Self::Down { .. } | Self::ToBranch { .. } => End::Branch,
            Self::ToDatacenter { .. } | Self::Room { .. } | Self::Lost { .. } => End::Datacenter,
        }
    }
}

/// See the module. Every call happens at the time to which the carrier was advanced last.
pub(crate) trait Carrier {
    /// The branch tries to reach the datacenter, once. Does nothing while it tries already, or has a link.
    fn dial(&mut self);

    /// The branch sends a frame; all but the first stream's are requests and whole with it.
    fn send_up(&mut self, stream: u64, message: &Message);

    /// The datacenter sends a frame, or ends the stream. Nothing happens when the link is gone.
    fn send_down(&mut self, link: u64, stream: u64, message: Option<&Message>);

    /// A process is gone: its links are, without a word to the other end.
    fn died(&mut self, end: End);

    /// And is back.
    fn started(&mut self, end: End);

    /// Something that a link may survive, or not.
    fn cut(&mut self);

    /// For a while nobody gets through.
    fn outage(&mut self);

    /// Goes on to the next arrival, at most to `until_ms`; says when it was.
    fn advance(&mut self, until_ms: u64) -> Option<(u64, Arrival)>;

    /// Writes down what it met, once, at the end.
    fn count(&mut self, tally: &mut Tally);
}
