//! How much a sender may hold for an application that writes faster than the path carries.

/// Send buffer, in congestion windows: one under way, one for holes that wait for a second and a third transmission, one to spare.
const WINDOWS: u64 = 4;
/// And in bytes, so that a short path does not wait for the application.
const SEND_WINDOW_BYTES_MIN: u64 = 2 << 20;

/// The send buffer in bytes for a congestion window of `cwnd`, when `acked` bytes were acknowledged since it was last set: grows at once
/// and shrinks by half of those. While more is held than it allows nobody can write, not even for a guest who waits, and what is held
/// shrinks by what is acknowledged and no faster.
pub fn send_window(now: u64, cwnd: u64, acked: u64, bytes_max: u64) -> u64 {
    let wanted = cwnd
        .saturating_mul(WINDOWS)
        .max(SEND_WINDOW_BYTES_MIN)
        .max(now.saturating_sub(acked / 2));
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
            send_window(8 << 20, 7 << 20, 0, max),
            28 << 20,
            "grows at once"
        );
        assert_eq!(
            send_window(32 << 20, 100_000, 8 << 20, max),
            28 << 20,
            "half of what the path took"
        );
        assert_eq!(
            send_window(32 << 20, 100_000, 0, max),
            32 << 20,
            "nothing while nothing is taken"
        );
        assert_eq!(
            send_window(2 << 20, 100_000, 9 << 20, max),
            2 << 20,
            "the least"
        );
        assert_eq!(send_window(8 << 20, 1 << 30, 0, max), max, "the most");
        assert_eq!(
            send_window(1 << 20, 100_000, 0, 1 << 20),
            1 << 20,
            "a small setting"
        );
    }
}
