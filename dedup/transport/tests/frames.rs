//! Frames on loopback: sizes around every threshold, limits, and streams that are given up.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::pair;
use dedup_transport::link::{Class, FRAME_BYTES_MAX, LinkError, LinkTuning};

const LIMIT: usize = 300_000;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test]
async fn frames_of_every_size_arrive_whole_and_in_order() {
    let pair = pair(&LinkTuning::default()).await;
    // Thresholds: empty, one packet, the piece handed to QUIC at once (64 KiB with and without its header), the limit.
    let piece = 64 * 1024;
    let sizes = [
        0,
        1,
        4,
        1200,
        piece - 5,
        piece - 4,
        piece - 3,
        piece,
        piece + 1,
        2 * piece - 4,
        LIMIT - 1,
        LIMIT,
        0,
        7,
    ];
    let (mut send, _answer) = pair.branch.open(Class::State).await.unwrap();
    let sender = tokio::spawn(async move {
        for size in sizes {
            let payload = pattern(size);
            send.send(&payload).await.unwrap();
            let (a, rest) = payload.split_at(size / 3);
            let (b, c) = rest.split_at(rest.len() / 2);
            send.send_parts(&[a, &[], b, c]).await.unwrap();
            let shared = Bytes::from(payload.clone());
            send.send_bytes(&[shared.slice(..size / 2), shared.slice(size / 2..)])
                .await
                .unwrap();
        }
        send.send_parts(&[]).await.unwrap();
        send.send_bytes(&[]).await.unwrap();
        send.finish().unwrap();
        send.delivered().await.unwrap();
    });
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    for size in sizes {
        for _ in 0..3 {
            let frame = recv.recv(LIMIT).await.unwrap().unwrap();
            assert!(frame == pattern(size), "a frame of {size} bytes");
        }
    }
    for _ in 0..2 {
        assert!(recv.recv(LIMIT).await.unwrap().unwrap().is_empty());
    }
    assert!(recv.recv(LIMIT).await.unwrap().is_none());
    assert!(recv.recv(LIMIT).await.unwrap().is_none(), "the end stays");
    sender.await.unwrap();
}

#[tokio::test]
async fn a_frame_one_byte_over_the_limit_is_refused() {
    let pair = pair(&LinkTuning::default()).await;
    let (mut send, _answer) = pair.branch.open(Class::State).await.unwrap();
    send.send(&pattern(LIMIT + 1)).await.unwrap();
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    let error = recv.recv(LIMIT).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a frame of 300001 bytes is over the limit of 300000"
    );
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_frame_over_the_senders_own_limit_is_not_begun() {
    let pair = pair(&LinkTuning::default()).await;
    let (mut send, _answer) = pair.branch.open(Class::State).await.unwrap();
    let half = Bytes::from(vec![0; FRAME_BYTES_MAX / 2 + 1]);
    let error = send.send_bytes(&[half.clone(), half]).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooLarge { .. }), "{error}");
    // The stream is still good.
    send.send(b"fine").await.unwrap();
    send.finish().unwrap();
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    assert_eq!(recv.recv(10).await.unwrap().unwrap(), "fine");
}

#[tokio::test]
async fn an_answer_that_is_dropped_unfinished_is_not_taken_for_whole() {
    let pair = pair(&LinkTuning::default()).await;
    let (mut send, mut answer) = pair.branch.open(Class::Demand).await.unwrap();
    send.send(b"request").await.unwrap();
    send.finish().unwrap();
    assert!(matches!(send.finish(), Err(LinkError::StreamClosed)));
    assert!(matches!(
        send.send(b"x").await,
        Err(LinkError::StreamClosed)
    ));
    let (mut reply, mut recv) = pair.datacenter.accept().await.unwrap();
    assert_eq!(recv.recv(100).await.unwrap().unwrap(), "request");
    assert!(recv.recv(100).await.unwrap().is_none());
    reply.send(b"first of two").await.unwrap();
    assert_eq!(answer.recv(100).await.unwrap().unwrap(), "first of two");
    drop(reply);
    let error = answer.recv(100).await.unwrap_err();
    assert!(matches!(error, LinkError::StreamCancelled), "{error}");
    // The link is none the worse.
    assert!(pair.branch.open(Class::Demand).await.is_ok());
}

