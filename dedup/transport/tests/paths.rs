//! What one link learns of its path reaches the next, at both ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Realm, accept, loopback};
use dedup_transport::congestion::{PathMemory, PathRecord};
use dedup_transport::link::{Class, Link, LinkTuning};
use sim_wan::Profile;
use sim_wan::proxy::UdpProxy;

const FRAME: usize = 256 << 10;

#[derive(Default)]
struct Noted(Mutex<HashMap<Vec<u8>, PathRecord>>);

impl PathMemory for Noted {
    fn load(&self, key: &[u8]) -> Option<PathRecord> {
        self.0.lock().unwrap().get(key).copied()
    }

    fn store(&self, key: &[u8], record: &PathRecord) {
        self.0.lock().unwrap().insert(key.to_owned(), *record);
    }
}

/// Sends `frames` frames one way over a stream of its own.
async fn send(from: &Link, to: &Link, frames: usize) {
    let (mut out, _back) = from.open(Class::Fill).await.unwrap();
    let sending = async {
        for _ in 0..frames {
            out.send(&vec![7; FRAME]).await.unwrap();
        }
        out.finish().unwrap();
    };
    let receiving = async {
        let (_back, mut into) = to.accept().await.unwrap();
        let mut came = 0;
        while into.recv(FRAME).await.unwrap().is_some() {
            came += 1;
        }
        assert_eq!(came, frames);
    };
    tokio::join!(sending, receiving);
}

/// Waits, at most ten seconds, for a record under `key`.
async fn noted(memory: &Noted, key: &[u8]) -> PathRecord {
    for _ in 0..200 {
        if let Some(record) = memory.load(key) {
            return record;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_keep_what_a_link_measured_under_the_others_name() {
    let realm = Realm::new();
    let tuning = LinkTuning::default();
    let server = realm.server(loopback(), &tuning);
    let at_datacenter = Arc::new(Noted::default());
    server.remember_paths(Arc::clone(&at_datacenter) as Arc<dyn PathMemory>);
    let dsl = Profile::named("dsl").unwrap().lossless();
    let proxy = UdpProxy::spawn(loopback(), server.local_addr(), &dsl, 7).unwrap();
    let addr = proxy.local_addr().to_string();
    let at_branch = Arc::new(Noted::default());
    let client = realm
        .client(&tuning)
        .remembering(Arc::clone(&at_branch) as Arc<dyn PathMemory>);

    let (datacenter, branch) = tokio::join!(accept(&server), client.connect(&addr));
    let branch = branch.unwrap();
    send(&datacenter, &branch, 16).await;
    send(&branch, &datacenter, 8).await;
    assert!(datacenter.path().rate() > 0);
    branch.close("done");
    drop((branch, datacenter));

    let down = noted(&at_datacenter, &[5; 16]).await;
    let up = noted(&at_branch, addr.as_bytes()).await;
    // 30 ms and 50 against 10 Mbit/s; a busy machine may make it slower, nothing makes it faster.
    for record in [down, up] {
        assert!(record.rtt >= Duration::from_millis(29), "{record:?}");
        assert!(record.mtu >= 1200, "{record:?}");
    }
    assert!(up.rate < 10_000_000 / 8 * 11 / 10, "{up:?}");
    assert!(down.rate < 50_000_000 / 8 * 11 / 10, "{down:?}");

    // The next link takes them up: a tenth of a second after the handshake it has measured nothing, but begins with half of a path.
    let fast = PathRecord {
        rate: 50_000_000 / 8,
        rtt: Duration::from_millis(30),
        ..down
    };
    at_datacenter.store(&[5; 16], &fast);
    let (datacenter, branch) = tokio::join!(accept(&server), client.connect(&addr));
    let branch = branch.unwrap();
    send(&datacenter, &branch, 1).await;
    assert!(
        datacenter.stats().cwnd > 60_000,
        "a window of {} bytes is none of a remembered path",
        datacenter.stats().cwnd
    );
    drop((branch, proxy));
}
