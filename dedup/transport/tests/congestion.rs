//! Congestion control on a virtual clock: what share of a line a transfer gets, what it sends for it, and what it does to others.
//!
//! The bounds hold with margin over seeds; `cargo run --example congestion_grid` prints the figures themselves.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use std::ops::Range;
use std::time::Duration;

use dedup_transport::link::{Congestion, LinkTuning, seconds_ahead};
use sim::{Event, Line, Load, Report, Spec};
use sim_wan::model::Loss;

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

/// From the end of start-up (ten round trips) on, for long enough that what waits in buffers at both ends of the span is little of it.
fn after_startup(line: &Line) -> Range<Duration> {
    let warm = line.rtt() * 10;
    warm..warm + (line.rtt() * 60).max(seconds(20.0))
}

fn bulk(line: &Line, seed: u64) -> Report {
    let span = after_startup(line);
    sim::run(
        line,
        &[Spec::bulk(LinkTuning::default())],
        &[],
        span.end,
        seed,
    )
}

fn random(p: f64) -> Loss {
    if p == 0.0 {
        Loss::None
    } else {
        Loss::Random { p }
    }
}

/// One bulk transfer gets at least `share`, and no more than `overflow` of what it sends is dropped by a full queue.
fn fills(name: &str, line: &Line, share: f64, overflow: f64) {
    let report = bulk(line, 3);
    let span = after_startup(line);
    let got = report.goodput(&span);
    assert!(report.ended.is_empty(), "{name}: {:?}", report.ended);
    assert!(got >= share, "{name}: {got:.3} of the line");
    let dropped = report.overflow(&span);
    assert!(
        dropped <= overflow,
        "{name}: the queue dropped {dropped:.3}"
    );
}

fn grid(mbit: f64, rtt_ms: f64) {
    // A quarter of a round trip holds less than one probe above the path puts into it.
    for (queue, overflow) in [(1.0, 0.02), (0.25, 0.03)] {
        for p in [0.0, 0.001, 0.01] {
            let name = format!("{mbit} Mbit/s {rtt_ms} ms {p} queue {queue}");
            fills(
                &name,
                &Line::new(mbit, rtt_ms, random(p), queue),
                0.90,
                overflow,
            );
        }
        let name = format!("{mbit} Mbit/s {rtt_ms} ms 5 % queue {queue}");
        fills(
            &name,
            &Line::new(mbit, rtt_ms, random(0.05), queue),
            0.80,
            overflow,
        );
        let bursts = Loss::Bursts {
            p: 0.01,
            mean_packets: 8.0,
        };
        let name = format!("{mbit} Mbit/s {rtt_ms} ms bursts queue {queue}");
        fills(
            &name,
            &Line::new(mbit, rtt_ms, bursts, queue),
            0.88,
            overflow,
        );
    }
}

/// Another address is another path to QUIC, with a controller of its own: it begins anew, and nothing else does.
#[test]
fn a_branch_whose_address_changes_keeps_its_link_and_soon_its_rate() {
    let line = Line::new(50.0, 40.0, Loss::Random { p: 0.001 }, 1.0);
    let spec = Spec::bulk(LinkTuning::default())
        .remembering(50.0, line.rtt())
        .moving(seconds(6.0));
    let report = sim::run(&line, &[spec], &[], seconds(20.0), 5);
    assert!(report.ended.is_empty(), "{:?}", report.ended);
    let before = report.goodput(&(seconds(2.0)..seconds(6.0)));
    let after = report.goodput(&(seconds(8.0)..seconds(20.0)));
    assert!(before > 0.9 && after > 0.9, "{before:.3}, then {after:.3}");
}

#[test]
fn a_20_mbit_line_of_100_ms_is_filled() {
    grid(20.0, 100.0);
}

#[test]
fn a_20_mbit_line_of_300_ms_is_filled() {
    grid(20.0, 300.0);
}

#[test]
fn a_20_mbit_line_of_600_ms_is_filled() {
    grid(20.0, 600.0);
}

#[test]
fn a_100_mbit_line_of_100_ms_is_filled() {
    grid(100.0, 100.0);
}

#[test]
fn a_100_mbit_line_of_300_ms_is_filled() {
    grid(100.0, 300.0);
}

#[test]
fn a_100_mbit_line_of_600_ms_is_filled() {
    grid(100.0, 600.0);
}

