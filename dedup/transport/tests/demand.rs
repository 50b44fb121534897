//! How long a guest waits: demand answers of 16 to 64 KiB beside a saturating fill, over lines that lose packets.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
                let answer: Vec<u8> = (0..bytes as u32).map(|i| ((i * 31) >> 3) as u8).collect();
                while send.send(&answer).await.is_ok() && fill {}
                let _ = send.finish();
            });
        }
    })
}

/// Asks for `bytes`, with repair or without, and says how long they took.
async fn demand(link: &Link, bytes: usize, repaired: bool) -> Duration {
    let begun = Instant::now();
    let mut request = vec![Class::Demand as u8];
    request.extend_from_slice(&(bytes as u32).to_le_bytes());
    let mut recv = if repaired {
        link.request(Class::Demand, &request).await.unwrap()
    } else {
        let (mut send, recv) = link.open(Class::Demand).await.unwrap();
        send.send(&request).await.unwrap();
        send.finish().unwrap();
        recv
    };
    let answer = recv.recv(1 << 20).await.unwrap().unwrap();
    let waited = begun.elapsed();
    assert_eq!(answer.len(), bytes);
    assert!(
        answer
            .iter()
            .zip(0u32..)
            .all(|(byte, i)| *byte == ((i * 31) >> 3) as u8)
    );
    waited
}

/// Keeps the line full until the link ends; returns what counts the bytes.
async fn saturate(link: &Link) -> (Arc<AtomicU64>, Vec<JoinHandle<()>>) {
    let came = Arc::new(AtomicU64::new(0));
    let mut fills = Vec::new();
    for _ in 0..6 {
        let (mut send, mut recv) = link.open(Class::Fill).await.unwrap();
        let mut request = vec![Class::Fill as u8];
        request.extend_from_slice(&(256u32 << 10).to_le_bytes());
        send.send(&request).await.unwrap();
        let came = Arc::clone(&came);
        fills.push(tokio::spawn(async move {
            let _send = send;
            while let Ok(Some(frame)) = recv.recv(1 << 20).await {
                came.fetch_add(frame.len() as u64, Ordering::Relaxed);
            }
        }));
    }
    (came, fills)
}

struct Measured {
    waits: Vec<Duration>,
    fill_mbit: f64,
}

impl Measured {
    fn at(&self, share: f64) -> f64 {
        let index = ((self.waits.len() - 1) as f64 * share).round() as usize;
        self.waits[index].as_secs_f64() * 1e3
    }
}

/// `count` demands of 16 to 64 KiB, about six a second.
async fn measure(line: Line, fill: bool, repaired: bool, count: u32) -> Measured {
    let (pair, _proxy) = line.pair().await;
    let _serving = serve(pair.datacenter.clone());
    // The path is known before anybody measures: start-up is somebody else's subject.
    let (came, fills) = saturate(&pair.branch).await;
    tokio::time::sleep(Duration::from_millis(u64::from(line.rtt_ms) * 20)).await;
    if !fill {
        fills.iter().for_each(JoinHandle::abort);
        tokio::time::sleep(Duration::from_millis(u64::from(line.rtt_ms) * 4)).await;
    }
    let begun = Instant::now();
    let before = came.load(Ordering::Relaxed);
    let mut flights = Vec::new();
    for i in 0..count {
        let bytes = [16 << 10, 24 << 10, 32 << 10, 64 << 10][i as usize % 4];
        let link = pair.branch.clone();
        flights.push(tokio::spawn(
            async move { demand(&link, bytes, repaired).await },
        ));
        tokio::time::sleep(Duration::from_millis(120 + u64::from(i * 7 % 80))).await;
    }
    let fill_bytes = came.load(Ordering::Relaxed) - before;
    let fill_mbit = fill_bytes as f64 * 8e-6 / begun.elapsed().as_secs_f64();
    let mut waits = Vec::new();
    for flight in flights {
        waits.push(flight.await.unwrap());
    }
    waits.sort();
    Measured { waits, fill_mbit }
}

