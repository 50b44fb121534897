//! A server on a socket in a folder of its own, and the real client programs.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_block::nbd::{Export, ExportMap, NbdOptions, NbdServer};
use vmm_block::{BlockDevice, RawFile};

pub struct Lab {
    // Before the folder, which holds its socket.
    pub server: NbdServer,
    pub exports: Arc<ExportMap>,
    pub folder: tempfile::TempDir,
}

impl Lab {
    pub fn new(options: NbdOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let exports = Arc::new(ExportMap::default());
        let server = NbdServer::new(Arc::clone(&exports) as _, options).unwrap();
        let lab = Self {
            server,
            exports,
            folder,
        };
        lab.server.listen_unix(&lab.socket()).unwrap();
        lab
    }

    /// A server with one export, `disk`.
    pub fn with(device: Arc<dyn BlockDevice>) -> Self {
        let lab = Self::new(NbdOptions::default());
        lab.add("disk", device);
        lab
    }

    pub fn with_raw_file(size_bytes: u64) -> (Self, PathBuf) {
        let lab = Self::new(NbdOptions::default());
        let path = lab.folder.path().join("disk.raw");
        lab.add(
            "disk",
            Arc::new(RawFile::create(&path, size_bytes).unwrap()),
        );
        (lab, path)
    }

    pub fn add(&self, name: &str, device: Arc<dyn BlockDevice>) -> Arc<Export> {
        let export = Export::new(name, "a test disk", device).unwrap();
        self.exports.insert(Arc::clone(&export)).unwrap();
        export
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }
}

/// Runs a client program, which must succeed, and returns what it printed.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let (success, output) = try_run(package, program, arguments);
    assert!(success, "{program} {arguments:?}: {output}");
    output
}

/// Runs a client program; whether it succeeded, and all that it printed.
pub fn try_run(package: &str, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} cannot be run ({error}); it comes with Debian's package {package}")
        });
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

pub fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    let output = run("qemu-utils", "qemu-io", &arguments);
    // qemu-io reports a pattern mismatch in words only.
    assert!(!output.contains("failed"), "{output}");
    output
}

pub fn qemu_img(arguments: &[&str]) -> String {
    run("qemu-utils", "qemu-img", arguments)
}

pub fn nbdinfo(arguments: &[&str]) -> String {
    run("libnbd-bin", "nbdinfo", arguments)
}

/// Waits until `condition` holds, at most ten seconds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "still not so after ten seconds: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that do not repeat within a megabyte, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
