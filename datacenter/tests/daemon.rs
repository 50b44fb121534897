//! The daemon as an operator meets it: real processes, real ports, the plug pulled.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use datacenter_api::{CreateImage, OperationResult, OperationState, PublishRequest, VerifyMode};
use rand::{Rng, SeedableRng};
use support::daemon::{Daemon, daemon, init, stderr, token};
use support::{sparse_disk, wait_for};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// Every file's name and content, but for databases and the lock.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for name in [
        "realm.json",
        "datacenter.toml",
        "cli.toml",
        "ca.pem",
        "root.key",
        "secrets/realm.sealed",
        "secrets/passphrase",
    ] {
        files.push((name.to_owned(), std::fs::read(dir.join(name)).unwrap()));
    }
    files
}

#[test]
fn init_makes_a_realm_once_and_keeps_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    for secret in [
        "root.key",
        "cli.toml",
        "secrets/passphrase",
        "secrets/realm.sealed",
    ] {
        assert_eq!(mode(&data.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(&data), 0o700);
    let before = snapshot(&data);
    let again = daemon(&["init", "--data", data.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("nothing was changed"),
        "{}",
        stderr(&again)
    );
    assert_eq!(snapshot(&data), before);

    let sealed = std::fs::read(data.join("secrets/realm.sealed")).unwrap();
    assert!(!sealed.windows(11).any(|w| w == b"PRIVATE KEY"));

    let elsewhere = dir.path().join("nothing");
    let missing = daemon(&["run", "--data", elsewhere.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("splice-datacenter init"),
        "{}",
        stderr(&missing)
    );
    assert!(!elsewhere.exists());
}

#[test]
fn a_wrong_passphrase_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    std::fs::write(dir.path().join("secrets/passphrase"), "something else\n").unwrap();
    let refused = daemon(&["run", "--data", dir.path().to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("the passphrase does not fit"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn a_passphrase_kept_elsewhere_is_used_and_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (data, key) = (dir.path().join("data"), dir.path().join("key"));
    let arguments = [
        "init",
        "--data",
        data.to_str().unwrap(),
        "--passphrase-file",
        key.to_str().unwrap(),
        "--address",
        "127.0.0.1:7443",
        "--link",
        "127.0.0.1:0",
        "--api",
        "127.0.0.1:0",
    ];
    let made = daemon(&arguments);
    assert!(made.status.success(), "{}", stderr(&made));
    assert_eq!(mode(&key), 0o600);
    assert!(!data.join("secrets/passphrase").exists());
    Daemon::start(&data).stop();
}

#[test]
fn a_second_daemon_and_ports_in_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let data = dir.path().to_str().unwrap();
    let running = Daemon::start(dir.path());
    let second = daemon(&["run", "--data", data]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("in use by another splice-datacenter (process"),
        "{}",
        stderr(&second)
    );
    running.stop();

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = tcp.local_addr().unwrap().to_string();
    let refused = daemon(&["run", "--data", data, "--api", &taken]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains(&format!("TCP {taken}")),
        "{}",
        stderr(&refused)
    );
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = udp.local_addr().unwrap().to_string();
    let refused = daemon(&["run", "--data", data, "--link", &taken]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains(&format!("UDP {taken}")),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn unknown_configuration_keys_are_warned_about_and_bad_values_refused() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let config = dir.path().join("datacenter.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("colour = 'red'\n{text}")).unwrap();
    Daemon::start(dir.path()).stop();
    let log = std::fs::read_to_string(dir.path().join("daemon.log")).unwrap();
    assert!(log.contains("colour"), "{log}");
    std::fs::write(&config, format!("import_dirs = ['images']\n{text}")).unwrap();
    let refused = daemon(&["run", "--data", dir.path().to_str().unwrap()]);
    assert!(
        stderr(&refused).contains("import_dirs"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn the_endorsement_is_renewed_with_the_root_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("a"), dir.path().join("b"));
    init(&ours);
    init(&theirs);
    let data = ours.to_str().unwrap();
    let before = std::fs::read(ours.join("realm.json")).unwrap();
    let foreign = theirs.join("root.key");
    let refused = daemon(&[
        "endorse",
        "--data",
        data,
        "--root-key",
        foreign.to_str().unwrap(),
    ]);
    assert!(
        stderr(&refused).contains("is not the root key"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(std::fs::read(ours.join("realm.json")).unwrap(), before);

    // Moved offline, as told; the daemon runs without it.
    let offline = dir.path().join("offline.key");
    std::fs::rename(ours.join("root.key"), &offline).unwrap();
    let missing = daemon(&["endorse", "--data", data]);
    assert!(
        stderr(&missing).contains("root.key"),
        "{}",
        stderr(&missing)
    );
    let running = Daemon::start(&ours);
    let done = daemon(&[
        "endorse",
        "--data",
        data,
        "--root-key",
        offline.to_str().unwrap(),
        "--days",
        "700",
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    running.stop();
    let running = Daemon::start(&ours);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(running.client().status()).unwrap();
    let days = (status.endorsement_expires_unix_s - now()) / 86_400;
    assert!((698..=700).contains(&days), "{days}");
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn publish_request(path: &Path) -> PublishRequest {
    PublishRequest {
        path: path.to_str().unwrap().into(),
        format: None,
        note: None,
        allow_same: false,
        verify: VerifyMode::Full,
    }
}

/// Kills the daemon at random moments of a publish. After each kill no version is visible, and what was stored is reused.
#[test]
fn a_publish_that_is_killed_leaves_no_version_and_its_work_is_reused() {
    const SIZE: u64 = 400 << 20;
    const ROUNDS: u32 = 6;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let disk = dir.path().join("disk.raw");
    sparse_disk(&disk, SIZE, &[(0, 100 << 20), (250 << 20, 100 << 20)], 5);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seed = rand::rng().random::<u64>();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);

    let image = CreateImage {
        name: "deb".into(),
        chunk_avg_bytes: None,
    };
    let first = Daemon::start(&data);
    runtime
        .block_on(first.client().create_image(&image))
        .unwrap();
    first.stop();
    let mut killed_with_work = 0;
    for round in 0..ROUNDS {
        let running = Daemon::start(&data);
        let client = running.client();
        let before = runtime.block_on(client.image("deb")).unwrap();
        assert_eq!(
            before.latest, None,
            "round {round}: a killed publish left a version"
        );
        let operation = runtime
            .block_on(client.publish("deb", &publish_request(&disk)))
            .unwrap();
        // The whole publish takes about a second; later rounds die later in it.
        let delay = random.random_range(10..100) * u64::from(round + 1);
        std::thread::sleep(Duration::from_millis(delay));
        let seen = runtime.block_on(client.operation(operation.id)).unwrap();
        if seen.state == OperationState::Succeeded {
            // Too late to kill it: what is visible must be whole, below.
            running.kill();
            break;
        }
        killed_with_work += u32::from(seen.progress.new_chunks > 0);
        running.kill();
        let after = Daemon::start(&data);
        let interrupted = runtime
            .block_on(after.client().operation(operation.id))
            .unwrap();
        let finished = interrupted.state == OperationState::Succeeded;
        if !finished {
            assert_eq!(interrupted.state, OperationState::Failed);
            assert!(interrupted.error.unwrap().message.contains("restarted"));
        }
        let latest = runtime
            .block_on(after.client().image("deb"))
            .unwrap()
            .latest;
        // The version is committed a moment before the operation is.
        assert!(
            latest == finished.then_some(1) || latest == Some(1),
            "{latest:?}"
        );
        after.kill();
        if latest.is_some() {
            break;
        }
    }
    assert!(
        killed_with_work > 0,
        "no kill hit a working publish; seed {seed}"
    );

    let last = Daemon::start(&data);
    let client = last.client();
    let mut request = publish_request(&disk);
    request.allow_same = true;
    let started = runtime.block_on(client.publish("deb", &request)).unwrap();
    let done = wait_for(Duration::from_secs(60), "the last publish", || {
        let operation = runtime.block_on(client.operation(started.id)).unwrap();
        (operation.state != OperationState::Running).then_some(operation)
    });
    let Some(OperationResult::Publish(result)) = done.result else {
        panic!("{done:?}");
    };
    assert!(
        result.known_chunks > 0,
        "nothing was reused: {result:?}; seed {seed}"
    );
    assert_eq!(result.verified_bytes, SIZE);
    let verify = runtime
        .block_on(client.verify(&"deb".parse().unwrap()))
        .unwrap();
    let verified = wait_for(Duration::from_secs(60), "verify", || {
        let operation = runtime.block_on(client.operation(verify.id)).unwrap();
        (operation.state != OperationState::Running).then_some(operation)
    });
    let Some(OperationResult::Verify(found)) = verified.result else {
        panic!("{verified:?}");
    };
    assert_eq!(found.damaged_count, 0, "{found:?}; seed {seed}");
}

#[test]
fn a_lost_index_is_rebuilt_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let disk = dir.path().join("disk.raw");
    sparse_disk(&disk, 20 << 20, &[(0, 10 << 20)], 5);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let running = Daemon::start(&data);
    let client = running.client();
    let image = CreateImage {
        name: "deb".into(),
        chunk_avg_bytes: None,
    };
    runtime.block_on(client.create_image(&image)).unwrap();
    let started = runtime
        .block_on(client.publish("deb", &publish_request(&disk)))
        .unwrap();
    wait_for(Duration::from_secs(60), "publish", || {
        let operation = runtime.block_on(client.operation(started.id)).unwrap();
        (operation.state == OperationState::Succeeded).then_some(())
    });
    let before = runtime.block_on(client.status()).unwrap().store;
    running.stop();
    std::fs::remove_dir_all(data.join("index")).unwrap();
    let running = Daemon::start(&data);
    let client = running.client();
    let after = runtime.block_on(client.status()).unwrap().store;
    assert_eq!(after.chunks, before.chunks);
    let verify = runtime
        .block_on(client.verify(&"deb".parse().unwrap()))
        .unwrap();
    let done = wait_for(Duration::from_secs(60), "verify", || {
        let operation = runtime.block_on(client.operation(verify.id)).unwrap();
        (operation.state != OperationState::Running).then_some(operation)
    });
    assert!(matches!(done.result, Some(OperationResult::Verify(v)) if v.damaged_count == 0));
    assert!(token(&data).starts_with("splice-api-1."));
}

#[test]
fn files_outside_the_import_folders_are_refused_links_included() {
    let dir = tempfile::tempdir().unwrap();
    let (data, allowed) = (dir.path().join("data"), dir.path().join("allowed"));
    init(&data);
    std::fs::create_dir(&allowed).unwrap();
    let config = data.join("datacenter.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let dirs = format!("import_dirs = [{:?}]\n", allowed.to_str().unwrap());
    std::fs::write(&config, dirs + &text).unwrap();
    let (inside, outside, link) = (
        allowed.join("a.raw"),
        dir.path().join("b.raw"),
        allowed.join("c.raw"),
    );
    sparse_disk(&inside, 1 << 20, &[(0, 4096)], 1);
    sparse_disk(&outside, 1 << 20, &[(0, 4096)], 2);
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let running = Daemon::start(&data);
    let client = running.client();
    let image = CreateImage {
        name: "deb".into(),
        chunk_avg_bytes: None,
    };
    runtime.block_on(client.create_image(&image)).unwrap();
    let dotted = allowed.join("../b.raw");
    for path in [&outside, &link, &dotted] {
        let refused = runtime
            .block_on(client.publish("deb", &publish_request(path)))
            .unwrap_err();
        assert!(refused.to_string().contains("import_dirs"), "{refused}");
    }
    runtime
        .block_on(client.publish("deb", &publish_request(&inside)))
        .unwrap();
}

#[test]
fn a_reset_token_ends_the_former_one() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let data = dir.path().to_str().unwrap();
    let old = token(dir.path());
    let running = Daemon::start(dir.path());
    let refused = daemon(&["reset-token", "--data", data]);
    assert!(
        stderr(&refused).contains("in use by another"),
        "{}",
        stderr(&refused)
    );
    running.stop();
    let done = daemon(&["reset-token", "--data", data]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_ne!(token(dir.path()), old);
    let running = Daemon::start(dir.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(running.client().status()).unwrap();
    runtime
        .block_on(running.client_with(&old).status())
        .unwrap_err();
}
