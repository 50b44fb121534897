//! fio's jobs and what they came to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Program;
use crate::row::Metric;
use crate::session::Recorder;

/// A job: one way to read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) case: &'static str,
    /// fio's --rw.
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// A flush behind every write.
    flush: bool,
}

/// Of `read`.
pub(crate) const READS: [Job; 3] = [
    Job {
        case: "rand4k-qd1",
        rw: "randread",
        block: "4k",
        depth: 1,
        flush: false,
    },
    Job {
        case: "rand4k-qd32",
        rw: "randread",
        block: "4k",
        depth: 32,
        flush: false,
    },
    Job {
        case: "seq1m",
        rw: "read",
        block: "1m",
        depth: 4,
        flush: false,
    },
];

/// Of `write`.
pub(crate) const WRITES: [Job; 4] = [
    Job {
        case: "rand4k-qd1",
        rw: "randwrite",
        block: "4k",
        depth: 1,
        flush: false,
    },
    Job {
        case: "rand4k-qd32",
        rw: "randwrite",
        block: "4k",
        depth: 32,
        flush: false,
    },
    Job {
        case: "seq1m",
        rw: "write",
        block: "1m",
        depth: 4,
        flush: false,
    },
    Job {
        case: "write4k-flush",
        rw: "randwrite",
        block: "4k",
        depth: 1,
        flush: true,
    },
];

/// What is read or written.
pub(crate) enum Target<'a> {
    /// An NBD URI.
    Nbd(&'a str),
    /// A file: one request at a time by pread/pwrite, more by io_uring.
    File(&'a Path),
}

/// The part of a disk that jobs touch, in MiB: where a desktop's data is dense.
pub(crate) const SPAN_MIB: u32 = 3500;

impl Job {
    /// Runs it for `seconds`.
    ///
    /// # Errors
    /// fio fails.
    pub(crate) fn run(&self, target: &Target<'_>, seconds: f64, scratch: &Path) -> Result<Figures> {
        let fio = Program::new("fio")
            .args([
                "--name=bench",
                "--output-format=json",
                "--time_based",
                "--randrepeat=0",
                "--thread",
            ])
            .arg(format!("--rw={}", self.rw))
            .arg(format!("--bs={}", self.block))
            .arg(format!("--size={SPAN_MIB}m"))
            // Without a unit fio takes whole seconds only.
            .arg(format!("--runtime={:.0}ms", seconds * 1000.0));
        // fio's psync knows no depth; io_uring is what a program with many requests would use on a file.
        let fio = match target {
            Target::Nbd(uri) => fio.args([
                "--ioengine=nbd",
                &format!("--uri={uri}"),
                &format!("--iodepth={}", self.depth),
            ]),
            Target::File(path) if self.depth == 1 => fio.args([
                "--ioengine=psync".to_owned(),
                format!("--filename={}", path.display()),
            ]),
            Target::File(path) => fio.args([
                "--ioengine=io_uring".to_owned(),
                format!("--iodepth={}", self.depth),
                format!("--filename={}", path.display()),
            ]),
        };
        // Reads must find what is in the page cache; a write's lasting copy is what its flush makes.
        let fio = fio.arg("--invalidate=0");
        let fio = match (self.flush, target) {
            (false, _) => fio,
            (true, Target::Nbd(_)) => fio.arg("--fsync=1"),
            (true, Target::File(_)) => fio.arg("--fdatasync=1"),
        };
        let limit = Duration::from_secs_f64(seconds + 120.0);
        let done = fio.run(scratch, limit)?;
        let json = done.stdout.find('{').map_or("", |at| &done.stdout[at..]);
        let json: Value = serde_json::from_str(json).context("what fio printed")?;
        Figures::read(&json, self.rw.contains("read"), self.flush)
    }
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    iops: f64,
    mb_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Figures {
    fn read(json: &Value, reads: bool, flush: bool) -> Result<Self> {
        let job = &json["jobs"][0];
        let side = &job[if reads { "read" } else { "write" }];
        let number = |pointer: &str| {
            side.pointer(pointer)
                .and_then(Value::as_f64)
                .with_context(|| format!("{pointer} in fio's answer"))
        };
        // A flushed write's wait is that of its flush and of the write before it.
        let percentile = |q: &str| {
            let ns = number(&format!("/clat_ns/percentile/{q}"));
            let flush_ns = job
                .pointer(&format!("/sync/lat_ns/percentile/{q}"))
                .and_then(Value::as_f64);
            Ok::<f64, anyhow::Error>((ns? + flush_ns.filter(|_| flush).unwrap_or(0.0)) / 1e3)
        };
        Ok(Self {
            iops: number("/iops")?,
            mb_per_s: number("/bw_bytes")? / 1e6,
            p50_us: percentile("50.000000")?,
            p99_us: percentile("99.000000")?,
        })
    }

    /// Records it.
    pub(crate) fn record(&self, recorder: &mut Recorder, case: &str) {
        for (metric, value) in [
            (Metric::Iops, self.iops),
            (Metric::MbPerS, self.mb_per_s),
            (Metric::P50Us, self.p50_us),
            (Metric::P99Us, self.p99_us),
        ] {
            recorder.put(case, metric, value, None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fios_answer_is_read() {
        let json = serde_json::json!({"jobs": [{
            "write": {"iops": 400.0, "bw_bytes": 1_638_400, "clat_ns": {"percentile": {"50.000000": 10_000, "99.000000": 50_000}}},
            "sync": {"lat_ns": {"percentile": {"50.000000": 2_000_000, "99.000000": 9_000_000}}},
        }]});
        let figures = Figures::read(&json, false, true).unwrap();
        assert_eq!(
            figures,
            Figures {
                iops: 400.0,
                mb_per_s: 1.6384,
                p50_us: 2010.0,
                p99_us: 9050.0
            }
        );
        assert_eq!(Figures::read(&json, false, false).unwrap().p50_us, 10.0);
        assert!(Figures::read(&json, true, false).is_err());
    }

    #[test]
    fn a_real_job_on_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        std::fs::write(&file, vec![1; 1 << 20]).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(u64::from(SPAN_MIB) << 20)
            .unwrap();
        for job in READS {
            let figures = job.run(&Target::File(&file), 0.3, folder.path()).unwrap();
            assert!(figures.iops > 10.0 && figures.p50_us > 0.0, "{figures:?}");
        }
    }
}
