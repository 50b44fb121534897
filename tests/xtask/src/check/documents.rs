//! What the documents claim about the tree: the README's code map and the numbered decisions.

use std::collections::BTreeSet;

use super::Finding;
use super::tree::Tree;

/// The README's section "Code map" names every folder with a crate, by its path with a slash at the end (`dedup/store/`),
/// and no folder that does not exist.
pub(crate) fn code_map(tree: &Tree) -> Vec<Finding> {
    let Some(readme) = tree.file("README.md") else {
        return vec!["README.md is missing: write it, with a section \"Code map\"".to_owned()];
    };
    let Some(section) = section(&readme.text, "code map") else {
        return vec![
            "README.md has no section \"Code map\": add one that lists every crate's folder"
                .to_owned(),
        ];
    };
    let named = folders_named(&section);
    // A manifest makes a folder a crate, also outside the workspace (the fuzz targets).
    let crates: BTreeSet<String> = tree
        .files
        .iter()
        .filter_map(|file| file.path.strip_suffix("/Cargo.toml"))
        .map(|folder| format!("{folder}/"))
        .collect();
    let exists = |folder: &String| {
        tree.files
            .iter()
            .any(|file| file.path.starts_with(folder.as_str()))
    };
    let missing = crates.difference(&named).map(|folder| {
        format!("README.md's code map lacks `{folder}`: say in one line what it owns")
    });
    let gone = named.iter().filter(|folder| !exists(folder)).map(|folder| {
        format!("README.md's code map names `{folder}`, which does not exist: take it out")
    });
    missing.chain(gone).collect()
}

/// The lines under the heading `title`, up to the next heading of the same or a higher level.
fn section(text: &str, title: &str) -> Option<String> {
    let level = |line: &str| line.chars().take_while(|c| *c == '#').count();
    let mut lines = text.lines();
    let heading = lines.find(|line| level(line) > 0 && line.to_lowercase().contains(title))?;
    let mut in_code = false;
    let within = lines.take_while(|line| {
        // A comment in a block of shell commands is no heading.
        in_code ^= line.starts_with("```");
        in_code || level(line) == 0 || level(line) > level(heading)
    });
    Some(within.collect::<Vec<_>>().join("\n"))
}

/// Every word of the form `path/`, with or without Markdown around it.
fn folders_named(text: &str) -> BTreeSet<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    text.split(|c: char| !plain(c))
        .filter(|word| {
            word.ends_with('/')
                && word.len() > 1
                && !word.starts_with(['/', '.'])
                && !word.contains("//")
        })
        .map(str::to_owned)
        .collect()
}

/// `docs/decisions/` holds 0001-….md, 0002-….md and so on.
pub(crate) fn decisions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut numbers = Vec::new();
    for file in &tree.files {
        let Some(name) = file.path.strip_prefix("docs/decisions/") else {
            continue;
        };
        match name
            .split_once('-')
            .and_then(|(number, _)| number.parse::<usize>().ok().filter(|_| number.len() == 4))
        {
            Some(number) => numbers.push(number),
            None if name == "README.md" => {}
            None => findings.push(format!("{}: name it NNNN-what-was-decided.md", file.path)),
        }
    }
    numbers.sort_unstable();
    for (expected, pair) in (1..).zip(&numbers) {
        if *pair != expected {
            findings.push(format!(
                "docs/decisions: after {:04} comes {pair:04}: number decisions from 0001 without gaps or repeats",
                expected - 1
            ));
            break;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tree::made::files;
    use super::*;

    const MAP: &str = "# Splice\n\nSee `docs/gone/`.\n\n## Code map\n\n| `dedup/` | content |\n| `dedup/store/` | x |\n\
        ```\n# a comment\ntests/fuzz/  fuzz targets, and/or seeds\n```\n\n### Small print\n- `docs/` more\n\n## Next\n`no/such/`\n";

    fn tree(readme: &str) -> Tree {
        files(&[
            ("Cargo.toml", ""),
            ("README.md", readme),
            ("dedup/Cargo.toml", ""),
            ("dedup/store/Cargo.toml", ""),
            ("tests/fuzz/Cargo.toml", ""),
            ("docs/trust.md", ""),
        ])
    }

    #[test]
    fn a_true_code_map_passes() {
        assert_eq!(code_map(&tree(MAP)), Vec::<Finding>::new());
    }

    #[test]
    fn what_the_map_lacks_and_what_is_gone_are_found() {
        let findings = code_map(&tree(&MAP.replace("`dedup/store/`", "`dedup/shop/`")));
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("lacks `dedup/store/`"), "{findings:?}");
        assert!(findings[1].contains("names `dedup/shop/`"), "{findings:?}");
        assert!(code_map(&tree("# Splice\n"))[0].contains("no section"));
        assert!(code_map(&Tree::default())[0].contains("README.md is missing"));
    }

    #[test]
    fn gaps_repeats_and_odd_names_are_found() {
        let with = |names: &[&str]| {
            let paths: Vec<String> = names
                .iter()
                .map(|name| format!("docs/decisions/{name}"))
                .collect();
            decisions(&files(
                &paths
                    .iter()
                    .map(|path| (path.as_str(), ""))
                    .collect::<Vec<_>>(),
            ))
        };
        assert_eq!(
            with(&["0001-a.md", "0002-b.md", "README.md"]),
            Vec::<Finding>::new()
        );
        assert!(with(&["0001-a.md", "0003-c.md"])[0].contains("after 0001 comes 0003"));
        assert!(with(&["0001-a.md", "0001-b.md"])[0].contains("after 0001 comes 0001"));
        assert!(with(&["0002-a.md"])[0].contains("after 0000 comes 0002"));
        assert!(with(&["notes.md"])[0].contains("NNNN-"));
        assert!(with(&["1-a.md"])[0].contains("NNNN-"));
    }
}
