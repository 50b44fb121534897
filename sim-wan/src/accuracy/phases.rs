//! The three measurements: round trips of sparse small packets, saturated rate, losses at half load.

use std::collections::HashSet;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use super::AccuracyError;
use super::path::{HEADER_BYTES, Path};
use super::report::Row;
use crate::link::Direction;
use crate::model::{DirectionStats, Loss, Shape};
use crate::profile::Profile;
use crate::sys::be_punctual;

/// Wire size of a probe, in bytes.
const PROBE_BYTES: usize = 64;
/// Probes sent, and the time between them: long enough for jitter to take many values.
const PROBES: u64 = 400;
const PROBE_GAP: Duration = Duration::from_millis(20);
/// Saturation: how long, and how much is left out at the start while the queue fills.
const BLAST: Duration = Duration::from_secs(5);
const BLAST_WARM_UP: Duration = Duration::from_secs(1);
/// Wire size of a full packet.
const FULL_BYTES: usize = 1500;
/// Loss measurement: how long, and the most packets per second.
const LOSS_TIME: Duration = Duration::from_secs(8);
const LOSS_PACKETS_PER_S: f64 = 4000.0;
const LOSS_BYTES: usize = 100;
/// What the scheduler of a shared machine may add to a delay, one way.
const SCHEDULING_MS: f64 = 0.25;

/// RTT percentiles and jitter.
pub(super) fn round_trips(
    path: &Path,
    profile: &Profile,
    rows: &mut Vec<Row>,
) -> Result<(), AccuracyError> {
    let done = AtomicBool::new(false);
    // The measuring ends are as punctual as the link, or they would be what is measured.
    be_punctual();
    let started = Instant::now();
    let mut samples_ms = thread::scope(|scope| -> io::Result<Vec<f64>> {
        scope.spawn(|| echo(&path.dc, &done));
        scope.spawn(|| {
            be_punctual();
            for number in 0..PROBES {
                sleep_until(started + PROBE_GAP * number as u32);
                let sent = started.elapsed().as_nanos() as u64;
                let _ = path.branch.send(&payload(PROBE_BYTES, sent));
            }
        });
        let end =
            started + PROBE_GAP * PROBES as u32 + profile.rtt() * 2 + Duration::from_millis(300);
        let mut samples = Vec::new();
        let mut buffer = [0; FULL_BYTES];
        while let Some(length) = receive_until(&path.branch, &mut buffer, end)? {
            if length == PROBE_BYTES - HEADER_BYTES {
                let sent = Duration::from_nanos(stamp(&buffer));
                samples.push((started.elapsed() - sent).as_secs_f64() * 1e3);
            }
        }
        done.store(true, Ordering::Release);
        Ok(samples)
    })?;
    if samples_ms.is_empty() {
        return Err(AccuracyError::Silent(profile.name.clone()));
    }
    samples_ms.sort_by(f64::total_cmp);
    let n = samples_ms.len() as f64;
    let percentile = |p: f64| samples_ms[((n - 1.0) * p) as usize];
    let serialisation_ms =
        [&profile.down, &profile.up].map(|s| PROBE_BYTES as f64 * 8e3 / s.rate_bps as f64);
    let target_ms = profile.rtt().as_secs_f64() * 1e3 + serialisation_ms[0] + serialisation_ms[1];
    let jitter_ms = (profile.down.jitter + profile.up.jitter).as_secs_f64() * 1e3;
    // The sum of two piecewise linear processes between uniform levels has a standard deviation of a third of its
    // bound. Probes closer together than one level are not independent.
    let deviation_ms = jitter_ms / 3.0;
    let span_ms = PROBE_GAP.as_secs_f64() * 1e3 * PROBES as f64;
    let independent = if jitter_ms > 0.0 {
        n.min(span_ms / jitter_ms)
    } else {
        n
    };
    let median_error_ms = 4.0 * 1.25 * deviation_ms / independent.sqrt();
    let row = |quantity: &str, target, measured, tolerance| Row {
        quantity: quantity.to_owned(),
        unit: "ms",
        target,
        measured,
        tolerance,
    };
    rows.push(row(
        "RTT p50",
        target_ms,
        percentile(0.5),
        2.0 * SCHEDULING_MS + median_error_ms,
    ));
    if jitter_ms == 0.0 {
        rows.push(row(
            "RTT p99",
            target_ms,
            percentile(0.99),
            8.0 * SCHEDULING_MS,
        ));
    } else {
        let mean = samples_ms.iter().sum::<f64>() / n;
        let variance = samples_ms.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        // p99 of the sum of two such processes lies at about 0.7 of the bound.
        rows.push(row(
            "RTT p99",
            target_ms + 0.7 * jitter_ms,
            percentile(0.99),
            0.3 * jitter_ms + 8.0 * SCHEDULING_MS,
        ));
        let tolerance = 4.0 * deviation_ms / (2.0 * independent).sqrt() + SCHEDULING_MS;
        rows.push(row(
            "RTT standard deviation",
            deviation_ms,
            variance.sqrt(),
            tolerance,
        ));
    }
    Ok(())
}

