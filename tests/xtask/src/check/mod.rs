//! Checks of the tree itself: what a compiler does not see and a reader relies on.
//!
//! Each check is a pure function of a [`Tree`] (the files and what cargo says of the packages), so that its own tests
//! hand it a tree that breaks the rule. A finding says what is wrong, where, and how to mend it.

mod documents;
mod layers;
mod sources;
mod tree;

use std::path::Path;

pub(crate) use tree::Tree;

/// One thing to mend.
pub(crate) type Finding = String;

/// A rule: what it demands, and what breaks it.
struct Check {
    demands: &'static str,
    run: fn(&Tree) -> Vec<Finding>,
}

const CHECKS: &[Check] = &[
    Check {
        demands: "crates depend in one direction",
        run: layers::direction,
    },
    Check {
        demands: "rocksdb and quinn each have their one crate",
        run: layers::engines,
    },
    Check {
        demands: "only modules named http know axum",
        run: sources::http,
    },
    Check {
        demands: "every source file says what it owns",
        run: sources::heads,
    },
    Check {
        demands: "no file is over 800 lines",
        run: sources::lengths,
    },
    Check {
        demands: "nothing is left unfinished",
        run: sources::unfinished,
    },
    Check {
        demands: "the README's code map is the tree",
        run: documents::code_map,
    },
    Check {
        demands: "decisions are numbered without gaps",
        run: documents::decisions,
    },
];

/// Runs all checks on the checkout at `root` (or around the current folder) and prints what they found.
/// Returns whether all passed.
///
/// # Errors
/// The tree cannot be read.
pub(crate) fn run(root: Option<&Path>) -> anyhow::Result<bool> {
    let tree = Tree::read(root)?;
    let mut failed = 0;
    for check in CHECKS {
        let findings = (check.run)(&tree);
        println!(
            "{:6} {}",
            if findings.is_empty() { "ok" } else { "FAILED" },
            check.demands
        );
        for finding in &findings {
            println!("         {finding}");
        }
        failed += usize::from(!findings.is_empty());
    }
    println!("checks: {} passed, {failed} failed", CHECKS.len() - failed);
    Ok(failed == 0)
}
