//! The agent's port and the user volume as a branch has them. The guest is this test: it sits at the port, and reads and writes the disks over NBD.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::{Value, json};

use scenarios::{Branch, Datacenter, Disk, Lab, MIB, wait_for};

const WAIT: Duration = Duration::from_secs(60);

fn show(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}

fn io(branch: &Branch, export: &str, command: &str) -> String {
    branch.export(export).io(&[command.to_owned()]).ok()
}

fn is_read(branch: &Branch, export: &str, command: &str) -> bool {
    !io(branch, export, command).contains("failed")
}

fn serve(branch: &Branch, name: &str) -> Value {
    let words = format!("desktop start office --name {name} --serve-only --json");
    serde_json::from_str(&branch.splice(&words).ok()).unwrap()
}

fn branch_with_user_volumes(lab: &Lab, datacenter: &Datacenter) -> Branch {
    let disk = Disk::make(lab.path("disk.raw"), MIB, 81);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let mut branch = Branch::join(lab, datacenter, "a", &address);
    datacenter.assign("a", "office", "debian", "--user-volume 64MiB");
    let shown = datacenter.json("branch show a");
    assert_eq!(shown["pools"][0]["user_volume_mib"], 64, "{shown}");
    branch.wait_for_pool("office", "debian", 1);
    branch
}

#[test]
fn a_user_volume_is_kept_when_the_system_begins_anew_and_goes_with_the_desktop() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let mut branch = branch_with_user_volumes(&lab, &datacenter);
    let desktop = serve(&branch, "alice");
    let user = &desktop["user_volume"];
    assert_eq!(user["size_bytes"], 64 * MIB, "{desktop}");
    let serial = user["serial"].as_str().unwrap().to_owned();
    assert!(serial.starts_with("su-") && serial.len() == 19, "{serial}");
    assert!(
        is_read(&branch, "user/alice", "read -P 0 0 64M"),
        "it begins empty"
    );
    io(&branch, "user/alice", "write -P 0x61 1M 4k");
    io(&branch, "desktop/alice", "write -P 0x62 4k 4k");
    branch
        .splice("desktop reset alice")
        .refused(&["alice", "stop it first"]);
    branch.splice("desktop stop alice").ok();
    let keys = branch.data.join("keys/desktops");
    let key = |name: &str| std::fs::read(keys.join(format!("{name}.key"))).ok();
    let (system_key, user_key) = (key("alice"), key("alice.user"));
    assert!(system_key.is_some() && user_key.is_some());

    // A version that came meanwhile is what the system begins anew on.
    let second = Disk::make(lab.path("second.raw"), MIB, 82);
    datacenter.publish("debian", &second.path);
    datacenter.assign("a", "office", "debian", "");
    branch.wait_for_pool("office", "debian", 2);
    let reset = branch.splice("desktop reset alice --json").ok();
    let reset: Value = serde_json::from_str(&reset).unwrap();
    assert_eq!(reset["version_number"], 2, "{reset}");
    assert_eq!(reset["user_volume"]["serial"], serial.as_str(), "{reset}");
    assert_eq!((key("alice"), key("alice.user")), (None, user_key));
    branch.daemon().kill();
    branch.restart();
    serve(&branch, "alice");
    assert!(key("alice").is_some_and(|new| Some(new) != system_key));
    branch.export("desktop/alice").assert_same(&second.path);
    assert!(is_read(&branch, "user/alice", "read -P 0x61 1M 4k"));
    branch.splice("desktop stop alice").ok();

    // It stays when its pool asks for none any more, and goes with the desktop.
    datacenter.assign("a", "office", "debian", "--no-user-volume");
    let out = branch.splice("desktop show alice").ok();
    assert!(out.contains(&serial), "{out}");
    branch.splice("desktop delete alice").ok();
    let left = std::fs::read_dir(branch.data.join("disks/users/alice"));
    assert_eq!(left.map_or(0, Iterator::count), 0);
    assert_eq!((key("alice"), key("alice.user")), (None, None));
}

