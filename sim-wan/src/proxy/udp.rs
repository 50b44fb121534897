//! The UDP proxy: one thread moves datagrams between clients and the target through one link.
//!
//! Each client address gets a socket of its own towards the target, so that the target can tell clients apart.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::{PACE, Proxy, Stop, any_like, ip_header};
use crate::link::{Lane, SharedLink};
use crate::model::Mode;
use crate::profile::Profile;
use crate::sys::{be_punctual, wait};

/// Clients known at once; the longest idle one is forgotten for a new one. Each costs one socket.
const FLOWS_MAX: usize = 256;

/// Datagrams read from one socket before the others get their turn.
const BATCH: usize = 64;

/// Asked of the kernel for each socket, so that drops happen in the model and not in a socket's buffer.
const SOCKET_BUFFER_BYTES: libc::c_int = 8 << 20;

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// IP payload of a full packet on the link; what is larger is counted as fragments.
const FRAGMENT_BYTES: u64 = 1480;

/// Carries UDP through a link; see [`super`] for what it counts.
pub struct UdpProxy;

impl UdpProxy {
    /// Starts a proxy that receives on `listen` (port 0: any free one) and sends on to `target`.
    ///
    /// # Errors
    /// As bind(2); `AddrInUse` when the port is taken.
    pub fn spawn(
        listen: SocketAddr,
        target: SocketAddr,
        profile: &Profile,
        seed: u64,
    ) -> io::Result<Proxy> {
        Self::spawn_named(
            &format!("udp-{}", listen.port()),
            listen,
            target,
            profile,
            seed,
        )
    }

    /// As [`UdpProxy::spawn`], with a name for the control socket.
    ///
    /// # Errors
    /// As [`UdpProxy::spawn`].
    pub fn spawn_named(
        name: &str,
        listen: SocketAddr,
        target: SocketAddr,
        profile: &Profile,
        seed: u64,
    ) -> io::Result<Proxy> {
        let socket = open(listen)?;
        let local = socket.local_addr()?;
        let shared = Arc::new(SharedLink::new(name, profile, Mode::Datagram, seed)?);
        let link = shared.clone();
        Proxy::start(shared, local, move |stop| {
            let mut run = Run {
                link: &link,
                socket,
                target,
                flows: Flows::default(),
                buffer: vec![0; DATAGRAM_BYTES_MAX],
            };
            if let Err(error) = run.until(stop) {
                link.fail(format!("UDP proxy: {error}"));
            }
        })
    }
}

#[derive(Clone)]
struct Datagram {
    flow: u64,
    payload: Vec<u8>,
}

struct Flow {
    client: SocketAddr,
    socket: UdpSocket,
    last_used: Duration,
}

#[derive(Default)]
struct Flows {
    by_id: HashMap<u64, Flow>,
    by_client: HashMap<SocketAddr, u64>,
    next_id: u64,
}

impl Flows {
    fn of(&mut self, client: SocketAddr, target: SocketAddr, now: Duration) -> io::Result<u64> {
        if let Some(id) = self.by_client.get(&client) {
            if let Some(flow) = self.by_id.get_mut(id) {
                flow.last_used = now;
            }
            return Ok(*id);
        }
        if self.by_id.len() >= FLOWS_MAX
            && let Some((&idle, _)) = self.by_id.iter().min_by_key(|(_, flow)| flow.last_used)
            && let Some(flow) = self.by_id.remove(&idle)
        {
            self.by_client.remove(&flow.client);
        }
        let socket = open(any_like(target.ip()))?;
        socket.connect(target)?;
        self.next_id += 1;
        self.by_id.insert(
            self.next_id,
            Flow {
                client,
                socket,
                last_used: now,
            },
        );
        self.by_client.insert(client, self.next_id);
        Ok(self.next_id)
    }
}

struct Run<'a> {
    link: &'a SharedLink<Datagram>,
    socket: UdpSocket,
    target: SocketAddr,
    flows: Flows,
    buffer: Vec<u8>,
}

