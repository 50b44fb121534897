//! People and what they may do, at the datacenter itself: log-ins, locks, second factors, sessions, tokens, and what branches are told.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use datacenter::catalog::people::{ApiTokenRow, EntitlementKey};
use datacenter::identity::Caller;
use datacenter::identity::rights::{Permission, Place};
use datacenter::identity::sessions::{IDLE_S, NewSession, SESSION_S};
use datacenter::identity::tokens::{new_api_token, replace_api_tokens};
use datacenter::problem::ManageError;
use datacenter_api::{
    ApiTokenRequest, AssignRequest, Grant, LogInRequest, PasswordRequest, SetupRequest,
    SubjectKind, TokenRequest, UserRequest,
};
use dedup::BranchId;
use dedup_protocol::people::Roster;
use dedup_protocol::people::strikes::FREE;
use dedup_protocol::people::totp::TotpSecret;
use dedup_protocol::trust::Signed;
use support::site::join;
use support::{Bench, START};

const PASSWORD: &str = "correct horse battery";

fn grants(texts: &[&str]) -> Vec<Grant> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn add(bench: &Bench, name: &str, roles: &[&str]) {
    let request = UserRequest {
        password: Some(PASSWORD.into()),
        roles: Some(grants(roles)),
        ..UserRequest::default()
    };
    bench.dc.create_user(name, &request).unwrap();
}

fn attempt(
    bench: &Bench,
    name: &str,
    password: &str,
    code: Option<&str>,
) -> Result<NewSession, ManageError> {
    let request = LogInRequest {
        name: name.into(),
        password: password.into(),
        code: code.map(str::to_owned),
        bearer: true,
    };
    bench.dc.log_in(&request, "10.0.0.1")
}

fn enter(bench: &Bench, name: &str) -> Caller {
    let session = attempt(bench, name, PASSWORD, None).unwrap();
    caller(bench, &session.bearer()).unwrap()
}

fn caller(bench: &Bench, bearer: &str) -> Result<Caller, ManageError> {
    bench.dc.caller_of_bearer(bearer, "10.0.0.1")
}

fn is_unknown<T: std::fmt::Debug>(result: Result<T, ManageError>) -> bool {
    matches!(result, Err(ManageError::Unauthenticated { .. }))
}

fn root(bench: &Bench) -> Caller {
    let token = new_api_token();
    replace_api_tokens(bench.dc.catalog(), "init", &token, START).unwrap();
    caller(bench, &token).unwrap()
}

#[test]
fn a_name_and_a_password_begin_a_session_that_ends() {
    let bench = Bench::new();
    add(&bench, "alice", &["operator:branch=ny"]);
    assert!(is_unknown(attempt(&bench, "alice", "wrong password", None)));
    assert!(is_unknown(attempt(&bench, "bob", PASSWORD, None)));
    let session = attempt(&bench, " Alice ", PASSWORD, None).unwrap();
    let alice = caller(&bench, &session.bearer()).unwrap();
    assert!(alice.may(Permission::Operate, &Place::branch("ny")));
    assert!(!alice.may(Permission::Operate, &Place::branch("la")));
    let other = format!("{}0", &session.bearer()[..session.bearer().len() - 1]);
    assert!(other == session.bearer() || is_unknown(caller(&bench, &other)));

    // Used, it holds for half a day; unused for an hour.
    for _ in 0..SESSION_S / (IDLE_S - 1) {
        bench.clock.advance(IDLE_S - 1);
        caller(&bench, &session.bearer()).unwrap();
    }
    bench.clock.advance(IDLE_S - 1);
    assert!(is_unknown(caller(&bench, &session.bearer())), "too old");
    let session = attempt(&bench, "alice", PASSWORD, None).unwrap();
    bench.clock.advance(IDLE_S);
    assert!(is_unknown(caller(&bench, &session.bearer())), "unused");

    let session = attempt(&bench, "alice", PASSWORD, None).unwrap();
    let alice = caller(&bench, &session.bearer()).unwrap();
    bench.dc.log_out(&alice).unwrap();
    assert!(is_unknown(caller(&bench, &session.bearer())), "logged out");
}

