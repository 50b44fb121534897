//! A user opens the branch's portal and has a desktop in the browser, with the line up and cut.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::lab::free_port;
use scenarios::run::{limited, program, run_path};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

const PASSWORD: &str = "correct horse battery";

/// What came of one click of somebody.
fn click(port: u16, authority: &Path, name: &str, password: &str, pool: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/portal.py");
    let mut browser = limited(Path::new("python3"), Duration::from_secs(240));
    browser.args([script, &port.to_string()]).arg(authority);
    let output = browser.args([name, password, pool]).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"))
}

#[test]
fn a_user_has_a_desktop_in_the_browser_with_the_line_cut() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 16 * MIB, 81);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);

    let (folder, port) = (lab.path("portal"), free_port());
    let data = datacenter.data.display().to_string();
    let issue = |name: &str| {
        let arguments = ["portal-certificate", "--data", &data, "--name", name];
        let out = folder.display().to_string();
        let arguments = [&arguments[..], &["--out", &out]].concat();
        let limit = Duration::from_secs(60);
        run_path(&program("splice-datacenter"), &arguments, limit)
    };
    issue("localhost").refused(&["own"]);
    issue("desk.test").ok();
    let (certificate, key) = (folder.join("portal.crt"), folder.join("portal.key"));
    let address = format!("127.0.0.1:{port}");
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let options = [
        "--portal",
        &address,
        "--portal-certificate",
        &certificate,
        "--portal-key",
        &key,
    ];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &options);
    datacenter.assign("a", "office", "debian", "");
    datacenter.assign("a", "lab", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    let password = lab.path("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    for name in ["alice", "bob"] {
        let add = format!("user add {name} --password-file {}", password.display());
        datacenter.splice(&add).ok();
        let entitle = format!("entitle add office --user {name}");
        datacenter.splice(&entitle).ok();
    }
    wait_for("the branch to know its people", NEWS, || {
        let log_in = format!("branch-log-in bob --password-file {}", password.display());
        branch.splice(&log_in).succeeded()
    });

    wan.cut();
    branch.wait_link(false);
    let authority = branch.data.join("identity/ca.crt");
    let by = |name: &str, password: &str, pool: &str| click(port, &authority, name, password, pool);
    let seen = by("alice", PASSWORD, "office");
    assert_eq!(seen["status"], 101, "{seen}");
    assert_eq!(seen["rfb"], true, "{seen}");
    assert_eq!(seen["desktops"], serde_json::json!(["alice-office"]));
    let first = desktop(&branch, "alice-office");
    assert_eq!(first["state"], "running");

    // Mine again, from elsewhere, and after the branch server started anew; everybody else's are their own.
    assert_eq!(by("alice", PASSWORD, "office")["rfb"], true);
    branch.daemon().kill();
    branch.restart();
    assert_eq!(by("alice", PASSWORD, "office")["rfb"], true);
    assert_eq!(desktop(&branch, "alice-office")["pid"], first["pid"]);
    assert_eq!(by("bob", PASSWORD, "office")["rfb"], true);
    assert_ne!(desktop(&branch, "bob-office")["pid"], first["pid"]);

    assert_eq!(by("alice", "wrong horse battery", "office")["status"], 401);
    assert_eq!(by("carol", PASSWORD, "office")["status"], 401);
    assert_eq!(by("alice", PASSWORD, "lab")["status"], 404);
}

fn desktop(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}