impl Run<'_> {
    fn until(&mut self, stop: &Stop) -> io::Result<()> {
        be_punctual();
        while !stop.is_set() {
            let begun = self.link.clock.now();
            self.receive_up(begun);
            self.receive_down(begun);
            let worked = self.deliver();
            if worked {
                thread::sleep(PACE.saturating_sub(self.link.clock.now() - begun));
            }
            self.sleep(stop)?;
        }
        Ok(())
    }

    fn receive_up(&mut self, now: Duration) {
        for _ in 0..BATCH {
            // An error here is an ICMP report about an earlier datagram, or nothing to read.
            let Ok((length, client)) = self.socket.recv_from(&mut self.buffer) else {
                return;
            };
            let Ok(flow) = self.flows.of(client, self.target, now) else {
                continue;
            };
            let payload = self.buffer[..length].to_vec();
            offer(
                self.link,
                &self.link.up,
                Datagram { flow, payload },
                self.target.ip(),
            );
        }
    }

    fn receive_down(&mut self, now: Duration) {
        for (&flow, peer) in &mut self.flows.by_id {
            for _ in 0..BATCH {
                let Ok(length) = peer.socket.recv(&mut self.buffer) else {
                    break;
                };
                peer.last_used = now;
                let payload = self.buffer[..length].to_vec();
                offer(
                    self.link,
                    &self.link.down,
                    Datagram { flow, payload },
                    self.target.ip(),
                );
            }
        }
    }

    /// Sends on what has arrived; true if there was anything. A full socket buffer or a vanished receiver loses the
    /// datagram after the link has delivered it, as a host does.
    fn deliver(&mut self) -> bool {
        let mut worked = false;
        while let Some(datagram) = arrived(self.link, &self.link.up) {
            worked = true;
            if let Some(flow) = self.flows.by_id.get(&datagram.flow) {
                let _ = flow.socket.send(&datagram.payload);
            }
        }
        while let Some(datagram) = arrived(self.link, &self.link.down) {
            worked = true;
            if let Some(flow) = self.flows.by_id.get(&datagram.flow) {
                let _ = self.socket.send_to(&datagram.payload, flow.client);
            }
        }
        worked
    }

    fn sleep(&self, stop: &Stop) -> io::Result<()> {
        let next = [&self.link.up, &self.link.down]
            .into_iter()
            .filter_map(|lane| lane.pipe().next_event())
            .min();
        let timeout = next.map(|at| at.saturating_sub(self.link.clock.now()));
        let bells = [&stop.bell, &self.link.up.bell, &self.link.down.bell];
        let mut fds: Vec<_> = bells
            .iter()
            .map(|bell| PollFd::new(*bell, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(&self.socket, PollFlags::IN));
        fds.extend(
            self.flows
                .by_id
                .values()
                .map(|flow| PollFd::new(&flow.socket, PollFlags::IN)),
        );
        wait(&mut fds, timeout)?;
        self.link.up.bell.silence();
        self.link.down.bell.silence();
        Ok(())
    }
}

fn offer(link: &SharedLink<Datagram>, lane: &Lane<Datagram>, datagram: Datagram, peer: IpAddr) {
    let bytes = wire_bytes(datagram.payload.len(), peer);
    let mut pipe = lane.pipe();
    let now = link.clock.now();
    pipe.enqueue(now, datagram, bytes);
}

fn arrived(link: &SharedLink<Datagram>, lane: &Lane<Datagram>) -> Option<Datagram> {
    let mut pipe = lane.pipe();
    let now = link.clock.now();
    pipe.poll(now)
}

/// Bytes of IP packets that a datagram takes: UDP header, and one IP header for each fragment.
fn wire_bytes(payload: usize, peer: IpAddr) -> u64 {
    let udp = payload as u64 + 8;
    udp + ip_header(peer) * udp.div_ceil(FRAGMENT_BYTES)
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    for (forced, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        // The forced variant needs privilege; without it the kernel's own limit applies.
        if !set_option(&socket, forced) {
            set_option(&socket, plain);
        }
    }
    Ok(socket)
}

fn set_option(socket: &UdpSocket, option: libc::c_int) -> bool {
    let value = SOCKET_BUFFER_BYTES;
    // SAFETY: the option takes one c_int, whose address and size are passed; the fd is open.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    done == 0
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn headers_are_counted_per_fragment() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(wire_bytes(0, v4), 28);
        assert_eq!(wire_bytes(1472, v4), 1500);
        assert_eq!(wire_bytes(1473, v4), 1473 + 8 + 40);
        assert_eq!(wire_bytes(100, IpAddr::V6(Ipv6Addr::LOCALHOST)), 148);
    }
}
