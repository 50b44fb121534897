//! A real guest: Debian boots to its login prompt from a branch that has nothing of it when it starts.
//!
//! Making the disk needs root; it is kept in the cache folder between runs, the same one that the demo uses.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scenarios::daemon::read_lossy;
use scenarios::datacenter::text;
use scenarios::run::run_path;
use scenarios::{Branch, Datacenter, Lab, Wan, wait_for};

const MAKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/make-small.sh");
/// From the start of the machine; 20 to 40 s where nothing else runs, many times that where much does.
const BOOT: Duration = Duration::from_secs(300);

fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    cache
        .unwrap_or_else(|| home().join(".cache"))
        .join("splice/images")
}

/// The disk; none where it can neither be found nor made.
fn debian() -> Option<PathBuf> {
    let disk = folder().join("debian-v1.raw");
    if rustix::process::geteuid().is_root() {
        let made = [text(&folder()).to_owned(), "v1".to_owned()];
        run_path(Path::new(MAKER), &made, Duration::from_secs(1200)).ok();
    } else if !disk.exists() {
        println!("skipped: making {} needs root", disk.display());
        return None;
    }
    Some(disk)
}

/// Starts a desktop and waits for its login prompt.
fn boot(branch: &mut Branch, name: &str) -> Duration {
    let begun = Instant::now();
    let desktop = branch.start_desktop("office", name);
    assert_eq!(desktop["machine"], "qemu-tcg", "{desktop}");
    let serial = PathBuf::from(desktop["serial_log"].as_str().unwrap());
    wait_for("the login prompt", BOOT, || {
        branch.daemon().check();
        read_lossy(&serial).contains("login:")
    });
    begun.elapsed()
}

#[test]
fn debian_boots_to_its_login_prompt_before_the_fill_is_complete() {
    let Some(disk) = debian() else {
        return;
    };
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    datacenter.create("debian");
    let published = datacenter.publish("debian", &disk);
    assert!(published["kernel_path"].is_string(), "{published}");
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--memory 768MiB");
    branch.wait_for_pool("office", "debian", 1);

    let took = boot(&mut branch, "alice");
    assert!(!branch.is_complete("debian", 1), "the fill was done first");
    println!(
        "login after {:.1} s, {} chunks waited for",
        took.as_secs_f64(),
        branch.number("/counters/demand_chunks")
    );
    branch.splice("desktop stop alice --force").ok();
}

/// Two real boots: the first branch has nothing but what its guest asks for, the second follows what the first recorded.
#[test]
fn the_next_branch_s_guest_waits_for_little_of_what_the_first_one_s_did() {
    let Some(disk) = debian() else {
        return;
    };
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    datacenter.create("debian");
    datacenter.publish("debian", &disk);
    let mut waited = Vec::new();
    for name in ["a", "b"] {
        // One of them over vhost-user.
        let disk = if name == "b" { "vhost-user" } else { "nbd" };
        let options = ["--qemu-disk", disk];
        let mut branch = Branch::join_with(&lab, &datacenter, name, &wan.address(), &options);
        datacenter.assign(name, "office", "debian", "--memory 768MiB --no-prestage");
        branch.wait_for_pool("office", "debian", 1);
        if name == "b" {
            wait_for("the boot profile", BOOT, || {
                branch.daemon().check();
                branch.daemon().log().contains("boot profile is here")
            });
        }
        let took = boot(&mut branch, "alice");
        let out = branch.splice("desktop stop alice --force --json").ok();
        let desktop: serde_json::Value = serde_json::from_str(&out).unwrap();
        let boot = &desktop["boot"];
        println!("{name}: login after {:.1} s; {boot}", took.as_secs_f64());
        waited.push(boot["waited_bytes"].as_u64().unwrap());
        let told = || datacenter.json("version show debian")["profile"]["boots_reported"].as_u64();
        let boots = waited.len() as u64;
        wait_for("the boot to be told", BOOT, || told() >= Some(boots));
        branch.daemon().stop();
    }
    assert!(waited[1] * 4 < waited[0], "{waited:?} bytes waited for");
}
