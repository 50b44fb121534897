//! Whether a daemon answers, and whether it can do its work.

use serde::{Deserialize, Serialize};

/// That the daemon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// Always true.
    pub ok: bool,
}

/// Whether the daemon can do its work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReadyReport {
    /// Whether all checks hold.
    pub ready: bool,
    /// Names of those that do not.
    pub failing: Vec<String>,
}

impl ReadyReport {
    /// Of checks: each one's name, and whether it holds.
    pub fn new(checks: &[(&str, bool)]) -> Self {
        let failing = checks.iter().filter(|(_, holds)| !holds);
        let failing: Vec<String> = failing.map(|(name, _)| (*name).to_owned()).collect();
        Self {
            ready: failing.is_empty(),
            failing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_fails() {
        assert!(ReadyReport::new(&[("catalog", true)]).ready);
        let report = ReadyReport::new(&[("catalog", true), ("room", false)]);
        assert_eq!(
            (report.ready, report.failing),
            (false, vec!["room".to_owned()])
        );
    }
}
