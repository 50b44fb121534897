//! What a hostile guest would try once it has broken into a machine's process: enters the sandbox and does one thing there. For tests.
//!
//! `sandbox-probe MODE VIOLATION UID|- ROLE ATTEMPT [ARGUMENT]` prints what came of it: `done` and what was found, or `refused` and why.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../block/tests/guest/mod.rs"]
mod guest;
#[path = "../tests/disks/machine.rs"]
#[allow(dead_code, reason = "a test uses the rest")]
mod machine;

use std::fs::File;
use std::io::{self, Error, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use guest::{DISCARD, Data, FLUSH, IN, OUT, SECTOR, WRITE_ZEROES, pattern};
use machine::Machine;
use vm_memory::{Bytes, GuestAddress};
use vmm::machine::memory;
use vmm::rfb::Inputs;
use vmm::sandbox::door::{Clerk, Door};
use vmm::sandbox::{Needs, Sandbox, User};
use vmm::screen::{Screen, Size};
use vmm::snapshot::memory::{self as image, BLOCK_BYTES, Image};
use vmm::snapshot::working_set::WorkingSet;
use vmm::snapshot::{self, Faults, Loading, OnDamage};
use vmm::threads::{self, Role};
use vmm::virtio::Device;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::{Block, Disk, Limits};
use vmm::virtio::console::{Console, HostEnd, PortSpec};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::net::{self, Net, Tap};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm::virtio::vsock::{Vsock, VsockSpec};
use vmm_block::RawFile;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [mode, violation, uid, role, attempt, rest @ ..] = words.as_slice() else {
        panic!("see the module");
    };
    let argument = rest.first().cloned().unwrap_or_default();
    let uid = (uid != "-").then(|| uid.parse().unwrap());
    let sandbox = Sandbox {
        mode: mode.parse().unwrap(),
        violation: violation.parse().unwrap(),
        user: uid.map(|uid| User { uid, gid: uid }),
        group: None,
    };
    sandbox.close_inherited(&[]).unwrap();
    let mut needs = Needs {
        file_bytes: 1 << 30,
        faults: attempt == "page",
        ..Needs::default()
    };
    let mut devices = Vec::new();
    match attempt.as_str() {
        "remote" => needs.servers.push(PathBuf::from(&argument)),
        "services" => needs.services = Some(PathBuf::from(&argument)),
        "devices" => devices = opened(Path::new(&argument)),
        _ => {}
    }
    let mut inside = sandbox.enter(&needs).unwrap();
    for part in &inside.lacking {
        println!("lacking {part}");
    }
    let result = match attempt.as_str() {
        "remote" => remote(&argument, inside.clerk.as_ref().unwrap()),
        "stranger" => stranger(inside.clerk.unwrap()),
        "page" => page(inside.faults.take().unwrap()),
        "services" => in_role(Role::Ports, inside.clerk.unwrap(), services),
        "devices" => in_role(
            Role::Vcpu,
            devices.into_iter().map(Machine::new).collect(),
            use_devices,
        ),
        attempt => {
            let attempt = attempt.to_owned();
            let role = match role.as_str() {
                "main" => None,
                "vcpu" => Some(Role::Vcpu),
                "disk" => Some(Role::Disk),
                "remote" => Some(Role::Remote),
                "pager" => Some(Role::Pager),
                "device" => Some(Role::Device),
                "screen" => Some(Role::Screen),
                other => panic!("role {other}"),
            };
            match role {
                None => try_it(&attempt, &argument),
                Some(role) => in_role(role, (), move |()| try_it(&attempt, &argument)),
            }
        }
    };
    match result {
        Ok(found) => println!("done {found}"),
        Err(error) => println!("refused {error}"),
    }
}

fn in_role<T: Send + 'static>(
    role: Role,
    with: T,
    work: impl FnOnce(T) -> io::Result<String> + Send + 'static,
) -> io::Result<String> {
    threads::spawn(role, "probe", move || work(with))?
        .join()
        .unwrap()
}

fn check(result: i64) -> io::Result<String> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result.to_string())
}

