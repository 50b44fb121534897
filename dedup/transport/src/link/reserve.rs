//! Room in the congestion window for what a guest waits for.
//!
//! A fill keeps the window full, and a congestion control that lets its queue run empty stops sending for up to a round trip: a demand
//! answer then waits though QUIC would send it first. [`Reserved`] wraps any congestion control and adds to its window what demand
//! answers have just been written, for one round trip, in which they leave. Invariant: never more than [`RESERVE_BYTES_MAX`], and never
//! more than half of what the control itself allows beyond [`RESERVE_BYTES_MIN`], so that the control still controls.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory};

/// Two whole chunks that do not compress, and their repair.
const RESERVE_BYTES_MAX: u64 = 160 * 1024;
/// Allowed however small the window: a chunk of average size. A path that stands still must not be flooded.
const RESERVE_BYTES_MIN: u64 = 16 * 1024;

/// Bytes of demand answers that have just been written.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    bytes: AtomicU64,
}

impl Reserve {
    /// That of a connection; one that nothing reads, if its congestion control was not made by [`ReservedFactory`].
    pub(super) fn of(connection: &Connection) -> Arc<Self> {
        connection
            .congestion_state()
            .into_any()
            .downcast::<Reserved>()
            .map_or_else(|_| Arc::default(), |controller| controller.reserve)
    }

    /// Adds room for `bytes` that are about to be written, for about a round trip.
    pub(super) fn add(self: &Arc<Self>, bytes: usize, rtt: Duration) {
        let bytes = bytes as u64;
        if self.bytes.load(Ordering::Relaxed) >= RESERVE_BYTES_MAX {
            return;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let reserve = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(rtt).await;
            reserve.bytes.fetch_sub(bytes, Ordering::Relaxed);
        });
    }

    fn beyond(&self, window: u64) -> u64 {
        let most = (window / 2).max(RESERVE_BYTES_MIN);
        self.bytes
            .load(Ordering::Relaxed)
            .min(RESERVE_BYTES_MAX)
            .min(most)
    }
}

/// Wraps what another factory makes.
pub(super) struct ReservedFactory(pub(super) Arc<dyn ControllerFactory + Send + Sync>);

impl ControllerFactory for ReservedFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Reserved {
            inner: Arc::clone(&self.0).build(now, current_mtu),
            reserve: Arc::default(),
        })
    }
}

/// See the module.
struct Reserved {
    inner: Box<dyn Controller>,
    reserve: Arc<Reserve>,
}

impl Controller for Reserved {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &quinn_proto::RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let window = self.inner.window();
        window + self.reserve.beyond(window)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            reserve: Arc::clone(&self.reserve),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_bounded_and_given_back() {
        let reserve = Arc::new(Reserve::default());
        assert_eq!(reserve.beyond(1 << 20), 0);
        reserve.add(20_000, Duration::from_millis(300));
        assert_eq!(reserve.beyond(1 << 20), 20_000);
        assert_eq!(reserve.beyond(4800), RESERVE_BYTES_MIN, "a small window");
        for _ in 0..100 {
            reserve.add(64 << 10, Duration::from_millis(300));
        }
        assert_eq!(reserve.beyond(1 << 20), RESERVE_BYTES_MAX);
        tokio::time::sleep(Duration::from_millis(301)).await;
        assert_eq!(reserve.beyond(1 << 20), 0);
    }
}
