//! A task for each machine: it connects to the agent's port, listens, and hands orders over. It ends with the machine, and what it breaks off begins anew.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use branch_guest::Lines;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::session::{Heard, Session};
use super::{Directory, Facts, Guests, ORDERS_MAX, Order, Taken};

/// How often it is looked which machines run, and what is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a guest may take to read what is said to it. What waits in the socket's own buffer is more than is ever said.
const SAY: Duration = Duration::from_secs(5);
/// What answering a greeting counts as, in bytes heard: it has the catalog read. A guest that greets without end is answered four times a second.
const GREETING_BYTES: u64 = 2048;
/// Read at a time.
const READ_BYTES: usize = 4096;

/// Where a machine has its agent's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPort {
    /// The desktop.
    pub name: String,
    /// The port's socket.
    pub socket: PathBuf,
    /// Tells this run of the machine from others.
    pub run: u64,
}

/// Attends to the agents of all machines that run, until `cancel`.
pub async fn watch(directory: Arc<dyn Directory>, guests: Arc<Guests>, cancel: CancellationToken) {
    let mut attended: HashMap<(String, u64), CancellationToken> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&directory);
        let ports = tokio::task::spawn_blocking(move || worker.ports()).await;
        // That the catalog cannot be read is told where machines are looked after.
        let Ok(Some(ports)) = ports else {
            continue;
        };
        attended.retain(|(name, run), task| {
            let is_there = ports
                .iter()
                .any(|port| port.name == *name && port.run == *run);
            if !is_there {
                task.cancel();
            }
            is_there
        });
        for port in ports {
            let key = (port.name.clone(), port.run);
            if attended.contains_key(&key) {
                continue;
            }
            let task = cancel.child_token();
            attended.insert(key, task.clone());
            let (directory, guests) = (Arc::clone(&directory), Arc::clone(&guests));
            tokio::spawn(attend(directory, guests, port, task));
        }
    }
}

/// Attends to one machine's agent.
pub(super) async fn attend(
    directory: Arc<dyn Directory>,
    guests: Arc<Guests>,
    port: GuestPort,
    cancel: CancellationToken,
) {
    let (sender, mut orders) = mpsc::channel(ORDERS_MAX);
    let taken = guests.take(&port.name, sender);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = converse(&directory, &port, &taken, &mut orders) => {}
        }
        taken.show_alone();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn say(write: &mut OwnedWriteHalf, line: &[u8]) -> std::io::Result<()> {
    match tokio::time::timeout(SAY, write.write_all(line)).await {
        Ok(written) => written,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// One connection, from its beginning to its end.
async fn converse(
    directory: &Arc<dyn Directory>,
    port: &GuestPort,
    taken: &Taken,
    orders: &mut mpsc::Receiver<Order>,
) -> std::io::Result<()> {
    let (mut read, mut write) = UnixStream::connect(&port.socket).await?.into_split();
    // The server before may have been stopped in the midst of a line.
    say(&mut write, b"\n").await?;
    let begun = Instant::now();
    let now_ms = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut session = Session::default();
    let mut lines = Lines::default();
    let mut allowance = Allowance::new(0);
    let mut heard_unix_ms = 0;
    let mut answer = None;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut buf = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            read = read.read(&mut buf) => {
                let bytes = read?;
                if bytes == 0 {
                    return Ok(());
                }
                let mut cost = bytes as u64;
                let (mut refusal, mut greets) = (None, false);
                lines.push(&buf[..bytes], |line| match session.hear(line, now_ms()) {
                    Heard::Nothing => {}
                    // The last greeting is the one that counts.
                    Heard::Say(line) => (refusal, greets) = (Some(line), false),
                    Heard::Greeting => (refusal, greets) = (None, true),
                    Heard::Done(result) => settle(&mut answer, result),
                });
                heard_unix_ms = directory.now_unix_ms();
                let mut said = refusal;
                if greets {
                    let facts = facts(directory, &port.name).await;
                    said = facts.and_then(|facts| session.welcome(facts));
                }
                if let Some(line) = said {
                    cost += GREETING_BYTES;
                    say(&mut write, &line).await?;
                }
                taken.show(session.shown(now_ms(), heard_unix_ms));
                let pause_ms = allowance.spend(cost, now_ms());
                if pause_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
            }
            order = orders.recv(), if !session.is_waiting() => {
                // The other end is in the seat, which we hold.
                let Some(order) = order else {
                    return Ok(());
                };
                let left = order.until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    continue;
                }
                let until_ms = now_ms() + u64::try_from(left.as_millis()).unwrap_or(u64::MAX / 2);
                if let Some(line) = session.order(order.what, until_ms) {
                    answer = Some(order.answer);
                    say(&mut write, &line).await?;
                }
            }
            _ = ticks.tick() => {
                if session.gives_up(now_ms()) {
                    // Whoever waits has given up as well.
                    answer = None;
                }
                taken.show(session.shown(now_ms(), heard_unix_ms));
            }
        }
    }
}

async fn facts(directory: &Arc<dyn Directory>, name: &str) -> Option<Facts> {
    let (worker, name) = (Arc::clone(directory), name.to_owned());
    let facts = tokio::task::spawn_blocking(move || worker.facts(&name));
    facts.await.ok().flatten()
}

type Answer = std::sync::mpsc::SyncSender<Result<(), String>>;

fn settle(answer: &mut Option<Answer>, result: Result<(), String>) {
    if let Some(answer) = answer.take() {
        // Who asked may have given up.
        let _ = answer.try_send(result);
    }
}
