//! What a measurement found, as a table and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::Via;

/// One quantity.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What.
    pub quantity: String,
    /// In which unit.
    pub unit: &'static str,
    /// What the profile asks for.
    pub target: f64,
    /// What was found.
    pub measured: f64,
    /// How far off it may be, in the unit: machine tolerance plus four standard errors of the sample.
    pub tolerance: f64,
}

impl Row {
    /// Measured minus target.
    pub fn error(&self) -> f64 {
        self.measured - self.target
    }

    /// Whether the error is within the tolerance.
    pub fn is_within(&self) -> bool {
        self.error().abs() <= self.tolerance
    }
}

/// A measured profile.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The profile's name.
    pub profile: String,
    /// The data path.
    pub via: Via,
    /// The quantities.
    pub rows: Vec<Row>,
    /// Packets that the kernel dropped before the model saw them; not zero means too little CPU.
    pub unseen_drops: u64,
}

impl Report {
    /// Whether every quantity is within its tolerance.
    pub fn is_within(&self) -> bool {
        self.unseen_drops == 0 && self.rows.iter().all(Row::is_within)
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let via = match self.via {
            Via::Tun => "TUN link",
            Via::Proxy => "UDP proxy",
        };
        let mut out = format!(
            "{} over the {via}\n  {:<28} {:>11} {:>11} {:>10} {:>9} {:>10}\n",
            self.profile, "quantity", "target", "measured", "error", "error %", "tolerance"
        );
        for row in &self.rows {
            let relative = if row.target == 0.0 {
                "-".to_owned()
            } else {
                format!("{:+.2}", row.error() / row.target * 100.0)
            };
            let _ = writeln!(
                out,
                "  {:<28} {:>11.3} {:>11.3} {:>+10.3} {relative:>9} {:>10.3} {}",
                format!("{} ({})", row.quantity, row.unit),
                row.target,
                row.measured,
                row.error(),
                row.tolerance,
                if row.is_within() { "" } else { "OUT" }
            );
        }
        if self.unseen_drops > 0 {
            let _ = writeln!(
                out,
                "  {} packets were dropped before the model: too little CPU",
                self.unseen_drops
            );
        }
        out
    }
}