/// Whose windows must stay open, whatever is lost: a request's end waits for its last repair, and the others carry the line meanwhile.
#[test]
fn few_requests_at_once_fill_a_lossy_line() {
    for (mbit, rtt_ms) in [
        (100.0, 100.0),
        (100.0, 300.0),
        (100.0, 600.0),
        (20.0, 600.0),
    ] {
        for (p, share) in [(0.0, 0.9), (0.001, 0.9), (0.01, 0.85), (0.05, 0.75)] {
            // As a branch asks.
            let window = mbit * 125e3 * seconds_ahead(seconds(rtt_ms / 1000.0), p);
            let requests = (window / f64::from(4 << 20)).ceil().clamp(2.0, 12.0) as usize;
            let line = Line::new(mbit, rtt_ms, random(p), 1.0);
            let spec = Spec::bulk(LinkTuning::default()).asking(requests);
            let span = after_startup(&line);
            let report = sim::run(&line, &[spec], &[], span.end, 3);
            let got = report.goodput(&span);
            assert!(
                got >= share,
                "{requests} requests at {mbit} Mbit/s {rtt_ms} ms {p}: {got:.3} of the line"
            );
        }
    }
}

#[test]
fn the_emulators_own_lines_are_filled() {
    for name in ["dsl", "lte", "t1", "intercontinental", "vsat-geo"] {
        fills(name, &Line::profile(name), 0.90, 0.03);
    }
    fills("bad-day", &Line::profile("bad-day"), 0.80, 0.03);
}

/// What was sent per byte received, over the whole of a 21 MB transfer: a metered line pays for it.
#[test]
fn little_more_is_sent_than_arrives() {
    for name in ["dsl", "lte", "intercontinental", "vsat-geo", "bad-day"] {
        let line = Line::profile(name);
        let report = bulk(&line, 5);
        let whole = Duration::ZERO..after_startup(&line).end;
        let sent = report.offered_per_received(&whole) * (1.0 - line.down.loss.mean());
        assert!(sent < 1.12, "{name}: {sent:.3}");
    }
}

#[test]
fn a_jittery_line_is_no_slower_than_a_steady_one() {
    let mut line = Line::new(30.0, 60.0, Loss::None, 3.0);
    line.down.jitter = seconds(0.01);
    line.up.jitter = seconds(0.01);
    fills("jitter", &line, 0.92, 0.01);
}

/// A queue of our own making is what a guest's read waits in.
#[test]
fn the_queue_stays_short() {
    for (mbit, rtt_ms) in [(20.0, 100.0), (100.0, 300.0), (20.0, 600.0)] {
        let line = Line::new(mbit, rtt_ms, Loss::None, 1.0);
        let report = bulk(&line, 3);
        let span = after_startup(&line);
        let late = span.start + (span.end - span.start) / 2..span.end;
        let median = report.queue(&late, 0.5);
        assert!(median < seconds(0.06), "{mbit} {rtt_ms}: {median:?}");
    }
}

/// Ten seconds of nothing, as on a failing line; then the rate must be back within a few round trips.
#[test]
fn after_an_outage_the_rate_is_soon_back() {
    for (mbit, rtt_ms) in [(20.0, 100.0), (20.0, 600.0), (50.0, 30.0)] {
        let line = Line::new(mbit, rtt_ms, random(0.001), 1.0);
        let (cut, restored) = (seconds(15.0), seconds(25.0));
        let events = [(cut, Event::Cut), (restored, Event::Restore)];
        let report = sim::run(
            &line,
            &[Spec::bulk(LinkTuning::default())],
            &events,
            seconds(40.0),
            3,
        );
        // The next knock comes within half a second; then the path is measured anew.
        let back = restored + seconds(1.0) + line.rtt() * 6;
        let got = report.goodput(&(back..back + line.rtt() * 4 + seconds(1.0)));
        assert!(got > 0.8, "{mbit} Mbit/s {rtt_ms} ms: {got:.2} of the line");
        assert!(report.ended.is_empty(), "{:?}", report.ended);
    }
}

#[test]
fn a_remembered_path_is_full_within_three_round_trips() {
    for (mbit, rtt_ms) in [(20.0, 600.0), (100.0, 180.0), (20.0, 100.0)] {
        let line = Line::new(mbit, rtt_ms, random(0.001), 1.0);
        let spec = Spec::bulk(LinkTuning::default()).remembering(mbit, line.rtt());
        let report = sim::run(&line, &[spec], &[], line.rtt() * 20, 3);
        // Handshake and request take two round trips; then three. What the line carries, because what the application has comes in
        // jumps, as holes are filled.
        let full = report.carried(&(line.rtt() * 5..line.rtt() * 8));
        assert!(full > 0.95, "{mbit} Mbit/s {rtt_ms} ms: {full:.2} full");
        let got = report.goodput(&(line.rtt() * 6..line.rtt() * 20));
        assert!(
            got > 0.85,
            "{mbit} Mbit/s {rtt_ms} ms: {got:.2} of the line"
        );
    }
}

