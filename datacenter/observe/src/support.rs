//! A daemon's part of a support bundle: named texts, each of bounded length, each through the redactor.
//!
//! What cannot be had is no reason to give nothing: its text then says why.

use std::fmt::Display;
use std::fs;

use datacenter_api::{SupportFile, SupportReport};
use serde::Serialize;

use crate::redact::Redactor;

/// Longest text: an answer of a hundred branches' reports, and far more than anybody reads.
const FILE_BYTES_MAX: usize = 8 << 20;

/// See the module.
#[derive(Debug)]
pub struct Bundle {
    redactor: Redactor,
    report: SupportReport,
}

impl Bundle {
    /// Of a program, with what is to be said of the process and its host as `about.json`.
    pub fn new(program: &str, software: &str, now_unix_s: u64, redactor: Redactor) -> Self {
        let mut bundle = Self {
            redactor,
            report: SupportReport {
                program: program.to_owned(),
                software: software.to_owned(),
                taken_unix_s: now_unix_s,
                files: Vec::new(),
            },
        };
        let about: Result<_, std::convert::Infallible> =
            Ok(About::of_this_process(program, software));
        bundle.json("about.json", about);
        bundle
    }

    /// Adds a text.
    pub fn text(&mut self, name: &str, text: &str) {
        let cut = boundary(text, FILE_BYTES_MAX);
        let mut clean = self.redactor.text(&text[..cut]);
        if cut < text.len() {
            clean += "\n[the rest is left out]\n";
        }
        self.report.files.push(SupportFile {
            name: name.to_owned(),
            text: clean,
        });
    }

    /// Adds a value as JSON, or why it could not be had.
    pub fn json<T: Serialize, E: Display>(&mut self, name: &str, value: Result<T, E>) {
        let text = match value {
            Ok(value) => serde_json::to_string_pretty(&value).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        self.text(
            name,
            &text.unwrap_or_else(|why| format!("not available: {why}\n")),
        );
    }

    /// The whole.
    pub fn report(self) -> SupportReport {
        self.report
    }
}

/// The last boundary of a character that is not above `at`.
fn boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    let mut down = (0..=at).rev();
    down.find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The process and its host.
#[derive(Debug, Serialize)]
struct About {
    program: String,
    software: String,
    /// As one line, as it would be typed.
    command_line: String,
    pid: u32,
    open_files: Option<usize>,
    /// Of this process, as the kernel tells it (`/proc/self/status`).
    memory: Vec<String>,
    kernel: String,
    machine: String,
    processors: usize,
    load: String,
    host_memory: Vec<String>,
    host_uptime: String,
}

impl About {
    fn of_this_process(program: &str, software: &str) -> Self {
        let uname = rustix::system::uname();
        let arguments: Vec<String> = std::env::args_os()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        Self {
            program: program.to_owned(),
            software: software.to_owned(),
            command_line: arguments.join(" "),
            pid: std::process::id(),
            open_files: fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            memory: lines_of(
                "/proc/self/status",
                &["VmPeak", "VmRSS", "VmSwap", "Threads"],
            ),
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            load: line_of("/proc/loadavg"),
            host_memory: lines_of("/proc/meminfo", &["MemTotal", "MemAvailable", "SwapFree"]),
            host_uptime: line_of("/proc/uptime"),
        }
    }
}

fn line_of(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn lines_of(path: &str, names: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let wanted = text.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        names.contains(&name)
    });
    wanted
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_goes_through_the_redactor() {
        let redactor = Redactor::new(["open sesame".to_owned()]);
        let mut bundle = Bundle::new("splice-test", "1.2.3", 7, redactor);
        bundle.text("log.txt", "password=hunter2\nopen sesame\n");
        let value: Result<_, String> = Ok(serde_json::json!({ "token": "abc", "n": 1 }));
        bundle.json("status.json", value);
        let none: Result<u8, _> = Err("the catalog is closed, secret=abc");
        bundle.json("store.json", none);
        bundle.text("long.txt", &"é".repeat(FILE_BYTES_MAX));
        let report = bundle.report();
        let names: Vec<&str> = report.files.iter().map(|f| f.name.as_str()).collect();
        let expected = [
            "about.json",
            "log.txt",
            "status.json",
            "store.json",
            "long.txt",
        ];
        assert_eq!(names, expected);
        for file in &report.files[1..4] {
            for secret in ["hunter2", "open sesame", "abc"] {
                assert!(!file.text.contains(secret), "{secret} in {file:?}");
            }
        }
        assert!(report.files[0].text.contains("\"processors\""));
        assert!(
            report.files[3]
                .text
                .starts_with("not available: the catalog")
        );
        let long = &report.files[4].text;
        assert!(long.len() < FILE_BYTES_MAX + 100 && long.ends_with("left out]\n"));
    }
}
