//! Images that qemu-img reads for us: converted into a sparse raw file that has no name and so goes away with the
//! image, whatever ends the process.
//!
//! qemu-img parses foreign bytes, so it runs with limits on memory, time and output size, gets no environment, is told
//! the format rather than asked, and is handed the opened file itself as standard input. Images that refer to other
//! files are refused before it may follow the reference: see [`crate::layers`].

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::layers;
use crate::options::{OpenOptions, Progress};
use crate::raw::RawImage;
use crate::source::Source;

/// Address space of qemu-img. It needs about 0.5 GiB whatever the image.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;
const INFO_TIMEOUT: Duration = Duration::from_secs(60);
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Converts the image in `source` to raw and opens the result.
pub(crate) fn convert(
    source: &Source,
    format: ImageFormat,
    options: &OpenOptions,
) -> Result<RawImage, ImageError> {
    layers::refuse_layered(source, format)?;
    let tool = QemuImg {
        source,
        format,
        options,
    };
    let info = tool.info()?;
    layers::refuse_layered_info(source, &info)?;
    let virtual_bytes = info["virtual-size"].as_u64().unwrap_or(0);
    if virtual_bytes == 0 || virtual_bytes > options.disk_bytes_max {
        return Err(ImageError::Size {
            path: source.path().to_owned(),
            size_bytes: virtual_bytes,
            limit_bytes: options.disk_bytes_max,
        });
    }
    // Only stream-optimised VMDKs are compressed; of the others no more can come out than is in the file.
    let compressed = info["format-specific"]["data"]["create-type"] == "streamOptimized";
    let needed_bytes = if compressed {
        virtual_bytes
    } else {
        virtual_bytes.min(source.len())
    };
    tool.check()?;
    check_free_space(source, &options.scratch_dir, needed_bytes, compressed)?;

    let mut scratch = tempfile::tempfile_in(&options.scratch_dir).map_err(|e| ImageError::Io {
        path: options.scratch_dir.clone(),
        action: "make a scratch file in it".into(),
        source: e,
    })?;
    tool.convert_into(&scratch, virtual_bytes)?;
    let written = scratch
        .seek(SeekFrom::End(0))
        .map_err(|e| tool.io("find the converted image's length", e))?;
    if written < virtual_bytes {
        return Err(tool.failed(format!("qemu-img wrote {written} of {virtual_bytes} bytes")));
    }
    RawImage::with_format(
        Source::from_file(source.path(), scratch, written),
        format,
        options.disk_bytes_max,
    )
}

/// A compressed image's need is an upper bound that is rarely met, so only a shortage that makes success unlikely (less
/// than a third free) stops it; otherwise the whole need must be free.
fn check_free_space(
    source: &Source,
    scratch_dir: &Path,
    needed_bytes: u64,
    compressed: bool,
) -> Result<(), ImageError> {
    let stat = rustix::fs::statvfs(scratch_dir).map_err(|e| ImageError::Io {
        path: scratch_dir.to_owned(),
        action: "find its free space".into(),
        source: e.into(),
    })?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let required = if compressed {
        needed_bytes.min(source.len().saturating_mul(3))
    } else {
        needed_bytes
    };
    if free_bytes < required {
        return Err(ImageError::NoSpace {
            path: source.path().to_owned(),
            scratch_dir: scratch_dir.to_owned(),
            needed_bytes: required,
            free_bytes,
        });
    }
    Ok(())
}

struct QemuImg<'a> {
    source: &'a Source,
    format: ImageFormat,
    options: &'a OpenOptions,
}

