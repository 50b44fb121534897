//! How much a sender may hold for an application that writes faster than the path carries.

/// Send buffer, in congestion windows: one under way, one for holes that wait for a second and a third transmission, one to spare.
const WINDOWS: u64 = 4;
/// And in bytes, so that a short path does not wait for the application.
const SEND_WINDOW_BYTES_MIN: u64 = 2 << 20;

/// Bytes that may wait for acknowledgement until the path has been measured; then it is a multiple of what the path holds. Begun with more, a
/// fill would take it all before the path is known, and a guest would wait behind it.
const SEND_WINDOW_BYTES_FIRST: u64 = 2 << 20;

/// The send buffer of one connection, fitted to its path as that is measured.
///
/// It grows at once, and shrinks by half of what was acknowledged: while more is held than it allows nobody can write, not even for a
/// guest who waits, and what is held shrinks by what is acknowledged and no faster.
#[derive(Debug, Clone, Copy)]
pub struct SendWindow {
    bytes: u64,
    bytes_max: u64,
    /// Bytes acknowledged when it was last fitted.
    fitted_at: u64,
}

impl SendWindow {
    /// Of a connection that begins, never over `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes: SEND_WINDOW_BYTES_FIRST.min(bytes_max),
            bytes_max,
            fitted_at: 0,
        }
    }

    /// Its bytes now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fits it to a congestion window of `cwnd` bytes when `delivered` bytes have been acknowledged in all; true if it is another.
    pub fn fit(&mut self, cwnd: u64, delivered: u64) -> bool {
        // A path that the connection has just moved to counts from nothing.
        let acked = delivered.saturating_sub(self.fitted_at);
        let wanted = cwnd
            .saturating_mul(WINDOWS)
            .max(SEND_WINDOW_BYTES_MIN)
            .max(self.bytes.saturating_sub(acked / 2));
        // Whole half MiB, so that it is not set anew for every packet more.
        let wanted = wanted.next_multiple_of(1 << 19).min(self.bytes_max);
        let other = wanted != self.bytes;
        if other || delivered < self.fitted_at {
            self.fitted_at = delivered;
        }
        self.bytes = wanted;
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_follows_the_path_within_its_bounds() {
        let mut window = SendWindow::new(64 << 20);
        assert!(window.fit(7 << 20, 0));
        assert_eq!(window.bytes(), 28 << 20, "grows at once");
        assert!(!window.fit(100_000, 0), "nothing while nothing is taken");
        assert!(window.fit(100_000, 8 << 20));
        assert_eq!(window.bytes(), 24 << 20, "half of what the path took");
        assert!(window.fit(100_000, 200 << 20));
        assert_eq!(window.bytes(), 2 << 20, "the least");
        assert!(window.fit(1 << 30, 201 << 20));
        assert_eq!(window.bytes(), 64 << 20, "the most");
        assert!(
            !window.fit(100_000, 1 << 20),
            "another path has taken nothing"
        );
        assert!(window.fit(100_000, 9 << 20));
        assert_eq!(window.bytes(), 60 << 20);
        assert_eq!(SendWindow::new(1 << 20).bytes(), 1 << 20, "a small setting");
    }
}
