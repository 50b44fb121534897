//! UDP sockets with buffers fit for a fast link.
//!
//! A burst that the socket buffer cannot hold is lost as surely as on the wire: at 1 Gbit/s the kernel's usual 208 KiB
//! last 1.7 ms. Root raises the limit for itself; otherwise the kernel's ceiling holds and is reported once.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Once};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::LinkError;

/// Bytes asked for in each direction: 64 ms at 1 Gbit/s.
const BUFFER_BYTES: usize = 8 << 20;

/// Binds a UDP socket; an unspecified IPv6 address takes IPv4 peers too.
pub(super) fn bind(addr: SocketAddr) -> Result<UdpSocket, LinkError> {
    open(addr).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => LinkError::AddressInUse {
            addr: addr.to_string(),
        },
        _ => LinkError::Socket {
            addr: addr.to_string(),
            source: Arc::new(error),
        },
    })
}

/// A socket for reaching `peer`, on a port of the system's choice.
///
/// # Errors
/// [`LinkError::Unreachable`] when this machine has no route to the address: known at once, not after a timeout.
pub(super) fn towards(peer: SocketAddr) -> Result<UdpSocket, LinkError> {
    let any = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // Connecting a UDP socket looks up the route and sends nothing. The link's own socket stays unconnected, so that it
    // survives a change of route.
    UdpSocket::bind(any)
        .and_then(|probe| probe.connect(peer))
        .map_err(|source| LinkError::Unreachable {
            addr: peer.to_string(),
            source: Arc::new(source),
        })?;
    bind(any)
}

fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &addr)?;
    let socket = UdpSocket::from(socket);
    enlarge_buffers(&socket);
    Ok(socket)
}

/// Best effort: a small buffer makes a slow link, not a broken one.
fn enlarge_buffers(socket: &UdpSocket) {
    static WARNED: Once = Once::new();
    let _ = sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES));
    let _ = sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES));
    // The kernel reports twice what it grants, for its own bookkeeping (socket(7)).
    let receive = sockopt::socket_recv_buffer_size(socket).unwrap_or(0) / 2;
    let send = sockopt::socket_send_buffer_size(socket).unwrap_or(0) / 2;
    if receive < BUFFER_BYTES || send < BUFFER_BYTES {
        WARNED.call_once(|| {
            tracing::warn!(
                receive_bytes = receive,
                send_bytes = send,
                wanted_bytes = BUFFER_BYTES,
                "small UDP socket buffers will lose bursts on a fast link: set the sysctls net.core.rmem_max and net.core.wmem_max"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_the_way_out() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{} is in use by another program: stop it, or set another listen address for the link",
                taken.local_addr().unwrap()
            )
        );
        assert!(error.is_permanent());
    }

    #[test]
    fn buffers_grow_as_far_as_the_kernel_lets_them() {
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = sockopt::socket_recv_buffer_size(&plain).unwrap();
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(sockopt::socket_recv_buffer_size(&socket).unwrap() >= before);
    }

    #[test]
    fn an_unspecified_ipv6_address_takes_both_families() {
        let Ok(socket) = bind("[::]:0".parse().unwrap()) else {
            return; // A machine without IPv6 has nothing to check.
        };
        let port = socket.local_addr().unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", ("127.0.0.1", port)).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1);
    }
}
