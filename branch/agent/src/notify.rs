//! Tells systemd that the agent has done what others wait for (sd_notify(3)). Without systemd nothing is told.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the desktop may let people log on.
///
/// # Errors
/// systemd cannot be told.
pub fn ready() -> io::Result<()> {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    socket.send_to_addr(b"READY=1", &address)?;
    Ok(())
}
