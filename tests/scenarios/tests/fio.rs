//! A guest that never stops writing: fio with checksums in every block, through a client that reconnects as a desktop's QEMU does,
//! over a branch server that is killed 20 times.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use scenarios::daemon::Daemon;
use scenarios::datacenter::{Background, text};
use scenarios::run::{limited, line, run};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan, wait_for};

const KILLS: u32 = 20;
const PASS: Duration = Duration::from_secs(180);

fn arguments(socket: &Path, rw: &str, more: &[&str]) -> Vec<String> {
    let words = [
        "--name=guest",
        "--ioengine=nbd",
        "--bs=4k",
        "--size=16m",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--thread",
    ];
    let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    arguments.push(format!("--rw={rw}"));
    arguments.push(format!("--uri=nbd+unix:///?socket={}", text(socket)));
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    arguments
}

#[test]
fn fio_verifies_through_twenty_kills_of_the_branch_server() {
    let mut rng = Rng::from_environment("fio");
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 20 * MIB, 41);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    branch.start_desktop("office", "x");

    let socket = lab.path("re.sock");
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=desktop/x,reconnect-delay=60",
        text(&branch.data.join("nbd.sock"))
    );
    let words = [
        "--persistent",
        "--shared=4",
        "--socket",
        text(&socket),
        "--image-opts",
        &options,
    ];
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    let mut client = Daemon::new("qemu-nbd".into(), words, lab.path("qemu-nbd.log"));
    client.start();
    wait_for("qemu-nbd to listen", Duration::from_secs(30), || {
        client.check();
        socket.exists()
    });

    let start = |pass: u32| {
        // Verifies as it goes, and everything once more at the end of the pass.
        let seed = format!("--randseed={}", 1000 + pass);
        let more = [
            "--verify_backlog=512",
            "--fsync=64",
            "--rate_iops=400",
            &seed,
        ];
        let (path, arguments) = (Path::new("fio"), arguments(&socket, "randwrite", &more));
        let child = limited(path, PASS)
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Background::new(line(path, &arguments), child.unwrap())
    };
    let (mut pass, mut kills) = (0, 0);
    let mut fio = start(pass);
    while kills < KILLS {
        std::thread::sleep(rng.pause(900));
        if fio.has_ended() {
            fio.end().ok();
            pass += 1;
            fio = start(pass);
            continue;
        }
        branch.daemon().kill();
        std::thread::sleep(rng.pause(200));
        branch.restart();
        kills += 1;
        client.check();
    }
    fio.end().ok();
    println!("{kills} kills over {} passes", pass + 1);
    // All blocks once more: through the same client, then through a new connection without it.
    run("fio", &arguments(&socket, "read", &[]), PASS).ok();
    client.stop();
    let direct = arguments(&socket, "read", &[]).into_iter().map(|word| {
        if word.starts_with("--uri=") {
            format!("--uri={}", branch.export("desktop/x").uri())
        } else {
            word
        }
    });
    run("fio", &direct.collect::<Vec<_>>(), PASS).ok();
}
