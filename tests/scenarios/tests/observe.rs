//! What both daemons tell of themselves, as who looks after them asks: scrapes as Prometheus makes them, health, and support bundles.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::lab::free_port;
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// The reference, which operators read.
const REFERENCE: &str = include_str!("../../../docs/observability.md");

/// An answer as curl has it: status and body.
fn curl(arguments: &[&str]) -> (u16, String) {
    let mut all = vec!["--silent", "--write-out", "\n%{http_code}"];
    all.extend(arguments);
    let ran = run("curl", &all, Duration::from_secs(30));
    let text = ran.out;
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", text.as_str()));
    (status.parse().unwrap(), body.to_owned())
}

fn socket(branch: &Branch, path: &str) -> (u16, String) {
    let socket = branch.data.join("branch.sock");
    let url = format!("http://branch{path}");
    curl(&["--unix-socket", socket.to_str().unwrap(), &url])
}

/// Values by name and labels.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// Names of the metrics that a scrape has, as the reference writes them, with their kinds.
fn served(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let total = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{total}"), kind.to_owned())
        })
        .collect()
}

/// The reference's metrics of a program, with their kinds.
fn documented(prefix: &str) -> BTreeSet<(String, String)> {
    let rows = REFERENCE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        let kind = cells.next()?;
        name.starts_with(prefix)
            .then(|| (name.to_owned(), kind.to_owned()))
    });
    rows.collect()
}

struct Site {
    datacenter: Datacenter,
    branch: Branch,
    wan: Wan,
    /// Where Prometheus scrapes the branch.
    address: String,
}

/// A branch whose pool is being filled, and that serves metrics over TCP.
fn site(lab: &Lab) -> Site {
    let datacenter = Datacenter::start(lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 16 * MIB, 7);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let address = format!("127.0.0.1:{}", free_port());
    let more = ["--metrics", &address];
    let mut branch = Branch::join_with(lab, &datacenter, "ny", &wan.address(), &more);
    datacenter.assign("ny", "office", "debian", "");
    branch.wait_for_pool("office", "debian", 1);
    Site {
        datacenter,
        branch,
        wan,
        address,
    }
}

#[test]
fn both_serve_what_the_reference_says_and_a_cut_shows() {
    let lab = Lab::new();
    let mut site = site(&lab);
    site.branch.wait_complete("debian", 1, NEWS);
    let (status, text) = socket(&site.branch, "/metrics");
    assert_eq!(status, 200, "{text}");
    assert_eq!(served(&text), documented("splice_branch_"));
    let values = series(&text);
    let size = values["splice_branch_version_size_bytes{image=\"debian\",version=\"1\"}"];
    assert!(size > 0.0);
    for (name, expected) in [
        ("splice_branch_link_up", 1.0),
        (
            "splice_branch_version_resident_bytes{image=\"debian\",version=\"1\"}",
            size,
        ),
        (
            "splice_branch_version_complete{image=\"debian\",version=\"1\"}",
            1.0,
        ),
        ("splice_branch_pool_boots_offline{pool=\"office\"}", 1.0),
        ("splice_branch_desktops{state=\"running\"}", 0.0),
        ("splice_branch_overlays_failed", 0.0),
    ] {
        assert_eq!(values[name], expected, "{name}");
    }
    // It was filled, and nobody waited: by class that shows.
    let class = |class: &str| {
        values[&format!("splice_branch_link_class_received_bytes_total{{class=\"{class}\"}}")]
    };
    let (fill, demand) = (class("fill"), class("demand"));
    assert!(
        fill > 0.0 && fill > demand,
        "{fill} of fill, {demand} of demand"
    );
    let all = values["splice_branch_link_received_bytes_total"];
    assert!(fill < all, "frames are in packets");

    // The same over TCP, and nothing else is there.
    let url = |path: &str| format!("http://{}{path}", site.address);
    assert_eq!(curl(&[&url("/healthz")]).0, 200);
    assert_eq!(
        curl(&[&url("/readyz")]),
        (200, "{\"ready\":true,\"failing\":[]}".into())
    );
    assert_eq!(served(&curl(&[&url("/metrics")]).1), served(&text));
    for path in ["/v1/status", "/v1/desktops", "/v1/support"] {
        assert_eq!(curl(&[&url(path)]).0, 404, "{path}");
    }

    let ca = site.datacenter.data.join("ca.pem");
    let fleet = scrape(&site.datacenter, &ca);
    assert_eq!(served(&fleet), documented("splice_datacenter_"));
    assert_eq!(
        series(&fleet)["splice_datacenter_branch_up{branch=\"ny\"}"],
        1.0
    );

    // Without the line a branch is as ready as with it.
    site.wan.cut();
    site.branch.wait_link(false);
    let cut = series(&socket(&site.branch, "/metrics").1);
    assert_eq!(cut["splice_branch_link_up"], 0.0);
    assert!(
        cut["splice_branch_link_received_bytes_total"] >= all,
        "nothing is forgotten"
    );
    assert_eq!(socket(&site.branch, "/readyz").0, 200);
    wait_for("the datacenter to show the cut", NEWS, || {
        let fleet = series(&scrape(&site.datacenter, &ca));
        fleet["splice_datacenter_branch_up{branch=\"ny\"}"] == 0.0
    });
}

fn scrape(datacenter: &Datacenter, ca: &Path) -> String {
    let cli = std::fs::read_to_string(datacenter.data.join("cli.toml")).unwrap();
    let quoted = |key: &str| {
        let line = cli.lines().find(|line| line.starts_with(key)).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let header = format!("Authorization: Bearer {}", quoted("token"));
    let url = format!("{}/metrics", quoted("url"));
    let (status, text) = curl(&["--cacert", ca.to_str().unwrap(), "-H", &header, &url]);
    assert_eq!(status, 200, "{text}");
    text
}

#[test]
fn a_branchs_support_bundle_holds_no_secret_of_it() {
    let lab = Lab::new();
    let site = site(&lab);
    let file = lab.path("bundle.tar.gz");
    let words = format!(
        "support-bundle --only branch --json --output {}",
        file.display()
    );
    let written: Value = serde_json::from_str(&site.branch.splice(&words).ok()).unwrap();
    let names: Vec<&str> = written["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for name in [
        "about.json",
        "status.json",
        "metrics.txt",
        "log.txt",
        "ready.json",
    ] {
        assert!(
            names.contains(&format!("branch/{name}").as_str()),
            "{names:?}"
        );
    }
    let unpacked = lab.path("bundle");
    std::fs::create_dir(&unpacked).unwrap();
    let (from, to) = (file.to_str().unwrap(), unpacked.to_str().unwrap());
    run("tar", &["-xzf", from, "-C", to], Duration::from_secs(30)).ok();
    let mut text = String::new();
    read_all(&unpacked, &mut text);
    assert!(text.contains("splice_branch_link_up 1.0"));
    let identity = site.branch.data.join("identity");
    for secret in ["id.key", "branch.key"] {
        let secret = std::fs::read_to_string(identity.join(secret)).unwrap();
        for line in secret
            .lines()
            .filter(|line| line.len() > 16 && !line.starts_with('-'))
        {
            assert!(!text.contains(line), "a line of a key is in the bundle");
        }
    }
    assert!(!text.contains("PRIVATE KEY"));
}

fn read_all(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
