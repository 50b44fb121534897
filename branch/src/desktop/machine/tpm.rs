//! A desktop's TPM: swtpm, a process of its own beside QEMU. Its state is in the desktop's folder and stays when the machine ends.
//!
//! swtpm ends by itself when QEMU, its only client, is gone.

use std::os::unix::fs::DirBuilderExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{MachineError, MachineSpec};

/// How long swtpm may take until its socket is there.
const START: Duration = Duration::from_secs(10);

/// Starts the TPM of a desktop and waits until its socket is there.
///
/// # Errors
/// swtpm is not installed, or does not start.
pub(super) fn start(spec: &MachineSpec) -> Result<std::process::Child, MachineError> {
    let (state, socket) = (spec.files.tpm_state(), spec.files.tpm_socket());
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(&state);
    made.map_err(spec.io("the TPM's folder"))?;
    let mut command = Command::new("swtpm");
    command.args(["socket", "--tpm2", "--terminate", "--tpmstate"]);
    command.arg(format!("dir={},mode=0600", state.display()));
    command.arg("--ctrl");
    command.arg(format!("type=unixio,path={},mode=0600", socket.display()));
    let way_out =
        "install Debian's package swtpm, or assign the desktop's pool without a TPM (--no-tpm)";
    let mut child = spec.spawn(command, way_out, Vec::new())?;
    let begun = Instant::now();
    while !socket.exists() {
        let has_ended = matches!(child.try_wait(), Ok(Some(_)));
        if has_ended || begun.elapsed() > START {
            let _ = child.kill();
            let _ = child.wait();
            let (name, log) = (spec.name.clone(), spec.last_words());
            return Err(MachineError::Tpm { name, log });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}
