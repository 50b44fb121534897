//! What the command says: help with examples, and errors in one line with the way out.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

const COMMAND: &str = env!("CARGO_BIN_EXE_sim-wan");
const LINK: &str = "name=x,dc-ns=a,branch-ns=b,dc-addr=10.1.1.1/30,branch-addr=10.1.1.2/30";

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    output(Command::new(COMMAND).args(arguments))
}

/// The one line of an error.
fn error(arguments: &[&str]) -> String {
    let (code, _, error) = run(arguments);
    assert_eq!(code, Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn help_has_examples() {
    let (code, text, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(
        text.contains("sim-wan link --create") && text.contains("Exit codes"),
        "{text}"
    );
}

#[test]
fn an_unknown_profile_lists_the_known_ones() {
    let known = "known profiles: bad-day, dsl, intercontinental, lan, lte, t1, vsat-geo";
    assert!(error(&["accuracy", "--profile", "dls"]).contains(known));
    assert!(
        error(&[
            "proxy",
            "--profile",
            "dls",
            "--udp",
            "127.0.0.1:0=127.0.0.1:9"
        ])
        .contains(known)
    );
    assert!(error(&["link", "--profile", "dls", "--link", LINK]).contains(known));
}

#[test]
fn what_is_missing_is_named() {
    assert!(error(&["link", "--link", LINK]).contains("pass --profile NAME"));
    assert!(error(&["proxy", "--profile", "dsl"]).contains("pass --udp LISTEN=TARGET"));
    assert!(
        error(&["ctl", "--socket", "/nowhere/wan.sock", "list"])
            .contains("is sim-wan running with --socket")
    );
    assert!(
        error(&["profiles", "--profiles", "/nowhere/p.toml"])
            .contains("/nowhere/p.toml: No such file")
    );
    let (code, _, text) = run(&["link", "--link", "name=x"]);
    assert!(
        code == Some(2) && text.contains("dc-ns is missing"),
        "{text}"
    );
}

#[test]
fn a_taken_port_says_so() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let route = format!("{}=127.0.0.1:9", taken.local_addr().unwrap());
    assert!(
        error(&["proxy", "--profile", "dsl", "--udp", &route])
            .contains("the port is in use; choose another")
    );
}

#[test]
fn without_root_a_link_names_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(COMMAND);
    if rustix::process::geteuid().is_root() {
        // The build's own folder may be closed to others.
        let copy = folder.path().join("sim-wan");
        std::fs::copy(COMMAND, &copy).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.uid(65_534).gid(65_534).current_dir("/");
    }
    let (code, _, error) = output(command.args(["link", "--profile", "lan", "--link", LINK]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("needs root")
            && error.contains("sim-wan proxy")
            && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn profiles_are_listed_as_a_table_and_as_json() {
    let (_, text, _) = run(&["profiles"]);
    assert!(
        text.lines()
            .any(|line| line.starts_with("bad-day") && line.contains("250 ± 80")),
        "{text}"
    );
    let (_, text, _) = run(&["profiles", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 7);
    assert_eq!(all[0]["outage_for_s"], 10.0);
}
