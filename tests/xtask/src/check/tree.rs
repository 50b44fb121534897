//! What the checks look at: the files that git tracks or would track, and the workspace's packages.
//!
//! Files that git ignores are no part of the tree. Cargo is asked without resolving dependencies, so that no network is
//! needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// A checkout.
#[derive(Default)]
pub(crate) struct Tree {
    /// Every file, by its path from the root, in order.
    pub(crate) files: Vec<SourceFile>,
    /// The workspace's packages.
    pub(crate) packages: Vec<Package>,
}

/// A text file of the tree.
pub(crate) struct SourceFile {
    /// From the root, with forward slashes.
    pub(crate) path: String,
    /// Its contents.
    pub(crate) text: String,
}

/// A package of the workspace, as far as the checks care.
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its folder from the root, without a slash at the end.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a package's manifest.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    /// The package's name, also where the manifest renames it.
    pub(crate) name: String,
    /// None, "dev" or "build".
    pub(crate) kind: Option<String>,
}

/// The part of `cargo metadata` that is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<CargoPackage>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

/// What is read as text. Anything else (images, traces, fonts) has no lines to check.
const TEXT: &[&str] = &[
    "rs", "md", "toml", "sh", "ts", "tsx", "js", "css", "html", "yml", "yaml",
];

impl Tree {
    /// Reads the checkout at `root`, or the one around the current folder.
    pub(crate) fn read(root: Option<&Path>) -> anyhow::Result<Self> {
        let metadata: Metadata = serde_json::from_str(&output(
            "cargo",
            &[
                "metadata",
                "--no-deps",
                "--format-version",
                "1",
                "--offline",
            ],
            root.unwrap_or(Path::new(".")),
        )?)
        .context("cargo metadata")?;
        let root = &metadata.workspace_root;
        let listed = output(
            "git",
            &["ls-files", "--cached", "--others", "--exclude-standard"],
            root,
        )?;
        let mut files = Vec::new();
        for path in listed.lines() {
            let extension = Path::new(path).extension().and_then(|e| e.to_str());
            if extension.is_some_and(|e| TEXT.contains(&e)) || path == "x" {
                match std::fs::read_to_string(root.join(path)) {
                    Ok(text) => files.push(SourceFile {
                        path: path.to_owned(),
                        text,
                    }),
                    // Deleted, but not yet in the index.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error).with_context(|| path.to_owned()),
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let packages = metadata.packages.into_iter().map(|package| {
            let folder = package
                .manifest_path
                .parent()
                .and_then(|p| p.strip_prefix(root).ok());
            let folder =
                folder.with_context(|| format!("{} is outside the checkout", package.name))?;
            Ok(Package {
                name: package.name,
                folder: folder.to_string_lossy().into_owned(),
                dependencies: package.dependencies,
            })
        });
        Ok(Self {
            files,
            packages: packages.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The Rust sources.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// The file at `path`.
    pub(crate) fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

fn output(program: &str, arguments: &[&str], folder: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .with_context(|| format!("{program} does not run; install it"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Trees for the checks' own tests.
#[cfg(test)]
pub(crate) mod made {
    use super::{Dependency, Package, SourceFile, Tree};

    /// A tree of files.
    pub(crate) fn files(files: &[(&str, &str)]) -> Tree {
        let files = files.iter().map(|(path, text)| SourceFile {
            path: (*path).into(),
            text: (*text).into(),
        });
        Tree {
            files: files.collect(),
            packages: Vec::new(),
        }
    }

    /// A package in a folder of its own name; a dependency that starts with `dev:` is a development dependency.
    pub(crate) fn package(name: &str, folder: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|name| match name.strip_prefix("dev:") {
                Some(name) => Dependency {
                    name: name.into(),
                    kind: Some("dev".into()),
                },
                None => Dependency {
                    name: (*name).into(),
                    kind: None,
                },
            });
        Package {
            name: name.into(),
            folder: folder.into(),
            dependencies: dependencies.collect(),
        }
    }
}