impl QemuImg<'_> {
    fn driver(&self) -> &'static str {
        match self.format {
            ImageFormat::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// The image as qemu-img is to open it: this format, this open file, nothing below it.
    fn image_spec(&self, input: &File) -> String {
        let is_file = input
            .metadata()
            .is_ok_and(|m| m.mode() & 0o170_000 == 0o100_000);
        json!({
            "driver": self.driver(),
            "file": { "driver": if is_file { "file" } else { "host_device" }, "filename": "/dev/stdin" },
            "backing": Value::Null,
        })
        .to_string()
    }

    fn info(&self) -> Result<Value, ImageError> {
        let input = self.source.try_clone_file()?;
        let arguments = ["info", "--output=json", "-U"].map(OsString::from).to_vec();
        let output = self.run(arguments, input, None, INFO_TIMEOUT, 0, &[0], &mut |_| {})?;
        serde_json::from_slice(&output)
            .map_err(|e| self.failed(format!("qemu-img info did not answer in JSON: {e}")))
    }

    /// Has the image's tables checked: conversion reads zeros where they point behind the end of the file.
    fn check(&self) -> Result<(), ImageError> {
        let input = self.source.try_clone_file()?;
        let arguments = ["check", "-q", "-U"].map(OsString::from).to_vec();
        // 3 means leaked blocks, which do no harm; 63 that the format has no check.
        self.run(
            arguments,
            input,
            None,
            self.options.convert_timeout,
            0,
            &[0, 3, 63],
            &mut |_| {},
        )?;
        Ok(())
    }

    fn convert_into(&self, scratch: &File, virtual_bytes: u64) -> Result<(), ImageError> {
        let input = self.source.try_clone_file()?;
        // The scratch file has no name; this is its name while we hold it open.
        let target = format!("/proc/{}/fd/{}", std::process::id(), scratch.as_raw_fd());
        let arguments = [
            "convert",
            "-p",
            "-U",
            "-O",
            "raw",
            "-S",
            "4k",
            "-t",
            "writeback",
        ]
        .map(OsString::from)
        .to_vec();
        let mut progress = |text: &[u8]| {
            if let (Some(report), Some(fraction)) = (&self.options.progress, last_fraction(text)) {
                report(Progress { fraction });
            }
        };
        let size_limit = virtual_bytes.saturating_add(1 << 20);
        let timeout = self.options.convert_timeout;
        self.run(
            arguments,
            input,
            Some(target),
            timeout,
            size_limit,
            &[0],
            &mut progress,
        )?;
        Ok(())
    }

    /// Runs qemu-img under limits; `success` lists the exit codes that count as such. Returns what it printed,
    /// showing `watch` each piece as it comes.
    #[expect(
        clippy::too_many_arguments,
        reason = "private, and each call names them"
    )]
    fn run(
        &self,
        arguments: Vec<OsString>,
        input: File,
        target: Option<String>,
        timeout: Duration,
        file_bytes_max: u64,
        success: &[i32],
        watch: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<u8>, ImageError> {
        let program =
            find_program(&self.options.qemu_img).ok_or_else(|| ImageError::ToolMissing {
                path: self.source.path().to_owned(),
                format: self.format,
            })?;
        let spec = self.image_spec(&input);
        let mut command = Command::new("/usr/bin/prlimit");
        command
            .arg(format!("--as={ADDRESS_SPACE_BYTES}"))
            .arg(format!("--cpu={}", timeout.as_secs().max(1)))
            .arg(format!("--fsize={file_bytes_max}"))
            .arg("--core=0")
            .arg("--")
            .arg(program)
            .args(arguments)
            .arg(format!("json:{spec}"))
            .args(target)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .map_err(|e| self.io("run prlimit and qemu-img on it", e))?;
        let finished = Running::new(child)
            .finish(timeout, watch)
            .map_err(|e| self.io("wait for qemu-img", e))?;
        match finished {
            None => Err(self.failed(format!("qemu-img was ended after {} s", timeout.as_secs()))),
            Some((status, stdout, _))
                if status.code().is_some_and(|code| success.contains(&code)) =>
            {
                Ok(stdout)
            }
            Some((status, _, stderr)) => {
                Err(self.failed(format!("qemu-img: {}", last_line(&stderr, status))))
            }
        }
    }

    fn failed(&self, what: String) -> ImageError {
        ImageError::Conversion {
            path: self.source.path().to_owned(),
            what,
        }
    }

    fn io(&self, action: &str, source: io::Error) -> ImageError {
        ImageError::Io {
            path: self.source.path().to_owned(),
            action: action.to_owned(),
            source,
        }
    }
}

/// The program's full path: the child gets an empty environment, so the search path is walked here.
fn find_program(program: &Path) -> Option<std::path::PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&search)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// A child that is ended when it is dropped, so that no error path leaves one behind.
struct Running {
    child: Child,
}

enum Piece {
    Out(Vec<u8>),
    Err(Vec<u8>),
}

impl Running {
    fn new(child: Child) -> Self {
        Self { child }
    }

    /// Waits for the end; `None` when the time is over first.
    #[expect(clippy::type_complexity, reason = "used in one place, right beside it")]
    fn finish(
        mut self,
        timeout: Duration,
        watch: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Option<(ExitStatus, Vec<u8>, Vec<u8>)>> {
        let deadline = Instant::now() + timeout;
        let (sender, pieces) = mpsc::sync_channel(16);
        let stdout = self.child.stdout.take().expect("stdout is piped");
        let stderr = self.child.stderr.take().expect("stderr is piped");
        let err_sender = sender.clone();
        // The readers end with the child's ends of the pipes or with the receiver, whichever goes first.
        thread::spawn(move || pump(stdout, |piece| sender.send(Piece::Out(piece)).is_ok()));
        thread::spawn(move || pump(stderr, |piece| err_sender.send(Piece::Err(piece)).is_ok()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Piece::Out(piece)) => {
                    watch(&piece);
                    keep(&mut out, &piece);
                }
                Ok(Piece::Err(piece)) => keep(&mut err, &piece),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // Both pipes are closed: it is about to be gone.
            thread::sleep(Duration::from_millis(5));
        };
        Ok(Some((status, out, err)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Errors mean that it has just ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pump(mut pipe: impl Read, mut send: impl FnMut(Vec<u8>) -> bool) {
    let mut buf = [0; 4096];
    while let Ok(len @ 1..) = pipe.read(&mut buf) {
        if !send(buf[..len].to_vec()) {
            break;
        }
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend_from_slice(&piece[..piece.len().min(room)]);
}

/// The last "(12.34/100%)" in what `qemu-img -p` printed, as a fraction.
fn last_fraction(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let end = text.rfind("/100%)")?;
    let begin = text[..end].rfind('(')? + 1;
    let percent: f64 = text[begin..end].trim().parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

/// What a failed program said last. It quotes a foreign file, so control characters are shown, not sent.
fn last_line(stderr: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => line
            .trim_start_matches("qemu-img: ")
            .chars()
            .take(500)
            .flat_map(char::escape_debug)
            .collect(),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn progress_is_the_last_percentage() {
        assert_eq!(
            last_fraction(b"    (1.00/100%)\r    (25.50/100%)\r"),
            Some(0.255)
        );
        assert_eq!(last_fraction(b"    (100.00/100%)\r\n"), Some(1.0));
        assert_eq!(last_fraction(b"("), None);
        assert_eq!(last_fraction(b"/100%)"), None);
    }

    #[test]
    fn a_child_that_does_not_end_is_ended() {
        let child = Command::new("sleep")
            .arg("1000")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let begun = Instant::now();
        assert!(
            Running::new(child)
                .finish(Duration::from_millis(50), &mut |_| {})
                .unwrap()
                .is_none()
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
