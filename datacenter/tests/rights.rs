//! Who may call what, over a real port: each endpoint of the OpenAPI document with each role, against the table that is checked in.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use datacenter_api::{
    ApiTokenRequest, Client, ClientError, Grant, LogInRequest, ProblemCode, Role, SubjectKind,
    TokenRequest, UserRequest,
};
use support::daemon::{Daemon, init};

/// Endpoints that let anybody in.
const OPEN: [(&str, &str); 4] = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("POST", "/v1/log-in"),
    ("POST", "/v1/setup"),
];
const PASSWORD: &str = "correct horse battery";

/// Method and path of each operation of the document.
fn documented() -> BTreeSet<(String, String)> {
    let document: serde_json::Value = serde_json::from_str(&datacenter::http::openapi()).unwrap();
    let mut all = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "patch", "head", "options"] {
            if item.get(method).is_some() {
                all.insert((method.to_uppercase(), path.clone()));
            }
        }
    }
    all
}

/// The marks of each row of the table: by method and path, one for each role.
fn table() -> BTreeMap<(String, String), Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api/rights.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.contains("| `/"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let key = (cells[0].to_owned(), cells[1].trim_matches('`').to_owned());
        let marks = cells[4..].iter().map(|mark| (*mark).to_owned());
        (key, marks.collect())
    })
    .collect()
}

#[test]
fn the_table_that_is_checked_in_is_current_and_has_every_endpoint() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api/rights.md");
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(
        kept == datacenter::http::rights(),
        "docs/api/rights.md is out of date; look at what changed, then write it anew: splice-datacenter rights > docs/api/rights.md"
    );
    let mut guarded: BTreeSet<(String, String)> = table().into_keys().collect();
    for (method, path) in OPEN {
        let key = (method.to_owned(), path.to_owned());
        assert!(
            guarded.insert(key),
            "{method} {path} is open, and in the table"
        );
    }
    assert_eq!(guarded, documented());
}

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

    fn ca(&self) -> std::path::PathBuf {
        self.dir.path().join("data/ca.pem")
    }

    /// The statuses of many bare requests, by one process of curl.
    fn statuses(&self, headers: &[String], calls: &[(&str, String)]) -> Vec<u16> {
        let blocks: Vec<String> = calls
            .iter()
            .map(|(method, path)| {
                let mut block = format!(
                    "url = \"{}{path}\"\nrequest = {method}\ncacert = \"{}\"\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\nsilent\n",
                    self.daemon.url(),
                    self.ca().display(),
                );
                for header in headers {
                    block.push_str(&format!("header = \"{header}\"\n"));
                }
                block
            })
            .collect();
        curl(&blocks.join("next\n"))
            .lines()
            .map(|line| line.parse().unwrap())
            .collect()
    }

    fn token(&self, role: Grant) -> String {
        let request = ApiTokenRequest {
            name: "test".into(),
            roles: vec![role],
            expires_s: 3600,
        };
        let made = self
            .runtime
            .block_on(self.daemon.client().create_token(&request));
        made.unwrap().secret
    }

    fn log_in(&self, name: &str) -> Client {
        let request = LogInRequest {
            name: name.into(),
            password: PASSWORD.into(),
            code: None,
            bearer: true,
        };
        let session = self
            .runtime
            .block_on(self.daemon.client_with("").log_in(&request));
        self.daemon.client_with(&session.unwrap().token.unwrap())
    }

    fn add(&self, name: &str, roles: &[&str]) {
        let request = UserRequest {
            password: Some(PASSWORD.into()),
            roles: Some(roles.iter().map(|role| role.parse().unwrap()).collect()),
            ..UserRequest::default()
        };
        let made = self.daemon.client();
        self.runtime
            .block_on(made.create_user(name, &request))
            .unwrap();
    }
}

