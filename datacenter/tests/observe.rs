//! What the daemon tells of itself over a real port: metrics and who may read them, health, and a support report without secrets.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use datacenter::metrics::families::FAMILIES;
use datacenter_api::{CreateImage, ReadyReport, SupportReport, TokenRequest};
use support::daemon::{Daemon, init};

const METRICS_TOKEN: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

struct Site {
    daemon: Daemon,
    runtime: tokio::runtime::Runtime,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Site {
    /// With these lines before the rest of the configuration.
    fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        init(&data);
        let path = data.join("datacenter.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{config}\n{text}")).unwrap();
        Self {
            daemon: Daemon::start(&data),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            data,
            _dir: dir,
        }
    }

    /// With a metrics token.
    fn with_metrics_token() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.token");
        std::fs::write(&file, format!("{METRICS_TOKEN}\n")).unwrap();
        Self::start(&format!(
            "metrics_token_file = {:?}",
            file.to_str().unwrap()
        ))
    }

    /// As curl asks: status, headers and body.
    fn get(&self, path: &str, headers: &[&str]) -> (u16, String, String) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--include", "--cacert"]);
        curl.arg(self.data.join("ca.pem"));
        for header in headers {
            curl.args(["-H", *header]);
        }
        let url = format!("{}{path}", self.daemon.url());
        let out = curl.arg(url).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    fn bearer(token: &str) -> String {
        format!("Authorization: Bearer {token}")
    }

    fn metrics(&self) -> String {
        let (status, _, body) = self.get("/metrics", &[&Self::bearer(&self.daemon.token())]);
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// Families and their kinds, as they are served.
fn families(text: &str) -> BTreeMap<&str, &str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split_once(' ').unwrap()).collect()
}