#[test]
fn what_an_account_loses_its_sessions_lose_at_once() {
    let bench = Bench::new();
    add(&bench, "alice", &["admin"]);
    let session = attempt(&bench, "alice", PASSWORD, None).unwrap();
    let fewer = UserRequest {
        roles: Some(grants(&["auditor"])),
        ..UserRequest::default()
    };
    bench.dc.change_user("alice", &fewer).unwrap();
    let alice = caller(&bench, &session.bearer()).unwrap();
    assert!(!alice.may(Permission::Administer, &Place::REALM));
    assert!(alice.may(Permission::Audit, &Place::REALM));

    let new = PasswordRequest {
        old: PASSWORD.into(),
        new: "another horse battery".into(),
    };
    let wrong = PasswordRequest {
        old: "wrong".into(),
        ..new.clone()
    };
    assert!(bench.dc.change_own_password(&alice, &wrong).is_err());
    bench.dc.change_own_password(&alice, &new).unwrap();
    assert!(is_unknown(caller(&bench, &session.bearer())));

    let session = attempt(&bench, "alice", &new.new, None).unwrap();
    let disabled = UserRequest {
        disabled: Some(true),
        ..UserRequest::default()
    };
    bench.dc.change_user("alice", &disabled).unwrap();
    assert!(is_unknown(caller(&bench, &session.bearer())));
    assert!(is_unknown(attempt(&bench, "alice", &new.new, None)));

    // Another account of the same name has nothing of the former.
    bench.dc.delete_user("alice").unwrap();
    add(&bench, "alice", &["admin"]);
    assert!(is_unknown(caller(&bench, &session.bearer())));
}

#[test]
fn wrong_passwords_lock_an_account_and_are_told_in_the_log() {
    let bench = Bench::new();
    add(&bench, "alice", &[]);
    for _ in 0..FREE {
        assert!(is_unknown(attempt(&bench, "alice", "wrong password", None)));
    }
    let locked = attempt(&bench, "alice", PASSWORD, None);
    let nobody = attempt(&bench, "nobody", PASSWORD, None);
    assert_eq!(
        locked.map(drop).unwrap_err().to_string(),
        nobody.map(drop).unwrap_err().to_string(),
        "nobody learns which names there are"
    );
    assert_eq!(bench.dc.user("alice").unwrap().locked_s, 30);
    bench.dc.unlock_user("alice").unwrap();
    attempt(&bench, "alice", PASSWORD, None).unwrap();
    let told: Vec<String> = bench
        .dc
        .audit_log(None, 3)
        .unwrap()
        .into_iter()
        .map(|entry| entry.facts.result)
        .collect();
    assert_eq!(told[0], "done");
    assert_eq!(told[1], "refused: wrong name or password");
    assert_eq!(told[2], "refused: locked");
}

/// Somebody tries a name again and again, as soon as its lock ends.
#[test]
fn a_stranger_s_lock_does_not_keep_the_owner_out_where_he_was_before() {
    let bench = Bench::new();
    add(&bench, "alice", &[]);
    enter(&bench, "alice");
    let guess = |password: &str| {
        let request = LogInRequest {
            name: "alice".into(),
            password: password.into(),
            code: None,
            bearer: true,
        };
        bench.dc.log_in(&request, "192.0.2.7")
    };
    for _ in 0..FREE + 3 {
        assert!(is_unknown(guess("wrong password")));
        bench
            .clock
            .advance(bench.dc.user("alice").unwrap().locked_s);
    }
    assert!(is_unknown(guess("wrong password")));
    assert!(is_unknown(guess(PASSWORD)), "locked from there");
    enter(&bench, "alice");
    assert!(
        bench.dc.user("alice").unwrap().locked_s > 0,
        "the stranger is no better off for it"
    );
    // Where the owner is nobody guesses without end either.
    for _ in 0..FREE {
        assert!(is_unknown(attempt(&bench, "alice", "wrong password", None)));
    }
    assert!(is_unknown(attempt(&bench, "alice", PASSWORD, None)));
    bench.dc.unlock_user("alice").unwrap();
    enter(&bench, "alice");
}

