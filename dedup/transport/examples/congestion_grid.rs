//! Prints what each congestion control makes of each line, on a virtual clock:
//! `cargo run --example congestion_grid -- [grid|profiles|trace] [delivery,bbr,cubic] [filter]`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::time::Duration;

use dedup_transport::congestion::Figures;
use dedup_transport::link::{Congestion, LinkTuning};
use sim::{Line, Spec};
use sim_wan::model::Loss;

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_else(|| "grid".to_owned());
    let controls = args
        .next()
        .unwrap_or_else(|| "delivery,bbr,cubic".to_owned());
    let filter = args.next().unwrap_or_default();
    if what == "share" {
        return share();
    }
    let controls: Vec<Congestion> = controls
        .split(',')
        .map(|name| name.parse().unwrap())
        .collect();
    println!(
        "{:<34} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "line", "control", "goodput", "offered", "overflow", "queue p50", "queue p99"
    );
    for (name, line) in lines(&what) {
        if !name.contains(&filter) {
            continue;
        }
        for &congestion in &controls {
            let tuning = LinkTuning {
                congestion,
                ..LinkTuning::default()
            };
            let warm = line.rtt() * 10;
            let span = warm..warm + (line.rtt() * 50).max(Duration::from_secs(20));
            let report = sim::run(&line, &[Spec::bulk(tuning)], &[], span.end, 1);
            println!(
                "{name:<34} {congestion:>9} {:>7.1}% {:>8.3} {:>7.2}% {:>7.1}ms {:>7.1}ms {}",
                100.0 * report.goodput(&span),
                report.offered_per_received(&span),
                100.0 * report.overflow(&span),
                report.queue(&span, 0.5).as_secs_f64() * 1e3,
                report.queue(&span, 0.99).as_secs_f64() * 1e3,
                report.ended.join("; "),
            );
            if what == "trace" {
                for (at, mbit, window, queue, figures) in
                    report.trace(0, (line.rtt() / 2).max(Duration::from_millis(20)))
                {
                    println!(
                        "{:8.2}s {mbit:7.2} Mbit/s window {:7.1} KB queue {:6.1} ms {}",
                        at.as_secs_f64(),
                        window as f64 / 1e3,
                        queue.as_secs_f64() * 1e3,
                        shown(figures)
                    );
                }
            }
        }
    }
}

/// One delivery flow for five seconds, then another flow beside it; figures from 30 s to 90 s.
fn share() {
    println!(
        "{:<34} {:>9} {:>9} {:>9} {:>9}",
        "20 Mbit/s 50 ms, delivery beside", "delivery", "other", "queue p50", "queue p99"
    );
    for queue in [0.5, 1.0, 2.0, 4.0] {
        for (first, second) in [
            (Congestion::Delivery, Congestion::Delivery),
            (Congestion::Delivery, Congestion::Cubic),
            (Congestion::Bbr, Congestion::Cubic),
            (Congestion::Cubic, Congestion::Cubic),
        ] {
            let line = Line::new(20.0, 50.0, Loss::None, queue);
            let spec = |congestion| {
                Spec::bulk(LinkTuning {
                    congestion,
                    ..LinkTuning::default()
                })
            };
            let flows = [spec(first), spec(second).starting(Duration::from_secs(5))];
            let span = Duration::from_secs(30)..Duration::from_secs(90);
            let report = sim::run(&line, &flows, &[], span.end, 1);
            println!(
                "{:<34} {:>9.1} {:>9.1} {:>7.1}ms {:>7.1}ms",
                format!("{first} beside {second}, queue {queue} RTT"),
                report.mbit(0, &span),
                report.mbit(1, &span),
                report.queue(&span, 0.5).as_secs_f64() * 1e3,
                report.queue(&span, 0.99).as_secs_f64() * 1e3,
            );
            if std::env::var_os("TRACE").is_some() {
                for (at, mbit, window, queue, figures) in
                    report.trace(0, Duration::from_millis(200))
                {
                    println!(
                        "{:8.2}s {mbit:7.2} Mbit/s window {:7.1} KB queue {:6.1} ms {}",
                        at.as_secs_f64(),
                        window as f64 / 1e3,
                        queue.as_secs_f64() * 1e3,
                        shown(figures)
                    );
                }
            }
        }
    }
}

fn shown(figures: Option<Figures>) -> String {
    figures.map_or(String::new(), |f| {
        format!(
            "{:>7} rate {:6.2} rest {:5.1} spread {:4.1} slack {:4.1} floor {:.3}",
            f.phase,
            f.rate * 8e-6,
            f.rest * 1e3,
            f.spread * 1e3,
            f.slack * 1e3,
            f.loss_floor
        )
    })
}

fn lines(what: &str) -> Vec<(String, Line)> {
    let mut lines = Vec::new();
    if what != "profiles" {
        for queue in [1.0, 0.25] {
            for mbit in [20.0, 100.0] {
                for rtt in [100.0, 300.0, 600.0] {
                    for loss in [0.0, 0.001, 0.01, 0.05] {
                        let losses = if loss == 0.0 {
                            Loss::None
                        } else {
                            Loss::Random { p: loss }
                        };
                        lines.push((
                            format!("{mbit} Mbit/s {rtt} ms {}% q{queue}", loss * 100.0),
                            Line::new(mbit, rtt, losses, queue),
                        ));
                    }
                    let bursts = Loss::Bursts {
                        p: 0.01,
                        mean_packets: 8.0,
                    };
                    lines.push((
                        format!("{mbit} Mbit/s {rtt} ms 1%x8 q{queue}"),
                        Line::new(mbit, rtt, bursts, queue),
                    ));
                }
            }
        }
    }
    if what != "grid" {
        for name in [
            "lan",
            "dsl",
            "lte",
            "t1",
            "intercontinental",
            "vsat-geo",
            "bad-day",
        ] {
            lines.push((name.to_owned(), Line::profile(name)));
        }
    }
    lines
}
