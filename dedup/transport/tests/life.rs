//! A link's life: reached or not, restarted, cut, silent.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Realm, accept, loopback, pair, pair_through};
use dedup_transport::link::{Class, LinkError, LinkTuning};
use sim_wan::Profile;
use sim_wan::proxy::UdpProxy;

/// Settings under which a dead peer is noticed in 2 s.
fn impatient() -> LinkTuning {
    LinkTuning {
        keep_alive: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(2),
        ..LinkTuning::default()
    }
}

#[tokio::test]
async fn addresses_that_cannot_work_are_told_apart() {
    let realm = Realm::new();
    let client = realm.client(&LinkTuning::default());
    for bad in [
        "",
        "datacenter",
        "datacenter:",
        ":4433",
        "host:0",
        "host:99999",
    ] {
        let error = client.connect(bad).await.unwrap_err();
        assert!(
            matches!(error, LinkError::BadAddress { .. }) && error.is_permanent(),
            "{bad:?}: {error}"
        );
    }
    let error = client.connect("nowhere.invalid:4433").await.unwrap_err();
    assert!(matches!(error, LinkError::ResolveFailed { .. }), "{error}");
    assert!(!error.is_permanent());
}

#[tokio::test(start_paused = true)]
async fn silence_ends_in_a_time_out_that_names_the_address() {
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap().to_string();
    let realm = Realm::new();
    let error = realm
        .client(&LinkTuning::default())
        .connect(&addr)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no answer from {addr}: is the datacenter running, and does the network let UDP through?"
        )
    );
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_name_with_a_dead_address_still_connects() {
    // "localhost" is ::1 as well on most machines; the server is on 127.0.0.1 only.
    let realm = Realm::new();
    let tuning = LinkTuning::default();
    let server = realm.server(loopback(), &tuning);
    let name = format!("localhost:{}", server.local_addr().port());
    let client = realm.client(&tuning);
    let (_, link) = tokio::join!(accept(&server), client.connect(&name));
    assert_eq!(link.unwrap().remote_addr(), server.local_addr());
}

#[tokio::test]
async fn a_port_in_use_is_reported_by_bind() {
    let realm = Realm::new();
    let tuning = LinkTuning::default();
    let server = realm.server(loopback(), &tuning);
    let error = dedup_transport::link::LinkServer::bind(
        server.local_addr(),
        &realm.datacenter,
        &realm.ca.cert_pem(),
        &tuning,
    )
    .map(|_| ())
    .unwrap_err();
    assert!(matches!(error, LinkError::AddressInUse { .. }), "{error}");
}

#[tokio::test]
async fn an_orderly_restart_is_told_and_survived() {
    let pair = pair(&LinkTuning::default()).await;
    let addr = pair.server.local_addr();
    let started = Instant::now();
    pair.server.close("upgrade");
    assert!(pair.server.accept().await.is_none());
    let end = pair.branch.closed().await;
    assert_eq!(end.to_string(), "closed by the peer: upgrade");
    assert!(started.elapsed() < Duration::from_secs(2));
    pair.server.wait_idle().await;
    drop((pair.server, pair.datacenter));

    let tuning = LinkTuning::default();
    // The old socket goes with its task, a moment after the last handle.
    let server = retry(Duration::from_secs(5), || {
        dedup_transport::link::LinkServer::bind(
            addr,
            &pair.realm.datacenter,
            &pair.realm.ca.cert_pem(),
            &tuning,
        )
    })
    .await;
    let client = pair.realm.client(&tuning);
    let text = addr.to_string();
    let (_there, link) = tokio::join!(accept(&server), client.connect(&text));
    assert!(link.is_ok());
}

