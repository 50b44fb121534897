//! How far ahead of what has come a branch asks, so that its line never runs dry between two requests.
//!
//! Pure: what is known of the path is an argument. How many bytes that is, and the limits of what may be in flight, are the caller's.

use std::time::Duration;

/// Packets of one request: 4 MiB, compressed. Their logarithm is all that matters.
const REQUEST_PACKETS: f64 = 2048.0;
/// Share of lost packets from which the end of a request takes longer than the one round trip that is always allowed for it.
const LOSS_MIN: f64 = 0.01;
/// Above this a path is of no use, and its logarithm of no meaning.
const LOSS_MAX: f64 = 0.25;

/// What is asked for ahead of what has come, in seconds on the line: what the path holds, as much again until the next request is there, and once more for
/// the end of a request that waits for what was lost; and a quarter of a second.
///
/// Where a share `loss` of all packets is lost, so is that share of their repairs, and of theirs: of n packets the last one comes ln n / ln(1/loss)
/// round trips behind the first time that all were sent. A request is not over before that, so the others have to carry the line meanwhile.
#[must_use]
pub fn seconds_ahead(round_trip: Duration, loss: f64) -> f64 {
    let end = if loss < LOSS_MIN {
        1.0
    } else {
        REQUEST_PACKETS.ln() / (1.0 / loss.min(LOSS_MAX)).ln()
    };
    (2.0 + end) * round_trip.as_secs_f64() + 0.25
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_secs(1);

    #[test]
    fn more_loss_asks_further_ahead_up_to_a_limit() {
        for loss in [0.0, 0.001, 0.0099] {
            assert!((seconds_ahead(ROUND_TRIP, loss) - 3.25).abs() < 1e-9);
        }
        let mut before = 3.25;
        for loss in [0.01, 0.02, 0.05, 0.1, 0.2] {
            let ahead = seconds_ahead(ROUND_TRIP, loss);
            assert!(ahead > before, "{loss}: {ahead}");
            before = ahead;
        }
        // 2048 packets at 5 %: 102 are repaired, 5 of them once more, and in one case of four one of these a third time.
        assert!((seconds_ahead(ROUND_TRIP, 0.05) - 4.795).abs() < 0.01);
        let most = seconds_ahead(ROUND_TRIP, LOSS_MAX);
        for loss in [0.5, 1.0, f64::INFINITY] {
            assert!((seconds_ahead(ROUND_TRIP, loss) - most).abs() < 1e-9);
        }
        assert!(most < 8.0, "{most}");
    }

    #[test]
    fn a_short_path_has_its_quarter_of_a_second() {
        assert!((seconds_ahead(Duration::ZERO, 0.1) - 0.25).abs() < 1e-9);
    }
}
