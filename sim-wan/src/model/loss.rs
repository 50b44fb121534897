//! Loss processes: independent losses, and bursts by the two-state Gilbert model (Gilbert 1960; Elliott 1963) whose
//! bad state loses every packet and whose good state loses none. State advances per packet, not per second.

use super::rng::Rng;

/// How packets are lost after the rate limiter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Nothing is lost.
    None,
    /// Each packet is lost with probability `p`, independently.
    Random {
        /// Probability, 0 to 1.
        p: f64,
    },
    /// Runs of losses: a share `p` of all packets, in runs of `mean_packets` on average (geometric).
    Bursts {
        /// Mean loss, 0 to 0.5.
        p: f64,
        /// Mean run length in packets, at least 1.
        mean_packets: f64,
    },
}

impl Loss {
    /// Mean share of packets lost.
    pub fn mean(&self) -> f64 {
        match *self {
            Self::None => 0.0,
            Self::Random { p } | Self::Bursts { p, .. } => p,
        }
    }
}

/// The running state of one direction's losses.
#[derive(Debug, Clone)]
pub(super) struct LossProcess {
    loss: Loss,
    bad: bool,
}

impl LossProcess {
    pub(super) fn new(loss: Loss) -> Self {
        Self { loss, bad: false }
    }

    /// Decides the fate of the next packet: true means lost.
    pub(super) fn draw(&mut self, rng: &mut Rng) -> bool {
        match self.loss {
            Loss::None => false,
            Loss::Random { p } => rng.chance(p),
            Loss::Bursts { p, mean_packets } => {
                // Stationary share of the bad state is enter / (enter + leave) = p.
                let leave = 1.0 / mean_packets;
                let enter = leave * p / (1.0 - p);
                self.bad = if self.bad {
                    !rng.chance(leave)
                } else {
                    rng.chance(enter)
                };
                self.bad
            }
        }
    }
}
