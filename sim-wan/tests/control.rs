//! The control socket, in process and by the command.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use sim_wan::control::{Client, Request, Server};
use sim_wan::proxy::{Proxy, UdpProxy};
use sim_wan::{LinkState, Profile, Profiles};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn proxy(name: &str) -> Proxy {
    UdpProxy::spawn_named(name, ANY, ANY, &Profile::named("dsl").unwrap(), 1).unwrap()
}

#[test]
fn every_command_does_what_it_says_to_the_link_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("wan.sock");
    let (a, b) = (proxy("branch-a"), proxy("branch-b"));
    let server = Server::start(
        &socket,
        vec![a.controlled(), b.controlled()],
        Profiles::built_in(),
    )
    .unwrap();
    let mut client = Client::connect(&socket).unwrap();

    client.cut(Some("branch-a")).unwrap();
    let states: Vec<_> = client
        .list()
        .unwrap()
        .into_iter()
        .map(|l| (l.name, l.state))
        .collect();
    assert_eq!(
        states,
        [
            ("branch-a".to_owned(), LinkState::Cut),
            ("branch-b".to_owned(), LinkState::Up)
        ]
    );
    client.restore(None).unwrap();
    client.set_profile(Some("branch-b"), "vsat-geo").unwrap();
    assert_eq!(client.stats("branch-a").unwrap().profile, "dsl");
    assert_eq!(client.stats("branch-b").unwrap().profile, "vsat-geo");

    let sender = UdpSocket::bind(ANY).unwrap();
    sender.send_to(&[0; 72], a.local_addr()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while client.stats("branch-a").unwrap().up.offered_bytes != 100 {
        assert!(
            std::time::Instant::now() < deadline,
            "the datagram was never counted"
        );
    }
    let (first, second) = (
        client.stats("branch-a").unwrap(),
        client.stats("branch-a").unwrap(),
    );
    assert!(second.monotonic_ns > first.monotonic_ns);
    client.reset_stats(Some("branch-a")).unwrap();
    assert_eq!(client.stats("branch-a").unwrap().up.offered_bytes, 0);

    let unknown = client.cut(Some("branch-c")).unwrap_err().to_string();
    assert_eq!(unknown, "no link \"branch-c\"; links: branch-a, branch-b");
    let unknown = client.set_profile(None, "dls").unwrap_err().to_string();
    assert!(
        unknown.contains("known profiles: bad-day, dsl"),
        "{unknown}"
    );
    assert_eq!(
        client
            .request(&Request::Stats { link: None })
            .unwrap()
            .len(),
        2
    );

    drop(server);
    assert!(!socket.exists(), "the socket file is removed");
}

#[test]
fn lines_that_are_no_request_are_refused_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan.sock");
    let a = proxy("a");
    let _server = Server::start(&path, vec![a.controlled()], Profiles::built_in()).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut writer = stream;
    let bad = [
        "{}",
        "cut",
        r#"{"cmd":"explode"}"#,
        r#"{"cmd":"cut","lnik":"a"}"#,
    ];
    for request in bad {
        writeln!(writer, "{request}").unwrap();
        let answer = lines.next().unwrap().unwrap();
        assert!(
            answer.starts_with(r#"{"ok":false,"error":"request is not understood"#),
            "{answer}"
        );
    }
    writeln!(writer, r#"{{"cmd":"cut","link":"a"}}"#).unwrap();
    let answer = lines.next().unwrap().unwrap();
    assert!(
        answer.starts_with(r#"{"ok":true,"links":[{"name":"a","profile":"dsl","state":"cut""#),
        "{answer}"
    );
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan.sock");
    drop(UnixListener::bind(&path).unwrap());
    let a = proxy("a");
    let _server = Server::start(&path, vec![a.controlled()], Profiles::built_in()).unwrap();
    let error = Server::start(&path, vec![a.controlled()], Profiles::built_in())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(
        Client::connect(&path).unwrap().list().is_ok(),
        "the first server still serves"
    );
}

#[test]
fn the_command_steers_and_prints_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan.sock");
    let a = proxy("a");
    let _server = Server::start(&path, vec![a.controlled()], Profiles::built_in()).unwrap();
    let ctl = |arguments: &[&str]| {
        let command = env!("CARGO_BIN_EXE_sim-wan");
        let output = Command::new(command)
            .arg("ctl")
            .arg("--socket")
            .arg(&path)
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(if output.status.success() {
            output.stdout
        } else {
            output.stderr
        })
        .unwrap();
        (output.status.success(), text)
    };
    assert_eq!(
        ctl(&["cut", "--link", "a"]),
        (true, "a (dsl, cut)\n".to_owned())
    );
    assert_eq!(ctl(&["restore"]), (true, "a (dsl, up)\n".to_owned()));
    assert_eq!(ctl(&["profile", "t1"]), (true, "a (t1, up)\n".to_owned()));
    let (_, text) = ctl(&["stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats[0]["up"]["offered_bytes"], 0);
    assert_eq!(stats[0]["down"]["dropped_loss"]["packets"], 0);
    let (good, text) = ctl(&["cut", "--link", "b"]);
    assert!(
        !good && text == "sim-wan: no link \"b\"; links: a\n",
        "{text}"
    );
}
