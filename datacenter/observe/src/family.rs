//! Metric families: what a daemon can be asked for, as a table.
//!
//! Names follow Prometheus' conventions: a prefix for the program, base units (`seconds`, `bytes`) last, `_total` at the end of counters
//! (added when they are served), `_timestamp_seconds` for moments, a 0 or 1 without a unit. Labels are few and their values are bounded by
//! what an operator made (branches, pools, versions) or by the program (classes, states, routes), never by desktops, users or chunks.

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, and begins at zero with the process (or at a branch's start, where a branch told it).
    Counter,
    /// It rises and falls.
    Gauge,
    /// How many fell below each of several bounds, and their sum.
    Histogram,
}

impl Kind {
    /// Its name in the exposition format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One row of a daemon's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name, without the `_total` of counters.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// `bytes`, `seconds`, or empty: a number, or 0 and 1.
    pub unit: &'static str,
    /// Its labels' names.
    pub labels: &'static [&'static str],
    /// What it means, for people; one line.
    pub help: &'static str,
}

impl Family {
    /// A row for something that rises and falls.
    pub const fn gauge(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind: Kind::Gauge,
            unit,
            labels,
            help,
        }
    }

    /// A row for something that only rises.
    pub const fn counter(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            kind: Kind::Counter,
            ..Self::gauge(name, unit, labels, help)
        }
    }

    /// A row for how long things took.
    pub const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            kind: Kind::Histogram,
            ..Self::gauge(name, "seconds", labels, help)
        }
    }

    /// The name by which people and queries know it.
    pub fn shown_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }

    /// Names of the series that are served for it.
    pub fn series_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge => vec![self.shown_name()],
            Kind::Histogram => ["bucket", "sum", "count"]
                .iter()
                .map(|part| format!("{}_{part}", self.name))
                .collect(),
        }
    }
}

/// What in a table breaks the conventions, a line for each; for tests.
pub fn faults(prefix: &str, families: &[Family]) -> Vec<String> {
    let mut faults = Vec::new();
    let plain = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    for (at, family) in families.iter().enumerate() {
        let mut fault = |why: &str| faults.push(format!("{}: {why}", family.name));
        if !family.name.starts_with(prefix) || !plain(family.name) {
            fault("begin it with the prefix, in small letters and underscores");
        }
        if family.name.ends_with("_total") {
            fault("`_total` is added when it is served");
        }
        if !["", "bytes", "seconds"].contains(&family.unit) {
            fault("use a base unit");
        }
        let ends_with_unit = |unit: &str| family.name.ends_with(&format!("_{unit}"));
        let is_right = match family.unit {
            "" => !ends_with_unit("bytes") && !ends_with_unit("seconds"),
            unit => ends_with_unit(unit),
        };
        if !is_right {
            fault("its unit comes last in its name, if it has one");
        }
        if family.help.is_empty() || family.help.contains(['\n', '\\', '"', '|']) {
            fault("say what it means, in one line without quotes or bars");
        }
        if !family.labels.iter().all(|label| plain(label)) {
            fault("labels are small letters and underscores");
        }
        if families[..at].iter().any(|other| other.name == family.name) {
            fault("it is there twice");
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_the_conventions_is_found() {
        let good = [
            Family::gauge("x_used_bytes", "bytes", &["pool"], "Held."),
            Family::counter("x_hits", "", &[], "Reads."),
            Family::histogram("x_wait_seconds", &[], "Waits."),
        ];
        assert_eq!(faults("x_", &good), Vec::<String>::new());
        for bad in [
            Family::gauge("y_used_bytes", "bytes", &[], "Other prefix."),
            Family::gauge("x_used", "bytes", &[], "Unit missing."),
            Family::gauge("x_used_bytes", "", &[], "Unit untold."),
            Family::gauge("x_used_kib", "kib", &[], "No base unit."),
            Family::counter("x_hits_total", "", &[], "Total twice."),
            Family::gauge("x_Up", "", &[], "Capital."),
            Family::gauge("x_up", "", &["Pool"], "Capital in a label."),
            Family::gauge("x_up", "", &[], ""),
        ] {
            assert_eq!(faults("x_", &[bad]).len(), 1, "{bad:?}");
        }
        assert_eq!(faults("x_", &[good[0], good[0]]).len(), 1);
    }

    #[test]
    fn series_are_named_as_they_are_served() {
        let histogram = Family::histogram("x_wait_seconds", &[], "Waits.");
        assert_eq!(
            histogram.series_names(),
            [
                "x_wait_seconds_bucket",
                "x_wait_seconds_sum",
                "x_wait_seconds_count"
            ]
        );
        let counter = Family::counter("x_hits", "", &[], "Reads.");
        assert_eq!(counter.series_names(), ["x_hits_total"]);
    }
}
