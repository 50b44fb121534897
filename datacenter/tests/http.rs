//! The management API over a real port: who is let in, what errors look like, long work, and that its document is current.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use datacenter_api::{
    AssignRequest, ClientError, CreateImage, OperationState, Problem, ProblemCode, PublishRequest,
    TokenRequest, VerifyMode,
};
use support::daemon::{Daemon, init};
use support::sparse_disk;

struct Api {
    daemon: Daemon,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        init(&data);
        Self {
            daemon: Daemon::start(&data),
            dir,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    /// A bare request, as curl makes it: status and body.
    fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let ca = self.dir.path().join("data/ca.pem");
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "--silent",
            "--cacert",
            ca.to_str().unwrap(),
            "--write-out",
            "\n%{http_code}",
            "-X",
            method,
        ]);
        for (name, value) in headers {
            curl.args(["-H", &format!("{name}: {value}")]);
        }
        if !body.is_empty() {
            curl.args(["--data-binary", "@-"]);
        }
        let url = format!("{}{path}", self.daemon.url());
        let mut child = curl
            .arg(url)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        use std::io::Write;
        child.stdin.take().unwrap().write_all(body.as_bytes()).ok();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn problem(&self, method: &str, path: &str, body: &str) -> (u16, Problem) {
        let bearer = format!("Bearer {}", self.daemon.token());
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
        ];
        let (status, text) = self.raw(method, path, &headers, body);
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")),
        )
    }
}

fn code(result: Result<impl std::fmt::Debug, ClientError>) -> ProblemCode {
    match result {
        Err(ClientError::Problem(problem)) => problem.error,
        other => panic!("{other:?}"),
    }
}

fn publish(path: &Path) -> PublishRequest {
    PublishRequest {
        path: path.to_str().unwrap().into(),
        format: None,
        note: Some("first".into()),
        allow_same: false,
        verify: VerifyMode::Full,
    }
}

#[test]
fn only_bearers_of_the_token_are_let_in() {
    let api = Api::start();
    assert_eq!(api.raw("GET", "/healthz", &[], "").0, 200);
    assert_eq!(api.raw("GET", "/v1/openapi.json", &[], "").0, 200);
    let token = api.daemon.token();
    let other = if token.ends_with('0') { '1' } else { '0' };
    let wrong = format!("Bearer {}{other}", &token[..token.len() - 1]);
    let (prefix, basic) = (format!("Bearer {}", &token[..20]), format!("Basic {token}"));
    for header in [
        "",
        "Bearer",
        "Bearer ",
        wrong.as_str(),
        prefix.as_str(),
        basic.as_str(),
    ] {
        for path in ["/v1/status", "/v1/images", "/v1/branches/ny"] {
            let (status, body) = api.raw("GET", path, &[("Authorization", header)], "");
            assert_eq!(status, 401, "{header:?} {path}");
            let problem: Problem = serde_json::from_str(&body).unwrap();
            assert_eq!(problem.error, ProblemCode::Unauthenticated);
        }
    }
    let good = format!("bearer {token}");
    assert_eq!(
        api.raw("GET", "/v1/status", &[("Authorization", &good)], "")
            .0,
        200
    );
    let other = api.daemon.client_with("splice-api-1.00");
    assert_eq!(
        code(api.runtime.block_on(other.status())),
        ProblemCode::Unauthenticated
    );
}

#[test]
fn a_datacenter_of_another_realm_is_not_spoken_to() {
    let api = Api::start();
    let other = tempfile::tempdir().unwrap();
    init(other.path());
    let options = datacenter_api::ClientOptions {
        url: api.daemon.url(),
        token: api.daemon.token(),
        ca_pem: std::fs::read_to_string(other.path().join("ca.pem")).unwrap(),
    };
    let client = datacenter_api::Client::new(&options).unwrap();
    let refused = api.runtime.block_on(client.status()).unwrap_err();
    assert!(
        matches!(refused, ClientError::Unreachable { .. }),
        "{refused}"
    );
}

