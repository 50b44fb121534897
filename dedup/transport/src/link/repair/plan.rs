//! How much repair an answer gets, and when: loss as measured, and a share of the line that repair may take.
//!
//! Pure: figures and times are arguments.

use std::time::Duration;

use bytes::Bytes;

use super::code::{self, DATA_MAX, REPAIR_MAX};
use super::datagram::{Body, LossPerMille, Repair, SYMBOLS_HEAD_BYTES};

/// Share of lost packets from which repair is sent. Below it one exchange of six packets in 170 meets a loss, and p99 is as good without.
const LOSS_MIN: f64 = 0.001;
/// Packets after which the past counts half: 5 MB, so that a path that has become clean is known for one within seconds of use.
const LOSS_MEMORY_PACKETS: u64 = 4096;
/// Losses that are no chance.
const LOST_MIN: u64 = 2;
/// For how long the peer's word on loss holds, without a newer one.
const PEER_LOSS_FOR: Duration = Duration::from_secs(60);

/// Share of what the path carries that repair may take.
const BUDGET_SHARE: f64 = 0.1;
/// What may be saved up of it, in bytes: repair of some ten answers at once, when guests begin to read.
const BUDGET_BYTES_MAX: f64 = 64.0 * 1024.0;

/// Lost packets that an answer survives at least, once there is loss.
const SURVIVED_MIN: usize = 3;
/// Lost packets that an answer survives while hardly any of the budget is used: losses come in bursts, of four on many radios, and what
/// is not used is worth nothing.
const SURVIVED_AMPLE: usize = 6;
/// Chance of losing more than the repair covers that is taken.
const RESIDUAL: f64 = 0.001;

/// What is known of a path's loss. Fed with a connection's totals.
#[derive(Debug, Default)]
pub(super) struct LossMeter {
    sent_before: u64,
    lost_before: u64,
    sent: u64,
    lost: u64,
    peer: Option<(f64, Duration)>,
}

impl LossMeter {
    /// Takes the packets sent and lost since the connection began.
    pub(super) fn update(&mut self, sent: u64, lost: u64) {
        self.sent += sent.saturating_sub(self.sent_before);
        self.lost += lost.saturating_sub(self.lost_before);
        (self.sent_before, self.lost_before) = (sent, lost);
        while self.sent > LOSS_MEMORY_PACKETS {
            self.sent /= 2;
            self.lost /= 2;
        }
    }

    /// The peer's word on its own packets.
    pub(super) fn peer_says(&mut self, loss: LossPerMille, now: Duration) {
        if loss > 0 {
            self.peer = Some((f64::from(loss) / 1000.0, now));
        }
    }

    /// Share of this end's packets that get lost; 0 below what counts.
    pub(super) fn own(&self) -> f64 {
        let share = self.lost as f64 / self.sent.max(1) as f64;
        if self.lost >= LOST_MIN && share >= LOSS_MIN {
            share
        } else {
            0.0
        }
    }

    /// As [`Self::own`], for the wire: never the peer's word back to it, or two ends would keep each other believing for ever.
    pub(super) fn own_per_mille(&self) -> LossPerMille {
        (self.own() * 1000.0).ceil().min(255.0) as u8
    }

    /// The loss to protect against. A branch sends little, and what it sends is mostly acknowledgements, whose loss goes
    /// unnoticed; so the greater of both ends' words counts.
    pub(super) fn share(&self, now: Duration) -> f64 {
        let peer = self
            .peer
            .filter(|(_, at)| now.saturating_sub(*at) < PEER_LOSS_FOR)
            .map_or(0.0, |(share, _)| share);
        self.own().max(peer)
    }
}

/// What repair may take of the line.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: f64,
    at: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            bytes: BUDGET_BYTES_MAX,
            at: Duration::ZERO,
        }
    }
}

impl Budget {
    /// Lost packets to survive, with an eye to what is saved up: `lost` at least.
    pub(super) fn afford(&self, lost: usize) -> usize {
        if self.bytes > BUDGET_BYTES_MAX / 2.0 {
            lost.max(SURVIVED_AMPLE)
        } else {
            lost
        }
    }

    /// Lost packets to survive, at most `lost`, that what is there pays for when each count costs `cost_bytes`; takes what that costs.
    pub(super) fn take_for(
        &mut self,
        lost: usize,
        cost_bytes: impl Fn(usize) -> usize,
        path_bytes_per_s: f64,
        now: Duration,
    ) -> Option<usize> {
        (1..=lost)
            .rev()
            .find(|lost| self.take(cost_bytes(*lost), path_bytes_per_s, now))
    }

