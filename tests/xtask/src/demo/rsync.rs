//! The yardstick for an update: rsync with compression, on the same pair of files over the same line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::lab::{BRANCH_A, DATACENTER, Lab};
use super::process::Program;
use super::wait::Limit;
use super::wan::Wire;

const PORT: u16 = 8873;
const DAEMON: &str = "rsync";

/// What the peer needed.
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) wire: Wire,
}

/// Brings a copy of `before` at branch A to the state of `after` at the datacenter.
///
/// # Errors
/// rsync fails or takes longer than `limit`.
pub(crate) fn update(
    lab: &mut Lab,
    before: &Path,
    after: &Path,
    limit: Duration,
) -> anyhow::Result<Run> {
    let folder = lab.work.join("rsync");
    std::fs::create_dir_all(&folder).context("rsync's folder")?;
    let copy = folder.join("disk.raw");
    let copying = Program::new(Path::new("cp"))
        .args(["--sparse=always", "--"])
        .args([before, &copy]);
    lab.processes
        .run(&copying, Duration::from_secs(600))
        .context("copying the disk for rsync")?;

    let module = after.parent().context("the disk is in a folder")?;
    let configuration = folder.join("rsyncd.conf");
    let text = format!(
        "port = {PORT}\nuse chroot = no\nuid = root\ngid = root\n[disks]\npath = {}\nread only = yes\n",
        module.display()
    );
    std::fs::write(&configuration, text).context("rsync's configuration")?;
    let rsync = Path::new("rsync");
    let address = format!("--address={}", BRANCH_A.datacenter_address);
    let daemon = Program::inside(DATACENTER, rsync)
        .args([
            "--daemon",
            "--no-detach",
            "--log-file=/dev/stderr",
            &address,
        ])
        .args([format!("--config={}", configuration.display())]);
    let log = lab.processes.start(DAEMON, &daemon)?;

    let source = format!(
        "rsync://{}:{PORT}/disks/{}",
        BRANCH_A.datacenter_address,
        after
            .file_name()
            .context("the disk has a name")?
            .to_string_lossy()
    );
    // Listing shows that the daemon answers; it costs nothing of what is measured.
    let ask = |lab: &mut Lab| {
        let list = Program::inside(BRANCH_A.namespace, rsync).args(["--contimeout=5", &source]);
        lab.processes.run(&list, Duration::from_secs(10)).is_ok()
    };
    Limit::new("rsync's daemon answers", Duration::from_secs(15))
        .with_log(&log)
        .wait(|| Ok(ask(lab).then_some(())))?;

    let begun = Instant::now();
    let wire = lab.wan.wire()?;
    let client = Program::inside(BRANCH_A.namespace, rsync)
        .args([
            "-z",
            "--inplace",
            "--no-whole-file",
            "--ignore-times",
            &source,
        ])
        .args([&copy]);
    lab.processes.run(&client, limit).context("rsync")?;
    let run = Run {
        seconds: begun.elapsed().as_secs_f64(),
        wire: lab.wan.wire()?.since(wire),
    };

    lab.processes.stop(DAEMON)?;
    let compare = Program::new(Path::new("cmp")).args([after, &copy]);
    lab.processes
        .run(&compare, Duration::from_secs(300))
        .context("rsync's copy")?;
    std::fs::remove_dir_all(&folder).context("removing rsync's folder")?;
    Ok(run)
}