/// Saturated rate of each direction. Losses behind the rate limiter are added back from the link's own counters, since
/// a receiver cannot tell them from the full queue's drops.
pub(super) fn rates(
    path: &Path,
    profile: &Profile,
    rows: &mut Vec<Row>,
) -> Result<(), AccuracyError> {
    for (direction, shape) in [
        (Direction::Down, &profile.down),
        (Direction::Up, &profile.up),
    ] {
        let (from, to) = path.ends(direction);
        drain(to)?;
        let before = counters(path, direction);
        let packets_per_s = shape.rate_bps as f64 / 8.0 / FULL_BYTES as f64 * 1.1;
        let started = Instant::now();
        let (packets, span) = thread::scope(|scope| -> io::Result<(u64, Duration)> {
            scope.spawn(|| pace(from, FULL_BYTES, packets_per_s, BLAST));
            let mut buffer = [0; FULL_BYTES];
            let (mut first, mut last, mut packets) = (None, started, 0u64);
            // The tail that arrives after the sender has stopped belongs to the queue; it is still at line rate.
            let end = started + BLAST;
            while receive_until(to, &mut buffer, end)?.is_some() {
                last = Instant::now();
                if first.is_none() && last - started >= BLAST_WARM_UP {
                    first = Some(last);
                } else if first.is_some() {
                    packets += 1;
                }
            }
            Ok((packets, first.map_or(Duration::ZERO, |first| last - first)))
        })?;
        if packets == 0 {
            return Err(AccuracyError::Silent(profile.name.clone()));
        }
        thread::sleep(shape.queue + shape.delay + shape.jitter + Duration::from_millis(100));
        let after = counters(path, direction);
        let lost = (after.dropped_loss.packets - before.dropped_loss.packets) as f64;
        let delivered = (after.delivered_packets - before.delivered_packets) as f64;
        let received_mbit = packets as f64 * FULL_BYTES as f64 * 8.0 / span.as_secs_f64() / 1e6;
        let target = shape.rate_bps as f64 / 1e6;
        // The share of losses inside the window differs from that of the whole blast.
        let sampling = 4.0
            * loss_error(shape, delivered)
            * (BLAST_WARM_UP.as_secs_f64() / BLAST.as_secs_f64()).sqrt();
        let wander = 2.0 * shape.jitter.as_secs_f64() / span.as_secs_f64();
        rows.push(Row {
            quantity: format!("rate {}", label(direction)),
            unit: "Mbit/s",
            target,
            measured: received_mbit * (delivered + lost) / delivered.max(1.0),
            tolerance: target * (0.02 + sampling + wander),
        });
    }
    Ok(())
}

