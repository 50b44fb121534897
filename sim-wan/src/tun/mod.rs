//! A link between two network namespaces, through a TUN device in each: any program can use it.
//!
//! [`Namespaces`] makes the namespaces and takes them away again, `Device` is one TUN end, [`TunLink`] moves packets
//! between two ends through the model, and [`LinkSpec`] is a link's description as text.
//!
//! Needs root, /dev/net/tun and iproute2. Nothing outlives the process but what it did not make.

mod device;
mod link;
mod netns;
mod spec;

pub use device::Device;
pub use link::TunLink;
pub use netns::{Namespaces, inside};
pub use spec::LinkSpec;

/// Why a link could not be set up; each message says the way out.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No privilege.
    #[error(
        "a TUN link needs root; run it with sudo, or use `sim-wan proxy`, which needs no privilege"
    )]
    NotRoot,
    /// No TUN driver.
    #[error(
        "/dev/net/tun is missing; run `modprobe tun` (in a container: pass --device /dev/net/tun)"
    )]
    NoTun,
    /// iproute2 is not installed.
    #[error("the `ip` command is missing; install iproute2")]
    NoIp,
    /// A namespace to be created is there already.
    #[error(
        "namespace {0} exists; leave out --create to use it, or remove it with `ip netns del {0}`"
    )]
    NamespaceExists(String),
    /// A namespace to be used is not there.
    #[error("namespace {0} does not exist; pass --create, or run `ip netns add {0}`")]
    NamespaceMissing(String),
    /// The link's text is wrong.
    #[error("link {spec:?}: {problem}")]
    Spec {
        /// The text.
        spec: String,
        /// What is wrong.
        problem: String,
    },
    /// `ip` refused.
    #[error("`ip {arguments}`: {message}")]
    Ip {
        /// Its arguments.
        arguments: String,
        /// Its complaint.
        message: String,
    },
    /// A device of that name is in use in the namespace.
    #[error(
        "device {device} in namespace {namespace}: {source}; is another sim-wan running this link?"
    )]
    Device {
        /// Interface name.
        device: String,
        /// Where.
        namespace: String,
        /// Why.
        source: std::io::Error,
    },
    /// Any other system call.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it did not work.
        source: std::io::Error,
    },
}

impl TunError {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Checks what every TUN link needs, so that a missing piece is named before anything is changed.
///
/// # Errors
/// [`TunError::NotRoot`], [`TunError::NoTun`] or [`TunError::NoIp`].
pub fn check_privileges() -> Result<(), TunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(TunError::NotRoot);
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(TunError::NoTun);
    }
    ip(&["-V"]).map(drop)
}

/// Runs `ip` and returns what it printed.
fn ip(arguments: &[&str]) -> Result<String, TunError> {
    let output = match std::process::Command::new("ip").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(TunError::NoIp),
        Err(error) => return Err(TunError::io("running ip")(error)),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(TunError::Ip {
        arguments: arguments.join(" "),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
