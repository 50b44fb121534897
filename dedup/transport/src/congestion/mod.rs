//! Congestion control of our own.

mod delivery;
mod path;
mod rate;
mod rtt;
mod window;

pub use delivery::{Delivery, DeliveryConfig, Figures};
pub use path::{Knocker, Network, PathCell, PathMemory, PathRecord};
pub use window::send_window;