#[tokio::test]
async fn a_send_that_is_dropped_midway_tears_the_stream_only() {
    let small = LinkTuning {
        window_bytes: 1 << 20,
        ..LinkTuning::default()
    };
    let pair = pair(&small).await;
    let (mut send, _answer) = pair.branch.open(Class::Fill).await.unwrap();
    let huge = vec![1; 8 << 20];
    // Nobody reads, so the window fills and the send waits.
    let cancelled = tokio::time::timeout(Duration::from_millis(300), send.send(&huge)).await;
    assert!(cancelled.is_err());
    assert!(matches!(
        send.send(b"x").await,
        Err(LinkError::StreamClosed)
    ));
    assert!(matches!(send.finish(), Err(LinkError::StreamClosed)));
    drop(send);
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    let error = recv.recv(16 << 20).await.unwrap_err();
    assert!(matches!(error, LinkError::StreamCancelled), "{error}");
    // Its window comes back for the next stream.
    let (mut send, _answer) = pair.branch.open(Class::Fill).await.unwrap();
    let (sent, received) = tokio::join!(send.send(&huge), async {
        let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
        recv.recv(16 << 20).await
    });
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap().len(), huge.len());
}

#[tokio::test]
async fn a_reader_that_stops_ends_the_sending() {
    let pair = pair(&LinkTuning::default()).await;
    let (mut send, _answer) = pair.branch.open(Class::Fill).await.unwrap();
    send.send(b"one").await.unwrap();
    let (_answer, mut recv) = pair.datacenter.accept().await.unwrap();
    recv.stop();
    let error = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match send.send(&[0; 1000]).await {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        }
    })
    .await
    .unwrap();
    assert!(matches!(error, LinkError::StreamCancelled), "{error}");
}

#[tokio::test]
async fn open_requests_are_bounded_by_the_datacenter() {
    let pair = pair(&LinkTuning::default()).await;
    let mut open = Vec::new();
    for _ in 0..1024 {
        let (mut send, recv) = pair.branch.open(Class::Fill).await.unwrap();
        send.send(b"r").await.unwrap();
        open.push((send, recv));
    }
    let one_more = pair.branch.open(Class::Demand);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), one_more)
            .await
            .is_err()
    );
    // Some end, others may begin; QUIC returns the room in eighths of the limit.
    open.truncate(1024 - 256);
    let accepting = tokio::spawn({
        let datacenter = pair.datacenter.clone();
        async move { while datacenter.accept().await.is_ok() {} }
    });
    tokio::time::timeout(Duration::from_secs(10), pair.branch.open(Class::Demand))
        .await
        .unwrap()
        .unwrap();
    accepting.abort();
}

#[tokio::test]
async fn bytes_are_counted_by_the_class_of_who_asked() {
    let pair = pair(&LinkTuning::default()).await;
    let (mut ask, mut answer) = pair.branch.open(Class::Boot).await.unwrap();
    ask.send(&pattern(1000)).await.unwrap();
    ask.finish().unwrap();
    let (mut send, mut recv) = pair.datacenter.accept().await.unwrap();
    recv.recv(LIMIT).await.unwrap().unwrap();
    send.set_class(Class::Boot);
    send.send(&pattern(100_000)).await.unwrap();
    send.finish().unwrap();
    answer.recv(LIMIT).await.unwrap().unwrap();
    // Each frame has a length of four bytes before it.
    let branch = pair.branch.stats().classes;
    let datacenter = pair.datacenter.stats().classes;
    let boot = Class::Boot as usize;
    assert_eq!((branch.sent[boot], branch.received[boot]), (1004, 100_004));
    assert_eq!(
        (datacenter.sent[boot], datacenter.received[boot]),
        (100_004, 0)
    );
    let mut others = branch.each().filter(|(class, ..)| *class != Class::Boot);
    assert!(others.all(|(_, sent, received)| sent + received == 0));
}