    /// Takes `bytes` if they are there. `path_bytes_per_s` is what the path carries.
    pub(super) fn take(&mut self, bytes: usize, path_bytes_per_s: f64, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.bytes = (self.bytes + passed * path_bytes_per_s * BUDGET_SHARE).min(BUDGET_BYTES_MAX);
        if self.bytes < bytes as f64 {
            return false;
        }
        self.bytes -= bytes as f64;
        true
    }
}

/// Lost packets to survive of `packets`, each lost by chance `loss`.
pub(super) fn survived(packets: usize, loss: f64) -> usize {
    // Poisson: the first count beyond which less than the residual is left.
    let mean = packets as f64 * loss;
    let mut chance = (-mean).exp();
    let mut left = 1.0 - chance;
    let mut count = 0;
    while left > RESIDUAL && count < REPAIR_MAX {
        count += 1;
        chance *= mean / count as f64;
        left -= chance;
    }
    count.max(SURVIVED_MIN)
}

/// How bytes of a stream are cut into blocks and symbols.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    bytes: usize,
    per_datagram: usize,
    symbol_bytes: usize,
    block_bytes: usize,
}

impl Layout {
    /// Of `bytes` whose repair travels in datagrams of at most `datagram_bytes`; `None` when there is nothing, or no room.
    pub(super) fn of(bytes: usize, datagram_bytes: usize) -> Option<Self> {
        let room = datagram_bytes.saturating_sub(SYMBOLS_HEAD_BYTES);
        if room < 64 || bytes == 0 {
            return None;
        }
        // QUIC cuts packets where it likes, so a lost packet touches one symbol more than it holds: small symbols waste less. Four to
        // a datagram, unless that makes more of them than the code has; what no size fits is repaired block by block.
        let (per_datagram, symbol_bytes) = [4, 3, 2]
            .map(|count| (count, room / count))
            .into_iter()
            .find(|(_, size)| bytes.div_ceil(*size) <= DATA_MAX)
            .unwrap_or((4, room / 4));
        // A short answer needs no more than itself.
        let symbol_bytes = symbol_bytes.min(bytes);
        let blocks = bytes.div_ceil(DATA_MAX * symbol_bytes);
        Some(Self {
            bytes,
            per_datagram,
            symbol_bytes,
            block_bytes: bytes.div_ceil(blocks),
        })
    }

    /// Repair symbols of a block for `lost` lost packets.
    fn symbols(&self, block_bytes: usize, lost: usize) -> usize {
        (lost * (self.per_datagram + 1) + 1)
            .next_multiple_of(self.per_datagram)
            .min(block_bytes.div_ceil(self.symbol_bytes))
            .min(REPAIR_MAX)
    }

    /// Bytes of datagrams that [`symbols`] makes for `lost` lost packets. Asked before they are computed.
    pub(super) fn cost_bytes(&self, lost: usize) -> usize {
        let cost = |block_bytes| {
            let symbols = self.symbols(block_bytes, lost);
            symbols * self.symbol_bytes + symbols.div_ceil(self.per_datagram) * SYMBOLS_HEAD_BYTES
        };
        let (whole, rest) = (self.bytes / self.block_bytes, self.bytes % self.block_bytes);
        whole * cost(self.block_bytes) + if rest > 0 { cost(rest) } else { 0 }
    }
}

