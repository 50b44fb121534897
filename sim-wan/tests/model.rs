//! The impairment model on a virtual clock: exact rate and delay, statistics of losses, outages, conservation.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use proptest::prelude::*;
use sim_wan::model::{DirectionStats, Loss, Mode, Outage, Pipe, Reorder, Shape, Verdict};

const MS: Duration = Duration::from_millis(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Polls at each event until nothing is on its way; returns (arrival time, packet) in order.
fn run_out(pipe: &mut Pipe<u64>) -> Vec<(Duration, u64)> {
    let mut arrived = Vec::new();
    while let Some(at) = pipe.next_event() {
        while let Some(packet) = pipe.poll(at) {
            arrived.push((at, packet));
        }
    }
    arrived
}

/// Sends `count` packets, `gap` apart, and returns what arrived.
fn send(pipe: &mut Pipe<u64>, count: u64, gap: Duration, bytes: u64) -> Vec<(Duration, u64)> {
    for n in 0..count {
        pipe.enqueue(gap * n as u32, n, bytes);
    }
    run_out(pipe)
}

fn lossy(loss: Loss) -> Shape {
    Shape {
        loss,
        ..Shape::clean(1_000_000_000, ms(10), ms(1000))
    }
}

#[test]
fn the_rate_is_exact_for_odd_rates_and_sizes() {
    for (rate, bytes) in [
        (1_500_000, 1500),
        (1_000_000_000, 40),
        (7_777_777, 333),
        (999_999_937, 61),
    ] {
        let count = 100_000u64;
        let mut pipe = Pipe::new(
            Duration::ZERO,
            Shape::clean(rate, ms(5), ms(60_000_000)),
            Mode::Datagram,
            1,
        );
        let arrived = send(&mut pipe, count, Duration::ZERO, bytes);
        assert_eq!(arrived.len() as u64, count);
        let exact = (count * bytes * 8) as f64 / rate as f64 + 0.005;
        let last = arrived.last().unwrap().0.as_secs_f64();
        assert!(
            (last - exact).abs() < 2e-9,
            "{rate} bit/s: last at {last}, exactly {exact}"
        );
    }
}

#[test]
fn a_lone_packet_takes_serialisation_plus_delay() {
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(10_000_000, ms(15), ms(60)),
        Mode::Datagram,
        1,
    );
    pipe.enqueue(ms(100), 7, 1250);
    assert_eq!(pipe.poll(ms(116) - Duration::from_nanos(1)), None);
    assert_eq!(pipe.next_event(), Some(ms(116)));
    assert_eq!(pipe.poll(ms(116)), Some(7));
    assert_eq!(pipe.next_event(), None);
}

#[test]
fn the_queue_drops_at_its_tail_and_bounds_the_wait() {
    // 10 Mbit/s and 60 ms: 75,000 bytes, 50 full packets.
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(10_000_000, ms(15), ms(60)),
        Mode::Datagram,
        1,
    );
    let verdicts: Vec<_> = (0..80)
        .map(|n| pipe.enqueue(Duration::ZERO, n, 1500))
        .collect();
    assert!(verdicts[..50].iter().all(|v| *v == Verdict::Queued));
    assert!(verdicts[50..].iter().all(|v| *v == Verdict::DroppedQueue));
    let arrived = run_out(&mut pipe);
    assert_eq!(
        arrived.iter().map(|a| a.1).collect::<Vec<_>>(),
        (0..50).collect::<Vec<_>>()
    );
    assert_eq!(arrived[49].0, ms(75));
    let stats = pipe.stats(ms(100));
    assert_eq!(
        (stats.dropped_queue.packets, stats.queue_delay_max_us),
        (30, 58_800)
    );
    assert!(stats.is_conserved());
}

#[test]
fn a_short_queue_still_holds_two_full_packets() {
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(1_000_000, ms(1), MS),
        Mode::Datagram,
        1,
    );
    let verdicts: Vec<_> = (0..3)
        .map(|n| pipe.enqueue(Duration::ZERO, n, 1500))
        .collect();
    assert_eq!(
        verdicts,
        [Verdict::Queued, Verdict::Queued, Verdict::DroppedQueue]
    );
}

