//! The values of one scrape, and their text.
//!
//! Invariant: every family of the table is in the text, with or without series, and no family has more than [`SERIES_MAX`] of them: what is
//! beyond is dropped and counted. The text is OpenMetrics 1.0, which Prometheus reads; `prometheus-client` writes it.

use std::collections::HashMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::family::{Family, Kind};

/// Most series of one family: 1,600 branches with six states each, a third of what one Prometheus takes without a thought.
pub const SERIES_MAX: usize = 10_000;

/// How often things took how long.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buckets {
    /// Their sum in seconds.
    pub sum_s: f64,
    /// Upper bounds in seconds, rising, and how many are above the bound before and not above this one.
    pub counts: Vec<(f64, u64)>,
    /// How many are above the last bound.
    pub above: u64,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Buckets),
}

#[derive(Debug)]
struct Series {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// See the module.
#[derive(Debug)]
pub struct Samples {
    families: &'static [Family],
    places: HashMap<&'static str, usize>,
    series: Vec<Vec<Series>>,
    dropped: u64,
}

impl Samples {
    /// Of a table, without values.
    pub fn new(families: &'static [Family]) -> Self {
        let places = families.iter().enumerate();
        Self {
            families,
            places: places.map(|(at, family)| (family.name, at)).collect(),
            series: families.iter().map(|_| Vec::new()).collect(),
            dropped: 0,
        }
    }

    /// Series that were dropped because their family had too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The value of a gauge; `labels` are the values of the family's labels, in their order.
    pub fn gauge(&mut self, name: &str, labels: &[&str], value: f64) {
        self.put(name, labels, Value::Gauge(value));
    }

    /// The same for a number that is counted in whole ones.
    pub fn count(&mut self, name: &str, labels: &[&str], value: u64) {
        // Exact to 2^53.
        self.put(name, labels, Value::Gauge(value as f64));
    }

    /// The same for what is or is not so.
    pub fn flag(&mut self, name: &str, labels: &[&str], value: bool) {
        self.put(name, labels, Value::Gauge(f64::from(u8::from(value))));
    }

    /// The value of a counter.
    pub fn counter(&mut self, name: &str, labels: &[&str], value: u64) {
        self.put(name, labels, Value::Counter(value));
    }

    /// The value of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[&str], value: Buckets) {
        self.put(name, labels, Value::Histogram(value));
    }

    fn put(&mut self, name: &str, labels: &[&str], value: Value) {
        let place = self.places.get(name);
        let place = *place.expect("what is told is in the table of metrics");
        let family = &self.families[place];
        let kind = match value {
            Value::Counter(_) => Kind::Counter,
            Value::Gauge(_) => Kind::Gauge,
            Value::Histogram(_) => Kind::Histogram,
        };
        assert_eq!(kind, family.kind, "{name} is told as the table has it");
        assert_eq!(labels.len(), family.labels.len(), "{name} has its labels");
        let series = &mut self.series[place];
        if series.len() >= SERIES_MAX {
            self.dropped += 1;
            return;
        }
        let labels = family.labels.iter().zip(labels);
        series.push(Series {
            labels: labels
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            value,
        });
    }

    /// As text.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes any text");
        text
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (family, series) in self.families.iter().zip(&self.series) {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            // The unit is in the name already, where queries see it.
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for Series { labels, value } in series {
                if labels.is_empty() {
                    write(&mut metric, value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, value: &Value) -> Result<(), fmt::Error> {
    match value {
        Value::Counter(value) => metric.encode_counter::<NoLabelSet, u64, f64>(value, None),
        Value::Gauge(value) => metric.encode_gauge(value),
        Value::Histogram(Buckets {
            sum_s,
            counts,
            above,
        }) => {
            let mut buckets = counts.clone();
            // The library writes this bound as `+Inf`.
            buckets.push((f64::INFINITY, *above));
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum_s, count, &buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Family] = &[
        Family::gauge("x_up", "", &[], "Whether it is up."),
        Family::counter("x_sent_bytes", "bytes", &["class"], "Sent."),
        Family::histogram("x_wait_seconds", &["class"], "Waits."),
        Family::gauge("x_pools", "", &["pool"], "Nobody has any."),
    ];

    #[test]
    fn the_text_is_openmetrics() {
        let mut samples = Samples::new(TABLE);
        samples.flag("x_up", &[], true);
        samples.counter("x_sent_bytes", &["fill"], 7);
        samples.counter("x_sent_bytes", &["a\"b\\c\nd"], 1 << 60);
        let buckets = Buckets {
            sum_s: 2.5,
            counts: vec![(0.5, 3), (1.0, 0), (2.0, 1)],
            above: 2,
        };
        samples.histogram("x_wait_seconds", &["boot"], buckets);
        let expected = "\
# HELP x_up Whether it is up.
# TYPE x_up gauge
x_up 1.0
# HELP x_sent_bytes Sent.
# TYPE x_sent_bytes counter
x_sent_bytes_total{class=\"fill\"} 7
x_sent_bytes_total{class=\"a\\\"b\\\\c\\nd\"} 1152921504606846976
# HELP x_wait_seconds Waits.
# TYPE x_wait_seconds histogram
x_wait_seconds_sum{class=\"boot\"} 2.5
x_wait_seconds_count{class=\"boot\"} 6
x_wait_seconds_bucket{le=\"0.5\",class=\"boot\"} 3
x_wait_seconds_bucket{le=\"1.0\",class=\"boot\"} 3
x_wait_seconds_bucket{le=\"2.0\",class=\"boot\"} 4
x_wait_seconds_bucket{le=\"+Inf\",class=\"boot\"} 6
# HELP x_pools Nobody has any.
# TYPE x_pools gauge
# EOF
";
        assert_eq!(samples.text(), expected);
    }

    #[test]
    fn a_family_has_only_so_many_series() {
        let mut samples = Samples::new(TABLE);
        for pool in 0..SERIES_MAX + 3 {
            samples.count("x_pools", &[&pool.to_string()], 1);
        }
        assert_eq!(samples.dropped(), 3);
        let text = samples.text();
        assert_eq!(text.matches("x_pools{").count(), SERIES_MAX);
    }

    #[test]
    #[should_panic(expected = "in the table")]
    fn what_is_not_in_the_table_is_a_mistake_of_ours() {
        Samples::new(TABLE).count("x_gone", &[], 1);
    }
}
