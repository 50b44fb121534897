//! The check `net`: a desktop comes up by DHCP, and what it sends and receives is what was sent.
//!
//! The tap's other end is an interface of this machine's, where dnsmasq answers. Files go over TCP between the guest's shell and this
//! program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmm_api::{Answer, Command as Ask};

use crate::checks::{BOOT, SHELL};
use crate::vm::{Lab, Options, Vm, wait};

const TAP: &str = "lab0";
const HOST: &str = "10.77.0.1";
const PORT: u16 = 7700;
/// Bytes that go each way. Emulated twice, a few MB a second.
const BYTES: u64 = 8 << 20;
const DHCP: Duration = Duration::from_secs(90);

/// Runs a program of this machine's; what it printed.
fn host(program: &str, arguments: &[&str]) -> Result<String> {
    let run = Command::new(program).args(arguments).output();
    let run = run.with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

/// The tap and its DHCP server, gone when dropped.
struct Network(Child);

impl Network {
    fn new(log: &Path) -> Result<Self> {
        host("ip", &["tuntap", "add", TAP, "mode", "tap"])?;
        host("ip", &["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        host("ip", &["link", "set", TAP, "up"])?;
        let log = File::create(log)?;
        let server = Command::new("dnsmasq")
            .args(["--no-daemon", "--user=root", "--conf-file=/dev/null"])
            // No names, only addresses.
            .args(["--port=0", "--bind-dynamic", "--dhcp-authoritative"])
            .arg(format!("--interface={TAP}"))
            .args(["--dhcp-range=10.77.0.50,10.77.0.60,1h", "--log-dhcp"])
            .arg("--dhcp-leasefile=/tmp/leases")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dnsmasq")?;
        Ok(Self(server))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = host("ip", &["link", "del", TAP]);
    }
}

fn sum_of(file: &Path) -> Result<String> {
    let sum = host("sha256sum", &[&file.to_string_lossy()])?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Serves one connection on a thread while the guest runs `command`; what the guest printed and how long it took.
fn exchange(
    vm: &mut Vm,
    command: &str,
    serve: impl FnOnce(std::net::TcpStream) -> io::Result<()> + Send,
) -> Result<(String, f64)> {
    let listener = TcpListener::bind((HOST, PORT))?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || serve(listener.accept()?.0));
        let begun = Instant::now();
        let said = vm.run(&format!("bash -c '{command}'"), Duration::from_secs(180));
        if said.is_err() {
            // The server must not wait for a guest that does not come.
            let _ = std::net::TcpStream::connect((HOST, PORT));
        }
        let said = said?;
        server.join().expect("no panic")?;
        Ok((said, begun.elapsed().as_secs_f64()))
    })
}

/// See the module.
pub fn net(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let _network = Network::new(&lab.file(name, "dhcp.vmm"))?;
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        more: [
            "--net",
            &format!("{TAP},mac=52:54:00:77:00:01,mbps=1000,pps=100000"),
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    let address = wait("an address by DHCP", DHCP, || {
        let addresses = vm.run("ip -4 -o addr show scope global", SHELL)?;
        let address = addresses
            .split_whitespace()
            .find(|word| word.starts_with("10.77.0."));
        Ok(address.map(str::to_owned))
    })?;
    let own = vm.run("cat /sys/class/net/en*/address", SHELL)?;
    ensure!(own.trim() == "52:54:00:77:00:01", "{own:?}");
    vm.run(&format!("ping -c 3 -W 5 {HOST}"), SHELL)?;

    // A file of noise goes in, and another one comes out.
    let (file, came) = (Path::new("/tmp/net-file"), Path::new("/tmp/net-came"));
    io::copy(
        &mut File::open("/dev/urandom")?.take(BYTES),
        &mut File::create(file)?,
    )?;
    let fetch = format!("cat </dev/tcp/{HOST}/{PORT} | sha256sum");
    let (sum, down) = exchange(&mut vm, &fetch, |mut stream| {
        io::copy(&mut File::open(file)?, &mut stream)?;
        stream.flush()
    })?;
    ensure!(
        sum.starts_with(&sum_of(file)?),
        "{sum:?} came into the guest"
    );
    let make = format!("head -c {BYTES} /dev/urandom >/run/noise; sha256sum /run/noise");
    let sent = vm.run(&make, SHELL)?;
    let put = format!("cat /run/noise >/dev/tcp/{HOST}/{PORT}");
    let (_, up) = exchange(&mut vm, &put, |mut stream| {
        io::copy(&mut stream, &mut File::create(came)?).map(drop)
    })?;
    ensure!(sent.starts_with(&sum_of(came)?), "{sent:?} was sent");

    // The cable is pulled, and put in again.
    for up in [false, true] {
        ensure!(vm.ask(&Ask::Link { card: 0, up })? == Answer::Done);
        wait("the guest to see its cable", SHELL, || {
            let carrier = vm.run("cat /sys/class/net/en*/carrier", SHELL)?;
            Ok((carrier.trim() == if up { "1" } else { "0" }).then_some(()))
        })?;
    }
    wait("the host to answer again", DHCP, || {
        let said = vm.run(
            &format!("ping -c 1 -W 2 {HOST} >/dev/null && echo yes || true"),
            SHELL,
        )?;
        Ok(said.contains("yes").then_some(()))
    })?;
    let offloads = vm.run("dmesg | grep -c virtio_net || true", SHELL)?;
    let rate = |seconds: f64| BYTES as f64 / 1e6 / seconds;
    Ok(vec![
        format!("address {address}, driver messages {}", offloads.trim()),
        format!("{:.1} MB/s in, {:.1} MB/s out", rate(down), rate(up)),
    ])
}