/// One thing.
fn try_it(attempt: &str, argument: &str) -> io::Result<String> {
    let null = std::ptr::null::<u8>();
    // SAFETY: what is tried here has no effect on this process's memory if it is refused, and the process ends after it in any case.
    unsafe {
        match attempt {
            "nothing" => Ok(String::new()),
            "heap" => {
                // Grows and shrinks by more than what is kept, in pieces of several sizes.
                for bytes in [64 << 10, 1 << 20, 64 << 10, 3 << 20] {
                    let many: Vec<Vec<u8>> = (0..16).map(|_| vec![1; bytes]).collect();
                    std::hint::black_box(many);
                }
                Ok(String::new())
            }
            "open" => std::fs::read_to_string(argument).map(|text| text.len().to_string()),
            "list" => Ok(std::fs::read_dir("/")?.count().to_string()),
            "write" => std::fs::write("/file", "text").map(|()| String::new()),
            "socket" => check(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into()),
            "connect" => std::net::TcpStream::connect(argument).map(|_| String::new()),
            "exec" => Err(Command::new("/bin/true").exec()),
            "fork" => check(libc::fork().into()),
            "ptrace" => check(libc::ptrace(
                libc::PTRACE_ATTACH,
                argument.parse::<i32>().unwrap(),
                0,
                0,
            )),
            "kill" => check(libc::kill(argument.parse().unwrap(), libc::SIGKILL).into()),
            "kill-all" => check(libc::kill(-1, libc::SIGKILL).into()),
            "mount" => check(
                libc::mount(
                    c"x".as_ptr(),
                    c"/".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    null.cast(),
                )
                .into(),
            ),
            "unshare" => check(libc::unshare(libc::CLONE_NEWUSER).into()),
            "chroot" => check(libc::chroot(c"/".as_ptr()).into()),
            "become-root" => check(libc::setresuid(0, 0, 0).into()),
            "executable" => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let prot = libc::PROT_READ | libc::PROT_EXEC;
                check(libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) as i64)
            }
            "read-disk" => {
                check(libc::pread(libc::STDIN_FILENO, [0u8; 8].as_mut_ptr().cast(), 8, 0) as i64)
            }
            "terminal" => {
                check(libc::ioctl(libc::STDIN_FILENO, libc::TIOCSTI, c"x".as_ptr()).into())
            }
            other => panic!("attempt {other}"),
        }
    }
}

/// Devices on what lies in a folder, opened as by the machine.
fn opened(folder: &Path) -> Vec<Box<dyn Device>> {
    let disk = |limits| {
        let device = RawFile::open(&folder.join("disk"), false).unwrap();
        Block::new(Disk {
            device: Arc::new(device),
            serial: String::new(),
            queues: 2,
            limits,
        })
    };
    let slow = Limits {
        requests_per_s: Some(50),
        bytes_per_s: None,
    };
    let port = PortSpec {
        name: "port".into(),
        end: HostEnd::Socket(folder.join("port")),
    };
    let vsock = VsockSpec {
        cid: 3,
        socket: folder.join("vsock"),
    };
    let inputs = Inputs::default();
    let mut devices: Vec<Box<dyn Device>> = vec![
        Box::new(disk(Limits::default())),
        Box::new(disk(slow)),
        Box::<Rng>::default(),
        Box::new(Balloon::new(Default::default())),
        Box::new(Console::new(&[port]).unwrap()),
        Box::new(Vsock::new(&vsock).unwrap()),
        Box::new(Gpu::new(Screen::new(Size::default()))),
        Box::new(Input::new(Model::Keyboard, inputs.keyboard)),
    ];
    // Where there are taps and we may have one.
    if let Ok(tap) = Tap::open(&format!("probe{}", std::process::id())) {
        let limits = net::Limits {
            packets_per_s: Some(50),
            bytes_per_s: None,
        };
        devices.push(Box::new(Net::new([0x52, 0x54, 0, 0, 0, 1], tap, limits)));
    }
    devices
}

