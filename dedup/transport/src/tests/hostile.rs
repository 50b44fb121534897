//! Streams from a peer that does not keep to the framing, and networks that deliver it in pieces.

use std::time::Duration;

use super::{Realm, meet};
use crate::link::{Accepted, FrameRecv, Link, LinkError, LinkServer};

/// A raw sender towards a framed receiver.
struct Raw {
    send: quinn::SendStream,
    recv: FrameRecv,
    _links: (Link, Link),
    _server: LinkServer,
}

async fn raw() -> Raw {
    let realm = Realm::new(5);
    let server = realm.server();
    let (accepted, link) = meet(&server, &realm.client()).await;
    let (Accepted::Branch(_, there), link) = (accepted.unwrap(), link.unwrap()) else {
        panic!("an enrolled branch is not a join");
    };
    let (mut send, _) = link.connection().open_bi().await.unwrap();
    // A stream exists for the peer from its first byte on; the tests below continue behind this empty frame.
    send.write_all(&[0; 4]).await.unwrap();
    let (_, mut recv) = there.accept().await.unwrap();
    assert_eq!(recv.recv(0).await.unwrap().unwrap().len(), 0);
    Raw {
        send,
        recv,
        _links: (link, there),
        _server: server,
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    for torn in [
        &[5][..],
        &[5, 0, 0],
        &[5, 0, 0, 0],
        &[5, 0, 0, 0, b'a', b'b'],
    ] {
        let mut raw = raw().await;
        raw.send.write_all(torn).await.unwrap();
        raw.send.finish().unwrap();
        let error = raw.recv.recv(100).await.unwrap_err();
        assert!(matches!(error, LinkError::FrameTruncated), "{error}");
    }
}

#[tokio::test]
async fn an_announced_length_over_the_limit_is_refused_before_its_bytes_come() {
    let mut raw = raw().await;
    raw.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    for _ in 0..2 {
        let error = raw.recv.recv(1 << 20).await.unwrap_err();
        assert!(
            matches!(
                error,
                LinkError::FrameTooLarge {
                    bytes: 0xFFFF_FFFF,
                    bytes_max: 0x10_0000
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_claim_of_gigabytes_costs_only_what_arrives() {
    // Were the claim believed, a few hundred streams would exhaust the machine.
    let mut raw = raw().await;
    raw.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    raw.send.write_all(b"but only this").await.unwrap();
    raw.send.finish().unwrap();
    let before = resident_bytes();
    let error = raw.recv.recv(usize::MAX).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTruncated), "{error}");
    assert!(resident_bytes().saturating_sub(before) < 256 << 20);
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_nothing() {
    let mut raw = raw().await;
    let frame: Vec<u8> = [&[6, 0, 0, 0][..], b"abcdef"].concat();
    for byte in frame {
        // Dropped each time, in the header and in the body.
        let early = tokio::time::timeout(Duration::from_millis(5), raw.recv.recv(100)).await;
        assert!(early.is_err(), "there is no whole frame yet");
        raw.send.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(raw.recv.recv(100).await.unwrap().unwrap(), "abcdef");
}

#[tokio::test]
async fn a_knocker_that_says_nothing_delays_nobody() {
    let realm = Realm::new(5);
    let server = realm.server();
    let addr = server.local_addr();
    let noise = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [0, 1, 20, 1200, 1472, 9000] {
        noise.send_to(&vec![0xC3; length], addr).unwrap();
    }
    let client = realm.client();
    let text = addr.to_string();
    // One that is accepted from the socket but not established yet.
    let (waiting, _) = tokio::join!(
        server.accept(),
        tokio::time::timeout(Duration::from_millis(100), client.connect(&text))
    );
    let (accepted, link) = meet(&server, &client).await;
    assert!(accepted.is_ok() && link.is_ok());
    drop(waiting);
}

fn resident_bytes() -> usize {
    // In pages of 4 KiB (proc_pid_statm(5)).
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
