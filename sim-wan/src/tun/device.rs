//! One TUN device inside a namespace. The kernel removes it when its file descriptor closes, however we end.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{TunError, inside, ip};

/// MTU of both ends, in bytes of IP packet.
pub(super) const MTU: usize = 1500;

/// The device's own transmit ring, in packets. Large, so that a burst waits for the model and every drop is counted
/// there (the kernel's default of 500 would drop a burst unseen).
const RING_PACKETS: &str = "10000";

/// A configured TUN device: packets the kernel routes to it are read from `fd`, packets written to `fd` arrive.
#[derive(Debug)]
pub struct Device {
    pub(super) fd: OwnedFd,
    /// Interface name.
    pub name: String,
    /// The namespace it is in.
    pub namespace: String,
}

impl Device {
    /// Creates the device in `namespace`, gives it `address` with `prefix` and brings it up.
    ///
    /// # Errors
    /// The namespace is missing, the name or the address is in use, or no privilege.
    pub fn create(
        namespace: &str,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<Self, TunError> {
        let only_ipv4 = address.is_ipv4();
        let opened = inside(namespace, || open(name, only_ipv4))?;
        let fd = opened.map_err(|source| TunError::Device {
            device: name.to_owned(),
            namespace: namespace.to_owned(),
            source,
        })?;
        let address = format!("{address}/{prefix}");
        ip(&[
            "-n",
            namespace,
            "link",
            "set",
            name,
            "mtu",
            "1500",
            "txqueuelen",
            RING_PACKETS,
        ])?;
        let mut add = vec!["-n", namespace, "addr", "add", &address, "dev", name];
        if !only_ipv4 {
            // Nobody else can have the address on a link of two; detection would hold it back for a second.
            add.push("nodad");
        }
        ip(&add)?;
        ip(&["-n", namespace, "link", "set", name, "up"])?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    /// Packets that the kernel dropped because the device's ring was full, before the model saw them. Anything but
    /// zero means that the emulator was starved of CPU and a measurement should be repeated.
    ///
    /// # Errors
    /// The device is gone.
    pub fn ring_drops(&self) -> Result<u64, TunError> {
        let text = ip(&[
            "-n",
            &self.namespace,
            "-s",
            "-j",
            "link",
            "show",
            "dev",
            &self.name,
        ])?;
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        Ok(parsed[0]["stats64"]["tx"]["dropped"].as_u64().unwrap_or(0))
    }
}

/// Opens /dev/net/tun in the calling thread's namespace.
fn open(name: &str, only_ipv4: bool) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call; the fd is ours.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    if only_ipv4 {
        // Router solicitations and multicast reports of an unused protocol would show up in the counters. The file
        // is missing in kernels without IPv6, where there is nothing to switch off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    }
    Ok(file.into())
}
