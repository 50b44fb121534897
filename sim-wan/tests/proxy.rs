//! The proxies over loopback, with real sockets.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use sim_wan::Profile;
use sim_wan::model::Shape;
use sim_wan::proxy::{TcpProxy, UdpProxy};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A scheduler of a busy machine may be this late; delays are never early.
const LATE: Duration = Duration::from_millis(150);

fn clean(mbit: f64, rtt_ms: u64, queue_ms: u64) -> Profile {
    let one_way = Duration::from_millis(rtt_ms) / 2;
    let shape = Shape::clean(
        (mbit * 1e6) as u64,
        one_way,
        Duration::from_millis(queue_ms),
    );
    Profile {
        name: "test".to_owned(),
        summary: String::new(),
        down: shape.clone(),
        up: shape,
    }
}

fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(ANY).unwrap();
    socket.connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// Echoes datagrams for as long as the test runs.
fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    address
}

fn round_trip(socket: &UdpSocket, text: &[u8]) -> Duration {
    let begun = Instant::now();
    socket.send(text).unwrap();
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], text);
    begun.elapsed()
}

#[test]
fn udp_takes_the_round_trip_and_counts_the_wire() {
    let proxy = UdpProxy::spawn(ANY, udp_echo(), &clean(50.0, 30, 60), 1).unwrap();
    let socket = client(proxy.local_addr());
    for _ in 0..5 {
        let rtt = round_trip(&socket, &[7; 100]);
        assert!(
            rtt >= Duration::from_millis(30) && rtt < Duration::from_millis(30) + LATE,
            "{rtt:?}"
        );
    }
    let stats = proxy.stats();
    assert_eq!(
        (stats.up.offered_bytes, stats.up.delivered_bytes),
        (640, 640),
        "100 bytes and 28 of headers"
    );
    assert_eq!(stats.wire_bytes(), 1280);
    assert!(stats.up.is_conserved() && stats.down.is_conserved());
}

#[test]
fn each_client_gets_its_own_answers() {
    let proxy = UdpProxy::spawn(ANY, udp_echo(), &clean(50.0, 10, 60), 1).unwrap();
    let clients: Vec<_> = (0..5u8).map(|n| (n, client(proxy.local_addr()))).collect();
    for (n, socket) in &clients {
        socket.send(&[*n; 10]).unwrap();
    }
    for (n, socket) in &clients {
        let mut buffer = [0; 64];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 10);
        assert_eq!(buffer[..10], [*n; 10]);
    }
}

#[test]
fn udp_is_paced_at_the_rate() {
    let target = UdpSocket::bind(ANY).unwrap();
    target
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let proxy =
        UdpProxy::spawn(ANY, target.local_addr().unwrap(), &clean(6.0, 0, 1000), 1).unwrap();
    let socket = client(proxy.local_addr());
    for _ in 0..100 {
        socket.send(&[0; 1472]).unwrap();
    }
    let mut buffer = [0; 2048];
    target.recv(&mut buffer).unwrap();
    let first = Instant::now();
    for _ in 1..100 {
        target.recv(&mut buffer).unwrap();
    }
    // 99 packets of 2 ms; the first may have been seen late.
    let span = first.elapsed();
    assert!(
        span > Duration::from_millis(198) - LATE / 4 && span < Duration::from_millis(198) + LATE,
        "{span:?}"
    );
}

#[test]
fn a_cut_silences_udp_and_a_restore_brings_it_back() {
    let proxy = UdpProxy::spawn(ANY, udp_echo(), &clean(50.0, 10, 60), 1).unwrap();
    let socket = client(proxy.local_addr());
    round_trip(&socket, b"before");
    proxy.cut();
    socket.send(b"lost").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let error = socket.recv(&mut [0; 16]).unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    assert_eq!(proxy.stats().state, sim_wan::LinkState::Cut);
    assert_eq!(proxy.stats().up.dropped_outage.packets, 1);
    proxy.restore();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    round_trip(&socket, b"after");
    assert_eq!(proxy.stats().state, sim_wan::LinkState::Up);
}

