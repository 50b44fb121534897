//! Measures a machine on the KVM at hand: time from the start of the program to the guest's first instruction, and memory beside the
//! guest's own. `figures SPLICE-VMM` prints a table; tests/lab/vmm-figures.sh runs it and adds the size of the program.
//!
//! The guest is the one of the sandbox's tests: its first instructions print a letter, so that the time ends when that has come out of
//! the serial port, through a pipe, at a process that waits for it. It includes starting two processes and the sandbox.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/sandbox/guest.rs"]
#[allow(dead_code, reason = "a test uses the rest")]
mod guest;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 40;

fn start(program: &str, kernel: &Path, options: &[&str]) -> (Child, Duration) {
    let mut command = Command::new(program);
    command.args(["run", "--memory", "128", "--vcpus", "1", "--serial-stdout"]);
    command.arg("--kernel").arg(kernel).args(options);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut letter = [0];
    let out = child.stdout.as_mut().unwrap();
    out.read_exact(&mut letter).expect("the guest has started");
    assert_eq!(letter, [guest::HELLO]);
    (child, begun.elapsed())
}

fn end(mut child: Child) {
    // SAFETY: plain numbers; the process is our child and not waited for yet.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert!(child.wait().unwrap().success());
}

/// KiB by their names in a process's `smaps_rollup`.
fn memory(process: u32) -> impl Fn(&str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    move |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        value.map_or(0, |value| value.parse().unwrap())
    }
}

fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn main() {
    let program = std::env::args().nth(1).expect("the path of splice-vmm");
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest::kernel(folder.path());
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let disk = disk.to_str().unwrap();
    let plain: &[&str] = &["--sandbox", "off"];
    let boxed: &[&str] = &["--disk", disk];
    for (what, options) in [("no sandbox, no disk", plain), ("sandbox, a disk", boxed)] {
        let mut times: Vec<f64> = Vec::new();
        for _ in 0..RUNS {
            let (child, time) = start(&program, &kernel, options);
            times.push(time.as_secs_f64() * 1000.0);
            end(child);
        }
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "start to first instruction, {what}: {:.1} ms median, {:.1} ms 90th percentile, {:.1} ms worst of {RUNS}",
            at(0.5),
            at(0.9),
            at(1.0)
        );
    }
    let (child, _) = start(&program, &kernel, boxed);
    // What starting touched is over; the guest waits for a letter.
    std::thread::sleep(Duration::from_millis(500));
    let mut total = 0;
    let mut processes = vec![child.id()];
    processes.extend(children(child.id()));
    for process in processes {
        let of = memory(process);
        // The guest's memory is a shared file; program and libraries are counted in every process that has them.
        let own = of("Rss:") - of("Pss_Shmem:").min(of("Rss:"));
        total += own;
        println!(
            "process {process}: resident {} KiB, guest's memory {} KiB, beside it {own} KiB (private {} KiB)",
            of("Rss:"),
            of("Pss_Shmem:"),
            of("Private_Clean:") + of("Private_Dirty:") - of("Pss_Shmem:"),
        );
    }
    println!("memory beside the guest's, 1 processor and 128 MiB, no display: {total} KiB");
    end(child);
}
