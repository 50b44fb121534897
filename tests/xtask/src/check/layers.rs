//! Who may depend on whom.
//!
//! ```text
//! dedup ← {store, image, protocol ← transport} ← {branch, datacenter}        vmm-block ← {vmm, branch}
//! ```
//!
//! The table is what a crate may name, not what it does name. A crate that is missing here is a finding, so that a new
//! one is placed on purpose. What lies under `tests/` may use everything, and only tests use that.

use super::Finding;
use super::tree::{Package, Tree};

/// What each of our crates may depend on, among our crates.
const ALLOWED: &[(&str, &[&str])] = &[
    ("dedup", &[]),
    ("dedup-store", &["dedup"]),
    ("dedup-image", &["dedup"]),
    ("dedup-protocol", &["dedup"]),
    ("dedup-transport", &["dedup", "dedup-protocol"]),
    ("datacenter-api", &["dedup", "dedup-protocol"]),
    ("branch-api", &["dedup", "dedup-protocol", "datacenter-api"]),
    // What both daemons tell of themselves.
    ("datacenter-observe", &["datacenter-api"]),
    ("branch-guest", &[]),
    // It runs inside desktops: what it links is what is there.
    ("branch-agent", &["branch-guest"]),
    ("vmm-api", &[]),
    ("vmm-block", &[]),
    ("vmm", &["vmm-api", "vmm-block"]),
    (
        "datacenter",
        &[
            "dedup",
            "dedup-store",
            "dedup-image",
            "dedup-protocol",
            "dedup-transport",
            "datacenter-api",
            "datacenter-observe",
        ],
    ),
    (
        "branch",
        &[
            "dedup",
            "dedup-store",
            "dedup-image",
            "dedup-protocol",
            "dedup-transport",
            "datacenter-api",
            "datacenter-observe",
            "branch-api",
            "branch-guest",
            "vmm-api",
            "vmm-block",
        ],
    ),
    (
        "datacenter-cli",
        &["datacenter-api", "branch-api", "vmm-api"],
    ),
    ("sim-wan", &[]),
];

/// Engines, and the only crates whose manifests may name them.
const ENGINES: &[(&str, &[&str])] = &[
    ("rocksdb", &["dedup-store"]),
    // The bench measures quinn with its default settings, as a peer.
    ("quinn", &["dedup-transport", "sim-wan", "bench"]),
];

/// Crates depend in one direction.
pub(crate) fn direction(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in tree.packages.iter().filter(|package| !is_test(package)) {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!(
                "{} has no place in the layers: add it, with what it may depend on, to ALLOWED in \
                 tests/xtask/src/check/layers.rs",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(used) = tree
                .packages
                .iter()
                .find(|other| other.name == dependency.name)
            else {
                continue;
            };
            let dev = dependency.kind.as_deref() == Some("dev");
            // A crate's own tests may use the emulated link and the test disks, and the command line's run a real
            // datacenter.
            let pair = (package.name.as_str(), used.name.as_str());
            let for_tests = dev
                && (is_test(used)
                    || used.name == "sim-wan"
                    || pair == ("datacenter-cli", "datacenter"));
            if !allowed.contains(&used.name.as_str()) && !for_tests {
                findings.push(format!(
                    "{}/Cargo.toml: {} may not depend on {}: move what is shared below both, or pass it in as a trait",
                    package.folder, package.name, used.name
                ));
            }
        }
    }
    findings
}

/// RocksDB and quinn are known to one place each.
pub(crate) fn engines(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (engine, owners) in ENGINES {
        for package in tree
            .packages
            .iter()
            .filter(|package| !owners.contains(&package.name.as_str()))
        {
            if package
                .dependencies
                .iter()
                .any(|dependency| dependency.name == *engine)
            {
                findings.push(format!(
                    "{}/Cargo.toml names {engine}: only {} may; use what that crate exports",
                    package.folder,
                    owners.join(" and ")
                ));
            }
        }
    }
    findings
}

fn is_test(package: &Package) -> bool {
    package.folder.starts_with("tests/")
}

#[cfg(test)]
mod tests {
    use super::super::tree::made::package;
    use super::*;

    fn tree(packages: Vec<Package>) -> Tree {
        Tree {
            packages,
            ..Tree::default()
        }
    }

    #[test]
    fn the_layers_as_they_are_meant_pass() {
        let good = tree(vec![
            package("dedup", "dedup", &["blake3"]),
            package(
                "dedup-store",
                "dedup/store",
                &["dedup", "rocksdb", "dev:crash"],
            ),
            package("vmm-block", "vmm/block", &["libc"]),
            package(
                "branch",
                "branch",
                &["dedup-store", "vmm-block", "datacenter-api", "dev:sim-wan"],
            ),
            package("datacenter-api", "datacenter/api", &["serde"]),
            package("sim-wan", "sim-wan", &["dev:quinn"]),
            package(
                "datacenter-cli",
                "datacenter/cli",
                &["datacenter-api", "dev:datacenter"],
            ),
            package("crash", "tests/crash", &["dedup-store"]),
            package(
                "scenarios",
                "tests/scenarios",
                &["branch", "datacenter", "sim-wan"],
            ),
        ]);
        assert_eq!(direction(&good), Vec::<Finding>::new());
        assert_eq!(engines(&good), Vec::<Finding>::new());
    }

    #[test]
    fn each_forbidden_edge_is_found() {
        for (folder, name, edge) in [
            ("branch", "branch", "datacenter"),
            ("branch", "branch", "dev:datacenter"),
            ("datacenter", "datacenter", "branch"),
            ("dedup", "dedup", "dedup-store"),
            ("vmm", "vmm", "dedup"),
            ("vmm/block", "vmm-block", "dedup"),
            ("sim-wan", "sim-wan", "dedup"),
            // The emulator is for tests: not even the branch may carry it.
            ("datacenter/api", "datacenter-api", "sim-wan"),
            ("datacenter/cli", "datacenter-cli", "crash"),
            ("datacenter/cli", "datacenter-cli", "datacenter"),
        ] {
            let mut packages = vec![package(name, folder, &[edge])];
            let used = edge.trim_start_matches("dev:");
            packages.push(package(
                used,
                if used == "crash" { "tests/crash" } else { used },
                &[],
            ));
            let findings = direction(&tree(packages));
            assert_eq!(findings.len(), 1, "{name} → {edge}: {findings:?}");
            assert!(
                findings[0].contains(&format!("{name} may not depend on {used}")),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        let findings = direction(&tree(vec![package("grab-bag", "grab-bag", &[])]));
        assert!(
            findings[0].contains("grab-bag has no place"),
            "{findings:?}"
        );
    }

    #[test]
    fn an_engine_outside_its_crate_is_found() {
        let findings = engines(&tree(vec![
            package("branch", "branch", &["rocksdb"]),
            package("datacenter", "datacenter", &["dev:quinn"]),
        ]));
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("only dedup-store may"), "{findings:?}");
    }
}
