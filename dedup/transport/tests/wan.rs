//! Links over an emulated WAN: priorities under load, and a satellite's round trip.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Pair, Realm, loopback, pair_through};
use dedup_transport::link::{Class, Congestion, LinkTuning};
use sim_wan::Profile;
use sim_wan::proxy::{Proxy, UdpProxy};

const FRAME: usize = 256 * 1024;

/// These tests measure time, and one at a time is what two cores can carry, in this process and in others.
fn alone() -> std::fs::File {
    let lock =
        std::fs::File::create(std::env::temp_dir().join("splice-transport-wan.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

async fn pair_over(profile: &Profile, tuning: &LinkTuning) -> (Pair, Proxy) {
    let realm = Realm::new();
    let server = realm.server(loopback(), tuning);
    let proxy = UdpProxy::spawn(loopback(), server.local_addr(), profile, 7).unwrap();
    let addr = proxy.local_addr();
    (pair_through(realm, server, addr, tuning).await, proxy)
}

/// The datacenter answers each request with as many frames as it asks for, in the class it asks for.
fn serve(pair: &Pair) {
    let link = pair.datacenter.clone();
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = link.accept().await {
            tokio::spawn(async move {
                let request = recv.recv(2).await.unwrap().unwrap();
                send.set_class(if request[0] == 3 {
                    Class::Demand
                } else {
                    Class::Fill
                });
                let frame = vec![request[0]; FRAME];
                for _ in 0..request[1] {
                    if send.send(&frame).await.is_err() {
                        return; // The test is over.
                    }
                }
                let _ = send.finish();
            });
        }
    });
}

/// Fetches frames and says when the last one came.
async fn fetch(link: dedup_transport::link::Link, class: Class, frames: u8) -> Instant {
    let (mut send, mut recv) = link.open(class).await.unwrap();
    send.send(&[class as u8, frames]).await.unwrap();
    send.finish().unwrap();
    let mut came = 0;
    while let Some(frame) = recv.recv(FRAME).await.unwrap() {
        assert_eq!(frame.len(), FRAME);
        came += 1;
    }
    assert_eq!(came, frames);
    Instant::now()
}

/// Eight fills of 3 MiB saturate 50 Mbit/s for four seconds; in the midst a guest asks for 1 MiB. Alone it would take
/// 0.17 s and a round trip; as one of nine equals 1.5 s.
async fn demand_amid_fills(tuning: &LinkTuning) {
    let dsl = Profile::named("dsl").unwrap().lossless();
    let (pair, _proxy) = pair_over(&dsl, tuning).await;
    serve(&pair);
    let fills: Vec<_> = (0..8)
        .map(|_| tokio::spawn(fetch(pair.branch.clone(), Class::Fill, 12)))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = Instant::now();
    let answered = fetch(pair.branch.clone(), Class::Demand, 4).await;
    let waited = answered - asked;
    // Fills are answered one after the other. What was under way already may end meanwhile, and that is one fill's end at most.
    let mut ended = Vec::new();
    for fill in fills {
        ended.push(fill.await.unwrap());
    }
    let meanwhile = ended.iter().filter(|at| (asked..answered).contains(*at));
    assert!(
        meanwhile.count() <= 1,
        "fills were served before the demand"
    );
    let behind = ended.iter().filter(|at| **at > answered).count();
    assert!(behind >= 4, "only {behind} fills were left to wait");
    assert!(
        waited < Duration::from_millis(700),
        "the demand took {waited:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demand_passes_fills_that_wait_in_the_send_buffer() {
    let _alone = alone();
    demand_amid_fills(&LinkTuning::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demand_passes_fills_that_wait_for_the_send_buffer() {
    let _alone = alone();
    // So small that the fills have taken all of it, and wait for more, when the demand comes.
    let small = LinkTuning {
        window_bytes: 1 << 20,
        ..LinkTuning::default()
    };
    demand_amid_fills(&small).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demand_that_nobody_reads_does_not_stop_the_fills() {
    let _alone = alone();
    let small = LinkTuning {
        window_bytes: 2 << 20,
        ..LinkTuning::default()
    };
    let lan = Profile::named("lan").unwrap();
    let (pair, _proxy) = pair_over(&lan, &small).await;
    serve(&pair);
    let (mut send, unread) = pair.branch.open(Class::Demand).await.unwrap();
    send.send(&[Class::Demand as u8, 40]).await.unwrap();
    send.finish().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Half of the window is stuck with the unread stream; the rest serves, at the lower classes' share.
    tokio::time::timeout(
        Duration::from_secs(20),
        fetch(pair.branch.clone(), Class::Fill, 4),
    )
    .await
    .expect("fills get their share");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_satellite_handshake_needs_no_retransmission() {
    let _alone = alone();
    let satellite = Profile::named("vsat-geo").unwrap().lossless();
    let started = Instant::now();
    let (pair, proxy) = pair_over(&satellite, &LinkTuning::default()).await;
    let took = started.elapsed();
    // One round trip for TLS, one half for the greeting behind the branch's last flight, and the way back.
    assert!(
        (Duration::from_millis(1200)..Duration::from_millis(1800)).contains(&took),
        "the handshake took {took:?}"
    );
    for link in [&pair.branch, &pair.datacenter] {
        assert_eq!(link.stats().lost_packets, 0);
    }
    assert!(pair.branch.stats().rtt >= Duration::from_millis(600));
    drop(proxy);
}

/// Losses leave holes in every stream, and quinn ends a connection when one stream has too many of them. Without a cap on
/// the stream window this line does that within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_loses_a_third_slows_a_link_but_does_not_end_it() {
    let _alone = alone();
    let text = "[bad]\nsummary = \"long, fast, lossy\"\ndown_mbit = 200\nup_mbit = 200\nrtt_ms = 600\nloss_percent = 30\nqueue_ms = 300";
    let profiles = sim_wan::Profiles::parse(text).unwrap();
    let mut bad = profiles.find("bad").unwrap().clone();
    bad.up.loss = bad.clone().lossless().up.loss; // Requests and acknowledgements get through.
    let (pair, _proxy) = pair_over(&bad, &LinkTuning::default()).await;
    serve(&pair);
    let fill = tokio::spawn(fetch(pair.branch.clone(), Class::Fill, 240));
    let begun = Instant::now();
    while pair.datacenter.stats().lost_packets < 1000 {
        let second = tokio::time::timeout(Duration::from_secs(1), pair.branch.closed());
        if let Ok(error) = second.await {
            panic!("it ended: {error}");
        }
        let stats = pair.datacenter.stats();
        assert!(begun.elapsed() < Duration::from_secs(90), "{stats:?}");
    }
    fill.abort();
}

/// Prints what each congestion control gets out of the lossy profiles: `cargo test -p dedup-transport --test wan -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and is a measurement"]
async fn throughput_by_congestion_control() {
    let _alone = alone();
    for name in [
        "lan",
        "dsl",
        "lte",
        "intercontinental",
        "vsat-geo",
        "bad-day",
    ] {
        for congestion in [
            Congestion::Delivery,
            Congestion::Bbr,
            Congestion::Cubic,
            Congestion::NewReno,
        ] {
            let profile = Profile::named(name).unwrap();
            let tuning = LinkTuning {
                congestion,
                ..LinkTuning::default()
            };
            let (pair, _proxy) = pair_over(&profile, &tuning).await;
            serve(&pair);
            let started = Instant::now();
            let patience = Duration::from_secs(120);
            let frames = 80;
            let fetches: Vec<_> = (0..4)
                .map(|_| tokio::spawn(fetch(pair.branch.clone(), Class::Fill, frames / 4)))
                .collect();
            let done = tokio::time::timeout(patience, async {
                for fetch in fetches {
                    fetch.await.unwrap();
                }
            })
            .await;
            let took = done.as_ref().map_or(patience, |_| started.elapsed());
            let mbit = f64::from(frames) * FRAME as f64 * 8.0 / 1e6 / took.as_secs_f64();
            let whole = if done.is_ok() { "" } else { " (gave up)" };
            let stats = pair.datacenter.stats();
            println!(
                "{name:>16} {congestion:>8}: {mbit:6.1} Mbit/s{whole}, lost {} packets, sent {} bytes, mtu {}",
                stats.lost_packets, stats.sent_bytes, stats.mtu
            );
        }
    }
}