/// Losses of both directions at half load, where the queue drops nothing.
pub(super) fn losses(
    path: &Path,
    profile: &Profile,
    rows: &mut Vec<Row>,
) -> Result<(), AccuracyError> {
    let count = |direction: Direction, shape: &Shape| -> io::Result<Row> {
        let (from, to) = path.ends(direction);
        drain(to)?;
        let packets_per_s =
            (shape.rate_bps as f64 / 16.0 / LOSS_BYTES as f64).min(LOSS_PACKETS_PER_S);
        let end =
            Instant::now() + LOSS_TIME + profile.rtt() + shape.queue + Duration::from_millis(500);
        let (sent, seen) = thread::scope(|scope| -> io::Result<(u64, HashSet<u64>)> {
            let sender = scope.spawn(|| pace(from, LOSS_BYTES, packets_per_s, LOSS_TIME));
            let mut seen = HashSet::new();
            let mut buffer = [0; FULL_BYTES];
            while let Some(length) = receive_until(to, &mut buffer, end)? {
                if length == LOSS_BYTES - HEADER_BYTES {
                    seen.insert(stamp(&buffer));
                }
            }
            Ok((sender.join().unwrap_or(0), seen))
        })?;
        let target = shape.loss.mean() * 100.0;
        let n = sent as f64;
        Ok(Row {
            quantity: format!("loss {} of {sent}", label(direction)),
            unit: "%",
            target,
            measured: (n - seen.len() as f64) / n.max(1.0) * 100.0,
            tolerance: 400.0 * loss_error(shape, n),
        })
    };
    let (down, up) = thread::scope(|scope| {
        let down = scope.spawn(|| count(Direction::Down, &profile.down));
        let up = count(Direction::Up, &profile.up);
        (
            down.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            up,
        )
    });
    rows.extend([down?, up?]);
    Ok(())
}

/// Standard error of the share lost among `n` packets; bursts make neighbours alike, which inflates the variance by
/// about twice the burst length.
fn loss_error(shape: &Shape, n: f64) -> f64 {
    let p = shape.loss.mean();
    let inflation = if let Loss::Bursts { mean_packets, .. } = shape.loss {
        2.0 * mean_packets - 1.0
    } else {
        1.0
    };
    (p * (1.0 - p) * inflation / n.max(1.0)).sqrt()
}

fn label(direction: Direction) -> &'static str {
    match direction {
        Direction::Down => "down",
        Direction::Up => "up",
    }
}

fn counters(path: &Path, direction: Direction) -> DirectionStats {
    let stats = path.stats();
    match direction {
        Direction::Down => stats.down,
        Direction::Up => stats.up,
    }
}

/// A datagram whose IP packet has `wire` bytes, beginning with `stamp`.
fn payload(wire: usize, stamp: u64) -> Vec<u8> {
    let mut payload = vec![0; wire - HEADER_BYTES];
    payload[..8].copy_from_slice(&stamp.to_le_bytes());
    payload
}

fn stamp(payload: &[u8]) -> u64 {
    payload
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn sleep_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// Sends numbered packets evenly, in groups no closer than half a millisecond, and returns how many.
fn pace(socket: &UdpSocket, wire: usize, packets_per_s: f64, time: Duration) -> u64 {
    be_punctual();
    let started = Instant::now();
    let mut datagram = payload(wire, 0);
    let mut sent = 0u64;
    while started.elapsed() < time {
        let owed = (started.elapsed().as_secs_f64() * packets_per_s) as u64 + 1;
        while sent < owed {
            datagram[..8].copy_from_slice(&sent.to_le_bytes());
            let _ = socket.send(&datagram);
            sent += 1;
        }
        let next = started + Duration::from_secs_f64(sent as f64 / packets_per_s);
        sleep_until(next.max(Instant::now() + Duration::from_micros(500)));
    }
    sent
}

fn echo(socket: &UdpSocket, done: &AtomicBool) {
    be_punctual();
    let mut buffer = [0; FULL_BYTES];
    while !done.load(Ordering::Acquire) {
        let soon = Instant::now() + Duration::from_millis(100);
        if let Ok(Some(length)) = receive_until(socket, &mut buffer, soon) {
            let _ = socket.send(&buffer[..length]);
        }
    }
}

/// Receives one datagram, or returns None at `end`.
fn receive_until(socket: &UdpSocket, buffer: &mut [u8], end: Instant) -> io::Result<Option<usize>> {
    loop {
        // One system call, not three, when a packet is waiting.
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) if Instant::now() < end => return Ok(Some(length)),
            Ok(_) => return Ok(None),
            Err(_) => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // A timeout of zero would mean none at all.
        socket.set_read_timeout(Some(left.max(Duration::from_micros(10))))?;
        match socket.recv(buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Throws away what an earlier phase left in the socket.
fn drain(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; FULL_BYTES];
    let end = Instant::now() + Duration::from_millis(50);
    while receive_until(socket, &mut buffer, end)?.is_some() {}
    Ok(())
}