#[test]
fn a_second_factor_is_asked_for_once_a_code_was_shown() {
    let bench = Bench::new();
    add(&bench, "alice", &["admin"]);
    let alice = enter(&bench, "alice");
    let made = bench.dc.make_own_totp(&alice, PASSWORD).unwrap();
    let secret = decode_base32(&made.secret);
    let stolen = bench.dc.make_own_totp(&alice, "wrong");
    assert!(matches!(stolen, Err(ManageError::Forbidden { .. })));
    enter(&bench, "alice");
    assert!(bench.dc.confirm_own_totp(&alice, "000000").is_err());
    let code = secret.code_at(START);
    bench.dc.confirm_own_totp(&alice, &code).unwrap();
    assert!(is_unknown(attempt(&bench, "alice", PASSWORD, None)));
    // That code is used.
    assert!(is_unknown(attempt(&bench, "alice", PASSWORD, Some(&code))));
    bench.clock.advance(60);
    let code = secret.code_at(START + 60);
    attempt(&bench, "alice", PASSWORD, Some(&code)).unwrap();
    assert!(is_unknown(attempt(&bench, "alice", PASSWORD, Some(&code))));
    assert!(bench.dc.drop_own_totp(&alice, "wrong").is_err());
    bench.dc.reset_totp("alice").unwrap();
    enter(&bench, "alice");
}

fn decode_base32(text: &str) -> TotpSecret {
    let mut bits = 0u64;
    let mut bytes = Vec::new();
    for (at, digit) in text.bytes().enumerate() {
        let value = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
            .iter()
            .position(|one| *one == digit);
        bits = bits << 5 | value.unwrap() as u64;
        if at % 8 == 7 {
            bytes.extend_from_slice(&bits.to_be_bytes()[3..]);
            bits = 0;
        }
    }
    TotpSecret(bytes.try_into().unwrap())
}

#[test]
fn a_token_never_has_more_than_its_maker_and_ends() {
    let bench = Bench::new();
    add(&bench, "alice", &["operator:branch=ny", "auditor"]);
    let alice = enter(&bench, "alice");
    let ask = |roles: &[&str]| ApiTokenRequest {
        name: "ci".into(),
        roles: grants(roles),
        expires_s: 100,
    };
    for more in ["admin", "operator", "operator:branch=la", "image-author"] {
        let refused = bench.dc.create_token(&alice, &ask(&[more]));
        assert!(
            matches!(refused, Err(ManageError::Forbidden { .. })),
            "{more}"
        );
    }
    let narrow = ask(&["operator:branch=ny:pool=office"]);
    let made = bench.dc.create_token(&alice, &narrow).unwrap();
    let ci = caller(&bench, &made.secret).unwrap();
    let office = Place {
        branch: Some("ny".into()),
        pool: Some("office".into()),
    };
    assert!(ci.may(Permission::Operate, &office));
    assert!(!ci.may(Permission::Operate, &Place::branch("ny")));
    assert!(!ci.may(Permission::Audit, &Place::REALM));
    assert!(
        !ci.may(Permission::Own, &Place::REALM),
        "it makes no tokens"
    );

    // Its account is the other half of what it may do.
    let none = UserRequest {
        roles: Some(Vec::new()),
        ..UserRequest::default()
    };
    bench.dc.change_user("alice", &none).unwrap();
    let ci = caller(&bench, &made.secret).unwrap();
    assert!(!ci.may(Permission::Operate, &office));
    assert_eq!(ci.roles(), []);
    bench.clock.advance(100);
    assert!(is_unknown(caller(&bench, &made.secret)));

    add(&bench, "bob", &["auditor"]);
    let bob = enter(&bench, "bob");
    assert!(bench.dc.delete_token(&bob, &made.token.id).is_err());
    assert_eq!(bench.dc.tokens(&bob).unwrap(), []);
}

