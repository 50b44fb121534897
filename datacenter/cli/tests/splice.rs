//! The `splice` command as its users run it: a process of its own against a datacenter on real ports.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;

use datacenter::daemon::{self, InitOptions, RunOptions};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// A datacenter in this process, on free ports of loopback.
struct Site {
    url: String,
    config: PathBuf,
    dir: tempfile::TempDir,
    cancel: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let any = "127.0.0.1:0".parse().unwrap();
        let options = InitOptions {
            address: Some("127.0.0.1:7443".into()),
            link: Some(any),
            api: Some(any),
            ..InitOptions::default()
        };
        daemon::init(&data, &options).unwrap();
        let config = data.join("cli.toml");
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let (ready_in, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (datacenter, _lock) = daemon::open(&data, &RunOptions::default()).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let run = daemon::run(datacenter, stop, |_, api| ready_in.send(api).unwrap());
            runtime.block_on(run).unwrap();
        });
        let api = ready.recv().unwrap();
        Self {
            url: format!("https://{api}"),
            config,
            dir,
            cancel,
            thread: Some(thread),
        }
    }

    fn command(&self) -> Command {
        let mut command = bare();
        command
            .env("SPLICE_CONFIG", &self.config)
            .env("SPLICE_URL", &self.url);
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command()
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", err(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    fn disk(&self, name: &str, fill: u8) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut bytes: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        bytes[1_000_000..1_000_500].fill(fill);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.cancel.cancel();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// The command without any configuration of the machine it runs on.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_splice"));
    for variable in [
        "SPLICE_CONFIG",
        "SPLICE_URL",
        "SPLICE_TOKEN",
        "SPLICE_CA",
        "XDG_CONFIG_HOME",
    ] {
        command.env_remove(variable);
    }
    command.env("HOME", "/nonexistent");
    command
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn fails(output: &Output, code: i32, words: &str) {
    let text = err(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text:?} lacks {words:?}");
    assert!(output.stdout.is_empty());
}

fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_image_is_created_published_compared_and_verified() {
    let site = Site::start();
    assert!(site.ok("image list").contains("no images yet"));
    site.ok("image create debian --chunk-avg 8KiB");
    assert!(site.ok("version list debian").contains("no versions yet"));
    let disk = site.disk("disk.raw", 1);
    let published = site.ok(&format!(
        "version publish debian {} --note first",
        show(&disk)
    ));
    assert!(published.contains("debian@1"), "{published}");
    site.disk("disk.raw", 2);
    // A relative path is one of the caller's folder.
    let relative = site
        .command()
        .current_dir(site.dir.path())
        .args(["version", "publish", "debian", "disk.raw", "--json"])
        .output()
        .unwrap();
    assert!(relative.status.success(), "{}", err(&relative));
    assert!(
        relative.stderr.is_empty(),
        "--json is quiet: {}",
        err(&relative)
    );
    let operation: Value = serde_json::from_slice(&relative.stdout).unwrap();
    assert_eq!(operation["result"]["publish"]["number"], 2);

    let versions = site.json("version list debian");
    assert_eq!(
        (&versions[0]["number"], &versions[1]["number"]),
        (&2.into(), &1.into())
    );
    assert_eq!(versions[1]["note"], "first");
    assert!(site.ok("version list debian").contains("debian@2"));
    assert_eq!(site.json("version show debian")["number"], 2);
    assert!(site.ok("version show debian@1").contains("first"));
    let diff = site.json("version diff debian@1 debian@2");
    assert!(diff["new_chunks"].as_u64().unwrap() >= 1);
    assert!(
        site.ok("version verify debian")
            .contains("debian@2 is intact")
    );
    assert_eq!(site.json("image list")[0]["latest"], 2);
    let status = site.json("status");
    assert_eq!(
        (&status["images"], &status["versions"]),
        (&1.into(), &2.into())
    );
    assert!(site.ok("operation list").contains("succeeded"));
}

