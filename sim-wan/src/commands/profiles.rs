//! `sim-wan profiles`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use sim_wan::model::Loss;

use super::load_profiles;

/// Arguments of `sim-wan profiles`.
#[derive(Args)]
pub struct ProfilesArguments {
    /// Profiles file instead of the built-in profiles.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &ProfilesArguments) -> anyhow::Result<ExitCode> {
    let profiles = load_profiles(arguments.profiles.as_ref())?;
    if !arguments.json {
        println!(
            "{:<16} {:>14} {:>14} {:>16} {:>9} {:>8}",
            "profile", "down/up Mbit/s", "RTT ms", "loss", "queue ms", "outage"
        );
    }
    let mut all = Vec::new();
    for profile in profiles.iter() {
        let (down, up) = (&profile.down, &profile.up);
        let mbit = |bps: u64| bps as f64 / 1e6;
        let rtt_ms = profile.rtt().as_secs_f64() * 1e3;
        let jitter_ms = (down.jitter + up.jitter).as_secs_f64() * 1e3;
        let queue_ms = down.queue.as_secs_f64() * 1e3;
        if arguments.json {
            all.push(json!({
                "name": profile.name, "summary": profile.summary,
                "down_mbit": mbit(down.rate_bps), "up_mbit": mbit(up.rate_bps),
                "rtt_ms": rtt_ms, "jitter_ms": jitter_ms, "queue_ms": queue_ms,
                "loss_percent": down.loss.mean() * 100.0,
                "loss_burst_packets": if let Loss::Bursts { mean_packets, .. } = down.loss { mean_packets } else { 1.0 },
                "outage_every_s": down.outage.map(|o| o.period.as_secs_f64()),
                "outage_for_s": down.outage.map(|o| o.length.as_secs_f64()),
            }));
            continue;
        }
        let rate = format!("{}/{}", mbit(down.rate_bps), mbit(up.rate_bps));
        let rtt = if jitter_ms > 0.0 {
            format!("{rtt_ms} ± {jitter_ms}")
        } else {
            rtt_ms.to_string()
        };
        let loss = match down.loss {
            Loss::None => "0".to_owned(),
            Loss::Random { p } => format!("{:.2} %", p * 100.0),
            Loss::Bursts { p, mean_packets } => format!("{:.2} % in {mean_packets}s", p * 100.0),
        };
        let outage = match down.outage {
            Some(o) => format!("{}/{} s", o.length.as_secs_f64(), o.period.as_secs_f64()),
            None => "none".to_owned(),
        };
        println!(
            "{:<16} {rate:>14} {rtt:>14} {loss:>16} {queue_ms:>9} {outage:>8}",
            profile.name
        );
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&all)?);
    }
    Ok(ExitCode::SUCCESS)
}
