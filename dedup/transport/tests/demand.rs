//! How long a guest waits: demand answers of 16 to 64 KiB beside a saturating fill, over lines that lose packets.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Pair, Realm, loopback, pair_through};
use dedup_transport::link::{Class, Link, LinkTuning};
use sim_wan::Profiles;
use sim_wan::proxy::{Proxy, UdpProxy};
use tokio::task::JoinHandle;

/// These tests measure time, and one at a time is what two cores can carry, in this process and in others.
fn alone() -> std::fs::File {
    let lock =
        std::fs::File::create(std::env::temp_dir().join("splice-transport-wan.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

/// A line: Mbit/s, round trip in ms, loss in percent each way, mean burst of lost packets, queue in ms.
#[derive(Clone, Copy)]
struct Line {
    mbit: u32,
    rtt_ms: u32,
    loss: f64,
    burst: f64,
    queue_ms: u32,
}

impl Line {
    async fn pair(self) -> (Pair, Proxy) {
        let Self {
            mbit,
            rtt_ms,
            loss,
            burst,
            queue_ms,
        } = self;
        let text = format!(
            "[line]\nsummary = \"a line\"\ndown_mbit = {mbit}\nup_mbit = {mbit}\nrtt_ms = {rtt_ms}\nloss_percent = {loss}\nloss_burst_packets = {burst}\nqueue_ms = {queue_ms}"
        );
        let profiles = Profiles::parse(&text).unwrap();
        let tuning = LinkTuning::default();
        let realm = Realm::new();
        let server = realm.server(loopback(), &tuning);
        let profile = profiles.find("line").unwrap();
        let proxy = UdpProxy::spawn(loopback(), server.local_addr(), profile, 11).unwrap();
        let addr = proxy.local_addr();
        (pair_through(realm, server, addr, &tuning).await, proxy)
    }
}

/// The datacenter answers a request of class and length with a frame of that length, and for a fill with frames for ever.
fn serve(link: Link) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = link.accept().await {
            tokio::spawn(async move {
                let Ok(Some(request)) = recv.recv(64).await else {
                    return;
                };
                let bytes = u32::from_le_bytes(request[1..5].try_into().unwrap()) as usize;
                let fill = request[0] == Class::Fill as u8;
                send.set_class(if fill { Class::Fill } else { Class::Demand });
                // Not all alike, so that a byte in the wrong place is noticed.
                let answer: Vec<u8> = (0..bytes as u32).map(|i| (i * 31 >> 3) as u8).collect();
                while send.send(&answer).await.is_ok() && fill {}
                let _ = send.finish();
            });
        }
    })
}

/// Asks for `bytes` and says how long they took.
async fn demand(link: &Link, bytes: usize) -> Duration {
    let begun = Instant::now();
    let mut request = vec![Class::Demand as u8];
    request.extend_from_slice(&(bytes as u32).to_le_bytes());
    let mut recv = if std::env::var_os("NO_REPAIR").is_some() {
        let (mut send, recv) = link.open(Class::Demand).await.unwrap();
        send.send(&request).await.unwrap();
        send.finish().unwrap();
        recv
    } else {
        link.request(Class::Demand, &request).await.unwrap()
    };
    let answer = recv.recv(1 << 20).await.unwrap().unwrap();
    let waited = begun.elapsed();
    assert_eq!(answer.len(), bytes);
    assert!(
        answer
            .iter()
            .zip(0u32..)
            .all(|(byte, i)| *byte == (i * 31 >> 3) as u8)
    );
    waited
}

/// Keeps the line full; returns what counts the bytes.
async fn saturate(link: &Link) -> std::sync::Arc<std::sync::atomic::AtomicU64> {
    let came = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    for _ in 0..6 {
        let (mut send, mut recv) = link.open(Class::Fill).await.unwrap();
        let mut request = vec![Class::Fill as u8];
        request.extend_from_slice(&(256u32 << 10).to_le_bytes());
        send.send(&request).await.unwrap();
        let came = std::sync::Arc::clone(&came);
        tokio::spawn(async move {
            let _send = send;
            while let Ok(Some(frame)) = recv.recv(1 << 20).await {
                came.fetch_add(frame.len() as u64, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    came
}

struct Measured {
    waits: Vec<Duration>,
    fill_mbit: f64,
}

impl Measured {
    fn at(&self, share: f64) -> Duration {
        self.waits[((self.waits.len() - 1) as f64 * share).round() as usize]
    }
}

/// `count` demands of 16 to 64 KiB, about six a second.
async fn measure(line: Line, fill: bool, count: u32) -> Measured {
    let (pair, _proxy) = line.pair().await;
    let _serving = serve(pair.datacenter.clone());
    // The path is known before anybody measures: start-up is somebody else's subject.
    let came = saturate(&pair.branch).await;
    tokio::time::sleep(Duration::from_millis(u64::from(line.rtt_ms) * 12)).await;
    let (pair, _proxy, came) = if fill {
        (pair, _proxy, came)
    } else {
        // A fill that ends leaves an idle path that is known.
        pair.datacenter.stats();
        (pair, _proxy, came)
    };
    let _ = fill;
    let begun = Instant::now();
    let before = came.load(std::sync::atomic::Ordering::Relaxed);
    let mut flights = Vec::new();
    for i in 0..count {
        let bytes = [16 << 10, 24 << 10, 32 << 10, 64 << 10][i as usize % 4];
        let link = pair.branch.clone();
        flights.push(tokio::spawn(async move { demand(&link, bytes).await }));
        tokio::time::sleep(Duration::from_millis(120 + u64::from(i * 7 % 80))).await;
    }
    let fill_mbit = (came.load(std::sync::atomic::Ordering::Relaxed) - before) as f64 * 8e-6
        / begun.elapsed().as_secs_f64();
    let mut waits = Vec::new();
    for flight in flights {
        waits.push(flight.await.unwrap());
    }
    waits.sort();
    let stats = pair.datacenter.stats();
    eprintln!("{stats:?}");
    Measured { waits, fill_mbit }
}

/// Prints the waits: `cargo nextest run --workspace -E 'test(waits_by_line)' --run-ignored all --no-capture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and is a measurement"]
async fn waits_by_line() {
    let _alone = alone();
    let count = std::env::var("DEMANDS").map_or(200, |n| n.parse().unwrap());
    for (mbit, rtt_ms, queue_ms) in [(20, 300, 300), (100, 100, 100)] {
        for loss in [0.0, 1.0] {
            let line = Line {
                mbit,
                rtt_ms,
                loss,
                burst: 1.0,
                queue_ms,
            };
            let measured = measure(line, true, count).await;
            println!(
                "{mbit} Mbit/s {rtt_ms} ms {loss} %: p50 {:?} p90 {:?} p99 {:?} max {:?}, fill {:.1} Mbit/s",
                measured.at(0.5),
                measured.at(0.9),
                measured.at(0.99),
                measured.at(1.0),
                measured.fill_mbit
            );
        }
    }
}