#[test]
fn work_that_is_not_waited_for_can_be_followed() {
    let site = Site::start();
    site.ok("image create debian");
    let disk = site.disk("disk.raw", 1);
    let started = site.json(&format!("version publish debian {} --no-wait", show(&disk)));
    let id = started["id"].as_u64().unwrap();
    let done = site.json(&format!("operation wait {id}"));
    assert_eq!(done["state"], "succeeded");
    assert_eq!(site.json(&format!("operation show {id}"))["id"], id);
    let again = site.json(&format!("version publish debian {} --no-wait", show(&disk)));
    let failed = site.run(&format!("operation wait {}", again["id"]));
    fails(&failed, 4, "--allow-same");
}

#[test]
fn a_branch_is_invited_assigned_and_revoked() {
    let site = Site::start();
    site.ok("image create debian");
    let disk = site.disk("disk.raw", 1);
    site.ok(&format!("version publish debian {}", show(&disk)));
    site.ok(&format!(
        "version publish debian {} --allow-same",
        show(&disk)
    ));
    let token = site.ok("branch token new-york --site Manhattan --expires 2h");
    assert!(
        token.starts_with("splice-join-1.") && token.lines().count() == 1,
        "{token}"
    );
    assert!(!site.ok("status").contains("WAN cut"), "there are no pools");
    let assigned = site.ok("branch assign new-york --pool office --image debian@1 --memory 2GiB --cpus 2 --pin debian@2 --no-prestage");
    assert!(assigned.contains("debian@1"), "{assigned}");
    let branch = site.json("branch show new-york");
    assert_eq!(
        (&branch["state"], &branch["site"]),
        (&"invited".into(), &"Manhattan".into())
    );
    let pool = &branch["pools"][0];
    assert_eq!(
        (&pool["memory_mib"], &pool["vcpus"], &pool["prestage"]),
        (&2048.into(), &2.into(), &false.into())
    );
    assert_eq!(pool["pinned"][0], "debian@2");
    assert_eq!(
        (&pool["machine"], &pool["tpm"]),
        (&"auto".into(), &false.into())
    );
    site.ok("branch assign new-york --pool office --image debian@1 --machine qemu --tpm");
    // What is not said stays.
    site.ok("branch assign new-york --pool office --image debian");
    assert!(site.ok("branch show new-york").contains("qemu, TPM"));
    let refused = site.run("branch assign new-york --pool office --image debian --machine splice");
    fails(&refused, 1, "splice-vmm has no TPM");
    let refused = site.run("branch assign new-york --pool office --image debian --machine xen");
    fails(&refused, 2, "auto, splice or qemu");
    let pool = &site.json("branch show new-york")["pools"][0];
    assert_eq!(
        (&pool["machine"], &pool["tpm"]),
        (&"qemu".into(), &true.into())
    );
    assert_eq!(
        (&pool["version"], &pool["memory_mib"]),
        (&"debian@2".into(), &2048.into())
    );
    assert!(site.ok("branch list").contains("new-york"));
    assert!(site.ok("branch show new-york").contains("on demand"));
    site.ok("branch unassign new-york --pool office");
    site.ok("branch revoke new-york");
    assert!(site.ok("branch list").contains("revoked"));
    let refused = site.run("branch assign new-york --pool office --image debian");
    fails(&refused, 4, "is revoked");
}