#[test]
fn every_failure_is_a_problem_with_its_status() {
    let api = Api::start();
    let image = r#"{"name":"deb"}"#;
    let bearer = format!("Bearer {}", api.daemon.token());
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Content-Type", "application/json"),
    ];
    assert_eq!(api.raw("POST", "/v1/images", &headers, image).0, 201);
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(100_000));
    let cases = [
        ("GET", "/v1/nothing", "", 404, ProblemCode::NotFound),
        ("GET", "/v1/images/none", "", 404, ProblemCode::NotFound),
        (
            "GET",
            "/v1/images/deb/versions/1",
            "",
            404,
            ProblemCode::NotFound,
        ),
        (
            "GET",
            "/v1/images/deb/versions/latest",
            "",
            404,
            ProblemCode::NotFound,
        ),
        (
            "GET",
            "/v1/images/deb/versions/x",
            "",
            422,
            ProblemCode::Invalid,
        ),
        ("GET", "/v1/versions/12", "", 422, ProblemCode::Invalid),
        ("GET", "/v1/operations/7", "", 404, ProblemCode::NotFound),
        ("GET", "/v1/operations/x", "", 404, ProblemCode::NotFound),
        ("GET", "/v1/images?limit=0", "", 422, ProblemCode::Invalid),
        ("GET", "/v1/images?limit=x", "", 422, ProblemCode::Invalid),
        ("GET", "/v1/diff?from=deb", "", 422, ProblemCode::Invalid),
        ("DELETE", "/v1/images", "", 405, ProblemCode::Invalid),
        ("POST", "/v1/images", image, 409, ProblemCode::Conflict),
        ("POST", "/v1/images", "{", 422, ProblemCode::Invalid),
        (
            "POST",
            "/v1/images",
            r#"{"name":"a","color":1}"#,
            422,
            ProblemCode::Invalid,
        ),
        (
            "POST",
            "/v1/images",
            r#"{"name":"../a"}"#,
            422,
            ProblemCode::Invalid,
        ),
        ("POST", "/v1/images", &long, 413, ProblemCode::TooLarge),
        (
            "POST",
            "/v1/images/deb/versions",
            r#"{"path":"/nope"}"#,
            422,
            ProblemCode::Invalid,
        ),
        (
            "POST",
            "/v1/images/deb/versions",
            r#"{"path":"/dev/null"}"#,
            422,
            ProblemCode::Invalid,
        ),
        (
            "POST",
            "/v1/images/deb/versions",
            r#"{"path":"/etc/hostname","format":"pdf"}"#,
            422,
            ProblemCode::Invalid,
        ),
        (
            "POST",
            "/v1/images/none/versions",
            r#"{"path":"/etc/hostname"}"#,
            404,
            ProblemCode::NotFound,
        ),
        ("GET", "/v1/branches/none", "", 404, ProblemCode::NotFound),
        (
            "POST",
            "/v1/branches/none/revoke",
            "",
            404,
            ProblemCode::NotFound,
        ),
        (
            "PUT",
            "/v1/branches/none/pools/p",
            r#"{"version":"deb"}"#,
            404,
            ProblemCode::NotFound,
        ),
        (
            "DELETE",
            "/v1/branches/none/pools/p",
            "",
            404,
            ProblemCode::NotFound,
        ),
    ];
    for (method, path, body, status, code) in cases {
        let (actual, problem) = api.problem(method, path, body);
        assert_eq!(
            (actual, problem.error),
            (status, code),
            "{method} {path}: {problem:?}"
        );
        assert!(
            !problem.message.is_empty() && !problem.message.contains('\n'),
            "{problem:?}"
        );
    }
}

