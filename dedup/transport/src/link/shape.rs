//! Caps: how many bytes a second this end may send, in all and for what nobody waits for.
//!
//! Two token buckets, asked before each piece that goes to QUIC. A bucket may go into debt by one piece, and who comes next waits until it
//! is paid; pieces are small where the cap is low, so that a demand never waits for more than [`PIECE_TIME`] of somebody else's
//! piece. Counted are the stream's bytes and [`OVERHEAD`] for packets' heads; retransmissions are not.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Class;

/// What packets add to a stream's bytes: heads of IP, UDP and QUIC, 80 bytes of 1280.
const OVERHEAD: f64 = 1.0625;
/// How much of a second one piece may take.
const PIECE_TIME: f64 = 0.02;
/// Pieces without a cap: QUIC's send budget is released piece by piece as the peer acknowledges, so small pieces free it early; much smaller
/// ones cost a lock each.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// About one packet.
const PIECE_BYTES_MIN: usize = 1200;

/// Limits on what one end of a link sends. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// All classes together, in bytes a second.
    pub link_bytes_per_s: Option<u64>,
    /// [`Class::State`] and [`Class::Fill`] together, in bytes a second.
    pub background_bytes_per_s: Option<u64>,
}

/// A token bucket that may be in debt. Times are since any fixed moment.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    bytes_per_s: Option<f64>,
    bytes: f64,
    at: Duration,
}

impl Bucket {
    fn new(cap: Option<u64>, now: Duration) -> Self {
        Self {
            // A cap of zero would be a link that hangs; nobody can ask for one that is above a packet an hour and below this.
            bytes_per_s: cap.map(|cap| cap.max(1000) as f64),
            bytes: 0.0,
            at: now,
        }
    }

    /// How long to wait before the next piece.
    fn ready_in(&mut self, now: Duration) -> Duration {
        let Some(rate) = self.bytes_per_s else {
            return Duration::ZERO;
        };
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        // What was not used is not saved up for more than a piece: a cap is a cap at any second.
        self.bytes = (self.bytes + passed * rate).min(rate * PIECE_TIME);
        if self.bytes >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.bytes / rate)
        }
    }

    fn sent(&mut self, bytes: usize) {
        if self.bytes_per_s.is_some() {
            self.bytes -= bytes as f64 * OVERHEAD;
        }
    }

    fn piece_bytes(&self) -> usize {
        self.bytes_per_s.map_or(PIECE_BYTES_MAX, |rate| {
            ((rate * PIECE_TIME) as usize).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
        })
    }
}

#[derive(Debug, Default)]
struct Buckets {
    caps: Caps,
    link: Bucket,
    background: Bucket,
}

/// The caps of one end of a link.
#[derive(Debug)]
pub(super) struct Shaper {
    began: Instant,
    buckets: Mutex<Buckets>,
    changed: Notify,
}

impl Default for Shaper {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            buckets: Mutex::default(),
            changed: Notify::new(),
        }
    }
}

fn is_background(class: Class) -> bool {
    class <= Class::State
}

impl Shaper {
    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().expect("no panic under this lock")
    }

    /// Changes the caps, at once for whoever waits.
    pub(super) fn set(&self, caps: Caps) {
        let now = self.began.elapsed();
        let mut buckets = self.buckets();
        if buckets.caps != caps {
            *buckets = Buckets {
                caps,
                link: Bucket::new(caps.link_bytes_per_s, now),
                background: Bucket::new(caps.background_bytes_per_s, now),
            };
            drop(buckets);
            self.changed.notify_waiters();
        }
    }

    /// Most bytes to hand to QUIC at once.
    pub(super) fn piece_bytes(&self, class: Class) -> usize {
        let buckets = self.buckets();
        let link = buckets.link.piece_bytes();
        if is_background(class) {
            link.min(buckets.background.piece_bytes())
        } else {
            link
        }
    }

    /// Waits until a piece may be sent. Cancellation safe.
    pub(super) async fn ready(&self, class: Class) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change in between is not missed.
            changed.as_mut().enable();
            let wait = {
                let now = self.began.elapsed();
                let mut buckets = self.buckets();
                let link = buckets.link.ready_in(now);
                if is_background(class) {
                    link.max(buckets.background.ready_in(now))
                } else {
                    link
                }
            };
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// So much was sent.
    pub(super) fn sent(&self, class: Class, bytes: usize) {
        let mut buckets = self.buckets();
        buckets.link.sent(bytes);
        if is_background(class) {
            buckets.background.sent(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends for `seconds` and returns the bytes.
    async fn send(shaper: &Shaper, class: Class, seconds: u64) -> usize {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut sent = 0;
        loop {
            let ready = tokio::time::timeout_at(end, shaper.ready(class)).await;
            if ready.is_err() || Instant::now() >= end {
                return sent;
            }
            let piece = shaper.piece_bytes(class);
            shaper.sent(class, piece);
            sent += piece;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_class_keeps_to_its_caps() {
        let shaper = Shaper::default();
        shaper.set(Caps {
            link_bytes_per_s: Some(1_000_000),
            background_bytes_per_s: Some(100_000),
        });
        for (class, cap) in [
            (Class::Fill, 100_000.0),
            (Class::State, 100_000.0),
            (Class::Boot, 1_000_000.0),
            (Class::Demand, 1_000_000.0),
        ] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let rate = send(&shaper, class, 20).await as f64 * OVERHEAD / 20.0;
            assert!(
                (0.97 * cap..1.01 * cap).contains(&rate),
                "{class:?} sent {rate} bytes a second"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn classes_share_the_link_cap() {
        let shaper = Shaper::default();
        shaper.set(Caps {
            link_bytes_per_s: Some(1_000_000),
            background_bytes_per_s: None,
        });
        let (a, b) = tokio::join!(
            send(&shaper, Class::Demand, 20),
            send(&shaper, Class::Fill, 20)
        );
        let rate = (a + b) as f64 * OVERHEAD / 20.0;
        assert!((970_000.0..1_020_000.0).contains(&rate), "{rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_holds_at_any_second_and_a_change_holds_at_once() {
        let shaper = Shaper::default();
        let slow = Caps {
            link_bytes_per_s: None,
            background_bytes_per_s: Some(1000),
        };
        shaper.set(slow);
        tokio::time::sleep(Duration::from_secs(100)).await;
        let burst = send(&shaper, Class::Fill, 1).await;
        assert!(burst <= 2 * PIECE_BYTES_MIN, "{burst} bytes in a second");
        // A piece of 1.2 KB at 1 KB/s is more than a second of debt.
        let begun = Instant::now();
        let ready = async {
            shaper.sent(Class::Fill, 1_000_000);
            shaper.ready(Class::Fill).await;
        };
        let change = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            shaper.set(Caps::default());
        };
        tokio::join!(ready, change);
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }
}
