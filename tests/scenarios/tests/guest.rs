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
/// From the start of the machine; 20 to 40 s where nothing else runs.
const BOOT: Duration = Duration::from_secs(180);

fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    cache
        .unwrap_or_else(|| home().join(".cache"))
        .join("splice/images")
}

#[test]
fn debian_boots_to_its_login_prompt_before_the_fill_is_complete() {
    let disk = folder().join("debian-v1.raw");
    if rustix::process::geteuid().is_root() {
        let made = [text(&folder()).to_owned(), "v1".to_owned()];
        run_path(Path::new(MAKER), &made, Duration::from_secs(1200)).ok();
    } else if !disk.exists() {
        println!("skipped: making {} needs root", disk.display());
        return;
    }
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    datacenter.create("debian");
    let published = datacenter.publish("debian", &disk);
    assert!(published["kernel_path"].is_string(), "{published}");
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--memory 768MiB");
    branch.wait_for_pool("office", "debian", 1);

    let begun = Instant::now();
    let desktop = branch.start_desktop("office", "alice");
    assert_eq!(desktop["machine"], "tcg", "{desktop}");
    let serial = PathBuf::from(desktop["serial_log"].as_str().unwrap());
    wait_for("the login prompt", BOOT, || {
        branch.daemon().check();
        read_lossy(&serial).contains("login:")
    });
    assert!(!branch.is_complete("debian", 1), "the fill was done first");
    println!(
        "login after {:.1} s, {} chunks waited for",
        begun.elapsed().as_secs_f64(),
        branch.number("/counters/demand_chunks")
    );
    branch.splice("desktop stop alice --force").ok();
}