#[test]
fn a_disk_is_published_listed_compared_verified_and_assigned() {
    let api = Api::start();
    let client = api.daemon.client();
    let disk = api.dir.path().join("disk.raw");
    sparse_disk(&disk, 32 << 20, &[(0, 4 << 20)], 1);
    api.runtime.block_on(async {
        client
            .create_image(&CreateImage {
                name: "deb".into(),
                chunk_avg_bytes: Some(8192),
            })
            .await
            .unwrap();
        let mut phases = Vec::new();
        for seed in 2..5 {
            let started = client.publish("deb", &publish(&disk)).await.unwrap();
            assert_eq!(started.state, OperationState::Running);
            let done = client
                .follow(
                    started.id,
                    std::time::Duration::from_millis(2),
                    tokio::time::sleep,
                    |o| phases.push(o.progress.phase),
                )
                .await
                .unwrap();
            assert_eq!(done.state, OperationState::Succeeded);
            sparse_disk(&disk, 32 << 20, &[(0, 4 << 20), (20 << 20, 100_000)], seed);
        }
        assert!(!phases.is_empty());
        let versions = client.versions("deb").await.unwrap();
        assert_eq!(
            versions.iter().map(|v| v.number).collect::<Vec<_>>(),
            [3, 2, 1]
        );
        assert_eq!(versions[2].note.as_deref(), Some("first"));
        let shown = client.version(&"deb@2".parse().unwrap()).await.unwrap();
        assert_eq!(shown, versions[1]);
        let diff = client
            .diff(&"deb@1".parse().unwrap(), &"deb".parse().unwrap())
            .await
            .unwrap();
        assert!(diff.changed_leaves >= 1 && diff.new_bytes > 0);

        // The same again: the operation fails with the reason.
        sparse_disk(&disk, 32 << 20, &[(0, 4 << 20), (20 << 20, 100_000)], 3);
        let started = client.publish("deb", &publish(&disk)).await.unwrap();
        let failed = client
            .follow(
                started.id,
                std::time::Duration::from_millis(2),
                tokio::time::sleep,
                |_| {},
            )
            .await;
        assert_eq!(code(failed), ProblemCode::Conflict);

        let token = client
            .join_token("ny", &TokenRequest::default())
            .await
            .unwrap();
        assert!(token.token.starts_with("splice-join-1."));
        let request = AssignRequest {
            version: "deb@2".into(),
            ..AssignRequest::default()
        };
        let pool = client.assign("ny", "office", &request).await.unwrap();
        assert_eq!((pool.version.as_str(), pool.memory_mib), ("deb@2", 1024));
        assert_eq!(client.pools("ny").await.unwrap(), [pool]);
        client.remove_pool("ny", "office").await.unwrap();
        assert_eq!(client.branch("ny").await.unwrap().pools, []);
        assert_eq!(client.branches().await.unwrap().len(), 1);
        // What is new in each version is encoded in the background.
        let idle = async {
            loop {
                let status = client.status().await.unwrap();
                if status.operations_running == 0 {
                    return status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let status = tokio::time::timeout(std::time::Duration::from_secs(60), idle)
            .await
            .expect("small updates are encoded in a moment");
        assert_eq!((status.images, status.versions), (1, 3));
    });
}

#[test]
fn pages_join_to_the_whole() {
    let api = Api::start();
    let client = api.daemon.client();
    api.runtime.block_on(async {
        for i in 0..7 {
            client
                .create_image(&CreateImage {
                    name: format!("i{i}"),
                    chunk_avg_bytes: None,
                })
                .await
                .unwrap();
        }
    });
    let bearer = format!("Bearer {}", api.daemon.token());
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/images?limit=3{after}");
        let (_, body) = api.raw("GET", &path, &[("Authorization", &bearer)], "");
        let page: datacenter_api::ImageList = serde_json::from_str(&body).unwrap();
        names.extend(page.images.into_iter().map(|i| i.name));
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["i0", "i1", "i2", "i3", "i4", "i5", "i6"]);
}

/// With the console embedded or without: the page is there for everybody, whatever it is asked for, and takes nothing of the API's place.
#[test]
fn the_console_is_served_to_who_has_no_token() {
    let api = Api::start();
    for path in ["/", "/console"] {
        assert_eq!(api.raw("GET", path, &[], "").0, 307, "{path}");
    }
    for path in ["/console/", "/console/branches/new-york", "/console/x.js"] {
        let (status, page) = api.raw("GET", path, &[], "");
        let built = status == 200 && page.contains("id=\"root\"");
        let not_built = status == 501 && page.contains("./x console");
        assert!(built || not_built, "{path}: {status} {page}");
    }
    let (status, problem) = api.problem("GET", "/console/assets/index-00000000.js", "");
    assert_eq!((status, problem.error), (404, ProblemCode::NotFound));
    assert_eq!(api.raw("POST", "/console/", &[], "").0, 405);
    assert_eq!(api.raw("GET", "/v1/status", &[], "").0, 401);
}

#[test]
fn the_openapi_document_that_is_checked_in_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap();
    let current = datacenter::http::openapi();
    assert!(
        kept == current,
        "docs/api/openapi.json is out of date; write it anew: splice-datacenter openapi > docs/api/openapi.json"
    );
}
