//! The machine and the time, as far as figures depend on them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::row::Host;

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// This machine.
pub(crate) fn host() -> Host {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .unwrap_or_default()
    };
    let kib = field(&memory, "MemTotal");
    let kib = kib
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0);
    Host {
        cpu: field(&cpu, "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gb: (kib * 1024.0 / 1e8_f64).round() / 10.0,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_before: load(),
        load_after: 0.0,
    }
}

/// One-minute load average.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}
