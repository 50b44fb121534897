//! The datacenter's part of a support bundle: configuration, state, operations, metrics and the end of its log.
//!
//! No secret is put in: of the configuration what was understood, not the file; of keys and tokens nothing. Then everything goes through the
//! redactor, which knows the passphrase and the metrics token word for word.

use datacenter_api::SupportReport;
use datacenter_observe::logs;
use datacenter_observe::redact::Redactor;
use datacenter_observe::support::Bundle;

use crate::datacenter::Datacenter;
use crate::problem::{ManageError, describe};

/// Branches that are told of, in the order of their names: those of a fleet of a thousand would be most of a bundle.
const BRANCHES_MAX: usize = 200;
/// Operations that are told of, the newest.
const OPERATIONS_MAX: usize = 100;

impl Datacenter {
    /// What somebody needs who is to help. Parts that cannot be had say why.
    pub fn support(&self) -> SupportReport {
        let software = env!("CARGO_PKG_VERSION");
        let redactor = Redactor::new(self.secrets());
        let now = self.now_unix_s();
        let mut bundle = Bundle::new("splice-datacenter", software, now, redactor);
        let line = |error: ManageError| describe(&error);
        bundle.text("config.txt", &format!("{:#?}\n", self.config()));
        bundle.json("status.json", self.status().map_err(line));
        bundle.json("store.json", self.store_report().map_err(line));
        let branches = self.branches(None, BRANCHES_MAX);
        bundle.json("branches.json", branches.map_err(line));
        let operations = self.operations().list(None, OPERATIONS_MAX);
        let operations = operations.map_err(|error| describe(&error));
        bundle.json("operations.json", operations);
        let ready: Result<_, String> = Ok(self.ready());
        bundle.json("ready.json", ready);
        let metrics = self.metrics().unwrap_or_else(line);
        bundle.text("metrics.txt", &metrics);
        bundle.text("log.txt", &logs::tail());
        bundle.report()
    }

    /// Secrets that could have come into a text by a mistake.
    fn secrets(&self) -> Vec<String> {
        let config = self.config();
        let files = [&config.passphrase_file, &config.metrics_token_file];
        let files = files.into_iter().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
        let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        lines.collect()
    }
}
