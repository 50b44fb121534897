//! Commands with a time limit, and where the product's programs are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The product's program `name`: in `SPLICE_BIN_DIR`, or beside the tests' own target folder.
pub fn program(name: &str) -> PathBuf {
    let folder = match std::env::var_os("SPLICE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe().expect("a running test has a path");
            let folder = own.parent().and_then(Path::parent);
            folder.expect("tests are in target/debug/deps").to_owned()
        }
    };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it with `cargo build --workspace`, or name its folder in SPLICE_BIN_DIR",
        path.display()
    );
    path
}

/// Puts `command` under a limit: coreutils' timeout ends it, and its exit code is then 124 or 137.
pub fn limited(path: &Path, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg(format!("{:.1}", limit.as_secs_f64()))
        .arg(path)
        .stdin(Stdio::null())
        .env("NO_COLOR", "1");
    for variable in ["SPLICE_CONFIG", "SPLICE_URL", "SPLICE_TOKEN", "SPLICE_CA"] {
        command.env_remove(variable);
    }
    command
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    /// The command as a user would type it.
    pub line: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it printed to stderr.
    pub err: String,
}

impl Ran {
    /// Of a command that has ended.
    pub fn new(line: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let ran = Self {
            line,
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        };
        assert!(!ran.err.contains("panicked"), "{}: {}", ran.line, ran.err);
        ran
    }

    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// What it printed; it must have succeeded.
    pub fn ok(self) -> String {
        assert!(
            self.succeeded(),
            "`{}` ended with {:?}: {} {}",
            self.line,
            self.code,
            self.err,
            self.out
        );
        self.out
    }

    /// It must have failed by itself, with one line of its own that holds all of `words`. Progress may stand before it.
    pub fn refused(&self, words: &[&str]) {
        assert!(
            matches!(self.code, Some(1..124)),
            "`{}` was to be refused and ended with {:?}: {} {}",
            self.line,
            self.code,
            self.out,
            self.err
        );
        let name = self.line.split(' ').next().unwrap_or_default();
        let own = format!("{name}: ");
        let said: Vec<_> = self.err.lines().filter(|l| l.starts_with(&own)).collect();
        assert!(
            said.len() == 1 && self.err.lines().last() == said.first().copied(),
            "`{}` is to end with one line of its own: {}",
            self.line,
            self.err
        );
        for word in words {
            assert!(
                said[0].contains(word),
                "`{}`: {:?} lacks {word:?}",
                self.line,
                said[0]
            );
        }
    }
}

/// Runs a program of the machine to its end.
pub fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A], limit: Duration) -> Ran {
    run_path(Path::new(name), arguments, limit)
}

/// Runs the program at `path` to its end.
pub fn run_path<A: AsRef<OsStr>>(path: &Path, arguments: &[A], limit: Duration) -> Ran {
    let output = limited(path, limit).args(arguments).output();
    let output = output.expect("coreutils' timeout is installed");
    Ran::new(line(path, arguments), &output)
}

/// As a user would type it.
pub fn line<A: AsRef<OsStr>>(path: &Path, arguments: &[A]) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let words = arguments.iter().map(AsRef::as_ref);
    std::iter::once(name)
        .chain(words)
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