/// A loss is told, never papered over with an empty disk.
#[test]
fn a_user_volume_whose_files_are_gone_is_not_made_anew() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let mut branch = branch_with_user_volumes(&lab, &datacenter);
    serve(&branch, "alice");
    branch.splice("desktop stop alice").ok();
    // While no server has them open: one that still sends what was written goes on with what it has.
    branch.daemon().kill();
    std::fs::remove_dir_all(branch.data.join("disks/users/alice")).unwrap();
    branch.restart();
    branch
        .splice("desktop start office --name alice --serve-only")
        .refused(&["user volume"]);
}

struct Agent(BufReader<UnixStream>);

impl Agent {
    /// Sits where the machine would have the port.
    fn meet(branch: &mut Branch, name: &str) -> Self {
        let socket = branch.data.join("desktops").join(name).join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut met = None;
        wait_for("the branch at the agent's port", WAIT, || {
            branch.daemon().check();
            met = listener.accept().ok();
            met.is_some()
        });
        let (stream, _) = met.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.0.get_mut(), "{message}").unwrap();
    }

    fn hear(&mut self) -> Value {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            if !line.trim().is_empty() {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    fn greet(&mut self) -> Value {
        self.say(&json!({"hello": {"protocol": 1, "oldest": 1, "agent": "0.1.0", "boot": "ab".repeat(16)}}));
        self.hear()["welcome"].clone()
    }
}

#[test]
fn an_agent_is_told_who_it_is_and_what_it_says_is_shown() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let mut branch = branch_with_user_volumes(&lab, &datacenter);
    let desktop = serve(&branch, "alice");
    assert_eq!(desktop["guest"], Value::Null);
    let mut agent = Agent::meet(&mut branch, "alice");
    let welcome = agent.greet();
    assert_eq!(welcome["identity"]["host_name"], "alice", "{welcome}");
    assert_eq!(
        welcome["user_volume"]["serial"],
        desktop["user_volume"]["serial"]
    );
    assert_eq!(welcome["user_volume"]["unwritten"], true, "{welcome}");
    agent.say(&json!({"report": {
        "booted": true,
        "users": [{"name": "alice", "since_unix_s": 1_700_000_000}],
        "user_volume": "mounted",
        "health": {
            "disks": [{"place": "/home", "used_percent": 99}],
            "failed_units": ["cups.service"],
            "troubles": [],
        },
    }}));
    let mut shown = Value::Null;
    wait_for("the report", WAIT, || {
        branch.daemon().check();
        shown = show(&branch, "alice");
        shown["guest"]["booted"] == true
    });
    assert_eq!(shown["guest"]["users"][0]["name"], "alice", "{shown}");
    let people = branch.splice("desktop show alice").ok();
    for word in ["/home is 99 % full", "cups.service failed", "alice since"] {
        assert!(people.contains(word), "{word}: {people}");
    }

    // After a write the branch says no more that there was none, and a new server says it as well.
    io(&branch, "user/alice", "write -P 1 0 4k");
    assert_eq!(agent.greet()["user_volume"]["unwritten"], false);
    branch.daemon().kill();
    branch.restart();
    let mut agent = Agent::meet(&mut branch, "alice");
    let again = agent.greet();
    assert_eq!(again["user_volume"]["unwritten"], false, "{again}");
    assert_eq!(again["identity"], welcome["identity"], "{again}");

    // Nonsense is counted, harms nobody, and is seen.
    agent.say(&json!({"run": "/bin/sh"}));
    agent.say(&json!("x".repeat(100_000)));
    wait_for("nonsense to be counted", WAIT, || {
        branch.daemon().check();
        show(&branch, "alice")["guest"]["malformed_lines"] == 2
    });
    branch.splice("desktop stop alice").ok();
    wait_for("the guest to be gone", WAIT, || {
        show(&branch, "alice")["guest"] == Value::Null
    });
}