#[test]
fn nothing_that_opens_a_door_is_in_the_catalog() {
    let bench = Bench::new();
    let root = root(&bench);
    add(&bench, "alice", &["admin"]);
    let alice = attempt(&bench, "alice", PASSWORD, None).unwrap();
    let made = bench
        .dc
        .create_token(
            &root,
            &ApiTokenRequest {
                name: "ci".into(),
                roles: grants(&["admin"]),
                expires_s: 100,
            },
        )
        .unwrap();
    let code = bench.dc.make_setup_code().unwrap().code;
    let factor = bench
        .dc
        .make_own_totp(&caller(&bench, &alice.bearer()).unwrap(), PASSWORD);
    let factor = decode_base32(&factor.unwrap().secret);
    let secrets: [&[u8]; 5] = [
        PASSWORD.as_bytes(),
        alice.secret.as_bytes(),
        made.secret.as_bytes(),
        code.as_bytes(),
        &factor.0,
    ];
    let mut rows = 0;
    bench
        .dc
        .catalog()
        .dump(&mut |_, row| {
            rows += 1;
            for secret in secrets {
                assert!(!row.windows(secret.len()).any(|bytes| bytes == secret));
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert!(rows > 5);
}

#[test]
fn a_one_time_code_makes_one_administrator() {
    let bench = Bench::new();
    let void = bench.dc.make_setup_code().unwrap();
    let made = bench.dc.make_setup_code().unwrap();
    let set_up = |code: &str, name: &str| {
        let request = SetupRequest {
            code: code.to_owned(),
            name: name.into(),
            password: PASSWORD.into(),
        };
        bench.dc.set_up(&request, "10.0.0.1")
    };
    assert!(is_unknown(set_up("0000-0000-0000-0000-0000", "carol")));
    let told = bench.dc.audit_log(None, 1).unwrap().remove(0).facts;
    assert_eq!(
        (&*told.event, &*told.who, &*told.from, &*told.result),
        ("setup", "carol", "10.0.0.1", "refused: wrong code")
    );
    assert!(is_unknown(set_up(&void.code, "carol")), "the newest only");
    let typed = made.code.to_uppercase().replace('-', " ");
    set_up(&typed, "carol").unwrap();
    assert!(is_unknown(set_up(&made.code, "dave")), "once");
    let carol = enter(&bench, "carol");
    assert!(carol.may(Permission::Administer, &Place::REALM));
    let late = bench.dc.make_setup_code().unwrap();
    bench.clock.advance(86_401);
    assert!(is_unknown(set_up(&late.code, "dave")));
}

#[test]
fn a_reset_ends_all_tokens_and_sessions() {
    let bench = Bench::new();
    add(&bench, "alice", &["admin"]);
    let alice = attempt(&bench, "alice", PASSWORD, None).unwrap();
    let before = root(&bench);
    assert!(is_unknown(caller(&bench, &alice.bearer())));
    assert_eq!(before.who, "root");
    let tokens = bench.dc.tokens(&before).unwrap();
    assert_eq!(tokens.len(), 1);
    assert!(bench.dc.delete_token(&before, &tokens[0].id).is_err());
    let rows = bench
        .dc
        .catalog()
        .read(|tx| tx.list::<ApiTokenRow>(&[], None, 9));
    assert_eq!(rows.unwrap().len(), 1);
}

fn key(pool: &str, branch: Option<&str>, kind: SubjectKind, subject: &str) -> EntitlementKey {
    EntitlementKey {
        pool: pool.into(),
        branch: branch.map(str::to_owned),
        kind,
        subject: subject.into(),
    }
}

/// What a branch is told: its roster's counter, and of each person the pools.
fn told(bench: &Bench, branch: BranchId) -> (u64, Vec<(String, Vec<String>)>) {
    let counter = bench.dc.roster_counter(branch).unwrap();
    let Some(bytes) = bench.dc.signed_roster(branch).unwrap() else {
        return (counter, Vec::new());
    };
    let roster = Signed::<Roster>::from_bytes(&bytes)
        .unwrap()
        .open_own()
        .unwrap();
    assert!(roster.is_valid());
    assert_eq!((roster.branch, roster.counter), (branch, counter));
    let people = roster.people.into_iter();
    (
        counter,
        people.map(|person| (person.name, person.pools)).collect(),
    )
}

#[test]
fn a_branch_is_told_of_those_who_may_use_its_pools_and_of_nobody_who_manages() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 1);
    let (ny, la) = (join(&bench, "ny"), join(&bench, "la"));
    let assign = AssignRequest {
        version: "deb@1".into(),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool("ny", "office", &assign).unwrap();
    bench.dc.assign_pool("la", "lab", &assign).unwrap();
    for name in ["alice", "bob", "carol", "dave"] {
        add(&bench, name, &[]);
    }
    assert_eq!(told(&bench, ny), (0, vec![]), "nobody is entitled");
    let dc = &bench.dc;
    dc.create_group("staff").unwrap();
    for name in ["bob", "carol", "dave"] {
        dc.set_member("staff", name, true).unwrap();
    }
    let carol = UserRequest {
        roles: Some(grants(&["help-desk"])),
        ..UserRequest::default()
    };
    dc.change_user("carol", &carol).unwrap();
    let dave = UserRequest {
        disabled: Some(true),
        ..UserRequest::default()
    };
    dc.change_user("dave", &dave).unwrap();
    dc.set_entitled(&key("office", None, SubjectKind::Group, "staff"), true)
        .unwrap();
    dc.set_entitled(&key("lab", Some("la"), SubjectKind::User, "alice"), true)
        .unwrap();
    dc.set_entitled(&key("office", Some("la"), SubjectKind::User, "alice"), true)
        .unwrap();
    let person = |name: &str, pools: &[&str]| {
        let pools = pools.iter().map(|pool| (*pool).to_owned());
        (name.to_owned(), pools.collect::<Vec<_>>())
    };
    assert_eq!(told(&bench, ny), (1, vec![person("bob", &["office"])]));
    assert_eq!(told(&bench, la), (1, vec![person("alice", &["lab"])]));
    assert_eq!(told(&bench, ny).0, 1, "the same is not signed again");

    // A pool of the name that she is entitled to there.
    dc.assign_pool("la", "office", &assign).unwrap();
    let both = vec![
        person("alice", &["lab", "office"]),
        person("bob", &["office"]),
    ];
    assert_eq!(told(&bench, la), (2, both));
    // Who manages is not entitled himself either.
    let refused = dc.set_entitled(&key("lab", None, SubjectKind::User, "carol"), true);
    assert!(matches!(refused, Err(ManageError::Conflict { .. })));
    dc.delete_user("bob").unwrap();
    assert_eq!(told(&bench, ny), (2, vec![]), "that he is gone is told");
    dc.delete_group("staff").unwrap();
    let left = dc.entitlements().unwrap();
    assert!(left.iter().all(|one| one.subject == "alice"), "{left:?}");
}

#[test]
fn a_log_that_was_changed_is_found_out() {
    let bench = Bench::new();
    add(&bench, "alice", &[]);
    for _ in 0..3 {
        enter(&bench, "alice");
    }
    let state = bench.dc.verify_audit().unwrap();
    assert_eq!((state.entries, state.last, state.unchained), (3, 3, 0));
    let lines = bench.dc.audit_lines(0).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(bench.dc.audit_lines(2).unwrap(), lines[2..]);
    assert_eq!(bench.dc.audit_lines(3).unwrap(), []);
    assert_eq!(bench.dc.audit_lines(u64::MAX).unwrap(), []);
    use datacenter::catalog::audit::AuditRow;
    use datacenter::catalog::rows::NewestFirst;
    let change = |text: Option<&str>| {
        let changed = bench.dc.catalog().transact(|tx| {
            let key = NewestFirst(2);
            let mut row: AuditRow = tx.get(&key)?.unwrap();
            match text {
                None => tx.delete::<AuditRow>(&key),
                Some(text) => {
                    row.text = text.to_owned();
                    tx.put(&key, &row);
                }
            }
            Ok::<_, datacenter::catalog::CatalogError>(())
        });
        changed.unwrap();
    };
    change(Some("{}"));
    let found = bench.dc.verify_audit().unwrap_err().to_string();
    assert!(found.contains("entry 2"), "{found}");
    change(None);
    let found = bench.dc.verify_audit().unwrap_err().to_string();
    assert!(found.contains("entry 3 follows entry 1"), "{found}");
}

#[test]
fn passwords_and_names_that_will_not_do() {
    let bench = Bench::new();
    let ask = |name: &str, password: &str| {
        let request = UserRequest {
            password: Some(password.into()),
            ..UserRequest::default()
        };
        bench.dc.create_user(name, &request)
    };
    for (name, password) in [
        ("alice", "short"),
        ("Alice", PASSWORD),
        ("a b", PASSWORD),
        ("root", PASSWORD),
        ("", PASSWORD),
    ] {
        assert!(
            matches!(ask(name, password), Err(ManageError::Invalid { .. })),
            "{name:?}"
        );
    }
    ask("alice", PASSWORD).unwrap();
    assert!(matches!(
        ask("alice", PASSWORD),
        Err(ManageError::Conflict { .. })
    ));
    let invited = bench.dc.create_join_token("ny", &TokenRequest::default());
    invited.unwrap();
    let nobody = key("office", None, SubjectKind::User, "bob");
    assert!(bench.dc.set_entitled(&nobody, true).is_err());
    assert!(bench.dc.set_entitled(&nobody, false).is_err());
}
