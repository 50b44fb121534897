//! A desktop's screen in a browser: a WebSocket on one side, the machine's RFB socket on the other, bytes between.
//!
//! Nothing is parsed here: the browser and the machine speak RFB with each other, and a guest's pixels are the browser's to be careful with. Invariant: a connection has
//! used up a ticket and has the cookie of the ticket's session, from a page of this very server (its `Origin`); it ends when its user may not look any
//! more. Both ways are bounded: of a machine no more is read than the browser takes, and a browser's message is never longer than
//! [`MESSAGE_BYTES_MAX`]. A browser that says nothing for [`SILENCE`], though it is asked, is gone.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::{ApiError, App, Known, blocking};
use crate::portal::viewers::Why;

/// Longest message of a browser, in bytes. What people type and point at is small; a pasted text comes in parts.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes that are read of a machine at once.
const READ_BYTES: usize = 32 << 10;
/// Bytes that wait for a slow browser, beside the kernel's: several reads.
const WAITING_BYTES_MAX: usize = 512 << 10;
/// How often a browser is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// After which it is gone.
const SILENCE: Duration = Duration::from_secs(90);

/// Close codes, which the page knows (RFC 6455, 7.4.2: 4000 and above are ours).
const TAKEN_OVER: u16 = 4001;
const NO_RIGHT: u16 = 4002;
const MACHINE_ENDED: u16 = 4003;

#[derive(serde::Deserialize)]
pub(super) struct Ask {
    ticket: String,
}

pub(super) async fn show(
    State(portal): State<App>,
    known: Known,
    Query(ask): Query<Ask>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    if !is_own_page(&headers) {
        return Err(ApiError(
            StatusCode::FORBIDDEN,
            "screens are for the portal's own page: Origin and Host differ".to_owned(),
        ));
    }
    let screen = blocking(&portal, move |portal| {
        portal.screen(&ask.ticket, &known.secret)
    })
    .await?;
    let machine = UnixStream::connect(&screen.socket).await;
    let machine = machine.map_err(|error| {
        let text = format!(
            "the screen of {:?} does not answer ({error}); connect again",
            screen.name
        );
        ApiError(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    let upgrade = upgrade
        .protocols(["binary"])
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .write_buffer_size(0)
        .max_write_buffer_size(WAITING_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |browser| async move {
        let entered = portal.enter(&screen);
        let said = carry(browser, machine, entered.end).await;
        portal.leave(&screen, entered.number);
        tracing::info!(user = screen.user, desktop = screen.name, "{said}");
    }))
}

/// Whether the page that opens this is of the host that it is opened at. Browsers say so, and scripts cannot change it.
fn is_own_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.strip_prefix("https://"));
    origin.is_some_and(|origin| text(header::HOST) == Some(origin))
}

/// Why bytes are carried no longer.
#[derive(Debug, Clone, Copy)]
enum End {
    Browser,
    Machine,
    Told(Why),
}

/// Carries bytes both ways until one side ends, or it is told to.
async fn carry(
    browser: WebSocket,
    machine: UnixStream,
    end: oneshot::Receiver<Why>,
) -> &'static str {
    let (mut to_browser, mut from_browser) = browser.split();
    let (mut from_machine, mut to_machine) = machine.into_split();
    let up = async {
        loop {
            let Ok(Some(Ok(message))) = tokio::time::timeout(SILENCE, from_browser.next()).await
            else {
                return End::Browser;
            };
            match message {
                Message::Binary(bytes) => {
                    if to_machine.write_all(&bytes).await.is_err() {
                        return End::Machine;
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                // RFB is bytes.
                Message::Text(_) | Message::Close(_) => return End::Browser,
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; READ_BYTES];
        let mut ask = tokio::time::interval(ASK_EVERY);
        loop {
            let message = tokio::select! {
                read = from_machine.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return End::Machine,
                    Ok(len) => Message::Binary(Bytes::copy_from_slice(&buffer[..len])),
                },
                _ = ask.tick() => Message::Ping(Bytes::new()),
            };
            // Waits while the browser takes nothing: nothing is read of the machine meanwhile.
            if to_browser.send(message).await.is_err() {
                return End::Browser;
            }
        }
    };
    let ended = tokio::select! {
        ended = up => ended,
        ended = down => ended,
        // A portal that is gone says nothing.
        why = end => End::Told(why.unwrap_or(Why::NoRight)),
    };
    let (code, said) = match ended {
        End::Browser => return "looks no longer",
        End::Machine => (MACHINE_ENDED, "the desktop's machine has ended"),
        End::Told(Why::TakenOver) => (TAKEN_OVER, "another browser has taken over"),
        End::Told(Why::NoRight) => (
            NO_RIGHT,
            "the session is over, or the desktop is yours no longer",
        ),
    };
    let close = Message::Close(Some(CloseFrame {
        code,
        reason: Utf8Bytes::from_static(said),
    }));
    // One that takes nothing is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(2), to_browser.send(close)).await;
    said
}
