//! What is measured: samples, rows of their medians, and the file that others read.
//!
//! The names of benches, cases, systems and metrics are a contract with whoever reads the JSON. A figure is printed as it is.

use serde::{Deserialize, Serialize};

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) case: String,
    pub(crate) system: String,
    pub(crate) metric: Metric,
    pub(crate) value: f64,
    /// What no system can beat on this machine or line, in the metric's unit.
    pub(crate) limit: Option<f64>,
}

/// What is measured; each has one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// IP bytes that both ends put on the line, or the growth of a store where there is no protocol.
    WireBytes,
    /// 10^6 bytes of the disk that are not zero, a second.
    MbPerS,
    /// User and system time.
    CpuS,
    /// Peak resident set in 10^6 bytes.
    RssMb,
    /// Bytes on disk afterwards, or read from it.
    StoredBytes,
    Iops,
    P50Us,
    P99Us,
    Seconds,
    /// Payload rate as a share of C·(1−p).
    GoodputShare,
}

impl Metric {
    /// As in the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WireBytes => "wire_bytes",
            Self::MbPerS => "mb_per_s",
            Self::CpuS => "cpu_s",
            Self::RssMb => "rss_mb",
            Self::StoredBytes => "stored_bytes",
            Self::Iops => "iops",
            Self::P50Us => "p50_us",
            Self::P99Us => "p99_us",
            Self::Seconds => "seconds",
            Self::GoodputShare => "goodput_share",
        }
    }

    /// Its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::WireBytes | Self::StoredBytes => "B",
            Self::MbPerS => "MB/s",
            Self::CpuS | Self::Seconds => "s",
            Self::RssMb => "MB",
            Self::Iops => "1/s",
            Self::P50Us | Self::P99Us => "us",
            Self::GoodputShare => "1",
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::MbPerS | Self::Iops | Self::GoodputShare)
    }
}

/// All samples of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) bench: String,
    pub(crate) case: String,
    pub(crate) system: String,
    pub(crate) metric: Metric,
    pub(crate) unit: String,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
    pub(crate) limit: Option<f64>,
}

/// What was not measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) bench: String,
    pub(crate) what: String,
    pub(crate) system: String,
    pub(crate) reason: String,
}

/// The machine, as far as figures depend on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gb: f64,
    pub(crate) kernel: String,
    /// One-minute load average when the run began and ended: above 0.5, figures are of a shared machine.
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) bench: String,
    pub(crate) quick: bool,
    /// When the run ended, unix seconds.
    pub(crate) ended_unix_s: u64,
    pub(crate) host: Host,
    pub(crate) rows: Vec<Row>,
    pub(crate) missing: Vec<Missing>,
    /// What the figures must be read with, each behind its bench's name.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// Order of systems in every table; a system that is not here comes last.
const SYSTEMS: [&str; 15] = [
    "splice",
    "desync",
    "casync",
    "borg",
    "restic",
    "rdedup",
    "rsync",
    "zstd-patch",
    "xdelta3",
    "qemu-nbd",
    "nbdkit",
    "raw",
    "quinn",
    "tcp-cubic",
    "tcp-bbr",
];

/// Rows by metric, case (in the order of their first samples) and system.
pub(crate) fn rows(bench: &str, samples: &[Sample]) -> Vec<Row> {
    let mut groups: Vec<(&Sample, Vec<f64>)> = Vec::new();
    for sample in samples {
        let same = |other: &Sample| {
            (&other.case, &other.system, other.metric)
                == (&sample.case, &sample.system, sample.metric)
        };
        match groups.iter_mut().find(|(first, _)| same(first)) {
            Some((_, values)) => values.push(sample.value),
            None => groups.push((sample, vec![sample.value])),
        }
    }
    let cases: Vec<&str> = samples.iter().map(|sample| sample.case.as_str()).collect();
    let case = |name: &str| cases.iter().position(|case| *case == name);
    let system = |name: &str| {
        SYSTEMS
            .iter()
            .position(|known| *known == name)
            .unwrap_or(SYSTEMS.len())
    };
    groups.sort_by_key(|(first, _)| (first.metric, case(&first.case), system(&first.system)));
    groups
        .into_iter()
        .map(|(first, mut values)| {
            values.sort_by(f64::total_cmp);
            Row {
                bench: bench.to_owned(),
                case: first.case.clone(),
                system: first.system.clone(),
                metric: first.metric,
                unit: first.metric.unit().to_owned(),
                median: median(&values),
                min: values[0],
                max: values[values.len() - 1],
                n: values.len(),
                limit: first.limit,
            }
        })
        .collect()
}

/// Of sorted values, at least one.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

/// The value below which a share `q` of sorted values lies; 0 of none.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n => sorted[((n as f64 * q).ceil() as usize).clamp(1, n) - 1],
    }
}

/// Four significant figures, thousands with separators: 349,012,345 or 0.7312.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() < 1000.0 {
        let digits = match value.abs() {
            v if v >= 100.0 => 1,
            v if v >= 10.0 => 2,
            v if v >= 1.0 => 3,
            _ => 4,
        };
        return format!("{value:.digits$}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

/// A text table, one line a row.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = [
        "case", "system", "metric", "median", "min..max", "n", "limit", "unit",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        lines.push([
            row.case.clone(),
            row.system.clone(),
            row.metric.name().to_owned(),
            figure(row.median),
            if row.n > 1 {
                format!("{}..{}", figure(row.min), figure(row.max))
            } else {
                String::new()
            },
            row.n.to_string(),
            row.limit.map(figure).unwrap_or_default(),
            row.unit.clone(),
        ]);
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let padded = if (3..=6).contains(&column) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
            text.push_str(&padded);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(case: &str, system: &str, value: f64) -> Sample {
        Sample {
            case: case.into(),
            system: system.into(),
            metric: Metric::Seconds,
            value,
            limit: Some(1.5),
        }
    }

    #[test]
    fn rows_hold_median_and_range_of_their_own_samples() {
        let samples = [
            sample("v1", "splice", 3.0),
            sample("v1", "borg", 9.0),
            sample("v1", "splice", 1.0),
            sample("v1", "splice", 2.0),
        ];
        let rows = rows("ingest", &samples);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].median, rows[0].min, rows[0].max, rows[0].n),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(rows[1].system, "borg");
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!(json["metric"], "seconds");
        assert_eq!(json["limit"], 1.5);
        let text = table(&rows);
        assert!(
            text.lines().nth(1).unwrap().contains("1.000..3.000"),
            "{text}"
        );
    }

    #[test]
    fn every_metric_is_named_as_in_the_json() {
        for metric in [
            Metric::WireBytes,
            Metric::MbPerS,
            Metric::CpuS,
            Metric::RssMb,
            Metric::StoredBytes,
            Metric::Iops,
            Metric::P50Us,
            Metric::P99Us,
            Metric::Seconds,
            Metric::GoodputShare,
        ] {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }

    #[test]
    fn figures_can_be_read() {
        assert_eq!(figure(349_012_345.0), "349,012,345");
        assert_eq!(figure(0.73124), "0.7312");
        assert_eq!(figure(12.3456), "12.35");
        assert_eq!(figure(-1234.6), "-1,235");
    }

    #[test]
    fn quantiles_of_few_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert_eq!(quantile(&[], 0.99), 0.0);
    }
}