/// As a guest uses them, twice: what they are asked is for disks, and others make of it what they can.
fn use_devices(machines: Vec<Machine>) -> io::Result<String> {
    let count = machines.len();
    for mut machine in machines {
        let mut places = vec![0; machine.drivers.len()];
        for round in 0..2 {
            machine.start(&places);
            for queue in 0..machine.drivers.len() {
                let driver = &mut machine.drivers[queue];
                for (sector, kind) in (0..).zip([OUT, IN, FLUSH, DISCARD, WRITE_ZEROES]) {
                    let data = pattern(round, SECTOR);
                    let data = match kind {
                        OUT | DISCARD | WRITE_ZEROES => Data::Out(&data),
                        IN => Data::In(SECTOR),
                        _ => Data::None,
                    };
                    if driver.room() > 0 {
                        driver.submit(kind, sector, data);
                    }
                }
                machine.kick(queue);
                // Some devices keep what they are given, until they have something to say.
                while machine.drivers[queue]
                    .wait_for(Duration::from_millis(60))
                    .is_some()
                {}
            }
            places = machine.stop().iter().map(|place| place.0).collect();
        }
    }
    Ok(count.to_string())
}

/// Uses a disk whose server comes and goes.
fn remote(socket: &str, clerk: &Clerk) -> io::Result<String> {
    let door = Door::with_clerk(Path::new(socket), clerk.clone(), 0);
    let disk = RemoteBlock::open(door, 1, Duration::from_secs(20)).unwrap();
    let machine = Machine::new(Box::new(disk));
    in_role(Role::Vcpu, machine, |mut machine| {
        machine.start(&[0]);
        println!("started");
        for sector in 0..400 {
            machine.drivers[0].submit(OUT, sector, Data::Out(&pattern(sector, SECTOR)));
            machine.kick(0);
            assert_eq!(machine.drivers[0].wait().status, 0);
            std::thread::sleep(Duration::from_millis(2));
        }
        machine.stop();
        Ok(String::new())
    })
}

/// Saves a memory into files that are open only here, and has it come page by page into another one.
fn page(faults: io::Result<Faults>) -> io::Result<String> {
    let memory = memory::create(64).unwrap();
    let at = |block: u64| GuestAddress(block * BLOCK_BYTES as u64 + 9);
    for block in [3, 700] {
        memory.write_obj(block as u8, at(block)).unwrap();
    }
    let file = || {
        // SAFETY: the name is a C string; the result is checked before it is used.
        let fd = unsafe { libc::memfd_create(c"probe".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was made just now and belongs to nobody else.
        unsafe { File::from_raw_fd(fd) }
    };
    let saved = file();
    let blocks = image::write(&memory, &saved).unwrap();
    let image = Image::new(saved, 64 << 20, blocks).unwrap();
    let fresh = memory::create(64).unwrap();
    let loading = Loading::begun();
    let (is_lazy, faults) = (faults.is_ok(), faults.ok());
    let on_damage: OnDamage = Box::new(|error| panic!("{error}"));
    let working_set = WorkingSet::default();
    let pager = snapshot::give(image, &fresh, working_set, faults, loading, on_damage).unwrap();
    let read = |block| fresh.read_obj::<u8>(at(block)).unwrap();
    assert_eq!([read(700), read(3), read(5)], [700u64 as u8, 3, 0]);
    if let Some(pager) = &pager {
        pager.finish();
    }
    Ok(if is_lazy { "lazily" } else { "at once" }.to_owned())
}

/// Calls programs of the host as the guest's socket device does: one that is there, one that is not, and more than may be called.
fn services(clerk: Clerk) -> io::Result<String> {
    let mut stream = clerk.call(5)?;
    stream.set_nonblocking(true)?;
    stream.write_all(b"from inside")?;
    drop(stream);
    let nobody = clerk.call(6).unwrap_err();
    let mut calls = (0..100_000).map(|_| clerk.call(7));
    let refused = calls.find_map(|call| call.err().filter(|error| error.kind() != nobody.kind()));
    Ok(format!("{nobody}; {}", refused.unwrap()))
}

/// Asks for a connection that is none of ours.
fn stranger(clerk: Clerk) -> io::Result<String> {
    Door::with_clerk(Path::new("/"), clerk, 7)
        .connect()
        .map(|_| String::new())
}
