//! How much a sender may hold for an application that writes faster than the path carries.

/// Send buffer, in congestion windows: one under way, one for holes that wait for a second and a third transmission, one to spare.
const WINDOWS: u64 = 4;
/// And in bytes, so that a short path does not wait for the application.
const SEND_WINDOW_BYTES_MIN: u64 = 2 << 20;

/// The send buffer in bytes for a congestion window of `cwnd`: grows at once and shrinks by an eighth at a time. While more is held
/// than it allows nobody can write, not even for a guest who waits; and a window that has just collapsed may come back.
pub fn send_window(now: u64, cwnd: u64, bytes_max: u64) -> u64 {
    let wanted = cwnd
        .saturating_mul(WINDOWS)
        .max(SEND_WINDOW_BYTES_MIN)
        .max(now - now / 8);
    // Whole half MiB, so that it is not set anew for every packet more.
    wanted.next_multiple_of(1 << 19).min(bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_follows_the_path_within_its_bounds() {
        let max = 64 << 20;
        assert_eq!(
            send_window(8 << 20, 7 << 20, max),
            28 << 20,
            "grows at once"
        );
        assert_eq!(
            send_window(32 << 20, 100_000, max),
            28 << 20,
            "an eighth less"
        );
        assert_eq!(send_window(2 << 20, 100_000, max), 2 << 20, "the least");
        assert_eq!(send_window(8 << 20, 1 << 30, max), max, "the most");
        assert_eq!(
            send_window(1 << 20, 100_000, 1 << 20),
            1 << 20,
            "a small setting"
        );
    }
}