fn curl(config: &str) -> String {
    let mut child = Command::new("curl")
        .args(["--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(config.as_bytes()).unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ProblemCode {
    match result {
        Err(ClientError::Problem(problem)) => problem.error,
        other => panic!("{other:?}"),
    }
}

/// Paths name things that are not there: what is let in finds nothing, and nothing is done.
fn call(method: &str, path: &str) -> String {
    let mut filled = String::new();
    for part in path.split('{') {
        match part.split_once('}') {
            Some(("kind", rest)) => filled.push_str(&format!("users{rest}")),
            Some((_, rest)) => filled.push_str(&format!("77777777{rest}")),
            None => filled.push_str(part),
        }
    }
    assert!(!filled.contains('}'), "{method} {path}");
    filled
}

#[test]
fn each_role_is_let_in_where_the_table_says_and_nowhere_else() {
    let api = Api::start();
    let table = table();
    let calls: Vec<(&str, String)> = table
        .keys()
        .map(|(method, path)| (method.as_str(), call(method, path)))
        .collect();
    for (at, role) in Role::ALL.into_iter().enumerate() {
        let token = api.token(Grant {
            role,
            branch: None,
            pool: None,
        });
        let headers = [
            format!("Authorization: Bearer {token}"),
            "Content-Type: application/json".to_owned(),
        ];
        let statuses = api.statuses(&headers, &calls);
        assert_eq!(statuses.len(), calls.len());
        for (((method, path), marks), status) in table.iter().zip(statuses) {
            let role = role.name();
            let what = format!("{role}: {method} {path}: {status}, {:?}", marks[at]);
            match marks[at].as_str() {
                // A token stands for a role here.
                "-" | "s" => assert_eq!(status, 403, "{what}"),
                "×" => assert!(!matches!(status, 401 | 403 | 500..), "{what}"),
                _ => panic!("{what}"),
            }
        }
    }
    // Nobody who is not known is let in anywhere.
    let statuses = api.statuses(&[], &calls);
    assert!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
}

#[test]
fn a_role_of_a_part_of_the_realm_does_nothing_outside_it() {
    let api = Api::start();
    let admin = api.daemon.client();
    api.add("bob", &["operator:branch=ny", "help-desk:pool=office"]);
    let bob = api.log_in("bob");
    api.runtime.block_on(async {
        let request = TokenRequest::default();
        for branch in ["ny", "la"] {
            admin.join_token(branch, &request).await.unwrap();
        }
        let seen = bob.branches().await.unwrap();
        let names: Vec<&str> = seen.iter().map(|branch| branch.name.as_str()).collect();
        // Pools named office may be anywhere; so each branch is seen.
        assert_eq!(names, ["la", "ny"]);
        let policy = datacenter_api::PolicyRequest::default();
        bob.set_policy("ny", &policy).await.unwrap();
        assert_eq!(
            code(bob.set_policy("la", &policy).await),
            ProblemCode::Forbidden
        );
        assert_eq!(code(bob.revoke("ny").await), ProblemCode::Forbidden);
        admin.create_group("staff").await.unwrap();
        let group = SubjectKind::Group;
        bob.set_entitled("lab", Some("ny"), group, "staff", true)
            .await
            .unwrap();
        for branch in [None, Some("la")] {
            let refused = bob.set_entitled("lab", branch, group, "staff", true).await;
            assert_eq!(code(refused), ProblemCode::Forbidden, "{branch:?}");
        }
        // What was refused is in the log, with who and from where.
        let entries = admin.audit().await.unwrap();
        let refused = entries.iter().find(|entry| {
            entry
                .facts
                .call
                .starts_with("PUT /v1/entitlements/lab/groups/staff?branch=la")
        });
        let facts = &refused.unwrap().facts;
        assert_eq!(
            (facts.who.as_str(), facts.from.as_str()),
            ("bob", "127.0.0.1")
        );
        assert!(facts.result.starts_with("refused: "), "{facts:?}");
        let state = admin.audit_state().await.unwrap();
        assert_eq!(state.last, entries[0].id);
    });
}

#[test]
fn a_call_that_changes_something_is_in_the_log_before_and_after() {
    let api = Api::start();
    let admin = api.daemon.client();
    api.runtime.block_on(async {
        admin.create_group("staff").await.unwrap();
        assert_eq!(
            code(admin.create_group("staff").await),
            ProblemCode::Conflict
        );
        let entries = admin.audit().await.unwrap();
        let told: Vec<(&str, Option<u64>)> = entries
            .iter()
            .rev()
            .map(|entry| (entry.facts.result.as_str(), entry.facts.ends))
            .collect();
        assert_eq!(
            told,
            [
                ("begun", None),
                ("done", Some(1)),
                ("begun", None),
                ("refused: 409 Conflict", Some(3))
            ]
        );
        assert!(entries.iter().all(|entry| entry.facts.who == "root"));
        let lines = admin.audit_lines(0).await.unwrap();
        let mut verifier = datacenter_api::audit::Verifier::new(None);
        for line in &lines {
            verifier.take(line).unwrap();
        }
        assert_eq!(verifier.finish().unwrap().entries, 4);
    });
}

fn session_cookie(api: &Api, jar: &Path) -> String {
    let body = format!(r#"{{\"name\":\"alice\",\"password\":\"{PASSWORD}\"}}"#);
    let config = format!(
        "url = \"{}/v1/log-in\"\ncacert = \"{}\"\nheader = \"Content-Type: application/json\"\ndata = \"{body}\"\ncookie-jar = \"{}\"\nsilent\n",
        api.daemon.url(),
        api.ca().display(),
        jar.display()
    );
    let answer = curl(&config);
    let session: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(session["token"], serde_json::Value::Null, "{answer}");
    session["csrf"].as_str().unwrap().to_owned()
}

#[test]
fn a_browsers_session_needs_more_than_its_cookie_to_change_something() {
    let api = Api::start();
    api.add("alice", &["admin"]);
    let jar = api.dir.path().join("jar");
    let csrf = session_cookie(&api, &jar);
    let text = std::fs::read_to_string(&jar).unwrap();
    let line = text.lines().find(|line| line.contains("splice")).unwrap();
    assert!(line.starts_with("#HttpOnly_"), "{line}");
    let cells: Vec<&str> = line.split('\t').collect();
    let cookie = format!("Cookie: {}={}", cells[5], cells[6]);
    let make = [("POST", "/v1/groups/staff".to_owned())];
    let look = [("GET", "/v1/groups".to_owned())];
    let alone = std::slice::from_ref(&cookie);
    assert_eq!(api.statuses(alone, &look), [200]);
    assert_eq!(api.statuses(alone, &make), [403]);
    let wrong = [cookie.clone(), "X-Splice-Csrf: 00".to_owned()];
    assert_eq!(api.statuses(&wrong, &make), [403]);
    let good = [cookie.clone(), format!("X-Splice-Csrf: {csrf}")];
    assert_eq!(api.statuses(&good, &make), [201]);
    let out = [("POST", "/v1/log-out".to_owned())];
    assert_eq!(api.statuses(&good, &out), [204]);
    assert_eq!(api.statuses(&good, &look), [401]);
}

#[test]
fn guesses_are_slowed_down() {
    let api = Api::start();
    let request = LogInRequest {
        name: "nobody".into(),
        password: PASSWORD.into(),
        code: None,
        bearer: true,
    };
    let stranger = api.daemon.client_with("");
    let guess = || code(api.runtime.block_on(stranger.log_in(&request)));
    let first = (0..10).all(|_| guess() == ProblemCode::Unauthenticated);
    assert!(first, "people mistype");
    // A slow machine takes some of the seconds that each attempt costs; it cannot take all.
    assert!((0..10).any(|_| guess() == ProblemCode::TooMany));
}
