//! `splice support-bundle`: what both daemons tell of themselves, in one archive for somebody who is to help.
//!
//! Each daemon takes its own secrets out before it answers; here the tokens that this command may use are looked for once more, and names of
//! files are not believed. A daemon that does not answer is said to be missing: a bundle of the other one is better than none.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::Args;
use datacenter_api::SupportReport;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::Context;
use crate::desktop::Socket;
use crate::failure::Failure;
use crate::output;

/// `splice support-bundle`
#[derive(Args)]
#[command(
    after_help = "Examples:\n  splice support-bundle\n  splice support-bundle --only branch --output /tmp/branch.tar.gz\n\nThere are no secrets in it, and no content of disks. Names of branches, pools, images, desktops and accounts, and addresses, are: look through it\nbefore you give it away."
)]
pub struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// The archive to write, which must not exist [default: splice-support-TIME.tar.gz in this folder].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the part of one of them: datacenter or branch.
    #[arg(long, value_name = "PART", value_parser = ["datacenter", "branch"])]
    only: Option<String>,
}

/// A daemon's part.
struct Part {
    name: &'static str,
    report: SupportReport,
}

/// A daemon that did not give its part.
#[derive(Serialize)]
struct Missing {
    name: &'static str,
    why: String,
}

/// What was written, for `--json`.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    bytes: u64,
    /// `PART/FILE`.
    files: Vec<String>,
    missing: Vec<Missing>,
}

/// Collects and writes a bundle.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let is_wanted = |part: &str| arguments.only.as_deref().is_none_or(|only| only == part);
    let mut parts = Vec::new();
    let mut failed = Vec::new();
    let mut take = |name: &'static str, report: Result<SupportReport, Failure>| match report {
        Ok(report) => parts.push(Part { name, report }),
        Err(failure) => failed.push((name, failure)),
    };
    if is_wanted("datacenter") {
        take("datacenter", of_datacenter(context).await);
    }
    if is_wanted("branch") {
        take("branch", of_branch(&arguments.socket).await);
    }
    if parts.is_empty() {
        return Err(nobody(failed));
    }
    let tokens = context.tokens();
    for file in parts.iter_mut().flat_map(|part| &mut part.report.files) {
        for token in tokens.iter().filter(|token| !token.is_empty()) {
            file.text = file.text.replace(token.as_str(), "[redacted]");
        }
    }
    let missing = failed.into_iter().map(|(name, failure)| Missing {
        name,
        why: failure.message().to_owned(),
    });
    write(arguments.output, &parts, missing.collect(), context.json)
}

async fn of_datacenter(context: &Context) -> Result<SupportReport, Failure> {
    Ok(context.client()?.support().await?)
}

async fn of_branch(socket: &Socket) -> Result<SupportReport, Failure> {
    let client = branch_api::Client::new(socket.path())?;
    Ok(client.support().await?)
}

/// Neither gave anything.
fn nobody(mut failed: Vec<(&'static str, Failure)>) -> Failure {
    if failed.len() == 1 {
        return failed.remove(0).1;
    }
    let lines: Vec<String> = failed
        .iter()
        .map(|(name, failure)| format!("{name}: {}", failure.message()))
        .collect();
    Failure::unreachable(format!("no daemon answers; {}", lines.join("; ")))
        .help("run it where the datacenter is configured, at a branch server, or both: --config, --branch-socket")
}

fn write(
    output: Option<PathBuf>,
    parts: &[Part],
    missing: Vec<Missing>,
    json: bool,
) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let stamp = now.format(format).unwrap_or_else(|_| "now".to_owned());
    let top = format!("splice-support-{stamp}");
    let path = output.unwrap_or_else(|| PathBuf::from(format!("{top}.tar.gz")));
    let failed = |error: std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
            .help("choose another file with --output")
    };
    let (bytes, files) = archive(&top, parts, &missing, now).map_err(failed)?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let mut file = file.map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let written = Written {
        file: path,
        bytes: bytes.len() as u64,
        files,
        missing,
    };
    if json {
        return output::json(&written);
    }
    for missing in &written.missing {
        output::aside(format_args!(
            "without the {}: {}",
            missing.name, missing.why
        ));
    }
    output::text(&format!("{}\n", written.file.display()))
}

/// The archive, and the names of what is in it.
fn archive(
    top: &str,
    parts: &[Part],
    missing: &[Missing],
    now: OffsetDateTime,
) -> std::io::Result<(Vec<u8>, Vec<String>)> {
    let mtime = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut tar = tar::Builder::new(gzip);
    let mut add = |name: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(mtime);
        tar.append_data(&mut header, format!("{top}/{name}"), text.as_bytes())
    };
    let mut names = Vec::new();
    for part in parts {
        for file in part.report.files.iter().filter(|file| is_plain(&file.name)) {
            let name = format!("{}/{}", part.name, file.name);
            add(&name, &file.text)?;
            names.push(name);
        }
    }
    for missing in missing {
        let name = format!("{}/missing.txt", missing.name);
        add(&name, &format!("{}\n", missing.why))?;
        names.push(name);
    }
    Ok((tar.into_inner()?.finish()?, names))
}

/// Whether a name stays in its folder.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use datacenter_api::SupportFile;

    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_left_out() {
        let file = |name: &str| SupportFile {
            name: name.to_owned(),
            text: format!("text of {name}"),
        };
        let part = Part {
            name: "branch",
            report: SupportReport {
                files: ["log.txt", "../evil", "/etc/evil", ".hidden", "", "a/b"]
                    .map(file)
                    .into(),
                ..SupportReport::default()
            },
        };
        let missing = [Missing {
            name: "datacenter",
            why: "cannot reach it".to_owned(),
        }];
        let now = OffsetDateTime::UNIX_EPOCH;
        let (bytes, names) = archive("top", &[part], &missing, now).expect("memory takes it");
        assert_eq!(names, ["branch/log.txt", "datacenter/missing.txt"]);
        let mut found = Vec::new();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        for entry in tar.entries().expect("it is an archive") {
            let mut entry = entry.expect("it is whole");
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("it is text");
            let path = entry.path().expect("it has a name").display().to_string();
            found.push((path, text));
        }
        let expected = [
            ("top/branch/log.txt", "text of log.txt"),
            ("top/datacenter/missing.txt", "cannot reach it\n"),
        ];
        assert_eq!(
            found,
            expected.map(|(path, text)| (path.to_owned(), text.to_owned()))
        );
    }
}
