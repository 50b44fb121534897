//! The files of a desktop's folder. Each has one name, whichever machine runs.

use std::path::{Path, PathBuf};

/// Longest Unix socket path that Linux takes.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(PathBuf);

impl Files {
    /// Those in the folder `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The serial console's socket.
    pub fn serial_socket(&self) -> PathBuf {
        self.0.join("serial.sock")
    }

    /// The serial console's log.
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }

    /// The screen's socket, for viewers that speak RFB (VNC).
    pub fn screen_socket(&self) -> PathBuf {
        self.0.join("screen.sock")
    }

    /// The screen's socket, for viewers that speak SPICE; QEMU only.
    pub fn spice_socket(&self) -> PathBuf {
        self.0.join("spice.sock")
    }

    /// The socket by which the machine is asked: splice-vmm's control socket, or QEMU's monitor.
    pub fn control_socket(&self, is_qemu: bool) -> PathBuf {
        self.0
            .join(if is_qemu { "qmp.sock" } else { "control.sock" })
    }

    /// The socket at which the branch server serves the disk over vhost-user.
    pub fn disk_socket(&self) -> PathBuf {
        self.0.join("disk.sock")
    }

    /// The port of the agent inside, a socket that the machine makes.
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// The socket at which the branch server serves the user volume over vhost-user.
    pub fn user_disk_socket(&self) -> PathBuf {
        self.0.join("user.sock")
    }

    /// What the machine says of itself.
    pub fn machine_log(&self) -> PathBuf {
        self.0.join("machine.log")
    }

    /// The TPM's socket.
    pub fn tpm_socket(&self) -> PathBuf {
        self.0.join("tpm.sock")
    }

    /// What the TPM keeps.
    pub fn tpm_state(&self) -> PathBuf {
        self.0.join("tpm")
    }

    /// What UEFI keeps.
    pub fn efi_vars(&self) -> PathBuf {
        self.0.join("efi-vars.fd")
    }

    /// Sockets that a machine makes.
    pub fn machine_sockets(&self) -> [PathBuf; 7] {
        [
            self.tpm_socket(),
            self.serial_socket(),
            self.screen_socket(),
            self.spice_socket(),
            self.control_socket(true),
            self.control_socket(false),
            self.agent_socket(),
        ]
    }

    /// The socket whose path is too long for Linux, if one is.
    pub fn too_long(&self) -> Option<PathBuf> {
        let longest = self.machine_sockets().into_iter();
        let longest = longest.max_by_key(|path| path.as_os_str().len())?;
        (longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX).then_some(longest)
    }
}
