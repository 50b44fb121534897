//! How fast a guest's words are taken, as a value: a guest that says more waits, and nobody else does.

/// What may come at once: a greeting and the largest report, twice.
const BURST_BYTES: u64 = 64 << 10;
/// What may come in the long run, a second: some eighty small reports, where one in two seconds is meant.
const BYTES_PER_S: u64 = 8 << 10;

/// See the module.
#[derive(Debug)]
pub struct Allowance {
    /// What may still come now.
    left: u64,
    at_ms: u64,
}

impl Allowance {
    /// A full one.
    pub fn new(now_ms: u64) -> Self {
        Self {
            left: BURST_BYTES,
            at_ms: now_ms,
        }
    }

    /// Notes that so many bytes came. Returns for how many milliseconds no more are to be read.
    pub fn spend(&mut self, bytes: u64, now_ms: u64) -> u64 {
        let passed_ms = now_ms.saturating_sub(self.at_ms).min(60_000);
        self.left = BURST_BYTES.min(self.left + passed_ms * BYTES_PER_S / 1000);
        self.at_ms = now_ms;
        let missing = bytes.saturating_sub(self.left);
        self.left = self.left.saturating_sub(bytes);
        let pause_ms = (missing * 1000).div_ceil(BYTES_PER_S);
        // What comes in by then is spent already.
        self.at_ms += pause_ms;
        pause_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_talks_all_the_time_is_heard_at_the_long_run_s_rate() {
        let mut allowance = Allowance::new(0);
        let (mut now_ms, mut bytes) = (0, 0);
        while now_ms < 100_000 {
            now_ms += allowance.spend(4096, now_ms);
            bytes += 4096;
        }
        let most = BURST_BYTES + 101 * BYTES_PER_S;
        assert!(bytes <= most, "{bytes} bytes, {most} allowed");
        assert!(bytes >= most / 2);
    }

    #[test]
    fn who_is_quiet_never_waits() {
        let mut allowance = Allowance::new(0);
        for second in 1..1000 {
            assert_eq!(allowance.spend(2000, second * 1000), 0);
        }
        assert_eq!(allowance.spend(BURST_BYTES, 2_000_000), 0);
        assert_eq!(allowance.spend(BYTES_PER_S, 2_000_000), 1000);
        assert_eq!(allowance.spend(1, 1_000_000), 1, "a clock that goes back");
    }
}