#[test]
fn failures_are_one_line_with_a_way_out_and_their_exit_code() {
    let site = Site::start();
    site.ok("image create debian");
    fails(&site.run("version show nothing"), 3, "splice image list");
    fails(&site.run("version show debian@7"), 3, "debian@7");
    fails(&site.run("branch show nowhere"), 3, "splice branch list");
    fails(&site.run("image create debian"), 4, "already");
    fails(&site.run("version publish debian /nowhere"), 1, "/nowhere");
    fails(&site.run("operation show 99"), 3, "99");
    for line in [
        "image",
        "image create",
        "image create x --chunk-avg big",
        "version show debian@x",
        "branch token ny --expires 5",
        "branch assign ny --pool p --image debian --memory 100KiB",
    ] {
        let refused = site.run(line);
        assert_eq!(refused.status.code(), Some(2), "{line}: {}", err(&refused));
    }
    let json = site.run("version show nothing --json");
    let value: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(value["exit_code"], 3);

    let wrong_token = site
        .command()
        .env("SPLICE_TOKEN", "x")
        .arg("status")
        .output()
        .unwrap();
    fails(&wrong_token, 1, "token is not known");
    assert_eq!(err(&wrong_token).lines().count(), 1);
    let nobody = site
        .command()
        .args(["--url", "https://127.0.0.1:1", "status"])
        .output()
        .unwrap();
    fails(&nobody, 5, "https://127.0.0.1:1");
    let other = Site::start();
    let foreign = site
        .command()
        .env("SPLICE_CA", other.dir.path().join("data/ca.pem"))
        .arg("status")
        .output()
        .unwrap();
    fails(&foreign, 5, "cannot reach");
}

#[test]
fn without_a_configuration_it_says_where_to_get_one() {
    let refused = bare().arg("status").output().unwrap();
    fails(&refused, 2, "splice-datacenter init");
    let refused = bare()
        .args(["--config", "/nowhere.toml", "status"])
        .output()
        .unwrap();
    fails(&refused, 2, "/nowhere.toml");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("cli.toml");
    std::fs::write(&config, "uri = 'x'").unwrap();
    let refused = bare()
        .args(["--config", show(&config), "status"])
        .output()
        .unwrap();
    fails(&refused, 2, "url, token and ca");
}

#[test]
fn people_log_in_and_do_what_their_roles_say() {
    let site = Site::start();
    let at = |name: &str| site.dir.path().join(name);
    let (home, ca) = (at("home"), at("data/ca.pem"));
    let password = at("password");
    std::fs::write(&password, "correct horse battery\n").unwrap();
    let file = show(&password);
    site.ok("branch token ny");
    let add = format!("user add bob --role operator:branch=ny --password-file {file}");
    assert!(site.ok(&add).contains("operator:branch=ny"));
    site.ok("user add alice --display Alice --no-password");
    site.ok("group add staff");
    site.ok("group join staff alice");
    site.ok("entitle add office --group staff");
    assert_eq!(site.json("group list")[0]["members"][0], "alice");
    assert_eq!(site.json("entitle list")[0]["pool"], "office");
    let managing = site.run("entitle add office --user bob");
    fails(&managing, 4, "second account");

    let bob = |line: &str| {
        let mut command = bare();
        command
            .env("XDG_CONFIG_HOME", &home)
            .env("SPLICE_URL", &site.url)
            .env("SPLICE_CA", &ca);
        command.args(line.split_whitespace()).output().unwrap()
    };
    fails(&bob("status"), 2, "splice login");
    std::fs::write(at("wrong"), "wrong\n").unwrap();
    let wrong = format!("login bob --password-file {}", show(&at("wrong")));
    fails(&bob(&wrong), 1, "the name or the password is wrong");
    let log_in = bob(&format!("login bob --password-file {file}"));
    assert!(log_in.status.success(), "{}", err(&log_in));
    let session = home.join("splice/session.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&session.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(bob("status").status.success());
    assert!(bob("branch set ny --fill-cap 1Mbit").status.success());
    fails(&bob("image create deb"), 1, "permission");
    fails(&bob("audit"), 1, "permission");
    let out = bob("logout");
    assert!(out.status.success(), "{}", err(&out));
    assert!(!session.exists());
    fails(&bob("status"), 2, "splice login");

    let code = site.ok("setup-code");
    std::fs::write(at("code"), code).unwrap();
    let set_up = format!(
        "setup carol --code-file {} --password-file {file}",
        show(&at("code"))
    );
    assert!(bob(&set_up).status.success());
    fails(&bob(&set_up), 1, "was used");
    assert_eq!(site.json("user show carol")["roles"][0]["role"], "admin");

    let token = site.ok("token create ci --role auditor --expires 1h");
    let audited = bare()
        .env("SPLICE_URL", &site.url)
        .env("SPLICE_CA", &ca)
        .env("SPLICE_TOKEN", token.trim())
        .args(["audit", "--json"])
        .output()
        .unwrap();
    assert!(audited.status.success(), "{}", err(&audited));
    let id = site.json("token list")[0]["id"].clone();
    assert!(id.is_string());
}

#[test]
fn the_audit_log_is_exported_and_verified_without_the_datacenter() {
    let site = Site::start();
    for name in ["a", "b", "c"] {
        site.ok(&format!("group add {name}"));
    }
    let state = site.json("audit verify");
    assert_eq!(state["last"], 6, "each call has two entries");
    let log = site.dir.path().join("audit.log");
    site.ok(&format!("audit export {}", show(&log)));
    let kept = format!("{}:{}", state["last"], state["hash"].as_str().unwrap());
    let verify = |file: &Path| {
        let mut command = bare();
        command.args(["audit", "verify", "--kept", &kept, "--file", show(file)]);
        command.output().unwrap()
    };
    assert!(verify(&log).status.success());
    let text = std::fs::read_to_string(&log).unwrap();
    let changed = site.dir.path().join("changed.log");
    std::fs::write(&changed, text.replace("/v1/groups/b", "/v1/groups/x")).unwrap();
    fails(&verify(&changed), 1, "entry 3");
    let cut: String = text
        .lines()
        .take(4)
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&changed, cut).unwrap();
    fails(&verify(&changed), 1, "cut off");
}