#[test]
fn a_profile_changes_under_way() {
    let proxy = UdpProxy::spawn(ANY, udp_echo(), &clean(50.0, 4, 60), 1).unwrap();
    let socket = client(proxy.local_addr());
    round_trip(&socket, b"short");
    proxy.set_profile(&clean(50.0, 400, 60));
    assert!(round_trip(&socket, b"long") >= Duration::from_millis(400));
    proxy.set_profile(&clean(50.0, 4, 60));
    assert!(round_trip(&socket, b"short again") < Duration::from_millis(400));
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = UdpSocket::bind(ANY).unwrap();
    let error = UdpProxy::spawn(taken.local_addr().unwrap(), ANY, &clean(1.0, 1, 10), 1)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

/// Serves one connection after another with `work`.
fn tcp_service(work: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            work(stream);
        }
    });
    address
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn tcp_carries_bytes_whole_at_the_rate() {
    let sent = pattern(1_000_000);
    let body = sent.clone();
    let service = tcp_service(move |mut stream| stream.write_all(&body).unwrap());
    let proxy = TcpProxy::spawn(ANY, service, &clean(20.0, 40, 60), 1).unwrap();
    let begun = Instant::now();
    let mut stream = connect(proxy.local_addr());
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let took = begun.elapsed();
    assert!(received == sent);
    // A million bytes and 40 of headers per 1,460 at 20 Mbit/s, and two round trips: the handshake, its last third, the first byte.
    let exact = Duration::from_secs_f64(1_000_000.0 * (1500.0 / 1460.0) * 8.0 / 20e6 + 0.080);
    assert!(
        took >= exact - Duration::from_millis(5) && took < exact + LATE,
        "{took:?}, not {exact:?}"
    );
    let stats = proxy.stats();
    assert!(
        stats.down.delivered_bytes > 1_027_000 && stats.down.delivered_bytes < 1_040_000,
        "{stats:?}"
    );
}

#[test]
fn tcp_stalls_in_a_cut_and_loses_nothing() {
    let sent = pattern(400_000);
    let service = tcp_service(|mut stream| {
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap();
        stream.write_all(&body).unwrap();
    });
    let proxy = TcpProxy::spawn(ANY, service, &clean(20.0, 20, 60), 1).unwrap();
    let stream = connect(proxy.local_addr());
    let mut writer = stream.try_clone().unwrap();
    let body = sent.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&body).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while proxy.stats().up.delivered_bytes < 50_000 {
        assert!(Instant::now() < deadline, "nothing flows");
        thread::sleep(Duration::from_millis(1));
    }
    proxy.cut();
    let before = proxy.stats().up.delivered_bytes;
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        proxy.stats().up.delivered_bytes,
        before,
        "bytes moved over a cut link"
    );
    proxy.restore();
    let mut received = Vec::new();
    let mut reader = stream;
    reader.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == sent);
    assert_eq!(
        proxy.stats().up.dropped_packets() + proxy.stats().down.dropped_packets(),
        0
    );
}

#[test]
fn a_refusing_target_resets_the_client_after_a_round_trip() {
    let free = TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let proxy = TcpProxy::spawn(ANY, free, &clean(20.0, 60, 60), 1).unwrap();
    let begun = Instant::now();
    let mut stream = connect(proxy.local_addr());
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn many_connections_share_the_link() {
    const CONNECTIONS: usize = 8;
    const BYTES: usize = 200_000;
    // None begins before all are there, so that what is seen is the link's doing and not the scheduler's.
    let together = Arc::new(Barrier::new(CONNECTIONS));
    let service = tcp_service(move |mut stream| {
        let together = together.clone();
        thread::spawn(move || {
            together.wait();
            stream.write_all(&pattern(BYTES)).unwrap();
        });
    });
    let proxy = TcpProxy::spawn(ANY, service, &clean(40.0, 10, 5), 1).unwrap();
    let delivered_before_the_first_end = AtomicU64::new(u64::MAX);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            let mut stream = connect(proxy.local_addr());
            let (proxy, least) = (&proxy, &delivered_before_the_first_end);
            scope.spawn(move || {
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                least.fetch_min(proxy.stats().down.delivered_bytes, Ordering::Relaxed);
                assert!(received == pattern(BYTES));
            });
        }
    });
    // One after the other, the first would end when its own bytes are there; side by side, when nearly all are.
    let delivered = delivered_before_the_first_end.into_inner();
    assert!(delivered > (CONNECTIONS * BYTES / 2) as u64, "{delivered}");
}
