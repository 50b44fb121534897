//! Embeds the portal's page: writes `portal.rs` into the build's folder, a list of the files that Vite built under `portal/dist/app`.
//!
//! Invariant: whatever is there or is not there, the crate compiles. Without a built page the list is empty, and the server serves a page that says how to
//! build it. This runs no other program and asks no network: `./x` builds the page, before cargo.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // The folder is in git, empty: a path that does not exist would have cargo run this, and compile the crate, each time.
    println!("cargo:rerun-if-changed=portal/dist");
    let folder = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let app = folder("CARGO_MANIFEST_DIR").join("portal/dist/app");
    let mut files = Vec::new();
    if app.join("index.html").is_file() {
        collect(&app, &app, &mut files)?;
    }
    files.sort();

    let mut list = String::from("static FILES: &[File] = &[\n");
    for path in &files {
        let (kind, bytes) = (kind(path), app.join(path));
        writeln!(
            list,
            "    File {{ path: {path:?}, kind: {kind:?}, bytes: include_bytes!({bytes:?}) }},"
        )
        .expect("a string takes all that is written to it");
    }
    list += "];\n";
    fs::write(folder("OUT_DIR").join("portal.rs"), list)
}

/// The paths of all files below `folder`, from `app`, with forward slashes.
fn collect(app: &Path, folder: &Path, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(app, &path, files)?;
        } else if let Some(name) = path.strip_prefix(app).ok().and_then(Path::to_str) {
            files.push(name.to_owned());
        }
    }
    Ok(())
}

/// The media type of a file, by its name.
fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript",
        "css" => "text/css",
        "svg" => "image/svg+xml",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