#[test]
fn every_command_has_help() {
    for line in [
        "",
        "image",
        "image create",
        "version",
        "version publish",
        "branch",
        "branch assign",
        "branch-ready",
        "branch-cache",
        "branch-log-in",
        "login",
        "setup",
        "user",
        "user add",
        "group",
        "entitle",
        "token",
        "audit",
        "operation",
        "status",
    ] {
        let help = bare()
            .args(line.split_whitespace())
            .arg("--help")
            .output()
            .unwrap();
        assert!(help.status.success(), "{line}");
        assert!(
            String::from_utf8_lossy(&help.stdout).contains("Usage:"),
            "{line}"
        );
    }
}

/// A support bundle as its reader unpacks it: names and texts.
fn unpack(path: &Path) -> Vec<(String, String)> {
    use std::io::Read;
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

#[test]
fn a_support_bundle_has_what_answers_and_no_secret() {
    let site = Site::start();
    site.ok("image create debian");
    let join = site.json("branch token ny")["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let config = std::fs::read_to_string(&site.config).unwrap();
    let config: toml::Table = config.parse().unwrap();
    let token = config["token"].as_str().unwrap();
    let file = site.dir.path().join("bundle.tar.gz");
    let nobody = site.dir.path().join("nobody.sock");
    let line = format!(
        "support-bundle --output {} --branch-socket {}",
        show(&file),
        show(&nobody)
    );
    let written = site.json(&line);
    assert_eq!(written["file"], show(&file));
    assert_eq!(written["missing"][0]["name"], "branch");
    let files = unpack(&file);
    for (name, text) in &files {
        assert!(
            !text.contains(token) && !text.contains(&join),
            "{name}: {text}"
        );
    }
    let has = |end: &str, part: &str| {
        let mut found = files.iter().filter(|(name, _)| name.ends_with(end));
        assert!(found.any(|(_, text)| text.contains(part)), "{end}: {part}");
    };
    has("/datacenter/status.json", "\"images\": 1");
    has("/datacenter/metrics.txt", "splice_datacenter_images 1.0");
    has("/datacenter/branches.json", "\"ny\"");
    has("/branch/missing.txt", "no branch server answers");
    // It is for its owner's eyes until that gives it away, and nothing is written over.
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fails(&site.run(&line), 1, "cannot write");
    let line = format!(
        "support-bundle --only branch --branch-socket {}",
        show(&nobody)
    );
    fails(&site.run(&line), 5, "no branch server answers");
}