#[test]
fn what_is_served_is_the_table() {
    let site = Site::start("");
    let text = site.metrics();
    let table = FAMILIES
        .iter()
        .map(|family| (family.name, family.kind.name()));
    let table: BTreeMap<&str, &str> = table.collect();
    assert_eq!(families(&text), table);
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "splice_datacenter_images 0.0",
        "splice_datacenter_branches{state=\"joined\"} 0.0",
        "splice_datacenter_store_halted 0.0",
        "splice_datacenter_link_class_sent_bytes_total{class=\"demand\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    // Each value is a number, whatever the state.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').unwrap().1;
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    let client = site.daemon.client();
    let image = CreateImage {
        name: "debian".into(),
        chunk_avg_bytes: None,
    };
    site.runtime.block_on(client.create_image(&image)).unwrap();
    let text = site.metrics();
    assert!(text.contains("\nsplice_datacenter_images 1.0\n"));
    // The scrape before is counted by its route, and so is the image's creation.
    for line in [
        "splice_datacenter_http_requests_total{method=\"GET\",route=\"/metrics\",status=\"200\"} 1\n",
        "splice_datacenter_http_requests_total{method=\"POST\",route=\"/v1/images\",status=\"201\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn metrics_are_for_bearers_of_the_metrics_token_and_nothing_else_is() {
    let site = Site::with_metrics_token();
    let api = Site::bearer(&site.daemon.token());
    let metrics = Site::bearer(METRICS_TOKEN);
    let wrong = Site::bearer(&METRICS_TOKEN.replace('0', "1"));
    for (path, header, status) in [
        ("/metrics", &api, 200),
        ("/metrics", &metrics, 200),
        ("/metrics", &wrong, 401),
        ("/metrics", &"X: y".to_owned(), 401),
        ("/v1/status", &metrics, 401),
        ("/v1/support", &metrics, 401),
        ("/v1/images", &metrics, 401),
        ("/healthz", &wrong, 200),
        ("/readyz", &wrong, 200),
    ] {
        assert_eq!(site.get(path, &[header]).0, status, "{path} {header}");
    }
}

#[test]
fn a_metrics_token_that_could_be_guessed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let file = dir.path().join("weak.token");
    std::fs::write(&file, "secret\n").unwrap();
    let path = data.join("datacenter.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = format!("metrics_token_file = {:?}\n{text}", file.to_str().unwrap());
    std::fs::write(&path, line).unwrap();
    let run = support::daemon::daemon(&["run", "--data", data.to_str().unwrap()]);
    assert!(!run.status.success());
    let error = support::daemon::stderr(&run);
    assert!(
        error.contains("weak.token") && error.contains("openssl rand"),
        "{error}"
    );
}

#[test]
fn health_and_readiness_need_no_token_and_ids_come_back() {
    let site = Site::start("");
    let (status, head, body) = site.get("/readyz", &["x-request-id: a-1"]);
    let report: ReadyReport = serde_json::from_str(&body).unwrap();
    assert_eq!((status, report), (200, ReadyReport::new(&[])));
    assert!(head.contains("\r\nx-request-id: a-1"), "{head}");
    let (status, head, body) = site.get("/healthz", &[]);
    assert_eq!((status, body.as_str()), (200, "{\"ok\":true}"));
    assert!(head.contains("\r\nx-request-id: "), "{head}");
}

/// Everything that must not leave, wherever it is planted.
struct Planted {
    site: Site,
    secrets: Vec<String>,
}

fn planted() -> Planted {
    let site = Site::start("ldap_bind_password = \"planted-in-the-file\"");
    let client = site.daemon.client();
    let mut secrets = vec!["planted-in-the-file".to_owned(), site.daemon.token()];
    let image = CreateImage {
        name: "debian".into(),
        chunk_avg_bytes: None,
    };
    site.runtime.block_on(client.create_image(&image)).unwrap();
    let request = TokenRequest {
        // What people write where it does not belong.
        site: Some("third floor, wifi password: planted-in-a-note".into()),
        ..TokenRequest::default()
    };
    let join = client.join_token("ny", &request);
    let join = site.runtime.block_on(join).unwrap().token;
    secrets.extend(["planted-in-a-note".to_owned(), join]);
    // A path that holds a token, and one as a header that is refused.
    let path = format!("/v1/images/{}", site.daemon.token());
    site.get(&path, &[&Site::bearer("planted-as-a-token-that-is-wrong")]);
    secrets.push("planted-as-a-token-that-is-wrong".into());
    // Names of what is secret, and the keys' own files.
    secrets.extend(
        files_in(&site.data.join("secrets"))
            .into_iter()
            .flat_map(lines),
    );
    let root_key = lines(site.data.join("root.key"));
    let root_key = root_key
        .iter()
        .filter_map(|line| line.strip_prefix("pkcs8 "));
    secrets.extend(root_key.map(str::to_owned));
    secrets.push("PRIVATE KEY".into());
    Planted { site, secrets }
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

/// Lines of a file that is text.
fn lines(path: PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|line| line.len() >= 16);
    lines.map(str::to_owned).collect()
}

#[test]
fn a_support_report_tells_much_and_no_secret() {
    let Planted { site, secrets } = planted();
    let (status, _, body) = site.get("/v1/support", &[&Site::bearer(&site.daemon.token())]);
    assert_eq!(status, 200, "{body}");
    let report: SupportReport = serde_json::from_str(&body).unwrap();
    let text: BTreeMap<&str, &str> = report
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.text.as_str()))
        .collect();
    assert!(secrets.len() > 5, "something was planted: {secrets:?}");
    for (name, text) in &text {
        for secret in &secrets {
            assert!(
                !text.contains(secret.as_str()),
                "{secret} in {name}: {text}"
            );
        }
    }
    for (name, part) in [
        ("about.json", "splice-datacenter"),
        ("config.txt", "offline_grace"),
        ("status.json", "\"images\": 1"),
        ("store.json", "\"packs\""),
        ("branches.json", "third floor, wifi password: [redacted]"),
        ("operations.json", "["),
        ("ready.json", "\"ready\": true"),
        ("metrics.txt", "splice_datacenter_images 1.0"),
        ("log.txt", "datacenter is up"),
    ] {
        assert!(
            text[name].contains(part),
            "{part} is not in {name}: {}",
            text[name]
        );
    }
}

#[test]
fn logs_are_json_when_asked_and_name_the_request() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let log = dir.path().join("log.jsonl");
    let mut child = Command::new(support::daemon::DAEMON)
        .args(["run", "--log-json", "--data", data.to_str().unwrap()])
        .env("RUST_LOG", "info,datacenter_observe=debug")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut ready).unwrap();
    let api = ready.trim().split_once("api=").unwrap().1.to_owned();
    let asked = Command::new("curl")
        .args(["--silent", "--cacert"])
        .arg(data.join("ca.pem"))
        .args([
            "-H",
            "x-request-id: of-a-test",
            &format!("https://{api}/healthz"),
        ])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{asked:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let answered = lines
        .iter()
        .find(|line| line["fields"]["message"] == "answered")
        .unwrap_or_else(|| panic!("nobody answered in {text}"));
    assert_eq!(answered["span"]["name"], "request");
    assert_eq!(answered["span"]["id"], "of-a-test");
    assert_eq!(answered["span"]["route"], "/healthz");
}
