//! What must hold of every source file: its head, its length, its vocabulary.
//!
//! These look at text, not at syntax: a rule that a reader can see at a glance needs no parser.

use super::Finding;
use super::tree::Tree;

/// Above this a file is to be split by noun.
const LINES_MAX: usize = 800;

/// Marks of unfinished work, put together here so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("FIX", "ME"),
];

/// Only modules named `http` (a file or a folder) know the web framework. Tests may stand in for a server.
pub(crate) fn http(tree: &Tree) -> Vec<Finding> {
    let knows = |line: &str| {
        let code = line.trim_start();
        !code.starts_with("//")
            && ["axum::", "axum_server::", "extern crate axum"]
                .iter()
                .any(|name| code.contains(name))
    };
    let outside = |path: &str| {
        !path.starts_with("tests/")
            && !path
                .split('/')
                .any(|part| part == "http" || part == "http.rs")
    };
    tree.rust()
        .filter(|file| outside(&file.path))
        .filter_map(|file| {
            let line = file.text.lines().position(knows)? + 1;
            Some(format!(
                "{}:{line} names axum: move the handler into this crate's http module",
                file.path
            ))
        })
        .collect()
}

/// Every Rust file begins with `//!`.
pub(crate) fn heads(tree: &Tree) -> Vec<Finding> {
    tree.rust()
        .filter(|file| {
            let head = file.text.lines().next().unwrap_or("");
            head.strip_prefix("//!")
                .is_none_or(|words| words.trim().is_empty())
        })
        .map(|file| {
            format!(
                "{}: begin it with //! lines: what it owns, its invariant, what it does not do",
                file.path
            )
        })
        .collect()
}

/// No source is over 800 lines. Prose and generated schemas (OpenAPI) are not sources.
pub(crate) fn lengths(tree: &Tree) -> Vec<Finding> {
    let sources = [".rs", ".ts", ".tsx", ".js", ".css", ".html", ".sh"];
    tree.files
        .iter()
        .filter(|file| {
            file.path == "x"
                || sources
                    .iter()
                    .any(|extension| file.path.ends_with(extension))
        })
        .filter_map(|file| {
            let lines = file.text.lines().count();
            (lines > LINES_MAX)
                .then(|| format!("{} has {lines} lines: split it by noun", file.path))
        })
        .collect()
}

/// No mark of unfinished work.
pub(crate) fn unfinished(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
                findings.push(format!(
                    "{}:{} says {mark}: finish it, or take it out",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tree::made::files;
    use super::*;

    #[test]
    fn axum_outside_http_is_found_with_its_line() {
        let tree = files(&[
            (
                "datacenter/src/http/router.rs",
                "//! Routes.\nuse axum::Router;\n",
            ),
            ("branch/src/http.rs", "//! The API.\nuse axum::Router;\n"),
            (
                "branch/src/volume.rs",
                "//! Volumes.\n// Not axum::Router.\nlet taxume = 1;\n",
            ),
            (
                "branch/src/link.rs",
                "//! The link.\n\nfn f(r: axum::Router) {}\n",
            ),
            (
                "tests/scenarios/src/server.rs",
                "//! A stand-in.\nuse axum::Router;\n",
            ),
            (
                "branch/src/https.rs",
                "//! TLS.\nuse axum_server::tls_rustls;\n",
            ),
        ]);
        let findings = http(&tree);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            findings[0].starts_with("branch/src/link.rs:3 "),
            "{findings:?}"
        );
        assert!(
            findings[1].starts_with("branch/src/https.rs:2 "),
            "{findings:?}"
        );
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        let tree = files(&[
            ("a.rs", "//! Owns a.\n"),
            ("b.rs", "use std::io;\n//! Too late.\n"),
            ("c.rs", "//!\nfn c() {}\n"),
            ("d.rs", ""),
            ("e.md", "prose"),
        ]);
        let findings = heads(&tree);
        let found: Vec<_> = findings.iter().map(|finding| &finding[..4]).collect();
        assert_eq!(found, ["b.rs", "c.rs", "d.rs"]);
    }

    #[test]
    fn the_801st_line_is_found() {
        let tree = files(&[
            ("fits.rs", &"x\n".repeat(800)),
            ("long.rs", &"x\n".repeat(801)),
            ("x", &"x\n".repeat(900)),
            ("docs/story.md", &"x\n".repeat(900)),
        ]);
        let findings = lengths(&tree);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            findings[0].contains("long.rs has 801 lines"),
            "{findings:?}"
        );
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments() {
        let text = format!(
            "//! A.\nfn f() {{ {}\"later\") }}\n// {}: later\n",
            UNFINISHED[0], UNFINISHED[2]
        );
        let findings = unfinished(&files(&[
            ("a.rs", &text),
            ("b.rs", "//! Todos are a user's word.\n"),
        ]));
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[1].starts_with("a.rs:3 "), "{findings:?}");
    }
}