/// A memory of a line ten times as fast must not do more harm than a round or two.
#[test]
fn a_wrong_memory_does_little_harm() {
    let line = Line::new(10.0, 200.0, random(0.001), 0.5);
    let spec = Spec::bulk(LinkTuning::default()).remembering(100.0, line.rtt());
    let report = sim::run(&line, &[spec], &[], seconds(20.0), 3);
    let whole = Duration::ZERO..seconds(20.0);
    let sent = report.offered_per_received(&whole);
    assert!(sent < 1.15, "{sent:.2} sent per byte received");
    let got = report.goodput(&(seconds(3.0)..seconds(20.0)));
    assert!(got > 0.88, "{got:.2} of the line");
}

#[test]
fn a_line_that_gets_faster_is_used_and_one_that_gets_slower_is_not_flooded() {
    let slow = Line::new(10.0, 100.0, Loss::None, 1.0);
    let fast = Line::new(40.0, 100.0, Loss::None, 1.0);
    let events = [
        (seconds(10.0), Event::Shape(Box::new(fast))),
        (seconds(30.0), Event::Shape(Box::new(slow.clone()))),
    ];
    let report = sim::run(
        &slow,
        &[Spec::bulk(LinkTuning::default())],
        &events,
        seconds(50.0),
        3,
    );
    let fast = report.mbit(0, &(seconds(15.0)..seconds(30.0)));
    assert!(fast > 34.0, "{fast:.1} of 40 Mbit/s five seconds after");
    let after = seconds(34.0)..seconds(50.0);
    assert!(
        report.goodput(&after) > 0.88,
        "{:.2}",
        report.goodput(&after)
    );
    assert!(
        report.overflow(&after) < 0.03,
        "{:.3}",
        report.overflow(&after)
    );
}

/// A sender that mostly has nothing to send must not unlearn what the path can do.
#[test]
fn idle_times_do_not_shrink_the_estimate() {
    let line = Line::new(20.0, 100.0, random(0.001), 1.0);
    let mut spec = Spec::bulk(LinkTuning::default());
    spec.load = Load::Periodic {
        bytes: 1 << 20,
        every: seconds(2.0),
    };
    let report = sim::run(&line, &[spec], &[], seconds(40.0), 3);
    // The last answer, asked for at 38 s: 1 MiB takes 0.42 s at 20 Mbit/s, and a round trip.
    let asked = seconds(38.0);
    let got = report.received(0, &(asked..asked + seconds(0.75)));
    assert!(got >= 1 << 20, "{got} bytes in 0.75 s");
}

fn two(first: Congestion, second: Congestion, queue: f64) -> (Report, Range<Duration>) {
    let line = Line::new(20.0, 50.0, Loss::None, queue);
    let spec = |congestion| {
        Spec::bulk(LinkTuning {
            congestion,
            ..LinkTuning::default()
        })
    };
    let flows = [spec(first), spec(second).starting(seconds(5.0))];
    let report = sim::run(&line, &flows, &[], seconds(90.0), 3);
    (report, seconds(30.0)..seconds(90.0))
}

#[test]
fn two_of_a_kind_share() {
    let (report, span) = two(Congestion::Delivery, Congestion::Delivery, 2.0);
    let (a, b) = (report.mbit(0, &span), report.mbit(1, &span));
    let jain = (a + b).powi(2) / (2.0 * (a * a + b * b));
    assert!(jain > 0.9, "{a:.1} and {b:.1} Mbit/s");
    assert!(a + b > 17.5, "{a:.1} and {b:.1} Mbit/s");
}

#[test]
fn beside_cubic_neither_starves() {
    // The shorter the queue, the more of its losses CUBIC takes to heart.
    for (queue, least) in [(0.5, 2.0), (1.0, 3.0), (2.0, 3.0), (4.0, 3.0)] {
        let (report, span) = two(Congestion::Delivery, Congestion::Cubic, queue);
        let (ours, cubic) = (report.mbit(0, &span), report.mbit(1, &span));
        assert!(
            cubic > least,
            "queue {queue}: cubic has {cubic:.1} beside {ours:.1} Mbit/s"
        );
        assert!(
            ours > 2.0,
            "queue {queue}: {ours:.1} beside cubic's {cubic:.1} Mbit/s"
        );
    }
}
