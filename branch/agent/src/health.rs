//! Whether the desktop's boot is done and what is wrong with it, by asking systemd and the kernel.
//!
//! Where there is no systemd a desktop counts as booted once the agent runs, and no service fails.

use branch_guest::{DiskHealth, FAILED_UNITS_MAX, Text};

use crate::root::Root;
use crate::tools::{SHORT, ToolError, Tools};

/// Is there where systemd runs the machine.
const SYSTEMD: &str = "/run/systemd/system";

/// Whether the boot is done.
pub fn is_booted(root: &Root, tools: &mut dyn Tools) -> bool {
    if !root.exists(SYSTEMD) {
        return true;
    }
    let said = match tools.run("systemctl", &["is-system-running"], SHORT) {
        Ok(said) => said,
        // It says what it has to say with a status as well.
        Err(ToolError::Failed { said, .. }) => said,
        Err(_) => return false,
    };
    matches!(said.trim(), "running" | "degraded" | "maintenance")
}

/// Services that failed.
///
/// # Errors
/// systemd does not answer.
pub fn failed_units(root: &Root, tools: &mut dyn Tools) -> Result<Vec<Text<100>>, ToolError> {
    if !root.exists(SYSTEMD) {
        return Ok(Vec::new());
    }
    let arguments = ["list-units", "--failed", "--no-legend", "--plain", "--full"];
    let said = tools.run("systemctl", &arguments, SHORT)?;
    let units = said
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(units.take(FAILED_UNITS_MAX).map(Text::near).collect())
}

/// How full these file systems are; those that cannot be asked are left out.
pub fn disks(root: &Root, tools: &mut dyn Tools, places: &[&str]) -> Vec<DiskHealth> {
    let disks = places.iter().filter_map(|place| {
        Some(DiskHealth {
            place: Text::near(place),
            used_percent: tools.used_percent(&root.path(place)).ok()?,
        })
    });
    disks.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::fake::FakeTools;

    fn with_systemd() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::create_dir_all(root.path(SYSTEMD)).unwrap();
        (folder, root)
    }

    #[test]
    fn systemd_says_when_a_boot_is_done() {
        let (_folder, root) = with_systemd();
        for (said, booted) in [
            ("starting\n", false),
            ("initializing\n", false),
            ("running\n", true),
            ("degraded\n", true),
            ("", false),
        ] {
            let mut tools = FakeTools::default();
            tools.print("systemctl", said);
            assert_eq!(is_booted(&root, &mut tools), booted, "{said}");
        }
        let mut tools = FakeTools::default();
        tools.fail("systemctl");
        assert!(!is_booted(&root, &mut tools));
        assert!(failed_units(&root, &mut tools).is_err());
    }

    #[test]
    fn failed_units_are_named_and_cut() {
        let (_folder, root) = with_systemd();
        let mut tools = FakeTools::default();
        let line = "cups.service loaded failed failed CUPS Scheduler\n";
        tools.print("systemctl", &line.repeat(100));
        let units = failed_units(&root, &mut tools).unwrap();
        assert_eq!(units.len(), FAILED_UNITS_MAX);
        assert_eq!(units[0].as_str(), "cups.service");
    }

    #[test]
    fn without_systemd_nothing_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let mut tools = FakeTools::default();
        assert!(is_booted(&root, &mut tools));
        assert!(failed_units(&root, &mut tools).unwrap().is_empty());
        assert_eq!(tools.take(), [""; 0]);
        let disks = disks(&root, &mut tools, &["/", "/home"]);
        assert_eq!(disks.len(), 2);
        assert_eq!(
            (disks[1].place.as_str(), disks[1].used_percent),
            ("/home", 42)
        );
    }
}