#[test]
fn a_crash_of_the_datacenter_is_noticed_when_it_is_back() {
    // The server has a runtime of its own, whose end says no goodbye, as a killed process says none.
    let tuning = LinkTuning {
        keep_alive: Duration::from_millis(300),
        ..LinkTuning::default()
    };
    let realm = Realm::new();
    let first = tokio::runtime::Runtime::new().unwrap();
    let second = tokio::runtime::Runtime::new().unwrap();
    let branch_side = tokio::runtime::Runtime::new().unwrap();
    let server = first.block_on(async { realm.server(loopback(), &tuning) });
    let addr = server.local_addr();
    let text = addr.to_string();
    let client = realm.client(&tuning);
    let dial = branch_side.spawn({
        let (client, text) = (client.clone(), text.clone());
        async move { client.connect(&text).await.unwrap() }
    });
    let there = first.block_on(accept(&server));
    let link = branch_side.block_on(dial).unwrap();
    first.shutdown_timeout(Duration::from_secs(5));
    // Without their runtime these only hold the socket.
    drop((server, there));

    let server = second.block_on(retry(Duration::from_secs(5), || {
        dedup_transport::link::LinkServer::bind(
            addr,
            &realm.datacenter,
            &realm.ca.cert_pem(),
            &tuning,
        )
    }));
    let restarted = Instant::now();
    let end = branch_side.block_on(link.closed());
    assert!(matches!(end, LinkError::PeerRestarted), "{end}");
    assert!(
        restarted.elapsed() < tuning.idle_timeout / 2,
        "noticed after {:?}",
        restarted.elapsed()
    );
    let dial = branch_side.spawn(async move { client.connect(&text).await.map(|_| ()) });
    let _there = second.block_on(accept(&server));
    branch_side.block_on(dial).unwrap().unwrap();
}

#[tokio::test]
async fn a_dead_line_is_noticed_at_both_ends_and_a_short_cut_is_not() {
    let tuning = impatient();
    let realm = Realm::new();
    let server = realm.server(loopback(), &tuning);
    let lan = Profile::named("lan").unwrap();
    let proxy = UdpProxy::spawn(loopback(), server.local_addr(), &lan, 1).unwrap();
    let pair = pair_through(realm, server, proxy.local_addr(), &tuning).await;

    proxy.cut();
    tokio::time::sleep(Duration::from_millis(700)).await;
    proxy.restore();
    let (mut send, _answer) = pair.branch.open(Class::Demand).await.unwrap();
    send.send(b"still there?").await.unwrap();
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    assert_eq!(recv.recv(100).await.unwrap().unwrap(), "still there?");

    proxy.cut();
    let started = Instant::now();
    let (here, there) = tokio::join!(pair.branch.closed(), pair.datacenter.closed());
    for error in [here, there] {
        assert!(matches!(error, LinkError::TimedOut { .. }), "{error}");
    }
    // RFC 9000 section 10.1: at least three probe timeouts, else the idle timeout.
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "noticed after {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn an_idle_link_stays_up_beyond_its_idle_timeout() {
    let tuning = impatient();
    let pair = pair(&tuning).await;
    let ended = tokio::time::timeout(tuning.idle_timeout * 2, pair.branch.closed()).await;
    assert!(ended.is_err(), "keep-alives hold it");
}

#[tokio::test]
async fn a_renewed_certificate_serves_the_next_link() {
    let pair = pair(&LinkTuning::default()).await;
    let renewed = pair
        .realm
        .ca
        .issue_datacenter(&[], Duration::from_secs(7200))
        .unwrap();
    pair.server.renew(&renewed).unwrap();
    assert!(pair.server.renew(&pair.realm.branch).is_err());
    let client = pair.realm.client(&LinkTuning::default());
    let addr = pair.server.local_addr().to_string();
    let (_there, link) = tokio::join!(accept(&pair.server), client.connect(&addr));
    assert!(link.is_ok());
    // The old link did not notice.
    assert!(pair.branch.open(Class::State).await.is_ok());
}

async fn retry<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T, LinkError>) -> T {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if started.elapsed() > patience => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
