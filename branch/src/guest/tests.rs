//! Agents that behave, that do not, and that are not there. Waits are for conditions; the clock is real only where sockets are.
#![allow(clippy::unwrap_used, missing_docs)]

use branch_api::GuestVolume;
use branch_guest::{
    Done, FromGuest, Health, Hello, Id, LINE_BYTES_MAX, Report, Text, ToGuest, User, VolumeReport,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::attend::attend;
use super::session::{Heard, Session};
use super::*;

const WAIT: Duration = Duration::from_secs(60);

fn hello(protocol: u16) -> Vec<u8> {
    let hello = Hello {
        protocol,
        oldest: protocol,
        agent: Text::near("0.1.0"),
        boot: Id::new([1; 16]).unwrap(),
    };
    FromGuest::Hello(hello).encode()
}

fn report(user: &str) -> Vec<u8> {
    let report = Report {
        booted: true,
        users: vec![User {
            name: Text::near(user),
            since_unix_s: 5,
        }],
        user_volume: VolumeReport::Mounted,
        health: Health::default(),
        itself: Id::new([2; 16]),
    };
    FromGuest::Report(report).encode()
}

fn facts() -> Facts {
    Facts {
        identity: Identity {
            host_name: "alice".to_owned().try_into().unwrap(),
            machine_id: Id::new([2; 16]).unwrap(),
        },
        user_volume: None,
    }
}

fn line(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii_end()
}

#[test]
fn nothing_counts_before_a_greeting_and_a_greeting_begins_anew() {
    let mut session = Session::default();
    assert_eq!(session.hear(Ok(line(&report("bob"))), 0), Heard::Nothing);
    assert_eq!(session.shown(0, 0), None);
    assert!(session.order(What::Ping, 100).is_none());
    assert_eq!(session.hear(Ok(line(&hello(1))), 0), Heard::Greeting);
    let welcome = session.welcome(facts()).unwrap();
    assert!(matches!(
        ToGuest::decode(&welcome).unwrap(),
        ToGuest::Welcome(welcome) if welcome.identity.host_name.as_str() == "alice"
    ));
    assert_eq!(session.hear(Ok(line(&report("bob"))), 0), Heard::Nothing);
    let shown = session.shown(10, 77).unwrap();
    assert!(shown.booted && shown.connected);
    assert_eq!(shown.itself, Some("02".repeat(16)));
    assert_eq!(shown.users[0].name, "bob");
    assert_eq!(
        (shown.user_volume, shown.heard_unix_ms),
        (GuestVolume::Mounted, 77)
    );
    assert!(
        !session.shown(1_000_000, 77).unwrap().connected,
        "it is silent"
    );
    // Another boot.
    session.hear(Ok(line(&hello(1))), 20);
    let shown = session.shown(20, 78).unwrap();
    assert!(!shown.booted && shown.users.is_empty() && shown.itself.is_none());
}

#[test]
fn an_agent_without_a_common_protocol_is_told_and_shown() {
    let mut session = Session::default();
    let Heard::Say(refuse) = session.hear(Ok(line(&hello(9))), 0) else {
        panic!("it is refused");
    };
    assert!(matches!(
        ToGuest::decode(&refuse).unwrap(),
        ToGuest::Refuse(_)
    ));
    assert!(session.order(What::Ping, 100).is_none());
    let complaints = session.shown(0, 0).unwrap().complaints();
    assert!(complaints[0].contains("upgrade"), "{complaints:?}");
}

#[test]
fn only_the_answer_to_the_order_that_was_given_counts() {
    let mut session = Session::default();
    session.hear(Ok(line(&hello(1))), 0);
    let done = |id, error: Option<&str>| {
        let error = error.map(Text::near);
        FromGuest::Done(Done { id, error }).encode()
    };
    assert_eq!(session.hear(Ok(line(&done(1, None))), 0), Heard::Nothing);
    assert!(session.order(What::Thaw, 100).is_some());
    assert!(session.order(What::Thaw, 100).is_none(), "one at a time");
    assert_eq!(session.hear(Ok(line(&done(7, None))), 0), Heard::Nothing);
    assert_eq!(
        session.hear(Ok(line(&done(1, Some("no")))), 0),
        Heard::Done(Err("no".into()))
    );
    assert_eq!(session.hear(Ok(line(&done(1, None))), 0), Heard::Nothing);
    session.order(What::Ping, 100).unwrap();
    assert!(!session.gives_up(99));
    assert!(session.gives_up(100));
    assert_eq!(session.hear(Ok(line(&done(2, None))), 101), Heard::Nothing);
    assert!(session.order(What::Ping, 200).is_some());
}

#[test]
fn nonsense_is_counted_and_changes_nothing() {
    let mut session = Session::default();
    session.hear(Ok(line(&hello(1))), 0);
    session.hear(Ok(line(&report("bob"))), 0);
    let before = session.shown(0, 0).unwrap();
    for nonsense in [
        &b"x"[..],
        b"{}",
        b"\xff\xff",
        br#"{"do":{"id":1,"what":"ping"}}"#,
    ] {
        assert_eq!(session.hear(Ok(nonsense), 0), Heard::Nothing);
    }
    session.hear(Err(branch_guest::TooLong), 0);
    let after = session.shown(0, 0).unwrap();
    assert_eq!(after.malformed_lines, 5);
    assert_eq!(
        Guest {
            malformed_lines: 0,
            ..after
        },
        before
    );
}

/// One desktop, `alice`.
struct House;

impl Directory for House {
    fn ports(&self) -> Option<Vec<GuestPort>> {
        None
    }

    fn facts(&self, name: &str) -> Option<Facts> {
        (name == "alice").then(facts)
    }

    fn now_unix_ms(&self) -> u64 {
        1234
    }
}

struct Served {
    guests: Arc<Guests>,
    listener: UnixListener,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (guests, cancel) = (Arc::new(Guests::default()), CancellationToken::new());
        let port = GuestPort {
            name: "alice".into(),
            socket,
            run: 1,
        };
        let attending = attend(Arc::new(House), Arc::clone(&guests), port, cancel.clone());
        Self {
            guests,
            listener,
            cancel,
            task: tokio::spawn(attending),
            _folder: folder,
        }
    }

    async fn accept(&self) -> BufReader<UnixStream> {
        let (stream, _) = self.listener.accept().await.unwrap();
        BufReader::new(stream)
    }

    /// Waits until what is shown is so.
    async fn wait(&self, what: &str, is_so: impl Fn(Option<&Guest>) -> bool) {
        let begun = Instant::now();
        while !is_so(self.guests.shown("alice").as_ref()) {
            assert!(begun.elapsed() < WAIT, "{what}: not within {WAIT:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
        assert_eq!(self.guests.shown("alice"), None, "its place is free");
    }
}

/// The next message to the guest; empty lines say nothing.
async fn told(stream: &mut BufReader<UnixStream>) -> ToGuest {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "it ended");
        if !line.trim().is_empty() {
            return ToGuest::decode(line.as_bytes()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_welcomed_reports_and_does_what_it_is_told() {
    let served = Served::start();
    let mut agent = served.accept().await;
    assert_eq!(served.guests.shown("alice"), None);
    agent.write_all(b"of before\n").await.unwrap();
    agent.write_all(&hello(1)).await.unwrap();
    assert!(matches!(told(&mut agent).await, ToGuest::Welcome(_)));
    agent.write_all(&report("bob")).await.unwrap();
    served
        .wait("bob to be there", |guest| {
            guest.is_some_and(|g| g.users.len() == 1)
        })
        .await;

    let guests = Arc::clone(&served.guests);
    let frozen = tokio::task::spawn_blocking(move || {
        let frozen = guests.freeze("alice", Duration::from_secs(5))?;
        frozen.thaw()
    });
    for expected in [What::Freeze { for_ms: 5000 }, What::Thaw] {
        let ToGuest::Do(order) = told(&mut agent).await else {
            panic!("an order was due");
        };
        assert_eq!(order.what, expected);
        let done = Done {
            id: order.id,
            error: None,
        };
        agent
            .write_all(&FromGuest::Done(done).encode())
            .await
            .unwrap();
    }
    frozen.await.unwrap().unwrap();

    let guests = Arc::clone(&served.guests);
    let refused = tokio::task::spawn_blocking(move || guests.shut_down("alice"));
    let ToGuest::Do(order) = told(&mut agent).await else {
        panic!("an order was due");
    };
    let done = Done {
        id: order.id,
        error: Some(Text::near("no poweroff")),
    };
    agent
        .write_all(&FromGuest::Done(done).encode())
        .await
        .unwrap();
    let refused = refused.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("no poweroff"), "{refused}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_goes_is_shown_as_gone_and_met_again() {
    let served = Served::start();
    let mut agent = served.accept().await;
    agent.write_all(&hello(1)).await.unwrap();
    agent.write_all(&report("bob")).await.unwrap();
    served
        .wait("the report", |guest| guest.is_some_and(|g| g.booted))
        .await;
    drop(agent);
    served
        .wait("it to be gone", |guest| guest.is_some_and(|g| !g.connected))
        .await;
    let guests = Arc::clone(&served.guests);
    let refused = tokio::task::spawn_blocking(move || guests.shut_down("alice")).await;
    let refused = refused.unwrap().unwrap_err();
    assert!(matches!(refused, GuestError::NoAgent(_)), "{refused}");
    let mut agent = served.accept().await;
    agent.write_all(&hello(1)).await.unwrap();
    assert!(matches!(told(&mut agent).await, ToGuest::Welcome(_)));
    served.end().await;
}

/// It talks without end, in lines without end: its own words are all that suffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_floods_is_held_up_and_not_the_server() {
    let served = Served::start();
    let mut agent = served.accept().await;
    agent.write_all(&hello(1)).await.unwrap();
    let flood = tokio::spawn(async move {
        let line = vec![b'x'; 2 * LINE_BYTES_MAX];
        loop {
            if agent.write_all(&line).await.is_err() || agent.write_all(b"\n").await.is_err() {
                return;
            }
        }
    });
    served
        .wait("lines to be counted", |guest| {
            guest.is_some_and(|g| g.malformed_lines > 0)
        })
        .await;
    assert!(!flood.is_finished());
    served.end().await;
    flood.await.unwrap();
}