/// A line that loses 8 % each way harms three of four answers of 24 KiB, and each of those takes two round trips or more. With repair
/// most take one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_lossy_line_most_answers_take_one_round_trip() {
    let _alone = alone();
    let line = Line {
        mbit: 50,
        rtt_ms: 400,
        loss: 8.0,
        burst: 1.0,
        queue_ms: 100,
    };
    let (pair, _proxy) = line.pair().await;
    let _serving = serve(pair.datacenter.clone());
    let (_, fills) = saturate(&pair.branch).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    fills.iter().for_each(JoinHandle::abort);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut quick = 0;
    for _ in 0..12 {
        // Half a round trip is left for a busy machine; a retransmission takes a whole one.
        let waited = demand(&pair.branch, 24 << 10, true).await;
        quick += u32::from(waited < Duration::from_millis(640));
    }
    assert!(quick >= 7, "{quick} of 12 took one round trip");
    assert!(pair.branch.stats().repairs_received > 0);
    assert!(pair.datacenter.stats().repairs_received > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_loses_nothing_carries_no_repair() {
    let _alone = alone();
    let line = Line {
        mbit: 100,
        rtt_ms: 20,
        loss: 0.0,
        burst: 1.0,
        queue_ms: 200,
    };
    let (pair, _proxy) = line.pair().await;
    let _serving = serve(pair.datacenter.clone());
    for i in 0..40 {
        demand(&pair.branch, (1 + i) << 10, true).await;
    }
    for link in [&pair.branch, &pair.datacenter] {
        if pair.datacenter.stats().lost_packets + pair.branch.stats().lost_packets == 0 {
            assert_eq!(link.stats().repairs_received, 0);
        }
    }
}

/// Repairs of streams that are over, were never opened or are somebody else's, and bytes that are nothing: the link does not care.
#[tokio::test]
async fn nonsense_in_datagrams_harms_nothing() {
    let pair = common::pair(&LinkTuning::default()).await;
    let _serving = serve(pair.datacenter.clone());
    demand(&pair.branch, 10_000, true).await;
    for link in [&pair.branch, &pair.datacenter] {
        for stream in (0u64..2000).chain([u64::MAX >> 2, u64::MAX]) {
            // Not the next ones, which this test uses: their own peer may well say what is in them.
            if (4..400).contains(&stream) {
                continue;
            }
            for tag in [0x41, 0x42, 0x43] {
                let mut datagram = vec![1, tag, 255];
                datagram.extend_from_slice(&stream.to_le_bytes());
                datagram.extend_from_slice(&(stream % 7).to_le_bytes());
                datagram.extend_from_slice(&[100, 0, 0, 0, 10, 0, 0]);
                datagram.extend_from_slice(&[stream as u8; 20]);
                link.send_datagram(datagram.into()).unwrap();
            }
        }
        link.send_datagram(bytes::Bytes::new()).unwrap();
    }
    for i in 0..30 {
        demand(&pair.branch, 1000 * (i + 1), true).await;
    }
}

/// Prints the waits: `cargo nextest run --workspace --test demand --run-ignored all --no-capture waits_by_line`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and is a measurement"]
async fn waits_by_line() {
    let _alone = alone();
    let count = std::env::var("DEMANDS").map_or(200, |n| n.parse().unwrap());
    for (mbit, rtt_ms, queue_ms) in [(20, 300, 300), (100, 100, 100)] {
        for (loss, burst) in [(0.0, 1.0), (1.0, 1.0), (1.0, 4.0)] {
            for (fill, repaired) in [(false, true), (true, true), (true, false)] {
                let line = Line {
                    mbit,
                    rtt_ms,
                    loss,
                    burst,
                    queue_ms,
                };
                let measured = measure(line, fill, repaired, count).await;
                println!(
                    "{mbit} Mbit/s {rtt_ms} ms {loss} % in bursts of {burst}, fill {fill} repair {repaired}: p50 {:.0} p90 {:.0} p99 {:.0} max {:.0} ms, fill {:.1} Mbit/s",
                    measured.at(0.5),
                    measured.at(0.9),
                    measured.at(0.99),
                    measured.at(1.0),
                    measured.fill_mbit
                );
            }
        }
    }
}
