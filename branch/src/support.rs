//! The branch's part of a support bundle: how it was started, what it tells of itself, its metrics and the end of its log.
//!
//! No secret is put in: the identity's and the keys' files are no part of it, and users of desktops appear by number. Then everything goes
//! through the redactor, which knows the realm's id key and the passphrase word for word.

use branch_api::Desktop;
use datacenter_api::SupportReport;
use datacenter_observe::logs;
use datacenter_observe::redact::Redactor;
use datacenter_observe::support::Bundle;

use crate::desktop::{DesktopError, error_line};
use crate::server::Branch;

impl Branch {
    /// What somebody needs who is to help. Parts that cannot be had say why.
    pub fn support(&self) -> SupportReport {
        let software = env!("CARGO_PKG_VERSION");
        let redactor = Redactor::new(self.secrets());
        let now = self.clock.now_unix_s();
        let mut bundle = Bundle::new("splice-branch", software, now, redactor);
        let line = |error: DesktopError| error_line(&error);
        bundle.json("status.json", self.status().map_err(line));
        let desktops = self.desktops.list().map(without_users);
        bundle.json("desktops.json", desktops.map_err(line));
        bundle.json("cache.json", self.cache_report().map_err(line));
        let ready: Result<_, String> = Ok(self.ready());
        bundle.json("ready.json", ready);
        let metrics = self.metrics().unwrap_or_else(|error| error_line(&error));
        bundle.text("metrics.txt", &metrics);
        bundle.text("log.txt", &logs::tail());
        bundle.report()
    }

    /// Secrets that could have come into a text by a mistake.
    fn secrets(&self) -> Vec<String> {
        let passphrase = self.passphrase_file.as_deref().map(std::fs::read_to_string);
        let passphrase = passphrase.and_then(Result::ok);
        let first = passphrase.and_then(|text| text.lines().next().map(str::to_owned));
        self.identity
            .id_key_text()
            .into_iter()
            .chain(first)
            .collect()
    }
}

/// Who is logged on at a desktop is nobody's matter; how many are may be.
fn without_users(mut desktops: Vec<Desktop>) -> Vec<Desktop> {
    for guest in desktops.iter_mut().filter_map(|d| d.guest.as_mut()) {
        for (number, user) in guest.users.iter_mut().enumerate() {
            user.name = format!("user-{}", number + 1);
        }
    }
    desktops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_appear_by_number() {
        let text = r#"[{"name":"a","pool":"p","version":"v","image":"i","version_number":1,"state":"running",
            "serial_log":"","serial_socket":"","nbd_export":"","demand_chunks":0,"overlay_bytes":0,
            "guest":{"agent":"1","connected":true,"heard_unix_ms":1,"booted":true,"user_volume":"none","disks":[],"failed_units":[],
            "troubles":[],"users":[{"name":"alice","since_unix_s":1},{"name":"bob","since_unix_s":2}]}}]"#;
        let desktops: Vec<Desktop> = serde_json::from_str(text).expect("the rest has defaults");
        let shown = format!("{:?}", without_users(desktops));
        assert!(
            !shown.contains("alice") && !shown.contains("bob"),
            "{shown}"
        );
        assert!(
            shown.contains("user-1") && shown.contains("user-2"),
            "{shown}"
        );
    }
}
