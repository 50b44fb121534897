//! Congestion control by measured delivery: keep in flight what the path delivers in one round trip, and a little more.
//!
//! A model in the family of BBR (Cardwell et al., ACM Queue 14(5), 2016), for long lossy paths with small queues. Measured are the
//! *delivery rate* (most bytes a second over any recent span of a round trip or more), the *round trip at rest* (least
//! mean of a round, so that jitter is not taken for queue) and the *loss at rest* (what is lost while the queue is empty). Rate over
//! one minus loss, times round trip, is what the path holds. A lost packet says nothing by itself.
//!
//! ```text
//!               rate stopped growing          in flight ≤ 0.88 × path          two rounds
//!   ┌─────────┐ ──────────────────► ┌───────┐ ───────────────────► ┌──────┐ ───────────► ┌────────┐ ◄─ a round ─ ┌───────┐
//!   │ Startup │                     │ Drain │                      │ Rest │              │ Cruise │              │ Probe │
//!   └─────────┘                     └───────┘                      └──────┘              └────────┘ ─ no queue ► └───────┘
//!        ▲                              ▲                              │ queue stays, twice   │ ▲
//!        │                              └── 4 s and 8 rounds later ────│──────────────────────┘ │ queue gone
//!        │                                                             ▼                        │
//!   persistent congestion, from any state                         ┌─────────┐ ──────────────────┘
//!   (an outage): half of what there was                           │ Contend │
//!                                                                 └─────────┘
//! ```
//!
//! | state | window | leaves it |
//! |---|---|---|
//! | Startup | grows by 1.5 × what arrives unless the queue is seen to grow, at most 2.3 × path | the rate grew by less than a quarter: one round with a growing queue, three without; rounds with little to send do not count |
//! | Drain | 0.88 × path | that little is in flight |
//! | Rest | 0.88 × path, then 1 × path | after two rounds: the round trip and the loss of packets that met no queue are known |
//! | Cruise | path + slack | a rest is due (4 s and 8 rounds); the queue seems empty and a probe is due |
//! | Probe | 1.25 × path + slack | after a round; probes that find nothing become rare (4 to 64 rounds), one that does is repeated at once |
//! | Contend | own: + 1/64 a round, × 0.7 on a round that loses more than the path does | the queue is gone, or a rest empties it |
//!
//! *Slack* is the queue that we allow ourselves: three standard deviations of the round trip within a round or a sixteenth of it, 8 to
//! 100 ms; it shrinks while rounds both lose more than at rest and wait. *Contend* exists because a sender that keeps its queue short gets
//! nothing, or leaves nothing, beside TCP, which fills it: when two rests in a row find a queue that is not ours, we do as TCP does. An
//! earlier connection's figures ([`PathMemory`]) let Startup begin with half of the path, once a round trip confirms that it is this path.
//!
//! quinn paces at 1.25 windows a smoothed round trip, so the window is the only lever here. Why not quinn's own BBR: it takes the gap
//! between two packets for a rate, aims too high, and sends 1.3 to 2.5 times the payload on our profiles (decisions 0013 and 0022).
//!
//! All of this is pure: time comes with each call. `tests/congestion.rs` runs it inside real connections on a virtual clock.

mod delivery;
mod known;
mod path;
mod rate;
mod rtt;
mod window;

pub use delivery::{Delivery, DeliveryConfig, Figures};
pub use known::KnownPaths;
pub use path::{Knocker, Network, PathCell, PathMemory, PathRecord};
pub use window::SendWindow;