/// Repair for `bytes`, of stream `stream` at `offset` and laid out as `layout` says, so that `lost` lost packets of about a datagram's
/// size cost no round trip.
pub(super) fn symbols(
    stream: u64,
    offset: u64,
    bytes: &[u8],
    layout: &Layout,
    lost: usize,
    loss: LossPerMille,
) -> Vec<Repair> {
    let Layout {
        per_datagram,
        symbol_bytes,
        block_bytes,
        ..
    } = *layout;
    let mut repairs = Vec::new();
    for (block, at) in bytes.chunks(block_bytes).zip((0..).step_by(block_bytes)) {
        let made = code::encode(block, symbol_bytes, layout.symbols(block.len(), lost));
        for (part, first) in made.chunks(per_datagram).zip((0u8..).step_by(per_datagram)) {
            repairs.push(Repair {
                loss,
                stream,
                offset: offset + at as u64,
                body: Body::Symbols {
                    block_bytes: u32::try_from(block.len()).expect("a block is under 1 MiB"),
                    symbol_bytes: u16::try_from(symbol_bytes).expect("less than a datagram"),
                    first,
                    symbols: Bytes::from(part.concat()),
                },
            });
        }
    }
    repairs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_clean_path_gets_no_repair_and_a_lossy_one_until_it_is_clean_again() {
        let mut meter = LossMeter::default();
        assert_eq!(meter.share(S), 0.0);
        meter.update(10_000, 0);
        assert_eq!(meter.share(S), 0.0);
        meter.update(10_100, 1);
        assert_eq!(meter.own_per_mille(), 0, "one loss is chance");
        meter.update(12_000, 20);
        let share = meter.share(S);
        assert!((0.003..0.02).contains(&share), "{share}");
        assert!(meter.own_per_mille() > 0);
        meter.update(60_000, 20);
        assert_eq!(meter.share(S), 0.0, "clean for 48,000 packets");
    }

    #[test]
    fn the_peers_word_holds_for_a_minute_and_is_not_passed_on() {
        let mut meter = LossMeter::default();
        meter.peer_says(0, S);
        assert_eq!(meter.share(S), 0.0);
        meter.peer_says(10, S);
        assert_eq!(meter.share(30 * S), 0.01);
        assert_eq!(meter.own_per_mille(), 0);
        assert_eq!(meter.share(62 * S), 0.0);
    }

    #[test]
    fn repair_takes_a_tenth_of_the_line_at_most() {
        let mut budget = Budget::default();
        let (mut taken, mut now) = (0, Duration::ZERO);
        for _ in 0..100_000 {
            now += Duration::from_millis(1);
            if budget.take(1200, 1e6, now) {
                taken += 1200;
            }
        }
        // A hundred seconds at 1 MB/s, and what was saved up.
        assert!((9_900_000..10_070_000).contains(&taken), "{taken}");
    }

    #[test]
    fn a_budget_that_is_used_up_affords_less() {
        let mut budget = Budget::default();
        assert_eq!(budget.afford(3), SURVIVED_AMPLE);
        assert!(budget.take(40 << 10, 1e6, Duration::ZERO));
        assert_eq!(budget.afford(3), 3);
        assert_eq!(budget.afford(9), 9);
        assert!(!budget.take(40 << 10, 1e6, Duration::ZERO));
        // 24 KiB are left.
        let cost = |lost| lost * (10 << 10);
        assert_eq!(budget.take_for(6, cost, 1e6, Duration::ZERO), Some(2));
        assert_eq!(budget.take_for(6, cost, 1e6, Duration::ZERO), None);
    }

    #[test]
    fn more_loss_and_more_packets_want_more_repair() {
        assert_eq!(survived(6, 0.0), 3);
        assert_eq!(survived(14, 0.01), 3);
        assert_eq!(survived(60, 0.01), 4);
        assert!(survived(60, 0.05) >= 9);
        assert!(survived(60, 1.0) <= REPAIR_MAX);
    }

    #[test]
    fn what_64_kib_cost() {
        for datagram_bytes in [1172, 1420] {
            let bytes = vec![1; (64 << 10) + 10];
            let layout = Layout::of(bytes.len(), datagram_bytes).unwrap();
            let repairs = symbols(4, 0, &bytes, &layout, 3, 10);
            let sent: usize = repairs.iter().map(|r| r.encode().len()).sum();
            assert!(sent < (64 << 10) / 11, "{sent} bytes of repair");
            assert!(repairs.iter().all(|r| r.encode().len() <= datagram_bytes));
        }
    }

    #[test]
    fn the_cost_is_known_before_anything_is_computed() {
        for bytes in [1, 500, 1500, 16_388, 65_540, 200_001, 262_144] {
            let layout = Layout::of(bytes, 1420).unwrap();
            for lost in [1, 3, 6] {
                let repairs = symbols(4, 0, &vec![1; bytes], &layout, lost, 10);
                let sent: usize = repairs.iter().map(|r| r.encode().len()).sum();
                assert_eq!(layout.cost_bytes(lost), sent, "{bytes} bytes, {lost} lost");
            }
        }
        assert!(Layout::of(0, 1420).is_none() && Layout::of(1, 80).is_none());
    }
}