#[test]
fn random_loss_has_its_mean_for_every_seed() {
    let (p, n) = (0.01, 200_000u64);
    for seed in 0..10 {
        let mut pipe = Pipe::new(
            Duration::ZERO,
            lossy(Loss::Random { p }),
            Mode::Datagram,
            seed,
        );
        let lost = n - send(&mut pipe, n, Duration::from_micros(15), 1500).len() as u64;
        let bound = 4.5 * (n as f64 * p * (1.0 - p)).sqrt();
        assert!(
            (lost as f64 - n as f64 * p).abs() < bound,
            "seed {seed}: {lost} lost"
        );
        assert_eq!(pipe.stats(ms(100_000)).dropped_loss.packets, lost);
    }
}

#[test]
fn bursts_have_their_mean_and_their_length() {
    let n = 400_000u64;
    for (seed, p, mean_packets) in [(1, 0.05, 8.0), (2, 0.005, 4.0), (3, 0.2, 20.0)] {
        let mut pipe = Pipe::new(
            Duration::ZERO,
            lossy(Loss::Bursts { p, mean_packets }),
            Mode::Datagram,
            seed,
        );
        let arrived = send(&mut pipe, n, Duration::from_micros(15), 1500);
        let lost = n - arrived.len() as u64;
        let bursts = arrived
            .windows(2)
            .filter(|pair| pair[1].1 > pair[0].1 + 1)
            .count() as f64;
        let share = lost as f64 / n as f64;
        let share_bound = 4.5 * (p * (1.0 - p) * (2.0 * mean_packets - 1.0) / n as f64).sqrt();
        assert!((share - p).abs() < share_bound, "seed {seed}: {share} lost");
        let length = lost as f64 / bursts;
        let length_bound = 4.5 * mean_packets / bursts.sqrt();
        assert!(
            (length - mean_packets).abs() < length_bound,
            "seed {seed}: bursts of {length}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let run = |seed| {
        let shape = Shape {
            jitter: ms(5),
            duplicate: 0.01,
            ..lossy(Loss::Random { p: 0.02 })
        };
        send(
            &mut Pipe::new(Duration::ZERO, shape, Mode::Datagram, seed),
            5000,
            MS,
            1500,
        )
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn jitter_stays_in_its_bounds_keeps_order_and_is_the_same_for_fast_and_sparse_flows() {
    let shape = Shape {
        jitter: ms(20),
        ..Shape::clean(1_000_000_000, ms(50), ms(1000))
    };
    let mut means = Vec::new();
    for gap in [Duration::from_micros(100), ms(7)] {
        let mut pipe = Pipe::new(Duration::ZERO, shape.clone(), Mode::Datagram, 5);
        let count = Duration::from_secs(400).as_micros() as u64 / gap.as_micros() as u64;
        let arrived = send(&mut pipe, count, gap, 125);
        assert!(
            arrived.windows(2).all(|pair| pair[0].1 < pair[1].1),
            "order"
        );
        let delays: Vec<f64> = arrived
            .iter()
            .map(|(at, n)| (*at - gap * *n as u32).as_secs_f64() * 1e3)
            .collect();
        let (low, high) = delays
            .iter()
            .fold((f64::MAX, 0.0f64), |(l, h), d| (l.min(*d), h.max(*d)));
        assert!(low >= 30.0 && high <= 70.01, "delays from {low} to {high}");
        assert!(
            low < 33.0 && high > 67.0,
            "delays only from {low} to {high}"
        );
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        let variance = delays.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / delays.len() as f64;
        // Uniform levels joined by lines: amplitude × √2 / 3.
        assert!(
            (variance.sqrt() - 20.0 * 2f64.sqrt() / 3.0).abs() < 0.5,
            "deviation {}",
            variance.sqrt()
        );
        means.push(mean);
    }
    assert!(
        (means[0] - means[1]).abs() < 0.2 && (means[0] - 50.0).abs() < 0.7,
        "{means:?}"
    );
}

#[test]
fn planned_outages_take_the_end_of_each_period() {
    let outage = Outage {
        period: ms(120_000),
        length: ms(10_000),
    };
    let shape = Shape {
        outage: Some(outage),
        ..Shape::clean(10_000_000, ms(125), ms(400))
    };
    let mut pipe = Pipe::new(Duration::ZERO, shape, Mode::Datagram, 1);
    let arrived: Vec<u64> = send(&mut pipe, 300_000, MS, 100)
        .into_iter()
        .map(|a| a.1)
        .collect();
    // A packet offered at n ms arrives 125.08 ms later and is lost if the link is down at any time in between.
    let down = |t: f64| t % 120_000.0 >= 110_000.0;
    let survives = |n: &u64| !down(*n as f64) && !down(*n as f64 + 125.08);
    assert_eq!(arrived, (0..300_000).filter(survives).collect::<Vec<_>>());
    let stats = pipe.stats(ms(400_000));
    assert_eq!(stats.dropped_outage.packets, 300_000 - arrived.len() as u64);
    assert!(stats.is_conserved());
}

#[test]
fn a_cut_loses_what_is_on_its_way_and_a_restored_link_carries_again() {
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(1_200_000, ms(50), ms(400)),
        Mode::Datagram,
        1,
    );
    for n in 0..10 {
        pipe.enqueue(Duration::ZERO, n, 1500);
    }
    // 10 ms each: at 65 ms one packet has arrived, five are in flight, four queued.
    assert_eq!(pipe.poll(ms(65)), Some(0));
    pipe.cut(ms(65));
    assert_eq!((pipe.next_event(), pipe.poll(ms(1000))), (None, None));
    assert_eq!(pipe.enqueue(ms(1000), 10, 1500), Verdict::DroppedOutage);
    pipe.restore(ms(1001));
    pipe.enqueue(ms(1001), 11, 1500);
    assert_eq!(run_out(&mut pipe), [(ms(1061), 11)]);
    assert_eq!(pipe.stats(ms(2000)).dropped_outage.packets, 10);
    assert!(pipe.stats(ms(2000)).is_conserved());
}

#[test]
fn a_stream_stalls_in_a_cut_and_in_an_outage_and_loses_nothing() {
    let outage = Outage {
        period: ms(2000),
        length: ms(500),
    };
    let shape = Shape {
        outage: Some(outage),
        loss: Loss::Random { p: 0.5 },
        ..Shape::clean(1_200_000, ms(50), ms(400))
    };
    let mut pipe = Pipe::new(Duration::ZERO, shape, Mode::Stream, 1);
    pipe.enqueue(Duration::ZERO, 0, 1500);
    pipe.enqueue(Duration::ZERO, 1, 1500);
    pipe.cut(ms(15));
    assert!(!pipe.has_room(ms(500), 1500));
    assert_eq!((pipe.next_event(), pipe.poll(ms(500))), (None, None));
    pipe.restore(ms(1000));
    assert!(pipe.has_room(ms(1000), 1500));
    assert_eq!(pipe.poll(ms(1000)), Some(0), "it had left before the cut");
    assert_eq!(
        run_out(&mut pipe),
        [(ms(1055), 1)],
        "half of it was still to be sent"
    );
    pipe.enqueue(ms(1460), 2, 1500);
    pipe.enqueue(ms(1495), 3, 1500);
    assert_eq!(
        run_out(&mut pipe),
        [(ms(2000), 2), (ms(2000), 3)],
        "they wait for the end of the outage"
    );
    assert!(!pipe.has_room(ms(3600), 1500));
    assert_eq!(pipe.up_from(ms(3600)), ms(4000));
}

#[test]
fn reordered_packets_are_overtaken_and_duplicates_arrive_twice() {
    let n = 50_000u64;
    let shape = Shape {
        reorder: Some(Reorder {
            p: 0.02,
            delay: ms(5),
        }),
        duplicate: 0.03,
        ..Shape::clean(1_000_000_000, ms(10), ms(100))
    };
    let mut pipe = Pipe::new(Duration::ZERO, shape, Mode::Datagram, 9);
    let arrived = send(&mut pipe, n, MS, 1000);
    let stats = pipe.stats(ms(100_000));
    let near = |count: u64, p: f64| {
        (count as f64 - n as f64 * p).abs() < 4.5 * (n as f64 * p * (1.0 - p)).sqrt()
    };
    assert!(
        near(stats.reordered_packets, 0.02),
        "{} held",
        stats.reordered_packets
    );
    assert!(
        near(stats.duplicated.packets, 0.03),
        "{} twice",
        stats.duplicated.packets
    );
    assert_eq!(arrived.len() as u64, n + stats.duplicated.packets);
    let late = arrived
        .windows(2)
        .filter(|pair| pair[1].1 < pair[0].1)
        .count() as u64;
    assert!(
        late > stats.reordered_packets * 8 / 10,
        "{late} of {} were overtaken",
        stats.reordered_packets
    );
    assert!(stats.is_conserved());
}

#[test]
fn a_new_profile_takes_over_from_the_next_bit() {
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(1_200_000, ms(50), ms(400)),
        Mode::Datagram,
        1,
    );
    for n in 0..3 {
        pipe.enqueue(Duration::ZERO, n, 1500);
    }
    // At 15 ms: packet 0 in flight, packet 1 half sent, packet 2 queued. Ten times the rate, a tenth of the delay.
    pipe.set_shape(ms(15), Shape::clean(12_000_000, ms(5), ms(400)));
    let arrived = run_out(&mut pipe);
    let last = Duration::from_micros(60_000);
    assert_eq!(
        arrived,
        [(last, 0), (last, 1), (last, 2)],
        "order is kept: nobody overtakes what is in flight"
    );
    pipe.enqueue(ms(100), 3, 1500);
    assert_eq!(run_out(&mut pipe), [(ms(106), 3)]);
}

#[test]
fn a_reset_clears_the_counters_and_keeps_the_packets() {
    let mut pipe = Pipe::new(
        Duration::ZERO,
        Shape::clean(1_200_000, ms(50), ms(400)),
        Mode::Datagram,
        1,
    );
    pipe.enqueue(Duration::ZERO, 0, 1500);
    pipe.reset_stats();
    let stats = pipe.stats(Duration::ZERO);
    assert_eq!((stats.offered_packets, stats.in_transit.packets), (0, 1));
    run_out(&mut pipe);
    let stats = pipe.stats(ms(100));
    assert_eq!(
        (stats.delivered_bytes, stats.in_transit),
        (1500, Default::default())
    );
}

#[derive(Debug, Clone)]
enum Step {
    Send { gap_us: u64, bytes: u64 },
    Poll { gap_us: u64 },
    Cut { gap_us: u64 },
    Restore { gap_us: u64 },
    Reshape { gap_us: u64, shape: Shape },
}

fn shapes() -> impl Strategy<Value = Shape> {
    let loss = prop_oneof![
        Just(Loss::None),
        (0.0..0.5f64).prop_map(|p| Loss::Random { p }),
        (0.0..0.5f64, 1.0..20.0f64).prop_map(|(p, mean_packets)| Loss::Bursts { p, mean_packets }),
    ];
    let outage = prop::option::of(
        (2u64..5000, 0.1..0.9f64).prop_map(|(period, share)| Outage {
            period: ms(period),
            length: ms(period).mul_f64(share),
        }),
    );
    let reorder = prop::option::of(
        (0.0..0.5f64, 1u64..50).prop_map(|(p, late)| Reorder { p, delay: ms(late) }),
    );
    (
        10_000u64..2_000_000_000,
        0u64..500_000,
        0.0..1.0f64,
        loss,
        reorder,
        0.0..0.3f64,
        1u64..500,
        outage,
    )
        .prop_map(
            |(rate_bps, delay_us, jitter, loss, reorder, duplicate, queue_ms, outage)| {
                let delay = Duration::from_micros(delay_us);
                Shape {
                    rate_bps,
                    delay,
                    jitter: delay.mul_f64(jitter),
                    loss,
                    reorder,
                    duplicate,
                    queue: ms(queue_ms),
                    outage,
                }
            },
        )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gap = || 0u64..20_000;
    let step = prop_oneof![
        12 => (gap(), 20u64..=1500).prop_map(|(gap_us, bytes)| Step::Send { gap_us, bytes }),
        6 => gap().prop_map(|gap_us| Step::Poll { gap_us }),
        1 => gap().prop_map(|gap_us| Step::Cut { gap_us }),
        2 => gap().prop_map(|gap_us| Step::Restore { gap_us }),
        1 => (gap(), shapes()).prop_map(|(gap_us, shape)| Step::Reshape { gap_us, shape }),
    ];
    prop::collection::vec(step, 1..300)
}

struct Run {
    pipe: Pipe<(u64, Duration)>,
    now: Duration,
    sent: u64,
    least_delay: Duration,
    arrived: Vec<u64>,
}

impl Run {
    fn later(&mut self, gap_us: u64) -> Duration {
        self.now += Duration::from_micros(gap_us);
        self.now
    }

    fn collect(&mut self, now: Duration) {
        while let Some((number, offered)) = self.pipe.poll(now) {
            assert!(
                now >= offered + self.least_delay,
                "packet {number} arrived early"
            );
            self.arrived.push(number);
        }
        let stats: DirectionStats = self.pipe.stats(now);
        assert!(stats.is_conserved(), "{stats:?}");
        assert_eq!(stats.delivered_packets, self.arrived.len() as u64);
        assert_eq!(stats.offered_packets, self.sent);
    }
}

fn walk(shape: Shape, steps: Vec<Step>, mode: Mode, seed: u64) -> Run {
    let least = |shape: &Shape| shape.delay.saturating_sub(shape.jitter);
    let least_delay = least(&shape);
    let pipe = Pipe::new(Duration::ZERO, shape, mode, seed);
    let mut run = Run {
        pipe,
        now: Duration::ZERO,
        sent: 0,
        least_delay,
        arrived: Vec::new(),
    };
    for step in steps {
        match step {
            Step::Send { gap_us, bytes } => {
                let now = run.later(gap_us);
                if mode == Mode::Datagram || run.pipe.has_room(now, bytes) {
                    run.pipe.enqueue(now, (run.sent, now), bytes);
                    run.sent += 1;
                }
            }
            Step::Poll { gap_us } => {
                let now = run.later(gap_us);
                run.collect(now);
            }
            Step::Cut { gap_us } => {
                let now = run.later(gap_us);
                run.pipe.cut(now);
            }
            Step::Restore { gap_us } => {
                let now = run.later(gap_us);
                run.pipe.restore(now);
            }
            Step::Reshape { gap_us, shape } => {
                let now = run.later(gap_us);
                run.least_delay = run.least_delay.min(least(&shape));
                run.pipe.set_shape(now, shape);
            }
        }
    }
    run.pipe.restore(run.now);
    let mut rounds = 0;
    while let Some(at) = run.pipe.next_event() {
        run.now = run.now.max(at);
        run.collect(run.now);
        rounds += 1;
        assert!(rounds < 10_000, "next_event() does not lead to an end");
    }
    assert_eq!(run.pipe.stats(run.now).in_transit.packets, 0);
    run
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn packets_are_conserved_and_never_early(shape in shapes(), steps in steps(), seed: u64) {
        walk(shape, steps, Mode::Datagram, seed);
    }

    #[test]
    fn order_holds_when_no_reordering_is_asked(shape in shapes(), steps in steps(), seed: u64) {
        let plain = |shape: Shape| Shape { reorder: None, duplicate: 0.0, ..shape };
        let steps = steps.into_iter().map(|step| match step {
            Step::Reshape { gap_us, shape } => Step::Reshape { gap_us, shape: plain(shape) },
            other => other,
        });
        let run = walk(plain(shape), steps.collect(), Mode::Datagram, seed);
        prop_assert!(run.arrived.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_stream_arrives_whole_and_in_order(shape in shapes(), steps in steps(), seed: u64) {
        let run = walk(shape, steps, Mode::Stream, seed);
        prop_assert_eq!(run.arrived, (0..run.sent).collect::<Vec<_>>());
    }
}
